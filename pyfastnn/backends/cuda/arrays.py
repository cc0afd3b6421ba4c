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
    knows the backend's stream. ``owner`` is the array of another library; None where the memory is our own.

    Libraries that know ``__cuda_array_interface__`` take it as their own, again without a copy.
    """

    def __init__(
        self, flat: DeviceArray, shape: tuple[int, ...], owner: object = None, *, writeable: bool = True
    ) -> None:
        self.flat, self.shape, self.owner, self.writeable = flat, tuple(shape), owner, writeable
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
    interface = getattr(value, "__cuda_array_interface__", None)
    exchangeable = hasattr(value, "__dlpack_device__") and value.__dlpack_device__()[0] in _DLPACK_CUDA
    if exchangeable and "stream" not in (interface or {}):
        # Such an interface does not say which work has to be waited for. DLPack lets our stream wait for it.
        given: Any = _Exchanged(value, stream)
    elif interface is not None:
        given = value
    else:
        return value
    array = shim.cuda.as_cuda_array(given)
    if not array.is_c_contiguous():
        raise ValueError(f"an array on the device must be C-contiguous, got strides {array.strides}")
    # JAX says by the interface alone that its arrays may not be written to.
    readonly = any(said["data"][1] for said in (interface, given.__cuda_array_interface__) if said)
    return DeviceView(array.ravel().bind(stream), array.shape, value, writeable=not readonly)


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
