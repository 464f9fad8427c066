"""Starts, beside a run, the process that makes ``gallery/`` and ``report.html``; only the end of a run waits for it.

It reads what is committed and nothing else (`streamprep.report`); the daemon tells it the configuration, and when to
finish.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from streamprep.config import Config
from streamprep.hookspecs import hookimpl

log = logging.getLogger(__name__)

RESTART_SECONDS = 600.0
"""One that ended by itself is started anew after this time."""
MOST_LINE_BYTES = 60_000
"""What a pipe takes at once, so that nobody waits for the reader."""
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
EXTRA_SECONDS = 2.0


class Host:
    """The process of one run."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._again = float("inf")

    def start(self) -> None:
        """Start it; where that cannot be, a warning says so, and there are no pictures."""
        settings = {**self.config.model_dump(mode="json", exclude={"notify"}), "file": str(self.config.file)}
        line = json.dumps(settings).encode() + b"\n"
        if len(line) > MOST_LINE_BYTES:
            log.warning("no pictures are made: the configuration is larger than %d bytes", MOST_LINE_BYTES)
            return
        folder = self.config.resolve(self.config.session.output) / ".streamprep" / "log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "pictures.log").open("wb") as said:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "streamprep.report"],
                    stdin=subprocess.PIPE,
                    stdout=said,
                    stderr=said,
                    env={**os.environ, **THREADS},
                )
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError as error:
            log.warning("no pictures are made: %s", error)

    def look(self, now: float) -> None:
        """Say so where it ended by itself, and start it anew after a while."""
        if self._process is not None and self._process.poll() is not None:
            log.warning("the process that makes pictures ended (%s); see log/pictures.log", self._process.returncode)
            self._close()
            self._again = now + RESTART_SECONDS
        if now >= self._again:
            self._again = float("inf")
            self.start()

    def finish(self, seconds: float) -> None:
        """Have it write the report of the final state, for so long at most; then it is ended."""
        if self._process is None:
            return
        if sys.stderr.isatty() and seconds:
            sys.stderr.write(f"drawing the last pictures, {seconds:g} s at most; Ctrl-C leaves them out\n")
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            assert self._process.stdin is not None
            self._process.stdin.write(f"finish {seconds:g}\n".encode())
            self._process.stdin.flush()
            self._process.wait(seconds + EXTRA_SECONDS if seconds else 0)
        if self._process.poll() is None:
            log.warning("the report was not finished within %g s; streamprep report does it", seconds)
            self._process.kill()  # also one that was stopped
            self._process.wait()
        elif self._process.returncode:
            log.warning("the process that makes pictures ended (%s); see log/pictures.log", self._process.returncode)
        self._close()

    def _close(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process = None


_host: Host | None = None


@hookimpl
def run_started(config: Config) -> None:
    """Start the process."""
    global _host
    _host = Host(config) if config.pictures.enabled else None
    if _host is not None:
        _host.start()


@hookimpl
def snapshot_taken(snapshot: Any) -> None:  # noqa: ARG001
    """See whether it is still there."""
    if _host is not None:
        _host.look(time.monotonic())


@hookimpl
def run_stopped(snapshot: Any) -> None:
    """Let it finish."""
    global _host
    host, _host = _host, None
    if host is not None:
        there = (Path(snapshot.output) / ".streamprep").is_dir()
        host.finish(host.config.pictures.finish_seconds if there else 0.0)
