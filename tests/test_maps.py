"""Maps in sessions: each processed once, with a true header; what cannot be used fails alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from streamprep.config import load
from streamprep.engine import Engine
from streamprep.executors import InlineExecutor
from streamprep.formats import mrc, mrc_output
from streamprep.hookspecs import hookimpl
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.simulate import Acquisition, simulate
from streamprep.snapshot import Snapshot
from streamprep.testing import tiny_map
from tests.outputs import check_invariants


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A session of maps, so far without any."""
    (tmp_path / "Maps").mkdir()
    (tmp_path / "streamprep.toml").write_text(
        '[session]\nwatch = ["Maps"]\nsettle_seconds = 0\ndevice = "cpu"\n[maps.invert]\n'
    )
    return tmp_path


def put(folder: Path, name: str, pixels: np.ndarray, pixel_size_angstrom: float = 1.5) -> Path:
    path = folder / "Maps" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    mrc_output.write(path, pixels, pixel_size_angstrom=pixel_size_angstrom, stack=False, label="of the test")
    return path


def once(folder: Path, *overrides: str) -> Snapshot:
    config = load(folder / "streamprep.toml", list(overrides))
    plugins = load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""})
    return Engine(config, plugins, resolve(config, plugins), once=True, executor=InlineExecutor).run()


def written(folder: Path) -> list[str]:
    output = folder / "streamprep_out"
    return sorted(
        path.relative_to(output).as_posix() for path in output.rglob("*.*") if ".streamprep" not in path.parts
    )


def test_each_map_is_processed_once(folder: Path) -> None:
    first, second = tiny_map(16, 1).pixels, np.random.default_rng(0).random((5, 8, 6)).astype(np.float32)
    put(folder, "first.mrc", first)
    put(folder, "deeper/second.map", second, 2.5)
    last = once(folder)
    assert (last.jobs, last.items) == ({"done": 2}, "maps")
    assert written(folder) == ["maps/Maps/deeper/second.mrc", "maps/Maps/first.mrc"]
    output = folder / "streamprep_out"
    image = mrc.read(output / "maps/Maps/first.mrc")
    np.testing.assert_array_equal(image.pixels, -first)
    image = mrc.read(output / "maps/Maps/deeper/second.mrc")
    np.testing.assert_array_equal(image.pixels, -second)
    assert image.pixel_size_angstrom == pytest.approx(2.5)
    assert b"of the test" in (output / "maps/Maps/first.mrc").read_bytes()[:1024]
    stamps = [(output / name).stat().st_mtime_ns for name in written(folder)]
    assert once(folder).jobs == {"done": 2}
    assert [(output / name).stat().st_mtime_ns for name in written(folder)] == stamps


def test_a_rewritten_map_is_a_new_version(folder: Path) -> None:
    put(folder, "a.mrc", tiny_map(16, 1).pixels)
    once(folder)
    put(folder, "a.mrc", tiny_map(18, 2).pixels)
    assert once(folder).jobs["done"] == 1
    output = folder / "streamprep_out"
    np.testing.assert_array_equal(mrc.read(output / "maps/Maps/a~2.mrc").pixels, -tiny_map(18, 2).pixels)


@pytest.mark.filterwarnings("ignore:Data array contains NaN values")
def test_maps_that_cannot_be_used_fail_with_the_reason(folder: Path) -> None:
    put(folder, "good.mrc", tiny_map(12).pixels)
    broken = tiny_map(12).pixels.copy()
    broken[3, 4, 5] = np.nan
    put(folder, "nan.mrc", broken)
    put(folder, "scale.mrc", tiny_map(12).pixels, 0.0)
    cut = put(folder, "cut.mrc", tiny_map(12).pixels)
    os.truncate(cut, 2000)
    last = once(folder)
    assert last.jobs == {"done": 1, "failed": 2}
    reasons = {failure["item"]: failure["reason"] for failure in last.failures}
    assert "values that are not finite" in reasons["Maps/nan"]
    assert "no pixel size; set [optics] pixel_size_angstrom" in reasons["Maps/scale"]
    assert any("truncated" in reason for reason in reasons.values())


