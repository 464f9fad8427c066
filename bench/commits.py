"""What the daemon needs for each micrograph that is committed, and to publish a large table.

Usage: ``python bench/commits.py [--rows 10000000] [FOLDER]``. Micrographs of 100 and 300 particles are staged as
workers stage them, tiny stacks with rows for five tables, and committed one by one and 32 at a time. Then a table of
that many rows is published three times; its row log is made for that (160 bytes for each row), in FOLDER, where all of
this is written; its disk is what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import shutil
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from streamprep.committer import Committer, Result
from streamprep.config import Config
from streamprep.hookspecs import ItemResult, Staged
from streamprep.ledger import Block, EntryRow, JobRow, Ledger, SourceRow
from streamprep.model import Coordinates, Identity, Item, Micrograph, Optics, Particles
from streamprep.sinks import _files
from streamprep.sinks.coordinates import CoordinateSink
from streamprep.sinks.particles import ParticleSink
from streamprep.workers import with_rendered_rows

BATCHES, COUNTS, TOGETHER = 5, (100, 300), 32
ROW = b"%06d@particles/Micrographs/mic_0.mrcs Micrographs/mic_0.mrc %d.000000 %d.000000 1 %s particle\n"


class Session:
    """An output folder with its ledger."""

    def __init__(self, folder: Path) -> None:
        said = {"session": {"watch": ["Micrographs"]}, "extract": {}, "sets": {"further_tables": ["xmd", "cs"]}}
        config = Config.model_validate({**said, "file": folder / "streamprep.toml"})
        self.output = folder / "streamprep_out"
        (self.output / ".streamprep").mkdir(parents=True)
        self.sinks = [CoordinateSink(config), ParticleSink(config)]
        self.ledger = Ledger(self.output / ".streamprep" / "ledger.sqlite")
        self.ledger.require({"coordinates": "coordinates"})
        self.ledger.put_source(SourceRow("Micrographs", "", folder / "Micrographs", "../Micrographs", "1:1"))
        self.committer = Committer(self.output, self.ledger, self.sinks)
        self.committer.recover()
        self._arrived = 0

    def claim(self, count: int) -> list[JobRow]:
        """Jobs of so many new micrographs."""
        for number in range(self._arrived, self._arrived + count):
            identity = Identity(number, number, 1, 1)
            file = self.ledger.notice("Micrographs", f"mic_{number}.mrc", identity, "micrograph", 0.0)
            table = self.ledger.notice("Coordinates", f"mic_{number}.star", identity, "coordinates", 0.0)
            assert file is not None
            assert table is not None
            self.ledger.item_found(file)
            self.ledger.table_read(table.id, [EntryRow("coordinates", f"mic_{number}.mrc", "digest", 1)])
        self._arrived += count
        return self.ledger.claim(count)

    def stage(self, job: JobRow, count: int) -> bytes:
        """What comes from a worker, as it travels."""
        coordinates = Coordinates(np.random.default_rng(job.id).uniform(100.0, 4000.0, (count, 2)))
        name, optics = f"Micrographs/{job.file.path}", Optics(1.1)
        result = ItemResult(
            Item("micrograph", job.item, Path(name)),
            job.generation,
            Micrograph(name, np.zeros((64, 64), np.float32), optics),
            {"particle": coordinates},
            {"particle": Particles(np.ones((count, 8, 8), np.float32), optics, coordinates)},
        )
        folder = self.committer.staging / str(job.id)
        folder.mkdir(parents=True)
        staged: Sequence[Staged] = [sink.stage(result, folder) for sink in self.sinks]
        staged = with_rendered_rows(staged, self.sinks, self.committer.known_groups())
        return pickle.dumps(Result(job, staged, folder))


@contextlib.contextmanager
def session(folder: Path | None) -> Iterator[Session]:
    """One in a folder of its own that does not stay."""
    place = Path(tempfile.mkdtemp(prefix="commits-", dir=folder))
    made = Session(place)
    try:
        yield made
    finally:
        made.ledger.close()
        shutil.rmtree(place)


def commits(made: Session, count: int, together: int) -> None:
    """Time the commits of micrographs with so many particles, so many at a time."""
    made.committer.commit([pickle.loads(made.stage(job, count)) for job in made.claim(1)])  # noqa: S301
    times: list[tuple[float, float]] = []
    calls: Counter[str] = Counter()
    for _ in range(BATCHES if together > 1 else BATCHES * 20):
        staged = [made.stage(job, count) for job in made.claim(together)]
        with contextlib.ExitStack() as counted:
            for name in ("fsync", "fdatasync"):
                counted.enter_context(mock.patch.object(os, name, _counting(calls, name)))
            begun, wall = time.process_time(), time.perf_counter()
            faults = made.committer.commit([pickle.loads(one) for one in staged])  # noqa: S301
            times.append(((time.process_time() - begun) / together, (time.perf_counter() - wall) / together))
        assert faults == [None] * together
    cpu, wall = (sorted(1e3 * one for one in column) for column in zip(*times, strict=True))
    print(
        f"{count} particles, {together:2d} at a time: {cpu[len(cpu) // 2]:.2f} ms processor time for each (least "
        f"{cpu[0]:.2f}), {wall[len(wall) // 2]:.2f} ms in all; for each batch "
        + ", ".join(f"{number // len(times)} {name}" for name, number in calls.items())
    )


def _counting(calls: Counter[str], name: str) -> Callable[[int], None]:
    real = getattr(os, name)

    def call(descriptor: int) -> None:
        calls[name] += 1
        real(descriptor)

    return call


def publish(made: Session, rows: int) -> None:
    """Time the publication of a table with so many rows, in blocks of 100."""
    (job,) = made.claim(1)
    data = b"".join(ROW % (row, 1000 + row, 2000 + row, b"12345.000000 " * 6) for row in range(1, 101))
    path, name = made.committer.rows_path("particles.star"), "particles.star"
    columns = ("rlnImageName", "rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY", "rlnOpticsGroup",
               *(f"column{number}" for number in range(6)), "streamprepLabel")  # fmt: skip
    _files.make_folder(path.parent)
    start, blocks = made.ledger.length(name), []
    with path.open("ab") as file:
        for number in range(rows // 100):
            file.write(data)
            blocks.append(Block(name, start + number * len(data), len(data), 100, columns, zlib.crc32(data)))
    _files.fsync_file(path)
    made.ledger.commit(job, [], blocks, seconds=0.0, now=0.0)
    print(f"publishing {rows} rows, {path.stat().st_size / 1e9:.2f} GB:")
    for _ in range(3):
        (made.output / name).unlink(missing_ok=True)
        begun, wall = os.times(), time.perf_counter()
        assert made.committer.publish(force=True)
        ended = os.times()
        user, system = ended.user - begun.user, ended.system - begun.system
        print(f"  {time.perf_counter() - wall:.2f} s, of the processor {user + system:.2f} s ({user:.2f} s in Python)")


def main(arguments: Any = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    given = parser.parse_args(arguments)
    for count in COUNTS:
        for together in (1, TOGETHER):
            with session(given.folder) as made:
                commits(made, count, together)
    if given.rows:
        with session(given.folder) as made:
            publish(made, given.rows)


if __name__ == "__main__":
    main()
