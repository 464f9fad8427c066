"""The console: a live view, plain lines without a terminal, JSON lines on request. A plugin of the life cycle.

Nothing here waits for whoever reads: a thread writes (`streamprep.terminal`), and only the newest state is drawn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO, Any, Literal

from rich.console import Console as RichConsole
from rich.text import Text

from streamprep.console_view import Past, brief, view
from streamprep.hookspecs import hookimpl
from streamprep.snapshot import clean, unmatched_text
from streamprep.terminal import Output, stopping
from streamprep.units import counted, duration, free_space

Style = Literal["live", "plain", "json", "quiet"]
PLAIN_EVERY_SECONDS = 10.0
KEPT_MESSAGES = 20

NOT_IN_EVENTS = ("output", "plan", "waiting", "running", "failures", "recent_warnings", "unmatched", "started", "taken")
"""Of a snapshot: what other events say, or `streamprep status --json`."""


def summary(snapshot: Any) -> list[str]:
    """The end of a session in plain lines: what was made, what waits and for what, what failed and why."""
    jobs = snapshot.jobs
    head = (
        f"{counted(jobs.get('done', 0), snapshot.items)} done, {snapshot.waiting_count} waiting, "
        f"{snapshot.failed} failed, {snapshot.rejected} rejected, {snapshot.warnings} with warnings, "
        f"in {duration(snapshot.elapsed_seconds)}"
    )
    lines = [head]
    lines += [f"  {count:,} rows in {name}" for name, count in snapshot.rows.items()]
    lines += [f"  waiting: {clean(item)}: {clean(reason)}" for item, reason, _ in snapshot.waiting]
    lines += _more(snapshot.waiting_count - len(snapshot.waiting), "waiting")
    lines += [f"  {unmatched_text(kind, clean(name))}" for kind, name in snapshot.unmatched]
    if snapshot.unknown_files:
        lines.append(f"  {snapshot.unknown_files} files were left alone: of no known kind, or used by operations")
    lines += [f"  {row['state']}: {clean(row['file'])}: {clean(row['reason'])}" for row in snapshot.failures]
    lines += _more(snapshot.failed + snapshot.rejected - len(snapshot.failures), "failed or rejected")
    if snapshot.message:
        lines.append(f"  {clean(snapshot.message)}")
    lines.append(f"results in {clean(snapshot.output)}")
    return lines


def _more(count: int, what: str) -> list[str]:
    return [f"  {what}: {count} more; streamprep status lists them"] if count > 0 else []


class Console:
    """Shows a session.

    Parameters
    ----------
    style
        ``live`` redraws a view, ``plain`` writes a line per event, ``json`` a JSON object per event, ``quiet`` only the
        summary. ``auto`` choices are the command line's.
    stream
        Where to; standard output unless given.
    """

    def __init__(
        self, style: Style, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.style, self._clock = style, clock
        self._output = Output(
            stream or sys.stdout,
            self._draw if style == "live" else None,
            (lambda count: _event("left_out", lines=count)) if style == "json" else None,
        )
        self._ending = contextlib.ExitStack()
        self._snapshot: Any = None
        self._past = Past()
        self._said: deque[str] = deque(maxlen=KEPT_MESSAGES)
        self._next_line = 0.0

    @hookimpl
    def run_started(self, plan: Any, config: Any) -> None:
        """Begin."""
        steps = " → ".join(f"{step.table}.{step.name}" for step in plan.steps)
        if self.style == "live":
            self._ending.enter_context(stopping(self._output))
            self._output.start()
        elif self.style == "json":
            self._event("run_started", plan=plan.hash, steps=[step.describe() for step in plan.steps])
        elif self.style == "plain":
            self._output.line(f"streamprep: watching {', '.join(config.session.watch)}; {steps}")

    def _draw(self, width: int, height: int) -> list[str]:
        if self._snapshot is None:
            return ["starting"]
        drawn = view(self._snapshot, width, height, past=self._past, said=tuple(self._said))
        return rendered(drawn, width)

    @hookimpl
    def item_finished(self, item: str, state: str, reason: str | None, warnings: Sequence[str]) -> None:
        """Say how an item ended."""
        if self.style == "json":
            for message in warnings:
                self._event("warning", item=item, message=message)
            self._event("item_finished", item=item, state=state, reason=reason)
        elif self.style == "plain":
            self._output.line(f"{state:<8} {clean(item)}{f': {clean(reason)}' if reason else ''}")

    @hookimpl
    def operation_finished(self, item: str, operation: str, seconds: float) -> None:
        """Only for machines."""
        if self.style == "json":
            self._event("operation_finished", item=item, operation=operation, seconds=round(seconds, 6))

    @hookimpl
    def warning_raised(self, message: str) -> None:
        """Pass a message on."""
        if self.style == "json":
            self._event("warning", message=message)
        elif self.style == "live":
            self._said.append(message)
        elif self.style == "plain":
            self._output.line(f"warning: {clean(message)}")

    @hookimpl
    def snapshot_taken(self, snapshot: Any) -> None:
        """Keep the newest state; write of it now and then where there is no live view."""
        self._past.note(snapshot)
        self._snapshot = snapshot
        if self.style not in ("plain", "json") or self._clock() < self._next_line:
            return
        begun, self._next_line = self._next_line > 0, self._clock() + PLAIN_EVERY_SECONDS
        if not begun:
            return
        if self.style == "json":
            kept = (field for field in dataclasses.fields(snapshot) if field.name not in NOT_IN_EVENTS)
            self._event("snapshot", **{field.name: _plain(getattr(snapshot, field.name)) for field in kept})
            return
        done, queued = snapshot.jobs.get("done", 0), snapshot.jobs.get("ready", 0)
        oldest = f" (oldest {brief(snapshot.oldest_seconds)})" if snapshot.oldest_seconds else ""
        self._output.line(
            f"{snapshot.mode}: {done} done, {queued} queued, {snapshot.waiting_count} waiting{oldest}, "
            f"{snapshot.failed} failed, {snapshot.items_per_hour:.0f} {snapshot.items}/h, "
            f"{free_space(snapshot.disk_free_bytes, snapshot.disk_total_bytes)}"
        )

    @hookimpl
    def run_stopped(self, snapshot: Any) -> None:
        """End with a summary."""
        self._snapshot = snapshot
        self._output.end_view()
        self._ending.close()
        for message in self._said:
            self._output.line(f"warning: {clean(message)}")
        if self.style == "json":
            jobs, rows = snapshot.jobs, snapshot.rows
            self._event("run_stopped", mode=snapshot.mode, jobs=jobs, rows=rows, waiting=snapshot.waiting_count)
        else:
            for line in summary(snapshot):
                self._output.line(line)

    def drawing_pictures(self, seconds: float) -> None:
        """Say after the summary what the process still does, and for how long at most."""
        if self.style == "json":
            self._event("drawing_pictures", seconds=seconds)
        elif self.style != "quiet":
            self._output.line(f"drawing the last pictures, {seconds:g} s at most; Ctrl-C leaves them out")

    def close(self) -> None:
        """Write what is left; to be called once nothing is held any more that others wait for."""
        self._ending.close()
        self._output.close()

    def restore(self) -> None:
        """Give the terminal back as it was, where the view was not ended. Safe in a signal handler."""
        self._output.restore()

    def _event(self, event: str, **values: Any) -> None:
        self._output.line(_event(event, **values))


def rendered(lines: Sequence[Text], width: int) -> list[str]:
    """Lines as a terminal like this one takes them: with its colours, or none where NO_COLOR is set."""
    console = RichConsole(file=io.StringIO(), force_terminal=True, width=width, legacy_windows=False, highlight=False)
    with console.capture() as capture:
        console.print(Text("\n").join(lines), no_wrap=True, overflow="crop", crop=True, soft_wrap=False)
    return capture.get().removesuffix("\n").split("\n")


def _event(event: str, **values: Any) -> str:
    return json.dumps({"event": event, "time": round(time.time(), 3), **values}, default=str)


def _plain(value: Any) -> Any:
    """Dataclasses, alone or in a tuple, as JSON takes them."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
