"""Reference of the hooks and of the data they pass, made from their own docstrings."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, get_args

import pluggy

from streamprep import hookspecs, model
from streamprep.hookspecs import OPERATION_HOOKS, PROJECT
from streamprep.model import ConfigError, nearest

PARTS = ("When", "Receives", "Returns", "Raises", "Example")
"""What each hook's docstring says, in this order, after its first sentence."""

DATA: Mapping[str, Sequence[type]] = {
    "What operations receive and return": (
        model.Particles,
        model.Micrograph,
        model.Coordinates,
        model.Map,
        model.Ctf,
        model.Optics,
        model.Context,
        model.Item,
        model.ImageSample,
        hookspecs.Params,
    ),
    "What readers of files return": (model.Image, model.Entry, model.ParticleRows),
    "What sinks receive, return and are": (
        hookspecs.Sink,
        hookspecs.ItemResult,
        hookspecs.Staged,
        hookspecs.StagedFile,
        hookspecs.StagedRows,
        hookspecs.RenderedRows,
        hookspecs.Table,
        hookspecs.StackStore,
        hookspecs.StoredStack,
    ),
    "What may be raised": (model.Reject, model.InputError, model.IncompleteError, model.ConfigError),
}
"""The types that authors of plugins meet."""


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook, as its specification documents it."""

    name: str
    signature: str
    summary: str
    parts: Mapping[str, str]
    """By the names in `PARTS`; what the docstring does not say is missing."""
    group: str


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a type, or one method or property with its signature as the name."""

    name: str
    type: str
    text: str


@cache
def hooks() -> tuple[Hook, ...]:
    """Every hook, in the order of an item's life."""
    manager = pluggy.PluginManager(PROJECT)
    found = []
    for name, function in vars(hookspecs).items():
        options = manager.parse_hookspec_opts(hookspecs, name) if callable(function) else None
        if options is not None:
            summary, parts = _parts(inspect.getdoc(function) or "")
            found.append(Hook(name, _signature(function), summary, parts, _group(name, bool(options["firstresult"]))))
    return tuple(found)


def _parts(text: str) -> tuple[str, dict[str, str]]:
    first, *rest = re.split(rf"^({'|'.join(PARTS)}): ", text, flags=re.MULTILINE)
    found = {name: " ".join(said.split()) for name, said in zip(rest[::2], rest[1::2], strict=True)}
    return " ".join(first.split()), found


def _group(name: str, first_result: bool) -> str:
    if name in OPERATION_HOOKS.values():
        return "Operations, in the order they run"
    if first_result:
        return "Finding and reading: the first plugin that answers decides"
    return "Results" if name == "make_sinks" else "The session's life: for consoles, pictures, notifications"


def _signature(function: Callable[..., Any]) -> str:
    return f"{function.__name__}{inspect.signature(function)}".replace("'", "")


def fields(kind: type) -> list[Field]:
    """Of a type all fields with what is written below them, then its methods and properties, each as in its source."""
    return list(_fields(kind))


def _fields(kind: type) -> Iterator[Field]:
    body = _source_of(kind).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = " ".join(str(following.value.value).split())
            default = (
                "" if node.value is None or isinstance(node.value, ast.Call | ast.Lambda) else _default(node.value)
            )
            if node.target.id != "model_config":
                yield Field(node.target.id, ast.unparse(node.annotation) + default, text)
    for node in body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            marks = {ast.unparse(mark) for mark in node.decorator_list}
            given = ast.unparse(node.args).removeprefix("self").removeprefix(", ")
            arguments = "" if "property" in marks else f"({given})"
            text = inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n")[0]
            returned = "" if node.returns is None else ast.unparse(node.returns)
            yield Field(f"{node.name}{arguments}", returned, " ".join(text.split()))


def _default(value: ast.expr) -> str:
    return f" = {ast.unparse(value)}"


def _source_of(kind: type) -> ast.ClassDef:
    module = inspect.getmodule(kind)
    assert module is not None
    return _classes(module)[kind.__name__]


@cache
def _classes(module: ModuleType) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef)}


def list_hooks() -> str:
    """Every hook and what it is for, a line for each."""
    return "\n".join(f"{hook.name:<20} {hook.summary.partition('. ')[0].removesuffix('.')}." for hook in hooks())


def explain_hook(name: str) -> str:
    """One hook with all that its specification says.

    Raises
    ------
    ConfigError
        There is no hook of that name.
    """
    found = {hook.name: hook for hook in hooks()}
    if name not in found:
        raise ConfigError(f"{name}: no such hook; {nearest(name, list(found))}")
    hook = found[name]
    lines = [hook.signature, "", hook.summary, ""]
    for part, text in hook.parts.items():
        lines += textwrap.wrap(
            text.replace("``", ""), 100, initial_indent=f"{part + ':':<10} ", subsequent_indent=" " * 11
        )
    return "\n".join(lines)


def page() -> str:
    """The whole reference in Markdown."""
    lines = [
        "# Hooks",
        "",
        "Made by `streamprep hooks --markdown` from the hooks themselves; `streamprep hooks NAME` shows one of them. A",
        "plugin implements a hook with a function of its name that carries `@hookimpl`, or, for operations, with any",
        "function that carries `@operation(hook, order=…)`. Declare only the arguments that you need. How to begin is",
        "in the [tutorial](plugins.md); rules that go beyond one hook are in the [reference](plugin-reference.md).",
        "",
        "`Array` is an array of any library that follows the array API standard: numpy, or cupy on a GPU. `Kind` is",
        f"one of {_listed(model.Kind)}; `Label` of {_listed(model.Label)}.",
        "",
    ]
    group = ""
    for hook in hooks():
        if hook.group != group:
            group = hook.group
            lines += [f"## {group}", ""]
        lines += [f"### {hook.name}", "", "```python", *_wrapped(hook.signature), "```", "", _plain(hook.summary), ""]
        lines += [f"- **{part}**: {_plain(text)}" for part, text in hook.parts.items()]
        lines.append("")
    for title, kinds in DATA.items():
        lines += [f"## {title}", ""]
        for kind in kinds:
            lines += [f"### {kind.__name__}", "", _plain(_about(kind)), ""]
            found = fields(kind)
            if found:
                lines += ["| name | type | meaning |", "|---|---|---|"]
                lines += [f"| {_code(one.name)} | {_code(one.type)} | {_cell(one.text)} |" for one in found]
                lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _about(kind: type) -> str:
    paragraphs = (inspect.getdoc(kind) or "").split("\n\nParameters\n")[0].split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in paragraphs)


def _listed(choices: Any) -> str:
    return ", ".join(get_args(choices))


def _wrapped(signature: str) -> list[str]:
    """A signature on one line where that is short, else with a line for each argument."""
    if len(signature) <= 100:
        return [signature]
    name, _, rest = signature.partition("(")
    arguments, _, returned = rest.rpartition(")")
    return [f"{name}(", *(f"    {argument}," for argument in arguments.split(", ")), f"){returned}"]


def _plain(text: str) -> str:
    return text.replace("``", "`")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


__all__ = ["DATA", "PARTS", "Field", "Hook", "explain_hook", "fields", "hooks", "list_hooks", "page"]
