"""cryoSPARC tables: fractions from the lower edge become pixels, passthrough files join, objects are never read."""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep import formats
from streamprep.formats import cryosparc
from streamprep.model import Coordinates, Ctf, IncompleteError, InputError, Item

LOCATION = [
    ("location/micrograph_path", "S32"),
    ("location/micrograph_shape", "<u4", (2,)),
    ("location/center_x_frac", "<f4"),
    ("location/center_y_frac", "<f4"),
]
CTF = [
    ("ctf/df1_A", "<f4"),
    ("ctf/df2_A", "<f4"),
    ("ctf/df_angle_rad", "<f4"),
    ("ctf/phase_shift_rad", "<f4"),
    ("ctf/accel_kv", "<f4"),
    ("ctf/cs_mm", "<f4"),
    ("ctf/amp_contrast", "<f4"),
]
UID: list[Any] = [("uid", "<u8")]
LAST = 2**64 - 1


def table(*dtypes: list[Any]) -> npt.NDArray[Any]:
    """Three particles of two micrographs of 400 × 300 (ny × nx)."""
    rows = np.zeros(3, np.dtype([field for fields in (UID, *dtypes) for field in fields]))
    rows["uid"] = [LAST, 5, 9]
    for name, values in {
        "location/micrograph_path": [b"J1/b.mrc", b"J1/a.mrc", b"J1/b.mrc"],
        "location/micrograph_shape": [(400, 300)] * 3,
        "location/center_x_frac": [0.25, 0.5, 1.0],
        "location/center_y_frac": [0.25, 0.5, 1.0],
        "ctf/df1_A": [15000, 9000, 15000],
        "ctf/df2_A": [14000, 8000, 14000],
        "ctf/df_angle_rad": [0.5, 0.25, 0.5],
        "ctf/phase_shift_rad": [1.5, 0, 1.5],
        "ctf/accel_kv": [300] * 3,
        "ctf/cs_mm": [2.5] * 3,
        "ctf/amp_contrast": [0.125] * 3,
        "pick_stats/ncc_score": [0.5, 0.25, 0.75],
    }.items():
        if name in (rows.dtype.names or ()):
            rows[name] = values
    return rows


def saved(folder: Path, rows: npt.NDArray[Any], name: str = "particles.cs") -> Path:
    path = folder / name
    with path.open("wb") as file:
        np.save(file, rows)
    return path


def with_header(text: str, data: bytes = b"", version: int = 1) -> bytes:
    header = text.encode("latin1") + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


def test_centres_are_pixels_from_the_first_row(tmp_path: Path) -> None:
    path = saved(tmp_path, table(LOCATION, [("pick_stats/ncc_score", "<f4")]))
    first, second = cryosparc.read_entries(path)
    assert (first.micrograph, second.micrograph) == ("J1/b.mrc", "J1/a.mrc")
    assert isinstance(first.data, Coordinates)
    assert isinstance(second.data, Coordinates)
    assert first.data.xy_px.tolist() == [[75, 300], [300, 0]]
    assert second.data.xy_px.tolist() == [[150, 200]]
    assert first.data.xy_px.dtype == np.float64
    assert first.data.columns["uid"].tolist() == [LAST, 9]
    assert first.data.columns["rlnAutopickFigureOfMerit"].tolist() == [0.5, 0.75]
    assert cryosparc.recognise(path, path.read_bytes()[:4096]) == "coordinates"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("text", ["S32", "U32"])
def test_both_byte_orders_and_both_kinds_of_text(tmp_path: Path, order: str, text: str) -> None:
    rows = table(LOCATION, CTF)
    names = [(name, text if name == LOCATION[0][0] else rows.dtype[name]) for name in rows.dtype.names or ()]
    entries = cryosparc.read_entries(saved(tmp_path, rows.astype(np.dtype(names).newbyteorder(order))))
    plain = cryosparc.read_entries(saved(tmp_path, rows))
    assert [(entry.micrograph, entry.digest) for entry in entries] == [
        (entry.micrograph, entry.digest) for entry in plain
    ]


