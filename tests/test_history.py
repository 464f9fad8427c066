"""What those who look on learn from the log of commits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from streamprep import journal
from streamprep.history import LOG, History
from streamprep.joins import JobInput
from streamprep.ledger import Block, FileRow, JobRow, Shard, SourceRow
from streamprep.model import Identity


def commit(item: str, *, generation: int = 1, picks: str = "", rows: int = 5) -> journal.Commit:
    file = FileRow(1, "Micrographs", f"{item}.mrc", 1, "micrograph", f"Micrographs/{item}", Identity(1, 2, 3, 4), 0)
    inputs = (JobInput("coordinates", "Coordinates", f"{picks or item}.star", picks or item, "d", 1),)
    return journal.Commit(
        SourceRow("Micrographs", "", Path("/data/Micrographs"), "../Micrographs", "1:2"),
        JobRow(1, file.item, generation, file, inputs, 0),
        (Shard(f"particles/{item}.mrcs", 10, 1),),
        (Block("particles.star", 0, 10, rows, ("a",), 1), Block("coordinates/pos/{item}.pos", 0, 10, rows, ("a",), 1)),
        warnings=("w",),
        seconds=0.5,
        finished=1000.0,
    )


class Log:
    def __init__(self, output: Path) -> None:
        self.path = output / LOG
        self.path.parent.mkdir(parents=True)

    def write(self, *commits: journal.Commit) -> None:
        with self.path.open("ab") as file:
            file.write(b"".join(map(journal.line_of, commits)))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


def test_what_is_done_is_read_on_from_where_it_was_read(log: Log, tmp_path: Path) -> None:
    history = History(tmp_path)
    log.write(commit("a"), commit("b"))
    assert [done.item for done in history.update()] == ["Micrographs/a", "Micrographs/b"]
    assert history.update() == []
    log.write(commit("c"))
    (new,) = history.update()
    assert list(history.done) == ["Micrographs/a", "Micrographs/b", "Micrographs/c"]
    assert (new.path, new.rows) == (Path("/data/Micrographs/c.mrc"), (("particles.star", 5),))
    assert (new.warnings, new.seconds, new.finished) == (("w",), 0.5, 1000.0)
    assert history.commit(new) == commit("c")


def test_a_new_generation_stands_in_the_place_of_the_old_one(log: Log, tmp_path: Path) -> None:
    history = History(tmp_path)
    log.write(commit("a"), commit("b"), commit("a", generation=2, rows=7))
    assert len(history.update()) == 3
    assert [(done.item, done.generation) for done in history.done.values()] == [
        ("Micrographs/b", 1),
        ("Micrographs/a", 2),
    ]


def test_whose_coordinates_were_taken_is_left_out(log: Log, tmp_path: Path) -> None:
    history = History(tmp_path)
    log.write(commit("a_DW", picks="a"), commit("b"), commit("a"))
    history.update()
    assert list(history.done) == ["Micrographs/b", "Micrographs/a"]


def test_a_line_that_is_being_written_is_read_once_it_is_whole(log: Log, tmp_path: Path) -> None:
    history = History(tmp_path)
    log.write(commit("a"))
    line = journal.line_of(commit("b"))
    with log.path.open("ab") as file:
        file.write(line[:100])
    assert [done.item for done in history.update()] == ["Micrographs/a"]
    with log.path.open("ab") as file:
        file.write(line[100:])
    assert [done.item for done in history.update()] == ["Micrographs/b"]


def test_a_log_that_was_cut_off_and_went_on_otherwise_is_read_anew(log: Log, tmp_path: Path) -> None:
    history = History(tmp_path)
    log.write(commit("a"), commit("b"))
    history.update()
    log.path.write_bytes(journal.line_of(commit("a")) + journal.line_of(replace(commit("b"), seconds=0.7)))
    assert [done.item for done in history.update()] == ["Micrographs/a", "Micrographs/b"]
    assert history.done["Micrographs/b"].seconds == 0.7
    log.path.unlink()
    assert history.update() == []
    assert history.done == {}


def test_a_long_log_is_read_in_parts(log: Log, tmp_path: Path) -> None:
    history = History(tmp_path)
    log.write(*(commit(f"m{number}") for number in range(7)))
    assert [len(history.update(most=3)) for _ in range(4)] == [3, 3, 1, 0]
    assert len(history.done) == 7


def test_a_damaged_line_costs_itself_only(log: Log, tmp_path: Path) -> None:
    log.write(commit("a"))
    with log.path.open("ab") as file:
        file.write(b"00000000 {}\n")
    log.write(commit("b"))
    history = History(tmp_path)
    history.update()
    assert list(history.done) == ["Micrographs/a", "Micrographs/b"]
