"""The particle lane: stacks that exist already, with the tables that name their images, through whole sessions."""

from __future__ import annotations

import itertools
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import starfile

from streamprep.config import OpticsSection
from streamprep.model import Coordinates, Image, InputError, Item, ParticleRows
from streamprep.plugins.invert import invert
from streamprep.stacks import NamedStacks, NotYet, make_particles
from tests.conftest import Session
from tests.outputs import images_of, read_table
from tests.test_changes import once

BOX = 12
COLUMNS = (
    "rlnImageName",
    "rlnMicrographName",
    "rlnCoordinateX",
    "rlnCoordinateY",
    "rlnOpticsGroup",
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
    "rlnCtfMaxResolution",
    "someoneElsesColumn",
    "rlnOriginXAngst",
)
OPTICS = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnMtfFileName #3
_rlnMicrographOriginalPixelSize #4
_rlnVoltage #5
_rlnSphericalAberration #6
_rlnAmplitudeContrast #7
_rlnImagePixelSize #8
_rlnImageSize #9
_rlnImageDimensionality #10
_rlnCtfDataArePhaseFlipped #11
krios1 1 mtf_k3.star 0.85 300.000000 2.700000 0.100000 1.700000 12 2 0
krios2 2 mtf_k3.star 0.85 200.000000 1.400000 0.070000 1.700000 12 2 0
"""


def pixels_of(seed: int, count: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(3, 2, (count, BOX, BOX)).astype(np.float32)


def write_stack(path: Path, pixels: npt.NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(pixels)
        file.set_image_stack()
        file.voxel_size = 1.7


def rows_for(stack: str, numbers: Sequence[int], group: int = 1) -> list[str]:
    stem = Path(stack).stem
    return [
        f"{number:06d}@{stack} Micrographs/{stem}.mrc {100 + number} {200 + number} {group} "
        f"{10000 + number} 9000 15 {3.5 + number / 8} mark{number} {number / 4}"
        for number in numbers
    ]


def write_table(path: Path, rows: Sequence[str], optics: str = OPTICS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = "".join(f"_{name} #{number}\n" for number, name in enumerate(COLUMNS, start=1))
    path.write_text(f"{optics}\n\n# version 30001\n\ndata_particles\n\nloop_\n{names}" + "\n".join(rows) + "\n\n")


@pytest.fixture
def project(tmp_path: Path) -> Session:
    """A RELION project whose extraction job is watched."""
    made = Session(tmp_path / "project")
    (made.folder / "Extract" / "job010").mkdir(parents=True)
    made.config.write_text('[session]\nwatch = ["Extract"]\nsettle_seconds = 0\n[particles.invert]\n')
    return made


STACKS = {f"Extract/job010/Micrographs/mic_{index}.mrcs": pixels_of(index, 3 + index) for index in range(3)}


def all_rows() -> list[str]:
    return [row for stack, pixels in STACKS.items() for row in rows_for(stack, range(1, len(pixels) + 1))]


def expect(session: Session, wanted: dict[str, npt.NDArray[np.float32]]) -> pd.DataFrame:
    """The published set is these stacks inverted, image for image, each with its own row."""
    optics, rows = read_table(session.output / "particles.star")
    assert optics is not None
    images = images_of(session.output, "particles.star")
    assert len(rows) == sum(map(len, wanted.values()))
    for stack, pixels in wanted.items():
        own = rows[rows["rlnMicrographName"] == f"Micrographs/{Path(stack).stem}.mrc"]
        assert own["someoneElsesColumn"].tolist() == [f"mark{number}" for number in range(1, len(pixels) + 1)]
        for image, name in zip(pixels, own["rlnImageName"], strict=True):
            np.testing.assert_array_equal(images[name], -image)
    return rows


def check_shards(output: Path) -> None:
    with sqlite3.connect(f"file:{output / '.streamprep' / 'ledger.sqlite'}?mode=ro", uri=True) as database:
        known = {row[0] for row in database.execute("SELECT path FROM shards")}
        doubled = database.execute(
            "SELECT item, count(*) FROM jobs WHERE state = 'done' GROUP BY 1 HAVING count(*) > 1"
        ).fetchall()
    assert not doubled
    assert {path.relative_to(output).as_posix() for path in (output / "particles").rglob("*.mrcs")} == known


def test_every_column_and_every_pixel_of_relions_stacks_comes_through(project: Session) -> None:
    for stack, pixels in STACKS.items():
        write_stack(project.folder / stack, pixels)
    write_table(project.folder / "Extract/job010/particles.star", all_rows())
    done = once(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 stacks done, 0 waiting, 0 failed, 0 rejected" in done.stdout
    rows = expect(project, STACKS)
    given = starfile.read(project.folder / "Extract/job010/particles.star", always_dict=True)
    both = rows.set_index(["rlnMicrographName", "someoneElsesColumn"]).sort_index()
    wanted = given["particles"].set_index(["rlnMicrographName", "someoneElsesColumn"]).sort_index()
    assert set(both.pop("streamprepLabel")) == {"particle"}
    assert set(both.columns) == set(wanted.columns)
    for name in set(wanted.columns) - {"rlnImageName", "rlnOpticsGroup"}:
        np.testing.assert_allclose(both[name].to_numpy(float), wanted[name].to_numpy(float), err_msg=name)
    optics, _ = read_table(project.output / "particles.star")
    assert optics is not None
    (group,) = optics.to_dict("records")
    first = given["optics"].to_dict("records")[0]
    assert {name: group[name] for name in first} == first
    check_shards(project.output)


@pytest.mark.parametrize("order", list(itertools.permutations(["table", *list(STACKS)[:2]])))
def test_any_order_of_arrival_gives_the_same_set(project: Session, order: Sequence[str]) -> None:
    wanted = {stack: STACKS[stack] for stack in list(STACKS)[:2]}
    rows = [row for stack, pixels in wanted.items() for row in rows_for(stack, range(1, len(pixels) + 1))]
    for arrival in order:
        if arrival == "table":
            write_table(project.folder / "Extract/job010/particles.star", rows)
        else:
            write_stack(project.folder / arrival, STACKS[arrival])
        assert once(project).returncode == 0
    expect(project, wanted)
    check_shards(project.output)


def test_stacks_and_tables_grow_whichever_is_ahead(project: Session) -> None:
    stack = "Extract/job010/Micrographs/mic_0.mrcs"
    table = project.folder / "Extract/job010/particles.star"
    pixels = pixels_of(5, 9)
    write_stack(project.folder / stack, pixels[:4])
    write_table(table, rows_for(stack, range(1, 3)))  # the table has not come as far as the stack
    assert once(project).returncode == 0
    expect(project, {stack: pixels[:2]})
    write_table(table, rows_for(stack, range(1, 8)))  # now it is ahead
    told = once(project)
    assert told.returncode == 0
    assert "waits for image 7, which a table names; the stack holds 4 so far" in told.stdout
    expect(project, {stack: pixels[:2]})  # what was there stays until there is more
    write_stack(project.folder / stack, pixels)
    assert once(project).returncode == 0
    expect(project, {stack: pixels[:7]})
    write_table(table, rows_for(stack, range(1, 10)))
    assert once(project).returncode == 0
    expect(project, {stack: pixels})
    check_shards(project.output)


def test_a_stack_alone_waits_for_a_table(project: Session) -> None:
    write_stack(project.folder / "Extract/a.mrcs", pixels_of(1, 2))
    assert "Extract/a: waits for a table that names its images" in once(project).stdout
    assert "waiting: Extract/a: waits for a table that names its images" in project.call("status").stdout


def test_a_table_alone_names_stacks_that_lie_elsewhere(project: Session) -> None:
    """The table is watched, the stacks are not: they are found from the project's folder, also when they come later."""
    (project.folder / "Selected").mkdir()
    project.edit('watch = ["Extract"]', 'watch = ["Selected"]')
    names = list(STACKS)
    write_stack(project.folder / names[0], STACKS[names[0]])
    write_stack(project.folder / "Extract/job010/Micrographs/nobody_named_it.mrcs", pixels_of(9, 2))
    write_table(project.folder / "Selected/chosen.star", all_rows())
    told = once(project)
    assert told.returncode == 0, told.stdout + told.stderr
    assert f"without a stack: {names[1]}" in told.stdout
    assert "nobody_named_it" not in told.stdout
    expect(project, {names[0]: STACKS[names[0]]})
    write_stack(project.folder / names[1], STACKS[names[1]])
    assert once(project).returncode == 0
    for stack in names[1:]:
        write_stack(project.folder / stack, STACKS[stack])
    assert once(project).returncode == 0
    expect(project, STACKS)
    check_shards(project.output)


