"""The functional API refuses wrong arguments by name, before it writes anything."""

from __future__ import annotations

import numpy as np
import pytest
from refusals import (
    MEMORY,
    MIXED_DTYPES,
    UNDEFINED_PAIRS,
    WRONG_DTYPES,
    WRONG_LAYOUTS,
    WRONG_OUTPUTS,
    Arguments,
    assert_refused,
    longer,
    misaligned,
    overlapping,
)

import pyfastnn as pf

N, K, M = 4, 3, 5

# Per function: its arrays by name, in the order of the checks, with their shapes; what else it
# needs; and which arrays it writes.
FUNCTIONS = {
    "dense_forward": (
        {"x": (N, K), "w": (K, M), "b": (M,), "z": (N, M), "out": (N, M)},
        {"activation": "tanh"},
        ("z", "out"),
    ),
    "activation_delta": (
        {"d1": (N, M), "w1": (K, M), "a0": (N, K), "z0": (N, K), "out": (N, K)},
        {"activation": "gelu"},
        ("out",),
    ),
    "sigmoid_delta": ({"d1": (N, M), "w1": (K, M), "a0": (N, K), "out": (N, K)}, {}, ("out",)),
    "dense_backward": ({"x": (N, K), "w": (K, M), "d": (N, M)}, {}, ()),
    "dense_update": (
        {"x": (N, K), "w": (K, M), "b": (M,), "d": (N, M)},
        {"learning_rate": 0.5},
        ("w", "b"),
    ),
    "output_delta": (
        {"a": (N, M), "y": (N, M), "sample_weight": (N,), "out": (N, M)},
        {"loss": "mse", "activation": "tanh"},
        ("out",),
    ),
}
ARRAYS = [(function, name) for function, (shapes, _, _) in FUNCTIONS.items() for name in shapes]
FOLLOWERS = [(function, name) for function, name in ARRAYS if name != next(iter(FUNCTIONS[function][0]))]
OUTPUTS = [(function, name) for function, (_, _, outputs) in FUNCTIONS.items() for name in outputs]
# An output and an array that is checked before it.
OVERLAPS = [
    (function, output, used)
    for function, output in OUTPUTS
    for used in list(FUNCTIONS[function][0])[: list(FUNCTIONS[function][0]).index(output)]
]

# The argument that gets one more along an axis, and the argument that then no longer fits.
MISMATCHES = [
    ("dense_forward", "x", 0, "z"), ("dense_forward", "x", 1, "w"), ("dense_forward", "w", 0, "w"),
    ("dense_forward", "w", 1, "b"), ("dense_forward", "b", 0, "b"), ("dense_forward", "z", 0, "z"),
    ("dense_forward", "z", 1, "z"), ("dense_forward", "out", 0, "out"), ("dense_forward", "out", 1, "out"),
    ("activation_delta", "d1", 0, "a0"), ("activation_delta", "d1", 1, "w1"),
    ("activation_delta", "w1", 0, "a0"), ("activation_delta", "w1", 1, "w1"),
    ("activation_delta", "a0", 0, "a0"), ("activation_delta", "a0", 1, "a0"),
    ("activation_delta", "z0", 0, "z0"), ("activation_delta", "z0", 1, "z0"),
    ("activation_delta", "out", 0, "out"), ("activation_delta", "out", 1, "out"),
    ("sigmoid_delta", "d1", 0, "a0"), ("sigmoid_delta", "d1", 1, "w1"), ("sigmoid_delta", "w1", 0, "a0"),
    ("sigmoid_delta", "w1", 1, "w1"), ("sigmoid_delta", "a0", 1, "a0"), ("sigmoid_delta", "out", 1, "out"),
    ("dense_backward", "x", 0, "d"), ("dense_backward", "x", 1, "w"), ("dense_backward", "w", 0, "w"),
    ("dense_backward", "w", 1, "d"), ("dense_backward", "d", 0, "d"), ("dense_backward", "d", 1, "d"),
    ("dense_update", "x", 0, "d"), ("dense_update", "x", 1, "w"), ("dense_update", "w", 0, "w"),
    ("dense_update", "w", 1, "b"), ("dense_update", "b", 0, "b"), ("dense_update", "d", 0, "d"),
    ("dense_update", "d", 1, "d"),
    ("output_delta", "a", 0, "y"), ("output_delta", "a", 1, "y"), ("output_delta", "y", 0, "y"),
    ("output_delta", "y", 1, "y"), ("output_delta", "sample_weight", 0, "sample_weight"),
    ("output_delta", "out", 0, "out"), ("output_delta", "out", 1, "out"),
]  # fmt: skip


