"""MRC files: every broken one gets a fixed verdict, every readable one its true pixels, every written one is valid."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import itertools
import math
import os
import random
import struct
import tempfile
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from streamprep import formats
from streamprep.formats import mrc, mrc_output
from streamprep.model import InputError, Item

STAMPS = {"<": b"\x44\x44\x00\x00", ">": b"\x11\x11\x00\x00"}
TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
NOWHERE = Path("mic.mrc")


def header(
    nx: int,
    ny: int,
    nz: int,
    mode: int,
    order: str = "<",
    *,
    extended: int = 0,
    space_group: int = 0,
    mz: int = 1,
    pixel_size: float = 1.5,
    map_id: bytes = b"MAP ",
    stamp: bytes | None = None,
) -> bytes:
    """A header made byte by byte from the MRC2014 standard, so that no MRC library judges itself."""
    raw = bytearray(1024)
    struct.pack_into(f"{order}10i", raw, 0, nx, ny, nz, mode, 0, 0, 0, nx, ny, mz)
    cell = [side * pixel_size if 0 < side < 1 << 30 else 0 for side in (nx, ny, mz)]
    struct.pack_into(f"{order}6f", raw, 40, *cell, 90, 90, 90)
    struct.pack_into(f"{order}3i", raw, 64, 1, 2, 3)
    struct.pack_into(f"{order}2i", raw, 88, space_group, extended)
    raw[208:212] = map_id
    raw[212:216] = STAMPS[order] if stamp is None else stamp
    return bytes(raw)


def values(shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    numbers = np.arange(math.prod(shape)).reshape(shape) * 7 % 251
    return (numbers - 100 * (dtype[0] != "u")).astype(dtype)


def verdict(size: int, head: bytes) -> str:
    """What `missing` says, up to the numbers; "never" where it raises."""
    try:
        said = mrc.missing(NOWHERE, size, head)
    except InputError:
        return "never"
    return "whole" if said is None else said.partition(":")[0]


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("map_id", [b"MAP ", b"MAP\0", b"\0\0\0\0", b"junk"])
@pytest.mark.parametrize("stamp", [None, b"\0\0\0\0", b"\x44\x41\0\0", b"\x11\x11\0\0", b"\x44\x44\0\0", b"\xff" * 4])
def test_the_header_is_read_whatever_map_id_and_machine_stamp_say(
    order: str, map_id: bytes, stamp: bytes | None
) -> None:
    head = header(300, 200, 3, 2, order, extended=80, space_group=1, mz=3, map_id=map_id, stamp=stamp)
    found = mrc.parse_header(NOWHERE, head)
    assert (found.nx, found.ny, found.nz, found.mode, found.byte_order) == (300, 200, 3, 2, order)
    assert (found.space_group, found.extended_bytes) == (1, 80)
    assert found.file_bytes == 1024 + 80 + 300 * 200 * 3 * 4
    assert found.pixel_size_angstrom == pytest.approx(1.5)


@pytest.mark.case(17)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("side", [100, 255, 256, 512, 4096])
@pytest.mark.parametrize("stamp", [None, b"\0\0\0\0", STAMPS["<"], STAMPS[">"]])
def test_8_bit_images_are_not_taken_for_the_other_byte_order(order: str, side: int, stamp: bytes | None) -> None:
    """Mode 0 is the same in both orders, and 256 pixels of one are 65536 of the other, each of them possible."""
    found = mrc.parse_header(NOWHERE, header(side, side, 1, 0, order, stamp=stamp))
    assert (found.nx, found.ny, found.nz, found.byte_order) == (side, side, 1, order)


@pytest.mark.parametrize(("cell", "mx"), [(math.nan, 10), (math.inf, 10), (-3.0, 10), (0.0, 10), (30.0, 0), (30.0, -1)])
def test_a_cell_that_makes_no_sense_is_an_unknown_pixel_size(tmp_path: Path, cell: float, mx: int) -> None:
    raw = bytearray(header(4, 4, 1, 2))
    struct.pack_into("<f", raw, 40, cell)
    struct.pack_into("<i", raw, 28, mx)
    assert mrc.parse_header(NOWHERE, bytes(raw)).pixel_size_angstrom == 0
    (tmp_path / "a.mrc").write_bytes(bytes(raw) + bytes(64))
    assert mrc.read(tmp_path / "a.mrc").pixel_size_angstrom is None


def test_is_mrc_goes_by_the_map_id() -> None:
    assert mrc.is_mrc(header(1, 1, 1, 2))
    assert not mrc.is_mrc(header(1, 1, 1, 2, map_id=b"\0\0\0\0"))
    assert not mrc.is_mrc(b"MAP ")


# --- complete or not -------------------------------------------------------------------------------------------------


@pytest.mark.case(17)
@pytest.mark.parametrize(
    ("size", "head", "expected"),
    [
        (0, b"", "the file is empty"),
        (1023, header(10, 10, 1, 2)[:1023], "1023 of the 1024 bytes of an MRC header"),
        (1024, bytes(1024), "its header is still all zero"),
        (1 << 30, bytes(4096), "its header is still all zero"),
        (1024, header(10, 10, 1, 2), "truncated"),
        (1423, header(10, 10, 1, 2), "truncated"),
        (1424, header(10, 10, 1, 2), "whole"),
        (1425, header(10, 10, 1, 2), "longer than its header says"),
        (1424, header(10, 10, 1, 2, extended=1), "truncated"),
        (1425, header(10, 10, 1, 2, ">", extended=1), "whole"),
        (1424, header(131_072, 131_072, 1 << 24, 2), "truncated"),  # 4.6 exabytes
        (1424, header(131_073, 10, 1, 2), "never"),
        (1424, header(2**31 - 1, 2**31 - 1, 2**31 - 1, 2), "never"),
        (1424, header(10, 10, (1 << 24) + 1, 2), "never"),
        (1424, header(-10, -10, 1, 2), "never"),
        (1424, header(10, -(2**31), 1, 2), "never"),
        (1424, header(10, 0, 1, 2), "never"),
        (1424, header(10, 10, 0, 2), "never"),
        (1424, header(10, 10, 1, 3), "never"),
        (1424, header(10, 10, 1, 4), "never"),
        (1424, header(10, 10, 1, -2), "never"),
        (1424, header(10, 10, 1, 2**31 - 1), "never"),
        (1424, header(10, 10, 1, 2, extended=-1), "never"),
        (1424, header(10, 10, 1, 2, extended=2**31 - 1), "never"),
        (5000, b"<html>" + b"x" * 4090, "never"),
        (5000, b"\xff" * 4096, "never"),
    ],
)
def test_every_file_has_its_verdict(size: int, head: bytes, expected: str) -> None:
    assert verdict(size, head) == expected


def test_messages_name_the_file_the_sizes_and_what_is_allowed() -> None:
    said = mrc.missing(NOWHERE, 1424, header(20, 10, 1, 1, extended=512))
    assert said is not None
    for part in ("1424 bytes", "20 × 10 × 1 of mode 1", "512 bytes of extended", "1936"):
        assert part in said
    with pytest.raises(InputError, match=r"mic\.mrc: .*data mode 3 is not supported; known are 0, 1, 2, 6, 12"):
        mrc.missing(NOWHERE, 1424, header(10, 10, 1, 3))
    for order in "<>":
        with pytest.raises(InputError, match="-10 × 7 × 1; each size must be at least 1 and at most 131072"):
            mrc.missing(NOWHERE, 1424, header(-10, 7, 1, 2, order))


@pytest.mark.case(17)
@given(st.integers(0, 1 << 40), st.binary(max_size=1100))
def test_random_bytes_have_a_verdict(size: int, head: bytes) -> None:
    assume(mrc.compression(head) is None)
    assert verdict(max(size, len(head)), head)


@pytest.mark.case(19)
@given(st.sampled_from([b"\x1f\x8b\x08", b"BZh91AY&SY"]), st.binary(max_size=200))
def test_random_compressed_bytes_have_a_verdict(magic: bytes, rest: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mic.mrc.gz")
        path.write_bytes(magic + rest)
        with contextlib.suppress(InputError):
            assert mrc.missing(path, len(magic + rest), magic + rest) is not None


numbers = st.one_of(st.integers(-3, 20), st.sampled_from([256, 512, 65536, 2**31 - 1, -(2**31)]), st.integers(-9, 9**9))


@pytest.mark.case(17)
@given(numbers, numbers, numbers, st.integers(-1, 13), numbers, st.sampled_from("<>"), st.integers(0, 9000))
def test_random_headers_have_a_verdict(
    nx: int, ny: int, nz: int, mode: int, extended: int, order: str, size: int
) -> None:
    said = verdict(size, header(nx, ny, nz, mode, order, extended=extended))
    fits = mode in TYPES and min(nx, ny, nz) > 0 and extended >= 0
    if fits and size == 1024 + extended + nx * ny * nz * np.dtype(TYPES[mode]).itemsize:
        assert said == "whole"
    elif size >= 1024:
        assert said in ("truncated", "longer than its header says", "never")


def unusable() -> dict[str, bytes]:
    noise = np.random.default_rng(3).bytes(5000)
    return {
        "empty": b"",
        "short": header(10, 10, 1, 2)[:500],
        "all zero": bytes(5000),
        "truncated": header(100, 100, 1, 2) + bytes(39_999),
        "longer": header(100, 100, 1, 2) + bytes(40_001),
        "forged sizes": header(131_072, 131_072, 1 << 24, 2) + bytes(400),
        "forged sizes, 8 bit, wrong stamp": header(60_000, 60_000, 1, 0, stamp=STAMPS[">"]) + bytes(400),
        "forged extended header": header(10, 10, 1, 2, extended=1 << 30) + bytes(400),
        "volume stack of no volumes": header(100, 100, 2, 2, space_group=401, mz=0),
        "negative": header(-10, -10, 1, 2) + bytes(400),
        "bad mode": header(10, 10, 1, 101) + bytes(400),
        "random": noise,
        "text": b"data_\nloop_\n" * 400,
    }


@pytest.mark.case(17)
@pytest.mark.parametrize("name", unusable())
def test_reading_an_unusable_file_is_refused_without_taking_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.mrc"
    path.write_bytes(unusable()[name])
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"a\.mrc: "):
            mrc.read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("mode", TYPES)
@pytest.mark.parametrize("extended", [0, 160, 768 * 3])
def test_pixels_are_read_in_the_machines_byte_order(tmp_path: Path, order: str, mode: int, extended: int) -> None:
    data = values((5, 9), TYPES[mode])
    raw = header(9, 5, 1, mode, order, extended=extended) + b"\xa5" * extended
    (tmp_path / "a.mrc").write_bytes(raw + data.astype(data.dtype.newbyteorder(order)).tobytes())
    image = mrc.read(tmp_path / "a.mrc")
    assert image.pixels.dtype == data.dtype
    assert image.pixels.dtype.isnative
    np.testing.assert_array_equal(image.pixels, data)
    assert image.pixel_size_angstrom == pytest.approx(1.5)


@pytest.mark.case(17)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("mode", TYPES)
@pytest.mark.parametrize("stamp", [b"\0\0\0\0", STAMPS["<"], STAMPS[">"]])
def test_a_wrong_machine_stamp_or_map_id_does_not_change_the_pixels(
    tmp_path: Path, order: str, mode: int, stamp: bytes
) -> None:
    data = values((2, 5, 9), TYPES[mode])
    raw = header(9, 5, 2, mode, order, stamp=stamp, map_id=b"\0\0\0\0")
    (tmp_path / "a.mrcs").write_bytes(raw + data.astype(data.dtype.newbyteorder(order)).tobytes())
    np.testing.assert_array_equal(mrc.read(tmp_path / "a.mrcs").pixels, data)


@pytest.mark.parametrize("order", "<>")
def test_the_256_pixel_8_bit_image_of_either_byte_order_is_read(tmp_path: Path, order: str) -> None:
    data = values((256, 256), "i1")
    (tmp_path / "a.mrc").write_bytes(header(256, 256, 1, 0, order) + data.tobytes())
    np.testing.assert_array_equal(mrc.read(tmp_path / "a.mrc").pixels, data)


@pytest.mark.parametrize("mode", TYPES)
def test_mrcfile_reads_the_same(tmp_path: Path, mode: int) -> None:
    """The other direction: a file of mrcfile's own making."""
    path, data = tmp_path / "a.mrc", values((3, 8, 6), TYPES[mode])
    with mrcfile.new(path) as file:
        file.set_data(data)
        file.set_extended_header(np.zeros(5, dtype="V80"))
        file.voxel_size = 0.83
    image = mrc.read(path)
    np.testing.assert_array_equal(image.pixels, mrcfile.read(path))
    assert image.pixel_size_angstrom == pytest.approx(0.83)


