"""Results of CTFFIND4 and CTFFIND5: the text file beside the diagnostic image, one per micrograph.

Five comment lines, then one row of numbers per micrograph::

    # Output from CTFFind version 4.1.14, run on 2023-02-02 15:13:07
    # Input file: a.mrc ; Number of micrographs: 1
    # Pixel size: 1.000 Angstroms ; acceleration voltage: 300.0 keV ; spherical aberration: 2.70 mm ; amplitude ...
    # Box size: 512 pixels ; min. res.: 30.0 Angstroms ; ...
    # Columns: #1 - micrograph number; #2 - defocus 1 [Angstroms]; #3 - defocus 2; #4 - azimuth of astigmatism; ...

The columns are: micrograph number, defocus 1 and 2 in Å (underfocus positive), azimuth of astigmatism in degrees from x
towards y, additional phase shift in **radians**, cross correlation, and the spacing in Å up to which rings were fitted,
which may be ``inf``. CTFFIND5 adds tilt axis, tilt angle and thickness; they are not read. The ``_avrot.txt`` file that
is written beside it begins alike, but holds spectra.

Source: A. Rohou and N. Grigorieff, J. Struct. Biol. 192, 216 (2015), and the program's output.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from streamprep.formats._ctf import checked_ctf
from streamprep.formats._values import digest_of, is_number, shown, text_bytes
from streamprep.model import Entry, InputError, Kind

MAX_BYTES = 1 << 20
"""A result for one micrograph has some two thousand."""
MIN_COLUMNS = 6
_COLUMN_NAMES = (
    "micrograph number",
    "defocus 1",
    "defocus 2",
    "azimuth",
    "additional phase shift",
    "cross correlation",
)
_CONSTANTS = {
    "voltage_kv": ("acceleration voltage", "keV"),
    "spherical_aberration_mm": ("spherical aberration", "mm"),
    "amplitude_contrast": ("amplitude contrast", ""),
}
_PROGRAM = re.compile(r"#\s*Output from CTFFind", re.IGNORECASE)
_COLUMNS = re.compile(r"^#\s*Columns:\s*#1 - micrograph number", re.MULTILINE)
_INPUT = re.compile(r"^#[ \t]*Input file:(.*);[ \t]*Number of micrographs:[ \t]*\d+[ \t]*$", re.MULTILINE)


def recognise(path: Path, head: bytes) -> Kind | None:  # noqa: ARG001 - by content alone
    """``ctf`` for a CTFFIND result; None for anything else, its ``_avrot.txt`` among it."""
    text = head.decode("utf-8", "replace").replace("\r\n", "\n")
    return "ctf" if _PROGRAM.match(text) and _COLUMNS.search(text) else None


def read_entries(path: Path) -> list[Entry]:
    """The CTF of the one micrograph that the file speaks of, by the name in its header.

    Raises
    ------
    InputError
        It is no CTFFIND result, a header field is missing, or it has not exactly one row of numbers.
    """
    text = text_bytes(path, MAX_BYTES).decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    if not _PROGRAM.match(text):
        raise InputError(path, "not a CTFFIND result: its first line must be '# Output from CTFFind version ...'")
    _check_columns(path, text)
    lines = text.split("\n")
    header = [line for line in lines if line.startswith("#")]
    rows = [(number, line) for number, line in enumerate(lines, start=1) if line.strip() and line[0] != "#"]
    if len(rows) != 1:
        raise InputError(
            path,
            f"it has {len(rows)} rows of numbers; exactly one is read, "
            + ("the result for a stack of micrographs is not" if rows else "and there is none yet"),
        )
    number, row = rows[0]
    defocus_u, defocus_v, azimuth, phase_shift = _numbers(path, number, row)
    ctf = checked_ctf(
        path,
        f"line {number}",
        defocus_u_angstrom=defocus_u,
        defocus_v_angstrom=defocus_v,
        defocus_angle_deg=azimuth,
        phase_shift_deg=math.degrees(phase_shift),
        **{field: _constant(path, header, *said) for field, said in _CONSTANTS.items()},
    )
    named = _INPUT.search(text)
    if named is None or not named[1].strip():
        raise InputError(path, "its header has no line '# Input file: <name> ; Number of micrographs: <number>'")
    return [Entry(named[1].strip(), digest_of(ctf), ctf)]


def _check_columns(path: Path, text: str) -> None:
    found = re.search(r"^#\s*Columns:(.*)$", text, re.MULTILINE)
    if found is None:
        raise InputError(path, "its header has no line '# Columns: ...'; an _avrot.txt file holds spectra, no CTF")
    said = re.split(r"#\d+\s*-?\s*", found[1])[1:]
    for index, name in enumerate(_COLUMN_NAMES):
        if index >= len(said) or not said[index].startswith(name):
            got = said[index].strip(" ;") if index < len(said) else "missing"
            raise InputError(path, f"its header says column {index + 1} is {shown(got)}; it must be {name!r}")
    for index, unit in ((1, "[Angstroms]"), (4, "[radians]")):
        if unit not in said[index]:
            raise InputError(
                path, f"its header says column {index + 1} is {shown(said[index].strip(' ;'))}, not in {unit}"
            )


def _constant(path: Path, header: list[str], name: str, unit: str) -> float:
    for line in header:
        for part in line.removeprefix("#").split(";"):
            said, _, value = part.partition(":")
            if said.strip() == name and value.rstrip().endswith(unit):
                value = value.strip().removesuffix(unit).rstrip()
                if not is_number(value):
                    raise InputError(path, f"{name} in its header is {shown(value)}, not a finite number")
                return float(value)
    raise InputError(path, f"its header does not say the {name}{' in ' + unit if unit else ''}")


def _numbers(path: Path, line: int, row: str) -> tuple[float, float, float, float]:
    """Defocus 1, defocus 2, azimuth and phase shift of a row."""
    words = row.split()
    if len(words) < MIN_COLUMNS:
        raise InputError(path, f"line {line} has {len(words)} columns; it must have {MIN_COLUMNS} or more")
    values = []
    for name, word in zip(_COLUMN_NAMES[1:5], words[1:5], strict=True):
        if not is_number(word):
            raise InputError(path, f"line {line}: {name} is {shown(word)}, not a finite number")
        values.append(float(word))
    return values[0], values[1], values[2], values[3]
