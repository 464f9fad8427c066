"""Conventions through the whole program: what is drawn at a place is extracted centred, from every format."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import numpy.typing as npt
import pytest

from tests.conftest import Session
from tests.formats.picks import STEM, WRITERS, Picks
from tests.outputs import check_invariants, images_of, read_table
from tests.test_changes import once

CENTRES = np.array([[40, 30], [211, 44], [100, 97], [230, 150], [12, 167], [150, 15]], dtype=np.float64)
SHAPE = (180, 260)
RADIUS = 5


def draw() -> npt.NDArray[np.float32]:
    """A disc at each centre, each brighter than the one before, on nothing."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    pixels = np.zeros(SHAPE, np.float32)
    for brightness, (column, row) in enumerate(CENTRES, start=1):
        pixels[(x - column) ** 2 + (y - row) ** 2 <= RADIUS**2] = brightness
    return pixels


def process(folder: Path, name: str, box: int, flip_y: bool) -> Session:
    """A session with one micrograph and its picks in one format, processed."""
    session = Session(folder)
    for watched in ("Micrographs", "Coordinates"):
        (folder / watched).mkdir(parents=True)
    with mrcfile.new(folder / "Micrographs" / f"{STEM}.mrc") as file:
        file.set_data(draw()[::-1].copy() if flip_y else draw())
        file.voxel_size = 1.5
    file_name, write = WRITERS[name]
    write(folder / "Coordinates" / file_name, Picks(CENTRES, SHAPE, box))
    session.config.write_text(
        '[session]\nwatch = ["Micrographs", "Coordinates"]\nsettle_seconds = 0\npoll_seconds = 0.05\nevents = "off"\n'
        f"[extract]\nbox_size_px = {box}\n" + ('[matching]\nflip_y = ["Coordinates"]\n' if flip_y else "")
    )
    done = once(session)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 micrograph done, 0 waiting, 0 failed" in done.stdout, f"{name}: {done.stdout}"
    return session


@pytest.mark.parametrize(("box", "flip_y"), [(24, False), (21, False), (24, True), (21, True)])
def test_every_format_cuts_the_same_particles_and_centres_them(tmp_path: Path, box: int, flip_y: bool) -> None:
    stacks: dict[bytes, list[str]] = {}
    for number, name in enumerate(WRITERS):
        session = process(tmp_path / str(number), name, box, flip_y)
        images = np.stack(list(images_of(session.output, "particles.star").values()))
        assert images.shape == (len(CENTRES), box, box)
        weights = images.sum(axis=(1, 2), dtype=np.float64)
        assert images.max(axis=(1, 2)).tolist() == [1, 2, 3, 4, 5, 6], "each is itself, in the order of the file"
        index = np.arange(box)
        np.testing.assert_allclose((images.sum(axis=1) @ index) / weights, box // 2, atol=1e-6)
        np.testing.assert_allclose((images.sum(axis=2) @ index) / weights, box // 2, atol=1e-6)
        rows = read_table(session.output / "particles.star")[1]
        y = SHAPE[0] - 1 - CENTRES[:, 1] if flip_y else CENTRES[:, 1]
        np.testing.assert_allclose(
            rows[["rlnCoordinateX", "rlnCoordinateY"]], np.stack([CENTRES[:, 0], y], 1), atol=1e-3
        )
        (stack,) = (session.output / "particles").rglob("*.mrcs")
        stacks.setdefault(stack.read_bytes(), []).append(name)
        check_invariants(session.output)
    assert len(stacks) == 1, f"these differ: {list(stacks.values())}"
