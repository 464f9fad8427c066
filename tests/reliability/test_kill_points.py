"""SIGKILL at every system call that changes the output folder, in the daemon's work and in its recovery.

The short form takes a few of all points; ``make crash`` takes every one.
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.outputs import same_results
from tests.reliability.crash import Call, Daemon, Point, Strace, lost, make_session, once, points_of, why_no_strace

EVERY = int(os.environ.get("STREAMPREP_KILL_EVERY", "200"))
"""Every so many-th point is taken."""

SHARDS = int(os.environ.get("STREAMPREP_KILL_SHARDS", "1"))
"""Into so many tests the points are divided, for pytest-xdist."""

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Reference:
    """A session that nothing disturbed."""

    folder: Path
    output: Path
    calls: list[Call]
    """What its daemon did to the output folder, in order."""

    @property
    def paths(self) -> set[str]:
        """All that any daemon may touch: what this one touched, and the places of what is moved aside."""
        paths = {path for call in self.calls for path in call.paths}
        shards = {Path(path).name for path in paths if path.endswith(".mrcs")}
        orphans = ".streamprep/orphans"
        return paths | {orphans} | {f"{orphans}/{name}" for name in shards}

    def killed(self, output: Path, at: Point) -> bool:
        """Run a daemon that is killed at a point; False where it came to its end before that. Nothing may be lost."""
        daemon = Daemon(self.folder, output)
        strace = Strace(daemon, output, self.paths, at)
        daemon.release()
        code = daemon.wait()
        strace.calls()
        assert code in (-9, 0), f"{at}: {daemon.text()}"
        assert lost(output, daemon.acknowledged()) == [], f"after {at}"
        daemon.forget()
        return code == -9

    def recovery(self, output: Path) -> list[Point]:
        """The points of a start on this folder up to where work begins; the folder is left as it is."""
        copy = output.with_name("copy")
        shutil.copytree(output, copy)
        daemon = Daemon(self.folder, copy)
        strace = Strace(daemon, copy, self.paths)
        daemon.release()
        daemon.wait_until(lambda: '"run_started"' in daemon.text())
        daemon.kill()
        points = points_of(strace.calls())
        daemon.forget()
        shutil.rmtree(copy)
        return points

    def finish(self, output: Path, after: object) -> None:
        """Run to the end and compare."""
        once(self.folder, output)
        try:
            same_results(output, self.output)
        except AssertionError as error:
            raise AssertionError(f"after {after}") from error
        shutil.rmtree(output)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    if (reason := why_no_strace()) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("session")
    make_session(folder)
    once(folder, folder / "warm")
    output = folder / "reference"
    daemon = Daemon(folder, output)
    strace = Strace(daemon, output, None)
    daemon.release()
    assert daemon.wait() == 0, daemon.text()
    return Reference(folder, output, strace.calls())


@pytest.mark.case(1)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_killed_at_any_system_call_equals_uninterrupted(reference: Reference, tmp_path: Path, shard: int) -> None:
    points = points_of(reference.calls)
    assert len(points) > 500
    beyond = [Point(name, number) for name, number in dict(points).items()] if EVERY == 1 and shard == 0 else []
    points = points[EVERY // 2 :: EVERY][shard::SHARDS]
    output = tmp_path / "output"
    killed = 0
    for point in points:
        killed += reference.killed(output, point)
        reference.finish(output, point)
    for point in beyond:  # no two runs take equally long, so some have a few more
        while reference.killed(output, point := Point(point.name, point.number + 1)):
            reference.finish(output, point)
        shutil.rmtree(output)
    print(f"killed at {killed} of {len(points)} points")
    assert killed > 0.6 * len(points), "no two runs take equally long, but most calls come in both"


@pytest.mark.case(3)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_recovery_killed_three_deep_equals_uninterrupted(reference: Reference, tmp_path: Path, shard: int) -> None:
    """Where recovery has most to do: placed stacks and written rows without their commit, early and late."""
    chance = random.Random(shard)
    output = tmp_path / "output"
    chains = killed = 0
    for worst in before_commits(reference.calls):
        spoilt = tmp_path / "spoilt"
        assert reference.killed(spoilt, worst)
        first = reference.recovery(spoilt)
        assert {"ftruncate", "rename"} <= {point.name for point in first}, "there is nothing to recover"
        step = max(1, EVERY // 2)
        for point in first[step // 2 :: step][shard::SHARDS]:
            shutil.copytree(spoilt, output)
            deaths = [worst, point]
            killed += reference.killed(output, point)
            for _ in range(2):
                deaths.append(chance.choice(reference.recovery(output)))
                killed += reference.killed(output, deaths[-1])
            reference.finish(output, deaths)
            chains += 1
        shutil.rmtree(spoilt)
    print(f"{chains} chains of starts, {killed} killed in recovery")
    assert killed > 2 * chains


def before_commits(calls: list[Call]) -> list[Point]:
    """The first write of the ledger after the last fdatasync of rows, in the second and in the last commit."""
    points = points_of(calls)
    found = []
    synced = False
    for call, point in zip(calls, points, strict=True):
        if call.name == "fdatasync" and call.paths[-1].endswith(".rows"):
            synced = True
        elif synced and call.name == "pwrite64" and not call.paths[-1].endswith(".rows"):
            found.append(point)
            synced = False
    return [found[1], found[-1]]
