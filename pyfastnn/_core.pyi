from ._typing import Array

compiler: str

def instruction_sets() -> list[str]: ...
def set_thread_limit(threads: int) -> None: ...
def thread_limit() -> int: ...
def explain_threads() -> str: ...

class Kernels:
    def __init__(self, isa: str) -> None: ...
    def activations(self) -> list[str]: ...
    def losses(self) -> list[str]: ...
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
    def sgd(self, params: Array, gradient: Array, rate: float) -> None: ...
    def momentum(
        self,
        params: Array,
        gradient: Array,
        velocity: Array,
        rate: float,
        momentum: float,
        nesterov: bool,
    ) -> None: ...
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
    ) -> None: ...
