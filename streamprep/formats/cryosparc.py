"""cryoSPARC tables (``.cs``): one structured numpy array in the ``.npy`` format, one row per particle.

- ``location/micrograph_path``; ``location/micrograph_shape``, (ny, nx) in pixels; ``location/center_x_frac`` and
  ``center_y_frac``, the box centre as fractions of nx and ny. x counts from the first column, y **from the lower
  edge**, the last row as RELION and streamprep count them, so x = frac · nx and y = (1 - frac) · ny, in pixels from
  the first row as stored. cryoSPARC's own motion correction writes its micrographs turned over against those of other
  programs; where a table and the micrographs come from different ones, the source's ``flip_y`` turns y back.
- ``ctf/df1_A``, ``df2_A`` in Å, underfocus positive; ``df_angle_rad`` and ``phase_shift_rad`` in radians;
  ``accel_kv``, ``cs_mm``, ``amp_contrast``.
- ``uid`` names a row. Columns that a job passes on unchanged lie in a second file of the folder, whose name contains
  ``passthrough``, in another order; ``uid`` joins the two.

The header is checked against the file's size before anything is allocated. Pickled objects are never read.

Source: cryoSPARC's guide; the y axis and what turns it over: pyem (D. Asarnow), issue 81.
"""

from __future__ import annotations

import io
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt

from streamprep.formats._ctf import checked_ctf
from streamprep.formats._values import digest_of, groups
from streamprep.model import FIGURE_OF_MERIT, Coordinates, Entry, FloatArray, IncompleteError, InputError, Kind

MAX_BYTES = 4 << 30
MAX_HEADER_BYTES = 1 << 16
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
_PARTICLES = (b"'location/", b"'blob/idx'")
Table = npt.NDArray[np.void]


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


def recognise(path: Path, head: bytes) -> Kind | None:
    """``coordinates`` for a cryoSPARC table of particles; None for anything else.

    A passthrough file is read with the table that it belongs to: it may hold particles that were not selected.
    """
    if "passthrough" in path.name.lower():
        return None
    particles = head.startswith(_MAGIC) and b"'uid'" in head and any(name in head for name in _PARTICLES)
    return "coordinates" if particles else None


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
    if len(start) < 10 or len(start) < 10 + int.from_bytes(start[8:10], "little"):
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
    size = path.stat().st_size
    with path.open("rb") as file:
        header = parse_header(path, file.read(MAX_HEADER_BYTES), size)
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

    Raises
    ------
    InputError
        The file is broken, or a value in it cannot be.
    IncompleteError
        The location columns are neither in it nor, so far, in a passthrough file beside it.
    """
    main = read_table(path)
    uids = _uids(path, main)
    found: list[tuple[Path, Table]] = [(path, main)]
    lacking = [name for name in _LOCATION if name not in _names(main)]
    if lacking:
        found.append(_passed_through(path, uids, lacking))

    columns: dict[str, tuple[Path, npt.NDArray[Any]]] = {}
    for place, table in reversed(found):
        columns |= {name: (place, table[name]) for name in _names(table)}
    micrographs = _micrographs(*columns[_LOCATION[0]])
    xy_px = _centres(columns)
    further = {"uid": uids}
    if _SCORE in columns:
        further[FIGURE_OF_MERIT] = _numbers(*columns[_SCORE], _SCORE)
    ctf = _ctf_values(columns)

    entries = []
    for name, rows in _groups(micrographs):
        own = {column: values[rows] for column, values in further.items()}
        entries.append(Entry(name, digest_of(xy_px[rows], own), Coordinates(xy_px[rows], columns=own)))
        if ctf and all((values[rows] == values[rows[0]]).all() for values in ctf.values()):
            shared = {field: float(values[rows[0]]) for field, values in ctf.items()}
            fitted = checked_ctf(path, f"row {rows[0] + 1}", **shared)
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


def _passed_through(path: Path, uids: npt.NDArray[Any], lacking: Sequence[str]) -> tuple[Path, Table]:
    """The passthrough file beside ``path`` that has the location of every row, put into the same order."""
    said = []
    for other in sorted(path.parent.iterdir()):
        if other == path or "passthrough" not in other.name or other.suffix.lower() != ".cs":
            continue
        try:
            table = read_table(other)
            absent = [name for name in _LOCATION if name not in _names(table)]
            if absent:
                said.append(f"{other.name} has no {', '.join(absent)}")
                continue
            others = _uids(other, table)
        except (InputError, OSError) as error:
            said.append(str(error))
            continue
        order = np.argsort(others)
        at = np.searchsorted(others, uids, sorter=order)
        rows = order[np.minimum(at, len(order) - 1)] if len(order) else np.zeros(0, np.int64)
        unknown = uids if not len(order) else uids[others[rows] != uids]
        if len(unknown):
            said.append(f"{other.name} lacks {len(unknown)} of the {len(uids)} rows, uid {unknown[0]} among them")
            continue
        return other, table[rows]
    raise IncompleteError(
        path,
        f"it has no {', '.join(lacking)}, and no passthrough file of its folder gives them to all rows: "
        + ("; ".join(said) or "there is none"),
    )


def _numbers(path: Path, values: npt.NDArray[Any], name: str, width: int | None = None) -> FloatArray:
    """A column as finite float64; of shape (n,), or (n, width)."""
    if values.dtype.kind not in "iuf" or values.shape[1:] != (() if width is None else (width,)):
        raise InputError(
            path,
            f"column {name} has {values.shape[1:] or 1} values of type {values.dtype}; {width or 1} number(s) needed",
        )
    numbers = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers).reshape(len(numbers), width or 1).all(axis=1))
    if len(bad):
        raise InputError(path, f"row {bad[0] + 1}: {name} is {numbers[bad[0]]}, not a finite number")
    return numbers


def _micrographs(path: Path, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The column of micrograph names, still as bytes or text."""
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
        raise InputError(path, f"row {empty[0] + 1}: {_LOCATION[0]} is empty; it must name a micrograph")
    return values


