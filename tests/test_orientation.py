"""`streamprep check` tells which way y runs in the coordinates of each watched folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from streamprep.cli import app
from streamprep.formats import mrc, mrc_output, star
from streamprep.orientation import MICROGRAPHS, spread
from tests.conftest import Session

RIGHT = "coordinates    Coordinates: fit as they are (contrast "
WRONG = "warning: coordinates of Coordinates: fit only when y is turned over (contrast "
FIX = '): set [matching] flip_y = ["Coordinates"]'


def check(session: Session, *overrides: str) -> Result:
    arguments = ["check", str(session.config), *(part for text in overrides for part in ("--set", text))]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def turn_over(micrograph: Path) -> None:
    """The micrograph as a program that begins with the other edge writes it."""
    image = mrc.read(micrograph)
    mrc_output.write(micrograph, image.pixels[None, ::-1].copy(), pixel_size_angstrom=1.5, stack=True)


def turn_all_over(session: Session) -> None:
    for micrograph in (session.folder / "Micrographs").glob("*.mrc"):
        turn_over(micrograph)


def test_coordinates_that_fit_are_told_with_what_was_measured(session: Session) -> None:
    told = check(session)
    assert told.exit_code == 0
    assert RIGHT in told.output
    assert "flipped, 3 micrographs, 18 coordinates)" in told.output
    assert "passed over" not in told.output
    assert not session.output.exists()


def test_coordinates_that_fit_turned_over_are_a_warning_with_what_to_set(session: Session) -> None:
    turn_all_over(session)
    told = check(session)
    assert told.exit_code == 0
    assert WRONG in told.stderr
    assert FIX in told.stderr
    assert "coordinates    " not in told.stdout
    told = check(session, 'matching.flip_y=["Coordinates"]')
    assert "coordinates    Coordinates: fit turned over, as flip_y says (contrast " in told.output
    assert "warning" not in told.output


def test_a_flip_that_is_wrong_is_a_warning(session: Session) -> None:
    told = check(session, 'matching.flip_y=["Coordinates"]')
    assert told.exit_code == 0
    assert "warning: coordinates of Coordinates: fit only as they are (contrast " in told.stderr
    assert "take it out of [matching] flip_y" in told.stderr


def test_each_folder_is_told_by_itself_and_the_setting_names_them_all(session: Session) -> None:
    others = session.folder / "Others"
    others.mkdir()
    for table in (session.folder / "Coordinates").iterdir():
        (entry,) = star.read_entries(table)
        y = 319 - entry.data.xy_px[:, 1]  # type: ignore[union-attr]
        x = entry.data.xy_px[:, 0]  # type: ignore[union-attr]
        columns = {"rlnCoordinateX": x.tolist(), "rlnCoordinateY": y.tolist()}
        (others / table.name).write_text(star.table_text("", columns))
    session.edit('"Coordinates"', '"Coordinates", "Others"')
    told = check(session)
    assert RIGHT in told.output
    assert "warning: coordinates of Others: fit only when y is turned over" in told.output
    assert '): set [matching] flip_y = ["Others"]' in told.output
    turn_all_over(session)
    told = check(session, 'matching.flip_y=["Others"]')
    assert '): set [matching] flip_y = ["Others", "Coordinates"]' in told.output
    assert "warning: coordinates of Others: fit only as they are" in told.output


def test_nothing_is_said_where_there_are_no_coordinates_yet(empty_session: Session) -> None:
    assert "coordinates    " not in check(empty_session).output


def test_what_cannot_be_told_says_why(session: Session) -> None:
    folder = session.folder / "Micrographs"
    for micrograph in folder.glob("*.mrc"):
        noise = np.random.default_rng(0).normal(100, 10, (1, 320, 320)).astype(np.float32)
        mrc_output.write(micrograph, noise, pixel_size_angstrom=1.5, stack=True)
    assert "Coordinates: which way y runs cannot be told (contrasts too alike: 0." in check(session).output
    (folder / "mic_0002.mrc").unlink()
    (folder / "mic_0003.mrc").unlink()
    table = session.folder / "Coordinates" / "mic_0001_autopick.star"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-3]))
    assert "cannot be told (too few places: 1 micrograph, 3 coordinates)" in check(session).output
    (folder / "mic_0001.mrc").unlink()
    told = check(session)
    assert "cannot be told (no micrograph is there for them)" in told.output
    assert told.exit_code == 0


def test_without_a_box_size_it_cannot_be_told(session: Session) -> None:
    session.edit("[extract]", "[matching]")
    session.edit("box_size_px = 48", "")
    assert "cannot be told (no box size is known: set [extract] box_size_px)" in check(session).output


def test_coordinates_of_a_binned_micrograph_are_told(session: Session) -> None:
    for table in (session.folder / "Coordinates").iterdir():
        (entry,) = star.read_entries(table)
        x, y = (4 * entry.data.xy_px + 400).T.tolist()  # type: ignore[union-attr]
        table.write_text(star.table_text("", {"rlnCoordinateX": x, "rlnCoordinateY": y}))
    assert "cannot be told (18 of 18 coordinates lie outside their micrographs)" in check(session).output


def test_files_that_cannot_be_used_are_told_and_passed_over(session: Session) -> None:
    micrographs, tables = session.folder / "Micrographs", session.folder / "Coordinates"
    whole = (micrographs / "mic_0001.mrc").read_bytes()
    (micrographs / "mic_0001.mrc").write_bytes(whole[:5000])
    (tables / "broken.star").write_text("data_\nloop_\n_rlnSomething\n1\n")
    (tables / "empty.star").touch()
    (tables / "notes.docx").write_text("x")
    (tables / "gone.star").symlink_to("nowhere")
    told = check(session)
    assert told.exit_code == 0
    assert "flipped, 2 micrographs, 12 coordinates)" in told.output
    for said in ("mic_0001.mrc: truncated", "broken.star: neither coordinates", "empty.star: the file is empty"):
        assert said in told.output
    assert "note           passed over " in told.output
    assert "notes.docx" not in told.output
    for number in range(10):
        (tables / f"broken{number}.star").write_text("nonsense")
    assert " more files were passed over" in check(session).output


def test_a_few_micrographs_of_many_are_looked_at(session: Session) -> None:
    for number in range(4, 30):
        shutil.copy(session.folder / "Micrographs" / "mic_0003.mrc", session.folder / "Micrographs" / f"n{number}.mrc")
        shutil.copy(
            session.folder / "Coordinates" / "mic_0003_autopick.star",
            session.folder / "Coordinates" / f"n{number}.star",
        )
    assert f"flipped, {MICROGRAPHS} micrographs, 48 coordinates)" in check(session).output


def test_one_table_of_all_micrographs_is_spread_over(session: Session) -> None:
    rows: list[tuple[str, float, float]] = []
    for table in sorted((session.folder / "Coordinates").iterdir()):
        (entry,) = star.read_entries(table)
        name = f"MotionCorr/job002/{table.name.removesuffix('_autopick.star')}.mrc"
        rows += [(name, *place) for place in entry.data.xy_px.tolist()]  # type: ignore[union-attr]
        table.unlink()
    names, x, y = zip(*rows, strict=True)
    columns = {"rlnMicrographName": names, "rlnCoordinateX": x, "rlnCoordinateY": y}
    (session.folder / "Coordinates" / "particles.star").write_text(star.table_text("particles", columns))
    assert "flipped, 3 micrographs, 18 coordinates)" in check(session).output
    turn_all_over(session)
    assert WRONG in check(session).output


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100, 5000])
def test_spread_keeps_all_and_begins_evenly(count: int) -> None:
    made = spread(range(count))
    assert sorted(made) == list(range(count))
    first = sorted(made[:8])
    gaps = np.diff([-1, *first, count])
    assert gaps.max() <= max(2, count // 3)


def test_a_real_micrograph_and_its_picks(data: Path, empty_session: Session) -> None:
    micrograph = empty_session.folder / "Micrographs" / "Ucsf_stack_1142_DW.mrc"
    shutil.copyfile(data / "micrographs" / micrograph.name, micrograph)
    picks = data / "coordinates" / "relion" / "Ucsf_stack_1142_DW_autopick.star"
    shutil.copyfile(picks, empty_session.folder / "Coordinates" / picks.name)
    assert RIGHT in check(empty_session).output
    assert "flipped, 1 micrograph, 45 coordinates)" in check(empty_session).output
    turn_over(micrograph)
    assert WRONG in check(empty_session).output
