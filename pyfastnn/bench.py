"""The short benchmark: training beside the libraries that are installed here.

A workload is a network with data, batch size and optimizer. A contender can train it. All start from
the same weights and must arrive where the float64 reference does before they are timed; then they are
timed in turn, whole epochs with shuffling and the optimizer. ``benchmarks/`` in the source tree measures
more, each contender in a process of its own, from the same lists.
"""

from __future__ import annotations

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from statistics import median
from typing import Any, ClassVar

import numpy as np

from ._names import lookup
from ._typing import Array
from .backends import backends, get_backend, get_num_threads, load, set_backend, use_backend
from .mlp import MLP
from .optimizers import SGD, Adam

Layers = list[tuple[Array, Array]]
"""Weights (inputs, outputs) and biases (outputs,) of every layer."""


@dataclass(frozen=True)
class Workload:
    """A network and how it is trained, on random data, in float32; a timed call is ``epochs`` passes."""

    name: str
    sizes: tuple[int, ...]
    hidden: str
    output: str
    loss: str
    optimizer: SGD | Adam
    batch: int
    rows: int
    epochs: int = 1

    @property
    def steps(self) -> int:
        """Of a timed call."""
        return self.epochs * (self.rows // self.batch)

    def network(self, dtype: str = "float32") -> MLP:
        return MLP(self.sizes, self.hidden, self.output, loss=self.loss, dtype=dtype, seed=0)

    @cached_property
    def start(self) -> Layers:
        """What every contender starts from."""
        return layers_of(self.network())

    @cached_property
    def data(self) -> tuple[Array, Array]:
        """Inputs in [0, 1); targets the same, or labels for softmax, or one-hot rows for sigmoid."""
        rng = np.random.default_rng(1)
        x = rng.random((self.rows, self.sizes[0]), np.float32)
        if self.output == "identity":
            return x, rng.random((self.rows, self.sizes[-1]), np.float32)
        labels = rng.integers(0, self.sizes[-1], self.rows)
        return x, labels if self.output == "softmax" else one_hot(labels, self.sizes[-1])


def layers_of(network: MLP) -> Layers:
    return list(zip(network.weights, network.biases, strict=True))


def one_hot(labels: Array, classes: int) -> Array:
    return np.eye(classes, dtype=np.float32)[labels]


def _assign(own: Layers, given: Layers) -> None:
    for (w, b), (w_given, b_given) in zip(own, given, strict=True):
        w[...], b[...] = w_given, b_given


_ADAM, _SGD = Adam(1e-3), SGD(3.0)
_LIST = (
    Workload("expm", (4, 32, 16, 4), "tanh", "identity", "mse", _ADAM, 10_000, 10_000, epochs=10),
    Workload("online", (8, 16, 2), "tanh", "identity", "mse", SGD(0.01), 32, 32),  # a step a call
    Workload("tiny", (24, 8, 2), "tanh", "identity", "mse", _ADAM, 200, 20_000),
    Workload("wine", (13, 20, 3), "relu", "softmax", "cross_entropy", _ADAM, 32, 6_400),
    Workload("control", (64, 64, 64, 4), "tanh", "identity", "mse", _ADAM, 32, 6_400),
    Workload("nielsen", (784, 30, 10), "sigmoid", "sigmoid", "quadratic", _SGD, 10, 5_000),
    Workload("essay", (784, 16, 16, 10), "sigmoid", "sigmoid", "quadratic", _SGD, 10, 5_000),
    Workload("lecture", (784, 128, 10), "relu", "softmax", "cross_entropy", _ADAM, 64, 6_400),
    Workload("tabular", (54, 256, 128, 7), "relu", "softmax", "cross_entropy", _ADAM, 256, 12_800),
    Workload("medium", (784, 512, 512, 10), "relu", "softmax", "cross_entropy", _ADAM, 256, 5_120),
    Workload("wide", (1024, 2048, 2048, 1024), "relu", "identity", "mse", SGD(0.01), 1024, 2_048),
)
WORKLOADS: Mapping[str, Workload] = {entry.name: entry for entry in _LIST}
SHORT = ("tiny", "control", "nielsen", "lecture", "tabular")


class Contender(ABC):
    """Somebody who can train a workload. ``variants`` are ways to do it; the fastest of them counts."""

    module: ClassVar[str]
    variants: ClassVar[Sequence[str]] = ("",)

    def __init__(self, workload: Workload, variant: str, threads: int) -> None:
        self.workload, self.variant = workload, variant
        self.x, self.y = workload.data
        self._rng = np.random.default_rng(2)

    @staticmethod
    def nearest(workload: Workload) -> Workload:
        """The workload as this contender can do it: the same products, perhaps with another loss."""
        return workload

    @abstractmethod
    def start(self, layers: Layers) -> None:
        """Begin afresh from these parameters."""

    @abstractmethod
    def train(self, rows: int, epochs: int, *, shuffle: bool) -> None:
        """Passes over the first rows of the data, in batches."""

    @abstractmethod
    def layers(self) -> Layers:
        """The parameters now."""

    def order(self, rows: int, shuffle: bool) -> Array:
        return self._rng.permutation(rows) if shuffle else np.arange(rows)


class Ours(Contender):
    """``MLP.fit``, with the backend that the variant names."""

    module = "pyfastnn"

    def start(self, layers: Layers) -> None:
        set_backend(self.variant)
        self.network = self.workload.network()
        _assign(layers_of(self.network), layers)

    def train(self, rows: int, epochs: int, *, shuffle: bool) -> None:
        batch, optimizer = self.workload.batch, self.workload.optimizer
        x, y = self.x[:rows], self.y[:rows]
        options: dict[str, Any] = {"shuffle": shuffle, "progress": False}
        self.network.fit(x, y, epochs=epochs, batch_size=batch, optimizer=optimizer, **options)

    def layers(self) -> Layers:
        return layers_of(self.network)


class ScikitLearn(Contender):
    """MLPClassifier and MLPRegressor, one ``fit`` with a warm start for each call."""

    module = "sklearn"

    @staticmethod
    def nearest(workload: Workload) -> Workload:
        # Half the squared error summed over outputs; and sigmoid outputs only with their own loss.
        loss = {"mse": "quadratic", "quadratic": "binary_cross_entropy"}.get(workload.loss, workload.loss)
        return replace(workload, loss=loss)

    def __init__(self, workload: Workload, variant: str, threads: int) -> None:
        super().__init__(workload, variant, threads)
        models: Any = import_module("sklearn.neural_network")
        self._warning: Any = import_module("sklearn.exceptions").ConvergenceWarning
        o = workload.optimizer
        if isinstance(o, SGD):
            settings: dict[str, Any] = {"solver": "sgd", "momentum": 0}
        else:  # its epsilon stands outside the bias correction: at the first step, this is ours
            settings = {"solver": "adam", "epsilon": o.epsilon * math.sqrt(1 - o.beta2)}
        regression = workload.output == "identity"
        self.model = (models.MLPRegressor if regression else models.MLPClassifier)(
            hidden_layer_sizes=workload.sizes[1:-1],
            activation={"sigmoid": "logistic"}.get(workload.hidden, workload.hidden),
            alpha=0,
            batch_size=workload.batch,
            learning_rate_init=o.learning_rate,
            n_iter_no_change=math.inf,  # else counted over all warm starts, which would end fits early
            warm_start=True,
            random_state=0,
            **settings,
        )
        if not regression:
            self.y = self.y.astype(np.int64)  # classes, or rows of several classes that may be on
        self.train(workload.rows, 1, shuffle=False)  # lays out the parameters

    def start(self, layers: Layers) -> None:
        _assign(self.layers(), layers)  # a further fit goes on from there, with a new optimizer

    def train(self, rows: int, epochs: int, *, shuffle: bool) -> None:
        # In one fit: each begins with a new optimizer.
        self.model.set_params(shuffle=shuffle, max_iter=epochs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._warning)
            self.model.fit(self.x[:rows], self.y[:rows])

    def layers(self) -> Layers:
        return list(zip(self.model.coefs_, self.model.intercepts_, strict=True))


class Torch(Contender):
    """PyTorch, eager; the variant is the implementation of the optimizer."""

    module = "torch"
    variants = ("default", "foreach", "fused")

    def __init__(self, workload: Workload, variant: str, threads: int) -> None:
        super().__init__(workload, variant, threads)
        self.torch: Any = import_module("torch")
        self.torch.set_num_threads(threads)
        nn = self.torch.nn
        kinds = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU}
        parts = []
        for k, m in zip(workload.sizes[:-1], workload.sizes[1:], strict=True):
            parts += [nn.Linear(k, m), kinds[workload.hidden]()]
        parts[-1] = kinds.get(workload.output, nn.Identity)()  # softmax is part of cross_entropy
        self.model = nn.Sequential(*parts)
        losses = {
            "mse": nn.functional.mse_loss,
            "cross_entropy": nn.functional.cross_entropy,
            "quadratic": lambda a, y: (a - y).square().sum() / (2 * len(a)),
        }
        loss = losses[workload.loss]
        self._objective = self.compiled(lambda x, y: loss(self.model(x), y))
        self._linear = parts[::2]
        self.x, self.y = self.torch.from_numpy(self.x), self.torch.from_numpy(self.y)
        self.start(workload.start)

    def compiled(self, function: Any) -> Any:
        return function

    def start(self, layers: Layers) -> None:
        with self.torch.no_grad():
            for part, (w, b) in zip(self._linear, layers, strict=True):
                part.weight.copy_(self.torch.from_numpy(w.T))
                part.bias.copy_(self.torch.from_numpy(b))
        o = self.workload.optimizer
        kind = getattr(self.torch.optim, type(o).__name__)
        chosen = {} if self.variant == "default" else {self.variant: True}
        self._optimizer = kind(self.model.parameters(), lr=o.learning_rate, **chosen)

    def train(self, rows: int, epochs: int, *, shuffle: bool) -> None:
        for _ in range(epochs):
            order = self.torch.randperm(rows) if shuffle else self.torch.arange(rows)
            batches = (each[order].split(self.workload.batch) for each in (self.x, self.y))
            for x, y in zip(*batches, strict=True):
                self._optimizer.zero_grad()
                self._objective(x, y).backward()
                self._optimizer.step()

    def layers(self) -> Layers:
        return [(part.weight.detach().numpy().T, part.bias.detach().numpy()) for part in self._linear]