def test_maps_and_micrographs_in_one_session(tmp_path: Path) -> None:
    simulate(tmp_path, Acquisition(micrographs=2, size_px=256, particles=3, box_size_px=32))
    config = tmp_path / "streamprep.toml"
    text = config.read_text().replace('"Coordinates"]', '"Coordinates", "Maps"]')
    config.write_text(f"{text}\n[maps.invert]\n")
    last = once(tmp_path, "session.settle_seconds=0", "session.device=cpu")
    assert (last.jobs, last.items) == ({"done": 3}, "items")
    assert {"particles.star", "maps/Maps/particle.mrc"} <= set(written(tmp_path))


def test_a_session_without_operations_on_maps_says_why_it_takes_none(folder: Path) -> None:
    put(folder, "a.mrc", tiny_map(12).pixels)
    config = folder / "streamprep.toml"
    config.write_text(config.read_text().replace("[maps.invert]", "[coordinates.pick_noise]\nbox_size_px = 32"))
    last = once(folder)
    assert last.rejected == 1


def test_maps_wait_for_the_files_that_their_operations_name(folder: Path) -> None:
    volume = tiny_map(16, 3).pixels
    put(folder, "a.mrc", volume)
    changes = ("maps.symmetrize.group=c2", "maps.symmetrize.mask=masks/m.mrc")
    last = once(folder, *changes)
    assert (last.jobs, last.waiting_count) == ({}, 1)
    ((_, reason, _),) = last.waiting
    assert "waits for masks/m.mrc ([maps.symmetrize] mask)" in reason
    (folder / "masks").mkdir()
    mask = np.ones((16, 16, 16), np.float32)
    mrc_output.write(folder / "masks/m.mrc", mask, pixel_size_angstrom=1.5, stack=False)
    assert once(folder, *changes).jobs == {"done": 1}
    done = mrc.read(folder / "streamprep_out/maps/Maps/a.mrc").pixels
    turned = np.roll(np.flip(done, (1, 2)), (1, 1), (1, 2))
    np.testing.assert_allclose(done[:, 1:, 1:], turned[:, 1:, 1:], atol=1e-5)


def test_maps_wait_until_a_mask_that_is_being_copied_is_whole(folder: Path) -> None:
    put(folder, "a.mrc", tiny_map(16, 3).pixels)
    whole = put(folder, "../m.mrc", np.zeros((16, 16, 16), np.float32)).read_bytes()
    (folder / "m.mrc").write_bytes(whole[:3000])
    last = once(folder, "maps.laplacian.mask=m.mrc")
    assert (last.jobs, last.waiting_count) == ({}, 1)
    (folder / "m.mrc").write_bytes(whole)
    assert once(folder, "maps.laplacian.mask=m.mrc").jobs == {"done": 1}


def test_maps_are_made_anew_when_the_mask_is_rewritten(folder: Path) -> None:
    volume = tiny_map(16, 3).pixels
    put(folder, "a.mrc", volume)
    mask = put(folder, "../m.mrc", np.zeros((16, 16, 16), np.float32))
    changes = ("maps.symmetrize.group=c2", "maps.symmetrize.mask=m.mrc", "maps.invert.order=1")
    assert once(folder, *changes).jobs == {"done": 1}
    output = folder / "streamprep_out/maps/Maps"
    np.testing.assert_allclose(mrc.read(output / "a.mrc").pixels, -volume, atol=1e-6)  # the mask leaves all as it is
    assert once(folder, *changes).jobs == {"done": 1}
    assert not (output / "a~2.mrc").exists()
    put(folder, "../m.mrc", np.ones((16, 16, 16), np.float32))
    os.utime(mask, ns=(1, 1))
    assert once(folder, *changes).jobs == {"done": 1, "superseded": 1}
    done = mrc.read(output / "a~2.mrc").pixels
    turned = np.roll(np.flip(done, (1, 2)), (1, 1), (1, 2))
    np.testing.assert_allclose(done[:, 1:, 1:], turned[:, 1:, 1:], atol=1e-5)
    check_invariants(folder / "streamprep_out")


