"""SPIDER files, written here field by field: both byte orders, sizes from the header, nothing absurd allocated."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep.formats import spider
from streamprep.model import InputError

Fields = dict[int, float]


def header(nx: int, ny: int, nz: int = 1, *, order: str = "<", changed: Fields | None = None) -> bytes:
    """A header as SPIDER's documentation describes it; field numbers from 1."""
    lenbyt = 4 * nx
    labrec = -(-1024 // lenbyt)
    words = [0.0] * (labrec * nx)
    fields: Fields = {1: nz, 2: ny, 5: 1 if nz == 1 else 3, 12: nx, 13: labrec, 22: labrec * lenbyt, 23: lenbyt}
    for number, value in (fields | (changed or {})).items():
        words[number - 1] = value
    return struct.pack(f"{order}{len(words)}f", *words)


def pixels(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def stack(count: int, nx: int, ny: int, *, order: str = "<", changed: Fields | None = None) -> bytes:
    data = pixels(count, ny, nx).astype(f"{order}f4")
    images = [
        header(nx, ny, order=order, changed={27: number}) + image.tobytes() for number, image in enumerate(data, 1)
    ]
    return header(nx, ny, order=order, changed={24: 2, 26: count} | (changed or {})) + b"".join(images)


def image(nx: int, ny: int, *, order: str = "<", changed: Fields | None = None) -> bytes:
    return header(nx, ny, order=order, changed=changed) + pixels(ny, nx).astype(f"{order}f4").tobytes()


def written(folder: Path, data: bytes) -> Path:
    path = folder / "a.spi"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nx", [1, 3, 16, 255, 256, 257, 300])
def test_an_image(tmp_path: Path, nx: int, order: str) -> None:
    data = image(nx, 5, order=order)
    path = written(tmp_path, data)
    assert spider.missing(path, len(data), data[:4096]) is None
    assert spider.recognise(path, data[:4096]) == "micrograph"
    found = spider.read(path)
    assert found.pixel_size_angstrom is None
    assert found.pixels.dtype == np.float32
    assert found.pixels.dtype.isnative
    np.testing.assert_array_equal(found.pixels, pixels(5, nx))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("nz", "changed"), [(7, {}), (1, {5: 3})])
def test_a_volume(tmp_path: Path, nz: int, changed: Fields, order: str) -> None:
    data = header(6, 5, nz, order=order, changed=changed) + pixels(nz, 5, 6).astype(f"{order}f4").tobytes()
    path = written(tmp_path, data)
    assert spider.recognise(path, data[:4096]) == "map"
    np.testing.assert_array_equal(spider.read(path).pixels, pixels(nz, 5, 6))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("count", [1, 4])
def test_a_stack(tmp_path: Path, count: int, order: str) -> None:
    data = stack(count, 30, 20, order=order)
    path = written(tmp_path, data)
    assert spider.recognise(path, data[:4096]) == "particles"
    np.testing.assert_array_equal(spider.read(path).pixels, pixels(count, 20, 30))


def test_old_images_say_minus_one_slice(tmp_path: Path) -> None:
    assert spider.read(written(tmp_path, image(20, 10, changed={1: -1}))).pixels.shape == (10, 20)


@given(st.integers(1, 80), st.integers(1, 40), st.integers(1, 5), st.sampled_from("<>"), st.data())
def test_a_cut_file_says_so(nx: int, ny: int, count: int, order: str, draw: st.DataObject) -> None:
    whole = stack(count, nx, ny, order=order)
    length = draw.draw(st.integers(0, len(whole) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), whole[:length])
        assert spider.missing(path, length, whole[: min(length, 4096)]) is not None
        with pytest.raises(InputError):
            spider.read(path)
        path.write_bytes(whole)
        assert spider.missing(path, len(whole), whole[:4096]) is None
        assert spider.read(path).pixels.shape == (count, ny, nx)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (bytes(500), "500 of the 1024 bytes"),
        (bytes(2000), "still all zero"),
        (image(20, 10)[:-1], "truncated: it has .* 20 × 10 × 1"),
        (image(20, 10) + b"\0", "longer than its header says"),
        (stack(3, 20, 10)[:-804], "truncated: it has .* 3 images of 20 × 10 × 1"),
        (stack(3, 20, 10, changed={26: 0}), "a stack without images"),
        (image(20, 10, changed={2: 131072}), "truncated"),
        (stack(3, 20, 10, changed={26: 2**24}), "truncated"),
    ],
)
def test_an_unfinished_file(tmp_path: Path, data: bytes, said: str) -> None:
    path = written(tmp_path, data)
    found = spider.missing(path, len(data), data[:4096])
    assert found is not None
    with pytest.raises(InputError, match=said):
        spider.read(path)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({12: 0.0}, "nsam is 0"),
        ({12: float("nan")}, "nsam, is nan, not a whole number"),
        ({2: float("inf")}, "nrow, is inf"),
        ({2: 10.5}, "nrow, is 10.5"),
        ({2: -10}, "nrow is -10; it must be from 1 to 131072"),
        ({2: 1e9}, "nrow is 1000000000"),
        ({1: 1e30}, "nslice is 1"),
        ({23: 4}, "lenbyt is 4; 20 pixels per record make 80"),
        ({22: 1e9}, "labbyt is 1000000000"),
        ({13: 1, 22: 80}, "labbyt is 80.* from 1024"),
        ({13: 1e6, 22: 8e7}, "labbyt is 80000000.* to 1048576"),
        ({5: -12}, r"Fourier transform \(iform -12\)"),
        ({5: 8}, "unknown type"),
        ({1: 2}, "2 slices; an image has one"),
        ({24: -5}, r"indexed stack \(istack -5\)"),
        ({24: 2, 26: -1}, "maxim is -1"),
        ({24: 2, 26: 1e20}, "maxim is 1"),
        ({1: 4, 5: 3, 24: 2, 26: 1}, "stack of volumes"),
    ],
)
def test_forged_headers_are_refused_with_the_field(tmp_path: Path, changed: Fields, said: str, order: str) -> None:
    data = image(20, 10, changed=changed, order=order)
    path = written(tmp_path, data)
    turned_numbers_are_fractions_as_well = order == ">" and ", is " in said
    with pytest.raises(InputError, match="not a whole number" if turned_numbers_are_fractions_as_well else said):
        spider.missing(path, len(data), data[:4096])
    with pytest.raises(InputError, match=path.name):
        spider.read(path)
    assert spider.recognise(path, data[:4096]) is None


@pytest.mark.parametrize("head", [b"", b"\0" * 4096, b"MAP " * 1024, bytes(range(256)) * 16, b"# text\n" * 600])
def test_other_files_are_not_taken(head: bytes) -> None:
    assert spider.recognise(Path("a.stk"), head) is None


@given(st.binary(max_size=120), st.integers(0, 150), st.sampled_from("<>"))
def test_no_bytes_make_it_fail_otherwise(junk: bytes, at: int, order: str) -> None:
    whole = stack(2, 20, 10, order=order)
    broken = whole[:at] + junk + whole[at + len(junk) :]
    spider.recognise(Path("a.stk"), broken[:4096])
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = spider.read(written(Path(folder), broken))
        except InputError:
            return
    assert found.pixels.nbytes <= len(broken)
