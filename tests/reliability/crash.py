"""Daemons that start within milliseconds and die at a chosen system call, and what must be there afterwards.

A daemon starts as a fork of a server that has everything imported, and so do its workers; else it is what
``streamprep once --log-json`` is. strace, attached before its first step, kills it on the way into a system call.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

from streamprep import executors, workers
from streamprep.cli import main
from streamprep.config import Config
from streamprep.simulate import Acquisition, simulate
from tests.forked import SERVER, fork_workers

CALLS = (
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "fsync",
    "fdatasync",
    "ftruncate",
    "truncate",
    "fallocate",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "rmdir",
    "openat",
    "copy_file_range",
    "sendfile",
)
"""System calls that change what a folder holds, or make the change durable; of openat those that make a file."""

Sync = Literal["files", "rows"]
"""A kind of sync that a planted bug leaves out: fsync of files, fdatasync of row logs."""

SIX = Acquisition(micrographs=6, size_px=256, particles=3, box_size_px=48, seed=5)
PATIENCE_SECONDS = 60.0


# --- a session and its daemons ---------------------------------------------------------------------------------------


def make_session(folder: Path, acquisition: Acquisition = SIX) -> None:
    """Simulated micrographs, their coordinates and CTF, and a configuration that settles at once."""
    simulate(folder, acquisition)
    config = folder / "streamprep.toml"
    quick = '[session]\nsettle_seconds = 0.05\nworkers = 1\ndevice = "cpu"\nreserve_mib = 0\n'
    config.write_text(config.read_text().replace("[session]\n", quick))


class Daemon:
    """A ``streamprep once`` in a process of its own that waits until it is released.

    Parameters
    ----------
    folder
        Of the session.
    output
        Where it writes; may lie elsewhere.
    without
        Plants a bug: this kind of sync, in the daemon and its workers, does nothing.
    """

    def __init__(self, folder: Path, output: Path, *, without: Sync | None = None) -> None:
        self.printed = Path(tempfile.mkdtemp(prefix="daemon", dir=folder)) / "printed"
        gate, self._gate = SERVER.Pipe(duplex=False)
        self._process: Any = SERVER.Process(target=_run, args=(gate, folder, output, self.printed, without))
        self._process.start()
        gate.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return int(self._process.pid)

    def release(self) -> None:
        """Let it begin."""
        self._gate.send_bytes(b"go")

    def wait(self) -> int:
        """Its exit code once it has ended; minus the signal's number where one killed it."""
        self._process.join(PATIENCE_SECONDS)
        code = self._process.exitcode
        if code is None:
            self.kill()
            raise AssertionError(f"the daemon did not end; it printed: {self.text()}")
        return int(code)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until a condition holds, or it has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition() and self._process.is_alive():
            assert time.monotonic() < deadline, f"it did not happen in time; the daemon printed: {self.text()}"
            time.sleep(0.001)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.join()

    def forget(self) -> None:
        """Remove what it printed."""
        shutil.rmtree(self.printed.parent)

    def text(self) -> str:
        """All that it has printed so far."""
        return self.printed.read_text() if self.printed.exists() else ""

    def acknowledged(self) -> set[str]:
        """Items that it has told to be done."""
        told = set()
        for line in self.text().splitlines(keepends=True):
            if line.startswith('{"event": "item_finished"') and line.endswith("\n"):
                event = json.loads(line)
                if event["state"] == "done":
                    told.add(event["item"])
        return told


def _run(gate: Connection, folder: Path, output: Path, printed: Path, without: Sync | None) -> None:
    """The process of a `Daemon`."""
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER: any process may trace this one
    gate.recv_bytes()
    os.chdir(folder)
    descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    fork_workers()
    if without is not None:
        _leave_out(without)
        executors.initialize = functools.partial(_initialize_without, without)
    sys.argv = ["streamprep", "once", "--log-json", "--set", f"session.output={json.dumps(str(output))}"]
    main()


def _leave_out(sync: Sync) -> None:
    fsync = os.fsync

    def of_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            fsync(descriptor)

    if sync == "rows":
        os.fdatasync = lambda descriptor: None
    else:
        os.fsync = of_folders


def _initialize_without(sync: Sync, config: Config, **further: Any) -> None:
    _leave_out(sync)
    _initialize(config, **further)


_initialize = workers.initialize


