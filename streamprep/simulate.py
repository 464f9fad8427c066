"""A realistic acquisition with a known truth: micrographs of a synthetic particle, for rehearsals and tests.

The particle is a seeded sum of 3D Gaussians, so that its projection along any direction is exact. Micrographs
hold electrons per pixel, protein dark on bright, as recorded at underfocus:

    Poisson( dose · ice(y, x) · carbon(y, x) · (1 − CTF ∗ specimen(y, x)) ), then hot pixels.

Every random number depends on the seed and the index of the micrograph only: an exposure has the same bytes,
however many there are and whenever it is made.
"""

from __future__ import annotations

import filecmp
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.spatial.transform import Rotation

from streamprep.em.ctf import ctf_at
from streamprep.formats import mrc_output, star
from streamprep.model import ConfigError, Ctf, FloatArray

Image = npt.NDArray[np.float32]
Shape = tuple[int, int]

PARTICLE_RADIUS = 0.35
"""No density worth mentioning lies farther from a particle's centre, in boxes."""
LABEL = "streamprep simulate"
_GAUSSIANS = 40
_ASTIGMATISM_UM = 0.04
_CARBON_ABSORPTION = 0.15
_CARBON_TEXTURE = 0.15
_CARBON_EDGE_PX = 6.0
_TRIES_PER_PARTICLE = 50


@dataclass(frozen=True, slots=True)
class Acquisition:
    """The settings of a simulated session; all but ``micrographs`` decide what an exposure looks like."""

    micrographs: int = 8
    size_px: int = 1024
    particles: int = 30  # per micrograph, where they fit
    box_size_px: int = 96  # the particle's diameter is at most 0.7 of it
    seed: int = 0
    pixel_size_angstrom: float = 1.5
    voltage_kv: float = 300.0
    spherical_aberration_mm: float = 2.7
    amplitude_contrast: float = 0.1
    dose_per_square_angstrom: float = 40.0  # electrons, of the whole exposure
    min_defocus_um: float = 1.0
    max_defocus_um: float = 2.5
    signal: float = 0.1  # contrast of a particle before the CTF: twice its mean phase shift [rad]
    ice_ramp: float = 0.1  # peak to peak change of the background across a micrograph, relative
    hot_pixels_per_megapixel: float = 30.0
    carbon_every: int = 4  # the second of so many micrographs shows the edge of its hole; 0 for none
    pick_error_px: float = 1.0  # standard deviation of written coordinates from true ones, x and y each

    def __post_init__(self) -> None:
        floors: dict[str, float] = {"micrographs": 1, "box_size_px": 16, "size_px": self.box_size_px}
        floors |= {"voltage_kv": 1, "pixel_size_angstrom": 0.01}
        floors["max_defocus_um"] = self.min_defocus_um + _ASTIGMATISM_UM
        for name, value in asdict(self).items():
            if not floors.get(name, 0) <= value < np.inf:
                raise ConfigError(f"simulate: {name} is {value}; it must be {floors.get(name, 0):g} or more")

    @property
    def electrons_per_pixel(self) -> float:
        """Mean count of an empty pixel."""
        return self.dose_per_square_angstrom * self.pixel_size_angstrom**2


@dataclass(frozen=True, slots=True)
class ParticleModel:
    """Isotropic 3D Gaussians: centres (n, 3), x y z [px] from the origin, sigmas (n,) [px], integrals."""

    centres_px: FloatArray
    sigmas_px: FloatArray
    weights: FloatArray


