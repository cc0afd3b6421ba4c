"""Where there is no GPU: the tests of the CUDA backend in Numba's simulator, in processes of their own.

The simulator must be chosen before numba.cuda is imported, and runs one kernel at a time.
"""

from __future__ import annotations

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