def once(folder: Path, output: Path) -> None:
    """Run to the end without any disturbance."""
    daemon = Daemon(folder, output)
    daemon.release()
    assert daemon.wait() == 0, daemon.text()
    daemon.forget()


# --- death at a system call ------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A system call on the output folder, as strace shows it."""

    name: str
    paths: tuple[str, ...]
    """Seen from the output folder; ``PID`` stands for the daemon's."""


class Point(NamedTuple):
    """Where to die: on the way into the ``number``-th call of this name on the output folder."""

    name: str
    number: int


def why_no_strace() -> str | None:
    """Why no process can be killed at a system call here; None where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return f"strace cannot trace here: {tried.stderr.strip()}" if tried.returncode else None


class Strace:
    """strace on the main thread of a daemon that was not released yet.

    Parameters
    ----------
    daemon
        What to trace.
    output
        Its output folder.
    paths
        The paths in it that count, as in `Call`; None for all, with all threads, for a list of them.
    at
        Where to kill it.
    """

    def __init__(self, daemon: Daemon, output: Path, paths: Iterable[str] | None, at: Point | None = None) -> None:
        self._output, self._pid = output, daemon.pid
        self._written = daemon.printed.with_name("strace")
        command = ["strace", "-p", str(daemon.pid), "-y", "-s", "0", "-o", str(self._written)]
        command += ["-e", f"trace={','.join(CALLS)}"]
        if paths is None:
            command.append("-f")
        for path in paths or ():
            command += ["-P", str(output / path.replace("PID", str(daemon.pid)))]
        if at is not None:
            command += ["-e", f"inject={at.name}:signal=SIGKILL:when={at.number}"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "attached" in line:
                break
        else:
            raise AssertionError(f"strace did not attach: {command}")

    def calls(self) -> list[Call]:
        """What was called, in order; the daemon has ended."""
        self._process.communicate()
        calls = []
        for line in self._written.read_text(errors="replace").splitlines():
            found = re.match(r"(?:(\d+) +)?(\w+)\((.*)", line)
            if found is None:
                continue
            thread, name, rest = found.groups()
            paths = re.findall(rf"{re.escape(str(self._output))}(?:/([^\">]*))?[\">]", rest)
            if not paths:
                continue
            if thread not in (None, str(self._pid)):
                assert all(path.startswith(".streamprep/log/") for path in paths), f"a thread beside it: {line}"
                continue
            calls.append(Call(name, tuple(path.replace(str(self._pid), "PID") for path in paths)))
        return calls


def points_of(calls: Iterable[Call]) -> list[Point]:
    """The points of a run, in its order: strace counts each kind of call by itself."""
    counts: Counter[str] = Counter()
    points = []
    for call in calls:
        counts[call.name] += 1
        points.append(Point(call.name, counts[call.name]))
    return points


# --- what must be there ----------------------------------------------------------------------------------------------


def lost(output: Path, acknowledged: Iterable[str]) -> list[str]:
    """What is missing of an output folder that nobody has recovered yet: of acknowledged items, and of committed bytes.

    The ledger is read from a copy: opening it would change what the next start finds.
    """
    with tempfile.TemporaryDirectory() as copy:
        for path in (output / ".streamprep").glob("ledger.sqlite*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, copy)
        try:
            with contextlib.closing(sqlite3.connect(Path(copy, "ledger.sqlite"))) as database:
                done = {row[0] for row in database.execute("SELECT item FROM jobs WHERE state = 'done'")}
                shards = database.execute("SELECT path, size, crc32 FROM shards").fetchall()
                blocks = database.execute("SELECT tbl, start, length, crc32 FROM blocks").fetchall()
                whole = database.execute("PRAGMA integrity_check").fetchone()[0]
        except sqlite3.DatabaseError as error:
            return [f"the ledger: {error}"] if set(acknowledged) or "no such table" not in str(error) else []
    missing = [f"item {item}" for item in sorted(set(acknowledged) - done)]
    if whole != "ok":
        missing.append(f"the ledger: {whole}")
    for name, size, crc32 in shards:
        data = _bytes_of(output / name)
        if (len(data), zlib.crc32(data)) != (size, crc32):
            missing.append(f"pixels of {name}")
    for table, start, length, crc32 in blocks:
        log = output / ".streamprep" / "rows" / (table.replace("/", "__").replace("{item}", "ITEM") + ".rows")
        if zlib.crc32(_bytes_of(log)[start : start + length]) != crc32:
            missing.append(f"rows of {table} at {start}")
    return missing


def _bytes_of(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
