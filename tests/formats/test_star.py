"""STAR tables: read as RELION 3.0 and 3.1 write them, refused with the row at fault, written for gemmi and starfile."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest
import starfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamprep.formats import _values, star
from streamprep.model import Coordinates, Ctf, Entry, InputError, ParticleRows

RELION_30 = """
data_

loop_
_rlnCoordinateX #1
_rlnCoordinateY #2
_rlnAutopickFigureOfMerit #3
_rlnClassNumber #4
  839.125024    19.979167     0.624705            0
  899.062526   199.791672     0.623809            1

"""

OPTICS = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
opticsGroup1   1   200.0   1.4   0.07
opticsGroup2   2   300.0   2.7   0.1

"""

MICROGRAPHS = """
# version 30001

data_micrographs

loop_
_rlnMicrographName #1
_rlnOpticsGroup #2
_rlnDefocusU #3
_rlnDefocusV #4
_rlnDefocusAngle #5
_rlnPhaseShift #6
MotionCorr/a.mrc   2   15000.5   14000.25   -35.5   90
MotionCorr/b.mrc   1   9000      8000       12      0

"""

PARTICLES = """
# version 30001

data_particles

loop_
_rlnCoordinateX #1
_rlnCoordinateY #2
_rlnMicrographName #3
_rlnOpticsGroup #4
_rlnAnglePsi #5
10.5 20 MotionCorr/b.mrc 1 5.0
30 40 MotionCorr/a.mrc 1 6.0
50 60.25 MotionCorr/b.mrc 1 7.0

"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a table and give its path."""

    def made(text: str | bytes, name: str = "table.star") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return made


def coordinates(entry: Entry) -> Coordinates:
    assert isinstance(entry.data, Coordinates)
    return entry.data


def table(rows: Sequence[str], columns: Sequence[str] = ("rlnCoordinateX", "rlnCoordinateY")) -> str:
    return "data_\n\nloop_\n" + "".join(f"_{name}\n" for name in columns) + "".join(f"{row}\n" for row in rows)


# --- coordinates -----------------------------------------------------------------------------------------------------


def test_relion_3_0_coordinates_are_of_the_micrograph_that_the_file_is_named_after(write: Any) -> None:
    (entry,) = star.read_entries(write(RELION_30))
    data = coordinates(entry)
    assert entry.micrograph is None
    assert data.xy_px.tolist() == [[839.125024, 19.979167], [899.062526, 199.791672]]
    assert data.xy_px.dtype == np.float64
    assert data.label == "particle"
    assert {name: values.tolist() for name, values in data.columns.items()} == {
        "rlnAutopickFigureOfMerit": ["0.624705", "0.623809"],
        "rlnClassNumber": ["0", "1"],
    }


@pytest.mark.parametrize("text", [OPTICS + PARTICLES, PARTICLES + OPTICS], ids=["optics first", "optics last"])
def test_one_table_speaks_of_several_micrographs(write: Any, text: str) -> None:
    first, second = star.read_entries(write(text))
    assert (first.micrograph, second.micrograph) == ("MotionCorr/b.mrc", "MotionCorr/a.mrc")
    assert coordinates(first).xy_px.tolist() == [[10.5, 20], [50, 60.25]]
    assert coordinates(second).xy_px.tolist() == [[30, 40]]
    assert {name: values.tolist() for name, values in coordinates(first).columns.items()} == {
        "rlnAnglePsi": ["5.0", "7.0"]
    }


def test_line_ends_of_windows_change_nothing(write: Any) -> None:
    unix = star.read_entries(write(OPTICS + PARTICLES, "a.star"))
    windows = star.read_entries(write((OPTICS + PARTICLES).replace("\n", "\r\n"), "b.star"))
    assert [(entry.micrograph, entry.digest) for entry in unix] == [
        (entry.micrograph, entry.digest) for entry in windows
    ]
    assert coordinates(windows[0]).columns["rlnAnglePsi"].tolist() == ["5.0", "7.0"]


