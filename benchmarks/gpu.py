"""Training on a GPU, beside PyTorch and JAX on the same one: ``python benchmarks/gpu.py``, under 8 minutes.

Everybody trains in float32 with float32 matrix products (no TF32), from the same weights, on data that lie
on the device, and is verified against the NumPy backend in float64 before being timed. Peers that cannot
take part are listed with the reason. Not called cuda.py, which would hide the package of that name.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from cases import step_cost

import pyfastnn as pf
from pyfastnn.backends import load
from pyfastnn.backends.cuda import products, shim
from pyfastnn.backends.cuda.arrays import DeviceView
from pyfastnn.bench import (
    SGD,
    WORKLOADS,
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
    ratio,
    time_calls,
)

HERE = Path(__file__).parent
_CIRESAN = (841, 2500, 2000, 1500, 1000, 500, 10)
_EPOCH = 60_000  # samples of MNIST; the rows here are whole batches of it
# A timed call takes so many steps: a fit on a GPU has some milliseconds of set-up.
_STEPS = {"medium": 400, "wide": 100, "lecture": 2000, "nielsen": 2000, "control": 2000, "tabular": 2000}


def workloads() -> list[Workload]:
    found = []
    for batch in (128, 1024):
        rows = _EPOCH // batch * batch
        name, kinds = f"Cireşan, batch {batch}", ("tanh", "softmax", "cross_entropy")
        found.append(Workload(name, _CIRESAN, *kinds, SGD(0.01), batch, rows))
    for name, steps in _STEPS.items():
        each = WORKLOADS[name]
        found.append(replace(each, epochs=math.ceil(steps / (each.rows // each.batch))))
    return found  # those that matter most first: time may run out


def tiny_workloads() -> list[Workload]:
    """To try this script itself, in the simulator."""
    return [
        Workload("narrow", (3, 4, 2), "tanh", "softmax", "cross_entropy", pf.Adam(1e-3), 2, 6),
    ]


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
    """PyTorch on the GPU, eager; the variant is the implementation of the optimizer."""

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

    variants = ("fused",)

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

    def __init__(self, workload: Workload, variant: str, threads: int) -> None:
        # Else it takes three quarters of the card's memory at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        jax: Any = __import__("jax")
        if jax.devices()[0].platform != "gpu":
            raise RuntimeError(f"JAX finds no GPU, only {jax.devices()[0].platform}")
        jax.config.update("jax_default_matmul_precision", "highest")
        super().__init__(workload, variant, threads)


OURS = "pyfastnn"
CONTENDERS: Mapping[str, type[Contender]] = {
    OURS: OnDevice,
    "pyfastnn, host arrays": FromHost,
    "PyTorch eager": TorchEager,
    "PyTorch compiled, CUDA graph": TorchGraph,
    "JAX jit scan": JaxGpu,
}


def matmul_rate(size: int) -> float:
    """Operations a second of a square float32 product: cuBLAS where it is there, else our own kernel."""
    backend, dtype = load("cuda"), np.dtype(np.float32)
    numbers = np.random.default_rng(0).random((size, size), np.float32)
    a, b, out = (shim.upload(numbers, backend.stream) for _ in range(3))
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(4):
            backend.multiply(products.Layout(), products.keep(dtype), (size, size, size), a, b, out)
        backend.stream.synchronize()
        times.append((time.perf_counter() - begin) / 4)
    return 2 * size**3 / min(times[1:])


class Run:
    """One run: records of who was measured, reasons of who was not."""

    def __init__(self, minutes: float, rounds: int, seconds: float) -> None:
        self._end = time.monotonic() + 60 * minutes
        self._rounds, self._seconds = rounds, seconds
        self.records: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []

    def workload(self, workload: Workload) -> None:
        ready: dict[str, Contender] = {}
        errors: dict[str, tuple[float, float]] = {}
        setup: dict[str, float] = {}
        for name, kind in CONTENDERS.items():
            print(f"{time.strftime('%H:%M:%S')} {workload.name}: {name}", file=sys.stderr, flush=True)
            begin = time.monotonic()
            try:
                if begin > self._end:
                    raise RuntimeError("out of time")
                ready[name] = prepare(kind, workload, 1, kind.variants)
                errors[name] = deviation(workload, few_steps(ready[name]))
                if not errors[name][0] <= errors[name][1]:
                    ready.pop(name)
                    raise RuntimeError("wrong result: off by {:.1e}, bound {:.1e}".format(*errors[name]))
            except Exception as error:  # whatever a library raises where it cannot work
                text = f"{type(error).__name__}: {error}".splitlines()[0]
                self.skipped.append({"workload": workload.name, "contender": name, "reason": text})
                if kind is OnDevice:
                    return  # nothing to compare with
            setup[name] = time.monotonic() - begin
        calls: dict[str, Callable[[], list[float]]] = {
            name: partial(time_calls, each, self._seconds) for name, each in ready.items()
        }
        for name, seconds in interleave(calls, self._rounds).items():
            self.records.append(
                {
                    "workload": workload.name,
                    "sizes": workload.sizes,
                    "batch": workload.batch,
                    "contender": name,
                    "variant": ready[name].variant,
                    "error": errors[name][0],
                    "bound": errors[name][1],
                    "set-up seconds": setup[name],
                    "seconds a step": [each / workload.steps for each in seconds],
                    "seconds an epoch": [each / workload.epochs for each in seconds],
                    "operations a step": step_cost(workload).operations,
                    "rows": workload.rows,
                }
            )


def facts() -> dict[str, str]:
    found = {"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "device": shim.describe_device()}
    found["cuBLAS"] = "not used" if load("cuda").gemm is None else "used for large products"
    for package in ("numba-cuda", "torch", "jax", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found | {"matrix products": "float32 throughout, TF32 off for everybody"}


def report(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["# Training on a GPU", "", *(f"- {name}: {text}" for name, text in results["facts"].items())]
    rate = results["operations a second"]
    lines += [f"- float32 matrix products: {rate / 1e12:.3g} TFLOP/s measured", ""]
    lines += ["| workload | contender | us a step | x as long as pyfastnn | share of the matrix rate |"]
    lines += ["|---|---|---|---|---|"]
    ours: dict[str, list[float]] = {}
    for each in results["records"]:
        steps = each["seconds a step"]
        ours.setdefault(each["workload"], steps)
        share = each["operations a step"] / median(steps) / rate
        times = ratio(ours[each["workload"]], steps)
        lines += [
            f"| {each['workload']} | {each['contender']} ({each['variant']}) | {median(steps) * 1e6:,.1f} "
            f"| {times:.2f} | {share:.1%} |"
        ]
    lines += ["", f"Cireşan's network, seconds for {_EPOCH:,} samples (scaled from whole batches):", ""]
    lines += [
        f"- {each['workload']}, {each['contender']}: "
        f"{median(each['seconds an epoch']) * _EPOCH / each['rows']:.3f}"
        for each in results["records"]
        if tuple(each["sizes"]) == _CIRESAN
    ]
    lines += ["", "Not measured:", ""]
    lines += [f"- {each['contender']} on {each['workload']}: {each['reason']}" for each in results["skipped"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a try of the script itself, in the simulator")
    parser.add_argument("--minutes", type=float, default=6.0, help="after which no contender begins")
    parser.add_argument("--folder", type=Path, default=HERE / "results" / "gpu", help="of the results")
    arguments = parser.parse_args()
    status = pf.backends()["cuda"]
    if status != "available":
        sys.exit(f"benchmarks: nothing to measure, since {status}")
    found = {"facts": facts(), "operations a second": matmul_rate(8 if arguments.tiny else 8192)}
    run = Run(arguments.minutes, *((1, 0.0) if arguments.tiny else (3, 0.2)))
    results = found | {"records": run.records, "skipped": run.skipped}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for workload in tiny_workloads() if arguments.tiny else workloads():
        run.workload(workload)
        # At once: a run that is stopped keeps what it has measured.
        (arguments.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (arguments.folder / "report.md").write_text(report(results))
    print(report(results))
    if not run.records:
        sys.exit("benchmarks: nobody could be measured")


if __name__ == "__main__":
    main()
