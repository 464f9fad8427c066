"""The state of a session at one moment: what the engine hands to consoles, and `streamprep status` prints."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RATE_WINDOW_SECONDS = 300.0

Mode = Literal["starting", "running", "waiting", "paused", "stopped", "draining", "finished"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step on the way of what is acquired: how much passed it lately, and what has not yet."""

    name: str
    """settling, waiting, processing, committing or publishing."""
    per_hour: float
    """Items that left it, over the last minutes; rows of the sets for publishing."""
    backlog: int
    """Items that have not left it yet; rows for publishing."""
    oldest_seconds: float
    """Age of the oldest of these, since it was noticed; 0 where there is none.

    For settling, committing and publishing since it came to this stage.
    """


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU at one moment."""

    name: str
    load_percent: float
    memory_used_bytes: int
    memory_total_bytes: int
    temperature_celsius: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a session at one moment: what consoles draw and `streamprep status` prints."""

    output: str
    mode: Mode
    message: str
    """Why it is paused or stopped; empty otherwise."""
    plan: tuple[str, ...]
    device: str
    workers: int
    elapsed_seconds: float
    jobs: dict[str, int]
    """Jobs in each state."""
    waiting: tuple[tuple[str, str, float], ...]
    """The first items that wait: their name, what for, for how many seconds."""
    waiting_count: int
    settling: int
    running: tuple[tuple[str, float], ...]
    """Items in the workers, and for how long [s]."""
    rows: dict[str, int]
    """Committed rows of each set that has any, by the name of its first table."""
    items_per_hour: float
    particles_per_second: float
    oldest_seconds: float
    """Age of the oldest item that is not done."""
    operation_seconds: dict[str, float]
    """Mean time of each operation on one item."""
    failures: tuple[dict[str, Any], ...]
    """The newest failures and rejections."""
    failed: int
    rejected: int
    warnings: int
    unknown_files: int
    """Files of no known kind."""
    unmatched: tuple[tuple[str, str], ...]
    """The first that tables speak of and that are not there, as of the last rescan: kind, name."""
    degraded: tuple[str, ...]
    disk_free_bytes: int
    items: str = "micrographs"
    """What the session works on: micrographs, stacks (of particles), maps, or items where it is several."""
    started: float = 0.0
    """When this run began, seconds since 1970."""
    taken: float = 0.0
    """When this was taken, seconds since 1970."""
    stages: tuple[Stage, ...] = ()
    """In the order in which items pass them."""
    arrived_seconds: float | None = None
    """How long ago the last file arrived; None where none did in this run."""
    finished_seconds: float | None = None
    """How long ago the last item ended, done or not; None where none did in this run."""
    recent_warnings: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What operations warned of, the newest items first: the item, the warnings."""
    disk_total_bytes: int = 0
    """0 where the disk does not tell its space."""
    disk_reserve_bytes: int = 0
    """Below this much free space the session pauses."""
    disk_full_seconds: float | None = None
    """When the reserve is reached at the pace of the last minutes; None where the space does not shrink."""
    gpus: tuple[Gpu, ...] = ()
    """The GPUs that the session uses, where they can be asked."""


def rows_of_sets(tables: Mapping[str, int]) -> dict[str, int]:
    """Of the rows of each table those of each set, by the name of its first table: further forms hold the same rows.

    Examples
    --------
    >>> rows_of_sets({"particles.star": 5, "particles.xmd": 5, "coordinates/particles.star": 6})
    {'particles.star': 5, 'coordinates/particles.star': 6}
    """
    first: dict[str, str] = {}
    for name in tables:
        first.setdefault(name.rpartition(".")[0], name)
    return {name: tables[name] for name in first.values()}


def clean(text: object) -> str:
    """Text from outside, on one line and without control characters, for a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text))


class LogForm(logging.Formatter):
    """Lines of a log file: text from outside cannot steer the terminal that shows it, nor pass for a further line."""

    def format(self, record: logging.LogRecord) -> str:
        """One record; all but its first line are indented."""
        text = super().format(record).replace("\n", "\n  ")
        return "".join(
            char if char.isprintable() or char == "\n" or _is_byte(char) else "\N{REPLACEMENT CHARACTER}"
            for char in text
        )


def _is_byte(char: str) -> bool:
    """Whether it stands for a byte of a name that is no text; the file has its number."""
    return "\udc80" <= char <= "\udcff"


def unmatched_text(kind: str, name: str) -> str:
    """What a table says of something that is not there, for people."""
    return f"without a stack: {name}" if kind == "rows" else f"without a micrograph: {kind} for {name}"


@dataclass(slots=True)
class Rate:
    """How much happened in the last minutes, summed up by the second."""

    sums: deque[tuple[float, int]] = field(default_factory=deque)
    """Beginning of a second, and how much in it."""

    def add(self, now: float, amount: int = 1) -> None:
        """Count something."""
        if self.sums and now - self.sums[-1][0] < 1.0:
            since, before = self.sums.pop()
            self.sums.append((since, before + amount))
        elif amount:
            self.sums.append((now, amount))

    def per_hour(self, now: float, since: float) -> float:
        """How much per hour, over the last minutes or since the start."""
        while self.sums and now - self.sums[0][0] > RATE_WINDOW_SECONDS:
            self.sums.popleft()
        span = max(1.0, min(RATE_WINDOW_SECONDS, now - since))
        return 3600 * sum(amount for _, amount in self.sums) / span
