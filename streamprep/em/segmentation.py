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
_BISECT_EVERY = 3


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
    (false position), every third is the middle of the bracket. An empty piece is never the nearest.
    """
    low, high = grey_range(pixels)
    grey = histogram(pixels, low, high)
    total = float(grey.counts.sum())
    below, above = (low, total, total), (high, 0.0, 0.0)  # threshold, voxels above it, size of the largest piece
    tried: list[tuple[float, float, float]] = []
    while True:
        share = (wanted - above[2]) / max(below[2] - above[2], 1.0)
        threshold = grey.threshold_for(above[1] + share * (below[1] - above[1]))
        if len(tried) % _BISECT_EVERY == _BISECT_EVERY - 1 or not below[0] < threshold < above[0]:
            threshold = (below[0] + above[0]) / 2
        size = largest_piece(pixels, threshold, with_mask=False).size
        here = (threshold, grey.above(threshold), float(size))
        tried.append(here)
        if size > wanted:
            below = here
        else:
            above = here
        if abs(size - wanted) <= TOLERANCE * wanted or above[0] - below[0] < LEAST_BRACKET * (high - low):
            break
    filled = [each for each in tried if each[2]] or [(below[0] - (high - low), total, total)]
    nearest = min(filled, key=lambda each: abs(each[2] - wanted))[0]
    size, mask = largest_piece(pixels, nearest, with_mask=True)
    return Segment(mask, size, nearest, wanted)
