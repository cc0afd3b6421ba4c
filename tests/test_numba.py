"""What is particular to the backend that Numba compiles: formulas, epochs, the cache, being absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKENDS
from processes import run_python

import pyfastnn as pf
from pyfastnn.activations import Activation
from pyfastnn.backends import load
from pyfastnn.backends.plan import Plan, Spec
from pyfastnn.optimizers import OptimizerState

pytestmark = pytest.mark.skipif("numba" not in BACKENDS, reason="without Numba")

# One layer: a compiled product and a formula. Says what it took.
WORK = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(name)s %(levelname)s %(message)s", level=logging.INFO)
import numpy as np
import pyfastnn as pf
from pyfastnn.backends import load
print(pf.dense_forward(np.array([[-1.0]]), np.ones((1, 1)), np.zeros(1), "leaky_relu").item())
print(load("numba").facts()["numba compilation"])
"""


def work(before: str = "", **environment: str) -> list[str]:
    """What the work prints: a log line for what was compiled, the result, and the summary."""
    return run_python(before + WORK, PYFASTNN_BACKEND="numba", **environment).splitlines()


def cached(line: str) -> tuple[int, int]:
    """Functions, and how many of them from the cache, of such a line."""
    numbers = [int(word) for word in line.replace(",", "").split() if word.isdigit()]
    return numbers[0], numbers[-1]


