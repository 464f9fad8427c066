"""Xmipp tables: gemmi and our own reader see in them what the RELION table says, in Xmipp's terms."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep.formats import xmipp
from streamprep.hookspecs import StagedRows
from streamprep.model import Coordinates, ParticleRows
from streamprep.sinks._xmd import XmdTable, xmd_rows

TABLE = XmdTable("particles.xmd")
OPTICS: dict[str, Any] = {
    "rlnImagePixelSize": 2.0,
    "rlnImageSize": 8,
    "rlnImageDimensionality": 2,
    "rlnVoltage": 200.0,
    "rlnSphericalAberration": 1.4,
    "rlnAmplitudeContrast": 0.07,
    "rlnCtfDataArePhaseFlipped": 1,
}


def relion(count: int = 2, **columns: Sequence[Any]) -> StagedRows:
    own = {"rlnImageName": [f"{number:06d}@a.mrcs" for number in range(1, count + 1)], "rlnOpticsGroup": [0] * count}
    return StagedRows("particles.star", own | columns, count, OPTICS)


def published(*blocks: StagedRows) -> bytes:
    """The table as the committer publishes it, blocks with fewer columns adapted."""
    rows = [xmd_rows(block, TABLE.path) for block in blocks]
    rendered = [(TABLE.columns(list(each.columns)), each) for each in rows]
    wanted = TABLE.columns(sorted({name for columns, _ in rendered for name in columns}))
    content = TABLE.head(wanted, [], sum(each.count for each in rows))
    for columns, each in rendered:
        assert each.optics is None
        assert {len(values) for values in each.columns.values()} == {each.count}
        content += TABLE.adapt(TABLE.render(columns, each, None), columns, wanted)
    return content + TABLE.tail


def read(content: bytes) -> dict[str, list[str]]:
    assert content.splitlines()[0].rstrip() == b"# XMIPP_STAR_1 *"
    block = gemmi.cif.read_string(content.decode()).sole_block()
    assert block.name == "particles"
    loop = block[0].loop
    width = len(loop.tags)
    return {
        tag[1:]: [gemmi.cif.as_string(value) for value in loop.values[index::width]]
        for index, tag in enumerate(loop.tags)
    }


def numbers(content: bytes, name: str) -> list[float]:
    return [float(value) for value in read(content)[name]]


def test_columns_have_xmipps_labels() -> None:
    content = published(
        relion(
            rlnMicrographName=["m/a b.mrc"] * 2,
            rlnCoordinateX=[10.5, 3.25],
            rlnCoordinateY=[-4.0, 7.5],
            rlnDefocusU=[15000.5, 1.0],
            rlnDefocusV=[14000.0, 1.0],
            rlnDefocusAngle=[-35.5, 0.0],
            rlnPhaseShift=[90.0, 0.0],
            rlnAutopickFigureOfMerit=["0.62", "5e-1"],
            myNote=["a b", "c"],
        )
    )
    found = read(content)
    assert found == {
        "enabled": ["1", "1"],
        "image": ["000001@a.mrcs", "000002@a.mrcs"],
        "micrograph": ["m/a b.mrc"] * 2,
        "xcoor": ["11", "3"],
        "ycoor": ["0", "8"],
        "ctfVoltage": ["200.000000"] * 2,
        "ctfDefocusU": ["15000.500000", "1.000000"],
        "ctfDefocusV": ["14000.000000", "1.000000"],
        "ctfDefocusAngle": ["-35.500000", "0.000000"],
        "ctfSphericalAberration": ["1.400000"] * 2,
        "ctfQ0": ["0.070000"] * 2,
        "ctfVPPphaseshift": ["90.000000", "0.000000"],
        "cost": ["0.62", "5e-1"],
        "rlnCoordinateX": ["10.500000", "3.250000"],
        "rlnCoordinateY": ["-4.000000", "7.500000"],
        "rlnImagePixelSize": ["2.000000"] * 2,
        "rlnCtfDataArePhaseFlipped": ["1"] * 2,
        "myNote": ["a b", "c"],
    }
    assert list(found)[:5] == ["enabled", "image", "micrograph", "xcoor", "ycoor"]


def test_ids_of_the_input_are_left_out() -> None:
    assert "itemId" not in read(published(relion(itemId=["7", "7"]), relion(itemId=["7", "8"])))


def test_shifts_are_pixels_of_the_image() -> None:
    content = published(relion(rlnOriginXAngst=[3.0, -1.0], rlnOriginYAngst=["0.5", "2"]))
    assert numbers(content, "shiftX") == [1.5, -0.5]
    assert numbers(content, "shiftY") == [0.25, 1.0]
    assert not [name for name in read(content) if "Origin" in name or "angle" in name]


def test_the_same_image_is_made_by_either_program() -> None:
    """RELION shifts, then takes the pixel of each place from R(psi) of it; Xmipp turns, then shifts."""
    rng = np.random.default_rng(1)
    places = rng.uniform(-50, 50, (20, 2))
    psi, origin = rng.uniform(-180, 180, 2), rng.uniform(-20, 20, (2, 2))
    content = published(
        relion(rlnAnglePsi=psi.tolist(), rlnOriginXAngst=origin[:, 0].tolist(), rlnOriginYAngst=origin[:, 1].tolist())
    )
    for row in range(2):

        def turn(degrees: float) -> Any:
            angle = np.deg2rad(degrees)
            return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])

        relion_source = places @ turn(psi[row]).T - origin[row] / 2.0
        shift = np.array([numbers(content, name)[row] for name in ("shiftX", "shiftY")])
        xmipp_source = (places - shift) @ np.linalg.inv(turn(numbers(content, "anglePsi")[row])).T
        np.testing.assert_allclose(xmipp_source, relion_source, atol=1e-4)


def test_tilted_views_keep_their_angles_and_shifts() -> None:
    content = published(
        relion(
            rlnAngleRot=[1.0, 2.0],
            rlnAngleTilt=["3", "4"],
            rlnAnglePsi=[5.0, 6.0],
            rlnOriginXAngst=[2.0, 4.0],
            rlnOriginYAngst=[0.0, 0.0],
        )
    )
    for label, expected in (("angleRot", [1, 2]), ("angleTilt", [3, 4]), ("anglePsi", [5, 6]), ("shiftX", [1, 2])):
        assert numbers(content, label) == expected


def test_what_is_no_number_keeps_its_own_name() -> None:
    found = read(
        published(relion(rlnOriginXAngst=["None", "1"], rlnOriginYAngst=[1.0, 2.0], rlnAnglePsi=["0", "unknown"]))
    )
    assert found["rlnOriginXAngst"] == ["None", "1"]
    assert found["rlnAnglePsi"] == ["0", "unknown"]
    assert not {"shiftX", "shiftY", "anglePsi"} & set(found)


def test_labels_that_the_picks_brought_give_way_to_ours() -> None:
    found = read(published(relion(image=["old", "old"], enabled=["-1", "1"], shiftX=["1.5", "2"])))
    assert found["image"] == ["000001@a.mrcs", "000002@a.mrcs"]
    assert found["enabled"] == ["1", "1"]
    assert found["shiftX"] == ["1.5", "2"]


def test_blocks_with_fewer_columns_are_adapted() -> None:
    scored = relion(1, rlnAutopickFigureOfMerit=[0.5], rlnMicrographName=["m.mrc"])
    found = read(published(relion(1), scored))
    assert found["cost"] == ["0", "0.500000"]
    assert found["micrograph"] == ["None", "m.mrc"]


FINITE = st.floats(-1e5, 1e5, allow_nan=False)
NAMES = st.text("abcÅ é'#_0123456789/.", min_size=1, max_size=12).filter(lambda text: " ".join(text.split()) == text)


@given(st.lists(st.tuples(NAMES, st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=5)), min_size=1, max_size=4))
@settings(max_examples=60)
def test_what_is_written_is_read_back(micrographs: list[tuple[str, list[tuple[float, float]]]]) -> None:
    first = 1
    blocks = []
    for index, (name, points) in enumerate(micrographs):
        blocks.append(
            relion(
                len(points),
                rlnImageName=[f"{first + row}@a.mrcs" for row in range(len(points))],
                rlnMicrographName=[f"{index}/{name}"] * len(points),
                rlnCoordinateX=[x for x, _ in points],
                rlnCoordinateY=[y for _, y in points],
            )
        )
        first += len(points)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "particles.xmd")
        path.write_bytes(published(*blocks))
        assert xmipp.recognise(path, path.read_bytes()[:4096]) == "coordinates"
        entries = xmipp.read_entries(path)
    (rows,) = (entry for entry in entries if isinstance(entry.data, ParticleRows))
    assert rows.micrograph == "a.mrcs"
    picked = [entry for entry in entries if isinstance(entry.data, Coordinates)]
    assert [entry.micrograph for entry in picked] == [f"{index}/{name}" for index, (name, _) in enumerate(micrographs)]
    for entry, (_, points) in zip(picked, micrographs, strict=True):
        assert isinstance(entry.data, Coordinates)
        expected = np.clip(points, 0, None)
        assert np.abs(entry.data.xy_px - expected).max() <= 0.5
        exact = [float(value) for value in entry.data.columns["rlnCoordinateX"]]
        np.testing.assert_allclose(exact, np.array(points)[:, 0], atol=1e-6)


@pytest.mark.parametrize(("value", "pixel"), [(0.49, 0), (0.5, 1), (1.5, 2), (-3.0, 0), (7.0, 7)])
def test_whole_pixels(value: float, pixel: int) -> None:
    assert xmipp.whole_pixels([value]) == [pixel]
