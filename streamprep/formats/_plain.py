"""What the readers of pickers' own files share: text of a bounded size, tables of numbers, names, entries."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from streamprep.formats._values import digest_of, is_number, shown, text_bytes
from streamprep.model import Coordinates, Entry, FloatArray, InputError
from streamprep.naming import stem_of

MAX_SIDE_PX = 1 << 20
"""No box is larger: detectors have thousands of pixels along an axis."""

_LINE = re.compile(r"[^\n]+")


def read_text(path: Path, max_bytes: int | None = None) -> str:
    """The whole file as UTF-8 text, with plain line ends; InputError where it is no text, or too large."""
    data = text_bytes(path, max_bytes)
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(path, f"not a text file: byte {error.start + 1} is not UTF-8") from error


def rows(text: str, first: int = 1, comment: str | None = None) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Lines that hold something, and the number in the file of each; ``first`` is that of the first line to look at."""
    lines: list[str] = []
    numbers, number, end = array("q"), 1, 0
    for found in _LINE.finditer(text):
        number += text.count("\n", end, found.start())
        end, line = found.end(), found[0]
        if number >= first and line[0] != comment and not line.isspace():
            lines.append(line)
            numbers.append(number)
    return lines, np.array(numbers, dtype=np.int64)


def numbers(
    path: Path,
    lines: Sequence[str],
    line_numbers: npt.NDArray[np.int64],
    fields: Sequence[tuple[int, str]],
    delimiter: str | None = None,
) -> FloatArray:
    """Columns of finite numbers from lines that have all the columns.

    Parameters
    ----------
    path
        For messages.
    lines, line_numbers
        As `rows` gives them.
    fields
        Position in the line and name of each column that is wanted.
    delimiter
        What stands between columns; white space where it is None.

    Returns
    -------
    Array of shape (lines, fields).

    Raises
    ------
    InputError
        A value is no finite number: names its line, column and text.
    """
    if not lines:
        return np.empty((0, len(fields)))
    wanted = [position for position, _ in fields]
    try:
        table: FloatArray = np.loadtxt(
            lines, delimiter=delimiter, usecols=wanted, comments=None, ndmin=2, dtype=np.float64
        )
    except ValueError:
        _refuse(path, lines, line_numbers, fields, delimiter)
    if table.shape != (len(lines), len(fields)) or not np.isfinite(table).all():
        _refuse(path, lines, line_numbers, fields, delimiter)
    return table


def _refuse(
    path: Path,
    lines: Sequence[str],
    line_numbers: npt.NDArray[np.int64],
    fields: Sequence[tuple[int, str]],
    delimiter: str | None,
) -> NoReturn:
    for number, line in zip(line_numbers, lines, strict=True):
        values = line.split(delimiter)
        for position, name in fields:
            if position >= len(values) or not is_number(values[position].strip()):
                value = shown(values[position]) if position < len(values) else "missing"
                raise InputError(path, f"line {number}: {name} is {value}, not a number")
    raise InputError(path, "not a readable table of numbers")


def check_sizes(path: Path, sizes: FloatArray, row_numbers: npt.NDArray[np.int64], row: str = "line") -> None:
    """InputError where a box has a negative side, or one that no micrograph has; ``sizes`` is of shape (n, 2)."""
    bad = np.flatnonzero(((sizes < 0) | (sizes > MAX_SIDE_PX)).any(axis=1))
    if len(bad):
        number = row_numbers[bad[0]]
        width, height = sizes[bad[0]].tolist()
        raise InputError(
            path, f"{row} {number}: a box of {width:g} x {height:g} pixels; its sides must be from 0 to {MAX_SIDE_PX}"
        )


def one_size(sizes: FloatArray) -> int | None:
    """The side that all boxes share, where they are squares of one whole size."""
    if not len(sizes):
        return None
    side = float(sizes[0, 0])
    return int(side) if side >= 1 and side.is_integer() and bool((sizes == side).all()) else None


def with_image_ending(name: str) -> str:
    """A micrograph's name that was written without its ending, such that no part of it is taken for one.

    Examples
    --------
    >>> with_image_ending("mic_0001"), with_image_ending("grid.2_mic.0001")
    ('mic_0001', 'grid.2_mic.0001.mrc')
    """
    return name if stem_of(name) == PurePosixPath(name.replace("\\", "/")).name else f"{name}.mrc"


def entry(
    micrograph: str | None, xy_px: FloatArray, columns: dict[str, npt.NDArray[Any]], box_size_px: int | None = None
) -> Entry:
    """Coordinates of one micrograph, with the digest of their values."""
    data = Coordinates(xy_px=xy_px, box_size_px=box_size_px, columns=columns)
    return Entry(micrograph, digest_of(xy_px, columns, box_size_px), data)
