"""The session as a whole, for the report: counts, rates, trends over its items, what stands out, what went wrong."""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamprep.history import Done, History
from streamprep.inspection import last_written
from streamprep.model import ConfigError, FloatArray, Kind
from streamprep.pipeline import Plan
from streamprep.report.measure import outliers, spread
from streamprep.report.plots import Colour, Panel, Series, figure, number_text
from streamprep.report.read import TROUBLES, Reader
from streamprep.snapshot import clean

MOST_MEASURED = 2000
"""Items whose stacks are looked at for trends: evenly spread where there are more."""
MOST_POINTS = 1000
MOST_ODD = 12
LEAST_TO_COMPARE = 8
"""Of fewer items none is far from the others."""
LEAST_DIFFERENCE = 0.1
"""Means and deviations that differ by less than this part of the usual deviation are alike."""
BINS = 48
PICKS = ("coordinates/particles.star", "particles.star")
NOUNS: Mapping[Kind, str] = {"micrograph": "micrographs", "particles": "stacks", "map": "maps"}
_MEAN, _RMS = 84, 216
"""Where an MRC header has them."""


@dataclass(frozen=True, slots=True)
class Odd:
    """An item that stands out, and why."""

    item: str
    why: str


@dataclass(slots=True)
class Overview:
    """What the page says of the whole session."""

    counts: dict[str, int] = field(default_factory=dict)
    """Items that are done, by what they are called."""
    rows: dict[str, int] = field(default_factory=dict)
    plots: list[str] = field(default_factory=list)
    odd: list[Odd] = field(default_factory=list)
    warnings: list[tuple[str, int, str]] = field(default_factory=list)
    """A text, how many items it was said of, and one of these."""
    status: dict[str, Any] = field(default_factory=dict)
    """What the daemon wrote last of its state; empty where it wrote nothing."""
    plan: list[tuple[str, str, str]] = field(default_factory=list)
    """Lane, operation and parameters of each step."""
    first: float = 0.0
    last: float = 0.0


class Trends:
    """Mean and standard deviation of the stored particles of items, from the headers of their stacks.

    Parameters
    ----------
    history
        What is done.
    reader
        Finds the stacks.
    """

    def __init__(self, history: History, reader: Reader) -> None:
        self._history, self._reader = history, reader
        self._known: dict[str, tuple[int, float, float, float]] = {}

    def of(self, items: Sequence[Done]) -> FloatArray:
        """Shape (n, 2): mean and standard deviation; NaN where they are not known."""
        known = {}
        for done in items:
            found = self._known.get(done.item)
            if found is None or found[:2] != (done.generation, done.finished):
                found = (done.generation, done.finished, *self._read(done))
            known[done.item] = found
        self._known = known
        return np.array([known[done.item][2:] for done in items]).reshape(-1, 2)

    def _read(self, done: Done) -> tuple[float, float]:
        try:
            commit = self._history.commit(done)
            path = None if commit is None else self._reader.shard(commit, "particles", ".mrcs")
            if path is None:
                return np.nan, np.nan
            with path.open("rb") as file:
                head = file.read(1024)
            return struct.unpack_from("<f", head, _MEAN)[0], struct.unpack_from("<f", head, _RMS)[0]
        except (*TROUBLES, struct.error):
            return np.nan, np.nan


def overview(history: History, trends: Trends, plan: Plan) -> Overview:
    """Sum up a session."""
    steps = [(step.table, step.name, _parameters(step.params.model_dump(mode="json"))) for step in plan.steps]
    made = Overview(plan=steps)
    items = list(history.done.values())
    for done in items:
        noun = NOUNS.get(done.kind, "items")
        made.counts[noun] = made.counts.get(noun, 0) + 1
        for table, count in done.rows:
            if table.endswith(".star"):
                made.rows[table] = made.rows.get(table, 0) + count
    if items:
        times = np.array([done.finished for done in items])
        made.first, made.last = float(times.min()), float(times.max())
        if len(items) > 1:
            made.plots.append(_throughput(times, items))
        _trends(made, items, trends)
    made.warnings = grouped((done.item, text) for done in items for text in done.warnings)
    try:
        made.status = last_written(history.output)
    except ConfigError:
        made.status = {}
    return made


