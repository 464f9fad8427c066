"""Reading of MRC images, stacks and maps (MRC2014). Headers are checked against the size before anything is read.

Pixels are read by numpy, by the header as it was checked here: mrcfile believes a wrong machine stamp, and then asks
for as many bytes as the turned header names. Files are written in `mrc_output`, by mrcfile.
"""

from __future__ import annotations

import bz2
import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from streamprep.model import Image, InputError

HEADER_BYTES = 1024
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2", 101: "u1"}
"""Data mode → type as stored. Mode 101 (IMOD, SerialEM) packs two unsigned pixels of 4 bits into each byte, the first
in the lower half; each row begins with a byte of its own."""
PACKED = 101
CRYSTAL_GROUPS = range(1, 231)
"""Space groups of single volumes; 0 is images, 401 and above are stacks of volumes."""
PLAIN_BYTES = 1 << 28
LIKELY_RATIO = 100
"""More than 256 MiB must not be packed to less than a hundredth of them: noise cannot be."""
_MAX_SIDE = 1 << 17
_PIECE_BYTES = 1 << 20
"""Unpacked at once: the standard library makes a copy of what it unpacks."""
_BIG_ENDIAN_STAMP = 0x11


UNEVEN = "maps whose voxels have sides of different length were read as if all had that along x"


@dataclass(frozen=True, slots=True)
class MrcHeader:
    """The fields of the header that decide what the file is."""

    nx: int
    ny: int
    nz: int
    mode: int
    space_group: int
    extended_bytes: int
    pixel_size_angstrom: float
    """0 where the header does not know."""
    file_bytes: int
    """Size that the whole file must have."""
    byte_order: Literal["<", ">"]
    axes: tuple[int, int, int] = (1, 2, 3)
    """Which of x, y, z (1, 2, 3) a volume's columns, rows and sections run along; as usual for anything else."""
    uneven: bool = False
    """Whether the voxels of a volume have sides that differ by more than 1 %."""


def is_mrc(head: bytes) -> bool:
    """Whether a file that begins with ``head`` says it is MRC."""
    return len(head) >= 212 and head[208:211] == b"MAP"


def compression(head: bytes) -> Literal["gzip", "bzip2"] | None:
    """How a file that begins with ``head`` is compressed."""
    if head[:3] == b"\x1f\x8b\x08":
        return "gzip"
    return "bzip2" if head[:3] == b"BZh" and head[4:10] == b"1AY&SY" else None


