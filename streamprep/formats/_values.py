"""What the readers of tables share: text of a bounded size, which text is a number, groups of rows, their digest.

A file is looked through before it is taken into memory, so that what is no table is refused by its first bytes.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamprep.model import FloatArray, InputError

MAX_BYTES = 4 << 30
"""A table of many micrographs. Read, it takes several times the space of its text."""
MAX_SINGLE_BYTES = 16 << 20
"""A table of one micrograph: some hundred thousand boxes."""
MAX_LINE_BYTES = 1 << 20
"""In larger files than that, longer lines may be refused; those of twice the length are."""

_SMALL_BYTES = 1 << 20
_BEGINNING_BYTES = 1 << 16

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


def text_bytes(
    path: Path, max_bytes: int | None = None, at_most: Mapping[bytes, tuple[int, str]] | None = None
) -> bytes:
    """The bytes of a text file, without the mark of UTF-8 at its beginning.

    Parameters
    ----------
    path
        The file.
    max_bytes
        The largest that is read.
    at_most
        What may be in it so many times only, and how that is called. One that lies across two MiB may be overlooked.

    Raises
    ------
    InputError
        The file is too large, holds a NUL byte, an endless line, a MiB of blanks, or too much of something: found while
        it is looked through, before it is taken into memory.
    """
    size, most = path.stat().st_size, min(max_bytes or MAX_BYTES, MAX_BYTES)
    if size > most:
        raise InputError(path, f"the table has {size} bytes; the most that is read is {most}")
    with path.open("rb") as file:
        seen, counts = 0, dict.fromkeys(at_most or {}, 0)
        while piece := file.read(MAX_LINE_BYTES):
            at = piece.find(b"\0")
            if at >= 0:
                raise InputError(path, f"not a text file: byte {seen + at + 1} is NUL")
            if size > MAX_SINGLE_BYTES and len(piece) == MAX_LINE_BYTES:
                where = f"the {MAX_LINE_BYTES} bytes from byte {seen + 1} on"
                if b"\n" not in piece and b"\r" not in piece:
                    raise InputError(path, f"not a table: no line ends in {where}")
                if piece.isspace():
                    raise InputError(path, f"not a table: nothing is in {where}")
            for mark, (most, name) in (at_most or {}).items():
                counts[mark] += piece.count(mark)
                if counts[mark] > most:
                    said = f"more than {most} {name}, the most that is read" if most else f"{name}; none may be in it"
                    raise InputError(path, f"a table of {size} bytes with {said}")
            seen += len(piece)
        file.seek(0)
        data = file.read(size)
    return data.removeprefix(b"\xef\xbb\xbf")


def beginning(path: Path) -> bytes | None:
    """Whole lines from the beginning of a large file, to find there what would cost much to find in the whole.

    None for a small one, which costs little anyway.
    """
    if path.stat().st_size <= _SMALL_BYTES:
        return None
    with path.open("rb") as file:
        start = file.read(_BEGINNING_BYTES)
    return start[: start.rfind(b"\n") + 1].removeprefix(b"\xef\xbb\xbf")


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_number(value: str) -> bool:
    """Whether text is a finite number in plain digits: not ``1_0``, not digits of other scripts, not ``1e999``."""
    return bool(_NUMBER.fullmatch(value)) and math.isfinite(float(value))


def as_numbers(values: Sequence[str]) -> FloatArray:
    """Text as numbers, NaN or infinity where it is none."""
    text = "".join(values)
    if text.isascii() and "_" not in text:  # Python's own rule is wider than that of tables only there
        try:
            return np.array(values, dtype=np.float64)
        except ValueError:
            pass
    return np.array([float(value) if is_number(value) else math.nan for value in values], dtype=np.float64)


def groups(names: Iterable[Any]) -> list[tuple[Any, npt.NDArray[np.int64]]]:
    """The rows of each name, in order of first appearance."""
    known: dict[Any, int] = {}
    codes = np.fromiter((known.setdefault(name, len(known)) for name in names), np.int64)
    rows = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(known)))[:-1]
    return list(zip(known, np.split(rows, ends), strict=True)) if known else []


def digest_of(*parts: Any) -> str:
    """A digest that changes when, and only when, one of the parts does.

    Parts are arrays of numbers, arrays and lists of text, mappings of names to such (their order does not count), and
    anything whose ``repr`` says all of it.
    """
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        _feed(state, part)
    return state.hexdigest()


def _feed(state: Any, part: Any) -> None:
    """Hash a part such that no two different ones give the same bytes: its kind and length come first."""
    if isinstance(part, Mapping):
        state.update(b"m%d;" % len(part))
        for name in sorted(part):
            _feed(state, [name])
            _feed(state, part[name])
    elif isinstance(part, np.ndarray) and part.dtype.kind in "biuf":
        kind = part.dtype.kind
        stored = part.astype("<f8") + 0.0 if kind == "f" else part.astype(f"<{kind}8" if kind != "b" else "?")
        state.update(f"{kind}{part.shape};".encode())  # + 0.0: -0 is 0
        state.update(np.ascontiguousarray(stored).data)
    else:
        values = part.tolist() if isinstance(part, np.ndarray) else part
        if isinstance(values, list) and all(type(value) is str for value in values):
            lengths = np.fromiter(map(len, values), "<i8", len(values))
            state.update(b"t%d;" % len(values))
            state.update(lengths.data)
            state.update("".join(values).encode("utf-8", "surrogatepass"))
        else:
            text = repr(values).encode("utf-8", "surrogatepass")
            state.update(b"r%d;" % len(text))
            state.update(text)
