"""The quick ways past Python, which the compiled core has for its shortest calls."""

from __future__ import annotations

import contextvars
import copy
import inspect
import pickle
import sys
import weakref

import numpy as np
import pytest
from conftest import BACKENDS, COMPILED
from processes import run_python

import pyfastnn as pf
from pyfastnn import kernels

pytestmark = pytest.mark.skipif(
    not COMPILED, reason="no compiled core here: run `make test` with a C++ compiler"
)


@pytest.fixture(autouse=True)
def compiled():
    with pf.use_backend(COMPILED[-1]) as backend:
        yield backend


@pytest.fixture
def net(dtype):
    """A network that knows its plan."""
    net = pf.MLP([5, 7, 3], "tanh", "softmax", dtype=dtype, seed=0)
    net.predict(np.zeros((1, 5), dtype))
    return net


def numbers(*shape, dtype):
    return np.random.default_rng(0).uniform(0.1, 0.9, shape).astype(dtype)


def calls_of(dtype):
    """Calls of every kernel that can be made the quick way: function, arguments by name."""
    n, k, m = 3, 4, 2
    x, w, b = numbers(n, k, dtype=dtype), numbers(k, m, dtype=dtype), numbers(m, dtype=dtype)
    d, a0, z0 = numbers(n, m, dtype=dtype), numbers(n, k, dtype=dtype), numbers(n, k, dtype=dtype)
    out, z, back = np.empty((n, m), dtype), np.empty((n, m), dtype), np.empty((n, k), dtype)
    rows, layer, error = np.full((n, m), 0.5, dtype), {"x": x, "w": w, "b": b}, {"d1": d, "w1": w, "a0": a0}
    yield pf.dense_forward, layer
    for name, f in [*pf.activations.ACTIVATIONS.items(), ("logistic", pf.activations.ACTIVATIONS["sigmoid"])]:
        yield pf.dense_forward, {**layer, "activation": name, "out": out, "z": z}
        if not f.rowwise:
            yield pf.activation_delta, {**error, "activation": name, "out": back, "z0": z0}
        if f.slope_from == "output":
            if not f.rowwise:
                yield pf.activation_delta, {**error, "activation": name}
            for loss in pf.losses.LOSSES.values():
                if loss.outputs is None or f.name in loss.outputs:
                    yield pf.output_delta, {"a": rows, "y": rows, "loss": loss.name, "activation": name}
    yield pf.sigmoid_delta, error
    yield pf.sigmoid_delta, {**error, "out": back}
    yield pf.dense_backward, {"x": x, "w": w, "d": d}
    yield pf.dense_backward, {"x": x, "w": w, "d": d, "need_dx": False}
    yield pf.dense_update, {**layer, "d": d, "learning_rate": 0.5}
    yield pf.output_delta, {"a": rows, "y": rows}
    yield pf.output_delta, {"a": rows, "y": np.array([0, 1, 1]), "out": out}


def copied(arguments):
    return {
        name: value.copy() if isinstance(value, np.ndarray) else value for name, value in arguments.items()
    }


def results_of(function, arguments):
    """What is returned, and what has become of the arguments."""
    results = function(**arguments)
    return [*(results if isinstance(results, tuple) else (results,)), *arguments.values()]


def test_kernels_run_no_python(dtype, monkeypatch):
    """And do what the functions do as they are written, to the bit."""
    for function, arguments in calls_of(dtype):
        slow, fast = copied(arguments), copied(arguments)
        expected = results_of(function.__wrapped__, slow)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "get_backend", None)
            results = results_of(function, fast)
            if "out" in fast:
                assert any(result is fast["out"] for result in results[:2])
        for got, wanted in zip(results, expected, strict=True):
            assert type(got) is type(wanted), function.__name__
            assert getattr(got, "dtype", None) == getattr(wanted, "dtype", None)
            np.testing.assert_array_equal(got, wanted, err_msg=f"{function.__name__} {list(arguments)}")


