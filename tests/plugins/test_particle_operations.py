"""What holds for every operation on single particle images: parts, sizes, odd images, array libraries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep import Context, Item, Particles, arrays
from streamprep.apply import make_steps
from streamprep.arrays import to_host
from streamprep.model import ConfigError
from streamprep.pipeline import Plan, run_particles
from streamprep.plugin_manager import load_plugins
from streamprep.testing import ArrayBackend, backends, tiny_particles

PLUGINS = load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""}, sinks=False)
SETTINGS: dict[str, dict[str, Any]] = {
    "remove_dust": {"threshold": 2.5, "fill": "matched"},
    "remove_dust median": {"threshold": 2.5, "fill": "median"},
    "randomize_phases": {"max_resolution_angstrom": 9.0},
    "normalize": {},
    "normalize new": {"method": "new"},
    "normalize old": {"method": "old"},
    "center": {},
    "center mass": {"method": "mass"},
    "phase_flip": {},
    "invert": {},
    "threshold": {"value": 100.0, "fill": 3.5},
    "threshold binarize": {"select": "above", "value": 100.0, "substitute": "binarize"},
    "threshold avg": {"value": 100.0, "substitute": "avg"},
}
CASES = list(SETTINGS)


def run(case: str, particles: Particles) -> tuple[Particles, list[str]]:
    """One operation on a stack, as the program runs it; what is given stays as it is."""
    name = case.split()[0]
    overrides = [f"{name}.{key}={value}" for key, value in SETTINGS[case].items()]
    plan = Plan(make_steps([name], overrides, "particles", PLUGINS), {})
    warnings: list[str] = []
    context = Context(
        Item("particles", "stack", Path("stack.mrcs")), "", seed=4, warn=warnings.append, remark=warnings.append
    )
    return run_particles(plan, particles.with_pixels(particles.pixels + 0), context), warnings


def test_every_operation_on_single_images_is_among_the_cases() -> None:
    names = {made.info.name for made in PLUGINS.operations if made.info.per_image}
    assert names == {case.split()[0] for case in CASES}
    assert names == {made.info.name for made in PLUGINS.operations if made.info.hook == "process_particles"}


@settings(max_examples=25)
@given(case=st.sampled_from(CASES), n=st.integers(1, 9), size=st.integers(1, 4), box=st.integers(8, 15))
def test_a_stack_equals_its_images_one_by_one(case: str, n: int, size: int, box: int) -> None:
    particles = tiny_particles(n, box)
    together, told = run(case, particles)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "CACHE_BYTES", 4 * box * box * size)
        parts, told_of_parts = run(case, particles)
    scale = float(np.abs(together.pixels).max()) or 1.0
    np.testing.assert_allclose(parts.pixels, together.pixels, atol=2e-6 * scale)
    assert told_of_parts == told
    assert parts.columns.keys() == together.columns.keys()
    for name, values in together.columns.items():
        np.testing.assert_allclose(parts.columns[name].astype(float), values.astype(float), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_told_and_does_not_spread(case: str, bad: float) -> None:
    particles = tiny_particles(5, 12)
    good, _ = run(case, particles)
    pixels = particles.pixels.copy()
    pixels[2, 3, 4] = bad
    done, told = run(case, particles.with_pixels(pixels))
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(done.pixels[others], good.pixels[others])
    if case != "invert":  # it has nothing to say of what it turns over
        assert any(text.startswith("1 of 5 particle images hold values that are not finite") for text in told), told


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (7, 7), (1, 5), (6, 1), (8, 5), (9, 12)])
def test_images_of_any_size(case: str, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).normal(100, 5, (3, *shape)).astype(np.float32)
    particles = replace(tiny_particles(3, 16), pixels=pixels)
    done, _ = run(case, particles)
    assert done.pixels.shape == (3, *shape)
    assert done.pixels.dtype == np.float32
    assert np.isfinite(done.pixels).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("value", [0.0, 7.25, -6800.3])
def test_constant_images_stay_finite(case: str, value: float) -> None:
    particles = tiny_particles(4, 12)
    pixels = particles.pixels.copy()
    good, _ = run(case, particles)
    pixels[1] = value
    done, _ = run(case, particles.with_pixels(pixels))
    assert np.isfinite(done.pixels).all()
    np.testing.assert_array_equal(done.pixels[[0, 2, 3]], good.pixels[[0, 2, 3]])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", backends())
def test_every_array_library_computes_the_same(backend: ArrayBackend, case: str) -> None:
    """The check of the GPU against the CPU."""
    particles = tiny_particles(5, 32)
    expected, told = run(case, particles)
    done, said = run(case, backend.move(particles))
    ours = to_host(done.pixels)
    assert said == told
    error = np.linalg.norm(ours - expected.pixels.astype(np.float64)) / np.linalg.norm(expected.pixels)
    assert error <= 1e-4


@pytest.mark.parametrize("case", CASES)
def test_no_images_are_no_trouble(case: str) -> None:
    done, told = run(case, tiny_particles(3, 8).part(0, 0))
    assert done.pixels.shape == (0, 8, 8)
    assert told == []


def test_a_parameter_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match="remove_dust"):
        make_steps(["remove_dust"], ["remove_dust.threshold=-1"], "particles", PLUGINS)
