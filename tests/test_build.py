"""What the build promises: no shared symbols between instruction sets, and a small extension."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import COMPILED

SOURCE = Path(__file__).parents[1] / "csrc" / "isa.cpp"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
X86_FLAGS = {
    "baseline": ("16", []),
    "avx2": ("32", ["-mavx2", "-mfma"]),
    "avx512": ("64", ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]),
}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="compiles for x86-64")
@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("name", X86_FLAGS)
def test_an_instruction_set_exports_its_two_tables_and_nothing_else(tmp_path, name):
    """A weak symbol could end up in the link as its AVX-512 copy, and kill older processors.

    Compiled without optimisation, which would hide functions that happen to be inlined.
    """
    vector_bytes, flags = X86_FLAGS[name]
    target = tmp_path / "isa.o"
    defines = [f"-DVECTOR_BYTES={vector_bytes}", f"-DISA_NAME={name}"]
    options = ["-std=c++17", "-O0", "-fPIC", "-fno-exceptions", "-Wno-psabi", *flags, *defines]
    subprocess.run([COMPILER, *options, "-c", SOURCE, "-o", target], check=True)
    listing = subprocess.run(
        ["nm", "--defined-only", "--extern-only", target], capture_output=True, check=True
    )
    symbols = sorted(line.split()[-1] for line in listing.stdout.decode().splitlines())
    assert [symbol[-len(f"{name}_f32E") :] for symbol in symbols] == [f"{name}_f32E", f"{name}_f64E"]


@pytest.mark.skipif(not COMPILED, reason="needs the compiled core")
def test_the_extension_is_small():
    from pyfastnn import _core

    assert Path(_core.__file__).stat().st_size < 3_000_000
