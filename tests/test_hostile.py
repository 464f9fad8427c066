"""Hostile and broken files in a session: each has a fixed verdict with a reason, and what is good is done.

The numbers are those of the cases in the page on reliability. What each costs: ``python bench/hostile_files.py``.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import shutil
import struct
from collections.abc import Callable

import numpy as np
import pytest

from streamprep.formats import _values, star, topaz
from streamprep.model import InputError
from tests.conftest import Session
from tests.outputs import check_invariants
from tests.test_changes import once


def mrc_header(nx: int, ny: int, nz: int = 1, mode: int = 2, extended: int = 0) -> bytes:
    raw = bytearray(1024)
    struct.pack_into("<4i", raw, 0, nx, ny, nz, mode)
    struct.pack_into("<i", raw, 92, extended)
    raw[208:214] = b"MAP DA"
    return bytes(raw)


def objects() -> bytes:
    """What numpy could only read by unpickling it."""
    stream = io.BytesIO()
    rows = np.zeros(1, [("uid", "<u8"), ("location/micrograph_path", "O")])
    np.save(stream, rows, allow_pickle=True)
    return stream.getvalue()


GOOD = mrc_header(8, 8) + bytes(256)
CASES: dict[str, tuple[str, str, bytes, str]] = {
    "16 cut in the header": ("Micrographs", "cut.mrc", GOOD[:700], "700 of the 1024 bytes of an MRC header"),
    "16 cut in the pixels": ("Micrographs", "short.mrc", GOOD[:-1], "truncated: it has 1279 bytes"),
    "16 never begun": ("Micrographs", "none.mrc", b"", "the file is empty"),
    "16 still zero": ("Micrographs", "zero.mrc", bytes(4096), "its header is still all zero"),
    "17 trailing bytes": ("Micrographs", "long.mrc", GOOD + b"x", "longer than its header says"),
    "17 a table cut in a row": (
        "Coordinates",
        "cut.star",
        b"data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 2\n3",
        "line",
    ),
    "18 absurd sides": ("Micrographs", "wide.mrc", mrc_header(1 << 30, 1 << 30) + bytes(64), "each size must be"),
    "18 absurd extended header": (
        "Micrographs",
        "ext.mrc",
        mrc_header(8, 8, extended=-5) + bytes(256),
        "-5 bytes of ext",
    ),
    "18 negative sides": ("Micrographs", "minus.mrc", mrc_header(-8, 8) + bytes(256), "each size must be"),
    "19 a bomb": ("Micrographs", "bomb.mrc.gz", gzip.compress(GOOD + bytes(64 << 20)), "longer than its header says"),
    "19 a forged bomb": (
        "Micrographs",
        "forged.mrc.gz",
        gzip.compress(mrc_header(1 << 17, 1 << 17)),
        "no image is as empty as that",
    ),
    "19 a cut stream": ("Micrographs", "stream.mrc.gz", gzip.compress(GOOD)[:-6], "cut or damaged"),
    "29 objects in a .cs": ("Coordinates", "objects.cs", objects(), "pickled Python objects, which are never read"),
    "29 a deep .json": ("Coordinates", "deep.json", b'{"boxes": ' + b"[" * 200_000, "nested too deeply"),
    "29 NUL bytes": ("Coordinates", "nul.star", b"data_\nloop_\n_rlnCoordinateX\n\0\0", "NUL"),
    "29 a bare pickle": ("Coordinates", "pickle.cs", pickle.dumps({"uid": 1}), "not a cryoSPARC table"),
    "29 cryoSPARC's compressed format": ("Coordinates", "packed.cs", b"\x94CSDAT" + bytes(99), "compressed format"),
    "29 a .box of NULs": ("Coordinates", "nul.box", bytes(4096), "NUL"),
    "29 a .box of words": ("Coordinates", "words.box", b"hello world\n", "line 1: 2 columns"),
    "29 a .cbox of another program": ("Coordinates", "other.cbox", b"data_\n_a 1\n", "it has 0 tables in data_cryolo"),
    "29 a .pos of noise": ("Coordinates", "noise.pos", bytes(range(256)), "not an Xmipp metadata file"),
    "29 boxes that are no list": ("Coordinates", "one_info.json", b'{"boxes": 1}', "boxes is 1, not a list"),
    "29 no UTF-8": ("Coordinates", "bytes.box", b"1 2 3 4\n\xff\xfe 1 1 1\n", "UTF-8"),
    "29 names that no value has": (
        "Coordinates",
        "inf.star",
        b"data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1e999 2\n",
        "'1e999', not a number",
    ),
}


@pytest.mark.case(16, 17, 19, 29)
def test_every_case_has_its_verdict_and_the_session_goes_on(session: Session) -> None:
    session.edit('[ctf]\ntable = "micrographs_ctf.star"', "")
    for folder, name, data, _ in CASES.values():
        (session.folder / folder / name).write_bytes(data)
        if name.endswith(".gz"):  # only when it is read does it show what is in it
            picks = session.folder / "Coordinates" / "mic_0001_autopick.star"
            shutil.copy(picks, picks.with_name(name.replace(".mrc.gz", ".star")))
    told = once(session)
    assert told.returncode == 1
    assert "3 micrographs done" in told.stdout, told.stdout
    lines = told.stdout.splitlines()
    for case, (folder, name, _, reason) in CASES.items():
        said = [line for line in lines if line.startswith("failed") and f"{folder}/{name}" in line]
        assert said, f"{case}: nothing is said of {name}:\n{told.stdout}"
        assert reason in said[0], case
    check_invariants(session.output)
    again = once(session)
    assert "3 micrographs done" in again.stdout
    assert not [line for line in again.stdout.splitlines() if line.startswith("failed ")], "the verdicts are fixed"


@pytest.mark.case(20)
def test_names_that_try_to_be_something_else(session: Session) -> None:
    """Case 20: a FIFO, a folder called like a micrograph, link loops, newlines, HTML, bytes that are no text."""
    folder = session.folder / "Micrographs"
    good = (folder / "mic_0001.mrc").read_bytes()
    os.mkfifo(folder / "pipe.mrc")
    (folder / "folder.mrc").mkdir()
    (folder / "loop.mrc").symlink_to("loop.mrc")
    (folder / "up").symlink_to("..")
    names = [b"new\nline.mrc", b"<img src=x onerror=alert(1)>.mrc", b"bytes_\xff\xfe.mrc", b"-rf.mrc", b"a b;c$(d).mrc"]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(good)
    told = once(session)
    assert told.returncode == 0, told.stdout
    assert f"3 micrographs done, {len(names)} waiting, 0 failed, 0 rejected" in told.stdout
    assert all(line.isprintable() for line in told.stdout.splitlines())
    check_invariants(session.output)


@pytest.mark.case(29)
@pytest.mark.parametrize(
    ("read", "name", "text"),
    [
        (star.read_entries, "a.star", b"data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n" + b"abc\n" * 500_000),
        (star.read_entries, "b.star", b"data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 x\n" + b"1 2\n" * 500_000),
        (topaz.read_entries, "a.txt", b"image_name\tx_coord\ty_coord\n" + b"abc\n" * 500_000),
    ],
)
def test_a_large_table_with_a_fault_at_its_beginning_is_never_taken_into_memory(
    session: Session, monkeypatch: pytest.MonkeyPatch, read: Callable[..., object], name: str, text: bytes
) -> None:
    def whole(*_: object) -> bytes:
        raise AssertionError("the whole file was read")

    path = session.folder / name
    path.write_bytes(text)
    for module in (star, topaz._plain):
        monkeypatch.setattr(module, "text_bytes", whole)
    with pytest.raises(InputError):
        read(path)


@pytest.mark.case(29)
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\n" * (3 << 20), "nothing is in the 1048576 bytes"),
        (b"1" * (3 << 20), "no line ends in the 1048576 bytes"),
        (b"1 2\n;text\n;\n" * 100, "with texts between semicolons"),
    ],
)
def test_large_files_of_nothing_are_refused_while_they_are_looked_through(
    session: Session, monkeypatch: pytest.MonkeyPatch, body: bytes, said: str
) -> None:
    monkeypatch.setattr(_values, "MAX_SINGLE_BYTES", 1000)
    monkeypatch.setattr(star, "MAX_SINGLE_BYTES", 1000)
    path = session.folder / "a.star"
    path.write_bytes(b"data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n" + body)
    with pytest.raises(InputError, match=said):
        star.read_entries(path)
