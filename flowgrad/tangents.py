"""Forward mode: program -> program with the tangents of its variables; it may hold its own backward part.

Through a forward part, tangents are what Jacobians push (jvp, Jacobians of few inputs). Through a backward part, they give second
derivatives: the tangent of ``pull(g)`` is the pull of g's tangent plus the pull by the tangent of the local Jacobian, so the
tangent of a gradient along `d` is the Hessian times `d` (B. Pearlmutter, *Fast exact multiplication by the Hessian*, 1994).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .ops import Vectorize
from .program import Builder, Instr, Program, Type


def linearize(program: Program, moving: Mapping[int, bool], wanted: Sequence[str]) -> Program:
    """Append the tangents of outputs for tangents of some variables.

    The result has one more input for each variable that moves, its tangent ``(V, N or 1, dim)``, and for each output that is
    wanted its tangent under the same name, in place of all outputs; it is missing where the output stands still. Through a
    backward part, `V` must be 1.

    Parameters
    ----------
    program : Program
        A forward program, or one with its backward part.
    moving : dict
        By variable that moves, one of the inputs: whether its tangent is one for each sample.
    wanted : sequence of str

    Examples
    --------
    >>> import flowgrad as fg
    >>> from flowgrad.program import trace
    >>> with fg.Graph():
    ...     x = fg.Variable(2)
    ...     y = fg.Tanh(x)
    >>> print(linearize(trace([y], [x], []), {0: True}, ["0"]).pretty())
    in   %0 (N, 2) feed of node 0
    in   %2 (V, N, 2) tangent
    %1 (N, 2) = Tanh(%0)  # tanh1
    %3 (V, N, 2) = push Tanh[0](%2, %1)  # tanh1
    out  0 = %3
    """
    sweep = _Sweep(program, moving)
    for i in program.instrs:
        sweep.follow(i)
    tangents = {name: sweep.tangents.get(program.outputs[name]) for name in wanted}
    return sweep.builder.build({name: var for name, var in tangents.items() if var is not None})


def bent_slots(i: Instr) -> tuple[int, ...]:
    """Return whose values, and then whose tangents, a ``bend`` reads after its cotangent, by slot; -1 is the op's own."""
    needs = i.op.needs(i.slot, i.arity)
    return needs if len(i.args) == 1 + 2 * len(needs) else (-1, *range(i.arity))


class _Sweep:
    """Tangents from the inputs on.

    Attributes
    ----------
    tangents : dict
        Variable of the tangent by variable; those that stand still have none.
    """

    def __init__(self, program: Program, moving: Mapping[int, bool]):
        self.program, self.builder = program, Builder.of(program)
        self.types = self.builder.types
        self.tangents = {
            var: self.builder.input(Type(self.types[var].dim, batched, True), "tangent")
            for var, batched in moving.items()
        }
        self.makers = {i.out: i for i in program.instrs if i.verb == "apply"}
        self.zeros: dict[int, int] = {}

    def follow(self, i: Instr) -> None:
        """Add the tangent of what an instruction makes."""
        moved = [(k, self.tangents[a]) for k, a in enumerate(i.args) if a in self.tangents]
        if not moved or not i.op.differentiable:
            return
        if i.verb == "scatter":
            starts = dict(i.attrs)["starts"]
            shares = [self.scatter(i.out, [(starts[k], t) for k, t in moved])]
        elif i.verb == "add":
            shares = [t for _, t in moved]
        elif i.verb != "apply":
            shares = [self.pull(i, t) for k, t in moved if k == 0]
            shares += [self.bend(i)] if moved[-1][0] else []
        elif i.op is Vectorize:
            starts = (0, *dict(i.attrs)["ends"])
            shares = [self.scatter(i.out, [(starts[k], t) for k, t in moved])]
        else:
            shares = [self.push(i, slot, t) for slot, t in moved]
        self.tangents[i.out] = shares[0] if len(shares) == 1 else self.add(i.out, shares)

    def add(self, var: int, shares: Sequence[int]) -> int:
        """Add the sum of tangents of a variable."""
        return self.builder.emit("add", Type(self.types[var].dim, self.batched(shares), True), shares)

    def batched(self, args: Sequence[int]) -> bool:
        """Whether one of them has a row for each sample."""
        return any([self.types[a].batched for a in args])

    def scatter(self, var: int, pieces: Sequence[tuple[int, int]]) -> int:
        """Add the tangent of what is put together of pieces, each with its start; the rest is zero."""
        dim, args = self.types[var].dim, [t for _, t in pieces]
        attrs = (("starts", tuple(start for start, _ in pieces)), ("dim", dim))
        return self.builder.emit("scatter", Type(dim, self.batched(args), True), args, attrs=attrs)

    def push(self, i: Instr, slot: int, t: int) -> int:
        """Add what an operand's tangent is pushed to."""
        needs = [i.out if n < 0 else i.args[n] for n in i.op.needs(slot, i.arity)]
        type_ = Type(self.types[i.out].dim, self.batched([t, *needs]), True)
        return self.builder.copy(i._replace(verb="push", slot=slot), type_, (t, *needs))

    def pull(self, i: Instr, t: int) -> int:
        """Add the pull of the cotangent's tangent."""
        return self.builder.copy(i, self.types[i.out], (t, *i.args[1:]))

    def bend(self, i: Instr) -> int:
        """Add the pull by the tangent of the local Jacobian.

        A slope that names its value alone still moves with the operands: so rules are given all values, where those are known.
        """
        needs = i.op.needs(i.slot, i.arity)
        values = list(i.args[1:])
        maker = self.makers.get(values[needs.index(-1)]) if -1 in needs else None
        if i.op.jacobian_tangent is not None and maker is not None and maker.op is i.op:
            values = [maker.out, *maker.args]
        tangents = [self.tangents[v] if v in self.tangents else self.zero(v) for v in values]
        bend = i._replace(verb="bend" if i.verb == "pull" else "bend_sum")
        return self.builder.copy(bend, self.types[i.out], (i.args[0], *values, *tangents))

    def zero(self, var: int) -> int:
        """Return the tangent of what stands still."""
        dim = self.types[var].dim
        if dim not in self.zeros:
            self.zeros[dim] = self.scatter(var, ())
        return self.zeros[dim]
