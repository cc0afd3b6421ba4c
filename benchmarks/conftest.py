"""pytest-benchmark for the kernels: the limit of threads."""

from __future__ import annotations

import os

import pytest
from arena import environment
from threadpoolctl import threadpool_limits

import pyfastnn as pf


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=pf.get_num_threads(), help="for every library")


def pytest_configure(config: pytest.Config) -> None:
    """Limit the libraries that are loaded, and those to come."""
    threads = config.getoption("--threads")
    os.environ |= environment(threads)
    pf.set_num_threads(threads)
    config.thread_limit = threadpool_limits(threads)
