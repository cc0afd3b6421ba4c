"""Where there is no GPU: the tests of the CUDA backend in Numba's simulator, in processes of their own.

The simulator must be chosen before numba.cuda is imported, and runs one kernel at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import BACKENDS, CUDA_TESTS

HERE = Path(__file__).parent
FILES = {
    "own": CUDA_TESTS,
    "kernels": ["test_kernels.py", "test_bad_input.py", "test_source_texts.py"],
    "nonfinite": ["test_nonfinite.py"],
    "network": ["test_training.py", "test_callbacks.py", "test_mlp.py", "test_bad_input_network.py"],
}


needs_simulator = pytest.mark.skipif(
    find_spec("numba_cuda") is None, reason="without numba-cuda, whose simulator it needs"
)
SIMULATE = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}


@needs_simulator
@pytest.mark.skipif("cuda" in BACKENDS, reason="they run on the GPU here, or in the simulator already")
@pytest.mark.parametrize("group", FILES)
def test_in_the_simulator(group):
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(HERE / f for f in FILES[group])],
        cwd=HERE.parent,
        env=SIMULATE,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stdout[-5000:] + finished.stderr[-2000:]
    assert " passed" in finished.stdout


@needs_simulator
def test_the_benchmark_runs(tmp_path):
    """As far as that goes without a GPU: everybody else is skipped with a reason."""
    finished = subprocess.run(
        [sys.executable, HERE.parent / "benchmarks" / "gpu.py", "--tiny", "--folder", tmp_path],
        env=SIMULATE,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    measured = {(each["workload"], each["contender"]) for each in results["records"]}
    assert {("narrow", "pyfastnn"), ("narrow", "pyfastnn, host arrays")} <= measured
    assert all(each["error"] <= each["bound"] for each in results["records"])
    skipped = {each["contender"] for each in results["skipped"]}
    assert len(skipped | {name for _, name in measured}) == 5
    assert all(each["reason"] for each in results["skipped"])
    assert "| narrow | pyfastnn (cuda) |" in (tmp_path / "report.md").read_text()
