"""A long session of tiny micrographs, with kills and clock jumps: what grows, and is everything there once?

Usage: ``python -m tests.reliability.soak --micrographs 100000``; see ``--help``.

The first fifth of the micrographs is processed by daemons that are killed; the rest by one, of which memory,
descriptors and times are taken. At last it is killed, too, and started once more.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamprep.formats import mrc_output
from tests.outputs import check_invariants, read_table
from tests.procfs import children_of

SIZE_PX, BOX_PX = 64, 8
AHEAD = 1000
"""So many micrographs lie there that are not done."""
KILLED_SHARE = 0.2
WARM_UP_SHARE = 0.2
"""Of the life of the last daemon, that says nothing about slopes."""
PER_FOLDER = 1000
MOST_MB_PER_10000 = 1.0
STEADY = 15_000
"""From so many micrographs on the slope says something."""

CONFIG = f"""[session]
watch = ["Micrographs", "Coordinates"]
settle_seconds = 0.2
rescan_seconds = 20
[extract]
box_size_px = {BOX_PX}
[particles.invert]
"""


@dataclass
class Sample:
    """The processes at one moment."""

    done: int
    daemon_mb: float
    workers_mb: float
    """Of all of them."""
    descriptors: int
    """Of the daemon."""


@dataclass
class Report:
    """What a soak found."""

    micrographs: int
    rows: int
    kills: int
    seconds: float = 0.0
    daemon_mb_per_10000: float = 0.0
    workers_mb_per_10000: float = 0.0
    descriptors_per_10000: float = 0.0
    start_seconds: float = 0.0
    """Of the last start, to the end of its first scan."""
    samples: list[Sample] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)


class Microscope(threading.Thread):
    """Writes micrographs and their picks, not too far ahead of what is done."""

    def __init__(self, folder: Path, micrographs: int, picks: int) -> None:
        super().__init__(daemon=True)
        self._folder, self._micrographs, self._picks = folder, micrographs, picks
        self.written = self.done = 0
        template = folder / "template.mrc"
        pixels = np.random.default_rng(0).normal(size=(SIZE_PX, SIZE_PX)).astype(np.float32)
        mrc_output.write(template, pixels[None], pixel_size_angstrom=2.0, stack=True)
        self._head, self._pixels = template.read_bytes()[:1024], pixels
        template.unlink()

    def run(self) -> None:
        """Write all of them."""
        rng = np.random.default_rng(1)
        for number in range(self._micrographs):
            while number > self.done + AHEAD:
                time.sleep(0.05)
            name = f"{number // PER_FOLDER:04d}/mic_{number:06d}"
            pixels = self._pixels + np.float32(number)  # each its own
            self._write("Micrographs", f"{name}.mrc", self._head + pixels.tobytes())
            xy = rng.uniform(BOX_PX, SIZE_PX - BOX_PX, (self._picks, 2))
            rows = "".join(f"{x:.2f} {y:.2f}\n" for x, y in xy.tolist())
            text = f"data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n{rows}"
            self._write("Coordinates", f"{name}.star", text.encode())
            self.written = number + 1

    def _write(self, kind: str, name: str, data: bytes) -> None:
        path = self._folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class Daemon:
    """The program, as a process of its own."""

    def __init__(self, folder: Path, notes: Path) -> None:
        self._folder = folder
        self._log = (folder / "daemon.log").open("ab")
        command = [sys.executable, "-m", "tests.reliability.soak_daemon", str(notes), "run", "--quiet"]
        config = str(folder / "streamprep.toml")
        root = Path(__file__).resolve().parents[2]
        self.process = subprocess.Popen([*command, config], cwd=root, stdout=self._log, stderr=self._log)

    def done(self) -> int:
        """Items that are done, by what it tells of itself."""
        try:
            told = json.loads((self._folder / "streamprep_out/.streamprep/status.json").read_text())
            return int(told["jobs"].get("done", 0))
        except (OSError, ValueError, KeyError):
            return 0

    def sample(self, done: int) -> Sample:
        """Memory and descriptors now."""
        main = self.process.pid
        descriptors = len(list(Path(f"/proc/{main}/fd").iterdir()))
        return Sample(done, resident_mb(main), sum(map(resident_mb, children_of(main))), descriptors)

    def end(self, number: signal.Signals) -> None:
        """End it by a signal, and wait."""
        self.process.send_signal(number)
        self.process.wait(timeout=300)
        self._log.close()


def resident_mb(process: int) -> float:
    """Resident memory that is a process's own [MB]."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in lines if line.startswith("RssAnon")]
    return int(found[0]) / 1024 if found else 0.0


