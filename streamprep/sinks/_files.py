"""Durable files: the only place with fsync, rename and truncate.

The order is always the same: bytes, then fsync, then the name, then fsync of the folder. An fsync that fails is never
called again on the same file: the kernel may have dropped the bytes and report success the second time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from streamprep.formats.checksum import crc32
from streamprep.model import OutputError

_COPY_BYTES = 1 << 20
_COPY_AT_ONCE = 1 << 30
_NO_COPYING = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)
"""What the kernel, or a file system, says that cannot copy by itself."""


def fsync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_write_back(descriptor: int, start: int, length: int) -> None:
    """Have the kernel begin to write bytes to the disk, so that little is left for the fsync at the end of their file.

    A hint: where it is not known, or not taken, nothing is lost.
    """
    if hasattr(os, "posix_fadvise"):  # Linux begins with what is changed, and forgets only what is not
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each durably named in its parent."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        try:
            fsync_folder(folder.parent)
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()  # so that the next try makes it, and its name, again
            raise


def crc32_of(path: Path) -> int:
    """CRC-32 of a whole file."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_COPY_BYTES):
            crc = crc32(chunk, crc)
    return crc


def place(staged: Path, final: Path, *, durable: bool = True) -> None:
    """Give a durable staged file its final name, durably. Nothing is ever replaced: the name must be free.

    ``durable = False`` leaves the fsync of its folder to `make_names_durable`.

    Raises
    ------
    FileExistsError
        There is a file of that name.
    """
    make_folder(final.parent)
    if final.exists():
        raise FileExistsError(f"{final}: there is a file of this name that the ledger does not know")
    staged.rename(final)
    if durable:
        make_names_durable([(staged, final)])


def make_names_durable(placed: Sequence[tuple[Path, Path]]) -> None:
    """Fsync the folders of files that were placed, each folder once.

    Parameters
    ----------
    placed
        Of each file where it was staged, and its final name.

    Raises
    ------
    OSError
        The files of the folder that it failed for lie where they were staged again, as far as that is possible: the
        next try gives them their names anew, because a failed fsync is not repeated.
    """
    for folder in dict.fromkeys(final.parent for _, final in placed):
        try:
            fsync_folder(folder)
        except OSError:
            for staged, final in placed:
                if final.parent == folder:
                    with contextlib.suppress(OSError):
                        final.rename(staged)
            raise


def append(path: Path, at: int, data: bytes) -> None:
    """Write at the committed length of a log and make it durable; what stood behind that length is dropped.

    Raises
    ------
    OSError
        The disk is full or failed. The tail is cut off again as far as that is possible.
    OutputError
        Committed bytes are gone: the log is shorter than the committed length. It is left as it is.
    """
    size = path.stat().st_size if path.exists() else 0
    if size < at:
        raise OutputError(f"{path}: shorter than the ledger says; it holds {size} of {at} committed bytes")
    if not at:
        make_folder(path.parent)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        if os.fstat(descriptor).st_size != at:
            os.ftruncate(descriptor, at)
        view, position = memoryview(data), at
        while view:
            written = os.pwrite(descriptor, view, position)
            view, position = view[written:], position + written
        os.fdatasync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, at)
        raise
    finally:
        os.close(descriptor)
    if not at:  # nothing is committed, so no earlier try can have come as far as this
        try:
            fsync_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()  # so that the next try gives the name anew: a failed fsync is not repeated
            raise


def truncate(path: Path, length: int) -> None:
    """Cut a log back to its committed length."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.ftruncate(descriptor, length)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Ranges:
    """Bytes of another file: the (start, length) ranges of it, one after the other."""

    path: Path
    ranges: Iterable[tuple[int, int]]


def replace_whole(path: Path, parts: Iterable[bytes | Ranges], *, durable: bool = True) -> None:
    """Replace a file by new content; a reader sees the old or the new one, whole.

    ``durable = False`` leaves the fsyncs out, for files that are made anew at the next start anyway.
    """
    if durable:
        make_folder(path.parent)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb", buffering=0) as file:
            for part in parts:
                if isinstance(part, Ranges):
                    _copy(part, file)
                else:
                    _write(file, part)
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except Exception:
        with contextlib.suppress(OSError):  # a half-written table is of no use, and the disk may be full
            temporary.unlink()
        raise
    if durable:
        fsync_folder(path.parent)


def _write(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


def _copy(part: Ranges, file: FileIO) -> None:
    """Copy ranges to where a file is written; the kernel does it where it can."""
    with contextlib.ExitStack() as opened:
        source = None
        for start, length in _joined(part.ranges):
            source = source or opened.enter_context(part.path.open("rb", buffering=0))
            done = 0
            with _falling_back():
                while done < length:
                    copied = os.copy_file_range(
                        source.fileno(), file.fileno(), min(length - done, _COPY_AT_ONCE), start + done
                    )
                    if not copied:
                        break
                    done += copied
            for chunk in read_ranges(part.path, [(start + done, length - done)]):
                _write(file, chunk)


@contextlib.contextmanager
def _falling_back() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_COPYING:
            raise


def read_ranges(path: Path, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes of (start, length) ranges of a file, in pieces; neighbouring ranges are read as one."""
    with contextlib.ExitStack() as opened:
        file = None
        for start, length in _joined(ranges):
            file = file or opened.enter_context(path.open("rb"))
            file.seek(start)
            while length > 0:
                chunk = file.read(min(_COPY_BYTES, length))
                if not chunk:
                    raise OutputError(f"{path}: shorter than the ledger says")
                length -= len(chunk)
                yield chunk


def _joined(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    begun, size = 0, 0
    for start, length in ranges:
        if size and begun + size == start:
            size += length
            continue
        if size:
            yield begun, size
        begun, size = start, length
    if size:
        yield begun, size


def move_aside(path: Path, folder: Path) -> Path:
    """Move a file into a folder of orphans, under a name that is free there."""
    make_folder(folder)
    target, number = folder / path.name, 1
    while target.exists():
        target, number = folder / f"{path.stem}.{number}{path.suffix}", number + 1
    path.rename(target)
    fsync_folder(folder)
    fsync_folder(path.parent)
    return target


def clear_folder(path: Path) -> None:
    """Empty a folder of temporary files."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True, exist_ok=True)
