"""The order of an epoch: that of Generator.permutation in every backend, also where the core makes it."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
from conftest import COMPILED

from pyfastnn.backends.cpp import CppBackend

# Around powers of two, where the numbers drawn get a bit more, and around the core's blocks of 256.
COUNTS = [*range(1, 70), 127, 128, 129, 255, 256, 257, 258, 511, 512, 513, 514, 767, 768, 5000, 65536, 65537]
GENERATORS = [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64]


@pytest.mark.parametrize("bits", GENERATORS)
def test_order_is_the_generators_permutation(backend, bits):
    for seed in range(3):
        rng = np.random.Generator(bits(seed))
        twin = copy.deepcopy(rng)
        for count in COUNTS:
            order = backend.order(rng, count)
            np.testing.assert_array_equal(order, twin.permutation(count), strict=True)
            # An odd number of draws leaves half a number behind; the next draw takes it.
            assert rng.integers(2**31, dtype=np.int32) == twin.integers(2**31, dtype=np.int32)
        assert str(rng.bit_generator.state) == str(twin.bit_generator.state)


@pytest.mark.skipif(not COMPILED, reason="needs the compiled core")
def test_core_shuffles_as_this_version_of_numpy():
    assert CppBackend()._shuffles_as_numpy


@pytest.mark.skipif(not COMPILED, reason="needs the compiled core")
def test_generators_with_an_order_of_their_own_keep_it():
    class Sorted(np.random.Generator):
        def permutation(self, count):
            return np.arange(count)

    np.testing.assert_array_equal(CppBackend().order(Sorted(np.random.PCG64(0)), 9), np.arange(9))


@pytest.mark.skipif(not COMPILED, reason="needs the compiled core")
def test_only_a_pcg64_itself_is_copied():
    class Silent(np.random.PCG64):
        @property
        def state(self):
            raise NotImplementedError

    class PCG64(np.random.PCG64DXSM):
        """Its state bears this name."""

    for bits in (Silent, PCG64):
        one, other = np.random.Generator(bits(1)), np.random.Generator(bits(1))
        order = CppBackend().order(one, 100_000)
        np.testing.assert_array_equal(order, other.permutation(100_000))
        assert one.integers(2**40) == other.integers(2**40)


@pytest.mark.skipif(not COMPILED, reason="needs the compiled core")
def test_threads_share_a_generator():
    rng, orders = np.random.default_rng(0), []
    threads = [
        threading.Thread(target=lambda: orders.append(CppBackend().order(rng, 100_000))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One after the other, in some order.
    expected = np.random.default_rng(0)
    assert sorted(map(bytes, orders)) == sorted(bytes(expected.permutation(100_000)) for _ in threads)
