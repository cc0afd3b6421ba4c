"""Wrong arrays, and the assertion that a call refuses them without touching anything."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pyfastnn as pf

Arguments = dict[str, Any]

MEMORY = "must not share memory with"


def misaligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts one byte off its alignment."""
    raw = np.zeros(array.nbytes + 1, np.uint8)
    copy = raw[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    assert not copy.flags.aligned
    return copy


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def strided(array: np.ndarray) -> np.ndarray:
    """Equal values, every second element of the last axis of a larger array."""
    return np.repeat(array, 2, axis=-1)[..., ::2]


def other_float(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64 if array.dtype == np.float32 else np.float32)


def longer(array: np.ndarray, axis: int) -> np.ndarray:
    return np.concatenate([array, array.take([0], axis=axis)], axis=axis)


# How to spoil a good array, the error, and what its message says after the name.
NO_FLOAT = "must be (float.*|float32 or float64), got"
WRONG_DTYPES = [
    pytest.param(np.ndarray.tolist, TypeError, "must be a NumPy array, got list", id="list"),
    pytest.param(lambda a: a.astype(np.int64), TypeError, f"{NO_FLOAT} int64", id="int64"),
    pytest.param(lambda a: a.astype(np.float16), TypeError, f"{NO_FLOAT} float16", id="float16"),
    pytest.param(lambda a: a.astype(np.complex64), TypeError, f"{NO_FLOAT} complex64", id="complex64"),
    pytest.param(lambda a: a.astype(np.bool_), TypeError, f"{NO_FLOAT} bool", id="bool"),
    pytest.param(lambda a: a.astype(a.dtype.newbyteorder()), TypeError, f"{NO_FLOAT} [<>]f", id="byte order"),
]
# Of an array that must have the dtype of those before it.
MIXED_DTYPES = [
    pytest.param(
        other_float, TypeError, r"must be float\d\d, as the other arrays, got float\d\d", id="mixed"
    ),
]
WRONG_LAYOUTS = [
    pytest.param(lambda a: a[0, ...], ValueError, "must have shape", id="rank too low"),
    pytest.param(lambda a: a[np.newaxis], ValueError, "must have shape", id="rank too high"),
    pytest.param(strided, ValueError, "must be C-contiguous", id="strided"),
    pytest.param(misaligned, ValueError, "must be aligned", id="misaligned"),
]
WRONG_OUTPUTS = [
    pytest.param(read_only, ValueError, "must be writeable, got a read-only array", id="read-only"),
]

# Losses and output activations that do not go together.
UNDEFINED_PAIRS = [
    (loss.name, activation)
    for loss in pf.losses.LOSSES.values()
    for activation, f in pf.activations.ACTIVATIONS.items()
    if f.slope_from == "input" or (loss.outputs is not None and activation not in loss.outputs)
]


def overlapping(output: np.ndarray, used: np.ndarray, shared: int) -> tuple[np.ndarray, np.ndarray]:
    """Copies of both in one buffer: the output starts ``shared`` elements before the end of the other."""
    start = used.size - shared
    flat = np.empty(max(start + output.size, used.size), used.dtype)
    used_copy = flat[: used.size].reshape(used.shape)
    output_copy = flat[start : start + output.size].reshape(output.shape)
    output_copy[...] = output
    used_copy[...] = used
    return output_copy, used_copy


def assert_refused(
    call: Callable[..., Any],
    arguments: Arguments,
    error: type[Exception],
    match: str,
    *,
    network: Any = None,
) -> None:
    """The call raises exactly that error, and leaves every array and the network as they were."""
    arrays = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
    before = {name: value.tobytes() for name, value in arrays.items()}
    state = pickle.dumps(network)
    with pytest.raises(error, match=match) as caught:
        call(**arguments)
    assert type(caught.value) is error
    assert {name: value.tobytes() for name, value in arrays.items()} == before
    assert pickle.dumps(network) == state
