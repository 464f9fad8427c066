"""Pictures: what is in them, and how large they are."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from streamprep.pictures import NOISE_COLOUR, PARTICLE_COLOUR, jpeg, map_picture, micrograph_picture, montage, shrink


def test_shrinking_is_the_exact_mean_of_blocks() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1001, 700)).astype(np.uint8)
    small, step = shrink(pixels, 300)
    assert (small.shape, step) == ((250, 175), 4)
    np.testing.assert_allclose(small[3, 5], pixels[12:16, 20:24].astype(float).mean())


def test_picks_stand_where_they_are() -> None:
    place = np.array([[300.5, 100.5]])
    image = np.asarray(micrograph_picture(np.zeros((400, 800)), place, np.empty((0, 2)), box_size_px=40, side_px=400))
    y, x = np.nonzero((image == PARTICLE_COLOUR).all(axis=2))
    assert image.shape[:2] == (200, 400)
    assert ((x.min() + x.max()) / 2, (y.min() + y.max()) / 2) == (150, 50)
    assert (x.max() - x.min() + 1, y.max() - y.min() + 1) == (21, 21)
    image = np.asarray(micrograph_picture(np.zeros((400, 800)), place[:0], place, box_size_px=40))
    assert (image == NOISE_COLOUR).all(axis=2).any()
    assert not (image == PARTICLE_COLOUR).all(axis=2).any()


def test_a_montage_shows_a_box_that_differs_from_the_others() -> None:
    boxes = np.random.default_rng(0).normal(size=(8, 16, 16))
    boxes[5] += 10
    sheet = np.asarray(montage(boxes, columns=3, side_px=16))
    assert sheet.shape[:2] == (54, 54)
    tiles = [sheet[row * 18 + 1 : row * 18 + 17, column * 18 + 1 : column * 18 + 17, 0].mean()
             for row in range(3) for column in range(3)]  # fmt: skip
    assert np.argmax(tiles) == 5
    assert tiles[5] - max(tiles[:5]) > 100


def test_a_picture_of_maps_has_a_row_for_each() -> None:
    assert map_picture([np.zeros((4, 6, 8)), np.ones((3, 3, 3))], side_px=100).size == (4 * 104, 2 * 104)


def test_a_jpeg_keeps_within_its_bytes() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (700, 700)).astype(np.uint8))
    data = jpeg(noise, 60_000)
    assert len(data) <= 60_000
    with Image.open(io.BytesIO(data)) as image:
        assert image.width > 200
