"""A ledger that was lost is made again from the log of commits: nothing that is whole is processed twice."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from streamprep import journal
from streamprep.config import load
from streamprep.engine import Engine
from streamprep.executors import InlineExecutor
from streamprep.formats import mrc_output
from streamprep.ledger import LedgerError
from streamprep.model import ConfigError
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.repair import Repaired, repair
from streamprep.simulate import Acquisition, simulate
from streamprep.snapshot import Snapshot
from streamprep.testing import tiny_map
from tests.conftest import Session
from tests.outputs import check_invariants, images_of

PLUGINS = load_plugins(environ={"STREAMPREP_LOAD_PLUGINS": ""})
OVERRIDES = ["session.settle_seconds=0", "session.device=cpu"]


def once(folder: Path, *further: str) -> Snapshot:
    config = load(folder / "streamprep.toml", [*OVERRIDES, *further])
    return Engine(config, PLUGINS, resolve(config, PLUGINS), once=True, executor=InlineExecutor).run()


def mend(folder: Path, *further: str, verify: bool = False) -> Repaired:
    config = load(folder / "streamprep.toml", [*OVERRIDES, *further])
    return repair(config, PLUGINS, resolve(config, PLUGINS), verify=verify)


def files_of(output: Path) -> dict[str, tuple[int, bytes]]:
    """Everything that a user sees: when it was written, and its bytes."""
    return {
        path.relative_to(output).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(output.rglob("*"))
        if path.is_file() and ".streamprep" not in path.parts
    }


def stacks_of(output: Path) -> dict[str, tuple[int, bytes]]:
    return {name: found for name, found in files_of(output).items() if name.endswith((".mrcs", ".mrc"))}


def sets_of(output: Path) -> list[bytes]:
    """Pixels of all rows, whatever their stacks are called."""
    return [pixels.tobytes() for pixels in images_of(output, "particles.star").values()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A session of five micrographs with their CTF that is done."""
    simulate(tmp_path, Acquisition(micrographs=5, size_px=256, particles=3, box_size_px=32, seed=4))
    assert once(tmp_path).jobs == {"done": 5}
    return tmp_path


def remove(ledger: Path) -> None:
    ledger.unlink()


def overwrite(ledger: Path) -> None:
    with ledger.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(3 * 4096))


def empty(ledger: Path) -> None:
    ledger.write_bytes(b"")


@pytest.mark.case(11)
@pytest.mark.parametrize("lose", [remove, overwrite, empty])
def test_a_lost_ledger_is_made_again(folder: Path, lose: Callable[[Path], None]) -> None:
    output = folder / "streamprep_out"
    before, ledger = files_of(output), output / ".streamprep/ledger.sqlite"
    lose(ledger)
    with pytest.raises((ConfigError, LedgerError), match="streamprep repair") as refused:
        once(folder)
    assert "ledger" in str(refused.value)
    assert files_of(output) == before
    done = mend(folder)
    assert (done.commits, done.items, done.damaged) == (5, 5, ())
    assert (done.aside is None) == (lose is remove)
    check_invariants(output)
    last = once(folder)
    assert (last.jobs, last.waiting_count, last.failed) == ({"done": 5}, 0, 0)
    assert {name: found[1] for name, found in files_of(output).items()} == {
        name: found[1] for name, found in before.items()
    }
    assert stacks_of(output) == {name: before[name] for name in stacks_of(output)}  # not one was written anew
    check_invariants(output)


def test_a_sound_session_is_left_alone(folder: Path) -> None:
    ledger = folder / "streamprep_out/.streamprep/ledger.sqlite"
    before = ledger.read_bytes()
    assert mend(folder).trouble is None
    assert mend(folder, verify=True).trouble is None
    assert ledger.read_bytes() == before


