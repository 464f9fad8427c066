"""Growing tables of text, and RELION's STAR table, as the particle and the coordinate sink publish them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from streamprep.formats import star
from streamprep.hookspecs import StagedRows, Table
from streamprep.model import Coordinates

LEADING = (
    "rlnImageName",
    "rlnMicrographName",
    "rlnCoordinateX",
    "rlnCoordinateY",
    "rlnOpticsGroup",
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
    "rlnPhaseShift",
    "rlnOriginXAngst",
    "rlnOriginYAngst",
    "rlnAnglePsi",
    "rlnAutopickFigureOfMerit",
)
"""Columns that come first, in this order; further ones follow by name."""

OPTICS_COLUMNS = (
    "rlnOpticsGroupName",
    "rlnOpticsGroup",
    "rlnMicrographOriginalPixelSize",
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
    "rlnImagePixelSize",
    "rlnImageSize",
    "rlnImageDimensionality",
    "rlnCtfDataArePhaseFlipped",
)


_TEXT = ("Name", "micrograph")


class TextTable(Table):
    """A growing table of text, one line per row."""

    tail = b"\n"
    leading: Sequence[str] = ()
    """Columns that come first, in this order."""

    def __init__(self, path: str) -> None:
        self.path = path

    def columns(self, names: Sequence[str]) -> list[str]:
        """The program's own columns first, the others by name."""
        known = [name for name in self.leading if name in names]
        return known + sorted(set(names) - set(known))

    def render(self, columns: Sequence[str], rows: StagedRows, optics_group: int | None) -> bytes:  # noqa: ARG002
        """One line per row."""
        return star.rows_text([rows.columns[name] for name in columns]).encode()

    def adapt(self, block: bytes, have: Sequence[str], want: Sequence[str]) -> bytes:
        """Rows with other columns: those that a row does not have are 0, as RELION takes them; text is None."""
        lines = []
        for line in block.decode().splitlines():
            values = dict(zip(have, star.split_row(line), strict=True))
            lines.append(" ".join(values.get(name, "None" if name.endswith(_TEXT) else "0") for name in want) + "\n")
        return "".join(lines).encode()


class StarTable(TextTable):
    """A growing table in RELION 3.1's form: ``data_optics`` where there are optics groups, then ``data_particles``."""

    leading = LEADING

    def head(self, columns: Sequence[str], optics: Sequence[Mapping[str, Any]], count: int) -> bytes:  # noqa: ARG002
        """Everything before the first row."""
        text = "# version 30001\n"
        if optics:
            numbered = [
                {**group, "rlnOpticsGroup": number, "rlnOpticsGroupName": f"opticsGroup{number}"}
                for number, group in enumerate(optics, start=1)
            ]
            names = [name for name in OPTICS_COLUMNS if any(name in group for group in numbered)]
            text += star.table_text("optics", {name: [group.get(name, 0) for group in numbered] for name in names})
            text += "\n\n# version 30001\n"
        return (text + star.loop_head("particles", columns)).encode()

    def render(self, columns: Sequence[str], rows: StagedRows, optics_group: int | None) -> bytes:
        """One line per row."""
        if optics_group is not None:
            rows = replace(rows, columns={**rows.columns, "rlnOpticsGroup": [optics_group] * rows.count})
        return super().render(columns, rows, optics_group)


def numbers(values: Sequence[Any]) -> list[float] | None:
    """A column as floating-point numbers, also of text; None where a value of it is no finite number."""
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError):
        return None
    return found if all(map(math.isfinite, found)) else None


def coordinate_columns(coordinates: Coordinates, micrograph: str) -> dict[str, Sequence[Any]]:
    """The columns of coordinates: what their file had, then micrograph and position."""
    columns: dict[str, Sequence[Any]] = {name: values.tolist() for name, values in coordinates.columns.items()}
    columns["rlnMicrographName"] = [micrograph] * len(coordinates)
    columns["rlnCoordinateX"] = coordinates.xy_px[:, 0].tolist()
    columns["rlnCoordinateY"] = coordinates.xy_px[:, 1].tolist()
    return columns
