"""Graphs that the commands train, one `Dot` per neuron."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import flowgrad as fg


@dataclass(frozen=True)
class Model:
    """A classifier.

    Attributes
    ----------
    graph : Graph
    x, label : Variable
        What is fed: samples (N, x.dim) and class indices (N,).
    probabilities : Node
        Softmax of the logits, dim = number of classes.
    loss : Node
        Cross entropy, dim 1.
    """

    graph: fg.Graph
    x: fg.Variable
    label: fg.Variable
    probabilities: fg.Node
    loss: fg.Node

    def __str__(self) -> str:
        nodes = self.graph.nodes
        numbers = sum(node.dim for node in nodes if isinstance(node, fg.Variable) and node.trainable)
        return f"{len(nodes):,} nodes, {numbers:,} trainable numbers"


def multilayer_perceptron(inputs: int, hidden: Sequence[int], classes: int, seed: int = 0) -> Model:
    """Build a fully connected net with ReLU between its layers; without any hidden one, softmax regression.

    Parameters
    ----------
    inputs : int
        Length of one sample.
    hidden : sequence of int
        Units in each hidden layer.
    classes : int
        Output units.
    seed : int
        Seed of the initial values.
    """
    with fg.Graph(seed=seed) as graph:
        x = fg.Variable(inputs, trainable=False, name="x")
        label = fg.Variable(classes, trainable=False, name="label")
        value: fg.Node = x
        for i, units in enumerate(hidden):
            value = fg.ReLU(dense(value, units, f"h{i}"), name=f"h{i}")
        logits = dense(value, classes, "o")
        probabilities = fg.SoftMax(logits, name="probabilities")
        loss = fg.CrossEntropyWithSoftMax(logits, label, name="loss")
    return Model(graph, x, label, probabilities, loss)


def dense(x: fg.Node, units: int, name: str) -> fg.Node:
    """Return `units` neurons, each a `Dot` of ``name.w0``, ... with all of `x` plus a bias ``name.b0``, ..., as one vector."""
    neurons = []
    for i in range(units):
        weighted = fg.Dot(fg.Variable(x.dim, True, name=f"{name}.w{i}"), x)
        neurons.append(weighted + fg.Variable(1, True, name=f"{name}.b{i}"))
    return fg.Vectorize(*neurons)
