"""Which table means which stack: names are exact here, and what is not certain is not done."""

from __future__ import annotations

import itertools
from pathlib import PurePosixPath

import pytest

from streamprep.joins import JobInput, Match, Places, join, stack_rank

PLACES = Places(
    {"Extract": "/project/Extract", "Selected": "/project/Selected", "Copied": "/elsewhere/Copied"}, "/home"
)
ROWS = {"rows": "a table that names its images"}


@pytest.mark.parametrize(
    ("name", "table", "stack", "rank"),
    [
        ("a.mrcs", "/p/t.star", "/p/a.mrcs", (0, 0)),
        ("./a.mrcs", "/p/t.star", "/p/a.mrcs", (0, 0)),
        ("x/a.mrcs", "/p/x/t.star", "/p/x/a.mrcs", (0, 1)),
        ("x\\a.mrcs", "/p/x/t.star", "/p/x/a.mrcs", (0, 1)),
        ("x/a.mrcs", "/p/q/t.star", "/home/x/a.mrcs", (0, 3)),
        ("/p/x/a.mrcs", "/q/t.star", "/p/x/a.mrcs", (0, 0)),
        ("x/a.mrcs", "/q/t.star", "/p/x/a.mrcs", (1, 0)),
        ("old/job/m/a.mrcs", "/new/t.star", "/new/m/a.mrcs", (2, -2)),
        ("/old/job/m/a.mrcs", "/new/t.star", "/new/a.mrcs", (2, -1)),
        ("x/a.mrcs", "/q/t.star", "/p/y/a.mrcs", None),
        ("/p/y/a.mrcs", "/q/t.star", "/p/x/a.mrcs", None),
        ("x/a.mrcs", "/p/t.star", "/p/x/b.mrcs", None),
        ("job010/m/a.mrcs", "/p/job010/t.star", "/p/job020/m/a.mrcs", None),
        ("..", "/p/t.star", "/p/a.mrcs", None),
        ("", "/p/t.star", "/p/a.mrcs", None),
    ],
)
def test_how_surely_a_name_means_a_stack(name: str, table: str, stack: str, rank: tuple[int, int] | None) -> None:
    assert stack_rank(name, PurePosixPath(table), PurePosixPath(stack), Places(folder="/home")) == rank


def rows(name: str, path: str, source: str = "Extract", digest: str = "") -> JobInput:
    return JobInput("rows", source, path, name, digest or path)


def decide(stacks: list[str], *entries: JobInput) -> list[Match]:
    """The same whatever came first."""
    answers = []
    for some in itertools.permutations(entries):
        matches, _ = join(stacks, some, ROWS, (), (), PLACES)
        answers.append([(match.inputs, match.contested) for match in matches])
    assert all(answer == answers[0] for answer in answers)
    return matches


def test_the_stack_of_another_job_is_not_taken_for_one_that_is_not_there() -> None:
    (match,) = decide(["Extract/job020/a.mrcs"], rows("Extract/job010/a.mrcs", "job010/particles.star"))
    assert match.inputs == ()
    assert match.reasons == ("waits for a table that names its images",)


def test_each_of_two_jobs_has_its_own_table() -> None:
    first, second = (rows(f"Extract/{job}/a.mrcs", f"{job}/particles.star") for job in ("job010", "job020"))
    matches = decide(["Extract/job010/a.mrcs", "Extract/job020/a.mrcs"], first, second)
    assert [match.inputs for match in matches] == [(first,), (second,)]


def test_a_job_that_was_copied_goes_with_its_own_copy() -> None:
    here = rows("Extract/job010/a.mrcs", "job010/particles.star")
    copy = rows("Extract/job010/a.mrcs", "particles.star", "Copied")
    matches = decide(["Extract/job010/a.mrcs", "Copied/a.mrcs"], here)
    assert [match.inputs for match in matches] == [(here,), ()]
    (match,) = decide(["Copied/a.mrcs"], copy)
    assert match.inputs == (copy,)


def test_a_selection_beside_the_whole_is_told() -> None:
    whole = rows("Extract/job010/a.mrcs", "job010/particles.star")
    chosen = rows("Extract/job010/a.mrcs", "particles.star", "Selected")
    (match,) = decide(["Extract/job010/a.mrcs"], whole, chosen)
    assert match.inputs == ()
    assert match.contested
    assert match.reasons[0].startswith("has several rows files: ")


def test_tables_that_say_the_same_are_one() -> None:
    whole = rows("Extract/job010/a.mrcs", "job010/particles.star", digest="same")
    again = rows("Extract/job010/a.mrcs", "job010/again.star", digest="same")
    matches, _ = join(["Extract/job010/a.mrcs"], [whole, again], ROWS, (), (), PLACES)
    assert matches[0].inputs == (whole,)
    piece = rows("Extract/job010/a.mrcs", "job010/a_extract.star", digest="less")
    (match,) = decide(["Extract/job010/a.mrcs"], piece, whole)
    assert match.inputs == (whole,)


def test_a_name_that_two_stacks_could_have_is_an_ambiguity() -> None:
    entry = rows("m/a.mrcs", "particles.star", "Copied")
    matches = decide(["Extract/m/a.mrcs", "Selected/m/a.mrcs"], entry)
    assert all(match.contested for match in matches)
    assert "could belong to Extract/m/a.mrcs or Selected/m/a.mrcs" in matches[0].reasons[0]
