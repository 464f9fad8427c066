"""The log of commits: one line for each, beside the row logs and written like them, so that a ledger can be made again.

A line is the CRC-32 of its text in eight hexadecimal digits, a space, and the text: JSON, with all that the ledger
records of a commit. Its length is committed with the rest, so the log says neither less nor more than the ledger.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamprep.joins import JobInput
from streamprep.ledger import JOURNAL, Block, FileRow, JobRow, LedgerError, Shard, SourceRow
from streamprep.model import Identity


@dataclass(frozen=True, slots=True)
class Commit:
    """What one line says."""

    source: SourceRow
    """The watched folder that the item's file lies in."""
    job: JobRow
    """Its numbers are those of the ledger that was in use then."""
    shards: tuple[Shard, ...]
    blocks: tuple[Block, ...]
    """Of the tables; the line's own is not among them."""
    plan: str = ""
    """Hash of the plan that it was made with."""
    tables: Mapping[int, Identity] = field(default_factory=dict)
    """Identities of the tables that the job was made of, by their numbers."""
    optics: Mapping[str, Mapping[int, Mapping[str, Any]]] = field(default_factory=dict)
    """Optics groups that its rows have, by table and number."""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    finished: float = 0.0
    batch: int | None = None
    """Where the line of the first job stands that was committed together with this one; None where it was alone."""


@dataclass(frozen=True, slots=True)
class Line:
    """A commit, and where in the log it stands."""

    start: int
    length: int
    crc32: int
    commit: Commit


def line_of(commit: Commit) -> bytes:
    """The line of a commit. Paths may hold any bytes; JSON escapes those that are no text."""
    text = _ENCODER.encode(commit).encode("ascii")
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, Path) else {name: getattr(value, name) for name in value.__slots__}


_ENCODER = json.JSONEncoder(separators=(",", ":"), default=_plain)


def block_of(line: Line) -> Block:
    """Where a line stands, as the ledger records it."""
    return Block(JOURNAL, line.start, line.length, 1, (), line.crc32)


def read(path: Path, start: int = 0) -> Iterator[Line | None]:
    """The lines of a log from a place on; None for each that is damaged or not whole.

    Raises
    ------
    LedgerError
        A line is whole, and cannot be read: a newer version wrote it.
    """
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            try:
                commit = _parsed(line)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise LedgerError(
                    f"{path}: the line at byte {start} is whole, but of another version of streamprep; use the version "
                    "that the session was made with, or a later one"
                ) from error
            yield None if commit is None else Line(start, len(line), zlib.crc32(line), commit)
            start += len(line)


def _parsed(line: bytes) -> Commit | None:
    crc, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or crc != b"%08x" % zlib.crc32(text):
        return None
    return _commit(json.loads(text))


def _commit(said: Mapping[str, Any]) -> Commit:
    source, job = said["source"], said["job"]
    file = FileRow(**{**job["file"], "identity": Identity(*job["file"]["identity"])})
    inputs = tuple(JobInput(**made) for made in job["inputs"])
    return Commit(
        SourceRow(**{**source, "root": Path(source["root"])}),
        JobRow(**{**job, "file": file, "inputs": inputs}),
        tuple(Shard(**shard) for shard in said["shards"]),
        tuple(_block(block) for block in said["blocks"]),
        said["plan"],
        {int(number): Identity(*identity) for number, identity in said["tables"].items()},
        {table: {int(number): data for number, data in made.items()} for table, made in said["optics"].items()},
        tuple(said["warnings"]),
        tuple(said["notes"]),
        said["seconds"],
        said["finished"],
        said.get("batch"),
    )


def _block(said: Mapping[str, Any]) -> Block:
    columns: Sequence[str] = said["columns"]
    return Block(**{**said, "columns": tuple(columns)})
