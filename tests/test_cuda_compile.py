"""CUDA kernels compiled to PTX and assembled, where a toolchain is installed; no GPU is needed.

Every kernel is, and every formula in the smallest kernel that it serves in, though not in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import pyfastnn as pf

pytest.importorskip("numba_cuda", reason="without numba-cuda")

from pyfastnn.backends.cuda import elements, narrow, products, rows, scalars, shim
from pyfastnn.backends.cuda.products import Layout
from pyfastnn.backends.cuda.shim import Kernel

ACTIVATIONS = pf.activations.ACTIVATIONS
ELEMENTWISE = [f for f in ACTIVATIONS.values() if not f.rowwise]
RULES = {"sgd": (0, 1), "momentum": (1, 2), "nesterov": (1, 2), "adam": (2, 4)}
# Ampere; and Hopper as numba-cuda compiles for it, with what later architectures do not have.
TARGETS = [(8, 0, ""), (9, 0, "a")]
# Bytes at most: in float64, an epoch with sigmoids has one number too many for the registers of 512 threads.
SPILLED = {"float32": 0, "float64": 8}


def toolchain() -> str | None:
    """What is missing."""
    if shim.SIMULATED:
        return "the simulator does not compile"
    try:
        import cuda.bindings.nvjitlink as linker
        import cuda.bindings.nvrtc as nvrtc

        linker.version()
        nvrtc.nvrtcVersion()
        shim.cuda.compile_ptx(lambda: None, (), cc=TARGETS[0])
    except Exception as error:  # whichever way each library says that it is not there
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


MISSING = toolchain()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"no CUDA toolchain ({MISSING})")


@pytest.fixture
def target(request, monkeypatch) -> tuple[int, int, str]:
    """A device for device functions, which numba-cuda compiles for the one it finds."""
    import numba.cuda.dispatcher

    device = SimpleNamespace(compute_capability=request.param[:2])
    monkeypatch.setattr(numba.cuda.dispatcher, "get_current_device", lambda: device)
    return request.param


def assembled(ptx: str, target: tuple[int, int, str]) -> str:
    """What the assembler says of registers, stack and spills."""
    import cuda.bindings.nvjitlink as linker

    handle = linker.create(2, [f"-arch=sm_{''.join(map(str, target))}", "-verbose"])
    try:
        text = ptx.encode()
        linker.add_data(handle, linker.InputType.PTX, text, len(text), "kernel")
        linker.complete(handle)
        assert linker.get_linked_cubin_size(handle) > 0
        said = bytearray(linker.get_info_log_size(handle))
        linker.get_info_log(handle, said)
        return said.decode()
    finally:
        linker.destroy(handle)


def check(kernel: Kernel, dtype: np.dtype, target: tuple[int, int, str]) -> None:
    options = {name: value for name, value in kernel.options.items() if name != "lto"}
    ptx, _ = shim.cuda.compile_ptx(kernel.function, kernel.signature, cc=target, **options)
    assert f".maxntid {kernel.threads}" in ptx
    if dtype == np.float32:
        assert not re.findall(r"\w+\.f64\b.*", ptx)
    # Sums live in registers: local memory would be many times slower.
    assert ".local" not in ptx
    said = assembled(ptx, target)
    assert int(re.search(r"(\d+) bytes spill stores", said)[1]) <= SPILLED[dtype.name]
    registers = int(re.search(r"Used (\d+) registers", said)[1])
    assert registers * kernel.threads <= 65536


def product_kernels(dtype: np.dtype) -> list[Kernel]:
    keep, relu = products.keep(dtype), ACTIVATIONS["relu"]
    activate, through = products.activate(relu, False, dtype), products.through(relu, dtype)
    found = []
    for tile in (products.SMALL, products.LARGE):
        for gathered in (False, True):
            found.append(products.product(Layout(ones=True, gathered=gathered), activate, tile, dtype))
            layout = Layout(ones=True, gathered=gathered, a_transposed=True)
            found.append(products.product(layout, keep, tile, dtype))
        found.append(products.product(products.BACKWARD, through, tile, dtype))
        found.append(products.product(products.BACKWARD, keep, tile, dtype))
    return found


def other_kernels(dtype: np.dtype) -> list[Kernel]:
    found = [elements.update(rule, *counts, dtype) for rule, counts in RULES.items()]
    found += [kernel(dtype) for kernel in rows.ROWWISE.values()]
    found += [elements.gather(dtype), elements.column_sums(dtype), elements.advance()]
    return [*found, elements.finish(products.activate(ACTIVATIONS["gelu"], True, dtype), True, dtype)]


def activation_kernels(dtype: np.dtype) -> list[Kernel]:
    """Every formula, in the smallest kernel that it serves in."""
    forward = [elements.finish(products.activate(f, True, dtype), True, dtype) for f in ELEMENTWISE]
    return forward + [elements.finish(products.through(f, dtype), False, dtype) for f in ELEMENTWISE]


def loss_kernels(dtype: np.dtype) -> list[Kernel]:
    """Every loss with its matched activation, with another elementwise one and with softmax."""
    return [
        rows.output_delta(loss, ACTIVATIONS[name], labels, True, dtype)
        for loss in pf.losses.LOSSES.values()
        for name in {loss.matched or "tanh", *(loss.outputs or ("tanh", "softmax"))}
        for labels in {False, loss.targets == "classes"}
    ]


def narrow_kernels(dtype: np.dtype) -> list[Kernel]:
    """An epoch by every rule, each with another loss."""
    networks = {
        "nesterov": ([20, 8, 3], "gelu", "softmax", "cross_entropy", 10),
        "adam": ([64, 64, 4], "tanh", "identity", "mse", 32),
        "sgd": ([784, 30, 10], "sigmoid", "sigmoid", "quadratic", 10),
        "momentum": ([30, 20, 10, 1], "relu", "sigmoid", "binary_cross_entropy", 16),
    }
    assert networks.keys() == RULES.keys()
    found = []
    for rule, (sizes, hidden, output, loss, batch) in networks.items():
        spec = pf.MLP(sizes, hidden, output, loss=loss, dtype=dtype)._spec
        found.append(narrow.epoch(spec, rule, *RULES[rule], batch, loss == "cross_entropy"))
    return found


EVERY = [product_kernels, other_kernels, activation_kernels, loss_kernels, narrow_kernels]
CASES = [(TARGETS[1], each, name) for each in EVERY for name in ("float32", "float64")]
CASES += [(TARGETS[0], each, "float32") for each in (product_kernels, narrow_kernels)]


@pytest.mark.parametrize(("target", "kernels", "name"), CASES, indirect=["target"])
def test_kernels_compile_and_assemble(target, kernels: Callable[[np.dtype], list[Kernel]], name):
    dtype = np.dtype(name)
    found = kernels(dtype)
    assert found
    for kernel in found:
        check(kernel, dtype, target)


@pytest.mark.parametrize("target", TARGETS[1:], indirect=True)
def test_products_do_little_but_multiply(target):
    """No index in the inner loop is one that may count from the end."""
    for kernel in product_kernels(np.dtype(np.float32)):
        ptx, _ = shim.cuda.compile_ptx(kernel.function, kernel.signature, cc=target)
        inner = max(re.split(r"^\$", ptx, flags=re.MULTILINE), key=lambda block: block.count("fma.rn.f32"))
        assert inner.count("fma.rn.f32") >= 16
        assert len(re.findall(r"\.[bsu]64\b", inner.split("bra")[0])) <= 8


def test_rules_are_those_of_the_list():
    assert set(RULES) == set(pf.optimizers.RULES)


def test_formulas_use_what_is_known():
    def formula(z: Any) -> Any:
        return np.arctan(z)

    with pytest.raises(NotImplementedError, match=r"^formulas for CUDA may use add, .*, got arctan"):
        scalars._traced(formula, "z", np.dtype(np.float32))
