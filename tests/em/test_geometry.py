"""Places that are far enough apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform

from streamprep.em.geometry import figure_of_merit, well_separated
from streamprep.model import Coordinates

places = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=40)


@given(places, st.integers(1, 30), st.randoms())
def test_the_kept_are_apart_and_each_dropped_is_near_a_better_one(
    xy: list[tuple[int, int]], distance: int, chance: object
) -> None:
    points = np.array(xy, dtype=np.float64).reshape(-1, 2)
    score = np.array([chance.randrange(5) for _ in xy], dtype=np.float64)  # type: ignore[attr-defined]
    keep = well_separated(points, distance, score)
    assert keep.shape == (len(points),)
    if keep.sum() > 1:
        assert pdist(points[keep]).min() >= distance
    apart = squareform(pdist(points)) if len(points) > 1 else np.zeros((len(points),) * 2)
    for index in np.flatnonzero(~keep):
        near = keep & (apart[index] < distance)
        assert (score[near] >= score[index]).any()


def test_without_a_score_the_first_is_kept() -> None:
    points = np.array([[0.0, 0.0], [1.0, 0.0], [2.5, 0.0], [9.0, 0.0]])
    assert well_separated(points, 2.0).tolist() == [True, False, True, True]
    assert well_separated(points, 2.0, np.array([0.0, 1.0, np.nan, 0.0])).tolist() == [False, True, False, True]
    assert well_separated(points, 1.0).all(), "exactly at the distance is far enough"


def test_a_heap_of_duplicates_takes_neither_time_nor_memory() -> None:
    assert well_separated(np.zeros((200_000, 2)), 1e-9).sum() == 1


@pytest.mark.parametrize(
    ("columns", "merit"),
    [({}, None), ({"rlnAutopickFigureOfMerit": np.array(["0.5", "2"], object)}, [0.5, 2.0]),
     ({"rlnAutopickFigureOfMerit": np.array(["good", "2"], object)}, None)],
)  # fmt: skip
def test_the_figure_of_merit_of_a_table(columns: dict[str, np.ndarray], merit: list[float] | None) -> None:
    found = figure_of_merit(Coordinates(np.zeros((2, 2)), columns=columns))
    assert (None if found is None else found.tolist()) == merit
