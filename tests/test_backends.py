"""The registry of backends, and who sees which choice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from conftest import BACKENDS, COMPILED
from processes import run_python

import pyfastnn as pf
from pyfastnn.backends import load
from pyfastnn.backends.cpp import import_core
from pyfastnn.backends.plan import Backend

NAMES = list(pf.backends())
AVAILABLE = [name for name, status in pf.backends().items() if status == "available"]
ISAS = [backend.isa for backend in COMPILED]
# What a process does to lose a backend, before it imports the package, and what it is told.
HIDDEN = {
    "cpp": "import sys; sys.modules['pyfastnn._core'] = None\n",
    "numba": "import sys; sys.modules['numba'] = None\n",
}
NO_CORE = HIDDEN["cpp"]
MISSING = {
    "cpp": "backend 'cpp' has no compiled core (",
    "numba": "backend 'numba' has no package numba (pip install 'pyfastnn[numba]')",
}

needs_core = pytest.mark.skipif(not COMPILED, reason="without the compiled core")


@pytest.fixture
def process_choice() -> Iterator[Backend]:
    """The process-wide backend, chosen again afterwards."""
    before = pf.get_backend()
    yield before
    pf.set_backend(before)


def in_thread(function: Callable[[], object]) -> object:
    """What the function returns in a new thread, which sees the choice of the process."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(timeout=60)
    return results[0]


def test_every_backend_has_a_status():
    assert NAMES == ["cpp", "numba", "numpy", "cuda"]
    assert pf.backends()["numpy"] == "available"
    for name, status in pf.backends().items():
        if status == "available":
            assert load(name).name == name
            assert name in repr(load(name))
        else:
            with pytest.raises(pf.BackendUnavailableError, match=f"^backend '{name}' has no "):
                load(name)


@needs_core
def test_preferred_backend_is_the_best_instruction_set():
    chosen = run_python("import pyfastnn as pf; print(pf.get_backend().name, pf.get_backend().isa)")
    assert chosen.split() == ["cpp", ISAS[-1]]


def test_names_of_the_lists_are_keys():
    for entries in (pf.activations.ACTIVATIONS, pf.losses.LOSSES, pf.initialisers.INITIALISATIONS):
        assert [entry.name for entry in entries.values()] == list(entries)


@pytest.mark.parametrize("compiled", COMPILED, ids=ISAS)
def test_core_knows_the_same_names(compiled):
    kernels = import_core().Kernels(compiled.isa)
    assert kernels.activations() == list(pf.activations.ACTIVATIONS)
    assert kernels.losses() == list(pf.losses.LOSSES)
    assert kernels.rules() == list(pf.optimizers.RULES)


def test_use_backend_nests():
    before = pf.get_backend()
    numpy, last = load("numpy"), list(BACKENDS.values())[-1]
    with pf.use_backend("numpy") as outer:
        assert outer is numpy
        with pf.use_backend(last) as inner:
            assert inner is last
            assert pf.get_backend() is last
        assert pf.get_backend() is numpy
    assert pf.get_backend() is before


def test_use_backend_ends_with_an_exception():
    before = pf.get_backend()
    with pytest.raises(KeyError), pf.use_backend("numpy"):
        raise KeyError
    assert pf.get_backend() is before


@pytest.mark.parametrize("name", AVAILABLE)
def test_set_backend_is_of_the_process(process_choice, name):
    pf.set_backend(name)
    assert pf.get_backend() is load(name)
    assert in_thread(pf.get_backend) is load(name)
    with pf.use_backend("numpy"):
        pf.set_backend(process_choice)
        assert pf.get_backend() is load("numpy")


def test_use_backend_is_of_the_thread(process_choice):
    choices = [*BACKENDS.values(), *BACKENDS.values()]
    barrier = threading.Barrier(len(choices) + 1, timeout=60)
    seen: list[tuple[Backend, Backend, Backend]] = []

    def work(choice: Backend) -> None:
        barrier.wait()
        before = pf.get_backend()
        with pf.use_backend(choice):
            barrier.wait()  # all threads are inside their blocks
            inside = pf.get_backend()
            barrier.wait()
        seen.append((choice, inside, before))

    threads = [threading.Thread(target=work, args=(choice,)) for choice in choices]
    for thread in threads:
        thread.start()
    # Entered after the threads have started: none of them sees it.
    with pf.use_backend("numpy"):
        barrier.wait()
        barrier.wait()
        assert pf.get_backend() is load("numpy")
        barrier.wait()
    for thread in threads:
        thread.join(timeout=60)
    assert len(seen) == len(choices)
    for choice, inside, before in seen:
        assert inside is choice
        assert before is process_choice
    assert pf.get_backend() is process_choice


def test_use_backend_is_of_the_task(process_choice):
    choices = list(BACKENDS.values())

    async def work(choice: Backend) -> bool:
        with pf.use_backend(choice):
            for _ in range(3):
                await asyncio.sleep(0)
                if pf.get_backend() is not choice:
                    return False
        return pf.get_backend() is process_choice

    async def main() -> list[bool]:
        return await asyncio.gather(*map(work, choices))

    assert asyncio.run(main()) == [True] * len(choices)
    assert pf.get_backend() is process_choice


