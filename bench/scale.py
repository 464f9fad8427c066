"""Measures how the cost of a session grows with its length: a daemon without workers, at several lengths.

Usage: ``python bench/scale.py --micrographs 1000 10000 100000 --json bench/results/scale.json --plot
docs/images/scale.svg``.

The daemon is the real one (engine, watcher, ledger, committer, sinks, tables); in place of workers, what a worker would
send is made at once: tiny stacks, and rows as the sinks make them. Files come a few hundred at a time, as from a
microscope. Costs are processor time of the daemon's thread. Nothing is synced to the disk but for samples, of which
the time on the clock is told. Then the session is started once more, in a process of its own, and its phases are timed
to the end of the first scan. Each length has processes of its own.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import facts, load_average

from streamprep.committer import COST_SHARE, STATE_FOLDER, Committer
from streamprep.config import Config, load
from streamprep.engine import Engine
from streamprep.formats import mrc_output
from streamprep.hookspecs import ItemResult, RenderedRows, Staged
from streamprep.ledger import EntryRow, Ledger
from streamprep.model import Coordinates, Micrograph, Optics, Particles
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.watcher import Watcher
from streamprep.workers import ItemJob, Outcome, TableJob, with_rendered_rows

PER_FOLDER = 1000
AHEAD = 250
"""So many micrographs are written at a time."""
FREE_BYTES = 6 << 30
"""So much of the disk is left to others."""
BUCKETS = 20
SYNCED = 100
"""So many micrographs of each part are synced, for samples of the time that it takes."""

CONFIG = """[session]
watch = ["Micrographs", "Coordinates"]
settle_seconds = 0
rescan_seconds = 60
device = "cpu"
[extract]
box_size_px = 2
[particles.invert]
[sets]
further_tables = []
"""


# --- a session without workers ---------------------------------------------------------------------------------------


class Quick:
    """Stands where the workers do, and makes at once what they would send."""

    size = wanted = 8
    troubles = ()

    def __init__(self, config: Config, rows: int) -> None:
        self.sinks = [sink for made in load_plugins().hook.make_sinks(config=config) for sink in made]
        rng = np.random.default_rng(0)
        self._coordinates = Coordinates(
            rng.uniform(0, 4096, (rows, 2)).round(2),
            columns={"rlnAutopickFigureOfMerit": rng.uniform(0, 5, rows).round(4)},
        )
        self._pixels = np.zeros((rows, 1, 1), np.float32)
        self._first: tuple[str, tuple[Staged, ...]] | None = None
        self._files: dict[str, bytes] = {}

    def submit(self, job: TableJob | ItemJob) -> Future[Outcome]:
        """Make its outcome."""
        future: Future[Outcome] = Future()
        if isinstance(job, TableJob):
            digest = f"{job.identity.mtime_ns:x}"
            entry = EntryRow("coordinates", job.path.name, digest, len(self._pixels))
            future.set_result(Outcome("done", entries=(entry,)))
        else:
            future.set_result(Outcome("done", staged=self._stage(job), seconds=0.1))
        return future

    def _stage(self, job: ItemJob) -> tuple[Staged, ...]:
        """What a worker stages; once there is a first, that with another name, as all items have the same pixels."""
        job.folder.mkdir()
        if self._first is not None:
            (name, staged), own = self._first, job.item.name
            for path, data in self._files.items():
                (job.folder / path).write_bytes(data)
            return tuple(
                Staged(
                    tuple(replace(file, final=file.final.replace(name, own)) for file in part.files),
                    tuple(replace(rows, rendered=_renamed(rows.rendered, name, own)) for rows in part.rows),
                )
                for part in staged
            )
        optics = Optics(0.85)
        result = ItemResult(
            job.item,
            job.generation,
            Micrograph(job.name, self._pixels[0], optics),
            {"particle": self._coordinates},
            {"particle": Particles(self._pixels, optics, self._coordinates)},
        )
        staged = with_rendered_rows([sink.stage(result, job.folder) for sink in self.sinks], self.sinks, job.optics)
        if all(rows.rendered is not None for part in staged for rows in part.rows):  # it knows the optics group by now
            self._first = job.item.name, staged
            self._files = {path.name: path.read_bytes() for path in job.folder.iterdir()}
        return staged

    def cancel(self, job: Future[Outcome]) -> None:
        """Nothing to stop."""

    def check(self) -> None:
        """Nothing to look after."""

    def drain(self) -> None:
        """Nothing waits."""

    def stop(self) -> None:
        """Nothing to end."""


def _renamed(rendered: RenderedRows | None, name: str, own: str) -> RenderedRows:
    assert rendered is not None
    return replace(rendered, data=rendered.data.replace(name.encode(), own.encode()))


class Microscope:
    """Writes tiny micrographs and their coordinates."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        template = folder / "template.mrc"
        mrc_output.write(template, np.zeros((1, 4, 4), np.float32), pixel_size_angstrom=0.85, stack=False)
        self._data = template.read_bytes()
        template.unlink()
        self.written = 0

    def write(self, count: int) -> None:
        """Write so many more."""
        for number in range(self.written, self.written + count):
            name = f"{number // PER_FOLDER:04d}/mic_{number:06d}"
            for kind, data in ((f"Micrographs/{name}.mrc", self._data), (f"Coordinates/{name}.star", b"data_\n")):
                path = self._folder / kind
                if number % PER_FOLDER == 0:
                    path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        self.written += count


