"""A whole derivative as one task: for blocks of samples whose values nobody asks for again."""

from __future__ import annotations

from dataclasses import dataclass

from flowgrad.autodiff import Edge
from flowgrad.program import Instr

from .recipe import Recipe
from .units import renumber


@dataclass(frozen=True, eq=False)
class Whole:
    """Everything from what is given to the last edges as one task: for blocks whose values nobody asks for again.

    Attributes
    ----------
    instrs : tuple of Instr
        Read ``leaves``, in their order, then the seed.
    leaves : tuple of int
        Program variables: values that are set, then feeds.
    edges : tuple of Edge
        Numbered by the unit's variables.
    result : int
        The result's value, numbered so too.
    """

    instrs: tuple[Instr, ...]
    leaves: tuple[int, ...]
    edges: tuple[Edge, ...]
    result: int


def whole_of(recipe: Recipe, cut: bool = True) -> Whole:
    """Return the whole of a recipe, the result's value included.

    With `cut`, ranges of the flat vectors are given; otherwise the vectors are, and the instructions cut them.
    """
    edges = [e.renamed(recipe.through) for e in recipe.derivation.edges]
    target = recipe.through(recipe.target)
    wanted = {target, *(a for e in edges for a in e.reads)}
    cuts = {i.out for i in recipe.statics if isinstance(i, Instr)} if cut else set()
    kept = []
    for i in reversed(recipe.program.instrs):
        if i.out in wanted and i.out not in recipe.same and i.out not in cuts:
            kept.append(i._replace(args=tuple(map(recipe.through, i.args))))
            wanted.update(kept[-1].args)
    kept.reverse()
    own = {i.out for i in kept}
    seed = recipe.derivation.seed
    leaves = tuple(sorted(var for var in wanted if var not in own and var != seed))
    reads = (*leaves, seed)
    numbered = renumber(kept, reads)
    at = {var: k for k, var in enumerate((*reads, *(i.out for i in kept)))}
    edges = [e.renamed(at.__getitem__) for e in edges]
    return Whole(numbered, leaves, tuple(edges), at[target])
