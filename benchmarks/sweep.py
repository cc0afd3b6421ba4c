"""The kernels on a grid of shapes, and training of many networks: finds the shapes that a short list misses.

Writes sweep.md, with a picture. ``make sweep`` calls it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import charts
import machine
import numpy as np
from arena import children
from cases import GRID, KERNELS, NETWORKS, SWEPT_BATCHES, name_of
from peers import entries
from report import losses, ratio_text, seconds_text, table
from run import Run, Settings, say, set_up
from summary import Results
from threadpoolctl import threadpool_limits

import pyfastnn as pf

SETTINGS = Settings(1, 3, 0.05, 0, 0.02, ("float32",), 0, slow_ones=False, peers_on_one_thread=True)
# Of kernels and of training, ours first.
CONTENDERS = ("cpp", "NumPy by hand", "PyTorch"), ("cpp", "NumPy by hand", "PyTorch", "JAX")


@contextmanager
def started(contenders: Sequence[str], counts: Sequence[int]) -> Iterator[Run]:
    """A run of those that are installed; at its end, says what was left out."""
    names = [name for name in contenders if entries()[name].installed]
    pairs = [(name, threads) for threads in counts for name in names]
    with tempfile.TemporaryDirectory() as folder, children(pairs) as processes:
        run = Run(SETTINGS, processes, Path(folder))
        yield run
    for who, why in run.skipped.items():
        say(f"left out: {', '.join(who)}: {why}")


def measure(counts: Sequence[int]) -> Results:
    """Every kernel and shape with every number of threads, every network with the largest."""
    of_kernels, of_training = CONTENDERS
    with started(of_kernels, counts) as kernels:
        for threads in counts:
            for kernel in KERNELS:
                say(f"{threads} threads: {kernel}")
                for shape in GRID:
                    kernels.kernel(kernel, shape, "float32", threads)
    with started(of_training, counts[-1:]) as training:
        for workload in NETWORKS.values():
            say(f"{counts[-1]} threads: {workload.name}")
            training.training(workload, counts[-1])
    return Results(
        {
            "facts": machine.facts(),
            "threads": counts,
            "contenders": of_training,
            "limits": {},
            "records": kernels.records() + training.records(),
        }
    )


def summary(results: Results, family: str, threads: int) -> Iterator[str]:
    """How often the others are faster or slower, and by how much."""
    ours, *others = results.contenders(family, threads)
    wins = f"{ours} is faster", "the other is"
    header = ["times as long", "cases", *wins, "5th percentile", "median", "95th percentile"]
    rows = []
    for name in others:
        found = [results.ratio(family, case, threads, name) for case in results.cases(family, threads)]
        ratios = [ratio for ratio in found if ratio]
        firm = [ratio.value > 1 for ratio in ratios if not ratio.noisy]
        spread = np.percentile([ratio.value for ratio in ratios], [5, 50, 95])
        counts = len(ratios), sum(firm), len(firm) - sum(firm)
        rows.append([name, *map(str, counts), *(f"{value:.2f}" for value in spread)])
    yield from table(header, rows)
    yield ""


def networks(results: Results, threads: int) -> Iterator[str]:
    """Our microseconds for a step, and the smallest of the ratios."""
    ours, *others = results.contenders("training", threads)

    def field(case: str) -> str:
        ratios = {name: results.ratio("training", case, threads, name) for name in others}
        found = [(ratio.value, name) for name, ratio in ratios.items() if ratio]
        if not found:
            return ""
        seconds, (_, name) = results.records["training", case, threads, ours].seconds, min(found)
        return f"{seconds_text(seconds)} us; {name} {ratio_text(ratios[name])}"

    rows = (
        ["-".join(map(str, sizes)), *(field(name_of(sizes, batch)) for batch in SWEPT_BATCHES)]
        for sizes in dict.fromkeys(workload.sizes for workload in NETWORKS.values())
    )
    yield from table(["network", *(f"batch {batch}" for batch in SWEPT_BATCHES)], rows)
    yield ""


def sections(results: Results, name: str) -> Iterator[str]:
    yield f"# Sweep: {name}"
    yield ""
    yield (
        "Kernels on a grid of shapes, batch x inputs x outputs, and training of networks, all in float32. "
        "A ratio says how many times as long the other takes as pyfastnn's "
        f"{results.ours} backend, in the same run: above 1 pyfastnn is faster. "
        "Who is faster is counted where that is not noise. How it is measured: [the method](../../README.md)."
    )
    yield ""
    yield "![sweep](sweep.png)"
    yield ""
    for threads in reversed(results.counts):
        yield f"## Kernels, {threads} threads"
        yield ""
        yield from summary(results, "kernels", threads)
    threads = results.counts[-1]
    yield f"## Training, {threads} threads"
    yield ""
    yield (
        "Networks with tanh and squared error, or with 10 outputs relu and cross-entropy; Adam, shuffled. "
        "Counts as above; then, for each network and batch, how long a step takes and how many times as long "
        "the fastest of the others."
    )
    yield ""
    yield from summary(results, "training", threads)
    yield from networks(results, threads)
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
