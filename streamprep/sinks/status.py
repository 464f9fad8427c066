"""Writes the session's state to ``.streamprep/status.json``, for `streamprep status` while the daemon runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from streamprep.hookspecs import hookimpl
from streamprep.sinks import _files

EVERY_SECONDS = 2.0
_last = 0.0


@hookimpl
def snapshot_taken(snapshot: Any) -> None:
    """Write it, at most every two seconds. A full disk does not matter here."""
    global _last
    now = time.monotonic()
    if now - _last >= EVERY_SECONDS:
        _last = now
        _write(snapshot)


@hookimpl
def run_stopped(snapshot: Any) -> None:
    """Write the last state."""
    _write(snapshot)


def _write(snapshot: Any) -> None:
    folder = Path(snapshot.output) / ".streamprep"
    if not folder.is_dir():  # the output was removed or unmounted: nothing is to appear in its place
        return
    text = json.dumps(dataclasses.asdict(snapshot), default=str)
    with contextlib.suppress(OSError):
        _files.replace_whole(folder / "status.json", [text.encode()], durable=False)
