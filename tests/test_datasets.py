"""IDX files, MNIST from fabricated files, the digits, and the matrix exponential."""

from __future__ import annotations

import gzip
import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

import pyfastnn as pf
from pyfastnn.datasets import _exponentials, expm, load_digits, load_mnist, read_idx

# The codes of the format's description, and the types they stand for, most significant byte first.
CODES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
NAMES = {
    "train-images-idx3-ubyte": (5, 4, 3),
    "train-labels-idx1-ubyte": (5,),
    "t10k-images-idx3-ubyte": (2, 4, 3),
    "t10k-labels-idx1-ubyte": (2,),
}


def idx(array: np.ndarray, code: int) -> bytes:
    """The file of an array."""
    lengths = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, code, array.ndim]) + lengths + array.astype(CODES[code]).tobytes()


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (2, 3, 4), (0, 28, 28)])
@pytest.mark.parametrize("name", ["data", "data.gz"])
def test_read_idx(tmp_path, code, shape, name):
    expected = (np.arange(math.prod(shape)) * 5 % 120).reshape(shape).astype(CODES[code])
    array = read_idx(write(tmp_path, name, idx(expected, code)))
    assert array.dtype == np.dtype(CODES[code]).newbyteorder("=")
    assert array.shape == shape
    np.testing.assert_array_equal(array, expected)
    assert array.flags.c_contiguous
    assert array.flags.aligned
    assert array.flags.writeable


def test_read_idx_of_negative_and_fractional_numbers(tmp_path):
    for code, values in (
        (0x09, [-128, 127]),
        (0x0B, [-300, 300]),
        (0x0C, [-(2**31), 5]),
        (0x0E, [0.1, -2.5]),
    ):
        array = read_idx(str(write(tmp_path, "data", idx(np.array(values), code))))
        assert array.tolist() == values


