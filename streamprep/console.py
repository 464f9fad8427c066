"""The console: a rich live view, plain lines without a terminal, JSON lines on request. A plugin of the life cycle."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Literal

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from streamprep.hookspecs import hookimpl
from streamprep.snapshot import clean, unmatched_text

Style = Literal["live", "plain", "json", "quiet"]
PLAIN_EVERY_SECONDS = 10.0
ROOMY_LINES = 16
"""Lower terminals see the numbers and the troubles only."""

MODE_COLOURS = {
    "running": "green",
    "waiting": "cyan",
    "paused": "yellow",
    "stopped": "red",
    "draining": "yellow",
    "finished": "green",
}


def _hide_control_characters() -> list[Any] | None:
    """Keep the terminal from echoing ``^C`` into the view; returns its settings, or None without a terminal."""
    try:
        before = termios.tcgetattr(sys.stdin)
        quiet = termios.tcgetattr(sys.stdin)
    except (termios.error, ValueError, OSError):
        return None
    quiet[3] &= ~termios.ECHOCTL
    _set_terminal(quiet)
    return before


def _set_terminal(settings: list[Any]) -> None:
    with contextlib.suppress(termios.error, ValueError, OSError):
        if not _in_background():
            termios.tcsetattr(sys.stdin, termios.TCSANOW, settings)


def _in_background() -> bool:
    """Whether the shell has put this process behind; the kernel would stop it for changing the terminal."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp()
    except OSError:  # not the terminal that controls this process
        return False


def duration(seconds: float) -> str:
    """A time span for people.

    Examples
    --------
    >>> duration(3.2), duration(75), duration(7300)
    ('3.2 s', '1 min 15 s', '2 h 01 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes for people.

    Examples
    --------
    >>> size(2048), size(3 * 2**30)
    ('2.0 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def view(snapshot: Any, *, height: int = 40) -> RenderableType:
    """The live view of a session's snapshot, no higher than ``height`` lines."""
    colour = MODE_COLOURS.get(snapshot.mode, "white")
    head = Text.assemble(
        (f" {snapshot.mode} ", f"bold reverse {colour}"),
        f"  {duration(snapshot.elapsed_seconds)}  ·  {clean(snapshot.device)}  ·  {snapshot.workers} workers  ·  ",
        f"{size(snapshot.disk_free_bytes)} free",
    )
    parts: list[RenderableType] = [head]
    if snapshot.message:
        parts.append(Text(clean(snapshot.message), style=f"bold {colour}"))
    roomy = height >= ROOMY_LINES
    parts += [Text(clean(trouble), style="yellow") for trouble in snapshot.degraded[: 3 if roomy else 1]]
    if roomy:
        parts.append(Text(" → ".join(snapshot.plan), style="dim"))

    jobs = snapshot.jobs
    running = snapshot.running[: snapshot.workers]  # the pool has more, but they wait in it
    counts = (
        _number("done", jobs.get("done", 0), "green"),
        _number("in work", len(running), "cyan"),
        _number("queued", jobs.get("ready", 0) + max(0, jobs.get("claimed", 0) - len(running)), "cyan"),
        _number("waiting", snapshot.waiting_count, "yellow"),
        _number("settling", snapshot.settling, "white"),
        _number("failed", snapshot.failed, "red"),
        _number("rejected", snapshot.rejected, "magenta"),
        _number("warnings", snapshot.warnings, "yellow"),
    )
    parts.append(Text("   ").join(counts))
    rates = f"{snapshot.items_per_hour:,.0f} {snapshot.items}/h  ·  {snapshot.particles_per_second:,.1f} particles/s"
    if snapshot.oldest_seconds:
        rates += f"  ·  oldest in the queue {duration(snapshot.oldest_seconds)}"
    parts.append(Text(rates))
    if snapshot.rows:
        parts.append(Text("   ".join(f"{name} {count:,}" for name, count in snapshot.rows.items()), style="bold"))
    if snapshot.operation_seconds and roomy:
        times = "   ".join(f"{name} {1000 * mean:.0f} ms" for name, mean in snapshot.operation_seconds.items())
        parts.append(Text(f"per item: {times}", style="dim"))

    lists = [
        ("in work", [(name, duration(age)) for name, age in running], "cyan"),
        ("waiting", [(item, reason) for item, reason, _ in snapshot.waiting], "yellow"),
        ("failed or rejected", [(row["file"], row["reason"]) for row in snapshot.failures], "red"),
    ]
    lists = [made for made in lists if made[1]]
    left = height - 2 - len(parts)
    while lists and left // len(lists) < 2:
        del lists[0]  # the counts above say as much
    for title, rows, shade in lists:
        parts += _list(title, rows, left // len(lists) - 1, shade, wrap=title == "failed or rejected")
    title = f"streamprep  {clean(snapshot.output)}"
    return Panel(_Cut(Group(*parts), height - 2), title=title, title_align="left", border_style=colour)


@dataclass(frozen=True, slots=True)
class _Cut:
    """What is drawn, no higher than some lines, however it wraps."""

    drawn: RenderableType
    lines: int

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self.drawn, options.reset_height())[: self.lines]:
            yield from line
            yield Segment.line()


def _number(name: str, value: int, colour: str) -> Text:
    return Text.assemble((f"{value:,}", f"bold {colour}" if value else "dim"), (f" {name}", "dim"))


