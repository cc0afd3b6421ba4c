"""The kernels of the contract, on arrays of the host or of the device; and the device behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..._typing import Array
from ...activations import Activation
from ...losses import Loss
from ..plan import Backend, Plan, Spec, batch_scale
from . import blas, elements, products, rows, scalars, shim
from .arrays import DeviceView, adopt
from .products import BACKWARD, GRADIENT, Layout
from .shim import DeviceArray


class Batch(NamedTuple):
    """The samples order[(base[0] + step) size + i] of an epoch."""

    order: DeviceArray
    base: DeviceArray
    step: int
    size: int
    room: DeviceArray
    """For a copy of their inputs, where ``gemm_for`` the first layer's products finds a library."""


class CudaBackend(Backend):
    """Kernels on the current CUDA device.

    Arrays of the host are copied to the device and the results back; those that lie on the device
    already are used where they lie.
    """

    name = "cuda"

    @property
    def description(self) -> str:
        return f"cuda ({shim.describe_device()})"

    @cached_property
    def stream(self) -> Any:
        """All work of this backend, in order."""
        return self.__dict__.setdefault("stream", shim.new_stream())  # the same for threads that ask at once

    @cached_property
    def gemm(self) -> blas.Gemm | None:
        """cuBLAS; None where it does not work."""
        return blas.find(self.stream)

    def gemm_for(self, shape: tuple[int, int, int]) -> blas.Gemm | None:
        """cuBLAS for a product of (rows, columns, depth); None where our own kernel does it."""
        return self.gemm if math.prod(shape) >= blas.WORTHWHILE else None

    @cached_property
    def nothing(self) -> dict[str, DeviceArray]:
        """An array of one number for each dtype, where a kernel takes one and needs none."""
        dtypes = (np.dtype(name) for name in ("float32", "float64", "int64"))
        return {dtype.name: shim.upload(np.zeros(1, dtype), self.stream) for dtype in dtypes}

    def adopt(self, value: object) -> object:
        with shim.ALONE:
            return adopt(value, self.stream)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], like: Sequence[object]) -> Array:
        if not any(isinstance(array, DeviceView) for array in like):
            return super().empty(shape, dtype, like)
        return DeviceView(shim.empty(int(np.prod(shape)), dtype, self.stream), shape)  # type: ignore[return-value]

    def multiply(
        self,
        layout: Layout,
        finish: products.Finish,
        shape: tuple[int, int, int],
        a: DeviceArray,
        b: DeviceArray,
        out: DeviceArray,
        *,
        s: DeviceArray | None = None,
        z: DeviceArray | None = None,
        batch: Batch | None = None,
    ) -> None:
        """out = finish(a b), shape being (rows, columns, depth)."""
        dtype = np.dtype(out.dtype)
        spare, spare_order = self.nothing[dtype.name], self.nothing["int64"]
        s, z = (spare if each is None else each for each in (s, z))
        gemm = self.gemm_for(shape)
        if gemm is not None:
            if batch is not None:
                a = self._gathered(layout, shape, a, batch)
            self._by_gemm(gemm, layout, finish, shape, a, b, s, z, out)
            return
        order, base, step, size, _ = batch or Batch(spare_order, spare_order, 0, 0, spare)
        tile = products.tile_for(*shape[:2])
        kernel = products.product(layout, finish, tile, dtype)
        arrays = (order, base, a, b, s, z, out)
        kernel.launch(tile.blocks(*shape[:2]), self.stream, *arrays, step, size, *shape)

    def _gathered(
        self,
        layout: Layout,
        shape: tuple[int, int, int],
        a: DeviceArray,
        batch: Batch,
    ) -> DeviceArray:
        """The rows of a batch, where cuBLAS can read them."""
        rows_here, _, depth = shape
        samples, features = (depth, rows_here) if layout.a_transposed else (rows_here, depth)
        features -= layout.ones
        count = samples * features
        order, base, step, size, room = batch
        kernel = elements.gather(np.dtype(a.dtype))
        kernel.launch(elements.blocks(count), self.stream, order, base, a, room, step, size, features, count)
        return room

    def _by_gemm(
        self,
        gemm: blas.Gemm,
        layout: Layout,
        finish: products.Finish,
        shape: tuple[int, int, int],
        a: DeviceArray,
        b: DeviceArray,
        s: DeviceArray,
        z: DeviceArray,
        out: DeviceArray,
    ) -> None:
        """The same product, and what comes after it, in launches of their own; without the ones."""
        (rows_here, columns, depth), dtype = shape, np.dtype(out.dtype)
        biases = self.nothing[dtype.name]
        if layout.ones and layout.a_transposed:
            rows_here -= 1
            elements.column_sums(dtype).launch(
                -(-columns // elements.COLUMNS), self.stream, b, out[rows_here * columns :], depth, columns
            )
        elif layout.ones:
            depth -= 1
            biases = b[depth * columns :]
        gemm(
            (rows_here, columns, depth),
            a,
            b,
            out,
            a_transposed=layout.a_transposed,
            b_transposed=layout.b_transposed,
        )
        adds = layout.ones and not layout.a_transposed
        if adds or finish is not products.keep(dtype):
            count = rows_here * columns
            kernel = elements.finish(finish, adds, dtype)
            kernel.launch(elements.blocks(count), self.stream, biases, s, z, out, columns, count)

    def dense_forward(
        self, x: Array, w: Array, b: Array, activation: Activation, z: Array | None, a: Array
    ) -> None:
        (n, k), m, dtype = x.shape, w.shape[1], np.dtype(x.dtype)
        with self._call() as call:
            layer = shim.empty((k + 1) * m, dtype, self.stream)  # the biases behind the weights
            call.copy_into(layer, w, 0)
            call.copy_into(layer, b, k * m)
            device_a, device_z = call.result(a), None if z is None else call.result(z)
            finish = products.keep(dtype)
            if activation.rowwise and device_z is not None:
                self.multiply(products.FORWARD, finish, (n, m, k + 1), call.input(x), layer, device_z)
            if not activation.rowwise:
                finish = products.activate(activation, z is not None, dtype)
            self.multiply(products.FORWARD, finish, (n, m, k + 1), call.input(x), layer, device_a, z=device_z)
            if activation.rowwise:
                self.activate_rows(activation, device_a, n, m)

    def activate_rows(self, activation: Activation, a: DeviceArray, n: int, m: int) -> None:
        """Make outputs of the sums a (n, m), in place."""
        rows.ROWWISE[activation.name](np.dtype(a.dtype)).launch(n, self.stream, a, m)

    def activation_delta(self, d: Array, w: Array, s: Array, activation: Activation, out: Array) -> None:
        (n, m), k = d.shape, w.shape[0]
        with self._call() as call:
            finish = products.through(activation, np.dtype(d.dtype))
            arrays = call.input(d), call.input(w), call.result(out)
            self.multiply(BACKWARD, finish, (n, k, m), *arrays, s=call.input(s))

    def dense_backward(self, x: Array, w: Array, d: Array, dw: Array, db: Array, dx: Array | None) -> None:
        (n, k), m, dtype = x.shape, w.shape[1], np.dtype(x.dtype)
        keep = products.keep(dtype)
        with self._call() as call:
            layer = shim.empty((k + 1) * m, dtype, self.stream)
            device_d = call.input(d)
            self.multiply(GRADIENT, keep, (k + 1, m, n), call.input(x), device_d, layer)
            call.copy_out(layer[: k * m], dw)
            call.copy_out(layer[k * m :], db)
            if dx is not None:
                self.multiply(BACKWARD, keep, (n, k, m), device_d, call.input(w), call.result(dx))

    def output_delta(
        self,
        a: Array,
        y: Array,
        weight: Array | None,
        loss: Loss,
        activation: Activation,
        out: Array | None,
    ) -> float:
        (n, m), dtype = a.shape, np.dtype(a.dtype)
        scale = batch_scale(loss, a.shape, weight)
        factors = np.full(n, scale) if weight is None else scale * weight.astype(np.float64)
        losses = np.empty(n, dtype)
        labels = y.ndim == 1
        with self._call() as call:
            spare, spare_order = self.nothing[dtype.name], self.nothing["int64"]
            d = shim.empty(n * m, dtype, self.stream) if out is None else call.result(out)
            targets = (spare, call.input(y)) if labels else (call.input(y), spare_order)
            scaled = call.input(factors.astype(dtype))
            kernel = rows.output_delta(loss, activation, labels, False, dtype)
            arrays = (call.input(a), *targets, scaled, d, call.result(losses))
            kernel.launch(n, self.stream, spare_order, spare_order, *arrays, 0, 0, m)
        with np.errstate(all="ignore"):
            return float(factors @ losses.astype(np.float64))

    def update(
        self, rule: str, params: Array, gradient: Array, slots: Sequence[Array], numbers: Sequence[float]
    ) -> None:
        dtype = np.dtype(params.dtype)
        with self._call() as call:
            changed = [call.changed(array) for array in (params, *slots)]
            table = call.input(number_table(np.array([numbers], np.float64), dtype))
            self.apply(rule, changed, call.input(gradient), table, len(numbers), self.nothing["int64"], 0)

    def apply(
        self,
        rule: str,
        state: Sequence[DeviceArray],
        gradient: DeviceArray,
        table: DeviceArray,
        numbers: int,
        base: DeviceArray,
        step: int,
    ) -> None:
        """A step of the rule on the parameters and slots, with row base[0] + step of the table."""
        w, *slots = state
        dtype = np.dtype(w.dtype)
        kernel = elements.update(rule, len(slots), numbers, dtype)
        spare = [self.nothing[dtype.name]] * (scalars.MOST_SLOTS - len(slots))
        arrays = (base, w, gradient, *slots, *spare, table)
        kernel.launch(elements.blocks(w.size), self.stream, *arrays, step, w.size)

    def plan(self, spec: Spec) -> Plan:
        from .plan import CudaPlan

        return CudaPlan(self, spec)

    def _call(self) -> _Call:
        return _Call(self.stream)


def number_table(numbers: Array, dtype: np.dtype[Any]) -> Array:
    """What an optimizer gives for some steps, (steps, ...), in rows as wide as the kernels take."""
    table = np.zeros((len(numbers), scalars.MOST_NUMBERS), dtype)
    with np.errstate(all="ignore"):
        table[:, : numbers.shape[1]] = numbers
    return table


class _Call:
    """The arrays of one call of a kernel of the contract: copies of the host's go back at its end.

    What the device reads or writes and others may change or free, once the call is over, is held and
    waited for: arrays of the host, from which a copy may be under way, and of other libraries.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._results: list[tuple[DeviceArray, Array]] = []
        self._held: list[Array] = []

    def __enter__(self) -> _Call:
        shim.ALONE.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        try:
            if kind is None:
                for source, target in self._results:
                    shim.download(source, target, self._stream)
                if self._held:
                    self._stream.synchronize()
        finally:
            shim.ALONE.release()

    def _there(self, view: DeviceView) -> DeviceArray:
        if view.owner is not None:
            self._held.append(view)  # type: ignore[arg-type]
        return view.flat

    def input(self, array: Array) -> DeviceArray:
        if isinstance(array, DeviceView):
            return self._there(array)
        self._held.append(array)
        return shim.upload(array, self._stream)

    def changed(self, array: Array) -> DeviceArray:
        """Read and written."""
        inside = self.input(array)
        if not isinstance(array, DeviceView):
            self._results.append((inside, array))
        return inside

    def result(self, array: Array) -> DeviceArray:
        """Written from end to end."""
        if isinstance(array, DeviceView):
            return self._there(array)
        inside = shim.empty(array.size, np.dtype(array.dtype), self._stream)
        self._results.append((inside, array))
        return inside

    def copy_into(self, target: DeviceArray, array: Array, start: int) -> None:
        part = target[start : start + array.size]
        if isinstance(array, DeviceView):
            shim.refill(part, self._there(array), self._stream)
        else:
            self._held.append(array)
            shim.refill(part, array, self._stream)

    def copy_out(self, source: DeviceArray, array: Array) -> None:
        if isinstance(array, DeviceView):
            shim.refill(self._there(array), source, self._stream)
        else:
            self._results.append((source, array))
