"""RELION STAR tables: reading through gemmi, writing in RELION 3.1's form."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import gemmi
import numpy as np
import numpy.typing as npt

from streamprep.formats._ctf import checked_ctfs
from streamprep.formats._values import MAX_SINGLE_BYTES, as_numbers, beginning, digest_of, groups, shown, text_bytes
from streamprep.model import (
    MICROSCOPE_COLUMNS,
    Coordinates,
    Ctf,
    Entry,
    FloatArray,
    InputError,
    Kind,
    ParticleRows,
)

MAX_TABLES = 4096
MAX_COLUMNS = 4096
"""Of a block, and more than any program writes; gemmi's tables have their price each."""
_BOUNDS = {
    b"\ndata_": (MAX_TABLES, "data_ blocks"),
    b"\nloop_": (MAX_TABLES, "tables"),
    b"\n_": (16 * MAX_COLUMNS, "names of columns"),
}
_LINES_OF_A_ROW = 16
_UNEVEN = ": a row has too few or too many values; it may be cut off, or a value with blanks in it lacks its quotes"
_PLAIN = re.compile(r"(?!['\"_$\[;]|data_|save_|(?:loop_|stop_|global_|[.?])\Z)[!\"$-~]+\Z", re.IGNORECASE | re.ASCII)
"""Text that needs no quotes: printable ASCII that is no key word. gemmi takes no other, starfile cuts lines at a #."""

_UNHELD = re.compile(r"(?!\t)[\x00-\x1f\x7f-\x9f\u2028\u2029]|(?![ \t])\s")
"""What stays on no line, or is no text."""
_CLOSING = {quote: re.compile(rf"{quote}(?=[ \t#])") for quote in "'\""}
"""A quote that would end the value: what follows is a blank, or taken for a comment."""
_QUOTED = frozenset("'\";.?")
"""What a value may begin with that does not stand for itself."""
_COLUMN = re.compile(rb"^[ \t]*_rln(?:Coordinate|Defocus|ImageName)", re.MULTILINE)
_OTHER = re.compile(
    rb"^[ \t]*_rln(?:Micrograph(?:MovieName|Metadata|Coordinates|Binning)|AccumMotion|PipeLine|JobType|JobOption"
    rb"|ReferenceDimensionality|OutputRootName|HealpixOrder|PostprocessedMap)",
    re.MULTILINE,
)
_CTF_FIELDS = {
    "rlnDefocusU": "defocus_u_angstrom",
    "rlnDefocusV": "defocus_v_angstrom",
    "rlnDefocusAngle": "defocus_angle_deg",
}
CTF_COLUMNS = tuple(_CTF_FIELDS)
PHASE_FLIPPED = "rlnCtfDataArePhaseFlipped"


def recognise(path: Path, head: bytes) -> Kind | None:
    """Coordinates (or CTF, or rows: reading it tells) where RELION's columns are in the head, or the ending is STAR's.

    Not where the head is that of a file that RELION keeps beside its tables: metadata of movies, lists of micrographs,
    jobs and pipelines, the state of a refinement.
    """
    if _COLUMN.search(head):
        return "coordinates"
    return "coordinates" if path.suffix.lower() == ".star" and not _OTHER.search(head) else None


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
        numbers = as_numbers(values)
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            raise InputError(
                self.path,
                f"row {bad[0] + 1} of data_{self.block}: _{name} is {shown(values[bad[0]])}, not a number",
            )
        return numbers


def read_loops(path: Path, max_bytes: int | None = None) -> list[Loop]:
    """Every table of a STAR file, in order.

    Single ``_name value`` pairs of a block make a table with one row, as RELION reads them.

    Raises
    ------
    InputError
        The file is empty, too large (``max_bytes``, where it is given), has too many tables, or is not a STAR file.
    """
    size = path.stat().st_size
    if size == 0:
        raise InputError(path, "the file is empty; a STAR file needs at least a data_ line and a loop_")
    # texts over several lines have no place in long tables, and gemmi needs many times their space
    bounds = _BOUNDS if size <= MAX_SINGLE_BYTES else {**_BOUNDS, b"\n;": (0, "texts between semicolons")}
    return _parse(path, text_bytes(path, max_bytes, bounds))


