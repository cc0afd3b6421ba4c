"""Fixtures: every backend that the registry and the core report, both dtypes, the real MNIST."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest

import pyfastnn as pf
from pyfastnn.backends import load
from pyfastnn.backends.cpp import CppBackend, instruction_sets
from pyfastnn.backends.plan import Backend
from pyfastnn.datasets import Split

mpl.use("Agg")

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
if SIMULATED:
    # The simulator's threads wait for each other all the time.
    sys.setswitchinterval(1e-5)

if os.environ.get("PYFASTNN_REQUIRE_EXT") == "1":
    # Without this, a missing core would only make the tests fewer.
    CppBackend()


def _every_backend() -> list[Backend]:
    """One instance per available backend, of the compiled one a further one per instruction set."""
    names = [name for name, status in pf.backends().items() if status == "available"]
    found = [load(name) for name in names if name != "cpp"]
    return found + ([CppBackend(isa) for isa in instruction_sets()] if "cpp" in names else [])


BACKENDS = {getattr(backend, "isa", backend.name): backend for backend in _every_backend()}
COMPILED = [backend for backend in BACKENDS.values() if isinstance(backend, CppBackend)]

# Tests of the CUDA backend, which run where it is: on a GPU, or in the simulator, which
# test_cuda_simulator.py starts.
CUDA_TESTS = ["test_cuda.py", "test_cuda_arrays.py", "test_cuda_launches.py"]
collect_ignore = [] if "cuda" in BACKENDS else CUDA_TESTS

# Multiply-adds, or numbers, that take the simulator of CUDA some hundredths of a second.
_SIMULATED_SIZE = 400


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With the simulator, only what runs on it, at small sizes."""
    if not SIMULATED:
        return
    dropped = [item for item in items if not _simulated(item)]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


def _simulated(item: pytest.Item) -> bool:
    if item.get_closest_marker("cuda"):
        return True
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    sizes = [math.prod(np.atleast_1d(parameters[name])) for name in ("shape", "size") if name in parameters]
    return (
        parameters.get("backend") == "cuda"
        and str(parameters.get("dtype")) != "float64"
        and max(sizes, default=0) <= _SIMULATED_SIZE
        and not item.get_closest_marker("large")
    )


if not COMPILED:
    # Else every test would first meet the warning that says so.
    pf.set_backend("numpy")


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Every backend in turn, in use during the test."""
    with pf.use_backend(BACKENDS[request.param]) as chosen:
        yield chosen


@pytest.fixture
def cuda() -> Iterator[Backend]:
    """The CUDA backend, in use during the test."""
    with pf.use_backend("cuda") as chosen:
        yield chosen


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> np.dtype[np.generic]:
    return np.dtype(request.param)


@pytest.fixture(scope="session")
def mnist() -> Split:
    """The real MNIST, from the folder that PYFASTNN_MNIST names."""
    folder = os.environ.get("PYFASTNN_MNIST")
    if not folder:
        pytest.skip("PYFASTNN_MNIST does not name a folder with the four MNIST files")
    return pf.datasets.load_mnist(folder)
