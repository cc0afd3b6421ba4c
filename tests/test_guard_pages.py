"""Nothing past the end of an array is touched: each ends at a page that nobody may read or write."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
import pytest
from conftest import COMPILED
from processes import run_python
from test_kernels import LARGE, SHAPES, layer

import pyfastnn as pf


def guarded(array: np.ndarray) -> np.ndarray:
    """A copy whose last byte is that of a page, with a protected page behind."""
    if not array.size:
        return array
    size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    behind = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + size
    libc = ctypes.CDLL(None, use_errno=True)
    nobody = 0
    if libc.mprotect(ctypes.c_void_p(behind), ctypes.c_size_t(mmap.PAGESIZE), nobody):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = np.frombuffer(pages, array.dtype, array.size, size - array.nbytes).reshape(array.shape)
    copy[...] = array
    return copy


def call_everything(dtype: str) -> None:
    """Every kernel and a prediction, on every shape; the last one written to stderr is the one that died."""
    for shape in (*SHAPES, *LARGE):
        print(shape, file=sys.stderr, flush=True)
        n, k, m = shape
        x, w, b, d = map(guarded, layer(shape, np.dtype(dtype)))
        a, s = (guarded(np.empty(size, dtype)) for size in ((n, m), (n, k)))
        pf.dense_forward(x, w, b, "tanh", out=a)
        pf.activation_delta(d, w, x, "tanh", out=s)
        pf.dense_backward(x, w, d)
        pf.dense_update(x, guarded(w), guarded(b), d, 0.1)
        if n and k and m:
            pf.output_delta(a, d, "mse", "tanh", out=guarded(a))
            pf.MLP([k, m], output="tanh", loss="mse", dtype=dtype, seed=0).predict(x, out=a)
    print("done")


@pytest.mark.skipif(sys.platform != "linux" or not COMPILED, reason="protects pages as Linux does")
@pytest.mark.parametrize("isa", [backend.isa for backend in COMPILED])
def test_nothing_past_the_end_is_touched(isa, dtype):
    code = f"import test_guard_pages; test_guard_pages.call_everything({dtype.name!r})"
    assert run_python(code, PYFASTNN_BACKEND="cpp", PYFASTNN_ISA=isa).split() == ["done"]
