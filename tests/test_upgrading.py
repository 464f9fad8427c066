"""Sessions that other versions began go on where somebody says so, and nothing but versions differs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streamprep.cli import app
from streamprep.config import load
from streamprep.engine import Engine
from streamprep.executors import InlineExecutor
from streamprep.model import ConfigError
from streamprep.pipeline import Plan, resolve
from streamprep.plugin_manager import load_plugins
from streamprep.repair import repair
from streamprep.simulate import Acquisition, simulate
from streamprep.snapshot import Snapshot
from streamprep.upgrading import continue_with, other_versions
from tests.outputs import check_invariants, rows_of

PLUGINS = load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""})


def planned(folder: Path, *further: str) -> tuple[Any, Plan]:
    config = load(folder / "streamprep.toml", ["session.settle_seconds=0", "session.device=cpu", *further])
    return config, resolve(config, PLUGINS)


def once(folder: Path, *further: str) -> Snapshot:
    config, plan = planned(folder, *further)
    return Engine(config, PLUGINS, plan, once=True, executor=InlineExecutor).run()


@contextlib.contextmanager
def of_version(version: str, digest: str) -> Iterator[None]:
    """Plans are described, and called, as another version does."""
    describe = Plan.describe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Plan, "describe", lambda plan: json.loads(json.dumps(describe(plan)).replace('"0.1.0"', f'"{version}"'))
        )
        patch.setattr(Plan, "hash", digest)
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A session of two micrographs that an older version made, as far as its plan says."""
    simulate(tmp_path, Acquisition(micrographs=2, size_px=256, particles=3, box_size_px=32, seed=4))
    with of_version("0.0.9", "0123456789abcdef"):
        assert once(tmp_path).jobs == {"done": 2}
    return tmp_path


def test_it_is_refused_until_somebody_says_so_and_goes_on_then(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = folder / "streamprep_out"
    before = rows_of(output / "particles.star")
    with pytest.raises(ConfigError, match="holds results of another plan .* streamprep upgrade --yes"):
        once(folder)
    config, plan = planned(folder)
    found, changes = other_versions(config, plan)
    assert found == output
    told = CliRunner().invoke(app, ["upgrade", str(config.file), "--set", "session.device=cpu"])
    assert (told.exit_code, told.stdout.splitlines()[:-1]) == (1, changes)
    assert "--yes" in told.stdout
    assert changes[0] == "coordinates.pick_noise: streamprep 0.0.9, now 0.1.0"
    assert len(changes) == len(plan.steps)
    with pytest.raises(ConfigError, match="holds results of another plan"):
        once(folder)  # asking is not doing
    continue_with(config, plan, output, changes)
    continue_with(config, plan, output, changes)
    assert other_versions(config, plan) == (output, [])
    last = once(folder)
    assert (last.jobs, "0.0.9, now 0.1.0" in caplog.text) == ({"done": 2}, True)
    assert rows_of(output / "particles.star") == before
    check_invariants(output)
    (output / ".streamprep/ledger.sqlite").unlink()
    assert repair(config, PLUGINS, plan, verify=True).items == 2
    assert once(folder).jobs == {"done": 2}
    check_invariants(output)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("particles.normalize.method=new", r"particles\.normalize: method was \"ramp\", and is \"new\""),
        ("optics.voltage_kv=200", "optics was .*300.*, and is .*200"),
        ("extract.order=5", "extract: order was 10, and is 5"),
        ("particles.threshold.value=0", "it has .*; asked for is .*threshold"),
    ],
)
def test_what_differs_in_more_than_versions_is_refused(folder: Path, override: str, said: str) -> None:
    config, plan = planned(folder, override)
    with pytest.raises(ConfigError, match=f"no results that differ in versions alone: .*{said}"):
        other_versions(config, plan)


def test_a_parameter_that_is_new_has_to_have_its_default(folder: Path) -> None:
    path = folder / "streamprep_out/.streamprep/plan.json"
    former = json.loads(path.read_text())
    for step in former["steps"]:
        step["parameters"].pop("method", None)
    path.write_text(json.dumps(former))
    _, changes = other_versions(*planned(folder))
    assert 'particles.normalize: method = "ramp" is new, and its default' in changes
    with pytest.raises(ConfigError, match="method was null, and is"):
        other_versions(*planned(folder, "particles.normalize.method=new"))


def test_of_several_sets_somebody_says_which_is_to_go_on(folder: Path) -> None:
    with of_version("0.0.95", "fedcba9876543210"):
        config, plan = planned(folder)
        Engine(config, PLUGINS, plan, once=True, new_set=True, executor=InlineExecutor).run()
    with pytest.raises(
        ConfigError, match=r"streamprep_out, streamprep_out_2 differ.*session\.output=streamprep_out_2$"
    ):
        other_versions(*planned(folder))
    config, plan = planned(folder, "session.output=streamprep_out_2")
    output, changes = other_versions(config, plan)
    assert output == folder / "streamprep_out_2"
    continue_with(config, plan, output, changes)
    assert once(folder).output == str(output), "the next start finds it by itself"
