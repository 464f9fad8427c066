"""Centring of particle images: the shift, and the in-plane angle, that make an image agree with its own mirror images.

Shifts are in pixels as (x, y): the content moves by +shift. Angles are in degrees, from x towards y in the array's own
axes, about the origin pixel (ny // 2, nx // 2), and are applied after the shift. Images need not be square.

An image whose symmetry centre lies at d from the origin pixel, p ↦ f(p − d), agrees best with its xy mirror image about
the origin pixel when that is moved by 2·d, and with its x (y) mirror image when that is moved by 2·d along x (y) alone.
All three correlations follow from one Fourier transform F, since F of a mirror image is F with its indices reversed.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from array_api_compat import device as array_device

from streamprep.arrays import array_namespace, cached_filter, irfft2, ndimage, rfft2
from streamprep.em.background import background_mask
from streamprep.model import Array, FloatArray

Method = Literal["mirror", "mass"]

GRID = 64
"""Shifts are searched on a copy of the image with this many rows and columns, cut out of its Fourier transform."""
FALL_OFF = 10.0
"""Periods per box at which the correlations' low-pass, a Gaussian, is 1/e: finer detail is mostly noise."""
BACKGROUND = 0.9
"""Background is what is farther from the origin pixel than this part of the inscribed circle's radius."""
ITERATIONS = 30
"""At most; most images are done after less than ten, smooth ones that fill the circle come nearer by a quarter each."""
STEP_PX = 1e-3
"""An image whose last step was shorter is done."""
REACH = 4
"""How far from zero, in pixels of the grid, peaks are searched once a shift was found."""
SHARPNESS = 16
"""Power of the peaks' ratio with which x and y mirror images count beside the xy mirror image."""
ANGLES = 256
"""Points of each ring that the in-plane angle is found on."""
ALIKE = 0.8
"""Two angles are both right where their correlations differ by less than this ratio."""
FLAT = 1e-7
"""An image without a wave of this amplitude, in units of its mean, is constant to the precision of float32."""


class Centred(NamedTuple):
    """What `center` returns; n images."""

    pixels: Array
    """Shape (n, ny, nx), float32."""
    shift_px: Array
    """Shape (n, 2), float64: by how much (x, y) the content was moved; 0 where an image was left alone."""
    angle_deg: Array
    """Shape (n,), float64: by how much it was turned then, from x towards y."""
    broken: Array
    """Shape (n,), bool: holds values that are not finite; left alone."""
    empty: Array
    """Shape (n,), bool: constant, or without anything above the background; left alone."""
    too_far: Array
    """Shape (n,), bool: needs a larger shift than allowed; left alone."""


