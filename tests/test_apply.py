"""Operations on one file, without a session: as a function, and as `streamprep apply`."""

from __future__ import annotations

import errno
import gzip
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import mrcfile
import numpy as np
import pytest

from streamprep import Context, Map, Params, Particles, Reject, operation
from streamprep.apply import apply, make_steps
from streamprep.cli import main
from streamprep.formats import mrc, mrc_output, star
from streamprep.model import ConfigError, InputError
from streamprep.plugin_manager import Plugins, load_plugins
from streamprep.plugins.normalize import normalize

NO_PLUGINS = {"STREAMPREP_LOAD_PLUGINS": ""}


class Amount(Params):
    """By how much."""

    amount: float = 1.0
    """A number."""


@operation("process_particles", order=90, params=Amount)
def add(particles: Particles, params: Amount, ctx: Context) -> Particles:
    """Add a number."""
    return particles.with_pixels(particles.pixels + params.amount)


@operation("process_particles", order=80, params=Amount)
def scale(particles: Particles, params: Amount) -> Particles:
    """Multiply by a number."""
    return particles.with_pixels(particles.pixels * params.amount)


@operation("process_map", order=80, params=Amount, name="scale")
def scale_map(map: Map, params: Amount) -> Map:
    """Multiply by a number."""
    return map.with_pixels(map.pixels * params.amount)


@operation("process_particles", order=1)
def look(particles: Particles, ctx: Context) -> None:
    """Say what was given."""
    ctx.warn(f"defocus {[ctf.defocus_u_angstrom for ctf in particles.ctf or ()]}")
    ctx.warn(f"random {ctx.rng().integers(1 << 30)}")
    ctx.warn(f"pixel size {particles.optics.pixel_size_angstrom:g}")


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Plugins:
    """The built-in operations and those above, loaded as a plugin is."""
    module = ModuleType("streamprep_operations_of_a_test")
    for made in (add, scale, scale_map, look, leave, refuse, break_down):
        setattr(module, made.__name__, made)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    loaded = load_plugins(environ=NO_PLUGINS, extra=[module.__name__], sinks=False)
    assert not loaded.broken
    return loaded


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "in.mrcs"
    mrc_output.write(path, images(), pixel_size_angstrom=1.5, stack=True)
    return path


def images() -> np.ndarray:
    return np.random.default_rng(0).normal(5, 2, (3, 8, 8)).astype(np.float32)


Apply = Callable[..., list[str]]


@pytest.fixture
def run(plugins: Plugins, stack: Path) -> Apply:
    """Run operations from ``in.mrcs`` to ``out.mrcs``, or as said."""

    def on_file(names: str, *overrides: str, source: Path = stack, target: str = "out.mrcs", **more: Any) -> list[str]:
        more = {"device": "cpu", **more}
        return apply(names.split(","), source, stack.parent / target, plugins, overrides=overrides, **more)

    return on_file


# --- what it computes ------------------------------------------------------------------------------------------------


def test_operations_run_in_the_order_given(run: Apply, stack: Path) -> None:
    out = stack.with_name("out.mrcs")
    run("add,scale", "add.amount=2", "scale.amount=3")
    np.testing.assert_allclose(mrc.read(out).pixels, (images() + 2) * 3, rtol=1e-6)
    run("scale,add", "add.amount=2", "scale.amount=3")
    np.testing.assert_allclose(mrc.read(out).pixels, images() * 3 + 2, rtol=1e-6)
    run("add,add,scale")
    np.testing.assert_allclose(mrc.read(out).pixels, images() + 2, rtol=1e-6)


def test_a_stack_stays_a_stack(run: Apply, stack: Path) -> None:
    assert run("normalize,invert", "normalize.method=new") == []
    out = stack.with_name("out.mrcs")
    np.testing.assert_allclose(mrc.read(out).pixels, -normalize(images(), method="new")[0], atol=1e-6)
    header = mrc.read_header(out)
    assert (header.space_group, header.mode, header.pixel_size_angstrom) == (0, 2, pytest.approx(1.5))
    with mrcfile.open(out) as file:
        assert file.get_labels() == ["streamprep", "streamprep: normalize, invert"]


@pytest.mark.parametrize("ending", [".mrc", ".map"])
def test_a_map_runs_in_the_lane_of_maps(run: Apply, tmp_path: Path, ending: str) -> None:
    source = tmp_path / f"volume{ending}"
    mrc_output.write(source, images(), pixel_size_angstrom=1.5, stack=False)
    run("scale,invert", "scale.amount=2", source=source, target="out.mrc")
    np.testing.assert_array_equal(mrc.read(tmp_path / "out.mrc").pixels, -2 * images())
    assert mrc.read_header(tmp_path / "out.mrc").space_group == 1


