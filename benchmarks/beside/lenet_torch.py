"""The net and the training of ``examples/lenet.py`` in PyTorch."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from examples.lenet import BATCH, EPOCHS
from flowgrad.data import load_mnist


def build() -> nn.Module:
    """Return the net."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 6, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def main() -> None:
    """Train it, and say how well it does."""
    torch.manual_seed(0)
    data = load_mnist()
    net = build()
    print(net)
    x, label, new, answer = map(torch.from_numpy, (data.x_train, data.y_train, data.x_test, data.y_test))
    batches = DataLoader(TensorDataset(x, label), BATCH, shuffle=True)
    adam = torch.optim.Adam(net.parameters(), 0.002)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, EPOCHS * len(batches))
    for epoch in range(1, EPOCHS + 1):
        for inputs, labels in batches:
            adam.zero_grad()
            F.cross_entropy(net(inputs), labels).backward()
            adam.step()
            schedule.step()
        with torch.no_grad():
            logits = net(new)
        loss, accuracy = F.cross_entropy(logits, answer), (logits.argmax(1) == answer).float().mean()
        print(f"epoch {epoch}  test loss {loss:.4f}  accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