@dataclass(frozen=True, slots=True)
class Hole:
    """The round hole of a carbon film; what lies outside the circle is carbon."""

    x_px: float
    y_px: float
    radius_px: float

    def depth_px(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Distance from the edge at points, positive on the carbon, negative in the hole."""
        return np.asarray(np.hypot(x - self.x_px, y - self.y_px) - self.radius_px)


@dataclass(frozen=True, slots=True)
class Exposure:
    """One simulated micrograph (ny, nx) and all that is known about it; arrays have one row per particle.

    ``xy_px`` (n, 2) are the true centres, ``picks_px`` (n, 2) and ``figure_of_merit`` what a picker would
    have found. ``euler_deg`` (n, 3) are RELION's rot, tilt and psi (Heymann, Chagoyen and Belnap, 2005): a
    point r of the map appears at A r with A = Rz(psi)ᵀ Ry(tilt)ᵀ Rz(rot)ᵀ.
    """

    pixels: Image
    ctf: Ctf
    hole: Hole | None
    xy_px: FloatArray
    euler_deg: FloatArray
    picks_px: FloatArray
    figure_of_merit: FloatArray


def random_numbers(seed: int, index: int, purpose: str) -> np.random.Generator:
    """Make the generator of one purpose in one micrograph; a setting of one thing does not change another."""
    return np.random.default_rng([seed, index, *purpose.encode()])


def particle_model(box_size_px: int, seed: int) -> ParticleModel:
    """Make an asymmetric particle of 40 blobs within 0.35 boxes of its centre of mass, the origin.

    The weights are such that a projection averages about 1 over the particle.
    """
    rng = random_numbers(seed, 0, "particle")
    centres = rng.uniform(-1, 1, (_GAUSSIANS, 3)) * np.array([1.0, 0.8, 0.6])
    weights = rng.uniform(0.3, 1.0, _GAUSSIANS)
    centres -= weights @ centres / weights.sum()
    radius = 0.25 * box_size_px
    centres *= radius / np.linalg.norm(centres, axis=1).max()
    sigmas = np.maximum(rng.uniform(0.02, 0.05, _GAUSSIANS) * box_size_px, 1.0)  # less would alias
    return ParticleModel(centres, sigmas, weights * (np.pi * radius**2 / weights.sum()))


def _profiles(centres_px: FloatArray, sigmas_px: FloatArray, size_px: int) -> FloatArray:
    """1D Gaussians of integral 1, shape (n, size_px), the origin at size_px // 2."""
    offsets = (np.arange(size_px) - size_px // 2 - centres_px[:, None]) / sigmas_px[:, None]
    return np.asarray(np.exp(-0.5 * offsets**2) / (np.sqrt(2 * np.pi) * sigmas_px[:, None]))


def particle_map(model: ParticleModel, box_size_px: int) -> Image:
    """Sample the particle's density on a cube, (z, y, x), the origin at box_size_px // 2."""
    x, y, z = (_profiles(model.centres_px[:, axis], model.sigmas_px, box_size_px) for axis in range(3))
    planes = y[:, :, None] * x[:, None, :]
    return np.asarray(np.tensordot((model.weights[:, None] * z).T, planes, axes=1), np.float32)


def projection(
    model: ParticleModel, matrix: FloatArray, box_size_px: int, shift_xy_px: Sequence[float] = (0.0, 0.0)
) -> FloatArray:
    """Project the rotated particle along z, exactly; shape (box_size_px, box_size_px).

    A point r of the map appears at ``(matrix @ r)[:2] + shift_xy_px`` from the origin, box_size_px // 2.
    """
    centres = model.centres_px @ np.asarray(matrix).T
    x = _profiles(centres[:, 0] + shift_xy_px[0], model.sigmas_px, box_size_px)
    y = _profiles(centres[:, 1] + shift_xy_px[1], model.sigmas_px, box_size_px)
    return np.asarray((model.weights[:, None] * y).T @ x)


def exposure_ctf(acquisition: Acquisition, index: int) -> Ctf:
    """Draw the CTF of exposure ``index``: both defoci within the limits, up to 400 Å of astigmatism."""
    rng = random_numbers(acquisition.seed, index, "ctf")
    low_um = rng.uniform(acquisition.min_defocus_um, acquisition.max_defocus_um - _ASTIGMATISM_UM)
    return Ctf(
        defocus_u_angstrom=1e4 * (low_um + _ASTIGMATISM_UM * rng.uniform(0.1, 1.0)),
        defocus_v_angstrom=1e4 * low_um,
        defocus_angle_deg=rng.uniform(0.0, 180.0),
        voltage_kv=acquisition.voltage_kv,
        spherical_aberration_mm=acquisition.spherical_aberration_mm,
        amplitude_contrast=acquisition.amplitude_contrast,
    )


def carbon_hole(shape_px: Shape, rng: np.random.Generator) -> Hole:
    """Draw a hole whose edge crosses the micrograph, from clearly round to nearly straight."""
    ny, nx = shape_px
    angle = rng.uniform(0, 2 * np.pi)
    radius = rng.uniform(0.8, 4.0) * max(shape_px)
    to_centre = rng.uniform(0.15, 0.35) * min(shape_px) - radius
    return Hole(nx / 2 + float(to_centre * np.cos(angle)), ny / 2 + float(to_centre * np.sin(angle)), radius)


def carbon_mask(hole: Hole, shape_px: Shape, pad_px: int = 0) -> Image:
    """Show the carbon, 1 against 0 in the hole; the micrograph's first pixel is ``[pad_px, pad_px]``."""
    y, x = np.ogrid[: shape_px[0], : shape_px[1]]
    depth = hole.depth_px(x - float(pad_px), y - float(pad_px))
    return np.asarray(np.clip(depth / _CARBON_EDGE_PX + 0.5, 0, 1), np.float32)


def ice(shape_px: Shape, ramp: float, rng: np.random.Generator) -> Image:
    """Make a slow, slightly bent gradient of the transmitted intensity: mean 1, peak to peak ``ramp``."""
    y, x = np.linspace(-1, 1, shape_px[0])[:, None], np.linspace(-1, 1, shape_px[1])
    angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3, 2)
    slope = np.cos(angle) * x + np.sin(angle) * y + bend[0] * x * y + bend[1] * (x * x + y * y)
    return np.asarray(1 + ramp * (slope - slope.mean()) / np.ptp(slope), np.float32)


def place_particles(
    shape_px: Shape, count: int, box_size_px: int, rng: np.random.Generator, hole: Hole | None = None
) -> FloatArray:
    """Draw centres (n, 2) of whole particles that do not overlap and keep off the carbon.

    They keep one box of distance while random tries find room, then one particle's diameter; where that is
    too much, n is less than ``count``. The margin is a particle's radius: a few boxes cross the border.
    """
    margin = PARTICLE_RADIUS * box_size_px
    high = np.array([shape_px[1], shape_px[0]]) - 1 - margin
    placed, found = np.empty((count, 2)), 0
    if np.any(high < margin):
        return placed[:0]
    for spacing in (box_size_px, 2 * margin):
        tries = rng.uniform(margin, high, (_TRIES_PER_PARTICLE * count, 2))
        if hole is not None:
            tries = tries[hole.depth_px(tries[:, 0], tries[:, 1]) < -margin]
        for xy in tries:
            offsets = placed[:found] - xy
            if found < count and np.all(np.einsum("ij,ij->i", offsets, offsets) >= spacing**2):
                placed[found] = xy
                found += 1
    return placed[:found]


def specimen_image(
    shape_px: Shape, model: ParticleModel, matrices: FloatArray, xy_px: FloatArray, box_size_px: int
) -> Image:
    """Add up projections (n matrices) at sub-pixel centres (n, 2); what lies outside the image is cut off."""
    image = np.zeros(shape_px, np.float32)
    for matrix, xy in zip(matrices, xy_px, strict=True):
        whole = np.rint(xy).astype(int)
        box = projection(model, matrix, box_size_px, xy - whole)
        x0, y0 = (int(corner) for corner in whole - box_size_px // 2)
        inside = image[max(0, y0) : max(0, y0 + box_size_px), max(0, x0) : max(0, x0 + box_size_px)]
        top, left = max(0, -y0), max(0, -x0)
        inside += box[top : top + inside.shape[0], left : left + inside.shape[1]]
    return image


def apply_ctf(image: Image, ctf: Ctf, pixel_size_angstrom: float) -> Image:
    """Filter an image (ny, nx) with a CTF; the image is taken as periodic."""
    fy = fft.fftfreq(image.shape[0], pixel_size_angstrom)[:, None]
    fx = fft.rfftfreq(image.shape[1], pixel_size_angstrom)[None, :]
    filtered = fft.rfft2(image) * ctf_at(ctf, fx, fy).astype(np.float32)
    return np.asarray(fft.irfft2(filtered, s=image.shape), np.float32)


def take_exposure(acquisition: Acquisition, index: int, shape_px: Shape | None = None) -> Exposure:
    """Make exposure ``index`` (0-based) in memory; ``shape_px`` (ny, nx) where it is not to be square."""
    ny, nx = shape = shape_px or (acquisition.size_px, acquisition.size_px)
    random, box = partial(random_numbers, acquisition.seed, index), acquisition.box_size_px
    on_edge = acquisition.carbon_every and (index - 1) % acquisition.carbon_every == 0
    hole = carbon_hole(shape, random("hole")) if on_edge else None
    xy = place_particles(shape, acquisition.particles, box, random("places"), hole)
    rotations = Rotation.random(max(1, acquisition.particles), random("rotations"))
    matrices = rotations.as_matrix()[: len(xy)]
    eulers = rotations.inv().as_euler("ZYZ", degrees=True)[: len(xy)]
    ctf = exposure_ctf(acquisition, index)

    # The specimen goes on beyond the border, so that no fringes come back in on the opposite side.
    canvas = fft.next_fast_len(ny + 2 * box, real=True), fft.next_fast_len(nx + 2 * box, real=True)
    inside = slice(box, box + ny), slice(box, box + nx)
    specimen = specimen_image(canvas, particle_model(box, acquisition.seed), matrices, xy + box, box)
    specimen *= acquisition.signal
    expected = acquisition.electrons_per_pixel * ice(shape, acquisition.ice_ramp, random("ice"))
    if hole is not None:
        carbon = carbon_mask(hole, canvas, box)
        specimen += _CARBON_TEXTURE * random("texture").standard_normal(canvas, np.float32) * carbon
        expected *= 1 - _CARBON_ABSORPTION * carbon[inside]
    expected *= 1 - apply_ctf(specimen, ctf, acquisition.pixel_size_angstrom)[inside]
    pixels = np.asarray(random("shot noise").poisson(np.maximum(expected, 0)), np.float32)
    detector, hot = random("hot pixels"), round(acquisition.hot_pixels_per_megapixel * ny * nx / 1e6)
    places = detector.choice(ny * nx, min(hot, ny * nx), replace=False)
    pixels.flat[places] = np.rint(acquisition.electrons_per_pixel * detector.uniform(5, 50, len(places)))

    picker = random("picker")
    picks = np.clip(xy + acquisition.pick_error_px * picker.normal(size=xy.shape), 0, [nx - 1, ny - 1])
    merit = picker.uniform(0.3, 1.0, len(xy))
    return Exposure(pixels, ctf, hole, xy, eulers, picks, merit)


def prepare(folder: Path, acquisition: Acquisition) -> None:
    """Make the folders, ``Maps/particle.mrc``, an empty ``truth.star`` and ``streamprep.toml``.

    A configuration that is there already stays as it is: it may be edited between two simulations. A folder
    that holds files of another acquisition, simulated or real, is refused with a ConfigError.
    """
    truth, folders = folder / "truth.star", ("Micrographs", "Coordinates", "Maps")
    for name in () if truth.exists() else (*folders, "micrographs_ctf.star", "streamprep.toml"):
        path = folder / name
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise ConfigError(f"{path}: not empty, and not of this simulation; choose an empty folder")
    for name in folders:
        (folder / name).mkdir(parents=True, exist_ok=True)
    _grow(truth, _truth_head(acquisition), "", [])
    box, pixel_size = acquisition.box_size_px, acquisition.pixel_size_angstrom
    density = particle_map(particle_model(box, acquisition.seed), box)
    with _appearing(folder / "Maps" / "particle.mrc") as part:
        mrc_output.write(part, density, pixel_size_angstrom=pixel_size, stack=False, label=LABEL)
    if not (folder / "streamprep.toml").exists():
        _write(folder / "streamprep.toml", _configuration(acquisition))


def expose(folder: Path, acquisition: Acquisition, index: int) -> Path:
    """Make exposure ``index`` (0-based) in a prepared folder; return the micrograph's path.

    The files appear whole and in a microscope's order: micrograph, coordinates, row in the CTF table, rows in
    ``truth.star``. A file that has the same content already is not touched.
    """
    exposure, pixel_size = take_exposure(acquisition, index), acquisition.pixel_size_angstrom
    stem = f"mic_{index + 1:04d}"
    name = f"Micrographs/{stem}.mrc"
    with _appearing(folder / name) as part:  # a stack of one image and a single image have the same bytes
        mrc_output.write(part, exposure.pixels[None], pixel_size_angstrom=pixel_size, stack=True, label=LABEL)
    names = ("rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit")
    picks = star.rows_text([*exposure.picks_px.T.tolist(), exposure.figure_of_merit.tolist()])
    _write(folder / "Coordinates" / f"{stem}_autopick.star", star.loop_head("", names) + picks)
    ctf = exposure.ctf
    row = (name, 1, ctf.defocus_u_angstrom, ctf.defocus_v_angstrom, ctf.defocus_angle_deg)
    _grow(folder / "micrographs_ctf.star", _ctf_head(acquisition), name, [[value] for value in row])
    known = np.hstack([exposure.xy_px, exposure.euler_deg]).T.tolist()
    _grow(folder / "truth.star", _truth_head(acquisition), name, [[name] * len(exposure.xy_px), *known])
    return folder / name


def simulate(
    folder: Path,
    acquisition: Acquisition,
    *,
    interval_s: float = 0.0,
    wait: Callable[[float], object] = time.sleep,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Prepare a folder and make every exposure in turn, with a pause (``wait``) of ``interval_s`` between.

    ``progress`` is called after each with the number made and the number in all.
    """
    prepare(folder, acquisition)
    for index in range(acquisition.micrographs):
        if index and interval_s > 0:
            wait(interval_s)
        expose(folder, acquisition, index)
        if progress is not None:
            progress(index + 1, acquisition.micrographs)


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; rename it at the end, unless the same bytes are there already.

    Not the durable writing of sinks/_files.py, which output sets need: here the program plays the microscope,
    and a watcher must see its files come as it sees real ones.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        if not (path.exists() and filecmp.cmp(part, path, shallow=False)):
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    with _appearing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def _grow(path: Path, head: str, name: str, columns: Sequence[Sequence[Any]]) -> None:
    """Put a micrograph's rows, the first column its name, into a table; ConfigError for a table not ours."""
    text = path.read_text(encoding="utf-8") if path.exists() else head
    if not text.startswith(head):
        theirs, ours = (set(words.partition("\n")[0].split()) for words in (text, head))
        differs = ", ".join(sorted(word for word in theirs - ours if "=" in word)) or "its head differs"
        said = f"of another acquisition ({differs}); choose an empty folder or the same settings"
        raise ConfigError(f"{path}: {said}")
    rows = [row for row in text.removeprefix(head).splitlines(keepends=True) if row.split()[0] != name]
    rows += star.rows_text(columns).splitlines(keepends=True)
    _write(path, head + "".join(sorted(rows, key=lambda row: row.split()[0])))


def _truth_head(acquisition: Acquisition) -> str:
    """The beginning of truth.star; its first line says which acquisition the folder belongs to."""
    settings = {name: value for name, value in asdict(acquisition).items() if name != "micrographs"}
    said = " ".join(f"{name}={value:.15g}" for name, value in settings.items())
    columns = ("CoordinateX", "CoordinateY", "AngleRot", "AngleTilt", "AnglePsi")
    return f"# {LABEL}: {said}\n" + star.loop_head("truth", ["rlnMicrographName", *("rln" + c for c in columns)])


def _ctf_head(acquisition: Acquisition) -> str:
    optics: dict[str, list[Any]] = {
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnOpticsGroup": [1],
        "rlnMicrographPixelSize": [acquisition.pixel_size_angstrom],
        "rlnVoltage": [acquisition.voltage_kv],
        "rlnSphericalAberration": [acquisition.spherical_aberration_mm],
        "rlnAmplitudeContrast": [acquisition.amplitude_contrast],
    }
    columns = ("rlnMicrographName", "rlnOpticsGroup", *star.CTF_COLUMNS)
    version, optics_text = "\n# version 30001\n", star.table_text("optics", optics)
    return f"{version}{optics_text}\n{version}{star.loop_head('micrographs', columns)}"


def _configuration(acquisition: Acquisition) -> str:
    return f"""\
# A simulated session: `streamprep once` processes what is there, `streamprep run` follows what comes.
[session]
watch  = ["Micrographs", "Coordinates"]     # and the CTF table, see [ctf]
output = "streamprep_out"
[optics]
pixel_size_angstrom = {acquisition.pixel_size_angstrom}
voltage_kv = {acquisition.voltage_kv:.12g}
spherical_aberration_mm = {acquisition.spherical_aberration_mm}
amplitude_contrast = {acquisition.amplitude_contrast}
[ctf]
table = "micrographs_ctf.star"       # micrographs wait for their CTF
[extract]
box_size_px = {acquisition.box_size_px}                     # the particle's diameter is at most 0.7 of it
[coordinates.pick_noise]             # boxes of background, as many as there are particles
[particles.normalize]
method = "ramp"                      # the ice is not of one thickness
[particles.invert]                   # protein is dark in a micrograph; programs want it bright
"""
