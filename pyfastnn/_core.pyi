from collections.abc import Sequence

from ._typing import Array

compiler: str

def instruction_sets() -> list[str]: ...
def set_thread_limit(threads: int) -> None: ...
def thread_limit() -> int: ...
def explain_threads() -> str: ...

class Kernels:
    max_numbers: int
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
    ) -> None: ...
    def predict(self, params: Array, x: Array, out: Array) -> None: ...
    def loss_and_gradient(
        self, params: Array, x: Array, y: Array, weight: Array | None, gradient: Array
    ) -> float: ...
    def train_epoch(
        self,
        params: Array,
        x: Array,
        y: Array,
        weight: Array | None,
        order: Array,
        batch_size: int,
        kernels: Kernels,
        rule: int,
        slots: Sequence[Array],
        numbers: Array,
    ) -> float: ...
