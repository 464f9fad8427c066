"""Draws a session's snapshot for a terminal of any size: lines of text, each cut to the width."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from streamprep.snapshot import Stage, clean
from streamprep.units import duration, size

TWO_COLUMNS = 130
"""Terminals as wide as this show two columns."""
NARROW = 52
"""Narrower terminals see no rates of the stages: backlog and age matter more."""
LEAST_WIDTH = 20
BUCKET_SECONDS = 10.0
BUCKETS = 90
"""The throughput of the last minutes: so many columns, of so many seconds each."""
SPARKS = "▁▂▃▄▅▆▇█"

MODE_COLOURS = {
    "running": "green",
    "waiting": "cyan",
    "paused": "yellow",
    "stopped": "red",
    "draining": "yellow",
    "finished": "green",
}
OLD_SECONDS: Mapping[str, tuple[float, float]] = {
    "settling": (120, 900),
    "waiting": (600, 3600),
    "processing": (300, 1800),
    "committing": (10, 60),
    "publishing": (60, 600),
}
"""From which age on what has not passed a stage deserves a look, and when it is far too old."""


def brief(seconds: float) -> str:
    """A time span in one unit.

    Examples
    --------
    >>> brief(3.2), brief(75), brief(7300), brief(200000)
    ('3 s', '1 min', '2 h', '2 d')
    """
    for most, unit, name in ((60, 1, "s"), (3600, 60, "min"), (172800, 3600, "h")):
        if seconds < most:
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds // 86400)} d"


@dataclass(slots=True)
class Past:
    """How many items were done in each of the last intervals."""

    done: deque[int] = field(default_factory=lambda: deque(maxlen=BUCKETS))
    _since: float | None = None
    _before: int = 0

    def note(self, snapshot: Any) -> None:
        """Take the count of a snapshot in."""
        now, total = snapshot.elapsed_seconds, snapshot.jobs.get("done", 0)
        if self._since is None:
            self._since, self._before = now, total
            self.done.append(0)
        for _ in range(min(BUCKETS, int((now - self._since) // BUCKET_SECONDS))):
            self.done.append(0)
        self._since += BUCKET_SECONDS * max(0, (now - self._since) // BUCKET_SECONDS)
        self.done[-1] += max(0, total - self._before)
        self._before = total

    def sparks(self, width: int) -> str:
        """A small bar for each interval that is over, as many as fit."""
        shown = list(self.done)[:-1][-width:] if width > 0 else []
        most = max(shown, default=0)
        if not most:
            return ""
        return "".join(SPARKS[-(-count * (len(SPARKS) - 1) // most)] for count in shown)


# --- the whole -------------------------------------------------------------------------------------------------------


def view(snapshot: Any, width: int, height: int, *, past: Past | None = None, said: Sequence[str] = ()) -> list[Text]:
    """The lines of the live view, each as wide as the terminal, no more than it has.

    Parameters
    ----------
    snapshot
        The session's state.
    width, height
        Of the terminal [characters].
    past
        What the throughput was.
    said
        Messages about the session as a whole, the newest last.
    """
    width = max(LEAST_WIDTH, width)
    lines = _head(snapshot, width, past)
    lines = lines[:height]
    left = height - len(lines)
    sections = _sections(snapshot, said, width)
    if width >= TWO_COLUMNS:
        half = (width - 3) // 2
        columns = [
            _fill([section for section in sections if section.column == number], part, left)
            for number, part in ((0, half), (1, width - 3 - half))
        ]
        for index in range(max(map(len, columns))):
            one, two = (column[index] if index < len(column) else Text() for column in columns)
            lines.append(Text.assemble(_cut(one, half), "   ", two))
    else:
        lines += _fill(sections, width, left)
    return [_cut(line, width) for line in lines[:height]]


def _cut(line: Text, width: int) -> Text:
    line = line.copy()
    line.truncate(width, overflow="ellipsis", pad=True)
    return line


def _head(snapshot: Any, width: int, past: Past | None) -> list[Text]:
    colour = MODE_COLOURS.get(snapshot.mode, "default")
    first = Text.assemble(
        (f" {snapshot.mode.upper()} ", f"bold reverse {colour}"), f"  {duration(snapshot.elapsed_seconds)}  "
    )
    place = clean(snapshot.output)
    room = width - first.cell_len
    if len(place) > room:
        place = "…" + place[len(place) - max(0, room - 1) :]
    first.append(" " * max(0, room - len(place)))
    first.append(place, style="bold")
    lines = [first]
    if snapshot.message:
        lines += _wrapped(Text(clean(snapshot.message), style=f"bold {colour}"), width, 3)
    lines += [Text(f"! {clean(trouble)}", style="magenta") for trouble in snapshot.degraded[:3]]
    jobs, running = snapshot.jobs, snapshot.running[: snapshot.workers]  # the pool has more, but they wait in it
    counts = [
        _number("done", jobs.get("done", 0), "green"),
        _number("in work", len(running), "cyan"),
        _number("queued", jobs.get("ready", 0) + max(0, jobs.get("claimed", 0) - len(running)), "cyan"),
        _number("waiting", snapshot.waiting_count, "cyan"),
        _number("failed", snapshot.failed, "red"),
        _number("rejected", snapshot.rejected, "magenta"),
        _number("with warnings", snapshot.warnings, "magenta"),
    ]
    if sum(count.cell_len + 3 for count in counts) - 3 > width:
        lines += [Text("   ").join(counts[:4]), Text("   ").join(counts[4:])]
    else:
        lines.append(Text("   ").join(counts))
    pace = Text.assemble(
        (f"{snapshot.items_per_hour:,.0f}", "bold"),
        f" {snapshot.items}/h   ",
        (f"{snapshot.particles_per_second:,.1f}", "bold"),
        " particles/s",
    )
    sparks = past.sparks(min(BUCKETS, width - pace.cell_len - 3)) if past is not None else ""
    if sparks:
        pace.append("   ")
        pace.append(sparks, style="green")
        if width - pace.cell_len > 16:
            pace.append(f"  last {brief(BUCKET_SECONDS * len(sparks))}", style="dim")
    lines.append(pace)
    return lines


# --- sections --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Section:
    """Some lines under a title, of which the first matter most."""

    title: str
    column: int
    rank: int
    """Which gets its lines first; the least rank."""
    rows: Sequence[_Row]
    least: int = 1
    """Rows without which it is not worth showing."""
    note: str = ""
    """After the title."""
    colour: str = "default"
    total: int = 0
    """How many there are in all, where the rows are only the first."""

    def lines(self, width: int, rows: int) -> list[Text]:
        """Its title and some of its rows."""
        more = max(self.total, len(self.rows)) - rows
        title = Text.assemble(("━━ ", "dim"), (self.title, f"bold {self.colour}"), " ")
        if more > 0:
            title.append(f"and {more:,} more ", style="dim")
        if self.note:
            title.append(f"· {self.note} ", style="dim")
        title.append("━" * max(0, width - title.cell_len), style="dim")
        return [title, *(line for row in self.rows[:rows] for line in row.lines(width))]


@dataclass(slots=True)
class _Row:
    text: Text

    def lines(self, width: int) -> list[Text]:  # noqa: ARG002 - others look at it
        """One line, or two."""
        return [self.text]


class _Together(_Row):
    """Short texts, as many on each line as fit."""

    def __init__(self, texts: Sequence[Text]) -> None:
        self.text, self.texts = Text(), texts

    def lines(self, width: int) -> list[Text]:
        lines: list[Text] = []
        wide = max(text.cell_len for text in self.texts) + 3
        beside = max(1, (width - 2 + 3) // wide)
        for start in range(0, len(self.texts), beside):
            line = Text("  ")
            for text in self.texts[start : start + beside]:
                line.append_text(text)
                line.append(" " * (wide - text.cell_len))
            line.rstrip()
            lines.append(line)
        return lines


@dataclass(slots=True)
class _Bar(_Row):
    """A name, a bar, and what it means."""

    share: float = 0.0
    name_width: int = 0
    colour: str = "cyan"

    def lines(self, width: int) -> list[Text]:
        name, _, said = self.text.plain.partition("\n")
        room = max(0, min(40, width - self.name_width - len(said) - 6))
        full = round(room * min(1.0, max(0.0, self.share)))
        line = Text.assemble("  ", (name.ljust(self.name_width), ""), "  ")
        line.append("█" * full, style=self.colour)
        line.append("░" * (room - full), style="dim")
        line.append(f"  {said}")
        return [line]


@dataclass(slots=True)
class _Reason(_Row):
    """A name and what is said of it, on one line, or on two where it is long."""

    said: Text = field(default_factory=Text)

    def lines(self, width: int) -> list[Text]:
        line = Text.assemble("  ", self.text, "  ", self.said)
        return _wrapped(line, width, 2, indent=4)


def _wrapped(text: Text, width: int, most: int, indent: int = 0) -> list[Text]:
    """Text in no more than some lines; the rest is cut."""
    lines = []
    for number in range(most):
        prefix = " " * (indent if number else 0)
        room = width - len(prefix)
        if text.cell_len <= room or number == most - 1:
            lines.append(Text.assemble(prefix, text))
            break
        at = text.plain.rfind(" ", room // 2, room + 1)
        at = at if at > 0 else room
        lines.append(Text.assemble(prefix, text[:at]))
        text = text[at:]
        text = text[len(text.plain) - len(text.plain.lstrip(" ")) :]
    return lines


def _fill(sections: Iterable[_Section], width: int, room: int) -> list[Text]:
    """As much of the sections as there is room for: the ranks get their least rows first, then one more in turn."""
    shown = [section for section in sections if section.rows]
    ranked = sorted(shown, key=lambda section: section.rank)
    rows: dict[int, int] = {}
    spare = room
    for section in ranked:
        least = min(section.least, len(section.rows))
        needed = 1 + sum(len(row.lines(width)) for row in section.rows[:least])
        if needed <= spare:
            rows[id(section)] = least
            spare -= needed
    growing = [section for section in ranked if id(section) in rows]
    while growing:
        for section in growing.copy():
            more = section.rows[rows[id(section)] :][:1]
            needed = sum(len(row.lines(width)) for row in more)
            if more and needed <= spare:
                rows[id(section)] += 1
                spare -= needed
            else:  # the room gets only less
                growing.remove(section)
    lines: list[Text] = []
    for section in (section for section in shown if id(section) in rows):
        if lines and spare > 0:
            lines.append(Text())
            spare -= 1
        lines += section.lines(width, rows[id(section)])
    return lines


def _sections(snapshot: Any, said: Sequence[str], width: int) -> list[_Section]:
    retry = "again: streamprep retry" if snapshot.failed else ""
    working = clean(f"{snapshot.workers} workers on {snapshot.device}")
    messages = [_Reason(Text(), Text(clean(text))) for text in reversed(said)]
    return [
        _Section("stages", 0, 0, _stages(snapshot.stages, rates=width >= NARROW), 6),
        _Section("sets", 0, 4, _sets(snapshot.rows)),
        _Section("time of each operation", 0, 7, _operations(snapshot), note="mean"),
        _Section("machine", 0, 3, _machine(snapshot), note=working),
        _Section(
            "failed or rejected",
            1,
            1,
            _failures(snapshot.failures, snapshot.taken),
            note=retry,
            colour="red",
            total=snapshot.failed + snapshot.rejected,
        ),
        _Section("waiting", 1, 2, _waiting(snapshot), note=_of_first(snapshot), colour="cyan"),
        _Section("messages", 1, 5, messages, colour="magenta"),
        _Section("warnings of operations", 1, 6, _warnings(snapshot.recent_warnings), colour="magenta"),
        _Section("in work", 1, 8, _running(snapshot.running[: snapshot.workers]), colour="cyan"),
    ]


def _stages(stages: Sequence[Stage], *, rates: bool) -> list[_Row]:
    if not stages:
        return []
    passed = f"{'passed/h':>10}" if rates else ""
    gap = 12 if rates else 8
    rows = [_Row(Text(f"  {'':<16}{passed}{'backlog':>{gap}}   oldest", style="dim"))]
    for stage in stages:
        name = f"{stage.name}, rows" if stage.name == "publishing" else stage.name
        early, late = OLD_SECONDS.get(stage.name, (600, 3600))
        old = stage.oldest_seconds
        style, mark = ("bold red", " !!") if old >= late else ("magenta", " !") if old >= early else ("", "")
        line = Text(f"  {name:<16}" + (f"{stage.per_hour:>10,.0f}" if rates else ""))
        line.append(f"{stage.backlog:>{gap},}", style="bold" if stage.backlog else "dim")
        line.append(f"   {duration(old)}{mark}" if stage.backlog else "   –", style=style if stage.backlog else "dim")
        rows.append(_Row(line))
    return rows


def _operations(snapshot: Any) -> list[_Row]:
    times: dict[str, float] = snapshot.operation_seconds
    most = max(times.values(), default=0.0) or 1.0
    longest = max(map(len, times), default=0)
    return [
        _Bar(Text(f"{clean(name)}\n{_milliseconds(mean)}"), mean / most, min(24, longest))
        for name, mean in times.items()
    ]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:>6.1f} ms" if seconds < 1 else f"{seconds:>6.1f} s "


def _sets(rows: Mapping[str, int]) -> list[_Row]:
    texts = [Text.assemble(clean(name), (f" {count:,}", "bold")) for name, count in rows.items()]
    return [_Together(texts)] if texts else []


def _machine(snapshot: Any) -> list[_Row]:
    free, total = snapshot.disk_free_bytes, snapshot.disk_total_bytes
    said = f"{size(free)} free of {size(total)}" if total else "it does not tell its space"
    soon = snapshot.disk_full_seconds
    low = (total > 0 and free < 2 * snapshot.disk_reserve_bytes) or (soon is not None and soon < 3600)
    if soon is not None and soon < 30 * 86400:
        said += f", full in {brief(soon)}{' !' if low else ''}"
    rows: list[_Row] = [_Bar(Text(f"disk\n{said}"), 1 - free / total if total else 0.0, 8, "red" if low else "cyan")]
    for number, gpu in enumerate(snapshot.gpus):
        name = f"GPU {number}" if len(snapshot.gpus) > 1 else "GPU"
        heat = f", {gpu.temperature_celsius:.0f} °C" if gpu.temperature_celsius else ""
        used = f"{size(gpu.memory_used_bytes)} of {size(gpu.memory_total_bytes)}"
        rows.append(
            _Bar(Text(f"{name}\n{gpu.load_percent:.0f} % busy{heat}  {clean(gpu.name)}"), gpu.load_percent / 100, 8)
        )
        rows.append(_Bar(Text(f"  memory\n{used}"), gpu.memory_used_bytes / max(1, gpu.memory_total_bytes), 8))
    return rows


def _running(running: Sequence[tuple[str, float]]) -> list[_Row]:
    return [_Row(Text.assemble("  ", (clean(name), "cyan"), (f"  {duration(age)}", "dim"))) for name, age in running]


def _failures(failures: Sequence[Mapping[str, Any]], now: float) -> list[_Row]:
    rows: list[_Row] = []
    for row in failures:
        ago = f"{brief(max(0.0, now - row['when']))} ago" if row.get("when") and now else ""
        tried = f"{row['attempts']} attempts" if row.get("attempts", 0) > 1 else ""
        notes = ", ".join(note for note in (ago, tried) if note)
        said = Text(clean(row["reason"]))
        if notes:
            said = Text.assemble((f"{notes}  ", "dim"), said)
        colour = "red" if row["state"] == "failed" else "magenta"
        rows.append(_Reason(Text(clean(row["file"]), style=colour), said))
    return rows


def _of_first(snapshot: Any) -> str:
    told = len(snapshot.waiting)
    return f"of the oldest {told} of {snapshot.waiting_count:,}" if snapshot.waiting_count > told else ""


def _waiting(snapshot: Any) -> list[_Row]:
    """What waits, together where it waits for the same, the most first."""
    groups: dict[str, list[tuple[str, float]]] = {}
    for item, reason, age in snapshot.waiting:
        groups.setdefault(reason, []).append((item, age))
    rows: list[_Row] = []
    for reason, found in sorted(groups.items(), key=lambda group: -len(group[1])):
        many = len(found) > 1
        told = reason.replace("waits", "wait") if many and reason.startswith("waits") else reason
        kind = snapshot.items if many else snapshot.items.removesuffix("s")
        joint = " " if reason.startswith("waits") else ": "
        oldest = max(age for _, age in found)
        names = ", ".join(clean(item) for item, _ in found[:5]) + (" …" if len(found) > 5 else "")
        rows.append(
            _Reason(
                Text.assemble((f"{len(found)}", "bold"), f" {kind}{joint}{clean(told)}"),
                Text.assemble((f"{'oldest ' if many else 'for '}{brief(oldest)}  ", "dim"), (names, "cyan")),
            )
        )
    return rows


def _warnings(recent: Sequence[tuple[str, Sequence[str]]]) -> list[_Row]:
    counts: Counter[str] = Counter()
    newest: dict[str, str] = {}
    for item, texts in recent:
        for text in texts:
            counts[text] += 1
            newest.setdefault(text, item)
    return [
        _Reason(
            Text.assemble((clean(item), "magenta"), f" and {counts[text] - 1} more" if counts[text] > 1 else ""),
            Text(clean(text)),
        )
        for text, item in newest.items()
    ]


def _number(name: str, value: int, colour: str) -> Text:
    return Text.assemble((f"{value:,}", f"bold {colour}" if value else "dim"), (f" {name}", "" if value else "dim"))
