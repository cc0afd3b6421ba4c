"""The formulas of activations, losses and optimizers, for compilers of Python.

They are written once, with NumPy's ufuncs, for arrays. A compiler needs the same text with other
words: functions of its own under the name ``np``, in a formula and in the helpers that it calls.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

Formula = Callable[..., Any]


def respelled(formula: Formula, numpy: object) -> Formula:
    """The formula, and its helpers, with another module for ``np``.

    Parameters
    ----------
    formula : function
        Of module level, or a lambda there: without a closure.
    numpy : object
        What the name ``np`` shall mean in it.
    """
    assert isinstance(formula, FunctionType)
    assert not formula.__closure__
    scope = {"np": numpy}
    for name in formula.__code__.co_names:
        value = formula.__globals__.get(name)
        if isinstance(value, FunctionType):
            scope[name] = respelled(value, numpy)
        elif value is not None and name != "np":
            scope[name] = value
    return FunctionType(formula.__code__, scope, formula.__name__)