@pytest.mark.case(12)
def test_what_is_missing_is_made_again_and_nothing_else(folder: Path) -> None:
    output = folder / "streamprep_out"
    before, sets = stacks_of(output), sets_of(output)
    gone = sorted(name for name in before if name.startswith("particles/"))[2]
    (output / gone).unlink()
    with pytest.raises(LedgerError, match=r"mic_0003.*missing.*streamprep repair"):
        once(folder)
    done = mend(folder)
    assert (done.items, len(done.damaged)) == (4, 1)
    assert "mic_0003" in done.damaged[0]
    assert gone in str(done.trouble)
    assert once(folder).jobs == {"done": 5, "superseded": 1}
    after = stacks_of(output)
    kept = [name for name in before if "mic_0003" not in name]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert after[gone.replace("mic_0003", "mic_0003~2")][1] == before[gone][1]
    assert sorted(sets_of(output)) == sorted(sets)
    check_invariants(output)


@pytest.mark.case(12)
def test_changed_bytes_are_found_with_verify(folder: Path) -> None:
    output = folder / "streamprep_out"
    (stack,) = output.glob("particles/**/mic_0002.mrcs")
    whole = stack.read_bytes()
    stack.write_bytes(whole[:-4] + b"\x00\x00\x80\x7f")
    assert mend(folder).trouble is None
    done = mend(folder, verify=True)
    assert "mic_0002" in str(done.trouble)
    assert ["mic_0002" in said for said in done.damaged] == [True]
    assert once(folder).jobs == {"done": 5, "superseded": 1}
    assert stack.with_name("mic_0002~2.mrcs").read_bytes() == whole
    check_invariants(output)


@pytest.mark.case(12)
def test_rows_that_were_damaged_are_made_again(folder: Path) -> None:
    output = folder / "streamprep_out"
    sets = sets_of(output)
    log = output / ".streamprep/rows/particles.star.rows"
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)
    done = mend(folder, verify=True)
    assert (done.items, len(done.damaged)) == (4, 1)
    assert once(folder).jobs == {"done": 5, "superseded": 1}
    assert sorted(sets_of(output)) == sorted(sets)
    check_invariants(output)


def test_a_row_log_that_was_cut_costs_the_items_that_lost_rows(folder: Path) -> None:
    output = folder / "streamprep_out"
    sets = sets_of(output)
    log = output / ".streamprep/rows/particles.star.rows"
    os.truncate(log, log.stat().st_size - 10)
    with pytest.raises(LedgerError, match="committed bytes of the rows of particles.star.*streamprep repair"):
        once(folder)
    assert len(mend(folder).damaged) == 1
    assert mend(folder).trouble is None
    assert once(folder).jobs == {"done": 5, "superseded": 1}
    assert sorted(sets_of(output)) == sorted(sets)
    check_invariants(output)


