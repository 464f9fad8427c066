"""pick_noise: centres of boxes that hold background, away from every particle.

Coordinates are host data on every backend: a few hundred rows, read from tables and written to tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator
from scipy import ndimage
from scipy.spatial import cKDTree

from streamprep import Context, Coordinates, InputError, Micrograph, Params, operation
from streamprep.arrays import array_namespace
from streamprep.em.geometry import figure_of_merit, well_separated
from streamprep.model import Array, FloatArray, Kind

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Accept = Callable[[FloatArray], BoolArray]

RELAX_STEPS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""How far the distances are relaxed, from as asked to the least allowed."""
FEW_PIXELS = 1 << 15
"""When no more pixels than this are free, each is looked at, instead of drawing from them."""
TESTED_PIXELS = 1 << 27
"""Pixels of boxes that `accept` may look at in vain: where nearly every box is an outlier, the search ends."""
PLACEHOLDERS = ("{stem}", "{name}")
"""What may stand for the micrograph in the pattern of its mask."""
_LENGTH_BITS = 18
OUTLIER_Z = 4.0
"""Robust z-score of a box's mean or log-variance beyond which `reject_outliers` drops it."""


class PickNoise(Params):
    """Pick boxes of background, to train and to check against."""

    number: int = Field(
        -1, ge=-1, description="Noise picks per micrograph; -1: as many as particles will be extracted."
    )
    box_size_px: int | None = Field(None, ge=2, description="Box size [px]; that of extraction unless given.")
    min_distance_px: float | None = Field(
        None,
        ge=0,
        description="Least distance between a noise pick and any particle, centre to centre [px]; one box.",
    )
    crowded: Literal["relax", "fewer"] = Field(
        "relax",
        description="When the free area is too small: relax the distances in steps, down to half a box from "
        "particles, or pick fewer.",
    )
    spacing_px: float | None = Field(None, ge=0, description="Least distance between two noise picks [px]; half a box.")
    mask: str | None = Field(
        None, description="Pattern of a mask per micrograph, 1 = keep out, for example 'Masks/{stem}.mrc'."
    )
    reject_outliers: bool = Field(
        False,
        description="Leave out boxes whose mean or variance is an outlier of the micrograph: carbon, ice.",
    )

    @field_validator("mask")
    @classmethod
    def _known_placeholders(cls, mask: str | None) -> str | None:
        for placeholder in re.findall(r"\{[^{}]*\}", mask or ""):
            if placeholder not in PLACEHOLDERS:
                raise ValueError(f"{placeholder} is unknown; allowed are {' and '.join(PLACEHOLDERS)}")
        return mask

    def companions(self) -> Mapping[Kind, str | None]:
        """A micrograph waits for its mask where one is asked for."""
        return {"mask": self.mask} if self.mask else {}


