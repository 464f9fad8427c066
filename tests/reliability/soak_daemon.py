"""The program, as a soak runs it: its wall clock jumps, and it notes how long commits, publications and scans take.

Usage: ``python -m tests.reliability.soak_daemon NOTES ARGUMENTS…``; NOTES receives JSON lines.
"""

from __future__ import annotations

import functools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

JUMPS_SECONDS = (0.0, 0.0, 3600.0, -3600.0, -86_400.0, 3.2e8)
"""What the wall clock is wrong by, for a while; files have the right time."""
JUMP_EVERY_SECONDS = 10.0
NOTED_EVERY = 100


def jumping(real: Callable[[], float], rng: random.Random) -> Callable[[], float]:
    """A wall clock that is set anew every now and then."""
    state = {"offset": 0.0, "until": time.monotonic()}

    def now() -> float:
        if time.monotonic() > state["until"]:
            state["offset"], state["until"] = rng.choice(JUMPS_SECONDS), time.monotonic() + JUMP_EVERY_SECONDS
        return real() + state["offset"]

    return now


class Notes:
    """Times of one kind of work, told in JSON lines."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._commits: list[float] = []
        self._begun = time.monotonic()

    def write(self, **said: Any) -> None:
        self._file.write(json.dumps({"alive_seconds": time.monotonic() - self._begun, **said}) + "\n")

    def commit(self, seconds: float) -> None:
        self._commits.append(seconds)
        if len(self._commits) == NOTED_EVERY:
            ordered = sorted(self._commits)
            self.write(what="commit", seconds=sum(ordered) / len(ordered), most=ordered[-1])
            self._commits = []


def instrument(notes: Notes) -> None:
    """Time what must not become slower as the session grows."""
    from streamprep.committer import Committer, Result
    from streamprep.watcher import Watcher

    commit, publish, walk = Committer.commit, Committer._publish, Watcher._walk_all

    @functools.wraps(commit)
    def timed_commit(self: Committer, batch: Sequence[Result]) -> Any:
        before = time.perf_counter()
        faults = commit(self, batch)
        seconds = (time.perf_counter() - before) / len(batch)
        for _ in batch:
            notes.commit(seconds)
        return faults

    @functools.wraps(publish)
    def timed_publish(self: Committer, name: str, rows: int) -> None:
        before = time.perf_counter()
        publish(self, name, rows)
        notes.write(what="publish", table=name, rows=rows, seconds=time.perf_counter() - before)

    @functools.wraps(walk)
    def timed_walk(self: Watcher) -> Iterator[tuple[int, str]]:
        before, files = time.perf_counter(), 0
        for found in walk(self):
            files += 1
            yield found
        notes.write(what="scan", files=files, seconds=time.perf_counter() - before)

    Committer.commit = timed_commit  # type: ignore[method-assign]
    Committer._publish = timed_publish  # type: ignore[method-assign]
    Watcher._walk_all = timed_walk  # type: ignore[method-assign]


if __name__ == "__main__":
    time.time = jumping(time.time, random.Random(5))  # before anything binds it
    from streamprep.cli import main

    instrument(Notes(Path(sys.argv[1])))
    del sys.argv[1]
    main()
