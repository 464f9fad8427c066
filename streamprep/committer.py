"""Makes staged results durable, records them in the ledger, and publishes the tables that readers open.

The order of a commit, which every guarantee rests on:

1. files: from the staging folder to their final names (their bytes are durable already), folder fsync
2. rows: written at the committed length of each row log, fdatasync; last a line of the log of commits
3. one ledger transaction: rows, lengths, the end of the older generation, the job's state
4. published tables: replaced whole, now or when it is worth it; they are derived and can be made again

A crash between any two leaves either an unknown file (moved to ``orphans/``) or a tail of a row log (cut off).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamprep import __version__
from streamprep.hookspecs import Sink, Staged, StagedRows, Table
from streamprep.journal import Commit, line_of
from streamprep.journal import read as read_journal
from streamprep.ledger import JOURNAL, Block, JobRow, Ledger, LedgerError, Shard
from streamprep.model import OutputError
from streamprep.naming import STATE_FOLDER as STATE_FOLDER
from streamprep.sinks import _files
from streamprep.snapshot import rows_of_sets

log = logging.getLogger(__name__)

GROWTH = 0.1
"""A table is published when its set has grown by this fraction, or when some time has passed."""

COST_SHARE = 0.05
"""Most of the time that publishing may take: cost per micrograph must not grow with the set."""


COMPARED_AT_ONCE = 100
"""So many files of single items that an earlier daemon wrote are read between other work."""


@dataclass(slots=True)
class _Published:
    version: int = -1
    """Of the table in the ledger, when it was published; -1 when that is not known."""
    rows: int = 0
    at: float = float("-inf")
    cost: float = 0.0


def size_of(path: Path) -> int:
    """Size of a file [bytes]; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def make_output(folder: Path) -> None:
    """Make an output folder where there is none, and make durable that it is there: all that is committed hangs on it.

    Nothing else would: an fsync of what lies in a folder says nothing about the folder's own name.
    """
    _files.make_folder(folder / STATE_FOLDER)
    _files.fsync_folder(folder)  # an earlier start may have ended before this
    with contextlib.suppress(PermissionError):  # a folder above that was there before, and cannot be read
        _files.fsync_folder(folder.parent)


