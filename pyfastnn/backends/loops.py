"""What compiled code is made of: formulas over arrays, the tile of a product, pointers, calls by address.

Numba intrinsics, for use in functions that it compiles. Pointers are to elements and carry the dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import as_dtype, from_dtype

from .formulas import Formula
from .vectors import (
    INDEX,
    VECTOR_BYTES,
    EndOfPassError,
    Place,
    Vector,
    broadcast,
    element,
    load,
    mask_below,
    splat,
    store,
    vector_type,
)

Body = Callable[[ir.Value, "ir.Value | None"], None]

# Of a tile: two vectors wide; more rows where there are 32 registers, not 16.
TILE_ROWS = 12 if VECTOR_BYTES == 64 else 6
TILE_VECTORS = 2


def _sweep(builder: ir.IRBuilder, count: ir.Value, lanes: int, body: Body) -> None:
    """``body(start, mask)`` for every whole vector of ``count`` elements, and under a mask for the rest."""
    width = ir.Constant(INDEX, lanes)
    with cgutils.for_range(builder, builder.sdiv(count, width)) as loop:
        body(builder.mul(loop.index, width), None)
    rest = builder.srem(count, width)
    with builder.if_then(builder.icmp_signed(">", rest, ir.Constant(INDEX, 0))):
        body(builder.sub(count, rest), mask_below(builder, lanes, rest))


def _folded(builder: ir.IRBuilder, value: ir.Value, combine: Callable[..., ir.Value]) -> ir.Value:
    """The lanes combined, by halves, which leaves the same order to every vector of that length."""
    count = value.type.count
    while count > 1:
        count //= 2
        indices = ir.VectorType(ir.IntType(32), count)
        low, high = (ir.Constant(indices, list(range(start, start + count))) for start in (0, count))
        undefined = ir.Constant(value.type, ir.Undefined)
        value = combine(*(builder.shuffle_vector(value, undefined, half) for half in (low, high)))
    return builder.extract_element(value, ir.Constant(INDEX, 0))


class _Row:
    """The code of a formula over one row: arrays are pointers to its elements, numbers vectors."""

    def __init__(
        self,
        builder: ir.IRBuilder,
        dtype: np.dtype[Any],
        formula: Formula,
        arrays: list[ir.Value],
        numbers: list[ir.Value],
        count: ir.Value,
    ) -> None:
        self.builder, self.dtype, self.formula = builder, dtype, formula
        self.arrays, self.numbers, self.count = arrays, numbers, count
        self.kind = vector_type(dtype)
        self._known: list[ir.Value] = []

    def _at(self, start: ir.Value, mask: ir.Value | None) -> tuple[list[ir.Value], list[Vector]]:
        """Pointers to the elements from ``start`` on, and those of the arrays."""
        place = Place(self.builder, self.dtype, self._known)
        pointers = [self.builder.gep(array, [start]) for array in self.arrays]
        return pointers, [Vector(place, load(self.builder, each, self.kind, mask)) for each in pointers]

    def _run(self, start: ir.Value, mask: ir.Value | None) -> None:
        pointers, arrays = self._at(start, mask)
        before = [array.value for array in arrays]
        result = self.formula(*arrays, *(Vector(arrays[0].place, number) for number in self.numbers))
        if result is not None:
            arrays[0].value = result.value
        for pointer, array, old in zip(pointers, arrays, before, strict=True):
            if array.value is not old:
                store(self.builder, array.value, pointer, mask)

    def assign(self) -> None:
        """The first array receives the result, or each array what the formula has done to it in place."""
        while (reduction := self._assign_or_reduce()) is not None:
            self._known.append(reduction)

    def _assign_or_reduce(self) -> ir.Value | None:
        """One pass: the assignment, or the reduction which the formula needs before."""
        builder, kind, before = self.builder, self.kind, self.builder.block
        total = cgutils.alloca_once(builder, kind)
        ends: list[EndOfPassError] = []

        def body(start: ir.Value, mask: ir.Value | None) -> None:
            try:
                self._run(start, mask)
            except EndOfPassError as end:
                vector, place = end.vector, end.vector.place
                if mask is not None:
                    neutral = splat(kind, end.neutral)
                    vector = Vector(place, builder.select(mask, vector.value, neutral))
                builder.store(end.combine(Vector(place, builder.load(total)), vector).value, total)
                ends.append(end)

        _sweep(builder, self.count, kind.count, body)
        if not ends:
            return None
        end = ends[-1]
        with builder.goto_block(before):
            builder.store(splat(kind, end.neutral), total)

        def combine(a: ir.Value, b: ir.Value) -> ir.Value:
            return end.combine(Vector(end.vector.place, a), Vector(end.vector.place, b)).value

        return broadcast(builder, kind, _folded(builder, builder.load(total), combine))

    def total(self) -> ir.Value:
        """The sum of the formula, in float64."""
        builder, kind = self.builder, self.kind
        wide = ir.VectorType(ir.DoubleType(), kind.count)
        total = cgutils.alloca_once(builder, wide)
        builder.store(splat(wide, 0.0), total)

        def body(start: ir.Value, mask: ir.Value | None) -> None:
            value = self.formula(*self._at(start, mask)[1]).value
            if kind != wide:
                value = builder.fpext(value, wide)
            if mask is not None:
                value = builder.select(mask, value, splat(wide, 0.0))
            builder.store(builder.fadd(builder.load(total), value), total)

        _sweep(builder, self.count, kind.count, body)
        return _folded(builder, builder.load(total), builder.fadd)


def formula_loop(
    formula: Formula, arrays: int, numbers: int, *, rowwise: bool = False, total: bool = False
) -> Any:
    """An intrinsic that runs a formula, spelled in vectors, over arrays (rows, columns).

    ``loop(operands, numbers, rows, columns)`` takes the addresses of the arrays and the numbers, by
    pointers. It assigns as :meth:`_Row.assign` says and returns 0, or returns the total.
    """

    @intrinsic
    def loop(_: Any, operands: Any, scalars: Any, rows: Any, columns: Any) -> Any:
        dtype = as_dtype(scalars.dtype)

        def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
            operand, scalar, rows, columns = arguments
            pointers = [
                builder.inttoptr(builder.load(cgutils.gep(builder, operand, i)), element(dtype).as_pointer())
                for i in range(arrays)
            ]
            given = [
                broadcast(builder, vector_type(dtype), builder.load(cgutils.gep(builder, scalar, i)))
                for i in range(numbers)
            ]
            if total:
                return _Row(builder, dtype, formula, pointers, given, builder.mul(rows, columns)).total()
            if not rowwise:
                rows, columns = ir.Constant(INDEX, 1), builder.mul(rows, columns)
            with cgutils.for_range(builder, rows) as each:
                row = builder.mul(each.index, columns)
                moved = [builder.gep(pointer, [row]) for pointer in pointers]
                _Row(builder, dtype, formula, moved, given, columns).assign()
            return ir.Constant(ir.DoubleType(), 0.0)

        return types.float64(operands, scalars, rows, columns), generate

    return loop


def loop_signature(dtype: np.dtype[Any]) -> Any:
    """Of a compiled function that runs such a loop."""
    return types.float64(types.CPointer(types.intp), _pointer_to(dtype), types.intp, types.intp)


def product_signature(dtype: np.dtype[Any]) -> Any:
    """Of ``fused.product``."""
    p, n = _pointer_to(dtype), types.intp
    return types.float64(n, n, n, p, n, n, p, p, n, p)


def _pointer_to(dtype: np.dtype[Any]) -> Any:
    return types.CPointer(from_dtype(dtype))


@intrinsic
def call(_: Any, address: Any, operands: Any, numbers: Any, rows: Any, columns: Any) -> Any:
    """Call the compiled loop at an address; operands are a tuple of pointers."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        address, given, numbers, rows, columns = arguments
        pointers = cgutils.unpack_tuple(builder, given)
        table = cgutils.alloca_once(builder, INDEX, len(pointers))
        for i, pointer in enumerate(pointers):
            builder.store(builder.ptrtoint(pointer, INDEX), cgutils.gep(builder, table, i))
        return _call_by_address(context, builder, address, (table, numbers, rows, columns))

    return types.float64(address, operands, numbers, rows, columns), generate


