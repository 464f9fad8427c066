"""Sessions on a Dask cluster: workers that come, go, are lost or unfit; the same sets as on one machine."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from streamprep import cluster, workers
from streamprep.arrays import Backend
from streamprep.cluster import DaskExecutor, Refusal, Setup, run_on_worker
from streamprep.committer import STATE_FOLDER
from streamprep.config import Config, load
from streamprep.engine import Engine
from streamprep.executors import InlineExecutor
from streamprep.model import ConfigError, Item
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.snapshot import Snapshot
from streamprep.workers import ItemJob, Outcome, identity_at, plan_in_use
from tests.conftest import Session
from tests.outputs import check_invariants, same_results

distributed = pytest.importorskip("distributed", reason="Dask is not installed (pip install streamprep[cluster])")

Wait = Callable[[Callable[[], bool], float], None]

HOLD = '''
"""An operation of a third party."""
import os
import time
from pathlib import Path
from streamprep import Params, operation

class Hold(Params):
    """Where to look."""
    folder: str = ""

@operation("process_micrograph", order=5, params=Hold)
def hold(micrograph, params):
    """Say who is at it, and wait as long as a file is there that forbids to go on."""
    folder = Path(params.folder)
    with (folder / "said").open("a") as said:
        said.write(f"{micrograph.name} {os.getpid()} {os.getppid()}\\n")
    while (folder / "wait").exists():
        time.sleep(0.02)
'''


# --- a cluster in this process, whose workers run jobs themselves ----------------------------------------------------


class InlinePool(InlineExecutor):
    """In place of the processes of a worker. Items wait until they may go on."""

    may_go_on = threading.Event()
    begun: list[str] = []  # noqa: RUF012 - emptied by the fixture
    """Address of the worker, for each item."""
    ended: list[str] = []  # noqa: RUF012
    shared = threading.Lock()
    """Of what a worker process keeps, and all of these have together."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.lock, self.busy, self.used = threading.Lock(), 0, 0.0

    def plan(self, timeout: float) -> str | Outcome:
        return plan_in_use()

    def submit(self, job: Any) -> Future[Outcome]:
        if not isinstance(job, ItemJob):
            with self.shared:
                return super().submit(job)
        self.begun.append(distributed.get_worker().address)
        try:
            assert self.may_go_on.wait(60)
            with self.shared:
                return super().submit(job)
        finally:
            self.ended.append(self.begun[-1])


Cluster = Callable[..., Any]


@pytest.fixture
def in_process_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Begins clusters of a number of workers; a port may be given, and settings of Dask."""
    import dask

    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.05)
    made: list[Any] = []

    def begin(count: int, port: int = 0, **settings: Any) -> Any:
        with dask.config.set(settings):
            found = distributed.LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=False,
                protocol="tcp",
                host="127.0.0.1",
                scheduler_port=port,
                dashboard_address=":0",
            )
        made.append(found)
        return found

    yield begin
    for found in made:
        found.close()


@pytest.fixture
def in_process(in_process_workers: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The same, with workers that run jobs themselves."""
    monkeypatch.setattr(cluster, "_Pool", InlinePool)
    InlinePool.may_go_on.set()
    InlinePool.begun.clear()
    InlinePool.ended.clear()
    yield in_process_workers
    InlinePool.may_go_on.set()


def engine_on(config: Config, scheduler: str, **options: Any) -> Engine:
    plugins = load_plugins()
    plan = resolve(config, plugins)
    executor = DaskExecutor(config, plan.hash, scheduler=scheduler)
    return Engine(config, plugins, plan, executor=executor.begin, device=executor.device, **options)


def drive(engine: Engine, until: Callable[[Snapshot], bool] = lambda _: False) -> Snapshot:
    """Rounds of an engine until something is so, or it has ended."""
    deadline = time.monotonic() + 60
    while not engine.round() and not (engine._snapshot and until(engine._snapshot)):
        assert time.monotonic() < deadline, engine._snapshot
        time.sleep(0.01)
    assert engine._snapshot is not None
    return engine._snapshot


def end(engine: Engine) -> Snapshot:
    """Rounds to the end, and the last state."""
    drive(engine)
    engine.finish()
    assert engine._snapshot is not None
    return engine._snapshot


