"""Sets of images that a parameter names: a random sample of their images, with what their table says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamprep import formats
from streamprep.formats import mrc, spider
from streamprep.model import Entry, Image, ImageSample, IncompleteError, InputError, ParticleRows
from streamprep.stacks import NamedStacks

_UNKNOWN_ANGSTROM = 1.0
"""A pixel size in headers of stacks that says nothing: programs write it where they do not know."""


def sample_images(path: Path, most: int, rng: np.random.Generator) -> ImageSample:
    """Some images of a set, at random.

    Parameters
    ----------
    path
        A STAR or Xmipp table of particles, averages or 2D classes, or a stack of images.
    most
        How many at most.
    rng
        Draws them; they come in the order of the set.

    Returns
    -------
    ImageSample
        Only these images are read. The pixel size is the table's, else that of the stacks' headers.

    Raises
    ------
    InputError
        The file is not there; it, or a stack that it names, cannot be read; it holds no image; the images drawn are not
        all of one size and pixel size.
    IncompleteError
        A stack that it names is not there, or not whole, or holds fewer images so far.

    Notes
    -----
    Names of stacks are absolute, or relative to the folder of the table or to one above it.
    """
    if not path.is_file():
        raise InputError(path, "this is a folder, not a file" if path.is_dir() else "no such file")
    if formats.image_ending(path) in (*formats.IMAGE_ENDINGS, *formats.SPIDER_ENDINGS):
        with _opened(path) as stack:
            chosen = _drawn(path, len(stack), most, rng)
            pixels, sizes = [stack.image(path, index) for index in chosen.tolist()], {stack.pixel_size_angstrom}
        return ImageSample(_stacked(path, pixels), len(stack), _one_size(path, sizes))
    return _from_table(path, formats.read_image_rows(path), most, rng)


def _from_table(path: Path, entries: list[Entry], most: int, rng: np.random.Generator) -> ImageSample:
    said = [(entry.micrograph or "", entry.data) for entry in entries if isinstance(entry.data, ParticleRows)]
    ends = np.cumsum([len(rows) for _, rows in said], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    chosen = _drawn(path, total, most, rng)
    of_entry = np.searchsorted(ends, chosen, side="right")
    pixels: list[npt.NDArray[np.float32]] = []
    parts: list[ParticleRows] = []
    headers: set[float | None] = set()
    places = _places(path, [said[number][0] for number in range(len(said))], set(of_entry.tolist()))
    for number in dict.fromkeys(of_entry.tolist()):
        rows = said[number][1]
        mine = chosen[of_entry == number] - (ends[number] - len(rows))
        parts.append(_rows(rows, mine))
        _need_whole(path, places[number])
        with _opened(places[number]) as stack:
            headers.add(stack.pixel_size_angstrom)
            pixels += [stack.image(path, index) for index in rows.image_index[mine].tolist()]
    told = [set(part.pixel_size_angstrom.tolist()) for part in parts if part.pixel_size_angstrom is not None]
    ctf = [ctf for part in parts for ctf in part.ctf or ()]
    flipped = [bool(value) for part in parts if part.phase_flipped is not None for value in part.phase_flipped]
    return ImageSample(
        _stacked(path, pixels),
        total,
        _one_size(path, set().union(*told) if told else headers),
        tuple(ctf) if len(ctf) == len(pixels) else None,
        tuple(flipped) if len(flipped) == len(pixels) else None,
        {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
    )


def require_stacks(path: Path) -> None:
    """Make sure that all stacks are there, and whole, that a table of images names; for other files that is true.

    Raises
    ------
    InputError
        The table cannot be read.
    IncompleteError
        One is missing, or not whole.
    """
    if formats.image_ending(path) in (*formats.IMAGE_ENDINGS, *formats.SPIDER_ENDINGS):
        return
    names = [entry.micrograph or "" for entry in formats.read_image_rows(path)]
    for place in _places(path, names, set(range(len(names)))).values():
        _need_whole(path, place)


def _rows(rows: ParticleRows, mine: npt.NDArray[np.int64]) -> ParticleRows:
    return ParticleRows(
        rows.image_index[mine],
        None,
        None if rows.ctf is None else tuple(rows.ctf[row] for row in mine.tolist()),
        None if rows.pixel_size_angstrom is None else rows.pixel_size_angstrom[mine],
        None if rows.phase_flipped is None else rows.phase_flipped[mine],
        {name: values[mine] for name, values in rows.columns.items()},
    )


def _drawn(path: Path, total: int, most: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    if not total:
        raise InputError(path, "it holds no images")
    if total <= most:
        return np.arange(total)
    return np.sort(rng.choice(total, most, replace=False)).astype(np.int64)


def _places(path: Path, names: list[str], wanted: set[int]) -> dict[int, Path]:
    """Where the stacks lie that a table names."""
    finder = NamedStacks(())
    for number in wanted:
        finder.add(number, path.absolute(), names[number])
    found, _ = finder.look()
    places = {number: Path(place) for number, place in found}
    for number in sorted(wanted - set(places)):
        raise IncompleteError(
            path,
            f"it names {names[number]}, and there is no such file; names are absolute, or relative to the folder of "
            "the table or to one above it",
        )
    return places


def _need_whole(path: Path, stack: Path) -> None:
    with stack.open("rb") as file:
        lacking = formats.missing_part(stack, stack.stat().st_size, file.read(formats.HEAD_BYTES))
    if lacking:
        raise IncompleteError(path, f"it names {stack}, which is not whole: {lacking}")


class _Stack:
    """Single images of a stack."""

    def __init__(self, path: Path, reader: mrc.StackReader | None, whole: Image | None) -> None:
        self._path, self._reader = path, reader
        if reader is not None:
            self._shape, size = reader.shape, reader.pixel_size_angstrom
        else:
            assert whole is not None
            self._pixels = whole.pixels if whole.pixels.ndim == 3 else whole.pixels[None]
            self._shape, size = self._pixels.shape, whole.pixel_size_angstrom
        self.pixel_size_angstrom = None if size == _UNKNOWN_ANGSTROM else size

    def __len__(self) -> int:
        return self._shape[0]

    def image(self, table: Path, index: int) -> npt.NDArray[np.float32]:
        if index >= len(self):
            raise IncompleteError(table, f"it names image {index + 1} of {self._path}, which holds {len(self)}")
        made = np.empty((1, *self._shape[1:]), np.float32)
        if self._reader is None:
            made[0] = self._pixels[index]
        else:
            self._reader.read_into(index, made)
        if not np.isfinite(made).all():
            raise InputError(self._path, f"image {index + 1} holds values that are not finite (NaN or infinite)")
        return np.asarray(made[0])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Stack]:
    if formats.image_ending(path) in formats.SPIDER_ENDINGS:
        yield _Stack(path, None, spider.read(path))
        return
    with mrc.StackReader(path) as reader:
        yield _Stack(path, reader, None)


def _stacked(path: Path, images: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        said = " and ".join(f"{nx} × {ny}" for ny, nx in shapes[:2])
        raise InputError(path, f"its images have sizes of {said} pixels; they must be of one size")
    return np.stack(images)


def _one_size(path: Path, sizes: set[float | None]) -> float | None:
    known = sorted(size for size in sizes if size is not None)
    if known and known[-1] > known[0] * 1.001:
        raise InputError(path, f"its images have pixel sizes of {known[0]:g} and {known[-1]:g} Å; they must have one")
    return known[0] if known else None
