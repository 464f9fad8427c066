"""Whole sessions, as users run them: real processes, real files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from scipy.spatial import cKDTree

from tests.conftest import Process, Session
from tests.outputs import check_invariants, images_of, read_table, rows_of
from tests.procfs import children_of

Wait = Callable[..., None]


def picks_text(xy: np.ndarray) -> str:
    rows = "".join(f"{x:.3f} {y:.3f}\n" for x, y in xy)
    return f"data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n{rows}\n"


def events(process: Process) -> list[dict[str, object]]:
    output, _ = process.communicate(timeout=60)
    return [json.loads(line) for line in output.splitlines()]


# --- the main job ----------------------------------------------------------------------------------------------------


@pytest.fixture
def real_session(data: Path, empty_session: Session) -> Session:
    shutil.copy(data / "micrographs" / "Ucsf_stack_1142_DW.mrc", empty_session.folder / "Micrographs")
    picks = data / "coordinates" / "relion" / "Ucsf_stack_1142_DW_autopick.star"
    shutil.copy(picks, empty_session.folder / "Coordinates")
    empty_session.append("[optics]\npixel_size_angstrom = 1\n")
    return empty_session


def test_real_micrograph_with_mask(real_session: Session, data: Path) -> None:
    masks = data / "masks"
    real_session.edit("[coordinates.pick_noise]\n", f'[coordinates.pick_noise]\nmask = "{masks}/{{stem}}.mrc"\n')
    done = real_session.once()
    assert done.returncode == 0, done.stdout + done.stderr

    _, particles = read_table(real_session.output / "particles.star")
    _, noise = read_table(real_session.output / "noise.star")
    source = real_session.folder / "Coordinates" / "Ucsf_stack_1142_DW_autopick.star"
    picks = np.loadtxt([line for line in source.read_text().splitlines() if line.strip()[:1].isdigit()])[:, :2]
    with mrcfile.open(real_session.folder / "Micrographs" / "Ucsf_stack_1142_DW.mrc", permissive=True) as file:
        micrograph = file.data
    ny, nx = micrograph.shape
    corner = np.floor(picks + 0.5) - 32
    fitting = picks[((corner >= 0) & (corner + 64 <= [nx, ny])).all(axis=1)]
    assert 0 < len(fitting) < len(picks)
    written = particles[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy()
    np.testing.assert_allclose(written, fitting, atol=1e-6)
    assert len(noise) == len(particles)

    centres = noise[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy()
    nearest, _ = cKDTree(picks).query(centres)
    assert nearest.min() >= 64
    np.testing.assert_allclose(nearest, noise["streamprepNearestParticlePixels"], atol=1e-4)
    with mrcfile.open(masks / "Ucsf_stack_1142_DW.mrc", permissive=True) as file:
        mask = file.data
    for x, y in centres.astype(int):
        assert mask[y - 32 : y + 32, x - 32 : x + 32].max() <= 0.5

    images = images_of(real_session.output, "particles.star")
    outside = np.hypot(*np.mgrid[-32:32, -32:32]) >= 32
    for (x, y), image in zip(fitting, images.values(), strict=True):
        assert abs(image[outside].mean()) < 1e-4
        assert abs(image[outside].std(ddof=1) - 1) < 1e-4
        cx, cy = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        box = micrograph[cy - 32 : cy + 32, cx - 32 : cx + 32]
        plane = np.stack([np.ones(64 * 64), *(axis.ravel() for axis in np.mgrid[:64, :64])], axis=1)
        fit = np.linalg.lstsq(plane[outside.ravel()], box.ravel()[outside.ravel()].astype(float), rcond=None)[0]
        assert np.corrcoef(box.ravel() - plane @ fit, image.ravel())[0, 1] < -0.9999  # inverted, without its ramp
    for table in ("particles.star", "noise.star", "coordinates/particles.star", "coordinates/noise.star"):
        assert len(rows_of(real_session.output / table)) == len(fitting)
    check_invariants(real_session.output)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["session", "real_session"])
def test_relion_reads_and_classifies(kind: str, request: pytest.FixtureRequest) -> None:
    if shutil.which("relion_refine") is None:
        pytest.skip("RELION is not installed (Debian package relion)")
    session: Session = request.getfixturevalue(kind)
    assert session.once().returncode == 0
    _, rows = read_table(session.output / "particles.star")

    def relion(*arguments: str) -> str:
        done = subprocess.run(arguments, cwd=session.output, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    stack = rows["rlnImageName"][0].partition("@")[2]
    said = relion("relion_image_handler", "--stats", "--i", stack)
    assert ("48 x 48" if kind == "session" else "64 x 64") in said
    assert f"angpix = {1.5 if kind == 'session' else 1}" in said
    ctf = ["--ctf"] if kind == "session" else []
    (session.output / "Class2D").mkdir()
    relion(
        "relion_refine", "--i", "particles.star", "--o", "Class2D/run", "--iter", "2", "--K", "2", *ctf,
        "--particle_diameter", "60", "--oversampling", "0", "--psi_step", "30", "--offset_range", "3", "--offset_step",
        "3", "--norm", "--scale", "--pad", "1", "--j", "2",
    )  # fmt: skip
    _, classified = read_table(session.output / "Class2D" / "run_it002_data.star")
    assert len(classified) == len(rows)
    assert "rlnClassNumber" in classified
    assert ("rlnDefocusU" in classified) == bool(ctf)


@pytest.mark.case(13)
@pytest.mark.slow
def test_large_micrograph_is_copied_in_slowly_while_it_runs(
    data: Path, empty_session: Session, eventually: Wait, stopped: list[Process]
) -> None:
    source = data / "micrographs" / "epu2.9_example.mrc"
    xy = np.random.default_rng(1).uniform(100, 3996, (40, 2))
    process = empty_session.start()
    stopped.append(process)
    (empty_session.folder / "Coordinates" / "epu2.9_example.star").write_text(picks_text(xy))
    target = empty_session.folder / "Micrographs" / "epu2.9_example.mrc"
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(3 << 20):
            writing.write(chunk)
            writing.flush()
            time.sleep(0.15)  # longer than settle_seconds: pauses alone must not make it look finished
    table = empty_session.output / "particles.star"
    eventually(table.exists, 30)
    process.send_signal(signal.SIGTERM)
    told = events(process)
    assert process.returncode == 0
    finished = [event for event in told if event["event"] == "item_finished"]
    assert [(event["item"], event["state"]) for event in finished] == [("Micrographs/epu2.9_example", "done")]

    _, rows = read_table(table)
    with mrcfile.open(source, permissive=True) as file:
        pixels = file.data
    assert len(rows) == len(xy)
    assert len(read_table(empty_session.output / "noise.star")[1]) == len(xy)
    optics, _ = read_table(table)
    assert optics is not None
    assert optics["rlnImagePixelSize"][0] == pytest.approx(0.666551, abs=1e-6)
    image = images_of(empty_session.output, "particles.star")[rows["rlnImageName"][0]]
    x, y = np.floor(xy[0] + 0.5).astype(int)
    box = pixels[y - 32 : y + 32, x - 32 : x + 32].astype(float)
    assert np.corrcoef(box.ravel(), image.ravel())[0, 1] < -0.7
    check_invariants(empty_session.output)


# --- streaming -------------------------------------------------------------------------------------------------------


@pytest.mark.case(26)
def test_order_of_arrival_does_not_matter(
    session: Session, tmp_path: Path, eventually: Wait, stopped: list[Process]
) -> None:
    assert session.once().returncode == 0
    later = Session(tmp_path / "later")
    for name in ("Micrographs", "Coordinates"):
        (later.folder / name).mkdir(parents=True)
    shutil.copy(session.config, later.config)
    process = later.start()
    stopped.append(process)
    for name in ("Coordinates/mic_0002_autopick.star", "micrographs_ctf.star", "Coordinates/mic_0001_autopick.star",
                 "Micrographs/mic_0003.mrc", "Micrographs/mic_0001.mrc", "Coordinates/mic_0003_autopick.star",
                 "Micrographs/mic_0002.mrc"):  # fmt: skip
        shutil.copy(session.folder / name, later.folder / name)
    eventually(lambda: (later.output / "particles.star").exists())
    eventually(lambda: len(set(read_table(later.output / "particles.star")[1]["rlnMicrographName"])) == 3)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    for table in ("particles.star", "noise.star", "coordinates/particles.star", "coordinates/noise.star"):
        assert rows_of(later.output / table) == rows_of(session.output / table)
    ours, theirs = images_of(session.output, "noise.star"), images_of(later.output, "noise.star")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_tables_hold_ctf_and_original_columns(session: Session) -> None:
    assert session.once().returncode == 0
    _, rows = read_table(session.output / "particles.star")
    _, ctf = read_table_of_ctf(session.folder / "micrographs_ctf.star")
    for name, defocus in zip(rows["rlnMicrographName"], rows["rlnDefocusU"], strict=True):
        assert defocus == pytest.approx(ctf[name], abs=0.01)
    assert "rlnAutopickFigureOfMerit" in rows
    pos = (session.output / "coordinates" / "pos" / "Micrographs" / "mic_0001.pos").read_text()
    assert pos.count("\n1 ") == (rows["rlnMicrographName"] == "Micrographs/mic_0001.mrc").sum()


def read_table_of_ctf(path: Path) -> tuple[object, dict[str, float]]:
    import starfile

    read = starfile.read(path, always_dict=True)
    rows = read["micrographs"]
    return read["optics"], dict(zip(rows["rlnMicrographName"], rows["rlnDefocusU"], strict=True))


@pytest.mark.case(22)
def test_rewritten_coordinates_replace_the_older_rows(session: Session) -> None:
    assert session.once().returncode == 0
    before = rows_of(session.output / "particles.star")
    path = session.folder / "Coordinates" / "mic_0002_autopick.star"
    path.write_text(picks_text(np.array([[150.0, 160.0], [100.25, 200.5]])))
    assert session.once().returncode == 0
    _, rows = read_table(session.output / "particles.star")
    changed = rows[rows["rlnMicrographName"] == "Micrographs/mic_0002.mrc"]
    assert sorted(changed["rlnCoordinateX"]) == [100.25, 150.0]
    assert not set(changed["rlnImageName"]) & {row[0] for row in before}
    kept = rows[rows["rlnMicrographName"] != "Micrographs/mic_0002.mrc"]
    assert set(kept["rlnImageName"]) < {row[0] for row in before}
    assert len(read_table(session.output / "coordinates" / "particles.star")[1]) == len(rows)
    pos = (session.output / "coordinates" / "pos" / "Micrographs" / "mic_0002.pos").read_text()
    assert pos.count("\n1 ") == 2
    check_invariants(session.output)


def test_second_start_finds_nothing_to_do(session: Session) -> None:
    assert session.once().returncode == 0
    before = {path: path.read_bytes() for path in session.output.rglob("*.mrcs")}
    again = session.once()
    assert again.returncode == 0
    assert "done     " not in again.stdout
    assert {path: path.read_bytes() for path in session.output.rglob("*.mrcs")} == before
    check_invariants(session.output)


def test_watched_folders_are_never_written_to(session: Session) -> None:
    def state() -> dict[str, tuple[int, int]]:
        found = {}
        for name in ("Micrographs", "Coordinates"):
            for path in [session.folder / name, *(session.folder / name).rglob("*")]:
                found[str(path)] = (path.stat().st_mtime_ns, path.stat().st_size)
        return found

    before = state()
    for name in ("Micrographs", "Coordinates"):
        (session.folder / name).chmod(0o555)
    try:
        assert session.once().returncode == 0
    finally:
        for name in ("Micrographs", "Coordinates"):
            (session.folder / name).chmod(0o755)
    assert state() == before


@pytest.mark.case(26)
def test_what_waits_is_listed_with_what_it_waits_for(session: Session) -> None:
    (session.folder / "Coordinates" / "mic_0003_autopick.star").unlink()
    (session.folder / "Coordinates" / "stranger.star").write_text(picks_text(np.array([[1.0, 2.0]])))
    done = session.once()
    assert done.returncode == 0
    assert "waiting: Micrographs/mic_0003: waits for coordinates" in done.stdout
    told = session.call("status").stdout
    assert "waits for coordinates" in told
    assert "without a micrograph: coordinates for stranger.star" in told


@pytest.mark.case(4)
def test_two_signals_end_at_once_and_nothing_is_lost(
    session: Session, eventually: Wait, stopped: list[Process]
) -> None:
    process = session.start()
    stopped.append(process)
    eventually(lambda: (session.output / ".streamprep" / "status.json").exists())
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in (0, 128 + signal.SIGTERM)
    assert session.once().returncode == 0
    assert len(set(read_table(session.output / "particles.star")[1]["rlnMicrographName"])) == 3
    check_invariants(session.output)


def test_workers_end_with_the_daemon(session: Session, eventually: Wait, stopped: list[Process]) -> None:
    process = session.start(fork=False)
    stopped.append(process)
    eventually(lambda: (session.output / "particles.star").exists())
    workers = children_of(process.pid)
    assert workers
    process.kill()
    eventually(lambda: not any(_alive(pid) for pid in workers), 10)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.case(17)
def test_bad_input_is_named_and_the_session_goes_on(session: Session) -> None:
    micrographs, coordinates = session.folder / "Micrographs", session.folder / "Coordinates"
    whole = (micrographs / "mic_0001.mrc").read_bytes()
    (micrographs / "cut.mrc").write_bytes(whole[: len(whole) // 2])
    (micrographs / "noise.mrc").write_bytes(os.urandom(5000))
    (coordinates / "empty.star").write_bytes(b"")
    (coordinates / "torn.star").write_text("data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 2\n3\n")
    (coordinates / "letters.star").write_text("data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 2\n3 east\n")
    (coordinates / "mic_0002_autopick.star").write_text(picks_text(np.array([[5000.0, 10.0], [-80.0, 9.0]])))
    (coordinates / "mic_0003_autopick.star").write_text(picks_text(np.array([[5000.0, 10.0], [160.0, 160.0]])))
    session.edit("settle_seconds = 0.1", "settle_seconds = 0.1\nincomplete_seconds = 0.5")
    done = session.once()
    assert done.returncode == 1
    said = done.stdout
    for words in (
        f"cut.mrc: truncated: it has {len(whole) // 2} bytes",
        "noise.mrc: not a usable MRC file",
        "empty.star: the file is empty",
        "torn.star: not a readable STAR file",
        "letters.star: row 2 of data_: _rlnCoordinateY is 'east', not a number",
        "mic_0002_autopick.star: 2 of 2 coordinates lie outside the 320×320 px micrograph",
        "mic_0003_autopick.star: 1 of 2 coordinates lie outside the 320×320 px micrograph, the first at x = 5000,",
    ):
        assert words in said, f"{words!r} is not in:\n{said}"
    assert "Traceback" not in said + done.stderr
    _, rows = read_table(session.output / "particles.star")
    assert set(rows["rlnMicrographName"]) == {"Micrographs/mic_0001.mrc", "Micrographs/mic_0003.mrc"}

    # each is taken up again when it is mended, and the failures are gone
    (micrographs / "cut.mrc").write_bytes(whole)
    for name in ("empty", "torn", "letters"):
        (coordinates / f"{name}.star").unlink()
    (coordinates / "cut.star").write_text(picks_text(np.array([[100.0, 100.0]])))
    shutil.copy(coordinates / "cut.star", coordinates / "mic_0002_autopick.star")
    ctf = (session.folder / "micrographs_ctf.star").read_text()
    row = next(line for line in ctf.splitlines() if "mic_0001.mrc" in line)
    (session.folder / "micrographs_ctf.star").write_text(ctf.replace(row, f"{row}\n{row.replace('mic_0001', 'cut')}"))
    session.once()
    _, rows = read_table(session.output / "particles.star")
    assert {"Micrographs/cut.mrc", "Micrographs/mic_0002.mrc"} < set(rows["rlnMicrographName"])
    check_invariants(session.output)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("settle_seconds", "settle_secnds", ["[session] settle_secnds", "unknown key", "settle_seconds?"]),
        ("[particles.normalize]", "[particles.normalise]", ["[particles.normalise]", "did you mean normalize?"]),
        ('method = "ramp"', "background_radius_px = 30", ["background_radius_px = 30", "half the box (24 of 48 px)"]),
        ('"Micrographs"', '"Micrgraphs"', ["Micrgraphs does not exist"]),
        ('method = "ramp"', 'method = "rammp"', ["[particles.normalize]", "'rammp'", "'ramp'"]),
        ("box_size_px = 48", "box_size_px = -2", ["[extract]", "box_size_px = -2", "greater than or equal to 2"]),
        ("box_size_px = 48", "", ["[extract]", "box_size_px"]),
        ("[session]", "[session", ["not valid TOML"]),
    ],
)
def test_a_wrong_configuration_is_refused_before_any_data(
    session: Session, old: str, new: str, words: list[str]
) -> None:
    session.edit(old, new)
    done = session.once()
    assert done.returncode == 2
    for word in ["streamprep.toml", *words]:
        assert word in done.stderr, f"{word!r} is not in {done.stderr!r}"
    assert "Traceback" not in done.stderr
    assert not session.output.exists()


def test_output_of_another_plan_is_refused_and_new_set_begins_beside_it(session: Session) -> None:
    assert session.once().returncode == 0
    first = rows_of(session.output / "particles.star")
    session.edit('method = "ramp"', 'method = "new"')
    refused = session.once()
    assert refused.returncode == 2
    assert "another plan" in refused.stderr
    checked = session.call("check")
    assert (checked.returncode, checked.stderr) == (2, refused.stderr), "check says what run would"
    assert "--new-set" in refused.stderr
    assert session.once("--new-set").returncode == 0
    second = session.folder / "streamprep_out_2"
    assert len(rows_of(second / "particles.star")) == len(first)
    assert rows_of(session.output / "particles.star") == first
    assert session.once().returncode == 0, "the second set is continued without --new-set"
    session.edit('method = "new"', 'method = "ramp"')
    assert session.once().returncode == 0, "and so is the first"
    assert not (session.folder / "streamprep_out_3").exists()


@pytest.mark.case(10)
def test_second_daemon_is_refused_but_a_stale_lock_is_not(
    session: Session, eventually: Wait, stopped: list[Process]
) -> None:
    process = session.start()
    stopped.append(process)
    eventually(lambda: (session.output / ".streamprep" / "status.json").exists())
    second = session.once()
    assert second.returncode == 2
    assert f"another streamprep is at work here (process {process.pid})" in second.stderr
    told = session.call("status")
    assert told.returncode == 0
    assert "daemon running" in told.stdout
    process.kill()
    process.wait()
    assert (session.output / ".streamprep" / "lock").exists()
    assert session.once().returncode == 0


@pytest.mark.case(11)
def test_results_without_a_ledger_are_refused(session: Session) -> None:
    assert session.once().returncode == 0
    for path in (session.output / ".streamprep").glob("ledger.sqlite*"):
        path.unlink()
    refused = session.once()
    assert refused.returncode == 2
    assert "ledger.sqlite is missing" in refused.stderr
    assert len(rows_of(session.output / "particles.star")) > 0


@pytest.mark.case(12)
def test_a_shortened_row_log_is_reported(session: Session) -> None:
    assert session.once().returncode == 0
    log = session.output / ".streamprep" / "rows" / "particles.star.rows"
    log.write_bytes(log.read_bytes()[:-10])
    refused = session.once()
    assert refused.returncode == 2
    assert "committed bytes" in refused.stderr


def test_output_around_a_watched_folder_is_refused(session: Session) -> None:
    session.edit('output = "streamprep_out"', 'output = "."')
    refused = session.once()
    assert refused.returncode == 2
    assert "never written to" in refused.stderr


@pytest.mark.case(22)
def test_rewritten_while_it_waits(session: Session) -> None:
    """A micrograph that is replaced before its coordinates come is processed in its newest form only."""
    picks = session.folder / "Coordinates" / "mic_0001_autopick.star"
    text = picks.read_text()
    picks.unlink()
    assert session.once().returncode == 0
    path = session.folder / "Micrographs" / "mic_0001.mrc"
    with mrcfile.open(path, "r+") as file:
        file.data[:] = file.data[::-1].copy()
    picks.write_text(text)
    assert session.once().returncode == 0
    _, rows = read_table(session.output / "particles.star")
    images = images_of(session.output, "particles.star")
    row = rows[rows["rlnMicrographName"] == "Micrographs/mic_0001.mrc"].iloc[0]
    x, y = np.floor(np.array([row["rlnCoordinateX"], row["rlnCoordinateY"]]) + 0.5).astype(int)
    box = mrcfile.read(path)[y - 24 : y + 24, x - 24 : x + 24]
    assert np.corrcoef(box.ravel(), images[row["rlnImageName"]].ravel())[0, 1] < -0.7
    check_invariants(session.output)


@pytest.mark.case(15)
def test_files_that_come_during_the_run(session: Session, eventually: Wait, stopped: list[Process]) -> None:
    """Temporary names, duplicates of events, sub-folders made while it runs."""
    grid = session.folder / "Micrographs" / "GridSquare_1"
    process = session.start()
    stopped.append(process)
    eventually(lambda: (session.output / "particles.star").exists())
    source = session.folder / "Micrographs" / "mic_0001.mrc"

    def copy_as_rsync() -> None:
        grid.mkdir()
        shutil.copy(source, grid / ".extra.mrc.Ab12Cd")
        time.sleep(0.4)
        (grid / ".extra.mrc.Ab12Cd").rename(grid / "extra.mrc")

    thread = threading.Thread(target=copy_as_rsync)
    thread.start()
    thread.join()
    ctf = session.folder / "micrographs_ctf.star"
    text = ctf.read_text()
    row = next(line for line in text.splitlines() if "mic_0001.mrc" in line)
    extra = row.replace("Micrographs/mic_0001", "Micrographs/GridSquare_1/extra")
    ctf.write_text(text.replace(row, f"{row}\n{extra}"))
    shutil.copy(session.folder / "Coordinates" / "mic_0001_autopick.star",
                session.folder / "Coordinates" / "extra_autopick.star")  # fmt: skip

    def names() -> set[str]:
        return set(read_table(session.output / "particles.star")[1]["rlnMicrographName"])

    eventually(lambda: "Micrographs/GridSquare_1/extra.mrc" in names())
    for _ in range(20):
        source.touch()
    process.send_signal(signal.SIGTERM)
    told = events(process)
    extra_jobs = [event for event in told if event.get("item") == "Micrographs/GridSquare_1/extra"]
    assert [event["state"] for event in extra_jobs if event["event"] == "item_finished"] == ["done"]
    assert (session.output / "particles" / "Micrographs" / "GridSquare_1" / "extra.mrcs").exists()
    check_invariants(session.output)


@pytest.mark.case(9)
def test_a_removed_output_folder_ends_the_session(session: Session, eventually: Wait, stopped: list[Process]) -> None:
    process = session.start()
    stopped.append(process)
    table = session.output / "particles.star"
    eventually(lambda: table.exists() and len(set(read_table(table)[1]["rlnMicrographName"])) == 3)
    session.output.rename(session.folder / "elsewhere")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "was removed or replaced while the session ran" in said
    assert not (session.output / "particles").exists()
    check_invariants(session.folder / "elsewhere", ended=False)


def test_a_new_set_names_its_own_stacks(session: Session) -> None:
    session.edit("[session]\n", '[session]\nimage_paths = "session"\n')
    assert session.once().returncode == 0
    assert session.once("--new-set", "--set", "particles.normalize.method=new").returncode == 0
    for name in ("streamprep_out", "streamprep_out_2"):
        _, rows = read_table(session.folder / name / "particles.star")
        assert set(rows["rlnImageName"].str.partition("@")[2].str.partition("/")[0]) == {name}


def test_coordinates_that_count_y_from_the_last_row(session: Session) -> None:
    """The same picks, turned over in their files, give the same particles."""
    assert session.once().returncode == 0
    expected = images_of(session.output, "particles.star")
    for table in (session.folder / "Coordinates").glob("*.star"):
        rows = starfile.read(table)
        rows["rlnCoordinateY"] = 319 - rows["rlnCoordinateY"]  # a micrograph has 320 rows
        starfile.write(rows, table, overwrite=True, float_format="%.6f")
    session.append('[matching]\nflip_y = ["Coordinates"]\n')
    assert session.once("--new-set").returncode == 0
    turned = images_of(session.folder / "streamprep_out_2", "particles.star")
    assert turned.keys() == expected.keys()
    for name, image in expected.items():
        assert np.array_equal(turned[name], image), name
    refused = session.call("check", "--set", 'matching.flip_y=["Coordinate"]')
    assert refused.returncode == 2
    assert "Coordinate is not a watched folder; those are Micrographs, Coordinates" in refused.stderr
