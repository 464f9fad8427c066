"""The particle sink: a valid stack for each set of a micrograph, and rows that point to its images."""

from __future__ import annotations

import dataclasses
import io
import tempfile
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import mrcfile
import numpy as np
import pytest
import starfile

from streamprep.config import Config, OpticsSection, Session, Sets
from streamprep.hookspecs import ItemResult, Staged, StagedRows
from streamprep.model import Coordinates, Ctf, Item, Label, Micrograph, Optics, Particles, StreamprepError
from streamprep.sinks import _files
from streamprep.sinks import particles as sink_module
from streamprep.sinks.particles import ParticleSink

NAME = "Micrographs/grid1/mic_0001"
STAR_ALONE = Sets(further_tables=[])
OPTICS = Optics(3.0, 200.0, 1.4, 0.07)
CTF = Ctf(15000.5, 14000.25, -35.5, 0.0, 120.0, 2.0, 0.08)


def make_config(folder: Path, sets: Sets = STAR_ALONE, **session: Any) -> Config:
    return Config(
        session=Session(watch=["Micrographs"], **session),
        optics=OpticsSection(),
        extract={"box_size_px": 8},
        sets=sets,
        file=folder / "streamprep.toml",
    )


def make_particles(count: int = 3, label: Label = "particle", **more: Any) -> Particles:
    pixels = np.arange(count * 64, dtype=np.float32).reshape(count, 8, 8)
    xy = np.arange(count * 2, dtype=float).reshape(count, 2) + 0.25
    return Particles(
        **{"pixels": pixels, "optics": OPTICS, "coordinates": Coordinates(xy, label), "label": label, **more}
    )


def make_result(particles: Mapping[Label, Particles], generation: int = 1) -> ItemResult:
    micrograph = Micrograph("Micrographs/grid1/mic_0001.mrc", np.zeros((64, 64), np.float32), Optics(1.5))
    item = Item("micrograph", NAME, Path("/data/Micrographs/grid1/mic_0001.mrc"))
    return ItemResult(item, generation, micrograph, {}, particles)


def stage(folder: Path, *particles: Particles, generation: int = 1, **more: Any) -> Staged:
    result = make_result({one.label: one for one in particles}, generation)
    return ParticleSink(make_config(folder, **more)).stage(result, folder)


def published(folder: Path, rows: StagedRows) -> dict[str, Any]:
    """The table with these rows alone, as starfile reads it."""
    (table,) = (table for table in ParticleSink(make_config(folder)).tables if table.path == rows.table)
    columns = table.columns(list(rows.columns))
    assert rows.optics is not None
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "table.star")
        path.write_bytes(table.head(columns, [rows.optics], rows.count) + table.render(columns, rows, 1) + table.tail)
        frames = starfile.read(path)
    return {name: frame.to_dict("list") for name, frame in frames.items()}


def test_the_stack_is_valid_and_holds_the_pixels(tmp_path: Path) -> None:
    particles = make_particles()
    (file,) = stage(tmp_path, particles).files
    assert file.final == "particles/Micrographs/grid1/mic_0001.mrcs"
    path = tmp_path / file.staged
    assert mrcfile.validate(path)
    with mrcfile.open(path) as stack:
        np.testing.assert_array_equal(stack.data, particles.pixels)
        assert stack.is_image_stack()
        assert float(stack.voxel_size.x) == pytest.approx(3.0)
    content = path.read_bytes()
    assert (file.size_bytes, file.crc32) == (len(content), zlib.crc32(content))


def test_the_rows_point_to_the_images_of_the_stack(tmp_path: Path) -> None:
    staged = stage(tmp_path, make_particles())
    (rows,) = staged.rows
    assert (rows.table, rows.count) == ("particles.star", 3)
    found = published(tmp_path, rows)
    assert found["particles"] == {
        "rlnImageName": [f"{number:06d}@particles/Micrographs/grid1/mic_0001.mrcs" for number in (1, 2, 3)],
        "rlnMicrographName": ["Micrographs/grid1/mic_0001.mrc"] * 3,
        "rlnCoordinateX": [0.25, 2.25, 4.25],
        "rlnCoordinateY": [1.25, 3.25, 5.25],
        "rlnOpticsGroup": [1, 1, 1],
        "streamprepLabel": ["particle"] * 3,
    }
    assert found["optics"] == {
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnOpticsGroup": [1],
        "rlnMicrographOriginalPixelSize": [1.5],
        "rlnVoltage": [200],
        "rlnSphericalAberration": [1.4],
        "rlnAmplitudeContrast": [0.07],
        "rlnImagePixelSize": [3],
        "rlnImageSize": [8],
        "rlnImageDimensionality": [2],
        "rlnCtfDataArePhaseFlipped": [0],
    }


