"""pick_noise: centres of boxes that hold background, away from every particle.

Coordinates are host data on every backend: a few hundred rows, read from tables and written to tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy import ndimage
from scipy.spatial import cKDTree

from streamprep import Context, Coordinates, InputError, Micrograph, Params, operation
from streamprep.arrays import array_namespace
from streamprep.model import Array, FloatArray, Kind

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Accept = Callable[[FloatArray], BoolArray]

RELAX_STEPS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""How far the distances are relaxed, from as asked to the least allowed."""
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

    def companions(self) -> Mapping[Kind, str | None]:
        """A micrograph waits for its mask where one is asked for."""
        return {"mask": self.mask} if self.mask else {}


@dataclass(frozen=True, slots=True)
class FreeArea:
    """All the allowed centres of a micrograph, as runs of pixels along rows: exact, and small."""

    row: IntArray
    first: IntArray
    length: IntArray

    def __len__(self) -> int:
        """Number of allowed pixels."""
        return int(self.length.sum())

    def draw(self, count: int, rng: np.random.Generator) -> FloatArray:
        """``count`` pixels, uniform over the area, with replacement; shape (count, 2): x, y."""
        ends = np.cumsum(self.length)
        rank = rng.integers(0, ends[-1], size=count)
        run = np.searchsorted(ends, rank, side="right")
        x = self.first[run] + rank - (ends[run] - self.length[run])
        return np.stack([x, self.row[run]], axis=1).astype(np.float64)


def free_area(
    shape_px: tuple[int, int],
    box_size_px: int,
    discs: list[tuple[FloatArray, float]],
    blocked: BoolArray | None = None,
) -> FreeArea:
    """Pixels where a box lies inside the image, no nearer to given points than asked, and off a mask.

    Parameters
    ----------
    shape_px
        (ny, nx) of the micrograph.
    box_size_px
        Side of the box [px].
    discs
        Pairs of points, shape (n, 2), and the distance to keep from them [px]; that distance itself is allowed.
    blocked
        Shape (ny, nx): centres that are not allowed.

    Returns
    -------
    FreeArea
        Exact: each disc forbids, on each row it crosses, one run of pixels; the runs are sorted and merged.
    """
    ny, nx = shape_px
    low = box_size_px // 2
    y_end, x_end = ny - box_size_px + low + 1, nx - box_size_px + low + 1
    nothing = np.empty(0, dtype=np.int64)
    if y_end <= low or x_end <= low:
        return FreeArea(nothing, nothing, nothing)

    rows, firsts, ends = [], [], []
    for points, distance in discs:
        if distance <= 0 or not len(points):
            continue
        reach = int(np.ceil(distance))
        y = np.floor(points[:, 1]).astype(np.int64)[:, None] + np.arange(-reach, reach + 2)[None, :]
        square = distance * distance - (y - points[:, 1:]) ** 2
        crossed = (square > 0) & (y >= low) & (y < y_end)
        half = np.sqrt(square[crossed])
        x = np.broadcast_to(points[:, :1], y.shape)[crossed]
        rows.append(y[crossed])
        firsts.append(np.floor(x - half).astype(np.int64) + 1)  # pixels strictly nearer than the distance
        ends.append(np.ceil(x + half).astype(np.int64))
    if blocked is not None:
        edge = np.zeros((y_end - low, x_end - low + 2), dtype=np.int8)
        edge[:, 1:-1] = blocked[low:y_end, low:x_end]
        turn = np.diff(edge, axis=1)
        y_first, x_first = np.nonzero(turn == 1)
        _, x_last = np.nonzero(turn == -1)
        rows.append(y_first + low)
        firsts.append(x_first + low)
        ends.append(x_last + low)
    every = np.arange(low, y_end)  # a run of no length at each row's end closes the row
    rows.append(every)
    firsts.append(np.full(len(every), x_end))
    ends.append(np.full(len(every), x_end))

    row = np.concatenate(rows)
    first = np.clip(np.concatenate(firsts), low, x_end)
    end = np.clip(np.concatenate(ends), low, x_end)
    width = x_end + 1
    order = np.argsort(row * width + first, kind="stable")
    row, first, end = row[order], first[order], end[order]
    # the farthest end so far on the same row: a running maximum that a later row always exceeds
    reached = np.maximum.accumulate(row * width + end) - row * width
    before = np.empty_like(reached)
    before[0], before[1:] = low, reached[:-1]
    before[1:][row[1:] != row[:-1]] = low
    gap = first - np.clip(before, low, None)
    free = gap > 0
    return FreeArea(row[free], before[free], gap[free])


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
    picks = np.empty((0, 2))
    refused = np.empty((0, 2))
    for relaxed in RELAX_STEPS if crowded == "relax" else RELAX_STEPS[:1]:
        near, apart = distance - relaxed * (distance - least), spacing * (1 - relaxed / 2)
        while len(picks) < number:
            # what chance already met and `accept` refused is no longer free, nor are the picks themselves
            taken = [(particles_px, near), (picks, max(apart, 0.5)), (refused, 0.5)]
            area = free_area(shape_px, box_size_px, taken, blocked)
            if not len(area):
                break
            wanted = number - len(picks)
            drawn = area.draw(max(64, 2 * wanted), rng)
            allowed = np.ones(len(drawn), dtype=bool) if accept is None else accept(drawn)
            refused = np.concatenate([refused, drawn[~allowed]])
            picks = np.concatenate([picks, _spaced(drawn[allowed], max(apart, 0.5))[:wanted]])
            if len(refused) > 50 * (number + 64):
                break  # nearly everything is an outlier: what is left is not worth a search
        if len(picks) >= number:
            break
    return picks


def _spaced(points: FloatArray, apart: float) -> FloatArray:
    """The points in their order, without those nearer than ``apart`` to an earlier one that was kept."""
    if len(points) < 2:
        return points
    kept = np.ones(len(points), dtype=bool)
    near = cKDTree(points).query_pairs(np.nextafter(apart, 0.0), output_type="ndarray")
    near = np.sort(near, axis=1)
    for earlier, later in near[np.lexsort((near[:, 1], near[:, 0]))].tolist():
        if kept[earlier]:
            kept[later] = False
    return points[kept]


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
        wanted = _extractable(particles, ctx.box_size_px or box, (ny, nx), ctx.edge)
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


def _extractable(xy_px: FloatArray, box_px: int, shape_px: tuple[int, int], edge: str) -> int:
    """How many particles extraction will cut: those whose box, or with padding whose centre, is on the image."""
    ny, nx = shape_px
    if edge == "pad":
        low = -0.5
        high = np.array([nx, ny]) - 0.5
        return int(np.count_nonzero(((xy_px >= low) & (xy_px < high)).all(axis=1)))
    corner = np.floor(xy_px + 0.5) - box_px // 2
    return int(np.count_nonzero(((corner >= 0) & (corner + box_px <= np.array([nx, ny]))).all(axis=1)))