class Committer:
    """The one writer of the output folder.

    Parameters
    ----------
    output
        The output folder.
    ledger
        The session's ledger.
    sinks
        Their tables are the ones published.
    publish_seconds
        Least time between two publications of a table that has grown by less than a tenth.
    """

    def __init__(
        self,
        output: Path,
        ledger: Ledger,
        sinks: Sequence[Sink],
        *,
        publish_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.output, self._ledger, self._clock = output, ledger, clock
        self._publish_seconds = publish_seconds
        self._tables: dict[str, Table] = {table.path: table for sink in sinks for table in sink.tables}
        self._main = [table.path for sink in sinks for table in sink.tables[:1]]
        self._folders = [folder for sink in sinks for folder in sink.folders]
        self._published = {name: _Published() for name in self._growing}
        self._unwritten: dict[Path, Block] = {}
        """Files of single items that are committed and still to be written."""
        self._uncompared: dict[str, int | None] = {}
        """Of each table of single items: before which block its files are still to be compared with the ledger."""

    @property
    def _growing(self) -> list[str]:
        return [name for name in self._tables if "{item}" not in name]

    def rows_path(self, table: str) -> Path:
        """The row log of a table."""
        return self.output / STATE_FOLDER / "rows" / (table.replace("/", "__").replace("{item}", "ITEM") + ".rows")

    @property
    def staging(self) -> Path:
        """Where workers put finished files."""
        return self.output / STATE_FOLDER / "staging"

    @property
    def orphans(self) -> Path:
        """Where files go that no commit knows."""
        return self.output / STATE_FOLDER / "orphans"

    def row_counts(self) -> dict[str, int]:
        """Committed rows of each set that ever had any, by the name of its first table: further ones hold the same.

        While none had any: of the first set of each sink.
        """
        versions = self._ledger.versions()
        found = rows_of_sets({name: versions[name][1] for name in self._growing if name in versions})
        return found or {name: 0 for name in self._growing if name in self._main}

    # --- recovery ---

    def recover(self) -> list[str]:
        """Bring the output folder to what the ledger says. Safe to be interrupted and repeated.

        Returns
        -------
        list of str
            What was done, for the log.

        Raises
        ------
        LedgerError
            Committed bytes are missing: a row log is shorter than the ledger says, or a stack is gone.
        """
        done: list[str] = []
        lost = self.lost()
        if lost:
            raise LedgerError(
                f"{self.output}: {lost[0]}{f'; and {len(lost) - 1} more' if lost[1:] else ''}. Restore the output "
                "folder from a copy; or run: streamprep repair, and what was made from these files is made again"
            )
        for table, length in (dict.fromkeys((*self._tables, JOURNAL), 0) | self._ledger.lengths()).items():
            path = self.rows_path(table)
            if size_of(path) > length:
                done.append(f"cut {size_of(path) - length} uncommitted bytes off the rows of {table}")
                _files.truncate(path, length)
        for name in self._growing:
            if name not in self._ledger.versions() and (self.output / name).exists():
                moved = _files.move_aside(self.output / name, self.orphans)
                done.append(f"moved {name}, which has no rows, to {moved.name} in orphans")
        for name in self._ledger.strangers(self._owned_files()):
            moved = _files.move_aside(self.output / name, self.orphans)
            done.append(f"moved {name}, which no commit knows, to {moved.name} in orphans")
        _files.clear_folder(self.staging)
        self._published = {name: _Published() for name in self._growing}  # what is there may be older than the ledger
        self._uncompared = {table: None for table in self._tables if table not in self._published}
        for table in list(self._uncompared):
            self._compare_item_files(table)  # `publish` goes on with it: there are as many as there are items
        self._renew(force=True)
        return done

    def lost(self) -> list[str]:
        """What is committed and not there any more, by the sizes of files; a text for each."""
        found = []
        for table, length in self._ledger.lengths().items():
            path = self.rows_path(table)
            if size_of(path) < length:
                found.append(f"{path.name} holds {size_of(path)} of {length} committed bytes of the rows of {table}")
        if self.later_commits() > 1:  # a crash leaves one at most
            found.append(f"the ledger is older than the rest: {self.later_commits()} commits came after it")
        for shard in self._ledger.shards():
            if not self.is_there(shard):
                found.append(f"{shard.path} is missing or has another size than the {shard.size} bytes committed")
        return found

    def later_commits(self) -> int:
        """How many commits the log of commits tells of that the ledger does not know."""
        path, known = self.rows_path(JOURNAL), self._ledger.length(JOURNAL)
        if size_of(path) <= known:
            return 0
        return sum(line is not None for line in read_journal(path, known))

    def is_there(self, shard: Shard) -> bool:
        """Whether a committed file is there, by its size."""
        try:
            found = os.stat(os.path.join(self.output, shard.path))  # noqa: PTH116, PTH118 - there is one for each item
        except (FileNotFoundError, NotADirectoryError):
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == shard.size

    def is_whole(self, shard: Shard) -> bool:
        """Whether it holds what was committed."""
        return self.is_there(shard) and _files.crc32_of(self.output / shard.path) == shard.crc32

    def are_rows_whole(self, block: Block) -> bool:
        """Whether the row log holds the rows that were committed."""
        crc = 0
        try:
            for chunk in _files.read_ranges(self.rows_path(block.table), [(block.start, block.length)]):
                crc = zlib.crc32(chunk, crc)
        except (OSError, OutputError):
            return False
        return crc == block.crc32

    def _owned_files(self) -> Iterator[str]:
        """Every file in the folders of the sinks, below the output folder."""
        for folder in self._folders:
            for here, _, names in os.walk(self.output / folder):
                below = os.path.relpath(here, self.output)
                for name in sorted(names):
                    yield f"{below}/{name}"

    def _compare_item_files(self, table: str) -> None:
        """Find files of single items that are not what the ledger says: they are not synced when they are written.

        Some at a time, the newest first, which a crash may have spoilt.
        """
        blocks = self._ledger.newest_blocks(table, self._uncompared[table], COMPARED_AT_ONCE)
        for block in blocks.values():
            path = self.output / table.replace("{item}", block.item)
            if size_of(path) != block.length or not path.exists() or _files.crc32_of(path) != block.crc32:
                self._unwritten[path] = block
        if len(blocks) == COMPARED_AT_ONCE:
            self._uncompared[table] = min(blocks)
        else:
            del self._uncompared[table]

    def _write_item_files(self) -> None:
        for path, block in list(self._unwritten.items()):
            data = _files.read_ranges(self.rows_path(block.table), [(block.start, block.length)])
            _files.replace_whole(path, data, durable=False)
            del self._unwritten[path]

    def _remove_item_files(self) -> None:
        """Remove the files of items that have no rows any more."""
        ended = self._ledger.ended_blocks()
        for _, table, item, has_rows in ended:
            if not has_rows:
                (self.output / table.replace("{item}", item)).unlink(missing_ok=True)
        if ended:
            self._ledger.swept(block for block, *_ in ended)

    # --- commit ---

    def commit(
        self,
        job: JobRow,
        staged: Sequence[Staged],
        folder: Path,
        *,
        warnings: Sequence[str] = (),
        notes: Sequence[str] = (),
        seconds: float,
        now: float,
    ) -> None:
        """Commit what a worker staged for a job.

        Raises
        ------
        OSError
            The disk is full or failed. Nothing is committed; the same call may be repeated.
        LedgerError
            The job was superseded meanwhile, or what was staged cannot be used; nothing is committed.
        """
        if not self._ledger.is_claimed(job.id):
            raise LedgerError(f"job {job.id} of {job.item} is no longer claimed")
        optics: dict[str, list[Mapping[str, Any]]] = {}
        rendered = [(rows, *self._render(rows, optics)) for part in staged for rows in part.rows]
        groups = {
            rows.table: {number: optics[rows.table][number - 1]}
            for rows, _, _, number in rendered
            if number is not None
        }
        shards = []
        for part in staged:
            for file in part.files:
                self._place(folder / file.staged, self.output / file.final, file.size_bytes, file.crc32)
                shards.append(Shard(file.final, file.size_bytes, file.crc32))
        blocks: list[Block] = []
        for rows, columns, data, _ in rendered:
            blocks.append(self._append(rows.table, data, blocks, rows.count, columns))
        told = line_of(
            self.described(
                job, shards, blocks, groups, warnings=tuple(warnings), notes=tuple(notes), seconds=seconds, finished=now
            )
        )
        blocks.append(self._append(JOURNAL, told, blocks))
        self._ledger.commit(
            job, shards, blocks, optics=optics, warnings=warnings, notes=notes, seconds=seconds, now=now
        )
        for block in blocks:
            if "{item}" in block.table:
                self._unwritten[self.output / block.table.replace("{item}", job.item)] = block
        with contextlib.suppress(OSError):  # the job is done by now; `publish` tries again, and says so
            self._write_item_files()

    def described(
        self,
        job: JobRow,
        shards: Sequence[Shard],
        blocks: Sequence[Block],
        optics: Mapping[str, Mapping[int, Mapping[str, Any]]],
        **said: Any,
    ) -> Commit:
        """A commit for the log of commits."""
        source = next(source for source in self._ledger.sources() if source.label == job.file.source)
        found = {made.table: self._ledger.newest(made.source, made.path) for made in job.inputs if made.table}
        tables = {number: table.identity for number, table in found.items() if table is not None}
        plan = self._ledger.get("plan") or ""
        return Commit(source, job, tuple(shards), tuple(blocks), plan, tables, optics, **said)

    def withdraw(self, staged: Sequence[Staged]) -> None:
        """Move aside what a commit placed that is not to be tried again."""
        for file in (file for part in staged for file in part.files):
            path = self.output / file.final
            with contextlib.suppress(OSError):
                if path.is_file() and not self._ledger.has_shard(file.final):
                    _files.move_aside(path, self.orphans)

    def _place(self, staged: Path, final: Path, size: int, crc32: int) -> None:
        if final.exists():
            if not staged.exists() and final.stat().st_size == size and _files.crc32_of(final) == crc32:
                _files.fsync_folder(final.parent)  # placed by an earlier try of this commit, durably or not
                return
            if self._ledger.has_shard(final.relative_to(self.output).as_posix()):
                raise LedgerError(
                    f"{final}: this name is taken by what was made of another item; rename one of the two"
                )
            _files.move_aside(final, self.orphans)
        if not staged.exists():
            raise LedgerError(f"{staged}: the staged file is gone")
        if staged.stat().st_size != size:
            raise LedgerError(f"{staged}: has {staged.stat().st_size} bytes, its manifest says {size}")
        _files.place(staged, final)

    def _render(
        self, rows: StagedRows, optics: dict[str, list[Mapping[str, Any]]]
    ) -> tuple[list[str], bytes, int | None]:
        lengths = {len(values) for values in rows.columns.values()}
        if lengths != {rows.count}:
            raise LedgerError(f"rows for {rows.table} have columns of {sorted(lengths)} values, not {rows.count}")
        number = None
        try:
            table = self._tables[rows.table]
            if rows.optics is not None:
                groups = optics.setdefault(rows.table, list(self._ledger.optics(rows.table)))
                if rows.optics not in groups:
                    groups.append(json.loads(json.dumps(rows.optics)))
                number = groups.index(rows.optics) + 1
            columns = table.columns(list(rows.columns))
            return columns, table.render(columns, rows, number), number
        except Exception as error:  # a table is a plugin's: its faults are its job's, not the session's
            raise LedgerError(f"rows for {rows.table} cannot be written: {type(error).__name__}: {error}") from error

    def _append(
        self, table: str, data: bytes, earlier: Sequence[Block], count: int = 1, columns: Sequence[str] = ()
    ) -> Block:
        ends = [block.start + block.length for block in earlier if block.table == table]
        start = ends[-1] if ends else self._ledger.length(table)
        _files.append(self.rows_path(table), start, data)
        return Block(table, start, len(data), count, tuple(columns), zlib.crc32(data))

    # --- publish ---

    def publish(self, *, force: bool = False) -> list[str]:
        """Renew the published tables that are due; ``force`` renews all that changed.

        Returns
        -------
        list of str
            The tables that were renewed.
        """
        while self._uncompared:
            self._compare_item_files(next(iter(self._uncompared)))
            if not force:
                break
        return self._renew(force=force)

    def _renew(self, *, force: bool) -> list[str]:
        self._remove_item_files()
        self._write_item_files()
        renewed = []
        versions = self._ledger.versions()
        for name, state in self._published.items():
            if name not in versions:
                continue
            (version, rows), now = versions[name], self._clock()
            if version == state.version and (self.output / name).exists():
                continue
            if state.version < 0 and self._ledger.get(f"published {name}") == self._mark(name, version):
                self._published[name] = _Published(version, rows)
                continue
            grown, gap = rows - state.rows >= max(1, GROWTH * state.rows), now - state.at
            due = gap >= state.cost / COST_SHARE and (grown or gap >= self._publish_seconds)
            if not (due or force):
                continue
            self._publish(name)
            ended = self._clock()
            self._published[name] = _Published(version, rows, ended, ended - now)
            self._ledger.put(f"published {name}", self._mark(name, version))
            renewed.append(name)
        return renewed

    def _mark(self, name: str, version: int) -> str:
        """Stands for a published table as it is now, and what it was made of: a start need not make it again."""
        try:
            found = (self.output / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return ""
        return json.dumps([__version__, version, found.st_size, found.st_mtime_ns, found.st_ino])

    def _publish(self, name: str) -> None:
        table = self._tables[name]
        wanted = table.columns(sorted(self._ledger.columns(name)))
        count = self._ledger.versions()[name][1]
        head = table.head(wanted, self._ledger.optics(name), count)
        _files.replace_whole(self.output / name, self._chunks(name, table, wanted, head))

    def _chunks(self, name: str, table: Table, wanted: Sequence[str], head: bytes) -> Iterator[bytes]:
        yield head
        path = self.rows_path(name)
        for columns, blocks in itertools.groupby(self._ledger.live_blocks(name), key=lambda block: block.columns):
            ranges = ((block.start, block.length) for block in blocks)
            if list(columns) == list(wanted):
                yield from _files.read_ranges(path, ranges)
            else:
                for here in ranges:
                    yield table.adapt(b"".join(_files.read_ranges(path, [here])), columns, wanted)
        yield table.tail
