"""change_hand: x reversed, with and without the origin in its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamprep.model import Map
from streamprep.plugins.change_hand import change_hand, change_hand_of_map
from streamprep.testing import ArrayBackend, backends, run_operation
from tests.plugins import golden_case


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("shape", [(4, 5, 6), (3, 4, 7), (1, 1, 1), (2, 2, 2), (25, 43, 73)])
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_every_backend_mirrors_x(backend: ArrayBackend, shape: tuple[int, int, int], dtype: str) -> None:
    volume = np.random.default_rng(0).normal(0, 50, shape).astype(dtype)
    plain = backend.to_host(change_hand(backend.asarray(volume)))
    np.testing.assert_array_equal(plain, volume[:, :, ::-1])
    assert plain.dtype == np.float32
    kept = backend.to_host(change_hand(backend.asarray(volume), keep_origin=True))
    nx = shape[2]
    np.testing.assert_array_equal(kept, volume[:, :, (2 * (nx // 2) - np.arange(nx)) % nx])
    np.testing.assert_array_equal(kept[:, :, nx // 2], volume[:, :, nx // 2])


@pytest.mark.parametrize("keep_origin", [True, False])
def test_twice_is_the_map_itself_and_the_input_is_left_alone(keep_origin: bool) -> None:
    volume = np.random.default_rng(1).normal(size=(4, 5, 6)).astype(np.float32)
    volume[0, 0, 0] = np.nan
    before = volume.copy()
    done, warnings = run_operation(change_hand_of_map, Map("map", volume, 2.0), keep_origin=keep_origin)
    again, _ = run_operation(change_hand_of_map, done, keep_origin=keep_origin)
    np.testing.assert_array_equal(again.pixels, before)
    np.testing.assert_array_equal(volume, before)
    assert warnings == []
    assert (done.name, done.pixel_size_angstrom) == ("map", 2.0)


def test_agrees_with_the_old_programs(golden: Path) -> None:
    parameters, source, theirs = golden_case(golden, "change_hand.mrc")
    done, _ = run_operation(change_hand_of_map, Map("map", source, 2.0), **parameters)
    np.testing.assert_array_equal(done.pixels, theirs)