def says(text: str) -> Callable[[Snapshot], bool]:
    return lambda snapshot: any(text in trouble for trouble in snapshot.degraded)


def run_here(config: Config) -> Snapshot:
    """A session in this process, without a cluster."""
    plugins = load_plugins()
    return Engine(config, plugins, resolve(config, plugins), once=True, executor=InlineExecutor).run()


@pytest.fixture
def reference(session: Session, tmp_path: Path) -> Path:
    """Results of the session in one process."""
    folder = tmp_path / "reference"
    shutil.copytree(session.folder, folder)
    run_here(load(folder / "streamprep.toml"))
    return folder / "streamprep_out"


def test_jobs_wait_for_a_worker_and_workers_come_and_go(session: Session, reference: Path, in_process: Cluster) -> None:
    found = in_process(0)
    engine = engine_on(load(session.config), found.scheduler_address, once=True)
    engine.start()
    waiting = drive(engine, says("no workers are connected"))
    assert waiting.workers == 0
    assert not waiting.jobs.get("done")

    InlinePool.may_go_on.clear()
    found.scale(2)
    drive(engine, lambda snapshot: snapshot.workers == 2 and len(InlinePool.begun) > 0)
    leaving = InlinePool.begun[0]  # with an item that it has begun, which the other one does instead
    with distributed.Client(found, set_as_default=False) as client:
        client.retire_workers([leaving], close_workers=False, remove=True)
    drive(engine, lambda snapshot: snapshot.workers == 1)
    InlinePool.may_go_on.set()
    last = end(engine)
    assert (last.jobs["done"], last.failed, last.degraded) == (3, 0, ())
    same_results(session.output, reference)


