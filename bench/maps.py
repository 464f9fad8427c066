"""Times the map operations from file to file, next to Xmipp 3 (bench/reference.json). Part of ``make bench``.

Each operation is applied to a map of 256³ voxels, as `streamprep apply` does it but without the program's start, in
a process of its own, whose greatest memory is told as well; the least of several runs. Times are divided by that of the
calibration kernel in the same run, so that machines can be compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from machine import calibration, peak_memory

from streamprep.apply import apply
from streamprep.arrays import fft_library
from streamprep.formats import mrc_output
from streamprep.plugin_manager import load_plugins

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text(encoding="utf-8"))["maps"]
CASES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("change_hand", "change_hand", ()),
    ("rotate_ico", "rotate_ico", ("source=i1", "target=i2")),
    ("rotate_ico", "rotate_ico", ("source=i1", "target=i3")),
    ("randomize_phases", "randomize_map", ("max_resolution_angstrom=10",)),
    ("symmetrize", "symmetrize_d2", ("group=d2",)),
    ("symmetrize", "symmetrize_i1", ("group=i1",)),
    ("laplacian", "laplacian", ()),
    ("segment", "segment_otsu", ()),
    ("segment", "segment_voxels", ("kind=voxels", "mass=400000")),
    ("normalize_background", "normalize_map", ()),
    ("threshold", "threshold_map", ()),
)
"""Operation, the name of its reference, parameters."""
REPEATS = 3


def make_map(path: Path) -> None:
    """Twelve blobs in noise."""
    rng = np.random.default_rng(2)
    side = int(REFERENCE["side_px"])
    z, y, x = np.ogrid[:side, :side, :side]
    voxels = rng.normal(0, 0.05, (side,) * 3).astype(np.float32)
    for *place, width in rng.uniform([-50, -50, -50, 6], [50, 50, 50, 20], (12, 4)):
        away = [axis - side // 2 - middle for axis, middle in zip((x, y, z), place, strict=True)]
        voxels += np.exp(-sum(steps**2 for steps in away) / (2 * width**2)).astype(np.float32)
    mrc_output.write(path, voxels, pixel_size_angstrom=2.0, stack=False)


def one(number: int, source: Path) -> None:
    """Run one case in this process and print its time [s] and its greatest memory [bytes]."""
    operation, _, parameters = CASES[number]
    plugins = load_plugins(sinks=False)
    target = source.with_name("out.mrc")
    times = []
    for _ in range(REPEATS if parameters != ("group=i1",) else 1):
        target.unlink(missing_ok=True)
        before = time.perf_counter()
        apply(
            [operation], source, target, plugins, overrides=[f"{operation}.{text}" for text in parameters], device="cpu"
        )
        times.append(time.perf_counter() - before)
    print(json.dumps([min(times), peak_memory()]))  # getrusage tells the parent's, where that was more


def main() -> None:
    """Print the table."""
    if len(sys.argv) > 1:
        one(int(sys.argv[1]), Path(sys.argv[2]))
        return
    print(f"{len(os.sched_getaffinity(0))} threads, Fourier transforms by {fft_library()}\n")
    print("| operation | time | time / calibration | Xmipp 3 / calibration | ratio | greatest memory / map |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as made:
        source = Path(made) / "map.mrc"
        make_map(source)
        units = calibration()
        for number, (operation, reference, parameters) in enumerate(CASES):
            words = [sys.executable, __file__, str(number), str(source)]
            told = subprocess.run(words, check=True, capture_output=True, text=True).stdout  # noqa: S603
            seconds, peak = json.loads(told)
            known = REFERENCE["operations"][reference]
            theirs, ours = known["seconds"] / known["calibration_s"], seconds / units
            print(
                f"| {' '.join((operation, *parameters))} | {1e3 * seconds:.0f} ms | {ours:.1f} | {theirs:.0f} "
                f"| {theirs / ours:.1f} × | {peak / (4 * REFERENCE['side_px'] ** 3):.1f} |",
                flush=True,
            )
        print(f"\nCalibration: {1e3 * units:.0f} ms before, {1e3 * calibration():.0f} ms after.")


if __name__ == "__main__":
    main()