def open_engine(folder: Path, rows: int) -> Engine:
    """The session of a folder, as a daemon."""
    config = load(folder / "streamprep.toml")
    plugins = load_plugins()
    return Engine(config, plugins, resolve(config, plugins), executor=lambda config: Quick(config, rows))


class Times:
    """Times of parts of the daemon's work, without what is timed within them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._clock = clock
        self._within: list[float] = []

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Time a part."""
        self._within.append(0.0)
        before = self._clock()
        try:
            yield
        finally:
            taken = self._clock() - before
            self.seconds[part] += taken - self._within.pop()
            self.calls[part] += 1
            if self._within:
                self._within[-1] += taken

    def wrap(self, owner: type, name: str, part: str) -> None:
        """Time each call of a method."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.of(part):
                return method(*arguments, **options)

        setattr(owner, name, timed)


def resident_mb() -> float:
    """Resident memory that is this process's own [MB]."""
    said = Path("/proc/self/status").read_text(encoding="ascii")
    return int(said.partition("RssAnon:")[2].split()[0]) / 1024


def size_mb(path: Path) -> float:
    """Size of a file, with its write-ahead log [MB]."""
    files = (path, path.with_name(f"{path.name}-wal"))
    return sum(file.stat().st_size for file in files if file.exists()) / 1e6


# --- filling ---------------------------------------------------------------------------------------------------------

_SYNCS = {name: getattr(os, name) for name in ("fsync", "fdatasync")}


def sync(engine: Engine | None, on: bool) -> None:
    """Sync to the disk, or do not."""
    for name, real in _SYNCS.items():
        setattr(os, name, real if on else lambda _: None)
    if engine is not None:
        engine.ledger._db.execute(f"PRAGMA synchronous = {'FULL' if on else 'OFF'}")


