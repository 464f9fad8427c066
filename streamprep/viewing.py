"""Takes the snapshots of a session: counts what passes each stage, and asks the ledger, the watcher and the disk."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamprep.committer import Committer
from streamprep.gpu_load import GpuLoad
from streamprep.ledger import Ledger
from streamprep.model import Kind
from streamprep.snapshot import RATE_WINDOW_SECONDS, Mode, Rate, Snapshot, Stage
from streamprep.watcher import Watcher

VIEWS_SECONDS = 0.5
UNMATCHED_SHARE = 0.01
"""Most of the time that looking for entries of tables without a micrograph may take."""
KEPT = 50
"""So many failures, warnings, and items that wait are told one by one."""
KEPT_UNMATCHED = 10
DISK_EVERY_SECONDS = 5.0
DISK_LEAST_SECONDS = 60.0
"""The pace at which the disk fills up is that of the last minutes, and of so long at least."""

_ITEMS: Mapping[tuple[Kind, ...], str] = {
    ("micrograph",): "micrographs",
    ("particles",): "stacks",
    ("map",): "maps",
}
"""What to call what a session works on."""


def called(kinds: Sequence[Kind]) -> str:
    """What to call the items of a session that works on these kinds."""
    return _ITEMS.get(tuple(kinds), "items")


@dataclass(slots=True)
class Disk:
    """The disk that the output is on, and at which pace it fills up."""

    output: Path
    reserve_bytes: int
    looks: deque[tuple[float, int]] = field(default_factory=deque)
    """When its free space was looked at in the last minutes, and how much there was."""

    def usage(self) -> tuple[int, int]:
        """Total and free space [bytes].

        Raises
        ------
        OSError
            It cannot be told.
        """
        found = shutil.disk_usage(self.output)
        return found.total, found.free

    def full_in(self, now: float, free: int) -> float | None:
        """When the reserve is reached at the pace of the last minutes [s]; None where the space does not shrink."""
        if not self.looks or now - self.looks[-1][0] >= DISK_EVERY_SECONDS:
            self.looks.append((now, free))
        while now - self.looks[0][0] > RATE_WINDOW_SECONDS:
            self.looks.popleft()
        since, before = self.looks[0]
        if now - since < DISK_LEAST_SECONDS or free >= before:
            return None
        return max(0, free - self.reserve_bytes) * (now - since) / (before - free)


@dataclass(slots=True)
class Work:
    """What the engine has in hand at one moment; all times are those of its monotonic clock."""

    mode: Mode
    message: str
    workers: int
    running: Sequence[tuple[str, float]]
    """Items in the workers, and since when."""
    uncommitted: Sequence[float]
    """Of the items that the workers are done with and that are not committed: since when."""
    troubles: tuple[str, ...]


class View:
    """Takes the snapshots of one session.

    Parameters
    ----------
    output, plan, device, items
        What each snapshot says of the session.
    ledger, watcher, committer, disk, gpus
        What is asked.
    rescan_seconds
        Least time between two looks at what takes long.
    clock, now
        Monotonic clock, wall clock.
    """

    def __init__(
        self,
        *,
        output: Path,
        plan: tuple[str, ...],
        device: str,
        items: str,
        ledger: Ledger,
        watcher: Watcher,
        committer: Committer,
        disk: Disk,
        gpus: GpuLoad | None,
        rescan_seconds: float,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._output, self._plan, self._device, self._items = str(output), plan, device, items
        self._ledger, self._watcher, self._committer, self._disk, self._gpus = ledger, watcher, committer, disk, gpus
        self._rescan_seconds = rescan_seconds
        self._clock, self._now = clock, now
        self._began, self._started = clock(), now()
        self._arrived, self._joined, self._worked = Rate(), Rate(), Rate()
        self._committed, self._particles, self._rows = Rate(), Rate(), Rate()
        self._last_arrival: float | None = None
        self._last_end: float | None = None
        self._operations: dict[str, tuple[int, float]] = {}
        self._jobs_before: int | None = None
        self._published_before: int | None = None
        self._seen_changes = -1
        self._next_views = 0.0
        self._views: dict[str, Any] = {}
        self._next_unmatched = 0.0
        self._unmatched: tuple[tuple[str, str], ...] = ()

    # --- what the engine tells ---

    def begin(self) -> None:
        """The session starts: what was made before it counts for no rate."""
        self._measure()

    def arrived(self, count: int) -> None:
        """Files were taken in."""
        if count:
            self._last_arrival = self._clock()
            self._arrived.add(self._last_arrival, count)

    def worked(self) -> None:
        """A worker is done with an item, whatever came of it."""
        self._worked.add(self._clock())

    def committed(self, particles: int, timings: Sequence[tuple[str, float]]) -> None:
        """An item was committed; with how many particles, and how long each operation took [s]."""
        self._committed.add(self._clock())
        self._particles.add(self._clock(), particles)
        for name, seconds in timings:
            count, total = self._operations.get(name, (0, 0.0))
            self._operations[name] = (count + 1, total + seconds)

    def ended(self) -> None:
        """An item ended, done or not."""
        self._last_end = self._clock()

    # --- what onlookers see ---

    def take(self, work: Work) -> Snapshot:
        """The state of the session now.

        Raises
        ------
        OSError
            The ledger cannot be read.
        """
        clock, now = self._clock(), self._now()
        last = work.mode in ("finished", "stopped")
        self._ask_ledger(clock, last=last)
        missing, behind = self._measure()
        views = self._views
        per_hour = self._committed.per_hour(clock, self._began)
        try:
            total, free = self._disk.usage()
            full_in = self._disk.full_in(clock, free)
        except OSError:
            total, free, full_in = 0, 0, None
        return Snapshot(
            output=self._output,
            mode="waiting" if work.mode == "running" and not work.running else work.mode,
            message=work.message,
            plan=self._plan,
            device=self._device,
            workers=work.workers,
            elapsed_seconds=clock - self._began,
            jobs=views["jobs"],
            waiting=tuple((item, reason, now - since) for item, reason, since in views["waiting"]),
            waiting_count=views["waiting_count"],
            settling=self._watcher.settling,
            running=tuple((name, clock - since) for name, since in work.running),
            rows=self._committer.row_counts(),
            items_per_hour=per_hour,
            particles_per_second=self._particles.per_hour(clock, self._began) / 3600,
            oldest_seconds=max(_age(now, views["ready"]), _age(now, views["queued"])),
            operation_seconds={name: total / count for name, (count, total) in self._operations.items()},
            failures=views["failures"],
            failed=views["failed"],
            rejected=views["rejected"],
            warnings=views["warnings"],
            unknown_files=views["unknown"],
            unmatched=self._unmatched,
            degraded=work.troubles,
            disk_free_bytes=free,
            items=self._items,
            started=self._started,
            taken=now,
            stages=self._stages(work, clock, now, missing, behind, per_hour),
            arrived_seconds=None if self._last_arrival is None else clock - self._last_arrival,
            finished_seconds=None if self._last_end is None else clock - self._last_end,
            recent_warnings=views["recent"],
            disk_total_bytes=total,
            disk_reserve_bytes=self._disk.reserve_bytes,
            disk_full_seconds=full_in,
            gpus=self._gpus.gpus if self._gpus is not None else (),
        )

    def _stages(
        self, work: Work, clock: float, now: float, missing: int, behind: float, committed: float
    ) -> tuple[Stage, ...]:
        views, began = self._views, self._began
        jobs, held = views["jobs"], len(work.uncommitted)
        processing = max(0, jobs.get("ready", 0) + jobs.get("claimed", 0) - held)
        oldest = clock - min(work.uncommitted) if work.uncommitted else 0.0
        return (
            Stage(
                "settling",
                self._arrived.per_hour(clock, began),
                self._watcher.settling,
                self._watcher.settling_seconds,
            ),
            Stage("waiting", self._joined.per_hour(clock, began), views["waiting_count"], _age(now, views["ready"])),
            Stage(
                "processing",
                self._worked.per_hour(clock, began),
                processing,
                _age(now, views["queued"]) if processing else 0.0,
            ),
            Stage("committing", committed, held, oldest),
            Stage("publishing", self._rows.per_hour(clock, began), missing, behind),
        )

    def _ask_ledger(self, clock: float, *, last: bool) -> None:
        ledger = self._ledger
        if ledger.changes != self._seen_changes and (clock >= self._next_views or last):
            changes, files = ledger.changes, ledger.file_counts()
            self._views = {
                "jobs": ledger.job_counts(),
                "waiting": ledger.waiting(KEPT),
                "waiting_count": ledger.waiting_count(),
                "failed": ledger.ended_count("failed"),
                "rejected": ledger.ended_count("rejected"),
                "unknown": files.get(("other", "rejected"), 0),
                "failures": tuple(ledger.failures(KEPT)),
                "warnings": ledger.warning_count(),
                "recent": tuple((item, tuple(said)) for item, said in ledger.warnings(KEPT)),
                "ready": ledger.oldest("ready"),
                "queued": ledger.oldest("queued"),
            }
            self._seen_changes, self._next_views = changes, clock + VIEWS_SECONDS  # once all of them could be read
        if clock >= self._next_unmatched or last:  # it looks at every entry
            self._unmatched = tuple(ledger.unmatched(KEPT_UNMATCHED))
            pause = (self._clock() - clock) / UNMATCHED_SHARE
            self._next_unmatched = clock + max(self._rescan_seconds, pause)

    def _measure(self) -> tuple[int, float]:
        """Count what was joined and published since the last look; returns what is unpublished, and for how long."""
        jobs = sum((self._views["jobs"] if self._views else self._ledger.job_counts()).values())
        missing, behind = self._committer.unpublished()
        published = sum(self._committer.row_counts().values()) - missing
        if self._jobs_before is not None and self._published_before is not None:
            self._joined.add(self._clock(), max(0, jobs - self._jobs_before))
            self._rows.add(self._clock(), max(0, published - self._published_before))
        self._jobs_before, self._published_before = jobs, published
        return missing, behind


def _age(now: float, since: float | None) -> float:
    return 0.0 if since is None else max(0.0, now - since)
