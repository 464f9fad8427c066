"""The directories (IFDs) of a TIFF file, classic and BigTIFF, and whether all that they point to is in the file.

Nothing is taken for granted: offsets, counts and sizes are checked before anything is read by them, and the work and
memory that a forged file can ask for are bounded.

Source: TIFF 6.0 (Adobe, 1992); BigTIFF as libtiff and AWare Systems describe it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamprep.model import InputError

MAX_SIDE = 1 << 17
MAX_SEGMENTS = MAX_SIDE
"""Strips or tiles of one image."""
_MAX_ENTRIES = 1024  # of one directory
_MAX_ALL_ENTRIES = 1 << 15
_MAX_ALL_SEGMENTS = 1 << 22
_MAX_DIRECTORIES = 1 << 13
_MAGIC = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Field type → bytes per value."""
_UNSIGNED = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_WIDTH, _LENGTH = 256, 257
_SEGMENT_TAGS = {"strip": (273, 279), "tile": (324, 325)}
"""What the parts of an image are called → tags of their offsets and of their byte counts."""


class Incomplete(Exception):  # noqa: N818 - a state of a file that is being written, not an error
    """What the file points to is not there yet."""


class Field(NamedTuple):
    """Where the values of a tag lie."""

    type: int
    values: int
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return self.values * _BYTES[self.type]


@dataclass(frozen=True, slots=True)
class Directory:
    """One directory: tag → field, the first where a tag stands twice. Fields of unknown types are left out."""

    number: int
    """From 1."""
    fields: dict[int, Field]


