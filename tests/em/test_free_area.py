"""The free area: pixel for pixel what the definition says, however it was computed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from streamprep.em import free_area as module
from streamprep.em.free_area import FreeArea, Window, free_area, nearest_runs

Discs = list[tuple[np.ndarray, float]]


def brute_force(shape: tuple[int, int], box: int, discs: Discs, mask: np.ndarray | None) -> np.ndarray:
    """Pixel by pixel: is a box centred here inside, off the mask, and its centre far enough from every point?"""
    ny, nx = shape
    free = np.zeros(shape, dtype=bool)
    for top in range(ny - box + 1):
        for left in range(nx - box + 1):
            free[top + box // 2, left + box // 2] = mask is None or not mask[top : top + box, left : left + box].any()
    y, x = np.mgrid[:ny, :nx]
    for points, distance in discs:
        for px, py in points:
            free &= (x - px) ** 2 + (y - py) ** 2 >= distance**2
    return free


def painted(area: FreeArea, shape: tuple[int, int]) -> np.ndarray:
    """How often each pixel lies in the area: 0 or 1 when it is right."""
    seen = np.zeros(shape, dtype=int)
    assert (area.end >= area.first).all()
    for place, end in zip(area.end[:-1], area.first[1:], strict=True):
        assert end > place, "runs that touch are merged"
        row, column = divmod(int(place), area.window.width)
        seen[row, column : column + end - place] += 1
    return seen


def area_of(shape: tuple[int, int], box: int, discs: Discs, mask: np.ndarray | None) -> FreeArea:
    area = free_area(shape, box, mask)
    for points, distance in discs:
        area = area.away_from(points, distance)
    return area


quarters = st.integers(-20, 140).map(lambda value: value / 4)
clouds = st.lists(st.tuples(quarters, quarters), max_size=12).map(lambda xy: np.array(xy, float).reshape(-1, 2))
distances = st.integers(0, 40).map(lambda value: value / 4)
shapes = st.tuples(st.integers(1, 26), st.integers(1, 26))


@st.composite
def masks(draw: st.DrawFn, shape: tuple[int, int]) -> np.ndarray | None:
    if draw(st.booleans()):
        return None
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return rng.random(shape) < draw(st.sampled_from([0, 0.02, 0.3, 1]))


@settings(max_examples=150)
@given(data=st.data(), shape=shapes, box=st.integers(2, 9), discs=st.lists(st.tuples(clouds, distances), max_size=2))
def test_the_free_area_equals_brute_force(data: st.DataObject, shape: tuple[int, int], box: int, discs: Discs) -> None:
    mask = data.draw(masks(shape))
    area = area_of(shape, box, discs, mask)
    expected = brute_force(shape, box, discs, mask)
    np.testing.assert_array_equal(painted(area, shape), expected)
    assert len(area) == expected.sum()


@settings(max_examples=20)
@given(box=st.integers(2, 150), nx=st.integers(150, 420), seed=st.integers(0, 99))
def test_a_mask_wider_than_a_word_blocks_whole_boxes(box: int, nx: int, seed: int) -> None:
    shape = (170, nx)
    mask = np.random.default_rng(seed).random(shape) < 3 / (box * box)
    counts = np.pad(mask.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    inside = counts[box:, box:] - counts[:-box, box:] - counts[box:, :-box] + counts[:-box, :-box]
    expected = np.zeros(shape, dtype=int)
    expected[box // 2 : box // 2 + len(inside), box // 2 : box // 2 + inside.shape[1]] = inside == 0
    np.testing.assert_array_equal(painted(free_area(shape, box, mask), shape), expected)


# --- the rows cut between the points ---------------------------------------------------------------------------------


def cut_and_compared(points: np.ndarray, shape: tuple[int, int], reach: float) -> None:
    window = free_area(shape, 2).window
    runs = nearest_runs(points, window, reach)
    for distance in (0.5, reach / 3, reach / 2, reach):
        area = free_area(shape, 2) if runs is None else runs.area(distance)
        expected = brute_force(shape, 2, [(points, distance)], None)
        np.testing.assert_array_equal(painted(area, shape), expected)


@settings(max_examples=150)
@given(points=clouds, shape=st.tuples(st.integers(2, 30), st.integers(2, 30)), reach=st.integers(1, 60))
def test_runs_of_one_nearest_point_give_the_same_area(points: np.ndarray, shape: tuple[int, int], reach: int) -> None:
    cut_and_compared(points, shape, reach / 4)


TURN = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
SQUARE = np.stack(np.meshgrid(np.arange(-6, 12), np.arange(-6, 12)), axis=-1).reshape(-1, 2).astype(float)
HEXAGONS = SQUARE @ np.array([[1, 0], [0.5, np.sqrt(0.75)]])


@pytest.mark.parametrize("pitch", [5.0, 7.25, 9.037])
@pytest.mark.parametrize("lattice", [SQUARE, SQUARE @ TURN, HEXAGONS, HEXAGONS @ TURN])
def test_lattices_are_cut_exactly(lattice: np.ndarray, pitch: float) -> None:
    cut_and_compared(pitch * lattice, (48, 61), 0.71 * pitch)


@pytest.mark.parametrize(
    "points",
    [
        np.stack([np.full(20, 30.0), np.linspace(0, 60, 20)], axis=1),
        np.stack([np.linspace(0, 60, 20), np.full(20, 30.0)], axis=1),
        np.stack([np.arange(20) * 3.0, np.arange(20) * 2.0], axis=1),
        np.array([[20.0, 20.0]]),
        np.repeat([[20.0, 20.0], [40.5, 11.25]], 7, axis=0),
        np.array([[20.0, 20.0], [1e150, 5.0], [5.0, -1e150], [2.0**63, 7.0]]),
    ],
    ids=["column", "row", "line", "one", "repeated", "far"],
)
def test_points_in_special_places_are_cut_exactly(points: np.ndarray) -> None:
    cut_and_compared(points, (50, 64), 13.0)


@pytest.mark.parametrize("shift", [1e-13, 1e-9, 1e-5])
def test_points_that_nearly_coincide_are_cut_exactly(shift: float) -> None:
    rng = np.random.default_rng(4)
    points = rng.uniform(0, 60, size=(25, 2))
    cut_and_compared(np.concatenate([points, points + shift * rng.normal(size=points.shape)]), (50, 64), 9.0)


def test_spoilt_rows_are_cut_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crossings that are missing, as after a rounding error, are noticed."""
    crossings = module._crossings

    def spoilt(sites: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        edges, edge, row = crossings(sites, window)
        kept = (np.arange(len(row)) % 7 != 3) & (row != 20)
        return edges, edge[kept], row[kept]

    monkeypatch.setattr(module, "_crossings", spoilt)
    cut_and_compared(np.random.default_rng(0).uniform(0, 60, size=(30, 2)), (50, 64), 9.0)


# --- chance ----------------------------------------------------------------------------------------------------------


def test_draws_are_uniform_over_the_exact_area() -> None:
    shape, box = (90, 150), 12
    points = np.random.default_rng(1).uniform((0, 0), shape[::-1], size=(12, 2))
    mask = np.zeros(shape, dtype=bool)
    mask[25:35, 105:125] = True
    discs = [(points, 14.0)]
    drawn = area_of(shape, box, discs, mask).draw(40000, np.random.default_rng(5)).astype(int)
    found = np.zeros(shape, dtype=int)
    np.add.at(found, (drawn[:, 1], drawn[:, 0]), 1)
    free = brute_force(shape, box, discs, mask)
    assert found[~free].sum() == 0
    assert chisquare(found[free]).pvalue > 1e-3


def test_every_pixel_of_an_area_is_shuffled_once() -> None:
    shape, box = (40, 50), 6
    discs = [(np.array([[20.0, 15.5], [33.3, 30.0]]), 9.0)]
    pixels = area_of(shape, box, discs, None).shuffled(np.random.default_rng(2)).astype(int)
    seen = np.zeros(shape, dtype=int)
    np.add.at(seen, (pixels[:, 1], pixels[:, 0]), 1)
    np.testing.assert_array_equal(seen, brute_force(shape, box, discs, None))
    assert (np.diff(pixels[:, 1]) < 0).any()
