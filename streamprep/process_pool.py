"""Worker processes, each with a pipe of its own, so that one that dies or hangs costs nothing but its own call.

That holds at whatever moment it dies: they share no lock and no queue. One thread of the caller's process serves them.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import pickle
import socket
import struct
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""While calls run, so often it is asked whether their processes live; most deaths are heard of at once by the pipe."""

GRACE_SECONDS = 3.0
"""A process whose pipe is closed, or that was killed, has so long to end."""

STALL_SECONDS = 30.0
"""A process that stops for so long in the middle of a message, as one that was sent SIGSTOP, is given up."""

LONGEST_PAUSE_SECONDS = 300.0
"""Processes that die before they are ready are started again after pauses that double up to this."""


class DiedError(Exception):
    """The process that had a call died.

    Parameters
    ----------
    code
        Its exit code; minus the number of the signal that killed it; None where it has not ended yet.
    """

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


class NotStartedError(Exception):
    """No process took up a call, and none is there that could; says why. Its cause is the system's error, if any."""


@dataclass(eq=False)
class _Call:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    timeout_seconds: float | None
    future: Future[Any]


@dataclass(eq=False)
class _Process:
    process: Any
    pipe: Connection
    since: float
    """When it was started; or, where it has a call, given that."""
    ready: bool = False
    call: _Call | None = None


