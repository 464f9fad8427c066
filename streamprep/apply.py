"""Operations on one stack or map, without a session: what `streamprep apply` does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamprep import formats
from streamprep.arrays import Backend, DeviceName, choose_backend, images_in_part, in_slabs, keep_freed_memory, to_host
from streamprep.config import parse_override
from streamprep.formats import mrc, mrc_output, star
from streamprep.image_sets import sample_images
from streamprep.model import (
    Columns,
    ConfigError,
    Context,
    Ctf,
    InputError,
    Item,
    Map,
    Optics,
    Particles,
    Reject,
    nearest,
)
from streamprep.pipeline import Plan, Step, make_step, run_in_parts, run_map, run_particles
from streamprep.plugin_manager import Plugins

ENDINGS = {
    "map": (".mrc", ".map", ".ccp4"),
    "stack of images": (".mrcs",),
    "single image": (".mrcs", ".mrc"),
}
"""What an output may end in, for each kind of input."""


def make_steps(operations: Sequence[str], overrides: Sequence[str], table: str, plugins: Plugins) -> tuple[Step, ...]:
    """The named operations of one lane, in the order given, with ``OPERATION.KEY=VALUE`` parameters.

    Raises
    ------
    ConfigError
        An operation or a parameter is unknown or not valid.
    """
    if not all(operations):
        raise ConfigError(
            f"operations {','.join(operations)!r}: a name is missing; separate names by single commas, for example "
            "normalize,invert"
        )
    values: dict[str, dict[str, Any]] = {name: {} for name in operations}
    for text in overrides:
        keys, value = parse_override(text)
        if keys[0] in values and len(keys) != 2:
            raise ConfigError(f"--set {text}: write it as OPERATION.KEY=VALUE, for example normalize.method=new")
        if keys[0] not in values:
            hint = nearest(keys[0], list(values))
            raise ConfigError(f"--set {text}: {keys[0]} is not one of the operations to apply; {hint}")
        values[keys[0]][keys[1]] = value
    steps = tuple(make_step(table, name, values[name], plugins, name) for name in operations)
    for step in steps:
        if step.table != table:
            said = ", ".join(text for text in overrides if text.startswith(f"{step.name}."))
            raise ConfigError(
                f"--set {said}: {step.name} then works on {step.table} in a session, before anything is cut from them; "
                f"apply works on {table}: leave it out"
            )
    return steps


def apply(
    operations: Sequence[str],
    source: Path,
    target: Path,
    plugins: Plugins,
    *,
    overrides: Sequence[str] = (),
    pixel_size_angstrom: float | None = None,
    ctf: Path | None = None,
    device: DeviceName = "auto",
    seed: int = 0,
    note: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Run operations on a particle stack or a map and write the result.

    What operations tell of each image, such as the shift that center applied, is written beside a stack, in a STAR
    table of its name with ``_particles.star`` for ``.mrcs``. The source may be the target: it is replaced once all is
    done.

    Parameters
    ----------
    operations
        Names, in the order in which they run.
    source, target
        MRC files: ``.mrcs`` for stacks of particles, ``.mrc``, ``.map`` or ``.ccp4`` for maps; a single image may be
        ``.mrc``, too.
    overrides
        ``OPERATION.KEY=VALUE`` texts.
    pixel_size_angstrom
        From the header unless given.
    ctf
        STAR table with the CTF of each particle, one row per image, in their order.
    note
        Receives what the operations found that is worth reporting.

    Returns
    -------
    list of str
        Warnings of the operations.

    Raises
    ------
    ConfigError
        An operation, a parameter, the device, or the place or ending of ``target`` is not valid.
    InputError
        ``source`` or ``ctf`` cannot be used.
    """
    ending, target = (
        target.suffix.lower(),
        Path(os.path.realpath(target)),
    )  # a link stays, and what it points to is written
    if target.exists() and not target.is_file():
        what = "a folder" if target.is_dir() else "no regular file"
        raise ConfigError(f"{target}: this is {what}; give the name of a file to write")
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: its folder does not exist; make it first")
    for path in (source, *(() if ctf is None else (ctf,))):
        if not path.is_file():
            raise InputError(path, "this is a folder, not a file" if path.is_dir() else "no such file")
    if formats.classify_path(source, _head(source)) is None:
        raise InputError(source, "not a stack or map; known endings are .mrcs, .mrc, .map and .ccp4")
    header = mrc.read_header(source)
    pixel_size = pixel_size_angstrom or header.pixel_size_angstrom
    if not pixel_size:
        raise InputError(source, "its header has no pixel size; give --pixel-size-angstrom")
    single = header.nz == 1 and header.space_group == 0
    packed = source.suffix.lower() in (".gz", ".bz2")
    ends = (source.with_suffix("") if packed else source).suffix.lower()
    lane = "particles" if ends == ".mrcs" or single else "maps"
    what = "map" if lane == "maps" else "single image" if single else "stack of images"
    allowed = ENDINGS[what]
    if ending not in allowed:
        raise ConfigError(f"{target}: {source} holds a {what}; the output must end in {' or '.join(allowed)}")
    steps = make_steps(operations, overrides, lane, plugins)
    backend = choose_backend(device)
    keep_freed_memory()
    warnings: list[str] = []
    context = Context(
        item=Item("map" if lane == "maps" else "particles", source.stem, source),
        operation="",
        seed=seed,
        warn=warnings.append,
        note=note,
        remark=warnings.append,
        read_image=lambda path: mrc.read(path).pixels,
        sample_images=sample_images,
    )
    read = [*([] if ctf is None else [ctf]), *(Path(name) for step in steps for name in step.params.files().values())]
    for path in read:
        if target.exists() and path.exists() and target.samefile(path):
            raise ConfigError(f"{target}: would be written over {path}, which the operations read; give another output")
    files = _Files(target, source, read)
    work = _Work(steps, source, files, pixel_size, f"streamprep: {', '.join(operations)}", context, backend)
    try:
        if lane == "particles":
            work.on_stack(None if ctf is None else star.read_particle_ctf(ctf, header.nz))
        elif ctf is not None:
            raise ConfigError(f"--ctf {ctf}: a CTF belongs to particles; {source} is a map")
        else:
            work.on_map()
        files.finish()
    except Reject as reject:
        raise InputError(source, f"an operation rejects it: {reject.reason}") from reject
    finally:
        files.clear()
    return warnings


