"""The same training in other libraries, each written as its own users would write it for speed.

A function sets everything up and returns a function that trains for one epoch. Peers without an option to leave out Adam's
bias correction (PyTorch, scikit-learn) keep it. Everybody draws a new order of samples per epoch and gathers mini-batches
from arrays in memory.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.setting import BETA_1, BETA_2, EPSILON, LAYERS, RATE, Array, Task

Epoch = Callable[[], None]


def torch_eager(task: Task, threads: int) -> Epoch:
    """PyTorch, eager, fused Adam."""
    import torch

    torch.set_num_threads(threads)
    inputs, hidden, classes = LAYERS
    net = torch.nn.Sequential(torch.nn.Linear(inputs, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, classes))
    w1, b1, w2, b2 = (torch.from_numpy(w) for w in task.weights)
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), (w1.T, b1, w2.T, b2)):
            parameter.copy_(value)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, betas=(BETA_1, BETA_2), eps=EPSILON, fused=True)
    x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)
    count = itertools.count()

    def epoch() -> None:
        for rows in torch.from_numpy(task.order(next(count))):
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(net(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
        loss.item()

    return epoch


def _jax_step() -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    def loss(w: Any, x: Any, y: Any) -> Any:
        logits = jax.nn.relu(x @ w[0] + w[1]) @ w[2] + w[3]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()

    def step(state: Any, x: Any, y: Any, rows: Any) -> Any:
        w, v, s = state
        value, g = jax.value_and_grad(loss)(w, x[rows], y[rows])
        v = jax.tree.map(lambda v, g: BETA_1 * v + (1 - BETA_1) * g, v, g)
        s = jax.tree.map(lambda s, g: BETA_2 * s + (1 - BETA_2) * g * g, s, g)
        w = jax.tree.map(lambda w, v, s: w - RATE * v / jnp.sqrt(s + EPSILON), w, v, s)
        return (w, v, s), value

    return step


def _jax_state(task: Task) -> Any:
    import jax.numpy as jnp

    w = tuple(jnp.array(a) for a in task.weights)
    return w, tuple(map(jnp.zeros_like, w)), tuple(map(jnp.zeros_like, w))


def jax_step(task: Task, threads: int) -> Epoch:
    """JAX, one jitted function per step, the buffers of the state given away."""
    import jax
    import jax.numpy as jnp

    step = jax.jit(_jax_step(), donate_argnums=0)
    state = _jax_state(task)
    x, y = jnp.array(task.x), jnp.array(task.y, jnp.int32)
    count = itertools.count()

    def epoch() -> None:
        nonlocal state
        for rows in task.order(next(count)).astype(np.int32):
            state, value = step(state, x, y, rows)
        value.block_until_ready()

    return epoch


def jax_scan(task: Task, threads: int) -> Epoch:
    """JAX, a whole epoch in one ``lax.scan``."""
    import jax
    import jax.numpy as jnp

    step = _jax_step()
    run = jax.jit(
        lambda state, x, y, order: jax.lax.scan(lambda state, rows: step(state, x, y, rows), state, order),
        donate_argnums=0,
    )
    state = _jax_state(task)
    x, y = jnp.array(task.x), jnp.array(task.y, jnp.int32)
    count = itertools.count()

    def epoch() -> None:
        nonlocal state
        state, losses = run(state, x, y, task.order(next(count)).astype(np.int32))
        losses.block_until_ready()

    return epoch


def scikit_learn(task: Task, threads: int) -> Epoch:
    """scikit-learn's MLPClassifier."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter("ignore", ConvergenceWarning)
    net = MLPClassifier(
        LAYERS[1:-1],
        solver="adam",
        alpha=0.0,
        batch_size=task.batch,
        learning_rate_init=RATE,
        beta_1=BETA_1,
        beta_2=BETA_2,
        max_iter=1,
        warm_start=True,
        random_state=0,
    )
    return lambda: net.fit(task.x, task.y) and None


def numpy_buffers(task: Task, threads: int) -> Epoch:
    """NumPy by hand: every result goes into a buffer made once, parameters are views of one vector."""
    inputs, hidden, classes = LAYERS
    batch, size = task.batch, sum(w.size for w in task.weights)
    w, g, v, s, t = (np.zeros(size, np.float32) for _ in range(5))
    (w1, b1, w2, b2), (g1, c1, g2, c2) = _views(w, task), _views(g, task)
    for view, value in zip((w1, b1, w2, b2), task.weights):
        view[...] = value
    x = np.empty((batch, inputs), np.float32)
    a, d = (np.empty((batch, hidden), np.float32) for _ in range(2))
    z = np.empty((batch, classes), np.float32)
    row = np.empty((batch, 1), np.float32)
    mask = np.empty((batch, hidden), bool)
    every, count = np.arange(batch), itertools.count()

    def gradient(rows: Array) -> None:
        task.x.take(rows, axis=0, out=x, mode="clip")
        np.matmul(x, w1, out=a)
        np.add(a, b1, out=a)
        np.maximum(a, 0, out=a)
        np.matmul(a, w2, out=z)
        np.add(z, b2, out=z)
        z.max(axis=1, keepdims=True, out=row)
        np.subtract(z, row, out=z)
        np.exp(z, out=z)
        z.sum(axis=1, keepdims=True, out=row)
        np.multiply(row, batch, out=row)
        np.divide(z, row, out=z)
        z[every, task.y[rows]] -= np.float32(1 / batch)
        np.matmul(a.T, z, out=g2)
        z.sum(axis=0, out=c2)
        np.matmul(z, w2.T, out=d)
        np.greater(a, 0, out=mask)
        np.multiply(d, mask, out=d)
        np.matmul(x.T, d, out=g1)
        d.sum(axis=0, out=c1)

    def update() -> None:
        np.multiply(v, BETA_1, out=v)
        np.multiply(g, 1 - BETA_1, out=t)
        np.add(v, t, out=v)
        np.multiply(s, BETA_2, out=s)
        np.multiply(g, g, out=t)
        np.multiply(t, 1 - BETA_2, out=t)
        np.add(s, t, out=s)
        np.add(s, EPSILON, out=t)
        np.sqrt(t, out=t)
        np.divide(v, t, out=t)
        np.multiply(t, RATE, out=t)
        np.subtract(w, t, out=w)

    def epoch() -> None:
        for rows in task.order(next(count)):
            gradient(rows)
            update()

    return epoch


def _views(flat: Array, task: Task) -> list[Array]:
    ends = np.cumsum([w.size for w in task.weights])
    return [part.reshape(w.shape) for part, w in zip(np.split(flat, ends[:-1]), task.weights)]


def numba_epoch(task: Task, threads: int) -> Epoch:
    """Numba by hand: a whole epoch in one compiled function, matrix products by BLAS."""
    from benchmarks.numba_epoch import train

    size = sum(w.size for w in task.weights)
    flat = [np.zeros(size, np.float32) for _ in range(4)]
    for view, value in zip(_views(flat[0], task), task.weights):
        view[...] = value
    count = itertools.count()
    return lambda: train(task.x, task.y, task.order(next(count)), LAYERS[1], LAYERS[2], *flat)


PEERS: dict[str, tuple[str, Callable[[Task, int], Epoch]]] = {
    "torch": ("PyTorch eager, fused Adam", torch_eager),
    "jax": ("JAX jit per step", jax_step),
    "jax-scan": ("JAX, epoch in one lax.scan", jax_scan),
    "sklearn": ("scikit-learn MLPClassifier", scikit_learn),
    "numpy": ("NumPy by hand, buffers reused", numpy_buffers),
    "numba": ("numba by hand", numba_epoch),
}
