"""hdf5: the particles of each micrograph or stack, with all that is known of them, as one HDF5 file."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from pydantic import Field
from streamprep import Ctf, ItemResult, Params, Particles, Sink, Staged, Table, hookimpl
from streamprep.config import Config
from streamprep.sinks import staged_file

FOLDER = "hdf5"
LAYOUT = "streamprep-hdf5 1"
"""What the attribute ``layout`` of each file says: the names in it, which README.md lists."""


class Hdf5(Params):
    """Write each stack of particles as an HDF5 file, too."""

    compression: int = Field(0, ge=0, le=9, description="Level of gzip; 0: none. Noise hardly gets smaller.")


class Hdf5Sink(Sink):
    """Stages one HDF5 file for each set of particles of an item."""

    name = "hdf5"
    tables: Sequence[Table] = ()
    folders = (FOLDER,)

    def __init__(self, params: Hdf5) -> None:
        """Take the parameters of the session's configuration."""
        self._params = params

    def stage(self, result: ItemResult, folder: Path) -> Staged:
        """Write the files, durably; the committer gives them their names."""
        files = []
        for label, particles in result.particles.items():
            if len(particles):
                path = folder / f"{FOLDER}_{label}.h5"
                write(path, particles, result, compression=self._params.compression)
                files.append(staged_file(path, f"{FOLDER}/{label}/{result.file_name}.h5"))
        return Staged(tuple(files))


@hookimpl
def make_sinks(config: Config) -> Sequence[Sink]:
    """One sink where the configuration has a table ``[sinks.hdf5]``."""
    params = config.sink("hdf5", Hdf5)
    return [] if params is None else [Hdf5Sink(params)]


def write(path: Path, particles: Particles, result: ItemResult, *, compression: int = 0) -> None:
    """Write particles and what is known of them into a new file.

    Parameters
    ----------
    path
        A file that is not there.
    particles
        Pixels of shape (n, ny, nx) on the host.
    result
        What they are of.
    compression
        Level of gzip, one chunk for each image; 0: none.

    Raises
    ------
    OSError
        The disk is full or failed.
    """
    optics, micrograph = particles.optics, result.micrograph
    with h5py.File(path, "x") as file:  # no times are kept: the same particles make the same bytes
        file.attrs["layout"] = LAYOUT
        file.attrs["item"] = result.item.name
        file.attrs["generation"] = result.generation
        file.attrs["label"] = particles.label
        if micrograph is not None:
            file.attrs["micrograph"] = micrograph.name
            file.attrs["micrograph_shape_px"] = micrograph.shape_px
        packed: dict[str, Any] = {}
        if compression:
            packed = {"compression": compression, "chunks": (1, *particles.pixels.shape[1:])}
        images = file.create_dataset("images", data=np.asarray(particles.pixels, np.float32), **packed)
        images.attrs["pixel_size_angstrom"] = optics.pixel_size_angstrom
        images.attrs["phase_flipped"] = particles.phase_flipped
        for name in ("voltage_kv", "spherical_aberration_mm", "amplitude_contrast"):
            images.attrs[name] = getattr(optics, name)
        if particles.coordinates is not None:
            file["coordinates/xy_px"] = particles.coordinates.xy_px
            if particles.coordinates.box_size_px is not None:
                file["coordinates"].attrs["box_size_px"] = particles.coordinates.box_size_px
            _write_columns(file, "coordinates/columns", particles.coordinates.columns)
        if particles.ctf is not None:
            for field in fields(Ctf):
                file[f"ctf/{field.name}"] = np.array([getattr(ctf, field.name) for ctf in particles.ctf])
        _write_columns(file, "columns", particles.columns)


def _write_columns(file: h5py.File, group: str, columns: Any) -> None:
    """Columns of tables, by the names that they have in them: numbers as they are, all else as text."""
    for name, values in columns.items():
        array = np.asarray(values)
        if array.dtype.kind in "biuf":
            file[f"{group}/{name}"] = array
        else:
            texts = [str(value) for value in array.tolist()]
            file.create_dataset(f"{group}/{name}", data=texts, dtype=h5py.string_dtype())
