"""pick_noise: the free area is exact, picks are uniform on it, and nothing is drawn where it must not be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist
from scipy.stats import chisquare

from streamprep.em.free_area import FreeArea
from streamprep.model import Context, Coordinates, InputError, Item, Micrograph, Optics
from streamprep.plugins.extract import boxes_inside
from streamprep.plugins.pick_noise import (
    OUTLIER_Z,
    Accept,
    PickNoise,
    outlier_test,
    pick_noise,
    pick_noise_coordinates,
)
from streamprep.testing import ArrayBackend, backends, run_operation, tiny_coordinates, tiny_micrograph
from tests.em.test_free_area import brute_force

NONE = np.empty((0, 2))


def context(name: str = "Micrographs/mic_1", **further: object) -> Context:
    return Context(Item("micrograph", name, Path(f"{name}.mrc")), "pick_noise", **further)


def picks_of(
    particles: np.ndarray, micrograph: Micrograph, there: Context | None = None, **parameters: object
) -> tuple[Coordinates, list[str]]:
    found = Coordinates(np.asarray(particles, dtype=np.float64).reshape(-1, 2))
    return run_operation(pick_noise_coordinates, (found, micrograph), there or context(), **parameters)


def distances(picks: np.ndarray, points: np.ndarray) -> np.ndarray:
    return cKDTree(points).query(picks)[0]


# --- chance ----------------------------------------------------------------------------------------------------------


def uniformity(picks: np.ndarray, free: np.ndarray, cell: int = 16) -> float:
    """p-value of a chi-square test of picks against the free pixels of each cell of a coarse grid."""
    ny, nx = free.shape
    edges = np.arange(0, ny + cell, cell), np.arange(0, nx + cell, cell)
    y, x = np.nonzero(free)
    room = np.histogram2d(y, x, bins=edges)[0].ravel()
    found = np.histogram2d(picks[:, 1], picks[:, 0], bins=edges)[0].ravel()
    assert found[room == 0].sum() == 0
    large = room * len(picks) / room.sum() >= 5
    expected, observed = room[large], found[large]
    return float(chisquare(observed, expected * observed.sum() / expected.sum()).pvalue)


def test_picks_are_uniform_where_nothing_crowds_them() -> None:
    shape, box = (96, 160), 8
    particles = np.array([[40.0, 40.0], [120.0, 60.0]])
    free = brute_force(shape, box, [(particles, 20.0)], None)
    rng = np.random.default_rng(11)
    picks = [
        pick_noise(shape, particles, number=20, box_size_px=box, rng=rng, min_distance_px=20, spacing_px=0)
        for _ in range(150)
    ]
    assert uniformity(np.concatenate(picks), free) > 1e-3


@pytest.mark.parametrize("count", [3, 40])
def test_a_pick_is_any_free_pixel_with_the_same_chance(count: int) -> None:
    """On an irregular area; few particles are taken out of it one by one, many are not."""
    shape, box = (40, 56), 6
    particles = np.random.default_rng(3).uniform((0, 0), shape[::-1], size=(count, 2))
    mask = np.zeros(shape, dtype=bool)
    mask[8:11, 30:44] = True
    free = brute_force(shape, box, [(particles, 5.5)], mask)
    assert 30 < free.sum() < 0.7 * free.size
    rng = np.random.default_rng(8)
    found = np.zeros(shape, dtype=int)
    for _ in range(900):
        ((x, y),) = pick_noise(
            shape, particles, number=1, box_size_px=box, rng=rng, min_distance_px=5.5, mask=mask, crowded="fewer"
        ).astype(int)
        found[y, x] += 1
    cells = np.arange(free.sum()) // max(1, int(free.sum()) // 100)  # so that each expects enough
    assert found[~free].sum() == 0
    observed, expected = np.bincount(cells, found[free]), np.bincount(cells) * 900 / free.sum()
    assert chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("accept", [None, lambda points: np.ones(len(points), dtype=bool)])
def test_each_pick_is_uniform_over_what_those_before_it_leave(accept: Accept | None) -> None:
    """Three picks in a row of eight pixels, two apart: the chance of every sequence is known."""
    shape, box, apart, times = (4, 11), 4, 2, 2000
    expected: dict[tuple[float, ...], float] = {}

    def go(before: tuple[float, ...], chance: float) -> None:
        left = [x for x in np.arange(2.0, 10.0) if all(abs(x - other) >= apart for other in before)]
        if len(before) == 3 or not left:
            expected[before] = chance
        else:
            for x in left:
                go((*before, x), chance / len(left))

    go((), 1.0)
    rng = np.random.default_rng(2)
    found: Counter[tuple[float, ...]] = Counter()
    for _ in range(times):
        picks = pick_noise(
            shape, NONE, number=3, box_size_px=box, rng=rng, spacing_px=apart, crowded="fewer", accept=accept
        )
        found[tuple(picks[:, 0].tolist())] += 1
    assert set(found) <= set(expected)
    assert chisquare([found[key] for key in expected], [times * p for p in expected.values()]).pvalue > 1e-3


# --- what picks keep -------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    ny=st.integers(30, 120),
    nx=st.integers(30, 120),
    box=st.integers(4, 20),
    particles=st.integers(0, 12),
    number=st.integers(0, 30),
    distance=st.floats(0, 40),
    spacing=st.floats(0, 20),
    crowded=st.sampled_from(["relax", "fewer"]),
    seed=st.integers(0, 999),
)
def test_every_pick_keeps_its_distances(
    ny: int, nx: int, box: int, particles: int, number: int, distance: float, spacing: float, crowded: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.uniform((0, 0), (nx, ny), size=(particles, 2))
    picks = pick_noise(
        (ny, nx),
        centres,
        number=number,
        box_size_px=box,
        rng=rng,
        min_distance_px=distance,
        spacing_px=spacing,
        crowded=crowded,
    )
    assert len(picks) <= number
    assert boxes_inside(picks, box, (ny, nx)).all()
    assert (picks == np.round(picks)).all()
    least = distance if crowded == "fewer" else min(distance, box / 2)
    apart = spacing if crowded == "fewer" else spacing / 2
    if particles and len(picks):
        assert distances(picks, centres).min() >= least
    if len(picks) > 1:
        assert pdist(picks).min() >= max(apart, 0.5)


@pytest.mark.parametrize("shape", [(60, 200), (200, 60)])
def test_width_and_height_are_not_confused(shape: tuple[int, int]) -> None:
    ny, nx = shape
    picks = pick_noise(shape, NONE, number=150, box_size_px=10, rng=np.random.default_rng(0), spacing_px=2)
    assert len(picks) == 150
    assert boxes_inside(picks, 10, shape).all()
    assert picks[:, 0].max() > 0.85 * nx
    assert picks[:, 1].max() > 0.85 * ny
    assert picks[:, 0].min() < 0.15 * nx
    assert picks[:, 1].min() < 0.15 * ny


def test_a_micrograph_of_one_box_has_one_place() -> None:
    picks = pick_noise((9, 9), NONE, number=3, box_size_px=9, rng=np.random.default_rng(0))
    assert picks.tolist() == [[4, 4]]


def test_picks_at_the_distance_asked_for_come_first() -> None:
    centres = np.stack(np.meshgrid(np.arange(10, 120, 30.0), np.arange(10, 120, 30.0)), axis=-1).reshape(-1, 2)
    picks = pick_noise((120, 120), centres, number=40, box_size_px=20, rng=np.random.default_rng(3))
    nearest = distances(picks, centres)
    far = nearest >= 20
    assert 0 < far.sum() < len(picks)
    assert far[: far.sum()].all()


def test_relax_fills_what_fewer_leaves_empty() -> None:
    centres = np.stack(np.meshgrid(np.arange(10, 120, 30.0), np.arange(10, 120, 30.0)), axis=-1).reshape(-1, 2)
    micrograph = tiny_micrograph((120, 120))
    fewer, said = picks_of(centres, micrograph, number=40, box_size_px=20, crowded="fewer")
    relaxed, warned = picks_of(centres, micrograph, number=40, box_size_px=20, crowded="relax")
    assert 0 < len(fewer) < len(relaxed)
    assert distances(fewer.xy_px, centres).min() >= 20
    assert 10 <= distances(relaxed.xy_px, centres).min() < 20
    assert pdist(fewer.xy_px).min() >= 10
    assert pdist(relaxed.xy_px).min() >= 5
    assert said == [f"tiny.mrc: {len(fewer)} of 40 noise boxes found; the area that is free of particles holds no more"]
    closer = int((distances(relaxed.xy_px, centres) < 20).sum())
    assert any(
        f"{closer} of {len(relaxed)} noise boxes are nearer to a particle than the 20 px" in said for said in warned
    )


# --- how many --------------------------------------------------------------------------------------------------------


def test_number_minus_one_is_as_many_as_particles() -> None:
    particles = tiny_coordinates(7, (200, 300), 16).xy_px
    found, warnings = picks_of(particles, tiny_micrograph((200, 300)), box_size_px=16)
    assert len(found) == 7
    assert warnings == []


@pytest.mark.parametrize(("edge", "count"), [("skip", 2), ("pad", 3)])
def test_number_minus_one_counts_the_particles_that_extraction_cuts(edge: str, count: int) -> None:
    particles = [[50, 50], [100, 100], [1, 50], [500, 50]]  # inside, inside, over the edge, off the micrograph
    there = context(box_size_px=16, edge=edge)
    found, _ = picks_of(particles, tiny_micrograph((200, 300)), there)
    assert len(found) == count


@pytest.mark.parametrize("number", [0, 1, 9])
@pytest.mark.parametrize("particles", [0, 5])
def test_a_number_is_that_many(number: int, particles: int) -> None:
    centres = tiny_coordinates(particles, (200, 300), 16).xy_px
    found, warnings = picks_of(centres, tiny_micrograph((200, 300)), number=number, box_size_px=16)
    assert len(found) == number
    assert warnings == []


def test_no_particles_give_none_by_default_and_any_number_when_asked() -> None:
    micrograph = tiny_micrograph((100, 140))
    none, said = picks_of(NONE, micrograph, box_size_px=16)
    some, warned = picks_of(NONE, micrograph, box_size_px=16, number=4)
    assert (len(none), len(some)) == (0, 4)
    assert none.xy_px.shape == (0, 2)
    assert len(none.columns["streamprepNearestParticlePixels"]) == 0
    assert np.isfinite(some.columns["streamprepNearestParticlePixels"]).all()
    assert said == warned == []


# --- the full micrograph ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crowded", ["relax", "fewer"])
def test_a_full_micrograph_is_answered_at_once(monkeypatch: pytest.MonkeyPatch, crowded: str) -> None:
    monkeypatch.setattr(FreeArea, "draw", lambda *_: pytest.fail("there is nothing to draw from"))
    monkeypatch.setattr(FreeArea, "shuffled", lambda *_: pytest.fail("there is nothing to look at"))
    centres = np.stack(np.meshgrid(np.arange(0, 201, 10.0), np.arange(0, 141, 10.0)), axis=-1).reshape(-1, 2)
    found, warnings = picks_of(centres, tiny_micrograph((140, 200)), number=50, box_size_px=16, crowded=crowded)
    assert len(found) == 0
    assert warnings == ["tiny.mrc: 0 of 50 noise boxes found; the area that is free of particles holds no more"]


def test_refusing_everything_comes_to_an_end() -> None:
    met = []

    def refuse(points: np.ndarray) -> np.ndarray:
        met.append(len(points))
        return np.zeros(len(points), dtype=bool)

    picks = pick_noise((200, 300), NONE, number=5, box_size_px=8, rng=np.random.default_rng(0), accept=refuse)
    assert len(picks) == 0
    assert sum(met) < 200 * 300


def test_the_few_places_that_pass_are_all_found() -> None:
    good = np.array([[10, 12], [31, 38], [50, 20], [22, 36], [40, 8], [8, 30]])

    def choosy(points: np.ndarray) -> np.ndarray:
        return (points[:, None, :] == good[None]).all(axis=2).any(axis=1)

    picks = pick_noise(
        (44, 60),
        NONE,
        number=6,
        box_size_px=8,
        rng=np.random.default_rng(0),
        spacing_px=0,
        crowded="fewer",
        accept=choosy,
    )
    assert sorted(picks.tolist()) == sorted(good.tolist())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("reject_outliers", [False, True])
@pytest.mark.parametrize("shape", [(20, 200), (200, 20), (20, 20)])
def test_a_micrograph_smaller_than_a_box_has_no_place(shape: tuple[int, int], reject_outliers: bool) -> None:
    found, warnings = picks_of(NONE, tiny_micrograph(shape), number=3, box_size_px=32, reject_outliers=reject_outliers)
    assert len(found) == 0
    assert len(warnings) == 1
    assert "0 of 3" in warnings[0]


# --- masks and outliers ----------------------------------------------------------------------------------------------


def with_mask(mask: np.ndarray) -> Context:
    return context(companions={"mask": Path("Masks/mic_1.mrc")}, read_image=lambda path: mask)


@pytest.mark.parametrize("stacked", [False, True])
def test_no_box_touches_the_mask(stacked: bool) -> None:
    mask = np.zeros((100, 160), dtype=np.uint8)
    mask[:, :60] = 1
    mask[45, 110] = 1
    found, _ = picks_of(
        NONE, tiny_micrograph((100, 160)), with_mask(mask[None] if stacked else mask), number=25, box_size_px=16,
        spacing_px=2, mask="Masks/{stem}.mrc",
    )  # fmt: skip
    assert len(found) == 25
    for x, y in (found.xy_px.astype(int) - 8).tolist():
        assert not mask[y : y + 16, x : x + 16].any()


def test_a_mask_over_everything_leaves_no_place() -> None:
    found, warnings = picks_of(
        NONE, tiny_micrograph((100, 160)), with_mask(np.ones((100, 160))), number=5, box_size_px=16
    )
    assert len(found) == 0
    assert "0 of 5" in warnings[0]


def test_a_mask_of_another_size_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"Masks/mic_1.mrc: the mask is 100 × 160 px, its micrograph 160 × 100 px"):
        picks_of(NONE, tiny_micrograph((100, 160)), with_mask(np.zeros((160, 100))), number=1, box_size_px=16)


def test_a_mask_is_waited_for_only_where_one_is_asked_for() -> None:
    assert PickNoise().companions() == {}
    assert PickNoise(mask="Masks/{stem}.mrc").companions() == {"mask": "Masks/{stem}.mrc"}


@pytest.mark.parametrize("mask", ["Masks/{stem}.mrc", "{name}.mrc", "masks.mrc", ""])
def test_patterns_of_masks_may_stand_for_the_micrograph(mask: str) -> None:
    assert PickNoise(mask=mask).mask == mask


@pytest.mark.parametrize("mask", ["{foo}.mrc", "{stem}/{foo}.mrc"])
def test_a_pattern_with_an_unknown_placeholder_is_refused(mask: str) -> None:
    with pytest.raises(ValueError, match=r"\{foo\} is unknown; allowed are \{stem\} and \{name\}"):
        PickNoise(mask=mask)


def patched(seed: int = 0) -> Micrograph:
    """A patch of carbon, bright, on noise."""
    micrograph = tiny_micrograph((160, 240), seed)
    pixels = micrograph.pixels.copy()
    pixels[40:120, 60:150] += 40
    return Micrograph("m.mrc", pixels, Optics(1.0))


@pytest.mark.parametrize("backend", backends())
def test_outlier_boxes_are_left_out(backend: ArrayBackend) -> None:
    def on_patch(found: Coordinates) -> int:
        left, top = (found.xy_px - 8).T
        wide = np.clip(np.minimum(left + 16, 150) - np.maximum(left, 60), 0, None)
        high = np.clip(np.minimum(top + 16, 120) - np.maximum(top, 40), 0, None)
        return int((wide * high > 16 * 16 * 0.05).sum())

    parameters = {"number": 40, "box_size_px": 16, "spacing_px": 4}
    anywhere, _ = picks_of(NONE, backend.move(patched()), **parameters)
    chosen, _ = picks_of(NONE, backend.move(patched()), **parameters, reject_outliers=True)
    assert len(anywhere) == len(chosen) == 40
    assert on_patch(anywhere) >= 5
    assert on_patch(chosen) == 0


def test_plain_noise_has_few_outliers() -> None:
    pixels = tiny_micrograph((160, 240)).pixels
    points = np.random.default_rng(0).integers(16, 140, size=(200, 2)).astype(float)
    assert outlier_test(pixels, 16)(points).mean() > 0.95


@example(ny=51, nx=64, box=26, level=5e3)  # two boxes, of almost the same mean
@settings(max_examples=30)
@given(ny=st.integers(9, 80), nx=st.integers(9, 80), box=st.integers(2, 40), level=st.sampled_from([0, 5e3]))
def test_outliers_are_those_of_the_definition(ny: int, nx: int, box: int, level: float) -> None:
    rng = np.random.default_rng(ny * nx + box)
    pixels = (level + rng.normal(size=(ny, nx)) * np.linspace(1, 3, nx)).astype(np.float32)

    def measured(y: int, x: int) -> tuple[float, float]:
        cut = pixels[y : y + box, x : x + box].astype(np.float64)
        return cut.mean(), np.log(cut.var() + 1e-12)

    if min(ny, nx) < box:
        return
    grid = np.array([measured(y, x) for y in range(0, ny - box + 1, box) for x in range(0, nx - box + 1, box)])
    centre = np.median(grid, axis=0)
    scale = 1.4826 * np.median(np.abs(grid - centre), axis=0)
    corners = np.stack([rng.integers(0, nx - box + 1, 20), rng.integers(0, ny - box + 1, 20)], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.abs(np.array([measured(y, x) for x, y in corners]) - centre) / scale
    spread = (scale > 1e-6 * (1 + np.abs(centre))).all()  # or two boxes that are equal by chance decide
    clear = (np.abs(z - OUTLIER_Z) > 0.05).all(axis=1) & spread
    ours = outlier_test(pixels, box)((corners + box // 2).astype(float))
    assert (ours == (z < OUTLIER_Z).all(axis=1))[clear].all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e30])
def test_a_broken_pixel_refuses_its_own_boxes_only(broken: float) -> None:
    pixels = np.random.default_rng(0).normal(0, 1, (160, 240)).astype(np.float32)
    pixels[40, 50] = broken
    accept = outlier_test(pixels, 16)
    assert accept(np.array([[50.0, 40.0], [50.0, 60.0], [80.0, 40.0], [200.0, 120.0]])).tolist() == [
        False, True, True, True,
    ]  # fmt: skip


def test_a_box_of_another_variance_is_an_outlier() -> None:
    pixels = np.random.default_rng(0).normal(0, 1, (160, 240))
    pixels[64:96, 64:96] *= 5
    accept = outlier_test(pixels, 16)
    assert accept(np.array([[80.0, 80.0], [200.0, 40.0]])).tolist() == [False, True]


# --- the same every time ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("far", [1e300, -1e300, 1e18, -(2.0**63)])
def test_particles_far_outside_keep_nothing_out(far: float) -> None:
    micrograph = tiny_micrograph(shape_px=(96, 80))
    one, _ = picks_of(np.array([[40.0, 40.0]]), micrograph, number=4, box_size_px=16)
    other, _ = picks_of(np.array([[40.0, 40.0], [far, 20.0], [20.0, far]]), micrograph, number=4, box_size_px=16)
    assert other.xy_px.tolist() == one.xy_px.tolist()


def test_picks_depend_on_the_micrograph_and_the_seed_only() -> None:
    centres = tiny_coordinates(6, (200, 300), 16).xy_px
    micrograph = tiny_micrograph((200, 300))

    def pick(name: str, seed: int = 0) -> list[list[float]]:
        return picks_of(centres, micrograph, context(name, seed=seed), box_size_px=16)[0].xy_px.tolist()

    one, two = pick("Micrographs/a"), pick("Micrographs/b")
    assert one != two
    assert (pick("Micrographs/b"), pick("Micrographs/a")) == (two, one)
    assert pick("Micrographs/a", seed=1) != one


# --- what comes out --------------------------------------------------------------------------------------------------


def test_rows_say_how_far_the_nearest_particle_is() -> None:
    centres = tiny_coordinates(6, (200, 300), 16).xy_px
    found, _ = picks_of(centres, tiny_micrograph((200, 300)), number=20, box_size_px=16)
    np.testing.assert_allclose(
        found.columns["streamprepNearestParticlePixels"],
        np.hypot(*(found.xy_px[:, None] - centres[None]).transpose(2, 0, 1)).min(axis=1),
    )
    assert found.label == "noise"


@pytest.mark.parametrize(
    ("own", "of_coordinates", "of_extract", "taken"),
    [(10, 12, 14, 10), (None, 12, 14, 12), (None, None, 14, 14)],
)
def test_the_box_is_its_own_or_that_of_the_coordinates_or_of_extraction(
    own: int | None, of_coordinates: int | None, of_extract: int | None, taken: int
) -> None:
    coordinates = Coordinates(np.array([[50.0, 50.0]]), box_size_px=of_coordinates)
    there = context(box_size_px=of_extract)
    found, _ = run_operation(pick_noise_coordinates, (coordinates, tiny_micrograph()), there, box_size_px=own)
    assert found.box_size_px == taken


def test_without_any_box_size_it_says_where_to_set_one() -> None:
    with pytest.raises(ValueError, match="pick_noise.box_size_px is not set"):
        picks_of([[50, 50]], tiny_micrograph())


@pytest.mark.parametrize("wrong", [{"number": -2}, {"box_size_px": 1}, {"min_distance_px": -1}, {"crowded": "no"}])
def test_parameters_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        picks_of([[50, 50]], tiny_micrograph(), **wrong)
