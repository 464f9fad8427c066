"""Makes staged results durable, records them in the ledger, and publishes the tables that readers open.

The order of a commit, which every guarantee rests on:

1. files: from the staging folder to their final names (their bytes are durable already), folder fsync
2. rows: written at the committed length of each row log, fdatasync
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
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamprep.hookspecs import Sink, Staged, StagedRows, Table
from streamprep.ledger import Block, JobRow, Ledger, LedgerError, Shard
from streamprep.sinks import _files
from streamprep.snapshot import rows_of_sets

log = logging.getLogger(__name__)

STATE_FOLDER = ".streamprep"
GROWTH = 0.1
"""A table is published when its set has grown by this fraction, or when some time has passed."""

COST_SHARE = 0.05
"""Most of the time that publishing may take: cost per micrograph must not grow with the set."""


@dataclass(slots=True)
class _Published:
    version: int = -1
    """Of the table in the ledger, when it was published; -1 when that is not known."""
    rows: int = 0
    at: float = float("-inf")
    cost: float = 0.0


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
        for table, length in (dict.fromkeys(self._tables, 0) | self._ledger.lengths()).items():
            path = self.rows_path(table)
            size = path.stat().st_size if path.exists() else 0
            if size < length:
                raise LedgerError(
                    f"{path}: holds {size} of {length} committed bytes; rows of {table} are lost. Restore the output "
                    "folder from a copy; or move it away, and everything is processed again at the next start"
                )
            if size > length:
                _files.truncate(path, length)
                done.append(f"cut {size - length} uncommitted bytes off the rows of {table}")
        lost, known = [], set()
        for shard in self._ledger.shards():
            known.add(shard.path)
            path = self.output / shard.path
            if not path.exists() or path.stat().st_size != shard.size:
                lost.append(shard.path)
        if lost:
            raise LedgerError(
                f"{self.output}: {len(lost)} committed stacks are missing or have another size, the first is {lost[0]}."
                " Restore them from a copy; or move the output folder away, and everything is processed again at the "
                "next start"
            )
        for path in self._owned_files():
            if path.relative_to(self.output).as_posix() not in known:
                moved = _files.move_aside(path, self.orphans)
                done.append(f"moved {path.relative_to(self.output)}, which no commit knows, to {moved.name} in orphans")
        _files.clear_folder(self.staging)
        self._published = {name: _Published() for name in self._growing}  # what is there may be older than the ledger
        for table in self._tables:
            if table not in self._published:
                self._unwritten.update(self._outdated_item_files(table))
        self.publish(force=True)
        return done

    def _owned_files(self) -> Iterator[Path]:
        for folder in self._folders:
            for here, _, names in os.walk(self.output / folder):
                for name in sorted(names):
                    yield Path(here, name)

    def _outdated_item_files(self, table: str) -> Iterator[tuple[Path, Block]]:
        for block in self._ledger.live_blocks(table):
            path = self.output / table.replace("{item}", block.item)
            same_size = path.exists() and path.stat().st_size == block.length
            if not same_size or _files.crc32_of(path) != block.crc32:
                yield path, block

    def _write_item_files(self) -> None:
        for path, block in list(self._unwritten.items()):
            data = _files.read_ranges(self.rows_path(block.table), [(block.start, block.length)])
            _files.replace_whole(path, data, durable=False)
            del self._unwritten[path]

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
        shards = []
        for part in staged:
            for file in part.files:
                self._place(folder / file.staged, self.output / file.final, file.size_bytes, file.crc32)
                shards.append(Shard(file.final, file.size_bytes, file.crc32))
        blocks: list[Block] = []
        for rows, columns, data in rendered:
            blocks.append(self._append(rows, columns, data, blocks))
        self._ledger.commit(
            job, shards, blocks, optics=optics, warnings=warnings, notes=notes, seconds=seconds, now=now
        )
        for block in blocks:
            if block.table not in self._published:
                self._unwritten[self.output / block.table.replace("{item}", job.item)] = block
        with contextlib.suppress(OSError):  # the job is done by now; `publish` tries again, and says so
            self._write_item_files()

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

    def _render(self, rows: StagedRows, optics: dict[str, list[Mapping[str, Any]]]) -> tuple[list[str], bytes]:
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
            return columns, table.render(columns, rows, number)
        except Exception as error:  # a table is a plugin's: its faults are its job's, not the session's
            raise LedgerError(f"rows for {rows.table} cannot be written: {type(error).__name__}: {error}") from error

    def _append(self, rows: StagedRows, columns: Sequence[str], data: bytes, earlier: Sequence[Block]) -> Block:
        ends = [block.start + block.length for block in earlier if block.table == rows.table]
        start = ends[-1] if ends else self._ledger.length(rows.table)
        _files.append(self.rows_path(rows.table), start, data)
        return Block(rows.table, start, len(data), rows.count, tuple(columns), zlib.crc32(data))

    # --- publish ---

    def publish(self, *, force: bool = False) -> list[str]:
        """Renew the published tables that are due; ``force`` renews all that changed.

        Returns
        -------
        list of str
            The tables that were renewed.
        """
        self._write_item_files()
        renewed = []
        versions = self._ledger.versions()
        for name, state in self._published.items():
            if name not in versions:
                continue
            (version, rows), now = versions[name], self._clock()
            if version == state.version and (self.output / name).exists():
                continue
            grown, gap = rows - state.rows >= max(1, GROWTH * state.rows), now - state.at
            due = gap >= state.cost / COST_SHARE and (grown or gap >= self._publish_seconds)
            if not (due or force):
                continue
            self._publish(name)
            ended = self._clock()
            self._published[name] = _Published(version, rows, ended, ended - now)
            renewed.append(name)
        return renewed

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
