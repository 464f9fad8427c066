"""center: the old program's results, and metadata that stay true to the pixels."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import starfile

from streamprep.config import Config, Session, Sets
from streamprep.em.centering import shift_images
from streamprep.formats import mrc, mrc_output, star
from streamprep.hookspecs import ItemResult
from streamprep.model import Context, Coordinates, InputError, Item, Micrograph, Optics, Particles
from streamprep.plugins.center import ROTATION, SHIFT, center_particles
from streamprep.plugins.extract import extract_boxes
from streamprep.sinks.particles import ParticleSink
from streamprep.testing import ArrayBackend, backends, run_operation, tiny_particles
from tests.em.test_centering import particle
from tests.plugins import golden_case

MOVES = np.array([[2.25, -1.5], [0.0, 0.0], [-3.0, 4.0]])
PIXEL = 1.5


def moved_particles(box: int = 48, *, micrograph_box: int | None = 48, **columns: Any) -> Particles:
    """Three particles that lie MOVES away from the origin pixel."""
    pixels = np.stack([particle((box, box), tuple(move), seed=k) for k, move in enumerate(MOVES)])
    xy = np.array([[100.0, 200.0], [300.25, 310.75], [50.0, 60.0]])
    return Particles(
        pixels, Optics(PIXEL), Coordinates(xy, box_size_px=micrograph_box),
        columns={name: np.array(values) for name, values in columns.items()},
    )  # fmt: skip


def columns_of(particles: Particles, *names: str) -> np.ndarray:
    return np.stack([np.asarray(particles.columns[name], dtype=np.float64) for name in names], axis=1)


def residual_px(image: np.ndarray) -> float:
    """Distance of the centre of mass from the origin pixel, of noise-free symmetric objects."""
    y, x = np.indices(image.shape)
    mass = np.clip(image - 0.15, 0, None)
    off = [(mass * (axis - length // 2)).sum() for axis, length in ((x, image.shape[1]), (y, image.shape[0]))]
    return float(np.hypot(*off) / mass.sum())


def test_centres_better_than_the_old_program(golden: Path) -> None:
    _, source, theirs = golden_case(golden, "center_rotate.mrcs")
    ours, warnings = run_operation(center_particles, Particles(source, Optics(2.0)))
    assert max(map(residual_px, ours.pixels)) < 0.1
    assert max(map(residual_px, ours.pixels)) < min(map(residual_px, theirs))
    assert warnings == []


def test_turns_to_the_orientation_of_the_old_program(golden: Path) -> None:
    parameters, source, theirs = golden_case(golden, "center_rotate.mrcs")
    ours, _ = run_operation(center_particles, Particles(source, Optics(2.0)), **parameters)
    unbiased = shift_images(theirs.astype(np.float32), np.full((len(theirs), 2), 0.5))
    for one, other in zip(ours.pixels, unbiased, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9
    assert ours.columns[ROTATION].any()


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("method", ["mirror", "mass"])
def test_the_applied_shift_is_in_the_columns(backend: ArrayBackend, method: str) -> None:
    particles = moved_particles()
    done, warnings = run_operation(center_particles, backend.move(particles), method=method)
    np.testing.assert_allclose(columns_of(done, *SHIFT), -MOVES * PIXEL, atol=0.1)
    assert ROTATION not in done.columns
    applied = columns_of(done, *SHIFT) / PIXEL
    np.testing.assert_allclose(backend.to_host(done.pixels), shift_images(particles.pixels, applied), atol=1e-4)
    assert (done.ctf, done.optics, done.label) == (particles.ctf, particles.optics, particles.label)
    assert warnings == []


@pytest.mark.parametrize(("micrograph_box", "scale"), [(48, 1.0), (96, 2.0), (120, 2.5)])
def test_coordinates_follow_in_pixels_of_the_micrograph(micrograph_box: int, scale: float) -> None:
    particles = moved_particles(micrograph_box=micrograph_box)
    done, warnings = run_operation(center_particles, particles)
    applied = columns_of(done, *SHIFT) / PIXEL
    known = particles.coordinates
    assert known is not None
    np.testing.assert_allclose(done.coordinates.xy_px, np.floor(known.xy_px + 0.5) - applied * scale, atol=1e-9)
    np.testing.assert_allclose(done.coordinates.xy_px[2], [50 - 3 * scale, 60 + 4 * scale], atol=0.1)
    assert warnings == []


def test_an_unknown_box_size_is_remarked() -> None:
    done, warnings = run_operation(center_particles, moved_particles(micrograph_box=None))
    assert len(warnings) == 1
    assert "how large their boxes were in the micrograph is not known" in warnings[0]
    np.testing.assert_allclose(done.coordinates.xy_px[2], [47, 64], atol=0.1)


def test_coordinates_name_the_particle_in_the_micrograph() -> None:
    """Picked beside two particles, at parts of pixels; extracted; centred: the coordinates are the particles' own."""
    places = np.array([[60.3, 70.8], [130.6, 65.1]])
    y, x = np.indices((160, 200))
    image = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 5.0**2)) for px, py in places).astype(np.float32)
    picked = Coordinates(
        places + np.array([[1.9, -2.3], [-0.6, 3.7]]),
        columns={"rlnOriginXAngst": np.array(["3", "0"]), "rlnOriginYAngst": np.array(["0", "0"])},
    )
    micrograph = Micrograph("m.mrc", image, Optics(PIXEL))
    for further in ({}, {"output_size_px": 24}):
        boxes, _ = run_operation(extract_boxes, (picked, micrograph), box_size_px=48, **further)
        for method in ("mirror", "mass"):
            done, _ = run_operation(center_particles, boxes, method=method)
            np.testing.assert_allclose(done.coordinates.xy_px, places, atol=0.05)
            left = columns_of(done, "rlnOriginXAngst", "rlnOriginYAngst") + columns_of(done, *SHIFT)
            np.testing.assert_allclose(left, [[3, 0], [0, 0]], atol=1e-9)
            again, _ = run_operation(center_particles, done, method=method)
            np.testing.assert_allclose(again.coordinates.xy_px, places, atol=0.05)


