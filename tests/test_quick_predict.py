"""The way of ``MLP.predict`` for few rows, without a Python frame, that the compiled core adds."""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys
import weakref

import numpy as np
import pytest
from conftest import COMPILED
from processes import run_python

import pyfastnn as pf

registry = importlib.import_module("pyfastnn.backends")  # whose name in the package is a function

pytestmark = pytest.mark.skipif(
    not COMPILED, reason="no compiled core here: run `make test` with a C++ compiler"
)


@pytest.fixture
def net(dtype, monkeypatch):
    """A network that takes the quick way, as where no context has made a choice of its own."""
    previous = pf.get_backend()
    monkeypatch.setattr(registry, "_contexts_choose", False)
    pf.set_backend(COMPILED[-1])
    net = pf.MLP([5, 7, 3], "tanh", "softmax", dtype=dtype, seed=0)
    net.predict(np.zeros((1, 5), dtype))
    yield net
    monkeypatch.undo()
    pf.set_backend(previous)


def test_it_runs_no_python(net, dtype):
    net._latest_plan = object()  # whose backend the method as written would look up
    x, out = np.zeros((1, 5), dtype), np.empty((1, 3), dtype)
    assert net.predict(x).shape == (1, 3)
    assert net.predict(x, out=out) is out
    with pytest.raises(AttributeError, match="backend"):
        net.predict(x=x)


def test_every_way_of_calling_it_gives_the_same(net, dtype):
    x = np.random.default_rng(1).normal(size=(2, 5)).astype(dtype)
    expected = net.predict(np.concatenate([x, x]))[:2]
    out = np.empty((2, 3), dtype)
    assert net.predict(x, out) is out
    assert net.predict(x, out=out) is out
    for y in out, net.predict(x), net.predict(x=x), pf.MLP.predict(net, x), (bound := net.predict)(x):
        np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(bound))(x), expected)


def test_it_looks_like_the_method_it_is(net):
    assert list(inspect.signature(net.predict).parameters) == ["x", "out"]
    assert list(inspect.signature(pf.MLP.predict).parameters) == ["self", "x", "out"]
    assert net.predict.__name__ == "predict"
    assert net.predict.__doc__.startswith("The outputs of the network")
    assert inspect.ismethod(net.predict)
    assert "MLP.predict" in repr(pf.MLP.predict)


def test_it_takes_the_parameters_of_now(net, dtype):
    x = np.ones((1, 5), dtype)
    net.params[:] = 0
    np.testing.assert_allclose(net.predict(x), np.full((1, 3), 1 / 3), rtol=4 * np.finfo(dtype).eps)
    other = pf.MLP([5, 7, 3], "tanh", "softmax", dtype=dtype, seed=1)
    net.__setstate__(other.__getstate__())
    np.testing.assert_array_equal(net.predict(x), other.predict(x))


def test_subclasses_may_override_it(net, dtype):
    class Twice(pf.MLP):
        def predict(self, x, out=None):
            return 2 * super().predict(x, out)

    x = np.ones((1, 5), dtype)
    twice = Twice([5, 7, 3], "tanh", "softmax", dtype=dtype, seed=0)
    for _ in range(2):
        np.testing.assert_array_equal(twice.predict(x), 2 * net.predict(x))


def test_wrong_calls_raise_what_they_always_do(net, dtype):
    x = np.zeros((1, 5), dtype)
    with pytest.raises(TypeError, match=r"predict\(\) missing 1 required positional argument: 'x'"):
        net.predict()
    with pytest.raises(TypeError, match="takes from 2 to 3 positional arguments but 4 were given"):
        net.predict(x, None, None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'output'"):
        net.predict(x, output=None)
    with pytest.raises(TypeError, match="multiple values for argument 'out'"):
        net.predict(x, None, out=None)
    with pytest.raises(AttributeError, match="has no attribute '_"):
        pf.MLP.predict("no network", x)
    with pytest.raises(ValueError, match=r"x must have shape \(any, 5\), got \(1, 4\)"):
        net.predict(x[:, :4].copy())
    with pytest.raises(ValueError, match="out"):
        net.predict(x, out=np.empty((1, 2), dtype))


def test_it_keeps_nothing_alive(net, dtype):
    x, out = np.ones((1, 5), dtype), np.empty((1, 3), dtype)
    counted = net._params, net._quick, x, out
    before = [sys.getrefcount(o) for o in counted]
    for _ in range(100):
        net.predict(x)
        net.predict(x, out=out)
    assert [sys.getrefcount(o) for o in counted] == before
    twin = net.copy()
    twin.predict(x)
    gone = [weakref.ref(o) for o in (twin, twin._params)]
    del twin
    assert [reference() for reference in gone] == [None, None]


def test_it_follows_every_kind_of_choice():
    """In a process in which no context has made a choice yet, which the quick way asks about least."""
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
        before = early.predict  # the method as written, still

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
