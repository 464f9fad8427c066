"""How well center finds the centre: a table to paste into docs/benchmarks.md.

Each image holds one particle of 12 blobs (Gaussians of random width and height within a quarter of the box from its
centre), moved by up to a tenth of the box along x and y, in white noise. A symmetric particle has each blob twice, also
on the other side of the centre, and no mirror line. SNR is the variance inside the particle's circle (radius 0.3 boxes)
divided by that of the noise. The residual is the distance in pixels between the shift found and the one that is right:
minus the particle's own for symmetric particles; for asymmetric ones the shift found without noise, and without noise
the one found on the particle in the middle, moved. Run with ``python bench/center_accuracy.py``.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import time  # noqa: E402

import numpy as np  # noqa: E402
from scipy import fft  # noqa: E402

from streamprep.arrays import keep_freed_memory  # noqa: E402
from streamprep.em.centering import Method, center  # noqa: E402

IMAGES = 400
BOXES_PX = (64, 65, 128, 129, 256)
SNRS = (None, 1.0, 0.3, 0.1)
BATCH = 8


def particle(box_px: int, seed: int, shift_px: np.ndarray, *, symmetric: bool) -> np.ndarray:
    """One particle without noise, its centre at ``shift_px`` (x, y) from the origin pixel."""
    rng = np.random.default_rng(seed)
    radius = 0.25 * np.sqrt(rng.uniform(size=12))
    angle = rng.uniform(0, 2 * np.pi, size=12)
    x, y = box_px * radius * np.cos(angle), box_px * radius * np.sin(angle)
    width, height = box_px * rng.uniform(0.02, 0.06, size=12), rng.uniform(0.3, 1, size=12)
    if symmetric:
        x, y = np.concatenate([x, -x]), np.concatenate([y, -y])
        width, height = np.tile(width, 2), np.tile(height, 2)
    axis = np.arange(box_px)[:, None] - box_px // 2
    along_x = np.exp(-((axis - shift_px[0] - x) ** 2) / (2 * width**2))
    along_y = np.exp(-((axis - shift_px[1] - y) ** 2) / (2 * width**2))
    return np.asarray((height * along_y) @ along_x.T, dtype=np.float32)


def shifts(images: np.ndarray, method: Method) -> np.ndarray:
    """What `center` finds."""
    parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return np.concatenate([center(part, method=method).shift_px for part in parts])


def residuals(box_px: int, snr: float | None, method: Method, *, symmetric: bool, seed: int = 0) -> np.ndarray:
    """Distance of what is found from what is right, of IMAGES images [px]."""
    rng = np.random.default_rng(seed)
    moved = rng.uniform(-0.1, 0.1, size=(IMAGES, 2)) * box_px
    clean = np.stack([particle(box_px, k, moved[k], symmetric=symmetric) for k in range(IMAGES)])
    if symmetric:
        right = -moved
    elif snr is not None:
        right = shifts(clean, method)
    else:
        middle = np.stack([particle(box_px, k, np.zeros(2), symmetric=False) for k in range(IMAGES)])
        right = shifts(middle, method) - moved
    images = clean
    if snr is not None:
        axis = np.arange(box_px) - box_px // 2
        inside = [(axis[:, None] - y) ** 2 + (axis - x) ** 2 < (0.3 * box_px) ** 2 for x, y in moved]
        noise = np.array([np.sqrt(image[mask].var() / snr) for image, mask in zip(clean, inside, strict=True)])
        images = clean + noise[:, None, None].astype(np.float32) * rng.standard_normal(clean.shape, dtype=np.float32)
    return np.asarray(np.linalg.norm(shifts(images, method) - right, axis=1))


def milliseconds(work: object, repeats: int = 15) -> float:
    """Least processor time of several runs [ms]."""
    times = []
    for _ in range(repeats):
        before = time.process_time()
        work()  # type: ignore[operator]
        times.append(time.process_time() - before)
    return 1e3 * min(times)


def main() -> None:
    """Print the tables."""
    keep_freed_memory()
    cases: tuple[tuple[str, bool, Method], ...] = (
        ("symmetric", True, "mirror"), ("asymmetric", False, "mirror"), ("symmetric", True, "mass"),
    )  # fmt: skip
    print("| method | particle | box [px] | no noise | " + " | ".join(f"SNR {snr:g}" for snr in SNRS if snr) + " |")
    print("|---|---|---|---|---|---|---|")
    for name, symmetric, method in cases:
        for box in BOXES_PX:
            cells = []
            for snr in SNRS:
                off = residuals(box, snr, method, symmetric=symmetric)
                cells.append(f"{np.median(off):.3f} / {np.quantile(off, 0.95):.3f}")
            print(f"| {method} | {name} | {box} | {' | '.join(cells)} |", flush=True)
    noise = np.random.default_rng(0).standard_normal((64, 256, 256), dtype=np.float32)
    images = np.stack([particle(256, k, np.array([9.0, -5.5]), symmetric=True) for k in range(BATCH)])
    images += 2 * noise[:BATCH]
    print("\n| 256² images | ms per image | of the calibration kernel |\n|---|---|---|")
    for text, more in (("mirror", {}), ("mirror, rotate", {"rotate": True}), ("mass", {"method": "mass"})):
        kernel = milliseconds(lambda: fft.irfft2(fft.rfft2(noise, workers=1), workers=1), 5)
        spent = milliseconds(lambda more=more: center(images, **more)) / BATCH  # type: ignore[misc]
        print(f"| {text} | {spent:.2f} | {spent / kernel:.3f} |", flush=True)


if __name__ == "__main__":
    main()
