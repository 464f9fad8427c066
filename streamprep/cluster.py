"""Jobs on other machines: an executor over a Dask scheduler, and workers from SLURM. The only importer of Dask.

A worker of Dask computes nothing itself. It keeps a local pool of worker processes, as a session on one machine does,
so that a job that dies, hangs or eats memory costs itself only, wherever it runs. Dask may run one job twice at the
same time, for instance where it takes a worker for lost that lives on. So each run of a job stages in a folder of its
own, and the committer takes the one that the accepted outcome names. The folder around these is made here when the job
is handed in, and removed when its outcome was taken: a run that finds it gone ends, and can write nothing any more.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import pickle
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamprep import __version__
from streamprep.config import Config
from streamprep.executors import LocalExecutor, settle
from streamprep.model import ConfigError
from streamprep.naming import STATE_FOLDER
from streamprep.workers import WORKER, ItemJob, Outcome, TableJob, last_running, plan_in_use

log = logging.getLogger(__name__)

GPU = "GPU"
"""Name of the resource that workers of Dask with a GPU announce."""

CONNECT_SECONDS = 10.0
PROBE_SECONDS = 60.0
"""At the start, workers that do not answer so long are busy with something else."""

LOOK_SECONDS = 1.0
"""So often the executor looks who is connected, and hands in again what came back."""

REFUSED_SECONDS = 60.0
"""A worker that refused jobs is asked again after this time."""

LICENCE_SECONDS = 2.0
"""So often a worker looks whether what it runs is still wanted."""

ANSWERS = 8
"""So many outcomes are fetched from workers at a time: one that has gone keeps its thread waiting."""

LEAVING = ("closing_gracefully", "closing", "closed")
"""What Dask calls the states of a worker that is about to end."""

IDLE_SECONDS = 300.0
"""A worker keeps the processes of a session so long without a job."""


# --- on a worker of Dask ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker has to know of a session; travels pickled, the same bytes with each job."""

    config: Config
    plan: str
    """Hash of the session's plan."""
    folder: Path
    """There as long as the session runs."""
    places: tuple[tuple[Path, int], ...]
    """This and the watched folders, which the worker must see; with inode numbers, as files are told apart by them."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A worker cannot run the jobs of a session."""

    worker: str
    """Its address."""
    reason: str
    leaving: bool = False
    """It has begun to, and would have been a good one: nothing is wrong."""


class _Pool(LocalExecutor):
    """The processes of one session on one worker; its methods may be called by several threads, under its lock."""

    def __init__(self, config: Config) -> None:
        self._own = tempfile.TemporaryDirectory(prefix="streamprep-")  # the output's is shared by all workers
        super().__init__(config, slots_in=Path(self._own.name))
        self.lock = threading.Lock()
        self.busy = 0
        self.used = time.monotonic()

    def plan(self, timeout: float) -> str | Outcome:
        """What plan its processes made."""
        found: str | Outcome = self._pool.call(plan_in_use).result(timeout)
        return found


_pools: dict[tuple[str, bytes], _Pool | tuple[str, float]] = {}
"""By address of the worker and session: its pool; or why it has none, and when to try again."""
_pools_lock = threading.Lock()


def run_on_worker(version: str, packed: bytes, job: bytes | None) -> Outcome | Refusal | str:
    """Run a job in a process of this worker of Dask.

    Parameters
    ----------
    version
        Of streamprep, where the session runs.
    packed
        A pickled `Setup`.
    job
        A pickled job; None to get the processes ready and to say where they wrote something on trial.
    """
    from distributed import get_worker

    worker = get_worker()
    address = str(worker.address)

    def refused(reason: str) -> Refusal:
        return Refusal(address, f"the worker {address} on {socket.gethostname()} takes no jobs: {reason}")

    if version != __version__:
        return refused(f"it has streamprep {__version__}, the session has {version}; install the same on both")
    setup: Setup = pickle.loads(packed)  # noqa: S301 - Dask itself carries pickles, from the same sender
    trial = setup.folder / secrets.token_hex(8)
    reason, gpu = _unseen(setup.places[:1]), setup.config.session.device == "gpu"
    pool = reason or _pool(address, packed, setup, _places(worker.state.nthreads, worker.state.total_resources, gpu))
    if isinstance(pool, str):
        return refused(pool)
    try:
        if job is not None:
            outcome = _run_in(pool, setup, pickle.loads(job), worker)  # noqa: S301 - as above
            return Refusal(address, f"the worker {address} leaves", leaving=True) if outcome is None else outcome
        reason = _unwritable(trial)
        return trial.name if reason is None else refused(reason)
    finally:
        with pool.lock:
            pool.busy -= 1
            pool.used = time.monotonic()


