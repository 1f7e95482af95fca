"""Derivatives that are kept as factors, beside PyTorch, JAX and NumPy: the same work, in turn, in one run.

Each contender runs in a process of its own, with as many threads as it likes, or, by the processor's clock, with one. A turn
calls a measurement some times; flowgrad gets other data at every call, so that its cache is of no
use.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.setting import LAYERS, Array
from benchmarks.turns import ROOT, answer_of, clean_environment

SAMPLES = 256
MANY = 2_000
ALL = 60_000
KINDS = {
    "array": f"per-sample gradients, ({SAMPLES}, 71 560)",
    "norms": f"their norms, ({SAMPLES},)",
    "jacobian": f"Jacobian of the logits by the input, ({SAMPLES}, 10, 784)",
}
CALLS = {"array": 12, "norms": 100, "jacobian": 40}
Calls = dict[str, Callable[[], Any]]


def data(samples: int) -> tuple[Array, Array, tuple[Array, ...]]:
    """Return inputs, class indices and weights (as for ``x @ w1 + b1``)."""
    random = np.random.default_rng(0)
    inputs, hidden, classes = LAYERS
    weights = tuple(
        random.normal(0.0, 0.05, shape).astype(np.float32)
        for shape in ((inputs, hidden), (hidden,), (hidden, classes), (classes,))
    )
    return random.random((samples, inputs), np.float32), random.integers(0, classes, samples), weights


def _net(weights: tuple[Array, ...]) -> Any:
    import flowgrad as fg
    from benchmarks.own import neurons

    w1, b1, w2, b2 = weights
    with fg.Graph(seed=0):
        x, label = fg.Variable(LAYERS[0], trainable=False), fg.Variable(LAYERS[-1], trainable=False)
        hidden, _ = neurons(x, w1, b1)
        logits, _ = neurons(fg.ReLU(hidden), w2, b2)
        return x, label, logits, fg.CrossEntropyWithSoftMax(logits, label)


def flowgrad_calls() -> Calls:
    """Return flowgrad's: a net of Dot units, on threads."""
    import flowgrad as fg

    images, classes, weights = data(SAMPLES)
    x, label, logits, loss = _net(weights)
    engine = fg.Engine("threads")
    feeds = {x: images, label: classes}

    def fresh(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            images[0, 0] += 1e-3  # other data: nothing of the last call can be used again
            return call()

        return run

    return {
        "array": fresh(lambda: engine.per_sample_gradients(loss, feeds).array()),
        "norms": fresh(lambda: engine.per_sample_gradients(loss, feeds).norms()),
        "jacobian": fresh(lambda: engine.jacobian(logits, x, feeds)),
    }


def numpy_calls() -> Calls:
    """Return NumPy from factors, by hand."""
    x, y, (w1, b1, w2, b2) = data(SAMPLES)
    hot = np.eye(LAYERS[-1], dtype=np.float32)[y]

    def factors() -> tuple[Array, Array, Array]:
        h = np.maximum(x @ w1 + b1, 0)
        z = h @ w2 + b2
        e = np.exp(z - z.max(axis=1, keepdims=True))
        d2 = e / e.sum(axis=1, keepdims=True) - hot
        return h, (d2 @ w2.T) * (h > 0), d2

    def array() -> Array:
        h, d1, d2 = factors()
        n, (i, k, c) = len(x), LAYERS
        out = np.empty((n, i * k + k + k * c + c), np.float32)
        np.multiply(d1[:, :, None], x[:, None, :], out=out[:, : i * k].reshape(n, k, i))
        out[:, i * k : i * k + k] = d1
        np.multiply(d2[:, :, None], h[:, None, :], out=out[:, i * k + k : i * k + k + k * c].reshape(n, c, k))
        out[:, -c:] = d2
        return out

    def norms() -> Array:
        h, d1, d2 = factors()

        def square(a: Array) -> Array:
            return np.einsum("ni,ni->n", a, a)

        return np.sqrt(square(d1) * (square(x) + 1) + square(d2) * (square(h) + 1))

    def jacobian() -> Array:
        h = np.maximum(x @ w1 + b1, 0)
        g = w2.T[None] * (h > 0)[:, None, :]
        return (g.reshape(-1, LAYERS[1]) @ w1.T).reshape(len(x), LAYERS[-1], -1)

    return {"array": array, "norms": norms, "jacobian": jacobian}


def torch_calls() -> Calls:
    """Return PyTorch's: ``vmap`` of ``grad`` and of ``jacrev``."""
    import torch
    from torch.func import grad, jacrev, vmap

    images, classes, weights = data(SAMPLES)
    x, y = torch.from_numpy(images), torch.from_numpy(classes)
    w = tuple(map(torch.from_numpy, weights))

    def logits(w: Any, x: Any) -> Any:
        return torch.relu(x @ w[0] + w[1]) @ w[2] + w[3]

    def loss(w: Any, x: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(logits(w, x)[None], y[None])

    gradients = vmap(grad(loss), (None, 0, 0))
    by_input = vmap(jacrev(logits, 1), (None, 0))

    def norms() -> Any:
        return sum(g.reshape(SAMPLES, -1).square().sum(1) for g in gradients(w, x, y)).sqrt()

    return {"array": lambda: gradients(w, x, y), "norms": norms, "jacobian": lambda: by_input(w, x)}


def jax_calls() -> Calls:
    """Return JAX's: ``jit(vmap(...))``."""
    import jax
    import jax.numpy as jnp

    images, classes, weights = data(SAMPLES)
    x, y, w = jnp.array(images), jnp.array(classes), tuple(map(jnp.array, weights))

    def logits(w: Any, x: Any) -> Any:
        return jax.nn.relu(x @ w[0] + w[1]) @ w[2] + w[3]

    def loss(w: Any, x: Any, y: Any) -> Any:
        return -jax.nn.log_softmax(logits(w, x))[y]

    gradients = jax.vmap(jax.grad(loss), (None, 0, 0))

    def norm(w: Any, x: Any, y: Any) -> Any:
        grads = gradients(w, x, y)
        return jnp.sqrt(sum(jnp.square(g.reshape(SAMPLES, -1)).sum(1) for g in grads))

    array, norms, by_input = jax.jit(gradients), jax.jit(norm), jax.jit(jax.vmap(jax.jacrev(logits, 1), (None, 0)))
    return {
        "array": lambda: jax.block_until_ready(array(w, x, y)),
        "norms": lambda: norms(w, x, y).block_until_ready(),
        "jacobian": lambda: by_input(w, x).block_until_ready(),
    }


CONTENDERS: dict[str, tuple[str, Callable[[], Calls]]] = {
    "flowgrad": ("flowgrad", flowgrad_calls),
    "numpy": ("NumPy from factors, by hand", numpy_calls),
    "torch": ("PyTorch, vmap(grad), vmap(jacrev)", torch_calls),
    "jax": ("JAX, jit(vmap(grad)), jit(vmap(jacrev))", jax_calls),
}


def timed(call: Callable[[], Any], times: int, clock: str = "wall") -> list[float]:
    """Return the seconds of each call."""
    now = time.perf_counter if clock == "wall" else time.process_time
    seconds = []
    for _ in range(times):
        start = now()
        call()
        seconds.append(now() - start)
    return seconds


def contend(name: str, clock: str) -> None:
    """Answer each line that is read with times: the loop of a contender's process."""
    try:
        calls = CONTENDERS[name][1]()
    except ImportError as error:
        print(json.dumps({"missing": error.name}), flush=True)
        return
    for call in calls.values():
        call()  # compiles
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        kind = line.strip()
        print(json.dumps(timed(calls[kind], CALLS[kind], clock)), flush=True)


def measure_gram(clock: str) -> dict[str, Any]:
    """Measure the Gram matrix of many samples beside the matrix products that it needs, in turn."""
    import flowgrad as fg

    images, classes, weights = data(MANY)
    x, label, _, loss = _net(weights)
    per_sample = fg.Engine("threads").per_sample_gradients(loss, {x: images, label: classes})
    delta = np.random.default_rng(1).random((MANY, LAYERS[1]), np.float32)
    spent: dict[str, list[float]] = {"gram": [], "products": []}
    for _ in range(12):
        spent["gram"] += timed(per_sample.gram, 1, clock)
        spent["products"] += timed(lambda: (delta @ delta.T, images @ images.T), 1, clock)
    return {name: [min(values), statistics.median(values)] for name, values in spent.items()}


def measure_all() -> dict[str, Any]:
    """Measure the norms of the gradients of all samples of a large data set, and the process's peak memory."""
    import flowgrad as fg

    images, classes, weights = data(ALL)
    x, label, _, loss = _net(weights)
    engine = fg.Engine("threads")
    seconds = timed(lambda: engine.per_sample_gradients(loss, {x: images, label: classes}).norms(), 1)
    return {"seconds": seconds[0], "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def derivatives_report(tell: Callable[[str], None] = print, turns: int = 5, clock: str = "wall") -> str:
    """Measure everybody in turn and return Markdown."""
    processes, missing = {}, {}
    env = clean_environment(1 if clock == "cpu" else 0)
    try:
        for name in CONTENDERS:
            command = [sys.executable, "-m", f"{__package__}.derivatives", name, clock]
            processes[name] = subprocess.Popen(
                command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            answer = _ask(processes[name], None)
            if answer is None or "missing" in answer:
                missing[name] = "ended early" if answer is None else answer["missing"]
            tell(f"derivatives: {name} {'missing ' + missing[name] if name in missing else 'ready'}")
        spent: dict[tuple[str, str], list[list[float]]] = {}
        for turn in range(turns):
            for kind in KINDS:
                for name in CONTENDERS:
                    if name not in missing:
                        spent.setdefault((name, kind), []).append(_ask(processes[name], kind))
            tell(f"derivatives: turn {turn + 1} of {turns}")
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return "\n\n".join([_table(spent), _single(env, clock)])


def _ask(process: Any, kind: str | None) -> Any:
    if kind is not None:
        process.stdin.write(kind + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    return json.loads(line) if line else None


def _table(spent: dict[tuple[str, str], list[list[float]]]) -> str:
    lines = [
        "| work | contender | best, ms | median, ms | flowgrad is faster by | (median) |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for kind, label in KINDS.items():
        own = [t for turn in spent["flowgrad", kind] for t in turn]
        for name, (title, _) in CONTENDERS.items():
            if (name, kind) not in spent:
                continue
            times = [t for turn in spent[name, kind] for t in turn]
            best, median = min(times), statistics.median(times)
            lines.append(
                f"| {label} | {title} | {best * 1e3:.2f} | {median * 1e3:.2f} "
                f"| {best / min(own):.1f}x | {median / statistics.median(own):.1f}x |"
            )
    return "\n".join(lines)


def _single(env: dict[str, str], clock: str) -> str:
    gram, norms = answer_of("derivatives", "--gram", clock, env=env), answer_of("derivatives", "--all")
    assert gram is not None
    assert norms is not None
    best, median = (g / p for g, p in zip(gram["gram"], gram["products"]))
    return (
        f"* Gram matrix of {MANY:,} samples: {gram['gram'][0] * 1e3:.0f} ms, {best:.2f} of the time of the two matrix products "
        f"that it needs (median {median:.2f}).\n"
        f"* Norms of {ALL:,} per-sample gradients (17 GB as an array): {norms['seconds']:.2f} s, "
        f"{norms['mib']:.0f} MiB at the peak of the process, data and libraries included."
    )


if __name__ == "__main__":
    if sys.argv[1] == "--gram":
        print(json.dumps(measure_gram(sys.argv[2])))
    elif sys.argv[1] == "--all":
        print(json.dumps(measure_all()))
    else:
        contend(sys.argv[1], sys.argv[2])