def test_a_ctf_that_a_micrograph_shares(tmp_path: Path) -> None:
    entries = cryosparc.read_entries(saved(tmp_path, table(LOCATION, CTF)))
    ctfs = {entry.micrograph: entry.data for entry in entries if isinstance(entry.data, Ctf)}
    assert ctfs["J1/b.mrc"] == Ctf(15000, 14000, math.degrees(0.5), math.degrees(1.5), 300, 2.5, 0.125)
    assert ctfs["J1/a.mrc"] == Ctf(9000, 8000, math.degrees(0.25), 0, 300, 2.5, 0.125)
    assert len(entries) == 4


def test_a_ctf_of_each_particle_is_none_of_the_micrograph(tmp_path: Path) -> None:
    rows = table(LOCATION, CTF)
    rows["ctf/df1_A"][2] += 1
    entries = cryosparc.read_entries(saved(tmp_path, rows))
    assert [entry.micrograph for entry in entries if isinstance(entry.data, Ctf)] == ["J1/a.mrc"]
    assert len(entries) == 3


def test_without_a_constant_there_is_no_ctf(tmp_path: Path) -> None:
    entries = cryosparc.read_entries(saved(tmp_path, table(LOCATION, CTF[:-1])))
    assert all(isinstance(entry.data, Coordinates) for entry in entries)


@pytest.mark.parametrize("ctf_in", ["main", "passthrough"])
def test_the_location_is_joined_by_uid(tmp_path: Path, ctf_in: str) -> None:
    more = np.concatenate([table(LOCATION, CTF), table(LOCATION, CTF)])[::-1]
    more["uid"][:3] = [1, 2, LAST - 1]
    if ctf_in == "main":
        more = more[[name for name in more.dtype.names or () if not name.startswith("ctf/")]].copy()
    main = table([("blob/idx", "<u4")], CTF if ctf_in == "main" else [])
    saved(tmp_path, table([("alignments2D/class", "<u4")]), "J2_a_passthrough_other.cs")
    saved(tmp_path, np.ascontiguousarray(more), "J2_passthrough_particles.cs")
    path = saved(tmp_path, main, "J2_particles.cs")
    whole = cryosparc.read_entries(saved(tmp_path, table(LOCATION, CTF), "whole.cs"))
    assert [(entry.micrograph, entry.digest) for entry in cryosparc.read_entries(path)] == [
        (entry.micrograph, entry.digest) for entry in whole
    ]
    assert cryosparc.recognise(path, path.read_bytes()[:4096]) == "coordinates"


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        (None, "no location/micrograph_path, location/.* there is none"),
        (table(LOCATION)[:2], "lacks 1 of the 3 rows, uid 9 among them"),
        (table(LOCATION)[:0], "lacks 3 of the 3 rows"),
        (table(LOCATION[:-1]), "passthrough.cs has no location/center_y_frac"),
        (np.concatenate([table(LOCATION)] * 2), "uid 5 is in it more than once"),
    ],
)
def test_a_location_that_cannot_be_joined(tmp_path: Path, beside: npt.NDArray[Any] | None, said: str) -> None:
    if beside is not None:
        saved(tmp_path, beside, "passthrough.cs")
    path = saved(tmp_path, table([("blob/idx", "<u4")]))
    with pytest.raises(InputError, match=said):
        cryosparc.read_entries(path)


SCORE: list[Any] = [("pick_stats/ncc_score", "<f4")]
BLOB: list[Any] = [("blob/idx", "<u4")]


def said_by(path: Path) -> list[tuple[str | None, bytes]]:
    return [(entry.micrograph, entry.digest) for entry in cryosparc.read_entries(path)]


PARTS = st.sampled_from(["main", "J2_a_passthrough.cs", "J2_b_PASSTHROUGH.cs", "c_passthrough.CS"])


