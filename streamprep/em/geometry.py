"""Places on a micrograph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy  # its parts are loaded when they are used: at each start that is 0.1 s or more

from streamprep.model import FIGURE_OF_MERIT, Coordinates, FloatArray


def flip_y(xy_px: FloatArray, ny: int) -> FloatArray:
    """Places (n, 2) with y counted from the other edge of an image of ``ny`` rows: y' = ny − 1 − y [px].

    Examples
    --------
    >>> flip_y(np.array([[3.0, 0.0], [5.0, 9.0]]), 10).tolist()
    [[3.0, 9.0], [5.0, 0.0]]
    """
    return np.asarray(xy_px * (1.0, -1.0) + (0.0, ny - 1.0))


def figure_of_merit(coordinates: Coordinates) -> FloatArray | None:
    """What the picker thought of each place, higher is better; None where it did not say."""
    values = coordinates.columns.get(FIGURE_OF_MERIT)
    if values is None:
        return None
    try:
        return np.asarray(values, dtype=np.float64)
    except ValueError:
        return None


def well_separated(
    xy_px: FloatArray, min_separation_px: float, score: FloatArray | None = None
) -> npt.NDArray[np.bool_]:
    """Which places to keep so that no two kept are nearer than a distance.

    Parameters
    ----------
    xy_px
        Places, shape (n, 2), finite [px].
    min_separation_px
        The least distance between two that are kept [px].
    score
        Figure of merit of each, shape (n,): of two that are too near the better is kept; the earlier where they are
        equal, or where there is no score. One that is not a number is the worst.

    Returns
    -------
    array of bool
        Shape (n,). The kept places are those found by taking the best one, dropping all that are too near to it, and
        going on with the best that is left.

    Examples
    --------
    >>> well_separated(np.array([[0.0, 0.0], [3.0, 0.0], [5.0, 0.0]]), 4.0).tolist()
    [True, False, True]
    """
    keep = np.ones(len(xy_px), dtype=np.bool_)
    if not len(xy_px) or min_separation_px <= 0:
        return keep
    tree = scipy.spatial.cKDTree(xy_px)
    for index in _best_first(len(xy_px), score):  # a place in a dense heap is asked for once, and drops the heap
        if keep[index]:
            near = np.array(tree.query_ball_point(xy_px[index], min_separation_px))
            offset = xy_px[near] - xy_px[index]
            near = near[np.hypot(offset[:, 0], offset[:, 1]) < min_separation_px]
            keep[near] = False
            keep[index] = True
    return keep


def _best_first(count: int, score: FloatArray | None) -> Sequence[int]:
    if score is None:
        return range(count)
    return np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable").tolist()  # type: ignore[no-any-return]
