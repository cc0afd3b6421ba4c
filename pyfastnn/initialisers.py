"""The list of weight initialisations: what a layer starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from ._names import lookup
from ._typing import Array


@dataclass(frozen=True)
class Initialisation:
    """How the weights of a layer are drawn; biases are zero unless ``random_biases``.

    ``draw(rng, inputs, outputs)`` returns the weights (inputs, outputs) in float64, so that networks
    of either dtype start from the same numbers.
    """

    name: str
    formula: str
    source: str
    draw: Callable[[np.random.Generator, int, int], Array] = field(repr=False)
    random_biases: bool = False


def _glorot(rng: np.random.Generator, inputs: int, outputs: int) -> Array:
    limit = math.sqrt(6 / (inputs + outputs))
    return rng.uniform(-limit, limit, (inputs, outputs))


def _normal(variance: Callable[[int], float]) -> Callable[[np.random.Generator, int, int], Array]:
    return lambda rng, inputs, outputs: rng.normal(0, math.sqrt(variance(inputs)), (inputs, outputs))


_LIST = (
    Initialisation(
        "glorot",
        "uniform in +-sqrt(6 / (inputs + outputs))",
        "Glorot and Bengio, Understanding the difficulty of training deep feedforward networks (2010)",
        _glorot,
    ),
    Initialisation(
        "he",
        "normal with variance 2 / inputs",
        "He et al., Delving Deep into Rectifiers (2015)",
        _normal(lambda inputs: 2 / inputs),
    ),
    Initialisation(
        "lecun",
        "normal with variance 1 / inputs",
        "LeCun et al., Efficient BackProp (1998), section 4.6",
        _normal(lambda inputs: 1 / inputs),
    ),
    Initialisation(
        "normal",
        "weights and biases normal with variance 1",
        "Nielsen, Neural Networks and Deep Learning (2015), chapter 1",
        _normal(lambda inputs: 1),
        random_biases=True,
    ),
)

INITIALISATIONS: Mapping[str, Initialisation] = MappingProxyType({entry.name: entry for entry in _LIST})


def get(name: str) -> Initialisation:
    """The initialisation of that name; a ValueError lists the known ones."""
    return lookup(INITIALISATIONS, name, "init")
