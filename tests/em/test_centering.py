"""Centring: what is moved comes back, against plain references, on every backend."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep.em.centering import center, mass_shift, mirror_angle, mirror_shift, shift_images
from streamprep.testing import ArrayBackend, backends

Shape = tuple[int, int]


def particle(
    shape: Shape, shift: tuple[float, float] = (0.0, 0.0), *, seed: int = 0, symmetric: bool = True, turn_deg: float = 0
) -> np.ndarray:
    """Blobs about the origin pixel, moved by ``shift`` (x, y), then turned about the origin pixel from x towards y."""
    rng = np.random.default_rng(seed)
    size = min(shape)
    y, x = np.indices(shape, dtype=np.float64)
    y, x = y - shape[0] // 2, x - shape[1] // 2
    turn = np.deg2rad(turn_deg)
    x, y = x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn)
    x, y = x - shift[0], y - shift[1]
    image = np.zeros(shape)
    for _ in range(6):
        radius, angle = 0.2 * size * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
        width, height = size * rng.uniform(0.05, 0.09), rng.uniform(0.3, 1)
        for sign in (1, -1) if symmetric else (1,):
            place = sign * radius * np.array([np.cos(angle), np.sin(angle)])
            image += height * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * width**2))
    return image.astype(np.float32)


def plain_mirror_shift(image: np.ndarray) -> np.ndarray:
    """Autocorrelation with the xy mirror image alone, in float64, by its definition: the whole pixel nearest to it."""
    ny, nx = image.shape
    y, x = np.indices(image.shape)
    inside = (y - ny // 2) ** 2 + (x - nx // 2) ** 2 < (min(ny, nx) / 2) ** 2
    masked = np.where(inside, image - image[inside].mean(dtype=np.float64), 0)
    correlation = scipy.signal.fftconvolve(masked, masked)  # with an image reversed about pixel 0
    best = np.unravel_index(np.argmax(correlation), correlation.shape)
    return np.array([nx // 2 - best[1] / 2, ny // 2 - best[0] / 2])


SHAPES = [(32, 32), (33, 33), (64, 64), (65, 65), (97, 97), (130, 130), (48, 64), (64, 49)]


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", SHAPES)
def test_every_backend_brings_the_symmetry_centre_to_the_origin_pixel(backend: ArrayBackend, shape: Shape) -> None:
    moves = [(2.3, -1.6), (0.0, 0.0), (-0.5, 0.5), (-min(shape) / 9, min(shape) / 8)]
    images = np.stack([particle(shape, move, seed=k) for k, move in enumerate(moves)])
    done = center(backend.asarray(images))
    np.testing.assert_allclose(backend.to_host(done.shift_px), -np.array(moves), atol=0.02)
    centred = np.stack([particle(shape, seed=k) for k in range(len(moves))])
    np.testing.assert_allclose(backend.to_host(done.pixels), centred, atol=0.02 * centred.max())
    assert not backend.to_host(done.broken | done.empty | done.too_far).any()
    assert done.pixels.dtype == backend.xp.float32


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("box", [64, 65])
def test_it_agrees_with_the_definition(box: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = particle((box, box), tuple(rng.uniform(-6, 6, 2)), seed=seed) + rng.normal(0, 0.05, (box, box))
    found = mirror_shift(image[None].astype(np.float32))[0]
    np.testing.assert_allclose(found, plain_mirror_shift(image), atol=1.1)


@settings(max_examples=40)
@given(
    box=st.integers(24, 80),
    x=st.floats(-0.12, 0.12),
    y=st.floats(-0.12, 0.12),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-12, 1.0, -1.0, 1e12]),
    level=st.sampled_from([0.0, 6800.0, -300.0]),
)
def test_contrast_and_grey_level_do_not_matter(
    box: int, x: float, y: float, seed: int, scale: float, level: float
) -> None:
    image = particle((box, box), (x * box, y * box), seed=seed)
    level = level if abs(scale) == 1 else level * scale
    done = center((image * np.float32(scale) + np.float32(level))[None])
    np.testing.assert_allclose(done.shift_px[0], [-x * box, -y * box], atol=0.05 if level else 0.02)


@pytest.mark.parametrize("box", [32, 33])
def test_a_particle_that_lies_right_stays(box: int) -> None:
    image = particle((box, box), seed=3)
    done = center(image[None])
    np.testing.assert_allclose(done.shift_px, 0, atol=2e-3)
    np.testing.assert_allclose(done.pixels[0], image, atol=2e-3)


@pytest.mark.parametrize("box", [64, 65])
@pytest.mark.parametrize("share", [0.2, 0.25])
def test_large_shifts_are_found(box: int, share: float) -> None:
    y, x = np.indices((box, box)) - box // 2
    move = np.array([share, -share]) * box
    image = np.exp(-((x - move[0]) ** 2 + (y - move[1]) ** 2) / (2 * (box / 16) ** 2)).astype(np.float32)
    np.testing.assert_allclose(mirror_shift(image[None])[0], -move, atol=0.02)


def test_noise_is_withstood() -> None:
    rng = np.random.default_rng(0)
    moves = rng.uniform(-6, 6, (40, 2))
    images = np.stack([particle((64, 64), tuple(move), seed=k) for k, move in enumerate(moves)])
    images += rng.normal(0, images.std() / np.sqrt(0.3), images.shape).astype(np.float32)
    off = np.linalg.norm(mirror_shift(images) + moves, axis=1)
    assert np.median(off) < 0.5
    assert np.quantile(off, 0.95) < 1.5


# --- moving pixels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", [(16, 16), (15, 15), (8, 13), (13, 8), (2, 2), (1, 1), (1, 7)])
def test_shifts_are_the_periodic_cubic_spline(backend: ArrayBackend, shape: Shape) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, *shape)).astype(np.float32)
    shifts = np.array([[0.3, -0.7], [1.0, 2.0], [-3.25, 0.5], [0.0, 0.0], [20.4, -31.1]])
    moved = backend.to_host(shift_images(backend.asarray(images), backend.asarray(shifts)))
    for image, (x, y), done in zip(images, shifts, moved, strict=True):
        if min(shape) > 2:  # scipy's filter is not exact on fewer
            wanted = scipy.ndimage.shift(image.astype(np.float64), (y, x), order=3, mode="grid-wrap")
            np.testing.assert_allclose(done, wanted, atol=3e-5)
        if x == int(x) and y == int(y):
            np.testing.assert_allclose(done, np.roll(image, (int(y), int(x)), (0, 1)), atol=1e-5)
    assert moved.shape == images.shape


@settings(max_examples=30)
@given(st.integers(1, 24), st.integers(1, 24), st.floats(-30, 30), st.floats(-30, 30))
def test_shifts_keep_the_mean_and_come_back(ny: int, nx: int, x: float, y: float) -> None:
    grid_y, grid_x = np.indices((ny, nx))
    image = (np.cos(2 * np.pi * grid_y / ny) + np.sin(2 * np.pi * grid_x / nx) + 3).astype(np.float32)[None]
    moved = shift_images(image, np.array([[x, y]]))
    np.testing.assert_allclose(moved.mean(dtype=np.float64), image.mean(dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(shift_images(moved, np.array([[0.0, 0.0]])), moved, atol=1e-5)
    twice = shift_images(moved, np.array([[np.round(x) - x, np.round(y) - y]]))
    if min(ny, nx) >= 16:
        np.testing.assert_allclose(twice, np.roll(image, (round(y), round(x)), (1, 2)), atol=2e-3)


# --- the centre of mass ----------------------------------------------------------------------------------------------


def plain_mass_shift(image: np.ndarray) -> np.ndarray:
    ny, nx = image.shape
    y, x = np.indices(image.shape)
    y, x = y - ny // 2, x - nx // 2
    background = image[x**2 + y**2 >= (min(ny, nx) // 2) ** 2].astype(np.float64)
    spread = background.std(ddof=1) if background.size > 1 else 0.0
    mass = np.clip(image - background.mean() - spread, 0, None)
    return -np.array([(mass * x).sum(), (mass * y).sum()]) / mass.sum()


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", [(32, 32), (33, 33), (24, 40), (41, 24)])
def test_mass_is_what_stands_out_of_the_background(backend: ArrayBackend, shape: Shape) -> None:
    rng = np.random.default_rng(1)
    images = np.stack([particle(shape, (1.5, -2.25), seed=k, symmetric=False) for k in range(3)])
    images += rng.normal(0, 0.05, images.shape).astype(np.float32)
    found, there = mass_shift(backend.asarray(images))
    assert backend.to_host(there).all()
    np.testing.assert_allclose(backend.to_host(found), [plain_mass_shift(image) for image in images], atol=1e-4)
    done = center(backend.asarray(images + np.float32(6800)), method="mass")
    np.testing.assert_allclose(backend.to_host(done.shift_px), backend.to_host(found), atol=0.03)
    left = [plain_mass_shift(image) for image in backend.to_host(done.pixels)]
    assert np.linalg.norm(left, axis=1).max() < max(0.35 * np.linalg.norm(backend.to_host(found), axis=1).max(), 0.1)


# --- the angle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(("shape", "symmetric"), [((64, 64), True), ((65, 65), False), ((80, 64), True)])
def test_turned_images_come_to_one_orientation(backend: ArrayBackend, shape: Shape, symmetric: bool) -> None:
    turns = [0, 20, 75, 140, 260]
    images = np.stack([particle(shape, turn_deg=turn, seed=5, symmetric=symmetric) for turn in turns])
    if not symmetric:  # a centre of its own, so that only the angle differs
        images = backend.to_host(center(backend.asarray(images), method="mass").pixels)
    angles = backend.to_host(mirror_angle(backend.asarray(images)))
    off = (angles + turns - angles[0] + 90) % 180 - 90
    np.testing.assert_allclose(off, 0, atol=2)
    assert ((angles > -90) & (angles <= 90)).all()


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("box", [64, 65])
def test_images_are_moved_then_turned_once(backend: ArrayBackend, box: int) -> None:
    images = np.stack([particle((box, box), (3.4, -2.2), turn_deg=turn, seed=5) for turn in (0, 33)])
    done = center(backend.asarray(images), rotate=True)
    shift, angle = backend.to_host(done.shift_px), backend.to_host(done.angle_deg)
    for image, (x, y), turn, ours in zip(images, shift, angle, backend.to_host(done.pixels), strict=True):
        moved = shift_images(image[None], np.array([[x, y]]))[0].astype(np.float64)
        size = box if box % 2 else box + 1  # scipy turns about the middle of an odd box
        middle = np.pad(moved, ((0, size - box),) * 2, mode="wrap")
        wanted = scipy.ndimage.rotate(middle, -turn, reshape=False, order=3, mode="grid-wrap")[:box, :box]
        inside = np.hypot(*(np.indices((box, box)) - box // 2)) < 0.4 * box
        np.testing.assert_allclose(ours[inside], wanted[inside], atol=0.01)
    one, other = backend.to_host(done.pixels)
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99
    turned = [scipy.ndimage.rotate(one, angle, reshape=False) for angle in range(0, 180, 5)]
    assert mirrored(one) > max(mirrored(image) for image in turned) - 0.05


def mirrored(image: np.ndarray) -> float:
    """Correlation with the x mirror image about the origin pixel, rings alone."""
    ny, nx = image.shape
    y, x = np.indices(image.shape)
    r = np.hypot(y - ny // 2, x - nx // 2)
    rings = (r > nx / 5) & (r < nx / 2)
    return float(np.corrcoef(image[rings], np.roll(image[:, ::-1], 1 - nx % 2, axis=1)[rings])[0, 1])


# --- what must hold for any image ------------------------------------------------------------------------------------


def odd_ones(box: int = 24) -> np.ndarray:
    images = np.stack([particle((box, box), (2.0, 1.0), seed=k) for k in range(6)])
    images[1] = 6800.3
    images[2, 3, 4] = np.nan
    images[3, 5, 5] = np.inf
    images[4] = 0
    return images


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("method", ["mirror", "mass"])
@pytest.mark.parametrize("rotate", [False, True])
def test_images_without_a_centre_are_left_alone(backend: ArrayBackend, method: str, rotate: bool) -> None:
    images = odd_ones()
    done = center(backend.asarray(images), method=method, rotate=rotate)
    assert backend.to_host(done.broken).tolist() == [False, False, True, True, False, False]
    assert backend.to_host(done.empty).tolist() == [False, True, False, False, True, False]
    assert not backend.to_host(done.too_far).any()
    pixels = backend.to_host(done.pixels)
    np.testing.assert_array_equal(pixels[1:5], images[1:5])
    assert not backend.to_host(done.shift_px)[1:5].any()
    assert not backend.to_host(done.angle_deg)[1:5].any()
    alone = center(backend.asarray(images[[0, 5]]), method=method, rotate=rotate)
    np.testing.assert_allclose(pixels[[0, 5]], backend.to_host(alone.pixels), atol=1e-4)


@pytest.mark.parametrize("method", ["mirror", "mass"])
def test_a_shift_beyond_the_limit_is_not_made(method: str) -> None:
    images = np.stack([particle((48, 48), move, seed=2) for move in ((1.0, 1.0), (5.0, 0.0), (0.0, -5.0), (3.5, 3.5))])
    done = center(images, method=method, limit_shift=0.09)  # 4.3 px
    assert done.too_far.tolist() == [False, True, True, False]
    np.testing.assert_array_equal(done.pixels[1:3], images[1:3])
    assert not done.shift_px[1:3].any()
    assert not center(images, method=method).too_far.any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", ["mirror", "mass"])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("shape", [(0, 8, 8), (2, 1, 1), (2, 2, 2), (2, 3, 3), (2, 1, 5), (2, 4, 3)])
def test_the_smallest_boxes_are_no_trouble(method: str, rotate: bool, shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).normal(6800, 9, shape).astype(np.float32)
    done = center(images, method=method, rotate=rotate)
    assert done.pixels.shape == shape
    assert np.isfinite(done.pixels).all()
    assert np.isfinite(done.shift_px).all()
    if shape[1:] == (1, 1):
        np.testing.assert_array_equal(done.pixels, images)
        assert done.empty.all()


@settings(max_examples=20)
@given(st.integers(2, 40), st.integers(0, 100), st.sampled_from(["mirror", "mass"]), st.booleans())
def test_a_batch_is_one_image_after_the_other(box: int, seed: int, method: str, rotate: bool) -> None:
    rng = np.random.default_rng(seed)
    images = np.stack([particle((box, box), tuple(rng.uniform(-0.1, 0.1, 2) * box), seed=seed + k) for k in range(3)])
    before = images.copy()
    together = center(images, method=method, rotate=rotate)
    np.testing.assert_array_equal(images, before)
    for k in range(3):
        alone = center(images[k : k + 1], method=method, rotate=rotate)
        np.testing.assert_allclose(together.shift_px[k], alone.shift_px[0], atol=2e-3)
        np.testing.assert_allclose(together.pixels[k], alone.pixels[0], atol=1e-2 * max(np.ptp(images[k]), 1e-6))


@pytest.mark.parametrize("dtype", ["float16", "uint16", "int8", "int16", ">f4", "float64"])
def test_any_real_dtype_gives_float32(dtype: str) -> None:
    images = (100 * particle((32, 32), (2.5, 1.0)) / 3).clip(0, 127).astype(dtype)[None]
    done = center(images)
    assert done.pixels.dtype == np.float32
    np.testing.assert_allclose(done.shift_px, [[-2.5, -1.0]], atol=0.05)


@pytest.mark.parametrize(("box", "width"), [(256, 0.16), (384, 0.12), (512, 0.12)])
def test_smooth_objects_without_a_mirror_line_come_to_the_middle(box: int, width: float) -> None:
    """They fill the circle, whose edge holds the peak back: each step is only a part of the way."""
    y, x = np.indices((box, box)) - box // 2
    right, down = 0.1 * box, -0.05 * box
    skew = 0.6 * (x - right) + (y - down)
    image = np.exp(-(((x - right) / (width * box)) ** 2 + (skew / (0.5 * width * box)) ** 2) / 2)
    found = center(image[None].astype(np.float32)).shift_px[0]
    assert np.hypot(found[0] + right, found[1] + down) < 0.1
