"""What pyfastnn found on this machine, for people and bug reports."""

from __future__ import annotations

import platform

import numpy as np

from .backends import backends, get_backend, load
from .backends.cpp import import_core, instruction_sets
from .backends.plan import BackendUnavailableError


def describe() -> dict[str, str]:
    """Version, backends, instruction sets, threads and compiler, by name."""
    from . import __version__  # found out when it is asked for

    facts = {
        "pyfastnn": __version__,
        "python": f"{platform.python_version()}, {platform.machine()}",
        "numpy": np.__version__,
    }
    statuses = backends()
    facts |= {f"backend {name}": status for name, status in statuses.items()}
    for name, status in statuses.items():
        if status == "available":
            facts |= load(name).facts()
    try:
        facts["in use"] = get_backend().description
    except (BackendUnavailableError, ValueError) as error:
        facts["in use"] = f"none: {error}"
    try:
        core = import_core()
        facts |= {
            "instruction sets": ", ".join(instruction_sets()),
            "threads": f"{core.thread_limit()} ({core.explain_threads()})",
            "compiler": core.compiler,
        }
    except BackendUnavailableError as error:
        facts["compiled core"] = f"none: {error}"
    return facts


def show_config() -> None:
    """Print version, backends, instruction sets, threads (and why) and compiler."""
    facts = describe()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
