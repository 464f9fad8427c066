"""The contrast transfer function against published numbers and closed forms."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import constants

from streamprep.em import ctf as module
from streamprep.em.ctf import ctf_at, electron_wavelength_angstrom, flip_signs
from streamprep.model import Ctf
from streamprep.testing import ArrayBackend, backends, tiny_ctf

PLAIN = Ctf(15000, 15000, 0, spherical_aberration_mm=0, amplitude_contrast=0)
"""Round, without Cs and amplitude contrast: CTF(f) = sin(π λ Δz f²)."""

ctfs = st.builds(
    Ctf,
    st.floats(-5000, 60000),
    st.floats(-5000, 60000),
    st.floats(-180, 180),
    phase_shift_deg=st.floats(0, 180),
    voltage_kv=st.sampled_from([100.0, 120.0, 200.0, 300.0]),
    spherical_aberration_mm=st.floats(0, 5),
    amplitude_contrast=st.floats(0, 1),
)
frequencies = st.floats(-0.5, 0.5)


def along(angle_deg: float, f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies f in a direction, from x towards y."""
    return f * np.cos(np.deg2rad(angle_deg)), f * np.sin(np.deg2rad(angle_deg))


@pytest.mark.parametrize(
    ("voltage_kv", "picometre"),
    [(100, 3.701), (200, 2.508), (300, 1.969)],  # Reimer and Kohl, Transmission Electron Microscopy, table 2.1
)
def test_wavelengths_are_the_published_ones(voltage_kv: float, picometre: float) -> None:
    assert electron_wavelength_angstrom(voltage_kv) * 100 == pytest.approx(picometre, abs=5e-4)


@given(voltage_kv=st.floats(20, 3000))
def test_wavelength_follows_from_the_constants_of_nature(voltage_kv: float) -> None:
    energy = voltage_kv * 1e3 * constants.e
    rest = constants.m_e * constants.c**2
    metres = constants.h * constants.c / np.sqrt(energy * (energy + 2 * rest))
    assert electron_wavelength_angstrom(voltage_kv) == pytest.approx(metres * 1e10, rel=2e-5)


@pytest.mark.parametrize("amplitude_contrast", [0.0, 0.07, 0.1, 1.0])
def test_at_zero_frequency_it_is_the_amplitude_contrast(amplitude_contrast: float) -> None:
    ctf = Ctf(15000, 13000, 30, amplitude_contrast=amplitude_contrast)
    assert ctf_at(ctf, np.zeros(1), np.zeros(1))[0] == pytest.approx(amplitude_contrast, abs=1e-15)


def test_underfocus_begins_with_the_sign_of_the_amplitude_contrast() -> None:
    f = np.array([0.005])
    assert ctf_at(replace(PLAIN, amplitude_contrast=0.1), f, 0 * f)[0] > 0.1
    assert ctf_at(Ctf(-15000, -15000, 0, amplitude_contrast=0.0), f, 0 * f)[0] < 0


@pytest.mark.parametrize("amplitude_contrast", [0.0, 0.1])
@pytest.mark.parametrize("angle_deg", [0, 35, 90, 200])
def test_zeros_without_cs_are_where_the_closed_form_says(amplitude_contrast: float, angle_deg: float) -> None:
    ctf = replace(PLAIN, amplitude_contrast=amplitude_contrast)
    k = np.arange(1, 30)
    wavelength = electron_wavelength_angstrom(300)
    zeros = np.sqrt((k - np.arcsin(amplitude_contrast) / np.pi) / (wavelength * 15000))
    np.testing.assert_allclose(ctf_at(ctf, *along(angle_deg, zeros)), 0, atol=1e-9)
    before, after = (ctf_at(ctf, *along(angle_deg, zeros * scale)) for scale in (0.999, 1.001))
    assert (np.sign(before) == (-1.0) ** (k + 1)).all()
    assert (np.sign(after) == (-1.0) ** k).all()


def test_cs_cancels_the_defocus_where_the_closed_form_says() -> None:
    ctf = Ctf(15000, 15000, 0, spherical_aberration_mm=2.7, amplitude_contrast=0.1)
    f = np.array([np.sqrt(2 * 15000 / (2.7e7 * electron_wavelength_angstrom(300) ** 2))])
    assert ctf_at(ctf, f, 0 * f)[0] == pytest.approx(0.1, abs=1e-9)
    assert ctf_at(replace(ctf, spherical_aberration_mm=0), f, 0 * f)[0] != pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("angle_deg", [0, 25, 90, 137, -60])
