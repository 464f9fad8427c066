"""All the state of a session, in one SQLite file with one connection. The only module that knows SQLite.

What the ledger says is what happened: an item is done when, and only when, the transaction of `Ledger.commit` is
through. Methods are called from the engine's thread alone.

Tables
------
files       one row per generation of each path: what arrived
sources     the watched folders, by their labels
entries     what a table says about each micrograph or stack, and masks: what these are joined with; of the first
            generation of the table, whichever said it last; of rows the place of their stack, once it is known
jobs        one row per generation of each item: what is to be made, and how it ended; its origin is the entry with its
            coordinates, or rows
shards      immutable files of the output, each of one job
blocks      where a job's rows lie in the row log of each table; swept: no file of its item alone is left of it
tables      committed length and rows of each row log; its version counts the changes
optics      optics groups of each table
counts      files and jobs in each state, kept by triggers, so that a view costs the same however long a session is
meta, runs  plan, seed, schema; when the daemon ran
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from streamprep.joins import JobInput, Match, file_digest, join
from streamprep.model import Identity, Kind, StreamprepError
from streamprep.naming import item_name, match_key

SCHEMA_VERSION = 4

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE runs (id INTEGER PRIMARY KEY, started REAL NOT NULL, stopped REAL, pid INTEGER, version TEXT) STRICT;
CREATE TABLE sources (
  label TEXT PRIMARY KEY, kind TEXT NOT NULL, root BLOB NOT NULL, relative BLOB NOT NULL, place TEXT NOT NULL) STRICT;
CREATE TABLE files (
  id INTEGER PRIMARY KEY, source TEXT NOT NULL, path BLOB NOT NULL, generation INTEGER NOT NULL, kind TEXT NOT NULL,
  item TEXT NOT NULL, key TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('ready','queued','done','rejected','failed','superseded')),
  gone INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, reason TEXT, noticed REAL NOT NULL,
  UNIQUE (source, path, generation)) STRICT;
CREATE INDEX files_by_key ON files (key, kind);
CREATE INDEX files_by_state ON files (kind, state);
CREATE INDEX files_by_item ON files (item);
CREATE INDEX files_contested ON files (id) WHERE state = 'done' AND reason IS NOT NULL;
CREATE TABLE entries (
  id INTEGER PRIMARY KEY, file INTEGER NOT NULL REFERENCES files, kind TEXT NOT NULL, name BLOB NOT NULL,
  key TEXT NOT NULL, digest TEXT NOT NULL, count INTEGER NOT NULL, place BLOB, live INTEGER NOT NULL DEFAULT 1) STRICT;
CREATE INDEX entries_by_key ON entries (key, kind) WHERE live;
CREATE INDEX entries_by_place ON entries (place) WHERE live AND place IS NOT NULL;
CREATE INDEX entries_unplaced ON entries (id) WHERE live AND kind = 'rows' AND place IS NULL;
CREATE INDEX entries_by_file ON entries (file, kind, name) WHERE live;
CREATE TABLE jobs (
  id INTEGER PRIMARY KEY, item TEXT NOT NULL, file INTEGER NOT NULL REFERENCES files, generation INTEGER NOT NULL,
  inputs TEXT NOT NULL, signature TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('ready','claimed','done','rejected','failed','superseded')),
  origin TEXT, attempts INTEGER NOT NULL DEFAULT 0, reason TEXT, operation TEXT, trace TEXT, warnings TEXT, notes TEXT,
  finished REAL, seconds REAL, UNIQUE (item, generation)) STRICT;
CREATE INDEX jobs_by_origin ON jobs (origin);
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
  live INTEGER NOT NULL DEFAULT 1, swept INTEGER NOT NULL) STRICT;
CREATE INDEX blocks_to_sweep ON blocks (id) WHERE NOT live AND NOT swept;
CREATE INDEX blocks_by_table ON blocks (tbl, id) WHERE live;
CREATE INDEX blocks_by_columns ON blocks (tbl, live, columns);
CREATE INDEX blocks_by_job ON blocks (job);
CREATE TABLE tables (
  name TEXT PRIMARY KEY, length INTEGER NOT NULL, rows INTEGER NOT NULL DEFAULT 0,
  version INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE optics (
  tbl TEXT NOT NULL, number INTEGER NOT NULL, data TEXT NOT NULL, PRIMARY KEY (tbl, number)) STRICT;
CREATE TABLE counts (
  tbl TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (tbl, kind, state))
  STRICT, WITHOUT ROWID;
CREATE TRIGGER file_made AFTER INSERT ON files BEGIN
  INSERT INTO counts VALUES ('files', NEW.kind, NEW.state, 1) ON CONFLICT DO UPDATE SET n = n + 1; END;
CREATE TRIGGER file_altered AFTER UPDATE OF kind, state ON files BEGIN
  UPDATE counts SET n = n - 1 WHERE tbl = 'files' AND kind = OLD.kind AND state = OLD.state;
  INSERT INTO counts VALUES ('files', NEW.kind, NEW.state, 1) ON CONFLICT DO UPDATE SET n = n + 1; END;
CREATE TRIGGER job_made AFTER INSERT ON jobs BEGIN
  INSERT INTO counts VALUES ('jobs', '', NEW.state, 1) ON CONFLICT DO UPDATE SET n = n + 1; END;
CREATE TRIGGER job_altered AFTER UPDATE OF state ON jobs BEGIN
  UPDATE counts SET n = n - 1 WHERE tbl = 'jobs' AND kind = '' AND state = OLD.state;
  INSERT INTO counts VALUES ('jobs', '', NEW.state, 1) ON CONFLICT DO UPDATE SET n = n + 1; END;
CREATE TRIGGER block_made AFTER INSERT ON blocks BEGIN
  INSERT INTO tables VALUES (NEW.tbl, NEW.start + NEW.length, NEW.count, 1) ON CONFLICT DO UPDATE
  SET length = excluded.length, rows = rows + excluded.rows, version = version + 1; END;
CREATE TRIGGER block_ended AFTER UPDATE OF live ON blocks WHEN OLD.live AND NOT NEW.live BEGIN
  UPDATE tables SET rows = rows - OLD.count, version = version + 1 WHERE name = OLD.tbl; END;
"""
_DISK_ERRORS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
}


def _disk_errno(error: sqlite3.Error) -> int | None:
    """The number that any other file gives, where SQLite speaks of the disk."""
    return _DISK_ERRORS.get((getattr(error, "sqlite_errorcode", None) or 0) & 0xFF)


def _not_opened(path: Path, error: Exception) -> str:
    allowed = all(os.access(place, os.W_OK) for place in (path, path.parent) if place.exists())
    why = str(error) if allowed else "this user may not write it; run it as the user who owns it"
    return f"{path}: the ledger cannot be opened: {why}"


