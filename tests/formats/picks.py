"""The picks of one micrograph as every program writes them: whole pixels, so that every format can hold them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamprep.model import FloatArray

STEM = "mic.1"
NAME = f"MotionCorr/job002/Movies/{STEM}.mrc"
"""What tables call the micrograph."""


@dataclass(frozen=True)
class Picks:
    """Centres (n, 2) in a micrograph of shape (ny, nx), and the box that formats with boxes write."""

    centres: FloatArray
    shape: tuple[int, int]
    box: int


def _loop(names: tuple[str, ...], rows: list[str]) -> str:
    return "loop_\n" + "".join(f"_{name} #{number}\n" for number, name in enumerate(names, start=1)) + "".join(rows)


def _star(picks: Picks, head: str, block: str, named: bool) -> str:
    names = ("rlnCoordinateX", "rlnCoordinateY", *(("rlnMicrographName",) if named else ()))
    rows = [f"{x:12.6f} {y:12.6f}{' ' + NAME if named else ''}\n" for x, y in picks.centres]
    return f"{head}\ndata_{block}\n\n{_loop(names, rows)}\n"


def relion_30(path: Path, picks: Picks) -> None:
    path.write_text(_star(picks, "# RELION; version 3.0\n", "", named=False))


def relion_30_named(path: Path, picks: Picks) -> None:
    path.write_text(_star(picks, "# RELION; version 3.0\n", "images", named=True))


def relion_31(path: Path, picks: Picks) -> None:
    path.write_text(_star(picks, "# version 30001\n", "", named=False))


def relion_31_named(path: Path, picks: Picks) -> None:
    optics = _loop(("rlnOpticsGroup", "rlnVoltage"), ["1 300.0\n"])
    path.write_text(_star(picks, f"# version 30001\n\ndata_optics\n\n{optics}\n\n# version 30001\n", "particles", True))


def xmipp_pos(path: Path, picks: Picks) -> None:
    rows = "".join(f"1 {x:.0f} {y:.0f}\n" for x, y in picks.centres)
    path.write_text(f"# XMIPP_STAR_1 *\n#\ndata_particles\nloop_\n _enabled\n _xcoor\n _ycoor\n{rows}")


def xmipp_xmd(path: Path, picks: Picks) -> None:
    rows = "".join(
        f"{number}@Extract/{STEM}.stk 1 {x:.0f} {y:.0f} {NAME}\n"
        for number, (x, y) in enumerate(picks.centres, start=1)
    )
    path.write_text(
        f"# XMIPP_STAR_1 *\n#\ndata_noname\nloop_\n _image\n _enabled\n _xcoor\n _ycoor\n _micrograph\n{rows}"
    )


def eman_box(path: Path, picks: Picks) -> None:
    box = picks.box
    path.write_text("".join(f"{x - box / 2:g}\t{y - box / 2:g}\t{box}\t{box}\n" for x, y in picks.centres))


def eman2_json(path: Path, picks: Picks) -> None:
    path.write_text(json.dumps({"boxes": [[x, y, "manual"] for x, y in picks.centres], "quality": 5}))


def cryolo_cbox(path: Path, picks: Picks) -> None:
    box = picks.box
    rows = [f"{x - box / 2} {y - box / 2} {box} {box} 0.5\n" for x, y in picks.centres]
    loop = _loop(("CoordinateX", "CoordinateY", "Width", "Height", "Confidence"), rows)
    path.write_text(f"data_global\n\n_cbox_format_version 1.0\n\ndata_cryolo\n\n{loop}")


def topaz_txt(path: Path, picks: Picks) -> None:
    rows = "".join(f"{STEM}\t{x:.0f}\t{y:.0f}\t1.5\n" for x, y in picks.centres)
    path.write_text(f"image_name\tx_coord\ty_coord\tscore\n{rows}")


def _cryosparc_columns(picks: Picks) -> dict[str, tuple[object, ...]]:
    ny, nx = picks.shape
    x, y = picks.centres.T
    return {
        "uid": ("<u8", np.arange(1, len(x) + 1)),
        "location/micrograph_path": (f"S{len(NAME)}", np.full(len(x), NAME.encode())),
        "location/micrograph_shape": ("<u4", (2,), np.full((len(x), 2), (ny, nx))),
        "location/center_x_frac": ("<f4", x / nx),
        "location/center_y_frac": ("<f4", 1 - y / ny),
        "blob/idx": ("<u4", np.arange(len(x))),
    }


def _save_cs(path: Path, columns: dict[str, tuple[object, ...]], order: slice = slice(None)) -> None:
    table = np.zeros(len(columns["uid"][-1]), [(name, *kind[:-1]) for name, kind in columns.items()])  # type: ignore
    for name, kind in columns.items():
        table[name] = kind[-1]
    with path.open("wb") as file:
        np.save(file, table[order], allow_pickle=False)


def cryosparc_cs(path: Path, picks: Picks) -> None:
    _save_cs(path, _cryosparc_columns(picks))


def cryosparc_passthrough(path: Path, picks: Picks) -> None:
    """The places in a second file, whose rows are in another order."""
    columns = _cryosparc_columns(picks)
    _save_cs(path, {name: columns[name] for name in ("uid", "blob/idx")})
    del columns["blob/idx"]
    _save_cs(path.with_name(f"{path.stem.split('_')[0]}_passthrough_particles.cs"), columns, slice(None, None, -1))


WRITERS: dict[str, tuple[str, Callable[[Path, Picks], None]]] = {
    "RELION 3.0": (f"{STEM}_autopick.star", relion_30),
    "RELION 3.0 with names": ("particles.star", relion_30_named),
    "RELION 3.1": (f"{STEM}_manualpick.star", relion_31),
    "RELION 3.1 with names": ("particles.star", relion_31_named),
    "Xmipp .pos": (f"{STEM}.pos", xmipp_pos),
    "Xmipp .xmd": ("particles.xmd", xmipp_xmd),
    "EMAN .box": (f"{STEM}.box", eman_box),
    "EMAN2 json": (f"{STEM}_info.json", eman2_json),
    "crYOLO .cbox": (f"{STEM}.cbox", cryolo_cbox),
    "Topaz .txt": ("topaz.txt", topaz_txt),
    "cryoSPARC .cs": ("J7_particles.cs", cryosparc_cs),
    "cryoSPARC .cs with a passthrough file": ("J7_particles.cs", cryosparc_passthrough),
}
"""By format: what the file is called, and what writes it."""
