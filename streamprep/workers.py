"""What a worker process does: the job functions, and what they need.

A job reads its item, runs the operations, and stages finished files; it never touches a set. Only descriptions travel
between the processes, never pixels.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import IO, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from streamprep import formats
from streamprep.arrays import (
    Backend,
    choose_backend,
    is_of_gpu,
    keep_freed_memory,
    see_only,
    work_in_smaller_parts,
)
from streamprep.config import Config
from streamprep.em.geometry import flip_y
from streamprep.hookspecs import OpticsGroups, Sink, StackStore, Staged, StagedRows, StoredStack, render
from streamprep.image_sets import require_stacks, sample_images
from streamprep.joins import JobInput, file_digest
from streamprep.ledger import EntryRow
from streamprep.model import (
    Array,
    Coordinates,
    Ctf,
    Entry,
    Identity,
    Image,
    ImageSample,
    IncompleteError,
    InputError,
    Item,
    Kind,
    Label,
    Map,
    Micrograph,
    Optics,
    ParticleRows,
    Particles,
    Reject,
    StreamprepError,
)
from streamprep.naming import STATE_FOLDER
from streamprep.pipeline import (
    OpenStack,
    OperationError,
    Plan,
    context_for,
    required_kinds,
    resolve,
    run_micrograph,
    run_stack,
    run_volume,
)
from streamprep.plugin_manager import Plugins, load_plugins
from streamprep.stacks import NotYet, make_particles

log = logging.getLogger(__name__)

Verdict = Literal[
    "done", "rejected", "bad-input", "failed", "lost", "changed", "gone", "unstarted", "unstored", "waits"
]
"""``lost``: its worker died or was stopped. ``unstarted``: no worker ever had it. ``unstored``: the disk did not take
its results. ``waits``: for a file to grow."""

WORKER = "a worker process"
"""Stands where an operation's name would, for what no operation is to blame for."""

RUNNING = "running"
"""Name of the note in a job's staging folder."""

KEPT_TABLES = 8
"""A worker keeps the newest versions of so many tables as it read them."""

DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE,
    errno.ENOTCONN,
)  # fmt: skip
"""Of a disk that is full, limited, broken or away: no fault of the job whose results were to be staged."""

MEMORY_SHARE = 0.9
"""Of the machine's memory that one worker may take unless the configuration says how much."""

SMALLER_PARTS = 3
"""A job is begun anew so often when the memory of a GPU ran out, each time with parts of half the size."""


@dataclass(frozen=True, slots=True)
class TableJob:
    """Read a table and say what it holds."""

    file: int
    path: Path
    kind: Kind
    identity: Identity


@dataclass(frozen=True, slots=True)
class ItemJob:
    """Process one micrograph, or one stack of particles."""

    job: int
    item: Item
    generation: int
    name: str
    """What tables call it."""
    identity: Identity
    inputs: tuple[tuple[JobInput, Path], ...]
    folder: Path
    """Where to stage; made by the job, which also notes there what it is at, in case it never comes back."""
    flip_y: bool = False
    """Whether the coordinates count y from the last row."""
    optics: OpticsGroups = field(default_factory=dict)
    """Groups that have their numbers already."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    verdict: Verdict
    reason: str | None = None
    operation: str | None = None
    trace: str | None = None
    trouble: OSError | None = None
    """Why its results are ``unstored``."""
    doubted: JobInput | None = None
    """The input that is not what the job was made of, where that is why it ``changed``."""
    staged: tuple[Staged, ...] = ()
    entries: tuple[EntryRow, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    timings: tuple[tuple[str, float], ...] = ()
    seconds: float = 0.0
    remarks: tuple[str, ...] = ()
    """What is odd about the files that were read; each text is told once in a session."""


@dataclass
class _Worker:
    """What a worker process keeps between jobs."""

    config: Config
    plugins: Plugins
    plan: Plan
    sinks: Sequence[Any]
    backend: Backend
    tables: dict[Path, tuple[tuple[Identity | None, ...], dict[tuple[Kind, str], list[Entry]]]]
    """What tables say, by kind and name, and of which version of them and of the files that they depend on."""
    wanted: frozenset[Kind]
    """What tables may tell that is of use."""


class _Stale(Exception):  # noqa: N818 - an outcome, not an error
    """An input of a job is not what the job was made of."""

    def __init__(self, made: JobInput, reason: str) -> None:
        super().__init__(reason)
        self.made, self.reason = made, reason


class _Unstored(Exception):  # noqa: N818 - an outcome, not an error
    """The disk does not take what a job makes."""

    def __init__(self, trouble: OSError) -> None:
        super().__init__(str(trouble))
        self.trouble = trouble


@contextlib.contextmanager
def _storing(folder: Path) -> Iterator[None]:
    """Around all that is written into a job's staging folder; its own may be gone with the whole output."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS and folder.parent.is_dir():
            raise
        raise _Unstored(error) from error