class _Files:
    """Where results are written, and the names that they get when they are whole."""

    def __init__(self, target: Path, source: Path, read: Sequence[Path]) -> None:
        self._target = target
        self._source = source
        self._read = read
        self._finals: dict[Path, Path] = {}
        self.main = self._unfinished(target)

    def beside(self, name: str, ending: str | None = None) -> Path:
        """Where to write a further file, ``TARGET_name``; it is finished before the target is."""
        final = self._target.with_name(f"{self._target.stem}_{name}{ending or self._target.suffix}")
        if final.exists() and (not final.is_file() or final.samefile(self._source)):
            what = "the input" if final.is_file() else "no regular file"
            raise ConfigError(f"{final}: the {name} of {self._target.name} would be written here, but this is {what}")
        if any(final.exists() and read.exists() and final.samefile(read) for read in self._read):
            said = f"{final}: the {name} of {self._target.name} would be written here, over a file that was read"
            raise ConfigError(f"{said}; give another output")
        return self._unfinished(final)

    def _unfinished(self, final: Path) -> Path:
        path = final.with_name(f".{final.name}.part")
        self._finals[path] = final
        return path

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """What goes wrong in writing is told of the target."""
        try:
            yield
        except OSError as error:
            said = f"{self._target}: cannot be written: {error.strerror or error}; give another place"
            raise ConfigError(said) from error

    def write_columns(self, columns: Columns) -> None:
        """What operations tell of each image, in a table beside the stack."""
        count = len(next(iter(columns.values())))
        names = [f"{number:06d}@{self._target.name}" for number in range(1, count + 1)]
        told = {"rlnImageName": names, **{name: list(values) for name, values in columns.items()}}
        self.beside("particles", ".star").write_text(star.table_text("particles", told), encoding="utf-8")

    def finish(self) -> None:
        """Give each its name: whole or not at all, also where the target is the source."""
        with self.writing():
            for path, final in reversed(self._finals.items()):
                path.replace(final)

    def clear(self) -> None:
        """Remove what was not finished."""
        for path in self._finals:
            with contextlib.suppress(OSError):
                path.unlink()


