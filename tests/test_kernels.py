"""Every backend, instruction set and dtype against the reference in float64."""

from __future__ import annotations

import numpy as np
import pytest
import tolerance
from conftest import BACKENDS, COMPILED

import pyfastnn as pf
from pyfastnn.backends.plan import batch_scale

REFERENCE = BACKENDS["numpy"]
ACTIVATIONS = list(pf.activations.ACTIVATIONS)
ELEMENTWISE = [name for name, f in pf.activations.ACTIVATIONS.items() if not f.rowwise]

# (batch, inputs, outputs): empty, one, around the tiles (6, 8 and 12 rows; 4 to 32 columns) and blocks
# (96, 192 rows; depth 256), primes, and shapes of real networks.
SHAPES = [
    (0, 3, 2), (3, 0, 2), (3, 2, 0), (1, 1, 1), (2, 1, 3), (1, 17, 5), (5, 4, 7), (6, 8, 8), (7, 9, 16),
    (8, 5, 17), (9, 31, 15), (12, 33, 31), (13, 7, 32), (17, 3, 33), (10, 784, 30), (10, 30, 10), (97, 4, 32),
    (64, 257, 63), (191, 13, 11), (193, 29, 65), (25, 300, 70), (200, 24, 8), (40, 520, 129),
    (385, 9, 5), (11, 387, 6), (1, 78, 70),
    (0, 3, 1), (3, 0, 1), (70, 1, 1), (33, 130, 1), (9, 1, 70), (70, 300, 3), (8, 70, 2), (7, 66, 210),
    (3, 70, 33), (7, 530, 2), (9, 600, 4), (6, 4, 70), (70, 3, 1), (1, 70, 4), (9, 33, 3), (6, 47, 4),
    (4, 33, 20), (7, 70, 130), (70, 3, 67), (3, 200, 30), (6, 1030, 13), (70, 2, 1), (70, 4, 1), (1, 70, 2),
    (2, 7, 2), (41, 3, 50), (30, 2, 19), (21, 1, 37), (26, 4, 127), (15, 4, 128), (6, 0, 20),
    (50, 130, 64), (9, 70, 1024), (6, 9, 1024), (11, 47, 300), (12, 9, 257), (13, 9, 257),
]  # fmt: skip

# And several blocks in every direction; weights beyond the caches, by rows; a long row; rows of w or x a
# multiple of 256 bytes or of 4 KB apart.
LARGE = [
    (100, 520, 1100), (1, 1100, 530), (3, 1100, 530), (60, 1100, 530), (5, 20_000, 3),
    (30, 600, 64), (9, 1100, 1024), (13, 1024, 70), (24, 512, 512),
]  # fmt: skip


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return rng.integers(-4, 5, shape).astype(dtype)


def layer(shape: tuple[int, int, int], dtype: np.dtype, seed: int = 0) -> tuple[np.ndarray, ...]:
    """x, w, b, d of normal numbers."""
    n, k, m = shape
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=size).astype(dtype) for size in ((n, k), (k, m), (m,), (n, m)))


def poisoned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.full(shape, np.nan, dtype)


@pytest.mark.parametrize("shape", [*SHAPES, *LARGE])
def test_products_of_small_integers_are_exact(backend, dtype, shape):
    n, k, m = shape
    rng = np.random.default_rng(1)
    x, w, b, d = (integers(rng, size, dtype) for size in ((n, k), (k, m), (m,), (n, m)))
    np.testing.assert_array_equal(pf.dense_forward(x, w, b, out=poisoned((n, m), dtype)), x @ w + b)
    dw, db, dx = pf.dense_backward(x, w, d)
    np.testing.assert_array_equal(dw, x.T @ d)
    np.testing.assert_array_equal(db, d.sum(axis=0))
    np.testing.assert_array_equal(dx, d @ w.T)
    changed_w, changed_b = w.copy(), b.copy()
    pf.dense_update(x, changed_w, changed_b, d, 0.5)
    np.testing.assert_array_equal(changed_w, w - (x.T @ d) / 2)
    np.testing.assert_array_equal(changed_b, b - d.sum(axis=0) / 2)
    a = integers(rng, (n, k), dtype)
    np.testing.assert_array_equal(
        pf.activation_delta(d, w, a, "relu", out=poisoned((n, k), dtype)), np.where(a > 0, d @ w.T, 0)
    )
    np.testing.assert_array_equal(pf.sigmoid_delta(d, w, a), (d @ w.T) * (a * (1 - a)))


