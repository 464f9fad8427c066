"""The map sink: each processed map, and each of its masks, as one immutable file with a true header."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streamprep.config import Config
from streamprep.formats import image_ending, mrc_output
from streamprep.hookspecs import ItemResult, Sink, Staged, Table, hookimpl
from streamprep.sinks import staged_file

MAPS = "maps"


class MapSink(Sink):
    """Stages a processed map and its masks."""

    name = "maps"
    folders = (MAPS,)
    tables: Sequence[Table] = ()

    def stage(self, result: ItemResult, folder: Path) -> Staged:
        """Write them, durably."""
        made = result.map
        if made is None:
            return Staged()
        name = result.item.name  # no item's own name has a ~
        version = "" if result.generation == 1 and not name.endswith("_mask") else f"~{result.generation}"
        template = result.item.path if image_ending(result.item.path) in TEMPLATES else None
        staged = folder / "map.mrc"
        mrc_output.write(
            staged,
            made.pixels,
            pixel_size_angstrom=made.pixel_size_angstrom,
            stack=False,
            template=template,
        )
        made_files = [(staged, f"{MAPS}/{name}{version}.mrc")]
        for called, mask in made.masks.items():
            path = folder / f"{called}.mrc"
            mrc_output.write(
                path,
                np.asarray(mask).astype(np.int8),
                pixel_size_angstrom=made.pixel_size_angstrom,
                stack=False,
                template=template,
            )
            made_files.append((path, f"{MAPS}/{name}{version}_{called}.mrc"))
        return Staged(tuple(staged_file(path, final) for path, final in made_files))


TEMPLATES = (".mrc", ".map", ".ccp4")
"""Endings of files, compressed or not, whose header is kept where it still holds."""


@hookimpl
def make_sinks(config: Config) -> Sequence[Sink]:
    """One map sink where maps are processed."""
    return [MapSink()] if config.maps else []
