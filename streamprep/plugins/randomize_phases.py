"""randomize_phases: noise of the same spectrum in place of the signal beyond a resolution."""

from __future__ import annotations

from pydantic import Field

from streamprep import Context, InputError, Map, Params, Particles, operation
from streamprep.arrays import array_namespace, irfft2, irfftn, owned, rfft2, rfftn
from streamprep.em.grey_values import is_finite
from streamprep.em.phases import image_indices, randomize_spectrum
from streamprep.model import Array


class RandomizePhases(Params):
    """Replace the phases beyond a resolution by random ones; the amplitudes stay."""

    max_resolution_angstrom: float = Field(
        40.0,
        gt=0,
        description="What is coarser than this, or just as coarse, stays as it is [Å]; at least 2 × the pixel size.",
    )

    def check(self, *, size_px: int | None, pixel_size_angstrom: float | None) -> None:  # noqa: ARG002
        """Refuse a resolution below Nyquist's."""
        if pixel_size_angstrom is not None and self.max_resolution_angstrom < 2 * pixel_size_angstrom * (1 - 1e-6):
            raise ValueError(
                f"max_resolution_angstrom = {self.max_resolution_angstrom:g} is below Nyquist's "
                f"{2 * pixel_size_angstrom:g} Å (2 × {pixel_size_angstrom:g} Å per pixel); allowed: from "
                f"{2 * pixel_size_angstrom:g}"
            )


def randomize_phases(pixels: Array, images: Array, *, key: int, cutoff: float, in_place: bool = False) -> Array:
    r"""Give the Fourier terms of images beyond a frequency uniformly random phases.

    For a pixel size Δ and a resolution d, with u(f) uniform in [0, 1) and u(-f) = -u(f):

    $$F'(f) = F(f) ~ e^{2 π i u(f)} \quad \text{where} \quad |f| > Δ / d$$

    Parameters
    ----------
    pixels
        Shape (n, ny, nx), real.
    images
        Indices of the images, shape (n,), uint64; what is drawn for an image depends on ``key`` and its index alone.
    key
        64 bits, see `Context.random_key`.
    cutoff
        Terms with |f| ≤ cutoff, radially, stay as they are [cycles/pixel]: pixel size / resolution.
    in_place
        Whether ``pixels`` may be overwritten.

    Returns
    -------
    Array
        Shape (n, ny, nx), float32, of the same amplitude spectrum. An image that holds values that are not finite
        becomes NaN as a whole.

    Notes
    -----
    Terms that are their own opposite are multiplied by 1 or −1. Chen and others (2013) test for overfitting with such
    images.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.random.default_rng(0).normal(size=(1, 16, 16)).astype(np.float32)
    >>> done = randomize_phases(image, np.zeros(1, np.uint64), key=7, cutoff=0.1)
    >>> bool(np.allclose(np.abs(np.fft.rfft2(done)), np.abs(np.fft.rfft2(image)), atol=1e-4))
    True
    """
    pixels = owned(pixels, in_place)
    _, ny, nx = (int(side) for side in pixels.shape)
    spectrum = rfft2(pixels)
    randomize_spectrum(spectrum, (ny, nx), cutoff, key, images)
    return irfft2(spectrum, nx, pixels)


@operation("process_particles", order=20, params=RandomizePhases, name="randomize_phases", per_image=True)
def randomize_phases_of_particles(particles: Particles, params: RandomizePhases, ctx: Context) -> Particles:
    """Randomise the phases of particle images beyond a resolution."""
    pixels = randomize_phases(
        particles.pixels,
        image_indices(ctx.first_image, len(particles), particles.pixels),
        key=ctx.random_key(),
        cutoff=particles.optics.pixel_size_angstrom / params.max_resolution_angstrom,
        in_place=True,
    )
    xp = array_namespace(pixels)
    broken = ~xp.isfinite(pixels[:, 0, 0])  # the transform brings NaN to every pixel of its image
    ctx.flag(broken, "hold values that are not finite (NaN or infinite); their phases could not be randomised")
    return particles.with_pixels(pixels)


@operation("process_map", order=30, params=RandomizePhases, name="randomize_phases")
def randomize_phases_of_map(map: Map, params: RandomizePhases, ctx: Context) -> Map:  # noqa: A002
    """Randomise the phases of a map beyond a resolution."""
    if not is_finite(map.pixels):
        raise InputError(ctx.item.path, "randomize_phases: the map holds values that are not finite (NaN or infinite)")
    lengths = tuple(int(side) for side in map.pixels.shape)
    spectrum = rfftn(map.pixels)
    cutoff = map.pixel_size_angstrom / params.max_resolution_angstrom
    randomize_spectrum(spectrum[None, ...], lengths, cutoff, ctx.random_key(), image_indices(0, 1, spectrum))
    return map.with_pixels(irfftn(spectrum, lengths[-1]))