@pytest.mark.parametrize(
    ("nz", "space_group", "mz", "shape"),
    [
        (1, 0, 1, (5, 9)),
        (4, 0, 1, (4, 5, 9)),
        (4, 1, 4, (4, 5, 9)),
        (1, 1, 1, (1, 5, 9)),
        (4, 401, 2, (4, 5, 9)),
        (4, 401, 0, (4, 5, 9)),
        (4, 401, 3, (4, 5, 9)),
    ],
)
def test_shapes_are_as_stored(tmp_path: Path, nz: int, space_group: int, mz: int, shape: tuple[int, ...]) -> None:
    data = values((nz, 5, 9), "f4")
    (tmp_path / "a.mrc").write_bytes(header(9, 5, nz, 2, space_group=space_group, mz=mz) + data.tobytes())
    pixels = mrc.read(tmp_path / "a.mrc").pixels
    assert pixels.shape == shape
    np.testing.assert_array_equal(pixels, data.reshape(shape))


# --- writing ---------------------------------------------------------------------------------------------------------


def check_valid(path: Path) -> None:
    said = io.StringIO()
    assert mrcfile.validate(path, print_file=said), said.getvalue()


@pytest.mark.parametrize("stack", [True, False], ids=["stack", "map"])
@pytest.mark.parametrize("dtype", ["f4", "f2", "i1", "i2", "u2"])
@pytest.mark.parametrize("count", [1, 6])
def test_a_written_file_is_valid_and_reads_back(tmp_path: Path, stack: bool, dtype: str, count: int) -> None:
    path, data = tmp_path / "a.mrc", values((count, 8, 6), dtype)
    if dtype == "f2":
        data /= np.float16(256)  # the validator adds squares in float16, and would see infinity
    mrc_output.write(path, data, pixel_size_angstrom=1.07, stack=stack)
    check_valid(path)
    assert mrc.missing(path, path.stat().st_size, path.read_bytes()[:1024]) is None
    image = mrc.read(path)
    assert image.pixels.dtype == data.dtype
    np.testing.assert_array_equal(image.pixels.reshape(data.shape), data)
    assert image.pixel_size_angstrom == pytest.approx(1.07, rel=1e-6)


