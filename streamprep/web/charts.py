"""What the chart of throughput shows: items in equal steps of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEAST_BARS, MOST_BARS = 12, 72
STEPS = (60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
"""Lengths of a step, of which the shortest is taken that makes few enough [s]."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One step of time."""

    since: float
    """Seconds since 1970."""
    items: int
    per_hour: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Steps of equal length, the last of which ends now."""

    bars: Sequence[Bar]
    step_seconds: int
    until: float
    top: float
    """A round number of items per hour, no less than any bar's."""


def throughput(finished: npt.NDArray[np.float64], until: float, span_seconds: float | None = None) -> Chart | None:
    """Items per hour, from the first on, or over the last seconds; None where there is nothing to show.

    Parameters
    ----------
    finished
        When each item was done, in any order, seconds since 1970.
    until
        The end of the last step.
    span_seconds
        How far to go back.
    """
    finished = finished[(finished > 0) & (finished <= until)]
    if span_seconds is not None:
        finished = finished[finished > until - span_seconds]
    if not len(finished):
        return None
    span = span_seconds or max(LEAST_BARS * STEPS[0], until - float(finished.min()))
    step = next(
        (step for step in STEPS if span <= step * MOST_BARS), STEPS[-1] * -(-int(span) // (STEPS[-1] * MOST_BARS))
    )
    number = max(1, -(-int(span) // step))
    ages = np.minimum(((until - finished) // step).astype(np.int64), number - 1)
    counts = np.bincount(ages, minlength=number)[::-1]
    bars = [Bar(until - (number - index) * step, int(n), 3600 * int(n) / step) for index, n in enumerate(counts)]
    return Chart(bars, step, until, _round_up(max(bar.per_hour for bar in bars)))


def _round_up(value: float) -> float:
    scale = 10.0 ** np.floor(np.log10(max(value, 1.0)))
    return float(next(scale * part for part in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if value <= scale * part))
