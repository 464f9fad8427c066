"""The watcher yields each file once, settled and whole, whatever events say and the folder does meanwhile."""

from __future__ import annotations

import errno
import os
import queue
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watchdog.events import (
    DirCreatedEvent,
    DirModifiedEvent,
    DirMovedEvent,
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
)

from streamprep import formats, watcher
from streamprep.model import Identity
from streamprep.watcher import Arrival, Source, Watcher, file_system_of, is_remote, is_temporary

SETTLE = 1.0
INCOMPLETE = 60.0
RESCAN = 30.0
POLL = 5.0


class Rig:
    """A watcher with a clock that stands still, and a memory of what was yielded as the ledger has it."""

    def __init__(self, *sources: Source, **options: Any) -> None:
        self.now = 0.0
        self.seen: dict[tuple[str, str], tuple[int, int, int]] = {}
        self.stats = 0
        self.questions = 0
        self.on_stat: Callable[[str], None] = lambda path: None
        choices = {"missing": formats.missing_part, "events": False, **options}
        self.watcher = Watcher(
            sources,
            known=self._known,
            settle_seconds=SETTLE,
            incomplete_seconds=INCOMPLETE,
            rescan_seconds=RESCAN,
            poll_seconds=POLL,
            clock=lambda: self.now,
            stat=self._stat,
            **choices,
        )

    def _known(self, source: Source, files: Mapping[str, Identity]) -> set[str]:
        self.questions += 1
        return {
            relative
            for relative, found in files.items()
            if self.seen.get((source.label, relative)) == (found.size, found.mtime_ns, found.inode)
        }

    def _stat(self, path: str) -> os.stat_result:
        self.stats += 1
        self.on_stat(path)
        return os.stat(path)  # noqa: PTH116

    def poll(self, *, most: int = 2000) -> list[Arrival]:
        arrivals = self.watcher.poll(most=most)
        for arrival in arrivals:
            found = arrival.identity
            self.seen[arrival.source.label, arrival.relative] = (found.size, found.mtime_ns, found.inode)
        return arrivals

    def run(self, seconds: float, *, step: float = 0.5) -> list[Arrival]:
        """Poll now, and again and again for a time."""
        arrivals = self.poll()
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + step)
            arrivals += self.poll()
        return arrivals

    def names(self, seconds: float = 2 * POLL) -> list[str]:
        """What arrives in a time that is long enough for a scan and for settling."""
        return sorted(arrival.relative for arrival in self.run(seconds))


class Events:
    """Stands where watchdog's observer does; delivers the events that the test tells, and no others."""

    def __init__(self) -> None:
        self.handlers: list[Any] = []
        self.watched: dict[str, bool] = {}
        self.alive = False
        self.stopped = 0

    def schedule(self, handler: Any, path: str, *, recursive: bool) -> None:
        self.handlers.append(handler)
        self.watched[path] = recursive

    def start(self) -> None:
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive

    def stop(self) -> None:
        self.alive = False
        self.stopped += 1

    def join(self, timeout: float | None = None) -> None:
        pass

    def tell(self, event: FileSystemEvent) -> None:
        for handler in self.handlers:
            handler.dispatch(event)


class NoWatchesLeft(Events):
    """What watchdog's observer does when the kernel has no inotify watches left."""

    def start(self) -> None:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")


def write_mrc(path: Path, *, side: int = 8, value: float = 0.0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.full((side, side), value, np.float32))
    return path.read_bytes()


