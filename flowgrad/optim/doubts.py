"""What hardly anybody means to train: told before the first update."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import warn
from ..graph import Node, Variable, ancestors
from ..ops import CrossEntropyWithSoftMax, Logistic, LogisticCrossEntropy, MeanSquaredError, SoftMax

# What computes the probabilities that a cross entropy makes of its scores by itself.
PROBABILITIES = {CrossEntropyWithSoftMax: SoftMax, LogisticCrossEntropy: Logistic}


def warn_independent(target: Node, variables: Sequence[Variable]) -> None:
    """Say which variables the target does not depend on; their gradient is zero."""
    used = ancestors(target)
    idle = [v for v in variables if v not in used]
    if idle:
        names = ", ".join(repr(v.name) for v in idle[:5]) + (", ..." if len(idle) > 5 else "")
        warn(f"{target} does not depend on {len(idle)} trainable variable(s) {names}: their gradient is zero")


def warn_doubtful(target: Node, variables: Sequence[Variable]) -> None:
    """Say what is doubtful about training these variables by this loss, one line each; what is measured is not trained."""
    variables = [v for v in variables if not v.measured]
    warn_independent(target, variables)
    if not variables:
        warn(
            f"nothing is trained, so {target} stays as it is: all its variables are fed, frozen, have a learning rate of 0 or "
            f"trainable=False"
        )
    for loss in ancestors(target):
        if isinstance(loss, (CrossEntropyWithSoftMax, LogisticCrossEntropy, MeanSquaredError)):
            _warn_of_loss(loss, {*variables})


def _warn_of_loss(loss: Node, trained: set[Variable]) -> None:
    scores, labels = loss.parents
    probabilities = PROBABILITIES.get(type(loss))  # type: ignore[arg-type]
    if trained.isdisjoint(ancestors(labels)):
        if probabilities is not None and isinstance(scores, probabilities):
            logits = scores.parents[0]
            warn(
                f"{loss} is of {scores}, but computes that itself from its first operand: give it the logits, {logits}"
            )
    elif (
        probabilities is not None
        and not isinstance(labels, Variable)
        and (isinstance(scores, Variable) or trained.isdisjoint(ancestors(scores)))
    ):
        warn(
            f"{loss} has the labels {labels}, which are trained, and the logits {scores}: were they given the other way round? "
            f"It is {type(loss).__name__}(logits, labels)"
        )
    if labels in trained and not trained.isdisjoint(ancestors(scores)):
        warn(
            f"{labels} is trained towards what {loss} compares it with: what is fed or set, such as labels and inputs, "
            f"is a Variable(..., trainable=False)"
        )
