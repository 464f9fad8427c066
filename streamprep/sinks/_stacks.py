"""Stacks of particles as they are stored, or the reason why they cannot be."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from streamprep.formats import mrc, mrc_output
from streamprep.hookspecs import StackStore, StoredStack
from streamprep.model import Label, Particles, StreamprepError
from streamprep.sinks import _files

FLOAT16_MAX = 65504.0
MAX_ROUNDING = 0.1
"""Most that rounding to float16 may take of an image's contrast (rms of what it changes / standard deviation)."""

StackDtype = Literal["float32", "float16"]


class StackFile(StackStore):
    """A stack that is written part by part, checked, and made durable.

    Parameters
    ----------
    path
        A new file; it is gone again where the ``with`` block ends before `finish`.
    dtype
        Type that the images are stored in.
    label, count
        Of the particles.
    """

    def __init__(self, path: Path, dtype: StackDtype, label: Label, count: int) -> None:
        self._path, self._dtype, self._label, self._count = path, np.dtype(dtype), label, count
        self._writer: mrc_output.StackWriter | None = None
        self._shape = (0, 0, 0)
        self._bad = 0
        self._refused: StreamprepError | None = None
        self._finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None and not self._finished:
            self._writer.close()
            with contextlib.suppress(OSError):  # the whole folder goes with its job
                self._path.unlink()

    def put(self, start: int, particles: Particles) -> None:
        """Write the images from ``start`` on. What is wrong with them is told when all are there."""
        with np.errstate(over="ignore"):  # what is beyond float32 is found right below
            images = np.asarray(particles.pixels, dtype=np.float32)
        if self._writer is None:
            _, ny, nx = images.shape
            self._shape = (self._count, ny, nx)
            self._writer = mrc_output.StackWriter(
                self._path,
                self._shape,
                self._dtype,
                pixel_size_angstrom=particles.optics.pixel_size_angstrom,
                checksum=True,
            )
        for first, last in mrc_output.slabs(len(images), images[0].size * self._dtype.itemsize):
            try:
                self._write(self._writer, start + first, images[first:last])
            except StreamprepError as refused:
                self._refused = self._refused or refused
        _files.begin_write_back(self._writer.fileno(), *self._writer.place(start, start + len(images)))

    def _write(self, writer: mrc_output.StackWriter, start: int, images: npt.NDArray[np.float32]) -> None:
        if self._dtype == np.float16:
            is_finite = bool(_finite(images).all())
            if is_finite:
                writer.write(start, _float16(images, start, self._count, self._label))
        else:
            is_finite = writer.write(start, images)
        if not is_finite:
            self._bad += int(len(images) - _finite(images).sum())

    def finish(self) -> tuple[StoredStack, npt.NDArray[Any]]:
        """Make the file durable.

        Raises
        ------
        StreamprepError
            A value is not finite; or, in float16, beyond its range, or an image would lose its contrast. Names the
            image.
        """
        if self._bad:
            raise StreamprepError(
                f"{self._bad} of {self._count} {self._label} images hold values that are not finite after the "
                "operations"
            )
        if self._refused is not None:
            raise self._refused
        if self._writer is None:
            raise ValueError("no images were put into the stack")
        self._writer.finish()
        _files.fsync_file(self._path)  # while it is open: so no error of the disk is forgotten
        self._writer.close()
        self._finished = True
        size = self._path.stat().st_size
        crc32 = self._writer.crc32
        assert crc32 is not None
        pixels = np.memmap(self._path, self._dtype, "r", mrc.HEADER_BYTES, self._shape)
        return StoredStack(self._path.name, size, crc32), pixels.view(np.ndarray)


def _finite(images: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    return np.asarray(np.isfinite(images.sum(axis=(1, 2), dtype=np.float64)))


def _float16(images: npt.NDArray[np.float32], first: int, count: int, label: Label) -> npt.NDArray[np.float16]:
    stored = np.empty(images.shape, np.float16)
    for index, image in enumerate(images):
        number = first + index
        furthest = float(image.flat[np.argmax(np.abs(image))])
        if abs(furthest) > FLOAT16_MAX:
            raise _refused(number, count, label, f"holds {furthest:g}; float16 goes to ±{FLOAT16_MAX:g}")
        stored[index] = image
        contrast = float(image.std(dtype=np.float64))
        rounding = float(np.sqrt(np.mean((stored[index].astype(np.float64) - image) ** 2)))
        if rounding > MAX_ROUNDING * contrast and image.min() < image.max():
            raise _refused(
                number,
                count,
                label,
                f"has values around {float(image.mean(dtype=np.float64)):g} with a standard deviation of "
                f"{contrast:g}, of which rounding to float16 would take {rounding:g}",
            )
    return stored


def _refused(index: int, count: int, label: Label, what: str) -> StreamprepError:
    return StreamprepError(
        f'{label} image {index + 1} of {count} {what}. Normalize the images, or set stack_dtype = "float32" in [sets]'
    )
