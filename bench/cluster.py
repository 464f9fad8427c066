"""What a job costs through Dask, beside the local pool: processor time, latency, and jobs per second.

    .venv/bin/python bench/cluster.py [--jobs 400]

Each job reads one table of 20 coordinates, which is next to nothing. Dask: a scheduler in this process and workers of
one thread, each with one process for jobs. Latency: one job after the other. Rate: all handed in at once.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import distributed

from streamprep.cluster import DaskExecutor
from streamprep.committer import STATE_FOLDER
from streamprep.config import load
from streamprep.executors import Executor, LocalExecutor
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.simulate import Acquisition, simulate
from streamprep.workers import TableJob, identity_at


def cost(executor: Executor, job: TableJob, count: int) -> dict[str, float]:
    """Milliseconds per job, of latency and of this process's time, and jobs per second."""
    for _ in range(10):
        assert executor.submit(job).result(120).verdict == "done"
    latencies = []
    for _ in range(count // 4):
        begun = time.perf_counter()
        executor.submit(job).result(120)
        latencies.append(time.perf_counter() - begun)
    used, begun = _used(), time.perf_counter()
    for running in [executor.submit(job) for _ in range(count)]:
        assert running.result(120).verdict == "done"
    seconds = time.perf_counter() - begun
    return {
        "latency": 1e3 * statistics.median(latencies),
        "own": 1e3 * (_used() - used) / count,
        "rate": count / seconds,
    }


def _used() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=400)
    jobs = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as folder:
        simulate(Path(folder), Acquisition(micrographs=1, size_px=320, particles=20, box_size_px=48))
        config = load(Path(folder, "streamprep.toml"), ["session.workers=1"])
        plan = resolve(config, load_plugins())
        (config.resolve(config.session.output) / STATE_FOLDER / "staging").mkdir(parents=True)
        table = next(Path(folder, "Coordinates").iterdir())
        job = TableJob(1, table, "coordinates", identity_at(table))
        rows: list[tuple[str, dict[str, float]]] = []
        local: Any = LocalExecutor(config)
        rows.append(("local, 1 worker", cost(local, job, jobs)))
        local.stop()
        for workers in (1, 8):
            with distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=None
            ) as cluster:
                executor = DaskExecutor(config, plan.hash, scheduler=cluster.scheduler_address)
                rows.append((f"Dask, {workers} workers", cost(executor.begin(config), job, jobs)))
                executor.stop()
    print(f"{'':20} {'latency':>12} {'this process':>14} {'rate':>10}")
    for name, told in rows:
        print(f"{name:20} {told['latency']:9.1f} ms {told['own']:8.1f} ms/job {told['rate']:6.0f} /s")


if __name__ == "__main__":
    main()