def test_a_real_map_keeps_its_place_and_turns_to_the_usual_axes(run: Apply, data: Path, tmp_path: Path) -> None:
    """Its columns run along z, its rows along x, its sections along y; the cell is a crystal's."""
    source = data / "maps" / "EMD-3001.map"
    run("invert", source=source, target="out.map")
    with mrcfile.open(source) as old, mrcfile.open(tmp_path / "out.map") as new:
        assert mrcfile.validate(tmp_path / "out.map")
        np.testing.assert_array_equal(new.data, -old.data.transpose(2, 0, 1))
        assert [int(new.header[name]) for name in ("mapc", "mapr", "maps")] == [1, 2, 3]
        assert [int(new.header[f"n{axis}start"]) for axis in "xyz"] == [-21, -12, 0]
        for name in ("mx", "my", "mz", "cella", "cellb", "origin", "ispg", "nsymbt"):
            assert new.header[name] == old.header[name], name
        assert new.extended_header.tobytes() == old.extended_header.tobytes()
        assert new.get_labels() == [*(label.rstrip() for label in old.get_labels()), "streamprep: invert"]
        assert float(new.header.dmean) == pytest.approx(-float(old.header.dmean), rel=1e-4)


def test_masks_are_written_beside_the_map_with_its_place(run: Apply, data: Path, tmp_path: Path) -> None:
    source = data / "maps" / "EMD-3001.map"
    run("segment,invert", "segment.save_mask=true", source=source, target="out.map")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mrcs", "out.map", "out_mask.map"]
    done, mask = (mrc.read(tmp_path / name).pixels for name in ("out.map", "out_mask.map"))
    np.testing.assert_array_equal(done, np.where(mask > 0, -mrc.read(source).pixels, 0))
    assert 0 < mask.sum() < mask.size
    with mrcfile.open(tmp_path / "out.map") as one, mrcfile.open(tmp_path / "out_mask.map") as other:
        assert mrcfile.validate(tmp_path / "out_mask.map")
        for name in ("mx", "my", "mz", "cella", "cellb", "origin", "nxstart", "nystart", "nzstart", "ispg"):
            assert one.header[name] == other.header[name], name


def test_a_mask_never_takes_the_place_of_the_input(run: Apply, tmp_path: Path) -> None:
    source = tmp_path / "out_mask.mrc"
    mrc_output.write(source, images(), pixel_size_angstrom=1.5, stack=False)
    before = source.read_bytes()
    with pytest.raises(ConfigError, match=r"out_mask\.mrc: the mask of out\.mrc would be written here, .* the input"):
        run("segment", "segment.save_mask=true", source=source, target="out.mrc")
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mrcs", "out_mask.mrc"]
    run("segment", "segment.save_mask=true", source=source, target="out_mask.mrc")
    assert (tmp_path / "out_mask_mask.mrc").exists()


def test_a_mask_never_takes_the_place_of_one_that_was_read(run: Apply, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32)
    for name in ("map.mrc", "out_mask.mrc"):
        mrc_output.write(tmp_path / name, voxels, pixel_size_angstrom=1.5, stack=False)
    before = (tmp_path / "out_mask.mrc").read_bytes()
    mask = f"laplacian.mask={tmp_path / 'out_mask.mrc'}"
    with pytest.raises(ConfigError, match=r"out_mask\.mrc: .* over a file that was read; give another output"):
        run("laplacian,segment", mask, "segment.save_mask=true", source=tmp_path / "map.mrc", target="out.mrc")
    assert (tmp_path / "out_mask.mrc").read_bytes() == before
    assert not (tmp_path / "out.mrc").exists()


def test_a_file_that_operations_read_is_never_the_output(run: Apply, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32)
    for name in ("map.mrc", "mask.mrc"):
        mrc_output.write(tmp_path / name, voxels, pixel_size_angstrom=1.5, stack=False)
    (tmp_path / "link.mrc").symlink_to("mask.mrc")
    before = (tmp_path / "mask.mrc").read_bytes()
    for target in ("mask.mrc", "link.mrc"):
        with pytest.raises(ConfigError, match=r"would be written over .*mask\.mrc, which the operations read"):
            run("laplacian", f"laplacian.mask={tmp_path / 'mask.mrc'}", source=tmp_path / "map.mrc", target=target)
    assert (tmp_path / "mask.mrc").read_bytes() == before
    run("invert", source=tmp_path / "map.mrc", target="map.mrc")
    np.testing.assert_array_equal(mrc.read(tmp_path / "map.mrc").pixels, -voxels)


