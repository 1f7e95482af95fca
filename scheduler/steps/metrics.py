"""Metrics: what adds up over samples as sums of shards, what does not as a function of all predictions, joined on one worker."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowgrad.errors import DataError, GraphError
from flowgrad.graph import Node, Variable, ancestors
from flowgrad.inputs import brief, listed, meant
from flowgrad.ops import Abs, Huber, Logistic, LogisticCrossEntropy, MeanSquaredError, Subtract
from flowgrad.ops.rowwise import softmax
from flowgrad.typing import Array

from ..feeds import Feeds
from .step import WEIGHTS, class_losses

OF_CLASSES = ("accuracy", "confusion_matrix", "precision", "recall", "f1")
OF_VALUES = ("r2", "mean_squared_error", "mean_absolute_error")
KNOWN = (*OF_CLASSES, "top_5", *OF_VALUES)
# Second parameters of functions that take probabilities; and functions in which older versions of scikit-learn call them otherwise.
PROBABILITIES = ("y_score", "y_prob", "y_proba")
OTHERWISE = ("log_loss", "d2_log_loss", "d2_log_loss_score")
# Names that records of epochs have already.
TAKEN = ("epoch", "loss", "seconds", "samples_per_second", "learning_rate")


class Metric(NamedTuple):
    """A metric by name, whose sums are known, or a function of scikit-learn's by its name, or one of somebody's own."""

    name: str
    function: Callable[..., Any] | None = None

    @property
    def adds_up(self) -> bool:
        """Whether it follows from sums over shards."""
        return self.function is None and (self.name in OF_CLASSES + OF_VALUES or self.top > 0)

    @property
    def top(self) -> int:
        """The k of ``top_k``; else 0."""
        found = re.fullmatch(r"top_([1-9]\d*)", self.name)
        return int(found[1]) if found and self.function is None else 0


ACCURACY = Metric("accuracy")


class Question(NamedTuple):
    """What a loss compares: a net's own output with what is fed; ``"classes"``, ``"binary"`` for yes or no, or ``"values"``."""

    kind: str
    output: Node
    truth: Node


class Part(NamedTuple):
    """What is summed up over a shard: losses, right answers (the mean of several questions), samples or their weights, and more."""

    loss: float
    right: float
    weight: float
    sums: dict[str, Array]


def metrics_of(given: Any) -> tuple[Metric, ...] | None:
    """Return the metrics that a user names; None: accuracy where there are classes.

    Raises
    ------
    GraphError, DataError
        For names that nobody knows, functions without a name, and where scikit-learn is asked for and not there.
    """
    if given is None:
        return None
    entries = listed(given)
    if entries is None or isinstance(given, dict):
        raise GraphError(f"metrics is a list of names and functions, not {brief(given)}: write ['accuracy']")
    metrics = tuple(_metric(entry) for entry in entries)
    names = [m.name for m in metrics]
    for name in names:
        if name in TAKEN or names.count(name) > 1:
            why = "is given twice" if names.count(name) > 1 else "has the name of something else in the history"
            raise GraphError(f"metrics: {name!r} {why}: give it another name")
    return metrics


def _metric(entry: Any) -> Metric:
    if isinstance(entry, str):
        metric = Metric(entry)
        if not metric.adds_up:
            _of_scikit(entry)
        return metric
    name = getattr(entry, "__name__", "")
    if not callable(entry) or isinstance(entry, type) or not name.isidentifier():
        raise GraphError(
            f"metrics are names or functions f(y_true, y_pred) with a name of their own, not {brief(entry)}: write it with def"
        )
    return Metric(name, entry)


def _of_scikit(name: str) -> Callable[..., Any]:
    """Return the function of scikit-learn's that has a name, with or without ``_score``."""
    try:
        from sklearn import metrics
    except ImportError:
        raise DataError(
            f"the metric {brief(name)} is scikit-learn's, which is not installed: pip install 'flowgrad[ml]', or choose of "
            f"{', '.join(KNOWN)}{meant(name, KNOWN)}"
        ) from None
    found = getattr(metrics, name, None) or getattr(metrics, f"{name}_score", None)
    if not inspect.isfunction(found) or next(iter(inspect.signature(found).parameters), "") != "y_true":
        raise GraphError(
            f"metrics: nothing is called {brief(name)}; there are {', '.join(KNOWN)}, and functions of sklearn.metrics, as "
            f"'roc_auc'{meant(name, (*KNOWN, 'roc_auc'))}"
        )
    return found


def _parameters(m: Metric) -> list[str]:
    """Return the names of what a metric's function takes."""
    try:
        return list(inspect.signature(m.function or _of_scikit(m.name)).parameters)
    except (TypeError, ValueError):  # it is compiled, and tells nothing
        return []


