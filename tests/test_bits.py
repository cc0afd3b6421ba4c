"""The promise: the same seed gives the same bits on any number of threads, and on any instruction set
with fused multiply-add, in every training schedule.
"""

from __future__ import annotations

import numpy as np
import pytest
from conftest import COMPILED

import pyfastnn as pf
from pyfastnn.backends.cpp import CppBackend

if COMPILED:
    from pyfastnn import _core

pytestmark = pytest.mark.skipif(not COMPILED, reason="needs the compiled core")

# One network and batch for each schedule of csrc/schedules.cpp and csrc/split.hpp, and its variants; large
# enough for several threads; odd sizes, mostly, and a last batch that is short.
SCHEDULES = {
    "tiles": ([5, 33, 17, 3], 1201, 4000),
    "tiles, of few outputs": ([5, 12, 3, 16, 2], 1201, 3000),
    "rows, then weights": ([65, 129, 67, 5], 90, 2000),
    "rows, then weights, of more rows than are summed at once": ([383, 401, 10], 300, 700),
    "rows, then weights, of more inputs than stay near": ([5, 1400, 300, 3], 100, 200),
    "rows, then weights, of few outputs": ([65, 30, 129, 1, 67, 4], 90, 1000),
    "inputs, then tail": ([787, 31, 10], 13, 3000),
    "inputs, then tail, an odd number of parts": ([600, 31, 10], 13, 1000),
    "inputs, then tail, of few outputs": ([600, 31, 2], 13, 1000),
    "two layers split": ([70, 195, 67, 5], 30, 500),
    "two layers split, two parts": ([64, 64, 64, 4], 32, 500),
    "two layers split, uneven parts": ([7, 1100, 40], 8, 100),
    "two layers split, of few outputs": ([66, 195, 3], 50, 500),
    "two layers split, many rows": ([70, 195, 11, 5], 120, 900),
    "two layers split, one row": ([30, 700, 390, 70], 1, 30),
    "two layers of many inputs split": ([787, 150, 70, 5], 13, 300),
    "four layers split": ([40, 100, 90, 290, 70, 3], 20, 300),
    "four layers split, the upper ones of few outputs": ([40, 100, 70, 150, 2], 60, 600),
    "four layers split, the lower ones of few outputs": ([70, 200, 3, 200, 70, 5], 30, 300),
    "six layers split": ([60, 50, 45, 60, 50, 48, 3], 30, 300),
    "layer by layer": ([130, 101, 103, 500], 16, 250),
    "layer by layer, on some numbers of threads": ([130, 101, 103, 500], 60, 500),
    "layer by layer, of few outputs": ([400, 31, 3, 307, 305], 30, 400),
    "layer by layer, one row": ([30, 31, 700, 390], 1, 30),
    "a single layer, few rows": ([700, 100], 20, 300),
    "a single layer of few outputs": ([100, 1], 90, 10_000),
    "a single layer of few outputs, replicas": ([131, 3], 200, 10_000),
    "a single layer of few outputs, tiles": ([37, 2], 500, 10_000),
    "replicas, of which the last batch leaves one empty": ([21, 14, 9, 3], 200, 14_005),
    "replicas, of few outputs": ([7, 33, 2], 137, 20_000),
    "parts": ([65, 129, 67, 5], 250, 1010),
    "parts, of few outputs": ([65, 129, 8, 3], 250, 1010),
    "parts, of which the last batch leaves some empty": ([65, 129, 67, 5], 530, 1070),
    "parts, of more rows than are summed at once": ([65, 129, 67, 5], 1100, 1700),
    "eight parts, of which the last batch leaves some empty": ([110, 130, 5], 2100, 4247),
}
# Labels; of few outputs, which lie without padding then, also targets.
OUTPUTS = [
    (schedule, output)
    for schedule, (layers, _, _) in SCHEDULES.items()
    for output in (("softmax", "tanh") if layers[-1] <= 4 else ("softmax",))
]
OPTIMIZERS = [pf.SGD(0.1), pf.SGD(0.1, momentum=0.9), pf.SGD(0.1, momentum=0.9, nesterov=True), pf.Adam()]


