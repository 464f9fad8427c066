"""symmetrize: the average of a map over a point group, or over the screw of a helix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from array_api_compat import device as array_device
from pydantic import Field, field_validator, model_validator

from streamprep import Context, InputError, Map, Params, operation
from streamprep.arrays import array_namespace, in_slabs
from streamprep.em.grey_values import is_finite
from streamprep.em.helix import helical_average
from streamprep.em.interpolation import (
    Spline,
    add_turned,
    check_axes,
    closed,
    folds,
    kept_axis,
    outside_mean,
    unfold,
)
from streamprep.em.symmetry import chain, grid_elements, point_group, representatives
from streamprep.model import Array, FloatArray

Aggregation = Literal["average", "sum"]


class Symmetrize(Params):
    """Average a map over a symmetry group."""

    group: str = Field(
        description="cN, ci, cs, cNv, cNh, sN, dN, dNv, dNh, t, td, th, o, oh, i (which is i2), i1 to i4, ih, i1h to "
        "i4h, as Xmipp places their axes, or helical.",
        examples=["d2"],
    )
    aggregation: Aggregation = Field("average", description="average: the mean of the copies. sum: their sum.")
    wrap: bool = Field(
        True,
        description="Take the map as periodic where copies reach beyond the box. Else the mean outside the inscribed "
        "sphere is there.",
    )
    mask: str | None = Field(
        None,
        min_length=1,
        description="Path of a mask, 1 where to symmetrize and 0 where the input stays; between, they are blended.",
    )

    def files(self) -> Mapping[str, str]:
        """What maps wait for."""
        return {} if self.mask is None else {"mask": self.mask}

    rise_angstrom: float | None = Field(
        None, ge=0.1, description="Of a helix: from one subunit to the next along z [Å]."
    )
    twist_deg: float | None = Field(
        None, description="Of a helix: the turn about z that goes with the rise, right-handed [°]."
    )
    helix_group: str | None = Field(
        None, description="Of a helix: its point group beside the screw, cN or dN; d1 is a two-fold axis x alone."
    )
    height_fraction: float = Field(
        0.95, gt=0, le=1, description="Of a helix: the central part of the map's height that copies are taken from."
    )

    @field_validator("group")
    @classmethod
    def _known_group(cls, group: str) -> str:
        name = group.strip().lower()
        if name != "helical":
            try:
                point_group(name)
            except ValueError as error:
                raise ValueError(f"{error}; or helical" if name != "c1" else str(error)) from error
        return name

    @field_validator("helix_group")
    @classmethod
    def _known_helix_group(cls, group: str | None) -> str | None:
        name = None if group is None else group.strip().lower()
        if name is not None and not re.fullmatch("[cd][1-9][0-9]?", name):
            raise ValueError(f"no group {group!r} of a helix; allowed: cN or dN, N from 1 to 99")
        return name

    @model_validator(mode="after")
    def _fits_the_group(self) -> Symmetrize:
        helix = {"rise_angstrom": self.rise_angstrom, "twist_deg": self.twist_deg}
        if self.group == "helical":
            missing = [name for name, value in helix.items() if value is None]
            if missing:
                raise ValueError(f'group = "helical" needs {" and ".join(missing)}')
            if self.aggregation == "sum":
                raise ValueError(
                    'group = "helical" has no fixed number of copies to sum; allowed: aggregation = "average"'
                )
        else:
            given = [name for name, value in (helix | {"helix_group": self.helix_group}).items() if value is not None]
            if "height_fraction" in self.model_fields_set:
                given.append("height_fraction")
            if given:
                raise ValueError(f'{" and ".join(given)} belongs to group = "helical", not to {self.group!r}')
        return self


def symmetrize(volume: Array, group: str, *, aggregation: Aggregation = "average", wrap: bool = True) -> Array:
    """Average a map over a point group about the origin voxel, index L // 2 of each axis.

    Over the n turns and mirrors g of the group; a sum is not divided by n:

    $$V'(p) = 1/n ~ ∑_g V(g^{-1} p)$$

    Parameters
    ----------
    volume
        Shape (nz, ny, nx); sides that the group mixes are equal.
    group
        A name that `streamprep.em.symmetry.point_group` knows.
    aggregation
        ``average``: the mean of the copies. ``sum``: their sum.
    wrap
        Whether the map is periodic; else the mean of the voxels outside the inscribed sphere is beyond its outermost.

    Returns
    -------
    Array
        The same shape, float32.

    Raises
    ------
    ValueError
        The group is not known, or it mixes sides of different length.

    Notes
    -----
    With H, the elements that map the grid onto itself, the sum over the group is that of S over one element of each
    coset g·H, where S is the sum over H: by reversing and swapping axes, exactly. Only the cosets are interpolated, by
    cubic splines, and only where H does not say the rest: for i1 and i2 four times a quarter of the map, instead of 59
    times the map.

    Examples
    --------
    >>> import numpy as np
    >>> volume = np.zeros((5, 5, 5), np.float32)
    >>> volume[2, 2, 4] = 3  # x = 2
    >>> symmetrize(volume, "c4", aggregation="sum")[2, 2].tolist()
    [3.0, 0.0, 0.0, 0.0, 3.0]
    """
    xp = array_namespace(volume)
    elements = point_group(group).elements
    check_axes(elements, volume.shape)
    subgroup = grid_elements(elements)
    turns = representatives(elements, subgroup)
    outside = None if wrap else outside_mean(volume)
    box = tuple(slice(0, int(side)) for side in volume.shape)
    whole = closed(volume, outside)
    for step in chain(subgroup):
        whole = add_turned(whole, step)
    if len(turns) > 1:
        _add_cosets(whole, box, subgroup, turns, outside)
    made = xp.empty(volume.shape, dtype=xp.float32, device=array_device(volume))
    scale = 1.0 if aggregation == "sum" else 1 / len(elements)

    def finish(first: int, stop: int) -> None:
        made[first:stop, ...] = whole[first:stop, box[1], box[2]] * scale

    in_slabs(finish, made)
    return made


def _add_cosets(
    whole: Array, box: tuple[slice, ...], subgroup: FloatArray, turns: FloatArray, outside: float | None
) -> None:
    """Add to the sum over a subgroup, on the closed grid, what the other cosets make of it; in place."""
    wrap = outside is None
    folded = folds(subgroup)
    halved = [axis for axis, _ in folded]
    z, y, x = (0 if axis in halved else -(int(side) // 2) for axis, side in enumerate(whole.shape))
    part = tuple(
        slice(int(side) // 2, None) if axis in halved else slice(None) for axis, side in enumerate(whole.shape)
    )
    total = array_namespace(whole).asarray(whole[part], copy=True)
    spline = Spline(
        whole[box] if wrap else whole,
        periodic=(wrap, wrap, wrap),
        outside=0.0 if outside is None else outside * len(subgroup),
        kept=kept_axis(turns),
    )
    spline.add(total, (z, y, x), turns[1:])
    whole[part] = total
    unfold(whole, folded)


def blend(inside: Array, outside: Array, mask: Array) -> Array:
    """Two maps by a mask of the same shape: the first where it is 1, the second where it is 0; float32.

    Values below 0 and above 1 of the mask count as 0 and 1.
    """
    xp = array_namespace(inside)
    made = xp.empty_like(inside)

    def one(first: int, stop: int) -> None:
        share = xp.clip(xp.astype(mask[first:stop, ...], xp.float32), 0, 1)
        stays = outside[first:stop, ...]
        made[first:stop, ...] = xp.where(
            share == 1, inside[first:stop, ...], stays + share * (inside[first:stop, ...] - stays)
        )

    in_slabs(one, inside)
    return made


@operation("process_map", order=40, params=Symmetrize, name="symmetrize")
def symmetrize_map(map: Map, params: Symmetrize, ctx: Context) -> Map:  # noqa: A002
    """Average a map over a symmetry group."""
    pixels = map.pixels
    xp = array_namespace(pixels)
    if not is_finite(pixels):
        raise InputError(ctx.item.path, "symmetrize: the map holds values that are not finite (NaN or infinite)")
    mask = None
    if params.mask is not None:
        voxels = ctx.read_mask(Path(params.mask), tuple(int(side) for side in pixels.shape))
        mask = xp.asarray(voxels, device=array_device(pixels))
    try:
        if params.rise_angstrom is not None and params.twist_deg is not None:
            kind, n = (params.helix_group or "c1")[0], int((params.helix_group or "c1")[1:])
            made = helical_average(
                pixels,
                rise_px=params.rise_angstrom / map.pixel_size_angstrom,
                twist_deg=params.twist_deg,
                n=n,
                dihedral=kind == "d",
                height_fraction=params.height_fraction,
                wrap=params.wrap,
            )
        else:
            made = symmetrize(pixels, params.group, aggregation=params.aggregation, wrap=params.wrap)
    except ValueError as error:
        raise InputError(ctx.item.path, f"symmetrize: group {params.group}: {error}") from error
    if mask is not None:
        copies = len(point_group(params.group)) if params.aggregation == "sum" else 1
        made = blend(made, pixels if copies == 1 else pixels * copies, mask)
    return map.with_pixels(made)
