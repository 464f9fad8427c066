"""Pictures for people: micrographs with their picks, montages of boxes. Arrays in, images out; no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from streamprep.model import FloatArray

PARTICLE_COLOUR = (64, 220, 120)
NOISE_COLOUR = (255, 150, 60)


def stretch(pixels: npt.NDArray[Any], *, low: float = 0.5, high: float = 99.5) -> npt.NDArray[np.uint8]:
    """Grey values 0 … 255 between two percentiles.

    Parameters
    ----------
    pixels
        Shape (ny, nx), any real dtype.
    low, high
        Percentiles that become black and white.

    Examples
    --------
    >>> stretch(np.array([[0.0, 1.0, 2.0]]), low=0, high=100).tolist()
    [[0, 127, 255]]
    """
    first, last = np.percentile(pixels, [low, high])
    scaled = (pixels - first) / max(last - first, 1e-12)
    return np.asarray(np.clip(scaled, 0, 1) * 255, dtype=np.uint8)


def shrink(pixels: npt.NDArray[Any], side_px: int) -> tuple[FloatArray, int]:
    """Average blocks of pixels until no side is longer than asked; returns the image and the block's side."""
    step = max(1, -(-max(pixels.shape) // side_px))
    ny, nx = (length // step * step for length in pixels.shape)
    blocks = pixels[:ny, :nx].astype(np.float64).reshape(ny // step, step, nx // step, step)
    return blocks.mean(axis=(1, 3)), step


def micrograph_picture(
    pixels: npt.NDArray[Any],
    particles_px: FloatArray,
    noise_px: FloatArray,
    *,
    box_size_px: int,
    side_px: int = 1024,
) -> Image.Image:
    """A micrograph with a circle around each particle and a square around each noise box.

    Parameters
    ----------
    pixels
        Shape (ny, nx).
    particles_px, noise_px
        Centres, shape (n, 2): x, y [px].
    box_size_px
        Side of a box [px].
    side_px
        Longest side of the picture [px].
    """
    small, step = shrink(pixels, side_px)
    image = Image.fromarray(stretch(small)).convert("RGB")
    draw = ImageDraw.Draw(image)
    half = box_size_px / 2 / step
    for x, y in particles_px / step:
        draw.ellipse((x - half, y - half, x + half, y + half), outline=PARTICLE_COLOUR, width=2)
    for x, y in noise_px / step:
        draw.rectangle((x - half, y - half, x + half, y + half), outline=NOISE_COLOUR, width=2)
    return image


def montage(boxes: Sequence[npt.NDArray[Any]] | npt.NDArray[Any], *, columns: int, side_px: int = 96) -> Image.Image:
    """Boxes side by side, each with a contrast of its own."""
    rows = -(-len(boxes) // columns)
    sheet = Image.new("L", (columns * (side_px + 2), max(1, rows) * (side_px + 2)), 32)
    for index, box in enumerate(boxes):
        tile = Image.fromarray(stretch(np.asarray(box))).resize((side_px, side_px), Image.Resampling.BILINEAR)
        sheet.paste(tile, ((index % columns) * (side_px + 2) + 1, (index // columns) * (side_px + 2) + 1))
    return sheet


def map_picture(maps: Sequence[npt.NDArray[Any]], *, side_px: int = 240) -> Image.Image:
    """One row for each map, for instance before and after: the central slices across x, y and z, and the sum along z.

    Parameters
    ----------
    maps
        Each of shape (nz, ny, nx).
    side_px
        Longest side of each picture [px].
    """
    rows = []
    for volume in maps:
        z, y, x = (side // 2 for side in volume.shape)
        views = (volume[:, :, x], volume[:, y, :], volume[z], volume.sum(axis=0, dtype=np.float64))
        tiles = []
        for view in views:
            grown = side_px / max(view.shape)
            size = (max(1, round(view.shape[1] * grown)), max(1, round(view.shape[0] * grown)))
            tile = Image.new("L", (side_px, side_px), 32)
            tile.paste(Image.fromarray(stretch(np.asarray(view))).resize(size, Image.Resampling.BILINEAR), (0, 0))
            tiles.append(tile)
        rows.append(tiles)
    sheet = Image.new("L", (4 * (side_px + 4), len(rows) * (side_px + 4)), 0)
    for down, tiles in enumerate(rows):
        for right, tile in enumerate(tiles):
            sheet.paste(tile, (right * (side_px + 4) + 2, down * (side_px + 4) + 2))
    return sheet


def beside(left: Image.Image, right: Sequence[Image.Image], *, gap_px: int = 12) -> Image.Image:
    """One picture, and others below one another on its right."""
    width = left.width + gap_px + max(image.width for image in right)
    height = max(left.height, sum(image.height + gap_px for image in right))
    page = Image.new("RGB", (width, height), (18, 18, 22))
    page.paste(left, (0, 0))
    top = 0
    for image in right:
        page.paste(image.convert("RGB"), (left.width + gap_px, top))
        top += image.height + gap_px
    return page
