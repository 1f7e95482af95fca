"""The net and the training of ``examples/mnist.py`` in PyTorch, in one process."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from flowgrad.data import load_mnist


def main() -> None:
    """Build the net, train it, look at it."""
    torch.manual_seed(0)
    data = load_mnist().head(55_000)
    net = nn.Sequential(nn.Linear(784, 90), nn.ReLU(), nn.Linear(90, 10))
    x, label, new, answer = map(torch.from_numpy, (data.x_train, data.y_train, data.x_test, data.y_test))
    batches = DataLoader(TensorDataset(x, label), 32, shuffle=True)
    adam = torch.optim.Adam(net.parameters(), 0.01)
    for epoch in range(1, 7):
        for inputs, labels in batches:
            adam.zero_grad()
            F.cross_entropy(net(inputs), labels).backward()
            adam.step()
        with torch.no_grad():
            logits = net(new)
        loss, accuracy = F.cross_entropy(logits, answer), (logits.argmax(1) == answer).float().mean()
        print(f"epoch {epoch}  test loss {loss:.4f}  accuracy {accuracy:.4f}")
    print("the first ten test images:", *data.y_test[:10])
    print("                predicted:", *logits[:10].argmax(1).tolist())
    torch.save({"net": net.state_dict(), "adam": adam.state_dict()}, "mnist.pt")


if __name__ == "__main__":
    main()
