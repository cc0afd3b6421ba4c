"""What CUDA lacks here, found out without importing any of its packages.

Takes less than a millisecond where there is no GPU: ``pf.backends()`` asks. With one, the driver's library is
loaded; how long that takes has not been measured.
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
INSTALL_12 = "pip install 'pyfastnn[cuda12]'"  # for drivers of CUDA 12

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
    return None if simulated() else _missing_device() or _missing_driver()


def _missing_device() -> str | None:
    """What the system shows of a GPU; asked first, since a driver's library takes longer to load."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",")[0].strip() in ("", "-1"):
        return f"GPU (CUDA_VISIBLE_DEVICES is {visible!r})"
    if sys.platform == "linux" and not any(
        (_DEVICES / name).exists() for name in ("nvidiactl", "dxg", "nvhost-ctrl-gpu", "nvgpu")
    ):
        return f"GPU, or no driver that shows it (no device of NVIDIA's in {_DEVICES})"
    return None


def _missing_driver() -> str | None:
    """Asks the driver its version; not cuInit, which takes long."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return f"NVIDIA driver ({_LIBRARY} is not there)"
    said, oldest = ctypes.c_int(), oldest_driver()
    if driver.cuDriverGetVersion(ctypes.byref(said)) or said.value < oldest:
        needed, found = (f"{each // 1000}.{each % 1000 // 10}" for each in (oldest, said.value))
        remedy = f"; {INSTALL_12} installs what suits it" if said.value >= 12_000 else ""
        return f"driver for CUDA {needed} or newer (this one is for CUDA {found}{remedy})"
    return None
