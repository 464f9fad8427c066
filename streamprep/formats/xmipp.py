"""Xmipp metadata files: ``# XMIPP_STAR_1 *`` in the first line, then STAR tables with Xmipp's own column names.

- Coordinates (``.pos`` of one micrograph, ``.xmd`` of many): ``_xcoor``, ``_ycoor``, centres in pixels from the first
  pixel as stored. A picker's file has a table of manual and one of automatic picks, ``data_particles`` and
  ``data_particles_auto``; both count. ``_cost`` is the picker's score.
- CTF (``.ctfparam`` of one micrograph, as pairs of name and value; ``.xmd`` of many): ``_ctfDefocusU/V`` in Å,
  underfocus positive, ``_ctfDefocusAngle`` in degrees from x towards y, ``_ctfVoltage`` in kV,
  ``_ctfSphericalAberration`` in mm, ``_ctfQ0`` (amplitude contrast as a fraction), and ``_ctfPhaseShift`` or
  ``_ctfVPPphaseshift`` in degrees.
- ``_enabled``: 1 is in use, -1 is switched off. Rows with anything below 1 are left out.

- Images of stacks (``.xmd``): ``_image`` as ``000001@stack``, numbered from 1, with any of the columns above.

Source: Xmipp's metadata labels and the files that its programs write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamprep.formats._ctf import checked_ctfs
from streamprep.formats._values import digest_of, groups
from streamprep.formats.star import PHASE_FLIPPED, Loop, image_names, read_loops, read_with, rows_entry, with_constants
from streamprep.model import (
    FIGURE_OF_MERIT,
    Coordinates,
    Ctf,
    Entry,
    InputError,
    Kind,
    ParticleRows,
)

_FIRST_LINE = re.compile(rb"\s*#\s*XMIPP_STAR_1\b")
_NAMES_IMAGES = re.compile(rb"\d@\S")
_CTF_COLUMNS = {
    "ctfDefocusU": "defocus_u_angstrom",
    "ctfDefocusV": "defocus_v_angstrom",
    "ctfDefocusAngle": "defocus_angle_deg",
}
_CTF_FURTHER = {
    "ctfVoltage": "voltage_kv",
    "ctfSphericalAberration": "spherical_aberration_mm",
    "ctfQ0": "amplitude_contrast",
    "ctfPhaseShift": "phase_shift_deg",
    "ctfVPPphaseshift": "phase_shift_deg",
}
_CONSTANTS = {
    "rlnVoltage": "ctfVoltage",
    "rlnSphericalAberration": "ctfSphericalAberration",
    "rlnAmplitudeContrast": "ctfQ0",
}
"""The microscope's constants: RELION's column of an optics group → Xmipp's label."""
_NUMBERED = re.compile(r"^[^@/]*@")
"""What stands before the file in ``N@file``; a file may have an @ in its name further on."""
_STATE = "pickingMicrographState"
"""A picker's file begins with it; nothing else is in that of a micrograph in which nothing was picked yet."""
_RENAMED = {"cost": FIGURE_OF_MERIT}
_RENAMED_ROWS = {**_RENAMED, "micrograph": "rlnMicrographName"}
_READ_ELSEWHERE = ("xcoor", "ycoor", "enabled", "micrograph")


def is_xmipp(head: bytes) -> bool:
    """Whether a file that begins with ``head`` says it is Xmipp's."""
    return _FIRST_LINE.match(head) is not None


def recognise(path: Path, head: bytes) -> Kind | None:  # noqa: ARG001 - by content alone
    """``coordinates`` or ``ctf`` for an Xmipp metadata file whose first columns say so; None for anything else."""
    if not is_xmipp(head):
        return None
    names = set(re.findall(rb"^[ \t]*_(\w+)", head, re.MULTILINE))
    if names & {b"xcoor", b"ycoor"}:
        return "coordinates"
    if b"image" in names and _NAMES_IMAGES.search(head):
        return "rows"
    return "ctf" if b"ctfDefocusU" in names else None


