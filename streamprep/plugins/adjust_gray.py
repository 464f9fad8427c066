"""adjust_gray: make a map's grey values those that a set of images of the same structure asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from array_api_compat import device as array_device
from pydantic import Field, field_validator

from streamprep import Context, InputError, Map, Params, operation
from streamprep.arrays import array_namespace
from streamprep.em.projection import (
    GreyFit,
    central_slices,
    is_point_group,
    moments_fit,
    project,
    table_orientations,
    unit_projections,
)
from streamprep.em.projection_matching import match_projections
from streamprep.model import Array, FloatArray, ImageSample

_PIXEL_SIZES_ALIKE = 0.01
_ROUNDING = 6e-8
"""Of float32: half a step."""
_PART = 16
"""Images projected at a time."""


class AdjustGray(Params):
    """Find a and b so that projections of a·V + b look like the images, and replace the map V by that."""

    images: str = Field(
        min_length=1,
        description="STAR or Xmipp table of particles, averages or 2D classes, or a stack of them: images of the map's "
        "structure, with its box and pixel size.",
    )

    def files(self) -> Mapping[str, str]:
        """What maps wait for."""
        return {"images": self.images}

    max_images: int = Field(200, ge=1, description="Of more images so many are drawn at random.")
    method: Literal["projection", "moments"] = Field(
        "projection",
        description="projection: least squares between images and projections of the map. moments: from means and "
        "standard deviations alone, as Xmipp 3; a is then too large for maps that are not white noise.",
    )
    symmetry: str = Field(
        "c1", description="Point group of the map, for the estimate of orientations that the table does not have."
    )
    angular_step_deg: float = Field(
        5.0, ge=1, le=30, description="Between the projections that this estimate begins with [°]."
    )

    @field_validator("symmetry")
    @classmethod
    def _known_group(cls, symmetry: str) -> str:
        if not is_point_group(symmetry):
            raise ValueError(f"{symmetry!r} is no point group; allowed are names such as c1, c4, d2, t, o, i1")
        return symmetry


class Adjustment(NamedTuple):
    """What `adjustment` finds."""

    a: float
    b: float
    scores: Array | None
    """Shape (n,): correlation of each image with its projection; None where the orientations were given."""


def adjustment(
    volume: Array,
    images: ImageSample,
    orientations: tuple[FloatArray, FloatArray] | None,
    *,
    pixel_size_angstrom: float,
    symmetry: str = "c1",
    angular_step_deg: float = 5.0,
) -> Adjustment | None:
    """Fit a and b so that projections of a·V + b are like images.

    Parameters
    ----------
    volume
        Shape (n, n, n), finite.
    images
        Of n × n pixels.
    orientations
        Matrices (k, 3, 3) and shifts (k, 2) [px], see `streamprep.em.projection`; estimated where None.
    pixel_size_angstrom
        Of the map; for the CTF.
    symmetry, angular_step_deg
        Of the estimate, see `streamprep.em.projection_matching.match_projections`.

    Returns
    -------
    Adjustment or None
        None where the map's projections do not differ from those of a unit map.

    Notes
    -----
    Least squares over all pixels inside the inscribed circle: images ≈ C·P(a·V + b), where P projects, and C is the
    image's CTF where it is known, its absolute value where the phases were flipped. The map goes on outside of its box
    with the mean of its background, so a map that is 1 everywhere has the projection n.
    """
    xp, place = array_namespace(volume), array_device(volume)
    pixels = xp.asarray(images.pixels, device=place)
    size, count = int(volume.shape[0]), len(images.pixels)
    mean, _ = _moments(volume)
    volume = volume - mean  # a large one would leave no digits for the rest
    scores = None
    if orientations is None:
        found = match_projections(
            volume,
            pixels,
            symmetry=symmetry,
            step_deg=angular_step_deg,
            ctfs=images.ctf,
            phase_flipped=images.phase_flipped,
            pixel_size_angstrom=pixel_size_angstrom,
        )
        matrices, shifts, scores = found
    else:
        matrices, shifts = (xp.asarray(values, device=place) for values in orientations)
    slices = central_slices(volume)
    fit = GreyFit(size)
    for start in range(0, count, _PART):
        some = slice(start, min(count, start + _PART))
        ctfs = None if images.ctf is None else images.ctf[some]
        flipped = None if images.phase_flipped is None else images.phase_flipped[some]
        projections = project(
            slices,
            matrices[some, ...],
            shifts[some, :],
            ctfs=ctfs,
            phase_flipped=flipped,
            pixel_size_angstrom=pixel_size_angstrom,
        )
        fit.add(pixels[some, ...], projections, unit_projections(size, int(projections.shape[0]), ctfs, flipped))
    solved = fit.solve()
    if solved is None:
        return None
    a, b = solved
    return Adjustment(a, b - a * mean, scores)


@operation("process_map", order=60, params=AdjustGray, name="adjust_gray")
def adjust_gray(map: Map, params: AdjustGray, ctx: Context) -> Map:  # noqa: A002
    r"""Adjust the grey values of a map to a set of images: V becomes a·V + b.

    $$∑_k |I_k - C_k P_k (a V + b)|^2 \quad \text{is least}, \quad V' = a V + b$$

    With method projection, a and b are the least squares of images ≈ C·P(a·V + b) over all pixels inside the inscribed
    circle. P projects along the orientation of the image, from the table or estimated: the best of projections over the
    asymmetric unit, turned in the plane and moved, then refined. C is the image's CTF where it is known, its absolute
    value where the phases were flipped. The map goes on outside of its box with the mean of its background.

    Maps whose table of images names stacks that are not there wait for them. Images are drawn once per map, by the seed
    of the session and the map's name.
    """
    xp = array_namespace(map.pixels)
    shape = tuple(int(side) for side in map.pixels.shape)
    if len(set(shape)) != 1:
        raise InputError(
            ctx.item.path,
            f"adjust_gray needs a cube, as images are square; this map has {' × '.join(_sides(shape))} voxels",
        )
    if not bool(xp.all(xp.isfinite(map.pixels))):
        raise InputError(ctx.item.path, "adjust_gray: it holds values that are not finite (NaN or infinite)")
    images = _images(map, params, ctx)
    if params.method == "moments":
        a, b = _by_moments(map.pixels, images, ctx)
        ctx.note(f"adjust_gray: a = {a:.6g}, b = {b:.6g} from the moments of {len(images.pixels)} images")
    else:
        a, b = _by_projection(map, images, params, ctx)
    if a <= 0:
        ctx.warn(
            f"adjust_gray: a = {a:.4g}; map and images have opposite contrast, or are not of the same structure; "
            "invert one of them"
        )
    pixels = xp.astype(map.pixels, xp.float32) * a
    pixels += b
    return map.with_pixels(pixels)


def _sides(shape: tuple[int, ...]) -> list[str]:
    """Sides of a map as x, y, z."""
    return [str(side) for side in reversed(shape)]


def _images(volume: Map, params: AdjustGray, ctx: Context) -> ImageSample:
    path, size = Path(params.images), int(volume.pixels.shape[0])
    if ctx.sample_images is None:
        raise InputError(path, "sets of images cannot be read here")
    images = ctx.sample_images(path, params.max_images, ctx.rng("images"))
    ny, nx = images.pixels.shape[1:]
    if (ny, nx) != (size, size):
        raise InputError(
            path, f"its images have {nx} × {ny} pixels, the map {ctx.item.path} {size}³ voxels; they must be as large"
        )
    theirs, ours = images.pixel_size_angstrom, volume.pixel_size_angstrom
    if theirs is not None and abs(theirs - ours) > _PIXEL_SIZES_ALIKE * ours:
        raise InputError(
            path,
            f"its images have a pixel size of {theirs:g} Å, the map {ctx.item.path} {ours:g} Å; they must be the same",
        )
    empty = np.ptp(images.pixels, axis=(1, 2)) == 0
    if empty.all():
        raise InputError(path, "all of its images are constant")
    if not empty.any():
        return images
    ctx.warn(f"adjust_gray: {int(empty.sum())} of {len(empty)} images are constant, such as empty classes; left out")
    kept = np.flatnonzero(~empty).tolist()
    return replace(
        images,
        pixels=images.pixels[kept],
        ctf=None if images.ctf is None else tuple(images.ctf[index] for index in kept),
        phase_flipped=None if images.phase_flipped is None else tuple(images.phase_flipped[index] for index in kept),
        columns={name: values[kept] for name, values in images.columns.items()},
    )


def _by_moments(pixels: Array, images: ImageSample, ctx: Context) -> tuple[float, float]:
    mean, deviation = _moments(pixels)
    if deviation <= _ROUNDING * abs(mean):
        raise _constant(ctx)
    of_images = [_moments(image) for image in images.pixels]
    means, deviations = (np.array(values) for values in zip(*of_images, strict=True))
    return moments_fit(math.prod(pixels.shape), mean, deviation, means, deviations)


def _moments(pixels: Array) -> tuple[float, float]:
    """Mean, and standard deviation (ddof = 1), plane by plane in float64."""
    xp = array_namespace(pixels)
    count = math.prod(pixels.shape)
    mean = sum(float(xp.sum(pixels[row, ...], dtype=xp.float64)) for row in range(int(pixels.shape[0]))) / count
    square = 0.0
    for row in range(int(pixels.shape[0])):
        off = xp.astype(pixels[row, ...], xp.float64) - mean
        square += float(xp.sum(off * off))
    return mean, math.sqrt(square / max(1, count - 1))


def _by_projection(volume: Map, images: ImageSample, params: AdjustGray, ctx: Context) -> tuple[float, float]:
    try:
        orientations = table_orientations(images.columns, volume.pixel_size_angstrom)
    except ValueError as error:
        raise InputError(params.images, str(error)) from error
    if orientations is None and any(name in images.columns for name in ("rlnAngleRot", "angleRot")):
        ctx.warn(
            f"adjust_gray: {params.images} says rot = 0 and tilt = 0 of all images, or does not say tilt or psi; "
            "orientations are estimated"
        )
    found = adjustment(
        volume.pixels,
        images,
        orientations,
        pixel_size_angstrom=volume.pixel_size_angstrom,
        symmetry=params.symmetry,
        angular_step_deg=params.angular_step_deg,
    )
    if found is None:
        raise _constant(ctx)
    said = "orientations from the table"
    if found.scores is not None:
        scores = sorted(float(score) for score in found.scores)
        middle = scores[len(scores) // 2]
        said = f"orientations estimated, correlation {middle:.3f} in the median, {scores[0]:.3f} at least"
    drawn = f"{len(images.pixels)} of {images.total} images"
    ctx.note(f"adjust_gray: a = {found.a:.6g}, b = {found.b:.6g} from {drawn}, {said}")
    return found.a, found.b


def _constant(ctx: Context) -> InputError:
    return InputError(ctx.item.path, "the map is constant; grey values cannot be adjusted to images")
