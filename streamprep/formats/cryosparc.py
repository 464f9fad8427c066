"""cryoSPARC tables (``.cs``): one structured numpy array in the ``.npy`` format, one row per particle.

- ``location/micrograph_path``; ``location/micrograph_shape``, (ny, nx) in pixels; ``location/center_x_frac`` and
  ``center_y_frac``, the box centre as fractions of nx and ny. x counts from the first column, y **from the lower
  edge**, the last row as RELION and streamprep count them, so x = frac · nx and y = (1 - frac) · ny, in pixels from
  the first row as stored. cryoSPARC's own motion correction writes its micrographs turned over against those of other
  programs; where a table and the micrographs come from different ones, the source's ``flip_y`` turns y back.
- ``ctf/df1_A``, ``df2_A`` in Å, underfocus positive; ``df_angle_rad`` and ``phase_shift_rad`` in radians;
  ``accel_kv``, ``cs_mm``, ``amp_contrast``.
- ``uid`` names a row. Columns that a job passes on unchanged lie in further files of the folder, whose names contain
  ``passthrough``, in another order; ``uid`` joins them.

The header is checked against the file's size before anything is allocated. Pickled objects are never read.

Source: cryoSPARC's guide; the y axis and what turns it over: pyem (D. Asarnow), issue 81.
"""

from __future__ import annotations

import io
import itertools
import math
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt

from streamprep.formats._ctf import checked_ctf
from streamprep.formats._values import digest_of, groups
from streamprep.model import FIGURE_OF_MERIT, Coordinates, Entry, FloatArray, IncompleteError, InputError, Kind

MAX_BYTES = 4 << 30
MAX_HEADER_BYTES = 1 << 16
MAX_DEPTH = 32
"""Of the brackets in a header. A table needs four; columns made of columns need two more."""
MAX_SIDE = 1 << 17
_MAGIC = b"\x93NUMPY"
_COMPRESSED_MAGIC = (b"\x94CSDAT", b"\x95CSDAT")
_SCORE = "pick_stats/ncc_score"
_LOCATION = (
    "location/micrograph_path",
    "location/micrograph_shape",
    "location/center_x_frac",
    "location/center_y_frac",
)
_CTF = {
    "ctf/df1_A": "defocus_u_angstrom",
    "ctf/df2_A": "defocus_v_angstrom",
    "ctf/df_angle_rad": "defocus_angle_deg",
    "ctf/accel_kv": "voltage_kv",
    "ctf/cs_mm": "spherical_aberration_mm",
    "ctf/amp_contrast": "amplitude_contrast",
}
_PHASE_SHIFT = "ctf/phase_shift_rad"
_USED = (*_LOCATION, *_CTF, _PHASE_SHIFT, _SCORE)
_NESTING = dict.fromkeys(b"([{", 1) | dict.fromkeys(b")]}", -1)
_PARTICLES = (b"'location/", b"'blob/idx'")
Table = npt.NDArray[np.void]


class _Column(NamedTuple):
    """A column in the order of the main table, and where it was read."""

    path: Path
    values: npt.NDArray[Any]
    rows: npt.NDArray[np.intp]
    """Index of each value in its own file, for messages."""


@dataclass(frozen=True, slots=True)
class CsHeader:
    """What the header says: the type of a row, how many there are, and where the first begins."""

    row: np.dtype[np.void]
    rows: int
    offset: int

    @property
    def file_bytes(self) -> int:
        """Size that the whole file must have."""
        return self.offset + self.rows * self.row.itemsize


class _SizeError(InputError):
    """A file is shorter or longer than its header says."""

    def __init__(self, path: Path | str, reason: str, file_bytes: int = 0) -> None:
        super().__init__(path, reason)
        self.file_bytes = file_bytes


def is_passthrough(path: Path) -> bool:
    """Whether a file holds what a job passed on, by its name: it is read with the table that it belongs to.

    It may hold particles that were not selected, so it is no table of its own.

    Examples
    --------
    >>> is_passthrough(Path("J7_passthrough_particles.cs")), is_passthrough(Path("J7_particles.cs"))
    (True, False)
    """
    return "passthrough" in path.name.lower() and path.suffix.lower() == ".cs"


def depends_on(path: Path) -> list[Path]:
    """The passthrough files of the folder, which reading the table may look at, sorted; none of a folder that is gone.

    What they say is part of what the table says: where one comes, changes or goes, the table must be read again.
    """
    try:
        return sorted(other for other in path.parent.iterdir() if other != path and is_passthrough(other))
    except OSError:
        return []