def read_entries(path: Path) -> list[Entry]:
    """What an Xmipp file says about micrographs: their coordinates, or their CTF; and about stacks: their rows.

    The micrograph is that of ``_micrograph``, else the file that ``_image`` names (``N@file`` or ``file``), else the
    one that the file itself is called by. Rows of a micrograph in several tables become one `Entry`. A micrograph
    whose rows are all switched off has an entry without coordinates. Columns are kept under their own names,
    ``_cost`` as ``rlnAutopickFigureOfMerit``; a row of a table without that column has 0 there. Where a table has
    coordinates, its CTF columns are kept as columns.

    Raises
    ------
    InputError
        It is not an Xmipp file, it holds neither, or a value in it is not a number.
    """
    with path.open("rb") as file:
        head = file.read(256)
    if not is_xmipp(head):
        raise InputError(path, "not an Xmipp metadata file: its first line must begin with '# XMIPP_STAR_1'")
    known = "coordinates (_xcoor, _ycoor) nor a CTF (_ctfDefocusU) nor the images of stacks (_image)"
    return read_with(path, _said, known)


def _said(loops: list[Loop]) -> list[Entry] | None:
    """What tables say; None where none of them is one that is read."""
    picked = [loop for loop in loops if "xcoor" in loop or "ycoor" in loop]
    stacked = [loop for loop in loops if any("@" in name for name in loop.columns.get("image", ()))]
    fitted = [loop for loop in loops if "ctfDefocusU" in loop and loop not in picked and loop not in stacked]
    if not picked and not fitted and not stacked:
        return [] if any(_STATE in loop for loop in loops) else None
    entries = _coordinates(picked) + [entry for loop in fitted for entry in _ctfs(loop)]
    return entries + [entry for loop in stacked for entry in _particle_rows(loop)]


def read_image_rows(path: Path) -> list[Entry]:
    """The rows of each stack that the first table that names images names: of 2D classes the averages.

    Raises
    ------
    InputError
        None of its tables does, or a value in it is not a number.
    """
    for loop in read_loops(path):
        if any("@" in name for name in loop.columns.get("image", ())):
            return list(_particle_rows(loop))
    raise InputError(path, "no table in it names images, as NUMBER@FILE in _image")


def _particle_rows(loop: Loop) -> Iterable[Entry]:
    """The rows of each stack that a table of particles names. Shifts and angles keep Xmipp's names and conventions."""
    stacks, index = image_names(loop.path, loop.columns["image"], "_image")
    enabled = _enabled(loop)
    xy = np.stack([loop.floats("xcoor"), loop.floats("ycoor")], axis=1) if "xcoor" in loop and "ycoor" in loop else None
    ctfs = _loop_ctfs(loop) if "ctfDefocusU" in loop else None
    flipped = loop.floats(PHASE_FLIPPED) != 0 if PHASE_FLIPPED in loop else None  # as our own tables have it
    elsewhere = {"image", "enabled", PHASE_FLIPPED}
    if xy is not None:
        elsewhere |= {"xcoor", "ycoor"}
    if ctfs is not None:
        elsewhere |= {*_CTF_COLUMNS, *_CTF_FURTHER}
    own = [] if ctfs is not None else [name for name, label in _CONSTANTS.items() if label in loop]
    elsewhere |= {_CONSTANTS[name] for name in own}
    said = with_constants([], {name: loop.columns[_CONSTANTS[name]] for name in own})
    columns: dict[str, npt.NDArray[Any]] = {
        _RENAMED_ROWS.get(name, name): np.array(values, dtype=object)
        for name, values in loop.columns.items()
        if name not in elsewhere
    }
    for stack, named in stacks:
        rows = named[enabled[named]]
        yield rows_entry(
            stack,
            ParticleRows(
                index[rows],
                None if xy is None else Coordinates(xy[rows]),
                None if ctfs is None else tuple(ctfs[row] for row in rows.tolist()),
                phase_flipped=None if flipped is None else flipped[rows],
                columns={name: values[rows] for name, values in columns.items()},
                optics_columns=tuple(said[row] for row in rows.tolist()) if said else (),
            ),
        )


