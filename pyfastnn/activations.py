"""The list of activation functions: names, formulas and sources.

An activation is a pair of elementwise functions written with NumPy ufuncs, so that the same text
serves arrays (the reference) and, compiled, scalars. ``value`` maps the pre-activation z to the
output a; ``delta`` multiplies an incoming derivative by the slope, and masks by selection, never
by multiplying, so that an infinite derivative behind a closed gate stays out.

Most slopes are functions of the output a alone, which is all a network then has to keep. gelu and
silu are not monotonic: their ``slope_from`` is ``"input"`` and the slope is computed from z.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np

from ._names import lookup
from ._typing import Array

_INVERSE_SQRT_2PI = 0.3989422804014327
_LEAK = 0.01


@dataclass(frozen=True)
class Activation:
    """An activation function.

    Attributes
    ----------
    name : str
    formula : str
        a = f(z) and its slope.
    source : str
        Where the function comes from.
    value : callable
        ``value(z) -> a``, elementwise (row by row where ``rowwise``).
    delta : callable
        ``delta(d, s) -> d * f'``, elementwise, where s is the output a or the pre-activation z
        as ``slope_from`` says.
    slope_from : {"output", "input"}
    rowwise : bool
        True where an output depends on its whole row; such an activation serves as output only.
    initialisation : str
        The weight initialisation that suits a layer with this activation.
    """

    name: str
    formula: str
    source: str
    value: Callable[[Array], Array] = field(repr=False)
    delta: Callable[[Array, Array], Array] = field(repr=False)
    slope_from: Literal["output", "input"] = "output"
    rowwise: bool = False
    initialisation: str = "glorot"


def _sigmoid(z: Array) -> Array:
    # Both exponents are <= 0: no overflow, and full relative accuracy in the left tail.
    return np.exp(np.minimum(z, 0)) / (1 + np.exp(-np.abs(z)))


def _softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=1, keepdims=True)


# h of P(Z > z) = exp(-z^2/2) h(t) / (1 + z), t = (z - 4) / (z + 4), from tools/fit_vmath.py:
# a Chebyshev fit in the variable of Shepherd and Laframboise, Math. Comp. 36 (1981) 249-253.
_TAIL = (
    0.4720532065098446666,
    -0.09670347732652537852,
    0.01399963472443007881,
    0.02860036405350589264,
    -0.03219783742834326119,
    0.01793609748103932384,
    -0.005002378585404055077,
    -0.0002856231167159992294,
    0.0006948970401931862198,
    -0.00009443011548018516773,
    -0.00008785274947955091298,
    0.00002124945522796939981,
    0.00001362502519397404663,
    -3.430698277166074369e-6,
    -2.607839079804581322e-6,
    4.024274810143224115e-7,
    5.430039920605985271e-7,
    2.351336257799600715e-9,
    -1.010464456953636079e-7,
    -1.853854208356330895e-8,
    1.140086786578558317e-8,
    4.237854222789378533e-9,
    1.551343890591837139e-10,
)


def normal_cdf(z: Array) -> Array:
    """P(Z <= z) of the standard normal distribution.

    To a few units in the last place, and z^2 / 2 more in the left tail, where that is what the
    rounding of the argument costs.
    """
    # 40 standard deviations out, even float64 has underflowed; the bound keeps t finite.
    u = np.minimum(np.abs(z), 40)
    t = (u - 4) / (u + 4)
    h = t * 0 + _TAIL[-1]
    for coefficient in _TAIL[-2::-1]:
        h = h * t + coefficient
    upper = np.exp(-0.5 * (u * u)) * h / (1 + u)
    return np.where(z > 0, 1 - upper, upper)


def _gelu_delta(d: Array, z: Array) -> Array:
    density = _INVERSE_SQRT_2PI * np.exp(-0.5 * np.minimum(z * z, 1600))
    return d * (normal_cdf(z) + np.maximum(np.minimum(z, 40), -40) * density)


def _silu_delta(d: Array, z: Array) -> Array:
    s = _sigmoid(z)
    return d * (s + np.maximum(np.minimum(z, 800), -800) * s * (1 - s))


_LIST = (
    Activation(
        "identity",
        "a = z; slope 1",
        "the linear unit",
        value=lambda z: +z,
        delta=lambda d, a: +d,
    ),
    Activation(
        "sigmoid",
        "a = 1 / (1 + exp(-z)); slope a (1 - a)",
        "Nielsen, Neural Networks and Deep Learning (2015), eq. 3",
        value=_sigmoid,
        delta=lambda d, a: d * (a * (1 - a)),
    ),
    Activation(
        "tanh",
        "a = tanh(z); slope 1 - a^2",
        "LeCun et al., Efficient BackProp (1998), section 4.4",
        value=lambda z: np.tanh(z),
        delta=lambda d, a: d * (1 - a * a),
    ),
    Activation(
        "relu",
        "a = max(z, 0); slope 1 where a > 0, else 0",
        "Nair and Hinton, Rectified Linear Units Improve Restricted Boltzmann Machines (2010)",
        value=lambda z: np.maximum(z, 0),
        delta=lambda d, a: np.where(a > 0, d, 0),
        initialisation="he",
    ),
    Activation(
        "leaky_relu",
        "a = max(z, 0.01 z); slope 1 where a > 0, else 0.01",
        "Maas, Hannun and Ng, Rectifier Nonlinearities Improve Neural Network Acoustic Models (2013)",
        value=lambda z: np.maximum(z, _LEAK * z),
        delta=lambda d, a: np.where(a > 0, d, _LEAK * d),
        initialisation="he",
    ),
    Activation(
        "elu",
        "a = z where z > 0, else exp(z) - 1; slope 1 where a > 0, else 1 + a",
        "Clevert, Unterthiner and Hochreiter, Exponential Linear Units (2015), alpha = 1",
        value=lambda z: np.maximum(z, 0) + np.expm1(np.minimum(z, 0)),
        delta=lambda d, a: np.where(a > 0, d, d * (1 + a)),
        initialisation="he",
    ),
    Activation(
        "softplus",
        "a = log(1 + exp(z)); slope 1 - exp(-a)",
        "Dugas et al., Incorporating Second-Order Functional Knowledge (2000)",
        value=lambda z: np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))),
        delta=lambda d, a: -d * np.expm1(-a),
        initialisation="he",
    ),
    Activation(
        "gelu",
        "a = z P(Z <= z), Z standard normal; slope P(Z <= z) + z exp(-z^2/2) / sqrt(2 pi)",
        "Hendrycks and Gimpel, Gaussian Error Linear Units (2016), the exact form",
        value=lambda z: np.maximum(z, -40) * normal_cdf(z),
        delta=_gelu_delta,
        slope_from="input",
        initialisation="he",
    ),
    Activation(
        "silu",
        "a = z s, s = 1 / (1 + exp(-z)); slope s + z s (1 - s)",
        "Elfwing, Uchibe and Doya, Sigmoid-Weighted Linear Units (2018)",
        value=lambda z: np.maximum(z, -800) * _sigmoid(z),
        delta=_silu_delta,
        slope_from="input",
        initialisation="he",
    ),
    Activation(
        "exp",
        "a = exp(z); slope a",
        "the inverse of the log link of Poisson regression",
        value=lambda z: np.exp(z),
        delta=lambda d, a: d * a,
    ),
    Activation(
        "softmax",
        "a_j = exp(z_j) / sum_k exp(z_k); d -> a (d - sum_k d_k a_k)",
        "Bridle, Probabilistic Interpretation of Feedforward Classification Network Outputs (1990)",
        value=_softmax,
        delta=lambda d, a: a * (d - (d * a).sum(axis=1, keepdims=True)),
        rowwise=True,
    ),
)

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType({entry.name: entry for entry in _LIST})
ALIASES: Mapping[str, str] = MappingProxyType({"logistic": "sigmoid"})


def get(name: str | Activation, argument: str = "activation") -> Activation:
    """The activation of that name (or alias); a ValueError lists the known ones."""
    return lookup(ACTIVATIONS, name, argument, ALIASES)
