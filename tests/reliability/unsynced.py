"""A folder whose files live on a real file system, and of which is known what a power loss would leave.

While it is switched on, the calls with which Python changes files are watched. Of each file it is remembered which
bytes are durable, of each name which file a power loss would find there. Only fsync and fdatasync of a file make its
bytes durable, only fsync of a folder the names in it; nothing is taken for granted that POSIX leaves open, so a renamed
file may be found under both names, or under none.

What SQLite writes is not watched: its own promises are trusted. Its files are copied as they are, committed or not.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SECTOR = 512
TRUSTED = ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-journal")


class PowerLossError(BaseException):
    """The machine went off here."""


@dataclass(eq=False)
class File:
    """One file, whatever it is called."""

    durable: bytes = b""
    path: str | None = None
    """Where it is now; None once it has no name."""
    last: bytes = b""
    """What it held when it lost its name."""
    dropped: set[int] = field(default_factory=set)
    """Sectors that an fsync could not write: the kernel takes them for written, so that later ones leave them out."""

    def touch(self, start: int, end: int | None = None) -> None:
        """Something is written there: the next fsync writes it again."""
        first = start // SECTOR
        self.dropped = {one for one in self.dropped if one < first or (end is not None and one * SECTOR >= end)}

    def sync(self) -> None:
        now = bytearray(self.content())
        for sector in self.dropped:
            start, end = sector * SECTOR, min(len(now), (sector + 1) * SECTOR)
            now[start:end] = self.durable[start:end].ljust(max(0, end - start), b"\0")
        self.durable = bytes(now)

    def fail(self) -> None:
        now, size = self.content(), max(len(self.durable), len(self.content()))
        starts = range(0, size, SECTOR)
        self.dropped |= {i // SECTOR for i in starts if now[i : i + SECTOR] != self.durable[i : i + SECTOR]}

    def content(self) -> bytes:
        """What a reader sees now."""
        return self.last if self.path is None else Path(self.path).read_bytes()


@dataclass(eq=False)
class Folder:
    """The names in a folder, each with what it stood for since it was last durable; the last is what it stands for."""

    names: dict[str, list[File | Folder | None]] = field(default_factory=dict)
    dropped: dict[str, File | Folder | None] = field(default_factory=dict)
    """What the names stood for that an fsync could not write; later ones leave them out until they change."""

    def now(self, name: str) -> File | Folder | None:
        return self.names.get(name, [None])[-1]

    def put(self, name: str, node: File | Folder | None) -> None:
        self.dropped.pop(name, None)
        self.names.setdefault(name, [None]).append(node)

    def sync(self) -> None:
        kept = {name: states if name in self.dropped else states[-1:] for name, states in self.names.items()}
        self.names = {name: states for name, states in kept.items() if states != [None]}

    def fail(self) -> None:
        self.dropped |= {name: states[-1] for name, states in self.names.items() if len(states) > 1}


@dataclass
class Writeback:
    """What of the un-synced writes reached the disk by itself.

    ``nothing``, ``everything``, all the ``bytes`` and no names, all the ``names`` and no bytes, the names and the
    ``lengths`` of files with zeros in them, or ``some`` of each, sector by sector, as ``seed`` says.
    """

    mode: str
    seed: int = 0

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def name(self, states: list[Any]) -> int:
        """Which of the things that a name stood for is found."""
        if self.mode == "some":
            return self._chance.randrange(len(states))
        return len(states) - 1 if self.mode in ("everything", "names", "lengths") else 0

    def bytes(self, old: bytes, new: bytes) -> bytes:
        """What is found of a file that was durable as ``old`` and is ``new`` now."""
        if old == new or self.mode in ("nothing", "names"):
            return old
        if self.mode in ("everything", "bytes"):
            return new
        if self.mode == "lengths":
            return old[: len(new)].ljust(len(new), b"\0")
        size = self._chance.choice((len(old), len(new), self._chance.randint(*sorted((len(old), len(new))))))
        made = bytearray(old[:size].ljust(size, b"\0"))
        for start in range(0, size, SECTOR):
            sector = new[start : min(size, start + SECTOR)]
            if sector and self._chance.random() < 0.5:
                made[start : start + len(sector)] = sector
        return bytes(made)


MODES = ("nothing", "everything", "bytes", "names", "lengths", "some")


class _Raw(io.FileIO):
    """A file that is opened for writing, below Python's buffer."""

    def __init__(self, disk: UnsyncedFolder, path: str, mode: str) -> None:
        self._disk, self._life, self._opened = disk, disk.life, mode
        super().__init__(path, mode, opener=lambda name, flags: os.open(name, flags, 0o666))

    def write(self, data: Any) -> int:
        if self._life != self._disk.life:
            return len(data)  # a buffer that outlived its process
        start = os.fstat(self.fileno()).st_size if "a" in self._opened else self.tell()
        return self._disk.write(self.fileno(), super().write, data, start)

    def truncate(self, size: int | None = None) -> int:
        place = self.tell() if size is None else size
        os.ftruncate(self.fileno(), place)
        return place


