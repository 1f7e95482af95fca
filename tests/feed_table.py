"""Kinds of feeds, and calls that take feeds: every call gives the right numbers for a kind, or every call refuses it alike."""

import importlib
import tempfile
from pathlib import Path
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import pytest

import flowgrad as fg

N, ROWS = 12, 5
rng = np.random.default_rng(0)
X = (rng.random((N, 4)) < 0.5).astype(float)  # so that every dtype can hold it
LABELS = rng.integers(0, 3, N)
PICKED = rng.integers(0, 5, (N, 2))
BATCH = 4
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
DTYPES = ("bool", *INTEGERS, "float16", "float32", "float64", "longdouble")


class Net:
    """A softmax regression whose values are the same before each call."""

    def __init__(self, where, grain="shard"):
        with fg.Graph(seed=0) as graph:
            self.x = fg.Variable(4, trainable=False, name="x")
            self.t = fg.Variable(3, trainable=False, name="t")
            self.w = fg.Variable(12, True, name="w")
            self.k = fg.Variable(2, trainable=False, name="k")
            table = fg.Constant(np.cos(np.arange(10.0)).reshape(5, 2))
            self.logits = fg.Tanh(fg.MatVec(self.w, self.x + fg.Embedding(table, self.k).reshape(4)))
            self.loss = fg.CrossEntropyWithSoftMax(self.logits, self.t)
        self.graph = graph
        self.first = self.w.value.copy()
        self.engine = fg.Engine(where, "float64", grain, 2, "numpy")

    def feeds(self, **given):
        return {self.x: given.get("x", X), self.t: given.get("t", LABELS), self.k: given.get("k", PICKED)}

    def trainer(self):
        self.w.set_value(self.first)
        return fg.Trainer(fg.GradientDescent(self.graph, self.loss, 0.1, batch_size=BATCH), self.engine)


def per_sample_gradients(n, feeds):
    gradients = n.engine.per_sample_gradients(n.loss, feeds)
    return [gradients.norms(), gradients.array()]


CALLS = {
    "fit": lambda n, feeds: n.trainer().fit(feeds, epochs=2).steps,
    "evaluate": lambda n, feeds: list(n.trainer().evaluate(feeds).values()),
    "predict": lambda n, feeds: n.trainer().predict(n.loss, feeds),
    "forward": lambda n, feeds: n.engine.forward(n.loss, feeds),
    "gradient": lambda n, feeds: n.engine.gradient(n.loss, feeds)[n.w],
    "jacobian": lambda n, feeds: n.engine.jacobian(n.loss, n.w, feeds),
    "per_sample_gradients": per_sample_gradients,
    "vjp": lambda n, feeds: n.engine.vjp(n.loss, [1.0], feeds)[n.w],
    "jvp": lambda n, feeds: n.engine.jvp(n.loss, {n.w: np.arange(12.0)}, feeds),
    "hvp": lambda n, feeds: n.engine.hvp(n.loss, {n.w: np.arange(12.0)}, feeds)[n.w],
}


def call(name, net, feeds):
    """Return all numbers of a call, one after the other, from the same weights."""
    net.w.set_value(net.first)
    found = CALLS[name](net, feeds)
    net.w.set_value(net.first)
    parts = found if isinstance(found, list) else [found]
    return np.concatenate([np.ravel(part) for part in parts])


class Kind(SimpleNamespace):
    """A kind: which variable is fed, and `make(at)`, with ``at.folder`` and ``at.client``; `refusal`, a part of the message."""


KINDS = {}


def kind(name, variable="x", refusal=None, needs=(), client=False):
    """Add a kind; the function may ask for packages, and for a client."""

    def add(make):
        needed = (needs,) if isinstance(needs, str) else needs
        KINDS[name] = Kind(variable=variable, refusal=refusal, needs=needed, client=client, make=make)
        return make

    return add


def package(name):
    return importlib.import_module(name)


# -- what is in memory --

kind("list of lists")(lambda at: X.tolist())
kind("tuple of arrays")(lambda at: tuple(X))
for dtype in [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "longdouble",
]:
    kind(f"NumPy, {dtype}")(lambda at, dtype=dtype: X.astype(dtype))
