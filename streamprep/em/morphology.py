"""Masks of maps: opening, closing and the largest connected piece.

On the CPU 64 voxels of a row are one word, and a piece is a graph of runs of voxels: ten times as fast as voxel by
voxel. Elsewhere the library of `streamprep.arrays.ndimage` does the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy
from array_api_compat import device as array_device
from array_api_compat import is_numpy_array

from streamprep.arrays import array_namespace, in_slabs, ndimage
from streamprep.model import Array

Words = npt.NDArray[np.uint64]

_ONE, _LAST = np.uint64(1), np.uint64(63)
_ROWS_AFTER = ((0, 1), (1, -1), (1, 0), (1, 1))
"""(dz, dy) of the four of a row's eight neighbours that come after it."""


class Piece(NamedTuple):
    """The largest piece of a mask."""

    size: int
    """Voxels of it."""
    mask: Array | None
    """Boolean, of the map's shape, where it was asked for."""


def largest_piece(pixels: Array, threshold: float, *, with_mask: bool) -> Piece:
    """The largest piece of what is above a grey value, without what is thin, and with its small gaps filled.

    Parameters
    ----------
    pixels
        Shape (nz, ny, nx), real.
    threshold
        Voxels above it, opened and closed with a voxel and its 18 nearest neighbours; of what is left the largest piece
        of voxels that touch at faces, edges or corners (26 neighbours).
    with_mask
        Whether to give back the mask, not the size alone.

    Notes
    -----
    The map is not cut off at its borders: there is nothing outside to dilate from, and nothing that erodes. So opening
    takes voxels away only, and closing adds them only, and the size never grows with the threshold.
    """
    if not is_numpy_array(pixels):
        return _largest_piece_elsewhere(pixels, threshold, with_mask=with_mask)
    nx = pixels.shape[-1]
    valid = _packed(np.ones((1, 1, nx), np.bool_))
    words = np.concatenate(in_slabs(lambda start, stop: _packed(pixels[start:stop] > threshold), pixels))
    words = _eroded(_dilated(_dilated(_eroded(words, valid), valid), valid), valid)
    runs = _Runs.of(words)
    if not len(runs.first):
        return Piece(0, np.zeros(pixels.shape, np.bool_) if with_mask else None)
    labels = runs.pieces(words.shape[1])
    sizes = np.bincount(labels, weights=runs.last - runs.first + 1)
    largest = int(np.argmax(sizes))
    if not with_mask:
        return Piece(int(sizes[largest]), None)
    chosen = labels == largest
    steps = np.zeros(64 * words.size + 1, np.int8)
    steps[runs.first[chosen]] = 1
    steps[runs.last[chosen] + 1] -= 1
    inside = np.cumsum(steps[:-1], dtype=np.int8).view(np.bool_).reshape(*words.shape[:2], -1)
    return Piece(int(sizes[largest]), np.ascontiguousarray(inside[..., :nx]))


def _largest_piece_elsewhere(pixels: Array, threshold: float, *, with_mask: bool) -> Piece:
    xp = array_namespace(pixels)
    nd: Any = ndimage(pixels)
    place = array_device(pixels)

    def element(connectivity: int) -> Any:
        return xp.asarray(scipy.ndimage.generate_binary_structure(3, connectivity), device=place)

    mask = pixels > threshold
    near = element(2)
    for erodes in (True, False, False, True):
        step = nd.binary_erosion if erodes else nd.binary_dilation
        mask = xp.asarray(step(mask, near, border_value=int(erodes)), device=place)
    labels, count = nd.label(mask, element(3))
    labels = xp.asarray(labels, device=place)
    if not int(count):
        return Piece(0, mask if with_mask else None)
    every = xp.reshape(labels, (-1,))
    ordered = xp.sort(every)
    ends = xp.searchsorted(ordered, xp.arange(1, int(count) + 2, dtype=ordered.dtype, device=place))
    sizes = ends[1:] - ends[:-1]
    largest = int(xp.argmax(sizes))
    return Piece(int(sizes[largest]), labels == largest + 1 if with_mask else None)


# --- 64 voxels in a word -------------------------------------------------------------------------------------------


def _packed(mask: npt.NDArray[np.bool_]) -> Words:
    """Rows of bits, the first voxel the lowest, padded to whole words: (nz, ny, ⌈nx / 64⌉)."""
    some = np.packbits(mask, axis=-1, bitorder="little")
    room = np.zeros((*some.shape[:-1], -(-mask.shape[-1] // 64) * 8), np.uint8)
    room[..., : some.shape[-1]] = some
    return room.view("<u8").astype(np.uint64, copy=False)


def _dilated(words: Words, valid: Words) -> Words:
    """A mask with the 18 neighbours of its voxels: squares of 3 × 3 voxels in each of three planes."""
    along_x = words | (words << _ONE) | (words >> _ONE)
    along_x[..., 1:] |= words[..., :-1] >> _LAST
    along_x[..., :-1] |= words[..., 1:] << _LAST
    along_x &= valid
    along_y = _spread(words, 1)
    grown = _spread(along_x, 1)
    along_y |= along_x
    grown |= _spread(along_y, 0)
    return grown


def _eroded(words: Words, valid: Words) -> Words:
    """A mask without the 18 neighbours of voxels that are not in it."""
    return ~_dilated(~words & valid, valid) & valid


def _spread(words: Words, axis: int) -> Words:
    """Each voxel with those before and after it along z (0) or y (1)."""
    made = words.copy()
    before, after = (slice(None),) * axis + (slice(None, -1),), (slice(None),) * axis + (slice(1, None),)
    made[after] |= words[before]
    made[before] |= words[after]
    return made


class _Runs(NamedTuple):
    """Runs of voxels along x: places of their first and last voxels in the padded map, flat, in order."""

    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    width: int
    """Bits in a row."""

    @classmethod
    def of(cls, words: Words) -> _Runs:
        before, after = words << _ONE, words >> _ONE
        before[..., 1:] |= words[..., :-1] >> _LAST
        after[..., :-1] |= words[..., 1:] << _LAST
        return cls(_places(words & ~before), _places(words & ~after), 64 * words.shape[-1])

    def pieces(self, ny: int) -> npt.NDArray[np.int32]:
        """The number of the piece that each run belongs to; runs touch where they overlap or meet at corners."""
        rows = self.first // self.width
        y, rows_before = rows % ny, rows * self.width
        left = np.maximum(self.first - 1, rows_before)
        right = np.minimum(self.last + 1, rows_before + self.width - 1)
        ones, others = [], []
        for dz, dy in _ROWS_AFTER:
            here = np.flatnonzero((y + dy >= 0) & (y + dy < ny))
            offset = (dz * ny + dy) * self.width
            start = np.searchsorted(self.last, left[here] + offset)
            count = np.maximum(np.searchsorted(self.first, right[here] + offset, side="right") - start, 0)
            ends = np.cumsum(count)
            ones.append(np.repeat(here, count))
            others.append(np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - (ends - count), count))
        one, other = np.concatenate(ones), np.concatenate(others)
        touching = scipy.sparse.coo_array((np.ones(len(one), np.bool_), (one, other)), (len(self.first),) * 2)
        labels: npt.NDArray[np.int32] = scipy.sparse.csgraph.connected_components(touching, directed=False)[1]
        return labels


def _places(words: Words) -> npt.NDArray[np.int64]:
    """Which bits are set, in order."""
    flat = words.ravel()
    filled = np.flatnonzero(flat)
    bits = np.unpackbits(flat[filled].astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    word, bit = np.nonzero(bits)
    return filled[word] * 64 + bit
