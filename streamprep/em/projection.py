"""Projections of a map: central slices of its Fourier transform, and the conventions of orientations.

An orientation is a rotation matrix R, made of ``rot``, ``tilt`` and ``psi`` as RELION and Xmipp have them
(`euler_matrices`). The projection of a map V has at p = (x, y), measured from the origin pixel, the value
Σ_z V(Rᵀ (x, y, z)); the shift s of an image is what brings it upon the projection: image(p) = projection(p + s). Angles
are in degrees, shifts in pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import device as array_device
from array_api_compat import is_numpy_array

from streamprep.arrays import array_namespace, irfft2, ndimage, rfft2
from streamprep.em.background import background_mask
from streamprep.em.ctf import ctf_at
from streamprep.model import Array, Columns, Ctf, FloatArray

_SMALL_PX = 128
"""Maps up to this side are padded to twice of it, with a cubic spline between the terms: three times as fast as the
spline of order 5 between those of larger ones, which are padded to 1.5 times their side, for memory. In both an image
mixes with what lies outside of it by less than 1e-3 of its grey value up to half of the radius, 2 % at its edge."""
_MARGIN = 3
"""Columns that the spline needs beyond both ends of the half spectrum."""
_POINTS_CPU, _POINTS_GPU = 1 << 16, 1 << 23
"""Places interpolated at a time."""


def euler_matrices(rot_deg: FloatArray, tilt_deg: FloatArray, psi_deg: FloatArray) -> FloatArray:
    """Rotation matrices of orientations, shape (n, 3, 3), acting on (x, y, z).

    Rz(psi) · Ry(tilt) · Rz(rot) with Rz(θ) = [[cos θ, sin θ, 0], [−sin θ, cos θ, 0], [0, 0, 1]] and Ry(θ) =
    [[cos θ, 0, −sin θ], [0, 1, 0], [sin θ, 0, cos θ]]: the convention of Heymann, Chagoyen and Belnap (2005), which
    RELION and Xmipp share. The last row is the direction of projection.

    Examples
    --------
    >>> np.round(euler_matrices(np.array([90.0]), np.array([0.0]), np.array([0.0]))[0] + 0.0, 12).tolist()
    [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    rot, tilt, psi = (np.deg2rad(np.asarray(angle, dtype=np.float64)) for angle in (rot_deg, tilt_deg, psi_deg))
    return np.asarray(_about_z(psi) @ _about_y(tilt) @ _about_z(rot))


def _about_z(angle: FloatArray) -> FloatArray:
    made = np.zeros((*angle.shape, 3, 3))
    made[..., 0, 0] = made[..., 1, 1] = np.cos(angle)
    made[..., 0, 1], made[..., 1, 0], made[..., 2, 2] = np.sin(angle), -np.sin(angle), 1
    return made


def _about_y(angle: FloatArray) -> FloatArray:
    made = np.zeros((*angle.shape, 3, 3))
    made[..., 0, 0] = made[..., 2, 2] = np.cos(angle)
    made[..., 0, 2], made[..., 2, 0], made[..., 1, 1] = -np.sin(angle), np.sin(angle), 1
    return made


@dataclass(frozen=True, slots=True)
class CentralSlices:
    """The Fourier transform of a map, ready for slices through its origin; made by `central_slices`."""

    terms: Array
    """Shape (padded, padded, padded // 2 + 1 + 2 · margin), complex64: z and y from the lowest frequency, x from −3."""
    size_px: int
    padded_px: int
    order: int
    """Of the B-spline between the terms."""
    background: float
    """Grey value that the map has outside of its box; it was subtracted from the map."""

    def at(self, matrices: Array, fx: Array, fy: Array) -> Array:
        """Terms of the projections' Fourier transforms.

        Parameters
        ----------
        matrices
            Orientations, shape (n, 3, 3), float64.
        fx, fy
            Frequencies, shape (k,), float64 [cycles/pixel].

        Returns
        -------
        Array
            Shape (n, k), complex64: Σ_p image(p) exp(−2πi f·p), p from the origin pixel, without what the map's
            background adds at f = 0. Zero where the slice has left the map's Nyquist cube.

        Notes
        -----
        The projection along z has the transform of the map at z-frequency 0, so the projection in orientation R has
        that of the map at Rᵀ (fx, fy, 0).
        """
        xp, place = array_namespace(self.terms), array_device(self.terms)
        library = ndimage(self.terms)
        n, count = int(matrices.shape[0]), int(fx.shape[0])
        made = xp.empty((n, count), dtype=xp.complex64, device=place)
        most = _POINTS_CPU if is_numpy_array(self.terms) else _POINTS_GPU
        for rows, columns in _blocks(n, count, most):
            x_axis, y_axis = matrices[rows, 0, :], matrices[rows, 1, :]
            where = fx[columns][None, :, None] * x_axis[:, None, :] + fy[columns][None, :, None] * y_axis[:, None, :]
            mirrored = where[..., 0] < 0
            where = xp.where(mirrored[..., None], -where, where)
            inside = xp.all(xp.abs(where) < 0.5, axis=-1)
            where = xp.where(inside[..., None], where, xp.zeros_like(where)) * self.padded_px
            half = self.padded_px // 2
            index = xp.stack([where[..., 2] + half, where[..., 1] + half, where[..., 0] + _MARGIN])
            found = library.map_coordinates(self.terms, index, order=self.order, mode="grid-wrap", prefilter=False)
            found = xp.astype(xp.asarray(found, device=place), xp.complex64)
            found = xp.where(mirrored, xp.conj(found), found)
            made[rows, columns] = xp.where(inside, found, xp.zeros_like(found))
        return made


def _blocks(n: int, count: int, most: int) -> Iterator[tuple[slice, slice]]:
    columns = max(1, min(count, most))
    rows = max(1, most // max(1, columns))
    for row in range(0, n, rows):
        for column in range(0, count, columns):
            yield slice(row, min(n, row + rows)), slice(column, min(count, column + columns))


def central_slices(volume: Array) -> CentralSlices:
    """Transform a map for slices.

    Parameters
    ----------
    volume
        Shape (n, n, n), real, finite.

    Notes
    -----
    The map is thought to go on outside of its box with the mean of its background, the voxels with r² ≥ (n // 2)² from
    the origin: so the projection of V + c is that of V, plus n·c. It is padded with zeros and divided by the transform
    of the B-spline that is used between the terms, sincᵐ⁺¹ for order m (O'Sullivan 1985; Penczek, Renka and Schomberg
    2004). The padded map is never there as a whole: the peak is the half spectrum and a few planes; of large maps that
    is 3.6 times the map.
    """
    xp, place = array_namespace(volume), array_device(volume)
    size = int(volume.shape[0])
    padding, order = (2.0, 3) if size <= _SMALL_PX else (1.5, 5)
    padded = 4 * math.ceil(max(padding * size, 2 * _MARGIN + 2) / 4)
    background = _background(volume)
    half, first = padded // 2, padded // 2 - size // 2
    offsets = np.arange(size) - size // 2
    correction = np.sinc(offsets / padded) ** -(order + 1)
    # the origin at padded / 2 is a sign of each term, zero frequency in the middle a sign of each voxel
    weight = xp.asarray((correction * (-1.0) ** (offsets + half)).astype(np.float32), device=place)
    weight_x = xp.asarray(correction.astype(np.float32), device=place)
    signs = xp.asarray(((-1.0) ** np.arange(padded)).astype(np.float32), device=place)
    terms = xp.zeros((padded, padded, half + 1 + 2 * _MARGIN), dtype=xp.complex64, device=place)
    plane = xp.zeros((1, padded, padded), dtype=xp.float32, device=place)
    middle = slice(_MARGIN, _MARGIN + half + 1)
    inner = slice(first, first + size)
    for z in range(size):
        plane[0, inner, inner] = (
            (xp.astype(volume[z, :, :], xp.float32) - background) * (weight[z] * weight[:, None]) * weight_x
        )
        terms[first + z, :, middle] = rfft2(plane)[0, ...] * (signs[:, None] * signs[: half + 1])
    for row in range(0, padded, 8):
        rows = slice(row, min(padded, row + 8))
        terms[:, rows, middle] = xp.fft.fft(terms[:, rows, middle], axis=0) * signs[:, None, None]
    for far in range(1, _MARGIN + 1):  # S(−f) = conj S(f)
        for edge, sign in ((_MARGIN, -1), (_MARGIN + half, 1)):
            opposite = xp.flip(terms[:, :, edge - sign * far], axis=(0, 1))
            terms[:, :, edge + sign * far] = xp.conj(xp.roll(opposite, (1, 1), axis=(0, 1)))
    return CentralSlices(terms, size, padded, order, background)


def _background(volume: Array) -> float:
    xp, place = array_namespace(volume), array_device(volume)
    size = int(volume.shape[0])
    origin, radius = size // 2, size // 2
    total, count = 0.0, 0
    squares = (np.arange(size) - origin) ** 2
    for z in range(size):
        outside = squares[:, None] + squares[None, :] + squares[z] >= radius * radius
        mask = xp.asarray(outside.astype(np.float64), device=place)
        total += float(xp.sum(xp.astype(volume[z, :, :], xp.float64) * mask))
        count += int(outside.sum())
    return total / max(count, 1)


def project(
    slices: CentralSlices,
    matrices: Array,
    shifts_px: Array,
    *,
    ctfs: Sequence[Ctf] | None = None,
    phase_flipped: Sequence[bool] | None = None,
    pixel_size_angstrom: float = 1.0,
) -> Array:
    """Projections of a map.

    Parameters
    ----------
    slices
        What `central_slices` made of it.
    matrices
        Orientations, shape (k, 3, 3), float64, on the map's device.
    shifts_px
        Shape (k, 2), float64, x and y: image(p) = projection(p + shift) [px].
    ctfs
        One per image; the projections are multiplied with them in Fourier space. None: with nothing.
    phase_flipped
        One per image: whether the CTF's absolute value is meant.
    pixel_size_angstrom
        Of map and images; for the CTF.

    Returns
    -------
    Array
        Shape (k, n, n), float32: sums of grey values along lines of voxels. Terms at Nyquist are left out.
    """
    xp, place = array_namespace(slices.terms), array_device(slices.terms)
    size, padded = slices.size_px, slices.padded_px
    half, first = padded // 2, padded // 2 - size // 2
    count = int(matrices.shape[0])
    fy_host, fx_host = np.meshgrid(np.fft.fftfreq(padded), np.fft.rfftfreq(padded), indexing="ij")
    fx, fy = (xp.asarray(frequency.ravel(), device=place) for frequency in (fx_host, fy_host))
    inside = (np.abs(fx_host) < 0.5) & (np.abs(fy_host) < 0.5)
    signs_host = (-1.0) ** np.add.outer(np.arange(padded), np.arange(half + 1))  # the origin is at padded / 2
    signs = xp.asarray(np.where(inside, signs_host, 0).ravel(), device=place)
    images = xp.empty((count, size, size), dtype=xp.float32, device=place)
    for image in range(count):  # one at a time: its places fill the cache
        one = slice(image, image + 1)
        phase = 2 * math.pi * (fx * shifts_px[image, 0] + fy * shifts_px[image, 1])
        factor = _turned(phase)
        if ctfs is not None:
            ctf = ctf_at(ctfs[image], fx_host / pixel_size_angstrom, fy_host / pixel_size_angstrom).ravel()
            ctf = np.abs(ctf) if phase_flipped is not None and phase_flipped[image] else ctf
            factor = factor * xp.asarray(ctf, device=place)
        factor = factor * xp.astype(signs, factor.dtype)
        spectrum = xp.astype(slices.at(matrices[one, ...], fx, fy)[0, ...] * factor, xp.complex64)
        whole = irfft2(xp.reshape(spectrum, (1, padded, half + 1)), padded)
        images[one, ...] = whole[:, first : first + size, first : first + size]
    constants = slices.background * unit_projections(size, count, ctfs, phase_flipped)
    images += xp.asarray(constants.astype(np.float32), device=place)[:, None, None]
    return images


def _turned(phase: Array) -> Array:
    xp = array_namespace(phase)
    return xp.exp(1j * xp.astype(phase, xp.complex128))


def unit_projections(
    size_px: int, count: int, ctfs: Sequence[Ctf] | None, phase_flipped: Sequence[bool] | None
) -> FloatArray:
    """Grey value of the projections of a map that is 1 everywhere, shape (count,): n, by the CTF at f = 0."""
    made = np.full(count, float(size_px))
    zero = np.zeros(1)
    for image in range(count if ctfs is not None else 0):
        assert ctfs is not None
        value = float(ctf_at(ctfs[image], zero, zero)[0])
        made[image] *= abs(value) if phase_flipped is not None and phase_flipped[image] else value
    return made


def table_orientations(columns: Columns, pixel_size_angstrom: float) -> tuple[FloatArray, FloatArray] | None:
    """Orientations and shifts that a table of particles says, in RELION's or Xmipp's columns.

    Parameters
    ----------
    columns
        Of the table: ``rlnAngleRot``, ``rlnAngleTilt``, ``rlnAnglePsi`` with ``rlnOriginXAngst``, ``rlnOriginYAngst``
        [Å] or ``rlnOriginX``, ``rlnOriginY`` [px]; or ``angleRot``, ``angleTilt``, ``anglePsi`` with ``shiftX``,
        ``shiftY`` [px] and ``flip``, 1 where the image is mirrored in x.
    pixel_size_angstrom
        Of the images.

    Returns
    -------
    tuple or None
        Matrices (n, 3, 3), see `euler_matrices`, and shifts (n, 2) [px]. None where the columns of rot, tilt or psi
        are not there, or rot and tilt are 0 for several images: then these were aligned in the plane only.

    Raises
    ------
    ValueError
        A value is not a finite number.

    Notes
    -----
    Both programs move the image by the shift to bring it upon the projection. Xmipp mirrors it after that, in x: it is
    then the projection in orientation diag(−1, 1, −1) · R.
    """
    rln = "rlnAngleRot" in columns
    rot, tilt, psi = (f"{'rlnAngle' if rln else 'angle'}{name}" for name in ("Rot", "Tilt", "Psi"))
    if not {rot, tilt, psi} <= set(columns):
        return None
    count = len(columns[rot])

    def numbers(*names: str) -> FloatArray:
        for name in names:
            if name in columns:
                return _numbers(name, columns[name])
        return np.zeros(count)

    angles = [numbers(name) for name in (rot, tilt, psi)]
    if count > 1 and not angles[0].any() and not angles[1].any():
        return None
    shifts = np.empty((count, 2))
    for axis, letter in enumerate("XY"):
        if f"rlnOrigin{letter}Angst" in columns:
            shifts[:, axis] = numbers(f"rlnOrigin{letter}Angst") / pixel_size_angstrom
        else:
            shifts[:, axis] = numbers(f"rlnOrigin{letter}", f"shift{letter}")
    matrices = euler_matrices(*angles)
    mirrored = numbers("flip") != 0
    matrices[mirrored] = np.array([-1.0, 1.0, -1.0])[:, None] * matrices[mirrored]
    return matrices, shifts


def _numbers(name: str, values: npt.NDArray[Any]) -> FloatArray:
    made = np.empty(len(values))
    for row, value in enumerate(values.tolist()):
        try:
            made[row] = float(value)
        except ValueError:
            made[row] = math.nan
        if not math.isfinite(made[row]):
            raise ValueError(f"_{name} is {str(value)[:40]!r} for one of the images; allowed are numbers")
    return made


# --- grey values -----------------------------------------------------------------------------------------------------


class GreyFit:
    """Least squares of images ≈ a · projections + b · projections of a unit map, part by part.

    Over all pixels with r² < (n // 2)², r from the origin pixel, sums in float64.
    """

    def __init__(self, size_px: int) -> None:
        self._inside = ~background_mask(size_px, size_px, size_px // 2)
        self._normal, self._right = np.zeros((2, 2)), np.zeros(2)

    def add(self, images: Array, projections: Array, unit: FloatArray) -> None:
        """Take images (k, n, n) with the projections that belong to them, and `unit_projections`, into account."""
        xp, place = array_namespace(images), array_device(images)
        inside = xp.asarray(self._inside.astype(np.float64), device=place)
        measured, expected = (xp.astype(array, xp.float64) * inside for array in (images, projections))
        pixels = int(self._inside.sum())
        axes = (1, 2)
        products = [expected * expected, expected * measured, expected, measured]
        square, common, of_expected, of_measured = (
            np.array([float(value) for value in xp.sum(product, axis=axes)]) for product in products
        )
        cross = float(unit @ of_expected)
        self._normal += [[float(square.sum()), cross], [cross, float(unit @ unit) * pixels]]
        self._right += [float(common.sum()), float(unit @ of_measured)]

    def solve(self) -> tuple[float, float] | None:
        """a and b; None where the projections do not differ from those of a unit map."""
        scale = np.sqrt(np.diag(self._normal))
        if not scale[0] > 0:
            return None
        scale[scale == 0] = 1
        normal, right = self._normal / np.outer(scale, scale), self._right / scale
        if self._normal[1, 1] == 0:
            return float(right[0] / scale[0]), 0.0
        if not np.linalg.det(normal) > 1e-10:
            return None
        a, b = np.linalg.solve(normal, right) / scale
        return float(a), float(b)


def moments_fit(
    voxels: int, mean: float, deviation: float, image_means: FloatArray, image_deviations: FloatArray
) -> tuple[float, float]:
    """a and b of a·V + b from means and standard deviations alone, as Xmipp 3 computes them.

    Parameters
    ----------
    voxels
        Number of the map's.
    mean, deviation
        Of the map.
    image_means, image_deviations
        Of each image, shape (n,).

    Notes
    -----
    With r = voxels^⅓: a = sqrt(⟨s²⟩ / r) / deviation, b = ⟨m⟩ / r − a · mean. It would hold if the voxels along a line
    were independent; they are not, so a is too large for real maps.
    """
    side = voxels ** (1 / 3)
    a = math.sqrt(float(np.mean(np.square(image_deviations))) / side) / deviation
    return a, float(np.mean(image_means)) / side - a * mean


# --- directions ------------------------------------------------------------------------------------------------------

_ROTATIONS = {"t": "c3", "td": "c3", "th": "c3", "o": "d4", "oh": "d4", "ci": "c1", "cs": "c1"} | {
    f"{group}{mirror}": rotations
    for mirror in ("", "h")
    for group, rotations in {"i": "d2", "i1": "d2", "i2": "d2", "i3": "c5", "i4": "c1"}.items()
}
"""Cyclic or dihedral rotations on z (and x) that are in a group."""


def is_point_group(symmetry: str) -> bool:
    """Whether this names a point group: c1, d7, o, i2h and so on, in any case.

    Examples
    --------
    >>> is_point_group("D2"), is_point_group("x3"), is_point_group("c0")
    (True, False, False)
    """
    return _rotations(symmetry) is not None


def _rotations(symmetry: str) -> tuple[str, int] | None:
    name = symmetry.lower()
    found = re.fullmatch(r"(c|d|s)([1-9][0-9]{0,1})([vh]?)", _ROTATIONS.get(name, name))
    if found is None:
        return None
    kind, order, mirror = found[1], int(found[2]), found[3]
    if kind == "s":
        return None if order % 2 or mirror else ("c", max(1, order // 2))
    return kind, order


def asymmetric_unit(symmetry: str, step_deg: float) -> FloatArray:
    """Directions of projection that are no more than a step apart, over a point group's asymmetric unit.

    Parameters
    ----------
    symmetry
        A point group, see `is_point_group`. Of cn and dn the unit is 0 ≤ rot < 360 / n, with dn up to tilt = 90; of
        other groups that of one of these that is a part of them: it holds directions more than once.
    step_deg
        Between rows of one tilt, and, at most, between directions in a row [°].

    Returns
    -------
    FloatArray
        Shape (n, 2): rot and tilt [°].

    Examples
    --------
    >>> len(asymmetric_unit("c1", 5)), len(asymmetric_unit("d2", 5)), len(asymmetric_unit("i1", 5))
    (1666, 440, 440)
    """
    found = _rotations(symmetry)
    if found is None:
        raise ValueError(f"symmetry = {symmetry!r}: allowed are point groups such as c1, c4, d2, t, o, i1")
    kind, order = found
    last = 90.0 if kind == "d" else 180.0
    rows = max(1, math.ceil(last / step_deg - 1e-9))
    made: list[npt.NDArray[Any]] = []
    for tilt in np.linspace(0, last, rows + 1):
        width = 360 / order
        many = max(1, math.ceil(width * math.sin(math.radians(tilt)) / step_deg - 1e-9))
        rot = np.arange(many) * (width / many)
        made.append(np.stack([rot, np.full(many, tilt)], axis=1))
    return np.concatenate(made)
