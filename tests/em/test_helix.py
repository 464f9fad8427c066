"""Helical averages: of maps that have the symmetry, of noise, and of what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from streamprep.em.helix import helical_average
from streamprep.testing import ArrayBackend, backends

RISE, TWIST = 5.3, 37.7


def helix(shape: tuple[int, int, int], twist_deg: float = TWIST, n: int = 1, dihedral: bool = False) -> np.ndarray:
    """Soft blobs on a screw about z, beyond the ends of the box, too."""
    z, y, x = (np.indices(shape).T - np.array(shape) // 2).T.astype(np.float64)
    made = np.zeros(shape)
    blobs = [(0.15, 10.0, 0.0, 2.6, 1.0), (0.22, 70.0, 1.5, 3.0, 0.7)]
    if dihedral:
        blobs += [(radius, -angle, -height, width, grey) for radius, angle, height, width, grey in blobs]
    for k in range(-15, 16):
        for j in range(n):
            for radius, angle, height, width, grey in blobs:
                turn = np.radians(angle + k * twist_deg + 360 * j / n)
                dx, dy = x - radius * shape[2] * np.cos(turn), y - radius * shape[2] * np.sin(turn)
                made += grey * np.exp(-(dx**2 + dy**2 + (z - height - k * RISE) ** 2) / (2 * width**2))
    return made.astype(np.float32)


def cylinder(shape: tuple[int, int, int], radius: float) -> np.ndarray:
    y, x = np.indices(shape[1:]) - shape[1] // 2
    return np.broadcast_to(np.hypot(x, y) < radius, shape)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize(
    ("shape", "n", "dihedral"), [((40, 36, 36), 1, False), ((41, 35, 35), 3, False), ((40, 36, 36), 2, True)]
)
def test_a_helix_stays_as_it_is(
    backend: ArrayBackend, wrap: bool, shape: tuple[int, int, int], n: int, dihedral: bool
) -> None:
    volume = helix(shape, n=n, dihedral=dihedral)
    done = helical_average(
        backend.asarray(volume), rise_px=RISE, twist_deg=TWIST, n=n, dihedral=dihedral, height_fraction=0.8, wrap=wrap
    )
    done = backend.to_host(done)
    assert done.dtype == np.float32
    inside = cylinder(shape, 14)
    assert np.abs(done - volume)[inside].max() < 0.01 * volume.max()


def test_the_sense_of_the_twist() -> None:
    volume = helix((40, 36, 36), TWIST)
    right = helical_average(volume, rise_px=RISE, twist_deg=TWIST)
    left = helical_average(volume, rise_px=RISE, twist_deg=-TWIST)
    inside = cylinder(volume.shape, 14)
    error = [float(np.linalg.norm((done - volume)[inside])) for done in (right, left)]
    assert error[0] < 0.03 * error[1]


def test_noise_is_averaged_and_the_mean_stays() -> None:
    noise = np.random.default_rng(0).normal(5, 1, (40, 24, 24)).astype(np.float32)
    done = helical_average(noise, rise_px=4.0, twist_deg=30.0, height_fraction=0.9)
    inside = cylinder(noise.shape, 10)
    copies = 0.9 * 40 / 4
    assert done[inside].std() < 1.3 / np.sqrt(copies)
    assert done[inside].mean() == pytest.approx(5, abs=0.05)
    both = helical_average(noise, rise_px=4.0, twist_deg=30.0, dihedral=True)
    np.testing.assert_allclose(both[1:, 1:], both[1:, 1:][::-1, ::-1], atol=2e-5)


def test_only_the_central_part_is_copied() -> None:
    volume = helix((40, 24, 24))
    spoiled = volume.copy()
    spoiled[:4] = spoiled[-4:] = 1e3
    done = helical_average(spoiled, rise_px=RISE, twist_deg=TWIST, height_fraction=0.4)
    assert np.abs(done).max() < 3


def test_a_rise_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="rise is 30 voxels.*allowed: up to 18"):
        helical_average(np.zeros((20, 8, 8), np.float32), rise_px=30.0, twist_deg=0.0, height_fraction=0.95)
    with pytest.raises(ValueError, match="turns x towards y"):
        helical_average(np.zeros((20, 8, 9), np.float32), rise_px=3.0, twist_deg=0.0)
