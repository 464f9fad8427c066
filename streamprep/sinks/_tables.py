"""Growing tables of text, and RELION's STAR table, as the particle and the coordinate sink publish them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from streamprep.formats import star
from streamprep.hookspecs import StagedRows, Table
from streamprep.model import Coordinates
from streamprep.naming import unique_label

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

GROUP_NAME = "rlnOpticsGroupName"
OPTICS_COLUMNS = (
    GROUP_NAME,
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
            lines.append(" ".join(values.get(name, absent(name)) for name in want) + "\n")
        return "".join(lines).encode()


class StarTable(TextTable):
    """A growing table in RELION 3.1's form: ``data_optics`` where there are optics groups, then ``data_particles``."""

    leading = LEADING

    def head(self, columns: Sequence[str], optics: Sequence[Mapping[str, Any]], count: int) -> bytes:  # noqa: ARG002
        """Everything before the first row."""
        text = "# version 30001\n"
        if optics:
            numbered: list[dict[str, Any]] = []
            for number, group in enumerate(optics, start=1):
                wanted = str(group.get(GROUP_NAME, f"opticsGroup{number}"))  # that of the table it came from
                name = unique_label(wanted, [str(other[GROUP_NAME]) for other in numbered])
                numbered.append({**group, "rlnOpticsGroup": number, GROUP_NAME: name})
            known = {name for group in numbered for name in group}
            names = [name for name in OPTICS_COLUMNS if name in known] + sorted(known - set(OPTICS_COLUMNS))
            columns_of = {name: [group.get(name, absent(name)) for group in numbered] for name in names}
            text += star.table_text("optics", columns_of)
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


def absent(name: str) -> str:
    """What stands in a column for a row that does not have it, as RELION takes it."""
    return "None" if name.endswith(("Name", "micrograph")) else "0"


def coordinate_columns(coordinates: Coordinates, micrograph: str | None) -> dict[str, Sequence[Any]]:
    """The columns of coordinates: what their file had, then position, and the micrograph where it is known."""
    columns: dict[str, Sequence[Any]] = {name: values.tolist() for name, values in coordinates.columns.items()}
    if micrograph is not None:
        columns["rlnMicrographName"] = [micrograph] * len(coordinates)
    columns["rlnCoordinateX"] = coordinates.xy_px[:, 0].tolist()
    columns["rlnCoordinateY"] = coordinates.xy_px[:, 1].tolist()
    return columns
