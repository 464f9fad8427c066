"""Fixtures of the whole suite: real data where it is at hand, small real sessions, and the program as a process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from streamprep.simulate import Acquisition, simulate
from tests.forked import Forked

os.environ.setdefault("STREAMPREP_BLOCK_PLUGINS", "pictures")  # no process for pictures beside each of the sessions
# How long a test takes is no result, as machines are busy at times. `make test` tries the same examples everywhere, so
# that what passed passes again; `make nightly` tries others each time.
settings.register_profile("streamprep", deadline=None, derandomize="STREAMPREP_RANDOM" not in os.environ)
settings.load_profile("streamprep")
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # sessions take it as it is meant, under nohup, too

ROOT = Path(__file__).resolve().parent.parent
SMALL = Acquisition(micrographs=3, size_px=320, particles=6, box_size_px=48, seed=7)


Process = subprocess.Popen[str] | Forked
"""A running program."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests begin first, so that none is left over when the other processes have no more to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def shared_folder(variable: str, name: str) -> Path:
    """A folder of input data that is not part of the project, or a skip with the reason."""
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"no {name} folder: set {variable} to run this test")
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """Real micrographs, picks and maps."""
    return shared_folder("STREAMPREP_TEST_DATA", "data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Inputs, and what Xmipp 3 computed from them."""
    return shared_folder("STREAMPREP_GOLDEN", "golden")


@pytest.fixture(scope="session")
def _acquisition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("acquisition")
    simulate(folder, SMALL)
    return folder


@dataclass
class Session:
    """A session folder, and the program to run on it."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "streamprep.toml"

    @property
    def output(self) -> Path:
        return self.folder / "streamprep_out"

    def edit(self, old: str, new: str) -> None:
        text = self.config.read_text()
        assert old in text, f"{old!r} is not in the configuration"
        self.config.write_text(text.replace(old, new))

    def append(self, text: str) -> None:
        with self.config.open("a") as file:
            file.write(text)

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-c", "from streamprep.cli import main; main()", *map(str, arguments)]

    def call(
        self, *arguments: object, env: dict[str, str] | None = None, fork: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run the program to its end: a fork of a server, which is there at once, or a start of Python."""
        process = self._begin(arguments, env, fork)
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
        return subprocess.CompletedProcess(["streamprep", *map(str, arguments)], process.wait(), out, err)

    def once(
        self, *arguments: object, env: dict[str, str] | None = None, fork: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return self.call("once", "--plain", *arguments, env=env, fork=fork)

    def start(self, *arguments: object, env: dict[str, str] | None = None, fork: bool = True) -> Process:
        """Start the daemon, in the same way."""
        return self._begin(("run", "--log-json", *arguments), env, fork)

    def _begin(self, arguments: Sequence[object], env: dict[str, str] | None, fork: bool) -> Process:
        environ = {**os.environ, **(env or {})}
        if fork:
            return Forked(arguments, self.folder, environ)
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        )


@pytest.fixture
def session(_acquisition: Path, tmp_path: Path) -> Session:
    """A simulated session of three micrographs that settles at once."""
    folder = tmp_path / "session"
    shutil.copytree(_acquisition, folder)
    made = Session(folder)
    made.edit("[session]\n", "[session]\nsettle_seconds = 0.1\nworkers = 1\n")
    return made


@pytest.fixture
def empty_session(tmp_path: Path) -> Session:
    """A session without data: two empty watched folders and a configuration."""
    folder = tmp_path / "session"
    for name in ("Micrographs", "Coordinates"):
        (folder / name).mkdir(parents=True)
    made = Session(folder)
    made.config.write_text(
        '[session]\nwatch = ["Micrographs", "Coordinates"]\nsettle_seconds = 0.1\nworkers = 1\nincomplete_seconds = 1\n'
        "[extract]\nbox_size_px = 64\n[coordinates.pick_noise]\n[particles.normalize]\n[particles.invert]\n"
    )
    return made


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], float], None]:
    """Wait until a condition about another process holds; fail when it does not in time."""

    def wait(condition: Callable[[], bool], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.02)

    return wait


@pytest.fixture
def stopped() -> Iterator[list[Process]]:
    """Processes put into this list are ended after the test, however it ends."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()