@intrinsic
def call_listed(_: Any, address: Any, operands: Any, numbers: Any, rows: Any, columns: Any) -> Any:
    """Call the compiled loop at an address; operands point to a list of addresses."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _call_by_address(context, builder, arguments[0], arguments[1:])

    return types.float64(address, operands, numbers, rows, columns), generate


@intrinsic
def call_product(_: Any, address: Any, *given: Any) -> Any:
    """Call the compiled ``fused.product`` at an address."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _call_by_address(context, builder, arguments[0], cgutils.unpack_tuple(builder, arguments[1]))

    return types.float64(address, types.Tuple(given)), generate


def _call_by_address(context: Any, builder: ir.IRBuilder, address: ir.Value, arguments: Any) -> ir.Value:
    signature = ir.FunctionType(ir.DoubleType(), [argument.type for argument in arguments])
    return builder.call(builder.inttoptr(address, signature.as_pointer()), arguments)


@intrinsic
def pointer(_: Any, array: Any, offset: Any) -> Any:
    """To an element of a contiguous array."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return types.CPointer(array.dtype)(array, offset), generate


@intrinsic
def moved(_: Any, start: Any, offset: Any) -> Any:
    """A pointer some elements on."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.gep(arguments[0], [arguments[1]])

    return start(start, offset), generate


