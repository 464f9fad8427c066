"""TIFF micrographs: one grey image, uncompressed or packed by LZW, deflate or PackBits; also BigTIFF.

The directories are checked by `_ifd` against the file's size before anything else is done, so that a cut file is never
read as a shorter one; what is then known of the image is compared with what tifffile finds, which unpacks it.

Pixels are as stored: the first row of the array is the first row in the file whatever the tag Orientation says, and
values are not inverted where low ones are said to be white. ``[matching] flip_y`` is for programs that count rows from
the other end.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from streamprep.formats._ifd import MAX_SIDE, Directories, Directory, Incomplete, check_magic
from streamprep.model import Image, InputError, Kind

COMPRESSIONS = {
    1: ("none", 1),
    5: ("LZW", 1366),
    8: ("deflate", 1032),
    32773: ("PackBits", 64),
    32946: ("deflate", 1032),
}
"""Code → name, and how many bytes one byte can become: LZW when the table fills with ever longer runs, deflate with
runs of 258 bytes in two bits, PackBits with runs of 128 in two bytes."""
PREDICTORS = {1: "none", 2: "differences", 3: "floating point"}
TYPES = {
    (1, 8): "u1", (1, 16): "u2", (1, 32): "u4",
    (2, 8): "i1", (2, 16): "i2", (2, 32): "i4",
    (3, 16): "f2", (3, 32): "f4", (3, 64): "f8",
}  # fmt: skip
"""SampleFormat and BitsPerSample → type."""
PHOTOMETRIC = {2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIE L*a*b*"}
MAX_BYTES = 1 << 32
"""Of one image, unpacked."""
_PLAIN_BYTES = 1 << 26
_LIKELY_RATIO = 100
"""More than 64 MiB of pixels must not be packed to less than a hundredth of them: noise cannot be."""
_SPARE_BYTES = 1 << 16
_MAX_TAG_BYTES = 1 << 22
_PLACES = (273, 279, 324, 325)
"""Tags of the offsets and byte counts of strips and tiles, which are bounded by themselves."""
_DESCRIPTION_BYTES = 1 << 16
_ANGSTROM_PER_UNIT = {
    "a": 1.0, "å": 1.0, "ångström": 1.0, "angstrom": 1.0, "angstroms": 1.0,
    "nm": 10.0, "nanometer": 10.0, "um": 1e4, "µm": 1e4, "μm": 1e4, "\\u00b5m": 1e4, "micron": 1e4, "microns": 1e4,
    "mm": 1e7, "cm": 1e8, "inch": 2.54e8,
}  # fmt: skip
_ANGSTROM_PER_RESOLUTION_UNIT = {2: 2.54e8, 3: 1e8}
_PIXEL_SIZES_ANGSTROM = (0.01, 1000.0)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the image is, as checked."""

    page: int
    """Index of its directory."""
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    offsets: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.uint64]
    compression: int
    predictor: int


def missing(path: Path, size_bytes: int, head: bytes) -> str | None:
    """What is not there yet of a file that is being written; None when all that it points to is there.

    The file is opened, for directories may lie anywhere in it.

    Raises
    ------
    InputError
        It can never become a usable TIFF file.
    """
    try:
        check_magic(path, head[:size_bytes])
        with path.open("rb") as file:
            Directories(path, file, size_bytes)
    except Incomplete as said:
        return str(said)
    return None


def recognise(path: Path) -> Kind:
    """``micrograph``, for a file of one grey image.

    Raises
    ------
    InputError
        It is cut, or holds something else.
    """
    with _opened(path) as (_, directories):
        _layout(directories)
    return "micrograph"


def read(path: Path) -> Image:
    """The image, shape (ny, nx), in the machine's byte order, and its pixel size where the file gives a possible one.

    A pixel size comes from ImageJ's description, or from XResolution where its unit is inch or centimetre, and counts
    from 0.01 to 1000 Å: the 72 dots per inch that many programs write are none.

    Raises
    ------
    InputError
        The file is cut, damaged, or not one grey image of a known type; or tifffile or imagecodecs is not installed.
    """
    with _opened(path) as (file, directories):
        layout = _layout(directories)
        pixel_size = _pixel_size_angstrom(directories, directories.all[layout.page])
        return Image(_pixels(path, file, layout), pixel_size)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], Directories]]:
    with path.open("rb") as file:
        try:
            directories = Directories(path, file, os.fstat(file.fileno()).st_size)
            yield file, directories
        except Incomplete as said:
            raise InputError(path, str(said)) from said


