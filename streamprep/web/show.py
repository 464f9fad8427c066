"""How things are written on the pages: counts, times, addresses."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote, unquote_to_bytes

from markupsafe import Markup, escape
from pydantic import BaseModel, SecretBytes, SecretStr

from streamprep.config import Config, parse_override
from streamprep.snapshot import Snapshot, clean
from streamprep.web.pictures import Picture


def counts(snapshot: Snapshot, *, running: bool) -> dict[str, int]:
    """Items by what has become of them; what a daemon had in work that does not run is queued."""
    jobs = snapshot.jobs
    busy = min(len(snapshot.running), snapshot.workers) if running else 0
    return {
        "done": jobs.get("done", 0),
        "in work": busy,
        "queued": jobs.get("ready", 0) + max(0, jobs.get("claimed", 0) - busy),
        "waiting": snapshot.waiting_count,
        "settling": snapshot.settling if running else 0,
        "failed": snapshot.failed,
        "rejected": snapshot.rejected,
    }


def number(value: float) -> str:
    """A count or a rate.

    Examples
    --------
    >>> number(12345), number(3.21), number(0)
    ('12,345', '3.2', '0')
    """
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:,.1f}"


def moment(seconds: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A time, in the zone of the machine that the dashboard runs on; empty where it is no time."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().strftime(form) if seconds else ""
    except (OverflowError, OSError, ValueError):
        return ""


def iso(seconds: float) -> str:
    """A time for machines, in seconds and with its zone."""
    return moment(seconds, "%Y-%m-%dT%H:%M:%S%z")


def item_address(name: str) -> str:
    """The path of an item's page; `item_of` reads it back.

    Examples
    --------
    >>> item_address("Micrographs/a b"), item_address("a/../b")
    ('/items/Micrographs/a%20b', '/items/a%2F..%2Fb')
    """
    plain = all(part not in ("", ".", "..") for part in name.split("/"))
    return "/items/" + quote(name.encode("utf-8", "surrogateescape"), safe="/" if plain else "")


def item_of(raw_path: bytes) -> str:
    """The item that the path of a page names."""
    return unquote_to_bytes(raw_path.partition(b"?")[0].removeprefix(b"/items/")).decode("utf-8", "surrogateescape")


def picture_address(picture: Picture) -> str:
    """Where a picture is; elsewhere once its item was done anew."""
    return "/gallery/" + quote(picture.file.encode("utf-8", "surrogateescape")) + f"?v={picture.finished:.0f}"


def retry_command(config: Path, overrides: Sequence[str], item: str | None = None) -> str:
    """The command that has failed items taken up again, as a shell wants it; without secrets and what goes with them.

    Examples
    --------
    >>> retry_command(Path("/data/my session/streamprep.toml"), ["session.seed=3"], "Micrographs/mic_1")
    "streamprep retry '/data/my session/streamprep.toml' --set session.seed=3 --item Micrographs/mic_1"
    """
    hidden = {table for table, field in Config.model_fields.items() if _is_secret(field.annotation)}
    kept = [override for override in overrides if parse_override(override)[0][0] not in hidden]
    sets = [part for override in kept for part in ("--set", override)]
    return shlex.join(["streamprep", "retry", str(config), *sets, *([] if item is None else ["--item", item])])


def _is_secret(kind: Any) -> bool:
    """Whether a type of a configuration is, or has in it, a secret."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return any(_is_secret(field.annotation) for field in kind.model_fields.values())
    return kind in (SecretStr, SecretBytes) or any(map(_is_secret, get_args(kind)))


def breakable(said: object) -> Markup:
    """A name as HTML that may be wrapped after what divides its parts.

    Examples
    --------
    >>> print(breakable("a/b_<c>"))
    a/<wbr>b_<wbr>&lt;c&gt;
    """
    escaped = str(escape(clean(said)))
    return Markup(escaped.replace("/", "/<wbr>").replace("_", "_<wbr>"))  # noqa: S704 - escaped above


def exactly(said: str) -> Markup:
    """A text as HTML with all that stands in it, as what is to be copied."""
    return Markup(escape(said))  # noqa: S704


def shown(value: Any) -> Any:
    """What any value becomes before it is escaped: texts lose their control characters, also those that turn text."""
    return clean(value) if type(value) is str else value


def text(value: Any) -> str:
    """A parameter's value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value)) or "–"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {text(part)}" for name, part in value.items()) or "–"
    return str(value) or "–"


def plain(snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot as JSON takes it."""
    return dataclasses.asdict(snapshot)
