"""All the state of a session, in one SQLite file with one connection. The only module that knows SQLite.

What the ledger says is what happened: an item is done when, and only when, the transaction of `Ledger.commit` is
through. Methods are called from the engine's thread alone.

Tables
------
files       one row per generation of each path: what arrived
entries     what a table says about each micrograph, and masks: what a micrograph is joined with
jobs        one row per generation of each item: what is to be made, and how it ended
shards      immutable files of the output, each of one job
blocks      where a job's rows lie in the row log of each table
tables      committed length of each row log
optics      optics groups of each table
meta, runs  plan, seed, schema; when the daemon ran
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from streamprep.model import Identity, Kind, StreamprepError
from streamprep.naming import best_match, item_name, match_key

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE runs (id INTEGER PRIMARY KEY, started REAL NOT NULL, stopped REAL, pid INTEGER, version TEXT) STRICT;
CREATE TABLE files (
  id INTEGER PRIMARY KEY, source TEXT NOT NULL, path BLOB NOT NULL, generation INTEGER NOT NULL, kind TEXT NOT NULL,
  item TEXT NOT NULL, key TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('ready','queued','done','rejected','failed','superseded')),
  gone INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, reason TEXT, noticed REAL NOT NULL,
  UNIQUE (source, path, generation)) STRICT;
CREATE INDEX files_by_key ON files (key, kind);
CREATE INDEX files_by_state ON files (kind, state);
CREATE INDEX files_by_item ON files (item);
CREATE TABLE entries (
  id INTEGER PRIMARY KEY, file INTEGER NOT NULL REFERENCES files, kind TEXT NOT NULL, name BLOB NOT NULL,
  key TEXT NOT NULL, digest TEXT NOT NULL, count INTEGER NOT NULL, live INTEGER NOT NULL DEFAULT 1) STRICT;
CREATE INDEX entries_by_key ON entries (key, kind) WHERE live;
CREATE INDEX entries_by_file ON entries (file) WHERE live;
CREATE TABLE jobs (
  id INTEGER PRIMARY KEY, item TEXT NOT NULL, file INTEGER NOT NULL REFERENCES files, generation INTEGER NOT NULL,
  inputs TEXT NOT NULL, signature TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('ready','claimed','done','rejected','failed','superseded')),
  attempts INTEGER NOT NULL DEFAULT 0, reason TEXT, operation TEXT, trace TEXT, warnings TEXT, notes TEXT,
  finished REAL, seconds REAL, UNIQUE (item, generation)) STRICT;
CREATE INDEX jobs_by_state ON jobs (state);
CREATE INDEX jobs_by_file ON jobs (file);
CREATE INDEX jobs_with_warnings ON jobs (state) WHERE warnings IS NOT NULL;
CREATE TABLE shards (
  id INTEGER PRIMARY KEY, job INTEGER NOT NULL REFERENCES jobs, path TEXT NOT NULL UNIQUE, size INTEGER NOT NULL,
  crc32 INTEGER NOT NULL, live INTEGER NOT NULL DEFAULT 1) STRICT;
CREATE INDEX shards_by_job ON shards (job);
CREATE TABLE blocks (
  id INTEGER PRIMARY KEY, job INTEGER NOT NULL REFERENCES jobs, tbl TEXT NOT NULL, start INTEGER NOT NULL,
  length INTEGER NOT NULL, count INTEGER NOT NULL, columns TEXT NOT NULL, crc32 INTEGER NOT NULL,
  live INTEGER NOT NULL DEFAULT 1) STRICT;
CREATE INDEX blocks_by_table ON blocks (tbl, id) WHERE live;
CREATE INDEX blocks_by_job ON blocks (job);
CREATE TABLE tables (name TEXT PRIMARY KEY, length INTEGER NOT NULL) STRICT;
CREATE TABLE optics (
  tbl TEXT NOT NULL, number INTEGER NOT NULL, data TEXT NOT NULL, PRIMARY KEY (tbl, number), UNIQUE (tbl, data)) STRICT;
"""

State = Literal["ready", "queued", "claimed", "done", "rejected", "failed", "superseded"]


