"""A plugin with every hook, which notes what it is called with: a format, operations, a sink, and the life cycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from streamprep import (
    Context,
    Coordinates,
    Entry,
    Image,
    Item,
    ItemResult,
    Map,
    Micrograph,
    Particles,
    Sink,
    Staged,
    Table,
    hookimpl,
    operation,
)
from streamprep.model import Kind
from streamprep.sinks import staged_file

CALLS: list[tuple[str, str]] = []
"""Hook, and what was told."""
KINDS: dict[str, Kind] = {".toymic": "micrograph", ".toypick": "coordinates", ".toymap": "map"}
END = b"END"
BOX = 16


def write(path: Path, array: np.ndarray[Any, Any]) -> None:
    """A file of the format that this plugin reads."""
    with path.open("wb") as file:
        np.save(file, array)
        file.write(END)


@hookimpl
def missing_part(path: Path, size_bytes: int) -> str | None:
    if path.suffix not in KINDS:
        return None
    CALLS.append(("missing_part", path.name))
    return "" if path.read_bytes()[size_bytes - len(END) :] == END else "its end"


@hookimpl
def classify_path(path: Path, head: bytes) -> Kind | None:
    if path.suffix not in KINDS:
        return None
    CALLS.append(("classify_path", f"{path.name} {head[1:6].decode()}"))
    return KINDS[path.suffix]


@hookimpl
def read_item(item: Item) -> Image | list[Entry] | None:
    if item.path.suffix not in KINDS:
        return None
    CALLS.append(("read_item", f"{item.kind} {item.name}"))
    with item.path.open("rb") as file:
        array = np.load(file)
    if item.kind == "coordinates":
        return [Entry(None, str(array.sum()), Coordinates(array.astype(np.float64)))]
    return Image(array, pixel_size_angstrom=2.0, remarks=("toys are no data",))


@operation("process_micrograph", order=1)
def brighten(micrograph: Micrograph) -> Micrograph:
    """Add 1."""
    CALLS.append(("process_micrograph", micrograph.name))
    return micrograph.with_pixels(micrograph.pixels + 1)


@operation("process_coordinates", order=1)
def first_two(coordinates: Coordinates, micrograph: Micrograph) -> Coordinates:
    """Keep two."""
    CALLS.append(("process_coordinates", f"{len(coordinates)} on {micrograph.shape_px}"))
    return coordinates.select(slice(2))


@operation("extract_particles", order=1)
def extract(micrograph: Micrograph, coordinates: Coordinates) -> Particles:
    """Cut boxes."""
    CALLS.append(("extract_particles", f"{len(coordinates)} {coordinates.label}"))
    corners = coordinates.xy_px.astype(int) - BOX // 2
    boxes = [micrograph.pixels[y : y + BOX, x : x + BOX] for x, y in corners]
    return Particles(np.stack(boxes).astype(np.float32), micrograph.optics, replace(coordinates, box_size_px=BOX))


@operation("process_particles", order=1)
def double(particles: Particles, ctx: Context) -> Particles:
    """Multiply by 2."""
    CALLS.append(("process_particles", f"{len(particles)} {ctx.label} {particles.optics.pixel_size_angstrom}"))
    return particles.with_pixels(particles.pixels * 2)


@operation("process_map", order=1)
def negate(map: Map) -> Map:
    """Multiply by −1."""
    CALLS.append(("process_map", f"{map.name} {map.pixel_size_angstrom}"))
    return map.with_pixels(-map.pixels)


class ListSink(Sink):
    """Writes the mean of what was made of each item."""

    name = "list"
    tables: Sequence[Table] = ()
    folders = ("list",)

    def stage(self, result: ItemResult, folder: Path) -> Staged:
        made = result.map or result.particles["particle"]
        (folder / "list.txt").write_text(f"{float(np.mean(made.pixels))}\n")
        return Staged((staged_file(folder / "list.txt", f"list/{result.file_name}.txt"),))


@hookimpl
def make_sinks(config: Any) -> Sequence[Sink]:
    CALLS.append(("make_sinks", str(config.sinks)))
    return [ListSink()] if "list" in config.sinks else []


@hookimpl
def run_started(plan: Any, config: Any) -> None:
    CALLS.append(("run_started", f"{[step.name for step in plan.steps]} {config.folder.name}"))


@hookimpl
def item_started(item: str, job: int) -> None:
    CALLS.append(("item_started", item))
    raise RuntimeError(f"a plugin with a fault in job {job}")


@hookimpl
def operation_finished(item: str, operation: str, seconds: float) -> None:
    assert seconds >= 0
    CALLS.append(("operation_finished", f"{operation} {item}"))


@hookimpl
def item_finished(item: str, state: str, reason: str | None) -> None:
    CALLS.append(("item_finished", f"{item} {state} {reason}"))


@hookimpl
def warning_raised(message: str) -> None:
    CALLS.append(("warning_raised", message))


@hookimpl
def snapshot_taken(snapshot: Any) -> None:
    CALLS.append(("snapshot_taken", snapshot.mode))


@hookimpl
def run_stopped(snapshot: Any) -> None:
    CALLS.append(("run_stopped", f"{snapshot.mode} {snapshot.jobs}"))
