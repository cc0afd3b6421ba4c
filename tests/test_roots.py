"""The square root of the widest vectors has the bits of the processor's own, which the others take."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
from conftest import COMPILED
from test_build import COMPILER, X86_FLAGS

SOURCE = Path(__file__).with_name("roots.cpp")
ON_X86 = platform.machine() in ("x86_64", "AMD64")


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.skipif(
    not any(backend.isa == "avx2" or not ON_X86 for backend in COMPILED),
    reason="needs a processor with fused multiply-adds, and the compiled core, which says so",
)
def test_roots_made_of_multiply_adds_are_rounded_to_nearest(tmp_path):
    program = tmp_path / "roots"
    flags = X86_FLAGS["avx2"][1] if ON_X86 else []
    options = ["-std=c++17", "-O2", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", *flags]
    options += ["-DVECTOR_BYTES=64", "-I", SOURCE.parents[1] / "csrc"]
    subprocess.run([COMPILER, *options, SOURCE, "-o", program], check=True)
    differences = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert differences == ""
