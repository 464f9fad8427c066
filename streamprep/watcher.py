"""Yields paths that are settled and complete. Events are hints; scans are the truth.

`Watcher.poll` does a bounded piece of work and returns; the clock and ``stat`` come in from outside, and everything
but the observer of file system events runs in the caller's thread.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import itertools
import logging
import os
import queue
import stat as stat_module
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from streamprep.model import Identity, InputError, Kind

log = logging.getLogger(__name__)

REMOTE_FILE_SYSTEMS = (
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p", "afs", "fuse",
)  # fmt: skip
"""Writes from other machines make no event on these."""

TEMPORARY_ENDINGS = (".tmp", ".part", ".partial", ".filepart", ".crdownload", ".swp", ".lock", "~")

LISTED_AT_ONCE = 5000
SCAN_SHARE = 0.1
SCAN_SHARE_WITHOUT_EVENTS = 0.5
LONGEST_PAUSE = 10
"""Times the least one: a scan may have taken long because the disk stood still."""
"""Most of the time that scanning may take: with very many files scans are further apart than is asked for."""

ASKED_AT_ONCE = 512
"""Of so many files is asked at a time whether they are known: each question costs more than each file."""

Missing = Callable[[Path, int, bytes], str | None]


@dataclass(frozen=True, slots=True)
class Source:
    """A folder to watch, with everything below it, or what a pattern allows."""

    root: Path
    label: str
    pattern: str | None = None
    """Relative to the root; None for everything. The walk goes no deeper than the pattern."""
    kind: Kind | None = None
    """What its files are, where that is known beforehand."""
    flip_y: bool = False
    """Whether its coordinates count y from the last row of the image."""
    names: set[str] | None = None
    """Only these files of the folder itself, where given; more may be added."""

    @property
    def is_pattern(self) -> bool:
        """Whether its pattern can fit more than one file."""
        return self.pattern is not None and any(mark in self.pattern for mark in "*?[")

    def wants(self, relative: str) -> bool:
        """Whether a path below the root is one of this source's files."""
        if self.names is not None:
            return relative in self.names
        if self.pattern is None:
            return True
        return relative.count("/") == self.depth and fnmatch.fnmatchcase(relative, self.pattern)

    @property
    def depth(self) -> int | None:
        """How many folders deep its files can be; None for any."""
        if self.names is not None:
            return 0
        return None if self.pattern is None else self.pattern.count("/")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A settled file: whole, or certain not to become whole by itself."""

    source: Source
    relative: str
    """Path below the source's root."""
    identity: Identity
    head: bytes
    problem: str | None = None
    """Why it cannot be used: truncated and no longer growing, a forged header, no permission."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.source.root / self.relative


@dataclass(slots=True)
class _Candidate:
    identity: Identity
    since: float
    incomplete: str | None = None


def is_temporary(relative: str) -> bool:
    """Whether a name is one that programs give to files they have not finished.

    Hidden files, the names of rsync, browsers, WinSCP, NFS and Syncthing, and editors' backups.

    Examples
    --------
    >>> [is_temporary(name) for name in ("a/.mic.mrc.Xy12ab", "mic.mrc.part", ".~tmp~/mic.mrc", "mic.mrc")]
    [True, True, True, False]
    """
    *folders, name = relative.split("/")
    return any(folder.startswith(".") for folder in folders) or _is_temporary_name(name)


def _is_temporary_name(name: str) -> bool:
    return name.startswith(".") or name.lower().endswith(TEMPORARY_ENDINGS)


def identity_of(found: os.stat_result) -> Identity:
    """The identity in a stat result."""
    return Identity(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def file_system_of(path: Path, mounts: str = "/proc/self/mountinfo") -> str:
    """Type of the file system that a path is on, such as ``ext4`` or ``nfs4``; empty where it cannot be told."""
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        wanted = str(path.resolve())
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4].replace("\\040", " ")
        inside = wanted == point or wanted.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


def is_remote(kind: str) -> bool:
    """Whether a file system type gives no events for writes from elsewhere.

    Examples
    --------
    >>> is_remote("nfs4"), is_remote("fuse.sshfs"), is_remote("ext4")
    (True, True, False)
    """
    return kind in REMOTE_FILE_SYSTEMS or kind.startswith("fuse.")


class _Hints(FileSystemEventHandler):
    """Puts the paths of events into a queue. It must never raise: an exception here would end the observer."""

    def __init__(self, hints: queue.SimpleQueue[str]) -> None:
        self._hints = hints

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Note both ends of what happened; reading and closing without writing say nothing.

        Nor does a change of a folder: each new file makes one, and walking the folder for it would make the cost of a
        file grow with the session.
        """
        if event.event_type in ("opened", "closed_no_write", "deleted"):
            return
        if event.is_directory and event.event_type not in ("created", "moved"):
            return
        for path in (event.src_path, event.dest_path):
            if path:
                self._hints.put(os.fsdecode(path))


