"""Numbers that pictures show: radial power spectra, means and standard deviations of boxes. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from streamprep.em.ctf import ctf_at
from streamprep.model import Ctf, FloatArray

TILE_PX = 512
MOST_TILES = 36
ANGLES = 24
MOST_CTFS = 16
BACKGROUND_DEGREE = 6
LOW_ANGSTROM, HIGH_ANGSTROM = 50.0, 4.0
"""Thon rings are looked at between these spacings."""
DEFOCUS_FACTORS = tuple(float(2.0 ** (step / 24)) for step in range(-36, 37) if abs(step) > 2)
"""A defocus that is wrong by less than a twentieth is not told from the right one here."""
AT_ONCE_BYTES = 8 << 20


def radial_power(images: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """Rotational average of the power spectrum, averaged over images.

    Parameters
    ----------
    images
        Shape (n, ny, nx), any real dtype.

    Returns
    -------
    frequency, power
        From one cycle per shorter side up to Nyquist [cycles/px], and the power there; of white noise of variance v it
        is v everywhere.

    Notes
    -----
    The mean of each image is taken off, and a Hann window keeps its edges, and ramps, from leaking into all
    frequencies; ring r holds the terms nearest to r cycles per shorter side.
    """
    _, ny, nx = images.shape
    side = min(ny, nx)
    window = np.outer(np.hanning(ny + 1)[:-1], np.hanning(nx + 1)[:-1])
    rings = np.rint(side * np.hypot(np.fft.fftfreq(ny)[:, None], np.fft.rfftfreq(nx)[None])).astype(np.intp)
    counted = np.full(rings.shape, 2.0)  # the other half of the plane is its mirror image
    counted[:, 0] = 1
    if nx % 2 == 0:
        counted[:, -1] = 1
    sums = np.zeros(int(rings.max()) + 1)
    step = max(1, AT_ONCE_BYTES // (8 * ny * nx))
    for start in range(0, len(images), step):
        some = images[start : start + step].astype(np.float64)
        some -= some.mean(axis=(1, 2), keepdims=True)
        terms = fft.rfft2(some * window)
        power = (terms.real**2 + terms.imag**2).sum(axis=0)
        sums += np.bincount(rings.ravel(), (power * counted).ravel(), len(sums))
    per_ring = np.bincount(rings.ravel(), counted.ravel(), len(sums))
    found = sums / per_ring / (len(images) * float((window**2).sum()))
    last = side // 2
    return np.arange(1, last + 1) / side, found[1 : last + 1]


def tiles(pixels: npt.NDArray[Any], side_px: int = TILE_PX, most: int = MOST_TILES) -> npt.NDArray[np.float32]:
    """Square tiles of a micrograph, evenly spread; shape (n, side, side), the side no longer than the micrograph's."""
    ny, nx = pixels.shape
    side = min(side_px, ny, nx)
    corners = [(y, x) for y in range(0, ny - side + 1, side) for x in range(0, nx - side + 1, side)]
    chosen = [corners[number] for number in spread(len(corners), most)]
    return np.stack([pixels[y : y + side, x : x + side].astype(np.float32) for y, x in chosen])


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below ``count``, evenly spread.

    Examples
    --------
    >>> spread(10, 4), spread(3, 4)
    ([0, 3, 6, 9], [0, 1, 2])
    """
    if count <= most:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, most)})


def mean_ctf_power(ctfs: Sequence[Ctf], frequency_per_angstrom: FloatArray) -> FloatArray:
    """CTF² at frequencies [1/Å], the mean over directions and over the CTFs of some images."""
    angles = np.pi * np.arange(ANGLES)[:, None] / ANGLES
    fx, fy = np.cos(angles) * frequency_per_angstrom, np.sin(angles) * frequency_per_angstrom
    some = [ctfs[number] for number in spread(len(ctfs), MOST_CTFS)]
    return np.asarray(np.mean([(ctf_at(ctf, fx, fy) ** 2).mean(axis=0) for ctf in some], axis=0))


def thon_rings(frequency: FloatArray, power: FloatArray) -> FloatArray:
    """log10 of a power spectrum without its smooth background: a polynomial in the frequency, fitted to it."""
    logarithm = np.log10(np.maximum(power, 1e-30))
    degree = min(BACKGROUND_DEGREE, max(0, len(frequency) // 8))
    background = np.polynomial.Polynomial.fit(frequency, logarithm, degree)
    return np.asarray(logarithm - background(frequency))


def fit_of_ctf(ctfs: Sequence[Ctf], frequency: FloatArray, rings: FloatArray) -> tuple[float, float, float]:
    """How well Thon rings follow the CTF of a table, and whether they follow that of another defocus.

    Parameters
    ----------
    ctfs
        Of the micrograph.
    frequency, rings
        Frequencies [1/Å], and `thon_rings` there.

    Returns
    -------
    given, best, factor
        Correlation of the rings with CTF² of the table; the highest with the defocus changed; by which factor that is.
    """
    found = []
    for factor in (1.0, *DEFOCUS_FACTORS):
        changed = [
            replace(ctf, defocus_u_angstrom=ctf.defocus_u_angstrom * factor,
                    defocus_v_angstrom=ctf.defocus_v_angstrom * factor)
            for ctf in ctfs[:1]
        ]  # fmt: skip
        power = mean_ctf_power(ctfs if factor == 1.0 else changed, frequency)
        found.append(correlation(thon_rings(frequency, 10.0**power), rings))
    best = int(np.argmax(found))
    return found[0], found[best], (1.0, *DEFOCUS_FACTORS)[best]


def correlation(one: FloatArray, other: FloatArray) -> float:
    """Pearson's correlation coefficient; 0 where one of them is constant."""
    a, b = one - one.mean(), other - other.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else 0.0


def box_statistics(boxes: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of each box; shapes (n,)."""
    values = boxes.reshape(len(boxes), -1)
    return values.mean(axis=1, dtype=np.float64), values.std(axis=1, dtype=np.float64)


def centre_contrast(boxes: npt.NDArray[Any]) -> float:
    """How much brighter the middle of the mean box is than its surroundings, in standard deviations of a box.

    The middle is the disc of a quarter of the side around the origin pixel, the surroundings what lies beyond half of
    the side. Positive: bright particles; negative: dark ones.
    """
    mean = boxes.mean(axis=0, dtype=np.float64)
    ny, nx = mean.shape
    y, x = np.ogrid[:ny, :nx]
    radius = np.hypot((y - ny // 2) / ny, (x - nx // 2) / nx)
    contrast = float(box_statistics(boxes)[1].mean())
    return float(mean[radius <= 0.25].mean() - mean[radius >= 0.5].mean()) / contrast if contrast > 0 else 0.0


def outliers(values: FloatArray, limit: float = 6.0) -> npt.NDArray[np.bool_]:
    """Which values lie further from the median than ``limit`` robust standard deviations (1.4826 MAD).

    Where more than half of the values are the same, whatever differs from them by a tenth and more.
    """
    median = float(np.median(values)) if len(values) else 0.0
    off = np.abs(values - median)
    scale = 1.4826 * float(np.median(off)) if len(values) else 0.0
    return np.asarray(off > max(limit * scale, 0.1 * abs(median) if scale == 0 else 0.0, 1e-12))
