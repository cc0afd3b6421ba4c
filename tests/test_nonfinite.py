"""NaN and infinities show in the results, the same in every backend, and nobody raises or warns."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

import pyfastnn as pf

ACTIVATIONS = list(pf.activations.ACTIVATIONS)
ELEMENTWISE = [name for name, f in pf.activations.ACTIVATIONS.items() if not f.rowwise]
ROWWISE = [name for name in ACTIVATIONS if name not in ELEMENTWISE]
PAIRS = [
    (loss.name, name)
    for loss in pf.losses.LOSSES.values()
    for name, f in pf.activations.ACTIVATIONS.items()
    if f.slope_from == "output" and (loss.outputs is None or name in loss.outputs)
]

# Finite ones among them, small enough that no backend flushes or overflows what another does not.
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, 1.0, -1.0, 0.5, -3.0, 20.0]


def assert_same_kind(actual: np.ndarray, expected: np.ndarray) -> None:
    """NaN where NaN is expected, the same infinity where an infinity is, finite elsewhere."""
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    infinite = np.isinf(expected)
    np.testing.assert_array_equal(np.isinf(actual), infinite)
    np.testing.assert_array_equal(actual[infinite], expected[infinite])


def flat(results: Iterable[np.ndarray | float]) -> np.ndarray:
    return np.concatenate([np.ravel(result) for result in results])


def compare(call: Callable[[], np.ndarray]) -> None:
    """What the call returns on the backend in use, against the reference."""
    actual = call()
    with pf.use_backend("numpy"):
        expected = call()
    assert_same_kind(actual, expected)


def outputs_at_special(activation: str, dtype: np.dtype) -> np.ndarray:
    """What the activation makes of the special values: the outputs that can occur."""
    with np.errstate(all="ignore"):
        return pf.activations.ACTIVATIONS[activation].value(np.array(SPECIAL, dtype))


def column(values: list[float], dtype: np.dtype) -> np.ndarray:
    return np.array(values, dtype)[:, np.newaxis]


@pytest.mark.parametrize("activation", ELEMENTWISE)
@pytest.mark.parametrize("source", ["x", "w", "b"])
def test_forward(backend, dtype, activation, source):
    # One input and neutral others, so that z is the special value itself and nothing else.
    special = np.array(SPECIAL, dtype)
    one, zeros = np.ones((1, 1), dtype), np.zeros_like(special)
    layers = {
        "x": (special[:, np.newaxis], one, zeros[:1]),
        "w": (one, special[np.newaxis], zeros),
        "b": (one, zeros[np.newaxis], special),
    }
    x, w, b = layers[source]
    compare(lambda: pf.dense_forward(x, w, b, activation))
    z = np.empty((len(x), w.shape[1]), dtype)
    pf.dense_forward(x, w, b, activation, z=z)
    np.testing.assert_array_equal(z.ravel(), special)


@pytest.mark.parametrize("activation", ELEMENTWISE)
def test_limits_are_exact(backend, dtype, activation):
    x, one, zero = column([np.inf, -np.inf], dtype), np.ones((1, 1), dtype), np.zeros(1, dtype)
    with np.errstate(all="ignore"):
        limits = pf.activations.ACTIVATIONS[activation].value(x)
    np.testing.assert_array_equal(pf.dense_forward(x, one, zero, activation), limits)


@pytest.mark.parametrize("activation", ROWWISE)
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 7, 16])
def test_forward_of_rows(backend, dtype, activation, special, place):
    # 17 outputs: a whole vector and a rest in every instruction set.
    z = np.linspace(-1, 1, 17, dtype=dtype)[np.newaxis]
    z[0, place] = special
    one, zeros = np.ones((1, 1), dtype), np.zeros(17, dtype)
    compare(lambda: pf.dense_forward(one, z, zeros, activation))
    compare(lambda: pf.dense_forward(one, np.full_like(z, special), zeros, activation))


def test_softmax_takes_minus_infinity_for_impossible(backend, dtype):
    z = np.array([[-np.inf, 0, 0]], dtype)
    a = pf.dense_forward(np.ones((1, 1), dtype), z, np.zeros(3, dtype), "softmax")
    np.testing.assert_array_equal(a, np.array([[0, 0.5, 0.5]], dtype))


@pytest.mark.parametrize("activation", ELEMENTWISE)
def test_activation_delta(backend, dtype, activation):
    # One derivative a row, one pre-activation a column: every pair.
    d1 = column(SPECIAL, dtype)
    w1 = np.ones((len(SPECIAL), 1), dtype)
    z0 = np.tile(np.array(SPECIAL, dtype), (len(SPECIAL), 1))
    a0 = np.tile(outputs_at_special(activation, dtype), (len(SPECIAL), 1))
    compare(lambda: pf.activation_delta(d1, w1, a0, activation, z0=z0))


@pytest.mark.parametrize("d", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("outputs", [1, 33])
def test_closed_gate_keeps_everything_out(backend, dtype, d, outputs):
    d1 = np.full((1, 1), d, dtype)
    w1 = np.ones((outputs, 1), dtype)
    delta = pf.activation_delta(d1, w1, np.zeros((1, outputs), dtype), "relu")
    np.testing.assert_array_equal(delta, np.zeros((1, outputs), dtype))
    # A unit whose own output is NaN has a closed gate too.
    delta = pf.activation_delta(d1, w1, np.full((1, outputs), np.nan, dtype), "relu")
    np.testing.assert_array_equal(delta, np.zeros((1, outputs), dtype))
    opened = pf.activation_delta(d1, w1, np.ones((1, outputs), dtype), "relu")
    np.testing.assert_array_equal(opened, np.full((1, outputs), d, dtype))


def rows_of_targets(loss: pf.losses.Loss, dtype: np.dtype) -> list[np.ndarray]:
    """Targets (1, 3) that the loss takes, NaN and infinity among them where it does."""
    if loss.targets == "classes":
        rows = [[1, 0, 0], [0.5, 0.25, 0.25], [np.nan, 0, 1]]
    else:
        low, high = loss.interval or (-np.inf, np.inf)
        rows = [[y, 0.5, 1] for y in SPECIAL if not (y < low or y > high)]
    return [np.array([row], dtype) for row in rows]


def rows_of_outputs(activation: str, dtype: np.dtype) -> np.ndarray:
    """Outputs (n, 3) of the activation, the first of each row at a special value."""
    if activation in ELEMENTWISE:
        rows = [[a, 0.25, 0.5] for a in outputs_at_special(activation, dtype)]
    else:
        # A special value among the inputs of a softmax makes all of its outputs NaN, or one zero.
        rows = [[np.nan] * 3, [0, 0.5, 0.5], [1, 0, 0]]
    return np.array(rows, dtype)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("loss", "activation"), PAIRS)
def test_output_delta(backend, dtype, loss, activation, weighted):
    weight = np.array([2], dtype) if weighted else None
    targets = rows_of_targets(pf.losses.LOSSES[loss], dtype)
    if pf.losses.LOSSES[loss].targets == "classes":
        targets += [np.array([0]), np.array([1])]
    for y in targets:
        for a in rows_of_outputs(activation, dtype):
            row = a[np.newaxis]
            compare(lambda: flat(pf.output_delta(row, y, loss, activation, sample_weight=weight)))  # noqa: B023


@pytest.mark.parametrize(
    "shape", [(9, 3, 1), (9, 33, 2), (9, 34, 3), (10, 47, 4), (3, 70, 20), (7, 70, 130), (70, 3, 65)]
)
def test_rows_and_columns_keep_to_themselves(backend, dtype, shape):
    """Where a vector holds several rows of few elements, too."""
    n, k, m = shape
    x, w, b, d = (np.ones(size, dtype) for size in ((n, k), (k, m), m, (n, m)))
    for array, axis, place in ((x, 0, n // 2), (w, 1, m // 2), (w, 0, k // 2), (d, 0, n // 2)):
        at = (place,) if axis == 0 else (slice(None), place)
        array[at] = np.nan
        forward, delta = pf.dense_forward(x, w, b), pf.activation_delta(d, w, np.ones_like(x), "identity")
        array[at] = 1
        poisoned = forward if array is x or axis == 1 else delta
        column = array is w
        expected = np.zeros(poisoned.shape, bool)
        expected[(slice(None), place) if column else (place,)] = True
        np.testing.assert_array_equal(np.isnan(poisoned), expected)


@pytest.mark.parametrize("shape", [(3, 5), (300, 3)])
def test_backward(backend, dtype, shape):
    n, m = shape
    x, w, d = np.ones((n, 2), dtype), np.ones((2, m), dtype), np.ones((n, m), dtype)
    x[-1, 0], w[1, 1], d[1, -1] = np.nan, np.inf, -np.inf
    compare(lambda: flat(pf.dense_backward(x, w, d)))

    def changed():
        parameters = w.copy(), np.ones(m, dtype)
        pf.dense_update(x, *parameters, d, 0.1)
        return flat(parameters)

    compare(changed)


OPTIMIZERS = [
    pf.SGD(0.1),
    pf.SGD(0.1, momentum=0.9),
    pf.SGD(0.1, momentum=0.9, nesterov=True),
    pf.Adam(0.1),
]
HIDDEN = [name for name in ELEMENTWISE if name != "exp"]


@pytest.mark.large
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_fit_goes_through(backend, dtype, special, optimizer):
    x, y = np.ones((8, 3), dtype), np.ones((8, 2), dtype)
    x[5, 1] = special
    for hidden in HIDDEN:
        nets = [pf.MLP([3, 4, 2], hidden, dtype=dtype, seed=0) for _ in range(2)]
        settings = {"epochs": 1, "batch_size": 8, "optimizer": optimizer, "shuffle": False}
        nets[0].fit(x, y, **settings)
        with pf.use_backend("numpy"):
            nets[1].fit(x, y, **settings)
        assert_same_kind(nets[0].params, nets[1].params)
        history = nets[0].fit(x, y, **settings | {"epochs": 3, "batch_size": 3, "validation_data": (x, y)})
        assert len(history) == 3


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_targets_of_nan_make_all_parameters_nan(backend, dtype, optimizer):
    x, y = np.ones((8, 3), dtype), np.full((8, 2), np.nan, dtype)
    net = pf.MLP([3, 4, 2], "tanh", dtype=dtype, seed=0)
    history = net.fit(x, y, epochs=2, optimizer=optimizer, validation_data=(x, y))
    assert np.isnan(net.params).all()
    assert np.isnan(history.loss).all()
    assert np.isnan(history.validation["loss"]).all()
    assert np.isnan(net.predict(x)).all()


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_classifiers_of_nan_still_count(backend, dtype, output):
    x = np.full((4, 3), np.nan, dtype)
    y = np.eye(4, 2, dtype=dtype)
    y[2:, 0] = 1
    net = pf.MLP([3, 2], output=output, dtype=dtype, seed=0)
    figures = net.evaluate(x, y)
    assert np.isnan(figures["loss"])
    assert 0 <= figures["accuracy"] <= 1


@pytest.mark.parametrize(
    "optimizer",
    [
        pf.SGD(1e38),
        pf.SGD(1e38, momentum=0.9),
        pf.SGD(1e38, momentum=0.9, nesterov=True),
        pf.Adam(1e38),
    ],
    ids=repr,
)
def test_divergence_is_silent(backend, optimizer):
    # In float32 the very first step overflows: 1e38 times derivatives in the thousands.
    x, y = np.full((4, 3), 1e3, np.float32), np.full((4, 2), -1e3, np.float32)
    net = pf.MLP([3, 4, 2], "relu", seed=0)
    history = net.fit(x, y, epochs=5, batch_size=2, optimizer=optimizer)
    assert len(history) == 5
    assert not np.isfinite(net.params).all()
    assert not np.isfinite(history.loss[-1])