def test_header_statistics_are_true(tmp_path: Path) -> None:
    data = np.random.default_rng(1).normal(3, 2, (4, 16, 12)).astype(np.float32)
    mrc_output.write(tmp_path / "a.mrcs", data, pixel_size_angstrom=2, stack=True)
    with mrcfile.open(tmp_path / "a.mrcs", header_only=True) as file:
        found = file.header
        assert float(found.dmin) == data.min()
        assert float(found.dmax) == data.max()
        assert float(found.dmean) == pytest.approx(data.mean(dtype=np.float64), rel=1e-5)
        assert float(found.rms) == pytest.approx(data.std(dtype=np.float64), rel=1e-5)


def test_a_stack_is_images_and_a_map_is_a_volume(tmp_path: Path) -> None:
    data = values((4, 8, 6), "f4")
    mrc_output.write(tmp_path / "stack.mrcs", data, pixel_size_angstrom=2, stack=True)
    mrc_output.write(tmp_path / "map.mrc", data, pixel_size_angstrom=2, stack=False)
    with mrcfile.open(tmp_path / "stack.mrcs") as stack, mrcfile.open(tmp_path / "map.mrc") as volume:
        assert (int(stack.header.ispg), int(stack.header.mz), int(stack.header.nz)) == (0, 1, 4)
        assert (int(volume.header.ispg), int(volume.header.mz), int(volume.header.nz)) == (1, 4, 4)
        for file in (stack, volume):
            assert [float(file.voxel_size[axis]) for axis in "xyz"] == pytest.approx([2, 2, 2])


