"""What a session's snapshots say: stages, the disk, warnings, times."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamprep import committer, hookimpl
from streamprep.config import load
from streamprep.engine import Engine
from streamprep.executors import InlineExecutor
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.snapshot import RATE_WINDOW_SECONDS, Rate, Snapshot, Stage
from streamprep.viewing import DISK_LEAST_SECONDS, Disk
from tests.conftest import Session

NOW = 1.7e9


class Rig:
    """A session whose rounds and clocks the test makes go on."""

    def __init__(self, session: Session, *overrides: str) -> None:
        self.time, self.ended = 100.0, False
        config = load(session.config, ["session.device=cpu", "session.settle_seconds=1", *overrides])
        plugins = load_plugins(environ={})
        plugins.manager.register(self)
        self.snapshots: list[Snapshot] = []
        self.engine = Engine(
            config,
            plugins,
            resolve(config, plugins),
            executor=InlineExecutor,
            clock=lambda: self.time,
            now=lambda: NOW + self.time,
        )

    @hookimpl
    def snapshot_taken(self, snapshot: Any) -> None:
        self.snapshots.append(snapshot)

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self.engine.finish()

    def go_on(self, seconds: float = 1.0) -> Snapshot:
        self.time += seconds
        self.engine.round()
        return self.snapshots[-1]

    def go_on_until(self, reached: Callable[[Snapshot], bool]) -> Snapshot:
        for _ in range(30):
            if reached(self.go_on()):
                return self.snapshots[-1]
        raise AssertionError(self.snapshots[-1])


@pytest.fixture
def begin(session: Session) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def start(*overrides: str) -> Rig:
        made.append(Rig(session, *overrides))
        made[-1].engine.start()
        return made[-1]

    yield start
    for rig in made:
        rig.end()


def stages(snapshot: Snapshot) -> dict[str, Stage]:
    return {stage.name: stage for stage in snapshot.stages}


def test_each_stage_says_what_has_not_passed_it_and_how_much_did(
    session: Session, begin: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "GROWTH", 1e9)
    (session.folder / "Coordinates" / "mic_0002_autopick.star").unlink()
    rig = begin("session.publish_seconds=1000")
    first = stages(rig.go_on())
    assert list(first) == ["settling", "waiting", "processing", "committing", "publishing"]
    assert first["settling"].backlog >= 6
    assert first["settling"].oldest_seconds == 0
    assert all(stage.per_hour == 0 for stage in first.values())
    assert stages(rig.go_on(0.5))["settling"].oldest_seconds == 0.5
    last = rig.go_on_until(lambda snapshot: snapshot.jobs.get("done") == 2)
    last = rig.go_on(30)
    passed, per_hour = stages(last), 3600 / last.elapsed_seconds
    assert passed["settling"].backlog == 0
    assert passed["settling"].per_hour >= 6 * per_hour
    assert passed["waiting"].backlog == last.waiting_count == 1
    assert passed["waiting"].oldest_seconds == pytest.approx(last.waiting[0][2])
    assert passed["waiting"].oldest_seconds > 30
    for name in ("waiting", "processing", "committing"):
        assert passed[name].per_hour == pytest.approx(2 * per_hour), name
    assert (passed["processing"].backlog, passed["processing"].oldest_seconds) == (0, 0)
    rows, published = sum(last.rows.values()), passed["publishing"].per_hour / per_hour
    assert 0 < passed["publishing"].backlog < rows, "the first item is published at once, the next not yet"
    assert published + passed["publishing"].backlog == pytest.approx(rows)
    assert passed["publishing"].oldest_seconds == pytest.approx(30, abs=1)
    assert rig.go_on(RATE_WINDOW_SECONDS + 60).items_per_hour == 0


def test_what_was_made_before_this_run_counts_for_no_rate(session: Session, begin: Callable[..., Rig]) -> None:
    rig = begin()
    rig.go_on_until(lambda snapshot: snapshot.jobs.get("done") == 3)
    rig.end()
    again = begin()
    for _ in range(5):
        last = again.go_on()
    assert last.jobs == {"done": 3}
    assert [stage.per_hour for stage in last.stages] == [0] * 5
    assert [stage.backlog for stage in last.stages] == [0] * 5
    assert last.arrived_seconds is None
    assert last.finished_seconds is None


def test_it_says_when_things_happened_last(session: Session, begin: Callable[..., Rig]) -> None:
    rig = begin()
    began = rig.time
    assert rig.go_on().arrived_seconds is None
    last = rig.go_on_until(lambda snapshot: snapshot.jobs.get("done") == 3)
    assert last.arrived_seconds is not None
    assert last.finished_seconds is not None
    later = rig.go_on(50)
    assert later.arrived_seconds == pytest.approx(last.arrived_seconds + 50)
    assert later.finished_seconds == pytest.approx(last.finished_seconds + 50)
    assert later.started == NOW + began
    assert later.taken == NOW + rig.time


def test_warnings_of_operations_are_told_and_written(session: Session, begin: Callable[..., Rig]) -> None:
    (session.folder / "Coordinates" / "mic_0001_autopick.star").write_text(
        "data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n160 160\n-50 2\n"
    )
    rig = begin()
    last = rig.go_on_until(lambda snapshot: snapshot.jobs.get("done") == 3)
    ((item, said),) = last.recent_warnings
    assert item == "Micrographs/mic_0001"
    assert any("outside" in text for text in said)
    rig.end()
    written = json.loads((session.output / ".streamprep" / "status.json").read_text())
    assert written["recent_warnings"] == [[item, list(said)]]
    assert [stage["name"] for stage in written["stages"]] == [stage.name for stage in last.stages]
    assert written["disk_total_bytes"] >= written["disk_free_bytes"] > 0
    assert written["disk_reserve_bytes"] == 512 << 20


def test_when_the_disk_is_full_follows_from_the_last_minutes() -> None:
    disk, gib = Disk(Path("/"), 10 << 30), 1 << 30
    assert disk.full_in(0, 100 * gib) is None
    assert disk.full_in(DISK_LEAST_SECONDS / 2, 50 * gib) is None, "so short a time says nothing"
    assert disk.full_in(DISK_LEAST_SECONDS, 70 * gib) == pytest.approx(120)  # 60 GiB above the reserve, 1 GiB in 2 s
    assert disk.full_in(RATE_WINDOW_SECONDS, 5 * gib) == 0
    assert disk.full_in(RATE_WINDOW_SECONDS + DISK_LEAST_SECONDS, 100 * gib) is None, "it was less by then"
    for second in range(2 * int(RATE_WINDOW_SECONDS)):
        disk.full_in(1000.0 + second, gib)
    assert len(disk.looks) <= RATE_WINDOW_SECONDS / 5 + 1


def test_a_rate_is_that_of_the_last_minutes() -> None:
    rate = Rate()
    for second in range(1000):
        rate.add(float(second), 2)
    assert rate.per_hour(999.0, 0.0) == pytest.approx(7200, rel=0.01)
    assert len(rate.sums) <= RATE_WINDOW_SECONDS + 1
    assert rate.per_hour(999.0 + RATE_WINDOW_SECONDS, 0.0) == pytest.approx(24)
    assert Rate(rate.sums).per_hour(5000.0, 0.0) == 0
