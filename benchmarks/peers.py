"""Everybody who can take part, and how each of them predicts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import singledispatch
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import pyfastnn as pf
from pyfastnn.bench import PEERS, SGD, Contender, Jax, Layers, Ours, ScikitLearn, Torch, Workload, one_hot

Array = NDArray[Any]
Predict = Callable[[Array], Array]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


class ByHand(Contender):
    """The network as a text on the subject writes it, in NumPy."""

    module = "numpy"
    # f(z), and its slope from a = f(z); softmax comes with cross_entropy, whose derivative is a - y.
    functions: ClassVar[Mapping[str, tuple[Callable[[Array], Array], Callable[[Array], Any]]]] = {
        "identity": (lambda z: z, lambda a: 1),
        "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda a: a * (1 - a)),
        "tanh": (np.tanh, lambda a: 1 - a * a),
        "relu": (lambda z: np.maximum(z, 0), lambda a: a > 0),
        "softmax": (softmax, lambda a: 1),
    }

    def __init__(self, workload: Workload, variant: str, threads: int) -> None:
        super().__init__(workload, variant, threads)
        self.y = one_hot(self.y, workload.sizes[-1]) if self.y.ndim == 1 else self.y
        self._factor = 2 / workload.sizes[-1] if workload.loss == "mse" else 1.0

    def start(self, layers: Layers) -> None:
        self._pairs = [(w.copy(), b.copy()) for w, b in layers]
        self._moments = [[[np.zeros_like(p)] * 2 for p in pair] for pair in self._pairs]
        self._count = 0

    def train(self, rows: int, epochs: int, *, shuffle: bool) -> None:
        for _ in range(epochs):
            order = self.order(rows, shuffle)
            for first in range(0, rows, self.workload.batch):
                chosen = order[first : first + self.workload.batch]
                self._step(self.x[chosen], self.y[chosen])

    def forward(self, x: Array) -> list[Array]:
        a = [x]
        for i, (w, b) in enumerate(self._pairs, start=1):
            name = self.workload.hidden if i < len(self._pairs) else self.workload.output
            a.append(self.functions[name][0](a[-1] @ w + b))
        return a

    def _step(self, x: Array, y: Array) -> None:
        a = self.forward(x)
        self._count += 1
        d = (a[-1] - y) * (self._factor / len(x)) * self.functions[self.workload.output][1](a[-1])
        for i in range(len(self._pairs) - 1, -1, -1):
            gradients = a[i].T @ d, d.sum(axis=0)
            if i:
                d = d @ self._pairs[i][0].T * self.functions[self.workload.hidden][1](a[i])
            for update in zip(self._pairs[i], gradients, self._moments[i], strict=True):
                self._update(*update)

    def _update(self, parameter: Array, gradient: Array, moments: list[Array]) -> None:
        o = self.workload.optimizer
        if isinstance(o, SGD):
            parameter -= o.learning_rate * gradient
            return
        moments[0] = o.beta1 * moments[0] + (1 - o.beta1) * gradient
        moments[1] = o.beta2 * moments[1] + (1 - o.beta2) * gradient**2
        mean, variance = moments[0] / (1 - o.beta1**self._count), moments[1] / (1 - o.beta2**self._count)
        parameter -= o.learning_rate * mean / (np.sqrt(variance) + o.epsilon)

    def layers(self) -> Layers:
        return self._pairs


class TorchCompiled(Torch):
    """PyTorch with the network and its loss through torch.compile, one graph for each shape."""

    variants = ("fused",)

    def __init__(self, workload: Workload, variant: str, threads: int) -> None:
        if shutil.which("c++") is None and shutil.which("g++") is None:
            raise RuntimeError("torch.compile needs a C++ compiler")
        super().__init__(workload, variant, threads)

    def compiled(self, function: Any) -> Any:
        return self.torch.compile(function, dynamic=False)


class Onnx(Contender):
    """ONNX Runtime, which predicts only."""

    module = "onnxruntime"
    operators: ClassVar[Mapping[str, str]] = {"tanh": "Tanh", "relu": "Relu", "softmax": "Softmax"}

    def __init__(self, workload: Workload, variant: str, threads: int) -> None:
        super().__init__(workload, variant, threads)
        self._options = import_module("onnxruntime").SessionOptions()
        self._options.intra_op_num_threads, self._options.inter_op_num_threads = threads, 1

    def start(self, layers: Layers) -> None:
        onnx: Any = import_module("onnx")
        helper, numpy_helper = onnx.helper, onnx.numpy_helper
        nodes, weights, value = [], [], "x"
        functions = [self.workload.hidden] * (len(layers) - 1) + [self.workload.output]
        for i, ((w, b), name) in enumerate(zip(layers, functions, strict=True)):
            weights += [numpy_helper.from_array(w, f"w{i}"), numpy_helper.from_array(b, f"b{i}")]
            nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [value := f"z{i}"]))
            if name in self.operators:
                nodes.append(helper.make_node(self.operators[name], [value], [value := f"a{i}"]))
        sizes = self.workload.sizes
        ends = [
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size])]
            for name, size in (("x", sizes[0]), (value, sizes[-1]))
        ]
        graph = helper.make_graph(nodes, self.workload.name, *ends, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        runtime: Any = import_module("onnxruntime")
        self.session = runtime.InferenceSession(model.SerializeToString(), self._options)

    def train(self, rows: int, epochs: int, *, shuffle: bool) -> None:
        raise NotImplementedError

    def layers(self) -> Layers:
        raise NotImplementedError


@singledispatch
def predictor(contender: Contender) -> Predict:
    """Arrays in, arrays out, with the parameters that the contender has now; as its users call it."""
    raise NotImplementedError


@predictor.register
def _(contender: Ours) -> Predict:
    contender.network.predict(contender.workload.data[0][:1])  # from now on, the method is the core's
    return contender.network.predict


@predictor.register
def _(contender: ByHand) -> Predict:
    return lambda x: contender.forward(x)[-1]


@predictor.register
def _(contender: ScikitLearn) -> Predict:
    return getattr(contender.model, "predict_proba", contender.model.predict)


@predictor.register
def _(contender: Torch) -> Predict:
    torch, outputs = contender.torch, contender.model
    if contender.workload.loss == "cross_entropy":
        outputs = torch.nn.Sequential(outputs, torch.nn.Softmax(1))
    outputs = contender.compiled(outputs)

    def predict(x: Array) -> Array:
        with torch.inference_mode():
            return outputs(torch.from_numpy(x)).numpy()

    return predict


@predictor.register
def _(contender: Jax) -> Predict:
    return lambda x: np.asarray(contender.apply(contender.state[0], x))


@predictor.register
def _(contender: Onnx) -> Predict:
    return lambda x: contender.session.run(None, {"x": x})[0]


@dataclass(frozen=True)
class Entry:
    """A contender by name. Slow ones, which take longer to set up than to measure, miss the quick run."""

    kind: type[Contender]
    variants: tuple[str, ...]
    trains: bool = True
    slow: bool = False

    @property
    def installed(self) -> bool:
        return find_spec(self.kind.module) is not None


def entries() -> dict[str, Entry]:
    """All contenders: ours first, one for each backend that works here."""
    ours = {name: Entry(Ours, (name,)) for name, status in pf.backends().items() if status == "available"}
    peers = {"NumPy by hand": ByHand} | dict(PEERS)
    return (
        ours
        | {name: Entry(kind, tuple(kind.variants)) for name, kind in peers.items()}
        | {
            "torch.compile": Entry(TorchCompiled, TorchCompiled.variants, slow=True),
            "ONNX Runtime": Entry(Onnx, Onnx.variants, trains=False),
        }
    )