def slope(samples: Sequence[Sample], name: str) -> float:
    """Growth of a figure per 10,000 items, by least squares after the warm-up."""
    first, last = samples[0].done, samples[-1].done
    kept = [sample for sample in samples if sample.done >= first + WARM_UP_SHARE * (last - first)]
    done = np.array([sample.done for sample in kept], dtype=float)
    values = np.array([getattr(sample, name) for sample in kept], dtype=float)
    return float(np.polyfit(done, values, 1)[0] * 10_000) if np.ptp(done) > 0 else 0.0


def soak(folder: Path, micrographs: int, picks: int, kills: int, *, say: Any = print) -> Report:
    """Run one in an empty folder, and check what it left.

    Raises
    ------
    AssertionError
        Something is lost, doubled or damaged, or does not come to its end.
    """
    started, chance = time.monotonic(), random.Random(3)
    (folder / "streamprep.toml").write_text(CONFIG)
    for name in ("Micrographs", "Coordinates"):
        (folder / name).mkdir()
    notes = folder / "notes.jsonl"
    microscope = Microscope(folder, micrographs, picks)
    microscope.start()
    for kill in range(kills):
        daemon = Daemon(folder, notes)
        goal = int(KILLED_SHARE * micrographs * (kill + 1) / kills)
        until_done(daemon, microscope, goal, say=say)
        time.sleep(chance.uniform(0, 0.5))
        daemon.end(signal.SIGKILL)
    notes.write_text("")
    daemon = Daemon(folder, notes)
    samples = until_done(daemon, microscope, micrographs, say=say)
    daemon.end(signal.SIGKILL)
    told = [json.loads(line) for line in notes.read_text().splitlines()]

    notes.write_text("")
    daemon = Daemon(folder, notes)
    deadline = time.monotonic() + 600
    while not any('"scan"' in line for line in notes.read_text().splitlines()):
        assert time.monotonic() < deadline, "the last start did not come to the end of a scan"
        time.sleep(0.05)
    (line,) = [line for line in notes.read_text().splitlines() if '"scan"' in line][:1]
    daemon.end(signal.SIGTERM)
    report = Report(micrographs, micrographs * picks, kills + 1, time.monotonic() - started)
    report.samples, report.notes = samples, told
    report.start_seconds = json.loads(line)["alive_seconds"]
    report.daemon_mb_per_10000 = slope(samples, "daemon_mb")
    report.workers_mb_per_10000 = slope(samples, "workers_mb")
    report.descriptors_per_10000 = slope(samples, "descriptors")

    output = folder / "streamprep_out"
    check_invariants(output)
    _, rows = read_table(output / "particles.star")
    assert len(rows) == micrographs * picks, f"{len(rows)} rows of {micrographs * picks}"
    assert rows["rlnImageName"].is_unique
    assert rows["rlnMicrographName"].nunique() == micrographs
    return report


def until_done(daemon: Daemon, microscope: Microscope, goal: int, *, say: Any) -> list[Sample]:
    """Wait until so many items are done, and take samples."""
    samples: list[Sample] = []
    moved, told = time.monotonic(), time.monotonic()
    while microscope.done < goal:
        assert daemon.process.poll() is None, f"the daemon ended: {daemon.process.returncode}; see daemon.log"
        done = daemon.done()
        if done > microscope.done:
            microscope.done, moved = done, time.monotonic()
            samples.append(daemon.sample(done))
        assert time.monotonic() - moved < 300, f"nothing was done for 5 minutes, at {microscope.done}"
        if time.monotonic() - told > 10:
            told = time.monotonic()
            last = samples[-1] if samples else daemon.sample(0)
            say(f"{microscope.done} done, daemon {last.daemon_mb:.0f} MB, {last.descriptors} descriptors")
        time.sleep(0.25)
    return samples