def test_what_is_done_stays_when_the_mask_goes(folder: Path) -> None:
    put(folder, "a.mrc", tiny_map(16, 3).pixels)
    mask = put(folder, "../m.mrc", np.zeros((16, 16, 16), np.float32))
    once(folder, "maps.laplacian.mask=m.mrc")
    mask.unlink()
    put(folder, "b.mrc", tiny_map(16, 4).pixels)
    last = once(folder, "maps.laplacian.mask=m.mrc")
    assert (last.jobs, last.waiting_count) == ({"done": 1}, 1)


def test_a_map_that_failed_for_its_mask_is_tried_again_with_another(folder: Path) -> None:
    put(folder, "a.mrc", tiny_map(16, 3).pixels)
    put(folder, "../m.mrc", np.zeros((12, 12, 12), np.float32))
    last = once(folder, "maps.laplacian.mask=m.mrc")
    assert last.jobs == {"failed": 1}
    assert "12" in last.failures[0]["reason"]
    put(folder, "../m.mrc", np.zeros((16, 16, 16), np.float32))
    assert once(folder, "maps.laplacian.mask=m.mrc").jobs == {"done": 1, "superseded": 1}


def test_a_mask_in_a_watched_folder_is_no_map_to_process(folder: Path) -> None:
    put(folder, "a.mrc", tiny_map(16, 3).pixels)
    put(folder, "m.mrc", np.zeros((16, 16, 16), np.float32))
    last = once(folder, "maps.laplacian.mask=Maps/m.mrc")
    assert (last.jobs, last.failed, last.unknown_files) == ({"done": 1}, 0, 1)
    assert not (folder / "streamprep_out/maps/Maps/m.mrc").exists()


def images_with_table(folder: Path, stack: str) -> Path:
    """A table of 4 images of size 16; their stack is not there yet."""
    names = [f"{number}@{stack}" for number in range(1, 5)]
    table = folder / "images.star"
    table.write_text(
        "data_optics\nloop_\n_rlnOpticsGroup\n_rlnImagePixelSize\n1 1.5\n\n"
        "data_particles\nloop_\n_rlnImageName\n_rlnOpticsGroup\n" + "".join(f"{name} 1\n" for name in names)
    )
    return table


def test_maps_wait_for_the_stacks_that_a_table_of_images_names(folder: Path) -> None:
    put(folder, "a.mrc", tiny_map(16, 3).pixels)
    images_with_table(folder, "stack.mrcs")
    changes = ("maps.adjust_gray.images=images.star", "maps.adjust_gray.method=moments")
    last = once(folder, *changes)
    assert (last.failed, last.waiting_count) == (0, 1)
    assert "stack.mrcs" in last.waiting[0][1]
    stack = np.random.default_rng(1).normal(size=(4, 16, 16)).astype(np.float32)
    mrc_output.write(folder / "stack.mrcs", stack, pixel_size_angstrom=1.5, stack=True)
    whole = (folder / "stack.mrcs").read_bytes()
    (folder / "stack.mrcs").write_bytes(whole[:3000])
    last = once(folder, *changes)
    assert (last.failed, last.waiting_count) == (0, 1)
    assert "not whole" in last.waiting[0][1]
    (folder / "stack.mrcs").write_bytes(whole)
    last = once(folder, *changes)
    assert (last.jobs["done"], last.waiting_count) == (1, 0)


@pytest.mark.parametrize("name", ["a.mrc", "nan.mrc"])
def test_values_that_float32_cannot_square_are_refused(folder: Path, name: str) -> None:
    volume = tiny_map(12).pixels.copy()
    volume[1, 2, 3] = 3e19 if name == "a.mrc" else np.inf
    put(folder, name, volume)
    last = once(folder, "maps.normalize_background.order=2")
    assert last.jobs == {"failed": 1}
    said = last.failures[0]["reason"]
    assert ("3e+19" in said and "1e+18" in said) if name == "a.mrc" else "not finite" in said