@pytest.mark.parametrize("name", AVAILABLE)
def test_environment_names_the_backend(name):
    printed = run_python("import pyfastnn as pf; print(pf.get_backend().name)", PYFASTNN_BACKEND=name)
    assert printed.split() == [name]


def test_environment_names_no_backend():
    printed = run_python(
        """
        import pyfastnn as pf
        for call in (pf.get_backend, lambda: pf.MLP([2, 1]).predict(None)):
            try:
                call()
            except (ValueError, TypeError) as error:
                print(error)
        pf.show_config()
        pf.set_backend("numpy")
        print(pf.get_backend().name)
        """,
        PYFASTNN_BACKEND="nonsense",
    )
    lines = printed.splitlines()
    assert lines[:2] == [f"unknown backend 'nonsense'; known: {', '.join(NAMES)}"] * 2
    assert any(line.startswith("in use") and "none: unknown backend" in line for line in lines)
    assert lines[-1] == "numpy"


@pytest.mark.parametrize("isa", ISAS)
def test_environment_names_the_instruction_set(isa):
    printed = run_python("import pyfastnn as pf; print(pf.get_backend().isa)", PYFASTNN_ISA=isa)
    assert printed.split() == [isa]


@needs_core
def test_environment_names_no_instruction_set():
    printed = run_python(
        """
        import pyfastnn as pf
        print(pf.backends()["cpp"])
        try:
            pf.get_backend()
        except ValueError as error:
            print(error)
        pf.show_config()
        with pf.use_backend("numpy") as backend:
            print(backend.name)
        """,
        PYFASTNN_ISA="nonsense",
    )
    lines = printed.splitlines()
    reason = f"PYFASTNN_ISA: no instruction set 'nonsense' on this machine; present: {', '.join(ISAS)}"
    assert lines[:2] == [reason, reason]
    assert any(line.startswith("in use") and reason in line for line in lines)
    assert lines[-1] == "numpy"


@pytest.mark.parametrize("hidden", [["cpp"], ["cpp", "numba"]], ids=repr)
def test_the_next_backend_serves_and_says_so_once(hidden):
    serves = next(name for name in AVAILABLE if name not in hidden)
    printed = run_python(
        "".join(HIDDEN[name] for name in hidden)
        + """
import warnings
import numpy as np
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import pyfastnn as pf
    assert not caught
    x, w, b = np.eye(3), np.arange(6.0).reshape(3, 2), np.ones(2)
    for _ in range(3):
        a = pf.dense_forward(x, w, b)
    pf.MLP([3, 2], dtype="float64").fit(x, w, epochs=2)
assert np.array_equal(a, w + 1)
for warning in caught:
    print(warning.category.__name__, warning.message)
print(pf.backends())
try:
    pf.set_backend("cpp")
except pf.BackendUnavailableError as error:
    print(error)
print(pf.get_backend().name, pf.get_num_threads())
pf.show_config()
"""
    )
    warning, status, error, chosen, *config = printed.splitlines()
    assert warning.startswith(f"RuntimeWarning pyfastnn falls back to its slower {serves} backend, because ")
    assert error.startswith(MISSING["cpp"])
    for name in hidden:
        assert MISSING[name] in warning
        assert MISSING[name] in status
    assert f"'{serves}': 'available'" in status
    assert chosen == f"{serves} 1"
    assert any("compiled core" in line and "none: " in line for line in config)


@pytest.mark.parametrize("name", HIDDEN)
def test_backend_asked_for_by_name_does_not_fall_back(name):
    code = """
import pyfastnn as pf
try:
    pf.get_backend()
except pf.BackendUnavailableError as error:
    print(error)
"""
    assert run_python(HIDDEN[name] + code, PYFASTNN_BACKEND=name).startswith(MISSING[name])


def test_numpy_asked_for_by_name_does_not_warn():
    code = "import pyfastnn as pf; print(pf.get_backend().name)"
    assert run_python(NO_CORE + code, PYFASTNN_BACKEND="numpy").split() == ["numpy"]


@pytest.mark.parametrize("policy", [None, "active"])
def test_environment_is_left_alone(policy):
    code = """
    import os
    before = dict(os.environ)
    import numpy as np
    import pyfastnn as pf
    x = np.ones((300, 300))
    pf.dense_forward(x, x, x[0])
    pf.show_config()
    assert dict(os.environ) == before
    print(os.environ.get("OMP_WAIT_POLICY"))
    """
    settings = {"PYFASTNN_BACKEND": pf.get_backend().name}
    if policy is not None:
        settings["OMP_WAIT_POLICY"] = policy
    assert run_python(code, **settings).split()[-1] == str(policy)


def test_show_config_says_what_is_in_use(backend, capsys):
    pf.show_config()
    printed = capsys.readouterr().out
    assert backend.description in printed
    assert pf.__version__ in printed
    assert np.__version__ in printed
    for name in NAMES:
        assert f"backend {name}" in printed
