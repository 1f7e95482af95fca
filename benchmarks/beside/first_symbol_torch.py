"""The net and the training of ``examples/first_symbol.py`` in PyTorch."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from examples.first_symbol import BATCH, EPOCHS, SEQUENCES, SYMBOLS, UNITS, sequences


class Memory(nn.Module):
    """An LSTM, and logits of its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.logits = nn.LSTM(SYMBOLS, UNITS, batch_first=True), nn.Linear(UNITS, SYMBOLS)
        nn.init.xavier_uniform_(self.memory.weight_ih_l0)
        nn.init.orthogonal_(self.memory.weight_hh_l0)
        nn.init.zeros_(self.memory.bias_hh_l0)
        nn.init.zeros_(self.memory.bias_ih_l0)
        nn.init.constant_(self.memory.bias_ih_l0[UNITS : 2 * UNITS], 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.logits(self.memory(x)[0][:, -1])


def main() -> None:
    """Train on some sequences, ask about others."""
    torch.manual_seed(0)
    net = Memory()
    x, label = map(torch.from_numpy, sequences(SEQUENCES, seed=1))
    new, answer = map(torch.from_numpy, sequences(2_000, seed=2))
    batches = DataLoader(TensorDataset(x, label), BATCH, shuffle=True)
    adam = torch.optim.Adam(net.parameters(), 0.005, (0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, EPOCHS * len(batches))
    for epoch in range(1, EPOCHS + 1):
        for inputs, labels in batches:
            adam.zero_grad()
            loss = F.cross_entropy(net(inputs), labels)
            loss.backward()
            adam.step()
            schedule.step()
        with torch.no_grad():
            accuracy = (net(new).argmax(1) == answer).float().mean()
        print(f"epoch {epoch}  loss {loss:.4f}  accuracy on new sequences {accuracy:.4f}")


if __name__ == "__main__":
    main()
