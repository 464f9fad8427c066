"""Stacks that are written part by part."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from streamprep.formats import mrc_output
from streamprep.hookspecs import StoredStack
from streamprep.model import Optics, Particles, StreamprepError
from streamprep.sinks._stacks import StackDtype, StackFile

IMAGES = np.random.default_rng(4).normal(2, 3, (11, 24, 24)).astype(np.float32)


def store(
    path: Path, images: npt.NDArray[np.float32], starts: Sequence[int], dtype: StackDtype = "float32"
) -> tuple[StoredStack, npt.NDArray[np.float32]]:
    with StackFile(path, dtype, "particle", len(images)) as stack:
        for start, stop in zip(starts, [*starts[1:], len(images)], strict=True):
            stack.put(start, Particles(images[start:stop], Optics(1.5)))
        return stack.finish()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("starts", [[0], [0, 4, 8], range(11)])
def test_parts_make_the_file_that_the_whole_makes(tmp_path: Path, starts: Sequence[int], dtype: StackDtype) -> None:
    mrc_output.write(tmp_path / "whole", IMAGES.astype(dtype), pixel_size_angstrom=1.5, stack=True)
    stored, pixels = store(tmp_path / "parts", IMAGES, starts, dtype)
    written = (tmp_path / "parts").read_bytes()
    assert written == (tmp_path / "whole").read_bytes()
    assert stored == StoredStack("parts", len(written), zlib.crc32(written))
    np.testing.assert_array_equal(pixels, IMAGES.astype(dtype))
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_images_that_are_not_finite_are_counted_over_all_parts(tmp_path: Path, dtype: StackDtype) -> None:
    images = IMAGES.copy()
    images[[1, 2, 9], 3, 5] = np.nan, np.inf, -np.inf
    images[0] = 70000  # float16 has no such numbers; it is not what is told
    with pytest.raises(StreamprepError, match="3 of 11 particle images hold values that are not finite"):
        store(tmp_path / "stack", images, [0, 4, 8], dtype)
    assert list(tmp_path.iterdir()) == []


def test_the_image_that_float16_cannot_hold_is_named_by_its_place_in_the_stack(tmp_path: Path) -> None:
    images = IMAGES.copy()
    images[[6, 10], 1, 1] = 1e6
    with pytest.raises(StreamprepError, match="particle image 7 of 11 holds 1e\\+06"):
        store(tmp_path / "stack", images, [0, 4, 8], "float16")
    assert list(tmp_path.iterdir()) == []


def test_a_stack_that_is_not_finished_leaves_no_file(tmp_path: Path) -> None:
    with StackFile(tmp_path / "stack", "float32", "particle", 11) as stack:
        stack.put(0, Particles(IMAGES[:4], Optics(1.5)))
        assert (tmp_path / "stack").exists()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="not all of the 11 images"):
        store(tmp_path / "stack", IMAGES, [4])
    assert list(tmp_path.iterdir()) == []