def test_the_same_pixels_make_the_same_bytes(tmp_path: Path) -> None:
    """No time of day, no name of a machine: outputs of two runs can be compared."""
    data = values((4, 8, 6), "f4")
    for name in "ab":
        mrc_output.write(tmp_path / name, data, pixel_size_angstrom=2, stack=True, label="streamprep: µ")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with mrcfile.open(tmp_path / "a") as file:
        assert int(file.header.nlabl) == 1
        assert file.get_labels() == ["streamprep: ?"]


def test_a_long_label_is_cut(tmp_path: Path) -> None:
    mrc_output.write(tmp_path / "a", values((1, 4, 4), "f4"), pixel_size_angstrom=2, stack=True, label="x" * 500)
    check_valid(tmp_path / "a")


AXES = [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)]


def volume_along(path: Path, axes: tuple[int, int, int], order: str = "<", extended: bytes = b"") -> np.ndarray:
    """Write a volume whose columns, rows and sections run along ``axes``; returns it as (z, y, x)."""
    usual = values((4, 5, 6), "f4")
    stored = usual.transpose([3 - axis for axis in reversed(axes)])
    raw = bytearray(header(*reversed(stored.shape), 2, order, space_group=1, extended=len(extended)))
    start = {1: -7, 2: 8, 3: 9}
    struct.pack_into(f"{order}3i", raw, 16, *(start[axis] for axis in axes))
    struct.pack_into(f"{order}3i", raw, 28, 12, 10, 8)
    struct.pack_into(f"{order}6f", raw, 40, 18, 20, 24, 90, 100, 90)
    struct.pack_into(f"{order}3i", raw, 64, *axes)
    struct.pack_into(f"{order}3f", raw, 196, 1, -2, 3)
    struct.pack_into(f"{order}i", raw, 220, 10)
    for index in range(10):
        struct.pack_into("80s", raw, 224 + 80 * index, f"label {index}".encode())
    path.write_bytes(bytes(raw) + extended + stored.astype(order + "f4").tobytes())
    return usual


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("axes", AXES)
def test_a_volume_is_read_along_the_usual_axes_and_keeps_its_header(
    tmp_path: Path, axes: tuple[int, int, int], order: str
) -> None:
    source, path = tmp_path / "a.map", tmp_path / "b.map"
    usual = volume_along(source, axes, order, b"X, Y, Z".ljust(80))
    image = mrc.read(source)
    np.testing.assert_array_equal(image.pixels, usual)
    assert image.pixel_size_angstrom == pytest.approx(1.5)
    mrc_output.write(path, image.pixels, pixel_size_angstrom=1.5, stack=False, label="ours", template=source)
    check_valid(path)
    np.testing.assert_array_equal(mrc.read(path).pixels, usual)
    with mrcfile.open(path) as file:
        found = file.header
        assert [int(found[name]) for name in ("mapc", "mapr", "maps")] == [1, 2, 3]
        assert [int(found[name]) for name in ("nxstart", "nystart", "nzstart")] == [-7, 8, 9]
        assert [int(found[name]) for name in ("mx", "my", "mz")] == [12, 10, 8]
        assert found.cella.tolist() == (18, 20, 24)
        assert found.cellb.tolist() == (90, 100, 90)
        assert found.origin.tolist() == (1, -2, 3)
        assert file.get_labels() == [*(f"label {index}" for index in range(9)), "ours"]
        assert file.extended_header.tobytes().rstrip() == b"X, Y, Z"


