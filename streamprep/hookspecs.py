"""Every hook of streamprep, in the order of an item's life, and the decorator that makes an operation of a function.

pluggy keeps the register, checks signatures and loads entry points. It does not run the operations: streamprep sorts
them by ``order`` and calls them one after the other, so what runs when never depends on what was installed when.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import pluggy
from pydantic import BaseModel, ConfigDict

from streamprep.model import Array, Context, Coordinates, Ctf, Item, Kind, Label, Map, Micrograph, Particles

PROJECT = "streamprep"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

OPERATION_HOOKS: Mapping[str, str] = {
    "micrographs": "process_micrograph",
    "coordinates": "process_coordinates",
    "extract": "extract_particles",
    "particles": "process_particles",
    "maps": "process_map",
}
"""Table of the configuration file → the hook whose operations may stand in it, in the order they run."""

F = TypeVar("F", bound=Callable[..., Any])


class Params(BaseModel):
    """Base of every operation's parameters: typed, immutable, unknown names refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def companions(self) -> Mapping[Kind, str | None]:
        """Other files each item must wait for: the kind, and a path pattern where the user names one.

        ``{"ctf": None}`` waits for a CTF; ``{"mask": "masks/{stem}.mrc"}`` for a file of that name.
        """
        return {}

    def dispensable(self) -> Collection[Kind]:
        """Kinds of files that items need not wait for, though the configuration says where they come from.

        They are used where they are there, and an item is processed again when they come later. What another operation
        names in `companions` is waited for all the same.
        """
        return ()

    def lane(self, table: str) -> str:
        """The table whose operation of the same name runs with these parameters; the one they stand in unless said."""
        return table

    def files(self) -> Mapping[str, str]:
        """Files that parameters of operations on maps name, by parameter; maps wait until all of them are there.

        Images, or tables of images: maps wait for the stacks that those name, too.
        """
        return {}

    def check(self, *, size_px: int | None, pixel_size_angstrom: float | None) -> None:
        """Raise ValueError where the parameters do not fit the images. Called at start and on each item.

        Parameters
        ----------
        size_px
            Number of columns of the image or map, None while it is not known.
        pixel_size_angstrom
            None while it is not known.
        """


@dataclass(frozen=True, slots=True)
class OperationInfo:
    """What ``@operation`` writes on a function."""

    hook: str
    name: str
    order: int
    params: type[Params]
    per_image: bool = False


def operation(
    hook: str, *, order: int, params: type[Params] = Params, name: str | None = None, per_image: bool = False
) -> Callable[[F], F]:
    """Make an operation of a function: an implementation of ``hook`` with a name, an order and typed parameters.

    Parameters
    ----------
    hook
        One of `OPERATION_HOOKS`' hooks.
    order
        Where in the chain it runs; lower is earlier, ties go by name. Users may override it.
    params
        The model of its parameters.
    name
        What the configuration calls it. The function's own name unless given.
    per_image
        Of ``process_particles``: each image's result depends on that image, its index in the item
        (``ctx.first_image`` + its place in the stack) and its own metadata alone, and as many images come out as go in.
        Such operations are run one after the other on parts of a stack that fit into the processor's cache, which is
        several times faster. The pixels that they receive are float32 and may be overwritten.

    Examples
    --------
    >>> @operation("process_particles", order=55)
    ... def double(particles, params, ctx):
    ...     return particles.with_pixels(particles.pixels * 2)
    >>> double.streamprep_operation.order
    55
    """
    if hook not in OPERATION_HOOKS.values():
        raise ValueError(f"{hook!r} is not an operation hook; choose one of {', '.join(OPERATION_HOOKS.values())}")
    if per_image and hook != "process_particles":
        raise ValueError(f"per_image is for process_particles; {hook} receives no stack of images")

    def mark(function: F) -> F:
        info = OperationInfo(hook, name or function.__name__, order, params, per_image)
        function.streamprep_operation = info  # type: ignore[attr-defined]
        return hookimpl(specname=hook)(function)

    return mark


# --- finding and reading -------------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def missing_part(path: Path, size_bytes: int, head: bytes) -> str | None:
    """Say what is not there yet of a file that may still be being written.

    When: once a file has not changed for a while, before `classify_path`; again when it has changed. In the daemon.
    Receives: its path, its size in bytes, and its first 4096 bytes.
    Returns: what is missing, for people; an empty text where the file is whole; None to let the next implementation
    decide. A file of a format that nobody knows counts as whole.
    Raises: InputError for a file that can never become whole.
    Example: ``return "its last line" if path.suffix == ".mine" and not ends_whole(path) else None``
    """


