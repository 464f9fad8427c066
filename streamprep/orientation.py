"""Which way y runs in the coordinates of each watched folder: measured on a few micrographs, for `streamprep check`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from streamprep import formats
from streamprep.config import Config
from streamprep.em.contrast import Contrast, Orientation, compare, contrast_at
from streamprep.joins import JobInput, join
from streamprep.model import Coordinates, Entry, Image, InputError, Item, Kind
from streamprep.naming import match_key
from streamprep.pipeline import Plan
from streamprep.plugin_manager import Plugins
from streamprep.session import make_sources
from streamprep.watcher import Source, Watcher
from streamprep.workers import micrograph_pixels

MICROGRAPHS = 8
"""Looked at per folder."""
MOST_TABLES = 32
"""Read per folder."""
MOST_OTHERS = 32
"""Files per folder that are asked whether they are tables, though their ending is that of none."""
MOST_BYTES = 256 << 20
"""Of a table that is read for this."""

_GOLDEN = 0.6180339887498949
T = TypeVar("T")
File = tuple[Source, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was measured of the coordinates in one watched folder."""

    folder: str
    """As the configuration names it."""
    flip_y: bool
    """Whether the configuration turns them over."""
    micrographs: int
    orientation: Orientation
    reason: str | None = None
    """Why nothing could be measured, where that is so."""

    @property
    def wrong(self) -> bool:
        """Whether they certainly fit the other way than the configuration says."""
        fits = self.orientation.fits_flipped
        return self.reason is None and fits is not None and fits != self.flip_y

    def text(self, flipped: Sequence[str] = ()) -> str:
        """The finding for people; ``flipped`` is what ``[matching] flip_y`` holds now."""
        found = self.orientation
        seen = f"{_counted(self.micrographs, 'micrograph')}, {_counted(found.count, 'coordinate')}"
        if self.reason is not None:
            return f"{self.folder}: which way y runs cannot be told ({self.reason})"
        if found.too_few:
            return f"{self.folder}: which way y runs cannot be told (too few places: {seen})"
        if found.fits_flipped is None:
            contrasts = f"{found.as_is:.2f} as they are, {found.flipped:.2f} flipped"
            return f"{self.folder}: which way y runs cannot be told (contrasts too alike: {contrasts}; {seen})"
        if found.fits_flipped:
            measured = f"contrast {found.flipped:.2f} against {found.as_is:.2f} as they are, {seen}"
            if self.flip_y:
                return f"{self.folder}: fit turned over, as flip_y says ({measured})"
            names = ", ".join(_quoted(name) for name in (*flipped, self.folder))
            return f"{self.folder}: fit only when y is turned over ({measured}): set [matching] flip_y = [{names}]"
        measured = f"contrast {found.as_is:.2f} against {found.flipped:.2f} flipped, {seen}"
        if self.flip_y:
            return f"{self.folder}: fit only as they are ({measured}): take it out of [matching] flip_y"
        return f"{self.folder}: fit as they are ({measured})"


def measure(config: Config, plugins: Plugins, plan: Plan, output: Path) -> tuple[list[Finding], list[str]]:
    """Measure which way y runs in every watched folder that has coordinates.

    Parameters
    ----------
    config, plugins, plan
        The session. The box size is that of ``extract``, else that of the coordinates.
    output
        Its output folder, which is passed over.

    Returns
    -------
    findings
        One for each folder in which tables of coordinates were found, in the order of the configuration.
    passed_over
        Files that could not be used, and why.
    """
    sources = make_sources(config, plan)
    watcher = Watcher(sources, known=lambda *_: (), missing=formats.missing_part, events=False, excluded=[output])
    files: dict[str, list[File]] = {}
    by_source: dict[str, list[File]] = {}
    for source, relative in watcher.present():
        if source.kind is None:
            files.setdefault(match_key(relative, config.matching.suffixes), []).append((source, relative))
            by_source.setdefault(source.label, []).append((source, relative))
    look = _Look(plugins, files, config.matching.suffixes, _box_size(plan))
    folders = zip(config.session.watch, sources[-len(config.session.watch) :], strict=True)
    found = [look.measure(name, source, by_source.get(source.label, [])) for name, source in folders]
    return [finding for finding in found if finding is not None], look.passed_over