def test_arguments_by_place_and_by_name(dtype, monkeypatch):
    expected = [results_of(function, copied(arguments)) for function, arguments in calls_of(dtype)]
    monkeypatch.setattr(kernels, "get_backend", None)
    for (function, arguments), wanted in zip(calls_of(dtype), expected, strict=True):
        names = list(inspect.signature(function).parameters)
        by_place = 0
        while (
            by_place < len(names)
            and names[by_place] in arguments
            and names[by_place] not in ("z", "z0", "need_dx")
        ):
            by_place += 1
        for count in range(by_place + 1):
            given = copied(arguments)
            named = {name: given[name] for name in reversed(given) if name not in names[:count]}
            results = function(*(given[name] for name in names[:count]), **named)
            results = results if isinstance(results, tuple) else (results,)
            for got, want in zip(results, wanted, strict=False):
                np.testing.assert_array_equal(got, want)


def test_other_backends_are_followed(dtype):
    """Whose results differ in rounding at most, and who are called."""

    class Counting(type(BACKENDS["numpy"])):
        calls = 0

        def dense_forward(self, *arguments):
            self.calls += 1
            super().dense_forward(*arguments)

    x, w, b = numbers(3, 4, dtype=dtype), numbers(4, 2, dtype=dtype), numbers(2, dtype=dtype)
    expected = pf.dense_forward(x, w, b)
    outside = contextvars.copy_context()
    with pf.use_backend(Counting()) as counting:
        for calls in 1, 2:
            np.testing.assert_allclose(pf.dense_forward(x, w, b), expected, rtol=8 * np.finfo(dtype).eps)
            assert counting.calls == calls
        outside.run(pf.dense_forward, x, w, b)
        inside = contextvars.copy_context()
    np.testing.assert_array_equal(pf.dense_forward(x, w, b), expected)
    assert counting.calls == 2
    inside.run(pf.dense_forward, x, w, b)  # as a task that outlives the block in which it was started
    assert counting.calls == 3


def test_a_backend_that_does_things_in_its_own_way_is_called(dtype):
    calls = []

    class Own(type(COMPILED[-1])):
        def dense_forward(self, *arguments):
            calls.append("forward")
            super().dense_forward(*arguments)

        def output_delta(self, *arguments):
            calls.append("output")
            return super().output_delta(*arguments)

    x, w, b = numbers(3, 4, dtype=dtype), numbers(4, 2, dtype=dtype), numbers(2, dtype=dtype)
    with pf.use_backend(Own()):
        pf.output_delta(pf.dense_forward(x, w, b, "softmax"), np.array([0, 1, 0]))
    assert calls == ["forward", "output"]


def test_a_backend_lives_as_long_as_its_calls():
    """While one thread works without the interpreter lock, another may have replaced its backend."""
    code = """
        import sys, threading, time
        import numpy as np
        import pyfastnn as pf
        from pyfastnn.backends.cpp import CppBackend

        x, w, b, out = (np.ones(shape, np.float32) for shape in ((64, 64), (64, 96), 96, (64, 96)))
        one = np.ones((1, 1), np.float32)
        sys.setswitchinterval(1e-6)
        pf.set_num_threads(1)
        pf.set_backend(CppBackend())
        end = time.perf_counter() + 1.5

        def work():
            while time.perf_counter() < end:
                pf.dense_forward(x, w, b, out=out)

        def replace():
            while time.perf_counter() < end:
                for backend in [CppBackend() for _ in range(50)]:
                    pf.set_backend(backend)
                    del backend
                    pf.dense_forward(one, one, one[0])

        threads = [threading.Thread(target=each) for each in (work, replace)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(out[0, 0])
    """
    assert run_python(code).split() == ["65.0"]


