"""Growing STAR tables: what RELION needs stands in them, and starfile and gemmi read every one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest
import starfile

from streamprep.formats import star
from streamprep.hookspecs import StagedRows
from streamprep.model import Coordinates
from streamprep.sinks._tables import OPTICS_COLUMNS, StarTable, coordinate_columns

TABLE = StarTable("particles.star")
OPTICS: dict[str, Any] = {
    "rlnImagePixelSize": 1.5,
    "rlnImageSize": 64,
    "rlnImageDimensionality": 2,
    "rlnVoltage": 200.0,
    "rlnSphericalAberration": 1.4,
    "rlnAmplitudeContrast": 0.07,
    "rlnCtfDataArePhaseFlipped": 0,
    "rlnMicrographOriginalPixelSize": 0.75,
}


def read_both(content: bytes) -> dict[str, dict[str, list[str]]]:
    """The tables as gemmi reads them, as text; and starfile must see the same."""
    found = {}
    for block in gemmi.cif.read_string(content.decode()):
        loop = block[0].loop
        width = len(loop.tags)
        found[block.name] = {
            tag[1:]: [gemmi.cif.as_string(value) for value in loop.values[index::width]]
            for index, tag in enumerate(loop.tags)
        }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.star")
        path.write_bytes(content)
        every = {name for columns in found.values() for name in columns}
        frames = starfile.read(path, always_dict=True, parse_as_string=sorted(every))
    assert {name: frame.to_dict("list") for name, frame in frames.items()} == found
    return found


def publish(rows: Sequence[StagedRows], optics: Sequence[Mapping[str, Any]], group: int | None = 1) -> bytes:
    columns = TABLE.columns(list(rows[0].columns))
    return TABLE.head(columns, optics, 0) + b"".join(TABLE.render(columns, block, group) for block in rows) + TABLE.tail


def rows_of(columns: Mapping[str, Sequence[Any]]) -> StagedRows:
    return StagedRows("particles.star", columns, len(next(iter(columns.values()))))


def test_optics_groups_are_numbered_and_named_and_rows_refer_to_them() -> None:
    columns = TABLE.columns(["rlnImageName", "rlnOpticsGroup"])
    content = TABLE.head(columns, [OPTICS, {**OPTICS, "rlnVoltage": 300.0}], 4)
    for group, name in ((1, "a.mrcs"), (2, "b.mrcs")):
        rows = rows_of({"rlnImageName": [f"000001@{name}", f"000002@{name}"], "rlnOpticsGroup": [0, 0]})
        content += TABLE.render(columns, rows, group)
    assert content.startswith(b"# version 30001\n")
    found = read_both(content)
    assert list(found) == ["optics", "particles"]
    assert found["optics"] == {
        "rlnOpticsGroupName": ["opticsGroup1", "opticsGroup2"],
        "rlnOpticsGroup": ["1", "2"],
        "rlnMicrographOriginalPixelSize": ["0.750000"] * 2,
        "rlnVoltage": ["200.000000", "300.000000"],
        "rlnSphericalAberration": ["1.400000"] * 2,
        "rlnAmplitudeContrast": ["0.070000"] * 2,
        "rlnImagePixelSize": ["1.500000"] * 2,
        "rlnImageSize": ["64"] * 2,
        "rlnImageDimensionality": ["2"] * 2,
        "rlnCtfDataArePhaseFlipped": ["0"] * 2,
    }
    assert list(found["optics"]) == list(OPTICS_COLUMNS)
    assert found["particles"] == {
        "rlnImageName": ["000001@a.mrcs", "000002@a.mrcs", "000001@b.mrcs", "000002@b.mrcs"],
        "rlnOpticsGroup": ["1", "1", "2", "2"],
    }


def test_a_table_of_coordinates_has_no_optics() -> None:
    columns = coordinate_columns(Coordinates(np.array([[1.0, 2.5]])), "Micrographs/a.mrc")
    found = read_both(publish([rows_of(columns)], [], None))
    assert found == {
        "particles": {
            "rlnMicrographName": ["Micrographs/a.mrc"],
            "rlnCoordinateX": ["1.000000"],
            "rlnCoordinateY": ["2.500000"],
        }
    }


def test_a_table_without_rows_is_whole() -> None:
    content = TABLE.head(["rlnImageName", "rlnOpticsGroup"], [OPTICS], 0) + TABLE.tail
    (block,) = gemmi.cif.read_string(content.decode()).find_block("particles")
    assert list(block.loop.tags) == ["_rlnImageName", "_rlnOpticsGroup"]
    assert block.loop.length() == 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.star")
        path.write_bytes(content)
        assert len(starfile.read(path)["particles"]) == 0


def test_columns_come_in_an_order_of_their_own() -> None:
    names = ["zeta", "rlnAnglePsi", "rlnOpticsGroup", "alpha", "rlnCoordinateY", "rlnImageName", "rlnCoordinateX"]
    expected = ["rlnImageName", "rlnCoordinateX", "rlnCoordinateY", "rlnOpticsGroup", "rlnAnglePsi", "alpha", "zeta"]
    assert TABLE.columns(names) == expected
    assert TABLE.columns(names[::-1]) == expected
    assert TABLE.columns(expected) == expected


def test_what_a_file_of_coordinates_had_is_kept_as_it_was_written() -> None:
    kept = {
        "rlnAutopickFigureOfMerit": ["0.624705", "6.1e-01"],
        "rlnClassNumber": ["0", "007"],
        "myNote": ["a b", "größe #1"],
    }
    coordinates = Coordinates(
        np.array([[1.0, 2.0], [3.0, 4.0]]),
        columns={name: np.array(values, dtype=object) for name, values in kept.items()},
    )
    found = read_both(publish([rows_of(coordinate_columns(coordinates, "a b/ü.mrc"))], [], None))["particles"]
    assert {name: found[name] for name in kept} == kept
    assert found["rlnMicrographName"] == ["a b/ü.mrc"] * 2


@pytest.mark.parametrize(
    "name",
    ["data_1/a.mrc", "loop_", "_a.mrc", "#1/a.mrc", "a#1.mrc", "Grid 5/a.mrc", "粒子.mrc", "a\nb.mrc", "\udcff.mrc"],
)
def test_a_hostile_micrograph_name_does_not_break_the_table_of_the_others(name: str) -> None:
    blocks = [
        rows_of(coordinate_columns(Coordinates(np.array([[1.0, 2.0]])), text))
        for text in ("before.mrc", name, "after.mrc")
    ]
    found = read_both(publish(blocks, [], None))["particles"]
    assert found["rlnMicrographName"][::2] == ["before.mrc", "after.mrc"]
    assert found["rlnCoordinateX"] == ["1.000000"] * 3
    if name.isprintable():
        assert found["rlnMicrographName"][1] == name


def test_rows_with_fewer_columns_get_defaults_for_the_others() -> None:
    have = ["rlnImageName", "rlnMicrographName", "rlnCoordinateX"]
    want = ["rlnImageName", "rlnMicrographName", "rlnCoordinateX", "rlnDefocusU", "rlnGroupName"]
    rows = rows_of(
        {
            "rlnImageName": ["000001@a.mrcs", "000002@a.mrcs"],
            "rlnMicrographName": ["a b/c.mrc", "it's.mrc"],
            "rlnCoordinateX": [1.5, 2],
        }
    )
    block = TABLE.adapt(TABLE.render(have, rows, None), have, want)
    found = gemmi.cif.read_string((star.loop_head("particles", want).encode() + block).decode()).sole_block()
    assert [[value.str(index) for index in range(5)] for value in found.find([f"_{name}" for name in want])] == [
        ["000001@a.mrcs", "a b/c.mrc", "1.500000", "0", "None"],
        ["000002@a.mrcs", "it's.mrc", "2", "0", "None"],
    ]


def test_rows_can_be_given_fewer_columns_or_another_order() -> None:
    have, want = ["a", "b", "c"], ["c", "a"]
    rows = rows_of({"a": ["x y", "#"], "b": [1, 2], "c": [0.5, 0.25]})
    adapted = TABLE.adapt(TABLE.render(have, rows, None), have, want)
    assert adapted == TABLE.render(want, rows, None)


def test_adapting_rows_to_their_own_columns_changes_nothing() -> None:
    names = ["plain", "a b", "it's a", 'say "x"', "é", "data_1", ";", "two\u2028lines", "\x85", ""]
    rows = rows_of({"rlnMicrographName": names, "number": list(range(len(names)))})
    columns = TABLE.columns(list(rows.columns))
    block = TABLE.render(columns, rows, None)
    assert block.count(b"\n") == len(names)
    assert TABLE.adapt(block, columns, columns) == block


def test_rows_that_do_not_fit_their_columns_are_not_adapted() -> None:
    with pytest.raises(ValueError, match="shorter"):
        TABLE.adapt(b"1 2\n", ["a", "b", "c"], ["a"])
