"""The formulas of activations, losses and optimizers as functions of scalars, for kernels.

They are written once, with NumPy's ufuncs, for arrays. Here a formula is called with placeholders
that note what is done to them, and the notes become the source of a straight-line function. Every
constant in it has the dtype of the network: a bare Python number would turn float32 arithmetic into
float64, which most GPUs do 32 times slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from ...activations import Activation
from ...losses import Loss
from ...optimizers import RULES
from . import shim

Function = Callable[..., Any]
MOST_SLOTS, MOST_NUMBERS = 2, 4
"""Of an optimizer: arrays that it remembers, numbers that a step takes."""


def _minimum(a: Any, b: Any) -> Any:
    return a if (a < b or a != a) else b


def _maximum(a: Any, b: Any) -> Any:
    return a if (a > b or a != a) else b


# The text of each ufunc, and the functions that those texts call. NaN passes through minimum and
# maximum as NumPy has it. The simulator takes NumPy's own: math's raise where results overflow.
_TEXTS: Mapping[str, str] = {
    "add": "{} + {}",
    "subtract": "{} - {}",
    "multiply": "{} * {}",
    "divide": "{} / {}",
    "negative": "-{}",
    "positive": "{}",
    "square": "{0} * {0}",
    "greater": "{} > {}",
    "greater_equal": "{} >= {}",
    "less": "{} < {}",
    "less_equal": "{} <= {}",
    "where": "{1} if {0} else {2}",
    "absolute": "absolute({})",
    "minimum": "minimum({}, {})",
    "maximum": "maximum({}, {})",
} | {name: f"{name}({{}})" for name in ("exp", "expm1", "log", "log1p", "sqrt", "tanh")}


@cache
def functions() -> Mapping[str, Function]:
    """What the texts call."""
    library = np if shim.SIMULATED else math
    found = {name: getattr(library, name) for name in ("exp", "expm1", "log", "log1p", "sqrt", "tanh")}
    return found | {
        "absolute": abs,
        "minimum": shim.device(_minimum),
        "maximum": shim.device(_maximum),
    }


@cache
def first() -> Function:
    """f(a, b) = a: stands in a kernel where its kind of activation has no formula."""

    def formula(a: Any, b: Any) -> Any:
        return a

    return shim.device(formula)


class _Value(NDArrayOperatorsMixin):
    """Stands for an array in a formula; ``text`` is a name in the source."""

    def __init__(self, notes: _Notes, text: str) -> None:
        self._notes, self.text = notes, text

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._notes.dtype

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        out = options.pop("out", None)
        if method != "__call__" or options:
            return NotImplemented
        result = self._notes.add(ufunc.__name__, inputs)
        if out is None:
            return result
        out[0].text = result.text  # w -= ...
        return out[0]

    def __array_function__(self, function: Function, types: Any, inputs: Any, options: Any) -> Any:
        return NotImplemented if options else self._notes.add(function.__name__, inputs)

    def __setitem__(self, everything: Any, value: _Value) -> None:
        assert everything is ...
        self.text = value.text  # v[...] = ...


class _Notes:
    """The lines and constants of a function in the making; equal lines are written once."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.scope: dict[str, Any] = dict(functions())
        self._lines: dict[str, str] = {}

    def add(self, name: str, inputs: tuple[Any, ...]) -> _Value:
        if name not in _TEXTS:
            raise NotImplementedError(f"formulas for CUDA may use {', '.join(_TEXTS)}, got {name}")
        text = _TEXTS[name].format(*map(self._operand, inputs))
        return _Value(self, self._lines.setdefault(text, f"t{len(self._lines)}"))

    def _operand(self, value: Any) -> str:
        if isinstance(value, _Value):
            return value.text
        number = self.dtype.type(value)
        name = f"c{number!r}"
        name = "".join(c if c.isalnum() else "_" for c in name)
        self.scope[name] = number
        return name

    def function(self, inputs: list[str], results: list[_Value]) -> Function:
        body = [f"    {name} = {text}\n" for text, name in self._lines.items()]
        returned = ", ".join(result.text for result in results)
        source = f"def formula({', '.join(inputs)}):\n{''.join(body)}    return {returned}\n"
        exec(compile(source, "<formula>", "exec"), self.scope)
        return shim.device(self.scope["formula"])


def _traced(formula: Function, names: str, dtype: np.dtype[Any]) -> Function:
    notes = _Notes(dtype)
    inputs = names.split()
    return notes.function(inputs, [formula(*(_Value(notes, name) for name in inputs))])


@cache
def value(activation: Activation, dtype: np.dtype[Any]) -> Function:
    """f(z)."""
    return _traced(activation.value, "z", dtype)


@cache
def delta(activation: Activation, dtype: np.dtype[Any]) -> Function:
    """f(d, s) = d f'."""
    return _traced(activation.delta, "d s", dtype)


@cache
def loss_value(loss: Loss, dtype: np.dtype[Any]) -> Function:
    """f(a, y)."""
    return _traced(loss.value, "a y", dtype)


@cache
def loss_gradient(loss: Loss, dtype: np.dtype[Any]) -> Function:
    """f(a, y)."""
    return _traced(loss.gradient, "a y", dtype)


@cache
def rule(name: str, slots: int, numbers: int, dtype: np.dtype[Any]) -> Function:
    """f(w, g, both slots, all numbers) -> (w, both slots); what a rule has not stays as it is."""
    notes = _Notes(dtype)
    values, given = (
        [_Value(notes, f"{letter}{i}") for i in range(count)]
        for letter, count in (("v", MOST_SLOTS), ("n", MOST_NUMBERS))
    )
    w = _Value(notes, "w")
    inputs = ["w", "g", *(each.text for each in (*values, *given))]
    RULES[name](w, _Value(notes, "g"), *values[:slots], *given[:numbers])
    return notes.function(inputs, [w, *values])
