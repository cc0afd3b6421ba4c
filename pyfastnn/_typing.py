"""Type names shared by the package."""

from __future__ import annotations

from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""float32 or float64 unless the docstring says otherwise."""
