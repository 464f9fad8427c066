"""The table: searching, sorting, pages; also where there are very many items."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from streamprep.history import History
from streamprep.web.items import FILTERS, Query, Row, done_row, page, pending_rows, set_names
from streamprep.web.show import counts
from tests.web.acted import NOW, commit, failure, log_commits, snapshot
from tests.web.asking import Looked


@pytest.fixture
def done(tmp_path: Path) -> dict[str, Row]:
    """Forty items, with other rows, times and warnings each."""
    log_commits(
        tmp_path,
        (
            commit(f"M/m{n:02d}", finished=NOW + n, rows=n * 7 % 40, warnings=("w",) * (n % 3))
            for n in range(40)
        ),
    )  # fmt: skip
    history = History(tmp_path)
    return {done.item: done_row(replace(done, seconds=float(n * 11 % 40))) for n, done in enumerate(history.update())}


def pending() -> dict[str, Row]:
    made = snapshot(
        Path("/o"),
        failures=(failure("M/m03"), failure("M/new", state="rejected", when=NOW + 99)),
        waiting=(("M/other", "waits for coordinates", 9.0),),
        running=(("M/m05", 1.0), ("M/fourth", 2.0), ("M/in the pool only", 3.0)),
    )
    return pending_rows(made, {}, running=True)


@pytest.mark.parametrize("sort", ["item", "ended", "seconds", "warnings", "state", "particles.star"])
@pytest.mark.parametrize("descending", [False, True])
def test_the_pages_hold_every_item_once_in_order(done: dict[str, Row], sort: str, descending: bool) -> None:
    query = Query(sort=sort, descending=descending)
    shown: list[Row] = []
    for number in range(1, 6):
        made = page(done, pending(), replace(query, page=number), size=10)
        shown += made.rows
        assert (made.found, made.pages, made.number) == (43, 5, number)
    assert len({row.name for row in shown}) == 43
    value = {
        "item": lambda row: row.name, "seconds": lambda row: row.seconds, "warnings": lambda row: len(row.warnings),
        "particles.star": lambda row: row.count("particles.star"),
        "ended": lambda row: row.ended or 1e99,
        "state": lambda row: -["done", "in work", "waiting", "failed", "rejected"].index(row.state),
    }[sort]  # fmt: skip
    values = [value(row) for row in shown]
    assert values == sorted(values, reverse=descending)


@pytest.mark.parametrize(
    ("state", "names"),
    [
        ("failed", {"M/m03"}),
        ("rejected", {"M/new"}),
        ("waiting", {"M/other"}),
        ("in work", {"M/m05", "M/fourth"}),
        ("done", {f"M/m{n:02d}" for n in range(40)} - {"M/m03", "M/m05"}),
        ("with warnings", {f"M/m{n:02d}" for n in range(40) if n % 3} - {"M/m05"}),
    ],
)
def test_items_of_one_state(done: dict[str, Row], state: str, names: set[str]) -> None:
    assert state in FILTERS
    assert {row.name for row in page(done, pending(), Query(state=state)).rows} == names


def test_names_and_reasons_are_searched_in_any_case(done: dict[str, Row]) -> None:
    assert [row.name for row in page(done, pending(), Query(text="M17")).rows] == ["M/m17"]
    assert [row.name for row in page(done, pending(), Query(text="COORDinates")).rows] == ["M/other"]
    assert page(done, pending(), Query(text="nothing is so")).rows == []


def test_an_address_leads_back_to_its_query() -> None:
    sets = ["particles.star"]
    for query in (
        Query(),
        Query("a&b=c <x>", "failed", "particles.star", False, 7),
        Query(sort="item", descending=True),
    ):
        assert Query.of(dict(parse_qsl(query.address().lstrip("?"))), sets) == query


def test_each_set_is_a_column_once() -> None:
    made = snapshot(Path("/o"), rows={"particles.star": 5, "noise.star": 5})
    assert set_names(made, []) == ["particles.star", "noise.star"]


def test_what_a_dead_daemon_had_in_work_is_queued() -> None:
    made = snapshot(
        Path("/o"), jobs={"done": 1, "ready": 2, "claimed": 5}, running=(("a", 1.0), ("b", 1.0), ("c", 1.0))
    )
    assert (counts(made, running=True)["in work"], counts(made, running=True)["queued"]) == (2, 5)
    assert (counts(made, running=False)["in work"], counts(made, running=False)["queued"]) == (0, 7)


def test_a_hundred_thousand_items_make_no_larger_page(looked: Looked) -> None:
    (looked.output / ".streamprep").mkdir(parents=True)
    log_commits(looked.output, [commit("M/m")])
    looked.look()
    (one,) = looked.watch.view.done.values()
    assert one.done is not None
    many = {f"M/m{n:06d}": Row(f"M/m{n:06d}", "done", NOW + n, one.done) for n in range(100_000)}
    looked.watch.view = replace(looked.watch.view, done=many)
    told = looked.get("/items?q=m0999&sort=particles.star&page=4")
    assert "1,000 items found" not in told.page.words
    assert "100 items found" in told.page.words
    assert len(looked.get("/items").body) < 150_000
    assert len(looked.get("/").body) < 60_000
