"""crYOLO's ``.cbox``: corners become centres, every column is kept, and what is broken is named."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep.formats import _values, cryolo
from streamprep.model import Coordinates, Entry, InputError

HEAD = "\ndata_global\n\n_cbox_format_version 1.0\n\n"
TAIL = "\ndata_cryolo_include\n\nloop_\n_slice_index #1\n"
NAMES = ("CoordinateX", "CoordinateY", "CoordinateZ", "Width", "Height", "EstWidth", "Confidence")
MERIT = "rlnAutopickFigureOfMerit"


def cbox(rows: Sequence[str], names: Sequence[str] = NAMES) -> str:
    columns = "".join(f"_{name} #{number}\n" for number, name in enumerate(names, start=1))
    return f"{HEAD}data_cryolo\n\nloop_\n{columns}" + "".join(f"{row}\n" for row in rows) + TAIL


GOOD = cbox(["10.5 20 <NA> 220.0 220.0 232.0 0.5", "-30 40 <NA> 220.0 220.0 <NA> 0.25"])


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a file and give its path."""

    def made(text: str | bytes, name: str = "mic.cbox") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return made


def only(path: Path) -> tuple[Entry, Coordinates]:
    (entry,) = cryolo.read_entries(path)
    assert isinstance(entry.data, Coordinates)
    return entry, entry.data


def test_a_corner_becomes_a_centre_and_every_column_is_kept(write: Any) -> None:
    entry, data = only(write(GOOD))
    assert entry.micrograph is None
    assert data.xy_px.tolist() == [[120.5, 130], [80, 150]]
    assert data.xy_px.dtype == np.float64
    assert data.box_size_px == 220
    assert {name: values.tolist() for name, values in data.columns.items()} == {
        MERIT: [0.5, 0.25],
        "CoordinateZ": ["<NA>", "<NA>"],
        "Width": ["220.0", "220.0"],
        "Height": ["220.0", "220.0"],
        "EstWidth": ["232.0", "<NA>"],
    }


@pytest.mark.parametrize("same", [GOOD.replace("\n", "\r\n"), GOOD.replace(" ", "\t"), GOOD.replace(TAIL, "")])
def test_spaces_and_line_ends_change_nothing(write: Any, same: str) -> None:
    assert only(write(same, "a.cbox"))[0].digest == only(write(GOOD, "b.cbox"))[0].digest
    assert cryolo.recognise(Path("a.cbox"), same.encode()) == "coordinates"


@pytest.mark.parametrize(("old", "new"), [("0.25", "0.26"), ("10.5", "10.6"), ("232.0", "233.0")])
def test_the_digest_changes_with_the_rows(write: Any, old: str, new: str) -> None:
    assert only(write(GOOD.replace(old, new), "a.cbox"))[0].digest != only(write(GOOD, "b.cbox"))[0].digest


@pytest.mark.parametrize("text", ["", cbox([])], ids=["no bytes", "no rows"])
def test_a_file_without_boxes_is_a_micrograph_without_particles(write: Any, text: str) -> None:
    assert only(write(text))[1].xy_px.shape == (0, 2)
    assert cryolo.recognise(Path("mic.cbox"), text.encode()) == "coordinates"


@pytest.mark.parametrize(("size", "found"), [("4 4", None), ("220 210", None), ("0 0", None), ("220 220", 220)])
def test_a_box_size_is_given_where_there_is_one(write: Any, size: str, found: int | None) -> None:
    rows = ["1 2 <NA> 220 220 <NA> 1", f"1 2 <NA> {size} <NA> 1"]
    assert only(write(cbox(rows if size != "0 0" else rows[1:])))[1].box_size_px == found


def test_boxes_of_filaments_are_points(write: Any) -> None:
    text = cbox(["1 2 100 100 <NA> 0.0", "11 2 100 100 <NA> 1.0"], ["CoordinateX", "CoordinateY", "Width", "Height"])
    text = text.replace("_Height #4\n", "_Height #4\n_Confidence #5\n_filamentid #6\n")
    _, data = only(write(text))
    assert data.xy_px.tolist() == [[51, 52], [61, 52]]
    assert data.columns["filamentid"].tolist() == ["0.0", "1.0"]


def test_a_confidence_that_a_row_lacks_is_kept_as_it_is(write: Any) -> None:
    _, data = only(write(GOOD.replace("0.25", "<NA>")))
    assert data.columns["Confidence"].tolist() == ["0.5", "<NA>"]
    assert MERIT not in data.columns


def test_a_confidence_is_not_needed(write: Any) -> None:
    names = ["CoordinateX", "CoordinateY", "Width", "Height"]
    assert only(write(cbox(["1 2 4 4"], names)))[1].xy_px.tolist() == [[3, 4]]


positions = st.integers(-(1 << 20), 1 << 20).map(lambda number: number / 8)