def _unseen(places: Sequence[tuple[Path, int]]) -> str | None:
    for path, inode in places:
        try:
            found = path.stat().st_ino
        except OSError as error:
            return (
                f"{path}: {error.strerror}. The output and the watched folders have to be on storage that all machines "
                "see under the same paths"
            )
        if found != inode:
            return f"{path} is another folder there (inode {found}, not {inode}); mount the same one on all machines"
    return None


def _unwritable(trial: Path) -> str | None:
    """Why nothing can be staged, as a job would; where it can, a folder with a file is left for the daemon to see."""
    try:
        trial.mkdir()
        (trial / "file").write_bytes(trial.name.encode())
    except OSError as error:
        return f"{trial.parent} cannot be written there: {error.strerror}; run the workers as the session's user"
    return None


def _places(threads: int, resources: Mapping[str, float], gpu: bool) -> int:
    """How many jobs a worker runs at a time."""
    return min(threads, max(1, int(resources.get(GPU, 1)))) if gpu else threads


def _pool(address: str, packed: bytes, setup: Setup, size: int) -> _Pool | str:
    """The processes for a session, counted as busy, or why there are none."""
    key = (address, packed)
    with _pools_lock:
        known = _pools.get(key)
        if isinstance(known, tuple):
            reason, until = known
            if time.monotonic() < until:
                return reason
        elif known is not None:
            with known.lock:
                known.busy += 1
            return known
        made = _new_pool(setup, size)
        if isinstance(made, str):
            _pools[key] = made, time.monotonic() + REFUSED_SECONDS
            return made
        made.busy = 1
        _pools[key] = made
        threading.Thread(target=_end_unused, args=(key, made, setup.folder), daemon=True).start()
        return made


def _new_pool(setup: Setup, size: int) -> _Pool | str:
    multiprocessing.current_process().daemon = False  # set by Dask's nanny; such a process may not have others
    session = setup.config.session.model_copy(update={"workers": size})
    reason = _unseen(setup.places) or _unwritable(setup.folder / secrets.token_hex(8))
    if reason is not None:
        return reason
    pool = None
    try:
        pool = _Pool(setup.config.model_copy(update={"session": session}))
        plan = pool.plan(session.start_timeout_seconds)
    except Exception as error:
        plan = Outcome("unstarted", f"its processes do not start: {type(error).__name__}: {error}")
    if plan == setup.plan and pool is not None:
        return pool
    if pool is not None:
        pool.stop()
    if isinstance(plan, Outcome):
        return plan.reason or ""
    return (
        f"its plan is {plan}, that of the session {setup.plan}; install the same plugins, in the same versions, on both"
    )


def _end_unused(key: tuple[str, bytes], pool: _Pool, folder: Path) -> None:
    """End the processes of a session that has ended, or that has sent nothing for long."""
    while True:
        time.sleep(LICENCE_SECONDS)
        ended = not folder.is_dir()
        with _pools_lock, pool.lock:
            if not pool.busy and (ended or time.monotonic() - pool.used > IDLE_SECONDS):
                del _pools[key]
                break
    pool.stop()


