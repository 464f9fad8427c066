"""Turning maps: exact moves of voxels, and cubic splines against scipy's own and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep.em.interpolation import (
    Spline,
    add_turned,
    check_axes,
    closed,
    folds,
    kept_axis,
    outside_mean,
    repeated,
    turned,
    turned_copy,
    unfold,
)
from streamprep.em.symmetry import chain, grid_elements, point_group, rotation
from streamprep.testing import ArrayBackend, backends

CUBE = point_group("oh").elements
SHAPES = [(8, 8, 8), (7, 7, 7), (6, 8, 7), (1, 1, 1), (2, 2, 2), (3, 3, 3), (1, 4, 5)]


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(2.0, 1.0, shape).astype(np.float32)


def at(volume: np.ndarray, matrix: np.ndarray, outside: float | None) -> np.ndarray:
    """value(p) = volume(matrixᵀ·p) voxel by voxel, for signed permutations."""
    sides = np.array(volume.shape)
    made = np.empty_like(volume)
    for place in np.ndindex(*volume.shape):
        from_origin = (np.array(place) - sides // 2)[::-1]
        source = np.round(matrix.T @ from_origin).astype(int)[::-1] + sides // 2
        inside = bool(((source >= 0) & (source < sides)).all())
        made[place] = volume[tuple(source % sides)] if inside or outside is None else outside
    return made


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("outside", [None, 0.5])
@pytest.mark.parametrize("side", [4, 5])
def test_every_turn_of_a_cube_is_exact(backend: ArrayBackend, side: int, outside: float | None) -> None:
    volume = noise((side,) * 3)
    whole = closed(backend.asarray(volume), outside)
    box = (slice(0, side),) * 3
    for matrix in CUBE:
        expected = at(volume, matrix, outside)
        np.testing.assert_array_equal(backend.to_host(turned(whole, matrix))[box], expected)
        np.testing.assert_array_equal(backend.to_host(turned_copy(whole, matrix, box)), expected)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("outside", [None, -1.0])
def test_the_closed_grid(backend: ArrayBackend, shape: tuple[int, int, int], outside: float | None) -> None:
    volume = noise(shape)
    whole = backend.to_host(closed(backend.asarray(volume), outside))
    assert whole.shape == tuple(side | 1 for side in shape)
    if outside is None:
        padded = np.pad(volume, [(0, 1 - side % 2) for side in shape], mode="wrap")
    else:
        padded = np.pad(volume, [(0, 1 - side % 2) for side in shape], constant_values=outside)
    np.testing.assert_array_equal(whole, padded)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("name", ["d2", "o", "oh", "ci", "c4v", "i1"])
def test_sums_of_turned_maps(backend: ArrayBackend, name: str) -> None:
    volume = noise((6, 6, 6))
    subgroup = grid_elements(point_group(name).elements)
    whole = closed(backend.asarray(volume), 0.25)
    for step in chain(subgroup):
        whole = add_turned(whole, step)
    expected = sum(at(volume, element, 0.25).astype(np.float64) for element in subgroup)
    np.testing.assert_allclose(backend.to_host(whole)[:6, :6, :6], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["d2", "oh", "ci", "c4v", "d5", "cs", "c3"])
def test_a_symmetric_map_is_unfolded_from_a_part(name: str) -> None:
    subgroup = grid_elements(point_group(name).elements)
    whole = noise((9, 9, 9))
    for step in chain(subgroup):
        whole = add_turned(whole, step)
    folded = folds(subgroup)
    part = np.full_like(whole, np.nan)
    known = tuple(slice(4, None) if axis in dict(folded) else slice(None) for axis in range(3))
    part[known] = whole[known]
    unfold(part, folded)
    np.testing.assert_allclose(part, whole, rtol=1e-5)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", [(9, 9, 9), (8, 8, 8), (6, 10, 9)])
@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize(
    ("axis", "angle"), [((0, 0, 1), 27), ((0, 1, 0), 40), ((1, 0, 0), -63), ((1, 2, 3), 50), ((0, 0, 1), 0)]
)
def test_splines_are_scipys(
    backend: ArrayBackend, shape: tuple[int, int, int], periodic: bool, axis: tuple[int, int, int], angle: float
) -> None:
    volume = noise(shape)
    matrices = np.stack([rotation(axis, angle), rotation(axis, 2 * angle), rotation(axis, 3 * angle)])
    spline = Spline(backend.asarray(volume.copy()), periodic=(periodic,) * 3, outside=0.5, kept=kept_axis(matrices))
    corner, size = (-2, 0, -3), (4, 5, 6)
    total = backend.asarray(np.ones(size, np.float32))
    spline.add(total, corner, matrices)
    expected = np.ones(size)
    origin = np.array(shape) // 2
    for matrix in matrices:
        back = matrix.T[::-1, ::-1]
        expected += scipy.ndimage.affine_transform(
            volume.astype(np.float64),
            back,
            offset=back @ np.array(corner) + origin,
            output_shape=size,
            order=3,
            mode="grid-wrap" if periodic else "constant",
            cval=0.5,
        )
    np.testing.assert_allclose(backend.to_host(total), expected, atol=2e-5)


@pytest.mark.parametrize("backend", backends())
def test_a_move_along_z_with_a_turn_about_it(backend: ArrayBackend) -> None:
    volume = noise((12, 8, 8))
    matrix = rotation((0, 0, 1), 35)
    spline = Spline(backend.asarray(volume.copy()), periodic=(False, False, False), outside=0.0)
    total = backend.asarray(np.zeros((5, 8, 8), np.float32))
    spline.add(total, (-2, -4, -4), matrix[None], along_z=1.3)
    back = matrix.T[::-1, ::-1]
    expected = scipy.ndimage.affine_transform(
        volume.astype(np.float64),
        back,
        offset=back @ [-2, -4, -4] + [6 + 1.3, 4, 4],
        output_shape=(5, 8, 8),
        order=3,
    )
    np.testing.assert_allclose(backend.to_host(total), expected, atol=2e-5)


@settings(max_examples=30)
@given(
    axis=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda axis: np.linalg.norm(axis) > 0.1),
    angle=st.floats(-180, 180),
    seed=st.integers(0, 99),
)
def test_a_turn_and_back_keeps_a_smooth_map(axis: tuple[float, float, float], angle: float, seed: int) -> None:
    z, y, x = np.indices((20, 20, 20)) - 10.0
    rng = np.random.default_rng(seed)
    volume = sum(
        np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 8) for a, b, c in rng.uniform(-2, 2, (3, 3))
    ).astype(np.float32)
    matrix = rotation(axis, angle)
    for turn in (matrix, matrix.T):
        total = np.zeros_like(volume)
        Spline(volume.copy(), periodic=(False,) * 3).add(total, (-10, -10, -10), turn[None])
        volume, before = total, volume
    again = np.zeros_like(volume)
    Spline(before, periodic=(False,) * 3).add(again, (-10, -10, -10), matrix.T[None])
    np.testing.assert_array_equal(again, volume)
    inside = x * x + y * y + z * z < 64
    start = sum(
        np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 8)
        for a, b, c in np.random.default_rng(seed).uniform(-2, 2, (3, 3))
    )
    np.testing.assert_allclose(volume[inside], start[inside], atol=0.01)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_outside_the_sphere(backend: ArrayBackend, shape: tuple[int, int, int]) -> None:
    volume = noise(shape)
    square = sum((np.indices(shape)[axis] - shape[axis] // 2) ** 2 for axis in range(3))
    expected = volume[square >= (min(shape) // 2) ** 2].astype(np.float64).mean()
    assert outside_mean(backend.asarray(volume)) == pytest.approx(expected, rel=1e-6)


@given(side=st.integers(1, 6), low=st.integers(-15, 15), length=st.integers(1, 20))
def test_repeated_axes(side: int, low: int, length: int) -> None:
    array = np.arange(2 * side).reshape(2, side)
    expected = array[:, np.arange(low, low + length) % side]
    np.testing.assert_array_equal(repeated(array, 1, low, low + length), expected)


def test_axes_that_are_kept() -> None:
    assert kept_axis(rotation((0, 0, 1), 20)[None]) == 0
    assert kept_axis(np.stack([rotation((0, 1, 0), angle) for angle in (20, 50)])) == 1
    assert kept_axis(rotation((1, 0, 0), 20)[None]) == 2
    assert kept_axis(np.stack([rotation((1, 0, 0), 20), rotation((0, 1, 0), 20)])) is None
    assert kept_axis(np.diag([1.0, -1.0, 1.0])[None]) == 0


def test_sides_that_would_be_mixed() -> None:
    check_axes(point_group("c3").elements, (5, 8, 8))
    check_axes(point_group("d2").elements, (25, 43, 73))
    with pytest.raises(ValueError, match="turns x towards y.* 9 × 8 × 8 voxels .*allowed: .*cubes of 9"):
        check_axes(point_group("c3").elements, (8, 8, 9))
    with pytest.raises(ValueError, match="turns x towards z"):
        check_axes(point_group("o").elements, (5, 8, 8))