@hookspec(firstresult=True)
def classify_path(path: Path, head: bytes) -> Kind | None:
    """Say what a settled, complete file is.

    When: once per arrival, before it enters the ledger. In the daemon.
    Receives: its path, and its first 4096 bytes.
    Returns: the kind, or None to let the next implementation decide; what is ``other``, or nobody knows, is left alone
    and counted.
    Raises: InputError for a file that is certainly broken.
    Example: ``return "map" if path.suffix == ".dx" else None``
    """


@hookspec(firstresult=True)
def read_item(item: Item) -> Any:
    """Read a file.

    When: in a worker: an image right before the operations, a table when it has settled and again for each job.
    Receives: the item, with its kind and path.
    Returns: an `Image` with pixels on the host; for tables a list of `Entry`, one per micrograph or stack; None to let
    the next implementation try.
    Raises: InputError that says what is wrong; IncompleteError where another file has to come first.
    Example: ``return Image(read_dm4(item.path)) if item.path.suffix == ".dm4" else None``
    """


# --- operations, in the order they run -----------------------------------------------------------------------------


@hookspec
def process_micrograph(micrograph: Micrograph, params: Params, ctx: Context) -> Micrograph | None:
    """Change a micrograph before anything is cut from it.

    When: first in the micrograph lane, in a worker.
    Receives: the micrograph, its pixels on the array backend of the session; the operation's parameters; the context.
    Returns: a new micrograph, or None for "unchanged".
    Raises: Reject to drop it; anything else fails the job, which is tried again.
    Example: ``return micrograph.with_pixels(-micrograph.pixels)``
    """


@hookspec
def process_coordinates(
    coordinates: Coordinates, micrograph: Micrograph, params: Params, ctx: Context
) -> Coordinates | None:
    """Filter, move or add coordinates.

    When: after the micrograph's operations, in a worker.
    Receives: the particle coordinates as the operations before left them; the micrograph; parameters and context.
    Returns: coordinates labelled ``particle`` replace those received, coordinates with another label become a set of
    their own; None for "unchanged".
    Raises: Reject to drop the micrograph; anything else fails the job, which is tried again.
    Example: ``return coordinates.select(score_of(coordinates) > params.least)``
    """


@hookspec
def extract_particles(micrograph: Micrograph, coordinates: Coordinates, params: Params, ctx: Context) -> Particles:  # type: ignore[empty-body]
    """Cut boxes around coordinates. A session has one extraction, the table ``[extract]``; its name is ``extract``.

    When: once per set of coordinates (particle, noise), in a worker.
    Receives: the micrograph; the coordinates of the set; parameters and context.
    Returns: the boxes with the rows they belong to; their pixels may be `streamprep.arrays.ImagesOnDemand`, which are
    cut part by part, as they are worked on.
    Raises: Reject to drop the micrograph; anything else fails the job, which is tried again.
    Example: ``return Particles(cut(micrograph.pixels, coordinates.xy_px), micrograph.optics, coordinates)``
    """


@hookspec
def process_particles(particles: Particles, params: Params, ctx: Context) -> Particles | None:
    """Change particle images.

    When: after extraction, once per set; or on an existing stack. In a worker; an operation that is ``per_image`` is
    called once for each part of the stack.
    Receives: the particles, pixels of shape (n, ny, nx) on the array backend of the session; parameters and context.
    Returns: new particles, or None for "unchanged"; of fewer images with as many coordinates, CTFs, optics columns and
    further columns.
    Raises: Reject to drop the micrograph or stack; anything else fails the job, which is tried again.
    Example: ``return particles.with_pixels(-particles.pixels)``
    """


@hookspec
def process_map(map: Map, params: Params, ctx: Context) -> Map | None:  # noqa: A002
    """Change a map.

    When: in the map lane, in a worker.
    Receives: the map, pixels of shape (nz, ny, nx) on the array backend of the session; parameters and context.
    Returns: a new map, or None for "unchanged".
    Raises: Reject to drop it; anything else fails the job, which is tried again.
    Example: ``return map.with_pixels(-map.pixels)``
    """


