"""Threads: limits, equal bits whatever their number, concurrent callers, forked children."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from conftest import COMPILED
from processes import run_python

import pyfastnn as pf
from pyfastnn.backends.cpp import import_core


@pytest.fixture(autouse=True)
def _automatic_afterwards() -> Iterator[None]:
    yield
    pf.set_num_threads(0)


def test_limit(backend):
    automatic = pf.get_num_threads()
    assert automatic >= 1
    for threads in (1, 2, np.int64(3)):
        pf.set_num_threads(threads)
        assert pf.get_num_threads() == min(threads, automatic)
    # More than any machine has, and more than a C int holds.
    for threads in (10**6, 2**40, 0):
        pf.set_num_threads(threads)
        assert pf.get_num_threads() == automatic


def test_limit_set_before_the_first_use():
    code = """
    import pyfastnn as pf
    pf.set_num_threads(1)
    print(pf.get_num_threads())
    """
    assert run_python(code, PYFASTNN_BACKEND=pf.get_backend().name).split() == ["1"]


def test_openmp_variable_is_a_limit():
    code = "import pyfastnn as pf; print(pf.get_num_threads())"
    settings = {"PYFASTNN_BACKEND": pf.get_backend().name, "OMP_NUM_THREADS": "1"}
    assert run_python(code, **settings).split() == ["1"]


@pytest.mark.skipif(
    not COMPILED or not os.path.isdir("/proc/self/task"),
    reason="counts the threads of the compiled core on Linux",
)
def test_threads_come_to_large_batches_of_narrow_networks():
    """Most of the work are 3,200,000 tanhs, and there are few multiply-adds to judge it by."""
    code = """
    import os, numpy as np, pyfastnn as pf
    from pyfastnn import _core
    net = pf.MLP([3, 32, 1], "tanh", "identity", loss="mse", seed=0)
    x = np.zeros((100_000, 3), np.float32)
    net.predict(x[:1])
    before = len(os.listdir("/proc/self/task"))
    _core.oversubscribe(True)
    pf.set_num_threads(2)
    for _ in range(10):
        net.predict(x)
    print(len(os.listdir("/proc/self/task")) - before)
    """
    assert run_python(code, PYFASTNN_BACKEND="cpp").split() == ["1"]


@pytest.mark.skipif(
    not COMPILED or "without OpenMP" in import_core().explain_threads(),
    reason="threadpoolctl reaches us through the OpenMP runtime that the compiled core was built with",
)
def test_threadpoolctl_is_a_limit():
    code = """
    import pyfastnn as pf, threadpoolctl
    automatic = pf.get_num_threads()
    with threadpoolctl.threadpool_limits(1):
        print(pf.get_num_threads())
    assert pf.get_num_threads() == automatic
    """
    assert run_python(code, PYFASTNN_BACKEND="cpp").split() == ["1"]


def forward(dtype: np.dtype, rng: np.random.Generator) -> list[np.ndarray]:
    x, w, b = (rng.normal(size=size).astype(dtype) for size in ((509, 263), (263, 131), (131,)))
    return [pf.dense_forward(x, w, b, name) for name in ("identity", "tanh", "softmax")]


def backward(dtype: np.dtype, rng: np.random.Generator) -> list[np.ndarray]:
    x, w, d = (rng.normal(size=size).astype(dtype) for size in ((509, 263), (263, 131), (509, 131)))
    delta = pf.activation_delta(d, w, np.tanh(x), "tanh")
    changed, sums = w.copy(), np.zeros(131, dtype)
    pf.dense_update(x, changed, sums, d, 0.1)
    return [*pf.dense_backward(x, w, d), delta, changed, sums]


def loss(dtype: np.dtype, rng: np.random.Generator) -> list[np.ndarray]:
    a, y = rng.uniform(size=(2, 3001, 101)).astype(dtype)
    weight = rng.uniform(size=len(a)).astype(dtype)
    labels = rng.integers(0, a.shape[1], len(a))
    results = [
        pf.output_delta(a, y, "mse", "sigmoid"),
        pf.output_delta(a, y, "mse", "softmax", sample_weight=weight),
        pf.output_delta(a, labels),
    ]
    return [np.asarray(part) for result in results for part in result]


def fit(dtype: np.dtype, rng: np.random.Generator) -> list[np.ndarray]:
    results = []
    # Many parameters; few, and large batches; wide inputs and small batches.
    for layers, batch in (([150, 200, 10], 256), ([20, 64, 64, 10], 1000), ([1500, 30, 10], 64)):
        x = rng.normal(size=(2 * batch + batch // 3, layers[0])).astype(dtype)
        y = rng.integers(0, 10, len(x))
        net = pf.MLP(layers, "gelu", "softmax", dtype=dtype, seed=1)
        history = net.fit(x, y, epochs=2, batch_size=batch, validation_data=(x, y))
        loss, gradient = net.loss_and_gradient(x, y)
        results += [net.params, history.loss, history.validation["loss"], net.predict(x), loss, gradient]
    return [np.asarray(result) for result in results]


@pytest.mark.parametrize("work", [forward, backward, loss, fit])
def test_same_bits_on_one_and_two_threads(backend, dtype, work):
    """Every shape is large enough to be shared among threads, and no multiple of their number."""
    results = []
    for threads in (1, 2):
        pf.set_num_threads(threads)
        results.append(work(dtype, np.random.default_rng(0)))
    for one, two in zip(*results, strict=True):
        assert one.tobytes() == two.tobytes()


def together(count: int, work: Callable[[int], bool]) -> list[bool]:
    """The answers of ``count`` threads that start their work at once."""
    barrier = threading.Barrier(count, timeout=60)
    answers = [False] * count

    def run(number: int) -> None:
        barrier.wait()
        answers[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return answers


# Rows and width: one that stays in the calling thread, one that is shared among several.
@pytest.mark.parametrize(("rows", "width", "repeats"), [(7, 12, 200), (400, 160, 5)])
def test_concurrent_callers(backend, dtype, rows, width, repeats):
    # Small integers, whose sums are exact in any order.
    rng = np.random.default_rng(2)
    x = rng.integers(-2, 3, (4, rows, width)).astype(dtype)
    net = pf.MLP([width, width, 3], dtype=dtype)
    net.params = rng.integers(-2, 3, net.parameter_count).astype(dtype)
    (w, last), (b, last_b) = net.weights, net.biases
    hidden = np.maximum(x @ w + b, 0)
    outputs = hidden @ last + last_b

    def work(number: int) -> bool:
        right = True
        with pf.use_backend(backend):
            for _ in range(repeats):
                right &= np.array_equal(pf.dense_forward(x[number], w, b, "relu"), hidden[number])
                right &= np.array_equal(net.predict(x[number]), outputs[number])
        return right

    assert together(len(x), work) == [True] * len(x)


def test_concurrent_training_of_copies(backend):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 20)).astype(np.float32)
    net = pf.MLP([20, 30, 20], "tanh", seed=4)
    expected = net.copy()
    expected.fit(x, x, epochs=3)
    copies = [net.copy() for _ in range(4)]

    def work(number: int) -> bool:
        with pf.use_backend(backend):
            copies[number].fit(x, x, epochs=3)
        return copies[number].params.tobytes() == expected.params.tobytes()

    assert together(len(copies), work) == [True] * len(copies)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(
    "name",
    [name for name, status in pf.backends().items() if status == "available" and name != "cuda"],  # cannot
)
def test_forked_child_computes(name):
    """Of the threads of its parent a forked child has but one, and none of them wakes up for it."""
    code = """
    import os, signal, warnings
    import numpy as np
    import pyfastnn as pf
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: on purpose
    x = (np.arange(1024 * 1024) % 5).astype(np.float32).reshape(1024, 1024)
    expected = pf.dense_forward(x, x, x[0])
    y = x[:, :10].copy()
    net = pf.MLP([1024, 512, 10], "tanh", seed=0)
    net.fit(x, y, epochs=1, batch_size=256)
    twin = net.copy()
    twin.fit(x, y, epochs=1, batch_size=256)

    def right():
        again = net.copy()
        again.fit(x, y, epochs=1, batch_size=256)
        product = pf.dense_forward(x, x, x[0])
        return np.array_equal(product, expected) and np.array_equal(again.params, twin.params)

    child = os.fork()
    if not child:
        signal.alarm(30)  # a hanging child ends, and not by exit status 0
        os._exit(0 if right() else 1)
    print(os.waitpid(child, 0)[1])
    assert right()
    """
    assert run_python(code, PYFASTNN_BACKEND=name).split() == ["0"]


# One network and batch a schedule: tiles, rows then weights, inputs then tail, four layers split, replicas,
# parts.
SCHEDULES = [
    ([5, 33, 17, 3], 1201),
    ([65, 129, 67, 5], 90),
    ([787, 31, 10], 13),
    ([40, 100, 70, 150, 2], 30),
    ([30, 30, 2], 380),
    ([65, 129, 67, 5], 300),
]


@pytest.mark.skipif(not COMPILED, reason="without the compiled core")
@pytest.mark.parametrize(("layers", "batch"), SCHEDULES, ids=repr)
def test_teams_larger_than_the_machine_end_and_agree(layers, batch):
    # Members wait for one another's processor all the time: teams dissolve and form again.
    code = f"""
    import os
    import numpy as np, pyfastnn as pf
    from pyfastnn import _core
    rng = np.random.default_rng(0)
    x = rng.random((20 * {batch}, {layers[0]}), np.float32)
    y = rng.random((20 * {batch}, {layers[-1]}), np.float32)
    def trained(threads):
        pf.set_num_threads(threads)
        net = pf.MLP({layers}, "tanh", seed=0)
        net.fit(x, y, epochs=5, batch_size={batch})
        return net.params
    alone = trained(1)
    assert trained(2).tobytes() == alone.tobytes()  # tries on the way whether the second thread pays
    _core.oversubscribe(True)
    for threads in (3, os.cpu_count() + 3):
        for _ in range(3):
            assert trained(threads).tobytes() == alone.tobytes()
        assert pf.get_num_threads() == threads
    """
    run_python(code, PYFASTNN_BACKEND="cpp")


@pytest.mark.skipif(not COMPILED, reason="without the compiled core")
def test_callers_that_share_too_few_threads_end_and_agree():
    code = """
    import threading
    import numpy as np, pyfastnn as pf
    from pyfastnn import _core
    rng = np.random.default_rng(0)
    x, d = rng.random((2, 700, 70), np.float32)
    net = pf.MLP([70, 70, 70], "tanh", seed=0)
    w, b = net.weights[0], net.biases[0]

    def results():
        trained = net.copy()
        trained.fit(x, x, epochs=2, batch_size=350)
        return [pf.dense_forward(x, w, b), *pf.dense_backward(x, w, d), net.predict(x), trained.params]

    pf.set_num_threads(1)
    expected = results()
    _core.oversubscribe(True)
    pf.set_num_threads(5)
    agreed = []

    def call():
        for _ in range(20):
            agreed.append(all(map(np.array_equal, results(), expected)))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert agreed == [True] * 80
    """
    run_python(code, PYFASTNN_BACKEND="cpp")


COUNTER = """
#include <atomic>
#include <cstddef>
extern "C" void* __libc_malloc(size_t);
extern "C" void* __libc_memalign(size_t, size_t);
static std::atomic<long> calls{0};
extern "C" long allocations() { return calls; }
extern "C" void* malloc(size_t size) { calls++; return __libc_malloc(size); }
extern "C" void* aligned_alloc(size_t unit, size_t size) { calls++; return __libc_memalign(unit, size); }
"""


@pytest.mark.skipif(
    not COMPILED or platform.libc_ver()[0] != "glibc" or not shutil.which("c++"),
    reason="counting allocations takes the compiled core, the GNU C library and a compiler",
)
@pytest.mark.parametrize(("layers", "batch"), SCHEDULES, ids=repr)
def test_steps_do_not_allocate(tmp_path, layers, batch):
    (tmp_path / "counter.cpp").write_text(COUNTER)
    library = str(tmp_path / "counter.so")
    build = ["c++", "-std=c++17", "-shared", "-fPIC", "-o", library, str(tmp_path / "counter.cpp")]
    subprocess.run(build, check=True)
    code = f"""
    import ctypes
    import numpy as np, pyfastnn as pf
    library = ctypes.CDLL(None)
    library.allocations.restype = ctypes.c_long
    pf.set_num_threads(1)
    rng = np.random.default_rng(0)
    x = rng.random((200 * {batch}, {layers[0]}), np.float32)
    y = rng.random((200 * {batch}, {layers[-1]}), np.float32)
    net = pf.MLP({layers}, "tanh", seed=0)
    def allocations(steps):
        before = library.allocations()
        net.fit(x[: steps * {batch}], y[: steps * {batch}], epochs=1, batch_size={batch})
        return library.allocations() - before
    allocations(1)
    few, many = allocations(2), allocations(200)
    assert few > 0  # those of Python and NumPy, once an epoch
    assert many < few + 50, (few, many)
    """
    run_python(code, PYFASTNN_BACKEND="cpp", LD_PRELOAD=library)
