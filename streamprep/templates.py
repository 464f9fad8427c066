"""Texts made from the models of the configuration and the operations: the commented file, and their references."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from streamprep.config import Config, CtfSection, OpticsSection, Session
from streamprep.hookspecs import OPERATION_HOOKS
from streamprep.model import ConfigError, nearest
from streamprep.plugin_manager import LoadedOperation, Plugins

DEFAULT_OPERATIONS = ("coordinates.pick_noise", "particles.normalize", "particles.invert")
DISTRIBUTION = "streamprep"
"""Its operations have pictures in docs/images/operations; those of others have none."""
USUAL_FOLDERS = ("Micrographs", "Coordinates")


def configuration(plugins: Plugins, folder: Path, active: set[str]) -> str:
    """A complete, commented configuration.

    Parameters
    ----------
    plugins
        Their operations all appear.
    folder
        Where the session lies; folders and CTF tables that are there are put in.
    active
        ``lane.name`` of the operations that are turned on; the others are commented out.

    Raises
    ------
    ConfigError
        An operation is not installed.
    """
    offered = list(_by_lane(plugins))
    known = {f"{lane}.{made.info.name}" for lane, made in offered}
    for name in sorted(active - known):
        raise ConfigError(f"--operation {name}: not installed; {nearest(name, sorted(known))}")
    only_maps = bool(active) and all(name.startswith("maps.") for name in active)
    usual = [
        *(() if only_maps else USUAL_FOLDERS),
        *(["Maps"] if any(name.startswith("maps.") for name in active) else ()),
    ]
    watch = [name for name in usual if (folder / name).is_dir()] or usual
    lines = [
        "# streamprep configuration. Paths are relative to this file. Lines that begin with # show defaults.",
        "",
        "[session]",
        *_fields(Session, {"watch": watch, "output": "streamprep_out"}),
        "",
        "[optics]",
        *_fields(OpticsSection, {}),
        "",
    ]
    tables = sorted(path.name for path in folder.glob("*ctf*.star"))
    described = CtfSection.model_fields["table"].description
    if tables:
        lines += [
            "# Micrographs wait for their CTF.",
            "[ctf]",
            f"# {described}",
            f"table = {_toml(tables[0])}",
            "",
        ]
    else:
        lines += ["# With this table micrographs wait for their CTF.", "# [ctf]", f"# {described}",
                  '# table = "micrographs_ctf.star"', ""]  # fmt: skip
    for lane, made in offered:
        table = "extract" if lane == "extract" else f"{lane}.{made.info.name}"
        on = table in active or (lane == "extract" and not only_maps)
        about = (inspect.getdoc(made.info.params) or "").splitlines()[0]
        lines.append(f"# {about} (order {made.info.order}, {made.distribution})")
        needed = {"box_size_px": 256} if lane == "extract" else {}
        section = [f"[{table}]", *_fields(made.info.params, needed)]
        lines += section if on else [f"# {line}" if not line.startswith("#") else line for line in section]
        lines.append("")
    for name, model in sections():
        if model not in (Session, OpticsSection, CtfSection):
            lines += [f"[{name}]", *_fields(model, {}), ""]
    return "\n".join(lines)


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """The tables of the configuration that have a model of their own, in order."""
    for name, field in Config.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield name, kind


def _by_lane(plugins: Plugins) -> Iterable[tuple[str, LoadedOperation]]:
    for lane, hook in OPERATION_HOOKS.items():
        found = [made for made in plugins.operations if made.info.hook == hook]
        for made in sorted(found, key=lambda made: (made.info.order, made.info.name)):
            yield lane, made


def _fields(model: type[BaseModel], given: dict[str, Any]) -> list[str]:
    lines = []
    for name, field in model.model_fields.items():
        lines += textwrap.wrap(field.description or "", 108, initial_indent="# ", subsequent_indent="# ")
        if name in given:
            lines.append(f"{name} = {_toml(given[name])}")
        elif field.is_required():
            lines.append(f'{name} = ""  # needed')
        elif field.default is None:
            lines.append(f"# {name} =")
        else:
            lines.append(f"# {name} = {_toml(field.get_default(call_default_factory=True))}")
    return lines


def _toml(value: object) -> str:
    """A value as TOML; for the kinds of values that parameters have, JSON's form is TOML's."""
    return json.dumps(value, ensure_ascii=False)


def list_operations(plugins: Plugins) -> str:
    """All the operations, by lane and order."""
    lines = []
    for lane, made in _by_lane(plugins):
        about = (inspect.getdoc(made.function) or "").splitlines()[0]
        lines.append(f"{lane:<12} {made.info.order:>4}  {made.info.name:<18} {about}  [{made.distribution}]")
    return "\n".join(lines)


def explain_operation(plugins: Plugins, name: str) -> str:
    """One operation: what it does, its parameters with type, unit, default and range, and the kernel's own page.

    Raises
    ------
    ConfigError
        No plugin offers it.
    """
    found = [(lane, made) for lane, made in _by_lane(plugins) if made.info.name == name]
    if not found:
        names = sorted({made.info.name for made in plugins.operations})
        raise ConfigError(f"{name}: no such operation; {nearest(name, names)}")
    parts = []
    for lane, made in found:
        lines = [f"{name}  [{lane}]  order {made.info.order}  ({made.distribution} {made.version})"]
        lines += ["", _plain(inspect.getdoc(made.function) or ""), "", "Parameters:"]
        for key, field in made.info.params.model_fields.items():
            lines.append(f"  {key} ({type_text(field)}; {default_text(field)})")
            lines += textwrap.wrap(field.description or "", 100, initial_indent="      ", subsequent_indent="      ")
        parts.append("\n".join(lines))
    computed = inspect.getdoc(_kernel(found[0][1]))
    if computed:
        parts.append("How it is computed:\n\n" + textwrap.indent(_plain(computed), "  "))
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """A docstring with its formulas, between $$ and $$, as they are read in a terminal."""

    def formula(found: re.Match[str]) -> str:
        spaced = re.sub(r"\\text\{(.*?)\}", r"\1", found[1]).replace("\\quad", " ").replace("~", "")
        return re.sub(r" +", " ", spaced.replace("\\", ""))

    return re.sub(r"\$\$(.*?)\$\$", formula, text, flags=re.DOTALL)


def _kernel(made: LoadedOperation) -> object:
    """The pure function behind an operation, or the operation itself: what its module calls by its name."""
    return getattr(inspect.getmodule(made.function), made.info.name, made.function)


def configuration_page(plugins: Plugins) -> str:
    """Reference of all the tables and keys of the configuration in Markdown; operations' own are on their page."""
    lines = [
        "# Configuration",
        "",
        "Made by `streamprep init --markdown` from the models that check `streamprep.toml`. How to write one:",
        "[Configuring a session](configuring.md).",
        "",
    ]
    for name, model in sections():
        about = " ".join((inspect.getdoc(model) or "").split())
        needed = Config.model_fields[name].is_required()
        lines += [f"## [{name}]", "", f"{about}{' This table is needed.' if needed else ''}", ""]
        lines += _table(model, "key")
    lines += [
        "## Operations",
        "",
        "A table turns its operation on. Each takes `order`, a whole number, beside its own keys.",
        "",
        "| table | order | what it does |",
        "|---|---|---|",
    ]
    for lane, made in _by_lane(plugins):
        name = made.info.name
        table = "[extract]" if lane == "extract" else f"[{lane}.{name}]"
        about = (inspect.getdoc(made.info.params) or "").splitlines()[0]
        lines.append(f"| [`{table}`](operations.md#{name}) | {made.info.order} | {_cell(about)} |")
    return "\n".join(lines).rstrip() + "\n"