def test_particles_and_noise_are_two_sets(tmp_path: Path) -> None:
    staged = stage(tmp_path, make_particles(2), make_particles(1, "noise"))
    assert [file.final for file in staged.files] == [f"particles/{NAME}.mrcs", f"noise/{NAME}.mrcs"]
    assert len({file.staged for file in staged.files}) == 2
    assert [(rows.table, rows.count) for rows in staged.rows] == [("particles.star", 2), ("noise.star", 1)]
    assert published(tmp_path, staged.rows[1])["particles"]["rlnImageName"] == [f"000001@noise/{NAME}.mrcs"]


def test_every_stack_is_in_a_folder_of_the_sink(tmp_path: Path) -> None:
    sink = ParticleSink(make_config(tmp_path))
    for file in stage(tmp_path, make_particles(2), make_particles(1, "noise")).files:
        assert file.final.partition("/")[0] in sink.folders


def test_a_ctf_makes_columns_and_says_what_the_microscope_was(tmp_path: Path) -> None:
    (rows,) = stage(tmp_path, make_particles(2, ctf=(CTF, dataclasses.replace(CTF, defocus_u_angstrom=1.0)))).rows
    found = published(tmp_path, rows)
    assert found["particles"]["rlnDefocusU"] == [15000.5, 1.0]
    assert found["particles"]["rlnDefocusV"] == [14000.25] * 2
    assert found["particles"]["rlnDefocusAngle"] == [-35.5] * 2
    assert "rlnPhaseShift" not in found["particles"]
    names = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
    assert [found["optics"][name] for name in names] == [[120], [2], [0.08]]


def test_a_phase_shift_makes_a_column(tmp_path: Path) -> None:
    (rows,) = stage(tmp_path, make_particles(2, ctf=(CTF, dataclasses.replace(CTF, phase_shift_deg=90.0)))).rows
    assert published(tmp_path, rows)["particles"]["rlnPhaseShift"] == [0, 90]


def test_without_a_ctf_there_are_no_ctf_columns(tmp_path: Path) -> None:
    (rows,) = stage(tmp_path, make_particles()).rows
    assert not [name for name in rows.columns if "Defocus" in name or "PhaseShift" in name]


def test_phase_flipping_is_told(tmp_path: Path) -> None:
    (rows,) = stage(tmp_path, make_particles(phase_flipped=True)).rows
    assert published(tmp_path, rows)["optics"]["rlnCtfDataArePhaseFlipped"] == [1]


