"""Arrays of other libraries that lie on the device, taken without a copy.

Whatever offers ``__cuda_array_interface__`` (CuPy, PyTorch, JAX, Numba) or DLPack.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..._typing import Remote
from . import shim
from .shim import DeviceArray

_DLPACK_CUDA = (2, 13)  # kDLCUDA and kDLCUDAManaged


class DeviceView(Remote):
    """An array on the device as checks and kernels see it; ``flat`` is its memory, one-dimensional, and
    knows the backend's stream.

    Libraries that know ``__cuda_array_interface__`` take it as their own, again without a copy.
    """

    def __init__(self, flat: DeviceArray, shape: tuple[int, ...], owner: object = None) -> None:
        self.flat, self.shape, self.owner = flat, tuple(shape), owner
        self.dtype = np.dtype(flat.dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.flat.__cuda_array_interface__, "shape": self.shape, "strides": None}

    def copy_to_host(self) -> np.ndarray[Any, np.dtype[Any]]:
        """A NumPy array with the same numbers."""
        found = np.empty(self.shape, self.dtype)
        with shim.ALONE:
            shim.download(self.flat, found, self.flat.stream)
        return found

    def bounds(self) -> tuple[int, int]:
        start = shim.address(self.flat)
        return start, start + self.size * self.dtype.itemsize


def adopt(value: object, stream: Any) -> object:
    """A view of an array on the device; anything else as it is.

    Raises
    ------
    ValueError
        For an array on the device that is not C-contiguous.
    """
    if isinstance(value, (np.ndarray, DeviceView)):
        return value
    if hasattr(value, "__cuda_array_interface__"):
        return _view(shim.cuda.as_cuda_array(value), value, stream)
    if hasattr(value, "__dlpack_device__") and value.__dlpack_device__()[0] in _DLPACK_CUDA:
        return _view(shim.cuda.as_cuda_array(_Exchanged(value, stream)), value, stream)
    return value


def _view(array: Any, owner: object, stream: Any) -> DeviceView:
    if not array.is_c_contiguous():
        raise ValueError(f"an array on the device must be C-contiguous, got strides {array.strides}")
    return DeviceView(array.ravel().bind(stream), array.shape, owner)


class _Exchanged:
    """An array that knows DLPack alone, with the interface that numba-cuda takes."""

    def __init__(self, value: Any, stream: Any) -> None:
        from cuda.core.utils import StridedMemoryView

        view = StridedMemoryView.from_dlpack(value, stream_ptr=int(stream.handle))
        strides = view.strides and tuple(each * view.dtype.itemsize for each in view.strides)
        self._kept = view
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": view.shape,
            "strides": strides,
            "typestr": view.dtype.str,
            "data": (view.ptr, view.readonly),
        }