class LedgerError(StreamprepError):
    """The ledger cannot be used as it is."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """One generation of a file."""

    id: int
    source: str
    path: str
    generation: int
    kind: Kind
    item: str
    identity: Identity
    attempts: int


@dataclass(frozen=True, slots=True)
class JobInput:
    """One file that a job reads beside its micrograph."""

    kind: Kind
    source: str
    path: str
    name: str
    """The micrograph's name as the file writes it, or the file's own."""
    digest: str


@dataclass(frozen=True, slots=True)
class JobRow:
    """One piece of work."""

    id: int
    item: str
    generation: int
    file: FileRow
    inputs: tuple[JobInput, ...]
    attempts: int


@dataclass(frozen=True, slots=True)
class EntryRow:
    """What is to be recorded of one entry of a table."""

    kind: Kind
    name: str
    digest: str
    count: int


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one job in the row log of one table."""

    table: str
    start: int
    length: int
    count: int
    columns: tuple[str, ...]
    crc32: int
    item: str = ""


@dataclass(frozen=True, slots=True)
class Shard:
    """One immutable output file."""

    path: str
    size: int
    crc32: int


class Ledger:
    """The session's state.

    Parameters
    ----------
    path
        The SQLite file; made when it is missing.
    remote
        True on a network file system: a rollback journal instead of a write-ahead log.
    suffixes
        Endings that are ignored when a table's name is matched with a micrograph's.
    """

    def __init__(self, path: Path, *, remote: bool = False, suffixes: Sequence[str] = ()) -> None:
        self._suffixes = tuple(suffixes)
        self.changes = 0
        """Counts transactions, so that summaries can be cached."""
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2.0)
        except sqlite3.Error as error:
            raise LedgerError(f"{path}: the ledger cannot be opened: {error}") from error
        try:
            self._open(path, remote=remote)
        except BaseException:
            self._db.close()
            raise

    def _open(self, path: Path, *, remote: bool) -> None:
        try:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute(f"PRAGMA journal_mode = {'DELETE' if remote else 'WAL'}")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                with self.transaction():
                    for statement in SCHEMA.split(";\n"):
                        if statement.strip():
                            self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise LedgerError(
                    f"{path}: made by another version of streamprep (schema {version}, this one writes "
                    f"{SCHEMA_VERSION}); continue with that version, or give another output folder"
                )
            broken = [row[0] for row in self._db.execute("PRAGMA quick_check(3)") if row[0] != "ok"]
        except sqlite3.OperationalError as error:
            raise LedgerError(f"{path}: the ledger cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{path}: the ledger is damaged: {error}") from error
        if broken:
            raise LedgerError(f"{path}: the ledger is damaged: {'; '.join(broken)}")

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Nested uses join the outermost.

        Raises
        ------
        OSError
            The disk is full (``ENOSPC``). Nothing happened; the same may be tried again.
        """
        if self._db.in_transaction:
            yield
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: the ledger") from error
            raise
        self.changes += 1

    # --- session ---

    def get(self, key: str) -> str | None:
        """A fact about the session."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, value: str) -> None:
        """Record a fact about the session."""
        with self.transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def start_run(self, now: float, version: str) -> int:
        """Record that the daemon starts; jobs that a dead one had claimed become ready again."""
        with self.transaction():
            self._db.execute("UPDATE jobs SET state = 'ready' WHERE state = 'claimed'")
            cursor = self._db.execute(
                "INSERT INTO runs (started, pid, version) VALUES (?, ?, ?)", (now, os.getpid(), version)
            )
        return int(cursor.lastrowid or 0)

    def stop_run(self, run: int, now: float) -> None:
        """Record that the daemon ended in order."""
        with self.transaction():
            self._db.execute("UPDATE runs SET stopped = ? WHERE id = ?", (now, run))

    # --- files ---

    def is_known(self, source: str, path: str, identity: Identity) -> bool:
        """Whether the newest generation of a path has this identity.

        The change time is left out: `chmod` and hard links alter it and nothing else.
        """
        row = self._db.execute(
            "SELECT size, mtime_ns, inode, gone FROM files WHERE source = ? AND path = ? "
            "ORDER BY generation DESC LIMIT 1",
            (source, os.fsencode(path)),
        ).fetchone()
        return row is not None and not row[3] and tuple(row[:3]) == (identity.size, identity.mtime_ns, identity.inode)

    def notice(
        self, source: str, path: str, identity: Identity, kind: Kind, now: float, problem: str | None = None
    ) -> FileRow | None:
        """Record an arrival as a new generation of its path.

        Returns
        -------
        FileRow
            The new generation; None where nothing is new.
        """
        if self.is_known(source, path, identity):
            return None
        raw, name = os.fsencode(path), item_name(source, path)
        with self.transaction():
            last = self._db.execute(
                "SELECT id, generation, state, size, mtime_ns, inode FROM files WHERE source = ? AND path = ? "
                "ORDER BY generation DESC LIMIT 1",
                (source, raw),
            ).fetchone()
            generation = 1 if last is None else last[1] + 1
            other = self._db.execute(
                "SELECT path FROM files WHERE source = ? AND item = ? AND kind = ? AND path != ? "
                "AND state != 'superseded' AND kind = 'micrograph' LIMIT 1",
                (source, name, kind, raw),
            ).fetchone()
            if other is not None and problem is None:
                problem = f"has the same name as {os.fsdecode(other[0])}, apart from the ending; rename one of them"
            if last is not None:
                # rows of an older image stay in the sets until the new one's replace them; see `commit`
                self._db.execute("UPDATE files SET state = 'superseded', gone = 0 WHERE id = ?", (last[0],))
                self._supersede_waiting(last[0])
            cursor = self._db.execute(
                "INSERT INTO files (source, path, generation, kind, item, key, size, mtime_ns, inode, state, reason, "
                "noticed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (source, raw, generation, kind, name, _text(match_key(path, self._suffixes)), identity.size,
                 identity.mtime_ns, identity.inode, "ready" if problem is None else "failed",
                 None if problem is None else _text(problem), now),
            )  # fmt: skip
        return FileRow(int(cursor.lastrowid or 0), source, path, generation, kind, name, identity, 0)

    def ignore(self, source: str, path: str, identity: Identity, now: float) -> None:
        """Record a file that nobody knows, so that scans pass over it."""
        file = self.notice(source, path, identity, "other", now)
        if file is not None:
            self.file_failed(file.id, "no reader knows this kind of file", final=True, state="rejected")

    def _supersede_waiting(self, file: int) -> None:
        self._db.execute(
            "UPDATE jobs SET state = 'superseded', reason = 'the file changed' WHERE file = ? "
            "AND state IN ('ready', 'claimed', 'failed', 'rejected')",
            (file,),
        )

    def waiting_tables(self, limit: int, excluded: Iterable[int] = ()) -> list[FileRow]:
        """Tables that have not been read yet, the oldest first; ``excluded`` are not to be taken yet."""
        left_out = set(excluded)
        rows = self._db.execute(
            f"SELECT {_FILE} FROM files f WHERE kind IN ('coordinates', 'ctf') AND state = 'ready' ORDER BY id LIMIT ?",
            (limit + len(left_out),),
        )
        return [file for file in map(_file, rows) if file.id not in left_out][:limit]

    def table_read(self, file: int, entries: Iterable[EntryRow]) -> None:
        """Record what a table says, in place of what its older generations said, and join."""
        with self.transaction():
            row = self._db.execute("SELECT source, path, state, kind FROM files WHERE id = ?", (file,)).fetchone()
            if row[2] != "ready":
                return
            rows = list(entries)
            found: dict[tuple[str, str], EntryRow] = {(entry.kind, entry.name): entry for entry in rows}
            older = self._db.execute(
                "SELECT e.id, e.kind, e.name, e.digest, e.key FROM entries e JOIN files f ON f.id = e.file "
                "WHERE e.live AND f.source = ? AND f.path = ?",
                (row[0], row[1]),
            ).fetchall()
            touched: set[str] = set()
            for entry, kind, raw, digest, key in older:
                name = os.fsdecode(raw)
                same = found.get((kind, name))
                if same is not None and same.digest == digest:
                    self._db.execute("UPDATE entries SET file = ? WHERE id = ?", (file, entry))
                    del found[kind, name]
                else:
                    self._db.execute("UPDATE entries SET live = 0 WHERE id = ?", (entry,))
                    touched.add(key)
            for entry_row in found.values():
                touched.add(self._add_entry(file, entry_row))
            kinds = {entry.kind for entry in rows}
            kind = next(iter(kinds)) if len(kinds) == 1 else row[3]
            self._db.execute("UPDATE files SET state = 'done', kind = ? WHERE id = ?", (kind, file))
            for key in sorted(touched):
                self._join(key)

    def mask_found(self, file: FileRow) -> None:
        """Record a mask as an entry of its own, and join."""
        digest = f"{file.identity.size}-{file.identity.mtime_ns}-{file.identity.inode}"
        self.table_read(file.id, [EntryRow("mask", file.path, digest, 1)])

    def _add_entry(self, file: int, entry: EntryRow) -> str:
        key = _text(match_key(entry.name, self._suffixes))
        self._db.execute(
            "INSERT INTO entries (file, kind, name, key, digest, count) VALUES (?, ?, ?, ?, ?, ?)",
            (file, entry.kind, os.fsencode(entry.name), key, entry.digest, entry.count),
        )
        return key

    def file_failed(self, file: int, reason: str, *, final: bool, state: State = "failed", gone: bool = False) -> bool:
        """Record that a table could not be read; True when it is now failed for good.

        What its older generations said holds no longer then: micrographs that are not done wait for it again.
        """
        with self.transaction():
            self._db.execute(
                "UPDATE files SET attempts = attempts + 1, reason = ?, gone = ? WHERE id = ?",
                (_text(reason), gone, file),
            )
            if final:
                self._db.execute("UPDATE files SET state = ? WHERE id = ? AND state = 'ready'", (state, file))
                self._withdraw(file)
        return final

    def tables_of_waiting(self, limit: int) -> list[FileRow]:
        """Tables that speak of micrographs that still wait, perhaps because these tables contradict one another."""
        rows = self._db.execute(
            f"SELECT DISTINCT {_FILE} FROM files m JOIN entries e ON e.key = m.key AND e.live "
            "JOIN files f ON f.id = e.file WHERE m.kind = 'micrograph' AND m.state = 'ready' LIMIT ?",
            (limit,),
        )
        return [_file(row) for row in rows]

    def table_gone(self, file: int) -> None:
        """Record that a table was removed: what it said no longer counts; it is new when it comes back."""
        with self.transaction():
            self._db.execute(
                "UPDATE files SET state = 'superseded', gone = 1, reason = 'the file was removed' WHERE id = ?", (file,)
            )
            self._withdraw(file)

    def _withdraw(self, file: int) -> None:
        said = self._db.execute(
            "SELECT e.id, e.key FROM files n JOIN files f ON f.source = n.source AND f.path = n.path "
            "JOIN entries e ON e.file = f.id WHERE n.id = ? AND e.live "
            "AND (n.gone OR n.state IN ('failed', 'rejected'))",
            (file,),
        ).fetchall()
        self._db.executemany("UPDATE entries SET live = 0 WHERE id = ?", [(entry,) for entry, _ in said])
        for key in sorted({key for _, key in said}):
            self._join(key)

    # --- joins ---

    def require(self, kinds: Iterable[Kind]) -> None:
        """Say which kinds of entries a micrograph needs before it can be processed."""
        self._required = tuple(sorted(kinds))

    def micrograph_found(self, file: FileRow) -> None:
        """Join a new micrograph with what is known about it."""
        with self.transaction():
            self._join(_text(match_key(file.path, self._suffixes)))

    def join_all(self) -> None:
        """Look at every micrograph without a job again."""
        keys = self._db.execute("SELECT DISTINCT key FROM files WHERE kind = 'micrograph' AND state = 'ready'")
        with self.transaction():
            for (key,) in keys.fetchall():
                self._join(key)

    def _join(self, key: str) -> None:
        """Make a job of every micrograph with this key whose companions are all known and are not those it had."""
        micrographs = [
            _file(row)
            for row in self._db.execute(
                f"SELECT {_FILE} FROM files f WHERE key = ? AND kind = 'micrograph' "
                "AND state != 'superseded' AND (state NOT IN ('failed', 'rejected') "
                "OR EXISTS (SELECT 1 FROM jobs j WHERE j.file = f.id))",  # else it never was fit for a job
                (key,),
            )
        ]
        if not micrographs:
            return
        paths = [f"{file.source}/{file.path}" for file in micrographs]
        found: dict[int, dict[str, list[tuple[int, str, str, str, str]]]] = {}
        clashes: dict[int, str] = {}
        entries = self._db.execute(
            "SELECT e.id, e.kind, e.name, e.digest, f.source, f.path FROM entries e JOIN files f ON f.id = e.file "
            "WHERE e.live AND e.key = ? ORDER BY e.id",
            (key,),
        )
        for entry, kind, raw_name, digest, source, raw in entries:
            if kind not in self._required:
                continue
            name, path = os.fsdecode(raw_name), os.fsdecode(raw)
            # a file that is called as its micrograph says by its folder, too, which one is meant
            meant = f"{source}/{path}" if name == PurePosixPath(path).name else name
            chosen, tied = best_match(meant, paths, self._suffixes)
            if chosen is None:
                said = f"{path} could belong to {' or '.join(paths[index] for index in tied)}"
                clashes.update((micrographs[index].id, said) for index in tied)
                continue
            mine = found.setdefault(micrographs[chosen].id, {})
            mine.setdefault(kind, []).append((entry, name, digest, source, path))
        for file in micrographs:
            self._join_one(file, found.get(file.id, {}), clashes.get(file.id))

    def _join_one(
        self, file: FileRow, found: Mapping[str, list[tuple[int, str, str, str, str]]], clash: str | None
    ) -> None:
        inputs: list[JobInput] = []
        reasons = [] if clash is None else [clash]
        for kind in self._required:
            choices = found.get(kind, [])
            if len(choices) > 1:
                exact = [choice for choice in choices if match_key(choice[1], ()) == match_key(file.path, ())]
                if len(exact) != 1:
                    names = ", ".join(f"{choice[3]}/{choice[4]}" for choice in choices)
                    reasons.append(f"has several {kind} files: {names}; leave one of them")
                    continue
                choices = exact
            if not choices:
                if clash is None:
                    reasons.append(f"waits for {kind}")
                continue
            _, name, digest, source, path = choices[0]
            inputs.append(JobInput(kind, source, path, name, digest))
        if reasons:  # a job that is not done yet was made of inputs that are gone, or are no longer the only ones
            self._db.execute(
                "UPDATE jobs SET state = 'superseded', reason = 'an input changed' WHERE file = ? "
                "AND state IN ('ready', 'claimed')",
                (file.id,),
            )
            self._db.execute(
                "UPDATE files SET state = 'ready', reason = ? WHERE id = ? AND state IN ('ready', 'queued')",
                (_text("; ".join(reasons)), file.id),
            )
            return
        signature = json.dumps([file.id, [(made.kind, made.digest) for made in inputs]])
        last = self._db.execute(
            "SELECT generation, signature, state FROM jobs WHERE item = ? ORDER BY generation DESC LIMIT 1",
            (file.item,),
        ).fetchone()
        if last is not None and last[1] == signature and last[2] != "superseded":
            return
        self._db.execute(
            "UPDATE jobs SET state = 'superseded', reason = 'an input changed' WHERE item = ? "
            "AND state IN ('ready', 'claimed', 'failed', 'rejected')",
            (file.item,),
        )
        described = [(made.kind, made.source, made.path, made.name, made.digest) for made in inputs]
        self._db.execute(
            "INSERT INTO jobs (item, file, generation, inputs, signature, state) VALUES (?, ?, ?, ?, ?, 'ready')",
            (file.item, file.id, 1 if last is None else last[0] + 1, json.dumps(described), signature),
        )
        self._db.execute("UPDATE files SET state = 'queued', reason = NULL WHERE id = ?", (file.id,))

    # --- jobs ---

    def claim(self, limit: int, excluded: Iterable[int] = ()) -> list[JobRow]:
        """Take ready jobs, the oldest first; ``excluded`` are not to be taken yet."""
        left_out = set(excluded)
        if limit <= 0:
            return []
        rows = self._db.execute(
            f"SELECT j.id, j.item, j.generation, j.inputs, j.attempts, {_FILE} "
            "FROM jobs j JOIN files f ON f.id = j.file WHERE j.state = 'ready' ORDER BY j.id LIMIT ?",
            (limit + len(left_out),),
        ).fetchall()
        jobs = [
            JobRow(
                row[0],
                row[1],
                row[2],
                _file(row[5:]),
                tuple(JobInput(*made) for made in json.loads(row[3])),
                row[4],
            )
            for row in rows
            if row[0] not in left_out
        ][:limit]
        if jobs:
            with self.transaction():
                self._db.executemany("UPDATE jobs SET state = 'claimed' WHERE id = ?", [(job.id,) for job in jobs])
        return jobs

    def release(self, job: int) -> None:
        """Give a claimed job back, without counting an attempt."""
        with self.transaction():
            self._db.execute("UPDATE jobs SET state = 'ready' WHERE id = ? AND state = 'claimed'", (job,))

    def is_claimed(self, job: int) -> bool:
        """Whether a job is still wanted as it was claimed."""
        row = self._db.execute("SELECT state FROM jobs WHERE id = ?", (job,)).fetchone()
        return row is not None and row[0] == "claimed"

    def job_failed(
        self,
        job: int,
        reason: str,
        *,
        final: bool,
        now: float,
        state: State = "failed",
        operation: str | None = None,
        trace: str | None = None,
        gone: bool = False,
    ) -> None:
        """Record a failed attempt: the job becomes ready again, or, when ``final``, failed (or rejected)."""
        ended = state if final else "ready"
        with self.transaction():
            changed = self._db.execute(
                "UPDATE jobs SET state = ?, attempts = attempts + 1, reason = ?, operation = ?, trace = ?, "
                "finished = ? WHERE id = ? AND state = 'claimed'",
                (ended, _text(reason), operation, _text(trace) if trace else None, now, job),
            ).rowcount
            if changed and final:
                self._db.execute(
                    "UPDATE files SET state = ?, reason = ?, gone = ?, attempts = attempts + 1 "
                    "WHERE id = (SELECT file FROM jobs WHERE id = ? AND state = ?) AND state = 'queued'",
                    (ended, _text(reason), gone, job, ended),
                )
            if changed and ended == "rejected":  # a result: the item has no rows now, nor those of an older generation
                (item,) = self._db.execute("SELECT item FROM jobs WHERE id = ?", (job,)).fetchone()
                self._retire(item, job)

    def _retire(self, item: str, job: int) -> None:
        """End what other generations of an item than this job have in the sets."""
        for output in ("shards", "blocks"):
            self._db.execute(
                f"UPDATE {output} SET live = 0 WHERE job IN (SELECT id FROM jobs WHERE item = ? AND id != ?)",
                (item, job),
            )
        self._db.execute(
            "UPDATE jobs SET state = 'superseded' WHERE item = ? AND id != ? AND state != 'superseded'", (item, job)
        )

    def commit(
        self,
        job: JobRow,
        shards: Sequence[Shard],
        blocks: Sequence[Block],
        *,
        optics: Mapping[str, Sequence[Mapping[str, Any]]],
        warnings: Sequence[str] = (),
        notes: Sequence[str] = (),
        seconds: float,
        now: float,
    ) -> None:
        """Record that a job is done: the one moment of truth.

        Its rows and files, the new lengths of the row logs, and the end of what older generations of the item had in
        the sets, all in one transaction.
        """
        with self.transaction():
            if not self.is_claimed(job.id):
                raise LedgerError(f"job {job.id} of {job.item} is no longer claimed")
            self._retire(job.item, job.id)
            self._db.executemany(
                "INSERT INTO shards (job, path, size, crc32) VALUES (?, ?, ?, ?)",
                [(job.id, shard.path, shard.size, shard.crc32) for shard in shards],
            )
            for block in blocks:
                self._db.execute(
                    "INSERT INTO blocks (job, tbl, start, length, count, columns, crc32) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (job.id, block.table, block.start, block.length, block.count, json.dumps(block.columns),
                     block.crc32),
                )  # fmt: skip
                self._db.execute(
                    "INSERT INTO tables VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET length = excluded.length",
                    (block.table, block.start + block.length),
                )
            for table, groups in optics.items():
                for number, data in enumerate(groups, start=1):
                    self._db.execute(
                        "INSERT OR IGNORE INTO optics VALUES (?, ?, ?)",
                        (table, number, json.dumps(data, sort_keys=True)),
                    )
            self._db.execute(
                "UPDATE jobs SET state = 'done', warnings = ?, notes = ?, reason = NULL, finished = ?, seconds = ? "
                "WHERE id = ?",
                (*(json.dumps(list(said)) if said else None for said in (warnings, notes)), now, seconds, job.id),
            )
            self._db.execute(
                "UPDATE files SET state = 'done', reason = NULL WHERE id = ? AND state = 'queued'",
                (job.file.id,),
            )

    def retry(self, name: str | None = None) -> int:
        """Make failed jobs and files ready again; those whose item or path contains ``name``, or all."""
        meant = "state = 'failed' AND (instr(item, ?) OR instr(path, ?))"
        names = (_text(name or ""), os.fsencode(name or ""))
        with self.transaction():
            jobs = self._db.execute(
                "UPDATE jobs SET state = 'ready', attempts = 0 WHERE state = 'failed' "
                f"AND file IN (SELECT id FROM files WHERE {meant})",
                names,
            ).rowcount
            self._db.execute(
                f"UPDATE files SET state = 'queued', gone = 0 WHERE {meant} "
                "AND id IN (SELECT file FROM jobs WHERE state = 'ready')",
                names,
            )
            # a file that never became a job is looked at anew: forgotten here, found again by the next scan
            files = self._db.execute(f"UPDATE files SET gone = 1 WHERE {meant} AND gone = 0", names).rowcount
        return int(jobs) + int(files)

    # --- outputs ---

    def length(self, table: str) -> int:
        """Committed length of a table's row log [bytes]."""
        row = self._db.execute("SELECT length FROM tables WHERE name = ?", (table,)).fetchone()
        return 0 if row is None else int(row[0])

    def lengths(self) -> dict[str, int]:
        """Committed lengths of all the row logs [bytes]."""
        return dict(self._db.execute("SELECT name, length FROM tables"))

    def live_blocks(self, table: str) -> Iterator[Block]:
        """Blocks of rows that belong to a table now, in the order they were committed."""
        rows = self._db.execute(
            "SELECT b.tbl, b.start, b.length, b.count, b.columns, b.crc32, j.item FROM blocks b "
            "JOIN jobs j ON j.id = b.job WHERE b.tbl = ? AND b.live ORDER BY b.id",
            (table,),
        )
        for row in rows:
            yield Block(row[0], row[1], row[2], row[3], tuple(json.loads(row[4])), row[5], row[6])

    def columns_ever(self, table: str) -> set[str]:
        """Every column that a row of a table has ever had."""
        rows = self._db.execute("SELECT DISTINCT columns FROM blocks WHERE tbl = ?", (table,))
        return {column for row in rows for column in json.loads(row[0])}

    def item_rows(self, item: str) -> dict[str, int]:
        """Rows that an item has in each table now."""
        rows = self._db.execute(
            "SELECT b.tbl, sum(b.count) FROM jobs j JOIN blocks b ON b.job = j.id "
            "WHERE j.item = ? AND b.live GROUP BY 1",
            (item,),
        )
        return dict(rows)

    def row_count(self, table: str) -> int:
        """Rows that belong to a table now."""
        row = self._db.execute("SELECT coalesce(sum(count), 0) FROM blocks WHERE tbl = ? AND live", (table,)).fetchone()
        return int(row[0])

    def optics(self, table: str) -> list[dict[str, Any]]:
        """Optics groups of a table; the first is number 1."""
        rows = self._db.execute("SELECT data FROM optics WHERE tbl = ? ORDER BY number", (table,))
        return [json.loads(row[0]) for row in rows]

    def has_shard(self, path: str) -> bool:
        """Whether a file of the output belongs to a commit."""
        return self._db.execute("SELECT 1 FROM shards WHERE path = ?", (path,)).fetchone() is not None

    def shards(self) -> Iterator[Shard]:
        """Every file of the output that the ledger knows, superseded ones too."""
        for row in self._db.execute("SELECT path, size, crc32 FROM shards"):
            yield Shard(*row)

    # --- views ---

    def has_ready_jobs(self) -> bool:
        """Whether anything is to be made."""
        return self._db.execute("SELECT 1 FROM jobs WHERE state = 'ready' LIMIT 1").fetchone() is not None

    def job_counts(self) -> dict[str, int]:
        """Jobs in each state."""
        return dict(self._db.execute("SELECT state, count(*) FROM jobs GROUP BY state"))

    def file_counts(self) -> dict[tuple[str, str], int]:
        """Files of each kind and state."""
        rows = self._db.execute("SELECT kind, state, count(*) FROM files GROUP BY kind, state")
        return {(row[0], row[1]): row[2] for row in rows}

    def waiting(self, limit: int = 100) -> list[tuple[str, str, float]]:
        """Micrographs that wait: item, what for, since when."""
        return self._db.execute(
            "SELECT item, coalesce(reason, 'waits'), noticed FROM files WHERE kind = 'micrograph' AND state = 'ready' "
            "ORDER BY noticed LIMIT ?",
            (limit,),
        ).fetchall()

    def unmatched(self, limit: int = 100) -> list[tuple[str, str]]:
        """Entries of tables that belong to no micrograph so far: kind, name."""
        rows = self._db.execute(
            "SELECT e.kind, e.name FROM entries e WHERE e.live AND NOT EXISTS (SELECT 1 FROM files f "
            "WHERE f.key = e.key AND f.kind = 'micrograph' AND f.state != 'superseded') ORDER BY e.id LIMIT ?",
            (limit,),
        )
        return [(row[0], _text(os.fsdecode(row[1]))) for row in rows]

    def failed_count(self) -> int:
        """Items that failed: jobs, and files that never became one."""
        row = self._db.execute(
            "SELECT (SELECT count(*) FROM jobs WHERE state = 'failed') + "
            f"(SELECT count(*) FROM files f WHERE {_NO_JOB} AND state = 'failed')"
        ).fetchone()
        return int(row[0])

    def failures(self, limit: int = 100) -> list[dict[str, Any]]:
        """Jobs and files that failed or were rejected, the newest first; files that nobody knows are left out."""
        jobs = self._db.execute(
            "SELECT j.item, j.state, j.reason, j.operation, j.trace, j.attempts, j.finished, f.source, f.path "
            "FROM jobs j JOIN files f ON f.id = j.file WHERE j.state IN ('failed', 'rejected') "
            "ORDER BY j.finished DESC LIMIT ?",
            (limit,),
        ).fetchall()
        files = self._db.execute(
            "SELECT item, state, reason, NULL, NULL, attempts, noticed, source, path FROM files f "
            f"WHERE {_NO_JOB} AND state IN ('failed', 'rejected') ORDER BY noticed DESC LIMIT ?",
            (limit,),
        ).fetchall()
        names = ("item", "state", "reason", "operation", "traceback", "attempts", "when")
        newest = sorted(jobs + files, key=lambda row: row[6] or 0.0, reverse=True)[:limit]
        return [
            {**dict(zip(names, row, strict=False)), "file": f"{row[7]}/{_text(os.fsdecode(row[8]))}"} for row in newest
        ]

    def warnings(self, limit: int = 100) -> list[tuple[str, list[str]]]:
        """Items done with warnings, the newest first."""
        rows = self._db.execute(
            "SELECT item, warnings FROM jobs WHERE state = 'done' AND warnings IS NOT NULL ORDER BY id DESC LIMIT ?",
            (limit,),
        )
        return [(row[0], json.loads(row[1])) for row in rows]

    def warning_count(self) -> int:
        """Items done with warnings."""
        row = self._db.execute("SELECT count(*) FROM jobs WHERE state = 'done' AND warnings IS NOT NULL").fetchone()
        return int(row[0])

    def oldest_waiting(self) -> float | None:
        """When the oldest file was noticed that still waits or is queued."""
        row = self._db.execute(
            "SELECT min(noticed) FROM files WHERE kind = 'micrograph' AND state IN ('ready', 'queued')"
        ).fetchone()
        return None if row is None or row[0] is None else float(row[0])


_NO_JOB = (
    "f.kind IN ('micrograph', 'coordinates', 'ctf', 'mask', 'particles', 'map') "
    "AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.file = f.id AND j.state = f.state)"
)
_FILE = "f.id, f.source, f.path, f.generation, f.kind, f.item, f.size, f.mtime_ns, f.inode, f.attempts"


def _file(row: Sequence[Any]) -> FileRow:
    return FileRow(
        row[0],
        row[1],
        os.fsdecode(row[2]),
        row[3],
        row[4],
        row[5],
        Identity(row[6], row[7], 0, row[8]),
        row[9],
    )


def _text(value: str) -> str:
    """Text that SQLite takes: undecodable bytes of file names are shown, not kept."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")
