"""Existing stacks of particles as input: where those lie that tables name, and particles made of a stack and rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from streamprep.config import OpticsSection
from streamprep.model import Image, InputError, Item, Optics, ParticleRows, Particles


class TooFewImages(Exception):  # noqa: N818 - an outcome, not an error
    """A table names images that a stack does not hold, or not yet."""


def make_particles(item: Item, image: Image, rows: ParticleRows, configured: OpticsSection) -> Particles:
    """The particles that a table names, in its order, with everything that it says of them.

    Parameters
    ----------
    item
        The stack, for messages.
    image
        What is in the stack: shape (n, ny, nx), or (ny, nx) for one image.
    rows
        What the table says.
    configured
        What the configuration says of the microscope: where the table does not.

    Returns
    -------
    Particles
        Shape (rows, ny, nx). The pixel size is the table's, else the configuration's, else that of the stack's header.

    Raises
    ------
    TooFewImages
        The table names images behind the last.
    InputError
        The stack holds no square images, or values that are not finite; the images named are not of one pixel size, or
        are flipped in part; the pixel size is unknown.
    """
    pixels = image.pixels if image.pixels.ndim == 3 else image.pixels[None]
    if pixels.ndim != 3 or pixels.shape[1] != pixels.shape[2] or pixels.dtype.kind not in "uif":
        raise InputError(
            item.path, f"a stack of particles holds square images; this holds {pixels.dtype} of {image.pixels.shape}"
        )
    last = int(rows.image_index.max(initial=-1)) + 1
    if last > len(pixels):
        raise TooFewImages(f"waits for image {last}, which a table names; the stack holds {len(pixels)} so far")
    if len(rows) != len(pixels) or (rows.image_index != np.arange(len(pixels))).any():
        pixels = pixels[rows.image_index]
    bad = np.flatnonzero(~np.isfinite(pixels.sum(axis=(1, 2), dtype=np.float64)))
    if len(bad):
        number = int(rows.image_index[bad[0]]) + 1
        raise InputError(item.path, f"image {number} holds values that are not finite (NaN or infinite)")
    return Particles(
        pixels=pixels,
        optics=_optics(item, image, rows, configured),
        coordinates=rows.coordinates,
        ctf=rows.ctf,
        phase_flipped=_flipped(item, rows),
        columns=rows.columns,
        optics_columns=rows.optics_columns,
    )


def _optics(item: Item, image: Image, rows: ParticleRows, configured: OpticsSection) -> Optics:
    sizes = set() if rows.pixel_size_angstrom is None else set(rows.pixel_size_angstrom.tolist())
    if len(sizes) > 1:
        said = " and ".join(f"{size:g}" for size in sorted(sizes)[:2])
        raise InputError(item.path, f"its images have pixel sizes of {said} Å by the table; put them into a stack each")
    pixel_size = next(iter(sizes), None) or configured.pixel_size_angstrom or image.pixel_size_angstrom
    if not pixel_size:
        raise InputError(
            item.path, "neither its table nor its header has a pixel size; set [optics] pixel_size_angstrom"
        )
    if rows.ctf:
        first = rows.ctf[0]
        return Optics(pixel_size, first.voltage_kv, first.spherical_aberration_mm, first.amplitude_contrast)
    optics = Optics(
        pixel_size, configured.voltage_kv, configured.spherical_aberration_mm, configured.amplitude_contrast
    )
    shared = len({id(columns) for columns in rows.optics_columns}) == 1  # of several groups each image has its own
    return optics.told(rows.optics_columns[0]) if shared else optics


def _flipped(item: Item, rows: ParticleRows) -> bool:
    if rows.phase_flipped is None or not len(rows):
        return False
    if rows.phase_flipped.any() != rows.phase_flipped.all():
        raise InputError(item.path, "by its table the phases of some of its images are flipped and of others not")
    return bool(rows.phase_flipped[0])


@dataclass
class NamedStacks:
    """Finds the stacks that tables name, wherever they lie: a name may be absolute, or relative to some folder above.

    Parameters
    ----------
    folder
        Names may be relative to it, as well as to the table's folder and to those above that: programs name stacks from
        their project's folder.
    watched
        Whether the files of a folder are looked for by the watcher already.
    """

    folder: Path
    watched: Callable[[Path], bool]
    _open: dict[tuple[Path, PurePosixPath], set[str]] = field(default_factory=dict)
    """Folders not found so far, as tables of a folder name them, with the names of their stacks."""
    _found: dict[tuple[Path, PurePosixPath], Path] = field(default_factory=dict)

    def add(self, table: Path, names: Iterable[str]) -> None:
        """Note what a table names."""
        for name in names:
            named = PurePosixPath(name.replace("\\", "/"))
            if "\0" not in name and named.name not in ("", "..") and ".." not in named.parts:
                self._open.setdefault((table.parent, named.parent), set()).add(named.name)

    def look(self) -> dict[Path, set[str]]:
        """Folders outside the watched ones, each with the names of stacks that lie, or are to come, in it.

        Only what was not given back before. A folder counts as found once one of its stacks is there.
        """
        news: dict[Path, set[str]] = {}
        for (near, named), names in list(self._open.items()):
            place = self._found.get((near, named)) or self._place(near, named, names)
            if place is None:
                continue
            self._found[near, named] = place
            del self._open[near, named]
            if not self.watched(place):
                news.setdefault(place, set()).update(names)
        return news

    def _place(self, near: Path, named: PurePosixPath, names: Collection[str]) -> Path | None:
        for base in (near, *near.parents, self.folder):
            try:
                with os.scandir(base / named) as entries:
                    if any(entry.name in names and entry.is_file() for entry in entries):
                        return base / named
            except (OSError, ValueError):
                continue
        return None
