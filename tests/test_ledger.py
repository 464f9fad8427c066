"""The ledger: every order of arrival gives the same jobs, and each item is in one state, whatever happens when."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamprep import ledger as ledger_module
from streamprep.ledger import Block, EntryRow, FileRow, JobRow, Ledger, LedgerError, Shard
from streamprep.model import Identity, Kind
from streamprep.naming import DEFAULT_SUFFIXES

NOW = 1_700_000_000.0
HOSTILE = ["new\nline", "<img src=x onerror=alert(1)>", os.fsdecode(b"bytes_\xff\xfe"), "quote'\"; DROP TABLE files;"]


class Rig:
    """A ledger, and words for what arrives."""

    def __init__(self, path: Path, required: Sequence[Kind] = ("coordinates",), *, remote: bool = False) -> None:
        self.path = path
        self.required = required
        self.ledger = Ledger(path, remote=remote, suffixes=DEFAULT_SUFFIXES)
        self.ledger.require({kind: kind for kind in required})
        self.fast = False
        self.stamp = 0

    def identity(self, size: int = 100) -> Identity:
        """One that never was before."""
        self.stamp += 1
        return Identity(size, self.stamp, self.stamp, 1)

    def notice(self, path: str, kind: Kind, source: str, problem: str | None = None) -> FileRow:
        file = self.ledger.notice(source, path, self.identity(), kind, NOW + self.stamp, problem)
        assert file is not None
        return file

    def micrograph(self, path: str, source: str = "Micrographs") -> FileRow:
        file = self.notice(path, "micrograph", source)
        self.ledger.item_found(file)
        return file

    def table(self, path: str, rows: dict[str, str], kind: Kind = "coordinates", source: str = "Coordinates") -> None:
        """A table that says something (a digest) of each micrograph."""
        file = self.notice(path, kind, source)
        self.ledger.table_read(file.id, [EntryRow(kind, name, digest, 1) for name, digest in rows.items()])

    def mask(self, path: str) -> None:
        self.ledger.mask_found(self.notice(path, "mask", "mask"))

    def claim(self, limit: int = 100) -> list[JobRow]:
        return self.ledger.claim(limit)

    def commit(self, job: JobRow, text: str = "", *, shard: str | None = None) -> None:
        """Commit one block of rows and one stack."""
        start = self.ledger.length("particles.star")
        name = shard or f"particles/{job.item}_{job.generation}.mrcs"
        block = Block(
            "particles.star", start, len(text) + 1, len(text) + 1, ("rlnImageName",), zlib.crc32(text.encode())
        )
        self.ledger.commit(job, [Shard(name, 10, 7)], [block], seconds=0.1, now=NOW)

    def jobs(self) -> dict[str, list[tuple[str, str, str]]]:
        """What is ready to be made, of which inputs."""
        rows = self.rows("SELECT item, inputs FROM jobs WHERE state = 'ready'")
        assert len({row[0] for row in rows}) == len(rows), "two jobs of one item"
        return {
            item: sorted((kind, path, digest) for kind, _, path, _, digest, _ in json.loads(inputs))
            for item, inputs in rows
        }

    def waiting(self) -> dict[str, str]:
        return {item.partition(" (")[0]: reason for item, reason, _ in self.ledger.waiting()}

    def live_items(self) -> list[str]:
        return sorted(block.item for block in self.ledger.live_blocks("particles.star"))

    def rows(self, query: str, *values: Any) -> list[Any]:
        return self.ledger._db.execute(query, values).fetchall()

    def hurry(self) -> None:
        """Leave the fsyncs out: for tests of logic that make thousands of transactions."""
        self.fast = True
        self.rows("PRAGMA synchronous = OFF")

    def reopen(self) -> None:
        """As a daemon does that is started again."""
        self.ledger.close()
        self.ledger = Ledger(self.path, suffixes=DEFAULT_SUFFIXES)
        self.ledger.require({kind: kind for kind in self.required})
        if self.fast:
            self.hurry()
        self.ledger.start_run(NOW, "test")
        self.ledger.join_all()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "ledger.sqlite")
    yield made
    made.ledger.close()


def ready(rig: Rig, *numbers: int) -> None:
    """Micrographs with coordinates of their own."""
    for number in numbers:
        rig.micrograph(f"mic_{number}.mrc")
        rig.table(f"mic_{number}.star", {f"mic_{number}.star": f"digest {number}"})


def test_what_is_done_belongs_to_the_table_that_says_so_by_now(rig: Rig) -> None:
    rig.micrograph("a.mrc")
    rig.table("one.star", {"a.mrc": "1"})
    (job,) = rig.claim()
    rig.commit(job, "rows of a")
    rig.table("two.star", {"a.mrc": "1"})
    (before,) = rig.rows("SELECT origin, inputs FROM jobs")
    rig.table("one.star", {})
    ((origin, inputs),) = rig.rows("SELECT origin, inputs FROM jobs")  # not made anew
    assert origin != before[0]
    assert [made[2] for made in json.loads(inputs)] == ["two.star"]
    rig.ledger.join_all()
    assert rig.claim() == []
    assert rig.live_items() == ["Micrographs/a"]


# --- generations -----------------------------------------------------------------------------------------------------


def test_a_generation_is_a_change_of_size_time_or_inode(rig: Rig) -> None:
    ledger = rig.ledger
    first = Identity(size=100, mtime_ns=5, ctime_ns=5, inode=1)
    noticed = ledger.notice("Micrographs", "a/mic.mrc", first, "micrograph", NOW)
    assert noticed is not None
    assert (noticed.generation, noticed.item, noticed.path) == (1, "Micrographs/a/mic", "a/mic.mrc")
    assert not ledger.is_known("Micrographs", "mic.mrc", first)
    assert not ledger.is_known("Elsewhere", "a/mic.mrc", first)

    touched = first._replace(ctime_ns=9)  # chmod, or a hard link
    assert ledger.is_known("Micrographs", "a/mic.mrc", touched)
    assert ledger.notice("Micrographs", "a/mic.mrc", touched, "micrograph", NOW) is None

    generations = []
    for changed in (first._replace(mtime_ns=6), first._replace(size=101), first._replace(inode=2), first):
        assert not ledger.is_known("Micrographs", "a/mic.mrc", changed)
        file = ledger.notice("Micrographs", "a/mic.mrc", changed, "micrograph", NOW)
        assert file is not None
        generations.append(file.generation)
        assert ledger.is_known("Micrographs", "a/mic.mrc", changed)
    assert generations == [2, 3, 4, 5]
    assert ledger.file_counts() == {("micrograph", "ready"): 1, ("micrograph", "superseded"): 4}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["notice", "ignore", "remove"]), st.integers(0, 11), st.integers(1, 3)), max_size=40
    ),
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 13), st.integers(1, 3)), max_size=30),
)
def test_many_files_are_known_as_each_by_itself(
    monkeypatch: pytest.MonkeyPatch,
    happened: list[tuple[str, int, int]],
    at_once: int,
    asked: list[tuple[int, int]],
) -> None:
    names = [f"{'sub/' * (number % 3)}mic_{number}.mrc" for number in range(11)] + HOSTILE
    monkeypatch.setattr(ledger_module, "ASKED_AT_ONCE", at_once)
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder) / "ledger.sqlite")
        rig.ledger._db.execute("PRAGMA synchronous = OFF")
        there: dict[str, Identity] = {}
        for action, number, stamp in happened:
            name, identity = names[number], Identity(100, stamp, 0, 1)
            newest = rig.ledger.newest("Micrographs", name)
            if action == "notice":
                rig.ledger.notice("Micrographs", name, identity, "micrograph", NOW)
                there[name] = identity
            elif action == "ignore":
                rig.ledger.ignore("Micrographs", name, identity, NOW)
                there[name] = identity
            elif newest is not None:
                rig.ledger.file_gone(newest.id)
                there.pop(name, None)
        files = {names[number]: Identity(100, stamp, 7, 1) for number, stamp in asked}
        expected = {name for name, found in files.items() if there.get(name, found)[:2] == found[:2] and name in there}
        assert rig.ledger.known("Micrographs", files) == expected
        assert {name for name, found in files.items() if rig.ledger.is_known("Micrographs", name, found)} == expected
        assert rig.ledger.known("Elsewhere", files) == set()
        rig.ledger.close()


def test_what_is_known_survives_a_restart(rig: Rig) -> None:
    identity = rig.identity()
    rig.ledger.notice("Micrographs", "mic.mrc", identity, "micrograph", NOW)
    rig.ledger.ignore("Micrographs", "notes.txt", identity, NOW)
    rig.reopen()
    assert rig.ledger.is_known("Micrographs", "mic.mrc", identity)
    assert rig.ledger.is_known("Micrographs", "notes.txt", identity)


def test_a_file_with_a_problem_is_failed_and_a_new_generation_is_not(rig: Rig) -> None:
    rig.table("mic.star", {"mic.star": "1"})
    rig.notice("mic.mrc", "micrograph", "Micrographs", problem="truncated")
    assert rig.claim() == []
    (failure,) = rig.ledger.failures()
    assert (failure["item"], failure["state"], failure["reason"]) == ("Micrographs/mic", "failed", "truncated")
    rig.micrograph("mic.mrc")
    assert [job.item for job in rig.claim()] == ["Micrographs/mic"]
    assert rig.ledger.failures() == []


def test_two_files_that_would_be_one_item_are_told(rig: Rig) -> None:
    rig.micrograph("mic.mrc")
    second = rig.ledger.notice("Micrographs", "mic.MRC", rig.identity(), "micrograph", NOW)
    assert second is not None
    rig.table("mic.star", {"mic.star": "1"})
    assert [job.file.path for job in rig.claim()] == ["mic.mrc"]
    (failure,) = rig.ledger.failures()
    assert "has the same name as mic.mrc" in failure["reason"]


@pytest.mark.case(23)
def test_a_micrograph_that_changes_while_it_is_worked_on_supersedes_the_job(rig: Rig) -> None:
    ready(rig, 1)
    (old,) = rig.claim()
    rig.micrograph("mic_1.mrc")
    assert not rig.ledger.is_claimed(old.id)
    with pytest.raises(LedgerError, match="no longer claimed"):
        rig.commit(old)
    assert rig.live_items() == []
    (new,) = rig.claim()
    assert (new.generation, new.file.generation) == (2, 2)


# --- joins -----------------------------------------------------------------------------------------------------------

Arrivals = list[tuple[str, ...]]

PLAIN: Arrivals = [
    *(("micrograph", f"mic_{number}_DW.mrc") for number in range(3)),
    *(("coordinates", f"mic_{number}_DW_autopick.star") for number in range(3)),
    ("ctf", "micrographs_ctf.star", *(f"Micrographs/mic_{number}.mrc" for number in range(4))),
    *(("mask", f"masks/mic_{number}_mask.mrc") for number in range(2)),
]

FOLDERS: Arrivals = [
    ("micrograph", "grid_a/mic.mrc"),
    ("micrograph", "grid_b/mic.mrc"),
    ("coordinates", "grid_a/mic_autopick.star"),  # its folder says which
    ("coordinates", "all.star", "MotionCorr/grid_b/mic.mrc"),
    ("ctf", "ctf.star", "grid_a/mic.mrc", "grid_b/mic.mrc"),
    ("mask", "grid_a/mic.mrc"),
    ("mask", "grid_b/mic.mrc"),
]

AMBIGUOUS: Arrivals = [
    ("micrograph", "grid_a/mic.mrc"),
    ("micrograph", "grid_b/mic.mrc"),
    ("micrograph", "other.mrc"),
    ("micrograph", "other_DW.mrc"),
    ("coordinates", "mic.star"),  # of which of the two?
    ("coordinates", "other_DW_topaz.star"),
    ("coordinates", "picks/other_DW_autopick.star"),  # a second one
    ("coordinates", "other.star"),
]


def arrive(rig: Rig, arrival: tuple[str, ...]) -> None:
    kind, path, *names = arrival
    if kind == "micrograph":
        rig.micrograph(path)
    elif kind == "mask":
        rig.mask(path)
    else:
        said = {name: f"{kind} of {name}" for name in names or [Path(path).name]}
        rig.table(path, said, "ctf" if kind == "ctf" else "coordinates")


def joined(
    arrivals: Arrivals, required: Sequence[Kind]
) -> tuple[dict[str, Any], dict[str, Any], list[tuple[str, str]]]:
    """Jobs without the digests of masks, items that wait, entries without a micrograph."""
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder, "ledger.sqlite"), required)
        rig.hurry()
        for arrival in arrivals:
            arrive(rig, arrival)
        jobs = {
            item: [(kind, path, "" if kind == "mask" else digest) for kind, path, digest in inputs]
            for item, inputs in rig.jobs().items()
        }
        made = jobs, rig.waiting(), sorted(rig.ledger.unmatched())
        rig.ledger.close()
        return made


@pytest.mark.case(26)
@settings(max_examples=40)
@given(st.permutations(PLAIN))
def test_any_order_of_arrival_gives_the_same_jobs(arrivals: Arrivals) -> None:
    jobs, waiting, unmatched = joined(arrivals, ("coordinates", "ctf", "mask"))
    assert jobs == {
        f"Micrographs/mic_{number}_DW": [
            ("coordinates", f"mic_{number}_DW_autopick.star", f"coordinates of mic_{number}_DW_autopick.star"),
            ("ctf", "micrographs_ctf.star", f"ctf of Micrographs/mic_{number}.mrc"),
            ("mask", f"masks/mic_{number}_mask.mrc", ""),
        ]
        for number in range(2)
    }
    assert waiting == {"Micrographs/mic_2_DW": "waits for mask"}
    assert unmatched == [("ctf", "Micrographs/mic_3.mrc")]


@settings(max_examples=25)
@given(st.permutations(FOLDERS))
def test_one_stem_in_two_folders_is_told_apart_by_the_folders_in_any_order(arrivals: Arrivals) -> None:
    jobs, waiting, _ = joined(arrivals, ("coordinates", "ctf", "mask"))
    assert waiting == {}
    assert {item: [path for _, path, _ in inputs] for item, inputs in jobs.items()} == {
        "Micrographs/grid_a/mic": ["grid_a/mic_autopick.star", "ctf.star", "grid_a/mic.mrc"],
        "Micrographs/grid_b/mic": ["all.star", "ctf.star", "grid_b/mic.mrc"],
    }


@settings(max_examples=25)
@given(st.permutations(AMBIGUOUS))
def test_what_is_ambiguous_waits_and_names_the_candidates_in_any_order(arrivals: Arrivals) -> None:
    jobs, waiting, _ = joined(arrivals, ("coordinates",))
    assert {item: [path for _, path, _ in inputs] for item, inputs in jobs.items()} == {
        "Micrographs/other": ["other.star"]
    }
    assert set(waiting) == {"Micrographs/grid_a/mic", "Micrographs/grid_b/mic", "Micrographs/other_DW"}
    for item in ("Micrographs/grid_a/mic", "Micrographs/grid_b/mic"):
        assert waiting[item].startswith("mic.star could belong to ")
        assert "Micrographs/grid_a/mic.mrc" in waiting[item]
        assert "Micrographs/grid_b/mic.mrc" in waiting[item]
    assert "has several coordinates files" in waiting["Micrographs/other_DW"]
    for path in ("Coordinates/other_DW_topaz.star", "Coordinates/picks/other_DW_autopick.star"):
        assert path in waiting["Micrographs/other_DW"]


def test_waiting_says_for_what_and_since_when(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "ledger.sqlite", ("coordinates", "ctf"))
    file = rig.micrograph("mic.mrc")
    assert rig.ledger.waiting() == [("Micrographs/mic", "waits for coordinates; waits for ctf", NOW + 1)]
    assert rig.ledger.oldest("ready") == NOW + 1
    rig.table("ctf.star", {"mic.mrc": "1"}, "ctf")
    assert rig.waiting() == {"Micrographs/mic": "waits for coordinates"}
    rig.table("mic.star", {"mic.star": "1"})
    assert rig.waiting() == {}
    assert rig.ledger.oldest("ready") is None
    assert rig.ledger.oldest("queued") == NOW + 1, "it is not done yet"
    (job,) = rig.claim()
    assert job.file.id == file.id
    rig.commit(job)
    assert rig.ledger.oldest("queued") is None
    rig.ledger.close()


def test_a_table_for_many_makes_new_jobs_only_where_its_rows_changed(rig: Rig) -> None:
    for number in range(4):
        rig.micrograph(f"mic_{number}.mrc")
    said = {f"mic_{number}.mrc": "first" for number in range(3)}
    rig.table("all.star", said)
    for job in rig.claim():
        rig.commit(job)
    assert rig.waiting() == {"Micrographs/mic_3": "waits for coordinates"}

    rig.table("all.star", said)
    assert rig.jobs() == {}, "rewritten, and says the same"
    rig.table("all.star", {**said, "mic_1.mrc": "second", "mic_3.mrc": "first"})
    assert rig.jobs() == {
        "Micrographs/mic_1": [("coordinates", "all.star", "second")],
        "Micrographs/mic_3": [("coordinates", "all.star", "first")],
    }


def test_a_job_whose_input_is_withdrawn_waits_again(rig: Rig) -> None:
    rig.micrograph("mic_1.mrc")
    rig.micrograph("mic_2.mrc")
    rig.table("all.star", {"mic_1.mrc": "first", "mic_2.mrc": "first"})
    claimed = {job.item: job for job in rig.claim(1)}
    assert list(claimed) == ["Micrographs/mic_1"]
    rig.table("all.star", {})
    assert rig.jobs() == {}
    assert set(rig.waiting()) == {"Micrographs/mic_1", "Micrographs/mic_2"}
    assert not rig.ledger.is_claimed(claimed["Micrographs/mic_1"].id)
    rig.table("all.star", {"mic_1.mrc": "first", "mic_2.mrc": "second"})
    # the first is the same job as before, which came to nothing; the second is of other coordinates
    assert [(job.item, job.generation) for job in rig.claim()] == [("Micrographs/mic_1", 1), ("Micrographs/mic_2", 2)]


def test_what_a_table_said_before_it_was_broken_holds_no_longer(rig: Rig) -> None:
    ready(rig, 1)
    rig.commit(rig.claim()[0])
    rig.micrograph("mic_2.mrc")
    rig.table("all.star", {"mic_2.mrc": "same", "mic_3.mrc": "same"})
    broken = rig.notice("all.star", "coordinates", "Coordinates")
    rig.ledger.file_failed(broken.id, "torn", final=False)
    assert set(rig.jobs()) == {"Micrographs/mic_2"}
    rig.ledger.file_failed(broken.id, "torn", final=True)
    rig.micrograph("mic_3.mrc")
    assert rig.jobs() == {}
    assert set(rig.waiting()) == {"Micrographs/mic_2", "Micrographs/mic_3"}
    rig.table("all.star", {"mic_2.mrc": "same", "mic_3.mrc": "same"})
    assert set(rig.jobs()) == {"Micrographs/mic_2", "Micrographs/mic_3"}, "without a retry"
    assert rig.live_items() == ["Micrographs/mic_1"]


def test_inputs_that_change_back_and_forth_leave_one_job(rig: Rig) -> None:
    ready(rig, 1)
    (job,) = rig.claim()
    rig.commit(job)
    for digest in ("other", "digest 1", "other", "digest 1"):
        rig.table("mic_1.star", {"mic_1.star": digest})
    assert rig.jobs() == {"Micrographs/mic_1": [("coordinates", "mic_1.star", "digest 1")]}
    assert rig.live_items() == ["Micrographs/mic_1"]


def test_a_result_of_an_older_generation_of_a_table_is_passed_over(rig: Rig) -> None:
    rig.micrograph("mic.mrc")
    older = rig.notice("mic.star", "coordinates", "Coordinates")
    newer = rig.notice("mic.star", "coordinates", "Coordinates")
    assert [table.id for table in rig.ledger.waiting_tables(5)] == [newer.id]
    rig.ledger.table_read(newer.id, [EntryRow("coordinates", "mic.star", "new", 1)])
    rig.ledger.table_read(older.id, [EntryRow("coordinates", "mic.star", "old", 1)])
    assert rig.jobs() == {"Micrographs/mic": [("coordinates", "mic.star", "new")]}


def test_a_table_turns_out_to_be_what_it_holds(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "ledger.sqlite", ("coordinates", "ctf"))
    rig.micrograph("mic.mrc")
    rig.table("mic.star", {"mic.star": "1"})
    table = rig.notice("ctf.star", "coordinates", "Micrographs")
    rig.ledger.table_read(table.id, [EntryRow("ctf", "mic.mrc", "2", 1)])
    assert [kind for kind, _, _ in rig.jobs()["Micrographs/mic"]] == ["coordinates", "ctf"]
    assert rig.ledger.file_counts()[("ctf", "done")] == 1
    rig.ledger.close()


def test_what_is_not_needed_does_not_hold_anything_up(rig: Rig) -> None:
    rig.micrograph("grid_a/mic.mrc")
    rig.table("grid_a/mic.star", {"mic.star": "1"})
    rig.table("ctf.star", {"mic.mrc": "1"}, "ctf")  # no active operation needs the CTF
    rig.micrograph("grid_b/mic.mrc")
    rig.table("grid_b/mic.star", {"mic.star": "1"})
    assert set(rig.jobs()) == {"Micrographs/grid_a/mic", "Micrographs/grid_b/mic"}


@pytest.mark.parametrize("first", ["micrograph", "table"])
def test_a_micrograph_that_was_refused_gets_no_job_in_any_order(rig: Rig, first: str) -> None:
    def refused() -> None:
        file = rig.notice("mic.mrc", "micrograph", "Micrographs")
        rig.ledger.file_failed(file.id, "no operation for micrographs is active", final=True, state="rejected")

    if first == "micrograph":
        refused()
    rig.table("mic.star", {"mic.star": "1"})
    if first == "table":
        refused()
    rig.ledger.join_all()
    assert rig.claim() == []
    assert rig.ledger.file_counts()[("micrograph", "rejected")] == 1


# --- what is taken away, moved, or matched in another way ------------------------------------------------------------


def finish(rig: Rig) -> None:
    for job in rig.claim():
        rig.commit(job)


LATE: Arrivals = [
    ("micrograph", "mic_DW.mrc"),
    ("micrograph", "mic.mrc"),
    ("coordinates", "mic_autopick.star"),
    ("coordinates", "mic_DW.star"),
    ("coordinates", "other.star", "mic_2.mrc"),
    ("micrograph", "mic_2_DW.mrc"),
    ("micrograph", "mic_2.mrc"),
]


@settings(max_examples=60)
@given(st.permutations(LATE), st.integers(0, 127))
def test_a_better_match_that_comes_late_takes_over_what_was_done_without_it(arrivals: Arrivals, pauses: int) -> None:
    """Whether work is done between the arrivals or after them all, the sets hold the same in the end."""
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder, "ledger.sqlite"))
        rig.hurry()
        for number, arrival in enumerate(arrivals):
            arrive(rig, arrival)
            if pauses >> number & 1:
                finish(rig)
        finish(rig)
        assert rig.live_items() == ["Micrographs/mic", "Micrographs/mic_2", "Micrographs/mic_DW"]
        assert rig.waiting() == {"Micrographs/mic_2_DW": "waits for coordinates"}
        rig.ledger.close()


@pytest.mark.parametrize("first", ["Micrographs/mic", "Micrographs/mic_DW"])
def test_of_two_that_exchange_their_coordinates_both_are_made_whichever_is_committed_first(
    rig: Rig, first: str
) -> None:
    arrive(rig, ("micrograph", "mic_DW.mrc"))
    arrive(rig, ("coordinates", "mic_autopick.star"))
    finish(rig)
    arrive(rig, ("coordinates", "mic_DW.star"))
    arrive(rig, ("micrograph", "mic.mrc"))
    for job in sorted(rig.claim(), key=lambda job: job.item != first):
        rig.commit(job)
    assert rig.live_items() == ["Micrographs/mic", "Micrographs/mic_DW"]
    assert rig.ledger.file_counts()["micrograph", "done"] == 2


def test_rows_that_a_table_no_longer_has_leave_the_sets(rig: Rig) -> None:
    for number in (1, 2):
        rig.micrograph(f"mic_{number}.mrc")
    rig.table("all.star", {"mic_1.mrc": "a", "mic_2.mrc": "b"})
    finish(rig)
    version, rows = rig.ledger.versions()["particles.star"]
    rig.table("all.star", {"mic_1.mrc": "a"})
    assert rig.live_items() == ["Micrographs/mic_1"]
    assert rig.waiting() == {"Micrographs/mic_2": "waits for coordinates"}
    assert rig.ledger.versions()["particles.star"] == (version + 1, rows - 1), "so that it is published anew"
    rig.table("all.star", {"mic_1.mrc": "a", "mic_2.mrc": "b"})
    finish(rig)
    assert rig.live_items() == ["Micrographs/mic_1", "Micrographs/mic_2"]


@pytest.mark.parametrize("how", ["removed", "broken"])
def test_rows_stay_when_their_table_is_removed_or_broken(rig: Rig, how: str) -> None:
    rig.micrograph("mic_1.mrc")
    rig.table("all.star", {"mic_1.mrc": "a"})
    finish(rig)
    newest = rig.ledger.newest("Coordinates", "all.star")
    assert newest is not None
    if how == "removed":
        rig.ledger.file_gone(newest.id)
    else:
        rig.ledger.file_failed(rig.notice("all.star", "coordinates", "Coordinates").id, "torn", final=True)
    assert rig.live_items() == ["Micrographs/mic_1"]
    assert rig.ledger.job_counts() == {"done": 1}


def test_other_suffixes_match_what_is_known_already(rig: Rig) -> None:
    rig.micrograph("mic_1.mrc")
    rig.table("mic_1_mine.star", {"mic_1_mine.star": "a"})
    rig.micrograph("mic_2.mrc")
    rig.table("mic_2_autopick.star", {"mic_2_autopick.star": "b"})
    finish(rig)
    assert rig.waiting() == {"Micrographs/mic_1": "waits for coordinates"}
    rig.ledger.close()
    rig.ledger = Ledger(rig.path, suffixes=[*DEFAULT_SUFFIXES, "_mine"])
    rig.ledger.require({kind: kind for kind in rig.required})
    rig.ledger.join_all()
    finish(rig)
    assert rig.live_items() == ["Micrographs/mic_1", "Micrographs/mic_2"]
    assert rig.ledger.job_counts() == {"done": 2}


@pytest.mark.parametrize("state", ["waiting", "queued", "claimed", "done", "missed"])
def test_a_micrograph_that_is_moved_stays_the_same_item(rig: Rig, state: str) -> None:
    file = rig.micrograph("mic.mrc")
    if state != "waiting":
        rig.table("mic.star", {"mic.star": "a"})
    jobs = rig.claim() if state in ("claimed", "done", "missed") else []
    if state == "done":
        rig.commit(jobs[0])
    if state == "missed":
        rig.ledger.file_gone(jobs[0].file.id)  # it was missed before it was found again
    (twin,) = rig.ledger.twins("Micrographs", "sub/mic.mrc", file.identity, "micrograph")
    assert twin.id == file.id
    assert rig.ledger.moved(twin, "Micrographs", "sub/mic.mrc")
    assert rig.ledger.is_known("Micrographs", "sub/mic.mrc", file.identity)
    assert not rig.ledger.is_known("Micrographs", "mic.mrc", file.identity)
    if state == "waiting":
        rig.table("mic.star", {"mic.star": "a"})
    ready = rig.claim()
    assert [(job.item, job.file.path) for job in ready] == (
        [] if state == "done" else [("Micrographs/mic", "sub/mic.mrc")]
    )
    for job in ready:
        rig.commit(job)
    assert rig.live_items() == ["Micrographs/mic"]
    rig.micrograph("sub/mic.mrc")  # a new generation at the new place is of the same item
    finish(rig)
    assert rig.live_items() == ["Micrographs/mic"]


def test_a_table_that_is_moved_is_read_at_its_new_place(rig: Rig) -> None:
    for number in (1, 2, 3):
        rig.micrograph(f"mic_{number}.mrc")
    table = rig.notice("all.star", "coordinates", "Coordinates")
    rig.ledger.table_read(table.id, [EntryRow("coordinates", f"mic_{n}.mrc", "a", 1) for n in (1, 2, 3)])
    (first, *_) = rig.ledger.claim(2)
    rig.commit(first)
    assert rig.ledger.twins("Micrographs", "sub/all.star", table.identity, "micrograph") == []
    (twin,) = rig.ledger.twins("Micrographs", "sub/all.star", table.identity, "coordinates")
    assert rig.ledger.moved(twin, "Elsewhere", "sub/all.star")
    jobs = rig.claim()
    assert [(job.item, job.inputs[0].source, job.inputs[0].path) for job in jobs] == [
        (f"Micrographs/mic_{number}", "Elsewhere", "sub/all.star") for number in (2, 3)
    ]
    for job in jobs:
        rig.commit(job)
    assert rig.live_items() == [f"Micrographs/mic_{number}" for number in (1, 2, 3)]


def test_a_file_is_not_moved_over_another(rig: Rig) -> None:
    file = rig.micrograph("a/mic.mrc")
    rig.micrograph("b/mic.mrc")
    assert not rig.ledger.moved(file, "Micrographs", "b/mic.mrc")
    assert set(rig.waiting()) == {"Micrographs/a/mic", "Micrographs/b/mic"}


def test_a_removed_micrograph_no_longer_makes_another_ambiguous(rig: Rig) -> None:
    gone = rig.micrograph("a/mic.mrc")
    rig.micrograph("b/mic.mrc")
    rig.table("mic.star", {"mic.star": "x"})
    assert rig.jobs() == {}
    assert gone.id in [file.id for file in rig.ledger.looked_for(0, 10)]
    rig.ledger.file_gone(gone.id)
    assert set(rig.jobs()) == {"Micrographs/b/mic"}
    assert rig.waiting() == {}


def test_files_that_are_looked_for_come_in_turns(rig: Rig) -> None:
    files = [rig.micrograph(f"mic_{number}.mrc").id for number in range(5)]
    assert {file.id for file in rig.ledger.looked_for(0, 3)} == set(files[:3])
    assert {file.id for file in rig.ledger.looked_for(rig.ledger.looked_up_to, 3)} == set(files[3:])
    assert rig.ledger.looked_up_to == 0


def test_the_same_picks_are_never_in_the_sets_twice(rig: Rig) -> None:
    """A micrograph is done, then broken; another one takes its coordinates."""
    rig.micrograph("mic.mrc")
    rig.table("mic.star", {"mic.star": "a"})
    finish(rig)
    rig.notice("mic.mrc", "micrograph", "Micrographs", problem="truncated")
    assert rig.live_items() == ["Micrographs/mic"], "an older result is better than none"
    rig.micrograph("mic_DW.mrc")
    finish(rig)
    assert rig.live_items() == ["Micrographs/mic_DW"]
    rig.micrograph("mic.mrc")  # whole again
    finish(rig)
    assert rig.live_items() == ["Micrographs/mic"]
    assert rig.waiting() == {"Micrographs/mic_DW": "waits for coordinates"}


def test_a_micrograph_that_was_removed_when_done_gives_way_to_another(rig: Rig) -> None:
    rig.micrograph("mic.mrc")
    rig.table("mic.star", {"mic.star": "a"})
    finish(rig)
    rig.micrograph("mic_DW.mrc")
    assert rig.waiting() == {"Micrographs/mic_DW": "waits for coordinates"}
    gone = next(file for file in rig.ledger.looked_for(0, 10) if file.path == "mic.mrc")
    rig.ledger.file_gone(gone.id)
    assert rig.live_items() == ["Micrographs/mic"], "until its place is taken"
    finish(rig)
    assert rig.live_items() == ["Micrographs/mic_DW"]
    assert rig.ledger.file_counts() == {
        ("coordinates", "done"): 1, ("micrograph", "done"): 1, ("micrograph", "superseded"): 1,
    }  # fmt: skip


def test_a_newcomer_in_the_place_of_one_that_moved_has_a_name_of_its_own(rig: Rig) -> None:
    ready(rig, 1)
    finish(rig)
    file = rig.ledger.newest("Micrographs", "mic_1.mrc")
    assert file is not None
    assert rig.ledger.moved(file, "Micrographs", "grid1/mic_1.mrc")
    newcomer = rig.micrograph("mic_1.mrc")
    assert newcomer.item == "Micrographs/mic_1-2"
    assert rig.micrograph("mic_1-2.mrc").item == "Micrographs/mic_1-2-2"
    assert "mic_1.star could belong to" in rig.waiting()["Micrographs/mic_1-2"]
    table = rig.ledger.newest("Coordinates", "mic_1.star")
    assert table is not None
    assert rig.ledger.moved(table, "Coordinates", "grid1/mic_1.star")
    rig.table("mic_1_topaz.star", {"Micrographs/mic_1.mrc": "new"})
    finish(rig)
    assert rig.live_items() == ["Micrographs/mic_1", "Micrographs/mic_1-2"]
    assert rig.micrograph("mic_1.mrc").item == "Micrographs/mic_1-2", "the next generation, too"


def test_a_second_table_for_what_is_done_is_told_and_decided_when_one_is_removed(rig: Rig) -> None:
    rig.micrograph("mic_1.mrc")
    rig.table("mic_1_autopick.star", {"mic_1_autopick.star": "one"})
    finish(rig)
    rig.table("mic_1_topaz.star", {"mic_1_topaz.star": "other"})
    assert rig.live_items() == ["Micrographs/mic_1"]
    assert rig.ledger.warning_count() == 1
    ((item, (said,)),) = rig.ledger.warnings()
    assert (item, "has several coordinates files" in said) == ("Micrographs/mic_1", True)
    older = next(file for file in rig.ledger.looked_for(0, 10) if file.path == "mic_1_autopick.star")
    rig.ledger.file_gone(older.id)
    assert rig.ledger.warnings() == []
    assert rig.jobs() == {"Micrographs/mic_1": [("coordinates", "mic_1_topaz.star", "other")]}
    finish(rig)
    rig.table("mic_1_autopick.star", {"mic_1_autopick.star": "one"})
    assert rig.ledger.warning_count() == 1
    newer = next(file for file in rig.ledger.looked_for(0, 10) if file.path == "mic_1_autopick.star")
    rig.ledger.file_gone(newer.id)
    assert rig.ledger.warnings() == []
    assert rig.jobs() == {}


def test_rows_taken_out_of_a_table_that_was_moved_leave_the_sets(rig: Rig) -> None:
    rig.micrograph("mic_1.mrc")
    rig.table("all.star", {"mic_1.mrc": "a"})
    finish(rig)
    table = rig.ledger.newest("Coordinates", "all.star")
    assert table is not None
    assert rig.ledger.moved(table, "Coordinates", "sub/all.star")
    assert rig.live_items() == ["Micrographs/mic_1"]
    rig.table("sub/all.star", {})
    assert rig.live_items() == []


def test_an_input_that_is_doubted_is_read_again_or_forgotten(rig: Rig) -> None:
    ready(rig, 1)
    (job,) = rig.claim()
    rig.ledger.doubt(job, job.inputs[0], gone=False)
    (table,) = rig.ledger.waiting_tables(5)
    assert rig.ledger.claim(1)[0].id == job.id, "given back without an attempt"
    rig.ledger.table_read(table.id, [EntryRow("coordinates", "mic_1.star", "new", 1)])
    assert not rig.ledger.is_claimed(job.id)
    (job,) = rig.claim()
    assert (job.attempts, job.inputs[0].digest) == (0, "new")
    rig.ledger.doubt(job, job.inputs[0], gone=True)
    assert rig.jobs() == {}
    assert rig.waiting() == {"Micrographs/mic_1": "waits for coordinates"}
    rig.table("mic_1.star", {"mic_1.star": "new"})
    assert set(rig.jobs()) == {"Micrographs/mic_1"}


def test_what_is_not_watched_any_more_is_let_go_and_what_is_done_stays(rig: Rig) -> None:
    ready(rig, 1)
    finish(rig)
    rig.micrograph("old/mic_2.mrc")
    rig.table("old/mic_3.star", {"mic_3.star": "x"})
    rig.micrograph("mic_3.mrc")
    assert rig.ledger.forget_unwatched(lambda source, path: not path.startswith("old/")) == 2
    assert rig.waiting() == {"Micrographs/mic_3": "waits for coordinates"}
    assert rig.jobs() == {}
    assert rig.live_items() == ["Micrographs/mic_1"]


# --- claims and ends -------------------------------------------------------------------------------------------------


def test_claims_are_the_oldest_first_each_once(rig: Rig) -> None:
    ready(rig, *range(6))
    first = rig.ledger.claim(2)
    assert [job.item for job in first] == ["Micrographs/mic_0", "Micrographs/mic_1"]
    assert all(rig.ledger.is_claimed(job.id) for job in first)
    later = rig.ledger.claim(2, excluded=[first[1].id + 1])
    assert [job.item for job in later] == ["Micrographs/mic_3", "Micrographs/mic_4"]
    assert rig.ledger.claim(0) == []
    assert [job.item for job in rig.claim()] == ["Micrographs/mic_2", "Micrographs/mic_5"]
    assert rig.claim() == []


def test_a_released_job_is_as_it_was(rig: Rig) -> None:
    ready(rig, 1)
    (job,) = rig.claim()
    rig.ledger.release(job.id)
    assert not rig.ledger.is_claimed(job.id)
    assert rig.claim() == [job]


def test_claims_of_a_dead_daemon_are_ready_again_without_an_attempt(rig: Rig) -> None:
    ready(rig, 1, 2)
    before = rig.claim()
    rig.reopen()
    assert rig.claim() == before
    assert {job.attempts for job in before} == {0}


def test_a_job_fails_for_good_after_its_attempts_and_can_be_retried(rig: Rig) -> None:
    ready(rig, 1)
    for attempt in range(3):
        (job,) = rig.claim()
        assert job.attempts == attempt
        rig.ledger.job_failed(
            job.id, f"attempt {attempt}", final=attempt == 2, now=NOW, operation="normalize", trace="Traceback"
        )
    assert rig.claim() == []
    assert rig.ledger.file_counts()[("micrograph", "failed")] == 1
    (failure,) = rig.ledger.failures()
    assert (failure["state"], failure["reason"], failure["operation"]) == ("failed", "attempt 2", "normalize")
    assert (failure["attempts"], failure["traceback"]) == (3, "Traceback")
    assert failure["file"] == "Micrographs/mic_1.mrc"
    rig.reopen()
    assert rig.claim() == []

    assert rig.ledger.retry() == 1
    assert rig.ledger.failures() == []
    (job,) = rig.claim()
    assert job.attempts == 0
    rig.commit(job)
    assert rig.ledger.file_counts()[("micrograph", "done")] == 1


def test_a_rejected_job_is_counted_apart_and_not_retried(rig: Rig) -> None:
    ready(rig, 1)
    (job,) = rig.claim()
    rig.ledger.job_failed(job.id, "ice", final=True, now=NOW, state="rejected", operation="quality")
    assert rig.ledger.job_counts() == {"rejected": 1}
    assert rig.ledger.retry() == 0
    assert rig.claim() == []
    assert [(row["state"], row["reason"]) for row in rig.ledger.failures()] == [("rejected", "ice")]
    rig.table("mic_1.star", {"mic_1.star": "other"})
    assert [job.generation for job in rig.claim()] == [2], "other inputs are another question"


def test_a_report_on_a_superseded_job_changes_nothing(rig: Rig) -> None:
    ready(rig, 1)
    (old,) = rig.claim()
    rig.table("mic_1.star", {"mic_1.star": "other"})
    (new,) = rig.claim()
    rig.ledger.job_failed(old.id, "died", final=True, now=NOW)
    rig.ledger.release(old.id)
    assert rig.ledger.is_claimed(new.id)
    assert rig.ledger.job_counts() == {"claimed": 1, "superseded": 1}
    assert rig.ledger.failures() == []


def test_retry_takes_what_contains_the_name_letter_by_letter(rig: Rig) -> None:
    for name in ("mic_1", "micX1", "mic_10"):
        rig.micrograph(f"{name}.mrc")
        rig.table(f"{name}.star", {f"{name}.star": name})
    for job in rig.claim():
        rig.ledger.job_failed(job.id, "no", final=True, now=NOW)
    assert rig.ledger.retry("_1") == 2
    assert sorted(job.item for job in rig.claim()) == ["Micrographs/mic_1", "Micrographs/mic_10"]
    assert rig.ledger.retry("%") == 0
    assert rig.ledger.retry("X1.mrc") == 1, "the path counts, too"


def test_a_failed_table_is_looked_at_anew_after_a_retry(rig: Rig) -> None:
    identity = rig.identity()
    table = rig.ledger.notice("Coordinates", "mic.star", identity, "coordinates", NOW)
    assert table is not None
    rig.ledger.file_failed(table.id, "torn", final=False)
    assert [(found.id, found.attempts) for found in rig.ledger.waiting_tables(5)] == [(table.id, 1)]
    rig.ledger.file_failed(table.id, "torn", final=True)
    assert rig.ledger.waiting_tables(5) == []
    assert rig.ledger.is_known("Coordinates", "mic.star", identity)
    assert [(row["reason"], row["attempts"]) for row in rig.ledger.failures()] == [("torn", 2)]

    assert rig.ledger.retry() == 1
    assert not rig.ledger.is_known("Coordinates", "mic.star", identity), "the next scan finds it"
    again = rig.ledger.notice("Coordinates", "mic.star", identity, "coordinates", NOW)
    assert again is not None
    assert again.generation == 2
    assert rig.ledger.failures() == []


def test_a_file_that_was_gone_is_taken_when_it_comes_back(rig: Rig) -> None:
    identity = rig.identity()
    file = rig.ledger.notice("Micrographs", "mic.mrc", identity, "micrograph", NOW)
    assert file is not None
    rig.ledger.item_found(file)
    rig.table("mic.star", {"mic.star": "1"})
    (job,) = rig.claim()
    rig.ledger.file_gone(job.file.id)
    assert not rig.ledger.is_claimed(job.id)
    assert rig.ledger.file_counts()["micrograph", "superseded"] == 1
    assert not rig.ledger.is_known("Micrographs", "mic.mrc", identity)
    again = rig.ledger.notice("Micrographs", "mic.mrc", identity, "micrograph", NOW)
    assert again is not None
    rig.ledger.item_found(again)
    assert [job.file.generation for job in rig.claim()] == [2]


# --- commits ---------------------------------------------------------------------------------------------------------


def test_a_commit_records_everything_and_survives_a_restart(rig: Rig) -> None:
    ready(rig, 1)
    (job,) = rig.claim()
    optics = [{"rlnImagePixelSize": 0.1 + 0.2}, {"rlnImagePixelSize": 1.5}]
    blocks = [Block("particles.star", 0, 30, 3, ("a", "b"), 1), Block("particles.star", 30, 10, 1, ("a",), 2)]
    rig.ledger.put_optics("particles.star", dict(enumerate(optics, start=1)))
    rig.ledger.commit(
        job, [Shard("particles/x.mrcs", 10, 99)], blocks, warnings=["faint"], notes=["two skipped"], seconds=0.5,
        now=NOW,
    )  # fmt: skip
    for _ in range(2):
        ledger = rig.ledger
        assert [(block.start, block.count, block.columns) for block in ledger.live_blocks("particles.star")] == [
            (0, 3, ("a", "b")),
            (30, 1, ("a",)),
        ]
        assert ledger.live_blocks("particles.star").__next__().item == "Micrographs/mic_1"
        assert ledger.lengths() == {"particles.star": 40}
        assert (ledger.length("particles.star"), ledger.length("none")) == (40, 0)
        assert ledger.versions() == {"particles.star": (2, 4)}
        assert ledger.columns("particles.star") == {"a", "b"}
        assert ledger.optics("particles.star") == optics
        assert list(ledger.shards()) == [Shard("particles/x.mrcs", 10, 99)]
        assert ledger.has_shard("particles/x.mrcs")
        assert not ledger.has_shard("particles/y.mrcs")
        assert ledger.job_counts() == {"done": 1}
        assert ledger.warnings() == [("Micrographs/mic_1", ["faint"])]
        assert ledger.warning_count() == 1
        rig.reopen()


def test_a_commit_happens_once(rig: Rig) -> None:
    ready(rig, 1)
    (job,) = rig.claim()
    rig.commit(job)
    with pytest.raises(LedgerError, match="no longer claimed"):
        rig.commit(job)
    assert rig.live_items() == ["Micrographs/mic_1"]


@pytest.mark.case(22)
@pytest.mark.parametrize("changed", ["micrograph", "coordinates"])
def test_older_rows_stay_until_the_newer_replace_them_never_both_never_neither(rig: Rig, changed: str) -> None:
    ready(rig, 1, 2)
    for job in rig.claim():
        rig.commit(job, "old")
    if changed == "micrograph":
        rig.micrograph("mic_1.mrc")
    else:
        rig.table("mic_1.star", {"mic_1.star": "other"})
    assert rig.live_items() == ["Micrographs/mic_1", "Micrographs/mic_2"]
    (job,) = rig.claim()
    assert rig.live_items() == ["Micrographs/mic_1", "Micrographs/mic_2"]

    before = rig.rows("SELECT * FROM blocks"), rig.rows("SELECT * FROM jobs"), rig.ledger.lengths()
    with pytest.raises(sqlite3.IntegrityError):  # in the midst of the transaction, after the older rows were ended
        rig.commit(job, "new", shard="particles/Micrographs/mic_2_1.mrcs")
    assert (rig.rows("SELECT * FROM blocks"), rig.rows("SELECT * FROM jobs"), rig.ledger.lengths()) == before

    rig.commit(job, "newer")
    assert rig.live_items() == ["Micrographs/mic_1", "Micrographs/mic_2"]
    sizes = {block.item: block.count for block in rig.ledger.live_blocks("particles.star")}
    assert sizes == {"Micrographs/mic_1": len("newer") + 1, "Micrographs/mic_2": len("old") + 1}
    assert rig.ledger.versions()["particles.star"][1] == sum(sizes.values())
    assert rig.ledger.job_counts() == {"done": 2, "superseded": 1}
    assert len(list(rig.ledger.shards())) == 3, "files of older generations stay known"


def test_an_item_whose_newest_generation_is_rejected_has_no_rows(rig: Rig) -> None:
    ready(rig, 1)
    rig.commit(rig.claim()[0])
    rig.table("mic_1.star", {"mic_1.star": "other"})
    (job,) = rig.claim()
    rig.ledger.job_failed(job.id, "ice", final=True, now=NOW, state="rejected")
    assert rig.live_items() == []


def test_an_exception_in_a_transaction_leaves_nothing(rig: Rig) -> None:
    ready(rig, 1)
    tables = ("files", "entries", "jobs", "meta")
    before = [rig.rows(f"SELECT * FROM {table}") for table in tables]
    changes = rig.ledger.changes

    def interrupted() -> None:
        with rig.ledger.transaction():
            ready(rig, 2)
            rig.ledger.put("plan", "x")
            rig.claim()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [rig.rows(f"SELECT * FROM {table}") for table in tables] == before
    assert rig.ledger.changes == changes
    ready(rig, 3)
    assert len(rig.claim()) == 2


def test_what_is_on_the_disk_at_any_moment_is_what_was_committed(rig: Rig, tmp_path: Path) -> None:
    """The files are copied as a crash would leave them: in the midst of a transaction, and right after one."""

    def crashed(name: str) -> Rig:
        folder = tmp_path / name
        folder.mkdir()
        for path in tmp_path.glob("ledger.sqlite*"):
            shutil.copy(path, folder)
        return Rig(folder / "ledger.sqlite")

    ready(rig, 1)
    (job,) = rig.claim()
    with rig.ledger.transaction():
        rig.commit(job)
        during = crashed("during")
    after = crashed("after")
    assert during.live_items() == []
    assert during.ledger.job_counts() == {"claimed": 1}
    assert after.live_items() == ["Micrographs/mic_1"]
    during.ledger.close()
    after.ledger.close()


@pytest.mark.case(6)
def test_a_full_disk_is_an_os_error_and_leaves_nothing(rig: Rig) -> None:
    ready(rig, 1)
    (job,) = rig.claim()
    pages = rig.rows("PRAGMA page_count")[0][0]
    rig.rows(f"PRAGMA max_page_count = {pages}")
    content: list[Any] = []

    def fill() -> None:
        for number in range(2, 1000):
            with rig.ledger.transaction():
                ready(rig, number)
            content[:] = [rig.rows(f"SELECT * FROM {table}") for table in ("files", "entries", "jobs")]

    with pytest.raises(OSError, match="No space left") as caught:
        fill()
    assert caught.value.errno == errno.ENOSPC
    assert [rig.rows(f"SELECT * FROM {table}") for table in ("files", "entries", "jobs")] == content
    assert rig.ledger.is_claimed(job.id)
    rig.rows("PRAGMA max_page_count = 100000")
    rig.commit(job)
    assert rig.live_items() == ["Micrographs/mic_1"]


def test_the_cost_of_an_item_does_not_grow_with_the_session(rig: Rig) -> None:
    """Counted in steps of SQLite's virtual machine, which are the same on every computer."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    rig.hurry()
    rig.ledger._db.set_progress_handler(count, 1)
    costs = []
    for number in range(400):
        steps = 0
        ready(rig, number)
        (job,) = rig.claim()
        rig.commit(job)
        costs.append(steps)
    early, late = costs[10:30], costs[-20:]
    assert max(late) < 1.2 * max(early), f"{max(early)} steps at first, {max(late)} in the end"


