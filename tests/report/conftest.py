"""A session that is done, made once, and what makes its pictures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamprep.config import load
from streamprep.engine import Engine
from streamprep.executors import InlineExecutor
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.report.process import Maker
from streamprep.simulate import Acquisition, simulate
from streamprep.snapshot import Snapshot

ACQUISITION = Acquisition(micrographs=3, size_px=320, particles=6, box_size_px=48, seed=7)


def once(folder: Path, *overrides: str) -> Snapshot:
    """Run a session in this process."""
    config = load(folder / "streamprep.toml", ["session.settle_seconds=0", *overrides])
    plugins = load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""})
    return Engine(config, plugins, resolve(config, plugins), once=True, executor=InlineExecutor).run()


def maker(folder: Path, *overrides: str, **given: Any) -> Maker:
    config = load(folder / "streamprep.toml", ["session.reserve_mib=0", "pictures.boxes=5", *overrides])
    plugins = load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""})
    return Maker(config, plugins, resolve(config, plugins), config.resolve(config.session.output), **given)


@pytest.fixture(scope="session")
def _done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    simulate(folder, ACQUISITION)
    config = folder / "streamprep.toml"
    text = config.read_text().replace('"Coordinates"]', '"Coordinates", "Maps"]')
    config.write_text(f"{text}\n[maps.invert]\n[maps.threshold]\nvalue = -0.05\n")
    (folder / "Micrographs" / "cut.mrc").write_bytes((folder / "Micrographs" / "mic_0001.mrc").read_bytes()[:5000])
    assert once(folder, "session.incomplete_seconds=0").jobs == {"done": 4}
    return folder.rename(folder.with_name("moved"))  # so that nothing is read where it was


@pytest.fixture
def done(_done: Path, tmp_path: Path) -> Path:
    """Three micrographs with CTF, particles and noise, and a map, all done; and one that failed."""
    folder = tmp_path / "session"
    shutil.copytree(_done, folder)  # with the times of the files
    return folder


@pytest.fixture
def with_pictures(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, str]]:
    """The environment of a session that makes pictures."""
    monkeypatch.delenv("STREAMPREP_BLOCK_PLUGINS", raising=False)
    return lambda: dict(os.environ)
