"""Which table means which stack: rows name files, and what is not certain is not done."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from streamprep.joins import JobInput, Match, join
from streamprep.model import Kind

ROWS: Mapping[Kind, str] = {"rows": "a table that names its images"}
PLACES = {"Extract/job010/a.mrcs": "/p/Extract/job010/a.mrcs", "Extract/job020/a.mrcs": "/p/Extract/job020/a.mrcs"}
PLACE = PLACES["Extract/job010/a.mrcs"]


def rows(path: str, source: str = "Extract", name: str = "a.mrcs", digest: str = "") -> JobInput:
    return JobInput("rows", source, path, name, digest or f"{path} {name}")


def decide(
    stacks: Mapping[str, str], placed: Mapping[JobInput, str], *further: JobInput, optional: tuple[Kind, ...] = ()
) -> list[Match]:
    """The same whatever came first."""
    answers = []
    for some in itertools.permutations([*placed, *further]):
        matches, _ = join(
            list(stacks), some, ROWS, (), optional=optional, real_paths=list(stacks.values()), placed=placed
        )
        answers.append([({made.path for made in match.inputs}, match.contested) for match in matches])
    assert all(answer == answers[0] for answer in answers)
    return matches


def test_rows_belong_to_the_stack_where_their_name_was_found_and_to_no_other() -> None:
    first, second = rows("job010/particles.star"), rows("job020/particles.star")
    places = list(PLACES.values())
    matches = decide(PLACES, {first: places[0], second: places[1]})
    assert [match.inputs for match in matches] == [(first,), (second,)]
    matches = decide(PLACES, {second: places[1]})
    assert [match.inputs for match in matches] == [(), (second,)]


def test_rows_whose_stack_was_not_found_belong_to_none() -> None:
    (match,) = decide({"Extract/job010/a.mrcs": PLACE}, {}, rows("job010/particles.star"))
    assert match.reasons == ("waits for a table that names its images",)


def test_a_file_that_is_watched_in_two_ways_is_processed_once() -> None:
    entry = rows("particles.star")
    matches = decide({"Extract/a.mrcs": PLACE, "Link/a.mrcs": PLACE}, {entry: PLACE})
    assert [match.inputs for match in matches] == [(entry,), ()]


def test_a_selection_beside_the_whole_is_told() -> None:
    (match,) = decide({"Extract/job010/a.mrcs": PLACE}, {rows("all.star"): PLACE, rows("part.star", "Select"): PLACE})
    assert match.inputs == ()
    assert match.contested
    assert match.reasons[0].startswith("has several rows files: ")


def test_one_table_that_names_a_stack_in_two_ways_is_told() -> None:
    entries = {rows("p.star", name="a.mrcs"): PLACE, rows("p.star", name="Extract/a.mrcs"): PLACE}
    (match,) = decide({"Extract/a.mrcs": PLACE}, entries)
    assert match.contested
    assert "Extract/p.star names it in several ways: " in match.reasons[0]


def test_tables_that_say_the_same_are_one() -> None:
    whole, again = rows("particles.star", digest="same"), rows("again.star", digest="same")
    matches, _ = join(["a"], [whole, again], ROWS, (), real_paths=[PLACE], placed={whole: PLACE, again: PLACE})
    assert matches[0].inputs == (whole,)
    (match,) = decide({"a": PLACE}, {rows("a_extract.star"): PLACE, whole: PLACE})
    assert match.inputs == (whole,)


def test_what_is_optional_is_used_where_there_is_one_and_never_waited_for() -> None:
    entry, ctf = rows("particles.star"), JobInput("ctf", "Ctf", "all.star", "Micrographs/a.mrc", "c")
    stacks = {"Extract/a.mrcs": PLACE}
    (match,) = decide(stacks, {entry: PLACE}, ctf, optional=("ctf",))
    assert match.inputs == (entry, ctf)
    for further in ((), (ctf, JobInput("ctf", "Ctf", "other.star", "Micrographs/a.mrc", "d"))):
        (match,) = decide(stacks, {entry: PLACE}, *further, optional=("ctf",))
        assert match.inputs == (entry,)
        assert match.reasons == ()
