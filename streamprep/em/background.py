"""Background of images and maps: what is outside a circle or sphere; the plane fitted to that of images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamprep.model import FloatArray


def background_mask(ny: int, nx: int, radius_px: int) -> npt.NDArray[np.bool_]:
    """Pixels of an (ny, nx) image with r² ≥ radius², r measured from the origin pixel (ny // 2, nx // 2).

    Examples
    --------
    >>> background_mask(4, 4, 2).astype(int).tolist()
    [[1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    """
    return np.asarray(squared_radii(ny, nx) >= radius_px * radius_px)


def squared_radii(ny: int, nx: int) -> npt.NDArray[np.int32]:
    """Squared distances of an image's pixels from its origin pixel (ny // 2, nx // 2) [px²]."""
    y = np.arange(ny, dtype=np.int32)[:, None] - ny // 2
    x = np.arange(nx, dtype=np.int32)[None, :] - nx // 2
    return np.asarray(y * y + x * x)


def plane_axes(ny: int, nx: int) -> tuple[FloatArray, FloatArray]:
    """y and x of an image's rows and columns, from the origin pixel, in units of its sides."""
    return (np.arange(ny) - ny // 2) / max(ny, 1), (np.arange(nx) - nx // 2) / max(nx, 1)


def plane_solver(ny: int, nx: int, radius_px: int) -> FloatArray:
    """Matrix that makes the least-squares plane of an image's background from three sums over it.

    Returns
    -------
    FloatArray
        Shape (3, 3), symmetric. With y, x of `plane_axes` and the sums of v, x·v and y·v over the background pixels
        of an image v, ``matrix @ sums`` are a, b, c of the plane a + b·x + c·y. Where the background is too small to
        span a plane, the directions that it does not hold are zero.

    Notes
    -----
    The inverse of the normal equations by orthonormal planes (Gram-Schmidt, twice is enough: Kahan and Parlett).
    """
    y, x = plane_axes(ny, nx)
    inside = background_mask(ny, nx, radius_px)
    design = np.stack([np.ones((ny, nx)), np.broadcast_to(x, (ny, nx)), np.broadcast_to(y[:, None], (ny, nx))])[
        :, inside
    ]
    made: list[tuple[FloatArray, FloatArray]] = []
    for factors, values in zip(np.eye(3), design, strict=True):
        for _ in range(2):
            for known_factors, known_values in made:
                common = float(values @ known_values)
                factors, values = factors - common * known_factors, values - common * known_values
        norm = float(np.sqrt(values @ values))
        if norm > 1e-9:
            made.append((factors / norm, values / norm))
    return np.sum([np.outer(factors, factors) for factors, _ in made], axis=0) if made else np.zeros((3, 3))