def test_kernels_raise_what_they_always_do(dtype):
    x, w, b = numbers(3, 4, dtype=dtype), numbers(4, 2, dtype=dtype), numbers(2, dtype=dtype)
    with pytest.raises(TypeError, match=r"dense_forward\(\) missing 1 required positional argument: 'b'"):
        pf.dense_forward(x, w)
    with pytest.raises(TypeError, match="takes from 3 to 5 positional arguments but 6 were given"):
        pf.dense_forward(x, w, b, "tanh", None, None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'bias'"):
        pf.dense_forward(x, w, bias=b)
    with pytest.raises(TypeError, match="multiple values for argument 'w'"):
        pf.dense_forward(x, w, b, w=w)


def test_subclasses_and_names_made_at_run_time(dtype):
    class Named(str):
        pass

    x, w, b = numbers(3, 4, dtype=dtype), numbers(4, 2, dtype=dtype), numbers(2, dtype=dtype)
    expected = pf.dense_forward(x, w, b, "tanh")
    for name in "".join(["ta", "nh"]), Named("tanh"), pf.activations.ACTIVATIONS["tanh"]:
        np.testing.assert_array_equal(pf.dense_forward(x, w, b, name), expected)
    np.testing.assert_array_equal(pf.dense_forward(x.view(np.recarray), w, b, "tanh"), expected)
    np.testing.assert_array_equal(pf.dense_forward(x, w, activation="tanh", **{"".join("b"): b}), expected)


def test_kernels_look_like_the_functions_they_are():
    assert str(inspect.signature(pf.dense_backward)).startswith(
        "(x: 'Array', w: 'Array', d: 'Array', *, need_dx"
    )
    assert pf.dense_forward.__name__ == "dense_forward"
    assert pf.dense_forward.__module__ == "pyfastnn.kernels"
    assert pf.dense_forward.__doc__.startswith("A dense layer, f(x w + b).")
    assert inspect.isroutine(pf.dense_forward)
    assert weakref.ref(pf.dense_forward)() is pf.dense_forward
    assert "function dense_forward" in repr(pf.dense_forward)
    for same in (
        pickle.loads(pickle.dumps(pf.dense_forward)),
        copy.copy(pf.dense_forward),
        copy.deepcopy(pf.dense_forward),
    ):
        assert same is pf.dense_forward


def test_kernels_keep_nothing_alive(dtype):
    calls = list(calls_of(dtype))
    arrays = [
        value for _, arguments in calls for value in arguments.values() if isinstance(value, np.ndarray)
    ]
    before = [sys.getrefcount(array) for array in arrays]
    for _ in range(50):
        for function, arguments in calls:
            function(**arguments)
    assert [sys.getrefcount(array) for array in arrays] == before


def test_predict_runs_no_python(net, dtype):
    net._plan = None  # which the method as written would call
    x, out = np.zeros((1, 5), dtype), np.empty((1, 3), dtype)
    assert net.predict(x).shape == (1, 3)
    assert net.predict(x, out=out) is out
    assert net.predict(x=x).shape == (1, 3)
    with pytest.raises(TypeError, match="not callable"):
        net.predict([[1.0]])


TARGETS = {
    "values": (3, "identity", np.array([[0.5, -1, 2]] * 4)),
    "values of one output": (1, "identity", np.array([[0.5], [-1], [2], [0]])),
    "values in a row": (1, "identity", np.array([0.5, -1, 2, 0])),
    "numbers from 0 to 1": (1, "sigmoid", np.array([0.5, 1, 0, 0])),
    "probabilities": (3, "softmax", np.array([[0.5, 0.25, 0.25]] * 4)),
    "labels": (3, "softmax", np.array([0, 2, 1, 1])),
}


def wrong_weights(dtype):
    """Of four samples."""
    limits = np.finfo(dtype)
    for wrong in ([1, 1, 1, -1], [1, 1, 1, np.nan], [1, 1, 1, np.inf], [0] * 4, [1] * 3, [limits.max] * 4):
        yield np.array(wrong, dtype)
    yield np.array([limits.smallest_subnormal] * 4, dtype)
    yield np.ones(4, "float64" if dtype == "float32" else "float32")
    yield np.ones((4, 1), dtype)
    yield [1, 1, 1, 1]


@pytest.mark.parametrize(("outputs", "output", "y"), TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_core_takes_data_as_it_would_be_checked(dtype, outputs, output, y, weighted):
    net = pf.MLP([5, 7, outputs], "tanh", output, dtype=dtype, seed=0)
    x, y = numbers(4, 5, dtype=dtype), y if y.dtype == np.int64 else y.astype(dtype)
    weight = np.array([0.5, 0, 3, 1], dtype) if weighted else None
    taken = net._data(x, y, weight)
    assert net._bound.takes(x, y, weight)
    assert not net._bound.takes(x, y[1:], weight)
    assert not net._bound.takes(x[:0], y[:0], None if weight is None else weight[:0])
    assert not any(net._bound.takes(x, y, wrong) for wrong in wrong_weights(dtype))
    net._plan, net._bound = (lambda: None), None
    for ours, checked in zip(taken, net._data(x, y, weight), strict=True):
        assert (ours is None) == (checked is None)
        if ours is not None:
            assert ours.shape == checked.shape
            assert np.shares_memory(ours, checked)


@pytest.mark.parametrize(("outputs", "output", "y"), TARGETS.values(), ids=TARGETS)
def test_loss_and_gradient_runs_no_python(dtype, outputs, output, y):
    net = pf.MLP([5, 7, outputs], "tanh", output, dtype=dtype, seed=0)
    x, y = numbers(4, 5, dtype=dtype), y if y.dtype == np.int64 else y.astype(dtype)
    weight = np.array([0.5, 0, 3, 1], dtype)
    expected, gradient = pf.MLP.loss_and_gradient.__wrapped__(net, x, y)
    weighted = pf.MLP.loss_and_gradient.__wrapped__(net, x, y, sample_weight=weight)
    net._plan = net._data = None  # which the method as written would call
    out = np.empty_like(net.params)
    for loss, result in (
        net.loss_and_gradient(x, y),
        net.loss_and_gradient(x, y=y, out=out),
        pf.MLP.loss_and_gradient(net, x=x, y=y, sample_weight=None),
    ):
        assert loss == expected
        np.testing.assert_array_equal(result, gradient)
    np.testing.assert_array_equal(out, gradient)
    loss, result = net.loss_and_gradient(x, y, sample_weight=weight)
    assert loss == weighted[0] != expected
    np.testing.assert_array_equal(result, weighted[1])
    for named in (
        *({"sample_weight": wrong} for wrong in wrong_weights(dtype)),
        {"out": net.params},
        {"out": out[1:]},
        {"sample_weight": out[:4], "out": out},
    ):
        with pytest.raises(TypeError, match="not callable"):
            net.loss_and_gradient(x, y, **named)
    wrong = [(x[:0], y[:0]), (x[:, :4].copy(), y), (x, y[:3])]
    if output != "identity":
        wrong.append((x, y + 7))
    for arguments in wrong:
        with pytest.raises(TypeError, match="not callable"):
            net.loss_and_gradient(*arguments)


def test_every_way_of_predicting_gives_the_same(net, dtype):
    x = np.random.default_rng(1).normal(size=(2, 5)).astype(dtype)
    expected = net.predict(np.concatenate([x, x]))[:2]
    out = np.empty((2, 3), dtype)
    assert net.predict(x, out) is out
    assert net.predict(x, out=out) is out
    for y in out, net.predict(x), net.predict(x=x), pf.MLP.predict(net, x), (bound := net.predict)(x):
        np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(bound))(x), expected)


