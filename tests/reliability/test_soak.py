"""The short form of the soak; `make soak` is the long one, with figures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.reliability.soak import soak, text_of

MICROGRAPHS = int(os.environ.get("STREAMPREP_SOAK_MICROGRAPHS", "1500"))


@pytest.mark.case(30)
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_long_session_with_kills_and_clock_jumps(tmp_path: Path) -> None:
    """Case 30. What a daemon holds at the end is what it held at half-time."""
    report = soak(tmp_path, MICROGRAPHS, picks=20, kills=3)
    print(text_of(report))
    half = report.samples[len(report.samples) // 2 :]
    assert max(sample.descriptors for sample in half) <= half[0].descriptors + 8
    assert half[-1].daemon_mb - half[0].daemon_mb < 5
