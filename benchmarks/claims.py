"""What the tables of ``make bench`` do not show: threads, neighbours, dtypes, start-up, one whole experiment.

Figures are ratios of medians from interleaved runs. ``make claims`` writes them to results/NAME/claims.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import machine
import numpy as np

import pyfastnn as pf
from pyfastnn.bench import WORKLOADS, Workload, interleave, one_hot

WIDTHS, BATCHES = (16, 32, 64, 128, 256), (1, 8, 32, 128, 1024)
NEIGHBOURED = ("tiny", "control", "nielsen", "lecture", "tabular")
ROUNDS = 9
TWICE = ("float32", "float32")


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def medians(calls: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Of the time of each, called in turn."""
    for call in calls.values():
        call()
    timed = {name: partial(lambda call: [seconds(call)], call) for name, call in calls.items()}
    return {name: median(times) for name, times in interleave(timed, rounds).items()}


def on_threads(count: int, call: Callable[[], object]) -> Callable[[], object]:
    def limited() -> None:
        pf.set_num_threads(count)
        call()

    return limited


def training(workload: Workload, least: float = 0.05, dtypes: Sequence[str] = ("float32",)) -> list[Callable]:
    """For each dtype the same number of epochs, which take at least about `least` seconds in the first."""
    fits = []
    for dtype in dtypes:
        net, (x, y) = workload.network(dtype), workload.data
        targets = y if y.dtype.kind == "i" else y.astype(dtype)
        how = {"batch_size": workload.batch, "optimizer": workload.optimizer, "progress": False}
        fits.append(partial(net.fit, x.astype(dtype), targets, **how))
    fits[0](epochs=1)
    epochs = max(1, int(least / seconds(partial(fits[0], epochs=1))))
    return [partial(fit, epochs=epochs) for fit in fits]


def all_over_one(alone: Callable[[], object], together: Callable[[], object]) -> float:
    """Time with all threads over time with one; of two networks, since each adapts to its threads.

    More than 5 % is measured again, three times as long: among fifty shapes, noise alone exceeds that in one.
    """
    calls = {"one": on_threads(1, alone), "all": on_threads(0, together)}
    for rounds in (ROUNDS, 3 * ROUNDS):
        times = medians(calls, rounds)
        ratio = times["all"] / times["one"]
        if ratio <= 1.05:
            break
    pf.set_num_threads(0)
    return ratio


def cliff() -> Iterator[tuple[str, str]]:
    """Small networks must not suffer from threads."""
    ratios = {}
    for width in WIDTHS:
        for batch in BATCHES:
            shape = f"{width}-{width}-{width}, batch {batch:,}"
            sizes = (width, width, width)
            workload = Workload(shape, sizes, "relu", "identity", "mse", pf.Adam(), batch, 8 * batch)
            ratios[f"training {shape}"] = all_over_one(*training(workload, 0.01, TWICE))
            predict = partial(workload.network().predict, workload.data[0][:batch])
            calls = max(1, int(0.01 / seconds(predict)))
            several = partial(repeat, predict, calls)
            ratios[f"predicting {shape}"] = all_over_one(several, several)
    for name in sorted(ratios, key=ratios.__getitem__)[-3:]:
        yield f"all threads over one, {name}", f"{ratios[name]:.2f}"
    slower = sum(ratio > 1.05 for ratio in ratios.values())
    yield f"of {len(ratios)} shapes, more than 5 % slower with all threads", str(slower)


@contextmanager
def busy_neighbour() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def neighbours() -> Iterator[tuple[str, str]]:
    """A process that keeps one processor busy; and the next call of NumPy."""
    with busy_neighbour():
        for name in NEIGHBOURED:
            ratio = all_over_one(*training(WORKLOADS[name], 0.3, TWICE))
            yield f"all threads over one beside a busy process, {name}", f"{ratio:.2f}"
    (fit,), square = training(WORKLOADS["tabular"]), np.ones((512, 512), np.float32)
    alone, after = [], []
    square @ square
    for _ in range(3 * ROUNDS):
        alone.append(seconds(lambda: square @ square))
        fit()
        after.append(seconds(lambda: square @ square))
        time.sleep(0.05)
    yield (
        "NumPy's product of 512 x 512 right after a fit, over without",
        f"{median(after) / median(alone):.2f}",
    )