def test_origins_of_the_table_are_reduced_by_what_was_applied() -> None:
    """RELION shifts by the origin: the particle's centre is at the origin pixel after pixels + origin, as before."""
    origin = np.array([["-3.375", "2.25"], ["0.5", "0"], ["1", "-1"]])
    given = moved_particles(
        rlnOriginXAngst=origin[:, 0], rlnOriginYAngst=origin[:, 1],
        rlnOriginX=["1", "2", "3"], rlnOriginY=["0", "0", "0"], rlnClassNumber=["4", "5", "6"],
    )  # fmt: skip
    done, warnings = run_operation(center_particles, given)
    applied = columns_of(done, *SHIFT)
    left = columns_of(done, "rlnOriginXAngst", "rlnOriginYAngst")
    np.testing.assert_allclose(left, origin.astype(float) - applied, atol=1e-9)
    np.testing.assert_allclose(left[0], 0, atol=0.1)  # it said where the centre was: nothing is left to do
    np.testing.assert_allclose(done.columns["rlnOriginX"], [1, 2, 3] - applied[:, 0] / PIXEL, atol=1e-9)
    assert done.columns["rlnClassNumber"].tolist() == ["4", "5", "6"]
    assert warnings == []
    before = shift_images(given.pixels, origin.astype(float) / PIXEL)
    np.testing.assert_allclose(shift_images(done.pixels, left / PIXEL), before, atol=0.02)


def test_origins_turn_with_the_images() -> None:
    given = moved_particles(rlnOriginXAngst=["3", "0", "0"], rlnOriginYAngst=["1.5", "0", "0"])
    done, _ = run_operation(center_particles, given, rotate=True)
    left = columns_of(done, "rlnOriginXAngst", "rlnOriginYAngst")[0] / PIXEL
    turn = np.deg2rad(done.columns[ROTATION][0])
    still = np.array([2.0, 1.0]) - columns_of(done, *SHIFT)[0] / PIXEL
    wanted = [still @ [np.cos(turn), -np.sin(turn)], still @ [np.sin(turn), np.cos(turn)]]
    np.testing.assert_allclose(left, wanted, atol=1e-9)


