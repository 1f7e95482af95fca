"""Formulas -> LLVM: a loop over numbers, with exp, log and tanh as polynomials, so that the compiler makes vector code of it.

A formula is run once on `Number`s that write down what is done to them. No graph is compiled, only formulas.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from flowgrad.formulas import parsed

from .table import MOVED

# Operands of a loop beside its result; its attributes are numbers that are read once.
OPERANDS = 5
LONG, BYTE = ir.IntType(64), ir.IntType(8)


def _operators(name: str) -> tuple[Any, Any]:
    def do(a: Any, b: Any, whose: Any) -> Any:
        like = next((x for x in (a, b) if isinstance(x, Number) and x.type != ir.IntType(1)), whose.real())
        return whose.new(getattr(whose.builder, name)(like.of(a).value, like.of(b).value))

    return lambda a, b: do(a, b, a), lambda b, a: do(a, b, b)


def _comparison(sign: str) -> Any:
    def compare(a: Any, b: Any) -> Any:
        write = a.builder.fcmp_unordered if sign == "!=" else a.builder.fcmp_ordered
        return a.new(write(sign, a.value, a.of(b).value))

    return compare


class Number:
    """A number, or a mask of one bit, of a loop that is being written."""

    def __init__(self, builder: ir.IRBuilder, value: Any):
        self.builder, self.value = builder, value

    def new(self, value: Any) -> Number:
        """Return a number of the same loop."""
        return Number(self.builder, value)

    @property
    def type(self) -> Any:
        """LLVM's type of it."""
        return self.value.type

    def of(self, other: Any) -> Number:
        """Return `other` as a number of this one's type; a mask stands for ones and zeros."""
        if not isinstance(other, Number):
            return self.new(ir.Constant(self.type, other))
        if other.type == ir.IntType(1):
            return self.new(self.builder.uitofp(other.value, self.type))
        return other

    def call(self, name: str, *others: Any) -> Number:
        """Call one of LLVM's functions on this number and others."""
        types = [self.type] * (1 + len(others))
        function = self.builder.module.declare_intrinsic(f"llvm.{name}", [self.type], ir.FunctionType(self.type, types))
        return self.new(self.builder.call(function, [self.value, *(self.of(x).value for x in others)]))

    def bits(self) -> Any:
        """Return the bits as an integer."""
        return self.builder.bitcast(self.value, ir.IntType(64 if self.type == ir.DoubleType() else 32))

    def real(self) -> Number:
        """Return a mask as ones and zeros."""
        if self.type != ir.IntType(1):
            return self
        return self.new(self.builder.uitofp(self.value, self.builder.function.args[0].type.pointee))

    __add__, __radd__ = _operators("fadd")
    __sub__, __rsub__ = _operators("fsub")
    __mul__, __rmul__ = _operators("fmul")
    __truediv__, __rtruediv__ = _operators("fdiv")
    __lt__, __le__, __gt__, __ge__ = map(_comparison, ("<", "<=", ">", ">="))
    __eq__, __ne__ = map(_comparison, ("==", "!="))

    def __neg__(self) -> Number:
        return self.new(self.builder.fneg(self.real().value))

    def __pow__(self, power: Any) -> Number:
        if isinstance(power, int) and 0 < power <= 8:
            result = self
            for _ in range(power - 1):
                result = result * self
            return result
        return self.call("pow", power)

    def __rpow__(self, base: Any) -> Number:
        return self.of(base).call("pow", self)


def where(mask: Number, a: Any, b: Any) -> Number:
    """Return one or the other."""
    like = a if isinstance(a, Number) else b
    return like.new(like.builder.select(mask.value, like.of(a).value, like.of(b).value))


def maximum(a: Number, b: Any) -> Number:
    """Return the larger; what is not a number goes through, as in NumPy."""
    return where(a != a, a, where(a > b, a, b))


def minimum(a: Number, b: Any) -> Number:
    """Return the smaller; what is not a number goes through, as in NumPy."""
    return where(a != a, a, where(a < b, a, b))