def test_columns_of_the_picks_and_of_operations_are_kept(tmp_path: Path) -> None:
    coordinates = Coordinates(
        np.zeros((2, 2)),
        columns={
            "rlnAutopickFigureOfMerit": np.array(["0.624705", "6.10e-1"], dtype=object),
            "rlnImageName": np.array(["000007@old.mrcs", "000008@old.mrcs"], dtype=object),
            "myNote": np.array(["a b", "c"], dtype=object),
        },
    )
    columns = {"rlnAnglePsi": np.array([1.5, -2.0])}
    (rows,) = stage(tmp_path, make_particles(2, coordinates=coordinates, columns=columns)).rows
    assert rows.columns["rlnAutopickFigureOfMerit"] == ["0.624705", "6.10e-1"]
    found = published(tmp_path, rows)["particles"]
    assert found["myNote"] == ["a b", "c"]
    assert found["rlnAnglePsi"] == [1.5, -2.0]
    assert found["rlnImageName"] == [f"{number:06d}@particles/{NAME}.mrcs" for number in (1, 2)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    particles = make_particles()
    particles.pixels[1, 2, 3] = value
    with pytest.raises(StreamprepError, match="1 of 3 particle images hold values that are not finite"):
        stage(tmp_path, particles)
    assert list(tmp_path.iterdir()) == []


def test_values_beyond_float32_are_not_finite(tmp_path: Path) -> None:
    with (
        np.errstate(over="ignore"),
        pytest.raises(StreamprepError, match="2 of 2 noise images hold values that are not finite"),
    ):
        stage(tmp_path, make_particles(2, "noise", pixels=np.full((2, 8, 8), 1e39)))


@pytest.mark.parametrize("dtype", ["float64", "float16", "int16", "uint8"])
def test_pixels_of_other_types_are_written_as_float32(tmp_path: Path, dtype: str) -> None:
    pixels = make_particles().pixels.astype(dtype)
    (file,) = stage(tmp_path, make_particles(pixels=pixels)).files
    written = mrcfile.read(tmp_path / file.staged)
    assert written.dtype == np.float32
    np.testing.assert_array_equal(written, pixels)


def test_no_particles_stage_nothing(tmp_path: Path) -> None:
    assert stage(tmp_path, make_particles(0), make_particles(0, "noise")) == Staged()
    assert list(tmp_path.iterdir()) == []


def test_a_single_particle_is_a_stack_of_one(tmp_path: Path) -> None:
    staged = stage(tmp_path, make_particles(1))
    with mrcfile.open(tmp_path / staged.files[0].staged) as stack:
        assert (int(stack.header.nz), int(stack.header.ispg)) == (1, 0)
    assert staged.rows[0].count == 1


def test_each_generation_has_a_file_of_its_own(tmp_path: Path) -> None:
    finals = []
    for generation in (1, 2, 3):
        folder = tmp_path / str(generation)
        folder.mkdir()
        staged = stage(folder, make_particles(1), generation=generation)
        finals.append(staged.files[0].final)
        assert staged.rows[0].columns["rlnImageName"] == [f"000001@{finals[-1]}"]
    assert finals == [f"particles/{NAME}{version}.mrcs" for version in ("", "~2", "~3")]


@pytest.mark.parametrize(
    ("image_paths", "output", "prefix"),
    [
        ("output", "out", ""),
        ("session", "out", "out/"),
        ("session", "./deep/out/", "deep/out/"),
        ("session", "/abs/out", "/abs/out/"),
        ("session", "~/out", "{home}/out/"),
        ("absolute", "out", "{folder}/out/"),
        ("absolute", "/abs/out", "/abs/out/"),
        ("absolute", "~/out", "{home}/out/"),
    ],
)
def test_images_are_named_relative_to_where_the_user_works(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    image_paths: Literal["output", "session", "absolute"],
    output: str,
    prefix: str,
) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    (rows,) = stage(tmp_path, make_particles(1), image_paths=image_paths, output=output).rows
    prefix = prefix.format(home="/home/user", folder=tmp_path)
    assert rows.columns["rlnImageName"] == [f"000001@{prefix}particles/{NAME}.mrcs"]


def test_a_stack_is_durable_before_it_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[Path, int]] = []
    real = _files.fsync_file

    def watch(path: Path) -> None:
        synced.append((path, path.stat().st_size))
        real(path)

    monkeypatch.setattr(_files, "fsync_file", watch)
    staged = stage(tmp_path, make_particles(2), make_particles(1, "noise"))
    assert synced == [(tmp_path / file.staged, file.size_bytes) for file in staged.files]


