"""Makes staged results durable, records them in the ledger, and publishes the tables that readers open.

All jobs whose results are there at a moment are committed together, as a batch: each step is done for all of them, and
synced once for each folder and each log. The order of the steps, which every guarantee rests on:

1. files: from the staging folder to their final names (their bytes are durable already), fsync of each folder
2. rows: written at the committed length of each row log, fdatasync; last the lines of the log of commits
3. one ledger transaction: rows, lengths, the end of the older generations, the jobs' states
4. published tables: replaced whole, now or when it is worth it; they are derived and can be made again

A crash between any two leaves either unknown files (moved to ``orphans/``) or tails of row logs (cut off).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import stat
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from streamprep import __version__
from streamprep.hookspecs import OpticsGroups, RenderedRows, Sink, Staged, StagedRows, Table, render
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

NAME_ERRORS = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL)
"""Of one job's file names; the others can be written as ever."""

GROUPS_SENT = 32
"""Workers are told the newest optics groups of each table, so many; rows of others are rendered by the committer."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a worker staged for a job."""

    job: JobRow
    staged: Sequence[Staged]
    folder: Path
    """Where it is staged."""
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    seconds: float = 0.0
    finished: float = 0.0


@dataclass(slots=True, eq=False)
class _Ready:
    """A result on its way into the output."""

    index: int
    """In its batch."""
    result: Result
    rows: list[tuple[StagedRows, RenderedRows]] = field(default_factory=list)
    placed: list[tuple[Path, Path]] = field(default_factory=list)
    """Its files, where they were staged and where they are now."""
    shards: list[Shard] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


COMPARED_AT_ONCE = 100
"""So many files of single items that an earlier daemon wrote are read between other work."""


@dataclass(slots=True)
class _Published:
    version: int = -1
    """Of the table in the ledger, when it was published; -1 when that is not known."""
    rows: int = 0
    at: float = float("-inf")
    cost: float = 0.0
    behind: float | None = None
    """Since when the ledger holds another version."""


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


