"""The compiled backend: C++ kernels for the instruction set of this machine, OpenMP threads."""

from __future__ import annotations

import os
from types import ModuleType

from .._typing import Array
from ..activations import Activation
from ..losses import Loss
from .plan import Backend, BackendUnavailableError, batch_scale

_MOST_THREADS = 2**31 - 1  # what a C int holds


def import_core() -> ModuleType:
    """The extension module, or a BackendUnavailableError that says why not."""
    # An OpenMP runtime whose idle threads spin would slow down the caller's next NumPy call; it
    # reads its waiting policy once, when it is loaded.
    policy = os.environ.get("OMP_WAIT_POLICY")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        from pyfastnn import _core
    except ImportError as error:
        raise BackendUnavailableError(
            f"backend 'cpp' has no compiled core ({error}). Installing with PYFASTNN_REQUIRE_EXT=1 and a C++ "
            "compiler builds it, or says why not"
        ) from error
    finally:
        if policy is None:
            os.environ.pop("OMP_WAIT_POLICY", None)
    return _core


def instruction_sets() -> list[str]:
    """The instruction sets of this machine that the core was compiled for, the best last."""
    return list(import_core().instruction_sets())


class CppBackend(Backend):
    """The kernels compiled for one instruction set.

    Parameters
    ----------
    isa : str, optional
        Default: the environment variable PYFASTNN_ISA, else the best of this machine.

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
        wanted = isa or os.environ.get("PYFASTNN_ISA") or self._core.instruction_sets()[-1]
        try:
            self._kernels = self._core.Kernels(wanted)
        except ValueError as error:
            source = "isa" if isa else "PYFASTNN_ISA"
            raise ValueError(f"{source}: {error}") from None
        self.isa = wanted
        self._activation_ids = {name: i for i, name in enumerate(self._kernels.activations())}
        self._loss_ids = {name: i for i, name in enumerate(self._kernels.losses())}

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

    def sgd(self, params: Array, gradient: Array, rate: float) -> None:
        self._kernels.sgd(params, gradient, rate)

    def momentum(
        self, params: Array, gradient: Array, velocity: Array, rate: float, momentum: float, nesterov: bool
    ) -> None:
        self._kernels.momentum(params, gradient, velocity, rate, momentum, nesterov)

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
        self._kernels.adam(params, gradient, first, second, rate, epsilon, keep1, keep2)

    def set_num_threads(self, threads: int) -> None:
        self._core.set_thread_limit(min(threads, _MOST_THREADS))

    def get_num_threads(self) -> int:
        return self._core.thread_limit()


def load() -> CppBackend:
    return CppBackend()
