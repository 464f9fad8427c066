"""Checksums of parts make that of the whole."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep.formats.checksum import combined, crc32


@given(st.binary(max_size=50), st.lists(st.binary(max_size=300), max_size=5))
def test_checksums_of_parts_make_that_of_the_whole(first: bytes, others: list[bytes]) -> None:
    parts = [(crc32(part), len(part)) for part in others]
    assert combined(crc32(first), parts) == zlib.crc32(first + b"".join(others))


@pytest.mark.parametrize("size", [1 << 12, (1 << 20) + 3])
def test_parts_may_be_long(size: int) -> None:
    one, other = bytes(range(256)) * (size // 256), b"\xff" * size
    assert combined(crc32(one), [(crc32(other), size)] * 3) == zlib.crc32(one + 3 * other)