@pytest.mark.parametrize(
    ("quoted", "name"),
    [
        ('"a b.mrc"', "a b.mrc"),
        ("'a b.mrc'", "a b.mrc"),
        ('"it\'s.mrc"', "it's.mrc"),
        ("'say \"x\".mrc'", 'say "x".mrc'),
        ('"größe/粒子.mrc"', "größe/粒子.mrc"),
        ('"#1.mrc"', "#1.mrc"),
        ('"data_1/a.mrc"', "data_1/a.mrc"),
        ("../../x.mrc", "../../x.mrc"),
    ],
)
def test_quoted_names_lose_their_quotes_and_nothing_else(write: Any, quoted: str, name: str) -> None:
    columns = ("rlnCoordinateX", "rlnMicrographName", "rlnCoordinateY")
    (entry,) = star.read_entries(write(table([f"1 {quoted} 2"], columns)))
    assert entry.micrograph == name
    assert coordinates(entry).xy_px.tolist() == [[1, 2]]


def test_a_loop_without_rows_is_a_micrograph_without_particles(write: Any) -> None:
    (entry,) = star.read_entries(write(table([])))
    assert entry.micrograph is None
    assert coordinates(entry).xy_px.shape == (0, 2)


def test_a_loop_without_rows_that_names_micrographs_speaks_of_none(write: Any) -> None:
    assert star.read_entries(write(table([], ("rlnCoordinateX", "rlnCoordinateY", "rlnMicrographName")))) == []


def test_single_values_are_a_table_with_one_row(write: Any) -> None:
    (entry,) = star.read_entries(write("data_\n\n_rlnCoordinateX 4\n_rlnCoordinateY 5.5\n"))
    assert coordinates(entry).xy_px.tolist() == [[4, 5.5]]


@pytest.mark.parametrize("other", ["X", "Y"])
@pytest.mark.parametrize("rows", [["5"], []], ids=["rows", "no rows"])
def test_half_of_the_coordinates_is_refused(write: Any, other: str, rows: list[str]) -> None:
    missing = "Y" if other == "X" else "X"
    with pytest.raises(InputError, match=rf"table\.star: table data_ has no column _rlnCoordinate{missing}"):
        star.read_entries(write(table(rows, [f"rlnCoordinate{other}"])))


def test_a_table_of_something_else_is_refused_with_its_columns(write: Any) -> None:
    with pytest.raises(InputError, match=r"neither coordinates .* nor the CTF .* _rlnPipeLineJobCounter, _rlnOther"):
        star.read_entries(write(table(["1 2"], ["rlnPipeLineJobCounter", "rlnOther"])))


@pytest.mark.parametrize("value", ["nan", "NaN", "inf", "-inf", "abc", "12,5", "1.2.3", "None", ".", "'1 2'", "1e999"])
@pytest.mark.parametrize("column", ["rlnCoordinateX", "rlnCoordinateY"])
def test_what_is_no_number_is_refused_with_file_row_column_and_value(write: Any, value: str, column: str) -> None:
    rows = ["1 2", f"{value} 4", "bad 5"] if column.endswith("X") else ["1 2", f"4 {value}", "5 bad"]
    with pytest.raises(InputError) as caught:
        star.read_entries(write(table(rows)))
    said = str(caught.value)
    for part in ("table.star", "row 2 of data_", f"_{column}", repr(value.strip("'.")), "not a number"):
        assert part in said


# --- hostile files ---------------------------------------------------------------------------------------------------


