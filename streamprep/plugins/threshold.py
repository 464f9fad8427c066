"""threshold: replace the pixels below or above a grey value."""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field

from streamprep import Context, Map, Params, Particles, operation
from streamprep.arrays import array_namespace, in_slabs, owned, replace_where
from streamprep.model import Array

Select = Literal["abs_below", "below", "above"]
Substitute = Literal["value", "binarize", "avg"]


def _fits(number: float) -> float:
    if abs(number) > 3.4e38:
        raise ValueError("allowed: numbers that pixels can hold, from -3.4e38 to 3.4e38")
    return number


GreyValue = Annotated[float, AfterValidator(_fits)]


class Threshold(Params):
    """Replace the pixels below or above a grey value."""

    select: Select = Field(
        "below",
        description="Which pixels are replaced. abs_below: absolute value below `value`. below: grey value below it. "
        "above: grey value above it.",
    )
    value: GreyValue = Field(0.0, description="The grey value to compare with.")
    substitute: Substitute = Field(
        "value",
        description="What replaces them. value: `fill`. binarize: 0, and 1 all others. avg: the mean of all others of "
        "the same image.",
    )
    fill: GreyValue = Field(0.0, description='What replaces them with substitute = "value".')


class Thresholded(NamedTuple):
    """What `threshold` gives back."""

    pixels: Array
    """Shape of the input, float32."""
    not_finite: Array
    """Shape (n,), bool: images that hold NaN or infinite values."""
    none_left: Array
    """Shape (n,), bool: images of which nothing was left to take the mean of (``avg``); left as they were."""


def threshold(
    pixels: Array,
    *,
    select: Select = "below",
    value: float = 0.0,
    substitute: Substitute = "value",
    fill: float = 0.0,
    in_place: bool = False,
) -> Thresholded:
    r"""Replace the pixels on one side of a grey value.

    With the grey value t and what is put in its place, s; here for ``below``:

    $$v' = s \quad \text{where} \quad v < t, \quad v' = v \quad \text{elsewhere}$$

    Parameters
    ----------
    pixels
        Shape (n, …, nx), real: n images or maps.
    select
        ``abs_below``: |v| < value. ``below``: v < value. ``above``: v > value. Compared in float32.
    value
        The grey value.
    substitute
        ``value``: the selected become ``fill``. ``binarize``: the selected become 0, all others 1. ``avg``: the
        selected become the mean of the others of the same image.
    fill
        Of ``substitute = "value"``.
    in_place
        ``pixels`` may be overwritten.

    Notes
    -----
    NaN is never selected and stays NaN. Infinite values are selected as any other; they and NaN do not count in a mean.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.array([[[-1.0, 0.5], [2.0, 4.0]]])
    >>> threshold(image, value=1, substitute="avg").pixels.tolist()
    [[[3.0, 3.0], [2.0, 4.0]]]
    """
    xp = array_namespace(pixels)
    pixels = owned(pixels, in_place)
    images = tuple(range(1, pixels.ndim))
    finite = xp.isfinite(pixels)
    not_finite = ~xp.all(finite, axis=images)
    none_left = xp.zeros_like(not_finite)
    selected = _selected(pixels, select, value)
    if substitute == "value":
        replace_where(pixels, selected, fill)
    elif substitute == "binarize":
        binary = xp.astype(~selected, xp.float32)
        if bool(xp.any(not_finite)):
            binary = xp.where(xp.isnan(pixels), pixels, binary)
        pixels[...] = binary
    else:
        finite &= ~selected
        mean, count = _mean_where(pixels, finite)
        none_left = count == 0
        per_image = (-1,) + (1,) * len(images)
        selected &= ~xp.reshape(none_left, per_image)
        replace_where(pixels, selected, xp.reshape(xp.astype(mean, xp.float32), per_image))
    return Thresholded(pixels, not_finite, none_left)


