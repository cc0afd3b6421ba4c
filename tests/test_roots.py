"""The square root of the widest vectors has the bits of the processor's own, which the others take."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("roots.cpp")
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
PROCESSOR = Path("/proc/cpuinfo")


def has_fused_multiply_add() -> bool:
    if platform.machine() in ("x86_64", "AMD64"):
        return PROCESSOR.exists() and " fma " in PROCESSOR.read_text()
    return platform.machine() in ("arm64", "aarch64")


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.skipif(not has_fused_multiply_add(), reason="needs fused multiply-adds")
def test_roots_made_of_multiply_adds_are_rounded_to_nearest(tmp_path):
    flags = ["-mavx2", "-mfma"] if platform.machine() in ("x86_64", "AMD64") else []
    program = tmp_path / "roots"
    options = ["-std=c++17", "-O2", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", *flags]
    command = [
        COMPILER,
        *options,
        "-DVECTOR_BYTES=64",
        "-I",
        SOURCE.parents[1] / "csrc",
        SOURCE,
        "-o",
        program,
    ]
    subprocess.run(command, check=True)
    differences = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert differences == ""
