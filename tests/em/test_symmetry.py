"""Point groups: orders, closure, axes, what maps a grid onto itself, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep.em.symmetry import (
    GOLDEN_RATIO,
    chain,
    grid_elements,
    icosahedral_setting,
    maps_grid,
    point_group,
    representatives,
    rotation,
)

ORDERS = {
    "c2": 2, "c7": 7, "c99": 99, "ci": 2, "cs": 2, "c1v": 2, "c5v": 10, "c1h": 2, "c4h": 8, "s2": 2, "s6": 6, "s8": 8,
    "d1": 2, "d2": 4, "d7": 14, "d2v": 8, "d3v": 12, "d3h": 12, "d4h": 16, "t": 12, "td": 24, "th": 24, "o": 24,
    "oh": 48, "i": 60, "i1": 60, "i2": 60, "i3": 60, "i4": 60, "ih": 120, "i1h": 120, "i2h": 120, "i3h": 120,
    "i4h": 120,
}  # fmt: skip
PAGE = {  # two-, five- and three-fold axes of each setting, as published for Xmipp
    "i1": ((1, 0, 0), (0.8506508, 0, -0.5257311), (0.9341724, 0.3568221, 0)),
    "i2": ((0, 0, 1), (0.5257311, 0, 0.8506508), (0, 0.3568221, 0.9341724)),
    "i3": ((-0.5257311, 0, 0.8506508), (0, 0, 1), (-0.4911235, 0.3568221, 0.7946545)),
    "i4": ((0.5257311, 0, 0.8506508), (0.8944272, 0, 0.4472136), (0.4911235, 0.3568221, 0.7946545)),
}


def holds(elements: np.ndarray, matrix: np.ndarray, tolerance: float = 1e-12) -> bool:
    return bool(np.abs(elements - matrix).max(axis=(1, 2)).min() < tolerance)


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_orders_closure_and_inverses(name: str, order: int) -> None:
    group = point_group(name.upper())
    assert len(group) == order
    assert group.name == name
    np.testing.assert_array_equal(group.elements[0], np.eye(3))
    np.testing.assert_allclose(group.elements @ group.elements.transpose(0, 2, 1) - np.eye(3), 0, atol=1e-12)
    some = group.elements[:: max(1, order // 12)]
    assert all(holds(group.elements, one @ other) for one in some for other in some)
    assert all(holds(group.elements, one.T) for one in some)
    proper = np.linalg.det(group.elements) > 0
    improper = name in ("ci", "cs") or name[0] == "s" or name[-1] in "vhd"
    assert int(proper.sum()) == (order // 2 if improper else order)


@given(name=st.sampled_from(sorted(ORDERS)))
def test_made_once_and_not_to_be_changed(name: str) -> None:
    assert point_group(name) is point_group(name)
    with pytest.raises(ValueError, match="read-only"):
        point_group(name).elements[0, 0, 0] = 2


@pytest.mark.parametrize(("name", "axes"), PAGE.items())
def test_icosahedral_settings_have_the_published_axes(name: str, axes: tuple[tuple[float, ...], ...]) -> None:
    elements = point_group(name).elements
    for axis, fold in zip(axes, (2, 5, 3), strict=True):
        assert holds(elements, rotation(axis, 360 / fold), 1e-6)
    setting = icosahedral_setting(name)
    turned = setting @ point_group("i2").elements @ setting.T
    assert all(holds(elements, one) for one in turned)


def test_angles_of_the_settings() -> None:
    third = math.atan(1 / GOLDEN_RATIO)
    for name, angle in {"i1": math.pi / 2, "i2": 0.0, "i3": third, "i4": -third}.items():
        cosine, sine = math.cos(angle), math.sin(angle)
        expected = [[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]]
        np.testing.assert_allclose(icosahedral_setting(name), expected, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("c4", rotation((0, 0, 1), 90)),
        ("d3", np.diag([1.0, -1.0, -1.0])),
        ("c3v", np.diag([1.0, -1.0, 1.0])),
        ("d3v", np.diag([-1.0, 1.0, 1.0])),
        ("c3h", np.diag([1.0, 1.0, -1.0])),
        ("d3h", np.diag([1.0, 1.0, -1.0])),
        ("cs", np.diag([1.0, 1.0, -1.0])),
        ("s6", np.diag([1.0, 1.0, -1.0]) @ rotation((0, 0, 1), 60)),
        ("t", rotation((0, math.sqrt(2 / 3), math.sqrt(1 / 3)), 180)),
        ("o", rotation((1, 1, 1), 120)),
        ("ih", -np.eye(3)),
    ],
)
def test_generators_lie_where_they_should(name: str, element: np.ndarray) -> None:
    assert holds(point_group(name).elements, element)


@pytest.mark.parametrize("name", ORDERS)
def test_cosets_make_up_the_group(name: str) -> None:
    elements = point_group(name).elements
    subgroup = grid_elements(elements)
    chosen = representatives(elements, subgroup)
    assert len(chosen) * len(subgroup) == len(elements)
    np.testing.assert_array_equal(chosen[0], np.eye(3))
    products = (chosen[:, None] @ subgroup[None]).reshape(-1, 3, 3)
    assert all(holds(products, element) for element in elements)
    assert [maps_grid(one) for one in chosen[1:]].count(True) == 0


@pytest.mark.parametrize(("name", "turns"), {"i1": 4, "i2": 4, "o": 0, "d2": 0, "th": 11, "c8": 1, "d6": 2}.items())
def test_how_many_interpolations_are_left(name: str, turns: int) -> None:
    elements = point_group(name).elements
    assert len(representatives(elements, grid_elements(elements))) - 1 == turns


@pytest.mark.parametrize("name", ["ci", "c4v", "d2", "d4h", "o", "oh", "i1", "i2h", "c5"])
def test_steps_of_a_chain_make_up_the_subgroup(name: str) -> None:
    subgroup = grid_elements(point_group(name).elements)
    products = [np.eye(3)]
    for step in chain(subgroup):
        products = [one @ before for one in step for before in products]
    assert len(products) == len(subgroup)
    assert all(holds(np.stack(products), element) for element in subgroup)


@pytest.mark.parametrize(
    "name", ["", "c", "c0", "d0", "s3", "c100", "x2", "i5", "i0h", "t2", "ohh", "c2x", "helical", "c-2"]
)
def test_what_is_no_group_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"no symmetry group .*allowed: c2.*i4h"):
        point_group(name)


@pytest.mark.parametrize("name", ["c1", "C1"])
def test_no_symmetry_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="turn the operation off instead"):
        point_group(name)
