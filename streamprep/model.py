"""The data that operations receive and return: frozen, typed, free of I/O.

One convention holds everywhere inside streamprep: coordinates are **centres**, in **pixels**, floating point, x
right along the last array axis and y along the first, with (0, 0) the first pixel of the array as stored. The
origin of an axis of length L is the index ``L // 2``. Readers and writers convert at the border.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from streamprep.errors import ConfigError as ConfigError
from streamprep.errors import IncompleteError as IncompleteError
from streamprep.errors import InputError as InputError
from streamprep.errors import OutputError as OutputError
from streamprep.errors import StreamprepError as StreamprepError
from streamprep.errors import nearest as nearest

Array = Any
"""An array of any backend that follows the array API standard (numpy, cupy, array-api-strict)."""

Kind = Literal["micrograph", "coordinates", "ctf", "rows", "mask", "particles", "map", "other"]
"""What a file is, or what a table says: ``particles`` is a stack of images, ``rows`` the table rows that name them."""
Label = Literal["particle", "noise"]
FloatArray = npt.NDArray[np.float64]
FIGURE_OF_MERIT = "rlnAutopickFigureOfMerit"
"""Column with what the picker thought of each place; higher is better."""

MICROSCOPE_COLUMNS = {
    "rlnVoltage": "voltage_kv",
    "rlnSphericalAberration": "spherical_aberration_mm",
    "rlnAmplitudeContrast": "amplitude_contrast",
}
"""The microscope's constants: column of an optics group → field of `Optics` and of `Ctf`."""

Columns = Mapping[str, npt.NDArray[Any]]


class Reject(Exception):  # noqa: N818 - an outcome, not an error
    """Raised by an operation to drop its item on purpose. Counted apart from failures.

    Parameters
    ----------
    reason
        What the user reads beside the item's name.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Identity(NamedTuple):
    """What must stay the same for a file to be the same."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that arrived: what it is, what it is called inside the session, and where it lies."""

    kind: Kind
    """What it is."""
    name: str
    """``<watched folder>/<sub-folders>/<stem>``: the identity that names outputs and seeds random numbers."""
    path: Path
    """Where it lies, absolute; never to be written to."""


@dataclass(frozen=True, slots=True)
class Optics:
    """What the images of one optics group share."""

    pixel_size_angstrom: float
    """Pixel size [Å]."""
    voltage_kv: float = 300.0
    """Acceleration voltage [kV]."""
    spherical_aberration_mm: float = 2.7
    """Spherical aberration Cs [mm]."""
    amplitude_contrast: float = 0.1
    """Fraction of amplitude contrast, 0 to 1."""

    def told(self, columns: Mapping[str, str]) -> Self:
        """The same, with the constants that a table says of an optics group; text that is no number says nothing.

        Examples
        --------
        >>> Optics(1.5).told({"rlnVoltage": "200.0", "rlnSphericalAberration": "None"})
        Optics(pixel_size_angstrom=1.5, voltage_kv=200.0, spherical_aberration_mm=2.7, amplitude_contrast=0.1)
        """
        found: dict[str, float] = {}
        for column, name in MICROSCOPE_COLUMNS.items():
            with contextlib.suppress(KeyError, ValueError):
                found[name] = float(columns[column])
        return replace(self, **{name: value for name, value in found.items() if math.isfinite(value)})


@dataclass(frozen=True, slots=True)
class Ctf:
    """Defocus and microscope constants of one image; underfocus positive, angle from x towards y."""

    defocus_u_angstrom: float
    """Defocus along the axis at the angle, underfocus positive [Å]."""
    defocus_v_angstrom: float
    """Defocus across it [Å]."""
    defocus_angle_deg: float
    """From x towards y [°]."""
    phase_shift_deg: float = 0.0
    """Of a phase plate [°]."""
    voltage_kv: float = 300.0
    """Acceleration voltage [kV]."""
    spherical_aberration_mm: float = 2.7
    """Spherical aberration Cs [mm]."""
    amplitude_contrast: float = 0.1
    """Fraction of amplitude contrast, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a reader of images gives back: host pixels of shape (ny, nx) or (nz, ny, nx), and what the header knows."""

    pixels: npt.NDArray[Any]
    """Shape (ny, nx), (n, ny, nx) or (nz, ny, nx), on the host."""
    pixel_size_angstrom: float | None = None
    """Pixel size [Å]; None where the header does not say."""
    remarks: tuple[str, ...] = ()
    """What is odd about the file and yet no fault. Each text is told once in a session."""


