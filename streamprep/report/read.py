"""What an item was and what became of it, read from committed files: rows, stacks, maps, and the file that came.

Everything may vanish or change meanwhile. What cannot be read is left out, with a note; nothing is locked.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from streamprep.arrays import in_memory
from streamprep.config import Config
from streamprep.formats import IMAGE_ENDINGS, image_ending, mrc, star
from streamprep.history import LOG, Done
from streamprep.journal import Commit
from streamprep.ledger import Shard
from streamprep.model import (
    Coordinates,
    Ctf,
    FloatArray,
    Item,
    Label,
    Micrograph,
    Optics,
    StreamprepError,
)
from streamprep.naming import stem_of
from streamprep.pipeline import Plan, context_for
from streamprep.plugin_manager import Plugins
from streamprep.report.measure import spread

STACK_TABLES: Mapping[Label, str] = {"particle": "particles.star", "noise": "noise.star"}
COORDINATE_TABLES: Mapping[Label, str] = {
    "particle": "coordinates/particles.star",
    "noise": "coordinates/noise.star",
}
MOST_BOXES = 100
"""Of an item are cut, or read, to be measured."""
MOST_BOX_PIXELS = 1 << 23
"""Of all these boxes together."""
MOST_VOXELS = 640**3
"""Of a map: 1 GiB, which is held twice."""
TROUBLES = (OSError, StreamprepError, ValueError, KeyError, IndexError, MemoryError)
"""What a file that vanished, changed, or was never sound may cause."""

When = Literal["before", "after"]


@dataclass(slots=True)
class Boxes:
    """The particles, or the noise boxes, of an item."""

    count: int
    xy_px: FloatArray
    """Where all of them were cut, shape (count, 2); empty where that is not known."""
    ctfs: tuple[Ctf, ...] = ()
    pixel_size_angstrom: dict[When, float] = field(default_factory=dict)
    images: dict[When, npt.NDArray[Any]] = field(default_factory=dict)
    """Some of them, evenly spread, the same and in the same order before and after; shape (n, ny, nx)."""


@dataclass(slots=True)
class Look:
    """All that pictures of one item are made of."""

    done: Done
    boxes: dict[Label, Boxes] = field(default_factory=dict)
    pixels: npt.NDArray[Any] | None = None
    """The micrograph as it came."""
    maps: dict[When, npt.NDArray[Any]] = field(default_factory=dict)
    pixel_size_angstrom: float | None = None
    """Of the micrograph or the map."""
    notes: list[str] = field(default_factory=list)
    """What could not be read, and why."""


class Reader:
    """Reads items of one session.

    Parameters
    ----------
    config, plugins, plan
        Of the session.
    output
        Its output folder.
    """

    def __init__(self, config: Config, plugins: Plugins, plan: Plan, output: Path) -> None:
        self._config, self._plugins, self._plan, self.output = config, plugins, plan, output

    def look(self, done: Done, commit: Commit) -> Look:
        """Read all of an item that can be read."""
        look = Look(done)
        if done.kind == "map":
            self._look_at_map(look, commit)
            return look
        for label in STACK_TABLES:
            try:
                boxes = self._boxes(label, commit)
            except TROUBLES as error:
                look.notes.append(f"the {label} rows cannot be read: {error}")
                continue
            if boxes is not None:
                look.boxes[label] = boxes
        try:
            path = self._source(done, commit)
            if done.kind == "micrograph":
                self._look_at_micrograph(look, path)
            else:
                self._look_at_stack(look, path)
        except TROUBLES as error:
            look.notes.append(f"what came cannot be shown: {error}")
        return look

    def shard(self, commit: Commit, folder: str, ending: str) -> Path | None:
        """The committed file of an item in a folder; None where there is none, or not as it was committed."""
        found = next((made for made in commit.shards if _is_in(made, folder, ending)), None)
        if found is None:
            return None
        path = self.output / found.path
        return path if path.is_file() and path.stat().st_size == found.size else None

    def _source(self, done: Done, commit: Commit) -> Path:
        """The file that came, where it still is what was processed."""
        own = self.output / commit.source.relative / commit.job.file.path  # sessions are moved, and copied
        path = own if own.is_file() else done.path
        found, identity = path.stat(), commit.job.file.identity
        if (found.st_size, found.st_mtime_ns) != (identity.size, identity.mtime_ns):
            raise ValueError(f"{path} is no longer the file that was processed")
        return path

    def _image(self, done: Done, path: Path) -> Any:
        return self._plugins.hook.read_item(item=Item(done.kind, done.item, path))

    def _rows(self, commit: Commit, table: str) -> list[dict[str, str]]:
        rows: list[dict[str, str]] = []
        for block in (block for block in commit.blocks if block.table == table):
            name = table.replace("/", "__")
            with (self.output / LOG.parent / f"{name}.rows").open("rb") as file:
                file.seek(block.start)
                data = file.read(block.length)
            if zlib.crc32(data) != block.crc32:
                raise ValueError(f"the rows of {table} are not those that were committed")
            rows += [dict(zip(block.columns, star.split_row(line), strict=True)) for line in data.decode().splitlines()]
        return rows

    def _boxes(self, label: Label, commit: Commit) -> Boxes | None:
        rows, placed = self._rows(commit, STACK_TABLES[label]), self._rows(commit, COORDINATE_TABLES[label])
        if not rows:
            return Boxes(len(placed), _places(placed)) if placed else None
        rows.sort(key=lambda row: int(row["rlnImageName"].strip("'\"").partition("@")[0]))  # groups stand one by one
        # operations that centre move what a particle's row says of its place; its box was cut where it was picked
        boxes = Boxes(len(rows), _places(placed if len(placed) == len(rows) else rows))
        groups = commit.optics.get(STACK_TABLES[label], {})
        optics = [groups.get(int(row.get("rlnOpticsGroup", 0)), {}) for row in rows]
        if all("rlnDefocusU" in row for row in rows):
            boxes.ctfs = tuple(_ctf(row, group) for row, group in zip(rows, optics, strict=True))
        size = float(optics[0].get("rlnImagePixelSize", 0))
        if size:
            boxes.pixel_size_angstrom["after"] = size
        stack = self.shard(commit, STACK_TABLES[label].removesuffix(".star"), ".mrcs")
        if stack is not None:
            boxes.images["after"] = _stack_images(stack, len(rows))
        return boxes

    def _look_at_micrograph(self, look: Look, path: Path) -> None:
        image = self._image(look.done, path)
        pixels = image.pixels[0] if image.pixels.ndim == 3 and len(image.pixels) == 1 else image.pixels
        if pixels.ndim != 2 or pixels.dtype.kind not in "uif":
            raise ValueError(f"{path} is no micrograph any more")
        look.pixels = pixels
        look.pixel_size_angstrom = self._config.optics.pixel_size_angstrom or image.pixel_size_angstrom
        for label, boxes in look.boxes.items():
            if self._plan.extract is not None and len(boxes.xy_px) == boxes.count:
                self._cut(look, label, boxes, pixels, path)

    def _cut(self, look: Look, label: Label, boxes: Boxes, pixels: npt.NDArray[Any], path: Path) -> None:
        """The boxes as extraction cuts them, by the session's own operation and parameters."""
        assert self._plan.extract is not None
        after = boxes.images.get("after")
        chosen = _chosen(boxes.count, (self.box_size_px or 256) ** 2 if after is None else after[0].size)
        size = look.pixel_size_angstrom or 1.0
        context = context_for(self._plan, Item(look.done.kind, look.done.item, path))
        made = self._plan.extract(
            replace(context, label=label),
            micrograph=Micrograph(stem_of(path.name), pixels, Optics(size)),
            coordinates=Coordinates(boxes.xy_px[chosen], label, self.box_size_px),
        )
        if len(made) != len(chosen):
            look.notes.append(f"{len(chosen) - len(made)} of {len(chosen)} {label} boxes are not cut any more")
            return
        boxes.images["before"] = np.asarray(in_memory(made.pixels))
        if look.pixel_size_angstrom:
            boxes.pixel_size_angstrom["before"] = made.optics.pixel_size_angstrom

    @property
    def box_size_px(self) -> int | None:
        """Side of the boxes that are cut."""
        if self._plan.extract is None:
            return None
        found = self._plan.extract.params.model_dump().get("box_size_px")
        return int(found) if found else None

    def _look_at_stack(self, look: Look, path: Path) -> None:
        boxes = look.boxes.get("particle")
        if boxes is None:
            return
        after = boxes.images.get("after")
        chosen = None if after is None else _chosen(boxes.count, after[0].size)
        if image_ending(path) in IMAGE_ENDINGS:
            images = _stack_images(path, boxes.count, chosen)
        else:
            pixels = self._image(look.done, path).pixels
            whole = pixels if pixels.ndim == 3 else pixels[None]
            _need_all(path, len(whole), boxes.count)
            images = whole[_chosen(boxes.count, whole[0].size) if chosen is None else chosen]
        boxes.images["before"] = images
        if "after" in boxes.pixel_size_angstrom:
            scale = (images if after is None else after).shape[-1] / images.shape[-1]
            boxes.pixel_size_angstrom["before"] = boxes.pixel_size_angstrom["after"] * scale

    def _look_at_map(self, look: Look, commit: Commit) -> None:
        made = self.shard(commit, "maps", ".mrc")
        try:
            if made is None:
                raise ValueError("the processed map is not there")
            header = mrc.read_header(made)
            if header.nx * header.ny * header.nz > MOST_VOXELS:
                look.notes.append("the map is too large for pictures")
                return
            image = mrc.read(made)
            look.maps["after"], look.pixel_size_angstrom = _volume(image.pixels), image.pixel_size_angstrom
        except TROUBLES as error:
            look.notes.append(f"the map cannot be shown: {error}")
        try:
            look.maps["before"] = _volume(self._image(look.done, self._source(look.done, commit)).pixels)
        except TROUBLES as error:
            look.notes.append(f"what came cannot be shown: {error}")


