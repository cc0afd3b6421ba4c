"""What a result depends on: processor, instruction set, compiler, versions, thread runtimes."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from limits import cache_sizes

import pyfastnn as pf
from pyfastnn.backends.cpp import import_core
from pyfastnn.config import describe

_PACKAGES = ("scipy", "scikit-learn", "torch", "jax", "jaxlib", "onnxruntime")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    family = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = ", ".join(f"{key} {family[key]}" for key in ("cpu family", "model") if key in family)
    return f"{next(named, platform.machine())} ({numbers})" if numbers else next(named, platform.machine())


def _commit() -> str:
    """Of this checkout, where the package in use is its own."""
    if Path(pf.__file__).resolve().parents[1] != Path(__file__).resolve().parents[1]:
        return "unknown: pyfastnn is installed from elsewhere"
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _built() -> str:
    """When the core in use was compiled: sources may have changed since."""
    seconds = Path(import_core().__file__ or "").stat().st_mtime
    return _text(datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc))


def _text(time: datetime.datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC")


def load() -> str:
    """Processes that want to run, averaged over a minute; this benchmark's own among them."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def facts() -> dict[str, str]:
    found = {
        "date": _text(datetime.datetime.now(datetime.timezone.utc)),
        "commit": _commit(),
        "core built": _built(),
        "processor": f"{_processor()}, {os.cpu_count()} processors",
        "caches": ", ".join(
            f"{level} {size // 1024:,} KiB{' shared' if shared else ''}"
            for level, (size, shared) in cache_sizes().items()
        ),
        "system": f"{platform.system()} {platform.release()}",
        "load before": load(),
    } | describe()
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
