"""A small session and disks of its own, for tests of faults."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamprep.simulate import Acquisition, simulate
from tests.conftest import Session
from tests.reliability.pausing import run

Mount = Callable[..., Path]
LONG = bool(os.environ.get("STREAMPREP_FAULTS"))
"""What takes long, such as each session under libfiu, is part of `make faults` alone."""


def unmount(folder: Path) -> None:
    """As one who does not ask who is at work there."""
    subprocess.run(["umount", "-l", folder], check=False, capture_output=True)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a tmpfs at a folder; or skips the test where that is not allowed."""
    mounted: list[Path] = []

    def make(folder: Path, options: str = "size=16m") -> Path:
        if os.geteuid():
            pytest.skip("only root may mount")
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield make
    for folder in reversed(mounted):
        unmount(folder)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A small acquisition, processed without a fault."""
    made = Session(tmp_path_factory.mktemp("reference") / "session")
    simulate(made.folder, Acquisition(micrographs=3, size_px=256, particles=5, box_size_px=32, seed=7))
    made.edit("[session]\n", "[session]\nworkers = 1\n")
    assert run(made.config, lambda: None, lambda: None, "started").jobs == {"done": 3}
    return made


@pytest.fixture
def fresh(reference: Session, tmp_path: Path) -> Session:
    """The same acquisition, not yet processed."""
    folder = tmp_path / "session"
    shutil.copytree(reference.folder, folder, ignore=shutil.ignore_patterns("streamprep_out"))
    return Session(folder)
