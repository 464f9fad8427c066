"""The picks of one micrograph, written in every format, are the same places."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep import formats
from streamprep.model import Coordinates, Item
from tests.formats.picks import WRITERS, Picks


@st.composite
def picks(draw: st.DrawFn) -> Picks:
    ny, nx = draw(st.tuples(st.integers(10, 9000), st.integers(10, 9000)))
    places = st.tuples(st.integers(0, nx - 1), st.integers(0, ny - 1))
    centres = np.array(draw(st.lists(places, min_size=1, max_size=5)), dtype=np.float64)
    return Picks(centres, (ny, nx), draw(st.integers(1, 300)))


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=25)
@given(made=picks())
def test_every_format_gives_the_same_centres(name: str, made: Picks) -> None:
    file, write = WRITERS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, file)
        write(path, made)
        kind = formats.classify_path(path, path.read_bytes()[: formats.HEAD_BYTES])
        assert kind == "coordinates"
        entries = formats.read_item(Item(kind, path.stem, path))
    assert isinstance(entries, list)
    (found,) = [entry.data for entry in entries if isinstance(entry.data, Coordinates)]
    np.testing.assert_allclose(found.xy_px, made.centres, atol=1e-3)
    assert found.xy_px.dtype == np.float64
