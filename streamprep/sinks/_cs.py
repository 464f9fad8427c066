"""Growing cryoSPARC tables (``.cs``): one structured numpy array, format 1.0, one record per particle.

Text has a fixed width in it, and one width in the whole table. So a column carries its type in its name (``blob/path
S48``): what the ledger knows of a block's columns is all that is needed to read the block, and to widen it.

- ``uid`` is a hash of the image's name, ``location/micrograph_uid`` one of the micrograph's: the same after restarts
  and in another session, never 0. ``blob/import_sig`` is made as cryosparc-tools makes it (``get_import_signatures``:
  the first 8 bytes of the SHA-1 of the path), of the path as the table names it.
- ``blob/sign``: -1 where the particles are bright, as RELION wants them, 1 where they are dark.
- ``location/center_x_frac`` = x / nx, ``center_y_frac`` = 1 - y / ny, y from the lower edge: the inverse of what
  `streamprep.formats.cryosparc` reads. ``micrograph_shape`` is (ny, nx).
- Whether phases were flipped no field of cryoSPARC's says: RELION's column is added where they were.
- Aberrations that are not known are 0, as cryoSPARC writes them for imported CTFs.
- Further columns that are numbers are kept under their own names; those of text cannot be, as cryoSPARC takes none.

Source: the fields that cryosparc-tools documents, and the types of cryoSPARC's own files.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.lib.format as npy

from streamprep.hookspecs import StagedRows, Table
from streamprep.model import FIGURE_OF_MERIT
from streamprep.sinks._tables import numbers

_ORDER = (
    "uid",
    *(f"blob/{name}" for name in ("path", "idx", "shape", "psize_A", "sign", "import_sig")),
    *(f"location/{name}" for name in ("micrograph_uid", "exp_group_id", "micrograph_path", "micrograph_shape")),
    *(f"location/{name}" for name in ("micrograph_psize_A", "center_x_frac", "center_y_frac")),
    *(f"ctf/{name}" for name in ("type", "exp_group_id", "accel_kv", "cs_mm", "amp_contrast", "df1_A", "df2_A")),
    *(f"ctf/{name}" for name in ("df_angle_rad", "phase_shift_rad", "scale", "scale_const", "shift_A", "tilt_A")),
    *(f"ctf/{name}" for name in ("trefoil_A", "tetra_A", "anisomag", "bfactor")),
    "pick_stats/ncc_score",
)
_NEUTRAL = {
    "scale <f4": 1.0,
    "scale_const <f4": 0.0,
    "shift_A <f4 2": (0.0, 0.0),
    "tilt_A <f4 2": (0.0, 0.0),
    "trefoil_A <f4 2": (0.0, 0.0),
    "tetra_A <f4 4": (0.0,) * 4,
    "anisomag <f4 4": (0.0,) * 4,
    "bfactor <f4": 0.0,
}
_GROUPS = ("location/exp_group_id <u4", "ctf/exp_group_id <u4")
_FURTHER = re.compile(r"(?!uid\Z|blob/|location/|ctf/|pick_stats/)[\w./-]{1,64}\Z", re.ASCII)
_FLIPPED = "rlnCtfDataArePhaseFlipped"
_TEXT_STEP = 16
"""Widths of text are multiples of this, so that few blocks differ."""

_HEADER_BYTES = 9000
"""`numpy.load` refuses headers above 10,000 bytes; columns beyond this are left out."""


class CsTable(Table):
    """A growing table in cryoSPARC's form. Its columns are ``name type`` or ``name type length``."""

    def __init__(self, path: str) -> None:
        self.path = path

    def columns(self, names: Sequence[str]) -> list[str]:
        """cryoSPARC's own order, then the others by name; of one column with several widths the widest."""
        widest: dict[str, str] = {}
        for column in names:
            name = column.partition(" ")[0]
            if name not in widest or _record([column]).itemsize > _record([widest[name]]).itemsize:
                widest[name] = column
        known = [name for name in _ORDER if name in widest]
        ordered = [widest[name] for name in (*known, *sorted(set(widest) - set(known)))]
        while len(ordered) > len(known) and len(str(_record(ordered).descr)) > _HEADER_BYTES:
            del ordered[-1]
        return ordered

    def head(self, columns: Sequence[str], optics: Sequence[Mapping[str, Any]], count: int) -> bytes:  # noqa: ARG002
        """The ``.npy`` header of a table of ``count`` rows."""
        stream = io.BytesIO()
        described = {"descr": _record(columns).descr, "fortran_order": False, "shape": (count,)}
        npy.write_array_header_1_0(stream, described)
        return stream.getvalue()

    def render(self, columns: Sequence[str], rows: StagedRows, optics_group: int | None) -> bytes:
        """One record per row."""
        records = np.zeros(rows.count, _record(columns))
        for column in columns:
            name = column.partition(" ")[0]
            group = column in _GROUPS and optics_group is not None
            values = [optics_group] * rows.count if group else rows.columns[column]
            records[name] = np.array(values, records.dtype[name].base)  # by its type: numpy's own guess rounds uids
        return records.tobytes()

    def adapt(self, block: bytes, have: Sequence[str], want: Sequence[str]) -> bytes:
        """Records with other columns, or wider text; what a record does not have is 0, or empty text."""
        before = np.frombuffer(block, _record(have))
        after = np.zeros(len(before), _record(want))
        for name in set(before.dtype.names or ()) & set(after.dtype.names or ()):
            after[name] = before[name]
        return after.tobytes()


