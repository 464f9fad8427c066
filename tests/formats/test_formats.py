"""Which file is what, on made files and on every real one."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from streamprep import formats
from streamprep.formats import mrc_output
from streamprep.model import Coordinates, Image, InputError, Item, Kind


def real_data() -> Path:
    """The folder of real input data; it may be absent."""
    beside_the_project = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    return Path(os.environ.get("STREAMPREP_TEST_DATA", beside_the_project))


DATA = real_data()
REAL_FILES = [path for path in sorted(DATA.rglob("*")) if path.is_file()]
needs_data = pytest.mark.skipif(
    not REAL_FILES, reason="no real data: set STREAMPREP_TEST_DATA to the folder to run this test"
)


def head_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(formats.HEAD_BYTES)


@needs_data
@pytest.mark.parametrize("path", REAL_FILES, ids=lambda path: path.relative_to(DATA).as_posix())
def test_every_real_file_is_known_and_readable(path: Path) -> None:
    kind = formats.classify_path(path, head_of(path))
    assert (kind is None) == (path.name == "SOURCES.md")
    if kind is None:
        return
    assert formats.missing_part(path, path.stat().st_size, head_of(path)) is None
    read = formats.read_item(Item(kind, path.stem, path))
    if isinstance(read, Image):
        assert kind in ("micrograph", "map")
        assert read.pixels.ndim == (2 if kind == "micrograph" else 3)
        assert read.pixels.dtype.isnative
        assert np.isfinite(read.pixels).all()
        assert read.pixels.std() > 0
        assert read.pixel_size_angstrom is not None
        assert 0.1 < read.pixel_size_angstrom < 20
    else:
        assert kind == "coordinates"
        assert read


@needs_data
@pytest.mark.parametrize(
    ("name", "kind", "shape", "dtype", "pixel_size_angstrom"),
    [
        ("micrographs/epu2.9_example.mrc", "micrograph", (4096, 4096), "uint16", 0.66655),
        ("micrographs/Ucsf_stack_1142_DW.mrc", "micrograph", (927, 959), "float32", 1.0),
        ("masks/Ucsf_stack_1142_DW.mrc", "micrograph", (927, 959), "float32", 1.0),
        ("maps/EMD-3197.map", "map", (20, 20, 20), "float32", 11.4),
        ("maps/EMD-3001.map", "map", (73, 25, 43), "float32", 0.44825),
        ("maps/emd_6272_part.mrc", "map", (52, 52, 52), "float32", 1.023),
    ],
)
def test_real_images_are_what_they_are_said_to_be(
    name: str, kind: Kind, shape: tuple[int, ...], dtype: str, pixel_size_angstrom: float
) -> None:
    path = DATA / name
    assert formats.classify_path(path, head_of(path)) == kind
    image = formats.read_item(Item(kind, path.stem, path))
    assert isinstance(image, Image)
    assert (image.pixels.shape, image.pixels.dtype.name) == (shape, dtype)
    assert image.pixel_size_angstrom == pytest.approx(pixel_size_angstrom, rel=1e-4)


@needs_data
def test_real_picks_lie_on_their_micrograph() -> None:
    path = DATA / "coordinates/relion/Ucsf_stack_1142_DW_autopick.star"
    (entry,) = formats.read_item(Item("coordinates", path.stem, path))  # type: ignore[misc]
    assert entry.micrograph is None
    assert isinstance(entry.data, Coordinates)
    assert len(entry.data) == 45
    assert entry.data.xy_px[0].tolist() == [839.125024, 19.979167]
    assert (entry.data.xy_px >= 0).all()
    assert (entry.data.xy_px < [959, 927]).all()
    assert set(entry.data.columns) == {"rlnAutopickFigureOfMerit", "rlnClassNumber", "rlnAnglePsi"}


def mrc_head(nz: int, space_group: int) -> bytes:
    raw = bytearray(1024)
    struct.pack_into("<4i", raw, 0, 8, 8, nz, 2)
    struct.pack_into("<i", raw, 88, space_group)
    return bytes(raw)


@pytest.mark.parametrize(
    ("name", "nz", "space_group", "kind"),
    [
        ("a.mrc", 1, 0, "micrograph"),
        ("a.mrc", 1, 1, "micrograph"),
        ("a.MRC", 1, 0, "micrograph"),
        ("a.mrc", 9, 0, "particles"),
        ("a.mrc", 9, 1, "map"),
        ("a.mrc", 9, 401, "map"),
        ("a.mrcs", 9, 0, "particles"),
        ("a.mrcs", 1, 0, "particles"),
        ("a.mrcs", 9, 1, "particles"),
        ("a.map", 9, 0, "map"),
        ("a.map", 9, 1, "map"),
        ("a.ccp4", 9, 1, "map"),
    ],
)
def test_an_mrc_file_is_told_by_its_ending_and_its_header(name: str, nz: int, space_group: int, kind: Kind) -> None:
    assert formats.classify_path(Path(name), mrc_head(nz, space_group)) == kind


@pytest.mark.parametrize("name", ["a.txt", "a", "a.mrc.tmp", ".mrc", "a.star.bak", "a.npy", "a.tif.gz", "mrc"])
def test_other_endings_are_nobodys_business_here(name: str) -> None:
    assert formats.classify_path(Path(name), mrc_head(1, 0)) is None
    assert formats.missing_part(Path(name), 3, b"abc") is None


NO_TABLES = [
    ("a.box", bytes(4096), "byte 1 is NUL"),
    ("a.box", b"hello world\n", "line 1: 2 columns"),
    ("a.BOX", b"x y w h\n", "line 1: x is 'x', not a number"),
    ("a.box", b'{"boxes": 3}', "boxes is 3, not a list"),
    ("a_info.json", b'{"boxes": 3}', "boxes is 3, not a list"),
    ("a_info.json", b'{"boxes": [{"x": 1}]}', "row 1 of boxes is an object"),
    ("a_info.json", b"[[1, 2]]", "it holds no JSON object"),
    ("a_INFO.json", b"", "not a readable JSON file"),
    ("a.cbox", b"data_particles\nloop_\n_x\n1\n", "it has 0 tables in data_cryolo"),
    ("a.cbox", b"1 2 3 4\n", "not a readable STAR file"),
    ("a.cbox", bytes(64), "byte 1 is NUL"),
    ("a.pos", b"", "its first line must begin with '# XMIPP_STAR_1'"),
    ("a.pos", b"12 14\n", "its first line must begin with '# XMIPP_STAR_1'"),
    ("a.pos", b"# XMIPP_STAR_1 *\ndata_a\nloop_\n_z\n1\n", "neither coordinates .* its columns are _z"),
    ("a.xmd", bytes(4096), "its first line must begin with '# XMIPP_STAR_1'"),
    ("a.ctfparam", b"\xff\xfe", "its first line must begin with '# XMIPP_STAR_1'"),
    ("a.cs", b"\x80\x04\x95", "it must begin as a numpy array file does"),
    ("a.cs", b"\x94CSDAT", "compressed format"),
]
"""What no reader takes for its own, and what that of the ending says of it. More of ``.cs``: test_cryosparc.py."""


@pytest.mark.parametrize(("name", "data", "said"), NO_TABLES)
def test_a_broken_table_goes_to_the_reader_of_its_ending(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert all(reader.recognise(path, data) is None for reader in formats.TABLES)
    assert formats.classify_path(path, data) == "coordinates"
    with pytest.raises(InputError, match=said):
        formats.read_item(Item("coordinates", path.stem, path))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.xmd", b"# XMIPP_STAR_1 *\ndata_a\nloop_\n_ref3d\n_classCount\n1 20\n"),
        ("a.ctfparam", b"# XMIPP_STAR_1 *\ndata_a\n_scale 1\n"),
        ("a.json", b'{"boxes": 3}'),
        ("info.json", b'{"boxes": 3}'),
        ("a_info.json.txt", b'{"boxes": 3}'),
        ("a.txt", b"12 14\n"),
        ("a.txt", bytes(64)),
        ("a.box.bak", b"hello\n"),
        ("pos", b"12 14\n"),
    ],
)
def test_what_belongs_to_others_is_left_alone(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert formats.classify_path(path, data) is None
    with pytest.raises(InputError, match="no reader for a coordinates file"):
        formats.read_item(Item("coordinates", path.stem, path))


def test_an_info_file_in_which_nothing_was_picked_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a_info.json"
    path.write_bytes(b'{"quality": 5}')
    assert formats.classify_path(path, path.read_bytes()) == "coordinates"
    assert formats.read_item(Item("coordinates", path.stem, path)) == []


def test_a_pos_file_in_which_nothing_was_picked_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.pos"
    path.write_text("# XMIPP_STAR_1 *\n#\ndata_header\nloop_\n _pickingMicrographState\n Available\n")
    assert formats.classify_path(path, path.read_bytes()) == "coordinates"
    assert formats.read_item(Item("coordinates", path.stem, path)) == []


def test_a_table_is_told_by_its_ending_whatever_is_in_it() -> None:
    assert formats.classify_path(Path("a.STAR"), b"") == "coordinates"
    assert formats.missing_part(Path("a.star"), 0, b"") is None


@pytest.mark.parametrize("head", [b"", b"MAP", bytes(1024), b"\xff" * 4096])
def test_an_mrc_ending_on_something_else_is_an_error_that_names_the_file(head: bytes) -> None:
    with pytest.raises(InputError, match=r"a\.mrc: "):
        formats.classify_path(Path("a.mrc"), head)


def test_the_kind_and_the_ending_choose_the_reader(tmp_path: Path) -> None:
    mrc_output.write(tmp_path / "a.mrc", np.ones((1, 4, 4), np.float32), pixel_size_angstrom=2, stack=True)
    kinds: list[Kind] = ["micrograph", "mask", "particles", "map"]
    for kind in kinds:
        image = formats.read_item(Item(kind, "a", tmp_path / "a.mrc"))
        assert isinstance(image, Image)
        assert image.pixels.tolist() == np.ones((4, 4)).tolist()
    with pytest.raises(InputError, match=r"a\.mrc: no reader for a coordinates file that ends in \.mrc"):
        formats.read_item(Item("coordinates", "a", tmp_path / "a.mrc"))
    with pytest.raises(InputError, match="no reader for a micrograph file that ends in nothing"):
        formats.read_item(Item("micrograph", "a", tmp_path / "a"))
