"""The program in processes that start within milliseconds, as forks of a server that has everything imported.

So are the workers of a daemon that is started here. All else is as in ``streamprep …``: a process of its own, with the
arguments, the working folder, the streams and the exit code of one.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Literal

import streamprep.plugins
import streamprep.sinks
from streamprep import executors, process_pool, workers
from streamprep.cli import main

_leaves = [
    f"{package.__name__}.{module.name}"
    for package in (streamprep.plugins, streamprep.sinks)
    for module in pkgutil.iter_modules(package.__path__)
]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([
    __name__, "tests.reliability.crash", "pytest", "PIL.Image", "array_api_compat.numpy", "scipy.fft", "scipy.ndimage",
    "scipy.spatial", "streamprep.console", "streamprep.engine", "streamprep.inspection", "streamprep.repair", *_leaves,
])  # fmt: skip
STREAMS = ("out", "err")


class Forked:
    """A process of the program; what `subprocess.Popen` has of it, as far as tests use that.

    Parameters
    ----------
    arguments
        After the name of the program.
    folder
        To work in.
    env
        Its environment. PYTHONPATH is searched for distributions, too, but no sitecustomize is run.
    """

    def __init__(self, arguments: Sequence[object], folder: Path, env: Mapping[str, str]) -> None:
        self._streams = tempfile.TemporaryDirectory(prefix="streamprep-streams-")
        self.returncode: int | None = None
        given = [*map(str, arguments)], folder, dict(env), self._streams.name
        self._process: Any = SERVER.Process(target=_run, name="MainProcess", args=given)
        self._process.start()
        self.pid = int(self._process.pid)

    def poll(self) -> int | None:
        """Its exit code; minus the number of the signal that killed it; None while it runs."""
        if self.returncode is None:
            self._process.join(0)
            self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code once it has ended.

        Raises
        ------
        subprocess.TimeoutExpired
            It has not in time [s].
        """
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("streamprep", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to standard output and standard error, once it has ended."""
        self.wait(timeout)
        return self.text("out"), self.text("err")

    def text(self, stream: Literal["out", "err"] = "out") -> str:
        """What it has written so far."""
        path = Path(self._streams.name, stream)
        return path.read_text(encoding="utf-8") if path.exists() else ""


def _run(arguments: Sequence[str], folder: Path, environ: dict[str, str], streams: str) -> None:
    os.chdir(folder)
    for descriptor, name in enumerate(STREAMS, 1):
        file = os.open(Path(streams, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environ)
    sys.path[:0] = [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
    fork_workers()
    sys.argv = ["streamprep", *arguments]
    main()


def fork_workers() -> None:
    """Let this process, which is a fork of the server, have its workers made by the server, too."""
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]  # it runs
    process_pool.multiprocessing = _Multiprocessing()  # type: ignore[assignment]
    executors.initialize = _Initialize()  # type: ignore[assignment]


class _Multiprocessing:
    """What process_pool.py needs of multiprocessing, with processes from the server."""

    @staticmethod
    def get_context(method: str) -> Any:
        assert method == "spawn"
        return SERVER


class _Initialize:
    """`workers.initialize`, for a worker, which has the server's environment until it is given the daemon's."""

    def __call__(self) -> None:
        raise AssertionError("it is for workers alone")

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial, (_initialize, dict(os.environ))


def _initialize(environ: Mapping[str, str], *args: Any, **options: Any) -> None:
    os.environ.clear()
    os.environ.update(environ)
    workers.initialize(*args, **options)
