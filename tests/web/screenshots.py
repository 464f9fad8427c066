"""Pictures of every page, for looking at: ``python -m tests.web.screenshots FOLDER``, or of the first for the docs."""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from streamprep.config import load
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.snapshot import Snapshot
from tests.web.acted import PLAN, busy, hole, write_status

PAGES = {
    "overview": "/", "items": "/items", "items_failed": "/items?state=failed", "failures": "/failures",
    "gallery": "/gallery", "plan": "/plan", "missing": "/nope",
    "item": f"/items/{hole(1603)}", "item_failed": f"/items/{hole(1597)}",
}  # fmt: skip
SIZES = {"desktop": (1400, 900), "tablet": (820, 1100), "phone": (390, 844)}


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The dashboard of the session in a folder, as a process of its own; gives its address."""
    command = [sys.executable, "-m", "streamprep", "dashboard", "--port", "0", str(folder / "streamprep.toml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield next(line.split()[1] for line in process.stdout if line.split()[:1] == ["open"]).rstrip("/")
    finally:
        process.terminate()
        process.communicate(timeout=20)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's browser, without a screen."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def acted_session(folder: Path) -> Snapshot:
    """A session folder in which a busy session is acted, and its state, which was written a moment ago."""
    output = folder / "streamprep_out"
    for name in ("Micrographs", "Coordinates"):
        (folder / name).mkdir(parents=True)
    (folder / "streamprep.toml").write_text(
        '[session]\nwatch = ["Micrographs", "Coordinates"]\n[extract]\nbox_size_px = 256\n'
    )
    state = busy(output, time.time())
    plan = resolve(load(folder / "streamprep.toml", ()), load_plugins())
    (output / ".streamprep" / "plan.json").write_text(json.dumps({**PLAN, "hash": plan.hash}))
    write_status(output, state)
    return state


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="folder for all, or a .png for the first page alone")
    parser.add_argument("--only", help="of these pages only, divided by commas")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "2026-11-22_apoferritin"
        state = acted_session(folder)
        with served(folder) as address, chromium() as browser:
            if arguments.target.suffix == ".png":
                write_status(Path(state.output), state)
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                page.goto(address, wait_until="load")
                small = Image.open(io.BytesIO(page.screenshot())).quantize(256)
                small.save(arguments.target, optimize=True)
                return
            arguments.target.mkdir(parents=True, exist_ok=True)
            for name in arguments.only.split(",") if arguments.only else PAGES:
                write_status(Path(state.output), state)  # the daemon is heard of
                for size, (width, height) in SIZES.items():
                    for scheme in ("light", "dark"):
                        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
                        page.goto(address + PAGES[name], wait_until="load")
                        page.screenshot(path=arguments.target / f"{name}_{size}_{scheme}.png", full_page=True)
                        page.close()


if __name__ == "__main__":
    main()