def test_predict_looks_like_the_method_it_is(net):
    assert list(inspect.signature(net.predict).parameters) == ["x", "out"]
    assert list(inspect.signature(pf.MLP.predict).parameters) == ["self", "x", "out"]
    assert net.predict.__name__ == "predict"
    assert net.predict.__doc__.startswith("The outputs of the network")
    assert inspect.ismethod(net.predict)
    assert "MLP.predict" in repr(pf.MLP.predict)
    assert pickle.loads(pickle.dumps(pf.MLP.predict)) is pf.MLP.predict


def test_predict_takes_the_parameters_of_now(net, dtype):
    x = np.ones((1, 5), dtype)
    net.params[:] = 0
    np.testing.assert_allclose(net.predict(x), np.full((1, 3), 1 / 3), rtol=4 * np.finfo(dtype).eps)
    other = pf.MLP([5, 7, 3], "tanh", "softmax", dtype=dtype, seed=1)
    net.__setstate__(other.__getstate__())
    np.testing.assert_array_equal(net.predict(x), other.predict(x))


def test_other_errors_of_a_network_pass_through(dtype):
    class Interrupted(pf.MLP):
        @property
        def _bound(self):
            raise KeyboardInterrupt

        @_bound.setter
        def _bound(self, value):
            pass

    with pytest.raises(KeyboardInterrupt):
        Interrupted([5, 3], dtype=dtype).predict(np.zeros((1, 5), dtype))


