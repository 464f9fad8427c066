"""invert: × −1, on every backend and dtype."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamprep.model import Optics, Particles
from streamprep.plugins.invert import invert, invert_map, invert_particles
from streamprep.testing import ArrayBackend, backends, run_operation, tiny_map, tiny_particles
from tests.plugins import golden_case, relative_error


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int8", "uint16", "int16"])
def test_every_backend_computes_the_reference(backend: ArrayBackend, dtype: str) -> None:
    images = np.array([[[0, 1, 127], [3, 2, 100]]]).astype(dtype)
    done = backend.to_host(invert(backend.asarray(images)))
    np.testing.assert_array_equal(done, -images.astype(np.float64))
    assert done.dtype == np.float32


def test_half_precision_stays_exact() -> None:
    images = np.array([0.5, -65504.0], dtype=np.float16)
    np.testing.assert_array_equal(invert(images).astype(np.float64), [-0.5, 65504.0])


def test_agrees_with_the_old_programs(golden: Path) -> None:
    parameters, source, theirs = golden_case(golden, "invert.mrcs")
    ours, _ = run_operation(invert_particles, Particles(source, Optics(2.0)), **parameters)
    assert relative_error(ours.pixels, theirs) <= 1e-5


@pytest.mark.parametrize("backend", backends())
def test_particles_keep_all_but_their_pixels(backend: ArrayBackend) -> None:
    particles = backend.move(tiny_particles(3, 9))
    done, warnings = run_operation(invert_particles, particles)
    np.testing.assert_array_equal(backend.to_host(done.pixels), -backend.to_host(particles.pixels))
    assert done == particles.with_pixels(done.pixels)
    assert warnings == []


@pytest.mark.parametrize("backend", backends())
def test_maps_keep_all_but_their_voxels(backend: ArrayBackend) -> None:
    volume = backend.move(tiny_map(7))
    done, _ = run_operation(invert_map, volume)
    np.testing.assert_array_equal(backend.to_host(done.pixels), -backend.to_host(volume.pixels))
    assert (done.name, done.pixel_size_angstrom) == (volume.name, volume.pixel_size_angstrom)


def test_twice_is_the_image_itself_and_the_image_is_left_alone() -> None:
    images = tiny_particles(2, 8).pixels
    before = images.copy()
    np.testing.assert_array_equal(invert(invert(images)), before)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("backend", backends())
def test_in_place_is_the_same_array(backend: ArrayBackend) -> None:
    images = tiny_particles(2, 9).pixels
    given = backend.asarray(images.copy())
    done = invert(given, in_place=True)
    np.testing.assert_array_equal(backend.to_host(done), -images)
    np.testing.assert_array_equal(backend.to_host(given), -images)


def test_it_has_no_parameters() -> None:
    with pytest.raises(ValueError, match="factor"):
        run_operation(invert_particles, tiny_particles(1, 8), factor=-1)
