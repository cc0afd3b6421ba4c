"""The limits of this machine: multiply-adds and bandwidths, measured by small kernels in the core."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cases import Cost

from pyfastnn.backends.cpp import CppBackend

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_SECONDS = 0.02  # of one measurement: short, so that some fall into quiet moments
_BRIEF = 0.004  # of arithmetic alone
_TRIES = 3
_ENOUGH = 1 << 26  # bytes to read for a first guess


def cache_sizes() -> dict[str, tuple[int, bool]]:
    """Bytes of each level of data cache, and whether processors share it; typical ones where unknown."""
    found = {}
    for folder in sorted(_CACHES.glob("index*")):
        kind, level, size, sharers = (
            (folder / name).read_text().strip() for name in ("type", "level", "size", "shared_cpu_list")
        )
        if kind != "Instruction":
            found[f"L{level}"] = int(size.rstrip("K")) * 1024, not sharers.isdecimal()
    return found or {"L1": (32 << 10, False), "L2": (512 << 10, False), "L3": (16 << 20, True)}


def _aligned_rows(count: int, size: int) -> np.ndarray:
    """So many rows of so many bytes of float32; no vector crosses a cache line."""
    line = 64
    raw = np.zeros(count * size // line * line + line, np.uint8)
    start = -raw.ctypes.data % line
    rows = raw[start : start + count * (size // line * line)].view(np.float32).reshape(count, -1)
    rows[...] = 1
    return rows


def operations(dtype: str, threads: int) -> list[float]:
    """Operations a second by multiply-adds alone, a few times."""
    kernels, like = CppBackend()._kernels, np.empty(0, dtype)
    work = _BRIEF * kernels.multiply_add_rate(like, 1e7 * threads, threads)
    return [2 * kernels.multiply_add_rate(like, work, threads) for _ in range(_TRIES)]


def measure(threads: int) -> dict[str, dict[str, float]]:
    """Operations a second by dtype, bytes a second by level: the best of a few tries."""
    kernels = CppBackend()._kernels
    peaks = {dtype: max(operations(dtype, threads)) for dtype in ("float32", "float64")}
    sizes = cache_sizes()
    last = max(size for size, _ in sizes.values())
    # Half of what a thread may call its own there; for memory, enough to fill every cache four times.
    spans = {level: size // 2 // (threads if shared else 1) for level, (size, shared) in sizes.items()} | {
        "memory": 4 * last // threads
    }
    rates = {}
    for level, span in spans.items():
        rows = _aligned_rows(threads, span)
        few = max(threads, _ENOUGH // rows[0].nbytes)
        guess = max(kernels.read_rate(rows, few) for _ in range(2))
        passes = max(few, int(_SECONDS * guess / rows[0].nbytes))
        rates[level] = max(kernels.read_rate(rows, passes) for _ in range(_TRIES))
    return {"operations": peaks, "bytes": rates}


def best(measured: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The highest of several measurements: a limit is what was reached once."""
    return {
        kind: {name: max(each[kind][name] for each in measured) for name in measured[0][kind]}
        for kind in measured[0]
    }


def level_of(size: float, threads: int) -> str:
    """The first level that holds so many bytes, spread over the caches of the threads."""
    for level, (capacity, shared) in cache_sizes().items():
        if size <= capacity * (1 if shared else threads):
            return level
    return "memory"


def least_seconds(cost: Cost, peak: float, bandwidths: dict[str, float], threads: int) -> float:
    """What the roofline allows: the longer of computing at the peak and moving the bytes."""
    moving = sum(each.moved / bandwidths[level_of(each.within, threads)] for each in cost.traffic)
    return max(cost.operations / peak, moving)
