"""What worker processes share: numbers that say which of the GPUs each has; and the sinks of a worker."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamprep import hookimpl, workers
from streamprep.config import load
from streamprep.engine import Engine
from streamprep.executors import InlineExecutor
from streamprep.hookspecs import Staged, StoredStack
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.workers import take_slot
from tests.conftest import Session
from tests.outputs import check_invariants


def _worker(folder: Path, slots: int, told: Connection) -> None:
    told.send(take_slot(folder, slots, 60.0))
    told.recv()


class Worker:
    """A process that takes a slot and lives until it is killed."""

    def __init__(self, folder: Path, slots: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._told, theirs = context.Pipe()
        self.process: Any = context.Process(target=_worker, args=(folder, slots, theirs))
        self.process.start()
        theirs.close()

    @property
    def slot(self) -> int:
        assert self._told.poll(60.0), "it took no slot"
        return int(self._told.recv())

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self._told.close()


def test_every_worker_has_a_number_of_its_own_and_that_of_a_dead_one_is_taken_again(tmp_path: Path) -> None:
    workers = [Worker(tmp_path, 3) for _ in range(3)]
    try:
        slots = [worker.slot for worker in workers]
        assert sorted(slots) == [0, 1, 2]
        with pytest.raises(TimeoutError, match="all of 3 slots are taken"):
            take_slot(tmp_path, 3, 0.0)
        late = Worker(tmp_path, 3)  # started before its predecessor has ended, as after a time-out
        workers[1].kill()
        workers[1] = late
        assert late.slot == slots[1]
    finally:
        for worker in workers:
            worker.kill()


class Elsewhere:
    """A sink of somebody else that takes the stacks part by part, and keeps them in a form of its own."""

    name = "elsewhere"
    tables = folders = ()

    def __init__(self) -> None:
        self.told: list[set[str]] = []

    def open_stack(self, label: str, count: int, folder: Path) -> Any:
        return _Numpy(folder / f"{label}.npy")

    def stage(self, result: Any, folder: Path) -> Staged:
        self.told.append({stack.staged for stack in result.stored.values()})
        return Staged((), ())


class _Numpy:
    def __init__(self, path: Path) -> None:
        self.path, self.parts = path, []

    def __enter__(self) -> _Numpy:
        return self

    def __exit__(self, *error: object) -> None: ...

    def put(self, start: int, particles: Any) -> None:
        self.parts.append(particles.pixels.copy())

    def finish(self) -> tuple[StoredStack, Any]:
        pixels = np.concatenate(self.parts)
        np.save(self.path, pixels)
        return StoredStack(self.path.name, self.path.stat().st_size, 0), pixels


def test_what_one_sink_stored_is_handed_in_by_no_other(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins, other = load_plugins(), Elsewhere()

    class Plugin:
        @hookimpl
        def make_sinks(self, config: Any) -> Any:
            return [other]

    plugins.manager.register(Plugin())
    monkeypatch.setattr(workers, "load_plugins", lambda **_: plugins)
    config = load(session.config)
    engine = Engine(config, plugins, resolve(config, plugins), once=True, executor=InlineExecutor)
    assert engine.run().jobs == {"done": 3}
    check_invariants(session.output)
    assert other.told == [{"particle.npy", "noise.npy"}] * 3
    assert {path.read_bytes()[208:211] for path in session.output.glob("*/*/*.mrcs")} == {b"MAP"}
