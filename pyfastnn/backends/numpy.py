"""The reference: every kernel in plain NumPy. It is the specification of all other backends.

Floating-point events pass silently, as in compiled code: NaN and infinity show in the results.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .._typing import Array
from ..activations import Activation
from ..losses import Loss
from ..optimizers import RULES
from .plan import Backend, batch_scale

_silent = np.errstate(all="ignore")


class NumpyBackend(Backend):
    """The kernels in NumPy; threads are those of NumPy's own BLAS."""

    name = "numpy"

    @_silent
    def dense_forward(
        self, x: Array, w: Array, b: Array, activation: Activation, z: Array | None, a: Array
    ) -> None:
        sums = x @ w + b
        if z is not None:
            z[...] = sums
        a[...] = activation.value(sums)

    @_silent
    def activation_delta(self, d: Array, w: Array, s: Array, activation: Activation, out: Array) -> None:
        out[...] = activation.delta(d @ w.T, s)

    @_silent
    def dense_backward(self, x: Array, w: Array, d: Array, dw: Array, db: Array, dx: Array | None) -> None:
        np.matmul(x.T, d, out=dw)
        np.sum(d, axis=0, out=db)
        if dx is not None:
            np.matmul(d, w.T, out=dx)

    @_silent
    def output_delta(
        self,
        a: Array,
        y: Array,
        weight: Array | None,
        loss: Loss,
        activation: Activation,
        out: Array | None,
    ) -> float:
        scale = batch_scale(loss, a.shape, weight)
        factors = np.full(len(a), scale) if weight is None else scale * weight.astype(np.float64)
        targets = y if y.ndim == 2 else one_hot(y, a)
        if out is not None:
            if activation.name == loss.matched:
                delta = a - targets
            else:
                delta = activation.delta(loss.gradient(a, targets), a)
            out[...] = delta * factors.astype(a.dtype)[:, np.newaxis]
        return float(factors @ loss.value(a, targets).sum(axis=1, dtype=np.float64))

    @_silent
    def update(
        self, rule: str, params: Array, gradient: Array, slots: Sequence[Array], numbers: Sequence[float]
    ) -> None:
        RULES[rule](params, gradient, *slots, *numbers)


def one_hot(labels: Array, like: Array) -> Array:
    """Rows with a one where the label says, of the shape and dtype of ``like``."""
    rows = np.zeros_like(like)
    rows[np.arange(len(labels)), labels] = 1
    return rows


def load() -> NumpyBackend:
    return NumpyBackend()
