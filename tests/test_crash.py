"""SIGKILL at random moments: what comes out equals what an uninterrupted run makes, pixels and rows."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from streamprep.simulate import Acquisition, simulate
from tests.conftest import Session
from tests.forked import Forked
from tests.outputs import same_results

KILLS = int(os.environ.get("STREAMPREP_KILLS", "50"))
MICROGRAPHS = 20


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The whole acquisition, processed without an interruption."""
    made = Session(tmp_path_factory.mktemp("reference") / "session")
    acquisition = Acquisition(micrographs=MICROGRAPHS, size_px=384, particles=10, box_size_px=48, seed=3)
    simulate(made.folder, acquisition)
    made.edit("[session]\n", "[session]\nsettle_seconds = 0.05\n")
    done = made.once()
    assert done.returncode == 0, done.stdout + done.stderr
    return made


def expose(source: Path, target: Path, index: int, last: int) -> None:
    """Copy one exposure as a slow writer would: in two pieces; then its coordinates; then all CTF rows so far."""
    name = f"mic_{index + 1:04d}"
    data = (source / "Micrographs" / f"{name}.mrc").read_bytes()
    with (target / "Micrographs" / f"{name}.mrc").open("wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        time.sleep(0.02)
        file.write(data[len(data) // 2 :])
    shutil.copy(source / "Coordinates" / f"{name}_autopick.star", target / "Coordinates")
    lines = (source / "micrographs_ctf.star").read_text().splitlines(keepends=True)
    later = {f"mic_{number + 1:04d}.mrc" for number in range(index + 1, last)}
    kept = [line for line in lines if not any(other in line for other in later)]
    temporary = target / ".micrographs_ctf.star.part"
    temporary.write_text("".join(kept))
    temporary.rename(target / "micrographs_ctf.star")


@pytest.mark.case(1)
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_and_restarted_equals_uninterrupted(reference: Session, tmp_path: Path) -> None:
    session = Session(tmp_path / "session")
    for name in ("Micrographs", "Coordinates"):
        (session.folder / name).mkdir(parents=True)
    shutil.copy(reference.config, session.config)
    (session.folder / "micrographs_ctf.star").write_text(
        "data_micrographs\n\nloop_\n_rlnMicrographName\n_rlnDefocusU\n_rlnDefocusV\n_rlnDefocusAngle\n"
    )
    chance = random.Random(int(os.environ.get("STREAMPREP_CRASH_SEED", "11")))
    staging = session.output / ".streamprep" / "staging"
    exposed = working = 0
    for kill in range(KILLS):
        process = Forked(("run", "--log-json"), session.folder, os.environ)
        if chance.random() < 0.15:
            time.sleep(chance.uniform(0.0, 0.3))  # anywhere in the start, recovery included
        else:
            while '"run_started"' not in process.text():
                assert process.poll() is None, "it ended by itself"
                time.sleep(0.001)
            # now give it something to do, and strike
            while exposed < MICROGRAPHS * (kill + 1) // KILLS:
                expose(reference.folder, session.folder, exposed, MICROGRAPHS)
                exposed += 1
            until = time.monotonic() + chance.uniform(0.1, 1.2)
            patient = chance.random() < 0.3
            while time.monotonic() < until and (patient or not any(staging.glob("*/*.mrcs"))):
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 0.04))  # where something is staged, its commit is near
            working += 1
        process.kill()
        process.wait()
    while exposed < MICROGRAPHS:
        expose(reference.folder, session.folder, exposed, MICROGRAPHS)
        exposed += 1
    done = session.once()
    assert done.returncode == 0, done.stdout + done.stderr

    same_results(session.output, reference.output)
    assert working > KILLS // 2


# --- at chosen moments -----------------------------------------------------------------------------------------------

STRIKE = """
import functools, multiprocessing, os, signal

def strike(module, name, number, after):
    call = getattr(module, name)
    @functools.wraps(call)
    def striking(*args, **options):
        nonlocal number
        number -= 1
        if number == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        made = call(*args, **options)
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return made
    setattr(module, name, striking)

if os.environ.get("STRIKE") and multiprocessing.parent_process() is None:
    where, name, number, when = os.environ["STRIKE"].split()
    from streamprep.ledger import Ledger
    from streamprep.sinks import _files
    strike({"files": _files, "ledger": Ledger}[where], name, int(number), when == "after")
"""
POINTS = (
    "files place 1 after",
    "files place 4 before",
    "files append 1 after",
    "ledger commit 1 before",
    "ledger commit 2 after",
    "files replace_whole 2 after",
    "ledger table_read 2 after",
)


def test_killed_at_each_step_of_a_commit_equals_uninterrupted(session: Session, tmp_path: Path) -> None:
    """By the daemon itself, between two steps, so that every run of this test strikes where it hurts."""
    (tmp_path / "strike").mkdir()
    (tmp_path / "strike" / "sitecustomize.py").write_text(STRIKE)
    path = os.pathsep.join([str(tmp_path / "strike"), os.environ.get("PYTHONPATH", "")])
    struck = Session(shutil.copytree(session.folder, tmp_path / "struck"))
    assert session.once().returncode == 0
    recovered = ""
    for point in POINTS:
        killed = struck.once(env={"PYTHONPATH": path, "STRIKE": point}, fork=False)
        recovered += killed.stdout
        assert killed.returncode in (-9, 0), f"{point}: {killed.stdout}{killed.stderr}"
        if killed.returncode == 0:  # nothing is left to strike at: begin anew
            same_results(struck.output, session.output)
            shutil.rmtree(struck.output)
            assert struck.once(env={"PYTHONPATH": path, "STRIKE": point}, fork=False).returncode == -9, point
    done = struck.once(fork=False)
    assert done.returncode == 0, done.stdout + done.stderr
    recovered += done.stdout
    assert "which no commit knows" in recovered
    assert "uncommitted bytes" in recovered
    same_results(struck.output, session.output)
