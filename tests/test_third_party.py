"""Operations of a separate distribution, built and installed by the test, in real sessions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Session
from tests.outputs import check_invariants, images_of, read_table
from tests.procfs import children_of

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "streamprep-shine"
version = "2.5"
[project.entry-points.streamprep]
shine = "streamprep_shine"
broken = "streamprep_shine.broken"
[tool.hatch.build.targets.wheel]
packages = ["streamprep_shine"]
"""

MODULE = '''
"""A third party's operations."""
import multiprocessing, os, time
import numpy as np
from pydantic import Field
from streamprep import Params, Reject, hookimpl, operation

@hookimpl
def make_sinks(config):
    """Fail in the workers, not in the daemon, when asked to."""
    if multiprocessing.current_process().name != "MainProcess":
        if os.environ.get("SHINE_SETUP") == "raise":
            raise RuntimeError("no licence on this machine")
        if os.environ.get("SHINE_SETUP") == "exit":
            os._exit(4)
        if os.environ.get("SHINE_SETUP") == "hang":
            time.sleep(3600)
    return []

class Shine(Params):
    """Add light."""
    amount: float = Field(100.0, ge=0, description="Grey values to add.")

@operation("process_particles", order=45, params=Shine)
def shine(particles, params):
    """Add a constant to every image."""
    return particles.with_pixels(particles.pixels + params.amount)

class Trouble(Params):
    """Make trouble on one micrograph."""
    how: str = Field("raise", description="What to do.")
    where: str = Field("mic_0002", description="On which micrograph.")

@operation("process_micrograph", order=5, params=Trouble)
def trouble(micrograph, params, ctx):
    """Misbehave, on purpose."""
    if params.where not in micrograph.name:
        return None
    if params.how == "raise":
        raise RuntimeError("the lamp is broken")
    if params.how == "reject":
        raise Reject("too dark")
    if params.how == "hang":
        time.sleep(3600)
    if params.how == "hang once" and not (flag := ctx.item.path.parent.parent / "flag").exists():
        flag.touch()
        time.sleep(3600)
    if params.how == "wait":
        folder = ctx.item.path.parent.parent
        (folder / "flag").touch()
        while not (folder / "go").exists():
            time.sleep(0.02)
    if params.how == "exit":
        os._exit(3)
    if params.how == "signal":
        os.kill(os.getpid(), 9)
    if params.how == "wrong":
        return 42
    if params.how == "once" and not (flag := ctx.item.path.parent.parent / "flag").exists():
        flag.touch()
        raise RuntimeError("only this time")
    return None

@operation("process_particles", order=55, params=Trouble)
def spoil(particles, params, ctx):
    """Return something that must not be published."""
    if params.where not in ctx.item.name:
        return None
    if params.how == "nan":
        return particles.with_pixels(particles.pixels * np.float32("nan"))
    return particles.with_pixels(particles.pixels[:-1])
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which the distribution is installed."""
    folder = tmp_path_factory.mktemp("shine")
    (folder / "source" / "streamprep_shine").mkdir(parents=True)
    (folder / "source" / "pyproject.toml").write_text(PROJECT)
    (folder / "source" / "streamprep_shine" / "__init__.py").write_text(MODULE)
    (folder / "source" / "streamprep_shine" / "broken.py").write_text("import a_module_that_is_not_there\n")
    target = folder / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--target", str(target), str(folder / "source")],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return {"PYTHONPATH": str(target)}


def test_it_runs_between_two_built_in_operations(session: Session, installed: dict[str, str]) -> None:
    assert session.once(env=installed, fork=False).returncode == 0
    plain = images_of(session.output, "particles.star")
    session.append("[particles.shine]\n")
    done = session.once("--new-set", env=installed, fork=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shone = images_of(session.folder / "streamprep_out_2", "particles.star")
    # after normalize (30), before invert (60): −(v + 100) = −v − 100. After invert it would be + 100.
    for name, image in plain.items():
        np.testing.assert_allclose(shone[name], image - 100, atol=1e-4)

    told = session.call("plan", env=installed, fork=False).stdout
    order = [word for word in told.split() if word in ("normalize", "shine", "invert")]
    assert order == ["normalize", "shine", "invert"]
    assert "[streamprep-shine 2.5]" in told
    session.append("order = 70\n")
    assert session.once("--new-set", env=installed, fork=False).returncode == 0
    last = images_of(session.folder / "streamprep_out_3", "particles.star")
    for name, image in plain.items():
        np.testing.assert_allclose(last[name], image + 100, atol=1e-4)


def test_installing_changes_nothing_until_it_is_named(session: Session, installed: dict[str, str]) -> None:
    without = session.call("plan").stdout
    assert session.call("plan", env=installed).stdout == without


def test_a_broken_plugin_is_a_warning_until_it_is_named(session: Session, installed: dict[str, str]) -> None:
    listed = session.call("plugins", env=installed)
    assert listed.returncode == 0
    assert "BROKEN" in listed.stdout
    assert "No module named 'a_module_that_is_not_there'" in listed.stdout
    checked = session.call("check", env=installed)
    assert checked.returncode == 0
    assert "warning: plugin broken of streamprep-shine could not be loaded" in checked.stderr
    session.append("[particles.broken_operation]\n")
    refused = session.once(env=installed)
    assert refused.returncode == 2
    assert "Traceback" in refused.stderr
    assert "a_module_that_is_not_there" in refused.stderr


def test_which_plugins_are_loaded_can_be_chosen(session: Session, installed: dict[str, str]) -> None:
    def names(**env: str) -> str:
        return session.call("plugins", env={**installed, **env}).stdout

    assert "shine" in names()
    assert "broken" not in names(STREAMPREP_LOAD_PLUGINS="shine")
    chosen = names(STREAMPREP_LOAD_PLUGINS="")
    assert "shine" not in chosen
    assert "normalize" in chosen
    session.append('[particles.shine]\n[plugins]\nblock = ["shine"]\n')
    refused = session.once(env=installed)
    assert refused.returncode == 2
    assert "[particles.shine]: unknown operation" in refused.stderr


@pytest.mark.case(28)
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raise", "trouble: RuntimeError: the lamp is broken"),
        ("exit", "trouble: its worker process died (exit code 3)"),
        ("signal", "trouble: its worker process died (signal SIGKILL)"),
        ("hang", "trouble: took longer than job_timeout_seconds = 2"),
        ("wrong", "trouble: returned int, not Micrograph or None"),
    ],
)
def test_a_plugin_that_misbehaves_costs_its_own_job_only(
    session: Session, installed: dict[str, str], how: str, words: str
) -> None:
    session.append(f'[micrographs.trouble]\nhow = "{how}"\n')
    session.edit("[session]\n", "[session]\njob_timeout_seconds = 2\nmax_attempts = 2\n")
    done = session.once(env=installed)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"failed   Micrographs/mic_0002: {words}" in done.stdout
    _, rows = read_table(session.output / "particles.star")
    assert set(rows["rlnMicrographName"]) == {"Micrographs/mic_0001.mrc", "Micrographs/mic_0003.mrc"}
    check_invariants(session.output)
    told = session.call("status", "--tracebacks", env=installed).stdout
    assert "(2 attempts)" in told
    assert ("the lamp is broken" in told and "Traceback" in told) or how != "raise"


def test_a_job_that_nobody_wants_any_more_does_not_keep_its_worker(
    session: Session, installed: dict[str, str], eventually: Callable[[Callable[[], bool], float], None]
) -> None:
    """Its micrograph was rewritten while the operation hung on it; long before its time is over the new one is done."""
    session.append('[micrographs.trouble]\nhow = "hang once"\n')
    daemon = session.start(env=installed)
    try:
        eventually((session.folder / "flag").exists, 60.0)
        micrograph = session.folder / "Micrographs/mic_0002.mrc"
        os.utime(micrograph, ns=(1, 1))

        def is_done() -> bool:
            path = session.output / "particles.star"
            return path.exists() and "mic_0002" in path.read_text()

        eventually(is_done, 60.0)
    finally:
        daemon.terminate()
        daemon.communicate(timeout=60)
    check_invariants(session.output)


@pytest.mark.case(28)
@pytest.mark.case(4)
def test_a_second_signal_does_not_wait_for_a_job_that_hangs(
    session: Session, installed: dict[str, str], eventually: Callable[[Callable[[], bool], float], None]
) -> None:
    session.append('[micrographs.trouble]\nhow = "hang once"\n')
    daemon = session.start(env=installed)
    try:
        eventually((session.folder / "flag").exists, 60.0)
        daemon.terminate()
        status = session.output / ".streamprep/status.json"
        eventually(lambda: '"draining"' in status.read_text(), 60.0)
        assert daemon.poll() is None
        daemon.send_signal(signal.SIGINT)
        assert daemon.wait(timeout=30) == 128 + signal.SIGINT
    finally:
        daemon.kill()
        daemon.communicate(timeout=60)
    assert session.once(env=installed).returncode == 0
    check_invariants(session.output)


@pytest.mark.case(4)
def test_a_signal_to_all_processes_told_twice_drains_and_costs_no_job(
    session: Session, installed: dict[str, str], eventually: Callable[[Callable[[], bool], float], None]
) -> None:
    """As SLURM's scancel does it: to each process of the job, and the job's script hands it on."""
    session.append('[micrographs.trouble]\nhow = "wait"\n')
    daemon = session.start(env=installed, fork=False)
    try:
        eventually((session.folder / "flag").exists, 60.0)
        for pid in (daemon.pid, *children_of(daemon.pid), daemon.pid):
            os.kill(pid, signal.SIGTERM)
        status = session.output / ".streamprep/status.json"
        eventually(lambda: '"draining"' in status.read_text(), 60.0)
        (session.folder / "go").touch()
        assert daemon.wait(timeout=60) == 0
    finally:
        daemon.kill()
        daemon.communicate(timeout=60)
    assert "mic_0002" in (session.output / "particles.star").read_text()
    assert "attempt" not in session.call("status", env=installed).stdout
    check_invariants(session.output)


@pytest.mark.parametrize(
    ("how", "setup", "words"),
    [
        ("raise", "", "trouble failed on 2 items in a row, the last with: trouble: RuntimeError: the lamp is broken"),
        ("signal", "", "trouble failed on 2 items in a row, the last with: trouble: its worker process died"),
        ("hang", "", "trouble failed on 2 items in a row, the last with: trouble: took longer than"),
        (
            "",
            "raise",
            "a worker process failed on 2 items in a row, the last with: a worker process cannot be set up: ",
        ),
        ("", "hang", "worker processes die, or hang, before they take up work"),
        ("", "exit", "worker processes die, or hang, before they take up work"),
    ],
)
def test_what_fails_on_every_item_stops_the_session_and_names_itself(
    session: Session, installed: dict[str, str], how: str, setup: str, words: str
) -> None:
    if how:
        session.append(f'[micrographs.trouble]\nhow = "{how}"\nwhere = "mic"\n')
    session.edit("[session]\n", "[session]\njob_timeout_seconds = 2\nmax_attempts = 3\nstop_after_failures = 2\n")
    if setup == "hang":
        session.edit("[session]\n", "[session]\nstart_timeout_seconds = 3\n")
    done = session.once(env={**installed, "SHINE_SETUP": setup})
    assert done.returncode == 1, done.stdout + done.stderr
    assert words in done.stdout, done.stdout
    assert ("no licence on this machine" in done.stdout) == (setup == "raise")
    if setup in ("exit", "hang"):
        assert "attempts)" not in session.call("status", env=installed).stdout, "what no worker had lost no attempt"
    if setup:
        assert session.call("retry", env=installed).returncode == 0
        patient = ("--set", "session.start_timeout_seconds=120", "--set", "session.job_timeout_seconds=60")
        assert session.once(*patient, env=installed).returncode == 0, "corrected, it goes on"
        check_invariants(session.output)


@pytest.mark.case(28)
@pytest.mark.parametrize(
    ("how", "words"), [("nan", "images hold values that are not finite"), ("short", "returned pixels of shape")]
)
def test_spoilt_results_are_not_published(session: Session, installed: dict[str, str], how: str, words: str) -> None:
    session.append(f'[particles.spoil]\nhow = "{how}"\n')
    session.edit("[session]\n", "[session]\nmax_attempts = 1\n")
    done = session.once(env=installed)
    assert done.returncode == 1
    assert words in done.stdout
    assert len(set(read_table(session.output / "particles.star")[1]["rlnMicrographName"])) == 2
    check_invariants(session.output)


def test_a_rejected_item_is_counted_apart(session: Session, installed: dict[str, str]) -> None:
    session.append('[micrographs.trouble]\nhow = "reject"\n')
    done = session.once(env=installed)
    assert done.returncode == 0
    assert "rejected Micrographs/mic_0002: too dark" in done.stdout
    assert "2 micrographs done, 0 waiting, 0 failed, 1 rejected" in done.stdout


def test_an_attempt_that_failed_is_repeated(session: Session, installed: dict[str, str]) -> None:
    session.append('[micrographs.trouble]\nhow = "once"\n')
    done = session.once(env=installed)
    assert done.returncode == 0, done.stdout
    assert "3 micrographs done, 0 waiting, 0 failed" in done.stdout
    check_invariants(session.output)


def test_retry_takes_failed_items_up_again(session: Session, installed: dict[str, str]) -> None:
    session.append('[micrographs.trouble]\nhow = "once"\n')
    session.edit("[session]\n", "[session]\nmax_attempts = 1\n")
    assert session.once(env=installed).returncode == 1
    told = session.call("retry", "--item", "mic_0002", env=installed)
    assert "1 failed item will be taken up again" in told.stdout
    assert session.once(env=installed).returncode == 0
    assert len(set(read_table(session.output / "particles.star")[1]["rlnMicrographName"])) == 3
    check_invariants(session.output)


@pytest.mark.case(28)
def test_a_systematic_fault_stops_the_intake(session: Session, installed: dict[str, str]) -> None:
    session.append('[micrographs.trouble]\nwhere = "mic"\n')
    session.edit("[session]\n", "[session]\nstop_after_failures = 2\n")
    done = session.once(env=installed)
    assert done.returncode == 1
    assert "trouble failed on 2 items in a row" in done.stdout
    assert "0 micrographs done, 0 waiting, 0 failed" in done.stdout, "no item was used up by the fault"
    session.edit('where = "mic"', 'where = "none"')
    assert session.once("--new-set", env=installed).returncode == 0


def test_two_distributions_with_one_operation_name(session: Session, installed: dict[str, str], tmp_path: Path) -> None:
    site = tmp_path / "other"
    (site / "rival-1.0.dist-info").mkdir(parents=True)
    (site / "rival-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (site / "rival-1.0.dist-info" / "entry_points.txt").write_text("[streamprep]\nrival = rival\n")
    (site / "rival.py").write_text(MODULE)
    env = {"PYTHONPATH": f"{installed['PYTHONPATH']}:{site}"}
    assert session.call("plan", env=env).returncode == 0, "nobody asked for it"
    session.append("[particles.shine]\n")
    refused = session.call("plan", env=env)
    assert refused.returncode == 2
    assert "rival" in refused.stderr
    assert "streamprep-shine" in refused.stderr
