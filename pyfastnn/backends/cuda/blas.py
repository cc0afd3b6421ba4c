"""Large products by cuBLAS, called through ctypes: five functions of an interface that has not changed in
ten years do not need a binding of their own.

The library comes from NVIDIA's wheel, a toolkit or the system, wherever cuda-pathfinder (which numba-cuda
brings) finds it. Where there is none, our own kernels do the products.
"""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import numpy as np

from . import shim
from .shim import DeviceArray

# Bytes for cuBLAS to work in, as many as NVIDIA recommends for Hopper. Without, a recorded product
# allocates and frees memory at every replay.
_WORKSPACE = 32 << 20

# Multiply-adds from which a product goes to cuBLAS: by then the launches that it cannot fuse cost less
# than it gains. An estimate, not measured.
WORTHWHILE = 1 << 25


class Gemm(Protocol):
    """out = A B in row-major order, on flat arrays."""

    def __call__(
        self,
        shape: tuple[int, int, int],
        a: DeviceArray,
        b: DeviceArray,
        out: DeviceArray,
        *,
        a_transposed: bool,
        b_transposed: bool,
    ) -> None:
        """Shape (rows, columns, depth); a transposed side is stored (depth, rows) or (columns, depth)."""


class Cublas:
    """A handle of the library, for one stream. Arithmetic in the arrays' own dtype, never TF32.

    Raises
    ------
    OSError, RuntimeError
        Where there is no such library, or it does not start.
    """

    def __init__(self, stream: Any) -> None:
        self._library = _load()
        self._handle = ctypes.c_void_p()
        self._check(self._library.cublasCreate_v2(ctypes.byref(self._handle)))
        # In this order: a new stream takes the workspace away.
        self._check(self._library.cublasSetStream_v2(self._handle, ctypes.c_void_p(int(stream.handle))))
        self._workspace = shim.empty(_WORKSPACE, np.dtype(np.uint8), stream)
        place, size = ctypes.c_void_p(shim.address(self._workspace)), ctypes.c_size_t(_WORKSPACE)
        self._check(self._library.cublasSetWorkspace_v2(self._handle, place, size))

    def __call__(
        self,
        shape: tuple[int, int, int],
        a: DeviceArray,
        b: DeviceArray,
        out: DeviceArray,
        *,
        a_transposed: bool,
        b_transposed: bool,
    ) -> None:
        rows, columns, depth = shape
        real, gemm = {
            "float32": (ctypes.c_float, self._library.cublasSgemm_v2),
            "float64": (ctypes.c_double, self._library.cublasDgemm_v2),
        }[np.dtype(out.dtype).name]
        # cuBLAS counts by columns: it sees every matrix transposed, and computes out^T = B^T A^T.
        one, zero = real(1), real(0)
        status = gemm(
            self._handle,
            int(b_transposed),
            int(a_transposed),
            columns,
            rows,
            depth,
            ctypes.byref(one),
            ctypes.c_void_p(shim.address(b)),
            depth if b_transposed else columns,
            ctypes.c_void_p(shim.address(a)),
            rows if a_transposed else depth,
            ctypes.byref(zero),
            ctypes.c_void_p(shim.address(out)),
            columns,
        )
        self._check(status)

    @staticmethod
    def _check(status: int) -> None:
        if status:
            raise RuntimeError(f"cuBLAS failed with status {status}")


def _load() -> ctypes.CDLL:
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    except (ImportError, RuntimeError) as error:  # its own error for a missing library is the latter
        raise OSError(f"no cuBLAS: {error}") from error


def find(stream: Any) -> Gemm | None:
    """cuBLAS on that stream, where it works."""
    if shim.SIMULATED:
        return None
    try:
        return Cublas(stream)
    except (OSError, RuntimeError) as error:
        shim.logger.warning("large matrix products are left to kernels of our own: %s", error)
        return None