GOOD = idx(np.arange(64), 0x08)
PACKED = gzip.compress(GOOD)
BROKEN = [
    ("data", b"", "is no IDX file: it starts with nothing"),
    ("data", b"\0\0\x08", "is no IDX file: it starts with 00 00 08"),
    ("data", b"\1" + GOOD[1:], "is no IDX file: it starts with 01 00 08 01"),
    ("data", b"\0\0\x0a" + GOOD[3:], "is no IDX file: it starts with 00 00 0a 01"),
    ("data", PACKED, "is no IDX file: it starts with 1f 8b"),
    ("data", GOOD[:6], "is cut short inside its header"),
    ("data", GOOD[:-1], r"should have 72 bytes for shape \(64,\), has 71"),
    ("data", GOOD + b"\0", r"should have 72 bytes for shape \(64,\), has 73"),
    ("data.gz", GOOD, "is no complete gzip file: "),
    ("data.gz", PACKED[:-12], "is no complete gzip file: "),
    ("data.gz", PACKED[:5], "is no complete gzip file: "),
    # The check sum is wrong; the compressed data are no compressed data.
    ("data.gz", PACKED[:-8] + bytes(4) + PACKED[-4:], "is no complete gzip file: "),
    ("data.gz", PACKED[:10] + b"\xff" * 20 + PACKED[30:], "is no complete gzip file: "),
    ("data.gz", gzip.compress(GOOD[:-1]), "should have 72 bytes"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_idx_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} {message}"):
        read_idx(path)


@pytest.mark.parametrize("name", ["data", "data.gz"])
def test_missing_idx_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        read_idx(tmp_path / name)


def fabricate(folder: Path, suffixes: tuple[str, ...] = ("",)) -> dict[str, np.ndarray]:
    """The four files, some of them gzipped, and their arrays."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 256 if len(shape) > 1 else 10, shape) for name, shape in NAMES.items()}
    for i, (name, array) in enumerate(arrays.items()):
        write(folder, name + suffixes[i % len(suffixes)], idx(array, 0x08))
    return arrays


@pytest.mark.parametrize("suffixes", [("",), (".gz",), ("", ".gz")])
def test_load_mnist(tmp_path, dtype, suffixes):
    images, labels, test_images, test_labels = fabricate(tmp_path, suffixes).values()
    split = load_mnist(str(tmp_path), dtype)
    for x, y, raw, raw_labels in (
        (split.x_train, split.y_train, images, labels),
        (split.x_test, split.y_test, test_images, test_labels),
    ):
        assert x.dtype == dtype
        np.testing.assert_array_equal(x, raw.reshape(len(raw), 12).astype(dtype) / dtype.type(255))
        assert 0 <= x.min() <= x.max() <= 1
        assert y.dtype == np.int64
        np.testing.assert_array_equal(y, raw_labels)
        assert np.isfinite(pf.MLP([12, 10], output="softmax", dtype=dtype, seed=0).evaluate(x, y)["loss"])


@pytest.mark.parametrize("missing", NAMES)
def test_missing_mnist_file(tmp_path, missing):
    fabricate(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_mnist(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"no {missing} or {missing}.gz in {tmp_path}: ")
    assert "put all of them into that folder" in message
    for name in NAMES:
        assert name in message


def test_missing_mnist_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no train-images-idx3-ubyte or .*MNIST is four"):
        load_mnist(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("train-labels-idx1-ubyte", (4,)),
        ("t10k-labels-idx1-ubyte", (2, 1)),
        ("train-images-idx3-ubyte", (5,)),
        ("t10k-images-idx3-ubyte", (3, 4, 3)),
    ],
)
def test_mnist_files_that_do_not_belong_together(tmp_path, name, shape):
    fabricate(tmp_path)
    write(tmp_path, name, idx(np.zeros(shape), 0x08))
    labels = name.replace("images-idx3", "labels-idx1")
    with pytest.raises(ValueError, match=rf"^{labels} of shape .* does not fit its images of shape"):
        load_mnist(tmp_path)


@pytest.mark.parametrize("load", [load_mnist, load_digits, expm])
@pytest.mark.parametrize("dtype", ["int64", "float16", None, "nonsense"])
def test_dtypes_that_networks_do_not_take(tmp_path, load, dtype):
    fabricate(tmp_path)
    arguments = {load_mnist: (tmp_path,), load_digits: (), expm: (3,)}[load]
    with pytest.raises(ValueError, match=f"^dtype must be float32 or float64, got {dtype!r}"):
        load(*arguments, dtype=dtype)


def test_load_digits(dtype):
    split = load_digits(dtype)
    assert [len(part) for part in split] == [1438, 1438, 359, 359]
    x, y = np.concatenate([split.x_train, split.x_test]), np.concatenate([split.y_train, split.y_test])
    assert x.dtype == dtype
    assert x.shape == (1797, 64)
    assert (x.min(), x.max()) == (0, 1)
    assert y.dtype == np.int64
    # How often each digit occurs, from the data set's description.
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert all(part.flags.c_contiguous for part in split)
    other = load_digits(dtype, seed=1)
    assert not np.array_equal(other.y_test, split.y_test)
    # The same samples in another order.
    assert sorted(map(bytes, np.concatenate([other.x_train, other.x_test]))) == sorted(map(bytes, x))
    assert np.array_equal(load_digits(dtype).x_train, split.x_train)


@pytest.mark.parametrize(("fraction", "test"), [(0.5, 898), (0.1, 180), (0.999, 1795)])
def test_size_of_the_test_part(fraction, test):
    split = load_digits(test_fraction=fraction)
    assert len(split.y_test) == test
    assert len(split.y_train) == 1797 - test


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_wrong_fractions(fraction):
    with pytest.raises(ValueError, match=rf"^test_fraction must be between 0 and 1, got {fraction}"):
        load_digits(test_fraction=fraction)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"scikit-learn: pip install 'pyfastnn\[datasets\]'"):
        load_digits()


def series(a: np.ndarray) -> np.ndarray:
    """exp(a) by scaling, a Taylor series and squaring: Higham, Functions of Matrices (2008), 10.3."""
    halvings = 12
    small, term = a / 2**halvings, np.broadcast_to(np.eye(2), a.shape)
    total = term
    for k in range(1, 13):
        term = term @ small / k
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return total


def assert_exponentials(a: np.ndarray, actual: np.ndarray, eps: float = 0.0) -> None:
    """Both ways err by roundings of numbers up to exp(norm): the squarings double an error each.

    2^12 times the few roundings of the series, and less than 100 roundings of the formula, whose
    square root of the determinant adds a factor of the squared norm; eps is that of the dtype which
    the result was rounded to.
    """
    norm = np.abs(a).sum(axis=-1).max(axis=-1)[:, np.newaxis, np.newaxis]
    unit = np.finfo(np.float64).eps
    bound = ((4 * 2**12 + 100 * (1 + norm**2)) * unit + eps) * np.exp(norm)
    assert (abs(actual - series(a)) <= bound).all()


def test_expm(dtype):
    x, y = expm(500, dtype)
    assert x.dtype == y.dtype == dtype
    assert x.shape == y.shape == (500, 4)
    a = x.astype(np.float64).reshape(-1, 2, 2)
    discriminants = (a[:, 0, 0] - a[:, 1, 1]) ** 2 + 4 * a[:, 0, 1] * a[:, 1, 0]
    assert (discriminants < 0).any()
    assert (discriminants > 0).any()
    assert_exponentials(a, y.reshape(-1, 2, 2), float(np.finfo(dtype).eps))


def test_expm_draws_normal_numbers():
    x, _ = expm(10_000, "float64", seed=3)
    # Mean and variance of 40,000 numbers, within 5 standard deviations of the estimators.
    assert abs(x.mean()) < 5 / 200
    assert abs(x.var() - 1) < 5 * math.sqrt(2) / 200


def test_expm_of_a_seed():
    assert np.array_equal(expm(5, seed=1)[0], expm(5, seed=1)[0])
    assert not np.array_equal(expm(5, seed=1)[0], expm(5, seed=2)[0])
    assert not np.array_equal(expm(5, seed=None)[0], expm(5, seed=None)[0])
    np.testing.assert_array_equal(expm(5, "float32")[0], expm(5, "float64")[0].astype(np.float32))


def test_expm_of_no_samples():
    assert [array.shape for array in expm(0)] == [(0, 4), (0, 4)]
    for wrong, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"^samples must be"):
            expm(wrong)


# Matrices whose exponentials are known in closed form.
EXPONENTIALS = {
    "zero": ([[0, 0], [0, 0]], [[1, 0], [0, 1]]),
    "equal eigenvalues": ([[2, 0], [0, 2]], [[math.exp(2), 0], [0, math.exp(2)]]),
    "nilpotent": ([[0, 3], [0, 0]], [[1, 3], [0, 1]]),
    "defective": ([[-1, 0], [5, -1]], [[math.exp(-1), 0], [5 * math.exp(-1), math.exp(-1)]]),
    "diagonal": ([[1, 0], [0, -3]], [[math.exp(1), 0], [0, math.exp(-3)]]),
    "rotation": ([[0, -2], [2, 0]], [[math.cos(2), -math.sin(2)], [math.sin(2), math.cos(2)]]),
    "whole turn": ([[0, -2 * math.pi], [2 * math.pi, 0]], [[1, 0], [0, 1]]),
    "hyperbolic": ([[0, 2], [2, 0]], [[math.cosh(2), math.sinh(2)], [math.sinh(2), math.cosh(2)]]),
}


@pytest.mark.parametrize(("matrix", "expected"), EXPONENTIALS.values(), ids=EXPONENTIALS)
def test_exponentials_in_closed_form(matrix, expected):
    a = np.array([matrix], np.float64)
    actual = _exponentials(a)
    assert actual.dtype == np.float64
    norm = abs(a).sum(axis=2).max()
    bound = 100 * (1 + norm**2) * np.finfo(np.float64).eps * np.exp(norm)  # as above
    assert (abs(actual[0] - expected) <= bound).all()
    assert_exponentials(a, actual)


@pytest.mark.parametrize("gap", [1e-300, 1e-20, 1e-16, 1e-12, 1e-8, 1e-5, 1e-3])
@pytest.mark.parametrize("sign", [1, -1])
def test_exponentials_of_nearly_equal_eigenvalues(gap, sign):
    """The discriminant goes through zero, from two real eigenvalues to a complex pair."""
    a = np.array([[[0.5, 1.0], [sign * gap, 0.5]]])
    assert_exponentials(a, _exponentials(a))
