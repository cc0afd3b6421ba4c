"""Derived bounds on the rounding errors of the kernels, in terms of unit roundoff u = eps / 2.

A sum of k products in any order, fused or not, errs by at most (k + 1) u sum |x_i w_i| up to terms
of order u^2 (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1); starting
from a bias adds one term. The elementary functions of all backends are good to a few units in the
last place; FUNCTION_ULPS is what the worst chain of them (gelu's slope) may reach. Results of the
vector functions below about 1.5 times the smallest normal number are flushed to zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import pyfastnn as pf

Array = NDArray[np.float64]

FUNCTION_ULPS = 16


def unit(dtype: np.dtype) -> float:
    return float(np.finfo(dtype).eps) / 2


def floor(dtype: np.dtype) -> float:
    return 2 * float(np.finfo(dtype).tiny)


def product(x: Array, w: Array, dtype: np.dtype, start: Array | float = 0) -> Array:
    """Bound on the error of start + x w, elementwise; all arguments in float64."""
    depth = x.shape[1]
    return 1.01 * (depth + 2) * unit(dtype) * (abs(x) @ abs(w) + abs(start)) + floor(dtype)


def value(activation: str, z: Array, z_error: Array, dtype: np.dtype) -> Array:
    """Bound on the error of f(z) where z itself errs by z_error."""
    f = pf.activations.ACTIVATIONS[activation]
    exact = f.value(z)
    if f.rowwise:
        # d a_i = a_i (dz_i - sum_k a_k dz_k): at most twice the largest dz of the row.
        spread = 2 * exact * z_error.max(axis=1, keepdims=True, initial=0)
        # Sums of m terms and exponentials of differences that err by u |z|.
        reach = abs(z).max(axis=1, keepdims=True, initial=0) + z.shape[1] + FUNCTION_ULPS
        return 1.01 * (spread + 2 * unit(dtype) * reach * exact) + floor(dtype)
    # The steepest slope near z bounds what z_error does; functions bend little over a rounding error.
    near = np.stack([z - z_error, z, z + z_error])
    slopes = abs(slope(activation, near)).max(axis=0)
    relative = FUNCTION_ULPS * 2 * unit(dtype) * (abs(exact) + conditioning(activation, z))
    return 1.01 * (slopes * z_error + relative) + floor(dtype)


def slope(activation: str, z: Array) -> Array:
    f = pf.activations.ACTIVATIONS[activation]
    return f.delta(np.ones_like(z), f.value(z) if f.slope_from == "output" else z)


def conditioning(activation: str, z: Array) -> Array:
    """|z f'(z)|: what one rounding error inside f, relative to z, does to f."""
    return abs(z * slope(activation, z))