def _is_in(made: Shard, folder: str, ending: str) -> bool:
    return made.path.startswith(f"{folder}/") and made.path.endswith(ending)


def _volume(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    volume = pixels if pixels.ndim == 3 else pixels[None]
    if volume.dtype.kind not in "uif":
        raise ValueError(f"a map holds real numbers; this holds {volume.dtype}")
    return volume


def _places(rows: list[dict[str, str]]) -> FloatArray:
    if not rows or "rlnCoordinateX" not in rows[0]:
        return np.empty((0, 2))
    return np.array([(float(row["rlnCoordinateX"]), float(row["rlnCoordinateY"])) for row in rows])


def _ctf(row: Mapping[str, str], optics: Mapping[str, Any]) -> Ctf:
    return Ctf(
        float(row["rlnDefocusU"]),
        float(row["rlnDefocusV"]),
        float(row.get("rlnDefocusAngle", 0)),
        float(row.get("rlnPhaseShift", 0)),
        float(optics.get("rlnVoltage", 300.0)),
        float(optics.get("rlnSphericalAberration", 2.7)),
        float(optics.get("rlnAmplitudeContrast", 0.1)),
    )


def _chosen(count: int, image_pixels: int) -> list[int]:
    """Which boxes are measured: so many that their pixels are no more than `MOST_BOX_PIXELS`."""
    return spread(count, max(2, min(MOST_BOXES, MOST_BOX_PIXELS // max(1, image_pixels))))


def _need_all(path: Path, there: int, count: int) -> None:
    """Which image became which is known only where the table names all of them."""
    if there != count:
        raise ValueError(f"{path} holds {there} images, and the set has {count} of them")


def _stack_images(path: Path, count: int, chosen: list[int] | None = None) -> npt.NDArray[np.float32]:
    with mrc.StackReader(path) as stack:
        _need_all(path, stack.shape[0], count)
        chosen = _chosen(count, stack.shape[1] * stack.shape[2]) if chosen is None else chosen
        images = np.empty((len(chosen), *stack.shape[1:]), np.float32)
        for place, number in enumerate(chosen):
            stack.read_into(number, images[place : place + 1])
    return images
