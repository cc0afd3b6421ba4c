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
from ..optimizers import RULES, OptimizerState
from . import compiling, fused, loops
from .formulas import Formula
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


def _addresses(*arrays: Array) -> Array:
    return np.array([_address(array) for array in arrays], np.intp)


def _counted(value: Formula) -> Formula:
    return lambda a, y, counts: value(a, y) * counts


def _assigned(gradient: Formula) -> Formula:
    return lambda _, a, y: gradient(a, y)


class Kit:
    """What is compiled for a dtype: each function and formula at its first use."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._made: dict[Any, Any] = {}

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            with compiling.compiling():
                if key not in self._made:
                    self._made[key] = make()
        return self._made[key]

    def function(self, entry: Any) -> Any:
        """An entry of ``fused``."""
        return self._once(entry, lambda: compiling.compiled(entry, self.dtype))

    @property
    def product(self) -> int:
        """The address of ``fused.product``."""

        def make() -> int:
            signature = loops.product_signature(self.dtype)
            return compiling.compiled_for_calls(f"product_{self.dtype}", signature, fused.product)

        return self._once("product", make)

    def _loop(
        self, name: str, formula: Callable[[], Formula], arrays: int, numbers: int = 0, **how: bool
    ) -> int:
        """The address of a formula, as given in vectors, over arrays."""

        def make() -> int:
            loop = loops.formula_loop(formula(), arrays, numbers, **how)
            return compiling.compiled_loop(f"{name}_{self.dtype}", loop, self.dtype)

        return self._once(name, make)

    def value(self, f: Activation) -> int:
        """Of z <- f(z)."""
        return self._loop(f"value_{f.name}", lambda: spelled(f.value), 1, rowwise=f.rowwise)

    def delta(self, f: Activation) -> int:
        """Of d <- d f'(s), from d and s."""
        return self._loop(f"delta_{f.name}", lambda: spelled(f.delta), 2, rowwise=f.rowwise)

    def total(self, loss: Loss) -> int:
        """Of the sum of l(a, y) times counts."""
        return self._loop(f"total_{loss.name}", lambda: _counted(spelled(loss.value)), 3, total=True)

    def output_gradient(self, loss: Loss, activation: Activation) -> tuple[int, int]:
        """Of d <- dl/da, from d, a and y, and of the delta after it; of d <- a - y and 0 where they match."""
        if activation.name == loss.matched:
            return self._loop("difference", lambda: _assigned(lambda a, y: a - y), 3), 0
        name = f"gradient_{loss.name}"
        return self._loop(name, lambda: _assigned(spelled(loss.gradient)), 3), self.delta(activation)

    @property
    def weighting(self) -> int:
        """Of d <- d times counts and a number, from d and counts."""
        return self._loop("weighting", lambda: lambda d, counts, scale: d * (counts * scale), 2, 1)

    def rule(self, name: str, slots: int, numbers: int) -> int:
        """Of an update, from w, g and slots."""
        return self._loop(f"rule_{name}", lambda: spelled(RULES[name]), 2 + slots, numbers)

    def apply(self, formula: int, *arrays: Array, scale: float = 1) -> float:
        """The formula over one to three arrays (rows, columns); its total."""
        first, second, third = (_flat(arrays[min(i, len(arrays) - 1)]) for i in range(3))
        numbers = np.array([scale], self.dtype)
        return self.function(fused.apply)(formula, first, second, third, numbers, *arrays[0].shape)


class NumbaBackend(Backend):
    """The kernels, each a product and a formula."""

    name = "numba"

    def __init__(self) -> None:
        self._kits: dict[np.dtype[Any], Kit] = {}

    def kit(self, dtype: np.dtype[Any]) -> Kit:
        if dtype not in self._kits:
            self._kits.setdefault(dtype, Kit(dtype))
        return self._kits[dtype]

    def facts(self) -> dict[str, str]:
        return {"numba compilation": compiling.report()}

    @_silent
    def dense_forward(
        self, x: Array, w: Array, b: Array, activation: Activation, z: Array | None, a: Array
    ) -> None:
        kit = self.kit(x.dtype)
        value = kit.value(activation)
        if w.size <= _MOST_WEIGHTS:
            kept = np.empty(0, x.dtype) if z is None else z.reshape(-1)
            layer = kit.function(fused.layer)
            layer(kit.product, value, _flat(x), _flat(w), _flat(b), *x.shape, kept, a.reshape(-1))
            return
        np.matmul(x, w, out=a)
        a += b
        if z is not None:
            z[...] = a
        kit.apply(value, a)

    def activation_delta(self, d: Array, w: Array, s: Array, activation: Activation, out: Array) -> None:
        self._input_gradient(d, w, out)
        kit = self.kit(d.dtype)
        kit.apply(kit.delta(activation), out, s)

    @_silent
    def dense_backward(self, x: Array, w: Array, d: Array, dw: Array, db: Array, dx: Array | None) -> None:
        if w.size <= _MOST_WEIGHTS:
            kit = self.kit(x.dtype)
            gradients = kit.function(fused.weight_gradients)
            gradients(kit.product, _flat(x), _flat(d), len(x), *w.shape, dw.reshape(-1), db)
        else:
            np.matmul(x.T, d, out=dw)
            np.sum(d, axis=0, out=db)
        if dx is not None:
            self._input_gradient(d, w, dx)

    @_silent
    def _input_gradient(self, d: Array, w: Array, out: Array) -> None:
        if w.size <= _MOST_WEIGHTS:
            kit = self.kit(d.dtype)
            gradient = kit.function(fused.input_gradient)
            gradient(kit.product, _flat(d), _flat(w), len(d), *w.shape, out.reshape(-1))
        else:
            np.matmul(d, w.T, out=out)

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
        if out is not None:
            gradient, delta = kit.output_gradient(loss, activation)
            kit.apply(gradient, out, a, targets)
            if delta:
                kit.apply(delta, out, a)
            kit.apply(kit.weighting, out, counts, scale=scale)
        return kit.apply(kit.total(loss), a, targets, counts) * scale

    def update(
        self, rule: str, params: Array, gradient: Array, slots: Sequence[Array], numbers: Sequence[float]
    ) -> None:
        kit = self.kit(params.dtype)
        formula = kit.rule(rule, len(slots), len(numbers))
        operands, given = _addresses(params, gradient, *slots), np.array(numbers, params.dtype)
        kit.function(fused.update)(formula, operands, given, params.size)

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
        order: Array | None,
        batch_size: int,
        state: OptimizerState,
    ) -> float:
        kit = self._kit
        if order is None:
            order = np.arange(len(x))
        steps = -(-len(order) // batch_size)
        numbers = state.numbers(steps).astype(params.dtype)
        gradient = np.empty_like(params)
        run = kit.function(fused.train_epoch)
        rule = kit.rule(state.optimizer.rule, len(state.slots), numbers.shape[1])
        loss = run(
            self._table,
            self._whole,
            params,
            gradient,
            *self._data(x, y, weight),
            order,
            batch_size,
            rule,
            _addresses(params, gradient, *state.slots),
            numbers.reshape(-1),
            self._workspace(),
        )
        state.step += steps
        return loss
