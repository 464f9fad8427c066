"""Starts, beside a run, the process that makes ``gallery/`` and ``report.html``; no session waits for it.

It reads what is committed and nothing else (`streamprep.report`); the daemon tells it the configuration, and when to
finish: once the session has let everything go, and has told its end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
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
ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Host:
    """The process of one run."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.output = config.resolve(config.session.output)
        self._process: subprocess.Popen[bytes] | None = None
        self._again = float("inf")
        self._left_out = False

    def start(self, now: float) -> None:
        """Start it; where that cannot be, a warning says so, and it is tried again after a while."""
        settings = {**self.config.model_dump(mode="json", exclude={"notify"}), "file": str(self.config.file)}
        line = json.dumps(settings).encode() + b"\n"
        if len(line) > MOST_LINE_BYTES:
            log.warning("no pictures are made: the configuration is larger than %d bytes", MOST_LINE_BYTES)
            return
        folder = self.output / ".streamprep" / "log"
        try:
            folder.mkdir(exist_ok=True)  # in an output that was removed nothing appears
            with (folder / "pictures.log").open("ab") as said, _blocked():
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
            if self._process is None:
                self._again = now + RESTART_SECONDS

    def look(self, now: float) -> None:
        """Say so where it ended by itself, and start it anew after a while."""
        if self._process is not None and self._process.poll() is not None:
            log.warning("the process that makes pictures ended (%s); see log/pictures.log", self._process.returncode)
            self._close()
            self._again = now + RESTART_SECONDS
        if now >= self._again:
            self._again = float("inf")
            self.start(now)

    def patience(self) -> float:
        """How long the last pictures may take [s]; 0 where none are made."""
        there = self._process is not None and (self.output / ".streamprep").is_dir()
        return self.config.pictures.finish_seconds if there else 0.0

    def finish(self, seconds: float) -> None:
        """Have it write the report of the final state, for so long at most; then it is ended."""
        if self._process is None:
            return
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            assert self._process.stdin is not None
            self._process.stdin.write(f"finish {seconds:g}\n".encode())
            self._process.stdin.flush()
            self._process.wait(seconds + EXTRA_SECONDS if seconds else 0)
        if self._process.poll() is None:
            log.warning("the report was not finished within %g s; streamprep report does it", seconds)
            self._process.kill()  # also one that was stopped
            try:
                self._process.wait(EXTRA_SECONDS)
            except subprocess.TimeoutExpired:  # a file server holds it; the kernel ends it afterwards
                log.warning("the process that makes pictures (%d) is left behind: it does not end", self._process.pid)
        elif self._left_out:
            log.info("the last pictures were left out; streamprep report makes them")
        elif self._process.returncode:
            log.warning("the process that makes pictures ended (%s); see log/pictures.log", self._process.returncode)
        self._close()

    def leave_out(self) -> None:
        """Make no more of them. Safe in a signal handler."""
        self._left_out = True
        if self._process is not None:
            self._process.kill()

    def _close(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process = None


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """What is started meanwhile never gets the signals that reach a whole group; this process gets them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_host: Host | None = None


@hookimpl
def run_started(config: Config) -> None:
    """Start the process."""
    global _host
    end()
    _host = Host(config) if config.pictures.enabled else None
    if _host is not None:
        _host.start(time.monotonic())


@hookimpl
def snapshot_taken(snapshot: Any) -> None:  # noqa: ARG001
    """See whether it is still there."""
    if _host is not None:
        _host.look(time.monotonic())


def end() -> None:
    """Make no more pictures, where an earlier session of this process still does."""
    global _host
    host, _host = _host, None
    if host is not None:
        host.leave_out()
        host.finish(0.0)


@contextlib.contextmanager
def last_pictures() -> Iterator[float]:
    """Yields how long the last pictures may take [s], 0 where there are none, and has them drawn when it is left.

    To be called once the session holds nothing any more that others wait for. Meanwhile a signal leaves the pictures
    out and ends nothing else; a further one ends the process at once.
    """
    host = _host

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if host is None or host._left_out:
            os._exit(128 + number)
        host.leave_out()

    seconds = 0.0 if host is None else host.patience()
    with contextlib.ExitStack() as ending:
        ending.callback(end)
        if seconds and threading.current_thread() is threading.main_thread():
            for number in ENDINGS:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    signal.signal(number, handle)
                    ending.callback(signal.signal, number, before)
        yield seconds
        if host is not None:
            host.finish(seconds)
