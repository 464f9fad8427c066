"""Asking an application as a server would, with the very bytes of a request: clients tidy paths and names up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from streamprep.web.app import Dashboard
from streamprep.web.state import Watch

CONFIG = Path("/data/my session/streamprep.toml")


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def page(self) -> Page:
        return Page(self.text)


class Page(HTMLParser):
    """The elements of a page, and its text without tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("a", "bdi", "code", "span", "time", "wbr"):
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.parts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def ask(app: Any, target: str, **given: Any) -> Answer:
    """Send one request; ``target`` goes as it is."""
    return asyncio.run(asked(app, target, **given))


async def asked(
    app: Any,
    target: str,
    *,
    host: str | None = "127.0.0.1:8765",
    method: str = "GET",
    headers: Sequence[tuple[str, str]] = (),
    server: tuple[str, int] = ("127.0.0.1", 8765),
) -> Answer:
    """The same, beside others."""
    path, _, query = target.partition("?")
    sent: list[Any] = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [
            (name.lower().encode(), value.encode("latin-1"))
            for name, value in (*(() if host is None else (("host", host),)), *headers)
        ],
        "server": server,
        "client": ("127.0.0.1", 1),
    }

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    heads = {name.decode().lower(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], heads, b"".join(message.get("body", b"") for message in sent[1:]))


class Clock:
    """Both clocks, which go on when told to."""

    def __init__(self, now: float) -> None:
        self.now, self.monotonic = now, 50.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        self.monotonic += seconds


class Looked:
    """A dashboard of an output folder, and its clock."""

    def __init__(self, output: Path, now: float, **given: Any) -> None:
        self.output, self.clock = output, Clock(now)
        self.watch = Watch(self.find, clock=lambda: self.clock.monotonic, now=lambda: self.clock.now)
        self.dashboard = Dashboard(self.watch, config=CONFIG, **given)
        self.app = self.dashboard.guarded(frozenset({"127.0.0.1"}))

    def find(self) -> tuple[Path, bool]:
        return self.output, (self.output / ".streamprep").exists()

    def look(self) -> bool:
        """Look until nothing is new; whether anything was."""
        found = changed = self.watch.look()
        while found:
            found = self.watch.look()
        return changed

    def get(self, target: str, **given: Any) -> Answer:
        return ask(self.app, target, **given)