kind("NumPy, byte-swapped floats")(lambda at: X.astype(X.dtype.newbyteorder()))
kind("NumPy, byte-swapped integers")(lambda at: X.astype(np.dtype(np.int32).newbyteorder()))
kind("NumPy, column by column")(lambda at: np.asfortranarray(X))
kind("NumPy, strided")(lambda at: np.repeat(np.repeat(X, 2, 0), 3, 1)[::2, ::3])
kind("NumPy, backwards")(lambda at: X[::-1, ::-1].copy()[::-1, ::-1])


@kind("NumPy, unaligned")
def _(at):
    array = np.empty(X.nbytes + 1, np.uint8)[1:].view(float).reshape(X.shape)
    array[:] = X
    return array


@kind("NumPy, read-only")
def _(at):
    array = X.copy()
    array.flags.writeable = False
    return array


kind("NumPy, matrix")(lambda at: X.copy().view(np.matrix))
kind("masked array without a masked entry")(lambda at: np.ma.array(X, mask=np.zeros(X.shape, bool)))


# -- frames --

NAMES = ("a", "b", "c", "d")
ODD = ("client", "key", "chunks", "collect")


def pandas_frame(dtype=None, array=X):
    return package("pandas").DataFrame(array, columns=list(NAMES)).astype(dtype or float)


def mixed(module):
    columns = dict(zip(NAMES, (X[:, 0], X[:, 1].astype(int), X[:, 2].astype(bool), X[:, 3].astype(np.float32))))
    return module.DataFrame(columns)


kind("pandas frame", needs="pandas")(lambda at: pandas_frame())
kind("pandas frame, mixed columns", needs="pandas")(lambda at: mixed(package("pandas")))
kind("pandas frame, Int64", needs="pandas")(lambda at: pandas_frame("Int64"))
kind("pandas frame, Float32", needs="pandas")(lambda at: pandas_frame("Float32"))
kind("pandas frame, boolean", needs="pandas")(lambda at: pandas_frame(bool).astype("boolean"))
kind("pandas frame, columns named like methods", needs="pandas")(lambda at: pandas_frame().set_axis(ODD, axis=1))
kind("pandas frame, Int64 beside float64", needs="pandas")(lambda at: pandas_frame().astype({"b": "Int64"}))
kind("pandas frame, Arrow", needs=("pandas", "pyarrow"))(lambda at: pandas_frame("double[pyarrow]"))
kind("pandas frame, Arrow integers", needs=("pandas", "pyarrow"))(lambda at: pandas_frame("int32[pyarrow]"))
kind("polars frame", needs="polars")(lambda at: package("polars").DataFrame(X, schema=NAMES))
kind("polars frame, mixed columns", needs="polars")(lambda at: mixed(package("polars")))
kind("polars lazy frame", needs="polars")(lambda at: package("polars").DataFrame(X, schema=NAMES).lazy())
kind("Arrow table", needs="pyarrow")(lambda at: package("pyarrow").table(dict(zip(NAMES, X.T.copy()))))


# -- dask --


def in_dask(array, rows=ROWS):
    return da.from_array(array, chunks=(rows, *array.shape[1:]))


def frame_in_dask(frame):
    return package("dask.dataframe").from_pandas(frame, npartitions=3)


