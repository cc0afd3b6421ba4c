"""What the CUDA backend copies, keeps and takes: arrays of the host, of its own and of other libraries."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from cuda_fits import problem

import pyfastnn as pf
from pyfastnn.backends import load
from pyfastnn.backends.cuda import arrays, shim
from pyfastnn.backends.cuda.arrays import DeviceView
from pyfastnn.backends.cuda.backend import CudaBackend
from pyfastnn.backends.cuda.plan import CudaPlan

pytestmark = pytest.mark.cuda


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
    assert net._memory.step == twin._memory.step == 6


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
    changed = on_device(cuda, w), on_device(cuda, b)
    pf.dense_update(there[0], *changed, there[3], 0.5)
    results, host = (*results, *changed), (*host, w - 0.5 * host[1], b - 0.5 * host[2])
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
    with net._plan().training(net.params, x, y, None, 2, net._optimizer_state(pf.Adam())) as run:
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