def _table(model: type[BaseModel], word: str) -> list[str]:
    rows = [
        f"| `{key}` | {_cell(field.description or '')} | {_cell(type_text(field))} | {_cell(default_text(field))} |"
        for key, field in model.model_fields.items()
    ]
    return [f"| {word} | meaning | type | default, range |", "|---|---|---|---|", *rows, ""] if rows else []


def operations_page(plugins: Plugins) -> str:
    """Reference of all the operations in Markdown, one section for each."""
    lines = [
        "# Operations",
        "",
        "Made by `streamprep ops --markdown` from the operations themselves. `streamprep ops NAME` shows one of them.",
        "An operation runs where its table is in the configuration, or with `streamprep apply NAME INPUT OUTPUT --set",
        "NAME.PARAMETER=VALUE`; `order` may be given in any of the tables.",
        "",
    ]
    of_name: dict[str, list[tuple[str, LoadedOperation]]] = {}
    for lane, made in _by_lane(plugins):
        of_name.setdefault(made.info.name, []).append((lane, made))
    # by lane; what serves several stands among the operations on particles
    lanes = list(OPERATION_HOOKS)
    place = {name: max(lanes.index(lane) for lane, _ in found if lane != "maps" or len(found) == 1)
             for name, found in of_name.items()}  # fmt: skip
    for name, found in sorted(of_name.items(), key=lambda named: (place[named[0]], named[1][-1][1].info.order)):
        lines += [f"## {name}", ""]
        for lane, made in found:
            table = "[extract]" if lane == "extract" else f"[{lane}.{name}]"
            about = " ".join((inspect.getdoc(made.function) or "").partition("\n\n")[0].split())
            lines += [f"`{table}`, order {made.info.order}. {about}", ""]
        if all(made.distribution == DISTRIBUTION for _, made in found):
            lines += [f"![Before and after {name}](images/operations/{name}.png)", ""]
        models = list(dict.fromkeys(made.info.params for _, made in found))
        for params in models:
            if params.model_fields and len(models) > 1:
                lines += [f"For {', '.join(lane for lane, made in found if made.info.params is params)}:", ""]
            lines += _table(params, "parameter")
        lines += _computed(inspect.getdoc(_kernel(found[0][1])) or "", set(found[0][1].info.params.model_fields))
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _computed(page: str, parameters: set[str]) -> list[str]:
    """How an operation is computed: of its kernel's docstring the text, what is said of its parameters, the notes."""
    first, *rest = re.split(r"^([A-Z]\w+)\n-+\n", page, flags=re.MULTILINE)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    lines = [first.strip(), ""] if first.strip() else []
    said = re.findall(r"^(\w[\w, ]*)\n((?:    .*\n?|\n)+)", sections.get("Parameters", ""), flags=re.MULTILINE)
    lines += [f"- `{name}`: {' '.join(text.split())}" for name, text in said if name in parameters]
    lines += ["", sections["Notes"].strip()] if "Notes" in sections else []
    return [line.replace("``", "`") for line in (*lines, "")]