def test_axes_that_make_no_sense_are_the_usual_ones(tmp_path: Path) -> None:
    usual = volume_along(tmp_path / "a.map", (1, 2, 3))
    raw = bytearray((tmp_path / "a.map").read_bytes())
    struct.pack_into("<3i", raw, 64, 0, 3, 3)
    (tmp_path / "a.map").write_bytes(raw)
    np.testing.assert_array_equal(mrc.read(tmp_path / "a.map").pixels, usual)


def test_another_pixel_size_scales_cell_and_origin(tmp_path: Path) -> None:
    usual = volume_along(tmp_path / "a.map", (1, 2, 3))
    mrc_output.write(tmp_path / "b.map", usual, pixel_size_angstrom=3, stack=False, template=tmp_path / "a.map")
    with mrcfile.open(tmp_path / "b.map") as file:
        assert file.header.cella.tolist() == (36, 40, 48)
        assert file.header.origin.tolist() == (2, -4, 6)


def test_another_shape_keeps_the_labels_only(tmp_path: Path) -> None:
    usual = volume_along(tmp_path / "a.map", (1, 2, 3), extended=b"x" * 80)
    mrc_output.write(tmp_path / "b.map", usual[1:], pixel_size_angstrom=1.5, stack=False, template=tmp_path / "a.map")
    check_valid(tmp_path / "b.map")
    with mrcfile.open(tmp_path / "b.map") as file:
        assert [float(file.voxel_size[axis]) for axis in "xyz"] == pytest.approx([1.5, 1.5, 1.5])
        assert (int(file.header.nxstart), int(file.header.nsymbt), int(file.header.ispg)) == (0, 0, 1)
        assert file.get_labels()[0] == "label 0"


