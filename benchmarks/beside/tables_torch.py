"""The nets and the training of ``examples/tables.py`` in PyTorch."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from examples.tables import BATCH, BINS, COLUMNS, DIM, EPOCHS, categories, main


def embedding(dim: int, deviation: float) -> nn.Embedding:
    """Return a table of numbers for each category, small at first."""
    table = nn.Embedding(BINS * COLUMNS, dim)
    nn.init.normal_(table.weight, std=deviation)
    return table


class Machine(nn.Module):
    """A factorization machine of the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.V = nn.Linear(COLUMNS, 1), nn.Parameter(0.01 * torch.randn(COLUMNS, 8))

    def forward(self, x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Return the score."""
        return self.w(x)[:, 0] + 0.5 * ((x @ self.V) ** 2 - (x * x) @ (self.V * self.V)).sum(1)


class WideAndDeep(nn.Module):
    """The columns as they are, and a net that reads embeddings of their categories."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.e = nn.Linear(COLUMNS, 1), embedding(DIM, 0.05)
        self.deep = nn.Sequential(nn.Flatten(), nn.Linear(COLUMNS * DIM, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Return the score."""
        return (self.w(x) + self.deep(self.e(k)))[:, 0]


class DeepFM(nn.Module):
    """A factorization machine of categories, and a net that reads the same embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.e = embedding(1, 0.0), embedding(DIM, 0.05)
        self.deep = nn.Sequential(nn.Flatten(), nn.Linear(COLUMNS * DIM, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Return the score."""
        e = self.e(k)
        pairs = 0.5 * (e.sum(1) ** 2 - (e * e).sum(1)).sum(1)
        return self.w(k).sum((1, 2)) + pairs + self.deep(e)[:, 0]


NETS = {"factorization machine": Machine, "wide & deep": WideAndDeep, "DeepFM": DeepFM}


def predicted(net: str, x: np.ndarray, label: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Train on rows that are known, and return the probabilities of new ones."""
    torch.manual_seed(0)
    model = NETS[net]()
    known = TensorDataset(*map(torch.from_numpy, (x.astype("f4"), categories(x, x), label.astype("f4"))))
    batches = DataLoader(known, BATCH, shuffle=True)
    adam = torch.optim.Adam(model.parameters(), 0.003, weight_decay=0.001)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, EPOCHS * len(batches))
    for _ in range(EPOCHS):
        for columns, numbers, labels in batches:
            adam.zero_grad()
            F.binary_cross_entropy_with_logits(model(columns, numbers), labels).backward()
            adam.step()
            schedule.step()
    with torch.no_grad():
        return torch.sigmoid(model(torch.from_numpy(new.astype("f4")), torch.from_numpy(categories(x, new)))).numpy()


if __name__ == "__main__":
    main(predicted)