def good(function: str, dtype: np.dtype) -> Arguments:
    """Arguments that are all right; every value is positive, which weights must be."""
    shapes, others, _ = FUNCTIONS[function]
    rng = np.random.default_rng(0)
    return {name: rng.uniform(0.1, 0.9, shape).astype(dtype) for name, shape in shapes.items()} | others


def refuse(function: str, arguments: Arguments, error: type[Exception], match: str) -> None:
    assert_refused(getattr(pf, function), arguments, error, match)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_good_arguments_are_taken(function, dtype):
    arguments = good(function, dtype)
    inputs = {name: arguments[name].copy() for name in FUNCTIONS[function][0]}
    results = getattr(pf, function)(**arguments)
    for name, value in inputs.items():
        written = name in FUNCTIONS[function][2]
        assert np.array_equal(arguments[name], value) != written, name
    if "out" in arguments:
        assert any(result is arguments["out"] for result in (results, *results))


@pytest.mark.parametrize(("spoil", "error", "message"), WRONG_DTYPES + WRONG_LAYOUTS)
@pytest.mark.parametrize(("function", "name"), ARRAYS)
def test_wrong_array(function, name, spoil, error, message, dtype):
    arguments = good(function, dtype)
    arguments[name] = spoil(arguments[name])
    refuse(function, arguments, error, rf"^{name} {message}")


@pytest.mark.parametrize(("spoil", "error", "message"), MIXED_DTYPES)
@pytest.mark.parametrize(("function", "name"), FOLLOWERS)
def test_mixed_dtypes(function, name, spoil, error, message, dtype):
    arguments = good(function, dtype)
    arguments[name] = spoil(arguments[name])
    refuse(function, arguments, error, rf"^{name} {message}")


@pytest.mark.parametrize(("function", "name", "axis", "blamed"), MISMATCHES)
def test_shapes_that_do_not_fit(function, name, axis, blamed, dtype):
    arguments = good(function, dtype)
    arguments[name] = longer(arguments[name], axis)
    refuse(function, arguments, ValueError, rf"^{blamed} must have shape \(.*\), got \(.*\)")


@pytest.mark.parametrize(("spoil", "error", "message"), WRONG_OUTPUTS)
@pytest.mark.parametrize(("function", "name"), OUTPUTS)
def test_wrong_output(function, name, spoil, error, message, dtype):
    arguments = good(function, dtype)
    arguments[name] = spoil(arguments[name])
    refuse(function, arguments, error, rf"^{name} {message}")


@pytest.mark.parametrize("shared", ["all", "one element", "nothing"])
@pytest.mark.parametrize(("function", "output", "used"), OVERLAPS)
def test_overlapping_output(function, output, used, shared, dtype):
    arguments = good(function, dtype)
    count = {"all": arguments[used].size, "one element": 1, "nothing": 0}[shared]
    apart = good(function, dtype)
    getattr(pf, function)(**apart)
    arguments[output], arguments[used] = overlapping(arguments[output], arguments[used], count)
    if count:
        refuse(function, arguments, ValueError, rf"^{output} {MEMORY} {used}$")
    else:
        # Neighbours in one buffer are no overlap.
        getattr(pf, function)(**arguments)
        np.testing.assert_array_equal(arguments[output], apart[output])


@pytest.mark.parametrize("name", ["x", "w", "b"])
def test_missing_array(name, dtype):
    refuse(
        "dense_forward", good("dense_forward", dtype) | {name: None}, TypeError, rf"^{name} must be a NumPy"
    )


@pytest.mark.parametrize(
    ("function", "argument", "known"),
    [
        ("dense_forward", "activation", pf.activations.ACTIVATIONS),
        ("activation_delta", "activation", pf.activations.ACTIVATIONS),
        ("output_delta", "activation", pf.activations.ACTIVATIONS),
        ("output_delta", "loss", pf.losses.LOSSES),
    ],
)
def test_unknown_names(function, argument, known, dtype):
    arguments = good(function, dtype)
    listed = rf"^unknown {argument} 'nonsense'; known: " + ", ".join(known)
    refuse(function, arguments | {argument: "nonsense"}, ValueError, listed)
    for wrong in (None, 3, b"tanh"):
        refuse(function, arguments | {argument: wrong}, TypeError, rf"^{argument} must be a name \(str\)")


