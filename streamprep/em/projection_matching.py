"""Orientations of images from a map: a gallery of its projections, then a refinement of what fits best.

Both work on copies of map and images with at most `GRID` pixels, cut out of their Fourier transforms. The gallery is
compared on rings of Fourier space: the in-plane angle follows from the Fourier transforms of the rings, the shift is
tried on a grid. What fits best is refined by least squares (Levenberg and Marquardt) in rotation, shift and grey value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from array_api_compat import device as array_device
from array_api_compat import is_numpy_array

from streamprep.arrays import array_namespace, cached_filter, rfft2
from streamprep.em.background import background_mask
from streamprep.em.ctf import ctf_at
from streamprep.em.projection import CentralSlices, asymmetric_unit, central_slices, euler_matrices
from streamprep.model import Array, Ctf, FloatArray

GRID = 64
REACH = 0.09
"""Shifts are searched up to this part of the box, along any direction."""
CANDIDATES = 3
"""Directions of the gallery that are refined for each image."""
_ROUGH_STEPS, _FINE_STEPS = 3, 6
_DELTA = 1e-3
"""Of rotations in numerical derivatives [rad]."""
_TERMS_CPU, _TERMS_GPU = 1 << 19, 1 << 26
"""Numbers worked on at a time."""
_PRODUCT_CPU = 1 << 15
"""Multiplications in a complex matrix product: few enough for OpenBLAS not to start threads, which for thousands of
small products, on a machine that has other work, takes ten times as long."""


class Orientations(NamedTuple):
    """What `match_projections` finds, on the device of the images."""

    matrices: Array
    """Shape (n, 3, 3), float64; see `streamprep.em.projection`."""
    shifts_px: Array
    """Shape (n, 2), float64: x, y."""
    scores: Array
    """Shape (n,), float64: correlation coefficient of each image, inside its circle, with its projection."""


def match_projections(
    volume: Array,
    images: Array,
    *,
    symmetry: str = "c1",
    step_deg: float = 5.0,
    ctfs: Sequence[Ctf] | None = None,
    phase_flipped: Sequence[bool] | None = None,
    pixel_size_angstrom: float = 1.0,
) -> Orientations:
    """Find from where a map looks most like each image.

    Parameters
    ----------
    volume
        Shape (n, n, n), finite.
    images
        Shape (k, n, n), finite, of the map's contrast: density has the same sign in both.
    symmetry
        Point group of the map; directions are looked for in its asymmetric unit.
    step_deg
        Between directions, and between in-plane angles, of the gallery [°].
    ctfs, phase_flipped
        One per image, as in `streamprep.em.projection.project`.
    pixel_size_angstrom
        Of map and images; for the CTF.

    Notes
    -----
    The gallery is compared up to the frequency at which half a step turns a particle as large as half of the box by a
    quarter of a period. The score of a projection P for an image I is Re⟨I, C·P⟩ / ‖C·P‖, C the CTF; in ‖C·P‖ the mean
    of C² over each ring stands for it. Where that is largest, least is left of the image when the best multiple of C·P
    is taken away.
    """
    xp, place = array_namespace(images), array_device(images)
    count, size = int(images.shape[0]), int(images.shape[-1])
    side = min(size, GRID)
    slices = central_slices(_coarse(volume, side))
    slices = CentralSlices(slices.terms, side, slices.padded_px, slices.order, 0.0)
    masked = _masked(images)
    small = _coarse(masked, side, axes=2)
    scale = size / side
    coarse_pixel = pixel_size_angstrom * scale

    limit = max(1, side // 2 - 1)
    rings = min(limit, max(6, math.ceil(1.2 / math.radians(step_deg))))
    half_turn = max(4, math.ceil(180 / step_deg - 1e-9))
    polar = _Polar(side, rings, half_turn)
    directions = asymmetric_unit(symmetry, step_deg)
    matrices = xp.asarray(euler_matrices(directions[:, 0], directions[:, 1], 0 * directions[:, 0]), device=place)
    gallery = polar.waves(slices.at(matrices, *polar.frequencies(like=images)))

    def factors(fx: FloatArray, fy: FloatArray) -> Array | None:
        if ctfs is None:
            return None
        found = np.empty((count, len(fx)), np.float32)
        for image, ctf in enumerate(ctfs):
            found[image] = ctf_at(ctf, fx / coarse_pixel, fy / coarse_pixel)
        flipped = np.asarray([False] * count if phase_flipped is None else phase_flipped, dtype=np.bool_)
        found[flipped] = np.abs(found[flipped])
        return xp.asarray(found, device=place)

    start, shifts = _best_of_gallery(polar, small, gallery, matrices, factors(*polar.host_frequencies()), step_deg)

    data = _Data(small, factors, rings)
    candidates = int(start.shape[1])
    spread = xp.reshape(xp.broadcast_to(xp.arange(count, device=place)[:, None], (count, candidates)), (-1,))
    start, shifts, scores = _refine(
        slices, data, spread, xp.reshape(start, (-1, 3, 3)), xp.reshape(shifts, (-1, 2)), _ROUGH_STEPS
    )
    best = xp.argmax(xp.reshape(scores, (count, candidates)), axis=1) + xp.arange(count, device=place) * candidates
    start, shifts = xp.take(start, best, axis=0), xp.take(shifts, best, axis=0)
    data = _Data(small, factors, limit)
    start, shifts, scores = _refine(slices, data, xp.arange(count, device=place), start, shifts, _FINE_STEPS)
    return Orientations(start, shifts * scale, scores)


# --- coarse copies ---------------------------------------------------------------------------------------------------


@cached_filter
def _resampling(size: int, side: int) -> npt.NDArray[np.float32]:
    """Matrix (side, size) that samples a periodic line at fewer places, origin upon origin, without higher terms."""
    places = (np.arange(side) - side // 2) * (size / side)
    offsets = places[:, None] - (np.arange(size) - size // 2)[None, :]
    waves = np.arange(1, (side + 1) // 2)
    made = 1 + 2 * np.cos(2 * np.pi / size * offsets[..., None] * waves).sum(axis=-1)
    return np.asarray(made / size, dtype=np.float32)


def _coarse(array: Array, side: int, axes: int = 3) -> Array:
    xp = array_namespace(array)
    size = int(array.shape[-1])
    array = xp.astype(array, xp.float32, copy=False)
    if side == size:
        return array
    matrix = _resampling(size, side, like=array)
    array = matrix @ (array @ xp.permute_dims(matrix, (1, 0)))
    return array if axes == 2 else xp.tensordot(matrix, array, axes=1)


def _masked(images: Array) -> Array:
    """Images without what is outside of their inscribed circle, whose mean was subtracted; then of mean 0 inside."""
    xp, place = array_namespace(images), array_device(images)
    size = int(images.shape[-1])
    inside = ~background_mask(size, size, size // 2)
    mask = xp.asarray(inside.astype(np.float32), device=place)
    outside = xp.sum(images * (1 - mask), axis=(1, 2)) / max(1, int((~inside).sum()))
    return (images - outside[:, None, None]) * mask


# --- the gallery -----------------------------------------------------------------------------------------------------


class _Polar:
    """Half rings in Fourier space: radii 1 … rings periods per box, angles from x towards y over half a turn."""

    def __init__(self, side: int, rings: int, half_turn: int) -> None:
        self.side, self.rings, self.half_turn = side, rings, half_turn

    def host_frequencies(self) -> tuple[FloatArray, FloatArray]:
        radii = np.arange(1, self.rings + 1)[:, None] / self.side
        angles = np.arange(self.half_turn) * (np.pi / self.half_turn)
        return (radii * np.cos(angles)).ravel(), (radii * np.sin(angles)).ravel()

    def frequencies(self, like: Array) -> tuple[Array, Array]:
        """fx, fy of all points [cycles/pixel]."""
        xp, place = array_namespace(like), array_device(like)
        fx, fy = (xp.asarray(frequency, device=place) for frequency in self.host_frequencies())
        return fx, fy

    def sample(self, images: Array) -> Array:
        """Fourier transforms of images (n, side, side) at the points, about the origin pixel: (n, points)."""
        xp, place = array_namespace(images), array_device(images)
        offsets = xp.asarray(np.arange(self.side) - self.side // 2.0, device=place)
        fx, fy = self.frequencies(images)
        along_x, along_y = (
            xp.astype(xp.exp(-2j * math.pi * xp.astype(offsets[:, None] * f, xp.complex128)), xp.complex64)
            for f in (fx, fy)
        )
        count, points = int(images.shape[0]), int(fx.shape[0])
        images = xp.astype(images, xp.complex64)
        made = xp.empty((count, points), dtype=xp.complex64, device=place)
        for some in _parts(points, count * self.side, self.side**2, images):
            made[:, some] = xp.sum((images @ along_x[:, some]) * along_y[:, some], axis=1)
        return made

    def waves(self, points: Array) -> Array:
        """Fourier transforms of the rings: (…, points) → (…, rings, half_turn + 1), those of angular order ≥ 0."""
        xp = array_namespace(points)
        rings = xp.reshape(points, (*points.shape[:-1], self.rings, self.half_turn))
        whole = xp.concat([rings, xp.conj(rings)], axis=-1)  # F(−f) = conj F(f)
        return xp.fft.fft(whole, axis=-1)[..., : self.half_turn + 1]


def _shift_grid(side: int, rings: int) -> FloatArray:
    """Shifts [px], the nearest first; two neighbours are 2.5 of the highest frequency's periods⁻¹ apart."""
    spacing = side / (2.5 * rings)
    steps = math.floor(REACH * side / spacing + 0.5)
    y, x = np.meshgrid(*[np.arange(-steps, steps + 1) * spacing] * 2, indexing="ij")
    made = np.stack([x.ravel(), y.ravel()], axis=1)
    made = made[np.hypot(made[:, 0], made[:, 1]) <= steps * spacing + 1e-9]
    return np.asarray(made[np.argsort(np.hypot(made[:, 0], made[:, 1]), kind="stable")])


