"""Draw the pictures of docs/operations.md, each operation before and after: ``python docs/make_pictures.py [NAME …]``.

All data are of `streamprep.simulate`, so the same pictures come out again.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter

from streamprep import simulate
from streamprep.em.centering import center
from streamprep.em.ctf import ctf_at
from streamprep.em.projection import euler_matrices
from streamprep.model import Ctf, ImageSample
from streamprep.plugins.adjust_gray import adjustment
from streamprep.plugins.change_hand import change_hand
from streamprep.plugins.extract import boxes_inside, extract
from streamprep.plugins.invert import invert
from streamprep.plugins.laplacian import laplacian
from streamprep.plugins.normalize import normalize
from streamprep.plugins.normalize_background import normalize_background
from streamprep.plugins.phase_flip import phase_flip
from streamprep.plugins.pick_noise import pick_noise
from streamprep.plugins.randomize_phases import randomize_phases
from streamprep.plugins.remove_dust import remove_dust
from streamprep.plugins.rotate_ico import rotate_ico
from streamprep.plugins.segment import segment
from streamprep.plugins.symmetrize import symmetrize
from streamprep.plugins.threshold import threshold

mpl.use("agg")
from matplotlib import pyplot as plt

FOLDER = Path(__file__).parent / "images" / "operations"
PICTURES: dict[str, Callable[[], None]] = {}
BOX = 96
PARTICLE, NOISE, LINE = "#40dc78", "#ff963c", "#0f766e"
"""Particles and noise as in `streamprep.pictures`."""
EXPOSURE = simulate.Acquisition(size_px=640, particles=12, box_size_px=BOX, hot_pixels_per_megapixel=0)
MODEL = simulate.particle_model(BOX, 0)
TURN = euler_matrices(np.array([40.0]), np.array([60.0]), np.array([20.0]))[0]
PIXEL_SIZE = EXPOSURE.pixel_size_angstrom

GREYS = mpl.colormaps["gray"].resampled(40)
"""Few greys, for small files."""

Pixels = npt.NDArray[Any]
mpl.rcParams.update({"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False})


def picture(draw: Callable[[], None]) -> Callable[[], None]:
    """Name a picture after the function that draws it."""
    PICTURES[draw.__name__] = draw
    return draw


def panels(count: int, *, height: float = 2.9) -> list[Any]:
    """That many panels side by side, 7.2 inches wide."""
    _, axes = plt.subplots(1, count, figsize=(7.2, height), layout="constrained")
    return list(axes)


def show(axes: Any, pixels: Pixels, title: str, limits: tuple[float, float] | None = None) -> None:
    """A grey picture with a title and no ticks."""
    low, high = np.percentile(pixels, [0.5, 99.5]) if limits is None else limits
    axes.imshow(pixels, cmap=GREYS, vmin=low, vmax=high, interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()


def limits(*images: Pixels) -> tuple[float, float]:
    """One grey scale for several pictures."""
    return float(min(image.min() for image in images)), float(max(image.max() for image in images))


def square(axes: Any, centre: Pixels, colour: str) -> None:
    """A box around a centre (x, y) of a micrograph that is shown at a quarter of its size."""
    x, y = (centre - BOX / 2) / 4
    axes.add_patch(plt.Rectangle((x, y), BOX / 4, BOX / 4, fill=False, color=colour, linewidth=1.5))


def crosshair(axes: Any, side: int) -> None:
    """Lines through the origin pixel."""
    axes.axhline(side // 2, color=NOISE, linewidth=0.8)
    axes.axvline(side // 2, color=NOISE, linewidth=0.8)


def particle(shift: tuple[float, float] = (0.0, 0.0)) -> Pixels:
    """A projection of the particle without noise, (96, 96), about 1 inside."""
    return np.asarray(simulate.projection(MODEL, TURN, BOX, shift), np.float32)


def noisy(image: Pixels, sigma: float, seed: int = 1) -> Pixels:
    """The same with white noise."""
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.asarray(image + noise, np.float32)


def density(side: int = 64) -> Pixels:
    """The particle's map, at most 1."""
    made = simulate.particle_map(simulate.particle_model(side, 0), side)
    return np.asarray(made / made.max(), np.float32)


