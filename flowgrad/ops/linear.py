"""Linear and bilinear ops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..graph import Node
from ..inputs import Shape, times
from ..jacobians import Blocks, Dense, LeftProduct, LocalJacobian, Outer, Rows
from ..op import Op, Stacked
from ..typing import Array
from .batch import BatchMatVec
from .elementwise import Scale
from .select import written_gather

# Up to this many samples, and from this many entries of a matrix on, products are computed as their transpose: BLAS is up to
# 1.5 times faster so.
FEW_SAMPLES = 128
LARGE_MATRIX = 4096


class Dot(Op):
    """Scalar product ``a · b``; one neuron is ``Add(Dot(w, x), b)``.

    Parameters
    ----------
    a, b : Node
        Of the same dim; ``Dot(x, x)`` is the squared norm.

    Raises
    ------
    ShapeError
        If the dims differ.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Dot(fg.Variable(2, [1.0, 2.0]), fg.Variable(2, [3.0, 4.0]))
    >>> y.forward()
    array([11.])
    """

    kinds = (Outer,)
    uses = ((1,), (0,))

    @staticmethod
    def shape(*dims: int) -> int:
        """Return 1."""
        Op.shape(*dims)
        return 1

    @staticmethod
    def apply(a: Array, b: Array, out: Array | None = None) -> Array:
        """Return the scalar product of each sample; a matrix product where one operand is shared."""
        if len(b) == 1:
            return np.matmul(a, b.T, out)
        if len(a) == 1:
            return np.matmul(b, a.T, out)
        return np.einsum("ni,ni->n", a, b, out=None if out is None else out[:, 0])[:, None]

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, b: Array) -> LocalJacobian:
        """Return the other operand as a row."""
        return Outer(a if slot else b)

    @staticmethod
    def jacobian_tangent(slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...]) -> LocalJacobian | None:
        """Return the rule at the tangents: the factor is linear."""
        return Dot.jacobian(slot, *tangents)

    @classmethod
    def stack(cls, k: int, shared: tuple[bool, ...], dims: tuple[int, ...], **attrs: Any) -> Stacked | None:
        """Return a `MatVec` where one operand is shared, else a `RowDot`."""
        if shared == (False, True):
            return Stacked(MatVec, {"n": dims[1]})
        if shared == (True, False):
            return Stacked(MatVec, {"n": dims[0]}, order=(1, 0))
        return Stacked(RowDot, {"rows": k})


class RowDot(Op):
    """`rows` scalar products at once: ``y_i = a_i · b_i`` for operands that are `rows` vectors laid end to end.

    Parameters
    ----------
    a, b : Node
        Of the same dim, a multiple of `rows`.
    rows : int

    Raises
    ------
    ShapeError
        If the dims differ or are no multiple of `rows`.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     a = fg.Variable(4, [1.0, 2.0, 3.0, 4.0])
    ...     y = fg.RowDot(a, a, rows=2)
    >>> y.forward()
    array([ 5., 25.])
    """

    kinds = (Rows,)
    uses = ((1,), (0,))

    def __init__(self, a: Node, b: Node, rows: int, *, name: str | None = None):
        super().__init__(a, b, name=name, rows=int(rows))

    @staticmethod
    def shape(*dims: int, rows: int) -> int:
        """Return `rows`."""
        if rows < 1 or Op.shape(*dims) % rows:
            raise ShapeError(f"{dims[0]} entries cannot be cut into {rows} rows of one length")
        return rows

    @staticmethod
    def apply(a: Array, b: Array, out: Array | None = None, *, rows: int) -> Array:
        """Return the scalar products."""
        product = a * b
        return product.reshape(len(product), rows, -1).sum(axis=2, out=out)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, b: Array, *, rows: int) -> LocalJacobian:
        """Return the rows of the other operand."""
        other = a if slot else b
        return Rows(other.reshape(len(other), rows, -1))

    @staticmethod
    def jacobian_tangent(
        slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...], *, rows: int
    ) -> LocalJacobian | None:
        """Return the rule at the tangents: the factor is linear."""
        return RowDot.jacobian(slot, *tangents, rows=rows)

    @classmethod
    def stack(cls, k: int, shared: tuple[bool, ...], dims: tuple[int, ...], **attrs: Any) -> Stacked | None:
        """Return one `RowDot` with all the rows."""
        return None if any(shared) else Stacked(RowDot, {"rows": k * attrs["rows"]})


class MatVec(Op):
    """Matrix times vector ``W x``; the matrix is a vector of length ``k * n``, row-major.

    Parameters
    ----------
    W : Node
        Of dim ``k * n``.
    x : Node
        Of dim ``n``.

    Raises
    ------
    ShapeError
        If the dim of `W` is not a multiple of the dim of `x`.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.MatVec(fg.Variable(4, [1.0, 2.0, 3.0, 4.0]), fg.Variable(2, [1.0, 1.0]))
    >>> y.forward()
    array([3., 7.])
    """

    kinds = (Outer, Dense)
    uses = ((1,), (0,))

    def __init__(self, W: Node, x: Node, *, name: str | None = None):
        inner = {"n": x.dim} if isinstance(x, Node) else {"n": 1}
        super().__init__(W, x, name=name, **inner)

    @staticmethod
    def out_shape(*shapes: Shape, n: int) -> Shape:
        """Return the number of rows."""
        W, x = shapes
        if len(W) > 1 and W[1:] != (n,):
            raise ShapeError(f"a matrix of {times(W)} applies to vectors of {W[-1]}, not of {times(x)}; see MatMul")
        return (MatVec.shape(math.prod(W), math.prod(x), n=n),)

    @staticmethod
    def shape(*dims: int, n: int) -> int:
        """Return the number of rows."""
        if len(dims) != 2 or dims[0] % n or dims[1] != n:
            raise ShapeError(
                f"a matrix of {dims[0]} entries cannot have rows of length {n}; "
                f"its dim must be (rows of the result) x {n}"
            )
        return dims[0] // n

    @staticmethod
    def apply(W: Array, x: Array, out: Array | None = None, *, n: int) -> Array:
        """Return the product of each sample; one matrix product where the matrix is shared."""
        if len(W) == 1:
            return _products(W.reshape(-1, n), x, out)
        if len(x) == 1:
            product = np.matmul(W.reshape(-1, n), x[0], None if out is None else out.reshape(-1))
            return product.reshape(len(W), -1)
        return np.matmul(W.reshape(len(W), -1, n), x[:, :, None], None if out is None else out[:, :, None])[:, :, 0]

    @staticmethod
    def jacobian(slot: int, y: Array, W: Array, x: Array, *, n: int) -> LocalJacobian:
        """Return ``I ⊗ x`` by the matrix, the matrix itself by the vector."""
        return Dense(W.reshape(len(W), -1, n)) if slot else Outer(x)

    @staticmethod
    def jacobian_tangent(
        slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...], *, n: int
    ) -> LocalJacobian | None:
        """Return the rule at the tangents: the factor is linear."""
        return MatVec.jacobian(slot, *tangents, n=n)

    @classmethod
    def stack(cls, k: int, shared: tuple[bool, ...], dims: tuple[int, ...], **attrs: Any) -> Stacked | None:
        """Return one taller matrix where the vector is shared, a `BatchMatVec` where the matrix is."""
        if shared == (True, False):
            return Stacked(BatchMatVec, {"count": k, **attrs})
        return Stacked(MatVec, attrs) if shared == (False, True) else None


def _products(matrix: Array, x: Array, out: Array | None) -> Array:
    """Return ``matrix @ x_n`` for every sample, ``(N, k)``."""
    if not 1 < len(x) <= FEW_SAMPLES or matrix.size < LARGE_MATRIX:
        return np.matmul(x, matrix.T, out)
    if out is None:
        out = np.empty((len(x), len(matrix)), np.result_type(x, matrix))
    out[...] = np.matmul(matrix, x.T).T
    return out


class Sum(Op):
    """Sum of the entries, a scalar.

    Parameters
    ----------
    a : Node

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Sum(fg.Variable(3, [1.0, 2.0, 3.0]))
    >>> y.forward()
    array([6.])
    """

    kinds = (Outer,)
    uses = ((),)

    def __init__(self, a: Node, *, name: str | None = None):
        super().__init__(a, name=name, dim=getattr(a, "dim", 0))

    @staticmethod
    def shape(*dims: int, dim: int) -> int:
        """Return 1."""
        return 1

    @staticmethod
    def apply(a: Array, out: Array | None = None, *, dim: int) -> Array:
        """Return the sum."""
        return a.sum(axis=1, keepdims=True, out=out)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, *, dim: int) -> LocalJacobian:
        """Return a row of ones."""
        return Outer(np.ones((1, dim), np.float32))

    @staticmethod
    def row_value(y: Array, a: Array) -> None:
        """Write the sum of one sample."""
        total = a[0] - a[0]
        for j in range(a.shape[0]):
            total += a[j]
        y[0] = total

    @staticmethod
    def row_factor(slot: int, f: Array) -> None:
        """Write ones."""
        for j in range(f.shape[0]):
            f[j] = 1


class Mean(Op):
    """Mean of the entries, a scalar.

    Parameters
    ----------
    a : Node

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.Mean(fg.Variable(3, [1.0, 2.0, 3.0]))
    >>> y.forward()
    array([2.])
    """

    kinds = (Outer,)
    uses = ((-1,),)

    def __init__(self, a: Node, *, name: str | None = None):
        super().__init__(a, name=name, dim=getattr(a, "dim", 0))

    @staticmethod
    def shape(*dims: int, dim: int) -> int:
        """Return 1."""
        return 1

    @staticmethod
    def apply(a: Array, *, dim: int) -> Array:
        """Return the mean."""
        return a.mean(axis=1, keepdims=True)

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, *, dim: int) -> LocalJacobian:
        """Return a row of one over the number of entries."""
        return Outer(np.full((1, dim), 1 / dim, y.dtype))

    @classmethod
    def expand(cls, program: Any, args: list[int], attrs: dict[str, Any], label: str) -> int:
        """Write a sum that is scaled."""
        return int(program.apply(Scale, [program.apply(Sum, args, attrs, label)], {"c": 1 / attrs["dim"]}, label))


class MatMul(Op):
    """Matrix product ``A B`` of two nodes of two axes each.

    Parameters
    ----------
    A : Node
        Of shape ``(m, k)``.
    B : Node
        Of shape ``(k, n)``.

    Raises
    ------
    ShapeError
        If they have other shapes.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     A = fg.Variable((2, 2), [1.0, 2.0, 3.0, 4.0])
    ...     B = fg.Variable((2, 1), [1.0, 10.0])
    ...     y = A @ B
    >>> y.shape, y.forward()
    ((2, 1), array([21., 43.]))
    """

    kinds = (Blocks, LeftProduct)
    uses = ((1,), (0,))

    def __init__(self, A: Node, B: Node, *, name: str | None = None):
        super().__init__(A, B, name=name, k=getattr(A, "shape", (1,))[-1])

    @staticmethod
    def out_shape(*shapes: Shape, k: int) -> Shape:
        """Return the rows of the first and the columns of the second."""
        if [len(shape) for shape in shapes] != [2, 2] or shapes[1][0] != k:
            raise ShapeError(
                f"needs shapes m x k and k x n, not {' and '.join(map(times, shapes))}; fg.Variable((m, k)) and "
                f"node.reshape(k, n) say what a vector is"
            )
        return shapes[0][0], shapes[1][1]

    @staticmethod
    def apply(A: Array, B: Array, *, k: int) -> Array:
        """Return the products."""
        product = A.reshape(len(A), -1, k) @ B.reshape(len(B), k, -1)
        return product.reshape(len(product), -1)

    @staticmethod
    def jacobian(slot: int, y: Array, A: Array, B: Array, *, k: int) -> LocalJacobian:
        """Return, by the first, the second turned over for each row; by the second, the rows of the first."""
        if slot == 0:
            return Blocks(np.swapaxes(B.reshape(len(B), k, -1), 1, 2))
        return LeftProduct(A.reshape(len(A), -1, k))

    @staticmethod
    def jacobian_tangent(
        slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...], *, k: int
    ) -> LocalJacobian | None:
        """Return the rule at the tangents: the factor is linear."""
        return MatMul.jacobian(slot, *tangents, k=k)

    @classmethod
    def expand(cls, program: Any, args: list[int], attrs: dict[str, Any], label: str) -> int:
        """Write the second matrix turned over, applied to every row of the first."""
        m, n, k = *(program.types[a].dim // attrs["k"] for a in args), attrs["k"]
        turned = written_gather(program, args[1], np.arange(k * n).reshape(k, n).T, label)
        return int(program.apply(BatchMatVec, [turned, args[0]], {"count": m, "n": k}, label))


class OuterProduct(MatMul):
    """``a bᵀ`` of two vectors, of shape ``(a.dim, b.dim)``.

    Parameters
    ----------
    a, b : Node

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     y = fg.OuterProduct(fg.Variable(2, [1.0, 2.0]), fg.Variable(2, [1.0, 10.0]))
    >>> y.shape, y.forward()
    ((2, 2), array([ 1., 10.,  2., 20.]))
    """

    def __init__(self, a: Node, b: Node, *, name: str | None = None):
        Op.__init__(self, a, b, name=name, k=1)

    @staticmethod
    def out_shape(*shapes: Shape, k: int) -> Shape:
        """Return the two lengths."""
        return math.prod(shapes[0]), math.prod(shapes[1])