def polynomial(x: Number, coefficients: Sequence[float]) -> Number:
    """Return the sum of ``coefficients[k] * x**k``, by Horner's rule."""
    result = x.of(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result.call("fma", x, c)
    return result


class _Format:
    """Constants of a floating-point format: mantissa, bias, and a number that rounds to integers what is added to it."""

    def __init__(self, x: Number):
        self.double = x.type == ir.DoubleType()
        self.mantissa, self.bias = (52, 1023) if self.double else (23, 127)
        self.magic = 1.5 * 2.0**self.mantissa
        # ln 2 in two parts, the first with so few bits that a multiple of it is exact.
        self.high, self.low = (
            (0.6931471803691238, 1.9082149292705877e-10) if self.double else (0.693359375, -2.12194440e-4)
        )
        self.terms = 13 if self.double else 7


def _power_of_two(k: Number) -> Number:
    """Return ``2**k`` for an integer between the smallest and the largest exponent."""
    f = _Format(k)
    integer = ir.IntType(64 if f.double else 32)
    b = k.builder
    bits = b.shl(b.add((k + f.magic).bits(), ir.Constant(integer, f.bias)), ir.Constant(integer, f.mantissa))
    return k.new(b.bitcast(bits, k.type))


def _reduced(x: Number) -> tuple[Number, Number, Number]:
    """Return k, r and ``exp(r) - 1 - r`` for ``x = k ln 2 + r``, by the terms of the series, with what r lost to rounding.

    See W. J. Cody and W. Waite, *Software Manual for the Elementary Functions*, Prentice-Hall 1980, chapter 6.
    """
    f = _Format(x)
    k = (x * (1 / math.log(2)) + f.magic) - f.magic
    high = k.call("fma", -f.high, x)
    r = k.call("fma", -f.low, high)
    lost = k.call("fma", -f.low, high - r)
    p = polynomial(r, [1 / math.factorial(n + 2) for n in range(f.terms - 1)])
    return k, r, (r * r).call("fma", p, lost)


def _clamped(x: Number) -> Number:
    least, most = (-750.0, 710.0) if _Format(x).double else (-105.0, 89.0)
    return where(x < least, least, where(x > most, most, x))


def exp(x: Number) -> Number:
    """Return the exponential function."""
    k, r, rest = _reduced(_clamped(x))
    first = 1.0 + r
    mantissa = first + (rest + (r - (first - 1.0)))
    half = (k * 0.5 + _Format(x).magic) - _Format(x).magic  # in two steps: 2**k itself may not be a normal number
    return mantissa * _power_of_two(half) * _power_of_two(k - half)


def expm1(x: Number) -> Number:
    """Return ``exp(x) - 1``, exact near 0."""
    k, r, rest = _reduced(_clamped(x))
    half = (k * 0.5 + _Format(x).magic) - _Format(x).magic
    first, second = _power_of_two(half), _power_of_two(k - half)
    power = first * second
    whole, part = power - 1.0, power * r  # both exact
    total = whole + part
    near = total + (power * rest + (part - (total - whole)))
    large = (r + rest) * first * second + whole
    return where(k.call("fabs") < 32.0, near, large)


LOG = (
    0.6666666666666735130, 0.3999999999940941908, 0.2857142874366239149, 0.2222219843214978396,
    0.1818357216161805012, 0.1531383769920937332, 0.1479819860511658591,
)  # fmt: skip


def log(x: Number) -> Number:
    """Return the natural logarithm: FDLIBM's ``e_log.c`` (Sun Microsystems 1993)."""
    f, b = _Format(x), x.builder
    integer = ir.IntType(64 if f.double else 32)
    tiny = x < float(np.finfo(np.float64 if f.double else np.float32).tiny)
    shift = f.mantissa + 2
    y = where(tiny, x * 2.0**shift, x)
    # the exponent that brings the mantissa into [sqrt(1/2), sqrt(2))
    root = int(np.float64(math.sqrt(0.5)).view(np.int64) if f.double else np.float32(math.sqrt(0.5)).view(np.int32))
    moved = b.sub(y.bits(), ir.Constant(integer, root))
    exponent = b.ashr(moved, ir.Constant(integer, f.mantissa))
    m = x.new(b.bitcast(b.sub(y.bits(), b.shl(exponent, ir.Constant(integer, f.mantissa))), x.type))
    k = x.new(b.sitofp(exponent, x.type)) - where(tiny, float(shift), x.of(0.0))
    t = m - 1.0
    s = t / (t + 2.0)
    z = s * s
    half = 0.5 * t * t
    rest = s * (half + z * polynomial(z, LOG if f.double else LOG[:4])) + k * f.low
    result = k * f.high - ((half - rest) - t)
    result = where(x == math.inf, x, result)
    return where(x > 0.0, result, where(x == 0.0, -math.inf, x.of(math.nan)))


def log1p(x: Number) -> Number:
    """Return ``log(1 + x)``, exact near 0."""
    u = x + 1.0
    return where((u == 1.0), x, where(u == math.inf, x, log(u) + (x - (u - 1.0)) / u))


def tanh(x: Number) -> Number:
    """Return the hyperbolic tangent."""
    e = expm1(2.0 * minimum(x.call("fabs"), 20.0))
    below = e + 2.0
    y = e / below
    if _Format(x).double:  # what the sum lost, and the quotient
        lost = where(e < 2.0, (2.0 - below) + e, (e - below) + 2.0)
        y = y + ((-y).call("fma", below, e) - y * lost) / below
    return y.call("copysign", x)


def sinh(x: Number) -> Number:
    """Return the hyperbolic sine."""
    a = x.call("fabs")
    e = expm1(a)
    return (0.5 * where(e == math.inf, e, e + e / (e + 1.0))).call("copysign", x)


def cosh(x: Number) -> Number:
    """Return the hyperbolic cosine."""
    e = exp(x.call("fabs"))
    return 0.5 * e + 0.5 / e


def sign(x: Number) -> Number:
    """Return 1, 0 or -1."""
    return where(x > 0.0, 1.0, where(x < 0.0, -1.0, x))


def _libm(name: str) -> Callable[[Number], Number]:
    return lambda x: x.call(name)


def arctan(x: Number) -> Number:
    """Return the inverse tangent, by the C library."""
    name, module = "atan" if _Format(x).double else "atanf", x.builder.module
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(x.type, [x.type]), name)
    return x.new(x.builder.call(function, [x.value]))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": exp, "expm1": expm1, "log": log, "log1p": log1p, "tanh": tanh, "sinh": sinh, "cosh": cosh, "sign": sign,
    "abs": _libm("fabs"), "sqrt": _libm("sqrt"), "sin": _libm("sin"), "cos": _libm("cos"), "arctan": arctan,
    "maximum": maximum, "minimum": minimum, "where": where,
}  # fmt: skip


