"""The coordinate sink: growing STAR tables of particle and noise coordinates, and an Xmipp ``.pos`` per micrograph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamprep.config import Config
from streamprep.formats import xmipp
from streamprep.hookspecs import ItemResult, Sink, Staged, StagedRows, Table, hookimpl
from streamprep.model import Label
from streamprep.sinks._tables import StarTable, coordinate_columns

TABLES: Mapping[Label, str] = {"particle": "coordinates/particles.star", "noise": "coordinates/noise.star"}
POS_FILES: Mapping[Label, str] = {
    "particle": "coordinates/pos/{item}.pos",
    "noise": "coordinates/pos_noise/{item}.pos",
}


class PosFile(Table):
    """One Xmipp ``.pos`` file for each micrograph. Its text is the one value of its one row."""

    def __init__(self, path: str) -> None:
        self.path = path

    def columns(self, names: Sequence[str]) -> list[str]:
        """Just the text."""
        return list(names)

    def head(self, columns: Sequence[str], optics: Sequence[Mapping[str, Any]]) -> bytes:  # noqa: ARG002
        """Nothing: the text holds its own head."""
        return b""

    def render(self, columns: Sequence[str], rows: StagedRows, optics_group: int | None) -> bytes:  # noqa: ARG002
        """The text of the file."""
        return "".join(rows.columns["text"]).encode()

    def adapt(self, block: bytes, have: Sequence[str], want: Sequence[str]) -> bytes:  # noqa: ARG002
        """There is one form only."""
        return block


class CoordinateSink(Sink):
    """Describes the coordinates of a micrograph as rows and as ``.pos`` text; no files are staged."""

    name = "coordinates"
    folders = ()

    def __init__(self) -> None:
        self.tables: Sequence[Table] = [
            *(StarTable(path) for path in TABLES.values()),
            *(PosFile(path) for path in POS_FILES.values()),
        ]

    def stage(self, result: ItemResult, folder: Path) -> Staged:  # noqa: ARG002
        """The rows of each set; a set without rows still makes an empty ``.pos`` file."""
        rows = []
        for label, coordinates in result.coordinates.items():
            if len(coordinates) and result.micrograph is not None:
                columns = coordinate_columns(coordinates, result.micrograph.name)
                rows.append(StagedRows(TABLES[label], columns, len(coordinates)))
            rows.append(StagedRows(POS_FILES[label], {"text": [xmipp.pos_text(coordinates)]}, 1))
        return Staged(rows=tuple(rows))


@hookimpl
def make_sinks(config: Config) -> Sequence[Sink]:
    """One coordinate sink where coordinates are processed or boxes extracted."""
    return [CoordinateSink()] if config.coordinates or config.extract is not None else []
