"""A whole session in one process, with a clock that nobody waits for, whose disk fails and is mended again.

``python -m tests.reliability.pausing CONFIG FAULTS`` runs it under libfiu's preload library and prints what happened.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamprep import hookimpl
from streamprep.config import load
from streamprep.engine import Engine
from streamprep.executors import InlineExecutor
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins

PAUSES = 3
"""The disk is mended after so many."""


class Clock:
    """A clock that goes on by itself at every look."""

    def __init__(self, step: float = 0.02) -> None:
        self.time, self.step = 0.0, step

    def __call__(self) -> float:
        self.time += self.step
        return self.time


class Instant:
    """An event that nobody waits for."""

    def wait(self, seconds: float) -> None: ...

    def clear(self) -> None: ...

    def set(self) -> None: ...


@dataclass
class Faults:
    """Breaks the disk at a moment, and mends it after some pauses."""

    clock: Clock
    begin: Callable[[], None]
    end: Callable[[], None]
    moment: str
    """``started``: before anything is taken in; ``claimed``: when the first job is about to run."""
    pauses: list[float] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)
    begun: bool = False

    def _begin(self) -> None:
        if not self.begun:
            self.begun = True
            self.begin()

    @hookimpl
    def run_started(self) -> None:
        if self.moment == "started":
            self._begin()

    @hookimpl
    def item_started(self) -> None:
        self._begin()

    @hookimpl
    def warning_raised(self, message: str) -> None:
        self.messages.append(message)
        if message.startswith("paused"):
            self.pauses.append(self.clock.time)
            if len(self.pauses) == PAUSES:
                self.end()

    @hookimpl
    def snapshot_taken(self, snapshot: Any) -> None:
        if not self.modes or self.modes[-1] != snapshot.mode:
            self.modes.append(snapshot.mode)


@dataclass(frozen=True)
class Told:
    """What happened in a session."""

    jobs: dict[str, int]
    pauses: list[float]
    """When, by its own clock [s]."""
    messages: list[str]
    modes: list[str]


def run(config: Path, begin: Callable[[], None], end: Callable[[], None], moment: str, *overrides: str) -> Told:
    """Process a session to its end."""
    clock = Clock()
    faults = Faults(clock, begin, end, moment)
    loaded = load(config, ["session.device=cpu", "session.settle_seconds=0", "session.reserve_mib=0",
                           'session.events="off"', "session.max_attempts=1", *overrides])  # fmt: skip
    plugins = load_plugins(environ={})
    plugins.manager.register(faults)
    engine = Engine(loaded, plugins, resolve(loaded, plugins), once=True, executor=InlineExecutor, clock=clock)
    engine._wake = Instant()  # type: ignore[assignment]
    try:
        last = engine.run()
    finally:
        end()
    return Told(dict(last.jobs), faults.pauses, faults.messages, faults.modes)


@dataclass(frozen=True)
class Fault:
    """A fault of the C library that libfiu makes."""

    point: str
    errno: int
    once: bool = False
    probability: float = 1.0


def preload() -> str | None:
    """Path of libfiu's preload library, where it is installed."""
    for folder in ("/usr/lib/fiu", "/usr/local/lib/fiu"):
        if (path := Path(folder) / "fiu_posix_preload.so").exists():
            return str(path)
    return None


def under_libfiu(config: Path, moment: str, faults: Sequence[Fault]) -> Told:
    """Process a session in this process, which has the preload library, under faults."""
    library = ctypes.CDLL("libfiu.so.0")
    library.fiu_enable_random.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_float]
    library.fiu_enable.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint]
    library.fiu_init(0)

    def begin() -> None:
        for fault in faults:
            name = fault.point.encode()
            if fault.probability < 1:
                library.fiu_enable_random(name, 1, fault.errno, 0, fault.probability)
            else:
                library.fiu_enable(name, 1, fault.errno, int(fault.once))

    def end() -> None:
        for fault in faults:
            library.fiu_disable(fault.point.encode())

    return run(config, begin, end, moment)


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    made = under_libfiu(Path(sys.argv[1]), given["moment"], [Fault(**fault) for fault in given["faults"]])
    print(json.dumps({"jobs": made.jobs, "pauses": made.pauses, "messages": made.messages, "modes": made.modes}))
