"""The cases, and what each of them costs: arithmetic operations, and bytes that must move.

Training workloads stand in ``pyfastnn.bench``, which users have installed; the rest stands here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product, starmap

from pyfastnn.bench import WORKLOADS, Adam, Workload

FLOAT32 = 4  # bytes

# (batch, inputs, outputs)
SHAPES = (
    (1, 64, 64),
    (1, 784, 128),
    (10, 784, 16),
    (10, 16, 16),
    (10, 784, 30),
    (64, 784, 128),
    (64, 128, 10),
    (96, 4, 32),
    (3, 784, 500),
    (32, 1024, 1024),
    (512, 200, 1),
    (256, 512, 512),
    (1024, 1024, 1024),
    (10_000, 32, 16),
)
# Of the sweep, all combinations that are not too large.
_ROWS, _INPUTS, _OUTPUTS = (1, 3, 10, 32, 100, 512, 3000), (3, 16, 50, 200, 784, 2000), (1, 4, 30, 128, 500)
GRID = tuple(shape for shape in product(_ROWS, _INPUTS, _OUTPUTS) if math.prod(shape) < 1e9)
_NETWORKS = (
    (2, 3, 1),
    (8, 16, 1),
    (20, 50, 1000),
    (784, 10),
    (3000, 32, 2),
    (8, 4096, 1),
    (16, 64, 64, 1),
    (64, 256, 256, 8),
    (100, 1000, 100),
    (784, 512, 512, 10),
    (1024, 1024, 1024),
    (256, 256, 256, 256, 10),
    (32,) * 9,
)
SWEPT_BATCHES = (1, 8, 32, 256)
KERNELS = ("dense_forward", "sigmoid_delta", "dense_backward")
DTYPES = ("float32", "float64")

INFERENCE = tuple(WORKLOADS[name] for name in ("control", "lecture"))
BATCHES = (1, 32, 1024, 65_536)
PERCENTILES = (50, 90, 99)  # of the latency at batch 1
QUIET = 10  # percentile of the calls of a round that neighbours of the machine have hardly disturbed


def name_of(sizes: Sequence[int], batch: int) -> str:
    """Of a network of the sweep."""
    return f"{'-'.join(map(str, sizes))} at {batch}"


def _swept(sizes: tuple[int, ...], batch: int) -> Workload:
    """Few steps where they are long; of small networks so many that a fit's overhead is small beside them."""
    operations = 6 * batch * sum(k * m for k, m in pairwise(sizes))
    steps = min(max(int(1e8 / operations), 20), 500)
    kind = ("relu", "softmax", "cross_entropy") if sizes[-1] == 10 else ("tanh", "identity", "mse")
    return Workload(name_of(sizes, batch), sizes, *kind, Adam(1e-3), batch, batch * steps)


NETWORKS = {each.name: each for each in starmap(_swept, product(_NETWORKS, SWEPT_BATCHES))}


@dataclass(frozen=True)
class Traffic:
    """Bytes moved, and the size of the memory that they come from again and again."""

    moved: float
    within: float


@dataclass(frozen=True)
class Cost:
    """The least that a case needs: operations (a multiply-add is two) and traffic."""

    operations: float
    traffic: tuple[Traffic, ...]

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / sum(each.moved for each in self.traffic)


def kernel_cost(kernel: str, shape: tuple[int, int, int], item: int) -> Cost:
    """Every argument read once and every result written once; the arrays stay where they fit."""
    n, k, m = shape
    products, numbers = {
        "dense_forward": (1, n * k + k * m + m + n * m),
        "sigmoid_delta": (1, n * m + k * m + n * k + n * k),
        "dense_backward": (2, n * k + k * m + n * m + k * m + m + n * k),
    }[kernel]
    size = item * numbers
    return Cost(2 * products * n * k * m, (Traffic(size, size),))


def _weights(workload: Workload) -> list[int]:
    return [k * m for k, m in zip(workload.sizes[:-1], workload.sizes[1:], strict=True)]


def _parameters(workload: Workload) -> int:
    return sum(_weights(workload)) + sum(workload.sizes[1:])


def step_cost(workload: Workload) -> Cost:
    """A step of training.

    Three products a layer, but two in the first, whose inputs need no derivative. Each sample is read once,
    from all the data; each parameter and each moment of the optimizer is read once and written once.
    """
    weights = _weights(workload)
    products = 3 * sum(weights) - weights[0]
    sample = FLOAT32 * (workload.sizes[0] + workload.sizes[-1])
    state = FLOAT32 * _parameters(workload) * (1 + workload.optimizer.slots)
    data = Traffic(workload.batch * sample, workload.rows * sample)
    return Cost(2 * workload.batch * products, (data, Traffic(2 * state, state)))


def inference_cost(workload: Workload, batch: int) -> Cost:
    """Each parameter and each input read once, each output written once."""
    data = FLOAT32 * batch * (workload.sizes[0] + workload.sizes[-1])
    parameters = FLOAT32 * _parameters(workload)
    return Cost(2 * batch * sum(_weights(workload)), (Traffic(data, data), Traffic(parameters, parameters)))
