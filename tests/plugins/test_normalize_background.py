"""normalize_background: the old programs' result, and a background of mean 0 and std 1 on every backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep import Context, InputError, Item, Map
from streamprep.plugins.normalize_background import normalize_background, normalize_background_of_map
from streamprep.testing import ArrayBackend, backends, run_operation, tiny_map
from tests.plugins import golden_case, relative_error


def background(shape: tuple[int, int, int], radius: int) -> np.ndarray:
    z, y, x = (np.arange(side) - side // 2 for side in shape)
    return z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 >= radius**2


def noise(shape: tuple[int, int, int], mean: float = 100, std: float = 7) -> np.ndarray:
    return np.random.default_rng(0).normal(mean, std, shape).astype(np.float32)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(
    ("shape", "radius"), [((16, 16, 16), -1), ((9, 9, 9), 3), ((25, 43, 73), 20), ((70, 64, 64), 0)]
)
def test_every_backend_computes_the_reference(backend: ArrayBackend, shape: tuple[int, int, int], radius: int) -> None:
    volume = noise(shape)
    given = backend.asarray(volume.copy())
    done = normalize_background(given, radius_px=radius)
    values = volume.astype(np.float64)
    outside = values[background(shape, radius if radius > 0 else shape[-1] // 2)]
    expected = (values - outside.mean()) / outside.std(ddof=1)
    np.testing.assert_allclose(backend.to_host(done.pixels), expected, atol=2e-5)
    np.testing.assert_allclose((done.mean, done.std), (outside.mean(), outside.std(ddof=1)), rtol=1e-6)
    np.testing.assert_array_equal(backend.to_host(given), volume)
    assert not done.constant


@settings(max_examples=30)
@given(scale=st.floats(0.01, 1e3), mean=st.floats(-1e3, 1e3), radius=st.integers(-1, 5))
def test_grey_scale_does_not_matter(scale: float, mean: float, radius: int) -> None:
    volume = noise((11, 10, 12), 0, 1)
    expected = normalize_background(volume, radius_px=radius).pixels
    moved = (volume * scale + mean).astype(np.float32)
    done = normalize_background(moved, radius_px=radius).pixels
    np.testing.assert_allclose(done, expected, atol=1e-4 + 3e-6 * abs(mean) / scale)


@pytest.mark.parametrize("radius", [13, 20])
def test_agrees_with_the_old_programs(golden: Path, radius: int) -> None:
    parameters, source, theirs = golden_case(golden, f"normalize_background_{radius}.mrc")
    done, warnings = run_operation(normalize_background_of_map, Map("map", source, 2.0), **parameters)
    assert relative_error(done.pixels, theirs) <= 1e-5
    assert warnings == []


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 3, 3), (2, 3, 1)])
def test_a_constant_background_is_said_and_never_scaled(shape: tuple[int, int, int]) -> None:
    flat = Map("map", np.full(shape, 6800.3, np.float32), 2.0)
    done, (warning,) = run_operation(normalize_background_of_map, flat)
    np.testing.assert_allclose(done.pixels, 0, atol=1e-3)
    assert warning == "normalize_background: the background is constant, 6800.3; it was moved to 0 and not scaled"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (4, 4, 4)])
def test_what_is_not_finite_is_refused_by_name(bad: float, place: tuple[int, int, int]) -> None:
    volume = tiny_map(8)
    volume.pixels[place] = bad
    context = Context(Item("map", "M/map", Path("map.mrc")), "normalize_background")
    with pytest.raises(InputError, match=r"map\.mrc: normalize_background: .* not finite"):
        run_operation(normalize_background_of_map, volume, context)


def test_a_radius_above_half_the_size_is_refused() -> None:
    run_operation(normalize_background_of_map, tiny_map(9), radius_px=4)
    with pytest.raises(
        ValueError, match=r"radius_px = 5 is above half the size \(4 of 9 px\); allowed: up to 4, or -1"
    ):
        run_operation(normalize_background_of_map, tiny_map(9), radius_px=5)
