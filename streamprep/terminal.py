"""Writes to a terminal, a pipe or a file from a thread of its own, so that nobody else ever waits for it.

A terminal may be gone (its connection broke down), stopped (Ctrl-S, a stalled connection) or another program's (after
Ctrl-Z). None of that ends or delays a session.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import signal
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, Any

log = logging.getLogger(__name__)

MOST_LINES = 10_000
"""So many lines wait for whoever reads them; further ones are left out."""
DRAW_SECONDS = 0.25
WHOLE_SECONDS = 15.0
"""All of the view is drawn anew so often; in between what has changed."""
PATIENCE_SECONDS = 2.0
"""A terminal that takes nothing for so long is not waited for at the end."""

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
"""The other screen, no cursor, no wrapping of lines."""
LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"

Draw = Callable[[int, int], list[str]]
"""Makes the lines of the view for a width and a height."""


class Output:
    """A stream that takes lines, and on a terminal a view; a thread writes them.

    Parameters
    ----------
    stream
        Where to.
    draw
        Makes the view; lines that are written while there is one appear after it has ended.
    left_out
        Makes the line that says how many were left out.
    """

    def __init__(self, stream: IO[str], draw: Draw | None = None, left_out: Callable[[int], str] | None = None) -> None:
        self._stream, self._draw = stream, draw
        self._left_out = left_out or (lambda count: f"({count} lines were left out: they were not taken in time)")
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._descriptor = _descriptor(stream)
        self._lines: deque[str] = deque()
        self._missed = 0
        self._written = 0
        """How often something was written: whether the other side takes anything."""
        self._gone = self._closing = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        # of the view
        self._drawing = draw is not None
        self._guard = threading.Lock()
        """Held while the view is written, so that it does not come after the terminal was given back."""
        self._shown = False
        self._settings: list[Any] | None = None
        self._frame: list[str] = []
        self._size = (0, 0)
        self._whole_at = 0.0

    # --- what others call; nothing here waits for the other side, but for `close` ---

    def start(self) -> None:
        """Begin to write. Without this the first line does."""
        with self._wake:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="console", daemon=True)
                self._thread.start()

    def line(self, text: str) -> None:
        """Write a line, or leave it out where too many wait already."""
        self.start()
        with self._wake:
            if self._gone:
                return
            if len(self._lines) >= MOST_LINES:
                self._missed += 1
                return
            if self._missed:
                self._lines.append(self._left_out(self._missed))
                self._missed = 0
            self._lines.append(text)
            self._wake.notify()

    def end_view(self) -> None:
        """Give the terminal back, then write the lines."""
        with self._wake:
            self._drawing = False
            self._wake.notify()

    def close(self) -> None:
        """Wait until all was written: for a terminal no longer than it takes something, for a pipe or a file always."""
        with self._wake:
            self._closing = True
            self._drawing = False
            self._wake.notify()
        patient = not self.is_terminal
        written, since = -1, time.monotonic()
        while self._thread is not None and self._thread.is_alive():
            if self._written != written:
                written, since = self._written, time.monotonic()
            if not patient and time.monotonic() - since > PATIENCE_SECONDS:
                self.restore()
                return
            self._thread.join(0.05)
        self._thread = None

    def restore(self) -> None:
        """Give the terminal back as it was. Safe in a signal handler: it waits for nobody for long."""
        held = self._guard.acquire(timeout=0.2)  # by the thread, which may be held in a write
        try:
            self._drawing = False
            self._hide()
        finally:
            if held:
                self._guard.release()

    def suspend(self) -> None:
        """Give the terminal back for now, as for Ctrl-Z; the view comes back with it."""
        held = self._guard.acquire(timeout=0.2)
        try:
            self._hide()
        finally:
            if held:
                self._guard.release()

    @property
    def is_terminal(self) -> bool:
        """Whether somebody looks at it."""
        return self._descriptor is not None and os.isatty(self._descriptor)

    # --- the thread ---

    def _run(self) -> None:
        with contextlib.suppress(AttributeError, ValueError):  # a background job may write on a terminal with tostop
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            while self._go_on():
                pass
        except (OSError, ValueError) as error:
            log.warning("the console is silent from here on: its terminal or pipe is gone: %s", error)
        except Exception:
            log.exception("the console is silent from here on")
        with self._wake:
            self._gone = True
            self._lines.clear()

    def _go_on(self) -> bool:
        with self._wake:
            if not self._lines and not self._closing and not self._drawing:
                self._wake.wait()
            drawing = self._drawing
            lines, ended = [] if drawing else list(self._lines), self._closing
            if not drawing:
                self._lines.clear()
        if drawing:
            self._show()
            with self._wake:
                if self._drawing:
                    self._wake.wait(DRAW_SECONDS)
            return True
        with self._guard:
            self._hide()
        if lines:
            self._write("".join(f"{line}\n" for line in lines))
        return not ended or bool(self._lines)

    def _write(self, text: str) -> None:
        if self._descriptor is None:
            self._stream.write(text)
            self._stream.flush()
        else:
            left = memoryview(text.encode(self._encoding, "replace"))
            while left:  # not through the stream: its lock would be held for as long as nobody reads
                try:
                    left = left[os.write(self._descriptor, left) :]
                except BlockingIOError:  # another program has made the descriptor non-blocking
                    select.select([], [self._descriptor], [], 1.0)
                    continue
                self._written += 1
        self._written += 1

    # --- the view ---

    def _show(self) -> None:
        assert self._draw is not None
        if self._descriptor is not None and _in_background(self._descriptor):
            self._shown = False  # the terminal is another program's
            return
        size = _size(self._descriptor)
        lines = self._draw(*size)
        whole = not self._shown or size != self._size or time.monotonic() >= self._whole_at
        parts = []
        if not self._shown:
            parts.append(ENTER)
        elif size != self._size:
            parts.append("\x1b[2J")
        below = len(lines) < (size[1] if whole else len(self._frame))
        if whole:
            self._frame, self._whole_at = [], time.monotonic() + WHOLE_SECONDS
        for row, line in enumerate(lines):
            if row >= len(self._frame) or self._frame[row] != line:
                parts.append(f"\x1b[{row + 1};1H\x1b[0m{line}")
        if below:  # what an earlier, longer view left there
            parts.append(f"\x1b[{len(lines) + 1};1H\x1b[0m\x1b[J")
        with self._guard:
            if not self._drawing:
                return
            if not self._shown and self._descriptor is not None:
                self._settings = _hide_control_characters(self._descriptor)
            self._shown, self._frame, self._size = True, lines, size
            self._write("".join(parts))

    def _hide(self) -> None:
        """Leave the view; where the terminal takes nothing, without a word."""
        if not self._shown:
            return
        self._shown = False
        if self._descriptor is None:
            self._stream.write(LEAVE)
            return
        if _in_background(self._descriptor):
            return
        if self._settings is not None:
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(self._descriptor, termios.TCSANOW, self._settings)
        with contextlib.suppress(OSError, ValueError):
            if select.select([], [self._descriptor], [], 0)[1]:
                os.write(self._descriptor, LEAVE.encode())


@contextlib.contextmanager
def stopping(output: Output) -> Iterator[None]:
    """While this lasts, Ctrl-Z gives the terminal back before it stops the process; the view comes back with ``fg``."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTSTP) == signal.SIG_IGN:
        yield
        return

    def stop(number: int, frame: object) -> None:  # noqa: ARG001
        output.suspend()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # goes on here after SIGCONT
        signal.signal(signal.SIGTSTP, stop)

    before = signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


def _descriptor(stream: IO[str]) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError, io.UnsupportedOperation):
        return None


def _size(descriptor: int | None) -> tuple[int, int]:
    try:
        found = os.get_terminal_size(-1 if descriptor is None else descriptor)
    except OSError:
        return 80, 24
    return found.columns or 80, found.lines or 24


def _in_background(descriptor: int) -> bool:
    """Whether the shell has put this process behind; the kernel would stop it for changing the terminal."""
    try:
        return os.tcgetpgrp(descriptor) != os.getpgrp()
    except OSError:  # not the terminal that controls this process
        return False


def _hide_control_characters(descriptor: int) -> list[Any] | None:
    """Keep the terminal from echoing ``^C`` into the view; returns its settings, or None where it has none."""
    try:
        before = termios.tcgetattr(descriptor)
        quiet = termios.tcgetattr(descriptor)
        quiet[3] &= ~termios.ECHOCTL
        termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    except (termios.error, OSError):
        return None
    return before
