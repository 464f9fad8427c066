"""The particle sink: one immutable stack for each item, and growing tables that name the images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamprep.config import Config
from streamprep.hookspecs import ItemResult, Sink, Staged, StagedFile, StagedRows, StoredStack, Table, hookimpl
from streamprep.model import Label, Particles
from streamprep.sinks._cs import CsTable, cs_rows
from streamprep.sinks._stacks import StackFile
from streamprep.sinks._tables import StarTable, coordinate_columns
from streamprep.sinks._xmd import XmdTable, xmd_rows

FOLDERS: Mapping[Label, str] = {"particle": "particles", "noise": "noise"}
LABEL = "streamprepLabel"
"""Column that says of each image whether it is a ``particle`` or ``noise``, wherever its row is taken."""


class ParticleSink(Sink):
    """Stages each set of particles of an item as one MRC stack, with the rows that name its images."""

    name = "particles"
    folders = tuple(FOLDERS.values())

    def __init__(self, config: Config) -> None:
        self._further = sorted(set(config.sets.further_tables))
        self._dtype = config.sets.stack_dtype
        self._inverted = "invert" in config.particles
        forms: Mapping[str, type[XmdTable] | type[CsTable]] = {"xmd": XmdTable, "cs": CsTable}
        folders = [folder for label, folder in FOLDERS.items() if label == "particle" or config.extract is not None]
        self.tables: Sequence[Table] = [
            *(StarTable(f"{folder}.star") for folder in folders),
            *(forms[form](f"{folder}.{form}") for form in self._further for folder in folders),
        ]
        output = config.resolve(config.session.output)
        if config.session.image_paths == "absolute":
            self._prefix = f"{output}/"
        elif config.session.image_paths == "session":
            self._prefix = f"{Path(config.session.output).expanduser().as_posix().rstrip('/')}/"
        else:
            self._prefix = ""

    def stage(self, result: ItemResult, folder: Path) -> Staged:
        """Write the stacks that are not stored yet, durably, and describe all."""
        files: list[StagedFile] = []
        rows: list[StagedRows] = []
        for label, particles in result.particles.items():
            if not len(particles):
                continue
            final = f"{FOLDERS[label]}/{result.file_name}.mrcs"
            stack = result.stored.get(label) or self._write(label, particles, folder)
            files.append(StagedFile(stack.staged, final, stack.size_bytes, stack.crc32))
            for named in self._rows(label, particles, result, final):
                rows += [named, *self._further_rows(label, named, result)]
        return Staged(tuple(files), tuple(rows))

    def open_stack(self, label: Label, count: int, folder: Path) -> StackFile:
        """A stack in the staging folder that is written part by part."""
        return StackFile(folder / f"{FOLDERS[label]}.mrcs", self._dtype, label, count)

    def _write(self, label: Label, particles: Particles, folder: Path) -> StoredStack:
        with self.open_stack(label, len(particles), folder) as store:
            store.put(0, particles)
            return store.finish()[0]

    def _rows(self, label: Label, particles: Particles, result: ItemResult, final: str) -> Iterable[StagedRows]:
        """The rows of a stack; those of each optics group by themselves."""
        count = len(particles)
        columns: dict[str, Sequence[Any]] = {}
        if particles.coordinates is not None:
            name = None if result.micrograph is None else result.micrograph.name
            columns |= coordinate_columns(particles.coordinates, name)
        columns[LABEL] = [particles.label] * count
        columns |= {name: values.tolist() for name, values in particles.columns.items()}  # a stack's table knows better
        columns["rlnImageName"] = [f"{index:06d}@{self._prefix}{final}" for index in range(1, count + 1)]
        if particles.ctf is not None:
            columns["rlnDefocusU"] = [ctf.defocus_u_angstrom for ctf in particles.ctf]
            columns["rlnDefocusV"] = [ctf.defocus_v_angstrom for ctf in particles.ctf]
            columns["rlnDefocusAngle"] = [ctf.defocus_angle_deg for ctf in particles.ctf]
            if any(ctf.phase_shift_deg for ctf in particles.ctf):
                columns["rlnPhaseShift"] = [ctf.phase_shift_deg for ctf in particles.ctf]
        columns["rlnOpticsGroup"] = [0] * count
        original = None if result.micrograph is None else result.micrograph.optics.pixel_size_angstrom
        for rows, optics in _optics_groups(particles, original):
            own = columns if len(rows) == count else {name: _taken(values, rows) for name, values in columns.items()}
            yield StagedRows(f"{FOLDERS[label]}.star", own, len(rows), optics)

    def _further_rows(self, label: Label, rows: StagedRows, result: ItemResult) -> Iterable[StagedRows]:
        """The same rows for the tables of other programs."""
        if "xmd" in self._further:
            yield xmd_rows(rows, f"{FOLDERS[label]}.xmd")
        if "cs" in self._further:
            # particles are dark in a micrograph, bright in the stacks that programs keep
            bright = self._inverted == (result.micrograph is not None)
            micrograph = result.micrograph
            yield cs_rows(
                rows,
                f"{FOLDERS[label]}.cs",
                micrograph_shape_px=None if micrograph is None else micrograph.shape_px,
                micrograph_pixel_size_angstrom=0.0 if micrograph is None else micrograph.optics.pixel_size_angstrom,
                bright_particles=bright,
            )


def _taken(values: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    return [values[row] for row in rows]


def _optics_groups(particles: Particles, original: float | None) -> list[tuple[list[int], dict[str, Any]]]:
    """The optics groups of a stack's images, each with its rows: what their table said, then what is known here."""
    of_all = particles.optics
    said = particles.optics_columns or ({},) * len(particles)
    # rows of one group share what the table says of it
    told = {one: of_all.told(columns) for one, columns in {id(columns): columns for columns in said}.items()}
    constants: Sequence[tuple[float, float, float]] = [
        (known.voltage_kv, known.spherical_aberration_mm, known.amplitude_contrast)
        for known in particles.ctf or (told[id(columns)] for columns in said)
    ]
    groups: dict[tuple[tuple[float, float, float], int], list[int]] = {}
    for row, (values, columns) in enumerate(zip(constants, said, strict=True)):
        groups.setdefault((values, id(columns)), []).append(row)
    made = []
    for ((voltage, aberration, contrast), _), rows in groups.items():
        optics: dict[str, Any] = {
            **said[rows[0]],
            "rlnImagePixelSize": of_all.pixel_size_angstrom,
            "rlnImageSize": int(particles.pixels.shape[-1]),
            "rlnImageDimensionality": 2,
            "rlnVoltage": voltage,
            "rlnSphericalAberration": aberration,
            "rlnAmplitudeContrast": contrast,
            "rlnCtfDataArePhaseFlipped": int(particles.phase_flipped),
        }
        if original is not None:
            optics.setdefault("rlnMicrographOriginalPixelSize", original)  # a table may know it from before binning
        made.append((rows, optics))
    return made


@hookimpl
def make_sinks(config: Config) -> Sequence[Sink]:
    """One particle sink where boxes are extracted, or stacks processed."""
    return [ParticleSink(config)] if config.extract is not None or config.particles else []
