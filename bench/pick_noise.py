"""Times pick_noise on one core: a table to paste into docs/benchmarks.md.

Processor time, the least of several runs, each with other particles on a 4096 × 4096 micrograph; the calibration is
`irfft2(rfft2(a))` of float32 (64, 256, 256) in one thread, before and after, so that tables of different machines can
be compared. Run with ``python bench/pick_noise.py``.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
from machine import calibration, least  # noqa: E402

from streamprep.plugins.pick_noise import outlier_test, pick_noise  # noqa: E402

REPEATS = 9
SIDE_PX = 4096


def milliseconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Least processor time of several runs [ms]."""
    return 1e3 * least(work, repeats, time.process_time)


def case(
    shape_px: tuple[int, int], particles: int, box_px: int, *, number: int | None = None, cluster: bool = False,
    mask: float = 0, outliers: bool = False, **parameters: Any,
) -> tuple[float, int]:  # fmt: skip
    """Processor time of one micrograph [ms], and how many picks it gave.

    Parameters
    ----------
    shape_px
        (ny, nx) of the micrograph.
    particles
        How many there are, at random; ``cluster`` puts them into ten heaps.
    box_px
        Side of the box [px].
    number
        Picks wanted; as many as particles unless given.
    mask
        Which part of the pixels are kept out, at random; none if 0.
    outliers
        Also test the boxes against the micrograph's.
    parameters
        What else `pick_noise` takes.
    """
    rng = np.random.default_rng(1)
    ny, nx = shape_px
    points = rng.uniform((0, 0), (nx, ny), size=(particles, 2))
    if cluster:
        points = points[rng.integers(0, 10, size=particles)] + rng.normal(0, box_px, size=points.shape)
    blocked = rng.random(shape_px, dtype=np.float32) < mask if mask else None
    pixels = rng.standard_normal(shape_px, dtype=np.float32) if outliers else None

    def pick() -> int:
        accept = None if pixels is None else outlier_test(pixels, box_px)
        found = pick_noise(
            shape_px, points, number=particles if number is None else number, box_size_px=box_px,
            rng=np.random.default_rng(2), mask=blocked, accept=accept, **parameters,
        )  # fmt: skip
        return len(found)

    return milliseconds(pick), pick()


_8K = (8192, 8192)
HARD: dict[str, dict[str, Any]] = {
    "300 particles, box 256, outliers": {
        "shape_px": (4096, 4096), "particles": 300, "box_px": 256, "outliers": True,
    },
    "300 particles, box 256, 5000 wanted": {
        "shape_px": (4096, 4096), "particles": 300, "box_px": 256, "number": 5000,
    },
    "300 particles, box 128, mask": {
        "shape_px": (4092, 5760), "particles": 300, "box_px": 128, "mask": 1e-5,
    },
    "1000 clustered particles, box 256, 5000 wanted": {
        "shape_px": (4092, 5760), "particles": 1000, "box_px": 256, "number": 5000, "cluster": True, "mask": 1e-6,
        "min_distance_px": 128.0, "spacing_px": 51.0,
    },
    "1000 clustered particles, box 32, 5000 wanted, mask, outliers": {
        "shape_px": (4096, 4096), "particles": 1000, "box_px": 32, "number": 5000, "cluster": True, "mask": 1e-4,
        "outliers": True, "min_distance_px": 22.4, "spacing_px": 6.4,
    },
    "8k, 5000 particles, box 256, two boxes away, mask": {
        "shape_px": _8K, "particles": 5000, "box_px": 256, "number": 300, "mask": 1e-5, "min_distance_px": 512.0,
    },
    "8k, 2000 particles, box 512": {"shape_px": _8K, "particles": 2000, "box_px": 512},
    "8k, 1000 particles, box 512, outliers": {"shape_px": _8K, "particles": 1000, "box_px": 512, "outliers": True},
    "8k, 300 wanted, box 32, mask, outliers": {
        "shape_px": _8K, "particles": 0, "box_px": 32, "number": 300, "mask": 1e-5, "outliers": True, "spacing_px": 0.0,
    },
}  # fmt: skip
"""Hard cases, and some that users may meet."""


def main() -> None:
    """Print the tables."""
    before = 1e3 * calibration(time.process_time)
    print(f"| box [px] | crowded | {' | '.join(f'{n} particles' for n in (100, 300, 1000, 2000))} |")
    print("|---|---|---|---|---|---|")
    for box in (64, 128, 256, 512):
        for crowded in ("relax", "fewer"):
            cells = []
            for particles in (100, 300, 1000, 2000):
                spent, count = case((SIDE_PX, SIDE_PX), particles, box, crowded=crowded)
                cells.append(f"{spent:.0f} ms" + (f" ({count} found)" if count < particles else ""))
            print(f"| {box} | {crowded} | {' | '.join(cells)} |", flush=True)
    print("\n| case | time | picks |\n|---|---|---|")
    for name, parameters in HARD.items():
        spent, count = case(**parameters)
        print(f"| {name} | {spent:.0f} ms | {count} |", flush=True)
    print(f"\nCalibration: {before:.0f} ms before, {1e3 * calibration(time.process_time):.0f} ms after.")


if __name__ == "__main__":
    main()
