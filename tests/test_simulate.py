"""The simulated acquisition: what it calls true is in the pixels, and it comes as from a microscope."""

from __future__ import annotations

import io
import tomllib
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from scipy.spatial import cKDTree

from streamprep.em.ctf import ctf_at
from streamprep.formats import star
from streamprep.model import ConfigError, Ctf
from streamprep.simulate import (
    PARTICLE_RADIUS,
    Acquisition,
    Hole,
    apply_ctf,
    carbon_hole,
    carbon_mask,
    expose,
    exposure_ctf,
    ice,
    particle_map,
    particle_model,
    place_particles,
    prepare,
    projection,
    random_numbers,
    simulate,
    specimen_image,
    take_exposure,
)

SMALL = Acquisition(micrographs=3, size_px=320, particles=10, box_size_px=48, seed=5)
PLAIN = replace(SMALL, particles=0, ice_ramp=0, hot_pixels_per_megapixel=0, carbon_every=0)
MICROGRAPHS = [f"Micrographs/mic_{number:04d}.mrc" for number in (1, 2, 3)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def relion_matrix(rot: float, tilt: float, psi: float) -> np.ndarray:
    """Euler_angles2matrix of RELION's euler.cpp, element by element."""
    (ca, cb, cg), (sa, sb, sg) = (f(np.deg2rad([rot, tilt, psi])) for f in (np.cos, np.sin))
    return np.array(
        [
            [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
            [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
            [sb * ca, sb * sa, cb],
        ]
    )


# --- the particle


@pytest.mark.parametrize("box", [48, 63])
def test_projection_is_the_sum_of_the_map_along_z(box: int) -> None:
    model = particle_model(box, seed=3)
    density = particle_map(model, box)
    assert np.allclose(projection(model, np.eye(3), box), density.sum(axis=0), atol=1e-4)
    turned = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])  # image x is the map's y, image y its z: seen along x
    assert np.allclose(projection(model, turned, box), density.sum(axis=2), atol=1e-4)


def test_the_particle_is_centred_compact_and_without_symmetry() -> None:
    box = 64
    model = particle_model(box, seed=0)
    density = particle_map(model, box)
    grid = np.indices(density.shape) - box // 2
    assert np.abs((grid * density).sum(axis=(1, 2, 3)) / density.sum()).max() < 0.05
    assert density[np.linalg.norm(grid, axis=0) > PARTICLE_RADIUS * box].max() < 0.05 * density.max()
    odd = density[1:, 1:, 1:]  # the origin is the centre of an odd cube
    for turned in (odd[::-1, ::-1], odd[:, ::-1, ::-1], odd[::-1, :, ::-1], odd[::-1, ::-1, ::-1]):
        assert correlation(odd, turned) < 0.8
    assert not np.allclose(density, particle_map(particle_model(box, seed=1), box), atol=0.01)


def test_specimen_image_places_sub_pixel_and_cuts_at_the_border() -> None:
    model, box = particle_model(32, seed=0), 32
    turn = np.eye(3)[None]
    whole = specimen_image((96, 128), model, turn, np.array([[70.0, 50.0]]), box)
    assert np.allclose(whole[34:66, 54:86], projection(model, np.eye(3), box), atol=1e-5)
    y, x = np.indices(whole.shape)
    shifted = specimen_image((96, 128), model, turn, np.array([[70.3, 49.6]]), box)
    for axis, moved in ((x, 0.3), (y, -0.4)):
        centre = [(axis * image).sum() / image.sum() for image in (whole, shifted)]
        assert centre[1] - centre[0] == pytest.approx(moved, abs=1e-3)
    for xy in ((-3.0, 50.0), (126.0, 2.0), (60.0, 95.0), (-40.0, -40.0)):
        cut = specimen_image((96, 128), model, turn, np.array([xy]), box)
        wide = specimen_image((224, 256), model, turn, np.array([xy]) + 64, box)
        assert np.allclose(cut, wide[64:160, 64:192])


# --- what the pixels hold


def test_the_truth_is_in_the_pixels(tmp_path: Path) -> None:
    """Boxes cut at the true centres are the CTF-filtered projections of the particle at the true angles."""
    acquisition = replace(PLAIN, micrographs=1, size_px=512, particles=24, box_size_px=64, dose_per_square_angstrom=1e4)
    simulate(tmp_path, acquisition)
    pixels = mrcfile.read(tmp_path / MICROGRAPHS[0]).astype(float)
    contrast = 1 - pixels / acquisition.electrons_per_pixel
    truth = starfile.read(tmp_path / "truth.star")
    (ctf,) = (entry.data for entry in star.read_entries(tmp_path / "micrographs_ctf.star"))
    model, box, size = particle_model(64, acquisition.seed), 64, 256
    boxes, expected, unfiltered, scores = [], [], [], []
    for row in truth.itertuples():
        matrix = relion_matrix(row.rlnAngleRot, row.rlnAngleTilt, row.rlnAnglePsi)
        xy = np.array([row.rlnCoordinateX, row.rlnCoordinateY])
        whole = np.rint(xy).astype(int)
        x0, y0 = whole - box // 2
        if min(x0, y0) < 0 or max(x0, y0) + box > 512:
            continue
        centre = np.array([[size // 2, size // 2]]) + (xy - whole)
        image = specimen_image((size, size), model, matrix[None], centre, box) * acquisition.signal
        corner = size // 2 - box // 2
        inside = slice(corner, corner + box), slice(corner, corner + box)
        boxes.append(contrast[y0 : y0 + box, x0 : x0 + box])
        expected.append(apply_ctf(image, ctf, acquisition.pixel_size_angstrom)[inside])
        unfiltered.append(image[inside])
        scores.append(correlation(boxes[-1], expected[-1]))
    assert len(boxes) > 12
    assert min(scores) > 0.93
    assert correlation(np.mean(boxes, 0), np.mean(expected, 0)) > 0.98
    slope = np.vdot(boxes, expected) / np.vdot(expected, expected)
    assert slope == pytest.approx(1, abs=0.05)
    for axis in (1, 2):  # to first order, a shifted box differs by the shift times the gradient
        gradient = np.gradient(np.array(expected), axis=axis)
        shift = -np.vdot(np.subtract(boxes, expected), gradient) / np.vdot(gradient, gradient)
        assert shift == pytest.approx(0, abs=0.1)
    others = [correlation(a, b) for a, b in zip(boxes, np.roll(expected, 1, axis=0), strict=True)]
    assert np.mean(others) < np.mean(scores) - 0.1, "another particle's angles must not fit as well"
    plain = [correlation(a, b) for a, b in zip(boxes, unfiltered, strict=True)]
    assert np.mean(plain) < np.mean(scores) - 0.1, "the CTF must have been applied"


@pytest.mark.parametrize(("waves_y", "waves_x"), [(0, 9), (7, 0), (5, 12), (-5, 12)])
def test_the_ctf_scales_each_wave(waves_y: int, waves_x: int) -> None:
    ctf = Ctf(24_000.0, 9_000.0, 25.0)
    y, x = np.indices((60, 97))
    wave = np.cos(2 * np.pi * (waves_y * y / 60 + waves_x * x / 97)).astype(np.float32)
    fx, fy = np.array([waves_x / 97 / 1.5]), np.array([waves_y / 60 / 1.5])
    assert np.allclose(apply_ctf(wave, ctf, 1.5), ctf_at(ctf, fx, fy) * wave, atol=1e-4)
    assert abs(float(ctf_at(ctf, fx, fy)[0] - ctf_at(ctf, fx, -fy)[0])) > 0.02 or 0 in (waves_x, waves_y)


def test_protein_is_dark_on_bright() -> None:
    exposure = take_exposure(replace(PLAIN, particles=10), 0)
    y, x = np.indices(exposure.pixels.shape)
    distance = cKDTree(exposure.xy_px).query(np.stack([x, y], axis=-1))[0]
    mean = PLAIN.electrons_per_pixel
    assert exposure.pixels[distance < 8].mean() < 0.97 * mean
    assert exposure.pixels[distance > 40].mean() == pytest.approx(mean, rel=0.01)


@pytest.mark.parametrize("dose", [2.0, 40.0])
def test_shot_noise_is_that_of_the_dose(dose: float) -> None:
    pixels = take_exposure(replace(PLAIN, dose_per_square_angstrom=dose, pixel_size_angstrom=2.0), 0).pixels
    assert np.array_equal(pixels, np.rint(pixels))
    assert pixels.mean() == pytest.approx(4 * dose, rel=0.01)
    assert pixels.var() == pytest.approx(4 * dose, rel=0.03)
    assert abs(correlation(pixels[:, 1:], pixels[:, :-1])) < 0.02


def test_the_background_between_particles_is_ice_and_shot_noise() -> None:
    acquisition = replace(SMALL, size_px=512, carbon_every=0, hot_pixels_per_megapixel=0)
    exposure = take_exposure(acquisition, 0)
    y, x = np.indices(exposure.pixels.shape)
    far = cKDTree(exposure.xy_px).query(np.stack([x, y], axis=-1))[0] > 1.2 * acquisition.box_size_px
    expected = acquisition.electrons_per_pixel * ice((512, 512), 0.1, random_numbers(acquisition.seed, 0, "ice"))
    noise = ((exposure.pixels - expected) / np.sqrt(expected))[far]
    assert noise.size > 20_000
    assert abs(noise.mean()) < 0.03
    assert noise.var() == pytest.approx(1, abs=0.03)


def test_ice_is_a_slow_ramp_of_the_given_height() -> None:
    ramp = ice((200, 300), 0.1, np.random.default_rng(1))
    assert ramp.shape == (200, 300)
    assert ramp.mean() == pytest.approx(1, abs=1e-4)
    assert np.ptp(ramp) == pytest.approx(0.1, abs=1e-4)
    assert max(np.abs(np.diff(ramp, axis=axis)).max() for axis in (0, 1)) < 0.003
    blocks = take_exposure(replace(PLAIN, ice_ramp=0.1), 0).pixels.reshape(8, 40, 8, 40).mean(axis=(1, 3))
    flat = take_exposure(PLAIN, 0).pixels.reshape(8, 40, 8, 40).mean(axis=(1, 3))
    assert np.ptp(blocks) / blocks.mean() == pytest.approx(0.09, abs=0.025)
    assert np.ptp(flat) / flat.mean() < 0.025


def test_carbon_is_darker_rougher_and_bare() -> None:
    acquisition = replace(SMALL, size_px=512, particles=30, hot_pixels_per_megapixel=0, ice_ramp=0)
    exposures = [take_exposure(acquisition, index) for index in range(6)]
    assert [exposure.hole is not None for exposure in exposures] == [False, True, False, False, False, True]
    for exposure in (exposures[1], exposures[5]):
        hole = exposure.hole
        assert hole is not None
        y, x = np.indices(exposure.pixels.shape)
        depth = hole.depth_px(x, y)
        film = exposure.pixels[depth > 20]
        free = (depth < -60) & (cKDTree(exposure.xy_px).query(np.stack([x, y], axis=-1))[0] > 45)
        assert 0.05 < film.size / depth.size < 0.6
        assert film.mean() == pytest.approx(0.85 * acquisition.electrons_per_pixel, rel=0.02)
        assert exposure.pixels[free].mean() == pytest.approx(acquisition.electrons_per_pixel, rel=0.02)
        assert film.var() > 1.2 * exposure.pixels[free].var()
        assert len(exposure.xy_px) > 5
        nearest = hole.depth_px(*exposure.xy_px.T).max()
        assert nearest < -PARTICLE_RADIUS * acquisition.box_size_px


def test_carbon_mask_follows_the_edge() -> None:
    mask = carbon_mask(Hole(20.0, 30.0, 15.0), (64, 48))
    assert mask[30, 20] == 0
    assert mask[30, 34 + 8] == 1
    assert mask[30, 35] == pytest.approx(0.5)
    assert np.array_equal(carbon_mask(Hole(20.0, 30.0, 15.0), (74, 58), 5)[5:69, 5:53], mask)
    for seed in range(20):
        shape = (200, 320)
        share = carbon_mask(carbon_hole(shape, np.random.default_rng(seed)), shape).mean()
        assert 0.03 < share < 0.6, seed


def test_hot_pixels_are_few_and_strong() -> None:
    acquisition = replace(SMALL, hot_pixels_per_megapixel=100)
    bright = take_exposure(acquisition, 0).pixels > 4.5 * acquisition.electrons_per_pixel
    assert bright.sum() == round(100 * 320 * 320 / 1e6)
    none = take_exposure(replace(acquisition, hot_pixels_per_megapixel=0), 0).pixels
    assert none.max() < 2 * acquisition.electrons_per_pixel
    assert np.array_equal(none[~bright], take_exposure(acquisition, 0).pixels[~bright])


def test_defoci_lie_in_their_range_with_slight_astigmatism() -> None:
    ctfs = [exposure_ctf(SMALL, index) for index in range(60)]
    u, v = np.array([(ctf.defocus_u_angstrom, ctf.defocus_v_angstrom) for ctf in ctfs]).T
    assert v.min() >= 10_000
    assert u.max() <= 25_000
    assert np.ptp(u) > 10_000
    assert (u - v).min() > 0
    assert (u - v).max() <= 400


# --- where particles lie


@pytest.mark.parametrize("shape", [(400, 700), (512, 512)])
def test_particles_do_not_overlap_and_lie_whole_in_the_image(shape: tuple[int, int]) -> None:
    box = 40
    xy = np.array(place_particles(shape, 40, box, np.random.default_rng(2)))
    assert xy.shape == (40, 2)
    assert cKDTree(xy).query(xy, k=2)[0][:, 1].min() >= box
    last = np.array([shape[1], shape[0]]) - 1
    assert (xy >= PARTICLE_RADIUS * box).all()
    assert (xy <= last - PARTICLE_RADIUS * box).all()
    assert (xy.max(axis=0) > last - 3 * box).all(), "the whole image is used"
    assert not np.allclose(xy, np.rint(xy)), "centres are sub-pixel"


def test_some_boxes_cross_the_border() -> None:
    crossing = 0
    for seed in range(10):
        xy = place_particles((400, 400), 20, 48, np.random.default_rng(seed))
        crossing += int(((xy < 24) | (xy > 399 - 24)).any(axis=1).sum())
    assert 4 < crossing < 60


def test_a_crowded_micrograph_has_fewer_particles_closer_together() -> None:
    box = 48
    xy = place_particles((200, 200), 1000, box, np.random.default_rng(0))
    nearest = cKDTree(xy).query(xy, k=2)[0][:, 1].min()
    assert 10 < len(xy) < 100
    assert 2 * PARTICLE_RADIUS * box <= nearest < box
    assert place_particles((30, 200), 5, box, np.random.default_rng(0)).shape == (0, 2)
    on_film = Hole(-500.0, -500.0, 10.0)
    assert place_particles((200, 200), 5, box, np.random.default_rng(0), on_film).shape == (0, 2)


def test_a_micrograph_need_not_be_square() -> None:
    exposure = take_exposure(replace(SMALL, carbon_every=1), 0, (240, 400))
    assert exposure.pixels.shape == (240, 400)
    assert exposure.hole is not None
    assert exposure.xy_px[:, 1].max() < 240
    assert len(exposure.xy_px) == len(exposure.euler_deg) == len(exposure.picks_px) > 0


def test_picks_are_near_the_truth_but_not_it() -> None:
    exposure = take_exposure(replace(SMALL, size_px=640, particles=60, pick_error_px=1.5), 0)
    error = exposure.picks_px - exposure.xy_px
    assert error.std() == pytest.approx(1.5, rel=0.25)
    exact = take_exposure(replace(SMALL, pick_error_px=0), 0)
    assert np.array_equal(exact.picks_px, exact.xy_px)


# --- the same again


def test_the_same_settings_make_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        simulate(tmp_path / name, replace(SMALL, seed=seed))
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert set(a) == {
        *MICROGRAPHS,
        *(f"Coordinates/mic_{number:04d}_autopick.star" for number in (1, 2, 3)),
        *("Maps/particle.mrc", "micrographs_ctf.star", "truth.star", "streamprep.toml"),
    }
    assert set(a) == set(c)
    assert {name for name in a if a[name] == c[name]} == {"streamprep.toml"}


def test_an_exposure_depends_on_its_index_only(tmp_path: Path) -> None:
    simulate(tmp_path / "three", SMALL)
    many = replace(SMALL, micrographs=500)
    prepare(tmp_path / "some", many)
    for index in (2, 0, 1):  # nor on the order
        expose(tmp_path / "some", many, index)
    assert contents(tmp_path / "three") == contents(tmp_path / "some")


def test_the_noise_does_not_move_the_particles() -> None:
    one = take_exposure(SMALL, 1)
    other = take_exposure(replace(SMALL, dose_per_square_angstrom=10, ice_ramp=0, pick_error_px=0, signal=0), 1)
    assert np.array_equal(one.xy_px, other.xy_px)
    assert np.array_equal(one.euler_deg, other.euler_deg)
    assert one.ctf == other.ctf


# --- the files


def test_files_are_valid_and_agree(tmp_path: Path) -> None:
    simulate(tmp_path, SMALL)
    truth = starfile.read(tmp_path / "truth.star")
    assert sorted(set(truth["rlnMicrographName"])) == MICROGRAPHS
    for index, name in enumerate(MICROGRAPHS):
        report = io.StringIO()
        assert mrcfile.validate(tmp_path / name, print_file=report), report.getvalue()
        exposure = take_exposure(SMALL, index)
        with mrcfile.open(tmp_path / name) as file:
            assert file.is_single_image()
            assert file.data.dtype == np.float32
            assert file.voxel_size.x == pytest.approx(1.5)
            assert np.array_equal(file.data, exposure.pixels)
        picks = starfile.read(tmp_path / "Coordinates" / f"{Path(name).stem}_autopick.star")
        assert list(picks) == ["rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit"]
        (entry,) = star.read_entries(tmp_path / "Coordinates" / f"{Path(name).stem}_autopick.star")
        assert np.allclose(entry.data.xy_px, exposure.picks_px, atol=1e-5)
        rows = truth[truth["rlnMicrographName"] == name]
        assert np.allclose(rows[["rlnCoordinateX", "rlnCoordinateY"]], exposure.xy_px, atol=1e-5)
        assert np.abs(rows[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy() - entry.data.xy_px).max() < 6
    report = io.StringIO()
    assert mrcfile.validate(tmp_path / "Maps" / "particle.mrc", print_file=report), report.getvalue()
    with mrcfile.open(tmp_path / "Maps" / "particle.mrc") as file:
        assert file.is_volume()
        assert file.voxel_size.z == pytest.approx(1.5)
        assert np.array_equal(file.data, particle_map(particle_model(48, SMALL.seed), 48))


def test_the_ctf_table_grows_with_the_micrographs(tmp_path: Path) -> None:
    prepare(tmp_path, SMALL)
    table = tmp_path / "micrographs_ctf.star"
    assert not table.exists()
    for index in range(3):
        assert expose(tmp_path, SMALL, index) == tmp_path / MICROGRAPHS[index]
        blocks = starfile.read(table, always_dict=True)
        assert list(blocks) == ["optics", "micrographs"]
        assert list(blocks["micrographs"]["rlnMicrographName"]) == MICROGRAPHS[: index + 1]
        entries = star.read_entries(table)
        assert [entry.micrograph for entry in entries] == MICROGRAPHS[: index + 1]
        for number, entry in enumerate(entries):
            expected = exposure_ctf(SMALL, number)
            assert entry.data.defocus_u_angstrom == pytest.approx(expected.defocus_u_angstrom)
            assert entry.data.defocus_v_angstrom == pytest.approx(expected.defocus_v_angstrom)
            assert entry.data.defocus_angle_deg == pytest.approx(expected.defocus_angle_deg)
            assert (entry.data.voltage_kv, entry.data.spherical_aberration_mm) == (300.0, 2.7)
            assert entry.data.amplitude_contrast == 0.1


def test_a_micrograph_without_particles_has_empty_coordinates(tmp_path: Path) -> None:
    simulate(tmp_path, replace(PLAIN, micrographs=2))
    (entry,) = star.read_entries(tmp_path / "Coordinates" / "mic_0001_autopick.star")
    assert len(entry.data) == 0
    assert len(star.read_entries(tmp_path / "micrographs_ctf.star")) == 2


def test_files_appear_whole_and_in_a_microscopes_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    appeared: list[str] = []
    real = Path.replace

    def rename(self: Path, target: Path) -> Path:
        assert self.parent == target.parent
        assert self.name == f".{target.name}.part"
        whole = self.read_bytes()
        moved = real(self, target)
        assert target.read_bytes() == whole
        appeared.append(str(target.relative_to(tmp_path)))
        return moved

    prepare(tmp_path, SMALL)
    monkeypatch.setattr(Path, "replace", rename)
    expose(tmp_path, SMALL, 0)
    pair = [MICROGRAPHS[0], "Coordinates/mic_0001_autopick.star"]
    assert appeared == [*pair, "micrographs_ctf.star", "truth.star"]
    expose(tmp_path, SMALL, 0)
    assert len(appeared) == 4, "files that are there with the same content are not touched"
    assert not list(tmp_path.rglob(".*"))


def test_nothing_half_written_is_left_by_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, SMALL)
    before = contents(tmp_path)

    def full(path: Path, *arguments: object, **settings: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("streamprep.simulate.mrc_output.write", full)
    with pytest.raises(OSError, match="No space"):
        expose(tmp_path, SMALL, 0)
    assert contents(tmp_path) == before


def test_an_interval_is_waited_between_exposures_only(tmp_path: Path) -> None:
    log: list[object] = []

    def seen() -> int:
        return len(list((tmp_path / "Micrographs").iterdir()))

    simulate(
        tmp_path,
        SMALL,
        interval_s=2.5,
        wait=lambda seconds: log.append(("wait", seconds, seen())),
        progress=lambda done, total: log.append((done, total)),
    )
    assert log == [(1, 3), ("wait", 2.5, 1), (2, 3), ("wait", 2.5, 2), (3, 3)]
    waits: list[float] = []
    simulate(tmp_path, SMALL, wait=waits.append)
    assert waits == []


def test_the_configuration_describes_the_acquisition(tmp_path: Path) -> None:
    prepare(tmp_path, replace(SMALL, pixel_size_angstrom=0.85))
    config = tomllib.loads((tmp_path / "streamprep.toml").read_text())
    assert config == {
        "session": {"watch": ["Micrographs", "Coordinates"], "output": "streamprep_out"},
        "optics": {
            "pixel_size_angstrom": 0.85,
            "voltage_kv": 300,
            "spherical_aberration_mm": 2.7,
            "amplitude_contrast": 0.1,
        },
        "ctf": {"table": "micrographs_ctf.star"},
        "extract": {"box_size_px": 48},
        "coordinates": {"pick_noise": {}},
        "particles": {"normalize": {"method": "ramp"}, "invert": {}},
    }


# --- folders that are not empty


def test_an_acquisition_goes_on_in_its_folder(tmp_path: Path) -> None:
    simulate(tmp_path, replace(SMALL, micrographs=1))
    edited = (tmp_path / "streamprep.toml").read_text() + "# edited\n"
    (tmp_path / "streamprep.toml").write_text(edited)
    simulate(tmp_path, SMALL)
    simulate(tmp_path, replace(SMALL, micrographs=1))
    assert (tmp_path / "streamprep.toml").read_text() == edited
    assert list(starfile.read(tmp_path / "micrographs_ctf.star")["micrographs"]["rlnMicrographName"]) == MICROGRAPHS


@pytest.mark.parametrize("other", [{"seed": 6}, {"size_px": 256}, {"box_size_px": 32}, {"signal": 0.5}])
def test_another_acquisition_is_refused(tmp_path: Path, other: dict[str, float]) -> None:
    simulate(tmp_path, replace(SMALL, micrographs=1))
    before = contents(tmp_path)
    (name,) = other
    with pytest.raises(ConfigError, match=rf"truth\.star.*{name}={getattr(SMALL, name)}\b.*empty folder"):
        simulate(tmp_path, replace(SMALL, **other))  # type: ignore[arg-type]
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["Micrographs/FoilHole_1.mrc", "micrographs_ctf.star", "streamprep.toml"])
def test_a_folder_with_real_data_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"months of work")
    with pytest.raises(ConfigError, match=f"{name.split('/')[0]}: not empty"):
        simulate(tmp_path, SMALL)
    assert contents(tmp_path) == {name: b"months of work"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("micrographs", 0),
        ("particles", -1),
        ("box_size_px", 8),
        ("size_px", 40),
        ("seed", -1),
        ("pixel_size_angstrom", 0.0),
        ("dose_per_square_angstrom", float("nan")),
        ("max_defocus_um", 1.0),
    ],
)
def test_impossible_settings_are_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is {value}; it must be .* or more"):
        replace(SMALL, **{name: value})  # type: ignore[arg-type]
