"""The package that `streamprep new-plugin` writes: built, tested by its own tests, listed and run."""

from __future__ import annotations

import zipfile
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hatchling.builders.wheel import WheelBuilder
from typer.testing import CliRunner

from streamprep import hookimpl
from streamprep.apply import apply
from streamprep.cli import app
from streamprep.config import load
from streamprep.engine import Engine
from streamprep.executors import InlineExecutor
from streamprep.model import ConfigError
from streamprep.new_plugin import LONGEST, STARTS, new_plugin
from streamprep.pipeline import resolve
from streamprep.plugin_manager import Plugins, load_plugins
from streamprep.simulate import Acquisition, simulate
from streamprep.templates import list_operations
from tests.conftest import ROOT
from tests.packages import install, run, run_tests

NAMES = {"trial_" + start.data: hook for hook, start in STARTS.items()}


@pytest.fixture(scope="module")
def installed() -> Plugins:
    return load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, installed: Plugins) -> Path:
    """One rendered package for each hook, as the command line makes it, and all of them installed in ``site``."""
    made = tmp_path_factory.mktemp("plugins")
    for name, hook in NAMES.items():
        done = CliRunner().invoke(app, ["new-plugin", name, "--folder", str(made), "--hook", hook])
        assert done.exit_code == 0, done.output
        root = made / f"streamprep-{name.replace('_', '-')}"
        assert f"wrote {root}; now: cd {root} && pip install" in done.output
        install(root, made / "site")
    return made


@pytest.fixture
def found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process finds the packages, too."""
    monkeypatch.syspath_prepend(folder / "site")
    return folder


def test_its_own_tests_pass(folder: Path) -> None:
    said = run_tests(folder / "site", sorted(folder.glob("streamprep-*")))
    assert "failed" not in said


@pytest.mark.parametrize("name", ["q", "a_" * (LONGEST // 2 - 1) + "zz"])
def test_it_is_well_formed_whatever_its_name(tmp_path: Path, installed: Plugins, name: str) -> None:
    for hook in STARTS:
        root = new_plugin(name, tmp_path / hook, hook, installed)
        assert "$" not in "".join(path.read_text() for path in root.rglob("*") if path.is_file())
    for arguments in (["check"], ["format", "--check"]):
        done = run(tmp_path, "ruff", *arguments, "--no-cache", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


def test_its_types_are_right(folder: Path, tmp_path: Path) -> None:
    """And those of the examples and of the tutorial; strictly, in one run, with the cache of `make lint`."""
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    printed = tmp_path / "streamprep_of_the_page.py"
    printed.write_text(page.partition("```python\n")[2].partition("```")[0])
    sources = [*folder.glob("streamprep-*/src"), *(ROOT / "examples").glob("*/src"), printed]
    done = run(ROOT, "mypy", "--config-file", ROOT / "pyproject.toml", *sorted(sources), cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_operation_is_listed_and_runs_on_a_file(found: Path, tmp_path: Path) -> None:
    plugins = load_plugins()
    assert not plugins.broken
    listed = list_operations(plugins)
    for name in NAMES:
        assert f"[streamprep-{name.replace('_', '-')}]" in listed
    images = np.random.default_rng(0).normal(10, 2, (3, 16, 16)).astype(np.float32)
    with mrcfile.new(tmp_path / "in.mrcs") as file:
        file.set_data(images)
        file.voxel_size = 2.0
    apply(
        ["trial_particles"], tmp_path / "in.mrcs", tmp_path / "out.mrcs", plugins,
        overrides=["trial_particles.factor=2"], device="cpu",
    )  # fmt: skip
    mean = images.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(mrcfile.read(tmp_path / "out.mrcs"), mean + 2 * (images - mean), rtol=1e-5)


def test_every_kind_of_operation_runs_in_a_session(found: Path, tmp_path: Path) -> None:
    ran: set[str] = set()

    class Spy:
        @hookimpl
        def operation_finished(self, operation: str) -> None:
            ran.add(operation)

    simulate(tmp_path, Acquisition(micrographs=1, size_px=256, particles=3, box_size_px=32))
    with (tmp_path / "streamprep.toml").open("a") as file:
        file.write("[micrographs.trial_micrograph]\n[coordinates.trial_coordinates]\n[particles.trial_particles]\n")
        file.write("[maps.trial_map]\n")
    watch = 'session.watch=["Micrographs", "Coordinates", "Maps"]'
    config = load(tmp_path / "streamprep.toml", ["session.settle_seconds=0", "session.device=cpu", watch])
    plugins = load_plugins()
    plugins.manager.register(Spy())
    last = Engine(config, plugins, resolve(config, plugins), once=True, executor=InlineExecutor).run()
    assert set(last.jobs) == {"done"}
    assert ran >= set(NAMES)


def test_the_templates_are_in_the_wheel(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as file:
        there = {name for name in file.namelist() if name.startswith("streamprep/new_plugin/templates/")}
    lying = {path.relative_to(ROOT).as_posix() for path in (ROOT / "streamprep/new_plugin/templates").iterdir()}
    assert there == lying


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Band", "no name for a plugin; allowed are up to 24 small letters"),
        ("a--b", "no name for a plugin"),
        ("9a", "no name for a plugin"),
        ("é", "no name for a plugin"),
        ("../x", "no name for a plugin"),
        ("", "no name for a plugin"),
        ("a" * (LONGEST + 1), "no name for a plugin"),
        ("class", "word of Python's own; .* such as my-class"),
        ("map", "word of Python's own"),
        ("invert", "streamprep offers an operation of this name"),
        ("streamprep-invert", "streamprep offers an operation of this name"),
        ("coordinates", "streamprep has a plugin of this name"),
        ("console", "streamprep has a plugin of this name"),
        ("pixels", "pixels is a name that the code of the package uses"),
        ("field", "Field is a name that the code of the package uses"),
        ("tiny", "tiny_particles is a name that the code of the package uses"),
        ("here", "a module streamprep_here is installed already"),
    ],
)
def test_a_name_that_cannot_be_is_refused(
    tmp_path: Path, installed: Plugins, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    (tmp_path / "streamprep_here.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=words):
        new_plugin(name, tmp_path / "new", "process_particles", installed)
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path: Path, installed: Plugins) -> None:
    (tmp_path / "streamprep-band-pass").mkdir()
    with pytest.raises(ConfigError, match="streamprep-band-pass: this is there already, and nothing is overwritten"):
        new_plugin("band_pass", tmp_path, "process_particles", installed)
    assert not any((tmp_path / "streamprep-band-pass").iterdir())


def test_a_hook_that_it_cannot_begin_with_is_refused(tmp_path: Path, installed: Plugins) -> None:
    with pytest.raises(ConfigError, match="--hook make_sinks: choose one of process_particles, process_micrograph"):
        new_plugin("x", tmp_path, "make_sinks", installed)


def test_the_name_may_carry_the_prefix(tmp_path: Path, installed: Plugins) -> None:
    root = new_plugin("streamprep-band-pass", tmp_path, "process_map", installed)
    assert root.name == "streamprep-band-pass"
    assert (root / "src" / "streamprep_band_pass" / "__init__.py").is_file()
    assert 'band_pass = "streamprep_band_pass"' in (root / "pyproject.toml").read_text()
