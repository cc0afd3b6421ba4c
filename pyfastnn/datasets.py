"""Data to try networks on: scikit-learn's digits, MNIST from its files, and a matrix exponential."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from . import _checks
from ._typing import Array

_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class Split(NamedTuple):
    """Training and test data: inputs (n, features), targets (n,) labels."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array


def read_idx(path: str | os.PathLike[str]) -> Array:
    """Read an array from an IDX file, gzipped where its name ends in .gz.

    The format is LeCun's, described with the MNIST database of handwritten digits (1998).

    Parameters
    ----------
    path : path

    Returns
    -------
    array
        Of the file's type and shape.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError
        For a file that is no IDX file, or is cut short.
    """
    path = Path(path)
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            content: bytes = file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no complete gzip file: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise ValueError(f"{path} is no IDX file: it starts with {content[:4].hex(' ') or 'nothing'}")
    dtype, rank = np.dtype(_IDX_TYPES[content[2]]), content[3]
    header = 4 + 4 * rank
    if len(content) < header:
        raise ValueError(f"{path} is cut short inside its header")
    shape = struct.unpack(f">{rank}I", content[4:header])
    expected = header + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(f"{path} should have {expected} bytes for shape {shape}, has {len(content)}")
    return np.frombuffer(content, dtype, offset=header).reshape(shape).astype(dtype.newbyteorder("="))


def load_mnist(folder: str | os.PathLike[str], dtype: DTypeLike = "float32") -> Split:
    """The MNIST digits from the four IDX files of the original distribution.

    Parameters
    ----------
    folder : path
        Holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
        t10k-labels-idx1-ubyte, each plain or gzipped (.gz).
    dtype : {"float32", "float64"}

    Returns
    -------
    Split
        60,000 and 10,000 images as rows of 784 pixels from 0 to 1, labels int64.

    Raises
    ------
    FileNotFoundError
        For a missing file; the message says what to put where.
    ValueError
        For a file that is damaged.
    """
    folder = Path(folder)
    dtype = _checks.float_dtype("dtype", dtype)
    arrays = [read_idx(_find(folder, name)) for name in _MNIST_FILES]
    for images, labels, name in zip(arrays[::2], arrays[1::2], _MNIST_FILES[1::2], strict=True):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{name} of shape {labels.shape} does not fit its images of shape {images.shape}"
            )
    x_train, y_train, x_test, y_test = arrays
    return Split(_pixels(x_train, dtype), _labels(y_train), _pixels(x_test, dtype), _labels(y_test))


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no {name} or {name}.gz in {folder}: MNIST is four files, {', '.join(_MNIST_FILES)}, each plain "
        "or .gz; put all of them into that folder"
    )


def _pixels(images: Array, dtype: DTypeLike) -> Array:
    rows = images.reshape(len(images), math.prod(images.shape[1:])).astype(dtype)
    rows /= 255
    return rows


def _labels(labels: Array) -> Array:
    return labels.astype(np.int64)


def load_digits(dtype: DTypeLike = "float32", *, test_fraction: float = 0.2, seed: int = 0) -> Split:
    """The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn.

    Parameters
    ----------
    dtype : {"float32", "float64"}
    test_fraction : float
        Share of the samples in the test part, between 0 and 1.
    seed : int
        Of the split.

    Returns
    -------
    Split
        Rows of 64 pixels from 0 to 1, labels int64.

    Raises
    ------
    ImportError
        Without scikit-learn.
    ValueError
        For a fraction outside (0, 1).
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction!r}")
    dtype = _checks.float_dtype("dtype", dtype)
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'pyfastnn[datasets]'") from error
    x, y = load(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = (x[order] / 16).astype(dtype), _labels(y[order])
    train = len(x) - round(test_fraction * len(x))
    return Split(x[:train], y[:train], x[train:], y[train:])


def expm(samples: int, dtype: DTypeLike = "float32", *, seed: int | None = 0) -> tuple[Array, Array]:
    """Random 2 x 2 matrices with entries from N(0, 1), and their exponentials.

    The regression task of the SimpleChains.jl benchmarks. exp(A) = e^s (cosh(q) I + sinh(q)/q (A - s I))
    with s = trace(A)/2 and q^2 = -det(A - s I): Bernstein and So, Some explicit formulas for the matrix
    exponential (1993).

    Parameters
    ----------
    samples : int
        At least 0.
    dtype : {"float32", "float64"}
    seed : int, optional

    Returns
    -------
    x : (samples, 4) array
        The matrices, row by row.
    y : (samples, 4) array
        Their exponentials.
    """
    samples = _checks.integer("samples", samples, at_least=0)
    x = np.random.default_rng(seed).normal(size=(samples, 4)).astype(_checks.float_dtype("dtype", dtype))
    y = _exponentials(x.astype(np.float64).reshape(-1, 2, 2))
    return x, y.reshape(-1, 4).astype(dtype)


def _exponentials(a: Array) -> Array:
    """Of matrices (n, 2, 2) in float64."""
    eye = np.eye(2)
    s = np.trace(a, axis1=1, axis2=2)[:, None, None] / 2
    rest = a - s * eye
    q = np.emath.sqrt(-np.linalg.det(rest))[:, None, None].astype(complex)
    ratio = np.where(abs(q) > 1e-8, np.sinh(q) / np.where(q == 0, 1, q), 1)
    exponentials: Array = np.exp(s) * (np.cosh(q) * eye + ratio * rest).real
    return exponentials
