"""The CUDA backend's own: plans, residency, the ways of training; in the simulator or on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import tolerance

import pyfastnn as pf
from pyfastnn.backends import load
from pyfastnn.backends.cuda import arrays, blas, narrow, plan, products, rows, shim
from pyfastnn.backends.cuda.arrays import DeviceView
from pyfastnn.backends.cuda.backend import CudaBackend
from pyfastnn.backends.cuda.plan import CudaPlan, Resident

pytestmark = pytest.mark.cuda

OPTIMIZERS = [pf.SGD(0.1), pf.SGD(0.1, momentum=0.9), pf.SGD(0.1, momentum=0.9, nesterov=True), pf.Adam(0.01)]
ACTIVATIONS = [name for name, f in pf.activations.ACTIVATIONS.items() if not f.rowwise]
PAIRS = [
    (loss.name, name)
    for loss in pf.losses.LOSSES.values()
    for name, f in pf.activations.ACTIVATIONS.items()
    if f.slope_from == "output" and (loss.outputs is None or name in loss.outputs)
]


@pytest.fixture
def cuda() -> Iterator[CudaBackend]:
    with pf.use_backend("cuda"):
        yield load("cuda")


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


def problem(loss: str, samples: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(samples, 4)).astype(dtype), rng.uniform(0.1, 1, (samples, 3))
    if pf.losses.LOSSES[loss].targets == "classes":
        y /= y.sum(axis=1, keepdims=True)
    return x, y.astype(dtype)


def trained(
    backend: CudaBackend, fused: bool | None, network: tuple, data: tuple, **settings
) -> tuple[pf.MLP, pf.History]:
    """A network fitted on the device (fused or not; None: on the reference)."""
    hidden, output, loss, dtype = network
    net = pf.MLP([4, 6, 3], hidden, output, loss=loss, dtype=dtype, seed=1)
    with pf.use_backend("numpy" if fused is None else backend):
        if fused is not None:
            net._latest_plan = CudaPlan(backend, net._spec, fused=fused)
        history = net.fit(*data, progress=False, **settings)
    return net, history


def agree(net: pf.MLP, history: pf.History, exact: pf.MLP, expected: pf.History, steps: int) -> None:
    # Sums of at most 11 terms in three layers, functions of a few ulps, at every step; slopes and rates
    # here are below one, so errors add up. Adam divides by moments that err as the gradients do.
    unit = np.finfo(net.dtype).eps
    bound = steps * unit * (4 * 11 + 4 * tolerance.FUNCTION_ULPS) * max(1, abs(exact.params).max())
    assert abs(net.params - exact.params).max() <= bound
    np.testing.assert_allclose(history.loss, expected.loss, rtol=0, atol=bound * 10)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [*((each, "float32") for each in OPTIMIZERS), (OPTIMIZERS[-1], "float64")],
    ids=repr,
)
def test_training_follows_the_reference(cuda, fused, optimizer, dtype):
    """Shuffled, with weights, the last batch short."""
    network, data = ("tanh", "identity", "mse", dtype), problem("mse", 11, dtype)
    weight = np.linspace(0, 2, 11).astype(dtype)
    settings = {"epochs": 3, "batch_size": 4, "optimizer": optimizer, "sample_weight": weight}
    ours, reference = (trained(cuda, way, network, data, **settings) for way in (fused, None))
    agree(*ours, *reference, 9)
    for slot, exact in zip(ours[0]._training[1].slots, reference[0]._training[1].slots, strict=True):
        np.testing.assert_allclose(slot, exact, rtol=0, atol=1e3 * np.finfo(dtype).eps * abs(exact).max())
    again, history = trained(cuda, fused, network, data, **settings)
    assert again.params.tobytes() == ours[0].params.tobytes()
    assert history.loss == ours[1].loss


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("hidden", ACTIVATIONS)
def test_every_hidden_activation_trains(cuda, fused, hidden):
    network, data = (hidden, "identity", "mse", "float32"), problem("mse", 5, "float32")
    settings = {"epochs": 1, "batch_size": 3, "optimizer": pf.SGD(0.05)}
    agree(*(each for way in (fused, None) for each in trained(cuda, way, network, data, **settings)), 2)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("loss", "output"), PAIRS)
def test_every_loss_trains(cuda, fused, loss, output):
    network, data = ("tanh", output, loss, "float32"), problem(loss, 5, "float32")
    settings = {"epochs": 1, "batch_size": 3, "optimizer": pf.SGD(0.05)}
    agree(*(each for way in (fused, None) for each in trained(cuda, way, network, data, **settings)), 2)


@pytest.mark.parametrize("fused", [True, False])
def test_labels_train_as_one_hot_rows(cuda, fused):
    x, labels = problem("mse", 7, "float32")[0], np.arange(7) % 3
    network = ("tanh", "softmax", "cross_entropy", "float32")
    settings = {"epochs": 2, "batch_size": 3, "optimizer": pf.Adam(0.01)}
    ours = trained(cuda, fused, network, (x, labels), **settings)
    agree(*ours, *trained(cuda, None, network, (x, labels), **settings), 6)
    rows_of_one = np.eye(3, dtype="float32")[labels]
    agree(*ours, *trained(cuda, fused, network, (x, rows_of_one), **settings), 6)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("hidden", ["tanh", "relu"])
def test_special_numbers_pass_through_training(cuda, fused, special, hidden):
    x, y = problem("mse", 5, "float32")
    x[1, 2] = special
    settings = {"epochs": 1, "batch_size": 5, "optimizer": pf.SGD(0.05), "shuffle": False}
    network = (hidden, "identity", "mse", "float32")
    (ours, history), (exact, expected) = (
        trained(cuda, way, network, (x, y), **settings) for way in (fused, None)
    )
    np.testing.assert_array_equal(np.isfinite(ours.params), np.isfinite(exact.params))
    np.testing.assert_array_equal(np.isnan(ours.params), np.isnan(exact.params))
    np.testing.assert_array_equal(np.isnan(history.loss), np.isnan(expected.loss))


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
        run = CudaPlan(cuda, net._spec, fused=False).training(net.params, x, y, None, 2, optimizer, state)
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
    run = CudaPlan(cuda, net._spec, fused=False).training(net.params, x, y, None, 2, optimizer, state)

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
    run = CudaPlan(cuda, net._spec, fused=False).training(net.params, x, y, None, 5, optimizer, state)
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


@pytest.fixture
def copies(monkeypatch) -> dict[str, list[int]]:
    """The sizes of the arrays that go to the device and come back."""
    seen: dict[str, list[int]] = {"upload": [], "refill": [], "download": []}
    for name, sizes in seen.items():
        real = getattr(shim, name)

        def counted(*arguments, real=real, sizes=sizes):
            sizes.append(arguments[1 if real.__name__ == "download" else -2].size)
            return real(*arguments)

        monkeypatch.setattr(shim, name, counted)
    return seen


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("batch_size", [10, 50])
def test_data_are_copied_once(cuda, copies, batch_size, fused):
    x, y = problem("mse", 50, "float32")
    net = pf.MLP([4, 6, 3], "tanh", seed=1)
    net._latest_plan = CudaPlan(cuda, net._spec, fused=fused)
    cuda.nothing  # noqa: B018 (made at the first use)
    for sizes in copies.values():
        sizes.clear()
    net.fit(x, y, epochs=4, batch_size=batch_size, validation_data=(x[:49], y[:49]), progress=False)
    everything = copies["upload"] + copies["refill"]
    assert everything.count(x.size) == 1
    assert everything.count(y.size) == 1
    assert everything.count(x[:49].size) == 1
    # Parameters and both slots: once there, once back.
    assert everything.count(net.parameter_count) == copies["download"].count(net.parameter_count) == 3


@pytest.mark.parametrize("fused", [True, False])
def test_callbacks_see_and_change_the_network(cuda, fused):
    x, y = problem("mse", 9, "float32")
    seen = []

    class Look(pf.Callback):
        def on_begin(self, network, epochs):
            self.view = network.weights[0]

        def on_epoch(self, network, history):
            seen.append(network.params.copy())
            assert self.view.tobytes() == network.params[:24].tobytes()
            network.params[...] *= np.float32(0.5)

    ways = [cuda, load("numpy")]
    results = []
    for backend in ways:
        net = pf.MLP([4, 6, 3], "tanh", seed=1)
        with pf.use_backend(backend):
            if backend is cuda:
                net._latest_plan = CudaPlan(cuda, net._spec, fused=fused)
            net.fit(x, y, epochs=3, batch_size=4, shuffle=False, callbacks=[Look()])
        results.append(net.params)
    for ours, exact in zip(seen[:3], seen[3:], strict=True):
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-5)
    np.testing.assert_allclose(*results, rtol=0, atol=1e-5)


def test_an_exception_leaves_the_last_state(cuda):
    x, y = problem("mse", 9, "float32")

    class Fail(pf.Callback):
        def on_epoch(self, network, history):
            if len(history) == 2:
                network.biases[0][...] = 7
                raise KeyError

    net, twin = (pf.MLP([4, 6, 3], "tanh", seed=1) for _ in range(2))
    settings = {"batch_size": 4, "shuffle": False, "optimizer": pf.Adam(0.01), "progress": False}
    with pytest.raises(KeyError):
        net.fit(x, y, epochs=5, callbacks=[Fail()], **settings)
    twin.fit(x, y, epochs=2, **settings)
    assert net.weights[0].tobytes() == twin.weights[0].tobytes()
    assert (net.biases[0] == 7).all()
    assert net._training[1].step == twin._training[1].step == 6


def on_device(cuda: CudaBackend, array: np.ndarray) -> DeviceView:
    return DeviceView(shim.upload(array, cuda.stream), array.shape)


def test_arrays_on_the_device_stay_there(cuda, copies):
    rng = np.random.default_rng(1)
    x, w, b, d = (rng.normal(size=size).astype("f") for size in ((5, 7), (7, 3), (3,), (5, 3)))
    there = [on_device(cuda, array) for array in (x, w, b, d)]
    host = pf.dense_forward(x, w, b, "tanh"), *pf.dense_backward(x, w, d), pf.sigmoid_delta(d, w, x)
    copies["download"].clear()
    results = pf.dense_forward(*there[:3], "tanh"), *pf.dense_backward(there[0], there[1], there[3])
    results = *results, pf.sigmoid_delta(there[3], there[1], there[0])
    assert copies["download"] == []
    for result, exact in zip(results, host, strict=True):
        assert isinstance(result, DeviceView)
        np.testing.assert_array_equal(result.copy_to_host(), exact)
    out = on_device(cuda, np.zeros((5, 3), "f"))
    assert pf.dense_forward(there[0], w, b, "tanh", out=out) is out
    np.testing.assert_array_equal(out.copy_to_host(), host[0])
    with pytest.raises(ValueError, match=r"^out must not share memory with x"):
        pf.dense_forward(there[0], w[:, :1].copy(), b[:1], out=DeviceView(there[0].flat[:5], (5, 1)))
    with pytest.raises(ValueError, match=r"^w must have shape \(7, any\)"):
        pf.dense_forward(there[0], there[3], b)
    with pytest.raises(TypeError, match=r"^w must be float32, as the other arrays"):
        pf.dense_forward(there[0], w.astype(np.float64), b)


def test_fit_on_arrays_of_the_device(cuda, copies):
    x, y = problem("mse", 11, "float32")
    net, twin = (pf.MLP([4, 6, 3], "tanh", seed=1) for _ in range(2))
    there = on_device(cuda, x), on_device(cuda, y)
    copies["upload"].clear()
    settings = {"epochs": 2, "batch_size": 4, "progress": False}
    net.fit(*there, validation_data=there, **settings)
    assert x.size not in copies["upload"]
    twin.fit(x, y, **settings)
    assert net.params.tobytes() == twin.params.tobytes()
    np.testing.assert_array_equal(net.predict(there[0]).copy_to_host(), twin.predict(x))
    assert net.evaluate(*there) == twin.evaluate(x, y)
    assert net.loss_and_gradient(*there)[0] == twin.loss_and_gradient(x, y)[0]
    labels = on_device(cuda, np.arange(11) % 3)
    classifier = pf.MLP([4, 3], output="softmax", seed=1)
    classifier.fit(there[0], labels, **settings)
    with pytest.raises(ValueError, match=r"^y must be labels from 0 to 2, got 3"):
        classifier.fit(there[0], on_device(cuda, np.arange(11) % 4), **settings)


def test_only_this_backend_takes_them(cuda):
    class Elsewhere:
        __cuda_array_interface__ = {"data": (0, False)}  # noqa: RUF012

    class Exchanged:
        def __dlpack_device__(self):
            return 2, 0

    for array in (Elsewhere(), Exchanged()):
        with pf.use_backend("numpy"), pytest.raises(TypeError, match=r"^x is on a CUDA device, where only"):
            pf.MLP([4, 3]).predict(array)


class Foreign:
    """An array of another library on the device, such as it shows itself."""

    def __init__(self, array, readonly=False, **more):
        self.array = array
        self.asked = 0
        data = array.ctypes.data, readonly
        self.__cuda_array_interface__ = {
            "version": 2,
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": data,
        } | more

    def __dlpack_device__(self):
        return 2, 0


@pytest.fixture
def foreign(monkeypatch, cuda) -> type[Foreign]:
    """The class; the simulator takes arrays of it, directly or by an exchange."""
    if not shim.SIMULATED:
        pytest.skip("the memory of these arrays is on the host")

    class Exchanged:
        def __init__(self, value, stream):
            assert stream is cuda.stream
            value.asked += 1
            self.array, self.__cuda_array_interface__ = value.array, {"data": (0, False)}

    monkeypatch.setattr(arrays, "_Exchanged", Exchanged)
    there = shim.cuda.to_device
    monkeypatch.setattr(
        shim.cuda, "as_cuda_array", lambda given: there(given.array, copy=False), raising=False
    )
    return Foreign


def test_dlpack_waits_where_the_interface_knows_no_stream(cuda, foreign):
    array = np.ones((2, 3), "f")
    for more, times in (({}, 1), ({"stream": None}, 0), ({"stream": 1}, 0)):
        value = foreign(array, **more)
        view = cuda.adopt(value)
        assert isinstance(view, DeviceView)
        assert view.owner is value
        assert value.asked == times
        assert view.shape == (2, 3)


def test_read_only_arrays_are_not_written_to(cuda, foreign):
    x, w, b = (np.ones(shape, "f") for shape in ((2, 3), (3, 4), (4,)))
    for more in ({}, {"stream": 1}):
        out = foreign(np.zeros((2, 4), "f"), readonly=True, **more)
        with pytest.raises(ValueError, match=r"^out must be writeable, got a read-only array"):
            pf.dense_forward(x, w, b, out=out)
        with pytest.raises(ValueError, match=r"^z must be writeable, got a read-only array"):
            pf.dense_forward(x, w, b, "gelu", z=out)
        assert not out.array.any()
        writeable = foreign(np.zeros((2, 4), "f"), **more)
        assert pf.dense_forward(x, w, b, out=writeable) is writeable


@pytest.fixture
def waits(monkeypatch, cuda) -> list[int]:
    """An entry for each wait for the device."""
    seen: list[int] = []
    wait = type(cuda.stream).synchronize
    monkeypatch.setattr(type(cuda.stream), "synchronize", lambda stream: (seen.append(1), wait(stream)))
    return seen


def test_calls_wait_for_what_is_not_ours(cuda, foreign, waits):
    """The host's arrays, and those of others, may change once a call is over; ours are in order."""
    host = [np.ones(shape, "f") for shape in ((2, 3), (3, 4), (4,))]
    ours = [on_device(cuda, array) for array in host]
    result = pf.dense_forward(*ours)
    pf.dense_backward(*ours[:2], result)
    assert not waits
    for place in range(3):
        for other in (host[place], foreign(host[place])):
            waits.clear()
            pf.dense_forward(*ours[:place], other, *ours[place + 1 :], out=result)
            assert waits
    waits.clear()
    pf.dense_forward(*ours, out=foreign(np.zeros((2, 4), "f")))
    assert waits


