"""Projections against closed forms: Gaussians, whose projections are Gaussians, in any orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep.em.ctf import ctf_at
from streamprep.em.projection import (
    GreyFit,
    asymmetric_unit,
    central_slices,
    euler_matrices,
    is_point_group,
    moments_fit,
    project,
    table_orientations,
    unit_projections,
)
from streamprep.formats import mrc
from streamprep.image_sets import sample_images
from streamprep.testing import ArrayBackend, backends, tiny_ctf

SIGMA = 1.6


def centres(seed: int, reach: float, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(n, 3))
    places = directions / np.linalg.norm(directions, axis=1)[:, None] * rng.uniform(0, reach, (n, 1))
    return places, rng.uniform(0.5, 2, n)


def gaussians(size: int, places: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Sum of Gaussians at places (x, y, z) or (x, y) from the origin voxel or pixel."""
    grid = np.indices((size,) * places.shape[1])[::-1] - size // 2
    made = np.zeros((size,) * places.shape[1])
    for place, height in zip(places, heights, strict=True):
        square = sum((axis - at) ** 2 for axis, at in zip(grid, place, strict=True))
        made += height * np.exp(-square / (2 * SIGMA**2))
    return made


def expected(size: int, places: np.ndarray, heights: np.ndarray, matrix: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return gaussians(size, (places @ matrix.T)[:, :2] - shift, heights * SIGMA * np.sqrt(2 * np.pi))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("size", [24, 25, 140])
def test_projections_of_gaussians_are_gaussians(backend: ArrayBackend, size: int) -> None:
    places, heights = centres(1, size / 2 - 6)
    rng = np.random.default_rng(2)
    matrices, shifts = euler_matrices(*rng.uniform(0, 360, (3, 3))), rng.uniform(-1.5, 1.5, (3, 2))
    slices = central_slices(backend.asarray((gaussians(size, places, heights) + 0.7).astype(np.float32)))
    made = backend.to_host(project(slices, backend.asarray(matrices), backend.asarray(shifts)))
    for image, matrix, shift in zip(made, matrices, shifts, strict=True):
        wanted = expected(size, places, heights, matrix, shift) + 0.7 * size
        assert np.abs(image - wanted).max() < 2e-3 * np.ptp(wanted)


@settings(max_examples=25)
@given(
    size=st.integers(16, 33),
    angles=st.tuples(*[st.floats(-360, 360)] * 3),
    shift=st.tuples(*[st.floats(-2, 2)] * 2),
    constant=st.floats(-3, 3),
    factor=st.floats(0.1, 5),
    seed=st.integers(0, 99),
)
def test_projecting_is_linear_and_a_constant_projects_to_the_side(
    size: int, angles: tuple[float, ...], shift: tuple[float, ...], constant: float, factor: float, seed: int
) -> None:
    places, heights = centres(seed, size / 2 - 6)
    volume = gaussians(size, places, heights).astype(np.float32)
    matrix, moved = euler_matrices(*(np.array([angle]) for angle in angles)), np.array([shift])
    plain = project(central_slices(volume), matrix, moved)
    changed = project(central_slices((factor * volume + constant).astype(np.float32)), matrix, moved)
    np.testing.assert_allclose(changed, factor * plain + constant * size, atol=2e-3 * (1 + factor))


def test_along_z_it_is_the_sum_over_z() -> None:
    places, heights = centres(4, 7)
    volume = gaussians(26, places, heights).astype(np.float32)
    made = project(central_slices(volume), np.eye(3)[None], np.zeros((1, 2)))[0]
    assert np.abs(made - volume.sum(axis=0)).max() < 1e-3 * made.max()


def test_euler_matrices_are_rotations_about_z_y_z() -> None:
    rot, tilt, psi = np.random.default_rng(0).uniform(-180, 180, (3, 20))
    made = euler_matrices(rot, tilt, psi)
    np.testing.assert_allclose(made @ np.swapaxes(made, 1, 2), np.broadcast_to(np.eye(3), made.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(made), 1)
    a, b = np.deg2rad(rot), np.deg2rad(tilt)
    direction = np.stack([np.sin(b) * np.cos(a), np.sin(b) * np.sin(a), np.cos(b)], axis=1)
    np.testing.assert_allclose(made[:, 2], direction, atol=1e-12)


def test_the_directions_are_those_of_the_golden_projections(golden: Path) -> None:
    sample = sample_images(golden / "inputs/projections.xmd", 200, np.random.default_rng(0))
    found = table_orientations(sample.columns, 2.0)
    assert found is not None
    volume = np.asarray(mrc.read(golden / "inputs/map_clean.mrc").pixels)
    made = project(central_slices(volume), *found)
    for image, projection in zip(sample.pixels, made, strict=True):
        assert np.corrcoef(image.ravel(), projection.ravel())[0, 1] > 0.999


def test_a_ctf_multiplies_the_transform() -> None:
    size, pixel = 48, 3.0
    places, heights = centres(5, 6)
    volume = gaussians(size, places, heights).astype(np.float32)
    ctf = tiny_ctf()
    matrix = euler_matrices(np.array([40.0]), np.array([70.0]), np.array([10.0]))
    plain = project(central_slices(volume), matrix, np.zeros((1, 2)))[0].astype(np.float64)
    frequencies = np.fft.fftfreq(size)
    values = ctf_at(ctf, frequencies[None, :] / pixel, frequencies[:, None] / pixel)
    for flipped, factor in ((None, values), ([True], np.abs(values))):
        made = project(
            central_slices(volume),
            matrix,
            np.zeros((1, 2)),
            ctfs=[ctf],
            phase_flipped=flipped,
            pixel_size_angstrom=pixel,
        )[0]
        wrapped = np.fft.ifft2(np.fft.fft2(plain) * factor).real
        inner = slice(size // 4, 3 * size // 4)  # farther out the wrapped one differs, rightly
        assert np.corrcoef(made[inner, inner].ravel(), wrapped[inner, inner].ravel())[0, 1] > 0.99


@pytest.mark.parametrize("backend", backends())
def test_least_squares_finds_a_and_b(backend: ArrayBackend) -> None:
    rng = np.random.default_rng(0)
    projections = rng.normal(5, 2, (7, 20, 20)).astype(np.float32)
    unit = rng.uniform(1, 20, 7)
    images = 2.5 * projections - 0.3 * unit[:, None, None]
    images[:, :2, :2] = 99  # outside the circle nothing counts
    fit = GreyFit(20)
    for some in (slice(0, 3), slice(3, 7)):
        fit.add(backend.asarray(images[some].astype(np.float32)), backend.asarray(projections[some]), unit[some])
    solved = fit.solve()
    assert solved is not None
    np.testing.assert_allclose(solved, (2.5, -0.3), rtol=1e-4)


def test_least_squares_of_constant_projections_have_no_answer() -> None:
    fit = GreyFit(8)
    fit.add(np.ones((2, 8, 8)), np.full((2, 8, 8), 8.0), np.full(2, 8.0))
    assert fit.solve() is None
    fit = GreyFit(8)
    fit.add(np.ones((2, 8, 8)), np.zeros((2, 8, 8)), np.full(2, 8.0))
    assert fit.solve() is None


def test_without_a_unit_projection_only_a_is_found() -> None:
    projections = np.random.default_rng(0).normal(size=(2, 8, 8))
    fit = GreyFit(8)
    fit.add(3 * projections, projections, np.zeros(2))
    solved = fit.solve()
    assert solved is not None
    np.testing.assert_allclose(solved, (3, 0))


def test_a_ctf_leaves_of_a_unit_projection_its_value_at_zero() -> None:
    ctf = tiny_ctf()
    zero = float(ctf_at(ctf, np.zeros(1), np.zeros(1))[0])
    np.testing.assert_allclose(unit_projections(10, 2, [ctf, ctf], [False, True]), [10 * zero, 10 * abs(zero)])
    assert unit_projections(10, 2, None, None).tolist() == [10, 10]


def test_moments_fit_what_is_independent_along_lines() -> None:
    volume = np.random.default_rng(0).normal(1, 2, (40, 40, 40))
    images = (3 * volume + 0.5).sum(axis=0)[None]
    means, deviations = images.mean(axis=(1, 2)), images.std(axis=(1, 2), ddof=1)
    a, b = moments_fit(volume.size, volume.mean(), volume.std(), means, deviations)
    assert a == pytest.approx(3, rel=0.05)
    assert a * volume.mean() + b == pytest.approx(3.5, rel=0.05)


# --- tables ----------------------------------------------------------------------------------------------------------


def text(*values: float) -> np.ndarray:
    return np.array([str(value) for value in values], dtype=object)


def test_columns_of_both_programs_mean_the_same() -> None:
    angles = {"Rot": text(10, 20), "Tilt": text(30, 40), "Psi": text(50, 60)}
    relion = {f"rlnAngle{name}": values for name, values in angles.items()}
    xmipp = {f"angle{name}": values for name, values in angles.items()}
    found = [
        table_orientations(relion | {"rlnOriginXAngst": np.array([3.0, 6.0]), "rlnOriginYAngst": text(0, -3)}, 1.5),
        table_orientations(relion | {"rlnOriginX": text(2, 4), "rlnOriginY": text(0, -2)}, 1.5),
        table_orientations(xmipp | {"shiftX": text(2, 4), "shiftY": text(0, -2)}, 1.5),
    ]
    for made in found:
        assert made is not None
        np.testing.assert_allclose(made[0], euler_matrices(*np.array([[10, 20], [30, 40], [50, 60.0]])))
        np.testing.assert_allclose(made[1], [[2, 0], [4, -2]])


def test_a_mirrored_image_is_a_projection_from_behind() -> None:
    places, heights = centres(6, 6)
    columns = {"angleRot": text(10), "angleTilt": text(35), "anglePsi": text(80), "shiftX": text(1)}
    slices = central_slices(gaussians(25, places, heights).astype(np.float32))
    still = table_orientations({**columns, "shiftX": text(0)}, 1)
    mirrored = table_orientations({**columns, "flip": text(1)}, 1)
    assert still is not None
    assert mirrored is not None
    direct = project(slices, *still)[0]
    np.testing.assert_allclose(project(slices, *mirrored)[0][:, :-1], direct[:, ::-1][:, 1:], atol=1e-3 * direct.max())


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"rlnAnglePsi": text(3, 4)},
        {"rlnAngleRot": text(0, 0), "rlnAngleTilt": text(0, 0), "rlnAnglePsi": text(3, 4)},
    ],
)
def test_images_aligned_in_the_plane_have_no_orientation(columns: dict[str, np.ndarray]) -> None:
    assert table_orientations(columns, 1) is None


