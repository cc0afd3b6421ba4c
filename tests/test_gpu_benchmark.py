"""The benchmark on a GPU, as far as that goes without one: everybody else is skipped with a reason."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PEERS = {"PyTorch eager": "torch", "PyTorch compiled, CUDA graph": "torch", "JAX jit scan": "jax"}

pytestmark = pytest.mark.skipif(
    find_spec("numba_cuda") is None, reason="without numba-cuda, whose simulator it needs"
)


@pytest.fixture
def gpu(monkeypatch):
    """The script, whose workers will find the simulator and no GPU."""
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_it_runs(gpu, tmp_path):
    finished = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu.py", "--tiny", "--folder", tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    found = json.loads((tmp_path / "results.json").read_text())["narrow"]
    records = {each["contender"]: each for each in found["records"]}
    assert set(records) == {"pyfastnn", "pyfastnn, host arrays"}
    assert all(each["error"] <= each["bound"] for each in records.values())
    assert len(found["rates"]["pyfastnn"]) == 2
    assert "NVIDIA_TF32_OVERRIDE" in found["facts"]
    # In the simulator nobody else has a device.
    assert {*PEERS, "matrix products of torch.mm"} == set(found["skipped"])
    assert all(found["skipped"].values())
    report = (tmp_path / "report.md").read_text()
    assert "| narrow | pyfastnn (cuda) |" in report
    assert "- JAX jit scan on narrow: " in report


def test_without_anything_it_ends_with_reasons(gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    finished = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu.py", "--only", "control", "--folder", tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 1
    assert finished.stderr.endswith("nobody could be measured; the reasons are in the report\n")
    found = json.loads((tmp_path / "results.json").read_text())["control"]
    assert found["records"] == []
    assert "backend 'cuda' has no " in found["skipped"]["pyfastnn"]
    assert set(PEERS) < set(found["skipped"])


def test_a_process_that_fails_costs_its_own_workload_alone(gpu, tmp_path, capsys):
    """One that dies at once, one that hangs, one that dies after it has measured, and a good one."""

    def command(name: str, file: Path, seconds: float) -> list[str]:
        worker = gpu.worker("narrow", file, 60)
        return {
            "dies": python("import sys; sys.exit('illegal memory access')"),
            "hangs": python("import time; time.sleep(60)"),
            "measures and dies": python(f"import os, subprocess; subprocess.run({worker}); os.abort()"),
            "good": worker,
        }[name]

    results: dict = {}
    for name, minutes in (("dies", 1), ("hangs", 0.02), ("measures and dies", 1), ("good", 1)):
        gpu.measure([name], command, minutes, results, tmp_path)
        assert json.loads((tmp_path / "results.json").read_text()) == results
    assert list(results) == ["dies", "hangs", "measures and dies", "good"]
    assert results["dies"]["skipped"] == {
        "everybody": "the process ended with status 1: illegal memory access"
    }
    assert results["hangs"]["skipped"] == {"everybody": "stopped at the deadline, after 1 seconds"}
    assert results["measures and dies"]["skipped"]["further rounds"].startswith(
        "the process ended with status -6: "
    )
    for name in ("measures and dies", "good"):
        assert [each["contender"] for each in results[name]["records"]] == [
            "pyfastnn",
            "pyfastnn, host arrays",
        ]
    # A later run that finds nothing takes nothing away.
    before = json.dumps(results["good"])
    gpu.measure(["good"], lambda *_: python("raise MemoryError"), 1, results, tmp_path)
    assert json.dumps(results["good"]) == before
    assert "good, everybody: the process ended with status 1: MemoryError" in capsys.readouterr().err


def test_the_deadline_is_everybodys(gpu, tmp_path):
    """Also of what a process has started; who has no time left is not started."""
    started = tmp_path / "started"
    grandchild = python("import time; time.sleep(60)")
    code = f"import subprocess; open({str(started)!r}, 'a').write('x'); subprocess.run({grandchild})"
    results: dict = {}
    begin = time.monotonic()
    gpu.measure(list("abcd"), lambda *_: python(code), 2 / 60, results, tmp_path)
    assert time.monotonic() - begin < 4
    assert len(started.read_text()) <= 3
    reasons = [entry["skipped"]["everybody"] for entry in results.values()]
    assert reasons[-1] == "out of time"
    assert all(reason.startswith("stopped at the deadline") for reason in reasons[:-1])


def test_what_matters_most_comes_first(gpu):
    assert [*gpu.WORKLOADS] == (
        ["lecture", "nielsen", "control", "tabular", "medium", "wide", "ciresan-128", "ciresan-1024"]
    )
    assert all(each.rows % each.batch == 0 for each in gpu.WORKLOADS.values())


def test_unknown_workloads_are_refused(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "nothing"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "ciresan-1024" in capsys.readouterr().err