def read_with(path: Path, understand: Callable[[list[Loop]], list[Entry] | None], known: str) -> list[Entry]:
    """What a function understands of the tables of a STAR file.

    Of a large one it is given the beginning first: so a value that is none is found before the whole is in memory.

    Parameters
    ----------
    path
        The file.
    understand
        Gives None where no table is one that it knows.
    known
        Those that it knows, for the message.

    Raises
    ------
    InputError
        As `read_loops` and ``understand``, and where it knows none of the tables.
    """
    start = beginning(path)
    for _ in range(_LINES_OF_A_ROW if start else 0):  # it may end within a row of several lines
        assert start is not None
        try:
            loops = _parse(path, start)
        except InputError:
            start = start[: start[:-1].rfind(b"\n") + 1]
        else:
            understand(loops)
            break
    loops = read_loops(path)
    entries = understand(loops)
    if entries is None:
        names = ", ".join("_" + name[:60] for loop in loops[:6] for name in list(loop.columns)[:6])
        raise InputError(path, f"neither {known} are in it; its columns are {names}")
    return entries


def _parse(path: Path, data: bytes) -> list[Loop]:
    try:
        # Not by name, which need not be UTF-8; names of columns are compared here, gemmi takes minutes for a million.
        document = gemmi.cif.read_string(data, 0)
    except (ValueError, RuntimeError, UnicodeError) as error:
        said = re.sub(r"^(?:data|string):(\d+)[^ ]*: *", r"line \1: ", str(error)) or type(error).__name__
        meaning = _UNEVEN if "Wrong number of values" in said else ""
        raise InputError(path, f"not a readable STAR file: {said[:200]}{meaning}") from error
    loops: list[Loop] = []
    names: set[str] = set()
    if len(document) > MAX_TABLES:
        raise InputError(path, f"it has {len(document)} data_ blocks; the most that is read is {MAX_TABLES}")
    try:
        for block in document:
            name = block.name.strip()
            if name.lower() in names:
                raise InputError(path, f"not a readable STAR file: duplicate block data_{name[:60]}")
            names.add(name.lower())
            loops += itertools.islice(_block_loops(path, name, block), MAX_TABLES + 1 - len(loops))
            if len(loops) > MAX_TABLES:
                raise InputError(path, f"it has more than {MAX_TABLES} tables, the most that is read")
    except UnicodeError as error:
        raise InputError(path, f"not a readable STAR file: {error}") from error
    if not loops:
        raise InputError(path, "the file holds no table; a STAR file needs a loop_ with column names")
    return loops