@pytest.mark.parametrize("how", ["torn", "changed"])
def test_a_damaged_log_of_commits_costs_the_items_of_its_damaged_lines(folder: Path, how: str) -> None:
    output = folder / "streamprep_out"
    log = output / ".streamprep/rows/commits.rows"
    rows = len(images_of(output, "particles.star"))
    data = bytearray(log.read_bytes())
    if how == "torn":
        del data[-20:]
    else:
        data[len(data) // 2] ^= 4
    log.write_bytes(data)
    (output / ".streamprep/ledger.sqlite").unlink()
    done = mend(folder)
    assert (done.items, len(done.damaged)) == (4, 1)
    assert once(folder).jobs == {"done": 5}
    assert len(images_of(output, "particles.star")) == rows
    check_invariants(output)


def test_without_a_log_there_is_nothing_to_repair_from(folder: Path) -> None:
    state = folder / "streamprep_out/.streamprep"
    (state / "ledger.sqlite").unlink()
    (state / "rows/commits.rows").unlink()
    with pytest.raises(ConfigError, match=r"ledger\.sqlite is missing; commits\.rows.* everything is processed again"):
        mend(folder)


@pytest.mark.parametrize("how", ["gone", "changed", "cut"])
def test_a_log_of_commits_that_is_damaged_beside_a_sound_ledger_is_written_anew(folder: Path, how: str) -> None:
    output = folder / "streamprep_out"
    before, log = files_of(output), output / ".streamprep/rows/commits.rows"
    data = bytearray(log.read_bytes())
    if how == "gone":
        log.unlink()
    elif how == "cut":
        log.write_bytes(data[: len(data) // 2])
    else:
        data[20] ^= 1
        log.write_bytes(data)
    done = mend(folder)
    assert "written anew" in str(done.trouble)
    assert (done.items, done.damaged) == (5, ())
    (output / ".streamprep/ledger.sqlite").unlink()  # the new one does as well as the first
    assert mend(folder).items == 5
    assert once(folder).jobs == {"done": 5}
    assert stacks_of(output) == {name: before[name] for name in stacks_of(output)}
    assert {name: found[1] for name, found in files_of(output).items()} == {
        name: found[1] for name, found in before.items()
    }
    check_invariants(output)


def test_a_ledger_that_is_older_than_the_rest_is_refused_and_repaired(folder: Path) -> None:
    """A copy of it was put back, say: what was committed since is not thrown away, though its micrographs are gone."""
    output = folder / "streamprep_out"
    ledger = output / ".streamprep/ledger.sqlite"
    names = sorted((folder / "Micrographs").iterdir())
    hidden = folder / "elsewhere"
    hidden.mkdir()
    shutil.rmtree(output)
    for path in names[2:]:
        path.rename(hidden / path.name)
    once(folder)
    early = ledger.read_bytes()
    for path in hidden.iterdir():
        path.rename(folder / "Micrographs" / path.name)
    once(folder)
    rows, before = set(images_of(output, "particles.star")), stacks_of(output)
    ledger.write_bytes(early)
    shutil.rmtree(folder / "Micrographs")
    (folder / "Micrographs").mkdir()
    with pytest.raises(LedgerError, match="older than the rest: 3 commits.*streamprep repair"):
        once(folder)
    done = mend(folder)
    assert (done.items, done.damaged) == (5, ())
    once(folder)
    assert set(images_of(output, "particles.star")) == rows
    assert stacks_of(output) == before
    check_invariants(output)


def test_tables_without_rows_are_not_left_as_they_were(folder: Path) -> None:
    """Everything is lost, and its inputs are gone: no published table names what is not there."""
    output = folder / "streamprep_out"
    shutil.rmtree(output / "particles")
    shutil.rmtree(folder / "Micrographs")
    (folder / "Micrographs").mkdir()
    assert len(mend(folder).damaged) == 5
    once(folder)
    assert not (output / "particles.star").exists() or not images_of(output, "particles.star")
    check_invariants(output)


def test_a_ledger_that_another_has_is_not_taken_for_damaged(folder: Path) -> None:
    ledger = folder / "streamprep_out/.streamprep/ledger.sqlite"
    before = ledger.read_bytes()
    reader = sqlite3.connect(ledger)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM jobs").fetchone()
    try:
        with pytest.raises(LedgerError, match="locked"):
            mend(folder)
    finally:
        reader.close()
    assert ledger.read_bytes() == before
    with sqlite3.connect(ledger) as writer:
        writer.execute("PRAGMA user_version = 99")
    writer.close()
    with pytest.raises(LedgerError, match="a newer streamprep"):
        mend(folder)


def test_results_of_another_plan_are_not_adopted(folder: Path) -> None:
    state = folder / "streamprep_out/.streamprep"
    for name in ("ledger.sqlite", "plan.json"):
        (state / name).unlink()
    with pytest.raises(ConfigError, match="made with another plan"):
        mend(folder, "extract.box_size_px=36")
    assert not (state / "new-ledger.sqlite").exists()


def test_results_without_any_record_are_left_alone(folder: Path) -> None:
    output = folder / "streamprep_out"
    before = files_of(output)
    (output / ".streamprep/ledger.sqlite").unlink()
    shutil.rmtree(output / ".streamprep/rows")
    with pytest.raises(ConfigError, match="there are results, but ledger.sqlite is missing"):
        once(folder)
    assert files_of(output) == before


def test_a_table_that_was_moved_is_not_taken_for_another(folder: Path) -> None:
    """Of two micrographs that fit, the better one comes late and takes the picks; then the ledger is lost."""
    output = folder / "streamprep_out"
    micrograph = folder / "Micrographs/mic_0001.mrc"
    shutil.rmtree(output)
    shutil.copy(micrograph, folder / "whole.mrc")
    micrograph.rename(folder / "Micrographs/mic_0001_DW.mrc")
    once(folder, "matching.suffixes=['_autopick', '_DW']")
    (folder / "Coordinates/later").mkdir()
    table = next((folder / "Coordinates").glob("mic_0001*"))
    table.rename(folder / "Coordinates/later" / table.name)
    once(folder, "matching.suffixes=['_autopick', '_DW']")
    (folder / "whole.mrc").rename(micrograph)
    once(folder, "matching.suffixes=['_autopick', '_DW']")
    names = set(images_of(output, "particles.star"))
    (output / ".streamprep/ledger.sqlite").unlink()
    mend(folder, "matching.suffixes=['_autopick', '_DW']")
    once(folder, "matching.suffixes=['_autopick', '_DW']")
    assert set(images_of(output, "particles.star")) == names
    check_invariants(output)


def test_nothing_was_processed(tmp_path: Path) -> None:
    simulate(tmp_path, Acquisition(micrographs=1, size_px=256, particles=3, box_size_px=32))
    with pytest.raises(ConfigError, match="nothing to repair"):
        mend(tmp_path)


def test_a_rewritten_micrograph_is_there_once(folder: Path) -> None:
    """And rejected, failed and waiting items are found again."""
    output = folder / "streamprep_out"
    rewritten, broken, alone = (folder / f"Micrographs/mic_000{number}.mrc" for number in (1, 2, 3))
    with mrcfile.open(rewritten, "r+") as file:
        file.data[:] *= 2
    os.truncate(broken, 5000)
    shutil.copy(alone, folder / "Micrographs/alone.mrc")
    last = once(folder)
    assert (last.jobs["done"], last.jobs["superseded"], last.waiting_count) == (5, 1, 1)
    expected = images_of(output, "particles.star")
    before, failed = stacks_of(output), last.failed
    (output / ".streamprep/ledger.sqlite").unlink()
    assert mend(folder).items == 5
    last = once(folder)
    assert (last.jobs["done"], last.waiting_count, last.failed) == (5, 1, failed)
    assert images_of(output, "particles.star").keys() == expected.keys()
    assert stacks_of(output) == before
    check_invariants(output)
    with mrcfile.open(rewritten, "r+") as file:
        file.data[:] /= 4
    assert once(folder).jobs["done"] == 5
    assert list(output.glob("particles/**/mic_0001~3.mrcs"))
    check_invariants(output)


def test_a_micrograph_that_was_moved_keeps_its_results(folder: Path) -> None:
    output = folder / "streamprep_out"
    (folder / "Micrographs/later").mkdir()
    (folder / "Micrographs/mic_0002.mrc").rename(folder / "Micrographs/later/mic_0002.mrc")
    assert once(folder).jobs == {"done": 5}
    before = stacks_of(output)
    (output / ".streamprep/ledger.sqlite").unlink()
    assert mend(folder).items == 5
    assert once(folder).jobs == {"done": 5}
    assert stacks_of(output) == before
    check_invariants(output)


def test_picks_that_another_micrograph_took_are_there_once(folder: Path) -> None:
    """The same name in a folder above: of two micrographs, the coordinates belong to the nearer one."""
    output = folder / "streamprep_out"
    nearer = folder / "Coordinates/mic_0004.mrc"
    shutil.copy(folder / "Micrographs/mic_0004.mrc", nearer)
    once(folder)
    names = set(images_of(output, "particles.star"))
    assert not any("mic_0004" in name for name in names)  # the nearer one waits for its CTF
    (output / ".streamprep/ledger.sqlite").unlink()
    mend(folder)
    once(folder)
    assert set(images_of(output, "particles.star")) == names
    check_invariants(output)


def test_stacks_and_optics_groups(tmp_path: Path) -> None:
    """A session that works on existing stacks, with three optics groups."""
    config = tmp_path / "streamprep.toml"
    config.write_text('[session]\nwatch = ["Extract"]\n[particles.invert]\n')
    (tmp_path / "Extract").mkdir()
    rows = ""
    for number in range(1, 5):
        pixels = np.random.default_rng(number).normal(size=(2, 16, 16)).astype(np.float32)
        mrc_output.write(tmp_path / f"Extract/s{number}.mrcs", pixels, pixel_size_angstrom=1.5, stack=True)
        rows += "".join(f"{image}@Extract/s{number}.mrcs m{number}.mrc {min(number, 3)}\n" for image in (1, 2))
    (tmp_path / "Extract/particles.star").write_text(
        "data_optics\nloop_\n_rlnOpticsGroupName\n_rlnOpticsGroup\n_rlnImagePixelSize\n_rlnVoltage\n"
        "one 1 1.5 300\ntwo 2 1.5 200\nthree 3 1.5 120\n\n"
        "data_particles\nloop_\n_rlnImageName\n_rlnMicrographName\n_rlnOpticsGroup\n" + rows
    )
    assert once(tmp_path).jobs == {"done": 4}
    output = tmp_path / "streamprep_out"
    before = files_of(output)
    (output / ".streamprep/ledger.sqlite").unlink()
    assert mend(tmp_path).items == 4
    assert once(tmp_path).jobs == {"done": 4}
    assert {name: found[1] for name, found in files_of(output).items()} == {
        name: found[1] for name, found in before.items()
    }
    assert stacks_of(output) == {name: before[name] for name in stacks_of(output)}


def test_maps(tmp_path: Path) -> None:
    (tmp_path / "Maps").mkdir()
    (tmp_path / "streamprep.toml").write_text('[session]\nwatch = ["Maps"]\n[maps.invert]\n')
    for number in range(3):
        path = tmp_path / f"Maps/{number}.mrc"
        mrc_output.write(path, tiny_map(12, number).pixels, pixel_size_angstrom=1.5, stack=False)
    once(tmp_path)
    output = tmp_path / "streamprep_out"
    before = files_of(output)
    (output / ".streamprep/ledger.sqlite").unlink()
    assert mend(tmp_path).items == 3
    assert once(tmp_path).jobs == {"done": 3}
    assert files_of(output) == before


def test_a_map_that_was_moved_before_another_came_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "Maps/old").mkdir(parents=True)
    (tmp_path / "streamprep.toml").write_text('[session]\nwatch = ["Maps"]\n[maps.invert]\n')
    path = tmp_path / "Maps/x.mrc"
    for number, place in enumerate((path, None)):
        mrc_output.write(path, tiny_map(12, number).pixels, pixel_size_angstrom=1.5, stack=False)
        assert once(tmp_path).jobs == {"done": number + 1}
        if place is not None:
            path.rename(tmp_path / "Maps/old/x.mrc")
            once(tmp_path)
    output = tmp_path / "streamprep_out"
    before = files_of(output)
    (output / ".streamprep/ledger.sqlite").unlink()
    assert mend(tmp_path).items == 2
    assert once(tmp_path).jobs == {"done": 2}
    assert files_of(output) == before


def test_the_log_says_of_each_commit_what_the_ledger_says(folder: Path) -> None:
    output = folder / "streamprep_out"
    lines = [line for line in journal.read(output / ".streamprep/rows/commits.rows") if line is not None]
    with sqlite3.connect(f"file:{output}/.streamprep/ledger.sqlite?mode=ro", uri=True) as database:
        shards = set(database.execute("SELECT path, size, crc32 FROM shards"))
        blocks = set(database.execute("SELECT tbl, start, length, crc32 FROM blocks"))
    assert {(shard.path, shard.size, shard.crc32) for line in lines for shard in line.commit.shards} == shards
    told = {
        (block.table, block.start, block.length, block.crc32)
        for line in lines
        for block in (*line.commit.blocks, journal.block_of(line))
    }
    assert told == blocks
    assert [journal.line_of(line.commit) for line in lines] == (
        output / ".streamprep/rows/commits.rows"
    ).read_bytes().splitlines(keepends=True)


def test_the_command_says_what_it_did(session: Session) -> None:
    assert session.once().returncode == 0
    done = session.call("repair")
    assert (done.returncode, "nothing to repair" in done.stdout) == (0, True), done.stdout + done.stderr
    (session.output / ".streamprep/ledger.sqlite").unlink()
    done = session.once()
    assert (done.returncode, "streamprep repair" in done.stderr) == (2, True), done.stdout + done.stderr
    done = session.call("repair")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ledger.sqlite is missing" in done.stdout
    assert "the ledger was made again: 3 items are done, by 3 commits" in done.stdout
    assert session.once().returncode == 0
    check_invariants(session.output)
