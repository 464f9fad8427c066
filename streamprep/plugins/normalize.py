"""normalize: bring particle images to one grey scale, measured on their background."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field

from streamprep import Context, Params, Particles, operation
from streamprep.arrays import array_namespace, cached_filter
from streamprep.em.background import background_mask, plane_basis
from streamprep.model import Array, FloatArray

Method = Literal["old", "new", "ramp"]

CONSTANT_BELOW = 1e-6
"""An image whose deviation is smaller holds no signal to scale."""

CHUNK_PIXELS = 1 << 17
"""Pixels worked on at a time: 1 MiB of float64, which stays in the cache of one core."""


class Normalize(Params):
    """Standardise the grey values of each image."""

    method: Method = Field(
        "ramp",
        description="old: whole image to mean 0, std 1. new: background to mean 0, std 1. "
        "ramp: subtract the plane fitted to the background, then as new.",
    )
    background_radius_px: int = Field(
        -1,
        description="Pixels at this distance from the origin or farther are background [px]; ≤ 0: half the box.",
    )

    def check(self, *, size_px: int | None, pixel_size_angstrom: float | None) -> None:  # noqa: ARG002
        """Refuse a radius above half the box."""
        if size_px is not None and self.background_radius_px > size_px // 2:
            raise ValueError(
                f"background_radius_px = {self.background_radius_px} is above half the box ({size_px // 2} of "
                f"{size_px} px); allowed: up to {size_px // 2}, or -1 for half the box"
            )


@cached_filter
def _projectors(ny: int, nx: int, method: Method, radius_px: int) -> FloatArray:
    """Rows: the basis images, the same over the background only, and the weights whose sum of squares is a variance."""
    inside = np.ones((ny, nx), dtype=bool) if method == "old" else background_mask(ny, nx, radius_px)
    flat = inside.ravel().astype(np.float64)
    if method == "ramp":
        basis = plane_basis(ny, nx, radius_px)
    else:
        basis = np.full((1, ny * nx), 1 / np.sqrt(max(flat.sum(), 1.0)))
    degrees = max(flat.sum() - (0 if method == "old" else 1), 1.0)
    return np.concatenate([basis, basis * flat, flat[None] / degrees])


def normalize(pixels: Array, *, method: Method = "ramp", background_radius_px: int = -1) -> tuple[Array, Array]:
    """Normalise each image of a stack.

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

    Returns
    -------
    normalised
        Shape (n, ny, nx), float32.
    constant
        Shape (n,), bool: images whose deviation is below 1e-6, left at mean zero, and those that hold values that are
        not finite, which have none.

    Notes
    -----
    All sums are in float64. The formulas are those of Xmipp 3's normalisation (OldXmipp, NewXmipp, Ramp).

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).normal(6800, 9, (2, 32, 32)).astype(np.float32)
    >>> done, constant = normalize(images, method="old")
    >>> [round(float(v), 4) + 0 for v in (done.mean(), done.std())], constant.tolist()
    ([0.0, 1.0], [False, False])
    """
    xp = array_namespace(pixels)
    n, ny, nx = (int(length) for length in pixels.shape)
    radius = background_radius_px if background_radius_px > 0 else nx // 2
    rows = _projectors(ny, nx, method, radius, like=pixels)
    terms = (int(rows.shape[0]) - 1) // 2
    basis, onto = rows[:terms, :], xp.matrix_transpose(rows[terms : 2 * terms, :])
    weight = rows[2 * terms, :]

    normalised = xp.empty_like(pixels, dtype=xp.float32)
    flags = []
    step = max(1, CHUNK_PIXELS // (ny * nx))
    for start in range(0, n, step):
        stop = min(start + step, n)
        chunk = xp.astype(pixels[start:stop, :, :], xp.float64)
        flat = xp.reshape(chunk, (int(chunk.shape[0]), ny * nx))
        flat = flat - (flat @ onto) @ basis
        deviation = xp.sqrt((flat * flat) @ weight)
        constant = xp.logical_not(deviation >= CONSTANT_BELOW)
        flat = flat / xp.where(constant, xp.ones_like(deviation), deviation)[:, None]
        normalised[start:stop, :, :] = xp.astype(xp.reshape(flat, chunk.shape), xp.float32)
        flags.append(constant)
    empty = partial(xp.zeros, 0, dtype=xp.bool)
    return normalised, xp.concat(flags) if flags else empty()


@operation("process_particles", order=30, params=Normalize, name="normalize")
def normalize_particles(particles: Particles, params: Normalize, ctx: Context) -> Particles:
    """Normalise particle images."""
    normalised, constant = normalize(
        particles.pixels, method=params.method, background_radius_px=params.background_radius_px
    )
    xp = array_namespace(constant)
    count = int(xp.count_nonzero(constant))
    broken = int(xp.count_nonzero(~xp.all(xp.isfinite(normalised), axis=(1, 2)))) if count else 0
    if count > broken:
        ctx.warn(f"{count - broken} of {len(particles)} {ctx.label} images are constant; they were left at mean zero")
    if broken:
        ctx.warn(
            f"{broken} of {len(particles)} {ctx.label} images hold values that are not finite (NaN or infinite); they "
            "could not be normalised"
        )
    return particles.with_pixels(normalised)