@given(st.lists(st.tuples(positions, positions), max_size=20), st.integers(1, 400))
def test_centres_come_back(centres: list[tuple[float, float]], size: int) -> None:
    rows = [
        f"{x - size / 2!r} {y - size / 2!r} <NA> {size}.0 {size}.0 <NA> {index / 8}"
        for index, (x, y) in enumerate(centres)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mic.cbox"
        path.write_text(cbox(rows))
        _, data = only(path)
    assert [tuple(row) for row in data.xy_px.tolist()] == centres
    assert data.columns[MERIT].tolist() == [index / 8 for index in range(len(centres))]
    assert data.box_size_px == (size if centres else None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"hello\n", "not a readable STAR file"),
        (b"\n", "holds no table"),
        (bytes(4096), "byte 1 is NUL"),
        (b"10\t20\t220\t220\t0.5\n", "not a readable STAR file"),
        (HEAD, "0 tables in data_cryolo"),
        (GOOD.replace("data_cryolo\n", "data_particles\n"), "0 tables in data_cryolo"),
        (GOOD.replace(TAIL, "\nloop_\n_other\n1\n"), "2 tables in data_cryolo"),
        (GOOD + GOOD, "not a readable STAR file"),
        (GOOD.replace(" 0.25", ""), "not a readable STAR file"),
        (GOOD.replace("_Width", "_Breadth"), "data_cryolo has no column _Width"),
        (GOOD.replace("_CoordinateY", "_Y"), "data_cryolo has no column _CoordinateY"),
        (GOOD.replace("-30", "nan"), "row 2 of data_cryolo: _CoordinateX is 'nan', not a number"),
        (GOOD.replace("-30", "1e999"), "row 2 of data_cryolo: _CoordinateX is '1e999'"),
        (GOOD.replace("-30", "<NA>"), "row 2 of data_cryolo: _CoordinateX is '<NA>'"),
        (GOOD.replace("0.25", "inf"), "row 2 of data_cryolo: _Confidence is 'inf'"),
        (GOOD.replace("220.0 220.0 <NA>", "220.0 <NA> <NA>"), "row 2 of data_cryolo: _Height is '<NA>'"),
        (GOOD.replace("220.0 220.0 <NA>", "-220.0 220.0 <NA>"), "data_cryolo, row 2: a box of -220 x 220 pixels"),
        (GOOD.replace("220.0 220.0 <NA>", "1e300 220.0 <NA>"), r"row 2: a box of 1e\+300 x 220 pixels"),
        (cbox(["1 2 3 4 4 5 1", "1 2 4 4 4 5 1"]), "several slices of a tomogram"),
        (GOOD.encode("latin-1") + b"data_x\nloop_\n_a\n\xe9\n", "not a readable STAR file"),
        (HEAD + "data_cryolo\nloop_\n" + "".join(f"_c{i}\n" for i in range(2000)) + "1 " * 2000, "no column"),
    ],
)
def test_a_broken_file_is_refused_with_row_and_value(write: Any, text: str | bytes, said: str) -> None:
    with pytest.raises(InputError, match=rf"mic\.cbox: .*{said}"):
        cryolo.read_entries(write(text))


def test_a_file_that_is_too_large_is_not_read(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_values, "MAX_BYTES", 10)
    with pytest.raises(InputError, match="the most that is read is 10"):
        cryolo.read_entries(write(GOOD))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_read(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mic.cbox"
        path.write_bytes(cbox([]).removesuffix(TAIL).encode() + text)
        assert cryolo.recognise(path, text) in ("coordinates", None)
        try:
            _, data = only(path)
        except InputError:
            return
    assert np.isfinite(data.xy_px).all()


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("a.cbox", GOOD.encode(), "coordinates"),
        ("a.star", GOOD.replace("\n", "\r\n").encode(), "coordinates"),
        ("a.cbox", HEAD.encode() + b"data_filament_vertices\n\nloop_\n" + b"_x #1\n" * 1000, "coordinates"),
        ("a.cbox", b"data_cryolo\nloop_\n", "coordinates"),
        ("a.cbox", b"", "coordinates"),
        ("a.CBOX", b"", "coordinates"),
        ("a.star", b"", None),
        ("a.cbox", b"data_particles\nloop_\n_rlnCoordinateX\n", None),
        ("a.cbox", b"data_cryolo_include\nloop_\n", None),
        ("a.cbox", b"1 2 3 4\n", None),
        ("a.cbox", bytes(range(256)) * 16, None),
    ],
)
def test_files_are_told_by_what_is_in_them(name: str, head: bytes, kind: str | None) -> None:
    assert cryolo.recognise(Path(name), head[:4096]) == kind


@pytest.mark.parametrize(
    ("name", "rows", "size", "first"),
    [
        ("TcdA1-0018_frames_sum.cbox", 120, 220, (3810.3671875, 3984.455551147461)),
        ("ActLifeact_03211.cbox", 16, 100, (55.987737909516682, 911.738627145086)),
        ("empty.cbox", 0, None, None),
    ],
)
def test_every_real_file_is_read(
    data: Path, name: str, rows: int, size: int | None, first: tuple[float, float] | None
) -> None:
    path = data / "coordinates" / "cryolo" / name
    text = path.read_bytes()
    assert cryolo.recognise(path, text[:4096]) == "coordinates"
    _, found = only(path)
    assert len(found) == rows == sum(line[:1].isdigit() for line in text.splitlines())
    assert found.box_size_px == size
    if first is not None:
        assert tuple(found.xy_px[0].tolist()) == pytest.approx(first, abs=1e-9)
        assert len(found.columns[MERIT]) == rows


def test_no_real_file_is_left_out(data: Path) -> None:
    assert len(list((data / "coordinates" / "cryolo").iterdir())) == 3
