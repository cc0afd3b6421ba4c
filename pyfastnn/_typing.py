"""Type names shared by the package."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""float32 or float64 unless the docstring says otherwise."""


class Remote:
    """An array in a memory that NumPy cannot reach; contiguous. What checks ask of it, and no more."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    writeable: bool

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def copy_to_host(self) -> Array:
        """A NumPy array with the same numbers."""
        raise NotImplementedError

    def bounds(self) -> tuple[int, int]:
        """Address of its first byte, and of the one after its last."""
        raise NotImplementedError
