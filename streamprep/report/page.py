"""report.html: one page that needs no server, no network and no script."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from statistics import median
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from streamprep import __version__
from streamprep.report.draw import caption
from streamprep.report.overview import Overview
from streamprep.report.plots import STYLE
from streamprep.snapshot import clean, unmatched_text

CLEAR_CONTRAST = 0.02
"""Below this, in standard deviations, particles count as neither bright nor dark."""
CLEAR_FIT, CLEAR_MARGIN = 0.3, 0.2
"""Thon rings speak against the CTF of the table where they follow that of another defocus this well, and better by so
much."""


def page(made: Overview, records: Sequence[Mapping[str, Any]], *, name: str, now: float, most: int) -> str:
    """The page.

    Parameters
    ----------
    made
        The session as a whole.
    records
        What the gallery has, the newest first.
    name
        Of the output folder.
    now
        When it is written, seconds since 1970.
    most
        So many items have pictures at most.
    """
    anchors = {record["item"]: f"item-{number}" for number, record in enumerate(records)}
    odd: dict[str, list[str]] = {}
    for found in made.odd:
        odd.setdefault(found.item, []).append(found.why)
    for record in records:
        why = _misfit(record["facts"])
        if why:
            odd.setdefault(record["item"], []).append(why)
    dark, turned = _contrasts(records)
    for item, why in turned:
        odd.setdefault(item, []).append(why)
    items = [
        {
            **record,
            "anchor": anchors[record["item"]],
            "caption": caption(record["facts"]),
            "odd": odd.get(record["item"], []),
            "files": {file["name"]: file for file in record["files"]},
        }
        for record in records
    ]
    return _template().render(
        name=name,
        version=__version__,
        written=now,
        made=made,
        status=made.status,
        items=items,
        dark=dark,
        odd=[(item, whys, anchors.get(item)) for item, whys in odd.items()],
        most=most,
        plot_style=Markup(STYLE),  # noqa: S704 - our own
        plots=[Markup(plot) for plot in made.plots],  # noqa: S704 - escaped where they are made
    )


def _misfit(facts: Mapping[str, Any]) -> str:
    """What the Thon rings of a micrograph say against the defocus of its table; empty where they say nothing."""
    given, best = facts.get("ctf_fit", 0.0), facts.get("ctf_best_fit", 0.0)
    if best < CLEAR_FIT or best < given + CLEAR_MARGIN or "defocus_um" not in facts:
        return ""
    other = facts["defocus_um"] * facts["ctf_best_factor"]
    return (
        f"its Thon rings follow a defocus of {other:.2f} µm (correlation {best:.2f}), not {facts['defocus_um']:.2f} µm "
        f"({given:.2f})"
    )


def _contrasts(records: Sequence[Mapping[str, Any]]) -> tuple[bool, list[tuple[str, str]]]:
    """Whether the stored particles are dark on the whole, and the items whose particles are the other way round."""
    found = {record["item"]: record["facts"].get("contrast_after", 0.0) for record in records}
    clear = {item: value for item, value in found.items() if abs(value) >= CLEAR_CONTRAST}
    if not clear:
        return False, []
    usual = median(clear.values())
    turned = [item for item, value in clear.items() if value * usual < 0]
    one, other = ("bright", "dark") if usual < 0 else ("dark", "bright")
    return usual < 0, [(item, f"its stored particles are {one}, those of the others {other}") for item in turned]


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    environment.filters.update(href=_href, moment=_moment, duration=_duration, unmatched=unmatched_text)
    text = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text)


def _shown(value: Any) -> Any:
    """Text from outside without control characters, or bytes that are no text, which no page can hold."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _href(path: str) -> str:
    return quote(os.fsencode(path))


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = int(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
