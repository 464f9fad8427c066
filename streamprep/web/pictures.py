"""The pictures of a session, as their index names them: only these are ever served."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

FOLDER = "gallery"
INDEX = "index.json"
TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".svg": "image/svg+xml",
}
MOST_BYTES = 32 << 20
SMALL = "thumb"
"""A micrograph's picture once more, small: the report needs it, pages have the large one."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture."""

    item: str
    kind: str
    """What it shows."""
    file: str
    """Below the folder of pictures."""
    finished: float
    """When its item was done, seconds since 1970."""
    about: str = ""
    """The same in words."""


def read_index(path: Path) -> tuple[Picture, ...]:
    """What the index names, the newest first; names that lead elsewhere, or are of no picture, are left out.

    Raises
    ------
    OSError, ValueError
        It cannot be read, or is no index.
    """
    said = json.loads(path.read_text(encoding="utf-8"))
    listed = said.get("items") if isinstance(said, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it is no list of pictures")
    entries = [entry for entry in listed if isinstance(entry, dict) and isinstance(entry.get("files"), list)]
    made = [picture for entry in entries for picture in _pictures(entry)]
    return tuple(sorted(made, key=lambda picture: picture.finished, reverse=True))


def for_pages(pictures: Sequence[Picture]) -> list[Picture]:
    """Those that pages show."""
    return [picture for picture in pictures if picture.kind != SMALL]


def _pictures(entry: dict[str, Any]) -> Iterator[Picture]:
    finished = entry.get("finished")
    for made in entry["files"]:
        name = made.get("file") if isinstance(made, dict) else None
        if isinstance(name, str) and (file := _plain(name)) is not None:
            yield Picture(
                str(entry.get("item", "")),
                str(made.get("name", "")),
                file,
                float(finished) if isinstance(finished, int | float) else 0.0,
                str(made.get("about", "")),
            )


def _plain(name: str) -> str | None:
    """The name below the folder of pictures; None where it would lead elsewhere, or is of no picture."""
    path = PurePosixPath(name)
    if path.parts[:1] == (FOLDER,):
        path = PurePosixPath(*path.parts[1:])
    if path.is_absolute() or not path.name or ".." in path.parts or "\0" in name:
        return None
    return path.as_posix() if path.suffix.lower() in TYPES else None


def read_picture(output: Path, file: str) -> bytes | None:
    """A picture's bytes; None where there is none, or where a link leads out of the folder of pictures."""
    return read_below(output / FOLDER, file)


def read_below(folder: Path, name: str) -> bytes | None:
    """The bytes of a regular file of at most 32 MiB below a folder; None where it is none."""
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            return None
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
            found = os.fstat(file.fileno())
            return file.read(MOST_BYTES) if stat.S_ISREG(found.st_mode) and found.st_size <= MOST_BYTES else None
    except OSError:
        return None
