"""Phase flipping in whole sessions and in `apply`: whose CTF is used, who waits, and what the tables say afterwards."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest

from streamprep.apply import apply
from streamprep.formats import mrc, star
from streamprep.ledger import Ledger
from streamprep.model import ConfigError, Ctf, InputError
from streamprep.plugin_manager import load_plugins
from streamprep.plugins.phase_flip import phase_flip
from tests.conftest import Session
from tests.outputs import images_of, read_table
from tests.test_changes import once
from tests.test_sets import read_xmd
from tests.test_stacks import OPTICS, pixels_of, project, rows_for, write_stack, write_table

__all__ = ["project"]  # a fixture

EVERY = 'sets.further_tables=["xmd", "cs"]'


def done(session: Session, *overrides: str) -> None:
    said = once(session, *overrides)
    assert said.returncode == 0, said.stdout + said.stderr


def warnings(session: Session) -> list[str]:
    """What the session's items are said to be odd about."""
    ledger = Ledger(session.output / ".streamprep" / "ledger.sqlite")
    try:
        return [text for _, said in ledger.warnings() for text in said]
    finally:
        ledger.close()


def published(session: Session) -> tuple[list[int], pd.DataFrame, dict[str, np.ndarray]]:
    """What the optics groups say of flipping, the rows of the set, and its images by micrograph and place."""
    optics, rows = read_table(session.output / "particles.star")
    assert optics is not None
    images = images_of(session.output, "particles.star")
    keys = rows["rlnMicrographName"] + rows["rlnCoordinateX"].map(" {:.3f}".format)
    named = {key: images[name] for key, name in zip(keys, rows["rlnImageName"], strict=True)}
    return optics["rlnCtfDataArePhaseFlipped"].tolist(), rows, named


def ctfs_of(folder: Path) -> dict[str, Ctf]:
    entries = star.read_entries(folder / "micrographs_ctf.star")
    return {entry.micrograph: entry.data for entry in entries if isinstance(entry.data, Ctf) and entry.micrograph}


@pytest.fixture
def plain(session: Session) -> Session:
    """A session whose particle images are as they were cut; it has a table of CTFs."""
    session.config.write_text(session.config.read_text().partition("[particles.")[0])
    return session


# --- micrographs -----------------------------------------------------------------------------------------------------


def test_boxes_are_flipped_with_the_ctf_of_their_micrograph(plain: Session) -> None:
    done(plain, "session.output=before")
    before = Session(plain.folder)
    optics, rows = read_table(before.folder / "before" / "particles.star")
    assert optics is not None
    assert optics["rlnCtfDataArePhaseFlipped"].tolist() == [0]
    unflipped = images_of(before.folder / "before", "particles.star")
    plain.append("[particles.phase_flip]\n")
    done(plain, EVERY)
    flags, flipped, _ = published(plain)
    assert flags == [1]
    images, ctfs = images_of(plain.output, "particles.star"), ctfs_of(plain.folder)
    pixel_size = float(optics["rlnImagePixelSize"][0])
    assert sorted(flipped["rlnImageName"]) == sorted(rows["rlnImageName"])
    for name, micrograph in zip(rows["rlnImageName"], rows["rlnMicrographName"], strict=True):
        wanted = phase_flip(unflipped[name][None], [ctfs[micrograph]], pixel_size_angstrom=pixel_size)[0]
        np.testing.assert_allclose(images[name], wanted, atol=1e-3)
        assert not np.allclose(images[name], unflipped[name], atol=0.5)
    assert set(read_xmd(plain.output / "particles.xmd")["rlnCtfDataArePhaseFlipped"]) == {"1"}
    table = np.load(plain.output / "particles.cs", allow_pickle=False)
    np.testing.assert_allclose(table["ctf/df1_A"], flipped["rlnDefocusU"], rtol=1e-6)
    assert set(table["rlnCtfDataArePhaseFlipped"].tolist()) == {1}  # no field of cryoSPARC's own says so


