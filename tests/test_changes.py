"""What people and programs do to the folders of a session: files torn, moved, taken away, folders renamed."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import starfile

from streamprep import hookimpl, workers
from streamprep.config import load
from streamprep.console import Console
from streamprep.engine import Engine
from streamprep.executors import InlineExecutor
from streamprep.model import ConfigError, Coordinates, Entry, Item
from streamprep.pipeline import resolve
from streamprep.plugin_manager import Plugins, load_plugins
from streamprep.snapshot import Snapshot
from tests.conftest import Session
from tests.outputs import check_invariants, read_table, rows_of


def micrographs(session: Session) -> list[str]:
    return sorted(read_table(session.output / "particles.star")[1]["rlnMicrographName"].unique())


@dataclass(frozen=True)
class Told:
    """What `streamprep once` says, by whatever way."""

    returncode: int
    stdout: str = ""
    stderr: str = ""


def once(session: Session, *overrides: str) -> Told:
    """`streamprep once` in this process, workers included: these tests run it many times."""
    stream = io.StringIO()
    try:
        config = load(session.config, ["session.device=cpu", *overrides])
        plugins = load_plugins(environ={})
        console = Console("plain", stream)
        plugins.manager.register(console)
        engine = Engine(config, plugins, resolve(config, plugins), once=True, executor=InlineExecutor)
        last = engine.run()
        console.close()
    except ConfigError as error:
        return Told(2, stderr=str(error))
    return Told(1 if last.mode == "stopped" or last.failed else 0, stream.getvalue())


def done_without_fault(session: Session, count: int = 3) -> None:
    done = once(session)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} micrographs done, 0 waiting, 0 failed, 0 rejected" in done.stdout
    check_invariants(session.output)


# --- while a job is about to run --------------------------------------------------------------------------------------


class Meddler:
    """Does something to a file right after the first job with it was claimed, before it runs."""

    def __init__(self, item: str, meddle: Callable[[], Any]) -> None:
        self.item, self.meddle, self.starts = item, meddle, 0

    @hookimpl
    def item_started(self, item: str) -> None:
        if item == self.item:
            self.starts += 1
            if self.starts == 1:
                self.meddle()


def run_with(session: Session, meddle: Callable[[], Any]) -> tuple[Any, Meddler]:
    config = load(session.config, ["session.device=cpu", "session.settle_seconds=0", "session.poll_seconds=0.1"])
    plugins = load_plugins(environ={})
    meddler = Meddler("Micrographs/mic_0001", meddle)
    plugins.manager.register(meddler)
    engine = Engine(config, plugins, resolve(config, plugins), once=True, executor=InlineExecutor)
    return engine.run(), meddler


@pytest.mark.case(23)
@pytest.mark.parametrize("how", ["torn", "empty", "gone"])
def test_a_table_that_is_torn_when_its_job_runs_fails_no_micrograph(session: Session, how: str) -> None:
    table = session.folder / "Coordinates" / "mic_0001_autopick.star"
    whole = table.read_bytes()

    def tear() -> None:
        if how == "gone":
            table.unlink()
        else:
            table.write_bytes(whole[: len(whole) - 12] if how == "torn" else b"")

    last, _ = run_with(session, tear)
    assert last.jobs["done"] == 2
    assert "failed" not in last.jobs
    ((item, reason, _),) = last.waiting
    assert item == "Micrographs/mic_0001"
    assert reason.startswith("waits for coordinates")
    assert ("mic_0001_autopick.star could not be read" in reason) == (how != "gone")
    table.write_bytes(whole)
    done_without_fault(session)


@pytest.mark.case(23)
def test_coordinates_altered_behind_size_time_and_inode_are_the_ones_used(session: Session) -> None:
    table = session.folder / "Coordinates" / "mic_0001_autopick.star"
    before = table.stat()

    def alter() -> None:
        text = table.read_text()
        first = next(line for line in text.splitlines() if line[:1].isdigit() or line.strip()[:1].isdigit())
        other = first.replace(first.strip()[0], "9" if first.strip()[0] != "9" else "8", 1)
        with table.open("r+") as file:
            file.write(text.replace(first, other, 1))
        os.utime(table, ns=(before.st_atime_ns, before.st_mtime_ns))

    last, meddler = run_with(session, alter)
    assert table.stat().st_mtime_ns == before.st_mtime_ns
    assert table.stat().st_size == before.st_size
    assert last.jobs == {"done": 3, "superseded": 1}
    assert meddler.starts in (2, 3)  # on a slow machine the job may come before the table is read again


@pytest.mark.case(23)
def test_a_table_that_never_says_the_same_twice_is_given_up(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader whose digests are not repeatable must not keep the daemon busy for ever."""
    from streamprep import workers

    table = session.folder / "Coordinates" / "mic_0001_autopick.star"
    companion = workers._companion

    def unstable(worker: Any, made: Any, path: Path) -> Any:
        if path == table:
            raise workers._Stale(made, f"{path} no longer says what it said")
        return companion(worker, made, path)

    monkeypatch.setattr(workers, "_companion", unstable)
    monkeypatch.setattr("streamprep.engine.MOST_DOUBTS", 2)
    last, _ = run_with(session, lambda: None)
    assert last.jobs == {"done": 2, "failed": 1}
    assert "no longer says what it said" in last.failures[0]["reason"]


