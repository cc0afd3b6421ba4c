"""The worked numbers and the equations of the texts that people learn networks from, on every backend."""

from __future__ import annotations

import numpy as np

import pyfastnn as pf


def test_two_neurons_with_four_inputs(backend, dtype):
    """The essay's layer. Its weight rows belong to output neurons, so they are transposed here."""
    w = np.array([[-1.48, -2.49, 2.72, 3.46], [-1.81, 2.84, -0.438, -4.80]], dtype).T.copy()
    a = np.array([[0.978, 0.322, 0.315, 0.201]], dtype)
    b = np.array([0.884, -0.226], dtype)
    # The text prints five and three decimals.
    np.testing.assert_allclose(pf.dense_forward(a, w, b), [[0.18704, -2.18447]], rtol=0, atol=6e-6)
    np.testing.assert_allclose(pf.dense_forward(a, w, b, "sigmoid"), [[0.547, 0.101]], rtol=0, atol=6e-4)


def test_one_weight_learns(backend, dtype):
    """A sigmoid output at z = 0.5, target 1, cost (a - E)^2, incoming activation 0.8.

    The derivative is -0.142 and a step of 0.05 takes the weight from 0.15 to 0.1571. The essay
    prints 0.1271, an arithmetic slip: 0.15 + 0.05 * 0.142 = 0.1571.
    """
    z, target, incoming = np.array([[0.5]], dtype), np.ones((1, 1), dtype), np.array([[0.8]], dtype)
    a = pf.dense_forward(z, np.ones((1, 1), dtype), np.zeros(1, dtype), "sigmoid")
    cost, d = pf.output_delta(a, target, "mse", "sigmoid")
    np.testing.assert_allclose(cost, (1 / (1 + np.exp(-0.5)) - 1) ** 2, rtol=1e-6)
    w = np.array([[0.15]], dtype)
    dw, _, _ = pf.dense_backward(incoming, w, d)
    np.testing.assert_allclose(dw, [[-0.142]], rtol=0, atol=5e-4)
    backend.update("sgd", w.reshape(1), dw.reshape(1), [], [0.05])
    np.testing.assert_allclose(w, [[0.1571]], rtol=0, atol=5e-5)
    again = np.array([[0.15]], dtype)
    pf.dense_update(incoming, again, np.zeros(1, dtype), d, 0.05)
    np.testing.assert_allclose(again, w, rtol=2 * np.finfo(dtype).eps)


def forward_propagation(w1, b1, w2, b2, w3, b3, x0):
    """The lecture's three layers: phi, phi, softmax."""
    x1 = pf.dense_forward(x0, w1, b1, "sigmoid")
    x2 = pf.dense_forward(x1, w2, b2, "sigmoid")
    x3 = pf.dense_forward(x2, w3, b3, "softmax")
    return x1, x2, x3


def lecture_network(dtype):
    rng = np.random.default_rng(0)
    sizes = [(6, 5), (5, 4), (4, 3)]
    layers = [array for k, m in sizes for array in (rng.normal(size=(k, m)), rng.normal(size=m))]
    x0 = rng.normal(size=(7, 6))
    y = np.eye(3)[rng.integers(0, 3, 7)]
    return [array.astype(dtype) for array in layers], x0.astype(dtype), y.astype(dtype)


def test_three_layer_forward_propagation(backend, dtype):
    layers, x0, _ = lecture_network(dtype)

    def phi(z):
        return 1 / (1 + np.exp(-z))

    w1, b1, w2, b2, w3, b3 = (array.astype(np.float64) for array in layers)
    x1 = phi(x0.astype(np.float64).dot(w1) + b1)
    x2 = phi(x1.dot(w2) + b2)
    e = np.exp(x2.dot(w3) + b3)
    expected = x1, x2, e / e.sum(axis=1, keepdims=True)
    for got, exact in zip(forward_propagation(*layers, x0), expected, strict=True):
        # Three layers of sums of at most 6 products of numbers below 4, and slopes of at most 1/4.
        np.testing.assert_allclose(got, exact, rtol=0, atol=100 * np.finfo(dtype).eps)


def test_back_propagation_equations(backend):
    """delta^L, delta^l, dW and db of the lecture notes, against central differences in float64."""
    layers, x0, y = lecture_network(np.float64)
    w2, w3 = layers[2], layers[4]
    x1, x2, x3 = forward_propagation(*layers, x0)
    cost, d3 = pf.output_delta(x3, y, "cross_entropy", "softmax")
    d2 = pf.sigmoid_delta(d3, w3, x2)
    d1 = pf.sigmoid_delta(d2, w2, x1)
    gradients = [
        derivative
        for x, w, d in ((x0, layers[0], d1), (x1, w2, d2), (x2, w3, d3))
        for derivative in pf.dense_backward(x, w, d, need_dx=False)[:2]
    ]
    np.testing.assert_allclose(cost, -np.log(x3[y == 1]).mean(), rtol=1e-14)
    np.testing.assert_allclose(d3, (x3 - y) / len(y), rtol=0, atol=1e-16)

    def cost_now():
        return pf.output_delta(forward_propagation(*layers, x0)[2], y)[0]

    # h^2 times a third derivative of order 10, and rounding of the cost (about 1) over h.
    h = 1e-5
    bound = 10 * h * h + 100 * np.finfo(np.float64).eps / h
    for parameters, gradient in zip(layers, gradients, strict=True):
        flat, derivative = parameters.reshape(-1), gradient.reshape(-1)
        for i in range(flat.size):
            kept = flat[i]
            flat[i] = kept + h
            above = cost_now()
            flat[i] = kept - h
            below = cost_now()
            flat[i] = kept
            assert abs((above - below) / (2 * h) - derivative[i]) <= bound
