"""What the dashboard knows of a session: read from the output folder, once for all who look."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from streamprep.errors import StreamprepError
from streamprep.history import MOST_AT_ONCE, Done, History
from streamprep.inspection import OLD_SECONDS
from streamprep.journal import Commit
from streamprep.naming import STATE_FOLDER
from streamprep.snapshot import Snapshot
from streamprep.web import pictures
from streamprep.web.items import Row, done_row, pending_rows
from streamprep.web.pictures import Picture

REPORT = "report.html"
STUCK_SECONDS = 15.0
"""Where one look takes longer, the file system does not answer."""

Daemon = Literal["unknown", "running", "silent", "ended"]
_SNAPSHOT = TypeAdapter(Snapshot)
_BLANK: Mapping[str, Any] = {
    "output": "", "mode": "starting", "message": "", "plan": (), "device": "", "workers": 0, "elapsed_seconds": 0.0,
    "jobs": {}, "waiting": (), "waiting_count": 0, "settling": 0, "running": (), "rows": {}, "items_per_hour": 0.0,
    "particles_per_second": 0.0, "oldest_seconds": 0.0, "operation_seconds": {}, "failures": (), "failed": 0,
    "rejected": 0, "warnings": 0, "unknown_files": 0, "unmatched": (), "degraded": (), "disk_free_bytes": 0,
}  # fmt: skip
"""What a state of another version may lack."""


@dataclass(frozen=True, slots=True)
class View:
    """All that is known of a session at one moment."""

    version: int = 0
    """It grows whenever something else is known."""
    rows_version: int = 0
    """It grows whenever the rows of the table of items are others, but for how long something has taken."""
    output: Path = Path()
    exists: bool = False
    """Whether the output folder is there."""
    daemon: Daemon = "unknown"
    """Silent: it wrote nothing for a while, and had not ended. Unknown: it never wrote anything."""
    snapshot: Snapshot | None = None
    written: float = 0.0
    """When the snapshot was written, by the monotonic clock."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    done: Mapping[str, Row] = field(default_factory=dict)
    """By item, in the order in which they were done."""
    loaded: bool = False
    """Whether the log of commits was read to its end; not so where it cannot be read."""
    pictures: tuple[Picture, ...] = ()
    has_report: bool = False
    troubles: tuple[str, ...] = ()
    """What could not be read, and why."""

    @property
    def pending(self) -> dict[str, Row]:
        """By name, what is in work, waits or failed, as far as the daemon named it last."""
        if self.snapshot is None:
            return {}
        return pending_rows(self.snapshot, self.done, running=self.daemon == "running")


