"""The verbs, as far as they are not seen at work in whole sessions."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from streamprep import __version__, completion
from streamprep.cli import PREPARING, SESSIONS, TRYING, WRITING, app, main
from streamprep.model import ConfigError
from tests.conftest import ROOT, Session

GROUP = get_command(app)
assert isinstance(GROUP, TyperGroup)
VERBS = sorted(GROUP.commands)


def call(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def known() -> completion.Words:
    return completion._find()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_that_is_understood(verb: str, known: completion.Words) -> None:
    text = " ".join(call(verb, "--help").split())
    assert "Example: streamprep" in text
    about = " ".join((GROUP.commands[verb].help or "").split())
    examples = re.findall(r"\[bold\]streamprep (.*?)\[/bold\]", about)
    assert examples
    for example in examples:
        name, *arguments = shlex.split(example.partition(" | ")[0])
        GROUP.commands[name].make_context(name, arguments)  # raises where it is not understood
        for number, argument in enumerate(arguments):
            if argument == "--set":
                key = arguments[number + 1].partition("=")[0] + "="
                offered = known["parameters" if name == "apply" else "settings"]
                assert any(word.startswith(key) for word in offered), f"{key} is not known"


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)])
def test_flags_stand_in_the_help_without_a_type(verb: list[str]) -> None:
    assert not re.search("bool", call(*verb, "--help"), re.IGNORECASE)


def test_every_option_is_explained() -> None:
    for name, command in GROUP.commands.items():
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_verbs_stand_under_headings() -> None:
    text = call("--help")
    for heading in (SESSIONS, PREPARING, TRYING, WRITING):
        assert f"─ {heading} ─" in text
    assert "Exit codes: 0" in text


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What bash would offer for the last word of a line; the cache is empty at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def ask(line: str) -> list[str]:
        answer = CliRunner().invoke(
            app,
            prog_name="streamprep",
            env={
                "_STREAMPREP_COMPLETE": "complete_bash",
                "COMP_WORDS": line.replace(" ", "\n"),
                "COMP_CWORD": str(line.count(" ")),
            },
        )
        return answer.output.split()

    return ask


def test_the_shell_completes_verbs_operations_and_settings(shell: Callable[..., list[str]]) -> None:
    assert set(shell("streamprep ")) >= {*VERBS}
    assert shell("streamprep ops normalize_") == ["normalize_background"]
    assert shell("streamprep apply normalize,inv") == ["normalize,invert"]
    assert set(shell("streamprep init -o maps.s")) == {"maps.segment", "maps.symmetrize"}
    methods = {f"particles.normalize.method={method}" for method in ("old", "new", "ramp")}
    assert set(shell("streamprep run --set particles.normalize.m")) == methods
    assert shell("streamprep check --set optics.voltage") == ["optics.voltage_kv=300.0"]
    assert set(shell("streamprep once --set notify.warn")) == {"notify.warnings=true", "notify.warnings=false"}
    assert shell("streamprep plan --set extract.box_") == ["extract.box_size_px="]
    assert set(shell("streamprep apply a b c --set threshold.select=ab")) == {
        "threshold.select=above", "threshold.select=abs_below",
    }  # fmt: skip


def test_what_the_shell_offers_is_kept_until_something_changes(
    shell: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def find() -> completion.Words:
        found.append(1)
        return {"operations": ["invert"], "lanes": [], "settings": [], "parameters": []}

    monkeypatch.setattr(completion, "_find", find)
    kept = tmp_path / "cache" / "streamprep" / "completion.json"
    for _ in range(3):
        assert shell("streamprep ops inv") == ["invert"]
    assert (len(found), kept.exists()) == (1, True)
    monkeypatch.setattr(completion, "__version__", "another")
    shell("streamprep ops inv")
    assert len(found) == 2
    for spoilt in ("[]", "{", '{"state": 1}', '{"state": [], "words": {}}'):
        kept.write_text(spoilt)
        assert shell("streamprep ops inv") == ["invert"]
    assert len(found) == 6
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")  # a home that cannot be written
    assert shell("streamprep ops inv") == ["invert"]


@pytest.mark.parametrize(("name", "more"), [("zsh", {}), ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"})])
def test_other_shells_complete_too(name: str, more: dict[str, str]) -> None:
    asked = {"_STREAMPREP_COMPLETE": f"complete_{name}", "_TYPER_COMPLETE_ARGS": "streamprep rep", **more}
    answer = CliRunner().invoke(app, prog_name="streamprep", env=asked).output
    assert "repair" in answer
    assert "retry" not in answer


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is needed")
def test_what_is_installed_completes_in_a_real_bash(tmp_path: Path) -> None:
    program = tmp_path / "streamprep"
    code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom streamprep.cli import main\nmain()\n"
    program.write_text(f"#!{sys.executable}\n{code}")
    program.chmod(0o755)
    lines = [
        "streamprep --install-completion && source ~/.bashrc || exit 1",
        "COMP_WORDS=(streamprep rep) COMP_CWORD=1",
        "$(complete -p streamprep | sed 's/.*-F \\([^ ]*\\) .*/\\1/') streamprep",
        'echo "offered: ${COMPREPLY[*]}"',
    ]
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", "\n".join(lines)], env=env, capture_output=True, text=True, check=False)
    assert "offered: repair report\n" in done.stdout, done.stdout + done.stderr


def test_help_and_completion_do_without_numpy() -> None:
    code = "import streamprep.cli, streamprep.completion, sys; print({'numpy', 'scipy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


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
    assert f"now: streamprep run {tmp_path / 's' / 'streamprep.toml'}" in told
    with mrcfile.open(tmp_path / "s" / "Micrographs" / "mic_0002.mrc") as file:
        assert file.data.shape == (256, 256)
    assert "normalize" in call("plan", tmp_path / "s" / "streamprep.toml")
    (tmp_path / "s" / "streamprep_out").mkdir()  # a session has begun
    told = call("simulate", tmp_path / "s", "--micrographs", 3, "--size", 256, "--particles", 3, "--box", 32)
    assert "now:" not in told


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
    assert "1 failed item will be taken up again" in session.call("retry").stdout
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


def test_demo_leaves_a_simulated_session_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(app, ["simulate", ".", "--micrographs", "1", "--size", "256"], catch_exceptions=False)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="holds something that is no demonstration"):
        CliRunner().invoke(app, ["demo", "."], catch_exceptions=False)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_demo_makes_a_summary_and_a_report(tmp_path: Path) -> None:
    made = Session(tmp_path)
    for fork in (False, True):  # a second time over the first
        env = {"STREAMPREP_BLOCK_PLUGINS": ""}
        done = made.call("demo", "demo", "--micrographs", 2, "--interval", 0.1, fork=fork, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 micrographs done, 0 waiting, 0 failed" in done.stdout
        report = tmp_path / "demo" / "streamprep_out" / "report.html"
        assert f"look at: {report}" in done.stdout
        assert len(list(report.parent.glob("gallery/Micrographs/*/micrograph.jpg"))) == 2
