"""Every table is recognised by its own reader alone, whatever its ending."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamprep import formats
from streamprep.formats import cryolo, cryosparc, ctffind, eman, star, topaz, xmipp
from tests.fuzz.fuzz_formats import TARGETS

OWN = {
    "star": star, "xmipp": xmipp, "box": eman, "info": eman, "cryolo": cryolo, "topaz": topaz,
    "cryosparc": cryosparc, "ctffind": ctffind,
}  # fmt: skip
SEEDS = [(name, seed) for name in OWN for seed in TARGETS[name].seeds if seed]


@pytest.mark.parametrize("ending", [*formats.TABLE_ENDINGS, ".STAR", ".dat", ""])
@pytest.mark.parametrize(("name", "seed"), SEEDS, ids=[f"{name}{number}" for number, (name, _) in enumerate(SEEDS)])
def test_a_table_is_recognised_by_its_own_reader_alone(name: str, seed: bytes, ending: str) -> None:
    path = Path(f"table{ending}")
    takers = [reader for reader in formats.TABLES if reader.recognise(path, seed[: formats.HEAD_BYTES]) is not None]
    # the readers of STAR and EMAN go by their endings as well, and are asked later
    by_ending = [{".star": star, ".box": eman}.get(ending.lower())]
    if name == "box" and ending != ".box":
        assert takers in ([], by_ending)  # numbers alone could be anything
    else:
        assert takers[0] is OWN[name]
        assert takers[1:] in ([], by_ending)


@pytest.mark.parametrize("ending", formats.TABLE_ENDINGS)
@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
@pytest.mark.parametrize("name", [name for name in OWN if name != "cryosparc"])
def test_line_ends_do_not_hide_a_table(name: str, line_end: bytes, ending: str) -> None:
    seed = TARGETS[name].seeds[0].replace(b"\n", line_end)
    if name != "box" or ending == ".box":
        assert next(reader for reader in formats.TABLES if reader.recognise(Path("t" + ending), seed)) is OWN[name]