@pytest.mark.parametrize("name", ["randomize_phases", "laplacian", "normalize_background", "invert", "threshold"])
def test_maps_with_values_that_cannot_be_squared_are_refused(run: Apply, tmp_path: Path, name: str) -> None:
    voxels = np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32) * np.float32(1e30)
    mrc_output.write(tmp_path / "map.mrc", voxels, pixel_size_angstrom=1.5, stack=False)
    with pytest.raises(InputError, match=r"map\.mrc: it holds values from .*; allowed are up to ±1e\+18"):
        run(name, source=tmp_path / "map.mrc", target="out.mrc")
    assert not (tmp_path / "out.mrc").exists()


def test_a_map_of_any_kind_of_voxels_is_read_in_slabs(run: Apply, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-99, 99, (70, 64, 65)).astype(np.int16)
    for dtype in (np.int8, np.int16, np.float32):
        source = tmp_path / f"volume_{np.dtype(dtype).name}.mrc"
        mrc_output.write(source, voxels.astype(dtype), pixel_size_angstrom=1.5, stack=False)
        run("invert", source=source, target="out.mrc")
        with mrcfile.open(tmp_path / "out.mrc") as file:
            np.testing.assert_array_equal(file.data, -voxels.astype(np.float32))
            assert mrcfile.validate(tmp_path / "out.mrc")
            assert file.is_volume()


def test_an_operation_of_the_other_lane_is_refused_and_says_where_it_works(run: Apply, tmp_path: Path) -> None:
    source = tmp_path / "volume.mrc"
    mrc_output.write(source, images(), pixel_size_angstrom=1.5, stack=False)
    with pytest.raises(ConfigError, match="unknown operation(.|\n)*normalize works on particles"):
        run("normalize", source=source, target="out.mrc")
    with pytest.raises(ConfigError, match="unknown operation(.|\n)*pick_noise works on coordinates"):
        run("pick_noise")


def test_one_image_is_a_stack_of_one(run: Apply, tmp_path: Path) -> None:
    source = tmp_path / "one.mrcs"
    mrc_output.write(source, images()[:1], pixel_size_angstrom=1.5, stack=True)
    run("invert", source=source)
    np.testing.assert_array_equal(mrc.read(tmp_path / "out.mrcs").pixels.reshape(1, 8, 8), -images()[:1])


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float16"])
def test_any_kind_of_pixel_becomes_float(run: Apply, tmp_path: Path, dtype: str) -> None:
    source = tmp_path / "counts.mrcs"
    mrc_output.write(source, np.arange(48).reshape(3, 4, 4).astype(dtype), pixel_size_angstrom=1.5, stack=True)
    run("invert", source=source)
    np.testing.assert_array_equal(mrc.read(tmp_path / "out.mrcs").pixels, -np.arange(48.0).reshape(3, 4, 4))


def test_input_and_output_may_be_one_file(run: Apply, stack: Path) -> None:
    run("invert", target=stack.name)
    np.testing.assert_array_equal(mrc.read(stack).pixels, -images())


def test_warnings_of_operations_come_back(run: Apply, tmp_path: Path) -> None:
    source = tmp_path / "flat.mrcs"
    mrc_output.write(source, np.ones((2, 8, 8), dtype=np.float32), pixel_size_angstrom=1.5, stack=True)
    assert run("normalize", source=source) == ["2 of 2 particle images are constant; they were left at mean zero"]


def test_the_seed_decides_chance(run: Apply) -> None:
    chance = [run("look", seed=seed)[1] for seed in (0, 0, 1)]
    assert chance[0] == chance[1] != chance[2]


# --- pixel size and CTF ----------------------------------------------------------------------------------------------


def without_pixel_size(path: Path) -> Path:
    with mrcfile.new(path) as file:
        file.set_data(images())
        file.set_image_stack()
    return path


def test_a_pixel_size_that_nobody_knows_is_asked_for(run: Apply, tmp_path: Path) -> None:
    source = without_pixel_size(tmp_path / "bare.mrcs")
    with pytest.raises(InputError, match=r"bare\.mrcs: its header has no pixel size; give --pixel-size-angstrom"):
        run("invert", source=source)
    run("invert", source=source, pixel_size_angstrom=2.5)
    assert mrc.read_header(tmp_path / "out.mrcs").pixel_size_angstrom == pytest.approx(2.5)


