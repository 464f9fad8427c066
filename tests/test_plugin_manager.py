"""Loading plugins, each in isolation."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from streamprep import hookimpl, operation
from streamprep.config import Config
from streamprep.config import load as load_config
from streamprep.model import ConfigError
from streamprep.pipeline import resolve
from streamprep.plugin_manager import BUILTIN_OPERATIONS, Plugins, load_plugins


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def distribution(site: Path, name: str, source: str, version: str = "1.0") -> None:
    """An installed distribution with one module and one entry point, both of that name."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[streamprep]\n{name} = {name}\n")
    (site / f"{name}.py").write_text(source)
    sys.modules.pop(name, None)


GOOD = "from streamprep import operation\n@operation('process_map', order=3)\ndef glow(map): return map\n"


def load() -> Plugins:
    return load_plugins(environ={})


def test_built_in_operations_come_from_the_same_door() -> None:
    loaded = load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""})
    names = {plugin.name for plugin in loaded.plugins}
    assert {dotted.rpartition(".")[2] for dotted in BUILTIN_OPERATIONS} <= names
    assert not loaded.broken
    assert all(made.distribution == "streamprep" for made in loaded.operations)


def test_an_installed_plugin_is_found_with_its_version(site: Path) -> None:
    distribution(site, "glower", GOOD, "3.1")
    (made,) = load().named("process_map", "glow")
    assert (made.distribution, made.version, made.plugin, made.argnames) == ("glower", "3.1", "glower", ("map",))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import not_there_at_all", "ModuleNotFoundError"),
        ("raise SystemExit('no')", "SystemExit"),
        ("def f(:", "SyntaxError"),
        (GOOD.replace("(map)", "(map, moon)"), "moon"),
        (GOOD.replace("operation('process_map', order=3)", "operation('process_moon', order=3)"), "process_moon"),
        ("from streamprep import hookimpl\n@hookimpl\ndef process_maps(): pass\n", "process_maps"),
        ("from streamprep import hookimpl\n@hookimpl\ndef process_map(map): pass\n", "need @operation('process_map'"),
    ],
)
def test_a_broken_plugin_does_not_hurt_the_others(site: Path, source: str, words: str) -> None:
    distribution(site, "broken", source)
    distribution(site, "good", GOOD)
    loaded = load()
    (broken,) = loaded.broken
    assert broken.name == "broken"
    assert words in (broken.error or "")
    assert {"glow", "invert"} <= set(loaded.names("process_map"))
    assert not any(made.plugin == "broken" for made in loaded.operations)


def test_a_name_that_is_taken_names_the_other(site: Path) -> None:
    distribution(site, "invert", GOOD)
    (broken,) = load().broken
    assert "plugin name 'invert' is already taken by distribution streamprep" in (broken.error or "")


def test_blocked_plugins_are_listed_but_not_loaded(site: Path) -> None:
    distribution(site, "good", "raise RuntimeError('it was imported')")
    loaded = load_plugins(block=["good"], environ={})
    (plugin,) = [plugin for plugin in loaded.plugins if plugin.name == "good"]
    assert plugin.blocked
    assert not loaded.broken


def config(block: list[str], **operations: object) -> Config:
    return Config.model_validate({"session": {"watch": ["M"]}, "plugins": {"block": block}, "maps": operations})


@pytest.mark.parametrize("listed", ["glowr", "glower, glowr", "normalize,glowr"])
def test_a_plugin_that_is_asked_for_but_not_installed_is_named(site: Path, listed: str) -> None:
    distribution(site, "glower", GOOD)
    with pytest.raises(ConfigError, match=r"^STREAMPREP_LOAD_PLUGINS=.*'glowr' is installed; did you mean glower\?$"):
        load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": listed})
    assert load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": "glower,normalize"}).named("process_map", "glow")


def test_a_plugin_that_is_to_be_blocked_but_not_installed_is_named(site: Path) -> None:
    distribution(site, "glower", GOOD)
    with pytest.raises(ConfigError, match=r"\[plugins\] block: no plugin 'glowr' is installed; did you mean glower\?"):
        resolve(config(["glowr"]), load_plugins(block=["glowr"], environ={}))
    for environ in ({}, {"STREAMPREP_LOAD_PLUGINS": ""}):
        resolve(config(["glower", "status"]), load_plugins(block=["glower", "status"], environ=environ))


@pytest.mark.parametrize(
    ("block", "environ", "why"),
    [
        (["glower"], {}, "[plugins] block names it"),
        ([], {"STREAMPREP_LOAD_PLUGINS": ""}, "STREAMPREP_LOAD_PLUGINS does not list it"),
    ],
)
def test_an_operation_whose_plugin_is_left_out_says_so_and_imports_nothing(
    site: Path, block: list[str], environ: dict[str, str], why: str
) -> None:
    distribution(site, "glower", "raise RuntimeError('it was imported')")
    with pytest.raises(ConfigError) as caught:
        resolve(config(block, glow={}), load_plugins(block=block, environ=environ))
    assert "[maps.glow]: unknown operation" in str(caught.value)
    assert f"plugin glower of glower may offer it, but is not loaded: {why}" in str(caught.value)


