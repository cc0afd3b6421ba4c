"""Contenders in processes of their own, asked in turn; all but the one asked are stopped.

So each library has its own thread pools and its default way of waiting for work, none of them can
disturb another, and the limit of threads is set where every library looks for it: in the environment,
before it is imported.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

_HERE = Path(__file__).parent
_LONGEST = 300  # seconds for an answer
# What the libraries' thread pools ask: OpenMP, OpenBLAS, MKL, Accelerate, XLA (two names), numexpr's kin.
_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "PJRT_NPROC",
    "NPROC",
)


def only_avx2() -> dict[str, str]:
    """What keeps the libraries that can be told so from AVX-512: as on a machine without it.

    These are our compiled core, Numba, NumPy, OpenBLAS (NumPy, SciPy), PyTorch with its MKL and oneDNN, and
    XLA, whose YNNPACK cannot be told and has to stay out. ONNX Runtime cannot be told either.
    """
    found = np.show_config("dicts")["SIMD Extensions"].get("found", [])
    return {
        "PYFASTNN_ISA": "avx2",
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma",
        "NPY_DISABLE_CPU_FEATURES": " ".join(name for name in found if name.startswith(("AVX512", "X86_V4"))),
        "OPENBLAS_CORETYPE": "Haswell",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2 --xla_cpu_experimental_ynn_fusion_type=",
    }


class ContenderError(RuntimeError):
    """A contender cannot do it; the message is its reason."""


def environment(threads: int) -> dict[str, str]:
    """What limits every library to so many threads."""
    return dict.fromkeys(_VARIABLES, str(threads))


class Child:
    """A worker process, stopped unless it is answering."""

    def __init__(self, name: str, threads: int, log: Any) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, _HERE / "worker.py", name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | environment(threads),
        )
        self._requests: Any = self._process.stdin
        self._answers: Any = self._process.stdout

    def ask(self, what: str, **arguments: object) -> Any:
        """The answer; raises ContenderError with the reason where there is none."""
        self._signal(signal.SIGCONT)
        try:
            self._requests.write(json.dumps({"ask": what, **arguments}).encode() + b"\n")
            self._requests.flush()
        except BrokenPipeError:
            raise ContenderError("its process has ended") from None
        if not select.select([self._answers], [], [], _LONGEST)[0]:
            self.end()
            raise ContenderError(f"no answer within {_LONGEST} seconds")
        line = self._answers.readline()
        if not line:
            raise ContenderError(f"its process ended with status {self._process.wait()}")
        self._signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer["answer"]

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def end(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()


@contextmanager
def children(pairs: list[tuple[str, int]]) -> Iterator[dict[tuple[str, int], Child]]:
    """A child for each pair of a name and a number of threads; all end with the block."""
    started: dict[tuple[str, int], Child] = {}
    with tempfile.TemporaryFile() as log:
        try:
            for name, threads in pairs:
                started[name, threads] = Child(name, threads, log)
            yield started
        finally:
            for child in started.values():
                child.end()
