"""threshold: against a plain float64 reference, the old programs' results, and what must hold for any image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from streamprep.model import Map, Optics, Particles
from streamprep.plugins.threshold import Threshold, threshold, threshold_map, threshold_particles
from streamprep.testing import ArrayBackend, backends, run_operation, tiny_particles
from tests.plugins import golden_case, relative_error

SELECT = ("abs_below", "below", "above")
SUBSTITUTE = ("value", "binarize", "avg")


def reference(images: np.ndarray, select: str, value: float, substitute: str, fill: float = 0.0) -> np.ndarray:
    """The page's words, one image after the other, in float64."""
    done = []
    limit = np.float32(value)
    for image in images.astype(np.float64):
        chosen = {"abs_below": abs(image) < limit, "below": image < limit, "above": image > limit}[select]
        others = image[~chosen & np.isfinite(image)]
        if substitute == "value":
            image = np.where(chosen, fill, image)
        elif substitute == "binarize":
            image = np.where(np.isnan(image), np.nan, ~chosen)
        elif others.size:
            image = np.where(chosen, others.mean(), image)
        done.append(image)
    return np.array(done).reshape(images.shape).astype(np.float32)


def noise(shape: tuple[int, ...], seed: int = 0, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, std, shape).astype(np.float32)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("substitute", SUBSTITUTE)
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 9, 14), (2, 1, 1), (2, 5, 6, 7), (4, 6)])
def test_every_backend_computes_the_reference(
    backend: ArrayBackend, select: str, substitute: str, shape: tuple[int, ...]
) -> None:
    images = noise(shape)
    done = threshold(backend.asarray(images), select=select, value=0.7, substitute=substitute, fill=0.25)
    pixels = backend.to_host(done.pixels)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, reference(images, select, 0.7, substitute, 0.25), rtol=1e-7, atol=1e-7)
    assert backend.to_host(done.not_finite).tolist() == [False] * shape[0]


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("substitute", SUBSTITUTE)
def test_agrees_with_the_old_programs(golden: Path, select: str, substitute: str) -> None:
    parameters, source, theirs = golden_case(golden, f"threshold_{select}_{substitute}.mrcs")
    ours, warnings = run_operation(threshold_particles, Particles(source, Optics(2.0)), **parameters)
    assert relative_error(ours.pixels, theirs) <= 1e-7
    assert warnings == []


ODD_VALUES = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 0.5, -0.5, 1e30, -1e30, 1e-40])


@settings(max_examples=150)
@given(
    images=npst.arrays(
        np.float32,
        npst.array_shapes(min_dims=2, max_dims=4, max_side=6),
        elements=ODD_VALUES | st.floats(-2, 2, width=32),
    ),
    select=st.sampled_from(SELECT),
    substitute=st.sampled_from(SUBSTITUTE),
    value=st.sampled_from([0.0, 0.5, -0.5, 3e38]) | st.floats(-2, 2),
    fill=st.floats(-1e6, 1e6, width=32),
)
def test_any_image_gives_the_reference_and_keeps_its_nans(
    images: np.ndarray, select: str, substitute: str, value: float, fill: float
) -> None:
    before = images.copy()
    done = threshold(images, select=select, value=value, substitute=substitute, fill=fill)
    np.testing.assert_array_equal(images, before)
    expected = reference(images, select, value, substitute, fill)
    huge = float(np.abs(images[np.isfinite(images)]).max(initial=0))
    np.testing.assert_allclose(done.pixels, expected, rtol=1e-6, atol=max(1e-6, huge * 1e-7))
    np.testing.assert_array_equal(np.isnan(done.pixels), np.isnan(before))
    per_image = tuple(range(1, images.ndim))
    np.testing.assert_array_equal(done.not_finite, ~np.isfinite(images).all(axis=per_image))

    alone = [threshold(image[None], select=select, value=value, substitute=substitute, fill=fill) for image in images]
    for together, one_by_one in zip(done, zip(*alone, strict=True), strict=True):
        np.testing.assert_array_equal(together, np.concatenate(one_by_one))
    again = threshold(images, select=select, value=value, substitute=substitute, fill=fill, in_place=True)
    np.testing.assert_array_equal(again.pixels, done.pixels)
    np.testing.assert_array_equal(images, done.pixels)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("select", SELECT)
