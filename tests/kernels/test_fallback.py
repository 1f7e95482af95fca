"""Where nothing can be compiled or kept, NumPy runs and says why; a compiler is announced and can be ended."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import flowgrad as fg

pytest.importorskip("numba")
pytest.importorskip("scipy")

CODE = """
import sys, warnings
import numpy as np, flowgrad as fg
kernel = sys.argv[1]
x, y = np.random.default_rng(0).normal(size=(200, 8)), np.arange(200) % 3
with fg.Graph(seed=0) as graph:
    a, t = fg.Variable(8, trainable=False), fg.Variable(3, trainable=False)
    loss = fg.CrossEntropyWithSoftMax(fg.MatVec(fg.Variable(24, True), a), t)
print("begin", flush=True)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for _ in range(2):
        trainer = fg.Trainer(fg.Adam(graph, loss, batch_size=50), fg.Engine("threads", kernel=kernel, shards=2))
        plan = trainer.fit({a: x, t: y}, epochs=1).plan
        fg.Engine("threads", kernel=kernel).gradient(loss, {a: x, t: y})
print(plan["kernel"], plan["reason"])
print(len(told), *(w.message for w in told))
"""


def run(kernel="auto", **environment):
    """Run a training in a process of its own; return its process with what it printed."""
    return subprocess.run(
        [sys.executable, "-c", CODE, kernel],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def stubs(tmp_path):
    """A function that puts a module of this text before all others, and returns the environment for it."""

    def put(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}

    return put


def readonly(folder):
    """An environment with a cache folder that cannot be made, whoever asks."""
    return {"FLOWGRAD_CACHE_DIR": "/proc/none"} if os.path.isdir("/proc") else {"FLOWGRAD_CACHE_DIR": str(folder)}


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("no cache", "cannot be written"),
        ("a file for a cache", "cannot be written"),
        ("no jit", "NUMBA_DISABLE_JIT is set"),
        ("broken numba", "numba fails here (ImportError: no LLVM for you)"),
        ("broken llvmlite", "numba fails here (OSError: libLLVM.so not found)"),
    ],
)
def test_numpy_runs_and_says_why_once(tmp_path, stubs, case, told):
    (tmp_path / "file").touch()
    environment = {
        "no cache": readonly(tmp_path / "none"),
        "a file for a cache": {"FLOWGRAD_CACHE_DIR": str(tmp_path / "file" / "cache")},
        "no jit": {"NUMBA_DISABLE_JIT": "1"},
        "broken numba": stubs("llvmlite", "raise ImportError('no LLVM for you')") if case == "broken numba" else {},
        "broken llvmlite": stubs("llvmlite", "raise OSError('libLLVM.so not found')")
        if case == "broken llvmlite"
        else {},
    }[case]
    done = run(**environment)
    assert done.returncode == 0, done.stderr
    _, plan, warnings = done.stdout.splitlines()
    assert plan.startswith("numpy ")
    assert told in plan
    assert warnings.startswith("1 steps are run by NumPy, not compiled: ")
    assert told in warnings


def test_what_is_asked_for_is_compiled_without_a_place_to_keep_it(tmp_path):
    done = run("numba", **readonly(tmp_path / "none"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("numba ")


def test_what_is_asked_for_and_cannot_be_is_one_line(stubs):
    for environment in ({"NUMBA_DISABLE_JIT": "1"}, stubs("llvmlite", "raise ImportError('no LLVM for you')")):
        done = run("numba", **environment)
        assert done.returncode == 1
        assert "GraphError: no compiled kernel: numba" in done.stderr.splitlines()[-1]
        assert "use kernel='numpy'" in done.stderr.splitlines()[-1]


def test_a_cache_that_is_full_and_cannot_be_written_serves():
    from flowgrad.scheduler.kernels import numba_library

    numba_library.walker()
    numba_library.addresses_of([], "float32")
    assert numba_library.why_not_kept() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_compiler_is_ended_at_once(tmp_path, number):
    """It takes seconds; no call of it is longer than some tenths, and signals are looked at between two."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "auto"],
        env={**os.environ, "FLOWGRAD_CACHE_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begin\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert not list(tmp_path.glob("*.o"))  # nothing half-made is kept


def test_long_compiling_is_announced(tmp_path):
    code = "from flowgrad.scheduler.kernels import numba_library as l; l.LONG = 0.0; l.walker()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FLOWGRAD_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == "kernels: compiled for this machine, once; that takes some seconds\n"


@pytest.mark.distributed
def test_workers_that_cannot_keep_kernels_compile_their_own(tmp_path):
    """As under another user's id: the client's plan stands, with its bits."""
    import dask
    from conftest import local_cluster
    from distributed import Client
    from faults import Net

    def train(where):
        net = Net()
        trainer = fg.Trainer(fg.Adam(net.graph, net.loss, batch_size=32), fg.Engine(where, kernel="numba", shards=2))
        trainer.fit(net.feeds, epochs=2)
        return trainer.fingerprint()

    environment = {f"distributed.nanny.environ.{k}": v for k, v in readonly(tmp_path / "none").items()}
    with dask.config.set(environment), local_cluster(1) as cluster, Client(cluster, set_as_default=False) as client:
        assert train(client) == train("sync")


def chain(n):
    x = fg.Variable(8, trainable=False)
    a = fg.Variable(8, np.full(8, 0.1)) * x
    for _ in range(n):
        a = fg.Tanh(a)
    return x, fg.Sum(a)


def recurrence(n):
    x, h = fg.Variable(4 * n, trainable=False), fg.Variable(6, np.zeros(6), trainable=False)
    w, u = fg.Variable(24, True), fg.Variable(36, True)
    for k in range(n):
        h = fg.Tanh(fg.MatVec(w, x[4 * k : 4 * k + 4]) + fg.MatVec(u, h))
    return x, fg.Sum(h)


def neurons(n):
    x = fg.Variable(5, trainable=False)
    return x, fg.Sum(fg.Vectorize(*[fg.Logistic(fg.Dot(fg.Variable(5, True), x)) for _ in range(n)]))


def losses_of(build, size):
    """Train by each kernel from the same start; return the losses."""
    with fg.Graph(seed=0) as graph:
        x, loss = build(size)
    feeds = {x: np.random.default_rng(0).normal(size=(200, x.dim)).astype(np.float32)}
    start = {v: v.value for v in graph.nodes if isinstance(v, fg.Variable) and v.trainable}
    losses = {}
    for kernel in ("numba", "numpy"):
        for v, value in start.items():
            v.set_value(value)
        trainer = fg.Trainer(fg.Adam(graph, loss, batch_size=50), fg.Engine("threads", kernel=kernel))
        losses[kernel] = trainer.fit(feeds, epochs=1).epochs[0]["loss"]
    return losses


@pytest.mark.parametrize(("build", "size"), [(chain, 1200), (recurrence, 96), (neurons, 300)])
def test_no_graph_waits_for_a_compiler(build, size):
    """Ops are compiled, once a machine, and not graphs."""
    from flowgrad.scheduler.kernels import numba_library

    losses_of(build, 3)
    with numba_library.compiling() as compiled:
        losses = losses_of(build, size)
    assert compiled == []
    assert losses["numba"] == pytest.approx(losses["numpy"], rel=1e-4)


class Uncompilable(fg.Op):
    """The sum of squares, by a function that no compiler of numbers takes."""

    kinds = (fg.Outer,)
    shape = staticmethod(lambda *dims: 1)
    apply = staticmethod(lambda a: (a * a).sum(axis=1, keepdims=True))
    jacobian = staticmethod(lambda slot, y, a: fg.Outer(2 * a))

    @staticmethod
    def row_value(y, a):
        y[0] = sum(float(str(x)) ** 2 for x in a.tolist())

    @staticmethod
    def row_factor(slot, f, y, a):
        f[:] = [2 * x for x in eval("a")]


def test_an_op_that_cannot_be_compiled_runs_by_numpy_and_is_named():
    with fg.Graph(seed=0) as graph:
        x = fg.Variable(3, trainable=False)
        loss = Uncompilable(fg.Variable(3, [1.0, 2.0, 3.0]) * x)
    feeds = {x: np.ones((20, 3))}
    told = r"Uncompilable.row_\w+ cannot be compiled \(.*use kernel='numpy'"
    with pytest.warns(UserWarning, match=rf"run by NumPy, not compiled: {told}"):
        history = fg.Trainer(fg.Adam(graph, loss, batch_size=5), fg.Engine("sync")).fit(feeds, epochs=1)
    assert history.plan["kernel"] == "numpy"
    with pytest.raises(fg.FlowgradError, match=told):
        fg.Trainer(fg.Adam(graph, loss, batch_size=5), fg.Engine("sync", kernel="numba")).fit(feeds, epochs=1)