def _taken(final: Path) -> LedgerError:
    return LedgerError(f"{final}: this name is taken by what was made of another item; rename one of the two")


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
        self._optics: dict[str, list[Mapping[str, Any]]] = {}
        """Committed optics groups of each table; numbers never change."""
        self._seen_changes = -1
        """Of the ledger, when `publish` last asked it."""
        self._versions: Mapping[str, tuple[int, int]] = {}

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

    def unpublished(self) -> tuple[int, float]:
        """Rows that are committed and not yet in the published tables of the sets, and for how long the oldest [s]."""
        missing = {name: max(0, rows - self._published[name].rows) for name, rows in self.row_counts().items()}
        since = [state.behind for state in self._published.values() if state.behind is not None]
        return sum(missing.values()), self._clock() - min(since) if since else 0.0

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
        done = self.finish_upgrade()
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
        self._optics = {}
        self._uncompared = {table: None for table in self._tables if table not in self._published}
        for table in list(self._uncompared):
            self._compare_item_files(table)  # `publish` goes on with it: there are as many as there are items
        self._renew(force=True)
        return done

    def finish_upgrade(self) -> list[str]:
        """After the ledger was upgraded, write the log of commits anew, in the form that its lines have now.

        Returns
        -------
        list of str
            What was upgraded, for the log; nothing where nothing was, or it was finished.
        """
        upgraded = self._ledger.get("upgraded")
        if not upgraded:
            return []
        self.rewrite_journal()
        self._ledger.put("upgraded", "")
        return [upgraded]

    def rewrite_journal(self) -> None:
        """Write the log of commits anew, from what the ledger says."""
        path, stands = self.rows_path(JOURNAL), list[tuple[int, Block]]()

        def lines() -> Iterator[bytes]:
            start = 0
            for job in self._ledger.done_jobs():
                made, shards, blocks, said = self._ledger.committed(job)
                groups = {table: self._ledger.optics(table) for table in {block.table for block in blocks}}
                optics = {table: dict(enumerate(known, start=1)) for table, known in groups.items() if known}
                line = line_of(self.described(made, shards, blocks, optics, **said))
                stands.append((job, Block(JOURNAL, start, len(line), 1, (), zlib.crc32(line))))
                start += len(line)
                yield line

        _files.replace_whole(path, lines())
        self._ledger.replace_journal(stands)

    def lost(self) -> list[str]:
        """What is committed and not there any more, by the sizes of files; a text for each."""
        found = []
        for table, length in self._ledger.lengths().items():
            path = self.rows_path(table)
            if size_of(path) < length:
                found.append(f"{path.name} holds {size_of(path)} of {length} committed bytes of the rows of {table}")
        later = self.later_commits()
        if len(set(later)) > 1:  # a crash leaves one batch at most
            found.append(f"the ledger is older than the rest: {len(later)} commits came after it")
        for shard in self._ledger.shards():
            if not self.is_there(shard):
                found.append(f"{shard.path} is missing or has another size than the {shard.size} bytes committed")
        return found

    def later_commits(self) -> list[int]:
        """Of each commit that the log of commits tells of and the ledger does not know: where its batch begins."""
        path, known = self.rows_path(JOURNAL), self._ledger.length(JOURNAL)
        if size_of(path) <= known:
            return []
        lines = (line for line in read_journal(path, known) if line is not None)
        return [line.start if line.commit.batch is None else line.commit.batch for line in lines]

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
            path = self._own_file(table, block.item)
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
                self._own_file(table, item).unlink(missing_ok=True)
                self._unwritten.pop(self._own_file(table, item), None)
        if ended:
            self._ledger.swept(block for block, *_ in ended)

    # --- commit ---

    def commit(self, batch: Sequence[Result]) -> list[LedgerError | OSError | None]:
        """Commit what workers staged for some jobs, one for each item at most: all together, but for those at fault.

        Returns
        -------
        list
            For each, None where it is committed. Else why it cannot be: a LedgerError where it was superseded
            meanwhile, or where what was staged cannot be used, an OSError where its names cannot be; what was placed
            of it lies in ``orphans/``.

        Raises
        ------
        OSError
            The disk is full or failed. Nothing is committed; the same call may be repeated, with other jobs, too.
        """
        faults: list[LedgerError | OSError | None] = [None] * len(batch)
        fresh: dict[str, list[Mapping[str, Any]]] = {}
        ready: list[_Ready] = []
        taken: set[str] = set()

        def give_up(made: _Ready, error: LedgerError | OSError) -> None:
            faults[made.index] = error
            self._withdraw(made)

        for index, result in enumerate(batch):
            made, before = _Ready(index, result), {table: len(groups) for table, groups in fresh.items()}
            try:
                self._prepare(made, fresh, taken)
            except (LedgerError, OSError) as error:
                if isinstance(error, OSError) and error.errno not in NAME_ERRORS:
                    raise
                give_up(made, error)
                for table, groups in fresh.items():
                    del groups[before.get(table, 0) :]
            else:
                ready.append(made)
                taken.update(shard.path for shard in made.shards)
        _files.make_names_durable([pair for made in ready for pair in made.placed])
        lengths = self._ledger.lengths()
        for table in dict.fromkeys(rows.table for made in ready for rows, _ in made.rows):
            concerned = [made for made in ready if any(rows.table == table for rows, _ in made.rows)]
            try:
                self._append_rows(table, lengths.get(table, 0), concerned)
            except OSError as error:
                if error.errno not in NAME_ERRORS:
                    raise
                for made in concerned:
                    give_up(made, error)
                ready = [made for made in ready if made not in concerned]
        if ready:
            self._append_lines(lengths.get(JOURNAL, 0), ready, fresh)
            self._record(ready, fresh)
            for table, groups in fresh.items():
                self._known(table).extend(groups)
            self._write_own_files(ready)
        return faults

    def _prepare(self, made: _Ready, fresh: dict[str, list[Mapping[str, Any]]], taken: Collection[str]) -> None:
        """Render the rows and place the files of a job; ``taken`` are names of files that others of its batch have."""
        job = made.result.job
        if not self._ledger.is_claimed(job.id):
            raise LedgerError(f"job {job.id} of {job.item} is no longer claimed")
        for part in made.result.staged:
            made.rows += [(rows, self._render(rows, fresh)) for rows in part.rows]
        for file in (file for part in made.result.staged for file in part.files):
            staged, final = made.result.folder / file.staged, self.output / file.final
            if file.final in taken or any(shard.path == file.final for shard in made.shards):
                raise _taken(final)
            self._place(staged, final, file.size_bytes, file.crc32)
            made.placed.append((staged, final))
            made.shards.append(Shard(file.final, file.size_bytes, file.crc32))

    def _append_rows(self, table: str, start: int, ready: Sequence[_Ready]) -> None:
        parts: list[bytes] = []
        for made in ready:
            for rows, rendered in made.rows:
                if rows.table == table:
                    data, columns = rendered.data, rendered.columns
                    made.blocks.append(Block(table, start, len(data), rows.count, columns, zlib.crc32(data)))
                    parts.append(data)
                    start += len(data)
        _files.append(self.rows_path(table), start - sum(map(len, parts)), b"".join(parts))

    def _append_lines(self, batch: int, ready: Sequence[_Ready], fresh: Mapping[str, list[Mapping[str, Any]]]) -> None:
        """The line of each job in the log of commits, and where it stands as the last of the job's blocks."""
        start, lines = batch, []
        for made in ready:
            groups: dict[str, dict[int, Mapping[str, Any]]] = {}
            for rows, rendered in made.rows:
                if rendered.optics_group is not None:
                    known = [*self._known(rows.table), *fresh.get(rows.table, ())]
                    groups.setdefault(rows.table, {})[rendered.optics_group] = known[rendered.optics_group - 1]
            line = line_of(
                self.described(
                    made.result.job,
                    made.shards,
                    made.blocks,
                    groups,
                    warnings=tuple(made.result.warnings),
                    notes=tuple(made.result.notes),
                    seconds=made.result.seconds,
                    finished=made.result.finished,
                    batch=batch,
                )
            )
            made.blocks.append(Block(JOURNAL, start, len(line), 1, (), zlib.crc32(line)))
            lines.append(line)
            start += len(line)
        _files.append(self.rows_path(JOURNAL), batch, b"".join(lines))

    def _record(self, ready: Sequence[_Ready], fresh: Mapping[str, list[Mapping[str, Any]]]) -> None:
        """The one ledger transaction."""
        with self._ledger.transaction():
            for table, groups in fresh.items():
                self._ledger.put_optics(table, dict(enumerate(groups, start=len(self._known(table)) + 1)))
            for made in ready:
                self._ledger.commit(
                    made.result.job,
                    made.shards,
                    made.blocks,
                    warnings=made.result.warnings,
                    notes=made.result.notes,
                    seconds=made.result.seconds,
                    now=made.result.finished,
                )

    def described(
        self, job: JobRow, shards: Sequence[Shard], blocks: Sequence[Block], optics: OpticsGroups, **said: Any
    ) -> Commit:
        """A commit for the log of commits."""
        source = self._ledger.source(job.file.source)
        found = {made.table: self._ledger.newest(made.source, made.path) for made in job.inputs if made.table}
        tables = {number: table.identity for number, table in found.items() if table is not None}
        plan = self._ledger.get("plan") or ""
        return Commit(source, job, tuple(shards), tuple(blocks), plan, tables, optics, **said)

    def known_groups(self) -> OpticsGroups:
        """The newest optics groups of each table that has any, for workers to render rows with."""
        found = {}
        for table in self._tables:
            groups = self._known(table)
            first = max(0, len(groups) - GROUPS_SENT)
            if groups:
                found[table] = dict(enumerate(groups[first:], start=first + 1))
        return found

    def _known(self, table: str) -> list[Mapping[str, Any]]:
        if table not in self._optics:
            self._optics[table] = list(self._ledger.optics(table))
        return self._optics[table]

    def _withdraw(self, made: _Ready) -> None:
        """Move aside what was placed of a job that is not to be tried again."""
        for _, final in made.placed:
            with contextlib.suppress(OSError):
                _files.move_aside(final, self.orphans)

    def _place(self, staged: Path, final: Path, size: int, crc32: int) -> None:
        """Give a staged file its name, which is not durable yet; it may have it from an earlier try."""
        if final.exists():
            if not staged.exists() and final.stat().st_size == size and _files.crc32_of(final) == crc32:
                return
            if self._ledger.has_shard(final.relative_to(self.output).as_posix()):
                raise _taken(final)
            _files.move_aside(final, self.orphans)
        if not staged.exists():
            raise LedgerError(f"{staged}: the staged file is gone")
        if staged.stat().st_size != size:
            raise LedgerError(f"{staged}: has {staged.stat().st_size} bytes, its manifest says {size}")
        _files.place(staged, final, durable=False)

    def _render(self, rows: StagedRows, fresh: dict[str, list[Mapping[str, Any]]]) -> RenderedRows:
        """Rows as bytes, where no worker made them; an optics group that is new is added to ``fresh``."""
        try:
            table = self._tables[rows.table]
            if rows.rendered is not None:
                return rows.rendered
            number = None
            if rows.optics is not None:
                known, new = self._known(rows.table), fresh.setdefault(rows.table, [])
                if rows.optics not in known and rows.optics not in new:
                    new.append(json.loads(json.dumps(rows.optics)))
                number = [*known, *new].index(rows.optics) + 1
            return render(table, rows, number)
        except Exception as error:  # a table is a plugin's: its faults are its job's, not the session's
            raise LedgerError(f"rows for {rows.table} cannot be written: {type(error).__name__}: {error}") from error

    def _write_own_files(self, ready: Sequence[_Ready]) -> None:
        """The files of single items. Their jobs are done by now; `publish` writes what cannot be written here."""
        for made in ready:
            for block in (block for block in made.blocks if "{item}" in block.table):
                self._unwritten[self._own_file(block.table, made.result.job.item)] = block
        with contextlib.suppress(OSError):
            for made in ready:
                for rows, rendered in made.rows:
                    if "{item}" in rows.table:
                        path = self._own_file(rows.table, made.result.job.item)
                        _files.replace_whole(path, [rendered.data], durable=False)
                        self._unwritten.pop(path, None)

    def _own_file(self, table: str, item: str) -> Path:
        return self.output / table.replace("{item}", item)

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
        if self._ledger.changes != self._seen_changes:
            changes = self._ledger.changes
            self._remove_item_files()
            self._versions, self._seen_changes = self._ledger.versions(), changes
        self._write_item_files()
        renewed = []
        for name, state in self._published.items():
            if name not in self._versions:
                continue
            (version, rows), now = self._versions[name], self._clock()
            if version == state.version and (self.output / name).exists():
                continue
            mark = self._mark(name, version)
            if state.version < 0 and mark is not None and self._ledger.get(f"published {name}") == mark:
                self._published[name] = _Published(version, rows)
                continue
            if state.behind is None:
                state.behind = now
            grown, gap = rows - state.rows >= max(1, GROWTH * state.rows), now - state.at
            due = gap >= state.cost / COST_SHARE and (grown or gap >= self._publish_seconds)
            if not (due or force):
                continue
            self._publish(name, rows)
            ended = self._clock()
            self._published[name] = _Published(version, rows, ended, ended - now)
            self._ledger.put(f"published {name}", self._mark(name, version) or "")
            renewed.append(name)
        return renewed

    def _mark(self, name: str, version: int) -> str | None:
        """Stands for a published table as it is now, and what it was made of: a start need not make it again."""
        try:
            found = (self.output / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return json.dumps([__version__, version, found.st_size, found.st_mtime_ns, found.st_ino])

    def _publish(self, name: str, count: int) -> None:
        table = self._tables[name]
        wanted = table.columns(sorted(self._ledger.columns(name)))
        head = table.head(wanted, self._ledger.optics(name), count)
        _files.replace_whole(self.output / name, self._parts(name, table, wanted, head))

    def _parts(self, name: str, table: Table, wanted: Sequence[str], head: bytes) -> Iterator[bytes | _files.Ranges]:
        yield head
        path = self.rows_path(name)
        for columns, found in itertools.groupby(self._ledger.live_ranges(name), key=itemgetter(0)):
            ranges = ((start, length) for _, start, length in found)
            if list(columns) == list(wanted):
                yield _files.Ranges(path, ranges)
            else:
                for here in ranges:
                    yield table.adapt(b"".join(_files.read_ranges(path, [here])), columns, wanted)
        yield table.tail
