"""Every fuzz target takes its seeds and what once broke a reader, and lives through a short run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from streamprep import formats
from tests.fuzz.fuzz_formats import TARGETS, XMIPP, check, mrc_image

RUNS = 3000

# What broke a reader once: it raised something else, or took far more memory than the file.
BROKE: list[tuple[str, bytes]] = [
    ("xmipp", (XMIPP + "data_a\nloop_\n_xcoor\n_ycoor\n_image\n1 2 1@a@b.stk\n").encode()),
    ("star", b"data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1\n;" + b"x\n" * 5000 + b";\n"),
    ("info", b'{"boxes": [[1, 2, "\\ud800"]]}'),
]


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_taken_and_so_is_each_of_their_beginnings(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds:
        for end in sorted({*range(0, len(seed), max(1, len(seed) // 100)), len(seed)}):
            check(target, seed[:end])
        check(target, seed + b"\0")
        check(target, seed + b"x")


@pytest.mark.case(17, 18, 29)
@pytest.mark.parametrize(("name", "data"), BROKE)
def test_what_once_broke_a_reader_is_refused_or_read(name: str, data: bytes) -> None:
    check(TARGETS[name], data)


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if "gz" not in name])
def test_seeds_are_known_for_what_they_are(name: str, tmp_path: Path) -> None:
    for seed in TARGETS[name].seeds:
        path = tmp_path / TARGETS[name].name
        path.write_bytes(seed)
        assert formats.classify_path(path, seed[: formats.HEAD_BYTES]) is not None


def test_the_oracle_notices_a_reader_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.mrc, "MODES", {})
    check(TARGETS["mrc"], mrc_image())
    monkeypatch.setattr(formats.mrc, "MODES", {2: "f8"})
    monkeypatch.setattr(formats.mrc, "_read_values", lambda *_: (_ for _ in ()).throw(OverflowError))
    with pytest.raises(OverflowError):
        check(TARGETS["mrc"], mrc_image() + bytes(48))


@pytest.mark.case(17, 18, 29)
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this machine")
def test_a_short_run_of_the_fuzzer_breaks_nothing() -> None:
    command = [sys.executable, "-m", "tests.fuzz", ",".join(TARGETS), f"-runs={RUNS}", "-seed=1"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count(f"Done {RUNS} runs") == len(TARGETS)
