"""The words of messages, made of what the life cycle of a session says."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from streamprep.config import Config
from streamprep.notify.conditions import Watch
from streamprep.snapshot import Snapshot, clean
from streamprep.units import duration, free_space

LONGEST = 1500
"""Most characters of a message; chats take 2000 and more."""
LONGEST_NAME = 300
MOST_FAILURES = 5
MOST_WARNINGS = 1000


@dataclass(frozen=True, slots=True)
class Message:
    """One message, without control characters but line ends."""

    subject: str
    """On one line."""
    text: str
    event: str
    """stopped, paused, disk, failures, stall, quiet, warning, end or test."""
    state: str
    """begins or ends; told where there is no such thing."""
    fields: dict[str, Any]
    """Session, host, time, and numbers of the session."""


class Messenger:
    """Words the messages of one session.

    Parameters
    ----------
    config
        Of the session.
    send
        Takes a message, and returns at once.
    clock, now
        Monotonic clock and wall clock.
    """

    def __init__(
        self, config: Config, send: Callable[[Message], None], *, clock: Callable[[], float], now: Callable[[], float]
    ) -> None:
        self._settings, self._send, self._clock, self._now = config.notify, send, clock, now
        self._watch = Watch(config.notify)
        self.session = _short(config.notify.name or config.folder.name or "session")
        self.host = _short(socket.gethostname())
        self._snapshot: Snapshot | None = None
        self._warned: set[str] = set()

    def item_finished(self, item: str, state: str, reason: str | None) -> None:
        """Count how an item ended."""
        self._watch.item_finished(_short(item), state, _short(reason))

    def warning_raised(self, message: str) -> None:
        """Tell a warning about the session, once, where that is wanted."""
        new = message not in self._warned and len(self._warned) < MOST_WARNINGS
        if self._settings.warnings and new and self._watch.admit(self._clock()):
            self._warned.add(message)
            self._tell("warning", "told", message)

    def snapshot_taken(self, snapshot: Snapshot) -> None:
        """Tell what began and what is over."""
        self._snapshot = snapshot
        for change in self._watch.observe(snapshot, self._clock()):
            self._tell(change.event, "begins" if change.begins else "ends", change.text)

    def run_stopped(self, snapshot: Snapshot) -> None:
        """Tell how the session ended."""
        self._snapshot = snapshot
        if not self._settings.summary:
            return
        error = sys.exc_info()[1]  # the engine publishes and says so while an error ends it
        if error is not None:
            how = f"was ended by an error: {error or type(error).__name__}"
        elif snapshot.mode == "stopped":
            how = f"ended; it had stopped: {snapshot.message}"
        else:
            how = "ended"
        lines = [f"{count:,} rows in {name}" for name, count in snapshot.rows.items()]
        failed = [row for row in snapshot.failures if row["state"] == "failed"][:MOST_FAILURES]
        lines += [f"failed: {_short(row['file'])}: {_short(row['reason'])}" for row in failed]
        self._tell("end", "told", f"{how}, after {duration(snapshot.elapsed_seconds)}", lines)

    def test(self) -> Message:
        """A message that says that messages come through."""
        return self._made("test", "told", "a test: messages about this session arrive here", [])

    def _tell(self, event: str, state: str, text: str, lines: list[str] | None = None) -> None:
        self._send(self._made(event, state, text, lines or []))

    def _made(self, event: str, state: str, said: str, lines: list[str]) -> Message:
        fields: dict[str, Any] = {
            "session": self.session,
            "host": self.host,
            "time": datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="seconds"),
        }
        head = clean(f"{self.session}: {said}")
        shown = [head]
        if self._snapshot is not None:
            numbers, snapshot = counts(self._snapshot), self._snapshot
            told = ", ".join(f"{count:,} {name}" for name, count in numbers.items() if count or name == "done")
            left = free_space(snapshot.disk_free_bytes, snapshot.disk_total_bytes)
            shown.append(f"{snapshot.items}: {told}; {left}, on {self.host}")
            fields |= {
                "mode": snapshot.mode,
                "output": clean(snapshot.output),
                "items": numbers,
                "rows": dict(snapshot.rows),
                "disk_free_bytes": snapshot.disk_free_bytes,
            }
        text = "\n".join(clean(line) for line in [*shown, *lines])
        return Message(f"streamprep {head}"[:200], text[:LONGEST], event, state, fields)


def counts(snapshot: Snapshot) -> dict[str, int]:
    """How many items are where."""
    jobs = snapshot.jobs
    return {
        "done": jobs.get("done", 0),
        "queued": jobs.get("ready", 0) + jobs.get("claimed", 0),
        "waiting": snapshot.waiting_count,
        "failed": snapshot.failed,
        "rejected": snapshot.rejected,
    }


def _short(text: object) -> str:
    """Text from outside, on one line, without control characters, and not too long."""
    return clean(str(text or "")[:LONGEST_NAME])