def test_xmipp_tables_name_stacks_too(project: Session) -> None:
    pixels = pixels_of(2, 4)
    write_stack(project.folder / "Extract/a.mrcs", pixels)
    (project.folder / "Extract/images.xmd").write_text(
        "# XMIPP_STAR_1 * \n# \ndata_noname\nloop_\n _itemId\n _enabled\n _image\n _micrograph\n _xcoor\n _ycoor\n"
        " _ctfVoltage\n _ctfDefocusU\n _ctfDefocusV\n _ctfDefocusAngle\n _ctfSphericalAberration\n _ctfQ0\n _shiftX\n"
        + "".join(
            f" {number} {-1 if number == 3 else 1} {number:06d}@Extract/a.mrcs mics/m.mrc {number}0 {number}1"
            f" 200.0 1500{number}.0 14000.0 30.0 1.4 0.07 -{number}.25\n"
            for number in (4, 3, 2, 1)
        )
    )
    told = once(project)
    assert told.returncode == 0, told.stdout + told.stderr
    optics, rows = read_table(project.output / "particles.star")
    assert optics is not None
    assert optics["rlnVoltage"].tolist() == [200]
    assert optics["rlnImagePixelSize"].tolist() == [pytest.approx(1.7)]
    assert rows["itemId"].tolist() == [4, 2, 1]
    assert rows["shiftX"].tolist() == [-4.25, -2.25, -1.25]
    assert rows["rlnCoordinateX"].tolist() == [40, 20, 10]
    assert rows["rlnDefocusU"].tolist() == [15004, 15002, 15001]
    assert rows["rlnMicrographName"].tolist() == ["mics/m.mrc"] * 3
    images = images_of(project.output, "particles.star")
    for name, number in zip(rows["rlnImageName"], (4, 2, 1), strict=True):
        np.testing.assert_array_equal(images[name], -pixels[number - 1])