# Those of one number that are polynomials.
VECTORS = ("exp", "expm1", "log", "log1p", "tanh", "sinh", "cosh")
# Loops that no formula says, by name.
LOOPS = (":dot", ":gather", ":scatter", ":loss", ":turn")


class _Constants(ast.NodeTransformer):
    """Makes numbers of constants; exponents stay what they are."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if isinstance(node.op, ast.Pow) and isinstance(node.right, ast.Constant):
            return ast.BinOp(self.visit(node.left), node.op, node.right)
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Call(ast.Name("number", ast.Load()), [node], [])


def write_loop(
    module: ir.Module, name: str, text: str, operands: Sequence[str], attributes: Sequence[str], dtype: Any
) -> Any:
    """Write ``void name(T* out, T* x0 .. x4, T* attributes, i64 n)``: ``out[j] = text`` for each j, or one of `LOOPS`.

    A formula may name ``out``, what was there before. An update is assignments, a line each, to `MOVED` arrays, which are the
    operands and do not overlap; that to ``g`` is not stored.
    """
    update = " = " in text
    real = ir.DoubleType() if np.dtype(dtype) == np.float64 else ir.FloatType()
    pointer = real.as_pointer()
    count = MOVED if update else OPERANDS + 1
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer] * (count + 1) + [LONG]), name)
    out, *inputs, constants, n = function.args
    start, loop, end = (function.append_basic_block(x) for x in ("start", "loop", "end"))
    b = ir.IRBuilder(start)
    zero, one = ir.Constant(LONG, 0), ir.Constant(LONG, 1)
    read = [Number(b, b.load(b.gep(constants, [ir.Constant(LONG, k)]))) for k in range(len(attributes))]
    b.cbranch(b.icmp_signed(">", n, zero), loop, end)
    b.position_at_end(loop)
    j = b.phi(LONG)
    j.add_incoming(zero, start)

    def entry(k: int, index: Any = j) -> Number:
        return Number(b, b.load(b.gep(inputs[k], [index])))

    total = None
    if text == ":turn":  # every so many numbers
        b.store(entry(0, b.mul(j, b.ptrtoint(inputs[1], LONG))).value, b.gep(out, [j]))
    elif text in (":gather", ":scatter"):
        position = b.load(b.gep(b.bitcast(inputs[1], LONG.as_pointer()), [j]))
        if text == ":gather":
            b.store(entry(0, position).value, b.gep(out, [j]))
        else:
            place = b.gep(out, [position])
            b.store((Number(b, b.load(place)) + entry(0)).value, place)
    elif text in (":dot", ":loss"):
        sum_type = ir.DoubleType() if text == ":loss" else real
        total = b.phi(sum_type)
        total.add_incoming(ir.Constant(sum_type, 0.0), start)
        term = (entry(0) * entry(1)).value if text == ":dot" else entry(0).value
        term = b.fpext(term, sum_type) if sum_type != real else term
        # Any order of the terms will do: the compiler makes vectors of them.
        added = b.fadd(total, term, flags=("reassoc", "contract") if text == ":dot" else ())
        total.add_incoming(added, loop)
    else:
        at = {a: b.gep(place, [j]) for a, place in zip(operands if update else ("out", *operands), function.args)}
        names = dict(zip(attributes, read)) | {a: Number(b, b.load(place)) for a, place in at.items()}
        for target, formula in (line.split(" = ") for line in (text if update else f"out = {text}").split("\n")):
            # A formula comes from a class, and was checked by `formulas.formula`; no file holds any.
            tree = ast.fix_missing_locations(_Constants().visit(parsed(formula)))
            scope = {**FUNCTIONS, **names, "number": names[target].of}
            names[target] = names[target].of(eval(compile(tree, "<formula>", "eval"), {"__builtins__": {}}, scope))
            if target != "g":
                b.store(names[target].value, at[target])
    for place in function.args[:-1] if update else ():
        place.add_attribute("noalias")
    for i in loop.instructions if update else ():  # to multiply by an estimate of a reciprocal is twice as fast
        i.flags += ["arcp"] * (i.opname in ("fadd", "fsub", "fmul", "fdiv"))
    after = b.add(j, one)
    j.add_incoming(after, loop)
    b.cbranch(b.icmp_signed("<", after, n), loop, end)
    b.position_at_end(end)
    if total is not None:
        result = b.phi(total.type)
        result.add_incoming(ir.Constant(total.type, 0.0), start)
        result.add_incoming(added, loop)
        b.store(result, b.bitcast(out, total.type.as_pointer()))
    b.ret_void()
    return function
