"""The HDF5 sink: what it writes is read back, and only what was committed is there."""

from dataclasses import fields, replace
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
from streamprep import ConfigError, Ctf
from streamprep.config import load
from streamprep.plugin_manager import load_plugins
from streamprep.simulate import Acquisition, simulate
from streamprep.testing import run_session, run_sink, tiny_result

from streamprep_hdf5 import Hdf5, Hdf5Sink

FILE = "hdf5/particle/Micrographs/tiny.h5"


@pytest.mark.parametrize("compression", [0, 4])
def test_everything_is_read_back(tmp_path: Path, compression: int) -> None:
    result = tiny_result(5, 16)
    particles = replace(
        result.particles["particle"],
        columns={"rlnGroupName": np.array(["ä", "b c", "", "d", "e"], object), "rlnClassNumber": np.arange(5)},
    )
    result = replace(result, particles={"particle": particles})
    assert run_sink(Hdf5Sink(Hdf5(compression=compression)), result, tmp_path) == [FILE]
    assert particles.coordinates is not None
    assert particles.ctf is not None
    assert result.micrograph is not None
    with h5py.File(tmp_path / FILE) as file:
        np.testing.assert_array_equal(file["images"][()], particles.pixels)
        assert file["images"].dtype == np.float32
        assert file["images"].attrs["pixel_size_angstrom"] == particles.optics.pixel_size_angstrom
        np.testing.assert_array_equal(file["coordinates/xy_px"][()], particles.coordinates.xy_px)
        assert file["coordinates"].attrs["box_size_px"] == 16
        for name, values in particles.coordinates.columns.items():
            np.testing.assert_array_equal(file[f"coordinates/columns/{name}"][()], values)
        for field in fields(Ctf):
            said = [getattr(ctf, field.name) for ctf in particles.ctf]
            np.testing.assert_array_equal(file[f"ctf/{field.name}"][()], said)
        assert list(file["columns/rlnGroupName"].asstr()[()]) == ["ä", "b c", "", "d", "e"]
        assert list(file["columns/rlnClassNumber"][()]) == [0, 1, 2, 3, 4]
        assert file.attrs["item"] == "Micrographs/tiny"
        assert file.attrs["micrograph"] == result.micrograph.name
        assert tuple(file.attrs["micrograph_shape_px"]) == result.micrograph.shape_px


def test_what_is_not_known_is_not_there(tmp_path: Path) -> None:
    result = tiny_result(2)
    bare = replace(result.particles["particle"], coordinates=None, ctf=None)
    run_sink(Hdf5Sink(Hdf5()), replace(result, micrograph=None, particles={"particle": bare}), tmp_path)
    with h5py.File(tmp_path / FILE) as file:
        assert list(file) == ["images"]
        assert "micrograph" not in file.attrs


def test_an_item_without_particles_has_no_file(tmp_path: Path) -> None:
    result = tiny_result(1)
    none = result.particles["particle"].part(0, 0)
    assert run_sink(Hdf5Sink(Hdf5()), replace(result, particles={"particle": none}), tmp_path) == []


def test_a_rewritten_micrograph_gets_a_file_of_its_own_and_the_first_stays(tmp_path: Path) -> None:
    sink = Hdf5Sink(Hdf5())
    run_sink(sink, tiny_result(seed=1), tmp_path)
    first = (tmp_path / FILE).read_bytes()
    assert run_sink(sink, tiny_result(seed=2), tmp_path) == [FILE, FILE.replace("tiny", "tiny~2")]
    assert (tmp_path / FILE).read_bytes() == first
    with h5py.File(tmp_path / FILE.replace("tiny", "tiny~2")) as file:
        assert file.attrs["generation"] == 2


def test_the_same_particles_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_sink(Hdf5Sink(Hdf5(compression=1)), tiny_result(), tmp_path / name)
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


def test_what_a_crash_left_behind_is_gone_after_a_start(tmp_path: Path) -> None:
    """A file that got its name, and no commit: the ledger does not know it, so no reader may find it."""
    sink = Hdf5Sink(Hdf5())
    run_sink(sink, tiny_result(), tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    left = tmp_path / FILE.replace("tiny", "torn")
    left.write_bytes(whole[:1000])
    assert run_sink(sink, tiny_result(name="Micrographs/next"), tmp_path) == [FILE.replace("tiny", "next"), FILE]
    assert (tmp_path / FILE).read_bytes() == whole


def test_a_session_writes_what_its_stacks_hold(tmp_path: Path) -> None:
    """Of the installed package, found by its entry point."""
    simulate(tmp_path, Acquisition(micrographs=2, size_px=256, particles=3, box_size_px=32))
    config = tmp_path / "streamprep.toml"
    config.write_text(f"{config.read_text()}\n[sinks.hdf5]\ncompression = 1\n")
    assert run_session(config).jobs == {"done": 2}
    output = tmp_path / "streamprep_out"
    stacks = sorted(output.glob("*/Micrographs/*.mrcs"))
    assert len(stacks) == 4, "particles and noise of two micrographs"
    for stack in stacks:
        label = {"particles": "particle", "noise": "noise"}[stack.relative_to(output).parts[0]]
        with h5py.File(output / "hdf5" / label / "Micrographs" / f"{stack.stem}.h5") as file:
            np.testing.assert_array_equal(file["images"][()], mrcfile.read(stack))
    assert len(list((output / "hdf5").rglob("*.h5"))) == 4


def test_it_is_off_without_its_table_and_its_parameters_are_checked(tmp_path: Path) -> None:
    config = tmp_path / "streamprep.toml"

    def sinks(table: str) -> set[str]:
        config.write_text(f'[session]\nwatch = ["Micrographs"]\n[extract]\nbox_size_px = 32\n{table}')
        return {sink.name for sink in load_plugins().make_sinks(load(config))}

    assert sinks("[sinks.hdf5]\n") - sinks("") == {"hdf5"}
    with pytest.raises(ConfigError, match=r"\[sinks.hdf5\]: compresion: unknown key; did you mean compression"):
        sinks("[sinks.hdf5]\ncompresion = 1\n")