def _run_in(pool: _Pool, setup: Setup, job: TableJob | ItemJob, worker: Any) -> Outcome | None:
    """Run a job in a process of a pool; None where the worker had to leave meanwhile."""
    licence = setup.folder
    paths = [job.path] if isinstance(job, TableJob) else [job.item.path, *(path for _, path in job.inputs)]
    for path in paths:  # so that a network file system asks its server what is there now, not its cache
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    own = secrets.token_hex(8)
    if isinstance(job, ItemJob):
        licence = job.folder
        job = replace(job, folder=job.folder / own)
    with pool.lock:
        running = pool.submit(job)
    while True:
        try:
            outcome = running.result(LICENCE_SECONDS)
        except TimeoutError:
            with pool.lock:
                pool.check()
                leaves = worker.status.name in LEAVING
                if leaves or not licence.is_dir():
                    pool.cancel(running)
                if leaves:
                    return None
        else:
            break
    staged = tuple(
        replace(part, files=tuple(replace(file, staged=f"{own}/{file.staged}") for file in part.files))
        for part in outcome.staged
    )
    return replace(outcome, staged=staged)


# --- in the daemon ---------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Task:
    """A job in the hands of the cluster."""

    job: TableJob | ItemJob
    made: Future[Outcome]
    remote: Any = None
    """Dask's future; None while there is no scheduler to give it to, or once it came back."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def came_back(self, remote: Any) -> None:
        """It is to be handed in again, unless it was already."""
        with self.lock:
            if self.remote is remote:
                self.remote = None


def _need(module: str) -> Any:
    """Import what the extra ``cluster`` brings."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"--executor needs {module}, which cannot be imported ({error}): pip install 'streamprep[cluster]'"
        ) from error


