"""The matrix product, with what comes before and after it fused in.

One kernel serves the three products of a layer. Its left side may be gathered through the order of an
epoch, and may have a column (or, transposed, a row) of ones beyond its end: with the biases stored
behind the weights, that makes x w + b, and x^T d with the sums of d, single products. Every element is
summed by one thread in the order of depth: the same bits each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ...activations import Activation
from . import scalars, shim
from .shim import Kernel, at, cuda


@dataclass(frozen=True)
class Tile:
    """Elements of the product that a block computes, in steps of ``depth``; and that a thread does.

    Rows, columns and depth are powers of two, and a block's threads load every side in equal parts.
    """

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int

    @property
    def threads(self) -> int:
        return (self.rows // self.thread_rows) * (self.columns // self.thread_columns)

    def blocks(self, rows: int, columns: int) -> tuple[int, int]:
        # The first number may be far larger than the second.
        return -(-rows // self.rows), -(-columns // self.columns)


SMALL = Tile(32, 32, 32, 2, 2)
LARGE = Tile(64, 64, 16, 4, 4)
# Few threads, since each is one of the operating system's.
_SIMULATED = Tile(8, 8, 4, 4, 4)
_ENOUGH_BLOCKS = 128  # so many tiles of the large kind keep a whole GPU busy; not measured


def tile_for(rows: int, columns: int) -> Tile:
    if shim.SIMULATED:
        return _SIMULATED
    return LARGE if np.prod(LARGE.blocks(rows, columns)) >= _ENOUGH_BLOCKS else SMALL


@dataclass(frozen=True)
class Layout:
    """How the left side A (rows, depth) and the right side B (depth, columns) lie in memory."""

    a_transposed: bool = False
    b_transposed: bool = False
    gathered: bool = False  # the samples of A are those of a batch of the epoch's order
    ones: bool = False  # A has a last column of ones (or row, transposed) that is not stored


FORWARD = Layout(ones=True)
GRADIENT = Layout(a_transposed=True, ones=True)
BACKWARD = Layout(b_transposed=True)

Finish = Callable[..., None]


@cache
def keep(dtype: np.dtype[Any]) -> Finish:
    """The sum as it is."""

    def finish(total: Any, s: Any, z: Any, out: Any, i: int) -> None:
        out[i] = total

    return shim.device(finish)


@cache
def activate(activation: Activation, keep_z: bool, dtype: np.dtype[Any]) -> Finish:
    """out = f(sum); z, where kept, the sum itself."""
    value = scalars.value(activation, dtype)

    def finish(total: Any, s: Any, z: Any, out: Any, i: int) -> None:
        if keep_z:
            z[i] = total
        out[i] = value(total)

    return shim.device(finish)


@cache
def through(activation: Activation, dtype: np.dtype[Any]) -> Finish:
    """out = sum f'(s)."""
    delta = scalars.delta(activation, dtype)

    def finish(total: Any, s: Any, z: Any, out: Any, i: int) -> None:
        out[i] = delta(total, s[i])

    return shim.device(finish)


