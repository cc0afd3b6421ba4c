"""Whole epochs in one launch, for networks so narrow that a step is over before a launch has begun.

One block keeps parameters, the optimizer's arrays and a batch in shared memory and runs step after
step. It uses one multiprocessor of many, so it pays only where the others would idle anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from ...activations import ACTIVATIONS
from ..plan import Spec
from . import scalars, shim
from .shim import Kernel, at, cuda

THREADS = 4 if shim.SIMULATED else 512
WIDEST = 128
# Multiply-adds of a step beyond which one multiprocessor is thought to be the slower way. Estimated
# from 16 of them a clock and launches of about 2 us; not measured.
_MOST_WORK = 2_000_000
_TILE = 2  # elements of a product that a thread computes at a time, each way

Step = Callable[..., None]


@dataclass(frozen=True)
class Storage:
    """Where things lie in shared memory, in numbers from its start.

    Rows of weights are padded to an odd length, so that neither they nor their columns meet in one
    bank; the biases are a last row. A row of activations ends with the one that the biases are multiplied by.
    """

    spec: Spec
    slots: int
    batch: int

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Of a row of weights, padded, for each layer."""
        return tuple(m | 1 for _, m in self.spec.layers)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The start of each layer's weights, from the start of the parameters (or of a slot)."""
        sizes = [(k + 1) * width for (k, _), width in zip(self.spec.layers, self.widths, strict=True)]
        return tuple(sum(sizes[:i]) for i in range(len(sizes) + 1))

    @property
    def state(self) -> int:
        """Numbers of the parameters, and of every slot."""
        return self.layers[-1]

    @cached_property
    def activations(self) -> tuple[int, ...]:
        """The start of the inputs, and of every layer's outputs; and the end."""
        start, lengths = self.state * (1 + self.slots), [size + 1 for size in self.spec.sizes]
        return tuple(start + self.batch * sum(lengths[:i]) for i in range(len(lengths) + 1))

    @cached_property
    def deltas(self) -> tuple[int, ...]:
        start = self.activations[-1]
        ends = self.spec.sizes[1:]
        return tuple(start + self.batch * sum(ends[:i]) for i in range(len(ends) + 1))

    @cached_property
    def sums(self) -> tuple[int, ...]:
        """What each layer's slope is computed from: its outputs, or z, kept behind all the rest (no ones)."""
        found, end = [], self.deltas[-1]
        for i, activation in enumerate(self.spec.activations):
            kept = activation.slope_from == "input"
            found.append(end if kept else self.activations[i + 1])
            end += self.batch * self.spec.sizes[i + 1] if kept else 0
        return (*found, end)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.sums[-1] * self.spec.dtype.itemsize


def suits(spec: Spec, slots: int, batch: int) -> bool:
    """Whether such a network is trained this way: the only place that says so."""
    work = 3 * batch * sum(k * m for k, m in spec.layers)
    narrow = max(spec.sizes[1:]) <= WIDEST and work <= _MOST_WORK
    return narrow and Storage(spec, slots, batch).size <= shim.shared_limit()


@cache
def _product(dtype: np.dtype[Any], finish: Any) -> Step:
    """f(memory, me, (rows, columns, depth), A and its row and depth strides, B and its, arguments of finish).

    finish(sum, memory, i, j, ...) for every element.
    """
    real, zero = shim.element(dtype), dtype.type(0)
    side, count, threads = _TILE, _TILE * _TILE, THREADS

    def run(
        memory: Any,
        me: int,
        shape: tuple[int, int, int],
        a: tuple[int, int, int],
        b: tuple[int, int, int],
        more: Any,
    ) -> None:
        rows, columns, depth = shape
        down, across = (rows + side - 1) // side, (columns + side - 1) // side
        sums = cuda.local.array(count, real)
        for tile in range(me, down * across, threads):
            # Spread out, not side by side: neighbouring threads read neighbouring columns.
            top, left = tile // across, tile % across
            for e in range(count):
                sums[e] = zero
            p = 0
            while p < depth:  # a range takes twice as many instructions
                for i in range(side):
                    row = min(top + i * down, rows - 1)
                    number = memory[at(a[0] + row * a[1] + p * a[2])]
                    for j in range(side):
                        column = min(left + j * across, columns - 1)
                        sums[i * side + j] += number * memory[at(b[0] + p * b[1] + column * b[2])]
                p += 1
            for i in range(side):
                for j in range(side):
                    row, column = top + i * down, left + j * across
                    if row < rows and column < columns:
                        finish(sums[i * side + j], memory, row, column, more)

    return shim.device(run)