@dataclass(frozen=True, slots=True)
class Micrograph:
    """One motion-corrected exposure, ``pixels`` of shape (ny, nx)."""

    name: str
    """The name that tables refer to, relative to the session's folder where it lies in it."""
    pixels: Array
    """Shape (ny, nx), real; of the type that the file has, as int8 or float32."""
    optics: Optics
    """Pixel size and microscope."""
    ctf: Ctf | None = None
    """Its CTF, where it is known."""
    optics_columns: Mapping[str, str] = field(default_factory=dict)
    """What the table of its CTF says of its optics group, by column, as it is written; empty where it has no groups."""
    phase_flipped: bool = False
    """Whether the phases were flipped already."""

    @property
    def shape_px(self) -> tuple[int, int]:
        """(ny, nx)."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])

    def with_pixels(self, pixels: Array) -> Self:
        """The same micrograph with other pixel values."""
        return replace(self, pixels=pixels)


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Box centres of one micrograph: ``xy_px`` of shape (n, 2), float64, in pixels.

    ``columns`` holds whatever else is known per row, by the name it has in tables (``rlnAutopickFigureOfMerit``…).
    """

    xy_px: FloatArray
    """Shape (n, 2), float64: x and y of each centre, (0, 0) that of the first pixel [px]."""
    label: Label = "particle"
    """Which set they belong to."""
    box_size_px: int | None = None
    """Side of their boxes [px], where the file said it."""
    columns: Columns = field(default_factory=dict)
    """What else is known of each row, by column; each of length n."""

    def __len__(self) -> int:
        return len(self.xy_px)

    def select(self, keep: npt.NDArray[Any] | slice) -> Self:
        """The rows that ``keep`` (a boolean mask, an index array or a slice) names, every column with them."""
        return replace(
            self,
            xy_px=self.xy_px[keep],
            columns={name: values[keep] for name, values in self.columns.items()},
        )


@dataclass(frozen=True, slots=True)
class ParticleRows:
    """What a table says of images of one stack: n rows, in the table's order."""

    image_index: npt.NDArray[np.int64]
    """Which image of the stack each row names, from 0; shape (n,)."""
    coordinates: Coordinates | None = None
    """Where each was cut."""
    ctf: tuple[Ctf, ...] | None = None
    """One per row."""
    pixel_size_angstrom: FloatArray | None = None
    """Of each row's image, shape (n,); None where the table does not say."""
    phase_flipped: npt.NDArray[np.bool_] | None = None
    """Whether the phases of each row's image were flipped, shape (n,); None where the table does not say."""
    columns: Columns = field(default_factory=dict)
    """All other columns, by the names that they have in tables, values as they are written."""
    optics_columns: tuple[Mapping[str, str], ...] = ()
    """What the table says of each row's optics group, by column, as it is written; empty where it has no groups."""

    def __len__(self) -> int:
        return len(self.image_index)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a reader of tables gives back for each micrograph, or each stack of particles, that a table speaks of."""

    micrograph: str | None
    """The micrograph's name, or for rows the stack's, as the file writes it; None where the file's own name says it."""
    digest: str
    """Changes when, and only when, the rows do."""
    data: Coordinates | Ctf | ParticleRows
    """What it says."""
    optics_columns: Mapping[str, str] = field(default_factory=dict)
    """Of a CTF: what the table says of its optics group but the group's number, by column, as it is written."""

    @property
    def kind(self) -> Kind:
        """What it tells."""
        if isinstance(self.data, ParticleRows):
            return "rows"
        return "coordinates" if isinstance(self.data, Coordinates) else "ctf"


@dataclass(frozen=True, slots=True)
class Particles:
    """A stack of boxes, ``pixels`` of shape (n, ny, nx), with one metadata row each."""

    pixels: Array
    """Shape (n, ny, nx), float32, square images."""
    optics: Optics
    """Pixel size and microscope."""
    coordinates: Coordinates | None = None
    """Where each box was cut; None for stacks that came without."""
    ctf: tuple[Ctf, ...] | None = None
    """One per image, or None while it is not known."""
    label: Label = "particle"
    """Which set they belong to."""
    phase_flipped: bool = False
    """Whether the phases were flipped already."""
    columns: Columns = field(default_factory=dict)
    """Further columns of the published table, by name; each of length n."""
    optics_columns: tuple[Mapping[str, str], ...] = ()
    """What a table said of each image's optics group: theirs, or that of the micrograph's CTF; empty without groups."""

    def __len__(self) -> int:
        return int(self.pixels.shape[0])

    def with_pixels(self, pixels: Array) -> Self:
        """The same particles with other pixel values."""
        return replace(self, pixels=pixels)

    def part(self, start: int, stop: int) -> Self:
        """Some of the particles, one after the other; their pixels are a view."""
        rows = slice(start, stop)
        return replace(
            self,
            pixels=self.pixels[rows, ...],
            coordinates=None if self.coordinates is None else self.coordinates.select(rows),
            ctf=None if self.ctf is None else self.ctf[rows],
            columns={name: values[rows] for name, values in self.columns.items()},
            optics_columns=self.optics_columns[rows],
        )


