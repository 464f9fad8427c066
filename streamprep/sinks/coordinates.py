"""The coordinate sink: growing STAR tables of particle and noise coordinates, and files for each micrograph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamprep.config import Config
from streamprep.formats import eman, xmipp
from streamprep.hookspecs import ItemResult, Sink, Staged, StagedRows, Table, hookimpl
from streamprep.model import Coordinates, Label
from streamprep.sinks._tables import StarTable, coordinate_columns

TABLES: Mapping[Label, str] = {"particle": "coordinates/particles.star", "noise": "coordinates/noise.star"}
FILES: Mapping[str, Mapping[Label, str]] = {
    "pos": {"particle": "coordinates/pos/{item}.pos", "noise": "coordinates/pos_noise/{item}.pos"},
    "box": {"particle": "coordinates/box/{item}.box", "noise": "coordinates/box_noise/{item}.box"},
}


class ItemFile(Table):
    """One file for each micrograph. Its text is the one value of its one row."""

    def __init__(self, path: str) -> None:
        self.path = path

    def columns(self, names: Sequence[str]) -> list[str]:
        """Just the text."""
        return list(names)

    def head(self, columns: Sequence[str], optics: Sequence[Mapping[str, Any]], count: int) -> bytes:  # noqa: ARG002
        """Nothing: the text holds its own head."""
        return b""

    def render(self, columns: Sequence[str], rows: StagedRows, optics_group: int | None) -> bytes:  # noqa: ARG002
        """The text of the file."""
        return "".join(rows.columns["text"]).encode()

    def adapt(self, block: bytes, have: Sequence[str], want: Sequence[str]) -> bytes:  # noqa: ARG002
        """There is one form only."""
        return block


class CoordinateSink(Sink):
    """Describes the coordinates of a micrograph as rows and as text of its own files; no files are staged."""

    name = "coordinates"
    folders = ()

    def __init__(self, config: Config) -> None:
        self._files = sorted(set(config.sets.coordinate_files), reverse=True)
        self.tables: Sequence[Table] = [
            *(StarTable(path) for path in TABLES.values()),
            *(ItemFile(path) for form in self._files for path in FILES[form].values()),
        ]

    def stage(self, result: ItemResult, folder: Path) -> Staged:  # noqa: ARG002
        """The rows of each set; a set without rows still makes empty files."""
        rows = []
        for label, coordinates in result.coordinates.items():
            if len(coordinates) and result.micrograph is not None:
                columns = coordinate_columns(coordinates, result.micrograph.name)
                rows.append(StagedRows(TABLES[label], columns, len(coordinates)))
            for form in self._files:
                text = _text(form, coordinates)
                if text is not None:
                    rows.append(StagedRows(FILES[form][label], {"text": [text]}, 1))
        return Staged(rows=tuple(rows))


def _text(form: str, coordinates: Coordinates) -> str | None:
    """What a file says; None where it cannot be made."""
    if form == "pos":
        return xmipp.pos_text(coordinates)
    return None if coordinates.box_size_px is None else eman.box_text(coordinates, coordinates.box_size_px)


@hookimpl
def make_sinks(config: Config) -> Sequence[Sink]:
    """One coordinate sink where coordinates are processed or boxes extracted."""
    return [CoordinateSink(config)] if config.coordinates or config.extract is not None else []
