"""The benchmark of whole sessions still runs; what it measures is of no interest here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench" / "end_to_end.py"


@pytest.mark.slow
def test_the_quick_form_measures_sessions_and_latency(tmp_path: Path) -> None:
    sizes = ("--size", "512", "--box", "64", "--particles", "12", "--interval", "0.3")
    parts = ("--parts", "with_noise", "events", "--workers", "1")
    made = subprocess.run(
        [sys.executable, BENCH, "--quick", *sizes, *parts, "--folder", tmp_path, "--results", tmp_path / "results"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert made.returncode == 0, made.stderr
    results = json.loads((tmp_path / "results" / "end_to_end.json").read_text())
    session = results["throughput"]["with_noise"]
    assert session["micrographs"] == 3
    assert session["particles"] == 2 * 3 * 12
    assert session["stack_bytes_per_micrograph"] == 2 * (1024 + 4 * 12 * 64**2)
    assert session["processor_s_per_micrograph"] < session["whole"]["processor_s"]
    assert [len(peaks) for peaks in session["peak_memory_mib"].values()] == [1, 1]  # the daemon, the worker
    assert all(peak > 20 for peaks in session["peak_memory_mib"].values() for peak in peaks)
    assert {"extract", "remove_dust", "normalize", "phase_flip", "invert"} <= set(session["operation_ms"])
    latency = results["latency"]["events"]
    assert len(latency["all_s"]) == 2
    assert latency["median_s"] >= 1.0  # no micrograph is taken up before it has settled
    assert (tmp_path / "results" / "end_to_end.svg").is_file()
    assert "| events | " in made.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["results"]  # its files are gone
