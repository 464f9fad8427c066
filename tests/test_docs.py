"""The pages of docs/ say what the program says, and the commands of the first page run as printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from pydantic import BaseModel, Field

from streamprep import templates
from streamprep.config import Config
from streamprep.plugin_manager import Plugins, load_plugins
from tests.conftest import ROOT
from tests.forked import Forked
from tests.test_cli import call

DOCS = ROOT / "docs"
PICTURES = DOCS / "images" / "operations"


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""}, sinks=False)


def test_the_page_of_operations_is_what_the_program_writes(plugins: Plugins) -> None:
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    assert templates.operations_page(plugins) == page, (
        "make it anew with: streamprep ops --markdown > docs/operations.md"
    )
    for made in plugins.operations:
        section = page.split(f"\n## {made.info.name}\n")[1].split("\n## ")[0]
        for parameter in made.info.params.model_fields:
            assert f"\n| `{parameter}` |" in section
        assert section.count("$$") >= 2, f"{made.info.name} has no formula in its kernel's docstring"


def test_the_reference_of_the_configuration_is_what_the_program_writes(plugins: Plugins) -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert templates.configuration_page(plugins) == page, (
        "make it anew with: streamprep init --markdown > docs/configuration.md"
    )
    for name, model in templates.sections():
        assert f"\n## [{name}]\n" in page
        for key in model.model_fields:
            assert f"\n| `{key}` |" in page


def test_a_table_that_is_added_to_the_configuration_is_in_file_and_reference(
    monkeypatch: pytest.MonkeyPatch, plugins: Plugins, tmp_path: Path
) -> None:
    class Bell(BaseModel):
        """Rings."""

        volume: int | None = Field(11, ge=0, description="How loud.")
        at: list[str] = Field(["noon"], description="When.")

    class Wider(Config):
        bell: Bell = Bell()

    monkeypatch.setattr(templates, "Config", Wider)
    page = templates.configuration_page(plugins)
    assert "## [bell]\n\nRings.\n\n| key | meaning | type | default, range |\n" in page
    assert "| `volume` | How loud. | whole number | default 11, ≥ 0 |\n" in page
    assert '| `at` | When. | list of text | default ["noon"] |\n' in page
    written = templates.configuration(plugins, tmp_path, set(templates.DEFAULT_OPERATIONS))
    assert '\n[bell]\n# How loud.\n# volume = 11\n# When.\n# at = ["noon"]\n' in written


def test_every_operation_of_ours_has_a_small_picture_and_others_need_none(plugins: Plugins) -> None:
    ours = {made.info.name for made in plugins.operations}
    pictures = sorted(PICTURES.iterdir())
    assert {path.stem for path in pictures} == ours, "make them anew with: python docs/make_pictures.py"
    sizes = {path.stem: path.stat().st_size for path in pictures}
    assert max(sizes.values()) <= 60_000, sizes
    assert sum(sizes.values()) <= 800_000
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
            assert picture.width <= 800

    one = plugins.operations[-1]
    theirs = replace(one, info=replace(one.info, name="theirs"), distribution="streamprep-theirs")
    page = templates.operations_page(replace(plugins, operations=[*plugins.operations, theirs]))
    assert "\n## theirs\n" in page
    assert page.count("![Before and after") == len(ours)


def test_formulas_are_read_in_a_terminal_too() -> None:
    said = call("ops", "phase_flip")
    assert "F'(f) = F(f) sign(sqrt{1 - Q^2} sin χ + Q cos χ), χ(f) = π λ z f^2 - π/2 C_s λ^3 f^4 + φ" in said
    for name in ("normalize", "symmetrize", "laplacian"):
        assert not re.search(r"\$\$|\\quad|\\text|~", call("ops", name))


def test_formulas_hold_no_marks_that_github_takes_for_its_own(plugins: Plugins) -> None:
    """GitHub's Markdown drops the backslash before punctuation, also in formulas."""
    formulas = re.findall(r"\$\$(.*?)\$\$", templates.operations_page(plugins), flags=re.DOTALL)
    assert len(formulas) >= 16
    assert [formula for formula in formulas if re.search(r"\\[^a-zA-Z]", formula)] == []


# --- the first page --------------------------------------------------------------------------------------------------


def commands(page: str) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


class Terminal:
    """A shell that knows cd, mkdir and streamprep; what installs or is of others is passed over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: dict[str, str] = {}
        self.daemon: Forked | None = None

    def type(self, line: str) -> None:
        for part in line.split("&&"):
            words = [word.removeprefix("~/") for word in shlex.split(part)]
            if words[0] == "cd":
                self.folder = (self.folder / words[1]).resolve(strict=True)
            elif words[0] == "mkdir":
                (self.folder / words[1]).mkdir()
            elif words[0] == "streamprep":
                self.run(words[1:])
            else:
                assert words[0] in ("python3", ".", "pip", "relion_refine"), line

    def run(self, words: list[str]) -> None:
        if words[0] == "run":
            self.daemon = Forked(words, self.folder, os.environ)
            return
        if "--interval" in words:
            words[words.index("--interval") + 1] = "0"
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            if words[0] == "status":
                self.wait_for_all()
            self.said[words[0]] = call(*words)
        finally:
            os.chdir(before)

    def wait_for_all(self) -> None:
        """Until the daemon that works beside is through with what was simulated."""
        status, give_up = Path("streamprep_out/.streamprep/status.json"), time.monotonic() + 200
        exposures = len(list(Path("Micrographs").glob("*.mrc")))
        while not status.exists() or json.loads(status.read_text())["jobs"].get("done") != exposures:
            assert time.monotonic() < give_up
            assert self.daemon is not None
            assert self.daemon.poll() is None
            time.sleep(0.1)


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """All the commands of the page were typed, then Ctrl-C into the daemon."""
    terminal = Terminal(tmp_path_factory.mktemp("five-minutes"))
    try:
        for line in commands("start.md"):
            terminal.type(line)
        assert terminal.daemon is not None
        terminal.daemon.send_signal(signal.SIGINT)
        terminal.said["run"] = terminal.daemon.communicate(timeout=60)[0]
        yield terminal
    finally:
        if terminal.daemon is not None and terminal.daemon.poll() is None:
            terminal.daemon.kill()


def test_the_commands_of_the_first_page_run_as_printed(typed: Terminal) -> None:
    assert typed.daemon is not None
    assert typed.daemon.wait() == 0
    assert set(typed.said) == {"simulate", "check", "plan", "run", "status", "report", "init"}
    assert Path(typed.said["report"].splitlines()[-1]).is_file()
    assert (typed.folder / "mine" / "streamprep.toml").is_file()


def test_they_print_what_the_first_page_shows(typed: Terminal) -> None:
    page = (DOCS / "start.md").read_text(encoding="utf-8")
    shown = "".join(re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)).splitlines()
    said = {line.rstrip() for text in typed.said.values() for line in text.splitlines()}
    assert shown
    assert [line for line in shown if line not in said] == []
    assert "6 micrographs done, 0 waiting, 0 failed, 0 rejected" in typed.said["run"]