def type_text(field: FieldInfo) -> str:
    """A parameter's type for people."""
    return _kind_text(field.annotation)


def _kind_text(kind: Any) -> str:
    names = {int: "whole number", float: "number", bool: "true or false", str: "text", SecretStr: "text"}
    origin, parts = get_origin(kind), [part for part in get_args(kind) if part is not type(None)]
    if origin is Annotated:
        return _kind_text(parts[0])
    if origin is Literal:
        return " | ".join(str(part) for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(_kind_text(part) for part in parts)
    if origin is list:
        return f"list of {_kind_text(parts[0])}"
    if origin is dict:
        return f"table of {_kind_text(parts[1])}"
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def default_text(field: FieldInfo) -> str:
    """A parameter's default and range for people."""
    limits = []
    for rule in field.metadata:
        for sign, attribute in (("≥", "ge"), (">", "gt"), ("≤", "le"), ("<", "lt")):
            if hasattr(rule, attribute):
                limits.append(f"{sign} {getattr(rule, attribute)}")
    if field.is_required():
        default = "required"
    else:
        value = field.get_default(call_default_factory=True)
        default = "optional" if value is None else f"default {_toml(value)}"
    return ", ".join([default, *limits])


__all__ = [
    "DEFAULT_OPERATIONS",
    "Config",
    "configuration",
    "configuration_page",
    "explain_operation",
    "list_operations",
    "operations_page",
    "sections",
]
