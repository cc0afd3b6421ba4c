"""Whether CUDA is there: said fast, with the reason, without importing anything of it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run_python

import pyfastnn as pf
from pyfastnn.backends.cuda import detection

TIMED = """
import sys, time
import pyfastnn as pf
from pyfastnn.backends.cuda import detection
begin = time.perf_counter()
reason = detection.missing()
taken = time.perf_counter() - begin
detection.missing = lambda: None
assert pf.backends()["cuda"] == "available"
imported = any(name.split(".")[0] in ("numba_cuda", "cuda", "cupy") for name in sys.modules)
print(taken, imported, reason is None)
"""


def test_detection_is_fast_and_imports_nothing():
    """The first call of a process; of several processes, since others are at work here."""
    taken, imported, found = zip(
        *(run_python(TIMED, NUMBA_ENABLE_CUDASIM="0").split() for _ in range(5)), strict=True
    )
    assert set(imported) == {"False"}
    assert found[0] == "True" or min(map(float, taken)) < 1e-3


def test_the_package_imports_nothing_of_cuda():
    code = """
    import sys
    import pyfastnn as pf
    pf.MLP([2, 1]); pf.get_backend()
    print(any(name.split(".")[0] in ("numba", "numba_cuda", "cuda") for name in sys.modules))
    """
    assert run_python(code).split() == ["False"]


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(detection, "PACKAGE", "no_such_package")
    assert detection.missing() == "numba-cuda (pip install 'pyfastnn[cuda]' installs it)"


def test_the_driver_must_suit_the_bindings(monkeypatch):
    monkeypatch.setattr(detection, "version", lambda package: "12.9.4")
    assert detection.oldest_driver() == 12_000
    monkeypatch.setattr(detection, "version", lambda package: {"cuda-bindings": "13.5.0"}[package])
    assert detection.oldest_driver() == 13_000


needs_package = pytest.mark.skipif(
    detection.find_spec(detection.PACKAGE) is None, reason="without numba-cuda"
)


@needs_package
def test_without_a_driver(tmp_path, monkeypatch):
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(detection, "_DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    monkeypatch.setattr(detection, "_LIBRARY", "libnothing.so.1")
    assert detection.missing() == "NVIDIA driver (libnothing.so.1 is not there)"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a driver that says it is for CUDA 13.0; its only function asks the environment."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("without a C compiler")
    source = """
    #include <stdlib.h>
    int cuDriverGetVersion(int *version) {
        const char *said = getenv("FAKE_DRIVER");
        *version = atoi(said);
        return *version < 0;
    }
    """
    library = tmp_path / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", library]
    subprocess.run(command, input=source.encode(), check=True)
    monkeypatch.setattr(detection, "_LIBRARY", str(library))
    monkeypatch.setattr(detection, "_DEVICES", tmp_path)
    monkeypatch.setattr(detection, "version", lambda package: "13.5.0")
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return str(library)


@needs_package
@pytest.mark.parametrize(
    ("version", "devices", "visible", "reason"),
    [
        (
            12_090,
            True,
            None,
            "driver for CUDA 13.0 or newer (this one is for CUDA 12.9; pip install 'pyfastnn[cuda12]' "
            "installs what suits it)",
        ),
        (11_080, True, None, "driver for CUDA 13.0 or newer (this one is for CUDA 11.8)"),
        (13_000, False, None, "GPU, or no driver that shows it (no device of NVIDIA's in {devices})"),
        (13_000, True, "", "GPU (CUDA_VISIBLE_DEVICES is '')"),
        (13_000, True, "-1", "GPU (CUDA_VISIBLE_DEVICES is '-1')"),
        (13_000, True, "0,1", None),
        (13_000, True, None, None),
    ],
)
def test_what_the_driver_says(driver, tmp_path, monkeypatch, version, devices, visible, reason):
    libc = ctypes.CDLL(None)
    assert libc.setenv(b"FAKE_DRIVER", str(version).encode(), 1) == 0
    if devices:
        (tmp_path / "nvidiactl").touch()
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert detection.missing() == (reason and reason.format(devices=tmp_path))


STATUS = """
import pyfastnn as pf
from pyfastnn.backends.cuda import detection
detection.missing = lambda: None
print(pf.backends()["cuda"])
try:
    pf.set_backend("cuda")
    print(pf.get_backend())
except pf.BackendUnavailableError as error:
    print(error)
print(pf.backends()["cuda"])
"""


@needs_package
def test_a_numba_that_cannot_be_imported_is_named():
    code = "import sys; sys.modules['numba'] = None" + STATUS
    before, error, status = run_python(code, NUMBA_ENABLE_CUDASIM="1").splitlines()
    assert (before, status) == ("available", error)
    assert error.startswith("backend 'cuda' has no working numba-cuda (ModuleNotFoundError: ")


# As where packages lie outside of site-packages, whose .pth files alone are read.
NOT_REDIRECTED = """
import sys
del sys.modules["_numba_cuda_redirector"]
sys.meta_path = [each for each in sys.meta_path if type(each).__name__ != "NumbaCudaFinder"]
"""


@needs_package
def test_numba_cuda_is_found_wherever_it_lies():
    before, chosen, status = run_python(NOT_REDIRECTED + STATUS, NUMBA_ENABLE_CUDASIM="1").splitlines()
    assert before == status == "available"
    assert chosen == "<pyfastnn backend cuda (simulator)>"


@needs_package
@pytest.mark.skipif(detection.find_spec("numba.cuda") is None, reason="Numba has no numba.cuda of its own")
def test_numbas_own_cuda_is_not_taken():
    early = "import warnings; warnings.simplefilter('ignore'); import numba.cuda"
    _, error, status = run_python(NOT_REDIRECTED + early + STATUS, NUMBA_ENABLE_CUDASIM="1").splitlines()
    assert status == error
    assert status.startswith(
        "backend 'cuda' has no numba-cuda in the place of numba.cuda, which is Numba's own"
    )


@needs_package
def test_a_gpu_that_does_not_work_is_no_gpu():
    _, error, status = run_python(STATUS, NUMBA_ENABLE_CUDASIM="0", CUDA_VISIBLE_DEVICES="").splitlines()
    assert status == error
    assert status.startswith("backend 'cuda' has no GPU that works (CudaSupportError: ")


def test_asked_for_by_name_it_says_why():
    code = """
    import pyfastnn as pf
    print(pf.backends()["cuda"])
    try:
        pf.set_backend("cuda")
    except pf.BackendUnavailableError as error:
        print(error)
    print(pf.get_backend().name)
    """
    reason, error, name = run_python(code, NUMBA_ENABLE_CUDASIM="0", CUDA_VISIBLE_DEVICES="").splitlines()
    assert reason == error
    assert reason.startswith("backend 'cuda' has no ")
    assert name != "cuda"


@needs_package
def test_the_simulator_is_there_when_asked_for():
    code = "import pyfastnn as pf; print(pf.backends()['cuda'], pf.get_backend().name)"
    status, name = run_python(code, NUMBA_ENABLE_CUDASIM="1").split()
    assert status == "available"
    assert name != "cuda"
    assert pf.get_backend().name != "cuda"