@np.errstate(invalid="ignore", over="ignore")  # images that are not finite are told apart by it
def center(
    pixels: Array, *, method: Method = "mirror", rotate: bool = False, limit_shift: float | None = None
) -> Centred:
    r"""Move the centre of each image of a stack to its origin pixel (ny // 2, nx // 2).

    The centre t is half the place where the image agrees best with its mirror image, or the centre of mass of what is
    above the grey value g; the image is moved by -t:

    $$\text{mirror:} \quad t = s / 2 \quad \text{where} \quad ∑_p v(p) v(s - p) \quad \text{is greatest}$$

    $$\text{mass:} \quad t = ∑_p p w(p) ~ / ~ ∑_p w(p), \quad w = \max(v - g, 0)$$

    Parameters
    ----------
    pixels
        Shape (n, ny, nx), real; left as they are.
    method
        ``mirror``: the symmetry centre. The image, masked to its inscribed circle, is correlated with its mirror images
        in x, y and both; half the place of the highest correlation is a step, and steps follow until they are below
        0.001 px. ``mass``: the centre of mass of what is above mean + std of the background (half the side from the
        origin pixel or farther).
    rotate
        Also turn each image so that it agrees best with its x mirror image: the highest correlation over angles of the
        rings from a fifth to half of the columns.
    limit_shift
        Largest shift along x and y, as a fraction of columns and rows; None is half the box.

    Notes
    -----
    The original pixels are resampled once, with a cubic B-spline and periodic borders: what leaves the box on one side
    comes in on the other, so that noise stays noise.

    Examples
    --------
    >>> image = np.zeros((1, 32, 32), dtype=np.float32)
    >>> image[0, 12:17, 19:24] = 1  # its middle is (x, y) = (21, 14)
    >>> done = center(image)
    >>> done.shift_px.round(3).tolist()
    [[-5.0, 2.0]]
    >>> bool(np.allclose(done.pixels[0, 14:19, 14:19], 1, atol=1e-4))
    True
    """
    xp = array_namespace(pixels)
    n, ny, nx = (int(length) for length in pixels.shape)
    place = array_device(pixels)
    original = xp.astype(pixels, xp.float32, copy=False)
    if not n:
        none, nothing = xp.zeros(0, dtype=xp.bool, device=place), xp.zeros((0, 2), dtype=xp.float64, device=place)
        return Centred(original, nothing, nothing[:, 0], none, none, none)
    pivot = xp.mean(original, axis=(1, 2))
    moved = original - xp.where(xp.isfinite(pivot), pivot, xp.zeros_like(pivot))[:, None, None]
    spectrum = rfft2(moved)
    coarse, size = _coarse(spectrum, ny, nx)
    broken = ~(xp.isfinite(pivot) & xp.isfinite(size))
    empty = ~broken & ~(size > FLAT * xp.abs(pivot))
    good = ~(broken | empty)
    scale = xp.where(good, size, xp.ones_like(size))[:, None, None]
    coarse = xp.where(good[:, None, None], coarse, xp.zeros_like(coarse)) / scale
    if method == "mirror":
        shift = _mirror_shift(coarse, (ny, nx), good)
    else:
        shift, found = mass_shift(xp.where(good[:, None, None], moved, xp.zeros_like(moved)))
        empty = empty | (good & ~found)
    box = xp.asarray([nx, ny], dtype=xp.float64, device=place)
    too_far = xp.any(xp.abs(shift) > (0.5 if limit_shift is None else limit_shift) * box, axis=1)
    left = broken | empty | too_far
    shift = xp.where(left[:, None], xp.zeros_like(shift), shift)
    angle = xp.zeros(n, dtype=xp.float64, device=place)
    if rotate:
        angle = xp.where(left, angle, _mirror_angle(coarse * _ramp(shift, (ny, nx)), (ny, nx)))
        done = _moved_and_turned(moved, shift, angle)
    else:
        done = irfft2(_with_shift(spectrum, shift, nx), nx, moved)
    done += pivot[:, None, None]
    if bool(xp.any(left)):
        done = xp.where(left[:, None, None], original, done)
    return Centred(done, shift, angle, broken, empty, too_far)


def shift_images(images: Array, shift_px: Array) -> Array:
    """Move images by parts of pixels: cubic B-spline through the pixels, periodic borders.

    Parameters
    ----------
    images
        Shape (n, ny, nx), float32.
    shift_px
        Shape (n, 2), float64: x, y; the content moves by +shift. Whole pixels are exact but for rounding.

    Notes
    -----
    On a periodic box the spline is a filter: the transform of its four taps at the shift's fraction, divided by that of
    its taps (1, 4, 1) / 6 on the pixels (Unser, Aldroubi and Eden 1991).

    Examples
    --------
    >>> image = np.zeros((1, 4, 4), dtype=np.float32)
    >>> image[0, 1, 3] = 1
    >>> moved = shift_images(image, np.array([[1.0, 2.0]]))
    >>> (np.abs(moved[0]).round(5) == 1).nonzero()
    (array([3]), array([0]))
    """
    nx = int(images.shape[2])
    return irfft2(_with_shift(rfft2(images), shift_px, nx), nx)


