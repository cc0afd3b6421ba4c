"""Whole networks over the shapes that training is scheduled by: vectors, tiles, blocks, short batches."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import BACKENDS

import pyfastnn as pf

REFERENCE = BACKENDS["numpy"]

# Layers and batch: widths around whole vectors (4 to 16 numbers), batches around blocks of 16 rows,
# tiles of 96 and four of them, parts of 64 rows and more, few and many parameters, deep and shallow, wide
# inputs, very many, many weights, layers split between threads, one by one or two by two.
SHAPES = [
    ([1, 1], 1), ([3, 1], 2), ([2, 5, 3], 7), ([4, 8, 4], 16), ([5, 7, 9, 3], 17), ([4, 16, 16, 2], 15),
    ([4, 17, 15, 1], 33), ([6, 33, 31, 10], 95), ([8, 8], 96), ([3, 4, 2], 97), ([4, 12, 12, 4], 383),
    ([4, 12, 12, 4], 384), ([4, 13, 11, 4], 385), ([2, 3, 3, 3, 3, 2], 500), ([9, 1, 9], 400),
    ([30, 200, 7], 64), ([150, 140, 3], 31), ([784, 30, 10], 10), ([600, 12, 4], 9), ([8200, 3, 1], 3),
    ([300, 5], 13), ([10, 129, 10], 700), ([60, 201, 7], 130), ([60, 201, 7], 520), ([12, 900, 1], 1030),
    ([6, 20, 3, 12, 2], 50), ([5, 16, 4, 9], 390), ([60, 90, 2], 140), ([70, 700, 33], 20),
    ([200, 340, 2], 7), ([40, 100, 70, 150, 2], 19), ([40, 100, 90, 290, 70, 3], 64),
    ([30, 31, 700, 390], 3),
]  # fmt: skip


def whole_numbers(
    rng: np.random.Generator, shape: tuple[int, ...] | int, dtype: np.dtype, zeros: int = 3
) -> np.ndarray:
    """-1, 0 and 1, mostly 0, so that sums stay small."""
    return rng.choice([-1, *[0] * zeros, 1], shape).astype(dtype)


def exact_problem(layers: list[int], batch: int, dtype: np.dtype) -> tuple[pf.MLP, tuple[np.ndarray, ...]]:
    """A network with data, whose loss and gradient are exact in any order of the sums.

    All are small whole numbers but for the division by the sum of the weights, a power of two.
    """
    rng = np.random.default_rng(0)
    net = pf.MLP(layers, "relu", loss="quadratic", dtype=dtype)
    # In deep and wide networks sums grow.
    zeros = max(layers) // 6 if len(layers) > 3 and max(layers) > 100 else 3
    net.params = whole_numbers(rng, net.parameter_count, dtype, zeros)
    x, y = (whole_numbers(rng, (batch, size), dtype) for size in (layers[0], layers[-1]))
    weight = np.ones(batch, dtype)
    weight[batch // 2] += 2 ** (batch - 1).bit_length() - batch
    return net, (x, y, weight)


@pytest.mark.parametrize(("layers", "batch"), SHAPES, ids=repr)
def test_gradient_is_exact(backend, dtype, layers, batch):
    net, (x, y, weight) = exact_problem(layers, batch, dtype)
    wide, data = exact_problem(layers, batch, np.dtype(np.float64))
    with pf.use_backend(REFERENCE):
        expected_loss, expected = wide.loss_and_gradient(*data[:2], sample_weight=data[2])
        # Without signs nothing cancels: no sum on the way is larger. Exact are numerators below
        # 2^24 of a denominator that is a power of two; of the loss, all terms are positive anyway.
        wide.params = abs(wide.params)
        _, largest = wide.loss_and_gradient(abs(data[0]), -abs(data[1]), sample_weight=data[2])
    assert largest.max() * weight.sum() < 2**24
    assert 2 * expected_loss * weight.sum() < 2**24
    out = np.full(net.parameter_count, np.nan, dtype)
    loss, gradient = net.loss_and_gradient(x, y, sample_weight=weight, out=out)
    np.testing.assert_array_equal(gradient, expected)
    assert loss == expected_loss
    assert net.evaluate(x, y, sample_weight=weight)["loss"] == expected_loss


@pytest.mark.parametrize("optimizer", [pf.SGD(0.5), pf.SGD(0.5, momentum=0.5)], ids=repr)
@pytest.mark.parametrize(("layers", "batch"), SHAPES, ids=repr)
def test_first_step_is_exact(backend, dtype, layers, batch, optimizer):
    net, (x, y, weight) = exact_problem(layers, batch, dtype)
    loss, gradient = net.loss_and_gradient(x, y, sample_weight=weight)
    expected = net.params - dtype.type(0.5) * gradient
    history = net.fit(x, y, epochs=1, batch_size=batch, optimizer=optimizer, sample_weight=weight)
    np.testing.assert_array_equal(net.params, expected)
    assert history.loss == [loss]


def epoch_and_its_steps(
    layers: list[int], batch: int, samples: int, optimizer: pf.SGD | pf.Adam, dtype: np.dtype
) -> tuple[pf.MLP, pf.MLP, float, float]:
    """A network after one call of fit, one after a call a batch, and the losses on the way."""
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=(samples, size)).astype(dtype) for size in (layers[0], layers[-1]))
    hidden = ["gelu", "tanh", "silu", "relu"][: len(layers) - 2]
    whole, parts = (pf.MLP(layers, hidden, dtype=dtype, seed=2) for _ in range(2))
    settings = {"epochs": 1, "batch_size": batch, "optimizer": optimizer, "shuffle": False}
    history = whole.fit(x, y, **settings)
    starts = range(0, samples, batch)
    losses = [parts.fit(x[i : i + batch], y[i : i + batch], **settings).loss[0] for i in starts]
    counts = [min(batch, samples - i) for i in starts]
    return whole, parts, history.loss[0], np.average(losses, weights=counts)


@pytest.mark.parametrize("optimizer", [pf.SGD(0.01, momentum=0.9, nesterov=True), pf.Adam()], ids=repr)
@pytest.mark.parametrize(("layers", "batch"), SHAPES, ids=repr)
def test_an_epoch_is_its_steps(backend, dtype, layers, batch, optimizer):
    whole, parts, loss, mean = epoch_and_its_steps(layers, batch, 3 * batch, optimizer, dtype)
    assert whole.params.tobytes() == parts.params.tobytes()
    # Sums and a mean of three losses, in double precision.
    assert loss == pytest.approx(mean, rel=10 * np.finfo(np.float64).eps)


@pytest.mark.parametrize(("layers", "batch"), SHAPES, ids=repr)
def test_a_short_batch_comes_last(backend, dtype, layers, batch):
    samples = batch + (batch + 1) // 2
    whole, parts, loss, mean = epoch_and_its_steps(layers, batch, samples, pf.SGD(1e-3), dtype)
    # Alone, the short batch may be scheduled otherwise: its sums come in another order. The loss is a
    # mean of positive terms; those of the gradient are of order 100 at most, of which a step takes a
    # thousandth, and rounds it to a unit of the parameter.
    eps = float(np.finfo(dtype).eps)
    assert loss == pytest.approx(mean, rel=(batch * layers[-1] + sum(layers)) * eps)
    bound = eps * (0.1 * batch + abs(whole.params).max())
    np.testing.assert_allclose(whole.params, parts.params, rtol=0, atol=bound)
