"""The compiled backend: C++ kernels for the instruction set of this machine, and threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from types import ModuleType

import numpy as np

from .._typing import Array
from ..activations import ACTIVATIONS, ALIASES, Activation
from ..losses import LOSSES, Loss, check_pair
from ..optimizers import Optimizer, OptimizerState
from .plan import Backend, BackendUnavailableError, Plan, Spec, Training, batch_scale

_MOST_THREADS = 2**31 - 1  # what a C int holds
_INTERVAL = 0.02  # seconds, about, after which a fit looks for signals, such as of an impatient user
_MOST_STEPS = 2**14  # until then, for whose numbers there must be memory


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
        bits = rng.bit_generator
        with bits.lock:
            return self._core.permutation(bits.capsule, count)

    @cached_property
    def _shuffles_as_numpy(self) -> bool:
        """Whether this version of NumPy makes permutations as the core does; it promises no algorithm."""
        count, one, other = 1000, np.random.default_rng(0), np.random.default_rng(0)
        same = np.array_equal(one.permutation(count), self._permutation(other, count))
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

    def bound(self, params: Array) -> object:
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
        optimizer: Optimizer,
        state: OptimizerState,
    ) -> float:
        with self.training(params, x, y, weight, batch_size, optimizer, state) as run:
            return run.epoch(order)

    def training(
        self,
        params: Array,
        x: Array,
        y: Array,
        weight: Array | None,
        batch_size: int,
        optimizer: Optimizer,
        state: OptimizerState,
    ) -> Training:
        return CppTraining(self, params, x, y, weight, min(batch_size, len(x)), optimizer, state)


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
        optimizer: Optimizer,
        state: OptimizerState,
    ) -> None:
        super().__init__(plan, params, x, y, weight, batch_size, optimizer, state)
        self._steps = -(-len(x) // batch_size)
        self._numbers, self._begun = np.empty((0, 0)), False
        self._seconds = np.inf  # an epoch
        self._cpp = plan._cpp
        rule = plan._cpp._rule_ids[optimizer.rule]
        self._fit = plan._cpp._core.Fit(plan._compiled, params, state.slots, batch_size, rule)

    def __exit__(self, *details: object) -> None:
        self.pull()

    def epoch(self, order: Array | None) -> float:
        loss = self._fit.epoch(*self._data, order, self._next_numbers(self._steps))
        self._settings[2].step += self._steps
        return loss

    def epochs(self, most: int, rng: np.random.Generator | None) -> tuple[list[float], list[float]]:
        if rng is not None and not self._cpp.draws(rng, len(self._data[0])):
            return super().epochs(most, rng)
        count = min(most, max(int(_INTERVAL / self._seconds), 1), max(_MOST_STEPS // self._steps, 1))
        numbers = self._next_numbers(count * self._steps)
        bits = None if rng is None else rng.bit_generator
        with nullcontext() if bits is None else bits.lock:
            generator = None if bits is None else bits.capsule
            losses, seconds = self._fit.epochs(*self._data, generator, numbers, count)
        self._settings[2].step += count * self._steps
        self._seconds = sum(seconds) / count
        return losses, seconds

    def _next_numbers(self, steps: int) -> Array:
        """The optimizer's numbers of the steps that are taken now."""
        _, optimizer, state = self._settings
        if steps > len(self._numbers):
            # After the first epoch those of several at once: NumPy's overhead is longer than the step of a
            # small network.
            count = max(steps, 64) if self._begun else steps
            self._numbers, self._begun = optimizer.numbers(state.step + 1, count), True
        numbers, self._numbers = self._numbers[:steps], self._numbers[steps:]
        return numbers

    def forward(self, x: Array, out: Array) -> None:
        self.pull()
        super().forward(x, out)

    def pull(self) -> None:
        self._fit.pull()

    def push(self) -> None:
        self._fit.push()


def load() -> CppBackend:
    return CppBackend()
