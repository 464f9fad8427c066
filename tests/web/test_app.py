"""What the pages say, and that what they say of hostile names stays text."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamprep.session import try_lock
from streamprep.snapshot import clean
from streamprep.web.app import _hash
from streamprep.web.feed import MOST_CLIENTS
from streamprep.web.reads import Reads
from streamprep.web.show import item_address, item_of, retry_command
from tests.web.acted import HOSTILE, NOW, PLAN, WILD, commit, failure, hole, log_commits, snapshot, write_status
from tests.web.asking import CONFIG, Looked, asked

PAGES = ("/", "/items", "/failures", "/gallery", "/plan")


@pytest.mark.parametrize("page", PAGES)
def test_a_session_that_has_not_begun_is_waited_for(looked: Looked, page: str) -> None:
    looked.look()
    told = looked.get(page)
    assert told.status == 200
    assert "is not there yet" in told.page.words
    assert "not begun" in told.page.words


@pytest.mark.parametrize("page", PAGES)
def test_a_session_that_began_but_told_nothing_says_so(looked: Looked, page: str) -> None:
    (looked.output / ".streamprep").mkdir(parents=True)
    looked.look()
    assert "has written no state" in looked.get(page).page.words


def test_the_overview_tells_what_goes_on(busily: Looked) -> None:
    page = busily.get("/").page
    for said in (
        "running", "312 micrographs per hour", "230 done", "11 waiting", "3 failed", "1 rejected", "8 with warnings",
        "Last hour", "publishing (rows) 87,400 1,240 41 s", "processing 312 9 31 s",
        "1.3 TiB free of 8.0 TiB", "NVIDIA A40 71 %, 63 °C", "is on nfs4", "waits for coordinates",
        "14 of 282 boxes have outliers", "Newest pictures",
    ):  # fmt: skip
        assert said in page.words, said
    assert "/report.html" in [link["href"] for link in page.all("a")]


def test_the_whole_session_is_drawn_once_it_is_longer_than_its_last_hour(looked: Looked) -> None:
    write_status(looked.output, snapshot(looked.output), modified=NOW)
    log_commits(looked.output, [commit("M/a", finished=NOW - 60)])
    looked.look()
    words = looked.get("/").page.words
    assert "Last hour" in words
    assert "Whole session" not in words
    log_commits(looked.output, [commit("M/b", finished=NOW - 4000)])
    looked.look()
    assert "Whole session" in looked.get("/").page.words


def test_a_silent_daemon_is_not_shown_as_running(busily: Looked) -> None:
    busily.clock.pass_by(40)
    assert busily.look()
    page = busily.get("/").page
    assert "no word for 40 s" in page.words
    assert "No word from the daemon since" in page.words
    assert "312 micrographs per hour" not in page.words, "a rate of then is none of now"
    assert "In work" not in page.words


def test_an_ended_session_says_since_when(looked: Looked) -> None:
    write_status(looked.output, snapshot(looked.output, mode="finished"), modified=NOW - 7200)
    looked.look()
    page = looked.get("/").page
    assert "ended 2 h 00 min ago" in page.words
    assert "No word from the daemon" not in page.words


def test_an_item_tells_all_that_is_known_of_it(busily: Looked) -> None:
    name = hole(229)
    page = busily.get(item_address(name)).page
    for said in (
        name, "done", "14 of 282 boxes have outliers", "cross the micrograph's edge", "coordinates/noise.star",
        f"particles/{name}.mrcs", "_autopick.star", "Generation 1",
    ):  # fmt: skip
        assert said in page.words, said
    assert [image["src"] for image in page.all("img")] == [
        f"/gallery/{name}/{kind}.jpg?v={NOW:.0f}" for kind in ("micrograph", "particles")
    ]
    assert busily.get(f"/gallery/{name}/thumb.jpg").status == 200, "the report has it"


def test_a_failure_comes_with_its_traceback_and_the_command_that_retries_it(busily: Looked) -> None:
    failed = busily.watch.view.snapshot.failures[0]["item"]  # type: ignore[union-attr]
    for page in ("/failures", item_address(failed)):
        told = busily.get(page)
        assert "ValueError: the model does not fit boxes" in told.page.words
        assert f"streamprep retry '/data/my session/streamprep.toml' --item {failed}" in told.page.words
    rejected = busily.get(item_address(hole(700))).page
    assert "rejected" in rejected.words
    assert "streamprep retry" not in rejected.words, "what was rejected on purpose is not retried"


@pytest.mark.parametrize("name", ["Micrographs/mic_1", HOSTILE, WILD, "a b/'c'/\"d\"", "-x", "", "ü/Å"])
def test_the_command_is_what_a_shell_takes_for_the_name(name: str) -> None:
    told = retry_command(Path("/a b/c.toml"), ["x.y=1 2"], name)
    assert shlex.split(told) == ["streamprep", "retry", "/a b/c.toml", "--set", "x.y=1 2", "--item", name]


@pytest.mark.parametrize("key", ["notify.webhook", " notify . webhook ", "notify", "notify.mail"])
def test_the_command_holds_no_secret(busily: Looked, key: str) -> None:
    looked = Looked(busily.output, NOW, overrides=[f"{key}=https://chat.example.org/SECRETX", "session.seed=3"])
    looked.look()
    told = looked.get("/failures")
    assert "SECRETX" not in told.text
    assert "--set session.seed=3" in told.page.words


@pytest.mark.parametrize("name", [WILD, "a/../b", "..", ".", "a//b", "a?b#c%2F", "\udcff", "ü"])
def test_every_name_has_an_address_of_its_own(name: str) -> None:
    address = item_address(name)
    assert re.fullmatch(r"/items/[A-Za-z0-9%/._~-]+", address)
    assert not {"", ".", ".."} & set(address.removeprefix("/items/").split("/")) or name in (".", "..")
    assert item_of(address.encode()) == name


def act_hostile(output: Path) -> None:
    """Hostile texts in every place that can hold one."""
    failures = (failure(WILD, file=WILD, reason=WILD, operation=WILD, traceback=f"{WILD}\n{WILD}"),)
    log_commits(output, [commit(HOSTILE, warnings=(WILD,), label="M")])
    (output / ".streamprep" / "plan.json").write_text(
        json.dumps({**PLAN, "hash": WILD, "optics": {WILD: WILD}, WILD: [WILD], "steps": [
            {"table": WILD, "operation": WILD, "order": WILD, "distribution": WILD, "version": WILD,
             "parameters": {WILD: WILD}}]})
    )  # fmt: skip
    (output / "gallery").mkdir()
    (output / "gallery" / "a.png").write_bytes(b"png")
    (output / "gallery" / "index.json").write_text(
        json.dumps({"items": [
            {"item": HOSTILE, "files": [{"file": "a.png", "name": WILD, "about": WILD}, {"file": f"{HOSTILE}.png"}]},
            {"item": WILD, "files": [{"file": "a.png", "name": "x"}]}]})
    )  # fmt: skip
    made = snapshot(
        output, message=WILD, device=WILD, failures=failures, failed=1, waiting=((WILD, WILD, 3.0),), waiting_count=9,
        running=((WILD, 1.0),), rows={f"{WILD}.star": 4}, operation_seconds={WILD: 1.0}, unmatched=(("x", WILD),),
        degraded=(WILD,), recent_warnings=((WILD, (WILD,)),), items=WILD,
    )  # fmt: skip
    made = dataclasses.replace(made, gpus=({"name": WILD, "load_percent": 1, "memory_used_bytes": 1,
        "memory_total_bytes": 2, "temperature_celsius": 3},), stages=({"name": WILD, "per_hour": 1, "backlog": 1,
        "oldest_seconds": 1},))  # type: ignore[arg-type]  # fmt: skip
    write_status(output, made, modified=NOW)


def test_hostile_names_stay_text(looked: Looked) -> None:
    (looked.output / ".streamprep").mkdir(parents=True)
    act_hostile(looked.output)
    looked.look()
    assert not looked.watch.view.troubles
    for target in (
        *PAGES,
        item_address(HOSTILE),
        item_address(WILD),
        "/items?q=%3Cimg+src&state=%22%3E%3Cb",
        "/%3Cimg",
    ):
        page = looked.get(target).page
        for tag, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on") or name == "style"], (target, tag)
            assert attributes.get("src") != "x"
        assert {tag for tag, _ in page.elements} >= {"main", "nav", "h1"}, target
        assert [script["src"] for script in page.all("script")] == [f"/static/live.js?v={_hash('live.js')}"]
        text = "".join(page.parts)
        assert text.count("\u202e") == sum(retry in text for retry in [retry_command(CONFIG, (), WILD)]), target
    words = looked.get("/failures").page.words
    assert " ".join(clean(WILD).split()) in words
    assert {link["href"] for link in looked.get("/items").page.all("a")} >= {item_address(HOSTILE), item_address(WILD)}


def test_the_table_works_by_links_and_a_form_alone(busily: Looked) -> None:
    first = busily.get("/items").page
    assert "page 1 of 3" in first.words
    after = [link["href"] for link in first.all("a") if link.get("rel") == "next"]
    second = busily.get(f"/items{after[0]}").page
    assert "page 2 of 3" in second.words
    assert [form["action"] for form in first.all("form")] == ["/items"]
    found = busily.get("/items?q=data_00042&state=&sort=item&order=asc").page
    assert "1 item found" in found.words
    assert hole(42) in found.words
    assert hole(43) not in found.words


@pytest.mark.parametrize(
    "query", ["page=0", "page=-1", "page=9999999", "page=٣", "sort=x", "order=y", "state=z", "q=%00"]
)
def test_addresses_that_nobody_made_are_taken_for_something(busily: Looked, query: str) -> None:
    assert busily.get(f"/items?{query}").status == 200
    assert busily.get(f"/gallery?{query}").status == 200


def test_what_the_daemon_did_not_name_is_counted(busily: Looked) -> None:
    """It counts 11 that wait, and names 8."""
    words = busily.get("/items").page.words
    assert "Neither listed nor searched: 3 that wait." in words
    assert "More that wait (11 in all)" in busily.get("/").page.words
    state = busily.watch.view.snapshot
    assert state is not None
    write_status(busily.output, dataclasses.replace(state, failed=1200))
    busily.look()
    words = busily.get("/items").page.words
    assert "Neither listed nor searched: 3 that wait and 1,197 that failed or were rejected." in words
    assert "the 8 that wait longest and the 4 newest that failed" in words
    write_status(busily.output, dataclasses.replace(state, waiting_count=8))
    busily.look()
    assert "Neither listed" not in busily.get("/items").page.words
    assert "All that wait (8 in all)" in busily.get("/").page.words


def test_what_is_not_there_is_not_found(busily: Looked) -> None:
    for target in ("/nope", "/items/nope", "/gallery/nope.png", "/static/nope", "/static/../app.py", "/gallery/"):
        assert busily.get(target).status == 404, target


def test_looking_locks_nothing_and_changes_nothing(busily: Looked) -> None:
    def tree() -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in busily.output.rglob("*")
        }  # fmt: skip

    (busily.output / ".streamprep" / "lock").write_text("1")
    before = tree()
    for target in (
        *PAGES,
        item_address(hole(3)),
        "/metrics",
        "/api/status.json",
        f"/gallery/{hole(229)}/particles.jpg",
    ):
        assert busily.get(target).status == 200
    busily.watch.look()
    assert tree() == before
    lock = try_lock(busily.output)
    assert lock is not None, "a daemon could not begin"
    lock.close()


def test_the_state_is_there_for_programs(busily: Looked) -> None:
    busily.clock.pass_by(3)
    told = json.loads(busily.get("/api/status.json").body)
    assert (told["daemon"], told["age_seconds"], told["jobs"]["done"]) == ("running", 3.0, 230)


def test_health_is_of_the_dashboard_and_the_file_system(busily: Looked) -> None:
    assert busily.get("/healthz").status == 200
    busily.clock.pass_by(61)
    assert busily.get("/healthz").status == 503, "no look has ended for a minute"
    assert "has not answered for 1 min 01 s" in busily.get("/").page.words


# --- pictures ---


def test_pictures_are_those_of_the_index_and_no_others(looked: Looked, tmp_path: Path) -> None:
    folder = looked.output / "gallery"
    (folder / "sub").mkdir(parents=True)
    (looked.output / ".streamprep").mkdir()
    for name in ("a.png", "sub/b.jpg", "unnamed.png", "c.txt"):
        (folder / name).write_bytes(name.encode())
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "fine.png").symlink_to("a.png")
    os.mkfifo(folder / "fifo.png")
    outside = str(tmp_path / "secret.png")
    names = [
        "a.png",
        "gallery/sub/b.jpg",
        "link.png",
        "fine.png",
        "fifo.png",
        "c.txt",
        "../../secret.png",
        "sub/../a.png",
        outside,
        3,
    ]
    (folder / "index.json").write_text(
        json.dumps({"items": [{"item": "m", "files": [{"file": name} for name in names], "finished": "?"}]})
    )
    looked.look()
    served = {"a.png": "image/png", "sub/b.jpg": "image/jpeg", "fine.png": "image/png"}
    for name, kind in served.items():
        told = looked.get(f"/gallery/{name}")
        assert (told.status, told.headers["content-type"]) == (200, kind), name
        assert "sandbox" in told.headers["content-security-policy"]
    for name in ("unnamed.png", "link.png", "fifo.png", "c.txt", "../../secret.png", "..%2F..%2Fsecret.png",
                 outside, f"/{outside}", "sub", "index.json", "sub/../a.png", "", "%00"):  # fmt: skip
        assert looked.get(f"/gallery/{name}").status == 404, name
    again = looked.get("/gallery/a.png", headers=[("If-None-Match", looked.get("/gallery/a.png").headers["etag"])])
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize(
    "said",
    ["", "{", "3", "[]", '{"items": 3}', '{"items": [3, null, {}, {"files": 3}, {"files": ["ab", {"file": 3}, {}]}]}'],
)
def test_an_index_that_says_nothing_shows_nothing(looked: Looked, said: str) -> None:
    (looked.output / "gallery").mkdir(parents=True)
    (looked.output / "gallery" / "index.json").write_text(said)
    looked.look()
    assert looked.watch.view.pictures == ()
    assert "There are no pictures so far" in looked.get("/gallery").page.words


def test_the_report_runs_no_script(busily: Looked) -> None:
    told = busily.get("/report.html")
    assert told.status == 200
    assert "script-src" not in told.headers["content-security-policy"]
    assert told.headers["content-security-policy"].startswith("default-src 'none'")


# --- a file server that does not answer ---


@pytest.fixture
def stalled(busily: Looked, monkeypatch: pytest.MonkeyPatch) -> Iterator[Looked]:
    """Every read of a file hangs until the test is over."""
    answers = threading.Event()
    monkeypatch.setattr("streamprep.web.pictures.read_below", lambda *_: answers.wait() and None)
    monkeypatch.setattr(busily.watch, "commit", lambda _: answers.wait() and None)
    yield busily
    answers.set()


def test_files_that_cannot_be_read_keep_nothing_else_waiting(stalled: Looked) -> None:
    files = (f"/gallery/{hole(229)}/particles.jpg", "/report.html", item_address(hole(229)))

    async def look_on() -> tuple[list[int], list[int]]:
        hanging = [asyncio.create_task(asked(stalled.app, file)) for _ in range(20) for file in files]
        await asyncio.sleep(0)
        others = [
            (await asyncio.wait_for(asked(stalled.app, target), 20)).status
            for target in (*PAGES, "/metrics", "/healthz", "/api/status.json", "/static/live.js")
        ]
        assert not any(task.done() for task in hanging)
        stalled.dashboard.end()  # those who wait are answered, as at the end of the server
        return others, [answer.status for answer in await asyncio.gather(*hanging)]

    others, ended = asyncio.run(look_on())
    assert set(others) == {200}
    assert ended == [503, 503, 200] * 20, "what the log says more of an item is left out"


def test_a_file_that_cannot_be_read_is_waited_for_no_longer_than_some_seconds(stalled: Looked) -> None:
    stalled.dashboard._reads = Reads(wait_seconds=0.01)
    told = stalled.get("/report.html")
    assert (told.status, told.text, told.headers["retry-after"]) == (503, "the output folder does not answer", "10")
    assert stalled.get(item_address(hole(229))).status == 200


def test_few_threads_read(stalled: Looked) -> None:
    stalled.dashboard._reads = Reads(3, wait_seconds=0.01)

    async def ask_often() -> None:
        await asyncio.gather(*[asked(stalled.app, "/report.html") for _ in range(20)])

    before = threading.active_count()
    asyncio.run(ask_often())
    assert threading.active_count() == before + 3


# --- events ---


def test_clients_are_told_at_once_and_as_soon_as_something_is_new(busily: Looked) -> None:
    feed = busily.dashboard.feed

    async def listen() -> list[str]:
        events = feed.events(beat_seconds=3600)
        told = [await anext(events) for _ in range(2)]
        assert feed.clients == 1
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)  # it waits from here on
        log_commits(busily.output, [commit("Micrographs/new")])
        assert busily.watch.look()
        feed._wake()
        told.append(await asyncio.wait_for(waiting, 60))
        feed.end()
        assert [event async for event in events] == []
        return told

    retry, first, second = asyncio.run(listen())
    assert retry == "retry: 3000\n\n"
    versions = [int(re.findall(r"^id: (\d+)$", event, re.M)[0]) for event in (first, second)]
    assert versions[1] == versions[0] + 1
    assert json.loads(re.findall(r"^data: (.*)$", first, re.M)[0])["daemon"] == "running"
    assert feed.clients == 0


def test_clients_hear_a_beat_where_nothing_is_new(busily: Looked) -> None:
    async def listen() -> str:
        events = busily.dashboard.feed.events(beat_seconds=0.01)
        return [await anext(events) for _ in range(3)][-1]

    assert asyncio.run(listen()) == ": still here\n\n"


def test_the_number_of_clients_is_bounded(busily: Looked) -> None:
    busily.dashboard.feed.clients = MOST_CLIENTS
    told = busily.get("/events")
    assert (told.status, told.headers["retry-after"]) == (503, "60")