# --- files moved and taken away ---------------------------------------------------------------------------------------


@pytest.mark.case(25)
def test_micrographs_moved_into_a_sub_folder_are_the_same(session: Session) -> None:
    folder = session.folder / "Micrographs"
    late = session.folder / "late.star"
    shutil.move(session.folder / "Coordinates" / "mic_0003_autopick.star", late)
    assert "2 micrographs done, 1 waiting" in once(session).stdout
    (folder / "grid1").mkdir()
    for number in (1, 2, 3):
        (folder / f"mic_000{number}.mrc").rename(folder / "grid1" / f"mic_000{number}.mrc")
    before = rows_of(session.output / "particles.star")
    again = once(session)
    assert "2 micrographs done, 1 waiting" in again.stdout
    assert "could belong" not in again.stdout
    assert rows_of(session.output / "particles.star") == before
    shutil.move(late, session.folder / "Coordinates" / "mic_0003_autopick.star")
    done_without_fault(session)
    assert micrographs(session) == [
        "Micrographs/grid1/mic_0003.mrc", "Micrographs/mic_0001.mrc", "Micrographs/mic_0002.mrc",
    ]  # fmt: skip


@pytest.mark.case(25)
def test_a_waiting_micrograph_that_is_removed_waits_no_longer(session: Session) -> None:
    (session.folder / "Coordinates" / "mic_0003_autopick.star").unlink()
    assert "1 waiting" in once(session).stdout
    (session.folder / "Micrographs" / "mic_0003.mrc").unlink()
    done_without_fault(session, 2)


def test_micrographs_of_other_weighting_leave_one_set_in_any_order(session: Session) -> None:
    """The aligned and the dose-weighted image of one exposure; the picks are of the first."""
    folder = session.folder / "Micrographs"
    plain = folder / "mic_0001.mrc"
    aside = session.folder / "aside.mrc"
    shutil.move(plain, aside)
    shutil.copy(aside, folder / "mic_0001_DW.mrc")
    done_without_fault(session)
    assert "Micrographs/mic_0001_DW.mrc" in micrographs(session)
    shutil.move(aside, plain)
    late = once(session)
    assert "3 micrographs done, 1 waiting" in late.stdout, late.stdout
    assert "waiting: Micrographs/mic_0001_DW: waits for coordinates" in late.stdout
    assert micrographs(session) == [f"Micrographs/mic_000{number}.mrc" for number in (1, 2, 3)]
    check_invariants(session.output)


def test_a_broken_micrograph_and_another_with_its_picks_do_not_double_them(session: Session) -> None:
    done_without_fault(session)
    count = len(read_table(session.output / "particles.star")[1])
    plain = session.folder / "Micrographs" / "mic_0001.mrc"
    whole = plain.read_bytes()
    plain.write_bytes(whole[:5000])
    plain.with_name("mic_0001_DW.mrc").write_bytes(whole)
    once(session, "session.incomplete_seconds=0.2")
    assert len(read_table(session.output / "particles.star")[1]) == count
    assert "Micrographs/mic_0001_DW.mrc" in micrographs(session)
    check_invariants(session.output)


