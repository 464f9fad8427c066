"""Tests of the operations, and what several of them need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from streamprep.formats import mrc


def golden_case(folder: Path, expected: str) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Parameters, input and the old programs' output of one golden case, named by its output file."""
    cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    (case,) = (case for case in cases if case["expected"] == expected)
    source = mrc.read(folder / "inputs" / case["input"]).pixels
    return case["params"], source, mrc.read(folder / "expected" / expected).pixels


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """‖ours − theirs‖ / ‖theirs‖ in float64."""
    theirs = theirs.astype(np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
