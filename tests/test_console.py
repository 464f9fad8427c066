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
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep import console_view
from streamprep.console import Console, summary
from streamprep.console_view import TWO_COLUMNS, Past, view
from streamprep.snapshot import Gpu, Snapshot, Stage, clean
from streamprep.terminal import Output
from streamprep.units import duration
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
         "operation": None, "traceback": None, "attempts": 1, "when": 60.0},
    ),
    failed=1,
    rejected=1,
    warnings=1,
    unknown_files=0,
    unmatched=(),
    degraded=("/data is on nfs4, which gives no events: scanning it instead",),
    disk_free_bytes=3 << 30,
    taken=300.0,
    stages=(
        Stage("settling", 1200.0, 2, 1.5),
        Stage("waiting", 560.0, 1, 4000.0),
        Stage("processing", 555.0, 5, 12.0),
        Stage("committing", 553.0, 0, 0.0),
        Stage("publishing", 67200.0, 280, 1.2),
    ),
    recent_warnings=(("Micrographs/mic_7", ("2 coordinates lie outside",)),),
    disk_total_bytes=30 << 30,
    gpus=(Gpu("NVIDIA A100", 87.0, 30 << 30, 80 << 30, 61.0),),
)  # fmt: skip


def drawn(snapshot: Snapshot, width: int = 110, height: int = 40, **given: Any) -> str:
    return "\n".join(line.plain for line in view(snapshot, width, height, **given))


@pytest.mark.parametrize("width", [80, 110, TWO_COLUMNS, 240])
def test_the_view_shows_what_a_facility_asks(width: int) -> None:
    filling = dataclasses.replace(SNAPSHOT, disk_reserve_bytes=1 << 30, disk_full_seconds=7300.0)
    text = drawn(filling, width, 45, said=("recovery: cut off 3 bytes",))
    for words in (
        "RUNNING", "1 min 15 s", "/data/session/streamprep_out", "12 done", "1 in work", "4 queued", "1 waiting",
        "1 failed", "1 rejected", "560 micrographs/h", "46.7 particles/s", "nfs4", "1 h 06 min !!", "1,200", "67,200",
        "particles.star 3,360", "normalize", "12.0 ms", "3.0 GiB free of 30.0 GiB, full in 2 h", "87 % busy, 61 °C",
        "30.0 GiB of 80.0 GiB", "1 micrograph waits for coordinates", "Micrographs/mic_12", "Micrographs/mic_13",
        "Micrographs/mic_9.mrc", "truncated", "4 min ago", "streamprep retry", "2 coordinates lie outside",
        "recovery: cut off 3 bytes",
    ):  # fmt: skip
        assert words in text, words


