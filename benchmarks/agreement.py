"""Whether two runs of ``make bench`` on one machine agree: python benchmarks/agreement.py NAME OTHER."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from summary import Ratio, Results

TOLERATED = 0.15  # between ratios that neither run calls noise

HERE = Path(__file__).parent


def pairs(one: Results, other: Results) -> Iterator[tuple[str, Ratio, Ratio]]:
    """The ratios that both have."""
    for family, case, threads, contender in one.records:
        if contender != one.ours:
            found = [each.ratio(family, case, threads, contender) for each in (one, other)]
            if found[0] and found[1]:
                yield f"{family}, {case}, {threads} threads, {contender}", found[0], found[1]


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    runs = [Results.read(HERE / "results" / name) for name in sys.argv[1:]]
    every = list(pairs(*runs))
    quiet = [(name, a.value, b.value) for name, a, b in every if not (a.noisy or b.noisy)]
    apart = [each for each in quiet if max(each[1:]) > (1 + TOLERATED) * min(each[1:])]
    for name, a, b in apart:
        print(f"{name}: {a:.2f} and {b:.2f}")
    print(f"{len(every)} ratios, {len(every) - len(quiet)} marked as noise in one run or both")
    print(f"of the other {len(quiet)}, {len(apart)} differ by more than {TOLERATED:.0%}")
    sys.exit(bool(apart))


if __name__ == "__main__":
    main()
