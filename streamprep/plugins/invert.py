"""invert: turn the contrast over."""

from __future__ import annotations

from streamprep import Context, Map, Params, Particles, operation
from streamprep.arrays import array_namespace
from streamprep.model import Array


def invert(pixels: Array) -> Array:
    """Multiply by −1.

    Parameters
    ----------
    pixels
        Any shape, any real dtype; integers become float32, since unsigned ones have no negative.

    Examples
    --------
    >>> import numpy as np
    >>> invert(np.array([1.0, -2.0]))
    array([-1.,  2.])
    """
    xp = array_namespace(pixels)
    if not xp.isdtype(pixels.dtype, "real floating"):
        pixels = xp.astype(pixels, xp.float32)
    return -pixels


class Invert(Params):
    """Multiply the grey values by −1: black particles on white become white on black."""


@operation("process_particles", order=60, params=Invert, name="invert")
def invert_particles(particles: Particles, params: Invert, ctx: Context) -> Particles:  # noqa: ARG001
    """Multiply particle images by −1."""
    return particles.with_pixels(invert(particles.pixels))


@operation("process_map", order=90, params=Invert, name="invert")
def invert_map(map: Map, params: Invert, ctx: Context) -> Map:  # noqa: A002, ARG001
    """Multiply a map by −1."""
    return map.with_pixels(invert(map.pixels))