def test_each_row_is_laid_out_a_few_times_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is drawn four times a second, and the engine has to wait meanwhile."""
    failures = tuple({**SNAPSHOT.failures[0], "file": f"mic_{number}"} for number in range(50))
    wide = dataclasses.replace(SNAPSHOT, failures=failures, failed=50)
    laid_out: list[object] = []
    lines = console_view._Reason.lines
    monkeypatch.setattr(
        console_view._Reason, "lines", lambda row, width: (laid_out.append(row.text.plain), lines(row, width))[1]
    )
    assert "mic_49" in drawn(wide, 240, 90)
    assert max(Counter(laid_out).values()) <= 2


def test_a_disk_that_does_not_tell_its_space_is_not_shown_as_full() -> None:
    text = drawn(dataclasses.replace(SNAPSHOT, disk_total_bytes=0, disk_free_bytes=0, disk_reserve_bytes=1 << 30))
    assert "it does not tell its space" in text
    assert "0 B" not in text


def test_names_in_the_log_neither_steer_a_terminal_nor_forge_a_line(empty_session: Session) -> None:
    name = b"bad\xff\x1b[2J\n2026-01-01 00:00:00,000 ERROR forged.mrc"
    (empty_session.folder / "Micrographs" / os.fsdecode(name)).write_bytes(b"nothing")
    empty_session.once("--set", "session.incomplete_seconds=0.1")
    text = (empty_session.output / ".streamprep" / "log" / "streamprep.log").read_text()
    assert "bad\\udcff" in text
    assert "\x1b" not in text
    assert not any(line.startswith("2026-01-01 00:00:00") for line in text.splitlines())


def test_what_waits_for_the_same_is_told_together() -> None:
    waits = [(f"Micrographs/mic_{index}", "waits for ctf", 60.0 * index) for index in range(7)]
    text = drawn(dataclasses.replace(SNAPSHOT, waiting=(("a", "odd", 3.0), *waits), waiting_count=90))
    assert "7 micrographs wait for ctf  oldest 6 min  Micrographs/mic_0, Micrographs/mic_1" in text
    assert "1 micrograph: odd  for 3 s  a" in text
    assert text.index("wait for ctf") < text.index("odd"), "the most first"
    assert "of the oldest 8 of 90" in text


def test_what_does_not_move_on_is_marked() -> None:
    stages = (Stage("committing", 5.0, 1, 30.0), Stage("waiting", 5.0, 1, 30.0), Stage("publishing", 5.0, 9, 700.0))
    lines = drawn(dataclasses.replace(SNAPSHOT, stages=stages)).splitlines()
    ends = [line.rstrip() for line in lines if "   30 s" in line or "11 min" in line]
    assert [end[-4:] for end in ends] == [" s !", "30 s", "s !!"]


def test_the_throughput_of_the_last_minutes() -> None:
    past = Past()
    for second in range(100):
        done = 2 * second if second < 40 else 80
        past.note(dataclasses.replace(SNAPSHOT, elapsed_seconds=float(second), jobs={"done": done}))
    assert past.sparks(90) == "████▂▁▁▁▁", "the interval that is under way is left out"
    assert past.sparks(6) == "█▂▁▁▁▁"
    past.note(dataclasses.replace(SNAPSHOT, elapsed_seconds=1e6, jobs={"done": 81}))
    assert len(past.done) == 90


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
    console.item_finished("Micrographs/mic_1\x1b[2J", "done", None, ())
    console.item_finished("Micrographs/mic_2", "failed", "cut\noff", ())
    console.snapshot_taken(SNAPSHOT)
    time[0] = 5.0
    console.snapshot_taken(SNAPSHOT)
    time[0] = 11.0
    console.snapshot_taken(SNAPSHOT)
    time[0] = 22.0
    console.snapshot_taken(dataclasses.replace(SNAPSHOT, disk_total_bytes=0, disk_free_bytes=0))
    console.close()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("done     Micrographs/mic_1")
    assert "\x1b" not in stream.getvalue()
    assert "12 done, 3 queued, 1 waiting (oldest 1 min), 1 failed" in lines[2]
    assert lines[2].endswith("3.0 GiB free")
    assert lines[3].endswith("free space unknown"), "and not 0 B, as of a full disk"
    assert len(lines) == 4, "not a line for every snapshot"


def test_json_lines() -> None:
    stream, time = io.StringIO(), [0.0]
    console = Console("json", stream, clock=lambda: time[0])
    plan = SimpleNamespace(hash="abc", steps=[])
    console.run_started(plan, SimpleNamespace())
    console.item_finished("Micrographs/mic_1\n", "failed", 'a "quoted" reason', ("odd",))
    console.operation_finished("Micrographs/mic_1", "normalize", 0.25)
    console.warning_raised("slow disk")
    for time[0] in (0.0, 5.0, 11.0):
        console.snapshot_taken(SNAPSHOT)
    console.run_stopped(SNAPSHOT)
    console.close()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == [
        "run_started", "warning", "item_finished", "operation_finished", "warning", "snapshot", "run_stopped",
    ]  # fmt: skip
    assert events[1] == {"event": "warning", "time": events[1]["time"], "item": "Micrographs/mic_1\n", "message": "odd"}
    assert events[2]["item"] == "Micrographs/mic_1\n"
    assert "item" not in events[4]
    assert events[5]["stages"][1] == dataclasses.asdict(SNAPSHOT.stages[1])
    assert events[5]["gpus"] == [dataclasses.asdict(SNAPSHOT.gpus[0])]
    assert "failures" not in events[5]
    assert events[6]["rows"] == SNAPSHOT.rows


def test_quiet_prints_the_summary_only() -> None:
    stream = io.StringIO()
    console = Console("quiet", stream)
    console.item_finished("a", "done", None, ())
    console.snapshot_taken(SNAPSHOT)
    console.warning_raised("slow disk")
    console.run_stopped(SNAPSHOT)
    console.close()
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
    console.close()
    assert "warning: [red]disk[/red]\n12 micrographs done" in stream.getvalue()
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


@pytest.mark.parametrize("width", [30, 60, 80, 110, 240])
@pytest.mark.parametrize("many", [0, 1, 5, 20])
def test_the_view_fits_any_terminal(many: int, width: int) -> None:
    for height in (*range(5, 31, 5), 70):
        lines = view(full(many), width, height)
        assert len(lines) <= height, height
        assert {line.cell_len for line in lines} == {width}


@pytest.mark.parametrize(
    ("height", "shown"),
    [(12, ("paused", "12 done", "micrographs/h")), (20, ("passed/h", "publishing", "failed or rejected", "waiting"))],
)
def test_a_small_terminal_shows_what_matters(height: int, shown: tuple[str, ...]) -> None:
    text = drawn(dataclasses.replace(full(5), degraded=()), 60, height)
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
from typing import Any
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
    terminal.until(b"WAITING")
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
    begun = terminal.shown.count(b"\x1b[2J")
    terminal.resize(36, 70)
    terminal.until(b"\x1b[2J")
    terminal.until(b"mic_13")
    assert terminal.shown.count(b"\x1b[2J") == begun + 1


# --- terminals that are gone, stopped, or another program's ----------------------------------------------------------


def test_a_terminal_that_nobody_reads_does_not_hold_the_session(
    session: Session, on_terminal: Callable[[list[str], Path], Terminal]
) -> None:
    """As where a connection stalls, or after Ctrl-S: what is written blocks, and the session goes on to its end."""
    terminal = on_terminal(session.command("once"), session.folder)
    os.write(terminal.master, b"\x13")
    assert terminal.process.wait(60) == 0
    assert (session.output / "particles.star").exists()
    assert terminal.is_as_before()


def test_a_terminal_that_is_gone_does_not_end_a_session_under_nohup(
    empty_session: Session, eventually: Callable[[Callable[[], bool], float], None]
) -> None:
    start = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from streamprep.cli import main; main()"
    command = [sys.executable, "-c", start, "run", "--plain"]
    terminal = Terminal(command, empty_session.folder)
    log, status = (empty_session.output / ".streamprep" / name for name in ("log/streamprep.log", "status.json"))
    try:
        terminal.until(b"watching")
        os.close(terminal.slave)
        os.close(terminal.master)
        truncated = empty_session.folder / "Micrographs" / "cut.mrc"
        truncated.write_bytes(b"no image")
        eventually(lambda: "the console is silent" in log.read_text(), 30)
        eventually(lambda: json.loads(status.read_text())["failed"] == 1, 30)
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.process.wait(30) == 0
        assert log.read_text().count("the console is silent") == 1
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
            terminal.process.wait()


def test_ctrl_z_gives_the_terminal_back_until_the_session_goes_on(
    empty_session: Session, on_terminal: Callable[[list[str], Path], Terminal]
) -> None:
    # a process whose group has no parent in the session cannot be stopped; the first one stands for a shell
    wrapper = (
        "import os, subprocess, sys\n"
        f"made = subprocess.Popen({empty_session.command('run')!r})\n"
        "print('pid', made.pid, flush=True)\n"
        "sys.exit(made.wait())"
    )
    terminal = on_terminal(["/bin/sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, wrapper], empty_session.folder)
    terminal.until(b"WAITING")
    pid = int(terminal.shown.split(b"pid ")[1].split()[0])
    os.kill(pid, signal.SIGTSTP)
    terminal.until(b"\x1b[?1049l")
    assert terminal.cursor_is_shown()
    assert terminal.is_as_before()
    os.kill(pid, signal.SIGCONT)
    terminal.until(b"\x1b[?1049h")
    terminal.until(b"WAITING")
    os.kill(pid, signal.SIGTERM)
    assert terminal.end() == 0


def test_a_background_session_leaves_the_terminal_alone(
    on_terminal: Callable[[list[str], Path], Terminal],
) -> None:
    """A shell with ``tostop`` stops what writes from behind; a view appears only in front."""
    script = (
        "import os, signal, subprocess, sys, termios\n"
        "flags = termios.tcgetattr(1); flags[3] |= termios.TOSTOP; termios.tcsetattr(1, termios.TCSANOW, flags)\n"
        f"view = {TERMINAL_SESSION!r}.replace('sys.stdin.readline()', 'time.sleep(1.5)')\n"
        "behind = subprocess.Popen([sys.executable, '-c', view], process_group=0)\n"
        "_, how = os.waitpid(behind.pid, os.WUNTRACED)\n"
        "print('stopped' if os.WIFSTOPPED(how) else f'ended with {os.waitstatus_to_exitcode(how)}', flush=True)\n"
    )
    terminal = on_terminal([sys.executable, "-c", script], ROOT)
    assert terminal.end() == 0
    assert b"ended with 0" in terminal.shown
    assert b"\x1b[?1049h" not in terminal.shown


def test_a_pipe_that_nobody_reads_costs_lines_and_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamprep.terminal.MOST_LINES", 50)
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream, os.fdopen(read) as reader:
        console = Console("json", stream)
        for number in range(3000):
            console.item_finished(f"mic_{number:05d}{'x' * 100}", "done", None, ())
        told: list[dict[str, Any]] = []
        reading = threading.Thread(target=lambda: told.extend(map(json.loads, reader)))
        reading.start()
        sent, deadline = 3000, time.monotonic() + 30
        while not any(event.get("item") == "last" for event in told) and time.monotonic() < deadline:
            console.item_finished("last", "done", None, ())
            sent += 1
            time.sleep(0.01)
        console.close()
        stream.close()
        reading.join(30)
    left_out = sum(event["lines"] for event in told if event["event"] == "left_out")
    assert left_out > 2000
    assert sum(event["event"] == "item_finished" for event in told) + left_out == sent


def test_a_reader_that_goes_away_does_not_matter(caplog: pytest.LogCaptureFixture) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        console = Console("plain", stream)
        for _ in range(3):
            console.item_finished("a", "done", None, ())
        console.close()
        console.item_finished("a", "done", None, ())
        console.close()
    assert [record.getMessage()[:21] for record in caplog.records] == ["the console is silent"]


@given(st.floats(0, 1e7))
def test_durations_have_units(seconds: float) -> None:
    assert duration(seconds).split()[1] in ("ms", "s", "min", "h", "d")


def test_a_pipe_that_another_program_made_non_blocking_loses_nothing() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    taken = bytearray()

    def read() -> None:
        while part := os.read(reader, 4096):
            taken.extend(part)

    lines = [f"{number} " + "x" * 500 for number in range(2000)]
    with os.fdopen(writer, "w") as stream:
        output = Output(stream)
        for line in lines:
            output.line(line)
        reading = threading.Thread(target=read)
        reading.start()
        output.close()
    reading.join()
    os.close(reader)
    assert taken.decode().splitlines() == lines


def test_a_view_that_becomes_shorter_leaves_nothing_of_the_longer_one() -> None:
    frames = [["a", "b", "c", "d"], ["a", "x"]]
    stream = io.StringIO()
    output = Output(stream, lambda width, height: frames.pop(0))
    output._show()
    first = len(stream.getvalue())
    output._show()
    changed = stream.getvalue()[first:]
    assert "\x1b[2;1H\x1b[0mx" in changed
    assert changed.endswith("\x1b[3;1H\x1b[0m\x1b[J")


def test_a_narrow_terminal_shows_backlog_and_age() -> None:
    stages = tuple(
        dataclasses.replace(stage, per_hour=1234567, backlog=4321, oldest_seconds=7300.0) for stage in SNAPSHOT.stages
    )
    lines = [line.plain for line in view(dataclasses.replace(SNAPSHOT, stages=stages), 44, 40)]
    (waiting,) = (line for line in lines if line.strip().startswith("waiting ") and "4,321" in line)
    assert "2 h 01 min" in waiting
