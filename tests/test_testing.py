"""The helpers for plugin authors, used as an author would; and that the built-in operations are documented."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import Field

from streamprep import (
    Context,
    Coordinates,
    Item,
    ItemResult,
    Map,
    Micrograph,
    Params,
    Particles,
    Sink,
    Staged,
    operation,
    testing,
)
from streamprep.arrays import array_namespace
from streamprep.plugin_manager import BUILTIN_OPERATIONS, LoadedOperation, load_plugins
from streamprep.sinks import staged_file
from streamprep.testing import (
    ArrayBackend,
    backends,
    run_operation,
    run_sink,
    tiny_coordinates,
    tiny_map,
    tiny_micrograph,
    tiny_particles,
    tiny_result,
)

pytest_plugins = ["pytester"]


class Gain(Params):
    """Multiply."""

    gain: float = Field(2.0, gt=0, description="Factor.")
    margin_px: int = 0
    """Pixels."""

    def check(self, *, size_px: int | None, pixel_size_angstrom: float | None) -> None:
        """Refuse a margin above the box, and pixels too coarse."""
        if size_px is not None and self.margin_px > size_px:
            raise ValueError(f"margin_px = {self.margin_px} is above the box of {size_px} px")
        if pixel_size_angstrom is not None and pixel_size_angstrom > 10:
            raise ValueError(f"pixels of {pixel_size_angstrom} Å are too coarse")


@operation("process_particles", order=50, params=Gain)
def amplify(particles: Particles, params: Gain, ctx: Context) -> Particles:
    """Multiply, and say so."""
    ctx.warn(f"{ctx.operation} by {params.gain} on {ctx.item.kind}")
    return particles.with_pixels(particles.pixels * params.gain)


@operation("process_map", order=50, params=Gain, name="amplify")
def amplify_map(map: Map) -> Map:
    """Twice, without asking for parameters."""
    return map.with_pixels(map.pixels * 2)


@operation("process_coordinates", order=50)
def on_bright(coordinates: Coordinates, micrograph: Micrograph) -> Coordinates:
    """Keep what lies on a bright pixel."""
    x, y = np.floor(coordinates.xy_px + 0.5).astype(int).T
    return coordinates.select(micrograph.pixels[y, x] > 100)


@operation("process_particles", order=50)
def idle(particles: Particles) -> None:
    """Change nothing."""


# --- backends --------------------------------------------------------------------------------------------------------


def test_every_backend_is_listed_and_those_that_cannot_run_say_why() -> None:
    listed = {parameter.id: parameter for parameter in backends()}
    assert list(listed) == ["numpy", "array-api-strict", "cupy"]
    assert not listed["numpy"].marks
    assert "gpu" in [mark.name for mark in listed["cupy"].marks]
    for parameter in listed.values():
        for mark in parameter.marks:
            assert mark.name != "skip" or mark.kwargs["reason"]


def test_without_cupy_its_case_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    testing._missing.cache_clear()
    marks = {mark.name: mark for mark in backends()[-1].marks}
    testing._missing.cache_clear()
    assert set(marks) == {"gpu", "skip"}
    assert "cupy is not installed" in marks["skip"].kwargs["reason"]


def test_without_array_api_strict_its_case_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "array_api_strict", None)
    testing._missing.cache_clear()
    marks = {mark.name: mark for mark in backends()[1].marks}
    testing._missing.cache_clear()
    assert marks["skip"].kwargs["reason"] == "array-api-strict is not installed"


@pytest.mark.parametrize("backend", backends())
def test_arrays_go_to_a_backend_and_come_back(backend: ArrayBackend) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    there = backend.asarray(values)
    assert array_namespace(there) is backend.xp
    assert backend.name.replace("-", "_") in backend.xp.__name__
    home = backend.to_host(there)
    assert isinstance(home, np.ndarray)
    assert home.dtype == np.float32
    np.testing.assert_array_equal(home, values)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("data", [tiny_particles(2, 8), tiny_micrograph((8, 10)), tiny_map(6)], ids=lambda d: type(d))
def test_data_move_with_all_they_carry(backend: ArrayBackend, data: Any) -> None:
    moved = backend.move(data)
    assert type(moved) is type(data)
    np.testing.assert_array_equal(backend.to_host(moved.pixels), data.pixels)
    assert replace(moved, pixels=data.pixels) == data


def test_a_hidden_transfer_is_noticed() -> None:
    pytest.importorskip("array_api_strict")
    with pytest.raises(TypeError, match="expected an array of array-api-strict"):
        ArrayBackend("array-api-strict").to_host(np.zeros(2))


def test_the_fixture_runs_a_test_once_per_backend(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from streamprep.testing import array_backend")
    pytester.makeini("[pytest]\nmarkers =\n    gpu: needs a GPU\naddopts = --strict-markers")
    pytester.makepyfile(
        """
        def test_sum(array_backend):
            values = array_backend.asarray([1.0, 2.0])
            assert float(array_backend.xp.sum(values)) == 3
        """
    )
    result = pytester.runpytest("-v", "-rs", "-p", "no:cacheprovider")
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed", 0) == outcomes.get("errors", 0) == 0
    assert outcomes["passed"] + outcomes.get("skipped", 0) == 3
    result.stdout.fnmatch_lines(["*test_sum?numpy? PASSED*"])
    only = pytester.runpytest("-m", "not gpu", "-p", "no:cacheprovider").parseoutcomes()
    assert only["deselected"] == 1


def test_all_but_the_fixture_works_without_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest", None)
    name = "streamprep_testing_without_pytest"
    spec = importlib.util.spec_from_file_location(name, testing.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    assert not hasattr(module, "array_backend")
    assert all(hasattr(module, public) for public in module.__all__)
    done, _ = module.run_operation(amplify, module.tiny_particles(1, 8))
    assert done.pixels.shape == (1, 8, 8)


# --- tiny data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "box"), [(0, 8), (1, 1), (5, 9), (3, 16)])
def test_tiny_particles_are_whole(n: int, box: int) -> None:
    particles = tiny_particles(n, box, pixel_size_angstrom=1.25)
    assert particles.pixels.shape == (n, box, box)
    assert particles.pixels.dtype == np.float32
    assert particles.optics.pixel_size_angstrom == 1.25
    assert particles.coordinates is not None
    assert particles.ctf is not None
    assert len(particles.coordinates) == len(particles.ctf) == n
    assert len(set(particles.ctf)) == n
    assert len({image.tobytes() for image in particles.pixels}) == n


def test_tiny_data_are_the_same_for_the_same_seed_only() -> None:
    for make in (
        lambda seed: tiny_particles(2, 8, seed).pixels,
        lambda seed: tiny_micrograph((8, 9), seed).pixels,
        lambda seed: tiny_map(6, seed).pixels,
        lambda seed: tiny_coordinates(3, seed=seed).xy_px,
    ):
        np.testing.assert_array_equal(make(1), make(1))
        assert not np.array_equal(make(1), make(2))


def test_tiny_micrographs_are_not_square_and_boxes_fit_into_them() -> None:
    micrograph = tiny_micrograph()
    ny, nx = micrograph.shape_px
    assert ny != nx
    assert micrograph.ctf is not None
    xy = tiny_coordinates(50, (ny, nx), 16).xy_px
    assert (xy >= 8).all()
    assert (xy + 8 <= [nx, ny]).all()
    with pytest.raises(ValueError, match="do not fit into a micrograph of 20 × 10 px"):
        tiny_coordinates(1, (10, 20), 16)


def test_tiny_maps_have_no_symmetry() -> None:
    voxels = tiny_map(12).pixels
    assert voxels.shape == (12, 12, 12)
    for turned in (voxels[::-1], voxels[:, ::-1], voxels[:, :, ::-1], voxels.transpose(0, 2, 1), voxels.T):
        assert np.corrcoef(voxels.ravel(), turned.ravel())[0, 1] < 0.95


# --- running an operation --------------------------------------------------------------------------------------------


def test_parameters_and_warnings_go_through() -> None:
    particles = tiny_particles(2, 8)
    run = run_operation(amplify, particles, gain=3)
    np.testing.assert_array_equal(run.result.pixels, particles.pixels * 3)
    assert run.warnings == ["amplify by 3.0 on particles"]
    assert run_operation(amplify, particles).warnings == ["amplify by 2.0 on particles"]


def test_an_operation_gets_only_what_it_declares() -> None:
    volume = tiny_map(6)
    np.testing.assert_array_equal(run_operation(amplify_map, volume).result.pixels, 2 * volume.pixels)


def test_data_may_come_in_any_order() -> None:
    micrograph, coordinates = tiny_micrograph(), tiny_coordinates(20)
    one, _ = run_operation(on_bright, (micrograph, coordinates))
    two, _ = run_operation(on_bright, (coordinates, micrograph))
    assert 0 < len(one) < 20
    np.testing.assert_array_equal(one.xy_px, two.xy_px)


def test_unchanged_is_none() -> None:
    assert run_operation(idle, tiny_particles(1, 4)) == (None, [])


def test_a_context_of_ones_own_is_used() -> None:
    heard: list[str] = []
    item = Item("micrograph", "Micrographs/a", Path("a.mrc"))
    _, warnings = run_operation(amplify, tiny_particles(1, 4), Context(item, "other", warn=heard.append), gain=4)
    assert heard == warnings == ["amplify by 4.0 on micrograph"]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"gain": 0}, "gain"),
        ({"gian": 1}, "gian"),
        ({"gain": float("nan")}, "gain"),
        ({"margin_px": 9}, "margin_px = 9 is above the box of 8 px"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run_operation(amplify, tiny_particles(1, 8), **parameters)


def test_parameters_are_checked_against_the_pixel_size() -> None:
    with pytest.raises(ValueError, match="too coarse"):
        run_operation(amplify, tiny_particles(1, 8, pixel_size_angstrom=12))
    with pytest.raises(ValueError, match="too coarse"):
        run_operation(amplify_map, tiny_map(6, pixel_size_angstrom=12))


def test_what_is_no_operation_is_refused() -> None:
    def plain(particles: Particles) -> Particles:
        return particles

    with pytest.raises(TypeError, match="plain is not an operation; decorate it"):
        run_operation(plain, tiny_particles(1, 4))


def test_data_that_are_missing_or_strange_are_named() -> None:
    with pytest.raises(TypeError, match="on_bright asks for micrograph"):
        run_operation(on_bright, tiny_coordinates(2))
    with pytest.raises(TypeError, match="data of type ndarray; give Micrograph, Coordinates, Particles, Map"):
        run_operation(amplify, np.zeros((1, 4, 4)))  # type: ignore[arg-type]


def test_a_result_of_another_type_is_refused() -> None:
    @operation("process_particles", order=50)
    def bare(particles: Particles) -> Any:
        return particles.pixels

    with pytest.raises(TypeError, match="bare returned ndarray, not Particles or None"):
        run_operation(bare, tiny_particles(1, 4))


# --- the built-in operations -----------------------------------------------------------------------------------------

LOADED = load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""}, sinks=False)


def test_every_built_in_module_has_operations() -> None:
    assert not LOADED.broken
    assert {made.function.__module__ for made in LOADED.operations} == set(BUILTIN_OPERATIONS)


@pytest.mark.parametrize("dotted", BUILTIN_OPERATIONS)
def test_every_module_of_operations_says_what_it_is(dotted: str) -> None:
    said = importlib.import_module(dotted).__doc__ or ""
    assert said.startswith(f"{dotted.rpartition('.')[2]}: ")


@pytest.mark.parametrize("made", LOADED.operations, ids=lambda made: f"{made.info.hook}-{made.info.name}")
def test_every_operation_and_each_of_its_parameters_is_described(made: LoadedOperation) -> None:
    assert (made.function.__doc__ or "").strip()
    assert made.info.params is not Params
    assert (made.info.params.__doc__ or "").strip()
    for name, field in made.info.params.model_fields.items():
        assert (field.description or "").strip(), f"{made.info.name}.{name} has no description"
        unit = {"_px": "[px]", "_angstrom": "[Å]", "_deg": "[°]"}
        for ending, shown in unit.items():
            if name.endswith(ending):
                assert shown in (field.description or ""), f"{made.info.name}.{name} does not say {shown}"


# --- sinks -----------------------------------------------------------------------------------------------------------


class NoteSink(Sink):
    """Writes a line for each item; or what a sink must not do."""

    name = "notes"
    tables = ()
    folders = ("notes",)

    def __init__(self, astray: Path | None = None, *, fixed: bool = False) -> None:
        self.astray, self.fixed = astray, fixed

    def stage(self, result: ItemResult, folder: Path) -> Staged:
        (folder / "note.txt").write_text(f"{result.item.name} {result.generation} {len(result.particles['particle'])}")
        if self.astray is not None:
            self.astray.parent.mkdir(exist_ok=True)
            self.astray.touch()
        name = "same" if self.fixed else result.file_name
        return Staged((staged_file(folder / "note.txt", f"notes/{name}.txt"),))


def test_a_sink_is_run_as_in_a_session(tmp_path: Path) -> None:
    assert run_sink(NoteSink(), tiny_result(3), tmp_path) == ["notes/Micrographs/tiny.txt"]
    two = run_sink(NoteSink(), tiny_result(2), tmp_path)
    assert two == ["notes/Micrographs/tiny.txt", "notes/Micrographs/tiny~2.txt"]
    assert [(tmp_path / name).read_text() for name in two] == ["Micrographs/tiny 1 3", "Micrographs/tiny 2 2"]
    assert len(run_sink(NoteSink(), tiny_result(name="Other/tiny"), tmp_path)) == 3


def test_a_sink_that_writes_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="notes wrote notes/astray.txt itself"):
        run_sink(NoteSink(tmp_path / "notes" / "astray.txt"), tiny_result(), tmp_path)


def test_a_sink_that_gives_two_files_one_name_is_refused(tmp_path: Path) -> None:
    run_sink(NoteSink(fixed=True), tiny_result(), tmp_path)
    with pytest.raises(ValueError, match="cannot be committed: .*notes/same.txt: this name is taken"):
        run_sink(NoteSink(fixed=True), tiny_result(name="Micrographs/other"), tmp_path)