def plain_head(path: Path, head: bytes, count: int = HEADER_BYTES) -> bytes:
    """The first bytes of what is in a file; fewer where they are not there yet.

    ``head``, its own first bytes, are given back where it is not compressed. bzip2 gives nothing before a whole block,
    which may be 900 kB, is there.

    Raises
    ------
    InputError
        The compressed data are damaged.
    """
    kind = compression(head)
    if kind is None:
        return head
    unpack: Any = zlib.decompressobj(31) if kind == "gzip" else bz2.BZ2Decompressor()
    found = b""
    try:
        with path.open("rb") as file:
            while len(found) < count and not unpack.eof and (packed := file.read(1 << 16)):
                found += unpack.decompress(packed, count - len(found))
    except (zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file, not of what is in it
        raise InputError(path, f"damaged {kind} data: {error}") from error
    return bytes(found)


def parse_header(path: Path, head: bytes) -> MrcHeader:
    """Read and check a header.

    Parameters
    ----------
    path
        For messages.
    head
        The file's first 1024 bytes or more.

    Raises
    ------
    InputError
        Sizes, mode or extended header are impossible, in either byte order.
    """
    if not head:
        raise InputError(path, "the file is empty")
    if len(head) < HEADER_BYTES:
        raise InputError(path, f"an MRC header has 1024 bytes, this file has only {len(head)}")
    said = ""
    fitting: list[MrcHeader] = []
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders if head[212] != _BIG_ENDIAN_STAMP else reversed(orders):
        nx, ny, nz, mode = struct.unpack_from(f"{order}4i", head, 0)
        cell, sampling = struct.unpack_from(f"{order}3f", head, 40), struct.unpack_from(f"{order}3i", head, 28)
        space_group, extended = struct.unpack_from(f"{order}2i", head, 88)
        problem = _problem(nx, ny, nz, mode, extended)
        if problem is None:
            pixel, *others = (
                side / count if count > 0 and np.isfinite(side) and side > 0 else 0.0
                for side, count in zip(cell, sampling, strict=True)
            )
            row = (nx + 1) // 2 if mode == PACKED else nx * np.dtype(MODES[mode]).itemsize
            size = HEADER_BYTES + extended + row * ny * nz
            axes = struct.unpack_from(f"{order}3i", head, 64)
            if space_group not in CRYSTAL_GROUPS or nz == 1 or sorted(axes) != [1, 2, 3]:
                axes = (1, 2, 3)
            uneven = space_group in CRYSTAL_GROUPS and nz > 1 and any(abs(one - pixel) > 0.01 * pixel for one in others)
            fitting.append(MrcHeader(nx, ny, nz, mode, space_group, extended, float(pixel), size, order, axes, uneven))
        said = said or problem or ""
    if not fitting:
        raise InputError(path, f"not a usable MRC file: {said}")
    return min(fitting, key=lambda header: header.file_bytes)  # mode 0 can fit both ways; the other is absurd


def _problem(nx: int, ny: int, nz: int, mode: int, extended: int) -> str | None:
    if not all(0 < side <= _MAX_SIDE for side in (nx, ny)) or not 0 < nz <= 1 << 24:
        return f"its header says {nx} × {ny} × {nz}; each size must be at least 1 and at most {_MAX_SIDE}"
    if mode not in MODES:
        return f"data mode {mode} is not supported; known are {', '.join(map(str, MODES))}"
    if not 0 <= extended <= 1 << 30:
        return f"its header says {extended} bytes of extended header"
    return None


def missing(path: Path, size_bytes: int, head: bytes) -> str | None:
    """What is not there yet of a file that is being written; None when it is whole.

    Of a compressed file only the beginning is looked at: whether its stream ends well is found when it is read.

    Raises
    ------
    InputError
        The header can never become a usable file.
    """
    if not size_bytes:
        return "the file is empty"
    packed = compression(head)
    head = plain_head(path, head)
    if (len(head) if packed else size_bytes) < HEADER_BYTES:
        return f"{len(head) if packed else size_bytes} of the 1024 bytes of an MRC header"
    if not any(head[:HEADER_BYTES]):
        return "its header is still all zero"
    header = parse_header(path, head)
    return None if packed else _wrong_size(header, size_bytes)


def _wrong_size(header: MrcHeader, size_bytes: int) -> str | None:
    if size_bytes == header.file_bytes:
        return None
    relation = "truncated" if size_bytes < header.file_bytes else "longer than its header says"
    return (
        f"{relation}: it has {size_bytes} bytes, {header.nx} × {header.ny} × {header.nz} of mode {header.mode} "
        f"and {header.extended_bytes} bytes of extended header make {header.file_bytes}"
    )


def read_header(path: Path) -> MrcHeader:
    """Header of a complete file; InputError where size and header disagree."""
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    said = missing(path, path.stat().st_size, head)
    if said is not None:
        raise InputError(path, said)
    return parse_header(path, plain_head(path, head))


def read(path: Path) -> Image:
    """A complete file, also of a gzip or bzip2 stream, in the machine's byte order: shape (ny, nx) or (nz, ny, nx).

    Images are as stored. Volumes are turned to the usual axes, x last, where their header says that they are stored
    along others.

    Raises
    ------
    InputError
        The file is truncated, longer than its header says, or not MRC.
    """
    header = read_header(path)
    shape: tuple[int, ...] = (header.nz, header.ny, header.nx)
    if header.nz == 1 and header.space_group == 0:
        shape = shape[1:]
    stored = np.dtype(header.byte_order + MODES[header.mode])
    columns = (header.nx + 1) // 2 if header.mode == PACKED else header.nx
    data = _read_values(path, header, stored, columns * header.ny * header.nz)
    if header.mode == PACKED:
        data = _unpack(data.reshape(-1, columns), header.nx)
    pixels = data.astype(data.dtype.newbyteorder("="), copy=False).reshape(shape)
    if header.axes != (1, 2, 3):
        pixels = np.ascontiguousarray(pixels.transpose([2 - header.axes.index(axis) for axis in (3, 2, 1)]))
    with path.open("rb") as file:
        named = is_mrc(plain_head(path, file.read(HEADER_BYTES)))
    remarks = [] if named else ["images without the map id of MRC files were read by their sizes"]
    if header.uneven:
        remarks.append(UNEVEN)
    return Image(pixels, header.pixel_size_angstrom or None, tuple(remarks))


def _read_values(path: Path, header: MrcHeader, stored: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """The stored values, straight into the array that is used."""
    offset = HEADER_BYTES + header.extended_bytes
    with path.open("rb") as file:
        stream = content(file)
        if stream is file:
            data = np.fromfile(path, stored, count, offset=offset)
            if data.size != count:
                raise InputError(path, "it became shorter while it was read")
            return data
        size = path.stat().st_size
        unpacked = header.file_bytes - HEADER_BYTES
        if unpacked > max(PLAIN_BYTES, LIKELY_RATIO * size):
            raise InputError(path, f"{unpacked} bytes are said to be packed in {size}; no image is as empty as that")
        data = np.empty(count, stored)
        view, filled = memoryview(data.view(np.uint8).data), 0
        try:
            stream.seek(offset)
            while filled < len(view) and (got := stream.readinto(view[filled : filled + _PIECE_BYTES])):
                filled += got
            further = stream.read(1)  # to its end: there the checksum is compared
        except (EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the file, not of what is in it
            raise InputError(path, f"its compressed stream is cut or damaged: {error}") from error
    if filled < len(view) or further:
        relation = "truncated" if filled < len(view) else "longer than its header says"
        raise InputError(path, f"{relation}: by its header {header.file_bytes} bytes are compressed in it")
    return data


def content(file: IO[bytes]) -> Any:
    """A file, or the stream that is compressed in it, from the beginning."""
    kind = compression(file.read(16))
    file.seek(0)
    if kind is None:
        return file
    return gzip.GzipFile(fileobj=file) if kind == "gzip" else bz2.BZ2File(file)


def _unpack(data: npt.NDArray[np.uint8], nx: int) -> npt.NDArray[np.uint8]:
    """Two pixels of each byte, the lower half first; rows of ``nx`` pixels."""
    pixels = np.empty((len(data), 2 * data.shape[1]), np.uint8)
    np.bitwise_and(data, 15, out=pixels[:, ::2])
    np.right_shift(data, 4, out=pixels[:, 1::2])
    return np.ascontiguousarray(pixels[:, :nx])


class StackReader:
    """Images of a stack, or sections of a volume along its usual axes, in float32, part by part.

    Parameters
    ----------
    path
        A complete file.

    Raises
    ------
    InputError
        As of `read`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path)
        self.shape: tuple[int, ...] = (header.nz, header.ny, header.nx)
        self.pixel_size_angstrom = header.pixel_size_angstrom or None
        self.is_uneven = header.uneven
        self._stored = np.dtype(header.byte_order + MODES[header.mode])
        self._offset = HEADER_BYTES + header.extended_bytes
        with path.open("rb") as file:
            packed = compression(file.read(16)) is not None
        self._whole: npt.NDArray[Any] | None = None
        if packed or header.mode == PACKED or header.axes != (1, 2, 3):
            whole = read(path).pixels
            self._whole = whole if whole.ndim == 3 else whole[None]
            self.shape = self._whole.shape
        self._file = path.open("rb", buffering=0)

    def __enter__(self) -> StackReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read_into(self, start: int, images: npt.NDArray[np.float32]) -> None:
        """Images from ``start`` on, as many as there is room for; may be called from several threads.

        Raises
        ------
        InputError
            The file became shorter.
        """
        stop = start + len(images)
        if self._whole is not None:
            images[...] = self._whole[start:stop]
            return
        straight = self._stored == images.dtype and images.flags.c_contiguous
        room = images if straight else np.empty(images.shape, self._stored)
        place = self._offset + start * math.prod(self.shape[1:]) * self._stored.itemsize
        view, filled = memoryview(room.reshape(-1).view(np.uint8).data), 0
        while filled < len(view):
            try:
                got = os.preadv(self._file.fileno(), [view[filled:]], place + filled)
            except OSError as error:
                raise InputError(self.path, f"cannot be read: {error.strerror}") from error
            if not got:
                raise InputError(self.path, "it became shorter while it was read")
            filled += got
        if not straight:
            images[...] = room
