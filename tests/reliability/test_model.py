"""Whatever happens, and in whichever order: no input is lost, none is doubled, and nothing that was done is undone.

``STREAMPREP_MODEL_EXAMPLES`` says how many sessions are tried.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from streamprep.committer import Committer
from streamprep.sinks import _files
from tests.reliability.model import Machine, World

LONG = "STREAMPREP_MODEL_EXAMPLES" in os.environ
LONG = "STREAMPREP_MODEL_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("STREAMPREP_MODEL_EXAMPLES", "15"))
SETTINGS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    suppress_health_check=list(HealthCheck),
    derandomize=not LONG,
    phases=list(Phase) if LONG else [Phase.generate],
    print_blob=True,
)


@pytest.mark.case(1, 2, 3, 5, 22)
@pytest.mark.slow
@pytest.mark.timeout(0 if LONG else 240)
def test_whatever_happens_the_sets_are_those_of_an_uninterrupted_run() -> None:
    run_state_machine_as_test(Machine, settings=SETTINGS)
    assert World.batches[2] > 0, "several jobs were committed together now and then"


def test_an_uninterrupted_run_makes_what_the_oracle_wants() -> None:
    world = World()
    try:
        for made in world.inputs:
            world.write(made)
        world.end()
        assert world.disk.left == {}, "there was no power loss"
    finally:
        world.close()


FOUND = "I[1-7] |is torn|is not valid"

# --- bugs that it must find ------------------------------------------------------------------------------------------


def rows_without_fdatasync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "fdatasync", lambda descriptor: None)


def stacks_without_fsync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_files, "fsync_file", lambda path: None)


def names_without_fsync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_files, "fsync_folder", lambda path: None)


def rename_before_the_data(patch: pytest.MonkeyPatch) -> None:
    def replace_whole(path: Path, parts: Iterable[bytes | _files.Ranges], *, durable: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        chunks = ([part] if isinstance(part, bytes) else _files.read_ranges(part.path, part.ranges) for part in parts)
        temporary.write_bytes(b"".join(itertools.chain.from_iterable(chunks)))
        temporary.replace(path)
        fsync_file(path)
        fsync_folder(path.parent)

    fsync_file, fsync_folder = _files.fsync_file, _files.fsync_folder
    patch.setattr(_files, "replace_whole", replace_whole)


def row_before_the_pixels(patch: pytest.MonkeyPatch) -> None:
    later: list[tuple[Any, ...]] = []
    place, record, sync = Committer._place, Committer._record, _files.make_names_durable

    def record_first(self: Committer, ready: Any, fresh: Any) -> None:
        record(self, ready, fresh)
        mine = [waiting for waiting in later if waiting[0] is self]
        later.clear()
        for waiting in mine:
            place(*waiting)
        sync([pair for made in ready for pair in made.placed])

    patch.setattr(Committer, "_place", lambda *args: later.append(args))
    patch.setattr(Committer, "_record", record_first)
    patch.setattr(_files, "make_names_durable", lambda placed: None)


def fdatasync_again_after_it_failed(patch: pytest.MonkeyPatch) -> None:
    fdatasync = os.fdatasync

    def twice(descriptor: int) -> None:
        try:
            fdatasync(descriptor)
        except OSError:
            fdatasync(descriptor)

    patch.setattr(os, "fdatasync", twice)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "seed"),
    [
        (rows_without_fdatasync, 0),
        (stacks_without_fsync, 0),
        (names_without_fsync, 0),
        (rename_before_the_data, None),
        (row_before_the_pixels, 0),
        pytest.param(
            fdatasync_again_after_it_failed,
            None,
            marks=pytest.mark.skipif(not LONG, reason="takes a minute; part of `make model`"),
        ),
    ],
)
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], seed: int | None) -> None:
    """A seed is one that comes to the bug soon; without it, the name of the test is."""

    class Planted(Machine):
        pass

    Planted.plant = staticmethod(plant)
    if seed is not None:
        hypothesis.seed(seed)(Planted)
    with pytest.raises(AssertionError, match=FOUND):
        run_state_machine_as_test(
            Planted,
            settings=settings(
                SETTINGS,
                max_examples=200,
                derandomize=True,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                print_blob=False,
            ),
        )
