"""The contract of a backend: kernels on ready arrays, and plans.

A backend that gives the kernels inherits a :class:`Plan` built from them. Arrays arrive checked:
C-contiguous, aligned, of one dtype and of matching shapes; outputs are allocated by the caller and
overlap no input.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

import numpy as np

from .._typing import Array
from ..activations import Activation
from ..losses import Loss
from ..optimizers import OptimizerState


class BackendUnavailableError(ImportError):
    """A backend cannot work here; the message says why."""


# Weights and biases of every layer, or their gradients.
Layers: TypeAlias = tuple[tuple[Array, ...], tuple[Array, ...]]


@dataclass(frozen=True)
class Spec:
    """A network: layer sizes, one activation per layer (output included), loss, dtype.

    The flat parameter vector holds, layer after layer, the weights (inputs, outputs) in C order and
    then the biases (outputs,).
    """

    sizes: tuple[int, ...]
    activations: tuple[Activation, ...]
    loss: Loss
    dtype: np.dtype[np.generic]

    @cached_property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of every layer."""
        return tuple(zip(self.sizes[:-1], self.sizes[1:], strict=True))

    @cached_property
    def parameter_count(self) -> int:
        return sum((inputs + 1) * outputs for inputs, outputs in self.layers)

    def unflatten(self, flat: Array) -> Layers:
        """Views of a flat vector (parameter_count,): weights and biases of every layer."""
        weights, biases = [], []
        start = 0
        for inputs, outputs in self.layers:
            middle, end = start + inputs * outputs, start + (inputs + 1) * outputs
            weights.append(flat[start:middle].reshape(inputs, outputs))
            biases.append(flat[middle:end])
            start = end
        return tuple(weights), tuple(biases)


def batch_scale(loss: Loss, shape: tuple[int, ...], weight: Array | None) -> float:
    """What turns the sum of w_i l_i over a batch of outputs (n, m) into the loss.

    1 / sum w_i, over m for a mean over outputs; 0 where all weights are 0, or there is no output.
    """
    total = float(shape[0]) if weight is None else float(weight.sum(dtype=np.float64))
    if loss.mean_over_outputs:
        total *= shape[1]
    return 1.0 / total if total else 0.0


class Backend(ABC):
    """The kernels. Shapes: x (n, k), w (k, m), b (m,), z, a, d (n, m)."""

    name: str
    _lists: object = None  # what quick ways need; see ``pyfastnn._quick``

    def __repr__(self) -> str:
        return f"<pyfastnn backend {self.description}>"

    @property
    def description(self) -> str:
        """The name, with what distinguishes this instance."""
        return self.name

    def facts(self) -> dict[str, str]:
        """What ``show_config`` says of this backend besides, by name."""
        return {}

    def adopt(self, value: object) -> object:
        """The value as a ``Remote`` where it is an array in this backend's own memory, else as it is."""
        return value

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[np.generic], like: Sequence[object]) -> Array:
        """A new array for the result of a call with these arguments, where they live."""
        return np.empty(shape, dtype)

    @abstractmethod
    def dense_forward(
        self, x: Array, w: Array, b: Array, activation: Activation, z: Array | None, a: Array
    ) -> None:
        """a = f(x w + b); z, where given, receives x w + b."""

    @abstractmethod
    def activation_delta(self, d: Array, w: Array, s: Array, activation: Activation, out: Array) -> None:
        """out (n, k) = (d w^T) f'(s); s (n, k) as ``activation.slope_from`` says."""

    @abstractmethod
    def dense_backward(self, x: Array, w: Array, d: Array, dw: Array, db: Array, dx: Array | None) -> None:
        """dw = x^T d, db = sum of d over the batch and, where wanted, dx = d w^T."""

    def dense_update(self, x: Array, w: Array, b: Array, d: Array, learning_rate: float) -> None:
        """w -= learning_rate x^T d; b -= learning_rate times the sum of d over the batch."""
        dw, db = (self.empty(array.shape, array.dtype, (w,)) for array in (w, b))
        self.dense_backward(x, w, d, dw, db, None)
        for parameter, gradient in ((w, dw), (b, db)):
            self.update("sgd", parameter, gradient, (), (learning_rate,))

    @abstractmethod
    def output_delta(
        self,
        a: Array,
        y: Array,
        weight: Array | None,
        loss: Loss,
        activation: Activation,
        out: Array | None,
    ) -> float:
        """The loss of a batch; out, where given, receives its derivative with respect to z."""

    @abstractmethod
    def update(
        self, rule: str, params: Array, gradient: Array, slots: Sequence[Array], numbers: Sequence[float]
    ) -> None:
        """One step of the rule of an optimizer, in place; see ``pyfastnn.optimizers.RULES``."""

    def plan(self, spec: Spec) -> Plan:
        return Plan(self, spec)

    def order(self, rng: np.random.Generator, count: int) -> Array:
        """``rng.permutation(count)``, in which an epoch takes its samples."""
        return rng.permutation(count)

    def set_num_threads(self, threads: int) -> None:  # noqa: B027 (a default, not a duty)
        """Limit the backend's own threads; 0: automatic. Backends without threads ignore it."""

    def get_num_threads(self) -> int:
        return 1


