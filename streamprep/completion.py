"""What the shell offers for operations and settings. Kept in the user's cache, as to find it out takes a second."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from streamprep import __version__

if TYPE_CHECKING:
    from pydantic import BaseModel

Words = dict[str, list[str]]
"""``operations``, their names; ``lanes``, LANE.NAME; ``settings``, TABLE.KEY=VALUE; ``parameters``, NAME.KEY=VALUE."""

_NAMES = ("operations", "lanes", "settings", "parameters")


def operations(incomplete: str) -> list[str]:
    """Names of operations."""
    return _beginning(incomplete, words()["operations"])


def operation_lists(incomplete: str) -> list[str]:
    """Names of operations, after others and a comma."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in operations(last)]


def lanes(incomplete: str) -> list[str]:
    """Operations with their lane, as ``particles.normalize``."""
    return _beginning(incomplete, words()["lanes"])


def settings(incomplete: str) -> list[str]:
    """What ``--set`` of a session takes: each choice, or the default."""
    return _beginning(incomplete, words()["settings"])


def parameters(incomplete: str) -> list[str]:
    """What ``--set`` of `streamprep apply` takes."""
    return _beginning(incomplete, words()["parameters"])


def _beginning(incomplete: str, known: Iterable[str]) -> list[str]:
    return [word for word in known if word.startswith(incomplete)]


def words(environ: Mapping[str, str] = os.environ) -> Words:
    """All that is offered, from the cache unless another version or other plugins are installed."""
    folder = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "/nonexistent"), ".cache"), "streamprep")
    kept, state = folder / "completion.json", _state(environ)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["state"] == state:
            return {name: [str(word) for word in found["words"][name]] for name in _NAMES}
    made = _find()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, encoding="utf-8", delete=False) as file:
            json.dump({"state": state, "words": made}, file)
        Path(file.name).replace(kept)
    return made


def _state(environ: Mapping[str, str]) -> list[str]:
    """What decides the words: versions of plugins, and when our own files were written."""
    here = Path(__file__).parent
    points = metadata.entry_points(group="streamprep")
    said = [f"{point.value} {point.dist.version if point.dist else ''}" for point in points]
    files = sorted([here / "config.py", *(here / "plugins").glob("*.py")])
    times = [f"{path.name} {path.stat().st_mtime_ns}" for path in files]
    return [__version__, str(here), environ.get("STREAMPREP_LOAD_PLUGINS", "-"), *sorted(said), *times]


def _find() -> Words:
    from streamprep.config import Config
    from streamprep.hookspecs import OPERATION_HOOKS
    from streamprep.plugin_manager import load_plugins

    offered = load_plugins(sinks=False).operations
    lanes, settings, parameters = set[str](), list[str](), set[str]()
    for name, field in Config.model_fields.items():
        kind = next((part for part in (field.annotation, *get_args(field.annotation)) if _is_model(part)), None)
        if kind is not None:
            settings += _settings(name, kind)
    for lane, hook in OPERATION_HOOKS.items():
        for made in sorted((made for made in offered if made.info.hook == hook), key=lambda made: made.info.name):
            table = lane if lane == "extract" else f"{lane}.{made.info.name}"
            lanes.add(table)
            settings += [*_settings(table, made.info.params), f"{table}.order={made.info.order}"]
            if lane in ("particles", "maps"):
                parameters.update(_settings(made.info.name, made.info.params))
    return {
        "operations": sorted({made.info.name for made in offered}),
        "lanes": sorted(lanes - {"extract"}),
        "settings": settings,
        "parameters": sorted(parameters),
    }


def _is_model(kind: Any) -> bool:
    from pydantic import BaseModel

    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _settings(table: str, model: type[BaseModel]) -> list[str]:
    said = []
    for key, field in model.model_fields.items():
        choices = get_args(field.annotation)
        if field.annotation is bool:
            choices = ("true", "false")
        elif not choices or not all(isinstance(choice, str) for choice in choices):
            default = field.default if isinstance(field.default, int | float | str) else ""
            choices = (default,)
        said += [f"{table}.{key}={choice}" for choice in choices]
    return said
