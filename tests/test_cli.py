"""The verbs, as far as they are not seen at work in whole sessions."""

from __future__ import annotations

import errno
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from typer.testing import CliRunner

from streamprep import __version__, templates
from streamprep.cli import app, main
from streamprep.model import ConfigError
from streamprep.plugin_manager import load_plugins
from tests.conftest import ROOT, Session

VERBS = (
    "run",
    "once",
    "init",
    "check",
    "plan",
    "ops",
    "plugins",
    "status",
    "retry",
    "report",
    "apply",
    "simulate",
    "demo",
)


def call(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    text = call(verb, "--help")
    assert "Example: streamprep" in " ".join(text.split())


def test_units_in_square_brackets_are_shown() -> None:
    text = " ".join(call("simulate", "--help").split())
    assert "Side of a micrograph [px]." in text
    assert "Box size [px]." in text
    assert "Pixel size [Å];" in " ".join(call("apply", "--help").split())


def test_version() -> None:
    assert call("--version").strip() == f"streamprep {__version__}"


def test_init_writes_a_configuration_that_check_and_plan_accept(tmp_path: Path) -> None:
    (tmp_path / "Micrographs").mkdir()
    (tmp_path / "Coordinates").mkdir()
    (tmp_path / "micrographs_ctf.star").write_text("data_\n")
    call("init", tmp_path)
    path = tmp_path / "streamprep.toml"
    raw = tomllib.loads(path.read_text())
    assert raw["ctf"] == {"table": "micrographs_ctf.star"}
    assert set(raw["particles"]) == {"normalize", "invert"}
    told = call("check", path)
    assert "valid, plan" in told
    assert "GiB free" in told
    assert "each micrograph waits for: coordinates, ctf" in call("plan", path)
    with pytest.raises(ConfigError, match="--force overwrites it"):
        CliRunner().invoke(app, ["init", str(tmp_path)], catch_exceptions=False)
    call("init", tmp_path, "--force", "-o", "particles.invert")
    assert set(tomllib.loads(path.read_text())["particles"]) == {"invert"}
    assert "coordinates" not in tomllib.loads(path.read_text())


def test_init_every_commented_default_is_the_default(tmp_path: Path) -> None:
    """Uncommenting every value that has one leaves the plan as it is."""
    call("init", tmp_path)
    path = tmp_path / "streamprep.toml"
    plan = call("plan", path).splitlines()[0]
    lines = path.read_text().splitlines()
    inactive = False
    for index, line in enumerate(lines):
        inactive = line.startswith("# [") or (inactive and not line.startswith("["))
        bare = line.removeprefix("# ")
        if line.startswith("# ") and not inactive and "=" in bare and not bare.endswith("="):
            try:
                tomllib.loads(bare)
            except tomllib.TOMLDecodeError:
                continue
            lines[index] = bare
    path.write_text("\n".join(lines))
    assert call("plan", path).splitlines()[0] == plan


def test_init_refuses_an_operation_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"particles.invrt: not installed; did you mean particles.invert\?"):
        CliRunner().invoke(app, ["init", str(tmp_path), "-o", "particles.invrt"], catch_exceptions=False)


def test_init_for_maps_alone_watches_maps_and_extracts_nothing(tmp_path: Path) -> None:
    call("init", tmp_path, "-o", "maps.invert")
    written = tomllib.loads((tmp_path / "streamprep.toml").read_text())
    assert written["session"]["watch"] == ["Maps"]
    assert written["maps"] == {"invert": {}}
    assert "extract" not in written
    assert "particles" not in written
    call("init", tmp_path, "--force", "-o", "maps.symmetrize", "-o", "particles.invert")
    written = tomllib.loads((tmp_path / "streamprep.toml").read_text())
    assert written["session"]["watch"] == ["Micrographs", "Coordinates", "Maps"]
    assert written["maps"]["symmetrize"]["group"] == ""  # said to be needed; the check names what is allowed


def test_the_page_of_operations_is_what_the_program_writes(tmp_path: Path) -> None:
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    plugins = load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""}, sinks=False)
    assert templates.operations_page(plugins) == page, (
        "make it anew with: streamprep ops --markdown > docs/operations.md"
    )
    for made in plugins.operations:
        assert f"\n## {made.info.name}\n" in page
        for parameter in made.info.params.model_fields:
            assert f"\n| `{parameter}` |" in page


def test_the_configuration_page_is_what_init_writes(tmp_path: Path) -> None:
    call("init", tmp_path)
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert (tmp_path / "streamprep.toml").read_text().strip() in page, "make it anew with: streamprep init"


def test_ops_lists_and_explains() -> None:
    listed = call("ops")
    assert listed.index("pick_noise") < listed.index("extract") < listed.index("normalize")
    explained = call("ops", "normalize")
    for words in ("method (old | new | ramp", "background_radius_px", "least-squares plane", "order 30"):
        assert words in explained
    with pytest.raises(ConfigError, match="did you mean normalize"):
        CliRunner().invoke(app, ["ops", "normalise"], catch_exceptions=False)


def test_plugins_as_json() -> None:
    listed = json.loads(call("plugins", "--json"))
    (normalize,) = [plugin for plugin in listed if plugin["name"] == "normalize"]
    assert normalize["hooks"] == ["process_particles"]
    assert normalize["error"] is None