class Jax(Contender):
    """JAX, a whole epoch in one jit; the variant is how the scan over the batches gets their rows."""

    module = "jax"
    variants = ("rows first", "rows by batch", "rows first, unrolled")

    def __init__(self, workload: Workload, variant: str, threads: int) -> None:
        super().__init__(workload, variant, threads)
        self.jax: Any = import_module("jax")
        jax, jnp = self.jax, self.jax.numpy
        y = one_hot(self.y, workload.sizes[-1]) if self.y.ndim == 1 else self.y
        self.x, self.y = jnp.asarray(self.x), jnp.asarray(y)
        f = {"tanh": jnp.tanh, "identity": lambda z: z} | vars(jax.nn)
        hidden, output, o = f[workload.hidden], f[workload.output], workload.optimizer

        def sums(layers: Any, x: Any) -> Any:
            for w, b in layers[:-1]:
                x = hidden(x @ w + b)
            return x @ layers[-1][0] + layers[-1][1]

        losses = {
            "mse": lambda z, y: ((output(z) - y) ** 2).mean(),
            "quadratic": lambda z, y: ((output(z) - y) ** 2).sum() / (2 * len(z)),
            "cross_entropy": lambda z, y: -(y * jax.nn.log_softmax(z)).sum() / len(z),
        }
        gradient = jax.grad(lambda layers, x, y: losses[workload.loss](sums(layers, x), y))

        def step(state: Any, batch: Any) -> Any:
            layers, moments, count = state
            g, each = gradient(layers, *batch), jax.tree.map
            if isinstance(o, SGD):
                return (each(lambda w, g: w - o.learning_rate * g, layers, g), moments, count), None
            m = each(lambda m, g: o.beta1 * m + (1 - o.beta1) * g, moments[0], g)
            v = each(lambda v, g: o.beta2 * v + (1 - o.beta2) * g * g, moments[1], g)
            keep1, keep2 = 1 - o.beta1 ** (count + 1), 1 - o.beta2 ** (count + 1)
            rule = lambda w, m, v: w - o.learning_rate * (m / keep1) / (jnp.sqrt(v / keep2) + o.epsilon)  # noqa: E731
            return (each(rule, layers, m, v), (m, v), count + 1), None

        def epoch(state: Any, x: Any, y: Any, order: Any) -> Any:
            rows = order.reshape(-1, workload.batch)
            if variant == "rows by batch":
                return jax.lax.scan(lambda state, chosen: step(state, (x[chosen], y[chosen])), state, rows)[0]
            return jax.lax.scan(step, state, (x[rows], y[rows]), unroll=4 if "unrolled" in variant else 1)[0]

        self._epoch = jax.jit(epoch, donate_argnums=0)
        self.apply = jax.jit(lambda layers, x: output(sums(layers, x)))
        self.start(workload.start)

    def start(self, layers: Layers) -> None:
        jnp, each = self.jax.numpy, self.jax.tree.map
        zeros = tuple(each(jnp.zeros_like, layers) for _ in range(self.workload.optimizer.slots))
        self.state = each(jnp.array, layers), zeros, jnp.float32(0)

    def train(self, rows: int, epochs: int, *, shuffle: bool) -> None:
        for _ in range(epochs):
            order = self.order(rows, shuffle).astype(np.int32)
            self.state = self._epoch(self.state, self.x[:rows], self.y[:rows], order)
        self.jax.block_until_ready(self.state)

    def layers(self) -> Layers:
        return [(np.asarray(w), np.asarray(b)) for w, b in self.state[0]]


