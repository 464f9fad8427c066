"""The hooks: documented, tested, and what `@operation` makes."""

from __future__ import annotations

import inspect
from pathlib import Path

import pluggy
import pytest

import streamprep
from streamprep import Params, hookspecs, operation
from streamprep.hookspecs import OPERATION_HOOKS, OperationInfo
from streamprep.plugin_manager import load_plugins

HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, "streamprep_spec")]


def test_the_list_of_hooks_is_not_empty() -> None:
    assert len(HOOKS) >= 15
    assert set(OPERATION_HOOKS.values()) < set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_says_when_it_is_called(name: str) -> None:
    text = inspect.getdoc(getattr(hookspecs, name)) or ""
    assert "When:" in text
    assert "Example:" in text


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_in_the_documentation_and_in_a_test(name: str) -> None:
    root = Path(__file__).parent
    assert name in (root.parent / "docs" / "plugins.md").read_text()
    others = [path for path in root.rglob("*.py") if path.name != "test_hookspecs.py"]
    own = [path for path in (root.parent / "streamprep").rglob("*.py") if path.name != "hookspecs.py"]
    assert any(name in path.read_text() for path in [*others, *own])


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


def test_life_cycle_hooks_see_a_session(tmp_path: Path) -> None:
    """run_started … run_stopped in order, and a plugin that raises in one does not hurt."""
    from streamprep.config import load
    from streamprep.engine import Engine
    from streamprep.pipeline import resolve
    from streamprep.simulate import Acquisition, simulate
    from streamprep.workers import InlineExecutor

    seen: list[str] = []

    class Spy:
        @streamprep.hookimpl
        def run_started(self, plan, config):  # type: ignore[no-untyped-def]
            seen.append(f"run_started {len(plan.steps)}")

        @streamprep.hookimpl
        def item_started(self, item):  # type: ignore[no-untyped-def]
            seen.append(f"item_started {item}")
            raise RuntimeError("a plugin with a fault")

        @streamprep.hookimpl
        def operation_finished(self, operation, seconds):  # type: ignore[no-untyped-def]
            assert seconds >= 0
            seen.append(f"operation_finished {operation}")

        @streamprep.hookimpl
        def item_finished(self, item, state, reason):  # type: ignore[no-untyped-def]
            seen.append(f"item_finished {item} {state}")

        @streamprep.hookimpl
        def warning_raised(self, message):  # type: ignore[no-untyped-def]
            seen.append(f"warning_raised {message}")

        @streamprep.hookimpl
        def snapshot_taken(self, snapshot):  # type: ignore[no-untyped-def]
            assert snapshot.jobs.keys() <= {"ready", "claimed", "done"}

        @streamprep.hookimpl
        def run_stopped(self, snapshot):  # type: ignore[no-untyped-def]
            seen.append(f"run_stopped {snapshot.mode}")

    simulate(tmp_path, Acquisition(micrographs=1, size_px=256, particles=3, box_size_px=32))
    config = load(tmp_path / "streamprep.toml", ["session.settle_seconds=0", "session.device=cpu"])
    plugins = load_plugins()
    plugins.manager.register(Spy())
    last = Engine(config, plugins, resolve(config, plugins), once=True, executor=InlineExecutor).run()
    assert last.jobs == {"done": 1}
    assert seen == [
        "run_started 4",
        "item_started Micrographs/mic_0001",
        "operation_finished pick_noise",
        "operation_finished extract",
        "operation_finished normalize",
        "operation_finished invert",
        "item_finished Micrographs/mic_0001 done",
        "run_stopped finished",
    ]