def until(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Wait for another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "Micrographs"
    folder.mkdir()
    return folder


@pytest.fixture
def rig(root: Path) -> Rig:
    return Rig(Source(root, "mics"))


# --- settling --------------------------------------------------------------------------------------------------------


@pytest.mark.case(14)
def test_a_file_is_yielded_once_after_it_was_unchanged_for_settle_seconds_of_our_clock(rig: Rig, root: Path) -> None:
    data = write_mrc(root / "a.mrc")
    os.utime(root / "a.mrc", (1.0, 1.0))  # copied with its old time: says nothing about whether it is finished
    assert rig.poll() == []
    rig.now = 0.99 * SETTLE
    assert rig.poll() == []
    rig.now = SETTLE
    (arrival,) = rig.poll()
    found = (root / "a.mrc").stat()
    assert arrival.path == root / "a.mrc"
    assert (arrival.source.label, arrival.relative, arrival.problem) == ("mics", "a.mrc", None)
    assert arrival.identity == Identity(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    assert arrival.head == data[:4096]
    assert rig.run(10 * RESCAN, step=POLL) == []


@pytest.mark.case(13)
def test_a_slow_writer_with_pauses_is_waited_for(rig: Rig, root: Path) -> None:
    data = write_mrc(root / "whole.bin", side=64)
    (root / "whole.bin").rename(root / "a.mrc")
    (root / "a.mrc").write_bytes(b"")
    arrivals = []
    for part in range(8):  # each pause is longer than settle_seconds: only the format knows that more must come
        with (root / "a.mrc").open("ab") as file:
            file.write(data[part * len(data) // 8 : (part + 1) * len(data) // 8])
        arrivals.append([(found.problem, found.identity.size) for found in rig.run(2 * POLL)])
    assert arrivals == [[]] * 7 + [[(None, len(data))]]


@pytest.mark.case(13)
def test_a_file_without_a_length_of_its_own_is_yielded_when_it_has_been_still(rig: Rig, root: Path) -> None:
    for _ in range(20):
        with (root / "a.star").open("a") as file:
            file.write("1 2\n")
        assert rig.poll() == []
        rig.now += 0.9 * SETTLE
    rig.now += SETTLE
    assert rig.names() == ["a.star"]


@pytest.mark.case(14)
def test_a_preallocated_file_is_whole_by_its_size_and_still_waited_for(rig: Rig, root: Path) -> None:
    data = write_mrc(root / "a.mrc", side=64, value=1.0)
    with (root / "a.mrc").open("r+b") as file:
        file.seek(1024)
        file.write(bytes(len(data) - 1024))
    for part in range(6):
        rig.now += 0.8 * SETTLE
        with (root / "a.mrc").open("r+b") as file:
            file.seek(1024 + part * 1024)
            file.write(data[1024 : 2 * 1024])
        os.utime(root / "a.mrc", ns=(0, part))  # the kernel's own clock is too coarse to tell writes this close apart
        assert rig.poll() == [], "it is still being written"
    assert [found.problem for found in rig.run(3 * SETTLE)] == [None]


@pytest.mark.case(14)
def test_a_preallocated_file_of_zeros_is_not_an_image_yet(rig: Rig, root: Path) -> None:
    data = write_mrc(root / "source.bin")
    (root / "source.bin").unlink()
    (root / "a.mrc").write_bytes(bytes(len(data)))
    assert rig.names() == []
    (root / "a.mrc").write_bytes(data)
    assert rig.names() == ["a.mrc"]


@pytest.mark.case(16)
def test_a_truncated_file_is_a_problem_after_a_while_and_an_arrival_when_it_is_completed(rig: Rig, root: Path) -> None:
    data = write_mrc(root / "a.mrc", side=32)
    (root / "a.mrc").write_bytes(data[:3000])
    assert rig.run(0.9 * INCOMPLETE) == []
    (arrival,) = rig.run(0.2 * INCOMPLETE)
    assert arrival.problem is not None
    assert "truncated" in arrival.problem
    assert "3000" in arrival.problem
    assert str(len(data)) in arrival.problem
    assert rig.run(3 * INCOMPLETE, step=POLL) == [], "told once"

    with (root / "a.mrc").open("ab") as file:
        file.write(data[3000:])
    (arrival,) = rig.run(2 * POLL)
    assert (arrival.problem, arrival.identity.size) == (None, len(data))


def test_a_header_that_can_never_become_an_image_is_told_at_once(rig: Rig, root: Path) -> None:
    (root / "a.mrc").write_bytes(b"\xff" * 5000)
    (arrival,) = rig.run(2 * POLL)
    assert arrival.problem is not None
    assert "not a usable MRC file" in arrival.problem


@pytest.mark.case(16)
def test_the_last_round_tells_what_is_incomplete(rig: Rig, root: Path) -> None:
    data = write_mrc(root / "a.mrc")
    (root / "a.mrc").write_bytes(data[:-1])
    write_mrc(root / "b.mrc")
    assert [found.relative for found in rig.run(2 * SETTLE)] == ["b.mrc"]
    assert rig.watcher.idle()
    (arrival,) = rig.watcher.give_up_on_incomplete()
    assert arrival.relative == "a.mrc"
    assert arrival.problem is not None
    assert rig.watcher.give_up_on_incomplete() == []
    assert rig.watcher.settling == 0


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "rewrite", "remove", "wait"]), st.sampled_from("abc"), st.floats(0.0, 2.0)),
        max_size=25,
    )
)
def test_whatever_happens_each_state_that_stays_is_yielded_once_and_none_before_its_time(
    steps: list[tuple[str, str, float]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        rig = Rig(Source(root, "mics"))
        written: dict[str, float] = {}
        last: dict[str, int] = {}
        length = 0

        def check(arrivals: list[Arrival]) -> None:
            for arrival in arrivals:
                assert rig.now - written[arrival.relative] >= SETTLE, "yielded before it was settled"
                assert arrival.identity.size == (root / arrival.relative).stat().st_size
                assert last.get(arrival.relative) != arrival.identity.size, "yielded twice"
                last[arrival.relative] = arrival.identity.size

        for action, stem, seconds in steps:
            path = root / f"{stem}.star"
            if action in ("write", "rewrite"):
                length += 1  # each state has a length of its own
                if action == "rewrite":
                    path.unlink(missing_ok=True)
                path.write_bytes(b"x" * length)
                written[path.name] = rig.now
            elif action == "remove":
                path.unlink(missing_ok=True)
            check(rig.poll())
            rig.now += seconds
        for _ in range(2):
            rig.now += POLL
            check(rig.poll())
        assert {name: size for name, size in last.items() if (root / name).exists()} == {
            path.name: path.stat().st_size for path in root.iterdir()
        }


# --- names and kinds of files ----------------------------------------------------------------------------------------

TEMPORARY = [
    ".a.mrc.Xy12Ab",  # rsync
    ".~tmp~/a.mrc",  # rsync --delay-updates
    ".rsync-partial/a.mrc",
    "a.mrc.part",  # browsers, curl
    "a.mrc.crdownload",
    "a.mrc.filepart",  # WinSCP
    ".nfs000000000123",
    ".syncthing.a.mrc.tmp",
    "~syncthing~a.mrc.tmp",
    "a.mrc.TMP",
    "a.mrc~",
    ".a.mrc.swp",
    ".hidden.mrc",
    ".hidden/a.mrc",
]


@pytest.mark.case(15)
@pytest.mark.parametrize("temporary", TEMPORARY)
def test_a_temporary_name_is_left_alone_and_the_renamed_file_arrives_once(rig: Rig, root: Path, temporary: str) -> None:
    assert is_temporary(temporary)
    write_mrc(root / "new.mrc")
    (root / temporary).parent.mkdir(exist_ok=True)
    (root / "new.mrc").rename(root / temporary)
    assert rig.run(2 * INCOMPLETE, step=POLL) == []
    (root / temporary).rename(root / "final.mrc")
    (arrival,) = rig.run(2 * INCOMPLETE, step=SETTLE)
    assert (arrival.relative, arrival.problem) == ("final.mrc", None)


@pytest.mark.case(20)
@pytest.mark.parametrize(
    "name",
    ["new\nline.mrc", "<img src=x onerror=alert(1)>.mrc", "a b'\"`$(x);&.mrc", "日本.mrc", "[ab]*?.mrc", "\\.mrc"],
)
def test_hostile_names_arrive_as_they_are(rig: Rig, root: Path, name: str) -> None:
    write_mrc(root / "a.bin")
    (root / "a.bin").rename(root / name)
    (arrival,) = rig.run(2 * POLL)
    assert (arrival.relative, arrival.problem) == (name, None)


@pytest.mark.case(20)
def test_a_name_that_is_not_utf_8_arrives_and_can_be_opened(rig: Rig, root: Path) -> None:
    data = write_mrc(root / "a.bin")
    (root / "a.bin").rename(root / os.fsdecode(b"mic_\xff\xfe.mrc"))
    (arrival,) = rig.run(2 * POLL)
    assert os.fsencode(arrival.relative) == b"mic_\xff\xfe.mrc"
    assert arrival.path.read_bytes() == data


@pytest.mark.case(20)
def test_only_regular_files_arrive(rig: Rig, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)  # the name of a socket must be short
    os.mkfifo("fifo.mrc")
    (root / "folder.mrc").mkdir()
    write_mrc(root / "folder.mrc" / "inside.mrc")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket.mrc")
        assert rig.names() == ["folder.mrc/inside.mrc"]


@pytest.mark.case(20)
def test_loops_and_dangling_links_do_no_harm(rig: Rig, root: Path) -> None:
    (root / "sub").mkdir()
    write_mrc(root / "sub" / "a.mrc")
    (root / "sub" / "up").symlink_to("..")
    (root / "self.mrc").symlink_to("self.mrc")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    (root / "gone.mrc").symlink_to("nothing.mrc")
    assert rig.names() == ["sub/a.mrc"]
    assert rig.watcher.troubles == []
    write_mrc(root / "nothing.mrc")
    assert rig.names() == ["gone.mrc", "nothing.mrc"]


def test_linked_files_and_folders_outside_are_followed(rig: Rig, root: Path, tmp_path: Path) -> None:
    write_mrc(tmp_path / "elsewhere" / "a.mrc")
    write_mrc(tmp_path / "other.mrc")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "file.mrc").symlink_to(tmp_path / "other.mrc")
    assert rig.names() == ["file.mrc", "linked/a.mrc"]
    write_mrc(tmp_path / "other.mrc", side=16)
    assert rig.names() == ["file.mrc"], "what a link points to changed"


@pytest.mark.parametrize("link", ["a_link", "z_link"])
@pytest.mark.parametrize("early", [True, False], ids=["there from the beginning", "made later"])
def test_a_folder_that_a_link_leads_to_as_well_keeps_its_own_name(root: Path, link: str, early: bool) -> None:
    observer = Events()
    rig = Rig(Source(root, "mics"), events=True, observer_factory=lambda: observer)
    rig.watcher.start()
    write_mrc(root / "m_real" / "a.mrc")
    if early:
        (root / link).symlink_to("m_real")
    assert rig.names() == ["m_real/a.mrc"]
    if not early:
        (root / link).symlink_to("m_real")
        observer.tell(FileCreatedEvent(str(root / link)))
    assert rig.run(2 * RESCAN) == []
    assert rig.watcher.idle()


@pytest.mark.case(20)
@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told_and_taken_when_it_may(rig: Rig, root: Path) -> None:
    write_mrc(root / "a.mrc")
    (root / "a.mrc").chmod(0)
    (arrival,) = rig.run(2 * POLL)
    assert arrival.problem is not None
    assert "Permission denied" in arrival.problem
    (root / "a.mrc").chmod(0o600)
    os.utime(root / "a.mrc")
    assert [found.problem for found in rig.run(2 * POLL)] == [None]


@pytest.mark.case(20)
def test_a_folder_that_may_not_be_read_is_a_trouble_until_it_may(rig: Rig, root: Path) -> None:
    write_mrc(root / "closed" / "a.mrc")
    write_mrc(root / "open" / "b.mrc")

    def refuse(path: str) -> None:
        if path == str(root / "closed"):
            raise PermissionError(errno.EACCES, "Permission denied")

    rig.on_stat = refuse
    assert rig.names() == ["open/b.mrc"]
    (trouble,) = rig.watcher.troubles
    assert "closed" in trouble
    assert "Permission denied" in trouble
    rig.on_stat = lambda path: None
    assert rig.names() == ["closed/a.mrc"]
    assert rig.watcher.troubles == []


# --- events are hints ------------------------------------------------------------------------------------------------


@pytest.fixture
def observer() -> Events:
    return Events()


@pytest.fixture
def hinted(root: Path, observer: Events) -> Rig:
    """A watcher that has done its first scan and hears only what the test tells."""
    made = Rig(Source(root, "mics"), events=True, observer_factory=lambda: observer)
    made.watcher.start()
    assert made.poll() == []
    return made


@pytest.mark.case(27)
def test_without_events_scans_find_everything(rig: Rig, root: Path) -> None:
    rig.watcher.start()
    expected = []
    for number in range(6):
        relative = f"grid_{number % 2}/square_{number}/mic_{number}.mrc"
        write_mrc(root / relative)
        expected.append(relative)
        assert rig.names() == [relative]
    assert sorted(name for _, name in rig.seen) == sorted(expected)


def test_an_event_makes_a_file_known_long_before_the_next_scan(hinted: Rig, observer: Events, root: Path) -> None:
    write_mrc(root / "a.mrc")
    observer.tell(FileCreatedEvent(str(root / "a.mrc")))
    assert [found.relative for found in hinted.run(SETTLE)] == ["a.mrc"]
    assert hinted.watcher.scans_completed == 1


@pytest.mark.case(27)
def test_lost_events_are_made_good_by_the_next_scan(hinted: Rig, root: Path) -> None:
    write_mrc(root / "sub" / "a.mrc")
    assert hinted.run(RESCAN - 1) == []
    assert [found.relative for found in hinted.run(1 + SETTLE)] == ["sub/a.mrc"]


@pytest.mark.case(21)
def test_a_hundred_events_of_one_file_are_one_arrival(hinted: Rig, observer: Events, root: Path) -> None:
    write_mrc(root / "a.mrc")
    for _ in range(100):
        observer.tell(FileModifiedEvent(str(root / "a.mrc")))
        observer.tell(FileMovedEvent(str(root / ".a.mrc.Xx"), str(root / "a.mrc")))
    assert [found.relative for found in hinted.run(3 * RESCAN)] == ["a.mrc"]


def test_events_of_new_and_moved_folders_show_what_is_in_them(hinted: Rig, observer: Events, root: Path) -> None:
    write_mrc(root / "new" / "deep" / "a.mrc")
    observer.tell(DirCreatedEvent(str(root / "new")))
    assert [found.relative for found in hinted.run(SETTLE)] == ["new/deep/a.mrc"]
    (root / "new").rename(root / "moved")
    observer.tell(DirMovedEvent(str(root / "new"), str(root / "moved")))
    assert [found.relative for found in hinted.run(SETTLE)] == ["moved/deep/a.mrc"]
    assert hinted.watcher.scans_completed == 1


def test_a_new_folder_is_shown_to_every_source_that_it_lies_in(tmp_path: Path, root: Path, observer: Events) -> None:
    sources = (Source(tmp_path, "ctf", "*/ctf.star", "ctf"), Source(root, "mics"))
    rig = Rig(*sources, events=True, observer_factory=lambda: observer)
    rig.watcher.start()
    assert observer.watched == {str(tmp_path): True, str(root): True}
    rig.poll()
    write_mrc(root / "new" / "a.mrc")
    observer.tell(DirCreatedEvent(str(root / "new")))
    assert [(found.source.label, found.relative) for found in rig.run(SETTLE)] == [("mics", "new/a.mrc")]


def test_a_changed_folder_is_not_walked_again_for_each_of_its_files(hinted: Rig, observer: Events, root: Path) -> None:
    for number in range(200):
        write_mrc(root / f"mic_{number:03d}.mrc")
    hinted.run(2 * RESCAN)
    before = hinted.stats
    write_mrc(root / "new.mrc")
    for event in (FileCreatedEvent(str(root / "new.mrc")), DirModifiedEvent(str(root))):
        observer.tell(event)
    assert [found.relative for found in hinted.run(SETTLE)] == ["new.mrc"]
    assert hinted.stats - before < 10, "the cost of a file must not grow with the session"


def test_events_of_what_is_gone_excluded_or_elsewhere_are_passed_over(observer: Events, root: Path) -> None:
    output = root / "out"
    write_mrc(output / "particles.mrc")
    rig = Rig(Source(root, "mics"), events=True, observer_factory=lambda: observer, excluded=[output])
    rig.watcher.start()
    rig.poll()
    for path in (root / "gone.mrc", output / "particles.mrc", root.parent / "b.mrc", root / ".hidden" / "a.mrc"):
        observer.tell(FileCreatedEvent(str(path)))
    observer.tell(DirCreatedEvent(str(output)))
    observer.tell(FileCreatedEvent(os.fsencode(root) + b"/\xff.mrc"))
    assert rig.run(2 * RESCAN) == []


@pytest.mark.case(27)
def test_no_watches_left_is_told_and_scanning_goes_on(root: Path) -> None:
    made = NoWatchesLeft()
    rig = Rig(Source(root, "mics"), events=True, observer_factory=lambda: made)
    rig.watcher.start()
    (trouble,) = rig.watcher.troubles
    assert "max_user_watches" in trouble
    assert made.stopped == 1, "what had begun is ended"
    assert rig.poll() == []
    write_mrc(root / "a.mrc")
    assert [found.relative for found in rig.run(POLL + SETTLE)] == ["a.mrc"], "within poll_seconds, not rescan_seconds"


@pytest.mark.case(27)
def test_an_observer_that_dies_is_told_and_scanning_goes_on(hinted: Rig, observer: Events, root: Path) -> None:
    assert hinted.watcher.troubles == []
    observer.alive = False
    write_mrc(root / "a.mrc")
    assert [found.relative for found in hinted.run(SETTLE)] == ["a.mrc"], "a scan at once: its last events may be lost"
    (trouble,) = hinted.watcher.troubles
    assert "scanning instead" in trouble
    write_mrc(root / "b.mrc")
    assert [found.relative for found in hinted.run(POLL + SETTLE)] == ["b.mrc"]
    hinted.watcher.stop()


@pytest.mark.case(27)
def test_one_dead_emitter_of_several_is_told(tmp_path: Path, observer: Events) -> None:
    emitters = [Events(), Events()]
    observer.emitters = emitters  # type: ignore[attr-defined]
    for emitter in emitters:
        emitter.start()
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    sources = (Source(folder, folder.name) for folder in folders)
    rig = Rig(*sources, events=True, observer_factory=lambda: observer)
    rig.watcher.start()
    rig.poll()
    assert rig.watcher.troubles == []
    emitters[1].stop()
    rig.poll()
    assert len(rig.watcher.troubles) == 1


# --- the real observer -----------------------------------------------------------------------------------------------


@pytest.fixture
def live(root: Path) -> Iterator[Rig]:
    """A watcher with watchdog's own observer, after its first scan; the clock stands still, so no other follows."""
    made = Rig(Source(root, "mics"), events=True)
    made.watcher.start()
    assert made.poll() == []
    yield made
    made.watcher.stop()


def heard(rig: Rig, count: int) -> Callable[[], bool]:
    """Whether so many files are settling by now."""

    def look() -> bool:
        rig.poll()
        return rig.watcher.settling >= count

    return look


def test_the_real_observer_finds_new_and_renamed_files(live: Rig, root: Path) -> None:
    write_mrc(root / "a.mrc")
    write_mrc(root / ".b.mrc.Xy12Ab")
    (root / ".b.mrc.Xy12Ab").rename(root / "b.mrc")
    until(heard(live, 2))
    live.now += SETTLE
    assert sorted(found.relative for found in live.poll()) == ["a.mrc", "b.mrc"]
    assert live.watcher.scans_completed == 1
    assert live.watcher.troubles == []


def test_the_real_observer_costs_a_few_looks_for_each_file(live: Rig, root: Path) -> None:
    for number in range(100):
        (root / f"old_{number}.star").write_text("x")
    until(heard(live, 100))
    live.now += SETTLE
    assert len(live.poll()) == 100
    before = live.stats
    for number in range(50):
        (root / f"new_{number}.star").write_text("x")
    until(heard(live, 50))
    live.now += SETTLE
    assert len(live.poll()) == 50
    assert live.stats - before < 50 * 8


@pytest.mark.case(25, 27)
def test_a_watched_folder_that_is_replaced_is_told_and_still_scanned(live: Rig, root: Path) -> None:
    root.rmdir()

    def told() -> bool:
        live.poll()
        return any("observer" in trouble for trouble in live.watcher.troubles)

    until(told)
    root.mkdir()
    write_mrc(root / "a.mrc")
    assert live.names() == ["a.mrc"]


@pytest.mark.case(27)
def test_the_real_observer_leaves_nothing_behind_where_it_cannot_start(tmp_path: Path, root: Path) -> None:
    before = threading.active_count()
    rig = Rig(Source(root, "mics"), Source(tmp_path / "nothing", "none"), events=True)
    rig.watcher.start()
    assert any("no file system events" in trouble for trouble in rig.watcher.troubles)
    until(lambda: threading.active_count() == before)
    write_mrc(root / "a.mrc")
    assert rig.names() == ["a.mrc"]
    rig.watcher.stop()


# --- network file systems --------------------------------------------------------------------------------------------

MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
33 21 0:40 / {folder}/data rw,relatime shared:2 - nfs4 server:/export rw,vers=4.2
34 33 0:41 / {folder}/data/local\\040disk rw shared:3 - xfs /dev/sdb1 rw
35 21 0:42 / {folder}/cloud rw shared:4 - fuse.sshfs host:/x rw
36 21 0:43 / {folder}/gpfs rw - gpfs gpfs0 rw
"""


@pytest.fixture
def mounts(tmp_path: Path) -> str:
    path = tmp_path / "mountinfo"
    path.write_text(MOUNTS.format(folder=tmp_path))
    return str(path)


def test_the_file_system_of_a_path_is_that_of_the_innermost_mount(tmp_path: Path, mounts: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")
    found = {
        name: file_system_of(tmp_path / name, mounts)
        for name in ("data", "data/a/b", "data/local disk/a", "database", "cloud/x", "gpfs", "link/x")
    }
    assert found == {
        "data": "nfs4",
        "data/a/b": "nfs4",
        "data/local disk/a": "xfs",
        "database": "ext4",
        "cloud/x": "fuse.sshfs",
        "gpfs": "gpfs",
        "link/x": "nfs4",
    }
    assert [name for name, kind in found.items() if is_remote(kind)] == [
        "data",
        "data/a/b",
        "cloud/x",
        "gpfs",
        "link/x",
    ]
    assert file_system_of(tmp_path, str(tmp_path / "none")) == ""


@pytest.mark.case(27)
def test_network_folders_are_scanned_often_and_told(
    tmp_path: Path, mounts: str, observer: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "file_system_of", partial(file_system_of, mounts=mounts))
    for name in ("data", "here"):
        (tmp_path / name).mkdir()
    sources = (Source(tmp_path / "data", "data"), Source(tmp_path / "here", "here"))
    rig = Rig(*sources, events=True, observer_factory=lambda: observer)
    rig.watcher.start()
    assert list(observer.watched) == [str(tmp_path / "here")]
    (trouble,) = rig.watcher.troubles
    assert "nfs4" in trouble
    rig.poll()
    write_mrc(tmp_path / "data" / "a.mrc")
    assert [found.relative for found in rig.run(POLL + SETTLE)] == ["a.mrc"]


# --- sources ---------------------------------------------------------------------------------------------------------


def test_patterns_take_their_files_first_and_only_at_their_depth(tmp_path: Path, root: Path) -> None:
    for relative in (
        "micrographs_ctf.star",
        "other.star",
        "sub/micrographs_ctf.star",
        "Micrographs/mic_1.mrc",
        "Micrographs/masks/mic_1.mrc",
        "Micrographs/masks/deep/mic_1.mrc",
        "Micrographs/masks/mic_1.star",
    ):
        write_mrc(tmp_path / relative)
    rig = Rig(
        Source(tmp_path, "ctf", "micrographs_ctf.star", "ctf"),
        Source(root, "mask", "masks/*.mrc", "mask"),
        Source(root, "mics"),
    )
    found = {(arrival.source.label, arrival.source.kind, arrival.relative) for arrival in rig.run(2 * POLL)}
    assert found == {
        ("ctf", "ctf", "micrographs_ctf.star"),
        ("mask", "mask", "masks/mic_1.mrc"),
        ("mics", None, "mic_1.mrc"),
        ("mics", None, "masks/deep/mic_1.mrc"),
        ("mics", None, "masks/mic_1.star"),
    }


def test_events_choose_the_source_as_scans_do(tmp_path: Path, root: Path, observer: Events) -> None:
    rig = Rig(
        Source(tmp_path, "ctf", "*.star", "ctf"),
        Source(root, "mask", "masks/*.mrc", "mask"),
        Source(root, "mics"),
        events=True,
        observer_factory=lambda: observer,
    )
    rig.watcher.start()
    assert observer.watched == {str(tmp_path): False, str(root): True}
    rig.poll()
    for path in (tmp_path / "a.star", root / "masks" / "a.mrc", root / "masks" / "b.star", tmp_path / "sub" / "c.star"):
        write_mrc(path)
        observer.tell(FileCreatedEvent(str(path)))
    found = {(arrival.source.label, arrival.relative) for arrival in rig.run(SETTLE)}
    assert found == {("ctf", "a.star"), ("mask", "masks/a.mrc"), ("mics", "masks/b.star")}
    assert rig.run(2 * RESCAN) == []


def test_nested_watched_folders_yield_each_file_once(tmp_path: Path) -> None:
    write_mrc(tmp_path / "a" / "inner" / "x.mrc")
    rig = Rig(Source(tmp_path / "a", "outer"), Source(tmp_path / "a" / "inner", "inner"))
    assert [found.source.label for found in rig.run(2 * POLL)] == ["outer"]


def test_the_output_folder_is_never_entered_by_any_way(root: Path) -> None:
    output = root / "streamprep_out"
    write_mrc(output / "particles" / "a.mrc")
    write_mrc(root / "streamprep_out_of_order.mrc")
    (root / "way_in").symlink_to(output)
    (root / "further_in").symlink_to(output / "particles")
    (root / "file.mrc").symlink_to(output / "particles" / "a.mrc")
    (root / "loop").symlink_to(root.parent)
    rig = Rig(Source(root, "mics"), excluded=[output])
    entered = []
    rig.on_stat = lambda path: entered.append(path) if path.endswith("particles/a.mrc") else None
    assert rig.names() == ["streamprep_out_of_order.mrc"]
    assert entered == []


# --- a folder that changes while it is scanned -----------------------------------------------------------------------


@pytest.mark.case(25)
def test_files_and_folders_that_vanish_in_a_scan_are_no_trouble(rig: Rig, root: Path) -> None:
    for name in ("a/1.mrc", "b/2.mrc", "c/3.mrc"):
        write_mrc(root / name)

    def vanish(path: str) -> None:
        if path == str(root / "c"):  # the last folder listed is the first one entered
            (root / "c" / "3.mrc").unlink()
        elif path == str(root / "b"):
            shutil.rmtree(root / "b")

    rig.on_stat = vanish
    assert rig.names() == ["a/1.mrc"]
    assert rig.watcher.troubles == []
    assert rig.watcher.settling == 0


@pytest.mark.case(25)
def test_a_file_that_vanishes_while_it_settles_is_forgotten(rig: Rig, root: Path) -> None:
    write_mrc(root / "a.mrc")
    assert rig.poll() == []
    assert rig.watcher.settling == 1
    (root / "a.mrc").unlink()
    rig.now += SETTLE
    assert rig.poll() == []
    assert rig.watcher.settling == 0


@pytest.mark.case(25)
def test_a_file_that_is_replaced_by_a_folder_while_it_settles_is_forgotten(rig: Rig, root: Path) -> None:
    write_mrc(root / "a.mrc")
    rig.poll()
    (root / "a.mrc").unlink()
    (root / "a.mrc").mkdir()
    assert rig.run(2 * INCOMPLETE, step=POLL) == []
    assert rig.watcher.settling == 0


@pytest.mark.case(25)
def test_folders_renamed_in_a_scan_are_found_under_their_last_name(rig: Rig, root: Path) -> None:
    names = [f"{folder}/{number}.mrc" for folder in "abc" for number in range(4)]
    for name in names:
        write_mrc(root / name)
    for _ in range(3):
        rig.poll(most=1)
    (root / "c").rename(root / "moved")  # in the midst of it
    (root / "a").rename(root / "moved" / "a")  # not yet reached
    found = rig.names(3 * POLL)
    assert found == sorted(f"moved/{name}" if name[0] == "a" else name.replace("c/", "moved/") for name in names)


@pytest.mark.case(25)
def test_a_watched_folder_that_comes_and_goes(rig: Rig, root: Path) -> None:
    write_mrc(root / "a.mrc")
    assert rig.names() == ["a.mrc"]
    away = root.with_name("away")
    root.rename(away)  # as a file system that is unmounted
    assert rig.run(3 * POLL) == []
    (trouble,) = rig.watcher.troubles
    assert str(root) in trouble
    write_mrc(away / "b.mrc")
    away.rename(root)
    assert rig.names() == ["b.mrc"]
    assert rig.watcher.troubles == []


# --- what was seen before --------------------------------------------------------------------------------------------


@pytest.mark.case(21, 22)
def test_known_files_are_yielded_again_only_when_they_changed(rig: Rig, root: Path) -> None:
    write_mrc(root / "a.mrc", value=1)
    write_mrc(root / "b.mrc", value=1)
    assert rig.names() == ["a.mrc", "b.mrc"]
    (root / "a.mrc").chmod(0o600)  # changes the change time and nothing else
    os.link(root / "b.mrc", root.parent / "second name")
    assert rig.names() == []
    write_mrc(root / "a.mrc", value=2)
    os.utime(root / "a.mrc", ns=(1, 1))
    assert rig.names() == ["a.mrc"], "rewritten in place"
    shutil.copy2(root / "b.mrc", root / "c.tmp")
    (root / "c.tmp").rename(root / "b.mrc")
    assert rig.names() == ["b.mrc"], "replaced by another file of the same size and time"


def test_a_restarted_watcher_yields_only_what_is_new(rig: Rig, root: Path) -> None:
    write_mrc(root / "a.mrc")
    assert rig.names() == ["a.mrc"]
    write_mrc(root / "b.mrc")
    again = Rig(Source(root, "mics"))
    again.seen = rig.seen
    assert again.names() == ["b.mrc"]


# --- bounded work ----------------------------------------------------------------------------------------------------


def test_a_poll_does_a_bounded_piece_of_work(root: Path) -> None:
    observer = Events()
    rig = Rig(Source(root, "mics"), events=True, observer_factory=lambda: observer)
    rig.watcher.start()
    for number in range(300):
        (root / f"sub_{number % 3}").mkdir(exist_ok=True)
        (root / f"sub_{number % 3}" / f"mic_{number:03d}.star").write_text("x")
    for folder in range(3):
        for _ in range(20):
            observer.tell(DirCreatedEvent(str(root / f"sub_{folder}")))
    arrivals: list[str] = []
    most, polls = 10, 0
    while len(arrivals) < 300:
        before = rig.stats
        found = rig.poll(most=most)
        assert len(found) <= most
        assert rig.stats - before <= 3 * most + 10
        arrivals += [arrival.relative for arrival in found]
        rig.now += 0.01
        polls += 1
        assert polls < 5000
    assert len(set(arrivals)) == 300
    while not rig.watcher.idle():
        assert rig.poll(most=most) == []
        rig.now += 0.01


def test_a_folder_of_very_many_files_is_listed_and_asked_for_in_parts(
    rig: Rig, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "LISTED_AT_ONCE", 7)
    monkeypatch.setattr(watcher, "ASKED_AT_ONCE", 5)
    names = [f"mic_{number:03d}.star" for number in range(60)] + [f"sub_{number}/mic.star" for number in range(6)]
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x")
    assert rig.names() == sorted(names)
    (root / names[31]).write_text("changed")
    (root / names[59]).unlink()
    before, scans = rig.questions, rig.watcher.scans_completed
    assert rig.names(POLL + SETTLE) == [names[31]]
    asked = (rig.questions - before) / (rig.watcher.scans_completed - scans)
    assert asked <= len(names) / 5 + 2, "not once for each file"


@pytest.mark.parametrize(("events", "share"), [(True, watcher.SCAN_SHARE), (False, watcher.SCAN_SHARE_WITHOUT_EVENTS)])
def test_scans_that_take_long_are_further_apart(root: Path, observer: Events, events: bool, share: float) -> None:
    rig = Rig(Source(root, "mics"), events=events, observer_factory=lambda: observer)
    rig.watcher.start()
    for number in range(100):
        (root / f"mic_{number}.star").write_text("x")
    rig.run(2 * RESCAN)  # all are known

    def slow(path: str) -> None:
        rig.now += 0.2

    rig.on_stat = slow
    rig.watcher.rescan()
    started, scans = rig.now, rig.watcher.scans_completed
    taken = 0.0
    while rig.watcher.scans_completed < scans + 5:
        before = rig.now
        assert rig.poll(most=30) == []
        taken += rig.now - before
        rig.now += 1.0
    assert taken >= 100
    assert share / 2 <= taken / (rig.now - started) <= 1.3 * share

    def stuck(path: str) -> None:
        rig.now += 1000.0

    rig.on_stat = stuck
    rig.watcher.rescan()
    scans = rig.watcher.scans_completed
    while rig.watcher.scans_completed == scans:
        rig.poll(most=1000)
    rig.on_stat = lambda path: None
    (root / "late.star").write_text("x")  # and nobody tells of it
    rig.now += watcher.LONGEST_PAUSE * (RESCAN if events else POLL) + 1
    assert rig.names(2 * SETTLE) == ["late.star"]


def test_files_that_stay_incomplete_do_not_keep_others_waiting(rig: Rig, root: Path) -> None:
    data = write_mrc(root / "source.bin")
    (root / "source.bin").unlink()
    for number in range(30):
        (root / f"half_{number:02d}.mrc").write_bytes(data[:-10])
    assert rig.run(2 * SETTLE) == []
    (root / "whole.mrc").write_bytes(data)
    arrivals: list[str] = []
    for _ in range(20):
        rig.now += SETTLE
        arrivals += [found.relative for found in rig.poll(most=10)]
    assert arrivals == ["whole.mrc"]


def test_idle_means_that_nothing_is_left_to_look_at(hinted: Rig, observer: Events, root: Path) -> None:
    fresh = Rig(Source(root, "mics"))
    assert not fresh.watcher.idle(), "not before the first scan"
    assert hinted.watcher.idle()

    data = write_mrc(root / "a.mrc")
    observer.tell(FileCreatedEvent(str(root / "a.mrc")))
    assert not hinted.watcher.idle(), "an event is waiting"
    hinted.poll()
    assert not hinted.watcher.idle(), "a file is settling"
    hinted.now += SETTLE
    assert len(hinted.poll()) == 1
    assert hinted.watcher.idle()

    hinted.watcher.rescan()
    assert not hinted.watcher.idle(), "a scan was asked for"
    hinted.poll()
    assert hinted.watcher.idle()

    (root / "half.mrc").write_bytes(data[:-10])
    observer.tell(FileCreatedEvent(str(root / "half.mrc")))
    hinted.run(2 * SETTLE)
    assert hinted.watcher.settling == 1
    assert hinted.watcher.idle(), "only an incomplete file is left"


def test_a_rescan_that_is_asked_for_during_a_scan_is_not_forgotten(rig: Rig, root: Path) -> None:
    write_mrc(root / "a.mrc")
    write_mrc(root / "b.mrc")
    rig.poll(most=1)
    rig.watcher.rescan()
    for _ in range(6):
        rig.poll(most=1)
    assert rig.watcher.scans_completed == 2


def test_stopping_twice_and_without_a_start_is_allowed(rig: Rig, live: Rig) -> None:
    rig.watcher.stop()
    live.watcher.stop()
    live.watcher.stop()
    with pytest.raises(queue.Empty):
        live.watcher._hints.get_nowait()