@dataclass(frozen=True, slots=True)
class _Work:
    """What is done with one file."""

    steps: tuple[Step, ...]
    source: Path
    files: _Files
    pixel_size_angstrom: float
    label: str
    context: Context
    backend: Backend

    def on_map(self) -> None:
        with mrc.StackReader(self.source) as reader:
            voxels = np.empty(reader.shape, np.float32)
            in_slabs(lambda start, stop: reader.read_into(start, voxels[start:stop]), voxels)
            if reader.is_uneven:
                self.context.warn(mrc.UNEVEN)
        pixels = self.backend.to_device(voxels)
        del voxels
        volume = run_map(Plan(self.steps, {}), Map(self.source.stem, pixels, self.pixel_size_angstrom), self.context)
        with self.files.writing():
            for name, mask in volume.masks.items():
                self._write_map(self.files.beside(name), to_host(mask).astype(np.int8), volume.pixel_size_angstrom)
            voxels = np.asarray(to_host(volume.pixels), dtype=np.float32)
            self._write_map(self.files.main, voxels, volume.pixel_size_angstrom)

    def _write_map(self, path: Path, voxels: npt.NDArray[Any], pixel_size_angstrom: float) -> None:
        mrc_output.write(
            path,
            voxels,
            pixel_size_angstrom=pixel_size_angstrom,
            stack=False,
            label=self.label,
            template=self.source,
        )

    def on_stack(self, ctf: tuple[Ctf, ...] | None) -> None:
        """Part by part from file to file; where an operation asks for the whole stack, whole."""
        threads = len(os.sched_getaffinity(0)) if self.backend.name == "cpu" else 1
        per_image = all(step.operation.info.per_image for step in self.steps)
        told: dict[int, Columns] = {}
        with mrc.StackReader(self.source) as reader, contextlib.ExitStack() as opened:
            writer: mrc_output.StackWriter | None = None
            total = reader.shape[0]

            def take(start: int, stop: int) -> Particles:
                images = np.empty((stop - start, *reader.shape[1:]), np.float32)
                reader.read_into(start, images)
                pixels = self.backend.to_device(images)
                return Particles(pixels, Optics(self.pixel_size_angstrom), ctf=None if ctf is None else ctf[start:stop])

            def give(start: int, part: Particles) -> None:
                nonlocal writer
                images = to_host(part.pixels)
                told[start] = part.columns
                with self.files.writing():
                    if writer is None:
                        opened.enter_context(self.files.writing())  # of its end
                        writer = opened.enter_context(
                            mrc_output.StackWriter(
                                self.files.main,
                                (total if per_image else len(part), *images.shape[1:]),
                                pixel_size_angstrom=part.optics.pixel_size_angstrom,
                                label=self.label,
                                template=self.source,
                            )
                        )
                    writer.write(start, images)

            if per_image:
                size = images_in_part(self.backend.to_device(np.empty((0, *reader.shape[1:]), np.float32)))
                run_in_parts(self.steps, total, size, take, give, self.context, threads=threads)
            else:
                made = run_particles(Plan(self.steps, {}), take(0, total), self.context, threads=threads)
                if not len(made):
                    raise InputError(self.source, "the operations leave no image of it")
                give(0, made)
        if told[0]:
            with self.files.writing():
                self.files.write_columns(
                    {name: np.concatenate([told[start][name] for start in sorted(told)]) for name in told[0]}
                )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(formats.HEAD_BYTES)