def _forward(storage: Storage, layer: int) -> Step:
    """a = f(x w + b)."""
    spec = storage.spec
    (k, m), activation, dtype = spec.layers[layer], spec.activations[layer], spec.dtype
    x, w, out, z = (
        storage.activations[layer],
        storage.layers[layer],
        storage.activations[layer + 1],
        storage.sums[layer],
    )
    width, keep_z = storage.widths[layer], activation.slope_from == "input"
    # The whole row comes later, in _output.
    value = scalars.value(ACTIVATIONS["identity"] if activation.rowwise else activation, dtype)

    def finish(total: Any, memory: Any, i: int, j: int, more: Any) -> None:
        if keep_z:
            memory[at(z + i * m + j)] = total
        memory[at(out + i * (m + 1) + j)] = value(total)

    product = _product(dtype, shim.device(finish))

    def run(memory: Any, me: int, rows: int, numbers: Any) -> None:
        product(memory, me, (rows, m, k + 1), (x, k + 1, 1), (w, width, 1), numbers)
        cuda.syncthreads()

    return shim.device(run)


def _backward(storage: Storage, layer: int) -> Step:
    """The delta of the layer below, d w^T f'."""
    spec = storage.spec
    (k, m), dtype = spec.layers[layer], spec.dtype
    d, w, out, s = (
        storage.deltas[layer],
        storage.layers[layer],
        storage.deltas[layer - 1],
        storage.sums[layer - 1],
    )
    width, below = storage.widths[layer], spec.activations[layer - 1]
    delta, length = scalars.delta(below, dtype), k if below.slope_from == "input" else k + 1

    def finish(total: Any, memory: Any, i: int, j: int, more: Any) -> None:
        memory[at(out + i * k + j)] = delta(total, memory[at(s + i * length + j)])

    product = _product(dtype, shim.device(finish))

    def run(memory: Any, me: int, rows: int, numbers: Any) -> None:
        product(memory, me, (rows, k, m), (d, m, 1), (w, 1, width), numbers)
        cuda.syncthreads()

    return shim.device(run)


def _descend(storage: Storage, layer: int, rule: Any) -> Step:
    """The gradient of the layer's parameters, and at once the step that it causes."""
    spec = storage.spec
    (k, m), dtype, zero = spec.layers[layer], spec.dtype, spec.dtype.type(0)
    x, d, w = storage.activations[layer], storage.deltas[layer], storage.layers[layer]
    width, state, slots = storage.widths[layer], storage.state, storage.slots

    def finish(total: Any, memory: Any, i: int, j: int, numbers: Any) -> None:
        place = at(w + i * width + j)
        first = memory[place + at(state)] if slots > 0 else zero
        second = memory[place + at(2 * state)] if slots > 1 else zero
        n0, n1, n2, n3 = numbers
        changed, first, second = rule(memory[place], total, first, second, n0, n1, n2, n3)
        memory[place] = changed
        if slots > 0:
            memory[place + at(state)] = first
        if slots > 1:
            memory[place + at(2 * state)] = second

    product = _product(dtype, shim.device(finish))

    def run(memory: Any, me: int, rows: int, numbers: Any) -> None:
        product(memory, me, (k + 1, m, rows), (x, 1, k + 1), (d, m, 1), numbers)
        cuda.syncthreads()

    return shim.device(run)


def _output(storage: Storage, labels: bool) -> Callable[..., Any]:
    """f(memory, row, y, y_labels, sample, factor) -> its loss; softmax and delta on the way."""
    spec, m = storage.spec, storage.spec.sizes[-1]
    loss, activation, dtype = spec.loss, spec.activations[-1], spec.dtype
    a, d = storage.activations[-2], storage.deltas[-2]
    matched, rowwise = loss.matched == activation.name, activation.rowwise
    value, gradient = scalars.loss_value(loss, dtype), scalars.loss_gradient(loss, dtype)
    delta = scalars.first() if rowwise else scalars.delta(activation, dtype)
    maximum, exp = (scalars.functions()[name] for name in ("maximum", "exp"))
    zero, one, lowest = dtype.type(0), dtype.type(1), dtype.type(-np.inf)

    def target(y: Any, y_labels: Any, sample: int, j: int) -> Any:
        if labels:
            return one if y_labels[sample] == j else zero
        return y[sample * m + j]

    target = shim.device(target)

    def run(memory: Any, row: int, y: Any, y_labels: Any, sample: int, factor: Any) -> Any:
        start, total, mixed = a + row * (m + 1), zero, zero
        if rowwise:
            top, whole = lowest, zero
            for j in range(m):
                top = maximum(top, memory[start + j])
            for j in range(m):
                e = exp(memory[start + j] - top)
                memory[start + j] = e
                whole += e
            for j in range(m):
                memory[start + j] /= whole
        for j in range(m):
            a_j, y_j = memory[start + j], target(y, y_labels, sample, j)
            total += value(a_j, y_j)
            if rowwise and not matched:
                mixed += gradient(a_j, y_j) * a_j
        for j in range(m):
            a_j, y_j = memory[start + j], target(y, y_labels, sample, j)
            if matched:
                slope = a_j - y_j
            elif rowwise:
                slope = a_j * (gradient(a_j, y_j) - mixed)
            else:
                slope = delta(gradient(a_j, y_j), a_j)
            memory[d + row * m + j] = slope * factor
        return total

    return shim.device(run)