@pytest.mark.parametrize("size", [1, 8, 33, 130])
def test_identity_weights_copy(backend, dtype, size):
    x = np.random.default_rng(2).normal(size=(11, size)).astype(dtype)
    eye, zero = np.eye(size, dtype=dtype), np.zeros(size, dtype)
    np.testing.assert_array_equal(pf.dense_forward(x, eye, zero), x)
    np.testing.assert_array_equal(pf.dense_backward(x, eye, x)[2], x)


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_errs_within_the_bound(backend, dtype, shape):
    x, w, b, _ = layer(shape, dtype)
    wide = [array.astype(np.float64) for array in (x, w, b)]
    z = wide[0] @ wide[1] + wide[2]
    z_error = tolerance.product(*wide[:2], dtype, wide[2])
    for name in ACTIVATIONS:
        a, kept = poisoned(z.shape, dtype), poisoned(z.shape, dtype)
        assert pf.dense_forward(x, w, b, name, out=a, z=kept) is a
        assert (abs(kept - z) <= z_error).all()
        exact = pf.activations.ACTIVATIONS[name].value(z)
        assert (abs(a - exact) <= tolerance.value(name, z, z_error, dtype)).all(), name


@pytest.mark.parametrize("shape", SHAPES)
def test_backward_errs_within_the_bound(backend, dtype, shape):
    x, w, _, d = layer(shape, dtype)
    wide_x, wide_w, wide_d = (array.astype(np.float64) for array in (x, w, d))
    dw, db, dx = pf.dense_backward(x, w, d)
    ones = np.ones((1, len(d)))
    assert (abs(dw - wide_x.T @ wide_d) <= tolerance.product(wide_x.T, wide_d, dtype)).all()
    assert (abs(db - wide_d.sum(axis=0)) <= tolerance.product(ones, wide_d, dtype)[0]).all()
    assert (abs(dx - wide_d @ wide_w.T) <= tolerance.product(wide_d, wide_w.T, dtype)).all()
    without = pf.dense_backward(x, w, d, need_dx=False)
    assert without[2] is None
    np.testing.assert_array_equal(without[0], dw)


@pytest.mark.parametrize("shape", SHAPES)
def test_update_errs_within_the_bound(backend, dtype, shape):
    x, w, b, d = layer(shape, dtype)
    wide_x, wide_w, wide_b, wide_d = (array.astype(np.float64) for array in (x, w, b, d))
    rate = 0.1
    pf.dense_update(x, w, b, d, rate)
    for got, old, left in ((w, wide_w, wide_x.T), (b, wide_b, np.ones((1, len(d))))):
        gradient = left @ wide_d
        exact = old - rate * gradient
        # The sum errs, and so do the rate in this dtype, its product and the difference; in float64 those
        # of the exact value too.
        bound = rate * tolerance.product(left, wide_d, dtype)
        bound += 2 * tolerance.unit(dtype) * (2 * rate * abs(gradient) + abs(exact))
        assert (abs(got - exact) <= bound + tolerance.floor(dtype)).all()


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 33, 5), (200, 24, 8)])
def test_delta_errs_within_the_bound(backend, dtype, name, shape):
    _, w, _, d = layer(shape, dtype)
    f = pf.activations.ACTIVATIONS[name]
    z = np.random.default_rng(3).normal(scale=2, size=(shape[0], shape[1])).astype(dtype)
    a = f.value(z)
    out = poisoned(z.shape, dtype)
    assert pf.activation_delta(d, w, a, name, out=out, z0=z) is out
    wide_d, wide_w = d.astype(np.float64), w.astype(np.float64)
    s = (a if f.slope_from == "output" else z).astype(np.float64)
    back = wide_d @ wide_w.T
    slopes = f.delta(np.ones_like(s), s)
    # 1 - a cancels: an error of one ulp of 1. The slopes from z pass through a product with z.
    slope_error = tolerance.FUNCTION_ULPS * 2 * tolerance.unit(dtype) * (1 + abs(s))
    bound = tolerance.product(wide_d, wide_w.T, dtype) * abs(slopes) + 1.01 * abs(back) * slope_error
    assert (abs(out - back * slopes) <= bound + tolerance.floor(dtype)).all()


