"""What a session has done so far, from its log of commits: for those who look on.

The ledger is its daemon's alone. The log can be read beside it at any moment, by anyone who may read the output folder,
on any file system; nothing is locked and nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from streamprep.journal import Commit, Line, read
from streamprep.ledger import JOURNAL
from streamprep.model import Kind

LOG = Path(".streamprep", "rows", f"{JOURNAL}.rows")
"""The log of commits, below the output folder."""

MOST_AT_ONCE = 5000
"""So many commits are read at once at most, a second's work or so."""
MOST_SHARED = 10_000

Shared = TypeVar("Shared")


@dataclass(frozen=True, slots=True)
class Done:
    """An item that is done; `History.commit` reads all that is known of it. There are many: what is alike is shared."""

    item: str
    kind: Kind
    generation: int
    folder: Path
    """The watched folder."""
    relative: str
    """Of the micrograph, stack or map: its place in the watched folder, as it was then."""
    tables: tuple[str, ...]
    """The growing tables in which it has rows."""
    counts: tuple[int, ...]
    """So many in each."""
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    """How long its operations took."""
    finished: float
    """When it was committed, seconds since 1970."""
    start: int
    """Where its line stands in the log."""
    length: int
    crc32: int

    @property
    def path(self) -> Path:
        """The micrograph, stack or map."""
        return self.folder / self.relative

    @property
    def rows(self) -> tuple[tuple[str, int], ...]:
        """Rows that it has in each growing table."""
        return tuple(zip(self.tables, self.counts, strict=True))


class History:
    """The items of a session that are done, as its log of commits tells.

    An item is left out once another micrograph has taken its coordinates. One that `streamprep repair` found damaged is
    kept until it was made again.

    Parameters
    ----------
    output
        The output folder.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.done: dict[str, Done] = {}
        """By item, in the order of their last commits."""
        self._read = 0
        self._last: Done | None = None
        self._origins: dict[str, str] = {}
        """Which item the entries of tables went to."""
        self._shared: dict[Any, Any] = {}
        """Folders and names of tables: they are the same for all."""

    def update(self, most: int = MOST_AT_ONCE) -> list[Done]:
        """Read on, ``most`` commits at most, and return what is new; from the beginning where the log was replaced.

        Raises
        ------
        OSError
            The log cannot be read. One that is not there yet says nothing.
        LedgerError
            A line is of another version of streamprep.
        """
        path = self.output / LOG
        if not path.exists():
            self._forget()
            return []
        if self._last is not None and self.commit(self._last) is None:  # cut off by a start after a crash, or replaced
            self._forget()
        new: list[Done] = []
        for line in read(path, self._read):
            if line is None:  # still being written, or damaged
                continue
            new.append(self._add(line))
            self._read = line.start + line.length
            if len(new) >= most:
                break
        return new

    def commit(self, done: Done) -> Commit | None:
        """All that the log says of an item; None where it says so no more."""
        line = next(read(self.output / LOG, done.start), None)
        return line.commit if line is not None and (line.length, line.crc32) == (done.length, done.crc32) else None

    def _forget(self) -> None:
        self.done.clear()
        self._origins.clear()
        self._read, self._last = 0, None

    def _share(self, value: Shared) -> Shared:
        """The first of those that are equal to it, but for a few thousand that are no more than that."""
        if len(self._shared) > MOST_SHARED:
            self._shared.clear()
        found: Shared = self._shared.setdefault(value, value)
        return found

    def _add(self, line: Line) -> Done:
        commit = line.commit
        job = commit.job
        blocks = [block for block in commit.blocks if "{item}" not in block.table]
        done = Done(
            job.item,
            job.file.kind,
            job.generation,
            self._share(commit.source.root),
            job.file.path,
            self._share(tuple(block.table for block in blocks)),
            self._share(tuple(block.count for block in blocks)),
            commit.warnings,
            commit.notes,
            commit.seconds,
            commit.finished,
            line.start,
            line.length,
            line.crc32,
        )
        for made in job.inputs:
            if made.kind in ("coordinates", "rows"):
                origin = "\0".join((made.source, made.path, made.name))
                rival = self._origins.get(origin, job.item)
                if rival != job.item:
                    self.done.pop(rival, None)
                self._origins[origin] = job.item
                break
        self.done.pop(job.item, None)
        self.done[job.item] = self._last = done
        return done
