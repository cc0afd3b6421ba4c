"""The list of losses: names, formulas and sources.

A loss is a pair of elementwise functions of the outputs a and the targets y, written with NumPy
ufuncs: ``value``, and ``gradient`` = d value / d a. The loss of a batch is their sum over the
outputs (or mean, where ``mean_over_outputs``), averaged over the samples with the sample weights
w_i: sum_i w_i l_i / sum_i w_i.

With its ``matched`` output activation the derivative with respect to z collapses to a - y, and is
computed as that: no division by a vanishing probability.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np

from ._names import lookup
from ._typing import Array
from .activations import Activation


@dataclass(frozen=True)
class Loss:
    """A loss function.

    Attributes
    ----------
    name, formula, source : str
    value : callable
        ``value(a, y) -> l``, elementwise.
    gradient : callable
        ``gradient(a, y) -> dl/da``, elementwise.
    matched : str or None
        The output activation with which dl/dz = a - y.
    outputs : tuple of str or None
        The output activations it is defined for; None: all.
    mean_over_outputs : bool
        Mean, not sum, over the outputs of a sample.
    targets : {"values", "classes"}
        "classes": integer labels (n,), or probabilities (n, m) such as one-hot rows.
        "values": floating-point targets (n, m).
    interval : tuple of float or None
        Where the targets must lie.
    accuracy : callable or None
        ``accuracy(a, y) -> hits`` per sample (0 to 1), for losses of classifiers.
    """

    name: str
    formula: str
    source: str
    value: Callable[[Array, Array], Array] = field(repr=False)
    gradient: Callable[[Array, Array], Array] = field(repr=False)
    matched: str | None = None
    outputs: tuple[str, ...] | None = None
    mean_over_outputs: bool = False
    targets: Literal["values", "classes"] = "values"
    interval: tuple[float, float] | None = None
    accuracy: Callable[[Array, Array], Array] | None = field(default=None, repr=False)


def _log(a: Array) -> Array:
    """log(a) with a bounded from below by the smallest normal number: a lost bet costs 87, not inf."""
    return np.log(np.maximum(a, np.finfo(a.dtype).tiny))


def _huber(a: Array, y: Array) -> Array:
    r = np.abs(a - y)
    return np.where(r <= 1, 0.5 * r * r, r - 0.5)


def _binary_cross_entropy(a: Array, y: Array) -> Array:
    return -(y * _log(a) + (1 - y) * _log(1 - a))


def _poisson(a: Array, y: Array) -> Array:
    return a - y + y * (_log(y) - _log(a))


def _poisson_gradient(a: Array, y: Array) -> Array:
    # An output that has underflowed must not make infinities: the slope behind it has vanished too.
    return 1 - y / np.maximum(a, np.sqrt(np.finfo(a.dtype).tiny))


def _class_hits(a: Array, y: Array) -> Array:
    return a.argmax(axis=1) == (y if y.ndim == 1 else y.argmax(axis=1))


def _binary_hits(a: Array, y: Array) -> Array:
    return ((a > 0.5) == (y > 0.5)).mean(axis=1)


_LIST = (
    Loss(
        "mse",
        "l = (a - y)^2, mean over outputs",
        "mean squared error",
        value=lambda a, y: np.square(a - y),
        gradient=lambda a, y: 2 * (a - y),
        mean_over_outputs=True,
    ),
    Loss(
        "quadratic",
        "l = (a - y)^2 / 2, sum over outputs",
        "Nielsen, Neural Networks and Deep Learning (2015), eq. 6",
        value=lambda a, y: 0.5 * np.square(a - y),
        gradient=lambda a, y: a - y,
        matched="identity",
    ),
    Loss(
        "cross_entropy",
        "l = -y log(a), sum over outputs; a from softmax",
        "Bishop, Pattern Recognition and Machine Learning (2006), eq. 5.24",
        value=lambda a, y: -y * _log(a),
        gradient=lambda a, y: -y / a,
        matched="softmax",
        outputs=("softmax",),
        targets="classes",
        interval=(0.0, 1.0),
        accuracy=_class_hits,
    ),
    Loss(
        "binary_cross_entropy",
        "l = -y log(a) - (1 - y) log(1 - a), sum over outputs; a from sigmoid",
        "Nielsen, Neural Networks and Deep Learning (2015), eq. 63",
        value=_binary_cross_entropy,
        gradient=lambda a, y: (a - y) / (a * (1 - a)),
        matched="sigmoid",
        outputs=("sigmoid",),
        interval=(0.0, 1.0),
        accuracy=_binary_hits,
    ),
    Loss(
        "huber",
        "l = r^2 / 2 where |r| <= 1, else |r| - 1/2, r = a - y, mean over outputs",
        "Huber, Robust Estimation of a Location Parameter (1964), delta = 1",
        value=_huber,
        gradient=lambda a, y: np.minimum(np.maximum(a - y, -1), 1),
        mean_over_outputs=True,
    ),
    Loss(
        "poisson",
        "l = a - y + y log(y / a), half the Poisson deviance, sum over outputs; a > 0 from exp or softplus",
        "McCullagh and Nelder, Generalized Linear Models (1989), section 2.3",
        value=_poisson,
        gradient=_poisson_gradient,
        matched="exp",
        outputs=("exp", "softplus"),
        interval=(0.0, np.inf),
    ),
)

LOSSES: Mapping[str, Loss] = MappingProxyType({entry.name: entry for entry in _LIST})


def get(name: str | Loss, argument: str = "loss") -> Loss:
    """The loss of that name; a ValueError lists the known ones."""
    return lookup(LOSSES, name, argument)


def check_pair(loss: Loss, activation: Activation) -> None:
    """Raise a ValueError where the activation cannot be the output's with that loss."""
    name = activation.name
    if activation.slope_from == "input":
        raise ValueError(
            f"output activation {name!r} is not supported: its slope is no function of the output"
        )
    if loss.outputs is not None and name not in loss.outputs:
        raise ValueError(
            f"loss {loss.name!r} needs the output activation {' or '.join(loss.outputs)}, got {name!r}"
        )


def default_for(activation: str) -> Loss:
    """The loss that is matched with an output activation; mse where none is, and for identity."""
    matched = (loss for loss in _LIST if loss.matched == activation and loss.outputs is not None)
    return next(matched, LOSSES["mse"])