@pytest.mark.parametrize("order", "<>")
def test_an_extended_header_of_numbers_is_kept_in_this_machines_order_only(tmp_path: Path, order: str) -> None:
    extended = bytes(range(200, 216)) * 5
    usual = volume_along(tmp_path / "a.map", (1, 2, 3), order, extended)
    mrc_output.write(tmp_path / "b.map", usual, pixel_size_angstrom=1.5, stack=False, template=tmp_path / "a.map")
    check_valid(tmp_path / "b.map")
    with mrcfile.open(tmp_path / "b.map") as file:
        assert file.extended_header.tobytes() == (extended if order == "<" else b"")


def test_an_empty_stack_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zero images"):
        mrc_output.write(tmp_path / "a", np.zeros((0, 4, 4), np.float32), pixel_size_angstrom=2, stack=True)
    assert not (tmp_path / "a").exists()


# --- compressed files, and pixels of four bits ------------------------------------------------------------------------


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress}


def plain_file(nx: int = 40, ny: int = 30, mode: int = 2) -> tuple[bytes, np.ndarray[Any, Any]]:
    pixels = values((ny, nx), TYPES[mode])
    return header(nx, ny, 1, mode) + pixels.tobytes(), pixels


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("mode", TYPES)
def test_a_compressed_file_reads_as_the_plain_one(tmp_path: Path, ending: str, mode: int) -> None:
    plain, pixels = plain_file(mode=mode)
    path = tmp_path / f"mic.mrc.{ending}"
    path.write_bytes(PACKERS[ending](plain))
    head = path.read_bytes()[:4096]
    assert mrc.missing(path, path.stat().st_size, head) is None
    image = mrc.read(path)
    assert np.array_equal(image.pixels, pixels)
    assert image.pixels.dtype == pixels.dtype
    assert image.pixel_size_angstrom == pytest.approx(1.5)
    assert formats.classify_path(path, head) == "micrograph"
    assert np.array_equal(formats.read_item(Item("micrograph", "mic", path)).pixels, pixels)  # type: ignore[union-attr]


def test_the_header_of_a_large_bzip2_file_is_found(tmp_path: Path) -> None:
    """Nothing comes out of its first 100 kB: they are one block."""
    chance = np.random.default_rng(0)
    plain = header(1024, 1024, 1, 2) + chance.normal(size=(1024, 1024)).astype("f4").tobytes()
    path = tmp_path / "mic.mrc.bz2"
    path.write_bytes(bz2.compress(plain))
    assert formats.classify_path(path, path.read_bytes()[:4096]) == "micrograph"
    assert mrc.read(path).pixels.shape == (1024, 1024)


@pytest.mark.case(19)
@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda packed, pack, plain: packed[:-20], "cut or damaged|MRC header"),
        (lambda packed, pack, plain: packed[: len(packed) // 2], "cut or damaged|MRC header"),
        (lambda packed, pack, plain: packed[:-7] + bytes([packed[-7] ^ 255]) + packed[-6:], "cut or damaged"),
        (lambda packed, pack, plain: pack(plain[:-100]), "truncated"),
        (lambda packed, pack, plain: pack(plain + b"more"), "longer than its header says"),
    ],
    ids=["end cut off", "half", "a byte turned", "content truncated", "content longer"],
)
def test_a_spoilt_compressed_file_is_refused(tmp_path: Path, ending: str, spoil: Any, words: str) -> None:
    plain, _ = plain_file(200, 200)
    path = tmp_path / f"mic.mrc.{ending}"
    path.write_bytes(spoil(PACKERS[ending](plain), PACKERS[ending], plain))
    with pytest.raises(InputError, match=words):
        mrc.read(path)


def test_the_beginning_of_a_compressed_file_is_waited_for(tmp_path: Path) -> None:
    packed = gzip.compress(plain_file()[0])
    path = tmp_path / "mic.mrc.gz"
    for there in (4, 20, 60):
        path.write_bytes(packed[:there])
        assert mrc.missing(path, there, packed[:there]) is not None
    damaged = packed[:12] + b"\xff" * 100
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="damaged gzip data"):
        mrc.missing(path, len(damaged), damaged)


