"""The hooks: documented, tested, and what `@operation` makes."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

import mrcfile
import numpy as np
import pluggy
import pytest
from typer.testing import CliRunner

import streamprep
from streamprep import Params, hookspecs, operation, workers
from streamprep.cli import app
from streamprep.config import load
from streamprep.engine import Engine
from streamprep.executors import InlineExecutor
from streamprep.hook_reference import DATA, PARTS, Hook, fields, hooks
from streamprep.hookspecs import OPERATION_HOOKS, OperationInfo
from streamprep.model import ConfigError
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from tests import every_hook

HOOKS = hooks()
TYPES = [kind for kinds in DATA.values() for kind in kinds]


def test_all_hooks_of_the_module_are_known() -> None:
    functions = [name for name, value in vars(hookspecs).items() if hasattr(value, "streamprep_spec")]
    assert [hook.name for hook in HOOKS] == functions
    assert set(OPERATION_HOOKS.values()) < set(functions)
    assert len(HOOKS) >= 16


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_every_hook_says_all_that_its_implementation_needs(hook: Hook) -> None:
    assert tuple(hook.parts) == PARTS, "each once, in this order"
    for text in (hook.summary, *hook.parts.values()):
        assert len(text.split()) >= 1
    assert hook.parts["Example"].startswith("``")
    assert hook.parts["Example"].endswith("``")
    ast.parse(textwrap.dedent(hook.parts["Example"].strip("`")))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_every_field_that_plugins_meet_is_documented(kind: type) -> None:
    assert inspect.getdoc(kind)
    assert [field.name for field in fields(kind) if not field.text] == []
    assert {name for name in getattr(kind, "__annotations__", {}) if name != "model_config"} <= {
        field.name for field in fields(kind)
    }


def test_what_plugins_import_is_in_the_reference() -> None:
    own = {name for name in streamprep.__all__ if isinstance(getattr(streamprep, name), type)}
    assert own <= {kind.__name__ for kind in TYPES}


def test_the_page_is_what_the_program_says() -> None:
    page = (Path(__file__).parent.parent / "docs" / "hooks.md").read_text(encoding="utf-8")
    told = CliRunner().invoke(app, ["hooks", "--markdown"]).output
    assert told == page, "make it anew with: streamprep hooks --markdown > docs/hooks.md"
    places = [page.index(f"### {hook.name}\n") for hook in HOOKS]
    assert places == sorted(places)


def test_hooks_are_listed_and_explained() -> None:
    listed = CliRunner().invoke(app, ["hooks"]).output
    assert [line.split()[0] for line in listed.splitlines()] == [hook.name for hook in HOOKS]
    told = CliRunner().invoke(app, ["hooks", "read_item"]).output
    for words in ("read_item(item: Item) -> Any", "When: ", "Receives: ", "Returns: ", "Raises: ", "Example: "):
        assert words in told
    with pytest.raises(ConfigError, match="no such hook; did you mean read_item"):
        CliRunner().invoke(app, ["hooks", "read_items"], catch_exceptions=False)


def test_operation_is_a_true_hookimpl() -> None:
    class Plugin:
        @operation("process_particles", order=7, name="twice")
        def any_name(self, particles, params):  # type: ignore[no-untyped-def]
            return particles

    manager = pluggy.PluginManager("streamprep")
    manager.add_hookspecs(hookspecs)
    manager.register(Plugin())
    manager.check_pending()
    (impl,) = manager.hook.process_particles.get_hookimpls()
    assert impl.argnames == ("particles", "params")
    assert impl.function.streamprep_operation == OperationInfo("process_particles", "twice", 7, Params)


def test_operation_refuses_a_hook_that_takes_none() -> None:
    with pytest.raises(ValueError, match="not an operation hook; choose one of process_micrograph"):
        operation("run_started", order=1)


def test_unknown_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        Params.model_validate({"colour": "red"})


def test_everything_public_has_a_docstring() -> None:
    for name in streamprep.__all__:
        if name != "__version__":
            assert inspect.getdoc(getattr(streamprep, name)), name


def test_every_hook_is_called_in_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what its specification says, in the order of an item's life; one that raises in item_started does not hurt.

    A hook that is added has to be added to `tests/every_hook.py`, and be called there.
    """
    rng = np.random.default_rng(0)
    for name in ("Toys", "Torn"):
        (tmp_path / name).mkdir()
    every_hook.write(tmp_path / "Toys" / "mic.toymic", rng.normal(size=(64, 96)).astype(np.float32))
    every_hook.write(tmp_path / "Toys" / "mic.toypick", np.array([[20.0, 20.0], [40.0, 30.0], [50.0, 40.0]]))
    every_hook.write(tmp_path / "Toys" / "vol.toymap", np.full((16, 16, 16), 3, np.float32))
    (tmp_path / "Torn" / "torn.toymic").write_bytes(b"not whole")
    (tmp_path / "streamprep.toml").write_text(
        '[session]\nwatch = ["Toys", "Torn"]\nsettle_seconds = 0\nincomplete_seconds = 0\ndevice = "cpu"\n'
        "[micrographs.brighten]\n[coordinates.first_two]\n[extract]\n[particles.double]\n[maps.negate]\n"
        '[sinks.list]\n[plugins]\nblock = ["extract"]\n'
    )
    config = load(tmp_path / "streamprep.toml")
    plugins = load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""}, block=["extract"], extra=["tests.every_hook"])
    assert not plugins.broken
    monkeypatch.setattr(workers, "load_plugins", lambda **_: plugins)
    every_hook.CALLS.clear()
    last = Engine(config, plugins, resolve(config, plugins), once=True, executor=InlineExecutor).run()
    assert last.jobs == {"done": 2}
    calls = every_hook.CALLS
    called = [name for name, _ in calls]
    assert set(called) == {hook.name for hook in HOOKS}

    def told(hook: str) -> list[str]:
        return [text for name, text in calls if name == hook]

    assert set(told("missing_part")) == {"mic.toymic", "mic.toypick", "vol.toymap", "torn.toymic"}
    assert set(told("classify_path")) == {f"{name} NUMPY" for name in ("mic.toymic", "mic.toypick", "vol.toymap")}
    assert set(told("read_item")) == {"micrograph Toys/mic", "coordinates mic", "map Toys/vol"}
    assert told("process_micrograph") == ["Toys/mic.toymic"]
    assert told("process_coordinates") == ["3 on (64, 96)"]
    assert told("extract_particles") == ["2 particle"]
    assert told("process_particles") == ["2 particle 2.0"]
    assert told("process_map") == ["Toys/vol.toymap 2.0"]
    assert set(told("make_sinks")) == {"{'list': {}}"}
    assert told("run_started") == [f"['brighten', 'first_two', 'extract', 'double', 'negate'] {tmp_path.name}"]
    assert sorted(told("item_started")) == ["Toys/mic", "Toys/vol"]
    micrograph = [f"{name} Toys/mic" for name in ("brighten", "first_two", "extract", "double")]
    assert sorted(told("operation_finished")) == sorted([*micrograph, "negate Toys/vol"])
    ended = told("item_finished")
    assert sorted(ended)[1:] == ["Toys/mic done None", "Toys/vol done None"]
    assert sorted(ended)[0].startswith("Torn/torn.toymic failed")
    assert "its end" in sorted(ended)[0]
    (warning,) = told("warning_raised")
    assert warning in ("toys are no data; the first is Toys/mic", "toys are no data; the first is Toys/vol")
    assert told("run_stopped") == ["finished {'done': 2}"]
    order = [
        "run_started", "missing_part", "classify_path", "item_started", "read_item", "process_micrograph",
        "process_coordinates", "extract_particles", "process_particles", "operation_finished", "item_finished",
        "run_stopped",
    ]  # fmt: skip
    tables = ("vol", "torn", "coordinates mic")  # of the micrograph alone: its table is read before there is a job
    mine = [name for name, text in calls if name in order and not any(other in text for other in tables)]
    assert sorted(order, key=mine.index) == order
    assert called[-1] == "run_stopped"
    with (tmp_path / "Toys" / "mic.toymic").open("rb") as file:
        image = np.load(file) + 1
    boxes = np.stack([image[y - 8 : y + 8, x - 8 : x + 8] for x, y in ((20, 20), (40, 30))])
    stack = mrcfile.read(tmp_path / "streamprep_out" / "particles" / "Toys" / "mic.mrcs")
    np.testing.assert_allclose(stack, 2 * boxes, rtol=1e-6)
    written = (tmp_path / "streamprep_out" / "list" / "Toys" / "mic.txt").read_text()
    assert float(written) == pytest.approx(2 * boxes.mean(), rel=1e-5)
    assert (tmp_path / "streamprep_out" / "list" / "Toys" / "vol.txt").read_text() == "-3.0\n"
