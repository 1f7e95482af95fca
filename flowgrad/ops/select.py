"""Ops that compute nothing: they pick or place entries."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..graph import Node
from ..inputs import Shape, brief, shape_of, times
from ..jacobians import Identity, LocalJacobian, Selection
from ..op import Op
from ..typing import Array


class Vectorize(Op):
    """Lay vectors end to end.

    Parameters
    ----------
    *nodes : Node
        At least one; a node may appear several times.

    Raises
    ------
    GraphError
        Without operands.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Vectorize(fg.Variable(1, [1.0]), fg.Variable(2, [2.0, 3.0]))
    >>> y.forward()
    array([1., 2., 3.])
    """

    kinds = (Selection,)
    uses = ((),)

    def __init__(self, *nodes: Node, name: str | None = None):
        dims = (getattr(n, "dim", 0) for n in nodes)
        super().__init__(*nodes, name=name, ends=tuple(accumulate(dims)))

    @staticmethod
    def shape(*dims: int, ends: tuple[int, ...]) -> int:
        """Return the sum of the lengths."""
        return ends[-1]

    @staticmethod
    def apply(*values: Array, ends: tuple[int, ...], out: Array | None = None) -> Array:
        """Return the values side by side."""
        if out is None:
            if len(set(map(len, values))) == 1:
                return np.concatenate(values, axis=1, dtype=values[0].dtype, casting="unsafe")
            out = np.empty((max(map(len, values)), ends[-1]), values[0].dtype)
        start = 0
        for value, end in zip(values, ends):
            out[:, start:end] = value
            start = end
        return out

    @staticmethod
    def jacobian(slot: int, y: Array, *values: Array, ends: tuple[int, ...]) -> LocalJacobian:
        """Return the placement of the operand's entries."""
        start = ends[slot - 1] if slot else 0
        return Selection(ends[slot] - start, rows=slice(start, ends[slot]))


class Slice(Op):
    """Entries ``a[start:stop]``.

    Parameters
    ----------
    a : Node
    start, stop : int
        ``0 <= start < stop <= a.dim``.

    Raises
    ------
    ShapeError
        If the range is empty or leaves the vector.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Slice(fg.Variable(3, [1.0, 2.0, 3.0]), 1, 3)
    >>> y.forward()
    array([2., 3.])
    """

    kinds = (Selection,)
    uses = ((),)

    def __init__(self, a: Node, start: int, stop: int, *, name: str | None = None):
        super().__init__(a, name=name, start=int(start), stop=int(stop), dim=getattr(a, "dim", 0))

    @staticmethod
    def shape(*dims: int, start: int, stop: int, dim: int) -> int:
        """Return the length of the range."""
        if not 0 <= start < stop <= dims[0]:
            raise ShapeError(f"the range {start}:{stop} is empty or leaves the vector of {dims[0]} entries")
        return stop - start

    @staticmethod
    def apply(a: Array, *, start: int, stop: int, dim: int) -> Array:
        """Return the range (a view)."""
        return a[:, start:stop]

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, *, start: int, stop: int, dim: int) -> LocalJacobian:
        """Return the selection of the range."""
        return Selection(dim, cols=slice(start, stop))


class Gather(Op):
    """Entries ``a[index]`` in any order, with repeats.

    Parameters
    ----------
    a : Node
    index : sequence of int
        Positions in ``0 .. a.dim - 1``.

    Raises
    ------
    ShapeError
        If the index is empty or leaves the vector.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Gather(fg.Variable(3, [1.0, 2.0, 3.0]), [2, 0, 2])
    >>> y.forward()
    array([3., 1., 3.])
    """

    kinds = (Selection,)
    uses = ((),)

    def __init__(self, a: Node, index: Any, *, name: str | None = None):
        positions = np.asarray(index)
        if positions.ndim != 1 or (positions.size and positions.dtype.kind not in "iu"):
            raise ShapeError(
                f"Gather of {a}: the index is a list of positions, not {brief(index)}; for one entry write a[k]"
            )
        super().__init__(a, name=name, index=tuple(positions.tolist()), dim=getattr(a, "dim", 0))

    @staticmethod
    def shape(*dims: int, index: tuple[int, ...], dim: int) -> int:
        """Return the number of positions."""
        if not index or min(index) < 0 or max(index) >= dims[0]:
            raise ShapeError(f"the index is empty or leaves the vector of {dims[0]} entries")
        return len(index)

    @staticmethod
    def apply(a: Array, out: Array | None = None, *, index: tuple[int, ...], dim: int) -> Array:
        """Return the picked entries."""
        return np.take(a, index, axis=1, out=out, mode="clip")

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, *, index: tuple[int, ...], dim: int) -> LocalJacobian:
        """Return the selection of the positions."""
        return Selection(dim, cols=np.array(index))