def _best_of_gallery(
    polar: _Polar, images: Array, gallery: Array, matrices: Array, ctfs: Array | None, step_deg: float
) -> tuple[Array, Array]:
    """The best directions for each image, with in-plane angle and shift: matrices (n, c, 3, 3), shifts (n, c, 2)."""
    xp, place = array_namespace(images), array_device(images)
    count, references = int(images.shape[0]), int(gallery.shape[0])
    shifts = xp.asarray(_shift_grid(polar.side, polar.rings), device=place)
    fx, fy = polar.frequencies(images)
    phase = -2 * math.pi * (shifts[:, 0:1] * fx + shifts[:, 1:2] * fy)
    ramps = xp.astype(xp.exp(1j * xp.astype(phase, xp.complex128)), xp.complex64)
    radii = xp.asarray(np.arange(1, polar.rings + 1, dtype=np.float32), device=place)
    weighted = gallery * xp.astype(radii[:, None], gallery.dtype)
    # the energy of each reference on each ring; the CTF's mean square on the ring goes with it
    order = xp.asarray(np.r_[1.0, np.full(polar.half_turn - 1, 2.0), 1.0].astype(np.float32), device=place)
    energy = xp.sum(xp.real(weighted * xp.conj(gallery)) * order, axis=2)
    terms = xp.empty((polar.half_turn + 1, polar.rings, references), dtype=xp.complex64, device=place)
    terms[...] = xp.permute_dims(weighted, (2, 1, 0))  # order, ring, reference: in this order in memory, too
    points = polar.sample(images)
    separate = math.cos(math.radians(1.5 * step_deg))
    candidates = min(CANDIDATES, references)
    turns = 2 * polar.half_turn
    chosen, moved = [], []
    for image in range(count):
        seen, square = points[image, :], xp.ones_like(radii)
        if ctfs is not None:
            seen = seen * xp.astype(ctfs[image, :], seen.dtype)
            square = xp.mean(xp.reshape(ctfs[image, :] ** 2, (polar.rings, polar.half_turn)), axis=1)
        waves = xp.permute_dims(xp.conj(polar.waves(seen[None, :] * ramps)), (2, 0, 1))  # order, shift, ring
        norm = xp.sqrt(energy @ square)
        norm = xp.where(norm > 0, norm, xp.ones_like(norm) * math.inf)
        scores = xp.empty((references,), dtype=xp.float32, device=place)
        for some in _parts(references, turns * int(shifts.shape[0]), polar.rings * int(shifts.shape[0]), images):
            line = xp.fft.irfft(waves @ terms[:, :, some], n=turns, axis=0)
            scores[some] = xp.astype(xp.max(line, axis=(0, 1)), xp.float32)
        scores = scores / xp.astype(norm, xp.float32)
        for _ in range(candidates):
            best = xp.argmax(scores)
            index = xp.reshape(best, (1,))
            one = xp.permute_dims(xp.take(weighted, index, axis=0), (2, 1, 0))
            line = xp.fft.irfft(waves @ one, n=turns, axis=0)[:, :, 0]
            flat = xp.argmax(xp.reshape(line, (-1,)))
            turn, shift = flat // int(line.shape[1]), flat % int(line.shape[1])
            start = xp.take(matrices, index, axis=0)[0, ...]
            chosen.append(_turned_in_plane(start, xp.astype(turn, xp.float64) * (2 * math.pi / turns)))
            moved.append(xp.take(shifts, xp.reshape(shift, (1,)), axis=0)[0, :])
            near = matrices[:, 2, :] @ start[2, :] > separate
            scores = xp.where(near, xp.full_like(scores, -math.inf), scores)
    made = xp.reshape(xp.stack(chosen), (count, candidates, 3, 3))
    return made, xp.reshape(xp.stack(moved), (count, candidates, 2))