@picture
def pick_noise_() -> None:
    """The micrograph with its particles, and with the noise boxes found between them."""
    exposure = simulate.take_exposure(EXPOSURE, 0)
    small = gaussian_filter(exposure.pixels, 3)[::4, ::4]
    found = pick_noise(exposure.pixels.shape, exposure.xy_px, number=12, box_size_px=BOX, rng=np.random.default_rng(2))
    before, after = panels(2, height=3.6)
    for axes, title in ((before, "before: particles"), (after, "after: particles and noise boxes")):
        show(axes, small, title)
        for x, y in exposure.xy_px / 4:
            axes.add_patch(plt.Circle((x, y), BOX / 8, fill=False, color=PARTICLE, linewidth=1.5))
    for centre in found:
        square(after, centre, NOISE)


@picture
def extract_() -> None:
    """Boxes in the micrograph, and cut out of it; those that cross the edge are skipped."""
    exposure = simulate.take_exposure(EXPOSURE, 2)
    inside = boxes_inside(exposure.xy_px, BOX, exposure.pixels.shape)
    smooth = gaussian_filter(exposure.pixels, 3)
    boxes = np.asarray(extract(smooth, exposure.xy_px[inside], box_size_px=BOX))[:9, ::2, ::2]
    before, after = panels(2, height=3.6)
    show(before, smooth[::4, ::4], "before: a micrograph and its coordinates")
    for centre, whole in zip(exposure.xy_px, inside, strict=True):
        square(before, centre, PARTICLE if whole else NOISE)
    side = BOX // 2 + 2
    sheet = np.full((3 * side, 3 * side), np.nan)
    for index, box in enumerate(boxes):
        row, column = divmod(index, 3)
        sheet[row * side + 1 : (row + 1) * side - 1, column * side + 1 : (column + 1) * side - 1] = box
    show(after, sheet, "after: boxes; those across the edge are skipped", tuple(np.nanpercentile(sheet, [0.5, 99.5])))


@picture
def remove_dust_() -> None:
    """Hot pixels of a box, and the same box without them."""
    image = noisy(0.4 * particle(), 1.0)[None]
    rng = np.random.default_rng(4)
    for y, x in rng.integers(20, BOX - 20, (16, 2)):
        image[0, y, x] += rng.choice([-1, 1]) * rng.uniform(6, 12)
    cleaned = np.asarray(remove_dust(image.copy(), threshold=3.5, fill="matched", key=1).pixels)
    before, after, difference = panels(3)
    middle = (slice(16, -16), slice(16, -16))
    show(before, image[0][middle], "before", (-6, 6))
    show(after, cleaned[0][middle], "after", (-6, 6))
    show(difference, (image - cleaned)[0][middle], "difference", (-6, 6))