def test_a_micrograph_is_flipped_before_its_boxes_are_cut(plain: Session) -> None:
    plain.append('[particles.phase_flip]\nscope = "micrograph"\n')
    done(plain)
    flags, rows, _ = published(plain)
    assert flags == [1]
    images, ctfs = images_of(plain.output, "particles.star"), ctfs_of(plain.folder)
    for name, micrograph in zip(rows["rlnImageName"], rows["rlnMicrographName"], strict=True):
        image = mrc.read(plain.folder / micrograph)
        assert image.pixel_size_angstrom is not None
        whole = phase_flip(image.pixels[None], [ctfs[micrograph]], pixel_size_angstrom=image.pixel_size_angstrom)[0]
        row = rows[rows["rlnImageName"] == name].iloc[0]
        box = len(images[name])
        x, y = (int(np.floor(row[f"rlnCoordinate{axis}"] + 0.5)) - box // 2 for axis in "XY")
        np.testing.assert_allclose(images[name], whole[y : y + box, x : x + box], atol=1e-3)


@pytest.mark.parametrize("scope", ["particle", "micrograph"])
def test_without_waiting_a_ctf_that_comes_late_is_used_all_the_same(plain: Session, scope: str) -> None:
    table = plain.folder / "micrographs_ctf.star"
    whole = table.read_text()
    table.write_text("\n".join(line for line in whole.splitlines() if "mic_0002" not in line) + "\n")
    plain.append(f'[particles.phase_flip]\nscope = "{scope}"\nmissing = "skip"\n')
    done(plain)
    flags, rows, early = published(plain)
    assert sorted(flags) == [0, 1]
    groups = {name: set(own["rlnOpticsGroup"]) for name, own in rows.groupby("rlnMicrographName")}
    unflipped = {name for name, (group,) in groups.items() if flags[group - 1] == 0}
    assert unflipped == {"Micrographs/mic_0002.mrc"}
    count = int((rows["rlnMicrographName"] == "Micrographs/mic_0002.mrc").sum())
    said = {
        "particle": f"phase_flip: {count} of {count} particle images have no CTF; their phases were not flipped",
        "micrograph": "phase_flip: it has no CTF; its phases were not flipped",
    }
    assert any(said[scope].removeprefix("phase_flip: ") in text for text in warnings(plain)), warnings(plain)
    table.write_text(whole)
    done(plain)
    flags, rows, late = published(plain)
    assert {flags[group - 1] for group in rows["rlnOpticsGroup"]} == {1}
    assert early.keys() == late.keys()
    for key in early:
        assert np.allclose(early[key], late[key], atol=1e-3) == ("mic_0002" not in key)


def test_a_session_without_a_table_of_ctfs_says_so_at_the_start(plain: Session) -> None:
    plain.edit('[ctf]\ntable = "micrographs_ctf.star"', "")
    plain.append("[particles.phase_flip]\n")
    said = once(plain)
    assert said.returncode == 2
    assert "phase_flip needs the CTF of each micrograph; name its table" in said.stderr


# --- stacks ----------------------------------------------------------------------------------------------------------


def flip_stacks(session: Session, parameters: str = "") -> None:
    session.edit("[particles.invert]", f"[particles.phase_flip]\n{parameters}")


def test_images_are_flipped_with_the_ctf_of_their_own_row(project: Session) -> None:
    flip_stacks(project)
    stack, pixels = "Extract/mic.mrcs", pixels_of(0, 4)
    write_stack(project.folder / stack, pixels)
    write_table(project.folder / "Extract/particles.star", [*rows_for(stack, (4, 1)), *rows_for(stack, (2,), group=2)])
    done(project)
    optics, rows = read_table(project.output / "particles.star")
    assert optics is not None
    assert optics["rlnCtfDataArePhaseFlipped"].tolist() == [1, 1]
    images = images_of(project.output, "particles.star")
    microscopes = {4: (300, 2.7, 0.1), 1: (300, 2.7, 0.1), 2: (200, 1.4, 0.07)}
    for mark, name in zip(rows["someoneElsesColumn"], rows["rlnImageName"], strict=True):
        number = int(mark.removeprefix("mark"))
        voltage, aberration, contrast = microscopes[number]
        ctf = Ctf(
            10000 + number,
            9000,
            15,
            voltage_kv=voltage,
            spherical_aberration_mm=aberration,
            amplitude_contrast=contrast,
        )
        wanted = phase_flip(pixels[number - 1 : number], [ctf], pixel_size_angstrom=1.7)[0]
        np.testing.assert_allclose(images[name], wanted, atol=1e-4)


def test_what_was_flipped_is_unflipped_then(project: Session) -> None:
    flip_stacks(project)
    write_stack(project.folder / "Extract/mic.mrcs", pixels_of(0, 2))
    flipped = OPTICS.replace("12 2 0\n", "12 2 1\n")
    write_table(project.folder / "Extract/particles.star", rows_for("Extract/mic.mrcs", (1, 2)), flipped)
    done(project)
    optics, _ = read_table(project.output / "particles.star")
    assert optics is not None
    assert optics["rlnCtfDataArePhaseFlipped"].tolist() == [0]


@pytest.mark.parametrize("flag", [0, 1])
@pytest.mark.parametrize("form", ["star", "xmd"])
def test_a_flag_in_the_rows_counts_too_and_does_not_stay_there(project: Session, form: str, flag: int) -> None:
    flip_stacks(project)
    write_stack(project.folder / "Extract/mic.mrcs", pixels_of(0, 1))
    head, image, names = {
        "star": ("data_particles\n", "rlnImageName", "rlnDefocusU rlnDefocusV rlnDefocusAngle rlnVoltage"),
        "xmd": (
            "# XMIPP_STAR_1 * \n# \ndata_particles\n",
            "image",
            "ctfDefocusU ctfDefocusV ctfDefocusAngle ctfVoltage",
        ),
    }[form]
    columns = "".join(f" _{name}\n" for name in (image, *names.split(), "rlnCtfDataArePhaseFlipped"))
    row = f"000001@Extract/mic.mrcs 7000 6000 5 300 {flag}\n"
    (project.folder / f"Extract/particles.{form}").write_text(f"{head}loop_\n{columns}{row}")
    done(project)
    optics, rows = read_table(project.output / "particles.star")
    assert optics is not None
    assert optics["rlnCtfDataArePhaseFlipped"].tolist() == [1 - flag]
    assert "rlnCtfDataArePhaseFlipped" not in rows


BARE = "data_\nloop_\n_rlnImageName\n1@Extract/mic.mrcs\n2@Extract/mic.mrcs\n"


def test_a_stack_without_any_ctf_fails_with_what_to_do(project: Session) -> None:
    flip_stacks(project)
    write_stack(project.folder / "Extract/mic.mrcs", pixels_of(0, 2))
    (project.folder / "Extract/particles.star").write_text(BARE)
    said = once(project)
    assert said.returncode == 1
    assert "mic.mrcs: no CTF is known for it" in said.stdout
    assert 'missing = "skip"' in said.stdout


def test_a_stack_without_ctf_waits_for_the_table_that_is_named(project: Session) -> None:
    flip_stacks(project)
    project.append('[ctf]\ntable = "ctf/*.star"\n')
    (project.folder / "ctf").mkdir()
    write_stack(project.folder / "Extract/mic.mrcs", pixels_of(0, 2))
    (project.folder / "Extract/particles.star").write_text(BARE)
    assert "0 stacks done, 1 waiting" in once(project).stdout
    (project.folder / "ctf" / "all.star").write_text(
        "data_\nloop_\n_rlnMicrographName\n_rlnDefocusU\n_rlnDefocusV\n_rlnDefocusAngle\n"
        "Micrographs/mic.mrc 7000 6000 5\n"
    )
    done(project)
    wanted = phase_flip(pixels_of(0, 2), [Ctf(7000, 6000, 5)] * 2, pixel_size_angstrom=1.7)
    images = images_of(project.output, "particles.star")
    np.testing.assert_allclose(list(images.values()), wanted, atol=1e-4)


@pytest.mark.parametrize("table", ["", '[ctf]\ntable = "ctf/*.star"\n'])
def test_a_stack_without_ctf_passes_where_none_is_asked_for(project: Session, table: str) -> None:
    flip_stacks(project, f'missing = "skip"\n{table}')
    (project.folder / "ctf").mkdir()
    write_stack(project.folder / "Extract/mic.mrcs", pixels_of(0, 2))
    (project.folder / "Extract/particles.star").write_text(BARE)
    done(project)
    optics, _ = read_table(project.output / "particles.star")
    assert optics is not None
    assert optics["rlnCtfDataArePhaseFlipped"].tolist() == [0]
    np.testing.assert_array_equal(list(images_of(project.output, "particles.star").values()), pixels_of(0, 2))
    assert any("2 of 2 particle images have no CTF" in text for text in warnings(project))


def test_stacks_have_no_micrographs_to_flip(project: Session) -> None:
    flip_stacks(project, 'scope = "micrograph"\n[particles.invert]\n')
    said = once(project)
    assert said.returncode == 2
    assert "phase_flip works on micrographs with these parameters of [particles.phase_flip]" in said.stderr


# --- apply -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    write_stack(tmp_path / "in.mrcs", pixels_of(3, 3))
    return tmp_path / "in.mrcs"


def run(stack: Path, *overrides: str, ctf: Path | None = None) -> list[str]:
    plugins = load_plugins(environ={}, sinks=False)
    return apply(
        ["phase_flip"], stack, stack.with_name("out.mrcs"), plugins, overrides=overrides, ctf=ctf, device="cpu"
    )


def test_apply_flips_each_image_with_its_own_ctf(stack: Path) -> None:
    table = stack.with_name("ctf.star")
    rows = "".join(f"{number}@in.mrcs {9000 + 3000 * number} 9000 20\n" for number in (3, 1, 2))
    table.write_text(f"data_\nloop_\n_rlnImageName\n_rlnDefocusU\n_rlnDefocusV\n_rlnDefocusAngle\n{rows}")
    assert run(stack, ctf=table) == []
    own = [Ctf(9000 + 3000 * number, 9000, 20) for number in (1, 2, 3)]
    wanted = phase_flip(pixels_of(3, 3), own, pixel_size_angstrom=1.7)
    np.testing.assert_allclose(mrcfile.read(stack.with_name("out.mrcs")), wanted, atol=1e-5)


def test_apply_without_a_ctf_says_what_to_give(stack: Path) -> None:
    with pytest.raises(InputError, match=r"in\.mrcs: no CTF is known for it.* --ctf of apply"):
        run(stack)
    assert run(stack, "phase_flip.missing=skip") == [
        "3 of 3 particle images have no CTF; their phases were not flipped"
    ]
    np.testing.assert_array_equal(mrcfile.read(stack.with_name("out.mrcs")), pixels_of(3, 3))


def test_apply_works_on_particles(stack: Path) -> None:
    said = r"--set phase_flip\.scope=micrograph: phase_flip then works on micrographs .* apply works on particles"
    with pytest.raises(ConfigError, match=said):
        run(stack, "phase_flip.scope=micrograph")
