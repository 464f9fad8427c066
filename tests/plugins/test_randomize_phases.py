"""randomize_phases: amplitudes and coarse detail stay, on every backend, for any image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamprep import Context, InputError, Item
from streamprep.config import Config
from streamprep.model import ConfigError
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.plugins.randomize_phases import (
    RandomizePhases,
    randomize_phases,
    randomize_phases_of_map,
    randomize_phases_of_particles,
)
from streamprep.testing import ArrayBackend, backends, run_operation, tiny_map, tiny_particles


def noise(shape: tuple[int, ...], seed: int = 0, mean: float = 3.0, std: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, std, shape).astype(np.float32)


def indices(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint64)


def spectrum(images: np.ndarray) -> np.ndarray:
    return np.fft.fft2(images.astype(np.float64))


def radii(ny: int, nx: int) -> np.ndarray:
    return np.hypot(np.fft.fftfreq(ny)[:, None], np.fft.fftfreq(nx)[None, :])


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 9, 9), (2, 10, 15), (2, 15, 10), (1, 1, 1), (0, 8, 8)])
def test_every_backend_gives_the_same_images(backend: ArrayBackend, shape: tuple[int, int, int]) -> None:
    images, n = noise(shape), shape[0]
    done = randomize_phases(backend.asarray(images), backend.asarray(indices(n)), key=9, cutoff=0.1)
    done = backend.to_host(done)
    assert done.dtype == np.float32
    assert done.shape == shape
    np.testing.assert_allclose(done, randomize_phases(images, indices(n), key=9, cutoff=0.1), atol=1e-4)


@settings(max_examples=60)
@given(
    n=st.integers(1, 4),
    ny=st.integers(1, 17),
    nx=st.integers(1, 17),
    cutoff=st.floats(0, 0.6),
    key=st.integers(0, 2**64 - 1),
    seed=st.integers(0, 99),
)
def test_the_amplitude_spectrum_is_kept_and_so_is_what_is_coarser(
    n: int, ny: int, nx: int, cutoff: float, key: int, seed: int
) -> None:
    images = noise((n, ny, nx), seed)
    before, after = spectrum(images), spectrum(randomize_phases(images, indices(n), key=key, cutoff=cutoff))
    scale = 1e-6 * np.abs(before).max()
    np.testing.assert_allclose(np.abs(after), np.abs(before), atol=scale)
    inside = radii(ny, nx) <= cutoff
    np.testing.assert_allclose(after[:, inside], before[:, inside], atol=scale)


def test_detail_beyond_the_cutoff_is_gone() -> None:
    images = noise((20, 64, 64), mean=0)
    done = randomize_phases(images, indices(20), key=1, cutoff=0.1)
    before, after = spectrum(images), spectrum(done)
    beyond = radii(64, 64) > 0.1
    together = (after[:, beyond] * np.conj(before[:, beyond])).sum(axis=1) / (np.abs(before[:, beyond]) ** 2).sum(
        axis=1
    )
    assert np.abs(together).max() < 0.1


@settings(max_examples=30)
@given(n=st.integers(1, 6), ny=st.integers(1, 12), nx=st.integers(1, 12), cut=st.integers(0, 6))
def test_a_batch_equals_its_parts(n: int, ny: int, nx: int, cut: int) -> None:
    images = noise((n, ny, nx))
    together = randomize_phases(images, indices(n), key=5, cutoff=0.1)
    parts = [
        randomize_phases(images[rows], indices(n)[rows], key=5, cutoff=0.1) for rows in (slice(cut), slice(cut, n))
    ]
    np.testing.assert_allclose(np.concatenate(parts), together, atol=2e-6)


def test_the_input_is_overwritten_in_place_only() -> None:
    images = noise((3, 12, 12))
    given = images.copy()
    done = randomize_phases(given, indices(3), key=2, cutoff=0.1)
    np.testing.assert_array_equal(given, images)
    again = randomize_phases(given, indices(3), key=2, cutoff=0.1, in_place=True)
    assert again is given
    np.testing.assert_array_equal(again, done)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float64])
def test_other_types_become_float32(dtype: type) -> None:
    images = noise((2, 8, 8), mean=40).astype(dtype)
    done = randomize_phases(images, indices(2), key=2, cutoff=0.1)
    assert done.dtype == np.float32
    np.testing.assert_array_equal(done, randomize_phases(images.astype(np.float32), indices(2), key=2, cutoff=0.1))


def test_a_constant_image_stays_one_and_counts_keep_their_digits() -> None:
    flat = np.full((1, 16, 16), 6800, np.float32)
    np.testing.assert_allclose(randomize_phases(flat, indices(1), key=1, cutoff=0.1), flat, rtol=1e-6)
    images = noise((2, 256, 256), mean=6800, std=9)
    done = randomize_phases(images, indices(2), key=1, cutoff=0.1).astype(np.float64)
    np.testing.assert_allclose(done.mean(axis=(1, 2)), images.astype(np.float64).mean(axis=(1, 2)), atol=1e-3)
    np.testing.assert_allclose(done.std(axis=(1, 2)), images.astype(np.float64).std(axis=(1, 2)), rtol=1e-4)


# --- as an operation -------------------------------------------------------------------------------------------------


def test_the_cutoff_is_the_pixel_size_over_the_resolution() -> None:
    particles = tiny_particles(3, 32, pixel_size_angstrom=2.0)
    done, warnings = run_operation(randomize_phases_of_particles, particles, max_resolution_angstrom=8)
    before, after = spectrum(particles.pixels), spectrum(done.pixels)
    inside = radii(32, 32) <= 0.25
    beyond = ~inside
    beyond[::16, ::16] = False  # its own opposite: may be turned by nothing
    same = np.isclose(before, after, atol=1e-6 * np.abs(before).max()).all(axis=0)
    assert same[inside].all()
    assert not same[beyond].any()
    assert warnings == []
    default, _ = run_operation(randomize_phases_of_particles, particles)
    assert RandomizePhases().max_resolution_angstrom == 40
    assert not np.isclose(spectrum(default.pixels), before, atol=1e-3)[:, beyond].any()


def test_parts_of_a_stack_get_what_the_whole_gets() -> None:
    particles = tiny_particles(5, 16)
    context = Context(Item("particles", "M/mic_1", Path("mic_1.mrcs")), "randomize_phases", seed=4)
    whole, _ = run_operation(randomize_phases_of_particles, particles, context)
    for start, stop in ((0, 2), (2, 5)):
        part, _ = run_operation(
            randomize_phases_of_particles, particles.part(start, stop), replace(context, first_image=start)
        )
        np.testing.assert_allclose(part.pixels, whole.pixels[start:stop], atol=1e-4)
    for other in (replace(context, seed=5), replace(context, label="noise")):
        elsewhere, _ = run_operation(randomize_phases_of_particles, particles, other)
        assert not np.allclose(elsewhere.pixels, whole.pixels, atol=0.1)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_said_and_stays_in_its_image(backend: ArrayBackend, bad: float) -> None:
    particles = tiny_particles(3, 16)
    whole, _ = run_operation(randomize_phases_of_particles, particles)
    pixels = particles.pixels.copy()
    pixels[1, 3, 4] = bad
    done, warnings = run_operation(randomize_phases_of_particles, backend.move(particles.with_pixels(pixels)))
    np.testing.assert_allclose(backend.to_host(done.pixels)[[0, 2]], whole.pixels[[0, 2]], atol=1e-4)
    assert warnings == [
        "1 of 3 particle images hold values that are not finite (NaN or infinite); their phases could not be randomised"
    ]


@pytest.mark.parametrize("resolution", [0, -5, float("nan")])
def test_a_resolution_is_positive(resolution: float) -> None:
    with pytest.raises(ValidationError, match="max_resolution_angstrom"):
        RandomizePhases(max_resolution_angstrom=resolution)


def test_a_resolution_below_nyquists_is_refused_before_any_data() -> None:
    raw = {
        "session": {"watch": ["M"]},
        "optics": {"pixel_size_angstrom": 2},
        "particles": {"randomize_phases": {"max_resolution_angstrom": 3.9}},
    }
    said = (
        r"\[particles\.randomize_phases\] max_resolution_angstrom = 3\.9 is below Nyquist's 4 Å \(2 × 2 Å per pixel\); "
        "allowed: from 4"
    )
    plugins = load_plugins(environ={}, sinks=False)
    with pytest.raises(ConfigError, match=said):
        resolve(Config.model_validate(raw), plugins)
    raw["extract"] = {"box_size_px": 64, "output_size_px": 32}
    raw["particles"] = {"randomize_phases": {"max_resolution_angstrom": 7}}  # right but for the binning
    with pytest.raises(ConfigError, match="max_resolution_angstrom = 7 is below Nyquist's 8 Å"):
        resolve(Config.model_validate(raw), plugins)
    RandomizePhases(max_resolution_angstrom=4).check(size_px=64, pixel_size_angstrom=2)
    with pytest.raises(ValueError, match="below Nyquist's 4 Å"):
        run_operation(randomize_phases_of_particles, tiny_particles(1, 8), max_resolution_angstrom=3)


# --- maps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", [(16, 16, 16), (9, 10, 11), (1, 8, 7), (2, 2, 2), (1, 1, 1)])
def test_a_map_keeps_its_amplitudes_and_what_is_coarser(backend: ArrayBackend, shape: tuple[int, int, int]) -> None:
    volume = replace(tiny_map(4), pixels=np.random.default_rng(0).normal(1, 1, shape).astype(np.float32))
    moved = backend.move(volume)
    done, warnings = run_operation(randomize_phases_of_map, moved, max_resolution_angstrom=8)
    before = np.fft.fftn(volume.pixels.astype(np.float64))
    after = np.fft.fftn(backend.to_host(done.pixels).astype(np.float64))
    scale = 1e-6 * np.abs(before).max()
    np.testing.assert_allclose(np.abs(after), np.abs(before), atol=scale)
    f2 = sum(axis**2 for axis in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij"))
    np.testing.assert_allclose(after[f2 <= 0.25**2], before[f2 <= 0.25**2], atol=scale)
    np.testing.assert_array_equal(backend.to_host(moved.pixels), volume.pixels)
    assert warnings == []
    if shape == (16, 16, 16):
        beyond = f2 > 0.25**2
        assert abs((after * before.conj())[beyond].sum()) < 0.1 * (abs(before[beyond]) ** 2).sum()


def test_a_map_follows_from_its_seed_and_name() -> None:
    context = Context(Item("map", "M/map_1", Path("map_1.mrc")), "randomize_phases", seed=4)
    others = [replace(context, seed=5), replace(context, item=Item("map", "M/map_2", Path("map_1.mrc")))]
    first, again, *rest = (
        run_operation(randomize_phases_of_map, tiny_map(8), each)[0].pixels for each in (context, context, *others)
    )
    np.testing.assert_array_equal(first, again)
    assert all(np.abs(each - first).max() > 0.01 for each in rest)


def test_a_map_that_is_not_finite_is_refused_by_name() -> None:
    volume = tiny_map(8)
    volume.pixels[1, 2, 3] = np.nan
    context = Context(Item("map", "M/map", Path("map.mrc")), "randomize_phases")
    with pytest.raises(InputError, match=r"map\.mrc: randomize_phases: the map holds values that are not finite"):
        run_operation(randomize_phases_of_map, volume, context)
    with pytest.raises(ValueError, match="below Nyquist's 4 Å"):
        run_operation(randomize_phases_of_map, tiny_map(8), max_resolution_angstrom=3)
