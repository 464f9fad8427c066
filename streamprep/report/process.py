"""Making what is due, now and then while a session runs, and all of it at its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from streamprep.config import Config
from streamprep.history import LOG, History
from streamprep.ledger import LedgerError
from streamprep.pipeline import Plan
from streamprep.plugin_manager import Plugins
from streamprep.report.gallery import BusyError, Gallery, alone, has_room, is_there
from streamprep.report.overview import Overview, Trends, overview
from streamprep.report.page import page
from streamprep.report.read import Reader
from streamprep.sinks import _files

log = logging.getLogger(__name__)

REPORT = "report.html"
SHARE = 0.05
"""Most of one core that pictures take while a session runs."""
LEAST_SECONDS = 1.0
BUSY_SECONDS = 2.0
"""After so long it is tried again where another process makes pictures."""
PAGE_SECONDS = 30.0
"""The page is renewed this often where there is something new but no picture."""


class Maker:
    """Makes the pictures and the report of one session.

    Parameters
    ----------
    config, plugins, plan
        Of the session.
    output
        Its output folder.
    clock, cpu, now
        Monotonic clock, this process's processor time, and wall clock.
    """

    def __init__(
        self,
        config: Config,
        plugins: Plugins,
        plan: Plan,
        output: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.output, self._config, self._plan = output, config, plan
        self._clock, self._cpu, self._now = clock, cpu, now
        self._history = History(output)
        reader = Reader(config, plugins, plan, output)
        step = next((step for step in plan.lane("maps") if step.name == "threshold"), None)
        threshold = None if step is None else step.params.model_dump().get("value")
        self.gallery = Gallery(output, self._history, reader, config.pictures, threshold)
        self._trends = Trends(self._history, reader)
        self._overview: Overview | None = None
        self._turn = 0
        self._next_picture = self._next_page = float("-inf")
        self._is_new = True
        self._has_begun = self._waits = False
        self._unreadable: tuple[int, int, int] | None = None
        """What the log of commits was when it could not be read."""

    def round(self) -> float:
        """Do one thing that is due; how long to rest then [s], so that all of it takes little of a core."""
        begun = self._cpu()
        if self._may_write() and self._is_readable():
            try:
                with alone(self.output, 0.0):
                    self._waits = False
                    self._do_one_thing()
            except BusyError as error:
                if not self._waits:
                    log.info("%s; waiting for it", error)
                self._waits = True
                return BUSY_SECONDS
            except LedgerError as error:
                self._cannot_read(error)
        return max(LEAST_SECONDS, (self._cpu() - begun) * (1 / SHARE - 1))

    def _do_one_thing(self) -> None:
        self.gallery.refresh()
        if not self._has_begun:
            self.gallery.remove_strangers()  # what an earlier one left half done
            self._has_begun = True
        if self._history.update():
            self._is_new = True
            return  # a long log is read in parts, with rests between
        now = self._clock()
        if now >= self._next_picture and self._make_next():
            self._next_picture = now + self._config.pictures.every_seconds
            self._write()
        elif self._is_new and now >= self._next_page:
            self._write()

    def finish(self, seconds: float) -> None:
        """Write the report of the final state, then make what is due until the time is over, and write it again."""
        if not (self._may_write() and self._is_readable()):
            return
        try:
            with alone(self.output, seconds):
                self._finish(self._clock() + seconds)
        except BusyError as error:  # of a session that goes on here, or of a person; it knows all that is committed
            log.info("%s", error)
        except LedgerError as error:
            self._cannot_read(error)

    def _finish(self, until: float) -> None:
        self.gallery.refresh()
        self.catch_up()
        self._write()
        made = False
        while self._clock() < until and self._may_write() and self._make_next():
            made = True
        if made and self._may_write():
            self._write()

    def all(self, progress: Callable[[int, int], None] = lambda _, __: None) -> int:
        """Make all that is due and the report; how many items have pictures.

        Raises
        ------
        LedgerError
            The log of commits is of another version.
        BusyError
            Another process makes pictures here.
        """
        with alone(self.output):
            self.gallery.refresh()
            try:
                self.catch_up()
            except LedgerError as error:
                raise LedgerError(f"{error}; streamprep run upgrades that of an earlier version") from error
            self.gallery.remove_strangers()
            self._sum_up()
            total = len(self.gallery.due(self._odd()))
            done = 0
            progress(0, total)
            while self._make_next():
                done += 1
                progress(done, max(done, total))
            self._write()
        return len(self.gallery.records)

    def catch_up(self) -> None:
        """Read what was committed so far."""
        while self._history.update():
            pass

    def _may_write(self) -> bool:
        return is_there(self.output) and has_room(self.output, self._config.session.reserve_mib)

    def _is_readable(self) -> bool:
        """Whether the log of commits could be read, or is another one than that which could not."""
        return self._unreadable is None or self._unreadable != self._log()

    def _cannot_read(self, error: LedgerError) -> None:
        self._unreadable = self._log()
        log.warning("no pictures until the log of commits changes: %s", error)

    def _log(self) -> tuple[int, int, int]:
        try:
            found = (self.output / LOG).stat()
        except OSError:
            return 0, 0, 0
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _make_next(self) -> bool:
        """Make the pictures of one item: in turn the most urgent, which is the newest, and one of the others."""
        while due := self.gallery.due(self._odd()):
            self._turn += 1
            done = due[0] if self._turn % 2 or len(due) == 1 else due[1]
            if self.gallery.make(done) is not None:
                self.gallery.tidy(self._odd())
                return True
        return False

    def _odd(self) -> list[str]:
        return [] if self._overview is None else list(dict.fromkeys(odd.item for odd in self._overview.odd))

    def _sum_up(self) -> Overview:
        self._overview = overview(self._history, self._trends, self._plan)
        return self._overview

    def _write(self) -> None:
        made = self._sum_up()
        self.gallery.tidy(self._odd())
        records = list(self.gallery.records.values())
        name = f"{self.output.parent.name}/{self.output.name}"
        text = page(made, records, name=name, now=self._now(), most=self._config.pictures.most)
        _files.replace_whole(self.output / REPORT, [text.encode("utf-8", "replace")], durable=False)
        self._is_new = False
        self._next_page = self._clock() + PAGE_SECONDS
