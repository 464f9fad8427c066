"""The plugin that docs/plugins.md prints can be built and installed as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "plugins.md"
BLOCK = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A code block whose first line is the name of a file."""


def streamprep(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", "from streamprep.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the printed plugin is installed."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert [name for name, _ in blocks] == ["streamprep_demean/__init__.py", "pyproject.toml"]
    for name, text in blocks:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--target", str(target), str(source)],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_it_is_listed_and_explained(site: Path) -> None:
    listed = streamprep(site, "ops")
    assert listed.returncode == 0, listed.stderr
    assert re.search(
        r"^particles +25 +demean +Subtract each image's mean\. +\[streamprep-demean\]$", listed.stdout, re.MULTILINE
    )
    assert "strength (number; default 1.0, ≥ 0, ≤ 1)" in streamprep(site, "ops", "demean").stdout
    assert "BROKEN" not in streamprep(site, "plugins").stdout


def test_it_computes_what_it_says(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamprep.testing import run_operation, tiny_particles

    monkeypatch.syspath_prepend(site)
    import streamprep_demean  # type: ignore[import-not-found]

    done, warnings = run_operation(streamprep_demean.demean, tiny_particles(3, 8))
    assert abs(done.pixels.mean(axis=(1, 2))).max() < 1e-6 * abs(tiny_particles(3, 8).pixels).max()
    assert warnings == []