class _Look:
    """Reads what is needed of the files of a session, and passes over what cannot be read."""

    def __init__(
        self, plugins: Plugins, files: dict[str, list[File]], suffixes: Sequence[str], box_size_px: int | None
    ) -> None:
        self._plugins, self._files, self._suffixes, self._box_size_px = plugins, files, suffixes, box_size_px
        self._kinds: dict[Path, Kind | None] = {}
        self.passed_over: list[str] = []

    def measure(self, folder: str, source: Source, files: Sequence[File]) -> Finding | None:
        """What the coordinates of a folder fit; None where it has none."""
        tables = unboxed = seen = 0
        used: set[Path] = set()
        contrasts: list[Contrast] = []
        for path, entry in self._coordinates(source, files):
            tables += 1
            micrograph = self._micrograph_of(source, path, entry)
            if micrograph is None or micrograph in used or not isinstance(entry.data, Coordinates):
                continue
            used.add(micrograph)
            box = self._box_size_px or entry.data.box_size_px
            if box is None:
                unboxed += 1
                continue
            contrast = self._contrast(micrograph, entry.data, box)
            if contrast is not None:
                contrasts.append(contrast)
                seen += len(entry.data)
            if len(contrasts) == MICROGRAPHS:
                break
        if not tables:
            return None
        found = compare(contrasts)
        reason = None
        if not contrasts:
            reason = "no box size is known: set [extract] box_size_px" if unboxed else "no micrograph is there for them"
        elif 2 * found.count < seen:
            reason = f"{seen - found.count} of {seen} coordinates lie outside their micrographs"
        return Finding(folder, source.flip_y, len(contrasts), found, reason)

    def _coordinates(self, source: Source, files: Sequence[File]) -> Iterator[tuple[str, Entry]]:
        """Entries with coordinates, spread over the names of tables, and over the micrographs in each."""
        named = [relative for _, relative in files if Path(relative).suffix.lower() in formats.TABLE_ENDINGS]
        others = [relative for _, relative in files if Path(relative).suffix.lower() not in formats.TABLE_ENDINGS]
        read = 0
        named = sorted(spread(named), key=lambda relative: len(self._files[match_key(relative, self._suffixes)]) < 2)
        for relative in (*named, *spread(others)[:MOST_OTHERS]):  # first those of which a namesake is there
            path = source.root / relative
            if read == MOST_TABLES:
                return
            if self._kind_of(path) != "coordinates":
                continue
            read += 1
            for entry in spread(self._entries(path)):
                if isinstance(entry.data, Coordinates) and len(entry.data):
                    yield relative, entry

    def _entries(self, path: Path) -> list[Entry]:
        try:
            size = path.stat().st_size
            if size > MOST_BYTES:
                raise InputError(path, f"the table has {size >> 20} MiB; check reads up to {MOST_BYTES >> 20}")
            return list(self._plugins.hook.read_item(item=Item("coordinates", path.stem, path)))
        except Exception as error:  # of a file that is broken or going away, or of a plugin
            self._pass_over(path, error)
            return []

    def _kind_of(self, path: Path) -> Kind | None:
        if path not in self._kinds:
            try:
                with path.open("rb") as file:
                    head = file.read(formats.HEAD_BYTES)
                self._kinds[path] = self._plugins.hook.classify_path(path=path, head=head)
            except Exception as error:
                self._pass_over(path, error)
                self._kinds[path] = None
        return self._kinds[path]

    def _micrograph_of(self, source: Source, relative: str, entry: Entry) -> Path | None:
        name = entry.micrograph or Path(relative).name
        there = [
            (f"{other.label}/{path}", other.root / path)
            for other, path in self._files.get(match_key(name, self._suffixes), ())
            if self._kind_of(other.root / path) == "micrograph"
        ]
        made = JobInput("coordinates", source.label, relative, name, entry.digest)
        _, owners = join([path for path, _ in there], [made], {"coordinates": "coordinates"}, self._suffixes)
        owner = owners[made]
        return None if owner is None else there[owner][1]

    def _contrast(self, path: Path, coordinates: Coordinates, box_size_px: int) -> Contrast | None:
        try:
            image = self._plugins.hook.read_item(item=Item("micrograph", path.stem, path))
            if not isinstance(image, Image):
                raise InputError(path, f"it was read as {type(image).__name__}, not as an image")
            return contrast_at(micrograph_pixels(path, image), coordinates.xy_px, box_size_px)
        except Exception as error:
            self._pass_over(path, error)
            return None

    def _pass_over(self, path: Path, error: Exception) -> None:
        if isinstance(error, InputError):
            self.passed_over.append(str(error))
        else:
            said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self.passed_over.append(f"{path}: {said or type(error).__name__}")


def spread(items: Iterable[T]) -> list[T]:
    """Put items in an order of which every beginning is spread evenly over all of them.

    Examples
    --------
    >>> spread("abcdefgh")
    ['a', 'f', 'c', 'h', 'e', 'b', 'g', 'd']
    """
    listed = list(items)
    return [listed[index] for index in sorted(range(len(listed)), key=lambda index: index * _GOLDEN % 1)]


def _box_size(plan: Plan) -> int | None:
    size = plan.extract.params.model_dump().get("box_size_px") if plan.extract is not None else None
    return int(size) if size is not None else None


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
