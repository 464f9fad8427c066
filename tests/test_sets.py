"""Whole sessions: every form of a set says the same, and optics groups are right where several meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gemmi
import mrcfile
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import starfile

from streamprep.formats import cryosparc, eman, xmipp
from streamprep.model import Coordinates
from tests.conftest import Session
from tests.outputs import check_invariants, read_table
from tests.test_changes import once

EVERY = 'sets.further_tables=["xmd", "cs"]'


def done(session: Session, *overrides: str) -> None:
    said = once(session, *overrides)
    assert said.returncode == 0, said.stdout + said.stderr
    check_invariants(session.output)


def read_xmd(path: Path) -> dict[str, list[str]]:
    (block,) = gemmi.cif.read_file(str(path))
    loop = block[0].loop
    return {tag[1:]: [gemmi.cif.as_string(value) for value in block.find_loop(tag)] for tag in loop.tags}


def places(entries: list[Any]) -> dict[str, npt.NDArray[np.float64]]:
    return {entry.micrograph: entry.data.xy_px for entry in entries if isinstance(entry.data, Coordinates)}


@pytest.mark.parametrize("label", ["particles", "noise"])
def test_every_form_of_a_set_says_the_same(session: Session, label: str) -> None:
    done(session, EVERY)
    _, star = read_table(session.output / f"{label}.star")
    xmd = read_xmd(session.output / f"{label}.xmd")
    cs = np.load(session.output / f"{label}.cs", allow_pickle=False)
    assert len(star) == len(cs) == len(xmd["image"]) > 0
    names = list(star["rlnImageName"])
    assert xmd["image"] == names
    assert [f"{row['blob/idx'] + 1:06d}@{row['blob/path'].decode()}" for row in cs] == names
    assert xmd["micrograph"] == [name.decode() for name in cs["location/micrograph_path"]]
    assert xmd["micrograph"] == list(star["rlnMicrographName"])
    for ours, theirs in (("rlnDefocusU", "ctfDefocusU"), ("rlnDefocusAngle", "ctfDefocusAngle")):
        np.testing.assert_allclose([float(value) for value in xmd[theirs]], star[ours])
    np.testing.assert_allclose(cs["ctf/df2_A"], star["rlnDefocusV"], rtol=1e-6)
    np.testing.assert_allclose(np.rad2deg(cs["ctf/df_angle_rad"]), star["rlnDefocusAngle"], rtol=1e-5)
    assert len(np.unique(cs["uid"])) == len(cs)
    assert (cs["blob/sign"] == -1).all()

    truth = {
        str(name): rows[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy(float)
        for name, rows in star.groupby("rlnMicrographName")
    }
    read = places(cryosparc.read_entries(session.output / f"{label}.cs"))
    assert set(read) == set(truth)
    whole = places(xmipp.read_entries(session.output / f"{label}.xmd"))
    folder = session.output / "coordinates" / ("box" if label == "particles" else "box_noise")
    for name, xy in truth.items():
        np.testing.assert_allclose(read[name], xy, atol=1e-3)
        assert np.abs(whole[name] - xy).max() <= 0.5
        (boxes,) = eman.read_entries(folder / Path(name).with_suffix(".box"))
        assert isinstance(boxes.data, Coordinates)
        assert boxes.data.box_size_px == 48
        assert np.abs(boxes.data.xy_px - xy).max() <= 0.5


def test_nothing_further_is_written_where_nothing_is_asked_for(session: Session) -> None:
    done(session, "sets.further_tables=[]", "sets.coordinate_files=[]")
    files = {path.suffix for path in session.output.rglob("*") if path.is_file() and ".streamprep" not in path.parts}
    assert files == {".star", ".mrcs"}


def test_another_form_of_the_sets_is_another_plan(session: Session) -> None:
    done(session)
    assert "--new-set" in once(session, EVERY).stderr
    assert not (session.output / "particles.cs").exists()


def test_a_session_in_float16_holds_the_same_images(session: Session) -> None:
    done(session)
    assert once(session, "session.output=half", "sets.stack_dtype=float16").returncode == 0
    check_invariants(session.folder / "half")
    _, star = read_table(session.output / "particles.star")
    stacks = sorted({name.partition("@")[2] for name in star["rlnImageName"]})
    for stack in stacks:
        whole, half = mrcfile.read(session.output / stack), mrcfile.read(session.folder / "half" / stack)
        assert half.dtype == np.float16
        np.testing.assert_array_equal(half, whole.astype(np.float16))


def test_a_value_that_float16_cannot_hold_fails_its_micrograph_alone(session: Session) -> None:
    path = session.folder / "Micrographs" / "mic_0002.mrc"
    with mrcfile.open(path, "r+") as micrograph:
        micrograph.data[:] = micrograph.data * np.float32(1e6)
        micrograph.update_header_stats()
    session.edit("[particles.normalize]", "[sets]\nstack_dtype = 'float16'\n[particles.normalize]")
    session.edit('[particles.normalize]\nmethod = "ramp"', "# not normalized:")
    said = once(session)
    assert said.returncode == 1
    assert "1 failed" in said.stdout
    assert "float16 goes to ±65504" in said.stdout
    assert "stack_dtype" in said.stdout
    assert len(set(read_table(session.output / "particles.star")[1]["rlnMicrographName"])) == 2


# --- optics groups ---------------------------------------------------------------------------------------------------


def two_microscopes(session: Session) -> dict[str, dict[str, float]]:
    """Give one micrograph another pixel size and another a different microscope; what each has then."""
    session.edit("pixel_size_angstrom = 1.5\n", "")
    with mrcfile.open(session.folder / "Micrographs" / "mic_0002.mrc", "r+") as micrograph:
        micrograph.voxel_size = 2.0
    path = session.folder / "micrographs_ctf.star"
    tables = starfile.read(path)
    other = {"rlnVoltage": 200.0, "rlnSphericalAberration": 1.4, "rlnAmplitudeContrast": 0.07}
    first = tables["optics"].iloc[0].to_dict()
    second = first | {"rlnOpticsGroupName": "opticsGroup2", "rlnOpticsGroup": 2, **other}
    tables["optics"] = pd.DataFrame([first, second])
    tables["micrographs"]["rlnOpticsGroup"] = [1, 1, 2]
    starfile.write(tables, path)
    usual = {"rlnVoltage": 300.0, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}
    return {
        "mic_0001": {"rlnImagePixelSize": 1.5, **usual},
        "mic_0002": {"rlnImagePixelSize": 2.0, **usual},
        "mic_0003": {"rlnImagePixelSize": 1.5, **other},
    }


@pytest.mark.parametrize("label", ["particles", "noise"])
def test_several_pixel_sizes_and_voltages_make_optics_groups(session: Session, label: str) -> None:
    expected = two_microscopes(session)
    done(session, EVERY)
    optics, rows = read_table(session.output / f"{label}.star")
    assert optics is not None
    assert list(optics["rlnOpticsGroup"]) == [1, 2, 3]
    assert optics["rlnOpticsGroupName"].is_unique
    joined = rows.merge(optics, on="rlnOpticsGroup", validate="many_to_one")
    assert len(joined) == len(rows)
    xmd = read_xmd(session.output / f"{label}.xmd")
    cs = np.load(session.output / f"{label}.cs", allow_pickle=False)
    for stem, constants in expected.items():
        named = joined[joined["rlnMicrographName"].str.contains(stem)]
        assert len(named)
        assert named["rlnOpticsGroup"].nunique() == 1
        assert (named["rlnMicrographOriginalPixelSize"] == constants["rlnImagePixelSize"]).all()
        for column, value in constants.items():
            assert (named[column] == value).all(), f"{column} of {stem}"
        own = [index for index, name in enumerate(xmd["micrograph"]) if stem in name]
        assert {float(xmd["ctfVoltage"][index]) for index in own} == {constants["rlnVoltage"]}
        assert {float(xmd["rlnImagePixelSize"][index]) for index in own} == {constants["rlnImagePixelSize"]}
        records = cs[np.char.find(cs["location/micrograph_path"], stem.encode()) >= 0]
        assert set(records["ctf/accel_kv"].tolist()) == {constants["rlnVoltage"]}
        assert set(records["blob/psize_A"].tolist()) == {constants["rlnImagePixelSize"]}
        assert set(records["ctf/exp_group_id"].tolist()) == set(named["rlnOpticsGroup"])


def test_the_microscope_of_the_ctf_counts_before_that_of_the_configuration(session: Session) -> None:
    session.edit("voltage_kv = 300", "voltage_kv = 120")
    done(session)
    optics, _ = read_table(session.output / "particles.star")
    assert optics is not None
    assert optics["rlnVoltage"].tolist() == [300.0]
    assert {float(value) for value in read_xmd(session.output / "particles.xmd")["ctfVoltage"]} == {300.0}


def beam_shift_groups(session: Session, *, optics_last: bool = False) -> dict[str, dict[str, Any]]:
    """Give each micrograph an optics group of its own, all with the same constants; what is said of each."""
    path = session.folder / "micrographs_ctf.star"
    tables = starfile.read(path)
    first = tables["optics"].iloc[0].to_dict() | {"rlnMicrographPixelSize": 1.5}
    said = [
        {"rlnOpticsGroupName": "afis_1", "rlnMtfFileName": "mtf k3.star", "rlnBeamTiltX": 0.25},
        {"rlnOpticsGroupName": "afis_2", "rlnMtfFileName": "mtf k3.star", "rlnBeamTiltX": -0.5},
        {"rlnOpticsGroupName": "afis_3", "rlnMtfFileName": "mtf_f4.star", "rlnBeamTiltX": -0.5},
    ]
    for one in said:  # binned by two in motion correction: the MTF belongs to the detector's pixels
        one["rlnMicrographOriginalPixelSize"] = 0.75
    optics = pd.DataFrame([first | {"rlnOpticsGroup": number} | one for number, one in enumerate(said, start=1)])
    tables["micrographs"]["rlnOpticsGroup"] = [3, 1, 2]
    names = ["micrographs", "optics"] if optics_last else ["optics", "micrographs"]
    starfile.write({name: (tables | {"optics": optics})[name] for name in names}, path)
    return {"mic_0001": said[2], "mic_0002": said[0], "mic_0003": said[1]}


@pytest.mark.parametrize("optics_last", [False, True])
def test_optics_groups_of_equal_constants_stay_apart_with_all_that_is_said_of_them(
    session: Session, optics_last: bool
) -> None:
    expected = beam_shift_groups(session, optics_last=optics_last)
    done(session, EVERY)
    for label in ("particles", "noise"):
        optics, rows = read_table(session.output / f"{label}.star")
        assert optics is not None
        assert sorted(optics["rlnOpticsGroupName"]) == ["afis_1", "afis_2", "afis_3"]
        assert "rlnMicrographPixelSize" not in optics
        for ours, value in (("rlnImagePixelSize", 1.5), ("rlnMicrographOriginalPixelSize", 0.75), ("rlnImageSize", 48)):
            assert (optics[ours] == value).all()
        joined = rows.merge(optics, on="rlnOpticsGroup", validate="many_to_one")
        assert len(joined) == len(rows)
        xmd = read_xmd(session.output / f"{label}.xmd")
        cs = np.load(session.output / f"{label}.cs", allow_pickle=False)
        assert (
            set(xmd["streamprepLabel"]) == set(rows["streamprepLabel"]) == {"noise" if label == "noise" else "particle"}
        )
        assert not [name for name in cs.dtype.names or () if "Label" in name]
        for stem, said in expected.items():
            named = joined[joined["rlnMicrographName"].str.contains(stem)]
            assert len(named)
            own = [index for index, name in enumerate(xmd["micrograph"]) if stem in name]
            for column, value in said.items():
                assert (named[column] == value).all(), f"{column} of {stem}"
                assert {type(value)(xmd[column][index]) for index in own} == {value}
            records = cs[np.char.find(cs["location/micrograph_path"], stem.encode()) >= 0]
            assert set(records["ctf/exp_group_id"].tolist()) == set(named["rlnOpticsGroup"])


def test_a_beam_tilt_that_comes_later_makes_the_particles_of_its_group_anew(session: Session) -> None:
    done(session)
    expected = beam_shift_groups(session)
    done(session)
    optics, rows = read_table(session.output / "particles.star")
    assert optics is not None
    joined = rows.merge(optics, on="rlnOpticsGroup", validate="many_to_one")
    for stem, said in expected.items():
        named = joined[joined["rlnMicrographName"].str.contains(stem)]
        assert set(named["rlnOpticsGroupName"]) == {said["rlnOpticsGroupName"]}
        assert set(named["rlnBeamTiltX"]) == {said["rlnBeamTiltX"]}


def test_a_ctf_table_without_optics_groups_makes_one_group(session: Session) -> None:
    path = session.folder / "micrographs_ctf.star"
    rows = starfile.read(path)["micrographs"].drop(columns="rlnOpticsGroup")
    starfile.write(rows, path)
    done(session)
    optics, rows = read_table(session.output / "particles.star")
    assert optics is not None
    assert optics["rlnOpticsGroupName"].tolist() == ["opticsGroup1"]
    assert set(rows["rlnOpticsGroup"]) == {1}


def test_sets_without_rows_are_not_told_of(session: Session) -> None:
    text = session.config.read_text()
    begins = text.index("[coordinates.pick_noise]")
    session.config.write_text(text[:begins] + text[text.index("\n[", begins) + 1 :])
    told = once(session, EVERY)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "noise" not in told.stdout
    lines = [line.split(" in ")[1] for line in told.stdout.splitlines() if " rows in " in line]
    assert sorted(lines) == ["coordinates/particles.star", "particles.star"]
    told_later = session.call("status", "--set", EVERY).stdout
    later = [line.split(" in ")[1] for line in told_later.splitlines() if " rows in " in line]
    assert sorted(later) == sorted(lines)
