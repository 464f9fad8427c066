"""Power lost while the daemon is at work: what it had told to be done is there afterwards, and the rest can follow.

The short form loses power a few times; ``make crash`` does it hundreds of times.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.outputs import same_results
from tests.reliability.crash import Daemon, Sync, lost, make_session, once
from tests.reliability.disk import Disk, why_no_disk

LOSSES = int(os.environ.get("STREAMPREP_POWER_LOSSES", "3"))
SHARDS = int(os.environ.get("STREAMPREP_POWER_SHARDS", "1"))
"""Into so many tests the losses are divided, for pytest-xdist."""

OPTIONS = ("defaults", "data=writeback,noauto_da_alloc,commit=300")
"""The second has the file system hide as few missing syncs as possible."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session folder; what an uninterrupted run makes of it is in its ``reference``."""
    if (reason := why_no_disk()) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("session")
    make_session(folder)
    once(folder, folder / "reference")
    return folder


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[list[Disk]]:
    """One with each of the `OPTIONS`."""
    made: list[Disk] = []
    try:
        for number, options in enumerate(OPTIONS):
            folder = tmp_path / str(number)
            folder.mkdir()
            made.append(Disk(folder, options))
        yield made
    finally:
        for disk in made:
            disk.__exit__(None, None, None)


@dataclass(frozen=True)
class Told:
    """Items that a daemon told to be done."""

    before: set[str]
    """While there was power."""
    after: set[str]
    """Only later, which nobody would have read: a sync that was under way may end well though its journal is dead."""


def lose_power(session: Path, disk: Disk, *, after: int, seconds: float, without: Sync | None = None) -> Told:
    """Start a daemon, cut the power so long after so many items are done, and switch on again."""
    daemon = Daemon(session, disk.root / "output", without=without)
    try:
        daemon.release()
        daemon.wait_until(lambda: len(daemon.acknowledged()) >= after)
        time.sleep(seconds)
        before = daemon.acknowledged()
        disk.lose_power()
        time.sleep(seconds / 4)
    finally:
        daemon.kill()
    told = Told(before, daemon.acknowledged() - before)
    daemon.forget()
    disk.switch_on()
    return told


@pytest.mark.case(2, where="root")
@pytest.mark.parametrize("shard", range(SHARDS))
def test_what_was_acknowledged_survives_a_loss_of_power(session: Path, disks: list[Disk], shard: int) -> None:
    chance = random.Random(f"{os.environ.get('STREAMPREP_CRASH_SEED', '17')} {shard}")
    losses = range(shard, LOSSES, SHARDS)
    told = again = late = 0
    for number in losses:
        disk = disks[number % len(disks)]
        output = disk.root / "output"
        deaths, acknowledged = [], set[str]()
        while not deaths or chance.random() < 0.3:  # some lose it again, at the next start
            after = chance.randrange(7) if not deaths else 0
            seconds = chance.uniform(0.0, 0.1 if after else 1.0)
            deaths.append((after, round(seconds, 3)))
            here = lose_power(session, disk, after=after, seconds=seconds)
            acknowledged |= here.before
            missing = lost(output, acknowledged)
            assert missing == [], f"loss {number}, power cut after {deaths}; told later: {here.after}"
            late += len([line for line in lost(output, here.after) if line.startswith("item")])
        told += len(acknowledged)
        again += len(deaths) - 1
        once(session, output)
        try:
            same_results(output, session / "reference")
        except AssertionError as error:
            raise AssertionError(f"loss {number}, power cut after {deaths}") from error
        shutil.rmtree(output)
    print(
        f"{len(losses)} losses of power and {again} at the next start; {told} items were acknowledged before, none is "
        f"lost; {late} are that were acknowledged after it"
    )
    assert told >= len(losses)


@pytest.mark.parametrize("without", ["files", "rows"])
def test_a_missing_sync_is_seen(session: Path, disks: list[Disk], without: Sync) -> None:
    """That this test can find what it looks for: a daemon that leaves a sync out does lose what it acknowledged."""
    what = "pixels" if without == "files" else "rows"
    found = []
    for disk in disks:  # a busy machine may write by itself what nobody synced, on the one with the default options
        told = lose_power(session, disk, after=3, seconds=0.0, without=without)
        found += lost(disk.root / "output", told.before)
    assert any(what in line for line in found), found