kind("dask array")(lambda at: in_dask(X))
kind("dask array, one chunk")(lambda at: in_dask(X, N))
kind("dask array, computed")(lambda at: (in_dask(X) + 1) - 1)
kind("dask array, cut along both axes")(lambda at: da.from_array(X, chunks=(ROWS, 3)) + 0)
kind("dask array, empty chunks")(
    lambda at: da.concatenate([in_dask(X[:0]), in_dask(X[:4]), in_dask(X[:0]), in_dask(X[4:])])
)
kind("dask array, uint8")(lambda at: in_dask(X.astype(np.uint8)))
kind("dask array of unknown length")(lambda at: in_dask(X)[in_dask(X)[:, 0] > -1])
kind("dask array, cut along both axes, of unknown length")(
    lambda at: da.from_array(X, chunks=(ROWS, 3))[da.from_array(X[:, 0], chunks=ROWS) > -1]
)
kind("dask array, masked chunks without a masked entry")(lambda at: da.ma.masked_greater(in_dask(X), 9.0))
kind("dask frame", needs="dask.dataframe")(lambda at: frame_in_dask(pandas_frame()))
kind("dask frame, columns named like methods", needs="dask.dataframe")(
    lambda at: frame_in_dask(pandas_frame().set_axis(ODD, axis=1))
)
kind("dask frame, Int64", needs="dask.dataframe")(lambda at: frame_in_dask(pandas_frame("Int64")))
kind("dask frame, Arrow", needs=("dask.dataframe", "pyarrow"))(
    lambda at: frame_in_dask(pandas_frame("double[pyarrow]"))
)
kind("pyarrow tensor", needs="pyarrow")(lambda at: package("pyarrow").Tensor.from_numpy(X))
kind("dask frame, filtered", needs="dask.dataframe")(lambda at: (lambda f: f[f.a > -1])(frame_in_dask(pandas_frame())))
kind("dask frame's values", needs="dask.dataframe")(lambda at: frame_in_dask(pandas_frame()).values)
kind("delayed array")(lambda at: dask.delayed(np.add)(X, 0.0))
kind("delayed list")(lambda at: dask.delayed(X.tolist)())
kind("delayed pandas frame", needs="pandas")(lambda at: dask.delayed(pandas_frame)())
kind("future of scatter", client=True)(lambda at: at.client.scatter(X.copy(), hash=False))
kind("future of submit", client=True)(lambda at: at.client.submit(np.add, X, 0, pure=False))
kind("future of a pandas frame", client=True, needs="pandas")(lambda at: at.client.scatter(pandas_frame(), hash=False))
kind("dask array that is persisted", client=True)(lambda at: at.client.persist(in_dask(X)))
kind("dask array made of a persisted one", client=True)(lambda at: at.client.persist(in_dask(X)) * 2 / 2)
kind("dask array that is persisted, cut along both axes", client=True)(
    lambda at: at.client.persist(da.from_array(X, chunks=(ROWS, 3)))
)
kind("dask frame that is persisted", client=True, needs="dask.dataframe")(
    lambda at: at.client.persist(frame_in_dask(pandas_frame()))
)
kind("delayed of a future", client=True)(lambda at: dask.delayed(np.add)(at.client.scatter(X.copy(), hash=False), 0))


# -- files --


def in_file(at, array, name="x.npy"):
    np.save(at.folder / name, array)
    return np.load(at.folder / name, mmap_mode="r")


def without_a_name(array):
    with tempfile.TemporaryFile() as file:
        found = np.memmap(file, array.dtype, "w+", shape=array.shape)
    found[:] = array
    return found


@kind("memory map, file unlinked")
def _(at):
    found = in_file(at, X)
    Path(found.filename).unlink()
    return found


@kind("memory map, file moved")
def _(at):
    found = in_file(at, X)
    Path(found.filename).rename(at.folder / "elsewhere.npy")
    return found


@kind("memory map, another file in its place")
def _(at):
    found = in_file(at, X)
    Path(found.filename).rename(at.folder / "elsewhere.npy")
    in_file(at, 1 - X)
    return found


kind("memory map")(lambda at: in_file(at, X))
kind("memory map, part of it")(lambda at: in_file(at, np.concatenate([X[:3], X]))[3:])
kind("memory map, uint8")(lambda at: in_file(at, X.astype(np.uint8)))
kind("memory map, byte-swapped")(lambda at: in_file(at, X.astype(X.dtype.newbyteorder())))
kind("memory map, column by column")(lambda at: in_file(at, np.asfortranarray(X)))
kind("memory map of a file without a name")(lambda at: without_a_name(X))


# -- class labels --

for dtype in INTEGERS:
    kind(f"labels (N,), {dtype}", "t")(lambda at, dtype=dtype: LABELS.astype(dtype))
