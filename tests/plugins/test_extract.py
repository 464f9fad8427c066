"""extract: which pixels a box holds, what becomes of boxes at the edge, and what stays tied to each box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep.model import Context, Coordinates, Ctf, InputError, Item, Micrograph, Optics
from streamprep.plugins.extract import box_corners, boxes_inside, extract, extract_boxes
from streamprep.testing import ArrayBackend, backends, run_operation, tiny_micrograph

SHAPE = (40, 56)
"""ny, nx: not square, so that the two cannot be mixed up unnoticed."""


def counting(shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Every pixel its own value: 1000·y + x."""
    y, x = np.indices(shape)
    return (1000 * y + x).astype(np.float32)


def reference(image: np.ndarray, xy: np.ndarray, box: int) -> np.ndarray:
    """Pixel by pixel; beyond the edge, the edge's value."""
    ny, nx = image.shape
    out = np.empty((len(xy), box, box))
    for index, (cx, cy) in enumerate(xy):
        left, top = int(np.floor(cx + 0.5)) - box // 2, int(np.floor(cy + 0.5)) - box // 2
        for row in range(box):
            for column in range(box):
                out[index, row, column] = image[min(max(top + row, 0), ny - 1), min(max(left + column, 0), nx - 1)]
    return out


def coordinates(*xy: tuple[float, float], **columns: list[object]) -> Coordinates:
    kept = {name: np.array(values, dtype=object) for name, values in columns.items()}
    return Coordinates(np.array(xy, dtype=np.float64).reshape(-1, 2), columns=kept)


def context(**further: object) -> Context:
    return Context(Item("micrograph", "Micrographs/mic_1", Path("Micrographs/mic_1.mrc")), "extract", **further)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("box", [2, 5, 8, 64])
def test_every_backend_cuts_the_reference(backend: ArrayBackend, box: int) -> None:
    xy = np.array([[28.0, 20.0], [10.4, 30.6], [0.0, 0.0], [55.0, 39.0], [54.5, 3.5]])
    boxes = extract(backend.asarray(counting()), xy, box_size_px=box)
    assert boxes.shape == (5, box, box)
    np.testing.assert_array_equal(backend.to_host(boxes), reference(counting(), xy, box))


@settings(max_examples=60)
@given(
    box=st.integers(2, 11),
    ny=st.integers(1, 24),
    nx=st.integers(1, 24),
    xy=st.lists(st.tuples(st.floats(-15, 40), st.floats(-15, 40)), max_size=5),
)
def test_any_box_anywhere(box: int, ny: int, nx: int, xy: list[tuple[float, float]]) -> None:
    points = np.array(xy, dtype=np.float64).reshape(-1, 2)
    image = counting((ny, nx))
    np.testing.assert_array_equal(extract(image, points, box_size_px=box), reference(image, points, box))
    corner = box_corners(points, box)
    inside = [x >= 0 and x + box <= nx and y >= 0 and y + box <= ny for x, y in corner.tolist()]
    assert boxes_inside(points, box, (ny, nx)).tolist() == inside


