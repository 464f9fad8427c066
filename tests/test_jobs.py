"""Jobs in a worker: what they read and stage."""

from __future__ import annotations

import errno
import zlib
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from streamprep import formats, workers
from streamprep.config import load
from streamprep.executors import read_ahead
from streamprep.hookspecs import ItemResult, Sink, Staged
from streamprep.joins import JobInput
from streamprep.model import Ctf, Image, InputError, Item
from streamprep.sinks import _stacks
from streamprep.workers import ItemJob, identity_at, initialize, micrograph_pixels, run_job
from tests.conftest import Session


@pytest.fixture
def job(session: Session, monkeypatch: pytest.MonkeyPatch) -> ItemJob:
    """The first micrograph of a session, in this process."""
    monkeypatch.setattr(workers, "_worker", None)
    initialize(load(session.config, ["session.device=cpu"]), die_with_parent=False)
    micrograph = session.folder / "Micrographs" / "mic_0001.mrc"
    inputs = []
    for table in (session.folder / "Coordinates" / "mic_0001_autopick.star", session.folder / "micrographs_ctf.star"):
        for entry in formats.read_item(Item("coordinates", table.stem, table)):
            kind = "ctf" if isinstance(entry.data, Ctf) else "coordinates"
            if kind == "coordinates" or micrograph.name in str(entry.micrograph):
                name = entry.micrograph or table.name
                inputs.append((JobInput(kind, "", str(table), name, entry.digest), table))
    staging = session.folder / "staging"
    staging.mkdir()
    item = Item("micrograph", "Micrographs/mic_0001", micrograph)
    name = "Micrographs/mic_0001.mrc"
    return ItemJob(1, item, 1, name, identity_at(micrograph), tuple(inputs), staging / "1")


def test_other_sinks_see_the_pixels_that_were_stored(job: ItemJob) -> None:
    seen: list[tuple[Any, Any]] = []

    class Other(Sink):
        """One that knows nothing of stacks that are stored while they are made."""

        name, tables, folders = "other", (), ()

        def stage(self, result: ItemResult, folder: Path) -> Staged:
            assert result.stored == {}, "what another one stored is not its own to hand in"
            seen.extend((particles.label, particles.pixels.copy()) for particles in result.particles.values())
            return Staged()

    worker = workers._worker
    assert isinstance(worker, workers._Worker)
    worker.sinks = [Other(), *worker.sinks]
    outcome = run_job(job)
    assert outcome.verdict == "done", outcome
    assert [label for label, _ in seen] == ["particle", "noise"]
    files = [file for staged in outcome.staged for file in staged.files]
    assert [Path(file.final).parts[0] for file in files] == ["particles", "noise"]
    for file, (_, pixels) in zip(files, seen, strict=True):
        path = job.folder / file.staged
        np.testing.assert_array_equal(mrcfile.read(path), pixels)
        content = path.read_bytes()
        assert (file.size_bytes, file.crc32) == (len(content), zlib.crc32(content))


@pytest.mark.parametrize("where", ["__init__", "put", "finish"])
@pytest.mark.parametrize(("number", "verdict"), [(errno.ENOSPC, "unstored"), (errno.ENOENT, "failed")])
def test_a_disk_that_does_not_take_a_part_is_no_fault_of_the_job(
    job: ItemJob, monkeypatch: pytest.MonkeyPatch, where: str, number: int, verdict: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(_stacks.StackFile, where, refuse)
    outcome = run_job(job)
    assert outcome.verdict == verdict
    assert outcome.operation is None
    if verdict == "unstored":
        assert outcome.trouble is not None
        assert outcome.trouble.errno == number


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int16"])
def test_finite_pixels_are_taken_however_large(dtype: str) -> None:
    most = np.iinfo(dtype).max if dtype == "int16" else np.finfo(dtype).max
    pixels = np.full((600, 8), most, dtype)
    assert micrograph_pixels(Path("a.mrc"), Image(pixels)) is pixels


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_pixels_that_are_not_finite_are_counted(dtype: str) -> None:
    pixels = np.full((600, 8), np.finfo(dtype).max, dtype)
    pixels[[0, 300, 300, 599], [0, 1, 2, 7]] = np.nan, np.inf, -np.inf, np.nan
    with pytest.raises(InputError, match="4 of 4800 pixels are not finite"):
        micrograph_pixels(Path("a.mrc"), Image(pixels))


def test_nothing_is_said_of_a_file_that_cannot_be_read_ahead(tmp_path: Path) -> None:
    (tmp_path / "a.mrc").write_bytes(bytes(3 << 20))
    for name in ("a.mrc", "missing.mrc", "."):
        read_ahead(tmp_path / name)
