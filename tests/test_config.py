"""The configuration file: what is read, what is refused, and how it is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamprep.config import load, parse_override
from streamprep.model import ConfigError, nearest

GOOD = '[session]\nwatch = ["Micrographs"]\n[extract]\nbox_size_px = 64\n[particles.normalize]\nmethod = "new"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "streamprep.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path.parent)
    config = load(Path(tmp_path.name) / "streamprep.toml")
    assert config.watch_folders == [tmp_path / "Micrographs"]
    assert config.resolve("/elsewhere") == Path("/elsewhere")
    assert config.particles == {"normalize": {"method": "new"}}


def test_overrides_win_and_make_tables(tmp_path: Path) -> None:
    config = load(
        write(tmp_path, GOOD),
        ["particles.normalize.method=ramp", "extract.box_size_px=32", "particles.invert.order=5", "session.seed=3"],
    )
    assert config.particles == {"normalize": {"method": "ramp"}, "invert": {"order": 5}}
    assert config.extract == {"box_size_px": 32}
    assert config.session.seed == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["a table [session] is needed"]),
        ("[session]\n", ["[session] needs watch"]),
        ("[session]\nwatch = []\n", ["[session] watch", "at least 1 item"]),
        (GOOD + "[optics]\nvoltage = 300\n", ["[optics] voltage: unknown key", "did you mean voltage_kv?"]),
        (GOOD + "[partikles.invert]\n", ["partikles: unknown key", "did you mean particles?"]),
        (GOOD + "[optics]\npixel_size_angstrom = -1\n", ["[optics] pixel_size_angstrom = -1", "greater than 0"]),
        (GOOD + "[optics]\npixel_size_angstrom = nan\n", ["pixel_size_angstrom", "finite"]),
        (GOOD.replace("[session]", '[session]\ndevice = "tpu"'), ["[session] device = 'tpu'", "'auto'", "'gpu'"]),
        ('file = "x"\n' + GOOD, ["file: unknown key"]),
        ("[session\n", ["not valid TOML", "line 1"]),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_every_mistake_is_listed(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "[optics]\nvoltage = 1\namplitude_contrast = 7\n")
    with pytest.raises(ConfigError) as error:
        load(path)
    assert len(str(error.value).splitlines()) == 2


def test_a_missing_file_names_init(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; `streamprep init` writes one"):
        load(tmp_path / "streamprep.toml")


def test_a_folder_stands_for_the_configuration_in_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"streamprep.toml: no such file; `streamprep init` writes one"):
        load(tmp_path)
    path = write(tmp_path, GOOD)
    assert load(tmp_path) == load(path)


@pytest.mark.parametrize("text", ["particles", "=1", "a..b=1", ".=2"])
def test_overrides_of_a_wrong_form_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="TABLE.KEY=VALUE"):
        parse_override(text)


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method is a value, not a table"):
        load(write(tmp_path, GOOD), ["particles.normalize.method.x=1"])


@given(st.one_of(st.integers(-(10**9), 10**9), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)))
def test_override_values_are_read_as_toml(value: float) -> None:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    assert parse_override(f"a.b={text}") == (["a", "b"], value)


def test_nearest_offers_all_when_nothing_is_near() -> None:
    assert nearest("zzzz", ["invert", "center"]) == "known are center, invert"
    assert nearest("invrt", ["invert", "center"]) == "did you mean invert?"
