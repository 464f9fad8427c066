"""Loading plugins: built-in and installed ones alike, each in isolation."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pluggy

from streamprep import hookspecs
from streamprep.hookspecs import OPERATION_HOOKS, PROJECT, OperationInfo, Sink
from streamprep.model import ConfigError, nearest

ENTRY_POINT_GROUP = "streamprep"
LOAD_VARIABLE = "STREAMPREP_LOAD_PLUGINS"
BLOCK_VARIABLE = "STREAMPREP_BLOCK_PLUGINS"
"""Environment variable: names of plugins, built-in or installed, that no process is to load, separated by commas, as
``[plugins] block`` has them."""

BUILTIN_OPERATIONS = (
    "streamprep.plugins.pick_noise",
    "streamprep.plugins.extract",
    "streamprep.plugins.remove_dust",
    "streamprep.plugins.randomize_phases",
    "streamprep.plugins.normalize",
    "streamprep.plugins.center",
    "streamprep.plugins.phase_flip",
    "streamprep.plugins.change_hand",
    "streamprep.plugins.rotate_ico",
    "streamprep.plugins.symmetrize",
    "streamprep.plugins.laplacian",
    "streamprep.plugins.segment",
    "streamprep.plugins.normalize_background",
    "streamprep.plugins.adjust_gray",
    "streamprep.plugins.invert",
    "streamprep.plugins.threshold",
)
BUILTIN_SINKS = (
    "streamprep.sinks.particles",
    "streamprep.sinks.coordinates",
    "streamprep.sinks.maps",
    "streamprep.sinks.status",
    "streamprep.sinks.pictures",
    "streamprep.notify",
)
BUILTIN_FORMATS = ("streamprep.formats",)
OFFER_NOTHING = frozenset(name.rpartition(".")[2] for name in (*BUILTIN_SINKS, *BUILTIN_FORMATS))
"""Names of built-in plugins that have no operations."""


@dataclass(frozen=True, slots=True)
class LoadedOperation:
    """One operation, and who provides it."""

    info: OperationInfo
    function: Callable[..., Any]
    argnames: tuple[str, ...]
    plugin: str
    distribution: str
    version: str


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """One plugin, loaded or not."""

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    error: str | None = None
    """The traceback of a plugin that could not be loaded."""
    blocked: bool = False


@dataclass
class Plugins:
    """Every plugin of this process."""

    manager: pluggy.PluginManager
    plugins: list[LoadedPlugin] = field(default_factory=list)
    operations: list[LoadedOperation] = field(default_factory=list)
    not_listed: list[LoadedPlugin] = field(default_factory=list)
    """Installed plugins that ``STREAMPREP_LOAD_PLUGINS`` does not list."""
    blocked_by_variable: frozenset[str] = frozenset()
    """Names of plugins that ``STREAMPREP_BLOCK_PLUGINS`` lists."""

    @property
    def hook(self) -> Any:
        """The hooks to call."""
        return self.manager.hook

    def named(self, hook: str, name: str) -> list[LoadedOperation]:
        """The operations of that name at a hook: one, none, or several that collide."""
        return [made for made in self.operations if made.info.hook == hook and made.info.name == name]

    def names(self, hook: str) -> list[str]:
        """Names of all the operations at a hook."""
        return sorted({made.info.name for made in self.operations if made.info.hook == hook})

    def make_sinks(self, config: Any) -> list[Sink]:
        """Every sink of a session: streamprep's own, and those that the configuration turns on in ``[sinks.NAME]``.

        Raises
        ------
        ConfigError
            A table names a sink that no plugin makes, or a parameter of it is not valid; two sinks have the same
            name, table or folder.
        """
        made = [sink for found in self.hook.make_sinks(config=config) for sink in found]
        names = [sink.name for sink in made]
        for what, those in (
            ("are called", names),
            ("write the table", [table.path for sink in made for table in sink.tables]),
            ("own the folder", [folder for sink in made for folder in sink.folders]),
        ):
            for one in those:
                if those.count(one) > 1:
                    raise ConfigError(f"two sinks {what} {one}; leave one of their plugins out with [plugins] block")
        for name in config.sinks:
            if name not in names:
                message = f"{config.file}: [sinks.{name}] no installed plugin makes this sink"
                for broken in self.broken:
                    message += f"\nplugin {broken.name} of {broken.distribution} could not be loaded:\n{broken.error}"
                for plugin, why in self.left_out:
                    message += f"\nplugin {plugin.name} of {plugin.distribution} may make it, but is not loaded: {why}"
                raise ConfigError(message)
        return made

    @property
    def broken(self) -> list[LoadedPlugin]:
        """Plugins that could not be loaded."""
        return [plugin for plugin in self.plugins if plugin.error is not None]

    @property
    def left_out(self) -> list[tuple[LoadedPlugin, str]]:
        """Plugins that may have operations but were not to be loaded, and what says so."""
        blocked = [
            (plugin, f"{BLOCK_VARIABLE if plugin.name in self.blocked_by_variable else '[plugins] block'} names it")
            for plugin in self.plugins
            if plugin.blocked and plugin.name not in OFFER_NOTHING
        ]
        return blocked + [(plugin, f"{LOAD_VARIABLE} does not list it") for plugin in self.not_listed]

    def check_blocked(self, block: Iterable[str], where: str) -> None:
        """Raise ConfigError where a name that is to be left out is not the name of any plugin."""
        known = {plugin.name for plugin in (*self.plugins, *self.not_listed)}
        for name in block:
            if name not in known:
                raise ConfigError(f"{where}: no plugin {name!r} is installed; {nearest(name, sorted(known))}")


def load_plugins(
    *,
    block: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
    extra: Iterable[str] = (),
    sinks: bool = True,
) -> Plugins:
    """Load the built-in plugins and the installed ones of entry point group ``streamprep``.

    Parameters
    ----------
    block
        Names of plugins to leave out, beside those that ``STREAMPREP_BLOCK_PLUGINS`` of this process's environment
        lists, separated by commas.
    environ
        Where ``STREAMPREP_LOAD_PLUGINS`` is looked up: a comma-separated list of the only entry points to load;
        empty for none. Built-in plugins are always loaded.
    extra
        Dotted names of further modules, such as the console.
    sinks
        False leaves the sinks out, for work without a session.

    Raises
    ------
    ConfigError
        ``STREAMPREP_LOAD_PLUGINS`` lists an entry point that is not installed; ``STREAMPREP_BLOCK_PLUGINS`` a plugin.

    Notes
    -----
    A plugin that raises on import, or whose hooks do not fit, is kept in `Plugins.broken` with its traceback; the
    others are loaded all the same.
    """
    environ = os.environ if environ is None else environ
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    by_variable = os.environ.get(BLOCK_VARIABLE, "")
    found = Plugins(manager, blocked_by_variable=frozenset(_names(by_variable)))
    blocked = {*block, *found.blocked_by_variable}
    own = (metadata.version(PROJECT), PROJECT)
    for dotted in (*BUILTIN_FORMATS, *(BUILTIN_SINKS if sinks else ()), *BUILTIN_OPERATIONS, *extra):
        name = dotted.rpartition(".")[2]
        _add(found, name, own[1], own[0], blocked, lambda dotted=dotted: importlib.import_module(dotted))  # type: ignore[misc]

    only = environ.get(LOAD_VARIABLE)
    wanted = None if only is None else _names(only)
    points = sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (point.name, point.value))
    names = [point.name for point in points]
    built_in = {plugin.name for plugin in found.plugins}
    for name in sorted((wanted or set()) - built_in - set(names)):
        raise ConfigError(f"{LOAD_VARIABLE}={only}: no entry point {name!r} is installed; {nearest(name, names)}")
    for point in points:
        distribution = point.dist.name if point.dist is not None else "unknown"
        version = point.dist.version if point.dist is not None else "0"
        if wanted is not None and point.name not in wanted:
            found.not_listed.append(LoadedPlugin(point.name, distribution, version))
            continue
        _add(found, point.name, distribution, version, blocked, point.load)
    unknown = found.blocked_by_variable - (frozenset() if sinks else OFFER_NOTHING)
    found.check_blocked(sorted(unknown), f"{BLOCK_VARIABLE}={by_variable}")
    return found


def _names(listed: str) -> set[str]:
    return {part.strip() for part in listed.split(",") if part.strip()}


def _add(
    found: Plugins, name: str, distribution: str, version: str, blocked: set[str], load: Callable[[], object]
) -> None:
    if name in blocked:
        found.plugins.append(LoadedPlugin(name, distribution, version, blocked=True))
        return
    manager = found.manager
    plugin: object | None = None
    try:
        if manager.has_plugin(name):
            other = next(plugin for plugin in found.plugins if plugin.name == name)
            raise ValueError(f"plugin name {name!r} is already taken by distribution {other.distribution}")
        plugin = load()
        manager.register(plugin, name=name)
        manager.check_pending()
        operations = _operations_of(manager, name, distribution, version)
    except (Exception, SystemExit):
        if plugin is not None and manager.is_registered(plugin):
            manager.unregister(plugin)
        found.plugins.append(LoadedPlugin(name, distribution, version, error=traceback.format_exc()))
        return
    hooks = tuple(sorted(caller.name for caller in manager.get_hookcallers(plugin) or ()))
    names = tuple(sorted({made.info.name for made in operations}))
    found.plugins.append(LoadedPlugin(name, distribution, version, hooks, names))
    found.operations += operations


def _operations_of(
    manager: pluggy.PluginManager, plugin: str, distribution: str, version: str
) -> list[LoadedOperation]:
    operations = []
    for hook in OPERATION_HOOKS.values():
        for impl in getattr(manager.hook, hook).get_hookimpls():
            if impl.plugin_name != plugin:
                continue
            info = getattr(impl.function, "streamprep_operation", None)
            if not isinstance(info, OperationInfo):
                raise TypeError(
                    f"{impl.function.__name__} implements {hook} with hookimpl; operations need @operation({hook!r}, "
                    "order=…), which gives them a name, an order and parameters"
                )
            operations.append(LoadedOperation(info, impl.function, impl.argnames, plugin, distribution, version))
    return operations