def dtypes() -> Iterator[tuple[str, str]]:
    """On one thread."""
    pf.set_num_threads(1)
    for name, workload in WORKLOADS.items():
        narrow, wide = training(workload, dtypes=("float32", "float64"))
        times = medians({"float32": narrow, "float64": wide}, 5)
        yield f"float64 over float32, one thread, {name}", f"{times['float64'] / times['float32']:.2f}"
    pf.set_num_threads(0)


def start_up() -> Iterator[tuple[str, str]]:
    code = (
        "import time, numpy; start = time.perf_counter(); import pyfastnn; print(time.perf_counter() - start)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(15)]
    yield "import pyfastnn after numpy, ms", f"{1000 * median(float(run.stdout) for run in runs):.0f}"


class BySample:
    """784-30-10 as chapter 1 of Nielsen (2015) trains it: sample by sample, in column vectors, float64."""

    def __init__(self, rng: np.random.Generator) -> None:
        sizes = (784, 30, 10)
        self.biases = [rng.normal(size=(size, 1)) for size in sizes[1:]]
        self.weights = [rng.normal(size=size) for size in zip(sizes[1:], sizes[:-1], strict=True)]

    def step(self, batch: Iterable[tuple[np.ndarray, np.ndarray]], rate: float, count: int) -> None:
        sums_b = [np.zeros_like(b) for b in self.biases]
        sums_w = [np.zeros_like(w) for w in self.weights]
        for x, y in batch:
            for total, part in zip([*sums_b, *sums_w], self.gradient(x, y), strict=True):
                total += part
        for own, total in zip([*self.biases, *self.weights], [*sums_b, *sums_w], strict=True):
            own -= rate / count * total

    def gradient(self, x: np.ndarray, y: np.ndarray) -> Sequence[np.ndarray]:
        a = [x]
        for w, b in zip(self.weights, self.biases, strict=True):
            a.append(1 / (1 + np.exp(-(w @ a[-1] + b))))
        delta = (a[2] - y) * a[2] * (1 - a[2])
        below = (self.weights[1].T @ delta) * a[1] * (1 - a[1])
        return below, delta, below @ a[0].T, delta @ a[1].T


def experiment() -> Iterator[tuple[str, str]]:
    """Thirty epochs of 50,000 samples of MNIST's shape in batches of 10, and the text's program."""
    rng, rows, epochs, batch = np.random.default_rng(0), 50_000, 30, 10
    x, y = rng.random((rows, 784), np.float32), one_hot(rng.integers(0, 10, rows), 10)
    net = pf.MLP([784, 30, 10], "sigmoid", "sigmoid", loss="quadratic", seed=0)
    fit = partial(net.fit, x, y, epochs=epochs, batch_size=batch, optimizer=pf.SGD(3.0), progress=False)
    ours = median(seconds(fit) for _ in range(3))
    program, some = BySample(rng), 1000
    columns = [(x[i, :, None].astype(np.float64), y[i, :, None].astype(np.float64)) for i in range(some)]

    def epoch_of_some() -> None:
        for first in range(0, some, batch):
            program.step(columns[first : first + batch], 3.0, batch)

    theirs = median(seconds(epoch_of_some) for _ in range(5)) * epochs * rows / some
    yield "784-30-10, 30 epochs of 50,000 samples, s", f"{ours:.2f}"
    yield f"the text's program sample by sample (from {some:,} samples), s", f"{theirs:.0f}"
    yield "times as long", f"{theirs / ours:.0f}"


SECTIONS = (cliff, neighbours, dtypes, start_up, experiment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="full", help="folder of the results")
    folder = Path(__file__).parent / "results" / parser.parse_args().name
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# Claims: {folder.name}", ""]
    lines += [f"- {name}: {value}" for name, value in machine.facts().items()]
    lines += ["", "| figure | |", "|---|---:|"]
    for section in SECTIONS:
        for name, value in section():
            print(f"{name}: {value}", flush=True)
            lines.append(f"| {name} | {value} |")
    (folder / "claims.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
