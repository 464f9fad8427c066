"""Random phases of spectra: only phases, only beyond the cutoff, and still the spectra of real images and maps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep.arrays import sixteen_bits
from streamprep.em.phases import image_indices, randomize_spectrum
from streamprep.testing import ArrayBackend, backends

SHAPES = [
    (8, 8),
    (7, 7),
    (8, 7),
    (7, 8),
    (6, 10),
    (1, 1),
    (1, 6),
    (6, 1),
    (2, 2),
    (1, 2),
    (4, 6, 8),
    (3, 5, 4),
    (2, 2, 2),
]


def spectra(n: int, lengths: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.complex64]:
    images = np.random.default_rng(seed).normal(1, 1, (n, *lengths))
    return np.fft.rfftn(images, axes=range(1, images.ndim)).astype(np.complex64)


def frequencies(lengths: tuple[int, ...]) -> npt.NDArray[np.float64]:
    f = [np.fft.fftfreq(length) for length in lengths[:-1]] + [np.fft.rfftfreq(lengths[-1])]
    return np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*f, indexing="ij")))


def randomized(
    made: npt.NDArray[np.complex64], lengths: tuple[int, ...], cutoff: float = 0.2, key: int = 3
) -> np.ndarray:
    done = made.copy()
    randomize_spectrum(done, lengths, cutoff, key, image_indices(0, len(made), made))
    return done


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("lengths", SHAPES)
def test_every_backend_gives_the_same_numbers(backend: ArrayBackend, lengths: tuple[int, ...]) -> None:
    given = spectra(3, lengths)
    moved = backend.asarray(given.copy())
    randomize_spectrum(moved, lengths, 0.2, 3, image_indices(0, 3, moved))
    np.testing.assert_allclose(backend.to_host(moved), randomized(given, lengths), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", backends())
def test_sixteen_bits_are_the_parts_of_a_word(backend: ArrayBackend) -> None:
    words = backend.asarray(np.array([[0x4444333322221111, 0x8888777766665555]], np.uint64))
    parts = backend.to_host(sixteen_bits(words))
    assert parts.dtype == np.uint16
    assert parts.tolist() == [[0x1111 * number for number in range(1, 9)]]


@pytest.mark.parametrize("lengths", SHAPES)
@pytest.mark.parametrize("cutoff", [0.0, 0.13, 0.25, 0.5, 1.0])
def test_what_is_within_the_cutoff_keeps_every_bit(lengths: tuple[int, ...], cutoff: float) -> None:
    given = spectra(2, lengths)
    done = randomized(given, lengths, cutoff)
    inside = frequencies(lengths) <= cutoff
    np.testing.assert_array_equal(done[:, inside], given[:, inside])
    np.testing.assert_allclose(np.abs(done), np.abs(given), rtol=1e-6)


@settings(max_examples=60)
@given(
    lengths=st.one_of(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 6)] * 3)),
    cutoff=st.floats(0, 0.6),
    key=st.integers(0, 2**64 - 1),
    seed=st.integers(0, 99),
)
def test_the_result_is_the_spectrum_of_a_real_image(
    lengths: tuple[int, ...], cutoff: float, key: int, seed: int
) -> None:
    done = randomized(spectra(2, lengths, seed), lengths, cutoff, key)
    images = np.fft.irfftn(done.astype(np.complex128), s=lengths, axes=range(1, done.ndim))
    back = np.fft.rfftn(images, axes=range(1, done.ndim))
    np.testing.assert_allclose(back, done, atol=1e-4 * np.abs(done).max())


def test_terms_on_the_circle_itself_are_kept_however_their_squares_were_rounded() -> None:
    lengths = (200, 200)
    given = spectra(1, lengths)
    for radius in (5, 10, 13, 25):  # 3-4-5 and 5-12-13 lie on these circles
        done = randomized(given, lengths, radius / 200)
        on = np.isclose(frequencies(lengths) * 200, radius, atol=1e-9)
        assert on.sum() > 6
        np.testing.assert_array_equal(done[:, on], given[:, on])


def test_phases_are_uniform_and_independent_of_one_another() -> None:
    lengths = (64, 64)
    ones = np.ones((40, 64, 33), np.complex64)
    done = randomized(ones, lengths, 0.1)
    beyond = frequencies(lengths) > 0.1
    beyond[:, [0, 32]] = False  # these come in pairs
    phases = np.angle(done[:, beyond]) / (2 * np.pi) + 0.5
    counts, _ = np.histogram(phases, bins=50, range=(0, 1))
    expected = phases.size / 50
    assert (np.square(counts - expected) / expected).sum() < 90  # χ² of 49 degrees of freedom: 90 is beyond 1 in 1000
    n = phases.shape[1]
    assert abs(done[:, beyond].mean()) < 4 / np.sqrt(40 * n)
    between_images = np.abs((done[:, None, beyond] * np.conj(done[None, :, beyond])).mean(axis=-1))
    assert between_images[~np.eye(40, dtype=bool)].max() < 5 / np.sqrt(n)
    neighbours = np.abs((done[:, :, 1:16] * np.conj(done[:, :, 2:17]))[:, 20:44].mean())
    assert neighbours < 4 / np.sqrt(40 * 24 * 15)


def test_terms_that_are_their_own_opposite_are_turned_by_half_a_turn_or_not() -> None:
    done = randomized(np.ones((200, 8, 5), np.complex64), (8, 8), 0.1)
    for place in ((4, 0), (0, 4), (4, 4)):
        values = done[:, *place]
        assert set(values.tolist()) == {1, -1}
        assert 60 < (values.real > 0).sum() < 140
    assert (done[:, 0, 0] == 1).all()


def test_an_image_depends_on_its_index_and_the_key_alone() -> None:
    given = spectra(5, (9, 12))
    whole = randomized(given, (9, 12))
    for index in range(5):
        alone = given[index : index + 1].copy()
        randomize_spectrum(alone, (9, 12), 0.2, 3, image_indices(index, 1, alone))
        np.testing.assert_array_equal(alone[0], whole[index])
    assert not np.allclose(randomized(given, (9, 12), key=4), whole)
