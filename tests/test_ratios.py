"""A lost fast path shows here: coarse ratios of speed within one run, never times.

The floors are about half of what a slow machine gives, or less; the medians of interleaved runs, on one
thread unless said, and a few attempts keep a busy machine from failing them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
from conftest import BACKENDS, COMPILED

import pyfastnn as pf
from pyfastnn.backends.cpp import CppBackend, instruction_sets
from pyfastnn.bench import WORKLOADS, Ours, interleave, ratio, time_calls

pytestmark = pytest.mark.skipif(not COMPILED, reason="without the compiled core")

ATTEMPTS, ROUNDS = 4, 5
BEST = CppBackend(instruction_sets()[-1]) if COMPILED else None  # whatever PYFASTNN_ISA asks for


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On one thread, and the backend of before afterwards: who trains sets it for the process."""
    before, threads = pf.get_backend(), pf.get_num_threads()
    pf.set_num_threads(1)
    yield
    pf.set_num_threads(threads)
    pf.set_backend(before)


def best_ratio(fast: Callable[[], list[float]], slow: Callable[[], list[float]], enough: float) -> float:
    """How many times as long the slow one takes, of the first attempt that is enough, or the best."""
    found = 0.0
    for _ in range(ATTEMPTS):
        times = interleave({"fast": fast, "slow": slow}, ROUNDS)
        found = max(found, ratio(times["fast"], times["slow"]))
        if found >= enough:
            break
    return found


@pytest.mark.parametrize(
    ("name", "floor"),
    [("tiny", 3), ("control", 3), ("nielsen", 3), ("essay", 4), ("lecture", 1.3), ("tabular", 1.3)],
)
def test_training_beats_numpy(name, floor):
    cpp, numpy = (Ours(WORKLOADS[name], backend, 1) for backend in (BEST, "numpy"))
    assert best_ratio(partial(time_calls, cpp, 0.02), partial(time_calls, numpy, 0.02), floor) >= floor


@pytest.mark.skipif("numba" not in BACKENDS, reason="without Numba")
def test_training_compiled_by_numba_beats_numpy():
    compiled, numpy = (Ours(WORKLOADS["nielsen"], backend, 1) for backend in ("numba", "numpy"))
    assert best_ratio(partial(time_calls, compiled, 0.02), partial(time_calls, numpy, 0.02), 2) >= 2


def seconds_of(call: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return times


# Large results of little depth, few columns, few rows, weights that no cache holds.
@pytest.mark.skipif(BEST is None or BEST.get_num_threads() < 2, reason="one thread is the limit here")
@pytest.mark.parametrize(
    "shape", [(512, 3, 500), (512, 500, 16), (3000, 200, 1), (10, 784, 500), (3, 2000, 500)]
)
@pytest.mark.parametrize("kernel", ["forward", "delta", "backward", "update"])
def test_two_threads_hardly_take_longer_than_one(kernel, shape):
    pf.set_backend(BEST)
    n, k, m = shape
    rng = np.random.default_rng(0)
    x, w, b, d = (rng.random(size, np.float32) for size in ((n, k), (k, m), m, (n, m)))
    call = {
        "forward": partial(pf.dense_forward, x, w, b, "sigmoid", np.empty((n, m), np.float32)),
        "delta": partial(pf.sigmoid_delta, d, w, x, np.empty((n, k), np.float32)),
        "backward": partial(pf.dense_backward, x, w, d),
        "update": partial(pf.dense_update, x, w, b, d, 0.0),
    }[kernel]

    def with_threads(threads: int) -> list[float]:
        pf.set_num_threads(threads)
        return seconds_of(call, 1 + int(0.02 / min(seconds_of(call, 3))))

    assert best_ratio(partial(with_threads, 2), partial(with_threads, 1), 0.8) >= 0.8


def test_predicting_one_sample_beats_numpy():
    x = WORKLOADS["control"].data[0][:1]
    cpp, numpy = (WORKLOADS["control"].network() for _ in range(2))

    def predict(network: pf.MLP, backend: str | CppBackend) -> list[float]:
        with pf.use_backend(backend):
            return seconds_of(partial(network.predict, x), 500)

    assert best_ratio(partial(predict, cpp, BEST), partial(predict, numpy, "numpy"), 2.5) >= 2.5


@pytest.mark.skipif(
    len(instruction_sets() if COMPILED else []) < 2, reason="this machine has but one instruction set"
)
def test_vectors_beat_the_baseline():
    rng = np.random.default_rng(0)
    x, w, b = (rng.random(shape, np.float32) for shape in ((256, 512), (512, 512), 512))
    out = np.empty((256, 512), np.float32)

    def forward(backend: CppBackend) -> list[float]:
        with pf.use_backend(backend):
            return seconds_of(partial(pf.dense_forward, x, w, b, "sigmoid", out), 5)

    baseline = CppBackend(instruction_sets()[0])
    assert best_ratio(partial(forward, BEST), partial(forward, baseline), 2) >= 2
