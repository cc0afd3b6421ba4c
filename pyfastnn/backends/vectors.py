"""Formulas as vector code: the formulas of the lists, run on symbols, write LLVM instructions.

A scalar function compiled by Numba would promote the plain numbers of a formula to float64, and call
the C library one element at a time for exp and tanh. So a formula is run once instead, when it is
compiled, with a :class:`Vector` for each array: its operators and functions emit instructions on whole
vectors. Loops, and masks for the rest of a row, are written around it here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, config

from .coefficients import EXP, LOG, TANH_BOTTOM, TANH_TOP
from .formulas import Formula, respelled


def _vector_bytes() -> int:
    """Of the widest vectors of the processor that Numba compiles for."""
    if config.CPU_FEATURES is None:
        features = {name for name, there in binding.get_host_cpu_features().items() if there}
    else:
        features = {name.strip().removeprefix("+") for name in config.CPU_FEATURES.split(",")}
    return 64 if "avx512f" in features else 32 if "avx" in features else 16


VECTOR_BYTES = _vector_bytes()

INDEX = ir.IntType(64)
_ELEMENTS = {32: ir.FloatType(), 64: ir.DoubleType()}
_CONTRACT = ("contract",)  # may fuse a multiply-add, and nothing else


def element(dtype: np.dtype[Any]) -> ir.Type:
    return _ELEMENTS[8 * dtype.itemsize]


def vector_type(dtype: np.dtype[Any]) -> ir.VectorType:
    return ir.VectorType(element(dtype), VECTOR_BYTES // dtype.itemsize)


def splat(kind: ir.VectorType, number: Any) -> ir.Constant:
    return ir.Constant(kind, [number] * kind.count)


def broadcast(builder: ir.IRBuilder, kind: ir.VectorType, value: ir.Value) -> ir.Value:
    zero = ir.Constant(ir.IntType(32), 0)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, zero)
    mask = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), mask)


def mask_below(builder: ir.IRBuilder, lanes: int, count: ir.Value) -> ir.Value:
    """Lanes whose number is below the count."""
    numbers = ir.VectorType(INDEX, lanes)
    order = ir.Constant(numbers, list(range(lanes)))
    return builder.icmp_signed("<", order, broadcast(builder, numbers, count))


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _llvm_name(kind: ir.VectorType) -> str:
    return f"v{kind.count}f{32 if isinstance(kind.element, ir.FloatType) else 64}"


def load(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.VectorType, mask: ir.Value | None) -> ir.Value:
    """A vector from a pointer to an element; 0 where the mask is off."""
    size = VECTOR_BYTES // kind.count
    pointer = builder.bitcast(pointer, kind.as_pointer())
    if mask is None:
        return builder.load(pointer, align=size)
    name = f"llvm.masked.load.{_llvm_name(kind)}.p0"
    return _call(builder, name, kind, pointer, ir.Constant(ir.IntType(32), size), mask, splat(kind, 0.0))


def store(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, mask: ir.Value | None) -> None:
    kind = value.type
    size = VECTOR_BYTES // kind.count
    pointer = builder.bitcast(pointer, kind.as_pointer())
    if mask is None:
        builder.store(value, pointer, align=size)
        return
    name = f"llvm.masked.store.{_llvm_name(kind)}.p0"
    _call(builder, name, ir.VoidType(), value, pointer, ir.Constant(ir.IntType(32), size), mask)


def _arithmetic(instruction: str, *, swapped: bool = False) -> Callable[[Vector, Any], Vector]:
    def emit(self: Vector, other: Any) -> Vector:
        a, b = self.value, self.like(other)
        emitted = getattr(self.place.builder, instruction)
        return self.at_place(emitted(*((b, a) if swapped else (a, b)), flags=_CONTRACT))

    return emit


def _in_place(instruction: str) -> Callable[[Vector, Any], Vector]:
    def emit(self: Vector, other: Any) -> Vector:
        self.value = _arithmetic(instruction)(self, other).value
        return self

    return emit


def _comparison(relation: str) -> Callable[[Vector, Any], Vector]:
    def emit(self: Vector, other: Any) -> Vector:
        return self.at_place(self.place.builder.fcmp_ordered(relation, self.value, self.like(other)))

    return emit


class Vector:
    """Elements side by side, which behave as an array does in a formula. Plain numbers take its dtype."""

    def __init__(self, place: Place, value: ir.Value) -> None:
        self.place = place
        self.value = value

    def at_place(self, value: ir.Value) -> Vector:
        return Vector(self.place, value)

    def like(self, other: Any) -> ir.Value:
        return other.value if isinstance(other, Vector) else splat(self.value.type, float(other))

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.place.dtype

    __add__ = __radd__ = _arithmetic("fadd")
    __sub__, __rsub__ = _arithmetic("fsub"), _arithmetic("fsub", swapped=True)
    __mul__ = __rmul__ = _arithmetic("fmul")
    __truediv__, __rtruediv__ = _arithmetic("fdiv"), _arithmetic("fdiv", swapped=True)
    __iadd__, __isub__, __imul__ = _in_place("fadd"), _in_place("fsub"), _in_place("fmul")
    __gt__, __ge__ = _comparison(">"), _comparison(">=")
    __lt__, __le__ = _comparison("<"), _comparison("<=")

    def __pos__(self) -> Vector:
        return self.at_place(self.value)

    def __neg__(self) -> Vector:
        return self.at_place(self.place.builder.fneg(self.value))

    def __setitem__(self, everything: object, other: Any) -> None:
        self.value = self.like(other)

    def max(self, axis: int, keepdims: bool, initial: float) -> Vector:
        return self.place.reduced(self, initial, maximum)

    def sum(self, axis: int, keepdims: bool) -> Vector:
        return self.place.reduced(self, 0.0, lambda a, b: a + b)


class EndOfPassError(Exception):
    """A formula needs a reduction of its whole row before it can go on: ``combine`` over ``vector``."""

    def __init__(self, vector: Vector, neutral: float, combine: Callable[[Vector, Vector], Vector]) -> None:
        self.vector, self.neutral, self.combine = vector, neutral, combine


class Place:
    """Where a formula is written: behind a builder, in a loop over a row.

    ``known`` are the row's reductions of the passes before, in the order the formula asks for them.
    """

    def __init__(self, builder: ir.IRBuilder, dtype: np.dtype[Any], known: Sequence[ir.Value]) -> None:
        self.builder, self.dtype = builder, dtype
        self._known = iter(known)

    def reduced(self, vector: Vector, neutral: float, combine: Callable[[Vector, Vector], Vector]) -> Vector:
        value = next(self._known, None)
        if value is None:
            raise EndOfPassError(vector, neutral, combine)
        return Vector(self, value)


# The functions. NaN gives NaN, and every number its limit; results below about 1.5 times the smallest
# normal number are flushed to zero by exp. The design is that of csrc/vmath.inl.


def _bits(x: Vector) -> int:
    return 8 * x.dtype.itemsize


def _integers(x: Vector) -> ir.VectorType:
    return ir.VectorType(ir.IntType(_bits(x)), x.value.type.count)


def _as_integers(x: Vector) -> ir.Value:
    return x.place.builder.bitcast(x.value, _integers(x))


def _as_numbers(x: Vector, integers: ir.Value) -> Vector:
    return x.at_place(x.place.builder.bitcast(integers, x.value.type))


def _polynomial(coefficients: Sequence[float], x: Vector) -> Vector:
    p = x * 0 + coefficients[-1]
    for c in coefficients[-2::-1]:
        p = p * x + c
    return p


def _intrinsic(name: str, x: Vector) -> Vector:
    return x.at_place(
        _call(x.place.builder, f"llvm.{name}.{_llvm_name(x.value.type)}", x.value.type, x.value)
    )


def where(condition: Vector, a: Any, b: Any) -> Vector:
    vector = a if isinstance(a, Vector) else b
    return vector.at_place(vector.place.builder.select(condition.value, vector.like(a), vector.like(b)))


def _extremum(x: Any, y: Any, relation: str) -> Vector:
    vector = x if isinstance(x, Vector) else y
    builder, a, b = vector.place.builder, vector.like(x), vector.like(y)
    # A NaN of either is the result: a where it is one, else b where the comparison fails for b's sake.
    first = builder.or_(builder.fcmp_ordered(relation, a, b), builder.fcmp_unordered("uno", a, a))
    return vector.at_place(builder.select(first, a, b))


def maximum(x: Any, y: Any) -> Vector:
    return _extremum(x, y, ">=")


def minimum(x: Any, y: Any) -> Vector:
    return _extremum(x, y, "<=")


def absolute(x: Vector) -> Vector:
    return _intrinsic("fabs", x)


def sqrt(x: Any) -> Any:
    return _intrinsic("sqrt", x) if isinstance(x, Vector) else math.sqrt(x)


def square(x: Vector) -> Vector:
    return x * x


# By the bits of the dtype. Adding the magic number rounds to an integer, in the low bits of the sum.
_MANTISSA = {32: 23, 64: 52}
_MAGIC = {bits: 1.5 * 2.0**mantissa for bits, mantissa in _MANTISSA.items()}
_BIAS = {32: 127, 64: 1023}
_LN2 = {32: (0.693359375, -2.12194440e-4), 64: (0.693145751953125, 1.42860682030941723212e-6)}
_OVERFLOW = {32: 88.72283905, 64: 709.782712893384}
_UNDERFLOW = {32: -86.98, 64: -708.0}


def _half_power_of_two(z: Vector) -> Vector:
    """2^(k - 1) for z = k + magic: 2^128 would be infinite already."""
    bits, builder, kind = _bits(z), z.place.builder, _integers(z)
    raised = builder.add(_as_integers(z), splat(kind, _BIAS[bits] - 1))
    return _as_numbers(z, builder.shl(raised, splat(kind, _MANTISSA[bits])))


def _reduced_expm1(x: Vector) -> tuple[Vector, Vector]:
    """exp(r) - 1 and k + magic, of x = k ln 2 + r with |r| <= ln 2 / 2."""
    bits = _bits(x)
    z = x * (1 / math.log(2)) + _MAGIC[bits]
    k = z - _MAGIC[bits]
    high, low = _LN2[bits]
    r = (x - k * high) - k * low
    return _polynomial(EXP[bits], r) * (r * r) + r, z


def exp(x: Vector) -> Vector:
    bits = _bits(x)
    p, z = _reduced_expm1(x)
    p = p + 1
    y = where(x < _UNDERFLOW[bits], 0, (p + p) * _half_power_of_two(z))
    return where(x > _OVERFLOW[bits], math.inf, y)


def expm1(x: Vector) -> Vector:
    bits = _bits(x)
    p, z = _reduced_expm1(maximum(x, -50))  # where it is -1 already
    half = _half_power_of_two(z)
    y = half * p + (half - 0.5)
    return where(x > _OVERFLOW[bits], math.inf, y + y)


def log(x: Vector) -> Vector:
    bits, builder, kind = _bits(x), x.place.builder, _integers(x)
    mantissa, bias = _MANTISSA[bits], 1 << (bits - _MANTISSA[bits] - 2)
    subnormal = x < float(np.finfo(x.dtype).tiny)
    scaled = where(subnormal, x * 2.0**mantissa, x)
    # x = 2^k m with 1/sqrt(2) <= m < sqrt(2). Biased, so that the shift is of a number that is not
    # negative and the sum with the magic number stays exact.
    root = int(np.array(math.sqrt(0.5), x.dtype).view(f"i{bits // 8}"))
    number = _as_integers(scaled)
    shifted = builder.add(number, splat(kind, (bias << mantissa) - root))
    exponent = builder.ashr(shifted, splat(kind, mantissa))
    power = builder.shl(builder.sub(exponent, splat(kind, bias)), splat(kind, mantissa))
    m = _as_numbers(x, builder.sub(number, power))
    magic = int(np.array(_MAGIC[bits], x.dtype).view(f"i{bits // 8}"))
    k = _as_numbers(x, builder.add(exponent, splat(kind, magic))) - (_MAGIC[bits] + bias)
    k = where(subnormal, k - mantissa, k)
    s = (m - 1) / (m + 1)
    u = s * s
    high, low = _LN2[bits]
    y = k * high + (s * u * _polynomial(LOG[bits], u) + (k * low + (s + s)))
    # Infinity and NaN stay; zero and negative numbers.
    return where(x > 0, where(x < math.inf, y, x), where(x < 0, math.nan, where(x <= 0, -math.inf, x)))


def log1p(x: Vector) -> Vector:
    u = x + 1
    y = log(u)
    # What the sum lost, in the first order.
    corrected = y + (x - (u - 1)) / u
    return where(u < math.inf, where(u > 0, corrected, y), u)


def _tanh_quotient(x: Vector) -> Vector:
    u = x * x
    t = x * _polynomial(TANH_TOP[32], u) / _polynomial(TANH_BOTTOM[32], u)
    # Past 9.01 it is one; before, the quotient may exceed one by a rounding error.
    bounded = minimum(maximum(t, -1), 1)
    return where(x > 9.01, 1, where(x < -9.01, -1, bounded))


def _tanh_exponential(x: Vector) -> Vector:
    # expm1(2 |x|) / (expm1(2 |x|) + 2): no cancellation near zero. Past 20 it rounds to one.
    u = minimum(absolute(x), 20)
    e = expm1(u + u)
    t = e / (e + 2)
    return where(x < 0, -t, t)


def tanh(x: Vector) -> Vector:
    return {32: _tanh_quotient, 64: _tanh_exponential}[_bits(x)](x)


# What formulas find under the name np.
_SPELLING = SimpleNamespace(
    abs=absolute, exp=exp, expm1=expm1, finfo=np.finfo, inf=math.inf, log=log, log1p=log1p, maximum=maximum,
    minimum=minimum, sqrt=sqrt, square=square, tanh=tanh, where=where,
)  # fmt: skip


def spelled(formula: Formula) -> Formula:
    """The formula in vectors."""
    return respelled(formula, _SPELLING)
