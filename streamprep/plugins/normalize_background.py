"""normalize_background: bring a map to a grey scale that is measured on its background."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from streamprep import Context, InputError, Map, Params, operation
from streamprep.arrays import array_namespace, cached_filter, in_slabs
from streamprep.em.background import squared_radii
from streamprep.em.grey_values import is_finite
from streamprep.model import Array

CONSTANT_BELOW = 1e-6
"""A background whose deviation is smaller holds no noise to scale."""
ROUNDING = 2.5e-7
"""Of the values of a map, what float32 may lose: a deviation below that is none."""


class NormalizeBackground(Params):
    """Bring the background of a map to mean 0 and standard deviation 1."""

    radius_px: int = Field(
        -1,
        description="Voxels at this distance from the origin or farther are background [px]; ≤ 0: half the size.",
    )

    def check(self, *, size_px: int | None, pixel_size_angstrom: float | None) -> None:  # noqa: ARG002
        """Refuse a radius above half the size."""
        if size_px is not None and self.radius_px > size_px // 2:
            raise ValueError(
                f"radius_px = {self.radius_px} is above half the size ({size_px // 2} of {size_px} px); allowed: up to "
                f"{size_px // 2}, or -1 for half the size"
            )


class Normalized(NamedTuple):
    """What `normalize_background` gives back."""

    pixels: Array
    """Shape of the input, float32."""
    mean: float
    """Of the background, before."""
    std: float
    """Of the background, before; sample deviation."""
    constant: bool
    """The background was constant: the map is at its mean zero, not scaled."""


@cached_filter
def _squares(ny: int, nx: int) -> npt.NDArray[np.int32]:
    return squared_radii(ny, nx)


def normalize_background(pixels: Array, *, radius_px: int = -1) -> Normalized:
    """Bring the voxels outside a sphere to mean 0 and standard deviation 1 (ddof = 1).

    With the mean and the standard deviation of the voxels outside the sphere:

    $$V' = (V - μ) / σ$$

    Parameters
    ----------
    pixels
        Shape (nz, ny, nx), float32, finite.
    radius_px
        Background: r² ≥ radius², from the origin voxel (nz // 2, ny // 2, nx // 2). ≤ 0 means nx // 2.

    Notes
    -----
    As in Xmipp 3 (NewXmipp). Deviations are from the mean of each slab, which is summed before: of
    rows in float32, of all rows in float64.

    Examples
    --------
    >>> import numpy as np
    >>> volume = np.random.default_rng(0).normal(50, 9, (16, 16, 16)).astype(np.float32)
    >>> done = normalize_background(volume, radius_px=4)
    >>> round(done.mean), round(done.std), abs(float(done.pixels.mean())) < 0.1
    (50, 9, True)
    """
    xp = array_namespace(pixels)
    nz, ny, nx = (int(side) for side in pixels.shape)
    least = (radius_px if radius_px > 0 else nx // 2) ** 2
    squares = _squares(ny, nx, like=pixels)

    def moments(start: int, stop: int) -> tuple[float, float, float]:
        """Voxels, mean, and sum of squared deviations from it."""
        z = [(place - nz // 2) ** 2 for place in range(start, stop)]
        weights = xp.stack([xp.astype(squares >= least - square, xp.float32) for square in z])
        count = _total(weights, xp.ones_like(weights))
        if not count:
            return 0.0, 0.0, 0.0
        slab = pixels[start:stop, ...]
        near = _total(slab, weights) / count
        weights *= slab - near
        first, second = float(xp.sum(xp.sum(weights, axis=-1), dtype=xp.float64)), _total(weights, weights)
        return count, near + first / count, second - first * first / count

    found = np.array(in_slabs(moments, pixels))
    total = float(found[:, 0].sum())
    mean = float(found[:, 0] @ found[:, 1]) / total
    variance = float((found[:, 2] + found[:, 0] * (found[:, 1] - mean) ** 2).sum()) / max(total - 1, 1)
    std = math.sqrt(max(variance, 0.0))
    constant = not std >= max(CONSTANT_BELOW, ROUNDING * abs(mean))
    scale = 1.0 if constant else 1 / std
    done = xp.empty_like(pixels)

    def scaled(start: int, stop: int) -> None:
        slab = done[start:stop, ...]
        slab[...] = pixels[start:stop, ...] - mean
        slab *= scale

    in_slabs(scaled, pixels)
    return Normalized(done, mean, std, constant)


def _total(one: Array, other: Array) -> float:
    """The sum of the products: of rows in float32, of all rows in float64."""
    xp = array_namespace(one)
    return float(xp.sum(xp.astype(xp.vecdot(one, other), xp.float64)))


@operation("process_map", order=80, params=NormalizeBackground, name="normalize_background")
def normalize_background_of_map(map: Map, params: NormalizeBackground, ctx: Context) -> Map:  # noqa: A002
    """Normalise a map by its background."""
    if not is_finite(map.pixels):
        raise InputError(
            ctx.item.path, "normalize_background: the map holds values that are not finite (NaN or infinite)"
        )
    done = normalize_background(map.pixels, radius_px=params.radius_px)
    if done.constant:
        ctx.warn(f"normalize_background: the background is constant, {done.mean:g}; it was moved to 0 and not scaled")
    return map.with_pixels(done.pixels)
