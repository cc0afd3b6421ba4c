"""Running Python in a process of its own, for what happens once a process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path


def run_python(code: str, *, timeout: float = 60, **environment: str) -> str:
    """What the code prints, in a process with these settings of pyfastnn and no others."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYFASTNN_", "OMP_"))
    }
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        # A folder without a package that would be imported in place of the installed one.
        cwd=Path(__file__).parent,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout
