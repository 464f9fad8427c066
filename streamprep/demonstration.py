"""The demonstration: a simulated microscope and the daemon side by side, then a summary and a report with pictures."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamprep.config import load
from streamprep.engine import Engine
from streamprep.hookspecs import hookimpl
from streamprep.model import ConfigError
from streamprep.pipeline import resolve
from streamprep.plugin_manager import Plugins, load_plugins
from streamprep.simulate import Acquisition, expose, prepare

MARK = ".streamprep_demo"
"""File in the folder of a demonstration: what is there may be removed. A session that was simulated has none."""

Prepare = Callable[[Engine, Plugins, str], Any]
"""Registers a console, and returns it."""
End = Callable[[Any], None]
"""Tells the end on that console, and has the last pictures drawn."""


class _StopWhenDone:
    """A plugin that ends the session when every exposure is through."""

    def __init__(self, expected: int) -> None:
        self.left = expected
        self.engine: Engine | None = None

    @hookimpl
    def item_finished(self, item: str) -> None:
        """Count; files that are no micrographs end here only when they fail."""
        if item.startswith("Micrographs/"):
            self.left -= 1
            if self.left <= 0 and self.engine is not None:
                self.engine.stop()


def run(
    folder: Path, micrographs: int, interval_s: float, style: str, prepare_session: Prepare, end_session: End
) -> int:
    """Run the demonstration.

    Parameters
    ----------
    folder
        Made; emptied first when it holds an earlier demonstration.
    micrographs, interval_s
        How many exposures, and the seconds between them.
    style, prepare_session, end_session
        How the console looks, what registers it, and what ends it.

    Returns
    -------
    int
        Exit code: 0 when every micrograph was processed.

    Raises
    ------
    ConfigError
        The folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise ConfigError(f"{folder}: holds something that is no demonstration; give another folder")
        for made in sorted(folder.iterdir(), key=lambda path: path.name == MARK):  # the mark goes last
            shutil.rmtree(made) if made.is_dir() and not made.is_symlink() else made.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    acquisition = Acquisition(micrographs=micrographs, size_px=1024, particles=30, box_size_px=96)
    prepare(folder, acquisition)
    config = load(folder / "streamprep.toml", ["pictures.finish_seconds=60"])
    plugins = load_plugins(block=config.plugins.block)
    engine = Engine(config, plugins, resolve(config, plugins))
    console = prepare_session(engine, plugins, style)
    stopper = _StopWhenDone(micrographs)
    stopper.engine = engine
    plugins.manager.register(stopper)

    beam_off = threading.Event()

    def microscope() -> None:
        try:
            for index in range(micrographs):
                if beam_off.wait(interval_s if index else 0.0):
                    return
                expose(folder, acquisition, index)
        except BaseException:
            engine.stop()
            raise

    thread = threading.Thread(target=microscope, name="microscope")
    thread.start()
    with contextlib.ExitStack() as ending:
        ending.callback(console.close)
        ending.callback(thread.join)
        ending.callback(beam_off.set)
        last = engine.run()
        end_session(console)
    report = engine.output / "report.html"
    if report.exists():
        print(f"look at: {report}")  # noqa: T201
    return 0 if last.jobs.get("done", 0) == micrographs else 1
