"""Orientations found from images alone: near the true ones, on every backend, with shifts, CTFs and noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamprep.em.projection import central_slices, euler_matrices, project, table_orientations
from streamprep.em.projection_matching import match_projections
from streamprep.formats import mrc
from streamprep.image_sets import sample_images
from streamprep.testing import ArrayBackend, backends, tiny_ctf
from tests.em.test_projection import centres, gaussians

STEP = 10.0


def angle_deg(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Angle of the rotation between orientations."""
    cosine = (np.einsum("nij,nij->n", found, true) - 1) / 2
    return np.asarray(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))


def volume(size: int = 32, seed: int = 3) -> np.ndarray:
    return gaussians(size, *centres(seed, size / 2 - 6, 12)).astype(np.float32)


def views(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    tilt = np.rad2deg(np.arccos(rng.uniform(-1, 1, n)))
    return euler_matrices(rng.uniform(0, 360, n), tilt, rng.uniform(0, 360, n)), rng.uniform(-1.5, 1.5, (n, 2))


@pytest.mark.parametrize("backend", backends())
def test_orientations_and_shifts_are_found(backend: ArrayBackend) -> None:
    matrices, shifts = views(6)
    images = 4 * project(central_slices(volume()), matrices, shifts) + 7
    found = match_projections(backend.asarray(volume()), backend.asarray(images), step_deg=STEP)
    assert angle_deg(backend.to_host(found.matrices), matrices).max() < 0.5
    np.testing.assert_allclose(backend.to_host(found.shifts_px), shifts, atol=0.05)
    assert backend.to_host(found.scores).min() > 0.999


def test_larger_maps_are_matched_on_coarse_copies() -> None:
    size = 90
    places, heights = centres(3, size / 2 - 15, 12)
    large = sum(  # Gaussians of three times the width
        height * np.exp(-sum((axis - at) ** 2 for axis, at in zip(grid, place, strict=True)) / (2 * 4.5**2))
        for grid in [np.indices((size,) * 3)[::-1] - size // 2]
        for place, height in zip(places, heights, strict=True)
    ).astype(np.float32)
    matrices, shifts = views(5, seed=2)
    found = match_projections(large, project(central_slices(large), matrices, 2 * shifts), step_deg=STEP)
    assert angle_deg(found.matrices, matrices).max() < 0.5
    np.testing.assert_allclose(found.shifts_px, 2 * shifts, atol=0.1)


@pytest.mark.parametrize("flipped", [None, [True] * 6])
def test_ctfs_are_taken_into_account(flipped: list[bool] | None) -> None:
    matrices, shifts = views(6, seed=4)
    ctfs = [replace(tiny_ctf(index), defocus_u_angstrom=8000 + 900 * index) for index in range(6)]
    known = {"ctfs": ctfs, "phase_flipped": flipped, "pixel_size_angstrom": 3.0}
    images = project(central_slices(volume()), matrices, shifts, **known)
    found = match_projections(volume(), images, step_deg=STEP, **known)
    assert np.median(angle_deg(found.matrices, matrices)) < 1


def test_noise_ten_times_the_signal_leaves_the_median_below_the_step() -> None:
    matrices, shifts = views(12, seed=5)
    images = project(central_slices(volume(48)), matrices, shifts)
    rng = np.random.default_rng(1)
    noisy = images + rng.normal(0, 1, images.shape) * np.sqrt(10 * images.var(axis=(1, 2)))[:, None, None]
    found = match_projections(volume(48), noisy.astype(np.float32), step_deg=STEP)
    assert np.median(angle_deg(found.matrices, matrices)) < STEP
    assert 0.2 < float(np.median(found.scores)) < 0.6


def test_symmetric_maps_are_looked_for_in_their_asymmetric_unit() -> None:
    turns = [euler_matrices(np.array([angle]), np.zeros(1), np.zeros(1))[0] for angle in (0.0, 90.0, 180.0, 270.0)]
    places, heights = centres(8, 9, 6)
    grouped = sum(gaussians(32, places @ turn.T, heights) for turn in turns).astype(np.float32)
    matrices, shifts = views(6, seed=6)
    images = project(central_slices(grouped), matrices, shifts)
    found = match_projections(grouped, images, symmetry="c4", step_deg=5.0)
    nearest = np.min([angle_deg(found.matrices @ turn, matrices) for turn in turns], axis=0)
    assert nearest.max() < 0.5


def test_the_golden_projections_are_found_within_the_step(golden: Path) -> None:
    sample = sample_images(golden / "inputs/projections.xmd", 16, np.random.default_rng(0))
    known = table_orientations(sample.columns, 2.0)
    assert known is not None
    clean = np.asarray(mrc.read(golden / "inputs/map_clean.mrc").pixels)
    found = match_projections(clean, sample.pixels, step_deg=STEP)
    assert np.median(angle_deg(found.matrices, known[0])) < 1


@pytest.mark.parametrize("size", [4, 5, 8])
def test_tiny_and_empty_images_are_survived(size: int) -> None:
    rng = np.random.default_rng(0)
    images = np.zeros((2, size, size), np.float32)
    images[1] = rng.normal(size=(size, size))
    found = match_projections(rng.normal(size=(size,) * 3).astype(np.float32), images, step_deg=30)
    for values in found:
        assert np.isfinite(values).all()