def test_astigmatism_has_u_along_its_axis_and_v_across(angle_deg: float) -> None:
    f = np.linspace(0, 0.3, 50)
    ctf = Ctf(18000, 12000, angle_deg)
    for turn, defocus in ((0, 18000), (90, 12000), (180, 18000), (45, 15000)):
        round_one = replace(ctf, defocus_u_angstrom=defocus, defocus_v_angstrom=defocus)
        np.testing.assert_allclose(ctf_at(ctf, *along(angle_deg + turn, f)), ctf_at(round_one, f, 0 * f), atol=1e-9)


def test_a_phase_plate_of_90_degrees_turns_sine_into_cosine() -> None:
    f = np.linspace(0, 0.3, 60)
    chi = np.pi * electron_wavelength_angstrom(300) * 15000 * f**2
    np.testing.assert_allclose(ctf_at(PLAIN, f, 0 * f), np.sin(chi), atol=1e-12)
    np.testing.assert_allclose(ctf_at(replace(PLAIN, phase_shift_deg=90), f, 0 * f), np.cos(chi), atol=1e-12)
    np.testing.assert_allclose(ctf_at(replace(PLAIN, phase_shift_deg=180), f, 0 * f), -np.sin(chi), atol=1e-12)


@given(ctf=ctfs, fx=frequencies, fy=frequencies)
def test_it_is_centrosymmetric_and_at_most_one(ctf: Ctf, fx: float, fy: float) -> None:
    value, opposite = ctf_at(ctf, np.array([fx, -fx]), np.array([fy, -fy]))
    assert abs(value) <= 1 + 1e-12
    assert value == pytest.approx(opposite, abs=1e-6)


@given(ctf=ctfs, fx=frequencies, fy=frequencies)
def test_exchanging_the_axes_of_the_astigmatism_changes_nothing(ctf: Ctf, fx: float, fy: float) -> None:
    other = replace(
        ctf,
        defocus_u_angstrom=ctf.defocus_v_angstrom,
        defocus_v_angstrom=ctf.defocus_u_angstrom,
        defocus_angle_deg=ctf.defocus_angle_deg + 90,
    )
    f = np.array([fx]), np.array([fy])
    np.testing.assert_allclose(ctf_at(ctf, *f), ctf_at(other, *f), atol=1e-6)


def test_frequencies_broadcast() -> None:
    fy, fx = np.fft.fftfreq(6)[:, None], np.fft.rfftfreq(8)[None, :]
    grid = ctf_at(Ctf(15000, 12000, 20), fx, fy)
    assert grid.shape == (6, 5)
    assert grid[2, 3] == ctf_at(Ctf(15000, 12000, 20), fx[:, 3], fy[2])[0]


# --- signs -----------------------------------------------------------------------------------------------------------

SIZES = [(16, 16), (9, 9), (10, 15), (15, 10), (1, 1), (1, 8), (8, 1), (2, 2), (64, 40)]


