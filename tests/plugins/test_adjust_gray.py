"""adjust_gray: a and b come back from projections that were scaled by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from pydantic import ValidationError

from streamprep import Context, InputError, Item, Map
from streamprep.apply import apply
from streamprep.em.projection import central_slices, project, unit_projections
from streamprep.formats import mrc
from streamprep.image_sets import sample_images
from streamprep.model import Ctf, ImageSample
from streamprep.plugin_manager import load_plugins
from streamprep.plugins.adjust_gray import AdjustGray, adjust_gray, adjustment
from streamprep.testing import ArrayBackend, backends, run_operation, tiny_ctf, tiny_map
from tests.em.test_projection_matching import views, volume
from tests.plugins import relative_error

A, B, PIXEL = 3.0, 0.05, 2.0


def some_ctfs(n: int) -> list[Ctf]:
    return [replace(tiny_ctf(index), defocus_u_angstrom=8000 + 500 * index) for index in range(n)]


def set_of(
    n: int, ctfs: Sequence[Ctf] | None = None, *, snr: float | None = None, seed: int = 0
) -> tuple[ImageSample, tuple[np.ndarray, np.ndarray]]:
    """Projections of a · volume() + b, and their orientations."""
    known = views(n, seed)
    made = project(central_slices(volume()), *known, ctfs=ctfs, pixel_size_angstrom=PIXEL)
    images = A * made + B * unit_projections(32, n, ctfs, None).astype(np.float32)[:, None, None]
    if snr is not None:
        noise = np.random.default_rng(seed).normal(0, 1, images.shape)
        images = images + noise * np.sqrt(images.var(axis=(1, 2)) / snr)[:, None, None]
    pixels = np.asarray(images, dtype=np.float32)
    return ImageSample(pixels, n, PIXEL, None if ctfs is None else tuple(ctfs)), known


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("with_ctf", [False, True])
def test_a_and_b_of_given_orientations(backend: ArrayBackend, with_ctf: bool) -> None:
    images, known = set_of(8, some_ctfs(8) if with_ctf else None)
    found = adjustment(backend.asarray(volume()), images, known, pixel_size_angstrom=PIXEL)
    assert found is not None
    assert (found.a, found.b) == (pytest.approx(A, rel=1e-3), pytest.approx(B, abs=2e-3))
    assert found.scores is None


@pytest.mark.parametrize("given", [True, False])
def test_a_map_far_from_zero_is_adjusted_like_one_at_zero(given: bool) -> None:
    images, known = set_of(6)
    raised = (volume() + np.float32(20_000)).astype(np.float32)  # its steps are 0.002 there
    found = adjustment(raised, images, known if given else None, pixel_size_angstrom=PIXEL, angular_step_deg=10)
    assert found is not None
    assert found.a == pytest.approx(A, rel=0.01)
    assert found.a * 20_000 + found.b == pytest.approx(B, abs=0.01)


@pytest.mark.parametrize("backend", backends())
def test_a_and_b_of_estimated_orientations(backend: ArrayBackend) -> None:
    images, _ = set_of(6)
    found = adjustment(backend.asarray(volume()), images, None, pixel_size_angstrom=PIXEL, angular_step_deg=10)
    assert found is not None
    assert (found.a, found.b) == (pytest.approx(A, rel=0.01), pytest.approx(B, abs=0.01))


@pytest.mark.parametrize("given", [True, False])
def test_noise_ten_times_the_signal_changes_a_by_less_than_5_percent(given: bool) -> None:
    images, known = set_of(40, snr=0.1)
    found = adjustment(volume(), images, known if given else None, pixel_size_angstrom=PIXEL, angular_step_deg=10)
    assert found is not None
    assert found.a == pytest.approx(A, rel=0.05)


# --- the operation ---------------------------------------------------------------------------------------------------


def context(images: ImageSample, said: list[str] | None = None) -> Context:
    def sample(path: Path, most: int, rng: np.random.Generator) -> ImageSample:
        assert path == Path("set.star")
        return images

    note = (lambda _: None) if said is None else said.append
    return Context(Item("map", "map", Path("map.mrc")), "adjust_gray", sample_images=sample, note=note)


def in_table(images: ImageSample, known: tuple[np.ndarray, np.ndarray]) -> ImageSample:
    """The same, with its orientations as a table has them."""
    matrices, shifts = known
    tilt = np.arccos(matrices[:, 2, 2])
    rot, psi = np.arctan2(matrices[:, 2, 1], matrices[:, 2, 0]), np.arctan2(matrices[:, 1, 2], -matrices[:, 0, 2])
    columns = {"rlnAngleRot": rot, "rlnAngleTilt": tilt, "rlnAnglePsi": psi}
    texts = {name: np.array([f"{np.rad2deg(v):.6f}" for v in values], dtype=object) for name, values in columns.items()}
    origins = {f"rlnOrigin{axis}Angst": shifts[:, index] * PIXEL for index, axis in enumerate("XY")}
    return replace(images, columns=texts | origins)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("method", ["projection", "moments"])
def test_the_map_becomes_a_v_plus_b(backend: ArrayBackend, method: str) -> None:
    said: list[str] = []
    images = in_table(*set_of(8))
    source = backend.move(Map("map", volume(), PIXEL))
    run = run_operation(adjust_gray, source, context(images, said), images="set.star", method=method)
    made = backend.to_host(run.result.pixels)
    assert made.dtype == np.float32
    a, b = np.polyfit(volume().ravel().astype(np.float64), made.ravel(), 1)
    np.testing.assert_allclose(made, a * volume() + b, atol=1e-4)
    if method == "projection":
        assert (a, b) == (pytest.approx(A, rel=1e-3), pytest.approx(B, abs=2e-3))
        assert "8 of 8 images, orientations from the table" in said[0]
    assert f"a = {a:.3g}"[:7] in said[0]
    assert run.warnings == []
    np.testing.assert_array_equal(backend.to_host(source.pixels), volume())


def test_images_of_opposite_contrast_are_told() -> None:
    images = in_table(*set_of(4))
    run = run_operation(
        adjust_gray, Map("map", volume(), PIXEL), context(replace(images, pixels=-images.pixels)), images="set.star"
    )
    assert "opposite contrast" in run.warnings[0]


def test_a_table_whose_angles_are_all_zero_is_told() -> None:
    images, _ = set_of(4)
    columns = {name: np.zeros(4) for name in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")}
    source = Map("map", volume(), PIXEL)
    run = run_operation(
        adjust_gray, source, context(replace(images, columns=columns)), images="set.star", angular_step_deg=30
    )
    assert any("set.star says rot = 0 and tilt = 0" in text for text in run.warnings)


def test_empty_classes_are_left_out() -> None:
    images = in_table(*set_of(5))
    images.pixels[2] = 0
    run = run_operation(adjust_gray, Map("map", volume(), PIXEL), context(images), images="set.star")
    assert "1 of 5 images are constant" in run.warnings[0]
    assert np.polyfit(volume().ravel().astype(np.float64), run.result.pixels.ravel(), 1)[0] == pytest.approx(
        A, rel=1e-3
    )


@pytest.mark.parametrize(
    ("pixels", "images", "message"),
    [
        (np.zeros((8, 6, 8)), np.zeros((1, 8, 8)), "needs a cube.* this map has 8 × 6 × 8"),
        (np.full((8, 8, 8), np.nan), np.zeros((1, 8, 8)), "not finite"),
        (np.ones((8, 8, 8)), np.eye(8)[None], "map.mrc: the map is constant"),
        (np.ones((8, 8, 8)), np.eye(9)[None], "set.star: its images have 9 × 9 pixels, the map map.mrc 8³"),
        (np.ones((8, 8, 8)), np.zeros((2, 8, 8)), "set.star: all of its images are constant"),
    ],
)
@pytest.mark.parametrize("method", ["projection", "moments"])
def test_what_cannot_be_adjusted_is_said(pixels: np.ndarray, images: np.ndarray, message: str, method: str) -> None:
    sample = ImageSample(images.astype(np.float32), len(images))
    with pytest.raises(InputError, match=message):
        run_operation(
            adjust_gray, Map("m", pixels.astype(np.float32), PIXEL), context(sample), images="set.star", method=method
        )


def test_another_pixel_size_is_refused() -> None:
    images, _ = set_of(2)
    with pytest.raises(InputError, match=r"set.star: .* 2.5 Å, the map map.mrc 2 Å"):
        run_operation(
            adjust_gray,
            Map("m", volume(), PIXEL),
            context(replace(images, pixel_size_angstrom=2.5)),
            images="set.star",
        )


def test_an_angle_that_is_no_number_names_the_table() -> None:
    images = in_table(*set_of(2))
    images.columns["rlnAngleRot"][0] = "north"
    with pytest.raises(InputError, match=r"set.star: _rlnAngleRot is 'north'"):
        run_operation(adjust_gray, Map("m", volume(), PIXEL), context(images), images="set.star")


@pytest.mark.parametrize("size", [2, 3, 4])
def test_tiny_maps_are_adjusted(size: int) -> None:
    rng = np.random.default_rng(0)
    sample = ImageSample(rng.normal(size=(2, size, size)).astype(np.float32), 2)
    source = Map("m", rng.normal(size=(size,) * 3).astype(np.float32), PIXEL)
    run = run_operation(adjust_gray, source, context(sample), images="set.star", angular_step_deg=30)
    assert np.isfinite(run.result.pixels).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"images": ""},
        {"symmetry": "c100"},
        {"symmetry": "c0"},
        {"symmetry": "helical"},
        {"angular_step_deg": 0.5},
        {"max_images": 0},
    ],
)
def test_parameters_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AdjustGray.model_validate(({} if not wrong else {"images": "set.star"}) | wrong)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "a"), [("projection", 3), ("moments", None)])
def test_the_golden_case(golden: Path, tmp_path: Path, method: str, a: float | None) -> None:
    said: list[str] = []
    source, target = golden / "inputs/map_clean.mrc", tmp_path / "done.mrc"
    settings = [f"adjust_gray.images={golden / 'inputs/projections.xmd'}", f"adjust_gray.method={method}"]
    apply(
        ["adjust_gray"], source, target, load_plugins(sinks=False), overrides=settings, device="cpu", note=said.append
    )
    before, made = (np.asarray(mrc.read(path).pixels, dtype=np.float64) for path in (source, target))
    if a is None:
        assert relative_error(made, mrc.read(golden / "expected/adjust_gray_moments.mrc").pixels) < 1e-2
    else:
        slope, constant = np.polyfit(before.ravel(), made.ravel(), 1)
        assert slope == pytest.approx(a, rel=0.01)
        assert constant == pytest.approx(0.02, abs=2e-3)
    assert said[0].startswith("adjust_gray: a = ")


@pytest.mark.slow
def test_the_golden_projections_without_their_angles(golden: Path) -> None:
    clean = np.asarray(mrc.read(golden / "inputs/map_clean.mrc").pixels)
    sample = sample_images(golden / "inputs/projections.mrcs", 200, np.random.default_rng(0))
    noise = np.random.default_rng(1).normal(0, 1, sample.pixels.shape)
    noisy = sample.pixels + noise * np.sqrt(10 * sample.pixels.var(axis=(1, 2)))[:, None, None]
    for pixels, allowed in ((sample.pixels, 0.01), (noisy.astype(np.float32), 0.05)):
        found = adjustment(clean, replace(sample, pixels=pixels), None, pixel_size_angstrom=2.0)
        assert found is not None
        assert found.a == pytest.approx(3, rel=allowed)


def test_a_stack_of_images_without_a_table_will_do(tmp_path: Path) -> None:
    images, _ = set_of(4)
    with mrcfile.new(tmp_path / "set.mrcs", images.pixels) as file:
        file.set_image_stack()
        file.voxel_size = PIXEL
    with mrcfile.new(tmp_path / "map.mrc", volume()) as file:
        file.voxel_size = PIXEL
    settings = [f"adjust_gray.images={tmp_path / 'set.mrcs'}", "adjust_gray.angular_step_deg=10"]
    target = tmp_path / "done.mrc"
    apply(["adjust_gray"], tmp_path / "map.mrc", target, load_plugins(sinks=False), overrides=settings, device="cpu")
    slope, _ = np.polyfit(volume().ravel().astype(np.float64), mrc.read(target).pixels.ravel(), 1)
    assert slope == pytest.approx(A, rel=0.01)


def test_a_map_without_structure_still_has_moments() -> None:
    source = tiny_map()
    sample = ImageSample(np.random.default_rng(0).normal(2, 3, (3, 16, 16)).astype(np.float32), 3)
    run = run_operation(adjust_gray, source, context(sample), images="set.star", method="moments")
    assert run.result.pixels.mean(dtype=np.float64) == pytest.approx(sample.pixels.mean() / 16, rel=1e-3)