def test_simulate_makes_a_session(tmp_path: Path) -> None:
    told = call("simulate", tmp_path / "s", "--micrographs", 2, "--size", 256, "--particles", 3, "--box", 32)
    assert "exposure 2 of 2" in told
    with mrcfile.open(tmp_path / "s" / "Micrographs" / "mic_0002.mrc") as file:
        assert file.data.shape == (256, 256)
    assert "normalize" in call("plan", tmp_path / "s" / "streamprep.toml")


def test_a_wrong_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--device tpu: allowed are auto, cpu and gpu"):
        CliRunner().invoke(app, ["apply", "invert", "a", "b", "--device", "tpu"], catch_exceptions=False)


def test_status_before_the_first_run_says_so(session: Session) -> None:
    told = session.call("status")
    assert told.returncode == 2
    assert "nothing was processed with this configuration so far" in told.stderr


def test_status_and_retry_of_a_finished_session(session: Session) -> None:
    (session.folder / "Micrographs" / "bad.mrc").write_bytes(np.zeros(2000, np.uint8).tobytes())
    session.edit("[session]\n", "[session]\nincomplete_seconds = 0.2\n")
    assert session.once("--quiet").returncode == 1
    told = json.loads(session.call("status", "--json").stdout)
    assert told["jobs"] == {"done": 3}
    (failure,) = told["failures"]
    assert failure["file"] == "Micrographs/bad.mrc"
    assert "1 failed items will be taken up again" in session.call("retry").stdout
    again = session.once()
    assert again.returncode == 1
    assert again.stdout.count("failed   Micrographs/bad.mrc") == 1


def test_retry_reaches_the_running_daemon(session: Session, eventually, stopped) -> None:  # type: ignore[no-untyped-def]
    (session.folder / "Micrographs" / "bad.mrc").write_bytes(bytes(2000))
    session.edit("[session]\n", "[session]\nincomplete_seconds = 0.2\n")
    process = session.start()
    stopped.append(process)
    status = session.output / ".streamprep" / "status.json"
    eventually(lambda: status.exists() and "bad.mrc" in status.read_text())
    assert "running daemon was asked" in session.call("retry").stdout
    eventually(lambda: not list((session.output / ".streamprep").glob("request-*")))
    process.terminate()
    output, _ = process.communicate(timeout=30)
    said = [json.loads(line) for line in output.splitlines()]
    failed = [event for event in said if event.get("state") == "failed"]
    assert len(failed) >= 1
    assert any(event["event"] == "warning" and event["message"].startswith("retry: 1 ") for event in said)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The message of a command that ends with exit code 2."""

    def call_main(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["streamprep", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr().err
        assert caught.value.code == 2
        assert said.startswith("error: ")
        assert "Traceback" not in said
        return said

    return call_main


def test_init_where_a_file_stands_says_so(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "/file: File exists; a file stands where a folder is needed" in fails("init", tmp_path / "file")


def test_simulate_where_nothing_can_be_made_says_so(fails: Callable[..., str]) -> None:
    assert "/proc/nothing: No such file or directory; " in fails("simulate", "/proc/nothing")


def test_a_file_that_may_not_be_read_is_named(
    fails: Callable[..., str], empty_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    told = fails("plan", empty_session.config)
    assert told == (
        f"error: {empty_session.config}: Permission denied; give a place that this user may read and write, or run it "
        "as the user who owns it\n"
    )


@pytest.mark.parametrize("verb", ["check", "once", "status"])
def test_an_unknown_user_in_a_path_is_named(fails: Callable[..., str], empty_session: Session, verb: str) -> None:
    empty_session.edit("[session]\n", '[session]\noutput = "~nobody_of_that_name/out"\n')
    told = fails(verb, empty_session.config)
    assert f"{empty_session.config}: '~nobody_of_that_name/out'" in told
    assert "no home folder is known" in told


@pytest.mark.parametrize("verb", ["check", "once"])
@pytest.mark.parametrize("below", ["", "/below"])
def test_an_output_that_is_a_file_is_refused(
    fails: Callable[..., str], empty_session: Session, verb: str, below: str
) -> None:
    (empty_session.folder / "file").write_text("")
    empty_session.edit("[session]\n", f'[session]\noutput = "file{below}"\n')
    told = fails(verb, empty_session.config)
    assert str(empty_session.folder / "file") in told
    assert "a file" in told


@pytest.mark.parametrize("verb", ["check", "once"])
def test_an_output_that_cannot_be_written_is_refused(
    fails: Callable[..., str], empty_session: Session, verb: str
) -> None:
    empty_session.edit("[session]\n", '[session]\noutput = "/proc/out"\n')
    assert "/proc" in fails(verb, empty_session.config)


def test_demo_in_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds something that is no demonstration"):
        CliRunner().invoke(app, ["demo", str(tmp_path)], catch_exceptions=False)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.slow
def test_demo_makes_a_summary_and_a_report(tmp_path: Path) -> None:
    made = Session(tmp_path)
    for _ in range(2):  # a second time over the first
        done = made.call("demo", "demo", "--micrographs", 2, "--interval", 0.1, env={"STREAMPREP_BLOCK_PLUGINS": ""})
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 micrographs done, 0 waiting, 0 failed" in done.stdout
        report = tmp_path / "demo" / "streamprep_out" / "report.html"
        assert f"look at: {report}" in done.stdout
        assert len(list(report.parent.glob("gallery/Micrographs/*/micrograph.jpg"))) == 2
