"""The kernels on a grid of shapes, beside NumPy and PyTorch: finds the shapes that a short list misses.

Writes sweep.md, with a picture. ``make sweep`` calls it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import charts
import machine
import numpy as np
from arena import children
from cases import GRID, KERNELS
from peers import entries
from report import losses, table
from run import Run, Settings, say, set_up
from summary import Results
from threadpoolctl import threadpool_limits

import pyfastnn as pf

SETTINGS = Settings(1, 3, 0, 0, 0.02, ("float32",), 0, slow_ones=False, peers_on_one_thread=True)
CONTENDERS = ("cpp", "NumPy by hand", "PyTorch")


def measure(counts: Sequence[int]) -> Results:
    """Every kernel and shape, with every number of threads."""
    names = [name for name in CONTENDERS if entries()[name].installed]
    pairs = [(name, threads) for threads in counts for name in names]
    with tempfile.TemporaryDirectory() as folder, children(pairs) as processes:
        run = Run(SETTINGS, processes, Path(folder))
        for threads in counts:
            for kernel in KERNELS:
                say(f"{threads} threads: {kernel}")
                for shape in GRID:
                    run.kernel(kernel, shape, "float32", threads)
    for who, why in run.skipped.items():
        say(f"left out: {', '.join(who)}: {why}")
    return Results(
        {
            "facts": machine.facts(),
            "threads": counts,
            "contenders": names,
            "limits": {},
            "records": run.records(),
        }
    )


def summary(results: Results, threads: int) -> Iterator[str]:
    """How often the others are faster or slower, and by how much."""
    ours, *others = results.contenders("kernels", threads)
    wins = f"{ours} is faster", "the other is"
    header = ["times as long", "cases", *wins, "5th percentile", "median", "95th percentile"]
    rows = []
    for name in others:
        found = [results.ratio("kernels", case, threads, name) for case in results.cases("kernels", threads)]
        ratios = [ratio for ratio in found if ratio]
        firm = [ratio.value > 1 for ratio in ratios if not ratio.noisy]
        spread = np.percentile([ratio.value for ratio in ratios], [5, 50, 95])
        counts = len(ratios), sum(firm), len(firm) - sum(firm)
        rows.append([name, *map(str, counts), *(f"{value:.2f}" for value in spread)])
    yield from table(header, rows)
    yield ""


def sections(results: Results, name: str) -> Iterator[str]:
    yield f"# Sweep: {name}"
    yield ""
    yield (
        "Kernels on a grid of shapes, batch x inputs x outputs, float32. A ratio says how many times as long "
        f"the other takes as pyfastnn's {results.ours} backend, in the same run: above 1 pyfastnn is faster. "
        "Who is faster is counted where that is not noise. How it is measured: [the method](../../README.md)."
    )
    yield ""
    yield "![sweep](sweep.png)"
    yield ""
    for threads in reversed(results.counts):
        yield f"## {threads} threads"
        yield ""
        yield from summary(results, threads)
    yield f"## Where {results.ours} loses"
    yield ""
    yield from losses(results)
    yield "## The machine"
    yield ""
    yield from table(["", ""], ([key, str(value)] for key, value in results.raw["facts"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="full", help="folder of benchmarks/results to write")
    arguments, _ = set_up(parser)
    folder = Path(__file__).parent / "results" / arguments.name
    folder.mkdir(parents=True, exist_ok=True)
    with threadpool_limits(1, user_api="blas"):
        results = measure(sorted({1, pf.get_num_threads()}))
    charts.save(charts.sweep, results, folder)
    (folder / "sweep.md").write_text("\n".join(sections(results, folder.name)) + "\n")
    say(str(folder / "sweep.md"))


if __name__ == "__main__":
    main()
