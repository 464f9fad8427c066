"""Times whole sessions: a daemon on real files, next to the disk and to RELION. Part of ``make bench``.

``python bench/end_to_end.py`` makes micrographs and runs, one after the other on an otherwise idle machine:

- ``streamprep once`` on all of them, with and without noise boxes, and once with the operations that RELION has, too;
- ``relion_preprocess`` on the same files, where it is installed;
- ``streamprep run`` beside a process that writes a micrograph every few seconds, with events and without;
- before and after, the calibration kernel, and sequential writes with fsync.

Rates are those between two moments of a session: when as many micrographs were done as there are workers, and when all
were. What comes before (the start, the first of each worker) and after is told apart. The numbers go to
``bench/results/end_to_end.json``, a plot beside it, and the tables of docs/benchmarks.md to standard output.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import mean, median
from typing import Any

import machine
import numpy as np

from streamprep import simulate
from streamprep.formats import mrc, mrc_output, star

PARTS = ("without_noise", "with_noise", "as_relion", "events", "polling")
TITLES = {
    "without_noise": "without noise boxes",
    "with_noise": "with noise boxes",
    "as_relion": "operations of RELION",
    "events": "events",
    "polling": "polling",
}
RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "end_to_end.svg"
CTF_TABLE = "micrographs_ctf.star"
MICROSCOPE = Path(__file__).with_name("microscope.py")
PROGRAM = (sys.executable, "-c", "from streamprep.cli import main; main()")
RELION = "relion_preprocess"

GOAL_PER_HOUR = 7200.0
GOAL_OF_DISK = 0.8
GOAL_OF_RELION = 6.0
GOAL_LATENCY_S = 3.0
GOAL_MEMORY_MB = 600.0
SETTLE_SECONDS, POLL_SECONDS = 1.0, 5.0
"""The defaults of the configuration."""

LOOK_SECONDS = 0.01
BURST_SECONDS = 0.05
"""What is done within so short a time of another was committed with it, and counts as done at the end of it."""
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
"""The kernel's processor times are whole multiples of this."""
PATIENCE_SECONDS = 120.0
"""A session that does nothing for so long is given up."""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    micrographs: int
    size_px: int
    particles: int
    box_px: int
    exposures: int
    """Micrographs of each session whose latency is measured; one more before them is not counted."""
    interval_s: float
    workers: int = 0
    """Worker processes; 0: as many as there are cores."""

    @property
    def background_px(self) -> int:
        """Radius outside which normalize takes a box for background."""
        return 3 * self.box_px // 8