FUNCTION_RANGE = {
    "exp": (-86.0, 88.0),  # in float32 without underflow and overflow
}


@pytest.mark.large
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_functions_over_their_range(backend, dtype, name):
    low, high = FUNCTION_RANGE.get(name, (-30.0, 30.0))
    small = np.geomspace(1e-30, 1, 500)
    z = np.concatenate([np.linspace(low, high, 4001), small, -small, [0.0]]).astype(dtype)[:, np.newaxis]
    one, zero = np.ones((1, 1), dtype), np.zeros(1, dtype)
    a = pf.dense_forward(z, one, zero, name)
    wide = z.astype(np.float64)
    exact = pf.activations.ACTIVATIONS[name].value(wide)
    assert (abs(a - exact) <= tolerance.value(name, wide, np.zeros_like(wide), dtype)).all()
    if name == "tanh":
        assert abs(a).max() <= 1


def targets(loss: pf.losses.Loss, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    rng = np.random.default_rng(4)
    if loss.name == "poisson":
        return rng.poisson(1.5, shape).astype(dtype)
    y = rng.uniform(0, 1, shape)
    return (y / y.sum(axis=1, keepdims=True) if loss.targets == "classes" else y).astype(dtype)


PAIRS = [
    (loss, f)
    for loss in pf.losses.LOSSES
    for f in pf.activations.ACTIVATIONS
    if f in (pf.losses.LOSSES[loss].outputs or [f]) and pf.activations.ACTIVATIONS[f].slope_from == "output"
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("loss_name", "name"), PAIRS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 10), (7, 16), (5, 33), (600, 3)])
def test_output_delta_errs_within_the_bound(backend, dtype, loss_name, name, shape, weighted):
    loss, f = pf.losses.LOSSES[loss_name], pf.activations.ACTIVATIONS[name]
    rng = np.random.default_rng(5)
    a = f.value(rng.normal(size=shape)).astype(dtype)
    if loss_name == "poisson":
        a += dtype.type(0.125)  # keeps y / a away from overflow
    y = targets(loss, shape, dtype)
    weight = rng.uniform(0.5, 2, shape[0]).astype(dtype) if weighted else None
    out = poisoned(shape, dtype)
    value, d = pf.output_delta(a, y, loss, f, out=out, sample_weight=weight)
    assert d is out
    wide = [None if array is None else array.astype(np.float64) for array in (a, y, weight)]
    exact = np.empty(shape)
    exact_value = REFERENCE.output_delta(*wide, loss, f, exact)
    ulp = 2 * tolerance.unit(dtype)
    weights = np.ones(shape[0]) if weight is None else wide[2]
    factors = weights[:, np.newaxis] * batch_scale(loss, shape, wide[2])
    # Inside a loss, a and y (and 1 - a, 1 - y) err by ulps of size = 1 + |a| + |y|, which moves l by
    # |dl/da| times that; l is summed over at most 256 samples in 8 lanes or more of the dtype.
    size, gradient = 1 + abs(wide[0]) + abs(wide[1]), abs(loss.gradient(wide[0], wide[1]))
    chain = min(shape[0], 256) * shape[1] / 8 + 4
    sizes = abs(loss.value(wide[0], wide[1])) + (1 + gradient) * size
    assert abs(value - exact_value) <= ulp * (tolerance.FUNCTION_ULPS + chain) * (factors * sizes).sum()
    # The slope 1 - a errs by an ulp of 1, hence again of size; softmax sums over the row.
    reach = (1 + gradient) * size
    if f.rowwise:
        reach = reach.sum(axis=1, keepdims=True)
    assert (abs(d - exact) <= ulp * tolerance.FUNCTION_ULPS * factors * reach).all()


