"""The loop: watcher → ledger → workers → sinks → ledger. Owns the clock, signals, retries and back-pressure."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from streamprep import __version__, formats
from streamprep.arrays import choose_backend
from streamprep.committer import STATE_FOLDER, Committer, Result
from streamprep.config import Config
from streamprep.executors import Executor, LocalExecutor
from streamprep.gpu_load import GpuLoad
from streamprep.hookspecs import OpticsGroups
from streamprep.ledger import FileRow, JobRow
from streamprep.model import Identity, InputError, Item, Kind, OutputError, StreamprepError
from streamprep.pipeline import Plan, required_kinds, why_not
from streamprep.plugin_manager import Plugins
from streamprep.session import (
    keep_labels,
    make_sources,
    named_files,
    open_ledger,
    open_output,
    require_named_files,
    stacks_sources,
)
from streamprep.snapshot import Mode, Snapshot
from streamprep.stacks import NamedStacks
from streamprep.viewing import Disk, View, Work, called
from streamprep.watcher import Arrival, Watcher
from streamprep.workers import WORKER, ItemJob, Outcome, TableJob, identity_or_none

log = logging.getLogger(__name__)

SNAPSHOT_SECONDS = 0.25
LOOP_SECONDS = 0.1
DISK_RETRY_SECONDS = 10.0
STALE_SECONDS = 5.0
"""What is no longer wanted may take so long; after that its worker is stopped."""
ECHO_SECONDS = 1.0
"""A signal that comes again within this time is the same one, told twice."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
MOST_TOGETHER = 64
MOST_ROWS_TOGETHER = 100_000
"""So many jobs, and rows of theirs, are committed together at most."""

MOST_DOUBTS = 10
MOST_UNSTORED = 3
REMOVED_CHECKED = 1000