@pytest.mark.parametrize(
    ("rate", "error", "message"),
    [
        (-0.1, ValueError, r"must be in \[0, inf\), got -0.1"),
        (np.inf, ValueError, r"must be in \[0, inf\), got inf"),
        (np.nan, ValueError, r"must be in \[0, inf\), got nan"),
        (10**400, ValueError, r"must be in \[0, inf\), got 10"),
        ("0.1", TypeError, "must be a number, got str"),
        (True, TypeError, "must be a number, got bool"),
        (None, TypeError, "must be a number, got NoneType"),
    ],
    ids=str,
)
def test_learning_rates(rate, error, message, dtype):
    arguments = good("dense_update", dtype) | {"learning_rate": rate}
    refuse("dense_update", arguments, error, f"^learning_rate {message}")


@pytest.mark.parametrize("rate", [np.float32(0.5), np.float64(0.5), 0.5])
def test_learning_rates_of_numpy_are_numbers(backend, rate, dtype):
    arguments, expected = good("dense_update", dtype), good("dense_update", dtype)
    pf.dense_update(**arguments | {"learning_rate": rate})
    pf.dense_update(**expected)
    np.testing.assert_array_equal(arguments["w"], expected["w"])


def test_activation_that_does_not_serve(dtype):
    arguments = good("activation_delta", dtype)
    refuse("activation_delta", arguments | {"activation": "softmax"}, ValueError, "^activation .*'softmax'")


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_slope_of_the_input_needs_z0(activation, dtype):
    arguments = good("activation_delta", dtype) | {"activation": activation}
    del arguments["z0"]
    refuse("activation_delta", arguments, ValueError, rf"^activation '{activation}' needs z0")


def test_needless_z0_is_checked_too(dtype):
    arguments = good("activation_delta", dtype) | {"activation": "relu", "z0": [[1.0]]}
    refuse("activation_delta", arguments, TypeError, "^z0 must be a NumPy array")


@pytest.mark.parametrize(("loss", "activation"), UNDEFINED_PAIRS)
def test_undefined_pairs_of_loss_and_output(loss, activation):
    arguments = good("output_delta", np.dtype(np.float32)) | {"loss": loss, "activation": activation}
    refuse(
        "output_delta", arguments, ValueError, rf"(loss '{loss}' needs|output activation).* '{activation}'"
    )


# What is wrong, targets (2, 3) or labels (2,), the loss, the error and its message.
UNFIT_TARGETS = [
    ("negative label", [0, -1], "cross_entropy", ValueError, "labels from 0 to 2, got -1"),
    ("large label", [3, 0], "cross_entropy", ValueError, "labels from 0 to 2, got 3"),
    ("uint8 label", np.array([0, 255], "u1"), "cross_entropy", ValueError, "labels from 0 to 2, got 255"),
    ("huge label", np.array([0, 2**63], "u8"), "cross_entropy", ValueError, "got 9223372036854775808"),
    ("column of labels", [[0], [1]], "cross_entropy", ValueError, r"labels of shape \(2,\).*\(2, 1\)"),
    ("one label more", [0, 1, 2], "cross_entropy", ValueError, r"labels of shape \(2,\).*\(3,\)"),
    ("bool labels", [True, False], "cross_entropy", TypeError, "got bool"),
    ("labels for mse", [0, 1], "mse", TypeError, "got int64: integer labels are for cross_entropy"),
    ("labels for bce", [0, 1], "binary_cross_entropy", TypeError, "got int64: integer labels"),
    ("above 1", [[0.5, 1.5, 0], [0, 0, 0]], "binary_cross_entropy", ValueError, r"in \[0, 1\] .*got 1.5"),
    ("below 0", [[0.5, 0.5, 0], [0, 0, -0.5]], "binary_cross_entropy", ValueError, r"in \[0, 1\] .*got -0.5"),
    ("infinite", [[1, 0, 0], [0, 0, np.inf]], "binary_cross_entropy", ValueError, "got inf"),
    ("sum of 1, not in [0, 1]", [[1.5, -0.5, 0], [1, 0, 0]], "cross_entropy", ValueError, "got 1.5"),
    ("sum of 0.5", [[1, 0, 0], [0.5, 0, 0]], "cross_entropy", ValueError, "rows that sum to 1"),
    ("sum of 2", [[1, 0, 0], [1, 1, 0.0]], "cross_entropy", ValueError, "rows that sum to 1"),
    ("negative count", [[1, 0, 0], [0, -1, 0.0]], "poisson", ValueError, r"in \[0, inf\] .*got -1"),
]


