"""Checks of what a user gives: single numbers, choices, paths, attributes, and vectors, which nobody may change afterwards."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from functools import cached_property, lru_cache, wraps
from numbers import Number
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

import numpy as np

from .errors import DataError, FeedError, GraphError, SettingError, ShapeError
from .typing import Array

Shape = tuple[int, ...]
P = ParamSpec("P")
R = TypeVar("R")


def integer(value: Any, what: str, least: int = 1) -> int:
    """Return an integer of at least `least`, NumPy's too, as Python's.

    Raises
    ------
    GraphError
        If it is something else; True and False are no numbers.

    Examples
    --------
    >>> integer(np.int64(3), "patience")
    3
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise GraphError(f"{what} must be an integer from {least} on, not {brief(value)}")
    return int(value)


def real(value: Any, what: str, least: float = -math.inf, above: bool = False) -> float:
    """Return a finite number of at least `least`, or `above` it, as Python's: NumPy's would lift single precision to double.

    Raises
    ------
    GraphError
        If it is something else; True and False are no numbers.

    Examples
    --------
    >>> real(np.float32(0.5), "momentum", 0)
    0.5
    """
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not _is_finite(value) or float(value) < least or (above and float(value) == least):
        kind = "a finite number" if least == -math.inf else f"a number {'above' if above else 'from'} {least:g}"
        kind += "" if above or least == -math.inf else " on"
        raise GraphError(f"{what} must be {kind}, not {brief(value)}")
    return float(value)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer larger than any float
        return False


def flag(value: Any, what: str) -> bool:
    """Return True or False, NumPy's too, as Python's.

    Raises
    ------
    GraphError
        If it is something else: a text such as ``"no"`` would count as True.

    Examples
    --------
    >>> flag(np.bool_(True), "shuffle")
    True
    """
    if not isinstance(value, (bool, np.bool_)):
        raise GraphError(f"{what} must be True or False, not {brief(value)}")
    return bool(value)


def one_of(value: Any, what: str, known: Collection[str]) -> str:
    """Return a text that is one of those that are known.

    Raises
    ------
    GraphError
        If it is another one, or none.

    Examples
    --------
    >>> one_of("auto", "kernel", ("auto", "numpy"))
    'auto'
    """
    if not isinstance(value, str) or value not in known:
        raise GraphError(f"{what} must be one of {', '.join(map(repr, known))}, not {brief(value)}")
    return value


def listed(value: Any) -> list[Any] | None:
    """Return what can be iterated as a list; None for all else, and for a text.

    Examples
    --------
    >>> listed(iter((1, 2))), listed(np.array(3)), listed("ab")
    ([1, 2], None, None)
    """
    try:
        entries = None if isinstance(value, (str, bytes)) else iter(value)
    except TypeError:  # arrays without axes claim that they can
        return None
    return None if entries is None else list(entries)


def path_of(value: Any, what: str) -> Path:
    """Return a path that a system can take.

    Raises
    ------
    DataError
        If it is no path, or an empty one.

    Examples
    --------
    >>> path_of("runs/net", "checkpoint").name
    'net'
    """
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    try:
        good = isinstance(path, str) and bool(path) and "\0" not in path and bool(os.fsencode(path))
    except UnicodeEncodeError:
        good = False
    if not good:
        raise DataError(f"{what} must be a path such as 'runs/net', not {brief(value)}")
    return Path(str(path))


def file_of(value: Any, what: str = "path") -> Path:
    """Return the path of a file that is there, or of nothing: a device would be replaced, and a pipe be waited for.

    Raises
    ------
    DataError
        If it is something else.
    """
    path = path_of(value, what)
    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{what} must be that of a file; {path} is a {'folder' if path.is_dir() else 'device'}")
    return path


