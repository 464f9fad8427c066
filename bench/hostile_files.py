"""What hostile and broken files cost their readers: ``python bench/hostile_files.py [WORD]``.

Each file is made in a temporary folder and read in a process of its own, as the daemon does: is it whole, what is it,
and what is in it. Printed are the verdict, the time, and by how much the process grew at its peak. Files with WORD in
their name only, where it is given. Nothing is asserted: the verdicts are tests of their own.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import multiprocessing
import pickle
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

MIB = 1 << 20
BIG = 100 * MIB


def mrc_header(nx: int, ny: int, nz: int, mode: int = 2, extended: int = 0) -> bytes:
    """The header of an MRC file."""
    raw = bytearray(1024)
    struct.pack_into("<4i", raw, 0, nx, ny, nz, mode)
    struct.pack_into("<i", raw, 92, extended)
    raw[208:214] = b"MAP DA"
    return bytes(raw)


def cs_header(text: str) -> bytes:
    """A header of numpy's format."""
    padded = text + " " * (117 - len(text) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode()


def star(columns: str, body: bytes) -> bytes:
    """One STAR table."""
    return b"data_\nloop_\n" + columns.encode() + body


def pickled() -> bytes:
    """An array that numpy would have to unpickle."""
    stream = io.BytesIO()
    np.save(stream, np.array([{"uid": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


def cases() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """File name and content."""
    xy = "_rlnCoordinateX\n_rlnCoordinateY\n"
    for ending in ("star", "xmd", "box", "json", "cbox", "txt", "cs", "mrc", "mrcs", "mrc.gz", "tif", "spi"):
        yield f"empty.{ending}", lambda: b""
        yield f"nul_100MB.{ending}", lambda: bytes(BIG)
        yield f"noise_100MB.{ending}", lambda: np.random.default_rng(1).bytes(BIG)
    for ending, head in {
        "star": star(xy, b""),
        "xmd": b"# XMIPP_STAR_1 *\n" + star("_xcoor\n_ycoor\n", b""),
        "cbox": b"data_cryolo\nloop_\n_CoordinateX\n_CoordinateY\n_Width\n_Height\n",
        "box": b"1 2 3 4\n",
        "txt": b"image_name\tx_coord\ty_coord\n",
        "json": b'{"boxes": [[1, 2, "a"]',
    }.items():
        yield f"line_100MB.{ending}", lambda head=head: head + b"1" * BIG
        yield f"blanks_100MB.{ending}", lambda head=head: head + b" " * BIG
        yield f"newlines_100MB.{ending}", lambda head=head: head + b"\n" * BIG
        yield f"words_100MB.{ending}", lambda head=head: head + b"abc\n" * (BIG // 4)
    yield "field_100MB.star", lambda: star(xy, b"\n;" + b"x\n" * (BIG // 2) + b";\n")
    yield "quote_100MB.star", lambda: star(xy, b"'" + b"x " * (BIG // 2))
    yield "blocks.star", lambda: b"".join(b"data_%d\n_rlnCoordinateX 1\n" % number for number in range(10**6))
    yield "loops.star", lambda: b"data_\n" + b"".join(b"loop_\n_a%d\n1\n" % number for number in range(10**6))
    yield "pairs.star", lambda: b"data_\n" + b"".join(b"_a%d 1\n" % number for number in range(10**6))
    yield "columns.star", lambda: b"data_\nloop_\n" + b"".join(b"_a%d\n" % number for number in range(10**6)) + b"1\n"
    yield "rows_without_end.star", lambda: star(xy, b"1 2\n" * 999_999 + b"1\n")
    yield "columns.txt", lambda: b"image_name\tx_coord\ty_coord\t" + b"a\t" * 10**7 + b"\n"
    yield "deep.json", lambda: b'{"boxes": ' + b"[" * 10**6
    yield "many.json", lambda: json.dumps({"boxes": [[1, 2, "a"]] * 400_000}).encode()
    yield "long_names.star", lambda: star(xy + "_rlnMicrographName\n", b"1 2 " + b"a" * BIG + b"\n")
    described = "[('uid', '<u8'), ('location/micrograph_path', 'S1')]"
    yield (
        "forged_rows.cs",
        lambda: cs_header(f"{{'descr': {described}, 'fortran_order': False, 'shape': ({1 << 60},), }}"),
    )
    yield (
        "forged_width.cs",
        lambda: cs_header(
            "{'descr': [('uid', '<u8'), ('blob/idx', 'S2147483647')], 'fortran_order': False, 'shape': (1,), }"
        ),
    )
    yield "deep_header.cs", lambda: cs_header("(" * 60000)
    yield "pickle.cs", pickled
    yield "bare_pickle.cs", lambda: pickle.dumps({"uid": 1})
    yield "forged_sides.mrc", lambda: mrc_header(1 << 30, 1 << 30, 1) + bytes(64)
    yield "forged_sections.mrcs", lambda: mrc_header(4096, 4096, 1 << 24) + bytes(64)
    yield "forged_extended.mrc", lambda: mrc_header(8, 8, 1, extended=1 << 30) + bytes(64)
    yield "trailing.mrc", lambda: mrc_header(8, 8, 1) + bytes(257)
    yield "bomb_1GiB.mrc.gz", lambda: gzip.compress(mrc_header(8, 8, 1) + bytes(1024 * MIB), 9)
    yield "bomb_1GiB_named.mrc.gz", lambda: gzip.compress(mrc_header(16384, 16384, 1) + bytes(1024 * MIB), 9)
    yield "bomb_1GiB.mrc.bz2", lambda: bz2.compress(mrc_header(8, 8, 1) + bytes(1024 * MIB), 9)
    yield "cut.mrc.gz", lambda: gzip.compress(mrc_header(512, 512, 1) + bytes(MIB), 9)[:-9]


def look(path: str, answers: multiprocessing.SimpleQueue[tuple[str, float, int]]) -> None:
    """Read a file as the daemon and its workers do."""
    from streamprep import formats
    from streamprep.model import InputError, Item

    formats.missing_part(Path(__file__), 1, b"")
    Path("/proc/self/clear_refs").write_text("5")
    before, begun = peak(), time.perf_counter()
    place = Path(path)
    try:
        with place.open("rb") as file:
            head = file.read(formats.HEAD_BYTES)
        lacking = formats.missing_part(place, place.stat().st_size, head)
        kind = None if lacking else formats.classify_path(place, head)
        if lacking:
            said = f"not whole: {lacking}"
        elif kind in (None, "other"):
            said = "left alone: no known kind"
        else:
            made = formats.read_item(Item(kind, place.stem, place))
            said = f"read: {len(made)} entries" if isinstance(made, list) else f"read: {made.pixels.shape}"
    except InputError as error:
        said = f"refused: {error.reason}"
    answers.put((said, time.perf_counter() - begun, peak() - before))


def peak() -> int:
    """The most memory that this process had [bytes]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main() -> None:
    """Make and read one file after the other."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    context = multiprocessing.get_context("spawn")
    for name, make in cases():
        if word not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(make())
            answers = context.SimpleQueue()
            process = context.Process(target=look, args=(str(path), answers))
            process.start()
            process.join(120)
            if process.exitcode is None:
                process.kill()
                print(f"{name:<26} more than 120 s")
            elif answers.empty():
                print(f"{name:<26} ended with code {process.exitcode}")
            else:
                said, seconds, grown = answers.get()
                print(f"{name:<26} {seconds:7.2f} s {grown / MIB:7.0f} MiB  {said[:110]}", flush=True)


if __name__ == "__main__":
    main()