XMIPP_IMAGES = """# XMIPP_STAR_1 *
#
data_noname
loop_
 _itemId
 _image
 _ctfVoltage
 _ctfSphericalAberration
 _ctfQ0
"""


def test_the_microscope_of_the_table_counts_without_a_defocus_too(project: Session) -> None:
    """Neither table has a defocus; the configuration says 120 kV, and counts where a table says nothing."""
    project.append("[optics]\nvoltage_kv = 120\nspherical_aberration_mm = 1.1\namplitude_contrast = 0.2\n")
    for name in ("relion", "xmipp"):
        write_stack(project.folder / f"Extract/{name}.mrcs", pixels_of(1, 3))
    (project.folder / "Extract/relion.star").write_text(
        "data_optics\nloop_\n_rlnOpticsGroupName\n_rlnOpticsGroup\n_rlnVoltage\n_rlnSphericalAberration\n"
        "_rlnAmplitudeContrast\nsaid 1 200 1.4 0.07\npart 2 80 None 0.05\n\n"
        "data_particles\nloop_\n_rlnImageName\n_rlnOpticsGroup\n_mark\n"
        "1@Extract/relion.mrcs 1 a\n2@Extract/relion.mrcs 2 b\n3@Extract/relion.mrcs 1 c\n"
    )
    (project.folder / "Extract/xmipp.xmd").write_text(
        XMIPP_IMAGES + "1 1@Extract/xmipp.mrcs 300 2.7 0.1\n2 2@Extract/xmipp.mrcs 100 2.0 0.1\n"
    )
    told = once(project)
    assert told.returncode == 0, told.stdout + told.stderr
    optics, rows = read_table(project.output / "particles.star")
    assert optics is not None
    assert not {"rlnVoltage", "ctfVoltage", "ctfQ0"} & set(rows.columns)
    joined = rows.merge(optics, on="rlnOpticsGroup", validate="many_to_one").set_index("rlnImageName")
    found = joined[["rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"]]
    assert {name: tuple(values) for name, values in found.iterrows()} == {
        "000001@particles/Extract/relion.mrcs": (200, 1.4, 0.07),
        "000002@particles/Extract/relion.mrcs": (80, 1.1, 0.05),
        "000003@particles/Extract/relion.mrcs": (200, 1.4, 0.07),
        "000001@particles/Extract/xmipp.mrcs": (300, 2.7, 0.1),
        "000002@particles/Extract/xmipp.mrcs": (100, 2.0, 0.1),
    }
    assert len(optics) == 4


def test_xmipps_table_has_no_ids_of_other_tables(project: Session) -> None:
    for name in ("a", "b"):
        write_stack(project.folder / f"Extract/{name}.mrcs", pixels_of(1, 1))
        (project.folder / f"Extract/{name}.xmd").write_text(XMIPP_IMAGES + f"1 1@Extract/{name}.mrcs 300 2.7 0.1\n")
    told = once(project)
    assert told.returncode == 0, told.stdout + told.stderr
    assert read_table(project.output / "particles.star")[1]["itemId"].tolist() == [1, 1]
    table = gemmi.cif.read_file(str(project.output / "particles.xmd")).sole_block()
    assert len(table.find_loop("_image")) == 2
    assert not table.find_loop("_itemId")


def test_a_stacks_table_says_what_its_images_are(project: Session) -> None:
    write_stack(project.folder / "Extract/a.mrcs", pixels_of(1, 2))
    (project.folder / "Extract/noise.star").write_text(
        "data_\nloop_\n_rlnImageName\n_streamprepLabel\n1@Extract/a.mrcs noise\n2@Extract/a.mrcs particle\n"
    )
    assert once(project).returncode == 0
    assert read_table(project.output / "particles.star")[1]["streamprepLabel"].tolist() == ["noise", "particle"]


