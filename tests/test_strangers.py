"""What other programs write beside micrographs and tables is told apart from them, and matched by their names."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from streamprep import formats
from streamprep.formats import mrc, mrc_output
from streamprep.naming import best_match, is_picture
from tests.conftest import Session
from tests.formats.test_ctffind import AVROT, HEADER
from tests.outputs import check_invariants, read_table
from tests.test_changes import micrographs, once

PATTERN = "CtfFind/job003/Micrographs/*.txt"


def picture(path: Path, side: int = 128) -> None:
    """A power spectrum, as an image of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).exponential(1.0, (1, side, side)).astype(np.float32)
    mrc_output.write(path, pixels, pixel_size_angstrom=1.5, stack=True)


def defocus(number: int) -> float:
    return 10000.0 + number


def estimate(session: Session, number: int, named: str, pattern: str = PATTERN) -> Path:
    """All that RELION's CtfFind job leaves of one micrograph; ``named`` is what CTFFIND was given."""
    folder = session.folder / Path(pattern).parent
    root = folder / f"mic_{number:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    picture(root.with_name(f"{root.name}_PS.mrc"))
    table = root.with_name(f"{root.name}_PS.txt")
    head = HEADER.replace("MotionCorr/a b.mrc", named)
    table.write_text(f"{head}1.000000 {defocus(number):.6f} 9900.000000 12.5 0.0 0.1 4.5\n")
    root.with_name(f"{root.name}_PS_avrot.txt").write_text(AVROT.replace("a.mrc", named))
    root.with_name(f"{root.name}_ctffind4.log").write_text("** Welcome to Ctffind **\n")
    root.with_name(f"{root.name}_ctffind4.com").write_text("#!/usr/bin/env csh\n")
    return table


def with_pattern(session: Session, pattern: str) -> None:
    (session.folder / "micrographs_ctf.star").unlink()
    (session.folder / Path(pattern).parent).mkdir(parents=True, exist_ok=True)
    session.edit('table = "micrographs_ctf.star"', f'table = "{pattern}"')


def defoci(session: Session) -> dict[str, float]:
    rows = read_table(session.output / "particles.star")[1]
    assert isinstance(rows, pd.DataFrame)
    return dict(zip(rows["rlnMicrographName"], rows["rlnDefocusU"], strict=True))


@pytest.mark.parametrize(
    "named", ["MotionCorr/job002/Movies/{stem}.mrc", "MotionCorr/job002/Movies/{stem}_PS.mrc", "{stem}_noDW.mrc"]
)
@pytest.mark.parametrize("pattern", [PATTERN, "CtfFind/job003/Micrographs/*"])
def test_each_micrograph_gets_the_ctf_of_its_own_file(session: Session, named: str, pattern: str) -> None:
    with_pattern(session, pattern)
    for number in (3, 1, 2):
        estimate(session, number, named.format(stem=f"mic_{number:04d}"), pattern)
    done = once(session)
    assert done.returncode == 0, done.stdout
    assert "3 micrographs done, 0 waiting, 0 failed, 0 rejected" in done.stdout
    strangers = 3 if pattern == PATTERN else 12  # spectra; and their pictures, logs and scripts
    assert f"{strangers} files were left alone" in done.stdout
    assert defoci(session) == {f"Micrographs/mic_{number:04d}.mrc": defocus(number) for number in (1, 2, 3)}
    check_invariants(session.output)


def test_a_micrograph_waits_for_its_own_file(session: Session) -> None:
    with_pattern(session, PATTERN)
    for number in (1, 2):
        estimate(session, number, f"Movies/mic_{number:04d}.mrc")
    told = once(session)
    assert "2 micrographs done, 1 waiting" in told.stdout
    assert f"waiting: Micrographs/mic_0003: waits for ctf in {PATTERN}" in told.stdout
    table = estimate(session, 3, "Movies/mic_0003.mrc")
    whole = table.read_text()
    table.write_text(whole[:200])  # still being written: no CTF yet, and no fault
    assert "2 micrographs done, 1 waiting, 0 failed" in once(session).stdout
    table.write_text(whole)
    assert "3 micrographs done, 0 waiting, 0 failed" in once(session).stdout
    assert defoci(session)["Micrographs/mic_0003.mrc"] == defocus(3)


def test_a_ctf_table_given_by_name_is_never_left_alone(session: Session) -> None:
    with_pattern(session, PATTERN)
    estimate(session, 1, "mic_0001.mrc")
    session.edit("Micrographs/*.txt", "Micrographs/mic_0001_PS_avrot.txt")
    told = once(session)
    assert told.returncode == 1
    assert "mic_0001_PS_avrot.txt" in told.stdout
    assert "failed" in told.stdout


@pytest.mark.parametrize("first", [True, False])
def test_a_power_spectrum_takes_no_coordinates(session: Session, first: bool) -> None:
    """Beside its micrograph, or before it: the picks are never cut out of the spectrum."""
    folder = session.folder / "Micrographs"
    aside = session.folder / "aside.mrc"
    if first:
        shutil.move(folder / "mic_0001.mrc", aside)
    for ending in ("PS", "ctf", "diagnostic", "mask"):
        picture(folder / f"mic_0001_{ending}.mrc", 320)
    told = once(session)
    assert f"{2 if first else 3} micrographs done, 0 waiting, 0 failed, 0 rejected" in told.stdout
    assert "4 files were left alone" in told.stdout
    if first:
        shutil.move(aside, folder / "mic_0001.mrc")
        assert "3 micrographs done, 0 waiting, 0 failed" in once(session).stdout
    assert micrographs(session) == [f"Micrographs/mic_000{number}.mrc" for number in (1, 2, 3)]
    check_invariants(session.output)


