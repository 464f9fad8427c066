"""Server-sent events: tells everybody who looks that something else is known."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator

from streamprep.web.reads import Reads
from streamprep.web.state import Watch

log = logging.getLogger(__name__)

MOST_CLIENTS = 32
LOOK_SECONDS = 1.0
BEAT_SECONDS = 15.0
RETRY_MILLISECONDS = 3000


class Feed:
    """Looks once for all clients, and wakes them.

    Parameters
    ----------
    watch
        What is looked at.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.clients = 0
        self._news = asyncio.Event()
        self._ended = False
        self._looking: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look again and again."""
        self._looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking

    async def _look(self) -> None:
        one, said = Reads(1, None), ""
        while True:
            try:
                if await one.run(self.watch.look):
                    self._wake()
                said = ""
            except Exception as error:
                if said != repr(error):  # it would come again each second
                    log.exception("the session could not be looked at")
                said = repr(error)
            view = self.watch.view
            await asyncio.sleep(LOOK_SECONDS if view.loaded or view.troubles or said else 0.01)

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def end(self) -> None:
        """Let all clients go, as at the end of the server."""
        self._ended = True
        self._wake()

    async def events(self, beat_seconds: float = BEAT_SECONDS) -> AsyncIterator[str]:
        """What one client is sent: the state at once, and whenever it changed; in between, comments."""
        self.clients += 1
        try:
            yield f"retry: {RETRY_MILLISECONDS}\n\n"
            sent = -1
            while not self._ended:
                news, view = self._news, self.watch.view
                if view.version != sent:
                    sent = view.version
                    mode = None if view.snapshot is None else view.snapshot.mode
                    said = json.dumps(
                        {
                            "version": sent,
                            "rows": view.rows_version,
                            "daemon": view.daemon,
                            "mode": mode,
                            "age": round(self.watch.age_seconds, 1),
                        }
                    )
                    yield f"event: status\nid: {sent}\ndata: {said}\n\n"
                    continue
                try:
                    await asyncio.wait_for(news.wait(), beat_seconds)
                except TimeoutError:
                    yield ": still here\n\n"
        finally:
            self.clients -= 1