def test_images_of_one_stack_keep_the_optics_groups_that_they_are_of(project: Session) -> None:
    stack = "Extract/both.mrcs"
    pixels = pixels_of(3, 6)
    write_stack(project.folder / stack, pixels)
    rows = rows_for(stack, [1, 2], group=2) + rows_for(stack, [3, 4]) + rows_for(stack, [5, 6], group=2)
    write_table(project.folder / "Extract/particles.star", rows)
    assert once(project).returncode == 0
    optics, found = read_table(project.output / "particles.star")
    assert optics is not None
    names = dict(zip(optics["rlnOpticsGroup"], optics["rlnOpticsGroupName"], strict=True))
    voltages = dict(zip(optics["rlnOpticsGroup"], optics["rlnVoltage"], strict=True))
    images = images_of(project.output, "particles.star")
    assert len(found) == 6
    for name, mark, group in zip(
        found["rlnImageName"], found["someoneElsesColumn"], found["rlnOpticsGroup"], strict=True
    ):
        number = int(mark.removeprefix("mark"))
        np.testing.assert_array_equal(images[name], -pixels[number - 1])
        assert (names[group], voltages[group]) == (("krios1", 300) if number in (3, 4) else ("krios2", 200))


def test_the_same_name_in_two_folders_is_two_stacks(project: Session) -> None:
    wanted = {f"Extract/{job}/mic.mrcs": pixels_of(number, 2) for number, job in enumerate(("job1", "job2"))}
    for stack, pixels in wanted.items():
        write_stack(project.folder / stack, pixels)
        write_table(project.folder / Path(stack).parent / "particles.star", rows_for(stack, (1, 2)))
    assert once(project).returncode == 0
    images = images_of(project.output, "particles.star")
    for stack, pixels in wanted.items():
        for number in (1, 2):
            np.testing.assert_array_equal(images[f"{number:06d}@particles/{stack}"], -pixels[number - 1])


def test_the_tables_of_one_job_that_say_it_twice_count_once(project: Session) -> None:
    """RELION leaves ``x_extract.star`` beside each stack; its rows are in particles.star, too."""
    for stack, pixels in STACKS.items():
        write_stack(project.folder / stack, pixels)
        rows = rows_for(stack, range(1, len(pixels) + 1))
        write_table(project.folder / stack.replace(".mrcs", "_extract.star"), rows, optics="")
    assert once(project).returncode == 0
    expect(project, STACKS)
    write_table(project.folder / "Extract/job010/particles.star", all_rows())
    assert once(project).returncode == 0
    expect(project, STACKS)
    check_shards(project.output)


def test_two_tables_that_say_different_things_of_a_stack_are_an_ambiguity(project: Session) -> None:
    stack = "Extract/mic.mrcs"
    write_stack(project.folder / stack, pixels_of(0, 3))
    write_table(project.folder / "Extract/first.star", rows_for(stack, (1, 2)))
    write_table(project.folder / "Extract/second.star", rows_for(stack, (1, 3)))
    told = once(project).stdout
    assert "has several rows files: Extract/first.star, Extract/second.star; leave one of them" in told
    (project.folder / "Extract/second.star").unlink()
    assert once(project).returncode == 0
    expect(project, {stack: pixels_of(0, 3)[:2]})


def test_the_ctf_of_a_micrograph_goes_to_images_that_have_none_of_their_own(project: Session) -> None:
    project.append('[ctf]\ntable = "micrographs_ctf.star"\n')
    (project.folder / "micrographs_ctf.star").write_text(
        "data_\nloop_\n_rlnMicrographName\n_rlnDefocusU\n_rlnDefocusV\n_rlnDefocusAngle\n_rlnVoltage\n"
        "Micrographs/own.mrc 7000 6000 5 200\nMicrographs/none.mrc 7000 6000 5 200\n"
    )
    for name in ("own", "none"):
        write_stack(project.folder / f"Extract/{name}.mrcs", pixels_of(1, 1))
    write_table(project.folder / "Extract/own.star", rows_for("Extract/own.mrcs", [1]))
    (project.folder / "Extract/none.star").write_text("data_\nloop_\n_rlnImageName\n1@Extract/none.mrcs\n")
    told = once(project)
    assert told.returncode == 0, told.stdout + told.stderr
    optics, rows = read_table(project.output / "particles.star")
    assert optics is not None
    found = {
        Path(row.rlnImageName).stem: (row.rlnDefocusU, optics["rlnVoltage"][row.rlnOpticsGroup - 1])
        for row in rows.itertuples()
    }
    assert found == {"own": (10001, 300), "none": (7000, 200)}


def test_a_session_that_cuts_particles_takes_no_stacks(session: Session) -> None:
    """Its particles would be in the set twice."""
    write_stack(session.folder / "Micrographs" / "old.mrcs", pixels_of(0, 2))
    write_table(session.folder / "Coordinates" / "old.star", rows_for("Micrographs/old.mrcs", (1, 2)))
    told = once(session)
    assert "this session cuts its particles from micrographs ([extract])" in told.stdout
    assert "3 micrographs done, 0 waiting, 0 failed, 1 rejected" in told.stdout
    assert set(read_table(session.output / "particles.star")[1]["rlnMicrographName"]) == {
        f"Micrographs/mic_000{number}.mrc" for number in (1, 2, 3)
    }