def test_images_without_an_angle_in_the_plane_have_no_orientation() -> None:
    assert table_orientations({"rlnAngleRot": text(10, 20), "rlnAngleTilt": text(30, 40)}, 1) is None


@pytest.mark.parametrize("value", ["nan", "inf", "None", ""])
def test_an_angle_that_is_no_number_is_named(value: str) -> None:
    columns = {"angleRot": np.array(["1", value], dtype=object), "angleTilt": text(1, 2), "anglePsi": text(0, 0)}
    with pytest.raises(ValueError, match="_angleRot is '" + value):
        table_orientations(columns, 1)


# --- directions ------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(kind=st.sampled_from("cd"), order=st.integers(1, 7), step=st.floats(3, 30), seed=st.integers(0, 999))
def test_every_direction_has_an_equivalent_within_a_step(kind: str, order: int, step: float, seed: int) -> None:
    rot, tilt = np.deg2rad(asymmetric_unit(f"{kind}{order}", step)).T
    unit = np.stack([np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)], axis=1)
    wanted = np.random.default_rng(seed).normal(size=3)
    wanted /= np.linalg.norm(wanted)
    turns = [euler_matrices(np.array([360.0 * i / order]), np.zeros(1), np.zeros(1))[0] for i in range(order)]
    group = turns + ([turn @ np.diag([1.0, -1, -1]) for turn in turns] if kind == "d" else [])
    nearest = max(float((unit @ (element @ wanted)).max()) for element in group)
    assert np.rad2deg(np.arccos(min(1, nearest))) <= step


@pytest.mark.parametrize("name", ["c1", "C7", "ci", "cs", "c3v", "c3h", "s4", "d2", "d5h", "t", "TD", "oh", "i", "i4h"])
def test_point_groups_are_known(name: str) -> None:
    assert is_point_group(name)
    assert len(asymmetric_unit(name, 10)) <= len(asymmetric_unit("c1", 10))


@pytest.mark.parametrize("name", ["", "c0", "c", "s3", "x2", "helical", "i5", "d2x"])
def test_other_names_are_none(name: str) -> None:
    assert not is_point_group(name)
    with pytest.raises(ValueError, match="allowed are point groups"):
        asymmetric_unit(name, 10)
