"""pick_noise: centres of boxes that hold background, away from every particle.

Coordinates are host data on every backend: a few hundred rows, read from tables and written to tables.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import scipy  # its parts are loaded when they are used: at each start that is 0.1 s or more
from pydantic import Field, field_validator

from streamprep import Context, Coordinates, InputError, Micrograph, Params, operation
from streamprep.arrays import array_namespace
from streamprep.em.free_area import BoolArray, FreeArea, free_area, nearest_runs
from streamprep.em.geometry import figure_of_merit, well_separated
from streamprep.model import Array, FloatArray, Kind

Accept = Callable[[FloatArray], BoolArray]

RELAX_STEPS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""How far the distances are relaxed, from as asked to the least allowed."""
MOST_DRAWN = 1024
"""Pixels that are drawn at once, at most."""
FEW_PIXELS = 1 << 13
"""When no more pixels than this are free and boxes are tested, each is looked at, instead of drawing from them."""
TESTED_AT_ONCE = 16
"""Boxes that are tested in one call."""
MOST_REFUSED = 1 << 11
"""Boxes that may be refused: where nearly every one is an outlier, the search ends."""
PLACEHOLDERS = ("{stem}", "{name}")
"""What may stand for the micrograph in the pattern of its mask."""
NO_PAIRS = np.empty((0, 2), dtype=np.int64)
BAND_ROWS = 32
"""Rows of pixels that are summed into one, at most, before boxes are measured."""
MOST_COMPARED = 1 << 12
"""Boxes of the micrograph that others are compared with, at most."""
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
    mask: BoolArray | None = None,
    accept: Accept | None = None,
) -> FloatArray:
    r"""Draw noise picks uniformly from the exact set of allowed positions.

    Allowed are the places x whose box B(x) lies in the micrograph and touches no pixel of the mask K, at least d from
    every particle p and s from every other pick y; each is as likely as any other:

    $$|x - p| ≥ d, \quad |x - y| ≥ s, \quad B(x) ∩ K = ∅$$

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
    mask
        Pixels that no box may touch, shape (ny, nx).
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
    found = refused = np.empty((0, 2))
    if number <= 0:
        return found
    inside = free_area(shape_px, box_size_px, mask)
    # Discs that hardly overlap are taken out of the area one by one; else the rows are cut between the particles once.
    one_by_one = len(particles_px) * distance**2 < inside.window.pixels / 3
    nearest = None if one_by_one else nearest_runs(particles_px, inside.window, distance)
    for relaxed in RELAX_STEPS if crowded == "relax" else RELAX_STEPS[:1]:
        near, apart = distance - relaxed * (distance - least), max(spacing * (1 - relaxed / 2), 1.0)
        if nearest is None:
            area = inside.away_from(particles_px, near)
        else:
            area = nearest.area(near)
            if mask is not None:
                area = area.without(inside.first, inside.end - inside.first)
        area = area.away_from(found, apart).away_from(refused, 0.5)
        found, refused = _fill(area, found, refused, apart, number, rng, accept)
        if len(found) >= number or len(refused) >= MOST_REFUSED:
            break
    return found


def _fill(
    area: FreeArea,
    found: FloatArray,
    refused: FloatArray,
    apart: float,
    number: int,
    rng: np.random.Generator,
    accept: Accept | None,
) -> tuple[FloatArray, FloatArray]:
    """Add picks of the area, at least ``apart`` from one another, until there are ``number`` or no more fit.

    The area is that of all pixels that neither ``found`` nor ``refused`` forbid. Pixels are drawn from it, and those
    that are too near to a pick made since are passed over, until most are: then these picks are taken out of the area.
    So it shrinks by a factor from one time to the next, and at the latest an empty one is the end.
    """
    size = len(found), len(refused)
    batch = int(np.clip(4 * len(area) / apart**2, 64, MOST_DRAWN))
    while len(found) < number and len(area):
        few = accept is not None and len(area) <= FEW_PIXELS
        drawn = area.shuffled(rng) if few else area.draw(min(batch, 2 * (number - len(found)) + 64), rng)
        for candidates in np.split(drawn, range(MOST_DRAWN, len(drawn), MOST_DRAWN)):
            far = candidates[~_near(candidates, found[size[0] :], apart)]
            kept, out = _first_come(far, apart, number - len(found), accept, MOST_REFUSED - len(refused))
            found, refused = np.concatenate([found, kept]), np.concatenate([refused, out])
            if len(found) >= number or len(refused) >= MOST_REFUSED:
                return found, refused
        if few:
            break  # every pixel was looked at: nothing is left
        if 4 * len(kept) < len(drawn):
            area = area.away_from(found[size[0] :], apart).away_from(refused[size[1] :], 0.5)
            size = len(found), len(refused)
        batch = int(np.clip(4 * len(kept), 64, MOST_DRAWN))
    return found, refused


def _near(points: FloatArray, others: FloatArray, distance: float) -> BoolArray:
    """Which points are nearer than a distance to any of the others; whole pixels all."""
    if not len(others):
        return np.zeros(len(points), dtype=bool)
    return np.asarray(scipy.spatial.cKDTree(others).query(points, distance_upper_bound=distance)[0] <= _below(distance))


def _below(distance: float) -> float:
    """A length between those of whole-pixel steps that are shorter than a distance, and those that are not."""
    return float(np.sqrt(max(np.ceil(distance * distance) - 0.5, 0)))


def _first_come(
    points: FloatArray, apart: float, wanted: int, accept: Accept | None, tests: int
) -> tuple[FloatArray, FloatArray]:
    """Go through the points in their order and keep those that are acceptable and not too near to one kept before.

    Returns
    -------
    kept, refused
        At most ``wanted`` points that stay; those that ``accept`` refused, at most ``tests``.
    """
    pairs = scipy.spatial.cKDTree(points).query_pairs(_below(apart), output_type="ndarray") if len(points) else NO_PAIRS
    packed = np.sort(pairs[:, 0] << 32 | pairs[:, 1])
    later = packed & 0xFFFFFFFF
    begin = np.searchsorted(packed >> 32, np.arange(len(points) + 1)).tolist()
    open_ = np.ones(len(points), dtype=bool)
    good: list[bool] = []
    kept: list[int] = []
    refused: list[int] = []
    for index in range(len(points)):
        if len(kept) >= wanted or len(refused) >= tests:
            break
        if accept is not None and index >= len(good):  # by the dozen: a call costs as much as a few boxes
            good += open_[index : index + TESTED_AT_ONCE].tolist()
            some = index + np.flatnonzero(good[index:])
            for one, passed in zip(some.tolist(), accept(points[some]).tolist() if len(some) else [], strict=True):
                good[one] = passed
        if not open_[index]:
            continue
        if accept is None or good[index]:
            kept.append(index)
            open_[later[begin[index] : begin[index + 1]]] = False
        else:
            refused.append(index)
    return points[kept], points[refused]


def outlier_test(pixels: Array, box_size_px: int) -> Accept:
    """A test that refuses boxes whose mean or log-variance lies far from those of the micrograph's boxes.

    Robust z-scores: |v - median| / (1.4826 · median absolute deviation), over a grid of boxes that do not overlap.
    """
    xp = array_namespace(pixels)
    ny, nx = (int(length) for length in pixels.shape)
    box = box_size_px
    if ny < box or nx < box:  # there is nothing to compare, and nothing to test
        return lambda points: np.ones(len(points), dtype=bool)
    # Sums down the columns of bands of a few rows. No band crosses a border of the grid's boxes.
    cuts = np.ceil(np.linspace(0, box, -(-box // BAND_ROWS) + 1)).astype(np.int64).tolist()
    rows = [y + cut for y in range(0, ny - box + 1, box) for cut in cuts[:-1]] + [ny // box * box]
    levels = [float(xp.mean(xp.astype(pixels[y, :], xp.float64))) for y in range(0, ny, -(-ny // 16))]
    origin = float(np.median([level for level in levels if np.isfinite(level)] or [0.0]))  # keeps the squares exact

    def sums(y: int, end: int, x: int, x_end: int) -> tuple[float, float]:
        if end <= y:
            return 0.0, 0.0
        cut = xp.reshape(xp.astype(pixels[y:end, x:x_end], xp.float64), (-1,)) - origin
        return float(xp.sum(cut)), float(xp.vecdot(cut, cut))

    def box_sums(x: int, y: int) -> tuple[float, float]:
        first, last = bisect_left(rows, y), bisect_right(rows, y + box) - 1
        if first >= last:
            return sums(y, y + box, x, x + box)
        above, below = sums(y, rows[first], x, x + box), sums(rows[last], y + box, x, x + box)
        inner = [float(xp.sum(part[first:last, x : x + box])) for part in (total, squares)]
        return inner[0] + above[0] + below[0], inner[1] + above[1] + below[1]

    def moments(sums: FloatArray) -> FloatArray:
        mean, square = sums.T / box**2
        return np.stack([mean, np.log(np.maximum(square - mean * mean, 0) + 1e-12)], axis=1)

    with np.errstate(over="ignore", invalid="ignore"):
        total, squares = _column_sums(pixels, rows, origin)
        wide = nx // box * box
        blocks = [
            xp.sum(xp.reshape(part[:, :wide], (ny // box, len(cuts) - 1, nx // box, box)), axis=(1, 3))
            for part in (total, squares)
        ]
        across, boxes = nx // box, (ny // box) * (nx // box)
        some = [divmod(index, across) for index in range(0, boxes, -(-boxes // MOST_COMPARED))]
        grid = np.array([[float(part[y, x]) for part in blocks] for y, x in some])
        reference = moments(grid)
    reference = reference[np.isfinite(reference).all(axis=1)]
    if not len(reference):
        return lambda points: np.zeros(len(points), dtype=bool)
    centre = np.median(reference, axis=0)
    scale = 1.4826 * np.median(np.abs(reference - centre), axis=0) + 1e-9 * (1 + np.abs(centre + np.array([origin, 0])))

    def accept(points: FloatArray) -> BoolArray:
        corners = (points.astype(np.int64) - box // 2).tolist()
        with np.errstate(over="ignore", invalid="ignore"):
            z = np.abs(moments(np.array([box_sums(x, y) for x, y in corners])) - centre) / scale
        return np.asarray((z < OUTLIER_Z).all(axis=1))

    return accept


def _column_sums(pixels: Array, rows: Sequence[int], origin: float) -> tuple[Array, Array]:
    """Sums of pixel - origin, and of its square, down each column between the rows: two of shape (bands, nx).

    Within a band of few rows in the pixels' own precision, float64 from there on.
    """
    xp = array_namespace(pixels)
    total, squares = [], []
    for y, end in pairwise(rows):
        band = pixels[y:end, :] - origin
        total.append(xp.astype(xp.sum(band, axis=0, dtype=band.dtype), xp.float64))
        squares.append(xp.astype(xp.sum(band * band, axis=0, dtype=band.dtype), xp.float64))
    return xp.stack(total), xp.stack(squares)


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
        blocked = mask > (0 if mask.dtype.kind in "iu" else 0.5)
    picks = pick_noise(
        (ny, nx),
        particles,
        number=wanted,
        box_size_px=box,
        rng=ctx.rng(),
        min_distance_px=params.min_distance_px,
        spacing_px=params.spacing_px,
        crowded=params.crowded,
        mask=blocked,
        accept=outlier_test(micrograph.pixels, box) if params.reject_outliers else None,
    )
    if len(picks) < wanted:
        free_of = ["of particles", *["of the mask"] * (blocked is not None), *["of outliers"] * params.reject_outliers]
        ctx.warn(
            f"{micrograph.name}: {len(picks)} of {wanted} noise boxes found; the area that is free "
            f"{' and '.join(free_of)} holds {'hardly any' if params.reject_outliers else 'no'} more"
        )
    if len(particles):
        nearest = scipy.spatial.cKDTree(particles).query(picks)[0] if len(picks) else np.empty(0)
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
