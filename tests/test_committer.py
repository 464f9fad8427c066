"""The commit protocol: at whatever step it ends, what is published is complete, and the job can be committed again."""

from __future__ import annotations

import errno
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import starfile

from streamprep import committer, journal
from streamprep.committer import STATE_FOLDER, Committer, Result
from streamprep.config import Config
from streamprep.hookspecs import ItemResult, Sink, Staged, StagedRows
from streamprep.ledger import JOURNAL, EntryRow, JobRow, Ledger, LedgerError, SourceRow
from streamprep.model import Coordinates, Identity, Item, Micrograph, Optics, OutputError, Particles
from streamprep.sinks import _files
from streamprep.sinks.coordinates import CoordinateSink
from streamprep.sinks.particles import ParticleSink
from tests.outputs import read_table

BOX = 8
PUBLISH = 2.0
PARTICLES = "particles.star"
COORDINATES = "coordinates/particles.star"
ALL_TABLES = sorted([COORDINATES, PARTICLES, "particles.xmd", "particles.cs"])
OF_ROWS = (".star", ".pos", ".box", ".xmd", ".cs")


class Crash(BaseException):
    """The process ends here."""


@dataclass
class Work:
    """What a worker hands over."""

    job: JobRow
    staged: list[Staged]
    folder: Path


