"""normalize: bring particle images to one grey scale, measured on their background."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from streamprep import Context, Params, Particles, operation
from streamprep.arrays import array_namespace, cached_filter, owned
from streamprep.em.background import background_mask, plane_axes, plane_solver
from streamprep.model import Array, FloatArray

Method = Literal["old", "new", "ramp"]

CONSTANT_BELOW = 1e-6
"""An image whose deviation is smaller holds no signal to scale."""

ROUNDING = 2.5e-7
"""Of the values of an image, what float32 may lose: a deviation below that is no signal."""


class Normalize(Params):
    """Standardise the grey values of each image."""

    method: Method = Field(
        "ramp",
        description="old: whole image to mean 0, std 1. new: background to mean 0, std 1. "
        "ramp: subtract the plane fitted to the background, then as new.",
    )
    background_radius_px: int = Field(
        -1,
        description="Pixels at this distance from the origin or farther are background [px], at most half the box; "
        "≤ 0: half the box.",
    )

    def check(self, *, size_px: int | None, pixel_size_angstrom: float | None) -> None:  # noqa: ARG002
        """Refuse a radius above half the box."""
        if size_px is not None and self.background_radius_px > size_px // 2:
            raise ValueError(
                f"background_radius_px = {self.background_radius_px} is above half the box ({size_px // 2} of "
                f"{size_px} px); allowed: up to {size_px // 2}, or -1 for half the box"
            )


@cached_filter
def _weights(ny: int, nx: int, radius_px: int) -> npt.NDArray[np.float32]:
    """1 where the background is and 0 elsewhere, the same times x, shape (2, ny, nx)."""
    inside = background_mask(ny, nx, radius_px)
    return np.stack([inside, inside * plane_axes(ny, nx)[1]]).astype(np.float32)


@cached_filter
def _axis(ny: int, nx: int, axis: int) -> FloatArray:
    return plane_axes(ny, nx)[axis]


@cached_filter
def _solver(ny: int, nx: int, radius_px: int, method: Method) -> FloatArray:
    """From sums over the background (of v, x·v and y·v) to the plane, or the constant, that is subtracted."""
    if method == "ramp":
        return plane_solver(ny, nx, radius_px)
    return np.diag([1 / max(_count(ny, nx, radius_px), 1), 0.0, 0.0])


@cache
def _count(ny: int, nx: int, radius_px: int) -> int:
    return int(background_mask(ny, nx, radius_px).sum())


def normalize(
    pixels: Array, *, method: Method = "ramp", background_radius_px: int = -1, in_place: bool = False
) -> tuple[Array, Array, Array]:
    r"""Normalise each image of a stack.

    With means μ and deviations σ, of the background where they have an index b:

    $$\text{old:} \quad v' = (v - μ) / σ$$

    $$\text{new:} \quad v' = (v - μ_b) / σ_b$$

    $$\text{ramp:} \quad v' = (v - a x - b y - c) / σ_b$$

    Parameters
    ----------
    pixels
        Shape (n, ny, nx), real.
    method
        ``old``: (v − mean) / std over the whole image, ddof = 0. ``new``: the same over the background, ddof = 1.
        ``ramp``: the least-squares plane a·x + b·y + c of the background subtracted everywhere, then divided by the
        background's std after that, ddof = 1.
    background_radius_px
        Background: r² ≥ radius², from the origin pixel (ny // 2, nx // 2). ≤ 0 means nx // 2.
    in_place
        Overwrite ``pixels``, which are float32.

    Returns
    -------
    normalised
        Shape (n, ny, nx), float32.
    constant
        Shape (n,), bool: images whose deviation is below 1e-6, or below what rounding leaves; at mean zero, not
        scaled.
    broken
        Shape (n,), bool: images that hold values that are not finite, of which nothing remains finite; and those with
        values beyond 1e18, whose squares are not: not scaled.

    Notes
    -----
    The formulas are those of Xmipp 3's normalisation (OldXmipp, NewXmipp, Ramp). Sums are of what differs from the
    background's mean, of a row in float32, of rows in float64: as exact as float64 for values far from zero, too.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).normal(6800, 9, (2, 32, 32)).astype(np.float32)
    >>> done, constant, _ = normalize(images, method="old")
    >>> [round(float(v), 4) + 0 for v in (done.mean(), done.std())], constant.tolist()
    ([0.0, 1.0], [False, False])
    """
    pixels = owned(pixels, in_place)
    xp = array_namespace(pixels)
    _, ny, nx = (int(length) for length in pixels.shape)
    radius = 0 if method == "old" else background_radius_px if background_radius_px > 0 else nx // 2
    weights = _weights(ny, nx, radius, like=pixels)
    y, x = (_axis(ny, nx, axis, like=pixels) for axis in (0, 1))

    count = max(_count(ny, nx, radius), 1)
    near = xp.astype(xp.sum(_rows(pixels, weights[0, ...]), axis=1) / count, xp.float32)
    pixels -= near[:, None, None]
    rows = _rows(pixels, weights[0, ...])
    sums = [xp.sum(rows, axis=1), xp.zeros_like(rows[:, 0]), rows @ y]
    if method == "ramp":
        sums[1] = xp.sum(_rows(pixels, weights[1, ...]), axis=1)
    plane = xp.stack(sums, axis=1) @ _solver(ny, nx, radius, method, like=pixels)
    pixels -= xp.astype(plane[:, :1] + plane[:, 2:] * y, xp.float32)[:, :, None]
    if method == "ramp":
        pixels -= xp.astype(plane[:, 1:2] * x, xp.float32)[:, None, :]

    weighted = pixels if method == "old" else pixels * weights[0, ...]
    squares = xp.sum(_rows(weighted, pixels), axis=1)
    deviation = xp.sqrt(squares / max(count - (0 if method == "old" else 1), 1))
    lost = ROUNDING * (xp.abs(xp.astype(near, xp.float64)) + xp.sum(xp.abs(plane), axis=1))
    constant = xp.logical_not(deviation >= xp.where(lost > CONSTANT_BELOW, lost, CONSTANT_BELOW))
    scaled = xp.logical_and(xp.isfinite(deviation), xp.logical_not(constant))
    pixels *= xp.astype(1 / xp.where(scaled, deviation, xp.ones_like(deviation)), xp.float32)[:, None, None]
    return pixels, constant, xp.logical_not(xp.isfinite(deviation))


def _rows(pixels: Array, factors: Array) -> Array:
    """Sums of products along each row in float32, given as float64."""
    xp = array_namespace(pixels)
    return xp.astype(xp.vecdot(pixels, factors), xp.float64)


@operation("process_particles", order=30, params=Normalize, name="normalize", per_image=True)
def normalize_particles(particles: Particles, params: Normalize, ctx: Context) -> Particles:
    """Normalise particle images."""
    pixels, constant, broken = normalize(
        particles.pixels, method=params.method, background_radius_px=params.background_radius_px, in_place=True
    )
    xp = array_namespace(pixels)
    ctx.flag(xp.logical_and(constant, ~broken), "are constant; they were left at mean zero")
    ctx.flag(broken, "hold values that are not finite (NaN or infinite) or beyond 1e18; they could not be normalised")
    return particles.with_pixels(pixels)