@given(PARTS, PARTS, PARTS, st.permutations(range(3)), st.integers(0, 3))
def test_it_does_not_matter_which_file_has_which_columns(
    location: str, ctf: str, score: str, order: list[int], more: int
) -> None:
    groups = {"main": BLOB} | {
        part: [
            field for there, fields in ((location, LOCATION), (ctf, CTF), (score, SCORE)) if there == part
            for field in fields
        ]
        for part in {location, ctf, score}
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        whole = said_by(saved(Path(folder), table(LOCATION, CTF, SCORE)))
        assert len(whole) == 4
        for name, fields in groups.items():
            rows = table(fields)
            if name != "main":
                others = np.zeros(more, rows.dtype)
                others["uid"] = np.arange(100, 100 + more)
                rows = np.concatenate([others, rows[order]])
            saved(Path(folder), rows, "J2_particles.cs" if name == "main" else name)
        assert said_by(Path(folder, "J2_particles.cs")) == whole


@pytest.mark.parametrize(
    "beside",
    [
        b"",
        b"\x93NUMPY\x01\x00",
        b"\x94CSDAT" + bytes(100),
        table(CTF, SCORE)[:2],
        table(CTF, SCORE)[:0],
        np.concatenate([table(CTF)] * 2),
        table(BLOB),
        np.zeros(3),
    ],
    ids=["empty", "cut", "compressed", "partial", "no rows", "uids twice", "other columns", "no table"],
)
def test_a_passthrough_file_that_is_of_no_use_does_no_harm(tmp_path: Path, beside: Any) -> None:
    path = saved(tmp_path, table(LOCATION), "J2_particles.cs")
    alone = said_by(path)
    other = tmp_path / "J2_passthrough_particles.cs"
    if isinstance(beside, bytes):
        other.write_bytes(beside)
    else:
        saved(tmp_path, beside, other.name)
    (tmp_path / "J2_passthrough_folder.cs").mkdir()
    (tmp_path / "J2_passthrough_gone.cs").symlink_to("nowhere")
    os.mkfifo(tmp_path / "J2_passthrough_pipe.cs")
    assert said_by(path) == alone
    saved(tmp_path, table(CTF), "passthrough_of_something.cs")
    assert said_by(path) == said_by(saved(tmp_path, table(LOCATION, CTF), "whole.cs"))


def test_no_other_file_is_opened_where_the_table_has_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, table(LOCATION, CTF, SCORE))
    saved(tmp_path, table(LOCATION, CTF, SCORE), "passthrough.cs")
    monkeypatch.setattr(cryosparc, "_joined", None)
    assert len(cryosparc.read_entries(path)) == 4


def test_only_the_header_is_read_of_what_has_none_of_the_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, table(BLOB, CTF, SCORE))
    saved(tmp_path, table(BLOB), "passthrough.cs")
    opened = []
    rows_of = cryosparc._rows
    monkeypatch.setattr(cryosparc, "_rows", lambda place, *rest: opened.append(place) or rows_of(place, *rest))
    with pytest.raises(IncompleteError, match=r"passthrough.cs has no location/micrograph_path"):
        cryosparc.read_entries(path)
    assert opened == [path]


def test_the_passthrough_file_of_the_same_job_is_preferred(tmp_path: Path) -> None:
    other = table(LOCATION, CTF)
    other["ctf/df1_A"] += 5
    path = saved(tmp_path, table(LOCATION), "J7_particles.cs")
    saved(tmp_path, other, "J3_passthrough_particles.cs")
    saved(tmp_path, table(CTF), "J7_passthrough_particles.cs")
    assert said_by(path) == said_by(saved(tmp_path, table(LOCATION, CTF), "whole.cs"))


