"""The kernels by pytest-benchmark: each case first checks the result, then times it.

``pytest benchmarks`` runs them all; -k picks, as in ``-k "dense_forward and float32 and 64x784x128"``.
Here all libraries share a process, and the threads of one may still spin while another is timed: to compare
them on several threads, use ``make bench``.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from cases import DTYPES, KERNELS, SHAPES
from kernels import LIBRARIES, deviation, flat, prepared
from peers import entries

INSTALLED = [name for name, entry in entries().items() if name in LIBRARIES and entry.installed]


@pytest.mark.parametrize("contender", INSTALLED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel(benchmark: Any, request: pytest.FixtureRequest, kernel, shape, dtype, contender):
    threads = request.config.getoption("--threads")
    benchmark.group = f"{kernel} {'x'.join(map(str, shape))} {dtype}, {threads} threads"
    with prepared(contender, kernel, shape, dtype) as call:
        assert deviation(kernel, shape, dtype, flat(call())) <= 1
        time.sleep(0.03)  # until the threads of the one before have gone to sleep
        benchmark(call)
