"""How a micrograph stands out at given places, and whether it does so more when y is turned over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft

from streamprep.em.geometry import flip_y
from streamprep.model import FloatArray

SIGNIFICANT = 3.0
"""Standard deviations by which two orientations must differ before one is said to fit."""
LEAST_PLACES = 6.0
"""Independent places needed; the contrast of fewer has no normal distribution."""

_PIXELS_PER_BOX = 10
_DISC, _RING = 0.25, (0.4, 0.6)
_USUAL = 6.0
_SAMPLED = 1 << 16
_BLOCK_PX = 1 << 20
_SHIFTS = 256
_PLASTIC = 1.32471795724474602596
"""Its powers make the most even sequence of points in a plane (the real root of p³ = p + 1)."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """Contrast at the coordinates of one micrograph, summed over them, in standard deviations of the contrast map."""

    count: int
    as_is: float
    flipped: float
    variance: float
    """Of the difference of the two sums, if the coordinates had nothing to do with the micrograph."""


@dataclass(frozen=True, slots=True)
class Orientation:
    """Mean contrast of many coordinates, as they are and with y turned over."""

    count: int
    as_is: float
    flipped: float
    z: float
    """By how many standard deviations they stand out more as they are; negative: more when turned over."""
    places: float
    """Independent places that vary as much as they do: ``count``, or fewer where they lie in heaps."""

    @property
    def too_few(self) -> bool:
        """Whether nothing can be said of so few places."""
        return self.places < LEAST_PLACES

    @property
    def fits_flipped(self) -> bool | None:
        """False where the coordinates fit as they are, True where they fit turned over, None where neither is sure."""
        if self.too_few or abs(self.z) < SIGNIFICANT:
            return None
        return self.z < 0


def contrast_map(pixels: npt.NDArray[np.generic], box_size_px: int) -> tuple[FloatArray, int]:
    """How much each place differs from what surrounds it, at the scale of a particle.

    Parameters
    ----------
    pixels
        A micrograph, shape (ny, nx), real, finite.
    box_size_px
        Side of a particle's box; at most the smaller side of the image [px].

    Returns
    -------
    map
        Mean within a disc (a quarter of a box in radius) minus the mean of a ring around it (0.4 to 0.6 boxes), which
        takes slow changes of the background away. Mean 0 and standard deviation 1, all zero for a constant image.
        Single hot pixels, and values that no particle has, such as those of carbon edges, are cut to the usual range.
    factor
        Pixels of the micrograph along a pixel of the map, about a tenth of a box; incomplete ones are left out.

    Raises
    ------
    ValueError
        The box is below 2 pixels or does not fit into the image.
    """
    if not 2 <= box_size_px <= min(pixels.shape):
        raise ValueError(f"a box of {box_size_px} px does not fit into {pixels.shape[1]} × {pixels.shape[0]} px")
    factor = max(1, box_size_px // _PIXELS_PER_BOX)
    binned = _binned(pixels, factor)
    binned -= binned.mean()
    kernel = _disc_minus_ring(box_size_px / factor)
    contrast = _convolved(binned, kernel)
    low, high = _usual_range(contrast)
    np.clip(contrast, low, high, out=contrast)
    contrast -= contrast.mean()
    deviation = float(contrast.std())
    if deviation <= 1e-6 * float(np.abs(binned).max()):
        return np.zeros(contrast.shape), factor
    return np.asarray(contrast / deviation, dtype=np.float64), factor


def contrast_at(pixels: npt.NDArray[np.generic], xy_px: FloatArray, box_size_px: int) -> Contrast:
    """Contrast of a micrograph at coordinates, and at the same ones with y turned over.

    Parameters
    ----------
    pixels
        The micrograph, shape (ny, nx), real, finite.
    xy_px
        Centres, shape (n, 2) [px]. Those outside the image count for nothing.
    box_size_px
        Side of a particle's box [px].

    Raises
    ------
    ValueError
        The box does not fit into the image.

    Notes
    -----
    What chance gives is measured by moving all coordinates together over the image, which is closed at its borders,
    by 256 evenly spread shifts: so coordinates that lie in heaps, or nearer to one another than the image changes,
    do not count as many.
    """
    made, factor = contrast_map(pixels, box_size_px)
    ny, nx = pixels.shape
    size = np.array([nx, ny])
    xy = xy_px[((xy_px > -0.5) & (xy_px < size - 0.5)).all(axis=1)]
    numbers = np.arange(1, _SHIFTS + 1)
    shifts = np.stack([numbers / _PLASTIC % 1 * made.shape[1], numbers / _PLASTIC**2 % 1 * made.shape[0]], axis=1)
    sums, variances = [], []
    for places in (xy, flip_y(xy, ny)):
        column, row = np.minimum((places + 0.5) // factor, np.array(made.shape[::-1]) - 1).astype(np.int64).T
        sums.append(float(made[row, column].sum()))
        chance = [
            made[(row + down) % made.shape[0], (column + right) % made.shape[1]].sum()
            for right, down in shifts.astype(np.int64).tolist()
        ]
        variances.append(float(np.var(chance)))
    return Contrast(len(xy), sums[0], sums[1], sum(variances))


def compare(contrasts: Iterable[Contrast]) -> Orientation:
    """Mean contrasts over several micrographs, and how sure their difference is.

    Particles are dark or bright, but all of them the same: the sign is taken away from the means, not from each value.
    """
    found = list(contrasts)
    count = sum(each.count for each in found)
    if not count:
        return Orientation(0, 0.0, 0.0, 0.0, 0.0)
    as_is, flipped = (abs(sum(values)) for values in zip(*((one.as_is, one.flipped) for one in found), strict=True))
    variance = sum(each.variance for each in found)
    z = (as_is - flipped) / variance**0.5 if variance > 0 else 0.0
    places = min(count, 2 * count**2 / variance) if variance > 0 else 0.0
    return Orientation(count, as_is / count, flipped / count, z, places)


def _usual_range(values: npt.NDArray[np.generic]) -> tuple[float, float]:
    """Six standard deviations around the median, estimated from a part of the values; a few odd ones do not move it."""
    step = max(1, int((values.size / _SAMPLED) ** 0.5))
    low, middle, high = np.percentile(values[::step, ::step].astype(np.float64), (2.275, 50, 97.725))
    spread = _USUAL / 4 * (high - low)  # these two are four standard deviations apart
    return (float(middle - spread), float(middle + spread)) if spread > 0 else (-np.inf, np.inf)


def _binned(pixels: npt.NDArray[np.generic], factor: int) -> npt.NDArray[np.float32]:
    """Means of squares of factor × factor pixels, taken in parts: no second copy of the micrograph is made."""
    low, high = _usual_range(pixels)
    rows, columns = pixels.shape[0] // factor, pixels.shape[1] // factor
    made = np.empty((rows, columns), np.float32)
    step = max(1, _BLOCK_PX // (factor * pixels.shape[1]))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        part = pixels[first * factor : last * factor, : columns * factor].astype(np.float32)
        np.clip(part, low, high, out=part)
        lines = part.reshape(last - first, factor, columns * factor).sum(axis=1)
        made[first:last] = lines.reshape(last - first, columns, factor).sum(axis=2)
    made /= factor * factor
    return made


def _convolved(image: npt.NDArray[np.float32], kernel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """An image convolved with a square kernel of odd side; beyond its borders it goes on as in a mirror."""
    side = len(kernel)
    padded = np.pad(image, side // 2, mode="symmetric")
    shape = [fft.next_fast_len(length, real=True) for length in padded.shape]
    made = fft.irfft2(fft.rfft2(padded, shape) * fft.rfft2(kernel, shape), shape)
    return np.asarray(made[side - 1 : padded.shape[0], side - 1 : padded.shape[1]])  # what did not wrap around


def _disc_minus_ring(box_px: float) -> npt.NDArray[np.float32]:
    """A kernel of sum 0: 1/area in the disc, −1/area in the ring, with edges one pixel soft."""
    half = int(np.ceil(_RING[1] * box_px + 0.5))
    offset = np.arange(-half, half + 1)
    radius = np.hypot(offset[:, None], offset)

    def disc(fraction: float) -> FloatArray:
        return np.clip(fraction * box_px + 0.5 - radius, 0.0, 1.0)

    inside, ring = disc(_DISC), disc(_RING[1]) - disc(_RING[0])
    return np.asarray(inside / inside.sum() - ring / ring.sum(), dtype=np.float32)