def grouped(said: Iterable[tuple[str, str]], most: int = 20) -> list[tuple[str, int, str]]:
    """Warnings that differ in their numbers only, together: one of the texts, of how many items, the last of these.

    Examples
    --------
    >>> grouped([("a", "2 of 50 images are constant"), ("b", "3 of 40 images are constant")])
    [('3 of 40 images are constant', 2, 'b')]
    """
    found: dict[str, tuple[str, int, str]] = {}
    for item, text in said:
        key = re.sub(r"\d[\d.,]*", "0", text)
        found[key] = (text, found.get(key, ("", 0, ""))[1] + 1, item)
    return sorted(found.values(), key=lambda group: -group[1])[:most]


def _parameters(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items() if value is not None) or "no parameters"


def _throughput(times: FloatArray, items: Sequence[Done]) -> str:
    minutes = (times - times.min()) / 60
    edges = np.linspace(0, max(float(minutes.max()), 1 / 60), min(BINS, max(4, len(times) // 4)) + 1)
    counts = np.histogram(minutes, edges)[0]
    per_hour = counts / np.diff(edges) * 60
    hours = edges[-1] > 180
    kinds = {done.kind for done in items}
    noun = NOUNS.get(items[0].kind, "items") if len(kinds) == 1 else "items"
    x = (edges / 60 if hours else edges).tolist()
    panel = Panel(
        f"time since the first [{'h' if hours else 'min'}]",
        f"{noun} per hour",
        [Series(x, per_hour.tolist(), "other", "", "steps")],
        "Throughput",
        y_from_zero=True,
    )
    return figure([panel], f"{noun} per hour over time", size=(480, 240))


def _trends(made: Overview, items: Sequence[Done], trends: Trends) -> None:
    """Plots over the items in the order in which they were done, and what stands out in them."""
    kind = Counter(done.kind for done in items).most_common(1)[0][0]
    if kind == "map":
        return
    noun = NOUNS.get(kind, "items")
    same = np.array([number for number, done in enumerate(items) if done.kind == kind], dtype=np.int32)
    picks = np.fromiter((_picks(items[number]) for number in same), dtype=np.float64, count=len(same))
    some = same[spread(len(same), MOST_MEASURED)]
    measured = trends.of([items[number] for number in some])
    for numbers, values, title, unit in (
        (same, picks, f"Particles of each of the {noun}", "particles"),
        (some, measured[:, 0], "Mean of all pixels of the stored particles", "grey value"),
        (some, measured[:, 1], "Deviation of all pixels of the stored particles", "grey value"),
    ):
        known = np.isfinite(values)
        if known.sum() < 2:
            continue
        far = np.zeros(len(values), bool)
        if known.sum() >= LEAST_TO_COMPARE:
            far[known] = outliers(values[known])
        if unit != "particles":  # of what is normalised, small differences do not matter
            usual_deviation = float(np.median(measured[np.isfinite(measured[:, 1]), 1]))
            far &= np.abs(values - np.median(values[known])) > LEAST_DIFFERENCE * usual_deviation
        usual = np.flatnonzero(known & ~far)
        usual = usual[spread(len(usual), MOST_POINTS)]
        odd = np.flatnonzero(far)[-MOST_POINTS:]
        groups: tuple[tuple[Any, Colour, str], ...] = ((usual, "other", ""), (odd, "odd", "far from the others"))
        series = [
            Series([int(numbers[place]) + 1 for place in places], values[places].tolist(), colour, label, "dots",
                   [f"{clean(items[numbers[place]].item)}: {number_text(float(values[place]))}" for place in places])
            for places, colour, label in groups
            if len(places)
        ]  # fmt: skip
        panel = Panel(f"number of the {noun.removesuffix('s')}", unit, series, title, y_from_zero=unit == "particles")
        made.plots.append(figure([panel], f"{title}, in the order in which they were done", size=(480, 240)))
        middle = float(np.median(values[known]))
        for place in odd[::-1][:MOST_ODD]:
            told = f"{title[0].lower()}{title[1:]}: {number_text(float(values[place]))}, median {number_text(middle)}"
            if unit == "particles":
                told = f"{values[place]:.0f} particles, median {middle:.0f}"
            made.odd.append(Odd(items[numbers[place]].item, told))
    made.odd = made.odd[: 2 * MOST_ODD]


def _picks(done: Done) -> int:
    rows = dict(done.rows)
    return next((rows[table] for table in PICKS if table in rows), 0)
