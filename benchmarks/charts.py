"""The pictures of a report: ratios to the others, scaling with threads, the roofline; and of a sweep."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from summary import Ratio, Results

from pyfastnn.bench import WORKLOADS

# Okabe and Ito, Color Universal Design (2008): told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
PEER_STYLES = (
    ("#E69F00", "s"),
    ("#56B4E9", "^"),
    ("#009E73", "D"),
    ("#D55E00", "v"),
    ("#CC79A7", "P"),
    ("#000000", "X"),
    ("#F0E442", "h"),
)
# Of the roofline: what a point is, its colour, marker and size.
FAMILIES = {
    "kernels": ("a kernel", GREEN, "^", 26),
    "inference": ("prediction", ORANGE, "s", 34),
    "training": ("training", BLUE, "o", 64),
}
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "savefig.bbox": "tight",
    "savefig.dpi": 130,
}


def where(results: Results, threads: int) -> str:
    """The machine, for a subtitle."""
    facts = results.raw["facts"]
    processor = facts["processor"].split(" (")[0]
    return f"{processor}, {facts['in use'].split('(')[1].split(',')[0]}, {threads} threads, float32"


def label(case: str) -> str:
    workload = WORKLOADS[case]
    return f"{case}\n{'-'.join(map(str, workload.sizes))}, batch {workload.batch:,}"


def ratios(results: Results) -> plt.Figure | None:
    """A panel for each of the others, a bar for each workload."""
    threads = results.counts[-1]
    cases = results.cases("training", threads)
    others = [name for name in results.contenders("training", threads)[1:] if name != "numpy"]
    found = {
        (case, name): ratio
        for case in cases
        for name in others
        if (ratio := results.ratio("training", case, threads, name))
    }
    if not found:
        return None
    values = [ratio.value for ratio in found.values()]
    # Room for the numbers beyond the bars, on both sides.
    low, high = min([0.5, *(value / 4 for value in values if value < 1)]), 5 * max(values)
    figure, panels = plt.subplots(
        1, len(others), sharey=True, figsize=(2.6 * len(others) + 2, 0.62 * len(cases) + 2.2), squeeze=False
    )
    for axes, name in zip(panels[0], others, strict=True):
        for row, case in enumerate(cases):
            if (case, name) in found:
                _bar(axes, row, found[case, name])
            else:
                axes.text(1.15, row, "not done", va="center", color=GREY, fontsize=9, style="italic")
        axes.axvline(1, color="black", linewidth=1)
        axes.set(xscale="log", xlim=(low, high), title=f"than {name}")
        axes.spines["left"].set_visible(False)
        axes.title.set_fontsize(11)
        axes.title.set_fontweight("bold")
        ticks = [tick for tick in (0.1, 1, 10, 100, 1000) if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axes.minorticks_off()
        axes.grid(axis="x", color="#DDDDDD", zorder=0)
        axes.tick_params(axis="y", length=0)
    panels[0][0].set_yticks(range(len(cases)), map(label, cases))
    panels[0][0].invert_yaxis()
    _titles(
        figure,
        "How many times faster pyfastnn trains",
        f"time of a training step, the other's over pyfastnn's; {where(results, threads)}",
    )
    notes = (
        (BLUE, 1.0, "pyfastnn is faster"),
        (ORANGE, 1.0, "the other is faster"),
        (GREY, 0.35, "pale, ~: not measured reliably"),
    )
    handles = [plt.Rectangle((0, 0), 1, 1, color=color, alpha=alpha) for color, alpha, _ in notes]
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, -0.06)}
    figure.legend(handles, [text for *_, text in notes], ncol=3, frameon=False, **place)
    return figure


def _bar(axes: Axes, row: int, ratio: Ratio) -> None:
    faster = ratio.value >= 1
    color, alpha = BLUE if faster else ORANGE, 0.35 if ratio.noisy else 1
    axes.barh(row, ratio.value - 1, left=1, height=0.62, color=color, alpha=alpha, zorder=2)
    digits = f"{ratio.value:.0f}" if ratio.value >= 9.95 else f"{ratio.value:.{1 if faster else 2}f}"
    axes.annotate(
        f"{'~' if ratio.noisy else ''}{digits}x",
        (ratio.value, row),
        xytext=(4 if faster else -4, 0),
        textcoords="offset points",
        ha="left" if faster else "right",
        va="center",
        fontsize=10,
    )


def _titles(figure: plt.Figure, title: str, subtitle: str) -> None:
    figure.tight_layout()
    top = figure.subplotpars.top
    inch = 1 / figure.get_figheight()
    figure.suptitle(title, x=0.02, y=top + 0.95 * inch, ha="left", fontsize=16, fontweight="bold")
    figure.text(0.02, top + 0.47 * inch, subtitle, ha="left", fontsize=11, color=GREY)


def scaling(results: Results) -> plt.Figure | None:
    """How many times faster on all threads than on one, for everybody."""
    one, threads = results.counts[0], results.counts[-1]
    if one == threads:
        return None
    names = [
        name
        for name in results.contenders("training", threads)
        if name in results.contenders("training", one) and name != "numpy"
    ]
    cases = results.cases("training", threads)
    figure, axes = plt.subplots(figsize=(9.5, 0.62 * len(cases) + 2.2))
    styles = {name: style for name, style in zip(names[1:], PEER_STYLES, strict=False)}
    for name in reversed(names):
        points = []
        for row, case in enumerate(cases):
            pair = [results.records.get(("training", case, count, name)) for count in (one, threads)]
            if all(pair):
                points.append((pair[0].seconds / pair[1].seconds, row))
        gains, rows = (np.array(each) for each in zip(*points, strict=True))
        if name == results.ours:
            axes.barh(rows - 0.14, gains, height=0.4, color=BLUE, zorder=1, label="pyfastnn")
            for gain, row in points:
                place, color = (0, "white") if gain > 0.25 * threads else (gain, BLUE)
                text = f" {gain:.2f}x"
                axes.text(place, row - 0.13, text, va="center", color=color, fontweight="bold", fontsize=10)
        else:
            color, marker = styles[name]
            axes.scatter(
                gains, rows + 0.25, color=color, marker=marker, s=44, linewidth=0, zorder=2, label=name
            )
    for gain, text in ((1, "no gain"), (threads, f"perfect: {threads}x")):
        axes.axvline(gain, color=GREY, linewidth=1, linestyle="--", zorder=0)
        axes.text(gain, 1, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom")
    axes.set_yticks(range(len(cases)), map(label, cases))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.05 * max(threads, axes.dataLim.x1))
    axes.set_xlabel(f"speed on {threads} threads over speed on 1 (below 1: slower)")
    axes.tick_params(axis="y", length=0)
    for row in range(1, len(cases)):
        axes.axhline(row - 0.5, color="#EEEEEE", linewidth=1, zorder=0)
    handles, texts = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], texts[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    _titles(figure, f"What {threads} threads give in training", where(results, threads))
    return figure


def roofline(results: Results) -> plt.Figure:
    """Operations a second against operations per byte, under the measured limits."""
    threads = results.counts[-1]
    limits = results.limits[threads]
    peak = limits["operations"]["float32"]
    figure, axes = plt.subplots(figsize=(10.5, 6.6))
    records = [
        record
        for (_, _, count, contender), record in results.records.items()
        if (count, contender, record.dtype) == (threads, results.ours, "float32")
    ]
    points = [(r.cost.intensity, r.cost.operations / r.seconds / 1e9) for r in records]
    left, right = (factor * edge([x for x, _ in points]) for factor, edge in ((1 / 2.5, min), (1.8, max)))
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.set_ylim(min(y for _, y in points) / 2, 2 * peak / 1e9)
    axes.set_xlabel("operations per byte that must move")
    axes.set_ylabel("billions of operations a second (GFLOP/s)")
    axes.grid(which="major", color="#EEEEEE", zorder=0)
    _titles(
        figure,
        "How close pyfastnn comes to the limits of the machine",
        f"percentages: share of the speed that the lines allow a training step; {where(results, threads)}",
    )
    for level, rate in limits["bytes"].items():
        axes.plot([left, peak / rate], [left * rate / 1e9, peak / 1e9], color=GREY, linewidth=1.2, zorder=1)
        axes.annotate(
            f"{level}, {rate / 1e9:,.0f} GB/s",
            (left * 1.08, left * 1.08 * rate / 1e9),
            rotation=_slope(axes),
            rotation_mode="anchor",
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=9,
            color=GREY,
        )
    knee = peak / max(limits["bytes"].values())
    axes.plot([knee, right], [peak / 1e9] * 2, color="black", linewidth=2, zorder=1)
    text = f"as fast as this machine multiplies and adds: {peak / 1e9:,.0f} GFLOP/s"
    axes.annotate(text, (right, peak / 1e9), xytext=(0, 5), textcoords="offset points", ha="right")
    for family, (text, color, marker, size) in FAMILIES.items():
        own = [point for point, record in zip(points, records, strict=True) if record.family == family]
        if own:
            axes.scatter(
                *zip(*own, strict=True), color=color, marker=marker, s=size, linewidth=0, zorder=3, label=text
            )
    texts = [
        (*point, f"{record.case} {results.share(record):.0%}")
        for point, record in zip(points, records, strict=True)
        if record.family == "training"
    ]
    _place(axes, texts, points, peak / 1e9)
    axes.legend(loc="lower right", frameon=False)
    return figure


def _place(
    axes: Axes, texts: list[tuple[float, float, str]], points: list[tuple[float, float]], peak: float
) -> None:
    """Labels beside their points, each on the first side where it meets no label, point, edge or roof."""
    scale = axes.figure.dpi / 72
    places = axes.transData.transform([(x, y) for x, y, _ in texts])
    taken = [(px - 4, py - 4, px + 4, py + 4) for px, py in axes.transData.transform(points)]
    roof = axes.transData.transform((1, peak))[1]
    edge = axes.bbox
    taken += [(edge.x0, roof - 2, edge.x1, roof + 20 * scale), (edge.x1, edge.y0, math.inf, edge.y1)]
    sides = [(dx, dy) for dy in (0, -11, 11, -22, 22) for dx in (9, -9)]
    for (x, y, text), (px, py) in zip(texts, places, strict=True):
        width, height = 6.6 * len(text) * scale, 12 * scale
        for dx, dy in sides:
            left, bottom = px + dx * scale - (width if dx < 0 else 0), py + dy * scale - height / 2
            box = (left, bottom, left + width, bottom + height)
            if all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in taken):
                break
        taken.append(box)
        axes.annotate(
            text,
            (x, y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="right" if dx < 0 else "left",
            va="center",
            color=BLUE,
            fontweight="bold",
            fontsize=10,
            zorder=4,
        )


def _slope(axes: Axes) -> float:
    """The angle of a line of slope one, in degrees."""
    (x0, y0), (x1, y1) = axes.transData.transform([(1, 1), (10, 10)])
    return math.degrees(math.atan2(y1 - y0, x1 - x0))


def sweep(results: Results) -> plt.Figure:
    """A field for each kernel and shape, as violet as pyfastnn is faster than the fastest of the others."""
    threads = results.counts[-1]
    others = results.contenders("kernels", threads)[1:]
    found: dict[str, dict[tuple[int, ...], float]] = {}
    for case in results.cases("kernels", threads):
        about = results.records["kernels", case, threads, results.ours].about
        ratios = [results.ratio("kernels", case, threads, name) for name in others]
        values = [ratio.value for ratio in ratios if ratio]
        found.setdefault(about["kernel"], {})[tuple(about["shape"])] = min(values, default=math.nan)
    size = 15, 3.1 * len(found) + 1
    figure, panels = plt.subplots(len(found), 1, sharex=True, figsize=size, squeeze=False)
    for axes, (kernel, ratios_of) in zip(panels[:, 0], found.items(), strict=True):
        batches = sorted({n for n, _, _ in ratios_of})
        layers = sorted({(k, m) for _, k, m in ratios_of})
        values_of = np.array([[ratios_of.get((n, *layer), math.nan) for layer in layers] for n in batches])
        axes.imshow(np.log2(values_of), cmap="PuOr", vmin=-2, vmax=2, aspect="auto")
        for (row, column), value in np.ndenumerate(values_of):
            if not math.isnan(value):
                text = f"{value:.1f}" if value < 10 else f"{value:.0f}"
                weight = "bold" if value < 0.95 else "normal"
                color = "white" if abs(math.log2(value)) > 1.3 else "black"
                axes.text(
                    column, row, text, ha="center", va="center", fontsize=8, fontweight=weight, color=color
                )
        axes.set_yticks(range(len(batches)), [f"{n:,}" for n in batches])
        names = [f"{k}x{m}" for k, m in layers]
        axes.set_xticks(range(len(layers)), names, rotation=60, ha="right", fontsize=9)
        axes.set(ylabel="batch")
        axes.set_title(kernel, loc="left", fontsize=11, fontweight="bold")
        axes.tick_params(length=0)
    panels[-1, 0].set_xlabel("inputs x outputs")
    _titles(
        figure,
        f"How many times faster than the fastest of {', '.join(others)}",
        f"violet: pyfastnn is faster, orange and bold: the other is; {where(results, threads)}",
    )
    return figure


def save(draw: Callable[[Results], plt.Figure | None], results: Results, folder: Path) -> list[str]:
    """The picture, where the results allow it; returns its name."""
    with plt.rc_context(STYLE):
        figure = draw(results)
        if figure is None:
            return []
        figure.savefig(folder / f"{draw.__name__}.png")
        plt.close(figure)
    return [draw.__name__]


def write(results: Results, folder: Path) -> list[str]:
    """The pictures of a report that the results allow; returns their names."""
    return [name for draw in (ratios, scaling, roofline) for name in save(draw, results, folder)]