kind("labels (N,), list", "t")(lambda at: LABELS.tolist())
kind("labels (N, 1)", "t")(lambda at: LABELS[:, None])
kind("labels (N, 1), dask array", "t")(lambda at: in_dask(LABELS[:, None]))
kind("labels (N,), dask array", "t")(lambda at: in_dask(LABELS))
kind("labels (N,), memory map", "t")(lambda at: in_file(at, LABELS))
kind("labels (N, 1), memory map", "t")(lambda at: in_file(at, LABELS[:, None]))
kind("labels one-hot", "t")(lambda at: np.eye(3)[LABELS])
kind("labels one-hot, bool", "t")(lambda at: np.eye(3, dtype=bool)[LABELS])
kind("labels, pandas series", "t", needs="pandas")(lambda at: package("pandas").Series(LABELS))
kind("labels, pandas series, Int64", "t", needs="pandas")(lambda at: package("pandas").Series(LABELS, dtype="Int64"))
kind("labels, pandas series, Arrow", "t", needs=("pandas", "pyarrow"))(
    lambda at: package("pandas").Series(LABELS, dtype="int64[pyarrow]")
)
kind("labels, pandas frame", "t", needs="pandas")(lambda at: package("pandas").DataFrame({"t": LABELS}))
kind("labels, polars series", "t", needs="polars")(lambda at: package("polars").Series(LABELS))
kind("labels, dask series", "t", needs="dask.dataframe")(lambda at: frame_in_dask(package("pandas").Series(LABELS)))
kind("labels, dask series, categories that are not known", "t", needs="dask.dataframe")(
    lambda at: frame_in_dask(package("pandas").Series(LABELS)).astype("category")
)
kind("labels, delayed", "t")(lambda at: dask.delayed(LABELS.astype)(int))
kind("labels, future", "t", client=True)(lambda at: at.client.scatter(LABELS.copy(), hash=False))


# -- rows that are picked from a table --

for dtype in INTEGERS:
    kind(f"rows, {dtype}", "k")(lambda at, dtype=dtype: PICKED.astype(dtype))
kind("rows, lists", "k")(lambda at: PICKED.tolist())
kind("rows, dask array", "k")(lambda at: in_dask(PICKED))
kind("rows, dask array, cut along both axes", "k")(lambda at: da.from_array(PICKED, chunks=(ROWS, 1)))
kind("rows, memory map", "k")(lambda at: in_file(at, PICKED))
kind("rows, pandas frame, Int64", "k", needs="pandas")(lambda at: package("pandas").DataFrame(PICKED).astype("Int64"))
kind("rows, delayed", "k")(lambda at: dask.delayed(PICKED.astype)(int))
kind("rows, future", "k", client=True)(lambda at: at.client.scatter(PICKED.copy(), hash=False))


# -- what is refused --


def spoilt(value, array=X, at=(7, 1)):
    array = array.astype(np.result_type(array, type(value)))
    array[at] = value
    return array


def chunks(change, array=X, columns=4):
    """A dask array whose second chunk is not what its meta says."""

    def block(b, block_id):
        return change(b) if block_id[0] == 1 else b

    meta = np.empty((0,) * array.ndim, array.dtype)
    x = da.from_array(array, chunks=(ROWS, columns)[: array.ndim])
    return x.map_blocks(block, dtype=array.dtype, meta=meta)


def parts(change, frame):
    """A dask frame whose second partition is not what its meta says."""
    dd = package("dask.dataframe")
    pieces = [frame.iloc[k : k + ROWS] for k in range(0, N, ROWS)]
    pieces[1] = change(pieces[1].copy())
    return dd.from_delayed([dask.delayed(piece) for piece in pieces], meta=frame.iloc[:0], verify_meta=False)


def with_a_hole(frame):
    frame.iloc[2, 1] = None
    return frame


MASKED = np.ma.array(X, mask=spoilt(9.0) == X)
MASKED[7, 1] = np.ma.masked
PAIRS = "'x' has dtype [('a', '<f8'), ('b', '<f8')]"
PAIR = np.zeros(N, [("a", float), ("b", float)])
NA = "'x' has missing values (NA): sample 7"
NOT_FINITE = "'x' is not finite: sample 7 holds"
OTHER = "is not what its chunks were said to be: from sample 5"

