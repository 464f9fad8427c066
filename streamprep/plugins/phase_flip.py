"""phase_flip: undo the sign changes that the microscope's contrast transfer function makes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from array_api_compat import device as array_device
from pydantic import Field

from streamprep import Context, Ctf, InputError, Micrograph, Params, Particles, operation
from streamprep.arrays import array_namespace, irfft2, rfft2
from streamprep.em.ctf import flip_signs
from streamprep.model import Array, Kind


class PhaseFlip(Params):
    """Multiply the Fourier transforms by the sign of the CTF."""

    missing: Literal["wait", "skip"] = Field(
        "wait",
        description="Without a CTF: wait for it, or skip: pass it on as it is, with a warning.",
    )

    def companions(self) -> Mapping[Kind, str | None]:
        """The CTF, with ``wait``."""
        return {} if self.missing == "skip" else {"ctf": None}

    def dispensable(self) -> Collection[Kind]:
        """The CTF, with ``skip``."""
        return {"ctf"} if self.missing == "skip" else set()


class PhaseFlipOfParticles(PhaseFlip):
    """Multiply the Fourier transforms by the sign of the CTF."""

    scope: Literal["particle", "micrograph"] = Field(
        "particle",
        description="Flip the boxes, or each micrograph before they are cut out of it: no signal is then wrapped "
        "around the box's edge.",
    )

    def lane(self, table: str) -> str:
        """Micrographs, where they are what is to be flipped."""
        return "micrographs" if self.scope == "micrograph" else table


def phase_flip(pixels: Array, ctfs: Sequence[Ctf], *, pixel_size_angstrom: float, in_place: bool = False) -> Array:
    r"""Multiply the Fourier transforms of images by the signs of their CTFs.

    With the wavelength λ, the amplitude contrast Q, the defocus z along the direction of f, and the phase shift φ:

    $$F'(f) = F(f) ~ \text{sign}(\sqrt{1 - Q^2} \sin χ + Q \cos χ), \quad χ(f) = π λ z f^2 - π/2 ~ C_s λ^3 f^4 + φ$$

    Parameters
    ----------
    pixels
        Shape (n, ny, nx), real.
    ctfs
        One per image.
    pixel_size_angstrom
        Of the images [Å].
    in_place
        Whether ``pixels`` may be overwritten.

    Returns
    -------
    Array
        Shape (n, ny, nx), float32. An image that holds values that are not finite becomes NaN as a whole.

    Notes
    -----
    The CTF is that of `streamprep.em.ctf.ctf_at` (Rohou and Grigorieff 2015; the sign is Xmipp 3's). Terms at f = 0 and
    where it is zero stay as they are.

    Flipping twice gives the images back, but for one thing: with an even number of columns, terms at fx = ½ for which
    an astigmatic CTF has different signs at fy and −fy become 0, as in Xmipp (see `streamprep.em.ctf.flip_signs`).

    Examples
    --------
    >>> import numpy as np
    >>> image = np.random.default_rng(0).normal(size=(1, 15, 15)).astype(np.float32)
    >>> ctf = [Ctf(15000, 14000, 30)]
    >>> flipped = phase_flip(image, ctf, pixel_size_angstrom=1.5)
    >>> again = phase_flip(flipped, ctf, pixel_size_angstrom=1.5)
    >>> bool(np.allclose(flipped, image)), bool(np.allclose(again, image, atol=1e-5))
    (False, True)
    """
    xp = array_namespace(pixels)
    pixels = xp.astype(pixels, xp.float32, copy=False)
    nx = int(pixels.shape[-1])
    spectrum = rfft2(pixels)
    flip_signs(spectrum, nx, ctfs, pixel_size_angstrom)
    return irfft2(spectrum, nx, pixels if in_place else None)


@operation("process_particles", order=50, params=PhaseFlipOfParticles, name="phase_flip", per_image=True)
def phase_flip_particles(particles: Particles, params: PhaseFlip, ctx: Context) -> Particles:
    """Flip the phases of particle images."""
    xp = array_namespace(particles.pixels)
    if particles.ctf is None:
        if params.missing == "wait":
            raise _no_ctf(ctx.item.path)
        unknown = xp.ones(len(particles), dtype=xp.bool, device=array_device(particles.pixels))
        ctx.flag(unknown, "have no CTF; their phases were not flipped")
        return particles
    pixels = phase_flip(
        particles.pixels, particles.ctf, pixel_size_angstrom=particles.optics.pixel_size_angstrom, in_place=True
    )
    broken = ~xp.isfinite(pixels[:, 0, 0])  # the transform brings NaN to every pixel of its image
    ctx.flag(broken, "hold values that are not finite (NaN or infinite); their phases could not be flipped")
    return replace(particles, pixels=pixels, phase_flipped=not particles.phase_flipped)


@operation("process_micrograph", order=50, params=PhaseFlip, name="phase_flip")
def phase_flip_micrograph(micrograph: Micrograph, params: PhaseFlip, ctx: Context) -> Micrograph | None:
    """Flip the phases of a micrograph, before anything is cut from it."""
    if micrograph.ctf is None:
        if params.missing == "wait":
            raise _no_ctf(ctx.item.path)
        ctx.warn("it has no CTF; its phases were not flipped")
        return None
    pixels = phase_flip(
        micrograph.pixels[None, ...], [micrograph.ctf], pixel_size_angstrom=micrograph.optics.pixel_size_angstrom
    )
    return replace(micrograph, pixels=pixels[0, ...], phase_flipped=not micrograph.phase_flipped)


def _no_ctf(path: Path) -> InputError:
    return InputError(
        path,
        "no CTF is known for it, and without one phases cannot be flipped; name the table that has it ([ctf] table = "
        '"…" in the configuration, --ctf of apply), or set missing = "skip" to pass it on unflipped',
    )
