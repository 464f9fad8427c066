"""Operations that eat memory, of the machine or of a GPU: what case 28 has beside `tests/test_third_party.py`."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamprep import arrays, hookimpl, workers
from streamprep.config import load
from streamprep.engine import Engine
from streamprep.executors import InlineExecutor
from streamprep.pipeline import resolve
from streamprep.plugin_manager import Plugins, load_plugins
from streamprep.simulate import Acquisition, simulate
from tests.conftest import Process, Session
from tests.outputs import check_invariants, read_table, same_results
from tests.procfs import children_of
from tests.reliability import crowd
from tests.reliability.conftest import LONG
from tests.reliability.test_watch_faults import same_pixels

Wait = Callable[[Callable[[], bool], float], None]

GREEDY = '''
"""An operation of a third party."""
import numpy as np
from streamprep import Params, operation

class Greed(Params):
    """How much."""

@operation("process_micrograph", order=5, params=Greed)
def greed(micrograph, params):
    """Take 4 TiB for one micrograph, piece by piece; none of it is touched, so that the kernel would give it."""
    if "mic_0002" in micrograph.name:
        taken = [np.empty(1 << 30, np.uint8) for _ in range(4096)]
'''


def installed(folder: Path, source: str) -> dict[str, str]:
    """Environment in which a module is a plugin."""
    (folder / "greedy-1.0.dist-info").mkdir(parents=True)
    (folder / "greedy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: greedy\nVersion: 1.0\n")
    (folder / "greedy-1.0.dist-info" / "entry_points.txt").write_text("[streamprep]\ngreedy = greedy\n")
    (folder / "greedy.py").write_text(source)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.case(28)
@pytest.mark.parametrize("limit", ["", "worker_memory_mib = 2000\n"], ids=["of the machine", "of the configuration"])
def test_an_operation_that_eats_memory_costs_its_own_job_only(fresh: Session, tmp_path: Path, limit: str) -> None:
    if not limit and not LONG:
        pytest.skip("part of `make faults`")
    fresh.edit("[session]\n", f"[session]\nmax_attempts = 1\nsettle_seconds = 0.1\n{limit}")
    fresh.append("[micrographs.greed]\n")
    done = fresh.once(env=installed(tmp_path / "site", GREEDY), fork=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed   Micrographs/mic_0002: greed: MemoryError: Unable to allocate" in done.stdout
    assert "2 micrographs done, 0 waiting, 1 failed" in done.stdout
    assert len(set(read_table(fresh.output / "particles.star")[1]["rlnMicrographName"])) == 2
    check_invariants(fresh.output)


@pytest.mark.case(28)
def test_the_kernel_is_told_to_kill_a_worker_before_the_daemon(
    fresh: Session, eventually: Wait, stopped: list[subprocess.Popen[str]]
) -> None:
    process = fresh.start("--set", "session.settle_seconds=0.1", fork=False)
    stopped.append(process)
    eventually((fresh.output / "particles.star").exists, 60)

    def readiness(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    assert max(map(readiness, children_of(process.pid))) > readiness(process.pid)


@pytest.mark.case(28)
@pytest.mark.slow
def test_workers_killed_at_any_moment_cost_their_jobs_an_attempt_and_nothing_else(
    tmp_path: Path, stopped: list[Process], eventually: Wait
) -> None:
    """One of two is killed again and again, while it starts, works, answers or waits; the sets become the same."""
    sessions = Session(tmp_path / "left alone"), Session(tmp_path / "session")
    for each in sessions:
        simulate(each.folder, Acquisition(micrographs=24, size_px=256, particles=5, box_size_px=32, seed=7))
    left_alone, session = sessions
    assert left_alone.once().returncode == 0
    session.edit("[session]\n", "[session]\nworkers = 2\nmax_attempts = 1000\nstop_after_failures = 1000\n")
    process = session.start(fork=False)
    stopped.append(process)
    moments, killed = random.Random(1), set[int]()

    def done() -> int:
        return len(list(session.output.glob("particles/**/*.mrcs")))

    def kill() -> bool:
        workers = children_of(process.pid)
        if workers:
            killed.add(worker := moments.choice(workers))
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        time.sleep(moments.uniform(0.0, 1.0))
        return done() == 24 or len(killed) == (60 if LONG else 8)

    eventually(kill, 100.0)
    eventually(lambda: done() == 24, 100.0)
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert len(killed) >= 3
    check_invariants(session.output)
    same_results(session.output, left_alone.output)


@pytest.fixture
def crowded(fresh: Session, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """Runs a session with room for so many images; four at a time are tried first."""

    def load_all(**options: Any) -> Plugins:
        return load_plugins(environ={}, extra=[crowd.__name__])

    def process(fits: int) -> Any:
        monkeypatch.setattr(arrays, "_halvings", 0)
        monkeypatch.setattr(arrays, "CACHE_BYTES", 4 * 4 * 32 * 32)
        monkeypatch.setattr(workers, "load_plugins", load_all)
        monkeypatch.setattr(crowd, "fits", fits)
        monkeypatch.setattr(crowd, "seen", [])
        config, plugins = load(fresh.config, ["session.device=cpu", "session.max_attempts=1"]), load_all()
        engine = Engine(config, plugins, resolve(config, plugins), once=True, executor=InlineExecutor)
        told: dict[str, str | None] = {}

        class Listener:
            @hookimpl
            def item_finished(self, item: str, reason: str | None) -> None:
                told[item] = reason

        plugins.manager.register(Listener())
        return engine.run(), told

    fresh.append("[particles.crowd]\n")
    return process


@pytest.mark.case(28)
def test_a_gpu_that_runs_out_of_memory_is_given_smaller_parts(
    fresh: Session, crowded: Callable[[int], Any], tmp_path: Path
) -> None:
    plenty, told = crowded(4)
    assert plenty.jobs == {"done": 3}
    assert max(crowd.seen) > 1
    (fresh.output).rename(tmp_path / "streamprep_out")
    last, told_now = crowded(1)
    assert last.jobs == {"done": 3}
    assert max(crowd.seen) > 1
    assert crowd.seen[-1] == 1
    assert told_now == told
    assert told["Micrographs/mic_0002"]
    same_pixels(fresh, Session(tmp_path))
    check_invariants(fresh.output)


@pytest.mark.case(28)
def test_a_gpu_without_room_for_one_image_costs_its_own_job_only(fresh: Session, crowded: Callable[[int], Any]) -> None:
    last, _ = crowded(0)
    assert last.jobs == {"done": 2, "failed": 1}
    assert "crowd: OutOfMemoryError: Out of memory" in last.failures[0]["reason"]
    check_invariants(fresh.output)
