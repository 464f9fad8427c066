"""Pixels of a stack as they are stored, or the reason why they cannot be."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from streamprep.model import Label, StreamprepError

FLOAT16_MAX = 65504.0
MAX_ROUNDING = 0.1
"""Most that rounding to float16 may take of an image's contrast (rms of what it changes / standard deviation)."""

StackDtype = Literal["float32", "float16"]


def as_stored(pixels: Any, dtype: StackDtype, label: Label) -> npt.NDArray[Any]:
    """Images of shape (n, ny, nx) in the type that they are stored in.

    Raises
    ------
    StreamprepError
        A value is not finite; or, in float16, beyond its range, or an image would lose its contrast. Names the image.
    """
    with np.errstate(over="ignore"):  # what is beyond float32 is found right below
        images = np.asarray(pixels, dtype=np.float32)
    bad = int(len(images) - np.isfinite(images.sum(axis=(1, 2), dtype=np.float64)).sum())
    if bad:
        raise StreamprepError(
            f"{bad} of {len(images)} {label} images hold values that are not finite after the operations"
        )
    return images if dtype == "float32" else _float16(images, label)


def _float16(images: npt.NDArray[np.float32], label: Label) -> npt.NDArray[np.float16]:
    stored = np.empty(images.shape, np.float16)
    for index, image in enumerate(images):
        furthest = float(image.flat[np.argmax(np.abs(image))])
        if abs(furthest) > FLOAT16_MAX:
            raise _refused(index, len(images), label, f"holds {furthest:g}; float16 goes to ±{FLOAT16_MAX:g}")
        stored[index] = image
        contrast = float(image.std(dtype=np.float64))
        rounding = float(np.sqrt(np.mean((stored[index].astype(np.float64) - image) ** 2)))
        if rounding > MAX_ROUNDING * contrast and image.min() < image.max():
            raise _refused(
                index,
                len(images),
                label,
                f"has values around {float(image.mean(dtype=np.float64)):g} with a standard deviation of "
                f"{contrast:g}, of which rounding to float16 would take {rounding:g}",
            )
    return stored


def _refused(index: int, count: int, label: Label, what: str) -> StreamprepError:
    return StreamprepError(
        f'{label} image {index + 1} of {count} {what}. Normalize the images, or set stack_dtype = "float32" in [sets]'
    )
