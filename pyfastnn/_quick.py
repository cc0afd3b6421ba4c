"""Quick ways past Python, which the compiled core has for its shortest calls.

The kernels on arrays and a network's predictions take a microsecond or less where they are small, as long as
a frame of Python with its checks. So where there is a core, it is what is called: where the backend in use is
its own, the arguments are ready arrays of matching shapes and the names are known, it does the work; else it
calls the function as it is written, which says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, TypeVar

from .backends import context_choice, process_choice

_F = TypeVar("_F", bound=Callable[..., Any])

try:
    from ._core import follow_choice, with_quick_way
except ImportError:  # said where a backend is first used

    def quick(function: _F) -> _F:
        return function

else:
    follow_choice(context_choice, process_choice)

    def quick(function: _F) -> _F:
        """The function behind the core's quick way of that name."""
        shortcut = with_quick_way(function)
        update_wrapper(shortcut, function)
        return shortcut
