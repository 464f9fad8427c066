"""What a session has done so far, from its log of commits: for those who look on.

The ledger is its daemon's alone. The log can be read beside it at any moment, by anyone who may read the output folder,
on any file system; nothing is locked and nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from streamprep.journal import Commit, Line, read
from streamprep.ledger import JOURNAL
from streamprep.model import Kind

LOG = Path(".streamprep", "rows", f"{JOURNAL}.rows")
"""The log of commits, below the output folder."""

MOST_AT_ONCE = 5000
"""So many commits are read at once at most, a second's work or so."""


@dataclass(frozen=True, slots=True)
class Done:
    """An item that is done; `History.commit` reads all that is known of it."""

    item: str
    kind: Kind
    generation: int
    path: Path
    """Of the micrograph, stack or map, as it was then."""
    rows: tuple[tuple[str, int], ...]
    """Rows that it has in each growing table."""
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    """How long its operations took."""
    finished: float
    """When it was committed, seconds since 1970."""
    line: tuple[int, int, int]
    """Where its line stands in the log: start, length, CRC-32."""


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
        self._origins: dict[tuple[str, str, str], str] = {}
        """Which item the entries of tables went to."""

    def update(self, most: int = MOST_AT_ONCE) -> list[Done]:
        """Read on, ``most`` commits at most, and return what is new; from the beginning where the log was replaced.

        Raises
        ------
        OSError
            The log cannot be read. One that is not there yet says nothing.
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
        start, length, crc32 = done.line
        line = next(read(self.output / LOG, start), None)
        return line.commit if line is not None and (line.length, line.crc32) == (length, crc32) else None

    def _forget(self) -> None:
        self.done.clear()
        self._origins.clear()
        self._read, self._last = 0, None

    def _add(self, line: Line) -> Done:
        commit = line.commit
        job = commit.job
        done = Done(
            job.item,
            job.file.kind,
            job.generation,
            commit.source.root / job.file.path,
            tuple((block.table, block.count) for block in commit.blocks if "{item}" not in block.table),
            commit.warnings,
            commit.notes,
            commit.seconds,
            commit.finished,
            (line.start, line.length, line.crc32),
        )
        for made in job.inputs:
            if made.kind in ("coordinates", "rows"):
                rival = self._origins.get((made.source, made.path, made.name), job.item)
                if rival != job.item:
                    self.done.pop(rival, None)
                self._origins[made.source, made.path, made.name] = job.item
                break
        self.done.pop(job.item, None)
        self.done[job.item] = self._last = done
        return done