def main() -> None:
    """Measure, write the results, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micrographs", type=int, default=20)
    parser.add_argument("--size", type=int, default=4096, help="side of the micrographs [px]")
    parser.add_argument("--particles", type=int, default=300, help="per micrograph")
    parser.add_argument("--box", type=int, default=256, help="side of the boxes [px]")
    parser.add_argument("--exposures", type=int, default=12, help="micrographs whose latency is measured")
    parser.add_argument("--interval", type=float, default=3.0, help="time between two of them [s]")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; as many as cores unless given")
    parser.add_argument("--quick", action="store_true", help="3 micrographs, 2 exposures, results not kept")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--folder", type=Path, help="make the files in this folder, on the disk to measure")
    parser.add_argument("--results", type=Path, help="folder of the results; bench/results unless given")
    parser.add_argument("--tables", action="store_true", help="only print the tables of the results that are there")
    said = parser.parse_args()
    kept = said.results or (None if said.quick else RESULTS)
    if said.tables:
        print(tables(json.loads(((kept or RESULTS) / "end_to_end.json").read_text(encoding="utf-8"))))
        return
    count, exposures = (3, 2) if said.quick else (said.micrographs, said.exposures)
    settings = Settings(count, said.size, said.particles, said.box, exposures, said.interval, said.workers)
    with tempfile.TemporaryDirectory(prefix="end_to_end-", dir=said.folder) as made:
        results = measure(settings, said.parts, Path(made))
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        (kept / "end_to_end.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        plot(results, PICTURE if said.results is None else kept / PICTURE.name)
    print(tables(results))


def measure(settings: Settings, parts: Sequence[str], folder: Path) -> dict[str, Any]:
    """Make the files, run the parts one after the other, and collect what they tell."""
    tell("making micrographs")
    acquisition = make_acquisition(folder / "acquisition", settings)
    stack_bytes = mrc.HEADER_BYTES + 4 * settings.particles * settings.box_px**2
    sessions = [name for name in PARTS[:3] if name in parts]
    latencies = [name for name in PARTS[3:] if name in parts]
    results: dict[str, Any] = {
        "machine": machine.facts(folder),
        "settings": vars(settings) | {"background_px": settings.background_px},
        "load_average": {"before": machine.load_average()},
        "disk": {"bytes": stack_bytes, "mb_per_s": disk(folder, stack_bytes)},
        "throughput": {},
        "relion": None,
        "latency": {},
    }
    kernels = results["calibration_ms"] = [calibration()]
    for name in sessions:
        tell(TITLES[name])
        results["throughput"][name] = throughput(name, acquisition, folder / name, settings)
        kernels.append(calibration())
    if "as_relion" in parts and shutil.which(RELION):
        tell(RELION)
        results["relion"] = relion(acquisition, folder / "relion", settings)
        kernels.append(calibration())
    for name in latencies:
        tell(f"latency, {TITLES[name]}")
        results["latency"][name] = latency(name, acquisition, folder / name, settings)
    results["disk"]["mb_per_s"] += disk(folder, stack_bytes)
    results["load_average"]["after"] = machine.load_average()
    relate(results)
    return results


def relate(results: dict[str, Any]) -> None:
    """Add what the numbers are of those of the disk and of RELION."""
    disk_bytes_per_s = 1e6 * median(results["disk"]["mb_per_s"])
    for told in results["throughput"].values():
        told["disk_micrographs_per_hour"] = round(3600 * disk_bytes_per_s / told["stack_bytes_per_micrograph"])
        told["share_of_disk"] = round(told["micrographs_per_hour"] / told["disk_micrographs_per_hour"], 3)
    ours, theirs = results["throughput"].get("as_relion"), results["relion"]
    if ours and theirs:
        theirs["ratio"] = round(ours["particles_per_core_second"] / theirs["particles_per_core_second"], 2)


# --- files -----------------------------------------------------------------------------------------------------------


def make_acquisition(folder: Path, settings: Settings) -> Path:
    """Micrographs, each with its own content, their coordinates and a CTF table.

    One exposure is simulated; the others are rolled along y, particles and all. A micrograph's particles are smaller
    than the boxes, so that there is room for all of them, and are moved inside where their box would cross the edge.
    """
    made = simulate.Acquisition(
        micrographs=settings.micrographs,
        size_px=settings.size_px,
        particles=settings.particles,
        box_size_px=max(16, 5 * settings.box_px // 8),
        carbon_every=0,
    )
    for name in ("Micrographs", "Coordinates"):
        (folder / name).mkdir(parents=True)
    exposure = simulate.take_exposure(made, 0)
    picks = exposure.picks_px
    if len(picks) < settings.particles:
        raise SystemExit(f"{settings.particles} particles do not fit into {settings.size_px}² pixels")
    lowest, highest = settings.box_px // 2, settings.size_px - 1 - (settings.box_px + 1) // 2
    for index, name in enumerate(names_of(settings.micrographs)):
        shift = 37 * index % settings.size_px
        place, pixels = folder / "Micrographs" / f"{name}.mrc", np.roll(exposure.pixels, shift, axis=0)
        mrc_output.write(place, pixels[None], pixel_size_angstrom=made.pixel_size_angstrom, stack=True)
        x, y = np.clip([picks[:, 0], (picks[:, 1] + shift) % settings.size_px], lowest, highest)
        text = star.loop_head("", ("rlnCoordinateX", "rlnCoordinateY")) + star.rows_text([x.tolist(), y.tolist()])
        (folder / "Coordinates" / f"{name}.star").write_text(text, encoding="utf-8")
    write_ctf_table(folder, settings.micrographs)
    return folder


def names_of(count: int) -> list[str]:
    """Names of so many micrographs."""
    return [f"mic_{index:04d}" for index in range(count)]


def write_ctf_table(folder: Path, count: int) -> None:
    """A table of so many micrographs, with a CTF of its own for each, as RELION and streamprep read it."""
    made = simulate.Acquisition()
    optics: dict[str, list[Any]] = {
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnOpticsGroup": [1],
        "rlnMicrographPixelSize": [made.pixel_size_angstrom],
        "rlnVoltage": [made.voltage_kv],
        "rlnSphericalAberration": [made.spherical_aberration_mm],
        "rlnAmplitudeContrast": [made.amplitude_contrast],
    }
    rows = []
    for index, name in enumerate(names_of(count)):
        ctf = simulate.exposure_ctf(made, index)
        defocus = ctf.defocus_u_angstrom, ctf.defocus_v_angstrom, ctf.defocus_angle_deg
        rows.append((f"Micrographs/{name}.mrc", 1, *defocus))
    columns = ("rlnMicrographName", "rlnOpticsGroup", *star.CTF_COLUMNS)
    version = "\n# version 30001\n"
    text = f"{version}{star.table_text('optics', optics)}\n{version}{star.loop_head('micrographs', columns)}"
    (folder / CTF_TABLE).write_text(text + star.rows_text(list(zip(*rows, strict=True))), encoding="utf-8")


def write_configuration(name: str, watched: Path, folder: Path, settings: Settings) -> Path:
    """The configuration of one part's session."""
    flip, noise = name != "as_relion", name == "with_noise"
    lines = [
        "[session]",
        f'watch = ["{watched}/Micrographs", "{watched}/Coordinates"]',
        'device = "cpu"',
        f"workers = {settings.workers}",
        *(['events = "off"'] if name == "polling" else []),
        *(["[ctf]", f'table = "{watched}/{CTF_TABLE}"'] if flip else []),
        *(["[coordinates.pick_noise]"] if noise else []),
        "[extract]",
        f"box_size_px = {settings.box_px}",
        "[particles.remove_dust]",
        'fill = "matched"',  # as RELION does it
        "[particles.normalize]",
        'method = "ramp"',
        f"background_radius_px = {settings.background_px}",
        *(["[particles.phase_flip]"] if flip else []),
        "[particles.invert]",
    ]
    folder.mkdir()
    path = folder / "streamprep.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def calibration() -> float:
    """Processor time of the calibration kernel [ms]."""
    return round(1e3 * machine.calibration(time.process_time), 1)


