"""RELION STAR tables: reading through gemmi, writing in RELION 3.1's form."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import numpy.typing as npt

from streamprep.model import Coordinates, Ctf, Entry, FloatArray, InputError, Kind

MAX_BYTES = 4 << 30
_PLAIN = re.compile(r"(?!['\"_$\[;]|data_|save_|(?:loop_|stop_|global_|[.?])\Z)[!\"$-~]+\Z", re.IGNORECASE)
"""Text that needs no quotes: printable ASCII that is no key word. gemmi takes no other, starfile cuts lines at a #."""

_COLUMN = re.compile(rb"^\s*_rln(?:Coordinate|Defocus)", re.MULTILINE)

CTF_COLUMNS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
_OPTICS_COLUMNS = {
    "rlnVoltage": "voltage_kv",
    "rlnSphericalAberration": "spherical_aberration_mm",
    "rlnAmplitudeContrast": "amplitude_contrast",
}


def recognise(path: Path, head: bytes) -> Kind | None:
    """Coordinates (or CTF: reading it tells) where the ending is STAR's, or RELION's columns are in the head."""
    return "coordinates" if path.suffix.lower() == ".star" or _COLUMN.search(head) else None


class Loop:
    """One table of a STAR file: columns of text by name, without the leading underscore."""

    def __init__(self, path: Path, block: str, columns: dict[str, list[str]], rows: int) -> None:
        self.path, self.block, self.columns, self.rows = path, block, columns, rows

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def text(self, name: str) -> list[str]:
        """A column as text; InputError where it is missing."""
        if name not in self.columns:
            raise InputError(self.path, f"table data_{self.block} has no column _{name}")
        return self.columns[name]

    def floats(self, name: str) -> FloatArray:
        """A column as finite numbers; InputError names the first row that is none."""
        values = self.text(name)
        try:
            numbers = np.array(values, dtype=np.float64)
        except ValueError:
            numbers = np.array([_number(value) for value in values])
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            raise InputError(
                self.path,
                f"row {bad[0] + 1} of data_{self.block}: _{name} is {values[bad[0]]!r}, not a number",
            )
        return numbers


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return float("nan")


