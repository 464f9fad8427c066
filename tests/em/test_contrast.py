"""Contrast at coordinates tells which way y runs, from little signal, and never where nothing can be told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep.em.contrast import SIGNIFICANT, compare, contrast_at, contrast_map
from streamprep.em.geometry import flip_y
from streamprep.formats import mrc, star
from streamprep.model import Coordinates, FloatArray
from streamprep.simulate import Acquisition, Exposure, take_exposure

BOX = 40


def scene(
    seed: int, shape: tuple[int, int] = (300, 420), number: int = 20, depth: float = -1.5
) -> tuple[FloatArray, FloatArray]:
    """A noisy micrograph with discs at random places, and those places."""
    rng = np.random.default_rng(seed)
    ny, nx = shape
    xy = BOX / 3 + rng.uniform(0, 1, (number, 2)) * (np.array([nx, ny]) - 2 * BOX / 3)
    y, x = np.mgrid[:ny, :nx]
    pixels = rng.normal(10, 2, shape) + 0.01 * x
    for centre in xy:
        pixels[np.hypot(x - centre[0], y - centre[1]) < BOX / 4] += depth
    return pixels, xy


@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), depth=st.sampled_from([-2.0, 2.0]), number=st.integers(10, 60))
def test_turning_the_micrograph_over_turns_the_verdict(seed: int, depth: float, number: int) -> None:
    pixels, xy = scene(seed, number=number, depth=depth)
    upright = compare([contrast_at(pixels, xy, BOX)])
    turned = compare([contrast_at(pixels[::-1], xy, BOX)])
    assert upright.fits_flipped is False
    assert turned.fits_flipped is True
    back = compare([contrast_at(pixels[::-1], flip_y(xy, len(pixels)), BOX)])
    assert back.fits_flipped is False
    assert (turned.flipped, turned.as_is) == pytest.approx((upright.as_is, upright.flipped), abs=0.05)
    assert turned.z == pytest.approx(-upright.z, rel=0.3)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 200), heaps=st.booleans())
def test_coordinates_of_nothing_fit_neither_way(seed: int, number: int, heaps: bool) -> None:
    pixels, _ = scene(seed)
    rng = np.random.default_rng(seed + 1)
    xy = rng.uniform(0, 1, (number, 2)) * [419, 299]
    if heaps:
        xy = xy[rng.integers(0, max(1, number // 10), number)] + rng.normal(0, 3, (number, 2))
    assert compare([contrast_at(pixels, xy, BOX)]).fits_flipped is None


def test_coordinates_that_are_symmetric_about_the_middle_fit_neither_way() -> None:
    pixels, xy = scene(1)
    both = np.concatenate([xy, flip_y(xy, 300)])
    found = compare([contrast_at(pixels + pixels[::-1], both, BOX)])
    assert found.as_is == pytest.approx(found.flipped)
    assert found.fits_flipped is None


def test_few_places_say_nothing_and_many_micrographs_with_few_do() -> None:
    scenes = [scene(seed, number=3) for seed in range(8)]
    contrasts = [contrast_at(pixels, xy, BOX) for pixels, xy in scenes]
    assert compare(contrasts[:1]).too_few
    assert compare(contrasts).fits_flipped is False
    assert compare([]).too_few


def test_one_heap_of_coordinates_is_one_place() -> None:
    pixels, xy = scene(3)
    heap = xy[:1] + np.random.default_rng(0).normal(0, 1, (100, 2))
    found = compare([contrast_at(pixels, heap, BOX)])
    assert found.places < 6
    assert found.fits_flipped is None


def test_dark_and_bright_particles_of_one_folder_cancel_out() -> None:
    dark, bright = (contrast_at(*scene(5, depth=depth), BOX) for depth in (-2.0, 2.0))
    assert compare([dark, bright]).as_is < 0.3 * compare([dark]).as_is


def test_hot_pixels_a_slope_and_carbon_do_not_hide_particles() -> None:
    pixels, xy = scene(7, depth=-2.0)
    pixels[np.random.default_rng(1).integers(0, 300, 60), np.random.default_rng(2).integers(0, 420, 60)] = 1e5
    y, x = np.mgrid[:300, :420]
    pixels += 0.2 * y + np.where(x + y > 640, -30.0, 0.0)
    assert compare([contrast_at(pixels, xy, BOX)]).fits_flipped is False


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.float16, np.float32, np.float64])
def test_every_type_of_pixels_gives_the_same(dtype: type) -> None:
    pixels, xy = scene(9, depth=-3.0)
    found = compare([contrast_at(np.rint(pixels).astype(dtype), xy, BOX)])
    assert found.as_is == pytest.approx(compare([contrast_at(np.rint(pixels), xy, BOX)]).as_is, rel=1e-4)


@pytest.mark.parametrize("box", [2, 8, 9, 40, 133, 300])
def test_a_map_is_normalised_at_every_scale(box: int) -> None:
    pixels, _ = scene(2)
    made, factor = contrast_map(pixels, box)
    assert made.shape == (300 // factor, 420 // factor)
    assert made.mean() == pytest.approx(0, abs=1e-6)
    assert made.std() == pytest.approx(1)


def test_what_is_constant_has_no_contrast() -> None:
    flat = np.full((100, 120), 7.0)
    assert not contrast_map(flat, 20)[0].any()
    assert compare([contrast_at(flat, np.full((20, 2), 50.0), 20)]).fits_flipped is None


@pytest.mark.parametrize("box", [0, 1, 101])
def test_a_box_that_does_not_fit_is_refused(box: int) -> None:
    with pytest.raises(ValueError, match=f"a box of {box} px does not fit into 120 × 100 px"):
        contrast_map(np.zeros((100, 120)), box)


def test_coordinates_outside_count_for_nothing() -> None:
    pixels, xy = scene(4)
    outside = np.array([[-1.0, 5.0], [420.0, 5.0], [5.0, 299.6], [1e300, 0.0], [0.0, -1e300]])
    found = contrast_at(pixels, np.concatenate([xy, outside]), BOX)
    assert found == contrast_at(pixels, xy, BOX)
    edge = np.array([[-0.4, -0.4], [419.4, 299.4], [0.0, 299.0]])
    assert contrast_at(pixels, edge, BOX).count == 3


def _exposures(signal: float, particles: int) -> list[Exposure]:
    acquisition = Acquisition(size_px=512, particles=particles, box_size_px=64, seed=11, signal=signal)
    return [take_exposure(acquisition, index, (500, 640)) for index in range(4)]


@pytest.mark.parametrize(("signal", "particles"), [(0.1, 20), (0.1, 10), (0.04, 20)])
def test_simulated_micrographs_are_told(signal: float, particles: int) -> None:
    exposures = _exposures(signal, particles)
    for sign in (1.0, -1.0):  # dark particles, and bright ones
        upright = compare(contrast_at(sign * made.pixels, made.picks_px, 64) for made in exposures)
        assert upright.fits_flipped is False
        turned = compare(contrast_at(sign * made.pixels[::-1], made.picks_px, 64) for made in exposures)
        assert turned.fits_flipped is True


def test_particles_that_cannot_be_seen_are_not_told() -> None:
    found = compare(contrast_at(made.pixels, made.picks_px, 64) for made in _exposures(0.0, 20))
    assert abs(found.z) < SIGNIFICANT
    assert found.fits_flipped is None


@pytest.mark.parametrize("box", [30, 40, 60, 80])
def test_real_picks_fit_a_real_micrograph(data: Path, box: int) -> None:
    pixels = mrc.read(data / "micrographs" / "Ucsf_stack_1142_DW.mrc").pixels
    (entry,) = star.read_entries(data / "coordinates" / "relion" / "Ucsf_stack_1142_DW_autopick.star")
    assert isinstance(entry.data, Coordinates)
    assert compare([contrast_at(pixels, entry.data.xy_px, box)]).fits_flipped is False
    assert compare([contrast_at(pixels[::-1], entry.data.xy_px, box)]).fits_flipped is True
