"""The tutorial docs/plugins.md: its files are written and its commands run, one after the other, as a reader would."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from typer.testing import CliRunner

from streamprep.cli import app
from streamprep.testing import run_session
from tests.conftest import ROOT
from tests.outputs import check_invariants, read_table
from tests.packages import install, run

PAGE = ROOT / "docs" / "plugins.md"
BLOCK = re.compile(r"^```(bash|python|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODULE = "streamprep_local_contrast"


@dataclass
class Reader:
    """Does what the page says, in a folder; packages are installed in ``site``."""

    folder: Path
    site: Path
    patch: pytest.MonkeyPatch

    def follow(self, kind: str, text: str) -> dict[str, str]:
        """Write a file, add to a configuration, or run commands; what the commands said."""
        if kind != "bash":
            first, _, rest = text.partition("\n")
            path = self.folder / first.removeprefix("# ")
            assert path.is_file(), f"the page has no file to be replaced at {path}"
            path.write_text(rest if kind == "python" else path.read_text() + rest)
            return {}
        return {line: self.run(shlex.split(line)) for line in text.splitlines()}

    def run(self, command: list[str]) -> str:
        name, *arguments = command
        if name == "cd":
            self.folder /= arguments[0]
            self.patch.chdir(self.folder)
            return ""
        if name in ("pip", "mypy"):  # installed below; tests/test_new_plugin.py checks the types
            assert arguments in (["install", "--editable", ".[dev]"], ["src"])
            return ""
        if (self.folder / "pyproject.toml").exists():
            install(self.folder, self.site)  # as it is now: the page installs it in editable form
            sys.modules.pop(MODULE, None)
        if command[:2] == ["streamprep", "once"]:
            assert arguments[2:] == ["--plain"]
            return str(run_session(Path(arguments[1])).jobs)
        if name == "streamprep":
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, done.output
            return done.output
        ran = run(self.site, name, *arguments, cwd=self.folder)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout


def test_the_tutorial_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site")
    reader = Reader(tmp_path, tmp_path / "site", monkeypatch)
    (tmp_path / "site").mkdir()
    said: list[tuple[str, str]] = []
    for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        said += reader.follow(kind, text).items()
    sys.modules.pop(MODULE, None)
    told = dict(said)
    tests = [text for line, text in said if line == "pytest"]
    assert re.search(r" 5 passed, \d skipped", tests[0]), "the tests of the package as it was written"
    assert re.search(r" 6 passed, \d skipped", tests[1], re.MULTILINE), "those that the page prints"
    assert "factor (number; default 1.0, > 0)" in told["streamprep ops local_contrast"]

    made = reader.folder
    before, after = (mrcfile.read(made / name) for name in ("trial/Micrographs/mic_0001.mrc", "even.mrc"))
    assert after.shape == before.shape
    tiles = np.stack(np.split(np.stack(np.split(after.astype(float), 4)), 4, axis=2)).reshape(16, -1)
    assert abs(tiles.mean(axis=1)).max() < 0.1
    assert 0.9 < tiles.std(axis=1).min() < tiles.std(axis=1).max() < 1.1

    plan = told["streamprep plan trial/streamprep.toml"].splitlines()
    (line,) = (line for line in plan if "local_contrast" in line)
    assert line.split() == [
        "particles", "25", "local_contrast", "window_angstrom=150.0", "[streamprep-local-contrast", "0.1.0]"
    ]  # fmt: skip
    assert told["streamprep once trial/streamprep.toml --plain"] == "{'done': 1}"
    output = made / "trial" / "streamprep_out"
    check_invariants(output)
    assert len(read_table(output / "particles.star")[1]) > 20


def test_the_operation_has_no_more_lines_than_the_page_says() -> None:
    (source,) = (text for kind, text in BLOCK.findall(PAGE.read_text()) if kind == "python" and f"{MODULE}/" in text)
    code = [
        line
        for line in source.splitlines()[1:]
        if line.strip() and not line.lstrip().startswith(('"""', "import", "from"))
    ]
    assert len(code) <= 30
