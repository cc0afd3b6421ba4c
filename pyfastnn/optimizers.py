"""The list of optimizers: hyperparameters, update rules, and what one step computes from them.

An optimizer is an immutable value. What it remembers between steps (velocity, moments) is an
:class:`OptimizerState`, which belongs to the network. Its ``rule`` names the elementwise update, and
``numbers`` are the numbers that the rule takes at a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from types import MappingProxyType
from typing import ClassVar, Protocol

import numpy as np

from ._typing import Array


def _sgd(w: Array, g: Array, rate: float) -> None:
    w -= rate * g


def _momentum(w: Array, g: Array, v: Array, rate: float, momentum: float) -> None:
    v[...] = momentum * v + g
    w -= rate * v


def _nesterov(w: Array, g: Array, v: Array, rate: float, momentum: float) -> None:
    v[...] = momentum * v + g
    w -= rate * (momentum * v + g)


def _adam(
    w: Array, g: Array, m: Array, v: Array, rate: float, epsilon: float, keep1: float, keep2: float
) -> None:
    m += keep1 * (g - m)
    v += keep2 * (g * g - v)
    w -= rate * m / (np.sqrt(v) + epsilon)


RULES: Mapping[str, Callable[..., None]] = MappingProxyType(
    {"sgd": _sgd, "momentum": _momentum, "nesterov": _nesterov, "adam": _adam}
)
"""Update rules by name: rule(w, g, *slots, *numbers), elementwise and in place."""


class Optimizer(Protocol):
    """What the training loop asks of an optimizer."""

    @property
    def rule(self) -> str:
        """A name of ``RULES``."""

    @property
    def slots(self) -> int:
        """How many arrays of the size of the parameters the rule remembers."""

    def numbers(self, first: int, count: int) -> Array:
        """The numbers of steps first, first + 1, ... (counted from 1): a (count, ...) array, float64.

        Those of equal optimizers are equal.
        """


class OptimizerState:
    """What an optimizer remembers: steps taken, and one flat array per slot."""

    _ahead = 64  # steps

    def __init__(self, optimizer: Optimizer, slots: tuple[Array, ...], step: int = 0) -> None:
        self.optimizer, self.slots, self.step = optimizer, slots, step
        self._first, self._numbers = 0, np.empty((0, 0))

    def numbers(self, count: int) -> Array:
        """The optimizer's numbers of the next steps, (count, ...)."""
        if count > self._ahead:
            return self.optimizer.numbers(self.step + 1, count)
        start = self.step + 1 - self._first
        if not 0 <= start <= len(self._numbers) - count:
            # After the first call some are computed ahead: NumPy's overhead is longer than the step of a
            # small network.
            more = self._ahead if self._first else count
            self._first, self._numbers = self.step + 1, self.optimizer.numbers(self.step + 1, more)
            start = 0
        return self._numbers[start : start + count]


def _check(name: str, value: float, low: float, high: float) -> None:
    """Raise unless low <= value < high."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not low <= number < high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}), got {value!r}")


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, with momentum and Nesterov's form of it.

    v = momentum v + g; w -= learning_rate v, or with ``nesterov`` w -= learning_rate (momentum v + g).
    The form of Sutskever et al., On the importance of initialization and momentum in deep learning
    (2013), as PyTorch writes it: the learning rate multiplies the velocity.

    Parameters
    ----------
    learning_rate : float
        Not negative.
    momentum : float
        In [0, 1).
    nesterov : bool

    Raises
    ------
    ValueError
        For a value outside its range, or ``nesterov`` without momentum.
    """

    learning_rate: float = 0.01
    momentum: float = field(default=0.0, kw_only=True)
    nesterov: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check("learning_rate", self.learning_rate, 0, math.inf)
        _check("momentum", self.momentum, 0, 1)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum > 0, got momentum=0.0")

    @property
    def rule(self) -> str:
        if not self.momentum:
            return "sgd"
        return "nesterov" if self.nesterov else "momentum"

    @property
    def slots(self) -> int:
        return 1 if self.momentum else 0

    def numbers(self, first: int, count: int) -> Array:
        numbers = np.empty((count, 1 + self.slots))
        numbers[:] = [self.learning_rate, self.momentum][: 1 + self.slots]
        return numbers


def _correction(beta: float, steps: Array) -> Array:
    """1 - beta**steps, where late steps take no longer: a power that underflows takes 25 times as long."""
    # From 2**-54 down, no power changes 1.
    last = math.ceil(-54 / math.log2(beta)) if beta else 1
    return 1 - beta ** np.minimum(steps, last)


@dataclass(frozen=True)
class Adam:
    """Adam: steps scaled by running moments of the gradient.

    Kingma and Ba, Adam: A Method for Stochastic Optimization (2015), algorithm 1, with the two bias
    corrections folded into the rate and epsilon.

    Parameters
    ----------
    learning_rate : float
        Not negative.
    beta1, beta2 : float
        Decay of the first and second moment, in [0, 1).
    epsilon : float
        Not negative. With 0, a gradient whose square underflows gives infinite steps.

    Raises
    ------
    ValueError
        For a value outside its range.
    """

    learning_rate: float = 1e-3
    beta1: float = field(default=0.9, kw_only=True)
    beta2: float = field(default=0.999, kw_only=True)
    epsilon: float = field(default=1e-8, kw_only=True)

    rule: ClassVar[str] = "adam"
    slots: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _check("learning_rate", self.learning_rate, 0, math.inf)
        _check("beta1", self.beta1, 0, 1)
        _check("beta2", self.beta2, 0, 1)
        _check("epsilon", self.epsilon, 0, math.inf)

    def numbers(self, first: int, count: int) -> Array:
        steps = np.arange(first, first + count, dtype=np.float64)
        root = np.sqrt(_correction(self.beta2, steps))
        numbers = np.empty((count, 4))
        numbers[:, 0] = self.learning_rate * root / _correction(self.beta1, steps)
        numbers[:, 1] = self.epsilon * root
        numbers[:, 2:] = 1 - self.beta1, 1 - self.beta2
        return numbers


OPTIMIZERS: tuple[type[SGD] | type[Adam], ...] = (SGD, Adam)


def check(optimizer: object) -> Optimizer:
    """The optimizer, or a TypeError that lists what there is."""
    if not isinstance(optimizer, OPTIMIZERS):
        known = ", ".join(f"pyfastnn.{entry.__name__}(...)" for entry in OPTIMIZERS)
        raise TypeError(f"optimizer must be one of {known}, got {optimizer!r}")
    return optimizer
