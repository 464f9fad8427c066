"""EMAN's coordinates: ``.box`` files of EMAN 1 and what writes like it, and the ``info/*_info.json`` of EMAN2.

A ``.box`` file has one box per line, columns separated by white space: x and y of the corner with the lowest
indices, width, height, all in pixels, and sometimes a fifth column. There crYOLO, which exports the format, puts its
confidence; EMAN 1 puts marks, -3 for a particle and -1, -2 by turns for the two ends of a helix. EMAN2 skips lines
that begin with # (``e2import.py``). An empty file is a micrograph without particles.

An ``info`` file has one JSON object per micrograph. Its ``boxes`` are lists of the centre's x and y in pixels, a tag
such as "manual", and in some versions a score. EMAN2 names the file ``<micrograph>_info.json`` (``info_name`` in
``EMAN2.py``); its other entries (``boxes_rct``, ``boxes_3d``, ``ctf``, ``quality``…) are not read.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamprep.formats import _plain
from streamprep.formats._values import MAX_SINGLE_BYTES, is_number, shown
from streamprep.model import FIGURE_OF_MERIT, Coordinates, Entry, FloatArray, InputError, Kind

MAX_INFO_BYTES = 8 << 20
"""Parsed JSON takes up to 25 times the space of its text; info files have kilobytes."""

_BOX_COLUMNS = ("x", "y", "width", "height", "the score")
_BOXES = re.compile(rb'"boxes"\s*:\s*\[\s*[\[\]]')
_PARTICLE_MARK, _HELIX_MARKS = -3.0, (-1.0, -2.0)
_INFO = "_info"
INFO_ENDING = f"{_INFO}.json"


def recognise(path: Path, head: bytes) -> Kind | None:
    """Whether a file holds coordinates of EMAN.

    JSON is told by its ``boxes``. A ``.box`` file is told by its ending and a number where the first value stands;
    numbers alone could be anything.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    ending = path.suffix.lower()
    if text.startswith(b"{"):
        cut = len(head) >= 4096 and path.stem.endswith(_INFO) and ending == ".json"  # boxes may come later
        return "coordinates" if cut or _BOXES.search(text) else None
    if ending != ".box":
        return None
    values = next((line.split() for line in text.splitlines() if line.strip() and line[:1] != b"#"), None)
    if values is None:
        return "coordinates"
    return "coordinates" if is_number(values[0].decode("latin-1")) else None


def read_entries(path: Path) -> list[Entry]:
    """The coordinates in a ``.box`` file or an ``info`` file of EMAN2.

    Returns
    -------
    One entry. None for an ``info`` file without ``boxes``, in which nothing was picked yet. ``box_size_px`` is the
    side of the boxes of a ``.box`` file where all are squares of one size.

    Raises
    ------
    InputError
        Names the line or box, and what is wrong in it.
    """
    text = _plain.read_text(path, MAX_SINGLE_BYTES)
    if path.suffix.lower() == ".box" and not text.lstrip().startswith("{"):
        return _box(path, text)
    size = path.stat().st_size
    if size > MAX_INFO_BYTES:
        raise InputError(path, f"the file has {size} bytes; the most that is read is {MAX_INFO_BYTES}")
    return _info(path, text)


