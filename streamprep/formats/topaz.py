"""Topaz's coordinate tables: tab-separated text with one row per particle, of any number of micrographs.

The first line names the columns: ``image_name``, ``x_coord``, ``y_coord`` and, after picking, ``score``
(``read_coordinates`` and ``write_coordinates`` in Topaz's ``utils/files.py``). Coordinates are centres in pixels of the
image that Topaz saw. ``image_name`` is the file name without its last ending; a dot that is left belongs to the name.
The score is the logarithm of the odds, so it may be negative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamprep.formats import _plain
from streamprep.formats._values import beginning, groups, shown
from streamprep.model import FIGURE_OF_MERIT, Entry, InputError, Kind

MAX_COLUMNS = 1024
_NEEDED = ("image_name", "x_coord", "y_coord")


def recognise(path: Path, head: bytes) -> Kind | None:  # noqa: ARG001
    """Whether a file is a table of Topaz: by the names of its columns."""
    names = head.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].rstrip(b"\r").split(b"\t")
    return "coordinates" if all(name.encode() in names for name in _NEEDED) else None


def read_entries(path: Path) -> list[Entry]:
    """The coordinates of each micrograph, in order of first appearance.

    Returns
    -------
    One entry per micrograph; none for a table without rows, which names no micrograph. The score is the figure of
    merit; columns that Topaz does not write are kept as text.

    Raises
    ------
    InputError
        Names the line, the column and the value that is wrong.
    """
    start = beginning(path)
    if start is not None:  # what is no table is refused by its beginning
        _understood(path, start.decode("utf-8", "replace"))
    return _understood(path, _plain.read_text(path))


def _understood(path: Path, text: str) -> list[Entry]:
    first = text.partition("\n")[0]
    header = first.split("\t")
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        raise InputError(path, f"line 1: no column {missing[0]}; a table of Topaz begins with {', '.join(_NEEDED)}")
    if len(header) > MAX_COLUMNS:
        raise InputError(path, f"line 1: it names {len(header)} columns; the most that is read is {MAX_COLUMNS}")
    if len(set(header)) != len(header):
        raise InputError(path, f"line 1: two columns have one name: {shown(first)}")
    if "z_coord" in header:
        raise InputError(path, "line 1: the column z_coord belongs to a tomogram; only micrographs are read")
    lines, line_numbers = _plain.rows(text, first=2)
    width = len(header)
    torn = next((index for index, line in enumerate(lines) if line.count("\t") != width - 1), None)
    if torn is not None:
        raise InputError(
            path,
            f"line {line_numbers[torn]}: {lines[torn].count(chr(9)) + 1} columns, where line 1 names {width}: "
            f"{shown(lines[torn])}",
        )
    ours = [*_NEEDED[1:], *(["score"] if "score" in header else [])]
    table = _plain.numbers(path, lines, line_numbers, [(header.index(name), name) for name in ours], "\t")
    rows = groups(_cells(lines, header.index("image_name")))
    empty = next(((name, indices[0]) for name, indices in rows if not name.strip()), None)
    if empty is not None:
        raise InputError(path, f"line {line_numbers[empty[1]]}: image_name is {shown(empty[0])}, not a name")
    further = {
        name: np.array(list(_cells(lines, header.index(name))), dtype=object)
        for name in header
        if name not in ("image_name", *ours)
    }
    entries = []
    for name, indices in rows:
        columns: dict[str, npt.NDArray[Any]] = {column: values[indices] for column, values in further.items()}
        if "score" in header:
            columns[FIGURE_OF_MERIT] = table[indices, 2]
        entries.append(_plain.entry(_plain.with_image_ending(name), table[indices, :2], columns))
    return entries


def _cells(lines: Sequence[str], column: int) -> Iterator[str]:
    """A column of tab-separated lines, one value after the other: all of them at once take far more than their text."""
    return (line.split("\t", column + 1)[column] for line in lines)
