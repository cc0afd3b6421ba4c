"""Training on a GPU, beside PyTorch and JAX on the same one: ``python benchmarks/gpu.py``, under 8 minutes.

Every workload is measured by gpu_worker.py in a process of its own, which is ended at its deadline: whatever
fails or hangs there is lost to no other workload. Results are written after each of them, into those of
earlier runs. Nothing here touches the GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pyfastnn as pf
from pyfastnn.bench import SGD, Workload, ratio
from pyfastnn.bench import WORKLOADS as EVERYWHERE

HERE = Path(__file__).parent
OURS = "pyfastnn"
_CIRESAN = (841, 2500, 2000, 1500, 1000, 500, 10)
_EPOCH = 60_000  # samples of MNIST; the rows here are whole batches of it
# A timed call takes so many steps: a fit on a GPU has some milliseconds of set-up.
_STEPS = {"lecture": 2000, "nielsen": 2000, "control": 2000, "tabular": 2000, "medium": 400, "wide": 100}


def _workloads() -> Iterable[Workload]:
    for name, steps in _STEPS.items():
        each = EVERYWHERE[name]
        yield replace(each, epochs=math.ceil(steps / (each.rows // each.batch)))
    for batch in (128, 1024):
        kinds = "tanh", "softmax", "cross_entropy"
        rows = _EPOCH // batch * batch
        yield Workload(f"ciresan-{batch}", _CIRESAN, *kinds, SGD(0.01), batch, rows, epochs=3)


# Those that matter most first: time may run out.
WORKLOADS: Mapping[str, Workload] = {each.name: each for each in _workloads()}
# To try this script itself, in the simulator.
TINY: Mapping[str, Workload] = {
    "narrow": Workload("narrow", (3, 4, 2), "tanh", "softmax", "cross_entropy", pf.Adam(1e-3), 2, 6)
}

Results = dict[str, dict[str, Any]]
"""By workload, what gpu_worker.py writes: facts, rates of matrix products, records, reasons of the rest."""

Command = Callable[[str, Path, float], list[str]]
"""f(workload, file for its results, seconds that it has)."""


def worker(name: str, file: Path, seconds: float) -> list[str]:
    return [sys.executable, str(HERE / "gpu_worker.py"), name, str(file), f"{seconds:.1f}"]


def finish(command: list[str], seconds: float, log: Path) -> str | None:
    """Run the command, but no longer than that, and say why it has failed; None where it has not."""
    with log.open("wb") as output:
        # A group of its own: compilers that it has started end with it.
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped at the deadline, after {seconds:.0f} seconds"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status == 0:
        return None
    said = log.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(said) if line.strip()), "which has said nothing")
    return f"the process ended with status {status}: {last}"


def measured(name: str, command: Command, seconds: float) -> dict[str, Any]:
    """What a process of that command finds out of the workload; and why no more, where it has failed."""
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "results.json", Path(folder) / "log.txt"
        reason = "out of time"
        if seconds > 0:
            reason = finish(command(name, file, seconds), seconds, log)
            print(log.read_text(errors="replace"), file=sys.stderr, end="")
        empty = {"facts": {}, "rates": {}, "records": [], "skipped": {}, "pending": ["everybody"]}
        entry = json.loads(file.read_text()) if file.exists() else empty
    pending = entry.pop("pending")
    if reason is not None:
        entry["skipped"] |= dict.fromkeys(pending or ["further rounds"], reason)
    return entry


def measure(names: list[str], command: Command, minutes: float, results: Results, folder: Path) -> None:
    """Put workloads into the results, and write them after each; all in so many minutes.

    No workload gets more than twice its share of the time that is left. One that could not be measured
    leaves what an earlier run has found.
    """
    end = time.monotonic() + 60 * minutes
    for position, name in enumerate(names):
        left = max(0.0, end - time.monotonic())
        print(f"{time.strftime('%H:%M:%S')} {name}, {left:.0f} seconds left", file=sys.stderr, flush=True)
        entry = measured(name, command, min(left, 2 * left / (len(names) - position)))
        for contender, reason in entry["skipped"].items():
            print(f"{name}, {contender}: {reason}", file=sys.stderr, flush=True)
        if entry["records"] or name not in results:
            results[name] = entry
        write(results, folder)


def write(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / "results.json.new"
    new.write_text(json.dumps(results, indent=1) + "\n")
    new.replace(folder / "results.json")
    (folder / "report.md").write_text(report(results))


def report(results: Results) -> str:
    """The results as Markdown."""
    lines = ["# Training on a GPU", "", "float32; a ratio is the median of the rounds.", ""]
    lines += [
        "| workload | contender | us a step | x as long as pyfastnn | share of the matrix rate | rounds |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    epochs, rates, fits, skipped, facts = [], [], [], [], []
    for name, entry in results.items():
        ours = next((each["seconds a step"] for each in entry["records"] if each["contender"] == OURS), None)
        fastest = max((rate for each in entry["rates"].values() for rate in each), default=math.nan)
        for each in entry["records"]:
            steps = each["seconds a step"]
            who = f"{each['contender']} ({each['variant']})"
            times = f"{ratio(ours, steps):.2f}" if ours else "?"
            share = each["operations a step"] / median(steps) / fastest
            lines += [
                f"| {name} | {who} | {median(steps) * 1e6:,.1f} | {times} | {share:.1%} | {len(steps)} |"
            ]
            if tuple(each["sizes"]) == _CIRESAN:
                seconds = median(each["seconds an epoch"]) * _EPOCH / each["rows"]
                epochs += [f"- {name}, {who}: {seconds:.3f}"]
            if "seconds of a fit of one step" in each:
                fits += [f"- {name}, {who}: {1e3 * each['seconds of a fit of one step']:.2f}"]
        for who, found in entry["rates"].items():
            rates += [f"- {name}, {who}: {', '.join(f'{rate / 1e12:.3g}' for rate in found)}"]
        skipped += [f"- {who} on {name}: {reason}" for who, reason in entry["skipped"].items()]
        facts += [f"- {name}: {'; '.join(f'{key} {text}' for key, text in entry['facts'].items())}"]
    parts = {
        f"Seconds of an epoch of {_EPOCH:,} samples, scaled from whole batches": epochs,
        "Milliseconds of a fit of one step, mostly what every timed call of pyfastnn costs beside its steps: "
        "parameters go there and back, where others keep them on the device": fits,
        "TFLOP/s of square float32 products before and after the rounds; the most is the matrix rate": rates,
        "Not measured": skipped,
        "Made with": facts,
    }
    for title, found in parts.items():
        lines += ["", f"{title}:", "", *(found or ["- nothing"])]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, metavar="NAME", help=", ".join(WORKLOADS))
    parser.add_argument("--tiny", action="store_true", help="a try of the script itself, in the simulator")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which everything ends (7.5)")
    parser.add_argument("--folder", type=Path, default=HERE / "results" / "gpu", help="of the results")
    arguments = parser.parse_args()
    file = arguments.folder / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    names = list(TINY if arguments.tiny else arguments.only or WORKLOADS)
    measure(names, worker, arguments.minutes, results, arguments.folder)
    print(report(results))
    if not any(results[name]["records"] for name in names):
        sys.exit("benchmarks: nobody could be measured; the reasons are in the report")


if __name__ == "__main__":
    main()