# -- what is compared -----------------------------------------------------------------------------------------------


def questions_of(target: Node, feeds: Feeds, metrics: Sequence[Metric] | None) -> list[Question]:
    """Return what is compared in a loss: the classes of its cross entropies, or else the values that it is about.

    Raises
    ------
    GraphError
        If a metric needs something else than the loss compares.
    """
    found = [Question(_kind(n), *n.parents) for n in class_losses(target, feeds)]
    if metrics is None:
        return found
    found = found or _values(target, feeds)
    for m in metrics:
        if not m.adds_up and WEIGHTS in feeds.arrays and WEIGHTS.name not in _parameters(m):
            raise GraphError(
                f"the metric {m.name!r} takes no sample_weight, but samples have weights: give it that parameter, or leave it out"
            )
        of_classes = m.adds_up and m.name not in OF_VALUES
        kinds = ("classes", "binary") if of_classes else ("values",) if m.adds_up else ("classes", "binary", "values")
        wrong = [q for q in found if q.kind not in kinds or (q.kind == "binary" and q.output.dim > 1)]
        if m == ACCURACY:
            wrong = [q for q in found if q.kind == "values"]
        if not found or wrong or (len(found) > 1 and m != ACCURACY):
            wanted = "classes" if of_classes else "values" if m.adds_up else "classes or values"
            raise GraphError(
                f"the metric {m.name!r} compares {wanted} of one output of the net with what is fed, which {target} does not: use "
                f"a cross entropy for classes, MeanSquaredError, mean_absolute_error or huber for values"
            )
    return found if metrics else []


def _kind(n: Node) -> str:
    return "binary" if isinstance(n, LogisticCrossEntropy) else "classes"


def _values(target: Node, feeds: Feeds) -> list[Question]:
    """Return values that a net computes beside those that are fed: of squared, absolute and Huber's errors."""
    every = ancestors(target)
    learned = {n for n in every if isinstance(n, Variable) and n.trainable and n not in feeds.arrays}
    inner = {p for n in every if isinstance(n, (Abs, Huber)) for p in n.parents if isinstance(p, Subtract)}
    found: dict[Question, None] = {}
    for n in every:
        if isinstance(n, MeanSquaredError) or n in inner:
            for output, truth in (n.parents, n.parents[::-1]):
                if learned.isdisjoint(ancestors(truth)) and not learned.isdisjoint(ancestors(output)):
                    found[Question("values", output, truth)] = None
    return list(found)


# -- on workers -----------------------------------------------------------------------------------------------------


def answers(kind: str, output: Array, truth: Array, samples: int) -> tuple[Array, Array, Array]:
    """Return for each sample the true class, the class that is predicted and probabilities; or twice values, and them again."""
    output, truth = (np.broadcast_to(a, (samples, a.shape[1])) for a in (output, truth))
    if kind == "classes":
        return truth.argmax(axis=1), output.argmax(axis=1), softmax(output)
    if kind == "binary":
        return (truth[:, 0] > 0.5).astype(int), (output[:, 0] > 0).astype(int), Logistic.apply(output[:, 0])
    flat = (output[:, 0], truth[:, 0]) if output.shape[1] == 1 else (output, truth)
    return flat[1], flat[0], flat[0]


def sums_of(
    kind: str, metrics: Iterable[Metric], given: tuple[Array, Array, Array], weights: Array | None
) -> dict[str, Array]:
    """Return what the metrics need of one shard, in double precision."""
    truth, guess, scores = given
    weights = np.ones(len(truth)) if weights is None else weights.astype(np.float64)
    if kind == "values":
        return _moments(truth.astype(np.float64), guess.astype(np.float64), weights)
    classes = scores.shape[1] if scores.ndim == 2 else 2
    places = truth * classes + guess
    counts = np.bincount(places, weights, classes * classes).reshape(classes, classes)
    return {"counts": counts} | {
        m.name: np.array(weights[_in_top(m.top, truth, guess, scores)].sum()) for m in metrics if m.top
    }


def _in_top(k: int, truth: Array, guess: Array, scores: Array) -> Array:
    """Return which samples' classes are among the k most likely; the first of equal ones come first."""
    if scores.ndim == 1:
        return (truth == guess) | (k > 1)
    own = scores[np.arange(len(truth)), truth][:, None]
    before = (scores == own) & (np.arange(scores.shape[1]) < truth[:, None])
    return (((scores > own) | before).sum(axis=1) < k) & ~np.isnan(own[:, 0])


