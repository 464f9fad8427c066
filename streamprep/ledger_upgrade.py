"""Upgrading the ledger of a session that an older version of streamprep began.

The order is that of every commit: first a durable copy of the ledger as it was, beside it; then one transaction with
all that changes. A crash leaves the old ledger or the new one, and the copy is kept for good.

A schema that changes gets a new number and an entry in `MIGRATIONS`, which says what the rows of the older one mean in
the newer. How tables, indices and triggers are written down is no part of that: what differs is made anew from the text
in `streamprep.ledger`, so that an upgraded ledger is as a new one.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from streamprep.ledger import SCHEMA_VERSION, LedgerError, OldLedger
from streamprep.sinks import _files

log = logging.getLogger(__name__)

SPACE = 4
"""So many times its size an upgrade may take on the disk, for a while: the copy, the new tables, and SQLite's log."""


def _files_of_items_are_swept(ledger: OldLedger) -> None:
    """3 → 4: files of single items are removed with the last rows of their item; so far they stayed.

    Sessions that began before there was a log of commits lack the rows of tables that came with it.
    """
    unlogged = ledger.execute(
        "SELECT item FROM jobs j WHERE state = 'done' AND NOT EXISTS "
        "(SELECT 1 FROM blocks b WHERE b.job = j.id AND b.tbl = 'commits') LIMIT 1"
    )
    if unlogged:
        raise _unknown(ledger, f"{unlogged[0][0]} done and not in the log of commits")
    ledger.execute("ALTER TABLE blocks ADD COLUMN swept INTEGER NOT NULL DEFAULT 0")
    ledger.execute("UPDATE blocks SET swept = instr(tbl, '{item}') = 0")


MIGRATIONS: Mapping[int, Callable[[OldLedger], None]] = {3: _files_of_items_are_swept}
"""What turns a ledger of each schema into one of the next. Of 1 and 2, which no release had, rows of tables are missing
that sessions have today."""


def _columns(ledger: OldLedger, table: str) -> list[str]:
    return [str(row[1]) for row in ledger.execute(f"PRAGMA table_info({table})")]


def upgrade(ledger: OldLedger) -> None:
    """Bring a ledger to the schema of this version.

    Raises
    ------
    LedgerError
        It is too old, or no version of streamprep left it so; it is as it was.
    DamagedLedgerError
        It is not sound; it is as it was.
    OSError
        The disk is full, or failed; it is as it was.
    """
    steps = [MIGRATIONS.get(version) for version in range(ledger.version, SCHEMA_VERSION)]
    if None in steps:
        raise LedgerError(
            f"{ledger.path}: made by streamprep {ledger.writer} (schema {ledger.version}), too old to be "
            f"upgraded; the oldest that can be is schema {min(MIGRATIONS)}. Continue with that version, or give "
            "another output folder, and everything is processed again"
        )
    ledger.check()
    needed, folder = SPACE * ledger.size_bytes(), ledger.path.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise LedgerError(
            f"{ledger.path}: upgrading it from schema {ledger.version} to {SCHEMA_VERSION} needs "
            f"{(needed >> 20) + 1} MiB on the disk for a while, and {free >> 20} MiB are free; make room first"
        )
    log.warning(
        "%s: upgrading it from schema %d (streamprep %s) to %d",
        ledger.path,
        ledger.version,
        ledger.writer,
        SCHEMA_VERSION,
    )
    copy = _keep(ledger)
    said = f"the ledger was upgraded from schema {ledger.version} to {SCHEMA_VERSION}; {copy.name} is as it was before"
    with ledger.transaction():
        for step in steps:
            if step is not None:
                step(ledger)
        _write_down_anew(ledger)
        ledger.execute("INSERT OR REPLACE INTO meta VALUES ('upgraded', ?)", (said,))
        ledger.check()


def _keep(ledger: OldLedger) -> Path:
    """Write a durable copy beside it; one of an earlier try is replaced."""
    copy = ledger.path.with_name(f"{ledger.path.stem}-schema{ledger.version}{ledger.path.suffix}")
    begun = copy.with_name(f".{copy.name}.part")
    try:
        ledger.copy_to(begun)
        _files.fsync_file(begun)
        begun.replace(copy)
    except OSError:
        begun.unlink(missing_ok=True)
        raise
    _files.fsync_folder(copy.parent)
    return copy


def _write_down_anew(ledger: OldLedger) -> None:
    """Give a ledger the tables, indices and triggers of a new one, with the rows that it has."""
    wanted, found = ledger.schema_wanted(), ledger.schema()
    there = {name: text for kind, name, text in found if kind == "table"}
    for kind, name, _ in found:
        if kind != "table":
            ledger.execute(f"DROP {kind} {name}")
    for kind, name, text in wanted:
        if kind != "table" or there.pop(name, None) == text:
            continue
        former = _columns(ledger, name)
        if former:
            ledger.execute(f"ALTER TABLE {name} RENAME TO former_{name}")
        ledger.execute(text)
        if former:
            if set(former) != set(_columns(ledger, name)):
                raise _unknown(ledger, f"{name} ({', '.join(former)})")
            columns = ", ".join(former)
            ledger.execute(f"INSERT INTO {name} ({columns}) SELECT {columns} FROM former_{name}")
            ledger.execute(f"DROP TABLE former_{name}")
    if there:
        raise _unknown(ledger, ", ".join(there))
    for kind, _, text in wanted:
        if kind != "table":
            ledger.execute(text)


def _unknown(ledger: OldLedger, what: str) -> LedgerError:
    return LedgerError(
        f"{ledger.path}: no released streamprep left a ledger of schema {ledger.version} with {what}; it cannot be "
        f"upgraded. Continue with {ledger.writer}, or give another output folder"
    )