@pytest.mark.parametrize("long", [False, True], ids=["for a moment", "for long"])
def test_a_scheduler_that_is_lost_and_begun_again_costs_nothing(
    session: Session, reference: Path, in_process: Cluster, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    if long:
        monkeypatch.setattr(cluster, "CONNECT_SECONDS", 2.0)
    first = in_process(0)
    address = first.scheduler_address
    engine = engine_on(load(session.config), address, once=True)
    engine.start()
    assert isinstance(engine._executor, DaskExecutor)
    client = engine._executor._client
    drive(engine, lambda snapshot: bool(snapshot.running))
    first.close()
    drive(engine, says(f"the Dask scheduler at {address} does not answer"))
    drive(engine, lambda _: not long or client.status == "closed")  # it has given up
    in_process(1, port=int(address.rpartition(":")[2]))
    last = end(engine)
    assert (last.jobs["done"], last.failed, last.degraded) == (3, 0, ())
    same_results(session.output, reference)


def test_what_a_killed_daemon_left_on_the_cluster_never_comes_into_the_sets(
    session: Session, reference: Path, in_process: Cluster, monkeypatch: pytest.MonkeyPatch, eventually: Wait
) -> None:
    monkeypatch.setattr(cluster, "PROBE_SECONDS", 0.5)
    found = in_process(2)
    InlinePool.may_go_on.clear()
    killed = engine_on(load(session.config, ["session.workers=1"]), found.scheduler_address)
    killed.start()
    drive(killed, lambda _: bool(InlinePool.begun))
    assert isinstance(killed._executor, DaskExecutor)
    killed._executor._ending.set()
    killed._executor._client.close()
    killed.watcher.stop()
    killed.ledger.close()
    killed._lock_file.close()

    engine = engine_on(load(session.config), found.scheduler_address, once=True)
    engine.start()
    InlinePool.may_go_on.set()  # for the former ones, too, which find that they have nowhere to write
    last = end(engine)
    eventually(lambda: len(InlinePool.ended) == len(InlinePool.begun), 30)
    assert (last.jobs["done"], last.failed) == (3, 0)
    same_results(session.output, reference)


def test_jobs_for_a_gpu_go_to_workers_that_announce_one(
    session: Session, in_process: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = in_process(1)
    without = load(session.config, ["session.device=gpu"])
    plan = resolve(without, load_plugins())
    executor = DaskExecutor(without, plan.hash, scheduler=found.scheduler_address)
    assert (executor.size, executor.troubles) == (
        0,
        (f"no workers with a GPU are connected to {found.scheduler_address}; jobs wait",),
    )
    executor.stop()

    (spec,) = found.new_worker_spec().values()
    found.worker_spec["gpu"] = {**spec, "options": {**spec["options"], "nthreads": 4, "resources": {"GPU": 1}}}
    found.sync(found._correct_state)
    engine = engine_on(load(session.config), found.scheduler_address, once=True)  # device = "auto"
    with pytest.raises(ConfigError, match="device = 'gpu' was asked for, but"):
        engine.start()
    engine.finish()
    monkeypatch.setattr(workers, "choose_backend", lambda device: {"gpu": Backend("cpu", "in its place")}[device])
    monkeypatch.setattr(cluster, "REFUSED_SECONDS", 0.0)
    engine = engine_on(load(session.config), found.scheduler_address, once=True)
    engine.start()
    assert engine._executor is not None
    assert engine._executor.size == 1
    last = end(engine)
    assert (last.jobs["done"], last.device) == (3, f"GPUs of the workers at {found.scheduler_address}")
    assert set(InlinePool.begun) == {found.workers["gpu"].address}


@pytest.mark.parametrize("lost", [False, True], ids=["no workers", "no scheduler"])
def test_a_session_without_workers_ends_and_gives_its_jobs_back(
    session: Session, reference: Path, in_process: Cluster, lost: bool
) -> None:
    found = in_process(0)
    engine = engine_on(load(session.config), found.scheduler_address)
    engine.start()
    drive(engine, lambda snapshot: bool(snapshot.running))
    if lost:
        found.close()
        drive(engine, says("does not answer"))
    engine.stop()
    end(engine)
    check_invariants(session.output)
    assert run_here(load(session.config)).jobs["done"] == 3
    same_results(session.output, reference)


def test_workers_with_another_plan_end_the_start_with_both_named(session: Session, in_process: Cluster) -> None:
    config = load(session.config)
    plan = resolve(config, load_plugins()).hash
    (session.output / STATE_FOLDER / "staging").mkdir(parents=True)
    executor = DaskExecutor(config, "0123456789", scheduler=in_process(2).scheduler_address)
    try:
        with pytest.raises(ConfigError, match=f"its plan is {plan}, that of the session 0123456789"):
            executor.begin(config)
    finally:
        executor.stop()


def test_a_worker_of_another_version_refuses_and_names_both(in_process: Cluster) -> None:
    with distributed.Client(in_process(1), set_as_default=False) as client:
        told = client.submit(run_on_worker, "0.0.1", b"not for this version", None).result(60)
    assert isinstance(told, Refusal)
    assert f"has streamprep {cluster.__version__}, the session has 0.0.1" in told.reason


def test_a_worker_that_refuses_costs_nothing_while_there_are_others(
    session: Session, reference: Path, in_process: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.edit("[session]\n", "[session]\nstop_after_failures = 1\n")
    found = in_process(2)
    unfit = found.workers[0].address
    unseen = cluster._unseen
    monkeypatch.setattr(
        cluster,
        "_unseen",
        lambda places: "its disk is away" if distributed.get_worker().address == unfit else unseen(places),
    )
    monkeypatch.setattr(cluster, "REFUSED_SECONDS", 0.0)  # it is asked again and again
    engine = engine_on(load(session.config), found.scheduler_address, once=True)
    engine.start()
    last = end(engine)
    assert (last.jobs["done"], last.failed) == (3, 0)
    same_results(session.output, reference)


def test_where_all_workers_refuse_the_session_stops_and_says_why(
    session: Session, in_process: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.edit("[session]\n", "[session]\nstop_after_failures = 3\nmax_attempts = 1\n")
    engine = engine_on(load(session.config), in_process(2).scheduler_address, once=True)
    engine.start()
    monkeypatch.setattr(cluster, "_unseen", lambda places: "its disk is away")
    last = end(engine)
    assert last.mode == "stopped"
    assert "its disk is away" in last.message
    assert last.failed == 0
    check_invariants(session.output)


def test_a_job_whose_workers_are_lost_again_and_again_has_failed(session: Session, in_process: Cluster) -> None:
    session.edit("[session]\n", "[session]\nmax_attempts = 1\n")
    found = in_process(1, **{"distributed.scheduler.allowed-failures": 0})
    engine = engine_on(load(session.config), found.scheduler_address, once=True)
    engine.start()
    InlinePool.may_go_on.clear()
    drive(engine, lambda _: bool(InlinePool.begun))
    lost = [running.name for running in engine._running]
    found.sync(found.scheduler.remove_worker, InlinePool.begun[-1], stimulus_id="test", expected=False)
    drive(engine, lambda snapshot: snapshot.failed > 0)
    InlinePool.may_go_on.set()
    found.scale(2)
    last = end(engine)
    assert last.failed >= 1
    assert {failure["item"] for failure in last.failures} <= set(lost)
    assert "were lost that ran it" in last.failures[0]["reason"]
    check_invariants(session.output)


def stage(config: Config, plan: str) -> tuple[bytes, Path]:
    """What workers are sent of a session, and its staging folder."""
    staging = config.resolve(config.session.output) / STATE_FOLDER / "staging"
    folder = staging / "session-1"
    folder.mkdir(parents=True)
    return pickle.dumps(Setup(config, plan, folder, ((folder, folder.stat().st_ino),))), staging


def item_job(config: Config, staging: Path) -> ItemJob:
    path = config.folder / "Maps" / "map.mrc"
    return ItemJob(1, Item("map", "Maps/map", path), 1, "Maps/map.mrc", identity_at(path), (), staging / "1-1")


def test_two_runs_of_one_job_never_meet_and_end_with_its_folder(
    session: Session, data: Path, in_process: Cluster
) -> None:
    (session.folder / "Maps").mkdir(exist_ok=True)
    shutil.copy(next((data / "maps").rglob("*.mrc")), session.folder / "Maps" / "map.mrc")
    session.append("[maps.invert]\n")
    config = load(session.config)
    packed, staging = stage(config, resolve(config, load_plugins()).hash)
    job = item_job(config, staging)
    job.folder.mkdir()
    with distributed.Client(in_process(2), set_as_default=False) as client:

        def run() -> Any:
            return client.submit(run_on_worker, cluster.__version__, packed, pickle.dumps(job), pure=False)

        one, other = (running.result(60) for running in (run(), run()))
        assert (one.verdict, other.verdict) == ("done", "done")
        first, second = (
            [job.folder / file.staged for part in made.staged for file in part.files] for made in (one, other)
        )
        assert first
        assert not set(first) & set(second)
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]

        shutil.rmtree(job.folder)  # its outcome was taken, or the session is another one by now
        late = run().result(60)
        assert late.verdict != "done"
        assert not job.folder.exists()
        shutil.rmtree(staging)
        assert "session-1: No such file or directory" in run().result(60).reason
        assert not staging.exists()


# --- schedulers and workers as processes of their own ---------------------------------------------------------------


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where the operation `hold` says who is at it, and waits while there is a file ``wait``."""
    site, folder = tmp_path / "site", tmp_path / "held"
    (site / "hold-1.0.dist-info").mkdir(parents=True)
    (site / "hold-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: hold\nVersion: 1.0\n")
    (site / "hold-1.0.dist-info" / "entry_points.txt").write_text("[streamprep]\nhold = hold\n")
    (site / "hold.py").write_text(HOLD)
    folder.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    return folder


def said_by(held: Path) -> list[list[str]]:
    path = held / "said"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@dataclass
class Processes:
    """A scheduler and workers, as `dask scheduler` and `dask worker` begin them."""

    folder: Path
    stopped: list[subprocess.Popen[str]]
    eventually: Wait

    def scheduler(self) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._start("scheduler", ["--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-jupyter"])

        def answers() -> bool:
            with socket.socket() as trial:
                return trial.connect_ex(("127.0.0.1", port)) == 0

        self.eventually(answers, 60)
        return f"tcp://127.0.0.1:{port}"

    def worker(self, name: str, scheduler: str, before: Sequence[str] = ()) -> subprocess.Popen[str]:
        options = [scheduler, "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1", "--no-nanny"]
        return self._start("worker", options, name, before)

    def _start(
        self, what: str, options: list[str], name: str = "scheduler", before: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        here = self.folder / name
        here.mkdir()
        with (here / "log").open("w") as log:
            command = [*before, sys.executable, "-m", f"distributed.cli.dask_{what}", *options]
            process = subprocess.Popen(command, cwd=here, stdout=log, stderr=log, text=True)
        self.stopped.append(process)
        return process


@pytest.fixture
def processes(tmp_path: Path, stopped: list[subprocess.Popen[str]], eventually: Wait) -> Processes:
    return Processes(tmp_path, stopped, eventually)


def test_workers_killed_ended_and_begun_in_the_middle_of_jobs_make_the_same_sets(
    session: Session, held: Path, processes: Processes, stopped: list[subprocess.Popen[str]], eventually: Wait
) -> None:
    session.append(f'[micrographs.hold]\nfolder = "{held}"\n')
    local = Session(session.folder.with_name("local"))
    shutil.copytree(session.folder, local.folder)
    run_here(load(local.config))
    (held / "said").unlink()

    (held / "wait").touch()
    scheduler = processes.scheduler()
    first, second = (processes.worker(name, scheduler) for name in ("one", "two"))
    daemon = subprocess.Popen(
        session.command("once", "--log-json", "--executor", "dask", "--scheduler", scheduler),
        cwd=session.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stopped.append(daemon)
    eventually(lambda: len(said_by(held)) == 2, 150)
    first.kill()
    second.terminate()
    eventually(lambda: second.poll() is not None, 25)  # with its job, which goes on for ever
    third = processes.worker("three", scheduler)
    (held / "wait").unlink()
    told, wrong = daemon.communicate(timeout=90)
    assert daemon.returncode == 0, told + wrong
    assert wrong == ""
    assert "attempt" not in (session.output / ".streamprep" / "log" / "streamprep.log").read_text()
    said = said_by(held)
    assert [int(pid) for _, _, pid in said[2:]] == [third.pid] * 3
    assert len({name for name, _, _ in said[2:]}) == 3
    same_results(session.output, local.output)


def test_a_job_that_hangs_or_is_given_up_is_stopped_on_its_worker(
    session: Session, held: Path, in_process_workers: Cluster, eventually: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "LICENCE_SECONDS", 0.1)
    session.append(f'[micrographs.hold]\nfolder = "{held}"\n')
    session.edit("[session]\n", "[session]\nmax_attempts = 1\n")
    (session.folder / "Micrographs" / "mic_0003.mrc").unlink()
    (held / "wait").touch()
    found = in_process_workers(1)
    engine = engine_on(load(session.config), found.scheduler_address, once=True)
    engine.start()
    drive(engine, lambda _: bool(said_by(held)))
    given_up = next(
        running for running in engine._running if said_by(held)[0][0].endswith(running.name.split("/")[1] + ".mrc")
    )
    (pool,) = (pool for pool in cluster._pools.values() if isinstance(pool, cluster._Pool))
    pool._timeout = 2.0  # of what it begins from now on: it is not the time that stops the first one
    assert engine._executor is not None
    engine._executor.cancel(given_up.future)
    shutil.rmtree(given_up.folder, ignore_errors=True)
    eventually(lambda: not Path("/proc", said_by(held)[0][1]).exists(), 30)
    drive(engine, lambda snapshot: snapshot.failed > 1)  # the one given up, and one that hangs
    (held / "wait").unlink()
    last = end(engine)
    assert not given_up.folder.exists()
    reasons = [failure["reason"] for failure in last.failures]
    assert any("hold: took longer than job_timeout_seconds = 2" in reason for reason in reasons), reasons
    check_invariants(session.output)


@pytest.mark.slow
def test_workers_that_do_not_see_the_folders_end_the_start(
    session: Session, in_process_workers: Cluster, processes: Processes
) -> None:
    hide = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{session.folder}" && exec "$@"', "sh"]
    if subprocess.run([*hide, "true"], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount anything: not root, or no unshare")
    scheduler = in_process_workers(0).scheduler_address
    processes.worker("blind", scheduler, hide)
    with distributed.Client(scheduler, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
    engine = engine_on(load(session.config), scheduler, once=True)
    unseen = re.escape(f"takes no jobs: {engine.committer.staging}/session-")
    with pytest.raises(ConfigError, match=f"{unseen}[0-9a-f]+: No such file or directory. The output and the watched"):
        engine.run()
    assert not list(engine.committer.staging.iterdir())


# --- SLURM -----------------------------------------------------------------------------------------------------------

CLUSTER = """
[cluster]
queue = "cryo"
account = "em"
cores = 2
memory_gib = 3
walltime = "1:00:00"
maximum_jobs = 1
directives = ["--constraint=icelake", "-o /dev/null"]
prologue = ["export STREAMPREP_FFT=scipy"]
"""


def test_a_job_of_slurm_asks_for_what_the_configuration_says(session: Session) -> None:
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed (pip install streamprep[cluster])")
    session.append(CLUSTER + 'scratch = "/scratch"\n')
    cpu = cluster.slurm_cluster(load(session.config))
    gpu = cluster.slurm_cluster(load(session.config, ["session.device=gpu"]))
    try:
        script = cpu.job_script().splitlines()
        asked = {line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH ")}
        assert asked >= {
            "-p cryo", "-A em", "--cpus-per-task=2", "--mem=3G", "-t 1:00:00", "--constraint=icelake", "-n 1"
        }  # fmt: skip
        assert "export STREAMPREP_FFT=scipy" in script
        assert f"{sys.executable} -m distributed.cli.dask_worker {cpu.scheduler_address}" in script[-1]
        assert "--nthreads 2" in script[-1]
        assert "--local-directory /scratch" in script[-1]
        assert "GPU" not in script[-1]
        assert not any("gres" in line for line in asked)
        script = gpu.job_script().splitlines()
        assert "#SBATCH --gres=gpu:1" in script
        assert "--resources GPU=1" in script[-1]
    finally:
        cpu.close()
        gpu.close()


@pytest.mark.slow
def test_a_session_gets_its_workers_from_slurm_and_ends_them(
    session: Session, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Wait
) -> None:
    """Without SLURM: `sbatch` begins the script at once, and says a number, and `scancel` ends that process."""
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed (pip install streamprep[cluster])")
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "sbatch").write_text(
        f'#!/bin/sh\ncp "$1" {tmp_path}/script\nsetsid bash {tmp_path}/script >{tmp_path}/worker.log 2>&1 &\n'
        f"echo $! >>{tmp_path}/jobs\necho Submitted batch job $!\n"
    )
    (commands / "scancel").write_text('#!/bin/sh\nkill -- -"$1"\n')
    for name in ("sbatch", "scancel"):
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    session.append(CLUSTER + 'interface = "lo"\n')
    config = load(session.config, ["cluster.cores=1", "cluster.minimum_jobs=1", "cluster.maximum_jobs=2"])
    plugins = load_plugins()
    plan = resolve(config, plugins)
    executor = DaskExecutor(config, plan.hash, slurm=True)
    last = Engine(config, plugins, plan, once=True, executor=executor.begin, device=executor.device).run()
    assert (last.jobs["done"], last.failed) == (3, 0)
    jobs = (tmp_path / "jobs").read_text().split()
    assert jobs
    eventually(lambda: not any(Path("/proc", job).exists() for job in jobs), 30)
    same_results(session.output, reference)


def test_without_dask_it_is_said_what_to_install(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'streamprep\[cluster\]'"):
        DaskExecutor(load(session.config), "", scheduler="tcp://127.0.0.1:1")


def test_a_scheduler_that_does_not_answer_is_named(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.2)
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 "):
        DaskExecutor(load(session.config), "", scheduler="tcp://127.0.0.1:1")
    for wrong in ("somewhere", "tcp://somewhere", "somewhere:8786"):
        with pytest.raises(ConfigError, match=f"'{wrong}' is no address of a scheduler"):
            DaskExecutor(load(session.config), "", scheduler=wrong)
    with pytest.raises(ConfigError, match="needs the address of a scheduler"):
        DaskExecutor(load(session.config), "")


def test_without_slurm_it_is_said_what_is_missing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="sbatch, which is not found"):
        DaskExecutor(load(session.config), "", slurm=True)
