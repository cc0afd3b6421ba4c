"""Training with everything on the device: data go there once, parameters come back on demand."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from ..._typing import Array
from ...optimizers import OptimizerState
from ..plan import Plan, Spec, Training, batch_scale
from . import elements, narrow, products, rows, shim
from .arrays import DeviceView
from .backend import Batch, CudaBackend, number_table
from .products import BACKWARD, Layout
from .shim import DeviceArray

# Steps recorded together. Enough that the host, to which a launch costs about 10 us, is far ahead; few,
# since recording costs it as much as doing them once without.
_FEWEST_STEPS, _MOST_STEPS = 4, 8
_MOST_ROWS = 65_536  # of a prediction, at a time: hidden layers need room
_MOST_REMEMBERED = 4  # arrays for predictions that stay on the device while a fit lasts


Method = TypeVar("Method", bound=Callable[..., Any])


def _alone(method: Method) -> Method:
    """The method while no other thread uses the device."""

    @wraps(method)
    def locked(self: Any, *args: Any) -> Any:
        with shim.ALONE:
            return method(self, *args)

    return locked  # type: ignore[return-value]


class CudaPlan(Plan):
    """A network on the device. ``fused`` None: a narrow one is trained in one launch an epoch."""

    def __init__(self, backend: CudaBackend, spec: Spec, *, fused: bool | None = None) -> None:
        super().__init__(backend, spec)
        self.cuda, self.fused = backend, fused

    def forward(self, params: Array, x: Array, out: Array) -> None:
        with self.cuda._call() as call:
            self.run_forward(call.input(params), call.input(x), len(x), call.result(out))

    def run_forward(self, params: DeviceArray, x: DeviceArray, count: int, out: DeviceArray) -> None:
        """out (count, outputs) = the network at x, all on the device."""
        spec, parts = self.spec, layers_of(params, self.spec)
        rows_at_once = min(count, _MOST_ROWS)
        hidden = [shim.empty(rows_at_once * m, spec.dtype, self.cuda.stream) for _, m in spec.layers[:-1]]
        inputs, outputs = spec.sizes[0], spec.sizes[-1]
        for start in range(0, count, _MOST_ROWS):
            rows_here = min(_MOST_ROWS, count - start)
            a = x[start * inputs : (start + rows_here) * inputs]
            targets = [*hidden, out[start * outputs : (start + rows_here) * outputs]]
            for i, (part, target) in enumerate(zip(parts, targets, strict=True)):
                self.layer_forward(i, a, part, target, None, rows_here)
                a = target

    def layer_forward(
        self,
        layer: int,
        x: DeviceArray,
        part: DeviceArray,
        a: DeviceArray,
        z: DeviceArray | None,
        count: int,
        batch: Batch | None = None,
    ) -> None:
        """a, and z where it is kept, of one layer with the weights and biases ``part``."""
        spec, (k, m) = self.spec, self.spec.layers[layer]
        activation = spec.activations[layer]
        finish = (
            products.keep(spec.dtype)
            if activation.rowwise
            else products.activate(activation, z is not None, spec.dtype)
        )
        layout = Layout(ones=True, gathered=batch is not None)
        self.cuda.multiply(layout, finish, (count, m, k + 1), x, part, a, z=z, batch=batch)
        if activation.rowwise:
            self.cuda.activate_rows(activation, a, count, m)

    @_alone
    def loss_and_gradient(
        self, params: Array, x: Array, y: Array, weight: Array | None, gradient: Array
    ) -> float:
        run = Resident(self, params, x, y, weight, len(x), None)
        with run:
            loss = run.gradient_of_all()
            inside = gradient.flat if isinstance(gradient, DeviceView) else gradient
            if inside is gradient:
                shim.download(run.gradient, gradient, self.cuda.stream)
            else:
                shim.refill(inside, run.gradient, self.cuda.stream)
        return loss

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

    @_alone
    def training(
        self,
        params: Array,
        x: Array,
        y: Array,
        weight: Array | None,
        batch_size: int,
        state: OptimizerState,
    ) -> Training:
        return Resident(self, params, x, y, weight, min(batch_size, len(x)), state)


def layers_of(flat: DeviceArray, spec: Spec) -> list[DeviceArray]:
    """Weights and biases of every layer, in one piece each."""
    ends = np.cumsum([(k + 1) * m for k, m in spec.layers]).tolist()
    return [flat[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def steps_together(whole: int) -> int:
    """Of the whole batches of an epoch, so many that few are left over; all, where they are few."""
    if whole < _FEWEST_STEPS:
        return whole
    return min(range(_FEWEST_STEPS, _MOST_STEPS + 1), key=lambda count: whole % count)


class Resident(Training):
    """Parameters, slots, data and all that lies between on the device, for the length of a fit."""

    def __init__(
        self,
        plan: CudaPlan,
        params: Array,
        x: Array,
        y: Array,
        weight: Array | None,
        batch: int,
        state: OptimizerState | None,
    ) -> None:
        self._plan = self.plan = plan
        self._data = x, y, weight
        self.cuda, self.stream = plan.cuda, plan.cuda.stream
        self._host = [params, *(state.slots if state else ())]
        self._x_given, self.weight, self.count, self.batch = x, weight, len(x), batch
        self.memory = state
        spec, spare = plan.spec, self.cuda.nothing
        self.state = [self._inside(array) for array in self._host]
        self.x, self.labels = self._inside(x), y.ndim == 1
        target = self._inside(y)
        self.targets = (spare[spec.dtype.name], target) if self.labels else (target, spare["int64"])
        self.losses = shim.empty(self.count, spec.dtype, self.stream)
        # What an epoch needs, by the names that _send knows.
        self.order: DeviceArray = None
        self.table: DeviceArray = None
        self.factors: DeviceArray = None
        # What was sent last of each, on the host: the copy may be under way until the losses are back.
        self._sent: dict[str, Array] = {}
        self._stale = self._compiled = False
        self._graph: shim.Graph | None = None
        self._zero = np.zeros(1, np.int64)
        self.base = shim.upload(self._zero, self.stream)
        self._remembered: dict[int, tuple[Array, DeviceArray]] = {}
        slots = len(self.state) - 1
        self.fused = state is not None and (
            narrow.suits(spec, slots, batch) if plan.fused is None else plan.fused
        )
        if not self.fused:
            self._make_room()

    def _inside(self, array: Array) -> DeviceArray:
        return array.flat if isinstance(array, DeviceView) else shim.upload(array, self.stream)

    def _make_room(self) -> None:
        """What a step needs between its kernels."""
        spec = self.plan.spec

        def buffers() -> list[DeviceArray]:
            return [shim.empty(self.batch * m, spec.dtype, self.stream) for _, m in spec.layers]

        self.a, self.d = buffers(), buffers()
        self.z = [
            shim.empty(a.size, spec.dtype, self.stream) if f.slope_from == "input" else None
            for a, f in zip(self.a, spec.activations, strict=True)
        ]
        self.gradient = shim.empty(spec.parameter_count, spec.dtype, self.stream)
        self.parts = layers_of(self.state[0], spec)
        self.gradients = layers_of(self.gradient, spec)
        inputs, outputs = spec.layers[0]
        copies = self.cuda.gemm_for((self.batch, outputs, inputs + 1)) is not None
        self.room = shim.empty(self.batch * inputs if copies else 0, spec.dtype, self.stream)

    @_alone
    def __exit__(self, *details: object) -> None:
        try:
            try:
                self.pull()
            finally:
                self._forget_graph()
        except Exception as error:
            if not any(details):
                raise
            # A device that has failed answers everything with an error: the first one says more.
            shim.logger.warning("parameters could not be brought back from the device: %s", error)

    @_alone
    def pull(self) -> None:
        if self._stale:
            for source, target in zip(self.state, self._host, strict=True):
                shim.download(source, target, self.stream)
            self._stale = False

    @_alone
    def push(self) -> None:
        for target, array in zip(self.state, self._host, strict=True):
            shim.refill(target, array, self.stream)

    @_alone
    def forward(self, x: Array, out: Array) -> None:
        inside = out.flat if isinstance(out, DeviceView) else shim.empty(out.size, out.dtype, self.stream)
        self.plan.run_forward(self.state[0], self._remember(x), len(x), inside)
        if not isinstance(out, DeviceView):
            shim.download(inside, out, self.stream)

    def _remember(self, x: Array) -> DeviceArray:
        """x on the device; the same array is copied once a fit."""
        if isinstance(x, DeviceView):
            return x.flat
        if x is self._x_given:
            return self.x
        if id(x) not in self._remembered:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[id(x)] = x, shim.upload(x, self.stream)
        return self._remembered[id(x)][1]

    @_alone
    def epoch(self, order: Array | None) -> float:
        assert self.memory is not None
        if order is None:
            order = np.arange(self.count)
        dtype, steps = self.plan.spec.dtype, -(-len(order) // self.batch)
        numbers = self.memory.numbers(steps)
        table = number_table(numbers, dtype)
        weights = self._send_factors(order)
        self._send("order", order)
        self._send("table", table)
        self._stale = True
        if self.fused:
            self._run_fused(numbers.shape[1])
        else:
            self._run_steps(steps, numbers.shape[1])
        self.memory.step += steps
        return self._mean_loss(weights)

    def _send(self, name: str, array: Array) -> None:
        """Copy into the array of that name on the device, which keeps its place from epoch to epoch."""
        self._sent[name] = array
        held: DeviceArray | None = getattr(self, name)
        if held is None or held.size != array.size:
            setattr(self, name, shim.upload(array, self.stream))
            self._forget_graph()
        else:
            shim.refill(held, array, self.stream)

    def _forget_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def _send_factors(self, order: Array) -> Array:
        """The weights of the samples in this order; the device gets them over their batches' sums."""
        spec = self.plan.spec
        weights = np.ones(len(order)) if self.weight is None else self.weight[order].astype(np.float64)
        if self.weight is None and self.factors is not None:
            return weights  # the same in any order
        factors = np.empty(len(order))
        for start in range(0, len(order), self.batch):
            part = slice(start, start + self.batch)
            chosen = weights[part]
            factors[part] = batch_scale(spec.loss, (len(chosen), spec.sizes[-1]), chosen) * chosen
        self._send("factors", factors.astype(spec.dtype))
        return weights

    def _mean_loss(self, weights: Array) -> float:
        """Of the samples, from the sums over their outputs that the kernels left."""
        spec, losses = self.plan.spec, np.empty(self.count, self.plan.spec.dtype)
        shim.download(self.losses, losses, self.stream)
        with np.errstate(all="ignore"):
            total = weights @ losses.astype(np.float64) / weights.sum()
        return float(total / spec.sizes[-1] if spec.loss.mean_over_outputs else total)

    def _run_fused(self, numbers: int) -> None:
        spec, memory = self.plan.spec, self.memory
        assert memory is not None
        slots = len(self.state) - 1
        kernel = narrow.epoch(spec, memory.optimizer.rule, slots, numbers, self.batch, self.labels)
        spare = [self.cuda.nothing[spec.dtype.name]] * (2 - slots)
        arrays = (self.order, *self.state, *spare, self.x, *self.targets, self.factors, self.table)
        kernel.launch(1, self.stream, *arrays, self.losses, self.count)

    def _run_steps(self, steps: int, numbers: int) -> None:
        """Whole batches by graphs of some steps each, the rest one by one."""
        whole, done = self.count // self.batch, 0
        shim.refill(self.base, self._zero, self.stream)
        if not self._compiled:
            self._several(1, numbers)  # compiles every kernel, which a recording cannot do
            done, self._compiled = 1, True
        together = steps_together(whole)
        if whole - done >= together:
            if self._graph is None:
                self._graph = shim.Graph(lambda: self._several(together, numbers), self.stream)
            for _ in range((whole - done) // together):
                self._graph.launch()
                done += together
        for step in range(done, steps):
            # base says how many steps have been done before.
            self._step(step - done, min(self.batch, self.count - step * self.batch), numbers)

    def _several(self, count: int, numbers: int) -> None:
        for step in range(count):
            self._step(step, self.batch, numbers)
        elements.advance().launch(1, self.stream, self.base, count)

    def _step(self, step: int, count: int, numbers: int) -> None:
        assert self.memory is not None
        self._backpropagate(step, count)
        rule = self.memory.optimizer.rule
        self.cuda.apply(rule, self.state, self.gradient, self.table, numbers, self.base, step)

    def _backpropagate(self, step: int, count: int) -> None:
        """The gradient at the ``count`` samples of a batch; their losses."""
        spec, multiply = self.plan.spec, self.cuda.multiply
        batch = Batch(self.order, self.base, step, self.batch, self.room)
        last = len(spec.layers) - 1
        for i in range(last + 1):
            x, gathered = (self.a[i - 1], None) if i else (self.x, batch)
            self.plan.layer_forward(i, x, self.parts[i], self.a[i], self.z[i], count, gathered)
        kernel = rows.output_delta(spec.loss, spec.activations[-1], self.labels, True, spec.dtype)
        arrays = (self.a[last], *self.targets, self.factors, self.d[last], self.losses)
        kernel.launch(count, self.stream, self.order, self.base, *arrays, step, self.batch, spec.sizes[-1])
        keep = products.keep(spec.dtype)
        for i in range(last, -1, -1):
            k, m = spec.layers[i]
            x, gathered = (self.a[i - 1], None) if i else (self.x, batch)
            layout = Layout(a_transposed=True, ones=True, gathered=not i)
            multiply(layout, keep, (k + 1, m, count), x, self.d[i], self.gradients[i], batch=gathered)
            if i:
                below = self.z[i - 1] if self.z[i - 1] is not None else self.a[i - 1]
                finish = products.through(spec.activations[i - 1], spec.dtype)
                multiply(BACKWARD, finish, (count, k, m), self.d[i], self.parts[i], self.d[i - 1], s=below)

    def gradient_of_all(self) -> float:
        """The loss of all samples; ``gradient`` is its derivative."""
        order = np.arange(self.count)
        weights = self._send_factors(order)
        self._send("order", order)
        self._backpropagate(0, self.count)
        return self._mean_loss(weights)
