"""The reference cases: graphs, feeds and what an independent float64 implementation computed for them."""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

import flowgrad as fg

OPTIMIZERS = ("GradientDescent", "RMSProp", "Adam")
SMALL = tuple(
    f"{kind}_{optimizer}"
    for kind in ("softmax_regression", "mlp_relu", "mlp_logistic", "shared_patches")
    for optimizer in OPTIMIZERS
)
MNIST = "mnist_mlp_Adam"
NAMES = (*SMALL, MNIST)
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


@functools.lru_cache(maxsize=1)
def _files(folder):
    with np.load(folder / "reference_exact" / "reference.npz") as arrays:
        return json.loads((folder / "reference_exact" / "reference.json").read_text()), dict(arrays)


@functools.lru_cache(maxsize=1)
def _mnist(folder):
    with np.load(folder / "mnist.npz") as arrays:
        x = arrays["x_train"][:320].reshape(320, 784) / 255.0
        return x, arrays["y_train"][:320].astype(np.int64)


@dataclass
class Case:
    """One reference case, built afresh: its graph may be trained."""

    name: str
    spec: dict[str, Any]
    expected: dict[str, np.ndarray]  # keys without the name of the case
    graph: fg.Graph
    variables: dict[str, fg.Variable]  # by name: the trainable ones in the order of the file, then the inputs
    label: fg.Variable
    logits: fg.Node
    loss: fg.Node
    optimizer: Any
    feeds: dict[fg.Variable, np.ndarray]  # labels as class indices

    @property
    def trainable(self):
        return {name: self.variables[name] for name in self.spec["variables"]}

    @property
    def inputs(self):
        return [self.variables[name] for name in self.spec["feeds"] if name != "label"]

    @property
    def updates(self):
        return self.spec["updates"]

    def one_hot(self):
        return np.eye(self.label.dim)[self.feeds[self.label]]

    def set_sample(self, i):
        """Give the inputs and the label of sample `i` to the interpreter."""
        for x in self.inputs:
            x.set_value(self.feeds[x][i])
        self.label.set_value(self.one_hot()[i])

    def batch_losses(self):
        """Mean loss of each mini-batch before its update."""
        return self.expected["loss_before_step"].reshape(self.updates, -1).mean(axis=1)


def contents(folder):
    """Return the parsed json file: case -> description."""
    return _files(folder)[0]


def build(folder, name) -> Case:
    """Build reference case `name` from the files in `folder`."""
    specs, arrays = _files(folder)
    spec = specs[name]
    prefix = name + "/"
    expected = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    variables: dict[str, fg.Variable] = {}

    def parameter(key):
        init = expected[f"init/{key}"]
        variables[key] = fg.Variable(init.size, init, name=key)
        return variables[key]

    def units(x, k, prefix):
        return fg.Vectorize(
            *[fg.Add(fg.Dot(parameter(f"{prefix}w{j}"), x), parameter(f"{prefix}b{j}")) for j in range(k)]
        )

    params = spec["params"]
    with fg.Graph(seed=0) as graph:
        dims = {"x": params["d"]} if "d" in params else {f"x{i}": 4 for i in range(4)}
        inputs = {key: fg.Variable(d, trainable=False, name=key) for key, d in dims.items()}
        label = fg.Variable(params["k"], trainable=False, name="label")
        if spec["kind"] == "softmax_regression":
            logits = units(inputs["x"], params["k"], "")
        elif spec["kind"] == "mlp":
            hidden = inputs["x"]
            for level, width in enumerate(params["hidden"]):
                hidden = getattr(fg, params["act"])(units(hidden, width, f"h{level}."))
            logits = units(hidden, params["k"], "o.")
        else:
            w, b = parameter("w"), parameter("b")
            patches = fg.Vectorize(*[fg.Add(fg.Dot(w, x), b) for x in inputs.values()])
            logits = units(getattr(fg, params["act"])(patches), params["k"], "o.")
        loss = fg.CrossEntropyWithSoftMax(logits, label)
    assert list(variables) == spec["variables"]
    optimizer = getattr(fg, spec["optimizer"])(graph, loss, *spec["optimizer_args"], batch_size=spec["batch_size"])
    if name == MNIST:
        x, labels = _mnist(folder)
        feeds = {inputs["x"]: x, label: labels}
    else:
        feeds = {node: expected[f"feed/{key}"] for key, node in inputs.items()}
        feeds[label] = expected["feed/label_index"]
    return Case(name, spec, expected, graph, variables | inputs, label, logits, loss, optimizer, feeds)


def close(actual, desired, what):
    np.testing.assert_allclose(actual, desired, **TOLERANCE, err_msg=what)


def updates(case):
    """Yield (k, range of the samples that update k reads), k from 1."""
    size = case.spec["batch_size"]
    starts = itertools.count(0, size)
    for k, start in zip(range(1, case.updates + 1), starts):
        yield k, range(start, start + size)
