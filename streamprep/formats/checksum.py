"""CRC-32 of files that are written in parts.

Notes
-----
A CRC is the rest of a polynomial with bits as coefficients, divided by another one. What stands before n further bytes
is multiplied by x to the power 8 n, so the CRC of two parts follows from the CRC of each (as zlib's crc32_combine has
it).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

try:
    from isal.isal_zlib import crc32
except ImportError:  # eight times slower
    from zlib import crc32

POLYNOMIAL = 0xEDB88320
"""Of zlib, PNG and Ethernet. The highest bit is the coefficient of 1, the lowest that of x³¹."""
_ONE = 1 << 31


def combined(first: int, others: Iterable[tuple[int, int]]) -> int:
    """CRC-32 of several parts, one after the other.

    Parameters
    ----------
    first
        CRC-32 of the first part.
    others
        CRC-32 and number of bytes of each of the others, in their order.

    Examples
    --------
    >>> import zlib
    >>> combined(zlib.crc32(b"ab"), [(zlib.crc32(b"c"), 1), (zlib.crc32(b"def"), 3)]) == zlib.crc32(b"abcdef")
    True
    """
    for crc, size_bytes in others:
        first = _product(first, _power(8 * size_bytes)) ^ crc
    return first


def _product(one: int, other: int) -> int:
    """Of two polynomials, reduced."""
    made = 0
    while one:
        if one & _ONE:
            made ^= other
        one = one << 1 & 0xFFFFFFFF
        other = other >> 1 ^ (POLYNOMIAL if other & 1 else 0)
    return made


@lru_cache
def _power(exponent: int) -> int:
    """x to a power, reduced."""
    made, square = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            made = _product(made, square)
        square = _product(square, square)
        exponent >>= 1
    return made


__all__ = ["combined", "crc32"]
