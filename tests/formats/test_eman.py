"""EMAN's boxes and info files: corners become centres, centres stay, and what is broken is named."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep.formats import _values, eman
from streamprep.model import Coordinates, Entry, InputError
from streamprep.naming import stem_of

BOXES = "10\t20\t180\t180\t0.5\n-7.5\t3\t180\t180\t0.25\n"
INFO = {"boxes": [[10.5, 20, "manual"], [30, 40.25, "auto_ref"]], "boxes_rct": [[1, 2, "tilted"]], "quality": 5}
MERIT = "rlnAutopickFigureOfMerit"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a file and give its path."""

    def made(text: str | bytes, name: str = "mic.box") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return made


def only(path: Path) -> tuple[Entry, Coordinates]:
    (entry,) = eman.read_entries(path)
    assert isinstance(entry.data, Coordinates)
    return entry, entry.data


# --- .box ------------------------------------------------------------------------------------------------------------


def test_a_corner_becomes_a_centre_and_the_score_is_kept(write: Any) -> None:
    entry, data = only(write(BOXES))
    assert entry.micrograph is None
    assert data.xy_px.tolist() == [[100, 110], [82.5, 93]]
    assert data.xy_px.dtype == np.float64
    assert data.box_size_px == 180
    assert data.columns[MERIT].tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    "same",
    [
        BOXES.replace("\n", "\r\n"),
        BOXES.replace("\n", "\r"),
        BOXES.replace("\t", "   "),
        "# comment\n\n" + BOXES,
        "\ufeff" + BOXES,
        BOXES.rstrip(),
        BOXES.replace("180", "1.8e2"),
    ],
)
def test_spaces_comments_and_line_ends_change_nothing(write: Any, same: str) -> None:
    assert only(write(same, "a.box"))[0].digest == only(write(BOXES, "b.box"))[0].digest
    assert eman.recognise(Path("a.box"), same.encode()) == "coordinates"


@pytest.mark.parametrize("new", [BOXES.replace("0.25", "0.26"), BOXES.replace("10\t", "11\t"), BOXES + BOXES])
def test_the_digest_changes_with_the_rows(write: Any, new: str) -> None:
    assert only(write(new, "a.box"))[0].digest != only(write(BOXES, "b.box"))[0].digest


def test_the_digest_changes_with_the_size_of_boxes_around_the_same_centre(write: Any) -> None:
    (large, one), (small, two) = only(write("1 2 4 4\n", "a.box")), only(write("2 3 2 2\n", "b.box"))
    assert one.xy_px.tolist() == two.xy_px.tolist()
    assert large.digest != small.digest


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1 2 4 4\n1 2 6 6\n", None),
        ("1 2 4 6\n", None),
        ("1 2 4.5 4.5\n", None),
        ("1 2 0 0\n", None),
        ("1 2 7 7\n", 7),
    ],
)
def test_a_box_size_is_given_where_there_is_one(write: Any, text: str, size: int | None) -> None:
    assert only(write(text))[1].box_size_px == size


@pytest.mark.parametrize("text", ["", "\n \n", "# none\n"])
def test_a_file_without_boxes_is_a_micrograph_without_particles(write: Any, text: str) -> None:
    assert only(write(text))[1].xy_px.shape == (0, 2)
    assert eman.recognise(Path("mic.box"), text.encode()) == "coordinates"


def test_the_mark_of_a_particle_is_no_score(write: Any) -> None:
    assert only(write("1 2 4 4 -3\n5 6 4 4 -3\n"))[1].columns == {}
    assert only(write("1 2 4 4 -3\n5 6 4 4 -2.5\n"))[1].columns[MERIT].tolist() == [-3, -2.5]


def test_the_ends_of_helices_are_not_taken_for_particles(write: Any) -> None:
    with pytest.raises(InputError, match="ends of helices"):
        eman.read_entries(write("1 2 4 4 -1\n50 60 4 4 -2\n"))


positions = st.integers(-(1 << 20), 1 << 20).map(lambda number: number / 8)