@pytest.mark.parametrize("rotate", [False, True])
def test_twice_adds_up(rotate: bool) -> None:
    once, _ = run_operation(center_particles, moved_particles(), rotate=rotate)
    off = once.with_pixels(shift_images(once.pixels, np.array([[2.0, 1.0]] * 3)))
    twice, _ = run_operation(center_particles, off, rotate=rotate)
    turn = np.deg2rad(once.columns[ROTATION]) if rotate else np.zeros(3)
    back = -np.stack([2 * np.cos(turn) + np.sin(turn), -2 * np.sin(turn) + np.cos(turn)], axis=1)
    np.testing.assert_allclose(columns_of(twice, *SHIFT), columns_of(once, *SHIFT) + back * PIXEL, atol=0.1)
    np.testing.assert_allclose(twice.coordinates.xy_px[[0, 2]], (once.coordinates.xy_px - back)[[0, 2]], atol=0.1)
    if rotate:
        np.testing.assert_allclose(twice.columns[ROTATION], once.columns[ROTATION], atol=2)


def test_shifts_that_no_longer_hold_are_remarked() -> None:
    _, warnings = run_operation(center_particles, moved_particles(shiftX=["1", "2", "3"]))
    assert len(warnings) == 1
    assert "shiftX" in warnings[0]


def test_noise_boxes_stay_as_they_are() -> None:
    done, warnings = run_operation(center_particles, replace(moved_particles(), label="noise"))
    assert (done, warnings) == (None, [])


@pytest.mark.parametrize("rotate", [False, True])
def test_relion_finds_the_same_images(tmp_path: Path, rotate: bool) -> None:
    """Aligned by RELION with the table's shifts and angles, before and after: they are the same."""
    program = shutil.which("relion_stack_create")
    if program is None:
        pytest.skip("RELION is not installed")
    rng = np.random.default_rng(0)
    y, x = np.indices((64, 64)) - 32
    images = np.zeros((3, 64, 64), np.float32)
    for image in images:
        middle = rng.uniform(-4, 4, 2)
        for _ in range(4):
            right, down = rng.uniform(-12, 12, 2) + middle
            image += rng.uniform(0.5, 1) * np.exp(-((x - right) ** 2 + (y - down) ** 2) / (2 * rng.uniform(2, 4) ** 2))
    columns = {
        "rlnAnglePsi": np.array(["0", "35", "-110"]),
        "rlnOriginXAngst": np.array(["0", "3", "1"]),
        "rlnOriginYAngst": np.array(["0", "-4", "2"]),
    }
    before = Particles(images, Optics(2.0), columns=columns)
    after, _ = run_operation(center_particles, before, rotate=rotate)
    assert np.abs(after.columns["streamprepShiftXAngst"]).min() > 1
    aligned = []
    for name, particles in (("before", before), ("after", after)):
        stack = tmp_path / f"{name}.mrcs"
        mrc_output.write(stack, np.asarray(particles.pixels), pixel_size_angstrom=2, stack=True)
        names = [f"{number:06d}@{stack.name}" for number in (1, 2, 3)]
        rows = {"rlnImageName": names, "rlnOpticsGroup": [1] * 3, **{key: particles.columns[key] for key in columns}}
        optics = {
            "rlnOpticsGroup": [1], "rlnOpticsGroupName": ["one"], "rlnImagePixelSize": [2.0], "rlnImageSize": [64],
            "rlnImageDimensionality": [2], "rlnVoltage": [300.0], "rlnSphericalAberration": [2.7],
            "rlnAmplitudeContrast": [0.1],
        }  # fmt: skip
        (tmp_path / f"{name}.star").write_text(star.table_text("optics", optics) + star.table_text("particles", rows))
        words = [program, "--i", f"{name}.star", "--o", f"{name}_aligned", "--apply_transformation"]
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
        aligned.append(mrc.read(tmp_path / f"{name}_aligned.mrcs").pixels)
    inside = x**2 + y**2 < 24**2
    for one, other in zip(*aligned, strict=True):
        assert np.corrcoef(one[inside], other[inside])[0, 1] > 0.999


