"""Fourier-space geometry of images."""

from __future__ import annotations

import math

from array_api_compat import device as array_device

from streamprep.arrays import array_namespace
from streamprep.model import Array


def fourier_crop(images: Array, size_px: int) -> Array:
    """Sample images more coarsely by cutting their spectrum: band-limited, mean and grey values kept.

    Parameters
    ----------
    images
        Shape (n, box, box), float32.
    size_px
        Rows and columns wanted, at most those of the images.

    Returns
    -------
    Array
        Shape (n, size, size), float32. The origin pixel box // 2 comes to size // 2, exactly, for even and odd sizes:
        a phase ramp moves what the coarser grid would leave between pixels.
    """
    xp = array_namespace(images)
    box = int(images.shape[-1])
    if size_px == box:
        return images
    spectrum = xp.fft.rfftn(images, axes=(-2, -1))
    low = (size_px + 1) // 2
    if size_px % 2:
        rows = xp.concat([spectrum[:, :low, :], spectrum[:, box - low + 1 :, :]], axis=1)
    else:  # the row at Nyquist stands for both signs of the frequency
        nyquist = (spectrum[:, low : low + 1, :] + spectrum[:, box - low : box - low + 1, :]) / 2
        rows = xp.concat([spectrum[:, :low, :], nyquist, spectrum[:, box - low + 1 :, :]], axis=1)
    kept = rows[:, :, : size_px // 2 + 1]
    offset = size_px // 2 - (box // 2) * size_px / box
    if offset != 0.0:
        place = array_device(images)
        turn = 2j * math.pi * offset
        ramp_y = xp.exp(-turn * xp.fft.fftfreq(size_px, device=place))
        ramp_x = xp.exp(-turn * xp.fft.rfftfreq(size_px, device=place))
        kept = kept * xp.astype(ramp_y[:, None] * ramp_x[None, :], kept.dtype)
    cropped = xp.fft.irfftn(kept, s=(size_px, size_px), axes=(-2, -1))
    return xp.astype(cropped * (size_px / box) ** 2, xp.float32)
