"""docs/operating.md: its messages are the program's, its back-up can be restored, outputs have the modes it says."""

from __future__ import annotations

import ast
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamprep.config import load
from streamprep.engine import Engine
from streamprep.executors import InlineExecutor
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.repair import repair
from streamprep.simulate import Acquisition, simulate
from streamprep.snapshot import Snapshot
from tests.conftest import ROOT
from tests.outputs import check_invariants, rows_of

PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
PLUGINS = load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""})
ANY = "…"


def texts_of(node: ast.AST) -> Iterator[str]:
    """Every text of a module, with ANY for what is filled in; those with +, and those next to one another, whole."""
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield re.sub(r"%[a-z.0-9]*[sdg]", ANY, child.value)
        elif isinstance(child, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else ANY for part in child.values)


def folded(text: str) -> str:
    return re.sub(rf"{ANY}+", ANY, " ".join(text.split()))


def quoted() -> list[str]:
    table = PAGE[PAGE.index("## From message to remedy") :]
    return re.findall(r"^\| `(.+?)` \|", table, flags=re.MULTILINE)


def test_each_message_of_the_table_is_the_programs() -> None:
    modules = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "streamprep").rglob("*.py"))]
    said = "\n".join(folded(text) for module in modules for text in texts_of(ast.parse(module)))
    assert [message for message in quoted() if folded(message) not in said] == []


def test_the_table_says_what_to_do_about_each() -> None:
    assert len(quoted()) > 40
    table = PAGE[PAGE.index("## From message to remedy") :]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert all(len(re.split(r"(?<!\\) \| ", line)) == 3 and not line.endswith("|  |") for line in rows)


def commands(name: str) -> list[str]:
    """The lines of a block of the page that is marked as tested."""
    block = re.search(rf"<!-- tested: {name} -->\n```console\n(.*?)```", PAGE, flags=re.DOTALL)
    assert block is not None
    return [line.removeprefix("$ ") for line in block[1].splitlines()]


def once(folder: Path) -> Snapshot:
    config = load(folder / "streamprep.toml", ["session.settle_seconds=0", "session.device=cpu"])
    return Engine(config, PLUGINS, resolve(config, PLUGINS), once=True, executor=InlineExecutor).run()


def test_a_back_up_of_a_session_that_runs_can_be_restored(tmp_path: Path) -> None:
    folder, output = tmp_path, tmp_path / "streamprep_out"
    simulate(folder, Acquisition(micrographs=4, size_px=256, particles=3, box_size_px=32, seed=4))
    held = sorted((folder / "Coordinates").glob("*.star"))[2:]
    (folder / "held back").mkdir()
    for path in held:
        path.rename(folder / "held back" / path.name)
    assert once(folder).jobs == {"done": 2}
    for number, line in enumerate(commands("back-up")):
        subprocess.run(["bash", "-ec", line.replace("/backup", f"{folder}/backup")], cwd=folder, check=True)
        if number == 1:  # the session goes on after the log of commits was copied
            for path in held:
                (folder / "held back" / path.name).rename(path)
            assert once(folder).jobs == {"done": 4}
    before = rows_of(output / "particles.star")
    shutil.rmtree(output)
    for line in commands("restore"):
        if line == "streamprep repair":
            config = load(folder / "streamprep.toml", ["session.settle_seconds=0", "session.device=cpu"])
            done = repair(config, PLUGINS, resolve(config, PLUGINS), verify=True)
            assert (done.commits, done.items, done.damaged) == (2, 2, ())
        elif line == "streamprep run":
            assert once(folder).jobs == {"done": 4}
        else:
            subprocess.run(["bash", "-ec", line.replace("/backup", f"{folder}/backup")], cwd=folder, check=True)
    check_invariants(output)
    assert rows_of(output / "particles.star") == before


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_outputs_have_the_modes_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    simulate(tmp_path, Acquisition(micrographs=1, size_px=256, particles=3, box_size_px=32, seed=4))
    former = os.umask(umask)
    try:
        assert once(tmp_path).jobs == {"done": 1}
    finally:
        os.umask(former)
    output = tmp_path / "streamprep_out"
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [output, *output.rglob("*")]}
    assert len(modes) > 20
    for path, mode in modes.items():
        assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, path