def test_what_is_being_copied_is_kept(cuda):
    """Until the losses of the epoch are back, which is after the copies."""
    x, y = problem("mse", 5, "float32")
    net = pf.MLP([4, 3], seed=1)
    optimizer = pf.Adam()
    with net._plan().training(net.params, x, y, None, 2, optimizer, net._optimizer_state(optimizer)) as run:
        run.epoch(np.arange(5))
        assert set(run._sent) == {"order", "table", "factors"}
        for name, array in run._sent.items():
            np.testing.assert_array_equal(getattr(run, name).copy_to_host(), array.ravel())


def test_dlpack_is_read():
    """The numbers of an exchange, on an array of the host, which DLPack knows as well."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    stream = SimpleNamespace(handle=-1)
    interface = arrays._Exchanged(array, stream).__cuda_array_interface__
    assert interface["data"] == (array.ctypes.data, False)
    assert (interface["shape"], interface["strides"], interface["typestr"]) == ((2, 3), (12, 4), "<f4")
    assert arrays._Exchanged(array.T, stream).__cuda_array_interface__["strides"] == (4, 12)


def test_one_thread_at_a_time(cuda, monkeypatch):
    x, y = problem("mse", 5, "float32")
    done = []

    def work():
        with pf.use_backend(cuda):
            done.append(pf.dense_forward(x, np.ones((4, 3), "f"), np.ones(3, "f")))

    other = Thread(target=work)

    def epoch(run, numbers):
        other.start()
        other.join(0.2)
        assert not done

    monkeypatch.setattr(Resident, "_run_fused", epoch)
    pf.MLP([4, 3]).fit(x, y, batch_size=2, epochs=1)
    other.join()
    assert len(done) == 1


def test_steps_together():
    assert [plan.steps_together(whole) for whole in (1, 3, 5, 8, 20, 67, 467)] == [1, 3, 5, 4, 4, 6, 5]


def test_loss_and_gradient(cuda):
    for output, loss in (("identity", "mse"), ("softmax", "cross_entropy")):
        x, y = problem(loss, 7, "float64")
        net = pf.MLP([4, 6, 3], "gelu", output, loss=loss, dtype="float64", seed=1)
        value, gradient = net.loss_and_gradient(x, y)
        with pf.use_backend("numpy"):
            exact, derivative = net.loss_and_gradient(x, y)
        assert abs(value - exact) < 1e-14
        np.testing.assert_allclose(gradient, derivative, rtol=0, atol=1e-14)


def test_long_inputs_are_predicted_in_parts(cuda, monkeypatch):
    monkeypatch.setattr(plan, "_MOST_ROWS", 4)
    x = problem("mse", 11, "float32")[0]
    net = pf.MLP([4, 6, 3], "tanh", "softmax", seed=1)
    ours = net.predict(x)
    with pf.use_backend("numpy"):
        np.testing.assert_allclose(ours, net.predict(x), rtol=0, atol=1e-6)


def test_narrow_networks_are_recognised():
    def suits(sizes, batch, dtype="float32"):
        return narrow.suits(pf.MLP(sizes, dtype=dtype)._spec, 2, batch)

    assert suits([4, 6, 3], 11)
    assert not suits([4, narrow.WIDEST + 1, 3], 11)
    assert not suits([4, 6, 3], 10**5)  # the batch does not fit
    assert not suits([784, 128, 10], 64)  # nor the parameters
    storage = narrow.Storage(pf.MLP([4, 6, 3], "gelu")._spec, 2, 5)
    assert storage.size == 4 * (3 * (5 * 7 + 7 * 3) + 5 * ((5 + 7 + 4) + (6 + 3) + 6))


def test_rowwise_activations_have_kernels():
    assert set(rows.ROWWISE) == {name for name, f in pf.activations.ACTIVATIONS.items() if f.rowwise}


@pytest.mark.parametrize("tile", [products.SMALL, products.LARGE, products._SIMULATED])
def test_tiles_divide(tile):
    assert tile is products._SIMULATED or tile.threads % 32 == 0
    assert tile.threads <= 256
    for length in (tile.rows, tile.columns, tile.depth):
        assert length & (length - 1) == 0
        assert length == tile.depth or length * tile.depth % tile.threads == 0
    assert tile.threads * tile.thread_rows * tile.thread_columns == tile.rows * tile.columns


def test_the_plan_says_what_it_is(cuda):
    assert isinstance(pf.MLP([4, 3])._plan(), CudaPlan)
    net = pf.MLP([4, 3])
    x, y = problem("mse", 3, "float32")
    state = net._optimizer_state(pf.Adam())
    with net._plan().training(net.params, x, y, None, 2, pf.Adam(), state) as run:
        assert isinstance(run, Resident)
        assert run.fused