def test_what_equals_the_value_is_not_selected(backend: ArrayBackend, select: str) -> None:
    images = (
        np.array([[[0.7, -0.7]]], dtype=np.float32) if select == "abs_below" else np.full((1, 1, 2), np.float32(0.7))
    )
    done = threshold(backend.asarray(images), select=select, value=0.7, fill=9)
    np.testing.assert_array_equal(backend.to_host(done.pixels), images)


@pytest.mark.parametrize("backend", backends())
def test_values_that_are_not_finite(backend: ArrayBackend) -> None:
    images = np.array([[[np.nan, np.inf, -np.inf, 1, 3]], [[0, 1, 2, 3, 4]]], dtype=np.float32)

    def done(**parameters: object) -> list[float]:
        made = threshold(backend.asarray(images), value=2, **parameters)
        assert backend.to_host(made.not_finite).tolist() == [True, False]
        return backend.to_host(made.pixels)[0, 0]

    nan, inf = np.nan, np.inf
    np.testing.assert_array_equal(done(select="below", fill=5), [nan, inf, 5, 5, 3])
    np.testing.assert_array_equal(done(select="above", fill=5), [nan, 5, -inf, 1, 5])
    np.testing.assert_array_equal(done(select="abs_below", fill=5), [nan, inf, -inf, 5, 3])
    np.testing.assert_array_equal(done(select="below", substitute="binarize"), [nan, 1, 0, 0, 1])
    np.testing.assert_array_equal(done(select="above", substitute="binarize"), [nan, 0, 1, 1, 0])
    np.testing.assert_array_equal(done(select="below", substitute="avg"), [nan, inf, 3, 3, 3])


@pytest.mark.parametrize("backend", backends())
def test_the_mean_of_camera_counts_keeps_its_digits(backend: ArrayBackend) -> None:
    images = noise((3, 128, 128), mean=6800, std=9)
    done = backend.to_host(threshold(backend.asarray(images), value=6795, substitute="avg").pixels)
    for image, made in zip(images, done, strict=True):
        chosen = image < 6795
        np.testing.assert_array_equal(made[chosen], np.float32(image[~chosen].mean(dtype=np.float64)))


@pytest.mark.parametrize("backend", backends())
def test_an_image_without_other_pixels_is_left_alone_and_flagged(backend: ArrayBackend) -> None:
    images = np.array([[[1, 2], [3, 4]], [[1, 2], [3, 9]], [[9, 9], [9, 9]]], dtype=np.float32)
    done = threshold(backend.asarray(images), value=5, substitute="avg")
    assert backend.to_host(done.none_left).tolist() == [True, False, False]
    np.testing.assert_array_equal(backend.to_host(done.pixels), [images[0], np.full((2, 2), 9), images[2]])


def test_no_images_are_no_trouble() -> None:
    for substitute in SUBSTITUTE:
        done = threshold(np.empty((0, 8, 8), dtype=np.float32), substitute=substitute)
        assert [made.shape for made in done] == [(0, 8, 8), (0,), (0,)]


@pytest.mark.parametrize("substitute", SUBSTITUTE)
@pytest.mark.parametrize("dtype", ["float16", "uint16", "int8", "int16", ">f4", "float64"])
def test_any_real_dtype_gives_float32(substitute: str, dtype: str) -> None:
    images = np.clip(noise((2, 10, 10), mean=60, std=20), 0, 127).astype(dtype)
    done = threshold(images, value=61.5, substitute=substitute).pixels
    assert done.dtype == np.float32
    np.testing.assert_allclose(done, reference(images, "below", 61.5, substitute), rtol=1e-6)


