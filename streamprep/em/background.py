"""Background of particle images: the pixels outside a circle, and the plane fitted to them."""

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
    y = np.arange(ny)[:, None] - ny // 2
    x = np.arange(nx)[None, :] - nx // 2
    return np.asarray(y * y + x * x >= radius_px * radius_px)


def plane_basis(ny: int, nx: int, radius_px: int) -> FloatArray:
    """Three orthonormal images that span the planes a·x + b·y + c over the background; shape (3, ny·nx).

    Orthonormal over the background pixels, so the least-squares plane of an image v is ``sum_k <v, b_k>_bg · b_k``
    with b_k continued over the whole image: no normal equations, no loss of digits. Where the background is too
    small to span a plane, the directions it does not hold are zero.
    """
    y, x = np.mgrid[:ny, :nx].astype(np.float64)
    design = np.stack([np.ones(ny * nx), (x - nx // 2).ravel() / max(nx, 1), (y - ny // 2).ravel() / max(ny, 1)])
    inside = background_mask(ny, nx, radius_px).ravel()
    basis: list[FloatArray] = []
    for row in design:
        for _ in range(2):  # Gram-Schmidt, twice is enough (Kahan and Parlett)
            for made in basis:
                row = row - (row[inside] @ made[inside]) * made
        norm = float(np.sqrt(row[inside] @ row[inside])) if inside.any() else 0.0
        basis.append(row / norm if norm > 1e-9 else np.zeros_like(row))
    return np.stack(basis)
