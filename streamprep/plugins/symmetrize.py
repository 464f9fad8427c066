"""symmetrize: the average of a map over a point group or along a helix."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from streamprep import Context, InputError, Map, Params, operation
from streamprep.arrays import array_namespace
from streamprep.em.interpolation import (
    TILE,
    add_resampled,
    add_turned,
    blocks,
    check_axes,
    closed,
    each,
    folds,
    outside_mean,
    unfold,
)
from streamprep.em.symmetry import chain, grid_elements, point_group, representatives
from streamprep.model import Array


def symmetrize(
    volume: Array,
    group: str,
    *,
    aggregation: Literal["average", "sum"] = "average",
    wrap: bool = True,
    mask: Array | None = None,
) -> Array:
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
        folded = folds(subgroup)
        start = [-(int(side) // 2) for side in whole.shape]
        for axis, _ in folded:
            start[axis] = 0
        part = tuple(slice(begin + int(side) // 2, None) for begin, side in zip(start, whole.shape, strict=True))
        total = xp.asarray(whole[part], copy=True)
        add_resampled(
            total, tuple(start), whole[box] if wrap else whole, turns[1:], periodic=wrap, outside=(outside or 0.0) * len(subgroup)
        )
        whole[part] = total
        unfold(whole, folded)
    made = whole[box]
    made *= 1 / len(elements)
    return made