def test_what_is_wrong_in_a_passthrough_file_is_named_by_its_own_row(tmp_path: Path) -> None:
    path = saved(tmp_path, table(LOCATION), "J7_particles.cs")
    rows = table(CTF)
    rows["ctf/cs_mm"][2] = np.nan  # uid 9
    saved(tmp_path, rows[[2, 0, 1]], "J7_passthrough.cs")
    with pytest.raises(InputError, match=r"J7_passthrough\.cs: row 1: ctf/cs_mm is nan"):
        cryosparc.read_entries(path)
    rows["ctf/cs_mm"], rows["ctf/accel_kv"][1] = 2.7, 0
    saved(tmp_path, rows[[2, 0, 1]], "J7_passthrough.cs")
    with pytest.raises(InputError, match=r"J7_passthrough\.cs: row 3: voltage_kv is 0"):
        cryosparc.read_entries(path)


def test_which_files_a_table_depends_on(tmp_path: Path) -> None:
    names = ["J2_b_passthrough.cs", "J1_PassThrough_a.CS", "J2_particles.cs", "passthrough.star", "whole.cs"]
    for name in names:
        saved(tmp_path, table(LOCATION), name)
    passed = [tmp_path / "J1_PassThrough_a.CS", tmp_path / "J2_b_passthrough.cs"]
    for name in names:
        path = tmp_path / name
        assert formats.is_part_of_tables(path) == (path in passed)
        assert formats.depends_on(path) == ([] if path in passed or path.suffix == ".star" else passed)
    assert formats.depends_on(tmp_path / "none" / "J2_particles.cs") == []
    assert formats.classify_path(passed[1], passed[1].read_bytes()) is None


@pytest.mark.parametrize("classes", [0, 4, 20, 120])
@pytest.mark.parametrize("first", [True, False])
def test_a_table_of_many_columns_is_recognised_wherever_its_own_are(tmp_path: Path, classes: int, first: bool) -> None:
    fields: list[Any] = []
    for number in range(classes):
        group = f"alignments_class_{number}"
        fields += [(f"{group}/{name}", "<f4") for name in ("error", "pose", "psi", "shift")]
    ours = [*LOCATION, *UID]
    rows = np.zeros(1, ours + fields if first else fields + ours)
    path = saved(tmp_path, rows)
    head = path.read_bytes()[: formats.HEAD_BYTES]
    assert formats.classify_path(path, head) == "coordinates"
    assert cryosparc.recognise(path, path.read_bytes()) == "coordinates"
    rows = np.zeros(1, [*fields, ("micrograph_blob/idx", "<u4"), *UID])
    exposures = saved(tmp_path, rows, "exposures.cs")
    assert formats.classify_path(exposures, exposures.read_bytes()[: formats.HEAD_BYTES]) is None


def test_what_stands_in_the_rows_is_no_column(tmp_path: Path) -> None:
    rows = np.zeros(1, [("map/path", "S40"), *UID])
    rows["map/path"] = b"'location/center_x_frac' 'blob/idx'"
    path = saved(tmp_path, rows, "volumes.cs")
    assert formats.classify_path(path, path.read_bytes()) is None


def test_a_table_that_cannot_be_opened_is_judged_by_its_beginning() -> None:
    with_columns = with_header("{'descr': [('uid', '<u8'), ('blob/idx', '<u4')" + " " * 9000)
    assert cryosparc.recognise(Path("nowhere.cs"), with_columns[:4096]) == "coordinates"
    assert cryosparc.recognise(Path("nowhere.cs"), with_header(" " * 9000)[:4096]) is None


def test_a_table_without_rows(tmp_path: Path) -> None:
    assert cryosparc.read_entries(saved(tmp_path, table(LOCATION, CTF)[:0])) == []


fractions = st.floats(0, 1, width=32)


