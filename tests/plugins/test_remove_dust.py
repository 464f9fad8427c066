"""remove_dust: against a plain float64 reference, the old program's choice, and what must hold for any image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep.model import Context, Item, Optics, Particles
from streamprep.plugins import remove_dust as module
from streamprep.plugins.remove_dust import RemoveDust, remove_dust, remove_dust_particles
from streamprep.testing import ArrayBackend, backends, run_operation
from tests.plugins import golden_case

FILLS = ("gaussian", "matched", "median")


def dusty(shape: tuple[int, ...], seed: int = 0, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    """Noise with about one pixel in fifty far off, some side by side."""
    rng = np.random.default_rng(seed)
    images = rng.normal(mean, std, shape)
    spots = rng.random(shape) < 0.015
    spots |= np.roll(spots, 1, axis=-1) & (rng.random(shape) < 0.3)
    images[spots] += std * rng.choice([-30, 40], spots.sum())
    return images.astype(np.float32)


def is_dust(images: np.ndarray, threshold: float = 3.5) -> np.ndarray:
    exact = images.astype(np.float64)
    if exact[0].size == 1:
        return np.zeros(images.shape, dtype=bool)
    mean = exact.mean(axis=(1, 2), keepdims=True)
    return np.abs(exact - mean) > threshold * exact.std(axis=(1, 2), ddof=1, keepdims=True)


def median_around(image: np.ndarray, dust: np.ndarray, y: int, x: int) -> float:
    for half in range(2, max(image.shape) + 1):
        window = np.s_[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1]
        if not dust[window].all():
            return float(np.median(image[window][~dust[window]].astype(np.float64)))
    raise AssertionError("no good pixel")


def with_medians(images: np.ndarray, dust: np.ndarray) -> np.ndarray:
    done = images.astype(np.float32)
    for i, y, x in np.argwhere(dust):
        done[i, y, x] = median_around(images[i], dust[i], y, x)
    return done


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 17, 17), (2, 12, 31), (1, 1, 400), (2, 400, 1)])
@pytest.mark.parametrize("mean", [0.0, 6800.0])
def test_every_backend_computes_the_reference(backend: ArrayBackend, shape: tuple[int, ...], mean: float) -> None:
    images = dusty(shape, mean=mean)
    dust = is_dust(images)
    assert dust.any()
    done = remove_dust(backend.asarray(images), fill="median")
    pixels = backend.to_host(done.pixels)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, with_medians(images, dust))
    for flags in done[1:]:
        assert backend.to_host(flags).tolist() == [False] * shape[0]


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("fill", ["gaussian", "matched"])
def test_every_backend_draws_the_same_numbers(backend: ArrayBackend, fill: str) -> None:
    images = dusty((4, 24, 24), mean=100, std=5)
    there = remove_dust(backend.asarray(images), fill=fill, key=2**63 + 5, first_image=7)
    here = remove_dust(images, fill=fill, key=2**63 + 5, first_image=7)
    np.testing.assert_allclose(backend.to_host(there.pixels), here.pixels, rtol=1e-6, atol=1e-6)
    assert backend.to_host(there.not_unit).tolist() == here.not_unit.tolist() == [fill == "gaussian"] * 4


def test_the_old_program_replaces_the_same_pixels(golden: Path) -> None:
    parameters, source, theirs = golden_case(golden, "dust_median.mrcs")
    ours, warnings = run_operation(remove_dust_particles, Particles(source, Optics(2.0)), **parameters)
    np.testing.assert_array_equal(ours.pixels != source, theirs != source)
    changed = theirs != source
    alone = np.array([is_dust(source)[i, y - 2 : y + 3, x - 2 : x + 3].sum() == 1 for i, y, x in np.argwhere(changed)])
    assert alone.any()
    np.testing.assert_allclose(ours.pixels[changed][alone], theirs[changed][alone], rtol=1e-6)
    assert warnings == []


@settings(max_examples=60)
@given(
    n=st.integers(1, 5),
    ny=st.integers(1, 20),
    nx=st.integers(1, 20),
    threshold=st.floats(0.3, 6),
    mean=st.sampled_from([0.0, 6800.0, -1e5]),
    fill=st.sampled_from(FILLS),
    seed=st.integers(0, 1000),
)
def test_only_dust_changes(n: int, ny: int, nx: int, threshold: float, mean: float, fill: str, seed: int) -> None:
    images = dusty((n, ny, nx), seed, mean=mean, std=9)
    done = remove_dust(images, threshold=threshold, fill=fill, key=seed)
    dust = is_dust(images, threshold)
    np.testing.assert_array_equal(done.all_dust, dust.all(axis=(1, 2)))
    dust[done.all_dust] = False
    np.testing.assert_array_equal(done.pixels[~dust], images[~dust])
    assert np.isfinite(done.pixels).all()
    if fill == "median":
        np.testing.assert_array_equal(done.pixels, with_medians(images, dust))


@settings(max_examples=40)
@given(
    n=st.integers(1, 6),
    ny=st.integers(1, 16),
    nx=st.integers(1, 16),
    fill=st.sampled_from(FILLS),
    first=st.integers(0, 2**40),
    cut=st.integers(0, 6),
    broken=st.sampled_from([None, np.nan, np.inf, 3e38]),
    seed=st.integers(0, 1000),
)
def test_parts_of_a_stack_give_what_the_whole_gives(
    n: int, ny: int, nx: int, fill: str, first: int, cut: int, broken: float | None, seed: int
) -> None:
    images = dusty((n, ny, nx), seed)
    if broken is not None:
        images[0, 0, 0] = broken
    whole = remove_dust(images, fill=fill, key=seed, threshold=2, first_image=first)
    cut = min(cut, n)
    parts = [
        remove_dust(part, fill=fill, key=seed, threshold=2, first_image=first + start)
        for part, start in ((images[:cut], 0), (images[cut:], cut))
    ]
    for together, alone in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("fill", FILLS)
def test_the_input_is_overwritten_only_where_allowed(backend: ArrayBackend, fill: str) -> None:
    images = dusty((3, 20, 20))
    given = backend.asarray(images.copy())
    copied = remove_dust(given, fill=fill, key=3)
    np.testing.assert_array_equal(backend.to_host(given), images)
    inside = remove_dust(given, fill=fill, key=3, in_place=True)
    np.testing.assert_array_equal(backend.to_host(given), backend.to_host(copied.pixels))
    np.testing.assert_array_equal(backend.to_host(inside.pixels), backend.to_host(copied.pixels))


def test_images_that_are_not_contiguous_are_cleaned_too() -> None:
    images = dusty((3, 20, 24))
    turned = np.ascontiguousarray(images.transpose(2, 1, 0)).transpose(2, 1, 0)
    expected = remove_dust(images, fill="median").pixels
    np.testing.assert_array_equal(remove_dust(turned, fill="median").pixels, expected)
    np.testing.assert_array_equal(remove_dust(turned, fill="median", in_place=True).pixels, expected)
    np.testing.assert_array_equal(turned, expected)


# --- fills -----------------------------------------------------------------------------------------------------------


def many_draws(fill: str, mean: float, std: float) -> np.ndarray:
    images = np.random.default_rng(1).uniform(-1, 1, (60, 64, 64)) * std * 3**0.5 + mean
    images[:, ::8, ::8] = mean + 20 * std
    images = images.astype(np.float32)
    dust = is_dust(images)
    assert dust.sum() == 60 * 64
    return remove_dust(images, fill=fill, key=11).pixels[dust].astype(np.float64)


@pytest.mark.parametrize(("fill", "mean", "std"), [("gaussian", 0, 1), ("matched", 6800, 9), ("matched", -3, 0.01)])
def test_draws_are_normal_and_all_different(fill: str, mean: float, std: float) -> None:
    scores = (many_draws(fill, mean, std) - mean) / std
    assert abs(scores.mean()) < 5 / np.sqrt(scores.size)
    assert abs(scores.std() - 1) < 5 / np.sqrt(2 * scores.size)
    assert abs(np.mean(np.abs(scores) < 1) - 0.6827) < 0.04
    assert len(np.unique(scores)) > 0.95 * scores.size  # equal ones by float32's steps at 6800


def test_draws_follow_the_key_the_image_and_the_pixel_alone() -> None:
    images = dusty((4, 16, 16))
    images[1] = images[0]
    first = remove_dust(images, key=1).pixels
    dust = is_dust(images[:1])[0]
    assert (first[0] != first[1])[dust].all()
    assert (remove_dust(images, key=2).pixels[0] != first[0])[dust].all()
    np.testing.assert_array_equal(remove_dust(images[2:3], key=1, first_image=2).pixels[0], first[2])
    further = images[:1].copy()
    further[0, 0, 0] = 55  # one more draw does not move the others
    others = dust & is_dust(further)[0]
    assert others.any()
    np.testing.assert_array_equal(remove_dust(further, key=1).pixels[0][others], first[0][others])


@pytest.mark.parametrize("hot", [1e3, 1e9, 1e20, 3e38])
def test_matched_takes_good_pixels_alone_however_hot_the_others(hot: float) -> None:
    images = np.random.default_rng(0).normal(6800, 9, (40, 32, 32)).astype(np.float32)
    images[:, ::16, 3] = hot
    done = remove_dust(images, fill="matched", key=1)
    drawn = done.pixels[:, ::16, 3].astype(np.float64)
    assert abs(drawn.mean() - 6800) < 5 * 9 / np.sqrt(drawn.size)
    assert 6 < drawn.std() < 12


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("block", [5, 6, 9])
def test_the_window_widens_until_it_holds_a_good_pixel(
    backend: ArrayBackend, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).normal(0, 1, (2, 48, 48)).astype(np.float32)
    images[0, 10 : 10 + block, 20 : 20 + block] = 500
    images[1, :block, -block:] = -500
    monkeypatch.setattr(module, "WINDOW_PIXELS", 100)  # a few rows at a time
    dust = is_dust(images)
    assert dust.sum() == 2 * block**2
    done = backend.to_host(remove_dust(backend.asarray(images), fill="median").pixels)
    np.testing.assert_array_equal(done, with_medians(images, dust))


# --- images that are odd ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_leave_their_image_alone_and_flagged(
    backend: ArrayBackend, fill: str, value: float
) -> None:
    images = dusty((4, 20, 20))
    images[2, 3, 4] = value
    images[2, 3, 5] = np.inf
    done = remove_dust(backend.asarray(images), fill=fill, key=4)
    assert backend.to_host(done.not_finite).tolist() == [False, False, True, False]
    pixels = backend.to_host(done.pixels)
    np.testing.assert_array_equal(pixels[2], images[2])
    good = [0, 1, 3]
    changed = pixels[good] != images[good]
    np.testing.assert_array_equal(changed, is_dust(images[good]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("value", [0.0, 0.1, 6800.3, -1e30])
def test_constant_images_have_no_dust(backend: ArrayBackend, fill: str, value: float) -> None:
    images = np.full((2, 19, 23), value, dtype=np.float32)
    done = remove_dust(backend.asarray(images), fill=fill, threshold=1e-3)
    np.testing.assert_array_equal(backend.to_host(done.pixels), images)
    for flags in done[1:]:
        assert not backend.to_host(flags).any()


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e34])
def test_no_scale_is_too_large_or_too_small(scale: float) -> None:
    images = (dusty((2, 32, 32)).astype(np.float64) * scale).astype(np.float32)
    done = remove_dust(images, fill="median")
    np.testing.assert_array_equal(done.pixels, with_medians(images, is_dust(images)))
    assert not done.not_finite.any()


@pytest.mark.parametrize("backend", backends())
def test_an_image_that_is_all_dust_is_left_alone_and_flagged(backend: ArrayBackend) -> None:
    images = np.array([[[1, -1], [1, -1]], [[0, 0], [0, 9]]], dtype=np.float32)
    for fill in FILLS:
        done = remove_dust(backend.asarray(images), fill=fill, threshold=0.5)
        assert backend.to_host(done.all_dust).tolist() == [True, False]
        pixels = backend.to_host(done.pixels)
        np.testing.assert_array_equal(pixels[0], images[0])
        assert pixels[1, 1, 1] != 9


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fill", FILLS)
def test_the_smallest_boxes_are_no_trouble(fill: str) -> None:
    for shape in ((3, 1, 1), (0, 8, 8), (2, 2, 2)):
        images = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
        done = remove_dust(images, fill=fill)
        np.testing.assert_array_equal(done.pixels, images)
        assert [flags.shape for flags in done[1:]] == [(shape[0],)] * 3


@pytest.mark.parametrize("dtype", ["uint16", "int8", "int16", ">f4", "float64"])
def test_any_real_dtype_gives_float32(dtype: str) -> None:
    images = np.clip(np.random.default_rng(0).normal(60, 5, (2, 16, 16)), 0, 120).astype(dtype)
    images[:, 4, 4] = 126
    done = remove_dust(images, fill="median").pixels
    assert done.dtype == np.float32
    np.testing.assert_array_equal(done, with_medians(images.astype(np.float32), is_dust(images)))


# --- what is said ----------------------------------------------------------------------------------------------------


def test_odd_images_become_warnings() -> None:
    pixels = dusty((5, 2, 2)) * 0
    pixels[0, 0, 0] = np.nan
    pixels[1] = [[1, -1], [1, -1]]
    _, warnings = run_operation(remove_dust_particles, Particles(pixels, Optics(2.0)), threshold=0.5, fill="matched")
    assert warnings == [
        "1 of 5 particle images hold values that are not finite (NaN or infinite); no dust was removed from them",
        "1 of 5 particle images have no pixel within the threshold of their mean; they were left as they are",
    ]


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(
    ("std", "told"), [(0.1, True), (0.6, False), (1.0, False), (1.9, False), (2.2, True), (0, False)]
)
def test_gaussian_on_another_scale_names_matched(backend: ArrayBackend, std: float, told: bool) -> None:
    pixels = std * np.random.default_rng(0).normal(0, 1, (3, 48, 48))
    if std:
        pixels[1, 5, 5] = 400 if std > 0.5 else 1  # the dust's own std is not the image's
    particles = backend.move(Particles(pixels.astype(np.float32), Optics(2.0)))
    _, warnings = run_operation(remove_dust_particles, particles)
    assert ['use fill = "matched"' in warning for warning in warnings] == [True] * told
    assert run_operation(remove_dust_particles, particles, fill="matched").warnings == []


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("hot", [40.0, 1e4, 1e9])
def test_images_that_are_of_unit_scale_but_for_their_dust_are_not_flagged(backend: ArrayBackend, hot: float) -> None:
    images = np.random.default_rng(5).normal(7, 1, (12, 64, 64)).astype(np.float32)
    images[8:] *= 3
    images[:, 3, 5::20] += hot * (1 + 0.07 * np.arange(12)[:, None])
    done = remove_dust(backend.asarray(images), key=1)
    assert backend.to_host(done.not_unit).tolist() == 8 * [False] + 4 * [True]


def test_the_draws_of_a_part_are_those_of_the_whole_stack() -> None:
    particles = Particles(dusty((6, 16, 16)), Optics(2.0))
    item = Item("particles", "tests/tiny", Path("tiny.mrcs"))
    whole, _ = run_operation(remove_dust_particles, particles, Context(item, "", seed=3))
    later, _ = run_operation(remove_dust_particles, particles.part(4, 6), Context(item, "", seed=3, first_image=4))
    other, _ = run_operation(remove_dust_particles, particles, Context(item, "", seed=4))
    np.testing.assert_array_equal(later.pixels, whole.pixels[4:])
    assert (other.pixels != whole.pixels).any()
    assert whole == particles.with_pixels(whole.pixels)


def test_the_defaults_are_the_documents() -> None:
    assert RemoveDust() == RemoveDust(threshold=3.5, fill="gaussian")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"threshold": 0}, "greater than 0"),
        ({"threshold": -3.5}, "greater than 0"),
        ({"threshold": float("nan")}, "finite"),
        ({"fill": "mean"}, "'gaussian', 'matched' or 'median'"),
        ({"value": 1}, "value"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RemoveDust.model_validate(wrong)
