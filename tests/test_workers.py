"""What worker processes share: numbers that say which of the GPUs each has."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from streamprep.workers import take_slot


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
