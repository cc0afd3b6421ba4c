"""Compiling by Numba: once a function and dtype, from the cache on disk where there is one, and counted."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.resources import files
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba import types

from .loops import loop_signature

_logger = logging.getLogger("pyfastnn")
_lock = threading.RLock()
_dispatchers: list[Any] = []
_by_address: list[Any] = []
_depth = 0
_seconds = 0.0


@cache
def _digest() -> str:
    """Of the sources of this package.

    Numba watches the file of a function alone, while its code depends on formulas and on what writes
    it elsewhere. With this in its name, nothing is used that other sources have left in the cache.
    """
    found, package = hashlib.sha256(), files("pyfastnn")
    for folder in (package, package / "backends"):
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            if file.name.endswith(".py"):
                found.update(file.read_bytes())
    return found.hexdigest()[:12]


def _cached_on_disk(decorator: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """The function decorated so that its code is cached, unless there is no place to write to."""
    function.__qualname__ = f"{function.__qualname__}_{_digest()}"
    try:
        return decorator(cache=True)(function)
    except RuntimeError:  # "no locator available"
        return decorator()(function)


def jit(function: Callable[..., Any]) -> Any:
    """The function compiled at its first call, for callers that have released the interpreter lock."""
    decorator = partial(numba.njit, nogil=True, error_model="numpy")
    _dispatchers.append(_cached_on_disk(decorator, function))
    return _dispatchers[-1]


_KINDS = {"list": types.intp[::1], "table": types.intp[:, ::1], "int": types.intp}
_entries: dict[Any, list[str]] = {}


def entry(arguments: str) -> Callable[[Callable[..., Any]], Any]:
    """As :func:`jit`, for a function that Python calls.

    The arguments are "flat" (an array of the dtype), "list" and "table" (arrays of int64 with one and
    two dimensions), or "int".
    """

    def decorated(function: Callable[..., Any]) -> Any:
        dispatcher = jit(function)
        _entries[dispatcher] = arguments.split()
        return dispatcher

    return decorated


def compiled(function: Any, dtype: np.dtype[Any]) -> Any:
    """A function by :func:`entry`, ready for the dtype."""
    kinds = _KINDS | {"flat": numba.from_dtype(dtype)[::1]}
    with compiling():
        function.compile(tuple(kinds[kind] for kind in _entries[function]))
    return function


def compiled_for_calls(name: str, signature: Any, function: Callable[..., Any]) -> int:
    """The address of a function for calls from compiled code; the name tells it from all others."""
    function.__qualname__ = name
    with compiling():
        _by_address.append(_cached_on_disk(partial(numba.cfunc, signature), function))
    return int(_by_address[-1].address)


def _loop(operands: Any, numbers: Any, rows: Any, columns: Any) -> Any:
    return formula_loop(operands, numbers, rows, columns)  # type: ignore[name-defined]  # noqa: F821


def compiled_loop(name: str, loop: Any, dtype: np.dtype[Any]) -> int:
    """The address of a loop of ``loops.formula_loop``."""
    function = FunctionType(_loop.__code__, {"formula_loop": loop, "__name__": __name__})
    return compiled_for_calls(name, loop_signature(dtype), function)


@contextmanager
def compiling() -> Iterator[None]:
    """Time and report what is compiled in the block."""
    global _depth, _seconds
    with _lock:
        before, start = _counts(), time.perf_counter()
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1
            if not _depth:
                seconds = time.perf_counter() - start
                found, cached = (now - then for now, then in zip(_counts(), before, strict=True))
                if found:
                    _seconds += seconds
                    _logger.info("numba made %s", _described(seconds, found, cached))


def _counts() -> tuple[int, int]:
    """Functions made, and how many of them came from the cache."""
    hits = sum(sum(each.stats.cache_hits.values()) for each in _dispatchers)
    misses = sum(sum(each.stats.cache_misses.values()) for each in _dispatchers)
    loops = sum(each.cache_hits for each in _by_address)
    return hits + misses + len(_by_address), hits + loops


def _described(seconds: float, functions: int, cached: int) -> str:
    return f"{functions} functions in {seconds:.1f} s, {cached} of them from the cache"


def report() -> str:
    """What has been compiled so far."""
    with _lock:
        functions, cached = _counts()
        return _described(_seconds, functions, cached) if functions else "none yet"
