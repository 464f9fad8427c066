"""Plans: which operations, in which order; and running them on one item."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamprep import Context, Coordinates, Item, Micrograph, Optics, Params, Particles, Reject, arrays
from streamprep.config import Config
from streamprep.hookspecs import OperationInfo, StoredStack
from streamprep.model import ConfigError
from streamprep.pipeline import OperationError, context_for, resolve, run_micrograph, run_particles
from streamprep.plugin_manager import LoadedOperation, Plugins, load_plugins
from streamprep.plugins.extract import extract
from streamprep.testing import tiny_particles


def config(**tables: Any) -> Config:
    return Config.model_validate({"session": {"watch": ["M"]}, **tables})


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins(environ={}, sinks=False)


def add(plugins: Plugins, hook: str, name: str, order: int, function: Any, version: str = "1") -> Plugins:
    info = OperationInfo(hook, name, order, Params)
    arguments = tuple(function.__code__.co_varnames[: function.__code__.co_argcount])
    made = LoadedOperation(info, function, arguments, name, "test", version)
    return Plugins(plugins.manager, plugins.plugins, [*plugins.operations, made])


BOXES = {"extract": {"box_size_px": 16}}


def test_steps_are_sorted_by_lane_order_and_name(plugins: Plugins) -> None:
    more = add(plugins, "process_particles", "alpha", 30, lambda particles: particles)
    more = add(more, "process_particles", "zeta", 30, lambda particles: particles)
    lanes = config(
        particles={"zeta": {}, "invert": {}, "normalize": {}, "alpha": {}}, coordinates={"pick_noise": {}}, **BOXES
    )
    names = [step.name for step in resolve(lanes, more).steps]
    assert names == ["pick_noise", "extract", "alpha", "normalize", "zeta", "invert"]
    lanes = config(particles={"invert": {"order": 1}, "normalize": {}}, **BOXES)
    assert [step.name for step in resolve(lanes, plugins).steps] == ["extract", "invert", "normalize"]


def test_the_hash_changes_with_all_that_decides_results(plugins: Plugins) -> None:
    base = {"particles": {"normalize": {}}, **BOXES}
    first = resolve(config(**base), plugins).hash
    assert resolve(config(**base), load_plugins(environ={}, sinks=False)).hash == first
    others = [
        {**base, "particles": {"normalize": {"method": "new"}}},
        {**base, "particles": {"normalize": {"order": 31}}},
        {**base, "particles": {"normalize": {}, "invert": {}}},
        {**base, "extract": {"box_size_px": 18}},
        {**base, "optics": {"voltage_kv": 200}},
        {**base, "session": {"watch": ["M"], "seed": 1}},
        {**base, "ctf": {"table": "c.star"}},
        {**base, "sets": {"further_tables": ["cs", "xmd"]}},
        {**base, "sets": {"coordinate_files": []}},
        {**base, "sets": {"stack_dtype": "float16"}},
    ]
    hashes = {resolve(Config.model_validate({"session": {"watch": ["M"]}, **other}), plugins).hash for other in others}
    assert len(hashes | {first}) == len(others) + 1
    same = [
        {**base, "session": {"watch": ["N", "O"]}},
        {**base, "session": {"watch": ["M"], "workers": 3, "settle_seconds": 9}},
        {**base, "particles": {"normalize": {"method": "ramp"}}},
        {**base, "sets": {"further_tables": ["xmd", "xmd"], "coordinate_files": ["box", "pos"]}},
    ]
    for other in same:
        assert resolve(Config.model_validate({"session": {"watch": ["M"]}, **other}), plugins).hash == first
    old = add(plugins, "process_particles", "alpha", 30, lambda particles: particles, version="1")
    new = add(plugins, "process_particles", "alpha", 30, lambda particles: particles, version="2")
    named = config(particles={"alpha": {}})
    assert resolve(named, old).hash != resolve(named, new).hash


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"particles": {"invrt": {}}}, ["[particles.invrt]: unknown operation", "did you mean invert?"]),
        ({"maps": {"normalize": {}}}, ["[maps.normalize]: unknown operation", "normalize works on particles"]),
        ({"particles": {"normalize": {"methd": "new"}}}, ["[particles.normalize]", "methd", "did you mean method?"]),
        ({"particles": {"normalize": {"order": "first"}}}, ["order = 'first'", "whole number"]),
        ({"particles": {"normalize": {"order": True}}}, ["order = True", "whole number"]),
        ({"extract": {"box_size_px": 16, "output_size_px": 32}}, ["[extract]", "output_size_px = 32", "16"]),
        (
            {
                "extract": {"box_size_px": 64, "output_size_px": 32},
                "particles": {"normalize": {"background_radius_px": 17}},
            },
            ["[particles.normalize]", "background_radius_px = 17", "16 of 32 px"],
        ),
    ],
)
def test_what_is_wrong_is_said_before_any_data(plugins: Plugins, tables: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(config(**tables), plugins)
    for word in words:
        assert word in str(error.value)


def test_two_plugins_with_one_name_are_an_error_only_when_asked_for(plugins: Plugins) -> None:
    twice = add(plugins, "process_particles", "alpha", 1, lambda particles: particles)
    twice = add(twice, "process_particles", "alpha", 2, lambda particles: particles)
    assert resolve(config(particles={"invert": {}}), twice)
    with pytest.raises(ConfigError, match=r"offered by test \(plugin alpha\) and test \(plugin alpha\)"):
        resolve(config(particles={"alpha": {}}), twice)


# --- running ---------------------------------------------------------------------------------------------------------


def micrograph() -> Micrograph:
    pixels = np.random.default_rng(0).normal(10, 1, (64, 80)).astype(np.float32)
    return Micrograph("M/a.mrc", pixels, Optics(1.5))


def run(plan: Any, **further: Any) -> Any:
    coordinates = Coordinates(np.array([[20.0, 20.0], [50.0, 40.0]]))
    context = context_for(plan, Item("micrograph", "M/a", Path("M/a.mrc")), **further)
    return run_micrograph(plan, micrograph(), coordinates, context)


def test_noise_goes_through_the_same_chain(plugins: Plugins) -> None:
    result = run(resolve(config(coordinates={"pick_noise": {"number": 3}}, particles={"invert": {}}, **BOXES), plugins))
    assert {label: len(found) for label, found in result.particles.items()} == {"particle": 2, "noise": 3}
    x, y = result.coordinates["noise"].xy_px[0].astype(int)
    expected = -micrograph().pixels[y - 8 : y + 8, x - 8 : x + 8]
    np.testing.assert_array_equal(result.particles["noise"].pixels[0], expected)
    assert result.particles["noise"].label == "noise"


def test_none_means_unchanged_and_context_tells_who_runs(plugins: Plugins) -> None:
    seen: list[tuple[str, str, int | None]] = []

    def look(particles: Particles, ctx: Context) -> None:
        seen.append((ctx.operation, ctx.label, ctx.box_size_px))

    more = add(plugins, "process_particles", "look", 1, look)
    result = run(resolve(config(particles={"look": {}}, coordinates={"pick_noise": {}}, **BOXES), more))
    assert seen == [("look", "particle", 16), ("look", "noise", 16)]
    assert len(result.particles["particle"]) == 2


def test_coordinates_with_the_particle_label_replace_the_particles(plugins: Plugins) -> None:
    more = add(plugins, "process_coordinates", "first", 1, lambda coordinates: coordinates.select(np.array([0])))
    result = run(resolve(config(coordinates={"first": {}}, **BOXES), more))
    assert len(result.particles["particle"]) == 1


@pytest.mark.parametrize(
    ("hook", "function", "words"),
    [
        ("process_particles", lambda particles: 3, "returned int, not Particles or None"),
        ("process_particles", lambda particles: particles.with_pixels(particles.pixels[0]), "shape (16, 16)"),
        ("process_particles", lambda particles: particles.with_pixels(particles.pixels[:1]), "for 2 particles"),
        ("process_particles", lambda particles: replace(particles, columns={"a": np.arange(3)}), "for 3 particles"),
        (
            "process_particles",
            lambda particles: particles.with_pixels(particles.pixels[:, :10]),
            "returned pixels of shape (2, 10, 16); the images of a set must be square",
        ),
        ("process_micrograph", lambda micrograph: "x", "returned str, not Micrograph or None"),
    ],
)
def test_wrong_returns_name_the_operation(plugins: Plugins, hook: str, function: Any, words: str) -> None:
    more = add(plugins, hook, "odd", 1, function)
    lane = "particles" if "particles" in hook else "micrographs"
    with pytest.raises(OperationError) as error:
        run(resolve(config(**{lane: {"odd": {}}}, **BOXES), more))
    assert error.value.operation == "odd"
    assert words in str(error.value)


def test_boxes_that_are_not_square_are_refused(plugins: Plugins) -> None:
    def extract(micrograph: Micrograph, coordinates: Coordinates) -> Particles:
        return Particles(np.zeros((len(coordinates), 8, 16), np.float32), micrograph.optics)

    others = Plugins(plugins.manager, plugins.plugins, [])
    more = add(others, "extract_particles", "extract", 1, extract)
    with pytest.raises(OperationError, match=r"extract: returned pixels of shape \(2, 8, 16\); the images of a set"):
        run(resolve(config(extract={}), more))


def test_images_that_were_not_square_may_stay_so(plugins: Plugins) -> None:
    plan = resolve(config(particles={"invert": {}}), plugins)
    images = Particles(np.ones((1, 4, 6), np.float32), Optics(1.0))
    done = run_particles(plan, images, context_for(plan, Item("particles", "mic", Path("mic.mrc"))))
    np.testing.assert_array_equal(done.pixels, np.full((1, 4, 6), -1))


def test_reject_passes_through(plugins: Plugins) -> None:
    def dark(micrograph: Micrograph) -> None:
        raise Reject("too dark")

    more = add(plugins, "process_micrograph", "dark", 1, dark)
    with pytest.raises(Reject, match="too dark"):
        run(resolve(config(micrographs={"dark": {}}, **BOXES), more))


def test_random_numbers_depend_on_item_operation_label_and_seed_only() -> None:
    def draw(name: str = "M/a", operation: str = "op", seed: int = 0, label: Any = "particle", key: int = 0) -> int:
        context = Context(Item("micrograph", name, Path("x")), operation, seed=seed, label=label)
        return int(context.rng(key).integers(1 << 60))

    assert draw() == draw()
    assert len({draw(), draw("M/b"), draw(operation="q"), draw(seed=1), draw(label="noise"), draw(key=1)}) == 6


def test_without_extraction_there_are_coordinates_only(plugins: Plugins) -> None:
    plan = resolve(config(coordinates={"pick_noise": {"box_size_px": 16}}), plugins)
    result = run(plan)
    assert not result.particles
    assert set(result.coordinates) == {"particle", "noise"}


# --- parts of a stack ------------------------------------------------------------------------------------------------


class Shifted(Params):
    """What operations on single images may look at."""


def per_image(plugins: Plugins, name: str, order: int, function: Any) -> Plugins:
    info = OperationInfo("process_particles", name, order, Shifted, per_image=True)
    arguments = tuple(function.__code__.co_varnames[: function.__code__.co_argcount])
    made = LoadedOperation(info, function, arguments, name, "test", "1")
    return Plugins(plugins.manager, plugins.plugins, [*plugins.operations, made])


def run_chain(plugins: Plugins, *names: str, particles: Particles, threads: int = 1, **context: Any) -> Particles:
    plan = resolve(config(particles={name: {} for name in names}), plugins)
    there = Context(Item("particles", "stack", Path("stack.mrcs")), "", **context)
    return run_particles(plan, particles, there, threads=threads)


def number(particles: Particles, ctx: Context) -> Particles:
    """Add its number to each image, in place, and say it in a column."""
    numbers = np.arange(ctx.first_image, ctx.first_image + len(particles))
    particles.pixels[...] += numbers[:, None, None]
    ctx.flag(numbers % 3 == 0, "have a number divisible by 3")
    ctx.warn("the same of every part")
    ctx.remark("of the session")
    return replace(particles, columns={**particles.columns, "number": numbers}, phase_flipped=True)


def crop(particles: Particles) -> Particles:
    """Cut a corner: another shape."""
    return particles.with_pixels(particles.pixels[:, :4, :4] * 2)


def elsewhere(particles: Particles) -> Particles:
    """As an operation that does not work in place."""
    return particles.with_pixels(particles.pixels + 100)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("images", [1, 2, 3, 11])
@pytest.mark.parametrize("names", [("number",), ("elsewhere", "number"), ("number", "elsewhere", "crop")])
def test_parts_of_a_stack_make_what_the_whole_makes(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], images: int, threads: int
) -> None:
    more = plugins
    for order, function in enumerate((number, elsewhere, crop)):
        more = per_image(more, function.__name__, 10 + order, function)
    heard: list[str] = []
    remarks: list[str] = []
    made = {}
    for size in (1 << 30, 2 * 8 * 8 * 4):
        monkeypatch.setattr(arrays, "CACHE_BYTES", size)
        heard.clear(), remarks.clear()
        particles = tiny_particles(images, 8)
        made[size] = run_chain(
            more, *names, particles=particles, threads=threads, warn=heard.append, remark=remarks.append
        )
        multiples = len(range(0, images, 3))
        assert heard == [
            f"{multiples} of {images} particle images have a number divisible by 3",
            "the same of every part",
        ]
        assert remarks == ["of the session"]
    whole, parts = made.values()
    np.testing.assert_array_equal(parts.pixels, whole.pixels)
    assert parts.columns["number"].tolist() == list(range(images))
    assert parts.phase_flipped
    assert parts.ctf == whole.ctf
    assert parts.coordinates is not None
    assert whole.coordinates is not None
    np.testing.assert_array_equal(parts.coordinates.xy_px, whole.coordinates.xy_px)
    for name, values in whole.coordinates.columns.items():
        np.testing.assert_array_equal(parts.coordinates.columns[name], values)
    assert parts.pixels.shape == ((images, 4, 4) if "crop" in names else (images, 8, 8))


def test_operations_on_single_images_work_in_place(plugins: Plugins) -> None:
    particles = tiny_particles(5, 8)
    done = run_chain(per_image(plugins, "number", 1, number), "number", particles=particles)
    assert np.shares_memory(done.pixels, particles.pixels)


@pytest.mark.parametrize("kind", ["read-only", ">f4", "float64", "int16", "every other"])
def test_pixels_that_cannot_be_overwritten_are_copied(plugins: Plugins, kind: str) -> None:
    particles = tiny_particles(4, 8)
    pixels = np.rint(particles.pixels)
    if kind == "read-only":
        given = pixels.copy()
        given.flags.writeable = False
    elif kind == "every other":
        given = np.repeat(pixels, 2, axis=2)[:, :, ::2]
    else:
        given = pixels.astype(kind)
    kept = given.copy()
    done = run_chain(per_image(plugins, "number", 1, number), "number", particles=particles.with_pixels(given))
    assert done.pixels.dtype == np.float32
    np.testing.assert_array_equal(done.pixels, pixels + np.arange(4)[:, None, None])
    if kind != "every other":
        np.testing.assert_array_equal(given, kept)


def test_operations_on_single_images_cannot_drop_any(plugins: Plugins) -> None:
    more = per_image(plugins, "drop", 1, lambda particles: particles.part(1, len(particles)))
    with pytest.raises(OperationError, match="drop: returned 4 images for 5; what is per_image cannot drop or add any"):
        run_chain(more, "drop", particles=tiny_particles(5, 8))


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_one_part_is_the_stacks(plugins: Plugins, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    def fussy(particles: Particles, ctx: Context) -> None:
        if ctx.first_image == 4:
            raise Reject("the fifth image")

    monkeypatch.setattr(arrays, "CACHE_BYTES", 8 * 8 * 4)
    with pytest.raises(Reject) as caught:
        run_chain(per_image(plugins, "fussy", 1, fussy), "fussy", particles=tiny_particles(9, 8), threads=threads)
    assert caught.value.reason == "the fifth image"


def test_parts_that_differ_in_what_the_stack_shares_are_refused(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(particles: Particles, ctx: Context) -> Particles:
        return replace(particles, phase_flipped=ctx.first_image > 0)

    monkeypatch.setattr(arrays, "CACHE_BYTES", 8 * 8 * 4)
    with pytest.raises(OperationError, match="odd: gave parts of a stack different optics, flags or columns"):
        run_chain(per_image(plugins, "odd", 1, odd), "odd", particles=tiny_particles(3, 8))


@pytest.mark.parametrize("per_part", [True, False])
def test_what_an_operation_keeps_is_not_overwritten(plugins: Plugins, per_part: bool) -> None:
    """One that gives back an array that it keeps for the next item, and one that keeps what it was given."""
    kept = np.full((4, 8, 8), 2.0, np.float32)
    seen: list[np.ndarray] = []

    def cached(particles: Particles) -> Particles:
        return particles.with_pixels(kept)

    def look(particles: Particles) -> None:
        seen.append(particles.pixels)

    more = (
        per_image(plugins, "cached", 1, cached) if per_part else add(plugins, "process_particles", "cached", 1, cached)
    )
    more = add(more, "process_particles", "look", 95, look)
    more = per_image(more, "again", 96, lambda particles: particles.with_pixels(particles.pixels * 5))
    for _ in range(2):
        done = run_chain(more, "cached", "invert", "look", "again", particles=tiny_particles(4, 8))
        np.testing.assert_array_equal(done.pixels, -10)
        np.testing.assert_array_equal(kept, 2)
        np.testing.assert_array_equal(seen[-1], -2)


def test_read_only_results_can_be_worked_on(plugins: Plugins) -> None:
    def constant(particles: Particles) -> Particles:
        return particles.with_pixels(np.broadcast_to(np.float32(3), particles.pixels.shape))

    done = run_chain(per_image(plugins, "constant", 1, constant), "constant", "invert", particles=tiny_particles(4, 8))
    np.testing.assert_array_equal(done.pixels, -3)


# --- stacks that are stored while they are made ----------------------------------------------------------------------


class Kept:
    """A store in memory."""

    def __init__(self, label: str, count: int) -> None:
        self.label, self.count = label, count
        self.parts: dict[int, Any] = {}
        self.ended: list[str] = []

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.append("left")

    def put(self, start: int, particles: Particles) -> None:
        assert isinstance(particles.pixels, np.ndarray)
        self.parts[start] = particles.pixels.copy()

    def finish(self) -> tuple[StoredStack, Any]:
        self.ended.append("finished")
        return StoredStack(self.label, self.count, 7), np.concatenate(list(self.parts.values()))


def backwards(particles: Particles) -> Particles:
    """All in the other order, which needs the whole stack, and none but the first three."""
    assert isinstance(particles.pixels, np.ndarray)
    return Particles(particles.pixels[2::-1].copy(), particles.optics, columns={"turned": np.arange(3)})  # no label


@pytest.mark.parametrize(
    "names", [(), ("number",), ("number", "crop"), ("backwards",), ("backwards", "number"), ("number", "backwards")]
)
@pytest.mark.parametrize("copies", [0, 1])
def test_stored_part_by_part_is_what_is_made_in_memory(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], copies: int
) -> None:
    monkeypatch.setattr("streamprep.pipeline.copies_at_a_time", lambda pixels: copies)  # 1 as on a GPU
    more = plugins
    for order, name in enumerate(names):
        function = {"number": number, "crop": crop, "backwards": backwards}[name]
        if name == "backwards":
            more = add(more, "process_particles", name, 10 + order, function)
        else:
            more = per_image(more, name, 10 + order, function)
    lanes = config(coordinates={"pick_noise": {"number": 3}}, particles={name: {} for name in names}, **BOXES)
    plan = resolve(lanes, more)
    asked: list[int] = []

    def watched(pixels: Any, xy_px: Any, **options: Any) -> Any:
        asked.append(len(xy_px))
        return extract(pixels, xy_px, **options)

    monkeypatch.setattr("streamprep.plugins.extract.extract", watched)
    monkeypatch.setattr(arrays, "CACHE_BYTES", 2 * 16 * 16 * 4)
    heard: dict[bool, list[str]] = {False: [], True: []}
    stores: list[Kept] = []

    def open_stack(label: str, count: int) -> Kept:
        stores.append(Kept(label, count))
        return stores[-1]

    xy = np.random.default_rng(2).uniform(10, 50, (7, 2))
    found = Coordinates(xy, columns={"score": np.arange(7.0)})
    made = []
    for stored in (False, True):
        asked.clear()
        there = context_for(plan, Item("micrograph", "M/a", Path("M/a.mrc")), warn=heard[stored].append)
        made.append(run_micrograph(plan, micrograph(), found, there, open_stack=open_stack if stored else None))
    in_memory, result = made
    assert heard[True] == heard[False]
    assert in_memory.stored == {}
    for store in stores:
        whole, parts = in_memory.particles[store.label], result.particles[store.label]
        assert result.stored[store.label] == StoredStack(store.label, len(whole), 7)
        assert store.ended == ["finished", "left"]
        assert list(store.parts) == list(range(0, len(whole), 2))
        np.testing.assert_array_equal(parts.pixels, whole.pixels)
        assert parts.pixels.dtype == whole.pixels.dtype
        assert (parts.optics, parts.ctf, parts.phase_flipped) == (whole.optics, whole.ctf, whole.phase_flipped)
        assert {name: values.tolist() for name, values in parts.columns.items()} == {
            name: values.tolist() for name, values in whole.columns.items()
        }
        if whole.coordinates is not None:
            np.testing.assert_array_equal(parts.coordinates.xy_px, whole.coordinates.xy_px)
    assert [store.label for store in stores] == ["particle", "noise"]
    assert [count for count in asked if count] == ([7, 3] if "backwards" in names else [2, 2, 2, 1, 2, 1])


def test_what_an_operation_keeps_is_not_overwritten_when_it_is_stored(plugins: Plugins) -> None:
    kept = np.full((2, 16, 16), 2.0, np.float32)
    more = add(plugins, "process_particles", "cached", 1, lambda particles: particles.with_pixels(kept))
    plan = resolve(config(particles={"cached": {}, "invert": {}}, **BOXES), more)
    context = context_for(plan, Item("micrograph", "M/a", Path("M/a.mrc")))
    coordinates = Coordinates(np.array([[20.0, 20.0], [50.0, 40.0]]))
    result = run_micrograph(plan, micrograph(), coordinates, context, open_stack=Kept)
    np.testing.assert_array_equal(result.particles["particle"].pixels, -2)
    np.testing.assert_array_equal(kept, 2)


def test_what_fails_before_the_end_is_not_finished(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    def fussy(particles: Particles, ctx: Context) -> None:
        if ctx.first_image == 1:
            raise Reject("the second image")

    monkeypatch.setattr(arrays, "CACHE_BYTES", 16 * 16 * 4)
    plan = resolve(config(particles={"fussy": {}}, **BOXES), per_image(plugins, "fussy", 1, fussy))
    store = Kept("particle", 2)
    context = context_for(plan, Item("micrograph", "M/a", Path("M/a.mrc")))
    coordinates = Coordinates(np.array([[20.0, 20.0], [50.0, 40.0]]))
    with pytest.raises(Reject, match="the second image"):
        run_micrograph(plan, micrograph(), coordinates, context, open_stack=lambda *_: store)
    assert list(store.parts) == [0]
    assert store.ended == ["left"]


def test_no_particles_are_not_stored(plugins: Plugins) -> None:
    plan = resolve(config(particles={"invert": {}}, **BOXES), plugins)
    context = context_for(plan, Item("micrograph", "M/a", Path("M/a.mrc")))
    result = run_micrograph(plan, micrograph(), Coordinates(np.zeros((0, 2))), context, open_stack=lambda *_: 1 / 0)
    assert result.stored == {}
    assert result.particles["particle"].pixels.shape == (0, 16, 16)


def test_time_of_cutting_is_that_of_extraction(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "CACHE_BYTES", 16 * 16 * 4)
    plan = resolve(config(particles={"invert": {}}, **BOXES), plugins)
    context = context_for(plan, Item("micrograph", "M/a", Path("M/a.mrc")))
    coordinates = Coordinates(np.array([[20.0, 20.0], [50.0, 40.0]]))
    timed: list[str] = []

    @contextmanager
    def timer(name: str) -> Iterator[None]:
        timed.append(name)
        yield

    run_micrograph(plan, micrograph(), coordinates, context, timer=timer, open_stack=Kept)
    assert timed == ["extract", "extract", "invert", "extract", "invert"]