def _groups(micrographs: npt.NDArray[Any]) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """Rows of each micrograph, in order of first appearance."""
    return [
        (name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name, rows)
        for name, rows in groups(map(operator.methodcaller("item"), micrographs))
    ]


def _centres(columns: dict[str, tuple[Path, npt.NDArray[Any]]]) -> FloatArray:
    """Box centres in pixels, x and y from the first pixel as stored."""
    path, shapes = columns[_LOCATION[1]]
    shape = _numbers(path, shapes, _LOCATION[1], 2)
    bad = np.flatnonzero(((shape < 1) | (shape > MAX_SIDE)).any(axis=1))
    if len(bad):
        said = " × ".join(f"{side:g}" for side in shape[bad[0]])
        raise InputError(path, f"row {bad[0] + 1}: {_LOCATION[1]} is {said}; each side must be from 1 to {MAX_SIDE}")
    fractions = []
    for name in _LOCATION[2:]:
        path, values = columns[name]
        fraction = _numbers(path, values, name)
        bad = np.flatnonzero((fraction < -1) | (fraction > 2))
        if len(bad):
            raise InputError(
                path,
                f"row {bad[0] + 1}: {name} is {fraction[bad[0]]:g}; a fraction of the micrograph, 0 to 1, is needed",
            )
        fractions.append(fraction)
    x, y = fractions
    return np.stack([x * shape[:, 1], (1.0 - y) * shape[:, 0]], axis=1)


def _ctf_values(columns: dict[str, tuple[Path, npt.NDArray[Any]]]) -> dict[str, FloatArray]:
    """The fields of `Ctf` of each row, in its units; empty where a column is missing."""
    if not all(name in columns for name in _CTF):
        return {}
    fields = {field: _numbers(*columns[name], name) for name, field in _CTF.items()}
    fields["defocus_angle_deg"] = fields["defocus_angle_deg"] * (180.0 / math.pi)
    if _PHASE_SHIFT in columns:
        fields["phase_shift_deg"] = _numbers(*columns[_PHASE_SHIFT], _PHASE_SHIFT) * (180.0 / math.pi)
    return fields
