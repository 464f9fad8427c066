"""The exact set of pixels where the centre of a box may lie: inside the image, off a mask, away from points."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy  # its parts are loaded when they are used: at each start that is 0.1 s or more

from streamprep.model import FloatArray

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_PACK_BITS = 31
"""Places and lengths share a 64-bit word while they are sorted: images of up to 2³¹ pixels."""
_BAND = 128
"""Rows of a mask that are handled at once, to stay in the cache."""
_LOW_BITS = (1 << _PACK_BITS) - 1


@dataclass(frozen=True, slots=True)
class Window:
    """The pixels that the centre of a box may have: rows ``top`` … ``bottom`` - 1, columns ``low`` … ``high`` - 1.

    Its rows lie one behind the other on a line, each followed by a gap; pixel (x, y) is at y · ``width`` + x.
    """

    top: int
    bottom: int
    low: int
    high: int

    @property
    def width(self) -> int:
        """Distance on the line between a pixel and the one below it."""
        return self.high + 1

    @property
    def pixels(self) -> int:
        """Number of its pixels."""
        return (self.bottom - self.top) * (self.high - self.low)


@dataclass(frozen=True, slots=True)
class FreeArea:
    """A set of pixels of a window, exactly, as what lies between forbidden runs of places on the line.

    ``first`` and ``end`` are these runs, sorted and merged, the gaps between the rows among them.
    """

    first: IntArray
    end: IntArray
    window: Window

    def __len__(self) -> int:
        """Number of free pixels."""
        return int((self.first[1:] - self.end[:-1]).sum())

    def without(self, first: IntArray, length: IntArray) -> FreeArea:
        """The area less further runs, given as places on the line and positive lengths, in any order."""
        if not len(first):
            return self
        packed = np.concatenate([self.first << _PACK_BITS | (self.end - self.first), first << _PACK_BITS | length])
        packed.sort()  # one word each: a sort of plain numbers is the fastest
        start = packed >> _PACK_BITS
        end = np.maximum.accumulate(start + (packed & _LOW_BITS))
        cut = np.flatnonzero(start[1:] > end[:-1])
        return replace(self, first=start[np.append(0, cut + 1)], end=end[np.append(cut, len(end) - 1)])

    def away_from(self, points: FloatArray, distance: float) -> FreeArea:
        """The area less everything nearer than a distance [px] to any of the points, shape (n, 2): x, y [px]."""
        if distance <= 0 or not len(points):
            return self
        window = self.window
        reach = int(np.ceil(distance))
        row = np.floor(points[:, 1])[:, None] + np.arange(-reach, reach + 2)[None, :]
        square = distance * distance - (row - points[:, 1:]) ** 2
        crossed = (square > 0) & (row >= window.top) & (row < window.bottom)
        half = np.sqrt(square[crossed])
        x = np.repeat(points[:, 0], np.count_nonzero(crossed, axis=1))
        first = np.clip(np.floor(x - half) + 1, window.low, window.high)  # pixels strictly nearer than the distance
        length = np.clip(np.ceil(x + half), window.low, window.high) - first
        some = length > 0
        start = row[crossed][some] * window.width + first[some]
        return self.without(start.astype(np.int64), length[some].astype(np.int64))

    def draw(self, count: int, rng: np.random.Generator) -> FloatArray:
        """``count`` pixels, uniform over the area, with replacement; shape (count, 2): x, y."""
        length = self.first[1:] - self.end[:-1]
        ends = np.cumsum(length)
        rank = rng.integers(0, ends[-1], size=count)
        run = np.searchsorted(ends, rank, side="right")
        return self._points(self.end[run] + rank - (ends[run] - length[run]))

    def shuffled(self, rng: np.random.Generator) -> FloatArray:
        """Every pixel of the area once, in random order; shape (len, 2): x, y."""
        length = self.first[1:] - self.end[:-1]
        place = np.repeat(self.end[:-1] - np.cumsum(length) + length, length) + np.arange(length.sum())
        return self._points(rng.permutation(place))

    def _points(self, place: IntArray) -> FloatArray:
        y, x = np.divmod(place, self.window.width)
        return np.stack([x, y], axis=1).astype(np.float64)


def free_area(shape_px: tuple[int, int], box_size_px: int, mask: BoolArray | None = None) -> FreeArea:
    """Pixels where a box lies wholly inside the image, and touches no pixel of a mask.

    Parameters
    ----------
    shape_px
        (ny, nx) of the micrograph.
    box_size_px
        Side of the box [px]; about the centre c it covers c - box // 2 … c - box // 2 + box - 1.
    mask
        Shape (ny, nx): pixels that no box may touch.
    """
    ny, nx = shape_px
    low = box_size_px // 2
    window = Window(low, ny - box_size_px + low + 1, low, nx - box_size_px + low + 1)
    if window.bottom <= low or window.high <= low:
        nothing = np.zeros(1, dtype=np.int64)
        return FreeArea(nothing, nothing, Window(low, low, low, low))
    row = np.arange(low - 1, window.bottom, dtype=np.int64) * window.width
    area = FreeArea(row + window.high, row + window.width + low, window)  # from a row's end to the next
    return area if mask is None else area.without(*_touching(np.asarray(mask, dtype=bool), box_size_px, window))


def _touching(mask: BoolArray, box: int, window: Window) -> tuple[IntArray, IntArray]:
    """Runs of centres whose box touches the mask: places and lengths."""
    corners = window.high - window.low
    words = np.zeros((len(mask), -(-mask.shape[1] // 64) + 1), dtype="<u8")  # 64 pixels to a word, and an empty word
    for top in range(0, len(mask), _BAND):
        bits = np.packbits(mask[top : top + _BAND], axis=1, bitorder="little")
        band = words[top : top + _BAND]
        band.view(np.uint8)[:, : bits.shape[1]] = bits
        for step in _steps(box):  # of each bit, whether the mask has one in as many columns from there on
            band |= _shifted(band, step)
        band[:, corners // 64] &= np.uint64((1 << corners % 64) - 1)
        band[:, corners // 64 + 1 :] = 0
    spare = np.empty_like(words)
    for step in _steps(box):  # the same for rows
        rows = len(words) - step
        np.bitwise_or(words[:rows], words[step:], out=spare[:rows])
        words, spare = spare[:rows], words
    starts, lengths = [], []
    for top in range(0, len(words), _BAND):
        band = words[top : top + _BAND]
        before = band << np.uint64(1)
        before[:, 1:] |= band[:, :-1] >> np.uint64(63)
        y, x = _bits(band & ~before)
        _, end = _bits(before & ~band)
        starts.append((y + (top + window.top)) * window.width + x + window.low)
        lengths.append(end - x)
    return np.concatenate(starts), np.concatenate(lengths)


def _steps(length: int) -> list[int]:
    """By how much to move a set, and unite it with itself, so that in the end ``length`` of them are united."""
    steps, reach = [], 1
    while reach < length:
        steps.append(min(reach, length - reach))
        reach += steps[-1]
    return steps


def _shifted(words: npt.NDArray[np.uint64], step: int) -> npt.NDArray[np.uint64]:
    """Rows of bits moved ``step`` places towards their start."""
    whole, rest = divmod(step, 64)
    moved = np.zeros_like(words)
    moved[:, : words.shape[1] - whole] = words[:, whole:]
    if rest:
        carried = moved[:, 1:] << np.uint64(64 - rest)
        moved >>= np.uint64(rest)
        moved[:, :-1] |= carried
    return moved


def _bits(words: npt.NDArray[np.uint64]) -> tuple[IntArray, IntArray]:
    """Rows and columns of the bits that are set, row by row."""
    some = np.flatnonzero(words)
    bits = np.unpackbits(words.ravel()[some].view(np.uint8), bitorder="little")
    found, bit = np.divmod(np.flatnonzero(bits), 64)
    row, column = np.divmod(some[found], words.shape[1])
    return row, column * 64 + bit


@dataclass(frozen=True, slots=True)
class NearestRuns:
    """The rows of a window cut into runs of pixels that have the same nearest point.

    Made once, it gives the area at any distance from all the points without a sort.
    """

    row: IntArray
    first: FloatArray
    end: FloatArray
    """A run is the columns ``first`` … ``end`` - 1 of its row; runs are in the order of the line."""
    x: FloatArray
    square: FloatArray
    """Column of the run's nearest point, and its squared distance from the row."""
    farthest: FloatArray
    """Squared distance of the run's farthest pixel from that point."""
    window: Window

    def area(self, distance: float) -> FreeArea:
        """All pixels that are at least this far [px] from every point."""
        partly = np.flatnonzero(self.farthest >= distance * distance)
        row, first, last, x = self.row[partly], self.first[partly], self.end[partly], self.x[partly]
        square = distance * distance - self.square[partly]
        half = np.sqrt(np.maximum(square, 0))
        half[square <= 0] = -1  # all of the row is far enough: left of the point, it is so as far as the run goes
        start: FloatArray = np.empty((len(row), 2))
        end: FloatArray = np.empty((len(row), 2))
        start[:, 0], end[:, 1] = first, last
        np.clip(np.floor(x - half) + 1, first, last, out=end[:, 0])
        np.maximum(np.ceil(x + half), end[:, 0], out=start[:, 1])
        some = np.flatnonzero(end > start)
        line = row[some >> 1] * self.window.width
        start, end = line + start.ravel()[some], line + end.ravel()[some]
        cut = np.flatnonzero(start[1:] > end[:-1])  # runs of neighbours that touch are one
        behind = self.window.bottom * self.window.width
        return FreeArea(
            np.concatenate([[0], end[cut], end[-1:]]).astype(np.int64),
            np.concatenate([start[:1], start[cut + 1], [behind]]).astype(np.int64),
            self.window,
        )