def _enabled(loop: Loop) -> npt.NDArray[np.bool_]:
    return loop.floats("enabled") > 0 if "enabled" in loop else np.ones(loop.rows, dtype=bool)


def _micrographs(loop: Loop) -> list[str | None]:
    """The micrograph of each row."""
    column = "micrograph" if "micrograph" in loop else "image"
    if column not in loop:
        return [None] * loop.rows
    names = [_NUMBERED.sub("", value) if column == "image" else value for value in loop.columns[column]]
    if "" in names:
        raise InputError(loop.path, f"row {names.index('') + 1} of data_{loop.block}: _{column} names no file")
    return list(names)


def _coordinates(loops: list[Loop]) -> list[Entry]:
    names = list(
        dict.fromkeys(
            _RENAMED.get(name, name) for loop in loops for name in loop.columns if name not in _READ_ELSEWHERE
        )
    )
    micrographs: list[str | None] = []
    xy, enabled = [np.empty((0, 2))], [np.empty(0, dtype=bool)]
    columns: dict[str, list[str]] = {name: [] for name in names}
    for loop in loops:
        xy.append(np.stack([loop.floats("xcoor"), loop.floats("ycoor")], axis=1))
        enabled.append(_enabled(loop))
        micrographs += _micrographs(loop)
        given = {_RENAMED.get(name, name): values for name, values in loop.columns.items()}
        if "cost" in loop:
            loop.floats("cost")  # it is sorted by and filtered by later: refused here where it is no number
        for name in names:
            columns[name] += given.get(name, ["0" if name == FIGURE_OF_MERIT else "None"] * loop.rows)
    points, used = np.concatenate(xy), np.concatenate(enabled)
    values = {name: np.array(column, dtype=object) for name, column in columns.items()}
    entries = []
    for micrograph, rows in (groups(micrographs) or [(None, np.empty(0, np.int64))]) if loops else ():
        index = rows[used[rows]]
        own = {name: column[index] for name, column in values.items()}
        entries.append(Entry(micrograph, digest_of(points[index], own), Coordinates(points[index], columns=own)))
    return entries


def _ctfs(loop: Loop) -> list[Entry]:
    rows = zip(_micrographs(loop), _loop_ctfs(loop), _enabled(loop), strict=True)
    return [Entry(micrograph, digest_of(ctf), ctf) for micrograph, ctf, enabled in rows if enabled]


def _loop_ctfs(loop: Loop) -> list[Ctf]:
    """The CTF of each row; that of a row that is switched off is not looked at."""
    fields = {field: loop.floats(name) for name, field in _CTF_COLUMNS.items()}
    fields |= {field: loop.floats(name) for name, field in _CTF_FURTHER.items() if name in loop}
    used = _enabled(loop)
    fields = {field: np.where(used, numbers, 1.0) for field, numbers in fields.items()}  # 1 is allowed everywhere
    return checked_ctfs(loop.path, f"of data_{loop.block[:60]}", fields)


def pos_text(coordinates: Coordinates) -> str:
    """Coordinates of one micrograph as an Xmipp ``.pos`` file: whole pixels, centres, all enabled."""
    head = (
        "# XMIPP_STAR_1 * \n#\ndata_header\nloop_\n _pickingMicrographState\nManual\n"
        "data_particles\nloop_\n _enabled\n _xcoor\n _ycoor\n"
    )
    xs, ys = (whole_pixels(coordinates.xy_px[:, axis]) for axis in (0, 1))
    return head + "".join(f"1 {x} {y}\n" for x, y in zip(xs, ys, strict=True))


def whole_pixels(centres_px: npt.ArrayLike) -> list[int]:
    """Centres as ``_xcoor`` and ``_ycoor`` hold them: the nearest pixel, halves rounded up, none below 0 [px]."""
    return [int(value + 0.5) for value in np.asarray(centres_px, dtype=np.float64).clip(min=0).tolist()]
