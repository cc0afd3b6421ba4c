"""The only file that imports numba.cuda: kernels, memory, streams and graphs by our own names.

Numba's simulator, chosen by NUMBA_ENABLE_CUDASIM=1 before the first import, runs the same kernels as
Python threads on the host.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache
from importlib import import_module
from threading import Lock, RLock
from typing import Any

import numpy as np

from ..._typing import Array
from . import detection

logger = logging.getLogger("pyfastnn")

cuda: Any = None
types: Any = None
_import_error: Exception | None = None
try:
    # What puts numba-cuda in the place of Numba's own numba.cuda. Python imports it by a .pth file, but
    # only where that lies in site-packages.
    with suppress(ImportError):
        import_module("_numba_cuda_redirector")
    numba = import_module("numba")
    cuda, types = import_module("numba.cuda"), numba.types
except Exception as error:  # whatever a package raises that does not suit its surroundings
    _import_error = error

SIMULATED = detection.simulated()

at: Any = types.uint64 if types and not SIMULATED else int
"""at(i): i as an index that is not negative. With others, which may count from the end, an inner loop has
several times as many instructions."""


class _SharedArrays(dict[Any, Any]):
    """The shared arrays of a simulated block: one that is missing is made by the thread that asked first.

    The simulator's threads look whether an array is there, and make it if not; two could do so at once.
    """

    def __init__(self) -> None:
        self._making = Lock()

    def get(self, place: Any, default: Any = None) -> Any:
        self._making.acquire()
        found = super().get(place, default)
        if found is not None:
            self._making.release()
        return found

    def __setitem__(self, place: Any, array: Any) -> None:
        super().__setitem__(place, array)
        self._making.release()


def _make_shared_arrays_once() -> None:
    shared = import_module("numba.cuda.simulator.kernelapi").FakeCUDAShared
    prepare = shared.__init__

    def prepared(self: Any, size: int) -> None:
        prepare(self, size)
        self._allocations = _SharedArrays()

    shared.__init__ = prepared


if SIMULATED and _import_error is None:
    _make_shared_arrays_once()

ALONE = RLock()
"""Held by the thread that uses the device. All threads share a stream, and what one puts there while
another records a graph would become part of that graph."""

DeviceArray = Any
"""An array in the memory of the device, as numba-cuda has it."""


def element(dtype: np.dtype[Any]) -> Any:
    """The compiler's name of a dtype."""
    return getattr(types, dtype.name)


def device(function: Callable[..., Any]) -> Any:
    """A function that kernels can call."""
    # Simulated kernels call Python functions as they are.
    return function if SIMULATED else cuda.jit(device=True)(function)


_LETTERS: dict[str, Callable[[Any], Any]] = {
    "R": lambda real: real[::1],  # an array of the network's dtype, flat
    "I": lambda real: types.int64[::1],
    "i": lambda real: types.int64,
}


class Kernel:
    """A kernel with its types and its threads a block; compiled at its first use.

    Parameters
    ----------
    function : callable
    letters : str
        A letter an argument: R, I for flat arrays of reals and of int64, i for an int64.
    dtype : dtype
        Of the reals.
    threads : int
        Of a block.
    shared : int
        Bytes of shared memory of a block, beside what the kernel itself declares.
    """

    def __init__(
        self,
        function: Callable[..., None],
        letters: str,
        dtype: np.dtype[Any],
        threads: int,
        shared: int = 0,
    ) -> None:
        self.function, self.threads, self.shared = function, threads, shared
        self._letters, self._dtype = letters.replace(" ", ""), dtype
        self._compiled: Any = None
        self._launchers: dict[Any, Any] = {}

    @property
    def signature(self) -> tuple[Any, ...]:
        return tuple(_LETTERS[letter](element(self._dtype)) for letter in self._letters)

    @property
    def options(self) -> dict[str, Any]:
        """Of the compiler. Without the threads it might give each more registers than a block has for it."""
        # Optimizing again while linking, numba-cuda's default, changes nothing here and takes twice as long.
        return {"launch_bounds": self.threads, "lto": False}

    def _compile(self) -> Any:
        if SIMULATED:
            return cuda.jit(self.function)
        compiled = cuda.jit(self.function, **self.options)
        kernel = compiled.compile(self.signature)
        if self.shared > _SHARED_WITHOUT_ASKING:
            _allow_shared(kernel, self.shared)
        return compiled

    def launch(self, blocks: int | tuple[int, int], stream: Any, *arguments: Any) -> None:
        """Start it; an empty grid is none."""
        if not np.prod(blocks):
            return
        if self._compiled is None:
            self._compiled = self._compile()
        launcher = self._launchers.get((blocks, stream))
        if launcher is None:
            with warnings.catch_warnings():  # that few blocks leave much of the GPU idle
                warnings.simplefilter("ignore")
                launcher = self._compiled[blocks, self.threads, stream, self.shared]
            if not SIMULATED:  # there, it is the kernel itself
                self._launchers[blocks, stream] = launcher
        # Simulated threads have NumPy's floating-point warnings, and not the caller's errstate.
        with warnings.catch_warnings() if SIMULATED else nullcontext():
            if SIMULATED:
                warnings.simplefilter("ignore")
            launcher(*arguments)


