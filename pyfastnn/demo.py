"""The demonstration: one network trained by every backend and by scikit-learn, side by side."""

from __future__ import annotations

import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from .backends import backends, load, use_backend
from .datasets import Split, load_digits, load_mnist
from .mlp import MLP
from .optimizers import Adam

HIDDEN = 128
BATCH_SIZE = 64
LEARNING_RATE = 1e-3


@dataclass
class Contestant:
    """Somebody who can train the network.

    ``train(data, epochs)`` starts afresh and returns the seconds of training alone and the accuracy
    on the test data.
    """

    name: str
    label: str
    train: Callable[[Split, int], tuple[float, float]]
    seconds: list[float] = field(default_factory=list)
    accuracy: float = 0.0


def network_for(data: Split) -> MLP:
    """The network of the demonstration, untrained."""
    sizes = [data.x_train.shape[1], HIDDEN, int(data.y_train.max()) + 1]
    return MLP(sizes, activation="relu", output="softmax", seed=0)


def _train(backend: str, data: Split, epochs: int) -> tuple[float, float]:
    network = network_for(data)
    with use_backend(backend):
        start = time.perf_counter()
        network.fit(
            data.x_train,
            data.y_train,
            epochs=epochs,
            batch_size=BATCH_SIZE,
            optimizer=Adam(LEARNING_RATE),
            progress=False,
        )
        seconds = time.perf_counter() - start
        return seconds, network.evaluate(data.x_test, data.y_test)["accuracy"]


def _train_sklearn(data: Split, epochs: int) -> tuple[float, float]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(
        (HIDDEN,),
        activation="relu",
        solver="adam",
        alpha=0,
        batch_size=BATCH_SIZE,
        learning_rate_init=LEARNING_RATE,
        max_iter=epochs,
        tol=0,
        n_iter_no_change=epochs + 1,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        start = time.perf_counter()
        classifier.fit(data.x_train, data.y_train)
        seconds = time.perf_counter() - start
    return seconds, classifier.score(data.x_test, data.y_test)


def contestants() -> list[Contestant]:
    """Every backend that works here, and scikit-learn where it is installed; says who is missing."""
    found = []
    for name, status in backends().items():
        if status == "available":
            found.append(Contestant(name, load(name).description, partial(_train, name)))
        else:
            print(f"without {name}: {status}")
    try:
        from sklearn import __version__
    except ImportError:
        print("without scikit-learn: pip install scikit-learn")
    else:
        found.append(Contestant("scikit-learn", f"scikit-learn {__version__}", _train_sklearn))
    return found


def compete(entrants: list[Contestant], data: Split, epochs: int, rounds: int) -> None:
    """Let each warm up for one epoch, then let all train in turn, ``rounds`` times."""
    for entrant in entrants:
        _say(f"warming up: {entrant.label}")
        entrant.train(data, 1)
    for number in range(1, rounds + 1):
        for entrant in entrants:
            _say(f"round {number} of {rounds}: {entrant.label}")
            seconds, entrant.accuracy = entrant.train(data, epochs)
            entrant.seconds.append(seconds)
    _say("")


def _say(text: str) -> None:
    """Progress: one line that is written over on a terminal, else a line each."""
    print(f"{text:<79}", file=sys.stderr, end="\r" if sys.stderr.isatty() else "\n", flush=True)


def table(entrants: list[Contestant], steps: int) -> str:
    """Accuracy, median time, and speed against those that everybody knows."""
    seconds = {entrant.name: median(entrant.seconds) for entrant in entrants}
    rivals = [name for name in ("numpy", "scikit-learn") if name in seconds]
    rows = [["", "test accuracy", "seconds", "us/step", *(f"vs {rival}" for rival in rivals)]]
    for entrant in entrants:
        own = seconds[entrant.name]
        rows.append(
            [
                entrant.label,
                f"{entrant.accuracy:.2%}",
                f"{own:.3f}",
                f"{own / steps * 1e6:.1f}",
                *(f"{seconds[rival] / own:.2f} x" for rival in rivals),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(map(str.rjust, row[1:], widths[1:]))]) for row in rows
    )


def run(mnist: str | None = None, epochs: int | None = None) -> None:
    """Train on scikit-learn's digits, or on MNIST from a folder, and print who did how well.

    Exits with a message and status 1 where the data is not there.
    """
    try:
        data = load_digits() if mnist is None else load_mnist(mnist)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"pyfastnn demo: {error}")
    name, rounds, default_epochs = ("digits", 5, 30) if mnist is None else ("MNIST", 1, 5)
    epochs = epochs or default_epochs
    steps = epochs * -(-len(data.x_train) // BATCH_SIZE)

    print(network_for(data), end="\n\n")
    print(
        f"{name}: {len(data.x_train):,} samples to train on, {len(data.x_test):,} to test; "
        f"epochs {epochs}, steps {steps:,}, batch {BATCH_SIZE}, Adam {LEARNING_RATE:g}"
    )
    entrants = contestants()
    print(f"machine: {platform.machine()}, {os.cpu_count()} processors; {entrants[0].label}", flush=True)
    compete(entrants, data, epochs, rounds)
    print(f"\n{table(entrants, steps)}")
    print(f"\ntimes: {'one run each' if rounds == 1 else f'median of {rounds} runs, taken in turn'}")
