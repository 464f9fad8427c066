"""The process beside a run: it ends with it, its faults are warnings, and nobody waits for it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from streamprep.config import load
from streamprep.model import ConfigError
from streamprep.plugin_manager import load_plugins
from streamprep.report.__main__ import bounded_log
from streamprep.report.gallery import alone
from streamprep.sinks import pictures
from streamprep.sinks.pictures import RESTART_SECONDS, Host
from tests.conftest import Session


@pytest.fixture
def host(done: Path) -> Host:
    return Host(load(done / "streamprep.toml"))


def process_of(host: Host) -> subprocess.Popen[bytes]:
    assert host._process is not None
    return host._process


def test_a_run_ends_with_a_report_of_its_final_state(
    session: Session, with_pictures: Callable[[], dict[str, str]]
) -> None:
    done = session.once(env=with_pictures())
    assert done.returncode == 0, done.stderr
    text = (session.output / "report.html").read_text()
    assert "Session finished" in text
    assert text.count("<article") == 3
    assert not (session.output / ".streamprep" / "log" / "pictures.log").read_text()


def test_pictures_can_be_turned_off(done: Path, with_pictures: Callable[[], dict[str, str]]) -> None:
    pictures.run_started(load(done / "streamprep.toml", ["pictures.enabled=false"]))
    assert pictures._host is None
    assert pictures in load_plugins().manager.get_plugins()
    assert pictures not in load_plugins(block=["pictures"]).manager.get_plugins()


def test_one_that_is_killed_is_a_warning_and_is_started_anew_after_a_while(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.start(0.0)
    process_of(host).kill()
    process_of(host).wait()
    with caplog.at_level(logging.WARNING):
        host.look(0.0)
    assert "the process that makes pictures ended (-9)" in caplog.text
    host.look(RESTART_SECONDS - 1)
    assert host._process is None
    host.look(RESTART_SECONDS)
    assert process_of(host).poll() is None
    host.finish(0.0)
    assert host._process is None


def test_one_that_was_stopped_is_not_waited_for_for_long(host: Host, done: Path) -> None:
    host.start(0.0)
    process = process_of(host)
    os.kill(process.pid, signal.SIGSTOP)
    host.look(0.0)  # as the engine does four times a second
    host.finish(0.01)
    assert process.returncode == -signal.SIGKILL
    assert not (done / "streamprep_out" / "report.html").exists()


def test_one_that_no_signal_ends_is_left_to_the_kernel(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that a file server holds."""
    host.start(0.0)
    process = process_of(host)
    with monkeypatch.context() as patch:
        patch.setattr(process, "kill", lambda: None)
        patch.setattr(pictures, "EXTRA_SECONDS", 0.01)
        os.kill(process.pid, signal.SIGSTOP)
        host.finish(0.01)
    assert "left behind" in caplog.text
    process.kill()
    process.wait()


def test_a_removed_output_does_not_come_back_for_pictures(host: Host, done: Path) -> None:
    shutil.rmtree(done / "streamprep_out")
    host.start(0.0)
    assert host._process is None
    assert not (done / "streamprep_out").exists()


def test_it_ends_when_the_line_to_the_daemon_breaks(host: Host) -> None:
    host.start(0.0)
    process = process_of(host)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0


def test_a_program_that_is_not_there_costs_the_pictures_only(
    host: Host, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    host.start(0.0)
    host.look(RESTART_SECONDS - 1)
    host.finish(1.0)
    assert caplog.text.count("no pictures are made") == 1
    assert host.patience() == 0
    monkeypatch.undo()
    host.look(RESTART_SECONDS)
    assert process_of(host).poll() is None, "it is tried again"
    host.finish(0.0)


def test_another_maker_is_waited_for(
    host: Host, done: Path, caplog: pytest.LogCaptureFixture, eventually: Callable[..., None]
) -> None:
    """As the process of an earlier run, which draws its last pictures while a new one has begun."""
    output = done / "streamprep_out"
    log = output / ".streamprep" / "log" / "pictures.log"
    with alone(output):
        host.start(0.0)
        eventually(lambda: "waiting for it" in log.read_text())
    host.finish(60.0)
    assert not caplog.text
    assert (output / "report.html").exists()
    assert "Traceback" not in log.read_text()


def test_its_log_is_bounded(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = done / "streamprep_out"
    (output / ".streamprep" / "log").mkdir(exist_ok=True)
    monkeypatch.setattr("streamprep.report.__main__.MOST_LOG_BYTES", 1000)
    handler = bounded_log(output)
    for number in range(100):
        handler.emit(logging.makeLogRecord({"msg": f"picture {number} {'x' * 80}"}))
    handler.close()
    found = list((output / ".streamprep" / "log").glob("pictures.log*"))
    assert sum(path.stat().st_size for path in found) <= 2000
    assert "picture 99 " in (output / ".streamprep" / "log" / "pictures.log").read_text()


def test_a_variable_blocks_plugins_of_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMPREP_BLOCK_PLUGINS", "pictures, normalize")
    loaded = load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""})
    assert {plugin.name for plugin in loaded.plugins if plugin.blocked} == {"pictures", "normalize"}
    assert [(plugin.name, why) for plugin, why in loaded.left_out] == [
        ("normalize", "STREAMPREP_BLOCK_PLUGINS names it")
    ]
    load_plugins(sinks=False)
    monkeypatch.setenv("STREAMPREP_BLOCK_PLUGINS", "picturs")
    with pytest.raises(ConfigError, match=r"STREAMPREP_BLOCK_PLUGINS=picturs: .* did you mean pictures\?"):
        load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""})