@dataclass(frozen=True, slots=True)
class Map:
    """A volume, ``pixels`` of shape (nz, ny, nx)."""

    name: str
    """The name of its file."""
    pixels: Array
    """Shape (nz, ny, nx), float32."""
    pixel_size_angstrom: float
    """Voxel size [Å]."""
    masks: Mapping[str, Array] = field(default_factory=dict)
    """Masks to be kept, boolean and of the map's shape; each is written as a map of its own beside this one, under the
    map's name, ``_`` and its own: ``mask`` as NAME_mask.mrc."""

    def with_pixels(self, pixels: Array) -> Self:
        """The same map with other voxel values."""
        return replace(self, pixels=pixels)

    def with_masks(self, **masks: Array) -> Self:
        """The same map with further masks beside it."""
        return replace(self, masks={**self.masks, **masks})


@dataclass(frozen=True, slots=True)
class ImageSample:
    """Some images of a set that a parameter names: particles, averages or 2D classes."""

    pixels: npt.NDArray[np.float32]
    """Shape (n, ny, nx), on the host."""
    total: int
    """How many the set has."""
    pixel_size_angstrom: float | None = None
    """Of the images; None where neither table nor header says it."""
    ctf: tuple[Ctf, ...] | None = None
    """One per image, or None where the table does not say."""
    phase_flipped: tuple[bool, ...] | None = None
    """One per image, or None where the table does not say."""
    columns: Columns = field(default_factory=dict)
    """All other columns of the table, by the names that they have in it, values as they are written."""


@dataclass(frozen=True, slots=True)
class Context:
    """What an operation may know and say besides its data."""

    item: Item
    """What is worked on."""
    operation: str
    """The name of the operation that runs."""
    seed: int = 0
    """The session's seed."""
    label: Label = "particle"
    """Which set is worked on."""
    first_image: int = 0
    """Where a stack is handed over in parts: which of the item's images is the first of this part."""
    box_size_px: int | None = None
    """The session's extraction box, where there is one."""
    edge: Literal["skip", "pad"] = "skip"
    """What extraction does with a box that crosses the micrograph's edge."""
    min_separation_px: float | None = None
    """Of particles nearer to one another than this, extraction keeps the best only [px]."""
    companions: Mapping[str, Path] = field(default_factory=dict)
    """Files that belong to this item and that the operation's parameters asked for, such as ``mask``."""
    read_image: Callable[[Path], npt.NDArray[Any]] | None = None
    """Read an image file of any known format as a host array."""
    sample_images: Callable[[Path, int, np.random.Generator], ImageSample] | None = None
    """At most so many images, drawn at random, of the set that a STAR or Xmipp table, or a stack, holds."""
    warn: Callable[[str], None] = lambda _: None
    """Record a warning beside the item. It is shown in ``streamprep status`` and does not stop anything."""
    note: Callable[[str], None] = lambda _: None
    """Record something that is as it should be but worth reporting, such as boxes skipped at the edge."""
    remark: Callable[[str], None] = lambda _: None
    """Record a warning that is the same for many items: the log has it once. It holds no numbers and no names."""
    flag: Callable[[Array, str], None] = lambda _, __: None
    """Record that some images are odd: a boolean array, one per image, and what is said of them. What is counted over
    all parts of the item becomes one warning, such as "2 of 50 particle images are constant"."""

    def read_mask(self, path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """A mask for pixels of this shape, on the host.

        Raises
        ------
        InputError
            It cannot be read, has another shape, or holds values that are not finite. Names the operation.
        """
        if self.read_image is None:
            raise InputError(path, f"{self.operation}: no mask can be read here")
        try:
            mask = np.asarray(self.read_image(path), np.float32)
        except OSError as error:
            raise InputError(path, f"{self.operation}: the mask cannot be read: {error.strerror}") from error
        if mask.shape != shape:
            sizes = [" × ".join(str(side) for side in reversed(sides)) for sides in (mask.shape, shape)]
            raise InputError(
                path, f"{self.operation}: the mask is {sizes[0]} voxels, its map {sizes[1]}; allowed: the same size"
            )
        if not np.isfinite(mask).all():
            raise InputError(path, f"{self.operation}: the mask holds values that are not finite; allowed: 0 to 1")
        return mask

    def rng(self, *keys: int | str) -> np.random.Generator:
        """A random generator that depends on the seed, the operation, the item and ``keys`` only.

        So a result does not depend on the order of arrival, the number of workers or on restarts.
        """
        return np.random.Generator(np.random.Philox(self._entropy(16, *keys)))

    def random_key(self, *keys: int | str) -> int:
        """A number of 64 bits that depends on what `rng` depends on, for numbers that are computed where they are used.

        See `streamprep.em.random`: each image's and pixel's numbers follow from the key and their indices alone.
        """
        return self._entropy(8, *keys)

    def _entropy(self, size_bytes: int, *keys: int | str) -> int:
        text = "\x1f".join(str(part) for part in (self.seed, self.operation, self.item.name, self.label, *keys))
        digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=size_bytes).digest()
        return int.from_bytes(digest)