def test_stacks_that_cannot_be_used_fail_with_the_reason_and_the_others_are_done(project: Session) -> None:
    bad = pixels_of(1, 3)
    bad[1, 5, 5] = np.nan
    write_stack(project.folder / "Extract/nan.mrcs", bad)
    with mrcfile.new(project.folder / "Extract/flat.mrcs") as file:
        file.set_data(np.ones((2, 6, 9), np.float32))
        file.set_image_stack()
    write_stack(project.folder / "Extract/good.mrcs", pixels_of(2, 2))
    rows = [row for name in ("nan", "flat", "good") for row in rows_for(f"Extract/{name}.mrcs", (1, 2))]
    write_table(project.folder / "Extract/particles.star", rows)
    write_table(project.folder / "Extract/zero.star", ["0@Extract/good.mrcs a 1 2 1 1 1 1 1 a 1"])
    told = once(project)
    assert told.returncode == 1
    assert "nan.mrcs: image 2 holds values that are not finite" in told.stdout
    assert "flat.mrcs: a stack of particles holds square images; this holds float32 of (2, 6, 9)" in told.stdout
    assert "zero.star: row 1: _rlnImageName is '0@Extract/good.mrcs'; it must be NUMBER@FILE" in told.stdout
    expect(project, {"Extract/good.mrcs": pixels_of(2, 2)})


def test_a_session_with_stacks_elsewhere_can_be_moved(project: Session, tmp_path: Path) -> None:
    (project.folder / "Selected").mkdir()
    project.edit('watch = ["Extract"]', 'watch = ["Selected"]')
    names = list(STACKS)
    for stack in names[:2]:
        write_stack(project.folder / stack, STACKS[stack])
    write_table(project.folder / "Selected/chosen.star", all_rows())
    assert once(project).returncode == 0
    before = read_table(project.output / "particles.star")[1]
    shutil.move(project.folder, tmp_path / "elsewhere")
    moved = Session(tmp_path / "elsewhere")
    assert once(moved).returncode == 0
    pd.testing.assert_frame_equal(read_table(moved.output / "particles.star")[1], before)
    write_stack(moved.folder / names[2], STACKS[names[2]])
    assert once(moved).returncode == 0
    expect(moved, STACKS)


@pytest.mark.slow
def test_a_daemon_that_is_killed_while_stacks_and_table_grow_makes_the_same_set(
    project: Session, eventually: Callable[[Callable[[], bool], float], None], stopped: list[subprocess.Popen[str]]
) -> None:
    """The table is watched; the stacks are only named by it, come after it, and grow."""
    (project.folder / "Selected").mkdir()
    project.edit('watch = ["Extract"]', 'watch = ["Selected"]\nworkers = 1\nrescan_seconds = 0.5')
    wanted = {f"Extract/job010/Micrographs/mic_{index}.mrcs": pixels_of(index, 4) for index in range(8)}
    rows: list[str] = []
    table, output = project.folder / "Selected/chosen.star", project.output / "particles.star"
    chance = random.Random(5)

    def count() -> int:
        return len(read_table(output)[1]) if output.exists() else 0

    for index, (stack, pixels) in enumerate(wanted.items()):
        process = project.start()
        stopped.append(process)
        rows += rows_for(stack, range(1, 5))
        write_table(table.with_suffix(".tmp"), rows)
        table.with_suffix(".tmp").rename(table)
        write_stack(project.folder / stack, pixels[:2])  # fewer than the table names, as if it were being written
        if index % 3 == 0:
            eventually(lambda want=4 * index: count() >= want, 30.0)  # type: ignore[misc]
        else:
            time.sleep(chance.uniform(0.2, 1.5))
        write_stack(project.folder / stack, pixels)
        if index % 3 == 0:
            eventually(lambda want=4 * index + 4: count() >= want, 30.0)  # type: ignore[misc]
        process.kill()
        process.communicate()
    done = project.once()
    assert done.returncode == 0, done.stdout + done.stderr
    expect(project, wanted)
    check_shards(project.output)


# --- what is named, and where it lies ---


def test_a_name_never_means_a_stack_of_the_same_name_elsewhere(project: Session) -> None:
    write_stack(project.folder / "Extract/T/a.mrcs", pixels_of(1, 3))
    write_stack(project.folder / "Extract/S/a.mrcs", pixels_of(2, 3))
    write_table(project.folder / "Extract/T/p.star", rows_for("../S/a.mrcs", (1, 2)))
    write_table(project.folder / "Extract/T/q.star", rows_for("Other/job020/a.mrcs", (1, 2, 3)))
    told = once(project)
    assert "Extract/T/a: waits for a table that names its images" in told.stdout
    assert "without a stack: Other/job020/a.mrcs" in told.stdout
    expect(project, {"a.mrcs": pixels_of(2, 3)[:2]})


