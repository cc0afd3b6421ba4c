"""Whether CUDA can work here, found out without importing any of its packages.

Costs well under a millisecond where something is missing: ``pf.backends()`` asks each time a process
starts to use pyfastnn.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "numba_cuda"
INSTALL = "pip install 'pyfastnn[cuda]'"

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# Where Linux shows NVIDIA's cards; elsewhere, and in the subsystem for Windows, only the driver knows.
_DEVICES = Path("/dev")


def oldest_driver() -> int:
    """The CUDA version that the installed bindings are made for, as drivers number theirs: 13.0 is 13000.

    A driver serves every minor version of its major one, and those before.
    """
    try:
        return 1000 * int(version("cuda-bindings").split(".")[0])
    except PackageNotFoundError:
        return 12_000  # what numba-cuda has supported at the least


def simulated() -> bool:
    """True where Numba's variable asks for its simulator, which needs no GPU and is very slow."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") == "1"


def missing() -> str | None:
    """What CUDA lacks here, to be said after "has no"; None where nothing is found missing."""
    if find_spec(PACKAGE) is None:
        return f"numba-cuda ({INSTALL} installs it)"
    if simulated():
        return None
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return f"NVIDIA driver ({_LIBRARY} is not there)"
    return _missing_behind(driver)


def _missing_behind(driver: ctypes.CDLL) -> str | None:
    """The same, asked of the driver; without cuInit, which takes long."""
    said, oldest = ctypes.c_int(), oldest_driver()
    if driver.cuDriverGetVersion(ctypes.byref(said)) or said.value < oldest:
        needed, found = (f"{each // 1000}.{each % 1000 // 10}" for each in (oldest, said.value))
        return f"driver for CUDA {needed} or newer (this one is for CUDA {found})"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",")[0].strip() in ("", "-1"):
        return f"GPU (CUDA_VISIBLE_DEVICES is {visible!r})"
    if sys.platform == "linux" and not any(
        (_DEVICES / name).exists() for name in ("nvidiactl", "dxg", "nvhost-ctrl-gpu", "nvgpu")
    ):
        return "GPU (the driver is there, but no device of NVIDIA's)"
    return None
