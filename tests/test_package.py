"""What a program meets first: the import, the version, names that are not there."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from processes import run_python

import pyfastnn as pf


def test_version():
    assert pf.__version__ == version("pyfastnn")


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'pyfastnn' has no attribute 'nothing'"):
        pf.nothing  # noqa: B018
    with pytest.raises(ImportError, match="nothing"):
        from pyfastnn import nothing  # noqa: F401


def test_import_leaves_alone_what_takes_long():
    code = """
        import sys
        import numpy
        before = set(sys.modules)
        import pyfastnn
        slow = {"importlib.metadata", "numba", "matplotlib", "sklearn", "scipy", "tqdm"}
        print(sorted(slow & (set(sys.modules) - before)))
    """
    assert run_python(code).split() == ["[]"]