PEERS: Mapping[str, type[Contender]] = {"scikit-learn": ScikitLearn, "PyTorch": Torch, "JAX": Jax}


def prepare(kind: type[Contender], workload: Workload, threads: int, variants: Sequence[str]) -> Contender:
    """The fastest of the variants that the installed version has, by two calls of each, in turn."""
    found: list[Contender] = []
    failure: Exception | None = None
    for variant in variants:
        try:
            found.append(kind(kind.nearest(workload), variant, threads))
        except (RuntimeError, TypeError) as error:  # an older version may lack an implementation
            failure = error
    if failure and not found:
        raise failure
    if len(found) == 1:
        return found[0]
    seconds = [[min(time_calls(each, 0)) for each in found] for _ in range(3)][1:]
    return found[int(np.argmin(np.min(seconds, axis=0)))]


_FEW = 3  # steps to verify


def few_steps(contender: Contender, steps: int = _FEW) -> Array:
    """The parameters, flat, after a few steps in the order of the data."""
    contender.start(contender.workload.start)
    rows, epochs = _few(contender.workload, steps)
    contender.train(rows, epochs, shuffle=False)
    return np.concatenate([p.ravel() for pair in contender.layers() for p in pair])


def _few(workload: Workload, steps: int) -> tuple[int, int]:
    rows = min(steps * workload.batch, workload.rows)
    return rows, steps * workload.batch // rows


