"""The part of a map that a molecule of known size takes."""

from __future__ import annotations

from typing import NamedTuple

from streamprep.em.grey_values import grey_range, histogram
from streamprep.em.morphology import largest_piece
from streamprep.model import Array

DALTONS_PER_AMINO_ACID = 110.0
CUBIC_ANGSTROM_PER_DALTON = 1.207
"""Mean volume of protein."""
TOLERANCE = 1e-3
"""Of the wanted size, by which the found one may differ."""
LEAST_BRACKET = 1e-4
"""Of the grey range: nearer thresholds are not tried."""
_PATIENCE = 3
"""Steps in which the bracket must become half as wide."""


class _Tried(NamedTuple):
    threshold: float
    voxels: float
    """Voxels above it, about."""
    size: float
    """Voxels of the largest piece."""


class Segment(NamedTuple):
    """The largest piece of a map above a threshold."""

    mask: Array
    """Boolean, of the map's shape."""
    size: int
    """Voxels in it."""
    threshold: float
    wanted: float
    """Voxels that were asked for."""

    @property
    def fits(self) -> bool:
        """Whether the size is the wanted one within 0.1 %."""
        return abs(self.size - self.wanted) <= TOLERANCE * self.wanted


def segment_by_size(pixels: Array, wanted: float) -> Segment:
    """The piece of a map that comes nearest to a number of voxels.

    Parameters
    ----------
    pixels
        Shape (nz, ny, nx), float32, finite, not constant.
    wanted
        Voxels, above 0.

    Notes
    -----
    For a threshold the piece is that of `streamprep.em.morphology.largest_piece`; its size never grows with the
    threshold. So the threshold is found by bisection, as in Xmipp 3, until the size differs by 0.1 % at most or the
    bracket is below 1e-4 of the grey range. The points between are chosen by the number of voxels above the threshold
    (false position, in which an end that stays counts half as much each time), and in the middle where that does not
    halve the bracket in three steps. An empty piece is never the nearest.
    """
    low, high = grey_range(pixels)
    grey = histogram(pixels, low, high)
    total = float(grey.counts.sum())
    below, above = _Tried(low, total, total), _Tried(high, 0.0, 0.0)
    weights = {below: 1.0, above: 1.0}
    tried: list[_Tried] = []
    widths = [high - low]
    while True:
        excess, lack = weights[below] * (below.size - wanted), weights[above] * (wanted - above.size)
        share = lack / (excess + lack) if excess > 0 and lack > 0 else 0.5
        threshold = grey.threshold_for(above.voxels + share * (below.voxels - above.voxels))
        slow = len(widths) > _PATIENCE and widths[-1] > widths[-1 - _PATIENCE] / 2
        if slow or not below.threshold < threshold < above.threshold:
            threshold = (below.threshold + above.threshold) / 2
        here = _Tried(threshold, grey.above(threshold), largest_piece(pixels, threshold, with_mask=False).size)
        tried.append(here)
        if here.size > wanted:
            weights = {here: 1.0, above: weights[above] / 2}
            below = here
        else:
            weights = {below: weights[below] / 2, here: 1.0}
            above = here
        widths.append(above.threshold - below.threshold)
        if abs(here.size - wanted) <= TOLERANCE * wanted or widths[-1] < LEAST_BRACKET * (high - low):
            break
    filled = [each for each in tried if each.size] or [_Tried(low - (high - low), total, total)]
    nearest = min(filled, key=lambda each: abs(each.size - wanted)).threshold
    size, mask = largest_piece(pixels, nearest, with_mask=True)
    return Segment(mask, size, nearest, wanted)
