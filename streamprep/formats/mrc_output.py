"""Writing of MRC stacks and maps, with true headers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import numpy.typing as npt
from mrcfile.dtypes import HEADER_DTYPE

from streamprep.arrays import SLAB_BYTES, in_slabs
from streamprep.formats.checksum import combined, crc32
from streamprep.formats.mrc import CRYSTAL_GROUPS, HEADER_BYTES, content, read_header

LABELS = 10


class StackWriter:
    """A stack of images or a volume that is written part by part, in any order, from several threads; see `write`.

    Leaving the ``with`` block without an error writes the header's statistics. With ``checksum`` there is then the
    CRC-32 of the file, which is made of what is written and not read again.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        dtype: npt.DTypeLike = np.float32,
        *,
        pixel_size_angstrom: float,
        stack: bool = True,
        label: str = "streamprep",
        template: Path | None = None,
        checksum: bool = False,
    ) -> None:
        if not shape[0]:
            raise ValueError("an MRC file cannot hold zero images")
        with mrcfile.new(path, overwrite=True) as file:
            file.set_data(np.zeros((1, *shape[1:]), np.dtype(dtype).newbyteorder("=")))
            if stack:
                file.set_image_stack()
            else:
                file.set_volume()
                file.header.mz = shape[0]
            _describe(file, shape, pixel_size_angstrom, label, template)
            self._offset = HEADER_BYTES + int(file.header.nsymbt)
            self._dtype = file.data.dtype
        self._shape = shape
        self._statistics: dict[int, _Statistics] = {}
        self._checksums: dict[int, tuple[int, int]] | None = {} if checksum else None
        self.crc32: int | None = None
        self._file = path.open("r+b", buffering=0)

    def __enter__(self) -> StackWriter:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        with self._file:
            if error is None:
                self.finish()

    def fileno(self) -> int:
        """Descriptor of the file."""
        return self._file.fileno()

    def place(self, start: int, stop: int) -> tuple[int, int]:
        """Where some images are in the file, and how many bytes they take."""
        each = math.prod(self._shape[1:]) * self._dtype.itemsize
        return self._offset + start * each, (stop - start) * each

    def close(self) -> None:
        """Leave the file as it is."""
        self._file.close()

    def write(self, start: int, images: npt.NDArray[Any]) -> bool:
        """Put images at ``start``, and say whether all their values are finite."""
        stored = np.ascontiguousarray(images, self._dtype)
        said = self._statistics[start] = _Statistics.of(stored)
        view = memoryview(stored.reshape(-1).view(np.uint8).data)
        if self._checksums is not None:
            self._checksums[start] = crc32(view), len(view)
        self._put(view, self.place(start, start)[0])
        return math.isfinite(said.least) and math.isfinite(said.greatest)

    def _put(self, view: memoryview, place: int) -> None:
        while view:  # a call may write less than it was given
            done = os.pwrite(self._file.fileno(), view, place)
            view, place = view[done:], place + done

    def finish(self) -> None:
        """Write the header, once all images are there."""
        written = [self._statistics[start] for start in sorted(self._statistics)]
        if sum(part.count for part in written) != math.prod(self._shape):
            raise ValueError(f"not all of the {self._shape[0]} images were written")
        head = os.pread(self._file.fileno(), self._offset, 0)
        raw = np.frombuffer(head, HEADER_DTYPE, 1).copy()
        raw["nz"] = self._shape[0]
        _Statistics.together(written).put_into(raw[0])
        self._put(memoryview(raw.tobytes()), 0)
        if self._checksums is not None:
            parts = (self._checksums[start] for start in sorted(self._checksums))
            self.crc32 = combined(crc32(raw.tobytes() + head[HEADER_BYTES:]), parts)


def write(
    path: Path,
    data: npt.NDArray[Any],
    *,
    pixel_size_angstrom: float,
    stack: bool,
    label: str = "streamprep",
    template: Path | None = None,
) -> None:
    """Write an image stack or a map with true header statistics, along the usual axes (x fastest).

    Parameters
    ----------
    path
        A new file.
    data
        Shape (n, ny, nx) for stacks, (nz, ny, nx) for maps; float32, float16, int8, int16 or uint16.
    pixel_size_angstrom
        Written as the voxel size.
    stack
        Images (space group 0) or a volume (space group 1).
    label
        Label of the header, after those of the template; where there are ten, it takes the place of the last. No time
        is written, so that the same data make the same bytes.
    template
        The MRC file that the data were made from. Its labels are kept; where the shape is still its own, its origin,
        start, and extended header, too, and of a volume the space group, cell and sampling.
    """
    shape = (len(data), *data.shape[1:])
    with StackWriter(
        path, shape, data.dtype, pixel_size_angstrom=pixel_size_angstrom, stack=stack, label=label, template=template
    ) as writer:
        if not stack:
            in_slabs(lambda start, stop: writer.write(start, data[start:stop]), data)
            return
        for start, stop in slabs(len(data), data[0].nbytes):
            writer.write(start, data[start:stop])