@pytest.mark.case(29)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "the file is empty"),
        (b"# nothing but a comment\n", "holds no table"),
        (b"data_\n", "holds no table"),
        (b"hello world\n", "not a readable STAR file"),
        (bytes(4096), "byte 1 is NUL"),
        (bytes(range(256)) * 16, "byte 1 is NUL"),
        (table(["1 2", "3"]).encode(), "line 3: Wrong number .*: a row has too few or too many values; it may be cut"),
        (table(["1 2", "3 4 5"]).encode(), "too many values; .* or a value with blanks in it lacks its quotes"),
        (table(["1 2 3"], ("rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateX")).encode(), "duplicate tag"),
        (table(["1 2 'x"], ("rlnCoordinateX", "rlnCoordinateY", "a")).encode(), "not a readable STAR file"),
        (table(["1 2 m\xe9"], ("rlnCoordinateX", "rlnCoordinateY", "a")).encode("latin-1"), "not a readable STAR file"),
        (
            table(['1 2 "m\xe9"'], ("rlnCoordinateX", "rlnCoordinateY", "a")).encode("latin-1"),
            "not a readable STAR file",
        ),
        (b"data_\nloop_\n_" + b"x" * 100_000 + b"\n1\n", "neither coordinates"),
        (table(["1"] * 100, [f"c{index}" for index in range(100)]).encode(), "neither coordinates"),
        (b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.", "not a readable STAR file"),
    ],
)
def test_a_hostile_file_is_refused_with_a_reason(write: Any, text: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=rf"table\.star: .*{reason}"):
        star.read_entries(write(text))


@pytest.mark.case(29)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_read(text: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".star") as file:
        file.write(b"data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n" + text)
        file.flush()
        try:
            entries = star.read_entries(Path(file.name))
        except InputError:
            return
    assert all(np.isfinite(coordinates(entry).xy_px).all() for entry in entries)


