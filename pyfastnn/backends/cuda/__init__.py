"""The CUDA backend: kernels written in Python, compiled by numba-cuda for the GPU of this machine.

Importing this package imports nothing of CUDA; that happens when it is chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..plan import BackendUnavailableError
from . import detection

if TYPE_CHECKING:
    from .backend import CudaBackend


def missing() -> str | None:
    reason = detection.missing()
    return reason and f"backend 'cuda' has no {reason}"


def load() -> CudaBackend:
    reason = missing()
    if reason is not None:
        raise BackendUnavailableError(reason)
    from . import shim

    failure = shim.failure()
    if failure is not None:
        raise BackendUnavailableError(f"backend 'cuda' has no {failure}")
    from .backend import CudaBackend

    return CudaBackend()