def test_a_micrograph_removed_while_it_is_queued_makes_room_for_another(session: Session) -> None:
    done_without_fault(session)
    plain = session.folder / "Micrographs" / "mic_0001.mrc"
    table = session.folder / "Coordinates" / "mic_0001_autopick.star"
    whole = plain.read_bytes()
    plain.unlink()
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    told = once(session)
    assert "superseded Micrographs/mic_0001: the file was removed" in told.stdout, told.stdout
    plain.with_name("mic_0001_DW.mrc").write_bytes(whole)
    done_without_fault(session)
    assert micrographs(session)[0] == "Micrographs/mic_0001_DW.mrc"


def test_a_micrograph_in_the_place_of_a_moved_one_is_another_item(session: Session) -> None:
    session.edit('[ctf]\ntable = "micrographs_ctf.star"', "")
    done_without_fault(session)
    before = rows_of(session.output / "particles.star")
    folder = session.folder / "Micrographs"
    (folder / "grid1").mkdir()
    (folder / "mic_0001.mrc").rename(folder / "grid1" / "mic_0001.mrc")
    (session.folder / "Coordinates" / "grid1").mkdir()
    table = session.folder / "Coordinates" / "mic_0001_autopick.star"
    table.rename(table.parent / "grid1" / table.name)
    done_without_fault(session)
    shutil.copy(folder / "mic_0002.mrc", folder / "mic_0001.mrc")
    told = once(session)
    assert "3 micrographs done, 1 waiting, 0 failed" in told.stdout, told.stdout
    assert "waiting: Micrographs/mic_0001-2 (Micrographs/mic_0001.mrc): waits for coordinates" in told.stdout
    assert rows_of(session.output / "particles.star") == before
    lines = (table.parent / "grid1" / table.name).read_text().splitlines()
    table.write_text("\n".join(lines) + "\n")
    told = once(session)
    assert "mic_0001_autopick.star could belong to Micrographs/grid1/mic_0001.mrc or Micrographs/mic_0001.mrc" in (
        told.stdout
    ), "a guess would be wrong as often as right"
    assert rows_of(session.output / "particles.star") == before
    check_invariants(session.output)


