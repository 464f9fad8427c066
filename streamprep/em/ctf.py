"""The contrast transfer function."""

from __future__ import annotations

import numpy as np

from streamprep.model import Ctf, FloatArray


def electron_wavelength_angstrom(voltage_kv: float) -> float:
    """Relativistic electron wavelength [Å].

    λ = 12.2643247 / sqrt(V·(1 + 0.978466e-6·V)), V in volts.

    Examples
    --------
    >>> round(electron_wavelength_angstrom(300), 6)
    0.019687
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