def read_loops(path: Path) -> list[Loop]:
    """Every table of a STAR file, in order.

    Single ``_name value`` pairs of a block make a table with one row, as RELION reads them.

    Raises
    ------
    InputError
        The file is empty, too large, or not a STAR file.
    """
    size = path.stat().st_size
    if size == 0:
        raise InputError(path, "the file is empty; a STAR file needs at least a data_ line and a loop_")
    if size > MAX_BYTES:
        raise InputError(path, f"the table has {size} bytes; the most that is read is {MAX_BYTES}")
    try:
        document = gemmi.cif.read_string(path.read_bytes())  # not by name: a name need not be UTF-8
    except (ValueError, RuntimeError, UnicodeError) as error:
        said = re.sub(r"^(?:data|string):(\d+)[^ ]*: *", r"line \1: ", str(error)) or type(error).__name__
        raise InputError(path, f"not a readable STAR file: {said}") from error
    loops = []
    try:
        for block in document:
            pairs: dict[str, list[str]] = {}
            for item in block:
                if item.loop is not None:
                    tags = [tag[1:] for tag in item.loop.tags]
                    width, values = len(tags), [gemmi.cif.as_string(value) for value in item.loop.values]
                    columns = {tag: values[index::width] for index, tag in enumerate(tags)}
                    loops.append(Loop(path, block.name.strip(), columns, len(values) // width))
                elif item.pair is not None:
                    pairs[item.pair[0][1:]] = [gemmi.cif.as_string(item.pair[1])]
            if pairs:
                loops.append(Loop(path, block.name.strip(), pairs, 1))
    except UnicodeError as error:
        raise InputError(path, f"not a readable STAR file: {error}") from error
    if not loops:
        raise InputError(path, "the file holds no table; a STAR file needs a loop_ with column names")
    return loops


def read_entries(path: Path) -> list[Entry]:
    """What a STAR file says about micrographs: their coordinates, or their CTF.

    Raises
    ------
    InputError
        It holds neither, or a value in it is not a number.
    """
    loops = read_loops(path)
    entries: list[Entry] = []
    known = False
    for loop in loops:
        if "rlnCoordinateX" in loop or "rlnCoordinateY" in loop:
            entries += _coordinates(loop)
        elif "rlnDefocusU" in loop and ("rlnMicrographName" in loop or "rlnMicrographNameNoDW" in loop):
            optics = next((other for other in loops if other.block == "optics"), None)
            entries += _ctfs(loop, optics)
        else:
            continue
        known = True
    if not known:
        names = ", ".join("_" + name for loop in loops for name in list(loop.columns)[:6])
        raise InputError(
            path,
            "neither coordinates (_rlnCoordinateX, _rlnCoordinateY) nor the CTF of micrographs (_rlnMicrographName, "
            f"_rlnDefocusU) are in it; its columns are {names}",
        )
    return entries


def _groups(loop: Loop, name: str) -> Iterable[tuple[str | None, npt.NDArray[np.int64]]]:
    """Rows of each micrograph, in order of first appearance; one group without a name where no column has it."""
    if name not in loop:
        yield None, np.arange(loop.rows)
        return
    rows: dict[str, list[int]] = {}
    for index, value in enumerate(loop.columns[name]):
        rows.setdefault(value, []).append(index)
    for value, indices in rows.items():
        yield value, np.array(indices)


def digest_of(*parts: Any) -> str:
    """A digest of values that changes when any of them does."""
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _coordinates(loop: Loop) -> Iterable[Entry]:
    xy = np.stack([loop.floats("rlnCoordinateX"), loop.floats("rlnCoordinateY")], axis=1)
    further = {
        name: np.array(values, dtype=object)
        for name, values in loop.columns.items()
        if name not in ("rlnCoordinateX", "rlnCoordinateY", "rlnMicrographName", "rlnOpticsGroup")
    }
    for micrograph, rows in _groups(loop, "rlnMicrographName"):
        columns = {name: values[rows] for name, values in further.items()}
        data = Coordinates(xy_px=xy[rows], columns=columns)
        digest = digest_of(xy[rows].tolist(), [(name, columns[name].tolist()) for name in sorted(columns)])
        yield Entry(micrograph, digest, data)


def _ctfs(loop: Loop, optics: Loop | None) -> Iterable[Entry]:
    name_column = "rlnMicrographName" if "rlnMicrographName" in loop else "rlnMicrographNameNoDW"
    for micrograph, ctf in zip(loop.text(name_column), _loop_ctfs(loop, optics), strict=True):
        yield Entry(micrograph, digest_of(ctf), ctf)


def _loop_ctfs(loop: Loop, optics: Loop | None) -> list[Ctf]:
    """The CTF of each row. Microscope constants: the row's own columns, else those of its optics group."""
    columns = [loop.floats(name) for name in CTF_COLUMNS]
    columns.append(loop.floats("rlnPhaseShift") if "rlnPhaseShift" in loop else np.zeros(loop.rows))
    constants: dict[str, FloatArray] = {}
    for column, field in _OPTICS_COLUMNS.items():
        if column in loop:
            constants[field] = loop.floats(column)
        elif optics is not None and column in optics:
            groups = dict(zip(optics.columns.get("rlnOpticsGroup", ["1"]), optics.floats(column), strict=False))
            named = loop.columns.get("rlnOpticsGroup", [next(iter(groups), "1")] * loop.rows)
            unknown = next((name for name in named if name not in groups), None)
            if unknown is not None:
                raise InputError(
                    loop.path, f"row {named.index(unknown) + 1}: optics group {unknown} is not in data_optics"
                )
            constants[field] = np.array([groups[name] for name in named])
    values = np.stack(columns, axis=1).tolist()
    return [
        Ctf(*row, **{field: float(numbers[index]) for field, numbers in constants.items()})
        for index, row in enumerate(values)
    ]


def read_particle_ctf(path: Path, count: int) -> tuple[Ctf, ...]:
    """The CTF of each image of a stack, from a particle table.

    Rows are put in the order of the image numbers (``000001@stack.mrcs``) where the table has them.

    Raises
    ------
    InputError
        There is no table with CTF columns, or it has another number of rows than the stack has images.
    """
    loops = read_loops(path)
    loop = next((found for found in loops if all(name in found for name in CTF_COLUMNS)), None)
    if loop is None:
        raise InputError(path, f"no table in it has the columns {', '.join('_' + name for name in CTF_COLUMNS)}")
    if loop.rows != count:
        raise InputError(path, f"it has {loop.rows} rows, the stack {count} images; they must be equal")
    order = list(range(count))
    if "rlnImageName" in loop:
        numbers = [_number(name.partition("@")[0]) for name in loop.columns["rlnImageName"]]
        if sorted(numbers) != list(range(1, count + 1)):
            raise InputError(path, f"its _rlnImageName column does not number the images from 1 to {count}")
        order = sorted(order, key=lambda row: numbers[row])
    ctfs = _loop_ctfs(loop, next((found for found in loops if found.block == "optics"), None))
    return tuple(ctfs[row] for row in order)


# --- writing ---------------------------------------------------------------------------------------------------------


def format_value(value: Any) -> str:
    """A value as STAR text: whole numbers plain, others with six decimals, text quoted where it must be."""
    if isinstance(value, str):
        if _PLAIN.match(value):
            return value
        value = value.encode("utf-8", "backslashreplace").decode()  # bytes of a file name that are no text
        cleaned = " ".join(value.split()) or "None"
        if _PLAIN.match(cleaned):
            return cleaned
        return f'"{cleaned}"' if '"' not in cleaned else f"'{cleaned.replace(chr(39), chr(34))}'"
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, int | np.integer):
        return str(value)
    return f"{float(value):.6f}"


def rows_text(columns: Sequence[Sequence[Any]]) -> str:
    """Rows of a loop, one line each, from columns of equal length."""
    formatted = [[format_value(value) for value in column] for column in columns]
    return "".join(" ".join(row) + "\n" for row in zip(*formatted, strict=True))


def loop_head(block: str, columns: Sequence[str]) -> str:
    """The beginning of a table, up to its first row."""
    names = "".join(f"_{name} #{number}\n" for number, name in enumerate(columns, start=1))
    return f"\ndata_{block}\n\nloop_\n{names}"


def table_text(block: str, columns: Mapping[str, Sequence[Any]]) -> str:
    """A whole table."""
    return loop_head(block, list(columns)) + rows_text(list(columns.values()))


_TOKEN = re.compile(r"\"[^\"]*\"|'[^']*'|\S+")


def split_row(line: str) -> list[str]:
    """The values of a row that `rows_text` wrote, quotes kept."""
    return _TOKEN.findall(line)