def assert_same_bits(result: np.ndarray, reference: np.ndarray, message: str) -> None:
    """Equal, and zeros of the same sign."""
    np.testing.assert_array_equal(result, reference, err_msg=message)
    np.testing.assert_array_equal(np.signbit(result), np.signbit(reference), err_msg=message)


def trained(
    backend: CppBackend,
    threads: int,
    schedule: str,
    output: str,
    dtype: np.dtype,
    optimizer: object,
    weighted: bool,
) -> np.ndarray:
    """Parameters after two epochs, their gradients on a batch and on all samples, and the losses."""
    layers, batch_size, samples = SCHEDULES[schedule]
    rng = np.random.default_rng(1)
    x = rng.normal(size=(samples, layers[0])).astype(dtype)
    y = rng.integers(0, layers[-1], samples)
    if output == "tanh":
        y = rng.normal(size=(samples, layers[-1])).astype(dtype)
    weight = rng.uniform(0, 2, samples).astype(dtype) if weighted else None
    net = pf.MLP(layers, (["tanh", "gelu"] * 3)[: len(layers) - 2], output, dtype=dtype, seed=0)
    with pf.use_backend(backend):
        _core.oversubscribe(threads > 1)
        pf.set_num_threads(threads)
        try:
            history = net.fit(
                x, y, epochs=2, batch_size=batch_size, optimizer=optimizer, sample_weight=weight
            )
            parts = [net.params, np.array(history.loss)]
            for count in (batch_size, samples):
                some = None if weight is None else weight[:count]
                loss, gradient = net.loss_and_gradient(x[:count], y[:count], sample_weight=some)
                parts += [gradient, np.array([loss])]
        finally:
            _core.oversubscribe(False)
            pf.set_num_threads(0)
    return np.concatenate(parts)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize(("schedule", "output"), OUTPUTS)
def test_threads_and_instruction_sets_give_the_same_bits(dtype, schedule, output, optimizer, weighted):
    results = {
        (backend.isa, threads): trained(backend, threads, schedule, output, dtype, optimizer, weighted)
        for backend in COMPILED
        for threads in (1, 2, 3, 4, 5)
    }
    for (isa, threads), result in results.items():
        assert np.isfinite(result).all()
        # The baseline rounds products before it adds them: bits of its own, the same for all threads.
        reference = results[isa if isa == "baseline" else COMPILED[-1].isa, 1]
        assert_same_bits(result, reference, f"{isa}, {threads} threads")


def test_the_sign_of_zero_is_the_same_on_any_number_of_threads(dtype):
    rng = np.random.default_rng(5)
    x = (rng.uniform(1, 2, (250, 65)) * np.finfo(dtype).tiny).astype(dtype)
    y = rng.normal(size=(250, 5)).astype(dtype)
    net = pf.MLP([65, 129, 67, 5], "tanh", dtype=dtype, seed=0)
    gradients = []
    for threads in (1, 2, 3):
        _core.oversubscribe(threads > 1)
        pf.set_num_threads(threads)
        try:
            with pf.use_backend(COMPILED[-1]):
                gradients.append(net.loss_and_gradient(x, y)[1])
        finally:
            _core.oversubscribe(False)
            pf.set_num_threads(0)
    # Products with small deltas underflow to zeros of either sign.
    first = gradients[0][: 65 * 129]
    assert (first == 0).any()
    assert len(np.unique(np.signbit(first[first == 0]))) == 2
    for gradient in gradients[1:]:
        assert_same_bits(gradient, gradients[0], "")