def slabs(count: int, image_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of images, of so many bytes each, that stay in a core's cache while they are looked at and written."""
    step = max(1, SLAB_BYTES // max(1, image_bytes))
    return ((start, min(start + step, count)) for start in range(0, count, step))


@dataclass(frozen=True, slots=True)
class _Statistics:
    """What an MRC header says of values: mean and standard deviation (ddof = 0) summed as in float64."""

    count: int
    least: float
    greatest: float
    mean: float
    squares: float
    """Sum of squared deviations from the mean."""

    @classmethod
    def of(cls, sections: npt.NDArray[Any]) -> _Statistics:
        """Of sections (n, ny, nx): rows summed in float32, then float64; of what differs from the mean if it is far."""
        with np.errstate(over="ignore", invalid="ignore"):
            values = sections.astype(np.float32, copy=False)
            near = np.float32(0)
            first, second = _sums(values)
            if first * first > 10 * (values.size * second - first * first):
                near = np.float32(first / values.size)
                first, second = _sums(values - near)
            if not math.isfinite(second):  # float32 has no squares of values beyond 1e19
                near = np.float32(0)
                first, second = _sums(values.astype(np.float64))
            offset = first / values.size
            least, greatest = float(sections.min()), float(sections.max())
            return cls(values.size, least, greatest, float(near) + offset, second - first * offset)

    @classmethod
    def together(cls, parts: Sequence[_Statistics]) -> _Statistics:
        count = sum(part.count for part in parts)
        mean = parts[0].mean + sum(part.count * (part.mean - parts[0].mean) for part in parts) / count
        squares = sum(part.squares + part.count * (part.mean - mean) ** 2 for part in parts)
        least, greatest = min(part.least for part in parts), max(part.greatest for part in parts)
        return cls(count, least, greatest, mean, squares)

    def put_into(self, header: Any) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            header["dmin"], header["dmax"] = self.least, self.greatest
            header["dmean"], header["rms"] = self.mean, max(self.squares / self.count, 0.0) ** 0.5


def _sums(values: npt.NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Of the values and of their squares."""
    ones = np.ones(values.shape[-1], values.dtype)
    first, second = (float(np.vecdot(values, other).sum(dtype=np.float64)) for other in (ones, values))
    return first, second


def _describe(file: Any, shape: tuple[int, ...], pixel_size_angstrom: float, label: str, template: Path | None) -> None:
    """The voxel size, the labels, and what the template has beside."""
    file.voxel_size = pixel_size_angstrom
    labels = [] if template is None else _keep(file, shape, template, pixel_size_angstrom)
    labels = [*labels[: LABELS - 1], label.encode("ascii", "replace")[:79]]
    file.header.label[:] = b""
    file.header.label[: len(labels)] = labels
    file.header.nlabl = len(labels)


def _keep(file: Any, shape: tuple[int, ...], template: Path, pixel_size_angstrom: float) -> list[bytes]:
    """Take over what the template's header says beyond sizes and statistics; returns its labels."""
    said = read_header(template)
    with template.open("rb") as opened:
        source = content(opened)
        raw = source.read(HEADER_BYTES)
        extended = source.read(said.extended_bytes)
    found = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(said.byte_order))[0]
    sides = {1: said.nx, 2: said.ny, 3: said.nz}
    axes = [said.axes.index(axis) + 1 for axis in (1, 2, 3)]  # where in the template x, y and z are
    header = file.header
    if list(reversed(shape)) == [sides[axis] for axis in axes]:
        for to, axis in zip("xyz", axes, strict=True):
            header[f"n{to}start"] = found[f"n{'xyz'[axis - 1]}start"]
        scale = pixel_size_angstrom / (said.pixel_size_angstrom or pixel_size_angstrom)
        if np.isfinite(found["origin"].tolist()).all():
            header.origin = tuple(length * scale for length in found["origin"].tolist())
        text = extended.isascii()
        if extended and (text or np.dtype(said.byte_order + "i4").isnative):  # numbers of the other order stay turned
            file.set_extended_header(np.frombuffer(extended, "V1"))
            header.exttyp = bytes(found["exttyp"]).strip(b"\0 ") or (b"CCP4" if text else b"MRCO")
        cell, angles = found["cella"].tolist(), found["cellb"].tolist()
        sampling = [int(found[name]) for name in ("mx", "my", "mz")]
        true = all(0 < length < np.inf for length in (*cell, *angles, *sampling))
        if said.space_group in CRYSTAL_GROUPS and file.is_volume() and true:
            header.ispg = said.space_group
            header.mx, header.my, header.mz = sampling
            header.cella, header.cellb = tuple(length * scale for length in cell), tuple(angles)
    labels = [bytes(label).replace(b"\0", b" ").rstrip() for label in found["label"]]
    return [label.decode("ascii", "replace").encode("ascii", "replace") for label in labels if label]