def means(notes: Sequence[Mapping[str, Any]], what: str) -> tuple[float, float]:
    """Mean seconds of a kind of work in the first and the last fifth of its notes."""
    seconds = [float(note["seconds"]) for note in notes if note["what"] == what]
    share = max(1, len(seconds) // 5)
    return (float(np.mean(seconds[:share])), float(np.mean(seconds[-share:]))) if seconds else (0.0, 0.0)


def text_of(report: Report) -> str:
    """The report for people."""
    lines = [
        f"{report.micrographs} micrographs, {report.rows} rows, {report.kills} kills: nothing lost, nothing twice",
        f"{report.seconds:.0f} s, {report.micrographs / report.seconds * 3600:.0f} micrographs an hour",
        f"growth per 10,000 items: daemon {report.daemon_mb_per_10000:+.2f} MB",
        f"  workers {report.workers_mb_per_10000:+.2f} MB, descriptors {report.descriptors_per_10000:+.2f}",
        f"last start: {report.start_seconds:.1f} s to the end of its first scan",
    ]
    for what in ("commit", "scan", "publish"):
        first, last = means(report.notes, what)
        lines.append(f"{what}: {1000 * first:.1f} ms in the first fifth, {1000 * last:.1f} ms in the last")
    return "\n".join(lines)


def plot(report: Report, path: Path) -> None:
    """Memory, descriptors and times against the number of items, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams["svg.fonttype"], mpl.rcParams["svg.hashsalt"] = "none", "soak"
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained")
    done = [sample.done for sample in report.samples]
    axes[0, 0].plot(done, [sample.daemon_mb for sample in report.samples], label="daemon")
    if any(sample.workers_mb for sample in report.samples):
        axes[0, 0].plot(done, [sample.workers_mb for sample in report.samples], label="workers")
    axes[0, 0].set(title="resident memory of its own [MB]")
    axes[0, 0].set_ylim(0, 1.2 * axes[0, 0].get_ylim()[1])
    axes[0, 0].legend()
    axes[0, 1].plot(done, [sample.descriptors for sample in report.samples])
    axes[0, 1].set(title="descriptors of the daemon", ylim=(0, None))
    commits = [1000 * note["seconds"] for note in report.notes if note["what"] == "commit"]
    axes[1, 0].plot(np.linspace(done[0], done[-1], len(commits)), commits, ".", markersize=3)
    axes[1, 0].set(title="commit, mean of 100 [ms]", ylim=(0, None), xlabel="micrographs done")
    axes[1, 1].set(xlabel="files, or rows / 100")
    scans = [(note["files"], note["seconds"]) for note in report.notes if note["what"] == "scan"]
    axes[1, 1].plot(*zip(*scans, strict=True), ".", markersize=3, label="scan")
    published = [
        (note["rows"] / 100, note["seconds"]) for note in report.notes if note["what"] == "publish" and note["rows"]
    ]
    axes[1, 1].plot(*zip(*published, strict=True), ".", markersize=3, label="publication of a table")
    axes[1, 1].set(title="scans and publications [s]", ylim=(0, None))
    axes[1, 1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micrographs", type=int, default=100_000)
    parser.add_argument("--picks", type=int, default=100, help="in each micrograph")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="an empty folder to work in, and to keep")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--plot", type=Path, help="where to draw them, as SVG (needs matplotlib)")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-")) if given.folder is None else given.folder
    try:
        report = soak(folder, given.micrographs, given.picks, given.kills)
    finally:
        if given.folder is None:
            shutil.rmtree(folder)
    print(text_of(report))
    if given.json is not None:
        given.json.write_text(json.dumps(asdict(report)))
    if given.plot is not None:
        plot(report, given.plot)
    if given.micrographs >= STEADY and report.daemon_mb_per_10000 >= MOST_MB_PER_10000:
        sys.exit(f"the daemon's memory grows by {MOST_MB_PER_10000:g} MB or more per 10,000 items")


if __name__ == "__main__":
    main()