@lru_cache
def _reference(workload: Workload, steps: int) -> tuple[Array, Array]:
    """The parameters, flat, before and after a few steps in float64 by the NumPy backend."""
    network, (rows, epochs) = workload.network("float64"), _few(workload, steps)
    _assign(layers_of(network), workload.start)
    before = network.params.copy()
    x, y = (each[:rows] if each.ndim == 1 else each[:rows].astype(np.float64) for each in workload.data)
    with use_backend("numpy"):
        options: dict[str, Any] = {"shuffle": False, "progress": False}
        network.fit(x, y, epochs=epochs, batch_size=workload.batch, optimizer=workload.optimizer, **options)
    return before, network.params


def deviation(workload: Workload, params: Array, steps: int = _FEW) -> tuple[float, float]:
    """How far the parameters are from the reference's, relative to the way from the start; and its bound.

    A gradient passes through products of depths that sum to D. A sum of k products errs by some k u of
    its size: k u of the absolute values at worst, sqrt(k) u of them by chance, and these exceed the
    sum by about sqrt(k). So gradients err by e = D u in the norm; twice that allows for what a few steps make
    of it. Adam turns an error e of a gradient g into min(2, 2 e / |g|) of its step; for g spread evenly
    around zero with a root mean square of one, that is sqrt(8 e) in the norm. And every step rounds the
    parameters themselves.
    """
    before, after = _reference(workload, steps)
    way, unit = float(np.linalg.norm(after - before)), float(np.finfo(np.float32).eps) / 2
    error = unit * (workload.batch + sum(workload.sizes[:-1]) + sum(workload.sizes[1:]))
    bound = 2 * error if isinstance(workload.optimizer, SGD) else math.sqrt(8 * error)
    rounding = steps * unit * float(np.linalg.norm(after))
    return float(np.linalg.norm(params - after)) / way, bound + rounding / way