def disk(folder: Path, size_bytes: int) -> list[float]:
    """Speed of sequential writes with fsync [MB/s], of files as large as a micrograph's stack."""
    os.sync()
    return [round(speed / 1e6, 1) for speed in machine.disk_speed(folder, size_bytes)]


# --- processes -------------------------------------------------------------------------------------------------------


def processes_below(parent: int) -> dict[int, str]:
    """Children of a process: their identifiers and command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(state[1]) == parent:
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def processor_seconds(processes: Sequence[int]) -> float:
    """Processor time of processes, and of their children that have ended [s]."""
    ticks = 0
    for process in processes:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(map(int, state[11:15]))
    return ticks * TICK_SECONDS


def machine_busy_seconds() -> float:
    """Processor time of all that ran on this machine, and of what was taken from it by others of its host [s]."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) * TICK_SECONDS


@dataclass(frozen=True)
class Moment:
    """What a session had used when one of its micrographs was done."""

    at: float
    processor_s: float
    busy_s: float


class Daemon:
    """A `streamprep` process: what it says, and what it and its workers use. To be used with ``with``."""

    def __init__(self, verb: str, configuration: Path) -> None:
        self._log = (configuration.parent / "stderr.txt").open("wb")
        self.started = time.monotonic()
        self._process = subprocess.Popen(  # noqa: S603
            [*PROGRAM, verb, str(configuration), "--log-json"], stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self.peaks: dict[int, int] = {}
        self.roles: dict[int, str] = {self._process.pid: "daemon"}

    def events(self) -> Iterator[dict[str, Any]]:
        """What it says, as it says it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)

    def look(self) -> Moment:
        """What it has used so far."""
        own = self._process.pid
        below = processes_below(own)
        self.roles.update((number, "worker") for number, words in below.items() if "spawn_main" in words)
        for number in self.roles:
            self.peaks[number] = max(self.peaks.get(number, 0), machine.peak_memory(number))
        return Moment(time.monotonic(), processor_seconds([own, *below]), machine_busy_seconds())

    def peak_memory_mib(self) -> dict[str, list[int]]:
        """Most memory of each process, by what it is [MiB]."""
        told: dict[str, list[int]] = {"daemon": [], "worker": []}
        for number, role in self.roles.items():
            told[role].append(round(self.peaks[number] / 2**20))
        return told

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        with self._log, self._process:  # closes its pipe and waits for it
            self._process.kill()

    def stop(self) -> None:
        """End it as a user does."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> float:
        """Wait for its end; the processor time of it and its workers, from the first to the last moment [s].

        It must have ended well: SystemExit with what it said otherwise.
        """
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = code = os.waitstatus_to_exitcode(status)
        if code:
            raise SystemExit(f"streamprep ended with {code}: {Path(self._log.name).read_text(encoding='utf-8')}")
        return used.ru_utime + used.ru_stime


# --- throughput ------------------------------------------------------------------------------------------------------


def throughput(name: str, acquisition: Path, folder: Path, settings: Settings) -> dict[str, Any]:
    """Run ``streamprep once`` on all micrographs."""
    configuration = write_configuration(name, acquisition, folder, settings)
    os.sync()
    done: list[Moment] = []
    operations: dict[str, list[float]] = {}
    rows: Mapping[str, int] = {}
    with Daemon("once", configuration) as daemon:
        for event in daemon.events():
            if event["event"] == "item_finished":
                require_done(event)
                done.append(daemon.look())
            elif event["event"] == "operation_finished":
                operations.setdefault(event["operation"], []).append(event["seconds"])
            elif event["event"] == "run_stopped":
                rows = event["rows"]
        processor_s = daemon.wait()
    ended = time.monotonic()
    made = len(done)
    particles = sum(rows.get(f"{kind}.star", 0) for kind in ("particles", "noise"))
    stacks = sum(path.stat().st_size for path in (folder / "streamprep_out").rglob("*.mrcs"))
    shutil.rmtree(folder)

    peaks = daemon.peak_memory_mib()
    before = min(len(peaks["worker"]), made - 1)
    while before < made - 1 and done[before].at - done[before - 1].at < BURST_SECONDS:
        before += 1
    first, last = done[before - 1], done[-1]
    steady, wall = made - before, max(last.at - first.at, TICK_SECONDS)
    used = max(last.processor_s - first.processor_s, TICK_SECONDS)
    per_micrograph = particles / made
    return {
        "micrographs": made,
        "particles": particles,
        "stack_bytes_per_micrograph": stacks // made,
        "micrographs_per_hour": round(3600 * steady / wall),
        "particles_per_second": round(per_micrograph * steady / wall, 1),
        "particles_per_core_second": round(per_micrograph * steady / used, 1),
        "processor_s_per_micrograph": round(used / steady, 3),
        "micrographs_per_hour_on_idle_cores": round(3600 * len(os.sched_getaffinity(0)) * steady / used),
        "cores_used": round(used / wall, 2),
        "cores_of_others": round((last.busy_s - first.busy_s - used) / wall, 2),
        "peak_memory_mib": peaks,
        "operation_ms": {name: round(1e3 * mean(times), 1) for name, times in operations.items()},
        "whole": {
            "wall_s": round(ended - daemon.started, 2),
            "until_first_s": round(done[0].at - daemon.started, 2),
            "after_last_s": round(ended - last.at, 2),
            "processor_s": round(processor_s, 2),
            "done_at_s": [round(moment.at - daemon.started, 2) for moment in done],
        },
    }


def require_done(event: Mapping[str, Any]) -> None:
    """End the benchmark where an item was not done."""
    if event["state"] != "done":
        raise SystemExit(f"{event['item']}: {event['state']}: {event['reason']}")


def relion(acquisition: Path, folder: Path, settings: Settings) -> dict[str, Any]:
    """Run relion_preprocess, one process, on the same micrographs."""
    (folder / "Coordinates").mkdir(parents=True)
    (folder / "Micrographs").symlink_to(acquisition / "Micrographs")
    (folder / "Coordinates" / "Micrographs").symlink_to(acquisition / "Coordinates")  # beneath it RELION looks for them
    write_ctf_table(folder, settings.micrographs)
    words = ["--i", CTF_TABLE, "--coord_dir", "Coordinates/", "--coord_suffix", ".star"]
    words += ["--part_dir", "Particles/"]
    words += ["--part_star", "particles.star", "--extract", "--extract_size", str(settings.box_px), "--norm"]
    words += ["--bg_radius", str(settings.background_px), "--white_dust", "3.5", "--black_dust", "3.5"]
    words += ["--invert_contrast"]
    os.sync()
    busy, before = machine_busy_seconds(), time.monotonic()
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen([RELION, *words], cwd=folder, stdout=said, stderr=said)  # noqa: S603
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall, busy = time.monotonic() - before, machine_busy_seconds() - busy
    if process.returncode:
        raise SystemExit((folder / "said.txt").read_text(encoding="utf-8"))
    particles = sum(mrc.read_header(path).nz for path in (folder / "Particles" / "Micrographs").glob("*.mrcs"))
    version = subprocess.run([RELION, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
    shutil.rmtree(folder)
    processor_s = used.ru_utime + used.ru_stime
    return {
        "version": version.partition("\n")[0].partition(":")[2].strip(),
        "particles": particles,
        "wall_s": round(wall, 2),
        "processor_s": round(processor_s, 2),
        "particles_per_second": round(particles / wall, 1),
        "particles_per_core_second": round(particles / processor_s, 1),
        "cores_of_others": round((busy - processor_s) / wall, 2),
    }


# --- latency ---------------------------------------------------------------------------------------------------------


def latency(name: str, acquisition: Path, folder: Path, settings: Settings) -> dict[str, Any]:
    """Run ``streamprep run`` beside a microscope; the time from the last byte written to the published rows.

    The first micrograph, which finds workers that have done nothing yet, is told apart.
    """
    watched = folder.with_name(f"{name}-watched")
    names = names_of(settings.exposures + 1)
    exposures = []
    for source, made in zip(cycle(names_of(settings.micrographs)), names, strict=False):
        parts = ("Micrographs/{}.mrc", "Coordinates/{}.star")
        exposures.append([(f"{acquisition}/{part.format(source)}", f"{watched}/{part.format(made)}") for part in parts])
    for part in ("Micrographs", "Coordinates"):
        (watched / part).mkdir(parents=True)
    write_ctf_table(watched, len(names))
    configuration = write_configuration(name, watched, folder, settings)
    os.sync()
    done: dict[str, float] = {}
    with Daemon("run", configuration) as daemon, Microscope(settings.interval_s, exposures) as microscope:
        events = daemon.events()
        while next(events)["event"] != "run_started":
            pass

        def listen() -> None:
            for event in events:
                if event["event"] == "item_finished":
                    done[Path(event["item"]).stem] = time.monotonic()

        listener = threading.Thread(target=listen)
        listener.start()
        microscope.start()
        published = publications(folder / "streamprep_out" / "particles.star", names)
        closed = microscope.closed()
        daemon.stop()
        listener.join()
        daemon.wait()
    shutil.rmtree(folder)
    shutil.rmtree(watched)
    first, *spent = [published[made] - at for made, at in zip(names, closed, strict=True)]
    _, *committed = [done[made] - at for made, at in zip(names, closed, strict=True)]
    return {
        "interval_s": settings.interval_s,
        "first_s": round(first, 2),
        "median_s": round(median(spent), 2),
        "p95_s": round(percentile(spent, 0.95), 2),
        "max_s": round(max(spent), 2),
        "median_until_committed_s": round(median(committed), 2),
        "goal_s": SETTLE_SECONDS + POLL_SECONDS + 1.0 if name == "polling" else GOAL_LATENCY_S,
        "all_s": [round(seconds, 2) for seconds in spent],
    }


class Microscope:
    """A process that writes exposures; see bench/microscope.py. To be used with ``with``."""

    def __init__(self, interval_s: float, exposures: Sequence[Sequence[tuple[str, str]]]) -> None:
        self._told = json.dumps([interval_s, exposures])
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, MICROSCOPE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Microscope:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # closes its pipes and waits for it
            self._process.kill()

    def start(self) -> None:
        """Begin to expose."""
        assert self._process.stdin is not None
        with self._process.stdin as channel:
            channel.write(self._told)

    def closed(self) -> list[float]:
        """When the last file of each exposure was closed, once all are."""
        assert self._process.stdout is not None
        return [float(line) for line in self._process.stdout]


def publications(table: Path, names: Sequence[str]) -> dict[str, float]:
    """When a published table first had rows of each micrograph."""
    published: dict[str, float] = {}
    version, give_up = None, time.monotonic() + PATIENCE_SECONDS
    while len(published) < len(names):
        time.sleep(LOOK_SECONDS)
        now = time.monotonic()
        if now > give_up:
            raise SystemExit(f"{len(names) - len(published)} micrographs were not published")
        try:
            state = table.stat()
        except FileNotFoundError:
            continue
        if version != (state.st_ino, state.st_mtime_ns):
            version, give_up = (state.st_ino, state.st_mtime_ns), now + PATIENCE_SECONDS
            text = table.read_bytes()
            published |= {made: now for made in names if made not in published and f"/{made}.mrc".encode() in text}
    return published


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that this share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


# --- telling ---------------------------------------------------------------------------------------------------------


def tell(what: str) -> None:
    """Say what is being done."""
    print(f"{time.strftime('%X')} {what} …", file=sys.stderr, flush=True)


COLUMNS = (
    "session",
    "micrographs/h",
    "of the disk alone",
    "boxes/s",
    "processor time per micrograph",
    "micrographs/h if all cores had only this to do",
    "cores used, by others",
    "peak memory of each worker, of the daemon",
    "first done after",
)


def tables(results: Mapping[str, Any]) -> str:
    """The results in Markdown."""
    known, settings, speeds = results["machine"], results["settings"], results["disk"]["mb_per_s"]
    kernels, load = results["calibration_ms"], results["load_average"]
    versions = ", ".join(f"{name} {known[name]}" for name in ("python", "numpy", "ducc0", "streamprep"))
    size, box = settings["size_px"], settings["box_px"]
    hardware = f"{known['cpu']}, {known['cores']} cores, {known['memory_gib']} GiB, {known['file_system']}"
    head = [
        f"{settings['micrographs']} micrographs of {size} × {size} px, {settings['particles']} particles of",
        f"{box} × {box} px each. {hardware}, {known['kernel']}, {versions}.",
        f"Load average: {load['before']} before, {load['after']} after; calibration kernel: {min(kernels):.0f} to",
        f"{max(kernels):.0f} ms of processor time; sequential writes of {results['disk']['bytes'] / 1e6:.1f} MB with",
        f"fsync: {median(speeds):.0f} MB/s, {min(speeds):.0f} to {max(speeds):.0f}.",
    ]
    lines = textwrap.wrap(" ".join(head), 120)
    if results["throughput"]:
        lines += ["", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name, told in results["throughput"].items():
        peaks = told["peak_memory_mib"]
        cells = (
            TITLES[name],
            told["micrographs_per_hour"],
            told["disk_micrographs_per_hour"],
            f"{told['particles_per_second']:.0f}",
            f"{told['processor_s_per_micrograph']:.2f} s",
            told["micrographs_per_hour_on_idle_cores"],
            f"{told['cores_used']:.2f}, {told['cores_of_others']:.2f}",
            f"{', '.join(map(str, (*peaks['worker'], *peaks['daemon'])))} MiB",
            f"{told['whole']['until_first_s']:.1f} s",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    ours, theirs = results["throughput"].get("as_relion"), results["relion"]
    if ours and theirs:
        lines += [
            "",
            "| extraction, dust, ramp, inversion | particles/s per core | cores used by others |",
            "|---|---|---|",
        ]
        for name, told in ((f"RELION {theirs['version']}, one process", theirs), ("streamprep", ours)):
            times = told["particles_per_core_second"] / theirs["particles_per_core_second"]
            lines.append(
                f"| {name} | {told['particles_per_core_second']:.0f} ({times:.1f} ×) | {told['cores_of_others']:.2f} |"
            )
    if results["latency"]:
        lines += [
            "",
            "| latency | median | until committed | 95 % | greatest | the first | goal for 95 % |",
            "|---|---|---|---|---|---|---|",
        ]
    for name, told in results["latency"].items():
        spent = " | ".join(
            f"{told[key]:.2f} s" for key in ("median_s", "median_until_committed_s", "p95_s", "max_s", "first_s")
        )
        lines.append(f"| {TITLES[name]} | {spent} | {told['goal_s']:g} s |")
    lines += [
        "",
        "| goal | to reach | measured |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in goals(results)),
    ]
    return "\n".join(lines)


def goals(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What is to be reached, and what was."""
    sessions = results["throughput"]
    if "without_noise" in sessions:
        told = sessions["without_noise"]
        least = min(GOAL_PER_HOUR, GOAL_OF_DISK * told["disk_micrographs_per_hour"])
        yield "micrographs/h, without noise boxes", f"≥ {least:.0f}", str(told["micrographs_per_hour"])
    if "ratio" in (results["relion"] or {}):
        yield "particles/s per core, of RELION's", f"≥ {GOAL_OF_RELION:g} ×", f"{results['relion']['ratio']:.1f} ×"
    for name, told in results["latency"].items():
        yield f"latency of 95 %, {TITLES[name]}", f"≤ {told['goal_s']:g} s", f"{told['p95_s']:.1f} s"
    if sessions:
        most = max(peak for told in sessions.values() for peak in told["peak_memory_mib"]["worker"])
        yield "peak memory of a worker", f"< {GOAL_MEMORY_MB:g} MB", f"{most * 1.048576:.0f} MB"


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Rates, particles per core, latencies: one panel each, goals dashed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "end_to_end"
    from matplotlib import pyplot

    figure, (rates, cores, delays) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    sessions = results["throughput"]
    names = [TITLES[name] for name in sessions]
    rates.barh(names, [told["micrographs_per_hour"] for told in sessions.values()], label="measured", color="tab:blue")
    idle = [told["micrographs_per_hour_on_idle_cores"] for told in sessions.values()]
    rates.plot(idle, names, "o", color="tab:orange", label="processor time on idle cores")
    written = [GOAL_OF_DISK * told["disk_micrographs_per_hour"] for told in sessions.values()]
    rates.plot(written, names, "D", color="tab:green", label="80 % of the disk")
    rates.axvline(GOAL_PER_HOUR, color="black", linestyle="dashed", label="goal")
    rates.set(xlabel="micrographs/h", xlim=(0, None))
    rates.invert_yaxis()
    rates.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)

    both = {"streamprep": sessions.get("as_relion"), "RELION": results["relion"]}
    shown = {name: told["particles_per_core_second"] for name, told in both.items() if told}
    cores.bar(list(shown), list(shown.values()), color="tab:blue")
    if "RELION" in shown:
        cores.axhline(GOAL_OF_RELION * shown["RELION"], color="black", linestyle="dashed")
    cores.set(ylabel="particles/s per core of processor time", ylim=(0, None))

    for name, told in results["latency"].items():
        (line,) = delays.step(
            [0, *sorted(told["all_s"])], np.linspace(0, 1, len(told["all_s"]) + 1), where="post", label=TITLES[name]
        )
        delays.axvline(told["goal_s"], color=line.get_color(), linestyle="dashed")
    delays.set(xlabel="from the last byte to the published rows [s]", ylabel="share of micrographs", xlim=(0, None))
    if results["latency"]:
        delays.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