def _moments(truth: Array, guess: Array, weights: Array) -> dict[str, Array]:
    truth, error, w = np.atleast_2d(truth.T), np.atleast_2d((guess - truth).T), weights.sum()
    mean = (truth @ weights) / w if w else truth[:, 0]
    about = np.square(truth - mean[:, None]) @ weights
    return {"w": w, "mean": mean, "about": about, "square": np.square(error) @ weights, "abs": np.abs(error) @ weights}


def joined_scores(metrics: Sequence[Metric], parts: list[tuple[Array, Array, Array, Array | None]]) -> list[float]:
    """Return functions of the predictions for all samples, whose parts are joined here."""
    truth, guess, scores = (np.concatenate([part[k] for part in parts]) for k in range(3))
    weights = None if parts[0][3] is None else np.concatenate([part[3] for part in parts])
    if not np.isfinite(scores).all():
        return [float("nan")] * len(metrics)
    return [_called(m, truth, guess, scores, weights) for m in metrics]


def _called(m: Metric, truth: Array, guess: Array, scores: Array, weights: Array | None) -> float:
    function, takes = m.function or _of_scikit(m.name), _parameters(m)
    likely = (m.function is None and m.name in OTHERWISE) or [*takes, "", ""][1] in PROBABILITIES
    classes = scores.shape[1] if truth.dtype.kind == "i" and scores.ndim == 2 else 2
    settings: dict[str, Any] = {} if weights is None else {"sample_weight": weights}
    if m.function is None and classes > 2:
        settings |= {"average": "macro"} if "average" in takes and not likely else {}
        settings |= {"multi_class": "ovr"} if "multi_class" in takes else {}
    if m.function is None and likely and "labels" in takes:
        settings["labels"] = np.arange(classes)
    likelihood = scores[:, 1] if classes == 2 and scores.ndim == 2 and truth.dtype.kind == "i" else scores
    try:
        value = function(truth, likelihood if likely else guess, **settings)
    except Exception as error:
        text = " ".join(str(error).split())
        raise GraphError(f"the metric {m.name!r} failed: {type(error).__name__}: {text}") from error
    if np.ndim(value) or np.asarray(value).dtype.kind not in "biuf":
        raise GraphError(f"the metric {m.name!r} returned {brief(value)}: it must return a number")
    return float(value)


# -- from sums ------------------------------------------------------------------------------------------------------


def scores_of(metrics: Sequence[Metric], parts: Sequence[Part], joined: Sequence[float]) -> dict[str, Any]:
    """Return metrics by name: from the parts of all shards, which are added up in their order, or as they were `joined`."""
    weight, given = sum(p.weight for p in parts), iter(joined)
    scores: dict[str, Any] = {}
    for m in metrics:
        if m == ACCURACY:
            scores[m.name] = sum(p.right for p in parts) / weight if weight else float("nan")
        else:
            scores[m.name] = _score_of(m, [p.sums for p in parts]) if m.adds_up else next(given)
    return scores


def _score_of(m: Metric, parts: Sequence[dict[str, Array]]) -> Any:
    if m.name in OF_VALUES:
        return _score_of_values(m.name, parts)
    counts = sum(part["counts"] for part in parts)
    total = counts.sum()  # type: ignore[union-attr]
    if m.top:
        return float(sum(float(part[m.name]) for part in parts) / total) if total else float("nan")
    if m.name == "confusion_matrix":
        return counts.tolist()  # type: ignore[union-attr]
    right, guessed, there = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)  # type: ignore[union-attr]
    below = {"precision": guessed, "recall": there, "f1": (guessed + there) / 2}[m.name]
    each = np.divide(right, below, out=np.zeros(len(right)), where=below > 0)
    known = guessed + there > 0
    return float(each[1]) if len(each) == 2 else float(each[known].mean()) if known.any() else float("nan")


def _score_of_values(name: str, parts: Sequence[dict[str, Array]]) -> float:
    """Put moments together as in T. Chan, G. Golub and R. LeVeque, The American Statistician 37, 1983."""
    w, mean, about = parts[0]["w"], parts[0]["mean"], parts[0]["about"]
    for part in parts[1:]:
        if part["w"] > 0:
            both, apart = w + part["w"], part["mean"] - mean
            about = about + part["about"] + apart * apart * (w * part["w"] / both)
            mean, w = mean + apart * (part["w"] / both), both
    square, absolute = sum(part["square"] for part in parts), sum(part["abs"] for part in parts)
    if not w:
        return float("nan")
    if name != "r2":
        return float(np.mean(square if name == "mean_squared_error" else absolute) / w)
    same = np.where(square == 0, 1.0, 0.0)  # as scikit-learn has it where all values are one
    return float(np.mean(np.where(about > 0, 1 - square / np.where(about > 0, about, 1.0), same)))