def nearest_runs(points: FloatArray, window: Window, reach: float) -> NearestRuns | None:
    """Cut the rows of a window where the nearest point changes; None if no point is within ``reach`` [px] of it.

    A row's cuts are where the edges of the Voronoi diagram cross it, so there are as many as the diagram's edges are
    high, however large the distances and however much the discs about the points overlap.

    Parameters
    ----------
    points
        Shape (n, 2): x, y [px]; anywhere.
    window
        What is cut.
    reach
        Points farther than this from the window do not count [px].
    """
    low = np.array([window.low, window.top], dtype=np.float64)
    high = np.array([window.high, window.bottom], dtype=np.float64) - 1
    sites = np.unique(points[((points >= low - reach) & (points <= high + reach)).all(axis=1)], axis=0)
    if not len(sites) or (high < low).any():
        return None
    # Four sites so far out that no pixel of the window is theirs close every other cell.
    far = 4 * (float((high - low).sum()) + 2 * reach + 1)
    sites = np.concatenate([sites, (low + high) / 2 + far * np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])])
    edges, edge, row = _crossings(sites, window)
    cut = np.clip(np.floor(_bisector(sites, edges, edge, row)) + 1, window.low, window.high)
    real = len(sites) - 4
    left, right = np.minimum(edges, real)[:, edge]
    length = np.diff(row * window.width + cut)  # from a row's last cut to the next row's first: the gap
    site = right[:-1]
    some = np.flatnonzero((site < real) & (length > 0))
    gap = window.width - (window.high - window.low)
    wrong = (site != left[1:]) | (length < 0) | (site == real) & (length != gap) & (length != 0)
    # A rounding error where cells meet can spoil a row; it is cut again, site by site.
    again = np.ones(window.bottom - window.top, dtype=bool)
    again[row - window.top] = False
    again[row[np.append(wrong, False)] - window.top] = again[row[np.append(False, wrong)] - window.top] = True
    again[row[[0, -1]] - window.top] |= [left[0] < real, right[-1] < real]
    row, first, end, site = row[some], cut[some], cut[some + 1], site[some]
    if again.any():
        kept = ~again[row - window.top]
        rows = [_cut_row(sites[:real], int(y), window) for y in np.flatnonzero(again) + window.top]
        row, first, end, site = (
            np.concatenate([column[kept], *more])
            for column, more in zip((row, first, end, site), zip(*rows, strict=True), strict=True)
        )
        order = np.argsort(row, kind="stable")
        row, first, end, site = row[order], first[order], end[order], site[order]
    x, y = sites.T
    x, square = x[site], (row - y[site]) ** 2
    return NearestRuns(row, first, end, x, square, np.maximum(x - first, end - 1 - x) ** 2 + square, window)


