"""Starting and ending the server: what is said, and what is refused."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from streamprep import cli
from streamprep.model import ConfigError
from streamprep.web import server
from tests.conftest import Session


def nowhere() -> tuple[Path, bool]:
    return Path("/nowhere"), False


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: it is in use"):
            server.serve(nowhere, config=tmp_path, port=port)


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--host 192\.0\.2\.1"):
        server.serve(nowhere, config=tmp_path, host="192.0.2.1", port=0)


def test_a_missing_extra_is_named(empty_session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "streamprep.web.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"needs uvicorn; install it with: pip install 'streamprep\[web\]'"):
        cli.dashboard(empty_session.config)


def test_it_serves_asks_for_a_token_and_ends_with_a_signal(
    empty_session: Session, stopped: list[subprocess.Popen[str]]
) -> None:
    """On all addresses, with one who follows the events and a look that hangs when the end comes."""
    state = empty_session.output / ".streamprep"
    state.mkdir(parents=True)
    os.mkfifo(state / "status.json")
    command = empty_session.command("dashboard", "--port", "0", "--host", "0.0.0.0")
    process = subprocess.Popen(
        command, cwd=empty_session.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    stopped.append(process)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[0].startswith(f"streamprep dashboard of {empty_session.output}")
    address, _, token = lines[1].split()[1].partition("/?token=")
    assert len(token) >= 32
    port = int(address.rpartition(":")[2])
    said = {}
    for name, headers in (("without", {}), ("with", {"Authorization": f"Bearer {token}"})):
        asking = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        asking.request("GET", "/", headers=headers)
        said[name] = asking.getresponse().status
        asking.close()
    assert said == {"without": 401, "with": 200}
    following = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    following.request("GET", "/events", headers={"Authorization": f"Bearer {token}"})
    events = following.getresponse()
    assert events.headers["content-type"].startswith("text/event-stream")
    assert events.readline() == b"retry: 3000\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert b"event: status" in events.read(), "it ended as an answer does, not as a broken one"
    following.close()
    assert [path.name for path in empty_session.output.rglob("*")] == [".streamprep", "status.json"], "nothing was made"
