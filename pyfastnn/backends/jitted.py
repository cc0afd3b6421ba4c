"""The backend compiled by Numba: formulas in vectors, small products in tiles, an epoch in one call.

Everything runs in the calling thread, without the interpreter lock. Products of many weights are
left to NumPy's BLAS, and so are the networks that have them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._typing import Array
from ..activations import Activation
from ..losses import Loss
from ..optimizers import RULES, Optimizer, OptimizerState
from . import compiling, fused, loops
from .numpy import one_hot
from .plan import Backend, Plan, Spec, batch_scale
from .vectors import spelled

# The weights of a layer above which BLAS is the faster way to its products, as measured.
_MOST_WEIGHTS = 1 << 17

# Bytes of what passes between the layers at a time, so that it stays in the cache; elements to which the
# parts of the workspace are aligned.
_PASSING, _ALIGNED = 1 << 18, 16

_silent = np.errstate(all="ignore")


class _ReadOnly:
    """The memory of a read-only array, for compiled code, which would be compiled again for its type."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (_address(array), False)}


def _flat(array: Array) -> Array:
    flat = array.reshape(-1)
    return flat if flat.flags.writeable else np.asarray(_ReadOnly(flat))


def _address(array: Array) -> int:
    return array.__array_interface__["data"][0]


class Kit:
    """What is compiled for a dtype: each function and formula at its first use."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._addresses: dict[str, int] = {}
        self._functions: dict[Any, Any] = {}

    def function(self, entry: Any) -> Any:
        """An entry of ``fused``."""
        if entry not in self._functions:
            self._functions[entry] = compiling.compiled(entry, self.dtype)
        return self._functions[entry]

    @property
    def product(self) -> int:
        """The address of ``fused.product``."""
        signature = loops.product_signature(self.dtype)
        return self._address(
            "product", lambda name: compiling.compiled_for_calls(name, signature, fused.product)
        )

    def _address(self, name: str, compiled: Callable[[str], int]) -> int:
        if name not in self._addresses:
            self._addresses[name] = compiled(f"{name}_{self.dtype}")
        return self._addresses[name]

    def _loop(self, name: str, formula: Any, arrays: int, numbers: int = 0, **how: bool) -> int:
        def compiled(name: str) -> int:
            loop = loops.formula_loop(formula, arrays, numbers, **how)
            return compiling.compiled_loop(name, loop, self.dtype)

        return self._address(name, compiled)

    def value(self, f: Activation) -> int:
        """Of a -> f(a), in place."""
        return self._loop(f"value_{f.name}", spelled(f.value), 1, rowwise=f.rowwise)

    def delta(self, f: Activation) -> int:
        """Of d, s -> d f'(s), in place of d."""
        return self._loop(f"delta_{f.name}", spelled(f.delta), 2, rowwise=f.rowwise)

    def total(self, loss: Loss) -> int:
        """Of the sum of l(a, y) counts."""
        value = spelled(loss.value)
        return self._loop(f"total_{loss.name}", lambda a, y, counts: value(a, y) * counts, 3, total=True)

    def output_gradient(self, loss: Loss, activation: Activation) -> tuple[int, int]:
        """Of d <- dl/da from d, a, y and of the delta after it; of d <- a - y and 0 where they match."""
        if activation.name == loss.matched:
            return self._loop("difference", lambda _, a, y: a - y, 3), 0
        gradient = spelled(loss.gradient)
        return self._loop(f"gradient_{loss.name}", lambda _, a, y: gradient(a, y), 3), self.delta(activation)

    @property
    def weighting(self) -> int:
        """Of d, counts -> d counts scale, in place of d."""
        return self._loop("weighting", lambda d, counts, scale: d * (counts * scale), 2, 1)

    def rule(self, name: str, slots: int, numbers: int) -> int:
        """Of the update of w from w, g, and slots, in place."""
        return self._loop(f"rule_{name}", spelled(RULES[name]), 2 + slots, numbers)

    def addresses(self, *arrays: Array) -> Array:
        return np.array([_address(array) for array in arrays], np.intp)

    def apply(self, formula: int, arrays: Sequence[Array], numbers: Sequence[float] = (0,)) -> float:
        """The formula over arrays of one shape; its total."""
        operands, given = self.addresses(*arrays), np.array(numbers, self.dtype)
        return self.function(fused.apply)(formula, operands, given, len(arrays[0]), arrays[0][:1].size)


