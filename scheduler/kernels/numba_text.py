"""Program -> source text of straight-line loops over preallocated buffers, for a compiler such as numba.

The text defines ``gradient(n, share, <feeds>, const, w, grad, <buffers>) -> loss``: one shard's share of the mean gradient, written
in place into ``grad``. Shared variables are 1-d arrays, batched ones 2-d. Neighbouring elementwise instructions of one shape
become one loop. What the text cannot say raises `Unsupported`; such programs run with NumPy.
"""

from __future__ import annotations

from flowgrad.jacobians import Dense, Diagonal, Identity, Outer, Rows, Selection, SoftMaxJacobian
from flowgrad.ops import BatchMatVec, Dot, MatVec, RowDot, Slice, Vectorize
from flowgrad.program import Instr, Program

from .numba_loops import Source, Unsupported
from .numba_values import ValueWriter, stated, tall_matrix


def generate(program: Program, gradient: str | None) -> Source:
    """Write forward and backward of `program` as loops.

    Parameters
    ----------
    program : Program
        Its output ``"0"`` is the loss, its last input the seed.
    gradient : str or None
        The output that goes into ``grad``; None if the loss depends on no parameter.
    """
    return _Writer(program, gradient).write()


class _Writer(ValueWriter):
    def __init__(self, program: Program, gradient: str | None):
        super().__init__(program)
        self.flat = program.outputs[gradient] if gradient is not None else -1

    def write(self) -> Source:
        for entry in self.program.inputs:
            name = {"param": "w", "const": "const", "seed": "seed"}.get(entry.role, f"x{entry.var}")
            self.name[entry.var] = name
            if entry.role == "feed":
                self.out.feeds.append(name)
        self._seed()
        self._destine()
        for i in self.program.instrs:
            self._instr(i)
            for a in i.args:
                self.left[a] -= 1
        self._flush()
        if self.flat < 0:
            self._line("grad[:] = F(0)")
        elif self.name[self.flat] != "grad":
            self._line(f"grad[:] = {self.name[self.flat]}")
        loss = self.program.outputs["0"]
        if self.program.types[loss].batched:
            self.out.body += [
                "total = 0.0",
                "for i in range(n):",
                f"    total += {self.name[loss]}[i, 0]",
                "return total * share",
            ]
        else:
            self.out.body.append(f"return float({self.name[loss]}[0]) * n * share")
        return self.out

    def _seed(self) -> None:
        seed = self.program.inputs[-1]
        if self.program.types[seed.var].batched:
            self.out.buffers.append(("seed", ("n", "1")))
            self._line("seed[:n] = F(share)")
            self.name[seed.var] = "seed[:n]"
        else:
            self.out.buffers.append(("seed", ("1",)))
            self._line("seed[0] = F(share * n)")

    def _destine(self) -> None:
        """Let the pieces of the flat gradient be written where they belong."""
        makers = {i.out: i for i in self.program.instrs}
        final = makers.get(self.flat)
        if final is None or final.verb != "scatter" or not self.program.tiles(final):
            return
        for piece, start in zip(final.args, dict(final.attrs)["starts"]):
            dim = self.program.types[piece].dim
            maker = makers.get(piece)
            written = maker is not None and (maker.verb in ("pull_sum", "add") and not self._is_alias(maker))
            if written and self.uses[piece] == 1:
                self.place[piece] = f"g{piece}"
                self._line(f"g{piece} = grad[{start}:{start + dim}]")

    # -- instructions -------------------------------------------------------------------------------------------

    def _instr(self, i: Instr) -> None:
        if i.verb == "apply":
            self._apply(i)
        elif i.verb == "add":
            self._elementwise(i.out, " + ".join(f"{{{k}}}" for k in range(len(i.args))), list(i.args))
        elif i.verb == "scatter":
            self._scatter(i)
        else:
            self._pull(i)

    # -- cotangents ---------------------------------------------------------------------------------------------

    def _scatter(self, i: Instr) -> None:
        if i.out == self.flat and all(a in self.place for a in i.args):
            for a in i.args:
                self._read(a)
            self.name[i.out] = "grad"
            return
        types = self.program.types
        pieces = [self._read(a) for a in i.args]
        out = self._buffer(i.out)
        self._line(f"{out}[:] = F(0)")
        for a, piece, start in zip(i.args, pieces, dict(i.attrs)["starts"]):
            stop = start + types[a].dim
            self._line(f"{out}[{':, ' if types[i.out].batched else ''}{start}:{stop}] += {piece}")

    def _pull(self, i: Instr) -> None:
        types = self.program.types
        kind, g = i.op.kind(i.slot), i.args[0]
        dim = types[i.out].dim
        summed = types[g].batched and not types[i.out].batched
        if self._is_alias(i):
            if self.loop is not None and any(v == g for v, _ in self.loop.sums):
                self._flush()  # under its other name, a pending sum would not be known as pending
            if self.loop is not None and g in self.loop.local:
                self.loop.local[i.out] = self.loop.local[g]
            self.name[i.out] = self.name.get(g) or self._buffer(g)
            self.left[g] += self.uses[i.out]  # the alias is read in its place
        elif kind in (Identity, Diagonal):
            expr, reads = self._slope(i)
            if summed:
                self._sum(i.out, expr, reads, dim)
            else:
                self._elementwise(i.out, expr, reads)
        elif kind is Outer:
            self._pull_outer(i, summed)
        elif kind is Dense and i.op is MatVec:
            self._pull_dense(i, summed)
        elif i.op is BatchMatVec:
            self._pull_batch(i, summed)
        elif kind is Selection:
            self._pull_selection(i, summed)
        elif kind is Rows and not summed:
            self._pull_rows(i)
        elif kind is SoftMaxJacobian and not summed:
            self._pull_softmax(i)
        else:
            raise Unsupported(f"{i.verb} {i.op.__name__}[{i.slot}] {i.label}")

    def _slope(self, i: Instr) -> tuple[str, list[int]]:
        """Return the pulled entry as an expression of the cotangent ``{0}`` and the used values."""
        if i.op.kind(i.slot) is Identity:
            return "{0}", [i.args[0]]
        if len(i.op.slopes) <= i.slot:
            raise Unsupported(f"{i.op.__name__} {i.label} states no slopes")
        needs = i.op.needs(i.slot, i.arity)
        where = {need: f"{{{k + 1}}}" for k, need in enumerate(needs)}
        return f"{{0}} * ({stated(i, i.op.slopes[i.slot], where)})", list(i.args)

    def _pull_outer(self, i: Instr, summed: bool) -> None:
        types = self.program.types
        g = i.args[0]
        k = types[g].dim
        n = types[i.out].dim // k
        if i.op in (MatVec, Dot, RowDot):
            r, row_batched = self._read(i.args[1]), types[i.args[1]].batched
        else:
            r, row_batched = self._factor(i)
        cot = self._read(g)
        out = self._buffer(i.out)
        if summed and row_batched:
            self._line(f"np.dot({cot}.T, {r}, {out}.reshape({k}, {n}))")
            return
        if summed:
            raise Unsupported(f"sum of {i.op.__name__}[{i.slot}] {i.label} by a shared row")
        entry = "i, " if types[i.out].batched else ""
        lines = [
            f"for a in range({k}):",
            f"    for j in range({n}):",
            f"        {out}[{entry}a * {n} + j] = {cot}[{'i, ' if types[g].batched else ''}a] * "
            f"{r}[{'i, ' if row_batched else ''}j]",
        ]
        self._line(*(["for i in range(n):", *("    " + x for x in lines)] if types[i.out].batched else lines))

    def _factor(self, i: Instr) -> tuple[str, bool]:
        """Write the rows of an `Outer` that a row function makes; return where they lie, and whether there is one per sample."""
        types = self.program.types
        used = i.args[1:]
        batched = any(types[a].batched for a in used)
        if i.slot == 0 and (i.op, used) in self.factors:
            return self.factors[i.op, used], batched
        if i.op.row_factor is None:
            raise Unsupported(f"{i.op.__name__} {i.label} states no row_factor")
        out = self._row_buffer(i.out, types[i.out].dim // types[i.args[0]].dim, used)
        self._call_rows(i.op.row_factor, f"{i.op.__name__}_factor", str(i.slot), [out], used)
        return out, batched

    def _pull_dense(self, i: Instr, summed: bool) -> None:
        types = self.program.types
        g, matrix = i.args
        k, n = types[g].dim, types[i.out].dim
        cot, m, out = self._read(g), self._read(matrix), self._buffer(i.out)
        if types[matrix].batched and summed:
            self._line(f"{out}[:] = np.dot({cot}.reshape(n * {k}), {tall_matrix(m, k, n)})")
            return
        if types[matrix].batched or summed:
            raise Unsupported(f"MatVec[{i.slot}] {i.label} with a matrix per sample")
        shape = f"reshape({k}, {n})"
        self._line(
            f"np.dot({cot}, {m}.{shape}, {out})" if types[g].batched else f"{out}[:] = np.dot({cot}, {m}.{shape})"
        )

    def _pull_batch(self, i: Instr, summed: bool) -> None:
        types, attrs = self.program.types, dict(i.attrs)
        g, other = i.args
        count, n = attrs["count"], attrs["n"]
        k = types[g].dim // count
        cot, m, out = self._read(g), self._read(other), self._buffer(i.out)
        if i.slot == 0 and summed and types[other].batched:
            self._line(f"np.dot({tall_matrix(cot, count, k)}.T, {tall_matrix(m, count, n)}, {out}.reshape({k}, {n}))")
        elif i.slot == 1 and not summed and types[g].batched and not types[other].batched:
            self._line(f"np.dot({tall_matrix(cot, count, k)}, {m}.reshape({k}, {n}), {tall_matrix(out, count, n)})")
        else:
            raise Unsupported(f"{i.verb} {i.op.__name__}[{i.slot}] {i.label}")

    def _pull_selection(self, i: Instr, summed: bool) -> None:
        types, attrs = self.program.types, dict(i.attrs)
        g = self._read(i.args[0])
        batched = types[i.args[0]].batched
        every = ":, " if batched else ""
        if i.op is Vectorize:
            ends = attrs["ends"]
            part = f"{g}[{every}{ends[i.slot - 1] if i.slot else 0}:{ends[i.slot]}]"
        elif i.op is Slice:
            part = g
        else:
            raise Unsupported(f"{i.op.__name__}[{i.slot}] {i.label}")
        out = self._buffer(i.out)
        where = (
            f"{out}[{every if not summed else ''}{attrs['start']}:{attrs['stop']}]" if i.op is Slice else f"{out}[:]"
        )
        self._line(f"{out}[:] = F(0)")
        if summed:
            self._line("for i in range(n):", f"    {where} += {part}[i]")
        else:
            self._line(f"{where} = {part}")

    def _pull_rows(self, i: Instr) -> None:
        types = self.program.types
        g, other = i.args
        k = types[g].dim
        n = types[other].dim // k
        cot, m, out = self._read(g), self._read(other), self._buffer(i.out)
        at = [("i, " if types[v].batched else "") for v in (i.out, g, other)]
        lines = [
            f"for a in range({k}):",
            f"    for j in range({n}):",
            f"        {out}[{at[0]}a * {n} + j] = {cot}[{at[1]}a] * {m}[{at[2]}a * {n} + j]",
        ]
        self._line(*(["for i in range(n):", *("    " + x for x in lines)] if types[i.out].batched else lines))

    def _pull_softmax(self, i: Instr) -> None:
        types = self.program.types
        g, p = (self._read(a) for a in i.args)
        out, dim = self._buffer(i.out), types[i.out].dim
        at = "i, " if types[i.out].batched else ""
        lines = [
            "s = F(0)",
            f"for j in range({dim}):",
            f"    s += {g}[{at}j] * {p}[{at}j]",
            f"for j in range({dim}):",
            f"    {out}[{at}j] = {p}[{at}j] * ({g}[{at}j] - s)",
        ]
        self._line(*(["for i in range(n):", *("    " + x for x in lines)] if types[i.out].batched else lines))
