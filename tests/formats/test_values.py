"""Bounds of tables, numbers in plain digits, and digests that change when, and only when, the rows do."""

from __future__ import annotations

import bz2
import gzip
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep.formats import _values, ctffind, mrc, star, topaz, xmipp
from streamprep.formats._values import as_numbers, digest_of, groups, is_number
from streamprep.model import InputError

HEAD = b"data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n"
LARGE = _values.MAX_SINGLE_BYTES + 1


@pytest.mark.parametrize("text", ["1_0", "\u0661", "1e999", "nan", "inf", "0x1", "", "1 2", "--1", "1e"])
def test_what_is_no_plain_number(text: str) -> None:
    assert not is_number(text)
    assert not np.isfinite(as_numbers(["1", text])[1])


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_come_back(values: list[float]) -> None:
    assert as_numbers([repr(value) for value in values]).tolist() == values


@given(st.lists(st.sampled_from("abcd")))
def test_groups_hold_each_row_once_in_order(names: list[str]) -> None:
    found = groups(names)
    assert [name for name, _ in found] == list(dict.fromkeys(names))
    assert sorted(row for _, rows in found for row in rows.tolist()) == list(range(len(names)))
    for name, rows in found:
        assert rows.tolist() == [row for row, other in enumerate(names) if other == name]


texts = st.lists(st.text(max_size=3), max_size=3)


@given(texts, texts, st.lists(st.floats(-9, 9)), st.lists(st.floats(-9, 9)))
def test_a_digest_is_that_of_the_rows(a: list[str], b: list[str], x: list[float], y: list[float]) -> None:
    first = {"a": np.array(a, dtype=object), "x": np.array(x)}
    second = {"x": np.array(y), "a": np.array(b, dtype=object)}
    assert (digest_of(first) == digest_of(second)) == (a == b and x == y)
    assert digest_of(np.array(x), a) != digest_of(a, np.array(x))


@pytest.mark.case(29)
@pytest.mark.parametrize(
    ("name", "read", "data", "said"),
    [
        ("a.star", star.read_entries, bytes(LARGE), "byte 1 is NUL"),
        ("a.star", star.read_entries, HEAD + b"1 2\n" + bytes(LARGE), "byte 49 is NUL"),
        ("a.star", star.read_entries, HEAD + b"1 " * LARGE, "no line ends"),
        ("a.star", star.read_entries, b" " * LARGE, "no line ends"),
        ("a.xmd", xmipp.read_entries, b"# XMIPP_STAR_1 *\n" + bytes(LARGE), "byte 18 is NUL"),
        ("a.txt", topaz.read_entries, b"image_name\tx_coord\ty_coord\n" + b"a\t" * LARGE, "no line ends"),
        ("a.txt", ctffind.read_entries, b"# Output from CTFFind\n" + b"1 " * LARGE, "the most that is read"),
        (
            "a.mrc.gz",
            mrc.read,
            gzip.compress(struct.pack("<4i", 9, 9, 1, 2) + bytes(76) + struct.pack("<i", 1 << 27) + bytes(40 << 20), 1),
            "truncated",
        ),
    ],
    ids=["NUL", "NUL later", "one line", "blanks", "xmipp", "topaz", "ctffind", "extended header"],
)
def test_what_is_no_table_is_refused_without_taking_it_into_memory(
    tmp_path: Path, name: str, read: Callable[[Path], object], data: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=said):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_a_forged_size_in_a_compressed_header_is_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.mrc.gz"
    path.write_bytes(pack(struct.pack("<4i", 1 << 17, 1 << 17, 1 << 24, 2) + bytes(2000)))
    with pytest.raises(InputError, match="no image is as empty as that"):
        mrc.read(path)


@pytest.mark.case(29)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("".join(f"data_t{number}\n_a 1\n" for number in range(5000)), "more than 4096 data_ blocks"),
        ("data_\n" + "".join(f"loop_\n_a{number}\n1\n" for number in range(5000)), "more than 4096"),
        ("data_\n" + "".join(f"_a{number} 1\n" for number in range(5000)), "more than 4096 columns"),
        ("data_a\n_a 1\ndata_A\n_a 1\n", "duplicate block data_A"),
        ("data_\n_a 1\n_A 1\n", "duplicate tag _A"),
    ],
)
def test_tables_and_columns_are_counted(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.star"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        star.read_loops(path)


def test_a_ctf_that_no_microscope_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    columns = {"rlnMicrographName": ["a", "b"], **{name: [1e4, 1e4] for name in star.CTF_COLUMNS}}
    path.write_text(star.table_text("micrographs", columns | {"rlnVoltage": [300, -3]}))
    with pytest.raises(InputError, match="row 2 of data_micrographs: voltage_kv is -3"):
        star.read_entries(path)


def test_an_at_sign_in_the_name_of_a_stack_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.xmd"
    path.write_text("# XMIPP_STAR_1 *\ndata_a\nloop_\n_xcoor\n_ycoor\n_image\n1 2 000001@dir/a@b.stk\n")
    assert [entry.micrograph for entry in xmipp.read_entries(path)] == ["dir/a@b.stk"] * 2
