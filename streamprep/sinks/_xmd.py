"""Growing Xmipp tables (``.xmd``): the rows of a particle table under Xmipp's own labels.

Columns without an Xmipp label keep their RELION name, so nothing is lost: the exact centres beside the whole pixels of
``_xcoor`` and ``_ycoor``, pixel sizes and what else was known. ``_samplingRate`` is no column of particles: Xmipp's
programs take it as an option. Rows have no ``_itemId``, and lose one that they came with: a number that stays a row's
own while others are replaced, and that no row of another table has, does not exist.

Orientations. Xmipp's shifts are in pixels. With tilted views (``rlnAngleRot``, ``rlnAngleTilt``) shifts and angles are
RELION's own. Without them both programs turn the image in its plane, by angles of opposite sign, and RELION shifts
before it turns, Xmipp after; so with psi and (ox, oy) of RELION: anglePsi = -psi, shiftX = ox cos psi - oy sin psi,
shiftY = ox sin psi + oy cos psi.

Source: Xmipp's list of labels (``metadata_label.h``: MDL_CTF_PHASE_SHIFT is ``ctfVPPphaseshift``), its
``geo2TransformationMatrix`` (translation · rotation) and ``rotation2DMatrix``; the signs as in Scipion's converters of
Xmipp and RELION (``alignmentToRow``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamprep.formats import xmipp
from streamprep.hookspecs import StagedRows
from streamprep.model import FIGURE_OF_MERIT
from streamprep.sinks._tables import TextTable, numbers

LABELS: Mapping[str, str] = {
    "rlnImageName": "image",
    "rlnMicrographName": "micrograph",
    "rlnVoltage": "ctfVoltage",
    "rlnDefocusU": "ctfDefocusU",
    "rlnDefocusV": "ctfDefocusV",
    "rlnDefocusAngle": "ctfDefocusAngle",
    "rlnSphericalAberration": "ctfSphericalAberration",
    "rlnAmplitudeContrast": "ctfQ0",
    "rlnPhaseShift": "ctfVPPphaseshift",
    FIGURE_OF_MERIT: "cost",
}
"""RELION's column → Xmipp's label of the same quantity in the same unit."""

_ANGLES = {"rlnAngleRot": "angleRot", "rlnAngleTilt": "angleTilt", "rlnAnglePsi": "anglePsi"}
_PLACES = {"xcoor": "rlnCoordinateX", "ycoor": "rlnCoordinateY"}
_SHIFTS = ("rlnOriginXAngst", "rlnOriginYAngst")
_NAMES = ("image", "micrograph")
_LEADING = ("enabled", *_NAMES, *_PLACES, *(label for label in LABELS.values() if label not in _NAMES))
_NOT_OF_ROWS = ("rlnOpticsGroup", "rlnImageSize", "rlnImageDimensionality", "itemId")


class XmdTable(TextTable):
    """A growing table in Xmipp's form."""

    leading = (*_LEADING, "shiftX", "shiftY", *_ANGLES.values())

    def head(self, columns: Sequence[str], optics: Sequence[Mapping[str, Any]], count: int) -> bytes:  # noqa: ARG002
        """Everything before the first row."""
        names = "".join(f" _{name}\n" for name in columns)
        return f"# XMIPP_STAR_1 * \n# \ndata_particles\nloop_\n{names}".encode()


def xmd_rows(rows: StagedRows, table: str) -> StagedRows:
    """Rows of a RELION table as rows of an Xmipp table, each with the constants of its optics group."""
    given = dict(rows.columns) | {name: [value] * rows.count for name, value in (rows.optics or {}).items()}
    given = {name: values for name, values in given.items() if name not in _NOT_OF_ROWS}
    made: dict[str, Sequence[Any]] = {"enabled": [1] * rows.count}
    for label, name in _PLACES.items():
        centres = numbers(given.get(name, ["none"]))
        if centres is not None:
            made[label] = xmipp.whole_pixels(centres)
    made |= _alignment(given)
    made |= {LABELS[name]: given.pop(name) for name in LABELS if name in given}
    return StagedRows(table, given | made, rows.count)


def _alignment(given: dict[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Shifts and angles in Xmipp's convention; the columns they are made of are taken out of ``given``."""
    made: dict[str, Sequence[Any]] = {}
    psi = None
    if "rlnAngleRot" in given or "rlnAngleTilt" in given:
        made = {label: given.pop(name) for name, label in _ANGLES.items() if name in given}
    elif "rlnAnglePsi" in given:
        psi = numbers(given["rlnAnglePsi"])
        if psi is None:
            return {}
        del given["rlnAnglePsi"]
        made["anglePsi"] = [-value or 0.0 for value in psi]
    x, y, pixel = (numbers(given.get(name, ["none"])) for name in (*_SHIFTS, "rlnImagePixelSize"))
    if x is None or y is None or pixel is None:
        return made
    for name in _SHIFTS:
        del given[name]
    shift_x, shift_y = np.array(x) / pixel, np.array(y) / pixel
    angle = np.deg2rad(psi or np.zeros(len(x)))
    made["shiftX"] = (shift_x * np.cos(angle) - shift_y * np.sin(angle)).tolist()
    made["shiftY"] = (shift_x * np.sin(angle) + shift_y * np.cos(angle)).tolist()
    return made
