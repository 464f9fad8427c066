"""Random numbers that are computed where they are used: a function of a key, an image's index and a pixel's index.

No state, no order: every part of a stack, every thread and every array backend gets the same numbers.
"""

from __future__ import annotations

import math

from array_api_compat import device as array_device

from streamprep.arrays import array_namespace
from streamprep.model import Array

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def random_bits(key: int, images: Array, count: int) -> Array:
    """64 random bits for each of the first ``count`` places of each image.

    Parameters
    ----------
    key
        64 bits, see `Context.random_key`.
    images
        Indices of the images, shape (n,), uint64.
    count
        How many per image.

    Returns
    -------
    Array
        Shape (n, count), uint64.

    Notes
    -----
    The generator SplitMix64 (Steele, Lea and Flood 2014), one stream per image, begun at a place that the same
    function makes of the key and the image's index.
    """
    xp = array_namespace(images)
    places = xp.arange(1, count + 1, dtype=xp.uint64, device=array_device(images))
    return bits_at(key, images[:, None], places[None, :])


def bits_at(key: int, images: Array, places: Array) -> Array:
    """64 random bits for pairs of an image's index and a place in it, from 1; uint64 arrays that broadcast together."""
    xp = array_namespace(images)
    golden, start = (xp.asarray(value, dtype=xp.uint64, device=array_device(images)) for value in (_GOLDEN, key))
    streams = _mixed(start + (images + 1) * golden)
    return _mixed(streams + places * golden)


def _mixed(bits: Array) -> Array:
    """The finaliser of SplitMix64; ``bits`` is overwritten."""
    xp = array_namespace(bits)
    for shift, factor in _MIX:
        bits ^= bits >> shift
        bits *= xp.asarray(factor, dtype=xp.uint64, device=array_device(bits))
    bits ^= bits >> 31
    return bits


def normal_at(key: int, images: Array, places: Array) -> Array:
    """Draws from N(0, 1), float32, for pairs of an image's index and a place in it, from 1 (Box and Muller 1958)."""
    xp = array_namespace(images)
    bits = bits_at(key, images, places)
    low = xp.astype(bits & 0xFFFFFFFF, xp.float64)
    high = xp.astype(bits >> 32, xp.float64)
    radius = xp.sqrt(-2 * xp.log((high + 1) / 2**32))
    return xp.astype(radius * xp.cos(low * (2 * math.pi / 2**32)), xp.float32)
