"""Xmipp ``.pos`` files: the blocks and columns that Xmipp's picker reads, and whole pixels."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep.formats import xmipp
from streamprep.model import Coordinates


def rows(text: str) -> list[tuple[int, ...]]:
    table = gemmi.cif.read_string(text).find_block("particles").find(["_enabled", "_xcoor", "_ycoor"])
    return [tuple(int(value) for value in row) for row in table]


def test_the_blocks_are_those_of_xmipp() -> None:
    text = xmipp.pos_text(Coordinates(np.array([[10.0, 20.0]])))
    assert text.startswith("# XMIPP_STAR_1 *")
    document = gemmi.cif.read_string(text)
    assert [block.name for block in document] == ["header", "particles"]
    assert list(document[0].find_loop("_pickingMicrographState")) == ["Manual"]
    assert list(document[1][0].loop.tags) == ["_enabled", "_xcoor", "_ycoor"]


@pytest.mark.parametrize(
    ("centre", "pixel"),
    [(0.0, 0), (0.49, 0), (0.5, 1), (1.49, 1), (1.5, 2), (2.5, 3), (3.5, 4), (4095.0, 4095), (99_999.5, 100_000)],
)
def test_centres_are_rounded_half_up(centre: float, pixel: int) -> None:
    assert rows(xmipp.pos_text(Coordinates(np.array([[centre, 7.0], [8.0, centre]])))) == [(1, pixel, 7), (1, 8, pixel)]


def test_no_coordinates_are_a_whole_file_without_rows() -> None:
    text = xmipp.pos_text(Coordinates(np.empty((0, 2))))
    assert rows(text) == []
    assert "_ycoor" in text
    assert text.endswith("\n")


positions = st.integers(0, 1 << 20).map(lambda number: number / 8)


@given(st.lists(st.tuples(positions, positions), max_size=20))
def test_every_centre_is_the_nearest_pixel_in_its_row(centres: list[tuple[float, float]]) -> None:
    found = rows(xmipp.pos_text(Coordinates(np.array(centres, dtype=float).reshape(-1, 2))))
    assert len(found) == len(centres)
    for (enabled, x, y), centre in zip(found, centres, strict=True):
        assert enabled == 1
        assert -0.5 < x - centre[0] <= 0.5
        assert -0.5 < y - centre[1] <= 0.5
