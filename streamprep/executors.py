"""Where jobs run: worker processes on this machine, or this process. Those of a cluster are in `streamprep.cluster`."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from pathlib import Path
from typing import Protocol

from streamprep.arrays import choose_backend, visible_gpus
from streamprep.config import Config
from streamprep.process_pool import DiedError, NotStartedError, ProcessPool
from streamprep.workers import WORKER, ItemJob, Outcome, TableJob, initialize, last_running, run_job

READ_AHEAD_BYTES = 1 << 28
"""Of the files of jobs that wait for a worker."""
READ_AHEAD_STEP = 1 << 19
"""Kernels read no more ahead at one call than a disk takes in one request."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Executor(Protocol):
    """Runs jobs somewhere."""

    @property
    def size(self) -> int:
        """How many run at a time."""

    @property
    def wanted(self) -> int:
        """As many as should be handed in where ``size`` is less, so that there will be workers for them."""

    @property
    def troubles(self) -> Sequence[str]:
        """What is wrong with the workers now, for people."""

    def submit(self, job: TableJob | ItemJob) -> Future[Outcome]:
        """Start a job, or queue it."""

    def cancel(self, job: Future[Outcome]) -> None:
        """Stop a job, as far as that is possible; its outcome, which comes all the same, is of no interest."""

    def check(self) -> None:
        """Look after the workers; called often."""

    def drain(self) -> None:
        """No more jobs will come: give those back that no worker has, and none may ever take."""

    def stop(self) -> None:
        """End the workers, whatever they have."""


class InlineExecutor:
    """Runs each job in this process, at once. For tests, and for debugging an operation with a debugger."""

    size = wanted = 1
    troubles = ()

    def __init__(self, config: Config) -> None:
        initialize(config, die_with_parent=False)

    def submit(self, job: TableJob | ItemJob) -> Future[Outcome]:
        """Run a job."""
        future: Future[Outcome] = Future()
        future.set_result(run_job(job))
        return future

    def cancel(self, job: Future[Outcome]) -> None:
        """Nothing to stop: it is done."""

    def check(self) -> None:
        """Nothing to look after."""

    def drain(self) -> None:
        """Nothing to give back."""

    def stop(self) -> None:
        """Nothing to end."""


class LocalExecutor:
    """Worker processes on this machine. One that dies or hangs costs its own job only."""

    wanted = 1
    troubles = ()

    def __init__(
        self, config: Config, *, environ: Mapping[str, str] | None = None, slots_in: Path | None = None
    ) -> None:
        backend = choose_backend(config.session.device)
        cores = len(os.sched_getaffinity(0))
        gpus = visible_gpus() if backend.name == "gpu" else ()
        self.size = config.session.workers or len(gpus) or cores
        self._timeout = config.session.job_timeout_seconds
        threads = str(max(1, cores // self.size))
        for variable in THREAD_VARIABLES:
            if variable not in (environ or os.environ):
                os.environ[variable] = threads  # inherited by the workers; the daemon itself computes nothing
        self._pool = ProcessPool(
            self.size,
            functools.partial(initialize, config, gpus=gpus, slots=self.size, slots_in=slots_in),
            start_timeout_seconds=config.session.start_timeout_seconds,
        )
        self._calls: dict[Future[Outcome], Future[Outcome]] = {}
        """What the pool knows jobs by."""

    def submit(self, job: TableJob | ItemJob) -> Future[Outcome]:
        """Queue a job. A worker that died or hung makes a failed outcome, like an operation that raised."""
        made: Future[Outcome] = Future()
        if isinstance(job, ItemJob):  # where the file's storage hangs, only this thread waits
            with contextlib.suppress(RuntimeError):  # no thread can be started now; it helps, and need not be
                threading.Thread(target=read_ahead, args=(job.item.path,), daemon=True).start()
        try:
            call = self._pool.call(run_job, job, timeout_seconds=self._timeout)
        except RuntimeError as error:
            made.set_result(Outcome("unstarted", str(error), WORKER))
            return made
        self._calls[made] = call

        def ended(call: Future[Outcome]) -> None:
            self._calls.pop(made, None)
            settle(made, self._outcome(job, call))

        call.add_done_callback(ended)
        return made

    def _outcome(self, job: TableJob | ItemJob, call: Future[Outcome]) -> Outcome:
        def lost(said: str) -> Outcome:
            operation = last_running(job.folder) if isinstance(job, ItemJob) else None
            return Outcome("lost", said if operation is None else f"{operation}: {said}", operation or WORKER)

        try:
            return call.result()
        except TimeoutError:
            return lost(f"took longer than job_timeout_seconds = {self._timeout:g}; its worker was stopped")
        except DiedError as error:
            return lost(f"its worker process died ({_exit_text(error.code)})")
        except CancelledError:
            return Outcome("unstarted", "it was given up", WORKER)
        except NotStartedError as error:
            if error.__cause__ is not None:
                said = f"worker processes cannot be started with {sys.executable}: {error.__cause__}"
            else:
                said = f"worker processes die, or hang, before they take up work: {error}"
            return Outcome("unstarted", said, WORKER)
        except BaseException as error:
            return lost(f"{type(error).__name__}: {error}")

    def cancel(self, job: Future[Outcome]) -> None:
        """Stop the worker that has a job."""
        if (call := self._calls.get(job)) is not None:
            self._pool.cancel(call)

    def check(self) -> None:
        """Nothing to look after: the pool does."""

    def drain(self) -> None:
        """Nothing to give back: workers that die are replaced, so each job will be taken up."""

    def stop(self) -> None:
        """End the workers."""
        self._pool.stop()


def read_ahead(path: Path) -> None:
    """Ask the kernel to read a file while the workers are at others; it takes no more than a little of it at a time."""
    if not hasattr(os, "posix_fadvise"):
        return
    with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
        size = min(os.fstat(file.fileno()).st_size, READ_AHEAD_BYTES)
        for start in range(0, size, READ_AHEAD_STEP):
            os.posix_fadvise(file.fileno(), start, READ_AHEAD_STEP, os.POSIX_FADV_WILLNEED)


def settle(future: Future[Outcome], outcome: Outcome) -> None:
    """Give a job its outcome, unless it has one."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(outcome)


def _exit_text(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
