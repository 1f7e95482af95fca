"""A model to give bad input to, and what is expected then."""

import contextlib
import re

import numpy as np
import pytest

import flowgrad as fg
from flowgrad.errors import FlowgradError

N = 6
USES = ("forward", "gradient", "jacobian", "fit", "evaluate", "predict", "validation")


class Model:
    """A softmax regression, 4 inputs and 3 classes, with data for it."""

    def __init__(self):
        rng = np.random.default_rng(0)
        with fg.Graph(seed=0) as self.graph:
            self.x = fg.Variable(4, trainable=False, name="x")
            self.label = fg.Variable(3, trainable=False, name="label")
            self.w = fg.Variable(12, True, name="w")
            self.b = fg.Variable(3, True, name="b")
            self.logits = fg.Add(fg.MatVec(self.w, self.x), self.b, name="logits")
            self.loss = fg.CrossEntropyWithSoftMax(self.logits, self.label, name="loss")
        self.images = rng.normal(size=(N, 4))
        self.labels = rng.integers(0, 3, N)
        self.feeds = {self.x: self.images, self.label: self.labels}
        self.optimizer = fg.Adam(self.graph, self.loss, batch_size=2)
        self.engine = fg.Engine("sync", dtype="float64")
        self.trainer = fg.Trainer(self.optimizer, engine=self.engine)

    def use(self, name, feeds):
        """Give `feeds` to one of the things that take them."""
        calls = {
            "forward": lambda: self.engine.forward(self.loss, feeds),
            "gradient": lambda: self.engine.gradient(self.loss, feeds),
            "jacobian": lambda: self.engine.jacobian(self.loss, self.w, feeds),
            "fit": lambda: self.trainer.fit(feeds, epochs=1),
            "evaluate": lambda: self.trainer.evaluate(feeds),
            "predict": lambda: self.trainer.predict(self.loss, feeds),
            "validation": lambda: self.trainer.fit(self.feeds, epochs=1, validation=feeds),
        }
        assert tuple(calls) == USES
        return calls[name]()


@contextlib.contextmanager
def refused(error, *fragments, graph=None):
    """Expect `error` with every fragment in its one line, and no value of `graph` changed."""
    before = [] if graph is None else [(n, n.value if n.value is None else n.value.copy()) for n in graph.nodes]
    with pytest.raises(error) as caught:
        yield caught
    assert issubclass(caught.type, FlowgradError)
    message = str(caught.value)
    assert "\n" not in message.strip()
    for fragment in fragments:
        found = re.search(rf"(?<!\d){fragment}(?!\d)", message) if isinstance(fragment, int) else fragment in message
        assert found, f"{fragment!r} is not in: {message}"
    for node, value in before:
        np.testing.assert_array_equal(node.value, value, err_msg=f"{node} has changed")