class Directories:
    """The chain of directories of an open file.

    Parameters
    ----------
    path
        For messages.
    file
        Open for reading, in binary.
    size_bytes
        Size of the file; nothing may lie beyond it.

    Raises
    ------
    Incomplete
        Something that is pointed to is not in the file: it may still be growing, or was cut.
    InputError
        It can never become a usable TIFF file.
    """

    def __init__(self, path: Path, file: IO[bytes], size_bytes: int) -> None:
        self.path, self.file, self.size_bytes = path, file, size_bytes
        self._segments = 0
        head = self._read(0, min(size_bytes, 16))
        check_magic(path, head)
        self.byte_order, self.big = _MAGIC[head[:4]]
        if self.big:
            if len(head) < 16:
                raise Incomplete(f"{len(head)} of the 16 bytes of a BigTIFF header")
            width, zero, offset = struct.unpack_from(self.byte_order + "HHQ", head, 4)
            if (width, zero) != (8, 0):
                raise InputError(path, f"its BigTIFF header says offsets of {width} bytes; they have 8")
        else:
            offset = struct.unpack_from(self.byte_order + "I", head, 4)[0]
        self.all = self._walk(offset)
        for directory in self.all:
            self._check(directory)

    def numbers(self, directory: Directory, tag: int, most: int) -> npt.NDArray[np.uint64] | None:
        """The values of a tag of whole numbers, at most ``most``; None where the directory has no such tag."""
        field = directory.fields.get(tag)
        if field is None:
            return None
        if field.type not in _UNSIGNED or not 0 < field.values <= most:
            raise self._never(
                directory, f"tag {tag} has {field.values} values of type {field.type}; allowed: 1 to {most} whole"
            )
        raw = self._read(field.offset, field.nbytes)
        return np.frombuffer(raw, self.byte_order + _UNSIGNED[field.type]).astype(np.uint64)

    def number(self, directory: Directory, tag: int, default: int) -> int:
        """The one value of a tag."""
        found = self.numbers(directory, tag, 1)
        return default if found is None else int(found[0])

    def raw(self, directory: Directory, tag: int, kind: int, most: int) -> bytes:
        """The first ``most`` bytes of a tag's values; none where there is no such tag of this type."""
        field = directory.fields.get(tag)
        return b"" if field is None or field.type != kind else self._read(field.offset, min(field.nbytes, most))

    def segments(self, directory: Directory) -> tuple[str, npt.NDArray[np.uint64], npt.NDArray[np.uint64]] | None:
        """What the parts of an image are called, their offsets and their byte counts; None where it has none."""
        for name, tags in _SEGMENT_TAGS.items():
            offsets, counts = (self.numbers(directory, tag, MAX_SEGMENTS) for tag in tags)
            if offsets is None and counts is None:
                continue
            if offsets is None or counts is None or len(offsets) != len(counts):
                said = [0 if found is None else len(found) for found in (offsets, counts)]
                raise self._never(directory, f"it gives {said[0]} offsets and {said[1]} byte counts of {name}s")
            return name, offsets, counts
        return None

    def _walk(self, offset: int) -> list[Directory]:
        count_format, count_bytes, entry_format, tail = ("Q", 8, "HHQ8s", "Q") if self.big else ("H", 2, "HHI4s", "I")
        entry = struct.Struct(self.byte_order + entry_format)
        tail_bytes = struct.calcsize(tail)
        if not offset:
            raise Incomplete("its header names no directory yet")
        found: list[Directory] = []
        seen: set[int] = set()
        entries = 0
        while offset:
            number = len(found) + 1
            if offset in seen:
                raise InputError(self.path, f"not a usable TIFF file: after directory {len(found)} its chain is a loop")
            if offset < (16 if self.big else 8):
                raise InputError(self.path, f"not a usable TIFF file: directory {number} is said to lie at {offset}")
            if number > _MAX_DIRECTORIES:
                raise InputError(self.path, f"it has more than {_MAX_DIRECTORIES} directories")
            seen.add(offset)
            self._within(offset, count_bytes, f"directory {number}")
            count = struct.unpack(self.byte_order + count_format, self._read(offset, count_bytes))[0]
            if not count:
                raise Incomplete(f"directory {number} is still empty")
            entries += count
            if count > _MAX_ENTRIES:
                raise InputError(self.path, f"directory {number} has {count} entries; at most {_MAX_ENTRIES} are read")
            if entries > _MAX_ALL_ENTRIES:
                raise InputError(self.path, f"its directories have more than {_MAX_ALL_ENTRIES} entries")
            offset += count_bytes
            self._within(offset, count * entry.size + tail_bytes, f"directory {number}")
            raw = self._read(offset, count * entry.size + tail_bytes)
            found.append(Directory(number, self._fields(number, offset, entry, raw[:-tail_bytes])))
            offset = struct.unpack(self.byte_order + tail, raw[-tail_bytes:])[0]
        return found

    def _fields(self, number: int, offset: int, entry: struct.Struct, raw: bytes) -> dict[int, Field]:
        fields: dict[int, Field] = {}
        inline = 8 if self.big else 4
        for tag, kind, count, value in entry.iter_unpack(raw):
            offset += entry.size
            if not (tag or kind or count):
                raise Incomplete(f"directory {number} is not wholly written")
            if kind not in _BYTES:
                continue
            field, nbytes = Field(kind, count, offset - inline), count * _BYTES[kind]
            if nbytes > inline:
                field = Field(kind, count, int.from_bytes(value, "little" if self.byte_order == "<" else "big"))
                if field.offset + nbytes > self.size_bytes:
                    self._within(field.offset, nbytes, f"tag {tag} of directory {number}")
            fields.setdefault(tag, field)
        return fields

    def _check(self, directory: Directory) -> None:
        """Sizes must be possible, and every strip or tile in the file."""
        nx, ny = (self.number(directory, tag, 0) for tag in (_WIDTH, _LENGTH))
        parts = self.segments(directory)
        if parts is None:
            return
        if not (0 < nx <= MAX_SIDE and 0 < ny <= MAX_SIDE):
            raise self._never(directory, f"it says {nx} × {ny}; each size must be at least 1 and at most {MAX_SIDE}")
        name, offsets, counts = parts
        self._segments += len(offsets)
        if self._segments > _MAX_ALL_SEGMENTS:
            raise InputError(self.path, f"it has more than {_MAX_ALL_SEGMENTS} strips and tiles")
        absent = np.flatnonzero((offsets == 0) | (counts == 0))
        if absent.size:
            raise Incomplete(f"{name} {absent[0] + 1} of {len(offsets)} of directory {directory.number} is not there")
        size = np.uint64(self.size_bytes)
        beyond = np.flatnonzero((offsets > size) | (counts > size - np.minimum(offsets, size)))
        if beyond.size:
            first = int(beyond[0])
            what = f"{name} {first + 1} of {len(offsets)} of directory {directory.number}"
            self._within(int(offsets[first]), int(counts[first]), what)

    def _within(self, offset: int, count: int, what: str) -> None:
        if offset + count > self.size_bytes:
            raise Incomplete(f"truncated: it has {self.size_bytes} bytes, {what} ends at byte {offset + count}")

    def _read(self, offset: int, count: int) -> bytes:
        self.file.seek(offset)
        raw = self.file.read(count)
        if len(raw) != count:
            raise Incomplete("it became shorter while it was read")
        return raw

    def _never(self, directory: Directory, reason: str) -> InputError:
        return InputError(self.path, f"not a usable TIFF file: in directory {directory.number} {reason}")


def check_magic(path: Path, head: bytes) -> None:
    """Whether a file that begins with ``head`` is TIFF.

    Raises
    ------
    Incomplete
        There is too little of it, or nothing but zeros.
    InputError
        It is something else.
    """
    if not head:
        raise Incomplete("the file is empty")
    if len(head) < 8:
        raise Incomplete(f"{len(head)} of the 8 bytes of a TIFF header")
    if not any(head[:8]):
        raise Incomplete("its header is still all zero")
    if head[:4] not in _MAGIC:
        said: Any = head[:4]
        raise InputError(path, f"not a TIFF file: it begins with {said!r}; TIFF begins with II*, MM*, II+ or MM+")
