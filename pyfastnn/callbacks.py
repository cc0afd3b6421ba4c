"""What happens between epochs: the history that ``fit`` returns, and callbacks."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .mlp import MLP


@dataclass
class History:
    """What a fit measured, one entry per epoch.

    Attributes
    ----------
    loss : list of float
        Mean training loss over the epoch, as the weights changed.
    validation : dict of str to list of float
        What ``evaluate`` said of the validation data after the epoch: loss and, for classifiers,
        accuracy. Empty without validation data.
    seconds : list of float
        Wall time of the epoch's training, validation not included.
    """

    loss: list[float] = field(default_factory=list)
    validation: dict[str, list[float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.loss)

    def latest(self) -> dict[str, float]:
        """The last epoch's figures by name."""
        return {name: values[-1] for name, values in self._curves() if values}

    def _curves(self) -> Iterator[tuple[str, list[float]]]:
        yield "loss", self.loss
        for name, values in self.validation.items():
            yield f"validation {name}", values

    def plot(self, axes: Axes | None = None) -> Axes:
        """Plot losses (left axis) and accuracy (right axis) over the epochs.

        Parameters
        ----------
        axes : matplotlib Axes, optional
            Default: a new figure.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        try:
            import matplotlib.pyplot as plt
            from matplotlib.ticker import MaxNLocator
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install 'pyfastnn[plot]'") from error
        if axes is None:
            axes = plt.subplots(layout="constrained")[1]
        epochs = range(1, len(self) + 1)
        axes.set(xlabel="epoch", ylabel="loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        lines = []
        for number, (name, values) in enumerate(self._curves()):
            target = axes
            if name.endswith("accuracy"):
                target = axes.twinx()
                target.set_ylabel("accuracy")
            lines += target.plot(epochs, values, color=f"C{number}", marker=".", label=name)
        axes.legend(handles=lines, loc="center right")
        return axes


class Callback:
    """Base class of callbacks; override what is needed."""

    def on_begin(self, network: MLP, epochs: int) -> None:
        """Before the first epoch."""

    def on_epoch(self, network: MLP, history: History) -> bool | None:
        """After each epoch. True ends the training."""
        return None

    def on_end(self, network: MLP, history: History) -> None:
        """After the last epoch, also when training stopped by an exception."""


class ProgressBar(Callback):
    """A bar on standard error with the latest figures.

    Raises
    ------
    ImportError
        Without tqdm.
    """

    def __init__(self) -> None:
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise ImportError("the progress bar needs tqdm: pip install 'pyfastnn[progress]'") from error
        self._tqdm: Any = tqdm
        self._bar: Any = None

    @staticmethod
    def suits_here() -> bool:
        """True where somebody would see it: tqdm is installed and standard error is a terminal."""
        # In this order: to find a package takes longer than a step of a small network.
        return sys.stderr is not None and sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None

    def on_begin(self, network: MLP, epochs: int) -> None:
        self._bar = self._tqdm(total=epochs, unit="epoch")

    def on_epoch(self, network: MLP, history: History) -> None:
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in history.latest().items()})
        self._bar.update()

    def on_end(self, network: MLP, history: History) -> None:
        self._bar.close()