# --- results -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredStack:
    """A stack of particles that lies in the staging folder, durably."""

    staged: str
    """Its name in that folder."""
    size_bytes: int
    """Its size [bytes]."""
    crc32: int
    """CRC-32 of the whole file."""


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What the operations made of one item."""

    item: Item
    """What arrived."""
    generation: int
    """1 for the first version of its file, 2 where it was rewritten, and so on."""
    micrograph: Micrograph | None
    """As its operations left it; None of stacks and maps."""
    coordinates: Mapping[Label, Coordinates]
    """The sets of coordinates, by label; those that extraction kept where there is one."""
    particles: Mapping[Label, Particles]
    """The stacks by label, pixels on the host. Where one is ``stored``, its pixels are those of the file, read-only,
    and read when they are looked at."""
    map: Map | None = None
    """The map as its operations left it, on the host."""
    map_before: Map | None = None
    """The map as it came."""
    stored: Mapping[Label, StoredStack] = field(default_factory=dict)
    """The stacks that were written while they were made."""

    @property
    def file_name(self) -> str:
        """What files of this item are called below a sink's folder, without their ending: new for each generation.

        No item's own name has a ``~``.
        """
        return self.item.name if self.generation == 1 else f"{self.item.name}~{self.generation}"


class StackStore(Protocol):
    """Takes a stack of particles part by part, while it is made. Leaving its ``with`` block ends it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def put(self, start: int, particles: Particles) -> None:
        """Take the images from ``start`` on, pixels on the host, and keep nothing of them."""

    def finish(self) -> tuple[StoredStack, Array]:
        """Make the whole durable; what it is, and its pixels as they are stored, read-only."""


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A finished, durable file of the staging folder: what `streamprep.sinks.staged_file` makes."""

    staged: str
    """Its name in the staging folder."""
    final: str
    """Where it belongs, below the output folder."""
    size_bytes: int
    """Its size [bytes]."""
    crc32: int
    """CRC-32 of the whole file."""


@dataclass(frozen=True, slots=True)
class RenderedRows:
    """Rows as the bytes that their table's `Table.render` makes of them."""

    columns: tuple[str, ...]
    """In the order in which they are in the bytes."""
    data: bytes
    """All the rows."""
    optics_group: int | None = None
    """The number of their optics group."""


@dataclass(frozen=True, slots=True)
class StagedRows:
    """Rows for one published table: named columns of equal length, host values."""

    table: str
    """The path of the `Table`."""
    columns: Mapping[str, Sequence[Any]]
    """Values by column."""
    count: int
    """Number of rows."""
    optics: Mapping[str, Any] | None = None
    """The optics group these rows belong to, without its number."""
    rendered: RenderedRows | None = None
    """Sinks leave it out. The worker fills it in, in place of the columns, once the group has a number."""


@dataclass(frozen=True, slots=True)
class Staged:
    """What one sink staged for one item."""

    files: tuple[StagedFile, ...] = ()
    """Files that get their final names."""
    rows: tuple[StagedRows, ...] = ()
    """Rows that are added to tables."""


class Table(Protocol):
    """A file of rows that grows (one for the session) or that belongs to one item."""

    path: str
    """Below the output folder; with ``{item}`` in it, each item has a file of its own."""

    tail: bytes = b""
    """Everything after the rows."""

    def head(self, columns: Sequence[str], optics: Sequence[Mapping[str, Any]], count: int) -> bytes:
        """Everything before the rows, of which there are ``count``."""

    def render(self, columns: Sequence[str], rows: StagedRows, optics_group: int | None) -> bytes:
        """The rows as bytes, one after the other, with the columns in the order of ``columns``."""

    def columns(self, names: Sequence[str]) -> list[str]:
        """Put column names into the table's order, those that mean the same column together into one."""

    def adapt(self, block: bytes, have: Sequence[str], want: Sequence[str]) -> bytes:
        """Rows rendered with the columns ``have``, with the columns ``want``; new ones get a default."""


OpticsGroups = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Optics groups by table and number."""


def render(table: Table, rows: StagedRows, optics_group: int | None) -> RenderedRows:
    """The bytes of rows, with their columns in the table's order.

    Raises
    ------
    ValueError
        Their columns are not all as long as they say; or what the table raises.
    """
    lengths = {len(values) for values in rows.columns.values()}
    if lengths != {rows.count}:
        raise ValueError(f"columns of {sorted(lengths)} values, not {rows.count}")
    columns = table.columns(list(rows.columns))
    return RenderedRows(tuple(columns), table.render(columns, rows, optics_group), optics_group)


class Sink(Protocol):
    """Where results go. ``stage`` runs in a worker; what it returns is committed by the one committer.

    A sink may also have ``open_stack(label, count, folder) -> StackStore``: the first that has it gets the particles of
    each item part by part while they are made, before ``stage``, and it alone is told of them in ``result.stored``.
    """

    name: str
    """What the configuration calls it, ``[sinks.NAME]``; no other sink's."""
    tables: Sequence[Table]
    """The tables that it gives rows for; none of another sink's."""
    folders: Sequence[str]
    """Folders below the output folder in which every file is this sink's: files that no commit knows are moved away."""

    def stage(self, result: ItemResult, folder: Path) -> Staged:
        """Write what belongs to this item into ``folder``, durably, and say where it goes.

        Nothing may be written anywhere else: a crash, or a second try, then leaves nothing behind. An exception fails
        the item's job, which is tried again; an OSError of a full or broken disk pauses the session instead.
        """