def is_gone(path: Path) -> bool:
    """Whether a file certainly is not there any more; False where that cannot be told, as without permission."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


@dataclass(slots=True)
class _Running:
    """A job in the hands of the workers."""

    future: Future[Outcome]
    since: float
    job: JobRow | None = None
    table: FileRow | None = None
    folder: Path = Path()
    ended: float = 0.0
    """When the worker was done with it."""
    committed: bool = False

    @property
    def name(self) -> str:
        """What it works on."""
        if self.job is not None:
            return self.job.item
        return self.table.item if self.table is not None else ""


class Engine:
    """One session, from start to end.

    Parameters
    ----------
    config, plugins, plan
        What to do.
    once
        Process what is there, publish, and end; otherwise run until a signal comes.
    new_set
        Allow a second set beside results of another plan.
    executor
        Makes the workers; local processes unless given.
    device
        What to tell of where they compute; what this machine has unless given.
    clock, now, sleep
        Monotonic clock, wall clock, and how to wait.
    """

    def __init__(
        self,
        config: Config,
        plugins: Plugins,
        plan: Plan,
        *,
        once: bool = False,
        new_set: bool = False,
        executor: Callable[[Config], Executor] = LocalExecutor,
        device: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.config, self.plugins, self.plan, self.once = config, plugins, plan, once
        self._clock, self._now = clock, now
        self._make_executor = executor
        sources = make_sources(config, plan)
        self._required = required_kinds(config, plan)
        plugins.make_sinks(config)  # what it has to say against the configuration comes before anything is made
        backend = choose_backend(config.session.device) if device is None else None
        on_gpu = backend is not None and backend.name == "gpu"
        self._device = device or (backend.description if backend is not None else "")
        self.output, self._lock_file = open_output(config, plan, new_set=new_set)
        chosen = str(Path(config.session.output).with_name(self.output.name))  # --new-set numbers the folder
        config = self.config = config.model_copy(
            update={"session": config.session.model_copy(update={"output": chosen})}
        )
        with contextlib.ExitStack() as undo:
            undo.callback(self._lock_file.close)
            self.ledger = open_ledger(self.output, config, plan)
            undo.callback(self.ledger.close)
            self.sources = keep_labels(config, sources, self.ledger, self.output)
            undo.pop_all()
        self._roots = {source.label: source.root for source in self.ledger.sources()}
        self._flipped = {source.label for source in self.sources if source.flip_y}
        self._roots.update((source.label, source.root) for source in self.sources)
        self._roots[""] = Path("/")  # of files that are known by their whole path
        sinks = plugins.make_sinks(config)
        self.committer = Committer(
            self.output, self.ledger, sinks, publish_seconds=config.session.publish_seconds, clock=clock
        )
        self.watcher = Watcher(
            self.sources,
            known=lambda source, files: self.ledger.known(source.label, files),
            missing=self._missing,
            settle_seconds=config.session.settle_seconds,
            incomplete_seconds=config.session.incomplete_seconds,
            rescan_seconds=config.session.rescan_seconds,
            poll_seconds=config.session.poll_seconds,
            events=config.session.events == "auto",
            clock=clock,
            excluded=[self.output],
        )
        real = [Path(os.path.realpath(source.root)) for source in self.sources]
        self._stacks = NamedStacks([config.folder, *real, *(parent for root in real for parent in root.parents)])
        self._look_for_stacks = False
        self._moved = False
        self._parts: dict[int, tuple[tuple[Path, Identity | None], ...]] = {}
        """What belonged to each table when it was last looked at."""
        self._named = named_files(config, plan)
        self._named_places = {os.path.realpath(path) for path in self._named}
        self._seen = {path: identity_or_none(path) for path in self._named}
        """The files that operations on maps name, as they were when they were last looked for."""
        self._require_named()
        self._found: list[tuple[int, str]] = []
        self._homes: dict[Path, set[str]] = {}
        self._executor: Executor | None = None
        self._run: int | None = None
        self._running: list[_Running] = []
        self._uncommitted: list[tuple[_Running, Outcome]] = []
        self._not_before: dict[tuple[Literal["job", "table"], int], float] = {}
        self._failing: dict[str, set[str]] = {}
        self._doubts: Counter[int] = Counter()
        self._stored = 0
        self._unstored: dict[int, tuple[int, int]] = {}
        """Of jobs that the disk did not take: how often, and how many were stored before the first time."""
        self._waiting: set[int] = set()
        """Tables that were found to need another file."""
        self._mode: Mode = "starting"
        self._message = ""
        self._signals = 0
        self._wake = threading.Event()
        self._paused_until = 0.0
        self._serial = 0
        self._checked = 0
        self._told: set[str] = set()
        self._next_snapshot = 0.0
        self._next_control = 0.0
        self._snapshot: Snapshot | None = None
        self._disk = Disk(self.output, config.session.reserve_mib << 20)
        self._gpus = GpuLoad() if on_gpu else None
        self._view = View(
            output=self.output,
            plan=tuple(f"{step.table}.{step.name}" for step in plan.steps),
            device=self._device,
            items=called(tuple(self._required)),
            ledger=self.ledger,
            watcher=self.watcher,
            committer=self.committer,
            disk=self._disk,
            gpus=self._gpus,
            rescan_seconds=config.session.rescan_seconds,
            clock=clock,
            now=now,
        )

    # --- running ---

    def run(self) -> Snapshot:
        """Recover, run to the end, publish, and return the final state."""
        try:
            self.start()
            while not self.round():
                self._wake.wait(LOOP_SECONDS)
                self._wake.clear()
        finally:
            self.finish()
        if self._snapshot is None:
            raise OutputError(f"{self.output}: the ledger could not be read")
        return self._snapshot

    def start(self) -> None:
        """Recover, and be ready for the first round."""
        for line in self.committer.recover():
            self._tell(f"recovery: {line}")
        self._run = self.ledger.start_run(self._now(), __version__)
        self.ledger.join_all()
        self._executor = self._make_executor(self.config)
        if self._gpus is not None:
            self._gpus.start()
        self._view.begin()
        self._moved = True  # where named stacks are is looked at in the loop, as after moves
        self.watcher.start()
        self._call("run_started", plan=self.plan, config=self.config)
        self._mode = "running"

    def finish(self) -> None:
        """Publish, and let everything go, also where `start` came only half way."""
        self.watcher.stop()
        if self._gpus is not None:
            self._gpus.stop()
        if self._executor is not None:
            self._executor.stop()
        if self._run is not None:
            self._finish(self._run)
        self.ledger.close()
        self._lock_file.close()

    def _finish(self, run: int) -> None:
        try:
            if self._output_is_ours():
                self.committer.publish(force=True)
        except (OSError, StreamprepError) as error:
            self._tell(f"the tables could not be published: {error}; the next start does it")
        with contextlib.suppress(OSError):
            self.ledger.stop_run(run, self._now())
        if self._mode != "stopped":
            self._mode, self._message = "finished", ""
        with contextlib.suppress(OSError):
            self._snapshot = self._look()
        if self._snapshot is not None:
            self._call("snapshot_taken", snapshot=self._snapshot)
            self._call("run_stopped", snapshot=self._snapshot)

    def handle_signals(self, restore: Callable[[], None] = lambda: None) -> None:
        """The first SIGTERM, SIGINT or SIGHUP drains; a second one ends at once, safe by construction.

        The same signal within `ECHO_SECONDS` is no second one: a scheduler tells it to all processes of a job, and the
        job's script hands it on. A SIGHUP that is ignored, as under ``nohup``, stays so. ``restore`` is called before
        that end, to give the terminal back.
        """
        echo_until: dict[int, float] = {}

        def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            if self._clock() < echo_until.get(number, 0.0):
                return
            echo_until[number] = self._clock() + ECHO_SECONDS
            self._signals += 1  # the loop sees it within LOOP_SECONDS; waking it would take a lock that it may hold
            if self._signals > 1:
                if self._signals == 2:  # a third does not wait for a terminal that is held
                    with contextlib.suppress(Exception):
                        restore()
                os._exit(128 + number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            signal.signal(number, handle)

    def stop(self) -> None:
        """Drain and end, as the first signal does."""
        self._signals = max(1, self._signals)
        self._wake.set()

    def round(self) -> bool:
        """Take in what arrived, hand out work, commit what is done, publish; True when the session has ended."""
        if self._signals and self._mode != "draining":
            self._mode = "draining"
            self._message = "finishing what the workers have; again to end at once"
            if self._executor is not None:
                self._executor.drain()
        try:
            if self._mode != "draining":
                self._control()
                if not self._is_paused():
                    self._look_and_submit()
            self._collect()
            self._publish()
        except OSError as error:  # the ledger or the output cannot be written; nothing was half done
            self._pause(error)
            self.watcher.rescan()  # arrivals of this round may not have been recorded
        try:
            self._show()
            return self._ended()
        except OSError as error:  # the ledger cannot be read
            self._pause(error)
            return self._mode == "draining" and not self._running

    def _look_and_submit(self) -> None:
        self._take_in(self.watcher.poll())
        self._look_for_removed()
        if self._moved:
            self._find_stacks_again()
            self._moved = False
        elif self._look_for_stacks:
            self._find_stacks()
        self._submit()

    def _ended(self) -> bool:
        if self._running or (self._uncommitted and self._mode != "draining"):
            return False
        if self._mode == "draining":
            return True
        if not self.once or not self.watcher.idle():
            return False
        if self._mode == "stopped":
            return True
        if (
            self.ledger.waiting_tables(1, excluded=self._waiting)
            or self.ledger.has_ready_jobs()
            or self.watcher.scans_completed > self._checked
            or self._look_for_stacks
            or self._moved
        ):
            return False
        incomplete = self.watcher.give_up_on_incomplete()
        self._take_in(incomplete)
        return not incomplete

    # --- arrivals ---

    def _take_in(self, arrivals: list[Arrival]) -> None:
        if not arrivals:
            return
        self._view.arrived(len(arrivals))
        with self.ledger.transaction():
            for arrival in arrivals:
                self._take_one(arrival)

    def _take_one(self, arrival: Arrival) -> None:
        kind, problem = arrival.source.kind, arrival.problem
        one_of_many = kind == "ctf" and arrival.source.is_pattern  # programs write logs and spectra beside them
        if problem is None and (kind is None or one_of_many):
            try:
                told = self.plugins.hook.classify_path(path=arrival.path, head=arrival.head)
                if kind is None:
                    kind = told
                elif told not in ("coordinates", "ctf"):
                    kind = "other"
            except InputError as error:
                problem = error.reason
            except Exception as error:
                problem = f"a plugin failed in classify_path: {type(error).__name__}: {error}"
        if problem is None and kind in (None, "other"):
            self.ledger.ignore(arrival.source.label, arrival.relative, arrival.identity, self._now())
            if formats.is_part_of_tables(arrival.path):
                self.watcher.rescan()  # after it the tables are looked at that it belongs to
                for number in self._waiting:
                    self._not_before.pop(("table", number), None)
                self._waiting.clear()
            return
        if kind is None:
            ending = arrival.path.suffix.lower()
            kind = "coordinates" if ending in formats.TABLE_ENDINGS else "micrograph"
        if problem is None and kind in ("micrograph", "map") and self._is_named_stack(arrival, kind):
            kind = "particles"  # whatever its header says
        if problem is None and kind == "map" and os.path.realpath(arrival.path) in self._named_places:
            said = "an operation on maps uses it; it is none of the maps to process"
            self.ledger.ignore(arrival.source.label, arrival.relative, arrival.identity, self._now(), said)
            return
        if problem is None and self._is_moved(arrival, kind):
            return
        if problem is None and kind == "particles" and self._is_watched_otherwise(arrival):
            self.ledger.ignore(arrival.source.label, arrival.relative, arrival.identity, self._now())
            return
        file = self.ledger.notice(arrival.source.label, arrival.relative, arrival.identity, kind, self._now(), problem)
        if file is None:
            return
        if problem is not None:
            self._item_finished(f"{arrival.source.label}/{arrival.relative}", "failed", f"{arrival.path}: {problem}")
        elif kind in self._required:
            self.ledger.item_found(file)
            self._look_for_stacks = self._look_for_stacks or kind == "particles"
        elif kind == "mask":
            self.ledger.mask_found(file)
        elif kind in ("micrograph", "particles", "map"):
            self.ledger.file_failed(file.id, why_not(kind, self.plan), final=True, state="rejected")

    def _is_watched_otherwise(self, arrival: Arrival) -> bool:
        """Whether a link leads to the same file, which is known, and looked for there, too."""
        place = os.path.realpath(arrival.path)
        known = self.ledger.namesakes(arrival.source.label, arrival.relative, "particles")
        return any(
            self.watcher.wants(twin.source, twin.path) and os.path.realpath(self._path_of(twin)) == place
            for twin in known
        )

    def _is_named_stack(self, arrival: Arrival, kind: Kind) -> bool:
        wanted = "particles" in self._required and kind not in self._required
        return wanted and self.ledger.is_named(os.path.realpath(arrival.path))

    def _missing(self, path: Path, size_bytes: int, head: bytes) -> str | None:
        """What a file still lacks, by the plugins that know its format."""
        try:
            return self.plugins.hook.missing_part(path=path, size_bytes=size_bytes, head=head) or None
        except (InputError, OSError):
            raise
        except Exception as error:
            raise InputError(path, f"a plugin failed in missing_part: {type(error).__name__}: {error}") from error

    def _look_for_removed(self) -> None:
        """After each full scan: do the files still exist on which it depends what becomes of a micrograph?"""
        if self.watcher.scans_completed == self._checked:
            return
        self._checked = self.watcher.scans_completed
        for file in self.ledger.looked_for(self.ledger.looked_up_to, REMOVED_CHECKED):
            if is_gone(self._path_of(file)):
                self.ledger.file_gone(file.id)
        self._look_for_stacks = True
        self._look_for_parts()
        self._look_for_named()

    def _look_for_named(self) -> None:
        """Maps wait for the files that their operations name, until those are whole and at rest between two scans.

        They are made anew when such a file is another one by then.
        """
        if not self._named:
            return
        before, self._seen = self._seen, {path: identity_or_none(path) for path in self._named}
        changing = {path for path in self._named if self._seen[path] != before[path]}
        for path in changing:
            if before[path] is not None:
                self._tell(f"{self._named[path]} has changed: all maps are made anew once it is at rest")
        self._require_named(changing)
        self.ledger.join_all()
        self.ledger.join_waiting("map")

    def _require_named(self, changing: Collection[Path] = ()) -> None:
        awaited = {path: said for path, said in self._named.items() if path in changing or not self._is_whole(path)}
        require_named_files(self.ledger, awaited, self._seen)

    def _is_whole(self, path: Path) -> bool:
        try:
            with path.open("rb") as file:
                head = file.read(formats.HEAD_BYTES)
            return self._missing(path, path.stat().st_size, head) is None
        except OSError:
            return False
        except InputError:
            return True  # it never will be; the operation says why

    def _look_for_parts(self) -> None:
        """Have the tables read again of which files came, changed or went that belong to them."""
        for table, at_rest in self.ledger.tables_ending(formats.WITH_PARTS):
            if not at_rest:
                if any(running.table is not None and running.table.id == table.id for running in self._held()):
                    self.watcher.rescan()  # what it is read with is told when it was read
                continue
            parts = tuple((part, identity_or_none(part)) for part in formats.depends_on(self._path_of(table)))
            if self._parts.get(table.id, ()) != parts:
                self._parts[table.id] = parts
                self.ledger.read_again(table.id)

    def _find_stacks_again(self) -> None:
        """At the start, and after moves: watch where named stacks lie, look anew for those that are elsewhere now."""
        self._stacks.clear()
        self._found = []
        self._homes = {}
        for entry, table, name, place in self.ledger.named_stacks() if "particles" in self._required else ():
            if place is not None and not is_gone(Path(place)):
                self._homes.setdefault(Path(place).parent, set()).add(Path(place).name)
            else:
                self._stacks.add(entry, self._path_of(table), name)
        self._find_stacks()

    def _find_stacks(self) -> None:
        """Look for the stacks that tables name and that were not found so far; some may not be there yet."""
        found, folders = self._stacks.look()
        self._found += found  # kept until they are recorded: the disk may be full
        for folder, names in folders.items():
            self._homes.setdefault(folder, set()).update(names)
        self._watch_stacks(self._homes)
        if self._found:
            with self.ledger.transaction():
                self.ledger.place_stacks(self._found)
                for _, place in self._found:
                    self._adopt(Path(place))
        self._found, self._homes, self._look_for_stacks = [], {}, False

    def _watch_stacks(self, folders: Mapping[Path, set[str]]) -> None:
        further = {folder: names for folder, names in folders.items() if not self.watcher.covers(folder)}
        for source in stacks_sources(further, self.ledger, self.output) if further else ():
            self._roots[source.label] = source.root
            self.watcher.add(source)

    def _adopt(self, place: Path) -> None:
        """A stack that a table names may have the header of a micrograph or a map."""
        for source in self.sources:
            root = Path(os.path.realpath(source.root))
            if source.kind is None and place.is_relative_to(root):
                self.ledger.adopt_stack(source.label, place.relative_to(root).as_posix())

    def _path_of(self, file: FileRow) -> Path:
        return self._roots[file.source] / file.path

    def _is_moved(self, arrival: Arrival, kind: Kind) -> bool:
        """Whether it is a known file at another place; then it keeps its name and its results."""
        label, path = arrival.source.label, arrival.relative
        for twin in self.ledger.twins(label, path, arrival.identity, kind):
            if is_gone(self._path_of(twin)) and self.ledger.moved(twin, label, path):
                log.info("%s was moved to %s", self._path_of(twin), arrival.path)
                self._moved = True
                return True
        # the same path may be watched in another way than before: by a folder's name, or because a table names it
        for twin in self.ledger.namesakes(label, path, kind):
            if self.watcher.wants(twin.source, twin.path):
                continue
            if os.path.realpath(self._path_of(twin)) == os.path.realpath(arrival.path):
                self.ledger.moved(twin, label, path)
                return self.ledger.is_known(label, path, arrival.identity)  # it may have changed meanwhile
        return False

    # --- work ---

    def _submit(self) -> None:
        assert self._executor is not None
        if self._mode == "stopped" or self._disk_is_full():
            return
        room = 2 * max(self._executor.size, self._executor.wanted) - len(self._running) - len(self._uncommitted)
        if room <= 0:
            return
        now = self._clock()
        self._not_before = {name: when for name, when in self._not_before.items() if when > now}
        held = [running.table.id for running in self._held() if running.table is not None]
        held += [number for kind, number in self._not_before if kind == "table"]
        for table in self.ledger.waiting_tables(room, excluded=held):
            job = TableJob(table.id, self._path_of(table), table.kind, table.identity)
            self._start(_Running(self._executor.submit(job), now, table=table))
            room -= 1
        optics = self.committer.known_groups()  # before jobs are claimed: it may find the disk broken
        for row in self.ledger.claim(room, excluded=[number for kind, number in self._not_before if kind == "job"]):
            self._serial += 1
            folder = self.committer.staging / f"{os.getpid()}-{self._run}-{self._serial}"
            made = self._describe(row, folder, optics)
            self._call("item_started", item=row.item, job=row.id)
            self._start(_Running(self._executor.submit(made), now, job=row, folder=folder))

    def _held(self) -> list[_Running]:
        """Everything that workers have, or that waits to be committed."""
        return [*self._running, *(running for running, _ in self._uncommitted)]

    def _start(self, running: _Running) -> None:
        self._running.append(running)
        running.future.add_done_callback(lambda _: self._wake.set())

    def _describe(self, row: JobRow, folder: Path, optics: OpticsGroups) -> ItemJob:
        path = self._path_of(row.file)
        try:
            name = path.relative_to(self.config.folder).as_posix()
        except ValueError:
            name = path.as_posix()
        name = name.encode("utf-8", "backslashreplace").decode()  # tables are UTF-8, file names need not be
        inputs = tuple((made, self._roots[made.source] / made.path) for made in row.inputs)
        item = Item(row.file.kind, row.item, path)
        flip_y = any(made.kind == "coordinates" and made.source in self._flipped for made in row.inputs)
        return ItemJob(row.id, item, row.generation, name, row.file.identity, inputs, folder, flip_y, optics)

    def _collect(self) -> None:
        """Bring what the workers finished into the ledger, in order; what cannot be written now is tried again."""
        if self._executor is not None:
            self._executor.check()
            for running in self._running:  # of inputs that are not what they were, or for an item that is gone
                if running.job is None or running.future.done() or self._clock() - running.since < STALE_SECONDS:
                    continue
                if not self.ledger.is_claimed(running.job.id):
                    self._executor.cancel(running.future)
        done = [running for running in self._running if running.future.done()]
        for running in done:
            running.ended = self._clock()
            if running.job is not None:
                self._view.worked()
        self._running = [running for running in self._running if not running.future.done()]
        self._uncommitted += [(running, running.future.result()) for running in done]
        while self._uncommitted and not self._is_paused():
            self._commit()
            running, outcome = self._uncommitted[0]
            if running.table is not None:
                self._table_ended(running.table, outcome)
            else:
                self._job_ended(running, outcome)
            del self._uncommitted[0]

    def _commit(self) -> None:
        """Commit together what the first jobs made that are to be brought into the ledger, where that is next."""
        batch: list[tuple[int, Result]] = []
        items, rows = set[str](), 0
        for index, (running, outcome) in enumerate(self._uncommitted[:MOST_TOGETHER]):
            job = running.job
            if job is None or outcome.verdict != "done" or running.committed or job.item in items:
                break
            if not self.ledger.is_claimed(job.id):
                continue
            rows += sum(rows.count for part in outcome.staged for rows in part.rows)
            if batch and rows > MOST_ROWS_TOGETHER:
                break
            items.add(job.item)
            made = Result(
                job, outcome.staged, running.folder, outcome.warnings, outcome.notes, outcome.seconds, self._now()
            )
            batch.append((index, made))
        if not batch:
            return
        faults = self.committer.commit([made for _, made in batch])
        for (index, _), fault in zip(batch, faults, strict=True):
            running, outcome = self._uncommitted[index]
            if fault is None:
                running.committed = True
            else:
                outcome = Outcome("failed", f"its results cannot be stored: {fault}", "a sink")
                self._uncommitted[index] = (running, outcome)

    def _table_ended(self, table: FileRow, outcome: Outcome) -> None:
        path = f"{table.source}/{table.path}"
        if outcome.verdict == "done":
            self._waiting.discard(table.id)
            for entry, name in self.ledger.table_read(table.id, outcome.entries):
                self._stacks.add(entry, self._path_of(table), name)
                self._look_for_stacks = True
        elif outcome.verdict in ("changed", "unstarted"):
            self.watcher.rescan()
            self._not_before["table", table.id] = self._clock() + 1.0
        elif outcome.verdict == "waits":
            self.ledger.table_waits(table.id, outcome.reason or "waits")
            self._waiting.add(table.id)
            self._not_before["table", table.id] = self._clock() + self.config.session.rescan_seconds
        elif outcome.verdict == "gone":
            self.ledger.file_gone(table.id)
            self._item_finished(path, "superseded", "the file was removed before it was read")
        else:
            final = outcome.verdict == "bad-input" or table.attempts + 1 >= self._max_attempts
            reason = outcome.reason or outcome.verdict
            self.ledger.file_failed(table.id, reason, final=final)
            self._not_before["table", table.id] = self._clock() + 2.0**table.attempts
            if final:
                self._item_finished(path, "failed", reason)
        self._note_systematic(path, outcome)

    @property
    def _max_attempts(self) -> int:
        return self.config.session.max_attempts

    def _job_ended(self, running: _Running, outcome: Outcome) -> None:
        job, now = running.job, self._now()
        assert job is not None
        if running.committed:
            self._job_done(job, outcome)
        elif not self.ledger.is_claimed(job.id):  # an input changed meanwhile: a newer generation is on its way
            shutil.rmtree(running.folder, ignore_errors=True)
            return
        elif outcome.verdict == "lost" and self._signals:
            self.ledger.release(job.id)  # the signal that ends the daemon ended its worker too: no fault of the job
        elif outcome.verdict == "changed":
            self._job_changed(job, outcome, now)
        elif outcome.verdict == "gone":
            self.ledger.file_gone(job.file.id)
            self._item_finished(job.item, "superseded", "the file was removed before it was processed")
        elif outcome.verdict == "waits":
            self.ledger.job_waits(job.id, outcome.reason or "waits")
        elif outcome.verdict == "unstored":
            self._job_unstored(job, outcome, now)
        elif outcome.verdict == "unstarted":
            self.ledger.release(job.id)
            self._not_before["job", job.id] = self._clock() + 1.0
        elif outcome.verdict == "rejected":
            self.ledger.job_failed(
                job.id,
                outcome.reason or "",
                final=True,
                now=now,
                state="rejected",
                operation=outcome.operation,
            )
            self._item_finished(job.item, "rejected", outcome.reason)
        else:
            self._job_failed(job, outcome, now)
        self._note_systematic(job.item, outcome)
        shutil.rmtree(running.folder, ignore_errors=True)

    def _job_changed(self, job: JobRow, outcome: Outcome, now: float) -> None:
        """Its micrograph is being written, which the watcher will tell; or an input is not what it was."""
        doubted = outcome.doubted
        doubts = self._doubts[job.id] + 1
        if doubted is None and doubts <= MOST_DOUBTS:
            self.ledger.release(job.id)
        elif doubted is None:  # nobody says what has become of it
            self.ledger.job_waits(job.id, f"waits, for {outcome.reason} again and again")
        elif doubts <= MOST_DOUBTS:
            self.ledger.doubt(job, doubted, gone=is_gone(self._roots[doubted.source] / doubted.path))
        else:
            self._job_failed(job, replace(outcome, verdict="failed"), now)
        self._doubts[job.id] = doubts  # not before: on a full disk all this is tried again
        self._not_before["job", job.id] = self._clock() + self.config.session.settle_seconds + 0.5
        self.watcher.rescan()

    def _job_unstored(self, job: JobRow, outcome: Outcome, now: float) -> None:
        """Pause for the disk, unless it is this job alone that it does not take."""
        tries, stored = self._unstored.get(job.id, (0, self._stored))
        self._unstored[job.id] = tries + 1, stored
        trouble = outcome.trouble or OSError(errno.EIO, os.strerror(errno.EIO))
        if tries >= MOST_UNSTORED and self._stored > stored:
            said = f"its results cannot be stored, though others can: {trouble.filename or ''}: {trouble.strerror}"
            self._job_failed(job, Outcome("failed", said, "a sink"), now)
            return
        self.ledger.release(job.id)
        self._not_before["job", job.id] = self._clock() + DISK_RETRY_SECONDS
        self._pause(OSError(trouble.errno, f"{trouble.strerror}, for {job.item}", trouble.filename))

    def _job_done(self, job: JobRow, outcome: Outcome) -> None:
        self._stored += 1
        self._unstored.pop(job.id, None)
        particles = sum(rows.count for part in outcome.staged for rows in part.rows if rows.table == "particles.star")
        self._view.committed(particles, outcome.timings)
        for name, seconds in outcome.timings:
            self._call("operation_finished", item=job.item, operation=name, seconds=seconds)
        for warning in outcome.warnings:
            if warning not in outcome.remarks:  # these are told once, below
                log.warning("%s: %s", job.item, warning)
        for remark in outcome.remarks:
            if remark not in self._told:
                self._told.add(remark)
                self._tell(f"{remark}; the first is {job.item}")
        reason = "; ".join((*outcome.warnings, *outcome.notes)) or None
        self._item_finished(job.item, "done", reason, outcome.warnings)

    def _job_failed(self, job: JobRow, outcome: Outcome, now: float) -> None:
        final = outcome.verdict == "bad-input" or job.attempts + 1 >= self._max_attempts
        reason = outcome.reason or "failed"
        self.ledger.job_failed(
            job.id, reason, final=final, now=now, operation=outcome.operation, trace=outcome.trace
        )  # fmt: skip
        self._not_before["job", job.id] = self._clock() + 2.0**job.attempts
        if final:
            self._item_finished(job.item, "failed", reason)
        else:
            log.warning("%s: %s; attempt %d of %d", job.item, reason, job.attempts + 1, self._max_attempts)

    def _note_systematic(self, item: str, outcome: Outcome) -> None:
        """Stop taking new work when one operation, or the workers themselves, fail on item after item."""
        if outcome.verdict == "done":
            for name in (WORKER, "reading", *(name for name, _ in outcome.timings)):
                self._failing.pop(name, None)
        if outcome.verdict not in ("failed", "lost", "unstarted") or self._signals:
            return
        name = outcome.operation or "reading"
        failing = self._failing.setdefault(name, set())
        failing.add(item)
        if outcome.verdict == "unstarted":  # there is no attempt that could run out
            failing.add(f"{item}, time {len(failing)}")
        if len(failing) >= self.config.session.stop_after_failures and self._mode != "stopped":
            self._mode = "stopped"
            self._message = (
                f"{name} failed on {len(failing)} items in a row, the last with: {outcome.reason}. No new "
                "work is taken: correct the cause, then start again (failed items: streamprep retry)"
            )
            self._tell(self._message)

    def _item_finished(self, item: str, state: str, reason: str | None, warnings: Sequence[str] = ()) -> None:
        if state == "failed":
            log.error("%s: %s", item, reason)
        self._view.ended()
        self._call("item_finished", item=item, state=state, reason=reason, warnings=warnings)

    # --- disk ---

    def _is_paused(self) -> bool:
        """Whether writing has to wait; once more, at the end, it does not."""
        last_try = self._mode == "draining" and not self._running
        return self._clock() < self._paused_until and not last_try

    def _disk_is_full(self) -> bool:
        reserve = self._disk.reserve_bytes
        try:
            _, free = self._disk.usage()
        except OSError as error:
            self._pause(error)
            return True
        if free < reserve:
            said = f"{free >> 20} MiB free, the reserve is {reserve >> 20} MiB (reserve_mib)"
            self._pause(OSError(errno.ENOSPC, said))
            return True
        if self._mode == "paused":
            self._mode, self._message = "running", ""
            self._tell("the output can be written again: going on")
        return False

    def _pause(self, error: OSError) -> None:
        """Take no new work, keep what is done, and try again every ten seconds."""
        self._paused_until = self._clock() + DISK_RETRY_SECONDS
        if self._mode == "running":
            self._mode = "paused"
        what = "the disk is full" if error.errno in DISK_FULL else "the output cannot be written"
        self._message = f"paused, {what}: {error.filename or self.output}: {error.strerror}"
        self._tell(self._message)

    def _publish(self) -> None:
        if self._clock() >= self._paused_until:
            self.committer.publish()

    # --- control and view ---

    def _control(self) -> None:
        """Once a second: is the output still ours; and requests of `streamprep retry`, left as files."""
        if self._clock() < self._next_control:
            return
        self._next_control = self._clock() + 1.0
        if not self._output_is_ours():
            raise OutputError(f"{self.output}: was removed or replaced while the session ran; nothing more is written")
        if self._is_paused():
            return
        for path in sorted((self.output / STATE_FOLDER).glob("request-*.json")):
            try:
                request = json.loads(path.read_text())
            except (OSError, ValueError):
                continue  # still being written
            count = self.ledger.retry(request.get("name"))
            path.unlink(missing_ok=True)
            self._failing.clear()
            if self._mode == "stopped":
                self._mode, self._message = "running", ""
            self._tell(f"retry: {count} failed items are taken up again")
            self.watcher.rescan()

    def _output_is_ours(self) -> bool:
        """Whether the lock is still the one that was taken; where that cannot be told, writing will say why."""
        try:
            found = (self.output / STATE_FOLDER / "lock").stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return os.path.samestat(found, os.fstat(self._lock_file.fileno()))

    def _tell(self, message: str) -> None:
        log.warning("%s", message)
        self._call("warning_raised", message=message)

    def _call(self, hook: str, **values: Any) -> None:
        """Call a life-cycle hook of every plugin; one that raises is logged and does not hurt the others."""
        for impl in getattr(self.plugins.hook, hook).get_hookimpls():
            try:
                impl.function(*(values[name] for name in impl.argnames))
            except Exception:
                log.exception("plugin %s failed in %s", impl.plugin_name, hook)

    def _show(self) -> None:
        for trouble in self._troubles():
            if trouble not in self._told:
                self._told.add(trouble)
                self._call("warning_raised", message=trouble)
        if self._clock() < self._next_snapshot:
            return
        self._next_snapshot = self._clock() + SNAPSHOT_SECONDS
        self._snapshot = self._look()
        self._call("snapshot_taken", snapshot=self._snapshot)

    def _troubles(self) -> tuple[str, ...]:
        return (*self.watcher.troubles, *(self._executor.troubles if self._executor is not None else ()))

    def _look(self) -> Snapshot:
        return self._view.take(
            Work(
                self._mode,
                self._message,
                self._executor.size if self._executor is not None else 0,
                [(running.name, running.since) for running in self._running],
                [running.ended for running, _ in self._uncommitted if running.job is not None],
                self._troubles(),
            )
        )
