"""The functional API: the hot lines of a network that somebody else keeps.

Weights are (inputs, outputs), activations (batch, features), in C order, as in ``x.dot(w) + b``.
All arrays of a call have one dtype, float32 or float64; nothing is converted or copied. Arguments
are checked before anything is written.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from . import _checks, activations, losses, optimizers
from ._quick import quick
from ._typing import Array
from .activations import Activation
from .backends import get_backend
from .backends.plan import Backend
from .losses import Loss


def _adopted(backend: Backend, *arrays: Any) -> tuple[Any, ...]:
    """The arguments, those in the backend's own memory as it sees them."""
    return tuple(map(backend.adopt, arrays))


@quick
def dense_forward(
    x: Array,
    w: Array,
    b: Array,
    activation: str | Activation = "identity",
    out: Array | None = None,
    *,
    z: Array | None = None,
) -> Array:
    """A dense layer, f(x w + b).

    Parameters
    ----------
    x : (n, k) array, float32 or float64
        A batch of inputs, one sample a row.
    w : (k, m) array of the dtype of x
    b : (m,) array of the dtype of x
    activation : str
        A name of ``pyfastnn.activations.ACTIVATIONS``; formulas and sources are there.
    out : (n, m) array, optional
        Receives the result.
    z : (n, m) array, optional
        Receives x w + b, which the slopes of gelu and silu are computed from.

    Returns
    -------
    (n, m) array
        ``out`` where it was given.

    Raises
    ------
    TypeError
        For an argument that is no array, or of another dtype.
    ValueError
        For a wrong shape, layout or name, or an output that overlaps another argument.
    """
    f, backend, given = activations.get(activation), get_backend(), out
    x, w, b, out, z = _adopted(backend, x, w, b, out, z)
    empty = partial(backend.empty, like=(x, w, b))
    _checks.array("x", x, (None, None))
    _checks.array("w", w, (x.shape[1], None), x.dtype)
    _checks.array("b", b, (w.shape[1],), x.dtype)
    shape = x.shape[0], w.shape[1]
    if z is not None:
        _checks.output("z", z, shape, x.dtype, {"x": x, "w": w, "b": b})
    out = _checks.output("out", out, shape, x.dtype, {"x": x, "w": w, "b": b, "z": z}, empty)
    backend.dense_forward(x, w, b, f, z, out)
    return out if given is None else given


@quick
def activation_delta(
    d1: Array,
    w1: Array,
    a0: Array,
    activation: str | Activation,
    out: Array | None = None,
    *,
    z0: Array | None = None,
) -> Array:
    """The error one layer back, (d1 w1^T) f'.

    Equation BP2 of Nielsen, Neural Networks and Deep Learning (2015), chapter 2.

    Parameters
    ----------
    d1 : (n, m) array, float32 or float64
        Derivatives of the loss with respect to the pre-activations of the upper layer.
    w1 : (k, m) array of the dtype of d1
        Weights of the upper layer.
    a0 : (n, k) array of the dtype of d1
        Outputs of the lower layer.
    activation : str
        The lower layer's, elementwise (not softmax).
    out : (n, k) array, optional
        Receives the result.
    z0 : (n, k) array, optional
        Pre-activations of the lower layer: needed for gelu and silu, whose slopes are no function
        of their outputs (``dense_forward(..., z=z0)`` keeps them).

    Returns
    -------
    (n, k) array
        ``out`` where it was given.

    Raises
    ------
    TypeError
        For an argument that is no array, or of another dtype.
    ValueError
        For a wrong shape, layout or name, an output that overlaps another argument, or a missing z0.
    """
    f = activations.get(activation)
    if f.rowwise:
        raise ValueError(f"activation must be elementwise, got {f.name!r}, which serves as output only")
    backend, given = get_backend(), out
    d1, w1, a0, out, z0 = _adopted(backend, d1, w1, a0, out, z0)
    empty = partial(backend.empty, like=(d1, w1, a0))
    _checks.array("d1", d1, (None, None))
    _checks.array("w1", w1, (None, d1.shape[1]), d1.dtype)
    _checks.array("a0", a0, (d1.shape[0], w1.shape[0]), d1.dtype)
    if z0 is not None:
        _checks.array("z0", z0, a0.shape, d1.dtype)
    s = a0
    if f.slope_from == "input":
        if z0 is None:
            raise ValueError(
                f"activation {f.name!r} needs z0, the pre-activations: its slope is no function of a0"
            )
        s = z0
    out = _checks.output("out", out, a0.shape, d1.dtype, {"d1": d1, "w1": w1, "a0": a0, "z0": z0}, empty)
    backend.activation_delta(d1, w1, s, f, out)
    return out if given is None else given


@quick
def sigmoid_delta(d1: Array, w1: Array, a0: Array, out: Array | None = None) -> Array:
    """The error one layer back through a sigmoid, (d1 w1^T) a0 (1 - a0).

    ``activation_delta`` with ``activation="sigmoid"``; see there.
    """
    return activation_delta(d1, w1, a0, "sigmoid", out)


