"""Starting and ending the server: what is said, and what is refused."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import uvicorn
from uvicorn.server import ServerState

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


class Loop:
    """Notes what is to be called later, and lets answers wait."""

    def __init__(self) -> None:
        self.later: list[tuple[float, asyncio.TimerHandle]] = []
        self._real = asyncio.new_event_loop()
        self.create_task = self._real.create_task

    def call_later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(seconds, call, (), self._real)
        self.later.append((seconds, handle))
        return handle

    def pass_by(self, seconds: float) -> None:
        for after, handle in self.later:
            if after <= seconds and not handle.cancelled():
                handle._run()

    def close(self) -> None:
        for task in asyncio.all_tasks(self._real):
            task.cancel()
            self._real.run_until_complete(asyncio.wait([task]))
        self._real.close()


@pytest.mark.parametrize(
    ("parts", "closed"),
    [([], True), ([b"G"], True), ([b"GET / HT", b"TP/1.1\r\n", b"Host: a\r\n"], True),
     ([b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"], False), ([b"GET / HTTP/1.1\r\nHo", b"st: a\r\n\r\n"], False)],
)  # fmt: skip
def test_a_connection_that_asks_for_nothing_is_closed(parts: list[bytes], closed: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()  # as one that follows the events

    loop, transport = Loop(), mock.Mock(spec=asyncio.Transport)
    transport.get_extra_info.return_value = None
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None)
    connection = server._Connection(config, ServerState(), {}, _loop=loop)  # type: ignore[arg-type]
    try:
        connection.connection_made(transport)
        for part in parts:
            connection.data_received(part)
        loop.pass_by(server.HEAD_SECONDS / 2)
        assert not transport.close.called
        loop.pass_by(server.HEAD_SECONDS)
        assert transport.close.called is closed
    finally:
        connection.connection_lost(None)
        loop.close()
    assert all(handle.cancelled() or closed for _, handle in loop.later)


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
    while not events.readline().startswith(b"event: status"):
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert events.read().endswith(b"\n"), "it ended as an answer does, not as a broken one"
    following.close()
    assert [path.name for path in empty_session.output.rglob("*")] == [".streamprep", "status.json"], "nothing was made"