@pytest.fixture
def installed(tmp_path) -> Path:
    """A folder with a copy of the package."""
    source = Path(pf.__file__).parent
    shutil.copytree(source, tmp_path / "copy" / "pyfastnn", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copy"


def imports_from(folder: Path) -> str:
    """Code that makes a process import the package from there, whatever else is installed."""
    return f"""
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "pyfastnn" not in type(finder).__module__]
sys.path.insert(0, {str(folder)!r})
"""


def test_is_imported_when_it_is_asked_for():
    code = """
    import sys
    import numpy as np
    import pyfastnn as pf
    pf.dense_forward(np.ones((2, 2)), np.ones((2, 2)), np.ones(2))
    pf.MLP([2, 2]).fit(np.ones((2, 2), np.float32), np.ones((2, 2), np.float32), epochs=1)
    print(sorted(name for name in sys.modules if name.partition(".")[0] in ("numba", "llvmlite")))
    """
    assert run_python(code, PYFASTNN_BACKEND=pf.get_backend().name).split() == ["[]"]


@pytest.mark.parametrize("error", ["ImportError('needs an older NumPy')", "SystemError('an older NumPy')"])
def test_what_does_not_import_is_a_reason(tmp_path, error):
    (tmp_path / "numba.py").write_text(f"raise {error}")
    code = "import pyfastnn as pf; print(pf.backends()['numba'])"
    reason = run_python(code, PYTHONPATH=str(tmp_path))
    assert reason.startswith("backend 'numba' has no working package numba (")
    assert "older NumPy" in reason


def test_a_disabled_compiler_is_a_reason():
    code = "import pyfastnn as pf; print(pf.backends()['numba'])"
    reason = run_python(code, NUMBA_DISABLE_JIT="1")
    assert reason.startswith("backend 'numba' has no compiler: NUMBA_DISABLE_JIT")


def test_a_second_process_takes_all_from_the_cache(tmp_path):
    lines = [work(NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    for *log, result, summary in lines:
        assert float(result) == -0.01
        assert all(line.startswith("pyfastnn INFO numba made ") for line in log)
        assert sum(cached(line)[0] for line in log) == cached(summary)[0] >= 3
    assert cached(lines[0][-1])[1] == 0
    made, from_cache = cached(lines[1][-1])
    assert made == from_cache


def test_a_changed_formula_is_compiled_again(installed):
    formulas, before = installed / "pyfastnn" / "activations.py", imports_from(installed)
    text = formulas.read_text()
    assert float(work(before)[-2]) == -0.01
    formulas.write_text(text.replace("_LEAK = 0.01", "_LEAK = 0.25"))
    changed = work(before)
    assert float(changed[-2]) == -0.25
    assert cached(changed[-1])[1] == 0
    formulas.write_text(text)
    *_, result, summary = work(before)
    assert float(result) == -0.01
    assert cached(summary)[0] == cached(summary)[1]


def test_where_nothing_can_be_written_there_is_no_cache(installed, tmp_path):
    """Files stand where the folders would be made, which stops root as well."""
    (installed / "pyfastnn" / "backends" / "__pycache__").write_text("")
    (tmp_path / "file").write_text("")
    for _ in range(2):
        *_, result, summary = work(imports_from(installed), XDG_CACHE_HOME=str(tmp_path / "file"))
        assert float(result) == -0.01
        assert cached(summary)[1] == 0


def test_a_read_only_package_is_cached_with_the_user(installed, tmp_path):
    (installed / "pyfastnn" / "backends" / "__pycache__").write_text("")
    for expected in (0, 3):
        *_, summary = work(imports_from(installed), XDG_CACHE_HOME=str(tmp_path))
        assert cached(summary)[1] >= expected
    assert cached(summary)[0] == cached(summary)[1]


def test_show_config_says_what_was_compiled():
    code = """
    import numpy as np
    import pyfastnn as pf
    pf.show_config()
    pf.dense_forward(np.ones((2, 2)), np.ones((2, 2)), np.ones(2))
    pf.show_config()
    """
    printed = run_python(code, PYFASTNN_BACKEND="numba").splitlines()
    none, some = (line for line in printed if line.startswith("numba compilation"))
    assert none.endswith("none yet")
    assert cached(some)[0] >= 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_trains_and_compiles():
    code = """
    import os, signal, warnings
    import numpy as np
    import pyfastnn as pf
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: on purpose
    x = np.random.default_rng(0).normal(size=(100, 5))

    def params(dtype):
        net = pf.MLP([5, 8, 5], "tanh", dtype=dtype, seed=0)
        net.fit(x.astype(dtype), x.astype(dtype), epochs=2)
        return net.params

    expected = params("float32")
    child = os.fork()
    if not child:
        signal.alarm(50)  # a hanging child ends, and not by exit status 0
        wide = params("float64")  # first compiled here
        os._exit(0 if np.array_equal(params("float32"), expected) and np.allclose(wide, expected) else 1)
    print(os.waitpid(child, 0)[1])
    """
    assert run_python(code, PYFASTNN_BACKEND="numba").split() == ["0"]


def specification(layers: list[int], hidden: str, output: str, loss: str, dtype: np.dtype) -> Spec:
    names = [hidden] * (len(layers) - 2) + [output]
    return Spec(tuple(layers), tuple(map(pf.activations.get, names)), pf.losses.get(loss), dtype)


OPTIMIZERS = [pf.SGD(0.1), pf.SGD(0.1, momentum=0.9), pf.SGD(0.1, momentum=0.9, nesterov=True), pf.Adam(0.1)]
NETWORKS = [("tanh", "identity", "mse"), ("gelu", "softmax", "cross_entropy"), ("relu", "softmax", "mse")]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_an_epoch_equals_that_of_the_kernels(dtype, network, optimizer, weighted):
    """To the bit, last short batch included: both sum in one order, and weights here are exact."""
    hidden, output, loss = network
    rng = np.random.default_rng(0)
    x, order = rng.normal(size=(53, 7)).astype(dtype), rng.permutation(53)
    y = rng.normal(size=(53, 5)).astype(dtype) if loss == "mse" else rng.integers(0, 5, 53)
    weight = rng.integers(0, 5, 53).astype(dtype) if weighted else None
    results = []
    with pf.use_backend("numba") as backend:
        spec = specification([7, 19, 5], hidden, output, loss, dtype)
        for plan in (backend.plan(spec), Plan(backend, spec)):
            params = np.random.default_rng(1).normal(size=spec.parameter_count).astype(dtype)
            state = OptimizerState(optimizer, tuple(np.zeros_like(params) for _ in range(optimizer.slots)))
            means = [plan.train_epoch(params, x, y, weight, order, 16, state) for _ in range(2)]
            results.append((params, *state.slots, np.array(means)))
            assert state.step == 8
    for fused, generic in zip(*results, strict=True):
        np.testing.assert_array_equal(fused, generic)


def test_bits_do_not_depend_on_how_many_rows_pass_at_a_time(dtype, monkeypatch):
    from pyfastnn.backends import jitted

    x = np.random.default_rng(0).normal(size=(700, 6)).astype(dtype)
    results = []
    for size in (jitted._PASSING, 1):
        monkeypatch.setattr(jitted, "_PASSING", size)
        net = pf.MLP([6, 17, 6], "silu", dtype=dtype, seed=0)
        with pf.use_backend("numba"):
            net.fit(x, x, epochs=2, batch_size=300)
            results.append((net.params, net.predict(x)))
    for whole, parts in zip(*results, strict=True):
        np.testing.assert_array_equal(whole, parts)


def test_large_networks_are_left_to_blas():
    shapes = ([784, 30, 10], [1024, 1024, 10])
    specs = [specification(layers, "relu", "identity", "mse", np.dtype(np.float32)) for layers in shapes]
    plans = [load("numba").plan(spec) for spec in specs]
    assert [type(plan) is Plan for plan in plans] == [False, True]


# Bound in units in the last place, above what docs/numerics.md says was found; where it is tried.
FUNCTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float, tuple[float, float]]] = {
    "exp": (lambda z: np.exp(z), 2, (-86.0, 88.0)),
    "expm1": (lambda z: np.expm1(z), 3, (-86.0, 88.0)),
    "log": (lambda z: np.log(z), 3, (1e-44, 1e38)),
    "log1p": (lambda z: np.log1p(z), 4, (-0.99, 1e30)),
    "tanh": (lambda z: np.tanh(z), 6, (-20.0, 20.0)),
    "sqrt": (lambda z: np.sqrt(z), 1, (0.0, 1e30)),
}
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, -2.0, 1e-40, 89.0, 1e30, -1e30]