# --- opening ---------------------------------------------------------------------------------------------------------


@pytest.mark.case(10)
@pytest.mark.parametrize("remote", [False, True], ids=["write-ahead log", "rollback journal"])
def test_a_second_connection_is_refused_and_the_first_goes_on(tmp_path: Path, remote: bool) -> None:
    rig = Rig(tmp_path / "ledger.sqlite", remote=remote)
    ready(rig, 1)
    rig.reopen() if not remote else None
    ready(rig, 2)
    with pytest.raises(LedgerError, match="cannot be opened: database is locked"):
        Ledger(tmp_path / "ledger.sqlite", remote=remote)
    assert len(rig.claim()) == 2
    rig.ledger.close()
    Ledger(tmp_path / "ledger.sqlite", remote=remote).close()


@pytest.mark.case(11)
def test_a_damaged_ledger_is_refused(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "ledger.sqlite")
    ready(rig, *range(40))
    rig.ledger.close()
    data = bytearray((tmp_path / "ledger.sqlite").read_bytes())
    for page in range(3, len(data) // 4096):
        data[page * 4096 : page * 4096 + 200] = b"\x5a" * 200
    (tmp_path / "ledger.sqlite").write_bytes(data)
    with pytest.raises(LedgerError, match="damaged"):
        Ledger(tmp_path / "ledger.sqlite")
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database at all" * 1000)
    with pytest.raises(LedgerError, match="damaged: file is not a database"):
        Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(tmp_path / "no folder" / "ledger.sqlite")


def test_who_may_not_write_the_ledger_is_told_who_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ledger(path := tmp_path / "ledger.sqlite").close()
    (tmp_path / "ledger.sqlite-wal").mkdir()  # as SQLite finds no place for its log; root may write anywhere
    with pytest.raises(LedgerError, match="cannot be opened") as caught:
        Ledger(path)
    assert "user" not in str(caught.value)
    monkeypatch.setattr(os, "access", lambda place, _: place != path.parent)
    with pytest.raises(LedgerError, match="this user may not write it; run it as the user who owns it"):
        Ledger(path)


# --- hostile names ---------------------------------------------------------------------------------------------------


@pytest.mark.case(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_matched_worked_on_and_shown(rig: Rig, name: str) -> None:
    folder = f"grid {name}"
    rig.micrograph(f"{folder}/{name}.mrc")
    ((item, reason, _),) = rig.ledger.waiting()
    safe, _, path = item.partition(" (")
    assert safe.isascii()
    assert not set(safe) & set("<>'\"\n; ")
    path.encode()  # can be printed and sent
    assert path.endswith(".mrc)"), "the name that people know is shown, too"
    assert reason == "waits for coordinates"

    rig.table(f"{name}_autopick.star", {f"{name}_autopick.star": "1"})
    rig.table("all.star", {f"far/{name} 2.mrc": "2"})
    rig.reopen()
    (job,) = rig.claim()
    assert job.file.path == f"{folder}/{name}.mrc", "the file can be opened by this name"
    assert [(made.path, made.name) for made in job.inputs] == [(f"{name}_autopick.star",) * 2], "letter by letter"
    ((kind, unmatched),) = rig.ledger.unmatched()
    assert kind == "coordinates"
    rig.ledger.job_failed(job.id, f"{name}: broken", final=True, now=NOW, operation="x", trace=f"in {name}")
    (failure,) = rig.ledger.failures()
    for shown in (unmatched, failure["file"], failure["reason"], failure["traceback"]):
        assert json.loads(json.dumps(shown).encode()) == shown
        shown.encode()  # can be printed and sent
    assert rig.ledger.retry(name) == 1


@pytest.mark.case(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_in_reasons_and_problems_are_kept_as_text(rig: Rig, name: str) -> None:
    table = rig.notice(f"{name}.star", "coordinates", "Coordinates")
    rig.ledger.file_failed(table.id, f"{name}.star: no column", final=True)
    rig.notice(f"{name}.mrc", "micrograph", "Micrographs", problem=f"{name}: truncated")
    rig.micrograph(f"b{name}.mrc")
    rig.notice(f"b{name}.MRC", "micrograph", "Micrographs")
    rig.micrograph(f"one/c{name}.mrc")
    rig.micrograph(f"two/c{name}.mrc")
    rig.table(f"c{name}.star", {f"c{name}.star": "1"})
    shown = [row["reason"] for row in rig.ledger.failures()] + list(rig.waiting().values())
    assert len(shown) == 6
    for text in shown:
        text.encode()
    assert sum("no column" in text or "truncated" in text or "the same name" in text for text in shown) == 3
    assert sum("could belong to" in text for text in shown) == 2


# --- everything, in any order ----------------------------------------------------------------------------------------

STEMS = ("mic_1", "mic_2")
STATES = {"ready", "queued", "done", "rejected", "failed"}


class LedgerMachine(RuleBasedStateMachine):
    """Arrivals, claims and ends in any order, with restarts; what is committed is remembered here as well."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.rig = Rig(Path(self.folder.name, "ledger.sqlite"))
        self.rig.hurry()
        self.claimed: list[JobRow] = []
        self.committed: dict[str, int] = {}
        self.made_of: dict[str, str] = {}

    def teardown(self) -> None:
        self.rig.ledger.close()
        self.folder.cleanup()

    @initialize()
    def begin(self) -> None:
        self.rig.ledger.start_run(NOW, "test")

    @rule(stem=st.sampled_from(STEMS))
    def a_micrograph_arrives_or_changes(self, stem: str) -> None:
        self.rig.micrograph(f"{stem}.mrc")

    @rule(stem=st.sampled_from(STEMS))
    def a_broken_micrograph_arrives(self, stem: str) -> None:
        self.rig.notice(f"{stem}.mrc", "micrograph", "Micrographs", problem="truncated")

    @rule(stem=st.sampled_from(STEMS), digest=st.sampled_from("xy"))
    def coordinates_arrive_or_change(self, stem: str, digest: str) -> None:
        self.rig.table(f"{stem}.star", {f"{stem}.star": digest})

    @rule(rows=st.dictionaries(st.sampled_from([f"{stem}.mrc" for stem in STEMS]), st.sampled_from("xy")))
    def a_table_for_all_arrives_or_changes(self, rows: dict[str, str]) -> None:
        self.rig.table("all.star", rows)
        for item in self.rig.waiting():  # rows that the table does not have any more leave the sets
            if self.made_of.get(item) == "all.star" and f"{item.rpartition('/')[2]}.mrc" not in rows:
                self.committed.pop(item, None)

    @rule()
    def the_table_for_all_is_broken(self) -> None:
        self.rig.ledger.file_failed(self.rig.notice("all.star", "coordinates", "Coordinates").id, "torn", final=True)

    @rule(limit=st.integers(1, 3))
    def claim(self, limit: int) -> None:
        self.claimed += self.rig.ledger.claim(limit)

    @precondition(lambda self: self.claimed)
    @rule(data=st.data(), end=st.sampled_from(["done", "done", "again", "failed", "rejected", "release"]))
    def a_worker_reports(self, data: st.DataObject, end: str) -> None:
        ledger = self.rig.ledger
        job = self.claimed.pop(data.draw(st.integers(0, len(self.claimed) - 1)))
        if end == "release":
            ledger.release(job.id)
        elif end in ("failed", "again"):
            ledger.job_failed(job.id, "no", final=end == "failed", now=NOW)
        elif end == "rejected":
            ledger.job_failed(job.id, "ice", final=True, now=NOW, state="rejected")
        elif ledger.is_claimed(job.id):
            self.rig.commit(job)
            self.committed[job.item], self.made_of[job.item] = job.id, job.inputs[0].path
        else:
            with pytest.raises(LedgerError):
                self.rig.commit(job)

    @rule()
    def retry(self) -> None:
        self.rig.ledger.retry()

    @rule()
    def the_daemon_dies_and_starts_again(self) -> None:
        self.claimed = []
        self.rig.reopen()

    @invariant()
    def each_current_generation_is_in_one_state(self) -> None:
        rows = self.rig.rows("SELECT id, path, generation, state, item FROM files WHERE kind = 'micrograph'")
        newest = {path: max(row[2] for row in rows if row[1] == path) for _, path, _, _, _ in rows}
        for file, path, generation, state, item in rows:
            jobs = self.rig.rows("SELECT state, generation FROM jobs WHERE file = ? ORDER BY generation", file)
            active = [found for found, _ in jobs if found in ("ready", "claimed")]
            if generation < newest[path]:
                assert state == "superseded"
                assert active == []
                continue
            assert state in STATES
            assert len(active) == (1 if state == "queued" else 0), f"{item}: {state} with {jobs}"
            if state in ("done", "rejected"):
                assert jobs[-1][0] == state

    @invariant()
    def each_item_has_the_rows_of_its_last_commit_and_no_others(self) -> None:
        live = self.rig.rows("SELECT j.item, j.id, j.state FROM blocks b JOIN jobs j ON j.id = b.job WHERE b.live")
        assert {item: job for item, job, _ in live} == self.committed
        assert len(live) == len(self.committed)
        assert {state for _, _, state in live} <= {"done"}
        shards = self.rig.rows("SELECT job FROM shards WHERE live")
        assert sorted(job for (job,) in shards) == sorted(self.committed.values())

    @invariant()
    def counts_are_what_counting_gives(self) -> None:
        counted = dict(self.rig.rows("SELECT state, count(*) FROM jobs GROUP BY state"))
        assert self.rig.ledger.job_counts() == counted
        files = self.rig.rows("SELECT kind, state, count(*) FROM files GROUP BY kind, state")
        assert self.rig.ledger.file_counts() == {(kind, state): count for kind, state, count in files}
        rows = self.rig.rows("SELECT tbl, sum(count * live) FROM blocks GROUP BY tbl")
        assert {name: rows for name, (_, rows) in self.rig.ledger.versions().items()} == dict(rows)

    @invariant()
    def nothing_is_claimed_that_no_worker_has(self) -> None:
        claimed = {job for (job,) in self.rig.rows("SELECT id FROM jobs WHERE state = 'claimed'")}
        assert claimed <= {job.id for job in self.claimed}

    @invariant()
    def what_can_be_made_is_made(self) -> None:
        """A micrograph that waits, waits for something that is not there, or that is there twice."""
        for item, reason in self.rig.waiting().items():
            stem = item.rpartition("/")[2]
            entries = self.rig.rows("SELECT 1 FROM entries WHERE live AND key = ?", stem)
            assert len(entries) != 1, f"{item}: {reason}"


LedgerMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow]
)
TestLedgerMachine = LedgerMachine.TestCase


@pytest.mark.case(6, 9)
def test_a_ledger_that_may_not_be_written_is_an_os_error(rig: Rig) -> None:
    """Not one of SQLite's, which nobody but the ledger knows: the session pauses for it."""
    ready(rig, 2)
    rig.ledger._db.execute("PRAGMA query_only = ON")
    for write in (lambda: rig.claim(), lambda: rig.ledger._db.execute("DELETE FROM jobs")):
        with pytest.raises(OSError, match="Read-only file system: the ledger"):
            write()
    rig.ledger._db.execute("PRAGMA query_only = OFF")
    assert len(rig.claim()) == 1


@pytest.mark.parametrize("at_once", [1, 3, 512])
def test_strangers_are_the_files_that_no_commit_knows(rig: Rig, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(ledger_module, "ASKED_AT_ONCE", at_once)
    for number in range(5):
        rig.micrograph(f"mic_{number}.mrc")
        rig.table(f"mic_{number}.star", {f"mic_{number}.mrc": "1"})
        rig.commit(rig.claim()[0], shard=f"particles/mic_{number}.mrcs")
    known = [f"particles/mic_{number}.mrcs" for number in range(5)]
    others = ["particles/mic_5.mrcs", "noise/mic_1.mrcs", *(f"particles/{name}" for name in HOSTILE)]
    assert list(rig.ledger.strangers([known[0], *others, *known[1:]])) == others
    assert list(rig.ledger.strangers([])) == []


def test_the_newest_blocks_come_in_parts_and_without_those_that_ended(rig: Rig) -> None:
    for number in range(7):
        rig.micrograph(f"mic_{number}.mrc")
        rig.table(f"mic_{number}.star", {f"mic_{number}.mrc": "1"})
        rig.commit(rig.claim()[0])
    rig.table("mic_3.star", {"mic_3.mrc": "2"})
    rig.commit(rig.claim()[0])
    found, before = [], None
    while blocks := rig.ledger.newest_blocks("particles.star", before, 2):
        assert len(blocks) <= 2
        found += [block.item for block in blocks.values()]
        before = min(blocks)
    assert found == [f"Micrographs/mic_{number}" for number in (3, 6, 5, 4, 2, 1, 0)]