def _parts(count: int, terms: int, products: int, like: Array) -> list[slice]:
    """Parts of a list, of whose entries each makes so many terms by so many multiplications."""
    size = min(_TERMS_CPU // terms, _PRODUCT_CPU // products) if is_numpy_array(like) else _TERMS_GPU // terms
    size = max(1, size)
    return [slice(start, min(count, start + size)) for start in range(0, count, size)]


def _turned_in_plane(matrix: Array, psi: Array) -> Array:
    """Rz(psi) · R for one matrix and one angle [rad]."""
    xp = array_namespace(matrix)
    cosine, sine = xp.cos(psi), xp.sin(psi)
    x, y = matrix[0, :], matrix[1, :]
    return xp.stack([cosine * x + sine * y, cosine * y - sine * x, matrix[2, :]])


# --- refinement ------------------------------------------------------------------------------------------------------


class _Data:
    """Fourier transforms of images at all frequencies of a half plane up to a radius."""

    def __init__(self, images: Array, factors: Callable[[FloatArray, FloatArray], Array | None], limit: int) -> None:
        xp, place = array_namespace(images), array_device(images)
        count, side = int(images.shape[0]), int(images.shape[-1])
        ky, kx = np.meshgrid(np.fft.fftfreq(side) * side, np.arange(side // 2 + 1.0), indexing="ij")
        radius = np.hypot(kx, ky)
        half = (radius > 0) & (radius <= limit) & ((kx > 0) | (ky > 0)) & (kx < side / 2) & (np.abs(ky) < side / 2)
        places = np.flatnonzero(half.ravel())
        fx, fy = kx.ravel()[places] / side, ky.ravel()[places] / side
        self.fx, self.fy = (xp.asarray(frequency, device=place) for frequency in (fx, fy))
        spectrum = xp.reshape(rfft2(images), (count, -1))
        origin = np.exp(2j * np.pi * (side // 2) * (fx + fy)).astype(np.complex64)
        self.terms = xp.take(spectrum, xp.asarray(places, device=place), axis=1) * xp.asarray(origin, device=place)
        self.ctfs = factors(fx, fy)


def _refine(
    slices: CentralSlices, data: _Data, of_image: Array, matrices: Array, shifts_px: Array, steps: int
) -> tuple[Array, Array, Array]:
    """Least squares in rotation, shift and grey value: matrices (m, 3, 3), shifts (m, 2), scores (m,).

    ``of_image`` says which image each of the m starting points is for.
    """
    xp = array_namespace(matrices)
    most = max(1, (_TERMS_CPU if is_numpy_array(matrices) else _TERMS_GPU) // max(1, 8 * int(data.fx.shape[0])))
    parts = []
    starts = int(matrices.shape[0])
    for start in range(0, starts, most):
        some = slice(start, min(starts, start + most))
        terms = xp.take(data.terms, of_image[some], axis=0)
        ctfs = None if data.ctfs is None else xp.take(data.ctfs, of_image[some], axis=0)
        parts.append(_refine_part(slices, data, terms, ctfs, matrices[some, ...], shifts_px[some, :], steps))
    made = [xp.concat(values, axis=0) for values in zip(*parts, strict=True)]
    return made[0], made[1], made[2]


def _refine_part(
    slices: CentralSlices, data: _Data, terms: Array, ctfs: Array | None, matrices: Array, shifts: Array, steps: int
) -> tuple[Array, Array, Array]:
    xp, place = array_namespace(terms), array_device(terms)
    count = int(terms.shape[0])

    def model(at: Array, moved: Array) -> Array:
        phase = 2 * math.pi * (moved[:, 0:1] * data.fx + moved[:, 1:2] * data.fy)
        made = slices.at(at, data.fx, data.fy) * xp.astype(xp.exp(1j * xp.astype(phase, xp.complex128)), xp.complex64)
        return made if ctfs is None else made * xp.astype(ctfs, made.dtype)

    def fit(made: Array) -> tuple[Array, Array]:
        square = xp.astype(_dot(made, made), xp.float64)
        common = xp.astype(_dot(made, terms), xp.float64)
        square = xp.where(square > 0, square, xp.ones_like(square))
        return common / square, common / xp.sqrt(square * energy)

    energy = xp.astype(_dot(terms, terms), xp.float64)
    energy = xp.where(energy > 0, energy, xp.ones_like(energy))
    damping = xp.full((count,), 1e-3, dtype=xp.float64, device=place)
    now = model(matrices, shifts)
    grey, score = fit(now)
    small = _rotations(xp.eye(3, dtype=xp.float64, device=place) * _DELTA)
    fx, fy = (xp.astype(2j * math.pi * xp.astype(f, xp.complex128), xp.complex64) for f in (data.fx, data.fy))
    for _ in range(steps):
        columns = [(model(small[axis, ...] @ matrices, shifts) - now) / _DELTA for axis in range(3)]
        columns += [now * fx, now * fy]
        scaled = xp.astype(grey, xp.complex64)[:, None]
        jacobian = xp.stack([column * scaled for column in columns] + [now], axis=1)
        rest = terms - now * scaled
        flat = xp.concat([xp.real(jacobian), xp.imag(jacobian)], axis=2)
        normal = xp.astype(flat @ xp.matrix_transpose(flat), xp.float64)
        right = xp.astype(xp.real(xp.sum(jacobian * xp.conj(rest)[:, None, :], axis=2)), xp.float64)
        diagonal = xp.sum(normal * xp.eye(6, dtype=xp.float64, device=place), axis=2)
        diagonal = xp.where(diagonal > 0, diagonal, xp.ones_like(diagonal))
        unit = 1 / xp.sqrt(diagonal)
        system = normal * unit[:, :, None] * unit[:, None, :]
        system = system + xp.eye(6, dtype=xp.float64, device=place) * (damping[:, None, None] + 1e-9)
        step = xp.linalg.solve(system, (right * unit)[..., None])[..., 0] * unit
        tried, moved = _rotations(step[:, :3]) @ matrices, shifts + step[:, 3:5]
        made = model(tried, moved)
        new_grey, new_score = fit(made)
        better = new_score > score
        matrices = xp.where(better[:, None, None], tried, matrices)
        shifts = xp.where(better[:, None], moved, shifts)
        now = xp.where(better[:, None], made, now)
        grey, score = xp.where(better, new_grey, grey), xp.where(better, new_score, score)
        damping = xp.where(better, damping / 10, damping * 10)
    return matrices, shifts, score


def _dot(left: Array, right: Array) -> Array:
    """Re Σ conj(left) · right along the last axis."""
    xp = array_namespace(left)
    return xp.real(xp.vecdot(left, right))


def _rotations(vectors: Array) -> Array:
    """Rotations (m, 3, 3) about vectors (m, 3), by their lengths [rad] (Rodrigues)."""
    xp, place = array_namespace(vectors), array_device(vectors)
    angle = xp.sqrt(xp.sum(vectors * vectors, axis=1))
    safe = xp.where(angle > 0, angle, xp.ones_like(angle))
    x, y, z = (vectors[:, axis] / safe for axis in range(3))
    zero = xp.zeros_like(x)
    cross = xp.reshape(xp.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1), (-1, 3, 3))
    sine, versine = xp.sin(angle)[:, None, None], (1 - xp.cos(angle))[:, None, None]
    return xp.eye(3, dtype=xp.float64, device=place) + sine * cross + versine * (cross @ cross)