@dataclass(frozen=True, slots=True)
class _Storing(StackStore):
    """The store of a sink, for a job's staging folder."""

    store: StackStore
    folder: Path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.store.__exit__(*error)

    def put(self, start: int, particles: Particles) -> None:
        with _storing(self.folder):
            self.store.put(start, particles)

    def finish(self) -> tuple[StoredStack, Array]:
        with _storing(self.folder):
            return self.store.finish()


_worker: _Worker | Outcome | None = None
"""What jobs need; or, where it could not be made, what to answer to every job."""


def initialize(
    config: Config,
    die_with_parent: bool = True,
    *,
    gpus: Sequence[str] = (),
    slots: int = 1,
    slots_in: Path | None = None,
) -> None:
    """Prepare this process for jobs: load the plugins, make the plan and the sinks.

    Of ``gpus`` it takes one, so that ``slots`` workers share them evenly, those that count themselves in one folder:
    that of the output's state unless given.

    With ``die_with_parent`` the process ends as soon as the daemon does, however that happened, so that a daemon that
    is started again never meets workers of the one before. Never raises: jobs are told why none can be run.
    """
    global _worker
    if die_with_parent:
        for number in (signal.SIGINT, signal.SIGHUP):  # they reach the whole group; the daemon handles them
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, functools.partial(_leave_to_daemon, os.getpid()))
        os.dup2(2, 1)  # what operations print must not get between the lines of --log-json
        parent = multiprocessing.parent_process()
        if parent is not None:
            threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    keep_freed_memory()
    try:
        if gpus:
            folder = slots_in or config.resolve(config.session.output) / STATE_FOLDER
            see_only(gpus[take_slot(folder, slots, config.session.start_timeout_seconds) % len(gpus)])
        plugins = load_plugins(block=config.plugins.block)
        sinks = plugins.make_sinks(config)
        backend = choose_backend(config.session.device)
        if die_with_parent:
            _limit_memory(config.session.worker_memory_mib << 20, own_limit=backend.name != "gpu")
        plan = resolve(config, plugins)
        wanted = frozenset(kind for kinds in required_kinds(config, plan).values() for kind in kinds)
        if config.ctf is not None:
            wanted |= {"ctf"}
        _worker = _Worker(config, plugins, plan, sinks, backend, {}, wanted)
    except Exception as error:
        said = f"a worker process cannot be set up: {type(error).__name__}: {error}"
        _worker = Outcome("failed", said, WORKER, traceback.format_exc())


def plan_in_use() -> str | Outcome:
    """Hash of the plan that `initialize` made in this process; where it could not, what every job is answered."""
    if _worker is None:
        raise RuntimeError("initialize() was not called in this process")
    return _worker if isinstance(_worker, Outcome) else _worker.plan.hash


