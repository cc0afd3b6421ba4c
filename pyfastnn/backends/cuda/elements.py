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
def advance() -> Kernel:
    """Kernel(base, steps): base[0] += steps."""

    def kernel(base: Any, steps: int) -> None:
        base[0] += steps

    return Kernel(kernel, "I i", np.dtype(np.float32), 1)