def _with_shift(spectrum: Array, shift_px: Array, nx: int) -> Array:
    """The transform of images of ``nx`` columns, overwritten with that of the moved images."""
    rows, columns = int(spectrum.shape[1]), int(spectrum.shape[2])
    spectrum *= _spline_response(shift_px[:, 1], rows, rows)[:, :, None]
    spectrum *= _spline_response(shift_px[:, 0], nx, columns)[:, None, :]
    return spectrum


def _spline_response(shift: Array, length: int, count: int) -> Array:
    """The filter of `shift_images` along one axis of ``length`` pixels: shape (n, count), complex64."""
    xp = array_namespace(shift)
    wave = xp.arange(count, dtype=xp.float64, device=array_device(shift)) * (2 * math.pi / length)
    whole = xp.floor(shift)
    f = (shift - whole)[:, None]
    taps = ((1 - f) ** 3 / 6, 2 / 3 - f**2 + f**3 / 2, 2 / 3 - (1 - f) ** 2 + (1 - f) ** 3 / 2, f**3 / 6)
    response = sum(tap * xp.exp(-1j * ((m + whole)[:, None] * wave[None, :])) for m, tap in enumerate(taps, start=-1))
    return xp.astype(response * (6 / (4 + 2 * xp.cos(wave))), xp.complex64)


# --- the symmetry centre ---------------------------------------------------------------------------------------------


def mirror_shift(images: Array) -> Array:
    """The shift of each image that brings its symmetry centre to the origin pixel.

    Parameters
    ----------
    images
        Shape (n, ny, nx), float32, finite. Dark or bright particles.

    Returns
    -------
    Array
        Shape (n, 2), float64: x, y [px]; 0 for a constant image.

    Notes
    -----
    Up to 30 iterations, mostly less than ten. The image, moved by the shift so far, less the mean of its background,
    and masked to its inscribed circle, is correlated with its mirror images; half the place of the highest peak is the
    next step. The first iteration takes the xy mirror image alone, in a correlation that does not wrap; later ones
    search near zero and take the mean of the three mirror images.

    Xmipp 3 (``xmipp_transform_center_image``) takes the plain mean. Here the x (y) mirror image counts for x (y) only,
    since its correlation is even in y (x) whatever the shift. It counts by the 16th power of the ratio of its peak to
    that of the xy mirror image: in full for particles with a mirror line, hardly for others, of which its peak may lie
    beside the centre. Correlations have a Gaussian low-pass: white noise hides broad peaks without one.
    """
    xp = array_namespace(images)
    ny, nx = int(images.shape[1]), int(images.shape[2])
    coarse, size = _coarse(rfft2(images - xp.mean(images, axis=(1, 2), keepdims=True)), ny, nx)
    good = size > 0
    return _mirror_shift(coarse / xp.where(good, size, xp.ones_like(size))[:, None, None], (ny, nx), good)


