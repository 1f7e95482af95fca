"""The quick start of README.md, softmax regression, in PyTorch."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
net = nn.Linear(10, 3)
samples = torch.from_numpy(np.random.default_rng(0).normal(size=(600, 10))).float()
labels = samples[:, :3].argmax(1)
adam = torch.optim.Adam(net.parameters(), 0.01)
for _ in range(5):
    for x, label in DataLoader(TensorDataset(samples, labels), 32, shuffle=True):
        adam.zero_grad()
        F.cross_entropy(net(x), label).backward()
        adam.step()
print((net(samples).argmax(1) == labels).float().mean().item())
