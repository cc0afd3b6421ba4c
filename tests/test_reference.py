"""The reference itself: held by values worked by hand, closed forms and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import BACKENDS

import pyfastnn as pf

REFERENCE = BACKENDS["numpy"]

# f(z) at z = -2, 0, 0.5 and f'(z) at 0.5, from the formulas by the math module.
E2, E05 = math.exp(-2), math.exp(0.5)
SIGMOID = 1 / (1 + math.exp(-0.5))
CDF = 0.5 * math.erfc(-0.5 / math.sqrt(2))
DENSITY = math.exp(-0.125) / math.sqrt(2 * math.pi)
BY_HAND = {
    "identity": ([-2, 0, 0.5], 1),
    "sigmoid": ([E2 / (1 + E2), 0.5, SIGMOID], SIGMOID * (1 - SIGMOID)),
    "tanh": ([-math.tanh(2), 0, math.tanh(0.5)], 1 / math.cosh(0.5) ** 2),
    "relu": ([0, 0, 0.5], 1),
    "leaky_relu": ([-0.02, 0, 0.5], 1),
    "elu": ([E2 - 1, 0, 0.5], 1),
    "softplus": ([math.log(1 + E2), math.log(2), math.log(1 + E05)], SIGMOID),
    "gelu": ([-math.erfc(math.sqrt(2)), 0, 0.5 * CDF], CDF + 0.5 * DENSITY),
    "silu": ([-2 * E2 / (1 + E2), 0, 0.5 * SIGMOID], SIGMOID + 0.5 * SIGMOID * (1 - SIGMOID)),
    "exp": ([E2, 1, E05], E05),
}


def test_every_elementwise_activation_is_worked_by_hand():
    assert set(BY_HAND) == {name for name, f in pf.activations.ACTIVATIONS.items() if not f.rowwise}


@pytest.mark.parametrize("name", BY_HAND)
def test_activations_by_hand(name):
    f = pf.activations.get(name)
    values, slope = BY_HAND[name]
    z = np.array([[-2.0, 0.0, 0.5]])
    a = f.value(z)
    # A few roundings of numbers below 2.
    np.testing.assert_allclose(a[0], values, rtol=0, atol=8e-16)
    s = a if f.slope_from == "output" else z
    np.testing.assert_allclose(f.delta(np.full_like(z, 3.0), s)[0, 2], 3 * slope, rtol=0, atol=2e-15)


def test_softmax_by_hand():
    a = pf.activations.get("softmax").value(np.log([[1.0, 2.0, 5.0], [4.0, 4.0, 0.5]]))
    np.testing.assert_allclose(a, [[1 / 8, 2 / 8, 5 / 8], [8 / 17, 8 / 17, 1 / 17]], rtol=1e-15)
    shifted = pf.activations.get("softmax").value(np.array([[1000.0, 1000.0, -1000.0]]))
    np.testing.assert_array_equal(shifted, [[0.5, 0.5, 0.0]])


def test_normal_distribution_against_the_error_function():
    z = np.concatenate([np.linspace(-37, 8, 2000), [0.0, -0.0]])
    exact = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in z])
    # An argument rounded by half an ulp moves the tail by z^2 / 2 ulps: once here, twice in erfc's
    # argument, with sqrt(2); a few more for the rest.
    bound = (8 + 1.5 * z * z) * np.finfo(np.float64).eps * exact
    assert (abs(pf.activations.normal_cdf(z) - exact) <= bound).all()


# l(a, y) at a = 0.25, y = 0.75 for one output, times the number of outputs where it is a sum.
LOSS_BY_HAND = {
    "mse": 0.25,
    "quadratic": 0.125,
    "cross_entropy": -0.75 * math.log(0.25),
    "binary_cross_entropy": -0.75 * math.log(0.25) - 0.25 * math.log(0.75),
    "huber": 0.125,
    "poisson": 0.25 - 0.75 + 0.75 * math.log(3),
}


def test_every_loss_is_worked_by_hand():
    assert set(LOSS_BY_HAND) == set(pf.losses.LOSSES)


@pytest.mark.parametrize("name", LOSS_BY_HAND)
def test_losses_by_hand(name):
    loss = pf.losses.get(name)
    a, y = np.full((3, 2), 0.25), np.full((3, 2), 0.75)
    outputs = 1 if loss.mean_over_outputs else 2
    value = REFERENCE.output_delta(a, y, None, loss, pf.activations.get("identity"), None)
    np.testing.assert_allclose(value, outputs * LOSS_BY_HAND[name], rtol=1e-15)
    # Weights average over the samples by their sum: here all samples are equal.
    weight = np.array([1.0, 5.0, 0.0])
    weighted = REFERENCE.output_delta(a, y, weight, loss, pf.activations.get("identity"), None)
    np.testing.assert_allclose(weighted, value, rtol=1e-15)


def test_huber_is_linear_far_out():
    loss = pf.losses.get("huber")
    np.testing.assert_array_equal(loss.value(np.array([4.0, -3.0]), np.array([1.0, 0.0])), [2.5, 2.5])
    np.testing.assert_array_equal(loss.gradient(np.array([4.0, -3.0]), np.array([1.0, 0.0])), [1, -1])


@pytest.mark.parametrize("name", [f for f in BY_HAND if f not in ("relu", "leaky_relu")])
def test_slopes_by_central_differences(name):
    """(f(z + h) - f(z - h)) / 2h errs by h^2 f'''/6 and by rounding, eps |f| / h."""
    f = pf.activations.get(name)
    z, h = np.linspace(-4, 4, 101)[np.newaxis] + 0.013, 1e-5
    difference = (f.value(z + h) - f.value(z - h)) / (2 * h)
    slope = f.delta(np.ones_like(z), f.value(z) if f.slope_from == "output" else z)
    third = 2 * np.exp(4) if name == "exp" else 2
    bound = h * h * third + np.finfo(np.float64).eps * (abs(f.value(z)) + 1) / h
    assert (abs(difference - slope) <= bound).all()


@pytest.mark.parametrize("name", list(pf.losses.LOSSES))
def test_loss_gradients_by_central_differences(name):
    loss, h = pf.losses.get(name), 1e-6
    a, y = np.meshgrid(np.linspace(0.1, 0.9, 17), np.linspace(0.05, 0.95, 13))
    difference = (loss.value(a + h, y) - loss.value(a - h, y)) / (2 * h)
    # Third derivatives up to 2 / 0.1^3; values up to 3.
    bound = h * h * 2000 + 4 * np.finfo(np.float64).eps / h
    assert (abs(difference - loss.gradient(a, y)) <= bound).all()


@pytest.mark.parametrize("loss", [loss for loss in pf.losses.LOSSES.values() if loss.outputs is not None])
def test_the_matched_delta_is_the_chain_rule(loss):
    """With its matched output activation, dl/da da/dz is a - y."""
    f = pf.activations.get(loss.matched)
    rng = np.random.default_rng(0)
    a = f.value(rng.normal(size=(5, 4)))
    y = rng.uniform(0.1, 0.9, (5, 4))
    y /= y.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(f.delta(loss.gradient(a, y), a), a - y, rtol=0, atol=1e-14)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.9, 0.999, 1 - 2.0**-30])
def test_corrections_of_late_steps_are_those_of_the_formula(beta):
    """Adam cuts steps off where a power no longer changes 1: no bit may differ."""
    adam = pf.Adam(0.5, beta1=beta, beta2=beta, epsilon=2.0)
    for first in (1, 300, 30_000, 800_000):
        correction = 1 - beta ** np.arange(first, first + 5000, dtype=np.float64)
        root = np.sqrt(correction)
        expected = np.column_stack([0.5 * root / correction, 2 * root])
        np.testing.assert_array_equal(adam.numbers(first, 5000)[:, :2], expected)