@pytest.mark.parametrize("name", ["Particles/a.mrcs", "{absolute}", "Extract/latest/a.mrcs"])
def test_stacks_are_found_through_links_and_once(project: Session, name: str) -> None:
    real = project.folder / "elsewhere/deep/a.mrcs"
    write_stack(real, pixels_of(1, 2))
    (project.folder / "Particles").symlink_to("elsewhere/deep")
    (project.folder / "Extract/latest").symlink_to("../elsewhere/deep")
    name = name.replace("{absolute}", str(project.folder / "Particles/a.mrcs"))
    write_table(project.folder / "Extract/p.star", rows_for(name, (1, 2)))
    assert once(project).returncode == 0
    expect(project, {"a.mrcs": pixels_of(1, 2)})
    write_stack(real, pixels_of(3, 2))
    assert once(project).returncode == 0
    expect(project, {"a.mrcs": pixels_of(3, 2)})


def test_a_watched_folder_that_is_a_link_is_watched_once(project: Session) -> None:
    real = project.folder / "real"
    write_stack(real / "a.mrcs", pixels_of(1, 2))
    (project.folder / "W").symlink_to("real")
    project.edit('watch = ["Extract"]', 'watch = ["W"]')
    write_table(real / "p.star", rows_for(str(real / "a.mrcs"), (1, 2)))
    told = once(project)
    assert "1 stack done, 0 waiting" in told.stdout, told.stdout
    expect(project, {"a.mrcs": pixels_of(1, 2)})


def test_a_stack_keeps_its_rows_when_its_table_is_moved(project: Session) -> None:
    write_stack(project.folder / "Extract/a.mrcs", pixels_of(1, 2))
    table = project.folder / "Extract/p.star"
    write_table(table, rows_for("Extract/a.mrcs", (1, 2)))
    assert once(project).returncode == 0
    (table.parent / "sub").mkdir()
    table.rename(table.parent / "sub/p.star")
    assert once(project).returncode == 0
    write_stack(project.folder / "Extract/a.mrcs", pixels_of(2, 2))
    told = once(project)
    assert told.returncode == 0, told.stdout
    expect(project, {"a.mrcs": pixels_of(2, 2)})


def test_one_of_two_equal_tables_may_go(project: Session) -> None:
    write_stack(project.folder / "Extract/a.mrcs", pixels_of(1, 2))
    for name in "pq":
        write_table(project.folder / f"Extract/{name}.star", rows_for("Extract/a.mrcs", (1, 2)))
    assert once(project).returncode == 0
    (project.folder / "Extract/p.star").unlink()
    write_stack(project.folder / "Extract/a.mrcs", pixels_of(2, 2))
    told = once(project)
    assert told.returncode == 0, told.stdout
    expect(project, {"a.mrcs": pixels_of(2, 2)})


@pytest.mark.parametrize("first", ['["Sel"]', '["Sel", "Extract"]'])
def test_a_stack_that_is_watched_in_another_way_than_before_is_the_same(project: Session, first: str) -> None:
    (project.folder / "Sel").mkdir()
    stack, table = "Extract/job1/a.mrcs", project.folder / "Sel/p.star"
    pixels = pixels_of(1, 7)
    second = '["Sel", "Extract"]' if first == '["Sel"]' else '["Sel"]'
    for count, watch in ((3, first), (5, second), (7, first)):
        text = project.config.read_text().splitlines()
        project.config.write_text("\n".join([text[0], f"watch = {watch}", *text[2:]]) + "\n")
        write_stack(project.folder / stack, pixels[:count])
        write_table(table, rows_for(stack, range(1, count + 1)))
        told = once(project)
        assert "1 stack done, 0 waiting, 0 failed" in told.stdout, told.stdout
        expect(project, {stack: pixels[:count]})
    check_shards(project.output)


def test_a_copy_that_appears_nearer_to_the_table_changes_nothing(project: Session) -> None:
    (project.folder / "P/Sel").mkdir(parents=True)
    project.edit('watch = ["Extract"]', 'watch = ["P/Sel"]')
    stacks = {f"Extract/job1/{name}.mrcs": pixels_of(number, 5) for number, name in enumerate("ab")}
    table = project.folder / "P/Sel/p.star"

    def grow(count: int) -> None:
        for stack, pixels in stacks.items():
            write_stack(project.folder / stack, pixels[:count])
        write_table(table, [row for stack in stacks for row in rows_for(stack, range(1, count + 1))])
        told = once(project)
        assert told.returncode == 0, told.stdout
        assert "2 stacks done, 0 waiting" in told.stdout
        expect(project, {stack: pixels[:count] for stack, pixels in stacks.items()})

    grow(3)
    write_stack(project.folder / "P/Extract/job1/a.mrcs", pixels_of(9, 5))
    grow(5)