def _record(columns: Sequence[str]) -> np.dtype[np.void]:
    """The type of a row with these columns."""
    fields: list[Any] = []
    for column in columns:
        name, kind, *length = column.split(" ")
        fields.append((name, kind, (int(length[0]),)) if length else (name, kind))
    return np.dtype(fields)


def cs_rows(
    rows: StagedRows,
    table: str,
    *,
    micrograph_shape_px: tuple[int, int] | None,
    micrograph_pixel_size_angstrom: float = 0.0,
    bright_particles: bool,
) -> StagedRows:
    """Rows of a RELION table as rows of a cryoSPARC table.

    Parameters
    ----------
    rows
        With ``rlnImageName`` (``N@stack``), and an optics group with image size and pixel size.
    table
        The table they are for.
    micrograph_shape_px
        (ny, nx); None leaves the places out, as fractions of it cannot be made.
    micrograph_pixel_size_angstrom
        Its own, not that of the movie; 0 where it is not known.
    bright_particles
        Whether the particles' density is positive.
    """
    count, optics, given = rows.count, rows.optics or {}, dict(rows.columns)
    indices, _, paths = zip(*(name.partition("@") for name in given["rlnImageName"]), strict=True)
    side = int(optics["rlnImageSize"])
    made: dict[str, Sequence[Any]] = {
        "uid <u8": [_hash(name) for name in given.pop("rlnImageName")],
        **_text("blob/path", paths),
        "blob/idx <u4": [int(index) - 1 for index in indices],
        "blob/shape <u4 2": [(side, side)] * count,
        "blob/psize_A <f4": [optics["rlnImagePixelSize"]] * count,
        "blob/sign <f4": [-1.0 if bright_particles else 1.0] * count,
        "blob/import_sig <u8": [_import_signature(path) for path in paths],
    }
    made |= _location(given, micrograph_pixel_size_angstrom, micrograph_shape_px, count)
    made |= _ctf(given, optics, count)
    score = numbers(given.get(FIGURE_OF_MERIT, ["none"]))
    if score is not None:
        made["pick_stats/ncc_score <f4"] = score
        del given[FIGURE_OF_MERIT]
    given.pop("rlnOpticsGroup", None)
    if optics.get(_FLIPPED):
        made[f"{_FLIPPED} <u4"] = [1] * count
    for name, values in given.items():
        found = numbers(values) if _FURTHER.match(name) else None
        if found is not None:
            made[f"{name} <f8"] = found
    return StagedRows(table, made, count, rows.optics)


def _location(
    given: dict[str, Sequence[Any]], pixel_angstrom: float, shape_px: tuple[int, int] | None, count: int
) -> dict[str, Sequence[Any]]:
    """The places, where all that they need is known."""
    x, y = (numbers(given.get(f"rlnCoordinate{axis}", ["none"])) for axis in "XY")
    if "rlnMicrographName" not in given or shape_px is None or x is None or y is None:
        return {}
    ny, nx = shape_px
    micrographs = given.pop("rlnMicrographName")
    del given["rlnCoordinateX"], given["rlnCoordinateY"]
    return {
        "location/micrograph_uid <u8": [_hash(name) for name in micrographs],
        "location/exp_group_id <u4": [0] * count,
        **_text("location/micrograph_path", micrographs),
        "location/micrograph_shape <u4 2": [(ny, nx)] * count,
        "location/micrograph_psize_A <f4": [pixel_angstrom] * count,
        "location/center_x_frac <f4": [value / nx for value in x],
        "location/center_y_frac <f4": [1.0 - value / ny for value in y],
    }


def _ctf(given: dict[str, Sequence[Any]], optics: Mapping[str, Any], count: int) -> dict[str, Sequence[Any]]:
    """The CTF, where it is known."""
    u, v, angle = (numbers(given.get(f"rlnDefocus{part}", ["none"])) for part in ("U", "V", "Angle"))
    if u is None or v is None or angle is None:
        return {}
    phase = numbers(given.get("rlnPhaseShift", [0.0] * count)) or [0.0] * count
    for name in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift"):
        given.pop(name, None)
    return {
        **_text("ctf/type", ["imported"] * count),
        "ctf/exp_group_id <u4": [0] * count,
        "ctf/accel_kv <f4": [optics["rlnVoltage"]] * count,
        "ctf/cs_mm <f4": [optics["rlnSphericalAberration"]] * count,
        "ctf/amp_contrast <f4": [optics["rlnAmplitudeContrast"]] * count,
        "ctf/df1_A <f4": u,
        "ctf/df2_A <f4": v,
        "ctf/df_angle_rad <f4": [math.radians(value) for value in angle],
        "ctf/phase_shift_rad <f4": [math.radians(value) for value in phase],
        **{f"ctf/{column}": [value] * count for column, value in _NEUTRAL.items()},
    }


def _bytes(text: str) -> bytes:
    """UTF-8; bytes of a file name that are no text are written out, as in the STAR tables."""
    return text.encode("utf-8", "backslashreplace")


def _text(name: str, values: Sequence[str]) -> dict[str, Sequence[Any]]:
    encoded = [_bytes(value) for value in values]
    width = max(map(len, encoded)) or 1
    return {f"{name} S{-(-width // _TEXT_STEP) * _TEXT_STEP}": encoded}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(_bytes(text), digest_size=8).digest(), "little") or 1


def _import_signature(path: str) -> int:
    return int.from_bytes(hashlib.sha1(_bytes(path), usedforsecurity=False).digest()[:8], "little")
