"""Graphs that the commands train, one `Dot` per neuron."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import flowgrad as fg

from ..graph import ancestors


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
    first : Node, optional
        Output of the first hidden layer.
    """

    graph: fg.Graph
    x: fg.Variable
    label: fg.Variable
    probabilities: fg.Node
    loss: fg.Node
    first: fg.Node | None = None

    def __str__(self) -> str:
        nodes, needed = self.graph.nodes, len(ancestors(self.loss))
        numbers = sum(node.dim for node in nodes if isinstance(node, fg.Variable) and node.trainable)
        return f"{len(nodes):,} nodes, {needed:,} of them for the loss, {numbers:,} trainable numbers"


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
        outputs = []
        for i, units in enumerate(hidden):
            value = fg.layers.dense(value, units, "relu", per_neuron=True, name=f"h{i}")
            outputs.append(value)
        logits = fg.layers.dense(value, classes, per_neuron=True, name="o")
        probabilities = fg.SoftMax(logits, name="probabilities")
        loss = fg.CrossEntropyWithSoftMax(logits, label, name="loss")
    return Model(graph, x, label, probabilities, loss, outputs[0] if outputs else None)