@quick
def dense_backward(
    x: Array, w: Array, d: Array, *, need_dx: bool = True
) -> tuple[Array, Array, Array | None]:
    """The derivatives of a dense layer: x^T d, the column sums of d, and d w^T.

    Equations BP3 and BP4 of Nielsen, Neural Networks and Deep Learning (2015), chapter 2, summed over
    the batch.

    Parameters
    ----------
    x : (n, k) array, float32 or float64
        Inputs of the layer.
    w : (k, m) array of the dtype of x
    d : (n, m) array of the dtype of x
        Derivatives of the loss with respect to the pre-activations.
    need_dx : bool
        False saves the third product.

    Returns
    -------
    dw : (k, m) array
    db : (m,) array
    dx : (n, k) array or None

    Raises
    ------
    TypeError
        For an argument that is no array, or of another dtype.
    ValueError
        For a wrong shape or layout.
    """
    backend = get_backend()
    x, w, d = _adopted(backend, x, w, d)
    empty = partial(backend.empty, like=(x, w, d))
    _checks.array("x", x, (None, None))
    _checks.array("w", w, (x.shape[1], None), x.dtype)
    _checks.array("d", d, (x.shape[0], w.shape[1]), x.dtype)
    dw, db = empty(w.shape, x.dtype), empty(w.shape[1:], x.dtype)
    dx = empty(x.shape, x.dtype) if need_dx else None
    backend.dense_backward(x, w, d, dw, db, dx)
    return dw, db, dx


@quick
def dense_update(x: Array, w: Array, b: Array, d: Array, learning_rate: float) -> None:
    """A step of gradient descent for a dense layer, in place: w -= learning_rate x^T d, and b likewise.

    What ``dense_backward`` would give as dw and db is taken from w and b as it is computed: cheaper than a
    second pass for batches of up to some hundred, most of all where several threads share the work.

    Parameters
    ----------
    x : (n, k) array, float32 or float64
        Inputs of the layer.
    w : (k, m) array of the dtype of x
        Changed.
    b : (m,) array of the dtype of x
        Changed: b -= learning_rate times the column sums of d.
    d : (n, m) array of the dtype of x
        Derivatives of the loss with respect to the pre-activations.
    learning_rate : float
        Finite, not negative.

    Raises
    ------
    TypeError
        For an argument that is no array, or of another dtype, or a learning rate that is no number.
    ValueError
        For a wrong shape or layout, a learning rate out of range, or an array to change that is read-only or
        overlaps another argument.
    """
    rate = float(optimizers.SGD(learning_rate).learning_rate)
    backend = get_backend()
    x, w, b, d = _adopted(backend, x, w, b, d)
    _checks.array("x", x, (None, None))
    _checks.array("w", w, (x.shape[1], None), x.dtype)
    _checks.array("b", b, (w.shape[1],), x.dtype)
    _checks.array("d", d, (x.shape[0], w.shape[1]), x.dtype)
    _checks.output("w", w, w.shape, x.dtype, {"x": x, "d": d})
    _checks.output("b", b, b.shape, x.dtype, {"x": x, "w": w, "d": d})
    backend.dense_update(x, w, b, d, rate)


@quick
def output_delta(
    a: Array,
    y: Array,
    loss: str | Loss = "cross_entropy",
    activation: str | Activation = "softmax",
    out: Array | None = None,
    *,
    sample_weight: Array | None = None,
) -> tuple[float, Array]:
    """The loss of a batch and its derivative with respect to the output layer's pre-activations.

    Equation BP1 of Nielsen, Neural Networks and Deep Learning (2015), chapter 2, divided by the
    number of samples (or the sum of their weights).

    Parameters
    ----------
    a : (n, m) array, float32 or float64, n >= 1
        Outputs of the network.
    y : array
        Targets: (n, m) of the dtype of a, or for cross_entropy (n,) integer labels.
    loss : str
        A name of ``pyfastnn.losses.LOSSES``; formulas and sources are there.
    activation : str
        The output layer's.
    out : (n, m) array, optional
        Receives the derivative.
    sample_weight : (n,) array of the dtype of a, optional
        Not negative, not all zero.

    Returns
    -------
    loss : float
    d : (n, m) array
        ``out`` where it was given.

    Raises
    ------
    TypeError
        For an argument that is no array, or of another dtype.
    ValueError
        For a wrong shape, layout or name, an empty batch, labels or targets out of range, a loss
        that is not defined for the activation, or an output that overlaps another argument.
    """
    checked_loss, f = losses.get(loss), activations.get(activation)
    losses.check_pair(checked_loss, f)
    backend, given = get_backend(), out
    a, y, sample_weight, out = _adopted(backend, a, y, sample_weight, out)
    empty = partial(backend.empty, like=(a, y))
    _checks.array("a", a, (None, None))
    y = _checks.targets("y", y, checked_loss, a.shape, a.dtype)
    sample_weight = _checks.weights("sample_weight", sample_weight, a.shape[0], a.dtype)
    if not a.shape[0]:
        raise ValueError("a must have at least one row: the loss is a mean over samples, got none")
    others = {"a": a, "y": y, "sample_weight": sample_weight}
    out = _checks.output("out", out, a.shape, a.dtype, others, empty)
    loss_now = backend.output_delta(a, y, sample_weight, checked_loss, f, out)
    return loss_now, out if given is None else given
