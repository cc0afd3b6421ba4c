"""How the CUDA backend launches its work: graphs, products by cuBLAS, and what happens when either fails."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from cuda_fits import agree, problem, trained

import pyfastnn as pf
from pyfastnn.backends.cuda import blas, plan, shim
from pyfastnn.backends.cuda.plan import CudaPlan, Resident

pytestmark = pytest.mark.cuda


class Multiply:
    """cuBLAS's part, in NumPy."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, shape, a, b, out, *, a_transposed, b_transposed):
        rows, columns, depth = shape
        self.calls += 1
        left, right = a.copy_to_host()[: rows * depth], b.copy_to_host()[: depth * columns]
        left = left.reshape(depth, rows).T if a_transposed else left.reshape(rows, depth)
        right = right.reshape(columns, depth).T if b_transposed else right.reshape(depth, columns)
        whole = out.copy_to_host()
        whole[: rows * columns] = (left @ right).ravel()
        out.copy_to_device(whole)


@pytest.fixture
def multiply(monkeypatch, cuda) -> Multiply:
    """Products by what stands in for cuBLAS, however small they are."""
    multiply = Multiply()
    monkeypatch.setattr(blas, "WORTHWHILE", 0)
    monkeypatch.setitem(cuda.__dict__, "gemm", multiply)
    return multiply


def test_steps_together():
    assert [plan.steps_together(whole) for whole in (1, 3, 5, 8, 20, 67, 467)] == [1, 3, 5, 4, 4, 6, 5]


def test_long_epochs_replay_graphs(cuda, monkeypatch):
    launched = []
    launch = shim.Graph.launch
    monkeypatch.setattr(shim.Graph, "launch", lambda graph: (launched.append(1), launch(graph)))
    network, data = ("tanh", "identity", "mse", "float32"), problem("mse", 67, "float32")
    settings = {"epochs": 2, "batch_size": 1, "optimizer": pf.SGD(0.01)}
    ours, reference = (trained(cuda, way, network, data, **settings) for way in (False, None))
    assert len(launched) == 2 * 11  # of 6 steps; one more compiles, and is left over in the second epoch
    agree(*ours, *reference, 134)


def test_short_epochs_replay_graphs(cuda, monkeypatch):
    launched = []
    launch = shim.Graph.launch
    monkeypatch.setattr(shim.Graph, "launch", lambda graph: (launched.append(1), launch(graph)))
    network = ("tanh", "identity", "mse", "float32")
    for samples in (4, 8, 9, 12):
        launched.clear()
        data, settings = problem("mse", samples, "float32"), {"epochs": 3, "batch_size": 4}
        ours, reference = (
            trained(cuda, way, network, data, optimizer=pf.SGD(0.01), **settings) for way in (False, None)
        )
        assert len(launched) == 2  # the first epoch compiles
        agree(*ours, *reference, 9)


@pytest.mark.skipif(shim.SIMULATED, reason="needs a GPU: the simulator has neither graphs nor cuBLAS")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_graphs_with_the_library_follow_the_reference(cuda, monkeypatch, dtype):
    if cuda.gemm is None:
        pytest.skip("without cuBLAS")
    replayed = []
    launch = shim.Graph.launch
    monkeypatch.setattr(
        shim.Graph, "launch", lambda graph: (replayed.append(graph._executable), launch(graph))
    )
    monkeypatch.setattr(blas, "WORTHWHILE", 0)
    network, data = ("gelu", "softmax", "cross_entropy", dtype), problem("cross_entropy", 80, dtype)
    settings = {"epochs": 2, "batch_size": 4, "optimizer": pf.Adam(0.01)}
    ours, reference = (trained(cuda, way, network, data, **settings) for way in (False, None))
    agree(*ours, *reference, 40)
    assert len(replayed) == 4 + 5
    assert None not in replayed


def test_what_cannot_be_recorded_is_launched(monkeypatch, caplog):
    def fail(graph):
        raise RuntimeError("another thread has used the legacy stream")

    launched = []
    with monkeypatch.context() as patched:
        patched.setattr(shim, "SIMULATED", False)
        patched.setattr(shim.Graph, "_capture", fail)
        graph = shim.Graph(lambda: launched.append(1), None)
    assert not launched
    assert "no graph could be recorded: another thread has used" in caplog.text
    graph.launch()
    graph.launch()
    graph.close()
    assert len(launched) == 2