def as_activation(name: str, value: Callable[[np.ndarray], np.ndarray]) -> Activation:
    return Activation(name, "", "", value=value, delta=lambda d, a: +d)


def applied(value: Callable[[np.ndarray], np.ndarray], name: str, z: np.ndarray) -> np.ndarray:
    """The function at z (n,), compiled: formulas need not be in a list."""
    a = np.empty((1, len(z)), z.dtype)
    one, none = np.zeros((1, 0), z.dtype), np.zeros((0, len(z)), z.dtype)
    load("numba").dense_forward(one, none, z, as_activation(name, value), None, a)
    return a[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_err_by_few_units(dtype, name):
    value, units, (low, high) = FUNCTIONS[name]
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(1e-30), np.log(high), 20_000))
    z = np.concatenate([rng.uniform(max(low, -86), min(high, 88), 20_000), sizes, -sizes])
    z = z[(z >= low) & (z <= high)].astype(dtype)
    exact = value(z.astype(np.longdouble))
    error = abs(applied(value, f"test_{name}", z) - exact) / np.spacing(abs(exact.astype(dtype)))
    assert error.max() <= units


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_at_special_values(dtype, name):
    value = FUNCTIONS[name][0]
    z = np.array(SPECIAL, dtype)
    with np.errstate(all="ignore"):
        expected = value(z)
    # Near the limits they are the limits, and exp flushes what is not normal.
    atol = 2 * np.finfo(dtype).tiny
    np.testing.assert_allclose(applied(value, f"test_{name}", z), expected, rtol=1e-6, atol=atol)


# Numba's settings for other processors than this one, which may well be wider.
NARROWER = {
    "16": {"NUMBA_CPU_NAME": "generic"},
    "32": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma"},
}


@pytest.mark.parametrize("width", NARROWER)
def test_narrower_vectors(width):
    """The exact gradients of small whole numbers."""
    code = """
    import numpy as np
    import pyfastnn as pf
    from pyfastnn.backends import load
    load("numba")
    from pyfastnn.backends.vectors import VECTOR_BYTES
    from test_schedules import exact_problem
    for layers, batch in (([5, 33, 17, 3], 29), ([784, 30, 10], 10)):
        results = []
        for name in ("numba", "numpy"):
            net, (x, y, weight) = exact_problem(layers, batch, np.dtype(np.float32))
            with pf.use_backend(name):
                results.append(net.loss_and_gradient(x, y, sample_weight=weight))
        assert results[0][0] == results[1][0]
        assert np.array_equal(results[0][1], results[1][1])
    print(VECTOR_BYTES)
    """
    if os.uname().machine != "x86_64":
        pytest.skip("vectors of other processors have one width")
    assert run_python(code, **NARROWER[width]).split() == [width]