kind("masked array", refusal="'x' is a masked array")(lambda at: MASKED)
kind("list of masked rows", refusal="'x' is a masked array")(lambda at: list(MASKED))
kind("dask array, masked chunks", refusal="'x' is a masked array")(
    lambda at: da.ma.masked_array(in_dask(X), in_dask(np.ma.getmaskarray(MASKED)))
)
kind("dask array, a masked chunk", refusal="'x' is a masked array")(
    lambda at: chunks(lambda b: np.ma.array(b, mask=np.ones(b.shape, bool)))
)
kind("delayed masked array", refusal="'x' is a masked array")(lambda at: dask.delayed(MASKED.copy)())
kind("future of a masked array", refusal="'x' is a masked array", client=True)(
    lambda at: at.client.submit(MASKED.copy, pure=False)
)
kind("NumPy, NaN", refusal=f"{NOT_FINITE} nan")(lambda at: spoilt(np.nan))
kind("NumPy, inf", refusal=f"{NOT_FINITE} inf")(lambda at: spoilt(np.inf))
kind("dask array, NaN", refusal=f"{NOT_FINITE} nan")(lambda at: in_dask(spoilt(np.nan)))
kind("memory map, NaN", refusal=f"{NOT_FINITE} nan")(lambda at: in_file(at, spoilt(np.nan)))
kind("pandas frame, NaN", refusal=f"{NOT_FINITE} nan", needs="pandas")(lambda at: pandas_frame(array=spoilt(np.nan)))
kind("dask frame, NaN", refusal=f"{NOT_FINITE} nan", needs="dask.dataframe")(
    lambda at: frame_in_dask(pandas_frame(array=spoilt(np.nan)))
)
kind("delayed, NaN", refusal=f"{NOT_FINITE} nan")(lambda at: dask.delayed(spoilt)(np.nan))
kind("future, NaN", refusal=f"{NOT_FINITE} nan", client=True)(lambda at: at.client.scatter(spoilt(np.nan), hash=False))
for dtype in ("Int64", "Float64", "double[pyarrow]"):
    kind(f"pandas frame, {dtype}, NA", refusal=NA, needs=("pandas", "pyarrow"))(
        lambda at, dtype=dtype: pandas_frame(dtype, array=spoilt(np.nan))
    )
    kind(f"dask frame, {dtype}, NA", refusal=NA, needs=("dask.dataframe", "pyarrow"))(
        lambda at, dtype=dtype: parts(with_a_hole, pandas_frame(dtype))
    )
kind("polars frame, null", refusal=NA, needs="polars")(
    lambda at: package("polars").DataFrame(spoilt(np.nan), schema=NAMES).fill_nan(None)
)
kind("Arrow table, null", refusal=NA, needs="pyarrow")(
    lambda at: package("pyarrow").Table.from_pandas(pandas_frame("Float64", array=spoilt(np.nan)))
)
kind("labels, pandas series, NA", "t", refusal="'t' has missing values (NA): sample 7", needs="pandas")(
    lambda at: package("pandas").Series(spoilt(np.nan, LABELS, 7)).astype("Int64")
)
kind("NumPy, complex", refusal="'x' has dtype complex128")(lambda at: X + 0j)
kind("dask array, complex", refusal="'x' has dtype complex128")(lambda at: in_dask(X + 0j))
kind("dask array, a complex chunk", refusal="'x' has dtype complex128")(lambda at: chunks(lambda b: b + 0j))
kind("memory map, complex", refusal="'x' has dtype complex128")(lambda at: in_file(at, X + 0j))
kind("NumPy, structured", refusal=PAIRS)(lambda at: PAIR)
kind("memory map, structured", refusal=PAIRS)(lambda at: in_file(at, PAIR))
kind("dask array, a structured chunk", refusal=PAIRS)(lambda at: chunks(lambda b: PAIR[: len(b)]))
kind("NumPy, objects", refusal="'x' has dtype object")(lambda at: X.astype(object))
kind("dask array, a chunk of objects", refusal="'x' has dtype object")(lambda at: chunks(lambda b: b.astype(object)))
kind("pandas frame, objects", refusal="'x' has dtype object", needs="pandas")(lambda at: pandas_frame(object))
kind("NumPy, strings", refusal="'x' has dtype <U")(lambda at: X.astype(str))
kind("NumPy, times", refusal="'x' has dtype datetime64")(lambda at: X.astype("datetime64[s]"))
for value in (None, "x", {"a": X}, iter(X)):
    shown = type(value).__name__
    why = "'x' has dtype <U" if shown == "str" else f"'x' is no array but a {shown}"
    kind(shown, refusal=why)(lambda at, value=value: value)
