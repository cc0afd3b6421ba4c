from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from numpy.random import BitGenerator, Generator

from ._typing import Array
from .backends.plan import BoundNetwork
from .optimizers import OptimizerState

_F = TypeVar("_F", bound=Callable[..., Any])

compiler: str

def follow_choice(context_choice: ContextVar[Any], process_choice: list[Any]) -> None: ...
def with_quick_way(function: _F) -> _F: ...
def instruction_sets() -> list[str]: ...
def set_thread_limit(threads: int) -> None: ...
def oversubscribe(on: bool) -> None: ...
def thread_limit() -> int: ...
def explain_threads() -> str: ...
def permutation(bit_generator: BitGenerator, count: int) -> Array: ...

class Kernels:
    def __init__(self, isa: str) -> None: ...
    def activations(self) -> list[str]: ...
    def losses(self) -> list[str]: ...
    def rules(self) -> list[str]: ...
    def dense_forward(
        self, x: Array, w: Array, b: Array, activation: int, z: Array | None, a: Array
    ) -> None: ...
    def activation_delta(self, d: Array, w: Array, s: Array, activation: int, out: Array) -> None: ...
    def dense_backward(
        self, x: Array, w: Array, d: Array, dw: Array, db: Array, dx: Array | None
    ) -> None: ...
    def dense_update(self, x: Array, w: Array, b: Array, d: Array, rate: float) -> None: ...
    def output_delta(
        self,
        a: Array,
        y: Array,
        weight: Array | None,
        scale: float,
        loss: int,
        activation: int,
        matched: bool,
        d: Array | None,
    ) -> float: ...
    def update(
        self, rule: int, params: Array, gradient: Array, slots: Sequence[Array], numbers: Sequence[float]
    ) -> None: ...
    def multiply_add_rate(self, like: Array, work: float, threads: int) -> float: ...
    def read_rate(self, rows: Array, passes: int) -> float: ...

class Lists:
    def __init__(
        self,
        kernels: Kernels,
        activations: dict[str, int],
        slopes_from_input: Sequence[bool],
        losses: dict[str, int],
        facts: Sequence[tuple[tuple[float, float] | None, bool, bool, Sequence[int]]],
    ) -> None: ...

class Plan:
    def __init__(
        self,
        kernels: Kernels,
        like: Array,
        sizes: Sequence[int],
        activations: Sequence[int],
        slopes_from_input: Sequence[bool],
        loss: int,
        matched: bool,
        mean_over_outputs: bool,
        any_width: bool,
    ) -> None: ...
    def bound(self, params: Array, backend: object) -> BoundNetwork: ...
    def predict(self, params: Array, x: Array, out: Array) -> None: ...
    def loss_and_gradient(
        self, params: Array, x: Array, y: Array, weight: Array | None, gradient: Array
    ) -> float: ...
    def fit(
        self,
        params: Array,
        x: Array,
        y: Array,
        weight: Array | None,
        epochs: int,
        batch_size: int,
        rule: int,
        state: OptimizerState,
        rng: Generator | None,
    ) -> tuple[list[float], list[float]]: ...

class Fit:
    def __init__(
        self, plan: Plan, params: Array, batch_size: int, rule: int, state: OptimizerState
    ) -> None: ...
    def epoch(self, x: Array, y: Array, weight: Array | None, order: Array | None) -> float: ...
    def pull(self) -> None: ...
    def push(self) -> None: ...