def recognise(path: Path, head: bytes) -> Kind | None:
    """``coordinates`` for a cryoSPARC table of particles; None for anything else.

    A header that goes on after ``head`` is read from the file, up to 64 KiB.
    """
    if is_passthrough(path) or not head.startswith(_MAGIC):
        return None
    end = _header_end(head)
    if end > len(head):
        try:
            with path.open("rb") as file:
                head = file.read(MAX_HEADER_BYTES)
        except OSError:
            pass  # judged by what is known of it
    header = head[:end]
    return "coordinates" if b"'uid'" in header and any(name in header for name in _PARTICLES) else None


def is_other_table(path: Path) -> bool:
    """Whether a file that `recognise` does not take is a good one nevertheless: what cryoSPARC keeps beside particles.

    That is a passthrough file, or a whole table with other columns: exposures, volumes. Of what is none, or cannot be
    opened, reading it tells why.
    """
    if is_passthrough(path):
        return True
    try:
        with path.open("rb") as file:
            _header(path, file)
    except (InputError, OSError):
        return False
    return True


def _header_end(head: bytes) -> int:
    """Where the first row begins, by the length that a ``.npy`` file gives for its header."""
    first = 10 if head[6:7] == b"\1" else 12
    return first + int.from_bytes(head[8:first], "little")


