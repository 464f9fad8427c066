"""Files that are rewritten, copied, unmounted or reported by no event while a session runs: cases 4 and 20 to 27."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from streamprep import hookimpl, workers
from streamprep.plugin_manager import Plugins, load_plugins
from streamprep.watcher import Source
from tests.conftest import Session
from tests.outputs import check_invariants, images_of, read_table, rows_of
from tests.reliability.conftest import Mount, unmount
from tests.test_changes import once
from tests.test_watcher import Rig, write_mrc

Wait = Callable[[Callable[[], bool], float], None]


def in_the_set(session: Session) -> list[tuple[str, str]]:
    """Micrographs in the particle set, each with every stack that it has there."""
    rows = read_table(session.output / "particles.star")[1]
    stacks = {
        (name, image.partition("@")[2])
        for name, image in zip(rows["rlnMicrographName"], rows["rlnImageName"], strict=True)
    }
    return sorted(name for name, _ in stacks)


def pixels_of(session: Session) -> dict[str, np.ndarray[Any, Any]]:
    """All images, by micrograph and place."""
    rows = read_table(session.output / "particles.star")[1]
    images = images_of(session.output, "particles.star")
    names = zip(rows["rlnMicrographName"], rows["rlnCoordinateX"], rows["rlnCoordinateY"], strict=True)
    return {
        f"{Path(name).name} {x} {y}": images[image]
        for (name, x, y), image in zip(names, rows["rlnImageName"], strict=True)
    }


def same_pixels(one: Session, other: Session) -> None:
    ours, theirs = pixels_of(one), pixels_of(other)
    assert ours.keys() == theirs.keys()
    for name, image in theirs.items():
        np.testing.assert_array_equal(ours[name], image, err_msg=name)


def turn_over(path: Path) -> None:
    """Rewrite a micrograph in place: the same size and inode, other pixels."""
    inode = path.stat().st_ino
    with mrcfile.open(path, "r+") as file:
        file.set_data(file.data[::-1].copy())
    os.utime(path)
    assert path.stat().st_ino == inode


def ended_well(session: Session, done: int = 3, waiting: int = 0) -> None:
    told = once(session, "session.settle_seconds=0", "session.poll_seconds=0.1")
    assert told.returncode == 0, told.stdout + told.stderr
    assert f"{done} micrographs done, {waiting} waiting, 0 failed, 0 rejected" in told.stdout
    check_invariants(session.output)


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.case(4)
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_drains_and_a_second_one_ends_at_once(
    fresh: Session, number: signal.Signals, eventually: Wait, stopped: list[subprocess.Popen[str]]
) -> None:
    for count in (2, 1):
        process = fresh.start("--set", "session.settle_seconds=0.1")
        stopped.append(process)
        eventually((fresh.output / ".streamprep" / "status.json").exists, 60)
        for _ in range(count):
            process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode in ((0,) if count == 1 else (0, 128 + number)), said
        (fresh.output / ".streamprep" / "status.json").unlink(missing_ok=True)
    ended_well(fresh)


# --- one file, several times -----------------------------------------------------------------------------------------


@pytest.mark.case(21)
def test_touches_copies_and_links_double_nothing(fresh: Session, reference: Session) -> None:
    ended_well(fresh)
    folder = fresh.folder / "Micrographs"
    os.utime(folder / "mic_0001.mrc")
    shutil.copy(folder / "mic_0002.mrc", folder / ".copy.part")
    (folder / ".copy.part").rename(folder / "mic_0002.mrc")  # an identical copy takes its place
    shutil.copy2(folder / "mic_0003.mrc", folder / "copy_of_mic_0003.mrc")
    os.link(folder / "mic_0003.mrc", folder / "second_name.mrc")
    ended_well(fresh, waiting=2)
    assert len(in_the_set(fresh)) == 3, "the copy and the second name wait for coordinates of their own"
    same_pixels(fresh, reference)


@pytest.mark.case(22)
def test_a_micrograph_rewritten_after_it_was_processed_is_in_the_set_once_as_it_is_now(
    fresh: Session, tmp_path: Path
) -> None:
    ended_well(fresh)
    turn_over(fresh.folder / "Micrographs" / "mic_0002.mrc")
    ended_well(fresh)
    same_pixels(fresh, anew(fresh, tmp_path / "anew"))


def anew(session: Session, folder: Path) -> Session:
    """What a session makes that finds everything as it is now."""
    made = Session(folder)
    shutil.copytree(session.folder, folder, ignore=shutil.ignore_patterns("streamprep_out"))
    ended_well(made)
    return made


@pytest.mark.case(23)
def test_a_micrograph_rewritten_while_it_is_read_is_processed_as_it_is_then(
    fresh: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fresh.folder / "Micrographs" / "mic_0002.mrc"
    rewritten: list[Path] = []

    class Writer:
        @hookimpl(wrapper=True)
        def read_item(self, item: Any) -> Any:
            read = yield
            if item.path == path and not rewritten:
                rewritten.append(path)
                turn_over(path)
            return read

    def with_a_writer(**options: Any) -> Plugins:
        plugins = load_plugins(environ={})
        plugins.manager.register(Writer())
        return plugins

    monkeypatch.setattr(workers, "load_plugins", with_a_writer)
    told = once(fresh, "session.settle_seconds=0", "session.poll_seconds=0.1")
    assert rewritten
    assert told.stdout.count("done     Micrographs/mic_0002") == 1, "nothing was made of what it had been"
    assert len(in_the_set(fresh)) == 3
    check_invariants(fresh.output)
    monkeypatch.undo()
    same_pixels(fresh, anew(fresh, tmp_path / "anew"))


@pytest.mark.case(24)
@pytest.mark.parametrize("name", ["other.mrc", "below/mic_0003.mrc"])
def test_an_inode_number_that_is_used_again_is_another_file(fresh: Session, tmp_path: Path, name: str) -> None:
    """A file of the same size takes the inode of one that was removed, under another name, or the same elsewhere."""
    ended_well(fresh)
    folder = fresh.folder / "Micrographs"
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "mic_0003.mrc").rename(folder / name)  # as a file system does that gives the number to the next file
    turn_over(folder / name)
    if name == "other.mrc":
        ctf = fresh.folder / "micrographs_ctf.star"
        row = next(line for line in ctf.read_text().splitlines() if "mic_0003" in line)
        ctf.write_text(ctf.read_text().replace(row, f"{row}\n{row.replace('mic_0003', 'other')}"))
        picks = fresh.folder / "Coordinates" / "mic_0003_autopick.star"
        shutil.copy(picks, picks.with_name("other_autopick.star"))
        before = {name: image for name, image in pixels_of(fresh).items() if name.startswith("mic_0003")}
        ended_well(fresh, 4)
        assert before
        for name, image in before.items():
            np.testing.assert_array_equal(pixels_of(fresh)[name], image, err_msg="rows of the removed one stay")
    else:
        once(fresh, "session.settle_seconds=0", "session.poll_seconds=0.1")
        check_invariants(fresh.output)
    now = pixels_of(anew(fresh, tmp_path / "anew"))
    ours = pixels_of(fresh)
    for name, image in now.items():
        np.testing.assert_array_equal(ours[name], image, err_msg=name)


# --- file systems that come and go ---------------------------------------------------------------------------------


@pytest.mark.case(25, where="root")
def test_a_folder_that_is_unmounted_in_a_scan_is_found_again(tmp_path: Path, mount: Mount) -> None:
    root, kept = tmp_path / "Micrographs", tmp_path / "kept"
    root.mkdir()
    disk = mount(root / "grid", "size=4m")
    for number in range(4):
        write_mrc(disk / f"{number}.mrc")
    write_mrc(root / "beside.mrc")
    kept.mkdir()
    subprocess.run(["mount", "--bind", disk, kept], check=True)
    try:
        rig = Rig(Source(root, "mics"))

        def pull(path: str) -> None:
            if path.endswith("grid/1.mrc"):
                rig.on_stat = lambda _: None
                unmount(disk)

        rig.on_stat = pull
        assert rig.names() == ["beside.mrc"]
        assert rig.watcher.settling == 0
        subprocess.run(["mount", "--bind", kept, disk], check=True)
        assert rig.names() == [f"grid/{number}.mrc" for number in range(4)]
    finally:
        unmount(disk)
        unmount(kept)


@pytest.mark.case(25, where="root")
def test_a_watched_folder_that_was_unmounted_has_nothing_new_when_it_is_back(
    fresh: Session, reference: Session, tmp_path: Path, mount: Mount
) -> None:
    folder, real = fresh.folder / "Micrographs", tmp_path / "real"
    folder.rename(real)
    mount(folder, "size=4m")
    shutil.copytree(real, folder, dirs_exist_ok=True)
    kept = tmp_path / "kept"
    kept.mkdir()
    subprocess.run(["mount", "--bind", folder, kept], check=True)
    try:
        ended_well(fresh)
        unmount(folder)
        ended_well(fresh)
        subprocess.run(["mount", "--bind", kept, folder], check=True)
        told = once(fresh, "session.settle_seconds=0")
        assert "done     " not in told.stdout, "nothing is done twice"
        ended_well(fresh)
        same_pixels(fresh, reference)
    finally:
        unmount(folder)
        unmount(kept)


@pytest.mark.case(20, where="root")
def test_a_session_reads_a_folder_that_nobody_may_write(fresh: Session, reference: Session, mount: Mount) -> None:
    folder = fresh.folder / "Micrographs"
    away = folder.rename(fresh.folder / "away")
    mount(folder, "size=4m")
    shutil.copytree(away, folder, dirs_exist_ok=True)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    ended_well(fresh)
    same_pixels(fresh, reference)


# --- events that do not come -----------------------------------------------------------------------------------------


@pytest.mark.case(27)
def test_what_came_while_the_queue_of_events_overflowed_is_found_by_the_next_scan(
    fresh: Session, eventually: Wait, stopped: list[subprocess.Popen[str]]
) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if most > 100_000:
        pytest.skip(f"the kernel keeps {most} events")
    folder = fresh.folder / "Micrographs"
    late = (folder / "mic_0003.mrc").rename(fresh.folder / "late.mrc")
    process = fresh.start("--set", "session.settle_seconds=0.1", "--set", "session.rescan_seconds=2")
    stopped.append(process)
    eventually(lambda: (fresh.output / "particles.star").exists() and len(in_the_set(fresh)) == 2, 60)
    process.send_signal(signal.SIGSTOP)
    noisy = [folder / "one.txt", folder / "two.txt"]
    for number in range(most):  # equal events in a row would be one
        noisy[number % 2].touch()
    late.rename(folder / "mic_0003.mrc")
    process.send_signal(signal.SIGCONT)
    eventually(lambda: len(in_the_set(fresh)) == 3, 60)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    check_invariants(fresh.output)


@pytest.mark.case(27)
def test_a_session_without_any_inotify_watches_says_so_and_misses_nothing(fresh: Session, reference: Session) -> None:
    """In a user namespace of its own, so that nobody else is short of watches."""
    limited = ["unshare", "--user", "--map-root-user", "sh", "-c",
               'echo 0 > /proc/sys/user/max_inotify_watches && exec "$@"', "sh"]  # fmt: skip
    if shutil.which("unshare") is None or subprocess.run([*limited, "true"], capture_output=True).returncode:
        pytest.skip("no user namespace with limits of its own can be made here")
    done = subprocess.run(
        [*limited, *fresh.command("once", "--plain", "--set", "session.settle_seconds=0.1")],
        cwd=fresh.folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scanning instead" in done.stdout
    degraded = json.loads((fresh.output / ".streamprep" / "status.json").read_text())["degraded"]
    assert any("max_user_watches" in said for said in degraded), "the state is degraded, and status says so"
    assert rows_of(fresh.output / "particles.star") == rows_of(reference.output / "particles.star")
    check_invariants(fresh.output)
