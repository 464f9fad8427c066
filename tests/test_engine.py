"""The engine in this process: back-pressure, pauses, systematic faults."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from streamprep import committer as committer_module
from streamprep import engine as engine_module
from streamprep import executors, hookimpl, viewing
from streamprep.committer import Committer, Result
from streamprep.config import Config, load
from streamprep.engine import DISK_RETRY_SECONDS, Engine
from streamprep.executors import Executor, InlineExecutor
from streamprep.model import ConfigError, OutputError
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.session import find_output, make_sources
from streamprep.sinks import _files
from streamprep.viewing import Disk
from streamprep.workers import ItemJob, Outcome, TableJob, run_job
from tests.conftest import Session
from tests.outputs import check_invariants, read_table
from tests.reliability.pausing import Clock, Instant


class Spy:
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.modes: list[str] = []
        self.finished: list[tuple[str, str]] = []

    @hookimpl
    def item_finished(self, item: str, state: str) -> None:
        self.finished.append((item, state))

    @hookimpl
    def warning_raised(self, message: str) -> None:
        self.messages.append(message)

    @hookimpl
    def snapshot_taken(self, snapshot: Any) -> None:
        if not self.modes or self.modes[-1] != snapshot.mode:
            self.modes.append(snapshot.mode)


@pytest.fixture
def make(session: Session) -> Callable[..., tuple[Engine, Spy]]:
    def build(
        *overrides: str,
        clock: Callable[[], float] | None = None,
        executor: Callable[[Config], Executor] = InlineExecutor,
    ) -> tuple[Engine, Spy]:
        config = load(session.config, ["session.device=cpu", "session.settle_seconds=0", *overrides])
        plugins = load_plugins(environ={})
        spy = Spy()
        plugins.manager.register(spy)
        engine = Engine(config, plugins, resolve(config, plugins), once=True, executor=executor, clock=clock or Clock())
        return engine, spy

    return build


class Several(InlineExecutor):
    """Like many workers that end at one moment."""

    size = 8

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._held: list[tuple[Future[Outcome], TableJob | ItemJob]] = []

    def submit(self, job: TableJob | ItemJob) -> Future[Outcome]:
        made: Future[Outcome] = Future()
        self._held.append((made, job))
        return made

    def check(self) -> None:
        for made, job in self._held:
            made.set_result(run_job(job))
        self._held = []


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many jobs were committed together each time."""
    sizes: list[int] = []
    real = Committer.commit

    def commit(self: Committer, batch: Sequence[Result]) -> Any:
        sizes.append(len(batch))
        return real(self, batch)

    monkeypatch.setattr(Committer, "commit", commit)
    return sizes


def test_jobs_that_end_at_one_moment_are_committed_together(
    session: Session, make: Callable[..., tuple[Engine, Spy]], monkeypatch: pytest.MonkeyPatch, batches: list[int]
) -> None:
    engine, spy = make(executor=Several)
    assert engine.run().jobs == {"done": 3}
    assert batches == [3]
    assert spy.finished == [(f"Micrographs/mic_000{number}", "done") for number in (1, 2, 3)]
    together = {
        path.name: path.read_bytes()
        for ending in ("star", "mrcs", "pos")
        for path in session.output.rglob(f"*.{ending}")
    }
    session.output.rename(session.folder / "first")
    monkeypatch.setattr(engine_module, "MOST_TOGETHER", 1)
    engine, _ = make(executor=Several)
    engine.run()
    assert batches == [3, 1, 1, 1]
    assert {
        path.name: path.read_bytes()
        for ending in ("star", "mrcs", "pos")
        for path in session.output.rglob(f"*.{ending}")
    } == together
    assert {"particles.star", "mic_0001.mrcs"} <= set(together)