def parse_header(path: Path, head: bytes, size_bytes: int) -> CsHeader:
    """Read the ``.npy`` header and check it against the file's size.

    Parameters
    ----------
    path
        For messages.
    head
        The file's first 64 KiB, or all of it.
    size_bytes
        Size of the file.

    Raises
    ------
    InputError
        It is no ``.npy`` file, not a table, holds Python objects, or has another size than its header says.
    """
    if size_bytes > MAX_BYTES:
        raise InputError(path, f"the table has {size_bytes} bytes; the most that is read is {MAX_BYTES}")
    if head.startswith(_COMPRESSED_MAGIC):
        raise InputError(path, "a table in cryoSPARC's compressed format; only the numpy format is read")
    if not head.startswith(_MAGIC):
        raise InputError(path, "not a cryoSPARC table: it must begin as a numpy array file does")
    depth = itertools.accumulate(_NESTING.get(byte, 0) for byte in head[: _header_end(head)])
    if max(depth, default=0) > MAX_DEPTH:  # numpy takes half a second to find that it cannot be read
        raise InputError(path, f"its numpy header cannot be read: brackets are nested more than {MAX_DEPTH} deep")
    stream = io.BytesIO(head)
    try:
        version = npy.read_magic(stream)
        if version == (1, 0):
            shape, _, row = npy.read_array_header_1_0(stream, max_header_size=MAX_HEADER_BYTES)
        elif version == (2, 0):
            shape, _, row = npy.read_array_header_2_0(stream, max_header_size=MAX_HEADER_BYTES)
        else:
            raise InputError(path, f"numpy format {version[0]}.{version[1]}; known are 1.0 and 2.0")
    except InputError:
        raise
    except Exception as error:  # numpy evaluates the header as a literal: whatever a parser can raise
        raise InputError(
            path, f"its numpy header cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from None
    if row.hasobject:
        raise InputError(path, "it holds pickled Python objects, which are never read; save it with plain columns")
    if row.names is None or "uid" not in row.names or not row.itemsize:
        raise InputError(path, "not a cryoSPARC table: an array with named columns, uid among them, is needed")
    if len(shape) != 1 or shape[0] < 0:
        raise InputError(path, f"its header says the shape is {shape}; a table has one axis")
    header = CsHeader(row, int(shape[0]), stream.tell())
    if header.file_bytes != size_bytes:
        raise _SizeError(path, _wrong_size(header, size_bytes), header.file_bytes)
    return header


def _wrong_size(header: CsHeader, size_bytes: int) -> str:
    relation = "truncated" if size_bytes < header.file_bytes else "longer than its header says"
    rows = f"{header.rows} rows of {header.row.itemsize} bytes"
    return f"{relation}: it has {size_bytes} bytes; {rows} and the header make {header.file_bytes}"


def missing(path: Path, size_bytes: int, head: bytes) -> str | None:
    """What is not there yet of a table that is being written; None when it is whole, or no table."""
    if not head.startswith(_MAGIC):
        return None if size_bytes else "the file is empty"
    with path.open("rb") as file:
        start = file.read(MAX_HEADER_BYTES)
    if len(start) < min(_header_end(start), MAX_HEADER_BYTES):
        return f"its header has not all come yet; it has {size_bytes} bytes so far"
    try:
        parse_header(path, start, size_bytes)
    except _SizeError as error:
        return error.reason if size_bytes < error.file_bytes else None
    except InputError:
        return None  # reading it tells
    return None


def read_table(path: Path) -> Table:
    """The whole array, its header checked first."""
    with path.open("rb") as file:
        return _rows(path, file, _header(path, file))


def _header(path: Path, file: IO[bytes]) -> CsHeader:
    return parse_header(path, file.read(MAX_HEADER_BYTES), os.fstat(file.fileno()).st_size)


def _rows(path: Path, file: IO[bytes], header: CsHeader) -> Table:
    file.seek(header.offset)
    data = file.read(header.rows * header.row.itemsize)
    if len(data) != header.rows * header.row.itemsize:
        raise InputError(path, "it became shorter while it was read")
    return np.frombuffer(data, header.row, header.rows)


def read_entries(path: Path) -> list[Entry]:
    """Box centres of each micrograph, and its CTF where the table has one that all its particles share.

    Each micrograph has an entry of `Coordinates`, with the column ``uid`` and, where the picker gave a score, the
    column ``rlnAutopickFigureOfMerit``. It has a second entry of `Ctf` where all CTF columns are there and the same
    in all its rows; a CTF of each particle's own, as local refinement makes it, is not read.

    A column that the table lacks is taken from a passthrough file of its folder that has it for every row: where
    several do, from the one whose name begins most like the table's. Others, and broken ones, are passed over.

    Raises
    ------
    InputError
        The file is broken, or a value in it, or in a column taken from a passthrough file, cannot be.
    IncompleteError
        The location columns are neither in it nor, so far, in passthrough files beside it.
    """
    main = read_table(path)
    uids = _uids(path, main)
    columns = {name: _Column(path, main[name], np.arange(len(main))) for name in _USED if name in _names(main)}
    lacking = [name for name in _USED if name not in columns]
    if lacking:
        columns |= _passed_through(path, uids, lacking)

    micrographs = _micrographs(columns[_LOCATION[0]])
    xy_px = _centres(columns)
    further = {"uid": uids}
    if _SCORE in columns:
        further[FIGURE_OF_MERIT] = _numbers(columns[_SCORE], _SCORE)
    ctf = _ctf_values(columns)

    entries = []
    for name, rows in _groups(micrographs):
        own = {column: values[rows] for column, values in further.items()}
        entries.append(Entry(name, digest_of(xy_px[rows], own), Coordinates(xy_px[rows], columns=own)))
        if ctf and all((values[rows] == values[rows[0]]).all() for values in ctf.values()):
            shared = {field: float(values[rows[0]]) for field, values in ctf.items()}
            read = columns[next(iter(_CTF))]
            fitted = checked_ctf(read.path, f"row {read.rows[rows[0]] + 1}", **shared)
            entries.append(Entry(name, digest_of(fitted), fitted))
    return entries


def _names(table: Table) -> tuple[str, ...]:
    return table.dtype.names or ()


def _uids(path: Path, table: Table) -> npt.NDArray[Any]:
    uids = table["uid"]
    if uids.dtype.kind not in "iu" or uids.ndim != 1:
        raise InputError(path, f"column uid is of type {uids.dtype}; it must be whole numbers")
    values, counts = np.unique(uids, return_counts=True)
    if len(values) != len(uids):
        raise InputError(path, f"uid {values[counts > 1][0]} is in it more than once; each row must have its own")
    return uids


def _passed_through(path: Path, uids: npt.NDArray[Any], lacking: Sequence[str]) -> dict[str, _Column]:
    """Those of the lacking columns that passthrough files give to every row.

    Raises
    ------
    IncompleteError
        Locations are among those that none gives.
    """
    columns: dict[str, _Column] = {}
    said = []
    for other in sorted(depends_on(path), key=lambda other: -_alike(path.name, other.name)):
        wanted = [name for name in lacking if name not in columns]
        if not wanted:
            break
        try:
            columns |= _joined(other, uids, wanted)
        except InputError as error:
            said.append(f"{other.name}: {error.reason}")
        except OSError as error:
            said.append(f"{other.name}: {error.strerror}")
        else:
            absent = [name for name in _LOCATION if name in wanted and name not in columns]
            said += [f"{other.name} has no {', '.join(absent)}"] if absent else []
    absent = [name for name in _LOCATION if name in lacking and name not in columns]
    if absent:
        raise IncompleteError(
            path,
            f"it has no {', '.join(absent)}, and no passthrough file of its folder gives them to all rows: "
            + ("; ".join(said) or "there is none"),
        )
    return columns


def _alike(name: str, other: str) -> int:
    """With how many characters alike two names begin: the files of a job begin with its number."""
    return len(os.path.commonprefix([name, other]))  # noqa: RUF071 - of names, not of folders


def _joined(path: Path, uids: npt.NDArray[Any], wanted: Sequence[str]) -> dict[str, _Column]:
    """Those of the wanted columns that a file has, in the order of ``uids``; its rows are read only where it has one.

    Raises
    ------
    InputError
        The file is broken, or lacks one of the rows.
    """
    if not path.is_file():
        raise InputError(path, "it is no regular file")
    with path.open("rb") as file:
        header = _header(path, file)
        names = [name for name in wanted if name in (header.row.names or ())]
        if not names:
            return {}
        table = _rows(path, file, header)
    others = _uids(path, table)
    order = np.argsort(others)
    at = np.searchsorted(others, uids, sorter=order)
    rows = order[np.minimum(at, len(order) - 1)] if len(order) else np.zeros(0, np.intp)
    unknown = uids if not len(order) else uids[others[rows] != uids]
    if len(unknown):
        raise InputError(path, f"it lacks {len(unknown)} of the {len(uids)} rows, uid {unknown[0]} among them")
    return {name: _Column(path, table[name][rows], rows) for name in names}


def _numbers(column: _Column, name: str, width: int | None = None) -> FloatArray:
    """A column as finite float64; of shape (n,), or (n, width)."""
    path, values, rows = column
    if values.dtype.kind not in "iuf" or values.shape[1:] != (() if width is None else (width,)):
        raise InputError(
            path,
            f"column {name} has {values.shape[1:] or 1} values of type {values.dtype}; {width or 1} number(s) needed",
        )
    numbers = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers).reshape(len(numbers), width or 1).all(axis=1))
    if len(bad):
        raise InputError(path, f"row {rows[bad[0]] + 1}: {name} is {numbers[bad[0]]}, not a finite number")
    return numbers