@pytest.mark.case(19)
def test_a_bomb_takes_no_more_than_its_header_says(tmp_path: Path) -> None:
    """What follows the pixels that the header names is not unpacked: 64 MB of zeros in 64 kB."""
    plain, _ = plain_file(8, 8)
    path = tmp_path / "mic.mrc.gz"
    path.write_bytes(gzip.compress(plain + bytes(64 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="longer than its header says"):
            mrc.read(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize(
    ("nx", "ny", "noise_bytes", "said"),
    [
        (8192, 8192, 0, "truncated"),  # 256 MiB: as many as any file may say
        (8192, 8193, 0, "268468224 bytes are said to be packed in .*; no image is as empty as that"),
        (16384, 16384, 0, "no image is as empty as that"),
        (8192, 8193, 3_000_000, "truncated"),
    ],
)
def test_a_large_image_is_not_packed_to_nothing(
    tmp_path: Path, ending: str, nx: int, ny: int, noise_bytes: int, said: str
) -> None:
    """However much the file unpacks to: the header alone decides, before memory is taken."""
    noise = np.random.default_rng(0).bytes(noise_bytes)
    path = tmp_path / f"mic.mrc.{ending}"
    path.write_bytes(PACKERS[ending](header(nx, ny, 1, 2) + noise))
    with pytest.raises(InputError, match=said):
        mrc.read(path)


@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 3), st.sampled_from("<>"), st.randoms())
def test_pixels_of_four_bits(nx: int, ny: int, nz: int, order: str, chance: Any) -> None:
    """Each row begins with a byte of its own; the first of two pixels is in the lower half."""
    pixels = np.array([chance.randrange(16) for _ in range(nx * ny * nz)], np.uint8).reshape(nz, ny, nx)
    rows = np.zeros((nz, ny, 2 * ((nx + 1) // 2)), np.uint8)
    rows[:, :, :nx] = pixels
    packed = (rows[:, :, ::2] | rows[:, :, 1::2] << 4).tobytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stack.mrcs")
        path.write_bytes(header(nx, ny, nz, 101, order, extended=32) + bytes(32) + packed)
        assert mrc.missing(path, path.stat().st_size, path.read_bytes()[:4096]) is None
        read = mrc.read(path).pixels
    assert np.array_equal(read.reshape(pixels.shape), pixels)


def test_a_missing_map_id_is_remarked(tmp_path: Path) -> None:
    pixels = values((30, 40), "f4")
    for map_id, remarks in ((b"MAP ", 0), (b"\0\0\0\0", 1)):
        path = tmp_path / "mic.mrc"
        path.write_bytes(header(40, 30, 1, 2, map_id=map_id) + pixels.tobytes())
        image = mrc.read(path)
        assert np.array_equal(image.pixels, pixels)
        assert len(image.remarks) == remarks


# --- stacks in parts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extended", [0, 160])
def test_the_checksum_of_what_is_written_is_that_of_the_file(tmp_path: Path, extended: int) -> None:
    template, path = tmp_path / "template.mrcs", tmp_path / "a.mrcs"
    data = np.random.default_rng(0).normal(size=(5, 12, 16)).astype(np.float32)
    with mrcfile.new(template) as file:
        file.set_data(data)
        file.set_image_stack()
        file.set_extended_header(np.frombuffer(b"text " * (extended // 5), "V1"))
    with mrc_output.StackWriter(path, data.shape, pixel_size_angstrom=1.5, template=template, checksum=True) as writer:
        for start in (3, 0, 1):
            writer.write(start, data[start : start + (1 if start < 1 else 2)])
    content = path.read_bytes()
    assert len(content) == 1024 + extended + data.nbytes
    assert writer.crc32 == zlib.crc32(content)


@settings(max_examples=30)
@given(
    cuts=st.lists(st.integers(1, 11), max_size=4),
    mode=st.sampled_from(["f4", "f2", "i1", "i2", "u2"]),
    order=st.randoms(use_true_random=False),
)
def test_a_stack_written_in_parts_is_the_stack(cuts: list[int], mode: str, order: random.Random) -> None:
    data = values((12, 5, 7), mode)
    if mode == "f2":
        data /= np.float16(256)  # as above
    edges = [0, *sorted(set(cuts)), 12]
    parts = list(itertools.pairwise(edges))
    order.shuffle(parts)
    with tempfile.TemporaryDirectory() as made:
        whole, pieces = Path(made) / "whole.mrcs", Path(made) / "pieces.mrcs"
        mrc_output.write(whole, data, pixel_size_angstrom=1.5, stack=True)
        with mrc_output.StackWriter(pieces, data.shape, data.dtype, pixel_size_angstrom=1.5) as writer:
            for start, stop in parts:
                writer.write(start, data[start:stop])
        np.testing.assert_array_equal(mrc.read(pieces).pixels, data)
        check_valid(pieces)
        with mrcfile.open(whole) as one, mrcfile.open(pieces) as other:
            for name in ("dmin", "dmax", "dmean", "rms"):
                assert float(other.header[name]) == pytest.approx(
                    float(one.header[name]), rel=1e-6, abs=1e-6 * float(one.header.rms)
                )
        with mrc.StackReader(pieces) as reader:
            assert reader.shape == data.shape
            for start, stop in parts:
                images = np.empty((stop - start, 5, 7), np.float32)
                reader.read_into(start, images)
                np.testing.assert_array_equal(images, data[start:stop].astype(np.float32))


def test_a_stack_of_which_a_part_is_missing_is_not_finished(tmp_path: Path) -> None:
    data = values((4, 8, 6), "f4")
    with (
        pytest.raises(ValueError, match="not all of the 4 images were written"),
        mrc_output.StackWriter(tmp_path / "a.mrcs", data.shape, pixel_size_angstrom=2) as writer,
    ):
        writer.write(0, data[:3])


@pytest.mark.parametrize("packed", ["", ".gz", ".bz2"])
def test_parts_of_a_compressed_or_turned_stack(tmp_path: Path, packed: str) -> None:
    data = values((6, 8, 6), "f4")
    mrc_output.write(tmp_path / "a.mrcs", data, pixel_size_angstrom=2, stack=True)
    raw = (tmp_path / "a.mrcs").read_bytes()
    path = tmp_path / f"b.mrcs{packed}"
    path.write_bytes({"": lambda b: b, ".gz": gzip.compress, ".bz2": bz2.compress}[packed](raw))
    images = np.empty((2, 8, 6), np.float32)
    with mrc.StackReader(path) as reader:
        reader.read_into(3, images)
    np.testing.assert_array_equal(images, data[3:5])


def test_short_writes_are_continued_in_the_header_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.arange(2 * 6 * 8, dtype=np.float32).reshape(2, 6, 8)
    mrc_output.write(tmp_path / "whole.mrcs", data, pixel_size_angstrom=1.5, stack=True)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, part, at: real(descriptor, bytes(part[:50]), at))
    mrc_output.write(tmp_path / "short.mrcs", data, pixel_size_angstrom=1.5, stack=True)
    assert (tmp_path / "short.mrcs").read_bytes() == (tmp_path / "whole.mrcs").read_bytes()


@pytest.mark.case(23)
def test_a_stack_that_gets_shorter_while_it_is_read(tmp_path: Path) -> None:
    data = values((6, 8, 6), "f4")
    path = tmp_path / "a.mrcs"
    mrc_output.write(path, data, pixel_size_angstrom=2, stack=True)
    with mrc.StackReader(path) as reader:
        os.truncate(path, path.stat().st_size - 8)
        with pytest.raises(InputError, match=r"a\.mrcs: it became shorter while it was read"):
            reader.read_into(4, np.empty((2, 8, 6), np.float32))


@pytest.mark.parametrize("mean", [0.0, 6800.0, -1e6])
def test_statistics_of_values_far_from_zero(tmp_path: Path, mean: float) -> None:
    data = np.random.default_rng(1).normal(mean, 9, (9, 256, 256)).astype(np.float32)
    mrc_output.write(tmp_path / "a.mrcs", data, pixel_size_angstrom=2, stack=True)
    with mrcfile.open(tmp_path / "a.mrcs", header_only=True) as file:
        assert float(file.header.rms) == pytest.approx(data.std(dtype=np.float64), rel=1e-6)
        assert float(file.header.dmean) == pytest.approx(data.mean(dtype=np.float64), rel=1e-7, abs=1e-6)


def test_pixels_of_the_other_byte_order_are_turned(tmp_path: Path) -> None:
    data = values((4, 8, 6), "f4")
    for stack in (True, False):
        path = tmp_path / f"{stack}.mrcs"
        mrc_output.write(path, data.astype(">f4"), pixel_size_angstrom=2, stack=stack)
        np.testing.assert_array_equal(mrc.read(path).pixels, data)


def test_statistics_of_values_without_squares_in_float32(tmp_path: Path) -> None:
    data = (1e25 * np.random.default_rng(1).normal(2, 1, (3, 16, 16))).astype(np.float32)
    mrc_output.write(tmp_path / "a.mrcs", data, pixel_size_angstrom=2, stack=True)
    with mrcfile.open(tmp_path / "a.mrcs", header_only=True) as file:
        assert float(file.header.rms) == pytest.approx(data.std(dtype=np.float64), rel=1e-5)