@dataclass(frozen=True, slots=True)
class FreeArea:
    """All the allowed centres of a micrograph, exactly, as what lies between the forbidden runs of pixels.

    The rows are laid one behind the other on a line; pixel (x, y) is at y · ``width`` + x. ``first`` and ``end`` are
    the sorted, merged runs that are forbidden, the borders of each row among them.
    """

    first: IntArray
    end: IntArray
    width: int
    window: tuple[int, int, int, int]
    """The first and last row, the first column, and the one behind the last, that a centre may have."""

    def __len__(self) -> int:
        """Number of allowed pixels."""
        return int((self.first[1:] - self.end[:-1]).sum())

    def without(self, first: IntArray, length: IntArray) -> FreeArea:
        """The area less further runs of pixels, given as places on the line and lengths."""
        if not len(first):
            return self
        packed = np.sort(first << _LENGTH_BITS | length)  # one word each: a sort of plain numbers is the fastest
        first = packed >> _LENGTH_BITS
        start = np.concatenate([self.first, first])
        end = np.concatenate([self.end, first + (packed & ((1 << _LENGTH_BITS) - 1))])
        order = np.argsort(start, kind="stable")  # of two sorted halves: a merge
        start, end = start[order], np.maximum.accumulate(end[order])
        cut = np.flatnonzero(start[1:] > end[:-1])
        return replace(self, first=start[np.append(0, cut + 1)], end=end[np.append(cut, len(end) - 1)])

    def away_from(self, points: FloatArray, distance: float) -> FreeArea:
        """The area less everything nearer to any of the points, shape (n, 2), than a distance [px]."""
        if distance <= 0 or not len(points):
            return self
        top, bottom, low, high = self.window
        reach = int(np.ceil(distance))
        row = np.floor(points[:, 1])[:, None] + np.arange(-reach, reach + 2)[None, :]
        square = distance * distance - (row - points[:, 1:]) ** 2
        crossed = (square > 0) & (row >= top) & (row <= bottom)
        half = np.sqrt(square[crossed])
        x = np.repeat(points[:, 0], np.count_nonzero(crossed, axis=1))
        first = np.clip(np.floor(x - half) + 1, low, high)  # pixels strictly nearer than the distance
        end = np.clip(np.ceil(x + half), low, high)
        some = end > first
        start = (row[crossed] * self.width + first)[some].astype(np.int64)
        return self.without(start, (end - first)[some].astype(np.int64))

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
        return np.stack([place % self.width, place // self.width], axis=1).astype(np.float64)


def free_area(shape_px: tuple[int, int], box_size_px: int, blocked: BoolArray | None = None) -> FreeArea:
    """Pixels where a box lies inside the image, and off a mask.

    Parameters
    ----------
    shape_px
        (ny, nx) of the micrograph.
    box_size_px
        Side of the box [px].
    blocked
        Shape (ny, nx): centres that are not allowed.
    """
    ny, nx = shape_px
    low = box_size_px // 2
    y_end, x_end = ny - box_size_px + low + 1, nx - box_size_px + low + 1
    if y_end <= low or x_end <= low:
        nothing = np.zeros(1, dtype=np.int64)
        return FreeArea(nothing, nothing, 1, (0, -1, 0, 0))
    width = x_end + 1
    rows = np.arange(low - 1, y_end, dtype=np.int64)
    window = (low, y_end - 1, low, x_end)
    area = FreeArea(rows * width + x_end, (rows + 1) * width + low, width, window)  # from a row's end to the next
    if blocked is None:
        return area
    edge = np.zeros((y_end - low, x_end - low + 2), dtype=np.int8)
    edge[:, 1:-1] = blocked[low:y_end, low:x_end]
    turn = np.diff(edge, axis=1)
    y, first = np.nonzero(turn == 1)
    _, end = np.nonzero(turn == -1)
    return area.without((y + low) * width + first + low, end - first)


def keep_out(mask: npt.NDArray[np.generic], box_size_px: int) -> BoolArray:
    """Centres whose box would touch a mask (values above 0.5); same shape as the mask."""
    touched = np.asarray(mask) > 0.5
    for axis in (0, 1):  # scipy's window of size b about c is ours: c − b // 2 … c − b // 2 + b − 1
        touched = ndimage.maximum_filter1d(touched, box_size_px, axis=axis, mode="constant", cval=0)
    return np.asarray(touched, dtype=bool)


def pick_noise(
    shape_px: tuple[int, int],
    particles_px: FloatArray,
    *,
    number: int,
    box_size_px: int,
    rng: np.random.Generator,
    min_distance_px: float | None = None,
    spacing_px: float | None = None,
    crowded: Literal["relax", "fewer"] = "relax",
    blocked: BoolArray | None = None,
    accept: Accept | None = None,
) -> FloatArray:
    """Draw noise picks uniformly from the exact set of allowed positions.

    Parameters
    ----------
    shape_px
        (ny, nx) of the micrograph.
    particles_px
        Particle centres, shape (n, 2): x, y [px].
    number
        How many are wanted.
    box_size_px
        Side of a box, which lies wholly inside the micrograph [px].
    rng
        Where chance comes from.
    min_distance_px
        Least distance to any particle, default one box. ``crowded = "relax"`` lowers it in steps to half a box (Xmipp
        3's fixed value), never below.
    spacing_px
        Least distance between two noise picks, default half a box, relaxed in the same steps to half of that.
    blocked
        Centres that are not allowed, shape (ny, nx); see `keep_out`.
    accept
        Takes candidates, shape (m, 2), and says which may stay.

    Returns
    -------
    ndarray
        Shape (m, 2), m ≤ number: x, y [px], whole pixels. Picks found at the distances asked for come first.
    """
    distance = float(box_size_px if min_distance_px is None else min_distance_px)
    spacing = float(box_size_px / 2 if spacing_px is None else spacing_px)
    least = min(distance, box_size_px / 2)
    everywhere = free_area(shape_px, box_size_px, blocked)
    found: list[FloatArray] = []
    count, tests = 0, number + min(TESTED_PIXELS // box_size_px**2, 1 << 14)
    for relaxed in RELAX_STEPS if crowded == "relax" else RELAX_STEPS[:1]:
        near, apart = distance - relaxed * (distance - least), max(spacing * (1 - relaxed / 2), 0.5)
        area = everywhere.away_from(particles_px, near)
        for points in found:
            area = area.away_from(points, apart)
        while count < number and tests > 0 and len(area):
            few = len(area) <= FEW_PIXELS
            drawn = area.shuffled(rng) if few else area.draw(_draws(number - count, len(area), apart), rng)
            points, refused = _accepted(drawn, apart, number - count, accept, tests)
            found.append(points)
            count, tests = count + len(points), tests - len(refused)
            if few:
                break  # every pixel was looked at: nothing is left at these distances
            area = area.away_from(points, apart).away_from(refused, 0.5)
        if count >= number:
            break
    return np.concatenate([np.empty((0, 2)), *found])


def _draws(wanted: int, area_px: int, apart: float) -> int:
    """How many pixels to draw at once: enough, but not so many that most are in one another's way."""
    return int(np.clip(8 * area_px / (np.pi * apart * apart), 64, min(4 * wanted + 64, 1024)))


def _accepted(
    drawn: FloatArray, apart: float, wanted: int, accept: Accept | None, tests: int
) -> tuple[FloatArray, FloatArray]:
    """Go through the points in their order and keep those that are acceptable and not too near to one kept before.

    Returns
    -------
    kept, refused
        At most ``wanted`` points that stay; those that ``accept`` refused, at most ``tests``.
    """
    x, y = drawn.T.copy()
    open_ = np.ones(len(drawn), dtype=bool)
    kept: list[int] = []
    refused: list[int] = []
    index = 0
    while len(kept) < wanted and len(refused) < tests:
        step = int(np.argmax(open_[index:])) if index < len(open_) else 0
        index += step
        if index >= len(open_) or not open_[index]:
            break
        if accept is None or accept(drawn[index : index + 1])[0]:
            kept.append(index)
            open_[index:] &= (x[index:] - x[index]) ** 2 + (y[index:] - y[index]) ** 2 >= apart * apart
        else:
            refused.append(index)
            open_[index] = False
    return drawn[kept], drawn[refused]


def outlier_test(pixels: Array, box_size_px: int) -> Accept:
    """A test that refuses boxes whose mean or log-variance lies far from those of the micrograph's boxes.

    Robust z-scores: |v − median| / (1.4826 · median absolute deviation), over a grid of boxes that do not overlap.
    """
    xp = array_namespace(pixels)
    ny, nx = (int(length) for length in pixels.shape)
    box = box_size_px

    def measure(corners: IntArray) -> FloatArray:
        found = np.empty((len(corners), 2))
        for index, (x, y) in enumerate(corners.tolist()):
            cut = xp.astype(pixels[y : y + box, x : x + box], xp.float64)
            found[index] = float(xp.mean(cut)), np.log(float(xp.var(cut)) + 1e-12)
        return found

    grid_y, grid_x = np.mgrid[0 : ny - box + 1 : box, 0 : nx - box + 1 : box]
    reference = measure(np.stack([grid_x.ravel(), grid_y.ravel()], axis=1))
    if not len(reference):  # no box fits into the micrograph: there is nothing to compare, and nothing to test
        return lambda points: np.ones(len(points), dtype=bool)
    centre = np.median(reference, axis=0)
    scale = 1.4826 * np.median(np.abs(reference - centre), axis=0) + 1e-9 * (1 + np.abs(centre))

    def accept(points: FloatArray) -> BoolArray:
        z = np.abs(measure(points.astype(np.int64) - box // 2) - centre) / scale
        return np.asarray((z < OUTLIER_Z).all(axis=1))

    return accept


@operation("process_coordinates", order=10, params=PickNoise, name="pick_noise")
def pick_noise_coordinates(
    coordinates: Coordinates, micrograph: Micrograph, params: PickNoise, ctx: Context
) -> Coordinates:
    """Add a set of noise coordinates beside the particles'."""
    box = params.box_size_px or coordinates.box_size_px or ctx.box_size_px
    if box is None:
        raise ValueError("pick_noise.box_size_px is not set, and neither [extract] nor the coordinates have one")
    ny, nx = micrograph.shape_px
    particles = coordinates.xy_px
    wanted = params.number
    if wanted < 0:
        there = _extractable(particles, ctx.box_size_px or box, (ny, nx), ctx.edge)
        if ctx.min_separation_px is not None:
            score = figure_of_merit(coordinates)
            there[there] = well_separated(
                particles[there], ctx.min_separation_px, None if score is None else score[there]
            )
        wanted = int(np.count_nonzero(there))
    blocked = None
    if "mask" in ctx.companions and ctx.read_image is not None:
        mask = np.squeeze(ctx.read_image(ctx.companions["mask"]))
        if mask.shape != (ny, nx):
            raise InputError(
                ctx.companions["mask"],
                f"the mask is {' × '.join(map(str, mask.shape[::-1]))} px, its micrograph {nx} × {ny} px; "
                "they must be equal",
            )
        blocked = keep_out(mask, box)
    picks = pick_noise(
        (ny, nx),
        particles,
        number=wanted,
        box_size_px=box,
        rng=ctx.rng(),
        min_distance_px=params.min_distance_px,
        spacing_px=params.spacing_px,
        crowded=params.crowded,
        blocked=blocked,
        accept=outlier_test(micrograph.pixels, box) if params.reject_outliers else None,
    )
    if len(picks) < wanted:
        ctx.warn(
            f"{micrograph.name}: {len(picks)} of {wanted} noise boxes found; the area that is free of particles"
            f"{' and of the mask' if blocked is not None else ''} holds no more"
        )
    if len(particles):
        nearest = cKDTree(particles).query(picks)[0] if len(picks) else np.empty(0)
    else:
        nearest = np.full(len(picks), np.inf)
    asked = params.min_distance_px if params.min_distance_px is not None else box
    closer = int(np.count_nonzero(nearest < asked))
    if closer:
        ctx.warn(
            f"{micrograph.name}: {closer} of {len(picks)} noise boxes are nearer to a particle than the {asked:g} px "
            "asked for"
        )
    distance = np.where(np.isfinite(nearest), nearest, float(np.hypot(ny, nx)))
    return Coordinates(
        xy_px=picks, label="noise", box_size_px=box, columns={"streamprepNearestParticlePixels": distance}
    )


def _extractable(xy_px: FloatArray, box_px: int, shape_px: tuple[int, int], edge: str) -> BoolArray:
    """Which particles extraction will cut: those whose box, or with padding whose centre, is on the image."""
    ny, nx = shape_px
    if edge == "pad":
        low = -0.5
        high = np.array([nx, ny]) - 0.5
        return np.asarray(((xy_px >= low) & (xy_px < high)).all(axis=1))
    corner = np.floor(xy_px + 0.5) - box_px // 2
    return np.asarray(((corner >= 0) & (corner + box_px <= np.array([nx, ny]))).all(axis=1))
