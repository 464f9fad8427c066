"""Fuzz the readers: ``python -m tests.fuzz TARGET [libFuzzer's options]``, or ``make fuzz`` for all of them.

Whatever a file holds, a reader gives a sound value or raises `InputError`. The seeds are made here; nothing is stored.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from streamprep import formats
from streamprep.formats import cryolo, cryosparc, ctffind, eman, star, topaz, xmipp
from streamprep.model import Coordinates, Ctf, Entry, Image, InputError, Item, ParticleRows

FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
MAX_BYTES = 8192


def sound_entries(entries: Any) -> list[Entry]:
    """Check what a reader of tables gave."""
    assert isinstance(entries, list)
    for entry in entries:
        assert isinstance(entry, Entry)
        assert len(entry.digest) == 32
        assert entry.micrograph is None or entry.micrograph
        if isinstance(entry.data, Coordinates):
            xy_px = entry.data.xy_px
            assert xy_px.dtype == np.float64
            assert xy_px.shape == (len(entry.data), 2)
            assert np.isfinite(xy_px).all()
            assert all(len(values) == len(xy_px) for values in entry.data.columns.values())
            star.rows_text([values.tolist() for values in entry.data.columns.values()]).encode()
        elif isinstance(entry.data, ParticleRows):
            sound_rows(entry.data)
        else:
            assert isinstance(entry.data, Ctf)
            assert np.isfinite([getattr(entry.data, name) for name in Ctf.__slots__]).all()
    return entries


def sound_rows(rows: ParticleRows) -> None:
    """Check what a reader gave of one stack."""
    count = len(rows)
    assert rows.image_index.dtype == np.int64
    assert (rows.image_index >= 0).all()
    for known in (rows.coordinates, rows.ctf, rows.pixel_size_angstrom, rows.phase_flipped, *rows.columns.values()):
        assert known is None or len(known) == count
    assert len(rows.optics_columns) in (0, count)
    if rows.coordinates is not None:
        assert np.isfinite(rows.coordinates.xy_px).all()
    if rows.pixel_size_angstrom is not None:
        assert (rows.pixel_size_angstrom > 0).all()
    star.rows_text([values.tolist() for values in rows.columns.values()]).encode()


def table(read: Callable[[Path], list[Entry]]) -> Callable[[Path], None]:
    """A check of a reader of tables: what it gives is sound, and the same when it reads again."""

    def check(path: Path) -> None:
        try:
            first = sound_entries(read(path))
        except InputError as error:
            assert 0 < len(error.reason) < 2000  # noqa: PT017 - the text is what is looked at
            return
        assert [(entry.micrograph, entry.digest) for entry in first] == [
            (entry.micrograph, entry.digest) for entry in read(path)
        ]

    return check


def image(path: Path) -> None:
    """A check of the readers of images: an image of as many pixels as the file can hold."""
    data = path.read_bytes()
    try:
        said = formats.missing_part(path, len(data), data[: formats.HEAD_BYTES])
        kind = formats.classify_path(path, data[: formats.HEAD_BYTES])
    except InputError:
        return
    if kind is None:
        return
    try:
        found = formats.read_item(Item(kind, path.stem, path))
    except InputError:
        return
    assert said is None
    assert isinstance(found, Image)
    assert found.pixels.ndim in (2, 3)
    assert found.pixels.size > 0
    assert found.pixel_size_angstrom is None or found.pixel_size_angstrom > 0


def everything(path: Path) -> None:
    """A check that the reader that takes a table for its own does so in the way that the daemon asks."""
    data = path.read_bytes()
    kind = formats.classify_path(path, data[: formats.HEAD_BYTES])
    if kind is not None:
        table(lambda place: formats.read_item(Item(kind, place.stem, place)))(path)  # type: ignore[arg-type]


# --- seeds -----------------------------------------------------------------------------------------------------------

XMIPP = "# XMIPP_STAR_1 *\n#\n"
RELION = star.table_text("optics", {"rlnOpticsGroup": [1], "rlnVoltage": [300.0]}) + star.table_text(
    "particles",
    {
        "rlnCoordinateX": [1.5, 2.5],
        "rlnCoordinateY": [3, 4],
        "rlnMicrographName": ["a.mrc", "b c"],
        "rlnAnglePsi": [0, 1],
    },
)
RELION_ROWS = star.table_text(
    "optics",
    {"rlnOpticsGroup": [1, 2], "rlnVoltage": [300, 200], "rlnImagePixelSize": [1.5, 2], "rlnMtfFileName": "ab"},
) + star.table_text(
    "particles",
    {
        "rlnImageName": ["1@a.mrcs", "000002@a.mrcs", "1@b.mrcs"],
        "rlnOpticsGroup": [1, 2, 1],
        "rlnOriginX": [0.5, 0, 1],
        **{name: [9e3] * 3 for name in star.CTF_COLUMNS},
    },
)
RELION_CTF = star.table_text("optics", {"rlnOpticsGroup": [1], "rlnVoltage": [300.0]}) + star.table_text(
    "micrographs",
    {
        "rlnMicrographName": ["a.mrc"],
        "rlnOpticsGroup": [1],
        **{name: [1e4] for name in star.CTF_COLUMNS},
        "rlnPhaseShift": [90],
    },
)
CTFFIND = (
    "# Output from CTFFind version 4.1.14, run on 2023-02-02\n# Input file: a.mrc ; Number of micrographs: 1\n"
    "# Pixel size: 1.000 Angstroms ; acceleration voltage: 300.0 keV ; spherical aberration: 2.70 mm ; "
    "amplitude contrast: 0.07\n# Columns: #1 - micrograph number; #2 - defocus 1 [Angstroms]; #3 - defocus 2; "
    "#4 - azimuth of astigmatism; #5 - additional phase shift [radians]; #6 - cross correlation; #7 - spacing\n"
    "1.0 10295.9 10012.2 -38.8 1.57 0.03 5.2\n"
)
CBOX = "data_global\n\n_cbox_format_version 1.0\n" + star.table_text(
    "cryolo", {name: [10.0, 20.0] for name in ("CoordinateX", "CoordinateY", "Width", "Height", "Confidence")}
)


def cs_table() -> bytes:
    """Two particles with places and CTF."""
    numbers = ("df1_A", "df2_A", "df_angle_rad", "accel_kv", "cs_mm", "amp_contrast")
    rows = np.zeros(
        2,
        [
            ("uid", "<u8"),
            ("location/micrograph_path", "S8"),
            ("location/micrograph_shape", "<u4", (2,)),
            ("location/center_x_frac", "<f4"),
            ("location/center_y_frac", "<f4"),
            *((f"ctf/{name}", "<f4") for name in numbers),
        ],
    )
    rows["uid"], rows["location/micrograph_path"], rows["location/micrograph_shape"] = [7, 9], b"a.mrc", 100
    rows["ctf/accel_kv"] = 300
    stream = io.BytesIO()
    np.save(stream, rows)
    return stream.getvalue()


def mrc_image(mode: int = 2) -> bytes:
    """Four by three pixels."""
    raw = bytearray(1024)
    struct.pack_into("<4i", raw, 0, 4, 3, 1, mode)
    struct.pack_into("<3i3f", raw, 28, 4, 3, 1, 4.0, 3.0, 1.0)
    raw[208:214] = b"MAP DA"
    return bytes(raw) + bytes({2: 48, 0: 12, 101: 6}[mode])


def tiff_image(compression: str | None) -> bytes:
    """Five rows of seven pixels, in two strips."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.arange(35, dtype="u2").reshape(5, 7), compression=compression, rowsperstrip=3)
    return stream.getvalue()


