"""The net and the training of ``examples/attention.py`` in PyTorch."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from examples.attention import BATCH, EPOCHS, draw
from flowgrad.data import load_digits


class Attention(nn.Module):
    """Rows that look at each other, then two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.Q, self.K, self.V = (nn.Linear(8, 16, bias=False) for _ in range(3))
        self.hidden, self.logits = nn.Linear(8 * 24, 64), nn.Linear(64, 10)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """Return how much each row looks at each row."""
        return F.softmax(self.Q(x) @ self.K(x).mT / 4, -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        found = torch.cat([x, self.weights(x) @ self.V(x)], -1)
        return self.logits(F.relu(self.hidden(found.flatten(1))))


def main() -> None:
    """Train it, draw what it looks at, and say how well it does."""
    torch.manual_seed(0)
    data = load_digits()
    net = Attention()
    x, label = torch.from_numpy(data.x_train).view(-1, 8, 8), torch.from_numpy(data.y_train)
    new, answer = torch.from_numpy(data.x_test).view(-1, 8, 8), torch.from_numpy(data.y_test)
    batches = DataLoader(TensorDataset(x, label), BATCH, shuffle=True)
    adam = torch.optim.Adam(net.parameters(), 0.005)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, EPOCHS * len(batches))
    for _ in range(EPOCHS):
        for inputs, labels in batches:
            adam.zero_grad()
            F.cross_entropy(net(inputs), labels).backward()
            adam.step()
            schedule.step()
    some = np.array([np.flatnonzero(data.y_test == digit)[0] for digit in range(10)])
    with torch.no_grad():
        draw(data.x_test[some], net.weights(new[some]).numpy(), "attention.png")
        accuracy = (net(new).argmax(1) == answer).float().mean()
    print(f"accuracy on the test digits {accuracy:.4f}")


if __name__ == "__main__":
    main()
