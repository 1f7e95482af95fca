"""Nets beside the main one, which nobody tuned for: deep, convolutional, recurrent, and chains of small ops.

Run as a module it trains one net by one contender and answers in JSON: the process's whole time then belongs to it alone.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.setting import Array
from benchmarks.turns import answer_of

EPOCHS, TURNS = 3, 3
STEPS, INPUTS, UNITS = 96, 12, 16
# Contender: label, whether PyTorch, threads (0: flowgrad's own choice) or kernel.
CONTENDERS: dict[str, tuple[str, bool, Any]] = {
    "torch-1": ("PyTorch, 1 thread", True, 1),
    "torch-2": ("PyTorch, 2 threads", True, 2),
    "flowgrad": ("flowgrad", False, "auto"),
    "flowgrad-numpy": ("flowgrad without numba", False, "numpy"),
}


def deep(fg: Any, x: Any) -> Any:
    """Write 784-256-128-10, a `Dot` for each neuron."""
    for units in (256, 128):
        x = fg.layers.dense(x, units, "relu", per_neuron=True)
    return fg.layers.dense(x, 10, per_neuron=True)


def lstm(fg: Any, x: Any) -> Any:
    """Write one LSTM cell over all steps, then one unit."""
    return fg.layers.dense(fg.layers.lstm(x.reshape(STEPS, INPUTS), UNITS), 1)


def rnn(fg: Any, x: Any) -> Any:
    """Write a plain recurrent cell over all steps, then one unit."""
    return fg.layers.dense(fg.layers.rnn(x.reshape(STEPS, INPUTS), UNITS), 1)


def lenet(fg: Any, x: Any) -> Any:
    """Write two convolutions with pooling, then 120 units and 10."""
    x = x.reshape(1, 28, 28)
    for width in (5, 3):
        x = fg.layers.max_pool2d(fg.layers.conv2d(x, 3, width, padding="valid", activation="relu"), 2)
    return fg.layers.dense(fg.layers.dense(x, 120, "relu"), 10)


def chain(fg: Any, x: Any) -> Any:
    """Write 1,200 elementwise ops one after the other."""
    h = fg.Multiply(x, fg.Variable(x.dim, np.ones(x.dim)))
    for k in range(1200):
        h = fg.Tanh(h) if k % 2 else fg.Add(h, fg.Variable(x.dim, np.full(x.dim, 0.01)))
    return fg.layers.dense(h, 1)


def torch_net(name: str) -> Any:
    """Return the same net in PyTorch."""
    import torch
    from torch import nn

    class Last(nn.Module):
        def __init__(self, cell: Any):
            super().__init__()
            self.cell, self.head = cell, nn.Linear(UNITS, 1)

        def forward(self, x: Any) -> Any:
            return self.head(self.cell(x.view(len(x), STEPS, INPUTS))[0][:, -1])

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.head = nn.Parameter(torch.ones(32)), nn.Linear(32, 1)
            self.shifts = nn.ParameterList([torch.full((32,), 0.01) for _ in range(600)])

        def forward(self, x: Any) -> Any:
            h = x * self.scale
            for shift in self.shifts:
                h = torch.tanh(h + shift)
            return self.head(h)

    if name == "deep":
        return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    if name == "lenet":
        first = [nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 3, 5), nn.ReLU(), nn.MaxPool2d(2)]
        second = [nn.Conv2d(3, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        return nn.Sequential(*first, *second, nn.Linear(75, 120), nn.ReLU(), nn.Linear(120, 10))
    if name == "chain":
        return Chain()
    return Last((nn.LSTM if name == "lstm" else nn.RNN)(INPUTS, UNITS, batch_first=True))


# Label, net, length of a sample, classes (0: one number), batch size, samples.
NETS: dict[str, tuple[str, Callable[[Any, Any], Any], int, int, int, int]] = {
    "deep32": ("784-256-128-10, batch 32", deep, 784, 10, 32, 8_192),
    "deep256": ("784-256-128-10, batch 256", deep, 784, 10, 256, 16_384),
    "lstm": ("LSTM, 96 steps of 12, 16 units, batch 16", lstm, STEPS * INPUTS, 0, 16, 2_048),
    "rnn": ("RNN, the same", rnn, STEPS * INPUTS, 0, 16, 4_096),
    "lenet": ("LeNet-like, batch 32", lenet, 784, 10, 32, 4_096),
    "chain": ("chain of 1,200 ops, batch 32", chain, 32, 0, 32, 1_024),
}


def data_of(name: str) -> tuple[Array, Array]:
    """Return samples and targets."""
    _, _, length, classes, _, samples = NETS[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, length)).astype(np.float32)
    return x, rng.integers(0, classes, samples) if classes else rng.normal(size=(samples, 1)).astype(np.float32)


def train_own(name: str, kernel: str) -> dict[str, float]:
    """Train by flowgrad."""
    import flowgrad as fg

    _, net, length, classes, batch, _ = NETS[name]
    began = time.perf_counter()
    with fg.Graph(seed=0) as graph:
        x, t = fg.Variable(length, trainable=False), fg.Variable(classes or 1, trainable=False)
        loss = (fg.CrossEntropyWithSoftMax if classes else fg.MeanSquaredError)(net(fg, x), t)
    built = time.perf_counter()
    trainer = fg.Trainer(fg.Adam(graph, loss, 1e-3, batch_size=batch), fg.Engine("threads", kernel=kernel))
    inputs, targets = data_of(name)
    began_fit = time.perf_counter()
    history = trainer.fit({x: inputs, t: targets}, epochs=EPOCHS)
    whole = time.perf_counter() - began_fit
    rates = [record["samples_per_second"] for record in history.epochs]
    return {"rate": statistics.median(rates), "whole": whole, "build": built - began}


def train_torch(name: str, threads: int) -> dict[str, float]:
    """Train by PyTorch, eager."""
    import torch

    torch.set_num_threads(threads)
    net, (_, _, _, classes, batch, samples) = torch_net(name.rstrip("0123456789")), NETS[name]
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    measure = torch.nn.functional.cross_entropy if classes else torch.nn.functional.mse_loss
    x, t = map(torch.from_numpy, data_of(name))
    rates, began_fit = [], time.perf_counter()
    for epoch in range(EPOCHS):
        began = time.perf_counter()
        for rows in torch.from_numpy(np.random.default_rng(epoch).permutation(samples).reshape(-1, batch)):
            optimizer.zero_grad(set_to_none=True)
            measure(net(x[rows]), t[rows]).backward()
            optimizer.step()
        rates.append(samples / (time.perf_counter() - began))
    return {"rate": statistics.median(rates), "whole": time.perf_counter() - began_fit, "build": 0.0}


def nets_report(tell: Callable[[str], None] = print, turns: int = TURNS) -> str:
    """Let all take turns, and return a table of medians: over epochs, then over turns."""
    lines = [
        "| net | "
        + " | ".join(label for label, *_ in CONTENDERS.values())
        + " | flowgrad / better PyTorch | whole `fit`, s |",
        "|---|" + "---:|" * (len(CONTENDERS) + 2),
    ]
    for name, (label, *_) in NETS.items():
        answers: dict[str, list[dict[str, float]]] = {contender: [] for contender in CONTENDERS}
        for turn in range(turns):
            tell(f"nets: {label}, turn {turn + 1} of {turns}")
            for contender in CONTENDERS:
                answer = answer_of("nets", name, contender)
                assert answer is not None
                answers[contender].append(answer)
        rate = {c: statistics.median(a["rate"] for a in given) for c, given in answers.items()}
        whole = {c: statistics.median(a["whole"] for a in given) for c, given in answers.items()}
        ratio = rate["flowgrad"] / max(rate["torch-1"], rate["torch-2"])
        times = f"{whole['flowgrad']:.2f}; PyTorch {min(whole['torch-1'], whole['torch-2']):.2f}"
        lines.append(
            f"| {label} | " + " | ".join(f"{rate[c]:,.0f}" for c in CONTENDERS) + f" | {ratio:.2f} | {times} |"
        )
    lines += ["", f"Samples per second: medians of {EPOCHS} epochs and {turns} turns, each in a process of its own."]
    return "\n".join(lines)


if __name__ == "__main__":
    _, torch_, how = CONTENDERS[sys.argv[2]]
    print(json.dumps(train_torch(sys.argv[1], how) if torch_ else train_own(sys.argv[1], how)))