def test_subclasses_may_override_it(net, dtype):
    class Twice(pf.MLP):
        def predict(self, x, out=None):
            return 2 * super().predict(x, out)

    x = np.ones((1, 5), dtype)
    twice = Twice([5, 7, 3], "tanh", "softmax", dtype=dtype, seed=0)
    for _ in range(2):
        np.testing.assert_array_equal(twice.predict(x), 2 * net.predict(x))


def test_predict_raises_what_it_always_does(net, dtype):
    x = np.zeros((1, 5), dtype)
    with pytest.raises(TypeError, match=r"predict\(\) missing 1 required positional argument: 'x'"):
        net.predict()
    with pytest.raises(TypeError, match="takes from 2 to 3 positional arguments but 4 were given"):
        net.predict(x, None, None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'output'"):
        net.predict(x, output=None)
    with pytest.raises(TypeError, match="multiple values for argument 'out'"):
        net.predict(x, None, out=None)
    with pytest.raises(AttributeError, match="has no attribute '_plan'"):
        pf.MLP.predict("no network", x)
    with pytest.raises(ValueError, match=r"x must have shape \(any, 5\), got \(1, 4\)"):
        net.predict(x[:, :4].copy())
    with pytest.raises(ValueError, match="out"):
        net.predict(x, out=np.empty((1, 2), dtype))


def test_predict_keeps_nothing_alive(net, dtype):
    x, out = np.ones((1, 5), dtype), np.empty((1, 3), dtype)
    counted = net._params, net._bound, x, out
    before = [sys.getrefcount(o) for o in counted]
    for _ in range(100):
        net.predict(x)
        net.predict(x, out=out)
    assert [sys.getrefcount(o) for o in counted] == before
    twin = net.copy()
    twin.predict(x)
    twin.loss_and_gradient(x, np.array([1]))
    gone = [weakref.ref(o) for o in (twin, twin._params)]
    del twin
    assert [reference() for reference in gone] == [None, None]


def test_predict_follows_every_kind_of_choice():
    """In a process of its own, in which nobody has made a choice yet."""
    code = """
        import contextvars
        import numpy as np
        import pyfastnn as pf
        from pyfastnn.backends.numpy import load

        calls, slow = [], load()
        usual = slow.dense_forward
        slow.dense_forward = lambda *arguments: (calls.append("slow"), usual(*arguments))
        x = np.ones((1, 2), np.float32)
        early = pf.MLP([2, 1], seed=0)
        before = early.predict

        def ask(*functions):
            calls.clear()
            for function in functions:
                function(x)
            print(len(calls), end=" ")

        pf.set_backend("cpp")
        net = pf.MLP([2, 1], seed=0)
        ask(net.predict, net.predict, before, early.predict)
        pf.set_backend(slow)
        ask(net.predict, net.predict, before, early.predict)
        pf.set_backend("cpp")
        ask(net.predict, before)
        with pf.use_backend(slow):
            ask(net.predict, before)
            inside = contextvars.copy_context()
        ask(net.predict, before)
        # As a task that outlives the block in which it was started.
        ask(lambda x: inside.run(net.predict, x), lambda x: inside.run(before, x))
        pf.set_backend("cpp")
        ask(net.predict, before)
    """
    assert run_python(code).split() == ["0", "4", "0", "2", "0", "2", "0"]


def test_a_replaced_method_stays():
    code = """
        import numpy as np
        import pyfastnn as pf

        pf.set_backend("cpp")
        pf.MLP.predict = lambda self, x: self._plan() and "replaced"
        net = pf.MLP([2, 1], seed=0)
        print(*[net.predict(np.ones((1, 2), np.float32)) for _ in range(2)])
    """
    assert run_python(code).split() == ["replaced", "replaced"]
