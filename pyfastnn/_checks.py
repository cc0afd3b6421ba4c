"""Checks of arguments: each names the argument, what was expected and what came."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ._typing import Array, Remote
from .losses import Loss

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_FLOATS = (FLOAT32, FLOAT64)


def array(
    name: str, value: object, shape: tuple[int | None, ...], dtype: np.dtype[Any] | None = None
) -> Array:
    """A C-contiguous, aligned float array of that shape (None: any length) and dtype (None: either)."""
    if isinstance(value, np.ndarray):
        flags = value.flags
        # carray, the usual case, is contiguous, aligned and writeable by one attribute.
        if (
            (value.dtype in _FLOATS if dtype is None else value.dtype == dtype)
            and (value.shape == shape or _fits(value.shape, shape))
            and (flags.carray or (flags.c_contiguous and flags.aligned))
        ):
            return value
    elif isinstance(value, Remote) and not _wrong(name, value, shape, dtype):
        return value  # type: ignore[return-value]
    raise _refusal(name, value, shape, dtype)


def _fits(actual: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    if len(actual) != len(shape):
        return False
    for have, want in zip(actual, shape, strict=True):  # noqa: SIM110 (all() costs twice as much)
        if want is not None and have != want:
            return False
    return True


def _on_cuda_device(value: object) -> bool:
    """As the two protocols for sharing memory say it; CUDA devices have the numbers 2 and 13 in DLPack."""
    if hasattr(value, "__cuda_array_interface__"):
        return True
    return hasattr(value, "__dlpack_device__") and value.__dlpack_device__()[0] in (2, 13)


def _wrong(
    name: str, value: Array | Remote, shape: tuple[int | None, ...], dtype: np.dtype[Any] | None
) -> Exception | None:
    """What is wrong with the dtype or shape of an array."""
    if dtype is None and value.dtype not in _FLOATS:
        return TypeError(f"{name} must be float32 or float64, got {value.dtype}")
    if dtype is not None and value.dtype != dtype:
        return TypeError(f"{name} must be {dtype}, as the other arrays, got {value.dtype}")
    if not _fits(value.shape, shape):
        return ValueError(f"{name} must have shape {_shape_text(shape)}, got {_shape_text(value.shape)}")
    return None


def _refusal(
    name: str, value: object, shape: tuple[int | None, ...], dtype: np.dtype[Any] | None
) -> Exception:
    """What is wrong with an array that ``array`` does not take."""
    if not isinstance(value, (np.ndarray, Remote)):
        if _on_cuda_device(value):
            return TypeError(f"{name} is on a CUDA device, where only the backend 'cuda' can use it")
        return TypeError(f"{name} must be a NumPy array, got {type(value).__name__}")
    wrong = _wrong(name, value, shape, dtype)
    if wrong is not None:
        return wrong
    assert isinstance(value, np.ndarray)
    if not value.flags.c_contiguous:
        return ValueError(f"{name} must be C-contiguous; np.ascontiguousarray({name}) makes such a copy")
    return ValueError(f"{name} must be aligned to its dtype; {name}.copy() makes such a copy")


def _shape_text(shape: tuple[int | None, ...]) -> str:
    lengths = ["any" if length is None else str(length) for length in shape]
    return f"({', '.join(lengths)}{',' if len(shape) == 1 else ''})"


def output(
    name: str,
    value: object,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    others: dict[str, Array | None],
    empty: Callable[[tuple[int, ...], np.dtype[Any]], Array] = np.empty,
) -> Array:
    """``value`` checked for writing, or an ``empty`` array where it is None. Must not overlap the others."""
    if value is None:
        return empty(shape, dtype)
    checked = array(name, value, shape, dtype)
    if not (checked.writeable if isinstance(checked, Remote) else checked.flags.writeable):
        raise ValueError(f"{name} must be writeable, got a read-only array")
    if isinstance(checked, Remote):
        return _remote_output(name, checked, others)
    for other, used in others.items():
        if used is None or isinstance(used, Remote):
            continue
        if used is not checked and used.base is None and checked.base is None:
            continue  # two arrays that own their memory
        # Of contiguous arrays the bounds say exactly whether they overlap.
        if np.may_share_memory(checked, used):
            raise ValueError(f"{name} must not share memory with {other}")
    return checked


def _remote_output(name: str, checked: Remote, others: dict[str, Array | None]) -> Array:
    start, end = checked.bounds()
    for other, used in others.items():
        if isinstance(used, Remote) and used.bounds()[0] < end and start < used.bounds()[1]:
            raise ValueError(f"{name} must not share memory with {other}")
    return checked  # type: ignore[return-value]


def targets(name: str, value: object, loss: Loss, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    """Targets of ``shape`` (samples, outputs) that fit the loss, labels as int64."""
    samples, outputs = shape
    if isinstance(value, Remote):
        # Their range is checked here, once; they stay where they are.
        on_host = targets(name, value.copy_to_host(), loss, shape, dtype)
        if on_host.dtype != value.dtype:
            raise TypeError(f"{name} must be {on_host.dtype} on a device, got {value.dtype}")
        return value  # type: ignore[return-value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        if loss.targets != "classes":
            raise TypeError(
                f"{name} must be {dtype} for loss {loss.name!r}, got {value.dtype}: "
                "integer labels are for cross_entropy"
            )
        if value.shape != (samples,):
            raise ValueError(
                f"{name} must be labels of shape ({samples},) or {dtype} rows of shape {shape}, "
                f"got {value.dtype} of shape {value.shape}"
            )
        if samples and (value.min() < 0 or value.max() >= outputs):
            wrong = value[(value < 0) | (value >= outputs)][0]
            raise ValueError(f"{name} must be labels from 0 to {outputs - 1}, got {wrong}")
        return np.require(value, np.int64, ["C_CONTIGUOUS", "ALIGNED"])
    checked = array(name, value, shape, dtype)
    if loss.interval is not None and checked.size:
        low, high = loss.interval
        # Written so that NaN passes: it shows in the loss.
        if checked.min() < low or checked.max() > high:
            wrong = checked[(checked < low) | (checked > high)][0]
            raise ValueError(f"{name} must be in [{low:g}, {high:g}] for loss {loss.name!r}, got {wrong:g}")
    if loss.targets == "classes" and checked.size and abs(checked.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError(f"{name} must have rows that sum to 1 (probabilities) for loss {loss.name!r}")
    return checked


def weights(name: str, value: object, samples: int, dtype: np.dtype[Any]) -> Array | None:
    """Sample weights (samples,), not negative and not all zero, or None."""
    if value is None:
        return None
    checked = array(name, value.copy_to_host() if isinstance(value, Remote) else value, (samples,), dtype)
    with np.errstate(over="ignore"):
        total = checked.sum()
    # A sum below the normal numbers would count as zero where subnormal ones are flushed.
    if not (checked.min(initial=np.inf) >= 0 and np.finfo(dtype).tiny <= total < np.inf):
        raise ValueError(f"{name} must be finite, their sum too, not negative and not all zero")
    return checked


def float_dtype(name: str, value: DTypeLike) -> np.dtype[Any]:
    """float32 or float64."""
    # None is float64 to NumPy: nobody asked for that.
    if value is not None:
        with suppress(TypeError):
            dtype = np.dtype(value)
            if dtype in (FLOAT32, FLOAT64):
                return dtype
    raise ValueError(f"{name} must be float32 or float64, got {value!r}")


def items(name: str, value: object, expected: str) -> tuple[Any, ...]:
    """The items of an iterable."""
    if type(value) is tuple:  # the usual case
        return value
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    return tuple(value)


def integer(name: str, value: object, at_least: int) -> int:
    """An int >= at_least; NumPy integers count, booleans do not."""
    if type(value) is int and value >= at_least:  # the usual case
        return value
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}") from None
    if number < at_least:
        raise ValueError(f"{name} must be >= {at_least}, got {number}")
    return number