@pytest.mark.parametrize("value", ["None", "nan"])
def test_an_origin_that_is_no_number_is_refused(value: str) -> None:
    given = moved_particles(rlnOriginXAngst=["1", value, "3"], rlnOriginYAngst=["0", "0", "0"])
    context = Context(Item("particles", "s", Path("stack.mrcs")), "center")
    with pytest.raises(InputError, match=r"stack\.mrcs: column rlnOriginXAngst"):
        run_operation(center_particles, given, context)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("rotate", [False, True])
def test_images_without_a_centre_are_left_alone_and_flagged(backend: ArrayBackend, rotate: bool) -> None:
    particles = moved_particles(rlnOriginXAngst=["1", "2", "3"], rlnOriginYAngst=["0", "0", "0"])
    pixels = particles.pixels.copy()
    pixels[0] = 7
    pixels[1, 3, 3] = np.nan
    particles = particles.with_pixels(pixels)
    done, warnings = run_operation(center_particles, backend.move(particles), rotate=rotate, limit_shift=0.05)
    assert warnings == [
        "1 of 3 particle images hold values that are not finite (NaN or infinite); they were not centred",
        "1 of 3 particle images hold nothing to find a centre by; they were not centred",
        "1 of 3 particle images would have to be moved farther than limit_shift allows; they were not centred",
    ]
    np.testing.assert_array_equal(backend.to_host(done.pixels), pixels)
    np.testing.assert_array_equal(done.coordinates.xy_px, particles.coordinates.xy_px)
    np.testing.assert_array_equal(done.columns["rlnOriginXAngst"], [1, 2, 3])
    assert not columns_of(done, *SHIFT).any()


def test_stacks_without_coordinates_are_taken() -> None:
    done, warnings = run_operation(center_particles, replace(tiny_particles(2, 16), coordinates=None))
    assert done.coordinates is None
    assert warnings == []


@pytest.mark.parametrize(
    "wrong", [{"method": "xmipp"}, {"limit_shift": 0}, {"limit_shift": 0.6}, {"rotate": "maybe"}, {"shift": 3}]
)
def test_parameters_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        run_operation(center_particles, tiny_particles(1, 16), **wrong)


def test_the_columns_come_out_in_every_table(tmp_path: Path) -> None:
    particles = moved_particles(rlnOriginXAngst=["1", "2", "3"], rlnOriginYAngst=["0", "0", "0"])
    done, _ = run_operation(center_particles, particles, rotate=True)
    config = Config(
        session=Session(watch=["."]), particles={"center": {"rotate": True}},
        sets=Sets(further_tables=["xmd", "cs"]), file=tmp_path / "streamprep.toml",
    )  # fmt: skip
    sink = ParticleSink(config)
    item = Item("particles", "stack", Path("/data/stack.mrcs"))
    staged = sink.stage(ItemResult(item, 1, None, {}, {"particle": done}), tmp_path)
    np.testing.assert_array_equal(mrc.read(tmp_path / "particles.mrcs").pixels, done.pixels)
    applied = columns_of(done, *SHIFT, ROTATION)

    texts = {}
    for rows in staged.rows:
        (table,) = (table for table in sink.tables if table.path == rows.table)
        names = table.columns(list(rows.columns))
        head = table.head(names, [rows.optics or {}], rows.count)
        texts[rows.table] = head + table.render(names, rows, 1) + table.tail
    star = tmp_path / "particles.star"
    star.write_bytes(texts["particles.star"])
    found = starfile.read(star)["particles"]
    np.testing.assert_allclose(found[[*SHIFT, ROTATION]].to_numpy(), applied, atol=1e-5)
    np.testing.assert_allclose(found["rlnOriginXAngst"], done.columns["rlnOriginXAngst"], atol=1e-5)
    np.testing.assert_allclose(found[["rlnCoordinateX", "rlnCoordinateY"]], done.coordinates.xy_px, atol=1e-5)
    for name in (*SHIFT, ROTATION):
        assert f"_{name}" in texts["particles.xmd"].decode()
    cs = tmp_path / "particles.npy"
    cs.write_bytes(texts["particles.cs"])
    records = np.load(cs)
    np.testing.assert_allclose(np.stack([records[name] for name in (*SHIFT, ROTATION)], axis=1), applied)
