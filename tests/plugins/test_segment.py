"""segment: masks of the old programs, masses in three units, and what cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from streamprep import Context, InputError, Item, Map
from streamprep.formats import mrc
from streamprep.plugins.segment import Segment, segment, segment_map
from streamprep.testing import ArrayBackend, backends, run_operation, tiny_map
from tests.plugins import golden_case


def noisy_ball(side: int = 24) -> np.ndarray:
    axis = np.arange(side) - side // 2
    inside = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < (side / 3) ** 2
    return (inside + np.random.default_rng(0).normal(0, 0.05, inside.shape)).astype(np.float32)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("voxels", [None, 2000.0])
def test_every_backend_makes_the_same_mask(backend: ArrayBackend, voxels: float | None) -> None:
    volume = noisy_ball()
    expected = segment(volume, voxels=voxels)
    done = segment(backend.asarray(volume.copy()), voxels=voxels)
    mask, pixels = backend.to_host(done.mask), backend.to_host(done.pixels)
    np.testing.assert_array_equal(mask, expected.mask)
    np.testing.assert_array_equal(pixels, np.where(mask, volume, 0))
    assert done.size == mask.sum()


def test_otsu_finds_a_ball_in_noise() -> None:
    volume = noisy_ball()
    np.testing.assert_array_equal(segment(volume).mask, volume > 0.5)


@pytest.mark.parametrize(
    ("expected", "variant"),
    [
        ("segment_mask_automatic.mrc", "entropy"),
        ("segment_mask_daltons.mrc", "otsu"),
        ("segment_mask_aminoacids.mrc", "otsu"),
    ],
)
def test_agrees_with_the_old_programs(golden: Path, expected: str, variant: str) -> None:
    parameters, source, theirs = golden_case(golden, expected)
    done, warnings = run_operation(segment_map, Map("map", source, 2.0), save_mask=True, variant=variant, **parameters)
    ours, theirs = done.masks["mask"], theirs > 0
    assert warnings == []
    assert abs(int(ours.sum()) - int(theirs.sum())) <= 0.001 * theirs.sum()
    assert (ours & theirs).sum() >= 0.995 * theirs.sum()
    np.testing.assert_array_equal(done.pixels, np.where(ours, source, 0))


def test_answers_with_the_nearest_where_the_old_program_gives_up(golden: Path) -> None:
    cases = json.loads((golden / "cases.json").read_text(encoding="utf-8"))
    (case,) = (case for case in cases if case["operation"] == "segment" and case["expected"] is None)
    source = mrc.read(golden / "inputs" / case["input"]).pixels
    done, (warning,) = run_operation(segment_map, Map("map", source, 2.0), **case["params"])
    size = np.count_nonzero(done.pixels)
    assert size == pytest.approx(case["params"]["mass"], rel=0.02)
    assert f"no threshold gives 2180 voxels; the nearest, {size} voxels above" in warning


def test_masses_become_voxels_by_the_pixel_size() -> None:
    assert Segment(kind="voxels", mass=500).voxels(3.0) == 500
    assert Segment(kind="daltons", mass=8000).voxels(2.0) == pytest.approx(8000 * 1.207 / 8)
    assert Segment(kind="aminoacids", mass=100).voxels(2.0) == pytest.approx(100 * 110 * 1.207 / 8)


@pytest.mark.parametrize("kind", ["voxels", "aminoacids", "daltons"])
def test_a_mass_that_is_missing_is_asked_for(kind: str) -> None:
    with pytest.raises(ValidationError, match=f'mass is missing; kind = "{kind}" needs it'):
        Segment(kind=kind)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="mass"):
        Segment(kind=kind, mass=0)  # type: ignore[arg-type]


def test_a_mass_without_a_unit_is_refused() -> None:
    with pytest.raises(ValidationError, match='mass = 500 has no unit; name it with kind = "voxels"'):
        Segment(mass=500)


def test_a_constant_map_stays_as_it_is() -> None:
    flat = Map("map", np.full((6, 6, 6), 3, np.float32), 2.0)
    for parameters in ({}, {"kind": "voxels", "mass": 20}):
        assert run_operation(segment_map, flat, **parameters) == (
            None,
            ["segment: the map is constant, 3 everywhere; it stays as it is"],
        )


def test_a_mass_that_cannot_be_had_is_said_in_its_unit() -> None:
    _, (warning,) = run_operation(segment_map, tiny_map(8), kind="daltons", mass=1e6)
    assert warning.startswith(
        "segment: no threshold gives 150875 voxels (1e+06 daltons); the nearest, 512 voxels above"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(bad: float) -> None:
    volume = tiny_map(8)
    volume.pixels[1, 2, 3] = bad
    context = Context(Item("map", "M/map", Path("map.mrc")), "segment")
    with pytest.raises(InputError, match=r"map\.mrc: segment: the map holds values that are not finite"):
        run_operation(segment_map, volume, context)


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 1, 1), (2, 3, 5)])
@pytest.mark.parametrize("kind", ["voxels", "automatic"])
def test_tiny_maps_give_tiny_masks(shape: tuple[int, int, int], kind: str) -> None:
    volume = Map("map", np.arange(np.prod(shape), dtype=np.float32).reshape(shape), 2.0)
    mass = {"mass": 1} if kind == "voxels" else {}
    done, _ = run_operation(segment_map, volume, kind=kind, save_mask=True, **mass)
    assert 0 < done.masks["mask"].sum() <= volume.pixels.size


def test_the_mask_is_kept_only_where_it_is_asked_for() -> None:
    volume = tiny_map(12)
    without, _ = run_operation(segment_map, volume)
    kept, _ = run_operation(segment_map, volume, save_mask=True)
    assert without.masks == {}
    assert list(kept.masks) == ["mask"]
    np.testing.assert_array_equal(without.pixels, kept.pixels)
