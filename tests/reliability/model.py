"""The state machine: a session, its inputs and its disk, and everything that may happen to them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from watchdog.events import FileClosedEvent, FileSystemEventHandler

from streamprep import workers
from streamprep.committer import Committer
from streamprep.config import Config
from streamprep.engine import Engine
from streamprep.formats import mrc_output
from streamprep.ledger import Ledger, LedgerError
from streamprep.pipeline import Plan, resolve
from streamprep.plugin_manager import Plugins, load_plugins
from streamprep.workers import ItemJob, Outcome, TableJob, run_job
from tests.outputs import check_invariants, images_of, read_table
from tests.reliability import troubled
from tests.reliability.unsynced import MODES, PowerLossError, UnsyncedFolder, Writeback

SIZE, BOX, ITEMS = 64, 16, 3
PLACES = np.arange(SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
VERSION = float(SIZE * SIZE)
MOST_ROUNDS = 400
SETTINGS: dict[str, Any] = {
    "session": {
        "watch": ["Micrographs", "Coordinates"],
        "output": "disk/streamprep_out",
        "device": "cpu",
        "settle_seconds": 1.0,
        "incomplete_seconds": 5.0,
        "max_attempts": 2,
        "stop_after_failures": 10_000,
        "reserve_mib": 0,
    },
    "extract": {"box_size_px": BOX},
    "particles": {"troubled": {}},
    "sets": {"further_tables": ["xmd", "cs"]},
}

InputKind = Literal["micrograph", "coordinates"]
Patch = Callable[[pytest.MonkeyPatch], None]


def pixels_of(version: int) -> npt.NDArray[np.float32]:
    """A micrograph in which each pixel says of which version and from where it is."""
    return (PLACES + VERSION * version).astype(np.float32)


def xy_of(version: int) -> list[tuple[int, int]]:
    """One to three places whose boxes lie inside."""
    return [(8 + (7 * version + 13 * i) % 48, 8 + (11 * version + 17 * i) % 47) for i in range(1 + version % 3)]


def _header() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        mrc_output.write(Path(folder, "a.mrc"), pixels_of(1)[None], pixel_size_angstrom=1.5, stack=False)
        return Path(folder, "a.mrc").read_bytes()[:1024]


@dataclass
class Input:
    """One file in a watched folder, and all that it ever held."""

    kind: InputKind
    path: Path
    version: int | None = None
    """What it holds; None while it is not there."""
    whole: bool = False
    history: set[int] = field(default_factory=set)

    def content(self, header: bytes) -> bytes:
        assert self.version is not None
        if self.kind == "micrograph":
            return header + pixels_of(self.version).tobytes()
        rows = "".join(f"{x} {y}\n" for x, y in xy_of(self.version))
        return f"data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n{rows}\n".encode()


class Observer:
    """Tells of what the machine lets it hear."""

    emitters = ()

    def __init__(self) -> None:
        self.handlers: list[FileSystemEventHandler] = []

    def schedule(self, handler: FileSystemEventHandler, root: str, *, recursive: bool) -> None:
        self.handlers.append(handler)

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def join(self, timeout: float) -> None: ...

    def is_alive(self) -> bool:
        return True

    def tell(self, path: Path) -> None:
        for handler in self.handlers:
            handler.on_any_event(FileClosedEvent(str(path)))


class HeldExecutor:
    """Holds jobs until the machine says that one is worked on, in this process."""

    size = 2
    wanted = 1
    troubles = ()

    def __init__(self, config: Config) -> None:
        workers.initialize(config, die_with_parent=False)
        self.held: list[tuple[Future[Outcome], TableJob | ItemJob]] = []

    def submit(self, job: TableJob | ItemJob) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        self.held.append((future, job))
        return future

    def cancel(self, job: Future[Outcome]) -> None:
        self.held = [(future, held) for future, held in self.held if future is not job]
        job.set_result(Outcome("unstarted", "it was given up", workers.WORKER))

    def check(self) -> None: ...

    def drain(self) -> None: ...

    def stop(self) -> None: ...

    def work(self, which: int = 0) -> None:
        if self.held:
            future, job = self.held.pop(which % len(self.held))
            future.set_result(run_job(job))


class World:
    """A session folder, what was put into it, and the daemon that runs on it now and then."""

    batches: ClassVar[Counter[int]] = Counter()
    """How often so many jobs were committed together, in all sessions."""

    def __init__(self, plant: Patch = lambda patch: None) -> None:
        shm = Path("/dev/shm")
        base = shm if os.access(shm, os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="streamprep-model-", dir=base))
        for name in ("Micrographs", "Coordinates", "disk"):
            (self.folder / name).mkdir()
        self.config = Config.model_validate({**SETTINGS, "file": self.folder / "streamprep.toml"})
        self.output = self.folder / "disk" / "streamprep_out"
        self.plugins, self.plan = _loaded()
        self.disk = UnsyncedFolder(self.folder / "disk")
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(workers, "load_plugins", lambda **_: self.plugins)
        self.disk.switch_on(self.patch)
        self._watch_ledger()
        self._count_batches()
        plant(self.patch)
        self.inputs = [
            Input(kind, self.folder / folder / f"mic_{number}.{ending}")
            for number in range(ITEMS)
            for kind, folder, ending in (
                ("micrograph", "Micrographs", "mrc"),
                ("coordinates", "Coordinates", "star"),
            )
        ]
        self.header = _header()
        self.time = 100.0
        self.stamp = 10**18
        self.versions = 0
        self.engine: Engine | None = None
        self.ledger: Ledger | None = None
        self.executor: HeldExecutor | None = None
        self.observer = Observer()
        self.acknowledged: set[tuple[str, int]] = set()

    def close(self) -> None:
        self._let_go()
        self.patch.undo()
        shutil.rmtree(self.folder)

    def _watch_ledger(self) -> None:
        """Power may go off before and after each transaction, and a full disk is full for it, too."""
        real, disk, begin = Ledger.transaction, self.disk, Ledger.__init__

        def made(ledger: Ledger, *args: Any, **options: Any) -> None:
            begin(ledger, *args, **options)
            self.ledger = ledger

        @contextlib.contextmanager
        def transaction(ledger: Ledger) -> Any:
            if ledger._db.in_transaction:
                yield
                return
            disk.step()
            with real(ledger):
                yield
                disk.need(100)
            disk.step()

        self.patch.setattr(Ledger, "transaction", transaction)
        self.patch.setattr(Ledger, "__init__", made)

    def _count_batches(self) -> None:
        real = Committer._record

        def record(committer: Committer, ready: Any, fresh: Any) -> None:
            real(committer, ready, fresh)
            World.batches[len(ready)] += 1

        self.patch.setattr(Committer, "_record", record)

    # --- inputs ---

    def write(self, made: Input, *, same: bool = False, whole: bool = True, anew: bool = False) -> None:
        """A program writes a file: the same content again or another, all of it or a part, in place or as a new one."""
        if made.version is None or not same:
            self.versions += 1
            made.version = self.versions
        made.whole = whole
        data = made.content(self.header)
        if whole:
            made.history.add(made.version)
        else:
            data = data[: len(data) // 2]
        path = made.path.with_name(f".{made.path.name}.part") if anew else made.path
        path.write_bytes(data)
        self.stamp += 10**9
        os.utime(path, ns=(self.stamp, self.stamp))
        if anew:
            path.rename(made.path)

    def delete(self, made: Input) -> None:
        made.path.unlink()
        made.version, made.whole = None, False

    # --- the daemon ---

    def start(self, *, once: bool = False) -> None:
        """Start it; it may find no room for that, or lose power at once."""
        with self._guarded():
            try:
                self.engine = Engine(
                    self.config,
                    self.plugins,
                    self.plan,
                    once=once,
                    executor=self._make_executor,
                    clock=lambda: self.time,
                    now=lambda: self.time,
                )
                self.observer = Observer()
                self.engine.watcher.observer_factory = lambda: self.observer
                self.engine.start()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EIO):
                    raise
                if self.engine is not None:
                    engine, self.engine = self.engine, None
                    engine.finish()
                self._let_go()
            except LedgerError as error:
                raise AssertionError(f"I2 the next start finds what was committed lost: {error}") from error
        if self.engine is not None:
            self.check()

    def _make_executor(self, config: Config) -> HeldExecutor:
        self.executor = HeldExecutor(config)
        return self.executor

    @contextlib.contextmanager
    def _guarded(self) -> Any:
        with contextlib.suppress(PowerLossError):
            yield
        if self.disk.off:
            self.power_is_lost()

    def lose_power(self, how: Writeback) -> None:
        self.disk.lose_power(how)
        self.power_is_lost()

    def power_is_lost(self) -> None:
        if self.engine is not None:
            self.note_acknowledged()
        self._let_go()
        self.disk.come_back()
        check_published(self.output, self.inputs)

    def _let_go(self) -> None:
        """Of what a process would have let go of by ending."""
        if self.ledger is not None:
            self.ledger.close()
        if self.engine is not None:
            self.engine._lock_file.close()
        self.engine = self.ledger = self.executor = None

    def note_acknowledged(self) -> None:
        assert self.engine is not None
        done = self.engine.ledger._db.execute("SELECT item, generation FROM jobs WHERE state = 'done'")
        self.acknowledged.update(done)

    def round(self, seconds: float) -> bool:
        """Some time passes, then the daemon does what it does ten times a second; True when it wants to end."""
        self.time += seconds
        ended = False
        with self._guarded():
            assert self.engine is not None
            ended = self.engine.round()
            self.note_acknowledged()
        return ended

    def work(self, which: int = 0, trouble: str | None = None) -> None:
        """A worker does one of the jobs that were handed to it."""
        troubled.trouble = trouble
        with self._guarded():
            assert self.executor is not None
            self.executor.work(which)

    def stop(self) -> None:
        """A signal comes: the daemon drains and ends."""
        assert self.engine is not None
        self.engine.stop()
        self._run_to_the_end()

    def _run_to_the_end(self) -> None:
        for _ in range(MOST_ROUNDS):
            if self.engine is None:
                return
            if self.round(0.5):
                break
            if self.engine is not None:
                self.work()
        else:
            raise AssertionError("the session does not come to its end")
        with self._guarded():
            engine = self.engine
            assert engine is not None
            engine.finish()
            self.engine = self.executor = None

    def once(self) -> None:
        """All that is there is processed."""
        self.disk.room_bytes = self.disk.steps_left = self.disk.syncs_left = None
        self.start(once=True)
        self._run_to_the_end()

    # --- the oracle ---

    def check(self) -> None:
        """What holds whenever a daemon has recovered, or ended in order."""
        ledger = self._copy_of_ledger()
        try:
            check_invariants(self.output, ledger=ledger)
            check_published(self.output, self.inputs)
            database = sqlite3.connect(ledger)
            known = set(database.execute("SELECT item, generation FROM jobs WHERE state IN ('done', 'superseded')"))
            database.close()
        finally:
            shutil.rmtree(ledger.parent)
        assert self.acknowledged <= known, f"I2 {self.acknowledged - known} were done, and are not any more"

    def _copy_of_ledger(self) -> Path:
        """The running daemon lets nobody else look at its own."""
        folder = self.folder / "look"
        folder.mkdir()
        for path in (self.output / ".streamprep").glob("ledger.sqlite*"):
            shutil.copyfile(path, folder / path.name)
        return folder / "ledger.sqlite"

    def check_ended(self) -> None:
        """I1: each generation of each file has come to an end, or says what it waits for."""
        ledger = self._copy_of_ledger()
        database = sqlite3.connect(ledger)
        open_jobs = database.execute("SELECT item, state FROM jobs WHERE state IN ('ready', 'claimed')").fetchall()
        assert not open_jobs, f"I1 {open_jobs}"
        failed = database.execute(
            "SELECT item, reason FROM jobs WHERE state = 'failed' AND operation IS NOT 'troubled'"
        ).fetchall()
        assert not failed, f"I1 nothing was wrong with {failed}"
        left = database.execute(
            "SELECT source, path, generation, state, reason FROM files WHERE state = 'queued' "
            "OR state = 'ready' AND (kind != 'micrograph' OR reason IS NULL)"
        ).fetchall()
        assert not left, f"I1 {left}"
        newest = dict(
            database.execute("SELECT source || '/' || CAST(path AS TEXT), max(generation) FROM files GROUP BY 1")
        )
        database.close()
        shutil.rmtree(ledger.parent)
        for made in self.inputs:
            name = made.path.relative_to(self.folder).as_posix()
            assert made.version is None or name in newest, f"I1 {name} was never noticed"

    def end(self) -> None:
        """Process what is there; then put right what is amiss, process again, and compare with what must come out."""
        if self.engine is not None:
            self.disk.room_bytes = self.disk.steps_left = self.disk.syncs_left = None
            self.stop()
        self.once()
        self.check()
        self.check_ended()
        for made in self.inputs:
            if not made.whole:
                self.write(made)
        for item in self._rejected():
            self.write(next(made for made in self.inputs if made.kind == "micrograph" and made.path.stem == item))
        (self.output / ".streamprep" / "request-1.json").write_text(json.dumps({"name": None}))
        self.once()
        self.check()
        self.check_ended()
        wanted = {
            f"Micrographs/{one.path.name}": (one.version, sorted(xy_of(other.version or 0)))
            for one, other in zip(self.inputs[::2], self.inputs[1::2], strict=True)
        }
        found = check_published(self.output, self.inputs)
        assert found == wanted, "the sets are not those of an uninterrupted run"

    def _rejected(self) -> set[str]:
        ledger = self._copy_of_ledger()
        database = sqlite3.connect(ledger)
        items = {row[0] for row in database.execute("SELECT item FROM jobs WHERE state = 'rejected'")}
        database.close()
        shutil.rmtree(ledger.parent)
        return {item.rpartition("/")[2] for item in items}


def check_published(output: Path, inputs: list[Input]) -> dict[str, tuple[int, list[tuple[int, int]]]]:
    """What a reader sees at any moment: whole tables, and rows of one version of each item with its own pixels.

    Returns
    -------
    dict
        For each micrograph its version and the places of its particles.
    """
    found: dict[str, tuple[int, list[tuple[int, int]]]] = {}
    for table in ("coordinates/particles.star", "particles.star", "particles.xmd", "particles.cs"):
        if (output / table).exists():
            data = (output / table).read_bytes()
            assert len(data.strip(b"\0")) > 80, f"{table} is torn: {data!r}"
            assert table.endswith(".cs") or data.endswith(b"\n\n"), f"{table} is torn: {data!r}"
            if table.endswith(".star"):
                read_table(output / table)
    if not (output / "particles.star").exists():
        return found
    _, rows = read_table(output / "particles.star")
    for stack in {name.partition("@")[2] for name in rows["rlnImageName"]}:
        assert (output / stack).exists(), f"I4 {stack} is not there, and rows name it"
    images = images_of(output, "particles.star")
    seen: dict[str, tuple[set[int], list[tuple[int, int]]]] = {}
    for name, micrograph, x, y in zip(
        rows["rlnImageName"],
        rows["rlnMicrographName"],
        rows["rlnCoordinateX"].astype(int),
        rows["rlnCoordinateY"].astype(int),
        strict=True,
    ):
        image, half = images[name], BOX // 2
        version = round((float(image[half, half]) - y * SIZE - x) / VERSION)
        wanted = pixels_of(version)[y - half : y + half, x - half : x + half]
        assert np.array_equal(image, wanted), f"I4 {name} does not hold the pixels at {x}, {y} of {micrograph}"
        versions, places = seen.setdefault(micrograph, (set(), []))
        versions.add(version)
        places.append((x, y))
    histories = {made.path.stem: made.history for made in inputs if made.kind == "micrograph"}
    picks = {made.path.stem: made.history for made in inputs if made.kind == "coordinates"}
    for micrograph, (versions, places) in seen.items():
        stem = Path(micrograph).stem
        (version,) = versions
        assert version in histories[stem], f"I4 version {version} is not one of {micrograph}"
        known = [sorted(xy_of(number)) for number in picks[stem]]
        assert sorted(places) in known, f"I1 {micrograph} has rows at {places}, which no version of its table had"
        found[micrograph] = (version, sorted(places))
    return found


_cache: list[tuple[Plugins, Plan]] = []


def _loaded() -> tuple[Plugins, Plan]:
    if not _cache:
        # the file with the state is written by the time of day, and by nothing that counts
        plugins = load_plugins(environ={}, extra=["tests.reliability.troubled"], block=["status"])
        _cache.append((plugins, resolve(Config.model_validate({**SETTINGS, "file": Path("/x.toml")}), plugins)))
    return _cache[0]


WRITEBACKS = st.builds(Writeback, st.sampled_from(MODES), st.integers(0, 1000))
NUMBERS = st.integers(0, ITEMS - 1)
KINDS: st.SearchStrategy[InputKind] = st.sampled_from(["micrograph", "coordinates"])
SECONDS = st.sampled_from([0.0, 0.5, 1.1, 3.0, 11.0, 31.0])


class Machine(RuleBasedStateMachine):
    """Everything that may happen."""

    plant: Patch = staticmethod(lambda patch: None)

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.plant)

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # else it has failed already
                self.world.end()
        finally:
            self.world.close()

    def _input(self, number: int, kind: InputKind) -> Input:
        return self.world.inputs[2 * number + (kind == "coordinates")]

    def _tell(self, made: Input, heard: bool) -> None:
        if heard and self.world.engine is not None:
            self.world.observer.tell(made.path)

    def _runs(self) -> bool:
        return self.world.engine is not None

    @initialize(number=NUMBERS)
    def begin(self, number: int) -> None:
        for kind in ("micrograph", "coordinates"):
            self.world.write(self._input(number, kind))  # type: ignore[arg-type]
        self.world.start()

    # --- inputs ---

    @rule(number=NUMBERS, kind=KINDS, same=st.booleans(), anew=st.booleans(), heard=st.booleans())
    def arrive_or_rewrite(self, number: int, kind: InputKind, same: bool, anew: bool, heard: bool) -> None:
        made = self._input(number, kind)
        self.world.write(made, same=same, anew=anew)
        self._tell(made, heard)

    @rule(number=NUMBERS, heard=st.booleans())
    def begin_to_write(self, number: int, heard: bool) -> None:
        made = self._input(number, "micrograph")
        self.world.write(made, whole=False)
        self._tell(made, heard)

    @rule(heard=st.booleans())
    def grow(self, heard: bool) -> None:
        for made in self.world.inputs:
            if made.version is not None and not made.whole:
                self.world.write(made, same=True)
                self._tell(made, heard)

    @rule(number=NUMBERS, kind=KINDS)
    def delete(self, number: int, kind: InputKind) -> None:
        made = self._input(number, kind)
        if made.version is not None:
            self.world.delete(made)

    # --- the daemon ---

    def _daemon_runs(self) -> bool:
        if not self._runs():
            self.world.start()
        return self._runs()

    def _change(self, number: int, kind: InputKind) -> None:
        """Make something of an item new, and have all of it there."""
        for made in self.world.inputs[2 * number : 2 * number + 2]:
            if made.kind == kind or not made.whole:
                self.world.write(made)

    def _process(self, rounds: int, seconds: float) -> None:
        for _ in range(rounds):
            if self._daemon_runs():
                self.world.round(seconds)
            while self._runs() and self.world.executor is not None and self.world.executor.held:
                self.world.work()

    @rule(seconds=SECONDS)
    def round(self, seconds: float) -> None:
        if self._daemon_runs():
            self.world.round(seconds)

    @precondition(_runs)
    @rule(which=st.integers(0, 3), trouble=st.sampled_from([None, None, "raises", "bad input", "rejects"]))
    def work(self, which: int, trouble: str | None) -> None:
        self.world.work(which, trouble)

    @rule(rounds=st.integers(1, 6), seconds=SECONDS)
    def process(self, rounds: int, seconds: float) -> None:
        self._process(rounds, seconds)

    @precondition(_runs)
    @rule()
    def stop(self) -> None:
        self.world.stop()

    # --- the disk ---

    @rule(number=NUMBERS, kind=KINDS, steps=st.integers(0, 200), how=WRITEBACKS)
    def lose_power_at_work(self, number: int, kind: InputKind, steps: int, how: Writeback) -> None:
        """While something new is being processed, or while the daemon recovers."""
        if self._daemon_runs():
            self._change(number, kind)
            self.world.disk.steps_left, self.world.disk.writeback = steps, how
            self._process(6, 1.1)
            self.world.disk.steps_left = None

    @rule(steps=st.integers(0, 60), how=WRITEBACKS)
    def lose_power_in_recovery(self, steps: int, how: Writeback) -> None:
        self.world.lose_power(how)
        self.world.disk.steps_left, self.world.disk.writeback = steps, how
        self.world.start()
        self.world.disk.steps_left = None

    @rule(how=WRITEBACKS)
    def lose_power(self, how: Writeback) -> None:
        self.world.lose_power(how)

    @rule(how=WRITEBACKS)
    def write_back(self, how: Writeback) -> None:
        self.world.disk.write_back(how)

    @rule(number=NUMBERS, kind=KINDS, room=st.integers(0, 20_000), seconds=SECONDS)
    def fill_the_disk(self, number: int, kind: InputKind, room: int, seconds: float) -> None:
        self._change(number, kind)
        self.world.disk.room_bytes = room
        self._process(6, seconds)

    @rule(number=NUMBERS, kind=KINDS, syncs=st.integers(0, 30), how=st.none() | WRITEBACKS)
    def fail_an_fsync(self, number: int, kind: InputKind, syncs: int, how: Writeback | None) -> None:
        """While something new is being processed; then power may be lost."""
        self._change(number, kind)
        if self._daemon_runs():
            self.world.disk.syncs_left = syncs
            self._process(6, 11.0)
            if how is not None:
                self.world.lose_power(how)

    @rule()
    def make_room(self) -> None:
        self.world.disk.room_bytes = None
