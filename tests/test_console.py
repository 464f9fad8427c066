"""The console: live view, plain lines, JSON lines."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console as RichConsole

from streamprep.console import Console, duration, summary, view
from streamprep.snapshot import Snapshot, clean
from tests.conftest import ROOT, Session

SNAPSHOT = Snapshot(
    output="/data/session/streamprep_out",
    mode="running",
    message="",
    plan=("extract.extract", "particles.normalize"),
    device="CPU",
    workers=2,
    elapsed_seconds=75.0,
    jobs={"done": 12, "claimed": 2, "ready": 3},
    waiting=(("Micrographs/mic_12", "waits for coordinates", 4.0),),
    waiting_count=1,
    settling=2,
    running=(("Micrographs/mic_13", 0.4),),
    rows={"particles.star": 3360, "noise.star": 3360},
    items_per_hour=560.0,
    particles_per_second=46.7,
    oldest_seconds=61.0,
    operation_seconds={"normalize": 0.012},
    failures=(
        {"item": "Micrographs/mic_9", "state": "failed", "reason": "truncated", "file": "Micrographs/mic_9.mrc",
         "operation": None, "traceback": None, "attempts": 1, "when": 0.0},
    ),
    failed=1,
    rejected=1,
    warnings=1,
    unknown_files=0,
    unmatched=(),
    degraded=("/data is on nfs4, which gives no events: scanning it instead",),
    disk_free_bytes=3 << 30,
)  # fmt: skip


def drawn(snapshot: Snapshot, width: int = 110, height: int = 30) -> str:
    stream = io.StringIO()
    RichConsole(file=stream, width=width, height=height).print(view(snapshot, height=height))
    return stream.getvalue()


def test_the_view_shows_what_a_facility_asks() -> None:
    text = drawn(SNAPSHOT)
    for words in (
        "running", "1 min 15 s", "12 done", "1 in work", "4 queued", "1 waiting", "1 failed", "1 rejected", "560",
        "46.7 particles/s", "1 min 01 s", "particles.star 3,360", "Micrographs/mic_12", "waits for coordinates",
        "Micrographs/mic_13", "truncated", "nfs4", "3.0 GiB free", "normalize 12 ms", "extract.extract",
    ):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize(("width", "height"), [(110, 30), (80, 24), (60, 20), (40, 16)])
def test_the_view_fits_the_terminal(width: int, height: int) -> None:
    many = tuple(
        (f"Micrographs/a_very_long_name_of_a_micrograph_{index:05d}", "waits for coordinates", 1.0)
        for index in range(50)
    )
    text = drawn(dataclasses.replace(SNAPSHOT, waiting=many, waiting_count=50), width, height)
    assert all(len(line) <= width for line in text.splitlines())
    if width >= 80:
        assert len(text.splitlines()) <= height


def test_a_paused_session_says_why() -> None:
    text = drawn(dataclasses.replace(SNAPSHOT, mode="paused", message="paused, the disk is full: 3 MiB free"))
    assert "the disk is full" in text


@pytest.mark.case(20)
@given(st.text())
def test_text_from_outside_cannot_steer_the_terminal(name: str) -> None:
    assert clean(name).isprintable()
    hostile = dataclasses.replace(SNAPSHOT, waiting=((f"\x1b[2J{name}[red]", "x", 1.0),))
    assert "\x1b[2J" not in drawn(hostile)


def test_names_are_not_markup() -> None:
    hostile = dataclasses.replace(SNAPSHOT, waiting=(("mic_[bold]_1", "[link=x]y[/link]", 1.0),))
    text = drawn(hostile)
    assert "mic_[bold]_1" in text
    assert "[link=x]y[/link]" in text


def test_plain_lines() -> None:
    stream, time = io.StringIO(), [0.0]
    console = Console("plain", stream, clock=lambda: time[0])
    console.item_finished("Micrographs/mic_1\x1b[2J", "done", None)
    console.item_finished("Micrographs/mic_2", "failed", "cut\noff")
    console.snapshot_taken(SNAPSHOT)
    time[0] = 5.0
    console.snapshot_taken(SNAPSHOT)
    assert len(stream.getvalue().splitlines()) == 2, "not a line for every snapshot"
    time[0] = 11.0
    console.snapshot_taken(SNAPSHOT)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("done     Micrographs/mic_1")
    assert "\x1b" not in stream.getvalue()
    assert "12 done, 3 queued, 1 waiting" in lines[2]


def test_json_lines() -> None:
    stream = io.StringIO()
    console = Console("json", stream)
    plan = SimpleNamespace(hash="abc", steps=[])
    console.run_started(plan, SimpleNamespace())
    console.item_finished("Micrographs/mic_1\n", "failed", 'a "quoted" reason')
    console.operation_finished("Micrographs/mic_1", "normalize", 0.25)
    console.warning_raised("slow disk")
    console.run_stopped(SNAPSHOT)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == [
        "run_started", "item_finished", "operation_finished", "warning", "run_stopped",
    ]  # fmt: skip
    assert events[1]["item"] == "Micrographs/mic_1\n"
    assert events[4]["rows"] == SNAPSHOT.rows


def test_quiet_prints_the_summary_only() -> None:
    stream = io.StringIO()
    console = Console("quiet", stream)
    console.item_finished("a", "done", None)
    console.snapshot_taken(SNAPSHOT)
    assert stream.getvalue() == ""
    console.run_stopped(SNAPSHOT)
    assert stream.getvalue().splitlines() == summary(SNAPSHOT)


def test_the_summary_names_what_waits_and_what_failed() -> None:
    text = "\n".join(summary(SNAPSHOT))
    assert "12 micrographs done, 1 waiting, 1 failed, 1 rejected" in text
    assert "waiting: Micrographs/mic_12: waits for coordinates" in text
    assert "failed: Micrographs/mic_9.mrc: truncated" in text


def test_live_view_starts_draws_and_ends() -> None:
    stream = io.StringIO()
    console = Console("live", stream)
    console.run_started(SimpleNamespace(hash="abc", steps=[]), SimpleNamespace())
    console.snapshot_taken(SNAPSHOT)
    console.warning_raised("[red]disk[/red]")
    console.run_stopped(dataclasses.replace(SNAPSHOT, mode="finished"))
    assert "finished" in stream.getvalue()
    assert "results in /data/session/streamprep_out" in stream.getvalue()


def full(many: int) -> Snapshot:
    """A session with ``many`` of everything."""
    name = "Micrographs/a_very_long_name_of_a_micrograph_{:05d}".format
    failure = dict(SNAPSHOT.failures[0], reason="normalize: ValueError: a reason that is so long that it wraps " * 3)
    return dataclasses.replace(
        SNAPSHOT,
        message="paused, the disk is full: 3 MiB free, the reserve is 512 MiB (reserve_mib)",
        workers=8,
        running=tuple((name(index), 0.4) for index in range(many)),
        waiting=tuple((name(index), "waits for coordinates", 1.0) for index in range(many)),
        failures=tuple(dict(failure, file=name(index)) for index in range(many)),
        degraded=("/data is on nfs4, which gives no events: scanning it instead",) * many,
    )


@pytest.mark.parametrize("width", [30, 60, 80, 110, 200])
@pytest.mark.parametrize("many", [0, 1, 5, 20])
def test_the_view_fits_any_terminal(many: int, width: int) -> None:
    for height in range(8, 41):
        lines = drawn(full(many), width, height).splitlines()
        assert len(lines) <= height, height
        assert max(map(len, lines)) <= width
        assert lines[0].startswith("╭")
        assert lines[-1].startswith("╰"), "the frame is whole"


@pytest.mark.parametrize(
    ("height", "shown"), [(12, ("paused", "done", "micrographs/h")), (24, ("failed or rejected",))]
)
def test_a_small_terminal_shows_what_matters(height: int, shown: tuple[str, ...]) -> None:
    text = drawn(full(5), 80, height)
    for words in shown:
        assert words in text


def test_no_more_is_in_work_than_there_are_workers() -> None:
    """The pool holds twice as many jobs as it has workers; the rest is queued."""
    running = tuple((f"Micrographs/mic_{index}", 0.4) for index in range(4))
    text = drawn(dataclasses.replace(SNAPSHOT, jobs={"claimed": 4, "ready": 3}, running=running))
    assert "2 in work" in text
    assert "5 queued" in text
    assert "mic_1 " in text
    assert "mic_2 " not in text


# --- on a terminal ---------------------------------------------------------------------------------------------------

TERMINAL_SESSION = """
import sys, time
from types import SimpleNamespace
from streamprep.console import Console
from tests.test_console import SNAPSHOT
console = Console("live")
console.run_started(SimpleNamespace(hash="abc", steps=[]), SimpleNamespace())
console.snapshot_taken(SNAPSHOT)
sys.stdin.readline()
console.restore()
console.restore()
"""


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.master, slave = pty.openpty()
        self.resize(30, 100)
        self.before = termios.tcgetattr(slave)
        self.slave, self.shown = slave, b""
        environment = {**os.environ, "TERM": "xterm"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    def resize(self, lines: int, columns: int) -> None:
        termios.tcsetwinsize(self.master, (lines, columns))

    def until(self, words: bytes) -> None:
        """Read until the words were shown after everything read so far."""
        start, deadline = len(self.shown), time.monotonic() + 60
        while words not in self.shown[start:]:
            assert time.monotonic() < deadline, self.shown.decode(errors="replace")
            if select.select([self.master], [], [], 0.1)[0]:
                self.shown += os.read(self.master, 1 << 16)

    def end(self) -> int:
        """Read on until the program ends."""
        while self.process.poll() is None or select.select([self.master], [], [], 0.1)[0]:
            if select.select([self.master], [], [], 0.1)[0]:
                self.shown += os.read(self.master, 1 << 16)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before

    def cursor_is_shown(self) -> bool:
        return self.shown.rindex(b"\x1b[?25h") > self.shown.rindex(b"\x1b[?25l")


@pytest.fixture
def on_terminal() -> Iterator[Callable[[list[str], Path], Terminal]]:
    made: list[Terminal] = []

    def start(command: list[str], folder: Path) -> Terminal:
        made.append(Terminal(command, folder))
        return made[-1]

    yield start
    for terminal in made:
        terminal.close()


@pytest.mark.case(4)
def test_a_second_interrupt_leaves_the_terminal_as_it_was(
    empty_session: Session, on_terminal: Callable[[list[str], Path], Terminal]
) -> None:
    terminal = on_terminal(empty_session.command("run"), empty_session.folder)
    terminal.until(b"waiting")
    assert not terminal.is_as_before()
    terminal.process.send_signal(signal.SIGSTOP)
    terminal.process.send_signal(signal.SIGINT)
    terminal.process.send_signal(signal.SIGTERM)
    terminal.process.send_signal(signal.SIGCONT)
    assert terminal.end() in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert terminal.is_as_before()
    assert terminal.cursor_is_shown()


def test_restore_ends_the_view(on_terminal: Callable[[list[str], Path], Terminal]) -> None:
    terminal = on_terminal([sys.executable, "-c", TERMINAL_SESSION], ROOT)
    terminal.until(b"mic_13")
    os.write(terminal.master, b"\n")
    assert terminal.end() == 0
    assert terminal.is_as_before()
    assert terminal.cursor_is_shown()


def test_another_size_clears_what_was_drawn_for_the_old_one(
    on_terminal: Callable[[list[str], Path], Terminal],
) -> None:
    terminal = on_terminal([sys.executable, "-c", TERMINAL_SESSION], ROOT)
    terminal.until(b"mic_13")
    terminal.until(b"mic_13")
    assert b"\x1b[2J" not in terminal.shown
    terminal.resize(20, 70)
    terminal.until(b"\x1b[2J")
    terminal.until(b"mic_13")
    assert terminal.shown.count(b"\x1b[2J") == 1


@given(st.floats(0, 1e7))
def test_durations_have_units(seconds: float) -> None:
    assert duration(seconds).split()[1] in ("s", "min", "h")