@intrinsic
def copy(_: Any, target: Any, source: Any, count: Any) -> Any:
    """``count`` elements from one pointer to another."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        size = as_dtype(signature.args[0].dtype).itemsize
        cgutils.raw_memcpy(builder, *arguments, size)
        return context.get_dummy_value()

    return types.void(target, source, count), generate


@intrinsic
def lanes(_: Any, start: Any) -> Any:
    """How many elements of a pointer's dtype a vector has."""
    count = VECTOR_BYTES // as_dtype(start.dtype).itemsize

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return ir.Constant(INDEX, count)

    return types.intp(start), generate


@intrinsic
def tile(
    _: Any,
    rows: Any,
    columns: Any,
    depth: Any,
    a: Any,
    a_row: Any,
    a_step: Any,
    b: Any,
    start: Any,
    start_row: Any,
    c: Any,
    width: Any,
) -> Any:
    """c = start + a b, for up to TILE_ROWS rows and TILE_VECTORS vectors of columns.

    a (rows, depth) by steps between its rows and between its columns; b (depth, columns), c and start
    by pointers to their corners, with a row of b and c each ``width`` on, of start each ``start_row``.
    Every element is summed in the order of depth, whatever the tile.
    """
    dtype = as_dtype(c.dtype)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        rows, columns, *rest = arguments
        lanes = vector_type(dtype).count
        whole = builder.icmp_signed(">=", columns, ir.Constant(INDEX, TILE_VECTORS * lanes))
        narrow = builder.icmp_signed("<=", columns, ir.Constant(INDEX, lanes))
        with builder.if_else(whole) as (then, otherwise):
            with then:
                _tiles(builder, dtype, rows, TILE_VECTORS, None, rest)
            with otherwise, builder.if_else(narrow) as (one, several):
                with one:
                    _tiles(builder, dtype, rows, 1, columns, rest)
                with several:
                    _tiles(builder, dtype, rows, TILE_VECTORS, columns, rest)
        return context.get_dummy_value()

    given = rows, columns, depth, a, a_row, a_step, b, start, start_row, c, width
    return types.void(*given), generate


def _tiles(
    builder: ir.IRBuilder,
    dtype: np.dtype[Any],
    rows: ir.Value,
    vectors: int,
    columns: ir.Value | None,
    rest: list[ir.Value],
) -> None:
    """The tile of every number of rows; ``columns`` are there where a mask is needed."""
    done = builder.append_basic_block("tiled")
    switch = builder.switch(rows, done)
    for count in range(1, TILE_ROWS + 1):
        block = builder.append_basic_block(f"rows{count}")
        switch.add_case(count, block)
        builder.position_at_end(block)
        _one_tile(builder, vector_type(dtype), count, vectors, columns, rest)
        builder.branch(done)
    builder.position_at_end(done)


def _one_tile(
    builder: ir.IRBuilder,
    kind: ir.VectorType,
    rows: int,
    vectors: int,
    columns: ir.Value | None,
    rest: list[ir.Value],
) -> None:
    depth, a, a_row, a_step, b, start, start_row, c, width = rest
    offsets = [ir.Constant(INDEX, v * kind.count) for v in range(vectors)]
    masks: list[ir.Value | None] = [None] * vectors
    if columns is not None:
        masks = [mask_below(builder, kind.count, builder.sub(columns, offset)) for offset in offsets]

    def row_of(corner: ir.Value, r: int, step: ir.Value) -> ir.Value:
        return builder.gep(corner, [builder.mul(ir.Constant(INDEX, r), step)])

    def parts(corner: ir.Value) -> Iterator[tuple[int, ir.Value, ir.Value | None]]:
        for v, (offset, mask) in enumerate(zip(offsets, masks, strict=True)):
            yield v, builder.gep(corner, [offset]), mask

    sums = [[cgutils.alloca_once(builder, kind) for _ in range(vectors)] for _ in range(rows)]
    for r in range(rows):
        for v, pointer, mask in parts(row_of(start, r, start_row)):
            builder.store(load(builder, pointer, kind, mask), sums[r][v])
    a_rows = [row_of(a, r, a_row) for r in range(rows)]
    with cgutils.for_range(builder, depth) as loop:
        b_row = builder.gep(b, [builder.mul(loop.index, width)])
        bs = [load(builder, pointer, kind, mask) for _, pointer, mask in parts(b_row)]
        at = builder.mul(loop.index, a_step)
        for r in range(rows):
            x = broadcast(builder, kind, builder.load(builder.gep(a_rows[r], [at])))
            for v in range(vectors):
                product = builder.fmul(x, bs[v], flags=("contract",))
                builder.store(
                    builder.fadd(builder.load(sums[r][v]), product, flags=("contract",)), sums[r][v]
                )
    for r in range(rows):
        for v, pointer, mask in parts(row_of(c, r, width)):
            store(builder, builder.load(sums[r][v]), pointer, mask)
