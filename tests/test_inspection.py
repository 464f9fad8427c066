"""Looking at a session from outside: `streamprep status` and `streamprep retry`, beside a daemon and without one."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep import inspection
from streamprep import session as sessions
from streamprep.config import load
from streamprep.model import ConfigError
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from tests.conftest import Session


@pytest.mark.parametrize("verb", ["status", "retry"])
def test_another_plan_than_that_of_the_results_names_them(session: Session, verb: str) -> None:
    changed = ("--set", "particles.normalize.method=new")
    assert session.once("--quiet", *changed).returncode == 0
    told = session.call(verb)
    assert told.returncode == 2
    assert f"{session.output} holds results of another plan" in told.stderr
    assert "the configuration and the --set values of their run" in told.stderr
    assert session.call(verb, *changed).returncode == 0


def test_those_who_look_share_the_lock_and_leave_it_as_it_is(session: Session) -> None:
    assert session.once("--quiet").returncode == 0
    lock = session.output / ".streamprep" / "lock"
    owner = lock.read_text()
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert json.loads(session.call("status", "--json").stdout)["daemon"] == "not running"
        assert "nothing has failed" in session.call("retry").stdout
    assert lock.read_text() == owner


def test_another_user_sees_the_last_state_of_a_session_that_has_ended(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session.once("--quiet").returncode == 0
    state = session.output / ".streamprep"
    monkeypatch.setattr(os, "access", lambda path, mode: path != state)
    monkeypatch.setattr(inspection, "open_ledger", None)
    config = load(session.config)
    report = inspection.look(config, resolve(config, load_plugins()))
    assert (report["daemon"], report["jobs"]) == ("not running", {"done": 3})
    assert "3 done, 0 in work" in inspection.report_text(report)


def test_no_more_is_in_work_than_there_are_workers() -> None:
    report = {
        "output": "out", "daemon": "running", "jobs": {"claimed": 4, "ready": 3}, "running": [["a", 1.0]] * 4,
        "workers": 2, "waiting": [], "waiting_count": 0, "failed": 0, "rejected": 0, "unknown_files": 0,
        "rows": {}, "failures": [], "warnings": 0,
    }  # fmt: skip
    assert "0 done, 2 in work, 5 queued" in inspection.report_text(report)
    del report["running"], report["workers"]  # what the ledger tells while no daemon runs
    assert "0 done, 0 in work, 7 queued" in inspection.report_text(report)


@given(st.text(), st.text())
def test_no_name_and_no_reason_adds_a_line(name: str, reason: str) -> None:
    name, reason = f"a\nwaiting: forged{name}", f"b\r\x85\u2028failed: forged{reason}"
    failure = {"state": "failed", "file": name, "reason": reason, "attempts": 1, "traceback": f"{reason}\n{name}"}
    report = {
        "output": name, "daemon": "running", "message": reason, "degraded": [reason], "jobs": {}, "running": [],
        "workers": 1, "waiting": [(name, reason, 1.0)], "waiting_count": 1, "failed": 1,
        "unmatched": [("ctf", name), ("rows", name)],
        "rejected": 0, "unknown_files": 1, "rows": {name: 3}, "failures": [failure],
        "warnings": [(name, [reason, reason])],
    }  # fmt: skip
    lines = inspection.report_text(report).split("\n")
    assert len(lines) == 12
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if line.startswith(("waiting: forged", "failed: forged"))]
    traced = inspection.report_text(report, tracebacks=True).split("\n")
    assert all(line.isprintable() for line in traced)
    assert all(line.startswith("    ") for line in traced if line not in lines)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / ".streamprep").mkdir()
    return tmp_path


def test_a_start_waits_for_those_who_look(output: Path) -> None:
    looking = sessions.try_lock(output, shared=True)
    assert looking is not None
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            looking.close()

    with sessions.lock_output(output, sleep):
        assert len(waited) == 3
        assert sessions.try_lock(output, shared=True) is None


def test_a_start_does_not_wait_for_ever(output: Path) -> None:
    waited: list[float] = []
    with sessions.try_lock(output, shared=True) as looking:  # type: ignore[union-attr]
        assert looking.readable()
        with pytest.raises(ConfigError, match="status or retry is still looking at it"):
            sessions.lock_output(output, waited.append)
    assert 1 < sum(waited) < 3


def test_a_start_beside_a_daemon_is_refused_at_once(output: Path) -> None:
    waited: list[float] = []
    with sessions.lock_output(output), pytest.raises(ConfigError, match="another streamprep is at work here"):
        sessions.lock_output(output, waited.append)
    assert waited == []
