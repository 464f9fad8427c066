"""bandpass against the closed form on plane waves, on every array backend that is installed."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from streamprep import Map, Particles
from streamprep.testing import ArrayBackend, run_operation, tiny_map, tiny_particles

from streamprep_bandpass import bandpass, bandpass_map, bandpass_particles

PIXEL_SIZE = 2.0
LOW, HIGH, EDGE = 32.0, 8.0, 3.0


def wave(shape: tuple[int, ...], cycles: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """A plane wave with so many cycles along each axis."""
    phase = sum(
        2 * math.pi * count * index / side for count, index, side in zip(cycles, np.indices(shape), shape, strict=True)
    )
    return np.cos(phase + 0.3).astype(np.float32)


def gain(radius: float, size: int) -> float:
    """What passes of a wave of this radius, in pixels of the Fourier transform."""

    def below(cutoff: float) -> float:
        place = (radius - cutoff) / EDGE
        return 1.0 if place <= -0.5 else 0.0 if place >= 0.5 else (1 - math.sin(math.pi * place)) / 2

    return below(size * PIXEL_SIZE / HIGH) * (1 - below(size * PIXEL_SIZE / LOW))


@pytest.mark.parametrize("size", [32, 31])
def test_a_plane_wave_is_scaled_by_the_closed_form(array_backend: ArrayBackend, size: int) -> None:
    cycles = [(0, 1), (0, 2), (1, 2), (0, 3), (2, 2), (0, 5), (3, 4), (7, 0), (0, 8), (6, 6), (0, 9), (9, 1), (0, 12)]
    images = np.stack([wave((size, size), pair) for pair in cycles])
    before = replace(tiny_particles(len(cycles), size), pixels=images)
    assert before.optics.pixel_size_angstrom == PIXEL_SIZE
    done, warnings = run_operation(
        bandpass_particles, array_backend.move(before), low_angstrom=LOW, high_angstrom=HIGH, edge_px=EDGE
    )
    pixels = array_backend.to_host(done.pixels)
    gains = [gain(math.hypot(*pair), size) for pair in cycles]
    assert min(gains) == 0
    assert max(gains) == 1
    assert any(0.1 < value < 0.9 for value in gains)
    for image, filtered, factor in zip(images, pixels, gains, strict=True):
        np.testing.assert_allclose(filtered, factor * image, atol=2e-6)
    assert pixels.dtype == np.float32
    assert warnings == []


def test_a_map_is_filtered_in_three_dimensions(array_backend: ArrayBackend) -> None:
    for cycles in ((0, 0, 2), (3, 4, 0), (2, 3, 6), (8, 0, 1), (6, 6, 6)):
        before = replace(tiny_map(32), pixels=wave((32, 32, 32), cycles))
        done, _ = run_operation(
            bandpass_map, array_backend.move(before), low_angstrom=LOW, high_angstrom=HIGH, edge_px=EDGE
        )
        factor = gain(math.sqrt(sum(count**2 for count in cycles)), 32)
        np.testing.assert_allclose(array_backend.to_host(done.pixels), factor * before.pixels, atol=2e-6)


def test_what_is_left_and_what_is_taken_away_are_the_image(array_backend: ArrayBackend) -> None:
    before = tiny_particles(3, 24)
    pixels = array_backend.asarray(before.pixels)
    fine = bandpass(pixels, pixel_size_angstrom=PIXEL_SIZE, low_angstrom=12.0)
    coarse = bandpass(pixels, pixel_size_angstrom=PIXEL_SIZE, high_angstrom=12.0)
    np.testing.assert_allclose(array_backend.to_host(fine + coarse), before.pixels, rtol=1e-5)
    np.testing.assert_allclose(array_backend.to_host(fine).mean(axis=(1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(
        array_backend.to_host(coarse).mean(axis=(1, 2)), before.pixels.mean(axis=(1, 2)), rtol=1e-5
    )


def test_without_an_edge_it_keeps_or_takes_away() -> None:
    images = np.stack([wave((32, 32), (0, count)) for count in (3, 4, 5)])
    done = bandpass(images, pixel_size_angstrom=PIXEL_SIZE, high_angstrom=16.0, edge_px=0.0)  # up to 4 cycles
    np.testing.assert_allclose(done, images * np.array([1, 1, 0])[:, None, None], atol=2e-6)


@pytest.mark.parametrize("data", [tiny_particles(1, 16), tiny_map(16)], ids=["particles", "map"])
@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "neither low_angstrom nor high_angstrom"),
        ({"low_angstrom": 8, "high_angstrom": 8}, "low_angstrom = 8 is not above high_angstrom = 8"),
        ({"high_angstrom": 3.9}, "3.9 Å is finer than the 4 Å"),
        ({"high_angstrom": 0}, "greater than 0"),
        ({"edge_px": -1, "high_angstrom": 8}, "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_is_refused(data: Particles | Map, parameters: dict[str, Any], words: str) -> None:
    function = bandpass_map if isinstance(data, Map) else bandpass_particles
    with pytest.raises(ValueError, match=words):
        run_operation(function, data, **parameters)
