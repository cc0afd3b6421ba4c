"""Networks, optimizers and settings refuse wrong arguments by name and stay as they were."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from refusals import (
    MEMORY,
    MIXED_DTYPES,
    UNDEFINED_PAIRS,
    WRONG_DTYPES,
    WRONG_LAYOUTS,
    WRONG_OUTPUTS,
    Arguments,
    assert_refused,
    longer,
    overlapping,
)

import pyfastnn as pf

N, INPUTS, OUTPUTS = 6, 3, 2

METHODS = {
    "predict": ("x", "out"),
    "evaluate": ("x", "y", "sample_weight"),
    "loss_and_gradient": ("x", "y", "sample_weight", "out"),
    "fit": ("x", "y", "sample_weight"),
}
ARRAYS = [(method, name) for method, names in METHODS.items() for name in names]
DATA = [(method, name) for method, name in ARRAYS if name != "out"]


def network(dtype: np.dtype) -> pf.MLP:
    """A network in the middle of its training, so that it has a state to lose."""
    net = pf.MLP([INPUTS, 4, OUTPUTS], "tanh", loss="mse", dtype=dtype, seed=0)
    data = good(net, "fit")
    net.fit(**data, epochs=2, optimizer=pf.SGD(0.1, momentum=0.5))
    return net


def good(net: pf.MLP, method: str) -> Arguments:
    rng = np.random.default_rng(1)
    shapes = {"x": (N, INPUTS), "y": (N, OUTPUTS), "sample_weight": (N,), "out": (N, OUTPUTS)}
    if method == "loss_and_gradient":
        shapes["out"] = (net.parameter_count,)
    return {name: rng.uniform(0.1, 0.9, shapes[name]).astype(net.dtype) for name in METHODS[method]}


def refuse(net: pf.MLP, method: str, arguments: Arguments, error: type[Exception], match: str) -> None:
    assert_refused(getattr(net, method), arguments, error, match, network=net)


@pytest.mark.parametrize(("spoil", "error", "message"), WRONG_DTYPES + MIXED_DTYPES + WRONG_LAYOUTS)
@pytest.mark.parametrize(("method", "name"), ARRAYS)
def test_wrong_array(method, name, spoil, error, message, dtype):
    net = network(dtype)
    arguments = good(net, method)
    arguments[name] = spoil(arguments[name])
    refuse(net, method, arguments, error, rf"^{name} {message}")


@pytest.mark.parametrize(
    ("method", "name", "axis", "blamed"),
    [
        *((method, name, 0, name if name != "x" else None) for method, name in ARRAYS),
        *((method, name, 1, name) for method, name in ARRAYS if name in ("x", "y")),
    ],
)
def test_shapes_that_do_not_fit(method, name, axis, blamed, dtype):
    # One sample more in x, and it is the array checked next that does not fit.
    blamed = blamed or ("out" if method == "predict" else "sample_weight")
    net = network(dtype)
    arguments = good(net, method)
    arguments[name] = longer(arguments[name], axis)
    refuse(net, method, arguments, ValueError, rf"^{blamed} must have shape \(.*\), got \(.*\)")


@pytest.mark.parametrize(("spoil", "error", "message"), WRONG_OUTPUTS)
@pytest.mark.parametrize("method", ["predict", "loss_and_gradient"])
def test_wrong_output(method, spoil, error, message, dtype):
    net = network(dtype)
    arguments = good(net, method)
    arguments["out"] = spoil(arguments["out"])
    refuse(net, method, arguments, error, rf"^out {message}")


@pytest.mark.parametrize("shared", ["all", "one element"])
@pytest.mark.parametrize(
    ("method", "used"), [(method, name) for method, name in DATA if "out" in METHODS[method]]
)
def test_overlapping_output(method, used, shared, dtype):
    net = network(dtype)
    arguments = good(net, method)
    count = {"all": arguments[used].size, "one element": 1}[shared]
    arguments["out"], arguments[used] = overlapping(arguments["out"], arguments[used], count)
    refuse(net, method, arguments, ValueError, rf"^out {MEMORY} {used}$")


@pytest.mark.parametrize("method", ["predict", "loss_and_gradient"])
def test_output_into_the_parameters(method, dtype):
    net = network(dtype)
    arguments = good(net, method)
    arguments["out"] = net.params[-arguments["out"].size :].reshape(arguments["out"].shape)
    refuse(net, method, arguments, ValueError, rf"^out {MEMORY} the parameters$")


@pytest.mark.parametrize("method", ["evaluate", "loss_and_gradient", "fit"])
def test_no_samples(method, dtype):
    net = network(dtype)
    arguments = {name: value[:0] for name, value in good(net, method).items()}
    refuse(net, method, arguments, ValueError, "^x must have at least one row, got none")


@pytest.mark.parametrize(("spoil", "error", "message"), WRONG_DTYPES + MIXED_DTYPES + WRONG_LAYOUTS)
def test_params_setter(spoil, error, message, dtype):
    net = network(dtype)
    good_params = np.ones(net.parameter_count, dtype)

    def assign(value: object) -> None:
        net.params = value

    arguments = {"value": spoil(good_params)}
    assert_refused(assign, arguments, error, rf"^params {message}", network=net)
    arguments = {"value": longer(good_params, 0)}
    assert_refused(assign, arguments, ValueError, "^params must have shape", network=net)


class NotACallback:
    def on_epoch(self, network: pf.MLP, history: pf.History) -> None: ...


X, Y = np.ones((2, INPUTS), "f4"), np.ones((2, OUTPUTS), "f4")
FIT_ARGUMENTS = [
    ("epochs", -1, ValueError, "^epochs must be >= 0, got -1"),
    ("epochs", True, TypeError, "^epochs must be an int, got bool"),
    ("epochs", 1.0, TypeError, "^epochs must be an int, got float"),
    ("epochs", "3", TypeError, "^epochs must be an int, got str"),
    ("epochs", None, TypeError, "^epochs must be an int, got NoneType"),
    ("batch_size", 0, ValueError, "^batch_size must be >= 1, got 0"),
    ("batch_size", -5, ValueError, "^batch_size must be >= 1, got -5"),
    ("batch_size", np.True_, TypeError, "^batch_size must be an int, got bool"),
    ("batch_size", 2.5, TypeError, "^batch_size must be an int, got float"),
    ("optimizer", "adam", TypeError, r"^optimizer must be one of pyfastnn.SGD\(.*pyfastnn.Adam\(.*'adam'"),
    ("optimizer", pf.SGD, TypeError, r"^optimizer must be one of .*got <class"),
    ("optimizer", 0.1, TypeError, r"^optimizer must be one of .*got 0.1"),
    ("callbacks", pf.Callback(), TypeError, "^callbacks must be a list of .*got Callback"),
    ("callbacks", None, TypeError, "^callbacks must be a list of .*got NoneType"),
    ("callbacks", [pf.Callback], TypeError, "^callbacks must be pyfastnn.Callback objects, got <class"),
    ("callbacks", [pf.Callback(), NotACallback()], TypeError, "^callbacks must be .*NotACallback"),
    ("validation_data", [X, Y], TypeError, r"^validation_data must be a tuple \(x, y\), got list"),
    ("validation_data", (X, Y, Y), TypeError, r"^validation_data must be a tuple \(x, y\)"),
    ("validation_data", X, TypeError, r"^validation_data must be a tuple \(x, y\), got ndarray"),
    ("validation_data", (X[:0], Y[:0]), ValueError, "^validation_data must have at least one row"),
    ("validation_data", (X.tolist(), Y), TypeError, r"^validation_data\[0\] must be a NumPy array"),
    ("validation_data", (X[:, 1:], Y), ValueError, r"^validation_data\[0\] must have shape"),
    ("validation_data", (X.astype("f8"), Y), TypeError, r"^validation_data\[0\] must be float32"),
    ("validation_data", (X, Y[1:]), ValueError, r"^validation_data\[1\] must have shape"),
    ("validation_data", (X, Y.astype("f8")), TypeError, r"^validation_data\[1\] must be float32"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "error", "match"), FIT_ARGUMENTS)
def test_fit_arguments(name, value, error, match):
    net = network(np.dtype(np.float32))
    refuse(net, "fit", good(net, "fit") | {name: value}, error, match)


def test_progress_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    net = network(np.dtype(np.float32))
    arguments = good(net, "fit") | {"progress": True, "optimizer": pf.Adam()}
    refuse(net, "fit", arguments, ImportError, r"^the progress bar needs tqdm: pip install")


ACTIVATIONS = "known: " + ", ".join(pf.activations.ACTIVATIONS)
CONSTRUCTOR = [
    ({"layers": 5}, TypeError, "^layers must be a sequence of int, got int"),
    ({"layers": []}, ValueError, "^layers must have at least two sizes.*got 0"),
    ({"layers": [3]}, ValueError, "^layers must have at least two sizes.*got 1"),
    ({"layers": [3, 0, 2]}, ValueError, r"^layers\[1\] must be >= 1, got 0"),
    ({"layers": [3, 4, -2]}, ValueError, r"^layers\[2\] must be >= 1, got -2"),
    ({"layers": [True, 4, 2]}, TypeError, r"^layers\[0\] must be an int, got bool"),
    ({"layers": [3, np.True_, 2]}, TypeError, r"^layers\[1\] must be an int, got bool"),
    ({"layers": [3, 4.0, 2]}, TypeError, r"^layers\[1\] must be an int, got float"),
    ({"layers": [3, None, 2]}, TypeError, r"^layers\[1\] must be an int, got NoneType"),
    ({"layers": "342"}, TypeError, r"^layers\[0\] must be an int, got str"),
    ({"activation": "nonsense"}, ValueError, f"^unknown activation 'nonsense'; {ACTIVATIONS}"),
    ({"activation": "softmax"}, ValueError, "^activation 'softmax' serves as output only"),
    ({"activation": ["relu", "relu"]}, ValueError, "^activation must be one name, or 1 for .*, got 2"),
    ({"activation": []}, ValueError, "^activation must be one name, or 1 for .*, got 0"),
    ({"activation": [None]}, TypeError, "^activation must be a name"),
    ({"activation": None}, TypeError, "^activation must be a name .*got NoneType"),
    ({"activation": 3}, TypeError, "^activation must be a name .*got int"),
    ({"output": "nonsense"}, ValueError, f"^unknown output activation 'nonsense'; {ACTIVATIONS}"),
    ({"output": None}, TypeError, "^output activation must be a name"),
    ({"output": "gelu"}, ValueError, "^output activation 'gelu' is not supported"),
    ({"loss": "nonsense"}, ValueError, "^unknown loss 'nonsense'; known: " + ", ".join(pf.losses.LOSSES)),
    ({"loss": 1}, TypeError, r"^loss must be a name \(str\), got int"),
    ({"loss": "cross_entropy", "output": "sigmoid"}, ValueError, "^loss 'cross_entropy' needs .*softmax"),
    ({"dtype": "float16"}, ValueError, "^dtype must be float32 or float64, got 'float16'"),
    ({"dtype": np.int64}, ValueError, "^dtype must be float32 or float64, got .*int64"),
    ({"dtype": np.dtype("f4").newbyteorder()}, ValueError, "^dtype must be float32 or float64, got "),
    ({"dtype": "nonsense"}, ValueError, "^dtype must be float32 or float64, got 'nonsense'"),
    ({"dtype": None}, ValueError, "^dtype must be float32 or float64, got None"),
    ({"init": "nonsense"}, ValueError,
     "^unknown init 'nonsense'; known: " + ", ".join(pf.initialisers.INITIALISATIONS)),
    ({"init": 0}, TypeError, r"^init must be a name \(str\), got int"),
    ({"seed": -1}, ValueError, "^seed must be an int >= 0, a Generator or None, got -1"),
    ({"seed": "0"}, TypeError, "^seed must be an int >= 0, a Generator or None, got '0'"),
    ({"seed": 0.5}, TypeError, "^seed must be an int >= 0, a Generator or None, got 0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "match"), CONSTRUCTOR)
def test_constructor(arguments, error, match):
    rng = np.random.default_rng(3)
    before = rng.bit_generator.state
    assert_refused(pf.MLP, {"layers": [3, 4, 2], "seed": rng} | arguments, error, match)
    assert rng.bit_generator.state == before


@pytest.mark.parametrize(("loss", "output"), UNDEFINED_PAIRS)
def test_undefined_pairs_of_loss_and_output(loss, output):
    match = rf"^(loss '{loss}' needs the output activation .*|output activation) '{output}'"
    assert_refused(pf.MLP, {"layers": [3, 2], "loss": loss, "output": output}, ValueError, match)


OPTIMIZERS = [
    (pf.SGD, "learning_rate", [-0.1, float("nan"), float("inf")]),
    (pf.SGD, "momentum", [-0.1, 1, 1.5, float("nan")]),
    (pf.Adam, "learning_rate", [-0.1, float("nan"), float("inf")]),
    (pf.Adam, "beta1", [-0.1, 1, float("nan")]),
    (pf.Adam, "beta2", [-0.1, 1.0, float("nan")]),
    (pf.Adam, "epsilon", [-1e-8, float("nan"), float("inf")]),
]


@pytest.mark.parametrize(("optimizer", "name", "values"), OPTIMIZERS)
def test_hyperparameters(optimizer, name, values):
    for value in values:
        match = rf"^{name} must be in \[0, (1|inf)\), got {value!r}"
        assert_refused(optimizer, {name: value}, ValueError, match)
    for value in ("0.1", None, True, [0.1]):
        assert_refused(optimizer, {name: value}, TypeError, rf"^{name} must be a number, got")


def test_nesterov_without_momentum():
    assert_refused(pf.SGD, {"nesterov": True}, ValueError, "^nesterov needs a momentum > 0")


@pytest.mark.parametrize(
    ("threads", "error", "match"),
    [
        (-1, ValueError, "^threads must be >= 0, got -1"),
        (True, TypeError, "^threads must be an int, got bool"),
        (1.0, TypeError, "^threads must be an int, got float"),
        ("2", TypeError, "^threads must be an int, got str"),
        (None, TypeError, "^threads must be an int, got NoneType"),
    ],
)
def test_threads(backend, threads, error, match):
    before = pf.get_num_threads()
    assert_refused(pf.set_num_threads, {"threads": threads}, error, match)
    assert pf.get_num_threads() == before


def enter(backend: object) -> None:
    with pf.use_backend(backend):
        raise AssertionError("entered")


@pytest.mark.parametrize("choose", [pf.set_backend, enter])
@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("nonsense", ValueError, "^unknown backend 'nonsense'; known: " + ", ".join(pf.backends())),
        ("CPP", ValueError, "^unknown backend 'CPP'"),
        (None, TypeError, r"^backend must be a name \(str\), got NoneType"),
        (3, TypeError, r"^backend must be a name \(str\), got int"),
        (pf.backends, TypeError, r"^backend must be a name \(str\), got function"),
    ],
)
def test_backends(choose, name, error, match):
    before = pf.get_backend()
    assert_refused(choose, {"backend": name}, error, match)
    assert pf.get_backend() is before
