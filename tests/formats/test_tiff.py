"""TIFF: every cut, looped or forged file gets a fixed verdict, every readable one its true pixels."""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from streamprep import formats
from streamprep.formats import mrc, tiff
from streamprep.model import Image, InputError, Item
from tests.conftest import Session
from tests.outputs import check_invariants, images_of, rows_of
from tests.test_changes import done_without_fault

pytestmark = pytest.mark.filterwarnings("error")
COMPRESSIONS = [None, "lzw", "zlib", "packbits"]
DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"]


def values(shape: tuple[int, int], dtype: str) -> np.ndarray[Any, Any]:
    numbers = np.arange(shape[0] * shape[1]).reshape(shape) * 7 % 251
    return (numbers - 100 * (dtype[0] != "u")).astype(dtype)


def made(
    data: bytes = bytes(range(24)),
    *,
    order: str = "<",
    big: bool = False,
    last: bool = True,
    following: int = 0,
    more: tuple[tuple[int, int, list[int]], ...] = (),
    **changed: int,
) -> bytes:
    """A file of 6 × 4 pixels of 8 bit made byte by byte from the standard, its directory last as libtiff puts it."""
    tags = {
        "width": (256, 3, [6]), "length": (257, 3, [4]), "bits": (258, 3, [8]), "compression": (259, 3, [1]),
        "photometric": (262, 3, [1]), "offset": (273, 4, [0]), "samples": (277, 3, [1]), "rows": (278, 3, [4]),
        "count": (279, 4, [len(data)]), "format": (339, 3, [1]),
    }  # fmt: skip
    start = 16 if big else 8
    inline, entry, size_of = (8, 20, {3: 2, 4: 4, 16: 8}) if big else (4, 12, {3: 2, 4: 4, 16: 8})
    fields = sorted([*tags.values(), *more])
    directory_bytes = (8 if big else 2) + entry * len(fields) + (8 if big else 4)
    data_at, directory_at = (start, start + len(data)) if last else (start + directory_bytes, start)
    tags["offset"][2][0] = data_at
    for name, value in changed.items():
        tags[name][2][0] = value
    directory = struct.pack(order + ("Q" if big else "H"), len(fields))
    tail = b""
    for tag, kind, numbers in fields:
        raw = struct.pack(f"{order}{len(numbers)}{ {3: 'H', 4: 'I', 16: 'Q'}[kind] }", *numbers)
        if len(raw) > inline:
            place = start + directory_bytes + len(data) + len(tail)
            raw, tail = struct.pack(order + ("Q" if big else "I"), place), tail + raw
        assert size_of[kind]
        directory += struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, len(numbers)) + raw.ljust(inline, b"\0")
    directory += struct.pack(order + ("Q" if big else "I"), following)
    magic = b"II" if order == "<" else b"MM"
    if big:
        head = magic + struct.pack(order + "HHHQ", 43, 8, 0, directory_at)
    else:
        head = magic + struct.pack(order + "HI", 42, directory_at)
    return head + (data + directory if last else directory + data) + tail


def said_of(path: Path) -> str | None:
    raw = path.read_bytes()
    return formats.missing_part(path, len(raw), raw[: formats.HEAD_BYTES])


def verdict(path: Path) -> str:
    """Whether it is whole, not yet whole, or never usable."""
    try:
        return "whole" if said_of(path) is None else "not yet"
    except InputError:
        return "never"


def refused(path: Path) -> str:
    """Why a file is refused, the same when it is looked at and when it is read."""
    reasons = set()
    for look in (tiff.recognise, tiff.read):
        with pytest.raises(InputError) as caught:
            look(path)
        assert str(caught.value).startswith(f"{path}: ")
        reasons.add(caught.value.reason)
    (reason,) = reasons
    return reason


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(raw: bytes) -> Path:
        path = tmp_path / "mic.tif"
        path.write_bytes(raw)
        return path

    return write


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("parts", [{}, {"rowsperstrip": 7}, {"tile": (16, 32)}], ids=["one", "strips", "tiles"])
def test_pixels_are_read_in_the_machines_byte_order(
    tmp_path: Path, big: bool, order: str, compression: str | None, parts: dict[str, Any]
) -> None:
    for dtype in DTYPES:
        data, path = values((45, 70), dtype), tmp_path / f"{dtype}.tif"
        tifffile.imwrite(path, data, bigtiff=big, byteorder=order, compression=compression, **parts)
        assert said_of(path) is None
        assert formats.classify_path(path, path.read_bytes()[:4096]) == "micrograph"
        image = formats.read_item(Item("micrograph", "mic", path))
        assert isinstance(image, Image)
        assert image.pixels.dtype == np.dtype(dtype)
        assert image.pixels.dtype.isnative
        np.testing.assert_array_equal(image.pixels, data)