def test_hooks_are_called_on_registered_objects() -> None:
    loaded = load()
    module = types.ModuleType("reader")

    @hookimpl
    def classify_path(path):  # type: ignore[no-untyped-def]
        return "map" if path.suffix == ".xyz" else None

    module.classify_path = classify_path  # type: ignore[attr-defined]
    loaded.manager.register(module)
    assert loaded.hook.classify_path(path=Path("a.xyz"), head=b"") == "map", "a third party is asked first"
    assert loaded.hook.classify_path(path=Path("a.star"), head=b"") == "coordinates"


def test_operations_of_one_name_in_two_lanes_do_not_collide() -> None:
    loaded = load()
    assert len(loaded.named("process_map", "invert")) == 1
    assert len(loaded.named("process_particles", "invert")) == 1
    assert operation("process_map", order=1, name="x")(lambda map: map).streamprep_operation.name == "x"  # type: ignore[attr-defined]


def sinks_of(site: Path, source: str, tables: str) -> list[str]:
    """Names of the sinks of a session, where one distribution has this source and the configuration these tables."""
    distribution(site, "extra_sinks", f"from streamprep import Params, Sink, hookimpl\n{source}")
    (site / "streamprep.toml").write_text(f'[session]\nwatch = ["M"]\n[extract]\nbox_size_px = 32\n{tables}')
    return [sink.name for sink in load().make_sinks(load_config(site / "streamprep.toml"))]


SINK = """
class S(Sink):
    def __init__(self, name, folder): self.name, self.tables, self.folders = name, (), (folder,)
class P(Params):
    level: int = 0
@hookimpl
def make_sinks(config):
    params = config.sink("extra", P)
    return [] if params is None else [S(NAME, FOLDER)]
"""


def test_a_sink_is_on_where_its_table_is(site: Path) -> None:
    source = SINK.replace("NAME, FOLDER", "'extra', f'extra{params.level}'")
    off = sinks_of(site, source, "")
    sys.modules.pop("extra_sinks")
    for path in site.iterdir():
        if path.suffix == ".dist-info":
            path.rename(path.with_suffix(".gone"))
    assert set(sinks_of(site, source, "[sinks.extra]\nlevel = 3\n")) - set(off) == {"extra"}


@pytest.mark.parametrize(
    ("made", "tables", "words"),
    [
        ("'extra', 'extra'", "[sinks.extra]\n[sinks.other]\n", r"\[sinks.other\] no installed plugin makes this sink"),
        ("'extra', 'extra'", "[sinks.extra]\nlevl = 1\n", r"\[sinks.extra\]: levl: unknown key; did you mean level"),
        ("'extra', 'extra'", "[sinks.extra]\nlevel = 'x'\n", r"\[sinks.extra\]: level = 'x'"),
        ("'particles', 'extra'", "[sinks.extra]\n", "two sinks are called particles"),
        (
            "'extra', 'particles'",
            "[sinks.extra]\n",
            "two sinks own the folder particles; leave one",
        ),
    ],
)
def test_sinks_that_cannot_be_are_refused(site: Path, made: str, tables: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sinks_of(site, SINK.replace("NAME, FOLDER", made), tables)


def test_a_broken_plugin_is_shown_where_its_sink_is_asked_for(site: Path) -> None:
    with pytest.raises(ConfigError, match="(?s)no installed plugin makes this sink\nplugin extra_sinks .*the licence"):
        sinks_of(site, "raise RuntimeError('the licence')", "[sinks.extra]\n")


def test_sinks_are_part_of_the_plan(site: Path) -> None:
    def plan(tables: str) -> str:
        (site / "streamprep.toml").write_text(f'[session]\nwatch = ["M"]\n[extract]\nbox_size_px = 32\n{tables}')
        return resolve(load_config(site / "streamprep.toml"), load()).hash

    assert len({plan(""), plan("[sinks.extra]\n"), plan("[sinks.extra]\nlevel = 1\n")}) == 3


def test_an_unknown_sink_is_told_before_anything_is_made(site: Path) -> None:
    from streamprep.engine import Engine

    (site / "M").mkdir()
    (site / "streamprep.toml").write_text('[session]\nwatch = ["M"]\n[extract]\nbox_size_px = 32\n[sinks.extra]\n')
    config, plugins = load_config(site / "streamprep.toml"), load()
    with pytest.raises(ConfigError, match="no installed plugin makes this sink"):
        Engine(config, plugins, resolve(config, plugins))
    assert not (site / "streamprep_out").exists()
