"""A small model that the tests of the trainer train."""

import mirror
import numpy as np

import flowgrad as fg

N, VALID = 10, 7
GRAINS = ("node", "sample", "shard", "round")


class Model:
    """A softmax regression with 3 inputs and 3 classes; data that it can learn."""

    def __init__(self, optimizer="GradientDescent", batch_size=4, learning_rate=0.1, n=N, **settings):
        rng = np.random.default_rng(5)
        with fg.Graph(seed=0) as self.graph:
            self.x = fg.Variable(3, trainable=False, name="x")
            self.label = fg.Variable(3, trainable=False, name="label")
            self.w = fg.Variable(9, rng.normal(size=9), name="w")
            self.b = fg.Variable(3, rng.normal(size=3), name="b")
            self.logits = fg.MatVec(self.w, self.x) + self.b
            self.loss = fg.CrossEntropyWithSoftMax(self.logits, self.label)
        self.optimizer = getattr(fg, optimizer)(
            self.graph, self.loss, learning_rate=learning_rate, batch_size=batch_size, **settings
        )
        self.feeds = self.draw(rng, n)
        self.validation = self.draw(rng, VALID)

    def draw(self, rng, n):
        images = rng.normal(size=(n, 3))
        return {self.x: images, self.label: images.argmax(axis=1)}

    @property
    def weights(self):
        return {self.w: self.w.value, self.b: self.b.value}

    def bits(self):
        return self.w.value.tobytes() + self.b.value.tobytes()

    def numpy_values(self, node, feeds):
        """Return the value of `node` by plain NumPy at the weights now set."""
        one_hot = np.eye(3)[feeds[self.label]]
        return mirror.evaluate(node, {v: a[None] for v, a in self.weights.items()} | {**feeds, self.label: one_hot})

    def mean_gradient(self, rows):
        """Return mean loss and mean gradients over `rows`, by the interpreter."""
        losses, gradients = [], []
        for i in rows:
            self.x.set_value(self.feeds[self.x][i])
            self.label.set_value(np.eye(3)[self.feeds[self.label][i]])
            losses.append(self.loss.forward()[0])
            gradients.append([v.backward(self.loss)[0] for v in self.weights])
        return np.mean(losses), [np.mean(column, axis=0) for column in zip(*gradients)]

    def descend(self, batches):
        """Gradient descent in plain Python; return the mean loss of each batch."""
        losses = []
        for rows in batches:
            loss, gradients = self.mean_gradient(rows)
            losses.append(loss)
            for v, g in zip(list(self.weights), gradients):
                v.set_value(v.value - 0.1 * g)
        return losses

    def fit(self, executor="sync", grain="auto", shards=None, epochs=1, dtype=None, kernel="auto", **settings):
        names = ("validation", "checkpoint", "resume")
        to_fit = {name: settings.pop(name) for name in names if name in settings}
        engine = fg.Engine(executor, grain=grain, shards=shards, dtype=dtype, kernel=kernel)
        return fg.Trainer(self.optimizer, engine, **settings).fit(self.feeds, epochs=epochs, **to_fit)


class Cube(fg.Op):
    """``a³`` by its two rules and nothing else: no formula, no tangent, nothing that could be compiled."""

    @staticmethod
    def apply(a):
        return a**3

    @staticmethod
    def jacobian(slot, y, a):
        return fg.Diagonal(3 * a * a)
