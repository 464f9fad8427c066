"""Grey values of maps: exact order, histograms that lose no voxel, thresholds of closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep.em.grey_values import (
    ENTROPY_BINS,
    FINE_BINS,
    abs_quantile,
    entropy_threshold,
    grey_range,
    histogram,
    otsu_threshold,
)
from streamprep.formats import mrc
from streamprep.testing import ArrayBackend, backends


def noise(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 1, 1), (70, 64, 64)])
def test_the_range_is_from_the_least_to_the_greatest(backend: ArrayBackend, shape: tuple[int, int, int]) -> None:
    volume = noise(shape)
    assert grey_range(backend.asarray(volume)) == (volume.min(), volume.max())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_shows_in_the_range(bad: float) -> None:
    volume = noise((70, 64, 64))
    volume[60, 3, 4] = bad
    assert not np.isfinite(grey_range(volume)).all()


@settings(max_examples=80)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)),
    fraction=st.floats(0, 1),
    decimals=st.integers(0, 6),
    seed=st.integers(0, 99),
)
def test_a_quantile_is_that_of_the_sorted_values(
    shape: tuple[int, int, int], fraction: float, decimals: int, seed: int
) -> None:
    volume = noise(shape, seed).round(decimals)
    ordered = np.sort(np.abs(volume).ravel())
    assert abs_quantile(volume, fraction) == ordered[int(fraction * (volume.size - 1))]


@pytest.mark.parametrize("backend", backends())
def test_a_quantile_of_chosen_voxels(backend: ArrayBackend) -> None:
    volume = noise((70, 64, 64))
    chosen = np.random.default_rng(1).random(volume.shape) < 0.3
    ordered = np.sort(np.abs(volume[chosen]))
    found = abs_quantile(backend.asarray(volume), 0.9, backend.asarray(chosen))
    assert found == ordered[int(0.9 * (len(ordered) - 1))]
    with pytest.raises(ValueError, match="no voxel is chosen"):
        abs_quantile(volume, 0.9, np.zeros(volume.shape, bool))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("bins", [1, 300, FINE_BINS])
def test_a_histogram_counts_every_voxel_once(backend: ArrayBackend, bins: int) -> None:
    volume = noise((70, 64, 64))
    grey = histogram(backend.asarray(volume), *grey_range(volume), bins)
    expected, edges = np.histogram(volume.astype(np.float64), bins, grey_range(volume))
    assert grey.counts.sum() == volume.size
    np.testing.assert_allclose(grey.edges, edges, atol=1e-6)
    assert np.abs(np.cumsum(grey.counts) - np.cumsum(expected)).max() <= 20  # float32 rounds at the edges


def test_counts_above_thresholds_and_thresholds_for_counts_are_inverse() -> None:
    volume = noise((40, 40, 40))
    grey = histogram(volume, *grey_range(volume))
    for threshold in (-2.0, 0.5, 4.0):
        assert grey.above(threshold) == pytest.approx((volume > threshold).sum(), abs=5)
        assert grey.threshold_for(grey.above(threshold)) == pytest.approx(threshold, abs=1e-3)
    assert grey.above(grey.high) == 0
    assert grey.above(grey.low) == volume.size


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 1000), (5, 5.01)])
def test_otsu_parts_two_values_in_the_middle(low: float, high: float) -> None:
    volume = np.full((8, 8, 8), low, np.float32)
    volume[2:5] = high
    assert otsu_threshold(histogram(volume, *grey_range(volume))) == pytest.approx((low + high) / 2, rel=1e-4)


@settings(max_examples=40)
@given(seed=st.integers(0, 999), share=st.floats(0.05, 0.95))
def test_otsu_has_the_greatest_variance_between_classes(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(400) < share, rng.normal(0, 1, 400), rng.normal(4, 1, 400)).astype(np.float32)
    volume = values.reshape(4, 10, 10)

    def between(threshold: float) -> float:
        above = values.astype(np.float64)[values > threshold]
        below = values.astype(np.float64)[values <= threshold]
        return len(above) * len(below) * (above.mean() - below.mean()) ** 2 if len(above) and len(below) else 0.0

    best = max(between(float(value)) for value in values)
    assert between(otsu_threshold(histogram(volume, *grey_range(volume)))) >= 0.999 * best


def test_the_entropy_threshold_is_the_old_programs(golden: object) -> None:
    volume = mrc.read(golden / "inputs" / "map.mrc").pixels  # type: ignore[operator]
    assert entropy_threshold(histogram(volume, *grey_range(volume), ENTROPY_BINS)) == pytest.approx(
        -0.0186371, abs=1e-6
    )


def test_the_entropy_threshold_of_few_values_is_in_their_range() -> None:
    for volume in (np.eye(4, dtype=np.float32)[None], np.arange(27, dtype=np.float32).reshape(3, 3, 3)):
        low, high = grey_range(volume)
        assert low <= entropy_threshold(histogram(volume, low, high, ENTROPY_BINS)) < high