class NumbaBackend(Backend):
    """The kernels, each a product and a formula."""

    name = "numba"

    def __init__(self) -> None:
        self._kits: dict[np.dtype[Any], Kit] = {}

    def kit(self, dtype: np.dtype[Any]) -> Kit:
        return self._kits.setdefault(dtype, Kit(dtype))

    def report(self) -> dict[str, str]:
        return {"numba compilation": compiling.report()}

    @_silent
    def dense_forward(
        self, x: Array, w: Array, b: Array, activation: Activation, z: Array | None, a: Array
    ) -> None:
        kit = self.kit(x.dtype)
        if w.size > _MOST_WEIGHTS:
            np.matmul(x, w, out=a)
            a += b
        else:
            sums = kit.function(fused.sums)
            sums(kit.product, _flat(x), _flat(w), _flat(b), *x.shape, _flat(a))
        if z is not None:
            z[...] = a
        kit.apply(kit.value(activation), (a,))

    @_silent
    def activation_delta(self, d: Array, w: Array, s: Array, activation: Activation, out: Array) -> None:
        self._input_gradient(d, w, out)
        kit = self.kit(d.dtype)
        kit.apply(kit.delta(activation), (out, s))

    @_silent
    def dense_backward(self, x: Array, w: Array, d: Array, dw: Array, db: Array, dx: Array | None) -> None:
        if w.size > _MOST_WEIGHTS:
            np.matmul(x.T, d, out=dw)
            np.sum(d, axis=0, out=db)
        else:
            kit = self.kit(x.dtype)
            zeros = np.zeros(1 + w.shape[1], w.dtype)
            zeros[0] = 1
            gradients = kit.function(fused.weight_gradients)
            gradients(kit.product, _flat(x), _flat(d), len(x), *w.shape, zeros, _flat(dw), _flat(db))
        if dx is not None:
            self._input_gradient(d, w, dx)

    def _input_gradient(self, d: Array, w: Array, out: Array) -> None:
        if w.size > _MOST_WEIGHTS:
            np.matmul(d, w.T, out=out)
            return
        kit = self.kit(d.dtype)
        turned, zeros = np.empty(w.size, w.dtype), np.zeros(len(w), w.dtype)
        gradient = kit.function(fused.input_gradient)
        gradient(kit.product, _flat(d), _flat(w), len(d), *w.shape, turned, zeros, _flat(out))

    @_silent
    def output_delta(
        self,
        a: Array,
        y: Array,
        weight: Array | None,
        loss: Loss,
        activation: Activation,
        out: Array | None,
    ) -> float:
        kit = self.kit(a.dtype)
        scale = batch_scale(loss, a.shape, weight)
        targets = y if y.ndim == 2 else one_hot(y, a)
        counts = np.ones_like(a)
        if weight is not None:
            counts *= weight[:, np.newaxis]
        total = kit.apply(kit.total(loss), (a, targets, counts))
        if out is not None:
            gradient, delta = kit.output_gradient(loss, activation)
            kit.apply(gradient, (out, a, targets))
            if delta:
                kit.apply(delta, (out, a))
            kit.apply(kit.weighting, (out, counts), (scale,))
        return total * scale

    def update(
        self, rule: str, params: Array, gradient: Array, slots: Sequence[Array], numbers: Sequence[float]
    ) -> None:
        kit = self.kit(params.dtype)
        kit.apply(kit.rule(rule, len(slots), len(numbers)), (params, gradient, *slots), numbers)

    def plan(self, spec: Spec) -> Plan:
        if max(inputs * outputs for inputs, outputs in spec.layers) > _MOST_WEIGHTS:
            return Plan(self, spec)
        return NumbaPlan(self, spec)


