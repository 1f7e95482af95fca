"""One matrix applied to several vectors: what siblings with shared weights become (patches, recurrent cells, shared units)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ShapeError
from ..graph import Node
from ..jacobians import Blocks, LocalJacobian, OuterSum
from ..op import Op, Stacked
from ..typing import Array


class BatchMatVec(Op):
    """``W x_1, W x_2, ...`` laid end to end, for a matrix and `count` vectors laid end to end.

    Parameters
    ----------
    W : Node
        Of dim ``k * n``, row-major.
    xs : Node
        Of dim ``count * n``.
    count : int
        How many vectors.

    Raises
    ------
    ShapeError
        If the dims are no multiples.

    Examples
    --------
    >>> import flowgrad as fg
    >>> with fg.Graph():
    ...     w = fg.Variable(2, [1.0, 10.0])
    ...     y = fg.BatchMatVec(w, fg.Variable(4, [1.0, 2.0, 3.0, 4.0]), count=2)
    >>> y.forward()
    array([21., 43.])
    """

    kinds = (OuterSum, Blocks)
    uses = ((1,), (0,))

    def __init__(self, W: Node, xs: Node, count: int, *, name: str | None = None):
        dim = xs.dim if isinstance(xs, Node) else 1
        super().__init__(W, xs, name=name, count=int(count), n=max(1, dim // max(1, int(count))))

    @staticmethod
    def shape(*dims: int, count: int, n: int) -> int:
        """Return the number of rows times `count`."""
        if len(dims) != 2 or count < 1 or dims[1] != count * n or dims[0] % n:
            raise ShapeError(
                f"{dims[-1]} entries cannot be {count} vectors that a matrix of {dims[0]} entries applies to: "
                f"its dim must be (rows of a result) x (length of a vector)"
            )
        return dims[0] // n * count

    @staticmethod
    def apply(W: Array, xs: Array, out: Array | None = None, *, count: int, n: int) -> Array:
        """Return the products; one matrix product where the matrix is shared."""
        k = W.shape[1] // n
        if out is None:
            out = np.empty((max(len(W), len(xs)), count * k), np.result_type(W, xs))
        if len(W) == 1:
            np.matmul(xs.reshape(-1, n), W.reshape(k, n).T, out.reshape(-1, k))
        else:
            np.matmul(xs.reshape(-1, count, n), np.swapaxes(W.reshape(-1, k, n), 1, 2), out.reshape(-1, count, k))
        return out

    @staticmethod
    def jacobian(slot: int, y: Array, W: Array, xs: Array, *, count: int, n: int) -> LocalJacobian:
        """Return the vectors as rows by the matrix, the matrix by the vectors."""
        if slot:
            return Blocks(W.reshape(len(W), -1, n))
        return OuterSum(xs.reshape(len(xs), count, n))

    @staticmethod
    def jacobian_tangent(
        slot: int, values: tuple[Array, ...], tangents: tuple[Array, ...], *, count: int, n: int
    ) -> LocalJacobian | None:
        """Return the rule at the tangents: the factor is linear."""
        return BatchMatVec.jacobian(slot, *tangents, count=count, n=n)

    @classmethod
    def stack(cls, k: int, shared: tuple[bool, ...], dims: tuple[int, ...], **attrs: Any) -> Stacked | None:
        """Return one with more vectors where the matrix is shared."""
        return Stacked(BatchMatVec, {**attrs, "count": k * attrs["count"]}) if shared == (True, False) else None