def test_a_running_session_goes_on_when_the_awaited_file_comes(folder: Path) -> None:
    put(folder, "a.mrc", tiny_map(16, 3).pixels)
    config = load(
        folder / "streamprep.toml",
        ["maps.laplacian.mask=m.mrc", "session.rescan_seconds=0.2", "session.poll_seconds=0.1"],
    )
    plugins = load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""})
    engine = Engine(config, plugins, resolve(config, plugins), once=False, executor=InlineExecutor)
    seen: list[str] = []

    class Hand:
        """Brings the mask once the map waits, and ends the session once it is done."""

        @hookimpl
        def snapshot_taken(self, snapshot: Snapshot) -> None:
            mask = folder / "m.mrc"
            if snapshot.waiting_count == 1 and not mask.exists():
                seen.append("waited")
                mrc_output.write(mask, np.ones((16, 16, 16), np.float32) * 0, pixel_size_angstrom=1.5, stack=False)
            if snapshot.jobs.get("done") == 1:
                engine.stop()

    plugins.manager.register(Hand())
    assert engine.run().jobs == {"done": 1}
    assert seen == ["waited"]


def test_masks_are_maps_of_their_own(folder: Path) -> None:
    put(folder, "a.mrc", tiny_map(16, 1).pixels)
    once(folder, "maps.segment.save_mask=true")
    assert "maps/Maps/a_mask.mrc" in written(folder)
    mask = mrc.read(folder / "streamprep_out/maps/Maps/a_mask.mrc").pixels
    assert set(np.unique(mask).tolist()) == {0, 1}
    done = mrc.read(folder / "streamprep_out/maps/Maps/a.mrc").pixels
    assert not done[mask == 0].any()


def test_a_map_called_like_the_mask_of_another_has_its_own_name(folder: Path) -> None:
    put(folder, "a.mrc", tiny_map(16, 1).pixels)
    put(folder, "a_mask.mrc", tiny_map(16, 2).pixels)
    assert once(folder, "maps.segment.save_mask=true").jobs == {"done": 2}
    assert [name for name in written(folder) if name.startswith("maps/")] == [
        "maps/Maps/a.mrc",
        "maps/Maps/a_mask.mrc",
        "maps/Maps/a_mask~1.mrc",
        "maps/Maps/a_mask~1_mask.mrc",
    ]
    check_invariants(folder / "streamprep_out")


REAL = ("EMD-3001.map", "EMD-3197.map", "emd_6272_part.mrc")


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize(
    "changes",
    [
        ("maps.change_hand.keep_origin=true",),
        ("maps.symmetrize.group=d2",),
        ("maps.symmetrize.group=o",),
        ("maps.rotate_ico.source=i1", "maps.rotate_ico.target=i3"),
        ("maps.laplacian.percentile=0.8",),
        ("maps.segment.kind=automatic",),
        ("maps.normalize_background.radius_px=-1",),
        ("maps.threshold.value=0.1",),
    ],
)
def test_real_maps(data: Path, folder: Path, name: str, changes: tuple[str, ...]) -> None:
    """What is not a cube is refused, by name and with its sizes, where an operation needs one."""
    shutil.copy(data / "maps" / name, folder / "Maps" / name)
    last = once(folder, *changes)
    needs_a_cube = "ico" in changes[0] or changes[0].endswith("=o")
    if needs_a_cube and name == "EMD-3001.map":
        assert last.jobs == {"failed": 1}
        assert all(side in last.failures[0]["reason"] for side in ("73", "43", "25"))
    else:
        assert last.jobs == {"done": 1}, last.failures


def test_waiting_for_a_stack_is_no_generation(folder: Path) -> None:
    """However often it was tried, the first result of a map has the plain name."""
    put(folder, "a.mrc", tiny_map(16, 3).pixels)
    images_with_table(folder, "stack.mrcs")
    changes = ("maps.adjust_gray.images=images.star", "maps.adjust_gray.method=moments")
    for _ in range(3):
        assert once(folder, *changes).waiting_count == 1
    stack = np.random.default_rng(1).normal(size=(4, 16, 16)).astype(np.float32)
    mrc_output.write(folder / "stack.mrcs", stack, pixel_size_angstrom=1.5, stack=True)
    assert once(folder, *changes).jobs == {"done": 1}
    assert [name for name in written(folder) if name.startswith("maps/")] == ["maps/Maps/a.mrc"]


def test_voxels_that_are_no_cubes_are_told(data: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(data / "maps/EMD-3001.map", folder / "Maps")
    once(folder)
    assert "voxels have sides of different length" in caplog.text