def test_a_given_pixel_size_wins_over_the_header(run: Apply) -> None:
    assert run("look")[2] == "pixel size 1.5"
    assert run("look", pixel_size_angstrom=0.9)[2] == "pixel size 0.9"


def ctf_table(path: Path, rows: list[str], columns: str = "DefocusU DefocusV DefocusAngle") -> Path:
    names = "".join(f"_rln{name}\n" for name in columns.split())
    path.write_text(f"data_particles\n\nloop_\n{names}" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_each_image_gets_the_ctf_of_its_row(run: Apply, tmp_path: Path) -> None:
    table = ctf_table(tmp_path / "ctf.star", ["11000 1 0", "12000 1 0", "13000 1 0"])
    assert run("look", ctf=table)[0] == "defocus [11000.0, 12000.0, 13000.0]"
    assert run("look")[0] == "defocus []"


def test_rows_go_by_the_number_of_their_image(run: Apply, tmp_path: Path) -> None:
    rows = ["3@in.mrcs 13000 1 0", "1@in.mrcs 11000 1 0", "2@in.mrcs 12000 1 0"]
    table = ctf_table(tmp_path / "ctf.star", rows, "ImageName DefocusU DefocusV DefocusAngle")
    assert run("look", ctf=table)[0] == "defocus [11000.0, 12000.0, 13000.0]"


def test_another_number_of_rows_than_images_is_refused(run: Apply, tmp_path: Path) -> None:
    table = ctf_table(tmp_path / "ctf.star", ["11000 1 0", "12000 1 0"])
    with pytest.raises(InputError, match=r"ctf\.star: it has 2 rows, the stack 3 images; they must be equal"):
        run("look", ctf=table)


def test_a_map_has_no_ctf(run: Apply, tmp_path: Path) -> None:
    source = tmp_path / "volume.mrc"
    mrc_output.write(source, images(), pixel_size_angstrom=1.5, stack=False)
    table = ctf_table(tmp_path / "ctf.star", ["11000 1 0"])
    with pytest.raises(ConfigError, match=r"ctf\.star: a CTF belongs to particles; .*volume\.mrc is a map"):
        run("invert", source=source, target="out.mrc", ctf=table)


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "override", "said"),
    [
        ("normalise", "", "normalise: unknown operation; did you mean normalize?"),
        ("normalize,", "", "operations 'normalize,': a name is missing; separate names by single commas"),
        ("", "", "operations '': a name is missing"),
        (
            "normalize",
            "normalise.method=new",
            "normalise is not one of the operations to apply; did you mean normalize?",
        ),
        ("normalize", "scale.amount=2", "scale is not one of the operations to apply"),
        ("normalize", "normalize=new", "--set normalize=new: write it as OPERATION.KEY=VALUE"),
        ("normalize", "normalize.method.old=new", "write it as OPERATION.KEY=VALUE"),
        ("normalize", "normalize.method", "--set normalize.method: write it as"),
        ("normalize", "normalize.metod=new", "normalize: metod: unknown key; did you mean method?"),
        ("normalize", "normalize.method=neu", "method = 'neu': input should be 'old', 'new' or 'ramp'"),
        ("normalize", "normalize.background_radius_px=5", "background_radius_px = 5 is above half the box (4 of 8 px)"),
        ("scale", "scale.amount=nan", "amount = nan"),
    ],
)
def test_what_cannot_run_says_why_and_writes_nothing(
    run: Apply, stack: Path, names: str, override: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(names, *[override] if override else [])
    assert said in str(caught.value)
    assert not stack.with_name("out.mrcs").exists()


def test_steps_take_defaults_from_the_operations(plugins: Plugins) -> None:
    first, second = make_steps(["scale", "normalize"], ["scale.amount=3"], "particles", plugins)
    assert first.params == Amount(amount=3)
    assert second.params.model_dump() == {"method": "ramp", "background_radius_px": -1}


@pytest.mark.parametrize("name", ["none.mrcs", "none/none.mrcs"])
def test_a_missing_input_is_named(run: Apply, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"none\.mrcs: no such file"):
        run("invert", source=tmp_path / name)


def test_a_missing_ctf_table_is_named(run: Apply, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.star: no such file"):
        run("invert", ctf=tmp_path / "none.star")


def test_a_folder_is_no_file(run: Apply, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this is a folder, not a file"):
        run("invert", source=tmp_path)
    with pytest.raises(ConfigError, match="this is a folder; give the name of a file to write"):
        run("invert", target=".")


def test_an_output_that_is_no_regular_file_is_refused(run: Apply, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe: this is no regular file; give the name of a file to write"):
        run("invert", target="pipe")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("there", [True, False])
def test_an_output_that_is_a_link_is_written_where_it_points_to(run: Apply, tmp_path: Path, there: bool) -> None:
    (tmp_path / "far").mkdir()
    pointed = tmp_path / "far" / "real.mrcs"
    if there:
        pointed.write_bytes(b"old")
    (tmp_path / "out.mrcs").symlink_to(pointed)
    run("invert")
    assert (tmp_path / "out.mrcs").readlink() == pointed
    np.testing.assert_array_equal(mrc.read(pointed).pixels, -images())


def test_an_output_that_cannot_be_written_is_named_and_leaves_nothing(
    run: Apply, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mrc_output.StackWriter, "write", full)
    with pytest.raises(ConfigError, match=r"/out\.mrcs: cannot be written: No space left on device"):
        run("invert")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mrcs"]


@pytest.mark.parametrize("target", ["out.txt", "out", "out.map", "out.mrc", "out.mrcs.bak"])
def test_a_stack_is_written_to_a_stack(run: Apply, tmp_path: Path, target: str) -> None:
    with pytest.raises(ConfigError, match=rf"/{target}: .*in\.mrcs holds a stack of images; the output must end in "):
        run("invert", target=target)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mrcs"]


def test_a_map_is_written_to_a_map(run: Apply, tmp_path: Path) -> None:
    source = tmp_path / "volume.mrc"
    mrc_output.write(source, images(), pixel_size_angstrom=1.5, stack=False)
    for target in ("out.mrcs", "out.txt"):
        with pytest.raises(ConfigError, match=r"holds a map; the output must end in \.mrc or \.map or \.ccp4"):
            run("invert", source=source, target=target)
    for target in ("out.mrc", "out.map", "out.CCP4"):
        run("invert", source=source, target=target)


@pytest.mark.parametrize("target", ["out.mrcs", "out.mrc"])
def test_a_single_image_may_be_written_as_either(run: Apply, tmp_path: Path, target: str) -> None:
    source = tmp_path / "mic.mrc"
    with mrcfile.new(source) as file:
        file.set_data(images()[0, :, :6])
        file.voxel_size = 1.5
    run("invert", source=source, target=target)
    np.testing.assert_array_equal(mrc.read(tmp_path / target).pixels.reshape(8, 6), -images()[0, :, :6])
    with pytest.raises(ConfigError, match=r"holds a single image; the output must end in \.mrcs or \.mrc"):
        run("invert", source=source, target="out.map")


def test_the_folder_of_the_output_must_exist(run: Apply, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none/out\.mrcs: its folder does not exist"):
        run("invert", target="none/out.mrcs")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.txt", b"hello", "not a stack or map; known endings are .mrcs, .mrc, .map and .ccp4"),
        ("empty.mrcs", b"", "the file is empty"),
        ("short.mrcs", b"hello", "has 1024 bytes, this file has only 5"),
        ("zero.mrcs", bytes(2048), "header"),
    ],
)
def test_a_file_that_is_no_image_says_so(run: Apply, tmp_path: Path, name: str, content: bytes, said: str) -> None:
    source = tmp_path / name
    source.write_bytes(content)
    with pytest.raises(InputError) as caught:
        run("invert", source=source)
    assert said in str(caught.value)
    assert str(source) in str(caught.value)


def test_a_truncated_stack_is_refused(run: Apply, stack: Path) -> None:
    stack.write_bytes(stack.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"in\.mrcs: truncated"):
        run("invert")


def test_a_gpu_that_is_missing_stops_it(run: Apply, stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ConfigError, match="device = 'gpu' was asked for"):
        run("invert", device="gpu")
    assert not stack.with_name("out.mrcs").exists()


@pytest.mark.gpu
def test_a_gpu_gives_the_same_stack(run: Apply, stack: Path) -> None:
    pytest.importorskip("cupy")
    run("normalize,invert", device="gpu")
    on_gpu = mrc.read(stack.with_name("out.mrcs")).pixels
    np.testing.assert_allclose(on_gpu, -normalize(images())[0], atol=1e-5)


@operation("process_particles", order=70, params=Amount)
def leave(particles: Particles, params: Amount) -> Particles:
    """Leave some of the first images."""
    return particles.part(0, int(params.amount))


@operation("process_particles", order=71)
def refuse(particles: Particles) -> Particles:
    """Refuse it."""
    raise Reject("too thick")


@operation("process_particles", order=72)
def break_down(particles: Particles) -> Particles:
    """Have trouble with a file of its own."""
    raise OSError(errno.EIO, "Input/output error", "table of gains")


def test_an_operation_may_leave_fewer_images(run: Apply, stack: Path) -> None:
    run("leave", "leave.amount=2")
    np.testing.assert_array_equal(mrc.read(stack.with_name("out.mrcs")).pixels, images()[:2])
    with pytest.raises(InputError, match=r"in\.mrcs: the operations leave no image of it"):
        run("leave", "leave.amount=0")


def test_a_rejected_stack_is_told_with_the_reason(run: Apply, stack: Path) -> None:
    with pytest.raises(InputError, match=r"in\.mrcs: an operation rejects it: too thick"):
        run("refuse")
    assert [path.name for path in stack.parent.iterdir()] == ["in.mrcs"]


def test_trouble_with_another_file_is_not_blamed_on_the_output(run: Apply) -> None:
    with pytest.raises(OSError, match="table of gains"):
        run("break_down")


def test_what_is_told_of_each_image_stands_in_a_table_beside_the_stack(run: Apply, stack: Path) -> None:
    y, x = np.indices((24, 24)) - 12
    blob = np.exp(-((x - 3) ** 2 + (y + 2) ** 2) / 8)
    mrc_output.write(stack, np.stack([blob, 2 * blob]).astype(np.float32), pixel_size_angstrom=1.5, stack=True)
    run("center")
    (loop,) = star.read_loops(stack.with_name("out_particles.star"))
    assert loop.text("rlnImageName") == ["000001@out.mrcs", "000002@out.mrcs"]
    np.testing.assert_allclose(loop.floats("streamprepShiftXAngst"), -4.5, atol=0.01)
    np.testing.assert_allclose(loop.floats("streamprepShiftYAngst"), 3.0, atol=0.01)
    assert sorted(path.name for path in stack.parent.iterdir()) == ["in.mrcs", "out.mrcs", "out_particles.star"]


def test_a_compressed_stack_is_a_stack(run: Apply, stack: Path) -> None:
    packed = stack.with_name("packed.mrcs.gz")
    packed.write_bytes(gzip.compress(stack.read_bytes()))
    run("invert", source=packed)
    np.testing.assert_array_equal(mrc.read(stack.with_name("out.mrcs")).pixels, -images())


# --- through the command line ----------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of ``streamprep apply …`` in this process."""
    monkeypatch.setattr(sys, "argv", ["streamprep", "apply", *map(str, arguments)])
    monkeypatch.setenv("STREAMPREP_LOAD_PLUGINS", "")
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_the_command_applies_operations(
    stack: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = stack.with_name("out.mrcs")
    code = command(
        monkeypatch, "normalize, invert", stack, out, "--set", "normalize.method=old", "--set",
        "normalize.background_radius_px=2", "--pixel-size-angstrom", "3", "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    np.testing.assert_allclose(mrc.read(out).pixels, -normalize(images(), method="old")[0], atol=1e-6)
    assert mrc.read_header(out).pixel_size_angstrom == pytest.approx(3)
    assert capsys.readouterr().err == ""


def test_the_command_shows_warnings(
    stack: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mrc_output.write(stack, np.ones((2, 8, 8), dtype=np.float32), pixel_size_angstrom=1.5, stack=True)
    assert command(monkeypatch, "normalize", stack, stack.with_name("out.mrcs"), "--device", "cpu") == 0
    assert capsys.readouterr().err == "warning: 2 of 2 particle images are constant; they were left at mean zero\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["normalise", "in.mrcs", "out.mrcs"], "did you mean normalize?"),
        (["normalize", "none.mrcs", "out.mrcs"], "none.mrcs: no such file"),
        (["normalize", "in.mrcs", "out.mrcs", "--set", "normalize.x=1"], "x: unknown key"),
        (["normalize", "in.mrcs", "out.mrcs", "--device", "tpu"], "--device tpu: allowed are auto, cpu and gpu"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_message(
    stack: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(stack.parent)
    assert command(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert "Traceback" not in error