class Workspace:
    """Activations, slopes' sources and deltas of a batch of up to ``rows`` samples."""

    def __init__(self, spec: Spec, rows: int) -> None:
        def buffers() -> list[Array]:
            return [np.empty((rows, outputs), spec.dtype) for _, outputs in spec.layers]

        self.a = buffers()
        self.d = buffers()
        # s[i] is what the slope of layer i is computed from: its output, or a buffer for its z.
        self.s = [
            a if activation.slope_from == "output" else np.empty_like(a)
            for a, activation in zip(self.a, spec.activations, strict=True)
        ]


class Training:
    """A fit under way: a context in which a plan runs epochs on the same data.

    A backend with a memory of its own keeps parameters, slots and data there meanwhile; ``pull`` and
    ``push`` say when the caller's arrays count. Here they always do.
    """

    def __init__(
        self,
        plan: Plan,
        params: Array,
        x: Array,
        y: Array,
        weight: Array | None,
        batch_size: int,
        state: OptimizerState,
    ) -> None:
        self._plan, self._params, self._data = plan, params, (x, y, weight)
        self._settings = batch_size, state

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *details: object) -> None:
        """Bring back what has not been, also when an exception ends the fit."""

    def epoch(self, order: Array | None) -> float:
        """One pass over the samples; see ``Plan.train_epoch``."""
        return self._plan.train_epoch(self._params, *self._data, order, *self._settings)

    def next_epoch(self, rng: np.random.Generator | None) -> tuple[float, float]:
        """One pass in an order drawn from rng (None: as they lie): its loss; seconds without the drawing."""
        order = None if rng is None else self._plan.backend.order(rng, len(self._data[0]))
        start = time.perf_counter()
        loss = self.epoch(order)
        return loss, time.perf_counter() - start

    def forward(self, x: Array, out: Array) -> None:
        """The network as it is now, at x; see ``Plan.forward``."""
        self._plan.forward(self._params, x, out)

    def pull(self) -> None:
        """Bring parameters and slots up to date in the arrays that were given."""

    def push(self) -> None:
        """Go on from those arrays: somebody may have changed them."""


class BoundNetwork(Protocol):
    """A network with its parameters, as quick methods take it; see ``pyfastnn._quick``."""

    def takes(self, x: object, y: object, sample_weight: object) -> bool:
        """Whether these need no further look to be samples of the network, at least one."""


