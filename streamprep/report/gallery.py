"""The folder of pictures: which are there, making those that are due, removing those that are too many."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from streamprep.config import PicturesSection
from streamprep.history import Done, History
from streamprep.model import StreamprepError
from streamprep.naming import STATE_FOLDER
from streamprep.report import draw
from streamprep.report.choose import surplus, wanted
from streamprep.report.read import Reader
from streamprep.sinks import _files

log = logging.getLogger(__name__)

GALLERY = "gallery"
INDEX = "gallery/index.json"
VERSION = 1
LOCK_SECONDS = 30.0
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
OURS = frozenset({*draw.FILES, "index.json", "lock"})
"""Names of files in the gallery, half written ones and the lock (``.NAME.tmp``, ``.lock``) by what stands between."""
Record = dict[str, Any]


class BusyError(StreamprepError):
    """Another process makes pictures of this session."""


def folder_of(item: str) -> str:
    """The folder of an item's pictures, below the output folder; no part of it is called as a file of the gallery is.

    Examples
    --------
    >>> folder_of("Micrographs/mic_0001"), folder_of("Micrographs/mic_0001/thumb.jpg")
    ('gallery/Micrographs/mic_0001', 'gallery/Micrographs/mic_0001/%thumb.jpg')
    """
    return "/".join([GALLERY, *(f"%{part}" if _is_ours(part.lstrip("%")) else part for part in item.split("/"))])


def _is_ours(name: str) -> bool:
    return name.lower().removeprefix(".").removesuffix(".tmp") in OURS  # some file systems know no case


class Gallery:
    """The pictures of a session.

    Parameters
    ----------
    output
        The output folder.
    history
        What is done; it is not read on here.
    reader
        Reads items.
    settings
        How many pictures.
    threshold
        See `streamprep.report.draw.pictures`.
    """

    def __init__(
        self, output: Path, history: History, reader: Reader, settings: PicturesSection, threshold: float | None = None
    ) -> None:
        self.output, self.history, self._reader, self._settings = output, history, reader, settings
        self._threshold = threshold
        self.records: dict[str, Record] = {}
        """What is there, by item."""
        self._failed: dict[str, tuple[int, float]] = {}
        """Items of which nothing could be shown, as they were then."""
        self._index: tuple[int, int, int] | None = None
        """What the index was when it was read or written."""
        self.refresh()

    def due(self, odd: Sequence[str] = ()) -> list[Done]:
        """Items whose pictures are to be made, the urgent first; ``odd`` are items that stand out."""
        names = list(self.history.done)
        places = self._places(odd)
        chosen = [names[number] for number in wanted(len(names), self._settings.most, list(places.values()))]
        self._failed = {item: self._failed[item] for item in chosen if item in self._failed}
        return [done for done in map(self.history.done.__getitem__, chosen) if not self._is_settled(done)]

    def refresh(self) -> None:
        """Read the index again where another process has written it."""
        found = self._identity()
        if found != self._index:
            self._index = found
            self._load()

    def make(self, done: Done) -> Record | None:
        """Make the pictures of an item; None where nothing could be shown.

        Raises
        ------
        OSError
            The disk is full.
        """
        commit = self.history.commit(done)
        found: list[draw.Picture] = []
        notes: list[str] = []
        facts: dict[str, Any] = {}
        if commit is not None:
            try:
                look = self._reader.look(done, commit)
                notes = look.notes
                found, facts = draw.drawn(
                    look,
                    boxes=self._settings.boxes,
                    box_size_px=self._reader.box_size_px,
                    threshold=self._threshold,
                )
            except Exception as error:  # of a plugin, too: it costs the pictures of this item, and is not tried again
                log.warning("%s: no pictures: %s: %s", done.item, type(error).__name__, error)
        if not found:
            self._failed[done.item] = (done.generation, done.finished)
            return None
        try:
            files = self._write(done.item, found)
        except OSError as error:
            self._remove(done.item)
            if error.errno in DISK_FULL:
                raise
            log.warning("%s: no pictures: %s", done.item, error)  # it is this item's
            self._failed[done.item] = (done.generation, done.finished)
            return None
        self.records[done.item] = {
            "item": done.item,
            "kind": done.kind,
            "generation": done.generation,
            "finished": done.finished,
            "files": files,
            "facts": facts,
            "notes": notes,
        }
        return self.records[done.item]

    def _write(self, item: str, found: Sequence[draw.Picture]) -> list[dict[str, Any]]:
        """Write the pictures of an item, and remove those that it has no more; what the index says of them."""
        folder = folder_of(item)
        files: list[dict[str, Any]] = []
        for picture in found:
            _files.replace_whole(self.output / folder / picture.name, [picture.data], durable=False)
            files.append(
                {
                    "file": f"{folder}/{picture.name}",
                    "name": picture.name.partition(".")[0],
                    "about": picture.about,
                    "width": picture.size_px[0],
                    "height": picture.size_px[1],
                }
            )
        made = {picture.name for picture in found}
        for name in draw.FILES:
            if name not in made:
                (self.output / folder / name).unlink(missing_ok=True)
        return files

    def tidy(self, odd: Sequence[str] = ()) -> None:
        """Remove the pictures of items that are no more, and those that are too many; write the index."""
        for item in [item for item in self.records if item not in self.history.done]:
            self._remove(item)
        places = self._places(self.records)
        names = {number: item for item, number in places.items()}
        urgent = list(self._places(odd).values())
        for number in surplus(len(self.history.done), self._settings.most, names, urgent):
            self._remove(names[number])
        self.records = {item: self.records[item] for item in reversed(places) if item in self.records}
        text = json.dumps({"version": VERSION, "items": list(self.records.values())}, indent=1)
        _files.replace_whole(self.output / INDEX, [text.encode("ascii")], durable=False)
        self._index = self._identity()

    def remove_strangers(self) -> None:
        """Remove pictures that the index does not know: it was lost, or those who made them were stopped between."""
        known = {PurePosixPath(folder_of(item)) for item in self.records}
        for path in sorted((self.output / GALLERY).rglob("*")):
            name = path.name.removeprefix(".").removesuffix(".tmp")  # also half a picture
            relative = PurePosixPath(path.relative_to(self.output).as_posix())
            if name in draw.FILES and (relative.parent not in known or name != path.name) and path.is_file():
                path.unlink(missing_ok=True)
                self._remove_empty(path.parent)

    def _places(self, items: Collection[str]) -> dict[str, int]:
        """Of those of these items that are done, their numbers; in the order of these where it is a sequence."""
        asked = set(items)
        found = {item: number for number, item in enumerate(self.history.done) if item in asked}
        return {item: found[item] for item in items if item in found} if isinstance(items, Sequence) else found

    def _is_settled(self, done: Done) -> bool:
        """Whether its pictures are made, or cannot be."""
        record, now = self.records.get(done.item), (done.generation, done.finished)
        return self._failed.get(done.item) == now or (
            record is not None and (record["generation"], record["finished"]) == now
        )

    def _remove(self, item: str) -> None:
        self.records.pop(item, None)
        folder = self.output / folder_of(item)
        for name in draw.FILES:
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        self._remove_empty(folder)

    def _remove_empty(self, folder: Path) -> None:
        while folder != self.output / GALLERY:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    def _identity(self) -> tuple[int, int, int] | None:
        try:
            found = (self.output / INDEX).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _load(self) -> None:
        self.records = {}
        try:
            said = json.loads((self.output / INDEX).read_text(encoding="utf-8"))
            listed = said["items"] if said["version"] == VERSION else []
            records = {record["item"]: _checked(record) for record in listed}
            self.records = {
                item: record
                for item, record in records.items()
                if all((self.output / file["file"]).is_file() for file in record["files"])
            }
        except (OSError, ValueError, KeyError, TypeError):
            return


def _checked(record: Record) -> Record:
    """A record of the index, which anyone may have changed: its files are pictures of its item."""
    item = record["item"]
    if PurePosixPath(item).is_absolute() or ".." in PurePosixPath(item).parts or not item:
        raise ValueError(f"{item!r} is not the name of an item")
    names = {f"{folder_of(item)}/{name}" for name in draw.FILES}
    if not all(file["file"] in names for file in record["files"]):
        raise ValueError(f"{item!r} has a file elsewhere")
    return {key: record[key] for key in ("item", "kind", "generation", "finished", "files", "facts", "notes")}


def is_there(output: Path) -> bool:
    """Whether the output folder is there: where it was removed or unmounted, nothing is to appear in its place."""
    return (output / STATE_FOLDER).is_dir()


def has_room(output: Path, reserve_mib: int) -> bool:
    """Whether the disk has more free space than a session leaves."""
    return shutil.disk_usage(output).free > reserve_mib << 20


@contextlib.contextmanager
def alone(output: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Keep other makers of pictures of this session away; the session itself is not concerned.

    Raises
    ------
    BusyError
        Another one is at it for longer than this.
    """
    (output / GALLERY).mkdir(exist_ok=True)
    until = time.monotonic() + seconds
    with (output / GALLERY / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise BusyError(f"{output / GALLERY}: another process makes pictures here") from None
                time.sleep(0.1)
            except OSError:  # a file system without locks: two writers replace whole files, one after the other
                break
        yield