@hookspec
def make_sinks(config: Any) -> Sequence[Sink]:  # type: ignore[empty-body]
    """Make the session's sinks.

    When: at start, in the daemon and in each worker.
    Receives: the validated configuration, a `streamprep.config.Config`; ``config.sink(name, model)`` gives the
    parameters of the table ``[sinks.NAME]``, or None where there is none.
    Returns: sinks, or an empty list where the configuration has no work for them.
    Raises: ConfigError where what the configuration says is not allowed; the session does not start.
    Example: ``return [] if (params := config.sink("hdf5", Hdf5)) is None else [Hdf5Sink(params)]``
    """


# --- life cycle: for consoles, pictures, notifications. Called in the daemon; an exception is logged, never fatal ----


@hookspec
def run_started(plan: Any, config: Any) -> None:
    """Say that a run begins.

    When: after recovery, before the first scan. In the daemon, as all that follow.
    Receives: the plan, a `streamprep.pipeline.Plan`, and the configuration.
    Returns: nothing.
    Raises: whatever it raises is logged, and nothing else comes of it.
    Example: ``send(f"a session with {len(plan.steps)} operations begins")``
    """


@hookspec
def item_started(item: str, job: int) -> None:
    """Say that a job was handed to a worker.

    When: each time, a retry included.
    Receives: the item's name, and the job's number.
    Returns: nothing.
    Raises: whatever it raises is logged, and nothing else comes of it.
    Example: ``lamp.on(item)``
    """


@hookspec
def operation_finished(item: str, operation: str, seconds: float) -> None:
    """Say how long an operation took on an item.

    When: after the item's commit, once per operation that ran.
    Receives: the item's name, the operation's, and the time of all its calls together [s].
    Returns: nothing.
    Raises: whatever it raises is logged, and nothing else comes of it.
    Example: ``histogram[operation].add(seconds)``
    """


@hookspec
def item_finished(item: str, state: str, reason: str | None, warnings: Sequence[str]) -> None:
    """Say how an item ended.

    When: after the ledger's transaction.
    Receives: the item's name; its state, done, rejected, failed or superseded (its file was removed); the reason, or
    the warnings and notes of one that is done, or None; what operations warned of.
    Returns: nothing.
    Raises: whatever it raises is logged, and nothing else comes of it.
    Example: ``if state == "failed": send(f"{item}: {reason}")``
    """


@hookspec
def warning_raised(message: str) -> None:
    """Pass on a message about the session as a whole: a folder without events, a full disk, a systematic fault.

    When: as it happens, once per message.
    Receives: the message.
    Returns: nothing.
    Raises: whatever it raises is logged, and nothing else comes of it.
    Example: ``send(message)``
    """


@hookspec
def snapshot_taken(snapshot: Any) -> None:
    """Hand over the state of the session.

    When: several times a second while running, and once at the end.
    Receives: a `streamprep.snapshot.Snapshot`.
    Returns: nothing.
    Raises: whatever it raises is logged, and nothing else comes of it.
    Example: ``draw(snapshot.jobs)``
    """


@hookspec
def run_stopped(snapshot: Any) -> None:
    """Say that a run ended and everything is published.

    When: last.
    Receives: the final `streamprep.snapshot.Snapshot`.
    Returns: nothing.
    Raises: whatever it raises is logged, and nothing else comes of it.
    Example: ``send(f"{snapshot.jobs.get('done', 0)} items are done")``
    """


__all__ = [
    "OPERATION_HOOKS",
    "Ctf",
    "ItemResult",
    "OperationInfo",
    "OpticsGroups",
    "Params",
    "RenderedRows",
    "Sink",
    "StackStore",
    "Staged",
    "StagedFile",
    "StagedRows",
    "StoredStack",
    "Table",
    "hookimpl",
    "hookspec",
    "operation",
    "render",
]
