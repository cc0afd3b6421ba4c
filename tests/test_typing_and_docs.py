"""The package describes itself: docstrings, examples that run, sources, the stub of the core."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest
from conftest import COMPILED

import pyfastnn as pf
from pyfastnn.backends.cpp import import_core

FOLDER = Path(pf.__file__).parent
# __main__ runs a command when it is imported; the core is compiled.
MODULES = ["pyfastnn"] + [
    info.name
    for info in pkgutil.walk_packages(pf.__path__, "pyfastnn.")
    if info.name.split(".")[-1] not in ("__main__", "_core")
]
CALLABLES = [name for name in pf.__all__ if not isinstance(getattr(pf, name), ModuleType)]
ENTRIES = [
    entry
    for entries in (pf.activations.ACTIVATIONS, pf.losses.LOSSES, pf.initialisers.INITIALISATIONS)
    for entry in entries.values()
]


def test_public_names_are_sorted_and_there():
    assert sorted(pf.__all__) == sorted(set(pf.__all__))
    for name in pf.__all__:
        assert hasattr(pf, name), name


@pytest.mark.parametrize("name", pf.__all__)
def test_every_public_name_has_a_docstring(name):
    text = inspect.getdoc(getattr(pf, name))
    assert text
    assert len(text.splitlines()[0]) > 10


@pytest.mark.parametrize("name", CALLABLES)
def test_docstrings_name_every_parameter(name):
    thing = getattr(pf, name)
    text = inspect.getdoc(thing)
    if issubclass(thing, Exception) if inspect.isclass(thing) else "see there" in text:
        return
    for parameter in inspect.signature(thing).parameters:
        assert parameter in text, parameter


@pytest.mark.parametrize("name", [name for name in CALLABLES if inspect.isclass(getattr(pf, name))])
def test_public_methods_have_docstrings(name):
    for member, value in vars(getattr(pf, name)).items():
        if inspect.isfunction(value) and not member.startswith("_"):
            # What every optimizer offers is described once.
            described = vars(pf.optimizers.Optimizer).get(member, value)
            assert inspect.getdoc(described), member


@pytest.mark.parametrize("name", MODULES)
def test_modules_have_docstrings_and_their_examples_run(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert doctest.testmod(module).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    examples = [
        test.name for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples
    ]
    assert "pyfastnn.mlp.MLP" in examples


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_entries_have_formula_and_source(entry):
    assert entry.name.isidentifier()
    assert len(entry.formula) > 10
    assert len(entry.source) > 10


def test_package_is_typed():
    assert (FOLDER / "py.typed").is_file()


def declared(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What a stub declares, by name."""
    functions = {node.name: node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return functions | {node.target.id: node for node in body if isinstance(node, ast.AnnAssign)}


def public(thing: object) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


@pytest.mark.skipif(not COMPILED, reason="without the compiled core")
def test_stub_lists_what_the_core_offers():
    core = import_core()
    stub = declared(ast.parse((FOLDER / "_core.pyi").read_text()).body)
    assert set(stub) == public(core)
    for name, node in stub.items():
        if isinstance(node, ast.ClassDef):
            assert set(declared(node.body)) - {"__init__"} == public(getattr(core, name)), name
