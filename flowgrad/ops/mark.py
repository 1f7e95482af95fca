"""`Mark`: a node that derivatives are taken by, kept whole."""

from __future__ import annotations

from ..jacobians import Identity, LocalJacobian
from ..op import Op
from ..typing import Array


class Mark(Op):
    """The value itself. Programs put it behind an inner node that they differentiate by.

    Fusion takes nodes apart and merges equal ones; a mark stacks with nothing, and its index tells it from every other mark.
    """

    kinds = (Identity,)
    uses = ((),)

    @staticmethod
    def shape(*dims: int, node: int) -> int:
        """Return the dim of the parent."""
        return dims[0]

    @staticmethod
    def apply(a: Array, *, node: int) -> Array:
        """Return the value."""
        return a

    @staticmethod
    def jacobian(slot: int, y: Array, a: Array, *, node: int) -> LocalJacobian:
        """Return the identity."""
        return Identity()
