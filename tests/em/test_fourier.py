"""Fourier cropping: the same function of space on fewer pixels, the origin where it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep.em.fourier import fourier_crop
from streamprep.testing import ArrayBackend, backends

SIZES = [(12, 8), (12, 7), (13, 8), (13, 7), (13, 12), (12, 11), (9, 3), (8, 2)]
"""Every pairing of even and odd."""


def reference(image: np.ndarray, size: int) -> np.ndarray:
    """The image's trigonometric polynomial, up to the new Nyquist frequency, on the coarser grid; plain float64 sums.

    New pixel j lies at (j − size // 2)·box / size + box // 2. What is at Nyquist belongs half to either sign.
    """
    box = image.shape[-1]
    coefficients = np.fft.fft2(image.astype(np.float64)) / box**2
    k = np.arange(-(size // 2), size // 2 + 1)
    weight = np.where(2 * np.abs(k) == size, 0.5, 1.0)
    place = (np.arange(size) - size // 2) * box / size + box // 2
    waves = np.exp(2j * np.pi * np.outer(place, k) / box) * weight
    return (waves @ coefficients[np.ix_(k % box, k % box)] @ waves.T).real


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(("box", "size"), SIZES)
def test_every_backend_computes_the_reference(backend: ArrayBackend, box: int, size: int) -> None:
    images = np.random.default_rng(0).normal(1, 1, (3, box, box)).astype(np.float32)
    cropped = backend.to_host(fourier_crop(backend.asarray(images), size))
    assert cropped.shape == (3, size, size)
    assert cropped.dtype == np.float32
    np.testing.assert_allclose(cropped, [reference(image, size) for image in images], atol=3e-6)


@settings(max_examples=60)
@given(box=st.integers(3, 25), share=st.floats(0.1, 0.99), seed=st.integers(0, 99))
def test_any_two_sizes(box: int, share: float, seed: int) -> None:
    size = max(2, int(box * share))
    image = np.random.default_rng(seed).normal(0, 1, (1, box, box)).astype(np.float32)
    np.testing.assert_allclose(fourier_crop(image, size)[0], reference(image[0], size), atol=3e-6)


@pytest.mark.parametrize(("box", "size"), SIZES)
def test_a_band_limited_image_is_only_sampled_more_coarsely(box: int, size: int) -> None:
    rng = np.random.default_rng(1)
    highest = (size - 1) // 2  # below the new Nyquist
    ky, kx = rng.integers(-highest, highest + 1, size=(2, 12)) if highest else np.zeros((2, 12))
    height, phase = rng.normal(size=12), rng.uniform(0, 6, size=12)

    def wave(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        angle = 2 * np.pi * (y[:, None, None] * ky + x[None, :, None] * kx) / box + phase
        return (height * np.cos(angle)).sum(axis=-1)

    fine = np.arange(box) - box // 2
    coarse = (np.arange(size) - size // 2) * box / size
    cropped = fourier_crop(wave(fine, fine)[None].astype(np.float32), size)
    np.testing.assert_allclose(cropped[0], wave(coarse, coarse), atol=5e-6)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(("box", "size"), SIZES)
def test_the_mean_is_kept(backend: ArrayBackend, box: int, size: int) -> None:
    images = np.random.default_rng(2).normal(6800, 9, (2, box, box)).astype(np.float32)
    cropped = backend.to_host(fourier_crop(backend.asarray(images), size)).astype(np.float64)
    np.testing.assert_allclose(cropped.mean(axis=(1, 2)), images.mean(axis=(1, 2), dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize(("box", "size"), [(64, 32), (64, 31), (65, 32), (65, 31)])
def test_the_origin_stays_the_origin(box: int, size: int) -> None:
    y, x = np.indices((box, box)) - box // 2
    blob = np.exp(-(x**2 + y**2) / (2 * 4.0**2)).astype(np.float32)
    (cropped,) = fourier_crop(blob[None], size)
    middle = size // 2
    assert np.unravel_index(cropped.argmax(), cropped.shape) == (middle, middle)
    assert cropped[middle, middle] == pytest.approx(1, abs=1e-4)
    reach = middle - 1  # a point-symmetric image stays point-symmetric about it
    part = cropped[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1]
    np.testing.assert_allclose(part, part[::-1, ::-1], atol=1e-5)


@pytest.mark.parametrize("box", [8, 9])
def test_the_same_size_is_the_same_image(box: int) -> None:
    images = np.random.default_rng(3).normal(size=(2, box, box)).astype(np.float32)
    np.testing.assert_array_equal(fourier_crop(images, box), images)


@pytest.mark.parametrize("backend", backends())
def test_no_images_are_no_trouble(backend: ArrayBackend) -> None:
    assert fourier_crop(backend.asarray(np.zeros((0, 9, 9), dtype=np.float32)), 4).shape == (0, 4, 4)
