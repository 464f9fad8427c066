"""The picks of one micrograph, written in every format, are the same places."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streamprep import formats
from streamprep.model import Coordinates, Item

NY, NX = 300, 400
BOX = 64
CENTRES = np.array([[100, 120], [301, 44], [222, 250], [64, 32]], dtype=np.float64)


def star(path: Path) -> Path:
    rows = "".join(f"{x:.6f} {y:.6f}\n" for x, y in CENTRES)
    path.write_text(f"# version 30001\n\ndata_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n{rows}")
    return path


def box(path: Path) -> Path:
    path.write_text("".join(f"{x - BOX // 2:.0f}\t{y - BOX // 2:.0f}\t{BOX}\t{BOX}\n" for x, y in CENTRES))
    return path


def eman2(path: Path) -> Path:
    path.write_text(json.dumps({"boxes": [[x, y, "manual"] for x, y in CENTRES], "quality": 5}))
    return path


def cbox(path: Path) -> Path:
    rows = "".join(f"{x - BOX / 2} {y - BOX / 2} {BOX} {BOX} 0.5\n" for x, y in CENTRES)
    names = ("CoordinateX", "CoordinateY", "Width", "Height", "Confidence")
    head = "".join(f"_{name} #{number}\n" for number, name in enumerate(names, start=1))
    path.write_text(f"data_global\n\n_cbox_format_version 1.0\n\ndata_cryolo\n\nloop_\n{head}{rows}")
    return path


def topaz(path: Path) -> Path:
    rows = "".join(f"mic.1\t{x:.0f}\t{y:.0f}\t1.5\n" for x, y in CENTRES)
    path.write_text(f"image_name\tx_coord\ty_coord\tscore\n{rows}")
    return path


def pos(path: Path) -> Path:
    rows = "".join(f"1 {x:.0f} {y:.0f}\n" for x, y in CENTRES)
    path.write_text(f"# XMIPP_STAR_1 *\n#\ndata_particles\nloop_\n _enabled\n _xcoor\n _ycoor\n{rows}")
    return path


def cryosparc(path: Path) -> Path:
    kind = [
        ("uid", "<u8"), ("location/micrograph_path", "S32"), ("location/micrograph_shape", "<u4", (2,)),
        ("location/center_x_frac", "<f4"), ("location/center_y_frac", "<f4"),
    ]  # fmt: skip
    table = np.zeros(len(CENTRES), dtype=kind)
    table["uid"] = np.arange(1, len(CENTRES) + 1)
    table["location/micrograph_path"] = b"J1/imported/mic.1.mrc"
    table["location/micrograph_shape"] = (NY, NX)
    table["location/center_x_frac"] = CENTRES[:, 0] / NX
    table["location/center_y_frac"] = 1 - CENTRES[:, 1] / NY
    with path.open("wb") as file:
        np.save(file, table, allow_pickle=False)
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "mic.1_autopick.star": star, "mic.1.box": box, "mic.1_info.json": eman2, "mic.1.cbox": cbox,
    "picks.txt": topaz, "mic.1.pos": pos, "particles.cs": cryosparc,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_centres(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name)
    head = path.read_bytes()[: formats.HEAD_BYTES]
    kind = formats.classify_path(path, head)
    assert kind == "coordinates"
    entries = formats.read_item(Item(kind, path.stem, path))
    assert isinstance(entries, list)
    (found,) = [entry.data for entry in entries if isinstance(entry.data, Coordinates)]
    np.testing.assert_allclose(found.xy_px, CENTRES, atol=1e-4)
    assert found.xy_px.dtype == np.float64
