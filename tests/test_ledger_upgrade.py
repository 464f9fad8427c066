"""Ledgers that older versions left: upgraded whole or not at all, and sessions go on with them.

``data/schemaN`` is what the last commit with schema N left of a session: its ledger as SQL, and its row logs. The first
micrograph was done twice, as a pick was removed; the second is done, the third waits for coordinates, the fourth is
broken.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mrcfile
import numpy as np
import pytest

from streamprep import journal, ledger_upgrade
from streamprep.config import load
from streamprep.engine import Engine
from streamprep.executors import InlineExecutor
from streamprep.formats.checksum import crc32
from streamprep.ledger import SCHEMA, SCHEMA_VERSION, DamagedLedgerError, Ledger, LedgerError, OldLedger, OldLedgerError
from streamprep.ledger_upgrade import MIGRATIONS, upgrade
from streamprep.model import StreamprepError
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.repair import repair
from streamprep.simulate import Acquisition, simulate
from streamprep.snapshot import Snapshot
from tests.conftest import Session
from tests.outputs import check_invariants, rows_of

DATA = Path(__file__).parent / "data"
PLUGINS = load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""})
OLDEST = 3
CONFIG = """[session]
watch = ["Micrographs", "Coordinates"]
settle_seconds = 0
incomplete_seconds = 0
device = "cpu"
[optics]
pixel_size_angstrom = 3.5
[extract]
box_size_px = 16
[particles.invert]
"""
SCHEMAS = {4: "c349cc75668f1252"}
"""Digest of the text of each schema."""


def dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return [*database.iterdump(), *map(str, database.execute("PRAGMA user_version").fetchone())]


def schema(path: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return sorted(database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL"))


@pytest.fixture(params=range(OLDEST, SCHEMA_VERSION))
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A ledger of an older version."""
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript((DATA / f"schema{request.param}" / "ledger.sql").read_text())
    return path


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A new ledger."""
    path = tmp_path / "new" / "ledger.sqlite"
    path.parent.mkdir()
    Ledger(path).close()
    return path


def test_a_schema_that_changes_gets_a_new_version() -> None:
    digest = hashlib.sha256(SCHEMA.encode()).hexdigest()[:16]
    assert SCHEMAS.get(SCHEMA_VERSION) == digest, (
        "SCHEMA was changed: give it a new SCHEMA_VERSION, a migration in ledger_upgrade.py and a ledger of the former "
        "one in tests/data"
    )


def test_every_schema_since_the_oldest_can_be_upgraded() -> None:
    assert list(MIGRATIONS) == list(range(OLDEST, SCHEMA_VERSION))
    assert all((DATA / f"schema{version}" / "ledger.sql").exists() for version in MIGRATIONS)


@pytest.mark.parametrize("remote", [False, True])
def test_an_upgraded_ledger_is_as_a_new_one(old: Path, fresh: Path, remote: bool) -> None:
    before = dump(old)
    Ledger(old, remote=remote, upgrade=upgrade).close()
    assert schema(old) == schema(fresh)
    assert dump(next(old.parent.glob("ledger-schema*.sqlite"))) == before
    with contextlib.closing(sqlite3.connect(old)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    again = dump(old)
    Ledger(old, remote=remote, upgrade=upgrade).close()
    assert dump(old) == again


def test_no_row_is_lost_and_none_altered(old: Path) -> None:
    def rows(path: Path) -> dict[str, list[dict[str, Any]]]:
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.row_factory = sqlite3.Row
            names = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {name: [dict(row) for row in database.execute(f"SELECT * FROM {name}")] for name in names}

    before = rows(old)
    suffixes = next(json.loads(row["value"]) for row in before["meta"] if row["key"] == "suffixes")
    Ledger(old, suffixes=suffixes, upgrade=upgrade).close()
    after = rows(old)
    after["meta"] = [row for row in after["meta"] if row["key"] != "upgraded"]
    for name, found in before.items():
        assert [{key: row[key] for key in found[0]} for row in after[name]] == found, name
    assert all(row["swept"] == ("{item}" not in row["tbl"]) for row in after["blocks"])


@pytest.mark.case(1)
@pytest.mark.parametrize("remote", [False, True])
def test_killed_at_any_statement_it_is_the_old_ledger_or_the_new_one(old: Path, fresh: Path, remote: bool) -> None:
    before, images, statements = dump(old), [], 0

    def look(_: str) -> None:
        """What a process that is killed now leaves: its files as they are."""
        nonlocal statements
        statements += 1
        image = {path.name: path.read_bytes() for path in old.parent.glob("*ledger*")}
        if image not in images:
            images.append(image)

    def watched(ledger: OldLedger) -> None:
        ledger._db.set_trace_callback(look)
        upgrade(ledger)
        look("and after it")

    Ledger(old, remote=remote, upgrade=watched).close()
    assert statements > 80
    found = []
    for image in images:
        for path in old.parent.glob("*ledger*"):
            path.unlink()
        for name, data in image.items():
            (old.parent / name).write_bytes(data)
        with contextlib.closing(sqlite3.connect(old)) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
        assert dump(old) == before if version < SCHEMA_VERSION else schema(old) == schema(fresh)
        found.append(version)
        Ledger(old, remote=remote, upgrade=upgrade).close()
        assert schema(old) == schema(fresh)
    assert found == sorted(found)
    assert (found[0], found[-1]) == (int(before[-1]), SCHEMA_VERSION)


@pytest.mark.case(6)
def test_a_disk_that_fails_at_any_statement_leaves_the_old_ledger(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, execute, left = dump(old), OldLedger.execute, 0

    def failing(self: OldLedger, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        nonlocal left
        left -= 1
        if not left:
            raise OSError(28, "No space left on device")
        return execute(self, statement, values)

    monkeypatch.setattr(OldLedger, "execute", failing)
    for number in itertools.count(1):
        left = number
        with contextlib.suppress(LedgerError):
            Ledger(old, upgrade=upgrade).close()
            break
        assert dump(old) == before
    assert number > 20


def test_without_room_for_it_nothing_is_begun(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dump(old)
    monkeypatch.setattr(ledger_upgrade.shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(LedgerError, match="needs 1 MiB on the disk for a while, and 0 MiB are free; make room"):
        Ledger(old, upgrade=upgrade)
    assert dump(old) == before
    assert [path.name for path in old.parent.iterdir()] == ["ledger.sqlite"]


def test_a_damaged_one_is_not_upgraded(old: Path) -> None:
    with contextlib.closing(sqlite3.connect(old)) as database:
        database.execute("DELETE FROM jobs WHERE id = 1")  # its rows belong to nothing
        database.commit()
    before = dump(old)
    with pytest.raises(DamagedLedgerError, match="shards|blocks"):
        Ledger(old, upgrade=upgrade)
    assert dump(old) == before


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("PRAGMA user_version = 2", "made by streamprep version 0.1.0 .schema 2., too old to be upgraded"),
        ("ALTER TABLE runs ADD COLUMN host TEXT", "no released streamprep left .* runs .*host"),
        ("CREATE TABLE notes (text TEXT)", "no released streamprep left .* with notes"),
        ("DELETE FROM blocks WHERE tbl = 'commits'", "done and not in the log of commits"),
    ],
)
def test_what_no_release_left_is_refused_and_stays(old: Path, statement: str, said: str) -> None:
    with contextlib.closing(sqlite3.connect(old)) as database:
        database.execute(statement)
        database.commit()
    before = dump(old)
    with pytest.raises(LedgerError, match=said):
        Ledger(old, upgrade=upgrade)
    assert dump(old) == before


def test_a_newer_one_is_refused_with_the_version_that_wrote_it(fresh: Path) -> None:
    with contextlib.closing(sqlite3.connect(fresh)) as database:
        database.execute("INSERT INTO runs (started, version) VALUES (0, '9.7')")
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        database.commit()
    before = dump(fresh)
    with pytest.raises(
        LedgerError, match=r"newer streamprep, version 9\.7 .*continue with that version or a later one"
    ):
        Ledger(fresh, upgrade=upgrade)
    assert dump(fresh) == before


# --- sessions --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=range(OLDEST, SCHEMA_VERSION))
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Session:
    """A session that an older version left; what it had read and made lies at another place by now."""
    simulate(tmp_path, Acquisition(micrographs=4, size_px=256, particles=3, box_size_px=32, seed=4))
    (tmp_path / "streamprep.toml").write_text(CONFIG)
    (tmp_path / "Micrographs/mic_0004.mrc").write_bytes(b"\0" * 2000)
    output = tmp_path / "streamprep_out"
    rows, found = output / ".streamprep/rows", DATA / f"schema{request.param}"
    rows.mkdir(parents=True)
    for path in found.glob("*.rows"):
        shutil.copy(path, rows)
    shutil.copytree(found / "Coordinates", tmp_path / "Coordinates", dirs_exist_ok=True)
    (tmp_path / "Coordinates/mic_0003_autopick.star").rename(tmp_path / "held back")
    config = load(tmp_path / "streamprep.toml")
    with contextlib.closing(sqlite3.connect(output / ".streamprep/ledger.sqlite")) as database:
        database.executescript((found / "ledger.sql").read_text())
        database.execute("UPDATE meta SET value = ? WHERE key = 'plan'", (resolve(config, PLUGINS).hash,))
        for number, source, path in database.execute("SELECT max(id), source, path FROM files GROUP BY source, path"):
            now = (tmp_path / source / os.fsdecode(path)).stat()
            identity = (now.st_size, now.st_mtime_ns, now.st_ino)
            database.execute("UPDATE files SET size = ?, mtime_ns = ?, inode = ? WHERE id = ?", (*identity, number))
        for number, name, size in database.execute("SELECT id, path, size FROM shards").fetchall():
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            with mrcfile.new(output / name) as file:
                file.set_data(np.full(((size - 1024) // 1024, 16, 16), number, np.float32))
                file.set_image_stack()
            crc = crc32((output / name).read_bytes())
            database.execute(
                "UPDATE shards SET size = ?, crc32 = ? WHERE id = ?", ((output / name).stat().st_size, crc, number)
            )
        database.commit()
    return Session(tmp_path)


def once(session: Session) -> Snapshot:
    config = load(session.config)
    return Engine(config, PLUGINS, resolve(config, PLUGINS), once=True, executor=InlineExecutor).run()


def jobs(ledger: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(ledger)) as database:
        return database.execute("SELECT id, item, generation, state, inputs, finished FROM jobs ORDER BY id").fetchall()


def test_an_upgraded_session_goes_on(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    ledger = session.output / ".streamprep/ledger.sqlite"
    before = jobs(ledger)
    last = once(session)
    assert "recovery: the ledger was upgraded from schema 3 to" in caplog.text
    assert (last.jobs, last.rows["particles.star"]) == ({"done": 2, "superseded": 1}, 5)
    assert jobs(ledger) == before
    assert (last.waiting_count, last.failed) == (1, 1)
    check_invariants(session.output)
    former = rows_of(session.output / "particles.star")
    caplog.clear()
    (session.folder / "held back").rename(session.folder / "Coordinates/mic_0003_autopick.star")
    assert once(session).jobs == {"done": 3, "superseded": 1}
    assert "upgraded" not in caplog.text
    check_invariants(session.output)
    assert jobs(ledger)[: len(before)] == before
    now = rows_of(session.output / "particles.star")
    assert set(former) < set(now)
    assert len(now) == 8


def test_who_only_looks_upgrades_nothing(session: Session) -> None:
    from streamprep.inspection import look, retry

    config, ledger = load(session.config), session.output / ".streamprep/ledger.sqlite"
    before, plan = dump(ledger), resolve(config, PLUGINS)
    for act in (lambda: look(config, plan), lambda: retry(config, plan, None)):
        with pytest.raises(OldLedgerError, match="version 0.1.0 .* streamprep run upgrades it, and keeps a copy"):
            act()
    assert dump(ledger) == before


def test_the_log_of_commits_of_an_upgraded_session_is_as_a_new_one(session: Session) -> None:
    log, ledger = session.output / ".streamprep/rows/commits.rows", session.output / ".streamprep/ledger.sqlite"
    with pytest.raises(LedgerError, match="another version"):
        list(journal.read(log))
    with log.open("ab") as file:  # a crash left a line that was not committed
        file.write(log.read_bytes().splitlines(keepends=True)[0])
    config = load(session.config)
    plan = resolve(config, PLUGINS)
    assert once(session).jobs == {"done": 2, "superseded": 1}
    lines = list(journal.read(log))
    assert [line is not None and line.commit.plan for line in lines] == [plan.hash] * 2
    ledger.unlink()
    done = repair(config, PLUGINS, plan, verify=True)
    assert (done.commits, done.items, done.damaged) == (2, 2, ())
    last = once(session)
    assert (last.jobs, last.waiting_count, last.failed) == ({"done": 2}, 1, 1)
    check_invariants(session.output)


def test_repair_upgrades_too(session: Session) -> None:
    config = load(session.config)
    shard = next((session.output / "particles").rglob("*.mrcs"))
    shard.unlink()
    done = repair(config, PLUGINS, resolve(config, PLUGINS))
    assert (done.trouble is not None and shard.name in done.trouble, len(done.damaged)) == (True, 1)
    assert once(session).jobs == {"done": 2, "superseded": 2}
    check_invariants(session.output)


def test_a_line_of_a_newer_version_is_not_taken_for_damaged(tmp_path: Path) -> None:
    line = next(iter((DATA / "schema3/commits.rows").read_bytes().splitlines()))
    text = line[9:].replace(b'"plan":', b'"design":')
    path = tmp_path / "commits.rows"
    path.write_bytes(b"%08x %b\n" % (crc32(text), text))
    with pytest.raises(
        StreamprepError, match=r"commits\.rows: the line at byte 0 is whole, but of another version of streamprep"
    ):
        list(journal.read(path))