class Settled:
    """What takes no attribute that would count for nothing: what a class states is set once, when it is made.

    Names that begin with an underscore are left alone. A class of somebody's own may have attributes of its own.

    Class attributes
    ----------------
    _settable : frozenset of str
        What may be set at any time, without a check; properties check for themselves.
    _instead : dict
        By name of what cannot be set what to do.
    """

    _settable: ClassVar[frozenset[str]] = frozenset()
    _instead: ClassVar[dict[str, str]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if name[:1] != "_" and name not in self._settable:
            self._check_settable(name)
        object.__setattr__(self, name, value)

    def _check_settable(self, name: str) -> None:
        cls: Any = type(self)
        package = f"{__package__}."
        found = inspect.getattr_static(cls, name, None)
        if isinstance(found, property) and found.fset is not None:
            return
        stated = _stated(cls, package)
        if name in stated and name not in vars(self):
            return
        if name not in stated and not isinstance(found, property) and not cls.__module__.startswith(package):
            return
        makers = [inspect.signature(vars(base)["__init__"]) for base in cls.__mro__ if "__init__" in vars(base)]
        given = {k for maker in makers for k, p in maker.parameters.items() if p.kind is not p.VAR_KEYWORD} - {"self"}
        known = sorted(self._may_be_set())
        if name in stated or name in given or isinstance(found, property):
            how = f"give it to a new {cls.__name__}" if name in given else "it follows from others"
            raise SettingError(f"{name!r} of {brief(self, 80)} cannot be set: {self._instead.get(name, how)}")
        raise SettingError(f"{brief(self, 80)} has no attribute {name!r}{nearest(name, known, given)}")

    def _may_be_set(self) -> set[str]:
        """Return the names of what may be set at any time."""
        properties = inspect.getmembers_static(type(self), lambda member: isinstance(member, property))
        return {*self._settable, *(name for name, member in properties if member.fset is not None)}


@lru_cache(maxsize=256)
def _stated(cls: Any, package: str) -> frozenset[str]:
    """Return the attributes that classes of a package state for their objects."""
    own = [base for base in cls.__mro__ if f"{base.__module__}.".startswith(package)]
    notes = {name: note for base in own for name, note in inspect.get_annotations(base).items()}
    kept = {name for base in own for name, value in vars(base).items() if isinstance(value, cached_property)}
    return frozenset(kept | {name for name, note in notes.items() if not str(note).startswith("ClassVar")})


# What others call what is here, without capitals and underscores.
SYNONYMS = {
    "acc": "accuracy",
    "auc": "rocauc",
    "bce": "binarycrossentropy",
    "crossentropy": "crossentropywithsoftmax",
    "fc": "dense",
    "fullyconnected": "dense",
    "input": "variable",
    "kaiming": "he",
    "linear": "dense",
    "lr": "learningrate",
    "mae": "meanabsoluteerror",
    "mse": "meansquarederror",
    "parameter": "variable",
    "placeholder": "variable",
    "sgd": "gradientdescent",
    "sigmoid": "logistic",
    "swish": "silu",
    "tensor": "variable",
    "xavier": "glorot",
}


def closest(name: Any, known: Collection[str]) -> str | None:
    """Return which of the names that are known is meant by another one, if any is.

    Examples
    --------
    >>> closest("Sigmoid", ["tanh", "logistic"]), closest("MSE", ["r2", "mean_squared_error"]), closest("x", ["tanh"])
    ('logistic', 'mean_squared_error', None)
    """
    if not isinstance(name, str):
        return None
    plain = {k.replace("_", "").lower(): k for k in known}
    wanted = name.replace("_", "").lower()
    other = SYNONYMS.get(wanted, wanted)
    near = [other] if other in plain else get_close_matches(wanted, plain, 1, 0.7)
    return plain[near[0]] if near else None


def meant(name: Any, known: Collection[str]) -> str:
    """Return the end of a message that says which name is meant, if any is.

    Examples
    --------
    >>> meant("xavier", ["he", "glorot"]), meant("x", ["he"])
    (": do you mean 'glorot'?", '')
    """
    near = closest(name, known)
    return f": do you mean {near!r}?" if near else ""


def nearest(name: str, known: Collection[str], given: Collection[str] = ()) -> str:
    """Return the end of a message about a name that is none of those that are known, or are known when something is made.

    Examples
    --------
    >>> nearest("learningrate", ["learning_rate", "rule"])
    ": do you mean 'learning_rate'?"
    >>> nearest("x", ["learning_rate", "rule"])
    '; there are learning_rate, rule'
    """
    return meant(name, [*known, *given]) or f"; there {'are' if len(known) > 1 else 'is'} {', '.join(known) or 'none'}"


def without_underflow(call: Callable[P, R]) -> Callable[P, R]:
    """Let a call round what is too small to zero, whatever NumPy is set to make of that: every softmax does it.

    Examples
    --------
    >>> with np.errstate(all="raise"):
    ...     float(without_underflow(np.exp)(-800.0))
    0.0
    """

    @wraps(call)
    def rounded(*args: P.args, **kwargs: P.kwargs) -> R:
        with np.errstate(under="ignore"):
            return call(*args, **kwargs)

    return rounded


def frozen(array: Any) -> Array:
    """Return an array of float64 that cannot be written to; not copied if it is one."""
    array = np.asarray(array, np.float64)
    if array.flags.writeable:
        array = array.view()
        array.setflags(False)  # a third of the time of `flags.writeable = False`
    return array


def real_array(what: str, value: Any, dtype: Any = np.float64) -> Array:
    """Check numbers that a user gives and return them as a fresh array.

    Raises
    ------
    FeedError
        If they are no numbers, complex or masked, or not finite as `dtype`.
    """
    try:
        given = np.asarray(value)
        if given.dtype.kind == "c" or np.ma.isMaskedArray(value):
            raise FeedError(f"{what} is masked or complex: {brief(value)}; give real numbers")
        # NumPy reads numbers from texts and dates, and takes None for nan.
        if given.dtype.kind not in "biuf" and not (
            given.dtype.kind == "O" and all(isinstance(entry, (Number, np.bool_)) for entry in given.flat)
        ):
            raise TypeError
        with np.errstate(over="ignore"):
            array = np.array(given, dtype=dtype)
    except FeedError:
        raise
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise FeedError(f"{what} is not an array of numbers: {brief(value)}") from None
    if not np.isfinite(array).all():
        place = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
        where = f"entry {', '.join(map(str, place))} is " if place else ""
        if given.dtype.kind == "f" and np.isfinite(given[place]):
            most = f"{np.finfo(array.dtype).max:.2g}"
            raise FeedError(f"{what} is too large: {where}{given[place]!s}, and {array.dtype} holds up to {most}")
        raise FeedError(f"{what} is not finite: {where}{array[place]}")
    return array


def shape_of(value: Any, what: str) -> Shape:
    """Return axes from a length or a sequence of lengths, positive integers.

    Raises
    ------
    ShapeError
        If it is something else.

    Examples
    --------
    >>> shape_of(4, "w"), shape_of([4, 3], "w")
    ((4,), (4, 3))
    """
    axes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    for n in axes:
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
            raise ShapeError(f"{what}: dim must be a positive integer, or a tuple of such for axes, not {brief(value)}")
    if not axes:
        raise ShapeError(f"{what}: dim must be a positive integer; a scalar has dim 1, not {brief(value)}")
    return tuple(map(int, axes))


def times(shape: Sequence[int]) -> str:
    """Return axes as people write them, ``4 x 3``."""
    return " x ".join(map(str, shape))


def count(n: int, thing: str) -> str:
    """Return a number of things.

    Examples
    --------
    >>> count(1, "task"), count(2000, "task")
    ('1 task', '2,000 tasks')
    """
    return f"{n:,} {thing}{'s' * (n != 1)}"


def vector(what: str, shape: Shape, value: Any, hint: str = "") -> Array:
    """Check a user's vector, flat or of the shape, and return it as a fresh array (1, dim) of float64."""
    array = real_array(what, value)
    dim = math.prod(shape)
    if array.shape not in ((dim,), (dim, 1), shape) and not (dim == 1 and array.size == 1 and array.ndim < 2):
        hint = hint or ": a matrix is laid out row by row, array.ravel()" * (array.size == dim)
        own = f", ({dim}, 1)" * (len(shape) == 1) + f" or {shape}" * (len(shape) > 1)
        raise ShapeError(f"{what} has shape {array.shape}; it must be ({dim},){own.replace(', (', ' or (')}{hint}")
    return array.reshape(1, dim)


class Fixed(dict[str, Any]):
    """Attributes of a node, which stay what they are: programs and values that are kept follow from them."""

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise GraphError(
            f"attributes of a node are fixed when it is built, here {brief(dict(self))}: build another node"
        )

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> Any:
        return Fixed, (dict(self),)


def brief(value: Any, most: int = 40) -> str:
    """Return a value in few letters, for messages."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of very many digits, or an object of somebody's
        text = f"<{type(value).__name__}>"
    return text if len(text) <= most else text[: most - 3] + "..."