_SHARED_WITHOUT_ASKING = 48 << 10  # bytes a block has on every device
_SIMULATED_SHARED = 96 << 10


def _allow_shared(kernel: Any, size: int) -> None:
    """Let a block have more shared memory than it has by default."""
    from cuda.bindings import driver

    function = kernel._codelibrary.get_cufunc()  # numba-cuda has no public way
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _check(driver.cuKernelSetAttribute(attribute, size, function.handle, function.device.id))


def _check(results: tuple[Any, ...]) -> Any:
    error, *values = results
    if int(error):
        raise RuntimeError(f"the CUDA driver says {error!r}")
    return values[0] if values else None


def failure() -> str | None:
    """What keeps CUDA from working, to be said after "has no"; None where it works.

    Makes the context of the process on its device, which nothing else would prove to be usable.
    """
    if _import_error is not None:
        return f"working numba-cuda ({_in_a_line(_import_error)})"
    if cuda.implementation != "NVIDIA":
        return f"numba-cuda in the place of numba.cuda, which is Numba's own ({cuda.__file__})"
    try:
        cuda.current_context()
    except Exception as error:  # of Numba, its bindings or the driver: each has kinds of its own
        return f"GPU that works ({_in_a_line(error)})"
    return None


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


@cache
def shared_limit() -> int:
    """Bytes of shared memory that a block may ask for."""
    if SIMULATED:
        return _SIMULATED_SHARED
    return cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN


def describe_device() -> str:
    """The device's name and compute capability."""
    if SIMULATED:
        return "simulator"
    current = cuda.get_current_device()
    name = current.name.decode() if isinstance(current.name, bytes) else current.name
    return f"{name}, compute capability {'.'.join(map(str, current.compute_capability))}"


def new_stream() -> Any:
    """A stream of our own; it still waits for work on the legacy default stream, as CuPy and PyTorch use."""
    return cuda.stream()


def upload(array: Array, stream: Any) -> DeviceArray:
    """A flat copy of a contiguous array on the device."""
    if not array.size:
        return empty(0, array.dtype, stream)
    return cuda.to_device(array.reshape(-1), stream=stream).bind(stream)  # the simulator forgets it


def refill(target: DeviceArray, array: Array | DeviceArray, stream: Any) -> None:
    """Copy host to device, or on the device, into memory that is there."""
    if array.size:
        target.copy_to_device(array.reshape(-1), stream=stream)


def download(source: DeviceArray, target: Array, stream: Any) -> None:
    """Copy device to host, and wait for it; target is contiguous."""
    if target.size:
        source.copy_to_host(target.reshape(-1), stream=stream)
        stream.synchronize()


def empty(count: int, dtype: np.dtype[Any], stream: Any) -> DeviceArray:
    """Uninitialised memory, a number at least: none at all has no address."""
    return cuda.device_array(max(count, 1), dtype, stream=stream)


def address(array: DeviceArray) -> int:
    """Of its first byte."""
    interface = array._ary.__array_interface__ if SIMULATED else array.__cuda_array_interface__
    return interface["data"][0]


class Graph:
    """Launches recorded once and started together, which costs the host one call.

    Where they cannot be recorded they are made one by one, and the log says why.

    Parameters
    ----------
    record : callable
        Makes the launches, on ``stream``; all its kernels have been compiled before.
    stream : stream
    """

    def __init__(self, record: Callable[[], None], stream: Any) -> None:
        self._stream, self._record = stream, record
        self._executable = None if SIMULATED else self._recorded()

    def _recorded(self) -> Any:
        try:
            return self._capture()
        except Exception as error:  # of the driver, of Numba or of cuBLAS: each has kinds of its own
            logger.warning("launches are made one by one, since no graph could be recorded: %s", error)
            return None

    def _capture(self) -> Any:
        from cuda.bindings import driver

        handle = int(self._stream.handle)
        # Relaxed: freeing memory elsewhere in the process must not spoil the recording.
        _check(driver.cuStreamBeginCapture(handle, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED))
        try:
            self._record()
        except BaseException:
            driver.cuStreamEndCapture(handle)  # else the stream could not be used again
            raise
        graph = _check(driver.cuStreamEndCapture(handle))
        try:
            return _check(driver.cuGraphInstantiate(graph, 0))
        finally:
            _check(driver.cuGraphDestroy(graph))

    def launch(self) -> None:
        if self._executable is None:
            self._record()
            return
        from cuda.bindings import driver

        _check(driver.cuGraphLaunch(self._executable, int(self._stream.handle)))

    def close(self) -> None:
        """Give its memory back."""
        executable, self._executable = self._executable, None
        if executable is not None:
            from cuda.bindings import driver

            _check(driver.cuGraphExecDestroy(executable))
