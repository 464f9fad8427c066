"""Random numbers by place: the same everywhere, and random enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep.em.random import bits_at, normal_at, random_bits
from streamprep.testing import ArrayBackend, backends


def images(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.uint64)


def test_they_are_those_of_splitmix64() -> None:
    """The first numbers of the generator with seed 0, as its authors' program prints them."""
    state, found = 0, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        found.append(z ^ (z >> 31))
    assert found[0] == 0xE220A8397B1DCDAF
    assert bits_at(0, images(0), images(0))[0] == _mix(found[0])


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize("backend", backends())
def test_every_backend_has_the_same(backend: ArrayBackend) -> None:
    there = backend.asarray(images(0, 1, 77))
    np.testing.assert_array_equal(backend.to_host(random_bits(5, there, 100)), random_bits(5, images(0, 1, 77), 100))
    places = np.arange(1, 101, dtype=np.uint64)
    np.testing.assert_allclose(
        backend.to_host(normal_at(5, there[:, None], backend.asarray(places)[None, :])),
        normal_at(5, images(0, 1, 77)[:, None], places[None, :]),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


@given(key=st.integers(0, 2**64 - 1), first=st.integers(0, 2**40))
def test_an_image_has_its_numbers_wherever_its_part_begins(key: int, first: int) -> None:
    together = random_bits(key, images(first, first + 1, first + 2), 9)
    np.testing.assert_array_equal(random_bits(key, images(first + 2), 9)[0], together[2])
    assert len(np.unique(together)) == together.size
    assert not np.array_equal(random_bits(key ^ 1, images(first), 9)[0], together[0])


def test_bits_are_even_and_independent() -> None:
    bits = random_bits(1, np.arange(64, dtype=np.uint64), 4096)
    ones = np.unpackbits(bits.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(bits.size)
    uniform = bits.astype(np.float64) / 2**64
    assert abs(np.corrcoef(uniform[:, :-1].ravel(), uniform[:, 1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(uniform[:-1].ravel(), uniform[1:].ravel())[0, 1]) < 0.01


def test_draws_are_normal() -> None:
    from scipy import stats

    draws = normal_at(3, np.arange(16, dtype=np.uint64)[:, None], np.arange(1, 4097, dtype=np.uint64)[None, :])
    assert draws.dtype == np.float32
    assert np.isfinite(draws).all()
    assert stats.kstest(draws.ravel(), "norm").pvalue > 1e-3