@pytest.mark.parametrize("compression", ["lzw", "zlib"])
@pytest.mark.parametrize(("dtype", "predictor"), [("u1", 2), ("u2", 2), ("i2", 2), ("f4", 3), ("f2", 3)])
@pytest.mark.parametrize("order", "<>")
def test_predictors_are_undone(tmp_path: Path, compression: str, dtype: str, predictor: int, order: str) -> None:
    data, path = values((45, 70), dtype), tmp_path / "mic.TIFF"
    tifffile.imwrite(path, data, compression=compression, predictor=predictor, rowsperstrip=9, byteorder=order)
    np.testing.assert_array_equal(tiff.read(path).pixels, data)


@pytest.mark.parametrize(("order", "big", "last"), list(itertools.product("<>", [False, True], [False, True])))
def test_a_file_made_from_the_standard_is_read(file: Any, order: str, big: bool, last: bool) -> None:
    path = file(made(order=order, big=big, last=last))
    assert verdict(path) == "whole"
    assert tiff.read(path).pixels.tolist() == np.arange(24).reshape(4, 6).tolist()


def test_values_and_rows_are_as_stored_whatever_is_said_of_showing_them(file: Any) -> None:
    path = file(made(photometric=0, more=((274, 3, [4]),)))  # low values white, first row at the bottom
    assert tiff.read(path).pixels[0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_empty_micrograph_is_read(tmp_path: Path, compression: str | None) -> None:
    data, path = np.zeros((1024, 1024), np.uint8), tmp_path / "mic.tif"
    tifffile.imwrite(path, data, compression=compression)
    np.testing.assert_array_equal(tiff.read(path).pixels, data)


def test_a_thumbnail_is_no_second_image(tmp_path: Path) -> None:
    data, path = values((45, 70), "f4"), tmp_path / "mic.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(data, metadata=None)
        writer.write(data[::4, ::4], subfiletype=1, metadata=None)
    np.testing.assert_array_equal(tiff.read(path).pixels, data)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"resolution": (72, 72), "resolutionunit": "inch"}, None),
        ({"resolution": (96, 96), "resolutionunit": "centimeter"}, None),
        ({"resolution": (1e8 / 1.25, 1e8 / 1.25), "resolutionunit": "centimeter"}, 1.25),
        ({"resolution": (2.54e8 / 1.25, 2.54e8 / 1.25), "resolutionunit": "inch"}, 1.25),
        ({"resolution": (2.54e8 / 1.25, 2.54e8 / 2.5), "resolutionunit": "inch"}, None),
        ({"resolution": (0.8, 0.8), "resolutionunit": "none"}, None),
        ({"imagej": True, "resolution": (0.8, 0.8), "metadata": {"unit": "angstrom"}}, 1.25),
        ({"imagej": True, "resolution": (8, 8), "metadata": {"unit": "nm"}}, 1.25),
        ({"imagej": True, "resolution": (8000, 8000), "metadata": {"unit": "um"}}, 1.25),
        ({"imagej": True, "resolution": (8, 8), "metadata": {"unit": "parsec"}}, None),
        ({"imagej": True}, None),
    ],
)
def test_the_pixel_size_is_known_only_where_it_is_possible(
    tmp_path: Path, options: dict[str, Any], expected: float | None
) -> None:
    path = tmp_path / "mic.tif"
    tifffile.imwrite(path, values((8, 8), "f4"), **options)
    found = tiff.read(path).pixel_size_angstrom
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-6))


# --- whole or not -----------------------------------------------------------------------------------------------------