@pytest.mark.parametrize(("what", "y", "loss", "error", "message"), UNFIT_TARGETS)
def test_targets_that_do_not_fit_the_loss(what, y, loss, error, message, dtype):
    y = np.array(y)
    if y.dtype.kind == "f":
        y = y.astype(dtype)
    output = pf.losses.LOSSES[loss].matched or "identity"
    a, out = np.full((2, 3), 0.25, dtype), np.full((2, 3), -7, dtype)
    arguments = {"a": a, "y": y, "loss": loss, "activation": output, "out": out}
    refuse("output_delta", arguments, error, rf"^y .*{message}")

    net = pf.MLP([3, 3], output=output, loss=loss, dtype=dtype, seed=0)
    x = np.ones((2, 3), dtype)
    for call in (net.fit, net.evaluate, net.loss_and_gradient):
        assert_refused(call, {"x": x, "y": y}, error, rf"^y .*{message}", network=net)
    validation = {"x": x, "y": np.full((2, 3), 1 / 3, dtype), "validation_data": (x, y)}
    assert_refused(net.fit, validation, error, rf"^validation_data\[1\] .*{message}", network=net)


# Weights of two samples.
WRONG_WEIGHTS = {
    "negative": [1, -1],
    "NaN": [1, np.nan],
    "infinite": [1, np.inf],
    "all zero": [0, 0],
    "infinite sum": ["max", "max"],
}


@pytest.mark.parametrize("weight", WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_sample_weights(weight, dtype):
    weight = np.array([np.finfo(dtype).max if w == "max" else w for w in weight], dtype)
    y = np.full((2, 3), 0.5, dtype)
    message = "^sample_weight must be finite, .*not negative and not all zero"
    arguments = {"a": y.copy(), "y": y, "loss": "mse", "activation": "tanh", "sample_weight": weight}
    refuse("output_delta", arguments, ValueError, message)
    net = pf.MLP([3, 3], dtype=dtype, seed=0)
    for call in (net.fit, net.evaluate, net.loss_and_gradient):
        assert_refused(call, {"x": y, "y": y, "sample_weight": weight}, ValueError, message, network=net)


LABEL_LAYOUTS = {
    "int8": lambda y: y.astype(np.int8),
    "uint64": lambda y: y.astype(np.uint64),
    "other byte order": lambda y: y.astype(y.dtype.newbyteorder()),
    "strided": lambda y: np.repeat(y, 3)[::3],
    "misaligned": misaligned,
}


@pytest.mark.parametrize("layout", LABEL_LAYOUTS.values(), ids=LABEL_LAYOUTS)
def test_labels_of_every_layout_are_taken(backend, layout, dtype):
    a = np.array([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]], dtype)
    y = np.array([1, 2])
    expected = pf.output_delta(a, y)
    loss, d = pf.output_delta(a, layout(y))
    assert loss == expected[0]
    np.testing.assert_array_equal(d, expected[1])


def test_empty_batch_is_no_batch_for_a_loss(dtype):
    a = np.empty((0, 3), dtype)
    refuse(
        "output_delta", {"a": a, "y": a.copy(), "loss": "mse"}, ValueError, "^a must have at least one row"
    )


def test_empty_batches_pass_through_the_layers(backend, dtype):
    x, w, b, d = (np.ones(shape, dtype) for shape in ((0, K), (K, M), (M,), (0, M)))
    for name in pf.activations.ACTIVATIONS:
        assert pf.dense_forward(x, w, b, name).shape == (0, M)
    for name, f in pf.activations.ACTIVATIONS.items():
        if not f.rowwise:
            assert pf.activation_delta(d, w, x, name, z0=x.copy()).shape == (0, K)
    assert pf.sigmoid_delta(d, w, x).shape == (0, K)
    pf.dense_update(x, w, b, d, 0.5)
    np.testing.assert_array_equal(w, np.ones((K, M)))
    np.testing.assert_array_equal(b, np.ones(M))
    dw, db, dx = pf.dense_backward(x, w, d)
    np.testing.assert_array_equal(dw, np.zeros((K, M)))
    np.testing.assert_array_equal(db, np.zeros(M))
    assert dx.shape == (0, K)
    assert pf.MLP([K, 7, M], dtype=dtype, seed=0).predict(x).shape == (0, M)
