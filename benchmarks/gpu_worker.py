"""One workload on the GPU: ``gpu_worker.py NAME FILE SECONDS``, started by gpu.py.

Everybody trains in float32 with float32 matrix products (no TF32), from the same weights, on data that lie
on the device, and is verified against the NumPy backend in float64 before being timed. Who cannot take part
is listed with the reason. FILE is written whenever something is found out: the process may be ended early.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from cases import step_cost
from gpu import OURS, TINY, WORKLOADS

from pyfastnn.backends import load
from pyfastnn.backends.cuda import products, shim
from pyfastnn.backends.cuda.arrays import DeviceView
from pyfastnn.bench import (
    SGD,
    Contender,
    Jax,
    Layers,
    Ours,
    Torch,
    Workload,
    deviation,
    few_steps,
    interleave,
    prepare,
    time_calls,
)

# Enough that graphs of several steps are replayed in them, as they are while the clock runs.
_VERIFIED_STEPS = 12


class OnDevice(Ours):
    """``MLP.fit`` on the cuda backend, with data that are on the device already."""

    variants = ("cuda",)

    def __init__(self, workload: Workload, variant: str, threads: int) -> None:
        super().__init__(workload, variant, threads)
        stream = load("cuda").stream
        whole = [(shim.upload(each, stream), each.shape) for each in workload.data]

        def first(rows: int) -> list[DeviceView]:
            return [DeviceView(flat[: rows * math.prod(s[1:])], (rows, *s[1:])) for flat, s in whole]

        self._first = first

    def train(self, rows: int, epochs: int, *, shuffle: bool) -> None:
        x, y = self._first(rows)
        options: dict[str, Any] = {"shuffle": shuffle, "progress": False}
        batch, optimizer = self.workload.batch, self.workload.optimizer
        self.network.fit(x, y, epochs=epochs, batch_size=batch, optimizer=optimizer, **options)


class FromHost(Ours):
    """The same from NumPy arrays, which every fit copies to the device."""

    variants = ("cuda",)


class TorchEager(Torch):
    """PyTorch on the GPU, eager."""

    variants = ("fused",)

    def __init__(self, workload: Workload, variant: str, threads: int) -> None:
        torch: Any = __import__("torch")
        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no CUDA device")
        torch.set_float32_matmul_precision("highest")
        super().__init__(workload, variant, threads)
        self.model.to("cuda")
        self.x, self.y = self.x.to("cuda"), self.y.to("cuda")
        self.start(workload.start)

    def _order(self, rows: int, shuffle: bool) -> Any:
        make = self.torch.randperm if shuffle else self.torch.arange
        return make(rows, device="cuda")

    def train(self, rows: int, epochs: int, *, shuffle: bool) -> None:
        for _ in range(epochs):
            order = self._order(rows, shuffle)
            batches = (each[order].split(self.workload.batch) for each in (self.x, self.y))
            for x, y in zip(*batches, strict=True):
                self._optimizer.zero_grad()
                self._objective(x, y).backward()
                self._optimizer.step()
        self.torch.cuda.synchronize()

    def layers(self) -> Layers:
        return [(p.weight.detach().cpu().numpy().T, p.bias.detach().cpu().numpy()) for p in self._linear]


class TorchGraph(TorchEager):
    """PyTorch with network and loss compiled, and a whole step, optimizer too, in a CUDA graph."""

    def compiled(self, function: Any) -> Any:
        self.torch.compiler.reset()  # it compiles one line of Python for few networks only, then no more
        return self.torch.compile(function, dynamic=False)

    def start(self, layers: Layers) -> None:
        super().start(layers)
        if not self.x.is_cuda:
            return  # the call of the base class, before data and model have moved
        torch, o = self.torch, self.workload.optimizer
        kind = getattr(torch.optim, type(o).__name__)
        more = {} if isinstance(o, SGD) else {"capturable": True}
        self._optimizer = kind(self.model.parameters(), lr=o.learning_rate, fused=True, **more)
        self._batch = [each[: self.workload.batch].clone() for each in (self.x, self.y)]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Others, JAX or Numba, may free memory meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="relaxed"):
            self._step()
        # The rehearsal has trained: back to the start, in the same memory.
        with torch.no_grad():
            for part, (w, b) in zip(self._linear, layers, strict=True):
                part.weight.copy_(torch.from_numpy(w.T))
                part.bias.copy_(torch.from_numpy(b))
            for memory in self._optimizer.state.values():
                for value in memory.values():
                    if torch.is_tensor(value):
                        value.zero_()

    def _step(self) -> None:
        self._optimizer.zero_grad(set_to_none=False)
        self._objective(*self._batch).backward()
        self._optimizer.step()

    def train(self, rows: int, epochs: int, *, shuffle: bool) -> None:
        for _ in range(epochs):
            order = self._order(rows, shuffle)
            for chosen in order.split(self.workload.batch):
                for target, source in zip(self._batch, (self.x, self.y), strict=True):
                    self.torch.index_select(source, 0, chosen, out=target)
                self._graph.replay()
        self.torch.cuda.synchronize()


class JaxGpu(Jax):
    """JAX on the GPU, a whole epoch in one jit."""

    variants = ("rows first, unrolled",)  # every further one would be compiled for two shapes

    def __init__(self, workload: Workload, variant: str, threads: int) -> None:
        # Else it takes three quarters of the card's memory at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        jax: Any = __import__("jax")
        if jax.devices()[0].platform != "gpu":
            raise RuntimeError(f"JAX finds no GPU, only {jax.devices()[0].platform}")
        jax.config.update("jax_default_matmul_precision", "highest")
        super().__init__(workload, variant, threads)


CONTENDERS: Mapping[str, type[Contender]] = {
    OURS: OnDevice,
    "pyfastnn, host arrays": FromHost,
    "PyTorch eager": TorchEager,
    "PyTorch compiled, CUDA graph": TorchGraph,
    "JAX jit scan": JaxGpu,
}


def _rate(size: int, multiply: Callable[[], object], wait: Callable[[], object]) -> float:
    """Operations a second of square products, by the median of some measurements, as contenders are timed."""
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        for _ in range(4):
            multiply()
        wait()
        times.append((time.perf_counter() - begin) / 4)
    return 2 * size**3 / median(times[1:])


def our_rate(size: int) -> float:
    backend, dtype = load("cuda"), np.dtype(np.float32)
    numbers = np.random.default_rng(0).random((size, size), np.float32)
    a, b, out = (shim.upload(numbers, backend.stream) for _ in range(3))
    arguments = products.Layout(), products.keep(dtype), (size, size, size), a, b, out
    return _rate(size, lambda: backend.multiply(*arguments), backend.stream.synchronize)


def torch_rate(size: int) -> float:
    torch: Any = import_module("torch")
    torch.set_float32_matmul_precision("highest")
    a, b, out = (torch.rand(size, size, device="cuda") for _ in range(3))
    return _rate(size, lambda: torch.mm(a, b, out=out), torch.cuda.synchronize)


RATES: Mapping[str, Callable[[int], float]] = {OURS: our_rate, "torch.mm": torch_rate}


def facts() -> dict[str, str]:
    found = {"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
    for package in ("numba-cuda", "torch", "jax", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def settings() -> dict[str, str]:
    """What is in use so far; with what decides whether products use TF32."""
    torch, jax = (sys.modules.get(name) for name in ("torch", "jax"))
    asked: dict[str, Callable[[], object]] = {
        "device": lambda: load("cuda").description,
        "cuBLAS of pyfastnn": lambda: "none" if load("cuda").gemm is None else "for large products",
        "NVIDIA_TF32_OVERRIDE": lambda: os.environ.get("NVIDIA_TF32_OVERRIDE", "not set"),
    }
    if torch is not None:
        asked["torch's float32 matmul precision"] = torch.get_float32_matmul_precision
        asked["torch's allow_tf32"] = lambda: torch.backends.cuda.matmul.allow_tf32
    if jax is not None:
        asked["jax_default_matmul_precision"] = lambda: jax.config.jax_default_matmul_precision
    found = {}
    for name, ask in asked.items():
        try:
            found[name] = str(ask())
        except Exception as error:  # whatever a library raises where it cannot work
            found[name] = _in_a_line(error)
    return found


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


class Run:
    """The measurements of one workload, which the file shows as they grow."""

    def __init__(self, workload: Workload, file: Path, seconds: float) -> None:
        tiny = workload.name in TINY
        self._workload, self._file = workload, file
        # Whoever begins later than that would take the rounds' time.
        self._latest = time.monotonic() + 0.6 * seconds
        self._rounds, self._seconds, self._size = (1, 0.0, 8) if tiny else (3, 0.2, 8192)
        self._ready: dict[str, Contender] = {}
        self._records: dict[str, dict[str, Any]] = {}
        self._skipped: dict[str, str] = {}
        self._rates: dict[str, list[float]] = {}
        self._facts = facts()
        self._pending = list(CONTENDERS)

    def write(self) -> None:
        found = {
            "facts": self._facts,
            "rates": self._rates,
            "records": list(self._records.values()),
            "skipped": self._skipped,
            "pending": self._pending,
        }
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(found))
        new.replace(self._file)

    @contextmanager
    def _skipping(self, name: str) -> Any:
        """What fails there is skipped, with the reason."""
        print(f"{time.strftime('%H:%M:%S')} {self._workload.name}: {name}", flush=True)
        try:
            yield
        except Exception as error:  # whatever a library raises where it cannot work
            self._skipped[name] = _in_a_line(error)

    def everything(self) -> None:
        self.write()
        for name in CONTENDERS:
            with self._skipping(name):
                self._begin(name)
            self._pending.remove(name)
            self._facts |= settings()
            self.write()
        self._measure_rates()
        self._measure_in_turn()
        self._measure_rates()
        self.write()

    def _measure_rates(self) -> None:
        for name, rate in RATES.items():
            with self._skipping(f"matrix products of {name}"):
                found = rate(self._size)
                self._rates.setdefault(name, []).append(found)

    def _begin(self, name: str) -> None:
        """Verify a contender and time it once, in case that its process does not live to see the rounds."""
        begin, kind, workload = time.monotonic(), CONTENDERS[name], self._workload
        if begin > self._latest:
            raise TimeoutError("out of time")
        contender = prepare(kind, workload, 1, kind.variants)
        error, bound = deviation(workload, few_steps(contender, _VERIFIED_STEPS), _VERIFIED_STEPS)
        if not error <= bound:
            raise RuntimeError(f"wrong result: off by {error:.1e}, bound {bound:.1e}")
        once = median(time_calls(contender, 0))
        record: dict[str, Any] = {
            "contender": name,
            "variant": contender.variant,
            "sizes": workload.sizes,
            "batch": workload.batch,
            "rows": workload.rows,
            "error": error,
            "bound": bound,
            "operations a step": step_cost(workload).operations,
            "set-up seconds": time.monotonic() - begin,
        } | self._times([once])
        if isinstance(contender, Ours):
            record["seconds of a fit of one step"] = _one_step(contender)
        self._ready[name], self._records[name] = contender, record

    def _times(self, seconds: list[float]) -> dict[str, list[float]]:
        return {
            "seconds a step": [each / self._workload.steps for each in seconds],
            "seconds an epoch": [each / self._workload.epochs for each in seconds],
        }

    def _measure_in_turn(self) -> None:
        calls = {name: partial(self._timed, name, each) for name, each in self._ready.items()}
        for name, seconds in interleave(calls, self._rounds).items():
            if np.isfinite(seconds).all():
                self._records[name] |= self._times(seconds)
            else:
                del self._records[name]

    def _timed(self, name: str, contender: Contender) -> list[float]:
        with self._skipping(name):
            return time_calls(contender, self._seconds)
        return [math.nan]


def _one_step(contender: Contender) -> float:
    """Seconds of a call that trains on one batch, once."""
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        contender.train(contender.workload.batch, 1, shuffle=False)
        times.append(time.perf_counter() - begin)
    return median(times[1:])


def main() -> None:
    name, file, seconds = sys.argv[1:]
    Run((WORKLOADS | TINY)[name], Path(file), float(seconds)).everything()


if __name__ == "__main__":
    main()
