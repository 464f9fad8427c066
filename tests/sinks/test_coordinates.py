"""The coordinate sink: rows for the growing tables, and files for each micrograph, with or without rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import starfile

from streamprep.config import Config, Session, Sets
from streamprep.formats import eman
from streamprep.hookspecs import ItemResult, Staged, StagedRows
from streamprep.model import Coordinates, Item, Label, Micrograph, Optics
from streamprep.sinks import coordinates as sink_module
from streamprep.sinks.coordinates import CoordinateSink

PICKS = Coordinates(
    np.array([[10.5, 20.0], [30.25, 40.0]]),
    columns={"rlnAutopickFigureOfMerit": np.array(["0.62", "0.50"], dtype=object)},
)
NOISE = Coordinates(np.array([[5.0, 6.0]]), "noise")
NOTHING = Coordinates(np.empty((0, 2)), "noise", box_size_px=8)
CONFIG = Config(session=Session(watch=["Micrographs"]), extract={})
TABLES = {table.path: table for table in CoordinateSink(CONFIG).tables}


def stage(folder: Path, coordinates: Mapping[Label, Coordinates], config: Config = CONFIG) -> Staged:
    micrograph = Micrograph("Micrographs/a.mrc", np.zeros((64, 64)), Optics(1.5))
    item = Item("micrograph", "Micrographs/a", Path("/data/Micrographs/a.mrc"))
    return CoordinateSink(config).stage(ItemResult(item, 1, micrograph, coordinates, {}), folder)


def rendered(rows: StagedRows) -> bytes:
    table = TABLES[rows.table]
    columns = table.columns(list(rows.columns))
    return table.head(columns, [], rows.count) + table.render(columns, rows, None)


def test_each_set_has_a_table_and_files(tmp_path: Path) -> None:
    staged = stage(tmp_path, {"particle": replace(PICKS, box_size_px=16), "noise": replace(NOISE, box_size_px=8)})
    assert [(rows.table, rows.count) for rows in staged.rows] == [
        ("coordinates/particles.star", 2),
        ("coordinates/pos/{item}.pos", 1),
        ("coordinates/box/{item}.box", 1),
        ("coordinates/noise.star", 1),
        ("coordinates/pos_noise/{item}.pos", 1),
        ("coordinates/box_noise/{item}.box", 1),
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


def test_the_box_file_has_corners_of_the_boxes(tmp_path: Path) -> None:
    staged = stage(tmp_path, {"particle": replace(PICKS, box_size_px=17)})
    path = tmp_path / "a.box"
    path.write_bytes(rendered(staged.rows[2]))
    assert path.read_text() == "2\t12\t17\t17\n22\t32\t17\t17\n"
    (entry,) = eman.read_entries(path)
    assert isinstance(entry.data, Coordinates)
    assert entry.data.box_size_px == 17
    assert np.abs(entry.data.xy_px - PICKS.xy_px).max() <= 0.5


def test_without_a_box_size_there_is_no_box_file_and_without_rows_an_empty_one(tmp_path: Path) -> None:
    assert not [rows for rows in stage(tmp_path, {"particle": PICKS}).rows if ".box" in rows.table]
    (rows,) = (row for row in stage(tmp_path, {"noise": NOTHING}).rows if ".box" in row.table)
    assert rendered(rows) == b""


def test_only_the_files_that_are_asked_for_are_made(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"sets": Sets(coordinate_files=["box", "box"])})
    staged = stage(tmp_path, {"noise": NOTHING}, config)
    assert [rows.table for rows in staged.rows] == ["coordinates/box_noise/{item}.box"]
    tables = [table.path for table in CoordinateSink(config).tables]
    assert tables[2:] == ["coordinates/box/{item}.box", "coordinates/box_noise/{item}.box"]


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
