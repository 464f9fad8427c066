"""Times the particle operations from file to file, next to Xmipp 3 (bench/reference.json). Run with ``make bench``.

Each operation, and the usual chain, is applied to a stack of 1000 images of 256² pixels, as `streamprep apply` does it
but without the start of the program; the least of several runs. All times are divided by that of the calibration kernel
in the same run, so that machines can be compared. On a machine with a GPU the chain is timed there as well, on images
that are in its memory.
"""

from __future__ import annotations

import argparse
import json
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
from machine import calibration, least  # noqa: E402

from streamprep.apply import apply, make_steps  # noqa: E402
from streamprep.arrays import array_namespace, choose_backend, fft_library  # noqa: E402
from streamprep.formats import mrc_output  # noqa: E402
from streamprep.model import Context, Ctf, Item, Optics, Particles  # noqa: E402
from streamprep.pipeline import Plan, run_particles  # noqa: E402
from streamprep.plugin_manager import Plugins, load_plugins  # noqa: E402

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text(encoding="utf-8"))
CHAIN = ("remove_dust", "normalize", "phase_flip", "invert", "threshold")
SETTINGS = {"randomize_phases": ("randomize_phases.max_resolution_angstrom=10",)}
PIXEL_SIZE_ANGSTROM = 2.0
REPEATS = 5


def make_stack(folder: Path, images: int) -> tuple[Path, Path]:
    """A stack of noise, and a table with a CTF of its own for each image, as when the defocus is refined."""
    rng = np.random.default_rng(1)
    side = int(REFERENCE["side_px"])
    stack, table = folder / f"{images}.mrcs", folder / f"{images}.star"
    noise = rng.standard_normal((images, side, side), dtype=np.float32)
    mrc_output.write(stack, noise, pixel_size_angstrom=PIXEL_SIZE_ANGSTROM, stack=True)
    names = ("DefocusU", "DefocusV", "DefocusAngle", "Voltage", "SphericalAberration", "AmplitudeContrast")
    rows = "".join(f"{15000 + index} {14500 + index} 30 300 2.7 0.1\n" for index in range(images))
    table.write_text("\ndata_\n\nloop_\n" + "".join(f"_rln{name}\n" for name in names) + rows + "\n", encoding="utf-8")
    return stack, table


def seconds_for(operations: Sequence[str], stack: Path, table: Path, plugins: Plugins) -> float:
    """Least time from file to file [s]."""
    overrides = [text for name in operations for text in SETTINGS.get(name, ())]
    ctf = table if "phase_flip" in operations else None
    target = stack.with_name("out.mrcs")
    times = []
    for _ in range(REPEATS):
        target.unlink(missing_ok=True)
        before = time.perf_counter()
        apply(operations, stack, target, plugins, overrides=overrides, ctf=ctf, device="cpu")
        times.append(time.perf_counter() - before)
    return min(times)


def on_cpu(plugins: Plugins) -> None:
    """Print the table of the CPU."""
    threads = len(os.sched_getaffinity(0))
    print(f"{threads} threads, Fourier transforms by {fft_library()}\n")
    print("| operation | particles/s | time / calibration | Xmipp 3 / calibration | ratio |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        units = calibration()
        theirs = {
            name: (known["seconds"] / known["calibration_s"], known.get("images", REFERENCE["images"]))
            for name, known in REFERENCE["operations"].items()
        }
        chain = (sum(theirs[name][0] for name in CHAIN), REFERENCE["images"])
        cases = [*(((name,), *known) for name, known in theirs.items()), (CHAIN, *chain)]
        for operations, reference, images in cases:
            stack, table = make_stack(folder, images) if not (folder / f"{images}.mrcs").exists() else (
                folder / f"{images}.mrcs", folder / f"{images}.star")  # fmt: skip
            spent = seconds_for(operations, stack, table, plugins)
            ours = spent / units
            print(
                f"| {' → '.join(operations)} ({images} images) | {images / spent:.0f} | {ours:.1f} | {reference:.1f} "
                f"| {reference / ours:.1f} × |",
                flush=True,
            )
        print(f"\nCalibration: {1e3 * units:.0f} ms before, {1e3 * calibration():.0f} ms after.")


def on_gpu(plugins: Plugins, images: int = 4096) -> None:
    """Print how fast the chain is on images in the GPU's memory, against the bytes that it must move."""
    backend = choose_backend("gpu")
    side = int(REFERENCE["side_px"])
    pixels = backend.to_device(np.random.default_rng(1).standard_normal((images, side, side), dtype=np.float32))
    xp = array_namespace(pixels)
    other = xp.empty_like(pixels)

    def finish() -> None:
        float(xp.sum(other[0, 0, :1]))  # waits for what was begun before

    def copy() -> None:
        other[...] = pixels
        finish()

    plan = Plan(make_steps(CHAIN, (), "particles", plugins), {})
    ctf = tuple(Ctf(15000.0 + index, 14500.0 + index, 30.0) for index in range(images))
    particles = Particles(pixels, Optics(PIXEL_SIZE_ANGSTROM), ctf=ctf)
    context = Context(Item("particles", "bench", Path("bench.mrcs")), "")

    def chain() -> None:
        run_particles(plan, particles, context)
        finish()

    copy(), chain()
    bandwidth = 2 * pixels.nbytes / least(copy)
    spent = least(chain)
    must = 2 * pixels.nbytes / bandwidth
    print(f"\n{backend.description}: {' → '.join(CHAIN)}, {images} images: {images / spent:.0f} particles/s;")
    print(f"copying {bandwidth / 1e9:.0f} GB/s; {spent / must:.1f} × the time of reading and writing each image once.")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu", "both"), default="cpu")
    wanted = parser.parse_args().device
    plugins = load_plugins(sinks=False)
    if wanted != "gpu":
        on_cpu(plugins)
    if wanted != "cpu":
        on_gpu(plugins)


if __name__ == "__main__":
    main()