class Rig:
    """An output folder with a real ledger and the real sinks; opening it is what a daemon does at its start."""

    def __init__(self, folder: Path, *, fast: bool = False) -> None:
        self.config = Config.model_validate(
            {
                "session": {"watch": ["Micrographs"]},
                "extract": {},
                "sets": {"further_tables": ["xmd", "cs"]},
                "file": folder / "streamprep.toml",
            }
        )
        self.output = folder / "streamprep_out"
        (self.output / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
        self.sinks: list[Sink] = [CoordinateSink(self.config), ParticleSink(self.config)]
        self.now = 0.0
        self.stamp = 0
        self.ledger = Ledger(self.output / STATE_FOLDER / "ledger.sqlite")
        self.ledger.require({"coordinates": "coordinates"})
        if fast:
            self.ledger._db.execute("PRAGMA synchronous = OFF")
        self.committer = Committer(
            self.output, self.ledger, self.sinks, publish_seconds=PUBLISH, clock=lambda: self.now
        )

    def start(self) -> list[str]:
        said = self.committer.recover()
        self.ledger.start_run(0.0, "test")
        self.ledger.put_source(
            SourceRow("Micrographs", "", self.output.parent / "Micrographs", "../Micrographs", "1:1")
        )
        self.ledger.join_all()
        return said

    def arrive(self, name: str, digest: str) -> None:
        """A micrograph, where it is new, and coordinates of it."""
        micrograph = Identity(100, 1, 1, 1)
        file = self.ledger.notice("Micrographs", f"{name}.mrc", micrograph, "micrograph", 0.0)
        if file is not None:
            self.ledger.item_found(file)
        identity = Identity(len(digest), zlib.crc32(digest.encode()), 1, 1)
        table = self.ledger.notice("Coordinates", f"{name}.star", identity, "coordinates", 0.0)
        assert table is not None
        self.ledger.table_read(table.id, [EntryRow("coordinates", f"{name}.mrc", digest, 1)])

    def claim(self) -> JobRow:
        (job,) = self.ledger.claim(1)
        return job

    def stage(self, job: JobRow, count: int = 3, *, score: bool = False, pixel_size: float = 1.5) -> Work:
        """What the operations make of an item: boxes whose pixels say of which item and generation they are."""
        value = 1000.0 * job.id + job.generation
        xy = np.arange(2.0 * count).reshape(count, 2) + 10 * job.generation
        columns = {"rlnAutopickFigureOfMerit": np.array(["0.5"] * count, object)} if score else {}
        coordinates = Coordinates(xy, box_size_px=BOX, columns=columns)
        optics = Optics(pixel_size)
        pixels = np.full((count, BOX, BOX), value, np.float32)
        name = f"Micrographs/{job.file.path}"
        result = ItemResult(
            Item("micrograph", job.item, Path(name)),
            job.generation,
            Micrograph(name, np.zeros((64, 64), np.float32), optics),
            {"particle": coordinates},
            {"particle": Particles(pixels, optics, coordinates)},
        )
        folder = self.committer.staging / str(job.id)
        folder.mkdir(parents=True, exist_ok=True)
        return Work(job, [sink.stage(result, folder) for sink in self.sinks], folder)

    def commit(self, *works: Work) -> None:
        """Commit works together; raises the fault of the first that has one."""
        for fault in self.commit_each(*works):
            if fault is not None:
                raise fault

    def commit_each(self, *works: Work) -> list[LedgerError | OSError | None]:
        return self.committer.commit([Result(work.job, work.staged, work.folder, seconds=0.1) for work in works])

    def process(self, name: str, count: int = 3, *, digest: str = "1", **options: Any) -> Work:
        """All that happens to one item."""
        self.arrive(name, digest)
        work = self.stage(self.claim(), count, **options)
        self.commit(work)
        return work

    def visible(self) -> dict[str, bytes]:
        """Every file that a user may see, hidden ones too, and its bytes."""
        return {
            path.relative_to(self.output).as_posix(): path.read_bytes()
            for path in sorted(self.output.rglob("*"))
            if path.is_file() and STATE_FOLDER not in path.parts
        }

    def orphans(self) -> list[str]:
        return sorted(path.name for path in self.committer.orphans.glob("*"))

    def count(self, table: str = PARTICLES) -> int:
        """Rows of a published table, read by another program; every one of them names pixels of its own item."""
        _, rows = read_table(self.output / table)
        if "rlnImageName" in rows:
            for name, micrograph in zip(rows["rlnImageName"], rows["rlnMicrographName"], strict=True):
                number, _, stack = name.partition("@")
                assert Path(stack).stem.split("_g")[0] == Path(micrograph).stem
                with mrcfile.open(self.output / stack) as file:
                    assert int(number) <= len(file.data.reshape(-1, BOX, BOX))
        return len(rows)

    def check_logs(self) -> None:
        """Row logs hold what is committed and not a byte more."""
        lengths = self.ledger.lengths()
        for path in (self.output / STATE_FOLDER / "rows").glob("*"):
            table = next(
                (name for name in (*self.committer._tables, JOURNAL) if self.committer.rows_path(name) == path),
                "no such table",
            )
            assert path.stat().st_size == lengths.get(table, 0), f"{path.name}"

    def close(self) -> None:
        self.ledger.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    made.start()
    yield made
    made.close()


def again(rig: Rig) -> Rig:
    """The same output folder, as the next daemon finds it."""
    rig.close()
    return Rig(rig.output.parent)


# --- committing and publishing ---------------------------------------------------------------------------------------


def test_a_commit_is_published_as_a_table_that_other_programs_read(rig: Rig) -> None:
    work = rig.process("mic_1")
    rig.process("mic_2", 5)
    assert rig.committer.row_counts() == {PARTICLES: 8, COORDINATES: 8}  # no noise, so no word of it
    assert sorted(rig.committer.publish()) == ALL_TABLES
    assert (rig.count(), rig.count(COORDINATES)) == (8, 8)
    optics, rows = read_table(rig.output / PARTICLES)
    assert optics is not None
    assert list(optics["rlnImagePixelSize"]) == [1.5]
    assert list(rows["rlnImageName"][:2]) == [
        "000001@particles/Micrographs/mic_1.mrcs",
        "000002@particles/Micrographs/mic_1.mrcs",
    ]
    assert list(rows["rlnCoordinateY"][:3]) == [11.0, 13.0, 15.0]
    assert mrcfile.read(rig.output / "particles/Micrographs/mic_1.mrcs").shape == (3, BOX, BOX)
    pos = (rig.output / "coordinates/pos/Micrographs/mic_1.pos").read_text()
    assert pos.endswith("1 10 11\n1 12 13\n1 14 15\n")
    assert not list(work.folder.glob("*.mrcs")), "the staged file was moved, not copied"
    rig.check_logs()


def test_a_set_that_had_rows_once_is_counted_and_before_any_the_main_ones(rig: Rig) -> None:
    assert rig.committer.row_counts() == {COORDINATES: 0, PARTICLES: 0}
    rig.process("mic_1")
    rig.process("mic_1", 0, digest="2")
    assert rig.committer.row_counts() == {COORDINATES: 0, PARTICLES: 0}
    assert set(rig.ledger.versions()) >= {COORDINATES, PARTICLES}


def test_a_table_is_published_when_it_grew_by_a_tenth_or_after_some_time(rig: Rig) -> None:
    publish = rig.committer.publish
    rig.process("mic_0", 100)
    assert PARTICLES in publish(), "the first rows at once"
    assert publish() == []
    assert publish(force=True) == [], "nothing changed"

    rig.process("mic_1", 9)
    assert publish() == [], "less than a tenth, and no time has passed"
    assert rig.count() == 100
    rig.now += 0.99 * PUBLISH
    assert publish() == []
    rig.now += 0.01 * PUBLISH
    assert PARTICLES in publish()
    assert rig.count() == 109

    rig.process("mic_2", 11)
    assert PARTICLES in publish(), "a tenth more: at once"
    assert rig.count() == 120
    rig.process("mic_3", 1)
    assert PARTICLES in publish(force=True)
    assert rig.count() == 121


def test_publishing_takes_a_twentieth_of_the_time_at_most(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _files.replace_whole

    def slow(*args: Any, **options: Any) -> None:
        real(*args, **options)
        rig.now += 1.0

    monkeypatch.setattr(_files, "replace_whole", slow)
    rig.process("mic_0")
    rig.committer.publish()
    rig.process("mic_1", 100)
    rig.now += 14.0
    assert PARTICLES not in rig.committer.publish(), "it took a second: not again within twenty"
    rig.now += 10.0
    assert PARTICLES in rig.committer.publish()


@pytest.mark.case(12)
def test_a_published_table_that_was_taken_away_comes_back(rig: Rig) -> None:
    rig.process("mic_0")
    rig.committer.publish()
    (rig.output / PARTICLES).unlink()
    rig.now += PUBLISH
    assert rig.committer.publish() == [PARTICLES]
    assert rig.count() == 3


def test_readers_see_the_old_table_or_the_new_one_at_every_moment(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.process("mic_0", 40)
    rig.committer.publish()
    rig.process("mic_1", 40, score=True)
    seen: list[int] = []

    def look() -> None:
        found = starfile.read(rig.output / PARTICLES, always_dict=True)["particles"]
        assert found["rlnImageName"].iloc[-1].startswith("000040@particles/")
        seen.append(len(found))

    watch_steps(monkeypatch, look)
    assert PARTICLES in rig.committer.publish()
    assert set(seen) == {40, 80}
    assert seen == sorted(seen)


@pytest.mark.case(22)
def test_rows_of_an_older_generation_vanish_from_the_next_publication(rig: Rig) -> None:
    rig.process("mic_0", 20)
    rig.process("mic_1", 20)
    rig.committer.publish()
    rig.arrive("mic_0", "other")
    job = rig.claim()
    assert job.generation == 2
    assert rig.count() == 40, "until then they stay"
    rig.commit(rig.stage(job, 2))
    assert rig.committer.row_counts()[PARTICLES] == 22
    rig.now += PUBLISH
    assert PARTICLES in rig.committer.publish()
    _, rows = read_table(rig.output / PARTICLES)
    stacks = rows["rlnImageName"].str.partition("@")[2].value_counts().to_dict()
    assert stacks == {"particles/Micrographs/mic_1.mrcs": 20, "particles/Micrographs/mic_0~2.mrcs": 2}
    assert rig.count(COORDINATES) == 22
    pos = (rig.output / "coordinates/pos/Micrographs/mic_0.pos").read_text()
    assert pos.endswith("1 20 21\n1 22 23\n")
    assert (rig.output / "particles/Micrographs/mic_0.mrcs").exists(), "who opened the older table can still read"


def test_a_table_whose_rows_are_all_superseded_by_none_is_empty_and_parses(rig: Rig) -> None:
    rig.process("mic_0", 4)
    rig.committer.publish()
    rig.arrive("mic_0", "other")
    rig.commit(rig.stage(rig.claim(), 0))
    rig.committer.publish(force=True)
    assert rig.count() == 0
    assert rig.count(COORDINATES) == 0
    assert "rlnImageName" in read_table(rig.output / PARTICLES)[1].columns


def test_blocks_with_other_columns_are_adapted(rig: Rig) -> None:
    rig.process("mic_0", 2)
    rig.committer.publish()
    assert "rlnAutopickFigureOfMerit" not in read_table(rig.output / PARTICLES)[1].columns
    rig.process("mic_1", 2, score=True)
    rig.process("mic_2", 2)
    rig.committer.publish(force=True)
    for table in (PARTICLES, COORDINATES):
        _, rows = read_table(rig.output / table)
        assert list(rows["rlnAutopickFigureOfMerit"]) == [0, 0, 0.5, 0.5, 0, 0]
        assert list(rows["rlnCoordinateX"]) == [10.0, 12.0] * 3
        assert list(rows["rlnMicrographName"]) == [f"Micrographs/mic_{number}.mrc" for number in (0, 0, 1, 1, 2, 2)]


def test_optics_groups_are_numbered_as_they_come_and_stay_so(rig: Rig) -> None:
    for number, pixel_size in enumerate([1.5, 0.1 + 0.2, 1.5, 2.0]):
        rig.process(f"mic_{number}", 1, pixel_size=pixel_size)
    rig = again(rig)
    rig.start()
    rig.process("mic_4", 1, pixel_size=0.1 + 0.2)
    rig.committer.publish(force=True)
    optics, rows = read_table(rig.output / PARTICLES)
    assert optics is not None
    assert list(rows["rlnOpticsGroup"]) == [1, 2, 1, 3, 2]
    assert list(optics["rlnOpticsGroup"]) == [1, 2, 3]
    assert list(optics["rlnOpticsGroupName"]) == ["opticsGroup1", "opticsGroup2", "opticsGroup3"]
    np.testing.assert_allclose(optics["rlnImagePixelSize"], [1.5, 0.3, 2.0])
    rig.close()


# --- what cannot be committed ----------------------------------------------------------------------------------------


def damage(work: Work, **changes: Any) -> Work:
    """The work, with its particle rows changed."""
    staged = [
        replace(part, rows=tuple(replace(rows, **changes) if rows.table == PARTICLES else rows for rows in part.rows))
        for part in work.staged
    ]
    return replace(work, staged=staged)


def refused(rig: Rig, work: Work, message: str) -> None:
    """The commit is refused as a fault of the job, and nothing of it is left."""
    before, lengths = rig.visible(), rig.ledger.lengths()
    with pytest.raises(LedgerError, match=message):
        rig.commit(work)
    assert rig.visible() == before
    assert rig.ledger.lengths() == lengths
    assert rig.ledger.is_claimed(work.job.id)


def test_rows_that_do_not_fit_are_refused_before_anything_is_placed(rig: Rig) -> None:
    rig.process("mic_0")
    rig.arrive("mic_1", "1")
    work = rig.stage(rig.claim())
    columns = work.staged[1].rows[0].columns
    refused(rig, damage(work, count=4), "columns of .3. values, not 4")
    refused(rig, damage(work, columns={**columns, "rlnCoordinateX": [1.0]}), "columns of .1, 3. values, not 3")
    refused(rig, damage(work, columns={**columns, "rlnCoordinateX": [object()] * 3}), "cannot be written: TypeError")
    refused(rig, damage(work, optics={"rlnImagePixelSize": object()}), "cannot be written: TypeError")
    refused(rig, damage(work, table="other.star"), "cannot be written: KeyError")
    rig.commit(work)
    rig.check_logs()


def test_a_staged_file_that_is_gone_or_cut_is_refused(rig: Rig) -> None:
    rig.arrive("mic_0", "1")
    work = rig.stage(rig.claim())
    staged = work.folder / work.staged[1].files[0].staged
    data = staged.read_bytes()
    staged.write_bytes(data[:-1])
    refused(rig, work, "its manifest says")
    staged.unlink()
    refused(rig, work, "is gone")
    staged.write_bytes(data)
    rig.commit(work)


def test_a_job_that_was_superseded_is_refused(rig: Rig) -> None:
    rig.arrive("mic_0", "1")
    work = rig.stage(rig.claim())
    rig.arrive("mic_0", "other")
    with pytest.raises(LedgerError, match="no longer claimed"):
        rig.commit(work)
    assert rig.visible() == {}


def test_a_second_generation_cannot_be_taken_for_another_item(rig: Rig) -> None:
    rig.process("mic~2")
    rig.process("mic")
    rig.arrive("mic", "other")
    rig.commit(rig.stage(rig.claim()))
    stacks = [path.name for path in (rig.output / "particles/Micrographs").iterdir()]
    assert len(set(stacks)) == 3
    assert "mic~2.mrcs" in stacks
    assert rig.orphans() == []


# --- several together ------------------------------------------------------------------------------------------------


def arrived(rig: Rig, count: int, first: int = 0, **options: Any) -> list[Work]:
    """What the operations make of some new items."""
    for number in range(first, first + count):
        rig.arrive(f"mic_{number}", "1")
    return [rig.stage(job, 2, **options) for job in rig.ledger.claim(count)]


def test_several_are_committed_as_if_one_after_the_other(tmp_path: Path) -> None:
    shots = []
    for name, size in (("together", 5), ("apart", 1)):
        rig = Rig(tmp_path / name)
        rig.start()
        works = arrived(rig, 5)
        works[3] = rig.stage(works[3].job, 2, pixel_size=2.5, score=True)
        for at in range(0, 5, size):
            rig.commit(*works[at : at + size])
        rig.committer.publish(force=True)
        assert rig.count() == 10
        rig.check_logs()
        shots.append((rig.visible(), list(rig.ledger.live_blocks(PARTICLES)), rig.ledger.lengths()[PARTICLES]))
        rig = again(rig)
        assert rig.start() == []
        rig.close()
    assert shots[0] == shots[1]


def test_several_cost_as_many_syncs_and_transactions_as_one(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.process("mic_0")
    works, calls = arrived(rig, 7, first=1), list[str]()

    def count(name: str) -> None:
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda descriptor: (calls.append(name), real(descriptor))[1])

    count("fsync")
    count("fdatasync")
    costs = []
    for batch in (works[:1], works[1:]):
        calls.clear()
        changes = rig.ledger.changes
        rig.commit(*batch)
        costs.append((sorted(calls), rig.ledger.changes - changes))
    assert costs[0] == costs[1]
    logs = len(list((rig.output / STATE_FOLDER / "rows").iterdir()))
    assert costs[0] == (["fdatasync"] * logs + ["fsync"], 1)


def test_what_cannot_be_committed_fails_alone(rig: Rig) -> None:
    rig.process("mic_0")
    works = arrived(rig, 7, first=1)
    works[0] = rig.stage(works[0].job, 2, pixel_size=2.5)
    works[1] = damage(rig.stage(works[1].job, 2, pixel_size=3.5), count=4)  # the group that it would begin is none
    rig.arrive("mic_3", "other")
    (works[3].folder / works[3].staged[1].files[0].staged).unlink()
    for index, name in ((4, "mic_0"), (5, "mic_1")):  # as of a committed item, and as of the first of this batch
        taken = replace(works[index].staged[1].files[0], final=f"particles/Micrographs/{name}.mrcs")
        works[index].staged[1] = replace(works[index].staged[1], files=(taken,))
    works[6] = rig.stage(works[6].job, 2, pixel_size=4.5)
    faults = rig.commit_each(*works)
    wanted = [None, "values, not 4", "no longer claimed", "is gone", "is taken", "is taken", None]
    for fault, said in zip(faults, wanted, strict=True):
        assert fault is None if said is None else said in str(fault)
    for work, fault in zip(works, faults, strict=True):
        assert rig.ledger.is_claimed(work.job.id) == (fault is not None and "claimed" not in str(fault))
    rig.committer.publish(force=True)
    assert rig.count() == 3 + 2 + 2
    optics, rows = read_table(rig.output / PARTICLES)
    assert optics is not None
    assert list(optics["rlnImagePixelSize"]) == [1.5, 2.5, 4.5]
    assert list(rows["rlnOpticsGroup"]) == [1, 1, 1, 2, 2, 3, 3]
    rig.check_logs()
    names = {path.name for path in (rig.output / "particles/Micrographs").iterdir()}
    assert names == {"mic_0.mrcs", "mic_1.mrcs", "mic_7.mrcs"}
    rig = again(rig)
    assert rig.start() == []
    rig.close()


def test_names_that_cannot_be_cost_their_own_job(rig: Rig) -> None:
    works = arrived(rig, 3)
    long = replace(works[1].staged[1].files[0], final=f"particles/Micrographs/{'x' * 300}.mrcs")
    works[1].staged[1] = replace(works[1].staged[1], files=(works[1].staged[1].files[0], long))
    faults = rig.commit_each(*works)
    assert [fault and fault.errno for fault in faults if not isinstance(fault, LedgerError)] == [
        None,
        errno.ENAMETOOLONG,
        None,
    ]
    assert rig.orphans() == ["mic_1.mrcs"], "its other file is not left in sight"
    rig.committer.publish(force=True)
    assert rig.count() == 4


def test_a_row_log_that_cannot_be_costs_those_that_have_rows_in_it(rig: Rig) -> None:
    noise = rig.committer.rows_path("noise.star")
    noise.mkdir(parents=True)
    works = arrived(rig, 3)
    rows = [replace(rows, table="noise.star") for rows in works[1].staged[1].rows[:1]]
    works[1].staged[1] = replace(works[1].staged[1], rows=tuple(rows))
    faults = rig.commit_each(*works)
    assert isinstance(faults[1], IsADirectoryError)
    assert (faults[0], faults[2]) == (None, None)
    noise.rmdir()
    rig.committer.publish(force=True)
    assert rig.count() == 4
    assert rig.count(COORDINATES) == 4
    rig.check_logs()


@pytest.mark.case(5, 7)
def test_a_failure_at_any_step_of_several_leaves_nothing_and_the_next_try_commits_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one more that came meanwhile."""
    fuse = Fuse(full)
    watch_steps(monkeypatch, fuse.step)
    wanted: dict[str, bytes] = {}
    for steps in (-1, *range(0, 1000, 3)):
        rig = Rig(tmp_path / f"failing_{steps}", fast=True)
        rig.start()
        rig.process("mic_0")
        works = arrived(rig, 4, first=1)
        fuse.left, fuse.once = steps, steps % 2 == 0
        try:
            rig.commit(*works[:3])
        except OSError:
            fuse.left = -1
            assert rig.ledger.job_counts() == {"done": 1, "claimed": 4}
            assert rig.committer.row_counts()[PARTICLES] == 3
            rig.commit(*works)
            failed = True
        else:
            failed, fuse.left = False, -1
            rig.commit(works[3])
        rig.committer.publish(force=True)
        rig.check_logs()
        wanted = wanted or rig.visible()
        assert rig.visible() == wanted, f"step {steps}"
        assert rig.orphans() == []
        rig.close()
        shutil.rmtree(rig.output)
        if not failed and steps > 60:  # what comes last, files of single items, is made up for later
            break
    assert 60 < steps < 1000


@pytest.mark.parametrize("size", [1, 3])
def test_a_crash_between_the_log_of_commits_and_the_ledger_is_no_older_ledger(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    rig.process("mic_0")
    works = arrived(rig, size, first=1)

    def crash(*_: Any, **__: Any) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "commit", crash)
        with pytest.raises(Crash):
            rig.commit(*works)
    rig = again(rig)
    assert len(rig.committer.later_commits()) == size
    assert len(rig.start()) > 0
    rig.commit(*(rig.stage(job, 2) for job in rig.ledger.claim(size)))
    rig.committer.publish(force=True)
    assert rig.count() == 3 + 2 * size
    rig.close()


@pytest.mark.parametrize("former", [False, True], ids=["with batches", "of a former version"])
@pytest.mark.parametrize(("batches", "refused"), [((1,), False), ((3,), False), ((1, 1), True), ((2, 1), True)])
def test_a_ledger_is_older_when_more_than_one_batch_came_after_it(
    rig: Rig, batches: Sequence[int], refused: bool, former: bool
) -> None:
    rig.process("mic_0")
    rig.close()
    path = rig.output / STATE_FOLDER / "ledger.sqlite"
    before = path.read_bytes()
    rig = again(rig)
    rig.start()
    for number, size in enumerate(batches):
        rig.commit(*arrived(rig, size, first=10 * (number + 1)))
    journal_path = rig.committer.rows_path(JOURNAL)
    rig.close()
    if former:  # which wrote a line for each commit alone
        lines = [replace(line.commit, batch=None) for line in journal.read(journal_path) if line is not None]
        journal_path.write_bytes(b"".join(map(journal.line_of, lines)))
    path.write_bytes(before)
    rig = again(rig)
    if refused or (former and sum(batches) > 1):
        with pytest.raises(LedgerError, match=f"older than the rest: {sum(batches)} commits"):
            rig.start()
    else:
        assert rig.start() != []
    rig.close()


# --- full disks and failing syncs ------------------------------------------------------------------------------------


def full(*args: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_then_full() -> Callable[[int, bytes, int], int]:
    """A write that takes half of the bytes, and then none."""
    real, calls = os.pwrite, 0

    def write(descriptor: int, data: bytes, at: int) -> int:
        nonlocal calls
        calls += 1
        return full() if calls > 1 else real(descriptor, data[: len(data) // 2], at)

    return write


FULL: list[tuple[Any, str, Callable[[], Any]]] = [
    (os, "pwrite", half_then_full),
    (os, "pwrite", lambda: full),
    (os, "fdatasync", lambda: full),
    (_files, "append", lambda: full),
    (_files, "make_folder", lambda: full),
    (_files, "fsync_folder", lambda: full),
    (_files, "place", lambda: full),
    (Ledger, "commit", lambda: full),
]


@pytest.mark.case(5, 6)
@pytest.mark.parametrize(("owner", "name", "make"), FULL, ids=[f"{at}-{case[1]}" for at, case in enumerate(FULL)])
def test_a_full_disk_leaves_nothing_and_the_same_commit_succeeds_later(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, make: Callable[[], Any]
) -> None:
    rig.process("mic_0")
    rig.committer.publish()
    published = {name: data for name, data in rig.visible().items() if name.endswith(OF_ROWS)}
    lengths = rig.ledger.lengths()
    rig.arrive("new/mic_1", "1")
    work = rig.stage(rig.claim())
    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, make())
            with pytest.raises(OSError, match="No space left"):
                rig.commit(work)
        assert rig.ledger.lengths() == lengths
        assert rig.ledger.is_claimed(work.job.id)
        assert rig.committer.row_counts()[PARTICLES] == 3
        rig.committer.publish(force=True)
        assert {name: data for name, data in rig.visible().items() if name.endswith(OF_ROWS)} == published
    rig.commit(work)
    rig.committer.publish(force=True)
    assert rig.count() == 6
    assert rig.orphans() == []
    rig.check_logs()


@pytest.mark.case(5)
def test_a_full_disk_while_publishing_keeps_the_older_table(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.process("mic_0")
    rig.committer.publish()
    rig.process("mic_1")
    before = rig.visible()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            rig.committer.publish()
    assert rig.visible() == before, "and no half of a new one takes the space"
    assert PARTICLES in rig.committer.publish()
    assert rig.count() == 6


@pytest.mark.case(5)
def test_a_pos_file_that_could_not_be_written_is_written_later(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.arrive("mic_0", "1")
    work = rig.stage(rig.claim())
    with monkeypatch.context() as patched:
        patched.setattr(_files, "replace_whole", full)
        rig.commit(work)  # the transaction is through: the job is done, whatever becomes of derived files
        assert rig.ledger.job_counts() == {"done": 1}
        assert rig.committer.row_counts()[PARTICLES] == 3
        with pytest.raises(OSError, match="No space left"):
            rig.committer.publish()
    assert sorted(rig.committer.publish()) == ALL_TABLES
    assert (rig.output / "coordinates/pos/Micrographs/mic_0.pos").exists()


def test_the_files_of_an_item_go_with_its_last_rows(rig: Rig) -> None:
    rig.process("mic_0")
    rig.process("mic_1")
    rig.committer.publish()
    pos = rig.output / "coordinates/pos/Micrographs/mic_0.pos"
    before = pos.read_bytes()
    rig.process("mic_0", 2, digest="2")
    rig.committer.publish()
    assert pos.read_bytes() != before
    rig.arrive("mic_0", "3")
    rig.ledger.job_failed(rig.claim().id, "empty", final=True, now=0.0, state="rejected")
    rig.committer.publish()
    assert not pos.exists()
    assert pos.with_name("mic_1.pos").exists()
    rig.process("mic_0", digest="4")
    rig.committer.publish()
    assert pos.read_bytes()


@pytest.mark.case(7)
def test_names_are_made_durable_again_when_it_failed_the_first_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever sync of a folder fails: once the commit succeeds, each folder was synced after it got its last name."""
    synced: dict[str, list[str]] = {}
    real = _files.fsync_folder
    fail_at = 0
    calls = 0

    def sync(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path)
        synced[str(path)] = sorted(child.name for child in path.iterdir())

    monkeypatch.setattr(_files, "fsync_folder", sync)
    tries = 0
    for number in range(1, 100):
        rig.arrive(f"square_{number}/mic", "1")
        work = rig.stage(rig.claim())
        calls, fail_at = 0, number
        if number == 1:
            shutil.rmtree(rig.output / STATE_FOLDER / "rows", ignore_errors=True)
        try:
            rig.commit(work)
        except OSError:
            tries += 1
            calls, fail_at = 0, 0
            rig.commit(work)
        else:
            break
        folder = rig.output / "particles" / "Micrographs" / f"square_{number}"
        for path in (folder, folder.parent, folder.parent.parent, rig.output / STATE_FOLDER / "rows"):
            assert synced[str(path)] == sorted(child.name for child in path.iterdir()), f"{path.name} after {number}"
    assert tries >= 2


# --- recovery --------------------------------------------------------------------------------------------------------


def test_recovery_of_an_output_in_order_does_nothing_and_may_be_repeated(rig: Rig) -> None:
    for number in range(3):
        rig.process(f"mic_{number}")
    rig.committer.publish(force=True)
    before = rig.visible()
    for _ in range(3):
        rig = again(rig)
        assert rig.start() == []
        assert rig.visible() == before
        assert rig.committer.row_counts()[PARTICLES] == 9
    rig.close()


def test_recovery_publishes_what_was_committed_and_not_yet_published(rig: Rig) -> None:
    rig.process("mic_0")
    rig.committer.publish()
    rig.process("mic_1")  # and here the process ends, with nothing left to be done after it
    rig = again(rig)
    rig.start()
    assert rig.count() == 6
    assert rig.count(COORDINATES) == 6
    rig.close()


def test_recovery_moves_unknown_files_away_and_cuts_tails(rig: Rig) -> None:
    rig.process("mic_0")
    rig.committer.publish()
    before = rig.visible()
    for folder in ("particles/Micrographs", "noise/deep/er"):
        (rig.output / folder).mkdir(parents=True, exist_ok=True)
        (rig.output / folder / "mic_9.mrcs").write_bytes(b"half a stack")
    for table in (PARTICLES, "noise.star"):  # one that has rows, one that never had
        with rig.committer.rows_path(table).open("ab") as file:
            file.write(b"torn row")
    (rig.committer.staging / "left over").mkdir(parents=True)
    rig = again(rig)
    said = rig.start()
    assert rig.visible() == before
    assert sorted(rig.orphans()) == ["mic_9.1.mrcs", "mic_9.mrcs"]
    assert list(rig.committer.staging.iterdir()) == []
    rig.check_logs()
    assert len(said) == 4
    assert sum("particles/Micrographs/mic_9.mrcs, which no commit knows" in line for line in said) == 1
    assert sum("cut 8 uncommitted bytes" in line for line in said) == 2
    rig = again(rig)
    assert rig.start() == []
    rig.close()


def test_recovery_restores_pos_files(rig: Rig) -> None:
    for number in range(3):
        rig.process(f"mic_{number}", 2)
    before = rig.visible()
    folder = rig.output / "coordinates/pos/Micrographs"
    (folder / "mic_0.pos").unlink()
    (folder / "mic_1.pos").write_bytes(b"")
    text = (folder / "mic_2.pos").read_text()
    (folder / "mic_2.pos").write_text(text.replace("1 12 13", "1 92 93"))  # of an older generation, as long as this one
    rig = again(rig)
    rig.start()
    assert {name: data for name, data in rig.visible().items() if name in before} == before
    rig.close()


def test_many_files_of_items_are_compared_between_other_work_and_all_at_the_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "COMPARED_AT_ONCE", 2)
    for number in range(7):
        rig.process(f"mic_{number}", 2)
    rig.committer.publish(force=True)
    before = rig.visible()
    files = sorted((rig.output / "coordinates/pos/Micrographs").iterdir())

    def spoil() -> Rig:
        for path in files:
            path.write_bytes(path.read_bytes().swapcase())
        made = again(rig)
        made.start()
        return made

    def whole() -> int:
        return sum(path.read_bytes() == before[path.relative_to(rig.output).as_posix()] for path in files)

    rig = spoil()
    assert [path.name for path in files if path.read_bytes() == before[f"coordinates/pos/Micrographs/{path.name}"]] == [
        "mic_5.pos",
        "mic_6.pos",
    ], "those that a crash may have spoilt, at once"
    rounds = []
    while whole() < 7:
        rig.committer.publish()
        rounds.append(whole())
        assert len(rounds) < 20
    assert len(rounds) > 2
    rig = spoil()
    rig.committer.publish(force=True)
    assert rig.visible() == before
    rig.close()


def test_a_table_that_is_as_it_was_published_is_not_made_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.process("mic_0")
    rig.committer.publish(force=True)
    path = rig.output / PARTICLES
    data, made = path.read_bytes(), path.stat().st_ino

    def restart() -> bool:
        """Whether the table was made again; in any case it is right."""
        nonlocal rig, made
        rig = again(rig)
        rig.start()
        rig.committer.publish()
        assert path.read_bytes() == data
        before, made = made, path.stat().st_ino
        return made != before

    (path.with_name("keep")).write_bytes(b"")  # so that inode numbers are not used again at once
    assert not restart()
    assert not restart()
    os.link(path, path.with_name("former"))
    path.unlink()
    assert restart(), "taken away"
    stamp = path.stat()
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"9")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    os.link(path, path.with_name("altered"))
    assert restart(), "altered"
    os.link(path, path.with_name("by another version"))
    monkeypatch.setattr(committer, "__version__", "another")
    assert restart(), "another version may write it in another way"
    rig.close()


def test_a_table_of_an_earlier_state_is_made_again_at_the_start(rig: Rig) -> None:
    rig.process("mic_0")
    rig.committer.publish(force=True)
    rig.process("mic_1")
    rig = again(rig)
    rig.start()
    assert rig.count() == 6
    rig.close()


@pytest.mark.case(12)
def test_lost_rows_are_told(rig: Rig) -> None:
    rig.process("mic_0")
    path = rig.committer.rows_path(PARTICLES)
    committed = path.stat().st_size
    os.truncate(path, committed - 1)
    rig = again(rig)
    with pytest.raises(LedgerError) as caught:
        rig.committer.recover()
    said = str(caught.value)
    assert f"holds {committed - 1} of {committed} committed bytes" in said
    assert "committed bytes of the rows of particles.star" in said
    path.unlink()
    with pytest.raises(LedgerError, match=f"holds 0 of {committed}"):
        rig.committer.recover()
    rig.close()


@pytest.mark.case(12)
@pytest.mark.parametrize("what", ["missing", "shorter"])
def test_lost_stacks_are_told(rig: Rig, what: str) -> None:
    for number in range(2):
        rig.process(f"mic_{number}")
    stack = rig.output / "particles/Micrographs/mic_1.mrcs"
    data = stack.read_bytes()
    stack.unlink() if what == "missing" else stack.write_bytes(data[:-1])
    rig = again(rig)
    with pytest.raises(LedgerError) as caught:
        rig.committer.recover()
    assert "is missing or has another size than" in str(caught.value)
    assert "particles/Micrographs/mic_1.mrcs" in str(caught.value)
    stack.write_bytes(data)
    assert rig.start() == []
    rig.close()


@pytest.mark.case(12)
def test_rows_that_are_lost_while_it_runs_are_not_made_up(rig: Rig) -> None:
    rig.process("mic_0")
    os.truncate(rig.committer.rows_path(PARTICLES), 10)
    rig.arrive("mic_1", "1")
    work = rig.stage(rig.claim())
    with pytest.raises(OutputError, match="shorter than the ledger says"):
        rig.commit(work)
    assert rig.committer.rows_path(PARTICLES).stat().st_size == 10
    assert rig.ledger.is_claimed(work.job.id)


# --- a crash at every step -------------------------------------------------------------------------------------------

STEPS: Sequence[tuple[Any, str]] = [
    *((_files, name) for name in ("place", "append", "replace_whole", "make_folder", "fsync_folder", "move_aside")),
    *((_files, name) for name in ("truncate", "clear_folder")),
    *((os, name) for name in ("pwrite", "fdatasync", "fsync", "ftruncate")),
    *((Path, name) for name in ("rename", "replace", "mkdir")),
    (Ledger, "commit"),
]


def watch_steps(monkeypatch: pytest.MonkeyPatch, step: Callable[[], None]) -> None:
    """Call ``step`` before and after everything that changes the disk, and in the midst of each write.

    Syncs are left out: the process ends, the machine does not.
    """

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            step()
            if name == "pwrite":
                descriptor, data, at = args
                half = real(descriptor, data[: len(data) // 2], at)
                step()
                made = half + real(descriptor, data[half:], at + half)
                step()
                return made
            made = None if name in ("fsync", "fdatasync") else real(*args, **options)
            step()
            return made

        monkeypatch.setattr(owner, name, watched)

    for owner, name in STEPS:
        watch(owner, name)


def crash() -> None:
    raise Crash


class Fuse:
    """Ends the process, or does something else, at a given step and, unless it is for ``once``, at all later ones."""

    def __init__(self, burn: Callable[[], Any] = crash) -> None:
        self.left = -1
        self.once = False
        self._burn = burn

    def step(self) -> None:
        if self.left == 0:
            self.left -= self.once
            self._burn()
        self.left -= 1


def begin(folder: Path) -> Rig:
    """A session in which one item is done; then another one arrives, and the first one changes."""
    rig = Rig(folder, fast=True)
    rig.start()
    rig.process("mic_0", 3)
    rig.committer.publish()
    rig.arrive("mic_1", "1")
    rig.arrive("mic_0", "other")
    return rig


def go_on(rig: Rig, shots: list[dict[str, bytes]] | None = None, *, together: int = 1) -> None:
    """Do the work that is left, with a publication after each commit."""
    while jobs := rig.ledger.claim(together):
        rig.commit(*(rig.stage(job, 2, score=job.generation > 1) for job in jobs))
        rig.committer.publish(force=True)
        if shots is not None:
            shots.append(rig.visible())


@pytest.fixture
def unharmed(tmp_path: Path) -> list[dict[str, bytes]]:
    """What is visible after none, one and two of the commits, where nothing goes wrong."""
    rig = begin(tmp_path / "unharmed")
    shots = [rig.visible()]
    go_on(rig, shots)
    rig.close()
    assert len(shots) == 3
    return shots


def crashed_at(template: Path, folder: Path, fuse: Fuse, steps: int, together: int = 1) -> bool:
    """Go on with a copy of a session until a step; whether there was such a step."""
    shutil.copytree(template, folder)
    rig = Rig(folder, fast=True)
    rig.start()
    fuse.left = steps
    try:
        go_on(rig, together=together)
    except Crash:
        return True
    finally:
        fuse.left = -1
        rig.close()
    return False


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A session to crash copies of."""
    begin(tmp_path / "template").close()
    return tmp_path / "template"


@pytest.mark.parametrize("together", [1, 2])
def test_a_crash_at_any_step_leaves_all_or_nothing_and_the_work_can_go_on(
    tmp_path: Path, template: Path, unharmed: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    fuse = Fuse()
    watch_steps(monkeypatch, fuse.step)
    steps, done_at = 0, []
    while crashed_at(template, tmp_path / f"crash_{steps}", fuse, steps, together):
        rig = Rig(tmp_path / f"crash_{steps}", fast=True)
        rig.start()
        done = 2 - rig.ledger.job_counts().get("ready", 0)
        done_at.append(done)
        assert rig.visible() == unharmed[done], f"step {steps}: not as if {done} commits had been"
        rig.check_logs()
        go_on(rig)
        assert rig.visible() == unharmed[2], f"step {steps}: the work did not go on"
        rig.check_logs()
        rig.close()
        steps += 1 if together == 1 else 5
        assert steps < 1000
    assert done_at == sorted(done_at)
    assert set(done_at) == set(range(0, 3, together))


@pytest.mark.case(3)
def test_crashes_in_recovery_over_and_over_do_no_harm(
    tmp_path: Path, template: Path, unharmed: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse = Fuse()
    watch_steps(monkeypatch, fuse.step)
    recoveries = 0
    for steps in range(3, 1000, 16):
        folder = tmp_path / f"crash_{steps}"
        if not crashed_at(template, folder, fuse, steps):
            break
        for deeper in range(1000):  # each recovery comes one step further than the one before
            rig = Rig(folder, fast=True)
            fuse.left = deeper
            try:
                rig.start()
            except Crash:
                recoveries += 1
                rig.close()
                continue
            finally:
                fuse.left = -1
            break
        done = 2 - rig.ledger.job_counts().get("ready", 0)
        assert rig.visible() == unharmed[done]
        rig.check_logs()
        go_on(rig)
        assert rig.visible() == unharmed[2]
        rig.close()
    assert recoveries > 50


def test_rows_with_a_name_that_is_not_utf_8_are_written_as_text(rig: Rig) -> None:
    rig.arrive("mic_0", "1")
    work = rig.stage(rig.claim(), 1)
    rows = work.staged[1].rows[0]
    name = os.fsdecode(b"Micrographs/mic_\xff.mrc")
    hostile = damage(work, columns={**rows.columns, "rlnMicrographName": [name]})
    assert isinstance(rows, StagedRows)
    rig.commit(hostile)
    rig.committer.publish()
    assert list(read_table(rig.output / PARTICLES)[1]["rlnMicrographName"]) == ["Micrographs/mic_\\udcff.mrc"]
