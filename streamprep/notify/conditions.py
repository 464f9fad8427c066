"""When something is worth a message: conditions that begin and end, each told once. No clock, no input or output."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from streamprep.config import NotifySection
from streamprep.snapshot import Snapshot

RECENT = 50
"""Of so many items that ended last the share of failures is taken."""
LEAST_FAILURES = 3
GAP_SECONDS = 600.0
"""Least time from when a condition was told to be over until it is told again."""

Found = tuple[bool | None, str]
"""Whether a condition holds (None: as it was told last), and what there is to say."""


@dataclass(frozen=True, slots=True)
class Change:
    """A condition that began, or that is over."""

    event: str
    begins: bool
    text: str


@dataclass(slots=True)
class _Told:
    """What was told of one condition."""

    begin_after: float
    """It has to hold for so long [s]."""
    end_after: float
    """It has to be over for so long [s]."""
    begun: bool = False
    since: float | None = None
    """Since when it is not as it was told."""
    ended: float | None = None

    def is_due(self, holds: bool | None, now: float) -> bool:
        if holds is None or holds == self.begun:
            self.since = None
            return False
        if self.since is None:
            self.since = now
        rested = self.begun or self.ended is None or now - self.ended >= GAP_SECONDS
        return rested and now - self.since >= (self.end_after if self.begun else self.begin_after)

    def tell(self, now: float) -> None:
        self.begun, self.since = not self.begun, None
        if not self.begun:
            self.ended = now


@dataclass(slots=True)
class Watch:
    """The conditions of one session.

    A condition is told when it begins and when it is over, in turns. Where the hour has had its messages, what is due
    waits; what began and went by meanwhile is not told at all.

    Parameters
    ----------
    settings
        What is too long and too much.
    """

    settings: NotifySection
    _told: dict[str, _Told] = field(
        default_factory=lambda: {
            "stopped": _Told(0, 0),
            "paused": _Told(30, 60),  # a disk that refuses once is back after ten seconds
            "disk": _Told(60, 300),
            "failures": _Told(0, 60),
            "stall": _Told(0, 0),
            "quiet": _Told(60, 0),  # after a pause it takes a scan until arrivals are seen
        }
    )
    _sent: deque[float] = field(default_factory=deque)
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))
    _last_failure: str = ""
    _ended: int = 0
    _seen_ended: int = 0
    _waited: int | None = None
    """How many items waited when the last one ended."""
    _moved: float | None = None
    """When an item ended, or there was nothing to do."""

    def item_finished(self, item: str, state: str, reason: str | None) -> None:
        """Count how an item ended."""
        self._ended += 1
        if state in ("done", "rejected", "failed"):
            self._recent.append(state == "failed")
        if state == "failed":
            self._last_failure = f"{item}: {reason}"

    def admit(self, now: float) -> bool:
        """Count a message, unless the hour has had its number of them."""
        while self._sent and now - self._sent[0] >= 3600:
            self._sent.popleft()
        if len(self._sent) >= self.settings.messages_per_hour:
            return False
        self._sent.append(now)
        return True

    def observe(self, snapshot: Snapshot, now: float) -> list[Change]:
        """What began or ended, the worst first; ``now`` is of a monotonic clock."""
        if snapshot.mode not in ("running", "waiting", "paused", "stopped"):
            return []
        at_work = snapshot.mode in ("running", "waiting")
        look: dict[str, Callable[[], Found]] = {
            "stopped": lambda: (snapshot.mode == "stopped", snapshot.message or "it takes new work again"),
            "paused": lambda: (snapshot.mode == "paused", snapshot.message or "it goes on again, after a pause"),
            "disk": lambda: self._disk(snapshot) if snapshot.mode != "paused" else (None, ""),
            "failures": self._failures,
            "stall": lambda: self._stall(snapshot, now, at_work),
            "quiet": lambda: self._quiet(snapshot) if at_work else (None, ""),
        }
        changes = []
        for event, told in self._told.items():
            holds, text = look[event]()
            if told.is_due(holds, now) and self.admit(now):
                told.tell(now)
                changes.append(Change(event, told.begun, text))
        return changes

    def _disk(self, snapshot: Snapshot) -> Found:
        free, full = snapshot.disk_free_bytes, snapshot.disk_full_seconds
        reserve, soon = snapshot.disk_reserve_bytes, 3600 * self.settings.disk_hours
        said = f"{free / 2**30:,.1f} GiB free"
        if free < 2 * reserve or (full is not None and full < soon):
            pace = f", at this pace full in {span(full)}" if full is not None else ""
            return True, f"the disk is nearly full: {said}{pace}"
        if free >= 3 * reserve and (full is None or full >= 1.5 * soon):
            return False, f"there is room on the disk again: {said}"
        return None, ""

    def _failures(self) -> Found:
        failed, of, share = sum(self._recent), len(self._recent), self.settings.failures_percent / 100
        said = f"{failed} of the last {of} items failed"
        if share and failed >= LEAST_FAILURES and failed > share * of:
            return True, f"{said}, the last: {self._last_failure}"
        if failed <= share * of / 2:
            return False, f"fewer failures again: {said}"
        return None, ""

    def _stall(self, snapshot: Snapshot, now: float, at_work: bool) -> Found:
        ended, self._seen_ended = self._ended != self._seen_ended, self._ended
        if ended:
            self._waited = snapshot.waiting_count
        queued = snapshot.jobs.get("ready", 0) + snapshot.jobs.get("claimed", 0)
        more_wait = self._waited is not None and snapshot.waiting_count > self._waited
        if ended or self._moved is None or not at_work or not (queued or more_wait):
            self._moved = now
        if not at_work:
            return None, ""
        stood, limit = now - self._moved, 60 * self.settings.stall_minutes
        if not limit or stood < limit:
            return False, "items are finished again" if queued or more_wait or ended else "nothing is queued any more"
        if queued:
            oldest = max(snapshot.running, key=lambda running: running[1], default=None)
            at = f"; longest in work, for {span(oldest[1])}, is {oldest[0]}" if oldest else ""
            return True, f"nothing was finished for {span(stood)}, and {queued} jobs are queued{at}"
        first = "".join(f"; the first, {item}, {reason}" for item, reason, _ in snapshot.waiting[:1])
        return True, f"nothing was finished for {span(stood)}, and more and more items wait{first}"

    def _quiet(self, snapshot: Snapshot) -> Found:
        age, limit = snapshot.arrived_seconds, 60 * self.settings.quiet_minutes
        if limit and age is not None and age >= limit:
            return True, f"no file has arrived for {span(age)}: has the acquisition stopped?"
        return False, "files arrive again"


def span(seconds: float) -> str:
    """A time span for people, to the minute.

    Examples
    --------
    >>> span(20), span(1200), span(7500)
    ('1 min', '20 min', '2 h 05 min')
    """
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
