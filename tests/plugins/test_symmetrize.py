"""symmetrize: against the old programs and a plain sum over the group, and what must hold for any map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep.em.symmetry import maps_grid, point_group
from streamprep.formats import mrc
from streamprep.model import Context, InputError, Item, Map
from streamprep.plugins.symmetrize import Symmetrize, symmetrize, symmetrize_map
from streamprep.testing import ArrayBackend, backends, run_operation, tiny_map
from tests.plugins import golden_case, relative_error
from tests.plugins.test_rotate_ico import capsid, sphere

GOLDEN = (
    "c3", "c7", "c4v", "c4h", "s6", "ci", "cs", "d2", "d5", "d3v", "d4h", "o", "oh", "i1", "i2", "i3", "i4", "i2h",
    "d2_sum", "d2_nowrap", "d2_mask", "i1_nowrap",
)  # fmt: skip


def reading(masks: dict[str, np.ndarray] | None = None) -> Context:
    def read(path: Path) -> np.ndarray:
        return (masks or {})[path.name] if masks is not None else mrc.read(path).pixels

    return Context(Item("map", "map", Path("map.mrc")), "", read_image=read)


def reference(volume: np.ndarray, name: str, wrap: bool) -> np.ndarray:
    """The mean over all elements, each interpolated from the input, in float64."""
    side = volume.shape[0]
    origin = np.full(3, side // 2)
    square = sum((np.indices(volume.shape)[axis] - side // 2) ** 2 for axis in range(3))
    outside = float(volume[square >= (side // 2) ** 2].astype(np.float64).mean())
    elements = point_group(name).elements
    total = np.zeros(volume.shape)
    for element in elements:
        back = element.T[::-1, ::-1]
        total += scipy.ndimage.affine_transform(
            volume.astype(np.float64),
            back,
            offset=origin - back @ origin,
            order=1 if maps_grid(element) else 3,
            mode="grid-wrap" if wrap else "constant",
            cval=outside,
        )
    return total / len(elements)


@pytest.mark.parametrize("name", GOLDEN)
def test_agrees_with_the_old_programs(golden: Path, name: str) -> None:
    parameters, source, theirs = golden_case(golden, f"symmetrize_{name}.mrc")
    if "mask" in parameters:
        parameters["mask"] = str(golden / "inputs" / parameters["mask"])
    done, warnings = run_operation(symmetrize_map, Map("map", source, 2.0), reading(), **parameters)
    inside = sphere(source.shape[0])
    assert relative_error(done.pixels[inside], theirs[inside]) <= 1e-3
    if not any(letter in name for letter in ("3", "5", "6", "7", "i1", "i2", "i4")):
        assert relative_error(done.pixels, theirs) <= 1e-5  # by flips and transposes alone, corners and all
    assert warnings == []


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("side", [10, 11])
@pytest.mark.parametrize(
    "name", ["c2", "c3", "c8", "d2", "d5", "d6", "c3v", "s8", "s6", "d3h", "d3v", "t", "td", "o", "i2", "i4"]
)
def test_every_backend_computes_the_reference(backend: ArrayBackend, name: str, side: int, wrap: bool) -> None:
    volume = tiny_map(side, seed=3).pixels + np.float32(0.5)
    done = symmetrize(backend.asarray(volume), name, wrap=wrap)
    done = backend.to_host(done)
    assert (done.shape, done.dtype) == (volume.shape, np.float32)
    inside = sphere(side, 3)  # borders differ: the grid is closed before it is interpolated
    np.testing.assert_allclose(done[inside], reference(volume, name, wrap)[inside], atol=5e-3)


@pytest.mark.parametrize("name", ["i1", "i2", "i3", "i4"])
def test_a_capsid_stays_as_it_is(name: str) -> None:
    volume = capsid(40, name)
    inside = sphere(40)
    assert relative_error(symmetrize(volume, name)[inside], volume[inside]) < 0.01
    other = {"i1": "i2", "i2": "i1", "i3": "i4", "i4": "i3"}[name]
    assert relative_error(symmetrize(volume, other)[inside], volume[inside]) > 0.15


@settings(max_examples=25)
@given(
    name=st.sampled_from(["ci", "cs", "c2", "c4v", "c4h", "d2", "d4h", "d2v", "o", "oh", "c1v"]),
    side=st.integers(1, 9),
    wrap=st.booleans(),
    seed=st.integers(0, 99),
)
def test_twice_is_once_where_nothing_is_interpolated(name: str, side: int, wrap: bool, seed: int) -> None:
    volume = np.random.default_rng(seed).normal(3, 1, (side,) * 3).astype(np.float32)
    once = symmetrize(volume, name, wrap=wrap)
    twice = symmetrize(once, name, wrap=wrap)
    inner = (slice(1 - side % 2, None),) * 3  # without the planes that have no opposite one
    np.testing.assert_allclose((twice if wrap else twice[inner]), (once if wrap else once[inner]), rtol=2e-5)
    if wrap:
        assert once.mean() == pytest.approx(float(volume.mean()), rel=1e-5)


@pytest.mark.parametrize("name", ["d2", "c3", "i1"])
def test_a_sum_is_the_average_times_the_order(name: str) -> None:
    volume = tiny_map(12).pixels
    before = volume.copy()
    total = symmetrize(volume, name, aggregation="sum")
    np.testing.assert_allclose(total, symmetrize(volume, name) * len(point_group(name)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(volume, before)


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("name", ["c3", "d2", "i1", "i3", "s8"])
@pytest.mark.parametrize("wrap", [True, False])
def test_tiny_and_constant_maps(side: int, name: str, wrap: bool) -> None:
    np.testing.assert_allclose(symmetrize(np.full((side,) * 3, 4.5, np.float32), name, wrap=wrap), 4.5, rtol=1e-5)


@pytest.mark.parametrize("aggregation", ["average", "sum"])
@pytest.mark.parametrize("backend", backends())
def test_a_mask_blends_with_the_input(backend: ArrayBackend, aggregation: str) -> None:
    volume = tiny_map(12)
    mask = np.zeros((12, 12, 12), np.float32)
    mask[3:9, 3:9, 3:9] = 1
    mask[3] *= 0.25
    mask[0, 0, 0] = -3
    done, _ = run_operation(
        symmetrize_map,
        backend.move(volume),
        reading({"mask.mrc": mask}),
        group="d2",
        mask="mask.mrc",
        aggregation=aggregation,
    )
    whole = symmetrize(volume.pixels, "d2", aggregation=aggregation)
    factor = 4 if aggregation == "sum" else 1
    share = np.clip(mask, 0, 1)
    expected = share * whole + (1 - share) * factor * volume.pixels
    np.testing.assert_allclose(backend.to_host(done.pixels), expected, atol=1e-5)
    if aggregation == "average":
        np.testing.assert_array_equal(backend.to_host(done.pixels)[share == 0], volume.pixels[share == 0])
        np.testing.assert_array_equal(backend.to_host(done.pixels)[share == 1], whole[share == 1])


def test_masks_that_do_not_fit() -> None:
    volume = tiny_map(12)
    with pytest.raises(InputError, match=r"mask.mrc: symmetrize: the mask is 6 × 5 × 4 voxels, its map 12 × 12 × 12"):
        run_operation(symmetrize_map, volume, reading({"mask.mrc": np.ones((4, 5, 6))}), group="d2", mask="mask.mrc")
    with pytest.raises(InputError, match="the mask holds values that are not finite"):
        run_operation(
            symmetrize_map, volume, reading({"mask.mrc": np.full((12,) * 3, np.nan)}), group="d2", mask="mask.mrc"
        )


@pytest.mark.parametrize("backend", backends())
def test_helices(backend: ArrayBackend) -> None:
    volume = tiny_map(16)
    done, _ = run_operation(
        symmetrize_map, backend.move(volume), group="Helical", rise_angstrom=8.0, twist_deg=90.0, helix_group="D2"
    )
    pixels = backend.to_host(done.pixels)
    np.testing.assert_allclose(pixels[1:, 1:], pixels[1:, 1:][::-1, ::-1], atol=1e-5)  # two-fold axis x
    turned = np.rot90(pixels[:-4, 1:, 1:], axes=(2, 1))
    np.testing.assert_allclose(turned, pixels[4:, 1:, 1:], atol=1e-5)  # 4 voxels, 90 degrees


def test_maps_that_are_no_cubes() -> None:
    shape = (25, 43, 73)
    flat = Map("map", np.random.default_rng(0).normal(size=shape).astype(np.float32), 2.0)
    done, _ = run_operation(symmetrize_map, flat, group="d2")
    np.testing.assert_allclose(done.pixels, done.pixels[:, ::-1, ::-1], atol=1e-6)
    with pytest.raises(InputError, match="symmetrize: group c3: it turns x towards y, and the map is 73 × 43 × 25"):
        run_operation(symmetrize_map, flat, group="c3")
    long = Map("map", np.random.default_rng(0).normal(size=(20, 8, 8)).astype(np.float32), 2.0)
    assert run_operation(symmetrize_map, long, group="c3").result.pixels.shape == (20, 8, 8)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_reported(value: float) -> None:
    volume = tiny_map(8)
    pixels = volume.pixels.copy()
    pixels[7, 0, 0] = value
    with pytest.raises(InputError, match="map.mrc: symmetrize: the map holds values that are not finite"):
        run_operation(symmetrize_map, replace(volume, pixels=pixels), reading(), group="d2")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "Field required"),
        ({"group": "C1"}, "turn the operation off instead"),
        ({"group": "q4"}, "no symmetry group 'q4'; allowed: c2.*or helical"),
        ({"group": "helical"}, "needs rise_angstrom and twist_deg"),
        ({"group": "helical", "rise_angstrom": 5.0}, "needs twist_deg"),
        ({"group": "helical", "rise_angstrom": 5.0, "twist_deg": 3.0, "aggregation": "sum"}, "average"),
        ({"group": "helical", "rise_angstrom": -5.0, "twist_deg": 3.0}, "greater than or equal to 0.1"),
        ({"group": "helical", "rise_angstrom": 5.0, "twist_deg": 3.0, "helix_group": "i1"}, "allowed: cN or dN"),
        (
            {"group": "helical", "rise_angstrom": 5.0, "twist_deg": 3.0, "height_fraction": 1.5},
            "less than or equal to 1",
        ),
        ({"group": "c3", "twist_deg": 3.0}, 'twist_deg belongs to group = "helical"'),
        ({"group": "c3", "height_fraction": 0.9}, 'height_fraction belongs to group = "helical"'),
        ({"group": "c01"}, "no symmetry group 'c01'"),
        ({"group": "d2", "aggregation": "mean"}, "'average' or 'sum'"),
    ],
)
def test_parameters_that_are_refused(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_operation(symmetrize_map, tiny_map(8), **parameters)


def test_a_rise_beyond_the_map() -> None:
    with pytest.raises(InputError, match="group helical: the rise is 50 voxels.*allowed: up to"):
        run_operation(symmetrize_map, tiny_map(12), group="helical", rise_angstrom=100.0, twist_deg=3.0)


@given(name=st.sampled_from(["c3", "D2", " oh ", "I1", "Td"]))
def test_names_in_capitals(name: str) -> None:
    assert Symmetrize(group=name).group == name.strip().lower()
