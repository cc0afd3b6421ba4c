"""The gradient of whole networks against differences of the loss, and what weights of samples mean."""

from __future__ import annotations

import numpy as np
import pytest

import pyfastnn as pf

EPS = np.finfo(np.float64).eps
ELEMENTWISE = [name for name, f in pf.activations.ACTIVATIONS.items() if not f.rowwise]
PAIRS = [
    (loss.name, name)
    for loss in pf.losses.LOSSES.values()
    for name, f in pf.activations.ACTIVATIONS.items()
    if f.slope_from == "output" and (loss.outputs is None or name in loss.outputs)
]
SAMPLES, OUTPUTS = 11, 3

# Every hidden activation with every loss, and every output activation with every loss.
NETWORKS = [
    (hidden, loss.name, loss.matched or "identity")
    for hidden in ELEMENTWISE
    for loss in pf.losses.LOSSES.values()
] + [("tanh", loss, output) for loss, output in PAIRS]


def targets(loss: str, rng: np.random.Generator) -> np.ndarray:
    """Targets that the loss takes: (SAMPLES, OUTPUTS), in (0, 1), of sum 1 for classes."""
    y = rng.uniform(0.1, 0.9, (SAMPLES, OUTPUTS))
    return y / y.sum(axis=1, keepdims=True) if pf.losses.LOSSES[loss].targets == "classes" else y


def assert_is_gradient(net: pf.MLP, x: np.ndarray, y: np.ndarray, weight: np.ndarray | None) -> None:
    """Along random directions, the slope equals the central difference of the loss.

    The difference over +-h errs by h^2 times a third derivative, a third of what doubling h
    changes, and by the rounding of the two losses over h; a loss is the work of less than 1000
    roundings of numbers of its own size or 1.
    """
    _, gradient = net.loss_and_gradient(x, y, sample_weight=weight)
    start = net.params.copy()
    rng = np.random.default_rng(9)

    def loss_at(params: np.ndarray) -> float:
        net.params = params
        return net.loss_and_gradient(x, y, sample_weight=weight)[0]

    def difference(direction: np.ndarray, h: float) -> float:
        return (loss_at(start + h * direction) - loss_at(start - h * direction)) / (2 * h)

    h = 1e-5
    for _ in range(3):
        direction = rng.normal(size=start.size)
        near, far = difference(direction, h), difference(direction, 2 * h)
        tolerance = abs(far - near) + 1000 * EPS * (1 + abs(loss_at(start))) / h
        # A bound that could hide a wrong derivative would say nothing.
        assert tolerance < 1e-5 * np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs(near - gradient @ direction) <= tolerance
    net.params = start


@pytest.mark.parametrize(("hidden", "loss", "output"), NETWORKS)
def test_gradient_by_differences(backend, hidden, loss, output):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(SAMPLES, 4)), rng.uniform(0.5, 2, SAMPLES)
    net = pf.MLP([4, 6, 5, OUTPUTS], hidden, output, loss=loss, dtype="float64", seed=1)
    # Biases other than zero, so that no kink and no symmetry is where we look; and small enough that
    # exponentials of exponentials saturate no sigmoid, where log(1 - a) has few digits.
    net.params = 0.5 * net.params + rng.normal(scale=0.1, size=net.parameter_count)
    y = targets(loss, rng)
    assert_is_gradient(net, x, y, None)
    assert_is_gradient(net, x, y, weight)


def test_gradient_with_labels(backend):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(SAMPLES, 4)), rng.integers(0, OUTPUTS, SAMPLES)
    net = pf.MLP([4, 6, OUTPUTS], "gelu", "softmax", dtype="float64", seed=1)
    assert_is_gradient(net, x, y, None)
    assert_is_gradient(net, x, y, rng.uniform(0.5, 2, SAMPLES))


def test_both_dtypes_agree(backend):
    """The float32 gradient of a small network is that of float64 to some hundred roundings."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(SAMPLES, 4)).astype(np.float32), rng.integers(0, OUTPUTS, SAMPLES)
    narrow, wide = (pf.MLP([4, 6, OUTPUTS], "tanh", "softmax", dtype=d, seed=1) for d in ("f4", "f8"))
    wide.params = narrow.params.astype(np.float64)
    loss, gradient = narrow.loss_and_gradient(x, y)
    exact_loss, exact = wide.loss_and_gradient(x.astype(np.float64), y)
    eps = np.finfo(np.float32).eps
    # 4 + 6 + 3 + 11 products a path, and three functions of a few units in the last place.
    assert abs(loss - exact_loss) <= 100 * eps * exact_loss
    assert abs(gradient - exact).max() <= 100 * eps * abs(exact).max()


def spread(net: pf.MLP, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray]:
    """Weighted means over the samples of |loss| and |gradient|, sample by sample."""
    rows = [net.loss_and_gradient(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    loss = np.average([abs(value) for value, _ in rows], weights=weight)
    return loss, np.average([abs(gradient) for _, gradient in rows], axis=0, weights=weight)


@pytest.mark.parametrize(
    ("loss", "output"), [(loss.name, loss.matched or "identity") for loss in pf.losses.LOSSES.values()]
)
def test_weight_counts_repetitions(backend, dtype, loss, output):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(SAMPLES, 4)).astype(dtype), targets(loss, rng).astype(dtype)
    times = rng.integers(0, 4, SAMPLES)
    net = pf.MLP([4, 6, OUTPUTS], "tanh", output, loss=loss, dtype=dtype, seed=1)
    weighted = net.loss_and_gradient(x, y, sample_weight=times.astype(dtype))
    repeated = net.loss_and_gradient(np.repeat(x, times, axis=0), np.repeat(y, times, axis=0))
    # Both are the same mean, of at most sum(times) terms in different orders, each term the work of
    # less than 20 further roundings on the way from the network's outputs.
    bound = (times.sum() + 20) * np.finfo(dtype).eps
    for got, expected, size in zip(weighted, repeated, spread(net, x, y, times), strict=True):
        assert (abs(got - expected) <= bound * size).all()


def test_samples_of_weight_zero_do_not_count(backend, dtype):
    rng = np.random.default_rng(5)
    x, y = rng.integers(-3, 4, (6, 4)).astype(dtype), rng.integers(-3, 4, (6, 2)).astype(dtype)
    net = pf.MLP([4, 2], dtype=dtype)
    net.params = rng.integers(-3, 4, net.parameter_count).astype(dtype)
    weight = np.array([1, 0, 1, 0, 1, 1], dtype)
    kept = weight > 0
    # Small integers and a division by 8 outputs: exact.
    ours = net.loss_and_gradient(x, y, sample_weight=weight)
    theirs = net.loss_and_gradient(x[kept], y[kept])
    assert ours[0] == theirs[0]
    np.testing.assert_array_equal(ours[1], theirs[1])
    # Not even where they are far out.
    x[~kept] *= 1000
    assert net.loss_and_gradient(x, y, sample_weight=weight)[0] == theirs[0]


def test_gradient_into_an_output(backend, dtype):
    net = pf.MLP([4, 5, 2], "tanh", dtype=dtype, seed=0)
    x, y = np.ones((3, 4), dtype), np.ones((3, 2), dtype)
    loss, gradient = net.loss_and_gradient(x, y)
    out = np.full(net.parameter_count, np.nan, dtype)
    again, same = net.loss_and_gradient(x, y, out=out)
    assert same is out
    assert again == loss
    np.testing.assert_array_equal(out, gradient)
