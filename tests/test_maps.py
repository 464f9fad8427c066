"""Maps in sessions: each processed once, with a true header and a picture; what cannot be used fails alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamprep.config import load
from streamprep.engine import Engine
from streamprep.formats import mrc, mrc_output
from streamprep.model import ConfigError
from streamprep.pictures import map_picture
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.simulate import Acquisition, simulate
from streamprep.snapshot import Snapshot
from streamprep.testing import tiny_map
from streamprep.workers import InlineExecutor


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


def test_each_map_is_processed_once_with_a_picture(folder: Path) -> None:
    first, second = tiny_map(16, 1).pixels, np.random.default_rng(0).random((5, 8, 6)).astype(np.float32)
    put(folder, "first.mrc", first)
    put(folder, "deeper/second.map", second, 2.5)
    last = once(folder)
    assert (last.jobs, last.items) == ({"done": 2}, "maps")
    expected = ["gallery/Maps/deeper/second.png", "gallery/Maps/first.png"]
    expected += ["maps/Maps/deeper/second.mrc", "maps/Maps/first.mrc"]
    assert written(folder) == expected
    output = folder / "streamprep_out"
    image = mrc.read(output / "maps/Maps/first.mrc")
    np.testing.assert_array_equal(image.pixels, -first)
    image = mrc.read(output / "maps/Maps/deeper/second.mrc")
    np.testing.assert_array_equal(image.pixels, -second)
    assert image.pixel_size_angstrom == pytest.approx(2.5)
    assert b"of the test" in (output / "maps/Maps/first.mrc").read_bytes()[:1024]
    with Image.open(output / "gallery/Maps/first.png") as picture:
        shown = np.asarray(picture)
    before, after = shown[2:242, 2:242], shown[246:486, 2:242]
    np.testing.assert_allclose(before.astype(int) + after, 255, atol=2)  # turned over
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


def test_a_picture_has_a_row_for_each_map() -> None:
    picture = map_picture([np.zeros((4, 6, 8)), np.ones((3, 3, 3))], side_px=100)
    assert picture.size == (4 * 104, 2 * 104)


def test_what_an_operation_on_maps_names_must_be_there(folder: Path) -> None:
    from streamprep.hookspecs import OperationInfo, Params
    from streamprep.pipeline import required_kinds
    from streamprep.plugin_manager import LoadedOperation, Plugins

    class Masked(Params):
        mask: str = "mask.mrc"

        def files(self) -> dict[str, str]:
            return {"mask": self.mask}

    plugins = load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""})
    made = LoadedOperation(
        OperationInfo("process_map", "masked", 1, Masked), lambda map: map, ("map",), "m", "test", "1"
    )
    more = Plugins(plugins.manager, plugins.plugins, [*plugins.operations, made])
    config = load(folder / "streamprep.toml", ["maps.masked.mask=m.mrc"])
    with pytest.raises(ConfigError, match=r"\[maps.masked\] mask = 'm.mrc': there is no such file"):
        required_kinds(config, resolve(config, more))
    mrc_output.write(folder / "m.mrc", tiny_map(8).pixels, pixel_size_angstrom=1, stack=False)
    assert required_kinds(config, resolve(config, more)) == {"map": {}}
