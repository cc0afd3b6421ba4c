"""The CUDA backend: kernels written in Python, compiled by numba-cuda for the GPU of this machine.

Importing this package imports nothing of CUDA; that happens at the first use of a kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..plan import BackendUnavailableError
from . import detection

if TYPE_CHECKING:
    from .backend import CudaBackend


def load() -> CudaBackend:
    reason = detection.missing()
    if reason is None:
        from . import shim

        reason = shim.failure()
    if reason is not None:
        raise BackendUnavailableError(f"backend 'cuda' has no {reason}")
    from .backend import CudaBackend

    return CudaBackend()
