"""The contrast transfer function."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from array_api_compat import device as array_device
from array_api_compat import is_numpy_array

from streamprep.arrays import array_namespace, negate_by_sign, negate_where
from streamprep.model import Array, Ctf, FloatArray

_BLOCK_CPU, _BLOCK_GPU = 1 << 16, 1 << 26
"""Terms whose signs are computed at a time: 512 KiB of float64, which stay in the cache of one core and
are few enough for OpenBLAS not to start threads; or 512 MiB."""

_KEPT_BYTES = 16 << 20
"""Masks of so many bytes are kept together, and none of more than an eighth: those of particles, not of micrographs."""


def electron_wavelength_angstrom(voltage_kv: float) -> float:
    """Relativistic electron wavelength [Å].

    λ = 12.2643247 / sqrt(V·(1 + 0.978466e-6·V)), V in volts.

    Examples
    --------
    >>> round(electron_wavelength_angstrom(300), 6)
    0.019688
    """
    volts = voltage_kv * 1e3
    return float(12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts)))


def ctf_at(ctf: Ctf, fx: FloatArray, fy: FloatArray) -> FloatArray:
    """CTF at spatial frequencies.

    Parameters
    ----------
    ctf
        Defocus, underfocus positive, and microscope constants.
    fx, fy
        Frequencies [1/Å], of shapes that broadcast together.

    Notes
    -----
    χ(f) = π λ Δz(α) f² − (π/2) Cs λ³ f⁴ + φ with Δz(α) = (U + V)/2 + (U − V)/2 · cos 2(α − α_ast), and
    CTF(f) = sqrt(1 − Q0²)·sin χ + Q0·cos χ; φ is the phase shift of a phase plate. The terms are those of Rohou and
    Grigorieff (2015), the sign is Xmipp 3's.
    """
    wavelength = electron_wavelength_angstrom(ctf.voltage_kv)
    f2 = fx * fx + fy * fy
    mean = (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2
    half = (ctf.defocus_u_angstrom - ctf.defocus_v_angstrom) / 2
    defocus = mean + half * np.cos(2 * (np.arctan2(fy, fx) - np.deg2rad(ctf.defocus_angle_deg)))
    chi = (
        np.pi * wavelength * defocus * f2
        - np.pi / 2 * (ctf.spherical_aberration_mm * 1e7) * wavelength**3 * f2 * f2
        + np.deg2rad(ctf.phase_shift_deg)
    )
    q0 = ctf.amplitude_contrast
    return np.asarray(np.sqrt(1 - q0 * q0) * np.sin(chi) + q0 * np.cos(chi))


def flip_signs(spectrum: Array, nx: int, ctfs: Sequence[Ctf], pixel_size_angstrom: float) -> None:
    """Multiply the Fourier transforms of images by the signs of their CTFs, in place.

    Parameters
    ----------
    spectrum
        What ``rfft2`` makes of images of ``nx`` columns: shape (n, ny, nx // 2 + 1), complex64.
    nx
        Columns of the images.
    ctfs
        One per image.
    pixel_size_angstrom
        Of the images [Å].

    Notes
    -----
    −1 where the CTF is negative, 1 elsewhere and at f = 0. At Nyquist f = +½ cycle/pixel, on both axes, as RELION and
    Xmipp have it. For even ``nx`` the terms (½, fy) and (½, −fy) belong to each other, and an astigmatic CTF may want
    them of different signs. No real image can follow; Xmipp takes the mean of both, which is 0, and so do we.

    CTF = sin 2πc with 2πc = χ + asin Q0, so it is negative where c − round(c) is. Of χ (see `ctf_at`) the astigmatism
    is f² cos 2(α − β) = cos 2β (fx² − fy²) + sin 2β · 2 fx fy, and the whole a polynomial: a matrix product of rank 4,
    in float64, instead of trigonometry for each term. It is made block by block, never for a whole micrograph.
    """
    n, ny, columns = (int(side) for side in spectrum.shape)
    block = _BLOCK_CPU if is_numpy_array(spectrum) else _BLOCK_GPU
    if n and ny * columns <= _KEPT_BYTES // 8 and all(ctf == ctfs[0] for ctf in ctfs):
        negative, disagreeing = _masks(ctfs[0], ny, nx, pixel_size_angstrom, spectrum)
        negate_where(spectrum, negative)
        _drop(spectrum, disagreeing)
        return
    left, right = _factors(ctfs, ny, nx, pixel_size_angstrom, spectrum)
    images, rows = max(1, block // (ny * columns)), max(1, min(ny, block // columns))
    for image in range(0, n, images):
        some = slice(image, min(image + images, n))
        for row in range(0, ny, rows):
            band = slice(row, min(row + rows, ny))
            negate_by_sign(spectrum[some, band, :], _signs(left[some, band, :], right[some, :, :], row == 0))
    _drop(spectrum, _disagreeing(left, right, nx))


def _factors(ctfs: Sequence[Ctf], ny: int, nx: int, pixel_size_angstrom: float, like: Array) -> tuple[Array, Array]:
    """Two matrices for each CTF, (n, ny, 4) and (n, 4, nx // 2 + 1), whose product is (χ + asin Q0) / 2π."""
    fy, fx = np.fft.fftfreq(ny) / pixel_size_angstrom, np.fft.rfftfreq(nx) / pixel_size_angstrom
    if ny % 2 == 0:
        fy[ny // 2] *= -1
    polynomials = np.array([_polynomial(ctf) for ctf in ctfs]).reshape(-1, 5, 1)
    along_x, along_y, across, quartic, constant = (polynomials[:, term] for term in range(5))
    left, right = np.empty((len(ctfs), ny, 4)), np.empty((len(ctfs), 4, nx // 2 + 1))
    x2, y2 = fx * fx, fy * fy
    left[:, :, 0], right[:, 0] = 1, (along_x + quartic * x2) * x2 + constant
    left[:, :, 1], right[:, 1] = (along_y + quartic * y2) * y2, 1
    left[:, :, 2], right[:, 2] = fy, across * fx
    left[:, :, 3], right[:, 3] = y2, 2 * quartic * x2
    if is_numpy_array(like):
        return left, right
    xp, place = array_namespace(like), array_device(like)
    return xp.asarray(left, device=place), xp.asarray(right, device=place)


def _polynomial(ctf: Ctf) -> tuple[float, ...]:
    """(χ + asin Q0) / 2π as coefficients of fx², fy², fx·fy, (fx² + fy²)² and 1."""
    wavelength = electron_wavelength_angstrom(ctf.voltage_kv)
    mean = (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2
    half = (ctf.defocus_u_angstrom - ctf.defocus_v_angstrom) / 2
    axis = 2 * math.radians(ctf.defocus_angle_deg)
    return (
        wavelength / 2 * (mean + half * math.cos(axis)),
        wavelength / 2 * (mean - half * math.cos(axis)),
        wavelength * half * math.sin(axis),
        -ctf.spherical_aberration_mm * 1e7 * wavelength**3 / 4,
        (math.radians(ctf.phase_shift_deg) + math.asin(ctf.amplitude_contrast)) / (2 * math.pi),
    )


def _signs(left: Array, right: Array, first: bool) -> Array:
    """Numbers of the signs of the CTFs, from −½ to ½; ``first``: the first of the terms is f = 0."""
    xp = array_namespace(left)
    turns = left @ right
    turns -= xp.round(turns)
    if first:
        turns[:, 0, 0] = 0
    return turns


def _disagreeing(left: Array, right: Array, nx: int) -> Array | None:
    """Of the last column: where two opposite terms are to have different signs, (n, ny, 1); None for odd ``nx``."""
    if nx % 2:
        return None
    xp = array_namespace(left)
    negative = _signs(left, right[:, :, -1:], False) < 0
    return negative != xp.roll(xp.flip(negative, axis=1), 1, axis=1)


def _drop(spectrum: Array, disagreeing: Array | None) -> None:
    """Put 0 into the last column there."""
    if disagreeing is not None:
        xp = array_namespace(spectrum)
        last = spectrum[:, :, -1:]
        spectrum[:, :, -1:] = xp.where(disagreeing, xp.zeros_like(last), last)


_kept: OrderedDict[object, tuple[Array, Array | None]] = OrderedDict()
_guard = threading.Lock()


def _masks(ctf: Ctf, ny: int, nx: int, pixel_size_angstrom: float, like: Array) -> tuple[Array, Array | None]:
    """Where one CTF is negative, and `_disagreeing`; the last few are kept."""
    key = (array_namespace(like).__name__, str(array_device(like)), ctf, ny, nx, pixel_size_angstrom)
    with _guard:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    left, right = _factors([ctf], ny, nx, pixel_size_angstrom, like)
    made = _signs(left, right, True) < 0, _disagreeing(left, right, nx)
    with _guard:
        _kept[key] = made
        held = sum(math.prod(negative.shape) for negative, _ in _kept.values())
        while held > _KEPT_BYTES:
            held -= math.prod(_kept.popitem(last=False)[1][0].shape)
    return made
