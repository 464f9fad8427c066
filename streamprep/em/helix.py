"""Helical symmetry: the average of a map over the screw that a helix repeats with, about z."""

from __future__ import annotations

import math

import numpy as np
from array_api_compat import device as array_device

from streamprep.arrays import array_namespace
from streamprep.em.interpolation import Spline, add_turned, check_axes, closed, outside_mean
from streamprep.em.symmetry import rotation
from streamprep.model import Array


def helical_average(
    volume: Array,
    *,
    rise_px: float,
    twist_deg: float,
    n: int = 1,
    dihedral: bool = False,
    height_fraction: float = 0.95,
    wrap: bool = True,
) -> Array:
    """Average a map over a screw about z, and over an axis along z or a dihedral group beside it.

    Parameters
    ----------
    volume
        Shape (nz, ny, nx), nx = ny.
    rise_px
        From one subunit to the next along z, above 0 [voxels].
    twist_deg
        The turn from one subunit to the next that goes with it; positive is right-handed, x towards y as z grows.
    n
        The helix has an n-fold axis along z; 1 is none.
    dihedral
        It also has a two-fold axis along x.
    height_fraction
        The part of the map's height, about the origin, that copies are taken from: the ends of a helix are often worse,
        or outside the box.
    wrap
        Whether the map is periodic in x and y; else the mean of the voxels outside the inscribed sphere is taken beyond
        its outermost voxels. It is never periodic along z.

    Returns
    -------
    Array
        The same shape, float32; also what lies beyond the central part, and there from the subunits of it alone.

    Raises
    ------
    ValueError
        The rise is larger than the central part is high; nx and ny differ.

    Notes
    -----
    value(p) = mean over whole k and j of map(Rz(k·twist + j·360°/n)·p + k·rise·ẑ), for those k that lead into the
    central part. Each k is one interpolation, by cubic splines; no copy is made of a copy.
    """
    xp = array_namespace(volume)
    nz, ny, nx = (int(side) for side in volume.shape)
    check_axes(rotation((0, 0, 1), 30)[None], (nz, ny, nx))
    reach = min(height_fraction * nz / 2, (nz - 1) // 2)
    if rise_px > 2 * reach:
        raise ValueError(
            f"the rise is {rise_px:.4g} voxels, and the map's central part (height_fraction = {height_fraction:g}) "
            f"is {2 * reach:.4g} high; allowed: up to {2 * reach:.4g} voxels"
        )
    outside = None if wrap else outside_mean(volume)
    whole = closed(volume, outside)
    if dihedral:
        whole = 0.5 * add_turned(whole, [np.eye(3), np.diag([1.0, -1.0, -1.0])])
    source = whole[:, :ny, :nx] if wrap else whole
    spline = Spline(source, periodic=(False, wrap, wrap), outside=outside or 0.0)
    total = xp.zeros((nz, ny, nx), dtype=xp.float32, device=array_device(volume))
    z = np.arange(nz) - nz // 2
    copies = np.zeros(nz)
    last = math.floor((reach + nz // 2) / rise_px)
    for k in range(-last, last + 1):
        rows = np.flatnonzero(np.abs(z + k * rise_px) <= reach)
        if not len(rows):
            continue
        first, stop = int(rows[0]), int(rows[-1]) + 1
        copies[first:stop] += n
        turns = np.stack([rotation((0, 0, 1), -(k * twist_deg + j * 360 / n)) for j in range(n)])
        spline.add(total[first:stop, ...], (int(z[first]), -(ny // 2), -(nx // 2)), turns, along_z=k * rise_px)
    total *= xp.asarray((1 / copies).astype(np.float32), device=array_device(volume))[:, None, None]
    return total
