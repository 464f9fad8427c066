"""laplacian: denoise a map by what stands out in its Laplacian."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from array_api_compat import device as array_device
from pydantic import Field

from streamprep import Context, InputError, Map, Params, operation
from streamprep.arrays import array_namespace, in_slabs, irfftn, rfftn
from streamprep.em.grey_values import abs_quantile, is_finite
from streamprep.model import Array

DIAGONAL = 7.0
"""2 for each of three dimensions, and ε = 1, without which the transform could not be divided by."""


class Laplacian(Params):
    """Denoise by a Retinex filter: what is weak in the Laplacian of the map is taken away."""

    percentile: float = Field(
        0.9, ge=0, lt=1, description="The part of the voxels, weakest first, whose Laplacian is set to zero."
    )
    mask: str | None = Field(
        None,
        min_length=1,
        description="Path of a mask around the molecule, 1 inside: the percentile is that of the voxels outside.",
    )

    def files(self) -> Mapping[str, str]:
        """What maps wait for."""
        return {} if self.mask is None else {"mask": self.mask}


def laplacian(pixels: Array, *, percentile: float = 0.9, mask: Array | None = None) -> Array:
    r"""Set the weak part of a map's Laplacian to zero, and make the map of what is left.

    With the map's Fourier transform F, f in cycles/pixel, and the quantile q of the absolute values of W, which has the
    Fourier transform L F:

    $$L(f) = 7 - 2 (\cos 2πf_x + \cos 2πf_y + \cos 2πf_z)$$

    $$W' = W \quad \text{where} \quad |W| ≥ q, \quad W' = 0 \quad \text{elsewhere}, \quad F' = F[W'] / L$$

    Parameters
    ----------
    pixels
        Shape (nz, ny, nx), float32, finite.
    percentile
        Voxels whose filtered value is below this quantile of the absolute values are set to zero; 0 to 1.
    mask
        Of the same shape, real: the quantile is taken over voxels where it is below 0.5, over all unless given.

    Returns
    -------
    Array
        Shape (nz, ny, nx), float32.

    Raises
    ------
    ValueError
        No voxel is outside the mask.

    Notes
    -----
    The filter is that of the Retinex method in Xmipp 3: 7 · v minus its six neighbours, the map being periodic.

    Examples
    --------
    >>> import numpy as np
    >>> volume = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    >>> bool(np.allclose(laplacian(volume, percentile=0), volume, atol=1e-5))
    True
    """
    filtered = _filtered(pixels)
    outside = None if mask is None else mask < 0.5
    least = abs_quantile(filtered, percentile, outside)
    xp = array_namespace(pixels)

    def cut(start: int, stop: int) -> None:
        slab = filtered[start:stop, ...]
        slab *= xp.astype(xp.abs(slab) >= least, xp.float32)

    in_slabs(cut, filtered)
    spectrum = rfftn(filtered)
    _undo(spectrum, int(pixels.shape[-1]))
    return irfftn(spectrum, int(pixels.shape[-1]), filtered)


def _filtered(pixels: Array) -> Array:
    """7 · v minus the six neighbours of each voxel, periodic."""
    xp = array_namespace(pixels)
    made = xp.empty_like(pixels)
    nz = int(pixels.shape[0])

    def filter_slab(start: int, stop: int) -> None:
        slab, done = pixels[start:stop, ...], made[start:stop, ...]
        done[...] = slab * DIAGONAL
        done[1:, ...] -= slab[:-1, ...]
        done[:-1, ...] -= slab[1:, ...]
        done[0, ...] -= pixels[(start - 1) % nz, ...]
        done[-1, ...] -= pixels[stop % nz, ...]
        done[:, 1:, :] -= slab[:, :-1, :]
        done[:, :-1, :] -= slab[:, 1:, :]
        done[:, 0, :] -= slab[:, -1, :]
        done[:, -1, :] -= slab[:, 0, :]
        done[:, :, 1:] -= slab[:, :, :-1]
        done[:, :, :-1] -= slab[:, :, 1:]
        done[:, :, 0] -= slab[:, :, -1]
        done[:, :, -1] -= slab[:, :, 0]

    in_slabs(filter_slab, pixels)
    return made


def _undo(spectrum: Array, nx: int) -> None:
    """Divide a map's transform by L(f), in place."""
    xp = array_namespace(spectrum)
    place = array_device(spectrum)
    nz, ny, half = (int(side) for side in spectrum.shape)

    def cosines(length: int, count: int) -> Any:
        index = xp.arange(count, dtype=xp.float64, device=place)
        return 2 * xp.cos(index * (2 * math.pi / length))

    z, y, x = cosines(nz, nz), cosines(ny, ny), cosines(nx, half)
    plane = DIAGONAL - y[:, None] - x[None, :]

    def divide(start: int, stop: int) -> None:
        factor = xp.astype(1 / (plane[None, :, :] - z[start:stop, None, None]), xp.float32)
        spectrum[start:stop, ...] *= xp.astype(factor, spectrum.dtype)

    in_slabs(divide, spectrum)


@operation("process_map", order=50, params=Laplacian, name="laplacian")
def laplacian_map(map: Map, params: Laplacian, ctx: Context) -> Map:  # noqa: A002
    """Denoise a map by what stands out in its Laplacian."""
    if not is_finite(map.pixels):
        raise InputError(ctx.item.path, "laplacian: the map holds values that are not finite (NaN or infinite)")
    mask = None
    if params.mask is not None:
        path = Path(params.mask)
        voxels = ctx.read_mask(path, tuple(int(side) for side in map.pixels.shape))
        if not (voxels < 0.5).any():
            raise InputError(path, "laplacian: no voxel is outside this mask (below 0.5); the percentile needs some")
        mask = array_namespace(map.pixels).asarray(voxels, device=array_device(map.pixels))
    return map.with_pixels(laplacian(map.pixels, percentile=params.percentile, mask=mask))
