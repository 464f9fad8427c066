"""Durable files: what is written is all there or not at all, nothing is replaced, and the order of syncs is right."""

from __future__ import annotations

import errno
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep.model import OutputError
from streamprep.sinks import _files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def visible(folder: Path) -> list[str]:
    return [name for name in names(folder) if not name.startswith(".")]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Each sync in its order: the path, and what a file held or which names a folder held at that moment."""
    calls: list[tuple[str, Any]] = []

    def watch(name: str) -> None:
        real: Callable[[int], None] = getattr(os, name)

        def sync(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            calls.append((str(path), names(path) if path.is_dir() else path.read_bytes()))
            real(descriptor)

        monkeypatch.setattr(os, name, sync)

    watch("fsync")
    watch("fdatasync")
    return calls


# --- append ----------------------------------------------------------------------------------------------------------


def test_a_log_grows_at_its_committed_length(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "log"
    _files.append(path, 0, b"one\n")
    _files.append(path, 4, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("data", [b"two\n", b"", b"longer than the tail was\n"])
def test_what_stood_behind_the_committed_length_is_dropped(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\nuncommitted\n")
    _files.append(path, 4, data)
    assert path.read_bytes() == b"one\n" + data


@pytest.mark.parametrize("there", [None, b"", b"one"])
def test_committed_bytes_that_are_gone_are_not_made_up(tmp_path: Path, there: bytes | None) -> None:
    """Writing behind the end would fill the gap with zeros, and they would be published as rows."""
    path = tmp_path / "log"
    if there is not None:
        path.write_bytes(there)
    with pytest.raises(OutputError, match=rf"log: shorter than the ledger says; it holds {len(there or b'')} of 4"):
        _files.append(path, 4, b"two\n")
    assert (path.read_bytes() if path.exists() else None) == there


@pytest.mark.case(8)
def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: real(descriptor, bytes(data[:1]), at))
    path = tmp_path / "log"
    _files.append(path, 0, b"one\n")
    _files.append(path, 4, b"two and more\n")
    assert path.read_bytes() == b"one\ntwo and more\n"


@pytest.mark.case(5)
@pytest.mark.parametrize("fails_after", [0, 3])
def test_a_disk_that_fills_while_writing_leaves_the_committed_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_after: int
) -> None:
    real, written = os.pwrite, []

    def full(descriptor: int, data: bytes, at: int) -> int:
        if len(written) == fails_after:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(at)
        return real(descriptor, bytes(data[:1]), at)

    path = tmp_path / "log"
    _files.append(path, 0, b"one\n")
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as caught:
        _files.append(path, 4, b"two\n")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"one\n"
    monkeypatch.setattr(os, "pwrite", real)
    _files.append(path, 4, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


@pytest.mark.case(7)
def test_a_sync_that_fails_is_reported_and_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls = tmp_path / "log", []
    _files.append(path, 0, b"one\n")

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        _files.append(path, 4, b"two\n")
    assert len(calls) == 1
    assert path.read_bytes() == b"one\n"


def test_the_error_of_the_disk_is_told_even_when_the_tail_cannot_be_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "the first error")

    def fail_again(*_: Any) -> None:
        raise OSError(errno.EROFS, "the second error")

    monkeypatch.setattr(os, "fdatasync", fail)
    monkeypatch.setattr(os, "ftruncate", fail_again)
    with pytest.raises(OSError, match="the first error"):
        _files.append(tmp_path / "log", 0, b"one\n")


def test_a_failed_append_leaks_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    before = len(names(Path("/proc/self/fd")))
    for _ in range(5):
        with pytest.raises(OSError, match="Input/output"):
            _files.append(tmp_path / "log", 0, b"one\n")
    assert len(names(Path("/proc/self/fd"))) == before


def test_an_append_is_synced_after_its_bytes_and_a_new_log_after_its_name(
    tmp_path: Path, synced: list[tuple[str, Any]]
) -> None:
    path = tmp_path / "rows" / "log"
    _files.append(path, 0, b"one\n")
    assert synced == [(str(tmp_path), ["rows"]), (str(path), b"one\n"), (str(path.parent), ["log"])]
    synced.clear()
    _files.append(path, 4, b"two\n")
    assert synced == [(str(path), b"one\ntwo\n")]


def test_truncate_cuts_back_and_syncs(tmp_path: Path, synced: list[tuple[str, Any]]) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\n")
    _files.truncate(path, 4)
    assert path.read_bytes() == b"one\n"
    assert synced == [(str(path), b"one\n")]
    with pytest.raises(FileNotFoundError):
        _files.truncate(tmp_path / "none", 0)


# --- place -----------------------------------------------------------------------------------------------------------


def test_a_staged_file_gets_its_name_and_the_name_is_synced(tmp_path: Path, synced: list[tuple[str, Any]]) -> None:
    staged, final = tmp_path / "staged", tmp_path / "particles" / "grid" / "a.mrcs"
    staged.write_bytes(b"pixels")
    _files.place(staged, final)
    assert final.read_bytes() == b"pixels"
    assert not staged.exists()
    assert synced[-1] == (str(final.parent), ["a.mrcs"])
    assert [path for path, _ in synced] == [str(tmp_path), str(tmp_path / "particles"), str(final.parent)]


def test_names_of_many_files_are_synced_once_for_each_folder(tmp_path: Path, synced: list[tuple[str, Any]]) -> None:
    placed = [(tmp_path / f"staged_{folder}{name}", tmp_path / folder / name) for folder in "xy" for name in "ab"]
    for staged, final in placed:
        staged.write_bytes(b"pixels")
        _files.place(staged, final, durable=False)
    synced.clear()
    _files.make_names_durable(placed)
    assert synced == [(str(tmp_path / folder), ["a", "b"]) for folder in "xy"]


@pytest.mark.case(7)
def test_names_that_could_not_be_made_durable_are_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed = [(tmp_path / f"staged_{folder}{name}", tmp_path / folder / name) for folder in "xy" for name in "ab"]
    for staged, final in placed:
        staged.write_bytes(b"pixels")
        _files.place(staged, final, durable=False)
    real = _files.fsync_folder

    def fail(folder: Path) -> None:
        if folder.name == "y":
            raise OSError(errno.EIO, "Input/output error")
        real(folder)

    monkeypatch.setattr(_files, "fsync_folder", fail)
    with pytest.raises(OSError, match="Input/output error"):
        _files.make_names_durable(placed)
    assert [staged.exists() for staged, _ in placed] == [False, False, True, True]
    assert names(tmp_path / "y") == []


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_nothing_is_ever_replaced(tmp_path: Path, folder: bool) -> None:
    staged, final = tmp_path / "staged", tmp_path / "a.mrcs"
    staged.write_bytes(b"new")
    if folder:
        final.mkdir()
    else:
        final.write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"a\.mrcs"):
        _files.place(staged, final)
    assert staged.read_bytes() == b"new"
    assert final.is_dir() if folder else final.read_bytes() == b"old"


def test_make_folder_syncs_each_new_name_in_its_parent_and_can_be_repeated(
    tmp_path: Path, synced: list[tuple[str, Any]]
) -> None:
    _files.make_folder(tmp_path / "a" / "b")
    assert synced == [(str(tmp_path), ["a"]), (str(tmp_path / "a"), ["b"])]
    synced.clear()
    _files.make_folder(tmp_path / "a" / "b")
    assert synced == []


# --- replace_whole ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_new_content_takes_the_place_of_the_old(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "deep" / "table.star"
    for chunks in ([b"old ", b"content, the longer one"], [b"new"], []):
        _files.replace_whole(path, chunks, durable=durable)
        assert path.read_bytes() == b"".join(chunks)
        assert names(path.parent) == ["table.star"]


@pytest.mark.parametrize("durable", [True, False])
def test_chunks_that_end_in_an_error_leave_the_old_content(tmp_path: Path, durable: bool) -> None:
    def torn() -> Iterator[bytes]:
        yield b"new "
        raise OSError(errno.EIO, "the row log cannot be read")

    path = tmp_path / "table.star"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="row log"):
        _files.replace_whole(path, torn(), durable=durable)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["table.star"]


@pytest.mark.case(7)
def test_a_sync_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.star"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        _files.replace_whole(path, [b"new"])
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["table.star"]


RANGE = st.tuples(st.integers(0, 30), st.integers(0, 30))


@given(
    st.lists(st.lists(RANGE, max_size=4) | st.binary(max_size=4), max_size=6),
    st.sampled_from([None, 3, errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP]),
)
def test_ranges_of_another_file_are_copied_between_other_content(
    parts: list[bytes | list[tuple[int, int]]], how: int | None
) -> None:
    """By the kernel, also where it copies less than it is asked for; or, where it cannot, by reading and writing."""
    real, calls = os.copy_file_range, 0

    def copy_file_range(source: int, target: int, count: int, offset: int) -> int:
        nonlocal calls
        calls += 1
        if how is not None and how != 3 and calls > 1:  # not at once: it may find out in the midst of a range
            raise OSError(how, os.strerror(how))
        return real(source, target, min(count, 3) if how is not None else count, offset)

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "copy_file_range", copy_file_range)
        log, path = Path(folder, "log"), Path(folder, "table")
        content = bytes(range(60))
        log.write_bytes(content)
        _files.replace_whole(path, [part if isinstance(part, bytes) else _files.Ranges(log, part) for part in parts])
        assert path.read_bytes() == b"".join(
            part if isinstance(part, bytes) else b"".join(content[start : start + size] for start, size in part)
            for part in parts
        )
        assert bool(calls) == any(size for part in parts if isinstance(part, list) for _, size in part)
        with pytest.raises(OutputError, match="shorter than the ledger says"):
            _files.replace_whole(path, [b"new", _files.Ranges(log, [(len(content), 1)])])
        assert names(Path(folder)) == ["log", "table"]


@pytest.mark.case(5)
def test_a_disk_that_fills_while_ranges_are_copied_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, path = tmp_path / "log", tmp_path / "table.star"
    log.write_bytes(b"rows")
    path.write_bytes(b"old")

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="No space left"):
        _files.replace_whole(path, [b"head", _files.Ranges(log, [(0, 4)])])
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["log", "table.star"]


def test_a_rename_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.star"
    path.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        _files.replace_whole(path, [b"new"])
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["table.star"]


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "table.star"
    path.write_bytes(b"old")
    seen: list[tuple[bytes, list[str]]] = []

    def slow() -> Iterator[bytes]:
        for _ in range(3):
            seen.append((path.read_bytes(), visible(tmp_path)))
            yield b"new"

    with path.open("rb") as reader:
        _files.replace_whole(path, slow())
        assert reader.read() == b"old"
    assert seen == [(b"old", ["table.star"])] * 3
    assert path.read_bytes() == b"newnewnew"


def test_bytes_are_synced_before_the_name_and_the_name_after(tmp_path: Path, synced: list[tuple[str, Any]]) -> None:
    path = tmp_path / "table.star"
    _files.replace_whole(path, [b"new"])
    (temporary, content), folder = synced
    assert content == b"new"
    assert temporary != str(path)
    assert folder == (str(tmp_path), ["table.star"])
    synced.clear()
    _files.replace_whole(path, [b"newer"], durable=False)
    assert synced == []


# --- reading ---------------------------------------------------------------------------------------------------------


@given(
    st.binary(max_size=60), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8), st.integers(1, 9)
)
def test_ranges_are_read_in_their_order(content: bytes, ranges: list[tuple[int, int]], piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files, "_COPY_BYTES", piece)
        fits = [(start, length) for start, length in ranges if start + length <= len(content)]
        path = Path(f"/proc/self/fd/{_in_memory(content)}")
        try:
            pieces = list(_files.read_ranges(path, fits))
            assert b"".join(pieces) == b"".join(content[start : start + length] for start, length in fits)
            assert all(0 < len(part) <= piece for part in pieces)
            too_far = [(start, length) for start, length in ranges if length and start + length > len(content)]
            for one in too_far:
                with pytest.raises(OutputError, match="shorter than the ledger says"):
                    list(_files.read_ranges(path, [*fits, one]))
        finally:
            os.close(int(path.name))


def _in_memory(content: bytes) -> int:
    descriptor = os.memfd_create("log")
    os.write(descriptor, content)
    return descriptor


def test_neighbouring_ranges_are_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"0123456789")
    assert list(_files.read_ranges(path, [(0, 2), (2, 3), (5, 0), (5, 1), (8, 2), (0, 1)])) == [b"012345", b"89", b"0"]


def test_no_ranges_need_no_file(tmp_path: Path) -> None:
    assert list(_files.read_ranges(tmp_path / "none", [(5, 0)])) == []


def test_the_checksum_is_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "_COPY_BYTES", 7)
    content = bytes(range(256))
    (tmp_path / "a").write_bytes(content)
    assert _files.crc32_of(tmp_path / "a") == zlib.crc32(content)


# --- orphans ---------------------------------------------------------------------------------------------------------


def test_files_moved_aside_keep_each_other(tmp_path: Path, synced: list[tuple[str, Any]]) -> None:
    orphans, path = tmp_path / "state" / "orphans", tmp_path / "a.mrcs"
    moved = []
    for content in (b"first", b"second", b"third"):
        path.write_bytes(content)
        moved.append(_files.move_aside(path, orphans))
        assert not path.exists()
        assert [folder for folder, _ in synced[-2:]] == [str(orphans), str(tmp_path)]
    assert [target.name for target in moved] == ["a.mrcs", "a.1.mrcs", "a.2.mrcs"]
    assert [target.read_bytes() for target in moved] == [b"first", b"second", b"third"]


def test_a_cleared_folder_is_empty_and_there(tmp_path: Path) -> None:
    folder = tmp_path / "staging"
    _files.clear_folder(folder)
    (folder / "job" / "deep").mkdir(parents=True)
    (folder / "job" / "file").write_bytes(b"x")
    _files.clear_folder(folder)
    assert folder.is_dir()
    assert names(folder) == []