@pytest.mark.case(29)
def test_a_file_that_is_too_large_is_not_read(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(RELION_30)
    monkeypatch.setattr(_values, "MAX_BYTES", 100)
    with pytest.raises(InputError, match=f"has {path.stat().st_size} bytes; the most that is read is 100"):
        star.read_loops(path)


# --- digests ---------------------------------------------------------------------------------------------------------


def digests(path: Path) -> dict[str | None, str]:
    return {entry.micrograph: entry.digest for entry in star.read_entries(path)}


@pytest.mark.parametrize(
    "same",
    [
        "# written again\n" + PARTICLES,
        PARTICLES.replace(" ", "   "),
        PARTICLES.replace("10.5 20 ", "10.500000 2e1 "),
        PARTICLES.replace("_rlnCoordinateX #1", "_rlnCoordinateX #7"),
        PARTICLES.replace("5.0\n", '"5.0"\n'),
        OPTICS + PARTICLES,
        PARTICLES.replace("data_particles", "data_"),
    ],
)
def test_a_digest_stays_while_the_rows_stay(write: Any, same: str) -> None:
    assert digests(write(same, "b.star")) == digests(write(PARTICLES, "a.star"))


def test_a_digest_does_not_depend_on_the_order_of_columns(write: Any) -> None:
    columns = ["rlnCoordinateX", "rlnCoordinateY", "rlnAnglePsi", "rlnClassNumber"]
    rows = [["1", "2", "3", "4"], ["5", "6", "7", "8"]]
    plain = write(table([" ".join(row) for row in rows], columns), "a.star")
    turned = write(table([" ".join(row[::-1]) for row in rows], columns[::-1]), "b.star")
    swapped = write(table([" ".join(row) for row in rows], [*columns[:2], *columns[:1:-1]]), "c.star")
    assert digests(plain) == digests(turned)
    assert digests(plain) != digests(swapped)


@pytest.mark.parametrize(
    ("old", "new", "touched"),
    [
        ("10.5 20", "10.500001 20", "b"),
        ("50 60.25", "60.25 50", "b"),
        ("30 40", "30 -40", "a"),
        ("a.mrc 1 6.0", "a.mrc 1 6.5", "a"),
        ("b.mrc 1 7.0", "b.mrc 1 7.00", "b"),
        ("30 40 MotionCorr/a.mrc 1 6.0\n", "30 40 MotionCorr/a.mrc 1 6.0\n" * 2, "a"),
        ("10.5 20 MotionCorr/b.mrc 1 5.0\n", "", "b"),
    ],
)
def test_a_digest_changes_with_the_rows_of_its_own_micrograph_only(
    write: Any, old: str, new: str, touched: str
) -> None:
    assert old in PARTICLES
    before, after = digests(write(PARTICLES, "a.star")), digests(write(PARTICLES.replace(old, new), "b.star"))
    for name in "ab":
        key = f"MotionCorr/{name}.mrc"
        assert (before[key] == after[key]) == (name != touched)


def test_a_digest_changes_with_the_order_of_rows_and_the_names_of_columns(write: Any) -> None:
    one = digests(write(table(["1 2", "3 4"]), "a.star"))[None]
    assert digests(write(table(["3 4", "1 2"]), "b.star"))[None] != one
    columns = ["rlnCoordinateX", "rlnCoordinateY"]
    assert (
        digests(write(table(["1 2 3"], [*columns, "one"]), "c.star"))[None]
        != digests(write(table(["1 2 3"], [*columns, "two"]), "d.star"))[None]
    )


def test_the_digest_of_a_ctf_changes_with_its_optics_group(write: Any) -> None:
    one = digests(write(OPTICS + MICROGRAPHS, "a.star"))
    two = digests(write(OPTICS.replace("200.0", "120.0") + MICROGRAPHS, "b.star"))
    assert one["MotionCorr/a.mrc"] == two["MotionCorr/a.mrc"]
    assert one["MotionCorr/b.mrc"] != two["MotionCorr/b.mrc"]


# --- CTF -------------------------------------------------------------------------------------------------------------


def test_the_digest_of_a_ctf_changes_with_all_that_is_said_of_its_optics_group(write: Any) -> None:
    one = digests(write(OPTICS + MICROGRAPHS, "a.star"))
    two = digests(write(OPTICS.replace("opticsGroup1 ", "afis_7 ") + MICROGRAPHS, "b.star"))
    assert one["MotionCorr/a.mrc"] == two["MotionCorr/a.mrc"]
    assert one["MotionCorr/b.mrc"] != two["MotionCorr/b.mrc"]


@pytest.mark.parametrize("text", [OPTICS + MICROGRAPHS, MICROGRAPHS + OPTICS], ids=["optics first", "optics last"])
def test_ctf_comes_with_what_is_said_of_its_optics_group(write: Any, text: str) -> None:
    constants = ("rlnOpticsGroupName", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
    assert {entry.micrograph: entry.optics_columns for entry in star.read_entries(write(text))} == {
        "MotionCorr/a.mrc": dict(zip(constants, ("opticsGroup2", "300.0", "2.7", "0.1"), strict=True)),
        "MotionCorr/b.mrc": dict(zip(constants, ("opticsGroup1", "200.0", "1.4", "0.07"), strict=True)),
    }


@pytest.mark.parametrize("columns", ["", "_rlnOpticsGroup\n"])
def test_nothing_is_said_of_groups_where_there_are_none(write: Any, columns: str) -> None:
    text = f"data_\nloop_\n_rlnMicrographName\n_rlnDefocusU\n_rlnDefocusV\n_rlnDefocusAngle\n{columns}a.mrc 3 2 1"
    (entry,) = star.read_entries(write(text + (" 1\n" if columns else "\n")))
    assert entry.optics_columns == {}


def test_constants_in_the_rows_of_images_without_a_ctf_are_those_of_their_optics_groups(write: Any) -> None:
    columns = ["rlnImageName", "rlnVoltage", "rlnAmplitudeContrast", "other"]
    rows = ["1@a.mrcs 200 0.07 x", "2@a.mrcs 120 0.07 y", "3@a.mrcs 200 0.07 z"]
    (entry,) = star.read_entries(write(table(rows, columns)))
    assert isinstance(entry.data, ParticleRows)
    first, second, third = entry.data.optics_columns
    assert first == {"rlnVoltage": "200", "rlnAmplitudeContrast": "0.07"}
    assert second == {"rlnVoltage": "120", "rlnAmplitudeContrast": "0.07"}
    assert first is third
    assert set(entry.data.columns) == {"other"}


@pytest.mark.parametrize("text", [OPTICS + MICROGRAPHS, MICROGRAPHS + OPTICS], ids=["optics first", "optics last"])
def test_ctf_takes_the_microscope_from_its_optics_group(write: Any, text: str) -> None:
    assert [(entry.micrograph, entry.data) for entry in star.read_entries(write(text))] == [
        ("MotionCorr/a.mrc", Ctf(15000.5, 14000.25, -35.5, 90.0, 300.0, 2.7, 0.1)),
        ("MotionCorr/b.mrc", Ctf(9000, 8000, 12, 0, 200.0, 1.4, 0.07)),
    ]


def test_ctf_takes_the_microscope_from_its_own_columns(write: Any) -> None:
    columns = [
        "rlnMicrographNameNoDW",
        "rlnDefocusU",
        "rlnDefocusV",
        "rlnDefocusAngle",
        "rlnVoltage",
        "rlnSphericalAberration",
        "rlnAmplitudeContrast",
    ]
    (entry,) = star.read_entries(write(table(["a.mrc 1000 900 45 200 1.4 0.07"], columns)))
    assert (entry.micrograph, entry.data) == ("a.mrc", Ctf(1000, 900, 45, 0, 200, 1.4, 0.07))


def test_the_dose_weighted_name_comes_before_the_other(write: Any) -> None:
    columns = ["rlnMicrographNameNoDW", "rlnMicrographName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"]
    (entry,) = star.read_entries(write(table(["a.mrc a_DW.mrc 3 2 1"], columns)))
    assert (entry.micrograph, entry.data) == ("a_DW.mrc", Ctf(3, 2, 1))


@pytest.mark.parametrize(
    ("optics", "micrographs", "reason"),
    [
        (OPTICS, MICROGRAPHS.replace("b.mrc   1", "b.mrc   7"), r"row 2: optics group 7 is not in data_optics"),
        (OPTICS.partition("opticsGroup1 ")[0], MICROGRAPHS, "row 1: optics group 2 is not in data_optics"),
        (
            OPTICS.partition("opticsGroup1 ")[0],
            MICROGRAPHS.replace("_rlnOpticsGroup #2", "_other #2"),
            "row 1: optics group 1 is not in data_optics",
        ),
        (OPTICS.replace("200.0", "high"), MICROGRAPHS, "row 1 of data_optics: _rlnVoltage is 'high', not a number"),
        (OPTICS, MICROGRAPHS.replace("8000", "nan"), "row 2 of data_micrographs: _rlnDefocusV is 'nan', not a number"),
        (OPTICS, MICROGRAPHS.replace("_rlnDefocusV", "_x"), "table data_micrographs has no column _rlnDefocusV"),
        (OPTICS, MICROGRAPHS.replace("_rlnMicrographName", "_x"), "neither coordinates"),
    ],
)
def test_a_ctf_table_that_is_not_right_is_refused(write: Any, optics: str, micrographs: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"table\.star: .*{reason}"):
        star.read_entries(write(optics + micrographs))


CTF_COLUMNS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")


def test_the_ctf_of_particles_comes_in_the_order_of_the_image_numbers(write: Any) -> None:
    rows = ["3000 2 1 000003@s.mrcs", "1000 2 1 000001@s.mrcs", "2000 2 1 2@s.mrcs"]
    found = star.read_particle_ctf(write(table(rows, [*CTF_COLUMNS, "rlnImageName"])), 3)
    assert [ctf.defocus_u_angstrom for ctf in found] == [1000, 2000, 3000]


def test_the_ctf_of_particles_without_image_names_comes_in_the_order_of_the_rows(write: Any) -> None:
    found = star.read_particle_ctf(write(table(["3000 2 1", "1000 2 1"], CTF_COLUMNS)), 2)
    assert [ctf.defocus_u_angstrom for ctf in found] == [3000, 1000]


def test_the_ctf_of_particles_knows_their_optics_groups(write: Any) -> None:
    particles = table(["3000 2 1 2", "1000 2 1 1"], [*CTF_COLUMNS, "rlnOpticsGroup"]).replace("data_", "data_particles")
    found = star.read_particle_ctf(write(OPTICS + particles), 2)
    assert [ctf.voltage_kv for ctf in found] == [300, 200]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (table(["1 2 3"], CTF_COLUMNS), "it has 1 rows, the stack 2 images"),
        (table(["1 2", "3 4"]), "no table in it has the columns _rlnDefocusU, _rlnDefocusV, _rlnDefocusAngle"),
        *(
            (table([f"1 2 3 {one}", f"1 2 3 {two}"], [*CTF_COLUMNS, "rlnImageName"]), "does not number the images")
            for one, two in [
                ("1@s.mrcs", "1@s.mrcs"),
                ("1@s.mrcs", "3@s.mrcs"),
                ("0@s.mrcs", "1@s.mrcs"),
                ("a", "b"),
                ("1.5@s.mrcs", "1@s.mrcs"),
            ]
        ),
    ],
)
def test_a_ctf_table_that_does_not_fit_the_stack_is_refused(write: Any, text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        star.read_particle_ctf(write(text), 2)


# --- writing ---------------------------------------------------------------------------------------------------------


def through_gemmi(text: str) -> dict[str, list[str]]:
    loop = gemmi.cif.read_string(text).sole_block()[0].loop
    width = len(loop.tags)
    return {
        tag[1:]: [gemmi.cif.as_string(value) for value in loop.values[index::width]]
        for index, tag in enumerate(loop.tags)
    }


def through_starfile(text: str, as_text: list[str]) -> Any:
    # a folder of its own for each: starfile keeps the lines of a file that it could not read
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.star")
        path.write_text(text, encoding="utf-8")
        return starfile.read(path, parse_as_string=as_text)


def held(text: str) -> bool:
    """Whether a line can hold a text: not blank, and at most one kind of quotes before a blank or a #."""
    closing = [re.search(rf"{quote}[ \t#]", text) for quote in "'\""]
    return bool(text.strip()) and not all(closing)


any_text = (
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=12),
        st.text("ab_#'\"$[];.?! 1é", min_size=1, max_size=8),
    )
    .map(lambda text: re.sub(r"[^\S\t]", " ", text))
    .filter(held)
)


