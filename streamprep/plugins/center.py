"""center: move each particle to the middle of its box, and keep its metadata true."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from pydantic import Field

from streamprep import Context, Coordinates, InputError, Params, Particles, operation
from streamprep.arrays import to_host
from streamprep.em.centering import Method, center
from streamprep.model import Columns, FloatArray

SHIFT = ("streamprepShiftXAngst", "streamprepShiftYAngst")
"""How far the image's content was moved along x and y [Å]: what was at p is at p + shift."""
ROTATION = "streamprepRotationDeg"
"""By how much it was turned after that about the origin pixel, from x towards y [°]."""
ORIGINS = (("rlnOriginXAngst", "rlnOriginYAngst", True), ("rlnOriginX", "rlnOriginY", False))
"""RELION's shifts that are still to be applied; whether they are in Å."""
PSI = "rlnAnglePsi"
"""RELION's in-plane turn that is still to be applied, after the shift, from x towards y [°]."""


class Center(Params):
    """Move each particle to the middle of its box."""

    method: Method = Field(
        "mirror",
        description="mirror: the symmetry centre, found by correlation with the image's own mirror images. mass: the "
        "centre of mass of what is brighter than background mean + std; particles must be bright.",
    )
    rotate: bool = Field(
        False, description="Also turn each image so that it agrees best with its x mirror image, to one orientation."
    )
    limit_shift: float | None = Field(
        None,
        gt=0,
        le=0.5,
        description="Largest shift along x and y, as a fraction of the box; images that need more are left as they "
        "are. Half the box unless given.",
    )


@operation("process_particles", order=40, params=Center, name="center", per_image=True)
def center_particles(particles: Particles, params: Center, ctx: Context) -> Particles | None:
    """Move each particle to the middle of its box; noise boxes, which have no centre, stay as they are."""
    if particles.label == "noise":
        return None
    done = center(particles.pixels, method=params.method, rotate=params.rotate, limit_shift=params.limit_shift)
    ctx.flag(done.broken, "hold values that are not finite (NaN or infinite); they were not centred")
    ctx.flag(done.empty, "hold nothing to find a centre by; they were not centred")
    ctx.flag(done.too_far, "would have to be moved farther than limit_shift allows; they were not centred")
    shift_px, angle_deg = to_host(done.shift_px), to_host(done.angle_deg)
    said = {} if particles.coordinates is None else particles.coordinates.columns  # of boxes cut in this session
    said = {**said, **particles.columns}
    if params.rotate and "anglePsi" in said:
        ctx.remark(
            "center turns the images (rotate = true); the in-plane angles that their table gives (anglePsi) are of the "
            "images before"
        )
    if not {"shiftX", "shiftY"}.isdisjoint(particles.columns):
        ctx.remark(
            "center moves the images; the shifts that their table gives (shiftX, shiftY) are of the images before"
        )
    pixel = particles.optics.pixel_size_angstrom
    centred = ~to_host(done.broken | done.empty | done.too_far)
    before_px, before_deg = _before(particles, pixel, ctx)
    in_first_px = _turned(shift_px, -before_deg)
    columns = dict(particles.columns)
    columns |= _origins(said, shift_px, angle_deg, pixel, ctx)
    if params.rotate and PSI in said:
        columns[PSI] = _numbers(said, PSI, ctx) - angle_deg
    columns |= dict(zip(SHIFT, ((before_px + in_first_px) * pixel).T, strict=True))
    if params.rotate or ROTATION in said:
        columns[ROTATION] = before_deg + angle_deg
    return replace(
        particles,
        pixels=done.pixels,
        coordinates=_coordinates(particles, before_px, in_first_px, centred, ctx),
        columns=columns,
    )


def _turned(xy: FloatArray, angle_deg: FloatArray) -> FloatArray:
    """Vectors of shape (n, 2), each turned from x towards y."""
    angle = np.deg2rad(angle_deg)
    x, y = xy.T
    return np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], axis=1)


def _numbers(columns: Columns, name: str, ctx: Context) -> FloatArray:
    """A column as numbers, whether a table wrote it or an operation."""
    try:
        found = np.asarray(columns[name]).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(ctx.item.path, f"column {name} of its table holds what is no number ({error})") from error
    if not np.isfinite(found).all():
        raise InputError(ctx.item.path, f"column {name} of its table holds values that are not finite")
    return found


def _before(particles: Particles, pixel_size_angstrom: float, ctx: Context) -> tuple[FloatArray, FloatArray]:
    """Shift [px] and angle [°] that the images were centred with before."""
    columns = particles.columns
    none = np.zeros(len(particles))
    shift = [_numbers(columns, name, ctx) / pixel_size_angstrom if name in columns else none for name in SHIFT]
    return np.stack(shift, axis=1), _numbers(columns, ROTATION, ctx) if ROTATION in columns else none


def _origins(
    columns: Columns, shift_px: FloatArray, angle_deg: FloatArray, pixel_size_angstrom: float, ctx: Context
) -> dict[str, FloatArray]:
    """RELION's shifts still to be applied, less those that were applied: of the images as they are now."""
    made: dict[str, FloatArray] = {}
    for x, y, in_angstrom in ORIGINS:
        if x in columns and y in columns:
            origin = np.stack([_numbers(columns, x, ctx), _numbers(columns, y, ctx)], axis=1)
            left = _turned(origin - shift_px * (pixel_size_angstrom if in_angstrom else 1), angle_deg)
            made |= {x: left[:, 0], y: left[:, 1]}
    return made


def _coordinates(
    particles: Particles, before_px: FloatArray, shift_px: FloatArray, centred: npt.NDArray[np.bool_], ctx: Context
) -> Coordinates | None:
    """Where in the micrograph the origin pixel of each box lies now; as they are for images that were left alone.

    Boxes are cut with their origin pixel at the rounded centre; after the first move the place is known exactly.
    """
    known = particles.coordinates
    if known is None:
        return None
    if known.box_size_px is None:
        ctx.remark(
            "center moves the particles' coordinates as if the images had the pixels of their micrographs: how large "
            "their boxes were in the micrograph is not known"
        )
    scale = 1.0 if known.box_size_px is None else known.box_size_px / int(particles.pixels.shape[-1])
    first = np.all(before_px == 0, axis=1, keepdims=True)
    at_origin = np.where(first, np.floor(known.xy_px + 0.5), known.xy_px)
    return replace(known, xy_px=np.where(centred[:, None], at_origin - shift_px * scale, known.xy_px))