def kept(number: int) -> bytes:
    """Small files of all kinds, the directory before and behind the pixels."""
    compression = [*COMPRESSIONS, "own"][number % 5]
    order, big = "<>"[number // 5 % 2], bool(number // 10 % 2)
    if compression == "own":
        return made(order=order, big=big)
    buffer = io.BytesIO()
    data = values((20, 33), "u2")
    tifffile.imwrite(buffer, data, bigtiff=big, byteorder=order, compression=compression, rowsperstrip=6)  # type: ignore[arg-type]
    return buffer.getvalue()


WHOLE = [kept(number) for number in range(20)]


@pytest.mark.case(18)
@given(st.integers(0, len(WHOLE) - 1), st.floats(0, 1, exclude_max=True), st.booleans())
@settings(max_examples=400)
def test_a_cut_file_is_never_read_as_another(number: int, part: float, filled: bool) -> None:
    """Cut, or cut and filled with zeros to its full length."""
    whole = WHOLE[number]
    raw = whole[: int(part * len(whole))]
    raw = raw.ljust(len(whole), b"\0") if filled else raw
    with tempfile.TemporaryDirectory() as folder:
        path, complete = Path(folder, "mic.tif"), Path(folder, "whole.tif")
        path.write_bytes(raw)
        complete.write_bytes(whole)
        if verdict(path) == "never":
            assert filled
            refused(path)
            return
        said = said_of(path)
        if said is None and not filled:
            np.testing.assert_array_equal(tiff.read(path).pixels, tiff.read(complete).pixels)
        elif said is None:
            with contextlib.suppress(InputError):
                assert tiff.read(path).pixels.shape == tiff.read(complete).pixels.shape
        else:
            assert refused(path) == said


@pytest.mark.case(18)
@pytest.mark.parametrize("number", range(len(WHOLE)))
def test_a_file_without_its_last_byte_is_not_whole(file: Any, number: int) -> None:
    assert verdict(file(WHOLE[number])) == "whole"
    path = file(WHOLE[number][:-1])
    assert verdict(path) == "not yet"
    assert "truncated: it has" in refused(path)


def test_a_growing_stack_is_not_read_as_a_shorter_one(tmp_path: Path) -> None:
    path = tmp_path / "mic.tif"
    tifffile.imwrite(path, np.ones((3, 20, 20), np.uint8), photometric="minisblack", metadata=None)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        reason = refused(path)
        assert (verdict(path) == "whole") == ("it holds 3 images" in reason)
    path.write_bytes(whole)
    assert verdict(path) == "whole"
    assert "it holds 3 images; a micrograph is one" in refused(path)


@pytest.mark.case(18)
@pytest.mark.parametrize(
    ("raw", "expected", "reason"),
    [
        (b"", "not yet", "the file is empty"),
        (b"II*", "not yet", "3 of the 8 bytes"),
        (bytes(500), "not yet", "all zero"),
        (b"II*\0" + bytes(500), "not yet", "names no directory yet"),
        (b"II*\0\x08\0\0\0" + bytes(500), "not yet", "directory 1 is still empty"),
        (b"II+\0\x08\0\0\0", "not yet", "8 of the 16 bytes"),
        (b"II+\0\x04\0\0\0" + bytes(500), "never", "offsets of 4 bytes"),
        (b"II*\0\x02\0\0\0" + bytes(500), "never", "said to lie at 2"),
        (b"II*\0\x08\0\0\0" + b"\xff" * 1_000_000, "never", "65535 entries"),
        (b"II+\0\x08\0\0\0\x10" + bytes(7) + b"\xff" * 500, "never", "entries"),
        (b"<html>" + b"x" * 500, "never", "not a TIFF file"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 500, "never", "not a TIFF file"),
        (made(following=32), "never", "a loop"),
        (made(following=2), "never", "said to lie at 2"),
        (made(following=10**9), "not yet", "directory 2 ends at byte 1000000002"),
        (made(offset=0), "not yet", "strip 1 of 1 of directory 1 is not there"),
        (made(count=0), "not yet", "is not there"),
        (made(offset=10**6), "not yet", "truncated"),
        (made(offset=2**32 - 1, count=2**32 - 1), "not yet", "truncated"),
        (made(width=0), "never", "0 × 4"),
        (made(more=((324, 4, [9]),)), "whole", "unsuitable"),
    ],
)
def test_every_file_has_its_verdict(file: Any, raw: bytes, expected: str, reason: str) -> None:
    path = file(raw)
    assert verdict(path) == expected
    if expected != "whole":
        assert reason in refused(path)


@pytest.mark.case(18)
def test_a_chain_that_bites_its_own_tail_is_refused(file: Any) -> None:
    path = file(made(following=8 + 24))
    assert verdict(path) == "never"
    assert "after directory 1 its chain is a loop" in refused(path)


@pytest.mark.case(18)
@given(st.sampled_from([b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"]), st.binary(max_size=300))
def test_random_bytes_have_a_verdict(magic: bytes, rest: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mic.tif")
        path.write_bytes(magic + rest)
        assert verdict(path)
        refused(path)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.case(18)
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"photometric": 2}, "RGB, not grey"),
        ({"photometric": 3}, "palette, not grey"),
        ({"samples": 3}, "3 samples per pixel"),
        ({"format": 5}, "sample format 5"),
        ({"bits": 12}, "12 bits"),
        ({"compression": 7}, "its compression is 7; known are 1, 5, 8, 32773, 32946"),
        ({"rows": 2}, "make 2 strips"),
        ({"rows": 0}, "each size must be at least 1"),
        ({"count": 23}, "strip 1 of 1 has 23 bytes"),
        ({"length": 5, "rows": 5}, "cannot make the 30"),
        ({"more": ((266, 3, [2]),)}, "fill order"),
        ({"more": ((317, 3, [2]),)}, "predictor 2"),
        ({"more": ((32997, 4, [40]),)}, "it holds 40 images"),
        ({"data": bytes(100_000)}, "strip 1 has 100000 bytes for 24 bytes of pixels"),
        ({"more": ((700, 4, [0] * 1_100_000),)}, "its tags take more than"),
    ],
)
def test_what_is_no_micrograph_is_refused(file: Any, changed: dict[str, Any], reason: str) -> None:
    path = file(made(**changed))
    assert verdict(path) == "whole"
    assert reason in refused(path)


@pytest.mark.parametrize("options", [{"imagej": True}, {"photometric": "minisblack", "truncate": True}])
def test_images_hidden_behind_one_directory_are_seen(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "mic.tif"
    tifffile.imwrite(path, np.ones((40, 8, 8), np.uint16), **options)
    refused(path)


BOMBS: dict[str, bytes] = {
    "16 GB in one strip of deflate": made(zlib.compress(bytes(10**7)), width=65535, length=65535, rows=65535, format=3,
                                          bits=32, compression=8),
    "more than deflate can make": made(bytes(100), width=1000, length=1000, rows=1000, compression=8),
    "more than LZW can make": made(bytes(100), width=1000, length=1000, rows=1000, compression=5),
    "more than PackBits can make": made(bytes(100), width=100, length=100, rows=100, compression=32773),
    "100 MB of nothing": made(
        zlib.compress(bytes(10**8)), width=10000, length=10000, rows=10000, compression=8
    ),
}  # fmt: skip


def shared_strip() -> bytes:
    """20,000 strips of 20,000 pixels that all lie in the same bytes."""
    data = zlib.compress(bytes(range(256)) * 78 + bytes(32))
    raw = made(data, width=20000, length=20000, rows=1, compression=8)
    end = len(raw)
    tables = struct.pack("<20000I", *[8] * 20000) + struct.pack("<20000I", *[len(data)] * 20000)
    for tag, place in ((273, end), (279, end + 80_000)):
        at = raw.index(struct.pack("<HHI", tag, 4, 1))
        raw = raw[:at] + struct.pack("<HHII", tag, 4, 20000, place) + raw[at + 12 :]
    return raw + tables


BOMBS["one strip for all"] = shared_strip()


@pytest.mark.case(19)
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_takes_memory(file: Any, name: str) -> None:
    path = file(BOMBS[name])
    tracemalloc.start()
    try:
        assert verdict(path) == "whole"
        assert "not a TIFF micrograph" in refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 << 20


def chains() -> dict[str, bytes]:
    """Files that ask for much work in few bytes: the same tags and strips, named again and again."""
    head = b"II*\0" + struct.pack("<I", 8)
    one = (struct.pack("<HHHI4sI", 1, 254, 4, 1, bytes(4), 8 + 18 * number) for number in range(1, 40_001))
    entries = b"".join(struct.pack("<HHII", 1000 + tag, 1, 1000, 8) for tag in range(1024))
    many, strips = b"", 1 << 17
    for _ in range(70):
        many += struct.pack("<H", 1024) + entries + struct.pack("<I", 8 + len(many) + len(entries) + 6)
    fields = [(256, 1, 1000), (257, 1, strips), (273, strips, 2168), (279, strips, 2168)]
    parts = struct.pack("<H", 4) + b"".join(struct.pack("<HHII", tag, 4, *place) for tag, *place in fields)
    looped = b"".join(parts + struct.pack("<I", 8 + 54 * number) for number in range(1, 40)) + parts + bytes(4)
    return {
        "directories": head + b"".join(one),
        "entries": head + many,
        "strips": head + looped + struct.pack("<I", 8) * strips,
    }


@pytest.mark.case(18, 19)
@pytest.mark.parametrize("name", chains())
def test_a_chain_that_asks_for_much_work_is_given_up(file: Any, name: str) -> None:
    path = file(chains()[name])
    assert verdict(path) == "never"
    assert "more than" in refused(path) or "at most" in refused(path)


@pytest.mark.case(19)
def test_what_unpacks_to_more_than_it_says_takes_no_memory(file: Any) -> None:
    """100 MB behind 24 pixels, in a process of its own: what libraries take is not seen from inside."""
    path = file(made(zlib.compress(bytes(10**8)), compression=8))
    code = (
        "import resource, sys; from pathlib import Path; from streamprep.formats import tiff\n"
        "import tifffile, imagecodecs; imagecodecs.zlib_decode(imagecodecs.zlib_encode(b'0'))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: print(tiff.read(Path(sys.argv[1])).pixels.shape)\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=60)
    outcome, taken = done.stdout.splitlines()
    assert outcome in ("(4, 6)", "InputError")
    assert int(taken) < 50 << 10
    assert not done.stderr


@given(st.integers(0, len(WHOLE) - 1), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255))))
@settings(max_examples=300)
def test_damage_is_an_input_error_or_leaves_an_image(number: int, flips: list[tuple[float, int]]) -> None:
    raw = bytearray(WHOLE[number])
    for part, mask in flips:
        raw[int(part * len(raw))] ^= mask
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mic.tif")
        path.write_bytes(raw)
        with contextlib.suppress(InputError):
            assert tiff.read(path).pixels.ndim == 2


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits"])
def test_damaged_data_are_said_to_be_so_and_nothing_else(
    tmp_path: Path, compression: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mic.tif"
    noise = np.random.default_rng(1).integers(0, 256, (40, 40), dtype=np.uint8)
    tifffile.imwrite(path, noise, compression=compression)
    with tifffile.TiffFile(path) as opened:
        start, count = opened.pages.first.dataoffsets[0], opened.pages.first.databytecounts[0]
    raw = bytearray(path.read_bytes())
    raw[start : start + count] = bytes(count)
    path.write_bytes(raw)
    assert verdict(path) == "whole"
    with pytest.raises(InputError, match=r"mic\.tif: its .* data are damaged"):
        tiff.read(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("module", ["tifffile", "imagecodecs"])
def test_without_the_libraries_the_extra_is_named(file: Any, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    path = file(made())
    assert verdict(path) == "whole"
    with pytest.raises(InputError, match=rf"mic\.tif: .*{module} is needed: pip install 'streamprep\[tiff\]'"):
        tiff.read(path)


def test_the_libraries_are_not_loaded_before_they_are_needed() -> None:
    code = "import sys, streamprep.formats; print(sorted({'tifffile', 'imagecodecs'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_other_kinds_are_not_read_from_tiff(file: Any) -> None:
    with pytest.raises(InputError, match=r"no reader for a map file that ends in \.tif"):
        formats.read_item(Item("map", "mic", file(made())))


# --- in a session -----------------------------------------------------------------------------------------------------


def test_a_tiff_micrograph_gives_the_particles_of_the_same_pixels_as_mrc(session: Session) -> None:
    done_without_fault(session)
    particles = images_of(session.output, "particles.star")
    rows = rows_of(session.output / "particles.star")
    session.output.rename(session.folder / "first")
    for path in (session.folder / "Micrographs").glob("*.mrc"):
        image = mrc.read(path)
        size = image.pixel_size_angstrom
        assert size
        tifffile.imwrite(
            path.with_suffix(".tif"), image.pixels, compression="lzw", resolutionunit="centimeter",
            resolution=(1e8 / size, 1e8 / size),
        )  # fmt: skip
        path.unlink()
    done_without_fault(session)
    check_invariants(session.output)
    again = images_of(session.output, "particles.star")
    assert again.keys() == particles.keys()
    for name, pixels in particles.items():
        np.testing.assert_array_equal(again[name], pixels)
    text = [
        tuple(str(cell).replace(".tif", ".mrc") for cell in row) for row in rows_of(session.output / "particles.star")
    ]
    assert text == [tuple(str(cell) for cell in row) for row in rows]