def _telling(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same, but an OSError where the disk is to blame.

    No frame keeps the error that it raises: the two would hold each other, the cursor, and with it the ledger's file.
    """

    def tell(*args: Any) -> Any:
        try:
            return call(*args)
        except sqlite3.Error as error:
            if (number := _disk_errno(error)) is None:
                raise
            raise OSError(number, f"{os.strerror(number)}: the ledger") from error

    return tell


class _Cursor(sqlite3.Cursor):
    """Reads and writes may both find the disk broken."""

    execute = _telling(sqlite3.Cursor.execute)
    executemany = _telling(sqlite3.Cursor.executemany)
    fetchone = _telling(sqlite3.Cursor.fetchone)
    fetchmany = _telling(sqlite3.Cursor.fetchmany)
    fetchall = _telling(sqlite3.Cursor.fetchall)
    __next__ = _telling(sqlite3.Cursor.__next__)


class _Connection(sqlite3.Connection):
    def execute(self, *args: Any) -> _Cursor:
        cursor = self.cursor(_Cursor)
        cursor.execute(*args)
        return cursor

    def executemany(self, *args: Any) -> _Cursor:
        cursor = self.cursor(_Cursor)
        cursor.executemany(*args)
        return cursor


JOURNAL = "commits"
"""Stands among the tables for the log of commits; see `streamprep.journal`."""

TABLE_KINDS: tuple[Kind, ...] = ("coordinates", "ctf", "rows")
"""Kinds of files that are tables."""

ASKED_AT_ONCE = 512
"""Of so many paths one statement asks."""

ITEM_KINDS: tuple[Kind, ...] = ("micrograph", "particles", "map")
"""Kinds of files that jobs are made of, once all that belongs to them is there."""

State = Literal["ready", "queued", "claimed", "done", "rejected", "failed", "superseded"]


class LedgerError(StreamprepError):
    """The ledger cannot be used as it is."""


class OldLedgerError(LedgerError):
    """An older version of streamprep made it, and nobody was to upgrade it."""


class DamagedLedgerError(LedgerError):
    """It holds something that is no ledger."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: the ledger is damaged: {reason}. Make it again with: streamprep repair")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A watched folder, as it was at the last start."""

    label: str
    kind: str
    """What its files are where that is known beforehand, else empty."""
    root: Path
    """Links resolved."""
    relative: str
    """The same, seen from the output folder: stays when a whole session is moved or copied."""
    place: str
    """Device and inode: stay when the folder is renamed."""


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


class OldLedger:
    """A ledger of an older schema, which this process has alone: what an upgrade works on.

    Parameters
    ----------
    path
        Its file.
    version
        Its schema.
    writer
        The version of streamprep that it was last used with.
    """

    def __init__(self, path: Path, version: int, writer: str, database: sqlite3.Connection) -> None:
        self.path, self.version, self.writer, self._db = path, version, writer, database

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Execute one statement, and return its rows."""
        return self._db.execute(statement, values).fetchall()

    def size_bytes(self) -> int:
        """Size of all that it holds [bytes]."""
        (pages,), (size,) = self.execute("PRAGMA page_count")[0], self.execute("PRAGMA page_size")[0]
        return int(pages * size)

    def check(self) -> None:
        """Read everything.

        Raises
        ------
        DamagedLedgerError
            It is not sound.
        """
        broken = [str(row[0]) for row in self.execute("PRAGMA integrity_check(3)") if row[0] != "ok"]
        broken += [f"{row[0]} {row[1]} belongs to nothing" for row in self.execute("PRAGMA foreign_key_check")[:3]]
        if broken:
            raise DamagedLedgerError(self.path, "; ".join(broken))

    def copy_to(self, path: Path) -> None:
        """Write all that it holds into a new file, which is not durable yet.

        Raises
        ------
        OSError
            The disk is full, or failed.
        """
        path.unlink(missing_ok=True)
        with contextlib.closing(_telling(sqlite3.connect)(path)) as target:
            _telling(self._db.backup)(target)

    def schema(self) -> list[tuple[str, str, str]]:
        """Kind, name and text of each of its tables, indices and triggers, in the order in which they were made."""
        return _schema_of(self._db)

    @staticmethod
    def schema_wanted() -> list[tuple[str, str, str]]:
        """The same, of a new ledger of this version."""
        with contextlib.closing(sqlite3.connect(":memory:")) as database:
            database.executescript(SCHEMA)
            return _schema_of(database)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Tables may be made anew in it: what refers to them is checked by `check` alone."""
        self._db.execute("PRAGMA foreign_keys = OFF")
        self._db.execute("PRAGMA legacy_alter_table = ON")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error, OSError):
                self._db.execute("ROLLBACK")
            raise
        finally:
            self._db.execute("PRAGMA legacy_alter_table = OFF")
            self._db.execute("PRAGMA foreign_keys = ON")


def _schema_of(database: sqlite3.Connection) -> list[tuple[str, str, str]]:
    rows = database.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
    return [(row[0], row[1], row[2]) for row in rows]


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
    upgrade
        Brings a ledger of an older schema to this one; refused unless given.
    """

    def __init__(
        self,
        path: Path,
        *,
        remote: bool = False,
        suffixes: Sequence[str] = (),
        upgrade: Callable[[OldLedger], None] | None = None,
    ) -> None:
        self._suffixes: tuple[str, ...] = ()
        self._required: dict[Kind, dict[Kind, str]] = {}
        self._optional: dict[Kind, tuple[Kind, ...]] = {}
        self._given: dict[Kind, tuple[JobInput, ...]] = {}
        self.looked_up_to = 0
        """Where the next `looked_for` goes on."""
        self.changes = 0
        """Counts transactions, so that summaries can be cached."""
        try:
            self._db = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=2.0, factory=_Connection
            )
        except sqlite3.Error as error:
            raise LedgerError(_not_opened(path, error)) from error
        try:
            self._open(path, remote, upgrade)
            self._match_with(suffixes)
            self._roots = {row.label: row.root for row in self.sources()}
        except BaseException:
            self._db.close()
            raise

    def _open(self, path: Path, remote: bool, upgrade: Callable[[OldLedger], None] | None) -> None:
        try:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute(f"PRAGMA journal_mode = {'DELETE' if remote else 'WAL'}")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            elif version > SCHEMA_VERSION:
                raise LedgerError(
                    f"{path}: made by a newer streamprep, {self._writer()} (schema {version}, this one knows "
                    f"{SCHEMA_VERSION}): continue with that version or a later one, or give another output folder"
                )
            elif version < SCHEMA_VERSION and upgrade is None:
                raise OldLedgerError(
                    f"{path}: made by an older streamprep, {self._writer()} (schema {version}, this one writes "
                    f"{SCHEMA_VERSION}). streamprep run upgrades it, and keeps a copy; until then use that version"
                )
            elif version < SCHEMA_VERSION and upgrade is not None:
                upgrade(OldLedger(path, version, self._writer(), self._db))
            broken = [row[0] for row in self._db.execute("PRAGMA quick_check(3)") if row[0] != "ok"]
        except (sqlite3.OperationalError, OSError) as error:
            raise LedgerError(_not_opened(path, error)) from error
        except sqlite3.DatabaseError as error:
            raise DamagedLedgerError(path, str(error)) from error
        if broken:
            raise DamagedLedgerError(path, "; ".join(broken))

    def _writer(self) -> str:
        """The version of streamprep that used the ledger last, as far as it says so."""
        try:
            row = self._db.execute("SELECT version FROM runs ORDER BY id DESC LIMIT 1").fetchone()
        except (sqlite3.Error, OSError):
            row = None
        return "of an unknown version" if row is None or row[0] is None else f"version {_text(str(row[0]))}"

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Nested uses join the outermost.

        Raises
        ------
        OSError
            The disk is full or over a quota (``ENOSPC``), or failed (``EIO``). Nothing happened; the same may be tried
            again.
        """
        if self._db.in_transaction:
            yield
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error, OSError):
                self._db.execute("ROLLBACK")
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

    def sources(self) -> list[SourceRow]:
        """Every folder that was ever watched."""
        return [_source(row) for row in self._db.execute("SELECT label, kind, root, relative, place FROM sources")]

    def source(self, label: str) -> SourceRow:
        """A folder that was ever watched."""
        row = self._db.execute("SELECT label, kind, root, relative, place FROM sources WHERE label = ?", (label,))
        return _source(row.fetchone())

    def put_source(self, source: SourceRow) -> None:
        """Record where a watched folder is. Its label names its items, for as long as the session lives."""
        with self.transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?, ?)",
                (source.label, source.kind, os.fsencode(source.root), os.fsencode(source.relative), source.place),
            )
        self._roots[source.label] = source.root

    def forget_unwatched(self, watched: Callable[[str, str], bool]) -> int:
        """Let go of the files that the configuration does not name any more; what is done stays done.

        Parameters
        ----------
        watched
            Whether a file is still watched: its source's label, its path.

        Returns
        -------
        int
            How many tables no longer count, and how many micrographs no longer wait.
        """
        rows = self._db.execute(
            f"SELECT {_FILE} FROM files f WHERE NOT gone AND kind != 'other' AND (state IN ('ready', 'queued') "
            f"OR state = 'done' AND kind IN {_SAYING})"
        )
        unwatched = [file for file in map(_file, rows.fetchall()) if not watched(file.source, file.path)]
        with self.transaction():
            for file in unwatched:
                self.file_gone(file.id, "it is not watched any more")
        return len(unwatched)

    def _match_with(self, suffixes: Sequence[str]) -> None:
        """Set the endings to ignore in names; where they are others than before, all keys are made anew."""
        self._suffixes = tuple(suffixes)
        text = json.dumps(self._suffixes)
        before = self.get("suffixes")
        if before == text:
            return
        with self.transaction():
            self.put("suffixes", text)
            if before is None:
                return
            for table, name in (("files", "path"), ("entries", "name")):
                rows = self._db.execute(f"SELECT id, {name} FROM {table}").fetchall()
                keys = [(self._key(os.fsdecode(raw)), number) for number, raw in rows]
                self._db.executemany(f"UPDATE {table} SET key = ? WHERE id = ?", keys)

    def _key(self, name: str) -> str:
        return _text(match_key(name, self._suffixes))

    # --- files ---

    def is_known(self, source: str, path: str, identity: Identity) -> bool:
        """Whether the newest generation of a path has this identity; see `known`."""
        return bool(self.known(source, {path: identity}))

    def known(self, source: str, files: Mapping[str, Identity]) -> set[str]:
        """Those of some paths of which the newest generation has the identity that is given.

        The change time is left out: `chmod` and hard links alter it and nothing else.
        """
        raw_paths = {os.fsencode(path): path for path in files}
        found: set[str] = set()
        left = iter(raw_paths)
        while part := list(itertools.islice(left, ASKED_AT_ONCE)):
            rows = self._db.execute(
                "SELECT path, size, mtime_ns, inode, gone, max(generation) FROM files WHERE source = ? "
                f"AND path IN ({_marks(part)}) GROUP BY path",
                (source, *_filled(part)),
            )
            for raw, size, mtime_ns, inode, gone, _ in rows.fetchall():
                path = raw_paths[raw]
                identity = files[path]
                if not gone and (size, mtime_ns, inode) == (identity.size, identity.mtime_ns, identity.inode):
                    found.add(path)
        return found

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
        raw = os.fsencode(path)
        with self.transaction():
            last = self._db.execute(
                "SELECT id, generation, item FROM files WHERE source = ? AND path = ? ORDER BY generation DESC LIMIT 1",
                (source, raw),
            ).fetchone()
            generation = 1 if last is None else last[1] + 1
            name = str(last[2]) if last is not None else item_name(source, path)  # it keeps its name where it was moved
            if last is None and kind in ITEM_KINDS:
                other = self._namesake(source, name)
                if other is not None and item_name(source, other) == name and problem is None:
                    problem = _same_name(other)
                elif other is not None:  # one that was moved from here has its name still
                    taken = (f"{name}-{number}" for number in itertools.count(2))
                    name = next(free for free in taken if self._namesake(source, free) is None)
            if last is not None:
                # rows of an older image stay in the sets until the new one's replace them; see `commit`
                self._db.execute("UPDATE files SET state = 'superseded', gone = 0 WHERE id = ?", (last[0],))
                self._supersede_waiting(last[0])
            cursor = self._db.execute(
                "INSERT INTO files (source, path, generation, kind, item, key, size, mtime_ns, inode, state, reason, "
                "noticed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (source, raw, generation, kind, name, self._key(path), identity.size,
                 identity.mtime_ns, identity.inode, "ready" if problem is None else "failed",
                 None if problem is None else _text(problem), now),
            )  # fmt: skip
            if problem is not None:
                self._join(self._key(path))  # what was meant for it may be another's now
        return FileRow(int(cursor.lastrowid or 0), source, path, generation, kind, name, identity, 0)

    def _namesake(self, source: str, name: str) -> str | None:
        """Path of a micrograph or stack that has an item's name, as far as it is known to exist and is of use."""
        row = self._db.execute(
            f"SELECT path FROM files WHERE source = ? AND item = ? AND kind IN {_ITEMS} "
            "AND state NOT IN ('superseded', 'rejected') AND NOT gone LIMIT 1",
            (source, name),
        ).fetchone()
        return None if row is None else os.fsdecode(row[0])

    def ignore(
        self,
        source: str,
        path: str,
        identity: Identity,
        now: float,
        reason: str = "no reader knows this kind of file",
    ) -> None:
        """Record a file that nothing is made of, so that scans pass over it."""
        file = self.notice(source, path, identity, "other", now)
        if file is not None:
            self.file_failed(file.id, reason, final=True, state="rejected")

    def twins(self, source: str, path: str, identity: Identity, kind: Kind) -> list[FileRow]:
        """Newest generations of other paths with this stem and this very identity: it may have been one of them."""
        same = (identity.size, identity.mtime_ns, identity.inode)
        return [
            file
            for file in self.namesakes(source, path, kind)
            if (file.identity.size, file.identity.mtime_ns, file.identity.inode) == same
        ]

    def namesakes(self, source: str, path: str, kind: Kind) -> list[FileRow]:
        """Newest generations of other paths with this stem, of the same kind, or any kind of table."""
        kinds = TABLE_KINDS if kind in TABLE_KINDS else (kind,)  # what a table says is known when it was read
        rows = self._db.execute(
            f"SELECT {_FILE} FROM files f WHERE key = ? AND kind IN ({_marks(kinds)}) "
            "AND NOT (source = ? AND path = ?) AND NOT (gone AND kind = 'mask') AND NOT EXISTS (SELECT 1 FROM files n "
            "WHERE n.source = f.source AND n.path = f.path AND n.generation > f.generation)",
            (self._key(path), *_filled(kinds), source, os.fsencode(path)),
        )
        return [_file(row) for row in rows]

    def moved(self, file: FileRow, source: str, path: str) -> bool:
        """Record that a file was moved: it is the same item, with what it has in the sets, at another place.

        Returns
        -------
        bool
            False where the ledger knows another file of that path; then nothing happens.
        """
        raw, former = os.fsencode(path), (file.source, os.fsencode(file.path))
        with self.transaction():
            if self._db.execute("SELECT 1 FROM files WHERE source = ? AND path = ?", (source, raw)).fetchone():
                return False
            said = self._db.execute(
                "SELECT DISTINCT e.key FROM files f JOIN entries e ON e.file = f.id "
                "WHERE f.source = ? AND f.path = ? AND e.live",
                former,
            )
            keys = {self._key(path), *(row[0] for row in said)}
            self._db.execute(
                "UPDATE files SET source = ?, path = ? WHERE source = ? AND path = ?", (source, raw, *former)
            )
            self._db.execute(
                "UPDATE jobs SET state = 'superseded' WHERE state = 'failed' "
                "AND file = (SELECT id FROM files WHERE id = ? AND gone)",
                (file.id,),
            )
            self._db.execute(
                "UPDATE files SET gone = 0, state = CASE WHEN gone AND state != 'done' THEN 'ready' ELSE state END "
                "WHERE id = ?",
                (file.id,),
            )
            for key in sorted(keys):  # open jobs name the former place
                self._db.execute(
                    "UPDATE jobs SET state = 'superseded', reason = 'a file was moved' "
                    "WHERE state IN ('ready', 'claimed') AND file IN (SELECT id FROM files WHERE key = ?)",
                    (key,),
                )
                self._join(key)
        return True

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
            f"SELECT {_FILE} FROM files f WHERE kind IN {_TABLES} AND state = 'ready' ORDER BY id LIMIT ?",
            (limit + len(left_out),),
        )
        return [file for file in map(_file, rows) if file.id not in left_out][:limit]

    def table_read(self, file: int, entries: Iterable[EntryRow]) -> list[tuple[int, str]]:
        """Record what a table says, in place of what its older generations said, and join.

        Returns
        -------
        list of (int, str)
            Entries that name stacks of which it is not known where they lie, and those names; see `place_stacks`.
        """
        unplaced: list[tuple[int, str]] = []
        with self.transaction():
            row = self._db.execute("SELECT source, path, state, kind FROM files WHERE id = ?", (file,)).fetchone()
            if row[2] != "ready":
                return []
            rows = list(entries)
            found: dict[tuple[str, str], EntryRow] = {(entry.kind, entry.name): entry for entry in rows}
            (first,) = self._db.execute(
                "SELECT id FROM files WHERE source = ? AND path = ? ORDER BY generation LIMIT 1", (row[0], row[1])
            ).fetchone()
            older = self._db.execute(
                "SELECT id, kind, name, digest, key, place FROM entries WHERE live AND file = ?", (first,)
            ).fetchall()
            touched: set[str] = set()
            places: dict[str, bytes] = {}
            for entry, kind, raw, digest, key, place in older:
                name = os.fsdecode(raw)
                if place is not None:
                    places[name] = place
                same = found.get((kind, name))
                if same is not None and same.digest == digest:
                    del found[kind, name]
                else:
                    self._db.execute("UPDATE entries SET live = 0 WHERE id = ?", (entry,))
                    touched.add(key)
            for new in found.values():
                key = self._key(new.name)
                touched.add(key)
                cursor = self._db.execute(
                    "INSERT INTO entries (file, kind, name, key, digest, count, place) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (first, new.kind, os.fsencode(new.name), key, new.digest, new.count, places.get(new.name)),
                )
                if new.kind == "rows" and new.name not in places:
                    unplaced.append((int(cursor.lastrowid or 0), new.name))
            kinds = {entry.kind for entry in rows}
            kind = next(iter(kinds)) if len(kinds) == 1 else row[3]
            self._db.execute("UPDATE files SET state = 'done', kind = ?, reason = NULL WHERE id = ?", (kind, file))
            for key in sorted(touched):
                self._join(key)
        return unplaced

    def place_stacks(self, places: Iterable[tuple[int, str]]) -> None:
        """Record where the stacks lie that entries name, links resolved, and join."""
        with self.transaction():
            touched: set[str] = set()
            for entry, place in places:
                row = self._db.execute(
                    "UPDATE entries SET place = ? WHERE id = ? AND live RETURNING key", (os.fsencode(place), entry)
                ).fetchone()
                if row is not None:
                    touched.add(row[0])
            for key in sorted(touched):
                self._join(key)

    def is_named(self, place: str) -> bool:
        """Whether a table names the file at a place, links resolved, as a stack."""
        found = self._db.execute(
            "SELECT 1 FROM entries WHERE live AND place IS NOT NULL AND place = ? LIMIT 1", (os.fsencode(place),)
        )
        return found.fetchone() is not None

    def adopt_stack(self, source: str, path: str) -> None:
        """Take a file for a stack because a table names it as one, whatever its header says."""
        row = self._db.execute(
            "SELECT id, item FROM files WHERE source = ? AND path = ? AND kind IN ('micrograph', 'map') "
            "AND state = 'rejected' ORDER BY generation DESC LIMIT 1",
            (source, os.fsencode(path)),
        ).fetchone()
        newest = self.newest(source, path)
        if row is None or newest is None or newest.id != row[0]:
            return
        other = self._namesake(source, row[1])
        with self.transaction():
            self._db.execute(
                "UPDATE files SET kind = 'particles', state = ?, reason = ? WHERE id = ?",
                ("ready", None, row[0]) if other is None else ("failed", _text(_same_name(other)), row[0]),
            )
            self._join(self._key(path))

    def tables_ending(self, ending: str) -> list[tuple[FileRow, bool]]:
        """Tables whose names end so, and whether each is read, or has failed, and nothing is under way."""
        rows = self._db.execute(
            f"SELECT {_FILE}, state FROM files f WHERE kind IN {_TABLES} AND state IN ('ready', 'done', 'failed') "
            "AND NOT gone AND lower(substr(CAST(path AS TEXT), ?)) = ?",
            (-len(ending), ending),
        )
        return [(_file(row), row[10] != "ready") for row in rows]

    def read_again(self, file: int) -> None:
        """Have a table read again, because a file that belongs to it came, changed or went."""
        with self.transaction():
            self._db.execute(
                "UPDATE files SET state = 'ready', attempts = 0 WHERE id = ? AND state IN ('done', 'failed')", (file,)
            )

    def mask_found(self, file: FileRow) -> None:
        """Record a mask as an entry of its own, and join."""
        self.table_read(file.id, [EntryRow("mask", file.path, file_digest(file.identity), 1)])

    def table_waits(self, file: int, reason: str) -> None:
        """Record that a table cannot be read without another file; it stays to be read.

        What it said before holds no longer, for what is not done.
        """
        with self.transaction():
            self._db.execute("UPDATE files SET reason = ? WHERE id = ? AND state = 'ready'", (_text(reason), file))
            self._withdraw(file, waits=True)

    def file_failed(self, file: int, reason: str, *, final: bool, state: State = "failed") -> bool:
        """Record that a table could not be read; True when it is now failed for good.

        What its older generations said holds no longer then: micrographs that are not done wait for it again.
        """
        with self.transaction():
            self._db.execute(
                "UPDATE files SET attempts = attempts + 1, reason = ? WHERE id = ?",
                (_text(reason), file),
            )
            if final:
                self._db.execute("UPDATE files SET state = ? WHERE id = ? AND state = 'ready'", (state, file))
                self._withdraw(file)
                (key,) = self._db.execute("SELECT key FROM files WHERE id = ?", (file,)).fetchone()
                self._join(key)  # what waits for it says so
        return final

    def looked_for(self, after: int, limit: int) -> list[FileRow]:
        """Files whose removal would change what happens to micrographs and stacks that wait, or that are contested.

        Those, others of the same match key, and the tables that speak of them. In the order of their
        numbers, those above ``after`` first; call again with the last.
        """
        keys = self._db.execute(
            f"SELECT id, key FROM files WHERE id > ? AND kind IN {_ITEMS} AND state = 'ready' UNION ALL "
            f"SELECT id, key FROM files WHERE id > ? AND {_CONTESTED} ORDER BY id LIMIT ?",
            (after, after, limit),
        ).fetchall()
        found: dict[int, FileRow] = {}
        for key in {row[1] for row in keys}:
            rows = self._db.execute(
                f"SELECT {_FILE} FROM files f WHERE key = ? AND kind IN {_ITEMS} AND state != 'superseded' "
                "AND NOT gone",
                (key,),
            ).fetchall()
            rows += self._db.execute(
                f"SELECT {_FILE} FROM entries e JOIN files o ON o.id = e.file JOIN files f ON f.source = o.source "
                "AND f.path = o.path WHERE e.live AND e.key = ? AND f.state != 'superseded'",
                (key,),
            )
            found.update({row[0]: _file(row) for row in rows})
        self.looked_up_to = keys[-1][0] if len(keys) == limit else 0
        return list(found.values())

    def file_gone(self, file: int, reason: str = "the file was removed") -> None:
        """Record that a file was removed: what it said no longer counts; it is new when it comes back.

        Rows that were made of it stay in the sets until another micrograph takes its place.
        """
        with self.transaction():
            self._db.execute(
                f"UPDATE files SET state = CASE WHEN kind IN {_ITEMS} AND state = 'done' THEN state "
                "ELSE 'superseded' END, gone = 1, reason = ? WHERE id = ?",
                (reason, file),
            )
            self._supersede_waiting(file)
            self._withdraw(file)
            (key,) = self._db.execute("SELECT key FROM files WHERE id = ?", (file,)).fetchone()
            self._join(key)

    def newest(self, source: str, path: str) -> FileRow | None:
        """The newest generation of a path."""
        row = self._db.execute(
            f"SELECT {_FILE} FROM files f WHERE source = ? AND path = ? ORDER BY generation DESC LIMIT 1",
            (source, os.fsencode(path)),
        ).fetchone()
        return None if row is None else _file(row)

    def doubt(self, job: JobRow, made: JobInput, *, gone: bool) -> None:
        """Give a claimed job back because an input did not say what it had said: it is read again, or forgotten."""
        with self.transaction():
            self.release(job.id)
            table = self.newest(made.source, made.path)
            if table is not None and not gone:
                self._db.execute(
                    "UPDATE files SET state = 'ready', attempts = 0 "
                    f"WHERE id = ? AND state = 'done' AND kind IN {_TABLES}",
                    (table.id,),
                )
            elif table is not None:
                self.file_gone(table.id)
            self._join(self._key(job.file.path))

    def _withdraw(self, file: int, *, waits: bool = False) -> None:
        said = self._db.execute(
            "SELECT e.id, e.key FROM files n JOIN files f ON f.source = n.source AND f.path = n.path "
            "JOIN entries e ON e.file = f.id WHERE n.id = ? AND e.live "
            "AND (n.gone OR n.state IN ('failed', 'rejected') OR ?)",
            (file, waits),
        ).fetchall()
        self._db.executemany("UPDATE entries SET live = 0 WHERE id = ?", [(entry,) for entry, _ in said])
        for key in sorted({key for _, key in said}):
            self._join(key)

    # --- joins ---

    def require(
        self,
        kinds: Mapping[Kind, str],
        of: Kind = "micrograph",
        optional: Sequence[Kind] = (),
        given: Sequence[JobInput] = (),
    ) -> None:
        """Say which kinds of entries a micrograph (or a stack) needs before a job is made of it, and their names.

        Those that are ``optional`` are used where they are there; what is ``given`` is an input of every job, so that
        all are made anew where its digest changes.
        """
        self._required[of], self._optional[of] = dict(sorted(kinds.items())), tuple(optional)
        self._given[of] = tuple(given)

    def item_found(self, file: FileRow) -> None:
        """Join a new micrograph, or a new stack, with what is known about it."""
        with self.transaction():
            self._join(self._key(file.path))

    def join_all(self) -> None:
        """Match everything anew where what is needed, or how names are matched, is not what it was at the last time."""
        given = {kind: [(made.kind, made.digest) for made in inputs] for kind, inputs in self._given.items()}
        text = json.dumps([self._required, self._suffixes, given])
        if self.get("joined") == text:
            return
        with self.transaction():
            self.put("joined", text)
            for (key,) in self._db.execute(f"SELECT DISTINCT key FROM files WHERE kind IN {_ITEMS}").fetchall():
                self._join(key)

    def join_waiting(self, kind: Kind) -> None:
        """Match the items of a kind that wait anew: what one of them could not be processed without may be there."""
        waiting = self._db.execute("SELECT DISTINCT key FROM files WHERE kind = ? AND state = 'ready'", (kind,))
        with self.transaction():
            for (key,) in waiting.fetchall():
                self._join(key)

    def _join(self, key: str) -> None:
        """Make a job of every item with this key whose companions are all known and are not those it had."""
        for kind, required in self._required.items():
            self._join_items(key, kind, required)

    def _join_items(self, key: str, kind: Kind, required: Mapping[Kind, str]) -> None:
        items = [
            _file(row)
            for row in self._db.execute(
                f"SELECT {_FILE} FROM files f WHERE key = ? AND kind = ? AND state != 'superseded' AND NOT gone "
                # one that was refused before it had a job never was fit for one
                "AND (state NOT IN ('failed', 'rejected') OR EXISTS (SELECT 1 FROM jobs j WHERE j.file = f.id)) "
                "ORDER BY id",
                (key, kind),
            )
        ]
        if not items:
            return
        rows = self._db.execute(
            "SELECT e.kind, f.source, f.path, e.name, e.digest, e.file, e.place FROM entries e "
            "JOIN files f ON f.id = e.file WHERE e.live AND e.key = ? ORDER BY e.id",
            (key,),
        ).fetchall()
        entries = [JobInput(row[0], row[1], os.fsdecode(row[2]), os.fsdecode(row[3]), *row[4:6]) for row in rows]
        placed = {entry: os.fsdecode(row[6]) for entry, row in zip(entries, rows, strict=True) if row[6] is not None}
        real_paths = [self._real_path(file) for file in items] if placed else []
        paths = [f"{file.source}/{file.path}" for file in items]
        failed = self._db.execute(
            f"SELECT source, path FROM files WHERE key = ? AND kind IN {_SAYING} AND state = 'failed' ORDER BY id",
            (key,),
        )
        broken = [f"{source}/{os.fsdecode(raw)}" for source, raw in failed]
        matches, owners = join(
            paths,
            entries,
            required,
            self._suffixes,
            broken,
            optional=self._optional[kind],
            real_paths=real_paths,
            placed=placed,
        )
        for index, (file, match) in enumerate(zip(items, matches, strict=True)):
            if match.reasons:
                lost = {entry for entry, owner in owners.items() if owner is not None and owner != index}
                self._wait(file, key, match, lost)
            else:
                self._make_job(file, (*match.inputs, *self._given[kind]))

    def _real_path(self, file: FileRow) -> str:
        return os.path.realpath(self._roots.get(file.source, Path("/", file.source)) / file.path)

    def _wait(self, file: FileRow, key: str, match: Match, lost: set[JobInput]) -> None:
        """An item lacks something. What is done stays, unless what it was made of is not its own any more."""
        # a job that is not done yet was made of inputs that are gone, or are no longer the only ones
        self._db.execute(
            "UPDATE jobs SET state = 'superseded', reason = 'an input changed' WHERE file = ? "
            "AND state IN ('ready', 'claimed')",
            (file.id,),
        )
        done = self._db.execute("SELECT inputs FROM jobs WHERE item = ? AND +state = 'done'", (file.item,)).fetchone()
        if done is not None and any(self._is_taken_away(JobInput(*made), key, lost) for made in json.loads(done[0])):
            self._retire(file.item)
            self._db.execute("UPDATE files SET state = 'ready' WHERE id = ? AND state = 'done'", (file.id,))
        text = _text("; ".join(match.reasons))
        self._db.execute(
            "UPDATE files SET state = 'ready', reason = ? WHERE id = ? AND state IN ('ready', 'queued')",
            (text, file.id),
        )
        # done, and now there is more than one choice: it is told, and looked at again when one of them is removed
        contested = text if match.contested else None
        self._db.execute("UPDATE files SET reason = ? WHERE id = ? AND state = 'done'", (contested, file.id))

    def _is_taken_away(self, made: JobInput, key: str, lost: set[JobInput]) -> bool:
        """Whether a table is there, and says it of another micrograph now, or says it no more."""
        said = self._db.execute(
            "SELECT e.key, e.digest, f.source, f.path FROM entries e JOIN files f ON f.id = e.file "
            "WHERE e.file = ? AND e.live AND e.kind = ? AND e.name = ?",
            (made.table, made.kind, os.fsencode(made.name)),
        ).fetchone()
        if said is not None:
            now = replace(made, digest=said[1], source=said[2], path=os.fsdecode(said[3]))
            return said[0] != key or now in lost
        table = self._db.execute(
            "SELECT n.state, n.gone FROM files f JOIN files n ON n.source = f.source AND n.path = f.path "
            "WHERE f.id = ? ORDER BY n.generation DESC LIMIT 1",
            (made.table,),
        ).fetchone()
        return table is not None and table[0] == "done" and not table[1]

    def _make_job(self, file: FileRow, made_of: Sequence[JobInput]) -> None:
        inputs, signature, origin = self._describe(file.id, made_of)
        last = self._db.execute(
            "SELECT generation, signature, state, inputs FROM jobs WHERE item = ? ORDER BY generation DESC LIMIT 1",
            (file.item,),
        ).fetchone()
        # what is not done is made anew where another table says the same: its own may be gone
        same = last is not None and last[1] == signature and (last[2] == "done" or last[3] == inputs)
        if same and last[2] == "superseded" and last[3] == inputs:
            revived = self._db.execute(
                "UPDATE jobs SET state = 'ready', reason = NULL WHERE item = ? AND generation = ? "
                "AND finished IS NULL RETURNING id",
                (file.item, last[0]),
            ).fetchone()
            if revived is not None:  # it was given up before it came to anything: not another generation
                self._db.execute("UPDATE files SET state = 'queued', reason = NULL WHERE id = ?", (file.id,))
                return
        if same and last[2] != "superseded":
            self._db.execute("UPDATE files SET reason = NULL WHERE id = ? AND state = 'done'", (file.id,))
            if last[3] != inputs:  # the table that says so may be another by now
                self._db.execute(
                    "UPDATE jobs SET inputs = ?, origin = ? WHERE item = ? AND generation = ?",
                    (inputs, origin, file.item, last[0]),
                )
            return
        self._db.execute(
            "UPDATE jobs SET state = 'superseded', reason = 'an input changed' WHERE item = ? "
            "AND state IN ('ready', 'claimed', 'failed', 'rejected')",
            (file.item,),
        )
        self._db.execute(
            "INSERT INTO jobs (item, file, generation, inputs, signature, origin, state) "
            "VALUES (?, ?, ?, ?, ?, ?, 'ready')",
            (file.item, file.id, 1 if last is None else last[0] + 1, inputs, signature, origin),
        )
        self._db.execute("UPDATE files SET state = 'queued', reason = NULL WHERE id = ?", (file.id,))

    @staticmethod
    def _describe(file: int, made_of: Sequence[JobInput]) -> tuple[str, str, str | None]:
        """What a job is made of, as it is recorded: the inputs, what decides its result, and its origin."""
        described = [(made.kind, made.source, made.path, made.name, made.digest, made.table) for made in made_of]
        signature = [file, [(made.kind, made.digest) for made in made_of]]
        origins = (json.dumps([made.table, made.name]) for made in made_of if made.kind in ("coordinates", "rows"))
        return json.dumps(described), json.dumps(signature), next(origins, None)

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

    def job_waits(self, job: int, reason: str) -> None:
        """Give a claimed job up until its file, or a table, says more: its item waits again."""
        with self.transaction():
            (file,) = self._db.execute("SELECT file FROM jobs WHERE id = ?", (job,)).fetchone()
            given_up = self._db.execute(
                "UPDATE jobs SET state = 'superseded', reason = ? WHERE id = ? AND state = 'claimed'",
                (_text(reason), job),
            ).rowcount
            if given_up:
                self._db.execute(
                    "UPDATE files SET state = 'ready', reason = ? WHERE id = ? AND state = 'queued'",
                    (_text(reason), file),
                )

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
                    "UPDATE files SET state = ?, reason = ?, attempts = attempts + 1 "
                    "WHERE id = (SELECT file FROM jobs WHERE id = ? AND state = ?) AND state = 'queued'",
                    (ended, _text(reason), job, ended),
                )
            if changed and ended == "rejected":  # a result: the item has no rows now, nor those of an older generation
                (item,) = self._db.execute("SELECT item FROM jobs WHERE id = ?", (job,)).fetchone()
                self._retire(item, job)

    def _retire(self, item: str, but: int = 0) -> None:
        """End what an item has in the sets, but for the rows of one job."""
        if not self._db.execute("SELECT 1 FROM jobs WHERE item = ? AND id != ? LIMIT 1", (item, but)).fetchone():
            return
        for output in ("shards", "blocks"):
            self._db.execute(
                f"UPDATE {output} SET live = 0 WHERE job IN (SELECT id FROM jobs WHERE item = ? AND id != ?)",
                (item, but),
            )
        self._db.execute(
            "UPDATE jobs SET state = 'superseded' WHERE item = ? AND id != ? AND state != 'superseded'", (item, but)
        )

    def _retire_rivals(self, job: JobRow) -> None:
        """The same picks are in the sets once: end the rows that another micrograph, or stack, made of them.

        What is being made of that one by now, of other picks, is not concerned.
        """
        rivals = self._db.execute(
            "SELECT id, file FROM jobs WHERE origin = (SELECT origin FROM jobs WHERE id = ?) AND +state = 'done' "
            "AND item != ?",
            (job.id, job.item),
        ).fetchall()
        for rival, file in rivals:
            for output in ("shards", "blocks"):
                self._db.execute(f"UPDATE {output} SET live = 0 WHERE job = ?", (rival,))
            self._db.execute("UPDATE jobs SET state = 'superseded' WHERE id = ?", (rival,))
            self._db.execute(
                "UPDATE files SET state = CASE WHEN gone THEN 'superseded' ELSE 'ready' END, reason = ? "
                "WHERE id = ? AND state = 'done'",
                (_text(f"its coordinates were taken for {job.item}"), file),
            )

    def commit(
        self,
        job: JobRow,
        shards: Sequence[Shard],
        blocks: Sequence[Block],
        *,
        warnings: Sequence[str] = (),
        notes: Sequence[str] = (),
        seconds: float,
        now: float,
    ) -> None:
        """Record that a job is done: the one moment of truth.

        Its rows and files, the new lengths of the row logs, and the end of what older generations of the item had in
        the sets, all in one transaction. Several jobs may share one.
        """
        with self.transaction():
            if not self.is_claimed(job.id):
                raise LedgerError(f"job {job.id} of {job.item} is no longer claimed")
            self._retire(job.item, job.id)
            self._retire_rivals(job)
            self._db.executemany(
                "INSERT INTO shards (job, path, size, crc32) VALUES (?, ?, ?, ?)",
                [(job.id, shard.path, shard.size, shard.crc32) for shard in shards],
            )
            self._db.executemany(
                "INSERT INTO blocks (job, tbl, start, length, count, columns, crc32, swept) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (job.id, block.table, block.start, block.length, block.count, json.dumps(block.columns),
                     block.crc32, "{item}" not in block.table)
                    for block in blocks
                ],
            )  # fmt: skip
            self._db.execute(
                "UPDATE jobs SET state = 'done', warnings = ?, notes = ?, reason = NULL, finished = ?, seconds = ? "
                "WHERE id = ?",
                (*(json.dumps(list(said)) if said else None for said in (warnings, notes)), now, seconds, job.id),
            )
            self._db.execute(
                "UPDATE files SET state = 'done', reason = NULL WHERE id = ? AND state = 'queued'",
                (job.file.id,),
            )

    def restore(
        self,
        source: SourceRow,
        job: JobRow,
        shards: Sequence[Shard],
        blocks: Sequence[Block],
        *,
        tables: Mapping[int, Identity],
        warnings: Sequence[str] = (),
        notes: Sequence[str] = (),
        seconds: float,
        now: float,
    ) -> None:
        """Record a commit of a ledger that was lost; call it in the order of the commits.

        The tables that it was made of, with the identities that they had, are read again when they are found, at their
        places or elsewhere.
        """
        file, raw = job.file, os.fsencode(job.file.path)
        with self.transaction():
            self.put_source(source)
            known = self.newest(file.source, file.path)
            if known is not None and known.item != file.item:  # it went elsewhere, and this came in its place
                self._db.execute(
                    "UPDATE files SET path = ? WHERE source = ? AND path = ?",
                    (os.fsencode(f".moved/{known.id}/{Path(file.path).name}"), file.source, raw),
                )
                known = None
            if known is not None and known.identity._replace(ctime_ns=0) == file.identity._replace(ctime_ns=0):
                number = known.id
                self._db.execute("UPDATE files SET state = 'queued', gone = 0 WHERE id = ?", (number,))
            else:
                generation = 1 if known is None else known.generation + 1
                cursor = self._db.execute(
                    "INSERT INTO files (source, path, generation, kind, item, key, size, mtime_ns, inode, state, "
                    "noticed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'queued', ?)",
                    (file.source, raw, generation, file.kind, file.item, self._key(file.path), file.identity.size,
                     file.identity.mtime_ns, file.identity.inode, now),
                )  # fmt: skip
                number = int(cursor.lastrowid or 0)
            self._db.execute(  # older generations, and the places that it was moved from
                "UPDATE files SET state = 'superseded', gone = NOT (source = ? AND path = ?) "
                "WHERE item = ? AND id != ?",
                (file.source, raw, file.item, number),
            )
            self._db.executemany("DELETE FROM shards WHERE path = ?", [(shard.path,) for shard in shards])
            (last,) = self._db.execute("SELECT max(generation) FROM jobs WHERE item = ?", (file.item,)).fetchone()
            made_of = [
                replace(made, table=self._placed_table(made, tables.get(made.table))) if made.table else made
                for made in job.inputs
            ]
            described = self._describe(number, made_of)
            cursor = self._db.execute(
                "INSERT INTO jobs (item, file, generation, inputs, signature, origin, state, attempts) "
                "VALUES (?, ?, ?, ?, ?, ?, 'claimed', ?)",
                (file.item, number, max(job.generation, (last or 0) + 1), *described, job.attempts),
            )
            job = replace(job, id=int(cursor.lastrowid or 0), file=replace(file, id=number))
            self.commit(job, shards, blocks, warnings=warnings, notes=notes, seconds=seconds, now=now)

    def _placed_table(self, made: JobInput, identity: Identity | None) -> int:
        """The number of a table that a job was made of; a table waits to be read, anything else to be found."""
        place = (made.source, os.fsencode(made.path))
        is_table = made.kind in TABLE_KINDS and identity is not None
        found = identity if is_table and identity is not None else Identity(0, 0, 0, 0)
        first = self._db.execute(
            "SELECT id FROM files WHERE source = ? AND path = ? ORDER BY generation LIMIT 1", place
        ).fetchone()
        if first is not None:
            self._db.execute(
                "UPDATE files SET size = ?, mtime_ns = ?, inode = ? WHERE id = ?",
                (found.size, found.mtime_ns, found.inode, first[0]),
            )
            return int(first[0])
        cursor = self._db.execute(
            "INSERT INTO files (source, path, generation, kind, item, key, size, mtime_ns, inode, state, noticed) "
            "VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?, 0)",
            (*place, made.kind, item_name(made.source, made.path), self._key(made.path), found.size, found.mtime_ns,
             found.inode, "ready" if is_table else "superseded"),
        )  # fmt: skip
        return int(cursor.lastrowid or 0)

    def fill_optics(self) -> None:
        """Where numbers of optics groups are missing, which no rows have, repeat another one, so that all count on."""
        with self.transaction():
            for (table,) in self._db.execute("SELECT DISTINCT tbl FROM optics").fetchall():
                rows = self._db.execute("SELECT number, data FROM optics WHERE tbl = ? ORDER BY number", (table,))
                known = dict(rows.fetchall())
                for number in set(range(1, max(known, default=0))) - set(known):
                    self._db.execute("INSERT INTO optics VALUES (?, ?, ?)", (table, number, known[max(known)]))

    # --- mending ---

    def done_jobs(self) -> list[int]:
        """Numbers of the jobs that are done, in the order in which they were."""
        rows = self._db.execute("SELECT id FROM jobs WHERE state = 'done' ORDER BY finished, id")
        return [int(row[0]) for row in rows]

    def committed(self, job: int) -> tuple[JobRow, tuple[Shard, ...], tuple[Block, ...], dict[str, Any]]:
        """A job that is done, its files and rows, and what was said when it was committed."""
        row = self._db.execute(
            f"SELECT j.id, j.item, j.generation, j.inputs, j.attempts, {_FILE}, j.warnings, j.notes, j.seconds, "
            "j.finished FROM jobs j JOIN files f ON f.id = j.file WHERE j.id = ?",
            (job,),
        ).fetchone()
        inputs = tuple(JobInput(*made) for made in json.loads(row[3]))
        shards = self._db.execute("SELECT path, size, crc32 FROM shards WHERE job = ? AND live", (job,))
        blocks = self._db.execute(
            "SELECT tbl, start, length, count, columns, crc32 FROM blocks WHERE job = ? AND live AND tbl != ? "
            "ORDER BY id",
            (job, JOURNAL),
        )
        said = {
            "warnings": tuple(json.loads(row[15] or "[]")),
            "notes": tuple(json.loads(row[16] or "[]")),
            "seconds": row[17] or 0.0,
            "finished": row[18] or 0.0,
        }
        return (
            JobRow(row[0], row[1], row[2], _file(row[5:15]), inputs, row[4]),
            tuple(Shard(*shard) for shard in shards),
            tuple(
                Block(table, start, length, count, tuple(json.loads(columns)), crc32)
                for table, start, length, count, columns, crc32 in blocks
            ),
            said,
        )

    def journal_blocks(self) -> Iterator[Block]:
        """Where the lines of the log of commits stand, of all jobs that are or were done."""
        rows = self._db.execute("SELECT start, length, crc32 FROM blocks WHERE tbl = ? ORDER BY start", (JOURNAL,))
        for start, length, crc32 in rows:
            yield Block(JOURNAL, start, length, 1, (), crc32)

    def undo(self, job: int, reason: str) -> None:
        """What a job made is not whole any more: its rows leave the sets, and its item is made again."""
        with self.transaction():
            (file,) = self._db.execute("SELECT file FROM jobs WHERE id = ?", (job,)).fetchone()
            self._db.execute("DELETE FROM shards WHERE job = ?", (job,))
            self._db.execute("UPDATE blocks SET live = 0 WHERE job = ? AND live", (job,))
            self._db.execute("UPDATE jobs SET state = 'superseded', reason = ? WHERE id = ?", (_text(reason), job))
            self._db.execute(
                "UPDATE files SET state = CASE WHEN gone THEN 'superseded' ELSE 'ready' END, reason = ? WHERE id = ?",
                (_text(reason), file),
            )
            self.put("joined", "")  # everything is matched anew at the next start

    def forget_shards(self, paths: Iterable[str]) -> None:
        """Files of older generations that are not there any more; nothing needs them."""
        with self.transaction():
            self._db.executemany("DELETE FROM shards WHERE path = ? AND NOT live", [(path,) for path in paths])

    def replace_journal(self, blocks: Sequence[tuple[int, Block]]) -> None:
        """Record where the lines of a log of commits stand that was written anew: of each job its own."""
        with self.transaction():
            self._db.execute("DELETE FROM blocks WHERE tbl = ?", (JOURNAL,))
            self._db.execute("DELETE FROM tables WHERE name = ?", (JOURNAL,))
            self._db.executemany(
                "INSERT INTO blocks (job, tbl, start, length, count, columns, crc32, swept) "
                "VALUES (?, ?, ?, ?, 1, '[]', ?, 1)",
                [(job, JOURNAL, block.start, block.length, block.crc32) for job, block in blocks],
            )

    def put_optics(self, table: str, groups: Mapping[int, Mapping[str, Any]]) -> None:
        """Record optics groups of a table, by number; those that are known stay as they are."""
        with self.transaction():
            for number, data in groups.items():
                self._db.execute(
                    "INSERT OR IGNORE INTO optics VALUES (?, ?, ?)", (table, number, json.dumps(data, sort_keys=True))
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

    def versions(self) -> dict[str, tuple[int, int]]:
        """Of each table: how often its rows changed, and how many it has now."""
        rows = self._db.execute("SELECT name, version, rows FROM tables WHERE name != ?", (JOURNAL,))
        return {row[0]: (row[1], row[2]) for row in rows}

    def live_blocks(self, table: str) -> Iterator[Block]:
        """Blocks of rows that belong to a table now, in the order they were committed."""
        rows = self._db.execute(
            "SELECT b.start, b.length, b.count, b.columns, b.crc32, j.item FROM blocks b "
            "JOIN jobs j ON j.id = b.job WHERE b.tbl = ? AND b.live ORDER BY b.id",
            (table,),
        )
        columns: dict[str, tuple[str, ...]] = {}
        for start, length, count, names, crc32, item in rows:
            if names not in columns:
                columns[names] = tuple(json.loads(names))
            yield Block(table, start, length, count, columns[names], crc32, item)

    def newest_blocks(self, table: str, before: int | None, limit: int) -> dict[int, Block]:
        """Blocks of rows that belong to a table now, the newest first, by their numbers; those ``before`` one of them.

        None begins with the newest; call again with the least.
        """
        rows = self._db.execute(
            "SELECT b.id, b.start, b.length, b.count, b.crc32, j.item FROM blocks b JOIN jobs j ON j.id = b.job "
            "WHERE b.tbl = ? AND b.live AND b.id < ? ORDER BY b.id DESC LIMIT ?",
            (table, 1 << 62 if before is None else before, limit),
        )
        return {row[0]: Block(table, row[1], row[2], row[3], (), row[4], row[5]) for row in rows}

    def live_ranges(self, table: str) -> Iterator[tuple[tuple[str, ...], int, int]]:
        """Columns, start and length of each such block."""
        found = self._db.execute(
            "SELECT columns, start, length FROM blocks WHERE tbl = ? AND live ORDER BY id", (table,)
        )
        columns: dict[str, tuple[str, ...]] = {}
        while rows := found.fetchmany(1000):
            for names, start, length in rows:
                if names not in columns:
                    columns[names] = tuple(json.loads(names))
                yield columns[names], start, length

    def ended_blocks(self) -> list[tuple[int, str, str, bool]]:
        """Blocks that ended and had a file of their own: number, table, item, and whether the item has another now."""
        rows = self._db.execute(
            "SELECT b.id, b.tbl, j.item, EXISTS (SELECT 1 FROM blocks n JOIN jobs m ON m.id = n.job "
            "WHERE m.item = j.item AND n.tbl = b.tbl AND n.live) FROM blocks b JOIN jobs j ON j.id = b.job "
            "WHERE NOT b.live AND NOT b.swept"
        )
        return [(row[0], row[1], row[2], bool(row[3])) for row in rows]

    def swept(self, blocks: Iterable[int]) -> None:
        """Record that no files are left of blocks that ended."""
        with self.transaction():
            self._db.executemany("UPDATE blocks SET swept = 1 WHERE id = ?", [(block,) for block in blocks])

    def columns(self, table: str) -> set[str]:
        """Every column that the rows of a table have; those that they ever had where there are no rows now."""
        for which in ("AND live", ""):
            rows = self._db.execute(f"SELECT DISTINCT columns FROM blocks WHERE tbl = ? {which}", (table,)).fetchall()
            if rows:
                break
        return {column for row in rows for column in json.loads(row[0])}

    def optics(self, table: str) -> list[dict[str, Any]]:
        """Optics groups of a table; the first is number 1."""
        rows = self._db.execute("SELECT data FROM optics WHERE tbl = ? ORDER BY number", (table,))
        return [json.loads(row[0]) for row in rows]

    def has_shard(self, path: str) -> bool:
        """Whether a file of the output belongs to a commit."""
        return self._db.execute("SELECT 1 FROM shards WHERE path = ?", (path,)).fetchone() is not None

    def strangers(self, paths: Iterable[str]) -> Iterator[str]:
        """Those of some paths that no file has which belongs to a commit; `has_shard` for many of them."""
        left = iter(paths)
        while part := list(itertools.islice(left, ASKED_AT_ONCE)):
            texts = [_text(path) for path in part]  # names that are no text are strangers
            rows = self._db.execute(f"SELECT path FROM shards WHERE path IN ({_marks(texts)})", _filled(texts))
            known = {row[0] for row in rows}
            yield from (path for path in part if path not in known)

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
        return dict(self._db.execute("SELECT state, n FROM counts WHERE tbl = 'jobs' AND n"))

    def file_counts(self) -> dict[tuple[str, str], int]:
        """Files of each kind and state."""
        rows = self._db.execute("SELECT kind, state, n FROM counts WHERE tbl = 'files' AND n")
        return {(row[0], row[1]): row[2] for row in rows}

    def waiting(self, limit: int = 100) -> list[tuple[str, str, float]]:
        """What waits, the oldest first: its name (and path, where that is another), what for, since when.

        Items; and tables that were looked at and cannot be read yet.
        """
        rows = self._db.execute(
            "SELECT item, source, path, coalesce(reason, 'waits'), noticed FROM files WHERE state = 'ready' "
            f"AND (kind IN {_ITEMS} OR kind IN {_TABLES} AND reason IS NOT NULL) ORDER BY id LIMIT ?",
            (limit,),
        )
        return [(_called(item, source, os.fsdecode(raw)), reason, since) for item, source, raw, reason, since in rows]

    def waiting_count(self) -> int:
        """How many items wait."""
        return sum(n for (kind, state), n in self.file_counts().items() if kind in ITEM_KINDS and state == "ready")

    def unmatched(self, limit: int = 100) -> list[tuple[str, str]]:
        """Entries of tables that belong to no micrograph or stack so far: kind, name."""
        found: list[tuple[str, str]] = []
        for item, kinds in self._required.items():
            if item == "particles":
                rows = self._db.execute(
                    "SELECT kind, name FROM entries WHERE live AND kind = 'rows' AND place IS NULL ORDER BY id LIMIT ?",
                    (limit - len(found),),
                )
                found += [(row[0], _text(os.fsdecode(row[1]))) for row in rows]
                continue
            rows = self._db.execute(
                "SELECT e.kind, e.name FROM entries e WHERE e.live AND e.kind IN (SELECT value FROM json_each(?)) "
                "AND NOT EXISTS (SELECT 1 FROM files f WHERE f.key = e.key AND f.kind = ? "
                "AND f.state != 'superseded') ORDER BY e.id LIMIT ?",
                (json.dumps(list(kinds)), item, limit - len(found)),
            )
            found += [(row[0], _text(os.fsdecode(row[1]))) for row in rows]
        return found

    def named_stacks(self) -> Iterator[tuple[int, FileRow, str, str | None]]:
        """Each entry that names a stack: its number, the table, the name, and the stack's place where it is known."""
        rows = self._db.execute(
            f"SELECT {_FILE}, e.id, e.name, e.place FROM entries e JOIN files f ON f.id = e.file "
            "WHERE e.live AND e.kind = 'rows'"
        )
        for row in rows:
            yield row[10], _file(row), os.fsdecode(row[11]), None if row[12] is None else os.fsdecode(row[12])

    def ended_count(self, state: Literal["failed", "rejected"]) -> int:
        """Items that failed, or were rejected: jobs, and files that never became one."""
        (files,) = self._db.execute(f"SELECT count(*) FROM files f WHERE {_NO_JOB} AND state = ?", (state,)).fetchone()
        return int(files) + self.job_counts().get(state, 0)

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
        """Items done with warnings, the newest first; before them those for which there is another choice by now."""
        contested = self._db.execute(f"SELECT item, reason FROM files WHERE {_CONTESTED} ORDER BY id LIMIT ?", (limit,))
        rows = self._db.execute(
            "SELECT item, warnings FROM jobs WHERE state = 'done' AND warnings IS NOT NULL ORDER BY id DESC LIMIT ?",
            (limit,),
        )
        said = [(row[0], [f"{row[1]}; it was done before that"]) for row in contested]
        return [*said, *((row[0], json.loads(row[1])) for row in rows)][:limit]

    def warning_count(self) -> int:
        """Items done with warnings."""
        row = self._db.execute(
            "SELECT (SELECT count(*) FROM jobs WHERE state = 'done' AND warnings IS NOT NULL) + "
            f"(SELECT count(*) FROM files WHERE {_CONTESTED})"
        ).fetchone()
        return int(row[0])

    def oldest(self, state: Literal["ready", "queued"]) -> float | None:
        """When the oldest item was noticed that still waits (ready), or is being made (queued)."""
        oldest = [
            row[0]
            for kind in ITEM_KINDS
            for row in self._db.execute(
                "SELECT noticed FROM files WHERE kind = ? AND state = ? ORDER BY id LIMIT 1", (kind, state)
            )
        ]
        return min(oldest, default=None)


_ITEMS, _TABLES, _SAYING = str(ITEM_KINDS), str(TABLE_KINDS), str((*TABLE_KINDS, "mask"))  # as SQL writes them, too
_CONTESTED = f"state = 'done' AND reason IS NOT NULL AND +kind IN {_ITEMS} AND NOT gone"  # + for the smaller index
_NO_JOB = (
    "f.kind IN ('micrograph', 'coordinates', 'ctf', 'rows', 'mask', 'particles', 'map') "
    "AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.file = f.id AND j.state = f.state)"
)
_FILE = "f.id, f.source, f.path, f.generation, f.kind, f.item, f.size, f.mtime_ns, f.inode, f.attempts"


def _filled(values: Sequence[Any]) -> list[Any]:
    """Values for `IN`, the last one repeated up to a power of two: there are few different statements then."""
    return [*values, *[values[-1]] * ((1 << (len(values) - 1).bit_length()) - len(values))]


def _marks(values: Sequence[Any]) -> str:
    """Where the values of `_filled` stand in a statement."""
    return ", ".join("?" * (1 << (len(values) - 1).bit_length()))


def _same_name(other: str) -> str:
    return f"has the same name as {other}, apart from the ending; rename one of them"


def _called(item: str, source: str, path: str) -> str:
    """An item's name, with its path where the name does not say it: odd characters, or moved since."""
    whole = f"{source}/{path}"
    return item if whole.startswith(item) else f"{item} ({_text(whole)})"


def _source(row: Sequence[Any]) -> SourceRow:
    return SourceRow(row[0], row[1], Path(os.fsdecode(row[2])), os.fsdecode(row[3]), row[4])


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
