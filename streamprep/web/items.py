"""The table of items: what is known of each, searched, sorted and cut into pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from streamprep.history import Done
from streamprep.snapshot import Snapshot, rows_of_sets

PAGE_ROWS = 100
STATES = ("done", "in work", "waiting", "failed", "rejected")
FILTERS = (*STATES, "with warnings")
SORTS = ("ended", "item", "state", "seconds", "warnings")
"""Orders of the table, besides those by the rows of a set."""


@dataclass(frozen=True, slots=True)
class Row:
    """One item."""

    name: str
    state: str
    """One of `STATES`."""
    ended: float = 0.0
    """When it was done or given up, seconds since 1970; 0 where neither has happened."""
    done: Done | None = None
    """What was made of it, last; items in other states may have been done before."""
    said: str = ""
    """What it waits for, or why it failed."""
    failure: Mapping[str, Any] | None = None
    seconds: float = 0.0
    """What its operations took, or for how long it has waited or been in work."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What operations warned of."""
        return () if self.done is None else self.done.warnings

    def count(self, table: str) -> int:
        """Rows that it has in a table."""
        if self.done is not None:
            for name, count in self.done.rows:
                if name == table:
                    return count
        return 0


def done_row(done: Done) -> Row:
    """The row of an item that is done."""
    return Row(done.item, "done", done.finished, done, seconds=done.seconds)


def pending_rows(snapshot: Snapshot, done: Mapping[str, Row], *, running: bool) -> dict[str, Row]:
    """The rows of items that are not done, or not as they are now, as far as the snapshot names them."""
    rows: dict[str, Row] = {}
    for failure in snapshot.failures:
        name, state = str(failure.get("item") or failure.get("file")), str(failure.get("state"))
        if name not in rows and state in STATES:  # the newest comes first
            ended = float(failure.get("when") or 0.0)
            rows[name] = Row(name, state, ended, _done(done, name), str(failure.get("reason") or ""), failure)
    for name, reason, seconds in snapshot.waiting:
        rows[name] = Row(name, "waiting", 0.0, _done(done, name), reason, seconds=seconds)
    for name, seconds in snapshot.running[: snapshot.workers] if running else ():
        rows[name] = Row(name, "in work", 0.0, _done(done, name), seconds=seconds)
    return rows


def unlisted(snapshot: Snapshot | None) -> list[str]:
    """How many items there are of each kind that the snapshot counts, but does not name; in words."""
    if snapshot is None:
        return []
    waiting = snapshot.waiting_count - len(snapshot.waiting)
    ended = snapshot.failed + snapshot.rejected - len(snapshot.failures)
    said = (waiting, "that wait" if waiting > 1 else "that waits"), (ended, "that failed or were rejected")
    return [f"{count:,} {of}" for count, of in said if count > 0]


def _done(done: Mapping[str, Row], name: str) -> Done | None:
    row = done.get(name)
    return None if row is None else row.done


def set_names(snapshot: Snapshot | None, rows: Iterable[Row]) -> list[str]:
    """The sets that there are, each by its first table: those of the snapshot, then others that the rows are in."""
    tables = dict(snapshot.rows) if snapshot is not None else {}
    for row in rows:
        if row.done is not None:
            tables.update(row.done.rows)
    return list(rows_of_sets(tables))


def set_title(table: str) -> str:
    """What to call a set.

    Examples
    --------
    >>> set_title("particles.star"), set_title("coordinates/noise.star")
    ('particles', 'noise picks')
    """
    name = table.rpartition(".")[0] or table
    folder, _, last = name.rpartition("/")
    if folder == "coordinates":
        return "picks" if last == "particles" else f"{last} picks"
    return name


@dataclass(frozen=True, slots=True)
class Query:
    """What part of the table is asked for."""

    text: str = ""
    state: str = ""
    """One of `FILTERS`; empty for all."""
    sort: str = "ended"
    """One of `SORTS`, or the name of a set."""
    descending: bool = True
    page: int = 1

    @classmethod
    def of(cls, given: Mapping[str, str], sets: Sequence[str]) -> Query:
        """What an address asks for; what it may not ask for is left out."""
        state, sort, page = given.get("state", ""), given.get("sort", ""), given.get("page", "")
        sort = sort if sort in SORTS or sort in sets else "ended"
        return cls(
            given.get("q", "").strip()[:200],
            state if state in FILTERS else "",
            sort,
            given.get("order", "desc" if sort != "item" else "asc") != "asc",
            int(page) if page.isascii() and page.isdigit() and 0 < len(page) < 10 else 1,
        )

    def address(self, **changed: object) -> str:
        """The query string of this part of the table, or of one that differs from it."""
        values = {
            "q": self.text,
            "state": self.state,
            "sort": self.sort,
            "order": "desc" if self.descending else "asc",
            "page": self.page,
            **changed,
        }
        return "?" + urlencode({name: str(value) for name, value in values.items() if value})


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the table."""

    rows: Sequence[Row]
    found: int
    """Rows on all pages."""
    number: int
    pages: int


def page(done: Mapping[str, Row], pending: Mapping[str, Row], query: Query, size: int = PAGE_ROWS) -> Page:
    """Search, sort and cut; a page after the last is the last.

    Parameters
    ----------
    done
        By name, in the order in which they ended.
    pending
        By name; these stand in the place of those that are done.
    """
    if query.state == "with warnings":
        rows = [row for row in done.values() if row.warnings and row.name not in pending]
    elif query.state and query.state != "done":
        rows = [row for row in pending.values() if row.state == query.state]
    else:
        rows = [row for row in done.values() if row.name not in pending]
        if not query.state:
            rows += pending.values()
    if query.text:
        needle = query.text.casefold()
        rows = [row for row in rows if needle in row.name.casefold() or needle in row.said.casefold()]
    rows.sort(key=_key(query.sort), reverse=query.descending)
    pages = max(1, -(-len(rows) // size))
    number = min(query.page, pages)
    return Page(rows[(number - 1) * size : number * size], len(rows), number, pages)


def _key(sort: str) -> Callable[[Row], Any]:
    if sort == "item":
        return lambda row: row.name
    if sort == "state":
        return lambda row: (-STATES.index(row.state), row.ended)
    if sort == "seconds":
        return lambda row: row.seconds
    if sort == "warnings":
        return lambda row: len(row.warnings)
    if sort == "ended":
        return lambda row: row.ended or float("inf")  # what has not ended comes with the newest
    return lambda row: row.count(sort)
