"""segment: keep the molecule, and set what is around it to zero."""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from streamprep import Context, InputError, Map, Params, operation
from streamprep.arrays import array_namespace, in_slabs
from streamprep.em.grey_values import (
    ENTROPY_BINS,
    FINE_BINS,
    entropy_threshold,
    grey_range,
    histogram,
    otsu_threshold,
)
from streamprep.em.segmentation import CUBIC_ANGSTROM_PER_DALTON, DALTONS_PER_AMINO_ACID, segment_by_size
from streamprep.model import Array

Kind = Literal["voxels", "aminoacids", "daltons", "automatic"]
Variant = Literal["otsu", "entropy"]

LEAST_RANGE = 1e-30
"""A map whose grey range is smaller is constant: float32 cannot tell its values apart."""


class Segment(Params):
    """Mask the molecule: by its mass, or by the grey values alone."""

    kind: Kind = Field(
        "automatic",
        description="What `mass` counts: voxels, amino acids (110 Da each) or daltons (1.207 Å³ each). automatic: a "
        "threshold from the grey values alone, without a mass.",
    )
    mass: float | None = Field(None, gt=0, description="Of the molecule, in units of `kind`.")
    variant: Variant = Field(
        "otsu",
        description="Of automatic. otsu: the threshold of Otsu. entropy: what Xmipp 3 runs instead; on noisy maps it "
        "selects most of the box.",
    )
    save_mask: bool = Field(False, description="Write the mask as a map of its own, NAME_mask.mrc beside NAME.mrc.")

    @model_validator(mode="after")
    def _mass_and_its_unit(self) -> Self:
        if self.kind != "automatic" and self.mass is None:
            raise ValueError(f'mass is missing; kind = "{self.kind}" needs it, a number above 0')
        if self.kind == "automatic" and self.mass is not None:
            raise ValueError(
                f'mass = {self.mass:g} has no unit; name it with kind = "voxels", "aminoacids" or "daltons"'
            )
        return self

    def voxels(self, pixel_size_angstrom: float) -> float:
        """The mass in voxels."""
        mass = self.mass or 0.0
        if self.kind == "voxels":
            return mass
        daltons = mass * DALTONS_PER_AMINO_ACID if self.kind == "aminoacids" else mass
        return daltons * CUBIC_ANGSTROM_PER_DALTON / pixel_size_angstrom**3


class Segmented(NamedTuple):
    """What `segment` gives back."""

    pixels: Array
    """Shape of the input, float32; zero outside the mask."""
    mask: Array
    """Boolean, of the same shape."""
    size: int
    """Voxels in the mask."""
    threshold: float
    fits: bool
    """Whether the size is the wanted one within 0.1 %."""


def segment(pixels: Array, *, voxels: float | None = None, variant: Variant = "otsu") -> Segmented:
    r"""Find the molecule in a map, and set everything else to zero.

    With the mask M, 1 inside the molecule; n, its voxels, from a mass m in daltons and a pixel size Δ in Å:

    $$V' = M V, \quad n = 1.207 m / Δ^3$$

    Parameters
    ----------
    pixels
        Shape (nz, ny, nx), float32, finite, not constant.
    voxels
        Of the molecule: the threshold is bisected until the largest piece above it has so many, see
        `streamprep.em.segmentation.segment_by_size`. None: all voxels above a threshold that is found from the grey
        values.
    variant
        Of ``voxels = None``. ``otsu``: greatest variance between two classes (Otsu 1979), of a histogram of 65536
        bins over the grey range. ``entropy``: what Xmipp 3 computes, see
        `streamprep.em.grey_values.entropy_threshold`.

    Notes
    -----
    A mass in voxels: mass · 110 · 1.207 / pixel size³ of amino acids, mass · 1.207 / pixel size³ of daltons. The
    threshold is bisected until the largest piece (26 neighbours) of what is above it, opened and closed with the 18
    nearest neighbours, has so many voxels within 0.1 %; where none has, the nearest is taken, with a warning.

    Examples
    --------
    >>> import numpy as np
    >>> volume = np.zeros((8, 8, 8), np.float32)
    >>> volume[2:6, 2:6, 2:6] = 3
    >>> segment(volume).size
    64
    """
    xp = array_namespace(pixels)
    if voxels is None:
        bins, find = (FINE_BINS, otsu_threshold) if variant == "otsu" else (ENTROPY_BINS, entropy_threshold)
        threshold, fits = find(histogram(pixels, *grey_range(pixels), bins)), True
        mask = xp.empty_like(pixels, dtype=xp.bool)
    else:
        mask, _, threshold, _ = found = segment_by_size(pixels, voxels)
        fits = found.fits
    done = xp.empty_like(pixels)

    def apply(start: int, stop: int) -> int:
        slab = pixels[start:stop, ...]
        if voxels is None:
            mask[start:stop, ...] = slab > threshold
        inside = mask[start:stop, ...]
        done[start:stop, ...] = slab * xp.astype(inside, xp.float32)
        return int(xp.sum(xp.astype(inside, xp.int32)))

    size = sum(in_slabs(apply, pixels))
    return Segmented(done, mask, size, threshold, fits)


@operation("process_map", order=70, params=Segment, name="segment")
def segment_map(map: Map, params: Segment, ctx: Context) -> Map | None:  # noqa: A002
    """Mask the molecule in a map."""
    low, high = grey_range(map.pixels)
    if not abs(low) + abs(high) < float("inf"):
        raise InputError(ctx.item.path, "segment: the map holds values that are not finite (NaN or infinite)")
    if high - low < LEAST_RANGE:
        ctx.warn(f"segment: the map is constant, {low:g} everywhere; it stays as it is")
        return None
    voxels = None if params.kind == "automatic" else params.voxels(map.pixel_size_angstrom)
    done = segment(map.pixels, voxels=voxels, variant=params.variant)
    if not done.fits:
        said = "" if params.kind == "voxels" else f" ({params.mass:g} {params.kind})"
        ctx.warn(
            f"segment: no threshold gives {voxels:.6g} voxels{said}; the nearest, {done.size} voxels above "
            f"{done.threshold:.6g}, was taken"
        )
    masks = {"mask": done.mask} if params.save_mask else {}
    return map.with_masks(**masks).with_pixels(done.pixels)