def _micrographs(column: _Column) -> npt.NDArray[Any]:
    """The column of micrograph names, still as bytes or text."""
    path, values, rows = column
    if values.dtype.kind not in "SU" or values.ndim != 1:
        raise InputError(path, f"column {_LOCATION[0]} is of type {values.dtype}; it must be text")
    if (
        values.dtype.kind == "U" and values.dtype.itemsize
    ):  # numpy makes text of any 32 bits, even such as no character has
        codes = np.ascontiguousarray(values).view(values.dtype.byteorder.replace("|", "=") + "u4")
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise InputError(path, f"column {_LOCATION[0]} is not text: it holds codes that are no characters")
    empty = np.flatnonzero(values == values.dtype.type())
    if len(empty):
        raise InputError(path, f"row {rows[empty[0]] + 1}: {_LOCATION[0]} is empty; it must name a micrograph")
    return values


def _groups(micrographs: npt.NDArray[Any]) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """Rows of each micrograph, in order of first appearance."""
    return [
        (name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name, rows)
        for name, rows in groups(map(operator.methodcaller("item"), micrographs))
    ]


def _centres(columns: dict[str, _Column]) -> FloatArray:
    """Box centres in pixels, x and y from the first pixel as stored."""
    path, _, rows = columns[_LOCATION[1]]
    shape = _numbers(columns[_LOCATION[1]], _LOCATION[1], 2)
    bad = np.flatnonzero(((shape < 1) | (shape > MAX_SIDE)).any(axis=1))
    if len(bad):
        said = " × ".join(f"{side:g}" for side in shape[bad[0]])
        raise InputError(
            path, f"row {rows[bad[0]] + 1}: {_LOCATION[1]} is {said}; each side must be from 1 to {MAX_SIDE}"
        )
    fractions = []
    for name in _LOCATION[2:]:
        path, _, rows = columns[name]
        fraction = _numbers(columns[name], name)
        bad = np.flatnonzero((fraction < -1) | (fraction > 2))
        if len(bad):
            raise InputError(
                path,
                f"row {rows[bad[0]] + 1}: {name} is {fraction[bad[0]]:g}; "
                "a fraction of the micrograph, 0 to 1, is needed",
            )
        fractions.append(fraction)
    x, y = fractions
    return np.stack([x * shape[:, 1], (1.0 - y) * shape[:, 0]], axis=1)


def _ctf_values(columns: dict[str, _Column]) -> dict[str, FloatArray]:
    """The fields of `Ctf` of each row, in its units; empty where a column is missing."""
    if not all(name in columns for name in _CTF):
        return {}
    fields = {field: _numbers(columns[name], name) for name, field in _CTF.items()}
    fields["defocus_angle_deg"] = fields["defocus_angle_deg"] * (180.0 / math.pi)
    if _PHASE_SHIFT in columns:
        fields["phase_shift_deg"] = _numbers(columns[_PHASE_SHIFT], _PHASE_SHIFT) * (180.0 / math.pi)
    return fields
