"""All benchmarks: measures, writes results.json, and makes the report of it. ``make bench`` calls it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import kernels
import limits
import machine
import numpy as np
import report
from arena import Child, ContenderError, children, only_avx2
from cases import BATCHES, DTYPES, INFERENCE, KERNELS, QUIET, SHAPES
from peers import entries
from threadpoolctl import threadpool_limits

import pyfastnn as pf
from pyfastnn.backends.cpp import CppBackend
from pyfastnn.bench import WORKLOADS, Workload, deviation, interleave

HERE = Path(__file__).parent

Call = Callable[[], list[float]]


@dataclass(frozen=True)
class Settings:
    """How much is measured. A visit goes through everything; its rounds ask all contenders in turn."""

    visits: int
    rounds: int
    training: float  # seconds of a contender in a round
    inference: float
    kernels: float
    kernel_dtypes: tuple[str, ...]
    largest_batch: int  # of predictions
    slow_ones: bool  # contenders that take longer to set up than to measure
    peers_on_one_thread: bool


FULL = Settings(3, 3, 0.2, 0.05, 0.03, DTYPES, 65_536, slow_ones=True, peers_on_one_thread=True)
QUICK = Settings(2, 3, 0.05, 0.03, 0.015, ("float32",), 1024, slow_ones=False, peers_on_one_thread=False)


class Run:
    """One run of everything; ``results`` is what results.json will hold."""

    def __init__(self, settings: Settings, processes: dict[tuple[str, int], Child], folder: Path) -> None:
        self.settings, self._children, self._file = settings, processes, folder / "array.npy"
        self._able = {
            "training": {name for name, entry in entries().items() if entry.trains},
            "inference": set(entries()),
            "kernels": set(kernels.LIBRARIES),
        }
        self._records: dict[tuple[str, str, int, str], dict[str, Any]] = {}
        self.skipped: dict[tuple[str, str], str] = {}

    def records(self) -> list[dict[str, Any]]:
        return [record for record in self._records.values() if record["visits"]]

    def training(self, workload: Workload, threads: int) -> None:
        """One visit to a workload."""
        case, check = workload.name, partial(self._check_training, workload)
        taking_part = self._verified("training", case, threads, check)
        quiet: dict[str, list[float]] = {name: [] for name in taking_part}

        def call(name: str, child: Child) -> list[float]:
            answer = self._ask(child, case, "train", {"case": case, "seconds": self.settings.training})
            quiet[name].append(float(np.percentile(answer, QUIET)) / workload.steps)
            return answer

        calls = {name: partial(call, name, child) for name, child in taking_part.items()}
        for record, seconds in self._timed("training", case, threads, calls):
            record["visits"].append([each / workload.steps for each in seconds])
            record["quiet"] += quiet[record["contender"]]

    def inference(self, workload: Workload, batch: int, threads: int) -> None:
        """One visit to a network and a batch size."""
        case = f"{workload.name}, batch {batch}"
        taking_part = self._verified("inference", case, threads, partial(self._check_inference, workload))
        percentiles: dict[str, list[list[float]]] = {name: [] for name in taking_part}

        def call(name: str, child: Child) -> list[float]:
            request = {"case": workload.name, "batch": batch, "seconds": self.settings.inference}
            typical, *answer = self._ask(child, case, "infer", request)
            percentiles[name].append(answer)
            return [typical]

        calls = {name: partial(call, name, child) for name, child in taking_part.items()}
        for record, seconds in self._timed("inference", case, threads, calls):
            record["visits"].append(seconds)
            record["percentiles"] += percentiles[record["contender"]]

    def kernel(self, kernel: str, shape: kernels.Shape, dtype: str, threads: int) -> None:
        """One visit to a kernel, a shape and a dtype."""
        case = f"{kernel} {'x'.join(map(str, shape))} {dtype}"
        kind = {"kernel": kernel, "shape": shape, "dtype": dtype}
        request, check = {**kind, "seconds": self.settings.kernels}, partial(self._check_kernel, kind)
        calls = {
            name: partial(self._ask, child, case, "kernel", request)
            for name, child in self._verified("kernels", case, threads, check).items()
        }
        for record, seconds in self._timed("kernels", case, threads, calls, dtype):
            record["visits"].append(seconds)

    def _timed(
        self, family: str, case: str, threads: int, calls: dict[str, Call], dtype: str = "float32"
    ) -> Iterator[tuple[dict[str, Any], list[float]]]:
        """The records of those who went through all rounds, and the seconds of each.

        The speed of a processor drifts, so its peak is measured in every round too.
        """
        peak = "peak"
        timed = interleave(calls | {peak: partial(limits.operations, dtype, threads)}, self.settings.rounds)
        peaks = timed.pop(peak)
        for name, seconds in timed.items():
            if np.isfinite(seconds).all():
                record = self._records[family, case, threads, name]
                record["peaks"].append(peaks)
                yield record, seconds

    def _record(self, family: str, case: str, threads: int, contender: str, **more: Any) -> dict[str, Any]:
        about = {"family": family, "case": case, "threads": threads, "contender": contender}
        return self._records.setdefault(
            (family, case, threads, contender),
            {**about, **more, "visits": [], "peaks": [], "percentiles": [], "quiet": []},
        )

    def _verified(
        self, family: str, case: str, threads: int, check: Callable[[Child], dict[str, Any]]
    ) -> dict[str, Child]:
        """Those who can do the case and give the right results, checked at the first visit."""
        found = {}
        for (name, count), child in self._children.items():
            if count != threads or name not in self._able[family] or (name, case) in self.skipped:
                continue
            try:
                if (family, case, threads, name) not in self._records:
                    self._record(family, case, threads, name, **check(child))
                found[name] = child
            except ContenderError as error:
                self.skipped[name, case] = str(error)
        return found

    def _check_training(self, workload: Workload, child: Child) -> dict[str, Any]:
        opened = child.ask("open", case=workload.name)
        child.ask("steps", case=workload.name, path=str(self._file))
        error, bound = deviation(replace(workload, loss=opened["loss"]), np.load(self._file))
        return self._judged(error, bound) | opened

    def _check_inference(self, workload: Workload, child: Child) -> dict[str, Any]:
        rows = 1024
        child.ask("predict", case=workload.name, rows=rows, path=str(self._file))
        x, network = workload.data[0][:rows].astype(np.float64), workload.network("float64")
        for w, b, given in zip(network.weights, network.biases, workload.start, strict=True):
            w[...], b[...] = given
        with pf.use_backend("numpy"):
            exact = network.predict(x)
        error = float(np.linalg.norm(np.load(self._file) - exact) / np.linalg.norm(exact))
        # As in pyfastnn.bench.deviation: a sum of k products errs by some k u of its size.
        return self._judged(error, sum(workload.sizes) * float(np.finfo(np.float32).eps) / 2)

    def _check_kernel(self, kind: dict[str, Any], child: Child) -> dict[str, Any]:
        child.ask("compute", **kind, path=str(self._file))
        return kind | self._judged(kernels.deviation(**kind, results=np.load(self._file)), 1)

    @staticmethod
    def _judged(error: float, bound: float) -> dict[str, Any]:
        if not error <= bound:
            raise ContenderError(f"wrong result: off by {error:.1e}, bound {bound:.1e}")
        return {"error": error, "bound": bound}

    def _ask(self, child: Child, case: str, what: str, request: dict[str, Any]) -> list[float]:
        try:
            return child.ask(what, **request)
        except ContenderError as error:
            self.skipped[child.name, case] = str(error)
            return [float("nan")]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def measure(settings: Settings, counts: list[int], limited: Mapping[str, str]) -> dict[str, Any]:
    """Every family, visit after visit; `limited` keeps libraries from AVX-512."""
    facts, found = machine.facts(), entries()
    left_out = {name: "not installed" for name, entry in found.items() if not entry.installed}
    if not settings.slow_ones:
        why = "left out of a quick run: takes longer to set up than to measure"
        left_out |= {name: why for name, entry in found.items() if entry.slow}
    if limited and "ONNX Runtime" in found:
        left_out["ONNX Runtime"] = "left out: cannot be kept from AVX-512"
    names = [name for name in found if name not in left_out]
    measured: dict[int, list[Any]] = {threads: [] for threads in counts}
    pairs = [
        (name, threads)
        for threads in counts
        for name in names
        if settings.peers_on_one_thread or threads == counts[-1] or name == pf.get_backend().name
    ]
    with tempfile.TemporaryDirectory() as folder, children(pairs) as processes:
        run = Run(settings, processes, Path(folder))
        run.skipped |= {(name, "all"): why for name, why in left_out.items()}
        for visit in range(1, settings.visits + 1):
            for threads in counts:
                now = f"visit {visit} of {settings.visits}, {threads} threads"
                for workload in WORKLOADS.values():
                    say(f"{now}: training {workload.name}")
                    measured[threads].append(limits.measure(threads))
                    run.training(workload, threads)
                for workload in INFERENCE:
                    say(f"{now}: predicting {workload.name}")
                    for batch in BATCHES:
                        if batch <= settings.largest_batch:
                            run.inference(workload, batch, threads)
                for kernel in KERNELS:
                    say(f"{now}: {kernel}")
                    for shape, dtype in product(SHAPES, settings.kernel_dtypes):
                        run.kernel(kernel, shape, dtype, threads)
        runtimes = {}
        for (name, threads), child in processes.items():
            if threads == counts[-1]:
                try:
                    runtimes[name] = "; ".join(child.ask("libraries"))
                except ContenderError as error:
                    runtimes[name] = str(error)
    facts |= {"load after": machine.load()}
    if limited:
        facts["limited by"] = ", ".join(f"{name}={value}" for name, value in limited.items())
    return {
        "facts": facts,
        "settings": vars(settings),
        "threads": counts,
        "contenders": names,
        "runtimes": runtimes,
        "limits": {threads: limits.best(each) for threads, each in measured.items()},
        "records": run.records(),
        "skipped": [[*who, why] for who, why in run.skipped.items()],
    }


def set_up(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Mapping[str, str]]:
    """The arguments, and what keeps libraries from AVX-512; the compiled core is in use now."""
    parser.add_argument("--avx2", action="store_true", help="as on a machine without AVX-512")
    arguments = parser.parse_args()
    limited = only_avx2() if arguments.avx2 else {}
    os.environ.update(limited)
    status = pf.backends()["cpp"]
    if status != "available":
        sys.exit(f"benchmarks: nothing to compare, since {status}")
    pf.set_backend(CppBackend())  # imports have loaded one, maybe of another instruction set
    return arguments, limited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about 5 minutes, fewer cases")
    parser.add_argument("--name", help="folder of benchmarks/results to write; default: full or quick")
    arguments, limited = set_up(parser)
    settings = QUICK if arguments.quick else FULL
    folder = HERE / "results" / (arguments.name or ("quick" if arguments.quick else "full"))
    begin = time.perf_counter()
    counts = sorted({1, pf.get_num_threads()})
    # This process checks results with NumPy: threads of its own would spin on, beside the first to be timed.
    with threadpool_limits(1, user_api="blas"):
        results = measure(settings, counts, limited)
    results["facts"]["duration"] = f"{(time.perf_counter() - begin) / 60:.1f} minutes"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    report.write(folder)


if __name__ == "__main__":
    main()