class NumbaPlan(Plan):
    """A plan that runs whole epochs in compiled code, without the interpreter lock."""

    def __init__(self, backend: NumbaBackend, spec: Spec) -> None:
        super().__init__(backend, spec)
        self._kit = backend.kit(spec.dtype)
        # Activations and deltas.
        self._rows = min(max(_PASSING // (2 * sum(spec.sizes) * spec.dtype.itemsize), 48), 1024)
        self._table = np.zeros((len(spec.layers), 8), np.intp)
        self._whole = np.zeros(12, np.intp)
        with compiling.compiling():
            self._lay_out()

    def _lay_out(self) -> None:
        """Fill the table and the list that ``fused`` describes; ``_size`` is that of the workspace."""
        spec, kit, table, whole, rows = self.spec, self._kit, self._table, self._whole, self._rows
        self._size = _ALIGNED  # what fused.ONE and fused.NUMBER lie in
        weights = 0
        for line, (inputs, outputs), f in zip(table, spec.layers, spec.activations, strict=True):
            line[[fused.INPUTS, fused.OUTPUTS, fused.WEIGHTS]] = inputs, outputs, weights
            weights += (inputs + 1) * outputs
            line[fused.A], line[fused.D] = self._room(rows * outputs), self._room(rows * outputs)
            line[fused.S] = line[fused.A] if f.slope_from == "output" else self._room(rows * outputs)
            line[fused.VALUE] = kit.value(f)
        for line, f in zip(table[:-1], spec.activations, strict=False):
            line[fused.DELTA] = kit.delta(f)
        whole[fused.X] = self._room(rows * spec.sizes[0])
        whole[fused.Y], whole[fused.COUNTS] = (self._room(rows * spec.sizes[-1]) for _ in range(2))
        whole[fused.TURNED] = self._room(max(inputs * outputs for inputs, outputs in spec.layers))
        whole[fused.ZEROS] = self._room(max(spec.sizes))
        whole[fused.CAPACITY] = rows
        whole[fused.PRODUCT] = kit.product
        whole[fused.TOTAL] = kit.total(spec.loss)
        whole[[fused.GRADIENT, fused.OUTPUT_DELTA]] = kit.output_gradient(spec.loss, spec.activations[-1])
        whole[fused.WEIGHTING] = kit.weighting
        whole[fused.TERMS] = spec.sizes[-1] if spec.loss.mean_over_outputs else 1

    def _room(self, count: int) -> int:
        """Where ``count`` more elements lie in the workspace."""
        start = self._size
        self._size += -(-count // _ALIGNED) * _ALIGNED
        return start

    def _workspace(self) -> Array:
        work = np.zeros(self._size, self.spec.dtype)
        work[fused.ONE] = 1
        return work

    def _data(self, x: Array, y: Array, weight: Array | None) -> tuple[Array, Array, Array, Array]:
        """x, labels or none, targets or none, weights or none."""
        none = np.empty(0, x.dtype)
        labels, targets = (_flat(y), none) if y.ndim == 1 else (np.empty(0, np.intp), _flat(y))
        return _flat(x), labels, targets, none if weight is None else _flat(weight)

    def forward(self, params: Array, x: Array, out: Array) -> None:
        run = self._kit.function(fused.forward)
        run(self._table, self._whole, _flat(params), _flat(x), _flat(out), self._workspace())

    def loss_and_gradient(
        self, params: Array, x: Array, y: Array, weight: Array | None, gradient: Array
    ) -> float:
        run = self._kit.function(fused.loss_and_gradient)
        data, order = self._data(x, y, weight), np.arange(len(x))
        return run(self._table, self._whole, _flat(params), gradient, *data, order, self._workspace())

    def train_epoch(
        self,
        params: Array,
        x: Array,
        y: Array,
        weight: Array | None,
        order: Array,
        batch_size: int,
        optimizer: Optimizer,
        state: OptimizerState,
    ) -> float:
        kit = self._kit
        steps = -(-len(order) // batch_size)
        numbers = optimizer.numbers(state.step + 1, steps).astype(params.dtype)
        gradient = np.empty_like(params)
        with compiling.compiling():
            run = kit.function(fused.train_epoch)
            rule = kit.rule(optimizer.rule, len(state.slots), numbers.shape[1])
        loss = run(
            self._table,
            self._whole,
            params,
            gradient,
            *self._data(x, y, weight),
            order,
            batch_size,
            rule,
            kit.addresses(params, gradient, *state.slots),
            numbers.reshape(-1),
            self._workspace(),
        )
        state.step += steps
        return loss
