"""change_hand: the mirror image of a map."""

from __future__ import annotations

from array_api_compat import device as array_device
from pydantic import Field

from streamprep import Context, Map, Params, operation
from streamprep.arrays import array_namespace, in_slabs
from streamprep.model import Array


class ChangeHand(Params):
    """Mirror a map along x: the other hand."""

    keep_origin: bool = Field(
        False,
        description="Keep the origin voxel, index nx // 2, where it is. Else, with an even number of columns, it moves "
        "by one voxel, as in Xmipp.",
    )


def change_hand(volume: Array, *, keep_origin: bool = False) -> Array:
    """Reverse the x axis of a map.

    With n columns:

    $$V'(x, y, z) = V(n - 1 - x, y, z)$$

    Parameters
    ----------
    volume
        Shape (nz, ny, nx), real.
    keep_origin
        Roll the map by a voxel where nx is even, so that x = nx // 2 stays in its place; the first column, which has no
        opposite one, stays, too.

    Returns
    -------
    Array
        The same shape, float32; the same voxels in another order.

    Examples
    --------
    >>> import numpy as np
    >>> line = np.arange(4.0).reshape(1, 1, 4)
    >>> change_hand(line).tolist(), change_hand(line, keep_origin=True).tolist()
    ([[[3.0, 2.0, 1.0, 0.0]]], [[[0.0, 3.0, 2.0, 1.0]]])
    """
    xp = array_namespace(volume)
    made = xp.empty(volume.shape, dtype=xp.float32, device=array_device(volume))
    rolled = 1 if keep_origin and int(volume.shape[2]) % 2 == 0 else 0

    def mirror(first: int, stop: int) -> None:
        made[first:stop, :, :rolled] = xp.astype(volume[first:stop, :, :rolled], xp.float32)
        made[first:stop, :, rolled:] = xp.astype(
            xp.flip(volume[first:stop, :, rolled:], axis=2), xp.float32, copy=False
        )

    in_slabs(mirror, made)
    return made


@operation("process_map", order=10, params=ChangeHand, name="change_hand")
def change_hand_of_map(map: Map, params: ChangeHand, ctx: Context) -> Map:  # noqa: A002, ARG001
    """Mirror a map along x."""
    return map.with_pixels(change_hand(map.pixels, keep_origin=params.keep_origin))
