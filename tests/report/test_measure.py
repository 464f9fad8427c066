"""What pictures show in numbers: closed forms, and invariants."""

from __future__ import annotations

import numpy as np
import pytest

from streamprep.em.ctf import ctf_at
from streamprep.model import Ctf
from streamprep.report import measure


@pytest.mark.parametrize("shape", [(64, 64), (65, 64), (48, 96)])
@pytest.mark.parametrize("cycles", [5, 11])
def test_the_spectrum_of_a_plane_wave_peaks_at_its_frequency(shape: tuple[int, int], cycles: int) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]]
    frequency = cycles / min(shape)
    wave = 100 + np.cos(2 * np.pi * frequency * (0.6 * x + 0.8 * y))
    found, power = measure.radial_power(wave[None])
    assert found[0] == pytest.approx(1 / min(shape))
    assert found[np.argmax(power)] == pytest.approx(frequency)


def test_the_spectrum_of_white_noise_is_flat_and_as_high_as_its_variance() -> None:
    noise = np.random.default_rng(1).normal(7, 3, (200, 64, 64)).astype(np.float32)
    _, power = measure.radial_power(noise)
    np.testing.assert_allclose(power[2:], 9.0, rtol=0.06)  # the window mixes the first with the mean, which is off


def test_a_ramp_does_not_leak_into_high_frequencies() -> None:
    y, x = np.mgrid[:64, :64]
    _, power = measure.radial_power((3.0 * x + 2.0 * y)[None])
    assert power[8:].max() < 1e-5 * power[0]


def test_ctf_power_is_that_of_the_ctf_where_it_has_no_astigmatism() -> None:
    ctf, frequency = Ctf(15000, 15000, 0), np.linspace(0.01, 0.3, 50)
    np.testing.assert_allclose(
        measure.mean_ctf_power([ctf, ctf], frequency), ctf_at(ctf, frequency, np.zeros(50)) ** 2, atol=1e-9
    )


def test_thon_rings_tell_a_wrong_defocus() -> None:
    true, frequency = Ctf(14000, 14000, 0), np.linspace(0.02, 0.25, 200)
    power = (5 + ctf_at(true, frequency, np.zeros(200)) ** 2) * np.exp(-8 * frequency)
    rings = measure.thon_rings(frequency, power)
    given, best, factor = measure.fit_of_ctf([true], frequency, rings)
    assert given == best > 0.95
    assert factor == 1.0
    given, best, factor = measure.fit_of_ctf([Ctf(20000, 20000, 0)], frequency, rings)
    assert given < 0.3
    assert best > 0.8
    assert factor == pytest.approx(0.7, abs=0.02)


def test_statistics_and_contrast_of_boxes() -> None:
    rng = np.random.default_rng(2)
    boxes = rng.normal(5, 2, (20, 32, 32))
    means, deviations = measure.box_statistics(boxes)
    assert means == pytest.approx(5, abs=0.5)
    assert deviations == pytest.approx(2, abs=0.3)
    assert abs(measure.centre_contrast(boxes)) < 0.1
    y, x = np.ogrid[:32, :32]
    disc = (np.hypot(y - 16, x - 16) < 8) * 4.0
    assert measure.centre_contrast(boxes + disc) > 0.5
    assert measure.centre_contrast(boxes - disc) < -0.5
    assert measure.centre_contrast(np.ones((2, 8, 8))) == 0


def test_outliers_are_what_lies_far_from_the_others() -> None:
    values = np.r_[np.random.default_rng(3).normal(100, 5, 50), 20.0]
    assert np.flatnonzero(measure.outliers(values)).tolist() == [50]
    assert np.flatnonzero(measure.outliers(np.array([30.0] * 9 + [3.0]))).tolist() == [9]
    assert not measure.outliers(np.array([])).any()


def test_tiles_are_whole_and_bounded() -> None:
    assert measure.tiles(np.zeros((600, 1100)), 200, 7).shape == (7, 200, 200)
    assert measure.tiles(np.zeros((100, 300)), 200).shape == (3, 100, 100)
