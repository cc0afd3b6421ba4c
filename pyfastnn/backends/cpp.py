"""The compiled backend: C++ kernels for the instruction set of this machine, and threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cached_property
from types import ModuleType

import numpy as np

from .._typing import Array
from ..activations import ACTIVATIONS, ALIASES, Activation
from ..losses import LOSSES, Loss, check_pair
from ..optimizers import OptimizerState
from .plan import Backend, BackendUnavailableError, BoundNetwork, Plan, Spec, Training, batch_scale

_MOST_THREADS = 2**31 - 1  # what a C int holds


def import_core() -> ModuleType:
    """The extension module, or a BackendUnavailableError that says why not."""
    try:
        from pyfastnn import _core
    except ImportError as error:
        raise BackendUnavailableError(
            f"backend 'cpp' has no compiled core ({error}). Installing with PYFASTNN_REQUIRE_EXT=1 and a C++ "
            "compiler builds it, or says why not"
        ) from error
    return _core


def instruction_sets() -> list[str]:
    """The instruction sets of this machine that the core was compiled for, the best last."""
    return list(import_core().instruction_sets())


class CppBackend(Backend):
    """The kernels compiled for one instruction set.

    Parameters
    ----------
    isa : str, optional
        Default: the environment variable PYFASTNN_ISA, else the best of this machine; for a network
        that would leave its vectors half empty, a narrower one that gives the same bits.

    Raises
    ------
    BackendUnavailableError
        Where there is no compiled core.
    ValueError
        Where this machine has no such instruction set; the message lists those present.
    """

    name = "cpp"

    def __init__(self, isa: str | None = None) -> None:
        self._core = import_core()
        named = isa or os.environ.get("PYFASTNN_ISA")
        wanted = named or self._core.instruction_sets()[-1]
        try:
            self._kernels = self._core.Kernels(wanted)
        except ValueError as error:
            source = "isa" if isa else "PYFASTNN_ISA"
            raise ValueError(f"{source}: {error}") from None
        self.isa = wanted
        self._any_width = not named  # narrow networks may take a narrower one, which gives the same bits
        self._activation_ids = {name: i for i, name in enumerate(self._kernels.activations())}
        self._loss_ids = {name: i for i, name in enumerate(self._kernels.losses())}
        self._rule_ids = {name: i for i, name in enumerate(self._kernels.rules())}
        # Others may do things in their own way.
        self._lists = self._quick_lists() if type(self) is CppBackend else None

    def _quick_lists(self) -> object:
        """What the quick ways of the kernels need to know; see ``pyfastnn._quick``."""
        ids, functions = self._activation_ids, [ACTIVATIONS[name] for name in self._activation_ids]
        losses = [LOSSES[name] for name in self._loss_ids]
        pairs = [[_pair(loss, f) for f in functions] for loss in losses]
        facts = [
            (loss.interval, loss.targets == "classes", loss.mean_over_outputs, of_loss)
            for loss, of_loss in zip(losses, pairs, strict=True)
        ]
        return self._core.Lists(
            self._kernels,
            ids | {alias: ids[name] for alias, name in ALIASES.items()},
            [f.slope_from == "input" for f in functions],
            self._loss_ids,
            facts,
        )

    @property
    def description(self) -> str:
        return f"cpp ({self.isa}, {self.get_num_threads()} threads)"

    def dense_forward(
        self, x: Array, w: Array, b: Array, activation: Activation, z: Array | None, a: Array
    ) -> None:
        self._kernels.dense_forward(x, w, b, self._activation_ids[activation.name], z, a)

    def activation_delta(self, d: Array, w: Array, s: Array, activation: Activation, out: Array) -> None:
        self._kernels.activation_delta(d, w, s, self._activation_ids[activation.name], out)

    def dense_backward(self, x: Array, w: Array, d: Array, dw: Array, db: Array, dx: Array | None) -> None:
        self._kernels.dense_backward(x, w, d, dw, db, dx)

    def dense_update(self, x: Array, w: Array, b: Array, d: Array, learning_rate: float) -> None:
        self._kernels.dense_update(x, w, b, d, learning_rate)

    def output_delta(
        self,
        a: Array,
        y: Array,
        weight: Array | None,
        loss: Loss,
        activation: Activation,
        out: Array | None,
    ) -> float:
        return self._kernels.output_delta(
            a,
            y,
            weight,
            batch_scale(loss, a.shape, weight),
            self._loss_ids[loss.name],
            self._activation_ids[activation.name],
            activation.name == loss.matched,
            out,
        )

    def update(
        self, rule: str, params: Array, gradient: Array, slots: Sequence[Array], numbers: Sequence[float]
    ) -> None:
        self._kernels.update(self._rule_ids[rule], params, gradient, slots, numbers)

    def plan(self, spec: Spec) -> Plan:
        return CppPlan(self, spec)

    def order(self, rng: np.random.Generator, count: int) -> Array:
        return self._permutation(rng, count) if self.draws(rng, count) else super().order(rng, count)

    def draws(self, rng: np.random.Generator, count: int) -> bool:
        """Whether the core can draw permutations from this generator, as NumPy would."""
        return type(rng) is np.random.Generator and count < 2**32 and self._shuffles_as_numpy

    def _permutation(self, rng: np.random.Generator, count: int) -> Array:
        return self._core.permutation(rng.bit_generator, count)

    @cached_property
    def _shuffles_as_numpy(self) -> bool:
        """Whether this version of NumPy makes permutations as the core does; it promises no algorithm."""
        one, other = np.random.default_rng(0), np.random.default_rng(0)
        # Few from the generator itself, many from a copy.
        same = all(np.array_equal(one.permutation(n), self._permutation(other, n)) for n in (1000, 10_000))
        return same and one.bit_generator.state == other.bit_generator.state

    def set_num_threads(self, threads: int) -> None:
        self._core.set_thread_limit(min(threads, _MOST_THREADS))

    def get_num_threads(self) -> int:
        return self._core.thread_limit()


def _pair(loss: Loss, activation: Activation) -> int:
    """0: not defined, 1: defined, 2: matched."""
    try:
        check_pair(loss, activation)
    except ValueError:
        return 0
    return 2 if activation.name == loss.matched else 1


class CppPlan(Plan):
    """A plan that runs whole epochs in the compiled core, without the interpreter lock."""

    def __init__(self, backend: CppBackend, spec: Spec) -> None:
        super().__init__(backend, spec)
        self._cpp = backend
        self._compiled = backend._core.Plan(
            backend._kernels,
            np.empty(0, spec.dtype),
            spec.sizes,
            [backend._activation_ids[f.name] for f in spec.activations],
            [f.slope_from == "input" for f in spec.activations],
            backend._loss_ids[spec.loss.name],
            spec.loss.matched == spec.activations[-1].name,
            spec.loss.mean_over_outputs,
            backend._any_width,
        )

    def bound(self, params: Array) -> BoundNetwork:
        return self._compiled.bound(params, self.backend)

    def forward(self, params: Array, x: Array, out: Array) -> None:
        self._compiled.predict(params, x, out)

    def loss_and_gradient(
        self, params: Array, x: Array, y: Array, weight: Array | None, gradient: Array
    ) -> float:
        return self._compiled.loss_and_gradient(params, x, y, weight, gradient)

    def train_epoch(
        self,
        params: Array,
        x: Array,
        y: Array,
        weight: Array | None,
        order: Array | None,
        batch_size: int,
        state: OptimizerState,
    ) -> float:
        with self.training(params, x, y, weight, batch_size, state) as run:
            return run.epoch(order)

    def training(
        self,
        params: Array,
        x: Array,
        y: Array,
        weight: Array | None,
        batch_size: int,
        state: OptimizerState,
    ) -> Training:
        return CppTraining(self, params, x, y, weight, min(batch_size, len(x)), state)

    def fit(
        self,
        params: Array,
        x: Array,
        y: Array,
        weight: Array | None,
        epochs: int,
        batch_size: int,
        state: OptimizerState,
        rng: np.random.Generator | None,
    ) -> tuple[list[float], list[float]]:
        if rng is not None and not self._cpp.draws(rng, len(x)):
            return super().fit(params, x, y, weight, epochs, batch_size, state, rng)
        rule, most = self._cpp._rule_ids[state.optimizer.rule], min(epochs, sys.maxsize)
        return self._compiled.fit(params, x, y, weight, most, min(batch_size, len(x)), rule, state, rng)


class CppTraining(Training):
    """A fit in the compiled core, which keeps parameters and slots in a layout of its own between epochs."""

    def __init__(
        self,
        plan: CppPlan,
        params: Array,
        x: Array,
        y: Array,
        weight: Array | None,
        batch_size: int,
        state: OptimizerState,
    ) -> None:
        super().__init__(plan, params, x, y, weight, batch_size, state)
        rule = plan._cpp._rule_ids[state.optimizer.rule]
        self._fit = plan._cpp._core.Fit(plan._compiled, params, batch_size, rule, state)

    def __exit__(self, *details: object) -> None:
        self.pull()

    def epoch(self, order: Array | None) -> float:
        return self._fit.epoch(*self._data, order)

    def forward(self, x: Array, out: Array) -> None:
        self.pull()
        super().forward(x, out)

    def pull(self) -> None:
        self._fit.pull()

    def push(self) -> None:
        self._fit.push()


def load() -> CppBackend:
    return CppBackend()
