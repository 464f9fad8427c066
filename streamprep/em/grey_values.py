"""The grey values of maps: their range, order and histogram, and the thresholds that follow from it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from array_api_compat import device as array_device
from array_api_compat import is_numpy_array

from streamprep.arrays import array_namespace, in_slabs, to_host
from streamprep.model import Array, FloatArray

FINE_BINS = 1 << 16
ENTROPY_BINS = 300
ENTROPY_QUANTILE = 0.05
_LEAST_SHARE = 1e-15


def grey_range(pixels: Array) -> tuple[float, float]:
    """The least and the greatest value of a map (nz, ny, nx); NaN or infinite where, and only where, a value is."""
    xp = array_namespace(pixels)

    def ends(start: int, stop: int) -> tuple[float, float]:
        slab = pixels[start:stop, ...]
        return float(xp.min(slab)), float(xp.max(slab))

    found = np.array(in_slabs(ends, pixels))
    return float(found[:, 0].min()), float(found[:, 1].max())


def is_finite(pixels: Array) -> bool:
    """Whether all values of a map (nz, ny, nx) are finite."""
    return all(math.isfinite(value) for value in grey_range(pixels))


def abs_quantile(pixels: Array, fraction: float, chosen: Array | None = None) -> float:
    """The absolute value that a fraction of a map's voxels is below, one of the values there are.

    Parameters
    ----------
    pixels
        Shape (nz, ny, nx), float32, finite.
    fraction
        0 (the least) to 1 (the greatest): the value of rank ⌊fraction · (n − 1)⌋.
    chosen
        Boolean, of the same shape: the voxels that count; all unless given.

    Raises
    ------
    ValueError
        No voxel is chosen.

    Notes
    -----
    Non-negative floating point numbers are in the order of their bits: counting the upper halves of the bits finds the
    few values among which the wanted one is, and only those are sorted.
    """
    xp = array_namespace(pixels)
    if not is_numpy_array(pixels) or pixels.dtype != np.float32:
        ordered = xp.sort(xp.abs(xp.reshape(pixels, (-1,)) if chosen is None else pixels[chosen]))
        return float(ordered[_rank(int(ordered.shape[0]), fraction)])

    def bits(start: int, stop: int) -> npt.NDArray[np.int32]:
        slab = pixels[start:stop] if chosen is None else pixels[start:stop][chosen[start:stop]]
        return np.asarray(slab.view(np.int32) & 0x7FFFFFFF)

    def count(start: int, stop: int) -> npt.NDArray[np.int64]:
        return np.bincount((bits(start, stop) >> 16).ravel(), minlength=1 << 15)

    counts = np.sum(in_slabs(count, pixels), axis=0)
    rank = _rank(int(counts.sum()), fraction)
    before = np.cumsum(counts)
    half = int(np.searchsorted(before, rank, side="right"))

    def near(start: int, stop: int) -> npt.NDArray[np.int32]:
        slab = bits(start, stop)
        return np.asarray(slab[slab >> 16 == half])

    ordered = np.sort(np.concatenate(in_slabs(near, pixels)))
    place = rank - (int(before[half - 1]) if half else 0)
    return float(ordered[place : place + 1].view(np.float32)[0])


def _rank(count: int, fraction: float) -> int:
    if not count:
        raise ValueError("no voxel is chosen")
    return math.floor(fraction * (count - 1))


class Histogram(NamedTuple):
    """How many voxels have which grey value: bins of equal width from the least to the greatest."""

    low: float
    high: float
    counts: FloatArray

    @property
    def edges(self) -> FloatArray:
        """Lower edge of each bin, and at last the greatest value."""
        return np.linspace(self.low, self.high, len(self.counts) + 1)

    def above(self, threshold: float) -> float:
        """About how many voxels are above a grey value; inside a bin they are taken as evenly spread."""
        below = np.concatenate([[0.0], np.cumsum(self.counts)])
        return float(below[-1] - np.interp(threshold, self.edges, below))

    def threshold_for(self, count: float) -> float:
        """About the grey value that so many voxels are above: the inverse of `above`."""
        below = np.concatenate([[0.0], np.cumsum(self.counts)])
        return float(np.interp(below[-1] - count, below, self.edges))


def histogram(pixels: Array, low: float, high: float, bins: int = FINE_BINS) -> Histogram:
    """The histogram of a map (nz, ny, nx), float32, finite, between its least and its greatest value, low < high."""
    xp = array_namespace(pixels)
    width = (high - low) / bins
    if not is_numpy_array(pixels):
        flat = xp.sort(xp.reshape(pixels, (-1,)))
        inner = xp.asarray(low + width * np.arange(1, bins), dtype=flat.dtype, device=array_device(pixels))
        below = to_host(xp.searchsorted(flat, inner))
        return Histogram(low, high, np.diff([0, *below.tolist(), int(flat.shape[0])]).astype(np.float64))
    first, per_unit = np.float32(low), np.float32(1 / width)

    def count(start: int, stop: int) -> npt.NDArray[np.int64]:
        place = pixels[start:stop] - first
        place *= per_unit
        np.minimum(place, np.float32(bins - 1), out=place)
        return np.bincount(place.astype(np.intp).ravel(), minlength=bins)

    return Histogram(low, high, np.sum(in_slabs(count, pixels), axis=0, dtype=np.float64))


def otsu_threshold(grey: Histogram) -> float:
    """The grey value that parts voxels into two classes of the greatest variance between them (Otsu 1979).

    Notes
    -----
    Each bin counts with its middle; with `FINE_BINS` that is exact to 1/65536 of the grey range. Where several
    thresholds part the voxels in the same way, the middle one is taken.
    """
    share = grey.counts / grey.counts.sum()
    middles = (grey.edges[1:] + grey.edges[:-1]) / 2
    middles -= middles @ share
    below = np.cumsum(share)[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = np.nan_to_num(np.cumsum(share * middles)[:-1] ** 2 / (below * (1 - below)), nan=0.0, posinf=0.0)
    first = int(np.argmax(between))
    filled = np.flatnonzero(grey.counts[first + 1 :])
    last = first + (int(filled[0]) if len(filled) else 0)
    return float((grey.edges[first + 1] + grey.edges[last + 1]) / 2)


def entropy_threshold(grey: Histogram) -> float:
    """The threshold that Xmipp 3 computes where it is asked for Otsu's, from a histogram of `ENTROPY_BINS`.

    Notes
    -----
    With the classes' shares w1, w2, m1 and m2 the sums of share · grey value over each class (lower edges of the bins;
    not divided by w1 and w2) and H the sum of the entropies of both (log10), the criterion of each bin is
    −log10(w1 · w2 · (m1 − m2)²) / H. The threshold is the bin before the first one whose criterion is below the 5 %
    quantile of all.
    """
    share = grey.counts / grey.counts.sum()
    values = grey.edges[:-1]
    below = np.cumsum(share)[:-1]
    moment = np.cumsum(share * values)
    variance = below * (1 - below) * (2 * moment[:-1] - moment[-1]) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(share > _LEAST_SHARE, share * np.log10(share), 0.0)
        sums = np.cumsum(each)
        entropy = sum(
            np.where(weight > _LEAST_SHARE, np.log10(weight) - part / weight, 0.0)
            for weight, part in ((below, sums[:-1]), (1 - below, sums[-1] - sums[:-1]))
        )
        criterion = np.nan_to_num(-np.log10(variance) / entropy, nan=math.inf)
    quantile = np.sort(criterion)[min(round(ENTROPY_QUANTILE * len(share)), len(criterion) - 1)]
    lower = np.flatnonzero(criterion < quantile)
    first = int(lower[0]) if len(lower) else int(np.argmin(criterion))
    return float(values[max(first - 1, 0)])
