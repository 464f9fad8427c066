"""The benchmark of scale still runs, and its daemon makes what a session makes; times are of no interest here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.outputs import check_invariants, read_table

BENCH = Path(__file__).resolve().parent.parent / "bench" / "scale.py"


@pytest.mark.slow
def test_a_short_run_makes_a_whole_session_and_tells_of_it(tmp_path: Path) -> None:
    words = ("--micrographs", "40", "--rows", "5", "--keep", tmp_path, "--json", tmp_path / "scale.json")
    made = subprocess.run([sys.executable, BENCH, *words], capture_output=True, text=True, check=False, timeout=200)
    assert made.returncode == 0, made.stderr
    (found,) = json.loads((tmp_path / "scale.json").read_text())["results"]
    assert found["rows"] == 200
    assert [part["done"] for part in found["fill"]["parts"]] == [40]
    assert {"commit", "take in", "watch", "table read"} <= set(found["fill"]["parts"][0]["parts_ms"])
    assert found["start"]["files"] == 80
    assert "recover" in found["start"]["phases"]
    output = tmp_path / "40" / "streamprep_out"
    check_invariants(output)
    _, rows = read_table(output / "particles.star")
    assert len(rows) == 200
    assert rows["rlnImageName"].is_unique
    assert rows["rlnMicrographName"].nunique() == 40
    assert "| 40 micrographs |" in made.stdout
