"""A contender in a process of its own: ``worker.py NAME THREADS``. Answers requests, a JSON line each.

Started by arena.py, with an environment that limits the threads of every library before it is imported.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from cases import NETWORKS, PERCENTILES
from kernels import Shape, flat, prepared
from peers import entries, predictor
from threadpoolctl import threadpool_info

import pyfastnn as pf
from pyfastnn.bench import WORKLOADS, Contender, few_steps, prepare, time_calls

_PIECES = 64  # inputs of batch 1 to go round
_PR_SET_PDEATHSIG = 1
_LEAST = 20_000  # nanoseconds of what is timed at once: reading the clock takes some 50


class Worker:
    """What a request may ask for: the public methods."""

    def __init__(self, name: str, threads: int) -> None:
        self._name, self._entry, self._threads = name, entries()[name], threads
        self._open: dict[str, Contender] = {}
        self._predictors: dict[str, Any] = {}
        self._latest: tuple[tuple[str, int] | None, list[np.ndarray]] = None, []
        pf.set_num_threads(threads)

    def open(self, case: str) -> dict[str, str]:
        """Get ready for a workload; says by which variant, and with which loss."""
        if case not in self._open:
            workload = (WORKLOADS | NETWORKS)[case]
            self._open[case] = prepare(self._entry.kind, workload, self._threads, self._entry.variants)
        contender = self._open[case]
        return {"variant": contender.variant, "loss": contender.workload.loss}

    def steps(self, case: str, path: str) -> None:
        """Write the parameters after a few steps."""
        np.save(path, few_steps(self._open[case]))

    def train(self, case: str, seconds: float) -> list[float]:
        """Seconds of whole calls."""
        return time_calls(self._open[case], seconds)

    def predict(self, case: str, rows: int, path: str) -> None:
        """Write the outputs at the first rows of the data."""
        contender = self._opened_for_prediction(case)
        np.save(path, self._predictors[case](contender.workload.data[0][:rows]))

    def infer(self, case: str, batch: int, seconds: float) -> list[float]:
        """Seconds of a prediction of a batch, array to array: the median, then percentiles.

        For the median those of batch 1 are timed in series, for the percentiles one by one, so that each of
        these includes a reading of the clock.
        """
        self._opened_for_prediction(case)
        predict, clock = self._predictors[case], time.perf_counter_ns
        pieces = self._pieces(case, batch)
        for piece in pieces:
            predict(piece)
        series, each = [], []
        until = clock() + 1e9 * seconds
        while not series or clock() < until:
            begin = clock()
            for piece in pieces:
                predict(piece)
            series.append((clock() - begin) / 1e9 / len(pieces))
            for piece in pieces if batch == 1 else ():
                begin = clock()
                predict(piece)
                each.append((clock() - begin) / 1e9)
        return [median(series), *np.percentile(each or series, PERCENTILES).tolist()]

    def _pieces(self, case: str, batch: int) -> list[np.ndarray]:
        """Batches to go round; those of the latest request are kept."""
        if self._latest[0] != (case, batch):
            x = WORKLOADS[case].data[0]
            count = _PIECES if batch == 1 else 1
            self._latest = (case, batch), np.split(np.resize(x, (count * batch, x.shape[1])), count)
        return self._latest[1]

    def compute(self, kernel: str, shape: Shape, dtype: str, path: str) -> None:
        """Write the results of a kernel, flat."""
        with prepared(self._name, kernel, tuple(shape), dtype) as call:
            np.save(path, flat(call()))

    def kernel(self, kernel: str, shape: Shape, dtype: str, seconds: float) -> list[float]:
        """The median of the seconds of calls of a kernel."""
        with prepared(self._name, kernel, tuple(shape), dtype) as call:
            # This also warms up; twice, as something may have held up one of them.
            count = 1
            while min(_nanoseconds(call, count) for _ in range(2)) < _LEAST:
                count *= 2
            times = []
            until = time.perf_counter_ns() + 1e9 * seconds
            while not times or time.perf_counter_ns() < until:
                times.append(_nanoseconds(call, count) / count / 1e9)
        return [median(times)]

    def libraries(self) -> list[str]:
        """The thread pools that are loaded, as threadpoolctl sees them."""
        found = []
        for pool in threadpool_info():
            layer = pool.get("threading_layer")
            name = pool["internal_api"] + (f" {pool['version']}" if pool["version"] else "")
            found.append(f"{name}{f' ({layer})' if layer else ''}, {pool['num_threads']} threads")
        return sorted(set(found))

    def _opened_for_prediction(self, case: str) -> Contender:
        if case not in self._predictors:
            self.open(case)
            self._open[case].start(WORKLOADS[case].start)
            self._predictors[case] = predictor(self._open[case])
        return self._open[case]


def _nanoseconds(call: Callable[[], object], count: int) -> int:
    begin = time.perf_counter_ns()
    for _ in range(count):
        call()
    return time.perf_counter_ns() - begin


def main() -> None:
    """Answer until the input ends."""
    if sys.platform == "linux":
        # A stopped process could not notice that its parent has gone: the system shall end it then.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Libraries may print: their output goes to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, threads = sys.argv[1:]
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            worker = worker or Worker(name, int(threads))
            answer = {"answer": getattr(worker, request.pop("ask"))(**request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
