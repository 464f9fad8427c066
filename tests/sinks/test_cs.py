"""cryoSPARC tables: numpy and our own reader see in them what the RELION table says, in cryoSPARC's terms."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep.formats import cryosparc
from streamprep.hookspecs import StagedRows
from streamprep.model import Coordinates, Ctf
from streamprep.sinks._cs import CsTable, cs_rows

TABLE = CsTable("particles.cs")
SHAPE = (300, 200)
OPTICS: dict[str, Any] = {
    "rlnImagePixelSize": 2.0,
    "rlnImageSize": 8,
    "rlnImageDimensionality": 2,
    "rlnVoltage": 200.0,
    "rlnSphericalAberration": 1.4,
    "rlnAmplitudeContrast": 0.07,
    "rlnCtfDataArePhaseFlipped": 1,
    "rlnMicrographOriginalPixelSize": 1.0,
}


def relion(count: int = 2, stack: str = "a.mrcs", **columns: Sequence[Any]) -> StagedRows:
    own = {"rlnImageName": [f"{number:06d}@{stack}" for number in range(1, count + 1)], "rlnOpticsGroup": [0] * count}
    return StagedRows("particles.star", own | columns, count, OPTICS)


def placed(points: Sequence[tuple[float, float]], micrograph: str = "m/a.mrc", **more: Sequence[Any]) -> StagedRows:
    return relion(
        len(points),
        f"particles/{micrograph}s",
        rlnMicrographName=[micrograph] * len(points),
        rlnCoordinateX=[x for x, _ in points],
        rlnCoordinateY=[y for _, y in points],
        **more,
    )


def convert(rows: StagedRows, shape: tuple[int, int] | None = SHAPE) -> StagedRows:
    return cs_rows(
        rows, TABLE.path, micrograph_shape_px=shape, micrograph_pixel_size_angstrom=1.0, bright_particles=True
    )


def published(*blocks: StagedRows, group: int = 1) -> bytes:
    """The table as the committer publishes it, blocks with other columns adapted."""
    rendered = [(TABLE.columns(list(rows.columns)), rows) for rows in blocks]
    wanted = TABLE.columns(sorted({name for columns, _ in rendered for name in columns}))
    content = TABLE.head(wanted, [], sum(rows.count for rows in blocks))
    for columns, rows in rendered:
        content += TABLE.adapt(TABLE.render(columns, rows, group), columns, wanted)
    return content + TABLE.tail


def load(content: bytes) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return found


def test_fields_are_cryosparcs() -> None:
    rows = placed(
        [(50.0, 75.0), (0.0, 300.0)],
        rlnDefocusU=[15000.5, 1.0],
        rlnDefocusV=[14000.0, 1.0],
        rlnDefocusAngle=[-90.0, 0.0],
        rlnPhaseShift=[90.0, 0.0],
        rlnAutopickFigureOfMerit=["0.5", "0.25"],
        rlnClassNumber=["3", "4"],
        myNote=["a b", "c"],
    )
    table = load(published(convert(rows), group=2))
    assert table["blob/path"].tolist() == [b"particles/m/a.mrcs"] * 2
    assert table["blob/idx"].tolist() == [0, 1]
    assert table["blob/shape"].tolist() == [[8, 8]] * 2
    assert table["blob/psize_A"].tolist() == [2.0, 2.0]
    assert table["blob/sign"].tolist() == [-1.0, -1.0]
    signature = int.from_bytes(hashlib.sha1(b"particles/m/a.mrcs").digest()[:8], "little")
    assert table["blob/import_sig"].tolist() == [signature] * 2
    assert table["location/micrograph_path"].tolist() == [b"m/a.mrc"] * 2
    assert table["location/micrograph_shape"].tolist() == [list(SHAPE)] * 2
    assert table["location/center_x_frac"].tolist() == [0.25, 0.0]
    assert table["location/center_y_frac"].tolist() == [0.75, 0.0]
    assert table["location/micrograph_psize_A"].tolist() == [1.0, 1.0]
    assert table["location/exp_group_id"].tolist() == table["ctf/exp_group_id"].tolist() == [2, 2]
    assert [table[f"ctf/{name}"][0].item() for name in ("accel_kv", "df1_A", "df2_A")] == [200.0, 15000.5, 14000.0]
    np.testing.assert_allclose(table["ctf/cs_mm"], 1.4, rtol=1e-6)
    np.testing.assert_allclose(table["ctf/amp_contrast"], 0.07, rtol=1e-6)
    np.testing.assert_allclose(table["ctf/df_angle_rad"], [-np.pi / 2, 0], rtol=1e-6)
    np.testing.assert_allclose(table["ctf/phase_shift_rad"], [np.pi / 2, 0], rtol=1e-6)
    assert table["ctf/scale"].tolist() == [1.0, 1.0]
    assert table["pick_stats/ncc_score"].tolist() == [0.5, 0.25]
    assert table["rlnClassNumber"].tolist() == [3.0, 4.0]
    assert table.dtype.names is not None
    assert table.dtype.names[0] == "uid"
    assert not [name for name in table.dtype.names if "Note" in name or "Coordinate" in name or "Defocus" in name]
    kinds = {name: table.dtype[name].base.str for name in ("uid", "blob/idx", "blob/shape", "ctf/df1_A")}
    assert kinds == {"uid": "<u8", "blob/idx": "<u4", "blob/shape": "<u4", "ctf/df1_A": "<f4"}


def test_without_places_or_ctf_those_columns_are_not_there() -> None:
    for rows in (convert(relion()), convert(placed([(1.0, 2.0)]), None)):
        names = load(published(rows)).dtype.names or ()
        assert not [name for name in names if name.startswith(("location/", "ctf/"))]
    assert load(published(convert(placed([(1.0, 2.0)]), None)))["rlnCoordinateY"].tolist() == [2.0]


def test_names_of_other_lengths_and_other_columns_meet_in_one_table() -> None:
    long = "m/" + "x" * 60 + ".mrc"
    blocks = [
        convert(placed([(1.0, 2.0)], "m/a.mrc")),
        convert(placed([(3.0, 4.0)], long, rlnDefocusU=[1.0], rlnDefocusV=[2.0], rlnDefocusAngle=[3.0])),
        convert(relion(1)),
    ]
    table = load(published(*blocks))
    assert table["location/micrograph_path"].tolist() == [b"m/a.mrc", long.encode(), b""]
    assert table["ctf/df1_A"].tolist() == [0.0, 1.0, 0.0]
    assert len(set(table["uid"].tolist())) == 3


def test_a_table_without_rows_is_read() -> None:
    columns = TABLE.columns(list(convert(relion()).columns))
    assert load(TABLE.head(columns, [], 0)).shape == (0,)


def test_uids_are_the_same_again_and_never_0_nor_rounded() -> None:
    first = load(published(convert(relion(1000))))["uid"]
    assert (first == load(published(convert(relion(1000))))["uid"]).all()
    assert len(np.unique(first)) == 1000
    assert first.min() > 0
    assert (first >= 1 << 63).any()
    assert (first % 2048).any()
    expected = int.from_bytes(hashlib.blake2b(b"000001@a.mrcs", digest_size=8).digest(), "little")
    assert int(first[0]) == expected


def test_names_that_are_not_utf_8_do_not_stop_the_table() -> None:
    table = load(published(convert(relion(1, "m\udcff/ü.mrcs"))))
    assert table["blob/path"].tolist() == ["m\\udcff/ü.mrcs".encode()]


def test_columns_of_the_picks_never_take_the_place_of_ours() -> None:
    rows = relion(1, **{"uid": [7], "blob/idx": [7], "ctf/df1_A": [7.0], "a b": [1.0], "é": [2.0], "x" * 80: [1.0]})
    table = load(published(convert(rows)))
    assert table["uid"][0] != 7
    assert table["blob/idx"][0] == 0
    others = [name for name in table.dtype.names or () if not name.startswith(("uid", "blob/"))]
    assert others == ["rlnCtfDataArePhaseFlipped"]


def test_flipping_is_told_where_phases_were_flipped() -> None:
    assert load(published(convert(relion(2))))["rlnCtfDataArePhaseFlipped"].tolist() == [1, 1]
    unflipped = relion(2)
    unflipped = replace(unflipped, optics={**(unflipped.optics or {}), "rlnCtfDataArePhaseFlipped": 0})
    assert "rlnCtfDataArePhaseFlipped" not in (load(published(convert(unflipped))).dtype.names or ())


def test_any_number_of_further_columns_leaves_a_header_that_numpy_reads() -> None:
    blocks = [convert(relion(1, **{f"column_{half}_{index:04d}": [index] for index in range(300)})) for half in "ab"]
    table = load(published(*blocks))
    assert table["column_a_0007"].tolist() == [7.0, 0.0]
    assert len(table.dtype.names or ()) > 100


NAMES = st.text("abcÅé_0123456789/ .", min_size=1, max_size=40)
POINTS = st.lists(
    st.tuples(st.floats(0, SHAPE[1], allow_subnormal=False), st.floats(0, SHAPE[0], allow_subnormal=False)),
    min_size=1,
    max_size=6,
)


@given(st.lists(st.tuples(NAMES, POINTS), min_size=1, max_size=4), st.booleans())
@settings(max_examples=60)
def test_what_is_written_is_read_back(micrographs: list[tuple[str, list[tuple[float, float]]]], fitted: bool) -> None:
    blocks = []
    for index, (name, points) in enumerate(micrographs):
        count = len(points)
        ctf = {"rlnDefocusU": [2e4] * count, "rlnDefocusV": [19000.0] * count, "rlnDefocusAngle": [30.0] * count}
        blocks.append(convert(placed(points, f"{index}/{name}", **(ctf if fitted else {}))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "particles.cs")
        path.write_bytes(published(*blocks))
        assert cryosparc.recognise(path, path.read_bytes()[:4096]) == "coordinates"
        entries = cryosparc.read_entries(path)
    found = [entry for entry in entries if isinstance(entry.data, Coordinates)]
    assert [entry.micrograph for entry in found] == [f"{index}/{name}" for index, (name, *_) in enumerate(micrographs)]
    for entry, (_, points) in zip(found, micrographs, strict=True):
        assert isinstance(entry.data, Coordinates)
        np.testing.assert_allclose(entry.data.xy_px, points, atol=1e-4)
    for entry in entries:
        if isinstance(entry.data, Ctf):
            assert entry.data.defocus_angle_deg == pytest.approx(30.0, rel=1e-6)
            assert entry.data.voltage_kv == 200.0
            assert entry.data.amplitude_contrast == pytest.approx(0.07)


def test_cryosparcs_own_tools_read_what_is_written(tmp_path: Path) -> None:
    dataset = pytest.importorskip("cryosparc.dataset", reason="cryosparc-tools has no wheel for this machine")
    path = tmp_path / "particles.cs"
    points = [(10.25, 20.5), (150.0, 290.75)]
    path.write_bytes(
        published(convert(placed(points, rlnDefocusU=[2e4, 1e4], rlnDefocusV=[1e4] * 2, rlnDefocusAngle=[90.0, 0])))
    )
    read = dataset.Dataset.load(path)
    assert len(read) == 2
    ny, nx = SHAPE
    np.testing.assert_allclose(read["location/center_x_frac"] * nx, [x for x, _ in points], rtol=1e-6)
    np.testing.assert_allclose((1 - read["location/center_y_frac"]) * ny, [y for _, y in points], rtol=1e-5)
    assert read["blob/idx"].tolist() == [0, 1]
    assert read["location/micrograph_path"].tolist() == ["m/a.mrc"] * 2
    np.testing.assert_allclose(read["ctf/df_angle_rad"], [np.pi / 2, 0], rtol=1e-6)


def test_what_cryosparcs_own_tools_write_is_read(tmp_path: Path) -> None:
    dataset = pytest.importorskip("cryosparc.dataset", reason="cryosparc-tools has no wheel for this machine")
    made = dataset.Dataset.allocate(
        3,
        [
            ("location/micrograph_path", "O"),
            ("location/micrograph_shape", "<u4", (2,)),
            ("location/center_x_frac", "<f4"),
            ("location/center_y_frac", "<f4"),
        ],
    )
    made["location/micrograph_path"] = ["J1/a.mrc", "J1/b.mrc", "J1/a.mrc"]
    made["location/micrograph_shape"] = [(400, 200)] * 3
    made["location/center_x_frac"] = [0.5, 0.25, 0.125]
    made["location/center_y_frac"] = [0.25, 0.5, 0.75]
    made.save(tmp_path / "picked.cs", format=dataset.NUMPY_FORMAT)
    found = {
        entry.micrograph: entry.data.xy_px.tolist()
        for entry in cryosparc.read_entries(tmp_path / "picked.cs")
        if isinstance(entry.data, Coordinates)
    }
    assert found == {"J1/a.mrc": [[100, 300], [25, 100]], "J1/b.mrc": [[50, 200]]}