def _bisector(sites: FloatArray, edges: IntArray, edge: IntArray, row: IntArray) -> FloatArray:
    """Columns where the line between two sites crosses rows."""
    mean = (sites[edges[0]] + sites[edges[1]]) / 2
    across = sites[edges[1]] - sites[edges[0]]
    with np.errstate(over="ignore"):
        slope = across[:, 1] / across[:, 0]
        return np.asarray(mean[:, 0][edge] - (row - mean[:, 1][edge]) * slope[edge])


def _crossings(sites: FloatArray, window: Window) -> tuple[IntArray, IntArray, IntArray]:
    """Where the edges of the sites' Voronoi diagram cross the rows.

    Returns
    -------
    edges, edge, row
        Shape (2, m): the sites left and right of each edge. Per crossing, its edge and its row, sorted by row; in a
        row, by the columns of the sites, which is the order of the crossings.
    """
    mesh = scipy.spatial.Delaunay(sites)
    a, b, c = sites[mesh.simplices].transpose(1, 2, 0)
    b, c = b - a, c - a
    with np.errstate(divide="ignore", invalid="ignore"):
        corner = a[1] + (b[0] * (c**2).sum(axis=0) - c[0] * (b**2).sum(axis=0)) / (2 * (b[0] * c[1] - b[1] * c[0]))
    corner = np.nan_to_num(np.round(corner * 2.0**20) / 2.0**20)  # where more than three cells meet: at one point
    triangle, side = np.nonzero(mesh.neighbors > np.arange(len(mesh.neighbors))[:, None])
    height = np.sort([corner[triangle], corner[mesh.neighbors[triangle, side]]], axis=0)
    begin, end = np.clip(np.ceil(height), window.top, window.bottom).astype(np.int64)
    pair = np.stack([mesh.simplices[triangle, (side + 1) % 3], mesh.simplices[triangle, (side + 2) % 3]])
    x = sites[:, 0][pair]
    pair = np.where(x[0] < x[1], pair, pair[::-1])
    some = np.flatnonzero((end > begin) & (x[0] != x[1]) & (pair.min(axis=0) < len(sites) - 4))
    some = some[np.lexsort(sites[:, 0][pair[::-1, some]])]
    begin, count = begin[some], (end - begin)[some]
    edge = np.repeat(np.arange(len(some)), count)
    row = np.arange(len(edge)) + np.repeat(begin - np.cumsum(count) + count, count)
    packed = np.sort(row << 32 | edge)
    return pair[:, some].astype(np.int64), packed & 0xFFFFFFFF, packed >> 32


def _cut_row(sites: FloatArray, y: int, window: Window) -> tuple[IntArray, FloatArray, FloatArray, IntArray]:
    """One row's runs, cut site by site: row, first, end, and site of each."""
    x, square = sites[:, 0], (y - sites[:, 1]) ** 2
    site = int(np.argmin((x - window.low) ** 2 + square))
    ends, found = [float(window.low)], []
    while ends[-1] < window.high:
        behind = np.flatnonzero(x > x[site])
        cut = (x[behind] + x[site]) / 2 + (square[behind] - square[site]) / (2 * (x[behind] - x[site]))
        found.append(site)
        ends.append(float(np.clip(np.floor(cut.min(initial=np.inf)) + 1, ends[-1], window.high)))
        if len(cut):
            site = int(behind[np.argmin(cut)])
    first, end = np.array(ends[:-1]), np.array(ends[1:])
    some = end > first
    return np.full(np.count_nonzero(some), y), first[some], end[some], np.array(found)[some]