def values(ctf: Ctf, ny: int, nx: int, pixel_size: float) -> np.ndarray:
    """The CTF itself over the half spectrum, with f = +½ at Nyquist on both axes."""
    fy = np.fft.fftfreq(ny)
    if ny % 2 == 0:
        fy[ny // 2] = 0.5
    return ctf_at(ctf, np.fft.rfftfreq(nx)[None, :] / pixel_size, fy[:, None] / pixel_size)


def multiplied(
    ctfs: list[Ctf], ny: int, nx: int, pixel_size: float = 1.5, backend: ArrayBackend | None = None
) -> np.ndarray:
    """What the terms of spectra are multiplied with."""
    ones = np.ones((len(ctfs), ny, nx // 2 + 1), np.complex64)
    given = ones if backend is None else backend.asarray(ones)
    flip_signs(given, nx, ctfs, pixel_size)
    return (given if backend is None else backend.to_host(given)).real


def expected(ctf: Ctf, ny: int, nx: int, pixel_size: float = 1.5) -> np.ndarray:
    signs = np.where(values(ctf, ny, nx, pixel_size) < 0, -1.0, 1.0)
    signs[0, 0] = 1
    if nx % 2 == 0:
        signs[:, -1] = (signs[:, -1] + signs[-np.arange(ny) % ny, -1]) / 2
    return signs


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(("ny", "nx"), SIZES)
def test_signs_are_those_of_the_ctf_on_every_backend(backend: ArrayBackend, ny: int, nx: int) -> None:
    own = [tiny_ctf(20 * index) for index in range(4)]
    np.testing.assert_array_equal(multiplied(own, ny, nx, backend=backend), [expected(ctf, ny, nx) for ctf in own])
    shared = [own[1]] * 3
    np.testing.assert_array_equal(multiplied(shared, ny, nx, backend=backend), [expected(own[1], ny, nx)] * 3)


@settings(max_examples=150)
@given(ctf=ctfs, ny=st.integers(1, 24), nx=st.integers(1, 24), pixel_size=st.floats(0.5, 5))
def test_signs_of_any_ctf(ctf: Ctf, ny: int, nx: int, pixel_size: float) -> None:
    clear = np.abs(values(ctf, ny, nx, pixel_size)) > 1e-8  # at a zero either sign will do
    clear &= clear[-np.arange(ny) % ny]
    clear[0, 0] = True
    for several in ([ctf], [ctf, tiny_ctf()]):
        found = multiplied(several, ny, nx, pixel_size)[0]
        np.testing.assert_array_equal(found[clear], expected(ctf, ny, nx, pixel_size)[clear])


def test_the_zero_frequency_keeps_its_sign_with_any_phase_plate() -> None:
    for phase in (0, 90, 180, 270):
        ctf = Ctf(15000, 14000, 20, phase_shift_deg=phase, amplitude_contrast=0.1)
        assert multiplied([ctf], 6, 6)[0, 0, 0] == 1
        assert multiplied([ctf], 6, 1)[0, 0, 0] == 1


@settings(max_examples=60)
@given(ctf=ctfs, ny=st.integers(1, 16), nx=st.integers(1, 16))
def test_the_product_is_the_spectrum_of_a_real_image(ctf: Ctf, ny: int, nx: int) -> None:
    spectrum = np.fft.rfft2(np.random.default_rng(0).normal(size=(1, ny, nx))).astype(np.complex64)
    flip_signs(spectrum, nx, [ctf], 1.5)
    back = np.fft.rfft2(np.fft.irfft2(spectrum.astype(np.complex128), s=(ny, nx)))
    np.testing.assert_allclose(back, spectrum, atol=1e-5)


@pytest.mark.parametrize("block", [1, 10, 100, 1000])
def test_blocks_of_any_size_give_the_same(block: int) -> None:
    own = [tiny_ctf(index) for index in range(5)]
    whole = multiplied(own, 33, 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_CPU", block)
        np.testing.assert_array_equal(multiplied(own, 33, 20), whole)
        patch.setattr(module, "_KEPT_BYTES", 0)  # as of a micrograph
        np.testing.assert_array_equal(multiplied(own[:1], 33, 20), whole[:1])
        np.testing.assert_array_equal(multiplied(own[:1] * 3, 33, 20), whole[[0, 0, 0]])


def test_masks_are_kept_within_their_bound_and_never_those_of_micrographs(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: OrderedDict[object, tuple[np.ndarray, np.ndarray | None]] = OrderedDict()
    monkeypatch.setattr(module, "_kept", kept)
    monkeypatch.setattr(module, "_KEPT_BYTES", 16 * 9 * 10)
    for index in range(30):
        multiplied([tiny_ctf(index)] * 2, 16, 16)
        assert sum(mask.nbytes for mask, _ in kept.values()) <= 16 * 9 * 10
    assert len(kept) == 10
    before = list(kept)
    multiplied([tiny_ctf(25)], 16, 16)  # used again: it is the last to go
    assert list(kept)[-1] == before[5]
    multiplied([tiny_ctf(25)], 16, 40)  # above an eighth
    assert len(kept) == 10


def test_threads_share_the_masks() -> None:
    own = [tiny_ctf(index) for index in range(8)]
    wanted = [expected(ctf, 32, 32) for ctf in own]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: multiplied([own[index % 8]], 32, 32)[0], range(64)))
    for index, signs in enumerate(found):
        np.testing.assert_array_equal(signs, wanted[index % 8])