def _block_loops(path: Path, name: str, block: gemmi.cif.Block) -> Iterator[Loop]:
    pairs: dict[str, list[str]] = {}
    tags: list[str] = []
    for item in block:
        if len(tags) > MAX_COLUMNS:
            raise InputError(path, f"data_{name[:60]} has more than {MAX_COLUMNS} columns, the most that is read")
        if item.loop is not None:
            own = [tag[1:] for tag in item.loop.tags]
            values = [value if value[:1] not in _QUOTED else gemmi.cif.as_string(value) for value in item.loop.values]
            columns = {tag: values[index :: len(own)] for index, tag in enumerate(own)}
            tags += own
            yield Loop(path, name, columns, len(values) // len(own))
        elif item.pair is not None:
            tags.append(item.pair[0][1:])
            pairs[tags[-1]] = [gemmi.cif.as_string(item.pair[1])]
    if len({tag.lower() for tag in tags}) != len(tags):
        known: set[str] = set()
        twice = next(tag for tag in tags if tag.lower() in known or known.add(tag.lower()))  # type: ignore[func-returns-value]
        raise InputError(path, f"not a readable STAR file: duplicate tag _{twice[:60]} in data_{name[:60]}")
    if pairs:
        yield Loop(path, name, pairs, 1)


def read_entries(path: Path) -> list[Entry]:
    """What a STAR file says about micrographs: their coordinates, or their CTF; and about stacks: their rows.

    A table of particles says both where each was picked and which image it is.

    Raises
    ------
    InputError
        It holds neither, or a value in it is not a number.
    """
    known = (
        "coordinates (_rlnCoordinateX, _rlnCoordinateY) nor the CTF of micrographs (_rlnMicrographName, _rlnDefocusU) "
        "nor the images of stacks (_rlnImageName)"
    )
    return read_with(path, _said, known)


def _said(loops: list[Loop]) -> list[Entry] | None:
    """What tables say; None where none of them is one that is read."""
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
    return entries if known else None


def _coordinates(loop: Loop) -> Iterable[Entry]:
    xy = np.stack([loop.floats("rlnCoordinateX"), loop.floats("rlnCoordinateY")], axis=1)
    further = {
        name: np.array(values, dtype=object)
        for name, values in loop.columns.items()
        if name not in ("rlnCoordinateX", "rlnCoordinateY", "rlnMicrographName", "rlnOpticsGroup")
    }
    named = "rlnMicrographName" in loop
    for micrograph, rows in groups(loop.columns["rlnMicrographName"]) if named else [(None, np.arange(loop.rows))]:
        columns = {name: values[rows] for name, values in further.items()}
        yield Entry(micrograph, digest_of(xy[rows], columns), Coordinates(xy_px=xy[rows], columns=columns))


def _ctfs(loop: Loop, optics: Loop | None) -> Iterable[Entry]:
    name_column = "rlnMicrographName" if "rlnMicrographName" in loop else "rlnMicrographNameNoDW"
    names = loop.text(name_column)
    said = _optics_rows(loop, optics) or [{}] * loop.rows
    for micrograph, ctf, columns in zip(names, _loop_ctfs(loop, optics), said, strict=True):
        yield Entry(micrograph, digest_of(ctf, columns) if columns else digest_of(ctf), ctf, columns)


def _particle_rows(loop: Loop, optics: Loop | None) -> Iterable[Entry]:
    """The rows of each stack that a table of particles names.

    Shifts in pixels, as RELION wrote them before 3.1, become shifts in Å, where the pixel size is known: later versions
    do not look at the others.
    """
    stacks, index = image_names(loop.path, loop.columns["rlnImageName"], "_rlnImageName")
    said = _optics_rows(loop, optics)
    ctfs = _loop_ctfs(loop, optics) if all(name in loop for name in CTF_COLUMNS) else None
    pixel_size = _pixel_sizes(loop, optics)
    flipped = _of_groups(loop, optics, PHASE_FLIPPED)
    xy = None
    if "rlnCoordinateX" in loop and "rlnCoordinateY" in loop:
        xy = np.stack([loop.floats("rlnCoordinateX"), loop.floats("rlnCoordinateY")], axis=1)
    elsewhere = {"rlnImageName", "rlnOpticsGroup", PHASE_FLIPPED}
    if ctfs is None:
        own = {name: loop.columns[name] for name in MICROSCOPE_COLUMNS if name in loop}
        said = with_constants(said, own)
        elsewhere |= set(own)
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
                tuple(said[row] for row in rows.tolist()) if said else (),
            ),
        )


def read_image_rows(path: Path) -> list[Entry]:
    """The rows of each stack that the first table that names images names: particles, or 2D class averages.

    Raises
    ------
    InputError
        None of its tables does, or a value in it is not a number.
    """
    loops = read_loops(path)
    optics = next((loop for loop in loops if loop.block == "optics"), None)
    names = ("rlnImageName", "rlnReferenceImage")
    for loop in loops:
        for name in names:
            if any("@" in value for value in loop.columns.get(name, ())):
                further = {column: values for column, values in loop.columns.items() if column not in names}
                images = {"rlnImageName": loop.columns[name]}
                return list(_particle_rows(Loop(path, loop.block, images | further, loop.rows), optics))
    raise InputError(path, "no table in it names images, as NUMBER@FILE in _rlnImageName or _rlnReferenceImage")


_IMAGE_NAME = re.compile(r"([0-9]{1,12})@(.+)", re.DOTALL)
_CTF_NAMES = tuple(field.name for field in dataclasses.fields(Ctf))


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
    stacks: list[str] = []
    plain: dict[str, str] = {}
    index = np.empty(len(names), np.int64)
    for row, name in enumerate(names):
        found = _IMAGE_NAME.fullmatch(name)
        if found is None or not int(found[1]):
            said = f"row {row + 1}: {column} is {shown(name)}"
            raise InputError(path, f"{said}; it must be NUMBER@FILE, with numbers from 1")
        index[row] = int(found[1]) - 1
        stacks.append(plain.setdefault(found[2], str(PurePosixPath(found[2]))))  # ./a.mrcs is a.mrcs
    return groups(stacks), index