@dataclass
class Watcher:
    """Watches sources and yields arrivals.

    Parameters
    ----------
    sources
        What to watch. Where two want the same file, the first gets it.
    known
        Which of some files of a source were yielded before with the identities that they have; asked of the ledger, so
        nothing is kept in memory here.
    missing
        What a file still lacks by its format's own rules; see `streamprep.formats.missing_part`.
    settle_seconds
        A file is stable when its identity has not changed for this long by our own monotonic clock. Copy tools set old
        modification times, so those say nothing.
    incomplete_seconds
        A stable file that is incomplete for this long is yielded with a problem; if it changes later, again.
    rescan_seconds, poll_seconds
        Least time between full scans where there are events, and where there are none; see `SCAN_SHARE`.
    events
        False relies on scans alone.
    """

    sources: Sequence[Source]
    known: Callable[[Source, Mapping[str, Identity]], Collection[str]]
    missing: Missing
    settle_seconds: float = 1.0
    incomplete_seconds: float = 60.0
    rescan_seconds: float = 30.0
    poll_seconds: float = 5.0
    events: bool = True
    clock: Callable[[], float] = time.monotonic
    stat: Callable[[str], os.stat_result] = field(default=os.stat)
    observer_factory: Callable[[], Any] = Observer
    excluded: Sequence[Path] = ()
    """Folders that are never entered: the session's own output."""

    def __post_init__(self) -> None:
        self._hints: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._candidates: dict[tuple[int, str], _Candidate] = {}
        """What settles, in the order in which it is to be looked at."""
        self._seen: dict[tuple[int, str], float] = {}
        """When each of these was first seen, the oldest first."""
        self._observer: Any = None
        self._scan: Iterator[tuple[int, str]] | None = None
        self._new_folders: deque[Iterator[tuple[int, str]]] = deque()
        self._next_scan = 0.0
        self._scan_cost = 0.0
        """Seconds that the scan under way has taken so far."""
        self._scan_wanted = True
        self._excluded = {text for path in self.excluded for text in (str(path), os.path.realpath(path))}
        self._troubles: dict[str, str] = {}
        self._unlisted: set[str] = set()
        self.scans_completed = 0

    # --- life ---

    def start(self) -> None:
        """Begin to take events, then scan: nothing can slip in between."""
        if not self.events:
            return
        roots = {source.root for source in self.sources if source.names is None}
        remote = {root: kind for root in roots if is_remote(kind := file_system_of(root))}
        for root, kind in remote.items():
            self._trouble(f"events {root}", f"{root} is on {kind}, which gives no events: scanning it instead")
        local = sorted(roots - set(remote))
        if not local:
            return
        try:
            self._observer = self.observer_factory()
            for root in local:
                deep = any(source.root == root and source.depth != 0 for source in self.sources)
                self._observer.schedule(_Hints(self._hints), os.fspath(root), recursive=deep)
            self._observer.start()
        except OSError as error:
            self.stop()
            hint = " (raise fs.inotify.max_user_watches)" if error.errno == errno.ENOSPC else ""
            self._trouble("events", f"no file system events: {error}{hint}; scanning instead")

    def stop(self) -> None:
        """End the observer's threads."""
        observer, self._observer = self._observer, None
        if observer is not None:
            with contextlib.suppress(RuntimeError, OSError):  # some of its threads may never have begun
                observer.stop()
                observer.join(timeout=5)

    def covers(self, folder: Path) -> bool:
        """Whether every file in a folder is looked for already, or none ever is to be."""
        real = Path(os.path.realpath(folder))
        if self._is_excluded(str(folder)) or self._is_excluded(str(real)):
            return True
        roots = [Path(os.path.realpath(source.root)) for source in self.sources if source.depth is None]
        return any(root == real or root in real.parents for root in roots)

    def wants(self, label: str, relative: str) -> bool:
        """Whether a file is looked for, by the label of its folder and its path there."""
        return any(source.label == label and source.wants(relative) for source in self.sources)

    def add(self, source: Source) -> None:
        """Watch a further source of named files; where its folder is watched for others already, for these, too.

        It is scanned only: there may be thousands of such folders, and events take a thread each.
        """
        self.rescan()
        for other in self.sources:
            if other.names is not None and source.names is not None and other.root == source.root:
                other.names.update(source.names)
                return
        self.sources = [*self.sources, source]

    @property
    def troubles(self) -> list[str]:
        """What makes it slower or blind to some files: shown to the user as a degraded state."""
        return list(self._troubles.values())

    @property
    def settling(self) -> int:
        """Files seen and not yet settled."""
        return len(self._candidates)

    @property
    def settling_seconds(self) -> float:
        """For how long the oldest of these has been there."""
        oldest = next(iter(self._seen.values()), None)
        return 0.0 if oldest is None else max(0.0, self.clock() - oldest)

    def idle(self) -> bool:
        """Whether a full scan is done and nothing but incomplete files is left to wait for."""
        waiting = any(found.incomplete is None for found in self._candidates.values())
        looking = self._scan_wanted or self._scan is not None or self._new_folders or not self._hints.empty()
        return self.scans_completed > 0 and not looking and not waiting

    # --- work ---

    def poll(self, *, most: int = 2000) -> list[Arrival]:
        """Take hints, continue the scan, and yield what has settled: at most ``most`` of each."""
        now = self.clock()
        self._check_observer()
        self._take_hints(now, most)
        if self._scan is None and (self._scan_wanted or now >= self._next_scan):
            self._scan, self._scan_wanted = self._walk_all(), False
        begun = self.clock()
        left = most
        while left > 0:
            walk = self._new_folders[0] if self._new_folders else self._scan
            if walk is None:
                break
            wanted = min(left, ASKED_AT_ONCE)
            entries = list(itertools.islice(walk, wanted))
            self._consider(entries, now)
            left -= max(1, len(entries))
            if len(entries) == wanted:
                continue
            if self._new_folders:
                self._new_folders.popleft()
            else:
                self._scan_ended(now, self.clock() - begun)
                break
        if self._scan is not None:
            self._scan_cost += self.clock() - begun
        return self._settled(now, most)

    def _scan_ended(self, now: float, seconds: float) -> None:
        heard = self._has_events()
        share = SCAN_SHARE if heard else SCAN_SHARE_WITHOUT_EVENTS
        pause = (self._scan_cost + seconds) * (1 / share - 1)
        least = self.rescan_seconds if heard else self.poll_seconds
        self._next_scan = now + max(least, min(pause, LONGEST_PAUSE * least))
        self._scan, self._scan_cost = None, 0.0
        self.scans_completed += 1

    def give_up_on_incomplete(self) -> list[Arrival]:
        """Yield, as problems, the files that are stable but incomplete, without waiting longer. For a last round."""
        found = [key for key, candidate in self._candidates.items() if candidate.incomplete is not None]
        return [arrival for key in found if (arrival := self._finish(key, self._candidates[key].incomplete))]

    def present(self) -> Iterator[tuple[Source, str]]:
        """Every file that is there now, settled or not: its source and its path below the source's root."""
        for number, entries in itertools.groupby(self._walk_all(), key=lambda entry: entry[0]):
            others = self._others(number)
            for _, relative in entries:
                if not _is_anothers(others, os.path.join(self.sources[number].root, relative)):  # noqa: PTH118
                    yield self.sources[number], relative

    def rescan(self) -> None:
        """Scan at the next poll, or after the scan that is under way."""
        self._scan_wanted = True

    def _has_events(self) -> bool:
        return self._observer is not None and not any(key.startswith("events") for key in self._troubles)

    def _check_observer(self) -> None:
        if self._observer is None:
            return
        threads = (self._observer, *getattr(self._observer, "emitters", ()))  # one emitter for each watched folder
        if not all(thread.is_alive() for thread in threads):
            self.stop()
            self._trouble("events", "the observer of file system events ended; scanning instead")
            self.rescan()

    def _trouble(self, key: str, message: str) -> None:
        if key not in self._troubles:
            log.warning("%s", message)
        self._troubles[key] = message

    def _take_hints(self, now: float, most: int) -> None:
        hints: dict[str, None] = {}  # a file that is written makes many
        for _ in range(most):
            try:
                hints[self._hints.get_nowait()] = None
            except queue.Empty:
                break
        files = itertools.chain.from_iterable(map(self._hint, hints))
        while entries := list(itertools.islice(files, ASKED_AT_ONCE)):
            self._consider(entries, now)

    def _hint(self, hint: str) -> Iterator[tuple[int, str]]:
        """The file that a hint tells of, for the source that wants it; a folder is looked through later."""
        if self._is_excluded(hint):
            return
        path = Path(hint)
        for number, source in enumerate(self.sources):
            try:
                relative = path.relative_to(source.root).as_posix()
            except ValueError:
                continue
            if os.path.isdir(hint):  # noqa: PTH112 - unlike Path.is_dir it never raises
                if relative == "." or os.path.islink(hint):  # noqa: PTH114
                    self.rescan()  # only a whole scan knows which folders it has seen
                elif not is_temporary(relative) and (source.depth is None or relative.count("/") < source.depth):
                    self._new_folders.append(self._walk(number, source, relative, links=False))
            elif source.wants(relative):
                if not is_temporary(relative):
                    yield number, relative
                return

    def _is_excluded(self, path: str) -> bool:
        return any(_is_below(path, folder) for folder in self._excluded)

    def _walk_all(self) -> Iterator[tuple[int, str]]:
        self._unlisted.clear()
        for number, source in enumerate(self.sources):
            yield from self._walk(number, source, "")
        for key in [key for key in self._troubles if key.startswith("scan ") and key not in self._unlisted]:
            del self._troubles[key]

    def _walk(self, number: int, source: Source, below: str, *, links: bool = True) -> Iterator[tuple[int, str]]:
        """Every wanted file below a folder; each folder once, whatever links lead to it, real folders before links."""
        seen: set[tuple[int, int]] = set()
        for path in self.excluded:
            with contextlib.suppress(OSError):
                seen.add(_place_of(self.stat(os.fspath(path))))
        wants_all = source.pattern is None and source.names is None
        folders = deque([below])
        while folders:
            folder = folders.pop()
            path_here = os.path.join(source.root, folder) if folder else os.fspath(source.root)  # noqa: PTH118
            try:
                place = _place_of(self.stat(path_here))
                if place in seen:
                    continue
                seen.add(place)
                prefix = f"{folder}/" if folder else ""
                near = any(_is_below(other, path_here) or _is_below(path_here, other) for other in self._excluded)
                for entry in _entries(path_here):
                    name = entry.name
                    if _is_temporary_name(name):
                        continue
                    relative = prefix + name
                    try:
                        is_link, is_folder = entry.is_symlink(), entry.is_dir()
                    except OSError:
                        continue
                    if (is_link or near) and self._is_excluded(os.path.realpath(entry.path) if is_link else entry.path):
                        continue
                    if is_folder:
                        if is_link and not (links and self._leads_to_new_data(source, entry.path)):
                            continue
                        if source.depth is None or relative.count("/") < source.depth:
                            (folders.appendleft if is_link else folders.append)(relative)
                    elif wants_all or source.wants(relative):
                        yield number, relative
            except OSError as error:
                gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
                if not (folder and gone):  # a sub-folder may go away at any time, a watched folder not
                    key = f"scan {path_here}"
                    self._unlisted.add(key)
                    self._trouble(key, f"{path_here}: {error.strerror}; not scanned")

    def _leads_to_new_data(self, source: Source, link: str) -> bool:
        """Whether a link to a folder leads neither above what is watched nor into what is watched by itself."""
        target = Path(os.path.realpath(link))
        for other in self.sources:
            root = Path(os.path.realpath(other.root))
            if other.names is None and (root == target or target in root.parents):
                return False
            if other.depth is None and other is not source and root in target.parents:
                return False
        return True

    def _consider(self, entries: Iterable[tuple[int, str]], now: float) -> None:
        """Take up those files that are new or have changed."""
        for number, group in itertools.groupby(entries, key=lambda entry: entry[0]):
            source, others = self.sources[number], self._others(number)
            prefix = os.path.join(source.root, "")  # noqa: PTH118
            found: dict[str, Identity] = {}
            for key in group:
                relative = key[1]
                path = prefix + relative
                if others and _is_anothers(others, path):
                    continue
                identity, candidate = self._identity(path), self._candidates.get(key)
                if identity is None:
                    self._drop(key)
                elif candidate is None:
                    found[relative] = identity
                elif candidate.identity != identity:
                    self._put(key, _Candidate(identity, now))
            if found:
                known = self.known(source, found)
                for relative, identity in found.items():
                    if relative not in known:
                        self._put((number, relative), _Candidate(identity, now))

    def _put(self, key: tuple[int, str], candidate: _Candidate) -> None:
        """Let a file settle, behind all others."""
        self._candidates.pop(key, None)
        self._candidates[key] = candidate
        self._seen.setdefault(key, candidate.since)

    def _drop(self, key: tuple[int, str]) -> None:
        self._candidates.pop(key, None)
        self._seen.pop(key, None)

    def _others(self, number: int) -> list[tuple[str, Source]]:
        """The sources that may take a file before this one does, and how the paths of their files begin."""
        own = os.path.join(self.sources[number].root, "")  # noqa: PTH118
        before = [
            (os.path.join(other.root, ""), other)  # noqa: PTH118
            for other in self.sources[:number]
            if other.names is None
        ]
        return [(prefix, other) for prefix, other in before if prefix.startswith(own) or own.startswith(prefix)]

    def _identity(self, path: str) -> Identity | None:
        """Identity of the regular file at a path; None where there is none, or something else."""
        try:
            found = self.stat(path)
        except OSError:
            return None
        return identity_of(found) if stat_module.S_ISREG(found.st_mode) else None

    def _settled(self, now: float, most: int) -> list[Arrival]:
        """What has been still for long enough. What is looked at and has to wait on goes behind all others."""
        still = itertools.takewhile(lambda item: now - item[1].since >= self.settle_seconds, self._candidates.items())
        arrivals: list[Arrival] = []
        for key, candidate in list(itertools.islice(still, most)):
            number, relative = key
            identity = self._identity(os.path.join(self.sources[number].root, relative))  # noqa: PTH118
            if identity is None:
                self._drop(key)
                continue
            if identity != candidate.identity:
                self._put(key, _Candidate(identity, now))
                continue
            arrival = self._verdict(key, candidate, now)
            if arrival is not None:
                arrivals.append(arrival)
            else:
                self._put(key, candidate)
        return arrivals

    def _verdict(self, key: tuple[int, str], candidate: _Candidate, now: float) -> Arrival | None:
        if candidate.incomplete is not None:  # looked at before, and unchanged since
            if now - candidate.since < self.incomplete_seconds:
                return None
            return self._finish(key, candidate.incomplete)
        path = self.sources[key[0]].root / key[1]
        try:
            with path.open("rb") as file:
                head = file.read(4096)
            lacking = self.missing(path, candidate.identity.size, head)
        except InputError as error:
            return self._finish(key, error.reason)
        except OSError as error:
            return self._finish(key, f"cannot be read: {error.strerror}; make it readable, then: streamprep retry")
        if lacking is not None:
            candidate.incomplete = lacking
            if now - candidate.since >= self.incomplete_seconds:
                return self._finish(key, lacking)
            return None
        return self._finish(key, None, head)

    def _finish(self, key: tuple[int, str], problem: str | None, head: bytes = b"") -> Arrival | None:
        candidate = self._candidates[key]
        self._drop(key)
        return Arrival(self.sources[key[0]], key[1], candidate.identity, head, problem)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, by name; a folder of very many in parts, so that its listing takes no more memory."""
    with os.scandir(folder) as entries:
        while part := sorted(itertools.islice(entries, LISTED_AT_ONCE), key=lambda entry: entry.name):
            yield from part


def _place_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _is_below(path: str, folder: str) -> bool:
    """Whether a path is that of a folder, or leads into it."""
    return path == folder or path.startswith(os.path.join(folder, ""))  # noqa: PTH118


def _is_anothers(others: Iterable[tuple[str, Source]], path: str) -> bool:
    """Whether one of these sources, given with how the paths of its files begin, would take the file of this path."""
    return any(path.startswith(prefix) and other.wants(path[len(prefix) :]) for prefix, other in others)
