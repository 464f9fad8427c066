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

from streamprep.model import Coordinates, Ctf, Entry, FloatArray, InputError, Kind, ParticleRows

MAX_BYTES = 4 << 30
_PLAIN = re.compile(r"(?!['\"_$\[;]|data_|save_|(?:loop_|stop_|global_|[.?])\Z)[!\"$-~]+\Z", re.IGNORECASE)
"""Text that needs no quotes: printable ASCII that is no key word. gemmi takes no other, starfile cuts lines at a #."""

_COLUMN = re.compile(rb"^\s*_rln(?:Coordinate|Defocus|ImageName)", re.MULTILINE)

PHASE_FLIPPED = "rlnCtfDataArePhaseFlipped"
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
    """What a STAR file says about micrographs: their coordinates, or their CTF; and about stacks: their rows.

    A table of particles says both where each was picked and which image it is.

    Raises
    ------
    InputError
        It holds neither, or a value in it is not a number.
    """
    loops = read_loops(path)
    entries: list[Entry] = []
    known = False
    optics = next((loop for loop in loops if loop.block == "optics"), None)
    for loop in loops:
        named = any("@" in name for name in loop.columns.get("rlnImageName", ()))
        if named:
            entries += _particle_rows(loop, optics)
        if "rlnCoordinateX" in loop or "rlnCoordinateY" in loop:
            entries += _coordinates(loop)
        elif not named and "rlnDefocusU" in loop and ("rlnMicrographName" in loop or "rlnMicrographNameNoDW" in loop):
            entries += _ctfs(loop, optics)
        elif not named:
            continue
        known = True
    if not known:
        names = ", ".join("_" + name for loop in loops for name in list(loop.columns)[:6])
        raise InputError(
            path,
            "neither coordinates (_rlnCoordinateX, _rlnCoordinateY) nor the CTF of micrographs (_rlnMicrographName, "
            f"_rlnDefocusU) nor the images of stacks (_rlnImageName) are in it; its columns are {names}",
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


def _particle_rows(loop: Loop, optics: Loop | None) -> Iterable[Entry]:
    """The rows of each stack that a table of particles names.

    Shifts in pixels, as RELION wrote them before 3.1, become shifts in Å, where the pixel size is known: later versions
    do not look at the others.
    """
    stacks, index = image_names(loop.path, loop.columns["rlnImageName"], "_rlnImageName")
    groups = _optics_rows(loop, optics)
    ctfs = _loop_ctfs(loop, optics) if all(name in loop for name in CTF_COLUMNS) else None
    pixel_size = _pixel_sizes(loop, optics)
    flipped = _of_groups(loop, optics, PHASE_FLIPPED)
    xy = None
    if "rlnCoordinateX" in loop and "rlnCoordinateY" in loop:
        xy = np.stack([loop.floats("rlnCoordinateX"), loop.floats("rlnCoordinateY")], axis=1)
    elsewhere = {"rlnImageName", "rlnOpticsGroup"}
    if xy is not None:
        elsewhere |= {"rlnCoordinateX", "rlnCoordinateY"}
    if ctfs is not None:
        elsewhere |= {*CTF_COLUMNS}
    columns: dict[str, npt.NDArray[Any]] = {
        name: np.array(values, dtype=object) for name, values in loop.columns.items() if name not in elsewhere
    }
    for old in ("rlnOriginX", "rlnOriginY"):
        if old in columns and f"{old}Angst" not in columns and pixel_size is not None:
            columns[f"{old}Angst"] = loop.floats(old) * pixel_size
            del columns[old]
    for stack, rows in stacks:
        yield rows_entry(
            stack,
            ParticleRows(
                index[rows],
                None if xy is None else Coordinates(xy[rows]),
                None if ctfs is None else tuple(ctfs[row] for row in rows.tolist()),
                None if pixel_size is None else pixel_size[rows],
                None if flipped is None else flipped[rows] != 0,
                {name: values[rows] for name, values in columns.items()},
                tuple(groups[row] for row in rows.tolist()) if groups else (),
            ),
        )


_IMAGE_NAME = re.compile(r"([0-9]{1,12})@(.+)", re.DOTALL)


def image_names(
    path: Path, names: Sequence[str], column: str
) -> tuple[list[tuple[str, npt.NDArray[np.int64]]], npt.NDArray[np.int64]]:
    """Split image names, as ``000001@stack.mrcs``.

    Parameters
    ----------
    path, column
        For messages.
    names
        One per row.

    Returns
    -------
    stacks
        Each stack's name, in order of first appearance, and its rows.
    index
        Number of each row's image in its stack, from 0.

    Raises
    ------
    InputError
        A name is of another form, or its number is 0.
    """
    rows: dict[str, list[int]] = {}
    index = np.empty(len(names), np.int64)
    for row, name in enumerate(names):
        found = _IMAGE_NAME.fullmatch(name)
        if found is None or not int(found[1]):
            said = repr(name if len(name) <= 60 else f"{name[:57]}...")
            raise InputError(path, f"row {row + 1}: {column} is {said}; it must be NUMBER@FILE, with numbers from 1")
        index[row] = int(found[1]) - 1
        rows.setdefault(found[2], []).append(row)
    return [(stack, np.array(members)) for stack, members in rows.items()], index


def rows_entry(stack: str, rows: ParticleRows) -> Entry:
    """The rows of one stack, with the digest of all that they say."""
    xy = None if rows.coordinates is None else rows.coordinates.xy_px.tolist()
    pixel = None if rows.pixel_size_angstrom is None else rows.pixel_size_angstrom.tolist()
    flipped = None if rows.phase_flipped is None else rows.phase_flipped.tolist()
    columns = [(name, rows.columns[name].tolist()) for name in sorted(rows.columns)]
    groups = [sorted(group.items()) for group in rows.optics_columns]
    return Entry(stack, digest_of(rows.image_index.tolist(), xy, rows.ctf, pixel, flipped, columns, groups), rows)


def _group_of_rows(loop: Loop, optics: Loop) -> list[int]:
    """Row of data_optics that each row of a table belongs to; the first where the table does not say."""
    numbers = {name: row for row, name in enumerate(optics.columns.get("rlnOpticsGroup", ["1"] * optics.rows))}
    named = loop.columns.get("rlnOpticsGroup", [next(iter(numbers), "1")] * loop.rows)
    unknown = next((name for name in named if name not in numbers), None)
    if unknown is not None:
        raise InputError(loop.path, f"row {named.index(unknown) + 1}: optics group {unknown} is not in data_optics")
    return [numbers[name] for name in named]


def _of_groups(loop: Loop, optics: Loop | None, column: str) -> FloatArray | None:
    """A column of numbers: the row's own, else those of its optics group, else None."""
    if column in loop:
        return loop.floats(column)
    if optics is None or column not in optics:
        return None
    return optics.floats(column)[_group_of_rows(loop, optics)]


def _optics_rows(loop: Loop, optics: Loop | None) -> list[Mapping[str, str]]:
    """All that data_optics says of each row's group but its number; rows of one group share it."""
    if optics is None or not optics.rows:
        return []
    said = [
        {name: values[row] for name, values in optics.columns.items() if name != "rlnOpticsGroup"}
        for row in range(optics.rows)
    ]
    return [said[row] for row in _group_of_rows(loop, optics)]


def _pixel_sizes(loop: Loop, optics: Loop | None) -> FloatArray | None:
    """Pixel size of each row's image [Å]; before RELION 3.1, detector pixel [µm] over magnification."""
    for column in ("rlnImagePixelSize", "rlnPixelSize"):
        found = _of_groups(loop, optics, column)
        if found is not None:
            break
    else:
        if not ("rlnDetectorPixelSize" in loop and "rlnMagnification" in loop):
            return None
        magnification = loop.floats("rlnMagnification")
        found = np.divide(
            1e4 * loop.floats("rlnDetectorPixelSize"), magnification, out=np.zeros(loop.rows), where=magnification != 0
        )
    bad = np.flatnonzero(~((found > 0) & (found < 1e6)))
    if len(bad):
        raise InputError(
            loop.path, f"row {bad[0] + 1}: its pixel size is {found[bad[0]]:g} Å; it must be above 0 and below 1e6"
        )
    return found


def _loop_ctfs(loop: Loop, optics: Loop | None) -> list[Ctf]:
    """The CTF of each row. Microscope constants: the row's own columns, else those of its optics group."""
    columns = [loop.floats(name) for name in CTF_COLUMNS]
    columns.append(loop.floats("rlnPhaseShift") if "rlnPhaseShift" in loop else np.zeros(loop.rows))
    constants: dict[str, FloatArray] = {}
    for column, field in _OPTICS_COLUMNS.items():
        found = _of_groups(loop, optics, column)
        if found is not None:
            constants[field] = found
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