@given(st.lists(st.tuples(positions, positions), max_size=20), st.integers(1, 400), st.booleans())
def test_centres_come_back_from_boxes(centres: list[tuple[float, float]], size: int, scored: bool) -> None:
    lines = [
        f"{x - size / 2!r}\t{y - size / 2!r}\t{size}\t{size}" + (f"\t{index / 8}" if scored else "") + "\n"
        for index, (x, y) in enumerate(centres)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mic.box"
        path.write_text("".join(lines))
        _, data = only(path)
    assert [tuple(row) for row in data.xy_px.tolist()] == centres
    if centres:
        assert data.box_size_px == size
    if centres and scored:
        assert data.columns[MERIT].tolist() == [index / 8 for index in range(len(centres))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"1 2 3\n", "line 1: 3 columns.*'1 2 3'"),
        (b"1 2 4 4\n1 2 4 4 5\n", "line 2: 5 columns"),
        (b"1 2 4 4\n1 2 4", "line 2: 3 columns"),
        (b"1 2 4 4 5 6\n", "line 1: 6 columns"),
        (b"1 2 4 4\n# c\n\n1 nan 4 4\n", "line 4: y is 'nan', not a number"),
        (b"inf 2 4 4\n", "line 1: x is 'inf'"),
        (b"1 1e999 4 4\n", "line 1: y is '1e999'"),
        (b"1 2 x 4\n", "line 1: width is 'x'"),
        (b"1 2 4 4,5\n", "line 1: height is '4,5'"),
        (b"1_0 2 4 4\n", "line 1: x is '1_0'"),
        (b"0x10 2 4 4\n", "line 1: x is '0x10'"),
        ("١ 2 4 4\n".encode(), "line 1: x is '١'"),
        (b"1 2 4 4 nan\n", "line 1: the score is 'nan'"),
        (b"1 2 4 4\n1 2 -4 4\n", "line 2: a box of -4 x 4 pixels"),
        (b"1 2 4 1e300\n", r"line 1: a box of 4 x 1e\+300 pixels"),
        (b"1 2 4 4\n\xff\xfe", "byte 9 is not UTF-8"),
        (bytes(4096), "byte 1 is NUL"),
        (b"1 " * 500_000, "line 1: 500000 columns"),
        (b"1" * 500_000 + b" 2 4 4\n", "line 1: x is '1111"),
        ("1 2 4 4\n".encode("utf-16"), "byte 4 is NUL"),
    ],
)
def test_a_broken_box_file_is_refused_with_line_and_value(write: Any, text: bytes, said: str) -> None:
    with pytest.raises(InputError, match=rf"mic\.box: .*{said}") as caught:
        eman.read_entries(write(text))
    assert len(caught.value.reason) < 400


def test_a_file_that_is_too_large_is_not_read(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_values, "MAX_BYTES", 10)
    for path in (write(BOXES), write(json.dumps(INFO), "mic_info.json")):
        with pytest.raises(InputError, match="the most that is read is 10"):
            eman.read_entries(path)


def test_an_info_file_is_not_parsed_where_no_info_file_is_as_large(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eman, "MAX_INFO_BYTES", 10)
    with pytest.raises(InputError, match="the most that is read is 10"):
        eman.read_entries(write(json.dumps(INFO), "mic_info.json"))
    assert only(write(BOXES))[1].xy_px.shape == (2, 2)


@given(st.binary(max_size=200), st.sampled_from(["mic.box", "mic_info.json"]), st.booleans())
def test_random_bytes_are_refused_or_read(text: bytes, name: str, begun: bool) -> None:
    start = (b"1 2 4 4\n" if name.endswith("box") else b'{"boxes": [[') if begun else b""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(start + text)
        assert eman.recognise(path, text) in ("coordinates", None)
        try:
            entries = eman.read_entries(path)
        except InputError:
            return
    assert all(np.isfinite(entry.data.xy_px).all() for entry in entries if isinstance(entry.data, Coordinates))


# --- info files ------------------------------------------------------------------------------------------------------


def test_info_files_hold_centres_of_the_micrograph_they_are_named_after(write: Any) -> None:
    entry, data = only(write(json.dumps(INFO, indent=1).replace("\n", "\r\n"), "mic_0007_info.json"))
    assert entry.micrograph == "mic_0007"
    assert data.xy_px.tolist() == [[10.5, 20], [30, 40.25]]
    assert data.xy_px.dtype == np.float64
    assert data.box_size_px is None
    assert {name: values.tolist() for name, values in data.columns.items()} == {"emanTag": ["manual", "auto_ref"]}


def test_a_dot_in_the_name_of_a_micrograph_is_part_of_it(write: Any) -> None:
    entry, _ = only(write(json.dumps(INFO), "grid.2_mic.0001_info.json"))
    assert entry.micrograph is not None
    assert stem_of(entry.micrograph) == "grid.2_mic.0001"


def test_a_json_file_of_another_name_is_of_the_micrograph_with_its_stem(write: Any) -> None:
    for name in ("mic.json", "_info.json"):
        assert only(write(json.dumps(INFO), name))[0].micrograph is None


def test_scores_of_boxes_are_kept_where_all_have_one(write: Any) -> None:
    boxes = [[1, 2, "auto", 0.5], [3, 4, "auto", -1]]
    assert only(write(json.dumps({"boxes": boxes}), "a_info.json"))[1].columns[MERIT].tolist() == [0.5, -1]
    boxes[1].pop()
    assert MERIT not in only(write(json.dumps({"boxes": boxes}), "a_info.json"))[1].columns


