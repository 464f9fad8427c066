"""Xmipp files are read as Xmipp means them: rows switched off left out, both kinds of picks, many micrographs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep.formats import xmipp
from streamprep.model import Coordinates, Ctf, InputError, ParticleRows

FIRST = "# XMIPP_STAR_1 * \n#\n"
POS = (
    FIRST
    + """data_header
loop_
 _pickingMicrographState
Supervised
data_particles
loop_
 _enabled
 _cost
 _xcoor
 _ycoor
         1     -1.000000        100         20
        -1      0.500000        101         21
         0      0.500000        102         22
data_particles_auto
loop_
 _enabled
 _cost
 _xcoor
 _ycoor
         1      0.750000        103         23
"""
)
MANY = (
    FIRST
    + """data_particles
loop_
 _enabled
 _image
 _micrograph
 _xcoor
 _ycoor
 1 000001@Extract/b.stk Mics/b.mrc 10 11
 1 000001@Extract/a.stk Mics/a.mrc 12 13
 1 000002@Extract/b.stk Mics/b.mrc 14 15
-1 000001@Extract/c.stk Mics/c.mrc 16 17
"""
)
CTFPARAM = (
    FIRST
    + """data_fullMicrograph
 _ctfSamplingRate 1.35
 _ctfVoltage 200
 _ctfDefocusU 15000.5
 _ctfDefocusV 14000.25
 _ctfDefocusAngle 35.5
 _ctfSphericalAberration 2.26
 _ctfQ0 0.07
"""
)
CTFS = (
    FIRST
    + """data_noname
loop_
 _enabled
 _micrograph
 _ctfDefocusU
 _ctfDefocusV
 _ctfDefocusAngle
 _ctfVoltage
 _ctfSphericalAberration
 _ctfQ0
 _ctfPhaseShift
 1 Mics/a.mrc 15000 14000 35.5 300 2.7 0.1 90
-1 Mics/b.mrc -999 -999 -999 -999 -999 -999 -999
 1 Mics/c.mrc 9000 8000 -12 300 2.7 0.1 45