@given(st.lists(st.tuples(fractions, fractions, st.sampled_from([b"a", b"b", b"\xff"])), max_size=20))
def test_every_row_is_in_the_entry_of_its_micrograph(rows: list[tuple[float, float, bytes]]) -> None:
    made = np.zeros(len(rows), table(LOCATION).dtype)
    made["uid"] = np.arange(len(rows))
    made["location/micrograph_shape"] = (4092, 5760)
    for index, (x, y, name) in enumerate(rows):
        made["location/center_x_frac"][index], made["location/center_y_frac"][index] = x, y
        made["location/micrograph_path"][index] = name
    with tempfile.TemporaryDirectory() as folder:
        entries = cryosparc.read_entries(saved(Path(folder), made))
    assert sum(len(entry.data) for entry in entries if isinstance(entry.data, Coordinates)) == len(rows)
    for entry in entries:
        assert isinstance(entry.data, Coordinates)
        for uid, (x_px, y_px) in zip(entry.data.columns["uid"].tolist(), entry.data.xy_px.tolist(), strict=True):
            x, y, name = rows[uid]
            assert entry.micrograph == name.decode("utf-8", "surrogateescape")
            assert (x_px, y_px) == pytest.approx((x * 5760, 4092 - y * 4092), abs=1e-9)


def object_array() -> bytes:
    file = io.BytesIO()
    rows = np.zeros(1, np.dtype([("uid", "<u8"), ("location/micrograph_path", "O")]))
    np.save(file, rows, allow_pickle=True)
    return file.getvalue()


ROW = "{'descr': [('uid', '<u8'), ('blob/idx', '<u4')], 'fortran_order': False, 'shape': %s, }"