def rows_entry(stack: str, rows: ParticleRows) -> Entry:
    """The rows of one stack, with the digest of all that they say."""
    shared = {id(said): said for said in rows.optics_columns}
    numbers = {one: number for number, one in enumerate(shared)}
    of_group = np.array([numbers[id(said)] for said in rows.optics_columns], np.int64)
    digest = digest_of(
        rows.image_index,
        None if rows.coordinates is None else rows.coordinates.xy_px,
        None if rows.ctf is None else np.array([[getattr(ctf, name) for name in _CTF_NAMES] for ctf in rows.ctf]),
        rows.pixel_size_angstrom,
        rows.phase_flipped,
        rows.columns,
        of_group,
        *shared.values(),
    )
    return Entry(stack, digest, rows)


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


def with_constants(said: list[Mapping[str, str]], own: Mapping[str, Sequence[str]]) -> list[Mapping[str, str]]:
    """What is said of the optics group of each row, with constants of the microscope that stand in the rows.

    Parameters
    ----------
    said
        One per row, shared by the rows of a group; empty where the table has no groups.
    own
        Columns of the rows, by RELION's names of the constants, values as they are written.

    Returns
    -------
    list
        One per row, shared by the rows of which the same is said; ``said`` itself where the rows have no constants.
    """
    rows = list(zip(*own.values(), strict=True))
    if not rows:
        return said
    shared: dict[tuple[int, tuple[str, ...]], Mapping[str, str]] = {}
    groups_of: list[Mapping[str, str]] = said or [{}] * len(rows)
    return [
        shared.setdefault((id(group), values), {**group, **dict(zip(own, values, strict=True))})
        for group, values in zip(groups_of, rows, strict=True)
    ]


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
    fields = {field: loop.floats(column) for column, field in _CTF_FIELDS.items()}
    if "rlnPhaseShift" in loop:
        fields["phase_shift_deg"] = loop.floats("rlnPhaseShift")
    for column, field in MICROSCOPE_COLUMNS.items():
        found = _of_groups(loop, optics, column)
        if found is not None:
            fields[field] = found
    return checked_ctfs(loop.path, f"of data_{loop.block[:60]}", fields)


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
        numbers = as_numbers([name.partition("@")[0] for name in loop.columns["rlnImageName"]]).tolist()
        if sorted(numbers) != list(range(1, count + 1)):
            raise InputError(path, f"its _rlnImageName column does not number the images from 1 to {count}")
        order = sorted(order, key=lambda row: numbers[row])
    ctfs = _loop_ctfs(loop, next((found for found in loops if found.block == "optics"), None))
    return tuple(ctfs[row] for row in order)


# --- writing ---------------------------------------------------------------------------------------------------------


def format_value(value: Any) -> str:
    """A value as STAR text: whole numbers plain, others with six decimals, text quoted where it must be.

    Text is read back as it was, but for what a line of a table cannot hold: empty text or nothing but white space
    becomes ``None``, RELION's word for it; white space that is neither a blank nor a tab, and control characters,
    become a blank each; where both kinds of quotes stand before a blank or a ``#``, the double ones there become single
    ones; bytes of a file name that are no UTF-8 become ``\\udcXX``.
    """
    if isinstance(value, str):
        if _PLAIN.match(value):
            return value
        text = _UNHELD.sub(" ", value.encode("utf-8", "backslashreplace").decode())
        if not text.strip():
            return "None"
        if _PLAIN.match(text):
            return text
        if '"' in text and not _CLOSING["'"].search(text) and ("'" not in text or _CLOSING['"'].search(text)):
            return f"'{text}'"
        return '"' + _CLOSING['"'].sub("'", text) + '"'
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


_TOKEN = re.compile(r"\"(?:[^\"]|\"(?=[^ \t#]))*\"(?=[ \t]|$)|'(?:[^']|'(?=[^ \t#]))*'(?=[ \t]|$)|[^ \t\n]+")


def split_row(line: str) -> list[str]:
    """The values of a row that `rows_text` wrote, quotes kept."""
    return _TOKEN.findall(line)