def _ones(storage: Storage, layer: int) -> Step:
    """What the layer's inputs end with."""
    x, k, one, threads = (
        storage.activations[layer],
        storage.spec.sizes[layer],
        storage.spec.dtype.type(1),
        THREADS,
    )

    def run(memory: Any, me: int, rows: int, numbers: Any) -> None:
        for row in range(me, rows, threads):
            memory[x + row * (k + 1) + k] = one

    return shim.device(run)


def _in_turn(steps: list[Step]) -> Step:
    """All of them, as one function: a compiled loop over functions cannot be."""
    if len(steps) == 1:
        return steps[0]
    first, rest = steps[0], _in_turn(steps[1:])

    def run(memory: Any, me: int, rows: int, numbers: Any) -> None:
        first(memory, me, rows, numbers)
        rest(memory, me, rows, numbers)

    return shim.device(run)


def _mover(storage: Storage, layer: int) -> Callable[..., None]:
    """f(memory, me, flat, slot, store): one layer's numbers of the parameters, or of a slot."""
    (k, m), width, threads = storage.spec.layers[layer], storage.widths[layer], THREADS
    outside = sum((k + 1) * m for k, m in storage.spec.layers[:layer])
    inside, state, count = storage.layers[layer], storage.state, (k + 1) * m

    def move(memory: Any, me: int, flat: Any, slot: int, store: bool) -> None:
        for e in range(me, count, threads):
            place = slot * state + inside + (e // m) * width + e % m
            if store:
                flat[outside + e] = memory[place]
            else:
                memory[place] = flat[outside + e]

    return shim.device(move)


def _all_movers(moves: list[Callable[..., None]]) -> Callable[..., None]:
    if len(moves) == 1:
        return moves[0]
    first, rest = moves[0], _all_movers(moves[1:])

    def move(memory: Any, me: int, flat: Any, slot: int, store: bool) -> None:
        first(memory, me, flat, slot, store)
        rest(memory, me, flat, slot, store)

    return shim.device(move)


@cache
def epoch(spec: Spec, rule_name: str, slots: int, numbers: int, batch: int, labels: bool) -> Kernel:
    """Kernel(order, w, v0, v1, x, y, y_labels, factors, table, losses, samples), one block.

    All steps over samples of the order, in place; factors and losses as ``rows.output_delta`` has them,
    table as ``elements.update``.
    """
    storage, dtype = Storage(spec, slots, batch), spec.dtype
    rule, count = scalars.rule(rule_name, slots, numbers, dtype), len(spec.layers)
    ones = _in_turn([_ones(storage, i) for i in range(count)])
    forward = _in_turn([_forward(storage, i) for i in range(count)])
    backward: list[Step] = []
    for i in reversed(range(count)):
        # A layer's weights serve the layer below before they change.
        backward += [_backward(storage, i)] if i else []
        backward.append(_descend(storage, i, rule))
    descend, output = _in_turn(backward), _output(storage, labels)
    move = _all_movers([_mover(storage, i) for i in range(count)])
    real, inputs, x_start = shim.element(dtype), spec.sizes[0], storage.activations[0]
    threads, width = THREADS, scalars.MOST_NUMBERS

    def kernel(
        order: Any,
        w: Any,
        v0: Any,
        v1: Any,
        x: Any,
        y: Any,
        y_labels: Any,
        factors: Any,
        table: Any,
        losses: Any,
        samples: int,
    ) -> None:
        memory = cuda.shared.array(0, real)
        me = cuda.threadIdx.x
        ones(memory, me, batch, 0)
        move(memory, me, w, 0, False)
        if slots > 0:
            move(memory, me, v0, 1, False)
        if slots > 1:
            move(memory, me, v1, 2, False)
        for step in range((samples + batch - 1) // batch):
            start = step * batch
            rows = min(batch, samples - start)
            for e in range(me, rows * inputs, threads):
                row = e // inputs
                memory[at(x_start + e + row)] = x[at(order[at(start + row)] * inputs + e - row * inputs)]
            cuda.syncthreads()
            first = step * width
            row_of_table = table[first], table[first + 1], table[first + 2], table[first + 3]
            forward(memory, me, rows, row_of_table)
            for row in range(me, rows, threads):
                place = start + row
                losses[place] = output(memory, row, y, y_labels, order[place], factors[place])
            cuda.syncthreads()
            descend(memory, me, rows, row_of_table)
        move(memory, me, w, 0, True)
        if slots > 0:
            move(memory, me, v0, 1, True)
        if slots > 1:
            move(memory, me, v1, 2, True)

    return Kernel(kernel, "I RRRRR I RRR i", dtype, threads, storage.size)
