"""The piece of a map of a wanted size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep.em.morphology import largest_piece
from streamprep.em.segmentation import segment_by_size
from streamprep.testing import ArrayBackend, backends


def ball(side: int, height: float = 1.0) -> np.ndarray:
    """Grey values that fall with the distance from the middle."""
    axis = np.arange(side) - side // 2
    return (height - np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) / side).astype(np.float32)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("wanted", [3000, 9000.5, 40000])
def test_a_size_that_can_be_had_is_had(backend: ArrayBackend, wanted: float) -> None:
    rng = np.random.default_rng(0)
    volume = ball(48) + rng.normal(0, 0.01, (48, 48, 48)).astype(np.float32)
    found = segment_by_size(backend.asarray(volume), wanted)
    mask = backend.to_host(found.mask)
    assert found.fits
    assert abs(mask.sum() - wanted) <= 1e-3 * wanted
    assert found.size == mask.sum()
    assert found.size == largest_piece(volume, found.threshold, with_mask=False).size


@settings(max_examples=30)
@given(wanted=st.floats(0.1, 5000), seed=st.integers(0, 99), offset=st.sampled_from([0.0, -1e3, 1e4]))
def test_no_other_threshold_comes_nearer(wanted: float, seed: int, offset: float) -> None:
    volume = (ball(15) + np.random.default_rng(seed).normal(0, 0.05, (15, 15, 15)) + offset).astype(np.float32)
    found = segment_by_size(volume, wanted)
    assert found.size == found.mask.sum() > 0
    if not found.fits:
        span = float(volume.max() - volume.min())
        sizes = [
            largest_piece(volume, level, with_mask=False).size
            for level in np.linspace(volume.min() - span / 99, volume.max(), 60)
        ]
        best = min(abs(size - wanted) for size in sizes if size)
        assert abs(found.size - wanted) <= best + 0.02 * max(wanted, 100)


@pytest.mark.parametrize("wanted", [1e-6, 1e9])
def test_a_size_that_cannot_be_had_ends_with_the_nearest(wanted: float) -> None:
    found = segment_by_size(ball(12), wanted)
    assert not found.fits
    assert found.size == (19 if wanted < 1 else 12**3)