def _coarse(spectrum: Array, ny: int, nx: int) -> tuple[Array, Array]:
    """The lowest frequencies of images, as of images of GRID² pixels with their origin at (0, 0); and their largest.

    Shapes (n, GRID, GRID // 2 + 1) and (n,). The mean is left out, and what is at Nyquist.
    """
    xp = array_namespace(spectrum)
    n = int(spectrum.shape[0])
    ky, kx = (min((length - 1) // 2, GRID // 2 - 1) for length in (ny, nx))
    shape = (n, GRID, GRID // 2 + 1)
    coarse = xp.zeros(shape, dtype=xp.complex64, device=array_device(spectrum))
    coarse[:, : ky + 1, : kx + 1] = spectrum[:, : ky + 1, : kx + 1]
    coarse[:, GRID - ky :, : kx + 1] = spectrum[:, ny - ky :, : kx + 1]
    coarse[:, 0, 0] = 0
    size = xp.max(xp.abs(coarse), axis=(1, 2)) / (ny * nx)
    return coarse * _to_zero(ny, nx, like=spectrum), size


def _waves() -> tuple[FloatArray, FloatArray]:
    """Periods per box of the grid's rows, shape (GRID, 1), and columns, shape (1, GRID // 2 + 1)."""
    rows = np.fft.fftfreq(GRID, 1 / GRID).astype(np.float64)
    columns = np.arange(GRID // 2 + 1, dtype=np.float64)
    return rows[:, None], columns[None, :]


@cached_filter
def _to_zero(ny: int, nx: int) -> npt.NDArray[np.complex64]:
    """Moves the origin pixel to (0, 0)."""
    rows, columns = _waves()
    turns = rows * (ny // 2 / ny) + columns * (nx // 2 / nx)
    return np.asarray(np.exp(2j * np.pi * turns), dtype=np.complex64)


@cached_filter
def _circle(ny: int, nx: int) -> npt.NDArray[np.float32]:
    """On the grid, shape (2, GRID, GRID): weights of the background's mean; 1 inside the inscribed circle."""
    step = np.minimum(np.arange(GRID), GRID - np.arange(GRID)) / GRID
    squares = ((step[:, None] * ny) ** 2 + (step[None, :] * nx) ** 2) / (min(ny, nx) / 2) ** 2
    outer = squares >= BACKGROUND**2
    return np.stack([outer / outer.sum(), squares < 1]).astype(np.float32)


@cached_filter
def _low_pass(refine: int) -> npt.NDArray[np.float32]:
    """The correlations' Gaussian on a grid ``refine`` times as large; columns with fx > 0 stand for −fx, too."""
    size = GRID * refine
    rows, columns = np.fft.fftfreq(size, 1 / GRID)[:, None], np.arange(size // 2 + 1)[None, :] / refine
    weight = np.exp(-(rows**2 + columns**2) / FALL_OFF**2)
    weight[:, 1:] *= 1 if refine > 1 else 2
    return weight.astype(np.float32)


@cached_filter
def _near_zero() -> npt.NDArray[np.complex64]:
    """Inverse transform at −REACH − 1 … REACH + 1: shape (2·REACH + 3, GRID); rows are shifts, columns frequencies."""
    shifts = np.arange(-REACH - 1, REACH + 2)
    turns = shifts[:, None] / GRID * np.fft.fftfreq(GRID, 1 / GRID)[None, :]
    return np.asarray(np.exp(2j * np.pi * turns), dtype=np.complex64)


def _ramp(shift: Array, box: tuple[int, int]) -> Array:
    """Multiplied with `_coarse`, moves the content by shifts of shape (n, 2) [px]; complex64."""
    xp = array_namespace(shift)
    place = array_device(shift)
    rows, columns = (xp.asarray(wave, device=place) for wave in _waves())
    ny, nx = box
    along_y = xp.exp((-2j * math.pi / ny) * (shift[:, 1][:, None, None] * rows))
    along_x = xp.exp((-2j * math.pi / nx) * (shift[:, 0][:, None, None] * columns))
    return xp.astype(along_y, xp.complex64) * xp.astype(along_x, xp.complex64)


def _mirror_shift(coarse: Array, box: tuple[int, int], good: Array) -> Array:
    """`mirror_shift` of what `_coarse` returns; images that are not ``good`` get 0."""
    xp = array_namespace(coarse)
    ny, nx = box
    place = array_device(coarse)
    half_step = xp.asarray([nx / GRID / 2, ny / GRID / 2], dtype=xp.float64, device=place)
    circle = _circle(ny, nx, like=coarse)
    shift = xp.zeros((int(coarse.shape[0]), 2), dtype=xp.float64, device=place)
    going = good
    for iteration in range(ITERATIONS):
        if not bool(xp.any(going)):
            break
        images = irfft2(coarse * _ramp(shift, box) if iteration else coarse + 0, GRID)
        images -= xp.sum(images * circle[0, ...], axis=(1, 2), keepdims=True)
        images *= circle[1, ...]
        peak = _peaks(rfft2(images)) if iteration else _first_peak(images)
        step = xp.where(going[:, None], peak * half_step, xp.zeros_like(shift))
        shift -= step
        if iteration:
            going = going & (xp.max(xp.abs(step), axis=1) >= STEP_PX)
    return shift


def _first_peak(images: Array) -> Array:
    """Place (x, y) of the highest correlation with the xy mirror image, whole pixels of the grid; without wrapping."""
    xp = array_namespace(images)
    n, half, size = int(images.shape[0]), GRID // 2, 2 * GRID
    padded = xp.zeros((n, size, size), dtype=images.dtype, device=array_device(images))
    for here, there in ((slice(half), slice(half)), (slice(half, None), slice(size - half, None))):
        padded[:, there, :half] = images[:, here, :half]
        padded[:, there, size - half :] = images[:, here, half:]
    spectrum = rfft2(padded)
    spectrum *= spectrum
    spectrum *= _low_pass(2, like=images)
    best = xp.argmax(xp.reshape(irfft2(spectrum, size), (n, size * size)), axis=1)
    place = xp.stack([best % size, best // size], axis=1)
    return xp.astype(xp.where(place >= GRID, place - size, place), xp.float64)


def _peaks(spectrum: Array) -> Array:
    """Place (x, y) near zero of the highest correlation: mean of the mirror images, in parts of the grid's pixels."""
    xp = array_namespace(spectrum)
    near = _near_zero(like=spectrum)
    near_x = xp.matrix_transpose(near[:, : GRID // 2 + 1])
    weighted = spectrum * _low_pass(1, like=spectrum)
    turned = xp.concat([spectrum[:, :1, :], xp.flip(spectrum[:, 1:, :], axis=1)], axis=1)  # ky reversed
    of_both = xp.real(near @ ((weighted * spectrum) @ near_x))
    of_x = xp.real(xp.sum(weighted * turned, axis=1) @ near_x)
    of_y = xp.real(xp.sum(weighted * xp.conj(turned), axis=2) @ xp.matrix_transpose(near))
    x, y, height = _peak_of_plane(of_both)
    mean = []
    for one, line in ((x, of_x), (y, of_y)):
        other, its_height = _peak_of_line(line)
        ratio = its_height / xp.where(height > 0, height, xp.ones_like(height))
        weight = xp.clip(ratio, 0, 1) ** SHARPNESS
        mean.append((one + weight * other) / (1 + weight))
    return xp.astype(xp.stack(mean, axis=1), xp.float64)


def _peak_of_plane(values: Array) -> tuple[Array, Array, Array]:
    """x, y and height of the highest of values around zero: shape (n, 2·REACH + 3)² to (n,) each; 0 without any."""
    xp = array_namespace(values)
    inner = values[:, 1:-1, 1:-1]
    n, side = int(values.shape[0]), 2 * REACH + 1
    best = xp.argmax(xp.reshape(inner, (n, side * side)), axis=1)
    index = xp.arange(side * side, dtype=best.dtype, device=array_device(values))
    chosen = xp.reshape(xp.astype(index[None, :] == best[:, None], values.dtype), (n, side, side))

    def there(part: Array) -> Array:
        return xp.sum(part * chosen, axis=(1, 2))

    height = there(inner)
    x = xp.astype(best % side, values.dtype) + _vertex(there(values[:, 1:-1, :-2]), height, there(values[:, 1:-1, 2:]))
    y = xp.astype(best // side, values.dtype) + _vertex(there(values[:, :-2, 1:-1]), height, there(values[:, 2:, 1:-1]))
    none = xp.zeros_like(height)
    return xp.where(height > 0, x - REACH, none), xp.where(height > 0, y - REACH, none), height


def _peak_of_line(values: Array) -> tuple[Array, Array]:
    """Place and height of the highest of values around zero, of shape (n, 2·REACH + 3); height 0 at the edge."""
    xp = array_namespace(values)
    inner = values[:, 1:-1]
    best = xp.argmax(inner, axis=1)
    index = xp.arange(2 * REACH + 1, dtype=best.dtype, device=array_device(values))
    chosen = xp.astype(index[None, :] == best[:, None], values.dtype)
    before, height, after = (xp.sum(part * chosen, axis=1) for part in (values[:, :-2], inner, values[:, 2:]))
    place = xp.astype(best, values.dtype) - REACH + _vertex(before, height, after)
    inside = (best > 0) & (best < 2 * REACH)
    return place, xp.where(inside, height, xp.zeros_like(height))


def _vertex(before: Array, here: Array, after: Array) -> Array:
    """Where between −½ and ½ the parabola through three values is highest; 0 where it is not bent down."""
    xp = array_namespace(here)
    bend = before - 2 * here + after
    down = bend < 0
    return xp.where(down, xp.clip((before - after) / xp.where(down, 2 * bend, xp.ones_like(bend)), -0.5, 0.5), 0 * here)


# --- the centre of mass ----------------------------------------------------------------------------------------------


def mass_shift(images: Array) -> tuple[Array, Array]:
    """The shift of each image that brings the centre of mass of its bright part to the origin pixel.

    Parameters
    ----------
    images
        Shape (n, ny, nx), float32, finite, of a mean near zero; particles are bright.

    Returns
    -------
    shift_px
        Shape (n, 2), float64: x, y.
    found
        Shape (n,), bool: images with anything above mean + std of their background, the pixels at half the (smaller)
        side from the origin pixel or farther. The mass is what is above.
    """
    xp = array_namespace(images)
    ny, nx = int(images.shape[1]), int(images.shape[2])
    outside, count = _outside(ny, nx, like=images), _count_outside(ny, nx)

    def total(rows: Array) -> Array:
        return xp.sum(rows, axis=1, dtype=xp.float64)

    mean = total(xp.vecdot(images, outside)) / count
    off = (images - xp.astype(mean, xp.float32)[:, None, None]) * outside
    threshold = mean + xp.sqrt(total(xp.vecdot(off, off)) / max(count - 1, 1))
    mass = images - xp.astype(threshold, xp.float32)[:, None, None]
    mass = xp.where(mass > 0, mass, xp.zeros_like(mass))
    place = array_device(images)
    x = xp.arange(nx, dtype=xp.float32, device=place) - nx // 2
    y = xp.arange(ny, dtype=xp.float64, device=place) - ny // 2
    rows = xp.astype(xp.sum(mass, axis=2), xp.float64)
    all_of_it = xp.sum(rows, axis=1)
    found = all_of_it > 0
    divisor = xp.where(found, all_of_it, xp.ones_like(all_of_it))
    return -xp.stack([total(mass @ x) / divisor, xp.sum(rows * y, axis=1) / divisor], axis=1), found


@cache
def _count_outside(ny: int, nx: int) -> int:
    return max(int(background_mask(ny, nx, min(ny, nx) // 2).sum()), 1)


@cached_filter
def _outside(ny: int, nx: int) -> npt.NDArray[np.float32]:
    return background_mask(ny, nx, min(ny, nx) // 2).astype(np.float32)


# --- the in-plane angle ----------------------------------------------------------------------------------------------


def mirror_angle(images: Array) -> Array:
    """The angle by which to turn each centred image so that it agrees best with its x mirror image.

    Parameters
    ----------
    images
        Shape (n, ny, nx), float32, finite, centred.

    Returns
    -------
    Array
        Shape (n,), float64: degrees from x towards y, above −90 and up to 90: half a turn agrees as well.

    Notes
    -----
    On rings from a fifth to half of the columns, by the Fourier transforms of the rings, as in Xmipp 3: the angle α
    makes P(θ − α) and P(π − θ − α) alike, and the correlation of P(θ) with P(ψ − θ) has the transform P̂². An image that
    is its own xy mirror image agrees with its x mirror image at two angles a quarter turn apart: of these the one that
    brings the long axis of bright density to y, as Xmipp's iterations do.
    """
    ny, nx = int(images.shape[1]), int(images.shape[2])
    return _mirror_angle(_coarse(rfft2(images), ny, nx)[0], (ny, nx))


@cached_filter
def _rings(ny: int, nx: int) -> FloatArray:
    """Radii [px], then y and x of the rings' points in pixels of the refined grid: shape (3, rings, ANGLES)."""
    outer = min(ny, nx) / 2
    radii = np.linspace(min(nx / 5, outer), outer, GRID // 3, endpoint=False)[:, None]
    theta = np.arange(ANGLES) * (2 * np.pi / ANGLES)
    y, x = radii * np.sin(theta) * (2 * GRID / ny), radii * np.cos(theta) * (2 * GRID / nx)
    return np.stack([radii + 0 * theta, y, x])


def _mirror_angle(coarse: Array, box: tuple[int, int]) -> Array:
    xp = array_namespace(coarse)
    n = int(coarse.shape[0])
    place = array_device(coarse)
    smooth = coarse * xp.sqrt(_low_pass(2, like=coarse)[::2, ::2])
    half = GRID // 2
    fine = xp.zeros((n, 2 * GRID, GRID + 1), dtype=xp.complex64, device=place)
    fine[:, :half, :half] = smooth[:, :half, :half]
    fine[:, 2 * GRID - half :, :half] = smooth[:, half:, :half]
    rings = _rings(*box, like=coarse)
    where = xp.broadcast_to(rings[None, 1:, ...], (n, *rings[1:, ...].shape))
    which = xp.astype(xp.arange(n, device=place), xp.float64)[:, None, None] + xp.zeros_like(where[:, 0, ...])
    at = xp.stack([which, where[:, 0, ...], where[:, 1, ...]])
    library = ndimage(coarse)
    polar = xp.asarray(library.map_coordinates(irfft2(fine, 2 * GRID), at, order=1, mode="grid-wrap"), device=place)
    waves = xp.fft.rfft(xp.astype(polar, xp.float64), axis=-1)
    both = xp.sum(waves * waves * xp.astype(rings[0, :, :1], waves.dtype), axis=1)
    line = xp.fft.irfft(both, n=ANGLES, axis=-1)
    best = xp.argmax(line, axis=1)
    index = xp.arange(ANGLES, dtype=best.dtype, device=place)[None, :]
    near = [xp.sum(xp.where(index == ((best + off) % ANGLES)[:, None], line, 0 * line), axis=1) for off in (-1, 0, 1)]
    psi = (xp.astype(best, xp.float64) + _vertex(near[0], near[1], near[2])) * (360 / ANGLES)
    angle = (180 - psi) / 2
    opposite = xp.sum(xp.where(index == ((best + ANGLES // 2) % ANGLES)[:, None], line, 0 * line), axis=1)
    axis = xp.sum(waves[:, :, 2] * xp.astype(rings[0, :, 0], waves.dtype), axis=1)
    along_x = xp.real(axis * xp.exp(xp.astype(angle, waves.dtype) * (-2j * math.pi / 180))) > 0
    angle = xp.where((opposite > ALIKE * near[1]) & along_x, angle - 90, angle)
    return angle - 180 * xp.ceil((angle - 90) / 180)


def _moved_and_turned(images: Array, shift_px: Array, angle_deg: Array) -> Array:
    """Each image moved by its shift, then turned about the origin pixel: cubic B-spline, periodic borders, once."""
    xp = array_namespace(images)
    ny, nx = int(images.shape[1]), int(images.shape[2])
    library, place = ndimage(images), array_device(images)
    done = xp.empty_like(images)
    for image in range(int(images.shape[0])):
        angle = math.radians(float(angle_deg[image]))
        sine, cosine = math.sin(angle), math.cos(angle)
        back = np.array([[cosine, -sine], [sine, cosine]])  # of (y, x): the inverse of the turn
        origin = np.array([ny // 2, nx // 2], dtype=np.float64)
        moved = np.array([float(shift_px[image, 1]), float(shift_px[image, 0])])
        turned = library.affine_transform(
            images[image, ...], xp.asarray(back, device=place), offset=tuple(origin - back @ origin - moved), order=3,
            mode="grid-wrap",
        )  # fmt: skip
        done[image, ...] = xp.asarray(turned, dtype=images.dtype, device=place)
    return done