class Plan:
    """A network laid out for a backend: planned once, run many times. Holds no state of a run.

    Parameters are always passed in, as the flat vector that ``spec.unflatten`` describes.
    """

    # Rows that forward takes at a time: enough for every thread, few enough for the caches.
    _forward_rows = 4096

    def __init__(self, backend: Backend, spec: Spec) -> None:
        self.backend = backend
        self.spec = spec

    def bound(self, params: Array) -> BoundNetwork | None:
        """The network for quick methods, if the backend has any."""
        return None

    def forward(self, params: Array, x: Array, out: Array) -> None:
        """out (n, outputs) = the network at x (n, inputs)."""
        weights, biases = self.spec.unflatten(params)
        rows = min(len(x), self._forward_rows)
        hidden = [np.empty((rows, outputs), self.spec.dtype) for _, outputs in self.spec.layers[:-1]]
        for start in range(0, len(x), self._forward_rows):
            chunk = x[start : start + self._forward_rows]
            targets = [*(h[: len(chunk)] for h in hidden), out[start : start + len(chunk)]]
            for w, b, activation, a in zip(weights, biases, self.spec.activations, targets, strict=True):
                self.backend.dense_forward(chunk, w, b, activation, None, a)
                chunk = a

    def loss_and_gradient(
        self, params: Array, x: Array, y: Array, weight: Array | None, gradient: Array
    ) -> float:
        """The loss of the batch; gradient, flat as params, receives its derivative."""
        layers = self.spec.unflatten(params), self.spec.unflatten(gradient)
        return self._backpropagate(layers, x, y, weight, Workspace(self.spec, len(x)))

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
        """One pass over the samples in batches, the last one maybe short; the mean loss on the way.

        ``order``, a permutation (n,) int64, says in which order they are taken; None: as they lie.
        """
        gradient = np.empty_like(params)
        layers = self.spec.unflatten(params), self.spec.unflatten(gradient)
        batch_size = min(batch_size, len(x))
        workspace = Workspace(self.spec, batch_size)
        x_batch = np.empty((batch_size, *x.shape[1:]), x.dtype)
        y_batch = np.empty((batch_size, *y.shape[1:]), y.dtype)
        total = weights = 0.0
        for start in range(0, len(x), batch_size):
            span = slice(start, start + batch_size)
            rows = span if order is None else order[span]
            if isinstance(rows, slice):
                xs, ys = x[rows], y[rows]
            else:
                # mode="clip" writes to out directly; the order holds valid rows only.
                xs = x.take(rows, axis=0, out=x_batch[: len(rows)], mode="clip")
                ys = y.take(rows, axis=0, out=y_batch[: len(rows)], mode="clip")
            ws = None if weight is None else weight[rows]
            count = len(xs)
            batch_weight = count if ws is None else float(ws.sum(dtype=np.float64))
            total += batch_weight * self._backpropagate(layers, xs, ys, ws, workspace)
            weights += batch_weight
            numbers = state.numbers(1)[0].tolist()
            self.backend.update(state.optimizer.rule, params, gradient, state.slots, numbers)
            state.step += 1
        return total / weights

    def training(
        self,
        params: Array,
        x: Array,
        y: Array,
        weight: Array | None,
        batch_size: int,
        state: OptimizerState,
    ) -> Training:
        """Several epochs on the same data, params and state changing on the way."""
        return Training(self, params, x, y, weight, batch_size, state)

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
        """Epochs that nobody watches, as by ``Training.next_epoch``; the losses and seconds of all."""
        with self.training(params, x, y, weight, batch_size, state) as run:
            figures = [run.next_epoch(rng) for _ in range(epochs)]
        return [loss for loss, _ in figures], [seconds for _, seconds in figures]

    def _backpropagate(
        self,
        layers: tuple[
            tuple[tuple[Array, ...], tuple[Array, ...]], tuple[tuple[Array, ...], tuple[Array, ...]]
        ],
        x: Array,
        y: Array,
        weight: Array | None,
        workspace: Workspace,
    ) -> float:
        """Forward, loss, backward: the equations BP1 to BP4 of Nielsen (2015), chapter 2."""
        (weights, biases), (weight_gradients, bias_gradients) = layers
        backend, activations, rows, last = self.backend, self.spec.activations, len(x), len(weights) - 1
        a, s, d = ([buffer[:rows] for buffer in kind] for kind in (workspace.a, workspace.s, workspace.d))
        inputs = [x, *a[:-1]]
        for i, activation in enumerate(activations):
            z = None if s[i].base is a[i].base else s[i]
            backend.dense_forward(inputs[i], weights[i], biases[i], activation, z, a[i])
        loss = backend.output_delta(a[last], y, weight, self.spec.loss, activations[last], d[last])
        for i in range(last, -1, -1):
            backend.dense_backward(inputs[i], weights[i], d[i], weight_gradients[i], bias_gradients[i], None)
            if i:
                backend.activation_delta(d[i], weights[i], s[i - 1], activations[i - 1], d[i - 1])
        return loss