def spider_image(count: int = 0) -> bytes:
    """One image of 256 by 1 pixels, or a stack of them."""
    words = dict.fromkeys((1, 2, 5, 13), 1.0) | {12: 256.0, 22: 1024.0, 23: 1024.0, 24: 2.0 * bool(count), 26: count}
    header = struct.pack("<256f", *(words.get(number, 0.0) for number in range(1, 257)))
    return header + bytes(1024) if not count else header + (header + bytes(1024)) * count


@dataclass(frozen=True, slots=True)
class Target:
    """A reader to be fuzzed: the name of its file, its check, valid files, and words of its format."""

    name: str
    check: Callable[[Path], None]
    seeds: tuple[bytes, ...]
    words: tuple[str, ...] = ()


NUMBERS = ("1e999", "-1e999", "nan", "1_0", "\u0661", "-0", "1e-400", "99999999999999999999", "'", '"', "\n;")
STAR_WORDS = (
    "data_",
    "loop_",
    "_rlnCoordinateX",
    "_rlnImageName",
    "@",
    "_rlnMicrographName",
    "_rlnOpticsGroup",
    "_rlnVoltage",
    "save_",
    "data_optics",
    *NUMBERS,
)
JSON_SEED = json.dumps({"boxes": [[10, 20.5, "manual"], [1, 2, "auto"]], "quality": 5}).encode()
TARGETS = {
    "star": Target(
        "a.star", table(star.read_entries), tuple(map(str.encode, (RELION, RELION_CTF, RELION_ROWS))), STAR_WORDS
    ),
    "xmipp": Target(
        "a.xmd",
        table(xmipp.read_entries),
        (
            f"{XMIPP}data_particles\nloop_\n _enabled\n _cost\n _xcoor\n _ycoor\n 1 0.5 10 20\n -1 0.5 1 2\n".encode(),
            f"{XMIPP}data_a\nloop_\n _image\n _ctfDefocusU\n _ctfDefocusV\n _ctfDefocusAngle\n 1@a.b 9 9 0\n".encode(),
        ),
        ("data_", "loop_", "_xcoor", "_micrograph", "_image", "_enabled", "_ctfVoltage", "_cost", *NUMBERS),
    ),
    "box": Target(
        "a.box", table(eman.read_entries), (b"1\t2\t64\t64\n-3 4 64 64\n", b"1 2 4 4 0.5\n"), ("# ", *NUMBERS)
    ),
    "info": Target(
        "a_info.json", table(eman.read_entries), (JSON_SEED,), ('"boxes"', "[[", "true", "\\ud800", *NUMBERS)
    ),
    "cryolo": Target(
        "a.cbox", table(cryolo.read_entries), (CBOX.encode(), b""), ("data_cryolo", "<NA>", "_CoordinateZ", *NUMBERS)
    ),
    "topaz": Target(
        "a.txt",
        table(topaz.read_entries),
        (b"image_name\tx_coord\ty_coord\tscore\nm.1\t1\t2\t-0.5\nm.2\t3\t4\t1\n",),
        ("z_coord", "\t", "\r", *NUMBERS),
    ),
    "cryosparc": Target(
        "a.cs",
        table(cryosparc.read_entries),
        (cs_table(),),
        ("<u8", "|O", "'shape': (", "<U4", "|S0", "'blob/idx'", ">f4", "<f2"),
    ),
    "ctffind": Target(
        "a_ctf.txt", table(ctffind.read_entries), (CTFFIND.encode(),), ("inf", "[radians]", "keV", " ; ", *NUMBERS)
    ),
    "mrc": Target("a.mrc", image, (mrc_image(), mrc_image(0), mrc_image(101))),
    "mrcgz": Target("a.mrc.gz", image, (gzip.compress(mrc_image(), mtime=0), gzip.compress(mrc_image(), 0, mtime=0))),
    "tiff": Target("a.tif", image, tuple(map(tiff_image, (None, "zlib", "packbits")))),
    "spider": Target("a.spi", image, (spider_image(), spider_image(2))),
    "any": Target(
        "a.box",
        everything,
        (RELION.encode(), JSON_SEED, b"1 2 4 4\n", CBOX.encode(), cs_table(), CTFFIND.encode()),
        STAR_WORDS,
    ),
}


def check(target: Target, data: bytes) -> None:
    """Put bytes into a file of the target's name and run its check."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        path = Path(folder, target.name)
        path.write_bytes(data)
        target.check(path)


def fuzz(target: Target, options: list[str]) -> None:
    """Run libFuzzer; it ends the process, and prints an input that breaks the reader in base64."""
    import atheris

    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(target.seeds):
            (corpus / str(number)).write_bytes(seed)
        words = Path(folder, "words")
        escaped = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in target.words)
        words.write_text("".join(f'"{word}"\n' for word in escaped))
        path = Path(folder, target.name)

        def one(data: bytes) -> None:
            path.write_bytes(data)
            target.check(path)

        given = [f"-dict={words}"] if target.words else []
        command = [
            sys.argv[0],
            *given,
            f"-max_len={MAX_BYTES}",
            f"-artifact_prefix={tempfile.gettempdir()}/fuzz-",
            *options,
        ]
        atheris.Setup([*command, str(corpus)], one)
        atheris.Fuzz()
