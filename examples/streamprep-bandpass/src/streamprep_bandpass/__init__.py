"""bandpass: keep the detail between two resolutions, with cosine edges."""

import math

import numpy as np
import numpy.typing as npt
from pydantic import Field
from streamprep import Context, Map, Params, Particles, operation
from streamprep.arrays import array_namespace, cached_filter, irfft2, irfftn, rfft2, rfftn
from streamprep.model import Array


class Bandpass(Params):
    """Keep the detail between two resolutions."""

    low_angstrom: float | None = Field(
        None, gt=0, description="What is coarser than this is taken away, the mean with it [Å]; nothing unless given."
    )
    high_angstrom: float | None = Field(
        None, gt=0, description="What is finer than this is taken away [Å]; nothing unless given."
    )
    edge_px: float = Field(
        2.0, ge=0, description="Width of the cosine edges [pixels of the Fourier transform]; half passes in the middle."
    )

    def check(self, *, size_px: int | None, pixel_size_angstrom: float | None) -> None:
        """Refuse an empty band, and one beyond what the pixels hold."""
        if self.low_angstrom is None and self.high_angstrom is None:
            raise ValueError("neither low_angstrom nor high_angstrom is given; give one or both")
        if self.low_angstrom is not None and self.high_angstrom is not None and self.low_angstrom <= self.high_angstrom:
            raise ValueError(
                f"low_angstrom = {self.low_angstrom:g} is not above high_angstrom = {self.high_angstrom:g}: nothing "
                "would be left; give the larger number of Å as low_angstrom"
            )
        finest = min(limit for limit in (self.low_angstrom, self.high_angstrom) if limit is not None)
        if pixel_size_angstrom is not None and finest < 2 * pixel_size_angstrom:
            raise ValueError(
                f"{finest:g} Å is finer than the {2 * pixel_size_angstrom:g} Å that pixels of "
                f"{pixel_size_angstrom:g} Å hold; allowed: {2 * pixel_size_angstrom:g} and more"
            )


@cached_filter
def bandpass_filter(
    shape: tuple[int, ...],
    pixel_size_angstrom: float,
    low_angstrom: float | None,
    high_angstrom: float | None,
    edge_px: float,
) -> npt.NDArray[np.complex64]:
    """The factors of a real Fourier transform.

    Parameters
    ----------
    shape
        Of the image (ny, nx), or of the map (nz, ny, nx).

    Returns
    -------
    NDArray[complex64]
        Shape (…, ny, nx // 2 + 1), real values from 0 to 1: ``½ (1 + cos π (r − c + w/2) / w)`` where the radius r is
        within half the width w of the cut-off c, both in pixels of the Fourier transform.
    """
    *sides, nx = shape
    axes = [np.fft.fftfreq(side) for side in sides] + [np.fft.rfftfreq(nx)]
    radius = nx * np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    factors = np.ones(radius.shape)
    if high_angstrom is not None:
        factors *= _passes_below(radius, nx * pixel_size_angstrom / high_angstrom, edge_px)
    if low_angstrom is not None:
        factors *= 1 - _passes_below(radius, nx * pixel_size_angstrom / low_angstrom, edge_px)
        factors[(0,) * len(shape)] = 0.0  # a cut-off near 0 would leave a part of the mean
    return factors.astype(np.complex64)


def _passes_below(radius: npt.NDArray[np.float64], cutoff: float, width: float) -> npt.NDArray[np.float64]:
    if not width:
        return np.asarray(radius <= cutoff, np.float64)
    return 0.5 * (1 + np.cos(math.pi * np.clip((radius - cutoff) / width + 0.5, 0, 1)))


def bandpass(
    pixels: Array,
    *,
    pixel_size_angstrom: float,
    low_angstrom: float | None = None,
    high_angstrom: float | None = None,
    edge_px: float = 2.0,
    dimensions: int = 2,
) -> Array:
    """Filter images, or a map, in Fourier space.

    Parameters
    ----------
    pixels
        Shape (n, ny, nx) of images, (nz, ny, nx) of a map; float32, on any array library.
    pixel_size_angstrom
        Pixel size [Å].
    low_angstrom, high_angstrom
        What is coarser than the first and finer than the second is taken away [Å]; None: nothing.
    edge_px
        Width of the cosine edges [pixels of the Fourier transform].
    dimensions
        2 for images, 3 for a map.

    Returns
    -------
    Array
        The same shape, float32. Images count as periodic.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).normal(5, 1, (2, 32, 32)).astype(np.float32)
    >>> done = bandpass(images, pixel_size_angstrom=2.0, low_angstrom=40.0, high_angstrom=8.0)
    >>> bool(abs(done.mean()) < 1e-6), bool(done.std() < images.std())
    (True, True)
    """
    xp = array_namespace(pixels)
    shape = tuple(int(side) for side in pixels.shape[-dimensions:])
    factors = bandpass_filter(shape, pixel_size_angstrom, low_angstrom, high_angstrom, edge_px, like=pixels)
    forward, back = (rfft2, irfft2) if dimensions == 2 else (rfftn, irfftn)
    spectrum = forward(xp.astype(pixels, xp.float32, copy=False))
    spectrum *= factors
    return back(spectrum, shape[-1])


@operation("process_particles", order=25, params=Bandpass, name="bandpass", per_image=True)
def bandpass_particles(particles: Particles, params: Bandpass, ctx: Context) -> Particles:
    """Keep the detail of particle images between two resolutions."""
    pixel_size = particles.optics.pixel_size_angstrom
    return particles.with_pixels(
        bandpass(particles.pixels, pixel_size_angstrom=pixel_size, **params.model_dump(), dimensions=2)
    )


@operation("process_map", order=45, params=Bandpass, name="bandpass")
def bandpass_map(map: Map, params: Bandpass, ctx: Context) -> Map:
    """Keep the detail of a map between two resolutions."""
    pixel_size = map.pixel_size_angstrom
    return map.with_pixels(bandpass(map.pixels, pixel_size_angstrom=pixel_size, **params.model_dump(), dimensions=3))
