"""Masks of maps: scipy's generic morphology is the reference; what opening and closing promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from streamprep.em.morphology import largest_piece
from streamprep.testing import ArrayBackend, backends


def reference(mask: np.ndarray) -> np.ndarray:
    near, touching = (ndimage.generate_binary_structure(3, connectivity) for connectivity in (2, 3))
    for erodes in (True, False, False, True):
        step = ndimage.binary_erosion if erodes else ndimage.binary_dilation
        mask = step(mask, near, border_value=int(erodes))
    labels, count = ndimage.label(mask, touching)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return labels == 1 + np.argmax(sizes) if count else np.zeros(mask.shape, bool)


def smooth(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2).astype(np.float32)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(
    "shape", [(20, 20, 20), (9, 14, 64), (12, 7, 65), (5, 6, 130), (1, 9, 9), (1, 1, 1), (3, 1, 70)]
)
@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.6, 0.8, 1.0])
def test_every_backend_finds_the_same_piece(
    backend: ArrayBackend, shape: tuple[int, int, int], quantile: float
) -> None:
    volume = smooth(shape, 3)
    threshold = float(np.quantile(volume, quantile)) - (1 if quantile == 0 else 0)
    expected = reference(volume > threshold)
    piece = largest_piece(backend.asarray(volume), threshold, with_mask=True)
    assert piece.size == expected.sum()
    found = backend.to_host(piece.mask)
    assert found.dtype == np.bool_
    if not (found == expected).all():  # two pieces of one size
        assert found.sum() == expected.sum()
    assert largest_piece(volume, threshold, with_mask=False) == (piece.size, None)


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 70)),
    seed=st.integers(0, 999),
    quantile=st.floats(0.05, 0.95),
)
def test_the_piece_has_the_size_of_the_reference(shape: tuple[int, int, int], seed: int, quantile: float) -> None:
    volume = smooth(shape, seed)
    threshold = float(np.quantile(volume, quantile))
    assert largest_piece(volume, threshold, with_mask=False).size == reference(volume > threshold).sum()


@settings(max_examples=40)
@given(seed=st.integers(0, 999), levels=st.lists(st.floats(-0.5, 0.5), min_size=2, max_size=6))
def test_the_size_never_grows_with_the_threshold(seed: int, levels: list[float]) -> None:
    volume = smooth((12, 13, 14), seed)
    sizes = [largest_piece(volume, level, with_mask=False).size for level in sorted(levels)]
    assert sizes == sorted(sizes, reverse=True)


def test_pieces_that_meet_at_a_corner_are_one_and_thin_things_go() -> None:
    volume = np.zeros((24, 24, 80), np.float32)
    volume[2:8, 2:8, 58:64] = 1
    volume[8:14, 8:14, 64:70] = 1  # meets the first at one corner, across two words
    volume[18, 18, :] = 1
    volume[20:23, 3:8, 3:8] = 1
    mask = largest_piece(volume, 0.5, with_mask=True).mask
    assert mask[3:7, 3:7, 59:63].all()
    assert mask[9:13, 9:13, 65:69].all()
    assert not mask[18].any()
    assert not mask[20:].any()


def test_small_gaps_are_filled_and_a_full_map_stays_full() -> None:
    volume = np.ones((9, 9, 9), np.float32)
    assert largest_piece(volume, 0.5, with_mask=False).size == 729
    volume[4, 4, 4] = 0
    assert largest_piece(volume[:, :, :], 0.5, with_mask=True).mask[0].all()
    assert largest_piece(volume, 1, with_mask=True).size == 0