# --- the operation ---------------------------------------------------------------------------------------------------


def test_odd_images_become_warnings() -> None:
    particles = tiny_particles(4, 8)
    pixels = particles.pixels.copy()
    pixels[1, 2, 2] = np.nan
    pixels[3] = -1
    done, warnings = run_operation(threshold_particles, particles.with_pixels(pixels), substitute="avg")
    assert warnings == [
        "1 of 4 particle images hold values that are not finite (NaN or infinite); these do not count in the mean",
        "1 of 4 particle images are selected as a whole; nothing is left to take the mean of, they stay as they are",
    ]
    np.testing.assert_array_equal(done.pixels[3], -1)
    assert (done.coordinates, done.ctf, done.optics) == (particles.coordinates, particles.ctf, particles.optics)


def test_a_selection_that_cannot_hold_anything_is_remarked() -> None:
    particles = tiny_particles(2, 8)
    done, warnings = run_operation(threshold_particles, particles, select="abs_below", value=0)
    assert len(warnings) == 1
    assert "abs_below" in warnings[0]
    np.testing.assert_array_equal(done.pixels, particles.pixels)


def test_without_parameters_what_is_negative_becomes_zero() -> None:
    images = noise((2, 8, 8))
    done, warnings = run_operation(threshold_particles, Particles(images, Optics(2.0)))
    np.testing.assert_array_equal(done.pixels, np.clip(images, 0, None))
    assert warnings == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"select": "abs_bellow"}, "'abs_below', 'below' or 'above'"),
        ({"substitute": "mean"}, "'value', 'binarize' or 'avg'"),
        ({"value": float("nan")}, "finite"),
        ({"fill": float("inf")}, "finite"),
        ({"value": 1e39}, "to 3.4e38"),
        ({"threshold": 1}, "threshold"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Threshold.model_validate(wrong)


def test_the_mean_of_large_values_is_finite() -> None:
    image = np.full((1, 16, 16), 3e37, np.float32)
    image[0, 0] = -1
    done = threshold(image, value=0, substitute="avg")
    np.testing.assert_allclose(done.pixels, 3e37, rtol=1e-6)


# --- maps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("substitute", SUBSTITUTE)
@pytest.mark.parametrize("shape", [(7, 5, 6), (1, 1, 1), (70, 64, 64)])
def test_a_map_is_one_image(backend: ArrayBackend, select: str, substitute: str, shape: tuple[int, int, int]) -> None:
    volume = noise(shape, mean=0.3)
    given = backend.asarray(volume.copy())
    done, _ = run_operation(
        threshold_map, Map("map", given, 2.0), select=select, value=0.5, substitute=substitute, fill=-2.5
    )
    expected = reference(volume[None], select, 0.5, substitute, -2.5)[0]
    np.testing.assert_allclose(backend.to_host(done.pixels), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(backend.to_host(given), volume)


def test_odd_maps_become_warnings() -> None:
    volume = noise((70, 64, 64))
    volume[3, 2, 1], volume[60, 2, 1] = np.nan, np.inf
    done, warnings = run_operation(threshold_map, Map("map", volume, 2.0), select="above", substitute="avg")
    np.testing.assert_allclose(done.pixels, reference(volume[None], "above", 0, "avg")[0], rtol=1e-5)
    assert warnings == [
        "threshold: the map holds values that are not finite (NaN or infinite); these do not count in the mean"
    ]
    whole = Map("map", noise((4, 4, 4)), 2.0)
    assert run_operation(threshold_map, whole, value=99, substitute="avg") == (
        whole,
        ["threshold: the map is selected as a whole; nothing is left to take the mean of, it stays as it is"],
    )
    _, (remark,) = run_operation(threshold_map, whole, select="abs_below")
    assert "no absolute value is below 0" in remark