@pytest.mark.parametrize("label_dtype", ["int64", "uint8", "int32"])
def test_labels_equal_one_hot_rows(backend, dtype, label_dtype):
    rng = np.random.default_rng(6)
    a = pf.activations.ACTIVATIONS["softmax"].value(rng.normal(size=(301, 7))).astype(dtype)
    labels = rng.integers(0, 7, 301).astype(label_dtype)
    value, d = pf.output_delta(a, labels)
    one_hot_value, one_hot_d = pf.output_delta(a, np.eye(7, dtype=dtype)[labels])
    # (a - 1) f and a f - f round differently by one ulp; the sums differ in their order.
    np.testing.assert_allclose(d, one_hot_d, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(value, one_hot_value, rtol=301 * np.finfo(dtype).eps)


def test_a_vanished_probability_costs_a_finite_loss(backend, dtype):
    a = np.array([[1.0, 0.0]], dtype)
    value, d = pf.output_delta(a, np.array([1]))
    np.testing.assert_allclose(value, -np.log(float(np.finfo(dtype).tiny)), rtol=1e-6)
    np.testing.assert_array_equal(d, [[1, -1]])
    for y in (np.zeros((1, 2), dtype), np.ones((1, 2), dtype)):
        binary, _ = pf.output_delta(a, y, "binary_cross_entropy", "sigmoid")
        np.testing.assert_allclose(binary, -np.log(float(np.finfo(dtype).tiny)), rtol=1e-6)


@pytest.mark.parametrize(
    "shape",
    [(1, 78, 70), (10, 784, 30), (64, 257, 63), (300, 40, 129), (99, 520, 1100), (20, 1024, 1024)],
)
@pytest.mark.parametrize("name", ["identity", "tanh", "gelu", "softmax"])
def test_instruction_sets_with_fused_multiply_add_agree_to_the_bit(dtype, shape, name):
    fused = [backend for backend in COMPILED if backend.isa != "baseline"]
    x, w, b, d = layer(shape, dtype)
    results = []
    for backend in fused:
        with pf.use_backend(backend):
            a = pf.dense_forward(x, w, b, name)
            changed = w.copy(), b.copy()
            pf.dense_update(x, *changed, d, 0.1)
            results.append((a, *pf.dense_backward(x, w, d), *changed))
    for result in results[1:]:
        for got, first in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(got, first)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (7, 9, 5), (13, 33, 31), (10, 300, 30), (9, 33, 3), (70, 3, 1), (7, 66, 210)]
)
def test_nothing_outside_the_arrays_is_written_or_used(backend, dtype, shape):
    """Inputs and outputs are windows in arrays of NaN: a stray read shows, a stray write too."""
    n, k, m = shape
    guard = 64

    def window(size: tuple[int, ...], values: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        count = int(np.prod(size))
        whole = poisoned((count + 2 * guard,), dtype)
        inner = whole[guard : guard + count].reshape(size)
        if values is not None:
            inner[...] = values
        return whole, inner

    (_, x), (outer_w, w), (outer_b, b), (_, d) = (window(array.shape, array) for array in layer(shape, dtype))
    outer_a, a = window((n, m))
    outer_s, s = window((n, k))
    pf.dense_forward(x, w, b, out=a)
    pf.activation_delta(d, w, x, "tanh", out=s)
    derivatives = pf.dense_backward(x, w, d)
    outer_d, out = window((n, m))
    pf.output_delta(a, d, "mse", "identity", out=out)
    pf.dense_update(x, w, b, d, 0.1)
    for outer, inner in ((outer_a, a), (outer_s, s), (outer_d, out), (outer_w, w), (outer_b, b)):
        assert np.isfinite(inner).all()
        assert np.isnan(outer[:guard]).all()
        assert np.isnan(outer[guard + inner.size :]).all()
    assert all(np.isfinite(array).all() for array in derivatives)


@pytest.mark.parametrize("size", [1, 7, 8, 63, 1000, 300_001])
def test_updates_equal_the_reference(backend, dtype, size):
    rng = np.random.default_rng(7)
    params, gradient, first, second = (rng.uniform(-1, 1, size).astype(dtype) for _ in range(4))
    second = abs(second) + dtype.type(0.25)
    calls = [
        ("sgd", [], (0.1,)),
        ("momentum", [first], (0.1, 0.9)),
        ("nesterov", [first], (0.1, 0.9)),
        ("adam", [first, second], (0.01, 1e-8, 0.1, 0.001)),
    ]
    assert {name for name, _, _ in calls} == set(pf.optimizers.RULES)
    for name, slots, numbers in calls:
        ours = [params.copy(), *(slot.copy() for slot in slots)]
        wide = [array.astype(np.float64) for array in ours]
        backend.update(name, ours[0], gradient, ours[1:], numbers)
        REFERENCE.update(name, wide[0], gradient.astype(np.float64), wide[1:], numbers)
        for got, exact in zip(ours, wide, strict=True):
            # Fewer than 8 operations on numbers below 2, each of which errs by half an ulp of 2.
            np.testing.assert_allclose(got, exact, rtol=0, atol=8 * np.finfo(dtype).eps)


def test_adam_divides_by_the_square_root(backend, dtype):
    """Over all magnitudes, and where the square root has no rounding error to hide behind."""
    info, rng = np.finfo(dtype), np.random.default_rng(8)
    second = (2.0 ** rng.uniform(info.minexp, info.maxexp - 1, 20_000)).astype(dtype)
    first, params = np.ones_like(second), np.zeros_like(second)
    backend.update("adam", params, np.ones_like(second), [first, second.copy()], (-1.0, 0.0, 0.0, 0.0))
    # The root errs by 1.5 units in the last place, the division by half a one; a unit is at most eps.
    np.testing.assert_allclose(params, 1 / np.sqrt(second.astype(np.float64)), rtol=2 * info.eps)


def test_adam_with_moments_that_are_zero_or_not_finite(backend, dtype):
    huge = np.finfo(dtype).max / 2
    gradient = np.array([0, 2, huge, np.nan], dtype)
    params, first, second = np.zeros_like(gradient), np.ones_like(gradient), np.zeros_like(gradient)
    backend.update("adam", params, gradient, [first, second], (-1.0, 0.5, 0.0, 1.0))
    np.testing.assert_array_equal(second, [0, 4, np.inf, np.nan])
    np.testing.assert_allclose(params, [2, 0.4, 0, np.nan], rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("value", "right"), [(0, True), (1, True), (-1e-6, False), (1 + 1e-6, False), (np.nan, True)]
)
def test_targets_at_the_edges_of_their_range(backend, dtype, value, right):
    a, y = np.full((3, 2), 0.25, dtype), np.full((3, 2), 0.5, dtype)
    y[1, 1] = value
    if right:
        loss, d = pf.output_delta(a, y, "binary_cross_entropy", "sigmoid")
        assert np.isnan(loss) == np.isnan(value)
        np.testing.assert_allclose(d, (a - y) / 3, rtol=8 * np.finfo(dtype).eps)
    else:
        with pytest.raises(ValueError, match=r"^y must be in \[0, 1\]"):
            pf.output_delta(a, y, "binary_cross_entropy", "sigmoid")


@pytest.mark.parametrize("off", [0, 4e-4, 8e-4, 2e-3])
def test_rows_of_probabilities_sum_to_one(backend, dtype, off):
    """To a thousandth; a quick look is narrower, and leaves the rest to the thorough one."""
    a, y = np.full((3, 2), 0.5, dtype), np.full((3, 2), 0.5, dtype)
    y[2, 0] += off
    if off < 1e-3:
        assert np.isfinite(pf.output_delta(a, y, "cross_entropy", "softmax")[0])
    else:
        with pytest.raises(ValueError, match="y must have rows that sum to 1"):
            pf.output_delta(a, y, "cross_entropy", "softmax")