class Reshape(Op):
    """The same entries under other axes; computes nothing, and programs do not hold it.

    Parameters
    ----------
    a : Node
    axes : int or tuple of int
        One of them may be -1, what is left.

    Raises
    ------
    ShapeError
        If they do not have as many entries.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Reshape(fg.Variable(6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), (2, -1))
    >>> y.shape, y[1].forward()
    ((2, 3), array([4., 5., 6.]))
    """

    kinds = (Identity,)
    uses = ((),)

    def __init__(self, a: Node, axes: Any, *, name: str | None = None):
        super().__init__(a, name=name, axes=tuple(axes) if isinstance(axes, (tuple, list)) else (axes,))

    @staticmethod
    def out_shape(*shapes: Shape, axes: tuple[int, ...]) -> Shape:
        """Return the axes."""
        dim = math.prod(shapes[0])
        known = math.prod(n for n in axes if n != -1)
        filled = tuple(dim // known if n == -1 and known else n for n in axes)
        if axes.count(-1) > 1 or math.prod(shape_of(filled, "reshape")) != dim:
            raise ShapeError(f"{times(shapes[0])} is {dim} entries, which cannot be {times(axes)}")
        return filled

    @staticmethod
    def apply(a: Array, *, axes: tuple[int, ...]) -> Array:
        """Return the value."""
        return a

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, *, axes: tuple[int, ...]) -> LocalJacobian:
        """Return the identity."""
        return Identity()

    @classmethod
    def expand(cls, program: Any, args: list[int], attrs: dict[str, Any], label: str) -> int:
        """Return the operand itself."""
        return args[0]


class Pick(Op):
    """Base of ops that pick entries of one operand, where its axes and attributes say which; programs hold a `Gather`."""

    kinds = (Selection,)
    uses = ((),)

    def __init__(self, a: Node, *, name: str | None = None, **attrs: Any):
        super().__init__(a, name=name, axes=getattr(a, "shape", ()), **attrs)

    @classmethod
    def positions(cls, axes: Shape, **attrs: Any) -> Array:
        """Return where the entries lie in the operand's value, in the shape of the node; raise ValueError if there is no such."""
        raise NotImplementedError

    @classmethod
    def out_shape(cls, *shapes: Shape, axes: Shape, **attrs: Any) -> Shape:
        """Return the shape of the positions."""
        try:
            return cls.positions(axes, **attrs).shape
        except (ValueError, IndexError, TypeError) as error:
            raise ShapeError(str(error)) from None

    @classmethod
    def apply(cls, a: Array, **attrs: Any) -> Array:
        """Return the picked entries."""
        return a[:, cls.positions(**attrs).ravel()]

    @classmethod
    def jacobian(cls, slot: int, y: Array, a: Array, **attrs: Any) -> LocalJacobian:
        """Return the selection of the positions."""
        return Selection(math.prod(attrs["axes"]), cols=cls.positions(**attrs).ravel())

    @classmethod
    def expand(cls, program: Any, args: list[int], attrs: dict[str, Any], label: str) -> int:
        """Write a `Gather`."""
        return written_gather(program, args[0], cls.positions(**attrs), label)


class Broadcast(Pick):
    """The same entries repeated along new or longer axes, as NumPy broadcasts.

    Parameters
    ----------
    a : Node
    shape : int or tuple of int

    Raises
    ------
    ShapeError
        If the node's shape does not broadcast to it.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Broadcast(fg.Variable(2, [1.0, 2.0]), (2, 2))
    >>> y.forward()
    array([1., 2., 1., 2.])
    """

    def __init__(self, a: Node, shape: Any, *, name: str | None = None):
        super().__init__(a, name=name, to=shape_of(shape, "Broadcast"))

    @classmethod
    def positions(cls, axes: Shape, **attrs: Any) -> Array:
        """Return the positions, repeated."""
        try:
            return np.broadcast_to(np.arange(math.prod(axes)).reshape(axes), attrs["to"])
        except ValueError:
            raise ValueError(f"{times(axes)} cannot be repeated to {times(attrs['to'])}, as NumPy broadcasts") from None


class Transpose(Pick):
    """The axes in another order; reversed if none is given.

    Parameters
    ----------
    a : Node
    order : tuple of int, optional

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Transpose(fg.Variable((2, 2), [1.0, 2.0, 3.0, 4.0]))
    >>> y.forward()
    array([1., 3., 2., 4.])
    """

    def __init__(self, a: Node, order: Any = None, *, name: str | None = None):
        if order is not None:
            order = tuple(order) if isinstance(order, (tuple, list, np.ndarray)) else (order,)
            order = tuple(whole(k, "Transpose: an axis of the order") for k in order)
        super().__init__(a, name=name, order=order)

    @classmethod
    def positions(cls, axes: Shape, **attrs: Any) -> Array:
        """Return the positions, along other axes."""
        return np.arange(math.prod(axes)).reshape(axes).transpose(attrs["order"])