def test_a_job_whose_results_cannot_be_stored_fails_alone_and_each_is_told_once(
    session: Session, make: Callable[..., tuple[Engine, Spy]], monkeypatch: pytest.MonkeyPatch, batches: list[int]
) -> None:
    """The ledger takes what is done, then not, for a while, that one failed."""
    monkeypatch.setattr(Several, "check", spoil(Several.check, "mic_0002"))
    engine, spy = make("session.max_attempts=1", clock=Clock(0.3), executor=Several)
    monkeypatch.setattr(engine, "_wake", Instant())
    failed, tries = engine.ledger.job_failed, iter([True, True])

    def full(*args: Any, **options: Any) -> None:
        if next(tries, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        failed(*args, **options)

    monkeypatch.setattr(engine.ledger, "job_failed", full)
    last = engine.run()
    assert last.jobs == {"done": 2, "failed": 1}
    assert batches == [3]
    assert "its results cannot be stored" in last.failures[0]["reason"]
    states = ("done", "failed", "done")
    assert spy.finished == [(f"Micrographs/mic_000{number + 1}", state) for number, state in enumerate(states)]
    check_invariants(session.output)


def spoil(check: Callable[[Several], None], name: str) -> Callable[[Several], None]:
    """Let the staged files of one item go before anything is committed."""

    def spoilt(self: Several) -> None:
        held = list(self._held)
        check(self)
        for _, job in held:
            if isinstance(job, ItemJob) and job.item.name.endswith(name):
                for path in job.folder.glob("*.mrcs"):
                    path.unlink()

    return spoilt


def test_so_many_rows_are_committed_together_at_most(
    session: Session, make: Callable[..., tuple[Engine, Spy]], monkeypatch: pytest.MonkeyPatch, batches: list[int]
) -> None:
    monkeypatch.setattr(engine_module, "MOST_ROWS_TOGETHER", 1)
    engine, _ = make(executor=Several)
    assert engine.run().jobs == {"done": 3}
    assert batches == [1, 1, 1]
    check_invariants(session.output)


def test_workers_make_the_bytes_of_rows_but_for_those_of_a_new_optics_group(
    session: Session, make: Callable[..., tuple[Engine, Spy]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = committer_module.render

    def render(table: Any, rows: Any, number: Any) -> Any:
        made.append(rows.table)
        return real(table, rows, number)

    monkeypatch.setattr(committer_module, "render", render)
    sets: list[dict[str, bytes]] = []
    for groups in (Committer.known_groups, lambda _: {}):
        made.clear()
        monkeypatch.setattr(Committer, "known_groups", groups)
        engine, _ = make('sets.further_tables=["xmd", "cs"]')
        engine.run()
        sets.append(
            {
                path.name: path.read_bytes()
                for ending in ("star", "xmd", "cs")
                for path in session.output.glob(f"*.{ending}")
            }
        )
        if not sets[1:]:
            assert max(made.count(table) for table in made) == 2, "two jobs were handed out before any was done"
            assert set(made) == {"particles.star", "noise.star", "particles.cs", "noise.cs"}
            shutil.rmtree(session.output)
    assert made.count("particles.star") == 3
    assert sets[0] == sets[1]
    assert {"particles.star", "particles.cs", "noise.xmd"} <= set(sets[0])


@pytest.mark.case(5)
def test_a_full_disk_pauses_and_goes_on_by_itself(
    session: Session, make: Callable[..., tuple[Engine, Spy]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    engine, spy = make(clock=clock)
    tries: list[float] = []
    append = _files.append

    def full(path: Path, at: int, data: bytes) -> None:
        if "particles.star" in path.name and len(tries) < 3:
            tries.append(clock.time)
            raise OSError(errno.ENOSPC, "No space left on device")
        append(path, at, data)

    monkeypatch.setattr(_files, "append", full)
    monkeypatch.setattr(engine, "_wake", Instant())
    last = engine.run()
    assert last.jobs == {"done": 3}
    assert len(tries) == 3
    assert np.diff(tries).min() >= DISK_RETRY_SECONDS, "at most one try in ten seconds"
    assert any("the disk is full" in message for message in spy.messages)
    assert "paused" in spy.modes
    assert spy.modes[-1] == "finished"
    assert len(set(read_table(session.output / "particles.star")[1]["rlnMicrographName"])) == 3
    check_invariants(session.output)


@pytest.mark.case(5)
def test_intake_pauses_below_the_reserve(
    session: Session, make: Callable[..., tuple[Engine, Spy]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, spy = make("session.reserve_mib=100", clock=Clock(0.2))
    monkeypatch.setattr(engine, "_wake", Instant())
    looks = iter([50 << 20] * 3)
    monkeypatch.setattr(Disk, "usage", lambda disk: (1 << 40, next(looks, 1 << 30)))
    last = engine.run()
    assert last.jobs == {"done": 3}
    assert any("50 MiB free, the reserve is 100 MiB" in message for message in spy.messages)
    assert any("can be written again" in message for message in spy.messages)


def test_a_disk_that_does_not_tell_its_space_is_not_called_full(
    session: Session, make: Callable[..., tuple[Engine, Spy]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, spy = make(clock=Clock(0.2))
    monkeypatch.setattr(engine, "_wake", Instant())
    left = [3]

    def usage(folder: Path) -> SimpleNamespace:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle", str(folder))
        return SimpleNamespace(total=1 << 40, free=1 << 39)

    monkeypatch.setattr(viewing.shutil, "disk_usage", usage)
    last = engine.run()
    assert last.jobs == {"done": 3}
    assert any("cannot be written" in message and "Stale file handle" in message for message in spy.messages)
    assert not any("is full" in message for message in spy.messages)
    assert last.disk_full_seconds is None, "it does not fill up"


def test_the_same_results_in_process_and_out(session: Session, make: Callable[..., tuple[Engine, Spy]]) -> None:
    engine, _ = make()
    engine.run()
    here = {path.name: path.read_bytes() for path in session.output.rglob("*.mrcs")}
    (session.output).rename(session.folder / "first")
    assert session.once().returncode == 0
    assert {path.name: path.read_bytes() for path in session.output.rglob("*.mrcs")} == here


def test_the_ledger_counts_what_nobody_knows(session: Session, make: Callable[..., tuple[Engine, Spy]]) -> None:
    (session.folder / "Micrographs" / "notes.pdf").write_bytes(b"%PDF")
    engine, _ = make()
    last = engine.run()
    assert last.unknown_files == 1
    assert last.jobs == {"done": 3}


def test_sources_put_patterns_before_folders(session: Session) -> None:
    (session.folder / "Masks").mkdir()
    config = load(session.config, ["coordinates.pick_noise.mask=Masks/{stem}.mrc"])
    plugins = load_plugins(environ={})
    sources = make_sources(config, resolve(config, plugins))
    assert [(source.label, source.pattern, source.kind) for source in sources] == [
        ("ctf", "micrographs_ctf.star", "ctf"),
        ("mask", "*.mrc", "mask"),
        ("Micrographs", None, None),
        ("Coordinates", None, None),
    ]
    config = load(session.config, ["coordinates.pick_noise.mask=Nowhere/{stem}.mrc"])
    with pytest.raises(ConfigError, match="Nowhere does not exist"):
        make_sources(config, resolve(config, plugins))


def test_a_watched_file_is_refused(session: Session) -> None:
    config = load(session.config, ['session.watch=["streamprep.toml"]'])
    plugins = load_plugins(environ={})
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        make_sources(config, resolve(config, plugins))


def test_each_plan_finds_its_own_output(session: Session) -> None:
    config, plugins = load(session.config), load_plugins(environ={})
    plan = resolve(config, plugins)
    assert find_output(config, plan) == (session.output, False)
    assert session.once().returncode == 0
    assert find_output(config, plan) == (session.output, True)
    other = load(session.config, ["particles.normalize.method=old"])
    assert find_output(other, resolve(other, plugins)) == (session.folder / "streamprep_out_2", False)


def test_a_removed_table_no_longer_counts(session: Session) -> None:
    """Two tables for one micrograph; the user removes one, as the message asks."""
    picks = session.folder / "Coordinates"
    (picks / "mic_0001_manualpick.star").write_bytes((picks / "mic_0001_autopick.star").read_bytes())
    done = session.once()
    assert done.returncode == 0
    assert "waiting: Micrographs/mic_0001: has several coordinates files" in done.stdout
    assert "mic_0001_manualpick.star" in done.stdout
    (picks / "mic_0001_autopick.star").unlink()
    done = session.once()
    assert "done     Micrographs/mic_0001" in done.stdout
    assert "0 waiting" in done.stdout
    check_invariants(session.output)


def test_marks_of_patterns_in_the_sessions_own_path(session: Session) -> None:
    folder = session.folder.with_name("a[1]*")
    session.folder.rename(folder)
    moved = Session(folder)
    done = moved.once()
    assert done.returncode == 0
    assert "3 micrographs done, 0 waiting" in done.stdout


@pytest.mark.case(6)
def test_a_full_disk_under_the_ledger_loses_nothing(
    session: Session, make: Callable[..., tuple[Engine, Spy]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, spy = make(clock=Clock(0.3))
    monkeypatch.setattr(engine, "_wake", Instant())
    tries = {name: iter([True]) for name in ("notice", "claim", "table_read", "commit")}
    for name, once_ in tries.items():
        method = getattr(engine.ledger, name)

        def full(*args: Any, method: Any = method, once_: Any = once_, **options: Any) -> Any:
            if next(once_, False):
                raise OSError(errno.ENOSPC, "No space left on device")
            return method(*args, **options)

        monkeypatch.setattr(engine.ledger, name, full)
    last = engine.run()
    assert last.jobs == {"done": 3}
    assert sum("the disk is full" in message for message in spy.messages) == 4
    check_invariants(session.output)


@pytest.mark.case(12)
def test_rows_lost_behind_our_back_end_the_session(session: Session, make: Callable[..., tuple[Engine, Spy]]) -> None:
    assert session.once().returncode == 0
    (session.folder / "Coordinates" / "mic_0001_autopick.star").write_text(
        "data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n100 100\n"
    )
    engine, _ = make()

    class Vandal:
        @hookimpl
        def item_started(self) -> None:
            log = session.output / ".streamprep" / "rows" / "particles.star.rows"
            log.write_bytes(b"")

    engine.plugins.manager.register(Vandal())
    with pytest.raises(OutputError, match="committed bytes"):
        engine.run()


def test_workers_that_cannot_be_started_are_told_and_are_no_full_disk(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(SpawnProcess, "start", refuse)
    overrides = ["session.device=cpu", "session.settle_seconds=0", "session.stop_after_failures=2"]
    config, plugins, spy = load(session.config, overrides), load_plugins(environ={}), Spy()
    plugins.manager.register(spy)
    engine = Engine(config, plugins, resolve(config, plugins), once=True, clock=Clock())
    monkeypatch.setattr(engine, "_wake", Instant())
    last = engine.run()
    assert last.mode == "stopped"
    assert "worker processes cannot be started with" in last.message
    assert "Broken pipe" in last.message
    assert "paused" not in spy.modes
    assert last.failed == 0


def test_no_thread_to_read_ahead_with_costs_no_session(
    session: Session, make: Callable[..., tuple[Engine, Spy]], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: Any) -> None:
        if getattr(thread, "_target", None) is executors.read_ahead:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    engine, _ = make(executor=executors.LocalExecutor)
    assert engine.run().jobs == {"done": 3}


@pytest.mark.case(7)
def test_a_ledger_that_cannot_be_read_for_a_while_pauses_the_session(
    session: Session, make: Callable[..., tuple[Engine, Spy]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, spy = make()
    counts, calls = engine.ledger.job_counts, iter(range(1000))

    def job_counts() -> dict[str, int]:
        if next(calls) in (2, 3):
            raise OSError(errno.EIO, "Input/output error: the ledger")
        return counts()

    monkeypatch.setattr(engine.ledger, "job_counts", job_counts)
    monkeypatch.setattr(engine, "_wake", Instant())
    assert engine.run().jobs == {"done": 3}
    assert any("the output cannot be written" in message for message in spy.messages)
    check_invariants(session.output)


@pytest.mark.case(6)
def test_what_the_disk_does_not_take_of_one_job_alone_is_the_fault_of_that_job(
    session: Session, make: Callable[..., tuple[Engine, Spy]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is too large for a limit, say: the others are done, and this one fails and names itself."""
    engine, spy = make("session.max_attempts=1")
    real = InlineExecutor.submit

    def submit(self: InlineExecutor, job: Any) -> Any:
        made = real(self, job)
        if isinstance(job, ItemJob) and job.item.name.endswith("mic_0002"):
            made = Future()
            trouble = OSError(errno.EFBIG, "File too large", "stack.mrcs")
            made.set_result(Outcome("unstored", "File too large", trouble=trouble))
        return made

    monkeypatch.setattr(InlineExecutor, "submit", submit)
    monkeypatch.setattr(engine, "_wake", Instant())
    last = engine.run()
    assert last.jobs == {"done": 2, "failed": 1}
    assert "its results cannot be stored, though others can: stack.mrcs: File too large" in last.failures[0]["reason"]
    assert any("File too large, for Micrographs/mic_0002" in message for message in spy.messages)
    check_invariants(session.output)


@pytest.mark.case(5)
def test_a_disk_that_takes_nothing_of_any_job_fails_none(
    session: Session, make: Callable[..., tuple[Engine, Spy]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = make("session.max_attempts=1")
    real, refused = InlineExecutor.submit, []

    def submit(self: InlineExecutor, job: Any) -> Any:
        if not isinstance(job, ItemJob) or len(refused) >= 20:
            return real(self, job)
        refused.append(job)
        made: Future[Outcome] = Future()
        made.set_result(Outcome("unstored", "full", trouble=OSError(errno.ENOSPC, "No space left on device")))
        return made

    monkeypatch.setattr(InlineExecutor, "submit", submit)
    monkeypatch.setattr(engine, "_wake", Instant())
    assert engine.run().jobs == {"done": 3}
    assert len(refused) == 20
    check_invariants(session.output)


@pytest.mark.case(7)
def test_jobs_taken_while_the_ledger_cannot_be_read_are_not_forgotten(
    session: Session, make: Callable[..., tuple[Engine, Spy]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = make()
    groups, calls = engine.ledger.optics, iter(range(1000))

    def optics(table: str) -> Any:
        if next(calls) == 0:
            raise OSError(errno.EIO, "Input/output error: the ledger")
        return groups(table)

    monkeypatch.setattr(engine.ledger, "optics", optics)
    monkeypatch.setattr(engine, "_wake", Instant())
    assert engine.run().jobs == {"done": 3}
    check_invariants(session.output)
