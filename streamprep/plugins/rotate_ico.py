"""rotate_ico: turn a map from one icosahedral setting to another."""

from __future__ import annotations

from typing import Annotated, Literal

from array_api_compat import device as array_device
from pydantic import BeforeValidator, Field

from streamprep import Context, InputError, Map, Params, operation
from streamprep.arrays import array_namespace, in_slabs
from streamprep.em.interpolation import Spline, check_axes, closed, kept_axis, outside_mean, turned_copy
from streamprep.em.symmetry import icosahedral_setting, maps_grid
from streamprep.model import Array

Setting = Annotated[
    Literal["i1", "i2", "i3", "i4"], BeforeValidator(lambda name: name.lower() if isinstance(name, str) else name)
]


class RotateIco(Params):
    """Turn a map of icosahedral symmetry from one setting of its axes to another."""

    source: Setting = Field(description="How the map's axes lie: i1, i2, i3 or i4, as Xmipp names them.")
    target: Setting = Field(description="How they shall lie.")


def rotate_ico(volume: Array, source: Setting, target: Setting) -> Array:
    r"""Turn a map about y from one icosahedral setting to another.

    With p = (x, y, z) from the origin, index L // 2, and E(setting), the turn about y that brings i2 to that setting:

    $$V'(p) = V(R^T p), \quad R = E(\text{target}) ~ E(\text{source})^T$$

    Parameters
    ----------
    volume
        Shape (nz, ny, nx), nz = nx.
    source, target
        See `streamprep.em.symmetry.icosahedral_setting`.

    Returns
    -------
    Array
        The same shape, float32. From i1 to i2 and back the very same voxels in another order; on an axis of even length
        its first plane, which has no opposite one, takes the place of that. Else a cubic spline's values; beyond the
        outermost voxels the mean of the voxels outside the inscribed sphere.

    Raises
    ------
    ValueError
        nz and nx differ.

    Examples
    --------
    >>> import numpy as np
    >>> volume = np.zeros((5, 5, 5), np.float32)
    >>> volume[2, 2, 4] = 1  # x = 2
    >>> [int(index) for index in np.argwhere(rotate_ico(volume, "i2", "i1"))[0]]  # z = 2
    [4, 2, 2]
    """
    xp = array_namespace(volume)
    matrix = icosahedral_setting(target) @ icosahedral_setting(source).T
    check_axes(matrix[None], volume.shape)
    if maps_grid(matrix):
        nz, ny, nx = (slice(0, int(side)) for side in volume.shape)
        return turned_copy(closed(volume, None), matrix, (nz, ny, nx))
    spline = Spline(
        xp.astype(volume, xp.float32, copy=True),
        periodic=(False, False, False),
        outside=outside_mean(volume),
        kept=kept_axis(matrix[None]),
    )
    total = xp.zeros(volume.shape, dtype=xp.float32, device=array_device(volume))
    z, y, x = (-(int(side) // 2) for side in volume.shape)
    spline.add(total, (z, y, x), matrix[None])
    return total


@operation("process_map", order=20, params=RotateIco, name="rotate_ico")
def rotate_ico_map(map: Map, params: RotateIco, ctx: Context) -> Map | None:  # noqa: A002
    """Turn a map from one icosahedral setting to another."""
    if params.source == params.target:
        return None
    pixels = map.pixels
    xp = array_namespace(pixels)
    if not all(in_slabs(lambda first, stop: bool(xp.all(xp.isfinite(pixels[first:stop, ...]))), pixels)):
        raise InputError(ctx.item.path, "rotate_ico: the map holds values that are not finite (NaN or infinite)")
    try:
        return map.with_pixels(rotate_ico(pixels, params.source, params.target))
    except ValueError as error:
        raise InputError(ctx.item.path, f"rotate_ico: {error}") from error
