"""The folder of pictures: which are there, making those that are due, removing those that are too many."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from streamprep.config import PicturesSection
from streamprep.history import Done, History
from streamprep.model import StreamprepError
from streamprep.naming import STATE_FOLDER
from streamprep.report import draw
from streamprep.report.choose import due, surplus
from streamprep.report.read import Reader
from streamprep.sinks import _files

log = logging.getLogger(__name__)

GALLERY = "gallery"
INDEX = "gallery/index.json"
VERSION = 1
LOCK_SECONDS = 30.0
Record = dict[str, Any]


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
        self._load()

    def due(self, odd: Sequence[str] = ()) -> list[Done]:
        """Items whose pictures are to be made, the urgent first; ``odd`` are items that stand out."""
        items = list(self.history.done.values())
        places = {done.item: number for number, done in enumerate(items)}
        there = {
            number
            for number, done in enumerate(items)
            if self._is_made(done) or self._failed.get(done.item) == (done.generation, done.finished)
        }
        wanted = [places[item] for item in odd if item in places]
        return [items[number] for number in due(len(items), self._settings.most, there, wanted)]

    def make(self, done: Done) -> Record | None:
        """Make the pictures of an item, and remove what is too much; None where nothing could be shown."""
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
        folder = f"{GALLERY}/{done.item}"
        files = []
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

    def tidy(self, odd: Sequence[str] = ()) -> None:
        """Remove the pictures of items that are no more, and those that are too many; write the index."""
        places = {item: number for number, item in enumerate(self.history.done)}
        for item in [item for item in self.records if item not in places]:
            self._remove(item)
        names = list(places)
        wanted = [places[item] for item in odd if item in places]
        for number in surplus(len(names), self._settings.most, {places[item] for item in self.records}, wanted):
            self._remove(names[number])
        order = sorted(self.records, key=places.__getitem__, reverse=True)
        text = json.dumps({"version": VERSION, "items": [self.records[item] for item in order]}, indent=1)
        _files.replace_whole(self.output / INDEX, [text.encode("ascii")], durable=False)

    def remove_strangers(self) -> None:
        """Remove pictures that the index does not know: it was lost, or those who made them were stopped between."""
        known = {PurePosixPath(GALLERY, item) for item in self.records}
        for path in sorted((self.output / GALLERY).rglob("*")):
            name = path.name.removeprefix(".").removesuffix(".tmp")  # also half a picture
            relative = PurePosixPath(path.relative_to(self.output).as_posix())
            if name in draw.FILES and (relative.parent not in known or name != path.name) and path.is_file():
                path.unlink(missing_ok=True)
                self._remove_empty(path.parent)

    def _is_made(self, done: Done) -> bool:
        record = self.records.get(done.item)
        return record is not None and (record["generation"], record["finished"]) == (done.generation, done.finished)

    def _remove(self, item: str) -> None:
        del self.records[item]
        folder = self.output / GALLERY / item
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

    def _load(self) -> None:
        try:
            said = json.loads((self.output / INDEX).read_text(encoding="utf-8"))
            listed = said["items"] if said["version"] == VERSION else []
            records = {record["item"]: _checked(record) for record in listed}
        except (OSError, ValueError, KeyError, TypeError):
            return
        self.records = {
            item: record
            for item, record in records.items()
            if all((self.output / file["file"]).is_file() for file in record["files"])
        }


def _checked(record: Record) -> Record:
    """A record of the index, which anyone may have changed: its files are pictures of its item."""
    item = record["item"]
    if PurePosixPath(item).is_absolute() or ".." in PurePosixPath(item).parts or not item:
        raise ValueError(f"{item!r} is not the name of an item")
    names = {f"{GALLERY}/{item}/{name}" for name in draw.FILES}
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
    StreamprepError
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
                    raise StreamprepError(f"{output / GALLERY}: another process makes pictures here") from None
                time.sleep(0.1)
            except OSError:  # a file system without locks: two writers replace whole files, one after the other
                break
        yield
