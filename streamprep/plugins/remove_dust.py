"""remove_dust: replace pixels far from the mean of their image, such as hot pixels and dirt on the detector."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from array_api_compat import device as array_device
from pydantic import Field

from streamprep import Context, Params, Particles, operation
from streamprep.arrays import array_namespace, owned, put
from streamprep.em.random import normal_at
from streamprep.model import Array

Fill = Literal["gaussian", "matched", "median"]

UNIT_STD = (0.5, 2.0)
"""Standard deviations that draws from N(0, 1) do not stand out from."""

CONSTANT_BELOW = 1e-6
"""An image whose deviation is smaller is constant, at whatever grey value: it is no sign of another scale."""

SAFE_STD = (1e-15, 1e15)
"""Where squares stay within float32; beyond, sums are made in float64 from the start."""

SLACK = 1e-12
"""Of the mean, what its own rounding may be: constant images are no dust."""

LEAST_LEFT = 1e-3
"""Of the sum of squares of an image: what must be left without the dust for the difference to be exact."""
WINDOW_PIXELS = 1 << 20
"""Neighbours looked at in one go."""


class RemoveDust(Params):
    """Replace pixels that are too far from the mean of their image."""

    threshold: float = Field(
        3.5,
        gt=0,
        description="Pixels farther from the mean than this many standard deviations of their image are dust. "
        "Higher for negative stain, whose signal is strong.",
    )
    fill: Fill = Field(
        "gaussian",
        description="gaussian: draws from N(0, 1), for normalised images. matched: draws from N(mean, std) of the "
        "image's other pixels. median: the median of the other pixels in the 5×5 neighbourhood, or in the next larger "
        "one that holds any.",
    )


class Cleaned(NamedTuple):
    """What `remove_dust` gives back."""

    pixels: Array
    """Shape (n, ny, nx), float32."""
    not_finite: Array
    """Shape (n,), bool: images that hold NaN or infinite values; left as they were."""
    all_dust: Array
    """Shape (n,), bool: images in which every pixel is too far from the mean; left as they were."""
    not_unit: Array
    """Shape (n,), bool: images whose std, with dust and without, is below 0.5 or above 2 and which are not constant.
    Of ``fill = "gaussian"``; all false else."""


def remove_dust(
    pixels: Array,
    *,
    threshold: float = 3.5,
    fill: Fill = "gaussian",
    key: int = 0,
    first_image: int = 0,
    in_place: bool = False,
) -> Cleaned:
    """Replace the pixels outside [mean − threshold · std, mean + threshold · std] of their own image.

    With the mean μ and the standard deviation σ of the image, dust is where

    $$|v - μ| > t σ$$

    Parameters
    ----------
    pixels
        Shape (n, ny, nx), real.
    threshold
        In standard deviations (ddof = 1) of the whole image, above 0.
    fill
        ``gaussian``: draws from N(0, 1). ``matched``: draws from N(mean, std) of the image's good pixels.
        ``median``: the median of the good pixels among the 5×5 around the pixel; where there is none, of the smallest
        odd window that holds one. Good are those that were not replaced, in the image as it came.
    key, first_image
        The draws for a pixel follow from ``key``, the index of its image (``first_image`` + place in ``pixels``) and
        its place in the image alone; see `streamprep.em.random`.
    in_place
        ``pixels`` may be overwritten.

    Notes
    -----
    Detection and ``median`` as in Xmipp 3, but for its neighbourhoods, which hold pixels that it replaced before. The
    limits are those of sums as exact as in float64. Constant images have no dust.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.zeros((1, 16, 16), dtype=np.float32)
    >>> image[0, 4, 4] = 1000
    >>> float(remove_dust(image, fill="median").pixels.max())
    0.0
    """
    xp = array_namespace(pixels)
    pixels = owned(pixels, in_place)
    n, ny, nx = (int(length) for length in pixels.shape)
    size = ny * nx
    mean, std = _moments(pixels)
    not_finite = ~xp.isfinite(std)
    with np.errstate(over="ignore", invalid="ignore"):
        reach = threshold * std + SLACK * xp.abs(mean)
        outside = pixels > _float32_within(mean + reach, -1)
        outside |= pixels < _float32_within(mean - reach, 1)

    (dust,) = xp.nonzero(xp.reshape(outside, (-1,)))
    bounds = xp.searchsorted(dust, xp.arange(n + 1, device=array_device(pixels)) * size)
    counts = bounds[1:] - bounds[:-1]
    all_dust = (counts == size) & (counts > 0)
    if bool(xp.any(all_dust)):
        dust = dust[~xp.take(all_dust, dust // size)]
        counts = xp.where(all_dust, xp.zeros_like(counts), counts)

    not_unit = xp.zeros_like(all_dust)
    if fill == "median":
        values = _median_around(pixels, outside, dust)
    else:
        image = dust // size
        values = normal_at(key, xp.astype(image + first_image, xp.uint64), xp.astype(dust % size + 1, xp.uint64))
    if fill == "matched":
        mean, std = _moments(pixels, dust, counts)
        values = xp.astype(xp.take(mean, image) + xp.take(std, image) * xp.astype(values, xp.float64), xp.float32)
    if fill == "gaussian":
        not_unit = _far_from_unit(std)
        if bool(xp.any(not_unit)):  # or is it only the dust?
            not_unit &= _far_from_unit(_std_without(pixels, mean, std, dust, counts))
    put(pixels, dust, values)
    return Cleaned(pixels, not_finite, all_dust, not_unit)


def _float32_within(limits: Array, towards: int) -> Array:
    """The float32 nearest to each limit and not beyond it: comparing with it is comparing with the limit."""
    xp = array_namespace(limits)
    nearest = xp.astype(limits, xp.float32)
    inward = xp.nextafter(nearest, xp.full_like(nearest, towards * float("inf")))
    beyond = (nearest - limits) * towards < 0
    return xp.where(beyond, inward, nearest)[:, None, None]


def _far_from_unit(std: Array) -> Array:
    least, most = UNIT_STD
    return ((std >= CONSTANT_BELOW) & (std < least)) | ((std > most) & (std < float("inf")))


def _moments(pixels: Array, left_out: Array | None = None, counts: Array | None = None) -> tuple[Array, Array]:
    """Mean and std (ddof = 1) of each image, float64, shapes (n,); NaN or infinite where a pixel is.

    Parameters
    ----------
    pixels
        Shape (n, ny, nx), float32.
    left_out, counts
        Flat indices of pixels that do not count, ascending, and how many there are per image: fewer than it has pixels.
    """
    xp = array_namespace(pixels)
    mean, std = _sums(pixels, left_out, counts)
    least, most = SAFE_STD
    unsafe = ~((std > least) & (std < most))
    if bool(xp.any(unsafe)):
        exact_mean, exact_std = _sums(xp.astype(pixels, xp.float64), left_out, counts)
        mean, std = xp.where(unsafe, exact_mean, mean), xp.where(unsafe, exact_std, std)
    return mean, std


def _std_without(pixels: Array, mean: Array, std: Array, dust: Array, counts: Array) -> Array:
    """As the std of `_moments` without the dust, from that of all pixels where this says enough."""
    xp = array_namespace(pixels)
    n, size = int(pixels.shape[0]), int(pixels.shape[1]) * int(pixels.shape[2])
    if n * int(dust.shape[0]) <= n * size // 16:
        image = dust // size
        apart = xp.astype(xp.take(xp.reshape(pixels, (-1,)), dust), xp.float64) - xp.take(mean, image)
        own = xp.astype(image[None, :] == xp.arange(n, device=array_device(pixels))[:, None], xp.float64)
        left = xp.astype(size - counts, xp.float64)
        of_all = std * std * max(size - 1, 1)
        squares = of_all - own @ (apart * apart) - (own @ apart) ** 2 / left
        if not bool(xp.any(squares < LEAST_LEFT * of_all)):
            return xp.sqrt(squares / xp.clip(left - 1, min=1))
    return _moments(pixels, dust, counts)[1]


def _sums(pixels: Array, left_out: Array | None, counts: Array | None) -> tuple[Array, Array]:
    """As `_moments`, rows summed in the images' own precision, once a number near their mean is subtracted."""
    xp = array_namespace(pixels)
    count: Array = int(pixels.shape[1]) * int(pixels.shape[2])
    degrees: Array = max(count - 1, 1)
    none = xp.asarray(0, dtype=pixels.dtype, device=array_device(pixels))
    if left_out is not None:
        pixels = pixels + none
        put(pixels, left_out, none)
        count = xp.astype(count - counts, xp.float64)
        degrees = count - xp.astype(count > 1, xp.float64)
    ones = xp.ones(pixels.shape[2], dtype=pixels.dtype, device=array_device(pixels))

    def total(rows: Array) -> Array:
        return xp.sum(rows, axis=1, dtype=xp.float64)

    with np.errstate(over="ignore", invalid="ignore"):
        if left_out is None:
            pivot = xp.mean(pixels[:, :: max(1, int(pixels.shape[1]) // 32), :], axis=(1, 2))
        else:
            pivot = xp.astype(total(xp.vecdot(pixels, ones)) / count, pixels.dtype)
        rest = pixels - pivot[:, None, None]
        if left_out is not None:
            put(rest, left_out, none)
        first, second = total(xp.vecdot(rest, ones)), total(xp.vecdot(rest, rest))
        offset = first / count
        return xp.astype(pivot, xp.float64) + offset, xp.sqrt(xp.abs(second - first * offset) / degrees)


def _median_around(pixels: Array, outside: Array, dust: Array) -> Array:
    """Medians of the good pixels around each of some bad ones, flat indices ascending; shape (k,), float32."""
    xp = array_namespace(pixels)
    medians = xp.zeros(dust.shape, dtype=xp.float32, device=array_device(pixels))
    pending = xp.arange(dust.shape[0], device=array_device(pixels))
    half = 2
    while pending.shape[0]:
        y, x = np.mgrid[-half : half + 1, -half : half + 1].reshape(2, -1)
        if half > 2:  # all within the ring are known to be bad
            ring = np.maximum(abs(y), abs(x)) == half
            y, x = y[ring], x[ring]
        dy, dx = (xp.asarray(steps, device=array_device(pixels)) for steps in (y, x))
        step = max(1, WINDOW_PIXELS // len(y))
        missed = []
        for start in range(0, pending.shape[0], step):
            rows = pending[start : min(start + step, pending.shape[0])]
            found, held = _window_medians(pixels, outside, xp.take(dust, rows), dy, dx)
            put(medians, rows[held], found[held])
            missed.append(rows[~held])
        pending = xp.concat(missed)
        half += 1
    return medians


def _window_medians(pixels: Array, outside: Array, at: Array, dy: Array, dx: Array) -> tuple[Array, Array]:
    """Medians of the good pixels at some steps from bad ones, and whether there are any; shapes (k,)."""
    xp = array_namespace(pixels)
    ny, nx = (int(length) for length in pixels.shape[1:])
    place = at % (ny * nx)
    y, x = (place // nx)[:, None] + dy, (place % nx)[:, None] + dx
    inside = (y >= 0) & (y < ny) & (x >= 0) & (x < nx)
    here = (at - place)[:, None] + y * nx + x
    here = xp.where(inside, here, xp.broadcast_to(at[:, None], here.shape))  # itself: bad, so it does not count

    def gathered(array: Array) -> Array:
        return xp.reshape(xp.take(xp.reshape(array, (-1,)), xp.reshape(here, (-1,))), here.shape)

    good = ~gathered(outside)
    grey = gathered(pixels)
    grey = xp.sort(xp.where(good, grey, xp.full_like(grey, float("inf"))), axis=-1)
    count = xp.sum(xp.astype(good, xp.int64), axis=-1)
    middle = xp.stack([xp.clip(count - 1, min=0) // 2, xp.clip(count // 2, max=int(dy.shape[0]) - 1)], axis=-1)
    two = xp.astype(xp.take_along_axis(grey, middle, axis=-1), xp.float64)
    return xp.astype(xp.mean(two, axis=-1), xp.float32), count > 0


@operation("process_particles", order=10, params=RemoveDust, name="remove_dust", per_image=True)
def remove_dust_particles(particles: Particles, params: RemoveDust, ctx: Context) -> Particles:
    """Replace pixels far from the mean of their particle image."""
    done = remove_dust(
        particles.pixels,
        threshold=params.threshold,
        fill=params.fill,
        key=ctx.random_key(),
        first_image=ctx.first_image,
        in_place=True,
    )
    ctx.flag(done.not_finite, "hold values that are not finite (NaN or infinite); no dust was removed from them")
    ctx.flag(done.all_dust, "have no pixel within the threshold of their mean; they were left as they are")
    if params.fill == "gaussian" and bool(array_namespace(done.not_unit).any(done.not_unit)):
        ctx.remark(
            'remove_dust: fill = "gaussian" draws from N(0, 1), and there are images whose std is below 0.5 or above '
            '2; use fill = "matched" for images that are not normalised yet'
        )
    return particles.with_pixels(done.pixels)
