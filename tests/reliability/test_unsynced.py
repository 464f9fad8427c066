"""What a power loss leaves of files, by the rules of POSIX alone."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamprep.sinks import _files
from tests.reliability.unsynced import MODES, SECTOR, PowerLossError, UnsyncedFolder, Writeback

NOTHING, EVERYTHING = Writeback("nothing"), Writeback("everything")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[UnsyncedFolder]:
    (tmp_path / "disk").mkdir()
    made = UnsyncedFolder(tmp_path / "disk")
    patch = pytest.MonkeyPatch()
    made.switch_on(patch)
    yield made
    patch.undo()


def lose(disk: UnsyncedFolder, how: Writeback = NOTHING) -> dict[str, bytes]:
    """All files that are there after a power loss."""
    disk.lose_power(how)
    disk.come_back()
    return {
        path.relative_to(disk.root).as_posix(): path.read_bytes() for path in disk.root.rglob("*") if path.is_file()
    }


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def put(path: Path, data: bytes) -> None:
    """A file that is durable, and its name, too."""
    path.write_bytes(data)
    sync(path)
    sync(path.parent)


def test_what_is_synced_stays_and_what_is_not_may_go(disk: UnsyncedFolder) -> None:
    put(disk.root / "a", b"old")
    (disk.root / "a").write_bytes(b"newer")
    (disk.root / "b").write_bytes(b"new")
    assert (disk.root / "a").read_bytes() == b"newer", "until then readers see it"
    assert lose(disk) == {"a": b"old"}


def test_all_of_it_may_have_reached_the_disk(disk: UnsyncedFolder) -> None:
    put(disk.root / "a", b"old")
    (disk.root / "a").write_bytes(b"newer")
    (disk.root / "b").write_bytes(b"new")
    assert lose(disk, EVERYTHING) == {"a": b"newer", "b": b"new"}


def test_fdatasync_keeps_the_bytes_but_not_the_name(disk: UnsyncedFolder) -> None:
    put(disk.root / "a", b"old")
    for name in "ab":
        descriptor = os.open(disk.root / name, os.O_WRONLY | os.O_CREAT)
        os.pwrite(descriptor, b" and more", 3)
        os.fdatasync(descriptor)
        os.close(descriptor)
    assert lose(disk) == {"a": b"old and more"}


@pytest.mark.parametrize("folder_synced", [False, True])
def test_a_new_name_needs_an_fsync_of_its_folder(disk: UnsyncedFolder, folder_synced: bool) -> None:
    put(disk.root / "a", b"data")
    (disk.root / "a").rename(disk.root / "b")
    if folder_synced:
        sync(disk.root)
    assert lose(disk) == ({"b": b"data"} if folder_synced else {"a": b"data"})


def test_a_renamed_file_may_be_found_twice_or_not_at_all(disk: UnsyncedFolder) -> None:
    found = set()
    for seed in range(30):
        put(disk.root / "a", b"data")
        (disk.root / "a").rename(disk.root / "b")
        left = lose(disk, Writeback("some", seed))
        assert set(left.values()) <= {b"data"}
        found.add(tuple(sorted(left)))
        for name in left:
            (disk.root / name).unlink()
        sync(disk.root)
    assert found == {(), ("a",), ("b",), ("a", "b")}


def test_a_name_that_is_replaced_stands_for_the_old_file_or_the_new_one(disk: UnsyncedFolder) -> None:
    found = set()
    for seed in range(30):
        put(disk.root / "table", b"old")
        (disk.root / "new").write_bytes(b"newer")
        sync(disk.root / "new")
        (disk.root / "new").replace(disk.root / "table")
        found.add(lose(disk, Writeback("some", seed))["table"])
    assert found == {b"old", b"newer"}


def test_a_rename_before_the_data_leaves_an_empty_file(disk: UnsyncedFolder) -> None:
    put(disk.root / "table", b"old")
    (disk.root / "new").write_bytes(b"newer")
    (disk.root / "new").replace(disk.root / "table")
    assert lose(disk, Writeback("names")) == {"table": b""}


def test_files_in_a_folder_whose_name_is_lost_are_lost(disk: UnsyncedFolder) -> None:
    (disk.root / "folder").mkdir()
    put(disk.root / "folder" / "a", b"data")
    assert lose(disk) == {}
    (disk.root / "folder").mkdir()
    sync(disk.root)
    put(disk.root / "folder" / "a", b"data")
    assert lose(disk) == {"folder/a": b"data"}


def test_what_was_deleted_may_come_back(disk: UnsyncedFolder) -> None:
    put(disk.root / "a", b"data")
    (disk.root / "a").unlink()
    assert lose(disk) == {"a": b"data"}
    (disk.root / "a").unlink()
    sync(disk.root)
    assert lose(disk) == {}


def test_writes_are_torn_at_sectors(disk: UnsyncedFolder) -> None:
    old, new = b"o" * 4 * SECTOR, b"n" * 4 * SECTOR
    found = set()
    for seed in range(40):
        put(disk.root / "a", old)
        with (disk.root / "a").open("r+b") as file:
            file.write(new)
        data = lose(disk, Writeback("some", seed))["a"]
        assert len(data) == len(old)
        sectors = [data[start : start + SECTOR] for start in range(0, len(data), SECTOR)]
        assert set(sectors) <= {old[:SECTOR], new[:SECTOR]}
        found.add(data)
    assert len(found) > 5


def test_a_longer_file_may_hold_zeros(disk: UnsyncedFolder) -> None:
    put(disk.root / "a", b"old")
    with (disk.root / "a").open("ab") as file:
        file.write(b" and more")
    assert lose(disk, Writeback("lengths")) == {"a": b"old" + bytes(9)}


def test_the_kernel_writes_back_when_it_likes(disk: UnsyncedFolder) -> None:
    put(disk.root / "a", b"old")
    (disk.root / "a").write_bytes(b"newer")
    (disk.root / "b").write_bytes(b"data")
    disk.write_back(Writeback("bytes"))
    assert lose(disk) == {"a": b"newer"}
    (disk.root / "b").write_bytes(b"data")
    disk.write_back(EVERYTHING)
    (disk.root / "b").unlink()
    assert lose(disk) == {"a": b"newer", "b": b"data"}


def test_power_is_lost_before_or_after_any_change(disk: UnsyncedFolder) -> None:
    found = []
    for steps in range(20):
        put(disk.root / "a", b"old")
        disk.steps_left, disk.writeback = steps, EVERYTHING
        with contextlib.suppress(PowerLossError):
            (disk.root / "b").write_bytes(b"new")
            (disk.root / "b").replace(disk.root / "a")
        if disk.off:
            disk.come_back()
        disk.steps_left = None
        found.append({path.name: path.read_bytes() for path in disk.root.iterdir()})
        for path in disk.root.iterdir():
            path.unlink()
    different = [one for index, one in enumerate(found) if one not in found[:index]]
    assert different == [{"a": b"old"}, {"a": b"old", "b": b""}, {"a": b"old", "b": b"new"}, {"a": b"new"}]


def test_a_full_disk_takes_what_it_has_room_for(disk: UnsyncedFolder) -> None:
    put(disk.root / "a", b"")
    disk.room_bytes = 5
    descriptor = os.open(disk.root / "a", os.O_WRONLY)
    assert os.pwrite(descriptor, b"12345678", 0) == 5, "a short write"
    with pytest.raises(OSError, match="No space left") as raised:
        os.pwrite(descriptor, b"678", 5)
    os.close(descriptor)
    assert raised.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        (disk.root / "b").write_bytes(b"")
    with pytest.raises(OSError, match="No space left"):
        (disk.root / "folder").mkdir()
    assert (disk.root / "a").read_bytes() == b"12345"
    disk.room_bytes = None
    (disk.root / "b").write_bytes(b"data")
    assert (disk.root / "b").read_bytes() == b"data"


def test_what_a_failed_fsync_was_to_write_is_not_written_by_the_next_one(disk: UnsyncedFolder) -> None:
    put(disk.root / "a", b"old")
    (disk.root / "a").write_bytes(b"new")
    disk.syncs_left = 0
    with pytest.raises(OSError, match="Input/output error"):
        sync(disk.root / "a")
    sync(disk.root / "a")
    assert (disk.root / "a").read_bytes() == b"new", "readers are told so"
    assert lose(disk) == {"a": b"old"}
    for again in (b"new", b"longer"):
        put(disk.root / "a", b"old")
        disk.syncs_left = 0
        (disk.root / "a").write_bytes(b"new")
        with pytest.raises(OSError, match="Input/output error"):
            sync(disk.root / "a")
        (disk.root / "a").write_bytes(again)
        sync(disk.root / "a")
        assert lose(disk) == {"a": again}, "what is written anew is"


def test_a_name_that_a_failed_fsync_was_to_keep_must_be_given_anew(disk: UnsyncedFolder) -> None:
    for name in "ab":
        put(disk.root / name, name.encode())
    for name in "ab":
        (disk.root / name).rename(disk.root / name.upper())
    disk.syncs_left = 0
    with pytest.raises(OSError, match="Input/output error"):
        sync(disk.root)
    (disk.root / "B").rename(disk.root / "b")
    (disk.root / "b").rename(disk.root / "B")
    sync(disk.root)
    assert lose(disk) == {"a": b"a", "B": b"b"}


def test_a_row_log_whose_name_could_not_be_made_durable_is_named_anew(disk: UnsyncedFolder) -> None:
    disk.syncs_left = 1  # that of the bytes works, that of the folder fails
    with pytest.raises(OSError, match="Input/output error"):
        _files.append(disk.root / "log", 0, b"row")
    _files.append(disk.root / "log", 0, b"row")
    assert lose(disk) == {"log": b"row"}


@pytest.mark.parametrize("mode", MODES)
def test_what_is_durable_is_never_touched(disk: UnsyncedFolder, mode: str) -> None:
    for folder in ("x", "x/y"):
        (disk.root / folder).mkdir()
    sync(disk.root)
    sync(disk.root / "x")
    put(disk.root / "x/y/a", b"data" * 1000)
    assert lose(disk, Writeback(mode, 1)) == {"x/y/a": b"data" * 1000}


def test_the_trusted_files_are_taken_as_they_are(disk: UnsyncedFolder) -> None:
    (disk.root / "ledger.sqlite").write_bytes(b"SQLite format 3")
    assert lose(disk) == {"ledger.sqlite": b"SQLite format 3"}