class ProcessPool:
    """Processes that are started when there is work for them, and again when one ended.

    Parameters
    ----------
    size
        How many at most.
    prepare
        Called in each process first; can be pickled.
    start_timeout_seconds
        A process that is not ready after this time is killed [s].
    """

    def __init__(self, size: int, prepare: Callable[[], object], *, start_timeout_seconds: float) -> None:
        self._size, self._prepare, self._start_timeout = size, prepare, start_timeout_seconds
        self._context: Any = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()
        """Held around the four that other threads touch."""
        self._waiting: deque[_Call] = deque()
        self._unwanted: set[Future[Any]] = set()
        self._ended = False
        self._woken = False
        self._waker, self._wake_up = Pipe(duplex=False)
        self._processes: list[_Process] = []
        self._pause, self._not_before = 0.0, 0.0
        self._thread = threading.Thread(target=self._serve, name="process-pool", daemon=True)
        self._thread.start()
        atexit.register(self.stop)  # before multiprocessing waits for the processes to end

    # --- for any thread ---

    def call(self, function: Callable[..., Any], *arguments: Any, timeout_seconds: float | None = None) -> Future[Any]:
        """Call a function in one of the processes, in the order of the calls.

        Returns
        -------
        What it returns or raises. Otherwise a `TimeoutError` after the time, from when a process has it; a `DiedError`;
        a `NotStartedError`; a `CancelledError`.

        Raises
        ------
        RuntimeError
            The pool has ended.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._ended:
                raise RuntimeError("the pool of worker processes has ended")
            self._waiting.append(_Call(function, arguments, timeout_seconds, future))
        self._wake()
        return future

    def cancel(self, future: Future[Any]) -> None:
        """End a call; the process that has it is killed."""
        if not future.cancel() and not future.done():
            with self._lock:
                self._unwanted.add(future)
            self._wake()

    def stop(self) -> None:
        """Kill the processes; calls that have not ended are cancelled."""
        atexit.unregister(self.stop)
        with self._lock:
            self._ended = True
        self._wake()
        self._thread.join(timeout=2 * GRACE_SECONDS)

    def _wake(self) -> None:
        with self._lock:
            if not self._woken:
                self._woken = True
                self._wake_up.send_bytes(b"")

    # --- in the thread that serves ---

    def _serve(self) -> None:
        reason: BaseException = CancelledError()
        try:
            while not self._ended:
                self._begin()
                self._hand_out()
                self._listen()
                self._look_after()
        except BaseException as error:  # a fault of this module; nobody may wait for ever because of it
            log.exception("the pool of worker processes has failed")
            reason = NotStartedError(f"the pool of worker processes has failed: {type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._ended = True
            for each in self._processes:
                each.process.kill()
            while self._processes:
                self._end(self._processes[0], reason)
            self._refuse(reason)

    def _begin(self) -> None:
        """Start as many processes as there is work for."""
        if self._processes and time.monotonic() < self._not_before:
            return
        with self._lock:
            waiting = len(self._waiting)
        busy = sum(each.call is not None for each in self._processes)
        for _ in range(min(self._size, busy + waiting) - len(self._processes)):
            try:
                self._processes.append(self._start())
            except (OSError, EOFError, MemoryError) as error:
                self._not_ready(f"cannot be started: {error}", error)
                return

    def _start(self) -> _Process:
        ours, theirs = Pipe()
        try:
            with theirs:  # it is the process's alone, so that its death is heard of
                process = self._context.Process(target=_work, args=(theirs, self._prepare))
                process.start()
            _never_wait_long(ours)
        except BaseException:
            ours.close()
            raise
        return _Process(process, ours, time.monotonic())

    def _hand_out(self) -> None:
        for each in [each for each in self._processes if each.ready and each.call is None]:
            if each.process.exitcode is not None:
                self._lost(each)
                continue
            while (call := self._next()) is not None:
                try:
                    packed = ForkingPickler.dumps((call.function, call.arguments))
                except Exception as error:
                    call.future.set_exception(error)
                    continue
                try:
                    each.pipe.send_bytes(packed)
                except OSError:  # it died while it had nothing to do, or takes nothing
                    with self._lock:
                        self._waiting.appendleft(call)
                    self._lost(each)
                else:
                    each.call, each.since = call, time.monotonic()
                break

    def _next(self) -> _Call | None:
        """The next call that somebody waits for."""
        while True:
            with self._lock:
                if not self._waiting:
                    return None
                call = self._waiting.popleft()
            if call.future.running() or call.future.set_running_or_notify_cancel():
                return call

    def _listen(self) -> None:
        """Wait until something happens, or might have to."""
        pipes: dict[Any, _Process] = {each.pipe: each for each in self._processes}
        for pipe in wait([self._waker, *pipes], self._patience()):
            if pipe in pipes:
                self._hear(pipes[pipe])
                continue
            with self._lock:
                self._waker.recv_bytes()
                self._woken = False

    def _patience(self) -> float | None:
        now = time.monotonic()
        until = [each.since + self._start_timeout for each in self._processes if not each.ready]
        for call, since in ((each.call, each.since) for each in self._processes if each.call is not None):
            until.append(now + LOOK_SECONDS)
            if call.timeout_seconds is not None:
                until.append(since + call.timeout_seconds)
        if self._waiting and self._processes and self._not_before > now:
            until.append(self._not_before)
        return max(0.0, min(until) - now) if until else None

    def _hear(self, each: _Process) -> None:
        try:
            packed = each.pipe.recv_bytes()
        except (EOFError, OSError):
            self._lost(each)
            return
        if not each.ready:
            each.ready = True
            self._pause = 0.0
            return
        call, each.call = each.call, None
        if call is None:  # an operation wrote into the pipe
            self._end(each, None)
            return
        try:
            returned, value = pickle.loads(packed)  # noqa: S301 - from our own process
        except Exception as error:
            returned, value = False, error
        if returned:
            call.future.set_result(value)
        else:
            call.future.set_exception(value)

    def _look_after(self) -> None:
        """End those that take too long, or whose call nobody wants any more; find those that died unheard."""
        with self._lock:
            unwanted, self._unwanted = self._unwanted, set()
        now = time.monotonic()
        for each in list(self._processes):
            call, took = each.call, now - each.since
            if call is not None and call.future in unwanted:
                self._end(each, CancelledError())
            elif call is not None and call.timeout_seconds is not None and took > call.timeout_seconds:
                self._end(each, TimeoutError(f"took longer than {call.timeout_seconds:g} s"))
            elif not each.ready and took > self._start_timeout:
                self._end(each, None)
                self._not_ready(f"was not ready within start_timeout_seconds = {self._start_timeout:g}")
            elif each.process.exitcode is not None and not each.pipe.poll():  # its own children may hold its pipe open
                self._lost(each)

    def _lost(self, each: _Process) -> None:
        """It died, or closed its pipe."""
        _wait_for_end(each.process)
        code = each.process.exitcode
        self._end(each, DiedError(code))
        if not each.ready:
            self._not_ready(f"ended before it was ready (exit code {code})")

    def _end(self, each: _Process, reason: BaseException | None) -> None:
        each.process.kill()
        _wait_for_end(each.process)
        each.pipe.close()
        self._processes.remove(each)
        if each.call is not None:
            each.call.future.set_exception(reason)
        self._wake()  # a call that waits may need another one

    def _not_ready(self, what: str, cause: BaseException | None = None) -> None:
        self._pause = min(LONGEST_PAUSE_SECONDS, 2 * self._pause or 1.0)
        log.error("a worker process %s", what)
        if self._processes:
            self._not_before = time.monotonic() + self._pause  # those that are left can do the work
        else:
            reason = NotStartedError(f"the last one {what}")
            reason.__cause__ = cause
            self._refuse(reason)

    def _refuse(self, reason: BaseException) -> None:
        """End all calls that wait."""
        with self._lock:
            waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        for call in waiting:
            if call.future.running() or call.future.set_running_or_notify_cancel():
                call.future.set_exception(reason)


def _wait_for_end(process: Any) -> None:
    """Unlike its join(), not for those that it forked, which hold its sentinel."""
    until = time.monotonic() + GRACE_SECONDS
    while process.exitcode is None and time.monotonic() < until:
        wait([process.sentinel], 0.05)


def _never_wait_long(pipe: Connection) -> None:
    """Let reads and writes raise an OSError where the other end stops in the middle of a message."""
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", *divmod(int(1e6 * STALL_SECONDS), 1_000_000)))


def _work(pipe: Connection, prepare: Callable[[], object]) -> None:
    """In a process: do what comes through the pipe, until nobody is at its other end."""
    os.register_at_fork(after_in_child=pipe.close)  # what an operation forks, and does not end, is not to answer
    prepare()
    with contextlib.suppress(EOFError, OSError):
        pipe.send_bytes(b"ready")
        while True:
            pipe.send_bytes(_answer(pipe.recv_bytes()))


def _answer(packed: bytes) -> Any:
    try:
        function, arguments = pickle.loads(packed)  # noqa: S301 - from our own process
        return ForkingPickler.dumps((True, function(*arguments)))
    except BaseException as error:
        error.add_note(traceback.format_exc())
        try:
            return ForkingPickler.dumps((False, error))
        except Exception:
            return ForkingPickler.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
