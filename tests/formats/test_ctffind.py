"""CTFFIND results: radians become degrees, constants come from the header, spectra and stacks are refused."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep.formats import ctffind
from streamprep.model import Ctf, InputError

HEADER = """\
# Output from CTFFind version 4.1.14, run on 2023-02-02 15:13:07
# Input file: MotionCorr/a b.mrc ; Number of micrographs: 1
# Pixel size: 1.000 Angstroms ; acceleration voltage: 200.0 keV ; spherical aberration: 2.26 mm ; \
amplitude contrast: 0.07
# Box size: 512 pixels ; min. res.: 30.0 Angstroms ; max. res.: 5.0 Angstroms ; min. def.: 5000.0 um; \
max. def. 50000.0 um
# Columns: #1 - micrograph number; #2 - defocus 1 [Angstroms]; #3 - defocus 2; #4 - azimuth of astigmatism; #5 - \
additional phase shift [radians]; #6 - cross correlation; #7 - spacing (in Angstroms) up to which CTF rings were fit \
successfully
"""
VERSION_5 = (
    HEADER.replace("4.1.14", "5.0.2").rstrip("\n")
    + "; #8 - Estimated tilt axis angle; #9 - Estimated tilt angle ; #10 Estimated sample thickness (in Angstroms)\n"
)
ROW = "1.000000 10295.926758 10012.275391 -38.856349 1.570796 0.030650 5.279412\n"
AVROT = """\
# Output from CTFFind version 4.1.14, run on 2023-02-02 15:13:07
# Input file: a.mrc ; Number of micrographs: 1
# Pixel size: 1.000 Angstroms ; acceleration voltage: 200.0 keV ; spherical aberration: 2.26 mm ; \
amplitude contrast: 0.07
# Box size: 512 pixels ; min. res.: 30.0 Angstroms ; max. res.: 5.0 Angstroms ; min. def.: 5000.0 um; \
max. def. 50000.0 um
# 6 lines per micrograph: #1 - spatial frequency (1/Angstroms); #2 - 1D rotational average of spectrum (assuming no \
astigmatism); #3 - 1D rotational average of spectrum; #4 - CTF fit; #5 - cross-correlation; #6 - 2sigma
0.0 0.1 0.2 0.3 0.4 0.5 0.6
"""


def written(folder: Path, text: str, name: str = "a_ctf.txt") -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


@pytest.mark.parametrize(
    "text",
    [
        HEADER + ROW,
        HEADER + ROW.rstrip("\n"),
        (HEADER + ROW).replace("\n", "\r\n"),
        HEADER + ROW.replace("5.279412", "inf"),
        VERSION_5 + ROW.rstrip("\n") + " 221.912292 12.251187 1619.773438\n",
    ],
)
def test_one_micrograph_by_the_name_in_the_header(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    (entry,) = ctffind.read_entries(path)
    assert entry.micrograph == "MotionCorr/a b.mrc"
    assert isinstance(entry.data, Ctf)
    assert entry.data.phase_shift_deg == pytest.approx(90, abs=1e-4)
    assert entry.data == Ctf(10295.926758, 10012.275391, -38.856349, entry.data.phase_shift_deg, 200.0, 2.26, 0.07)
    assert ctffind.recognise(path, path.read_bytes()[:4096]) == "ctf"


defocus = st.floats(-1e6, 1e6)


@given(defocus, defocus, st.floats(-180, 180), st.floats(0, math.pi))
def test_every_row_is_read_as_written(u: float, v: float, angle: float, phase: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), f"{HEADER}1.0 {u!r} {v!r} {angle!r} {phase!r} 0.5 4.0\n")
        (entry,) = ctffind.read_entries(path)
    assert entry.data == Ctf(u, v, angle, math.degrees(phase), 200.0, 2.26, 0.07)


def test_the_digest_is_that_of_the_values_alone(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        return ctffind.read_entries(written(tmp_path, text))[0].digest

    again = digest((HEADER + ROW).replace("15:13:07", "16:00:00").replace("0.030650", "0.040000"))
    assert digest(HEADER + ROW) == again
    assert digest(HEADER + ROW.replace("10295.9", "10295.8")) != again
    assert digest((HEADER + ROW).replace("200.0 keV", "300.0 keV")) != again


@pytest.mark.parametrize(
    "head", [b"", AVROT.encode(), b"# Output from CTFFind", b"\x93NUMPY\xff\xfe", ROW.encode(), HEADER.encode()[9:]]
)
def test_other_files_are_not_taken(head: bytes) -> None:
    assert ctffind.recognise(Path("a_avrot.txt"), head) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a CTFFIND result"),
        (AVROT, "_avrot.txt file holds spectra"),
        (HEADER, "0 rows of numbers"),
        (HEADER + ROW + ROW.replace("1.0", "2.0", 1), "2 rows of numbers.*stack of micrographs"),
        (HEADER + "1.000000 10295.926758 10012.275391 -38.856349 1.570796\n", "line 6 has 5 columns.* 6 or more"),
        (HEADER + ROW.replace("10012.275391", "1001x"), "line 6: defocus 2 is '1001x', not a finite number"),
        (HEADER + ROW.replace("10295.926758", "nan"), "line 6: defocus 1 is 'nan', not a finite number"),
        (HEADER + ROW.replace("1.570796", "inf"), "additional phase shift is 'inf'"),
        (HEADER + ROW.replace("10295.926758", "1e9"), "defocus_u_angstrom is 1e[+]09; it must be from"),
        (HEADER.replace("200.0 keV", "0.0 keV") + ROW, "voltage_kv is 0; it must be from 1 to 3000"),
        (HEADER.replace("200.0 keV", "x keV") + ROW, "acceleration voltage in its header is 'x'"),
        (HEADER.replace("2.26 mm", "nan mm") + ROW, "spherical aberration in its header is 'nan', not a finite number"),
        (HEADER.replace("amplitude contrast: 0.07", "") + ROW, "does not say the amplitude contrast"),
        (HEADER.replace("amplitude contrast: 0.07", "amplitude contrast: 7") + ROW, "from 0 to 1"),
        (HEADER.replace("[radians]", "[degrees]") + ROW, r"column 5 .*degrees.*not in \[radians\]"),
        (HEADER.replace("#3 - defocus 2", "#3 - astigmatism") + ROW, "column 3 is 'astigmatism'"),
        (HEADER.replace("# Input file", "# File") + ROW, "no line '# Input file"),
    ],
)
def test_broken_files_are_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=said) as caught:
        ctffind.read_entries(path)
    assert str(path) in str(caught.value)


@given(st.binary(max_size=300), st.integers(0, 700))
def test_no_bytes_make_it_fail_otherwise(junk: bytes, at: int) -> None:
    whole = (HEADER + ROW).encode()
    broken = whole[:at] + junk + whole[at + len(junk) :]
    ctffind.recognise(Path("a.txt"), broken[:4096])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_bytes(broken)
        try:
            entries = ctffind.read_entries(path)
        except InputError:
            return
    assert len(entries) == 1