def test_the_micrograph_without_dose_weighting_leaves_the_coordinates_to_the_other(session: Session) -> None:
    folder = session.folder / "Micrographs"
    shutil.copy(folder / "mic_0001.mrc", folder / "mic_0001_noDW.mrc")
    told = once(session)
    assert "3 micrographs done, 1 waiting, 0 failed" in told.stdout
    assert "waiting: Micrographs/mic_0001_noDW: waits for coordinates" in told.stdout
    assert micrographs(session)[0] == "Micrographs/mic_0001.mrc"


@pytest.mark.parametrize("name", ["x_PS.mrc", "a/x_ctf.mrc", "x_diag.mrc.gz", "x_ctffind4.mrc", "x_mask.MRC"])
def test_pictures_of_micrographs_are_no_micrographs(tmp_path: Path, name: str) -> None:
    assert is_picture(name)
    picture(tmp_path / "x.mrc")
    head = (tmp_path / "x.mrc").read_bytes()[: formats.HEAD_BYTES]
    assert formats.classify_path(tmp_path / name, head) == "other"
    stack = mrc.parse_header(tmp_path / "x.mrc", head)
    assert stack.nz == 1
    assert formats.classify_path(tmp_path / name.replace(".mrc", ".mrcs").replace(".MRC", ".mrcs"), head) == "particles"


@pytest.mark.parametrize("name", ["x.mrc", "x_DW.mrc", "x_noDW.mrc", "PS.mrc", "x_PS_1.mrc", "x_ctf/x.mrc", "xPS.mrc"])
def test_micrographs_are_no_pictures(tmp_path: Path, name: str) -> None:
    assert not is_picture(name)
    picture(tmp_path / "x.mrc")
    head = (tmp_path / "x.mrc").read_bytes()[: formats.HEAD_BYTES]
    assert formats.classify_path(tmp_path / name, head) == "micrograph"


@pytest.mark.parametrize(
    ("name", "candidates", "chosen"),
    [
        ("x_PS.mrc", ["x.mrc", "x_DW.mrc"], 0),
        ("x_noDW.mrc", ["x.mrc"], 0),
        ("x_noDW.mrc", ["x.mrc", "x_noDW.mrc"], 1),
        ("x_extract.star", ["x.mrc", "x_noDW.mrc"], 0),
        ("x_DW_extract.star", ["x.mrc", "x_DW.mrc"], 1),
    ],
)
def test_names_of_other_programs_find_their_micrograph(name: str, candidates: list[str], chosen: int) -> None:
    assert best_match(name, candidates) == (chosen, [])


RELIONS_OWN = {
    "Micrographs/mic_0001.star": "data_general\n\n_rlnImageSizeX 4096\n_rlnMicrographMovieName Movies/mic_0001.tiff\n\n"
    "data_global_shift\n\nloop_\n_rlnMicrographFrameNumber #1\n_rlnMicrographShiftX #2\n1 0.5\n",
    "Micrographs/corrected_micrographs.star": "data_optics\n\nloop_\n_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n"
    "o 1\n\ndata_micrographs\n\nloop_\n_rlnMicrographName #1\n_rlnMicrographMetadata #2\n_rlnOpticsGroup #3\n"
    "_rlnAccumMotionTotal #4\nMicrographs/mic_0001.mrc Micrographs/mic_0001.star 1 12.5\n",
    "Micrographs/job.star": "data_job\n\n_rlnJobTypeLabel relion.motioncorr.own\n_rlnJobIsContinue 0\n",
    "Coordinates/autopick.star": "data_coordinate_files\n\nloop_\n_rlnMicrographName #1\n_rlnMicrographCoordinates #2\n"
    "Micrographs/mic_0001.mrc Coordinates/mic_0001_autopick.star\n",
}


def test_what_relion_keeps_beside_its_tables_is_left_alone(session: Session) -> None:
    for name, text in RELIONS_OWN.items():
        (session.folder / name).write_text(f"\n# version 30001\n\n{text}\n")
    done = once(session)
    assert done.returncode == 0, done.stdout
    assert "3 micrographs done, 0 waiting, 0 failed, 0 rejected" in done.stdout
    assert "4 files were left alone" in done.stdout


def test_good_tables_of_something_else_are_left_alone(session: Session) -> None:
    """What cryoSPARC and Xmipp keep beside particles: exposures, volumes, classes, and what is part of a table."""
    folder = session.folder / "Coordinates"
    for name, columns in {
        "J2_exposures.cs": ["micrograph_blob/idx", "ctf/df1_A"],
        "J3_volumes.cs": ["map/box"],
        "J7_passthrough_particles.cs": ["location/center_x_frac"],
    }.items():
        np.save(folder / "table.npy", np.zeros(2, [("uid", "<u8"), *((column, "<f4") for column in columns)]))
        (folder / "table.npy").rename(folder / name)
    (folder / "classes.xmd").write_text("# XMIPP_STAR_1 *\ndata_classes\nloop_\n _ref\n _classCount\n 1 20\n")
    told = once(session)
    assert told.returncode == 0, told.stdout
    assert "3 micrographs done, 0 waiting, 0 failed, 0 rejected" in told.stdout
    assert "4 files were left alone" in told.stdout


def test_a_star_table_with_the_wrong_columns_is_a_fault(session: Session) -> None:
    """It may be what somebody takes for coordinates."""
    (session.folder / "Coordinates" / "picks.star").write_text("data_\nloop_\n_x\n_y\n1 2\n")
    told = once(session)
    assert told.returncode == 1
    assert "its columns are _x, _y" in told.stdout
