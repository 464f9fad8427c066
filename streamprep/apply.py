"""Operations on one stack or map, without a session: what `streamprep apply` does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamprep import formats
from streamprep.arrays import DeviceName, choose_backend, to_host
from streamprep.config import parse_override
from streamprep.formats import mrc, star
from streamprep.model import ConfigError, Context, Image, InputError, Item, Map, Optics, Particles, nearest
from streamprep.pipeline import Plan, Step, make_step, run_map, run_particles
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
) -> list[str]:
    """Run operations on a particle stack or a map and write the result.

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
    image: Image = formats.read_item(Item("map", source.stem, source))  # type: ignore[assignment]
    pixel_size = pixel_size_angstrom or image.pixel_size_angstrom
    if not pixel_size:
        raise InputError(source, "its header has no pixel size; give --pixel-size-angstrom")
    lane = "particles" if source.suffix.lower() == ".mrcs" or image.pixels.ndim == 2 else "maps"
    what = "map" if lane == "maps" else "single image" if image.pixels.ndim == 2 else "stack of images"
    allowed = ENDINGS[what]
    if ending not in allowed:
        raise ConfigError(f"{target}: {source} holds a {what}; the output must end in {' or '.join(allowed)}")
    steps = make_steps(operations, overrides, lane, plugins)
    plan = Plan(steps, {"seed": seed})
    backend = choose_backend(device)
    warnings: list[str] = []
    context = Context(
        item=Item("map" if lane == "maps" else "particles", source.stem, source),
        operation="",
        seed=seed,
        warn=warnings.append,
        read_image=lambda path: mrc.read(path).pixels,
    )
    if lane == "maps":
        if ctf is not None:
            raise ConfigError(f"--ctf {ctf}: a CTF belongs to particles; {source} is a map")
        pixels = backend.to_device(np.asarray(image.pixels, dtype=np.float32))
        volume = run_map(plan, Map(source.stem, pixels, pixel_size), context)
        result, pixel_size = to_host(volume.pixels), volume.pixel_size_angstrom
    else:
        stack = image.pixels if image.pixels.ndim == 3 else image.pixels[None]
        pixels = backend.to_device(np.asarray(stack, dtype=np.float32))
        ctfs = None if ctf is None else star.read_particle_ctf(ctf, len(stack))
        done = run_particles(plan, Particles(pixels, Optics(pixel_size), ctf=ctfs), context)
        result, pixel_size = to_host(done.pixels), done.optics.pixel_size_angstrom
    unfinished = target.with_name(f".{target.name}.part")
    try:
        mrc.write(
            unfinished,
            np.asarray(result, dtype=np.float32),
            pixel_size_angstrom=pixel_size,
            stack=lane == "particles",
            label=f"streamprep: {', '.join(operations)}",
            template=source,
        )
        unfinished.replace(target)  # whole or not at all, also where the target is the source
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror or error}; give another place") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
    return warnings


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(formats.HEAD_BYTES)