@pytest.mark.case(25)
def test_what_cannot_be_looked_at_is_not_gone(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamprep import engine

    file = tmp_path / "x"
    assert engine.is_gone(file)
    assert engine.is_gone(session.config / "below a file")
    file.touch()
    assert not engine.is_gone(file)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    assert not engine.is_gone(file)


def test_a_folder_named_as_a_stack_of_results_is_no_trouble(session: Session) -> None:
    done_without_fault(session)
    for ending in (".mrcs", ".pos"):
        folder = session.folder / "Micrographs" / f"mic_0001{ending}"
        folder.mkdir()
        shutil.copy(session.folder / "Micrographs" / "mic_0002.mrc", folder / f"new{len(ending)}.mrc")
        picks = session.folder / "Coordinates" / "mic_0002_autopick.star"
        shutil.copy(picks, picks.with_name(f"new{len(ending)}_autopick.star"))
    ctf = session.folder / "micrographs_ctf.star"
    lines = ctf.read_text().splitlines(keepends=True)
    row = next(line for line in lines if "mic_0002" in line)
    ctf.write_text("".join([*lines, *(row.replace("mic_0002", f"new{length}") for length in (5, 4))]))
    done_without_fault(session, 5)


@pytest.mark.case(12)
def test_results_that_cannot_be_stored_cost_their_own_job(session: Session) -> None:
    (session.output / "particles" / "Micrographs").mkdir(parents=True)
    (session.output / "particles" / "Micrographs" / "mic_0001.mrcs").mkdir()
    (session.output / ".streamprep").mkdir()
    (session.output / "particles" / "Micrographs" / "mic_0001.mrcs" / "in the way").touch()
    done = once(session, "session.max_attempts=1")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert len(micrographs(session)) >= 2


@pytest.mark.parametrize("where", [".", "../Coordinates"])
def test_links_do_not_lead_above_what_is_watched_or_beside(session: Session, where: str) -> None:
    (session.folder / "Micrographs" / "loop").symlink_to("../" + where.removeprefix("../"))
    done_without_fault(session)


def test_what_waits_for_a_broken_table_says_so(session: Session) -> None:
    table = session.folder / "Coordinates" / "mic_0002_autopick.star"
    table.write_text("data_\nloop_\n_rlnSomething\n1\n")
    told = once(session)
    assert (
        "waiting: Micrographs/mic_0002: waits for coordinates; Coordinates/mic_0002_autopick.star could not be read"
        in told.stdout
    )


def test_files_that_are_no_micrographs_are_told(session: Session) -> None:
    (session.folder / "Coordinates" / "notes.docx").write_text("x")
    shutil.copy(session.folder / "Coordinates" / "mic_0001_autopick.star", session.folder / "Coordinates" / "far.star")
    for told in (once(session).stdout, session.call("status").stdout):
        assert "1 files were left alone" in told
        assert "without a micrograph: coordinates for far.star" in told


# --- the configuration and the folders it names ----------------------------------------------------------------------


@pytest.mark.case(25)
def test_a_renamed_watched_folder_keeps_its_results(session: Session) -> None:
    done_without_fault(session)
    before = rows_of(session.output / "particles.star")
    (session.folder / "Micrographs").rename(session.folder / "Aligned")
    session.edit('"Micrographs"', '"Aligned"')
    done_without_fault(session)
    assert rows_of(session.output / "particles.star") == before
    shutil.copy(session.folder / "Aligned" / "mic_0001.mrc", session.folder / "Aligned" / "mic_0004.mrc")
    waits = once(session)
    assert "waiting: Micrographs/mic_0004: waits for c" in waits.stdout


def test_a_folder_of_the_same_name_put_first_takes_nothing_over(session: Session) -> None:
    done_without_fault(session)
    before = rows_of(session.output / "particles.star")
    other = session.folder / "grid2" / "Micrographs"
    other.mkdir(parents=True)
    session.edit('"Micrographs"', '"grid2/Micrographs", "Micrographs"')
    done_without_fault(session)
    assert rows_of(session.output / "particles.star") == before
    shutil.copy(session.folder / "Micrographs" / "mic_0001.mrc", other / "mic_0009.mrc")
    assert "waiting: Micrographs_2/mic_0009: waits for c" in once(session).stdout


@pytest.mark.case(25)
def test_a_session_moved_as_a_whole_has_nothing_to_do_twice(session: Session) -> None:
    done_without_fault(session)
    before = rows_of(session.output / "particles.star")
    moved = Session(session.folder.rename(session.folder.with_name("elsewhere")))
    done_without_fault(moved)
    assert rows_of(moved.output / "particles.star") == before


def test_other_coordinates_take_the_place_of_those_not_watched_any_more(session: Session) -> None:
    done_without_fault(session)
    picks = session.folder / "Coordinates"
    shutil.copytree(picks, session.folder / "Better")
    table = session.folder / "Better" / "mic_0002_autopick.star"
    rows = table.read_text().splitlines()
    last = max(index for index, line in enumerate(rows) if line.strip())
    table.write_text("\n".join(rows[:last]) + "\n")
    count = len(read_table(session.output / "particles.star")[1])
    session.edit('"Coordinates"', '"Better"')
    done = once(session)
    assert "3 micrographs done, 0 waiting" in done.stdout, done.stdout
    assert len(read_table(session.output / "particles.star")[1]) == count - 1
    check_invariants(session.output)


def test_a_corrected_ctf_table_takes_the_place_of_the_wrong_one(session: Session) -> None:
    table = session.folder / "micrographs_ctf.star"
    lines = table.read_text().splitlines(keepends=True)
    wrong = session.folder / "wrong.star"
    wrong.write_text("".join(line for line in lines if "mic_0003" not in line))
    session.edit('"micrographs_ctf.star"', '"wrong.star"')
    assert "2 micrographs done, 1 waiting" in once(session).stdout
    session.edit('"wrong.star"', '"micrographs_ctf.star"')
    done_without_fault(session)


def test_corrected_suffixes_hold_for_what_is_there(session: Session) -> None:
    for path in sorted((session.folder / "Coordinates").glob("*_autopick.star")):
        path.rename(path.with_name(path.name.replace("_autopick", "_mine")))
    assert "0 micrographs done, 3 waiting" in once(session).stdout
    session.append('[matching]\nsuffixes = ["_mine"]\n')
    done_without_fault(session)


@pytest.mark.parametrize("how", ["dots", "link", "inside", "around"])
def test_an_output_in_a_watched_folder_is_refused_however_it_is_written(session: Session, how: str) -> None:
    (session.folder / "link").symlink_to("Micrographs")
    output = {
        "dots": "Coordinates/../Micrographs/out",
        "link": "link/out",
        "inside": "Micrographs/out",
        "around": "../session",
    }[how]
    for verb in ("once", "check"):
        refused = session.call(verb, "--set", f"session.output={output}")
        assert refused.returncode == 2
        assert "watched folders are never written to" in refused.stderr


@pytest.mark.parametrize(
    ("watch", "words"),
    [
        ('["Micrographs", "Coordinates/../Micrographs"]', "is watched twice"),
        ('[".", "Micrographs"]', "lies inside"),
    ],
)
def test_folders_watched_twice_are_refused(session: Session, watch: str, words: str) -> None:
    refused = once(session, f"session.watch={watch}", "session.output=../out")
    assert refused.returncode == 2
    assert words in refused.stderr


def test_watching_the_folder_around_is_refused_when_it_would_double_everything(session: Session) -> None:
    (session.folder / "all").mkdir()
    (session.folder / "Micrographs").rename(session.folder / "all" / "Micrographs")
    session.edit('"Micrographs"', '"all/Micrographs"')
    done_without_fault(session)
    session.edit('"all/Micrographs"', '"all"')
    refused = once(session)
    assert refused.returncode == 2
    assert "would come in again under other names" in refused.stderr
    session.edit('"all"', '"all/Micrographs"')
    done_without_fault(session)


def test_a_folder_called_as_a_kind_of_file_has_a_label_of_its_own(session: Session) -> None:
    """A watched folder called as a kind of file must not be taken for that kind's pattern."""
    (session.folder / "Micrographs").rename(session.folder / "ctf")
    session.edit('"Micrographs"', '"ctf"')
    table = session.folder / "micrographs_ctf.star"
    table.write_text(table.read_text().replace("Micrographs/", "ctf/"))
    done_without_fault(session)
    config = load(session.config)
    plugins = load_plugins(environ={})
    engine = Engine(config, plugins, resolve(config, plugins), once=True, executor=InlineExecutor)
    assert [source.label for source in engine.sources] == ["ctf", "ctf_2", "Coordinates"]
    engine.run()


# --- tables that need another file -----------------------------------------------------------------------------------


def on_image(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The centres whose boxes of 48 px lie wholly inside the simulated micrographs of 320 px."""
    return xy[((xy >= 23.5) & (xy < 320 - 24 + 0.5)).all(axis=1)]


def test_a_cryosparc_table_waits_for_its_passthrough_file(session: Session) -> None:
    """It was written by another job, and may come at any later time."""
    coordinates = session.folder / "Coordinates"
    picks = coordinates / "mic_0001_autopick.star"
    xy = starfile.read(picks)[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy(float)
    picks.unlink()
    main = np.zeros(len(xy), [("uid", "<u8"), ("blob/path", "S40"), ("blob/idx", "<u4")])
    further = np.zeros(
        len(xy),
        [
            ("uid", "<u8"),
            ("location/micrograph_path", "S40"),
            ("location/micrograph_shape", "<u4", (2,)),
            ("location/center_x_frac", "<f8"),
            ("location/center_y_frac", "<f8"),
        ],
    )
    main["uid"] = further["uid"] = np.arange(1, len(xy) + 1)
    further["location/micrograph_path"] = b"J1/imported/mic_0001.mrc"
    further["location/micrograph_shape"] = (320, 320)
    further["location/center_x_frac"], further["location/center_y_frac"] = xy[:, 0] / 320, 1 - xy[:, 1] / 320
    with (coordinates / "picked_particles.cs").open("wb") as file:
        np.save(file, main)
    for _ in range(2):
        told = once(session)
        assert told.returncode == 0
        assert "2 micrographs done, 1 waiting, 0 failed" in told.stdout
        assert "waiting: Coordinates/picked_particles" in told.stdout
        assert "no passthrough file of its folder gives them to all rows" in told.stdout
    with (coordinates / "picked_particles_passthrough.cs").open("wb") as file:
        np.save(file, further)
    done_without_fault(session)
    rows = read_table(session.output / "coordinates" / "particles.star")[1]
    mine = rows[rows["rlnMicrographName"].str.endswith("mic_0001.mrc")]
    np.testing.assert_allclose(mine[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy(), on_image(xy), atol=2e-6)


def cs_files(session: Session) -> Callable[[float], Path]:
    """Picks of all three micrographs as a cryoSPARC table without places, and a passthrough file with them."""
    coordinates = session.folder / "Coordinates"
    for path in coordinates.glob("*.star"):
        path.unlink()
    main = np.zeros(3, [("uid", "<u8"), ("blob/path", "S40"), ("blob/idx", "<u4")])
    main["uid"] = [1, 2, 3]
    with (coordinates / "picked.cs").open("wb") as file:
        np.save(file, main)

    def pass_through(x: float) -> Path:
        rows = np.zeros(
            3,
            [
                ("uid", "<u8"),
                ("location/micrograph_path", "S40"),
                ("location/micrograph_shape", "<u4", (2,)),
                ("location/center_x_frac", "<f4"),
                ("location/center_y_frac", "<f4"),
            ],
        )
        rows["uid"] = [3, 1, 2]
        rows["location/micrograph_path"] = [f"mic_000{number}.mrc" for number in (3, 1, 2)]
        rows["location/micrograph_shape"] = (320, 320)
        rows["location/center_x_frac"], rows["location/center_y_frac"] = x, 0.5
        path = coordinates / "picked_passthrough.cs"
        with path.open("wb") as file:
            np.save(file, rows)
        return path

    return pass_through


def places_of(session: Session) -> set[float]:
    return set(read_table(session.output / "coordinates" / "particles.star")[1]["rlnCoordinateX"])


def test_a_passthrough_file_that_is_rewritten_is_read_again(session: Session) -> None:
    pass_through = cs_files(session)
    pass_through(0.25)
    done_without_fault(session)
    assert places_of(session) == {80.0}
    pass_through(0.5)
    done_without_fault(session)
    assert places_of(session) == {160.0}


def test_a_passthrough_file_that_goes_makes_new_micrographs_wait_until_it_is_back(session: Session) -> None:
    late = session.folder / "Micrographs" / "mic_0003.mrc"
    data = late.read_bytes()
    late.unlink()
    path = cs_files(session)(0.25)
    assert "2 micrographs done" in once(session).stdout
    kept = path.read_bytes()
    path.unlink()
    late.write_bytes(data)
    told = once(session)
    assert "2 micrographs done, 1 waiting, 0 failed" in told.stdout, told.stdout
    path.write_bytes(kept)
    done_without_fault(session)
    assert places_of(session) == {80.0}


def test_a_passthrough_file_that_was_away_and_is_back_is_read_again(session: Session) -> None:
    """Its size, times and inode are as they were, so nothing arrives."""
    path = cs_files(session)(0.25)
    done_without_fault(session)
    path.rename(session.folder / "away.cs")
    table = session.folder / "Coordinates" / "picked.cs"
    table.write_bytes(table.read_bytes())  # read anew, without it
    assert "waiting: Coordinates/picked" in once(session).stdout
    (session.folder / "away.cs").rename(path)
    done_without_fault(session)
    assert places_of(session) == {80.0}


class Mine:
    """Coordinates in a format of somebody's own, whole when its last line says so."""

    def __init__(self) -> None:
        self.asked = 0

    @hookimpl
    def missing_part(self, path: Path) -> str | None:
        if path.suffix != ".mine":
            return None
        self.asked += 1
        return "" if path.read_text().endswith("end\n") else "its last line"

    @hookimpl
    def classify_path(self, path: Path) -> str | None:
        return "coordinates" if path.suffix == ".mine" else None

    @hookimpl
    def read_item(self, item: Item) -> list[Entry] | None:
        if item.path.suffix != ".mine":
            return None
        xy = np.array([line.split() for line in item.path.read_text().splitlines()[:-1]], dtype=float)
        return [Entry(None, str(xy.tolist()), Coordinates(xy))]


def test_a_third_party_says_when_a_file_of_its_format_is_whole(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    picks = session.folder / "Coordinates" / "mic_0001_autopick.star"
    xy = starfile.read(picks)[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy(float)
    picks.unlink()
    table = session.folder / "Coordinates" / "mic_0001.mine"
    mine = Mine()

    def with_mine(**options: Any) -> Plugins:
        plugins = load_plugins(environ={}, **options)
        plugins.manager.register(mine)
        return plugins

    monkeypatch.setattr(workers, "load_plugins", with_mine)

    def run() -> Snapshot:
        config = load(session.config, ["session.device=cpu"])
        plugins = with_mine()
        return Engine(config, plugins, resolve(config, plugins), once=True, executor=InlineExecutor).run()

    text = "".join(f"{x} {y}\n" for x, y in xy)
    table.write_text(text)
    last = run()
    assert last.jobs["done"] == 2
    assert [row["reason"] for row in last.failures] == ["its last line"]
    table.write_text(text + "end\n")
    last = run()
    assert last.jobs["done"] == 3
    assert not last.failures
    assert mine.asked == 2
    rows = read_table(session.output / "coordinates" / "particles.star")[1]
    assert (rows["rlnMicrographName"] == "Micrographs/mic_0001.mrc").sum() == len(on_image(xy))


def test_a_plugin_that_fails_at_telling_what_is_missing_costs_the_file_alone(session: Session) -> None:
    class Bad:
        @hookimpl
        def missing_part(self, path: Path) -> str | None:
            if path.name.startswith("mic_0002"):
                raise ZeroDivisionError("by nothing")
            return None

    config = load(session.config, ["session.device=cpu"])
    plugins = load_plugins(environ={})
    plugins.manager.register(Bad())
    last = Engine(config, plugins, resolve(config, plugins), once=True, executor=InlineExecutor).run()
    assert last.jobs == {"done": 2}
    assert {row["reason"] for row in last.failures} == {
        "a plugin failed in missing_part: ZeroDivisionError: by nothing"
    }


def test_of_a_table_that_grows_only_the_micrographs_with_new_rows_are_processed_again(session: Session) -> None:
    picks = {
        path.name.removesuffix("_autopick.star"): starfile.read(path)[["rlnCoordinateX", "rlnCoordinateY"]]
        for path in sorted((session.folder / "Coordinates").glob("*.star"))
    }
    for path in (session.folder / "Coordinates").glob("*.star"):
        path.unlink()
    table = session.folder / "Coordinates" / "all.star"

    def write(counts: dict[str, int]) -> None:
        rows = [
            f"Micrographs/{name}.mrc {x} {y}"
            for name, count in counts.items()
            for x, y in picks[name].to_numpy()[:count].tolist()
        ]
        names = "_rlnMicrographName\n_rlnCoordinateX\n_rlnCoordinateY\n"
        table.write_text(f"data_\nloop_\n{names}" + "\n".join(rows) + "\n")

    def stacks() -> set[str]:
        return {path.name for path in (session.output / "particles").rglob("*.mrcs")}

    write({"mic_0001": 6})
    assert "1 micrograph done, 2 waiting" in once(session).stdout
    write({"mic_0001": 6, "mic_0003": 4})
    assert "2 micrographs done, 1 waiting" in once(session).stdout
    write({"mic_0003": 6, "mic_0002": 5, "mic_0001": 6})  # in another order, too
    done_without_fault(session)
    assert stacks() == {"mic_0001.mrcs", "mic_0002.mrcs", "mic_0003.mrcs", "mic_0003~2.mrcs"}
    rows = read_table(session.output / "coordinates" / "particles.star")[1]
    assert len(rows) == sum(
        len(on_image(picks[name].to_numpy()[:count]))
        for name, count in (("mic_0001", 6), ("mic_0002", 5), ("mic_0003", 6))
    )