# By rows, in tall and deep blocks; of one row and of few, so by columns; with one column and with few. By
# columns of many weights, on more threads by rows too, and of the gradients of few inputs; few outputs in
# interleaved sums, few inputs by dot products; rows that meet in the caches. All are worth waking threads
# for.
@pytest.mark.parametrize(
    "shape",
    [
        *((150, 300, 520), (300, 700, 130), (1100, 1100, 300), (2500, 90, 100)),
        *((1, 3000, 900), (20, 700, 500), (9000, 500, 1), (3000, 400, 3)),
        *((150, 1100, 1000), (3000, 30, 200), (3000, 601, 3), (3000, 3, 400)),
        *((3001, 334, 2), (1003, 1037, 4), (700_001, 3, 1), (8, 3001, 901)),
        *((8, 65, 20_000), (40, 1100, 1024), (11, 1100, 509)),
        *((30_001, 3, 50), (20_000, 4, 127), (40_000, 2, 16)),
    ],
    ids=repr,
)
def test_kernels_have_the_same_bits_on_any_number_of_threads(dtype, shape):
    n, k, m = shape
    rng = np.random.default_rng(3)
    x, w, b, d = (rng.normal(size=size).astype(dtype) for size in ((n, k), (k, m), (m,), (n, m)))
    results = {}
    for backend in COMPILED:
        with pf.use_backend(backend):
            for threads in (1, 2, 5, 6):
                _core.oversubscribe(threads > 1)
                pf.set_num_threads(threads)
                try:
                    arrays = [
                        pf.dense_forward(x, w, b, "tanh"),
                        pf.dense_forward(x, w, b, "softmax"),
                        pf.activation_delta(d, w, x, "tanh"),
                        *pf.dense_backward(x, w, d),
                        *(changed := (w.copy(), b.copy())),
                    ]
                    pf.dense_update(x, *changed, d, 0.1)
                finally:
                    _core.oversubscribe(False)
                    pf.set_num_threads(0)
                results[backend.isa, threads] = np.concatenate([array.ravel() for array in arrays])
    for (isa, threads), result in results.items():
        reference = results[isa if isa == "baseline" else COMPILED[-1].isa, 1]
        assert_same_bits(result, reference, f"{isa}, {threads} threads")


@pytest.mark.parametrize("layers", [[24, 8, 2], [4, 16, 4], [24, 8, 11], [24, 40, 3]], ids=repr)
def test_vectors_chosen_for_the_network_give_the_same_bits(monkeypatch, dtype, layers):
    """The instruction set that nobody has named may be a narrower one for a network."""
    monkeypatch.delenv("PYFASTNN_ISA", raising=False)
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=(450, size)).astype(dtype) for size in (layers[0], layers[-1]))
    results = []
    for backend in (CppBackend(), COMPILED[-1]):
        net = pf.MLP(layers, "tanh", dtype=dtype, seed=0)
        with pf.use_backend(backend):
            history = net.fit(x, y, epochs=2, batch_size=100)
            results.append(np.concatenate([net.params, net.predict(x).ravel(), history.loss]).tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("inputs", [1, 2, 3, 4, 70])
@pytest.mark.parametrize("backend", COMPILED, ids=lambda backend: backend.isa)
def test_one_row_has_the_bits_of_its_batch(backend, dtype, inputs):
    """A single row goes another way, which depends on how many vectors its columns fill; so do a few rows."""
    rng = np.random.default_rng(2)
    for outputs in range(1, 150):
        sizes = (13, inputs), (inputs, outputs), (outputs,)
        x, w, b = (rng.normal(size=size).astype(dtype) for size in sizes)
        with pf.use_backend(backend):
            whole = pf.dense_forward(x, w, b)
            for at_once in (1, 5):
                rows = [pf.dense_forward(x[i : i + at_once], w, b) for i in range(0, len(x), at_once)]
                np.testing.assert_array_equal(np.concatenate(rows), whole)


@pytest.mark.parametrize("backend", COMPILED, ids=lambda backend: backend.isa)
def test_an_update_has_the_bits_of_its_parts(backend, dtype):
    """Threads split parameters where they like, while vectors of a range may take turns."""
    rng = np.random.default_rng(4)
    whole = [rng.random(3000).astype(dtype) for _ in range(4)]  # parameters, two slots, gradient
    parts = [array.copy() for array in whole]
    numbers = pf.Adam().numbers(7, 1)[0].tolist()
    backend.update("adam", whole[0], whole[3], whole[1:3], numbers)
    for first, end in ((0, 40), (40, 1000), (1000, 1024), (1024, 3000)):
        part = [array[first:end] for array in parts]
        backend.update("adam", part[0], part[3], part[1:3], numbers)
    np.testing.assert_array_equal(parts, whole)
