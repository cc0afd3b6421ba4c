"""The network as an object: parameters, random start, copies, predictions."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from processes import run_python

import pyfastnn as pf


def test_parameter_count_and_text():
    net = pf.MLP([784, 16, 16, 10], "sigmoid", "softmax", seed=0)
    assert net.parameter_count == 13_002
    assert net.params.shape == (13_002,)
    first, _, *rows = repr(net).splitlines()
    assert first == "MLP 784-16-16-10: 13,002 parameters, float32, loss cross_entropy"
    assert [row.split() for row in rows] == [
        ["1", "784", "16", "sigmoid", "12,560"],
        ["2", "16", "16", "sigmoid", "272"],
        ["3", "16", "10", "softmax", "170"],
    ]


def test_what_it_is_made_of(dtype):
    net = pf.MLP((np.int64(3), 5, 4, 2), ["tanh", "logistic"], "sigmoid", dtype=dtype)
    assert net.layers == (3, 5, 4, 2)
    assert all(type(size) is int for size in net.layers)
    assert [f.name for f in net.activations] == ["tanh", "sigmoid", "sigmoid"]
    assert net.dtype == net.params.dtype == dtype


@pytest.mark.parametrize(
    ("output", "loss"),
    [("softmax", "cross_entropy"), ("sigmoid", "binary_cross_entropy"), ("exp", "poisson")]
    + [(name, "mse") for name in ("identity", "tanh", "relu", "softplus")],
)
def test_default_loss(output, loss):
    assert pf.MLP([2, 1], output=output).loss is pf.losses.LOSSES[loss]
    assert pf.MLP([2, 1], output=output, loss="huber" if loss == "mse" else loss).loss.name != "mse"


def test_weights_and_biases_are_views(dtype):
    net = pf.MLP([3, 5, 2], dtype=dtype)
    net.params = np.arange(net.parameter_count, dtype=dtype)
    first, last = net.weights
    np.testing.assert_array_equal(first, np.arange(15).reshape(3, 5))
    np.testing.assert_array_equal(net.biases[0], np.arange(15, 20))
    np.testing.assert_array_equal(last, np.arange(20, 30).reshape(5, 2))
    np.testing.assert_array_equal(net.biases[1], [30, 31])
    for view in (*net.weights, *net.biases):
        assert np.shares_memory(view, net.params)
        assert view.flags.c_contiguous
    first[2, 4] = -1
    net.biases[1][:] = 7
    assert net.params[14] == -1
    assert list(net.params[-2:]) == [7, 7]


@pytest.mark.parametrize("layers", [[1, 1], [3, 5, 2], [17, 1], [784, 30, 10]])
def test_parameters_are_aligned(layers, dtype):
    net = pf.MLP(layers, dtype=dtype, seed=0)
    for each in (net, net.copy(), pickle.loads(pickle.dumps(net))):
        assert each.params.ctypes.data % 64 == 0


def test_assigning_parameters_copies(dtype):
    net = pf.MLP([3, 2], dtype=dtype, seed=0)
    before = net.params
    values = np.arange(8, dtype=dtype)
    net.params = values
    values[:] = -1
    assert net.params is before
    np.testing.assert_array_equal(net.params, np.arange(8))
    net.params *= 2
    assert net.params is before
    np.testing.assert_array_equal(net.biases[0], [12, 14])


def test_seeds(dtype):
    def start(seed: object) -> bytes:
        return pf.MLP([5, 4, 3], dtype=dtype, init="normal", seed=seed).params.tobytes()

    assert start(7) == start(7) == start(np.random.default_rng(7))
    assert start(7) != start(8)
    assert start(None) != start(None)
    rng = np.random.default_rng(7)
    assert start(rng) == start(7)
    assert start(rng) != start(7)  # the generator has moved on


def test_both_dtypes_start_from_the_same_numbers():
    narrow, wide = (pf.MLP([30, 20, 10], init="normal", dtype=d, seed=1) for d in ("float32", "float64"))
    np.testing.assert_array_equal(narrow.params, wide.params.astype(np.float32))


# Variance of a weight (inputs, outputs), and the fourth moment over the squared variance: 9/5 for a
# uniform distribution, 3 for a normal one.
DISTRIBUTIONS = {
    "glorot": (lambda inputs, outputs: 2 / (inputs + outputs), 9 / 5),
    "he": (lambda inputs, outputs: 2 / inputs, 3),
    "lecun": (lambda inputs, outputs: 1 / inputs, 3),
    "normal": (lambda inputs, outputs: 1, 3),
}


def assert_drawn(values: np.ndarray, variance: float, kurtosis: float) -> None:
    """Mean and mean square are within 5 standard deviations of these estimators."""
    values, count = values.astype(np.float64), values.size
    assert abs(values.mean()) <= 5 * np.sqrt(variance / count)
    assert abs(np.square(values).mean() - variance) <= 5 * variance * np.sqrt((kurtosis - 1) / count)


@pytest.mark.parametrize("init", pf.initialisers.INITIALISATIONS)
def test_initialisation(init, dtype):
    variance, kurtosis = DISTRIBUTIONS[init]
    net = pf.MLP([300, 200, 100], init=init, dtype=dtype, seed=2)
    for (inputs, outputs), w, b in zip([(300, 200), (200, 100)], net.weights, net.biases, strict=True):
        assert_drawn(w, variance(inputs, outputs), kurtosis)
        if init == "normal":
            assert_drawn(b, 1, 3)
        else:
            np.testing.assert_array_equal(b, np.zeros(outputs))
    if init == "glorot":
        limit = np.sqrt(6 / 500)
        # Of 60,000 uniform numbers the largest is this close, but for a probability of e^-60.
        assert 0.999 * limit < abs(net.weights[0]).max() <= np.nextafter(dtype.type(limit), dtype.type(1))


@pytest.mark.parametrize("activation", pf.activations.ACTIVATIONS)
def test_default_initialisation_is_the_activations(activation):
    f = pf.activations.ACTIVATIONS[activation]
    if f.slope_from == "output":
        default = pf.MLP([6, 5], output=activation, seed=3)
        chosen = pf.MLP([6, 5], output=activation, init=f.initialisation, seed=3)
        np.testing.assert_array_equal(default.params, chosen.params)
    if not f.rowwise:
        first = pf.MLP([6, 5, 4], activation, seed=3).weights[0]
        np.testing.assert_array_equal(
            first, pf.MLP([6, 5, 4], activation, init=f.initialisation, seed=3).weights[0]
        )


DUPLICATES = {
    "copy": pf.MLP.copy,
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
}


def everything(net: pf.MLP) -> tuple[object, ...]:
    return (repr(net), net.params.tobytes(), net.dtype, net.loss, net.activations)


@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
@pytest.mark.parametrize("bits", ["PCG64", "MT19937", "Philox", "SFC64"])
@pytest.mark.parametrize("optimizer", [pf.SGD(0.01), pf.SGD(0.01, momentum=0.9), pf.Adam(0.01)], ids=repr)
def test_duplicates_train_on_identically(backend, dtype, duplicate, bits, optimizer):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(20, 3)).astype(dtype), rng.integers(0, 4, 20)
    seed = np.random.Generator(getattr(np.random, bits)(5))
    net = pf.MLP([3, 6, 4], "tanh", "softmax", dtype=dtype, seed=seed)
    settings = {"epochs": 2, "batch_size": 8, "optimizer": optimizer}
    net.fit(x, y, **settings)

    twin = duplicate(net)
    assert everything(twin) == everything(net)
    assert not np.shares_memory(twin.params, net.params)
    kept = everything(net)
    ours = twin.fit(x, y, **settings)
    assert everything(net) == kept
    theirs = net.fit(x, y, **settings)
    assert ours.loss == theirs.loss
    assert everything(twin) == everything(net)
    # Also a copy of a copy, whose optimizer has gone on.
    assert duplicate(twin).fit(x, y, **settings).loss == net.fit(x, y, **settings).loss


@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
def test_duplicates_of_untrained_networks(backend, duplicate):
    net = pf.MLP([3, 6, 4, 2], ["gelu", "relu"], "exp", dtype="float64", seed=6)
    twin = duplicate(net)
    x, y = np.ones((5, 3)), np.ones((5, 2))
    assert net.fit(x, y, epochs=3).loss == twin.fit(x, y, epochs=3).loss
    assert everything(net) == everything(twin)


@pytest.mark.large
@pytest.mark.parametrize("rows", [0, 1, 4095, 4096, 4097, 9001])
def test_predict_equals_its_layers(backend, dtype, rows):
    # Small integers: exact whatever the order of the sums.
    rng = np.random.default_rng(7)
    net = pf.MLP([5, 6, 3], "relu", dtype=dtype)
    net.params = rng.integers(-3, 4, net.parameter_count).astype(dtype)
    x = rng.integers(-3, 4, (rows, 5)).astype(dtype)
    hidden = np.maximum(x @ net.weights[0] + net.biases[0], 0)
    expected = hidden @ net.weights[1] + net.biases[1]
    np.testing.assert_array_equal(net.predict(x), expected)
    out = np.full((rows, 3), np.nan, dtype)
    assert net.predict(x, out) is out
    np.testing.assert_array_equal(out, expected)


def test_predict_follows_the_backend():
    net = pf.MLP([2, 3, 1], seed=8)
    x = np.ones((4, 2), np.float32)
    for name, status in pf.backends().items():
        if status == "available":
            with pf.use_backend(name):
                # Sums of 2 and 3 products of numbers of order 1.
                expected = np.maximum(x @ net.weights[0], 0) @ net.weights[1]
                np.testing.assert_allclose(net.predict(x), expected, rtol=0, atol=2e-6)


def test_predict_follows_every_kind_of_choice():
    """In a process in which no context has made a choice yet, which predictions ask about least."""
    code = """
        import contextvars
        import numpy as np
        import pyfastnn as pf
        from pyfastnn.backends.numpy import load

        one, other = load(), load()
        used = []
        for backend in one, other:
            spied = lambda *arguments, b=backend, f=backend.dense_forward: (used.append(b), f(*arguments))
            backend.dense_forward = spied
        net = pf.MLP([2, 1], seed=0)
        x = np.ones((1, 2), np.float32)
        pf.set_backend(one)
        net.predict(x)
        pf.set_backend(other)
        net.predict(x)
        pf.set_backend(one)
        net.predict(x)
        with pf.use_backend(other):
            net.predict(x)
            inside = contextvars.copy_context()
        net.predict(x)
        inside.run(net.predict, x)  # as a task that outlives the block in which it was started
        pf.set_backend(other)
        net.predict(x)
        print(*["one" if backend is one else "other" for backend in used])
    """
    assert run_python(code).split() == ["one", "other", "one", "other", "one", "other", "other"]
