"""Disks that are full, limited, broken, slow of speech, read-only or away: cases 5 to 9.

Most sessions here run in this process, on a disk of their own, with a clock that nobody waits for.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamprep.config import load
from streamprep.engine import DISK_RETRY_SECONDS, Engine
from streamprep.executors import InlineExecutor
from streamprep.model import OutputError
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.sinks import _files
from streamprep.workers import ItemJob, Outcome
from tests.conftest import Session
from tests.outputs import check_invariants, read_table, same_results
from tests.reliability import pausing
from tests.reliability.conftest import LONG, Mount, unmount
from tests.reliability.pausing import PAUSES, Fault, Told, preload, run


def fill(folder: Path, leave: int = 0) -> None:
    """Take all the space of a disk but some bytes."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        free = os.statvfs(folder)
        for _ in range(max(0, free.f_bavail * free.f_frsize - leave) // 4096):
            file.write(bytes(4096))


def clear(folder: Path) -> None:
    (folder / "filler").unlink(missing_ok=True)


def paused_and_lost_nothing(told: Told, session: Session, reference: Session, words: str) -> None:
    assert told.jobs == {"done": 3}
    assert len(told.pauses) >= PAUSES, told.messages
    assert np.diff(told.pauses).min() >= DISK_RETRY_SECONDS, "at most one try in ten seconds"
    assert all(words in message for message in told.messages if message.startswith("paused")), told.messages
    assert "paused" in told.modes
    assert told.modes[-1] == "finished"
    same_results(session.output, reference.output)


# --- full ------------------------------------------------------------------------------------------------------------


@pytest.mark.case(5, 6, where="root")
@pytest.mark.parametrize(
    ("moment", "leave"),
    [("started", 0), ("claimed", 0), ("claimed", 4096), ("claimed", 40_960), ("claimed", 81_920), ("claimed", 122_880)],
)
def test_a_full_disk_pauses_the_session_until_there_is_room(
    fresh: Session, reference: Session, mount: Mount, moment: str, leave: int
) -> None:
    """With no room for arrivals, for what a worker stages, for rows, for the ledger, or for tables."""
    disk = mount(fresh.output)
    told = run(fresh.config, lambda: fill(disk, leave), lambda: clear(disk), moment)
    paused_and_lost_nothing(told, fresh, reference, "the disk is full")


@pytest.mark.case(6, where="root")
@pytest.mark.parametrize("moment", ["started", "claimed"])
def test_a_disk_without_inodes_pauses_the_session(
    fresh: Session, reference: Session, mount: Mount, moment: str
) -> None:
    disk = mount(fresh.output, "size=16m,nr_inodes=200")
    many = disk / "many"

    def begin() -> None:
        many.mkdir()
        with contextlib.suppress(OSError):
            for number in range(200):
                (many / str(number)).touch()

    told = run(fresh.config, begin, lambda: shutil.rmtree(many, ignore_errors=True), moment)
    paused_and_lost_nothing(told, fresh, reference, "the disk is full")


@pytest.mark.case(6)
@pytest.mark.parametrize(("moment", "limit"), [("started", 2_000), ("claimed", 2_000), ("claimed", 15_000)])
def test_a_limit_on_files_pauses_the_session(fresh: Session, reference: Session, moment: str, limit: int) -> None:
    """A quota as a process has it: no file may be longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = run(
        fresh.config,
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1])),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before),
        moment,
    )
    paused_and_lost_nothing(told, fresh, reference, "the output cannot be written")


@pytest.mark.case(5)
def test_a_full_disk_is_tried_no_more_often_while_the_last_jobs_end(
    fresh: Session, reference: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal came while the session was paused, and one worker is still at work."""
    clock, tries, patched = pausing.Clock(), [], pytest.MonkeyPatch()

    class Late(InlineExecutor):
        """Gives the first job back at once, the others after a minute."""

        size = 1
        held: Future[Outcome] = Future()

        def submit(self, job: Any) -> Future[Outcome]:
            made = super().submit(job)
            if isinstance(job, ItemJob):
                waiting.append(made)
                return made if len(waiting) == 1 else self.held
            return made

        def check(self) -> None:
            if tries and clock.time - tries[0] > 60 and not self.held.done():
                self.held.set_result(waiting[1].result())

    waiting: list[Future[Outcome]] = []

    def full(*_: Any) -> None:
        tries.append(clock.time)
        engine.stop()
        raise OSError(errno.ENOSPC, "No space left on device")

    config = load(fresh.config, ["session.device=cpu", "session.settle_seconds=0", "session.reserve_mib=0"])
    plugins = load_plugins(environ={})
    engine = Engine(config, plugins, resolve(config, plugins), once=True, executor=Late, clock=clock)
    monkeypatch.setattr(engine, "_wake", pausing.Instant())
    patched.setattr(_files, "append", full)
    try:
        engine.run()
    finally:
        patched.undo()
    assert len(tries) > 3
    assert np.diff(tries[:-1]).min() >= DISK_RETRY_SECONDS, "but for the last one, when nothing else is left to do"
    assert run(fresh.config, lambda: None, lambda: None, "started").jobs == {"done": 3}
    same_results(fresh.output, reference.output)


# --- faults of the C library -----------------------------------------------------------------------------------------


def under_libfiu(session: Session, moment: str, *faults: Fault) -> Told:
    if not LONG:
        pytest.skip("part of `make faults`")
    library = preload()
    if library is None:
        pytest.skip("libfiu's preload library is not installed (Debian: fiu-utils)")
    given = json.dumps({"moment": moment, "faults": [asdict(fault) for fault in faults]})
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-m", "tests.reliability.pausing", str(session.config), given],
        env={**os.environ, "LD_PRELOAD": library, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Told(**json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.case(7, where="nightly")
@pytest.mark.parametrize("once", [True, False], ids=["once", "again and again"])
@pytest.mark.parametrize("point", ["fdatasync", "fsync"])
def test_a_sync_that_fails_is_tried_anew_after_a_pause(
    fresh: Session, reference: Session, point: str, once: bool
) -> None:
    """Of row logs, stacks, folders, tables and the ledger's own."""
    told = under_libfiu(fresh, "claimed", Fault(f"posix/io/sync/{point}", errno.EIO, once))
    if once:
        assert len(told.pauses) == 1
        assert told.jobs == {"done": 3}
        same_results(fresh.output, reference.output)
    else:
        paused_and_lost_nothing(told, fresh, reference, "the output cannot be written")


@pytest.mark.case(7)
def test_a_disk_that_never_syncs_again_ends_with_nothing_lost(fresh: Session, reference: Session) -> None:
    """The session is ended by a signal meanwhile; the next one, on a mended disk, does all."""
    real, tries = os.fdatasync, []

    def fail(descriptor: int) -> None:
        tries.append(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.MonkeyPatch.context() as patched:
        ended = run_ended_by_a_signal(fresh, lambda: patched.setattr(os, "fdatasync", fail))
    assert os.fdatasync is real
    assert ended.jobs.get("done", 0) == 0
    assert len(tries) <= len(ended.pauses) + 1, "one try for each pause, and a last one"
    assert run(fresh.config, lambda: None, lambda: None, "started").jobs == {"done": 3}
    same_results(fresh.output, reference.output)


def run_ended_by_a_signal(session: Session, begin: Callable[[], None]) -> Told:
    engines: list[Any] = []
    build = pausing.Engine

    def keep(*args: Any, **options: Any) -> Any:
        engines.append(build(*args, **options))
        return engines[0]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pausing, "Engine", keep)
        return run(session.config, begin, lambda: engines[0].stop(), "claimed")


@pytest.mark.case(8, where="nightly")
@pytest.mark.parametrize(
    "fault",
    [
        Fault("posix/io/rw/pwrite/reduce", 0, probability=0.5),
        Fault("posix/io/rw/write/reduce", 0, probability=0.5),
        Fault("posix/io/rw/pwrite", errno.EINTR, probability=0.3),
        Fault("posix/io/rw/write", errno.EINTR, probability=0.3),
    ],
    ids=["short pwrite", "short write", "interrupted pwrite", "interrupted write"],
)
def test_short_and_interrupted_writes_change_nothing(fresh: Session, reference: Session, fault: Fault) -> None:
    told = under_libfiu(fresh, "started", fault)
    assert told.jobs == {"done": 3}
    assert told.pauses == []
    same_results(fresh.output, reference.output)


@pytest.mark.case(5, 9, where="nightly")
@pytest.mark.parametrize(
    ("point", "number", "words"),
    [
        ("posix/io/rw/pwrite", errno.ENOSPC, "the disk is full"),
        ("posix/io/rw/pwrite", errno.EROFS, "the output cannot be written"),
        ("posix/io/dir/rename", errno.EROFS, "the output cannot be written"),
        ("posix/io/dir/rename", errno.ENOSPC, "the disk is full"),
    ],
)
def test_a_disk_that_takes_nothing_pauses_the_session(
    fresh: Session, reference: Session, point: str, number: int, words: str
) -> None:
    told = under_libfiu(fresh, "claimed", Fault(point, number))
    paused_and_lost_nothing(told, fresh, reference, words)


# --- away ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[tuple[Callable[[Path], None], Path]]:
    """Mounts an ext4 of its own at a folder, checked before each time; and the file that tells it of an error."""
    if os.geteuid():
        pytest.skip("only root may mount")
    missing = [name for name in ("mkfs.ext4", "e2fsck", "losetup") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    attached = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if attached.returncode:
        pytest.skip(f"no loop device: {attached.stderr.strip()}")
    device = attached.stdout.strip()
    mounted: list[Path] = []

    def mount_at(folder: Path) -> None:
        subprocess.run(["e2fsck", "-fy", device], check=False, capture_output=True)
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-o", "errors=remount-ro", device, folder], check=True)
        mounted.append(folder)

    try:
        yield mount_at, Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"
    finally:
        for folder in mounted:
            unmount(folder)
        subprocess.run(["losetup", "--detach", device], check=False)


@pytest.mark.case(9, where="root")
def test_an_output_that_turns_read_only_pauses_the_session_and_loses_nothing(
    fresh: Session, reference: Session, ext4: tuple[Callable[[Path], None], Path]
) -> None:
    """As a file system does that found an error; it is checked and mounted again before the next start."""
    mount_at, trigger = ext4
    mount_at(fresh.output)
    if not trigger.exists():
        pytest.skip("this kernel cannot be told of an error")
    told = run_ended_by_a_signal(fresh, lambda: trigger.write_text("1") and None)
    assert told.jobs.get("done", 0) == 0
    assert len(told.pauses) == PAUSES + 1, "one try for each pause, and a last one"
    assert np.diff(told.pauses[:PAUSES]).min() >= DISK_RETRY_SECONDS
    assert "the output cannot be written" in told.messages[0]
    assert told.modes[-1] == "finished"
    subprocess.run(["umount", fresh.output], check=True)
    mount_at(fresh.output)
    assert run(fresh.config, lambda: None, lambda: None, "started").jobs == {"done": 3}
    shutil.rmtree(fresh.output / "lost+found")
    same_results(fresh.output, reference.output)


@pytest.mark.case(9, where="root")
def test_an_output_that_is_unmounted_ends_the_session_and_nothing_takes_its_place(
    fresh: Session, reference: Session, mount: Mount, tmp_path: Path
) -> None:
    disk = mount(fresh.output)
    kept = tmp_path / "kept"
    kept.mkdir()
    subprocess.run(["mount", "--bind", disk, kept], check=True)
    try:
        with pytest.raises(OutputError, match="was removed or replaced"):
            run(
                fresh.config,
                lambda: subprocess.run(["umount", "-l", disk], check=True) and None,
                lambda: None,
                "claimed",
            )
        assert list(fresh.output.iterdir()) == [], "nothing is written where it was mounted"
        subprocess.run(["mount", "--bind", kept, disk], check=True)
        assert run(fresh.config, lambda: None, lambda: None, "started").jobs == {"done": 3}
        same_results(fresh.output, reference.output)
    finally:
        unmount(kept)
        unmount(disk)


@pytest.mark.case(9)
def test_an_output_that_is_removed_ends_the_session_and_does_not_come_back(fresh: Session, tmp_path: Path) -> None:
    assert run(fresh.config, lambda: None, lambda: None, "started").jobs == {"done": 3}
    rows = len(read_table(fresh.output / "particles.star")[1])
    os.utime(fresh.folder / "Micrographs" / "mic_0002.mrc")
    with pytest.raises(OutputError, match="was removed or replaced"):
        run(fresh.config, lambda: fresh.output.rename(tmp_path / "elsewhere") and None, lambda: None, "claimed")
    assert not fresh.output.exists()
    (tmp_path / "elsewhere").rename(fresh.output)
    assert run(fresh.config, lambda: None, lambda: None, "started").jobs["done"] == 3
    assert len(read_table(fresh.output / "particles.star")[1]) == rows
    check_invariants(fresh.output)