Call = Callable[..., Any]


class UnsyncedFolder:
    """A folder that may lose power.

    Parameters
    ----------
    root
        An existing empty folder; its own name is durable.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = f"{root}/"
        self._tree = Folder()
        self._nodes: dict[int, File | Folder] = {root.stat().st_ino: self._tree}
        self._real: dict[str, Call] = {}
        self.steps_left: int | None = None
        """So many steps from now the power goes off: there is one before and one after each change."""
        self.room_bytes: int | None = None
        """What can still be written before the disk is full; None for no limit."""
        self.syncs_left: int | None = None
        """After so many calls of fsync or fdatasync one fails, and what it was to write is dropped."""
        self.left: dict[str, Any] = {}
        self.writeback = Writeback("nothing")
        """What reaches the disk at a power loss that ``steps_left`` brings about."""
        self.off = False
        self.life = 0

    # --- what it does to Python ---

    def switch_on(self, patch: pytest.MonkeyPatch) -> None:
        """Watch this process, until the patch is undone."""
        for name in ("open", "rename", "replace", "unlink", "mkdir", "rmdir", "fsync", "fdatasync"):
            self._patch(patch, os, name, getattr(self, f"_{name}"))
        self._patch(patch, os, "pwrite", self._pwrite)
        self._patch(patch, os, "ftruncate", self._ftruncate)
        self._patch(patch, os, "copy_file_range", self._copy_file_range)
        patch.setattr(os, "remove", os.unlink)
        self._real["io.open"] = io.open
        patch.setattr(io, "open", self._io_open)
        patch.setattr(builtins, "open", self._io_open)
        patch.setattr(shutil, "_use_fd_functions", False)  # so that rmtree speaks of paths

    def _patch(self, patch: pytest.MonkeyPatch, module: Any, name: str, call: Call) -> None:
        self._real[name] = getattr(module, name)
        patch.setattr(module, name, call)

    def _watches(self, path: Any) -> str | None:
        if self.off or not isinstance(path, str | os.PathLike):
            return None
        text = os.fspath(path)
        if not isinstance(text, str) or not text.startswith(self._prefix):
            return None
        return None if text.rpartition("/")[2] in TRUSTED else text

    def _parent(self, path: str) -> tuple[Folder, str]:
        *folders, name = path.removeprefix(self._prefix).split("/")
        here: File | Folder | None = self._tree
        for folder in folders:
            assert isinstance(here, Folder), f"{path}: {folder} is in no folder"
            here = here.now(folder)
        assert isinstance(here, Folder), f"{path}: its folder is not known"
        return here, name

    def step(self) -> None:
        """Something is about to change, or has just changed."""
        if self.off:
            raise PowerLossError
        if self.steps_left is None:
            return
        self.steps_left -= 1
        if self.steps_left < 0:
            self.lose_power(self.writeback)
            raise PowerLossError

    def need(self, size: int) -> int:
        """How many of so many bytes there is room for, which are taken.

        Raises
        ------
        OSError
            For none of them.
        """
        if self.off:
            raise PowerLossError
        if self.room_bytes is None:
            return size
        taken = min(size, self.room_bytes)
        self.room_bytes -= taken
        if size and not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return taken

    def write(self, descriptor: int, call: Callable[[Any], int], data: Any, start: int) -> int:
        """Write as much as there is room for.

        A power loss is told by the next call only: this one may come from the end of a file object, where nobody hears.
        """
        view = memoryview(data).cast("B")
        with contextlib.suppress(PowerLossError):
            self.step()
            done = call(view[: self.need(len(view))])
            node = self._nodes.get(os.fstat(descriptor).st_ino)
            if isinstance(node, File):
                node.touch(start, start + done)
            self.step()
            return done
        return len(view)

    # --- the calls ---

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        watched = self._watches(path) if dir_fd is None else None
        changes = watched is not None and flags & (os.O_CREAT | os.O_TRUNC)
        if watched is None or not changes:
            return self._real["open"](path, flags, mode, dir_fd=dir_fd)
        folder, name = self._parent(watched)
        new = folder.now(name) is None
        self.step()
        if new:
            self.need(SECTOR)
        descriptor = self._real["open"](path, flags, mode)
        node = folder.now(name)
        if isinstance(node, File) and flags & os.O_TRUNC:
            node.touch(0)
        if new:
            made = File(path=watched)
            self._nodes[os.fstat(descriptor).st_ino] = made
            folder.put(name, made)
        self._after(lambda: os.close(descriptor))
        return descriptor

    def _after(self, undo: Callable[[], None] = lambda: None) -> None:
        try:
            self.step()
        except PowerLossError:
            undo()
            raise

    def _io_open(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        watched = self._watches(file)
        if watched is None or not set(mode) & set("wax+"):
            return self._real["io.open"](file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _Raw(self, watched, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding or "utf-8", errors, newline)

    def _pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        if os.fstat(descriptor).st_ino not in self._nodes:
            return self._real["pwrite"](descriptor, data, offset)
        return self.write(descriptor, lambda part: self._real["pwrite"](descriptor, part, offset), data, offset)

    def _copy_file_range(self, source: int, target: int, count: int, offset: int) -> int:
        node = None if self.off else self._nodes.get(os.fstat(target).st_ino)
        if not isinstance(node, File):
            return self._real["copy_file_range"](source, target, count, offset)
        self.step()
        start = os.lseek(target, 0, os.SEEK_CUR)
        done = self._real["copy_file_range"](source, target, self.need(count), offset)
        node.touch(start, start + done)
        self.step()
        return done

    def _ftruncate(self, descriptor: int, length: int) -> None:
        node = None if self.off else self._nodes.get(os.fstat(descriptor).st_ino)
        if not isinstance(node, File):
            return self._real["ftruncate"](descriptor, length)
        self.step()
        self._real["ftruncate"](descriptor, length)
        node.touch(length)
        self.step()
        return None

    def _rename(self, source: Any, target: Any, **options: Any) -> None:
        one, other = self._watches(source), self._watches(target)
        if one is None or other is None:
            assert one is other, "nothing is renamed into the folder or out of it"
            return self._real["rename"](source, target, **options)
        (from_folder, from_name), (to_folder, to_name) = self._parent(one), self._parent(other)
        node, replaced = from_folder.now(from_name), to_folder.now(to_name)
        self.step()
        self._let_go(replaced)
        self._real["rename"](source, target)
        from_folder.put(from_name, None)
        to_folder.put(to_name, node)
        if isinstance(node, File):
            node.path = other
        self.step()
        return None

    def _replace(self, source: Any, target: Any, **options: Any) -> None:
        self._rename(source, target, **options)

    def _let_go(self, node: File | Folder | None) -> None:
        if isinstance(node, File):
            node.last, node.path = node.content(), None

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        watched = self._watches(path) if dir_fd is None else None
        if watched is None:
            return self._real["unlink"](path, dir_fd=dir_fd)
        folder, name = self._parent(watched)
        if folder.now(name) is None:
            return self._real["unlink"](path)  # raises
        self.step()
        self._let_go(folder.now(name))
        self._real["unlink"](path)
        folder.put(name, None)
        self.step()
        return None

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        watched = self._watches(path) if dir_fd is None else None
        if watched is None or os.path.lexists(watched) or not Path(watched).parent.is_dir():
            return self._real["mkdir"](path, mode, dir_fd=dir_fd)
        self.step()
        self.need(SECTOR)
        self._real["mkdir"](path, mode)
        folder, name = self._parent(watched)
        made = Folder()
        self._nodes[Path(watched).stat().st_ino] = made
        folder.put(name, made)
        self.step()
        return None

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        watched = self._watches(path) if dir_fd is None else None
        if watched is None:
            return self._real["rmdir"](path, dir_fd=dir_fd)
        self.step()
        self._real["rmdir"](path)
        folder, name = self._parent(watched)
        folder.put(name, None)
        self.step()
        return None

    def _fsync(self, descriptor: int) -> None:
        node = None if self.off else self._nodes.get(os.fstat(descriptor).st_ino)
        if node is None:
            return
        self.step()
        if self.syncs_left == 0:
            self.syncs_left = None
            node.fail()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.syncs_left is not None:
            self.syncs_left -= 1
        node.sync()
        self.step()

    def _fdatasync(self, descriptor: int) -> None:
        self._fsync(descriptor)

    # --- power ---

    def write_back(self, how: Writeback) -> None:
        """Some of what is not synced becomes durable, as it may at any time."""
        for _, folder in list(self._folders(self._tree, "")):
            for name, states in list(folder.names.items()):
                del states[: how.name(states)]
                if states == [None]:
                    del folder.names[name]
                for node in states:
                    if isinstance(node, File):
                        node.durable = how.bytes(node.durable, node.content())

    def _folders(self, folder: Folder, path: str) -> Iterator[tuple[str, Folder]]:
        yield path, folder
        for name in folder.names:
            below = folder.now(name)
            if isinstance(below, Folder):
                yield from self._folders(below, f"{path}{name}/")

    def lose_power(self, how: Writeback) -> None:
        """The end: what the disk holds now is what `come_back` will find."""
        self.left = self._found(self._tree, how, {})
        for path, _ in self._folders(self._tree, ""):
            for name in TRUSTED:
                if (self.root / path / name).exists():
                    place: Any = self.left
                    for part in path.split("/")[:-1]:
                        place = place.get(part) if isinstance(place, dict) else None
                    if isinstance(place, dict):
                        place[name] = (self.root / path / name).read_bytes()
        self.off = True

    def _found(self, folder: Folder, how: Writeback, seen: dict[int, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, states in folder.names.items():
            node = states[how.name(states)]
            if isinstance(node, Folder):
                found[name] = self._found(node, how, seen)
            elif isinstance(node, File):
                if id(node) not in seen:
                    seen[id(node)] = how.bytes(node.durable, node.content())
                found[name] = seen[id(node)]
        return found

    def come_back(self) -> None:
        """Power is there again: the folder holds what reached the disk."""
        assert self.off
        for entry in list(os.scandir(self.root)):
            shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else self._real["unlink"](entry.path)
        self._nodes = {}
        self._tree = self._put(self.root, self.left)
        self.off, self.steps_left, self.syncs_left = False, None, None
        self.life += 1

    def _put(self, place: Path, found: dict[str, Any]) -> Folder:
        made = Folder()
        self._nodes[place.stat().st_ino] = made
        for name, below in found.items():
            path = place / name
            if isinstance(below, dict):
                self._real["mkdir"](path)
                made.names[name] = [self._put(path, below)]
            else:
                path.write_bytes(below)  # nobody watches while it is off
                if name not in TRUSTED:
                    file = File(below, str(path))
                    self._nodes[path.stat().st_ino] = file
                    made.names[name] = [file]
        return made