def test_what_a_table_names_is_a_stack_whatever_its_header_says(project: Session) -> None:
    single, volume = project.folder / "Extract/one.mrc", project.folder / "Extract/vol.mrc"
    with mrcfile.new(single) as file:
        file.set_data(pixels_of(1, 1)[0])
        file.voxel_size = 1.7
    with mrcfile.new(volume) as file:
        file.set_data(pixels_of(2, 3))
        file.set_volume()
        file.voxel_size = 1.7
    write_table(
        project.folder / "Extract/p.star", rows_for("Extract/one.mrc", [1]) + rows_for("Extract/vol.mrc", (1, 2, 3))
    )
    told = once(project)
    assert "2 stacks done, 0 waiting, 0 failed, 0 rejected" in told.stdout, told.stdout
    expect(project, {"one.mrc": pixels_of(1, 1), "vol.mrc": pixels_of(2, 3)})


def test_what_a_table_names_stays_a_stack_when_it_comes_late_or_changes(project: Session) -> None:
    single = project.folder / "Extract/one.mrc"
    write_table(project.folder / "Extract/p.star", rows_for("Extract/one.mrc", [1]))

    def write(seed: int) -> None:
        with mrcfile.new(single, overwrite=True) as file:
            file.set_data(pixels_of(seed, 1)[0])
            file.voxel_size = 1.7

    assert once(project).returncode == 0
    for seed in (1, 2):
        write(seed)
        for _ in range(2):  # it is known for a stack once its name was found
            assert once(project).returncode == 0
        expect(project, {"one.mrc": pixels_of(seed, 1)})


def test_a_job_that_is_moved_with_its_table_goes_on(project: Session) -> None:
    job = project.folder / "Extract/job1"
    write_stack(job / "m/a.mrcs", pixels_of(1, 2))
    write_table(job / "p.star", rows_for("m/a.mrcs", (1, 2)))
    assert once(project).returncode == 0
    job.rename(project.folder / "Extract/job2")
    assert once(project).returncode == 0
    write_stack(project.folder / "Extract/job2/m/a.mrcs", pixels_of(2, 2))
    told = once(project)
    assert "1 stack done, 0 waiting, 0 failed" in told.stdout, told.stdout
    expect(project, {"a.mrcs": pixels_of(2, 2)})


def test_two_named_stacks_that_differ_by_their_ending_alone_are_told(project: Session) -> None:
    write_stack(project.folder / "Extract/a.mrcs", pixels_of(1, 2))
    with mrcfile.new(project.folder / "Extract/a.mrc") as file:
        file.set_data(pixels_of(2, 3))
        file.set_volume()
        file.voxel_size = 1.7
    write_table(project.folder / "Extract/p.star", rows_for("Extract/a.mrcs", (1, 2)) + rows_for("Extract/a.mrc", [1]))
    for _ in range(2):
        told = once(project)
        assert "1 stack done, 0 waiting, 1 failed" in told.stdout, told.stdout
        assert "has the same name as a.mrcs, apart from the ending; rename one of them" in told.stdout
        expect(project, {"a.mrcs": pixels_of(1, 2)})


@pytest.mark.parametrize("link", ["file", "folder"])
def test_stacks_behind_links_in_a_watched_folder_are_processed_once(project: Session, link: str) -> None:
    """As import protocols leave them: links to data that lie elsewhere."""
    write_stack(project.folder / "store/a.mrcs", pixels_of(1, 2))
    if link == "file":
        (project.folder / "Extract/job010/a.mrcs").symlink_to("../../store/a.mrcs")
    else:
        (project.folder / "Extract/job010").rmdir()
        (project.folder / "Extract/job010").symlink_to("../store")
    write_table(project.folder / "Extract/p.star", rows_for("Extract/job010/a.mrcs", (1, 2)))
    for seed in (1, 2):
        write_stack(project.folder / "store/a.mrcs", pixels_of(seed, 2))
        for _ in range(2):
            told = once(project)
            assert "1 stack done, 0 waiting, 0 failed, 0 rejected" in told.stdout, told.stdout
        expect(project, {"a.mrcs": pixels_of(seed, 2)})


def test_one_table_that_spells_a_stack_in_two_ways_says_so(project: Session) -> None:
    write_stack(project.folder / "Extract/a.mrcs", pixels_of(1, 4))
    rows = rows_for("a.mrcs", (1, 2)) + rows_for("Extract/a.mrcs", (3, 4))
    write_table(project.folder / "Extract/p.star", rows)
    assert "Extract/p.star names it in several ways: a.mrcs, Extract/a.mrcs; one must do" in once(project).stdout


# --- the parts ---


def image(count: int = 4) -> Image:
    return Image(pixels_of(0, count), 2.5)


