"""Small problems for the CUDA backend, and networks fitted to them."""

from __future__ import annotations

import numpy as np
import tolerance

import pyfastnn as pf
from pyfastnn.backends.cuda.backend import CudaBackend
from pyfastnn.backends.cuda.plan import CudaPlan


def problem(loss: str, samples: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(samples, 4)).astype(dtype), rng.uniform(0.1, 1, (samples, 3))
    if pf.losses.LOSSES[loss].targets == "classes":
        y /= y.sum(axis=1, keepdims=True)
    return x, y.astype(dtype)


def trained(
    backend: CudaBackend, fused: bool | None, network: tuple, data: tuple, **settings
) -> tuple[pf.MLP, pf.History]:
    """A network fitted on the device (fused or not; None: on the reference)."""
    hidden, output, loss, dtype = network
    net = pf.MLP([4, 6, 3], hidden, output, loss=loss, dtype=dtype, seed=1)
    with pf.use_backend("numpy" if fused is None else backend):
        if fused is not None:
            net._latest_plan = CudaPlan(backend, net._spec, fused=fused)
        history = net.fit(*data, progress=False, **settings)
    return net, history


def agree(net: pf.MLP, history: pf.History, exact: pf.MLP, expected: pf.History, steps: int) -> None:
    # Sums of at most 11 terms in three layers, functions of a few ulps, at every step; slopes and rates
    # here are below one, so errors add up. Adam divides by moments that err as the gradients do.
    unit = np.finfo(net.dtype).eps
    bound = steps * unit * (4 * 11 + 4 * tolerance.FUNCTION_ULPS) * max(1, abs(exact.params).max())
    assert abs(net.params - exact.params).max() <= bound
    np.testing.assert_allclose(history.loss, expected.loss, rtol=0, atol=bound * 10)
