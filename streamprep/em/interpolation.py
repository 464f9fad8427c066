"""Maps turned about the origin voxel: exactly where the grid allows it, by cubic B-splines elsewhere.

Matrices act on (x, y, z), arrays are (nz, ny, nx), and the origin of an axis of length L is the index L // 2. An axis
of even length has no voxel opposite to its first one; on the *closed* grid, see `closed`, it has, so that turning by
signed permutation matrices is to reverse and to swap axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are used: at each start that is 0.1 s or more
from array_api_compat import device as array_device
from array_api_compat import is_numpy_array

from streamprep.arrays import array_namespace, map_threads, ndimage
from streamprep.model import Array, FloatArray

TILE = 32
"""Side of the blocks that one thread works on, in voxels: what they are read from fits into a core's cache."""
AT_A_TIME = 2
"""Turns about one axis that are put into one sparse matrix: its size stays below that of a map."""
REACH = 3
"""Voxels beyond a place that its value is made of, at most."""
ON_EDGE = 1e-6
"""How far beyond the last voxel a place counts as on it: what rounding makes of turns."""


def each(work: Callable[..., None], jobs: Iterable[tuple[object, ...]], array: Array) -> None:
    """Call ``work(*job)`` for every job; several at a time where the array is numpy's, which lets go of the GIL."""
    if not is_numpy_array(array) or map_threads() == 1:
        for job in jobs:
            work(*job)
        return
    with ThreadPoolExecutor(map_threads()) as pool:
        for done in [pool.submit(work, *job) for job in jobs]:
            done.result()