def _loads(layout: Layout, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """A[i, p] and B[p, j]; zero outside, where they read something inside instead.

    Without branches, so that a thread need not wait for one number to ask for the next.
    """
    a_transposed, b_transposed = layout.a_transposed, layout.b_transposed
    gathered, ones, zero, one = layout.gathered, layout.ones, dtype.type(0), dtype.type(1)

    def load_a(order: Any, start: int, a: Any, i: int, p: int, rows: int, depth: int) -> Any:
        inside = (i < rows) & (p < depth)
        i, p = min(i, rows - 1), min(p, depth - 1)
        sample, feature = (p, i) if a_transposed else (i, p)
        features = rows if a_transposed else depth
        beyond = False
        if ones:
            features -= 1
            beyond, feature = feature == features, min(feature, features - 1)
        if gathered:
            sample = order[at(start + sample)]
        number = a[at(sample * features + feature)]
        number = one if beyond else number
        return number if inside else zero

    def load_b(b: Any, p: int, j: int, depth: int, columns: int) -> Any:
        inside = (p < depth) & (j < columns)
        p, j = min(p, depth - 1), min(j, columns - 1)
        number = b[at(j * depth + p)] if b_transposed else b[at(p * columns + j)]
        return number if inside else zero

    return shim.device(load_a), shim.device(load_b)


@cache
def product(layout: Layout, finish: Finish, tile: Tile, dtype: np.dtype[Any]) -> Kernel:
    """Kernel(order, base, a, b, s, z, out, step, batch, rows, columns, depth).

    Rows, columns and depth count the ones. Row i of a gathered left side is row
    order[(base[0] + step) batch + i] of a. A grid of ``tile.blocks(rows, columns)``.
    """
    real, zero = shim.element(dtype), dtype.type(0)
    tile_rows, tile_columns, tile_depth = tile.rows, tile.columns, tile.depth
    thread_rows, thread_columns = tile.thread_rows, tile.thread_columns
    threads, across = tile.threads, tile.columns // tile.thread_columns
    down, sums_count = tile.rows // thread_rows, thread_rows * thread_columns
    a_stride, b_stride = tile.rows + 1, tile.columns + 1  # odd: no two threads of a warp in one bank
    a_count, b_count = a_stride * tile.depth, b_stride * tile.depth
    a_loads, b_loads = tile.rows * tile.depth // threads, tile.columns * tile.depth // threads
    row_bits, column_bits, depth_bits = (
        length.bit_length() - 1 for length in (tile.rows, tile.columns, tile.depth)
    )
    a_transposed, b_transposed = layout.a_transposed, layout.b_transposed
    gathered = layout.gathered

    load_a, load_b = _loads(layout, dtype)

    def kernel(
        order: Any,
        base: Any,
        a: Any,
        b: Any,
        s: Any,
        z: Any,
        out: Any,
        step: int,
        batch: int,
        rows: int,
        columns: int,
        depth: int,
    ) -> None:
        a_tile = cuda.shared.array(a_count, real)
        b_tile = cuda.shared.array(b_count, real)
        sums = cuda.local.array(sums_count, real)
        for e in range(sums_count):
            sums[e] = zero
        me = cuda.threadIdx.x
        row, column = me // across, me % across
        top, left = cuda.blockIdx.x * tile_rows, cuda.blockIdx.y * tile_columns
        start = (base[0] + step) * batch if gathered else 0
        for front in range(0, depth, tile_depth):
            # Neighbouring threads read neighbouring numbers, whichever way the matrix lies.
            for turn in range(a_loads):
                e = me + turn * threads
                if a_transposed:
                    i, p = e & (tile_rows - 1), e >> row_bits
                else:
                    i, p = e >> depth_bits, e & (tile_depth - 1)
                a_tile[at(p * a_stride + i)] = load_a(order, start, a, top + i, front + p, rows, depth)
            for turn in range(b_loads):
                e = me + turn * threads
                if b_transposed:
                    j, p = e >> depth_bits, e & (tile_depth - 1)
                else:
                    j, p = e & (tile_columns - 1), e >> column_bits
                b_tile[at(p * b_stride + j)] = load_b(b, front + p, left + j, depth, columns)
            cuda.syncthreads()
            # Beyond the end both sides are zero, which adds nothing; so the loop can be unrolled. That the
            # compiler does with this form of it, and not with a range.
            p = 0
            while p < tile_depth:
                for i in range(thread_rows):
                    for j in range(thread_columns):
                        left_number = a_tile[at(p * a_stride + row + i * down)]
                        right_number = b_tile[at(p * b_stride + column + j * across)]
                        sums[i * thread_columns + j] += left_number * right_number
                p += 1
            cuda.syncthreads()
        for i in range(thread_rows):
            for j in range(thread_columns):
                y, x = top + row + i * down, left + column + j * across
                if y < rows and x < columns:
                    finish(sums[i * thread_columns + j], s, z, out, at(y * columns + x))

    return Kernel(kernel, "II RRRRR iiiii", dtype, threads)