for shown, value in {
    "pandas group": lambda: pandas_frame().groupby("a"),
    "pandas window": lambda: pandas_frame().rolling(2),
    "pandas NA": lambda: package("pandas").NA,
    "pandas time": lambda: package("pandas").Timestamp("2020"),
}.items():
    kind(shown, refusal="'x' is no array but a ", needs="pandas")(lambda at, value=value: value())
for shown, value in {
    "pyarrow schema": lambda pa: pa.schema([("a", pa.float64())]),
    "pyarrow scalar": lambda pa: pa.scalar(1.0),
    "pyarrow buffer": lambda pa: pa.py_buffer(X),
}.items():
    kind(shown, refusal="'x' is no array but a ", needs="pyarrow")(lambda at, value=value: value(package("pyarrow")))
kind("polars dtype", refusal="'x' is no array but a Float64", needs="polars")(lambda at: package("polars").Float64)
kind("polars lazy frame, no such column", refusal="'x' cannot be read, polars LazyFrame", needs="polars")(
    lambda at: package("polars").LazyFrame({"a": X[:, 0]}).select("z")
)
kind("pandas frame, a column of times", refusal="'x' has dtype datetime64", needs="pandas")(
    lambda at: pandas_frame().assign(a=package("pandas").Timestamp("2020"))
)
kind("torch tensor that asks for gradients", refusal="'x' cannot be read, torch Tensor: convert it", needs="torch")(
    lambda at: package("torch").tensor(X, requires_grad=True)
)
kind("torch tensor, bfloat16", refusal="'x' cannot be read, torch Tensor: convert it", needs="torch")(
    lambda at: package("torch").tensor(X, dtype=package("torch").bfloat16)
)
kind("list of delayed arrays", refusal="'x' is a list of dask's collections, chunks or samples: give one array")(
    lambda at: [dask.delayed(X[:ROWS]), dask.delayed(X[ROWS:])]
)
kind("list of futures", refusal="'x' is a list of dask's futures, chunks or samples: give one array", client=True)(
    lambda at: at.client.scatter([X[:ROWS].copy(), X[ROWS:].copy()], hash=False)
)
kind("dask scalar", refusal="'x' is a dask Scalar", needs="dask.dataframe")(
    lambda at: frame_in_dask(pandas_frame()).a.sum()
)
kind("dask bag", refusal="'x' is a dask Bag")(lambda at: package("dask.bag").from_sequence([1, 2], npartitions=2))
kind("ragged lists", refusal="'x' is ragged")(lambda at: [*X[:-1].tolist(), [1.0]])
for name in ("csr_matrix", "coo_array"):
    kind(f"scipy.sparse {name}", refusal=f"'x' is sparse, scipy {name}", needs="scipy.sparse")(
        lambda at, name=name: getattr(package("scipy.sparse"), name)(X)
    )
