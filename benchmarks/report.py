"""report.md and the pictures, from results.json: ``report.py FOLDER`` makes them anew."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import charts
from summary import Ratio, Record, Results

from pyfastnn.bench import WORKLOADS


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Markdown, the first column to the left."""
    columns = list(header)
    yield f"| {' | '.join(columns)} |"
    yield f"|---|{'---:|' * (len(columns) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def seconds_text(seconds: float, unit: float = 1e-6) -> str:
    """Three digits of microseconds, or of another unit."""
    value = seconds / unit
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio_text(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    text = f"{ratio.value:.2f}" if ratio.value < 10 else f"{ratio.value:.0f}"
    return f"~{text}" if ratio.noisy else f"**{text}**" if ratio.value < 1 else text


def title(case: str) -> str:
    """A case, with the network where it names one."""
    name, comma, rest = case.partition(", ")
    if name not in WORKLOADS:
        return case
    workload = WORKLOADS[name]
    sizes = "-".join(map(str, workload.sizes))
    return f"{name} {sizes}{comma}{rest}" if comma else f"{name} {sizes}, batch {workload.batch:,}"


def ratios(results: Results, family: str, threads: int, cases: list[str]) -> Iterator[str]:
    """Ratios to ours, for a family and a number of threads."""
    ours, *others = results.contenders(family, threads)
    if others:
        yield from table(
            [f"times as long as {ours}", *others],
            (
                [title(case), *(ratio_text(results.ratio(family, case, threads, name)) for name in others)]
                for case in cases
            ),
        )
        yield ""


def times(results: Results, family: str, threads: int, cases: list[str]) -> Iterator[str]:
    """Microseconds with quartiles, and the share of the roofline."""
    names = results.contenders(family, threads)

    def cell(record: Record | None) -> str:
        if record is None:
            return ""
        low, high = map(seconds_text, record.quartiles)
        return f"{seconds_text(record.seconds)} ({low}-{high}), {results.share(record):.0%}"

    yield from table(
        ["us, share of the limit", *names],
        (
            [title(case), *(cell(results.records.get((family, case, threads, name))) for name in names)]
            for case in cases
        ),
    )
    yield ""


def quiet_times(results: Results, threads: int, cases: list[str]) -> Iterator[str]:
    """Ratios, our microseconds and our share of the roofline in everybody's quietest round."""
    ours = results.ours
    others = [name for name in results.contenders("training", threads) if name != ours]

    def cells(case: str) -> Iterator[str]:
        yield title(case)
        own = results.records.get(("training", case, threads, ours))
        yield f"{seconds_text(own.quiet)}, {results.quiet_share(own):.0%}" if own else ""
        for name in others:
            other = results.records.get(("training", case, threads, name))
            quotient = other.quiet / own.quiet if own and other else None
            yield ratio_text(Ratio(quotient, quotient, quotient, noisy=False) if quotient else None)

    header = [f"in the quietest round: us, share of the limit of {ours}; times as long", ours, *others]
    yield from table(header, map(cells, cases))
    yield ""


def latencies(results: Results, threads: int, cases: list[str]) -> Iterator[str]:
    """Percentiles at batch 1."""
    names = results.contenders("inference", threads)

    def cell(record: Record | None) -> str:
        return " / ".join(map(seconds_text, record.percentiles)) if record else ""

    yield from table(
        ["us, 50th / 90th / 99th percentile", *names],
        (
            [title(case), *(cell(results.records.get(("inference", case, threads, name))) for name in names)]
            for case in cases
        ),
    )
    yield ""


def losses(results: Results) -> Iterator[str]:
    """Every case in which somebody else is faster, beyond noise."""
    found = []
    for family, case, threads, name in results.records:
        ratio = results.ratio(family, case, threads, name)
        if name != results.ours and ratio and ratio.value < 1 and not ratio.noisy:
            found.append((ratio.value, family, case, threads, name))
    if not found:
        yield "In no case that is not noise."
    for value, family, case, threads, name in sorted(found):
        yield f"- {family}, {title(case)}, {threads} threads: {name} takes {value:.2f} times as long"
    yield ""


def limits(results: Results) -> Iterator[str]:
    """The measured limits."""
    first = results.limits[results.counts[0]]
    yield from table(
        [
            "threads",
            *(f"{dtype}, GFLOP/s" for dtype in first["operations"]),
            *(f"{level}, GB/s" for level in first["bytes"]),
        ],
        (
            [
                str(threads),
                *(
                    f"{value / 1e9:,.0f}"
                    for kind in ("operations", "bytes")
                    for value in limit[kind].values()
                ),
            ]
            for threads, limit in results.limits.items()
        ),
    )
    yield ""


def sections(results: Results, name: str, pictures: list[str]) -> Iterator[str]:
    """The report, line by line."""
    ours = results.ours
    yield f"# Benchmarks: {name}"
    yield ""
    yield (
        f"A ratio says how many times as long the other takes as pyfastnn's {ours} backend, in the same run: "
        "above 1 pyfastnn is faster, below 1 (**bold**) the other. A ~ marks noise: the next run may find "
        "another ratio. Times are medians, with the quartiles in brackets; after them the share of the "
        "roofline. How it is measured: [the method](../../README.md)."
    )
    yield ""
    for picture in pictures:
        yield f"![{picture}]({picture}.png)"
        yield ""
    for threads in reversed(results.counts):
        yield f"## Training, {threads} threads"
        yield ""
        yield "A step, shuffling and optimizer included; float32."
        yield ""
        cases = results.cases("training", threads)
        yield from ratios(results, "training", threads, cases)
        yield from times(results, "training", threads, cases)
        if all(
            record.about.get("quiet") for record in results.records.values() if record.family == "training"
        ):
            yield from quiet_times(results, threads, cases)
    for threads in reversed(results.counts):
        yield f"## Prediction, {threads} threads"
        yield ""
        cases = results.cases("inference", threads)
        yield from ratios(results, "inference", threads, cases)
        yield from times(results, "inference", threads, cases)
        yield "Calls of batch 1, timed one by one:"
        yield ""
        yield from latencies(results, threads, [case for case in cases if case.endswith("batch 1")])
    for threads in reversed(results.counts):
        cases = results.cases("kernels", threads)
        if cases:
            yield f"## Kernels, {threads} threads"
            yield ""
            yield from ratios(results, "kernels", threads, cases)
            yield from times(results, "kernels", threads, cases)
    yield f"## Where {ours} loses"
    yield ""
    yield from losses(results)
    yield "## Limits of this machine, measured"
    yield ""
    yield from limits(results)
    yield "## The machine"
    yield ""
    yield from table(["", ""], ([key, str(value)] for key, value in results.raw["facts"].items()))
    yield ""
    yield f"Thread pools, {results.counts[-1]} threads:"
    yield ""
    yield from table(["contender", "pools"], results.raw["runtimes"].items())
    yield ""
    yield f"Settings: {', '.join(f'{key} {value}' for key, value in results.raw['settings'].items())}."
    yield ""
    if results.raw["skipped"]:
        yield "Left out:"
        yield ""
        yield from (f"- {contender}, {case}: {why}" for contender, case, why in results.raw["skipped"])


def write(folder: Path) -> None:
    """report.md and the pictures."""
    results = Results.read(folder)
    pictures = charts.write(results, folder)
    (folder / "report.md").write_text("\n".join(sections(results, folder.name, pictures)) + "\n")
    print(f"{folder / 'report.md'}", file=sys.stderr)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
