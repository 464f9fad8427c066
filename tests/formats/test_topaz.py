"""Topaz's tables: one entry per micrograph, names with dots whole, and what is broken is named."""

from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep.formats import _values, topaz
from streamprep.model import Coordinates, Entry, InputError
from streamprep.naming import stem_of

HEADER = "image_name\tx_coord\ty_coord\tscore\n"
GOOD = HEADER + "mic_b\t10\t20\t1.5\nmic_a\t30\t40\t-0.25\nmic_b\t50.5\t60\t-3\n"
MERIT = "rlnAutopickFigureOfMerit"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a file and give its path."""

    def made(text: str | bytes, name: str = "picks.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return made


def coordinates(entry: Entry) -> Coordinates:
    assert isinstance(entry.data, Coordinates)
    return entry.data


def test_one_file_speaks_of_several_micrographs(write: Any) -> None:
    first, second = topaz.read_entries(write(GOOD))
    assert (first.micrograph, second.micrograph) == ("mic_b", "mic_a")
    assert coordinates(first).xy_px.tolist() == [[10, 20], [50.5, 60]]
    assert coordinates(second).xy_px.tolist() == [[30, 40]]
    assert coordinates(first).xy_px.dtype == np.float64
    assert coordinates(first).box_size_px is None
    assert {name: values.tolist() for name, values in coordinates(first).columns.items()} == {MERIT: [1.5, -3]}


def test_a_score_is_not_needed(write: Any) -> None:
    (entry,) = topaz.read_entries(write("image_name\tx_coord\ty_coord\nmic\t1\t2\n"))
    assert coordinates(entry).xy_px.tolist() == [[1, 2]]
    assert coordinates(entry).columns == {}


def test_columns_are_known_by_their_names_and_others_are_kept(write: Any) -> None:
    (entry,) = topaz.read_entries(write("y_coord\tsource\timage_name\tx_coord\n2\tgrid 1\tmic\t1\n"))
    assert coordinates(entry).xy_px.tolist() == [[1, 2]]
    assert coordinates(entry).columns["source"].tolist() == ["grid 1"]


@pytest.mark.parametrize(
    "name", ["grid.2_mic.0001", "mic.frames", "mic.mrc", "20240101_10.30.00", "größe.1", "a b.c", "mic_0001"]
)
def test_a_dot_in_the_name_of_a_micrograph_is_part_of_it(write: Any, name: str) -> None:
    (entry,) = topaz.read_entries(write(f"{HEADER}{name}\t1\t2\t3\n"))
    assert entry.micrograph is not None
    assert stem_of(entry.micrograph) == name.removesuffix(".mrc")


def test_a_table_without_rows_names_no_micrograph(write: Any) -> None:
    assert topaz.read_entries(write(HEADER)) == []
    assert topaz.read_entries(write(HEADER.rstrip())) == []


@pytest.mark.parametrize(
    "same",
    [GOOD.replace("\n", "\r\n"), GOOD.rstrip(), GOOD + "\n\n", "\ufeff" + GOOD, GOOD.replace("\t10\t", "\t1e1\t")],
)
def test_line_ends_change_nothing(write: Any, same: str) -> None:
    found = [(entry.micrograph, entry.digest) for entry in topaz.read_entries(write(same, "a.txt"))]
    assert found == [(entry.micrograph, entry.digest) for entry in topaz.read_entries(write(GOOD, "b.txt"))]
    assert topaz.recognise(Path("a.txt"), same.encode()) == "coordinates"


@pytest.mark.parametrize(("old", "new"), [("50.5", "50.6"), ("1.5", "1.25"), ("mic_b\t10\t20\t1.5\n", "")])
def test_a_digest_changes_with_the_rows_of_its_own_micrograph_only(write: Any, old: str, new: str) -> None:
    before = {entry.micrograph: entry.digest for entry in topaz.read_entries(write(GOOD, "a.txt"))}
    after = {entry.micrograph: entry.digest for entry in topaz.read_entries(write(GOOD.replace(old, new), "b.txt"))}
    assert before["mic_a"] == after["mic_a"]
    assert before["mic_b"] != after["mic_b"]


positions = st.floats(-1e6, 1e6)
names = st.text("ab.0_ -é", min_size=1, max_size=6).filter(lambda name: name.strip(" ."))


@given(st.lists(st.tuples(names, positions, positions, positions), max_size=20))
def test_centres_come_back_in_order(rows: list[tuple[str, float, float, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picks.txt"
        path.write_text(HEADER + "".join(f"{name}\t{x!r}\t{y!r}\t{score!r}\n" for name, x, y, score in rows))
        entries = topaz.read_entries(path)
    wanted = dict.fromkeys(name for name, *_ in rows)
    assert len(entries) == len(wanted)
    for entry, name in zip(entries, wanted, strict=True):
        assert entry.micrograph in (name, f"{name}.mrc")
        data = coordinates(entry)
        assert [
            (*row, score) for row, score in zip(data.xy_px.tolist(), data.columns[MERIT].tolist(), strict=True)
        ] == [row[1:] for row in rows if row[0] == name]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "line 1: no column image_name"),
        (b"mic\t1\t2\t3\n", "line 1: no column image_name"),
        (b"image_name x_coord y_coord\nmic 1 2\n", "line 1: no column image_name"),
        (b"image_name\tx_coord\n", "line 1: no column y_coord"),
        (b"image_name\tx_coord\ty_coord\tx_coord\n", "line 1: two columns have one name"),
        (b"image_name\tx_coord\ty_coord\tz_coord\nt\t1\t2\t3\n", "z_coord belongs to a tomogram"),
        (GOOD + "mic_a\t1\t2\n", "line 5: 3 columns, where line 1 names 4"),
        (GOOD + "mic_a\t1\t2\t3\t4\n", "line 5: 5 columns"),
        (GOOD + "mic", "line 5: 1 columns.*'mic'"),
        (HEADER + "\n\nmic\tx\t2\t3\n", "line 4: x_coord is 'x', not a number"),
        (HEADER + "mic\t1\tnan\t3\n", "line 2: y_coord is 'nan'"),
        (HEADER + "mic\t1\t2\tinf\n", "line 2: score is 'inf'"),
        (HEADER + "mic\t1\t2\t1e999\n", "line 2: score is '1e999'"),
        (HEADER + "mic\t1\t\t3\n", "line 2: y_coord is '', not a number"),
        (HEADER + "mic\t1,5\t2\t3\n", "line 2: x_coord is '1,5'"),
        (HEADER + "mic\t1_5\t2\t3\n", "line 2: x_coord is '1_5'"),
        (HEADER + "mic\t1 5\t2\t3\n", "line 2: x_coord is '1 5'"),
        (HEADER + "mic\t1\t2\t3\n\t1\t2\t3\n", "line 3: image_name is '', not a name"),
        (HEADER.encode() + b"m\xe9\t1\t2\t3\n", "byte 35 is not UTF-8"),
        (bytes(4096), "byte 1 is NUL"),
        (GOOD.encode("utf-16"), "byte 4 is NUL"),
        (HEADER + "mic" + "\t1" * 500_000, "line 2: 500001 columns"),
        (HEADER + "mic\t" + "1" * 500_000 + "\t2\t3", "line 2: x_coord is '1111"),
    ],
)
def test_a_broken_file_is_refused_with_line_and_value(write: Any, text: str | bytes, said: str) -> None:
    with pytest.raises(InputError, match=rf"picks\.txt: .*{said}") as caught:
        topaz.read_entries(write(text))
    assert len(caught.value.reason) < 400


def test_a_long_name_beside_many_short_ones_costs_no_more_than_itself(write: Any) -> None:
    text = HEADER + "x" * 1_000_000 + "\t1\t2\t3\n" + "".join(f"m{number}\t1\t2\t3\n" for number in range(5_000))
    path = write(text)
    tracemalloc.start()
    try:
        assert len(topaz.read_entries(path)) == 5_001
        assert tracemalloc.get_traced_memory()[1] < 40 << 20  # a table of fixed width would take 20 GB
    finally:
        tracemalloc.stop()


def test_a_file_that_is_too_large_is_not_read(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_values, "MAX_BYTES", 10)
    with pytest.raises(InputError, match="the most that is read is 10"):
        topaz.read_entries(write(GOOD))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_read(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picks.txt"
        path.write_bytes(HEADER.encode() + text)
        assert topaz.recognise(path, text) in ("coordinates", None)
        try:
            entries = topaz.read_entries(path)
        except InputError:
            return
    assert all(np.isfinite(coordinates(entry).xy_px).all() for entry in entries)


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("a.txt", GOOD.encode(), "coordinates"),
        ("a.tab", HEADER.encode(), "coordinates"),
        ("a.txt", b"image_name\tx_coord\ty_coord", "coordinates"),
        ("a.txt", b"image_name x_coord y_coord\n", None),
        ("a.txt", b"# Output from CTFFind version 4.1.14\n", None),
        ("a.txt", b"image_name\tpath\nmic\tmic.mrc\n", None),
        ("a.txt", b"", None),
        ("a.txt", bytes(range(256)) * 16, None),
    ],
)
def test_files_are_told_by_what_is_in_them(name: str, head: bytes, kind: str | None) -> None:
    assert topaz.recognise(Path(name), head[:4096]) == kind


def test_no_real_file_of_another_program_is_taken_for_one_of_topaz(data: Path) -> None:
    paths = [path for path in (data / "coordinates").rglob("*") if path.is_file()]
    assert paths
    assert [topaz.recognise(path, path.read_bytes()[:4096]) for path in paths] == [None] * len(paths)