def _list(
    title: str, rows: list[tuple[str, str]], room: int, colour: str, *, wrap: bool = False
) -> list[RenderableType]:
    table = Table.grid(padding=(0, 2))
    width = min(48, max(len(clean(name)) for name, _ in rows[:room]))
    table.add_column(no_wrap=True, overflow="ellipsis", min_width=width, max_width=width, style=colour)
    table.add_column(no_wrap=not wrap, overflow="ellipsis", style="dim")
    for name, said in rows[:room]:
        table.add_row(escape(clean(name)), escape(clean(said)))
    more = len(rows) - room
    return [Text(title if more <= 0 else f"{title} (and {more} more)", style=f"underline {colour}"), table]


def summary(snapshot: Any) -> list[str]:
    """The end of a session in plain lines: what was made, what waits and for what, what failed and why."""
    jobs = snapshot.jobs
    head = (
        f"{jobs.get('done', 0)} {snapshot.items} done, {snapshot.waiting_count} waiting, {snapshot.failed} failed, "
        f"{snapshot.rejected} rejected, {snapshot.warnings} with warnings, "
        f"in {duration(snapshot.elapsed_seconds)}"
    )
    lines = [head]
    lines += [f"  {count:,} rows in {name}" for name, count in snapshot.rows.items()]
    lines += [f"  waiting: {clean(item)}: {clean(reason)}" for item, reason, _ in snapshot.waiting]
    lines += [f"  {unmatched_text(kind, clean(name))}" for kind, name in snapshot.unmatched]
    if snapshot.unknown_files:
        lines.append(f"  {snapshot.unknown_files} files were left alone: of no known kind, or used by operations")
    lines += [f"  {row['state']}: {clean(row['file'])}: {clean(row['reason'])}" for row in snapshot.failures]
    if snapshot.message:
        lines.append(f"  {clean(snapshot.message)}")
    lines.append(f"results in {clean(snapshot.output)}")
    return lines


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
        self._stream = stream or sys.stdout
        self._rich = RichConsole(file=self._stream, highlight=False)
        self._live: Live | None = None
        self._snapshot: Any = None
        self._next_line = 0.0
        self._terminal: list[Any] | None = None
        self._size = self._rich.size

    @hookimpl
    def run_started(self, plan: Any, config: Any) -> None:
        """Begin."""
        steps = " → ".join(f"{step.table}.{step.name}" for step in plan.steps)
        if self.style == "live":
            self._terminal = _hide_control_characters()
            self._live = Live(get_renderable=self._render, console=self._rich, refresh_per_second=4)
            self._live.start()
        elif self.style == "json":
            self._event("run_started", plan=plan.hash, steps=[step.describe() for step in plan.steps])
        elif self.style == "plain":
            self._line(f"streamprep: watching {', '.join(config.session.watch)}; {steps}")

    def _render(self) -> RenderableType:
        if self._size != self._rich.size:  # the terminal has wrapped what was drawn anew
            self._size = self._rich.size
            self._rich.clear()
        if self._snapshot is None:
            return Text("starting")
        return view(self._snapshot, height=self._size.height)

    @hookimpl
    def item_finished(self, item: str, state: str, reason: str | None) -> None:
        """Say how an item ended."""
        if self.style == "json":
            self._event("item_finished", item=item, state=state, reason=reason)
        elif self.style == "plain":
            self._line(f"{state:<8} {clean(item)}{f': {clean(reason)}' if reason else ''}")

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
            self._rich.print(Text(clean(message), style="yellow"))
        else:
            self._line(f"warning: {clean(message)}")

    @hookimpl
    def snapshot_taken(self, snapshot: Any) -> None:
        """Keep the newest state; write a line of it now and then where there is no live view."""
        self._snapshot = snapshot
        if self.style == "plain" and self._clock() >= self._next_line:
            if self._next_line:
                done, queued = snapshot.jobs.get("done", 0), snapshot.jobs.get("ready", 0)
                self._line(
                    f"{snapshot.mode}: {done} done, {queued} queued, {snapshot.waiting_count} waiting, "
                    f"{snapshot.items_per_hour:.0f} {snapshot.items}/h, {size(snapshot.disk_free_bytes)} free"
                )
            self._next_line = self._clock() + PLAIN_EVERY_SECONDS

    @hookimpl
    def run_stopped(self, snapshot: Any) -> None:
        """End with a summary."""
        self._snapshot = snapshot
        if self._live is not None:
            self._live.stop()  # draws once more
            self._live = None
            if self._terminal is not None:
                _set_terminal(self._terminal)
        if self.style == "json":
            jobs, rows = snapshot.jobs, snapshot.rows
            self._event("run_stopped", mode=snapshot.mode, jobs=jobs, rows=rows, waiting=snapshot.waiting_count)
        else:
            for line in summary(snapshot):
                self._line(line)

    def restore(self) -> None:
        """Give the terminal back as it was, where the view was not ended.

        Safe in a signal handler: no lock is taken, and nothing of rich is called.
        """
        if self._live is None:
            return
        if self._terminal is not None:
            _set_terminal(self._terminal)
        with contextlib.suppress(OSError, ValueError):
            os.write(self._stream.fileno(), b"\x1b[?25h\n")

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def _event(self, event: str, **values: Any) -> None:
        self._line(json.dumps({"event": event, "time": round(time.time(), 3), **values}, default=str))