def test_the_sink_is_made_where_boxes_are_extracted(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    (sink,) = sink_module.make_sinks(config)
    assert [table.path for table in sink.tables] == ["particles.star", "noise.star"]
    (sink,) = sink_module.make_sinks(make_config(tmp_path, Sets()))
    assert [table.path for table in sink.tables][2:] == ["particles.xmd", "noise.xmd"]
    assert sink_module.make_sinks(config.model_copy(update={"extract": None})) == []


# --- tables of other programs ----------------------------------------------------------------------------------------

EVERY = Sets(further_tables=["xmd", "cs", "xmd"])


def test_each_set_has_the_tables_that_are_asked_for(tmp_path: Path) -> None:
    staged = stage(tmp_path, make_particles(2), make_particles(1, "noise"), sets=EVERY)
    assert [(rows.table, rows.count) for rows in staged.rows] == [
        *((f"particles.{form}", 2) for form in ("star", "xmd", "cs")),
        *((f"noise.{form}", 1) for form in ("star", "xmd", "cs")),
    ]
    (sink,) = sink_module.make_sinks(make_config(tmp_path, EVERY))
    assert {rows.table for rows in staged.rows} == {table.path for table in sink.tables}


@pytest.mark.parametrize("inverted", [False, True])
def test_whether_particles_are_bright_is_told_to_cryosparc(tmp_path: Path, inverted: bool) -> None:
    config = make_config(tmp_path, EVERY).model_copy(update={"particles": {"invert": {}} if inverted else {}})
    rows = ParticleSink(config).stage(make_result({"particle": make_particles(2)}), tmp_path).rows[2]
    assert rows.columns["blob/sign <f4"] == [-1.0 if inverted else 1.0] * 2


# --- float16 ---------------------------------------------------------------------------------------------------------

HALF = Sets(further_tables=[], stack_dtype="float16")


def normalized(count: int = 20, side: int = 32, seed: int = 3) -> Particles:
    pixels = np.random.default_rng(seed).normal(size=(count, side, side)).astype(np.float32)
    return make_particles(count, pixels=pixels)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (3000.0, 20000.0), (1e-4, 0.0)])
def test_float16_stacks_hold_the_rounded_pixels_and_a_true_header(tmp_path: Path, scale: float, offset: float) -> None:
    particles = normalized(20, 64)
    particles = particles.with_pixels(particles.pixels * np.float32(scale) + np.float32(offset))
    (file,) = stage(tmp_path, particles, sets=HALF).files
    path = tmp_path / file.staged
    with mrcfile.open(path) as stack:
        assert int(stack.header.mode) == 12
        assert stack.is_image_stack()
        np.testing.assert_array_equal(stack.data, particles.pixels.astype(np.float16))
        exact = stack.data.astype(np.float64)
        header = [float(stack.header[name]) for name in ("dmin", "dmax", "dmean", "rms")]
    expected = [exact.min(), exact.max(), exact.mean(), exact.std()]
    np.testing.assert_allclose(header, expected, rtol=1e-6, atol=1e-7 * scale)
    # mrcfile.validate cannot judge the rms of mode 12: MrcObject.validate calls data.std() without a dtype, which numpy
    # sums in float16, until it is inf. So the header was compared above; nothing else may be wrong.
    said = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mrcfile.validate(path, print_file=said)
    faults = [line for line in said.getvalue().splitlines() if line and not line.startswith("Checking")]
    assert all(line.startswith("Data statistics appear to be inaccurate: RMS deviation is") for line in faults), faults


@pytest.mark.parametrize("value", [65504.5, -70000.0, 1e30])
def test_values_beyond_float16_are_refused_and_named(tmp_path: Path, value: float) -> None:
    particles = normalized()
    particles.pixels[4, 2, 3] = value
    with pytest.raises(
        StreamprepError, match=r"particle image 5 of 20 holds .*float16 goes to ±65504.*stack_dtype"
    ) as said:
        stage(tmp_path, particles, sets=HALF)
    assert f"{value:g}" in str(said.value)
    assert list(tmp_path.iterdir()) == []
    assert len(stage(tmp_path, particles).files) == 1


@pytest.mark.parametrize(("scale", "offset"), [(1e-9, 0.0), (1.0, 30000.0)])
def test_images_that_rounding_would_leave_without_contrast_are_refused(
    tmp_path: Path, scale: float, offset: float
) -> None:
    particles = normalized()
    particles.pixels[7] = particles.pixels[7] * scale + offset
    with pytest.raises(StreamprepError, match=r"particle image 8 of 20 has values around .*stack_dtype"):
        stage(tmp_path, particles, sets=HALF)


@pytest.mark.parametrize("value", [0.0, 0.1, 65504.0, 1e-9])
def test_a_constant_image_has_no_contrast_to_lose(tmp_path: Path, value: float) -> None:
    particles = make_particles(2, pixels=np.full((2, 8, 8), value, np.float32))
    (file,) = stage(tmp_path, particles, sets=HALF).files
    assert np.isfinite(mrcfile.read(tmp_path / file.staged)).all()