def fill(folder: Path, micrographs: int, rows: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Process so many micrographs, and tell what each tenth of them cost."""
    (folder / "streamprep.toml").write_text(CONFIG)
    for name in ("Micrographs", "Coordinates"):
        (folder / name).mkdir()
    times = Times(time.thread_time)
    for owner, name, part in (
        (Watcher, "poll", "watch"),
        (Engine, "_take_in", "take in"),
        (Engine, "_look_for_removed", "removed"),
        (Engine, "_submit", "submit"),
        (Engine, "_collect", "collect"),
        (Quick, "submit", "worker"),
        (Ledger, "table_read", "table read"),
        (Committer, "commit", "commit"),
        (Engine, "_publish", "publish"),
        (Engine, "_show", "show"),
    ):
        times.wrap(owner, name, part)
    published: list[dict[str, Any]] = []
    _time_publications(published)
    sync(None, on=False)
    engine = open_engine(folder, rows)
    microscope = Microscope(folder)
    parts: list[dict[str, Any]] = []
    per_part = min(micrographs, max(AHEAD, micrographs // BUCKETS))
    done, begun = 0, time.perf_counter()
    try:
        engine.start()
        for goal in (*range(per_part, micrographs, per_part), micrographs):
            times.seconds.clear()
            sync(engine, on=False)
            before, first, was_done = time.thread_time(), time.perf_counter(), done
            synced: list[float] = []
            writing = 0.0
            while done < goal:
                if shutil.disk_usage(folder).free < FREE_BYTES:
                    raise SystemExit(f"{folder}: the disk is nearly full, at {done} micrographs")
                if microscope.written == done:
                    started = time.thread_time()
                    microscope.write(min(AHEAD, goal - done))
                    writing += time.thread_time() - started
                if not synced and goal - done <= SYNCED:
                    sync(engine, on=True)
                    synced = [time.perf_counter(), float(done)]
                engine.round()
                done = engine.ledger.job_counts().get("done", 0)
            waited = (time.perf_counter() - synced[0]) / (done - synced[1]) if synced else 0.0
            count = done - was_done
            whole = time.thread_time() - before - writing - times.seconds["worker"]
            parts.append(
                {
                    "done": done,
                    "cpu_ms": 1e3 * whole / count,
                    "parts_ms": {part: 1e3 * times.seconds[part] / count for part in sorted(times.seconds)},
                    "synced_wall_ms": 1e3 * waited,
                    "resident_mb": resident_mb(),
                }
            )
            rate = count / (time.perf_counter() - first)
            say(f"{done} micrographs, {1e3 * whole / count:.1f} ms each, {rate:.0f}/s, {resident_mb():.0f} MB")
    finally:
        sync(engine, on=False)
        engine.stop()
        while not engine.round():
            pass
        engine.finish()
        sync(None, on=True)
    state = folder / "streamprep_out" / STATE_FOLDER
    return {
        "seconds": time.perf_counter() - begun,
        "parts": parts,
        "publications": published,
        "ledger_mb": size_mb(state / "ledger.sqlite"),
        "rows_mb": {path.stem: path.stat().st_size / 1e6 for path in sorted((state / "rows").iterdir())},
    }


def _time_publications(published: list[dict[str, Any]]) -> None:
    publish = Committer._publish

    @functools.wraps(publish)
    def timed(self: Committer, name: str, count: int) -> None:
        cpu, wall = time.thread_time(), time.perf_counter()
        publish(self, name, count)
        published.append(
            {"table": name, "rows": count, "cpu_s": time.thread_time() - cpu, "wall_s": time.perf_counter() - wall}
        )

    Committer._publish = timed  # type: ignore[method-assign]


# --- starting --------------------------------------------------------------------------------------------------------


def start(folder: Path, rows: int) -> dict[str, Any]:
    """Start the session once more, to the end of its first scan, then scan again; seconds by phase."""
    begun = time.perf_counter(), time.process_time()
    clocks = {"wall": Times(time.perf_counter), "cpu": Times(time.process_time)}
    for times in clocks.values():
        for owner, name, part in (
            (Engine, "__init__", "open: configuration, sources"),
            (Ledger, "__init__", "open the ledger"),
            (Committer, "recover", "recover"),
            (Committer, "lost", "recover: are committed files there"),
            (Committer, "publish", "publish"),
            (Ledger, "join_all", "match anew"),
            (Watcher, "start", "begin to take events"),
            (Watcher, "poll", "scan"),
            (Engine, "_find_stacks_again", "look for named stacks"),
            (Engine, "_look_for_removed", "look for removed files"),
            (Engine, "_show", "show"),
        ):
            if hasattr(owner, name):
                times.wrap(owner, name, part)
    engine = open_engine(folder, rows)
    engine.start()
    while engine.watcher.scans_completed == 0:
        engine.round()
    whole = {"wall": time.perf_counter() - begun[0], "cpu": time.process_time() - begun[1]}
    memory = resident_mb()
    phases = {
        part: {"wall_s": clocks["wall"].seconds[part], "cpu_s": clocks["cpu"].seconds[part]}
        for part in clocks["wall"].seconds
    }
    scans, files = [], engine.ledger.file_counts()
    for _ in range(3):
        engine.watcher.rescan()
        goal, wall, cpu = engine.watcher.scans_completed + 1, time.perf_counter(), time.thread_time()
        while engine.watcher.scans_completed < goal:
            engine.watcher.poll()
        scans.append((time.thread_time() - cpu, time.perf_counter() - wall))
    assert engine.ledger.file_counts() == files, "a scan found what is known"
    engine.stop()
    engine.finish()
    return {
        "wall_s": whole["wall"],
        "cpu_s": whole["cpu"],
        "phases": phases,
        "resident_mb": memory,
        "scan_cpu_s": min(scans)[0],
        "scan_wall_s": min(scans)[1],
        "files": sum(files.values()),
    }


# --- the whole -------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What it ran on."""
    with tempfile.NamedTemporaryFile() as file:
        syncs = []
        for _ in range(50):
            file.write(bytes(500))
            file.flush()
            before = time.perf_counter()
            os.fdatasync(file.fileno())
            syncs.append(time.perf_counter() - before)
    return {
        **facts(Path(tempfile.gettempdir())),
        "sqlite": sqlite3.sqlite_version,
        "fdatasync_ms": 1e3 * sorted(syncs)[len(syncs) // 2],
        "load": load_average(),
    }


def of_length(folder: Path, micrographs: int, rows: int) -> dict[str, Any]:
    """All figures of one length, each phase in a process of its own."""
    found: dict[str, Any] = {"micrographs": micrographs, "rows": micrographs * rows}
    for phase in ("fill", "start"):
        words = [sys.executable, __file__, "--phase", phase, "--folder", str(folder)]
        words += ["--rows", str(rows), "--micrographs", str(micrographs)]
        told = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
        found[phase] = json.loads(told.splitlines()[-1])
    return found


def text_of(found: dict[str, Any]) -> str:
    """One length, for people."""
    fill, begin = found["fill"], found["start"]
    parts = fill["parts"]
    first, last = parts[0], parts[-1]
    star = _last(found)
    synced, logs = last["synced_wall_ms"], sum(fill["rows_mb"].values())
    lines = [
        f"{found['micrographs']} micrographs, {found['rows']} rows, in {fill['seconds']:.0f} s",
        f"  each: {first['cpu_ms']:.1f} ms of processor time at first, {last['cpu_ms']:.1f} ms at last",
        f"  each, on the clock and synced: {synced:.0f} ms",
        "  of which: " + ", ".join(f"{part} {spent:.2f}" for part, spent in last["parts_ms"].items()),
        f"  particles.star: {star['rows']} rows in {star['wall_s']:.1f} s, every {star['wall_s'] / COST_SHARE:.0f} s",
        f"  memory {last['resident_mb']:.0f} MB, ledger {fill['ledger_mb']:.0f} MB, row logs {logs:.0f} MB",
        f"  start: {begin['wall_s']:.1f} s ({begin['cpu_s']:.1f} s of processor time), {begin['resident_mb']:.0f} MB",
        f"  scan: {begin['scan_wall_s']:.1f} s ({begin['scan_cpu_s']:.1f} s of processor time)",
    ]
    lines += [
        f"    {part}: {spent['wall_s']:.2f} s ({spent['cpu_s']:.2f} s)" for part, spent in begin["phases"].items()
    ]
    return "\n".join(lines)


def table_of(results: list[dict[str, Any]]) -> str:
    """All lengths side by side, as docs/scale.md has them."""
    named: list[tuple[str, Callable[[dict[str, Any]], float], str]] = [
        ("processor time per micrograph, first part [ms]", lambda made: made["fill"]["parts"][0]["cpu_ms"], ".1f"),
        ("the same, last part [ms]", lambda made: made["fill"]["parts"][-1]["cpu_ms"], ".1f"),
        ("of which commit [ms]", lambda made: made["fill"]["parts"][-1]["parts_ms"]["commit"], ".2f"),
        ("on the clock, synced, last part [ms]", lambda made: made["fill"]["parts"][-1]["synced_wall_ms"], ".0f"),
        ("memory of the daemon [MB]", lambda made: made["fill"]["parts"][-1]["resident_mb"], ".0f"),
        ("last publication of `particles.star` [s]", lambda made: _last(made)["wall_s"], ".1f"),
        ("of which processor time [s]", lambda made: _last(made)["cpu_s"], ".1f"),
        ("ledger [MB]", lambda made: made["fill"]["ledger_mb"], ".0f"),
        ("row logs [MB]", lambda made: sum(made["fill"]["rows_mb"].values()), ".0f"),
        ("start, processor time [s]", lambda made: made["start"]["cpu_s"], ".1f"),
        ("start, on the clock [s]", lambda made: made["start"]["wall_s"], ".1f"),
        ("scan, processor time [s]", lambda made: made["start"]["scan_cpu_s"], ".2f"),
        ("scan, on the clock [s]", lambda made: made["start"]["scan_wall_s"], ".2f"),
        ("memory at the end of the start [MB]", lambda made: made["start"]["resident_mb"], ".0f"),
    ]
    lines = [
        "| | " + " | ".join(f"{made['micrographs']:,} micrographs" for made in results) + " |",
        "|---|" + "---|" * len(results),
    ]
    lines += [
        f"| {name} | " + " | ".join(format(value(made), form) for made in results) + " |" for name, value, form in named
    ]
    return "\n".join(lines)


def _last(found: dict[str, Any]) -> dict[str, Any]:
    """The last publication of the particles."""
    return [made for made in found["fill"]["publications"] if made["table"] == "particles.star"][-1]


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """What grows and what does not, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams["svg.fonttype"], mpl.rcParams["svg.hashsalt"] = "none", "scale"
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained")
    longest = results[-1]["fill"]
    done = [part["done"] for part in longest["parts"]]
    axes[0, 0].plot(done, [part["cpu_ms"] for part in longest["parts"]], label="all")
    axes[0, 0].plot(done, [part["parts_ms"]["commit"] for part in longest["parts"]], label="commit")
    axes[0, 0].set(title="processor time per micrograph [ms]", ylim=(0, None))
    axes[0, 0].legend()
    axes[0, 1].plot(done, [part["resident_mb"] for part in longest["parts"]])
    axes[0, 1].set(title="resident memory of the daemon [MB]")
    axes[0, 1].set_ylim(0, 1.2 * axes[0, 1].get_ylim()[1])
    lengths = [found["micrographs"] for found in results]
    axes[1, 0].loglog(
        lengths, [found["start"]["wall_s"] for found in results], "o-", label="start, to the end of a scan"
    )
    axes[1, 0].loglog(lengths, [found["start"]["scan_wall_s"] for found in results], "o-", label="scan")
    axes[1, 0].set(title="start and scan [s]", xlabel="micrographs")
    axes[1, 0].legend()
    axes[1, 1].loglog(lengths, [found["fill"]["ledger_mb"] for found in results], "o-", label="ledger [MB]")
    axes[1, 1].loglog(
        lengths, [sum(found["fill"]["rows_mb"].values()) for found in results], "o-", label="row logs [MB]"
    )
    axes[1, 1].loglog(
        lengths,
        [_last(found)["wall_s"] for found in results],
        "o-",
        label="publication of particles.star [s]",
    )
    axes[1, 1].set(title="disk, and publication", xlabel="micrographs")
    axes[1, 1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    path.write_text("\n".join(line.rstrip() for line in path.read_text(encoding="utf-8").splitlines()) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micrographs", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--rows", type=int, default=300, help="of each micrograph")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--plot", type=Path, help="where to draw them, as SVG (needs matplotlib)")
    parser.add_argument("--keep", type=Path, help="a folder to work in, and to keep")
    parser.add_argument("--show", type=Path, help="tell and draw the figures of an earlier run, from its JSON")
    parser.add_argument("--phase", choices=["fill", "start"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.phase == "fill":
        begun = time.monotonic()
        told = fill(
            given.folder,
            given.micrographs[0],
            given.rows,
            lambda line: print(f"[{time.monotonic() - begun:.0f} s] {line}", file=sys.stderr, flush=True),
        )
        print(json.dumps(told))
        return
    if given.phase == "start":
        print(json.dumps(start(given.folder, given.rows)))
        return
    if given.show is not None:
        report, lengths = json.loads(given.show.read_text(encoding="utf-8")), []
    else:
        report, lengths = {"machine": machine(), "results": []}, given.micrographs
    for micrographs in lengths:
        folder = Path(tempfile.mkdtemp(prefix="scale-")) if given.keep is None else given.keep / str(micrographs)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            report["results"].append(of_length(folder, micrographs, given.rows))
            print(text_of(report["results"][-1]), flush=True)
            if given.json is not None:  # after each length: the next may take long
                given.json.parent.mkdir(parents=True, exist_ok=True)
                given.json.write_text(json.dumps(report, indent=1) + "\n")
        finally:
            if given.keep is None:
                shutil.rmtree(folder)
    print(table_of(report["results"]))
    if given.plot is not None:
        plot(report["results"], given.plot)


if __name__ == "__main__":
    main()
