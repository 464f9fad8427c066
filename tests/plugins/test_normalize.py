"""normalize: against a plain float64 reference, the old programs' results, and what must hold for any image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep.config import Config
from streamprep.model import ConfigError, Optics, Particles
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.plugins.normalize import Normalize, normalize, normalize_particles
from streamprep.testing import ArrayBackend, backends, run_operation, tiny_particles
from tests.plugins import golden_case, relative_error

METHODS = ("old", "new", "ramp")


def reference(images: np.ndarray, method: str, radius: int = -1) -> np.ndarray:
    """The formulas of the documents, one image after the other, in float64."""
    out = []
    for image in images.astype(np.float64):
        y, x = np.indices(image.shape)
        ny, nx = image.shape
        r = radius if radius > 0 else nx // 2
        background = (y - ny // 2) ** 2 + (x - nx // 2) ** 2 >= r**2
        if method == "old":
            out.append((image - image.mean()) / image.std(ddof=0))
            continue
        if method == "ramp":
            design = np.stack([x.ravel(), y.ravel(), np.ones(image.size)], axis=1)
            plane = np.linalg.lstsq(design[background.ravel()], image[background], rcond=None)[0]
            image = image - (design @ plane).reshape(image.shape)
        out.append((image - image[background].mean()) / image[background].std(ddof=1))
    return np.stack(out)


def noise(shape: tuple[int, ...], seed: int = 0, mean: float = 3.0, std: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, std, shape).astype(np.float32)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("shape", "radius"), [((3, 16, 16), -1), ((3, 16, 16), 4), ((2, 9, 9), -1), ((2, 10, 14), 6)])
def test_every_backend_computes_the_reference(
    backend: ArrayBackend, method: str, shape: tuple[int, ...], radius: int
) -> None:
    images = noise(shape) + np.linspace(0, 5, shape[2], dtype=np.float32)
    done, constant, _ = normalize(backend.asarray(images), method=method, background_radius_px=radius)
    done = backend.to_host(done)
    assert done.dtype == np.float32
    np.testing.assert_allclose(done, reference(images, method, radius), atol=2e-6)
    assert not backend.to_host(constant).any()


@pytest.mark.parametrize(
    "expected",
    [
        "normalize_old.mrcs",
        "normalize_new.mrcs",
        "normalize_new_small.mrcs",
        "normalize_ramp.mrcs",
        "normalize_ramp_small.mrcs",
    ],
)
def test_agrees_with_the_old_programs(golden: Path, expected: str) -> None:
    parameters, source, theirs = golden_case(golden, expected)
    ours, warnings = run_operation(normalize_particles, Particles(source, Optics(2.0)), **parameters)
    assert relative_error(ours.pixels, theirs) <= 1e-5
    assert warnings == []


@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_given_away_is_overwritten(method: str) -> None:
    images = noise((3, 14, 14))
    kept = images.copy()
    done, _, _ = normalize(images, method=method)
    np.testing.assert_array_equal(images, kept)
    again, _, _ = normalize(images, method=method, in_place=True)
    assert again is images
    np.testing.assert_array_equal(again, done)


@pytest.mark.parametrize("method", METHODS)
def test_a_second_time_changes_nothing(method: str) -> None:
    once, _, _ = normalize(noise((4, 20, 20)), method=method)
    twice, _, _ = normalize(once, method=method)
    np.testing.assert_allclose(twice, once, atol=2e-6)


@settings(max_examples=40)
@given(
    n=st.integers(1, 7),
    ny=st.integers(3, 14),
    nx=st.integers(3, 14),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 1000),
)
def test_a_batch_equals_its_images_one_by_one(n: int, ny: int, nx: int, method: str, seed: int) -> None:
    images = noise((n, ny, nx), seed)
    together, flags, _ = normalize(images, method=method)
    alone = [normalize(image[None], method=method) for image in images]
    np.testing.assert_allclose(together, np.concatenate([done for done, _, _ in alone]), atol=1e-5)
    assert flags.tolist() == [bool(flag[0]) for _, flag, _ in alone]


@pytest.mark.parametrize("method", METHODS)
def test_camera_counts_far_from_zero_keep_their_digits(method: str) -> None:
    # a sum of 256² values of 6800 in float32 is off by more than the tolerance here
    images = noise((2, 256, 256), mean=6800, std=9)
    done, _, _ = normalize(images, method=method)
    np.testing.assert_allclose(done, reference(images, method), atol=2e-6)


@settings(max_examples=40)
@given(
    a=st.floats(-4, 4),
    b=st.floats(-4, 4),
    c=st.floats(-1000, 1000),
    box=st.integers(5, 24),
)
def test_ramp_takes_any_plane_away(a: float, b: float, c: float, box: int) -> None:
    y, x = np.indices((box, box))
    flat = noise((1, box, box)).astype(np.float64)
    sloped = (flat + a * x + b * y + c).astype(np.float32)
    done, _, _ = normalize(sloped, method="ramp")
    np.testing.assert_allclose(done, reference(sloped, "ramp"), atol=1e-5)
    np.testing.assert_allclose(done, reference(flat, "ramp"), atol=5e-4)  # float32 has no more digits of the sum


@pytest.mark.parametrize("backend", backends())
def test_a_bare_plane_is_flat_after_ramp_and_flagged(backend: ArrayBackend) -> None:
    y, x = np.indices((12, 16))
    done, constant, _ = normalize(backend.asarray((0.5 * x - 0.25 * y + 8)[None].astype(np.float32)), method="ramp")
    np.testing.assert_allclose(backend.to_host(done), 0, atol=1e-9)
    assert backend.to_host(constant).tolist() == [True]


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 7.0, 6800.3])
def test_constant_images_are_flagged_and_left_at_zero(backend: ArrayBackend, method: str, value: float) -> None:
    images = noise((3, 12, 12))
    images[1] = value
    done, constant, _ = normalize(backend.asarray(images), method=method)
    done = backend.to_host(done)
    assert backend.to_host(constant).tolist() == [False, True, False]
    np.testing.assert_allclose(done[1], 0, atol=1e-9)
    np.testing.assert_allclose(done[[0, 2]], reference(images[[0, 2]], method), atol=2e-6)


def test_the_warning_counts_constant_images() -> None:
    particles = tiny_particles(5, 12)
    pixels = particles.pixels.copy()
    pixels[[1, 3]] = 4
    _, warnings = run_operation(normalize_particles, particles.with_pixels(pixels))
    assert len(warnings) == 1
    assert "2 of 5 particle images are constant" in warnings[0]


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_not_called_constant(value: float) -> None:
    particles = tiny_particles(5, 12)
    pixels = particles.pixels.copy()
    pixels[1] = 4
    pixels[[2, 4], 3, 3] = value
    _, warnings = run_operation(normalize_particles, particles.with_pixels(pixels))
    first, second = warnings
    assert first == "1 of 5 particle images are constant; they were left at mean zero"
    assert second.startswith("2 of 5 particle images hold values that are not finite (NaN or infinite) or beyond 1e18;")


@pytest.mark.parametrize("method", METHODS)
def test_a_broken_image_does_not_spread(method: str) -> None:
    images = noise((5, 10, 10))
    good = [0, 1, 3, 4]
    images[2, 4, 4] = np.nan
    done, _, _ = normalize(images, method=method)
    np.testing.assert_allclose(done[good], reference(images[good], method), atol=2e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("box", [1, 2, 3])
def test_the_smallest_boxes_are_finite(method: str, box: int) -> None:
    done, constant, _ = normalize(noise((3, box, box), mean=6800), method=method)
    assert done.shape == (3, box, box)
    assert np.isfinite(done).all()
    if box == 1:
        assert constant.all()
        assert not done.any()


@pytest.mark.parametrize("method", METHODS)
def test_no_images_are_no_trouble(method: str) -> None:
    done, constant, _ = normalize(np.empty((0, 8, 8), dtype=np.float32), method=method)
    assert done.shape == (0, 8, 8)
    assert len(constant) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float16", "uint16", "int8", "int16", ">f4", "float64"])
def test_any_real_dtype_gives_float32(method: str, dtype: str) -> None:
    images = np.clip(noise((2, 14, 14), mean=60, std=20), 0, 127).astype(dtype)
    done, _, _ = normalize(images, method=method)
    assert done.dtype == np.float32
    np.testing.assert_allclose(done, reference(images, method), atol=3e-6)


def test_the_background_is_outside_half_the_box_unless_said() -> None:
    images = noise((2, 15, 15))
    np.testing.assert_array_equal(normalize(images)[0], normalize(images, background_radius_px=7)[0])
    np.testing.assert_array_equal(normalize(images)[0], normalize(images, method="ramp", background_radius_px=0)[0])
    assert Normalize() == Normalize(method="ramp", background_radius_px=-1)


@pytest.mark.parametrize("backend", backends())
def test_only_pixels_change_and_they_stay_on_their_backend(backend: ArrayBackend) -> None:
    particles = backend.move(tiny_particles(3, 12))
    done, warnings = run_operation(normalize_particles, particles, method="new")
    assert (done.coordinates, done.ctf, done.optics) == (particles.coordinates, particles.ctf, particles.optics)
    np.testing.assert_allclose(
        backend.to_host(done.pixels), reference(backend.to_host(particles.pixels), "new"), atol=2e-6
    )
    assert warnings == []


@pytest.mark.parametrize(
    ("extract", "half"), [({"box_size_px": 64}, 32), ({"box_size_px": 64, "output_size_px": 33}, 16)]
)
def test_a_radius_above_half_the_box_is_refused_before_any_data(extract: dict[str, int], half: int) -> None:
    def plan(radius: int) -> None:
        tables = {"extract": extract, "particles": {"normalize": {"background_radius_px": radius}}}
        config = Config.model_validate({"session": {"watch": ["."]}, "file": "session.toml", **tables})
        resolve(config, load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""}))

    plan(half)
    with pytest.raises(ConfigError) as caught:
        plan(half + 1)
    said = str(caught.value)
    for part in ("session.toml", "particles.normalize", f"background_radius_px = {half + 1}", f"up to {half}"):
        assert part in said


def test_a_radius_above_half_the_box_is_refused_on_an_image() -> None:
    with pytest.raises(ValueError, match="background_radius_px = 9 is above half the box"):
        run_operation(normalize_particles, tiny_particles(1, 16), background_radius_px=9)


@pytest.mark.parametrize("wrong", [{"method": "xmipp"}, {"radius": 3}, {"background_radius_px": 2.5}])
def test_parameters_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        run_operation(normalize_particles, tiny_particles(1, 16), **wrong)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("method", METHODS)
def test_values_without_squares_are_told(method: str) -> None:
    images = noise((3, 16, 16))
    images[1] *= 1e20
    done, constant, broken = normalize(images, method=method)
    assert (constant | broken).tolist() == [False, True, False]
    assert np.isfinite(done).all()
    assert np.abs(done[1]).max() > 1e19


@pytest.mark.parametrize("box", [32, 256])
def test_a_hot_pixel_in_the_particle_does_not_spoil_the_background(box: int) -> None:
    images = noise((1, box, box))
    images[0, box // 2, box // 2] = 1e7
    done, _, _ = normalize(images, method="new")
    outside = np.hypot(*(np.indices((box, box)) - box // 2)) >= box // 2
    np.testing.assert_allclose(done[0][outside], reference(images, "new")[0][outside], atol=2e-6)
