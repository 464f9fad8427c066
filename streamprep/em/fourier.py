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
    half = size_px // 2
    spectrum = xp.fft.rfftn(images, axes=(-2, -1))[:, :, : half + 1]
    rows = xp.concat([spectrum[:, : half + 1, :], spectrum[:, box - half :, :]], axis=1)  # 0 … half, −half … −1
    offset = half - (box // 2) * size_px / box
    if offset != 0.0:
        place = array_device(images)
        positive = xp.arange(half + 1, dtype=xp.float64, device=place)
        turn = -2j * math.pi * offset / size_px
        ramp_x = xp.exp(turn * positive)
        ramp_y = xp.exp(turn * xp.concat([positive, xp.arange(-half, 0, dtype=xp.float64, device=place)]))
        rows = rows * xp.astype(ramp_y[:, None] * ramp_x[None, :], rows.dtype)
    if size_px % 2 == 0:  # what is at Nyquist stands for both signs of the frequency
        nyquist = (rows[:, half : half + 1, :] + rows[:, half + 1 : half + 2, :]) / 2
        rows = xp.concat([rows[:, :half, :], nyquist, rows[:, half + 2 :, :]], axis=1)
    columns = xp.fft.ifft(rows, axis=-2)
    if size_px % 2 == 0:  # numpy's irfft ignores an imaginary part there; other libraries do not promise to
        both = xp.astype(xp.real(columns[:, :, half:]), columns.dtype)
        columns = xp.concat([columns[:, :, :half], both], axis=2)
    cropped = xp.fft.irfft(columns, n=size_px, axis=-1)
    return xp.astype(cropped * (size_px / box) ** 2, xp.float32)