@pytest.mark.case(29)
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a cryoSPARC table"),
        (pickle.dumps({"uid": 1}), "not a cryoSPARC table"),
        (object_array(), "pickled Python objects"),
        (b"\x94CSDAT" + bytes(100), "compressed format"),
        (b"\x95CSDAT" + bytes(100), "compressed format"),
        (b"\x93NUMPY\x03\x00" + bytes(100), "numpy format 3.0; known are 1.0 and 2.0"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "header cannot be read"),
        (b"\x93NUMPY", "header cannot be read"),
        (with_header("__import__('os').abort()"), "header cannot be read"),
        (with_header("(" * 5000), "nested more than 32 deep"),
        (with_header("{'descr': ()" + "[" * 20), "header cannot be read"),
        (with_header(ROW % "'x'"), "header cannot be read"),
        (with_header(ROW % "(3,)", bytes(35)), "truncated: it has .* 3 rows of 12 bytes"),
        (with_header(ROW % "(3,)", bytes(37)), "longer than its header says"),
        (with_header(ROW % "(3,)", bytes(35), 2), "truncated"),
        (with_header(ROW % "(1 << 60,)"), "header cannot be read"),
        (with_header(ROW % "(1152921504606846976,)"), "truncated"),
        (with_header(ROW % "(-1,)"), "one axis"),
        (with_header(ROW % "(2, 2)", bytes(48)), "one axis"),
        (with_header(ROW % "()", bytes(12)), "one axis"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", bytes(8)), "named columns"),
        (with_header("{'descr': [('uid', 'V0')], 'fortran_order': False, 'shape': (99,), }"), "named columns"),
        (with_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps(1)), "pickled"),
    ],
)
def test_forged_files_are_refused_before_anything_is_allocated(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "a.cs"
    path.write_bytes(data)
    with pytest.raises(InputError, match=said) as caught:
        cryosparc.read_entries(path)
    assert str(path) in str(caught.value)
    cryosparc.recognise(path, data)
    assert formats.classify_path(path, data[: formats.HEAD_BYTES]) == "coordinates"
    with pytest.raises(InputError, match=said):
        formats.read_item(Item("coordinates", "a", path))
    passed = path.rename(tmp_path / "passthrough.cs")
    assert formats.classify_path(passed, data[: formats.HEAD_BYTES]) is None


def changed(name: str, value: Any, *dtypes: list[Any]) -> npt.NDArray[Any]:
    rows = table(*(dtypes or (LOCATION, CTF)))
    rows[name][1] = value
    return rows


def retyped(name: str, dtype: str) -> npt.NDArray[Any]:
    given = table(LOCATION, CTF)
    row = given.dtype
    made = np.zeros(3, [(column, dtype if column == name else row[column]) for column in row.names or ()])
    for column in row.names or ():
        if column != name:
            made[column] = given[column]
    return made


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (changed("location/center_x_frac", np.nan), "row 2: location/center_x_frac is nan"),
        (changed("location/center_y_frac", 1500.0), "row 2: location/center_y_frac is 1500; a fraction"),
        (changed("location/micrograph_shape", (0, 300)), "row 2: location/micrograph_shape is 0 × 300"),
        (changed("location/micrograph_shape", (2**32 - 1, 300)), "each side must be from 1 to 131072"),
        (changed("location/micrograph_path", b""), "row 2: location/micrograph_path is empty"),
        (changed("ctf/df1_A", np.inf), "row 2: ctf/df1_A is inf"),
        (changed("ctf/accel_kv", 0), "row 2: voltage_kv is 0; it must be from 1"),
        (changed("uid", LAST), f"uid {LAST} is in it more than once"),
        (retyped("location/micrograph_shape", "<u4"), "column location/micrograph_shape has .* 2 number"),
        (retyped("location/micrograph_path", "<f4"), "column location/micrograph_path is of type float32"),
        (retyped("location/micrograph_path", "V4"), "it must be text"),
        (retyped("location/micrograph_path", "U0"), "row 1: location/micrograph_path is empty"),
        (retyped("location/micrograph_path", "S0"), "row 1: location/micrograph_path is empty"),
        (retyped("location/center_y_frac", "S4"), "column location/center_y_frac has .* type"),
        (retyped("uid", "<f8"), "column uid is of type float64"),
    ],
)
def test_values_that_cannot_be_are_refused_with_the_row(tmp_path: Path, rows: npt.NDArray[Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        cryosparc.read_entries(saved(tmp_path, rows))


@pytest.mark.case(29)
@pytest.mark.parametrize("code", [b"\xff\xff\xff\x7f", b"\0\0\x11\0", b"\0\xd8\0\0", b"\xff\xdf\0\0"])
def test_text_of_impossible_characters_is_refused(tmp_path: Path, code: bytes) -> None:
    rows = retyped("location/micrograph_path", "<U4")
    rows["location/micrograph_path"] = "zzzz"
    path = saved(tmp_path, rows)
    path.write_bytes(path.read_bytes().replace(b"z\0\0\0", code))
    with pytest.raises(InputError, match="location/micrograph_path is not text"):
        cryosparc.read_entries(path)


@pytest.mark.case(29)
@given(st.binary(max_size=40), st.integers(0, 900))
def test_no_bytes_make_it_fail_otherwise(junk: bytes, at: int) -> None:
    file = io.BytesIO()
    np.save(file, table(LOCATION, CTF))
    whole = file.getvalue()
    broken = whole[:at] + junk + whole[at + len(junk) :]
    cryosparc.recognise(Path("a.cs"), broken)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.cs"
        path.write_bytes(broken)
        try:
            entries = cryosparc.read_entries(path)
        except InputError:
            return
    assert all(isinstance(entry.data, Ctf) or bool(np.isfinite(entry.data.xy_px).all()) for entry in entries)


def test_a_table_that_is_being_written_is_not_whole_before_its_last_byte(tmp_path: Path) -> None:
    path = saved(tmp_path, table(LOCATION, CTF))
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        said = formats.missing_part(path, end, whole[: min(end, formats.HEAD_BYTES)])
        assert said is not None or end < 6, end
    path.write_bytes(whole)
    assert formats.missing_part(path, len(whole), whole[: formats.HEAD_BYTES]) is None
    path.write_bytes(whole + b"x")
    assert formats.missing_part(path, len(whole) + 1, whole[: formats.HEAD_BYTES]) is None  # reading it tells
