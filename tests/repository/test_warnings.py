"""Warnings name the person's own line, whichever way they come."""

import ast
import warnings

import numpy as np
import pytest
from conftest import ROOT

import flowgrad as fg


def graph():
    with fg.Graph():
        x, w = fg.Variable(2, trainable=False), fg.Variable(2, [1.0, 2.0])
        other = fg.Variable(2, [3.0, 4.0])
        loss = fg.Dot(w, x)
    return x, w, other, loss


X, W, OTHER, LOSS = graph()
FEEDS = {X: np.ones((4, 2))}
CALLS = {
    "jacobian": lambda: fg.Engine("sync").jacobian(LOSS, OTHER, FEEDS),
    "gradient": lambda: fg.Engine("sync").gradient(LOSS, FEEDS),
    "gradient wrt": lambda: fg.Engine("threads").gradient(LOSS, FEEDS, [W, OTHER]),
    "lower": lambda: fg.Engine("sync").lower(LOSS, FEEDS, gradient=True),
    "per_sample_gradients": lambda: fg.Engine("sync").per_sample_gradients(LOSS, FEEDS),
    "vjp": lambda: fg.Engine("sync").vjp(LOSS, [1.0], FEEDS),
    "fisher_diagonal": lambda: fg.Engine("sync").fisher_diagonal(LOSS, FEEDS),
    "fit": lambda: fg.Trainer(fg.Adam(LOSS.graph, LOSS, batch_size=2), fg.Engine("sync")).fit(FEEDS, epochs=1),
    "explain": lambda: fg.Trainer(fg.Adam(LOSS.graph, LOSS, batch_size=2), fg.Engine("sync")).explain(FEEDS),
    "backward": lambda: LOSS.backward(W),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_line_is_the_persons(name):
    X.set_value([1.0, 1.0])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        CALLS[name]()
    assert found
    assert {w.filename for w in found if "does not depend on" in str(w.message)} == {__file__}


def test_nothing_warns_by_itself():
    """One function knows whose line it is."""
    for folder in ("flowgrad", "scheduler"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            said = [f for f in calls if isinstance(f, ast.Attribute) and ast.unparse(f) == "warnings.warn"]
            assert not said or path.name == "errors.py", path
