"""The forward part of generated text: how each kind of value is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowgrad.formulas import OPERANDS, formula
from flowgrad.op import Op
from flowgrad.ops import BatchMatVec, Dot, Gather, MatVec, RowDot, Slice, Vectorize
from flowgrad.ops.linear import FEW_SAMPLES, LARGE_MATRIX
from flowgrad.program import Instr, Program

from .numba_loops import LoopWriter, Unsupported


class ValueWriter(LoopWriter):
    """Writes ``apply`` instructions.

    Attributes
    ----------
    factors : dict
        Where the rows of an `Outer` lie that were written together with the value, by op and operands.
    """

    def __init__(self, program: Program):
        super().__init__(program)
        self.wanted = {(i.op, i.args[1:]) for i in program.instrs if i.verb.startswith("pull") and not i.slot}
        self.factors: dict[tuple[type[Op], tuple[int, ...]], str] = {}

    def _apply(self, i: Instr) -> None:
        types, attrs = self.program.types, dict(i.attrs)
        batched = types[i.out].batched
        if i.op.formula is not None:
            if {types[a].dim for a in i.args} != {types[i.out].dim}:
                raise Unsupported(f"{i.op.__name__} {i.label}, whose operands are not as long as its value,")
            self._elementwise(i.out, stated(i, i.op.formula, {k: f"{{{k}}}" for k in range(len(i.args))}), list(i.args))
            return
        args = [self._read(a) for a in i.args]
        if i.op is Slice and not batched:
            self.name[i.out] = f"v{i.out}"
            self._line(f"v{i.out} = {args[0]}[{attrs['start']}:{attrs['stop']}]")
            return
        out = self._buffer(i.out)
        if i.op is Slice:
            self._line(f"{out}[:] = {args[0]}[:, {attrs['start']}:{attrs['stop']}]")
        elif i.op is Vectorize:
            start = 0
            for a, end in zip(args, attrs["ends"]):
                self._line(f"{out}[{':, ' if batched else ''}{start}:{end}] = {a}")
                start = end
        elif i.op is Gather and len(attrs["index"]) <= 4096:
            self._gather(out, args[0], attrs["index"], batched)
        elif i.op in (MatVec, Dot):
            self._matvec(i, out, args, attrs.get("n", types[i.args[0]].dim))
        elif i.op is BatchMatVec and not types[i.args[0]].batched and batched:
            k, n = types[i.args[0]].dim // attrs["n"], attrs["n"]
            tall, wide = tall_matrix(out, attrs["count"], k), tall_matrix(args[1], attrs["count"], n)
            self._line(f"np.dot({wide}, {args[0]}.reshape({k}, {n}).T, {tall})")
        elif i.op is RowDot:
            self._row_dot(i, attrs["rows"])
        elif i.op.row_value is not None:
            self._rows(i, i.op)
        else:
            raise Unsupported(f"{i.op.__name__} {i.label}")

    def _gather(self, out: str, a: str, index: tuple[int, ...], batched: bool) -> None:
        where = f"({', '.join(map(str, index))},)"
        entry = "i, " if batched else ""
        lines = [f"for j, k in enumerate({where}):", f"    {out}[{entry}j] = {a}[{entry}k]"]
        self._line(*(["for i in range(n):", *("    " + x for x in lines)] if batched else lines))

    def _matvec(self, i: Instr, out: str, args: list[str], n: int) -> None:
        types = self.program.types
        matrix, vector = i.args
        if i.op is Dot and types[matrix].batched and not types[vector].batched:
            matrix, vector = vector, matrix
            args = args[::-1]
        k = types[i.out].dim
        if types[matrix].batched and not types[vector].batched:
            self._line(f"np.dot({tall_matrix(args[0], k, n)}, {args[1]}, {out}.reshape(n * {k}))")
        elif types[matrix].batched:
            self._row_dots(out, args, k, n)
        elif types[vector].batched:
            self._matrix_product(out, args, k, n)
        else:
            self._line(f"{out}[:] = np.dot({args[0]}.reshape({k}, {n}), {args[1]})")

    def _matrix_product(self, out: str, args: list[str], k: int, n: int) -> None:
        """Write the samples' products with one matrix, for few samples as the transpose: BLAS is up to 1.5 times faster so."""
        matrix = f"{args[0]}.reshape({k}, {n})"
        plain = f"np.dot({args[1]}, {matrix}.T, {out})"
        if k * n < LARGE_MATRIX:
            self._line(plain)
            return
        turned = f"m{len(self.out.buffers)}"
        self.out.buffers.append((turned, (f"{k} * n",)))
        self._line(
            f"if n <= {FEW_SAMPLES}:",
            f"    np.dot({matrix}, {args[1]}.T, {turned}[:{k} * n].reshape({k}, n))",
            "    for i in range(n):",
            f"        for j in range({k}):",
            f"            {out.removesuffix('[:n]')}[i, j] = {turned}[j * n + i]",
            "else:",
            f"    {plain}",
        )

    def _row_dots(self, out: str, args: list[str], k: int, n: int) -> None:
        self._line(
            "for i in range(n):",
            f"    for r in range({k}):",
            "        s = F(0)",
            f"        for j in range({n}):",
            f"            s += {args[0]}[i, r * {n} + j] * {args[1]}[i, j]",
            f"        {out}[i, r] = s",
        )

    def _row_dot(self, i: Instr, rows: int) -> None:
        types = self.program.types
        batched = types[i.out].batched
        n = types[i.args[0]].dim // rows
        a, b = (f"{self.name[v]}[{'i, ' if types[v].batched else ''}r * {n} + j]" for v in i.args)
        lines = [
            f"for r in range({rows}):",
            "    s = F(0)",
            f"    for j in range({n}):",
            f"        s += {a} * {b}",
            f"    {self.name[i.out]}[{'i, ' if batched else ''}r] = s",
        ]
        self._line(*(["for i in range(n):", *("    " + x for x in lines)] if batched else lines))

    def _rows(self, i: Instr, op: Any) -> None:
        """Call a row function for each sample; the factor of slot 0 is made in the same pass if it is wanted and the op can."""
        if i.attrs and not op.__module__.startswith("flowgrad."):
            raise Unsupported(f"{op.__name__} {i.label}, whose attributes no row function gets,")
        if op.row_both is not None and (i.op, i.args) in self.wanted:
            both = self._row_buffer(i.out, self.program.types[i.args[0]].dim, i.args)
            self.factors[i.op, i.args] = both
            self._call_rows(op.row_both, f"{i.op.__name__}_both", "", [self._buffer(i.out), both], i.args)
        else:
            self._call_rows(op.row_value, f"{i.op.__name__}_value", "", [self._buffer(i.out)], i.args)

    def _row_buffer(self, var: int, dim: int, args: Sequence[int]) -> str:
        batched = any(self.program.types[a].batched for a in args)
        self.out.buffers.append((f"f{var}", ("n", str(dim)) if batched else (str(dim),)))
        return f"f{var}[:n]" if batched else f"f{var}"

    def _call_rows(
        self, function: Callable[..., None], name: str, first: str, targets: list[str], args: Sequence[int]
    ) -> None:
        others = self.out.functions
        if others.get(name, function) is not function:  # ops of two modules may have one name
            name = next((known for known, other in others.items() if other is function), f"{name}{len(others)}")
        others[name] = function
        types = self.program.types
        batched = any(types[a].batched for a in args)
        read = [self._read(a) + ("[i]" if types[a].batched else "") for a in args]
        written = [target + ("[i]" if batched else "") for target in targets]
        call = f"{name}({', '.join(filter(None, [first, *written, *read]))})"
        self._line(*(["for i in range(n):", "    " + call] if batched else [call]))


def tall_matrix(batched: str, count: int, n: int) -> str:
    """Return batched values of `count` vectors each as one matrix with a vector per row."""
    return f"{batched}.reshape(n * {count}, {n})"


def stated(i: Instr, text: str, entries: Mapping[int, str]) -> str:
    """Return an op's formula with what an instruction reads in its places: by slot, -1 for the value.

    Raises
    ------
    Unsupported
        If it names something else.
    """
    try:
        names = {"y" if k < 0 else OPERANDS[k]: entry for k, entry in entries.items()}
        return formula(text, i.arity or len(i.args)).scalar(names, i.attrs)
    except KeyError as error:
        raise Unsupported(f"{i.op.__name__} {i.label}, whose formula {text!r} names {error},") from None