def time_calls(contender: Contender, seconds: float) -> list[float]:
    """Seconds of calls that take about that time together, after one that only warms up."""
    workload = contender.workload
    contender.start(workload.start)
    contender.train(workload.rows, workload.epochs, shuffle=True)
    times: list[float] = []
    until = time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        begin = time.perf_counter()
        contender.train(workload.rows, workload.epochs, shuffle=True)
        times.append(time.perf_counter() - begin)
    return times


def interleave(calls: Mapping[str, Callable[[], Sequence[float]]], rounds: int) -> dict[str, list[float]]:
    """The median of what each call returns, per round; every round asks all in turn."""
    medians: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            medians[name].append(median(calls[name]()))
    return medians


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over the rounds of how many times longer they take."""
    return median([t / o for o, t in zip(ours, theirs, strict=True)])


def run(names: Sequence[str] = (), rounds: int = 5, seconds: float = 0.1) -> None:
    """Verify and time the workloads of these names, by default the short ones, and print a table."""
    workloads = [lookup(WORKLOADS, name, "workload") for name in names or SHORT]
    kinds: dict[str, tuple[type[Contender], Sequence[str]]] = {
        name: (Ours, [name]) for name, status in backends().items() if status == "available"
    }
    for name, kind in PEERS.items():
        if find_spec(kind.module):
            kinds[name] = kind, kind.variants
        else:
            print(f"without {name}: not installed")
    first, *others = kinds
    print(f"training in float32 with {load(first).description}; the others take so many times as long:\n")
    print(f"{'':<34}{first:>9} us/step" + "".join(f"{name:>15}" for name in others))
    before = get_backend()
    try:
        for workload in workloads:
            title = f"{workload.name} {'-'.join(map(str, workload.sizes))}, batch {workload.batch:,}"
            print(f"{title:<34}", end="", flush=True)
            contenders = {
                name: prepare(kind, workload, get_num_threads(), variants)
                for name, (kind, variants) in kinds.items()
            }
            for name, contender in contenders.items():
                error, bound = deviation(contender.workload, few_steps(contender))
                if not error <= bound:
                    raise RuntimeError(f"{name} errs by {error:.1e} on {workload.name}, bound {bound:.1e}")
            calls = {name: partial(time_calls, each, seconds) for name, each in contenders.items()}
            times = interleave(calls, rounds)
            print(f"{median(times[first]) / workload.steps * 1e6:>17.1f}", end="")
            print("".join(f"{ratio(times[first], times[name]):>13.2f} x" for name in others), flush=True)
    finally:
        set_backend(before)
