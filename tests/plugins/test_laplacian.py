"""laplacian: the old programs' result, the filter in Fourier space, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from streamprep import Context, InputError, Item, Map
from streamprep.formats import mrc, mrc_output
from streamprep.plugins.laplacian import Laplacian, laplacian, laplacian_map
from streamprep.testing import ArrayBackend, backends, run_operation, tiny_map
from tests.plugins import golden_case, relative_error

CONTEXT = Context(Item("map", "M/map", Path("map.mrc")), "laplacian", read_image=lambda path: mrc.read(path).pixels)


def reference(volume: np.ndarray, percentile: float, outside: np.ndarray | None = None) -> np.ndarray:
    """By the formula, in float64."""
    frequencies = np.meshgrid(*(np.fft.fftfreq(side) for side in volume.shape), indexing="ij")
    factor = 7 - 2 * sum(np.cos(2 * np.pi * f) for f in frequencies)
    filtered = np.fft.ifftn(np.fft.fftn(volume.astype(np.float64)) * factor).real
    values = np.abs(filtered)[... if outside is None else outside]
    ordered = np.sort(values.ravel())
    filtered[np.abs(filtered) < ordered[int(percentile * (len(ordered) - 1))] * (1 - 1e-6)] = 0
    return np.fft.ifftn(np.fft.fftn(filtered) / factor).real


def noise(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).normal(1, 2, shape).astype(np.float32)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", [(16, 16, 16), (7, 9, 11), (1, 6, 5), (2, 1, 3), (1, 1, 1), (70, 64, 65)])
@pytest.mark.parametrize("percentile", [0.0, 0.7, 0.9])
def test_every_backend_computes_the_reference(
    backend: ArrayBackend, shape: tuple[int, int, int], percentile: float
) -> None:
    volume = noise(shape)
    given = backend.asarray(volume.copy())
    done = backend.to_host(laplacian(given, percentile=percentile))
    assert done.dtype == np.float32
    np.testing.assert_allclose(done, reference(volume, percentile), atol=2e-4)
    np.testing.assert_array_equal(backend.to_host(given), volume)


@pytest.mark.parametrize("backend", backends())
def test_the_quantile_is_that_of_the_voxels_outside_the_mask(backend: ArrayBackend) -> None:
    volume = noise((12, 12, 12))
    mask = np.zeros(volume.shape, np.float32)
    mask[4:8, 4:8, 4:8] = 1
    volume[mask > 0] *= 10
    done = backend.to_host(laplacian(backend.asarray(volume), percentile=0.9, mask=backend.asarray(mask)))
    np.testing.assert_allclose(done, reference(volume, 0.9, mask < 0.5), atol=1e-3)
    assert np.abs(done - reference(volume, 0.9)).max() > 0.1


@settings(max_examples=30)
@given(factor=st.floats(0.01, 100), shift=st.integers(0, 9), axis=st.integers(0, 2))
def test_it_goes_with_scale_and_with_turns_of_the_box(factor: float, shift: int, axis: int) -> None:
    volume = noise((6, 7, 8))
    done = laplacian(np.roll(np.float32(factor) * volume, shift, axis))
    np.testing.assert_allclose(done, factor * np.roll(laplacian(volume), shift, axis), atol=1e-4 * factor)


@pytest.mark.parametrize("expected", ["laplacian.mrc", "laplacian_p70.mrc", "laplacian_mask.mrc"])
def test_agrees_with_the_old_programs(golden: Path, expected: str) -> None:
    parameters, source, theirs = golden_case(golden, expected)
    if "mask" in parameters:
        parameters["mask"] = str(golden / "inputs" / parameters["mask"])
    done, warnings = run_operation(laplacian_map, Map("map", source, 2.0), CONTEXT, **parameters)
    assert relative_error(done.pixels, theirs) <= 1e-2
    assert warnings == []


def test_a_mask_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mask.mrc"
    for voxels, said in (
        (np.zeros((4, 4, 4), np.int8), r"mask\.mrc: laplacian: the mask is 4 × 4 × 4 voxels, its map 8 × 8 × 8"),
        (np.ones((8, 8, 8), np.int8), r"mask\.mrc: laplacian: no voxel is outside this mask"),
    ):
        mrc_output.write(path, voxels, pixel_size_angstrom=2, stack=False)
        with pytest.raises(InputError, match=said):
            run_operation(laplacian_map, tiny_map(8), CONTEXT, mask=str(path))
    with pytest.raises(InputError, match=r"none\.mrc: laplacian: the mask cannot be read: No such file"):
        run_operation(laplacian_map, tiny_map(8), CONTEXT, mask=str(tmp_path / "none.mrc"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_name(bad: float) -> None:
    volume = tiny_map(8)
    volume.pixels[1, 2, 3] = bad
    with pytest.raises(InputError, match=r"map\.mrc: laplacian: the map holds values that are not finite"):
        run_operation(laplacian_map, volume, CONTEXT)


def test_a_constant_map_stays_one() -> None:
    flat = np.full((8, 8, 8), 5, np.float32)
    np.testing.assert_allclose(laplacian(flat), flat, rtol=1e-5)


@pytest.mark.parametrize("percentile", [-0.1, 1.0, 90, float("nan")])
def test_the_percentile_is_a_part(percentile: float) -> None:
    with pytest.raises(ValidationError, match="percentile"):
        Laplacian(percentile=percentile)