def test_no_boxes_are_no_particles_and_a_missing_list_says_nothing(write: Any) -> None:
    assert only(write('{"boxes": []}', "a_info.json"))[1].xy_px.shape == (0, 2)
    assert eman.read_entries(write('{"quality": 5, "boxes_rct": [[1, 2, "tilted"]]}', "a_info.json")) == []


@given(st.lists(st.tuples(positions, positions), max_size=20))
def test_centres_come_back_from_info_files(centres: list[tuple[float, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mic_info.json"
        path.write_text(json.dumps({"boxes": [[x, y, "manual"] for x, y in centres]}))
        _, data = only(path)
    assert [tuple(row) for row in data.xy_px.tolist()] == centres


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a readable JSON file"),
        ("{", "not a readable JSON file"),
        ("[1, 2]", "no JSON object"),
        ('{"boxes": {"a": 1}}', "boxes is an object, not a list"),
        ('{"boxes": null}', "boxes is None"),
        ('{"boxes": [[1, 2, "m"], [1]]}', "row 2 of boxes is a list of 1 values"),
        ('{"boxes": [[1, 2, "m"], 5]}', "row 2 of boxes is 5"),
        ('{"boxes": [{"x": 1}]}', "row 1 of boxes is an object"),
        ('{"boxes": [[1, 2, 3, "tomo"]]}', "row 1 of boxes is a list of 4 values"),
        ('{"boxes": [[1, 2, "m"], [1, NaN, "m"]]}', "row 2 of boxes: y is nan"),
        ('{"boxes": [[Infinity, 2, "m"]]}', "row 1 of boxes: x is inf"),
        ('{"boxes": [[1, 1e999, "m"]]}', "row 1 of boxes: y is inf"),
        ('{"boxes": [[1, "2", "m"]]}', "row 1 of boxes: y is '2'"),
        ('{"boxes": [[1, true, "m"]]}', "row 1 of boxes: y is True"),
        ('{"boxes": [[1, null, "m"]]}', "row 1 of boxes: y is None"),
        ('{"boxes": [[1, 2, "m", "high"]]}', "row 1 of boxes: the score is 'high'"),
        ('{"boxes": [[1, 1' + "0" * 4000 + ', "m"]]}', "row 1 of boxes: y is a number of too many digits"),
        ('{"boxes": [[1, 1' + "0" * 100_000 + ', "m"]]}', "not a readable JSON file"),
        ('{"boxes": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested too deeply"),
        ('{"boxes": [[1, ' + "[" * 500 + "]" * 500 + ', "m"]]}', "y is a list of 1 values"),
        ('{"a": ' * 200_000, "nested too deeply"),
        ("\0" * 1000, "byte 1 is NUL"),
    ],
)
def test_a_broken_info_file_is_refused_with_row_and_value(write: Any, text: str, said: str) -> None:
    with pytest.raises(InputError, match=rf"mic_info\.json: .*{said}") as caught:
        eman.read_entries(write(text, "mic_info.json"))
    assert len(caught.value.reason) < 400


# --- what is whose ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head", "kind"),
    [
        ("a.box", b"1 2 4 4\n", "coordinates"),
        ("a.BOX", b"1 2\n", "coordinates"),  # torn: reading says so
        ("a.box", b"hello world\n", None),
        ("a.box", b"\x93NUMPY\x01", None),
        ("a.box", b'{"boxes": [[1, 2, "m"]]}', "coordinates"),
        ("a.txt", b"1 2 4 4\n", None),
        ("a.txt", b"", None),
        ("a_info.json", b'{\n"boxes": [\n[1, 2, "m"]', "coordinates"),
        ("a.json", b'{"boxes":[]}', "coordinates"),
        ("a.json", b'{"boxes": [{"x": 1}]}', None),
        ("a.json", b'{"boxes_rct": [[1, 2, "t"]]}', None),
        ("a.json", b"[[1, 2]]", None),
        ("a_info.json", b'{"quality": 5}', None),
        ("a_info.json", b'{"afterctf": [' + b"1, " * 2000, "coordinates"),
        ("settings.json", b'{"afterctf": [' + b"1, " * 2000, None),
    ],
)
def test_files_are_told_by_what_is_in_them(name: str, head: bytes, kind: str | None) -> None:
    assert eman.recognise(Path(name), head[:4096]) == kind


def test_every_real_file_is_read(data: Path) -> None:
    paths = sorted((data / "coordinates" / "eman_box").glob("*.box"))
    assert paths
    for path in paths:
        text = path.read_bytes()
        assert eman.recognise(path, text[:4096]) == "coordinates"
        _, found = only(path)
        first = [float(value) for value in text.split(b"\n")[0].split()]
        assert len(found) == text.count(b"\n")
        assert found.xy_px[0].tolist() == [first[0] + 90, first[1] + 90]
        assert found.box_size_px == 180
        assert found.columns[MERIT][0] == first[4]