"""
)


def written(folder: Path, text: str, name: str = "a.pos") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_picks_of_both_tables_without_those_switched_off(tmp_path: Path) -> None:
    path = written(tmp_path, POS)
    (entry,) = xmipp.read_entries(path)
    assert entry.micrograph is None
    assert isinstance(entry.data, Coordinates)
    assert entry.data.xy_px.tolist() == [[100, 20], [103, 23]]
    assert {name: values.tolist() for name, values in entry.data.columns.items()} == {
        "rlnAutopickFigureOfMerit": ["-1.000000", "0.750000"]
    }
    assert xmipp.recognise(path, POS.encode()) == "coordinates"


def test_a_row_of_a_table_without_a_score_has_0(tmp_path: Path) -> None:
    manual = POS.replace(" _cost\n", "", 1)
    for score in ("     -1.000000", "      0.500000"):
        manual = manual.replace(score, "")
    (entry,) = xmipp.read_entries(written(tmp_path, manual))
    assert isinstance(entry.data, Coordinates)
    assert entry.data.columns["rlnAutopickFigureOfMerit"].tolist() == ["0", "0.750000"]


@pytest.mark.parametrize("by", ["_micrograph", "_image"])
def test_rows_of_many_micrographs(tmp_path: Path, by: str) -> None:
    text = MANY if by == "_micrograph" else MANY.replace("_micrograph", "_other")
    entries = [entry for entry in xmipp.read_entries(written(tmp_path, text, "a.xmd")) if entry.kind == "coordinates"]
    said = [entry.micrograph for entry in entries]
    assert said == (
        ["Mics/b.mrc", "Mics/a.mrc", "Mics/c.mrc"]
        if by == "_micrograph"
        else ["Extract/b.stk", "Extract/a.stk", "Extract/c.stk"]
    )
    points = [entry.data.xy_px.tolist() for entry in entries if isinstance(entry.data, Coordinates)]
    assert points == [[[10, 11], [14, 15]], [[12, 13]], []]
    assert isinstance(entries[0].data, Coordinates)
    assert entries[0].data.columns["image"].tolist() == ["000001@Extract/b.stk", "000002@Extract/b.stk"]


pixels = st.integers(0, 1 << 20)


@given(st.lists(st.tuples(pixels, pixels), max_size=20))
def test_what_is_written_is_read(centres: list[tuple[int, int]]) -> None:
    wanted = np.array(centres, dtype=float).reshape(-1, 2)
    with tempfile.TemporaryDirectory() as folder:
        (entry,) = xmipp.read_entries(written(Path(folder), xmipp.pos_text(Coordinates(wanted))))
    assert entry.micrograph is None
    assert isinstance(entry.data, Coordinates)
    np.testing.assert_array_equal(entry.data.xy_px, wanted)


@pytest.mark.parametrize(
    ("further", "shift"), [("", 0.0), (" _ctfPhaseShift 90\n", 90.0), (" _ctfVPPphaseshift 60\n", 60.0)]
)
def test_pairs_are_the_ctf_of_one_micrograph(tmp_path: Path, further: str, shift: float) -> None:
    path = written(tmp_path, CTFPARAM + further, "a.ctfparam")
    (entry,) = xmipp.read_entries(path)
    assert (entry.micrograph, entry.data) == (None, Ctf(15000.5, 14000.25, 35.5, shift, 200.0, 2.26, 0.07))
    assert xmipp.recognise(path, CTFPARAM.encode()) == "ctf"


def test_ctfs_of_many_micrographs(tmp_path: Path) -> None:
    entries = xmipp.read_entries(written(tmp_path, CTFS, "ctfs.xmd"))
    assert [(entry.micrograph, entry.data) for entry in entries] == [
        ("Mics/a.mrc", Ctf(15000, 14000, 35.5, 90, 300, 2.7, 0.1)),
        ("Mics/c.mrc", Ctf(9000, 8000, -12, 45, 300, 2.7, 0.1)),
    ]


def test_the_microscope_of_images_without_a_defocus_is_kept_as_that_of_their_optics_groups(tmp_path: Path) -> None:
    rows = ["1 1@a.stk 200 1.4 0.07 x", "1 2@a.stk 300 2.7 0.10 y", "-1 3@a.stk ? ? ? z", "1 4@a.stk 200 1.4 0.07 v"]
    columns = " _enabled\n _image\n _ctfVoltage\n _ctfSphericalAberration\n _ctfQ0\n _note\n"
    (entry,) = xmipp.read_entries(written(tmp_path, f"{FIRST}data_\nloop_\n{columns}" + "\n".join(rows), "a.xmd"))
    assert isinstance(entry.data, ParticleRows)
    first, second, third = entry.data.optics_columns
    assert first == {"rlnVoltage": "200", "rlnSphericalAberration": "1.4", "rlnAmplitudeContrast": "0.07"}
    assert second == {"rlnVoltage": "300", "rlnSphericalAberration": "2.7", "rlnAmplitudeContrast": "0.10"}
    assert first is third
    assert set(entry.data.columns) == {"note"}
    assert entry.data.columns["note"].tolist() == ["x", "y", "v"]


def test_the_digest_changes_with_the_rows_in_use_alone(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        return xmipp.read_entries(written(tmp_path, text))[0].digest

    assert digest(POS) == digest(POS.replace("101", "501"))
    assert digest(POS) != digest(POS.replace("103", "503"))
    assert digest(POS) != digest(POS.replace("0.750000", "0.760000"))


@pytest.mark.parametrize(
    "head",
    [b"", b"\x93NUMPY", POS.encode()[10:], b"# XMIPP_STAR_1 *\ndata_a\nloop_\n_image\na.mrc\n", b"# XMIPP_STAR_1\xff"],
)
def test_other_files_are_not_taken(head: bytes) -> None:
    assert xmipp.recognise(Path("a.xmd"), head) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not an Xmipp metadata file"),
        (POS.removeprefix("# XMIPP_STAR_1"), "not an Xmipp metadata file"),
        (FIRST, "no table"),
        (FIRST + "data_a\nloop_\n_image\na.mrc\n", "neither coordinates .* its columns are _image"),
        (POS.rstrip("\n").removesuffix("23").rstrip(), "not a readable STAR file"),
        (POS.replace("103", "1o3"), "row 1 of data_particles_auto: _xcoor is '1o3', not a number"),
        (POS.replace("20\n", "nan\n"), "row 1 of data_particles: _ycoor is 'nan'"),
        (POS.replace("-1.000000", "x"), "_cost is 'x'"),
        (POS.replace("        -1 ", "        no "), "row 2 of data_particles: _enabled is 'no'"),
        (POS.replace(" _xcoor\n", " _zcoor\n", 1), "data_particles has no column _xcoor"),
        (MANY.replace("Mics/a.mrc", "''"), "row 2 of data_particles: _micrograph names no file"),
        (CTFPARAM.replace(" _ctfDefocusV 14000.25\n", ""), "no column _ctfDefocusV"),
        (CTFPARAM.replace("15000.5", "inf"), "_ctfDefocusU is 'inf', not a number"),
        (CTFPARAM.replace("0.07", "7"), "row 1 of data_fullMicrograph: amplitude_contrast is 7; it must be from 0"),
        (CTFS.replace("-1 Mics", "1 Mics"), "row 2 of data_noname: voltage_kv is -999"),
    ],
)
def test_broken_files_are_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=said) as caught:
        xmipp.read_entries(path)
    assert str(path) in str(caught.value)


@given(st.sampled_from([POS, MANY, CTFPARAM, CTFS]), st.binary(max_size=50), st.integers(0, 700))
def test_no_bytes_make_it_fail_otherwise(text: str, junk: bytes, at: int) -> None:
    broken = text.encode()[:at] + junk + text.encode()[at + len(junk) :]
    xmipp.recognise(Path("a.xmd"), broken)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.xmd"
        path.write_bytes(broken)
        try:
            entries = xmipp.read_entries(path)
        except InputError:
            return
    picked = [entry.data for entry in entries if isinstance(entry.data, Coordinates)]
    assert all(bool(np.isfinite(coordinates.xy_px).all()) for coordinates in picked)
    assert all(isinstance(entry.data, Coordinates | Ctf | ParticleRows) for entry in entries)