ITEM = Item("particles", "a", Path("a.mrcs"))


def test_particles_are_in_the_order_of_the_rows() -> None:
    rows = ParticleRows(np.array([2, 0, 2]), Coordinates(np.ones((3, 2))), columns={"a": np.arange(3)})
    made = make_particles(ITEM, image(), rows, OpticsSection())
    np.testing.assert_array_equal(made.pixels, image().pixels[[2, 0, 2]])
    assert made.optics.pixel_size_angstrom == 2.5
    assert len(made) == len(made.columns["a"]) == 3


def test_no_rows_make_no_particles() -> None:
    assert len(make_particles(ITEM, image(), ParticleRows(np.zeros(0, np.int64)), OpticsSection())) == 0


@pytest.mark.parametrize(
    ("sizes", "configured", "wanted"), [([1.5, 1.5], 9.0, 1.5), (None, 9.0, 9.0), (None, None, 2.5)]
)
def test_the_tables_pixel_size_counts_before_the_configurations_before_the_headers(
    sizes: list[float] | None, configured: float | None, wanted: float
) -> None:
    rows = ParticleRows(np.arange(2), pixel_size_angstrom=None if sizes is None else np.array(sizes))
    optics = make_particles(ITEM, image(), rows, OpticsSection(pixel_size_angstrom=configured)).optics
    assert optics.pixel_size_angstrom == wanted


def test_a_table_ahead_of_its_stack_is_told_apart_from_a_fault() -> None:
    with pytest.raises(NotYet, match="waits for image 5, which a table names; the stack holds 4 so far"):
        make_particles(ITEM, image(), ParticleRows(np.array([0, 4])), OpticsSection())


def test_the_tables_constants_count_before_the_configurations() -> None:
    said = ({"rlnVoltage": "200", "rlnAmplitudeContrast": "inf", "rlnSphericalAberration": "none"},) * 2
    rows = ParticleRows(np.arange(2), optics_columns=said)
    made = make_particles(ITEM, image(), rows, OpticsSection(voltage_kv=120, amplitude_contrast=0.2)).optics
    assert (made.voltage_kv, made.spherical_aberration_mm, made.amplitude_contrast) == (200, 2.7, 0.2)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ParticleRows(np.arange(2), pixel_size_angstrom=np.array([1.0, 1.5])), "pixel sizes of 1 and 1.5"),
        (ParticleRows(np.arange(2), phase_flipped=np.array([True, False])), "flipped and of others not"),
    ],
)
def test_images_of_one_stack_must_be_alike(rows: ParticleRows, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_particles(ITEM, image(), rows, OpticsSection())


def test_named_stacks_are_found_from_the_tables_folder_upwards_and_from_the_bases(tmp_path: Path) -> None:
    near, above, own = tmp_path / "p/t/near/a.mrcs", tmp_path / "p/above/a.mrcs", tmp_path / "s/own/a.mrcs"
    for path in (near, above, own):
        path.parent.mkdir(parents=True)
    for path in (near, above):
        path.touch()
    (tmp_path / "p/link").symlink_to("above")
    stacks = NamedStacks([tmp_path / "s"])
    names = [
        "near/a.mrcs",
        "above/a.mrcs",
        "own/a.mrcs",
        str(near),
        "../above/a.mrcs",
        "link/a.mrcs",
        "..",
        "",
        "b\0/a",
    ]
    for number, name in enumerate(names):
        stacks.add(number, tmp_path / "p/t/t.star", name)
    found, folders = stacks.look()
    assert dict(found) == {0: str(near), 1: str(above), 3: str(near), 4: str(above), 5: str(above)}
    assert folders == {near.parent: {"a.mrcs"}, above.parent: {"a.mrcs"}}
    own.touch()
    assert stacks.look() == ([(2, str(own))], {own.parent: {"a.mrcs"}})
    assert stacks.look() == ([], {})
    stacks.add(9, tmp_path / "p/t/t.star", "near/b.mrcs")  # others of its folder are known, so it may come there
    assert stacks.look() == ([], {near.parent: {"b.mrcs"}})


def test_a_nearer_stack_is_meant_before_one_farther_off_name_by_name(tmp_path: Path) -> None:
    for name in ("p/t/m/a.mrcs", "p/m/a.mrcs", "p/m/b.mrcs"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    stacks = NamedStacks([])
    for number, name in enumerate(("m/a.mrcs", "m/b.mrcs")):
        stacks.add(number, tmp_path / "p/t/t.star", name)
    found, _ = stacks.look()
    assert dict(found) == {0: str(tmp_path / "p/t/m/a.mrcs"), 1: str(tmp_path / "p/m/b.mrcs")}


def test_the_operations_of_the_lane_are_those_of_cut_particles() -> None:
    pixels = pixels_of(0, 2)
    np.testing.assert_array_equal(invert(pixels), -pixels)