kind("dask array, a sparse chunk", refusal="'x' is sparse, scipy csr_matrix", needs="scipy.sparse")(
    lambda at: chunks(package("scipy.sparse").csr_matrix)
)
kind("delayed sparse matrix", refusal="'x' is sparse, scipy csr_matrix", needs="scipy.sparse")(
    lambda at: dask.delayed(package("scipy.sparse").csr_matrix)(X)
)
kind("dask array, a chunk of float32 for float64", refusal=f"'x' {OTHER}")(
    lambda at: chunks(lambda b: b.astype(np.float32))
)
kind("dask array, a chunk too short", refusal=f"'x' {OTHER}")(lambda at: chunks(lambda b: b[:-1]))
kind("dask array, a chunk too narrow", refusal=f"'x' {OTHER}")(lambda at: chunks(lambda b: b[:, :-1]))
kind("dask array cut along both axes, a chunk too short", refusal=f"'x' {OTHER}")(
    lambda at: chunks(lambda b: b[:-1] if b.shape[1] == 3 else b, columns=3)
)
kind("labels, dask array, a chunk of floats", "t", refusal=f"'t' {OTHER}")(
    lambda at: chunks(lambda b: np.where(np.arange(len(b)) == 2, np.nan, b), LABELS)
)
kind("labels, dask series, a partition of floats", "t", refusal=f"'t' {OTHER}", needs="dask.dataframe")(
    lambda at: parts(lambda p: p.where(p.index != 7), package("pandas").Series(LABELS))
)
kind("NumPy, too narrow", refusal="'x' has shape")(lambda at: X[:, :3])
kind("dask array, too wide", refusal="'x' has shape")(lambda at: in_dask(np.hstack([X, X])))
kind("dask frame, too narrow", refusal="'x' has shape", needs="dask.dataframe")(
    lambda at: frame_in_dask(pandas_frame()[["a", "b"]])
)
kind("memory map, too narrow", refusal="'x' has shape")(lambda at: in_file(at, X[:, :3].copy()))
SAMPLE = "'x' has shape (4,), one sample or 4 class indices"
kind("one sample of integers", refusal=SAMPLE)(lambda at: np.arange(4))
kind("one sample of integers, uint8", refusal=SAMPLE)(lambda at: np.arange(4).astype(np.uint8))
kind("one sample of integers, list", refusal=SAMPLE)(lambda at: [0, 1, 2, 3])
kind("one sample of integers, dask array", refusal=SAMPLE)(lambda at: in_dask(np.arange(4)))
kind("one sample of integers, memory map", refusal=SAMPLE)(lambda at: in_file(at, np.arange(4)))
kind("dask array, no axis of features", refusal="'x' has shape")(lambda at: in_dask(X[:, 0]))
OUT = "label out of range: sample 7 of the feed for 't' has class 3"
kind("labels out of range", "t", refusal=OUT)(lambda at: spoilt(3, LABELS, 7))
kind("labels out of range, dask array", "t", refusal=OUT)(lambda at: in_dask(spoilt(3, LABELS, 7)))
kind("labels (N, 1) out of range, dask array", "t", refusal=OUT)(lambda at: in_dask(spoilt(3, LABELS, 7)[:, None]))
kind("labels out of range, memory map", "t", refusal=OUT)(lambda at: in_file(at, spoilt(3, LABELS, 7)))
kind("labels out of range, dask series", "t", refusal=OUT, needs="dask.dataframe")(
    lambda at: frame_in_dask(package("pandas").Series(spoilt(3, LABELS, 7)))
)
kind("labels of floats", "t", refusal="'t' has shape")(lambda at: LABELS.astype(float))
kind("labels of floats, dask array", "t", refusal="'t' has shape")(lambda at: in_dask(LABELS.astype(float)))
FLOATS = "'k' has dtype float64, but it picks rows of a table: give integers from 0 to 4"
kind("rows of floats", "k", refusal=FLOATS)(lambda at: PICKED.astype(float))
kind("rows of floats, dask array", "k", refusal=FLOATS)(lambda at: in_dask(PICKED.astype(float)))
kind("rows of floats, memory map", "k", refusal=FLOATS)(lambda at: in_file(at, PICKED.astype(float)))
kind("rows of bools", "k", refusal="'k' has dtype bool")(lambda at: PICKED > 2)
MISSED = "row out of range: sample 7 of the feed for 'k' holds 5, but the table that it picks from has rows 0 to 4"
kind("rows out of range", "k", refusal=MISSED)(lambda at: spoilt(5, PICKED))
kind("rows out of range, dask array", "k", refusal=MISSED)(lambda at: in_dask(spoilt(5, PICKED)))
kind("rows out of range, memory map", "k", refusal=MISSED)(lambda at: in_file(at, spoilt(5, PICKED)))
kind("rows out of range, delayed", "k", refusal=MISSED)(lambda at: dask.delayed(spoilt)(5, PICKED))
kind("rows out of range, future", "k", refusal=MISSED, client=True)(
    lambda at: at.client.scatter(spoilt(5, PICKED), hash=False)
)
kind("rows below zero", "k", refusal="'k' holds -1, but")(lambda at: spoilt(-1, PICKED))
kind("rows (N,)", "k", refusal="'k' has shape (12,), but its dim is 2: give (N, 2)")(lambda at: PICKED[:, 0])
kind("rows (N, 1), dask array", "k", refusal="'k' has shape (12, 1), but its dim is 2")(
    lambda at: in_dask(PICKED[:, :1])
)


def made(name, folder, client):
    """Return the feed of a kind; skips where a package is not installed."""
    for needed in KINDS[name].needs:
        pytest.importorskip(needed, exc_type=ImportError)
    return KINDS[name].make(SimpleNamespace(folder=folder, client=client() if KINDS[name].client else None))
