"""A package to begin a plugin with: what `streamprep new-plugin` writes, from the files in ``templates/``."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources, util
from pathlib import Path
from string import Template

from streamprep import __version__
from streamprep.hookspecs import OPERATION_HOOKS
from streamprep.model import ConfigError
from streamprep.plugin_manager import Plugins

PREFIX = "streamprep-"
NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
LONGEST = 24
"""Letters of a name: it becomes part of file names, and stands in tables of the console."""

_TAKEN_AT_START = ("console",)
"""Names of plugins that are there once a session runs."""


@dataclass(frozen=True, slots=True)
class Start:
    """What the templates say of the data of one hook."""

    template: str
    """Which of the modules, and of their tests."""
    data: str
    """The argument of the hook that the operation returns, changed."""
    type: str
    imports: str
    order: int
    shape: str = ""
    axes: str = ""
    of: str = ""
    trial: str = ""
    """A file for `streamprep apply`, and what it writes; empty where that takes no such data."""


STARTS: Mapping[str, Start] = {
    "process_particles": Start(
        "images", "particles", "Particles", "Context, Params, Particles, operation", 25,
        "(n, ny, nx)", "(1, 2)", "each image", "particles.mrcs out.mrcs",
    ),
    "process_micrograph": Start(
        "images", "micrograph", "Micrograph", "Context, Micrograph, Params, operation", 20,
        "(ny, nx)", "(0, 1)", "the micrograph",
    ),
    "process_coordinates": Start(
        "coordinates", "coordinates", "Coordinates", "Context, Coordinates, Micrograph, Params, operation", 5,
    ),
    "process_map": Start(
        "images", "map", "Map", "Context, Map, Params, operation", 15,
        "(nz, ny, nx)", "(0, 1, 2)", "the map", "map.mrc out.mrc",
    ),
}  # fmt: skip
"""The hooks that a package can begin with."""


def new_plugin(name: str, folder: Path, hook: str, plugins: Plugins) -> Path:
    """Write a package with one operation, its tests and a README.

    Parameters
    ----------
    name
        Of the operation: small letters, digits, - and _. ``band-pass`` makes the distribution ``streamprep-band-pass``,
        the module ``streamprep_band_pass`` and the operation ``band_pass``. A leading ``streamprep-`` is left out.
    folder
        The package's folder is made in it.
    hook
        One of `STARTS`.
    plugins
        What is installed; none of their names may be taken again.

    Returns
    -------
    Path
        The package's folder.

    Raises
    ------
    ConfigError
        The name is not valid or taken, the hook is none of them, or there is a folder of that name.
    """
    if hook not in STARTS:
        raise ConfigError(f"--hook {hook}: choose one of {', '.join(STARTS)}")
    files = render(name, hook)
    operation = _operation(name)
    _check_free(operation, plugins)
    root = folder / f"{PREFIX}{operation.replace('_', '-')}"
    if root.exists():
        raise ConfigError(f"{root}: this is there already, and nothing is overwritten; give another name or --folder")
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


def render(name: str, hook: str) -> dict[str, str]:
    """The files of a package by their paths in it.

    Raises
    ------
    ConfigError
        The name is not valid.
    """
    operation, start = _operation(name), STARTS[hook]
    table = next(lane for lane, its in OPERATION_HOOKS.items() if its == hook)
    values = {
        "name": operation,
        "params": "".join(part.capitalize() for part in operation.split("_")),
        "distribution": f"{PREFIX}{operation.replace('_', '-')}",
        "module": f"streamprep_{operation}",
        "version": __version__,
        "hook": hook,
        "table": table,
        **{key: str(getattr(start, key)) for key in ("data", "type", "imports", "order", "shape", "axes", "of")},
        "try": _trial(operation, start.trial),
    }
    module = f"src/{values['module']}"
    sources = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "LICENSE": "LICENSE",
        ".gitignore": "gitignore",
        f"{module}/__init__.py": f"{start.template}.py",
        f"{module}/py.typed": "py.typed",
        "tests/conftest.py": "conftest.py",
        f"tests/test_{operation}.py": f"test_{start.template}.py",
    }
    files = {path: Template(_template(source)).substitute(values) for path, source in sources.items()}
    used: set[str] = set()
    for source in (f"{start.template}.py", f"test_{start.template}.py"):
        used |= _names_in(Template(_template(source)).substitute(values, name="_", params="_"))
    for taken in (operation, f"{operation}_{start.data}", values["params"]):
        if taken in used:
            raise ConfigError(f"{operation}: {taken} is a name that the code of the package uses; choose another")
    return files


def _operation(name: str) -> str:
    """The operation's name; ConfigError where it cannot be one."""
    short = name.removeprefix(PREFIX).removeprefix("streamprep_")
    if not NAME.fullmatch(short) or len(short) > LONGEST:
        raise ConfigError(
            f"{name!r} is no name for a plugin; allowed are up to {LONGEST} small letters a-z and digits, in words "
            "joined by single - or _, a letter first, for example band-pass"
        )
    operation = short.replace("-", "_")
    if keyword.iskeyword(operation) or keyword.issoftkeyword(operation) or operation in dir(builtins):
        raise ConfigError(f"{operation} is a word of Python's own; choose a name that says more, such as my-{short}")
    return operation


def _check_free(operation: str, plugins: Plugins) -> None:
    for made in plugins.operations:
        if made.info.name == operation:
            raise ConfigError(f"{operation}: {made.distribution} offers an operation of this name; choose another")
    for plugin in (*plugins.plugins, *plugins.not_listed):
        if plugin.name == operation:
            raise ConfigError(f"{operation}: {plugin.distribution} has a plugin of this name; choose another")
    if operation in _TAKEN_AT_START:
        raise ConfigError(f"{operation}: streamprep has a plugin of this name; choose another")
    module = f"streamprep_{operation}"
    if util.find_spec(module) is not None:
        raise ConfigError(f"{operation}: a module {module} is installed already; choose another name")


def _template(name: str) -> str:
    return (resources.files(__name__) / "templates" / f"{name}.txt").read_text(encoding="utf-8")


def _trial(operation: str, files: str) -> str:
    if files:
        return f"Try it on one file, without a session:\n\n    streamprep apply {operation} {files}\n\n"
    return ""


def _names_in(source: str) -> set[str]:
    """Every name that a module imports, is given as an argument, or reads."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return found