def _box(path: Path, text: str) -> list[Entry]:
    lines, line_numbers = _plain.rows(text, comment="#")
    widths = [len(line.split()) for line in lines]
    width = widths[0] if widths else 4
    bad = next((index for index, found in enumerate(widths) if found != width or found not in (4, 5)), None)
    if bad is not None:
        allowed = "4 or 5 (x, y, width, height, score)" if bad == 0 else f"{width} as in the lines before it"
        raise InputError(
            path,
            f"line {line_numbers[bad]}: {widths[bad]} columns, where a box has {allowed}: {shown(lines[bad].strip())}",
        )
    table = _plain.numbers(path, lines, line_numbers, list(enumerate(_BOX_COLUMNS[:width])))
    sizes = table[:, 2:4]
    _plain.check_sizes(path, sizes, line_numbers)
    columns: dict[str, npt.NDArray[Any]] = {}
    if width == 5:
        marks = table[:, 4]
        if len(marks) and len(marks) % 2 == 0 and (marks.reshape(-1, 2) == _HELIX_MARKS).all():
            raise InputError(
                path,
                f"line {line_numbers[0]}: the fifth column is -1 and -2 by turns, which "
                "marks the ends of helices; write one box per segment",
            )
        if not (marks == _PARTICLE_MARK).all():
            columns[FIGURE_OF_MERIT] = marks
    return [_plain.entry(None, table[:, :2] + sizes / 2, columns, _plain.one_size(sizes))]


def box_text(coordinates: Coordinates, box_size_px: int) -> str:
    """Coordinates of one micrograph as a ``.box`` file: corner x, corner y, width, height; whole pixels, as in EMAN 1.

    The corner is the pixel nearest to centre - size / 2, so the centre that is read back, corner + size / 2, is at
    most half a pixel away.
    """
    corners = np.floor(coordinates.xy_px - box_size_px / 2 + 0.5)
    return "".join(f"{x:.0f}\t{y:.0f}\t{box_size_px}\t{box_size_px}\n" for x, y in (corners + 0.0).tolist())


def _info(path: Path, text: str) -> list[Entry]:
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise InputError(path, "not a readable JSON file: it is nested too deeply") from error
    except ValueError as error:
        raise InputError(path, f"not a readable JSON file: {error}") from error
    if not isinstance(document, dict):
        raise InputError(path, "not an info file of EMAN2: it holds no JSON object")
    if "boxes" not in document:
        return []
    boxes = document["boxes"]
    if not isinstance(boxes, list):
        raise InputError(path, f"boxes is {_kind(boxes)}, not a list of [x, y, tag]")
    for number, box in enumerate(boxes, start=1):
        if not isinstance(box, list) or len(box) < 2 or (len(box) > 2 and not isinstance(box[2], str)):
            raise InputError(path, f"row {number} of boxes is {_kind(box)}, not [x, y, tag]")
    xy = np.stack([_values(path, boxes, 0, "x"), _values(path, boxes, 1, "y")], axis=1)
    columns: dict[str, npt.NDArray[Any]] = {}
    if boxes and all(len(box) > 2 for box in boxes):
        columns["emanTag"] = np.array([box[2] for box in boxes], dtype=object)
    if boxes and all(len(box) > 3 for box in boxes):
        columns[FIGURE_OF_MERIT] = _values(path, boxes, 3, "the score")
    named = path.stem.endswith(_INFO) and path.stem != _INFO
    return [_plain.entry(_plain.with_image_ending(path.stem.removesuffix(_INFO)) if named else None, xy, columns)]


def _values(path: Path, boxes: list[list[Any]], position: int, name: str) -> FloatArray:
    values = [box[position] for box in boxes]
    if {type(value) for value in values} <= {int, float}:
        try:
            found = np.array(values, dtype=np.float64)
        except OverflowError:
            found = np.array([_finite(value) for value in values])
    else:
        found = np.array([_finite(value) for value in values])
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        value = values[bad[0]]
        raise InputError(path, f"row {bad[0] + 1} of boxes: {name} is {_kind(value)}, not a number")
    return found


def _finite(value: Any) -> float:
    try:
        return float(value) if type(value) in (int, float) else float("nan")
    except OverflowError:
        return float("nan")


def _kind(value: Any) -> str:
    """What a JSON value is, without the whole of it: it may be deep or large."""
    if isinstance(value, list):
        return f"a list of {len(value)} values"
    if isinstance(value, dict):
        return "an object"
    if type(value) is int and value.bit_length() > 1024:
        return "a number of too many digits"
    return shown(value)
