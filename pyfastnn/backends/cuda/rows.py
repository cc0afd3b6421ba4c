"""Kernels with a block for each sample, for what needs all outputs of one: softmax, losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from ...activations import Activation
from ...losses import Loss
from . import scalars, shim
from .shim import Kernel, cuda

THREADS = 4 if shim.SIMULATED else 128  # a power of two


@cache
def _folds(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """f(number of each thread, buffer) -> the sum, and the maximum, of the block."""
    maximum = scalars.functions()["maximum"]
    threads = THREADS

    def add(number: Any, buffer: Any) -> Any:
        me, half = cuda.threadIdx.x, threads // 2
        cuda.syncthreads()  # everybody has read the last result
        buffer[me] = number
        cuda.syncthreads()
        while half > 0:
            if me < half:
                buffer[me] += buffer[me + half]
            cuda.syncthreads()
            half //= 2
        return buffer[0]

    def largest(number: Any, buffer: Any) -> Any:
        me, half = cuda.threadIdx.x, threads // 2
        cuda.syncthreads()
        buffer[me] = number
        cuda.syncthreads()
        while half > 0:
            if me < half:
                buffer[me] = maximum(buffer[me], buffer[me + half])
            cuda.syncthreads()
            half //= 2
        return buffer[0]

    return shim.device(add), shim.device(largest)


@cache
def _softmax(dtype: np.dtype[Any]) -> Kernel:
    """Kernel(a, columns): every row of a becomes its softmax. A block a row."""
    add, largest = _folds(dtype)
    maximum, exp = (scalars.functions()[name] for name in ("maximum", "exp"))
    real, zero, lowest, threads = shim.element(dtype), dtype.type(0), dtype.type(-np.inf), THREADS

    def kernel(a: Any, columns: int) -> None:
        buffer = cuda.shared.array(threads, real)
        me, start = cuda.threadIdx.x, cuda.blockIdx.x * columns
        top = lowest
        for j in range(me, columns, threads):
            top = maximum(top, a[start + j])
        top = largest(top, buffer)
        total = zero
        for j in range(me, columns, threads):
            e = exp(a[start + j] - top)
            a[start + j] = e
            total += e
        total = add(total, buffer)
        for j in range(me, columns, threads):
            a[start + j] /= total

    return Kernel(kernel, "R i", dtype, threads)


# Activations that need a whole row, by name: the kernel that makes it of the sums.
# Their delta is softmax's; another one would bring its own.
ROWWISE: Mapping[str, Callable[[np.dtype[Any]], Kernel]] = {"softmax": _softmax}


@cache
def output_delta(
    loss: Loss, activation: Activation, labels: bool, gathered: bool, dtype: np.dtype[Any]
) -> Kernel:
    """Kernel(order, base, a, y, y_labels, factors, d, losses, step, batch, columns).

    Of every sample, in a block of its own: losses = the sum of l over its outputs, and d = dl/dz times
    its factor. In a batch of the epoch's order, targets are those of row order[q], factor and loss
    those of q = (base[0] + step) batch + i.
    """
    add, _ = _folds(dtype)
    value, gradient = scalars.loss_value(loss, dtype), scalars.loss_gradient(loss, dtype)
    matched, rowwise = loss.matched == activation.name, activation.rowwise
    delta = scalars.first() if rowwise else scalars.delta(activation, dtype)
    real, zero, one, threads = shim.element(dtype), dtype.type(0), dtype.type(1), THREADS

    def target(y: Any, y_labels: Any, sample: int, j: int, columns: int) -> Any:
        if labels:
            return one if y_labels[sample] == j else zero
        return y[sample * columns + j]

    target = shim.device(target)

    def kernel(
        order: Any,
        base: Any,
        a: Any,
        y: Any,
        y_labels: Any,
        factors: Any,
        d: Any,
        losses: Any,
        step: int,
        batch: int,
        columns: int,
    ) -> None:
        buffer = cuda.shared.array(threads, real)
        me, start = cuda.threadIdx.x, cuda.blockIdx.x * columns
        place = sample = cuda.blockIdx.x
        if gathered:
            place = (base[0] + step) * batch + cuda.blockIdx.x
            sample = order[place]
        total, mixed = zero, zero
        for j in range(me, columns, threads):
            a_j, y_j = a[start + j], target(y, y_labels, sample, j, columns)
            total += value(a_j, y_j)
            if rowwise and not matched:
                mixed += gradient(a_j, y_j) * a_j
        total = add(total, buffer)
        if me == 0:
            losses[place] = total
        if rowwise and not matched:
            mixed = add(mixed, buffer)
        for j in range(me, columns, threads):
            a_j, y_j = a[start + j], target(y, y_labels, sample, j, columns)
            if matched:
                slope = a_j - y_j
            elif rowwise:
                slope = a_j * (gradient(a_j, y_j) - mixed)
            else:
                slope = delta(gradient(a_j, y_j), a_j)
            d[start + j] = slope * factors[place]

    return Kernel(kernel, "II RR I RRR iii", dtype, threads)
