"""Where results go. Each sink is a plugin; `_files` is the only module that makes files durable."""

from __future__ import annotations

from pathlib import Path

from streamprep.hookspecs import StagedFile
from streamprep.sinks import _files


def staged_file(path: Path, final: str) -> StagedFile:
    """Make a finished file of the staging folder durable, for a sink's `stage` to hand over.

    Parameters
    ----------
    path
        The file, closed; in the folder that `stage` received.
    final
        Where it belongs, below the output folder: in one of the sink's folders, under a name that is new for each
        generation (`ItemResult.file_name`). It is never overwritten, nor written to again.
    """
    _files.fsync_file(path)
    return StagedFile(path.name, final, path.stat().st_size, _files.crc32_of(path))
