"""Tables whose names lead elsewhere: case 29. What they say may come into the sets as text; nothing lands elsewhere."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.conftest import Session
from tests.outputs import check_invariants, read_table
from tests.test_changes import once

NAMES = [
    "../../../mic_0001.mrc",
    "/tmp/mic_0001.mrc",
    "Micrographs/../../mic_0001.mrc",
    "./mic_0001.mrc/..",
    "..",
    "~root",
]


def everything(folder: Path) -> dict[str, str]:
    """Each file below a folder, by its content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "streamprep_out" not in path.parts
    }


@pytest.mark.case(29)
@pytest.mark.parametrize("name", NAMES)
def test_a_micrograph_named_elsewhere_makes_nothing_elsewhere(fresh: Session, tmp_path: Path, name: str) -> None:
    (fresh.folder / "Coordinates" / "mic_0001_autopick.star").unlink()
    (fresh.folder / "Coordinates" / "evil.star").write_text(
        f"data_\nloop_\n_rlnMicrographName\n_rlnCoordinateX\n_rlnCoordinateY\n{name} 100 100\n{name} 140 120\n"
    )
    before = everything(tmp_path)
    told = once(fresh, "session.settle_seconds=0")
    assert told.returncode == 0, told.stdout
    assert everything(tmp_path) == before
    check_invariants(fresh.output)


@pytest.mark.case(29)
@pytest.mark.parametrize("how", ["relative", "absolute"])
def test_a_stack_named_elsewhere_is_read_there_and_written_to_the_output_alone(
    fresh: Session, tmp_path: Path, how: str
) -> None:
    """As other programs' tables name theirs; with a name that looks like one of the session's own."""
    assert once(fresh, "session.settle_seconds=0").returncode == 0
    stacks = tmp_path / "elsewhere"
    shutil.copytree(fresh.output / "particles" / "Micrographs", stacks)
    rows = read_table(fresh.output / "particles.star")[1]
    stack = rows["rlnImageName"].iloc[0].partition("/Micrographs/")[2]
    count = int(rows["rlnImageName"].str.endswith(stack).sum())
    folder = tmp_path / "second"
    (folder / "Stacks").mkdir(parents=True)
    named = f"{stacks}/{stack}" if how == "absolute" else f"../../elsewhere/../elsewhere/{stack}"
    images = "".join(f"{number:06d}@{named} {Path(stack).stem}.mrc\n" for number in range(1, count + 1))
    (folder / "Stacks" / "table.star").write_text("data_\nloop_\n_rlnImageName\n_rlnMicrographName\n" + images)
    second = Session(folder)
    second.config.write_text('[session]\nwatch = ["Stacks"]\n[optics]\npixel_size_angstrom = 1.0\n[particles.invert]\n')
    before = everything(tmp_path)
    told = once(second, "session.settle_seconds=0")
    assert told.returncode == 0, told.stdout
    assert "1 stack done" in told.stdout
    assert everything(tmp_path) == before
    assert all(name.partition("@")[2].startswith("particles/") and ".." not in name
               for name in read_table(second.output / "particles.star")[1]["rlnImageName"])  # fmt: skip
    check_invariants(second.output)