@picture
def randomize_phases_() -> None:
    """The phases beyond 24 Å are lost, the spectrum is not."""
    image, resolution = particle()[None], 24.0
    done = np.asarray(randomize_phases(image, np.zeros(1, np.uint64), key=3, cutoff=PIXEL_SIZE / resolution))
    before, after, plot = panels(3)
    show(before, image[0], "before")
    show(after, done[0], f"after, beyond {resolution:g} Å")
    f, g = np.fft.fft2(image[0]), np.fft.fft2(done[0])
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(BOX), np.fft.fftfreq(BOX)))
    rings = np.round(frequency * BOX).astype(int).ravel()

    def ring(values: Pixels) -> Pixels:
        return np.bincount(rings, values.ravel().real)[1 : BOX // 4]

    at = np.arange(1, BOX // 4) / BOX / PIXEL_SIZE
    power, new_power = ring(np.abs(f) ** 2), ring(np.abs(g) ** 2)
    plot.plot(at, np.sqrt(new_power / power), color="#888888", label="amplitudes, after / before")
    plot.plot(at, ring(f * g.conj()) / np.sqrt(power * new_power), color=LINE, label="correlation")
    plot.axvline(1 / resolution, color=NOISE, linewidth=1)
    plot.set(ylim=(-0.4, 1.6), xlabel="frequency [1/Å]", title="by frequency")
    plot.legend(fontsize=7, frameon=False, loc="upper right")


@picture
def normalize_() -> None:
    """Thick ice on one side, another grey scale; then mean 0 and deviation 1 of the background."""
    y, x = np.mgrid[:BOX, :BOX] / BOX
    image = np.asarray(11 - 5 * x - 4 * y, np.float32) - 1.2 * noisy(particle(), 0.6)
    done = np.asarray(normalize(image[None], method="ramp")[0])[0]
    outside = np.hypot(*np.meshgrid(np.arange(BOX) - BOX // 2, np.arange(BOX) - BOX // 2)) >= BOX // 2
    before, after, plot = panels(3)
    show(before, image, "before", (-6, 12))
    show(after, done, 'after, method = "ramp"', (-6, 12))
    bins = {"bins": 40, "density": True, "histtype": "step", "linewidth": 1.5}
    plot.hist(image[outside], color="#888888", label="before", **bins)
    plot.hist(done[outside], color=LINE, label="after", **bins)
    plot.set(title="background, grey values", yticks=[])
    plot.legend(fontsize=8, frameon=False)


@picture
def center_() -> None:
    """A particle beside the middle, and in it."""
    image = noisy(particle((13, -9)), 0.4)
    done = center(image[None])
    before, after = panels(2, height=3.4)
    show(before, image, "before")
    dx, dy = np.asarray(done.shift_px)[0]
    show(after, np.asarray(done.pixels)[0], f"after: moved by ({dx:.1f}, {dy:.1f}) px")
    for axes in (before, after):
        crosshair(axes, BOX)


@picture
def phase_flip_() -> None:
    """A particle as the microscope shows it, with the signs put right, and the CTF of both."""
    ctf = Ctf(12000, 12000, 0)
    image = simulate.apply_ctf(particle(), ctf, PIXEL_SIZE)[None]
    done = np.asarray(phase_flip(image, [ctf], pixel_size_angstrom=PIXEL_SIZE))
    before, after, plot = panels(3)
    grey = limits(image, done)
    show(before, image[0], "before", grey)
    show(after, done[0], "after", grey)
    at = np.linspace(0, 0.17, 400)
    values = np.asarray(ctf_at(ctf, at, np.zeros_like(at)))
    plot.plot(at, values, color="#888888", linewidth=1, label="CTF before")
    plot.plot(at, np.abs(values), color=LINE, label="CTF after")
    plot.axhline(0, color="#bbbbbb", linewidth=0.6)
    plot.set(xlabel="frequency [1/Å]", ylim=(-1.1, 1.8), title="contrast transfer")
    plot.legend(fontsize=8, frameon=False, loc="upper right")


@picture
def invert_() -> None:
    """Dark becomes bright."""
    image = noisy(-particle(), 0.4)
    done = np.asarray(invert(image))
    before, after = panels(2, height=3.4)
    show(before, image, "before")
    show(after, done, "after")


@picture
def threshold_() -> None:
    """What is below a grey value becomes 0."""
    image = noisy(particle(), 0.25)
    done = np.asarray(threshold(image[None], select="below", value=0.5).pixels)[0]
    before, after, plot = panels(3)
    grey = limits(image)
    show(before, image, "before", grey)
    show(after, done, "after: below 0.5 becomes 0", grey)
    middle = BOX // 2
    plot.plot(image[middle], color="#888888", linewidth=1, label="before")
    plot.plot(done[middle], color=LINE, label="after")
    plot.axhline(0.5, color=NOISE, linewidth=0.8)
    plot.set(title="the middle row", xlabel="x [px]")
    plot.legend(fontsize=8, frameon=False)


@picture
def change_hand_() -> None:
    """Two views of a map and of its mirror image."""
    volume = density()
    done = np.asarray(change_hand(volume, keep_origin=True))
    axes = panels(4, height=2.2)
    grey = limits(volume.sum(axis=0))
    show(axes[0], volume.sum(axis=0), "before, along z", grey)
    show(axes[1], done.sum(axis=0), "after, along z", grey)
    show(axes[2], volume.sum(axis=1), "before, along y", grey)
    show(axes[3], done.sum(axis=1), "after, along y", grey)


@picture
def rotate_ico_() -> None:
    """A two-fold axis along z, and a five-fold one."""
    side = 96
    z, y, x = np.mgrid[:side, :side, :side] - side // 2
    blob = np.exp(-((x - 7) ** 2 + (y - 12) ** 2 + (z - 34) ** 2) / 18).astype(np.float32)
    volume = np.asarray(symmetrize(blob, "i1", aggregation="sum", wrap=False))
    done = np.asarray(rotate_ico(volume, "i1", "i3"))
    half = slice(side // 2, None)
    before, after = panels(2, height=3.6)
    show(before, volume[half].sum(axis=0), "before, i1: a two-fold axis along z")
    show(after, done[half].sum(axis=0), "after, i3: a five-fold axis along z")


@picture
def symmetrize_() -> None:
    """A map without symmetry, and the average over four turns about z."""
    volume = density()
    done = np.asarray(symmetrize(volume, "c4"))
    before, after = panels(2, height=3.4)
    show(before, volume.sum(axis=0), "before, along z")
    show(after, done.sum(axis=0), 'after, group = "c4", along z')


@picture
def laplacian_() -> None:
    """The middle slice of a noisy map."""
    volume = noisy(density(), 0.03)
    done = np.asarray(laplacian(volume, percentile=0.9))
    before, after = panels(2, height=3.4)
    middle = volume.shape[0] // 2
    grey = (-0.1, 0.7)
    show(before, volume[middle], "before: the middle slice", grey)
    show(after, done[middle], "after, percentile = 0.9", grey)


@picture
def adjust_gray_() -> None:
    """Projections of a map against images of the same particle, on another grey scale."""
    volume = density()
    side = volume.shape[0]
    model = simulate.particle_model(side, 0)
    scale = float(simulate.particle_map(model, side).max())
    rng = np.random.default_rng(5)
    angles = np.stack([rng.uniform(0, 360, 20), rng.uniform(0, 180, 20), rng.uniform(0, 360, 20)])
    turns = euler_matrices(*angles)
    clean = np.stack([simulate.projection(model, turn, side) for turn in turns]).astype(np.float32)
    images = noisy(3 * clean / scale + 4, 2.0)
    sample, orientations = ImageSample(images, len(images), PIXEL_SIZE), (turns, np.zeros((len(turns), 2)))
    found = adjustment(volume, sample, orientations, pixel_size_angstrom=PIXEL_SIZE)
    assert found is not None
    old = clean[0] / scale
    new = found.a * old + found.b * side  # a map that is 1 everywhere has the projection n
    image, before, after, plot = panels(4, height=2.4)
    grey = (0.0, 25.0)
    show(image, images[0], "an image", grey)
    show(before, old, "map before", grey)
    show(after, new, f"after: a = {found.a:.2f}", grey)
    row = side // 2
    plot.plot(images[0][row], color=NOISE, linewidth=0.8, label="image")
    plot.plot(old[row], color="#888888", label="before")
    plot.plot(new[row], color=LINE, label="after")
    plot.set(title="the middle row", ylim=(-2, 34), xticks=[])
    plot.legend(fontsize=7, frameon=False, ncols=2, loc="upper left")


@picture
def segment_() -> None:
    """The middle slice of a noisy map, with the molecule's outline, and what is left."""
    volume = noisy(density(), 0.04)
    mass = int((density() > 0.15).sum())
    done = segment(volume, voxels=mass)
    before, after = panels(2, height=3.4)
    middle = volume.shape[0] // 2
    pixels = np.asarray(done.pixels)[middle]
    grey = limits(volume[middle])
    show(before, volume[middle], "before: the middle slice", grey)
    before.contour(pixels != 0, levels=[0.5], colors=PARTICLE, linewidths=1)
    show(after, pixels, f'after, kind = "voxels", mass = {mass}', grey)


@picture
def normalize_background_() -> None:
    """The middle slice of a map, and the grey values outside the sphere."""
    volume = noisy(15 * density() + 5, 1.5)
    done = np.asarray(normalize_background(volume).pixels)
    side = volume.shape[0]
    z, y, x = np.mgrid[:side, :side, :side] - side // 2
    outside = x * x + y * y + z * z >= (side // 2) ** 2
    before, after, plot = panels(3)
    for axes, pixels, title in ((before, volume, "before"), (after, done, "after")):
        show(axes, pixels[side // 2], title, (-4, 18))
        axes.add_patch(plt.Circle((side // 2, side // 2), side // 2, fill=False, color=NOISE, linewidth=1))
    bins = {"bins": 60, "density": True, "histtype": "step", "linewidth": 1.5}
    plot.hist(volume[outside], color="#888888", label="before", **bins)
    plot.hist(done[outside], color=LINE, label="after", **bins)
    plot.set(title="outside, grey values", yticks=[])
    plot.legend(fontsize=8, frameon=False)


def main(names: list[str]) -> None:
    """Draw the pictures that are named, or all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        name = name.removesuffix("_")
        if names and name not in names:
            continue
        draw()
        drawn = io.BytesIO()
        plt.savefig(drawn, dpi=100, bbox_inches="tight", pad_inches=0.06)
        plt.close()
        path = FOLDER / f"{name}.png"
        few = Image.open(drawn).convert("RGB").quantize(96, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(path, optimize=True)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
