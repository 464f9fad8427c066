"""The background of a box, and the plane fitted to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep.em.background import background_mask, plane_axes, plane_solver

sides = st.integers(1, 24)


@settings(max_examples=60)
@given(ny=sides, nx=sides, radius=st.integers(0, 14))
def test_background_is_at_the_radius_or_beyond_it(ny: int, nx: int, radius: int) -> None:
    mask = background_mask(ny, nx, radius)
    assert mask.shape == (ny, nx)
    assert mask.dtype == bool
    for y in range(ny):
        for x in range(nx):
            assert mask[y, x] == ((y - ny // 2) ** 2 + (x - nx // 2) ** 2 >= radius**2)


@pytest.mark.parametrize(("side", "origin"), [(8, 4), (9, 4)])
def test_the_origin_is_pixel_half_the_side(side: int, origin: int) -> None:
    assert np.argwhere(~background_mask(side, side, 1)).tolist() == [[origin, origin]]


@settings(max_examples=60)
@given(ny=st.integers(4, 24), nx=st.integers(4, 24), radius=st.integers(0, 12), seed=st.integers(0, 99))
def test_the_plane_is_that_of_least_squares(ny: int, nx: int, radius: int, seed: int) -> None:
    radius = min(radius, ny // 2, nx // 2)  # so that the background spans a plane
    inside = background_mask(ny, nx, radius).ravel()
    image = np.random.default_rng(seed).normal(6800, 9, ny * nx)
    y, x = np.indices((ny, nx))
    design = np.stack([x.ravel(), y.ravel(), np.ones(ny * nx)], axis=1)
    fitted = design @ np.linalg.lstsq(design[inside], image[inside], rcond=None)[0]
    down, right = plane_axes(ny, nx)
    terms = np.stack([np.ones(ny * nx), np.tile(right, ny), np.repeat(down, nx)])
    plane = plane_solver(ny, nx, radius) @ (terms[:, inside] @ image[inside])
    np.testing.assert_allclose(plane @ terms, fitted, rtol=1e-9)


@pytest.mark.parametrize(("ny", "nx", "held"), [(1, 1, 1), (1, 5, 2), (5, 1, 2), (2, 2, 3)])
def test_directions_that_a_small_background_does_not_hold_are_zero(ny: int, nx: int, held: int) -> None:
    solver = plane_solver(ny, nx, 0)
    assert np.isfinite(solver).all()
    assert np.linalg.matrix_rank(solver) == held


def test_no_background_at_all_is_finite() -> None:
    assert not plane_solver(4, 4, 10).any()
