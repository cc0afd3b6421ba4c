"""The registry of backends, and which one is in use.

Loading is lazy and happens once a process. The choice is, in this order: ``use_backend`` (of this
thread or task), ``set_backend`` (of the process), the environment variable PYFASTNN_BACKEND, the
first backend of the list that works here.
"""

from __future__ import annotations

import importlib
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .._checks import integer
from .._names import lookup
from .plan import Backend, BackendUnavailableError

# Name to module, in the order of preference. A module offers load() -> Backend, which raises
# BackendUnavailableError with the reason where the backend cannot work; and, where that takes long,
# missing() -> str | None, the reason as far as it can be told at once.
_NAMES = ("cpp", "numba", "numpy", "cuda")  # cuda, behind numpy, which always works: only when asked for
_MODULES = {name: f"pyfastnn.backends.{name}" for name in _NAMES}

_lock = threading.RLock()
_loaded: dict[str, Backend | BackendUnavailableError] = {}
# The choices, which _quick.py shares. None: none has been made.
context_choice: ContextVar[Backend | None] = ContextVar("pyfastnn_backend", default=None)
process_choice: list[Backend | None] = [None]
_requested_threads = 0


def load(name: str) -> Backend:
    """The backend of that name, loaded at most once.

    Raises
    ------
    ValueError
        For an unknown name, or a wrong setting such as an instruction set that is not there.
    BackendUnavailableError
        Where it cannot work here; the message says why.
    """
    module = lookup(_MODULES, name, "backend")
    with _lock:
        if name not in _loaded:
            try:
                backend: Backend = importlib.import_module(module).load()
                backend.set_num_threads(_requested_threads)
                _loaded[name] = backend
            except BackendUnavailableError as error:
                _loaded[name] = error
        entry = _loaded[name]
    if isinstance(entry, BackendUnavailableError):
        raise BackendUnavailableError(str(entry))  # a fresh one: raising adds to the traceback
    return entry


def backends() -> dict[str, str]:
    """Every backend by name: "available", or the reason why it is not.

    Of CUDA, only what can be found without touching the GPU; what it says itself, once it has been chosen.
    """
    return {name: _status(name) for name in _MODULES}


def _status(name: str) -> str:
    missing = getattr(importlib.import_module(_MODULES[name]), "missing", None)
    if missing is not None and name not in _loaded:
        return missing() or "available"
    try:
        load(name)
    except (BackendUnavailableError, ValueError) as error:
        return str(error)
    return "available"


def _default() -> Backend:
    """The process-wide choice, made at its first use."""
    with _lock:
        named = os.environ.get("PYFASTNN_BACKEND")
        chosen = process_choice[0] or (load(named) if named else _first_available())
        process_choice[0] = chosen
        return chosen


def _first_available() -> Backend:
    reasons = []
    for name in _MODULES:
        try:
            backend = load(name)
        except BackendUnavailableError as error:
            reasons.append(str(error))
            continue
        if reasons:
            warnings.warn(
                f"pyfastnn falls back to its slower {name} backend, because {'; '.join(reasons)}",
                RuntimeWarning,
                stacklevel=2,
            )
        return backend
    raise BackendUnavailableError("; ".join(reasons))


def get_backend() -> Backend:
    """The backend in use in this thread or task."""
    return context_choice.get() or process_choice[0] or _default()


def _resolve(backend: str | Backend) -> Backend:
    return backend if isinstance(backend, Backend) else load(backend)


def set_backend(backend: str | Backend) -> None:
    """Choose the backend of the process, by name.

    Raises
    ------
    ValueError
        For an unknown name; the message lists the known ones.
    BackendUnavailableError
        Where it cannot work here; the message says why.
    """
    chosen = _resolve(backend)
    with _lock:
        process_choice[0] = chosen


@contextmanager
def use_backend(backend: str | Backend) -> Iterator[Backend]:
    """Choose the backend of a ``with`` block, for this thread or task alone.

    Raises
    ------
    ValueError
        For an unknown name; the message lists the known ones.
    BackendUnavailableError
        Where it cannot work here; the message says why.

    Examples
    --------
    >>> import pyfastnn as pf
    >>> with pf.use_backend("numpy") as backend:
    ...     print(backend.name)
    numpy
    """
    chosen = _resolve(backend)
    token = context_choice.set(chosen)
    try:
        yield chosen
    finally:
        context_choice.reset(token)


def set_num_threads(threads: int) -> None:
    """Limit the threads of every backend; 0: automatic.

    The automatic limit is the least of the processors this process may use, the CPU quota of its
    container, and OMP_NUM_THREADS. Results do not depend on the number of threads.

    Raises
    ------
    TypeError, ValueError
        For anything but an integer >= 0.
    """
    global _requested_threads
    threads = integer("threads", threads, at_least=0)
    with _lock:
        _requested_threads = threads
        for entry in _loaded.values():
            if isinstance(entry, Backend):
                entry.set_num_threads(threads)


def get_num_threads() -> int:
    """The threads that the backend in use may use now."""
    return get_backend().get_num_threads()