class DaskExecutor:
    """Runs jobs on the workers of a Dask scheduler, which may come and go.

    Made before the session begins, so that a scheduler that does not answer is told at once; `begin` is the rest.

    Parameters
    ----------
    config, plan
        The configuration, and the hash of its plan, which the workers must have, too.
    scheduler
        Its address; that of ``[cluster] scheduler`` unless given.
    slurm
        Begin a scheduler in this process, and workers as jobs of SLURM, instead.

    Raises
    ------
    ConfigError
        Dask is not installed; no scheduler is named, or none answers; the table ``[cluster]`` is not usable.
    """

    def __init__(self, config: Config, plan: str, *, scheduler: str | None = None, slurm: bool = False) -> None:
        self._distributed = _need("distributed")
        addressing = _need("distributed.comm.addressing")
        _quieten()
        self._plan = plan
        if slurm and shutil.which("sbatch") is None:
            raise ConfigError("--executor slurm submits jobs with sbatch, which is not found; run it where SLURM is")
        self._cluster = slurm_cluster(config) if slurm else None
        if self._cluster is None:
            address = scheduler or config.cluster.scheduler
            if address is None:
                raise ConfigError(
                    f"{config.file}: --executor dask needs the address of a scheduler: --scheduler tcp://host:8786, or "
                    "[cluster] scheduler"
                )
            self._address = address
            try:
                addressing.parse_host_port(addressing.parse_address(address, strict=True)[1])
            except ValueError as error:
                raise ConfigError(
                    f"{address!r} is no address of a scheduler ({error}); it looks like tcp://host:8786"
                ) from error
        else:
            self._address = self._cluster.scheduler_address
        try:
            self._client = self._connect()
        except (OSError, ValueError) as error:
            self._close_cluster()
            raise ConfigError(
                f"no Dask scheduler answers at {self._address} within {CONNECT_SECONDS:g} s ({error}); start one with: "
                "dask scheduler, or correct the address"
            ) from error
        self._workers = self._connected()
        self._gpu = config.session.device == "gpu" or (
            config.session.device == "auto" and any(map(_has_gpu, self._workers.values()))
        )
        self.device = f"{'GPUs' if self._gpu else 'CPUs'} of the workers at {self._address}"
        """What to tell of where jobs compute."""
        jobs = config.cluster.maximum_jobs if slurm else 0
        self.wanted = max(1, jobs * (1 if self._gpu else config.cluster.cores))
        self._unfit: dict[str, tuple[str, float]] = {}
        """Workers that refused: why, and until when they are believed to."""
        self._tasks: dict[Future[Outcome], _Task] = {}
        self._serial = itertools.count()
        self._packed = b""
        self._run = secrets.token_hex(8)
        self._folder: Path | None = None
        self._lost: str | None = None
        """Why there is no scheduler now."""
        self._draining = False
        self._ending = threading.Event()
        self._answers = ThreadPoolExecutor(ANSWERS, thread_name_prefix="cluster")
        self._thread = threading.Thread(target=self._look_after, name="cluster", daemon=True)

    def _connect(self) -> Any:
        return self._distributed.Client(
            self._cluster or self._address, timeout=CONNECT_SECONDS, set_as_default=False, name="streamprep"
        )

    def begin(self, config: Config) -> DaskExecutor:
        """Take up a session: tell the workers that are there, and see that they share its folders.

        Raises
        ------
        ConfigError
            There are workers, and not one of them can run its jobs.
        OSError
            The staging folder cannot be written.
        """
        staging = config.resolve(config.session.output) / STATE_FOLDER / "staging"
        self._folder = staging / f"session-{self._run}"
        self._folder.mkdir()
        session = config.session.model_copy(update={"device": "gpu" if self._gpu else "cpu"})
        places = (self._folder, *config.watch_folders)
        setup = Setup(
            config.model_copy(update={"session": session}),
            self._plan,
            self._folder,
            tuple((path, path.stat().st_ino) for path in places),
        )
        self._packed = pickle.dumps(setup)
        try:
            self._probe(self._folder)
            self._scale(config)
            self._thread.start()
        except BaseException:
            self.stop()
            raise
        return self

    def _probe(self, folder: Path) -> None:
        """Ask each worker whether it can run jobs, and whether what it writes can be seen, and removed, here."""
        asked = {
            address: self._client.submit(
                run_on_worker,
                __version__,
                self._packed,
                None,
                key=f"streamprep-{self._run}-probe-{number}",
                workers=[address],
                pure=False,
            )
            for number, address in enumerate(self._fit())
        }
        deadline = time.monotonic() + PROBE_SECONDS
        fit = 0
        for address, future in asked.items():
            try:
                answer = future.result(max(0.1, deadline - time.monotonic()))
                if isinstance(answer, str):
                    written = folder / answer
                    if (written / "file").read_bytes() != answer.encode():
                        raise OSError(f"{written / 'file'} does not hold what the worker wrote")
                    shutil.rmtree(written)
            except TimeoutError:  # it has other work
                fit += 1
                continue
            except OSError as error:
                answer = Refusal(address, f"what the worker {address} writes in {folder} is not usable here: {error}")
            except Exception as error:
                answer = Refusal(address, self._not_runnable(error))
            if isinstance(answer, Refusal):
                self._note(answer)
            else:
                fit += 1
        if asked and not fit:
            raise ConfigError("; ".join(dict.fromkeys(reason for reason, _ in self._unfit.values())))

    def _scale(self, config: Config) -> None:
        if self._cluster is None:
            return
        wanted = config.cluster
        if wanted.minimum_jobs == wanted.maximum_jobs:
            self._cluster.scale(jobs=wanted.maximum_jobs)
        else:
            self._cluster.adapt(minimum_jobs=wanted.minimum_jobs, maximum_jobs=wanted.maximum_jobs)

    def _not_runnable(self, error: BaseException) -> str:
        return (
            f"jobs do not reach the workers at {self._address}: {type(error).__name__}: {error}; streamprep "
            f"{__version__} has to be installed for the scheduler and for each worker"
        )

    # --- who is there ---

    def _connected(self) -> dict[str, Mapping[str, Any]]:
        return dict(self._client.scheduler_info(n_workers=-1)["workers"])

    def _fit(self) -> list[str]:
        now = time.monotonic()
        refused = {address for address, (_, until) in self._unfit.items() if now < until}
        return [
            address
            for address, told in self._workers.items()
            if address not in refused and (not self._gpu or _has_gpu(told))
        ]

    def _note(self, refusal: Refusal) -> None:
        refused = refusal.reason, time.monotonic() + REFUSED_SECONDS
        self._unfit = {**self._unfit, refusal.worker: refused}  # a new one: other threads look at the old one

    @property
    def size(self) -> int:
        """How many jobs run at a time on the workers that are connected now."""
        if self._lost is not None:
            return 0
        known = self._workers
        there = [known[address] for address in self._fit() if address in known]
        return sum(_places(told["nthreads"], told["resources"], self._gpu) for told in there)

    @property
    def troubles(self) -> Sequence[str]:
        """What is wrong with the scheduler or the workers now."""
        if self._lost is not None:
            return (self._lost,)
        refused = tuple(dict.fromkeys(reason for reason, _ in self._unfit.values()))
        if not self._fit() and not refused:
            return (f"no workers{' with a GPU' if self._gpu else ''} are connected to {self._address}; jobs wait",)
        return refused

    # --- jobs ---

    def submit(self, job: TableJob | ItemJob) -> Future[Outcome]:
        """Hand a job in. It is handed in again wherever the scheduler was lost meanwhile."""
        task = _Task(job, Future())
        if isinstance(job, ItemJob):
            try:
                job.folder.mkdir()
            except OSError as error:
                task.made.set_result(Outcome("unstored", str(error), trouble=error))
                return task.made
        self._tasks[task.made] = task
        self._hand_in(task)
        return task.made

    def _hand_in(self, task: _Task) -> None:
        if self._lost is not None:
            return
        where: dict[str, Any] = {"resources": {GPU: 1}} if self._gpu else {}
        fit = self._fit()
        if self._unfit and fit:
            where |= {"workers": fit, "allow_other_workers": True}  # these may go before it is run
        with task.lock, contextlib.suppress(Exception):  # a client that is closing: it is handed in again
            if task.remote is not None or task.made.done():
                return
            task.remote = self._client.submit(
                run_on_worker,
                __version__,
                self._packed,
                pickle.dumps(task.job),
                key=f"streamprep-{self._run}-{next(self._serial)}",
                pure=False,
                **where,
            )
            # Dask has one thread for the callbacks of all clients of a process: it must not wait for an answer
            task.remote.add_done_callback(lambda remote: self._answers.submit(self._ended, task, remote))

    def _ended(self, task: _Task, remote: Any) -> None:
        with task.lock:  # not before it was handed in
            if task.remote is not remote:
                return
        try:
            answer = remote.result(CONNECT_SECONDS)
        except self._distributed.scheduler.KilledWorker as error:
            answer = self._lost_with(task.job, error)
        except BaseException as error:
            if remote.status != "error":  # the scheduler was lost, and what it knew with it; or who has the answer
                task.came_back(remote)
                return
            answer = Outcome("unstarted", self._not_runnable(error), WORKER)
        if isinstance(answer, Refusal):
            if not answer.leaving:
                self._note(answer)
            if answer.leaving or self._fit() or not self._workers:
                task.came_back(remote)  # for another
                return
            answer = Outcome("unstarted", answer.reason, WORKER)
        self._settle(task, answer)

    @staticmethod
    def _lost_with(job: TableJob | ItemJob, error: Any) -> Outcome:
        said = f"{error.allowed_failures + 1} workers were lost that ran it, the last {error.last_worker.address}"
        if isinstance(job, ItemJob):
            for folder in job.folder.glob("*/"):
                operation = last_running(folder)
                if operation is not None:
                    return Outcome("lost", f"{operation}: {said}", operation)
        return Outcome("lost", said, WORKER)

    def _settle(self, task: _Task, outcome: Outcome) -> None:
        remote, task.remote = task.remote, None
        self._tasks.pop(task.made, None)
        settle(task.made, outcome)
        if remote is not None:
            with contextlib.suppress(Exception):  # of a client that is closed
                remote.release()

    def cancel(self, job: Future[Outcome]) -> None:
        """Give a job up; the process that has it is stopped when its worker sees that its folder is gone."""
        task = self._tasks.get(job)
        if task is not None:
            self._settle(task, Outcome("lost", "it was given up", WORKER))

    def check(self) -> None:
        """Nothing to do here: a thread of its own looks after the cluster, which may be slow to answer."""

    def drain(self) -> None:
        """No more jobs will come: while no workers are there, give back what was handed in."""
        self._draining = True

    def _look_after(self) -> None:
        while not self._ending.wait(LOOK_SECONDS):
            try:
                self._look()
            except Exception as error:
                if not self._ending.is_set():
                    log.warning("the Dask scheduler at %s: %s: %s", self._address, type(error).__name__, error)

    def _look(self) -> None:
        connected = self._connected() if self._client.status == "running" else {}
        if self._client.status != "running":
            self._lost = f"the Dask scheduler at {self._address} does not answer; jobs wait for it"
        else:
            self._lost, self._workers = None, connected
            now = time.monotonic()
            self._unfit = {
                address: (reason, until)
                for address, (reason, until) in self._unfit.items()
                if address in connected and now < until
            }
        for task in list(self._tasks.values()):
            if self._draining and not self.size:
                self._settle(task, Outcome("unstarted", "no workers are there to run it", WORKER))
            elif task.remote is None:
                self._hand_in(task)
        if self._client.status not in ("running", "connecting"):  # it has tried to connect again, in vain
            self._client.close(timeout=1)
            self._client = self._connect()
            for task in list(self._tasks.values()):  # the former client may not have said that it lost them
                task.remote = None

    def stop(self) -> None:
        """Let the workers go; those of SLURM are ended."""
        if self._ending.is_set():
            return
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(timeout=CONNECT_SECONDS)
        self._answers.shutdown(wait=False, cancel_futures=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(Exception):
            self._client.close(timeout=CONNECT_SECONDS)
        self._close_cluster()

    def _close_cluster(self) -> None:
        if self._cluster is not None:
            with contextlib.suppress(Exception):
                self._cluster.close(timeout=CONNECT_SECONDS)


def _has_gpu(told: Mapping[str, Any]) -> bool:
    return bool(told["resources"].get(GPU, 0))


def _quieten() -> None:
    """Leave it to the log of the session what Dask writes to the standard error output of a program."""
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def slurm_cluster(config: Config) -> Any:
    """A scheduler in this process that gets its workers as jobs of SLURM, none of them yet.

    Raises
    ------
    ConfigError
        dask-jobqueue is not installed, or does not take what ``[cluster]`` says.
    """
    jobqueue = _need("dask_jobqueue")
    wanted, gpu = config.cluster, config.session.device == "gpu"
    if wanted.minimum_jobs > wanted.maximum_jobs:
        raise ConfigError(
            f"{config.file}: [cluster] minimum_jobs = {wanted.minimum_jobs} is more than maximum_jobs = "
            f"{wanted.maximum_jobs}"
        )
    try:
        return jobqueue.SLURMCluster(
            queue=wanted.queue,
            account=wanted.account,
            cores=wanted.cores,
            processes=1,
            memory=f"{wanted.memory_gib}GiB",
            walltime=wanted.walltime,
            job_extra_directives=[*([wanted.gpu_directive] if gpu else []), *wanted.directives],
            job_script_prologue=wanted.prologue,
            python=wanted.python or sys.executable,
            interface=wanted.interface,
            local_directory=wanted.scratch,
            worker_extra_args=["--no-dashboard", *(["--resources", f"{GPU}=1"] if gpu else [])],
            scheduler_options={"dashboard": False, "dashboard_address": ":0"},
            name="streamprep",
        )
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"{config.file}: [cluster]: {error}") from error
