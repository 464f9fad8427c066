"""invert: turn the contrast over."""

from __future__ import annotations

from streamprep import Context, Map, Params, Particles, operation
from streamprep.arrays import owned
from streamprep.model import Array


def invert(pixels: Array, *, in_place: bool = False) -> Array:
    """Multiply by −1.

    $$v' = -v$$

    Parameters
    ----------
    pixels
        Any shape, any real dtype.
    in_place
        ``pixels`` may be overwritten.

    Returns
    -------
    Array
        The same shape, float32.

    Examples
    --------
    >>> import numpy as np
    >>> invert(np.array([1.0, -2.0]))
    array([-1.,  2.], dtype=float32)
    """
    pixels = owned(pixels, in_place)
    pixels *= -1
    return pixels


class Invert(Params):
    """Multiply the grey values by −1: black particles on white become white on black."""


@operation("process_particles", order=60, params=Invert, name="invert", per_image=True)
def invert_particles(particles: Particles, params: Invert, ctx: Context) -> Particles:  # noqa: ARG001
    """Multiply particle images by −1."""
    return particles.with_pixels(invert(particles.pixels, in_place=True))


@operation("process_map", order=90, params=Invert, name="invert")
def invert_map(map: Map, params: Invert, ctx: Context) -> Map:  # noqa: A002, ARG001
    """Multiply a map by −1."""
    return map.with_pixels(invert(map.pixels))
