"""The kernels on their own: every library's functions, their arguments, and what the results must be."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pyfastnn as pf

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import tolerance

Array = NDArray[Any]
Shape = tuple[int, int, int]
Call = Callable[..., Any]

# What each takes of a layer: its input x, a sigmoid's output; weights w, biases b, the error d of its sums.
ARGUMENTS = {"dense_forward": "xwb", "sigmoid_delta": "dwx", "dense_backward": "xwd"}


@dataclass(frozen=True)
class Library:
    """Its functions, what makes an array its own, and what must be in force while it uses float64."""

    functions: Mapping[str, Call]
    convert: Callable[[Array], Any] = np.asarray
    float64: Callable[[], AbstractContextManager[None]] = nullcontext


def _ours(backend: str) -> Library:
    pf.set_backend(backend)
    return Library(
        {
            "dense_forward": lambda x, w, b: pf.dense_forward(x, w, b, "sigmoid"),
            "sigmoid_delta": pf.sigmoid_delta,
            "dense_backward": pf.dense_backward,
        }
    )


def _by_hand() -> Library:
    return Library(
        {
            "dense_forward": lambda x, w, b: 1 / (1 + np.exp(-(x.dot(w) + b))),
            "sigmoid_delta": lambda d, w, x: d.dot(w.T) * x * (1 - x),
            "dense_backward": lambda x, w, d: (x.T.dot(d), d.sum(axis=0), d.dot(w.T)),
        }
    )


def _torch() -> Library:
    torch: Any = import_module("torch")
    torch.set_num_threads(pf.get_num_threads())
    return Library(
        {
            "dense_forward": lambda x, w, b: torch.addmm(b, x, w).sigmoid_(),
            "sigmoid_delta": lambda d, w, x: d @ w.T * x * (1 - x),
            "dense_backward": lambda x, w, d: (x.T @ d, d.sum(0), d @ w.T),
        },
        torch.from_numpy,
    )


@cache  # with what is compiled
def _jax() -> Library:
    jax: Any = import_module("jax")
    functions = {
        "dense_forward": lambda x, w, b: jax.nn.sigmoid(x @ w + b),
        "sigmoid_delta": lambda d, w, x: d @ w.T * x * (1 - x),
        "dense_backward": lambda x, w, d: (x.T @ d, d.sum(0), d @ w.T),
    }

    def complete(function: Call) -> Call:
        compiled = jax.jit(function)
        return lambda *arguments: jax.block_until_ready(compiled(*arguments))

    @contextmanager
    def float64() -> Iterator[None]:
        # Not for good: the same process also trains, with the types that JAX has by default.
        jax.config.update("jax_enable_x64", True)
        try:
            yield
        finally:
            jax.config.update("jax_enable_x64", False)

    return Library(
        {name: complete(function) for name, function in functions.items()}, jax.numpy.asarray, float64
    )


# By the names of peers.entries.
LIBRARIES: Mapping[str, Callable[[], Library]] = {
    name: partial(_ours, name) for name, status in pf.backends().items() if status == "available"
} | {"NumPy by hand": _by_hand, "PyTorch": _torch, "JAX": _jax}


@contextmanager
def prepared(contender: str, kernel: str, shape: Shape, dtype: str) -> Iterator[Callable[[], Any]]:
    """The kernel with its arguments, to be called within the block."""
    library, layer = LIBRARIES[contender](), _layer(shape, dtype)
    with library.float64() if dtype == "float64" else nullcontext():
        arguments = [library.convert(layer[name]) for name in ARGUMENTS[kernel]]
        yield partial(library.functions[kernel], *arguments)


@lru_cache(maxsize=1)
def _layer(shape: Shape, dtype: str) -> dict[str, Array]:
    """Arrays like those of a training: x in (0, 1), w as an initialisation draws it."""
    n, k, m = shape
    rng = np.random.default_rng(0)
    drawn = {
        "x": rng.uniform(0.05, 0.95, (n, k)),
        "w": rng.normal(size=(k, m)) / np.sqrt(k),
        "b": rng.normal(size=m),
        "d": rng.normal(size=(n, m)),
    }
    return {name: array.astype(dtype) for name, array in drawn.items()}


def flat(results: Any) -> Array:
    """What a kernel returned, an array or several, as one of NumPy."""
    several = results if isinstance(results, tuple) else (results,)
    return np.concatenate([np.ravel(each) for each in several])


def deviation(kernel: str, shape: Shape, dtype: str, results: Array) -> float:
    """How far flat results are from exact ones, at worst, in units of the bound: above 1 they are wrong."""
    exact, bound = _expected(kernel, shape, dtype)
    if results.shape != exact.shape or results.dtype != dtype:
        return math.inf
    return float((abs(results - exact) / bound).max())


@lru_cache(maxsize=1)
def _expected(kernel: str, shape: Shape, dtype: str) -> tuple[Array, Array]:
    """The results in float64, and the bounds of what arithmetic in this dtype may make of them; both flat."""
    layer, kind = _layer(shape, dtype), np.dtype(dtype)
    x, w, b, d = (layer[name].astype(np.float64) for name in "xwbd")
    if kernel == "dense_forward":
        z, error = x @ w + b, tolerance.product(x, w, kind, b)
        return flat(1 / (1 + np.exp(-z))), flat(tolerance.value("sigmoid", z, error, kind))
    back, back_error = d @ w.T, tolerance.product(d, w.T, kind)
    if kernel == "sigmoid_delta":
        slope = x * (1 - x)
        rounding = 4 * tolerance.unit(kind) * abs(back * slope)  # of 1 - x, and two products
        return flat(back * slope), flat(1.01 * (back_error * slope + rounding))
    sums_error = tolerance.product(np.ones((1, len(d))), d, kind)
    return (
        flat((x.T @ d, d.sum(axis=0), back)),
        flat((tolerance.product(x.T, d, kind), sums_error, back_error)),
    )