def take_slot(folder: Path, slots: int, patience_seconds: float) -> int:
    """The least number below ``slots`` that no other living process took here; it is this one's until it ends.

    A worker that was stopped may take a moment to end, and its number with it.

    Raises
    ------
    TimeoutError
        None became free.
    """
    until = time.monotonic() + patience_seconds
    for number in itertools.cycle(range(slots)):
        descriptor = os.open(folder / f"slot-{number}", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the kernel, however the process ends
        except BlockingIOError:
            os.close(descriptor)
        else:
            return number
        if number == slots - 1:
            if time.monotonic() > until:
                break
            time.sleep(0.05)
    raise TimeoutError(f"{folder}: all of {slots} slots are taken by other worker processes")


def _limit_memory(limit: int, *, own_limit: bool) -> None:
    """Let an operation that eats memory fail with a MemoryError, and spare the daemon where the kernel has to kill."""
    if not limit and own_limit:
        limit = int(MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if limit:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _leave_to_daemon(worker: int, number: int, frame: object) -> None:  # noqa: ARG001
    """Schedulers tell all processes of a job to end: the daemon drains, and this one goes on with what it has.

    Processes that an operation forks have this, too, and are not meant.
    """
    if os.getpid() != worker:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)


def run_job(job: TableJob | ItemJob) -> Outcome:
    """Run one job in this process. Never raises: what went wrong is in the outcome."""
    if _worker is None:
        raise RuntimeError("initialize() was not called in this process")
    if isinstance(_worker, Outcome):
        return _worker
    started = time.perf_counter()
    timings: dict[str, float] = {}
    heard: dict[str, list[str]] = {"warn": [], "note": [], "remark": []}
    running: list[str] = []

    @contextlib.contextmanager
    def timer(name: str) -> Iterator[None]:
        running.append(name)
        noted.write(name)
        begun = time.perf_counter()
        yield
        timings[name] = timings.get(name, 0.0) + time.perf_counter() - begun
        running.pop()

    noted = _Noted(job.folder / RUNNING if isinstance(job, ItemJob) else None)
    try:
        if isinstance(job, TableJob):
            made = _read_table(_worker, job)
        else:
            for _ in range(SMALLER_PARTS):
                try:
                    made = _process(_worker, job, timer, heard)
                    break
                except MemoryError as error:
                    if not is_of_gpu(error):
                        raise
                shutil.rmtree(job.folder, ignore_errors=True)
                noted.close()
                timings.clear()
                for texts in (running, *heard.values()):
                    texts.clear()
                work_in_smaller_parts()
            else:
                made = _process(_worker, job, timer, heard)
    except _Unstored as unstored:
        made = Outcome("unstored", str(unstored), trouble=unstored.trouble)
    except Reject as reject:
        made = Outcome("rejected", reject.reason, running[-1] if running else None)
    except _Stale as stale:
        made = Outcome("changed", stale.reason, doubted=stale.made)
    except NotYet as wait:
        made = Outcome("waits", str(wait))
    except IncompleteError as wait:
        made = Outcome("waits", wait.reason)
    except InputError as error:
        made = Outcome("bad-input", str(error), running[-1] if running else None)
    except FileNotFoundError as error:
        own = job.path if isinstance(job, TableJob) else job.item.path
        gone = error.filename is not None and Path(error.filename) == own
        made = Outcome(
            "gone" if gone else "failed", f"{error.filename}: {error.strerror}", trace=traceback.format_exc()
        )
    except Exception as error:
        operation = error.operation if isinstance(error, OperationError) else (running[-1] if running else None)
        said = str(error) if isinstance(error, StreamprepError) else f"{type(error).__name__}: {error}"
        if operation is not None and not isinstance(error, OperationError):
            said = f"{operation}: {said}"
        made = Outcome("failed", said, operation, traceback.format_exc())
    finally:
        noted.close()
    return replace(
        made,
        warnings=(*heard["warn"], *heard["remark"]),
        notes=tuple(heard["note"]),
        remarks=(*made.remarks, *heard["remark"]),
        timings=tuple(timings.items()),
        seconds=time.perf_counter() - started,
    )


class _Noted:
    """Leaves the name of the operation that begins where the daemon finds it if this process does not survive it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def write(self, name: str) -> None:
        if self._path is None:
            return
        if self._file is None:
            with _storing(self._path.parent):
                self._file = self._path.open("wb", buffering=0)
        with _storing(self._path.parent):  # a longer one's end may stay
            os.pwrite(self._file.fileno(), name.encode(errors="backslashreplace") + b"\n", 0)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def last_running(folder: Path) -> str | None:
    """The operation that a job was at when its worker was lost; None where it had not come to any."""
    try:
        return (folder / RUNNING).read_text(encoding="utf-8").partition("\n")[0] or None
    except (OSError, ValueError):
        return None


def identity_at(path: Path) -> Identity:
    """Identity of the file at a path now."""
    found = path.stat()
    return Identity(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def identity_or_none(path: Path) -> Identity | None:
    """Identity of a file that may go at any time."""
    try:
        return identity_at(path)
    except OSError:
        return None


def _same(now: Identity, then: Identity) -> bool:
    """Equal but for the change time, which `chmod` and links alter, too."""
    return (now.size, now.mtime_ns, now.inode) == (then.size, then.mtime_ns, then.inode)


def _entries(worker: _Worker, path: Path, kind: Kind) -> tuple[dict[tuple[Kind, str], list[Entry]], Identity]:
    """What a table holds, read once for each version of the file."""
    identity = identity_at(path)
    version = (identity, *map(identity_or_none, formats.depends_on(path)))
    if path not in worker.tables or worker.tables[path][0] != version:
        entries: dict[tuple[Kind, str], list[Entry]] = {}
        for entry in worker.plugins.hook.read_item(item=Item(kind, path.stem, path)):
            if entry.kind in worker.wanted:
                entries.setdefault((entry.kind, entry.micrograph or path.name), []).append(entry)
        worker.tables.pop(path, None)
        while len(worker.tables) >= KEPT_TABLES:
            del worker.tables[next(iter(worker.tables))]
        worker.tables[path] = (version, entries)
    return worker.tables[path][1], identity


def _read_table(worker: _Worker, job: TableJob) -> Outcome:
    try:
        entries, before = _entries(worker, job.path, job.kind)
    except InputError:
        if not _same(identity_at(job.path), job.identity):  # torn, because it is being written
            return Outcome("changed", "the file changed before it was read")
        raise
    if not _same(before, job.identity) or identity_at(job.path) != before:
        return Outcome("changed", "the file changed while it was read")
    rows = []
    for (kind, name), said in entries.items():
        if len({entry.digest for entry in said}) > 1:
            what = "stack" if kind == "rows" else "micrograph"
            raise InputError(job.path, f"speaks of {what} {name} twice, with different {kind}")
        data = said[0].data
        rows.append(EntryRow(kind, name, said[0].digest, 1 if isinstance(data, Ctf) else len(data)))
    return Outcome("done", entries=tuple(rows))


def _process(
    worker: _Worker,
    job: ItemJob,
    timer: Callable[[str], contextlib.AbstractContextManager[None]],
    heard: Mapping[str, list[str]],
) -> Outcome:
    if not _same(identity_at(job.item.path), job.identity):
        return Outcome("changed", f"the {job.item.kind} file changed before it was read")
    image = worker.plugins.hook.read_item(item=job.item)
    if not _same(identity_at(job.item.path), job.identity):
        return Outcome("changed", f"the {job.item.kind} file changed while it was read")
    if job.item.kind == "map":
        for name in (name for step in worker.plan.lane("maps") for name in step.params.files().values()):
            require_stacks(worker.config.resolve(name))
    with _storing(job.folder):
        job.folder.mkdir()  # and not what it lies in: where the output was unmounted, nothing is to take its place
    used_as_they_are = ("mask", "other")
    entries = {
        made.kind: _companion(worker, made, path) for made, path in job.inputs if made.kind not in used_as_they_are
    }
    found = {kind: entry.data for kind, entry in entries.items()}
    files = {path: made for made, path in job.inputs if made.kind in used_as_they_are}

    @contextlib.contextmanager
    def reading(name: Path) -> Iterator[Path]:
        path = worker.config.resolve(str(name))
        try:
            yield path
        finally:
            if path in files:
                _check_file(files[path], path)

    def read_image(name: Path) -> np.ndarray[Any, Any]:
        with reading(name) as path:
            return np.asarray(worker.plugins.hook.read_item(item=Item("mask", path.stem, path)).pixels)

    def read_sample(name: Path, most: int, rng: np.random.Generator) -> ImageSample:
        with reading(name) as path:
            return sample_images(path, most, rng)

    context = context_for(
        worker.plan,
        job.item,
        companions={wanted.kind: path for wanted, path in job.inputs if wanted.kind != "other"},
        read_image=read_image,
        sample_images=read_sample,
        warn=heard["warn"].append,
        note=heard["note"].append,
        remark=heard["remark"].append,
    )
    open_stack = _open_stack(worker.sinks, job.folder)
    ctf, coordinates, rows = found.get("ctf"), found.get("coordinates"), found.get("rows")
    ctf = ctf if isinstance(ctf, Ctf) else None
    if job.item.kind == "map":
        volume = make_map(worker.config, job, image)
        result = run_volume(
            worker.plan, volume, context, generation=job.generation, backend=worker.backend, timer=timer
        )
    elif isinstance(rows, ParticleRows):
        particles = make_particles(job.item, image, rows, worker.config.optics)
        if particles.ctf is None and worker.config.ctf is not None:
            if ctf is None and "ctf" not in worker.plan.dispensable:
                raise NotYet(f"waits for ctf in {worker.config.ctf.table}")
            particles = replace(particles, ctf=None if ctf is None else (ctf,) * len(particles))
        result = run_stack(
            worker.plan,
            particles,
            context,
            generation=job.generation,
            backend=worker.backend,
            timer=timer,
            open_stack=open_stack,
        )
    elif isinstance(coordinates, Coordinates):
        micrograph = make_micrograph(worker.config, job, image, entries.get("ctf"))
        if job.flip_y:
            coordinates = replace(coordinates, xy_px=flip_y(coordinates.xy_px, micrograph.shape_px[0]))
        result = run_micrograph(
            worker.plan,
            micrograph,
            coordinates,
            context,
            generation=job.generation,
            backend=worker.backend,
            timer=timer,
            open_stack=open_stack,
        )
    else:
        raise InputError(job.item.path, "no table came with it")
    with _storing(job.folder):
        writer = _writer(worker.sinks)
        theirs = replace(result, stored={})  # what one sink stored is no other's to hand in
        staged = tuple(sink.stage(result if sink is writer else theirs, job.folder) for sink in worker.sinks)
    return Outcome("done", staged=with_rendered_rows(staged, worker.sinks, job.optics), remarks=image.remarks)


def with_rendered_rows(staged: Sequence[Staged], sinks: Sequence[Sink], optics: OpticsGroups) -> tuple[Staged, ...]:
    """Rows as bytes, so that the daemon need not make them; not those of an optics group that has no number yet."""
    tables = {table.path: table for sink in sinks for table in sink.tables}

    def rendered(rows: StagedRows) -> StagedRows:
        known = (number for number, group in optics.get(rows.table, {}).items() if group == rows.optics)
        number = None if rows.optics is None else next(known, 0)
        if number == 0:
            return rows
        try:
            return replace(rows, columns={}, rendered=render(tables[rows.table], rows, number))
        except Exception:
            return rows  # the committer comes to the same fault, and tells it

    return tuple(replace(part, rows=tuple(map(rendered, part.rows))) for part in staged)


def _writer(sinks: Sequence[Any]) -> Any:
    """The sink that writes stacks while they are made; sinks of others may know nothing of it."""
    return next((sink for sink in sinks if hasattr(sink, "open_stack")), None)


def _open_stack(sinks: Sequence[Any], folder: Path) -> OpenStack | None:
    """How that sink opens a stack for a job."""
    sink = _writer(sinks)
    if sink is None:
        return None

    def opened(label: Label, count: int) -> StackStore:
        with _storing(folder):
            return _Storing(sink.open_stack(label, count, folder), folder)

    return opened


def _companion(worker: _Worker, made: JobInput, path: Path) -> Entry:
    """What a table says of a micrograph or a stack, if it still says what the job was made of."""
    try:
        entries, _ = _entries(worker, path, made.kind)
    except (InputError, OSError) as error:
        raise _Stale(made, f"{path} cannot be read as it was before: {error}") from error
    for entry in entries.get((made.kind, made.name), ()):
        if entry.digest == made.digest:
            return entry
    raise _Stale(made, f"{path} no longer says of {made.name} what it said")


def _check_file(made: JobInput, path: Path) -> None:
    try:
        digest = file_digest(identity_at(path))
    except OSError as error:
        raise _Stale(made, f"{path}: {error.strerror}") from error
    if digest != made.digest:
        raise _Stale(made, f"{path} is not the file that it was")


def make_micrograph(config: Config, job: ItemJob, image: Image, fitted: Entry | None) -> Micrograph:
    """A micrograph from what its file holds, what a table says of its CTF, and the configuration of the microscope.

    Raises
    ------
    InputError
        It is not one 2D image, its pixel size is unknown, or it holds values that are not finite.
    """
    pixels = micrograph_pixels(job.item.path, image)
    pixel_size = config.optics.pixel_size_angstrom or image.pixel_size_angstrom
    if not pixel_size:
        raise InputError(job.item.path, "its header has no pixel size; set [optics] pixel_size_angstrom")
    optics = Optics(
        pixel_size,
        config.optics.voltage_kv,
        config.optics.spherical_aberration_mm,
        config.optics.amplitude_contrast,
    )
    if fitted is None or not isinstance(fitted.data, Ctf):
        return Micrograph(job.name, pixels, optics)
    return Micrograph(job.name, pixels, optics, fitted.data, fitted.optics_columns)


def make_map(config: Config, job: ItemJob, image: Image) -> Map:
    """A map from what its file holds; its pixel size is the header's, else the configuration's.

    Raises
    ------
    InputError
        It has no three dimensions, its pixel size is unknown, or it holds complex numbers.
    """
    path = job.item.path
    pixels = image.pixels if image.pixels.ndim == 3 else image.pixels[None]
    if pixels.dtype.kind not in "uif":
        raise InputError(path, f"a map holds real numbers; this holds {pixels.dtype}")
    pixel_size = image.pixel_size_angstrom or config.optics.pixel_size_angstrom
    if not pixel_size:
        raise InputError(path, "its header has no pixel size; set [optics] pixel_size_angstrom")
    return Map(job.name, pixels.astype(np.float32, copy=False), pixel_size)


def micrograph_pixels(path: Path, image: Image) -> npt.NDArray[Any]:
    """Pixels (ny, nx) of what was read from the file of a micrograph.

    Raises
    ------
    InputError
        It is not one 2D image, or it holds values that are not finite.
    """
    pixels = image.pixels
    if pixels.ndim == 3 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim != 2 or pixels.dtype.kind not in "uif":
        raise InputError(path, f"a micrograph is one 2D image, this holds {pixels.dtype} of {pixels.shape}")
    bad = sum(not_finite(pixels[start : start + CHECKED_ROWS]) for start in range(0, len(pixels), CHECKED_ROWS))
    if bad:
        raise InputError(path, f"{bad} of {pixels.size} pixels are not finite (NaN or infinite)")
    return pixels


CHECKED_ROWS = 256
"""Of a micrograph looked at in one go."""


def not_finite(pixels: npt.NDArray[Any]) -> int:
    """How many values are not finite; they are looked at one by one only where their sum is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        sound = pixels.dtype.kind != "f" or np.isfinite(pixels.sum(dtype=np.result_type(pixels.dtype, np.float32)))
    return 0 if sound else int(pixels.size - np.isfinite(pixels).sum())