def test_a_dead_device_does_not_hide_the_first_error(cuda, monkeypatch, caplog):
    x, y = problem("mse", 5, "float32")
    optimizer = pf.Adam()

    def dead(*arguments):
        raise RuntimeError("the device is dead")

    def fit(net: pf.MLP, error: Exception | None) -> Resident:
        state = net._optimizer_state(optimizer)
        run = CudaPlan(cuda, net._spec, fused=False).training(net.params, x, y, None, 2, state)
        with monkeypatch.context() as patched, run:
            run.epoch(np.arange(5))
            run._graph = SimpleNamespace(close=dead)
            patched.setattr(shim, "download", dead)
            if error:
                raise error
        return run

    with pytest.raises(KeyError):
        fit(pf.MLP([4, 3]), KeyError())
    assert "parameters could not be brought back from the device: the device is dead" in caplog.text
    with pytest.raises(RuntimeError, match="the device is dead"):
        fit(pf.MLP([4, 3]), None)


def test_a_graph_is_forgotten_though_it_cannot_be_closed(cuda):
    x, y = problem("mse", 5, "float32")
    net, optimizer = pf.MLP([4, 3]), pf.Adam()
    state = net._optimizer_state(optimizer)
    run = CudaPlan(cuda, net._spec, fused=False).training(net.params, x, y, None, 2, state)

    def dead():
        raise RuntimeError("the device is dead")

    run._graph = SimpleNamespace(close=dead)
    with pytest.raises(RuntimeError, match="the device is dead"), run:
        pass
    assert run._graph is None


def test_small_products_do_not_ask_for_the_library(cuda, monkeypatch):
    monkeypatch.delitem(cuda.__dict__, "gemm", raising=False)
    monkeypatch.setattr(blas, "find", lambda stream: pytest.fail("asked"))
    pf.dense_forward(np.ones((2, 3)), np.ones((3, 4)), np.ones(4))


@pytest.mark.parametrize("error", [OSError("no cuBLAS"), RuntimeError("cuBLAS failed with status 1")])
def test_a_library_that_does_not_work_is_logged(monkeypatch, caplog, error):
    def fail(stream):
        raise error

    monkeypatch.setattr(shim, "SIMULATED", False)
    monkeypatch.setattr(blas, "Cublas", fail)
    assert blas.find(None) is None
    assert f"large matrix products are left to kernels of our own: {error}" in caplog.text


@pytest.mark.parametrize("by_library", [True, False])
def test_room_for_batches_is_the_fits(cuda, request, by_library):
    if by_library:
        request.getfixturevalue("multiply")
    x, y = problem("mse", 11, "float32")
    net, optimizer = pf.MLP([4, 6, 3]), pf.Adam()
    state = net._optimizer_state(optimizer)
    run = CudaPlan(cuda, net._spec, fused=False).training(net.params, x, y, None, 5, state)
    assert run.room.size == (20 if by_library else 1)


@pytest.mark.parametrize("hidden", ["tanh", "gelu"])
def test_large_products_go_to_the_library(cuda, multiply, hidden):
    network, data = (hidden, "softmax", "cross_entropy", "float32"), problem("cross_entropy", 11, "float32")
    settings = {"epochs": 2, "batch_size": 4, "optimizer": pf.Adam(0.01)}
    ours = trained(cuda, False, network, data, **settings)
    assert multiply.calls == 2 * 3 * (2 + 2 + 1)  # epochs, steps; forward, gradients, back
    agree(*ours, *trained(cuda, None, network, data, **settings), 6)


def test_kernels_by_the_library(cuda, multiply):
    rng = np.random.default_rng(1)
    x, w, b, d = (rng.normal(size=size) for size in ((5, 7), (7, 3), (3,), (5, 3)))
    np.testing.assert_allclose(pf.dense_forward(x, w, b, "softplus"), np.log1p(np.exp(x @ w + b)), rtol=1e-13)
    for got, exact in zip(pf.dense_backward(x, w, d), (x.T @ d, d.sum(axis=0), d @ w.T), strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-14)
    np.testing.assert_allclose(pf.sigmoid_delta(d, w, x), (d @ w.T) * (x * (1 - x)), rtol=0, atol=1e-13)
    assert multiply.calls == 4
