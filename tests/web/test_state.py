"""What the dashboard knows while a session begins, goes on, falls silent, ends and begins anew."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from streamprep import journal
from streamprep.history import LOG
from streamprep.web import charts
from streamprep.web.state import Watch
from tests.conftest import ROOT
from tests.web.acted import NOW, PLAN, commit, log_commits, snapshot, write_status
from tests.web.asking import Clock, Looked


def status_of(looked: Looked) -> Path:
    return looked.output / ".streamprep" / "status.json"


def test_nothing_new_is_nothing_new(busily: Looked) -> None:
    version = busily.watch.view.version
    assert not busily.watch.look()
    busily.clock.pass_by(2)
    assert not busily.watch.look()
    assert busily.watch.view.version == version


def test_the_rows_are_others_only_where_a_row_is(looked: Looked) -> None:
    waits = ("M/a", "waits for coordinates", 3.0)
    write_status(looked.output, snapshot(looked.output, waiting=(waits,), waiting_count=1), modified=NOW)
    looked.look()

    def grows(**changed: object) -> bool:
        before = looked.watch.view
        write_status(looked.output, snapshot(looked.output, **changed), modified=NOW)
        assert looked.look()
        assert looked.watch.view.version > before.version
        return looked.watch.view.rows_version > before.rows_version

    aged = (*waits[:2], 5.0)
    assert not grows(waiting=(aged,), waiting_count=1, elapsed_seconds=5.0, items_per_hour=300.0)
    assert grows(waiting=(aged,), waiting_count=2)
    assert grows(waiting=(aged,), waiting_count=2, failures=({"item": "M/b", "state": "failed"},))
    before = looked.watch.view.rows_version
    log_commits(looked.output, [commit("M/c")])
    looked.look()
    assert looked.watch.view.rows_version > before


def test_a_daemon_is_running_silent_and_ended(looked: Looked) -> None:
    looked.look()
    assert looked.watch.view.daemon == "unknown"
    write_status(looked.output, snapshot(looked.output), modified=NOW)
    assert looked.look()
    assert looked.watch.view.daemon == "running"
    looked.clock.pass_by(11)
    assert looked.look(), "that nothing is heard is news"
    assert looked.watch.view.daemon == "silent"
    assert looked.watch.age_seconds == 11
    write_status(looked.output, snapshot(looked.output, elapsed_seconds=1.0), modified=NOW + 11)
    assert looked.look()
    assert looked.watch.view.daemon == "running"
    write_status(looked.output, snapshot(looked.output, mode="finished"), modified=NOW + 11)
    assert looked.look()
    assert looked.watch.view.daemon == "ended"
    looked.clock.pass_by(3600)
    looked.look()
    assert looked.watch.view.daemon == "ended"


@pytest.mark.parametrize("wrong", [-5000.0, 5000.0])
def test_the_clock_of_a_file_server_decides_nothing_once_it_was_seen_to_write(looked: Looked, wrong: float) -> None:
    write_status(looked.output, snapshot(looked.output), modified=NOW + wrong)
    looked.look()
    assert looked.watch.view.daemon == ("silent" if wrong < 0 else "running")
    looked.clock.pass_by(2)
    write_status(looked.output, snapshot(looked.output, elapsed_seconds=2.0), modified=NOW + wrong + 2)
    looked.look()
    assert looked.watch.view.daemon == "running"
    assert looked.watch.age_seconds == 0


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"rows": 3}', '{"mode": "dancing"}', '{"rows": {"a": "x"}}'])
def test_a_state_that_cannot_be_read_is_told_and_the_last_one_kept(looked: Looked, text: str) -> None:
    write_status(looked.output, snapshot(looked.output), modified=NOW)
    looked.look()
    before = looked.watch.view.snapshot
    status_of(looked).write_text(text)
    assert looked.look()
    assert looked.watch.view.snapshot == before
    assert any("status.json cannot be read" in said for said in looked.watch.view.troubles)
    write_status(looked.output, snapshot(looked.output, failed=2), modified=NOW)
    looked.look()
    assert looked.watch.view.troubles == ()


def test_the_state_of_another_version_is_read_as_far_as_it_goes(looked: Looked) -> None:
    write_status(looked.output, snapshot(looked.output, failed=3), modified=NOW)
    said = json.loads(status_of(looked).read_text())
    for name in ("stages", "gpus", "items", "degraded", "unmatched"):
        del said[name]
    status_of(looked).write_text(json.dumps({**said, "new_in_the_next": 1}))
    looked.look()
    assert looked.watch.view.troubles == ()
    assert looked.watch.view.snapshot is not None
    assert looked.watch.view.snapshot.failed == 3
    assert looked.get("/").status == 200


def test_commits_come_in_and_a_log_that_was_replaced_is_read_anew(looked: Looked) -> None:
    log_commits(looked.output, [commit("M/a"), commit("M/b")])
    looked.look()
    assert list(looked.watch.view.done) == ["M/a", "M/b"]
    before = looked.watch.view.done
    log_commits(looked.output, [commit("M/c"), dataclasses.replace(commit("M/a"), seconds=9.0)])
    looked.look()
    assert list(looked.watch.view.done) == ["M/b", "M/c", "M/a"]
    assert looked.watch.view.done["M/a"].seconds == 9.0
    assert list(before) == ["M/a", "M/b"], "what is being drawn stays as it was"
    (looked.output / LOG).write_bytes(journal.line_of(commit("M/d")))
    looked.look()
    assert list(looked.watch.view.done) == ["M/d"]
    (looked.output / LOG).unlink()
    assert looked.look()
    assert looked.watch.view.done == {}


def test_a_long_log_is_read_in_parts_and_says_so(looked: Looked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamprep.history.History.update.__defaults__", (3,))
    monkeypatch.setattr("streamprep.web.state.MOST_AT_ONCE", 3)
    log_commits(looked.output, [commit(f"M/{n}") for n in range(7)])
    looked.watch.look()
    assert not looked.watch.view.loaded
    assert "Reading what was done so far: 3 items read" in looked.get("/").page.words
    looked.look()
    assert looked.watch.view.loaded
    assert len(looked.watch.view.done) == 7
    assert "Reading what was done" not in looked.get("/").page.words


@pytest.mark.parametrize("before", [0, 2])
def test_a_log_of_another_version_is_told_and_all_else_is_shown(looked: Looked, before: int) -> None:
    write_status(looked.output, snapshot(looked.output, jobs={"done": 41}), modified=NOW)
    log_commits(looked.output, [commit(f"M/{n}") for n in range(before)])
    with (looked.output / LOG).open("ab") as log:
        log.write((ROOT / "tests" / "data" / "schema3" / "commits.rows").read_bytes())
    looked.look()
    view = looked.watch.view
    assert view.daemon == "running"
    assert list(view.done) == [f"M/{n}" for n in range(before)]
    (trouble,) = view.troubles
    assert "another version of streamprep" in trouble
    assert "streamprep run upgrades it" in trouble
    for page in ("/", "/items", "/healthz"):
        assert looked.get(page).status == 200
    assert "41 done" in looked.get("/").page.words
    assert "upgrades it" in looked.get("/").page.words
    (looked.output / LOG).write_bytes(journal.line_of(commit("M/upgraded")))
    looked.look()
    assert looked.watch.view.troubles == ()
    assert list(looked.watch.view.done) == ["M/upgraded"]


def test_a_look_that_fails_each_time_is_told_once(looked: Looked, caplog: pytest.LogCaptureFixture) -> None:
    looks = 0

    def fail() -> bool:
        nonlocal looks
        looks += 1
        raise RuntimeError("look")

    async def watch() -> None:
        async with looked.dashboard.feed.running():
            while looks < 3:
                await asyncio.sleep(0)

    looked.watch.look = fail  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("streamprep.web.feed.LOOK_SECONDS", 0.0)
        asyncio.run(watch())
    assert [record.getMessage() for record in caplog.records] == ["the session could not be looked at"]


def test_what_keeps_the_folder_from_being_read_is_told(tmp_path: Path) -> None:
    def find() -> tuple[Path, bool]:
        raise OSError(5, "Input/output error")

    clock = Clock(NOW)
    watch = Watch(find, clock=lambda: clock.monotonic, now=lambda: clock.now)
    assert watch.look()
    assert watch.view.troubles == ("the output folder cannot be looked for: Input/output error",)


def test_another_output_folder_begins_anew(looked: Looked, tmp_path: Path) -> None:
    write_status(looked.output, snapshot(looked.output), modified=NOW)
    log_commits(looked.output, [commit("M/a")])
    looked.look()
    looked.output = tmp_path / "streamprep_out_2"
    log_commits(looked.output, [commit("M/b")])
    looked.look()
    assert list(looked.watch.view.done) == ["M/b"]
    assert looked.watch.view.daemon == "unknown"


def test_the_plan_is_shown_as_it_was_written(looked: Looked) -> None:
    (looked.output / ".streamprep").mkdir(parents=True)
    (looked.output / ".streamprep" / "plan.json").write_text(json.dumps(PLAN))
    looked.look()
    page = looked.get("/plan").page
    for said in ("f288442cf62a0fa0", "pick_noise coordinates", "crowded relax", "order 40 · facility-operations 2.3",
                 "pixel_size_angstrom 0.85", "reject_outliers no", "mask –", "ctf yes"):  # fmt: skip
        assert said in page.words, said


# --- the chart ---


def test_every_item_is_in_one_step_of_the_chart() -> None:
    rng = np.random.default_rng(1)
    for span in (10.0, 3000.0, 50_000.0, 3_000_000.0, 3e8):
        times = NOW - rng.uniform(0, span, 500)
        made = charts.throughput(times, NOW)
        assert made is not None
        assert sum(bar.items for bar in made.bars) == 500
        assert len(made.bars) <= charts.MOST_BARS
        assert made.bars[-1].since + made.step_seconds == pytest.approx(NOW)
        assert all(bar.per_hour == bar.items * 3600 / made.step_seconds <= made.top for bar in made.bars)


def test_the_last_hour_is_the_last_hour() -> None:
    made = charts.throughput(np.array([NOW - 3601, NOW - 3599, NOW - 30, NOW + 5, 0.0]), NOW, 3600.0)
    assert made is not None
    assert [bar.items for bar in made.bars] == [1, *[0] * 58, 1]
    assert charts.throughput(np.array([NOW - 7200]), NOW, 3600.0) is None
    assert charts.throughput(np.array([]), NOW) is None
