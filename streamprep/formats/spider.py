"""SPIDER images, volumes and image stacks (``.spi``, ``.vol``, ``.stk``, ``.xmp``), which Xmipp writes, too.

A file is a header, then float32 pixels, x fastest. Everything in the header is float32, whole numbers among it, in the
byte order of the machine that wrote it; nothing says which, so the one in which the header makes sense is taken.
Counted from 1, the fields read here are: 1 nslice, 2 nrow, 5 iform (1 image, 3 volume, negative: Fourier transforms),
12 nsam, 13 labrec (records in the header), 22 labbyt (bytes in the header, labrec · lenbyt, at least 1024), 23 lenbyt
(bytes per record, 4 · nsam), 24 istack (0 single, above 0 the header of a stack, below 0 an indexed stack), 26 maxim
(highest image in use). A stack is that header, then for each image a header of the same size and its pixels.

The format has no pixel size that programs agree on; none is given.

Source: SPIDER's documentation, "Format of SPIDER image files".
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from streamprep.model import Image, InputError, Kind

MIN_HEADER_BYTES = 1024
MAX_HEADER_BYTES = 1 << 20
MAX_SIDE = 1 << 17
_MAX_IMAGES = 1 << 24
_FIELDS = {
    "nslice": 1,
    "nrow": 2,
    "iform": 5,
    "nsam": 12,
    "labrec": 13,
    "labbyt": 22,
    "lenbyt": 23,
    "istack": 24,
    "maxim": 26,
}


@dataclass(frozen=True, slots=True)
class SpiderHeader:
    """The fields of the header that decide what the file is."""

    nx: int
    ny: int
    nz: int
    images: int | None
    """Images of a stack; None for a single image or volume."""
    volume: bool
    header_bytes: int
    file_bytes: int
    """Size that the whole file must have."""
    byte_order: Literal["<", ">"]


def parse_header(path: Path, head: bytes) -> SpiderHeader:
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
        The header makes no sense in either byte order, or is of a kind that is not read.
    """
    if len(head) < MIN_HEADER_BYTES:
        raise InputError(path, f"a SPIDER header has at least 1024 bytes, this file has only {len(head)}")
    problems: dict[str, str] = {}
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        words = struct.unpack_from(f"{order}{max(_FIELDS.values())}f", head)
        fields: dict[str, int] = {}
        for name, position in _FIELDS.items():
            value = words[position - 1]
            if not math.isfinite(value) or value != int(value):
                problems[order] = f"field {position}, {name}, is {value:g}, not a whole number"
                break
            fields[name] = int(value)
        else:
            problem = _problem(fields)
            if problem is None:
                return _header(path, fields, order)
            problems[order] = problem
    # the order in which more of it makes sense is the one to speak of: whole numbers are rarely there by chance
    said = next((text for text in problems.values() if "whole number" not in text), problems["<"])
    raise InputError(path, f"not a usable SPIDER file: {said}")


def _problem(fields: dict[str, int]) -> str | None:
    for name in ("nsam", "nrow", "nslice"):
        side = abs(fields[name]) if name == "nslice" else fields[name]  # old images have -1 slices
        if not 0 < side <= MAX_SIDE:
            return f"its header says {name} is {fields[name]}; it must be from 1 to {MAX_SIDE}"
    labrec, lenbyt, labbyt, row_bytes = fields["labrec"], fields["lenbyt"], fields["labbyt"], 4 * fields["nsam"]
    if lenbyt != row_bytes:
        return f"its header says lenbyt is {lenbyt}; {fields['nsam']} pixels per record make {row_bytes}"
    if labbyt != labrec * lenbyt or not MIN_HEADER_BYTES <= labbyt <= MAX_HEADER_BYTES:
        return (
            f"its header says labbyt is {labbyt}, with {labrec} records of {lenbyt} bytes; it must be their product, "
            f"and from {MIN_HEADER_BYTES} to {MAX_HEADER_BYTES}"
        )
    return None


def _header(path: Path, fields: dict[str, int], order: Literal["<", ">"]) -> SpiderHeader:
    nx, ny, nz, iform = fields["nsam"], fields["nrow"], abs(fields["nslice"]), fields["iform"]
    if iform not in (1, 3):
        kind = "a Fourier transform" if iform < 0 else "of an unknown type"
        raise InputError(path, f"it is {kind} (iform {iform}); images (1) and volumes (3) are read")
    if iform == 1 and nz != 1:
        raise InputError(path, f"its header says an image (iform 1) of {nz} slices; an image has one")
    if fields["istack"] < 0:
        raise InputError(path, f"it is an indexed stack (istack {fields['istack']}); plain stacks are read")
    images = None
    count = 1
    if fields["istack"] > 0:
        if nz != 1:
            raise InputError(path, f"it is a stack of volumes of {nz} slices; stacks of images are read")
        images = count = fields["maxim"]
        if not 0 <= count <= _MAX_IMAGES:
            raise InputError(path, f"its header says maxim is {count}; it must be from 0 to {_MAX_IMAGES}")
    header_bytes = fields["labbyt"]
    file_bytes = count * (header_bytes + 4 * nx * ny * nz) + (0 if images is None else header_bytes)
    return SpiderHeader(nx, ny, nz, images, iform == 3, header_bytes, file_bytes, order)


def recognise(path: Path, head: bytes) -> Kind | None:
    """``micrograph`` for a single image, ``particles`` for a stack, ``map`` for a volume; None for anything else."""
    try:
        header = parse_header(path, head)
    except InputError:
        return None
    if header.images is not None:
        return "particles"
    return "map" if header.volume else "micrograph"


def missing(path: Path, size_bytes: int, head: bytes) -> str | None:
    """What is not there yet of a file that is being written; None when it is whole.

    Raises
    ------
    InputError
        The header can never become a usable file.
    """
    if not size_bytes:
        return "the file is empty"
    if size_bytes < MIN_HEADER_BYTES:
        return f"{size_bytes} of the 1024 bytes or more of a SPIDER header"
    if not any(head[:MIN_HEADER_BYTES]):
        return "its header is still all zero"
    header = parse_header(path, head)
    if header.images == 0:
        return "a stack without images"
    if size_bytes != header.file_bytes:
        relation = "truncated" if size_bytes < header.file_bytes else "longer than its header says"
        images = "" if header.images is None else f"{header.images} images of "
        return (
            f"{relation}: it has {size_bytes} bytes, {images}{header.nx} × {header.ny} × {header.nz} with headers of "
            f"{header.header_bytes} bytes make {header.file_bytes}"
        )
    return None


def read(path: Path) -> Image:
    """A complete file: float32 of shape (ny, nx), (nz, ny, nx) for a volume, (n, ny, nx) for a stack.

    Raises
    ------
    InputError
        The file is truncated, longer than its header says, or not SPIDER.
    """
    with path.open("rb") as file:
        head = file.read(MIN_HEADER_BYTES)
    said = missing(path, path.stat().st_size, head)
    if said is not None:
        raise InputError(path, said)
    header = parse_header(path, head)
    values = (header.file_bytes - header.header_bytes) // 4
    data = np.fromfile(path, np.dtype(f"{header.byte_order}f4"), values, offset=header.header_bytes)
    if data.size != values:
        raise InputError(path, "it became shorter while it was read")
    if header.images is None:
        pixels = data.reshape((header.nz, header.ny, header.nx) if header.volume else (header.ny, header.nx))
    else:
        rows = data.reshape(header.images, -1)[:, header.header_bytes // 4 :]
        pixels = rows.reshape(header.images, header.ny, header.nx)
    return Image(pixels.astype(np.float32, copy=False))
