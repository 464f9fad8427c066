"""Reading files for a server that goes on, and can end, where a file server does not answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

MOST_READS = 8
READ_SECONDS = 5.0


class Reads:
    """Reads files in a few threads of its own. The end of the process does not wait for one that hangs.

    Parameters
    ----------
    most
        Threads.
    wait_seconds
        How long an answer is waited for; None for ever.
    """

    def __init__(self, most: int = MOST_READS, wait_seconds: float | None = READ_SECONDS) -> None:
        self._most, self._wait = most, wait_seconds
        self._wanted: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._threads = 0
        self._waiting: set[asyncio.Future[Any]] = set()
        self._ended = False

    async def run(self, read: Callable[[], T]) -> T:
        """What a function returns or raises.

        Raises
        ------
        TimeoutError
            It did not in time, or the server ends.
        """
        if self._ended:
            raise TimeoutError
        made: Future[T] = Future()
        self._wanted.put((made, read))
        if self._threads < self._most:
            self._threads += 1
            threading.Thread(target=self._read, name="streamprep dashboard reads", daemon=True).start()
        answer = asyncio.wrap_future(made)
        self._waiting.add(answer)
        try:
            return await asyncio.wait_for(answer, self._wait)
        except asyncio.CancelledError:
            if not self._ended:
                raise
            raise TimeoutError from None
        finally:
            self._waiting.discard(answer)

    def end(self) -> None:
        """Let all who wait go, as at the end of the server."""
        self._ended = True
        for answer in self._waiting:
            answer.cancel()

    def _read(self) -> None:
        while True:
            made, read = self._wanted.get()
            if made.set_running_or_notify_cancel():
                try:
                    made.set_result(read())
                except BaseException as error:
                    made.set_exception(error)
            del made, read