@pytest.mark.parametrize("box", [6, 7])
def test_the_centre_is_at_half_the_box(box: int) -> None:
    (cut,) = extract(counting(), np.array([[20.0, 11.0]]), box_size_px=box)
    assert cut[box // 2, box // 2] == 11020


@pytest.mark.parametrize(
    ("centre", "pixel"),
    [(10.5, 11), (11.5, 12), (10.49, 10), (10.51, 11), (-0.5, 0), (-0.51, -1), (-1.5, -1)],
)
def test_halves_are_rounded_up(centre: float, pixel: int) -> None:
    assert box_corners(np.array([[centre, centre]]), 8).tolist() == [[pixel - 4, pixel - 4]]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float16", "float32", "float64", ">i2"])
def test_any_real_dtype_gives_float32(dtype: str) -> None:
    image = (counting() % 101).astype(dtype)
    boxes = extract(image, np.array([[3.0, 20.0], [0.0, 0.0]]), box_size_px=6)
    assert boxes.dtype == np.float32
    np.testing.assert_array_equal(boxes, reference(image, np.array([[3.0, 20.0], [0.0, 0.0]]), 6))


@pytest.mark.parametrize("box", [8, 9])
def test_skip_keeps_exactly_the_boxes_that_fit(box: int) -> None:
    low = box // 2
    high_x, high_y = SHAPE[1] - box + low, SHAPE[0] - box + low
    fits = [(low, low), (high_x, high_y), (high_x, low), (low, high_y)]
    crosses = [(low - 1, low), (low, low - 1), (high_x + 1, high_y), (high_x, high_y + 1)]
    micrograph = Micrograph("m.mrc", counting(), Optics(1.5))
    notes: list[str] = []
    found = coordinates(*fits, *crosses, rlnClassNumber=list("abcdefgh"))
    done, warnings = run_operation(extract_boxes, (micrograph, found), context(note=notes.append), box_size_px=box)
    assert done.coordinates.xy_px.tolist() == [list(map(float, point)) for point in fits]
    assert done.coordinates.columns["rlnClassNumber"].tolist() == list("abcd")
    np.testing.assert_array_equal(done.pixels, reference(counting(), np.array(fits, dtype=float), box))
    assert warnings == []
    assert notes == ["4 of 8 particle boxes cross the micrograph's edge and were skipped"]


def test_pad_keeps_every_box_whose_centre_is_on_the_micrograph() -> None:
    micrograph = Micrograph("m.mrc", counting(), Optics(1.5))
    notes: list[str] = []
    found = coordinates((0, 0), (55.4, 39.4), (30, 20), (55.5, 20), name=list("abcd"))
    done, warnings = run_operation(
        extract_boxes, (micrograph, found), context(note=notes.append), box_size_px=8, edge="pad"
    )
    assert done.coordinates.columns["name"].tolist() == list("abc")
    np.testing.assert_array_equal(done.pixels, reference(counting(), done.coordinates.xy_px, 8))
    assert done.pixels[0, :5, :5].tolist() == np.zeros((5, 5)).tolist()
    assert notes == []
    assert len(warnings) == 1
    assert "1 of 4 coordinates lie outside the 56×40 px micrograph, the first at x = 55.5, y = 20" in warnings[0]


@pytest.mark.parametrize("edge", ["skip", "pad"])
def test_some_coordinates_outside_are_a_warning(edge: str) -> None:
    micrograph = Micrograph("m.mrc", counting(), Optics(1.5))
    there = context(companions={"coordinates": Path("Picks/mic_1.star")})
    found = coordinates((20, 20), (20, 90))  # y = 90 would lie inside a micrograph that is 90 px high
    done, warnings = run_operation(extract_boxes, (micrograph, found), there, box_size_px=8, edge=edge)
    assert done.coordinates.xy_px.tolist() == [[20, 20]]
    assert len(warnings) == 1
    for part in ("Picks/mic_1.star", "1 of 2", "y = 90"):
        assert part in warnings[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("edge", ["skip", "pad"])
@pytest.mark.parametrize("far", [1e300, -1e300, 1e18, -(2.0**63), 2.0**31, -1e9])
def test_absurd_coordinates_are_outside_like_any_other(far: float, edge: str) -> None:
    micrograph = Micrograph("m.mrc", counting(), Optics(1.5))
    found = coordinates((20, 20), (far, 20), (20, far))
    done, warnings = run_operation(extract_boxes, (micrograph, found), context(), box_size_px=8, edge=edge)
    assert done.coordinates.xy_px.tolist() == [[20, 20]]
    assert "2 of 3 coordinates lie outside" in warnings[0]
    assert len(warnings[0]) < 200


@pytest.mark.parametrize("edge", ["skip", "pad"])
def test_all_coordinates_outside_name_their_file(edge: str) -> None:
    micrograph = Micrograph("m.mrc", counting(), Optics(1.5))
    there = context(companions={"coordinates": Path("Picks/mic_1.star")})
    found = coordinates((200, 300), (-4, 10))
    with pytest.raises(InputError, match="Picks/mic_1.star: 2 of 2 coordinates lie outside the 56×40 px") as caught:
        run_operation(extract_boxes, (micrograph, found), there, box_size_px=8, edge=edge)
    assert caught.value.path == "Picks/mic_1.star"


@pytest.mark.parametrize("output", [None, 4])
def test_no_coordinates_give_no_boxes(output: int | None) -> None:
    done, warnings = run_operation(
        extract_boxes, (tiny_micrograph(), coordinates()), box_size_px=8, output_size_px=output
    )
    assert done.pixels.shape == (0, output or 8, output or 8)
    assert len(done.coordinates) == 0
    assert warnings == []


def test_each_box_keeps_what_is_known_about_it() -> None:
    ctf = Ctf(12000, 11000, 40)
    micrograph = Micrograph("m.mrc", counting(), Optics(1.5, voltage_kv=200), ctf)
    found = coordinates((1, 1), (20.25, 21.75), (30.5, 18), score=[0.1, 0.2, 0.3])
    done, _ = run_operation(extract_boxes, (micrograph, found), box_size_px=8)
    assert done.coordinates.xy_px.tolist() == [[20.25, 21.75], [30.5, 18]]  # the rest below a pixel is kept
    assert done.coordinates.columns["score"].tolist() == [0.2, 0.3]
    assert done.coordinates.box_size_px == 8
    assert done.ctf == (ctf, ctf)
    assert done.optics == micrograph.optics
    assert done.label == "particle"
    assert done.pixels[0, 4, 4] == 22020


def test_each_box_is_of_the_optics_group_of_its_micrograph() -> None:
    said = {"rlnOpticsGroupName": "afis_7", "rlnMtfFileName": "k3.star", "rlnMicrographPixelSize": "0.83"}
    micrograph = Micrograph("m.mrc", counting(), Optics(1.5), Ctf(12000, 11000, 40), said)
    done, _ = run_operation(extract_boxes, (micrograph, coordinates((20, 21), (15, 18))), box_size_px=8)
    first, second = done.optics_columns
    assert first is second
    assert first == {
        "rlnOpticsGroupName": "afis_7",
        "rlnMtfFileName": "k3.star",
    }  # boxes have a pixel size of their own
    without, _ = run_operation(extract_boxes, (tiny_micrograph(SHAPE), coordinates((20, 21))), box_size_px=8)
    assert without.optics_columns == ()


def test_noise_boxes_are_cut_by_the_same_code_and_stay_noise() -> None:
    found = Coordinates(np.array([[20.0, 20.0]]), label="noise", box_size_px=8)
    done, _ = run_operation(extract_boxes, (tiny_micrograph(SHAPE), found), box_size_px=8)
    assert (done.label, done.coordinates.label) == ("noise", "noise")
    assert done.pixels.shape == (1, 8, 8)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize(("box", "output"), [(24, 12), (24, 15), (25, 12), (25, 15)])
def test_fourier_cropped_boxes_keep_place_and_scale(backend: ArrayBackend, box: int, output: int) -> None:
    y, x = np.indices((64, 80))
    blob = 5 + np.exp(-((x - 41) ** 2 + (y - 30) ** 2) / (2 * 3.5**2))
    micrograph = backend.move(Micrograph("m.mrc", blob.astype(np.float32), Optics(1.2), Ctf(12000, 12000, 0)))
    done, _ = run_operation(extract_boxes, (micrograph, coordinates((41, 30))), box_size_px=box, output_size_px=output)
    (cut,) = backend.to_host(done.pixels)
    assert cut.shape == (output, output)
    assert np.unravel_index(cut.argmax(), cut.shape) == (output // 2, output // 2)
    assert cut[output // 2, output // 2] == pytest.approx(6, abs=0.02)
    assert done.optics.pixel_size_angstrom == pytest.approx(1.2 * box / output)
    assert done.ctf == (micrograph.ctf,)
    assert done.coordinates.box_size_px == box  # on the micrograph a box is as large as before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"box_size_px": 1}, "box_size_px"),
        ({"box_size_px": 8, "output_size_px": 9}, "output_size_px = 9 is above box_size_px = 8"),
        ({"box_size_px": 8, "edge": "wrap"}, "edge"),
        ({}, "box_size_px"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run_operation(extract_boxes, (tiny_micrograph(), coordinates((20, 20))), **wrong)


def test_duplicates_are_left_out_when_asked_and_noise_is_as_many() -> None:
    from streamprep.plugins.pick_noise import pick_noise_coordinates

    micrograph = Micrograph("m.mrc", counting((200, 220)), Optics(1.5))
    merit = np.array(["0.1", "0.9", "0.5", "0.2"], dtype=object)
    found = Coordinates(
        np.array([[40.0, 40], [43, 40], [100, 90], [100, 200]]), columns={"rlnAutopickFigureOfMerit": merit}
    )
    notes: list[str] = []
    there = context(note=notes.append, box_size_px=8, min_separation_px=5.0)
    done, _ = run_operation(extract_boxes, (micrograph, found), there, box_size_px=8, min_separation_px=5)
    assert done.coordinates.xy_px.tolist() == [[43, 40], [100, 90]]
    assert len(done) == 2
    assert notes[0].startswith("1 of 3 particles are nearer than 5 px to a better one")
    noise, _ = run_operation(pick_noise_coordinates, (found, micrograph), there)
    assert len(noise) == 2