def _layout(directories: Directories) -> _Layout:
    """The one image of a file, checked: its type, its parts, and what they unpack to."""
    path = directories.path

    def never(reason: str) -> InputError:
        return InputError(path, f"not a TIFF micrograph: {reason}")

    images = [page for page in directories.all if not directories.number(page, 254, 0) & 5]  # no thumbnail, no mask
    if len(images) != 1:
        raise never(f"it holds {len(images)} images; a micrograph is one")
    (page,) = images

    def number(tag: int, default: int) -> int:
        return directories.number(page, tag, default)

    samples = number(277, 1)
    if samples != 1:
        raise never(f"it has {samples} samples per pixel; a grey image has one")
    nx, ny = number(256, 0), number(257, 0)
    _check_depth(directories, page, nx * ny, never)
    if number(262, 1) not in (0, 1):
        raise never(f"it is {PHOTOMETRIC.get(number(262, 1), f'of photometric type {number(262, 1)}')}, not grey")
    kind, bits = number(339, 1), number(258, 1)
    if (kind, bits) not in TYPES:
        raise never(f"its pixels have {bits} bits of sample format {kind}; known are {', '.join(TYPES.values())}")
    dtype = np.dtype(TYPES[kind, bits])
    compression, predictor, fill_order = number(259, 1), number(317, 1), number(266, 1)
    if compression not in COMPRESSIONS:
        raise never(f"its compression is {compression}; known are {', '.join(map(str, COMPRESSIONS))}")
    if predictor not in PREDICTORS or (predictor == 3 and kind != 3) or (predictor > 1 and compression in (1, 32773)):
        raise never(f"predictor {predictor} cannot be used on {dtype} with compression {compression}")
    if fill_order != 1:
        raise never(f"its fill order is {fill_order}; only 1 is read")
    opened = directories.all[: page.number]  # whose tags tifffile loads
    if sum(f.nbytes for one in opened for tag, f in one.fields.items() if tag not in _PLACES) > _MAX_TAG_BYTES:
        raise never(f"its tags take more than {_MAX_TAG_BYTES} bytes")
    parts = directories.segments(page)
    if parts is None:
        raise never("it has neither strips nor tiles")
    name, offsets, counts = parts
    if name == "tile":
        columns, rows = number(322, 0), number(323, 0)
    else:
        columns, rows = nx, min(number(278, ny), ny)
    if not (0 < columns <= MAX_SIDE and 0 < rows <= MAX_SIDE):
        raise never(f"its {name}s are of {columns} × {rows}; each size must be at least 1 and at most {MAX_SIDE}")
    needed = math.ceil(nx / columns) * math.ceil(ny / rows)
    if len(offsets) != needed:
        raise never(f"{nx} × {ny} pixels make {needed} {name}s of {columns} × {rows}, it has {len(offsets)}")
    unpacked = np.full(len(offsets), rows * columns * dtype.itemsize, np.uint64)
    if name == "strip":
        unpacked[-1] = (ny - (needed - 1) * rows) * columns * dtype.itemsize
    total = sum(unpacked.tolist())
    if total > MAX_BYTES:
        raise never(f"{total} bytes of pixels; at most {MAX_BYTES} are read")
    ratio = COMPRESSIONS[compression][1]
    stored = sum(counts.tolist())
    if stored > directories.size_bytes:
        raise never(f"its {name}s overlap: together they have {stored} bytes, the file {directories.size_bytes}")
    large = np.flatnonzero(counts > 2 * unpacked + np.uint64(_SPARE_BYTES))
    if large.size:
        raise never(f"{name} {large[0] + 1} has {counts[large[0]]} bytes for {unpacked[large[0]]} bytes of pixels")
    small = np.flatnonzero((unpacked + np.uint64(ratio - 1)) // np.uint64(ratio) > counts)
    if small.size:
        raise never(
            f"{name} {small[0] + 1} of {needed} has {counts[small[0]]} bytes, from which compression {compression} "
            f"cannot make the {unpacked[small[0]]} of its pixels"
        )
    if total > stored * (ratio if total <= _PLAIN_BYTES else min(ratio, _LIKELY_RATIO)):
        raise never(f"{total} bytes of pixels are said to be packed in {stored}; no micrograph is as empty as that")
    return _Layout(page.number - 1, (ny, nx), dtype, offsets, counts, compression, predictor)


def _check_depth(directories: Directories, page: Directory, pixels: int, never: Any) -> None:
    """Programs hide further images behind one directory: a depth, ImageJ's and tifffile's descriptions."""
    text = _description(directories, page)
    depth = directories.number(page, 32997, 1)
    if text.startswith("ImageJ=") and (said := re.search(r"^images=(\d{1,18})\s*$", text, re.MULTILINE)):
        depth = max(depth, int(said[1]))
    if depth != 1:
        raise never(f"it holds {depth} images; a micrograph is one")
    said = re.match(r'\{"shape": \[([0-9, ]{1,200})\]', text)
    shape = [] if said is None else [int(side) for side in said[1].split(",") if side.strip()]
    if shape and math.prod(shape) != pixels:
        raise never(f"its description says an array of {' × '.join(map(str, shape))}; a micrograph is one image")


def _description(directories: Directories, page: Directory) -> str:
    return directories.raw(page, 270, 2, _DESCRIPTION_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")


def _pixel_size_angstrom(directories: Directories, page: Directory) -> float | None:
    """Å per pixel where the file says so, along both axes the same, and it is possible; else None."""
    unit = _ANGSTROM_PER_RESOLUTION_UNIT.get(directories.number(page, 296, 2))
    text = _description(directories, page)
    if text.startswith("ImageJ=") and (said := re.search(r"^unit=(.+)$", text, re.MULTILINE)):
        unit = _ANGSTROM_PER_UNIT.get(said[1].strip().lower(), unit)
    sizes = []
    for tag in (282, 283):
        raw = directories.raw(page, tag, 5, 8)
        if len(raw) == 8:
            pixels, units = struct.unpack(directories.byte_order + "II", raw)
            sizes.append(units / pixels if pixels else 0.0)
    if unit is None or not sizes or max(sizes) > 1.01 * min(sizes):
        return None
    size = sizes[0] * unit
    return size if _PIXEL_SIZES_ANGSTROM[0] <= size <= _PIXEL_SIZES_ANGSTROM[1] else None


def _pixels(path: Path, file: IO[bytes], layout: _Layout) -> npt.NDArray[Any]:
    """The strips or tiles, unpacked one after the other, each to exactly its own size."""
    try:
        import imagecodecs  # noqa: F401 - tifffile's own stand-ins do not bound what they unpack
        import tifffile
    except ImportError as error:
        reason = f"to read TIFF, {error.name or 'tifffile'} is needed: pip install 'streamprep[tiff]'"
        raise InputError(path, reason) from error
    try:
        with _silent("tifffile"):
            file.seek(0)
            page: Any = tifffile.TiffFile(file).pages[layout.page]
            found = (page.shape, page.dtype, page.compression, page.predictor, page.samplesperpixel, page.fillorder)
            expected = (layout.shape, layout.dtype, layout.compression, layout.predictor, 1, 1)
            same = np.array_equal(page.dataoffsets, layout.offsets) and np.array_equal(
                page.databytecounts, layout.counts
            )
            if found != expected or not same:
                raise InputError(path, f"tifffile understands it otherwise, as {page.dtype} of {page.shape}")
            pixels = np.empty(layout.shape, layout.dtype)
            for part, (_, _, y, x, _), shape in page.segments(maxworkers=1, buffersize=1 << 24, _fullsize=False):
                kept = pixels[y : y + shape[1], x : x + shape[2]]
                kept[...] = part[0, : kept.shape[0], : kept.shape[1], 0]
    except (InputError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file, not of what is in it
        raise InputError(path, f"its {COMPRESSIONS[layout.compression][0]} data are damaged: {error}") from error
    return pixels


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    """A library's messages are not for the terminal: what matters of them becomes an error here."""

    def none(_: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger(name)
    logger.addFilter(none)
    try:
        yield
    finally:
        logger.removeFilter(none)
