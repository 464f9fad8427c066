"""Existing stacks of particles as input: where those lie that tables name, and particles made of a stack and rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from streamprep.config import OpticsSection
from streamprep.model import Image, InputError, Item, Optics, ParticleRows, Particles


class NotYet(Exception):  # noqa: N818 - an outcome, not an error
    """What a stack is to be processed with is not there yet: images that its table names, or a CTF."""


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
    NotYet
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
        raise NotYet(f"waits for image {last}, which a table names; the stack holds {len(pixels)} so far")
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


Named = tuple[Path, PurePosixPath]
"""The folder of a table, and the folders in a name that it gives."""


@dataclass
class NamedStacks:
    """Finds the stacks that tables name, wherever they lie.

    A name is absolute, or relative to the folder of its table, to one above it, or to one of ``bases``: programs name
    stacks from their project's folder. The first of these where there is such a file is the one that is meant. Once
    found, a stack stays what its row means.

    Parameters
    ----------
    bases
        Further folders that names may be relative to.
    """

    bases: Sequence[Path]
    _open: dict[Named, dict[str, list[int]]] = field(default_factory=dict)
    """File names that were not found so far, and the entries that wait for them."""
    _homes: dict[Named, set[Path]] = field(default_factory=dict)
    """Where others of the same folder were found."""
    _given: dict[Path, set[str]] = field(default_factory=dict)
    """Folders and names that were given back before."""

    def clear(self) -> None:
        """Forget all names."""
        self._open.clear()
        self._given.clear()

    def add(self, entry: int, table: Path, name: str) -> None:
        """Note the name that an entry of a table gives."""
        named = PurePosixPath(name.replace("\\", "/"))
        if "\0" not in name and named.name not in ("", ".."):
            names = self._open.setdefault((table.parent, named.parent), {})
            names.setdefault(named.name, []).append(entry)

    def look(self) -> tuple[list[tuple[int, str]], dict[Path, set[str]]]:
        """Look for what was not found so far.

        Returns
        -------
        found
            Entries, and where their stacks lie, links resolved.
        folders
            Folders with the names of stacks that lie in them; and, where others of the same name's folder were found
            there, of those that may come. Only what was not given back before.
        """
        listings: dict[Path, frozenset[str]] = {}
        found: list[tuple[int, str]] = []
        folders: dict[Path, set[str]] = {}
        for key, names in list(self._open.items()):
            near, named = key
            for base in dict.fromkeys((near, *near.parents, *self.bases)):
                folder = base / named
                if folder not in listings:
                    listings[folder] = _names_in(folder)
                for name in names.keys() & listings[folder]:
                    if not os.path.isfile(folder / name):  # noqa: PTH113 - unlike Path.is_file it never raises
                        continue
                    place = Path(os.path.realpath(folder / name))
                    found += [(entry, str(place)) for entry in names.pop(name)]
                    self._homes.setdefault(key, set()).add(place.parent)
                    folders.setdefault(place.parent, set()).add(place.name)
                if not names:
                    break
            for home in self._homes.get(key, ()):
                if names:
                    folders.setdefault(home, set()).update(names)
            if not names:
                del self._open[key]
        news = {folder: names - self._given.get(folder, set()) for folder, names in folders.items()}
        for folder, fresh in news.items():
            self._given.setdefault(folder, set()).update(fresh)
        return found, {folder: fresh for folder, fresh in news.items() if fresh}


def _names_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 - names are what is wanted
    except (OSError, ValueError):
        return frozenset()