def _selected(pixels: Array, select: Select, value: float) -> Array:
    if select == "above":
        return pixels > value
    selected = pixels < value
    if select == "abs_below":
        selected &= pixels > -value
    return selected


def _mean_where(pixels: Array, mask: Array) -> tuple[Array, Array]:
    """Mean of each image's pixels where the mask is true, float64, 0 where it is nowhere; and their number.

    First a number near the mean is found and subtracted; rows are then summed in float32.
    """
    xp = array_namespace(pixels)
    n = int(pixels.shape[0])
    rows = math.prod(int(length) for length in pixels.shape[1:-1])
    weight = xp.astype(mask, xp.float32)

    def total(along_rows: Array) -> Array:
        return xp.sum(xp.reshape(xp.astype(along_rows, xp.float64), (n, rows)), axis=1)

    count = total(xp.vecdot(weight, weight))
    divisor = xp.clip(count, min=1)
    kept = pixels + 0
    replace_where(kept, ~mask, 0)
    pivot = xp.astype(total(xp.sum(kept, axis=-1, dtype=xp.float64)) / divisor, xp.float32)
    kept -= xp.reshape(pivot, (n,) + (1,) * (pixels.ndim - 1))
    return xp.astype(pivot, xp.float64) + total(xp.vecdot(kept, weight)) / divisor, count


def _remark_on(params: Threshold, ctx: Context) -> None:
    if params.select == "abs_below" and params.value <= 0:
        ctx.remark('threshold: no absolute value is below 0, so select = "abs_below" needs a value above 0')


@operation("process_particles", order=70, params=Threshold, name="threshold", per_image=True)
def threshold_particles(particles: Particles, params: Threshold, ctx: Context) -> Particles:
    """Replace the pixels of particle images below or above a grey value."""
    _remark_on(params, ctx)
    done = threshold(
        particles.pixels,
        select=params.select,
        value=params.value,
        substitute=params.substitute,
        fill=params.fill,
        in_place=True,
    )
    said = "these do not count in the mean" if params.substitute == "avg" else "NaN is never selected"
    ctx.flag(done.not_finite, f"hold values that are not finite (NaN or infinite); {said}")
    if params.substitute == "avg":
        ctx.flag(done.none_left, "are selected as a whole; nothing is left to take the mean of, they stay as they are")
    return particles.with_pixels(done.pixels)


@operation("process_map", order=100, params=Threshold, name="threshold")
def threshold_map(map: Map, params: Threshold, ctx: Context) -> Map:  # noqa: A002
    """Replace the voxels of a map below or above a grey value."""
    _remark_on(params, ctx)
    pixels = map.pixels
    xp = array_namespace(pixels)
    select, value = params.select, params.value
    substitute, fill = params.substitute, params.fill
    if substitute == "avg":

        def others(start: int, stop: int) -> tuple[float, float]:
            slab = pixels[start:stop, ...][None, ...]
            mean, count = _mean_where(slab, xp.isfinite(slab) & ~_selected(slab, select, value))
            return float(mean[0]), float(count[0])

        means, counts = zip(*in_slabs(others, pixels), strict=True)
        if not sum(counts):
            ctx.warn(
                "threshold: the map is selected as a whole; nothing is left to take the mean of, it stays as it is"
            )
            return map
        substitute, fill = "value", sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)
    made = xp.empty_like(pixels)

    def replaced(start: int, stop: int) -> bool:
        slab = made[start:stop, ...]
        slab[...] = pixels[start:stop, ...]
        done = threshold(slab[None, ...], select=select, value=value, substitute=substitute, fill=fill, in_place=True)
        return bool(done.not_finite[0])

    if any(in_slabs(replaced, pixels)):
        said = "these do not count in the mean" if params.substitute == "avg" else "NaN is never selected"
        ctx.warn(f"threshold: the map holds values that are not finite (NaN or infinite); {said}")
    return map.with_pixels(made)
