"""Pictures for people: micrographs with their picks, montages of boxes, slices of maps. Arrays in, images out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from streamprep.model import FloatArray

PARTICLE_COLOUR = (64, 220, 120)
NOISE_COLOUR = (255, 150, 60)
GAP_PX = 2
BAR_SHARE = 0.2
"""A scale bar is this much of the picture's width at most."""
QUALITIES = (85, 78, 70, 62, 54, 45)


def grey_range(pixels: npt.NDArray[Any], low: float = 0.5, high: float = 99.5) -> tuple[float, float]:
    """Two percentiles of the grey values, to be black and white."""
    first, last = np.percentile(pixels, [low, high])
    return float(first), float(last)


def to_grey(pixels: npt.NDArray[Any], black: float, white: float) -> npt.NDArray[np.uint8]:
    """Grey values 0 … 255 between two values."""
    scaled = (pixels.astype(np.float64) - black) / max(white - black, 1e-12)
    return np.asarray(np.clip(scaled, 0, 1) * 255, dtype=np.uint8)


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
    return to_grey(pixels, *grey_range(pixels, low, high))


def shrink(pixels: npt.NDArray[Any], side_px: int) -> tuple[FloatArray, int]:
    """Average blocks of pixels until no side is longer than asked; returns the image and the block's side."""
    step = max(1, -(-max(pixels.shape) // side_px))
    ny, nx = (length // step * step for length in pixels.shape)
    made = np.zeros((ny // step, nx // step))
    for row in range(step):  # the whole in float64 would take eight times the memory of a micrograph of bytes
        lines = pixels[row:ny:step, :nx]
        made += lines.reshape(ny // step, nx // step, step).sum(axis=2, dtype=np.float64)
    return made / step**2, step


def bar_length_angstrom(width_angstrom: float) -> float:
    """The longest of 1, 2, 5, 10, 20, 50 … Å that is no more than a fifth of a width.

    Examples
    --------
    >>> bar_length_angstrom(4096 * 0.85)
    500.0
    """
    most = BAR_SHARE * width_angstrom
    unit = 10.0 ** np.floor(np.log10(most))
    return float(max(unit * factor for factor in (1, 2, 5) if unit * factor <= most))


def micrograph_picture(
    pixels: npt.NDArray[Any],
    particles_px: FloatArray,
    noise_px: FloatArray,
    *,
    box_size_px: int | None,
    side_px: int = 1024,
    pixel_size_angstrom: float | None = None,
) -> Image.Image:
    """A micrograph with a circle around each particle and a square around each noise box.

    Parameters
    ----------
    pixels
        Shape (ny, nx).
    particles_px, noise_px
        Centres, shape (n, 2): x, y [px].
    box_size_px
        Side of a box [px]; a circle is inscribed in it. A fortieth of the micrograph where there are no boxes.
    side_px
        Longest side of the picture [px].
    pixel_size_angstrom
        Of the micrograph [Å], for a scale bar; none without.
    """
    small, step = shrink(pixels, side_px)
    image = Image.fromarray(stretch(small)).convert("RGB")
    draw = ImageDraw.Draw(image)
    half = (box_size_px or max(pixels.shape) / 40) / 2 / step
    for x, y in (noise_px + 0.5) / step - 0.5:
        draw.rectangle((x - half, y - half, x + half, y + half), outline=NOISE_COLOUR, width=2)
    for x, y in (particles_px + 0.5) / step - 0.5:
        draw.ellipse((x - half, y - half, x + half, y + half), outline=PARTICLE_COLOUR, width=2)
    if pixel_size_angstrom:
        _draw_bar(image, draw, pixel_size_angstrom * step)
    return image


def _draw_bar(image: Image.Image, draw: ImageDraw.ImageDraw, pixel_size_angstrom: float) -> None:
    length = bar_length_angstrom(image.width * pixel_size_angstrom)
    text = f"{length / 10:g} nm"
    long, high = round(length / pixel_size_angstrom), max(3, image.height // 170)
    font = ImageFont.load_default(size=max(10, image.height // 42))
    left, bottom = 3 * high, image.height - 3 * high
    _, _, width, text_high = (int(side) for side in draw.textbbox((0, 0), text, font=font))
    draw.rectangle(
        (left - high, bottom - text_high - 4 * high, left + max(long, width) + high, bottom + high), fill=(0, 0, 0)
    )
    draw.rectangle((left, bottom - high, left + long, bottom), fill=(255, 255, 255))
    draw.text((left, bottom - text_high - 3 * high), text, fill=(255, 255, 255), font=font)


def montage(
    boxes: Sequence[npt.NDArray[Any]] | npt.NDArray[Any],
    *,
    columns: int,
    side_px: int = 96,
    mean: npt.NDArray[Any] | None = None,
) -> Image.Image:
    """Boxes side by side, all with the same black and white, so that those that differ from the others stand out.

    Parameters
    ----------
    boxes
        Each of shape (ny, nx).
    columns
        How many stand in a row.
    side_px
        Side of each in the picture [px].
    mean
        The mean box, which comes first, in a frame and with a contrast of its own.
    """
    tiles = [np.asarray(box) for box in boxes]
    black, white = grey_range(np.stack(tiles)) if tiles else (0.0, 1.0)
    greys = [to_grey(tile, black, white) for tile in tiles]
    if mean is not None:
        greys.insert(0, stretch(mean))
    rows, pitch = max(1, -(-len(greys) // columns)), side_px + GAP_PX
    sheet = Image.new("RGB", (columns * pitch, rows * pitch), (32, 32, 36))
    for index, grey in enumerate(greys):
        tile = Image.fromarray(grey).resize((side_px, side_px), Image.Resampling.BILINEAR).convert("RGB")
        if index == 0 and mean is not None:
            ImageDraw.Draw(tile).rectangle((0, 0, side_px - 1, side_px - 1), outline=(110, 170, 255), width=3)
        sheet.paste(tile, ((index % columns) * pitch + 1, (index // columns) * pitch + 1))
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


def jpeg(image: Image.Image, most_bytes: int) -> bytes:
    """A picture as JPEG of at most so many bytes: less exact, then smaller, until it fits."""
    while True:
        for quality in QUALITIES:
            made = io.BytesIO()
            image.save(made, "JPEG", quality=quality, optimize=True)
            if made.tell() <= most_bytes or max(image.size) < 64:
                return made.getvalue()
        image = image.resize((max(1, image.width * 3 // 4), max(1, image.height * 3 // 4)), Image.Resampling.LANCZOS)
