"""The kernels on their own: each case first checks the result, then times it.

``pytest benchmarks`` runs them all; -k picks, as in ``-k "dense_forward and float32 and 64x784x128"``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tolerance
from cases import DTYPES, KERNELS, SHAPES

import pyfastnn as pf

Shape = tuple[int, int, int]
Arguments = dict[str, Any]  # arrays of the library: x, w, b of a layer, its error d, its output a
Results = tuple[Any, ...]


def ours(backend: str) -> dict[str, Callable[..., Results]]:
    pf.set_backend(backend)
    return {
        "dense_forward": lambda x, w, b, **_: (pf.dense_forward(x, w, b, "sigmoid"),),
        "sigmoid_delta": lambda d, w, x, **_: (pf.sigmoid_delta(d, w, x),),
        "dense_backward": lambda x, w, d, **_: pf.dense_backward(x, w, d),
    }


def by_hand() -> dict[str, Callable[..., Results]]:
    return {
        "dense_forward": lambda x, w, b, **_: (1 / (1 + np.exp(-(x.dot(w) + b))),),
        "sigmoid_delta": lambda d, w, x, **_: (d.dot(w.T) * x * (1 - x),),
        "dense_backward": lambda x, w, d, **_: (x.T.dot(d), d.sum(axis=0), d.dot(w.T)),
    }


def torch() -> dict[str, Callable[..., Results]]:
    library: Any = pytest.importorskip("torch")
    return {
        "dense_forward": lambda x, w, b, **_: (library.addmm(b, x, w).sigmoid_(),),
        "sigmoid_delta": lambda d, w, x, **_: (d @ w.T * x * (1 - x),),
        "dense_backward": lambda x, w, d, **_: (x.T @ d, d.sum(0), d @ w.T),
    }


def jax() -> dict[str, Callable[..., Results]]:
    library: Any = pytest.importorskip("jax")
    library.config.update("jax_enable_x64", True)
    functions = {
        "dense_forward": lambda x, w, b, **_: (library.nn.sigmoid(x @ w + b),),
        "sigmoid_delta": lambda d, w, x, **_: (d @ w.T * x * (1 - x),),
        "dense_backward": lambda x, w, d, **_: (x.T @ d, d.sum(0), d @ w.T),
    }
    compiled = {name: library.jit(function) for name, function in functions.items()}
    return {
        name: lambda function=function, **arguments: library.block_until_ready(function(**arguments))
        for name, function in compiled.items()
    }


CONTENDERS: dict[str, tuple[Callable[[], dict[str, Callable[..., Results]]], str]] = {
    name: (lambda name=name: ours(name), "numpy")
    for name, status in pf.backends().items()
    if status == "available"
} | {"NumPy by hand": (by_hand, "numpy"), "PyTorch": (torch, "torch"), "JAX": (jax, "jax")}

CONVERT = {
    "numpy": lambda array: array,
    "torch": lambda array: pytest.importorskip("torch").from_numpy(array),
    "jax": lambda array: pytest.importorskip("jax").numpy.asarray(array),
}


def arrays(shape: Shape, dtype: str) -> Arguments:
    """A layer: x in (0, 1) as a sigmoid's output, w as an initialisation draws it, b, d."""
    n, k, m = shape
    rng = np.random.default_rng(0)
    drawn = {
        "x": rng.uniform(0.05, 0.95, (n, k)),
        "w": rng.normal(size=(k, m)) / np.sqrt(k),
        "b": rng.normal(size=m),
        "d": rng.normal(size=(n, m)),
    }
    return {name: array.astype(dtype) for name, array in drawn.items()}


def expected(kernel: str, a: Arguments, dtype: np.dtype) -> list[tuple[np.ndarray, np.ndarray]]:
    """The results in float64, each with the bound of what float arithmetic may make of it."""
    x, w, b, d = (a[name].astype(np.float64) for name in "xwbd")
    if kernel == "dense_forward":
        z, error = x @ w + b, tolerance.product(x, w, dtype, b)
        return [(1 / (1 + np.exp(-z)), tolerance.value("sigmoid", z, error, dtype))]
    back, back_error = d @ w.T, tolerance.product(d, w.T, dtype)
    if kernel == "sigmoid_delta":
        slope = x * (1 - x)
        rounding = 4 * tolerance.unit(dtype) * abs(back * slope)  # of 1 - x, and two products
        return [(back * slope, 1.01 * (back_error * slope + rounding))]
    ones = np.ones((1, len(d)))
    return [
        (x.T @ d, tolerance.product(x.T, d, dtype)),
        (d.sum(axis=0), tolerance.product(ones, d, dtype)[0]),
        (back, back_error),
    ]


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel(benchmark: Any, request: pytest.FixtureRequest, kernel, shape, dtype, contender):
    make, kind = CONTENDERS[contender]
    function = make()[kernel]
    own = arrays(shape, dtype)
    arguments = {name: CONVERT[kind](array) for name, array in own.items()}
    results = function(**arguments)
    for got, (exact, bound) in zip(results, expected(kernel, own, np.dtype(dtype)), strict=True):
        assert got.dtype == arguments["x"].dtype
        assert (abs(np.asarray(got) - exact) <= bound).all()
    threads = request.config.getoption("--threads")
    benchmark.group = f"{kernel} {'x'.join(map(str, shape))} {dtype}, {threads} threads"
    benchmark.extra_info |= {
        "kernel": kernel,
        "shape": shape,
        "dtype": dtype,
        "threads": threads,
        "contender": contender,
    }
    time.sleep(0.03)  # until the threads of the one before have gone to sleep
    benchmark(function, **arguments)
