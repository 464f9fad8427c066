"""crYOLO's ``.cbox``: a STAR file with the boxes of one micrograph in ``data_cryolo``.

``_CoordinateX`` and ``_CoordinateY`` are the corner with the lowest indices, ``_Width`` and ``_Height`` the box that
was asked for, ``_EstWidth`` and ``_EstHeight`` the one that was found; ``<NA>`` stands where nothing is known. Filament
files have one row per box along each filament and its number in ``_filamentid``. Besides there are ``data_global`` with
``_cbox_format_version`` and ``data_cryolo_include`` with the slices of a tomogram (``write_cbox_file`` in crYOLO's
``CoordsIO.py``, version 1.0 of the format). An empty file is a micrograph without particles.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamprep.formats import _plain, star
from streamprep.formats._values import MAX_SINGLE_BYTES
from streamprep.model import FIGURE_OF_MERIT, Entry, InputError, Kind

_BLOCK = "cryolo"
_UNKNOWN = "<NA>"
_HEAD = re.compile(rb"^[ \t]*(?:data_cryolo|_cbox_format_version)[ \t\r]*(?:$|[ \t])", re.MULTILINE)
_OURS = ("CoordinateX", "CoordinateY", "Confidence")


def recognise(path: Path, head: bytes) -> Kind | None:
    """Whether a file is a ``.cbox``: by its block or version, an empty one by its ending."""
    if _HEAD.search(head) or (not head and path.suffix.lower() == ".cbox"):
        return "coordinates"
    return None


def read_entries(path: Path) -> list[Entry]:
    """The boxes in a ``.cbox`` file, those of filaments as points.

    Returns
    -------
    One entry. ``_Confidence`` is its figure of merit, unless a row has none; every other column is kept as text under
    its own name. ``box_size_px`` is the side of the boxes where all are squares of one size.

    Raises
    ------
    InputError
        There is no ``data_cryolo``, a value in it is wrong, or its boxes are of a tomogram.
    """
    if path.stat().st_size == 0:
        return [_plain.entry(None, np.empty((0, 2)), {})]
    loops = [loop for loop in star.read_loops(path, MAX_SINGLE_BYTES) if loop.block == _BLOCK]
    if len(loops) != 1:
        raise InputError(path, f"it has {len(loops)} tables in data_{_BLOCK}; a .cbox file has one")
    loop = loops[0]
    corner = np.stack([loop.floats("CoordinateX"), loop.floats("CoordinateY")], axis=1)
    sizes = np.stack([loop.floats("Width"), loop.floats("Height")], axis=1)
    _plain.check_sizes(path, sizes, np.arange(1, loop.rows + 1), f"data_{_BLOCK}, row")
    if len({value for value in loop.columns.get("CoordinateZ", []) if value != _UNKNOWN}) > 1:
        raise InputError(path, "its boxes are in several slices of a tomogram; micrographs have _CoordinateZ <NA>")
    columns: dict[str, npt.NDArray[Any]] = {
        name: np.array(values, dtype=object) for name, values in loop.columns.items() if name not in _OURS
    }
    if _UNKNOWN in loop.columns.get("Confidence", []):
        columns["Confidence"] = np.array(loop.columns["Confidence"], dtype=object)
    elif "Confidence" in loop:
        columns[FIGURE_OF_MERIT] = loop.floats("Confidence")
    return [_plain.entry(None, corner + sizes / 2, columns, _plain.one_size(sizes))]
