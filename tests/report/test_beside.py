"""Sessions that make pictures, when they are ended, killed, or not read: nothing waits for the pictures."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Process, Session
from tests.outputs import check_invariants
from tests.test_console import Terminal

WithPictures = Callable[[], dict[str, str]]
Wait = Callable[..., None]


def maker_of(process: Process) -> int | None:
    """The process that makes the pictures of a daemon."""
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        for pid in map(int, (task / "children").read_text().split()):
            if b"streamprep.report" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def start(
    session: Session, with_pictures: WithPictures, eventually: Wait, stopped: list[Process]
) -> Callable[[], tuple[Process, int]]:
    """Starts a daemon, and waits for what makes its pictures."""

    def started() -> tuple[Process, int]:
        process = session.start(env=with_pictures())
        stopped.append(process)
        eventually(lambda: maker_of(process) is not None)
        pid = maker_of(process)
        assert pid is not None
        return process, pid

    return started


def events(process: Process) -> list[str]:
    output, _ = process.communicate(timeout=60)
    return [json.loads(line)["event"] for line in output.splitlines()]


def test_a_sigterm_for_the_whole_group_leaves_a_whole_report(
    session: Session, start: Callable[[], tuple[Process, int]], eventually: Wait
) -> None:
    """As from timeout, systemd and SLURM; at any moment, also while it begins."""
    process, pid = start()
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: (session.output / "particles.star").exists())
    os.kill(pid, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "Session finished" in (session.output / "report.html").read_text()
    assert events(process)[-2:] == ["run_stopped", "drawing_pictures"]
    assert not is_there(pid)


def test_a_further_interrupt_leaves_out_the_last_pictures_and_nothing_else(
    session: Session, start: Callable[[], tuple[Process, int]], eventually: Wait
) -> None:
    process, pid = start()
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: (session.output / "particles.star").exists())
    process.send_signal(signal.SIGINT)
    eventually(lambda: "run_stopped" in process.text("out"))  # type: ignore[union-attr]
    again = session.once(env={"STREAMPREP_BLOCK_PLUGINS": "pictures"})
    assert again.returncode == 0, "nothing is locked any more"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    assert events(process)[-2:] == ["run_stopped", "drawing_pictures"]
    assert not is_there(pid)
    check_invariants(session.output)


def test_one_that_was_killed_takes_it_along_and_the_next_start_goes_on(
    session: Session, start: Callable[[], tuple[Process, int]], with_pictures: WithPictures, eventually: Wait
) -> None:
    process, pid = start()
    eventually(lambda: (session.output / "gallery" / ".lock").exists())
    process.kill()
    eventually(lambda: not is_there(pid), 10)
    assert session.once(env=with_pictures()).returncode == 0
    assert (session.output / "report.html").read_text().count("<article") == 3
    check_invariants(session.output)


@pytest.mark.usefixtures("with_pictures")
def test_a_terminal_that_nobody_reads_does_not_hold_the_pictures(session: Session) -> None:
    terminal = Terminal(session.command("once"), session.folder)
    try:
        os.write(terminal.master, b"\x13")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.close()
    assert "Session finished" in (session.output / "report.html").read_text()