def blocks(length: int, size: int) -> list[slice]:
    """Slices of at most ``size`` that cover an axis."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def check_axes(matrices: FloatArray, shape: Sequence[int]) -> None:
    """Refuse maps whose axes of different length would be mixed.

    Parameters
    ----------
    matrices
        Shape (n, 3, 3), on (x, y, z).
    shape
        (nz, ny, nx).

    Raises
    ------
    ValueError
        Names the axes and their lengths.
    """
    sides = tuple(reversed(shape))
    mixed = np.abs(matrices).max(axis=0) > ON_EDGE
    for one, other in ((0, 1), (0, 2), (1, 2)):
        if (mixed[one, other] or mixed[other, one]) and sides[one] != sides[other]:
            raise ValueError(
                f"it turns {'xyz'[one]} towards {'xyz'[other]}, and the map is {sides[0]} × {sides[1]} × {sides[2]} "
                f"voxels (x, y, z); allowed: maps of the same length along both, for example cubes of {max(sides)}"
            )


def outside_mean(volume: Array) -> float:
    """The mean of the voxels outside the inscribed sphere: r² ≥ R² from the origin, R half the shortest side."""
    xp = array_namespace(volume)
    nz, ny, nx = (int(side) for side in volume.shape)
    z, y, x = (np.arange(side) - side // 2 for side in (nz, ny, nx))
    disc = y[:, None] ** 2 + x[None, :] ** 2
    radius = min(nz, ny, nx) // 2
    masks: dict[int, Array] = {}
    total, count = 0.0, 0
    for index in range(nz):
        square = radius * radius - int(z[index]) ** 2
        if square not in masks:
            masks[square] = xp.asarray(disc >= square, device=array_device(volume))
        values = volume[index, ...][masks[square]]
        total += float(xp.sum(values, dtype=xp.float64))
        count += math.prod(values.shape)
    return total / count


# --- exact -----------------------------------------------------------------------------------------------------------


def closed(volume: Array, outside: float | None) -> Array:
    """A copy of a map on the closed grid: axes of even length L get the voxel L // 2 beyond the origin.

    Parameters
    ----------
    volume
        Shape (nz, ny, nx).
    outside
        The value of what is added; None takes the map as periodic, which repeats the first plane.

    Returns
    -------
    Array
        float32, all sides odd, the origin at the same index, which is now the middle.
    """
    xp = array_namespace(volume)
    sides = [int(side) for side in volume.shape]
    made = xp.empty([side | 1 for side in sides], dtype=xp.float32, device=array_device(volume))
    if outside is not None:
        for axis, side in enumerate(sides):
            if side % 2 == 0:
                made[(slice(None),) * axis + (slice(side, None), ...)] = outside

    def copy(z: slice) -> None:
        made[z, : sides[1], : sides[2]] = xp.astype(volume[z, ...], xp.float32, copy=False)

    each(copy, ((z,) for z in blocks(sides[0], TILE)), volume)
    if outside is None:
        for axis, side in reversed(list(enumerate(sides))):
            if side % 2 == 0:
                whole = (slice(None),) * axis
                made[(*whole, slice(side, None), ...)] = made[(*whole, slice(0, 1), ...)]
    return made


def turned(volume: Array, matrix: FloatArray) -> Array:
    """A view of a map on the closed grid, turned by a signed permutation matrix: value(p) = volume(matrixᵀ·p).

    Examples
    --------
    >>> volume = np.arange(27).reshape(3, 3, 3)
    >>> bool((turned(volume, np.diag([-1, -1, 1])) == volume[:, ::-1, ::-1]).all())
    True
    """
    xp = array_namespace(volume)
    inverse = np.round(matrix).T[::-1, ::-1]  # on (z, y, x): axis `source` of the volume along axis `target`
    target_of = [int(np.argmax(np.abs(row))) for row in inverse]
    backwards = tuple(source for source in range(3) if inverse[source, target_of[source]] < 0)
    reversed_ = xp.flip(volume, axis=backwards) if backwards else volume
    return xp.permute_dims(reversed_, tuple(target_of.index(axis) for axis in range(3)))


def turned_copy(volume: Array, matrix: FloatArray, box: tuple[slice, slice, slice]) -> Array:
    """What `turned` shows of a part of the closed grid, as an array of its own."""
    xp = array_namespace(volume)
    view = turned(volume, matrix)[box]
    made = xp.empty(view.shape, dtype=volume.dtype, device=array_device(volume))

    def copy(*tile: slice) -> None:
        made[tile] = view[tile]

    each(
        copy, product(*(blocks(int(side), 2 * TILE if is_numpy_array(volume) else side) for side in view.shape)), volume
    )
    return made


def add_turned(volume: Array, matrices: Sequence[FloatArray] | FloatArray) -> Array:
    """The sum of a map on the closed grid turned by some signed permutation matrices, the first the identity."""
    xp = array_namespace(volume)
    views = [turned(volume, matrix) for matrix in matrices[1:]]
    total = xp.empty_like(volume)
    size = TILE if is_numpy_array(volume) else max(volume.shape)

    def add(z: slice, x: slice) -> None:
        part = volume[z, :, x] + views[0][z, :, x]
        for view in views[1:]:
            part += view[z, :, x]
        total[z, :, x] = part

    each(add, product(blocks(int(volume.shape[0]), size), blocks(int(volume.shape[2]), 2 * size)), volume)
    return total


def folds(subgroup: FloatArray) -> list[tuple[int, FloatArray]]:
    """The array axes along which half of a map says all of it, and by which sign changes of a group each is unfolded.

    The element of each axis turns it over, and keeps the axes before it; see `unfold`.
    """
    made = []
    left = [element for element in subgroup if not np.any(element - np.diag(np.diagonal(element)))]
    for axis, place in enumerate((2, 1, 0)):
        turning = [element for element in left if element[place, place] < 0]
        if turning:
            made.append((axis, turning[0]))
            left = [element for element in left if element[place, place] > 0]
    return made


def unfold(volume: Array, folded: list[tuple[int, FloatArray]]) -> None:
    """Fill a map on the closed grid, known from the origin on along folded axes, by symmetry; in place."""
    known = [slice(None)] * 3
    for axis, _ in folded:
        known[axis] = slice(int(volume.shape[axis]) // 2, None)
    for axis, element in reversed(folded):
        lower = list(known)
        lower[axis] = slice(0, int(volume.shape[axis]) // 2)
        volume[tuple(lower)] = turned(volume, element)[tuple(lower)]
        known[axis] = slice(None)


# --- cubic B-splines -------------------------------------------------------------------------------------------------


class Spline:
    """The cubic B-spline through a map's values (Unser and others, IEEE Trans. Signal Process. 41 (1993) 821)."""

    def __init__(
        self,
        volume: Array,
        *,
        periodic: tuple[bool, bool, bool],
        outside: float = 0.0,
        kept: int | None = None,
    ) -> None:
        """Find its coefficients.

        Parameters
        ----------
        volume
            Shape (nz, ny, nx), float32; **overwritten** by the coefficients on the CPU.
        periodic
            Along which array axes the map is taken as periodic; else it is mirrored at its outermost voxels.
        outside
            What is then taken for places beyond its outermost voxels.
        kept
            An array axis (0 is z), from `kept_axis`, along which places are never between voxels. On the CPU much
            arithmetic is left out then.
        """
        self.periodic = periodic
        self.outside = outside
        self.kept = kept if is_numpy_array(volume) else None
        axes = [axis for axis in range(3) if axis != self.kept]
        self.coefficients = spline_coefficients(volume, periodic=periodic, axes=axes)

    def add(self, total: Array, start: tuple[int, int, int], matrices: FloatArray, along_z: float = 0.0) -> None:
        """Add the map, turned by each of some orthogonal matrices, to a block.

        value(p) = map(matrixᵀ·p + (0, 0, along_z)).

        Parameters
        ----------
        total
            The block, float32; changed in place.
        start
            Where its first voxel lies, (z, y, x) from the origin.
        matrices
            Shape (n, 3, 3), on (x, y, z); they keep the axis that was said to be kept.
        along_z
            Only with matrices that keep z [voxels].
        """
        kept = self.kept if self.kept is not None else kept_axis(matrices)
        if kept is not None and is_numpy_array(total):
            for part in blocks(len(matrices), AT_A_TIME):
                self._add_in_planes(total, start, matrices[part], kept, along_z)
            return
        size = TILE if is_numpy_array(total) else 8 * TILE

        def add(*tile: slice) -> None:
            self._add_tile(total, start, matrices, tile, along_z)

        each(add, product(*(blocks(int(side), size) for side in total.shape)), total)

    def _add_tile(
        self,
        total: Array,
        start: tuple[int, int, int],
        matrices: FloatArray,
        tile: tuple[slice, ...],
        along_z: float,
    ) -> None:
        """One block of `add`."""
        xp = array_namespace(total)
        library, place = ndimage(total), array_device(total)
        sides = np.array(self.coefficients.shape)
        shape = tuple(part.stop - part.start for part in tile)
        first = np.array([begin + part.start for begin, part in zip(start, tile, strict=True)], dtype=np.float64)
        corners = np.array(list(product(*((0, side - 1) for side in shape))))
        for matrix in matrices:
            back = matrix.T[::-1, ::-1]
            offset = back @ first + sides // 2 + (along_z, 0.0, 0.0)
            source = self.coefficients
            if any(self.periodic):
                places = offset + corners @ back.T
                low = np.floor(places.min(axis=0)).astype(int) - REACH
                high = np.ceil(places.max(axis=0)).astype(int) + REACH + 1
                for axis in range(3):
                    if self.periodic[axis]:
                        source = repeated(source, axis, int(low[axis]), int(high[axis]))
                        offset[axis] -= low[axis]
            values = library.affine_transform(
                source,
                xp.asarray(back, device=place),
                offset=tuple(float(value) for value in offset),
                output_shape=shape,
                output=np.float32,
                order=3,
                mode="constant",
                cval=self.outside,
                prefilter=False,
            )
            total[tile] += xp.asarray(values, device=place)

    def _add_in_planes(
        self, total: Array, start: tuple[int, int, int], matrices: FloatArray, kept: int, along_z: float
    ) -> None:
        """`add` where all matrices keep an axis: each plane across it is one sparse matrix times another."""
        planes, values = np.moveaxis(total, kept, 0), np.moveaxis(self.coefficients, kept, 0)
        across = [axis for axis in range(3) if axis != kept]
        back = matrices.transpose(0, 2, 1)[:, ::-1, ::-1][:, across][:, :, across]
        first = (start[across[0]], start[across[1]])
        weights, beyond = plane_weights(
            planes.shape[1:], first, values.shape[1:], back, (self.periodic[across[0]], self.periodic[across[1]])
        )
        added = (self.outside * beyond).astype(np.float32)[:, None]
        length = values.shape[0]
        place = np.arange(planes.shape[0]) + (start[kept] + length // 2 + along_z)
        if not self.periodic[kept]:
            inside = (place >= -ON_EDGE) & (place <= length - 1 + ON_EDGE)
            planes[~inside] += np.float32(self.outside * len(matrices))
            if not inside.any():
                return
            first_plane, last_plane = np.flatnonzero(inside)[[0, -1]]
            planes, place = planes[first_plane : last_plane + 1], place[inside]
        if kept == self.kept:
            taps, by_tap = np.round(place).astype(int)[:, None] % length, np.ones((1, 1))
        else:
            taps, by_tap = line_weights(place, length, self.periodic[kept])
        factors = by_tap[0].astype(np.float32)  # alike for all planes

        def add(part: slice) -> None:
            gathered = values[taps[part, 0]] * factors[0]
            for tap in range(1, len(factors)):
                gathered += values[taps[part, tap]] * factors[tap]
            made = weights @ np.ascontiguousarray(gathered.reshape(len(gathered), -1).T)
            made += added
            planes[part] += made.T.reshape(len(gathered), *planes.shape[1:])

        each(add, ((part,) for part in blocks(planes.shape[0], TILE // 2)), total)


def repeated(array: Array, axis: int, low: int, high: int) -> Array:
    """Indices from ``low`` to before ``high`` of an axis that repeats: a view, or a copy where it has to.

    Examples
    --------
    >>> repeated(np.arange(4), 0, -2, 5).tolist()
    [2, 3, 0, 1, 2, 3, 0]
    """
    side, before = int(array.shape[axis]), (slice(None),) * axis
    parts = []
    while low < high:
        first = low % side
        length = min(high - low, side - first)
        parts.append(array[(*before, slice(first, first + length), ...)])
        low += length
    return parts[0] if len(parts) == 1 else array_namespace(array).concat(parts, axis=axis)


def spline_coefficients(volume: Array, *, periodic: tuple[bool, bool, bool], axes: Sequence[int] = (0, 1, 2)) -> Array:
    """Coefficients of the cubic B-spline that goes through a map's values, along the given array axes only.

    Parameters
    ----------
    volume
        Shape (nz, ny, nx), float32; overwritten on the CPU.
    periodic
        Along which array axes the map is taken as periodic; else it is mirrored at its outermost voxels.
    axes
        Along which places between voxels will be asked for.

    Returns
    -------
    Array
        The same shape, float32.
    """
    xp = array_namespace(volume)
    library = ndimage(volume)
    modes = ["grid-wrap" if repeats else "mirror" for repeats in periodic]
    if not is_numpy_array(volume):
        for axis in axes:
            filtered = library.spline_filter1d(volume, order=3, axis=axis, output=np.float32, mode=modes[axis])
            volume = xp.asarray(filtered, device=array_device(volume))
        return volume

    def along(axis: int, part: slice) -> None:
        if axis == 0:  # lines of voxels far apart in memory: a plane of them at a time is put together
            for y in range(part.start, part.stop):
                plane = np.ascontiguousarray(volume[:, y, :].T)
                volume[:, y, :] = library.spline_filter1d(plane, order=3, axis=1, output=np.float32, mode=modes[axis]).T
        else:
            slab = volume[part]
            library.spline_filter1d(slab, order=3, axis=axis, output=slab, mode=modes[axis])

    for axis in axes:
        each(along, ((axis, part) for part in blocks(volume.shape[1 if axis == 0 else 0], 8)), volume)
    return volume


def kept_axis(matrices: FloatArray) -> int | None:
    """The array axis (0 is z) that each of some matrices, shape (n, 3, 3) on (x, y, z), leaves as it is, if any."""
    for axis in range(3):
        along = np.eye(3)[2 - axis]
        if np.abs(matrices @ along - along).max() < 1e-12:
            return axis
    return None


def plane_weights(
    shape: Sequence[int],
    first: tuple[int, int],
    source_shape: Sequence[int],
    back: FloatArray,
    periodic: tuple[bool, bool],
) -> tuple[Any, FloatArray]:
    """What each place of a plane takes of the spline coefficients of another, summed over some turns.

    Parameters
    ----------
    shape, first
        (rows, columns) of places, and where the first lies, from the origin.
    source_shape
        (rows, columns) of coefficients; their origin is at half.
    back
        Shape (n, 2, 2), on (row, column): from places to where their values come from.
    periodic
        Along which of (rows, columns) the coefficients are; else they are mirrored.

    Returns
    -------
    weights
        Sparse, shape (places, coefficients), float32.
    beyond
        Shape (places,): how many of the turns lead beyond the outermost coefficients; always 0 where periodic.
    """
    rows, columns = (np.arange(side, dtype=np.float64) + begin for side, begin in zip(shape, first, strict=True))
    count = len(rows) * len(columns)
    taps = np.empty((count, len(back), 16), np.int32)
    weights = np.empty((count, len(back), 16), np.float32)
    beyond = np.zeros(count)
    for turn, matrix in enumerate(back):
        inside = np.ones(count, dtype=bool)
        pairs = []
        for axis, (side, repeats) in enumerate(zip(source_shape, periodic, strict=True)):
            place = (matrix[axis, 0] * rows[:, None] + matrix[axis, 1] * columns[None, :]).ravel() + side // 2
            if not repeats:
                inside &= (place >= -ON_EDGE) & (place <= side - 1 + ON_EDGE)
            pairs.append(line_weights(place, side, repeats))
        (row, by_row), (column, by_column) = pairs
        taps[:, turn] = (row[:, :, None] * source_shape[1] + column[:, None, :]).reshape(count, 16)
        weights[:, turn] = (by_row[:, :, None] * by_column[:, None, :]).reshape(count, 16) * inside[:, None]
        beyond += ~inside
    starts = np.arange(count + 1, dtype=np.int32) * np.int32(16 * len(back))
    made = scipy.sparse.csr_array(
        (weights.ravel(), taps.ravel(), starts), shape=(count, source_shape[0] * source_shape[1])
    )
    return made, beyond


def line_weights(place: FloatArray, side: int, periodic: bool) -> tuple[Array, FloatArray]:
    """The four coefficients of a line that a place is made of, and their weights: both of shape (n, 4).

    The cubic B-spline: (1 − t)³/6, 2/3 − t²/2·(2 − t), the same of 1 − t, t³/6, where t is the place's fraction.

    Parameters
    ----------
    place
        Shape (n,), as indices of the line.
    side
        Number of coefficients.
    periodic
        Whether they repeat; else they are mirrored at the outermost.
    """
    whole = np.floor(place)
    t = place - whole
    u = 1 - t
    weights = np.stack([u**3 / 6, 2 / 3 - t * t * (2 - t) / 2, 2 / 3 - u * u * (2 - u) / 2, t**3 / 6], axis=1)
    taps = whole.astype(np.int32)[:, None] + np.arange(-1, 3, dtype=np.int32)
    if periodic:
        return taps % side, weights
    period = max(2 * (side - 1), 1)
    taps %= period
    return np.minimum(taps, period - taps) if side > 1 else np.zeros_like(taps), weights