class Watch:
    """Looks at a session again and again; `view` is what was found last.

    Parameters
    ----------
    find
        The output folder, and whether it is there.
    clock, now
        Monotonic clock, and wall clock.
    """

    def __init__(
        self,
        find: Callable[[], tuple[Path, bool]],
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._find, self._clock, self._now = find, clock, now
        self.view = View()
        self.looked = clock()
        """When the last look ended."""
        self._history: History | None = None
        self._rows: dict[str, Row] = {}
        self._files: dict[Path, tuple[tuple[int, ...], Any]] = {}
        self._written: float | None = None

    @property
    def age_seconds(self) -> float:
        """How old what the daemon said last is."""
        return max(0.0, self._clock() - self.view.written)

    @property
    def stuck_seconds(self) -> float:
        """For how long the output folder has not answered; 0 where it does."""
        waited = self._clock() - self.looked
        return waited if waited > STUCK_SECONDS else 0.0

    def now(self) -> float:
        """Seconds since 1970."""
        return self._now()

    def commit(self, done: Done) -> Commit | None:
        """All that the log says of an item; None where it says so no more.

        Raises
        ------
        OSError, StreamprepError
            The log cannot be read.
        """
        return None if self._history is None else self._history.commit(done)

    def look(self) -> bool:
        """Read what has changed; True when anything has. One thread at a time may call it."""
        before, troubles = self.view, list[str]()
        try:
            output, exists = self._find()
        except OSError as error:
            output, exists = before.output, False
            troubles.append(f"the output folder cannot be looked for: {error.strerror or error}")
        if self._history is None or self._history.output != output:
            self._history = History(output)
            self._rows, self._files, self._written = {}, {}, None
        state = output / STATE_FOLDER
        snapshot = self._read(state / "status.json", _snapshot, troubles)
        plan = self._read(state / "plan.json", _plan, troubles)
        made = self._read(output / pictures.FOLDER / pictures.INDEX, pictures.read_index, troubles)
        loaded = self._read_history(self._history, troubles)
        found = View(
            before.version + 1,
            before.rows_version,
            output,
            exists,
            self._daemon(snapshot),
            snapshot,
            self._written or 0.0,
            plan or {},
            self._rows,
            loaded,
            made or (),
            (output / REPORT).is_file(),
            tuple(troubles),
        )
        self.looked = self._clock()
        if all(getattr(found, name) == getattr(before, name) for name in _COMPARED) and found.done is before.done:
            return False
        if found.done is not before.done or _named(found) != _named(before):
            found = dataclasses.replace(found, rows_version=found.rows_version + 1)
        self.view = found
        return True

    def _daemon(self, snapshot: Snapshot | None) -> Daemon:
        if snapshot is None or self._written is None:
            return "unknown"
        if snapshot.mode == "finished":
            return "ended"
        return "silent" if self._clock() - self._written > OLD_SECONDS else "running"

    def _read(self, path: Path, parse: Callable[[Path], Any], troubles: list[str]) -> Any:
        """What a file says; as before where it is the same file, None where it is not there."""
        known = self._files.get(path)
        try:
            found = path.stat()
            identity = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if known is None or known[0] != identity:
                known = self._files[path] = (identity, parse(path))
                if parse is _snapshot:
                    self._note_written(found.st_mtime)
        except (FileNotFoundError, NotADirectoryError):
            self._files.pop(path, None)
            return None
        except (OSError, ValueError, RecursionError) as error:
            said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
            troubles.append(f"{path.name} cannot be read: {said}")
        return None if known is None else known[1]

    def _note_written(self, modified: float) -> None:
        """Clocks of file servers differ: only what was there before the first look is dated by its file."""
        age = max(0.0, self._now() - modified) if self._written is None else 0.0
        self._written = self._clock() - age

    def _read_history(self, history: History, troubles: list[str]) -> bool:
        """Read on; True at the end of the log. A new dictionary stands for other contents."""
        loaded = False
        try:
            loaded = len(history.update()) < MOST_AT_ONCE
        except OSError as error:
            troubles.append(f"the log of commits cannot be read: {error.strerror or error}")
        except StreamprepError as error:
            troubles.append(f"{error}; where that version is older, streamprep run upgrades it")
        known, done = self._rows, history.done
        last = next(reversed(known.values()), None)
        if len(known) != len(done) or (last is not None and last.done is not next(reversed(done.values()))):
            self._rows = {
                name: row if (row := known.get(name)) is not None and row.done is made else done_row(made)
                for name, made in done.items()
            }
        return loaded


_COMPARED = ("output", "exists", "daemon", "snapshot", "plan", "loaded", "pictures", "has_report", "troubles")


def _named(view: View) -> object:
    """What stands in the table of items besides those that are done, and over it."""
    said = view.snapshot
    if said is None:
        return view.exists, view.troubles, view.loaded, view.pictures
    named = [(name, why) for name, why, _ in said.waiting], [name for name, _ in said.running[: said.workers]]
    counted = said.waiting_count, said.failed, said.rejected, said.message
    return view.daemon, view.troubles, view.loaded, view.pictures, view.has_report, named, counted, said.failures


def _snapshot(path: Path) -> Snapshot:
    said = json.loads(path.read_bytes())
    if not isinstance(said, dict):
        raise ValueError("it holds no state")
    try:
        return _SNAPSHOT.validate_python({**_BLANK, **said})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}; was it written by another version of streamprep?") from error


def _plan(path: Path) -> Mapping[str, Any]:
    said = json.loads(path.read_bytes())
    steps = said.get("steps", []) if isinstance(said, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ValueError("it holds no plan")
    return dict(said)
