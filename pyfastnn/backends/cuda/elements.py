"""Kernels with a thread for each number."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from . import scalars, shim
from .shim import Kernel, cuda

THREADS = 4 if shim.SIMULATED else 256
_MOST_BLOCKS = 2 if shim.SIMULATED else 1024  # then a thread takes several numbers


def blocks(count: int) -> int:
    return min(-(-count // THREADS), _MOST_BLOCKS)


@cache
def update(name: str, slots: int, numbers: int, dtype: np.dtype[Any]) -> Kernel:
    """Kernel(base, w, g, v0, v1, table, step, count): a step of the rule, in place.

    Its numbers are row base[0] + step of the table. Slots that the rule has not may be any array.
    """
    rule = scalars.rule(name, slots, numbers, dtype)
    width, zero = scalars.MOST_NUMBERS, dtype.type(0)

    def kernel(base: Any, w: Any, g: Any, v0: Any, v1: Any, table: Any, step: int, count: int) -> None:
        start = (base[0] + step) * width
        n0, n1, n2, n3 = table[start], table[start + 1], table[start + 2], table[start + 3]
        for i in range(cuda.grid(1), count, cuda.gridsize(1)):
            first = v0[i] if slots > 0 else zero
            second = v1[i] if slots > 1 else zero
            changed, first, second = rule(w[i], g[i], first, second, n0, n1, n2, n3)
            w[i] = changed
            if slots > 0:
                v0[i] = first
            if slots > 1:
                v1[i] = second

    return Kernel(kernel, "I RRRRR ii", dtype, THREADS)


@cache
def gather(dtype: np.dtype[Any]) -> Kernel:
    """Kernel(order, base, x, out, step, batch, columns, count): out = the rows of a batch of the order."""

    def kernel(
        order: Any, base: Any, x: Any, out: Any, step: int, batch: int, columns: int, count: int
    ) -> None:
        start = (base[0] + step) * batch
        for i in range(cuda.grid(1), count, cuda.gridsize(1)):
            out[i] = x[order[start + i // columns] * columns + i % columns]

    return Kernel(kernel, "II RR iiii", dtype, THREADS)


@cache
def finish(function: Any, biases: bool, dtype: np.dtype[Any]) -> Kernel:
    """Kernel(b, s, z, out, columns, count): what ``function`` makes of sums that lie in out, in place.

    With biases, b (columns,) is added to every row first.
    """

    def kernel(b: Any, s: Any, z: Any, out: Any, columns: int, count: int) -> None:
        for i in range(cuda.grid(1), count, cuda.gridsize(1)):
            total = out[i]
            if biases:
                total += b[i % columns]
            function(total, s, z, out, i)

    return Kernel(kernel, "RRRR ii", dtype, THREADS)


COLUMNS, LANES = (2, 2) if shim.SIMULATED else (32, 16)


@cache
def column_sums(dtype: np.dtype[Any]) -> Kernel:
    """Kernel(d, out, rows, columns): out = the sums of the columns of d. A block for ``COLUMNS`` of them.

    Each of the lanes sums every so-manieth row in order, one thread the lanes.
    """
    real, zero = shim.element(dtype), dtype.type(0)
    across, lanes, count = COLUMNS, LANES, COLUMNS * LANES

    def kernel(d: Any, out: Any, rows: int, columns: int) -> None:
        parts = cuda.shared.array(count, real)
        me = cuda.threadIdx.x
        lane, column = me // across, cuda.blockIdx.x * across + me % across
        total = zero
        if column < columns:
            for i in range(lane, rows, lanes):
                total += d[i * columns + column]
        parts[me] = total
        cuda.syncthreads()
        if lane == 0 and column < columns:
            for other in range(1, lanes):
                total += parts[other * across + me]
            out[column] = total

    return Kernel(kernel, "RR ii", dtype, count)


@cache
def advance() -> Kernel:
    """Kernel(base, steps): base[0] += steps."""

    def kernel(base: Any, steps: int) -> None:
        base[0] += steps

    return Kernel(kernel, "I i", np.dtype(np.float32), 1)
