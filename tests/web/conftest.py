"""Dashboards of acted sessions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra web is not installed")

from streamprep.snapshot import Snapshot
from tests.web.acted import NOW, busy, write_status
from tests.web.asking import Looked


@pytest.fixture
def looked(tmp_path: Path) -> Looked:
    """Of a session that has not begun."""
    return Looked(tmp_path / "session" / "streamprep_out", NOW)


@pytest.fixture(scope="session")
def acted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Snapshot]:
    """An output in which all happens that can be told of, and its state."""
    output = tmp_path_factory.mktemp("acted") / "streamprep_out"
    return output, busy(output, NOW, items=230)


@pytest.fixture
def busily(looked: Looked, acted: tuple[Path, Snapshot]) -> Looked:
    """Of such a session."""
    shutil.copytree(acted[0], looked.output)
    write_status(looked.output, acted[1], modified=NOW)
    looked.look()
    return looked
