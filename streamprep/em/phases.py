"""Random phases for the Fourier transforms of images and maps, of any number of dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from array_api_compat import device as array_device

from streamprep.arrays import array_namespace, cached_filter, look_up, sixteen_bits
from streamprep.em.random import random_bits
from streamprep.model import Array

_STEPS = 1 << 16
"""Phases are multiples of 2π/65536: finer than the float32 that they are multiplied with can show."""

_HALF_TURN = _STEPS // 2

_TERMS_AT_ONCE = 1 << 22


def randomize_spectrum(spectrum: Array, lengths: Sequence[int], cutoff: float, key: int, images: Array) -> None:
    """Give the terms of Fourier transforms beyond a frequency random phases, in place; amplitudes stay.

    Parameters
    ----------
    spectrum
        Transforms of real images (``rfft2``) or maps, with an axis for their number before: shape (n, …, ny, nx // 2 +
        1), complex64, C-ordered.
    lengths
        Sides of the images or maps, (…, ny, nx).
    cutoff
        Terms with |f| ≤ cutoff keep their value, bit for bit [cycles/pixel].
    key
        64 bits, see `Context.random_key`.
    images
        Indices of the images, shape (n,), uint64: what is drawn for an image depends on ``key`` and its index alone.

    Notes
    -----
    Each phase is uniform over 65536 steps of the circle. The transform of a real image has S(−f) = conj S(f): of each
    pair of terms that both stand in the half that is kept, one phase is the other's opposite, and terms that are their
    own opposite change by 0 or π, which keeps them real where they were.
    """
    xp = array_namespace(spectrum)
    nx = lengths[-1]
    shape = tuple(int(side) for side in spectrum.shape)
    terms = math.prod(shape[1:])
    bits = sixteen_bits(random_bits(key, images, -(-terms // 4)))[:, :terms]
    phases = xp.reshape(bits & _beyond(tuple(lengths), cutoff, like=spectrum), shape)
    ranks = _ranks(shape[1:-1], like=spectrum)
    axes = tuple(range(1, len(shape) - 1))
    for column in (0, shape[-1] - 1) if nx % 2 == 0 else (0,):
        here = phases[..., column] + 0
        opposite = xp.roll(xp.flip(here, axis=axes), (1,) * len(axes), axis=axes)  # the index −k of an axis
        opposite = xp.where(ranks > 0, ~opposite + 1, here & _HALF_TURN)
        phases[..., column] = xp.where(ranks < 0, here, opposite)
    step = max(1, _TERMS_AT_ONCE // math.prod(shape[2:]))
    for row in range(0, shape[1], step):  # the phasors of a whole map would take as much memory as its spectrum
        here = (slice(None), slice(row, min(row + step, shape[1])), ...)
        spectrum[here] *= look_up(_circle(like=spectrum), phases[here])


@cached_filter
def _circle() -> npt.NDArray[np.complex64]:
    """All unit phasors; those of opposite phases are conjugates, the first is 1, that of half a turn −1, exactly."""
    half = np.exp(2j * np.pi * np.arange(_HALF_TURN) / _STEPS)
    return np.concatenate([half, [-1], np.conj(half[:0:-1])]).astype(np.complex64)


@cached_filter
def _beyond(lengths: tuple[int, ...], cutoff: float) -> npt.NDArray[np.uint16]:
    """All bits set where |f| > cutoff, none elsewhere; the half spectrum, flat."""
    f2 = np.zeros(())
    for axis, length in enumerate(lengths):
        last = axis == len(lengths) - 1
        f = np.fft.rfftfreq(length) if last else np.fft.fftfreq(length)
        f2 = f2[..., None] + f * f
    # terms on the circle itself count as inside, however their squares were rounded
    return np.where(f2 > cutoff * cutoff * (1 + 1e-12), np.uint16(_STEPS - 1), np.uint16(0)).ravel()


@cached_filter
def _ranks(shape: tuple[int, ...]) -> npt.NDArray[np.int8]:
    """Of a spectrum's first or last column: −1 for the first of two opposite terms, 1 for the other, 0 for its own."""
    places = np.arange(math.prod(shape)).reshape(shape)
    axes = tuple(range(len(shape)))
    opposite = np.roll(np.flip(places, axes), (1,) * len(shape), axes)
    ranks: npt.NDArray[np.int8] = np.sign(places - opposite).astype(np.int8)
    return ranks


def image_indices(first: int, count: int, like: Array) -> Array:
    """The indices of successive images, uint64, on the device of ``like``."""
    xp = array_namespace(like)
    return xp.arange(first, first + count, dtype=xp.uint64, device=array_device(like))
