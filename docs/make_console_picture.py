"""Makes docs/images/console.svg: a real session of simulated micrographs, some of which wait, fail or cause warnings.

``python docs/make_console_picture.py [SVG] [--size WIDTHxHEIGHT] [--seconds S]`` takes as long as the session.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from streamprep import hookimpl
from streamprep.config import load
from streamprep.console_view import Past, view
from streamprep.engine import Engine
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.simulate import Acquisition, simulate
from streamprep.snapshot import Snapshot

ACQUISITION = Acquisition(micrographs=30, size_px=512, particles=24, box_size_px=64)
WITHOUT_COORDINATES = (11, 17, 25)
CUT_OFF = 20
OUTSIDE = (6, 14)
"""Micrographs of which one coordinate lies outside."""

THEME = TerminalTheme(
    (24, 26, 31),
    (220, 223, 228),
    [(24, 26, 31), (224, 90, 90), (120, 190, 110), (215, 170, 80), (97, 160, 240), (198, 120, 221), (86, 182, 194),
     (220, 223, 228)],
)  # fmt: skip
FORMAT = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{ font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: {char_height}px;
line-height: {line_height}px; white-space: pre; }}
{styles}
</style>
<defs>{lines}</defs>
<rect fill="#181a1f" width="{width}" height="{height}" rx="8"/>
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


class Watching:
    """Keeps what a console would show."""

    def __init__(self) -> None:
        self.past = Past()
        self.last: Any = None

    @hookimpl
    def snapshot_taken(self, snapshot: Any) -> None:
        """Keep the newest."""
        self.past.note(snapshot)
        if snapshot.mode in ("running", "waiting"):
            self.last = snapshot


def deliver(made: Path, session: Path, interval_s: float, stop: threading.Event) -> None:
    """Copy file after file into the session, as a transfer does."""
    for index in range(1, ACQUISITION.micrographs + 1):
        name = f"mic_{index:04d}"
        picture = made / "Micrographs" / f"{name}.mrc"
        picks = made / "Coordinates" / f"{name}_autopick.star"
        if index == CUT_OFF:
            os.truncate(picture, picture.stat().st_size // 2)
        if index in OUTSIDE:
            picks.write_text(f"{picks.read_text().rstrip()}\n9000.0 9000.0 0.5\n")
        for path in (picture,) if index in WITHOUT_COORDINATES else (picture, picks):
            target = session / path.relative_to(made)
            shutil.copy(path, target.with_name(f".{target.name}"))
            target.with_name(f".{target.name}").rename(target)
        if stop.wait(interval_s):
            return


def watch(session: Path, made: Path, seconds: float) -> Watching:
    """Run a session for so long."""
    for folder in ("Micrographs", "Coordinates", "Maps"):
        (session / folder).mkdir(parents=True)
    for name in ("streamprep.toml", "micrographs_ctf.star"):
        shutil.copy(made / name, session / name)
    config = load(session / "streamprep.toml", ["session.incomplete_seconds=5", "session.device=cpu"])
    plugins = load_plugins(environ={})
    watching = Watching()
    plugins.manager.register(watching)
    engine = Engine(config, plugins, resolve(config, plugins))
    stop = threading.Event()
    interval_s = 0.9 * seconds / ACQUISITION.micrographs
    threading.Thread(target=deliver, args=(made, session, interval_s, stop)).start()
    ending = threading.Timer(seconds, engine.stop)
    ending.start()
    try:
        engine.run()
    finally:
        stop.set()
        ending.cancel()
    return watching


def renamed(value: Any, old: str, new: str) -> Any:
    """The same, with another name of the session's folder."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, tuple):
        return tuple(renamed(part, old, new) for part in value)
    if isinstance(value, dict):
        return {key: renamed(part, old, new) for key, part in value.items()}
    return value


def main() -> None:
    """Make the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).parent / "images" / "console.svg"
    parser.add_argument("svg", nargs="*", type=Path, default=[here])
    parser.add_argument("--size", nargs="*", default=["112x38"])
    parser.add_argument("--seconds", type=float, default=90.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made, session = Path(folder) / "made", Path(folder) / "session"
        simulate(made, ACQUISITION)
        watching = watch(session, made, given.seconds)
    taken = {field.name: getattr(watching.last, field.name) for field in dataclasses.fields(watching.last)}
    snapshot = Snapshot(**{name: renamed(value, str(session), "/data/session") for name, value in taken.items()})
    for path, size in zip(given.svg, given.size, strict=True):
        width, height = map(int, size.split("x"))
        console = RichConsole(record=True, width=width, file=io.StringIO(), force_terminal=True, legacy_windows=False)
        lines = view(snapshot, width, height, past=watching.past)
        console.print(Text("\n").join(lines), no_wrap=True, crop=True)
        path.write_text(console.export_svg(title="streamprep", theme=THEME, code_format=FORMAT, unique_id="console"))


if __name__ == "__main__":
    main()