class Concat(Op):
    """Lay arrays end to end along an axis; vectors one behind the other.

    Parameters
    ----------
    *nodes : Node
        At least one; of one shape but for the length along the axis.
    axis : int

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Concat(fg.Variable(1, [1.0]), fg.Variable(2, [2.0, 3.0]))
    >>> y.forward()
    array([1., 2., 3.])
    """

    kinds = (Selection,)
    uses = ((),)

    def __init__(self, *nodes: Node, axis: int = 0, name: str | None = None):
        shapes = tuple(getattr(n, "shape", ()) for n in nodes)
        super().__init__(*nodes, name=name, axis=whole(axis, "Concat: axis"), shapes=shapes)

    @classmethod
    def places(cls, shapes: tuple[Shape, ...], axis: int) -> list[Array]:
        """Return where each operand's entries lie in the value."""
        ends = list(accumulate(math.prod(shape) for shape in shapes))
        blocks = [np.arange(end - math.prod(shape), end).reshape(shape) for end, shape in zip(ends, shapes)]
        order = np.concatenate(blocks, axis).ravel()
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        return np.split(inverse, ends[:-1])

    @classmethod
    def out_shape(cls, *operands: Shape, axis: int, shapes: tuple[Shape, ...]) -> Shape:
        """Return the shape with the lengths along the axis added up."""
        try:
            return np.concatenate([np.empty(shape, np.bool_) for shape in shapes], axis).shape
        except ValueError as error:
            raise ShapeError(f"along axis {axis} of {', '.join(map(times, shapes))}: {error}") from None

    @classmethod
    def apply(cls, *values: Array, axis: int, shapes: tuple[Shape, ...]) -> Array:
        """Return the values side by side."""
        places = cls.places(shapes, axis)
        out = np.empty((max(map(len, values)), sum(map(len, places))), values[0].dtype)
        for value, place in zip(values, places):
            out[:, place] = value
        return out

    @classmethod
    def jacobian(cls, slot: int, y: Array, *values: Array, axis: int, shapes: tuple[Shape, ...]) -> LocalJacobian:
        """Return the placement of the operand's entries."""
        place = cls.places(shapes, axis)[slot]
        return Selection(len(place), rows=place)

    @classmethod
    def expand(cls, program: Any, args: list[int], attrs: dict[str, Any], label: str) -> int:
        """Write a `Vectorize`, and a `Gather` where the axis is not the first."""
        index = np.argsort(np.concatenate(cls.places(attrs["shapes"], attrs["axis"])))
        return written_gather(program, written_join(program, args, label), index, label)


def written_gather(program: Any, x: int, index: Array, label: str) -> int:
    """Write a `Gather` into a program and return its variable; nothing where all entries stay in place."""
    flat, dim = tuple(index.ravel().tolist()), program.types[x].dim
    return x if flat == tuple(range(dim)) else int(program.apply(Gather, [x], {"index": flat, "dim": dim}, label))


def written_slice(program: Any, x: int, start: int, stop: int, label: str) -> int:
    """Write a `Slice` into a program and return its variable; nothing where it is the whole."""
    dim = program.types[x].dim
    attrs = {"start": start, "stop": stop, "dim": dim}
    return x if (start, stop) == (0, dim) else int(program.apply(Slice, [x], attrs, label))


def written_join(program: Any, parts: list[int], label: str) -> int:
    """Write a `Vectorize` into a program and return its variable."""
    ends = tuple(accumulate(program.types[part].dim for part in parts))
    return int(program.apply(Vectorize, parts, {"ends": ends}, label))


def whole(value: Any, what: str) -> int:
    """Return the number of an axis, which may be negative."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ShapeError(f"{what} must be an integer, not {brief(value)}")
    return int(value)


def item(a: Node, key: Any) -> Node:
    """Return entries as NumPy's indexing picks them: a `Slice` where they lie in one stretch, else a `Gather`.

    Raises
    ------
    ShapeError
        If the key leaves the node, or picks nothing.
    """
    if isinstance(key, (bool, np.bool_)) or key is None:
        raise ShapeError(f"{a} takes a range such as [2:5], a position or several, not {brief(key)}")
    first, row = a.shape[0], math.prod(a.shape[1:])
    if isinstance(key, slice) and key.indices(first)[2] == 1:  # without the positions of all entries
        start, stop, _ = key.indices(first)
        return _reshaped(Slice(a, start * row, stop * row), (stop - start, *a.shape[1:]))
    if isinstance(key, (int, np.integer)) and -first <= key < first:
        at = int(key) % first
        return _reshaped(Slice(a, at * row, (at + 1) * row), a.shape[1:])
    try:
        positions = np.arange(a.dim).reshape(a.shape)[key]
    except (IndexError, ValueError, TypeError) as error:
        raise ShapeError(f"{a}[{brief(key)}]: {str(error) or 'no position'}") from None
    flat = positions.ravel()
    if not len(flat):
        raise ShapeError(f"{a}[{brief(key)}] picks no entry")
    together = flat[-1] - flat[0] == len(flat) - 1 and (np.diff(flat) == 1).all()
    picked = Slice(a, int(flat[0]), int(flat[-1]) + 1) if together else Gather(a, flat)
    return _reshaped(picked, positions.shape)


def _reshaped(a: Node, shape: Shape) -> Node:
    return a if len(shape) < 2 else Reshape(a, shape)
