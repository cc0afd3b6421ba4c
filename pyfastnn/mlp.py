"""The network: one flat vector of parameters, everything else a view of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from . import _checks, activations, initialisers, losses, optimizers
from ._quick import quick
from ._typing import Array, Remote
from .activations import Activation
from .backends import get_backend
from .backends.plan import BoundNetwork, Plan, Spec
from .callbacks import Callback, History, ProgressBar
from .losses import Loss
from .optimizers import Adam, Optimizer, OptimizerState

Data = tuple[Array, Array]

_DEFAULT_OPTIMIZER = Adam()


class MLP:
    """A multilayer perceptron: dense layers, one after the other.

    Parameters
    ----------
    layers : sequence of int
        Sizes from the inputs to the outputs, at least two.
    activation : str or sequence of str
        Of the hidden layers: one for all, or one for each.
    output : str
        Activation of the output layer.
    loss : str, optional
        Default: the one matched with the output activation: cross_entropy with softmax,
        binary_cross_entropy with sigmoid, poisson with exp, else mse.
    dtype : {"float32", "float64"}
        Of parameters, inputs and outputs.
    init : str, optional
        Of all layers: a name of ``pyfastnn.initialisers.INITIALISATIONS``. Default: he for relu and
        its kin, glorot for the others; biases zero.
    seed : int, numpy.random.Generator or None
        Source of the initial parameters and of the shuffling. The same int gives the same bits,
        whatever the number of threads.

    Attributes
    ----------
    params : (parameter_count,) array
        All parameters, layer after layer: weights (inputs, outputs) in C order, then biases. A view
        of the network itself, aligned to 64 bytes; assigning to it copies into it.
    weights, biases : tuple of arrays
        Views of ``params``: (inputs, outputs) and (outputs,) of every layer.

    Raises
    ------
    TypeError, ValueError
        For sizes, names or a dtype that cannot be.

    Examples
    --------
    >>> import pyfastnn as pf
    >>> net = pf.MLP([784, 128, 10], activation="relu", output="softmax", seed=0)
    >>> net.parameter_count
    101770
    """

    # What the core looks up in every call, where it finds it at once.
    __slots__ = ("__dict__", "__weakref__", "_bound")

    def __init__(
        self,
        layers: Sequence[int],
        activation: str | Sequence[str] = "relu",
        output: str = "identity",
        *,
        loss: str | None = None,
        dtype: DTypeLike = "float32",
        init: str | None = None,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        initialisation = None if init is None else initialisers.get(init)
        try:
            rng = np.random.default_rng(seed)
        except (TypeError, ValueError) as error:
            raise type(error)(f"seed must be an int >= 0, a Generator or None, got {seed!r}") from error
        self._set_up(_spec(layers, activation, output, loss, dtype), rng)
        for w, b, f in zip(self.weights, self.biases, self._spec.activations, strict=True):
            chosen = initialisation or initialisers.get(f.initialisation)
            w[...] = chosen.draw(self._rng, *w.shape)
            b[...] = self._rng.normal(size=b.shape) if chosen.random_biases else 0

    def _set_up(self, spec: Spec, rng: np.random.Generator) -> None:
        self._spec = spec
        self._rng = rng
        self._params = _aligned_zeros(spec.parameter_count, spec.dtype)
        self.weights, self.biases = spec.unflatten(self._params)
        self._memory: OptimizerState | None = None
        self._latest_plan: Plan | None = None
        self._bound: BoundNetwork | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Sizes from the inputs to the outputs."""
        return self._spec.sizes

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self._spec.dtype

    @property
    def loss(self) -> Loss:
        """What training minimises."""
        return self._spec.loss

    @property
    def activations(self) -> tuple[Activation, ...]:
        """Of every layer, the output layer included."""
        return self._spec.activations

    @property
    def parameter_count(self) -> int:
        """Weights and biases together."""
        return self._spec.parameter_count

    @property
    def params(self) -> Array:
        return self._params

    @params.setter
    def params(self, value: Array) -> None:
        self._params[...] = _checks.array("params", value, self._params.shape, self.dtype)

    def __repr__(self) -> str:
        spec = self._spec
        sizes = "-".join(map(str, spec.sizes))
        lines = [
            f"MLP {sizes}: {spec.parameter_count:,} parameters, {spec.dtype}, loss {spec.loss.name}",
            f"{'layer':>5} {'inputs':>8} {'outputs':>8}  {'activation':<11} {'parameters':>12}",
        ]
        for number, ((inputs, outputs), f) in enumerate(
            zip(spec.layers, spec.activations, strict=True), start=1
        ):
            count = (inputs + 1) * outputs
            lines.append(f"{number:>5} {inputs:>8,} {outputs:>8,}  {f.name:<11} {count:>12,}")
        return "\n".join(lines)

    @quick
    def predict(self, x: Array, out: Array | None = None) -> Array:
        """The outputs of the network; for softmax and sigmoid, probabilities.

        Parameters
        ----------
        x : (n, inputs) array of the network's dtype
        out : (n, outputs) array, optional
            Receives the result.

        Returns
        -------
        (n, outputs) array
            ``out`` where it was given.

        Raises
        ------
        TypeError, ValueError
            For an array of another type, dtype, shape or layout, or an overlapping ``out``.
        """
        plan = self._plan()
        x, given, params = self._inputs("x", x), out, self._params
        shape, backend = (len(x), self.layers[-1]), plan.backend
        out = _checks.output(
            "out",
            backend.adopt(out),
            shape,
            params.dtype,
            {"x": x, "the parameters": params},
            partial(backend.empty, like=(x,)),
        )
        plan.forward(params, x, out)
        return out if given is None else given

    def evaluate(self, x: Array, y: Array, *, sample_weight: Array | None = None) -> dict[str, float]:
        """The loss and, for a classifier, the accuracy on data.

        Parameters
        ----------
        x : (n, inputs) array of the network's dtype, n >= 1
        y : array
            Targets as for ``fit``.
        sample_weight : (n,) array of the network's dtype, optional

        Returns
        -------
        dict
            "loss" and, for cross_entropy and binary_cross_entropy, "accuracy" from 0 to 1.

        Raises
        ------
        TypeError, ValueError
            As ``fit``.
        """
        x, y, weight = self._data(x, y, sample_weight)
        return self._figures(x, y, weight, partial(self._plan().forward, self._params))

    def _figures(
        self, x: Array, y: Array, weight: Array | None, forward: Callable[[Array, Array], None]
    ) -> dict[str, float]:
        """What ``evaluate`` says of checked data, the outputs computed by ``forward(x, out)``."""
        backend, spec = get_backend(), self._spec
        a = np.empty((len(x), self.layers[-1]), self.dtype)
        forward(x, a)
        y = y.copy_to_host() if isinstance(y, Remote) else y
        figures = {"loss": backend.output_delta(a, y, weight, spec.loss, spec.activations[-1], None)}
        if spec.loss.accuracy is not None:
            hits = spec.loss.accuracy(a, y)
            # The mean by a sum: that of NumPy takes longer than a small network.
            figures["accuracy"] = float(
                hits.sum() / len(hits) if weight is None else np.average(hits, weights=weight)
            )
        return figures

    @quick
    def loss_and_gradient(
        self, x: Array, y: Array, *, sample_weight: Array | None = None, out: Array | None = None
    ) -> tuple[float, Array]:
        """The loss on data and its gradient with respect to ``params``.

        Parameters
        ----------
        x : (n, inputs) array of the network's dtype, n >= 1
        y : array
            Targets as for ``fit``.
        sample_weight : (n,) array of the network's dtype, optional
        out : (parameter_count,) array, optional
            Receives the gradient.

        Returns
        -------
        loss : float
        gradient : (parameter_count,) array
            ``out`` where it was given.

        Raises
        ------
        TypeError, ValueError
            As ``fit``.
        """
        x, y, weight = self._data(x, y, sample_weight)
        inputs = {"x": x, "y": y, "sample_weight": weight, "the parameters": self._params}
        out = _checks.output("out", out, self._params.shape, self.dtype, inputs)
        return self._plan().loss_and_gradient(self._params, x, y, weight, out), out

    def fit(
        self,
        x: Array,
        y: Array,
        *,
        epochs: int = 10,
        batch_size: int = 32,
        optimizer: Optimizer | None = None,
        shuffle: bool = True,
        sample_weight: Array | None = None,
        validation_data: Data | None = None,
        callbacks: Iterable[Callback] = (),
        progress: bool | None = None,
    ) -> History:
        """Train on data.

        A further call with an equal optimizer goes on where the last one stopped, momentum included.

        Parameters
        ----------
        x : (n, inputs) array of the network's dtype, n >= 1
        y : array
            Targets: (n, outputs) of the network's dtype, or for cross_entropy (n,) integer labels.
            A network with one output takes (n,) too.
        epochs : int
            Passes over the data.
        batch_size : int
            Samples a step; the last batch of an epoch may be smaller.
        optimizer : SGD or Adam
            Default: ``Adam()``.
        shuffle : bool
            A new order each epoch; left out where one batch takes all samples.
        sample_weight : (n,) array of the network's dtype, optional
            Not negative. Each batch is averaged with them: sum of w l over sum of w.
        validation_data : (x, y), optional
            Evaluated after each epoch.
        callbacks : iterable of Callback
            Called when ``params`` is up to date; while an epoch runs it may not be.
        progress : bool, optional
            Show a bar (needs tqdm). Default: where tqdm is installed and standard error is a terminal.

        Returns
        -------
        History

        Raises
        ------
        TypeError, ValueError
            For data of another type, dtype, shape or layout, targets out of range or of the wrong
            kind for the loss, and numbers out of range. Nothing has been changed then.
        ImportError
            For ``progress=True`` without tqdm.
        """
        if isinstance(y, np.ndarray) and y.dtype.kind in "iu":
            y = y.copy()  # callbacks and other threads could change labels after they have been checked
        x, y, weight = self._data(x, y, sample_weight)
        epochs = _checks.integer("epochs", epochs, at_least=0)
        batch_size = _checks.integer("batch_size", batch_size, at_least=1)
        optimizer = _DEFAULT_OPTIMIZER if optimizer is None else optimizers.check(optimizer)
        if validation_data is not None:
            validation_data = self._validation(validation_data)
        watchers = [*_checks.items("callbacks", callbacks, "a list of pyfastnn.Callback objects")]
        for callback in watchers:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must be pyfastnn.Callback objects, got {callback!r}")
        if ProgressBar.suits_here() if progress is None else progress:
            watchers.append(ProgressBar())

        rng = self._rng if shuffle and batch_size < len(x) else None
        state = self._optimizer_state(optimizer)
        plan = self._plan()
        history = History()
        if not watchers and validation_data is None:
            figures = plan.fit(self._params, x, y, weight, epochs, batch_size, state, rng)
            history.loss, history.seconds = figures
            return history
        with ExitStack() as stack:
            for callback in watchers:
                callback.on_begin(self, epochs)
                stack.callback(callback.on_end, self, history)
            training = stack.enter_context(plan.training(self._params, x, y, weight, batch_size, state))
            while len(history) < epochs:
                loss, seconds = training.next_epoch(rng)
                history.loss.append(loss)
                history.seconds.append(seconds)
                if validation_data is not None:
                    for name, value in self._figures(*validation_data, None, training.forward).items():
                        history.validation.setdefault(name, []).append(value)
                if watchers:
                    training.pull()
                    if any([callback.on_epoch(self, history) for callback in watchers]):
                        break
                    training.push()
        return history

    def copy(self) -> MLP:
        """An independent network with equal parameters, optimizer state and random state."""
        twin = type(self).__new__(type(self))
        twin.__setstate__(self.__getstate__())
        return twin

    __copy__ = copy

    def __getstate__(self) -> dict[str, Any]:
        spec = self._spec
        return {
            "layers": spec.sizes,
            "activations": [f.name for f in spec.activations],
            "loss": spec.loss.name,
            "dtype": spec.dtype.name,
            "params": self._params.copy(),
            "rng": self._rng.bit_generator.state,
            "memory": self._memory and (self._memory.optimizer, self._memory.slots, self._memory.step),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        *hidden, output = state["activations"]
        bits = getattr(np.random, state["rng"]["bit_generator"])()
        bits.state = state["rng"]
        self._set_up(
            _spec(state["layers"], hidden, output, state["loss"], state["dtype"]), np.random.Generator(bits)
        )
        self._params[...] = state["params"]
        if state["memory"] is not None:
            optimizer, slots, step = state["memory"]
            self._memory = OptimizerState(optimizer, tuple(slot.copy() for slot in slots), step)

    def _plan(self) -> Plan:
        backend, plan = get_backend(), self._latest_plan
        if plan is None or plan.backend is not backend:
            plan = self._latest_plan = backend.plan(self._spec)
            self._bound = plan.bound(self._params)
        return plan

    def _optimizer_state(self, optimizer: Optimizer) -> OptimizerState:
        if self._memory is None or self._memory.optimizer != optimizer:
            slots = tuple(_aligned_zeros(self.parameter_count, self.dtype) for _ in range(optimizer.slots))
            self._memory = OptimizerState(optimizer, slots)
        return self._memory

    def _inputs(self, name: str, x: Array) -> Array:
        return _checks.array(name, get_backend().adopt(x), (None, self.layers[0]), self.dtype)

    def _targets(self, name: str, y: Array, samples: int) -> Array:
        adopted, outputs = get_backend().adopt(y), self.layers[-1]
        flat = isinstance(adopted, np.ndarray) and adopted.ndim == 1
        if flat and outputs == 1 and self.loss.targets == "values":
            adopted = y[:, np.newaxis]
        return _checks.targets(name, adopted, self.loss, (samples, outputs), self.dtype)

    def _data(self, x: Array, y: Array, sample_weight: Array | None) -> tuple[Array, Array, Array | None]:
        self._plan()
        bound = self._bound
        if bound is not None and bound.takes(x, y, sample_weight):
            return x, y if y.dtype.kind == "i" else y.reshape(len(x), -1), sample_weight
        x = self._inputs("x", x)
        if not len(x):
            raise ValueError("x must have at least one row, got none")
        weight = _checks.weights("sample_weight", get_backend().adopt(sample_weight), len(x), self.dtype)
        return x, self._targets("y", y, len(x)), weight

    def _validation(self, data: Data) -> Data:
        if not isinstance(data, tuple) or len(data) != 2:
            raise TypeError(f"validation_data must be a tuple (x, y), got {type(data).__name__}")
        x = self._inputs("validation_data[0]", data[0])
        if not len(x):
            raise ValueError("validation_data must have at least one row, got none")
        return x, self._targets("validation_data[1]", data[1], len(x))


def _spec(
    layers: Sequence[int],
    activation: str | Sequence[str],
    output: str,
    loss: str | None,
    dtype: DTypeLike,
) -> Spec:
    given = _checks.items("layers", layers, "a sequence of int")
    sizes = tuple(_checks.integer(f"layers[{i}]", size, at_least=1) for i, size in enumerate(given))
    if len(sizes) < 2:
        raise ValueError(f"layers must have at least two sizes, inputs and outputs, got {len(sizes)}")
    count = len(sizes) - 2
    if isinstance(activation, str):
        names: tuple[str, ...] = (activation,) * count
    else:
        names = _checks.items("activation", activation, "a name (str), or one for each hidden layer")
    if len(names) != count:
        raise ValueError(f"activation must be one name, or {count} for the hidden layers, got {len(names)}")
    hidden = [activations.get(name) for name in names]
    for f in hidden:
        if f.rowwise:
            raise ValueError(f"activation {f.name!r} serves as output only")
    last = activations.get(output, "output activation")
    chosen_loss = losses.default_for(last.name) if loss is None else losses.get(loss)
    losses.check_pair(chosen_loss, last)
    return Spec(sizes, (*hidden, last), chosen_loss, _checks.float_dtype("dtype", dtype))


def _aligned_zeros(count: int, dtype: np.dtype[Any], alignment: int = 64) -> Array:
    raw = np.zeros(count * dtype.itemsize + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + count * dtype.itemsize].view(dtype)