@given(st.lists(any_text, min_size=1, max_size=5))
@example(["_a", "#a", "a#b", "a b", "it's", "it's a", '"', "'x", ';"', "$a", "[a", "]a", ";a", ".", "?", "é", "日 本"])
@example(["data_1/a.mrc", "DATA_", "loop_", "Loop_", "save_x", "stop_", "global_", "loop_x", "data", "1_0"])
@example(["İ", "\u212a", "ſtop_"])  # letters that are ASCII where case is ignored
def test_text_is_read_back_by_gemmi_and_by_us(values: list[str]) -> None:
    columns = {"first": values, "second": values[::-1], "number": list(range(len(values)))}
    text = star.table_text("particles", columns)
    found = through_gemmi(text)
    assert found["first"] == values
    assert found["second"] == values[::-1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.star")
        path.write_text(text, encoding="utf-8")
        (loop,) = star.read_loops(path)
    assert loop.text("first") == values
    assert loop.block == "particles"


# starfile turns ' into ", and cannot read a quote within quotes, whatever one does
starfile_text = any_text.filter(lambda text: not {"'", '"'} & set(text) and text not in ("nan", "NaN", "<NA>"))


@given(st.lists(starfile_text, min_size=1, max_size=5))
@example(["_a", "#a", "a#b", "a b", "$a", "[a", "]a", ";a", ".", "?", "é", "日 本", "1e5", "NA", "\ufeff", "a  b"])
@example(["data_1/a.mrc", "DATA_", "loop_", "save_x", "stop_", "global_", "loop_x", "data"])
@settings(max_examples=40)
def test_text_is_read_back_by_starfile(values: list[str]) -> None:
    text = star.table_text("particles", {"first": values, "number": [1.5] * len(values), "last": values[::-1]})
    found = through_starfile(text, ["first", "last"])
    assert found["first"].tolist() == values
    assert found["last"].tolist() == values[::-1]
    assert found["number"].tolist() == [1.5] * len(values)


@given(
    st.lists(
        st.tuples(
            st.integers(-(2**62), 2**62),
            st.floats(-1e9, 1e9),
            st.floats(-1e5, 1e5, width=32).map(np.float32),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=40)
def test_numbers_are_read_back(rows: list[tuple[int, float, np.float32, bool]]) -> None:
    whole, double, single, truth = (list(column) for column in zip(*rows, strict=True))
    columns: dict[str, Sequence[Any]] = {"whole": whole, "double": double, "single": single, "truth": truth}
    text = star.table_text("", columns | {"numpy": np.array(whole)})
    found = through_gemmi(text)
    assert [int(value) for value in found["whole"]] == whole == [int(value) for value in found["numpy"]]
    assert [int(value) for value in found["truth"]] == truth
    np.testing.assert_allclose([float(value) for value in found["double"]], double, rtol=0, atol=6e-7)
    frame = through_starfile(text, [])
    assert frame["whole"].tolist() == whole
    np.testing.assert_allclose(frame["double"], double, rtol=1e-14, atol=6e-7)
    np.testing.assert_allclose(frame["single"], single, rtol=1e-14, atol=6e-7)


column_names = st.text(st.sampled_from("abcXYZ019_.-"), min_size=1, max_size=10)


@given(
    st.lists(column_names, min_size=1, max_size=8, unique_by=str.lower), st.from_regex(r"[a-z]{0,8}", fullmatch=True)
)
@example(["_a", "__b"], "")
@settings(max_examples=30)
def test_the_head_of_a_table_is_read_back(names: list[str], block: str) -> None:
    text = star.loop_head(block, names) + star.rows_text([[number] for number in range(len(names))])
    assert gemmi.cif.read_string(text).sole_block().name.strip() == block
    assert through_gemmi(text) == {name: [str(number)] for number, name in enumerate(names)}
    assert list(through_starfile(text, []).columns) == names
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.star").write_text(text)
        assert list(star.read_loops(Path(folder, "a.star"))[0].columns) == names


@given(
    st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(any_text, min_size=width, max_size=width), min_size=1))
)
def test_a_row_splits_into_the_values_that_it_was_made_of(rows: list[list[str]]) -> None:
    lines = star.rows_text(list(zip(*rows, strict=True))).splitlines()
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert [gemmi.cif.as_string(value) for value in star.split_row(line)] == row
        assert " ".join(star.split_row(line)) == line


@pytest.mark.parametrize(
    ("given_text", "kept"),
    [
        ("", "None"),
        (" \n", "None"),
        ("two  blanks\tand\nlines\u2028", "two  blanks\tand lines "),
        ('it\' s "both" kinds', "it' s \"both' kinds"),
        ("nul\0 and \x85\x1b[31m", "nul  and   [31m"),
        ("not-utf8-\udcff.mrc", "not-utf8-\\udcff.mrc"),
    ],
)
def test_what_a_table_cannot_hold_is_changed_and_the_table_stays_whole(given_text: str, kept: str) -> None:
    text = star.table_text("", {"name": ["before", given_text, "after"], "number": [1, 2, 3]})
    text.encode()
    assert through_gemmi(text) == {"name": ["before", kept, "after"], "number": ["1", "2", "3"]}


def test_columns_of_unequal_length_are_not_written() -> None:
    with pytest.raises(ValueError, match="shorter"):
        star.rows_text([[1, 2], [1]])


def test_a_file_whose_name_is_not_utf8_is_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.star")
    path.write_text("data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 2\n")
    (entry,) = star.read_entries(path)
    assert len(entry.data) == 1  # type: ignore[arg-type]


@pytest.mark.case(29)
def test_a_torn_table_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "torn.star"
    path.write_text("data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 2\n3\n")
    with pytest.raises(InputError, match=r"not a readable STAR file: line \d+: "):
        star.read_entries(path)
