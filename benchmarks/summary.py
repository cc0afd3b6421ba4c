"""What the numbers of a run say: medians, spreads, ratios, what is noise, shares of the limit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cases import Cost, inference_cost, kernel_cost, step_cost
from limits import least_seconds

from pyfastnn.bench import WORKLOADS

# A ratio is noise unless the visits agree on it to DRIFT, and the rounds to WIDTH.
DRIFT, WIDTH = 0.08, 0.06


@dataclass(frozen=True)
class Record:
    """What one contender took for one case: seconds by visit and round."""

    family: str
    case: str
    threads: int
    contender: str
    visits: tuple[tuple[float, ...], ...]
    about: dict[str, Any]

    @property
    def seconds(self) -> float:
        return float(np.median(np.concatenate(self.visits)))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.percentile(np.concatenate(self.visits), [25, 75])
        return float(low), float(high)

    @property
    def percentiles(self) -> list[float]:
        """Of the latency, the median over the rounds of each."""
        return np.median(self.about["percentiles"], axis=0).tolist()

    @property
    def quiet(self) -> float:
        """Seconds in the quietest round, by the 10th percentile of its calls."""
        return min(self.about["quiet"])

    @property
    def dtype(self) -> str:
        return self.about.get("dtype", "float32")

    @property
    def cost(self) -> Cost:
        """Of what ``seconds`` is the time of."""
        if self.family == "kernels":
            return kernel_cost(self.about["kernel"], self.about["shape"], np.dtype(self.dtype).itemsize)
        name, _, batch = self.case.partition(", batch ")
        return inference_cost(WORKLOADS[name], int(batch)) if batch else step_cost(WORKLOADS[name])


@dataclass(frozen=True)
class Ratio:
    """How many times as long they take as we do: median and quartiles of the rounds, and if it is noise."""

    value: float
    low: float
    high: float
    noisy: bool


def compare(ours: Record, theirs: Record) -> Ratio:
    """The ratio of two records that were measured in turn.

    The notch of a box plot, 1.57 times the distance of the quartiles over the root of the count (McGill,
    Tukey and Larsen, Variations of Box Plots, 1978), says how well the rounds know their median; and how the
    visits differ says what another run might find.
    """
    visits = [np.divide(t, o) for o, t in zip(ours.visits, theirs.visits, strict=False)]
    every = np.concatenate(visits)
    low, value, high = (float(each) for each in np.percentile(every, [25, 50, 75]))
    centres = [np.median(visit) for visit in visits]
    drift = max(centres) / min(centres) - 1
    width = 1.57 * (high - low) / np.sqrt(len(every)) / value
    return Ratio(value, low, high, bool(drift > DRIFT or width > WIDTH))


class Results:
    """What a run has measured, to ask for."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self.counts: list[int] = self.raw["threads"]
        self.limits = {int(threads): limits for threads, limits in self.raw["limits"].items()}
        self.records: dict[tuple[str, str, int, str], Record] = {}
        for each in self.raw["records"]:
            key = each["family"], each["case"], each["threads"], each["contender"]
            self.records[key] = Record(*key, tuple(tuple(visit) for visit in each["visits"]), each)

    @classmethod
    def read(cls, folder: Path) -> Results:
        """From results.json."""
        return cls(json.loads((folder / "results.json").read_text()))

    @cached_property
    def ours(self) -> str:
        """The backend that users get."""
        return self.raw["contenders"][0]

    def contenders(self, family: str, threads: int) -> list[str]:
        """Those with results, ours first."""
        present = {key[3] for key in self.records if key[0] == family and key[2] == threads}
        return [name for name in self.raw["contenders"] if name in present]

    def cases(self, family: str, threads: int) -> list[str]:
        return list(dict.fromkeys(key[1] for key in self.records if key[0] == family and key[2] == threads))

    def ratio(self, family: str, case: str, threads: int, contender: str) -> Ratio | None:
        """None where one of the two has no result."""
        ours = self.records.get((family, case, threads, self.ours))
        theirs = self.records.get((family, case, threads, contender))
        return compare(ours, theirs) if ours and theirs else None

    def quiet_share(self, record: Record) -> float:
        """Of the speed that the roofline allows, in the quietest round, by the highest peak."""
        limit = self.limits[record.threads]
        peak = limit["operations"][record.dtype]
        return least_seconds(record.cost, peak, limit["bytes"], record.threads) / record.quiet

    def share(self, record: Record) -> float:
        """Of the speed that the roofline allows, by the peak of the same round; the median of the rounds."""
        cost, bandwidths = record.cost, self.limits[record.threads]["bytes"]
        rounds = zip(np.concatenate(record.visits), np.concatenate(record.about["peaks"]), strict=True)
        return float(
            np.median(
                [least_seconds(cost, peak, bandwidths, record.threads) / seconds for seconds, peak in rounds]
            )
        )
