"""The list of optimizers: hyperparameters, and what one step computes from them.

An optimizer is an immutable value. What it remembers between steps (velocity, moments) is an
:class:`OptimizerState`, which belongs to the network; the elementwise work is the backend's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from ._typing import Array


class Updates(Protocol):
    """The updates that a backend offers; all work in place on flat arrays of one dtype."""

    def sgd(self, params: Array, gradient: Array, rate: float) -> None:
        """w -= rate g."""

    def momentum(
        self, params: Array, gradient: Array, velocity: Array, rate: float, momentum: float, nesterov: bool
    ) -> None:
        """v = momentum v + g; w -= rate v, or with nesterov w -= rate (momentum v + g)."""

    def adam(
        self,
        params: Array,
        gradient: Array,
        first: Array,
        second: Array,
        rate: float,
        epsilon: float,
        keep1: float,
        keep2: float,
    ) -> None:
        """m += keep1 (g - m); v += keep2 (g^2 - v); w -= rate m / (sqrt(v) + epsilon)."""


@dataclass
class OptimizerState:
    """Steps taken, and one flat array per slot of the optimizer."""

    slots: tuple[Array, ...]
    step: int = 0


class Optimizer(Protocol):
    """What the training loop asks of an optimizer."""

    @property
    def slots(self) -> int:
        """How many arrays of the size of the parameters it needs."""

    def apply(self, updates: Updates, params: Array, gradient: Array, state: OptimizerState) -> None:
        """One step, in place."""


def _check(name: str, value: float, low: float, high: float) -> None:
    """Raise unless low <= value < high (or low < value where low is 0 and the bound is open)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not low <= value < high:
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

    name: ClassVar[str] = "sgd"

    def __post_init__(self) -> None:
        _check("learning_rate", self.learning_rate, 0, math.inf)
        _check("momentum", self.momentum, 0, 1)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum > 0, got momentum=0.0")

    @property
    def slots(self) -> int:
        return 1 if self.momentum else 0

    def apply(self, updates: Updates, params: Array, gradient: Array, state: OptimizerState) -> None:
        state.step += 1
        if self.momentum:
            updates.momentum(
                params, gradient, state.slots[0], self.learning_rate, self.momentum, self.nesterov
            )
        else:
            updates.sgd(params, gradient, self.learning_rate)


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
        Not negative.

    Raises
    ------
    ValueError
        For a value outside its range.
    """

    learning_rate: float = 1e-3
    beta1: float = field(default=0.9, kw_only=True)
    beta2: float = field(default=0.999, kw_only=True)
    epsilon: float = field(default=1e-8, kw_only=True)

    name: ClassVar[str] = "adam"
    slots: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _check("learning_rate", self.learning_rate, 0, math.inf)
        _check("beta1", self.beta1, 0, 1)
        _check("beta2", self.beta2, 0, 1)
        _check("epsilon", self.epsilon, 0, math.inf)

    def corrected(self, step: int) -> tuple[float, float]:
        """Rate and epsilon of step 1, 2, ... with the bias corrections folded in."""
        root = math.sqrt(1 - self.beta2**step)
        return self.learning_rate * root / (1 - self.beta1**step), self.epsilon * root

    def apply(self, updates: Updates, params: Array, gradient: Array, state: OptimizerState) -> None:
        state.step += 1
        rate, epsilon = self.corrected(state.step)
        first, second = state.slots
        updates.adam(params, gradient, first, second, rate, epsilon, 1 - self.beta1, 1 - self.beta2)


OPTIMIZERS: tuple[type[SGD] | type[Adam], ...] = (SGD, Adam)


def check(optimizer: object) -> Optimizer:
    """The optimizer, or a TypeError that lists what there is."""
    if not isinstance(optimizer, OPTIMIZERS):
        known = ", ".join(f"pyfastnn.{entry.__name__}(...)" for entry in OPTIMIZERS)
        raise TypeError(f"optimizer must be one of {known}, got {optimizer!r}")
    return optimizer
