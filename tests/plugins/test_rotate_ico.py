"""rotate_ico: against the old programs and scipy; there and back; what needs no interpolation."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage

from streamprep.em.symmetry import icosahedral_setting, point_group
from streamprep.model import InputError, Map
from streamprep.plugins.rotate_ico import RotateIco, rotate_ico, rotate_ico_map
from streamprep.testing import ArrayBackend, backends, run_operation, tiny_map
from tests.plugins import golden_case, relative_error

SETTINGS = ("i1", "i2", "i3", "i4")
PAIRS = list(itertools.permutations(SETTINGS, 2))


def sphere(side: int, margin: int = 2) -> np.ndarray:
    axis = (np.arange(side) - side // 2) ** 2
    return axis[:, None, None] + axis[None, :, None] + axis[None, None, :] < (side // 2 - margin) ** 2


def capsid(side: int, setting: str = "i2", width: float = 2.5) -> np.ndarray:
    """Blobs that icosahedral symmetry makes of two, band-limited by their width."""
    z, y, x = np.indices((side,) * 3) - float(side // 2)
    made = np.zeros((side,) * 3)
    for start, grey in (((0.12, 0.05, 0.27), 1.0), ((0.02, 0.1, 0.2), 0.6)):
        for element in point_group(setting).elements:
            a, b, c = side * element @ icosahedral_setting(setting) @ np.array(start)
            made += grey * np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / (2 * width**2))
    return made.astype(np.float32)


@pytest.mark.parametrize(
    "expected", [f"rotate_ico_{pair}.mrc" for pair in ("i1_i2", "i2_i3", "i2_i4", "i3_i1", "i1_i4")]
)
def test_agrees_with_the_old_programs(golden: Path, expected: str) -> None:
    parameters, source, theirs = golden_case(golden, expected)
    done, warnings = run_operation(rotate_ico_map, Map("map", source, 2.0), **parameters)
    inside = sphere(source.shape[0])
    assert relative_error(done.pixels[inside], theirs[inside]) <= 1e-5
    assert warnings == []


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("side", [16, 15])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_backend_computes_the_reference(backend: ArrayBackend, side: int, source: str, target: str) -> None:
    volume = tiny_map(side).pixels
    matrix = icosahedral_setting(target) @ icosahedral_setting(source).T
    back = matrix.T[::-1, ::-1]
    origin = np.full(3, side // 2)
    expected = scipy.ndimage.affine_transform(volume.astype(np.float64), back, offset=origin - back @ origin)
    done = backend.to_host(rotate_ico(backend.asarray(volume), source, target))
    inside = sphere(side)
    np.testing.assert_allclose(done[inside], expected[inside], atol=2e-6)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 7, 7), (6, 5, 6), (1, 1, 1), (2, 2, 2)])
def test_there_and_back_on_the_grid_is_the_very_same_map(backend: ArrayBackend, shape: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    there = rotate_ico(backend.asarray(volume), "i1", "i2")
    np.testing.assert_array_equal(np.sort(backend.to_host(there).ravel()), np.sort(volume.ravel()))
    np.testing.assert_array_equal(backend.to_host(rotate_ico(there, "i2", "i1")), volume)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_there_and_back_keeps_a_band_limited_map(source: str, target: str) -> None:
    volume = tiny_map(32).pixels
    volume = scipy.ndimage.gaussian_filter(volume, 1.2, mode="wrap").astype(np.float32)
    back = rotate_ico(rotate_ico(volume, source, target), target, source)
    inside = sphere(32)
    assert np.corrcoef(back[inside], volume[inside])[0, 1] > 0.999


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_capsid_of_one_setting_becomes_one_of_the_other(source: str, target: str) -> None:
    done = rotate_ico(capsid(40, source), source, target)
    inside = sphere(40)
    assert relative_error(done[inside], capsid(40, target)[inside]) < 0.01


def test_beyond_the_box_lies_the_mean_outside_the_sphere() -> None:
    volume = np.full((12, 12, 12), 7.5, np.float32)
    np.testing.assert_allclose(rotate_ico(volume, "i1", "i3"), 7.5, rtol=1e-5)


def test_names_in_capitals_and_the_same_setting() -> None:
    assert RotateIco(source="I1", target="I3").source == "i1"
    volume = tiny_map(8)
    assert run_operation(rotate_ico_map, volume, source="i3", target="I3").result is None


@pytest.mark.parametrize(
    "parameters", [{"source": "i5", "target": "i1"}, {"source": "i1"}, {"source": 1, "target": "i2"}]
)
def test_what_is_no_setting_is_refused(parameters: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="'i1', 'i2', 'i3' or 'i4'|Field required"):
        run_operation(rotate_ico_map, tiny_map(8), **parameters)


def test_maps_that_cannot_be_turned() -> None:
    flat = Map("map", np.zeros((25, 43, 73), np.float32), 2.0)
    with pytest.raises(InputError, match="rotate_ico: it turns x towards z, and the map is 73 × 43 × 25"):
        run_operation(rotate_ico_map, flat, source="i1", target="i2")
    broken = tiny_map(8)
    broken.pixels[1, 2, 3] = np.nan
    with pytest.raises(InputError, match="rotate_ico: .*not finite"):
        run_operation(rotate_ico_map, broken, source="i1", target="i3")
