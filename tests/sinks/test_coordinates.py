"""The coordinate sink: rows for the growing tables, and a ``.pos`` file for each micrograph, with or without rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gemmi
import numpy as np
import starfile

from streamprep.config import Config, Session
from streamprep.hookspecs import ItemResult, Staged, StagedRows
from streamprep.model import Coordinates, Item, Label, Micrograph, Optics
from streamprep.sinks import coordinates as sink_module
from streamprep.sinks.coordinates import CoordinateSink

PICKS = Coordinates(
    np.array([[10.5, 20.0], [30.25, 40.0]]),
    columns={"rlnAutopickFigureOfMerit": np.array(["0.62", "0.50"], dtype=object)},
)
NOISE = Coordinates(np.array([[5.0, 6.0]]), "noise")
TABLES = {table.path: table for table in CoordinateSink().tables}


def stage(folder: Path, coordinates: Mapping[Label, Coordinates]) -> Staged:
    micrograph = Micrograph("Micrographs/a.mrc", np.zeros((64, 64)), Optics(1.5))
    item = Item("micrograph", "Micrographs/a", Path("/data/Micrographs/a.mrc"))
    return CoordinateSink().stage(ItemResult(item, 1, micrograph, coordinates, {}), folder)


def rendered(rows: StagedRows) -> bytes:
    table = TABLES[rows.table]
    columns = table.columns(list(rows.columns))
    return table.head(columns, []) + table.render(columns, rows, None)


def test_each_set_has_a_table_and_a_pos_file(tmp_path: Path) -> None:
    staged = stage(tmp_path, {"particle": PICKS, "noise": NOISE})
    assert [(rows.table, rows.count) for rows in staged.rows] == [
        ("coordinates/particles.star", 2),
        ("coordinates/pos/{item}.pos", 1),
        ("coordinates/noise.star", 1),
        ("coordinates/pos_noise/{item}.pos", 1),
    ]
    assert {rows.table for rows in staged.rows} == set(TABLES)
    assert staged.files == ()
    assert list(tmp_path.iterdir()) == []


def test_the_table_holds_the_coordinates_and_what_was_known_of_them(tmp_path: Path) -> None:
    staged = stage(tmp_path, {"particle": PICKS})
    path = tmp_path / "particles.star"
    path.write_bytes(rendered(staged.rows[0]))
    assert starfile.read(path).to_dict("list") == {
        "rlnMicrographName": ["Micrographs/a.mrc"] * 2,
        "rlnCoordinateX": [10.5, 30.25],
        "rlnCoordinateY": [20.0, 40.0],
        "rlnAutopickFigureOfMerit": [0.62, 0.5],
    }
    assert b" 0.62\n" in path.read_bytes()


def test_the_pos_file_is_a_whole_file(tmp_path: Path) -> None:
    staged = stage(tmp_path, {"particle": PICKS})
    table = gemmi.cif.read_string(rendered(staged.rows[1]).decode()).find_block("particles")
    assert [tuple(row) for row in table.find(["_enabled", "_xcoor", "_ycoor"])] == [
        ("1", "11", "20"),
        ("1", "30", "40"),
    ]


def test_a_set_without_rows_makes_an_empty_pos_file_and_no_rows(tmp_path: Path) -> None:
    (rows,) = stage(tmp_path, {"particle": Coordinates(np.empty((0, 2)))}).rows
    assert rows.table == "coordinates/pos/{item}.pos"
    table = gemmi.cif.read_string(rendered(rows).decode()).find_block("particles")
    assert list(table[0].loop.tags) == ["_enabled", "_xcoor", "_ycoor"]
    assert table[0].loop.length() == 0


def test_a_set_that_was_not_made_has_no_files(tmp_path: Path) -> None:
    assert stage(tmp_path, {}) == Staged()


def test_pos_text_is_never_adapted(tmp_path: Path) -> None:
    rows = stage(tmp_path, {"noise": NOISE}).rows[1]
    block = rendered(rows)
    assert TABLES[rows.table].adapt(block, ["text"], ["text", "more"]) == block


def test_the_sink_is_made_where_there_are_coordinates(tmp_path: Path) -> None:
    session = Session(watch=["Micrographs"])
    made = [
        sink_module.make_sinks(Config(session=session, **more))
        for more in ({"extract": {}}, {"coordinates": {"pick_noise": {}}}, {}, {"particles": {"invert": {}}})
    ]
    assert [len(sinks) for sinks in made] == [1, 1, 0, 0]
    assert [table.path for table in made[0][0].tables] == list(TABLES)
