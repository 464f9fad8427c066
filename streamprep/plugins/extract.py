"""extract: cut boxes out of a micrograph."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from array_api_compat import device as array_device
from pydantic import Field, model_validator

from streamprep import Context, Coordinates, InputError, Micrograph, Params, Particles, operation
from streamprep.arrays import ImagesOnDemand, array_namespace
from streamprep.em.fourier import fourier_crop
from streamprep.em.geometry import figure_of_merit, well_separated
from streamprep.model import Array, FloatArray

_FAR_PX = float(1 << 31)
_OF_MICROGRAPHS = "rlnMicrographPixelSize"
"""The column of an optics group that is true of whole micrographs alone."""


class Extract(Params):
    """Cut a square box around each coordinate."""

    box_size_px: int = Field(..., ge=2, le=8192, description="Side of the box, in pixels of the micrograph [px].")
    output_size_px: int | None = Field(
        None, ge=2, description="Fourier-crop the boxes to this side [px]; the pixel size grows with it."
    )
    edge: Literal["skip", "pad"] = Field(
        "skip",
        description="Boxes that cross the micrograph's edge: skip them, or pad with the edge's values.",
    )

    min_separation_px: float | None = Field(
        None,
        gt=0,
        description="Of particles nearer to one another than this, keep the best by figure of merit, else the first "
        "[px]; none is taken for a duplicate unless given.",
    )

    @model_validator(mode="after")
    def _smaller(self) -> Extract:
        if self.output_size_px is not None and self.output_size_px > self.box_size_px:
            raise ValueError(
                f"output_size_px = {self.output_size_px} is above box_size_px = {self.box_size_px}; "
                "boxes can only be cropped in Fourier space, not enlarged"
            )
        return self


def box_corners(xy_px: FloatArray, box_size_px: int) -> npt.NDArray[np.int64]:
    """First pixel (x, y) of each box: round(centre) − box // 2, halves rounded up; shape (n, 2).

    Centres beyond 2³¹ px, which no image has, are taken as 2³¹, so that every finite number makes a place.
    """
    return np.floor(xy_px + 0.5).clip(-_FAR_PX, _FAR_PX).astype(np.int64) - box_size_px // 2


def boxes_inside(xy_px: FloatArray, box_size_px: int, shape_px: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which boxes lie wholly inside an image of shape (ny, nx)."""
    corner = box_corners(xy_px, box_size_px)
    return np.asarray(((corner >= 0) & (corner + box_size_px <= np.array(shape_px[::-1]))).all(axis=1))


def extract(pixels: Array, xy_px: FloatArray, *, box_size_px: int) -> Array:
    r"""Cut boxes around centres.

    With the side N of the box and its centre c:

    $$b(i, j) = v(y_0 + i, x_0 + j), \quad (x_0, y_0) = ⌊c + 1/2⌋ - ⌊N / 2⌋$$

    Parameters
    ----------
    pixels
        The micrograph, shape (ny, nx), any real dtype.
    xy_px
        Centres, shape (n, 2): x, y [px], on the host. Where a box crosses the edge, the edge's value is repeated.
    box_size_px
        Side of the box [px].

    Returns
    -------
    Array
        Shape (n, box, box), float32. The pixel at round(centre) is at index box // 2.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(36.0).reshape(6, 6)
    >>> extract(image, np.array([[2.0, 3.0]]), box_size_px=2)[0].tolist()
    [[13.0, 14.0], [19.0, 20.0]]
    """
    xp = array_namespace(pixels)
    place = array_device(pixels)
    ny, nx = (int(length) for length in pixels.shape)
    boxes = xp.empty((len(xy_px), box_size_px, box_size_px), dtype=xp.float32, device=place)
    inside = boxes_inside(xy_px, box_size_px, (ny, nx))
    for index, (x, y) in enumerate(box_corners(xy_px, box_size_px).tolist()):
        if inside[index]:
            cut = pixels[y : y + box_size_px, x : x + box_size_px]
        else:
            rows = xp.asarray(np.clip(np.arange(y, y + box_size_px), 0, ny - 1), device=place)
            columns = xp.asarray(np.clip(np.arange(x, x + box_size_px), 0, nx - 1), device=place)
            cut = xp.take(xp.take(pixels, rows, axis=0), columns, axis=1)
        boxes[index, :, :] = xp.astype(cut, xp.float32, copy=False)
    return boxes


@operation("extract_particles", order=10, params=Extract, name="extract")
def extract_boxes(micrograph: Micrograph, coordinates: Coordinates, params: Extract, ctx: Context) -> Particles:
    """Cut particles or noise boxes; boxes that cross the edge are skipped and counted, or padded."""
    ny, nx = micrograph.shape_px
    centre = np.floor(coordinates.xy_px + 0.5)
    on_image = np.asarray(((centre >= 0) & (centre < np.array([nx, ny]))).all(axis=1))
    keep = boxes_inside(coordinates.xy_px, params.box_size_px, (ny, nx)) if params.edge == "skip" else on_image
    if not on_image.all():
        x, y = coordinates.xy_px[~on_image][0]
        said = (
            f"{int((~on_image).sum())} of {len(coordinates)} coordinates lie outside the {nx}×{ny} px micrograph, "
            f"the first at x = {x:.6g}, y = {y:.6g}"
        )
        source = ctx.companions.get("coordinates", ctx.item.path)
        if not on_image.any():
            raise InputError(source, f"{said}; were they picked on a binned or another micrograph?")
        ctx.warn(f"{source}: {said}; they were left out")
    crossing = int((on_image & ~keep).sum())
    if crossing:
        ctx.note(f"{crossing} of {len(coordinates)} {ctx.label} boxes cross the micrograph's edge and were skipped")
    if params.min_separation_px is not None and coordinates.label == "particle":
        score = figure_of_merit(coordinates)
        single = well_separated(
            coordinates.xy_px[keep], params.min_separation_px, None if score is None else score[keep]
        )
        if not single.all():
            near = f"{int((~single).sum())} of {int(keep.sum())} particles"
            ctx.note(f"{near} are nearer than {params.min_separation_px:g} px to a better one and were left out")
        keep[np.flatnonzero(keep)[~single]] = False
    kept = replace(coordinates.select(keep), box_size_px=params.box_size_px)
    side = params.output_size_px or params.box_size_px

    def cut(start: int, stop: int) -> Array:
        boxes = extract(micrograph.pixels, kept.xy_px[start:stop], box_size_px=params.box_size_px)
        return fourier_crop(boxes, side)

    optics = micrograph.optics
    if params.output_size_px is not None:
        coarser = params.box_size_px / params.output_size_px
        optics = replace(optics, pixel_size_angstrom=optics.pixel_size_angstrom * coarser)
    shared = {name: value for name, value in micrograph.optics_columns.items() if name != _OF_MICROGRAPHS}
    return Particles(
        pixels=ImagesOnDemand((len(kept), side, side), cut),
        optics=optics,
        coordinates=kept,
        ctf=None if micrograph.ctf is None else (micrograph.ctf,) * len(kept),
        label=coordinates.label,
        phase_flipped=micrograph.phase_flipped,
        optics_columns=(shared,) * len(kept) if shared else (),
    )
