"""Messages: what is told, once, how it is delivered, and that the session never waits for it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from streamprep import notify
from streamprep.cli import app
from streamprep.config import Config, NotifySection, load
from streamprep.engine import Engine
from streamprep.executors import InlineExecutor
from streamprep.model import ConfigError, OutputError
from streamprep.notify.conditions import GAP_SECONDS, Watch
from streamprep.notify.delivery import (
    MOST_QUEUED,
    Delivery,
    MailCommand,
    Undelivered,
    Webhook,
    payload,
    targets,
)
from streamprep.notify.wording import LONGEST, Message, Messenger
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.snapshot import Snapshot
from tests.conftest import Session
from tests.test_console import SNAPSHOT

GIB = 1 << 30
QUIET = dataclasses.replace(
    SNAPSHOT,
    mode="waiting",
    jobs={"done": 12},
    running=(),
    waiting=(),
    waiting_count=0,
    disk_free_bytes=500 * GIB,
    disk_reserve_bytes=GIB,
)
"""A session in which nothing is wrong."""
MESSAGE = Message("streamprep s: it", "s: it is so\nmore", "stall", "begins", {"session": "s", "time": "then"})


class Story:
    """A session's conditions and a clock."""

    def __init__(self, **settings: Any) -> None:
        self.watch, self.now = Watch(NotifySection(**settings)), 0.0
        self.told: list[tuple[str, bool]] = []
        self.texts: list[str] = []

    def minutes(self, count: float, **changes: Any) -> list[tuple[str, bool]]:
        """So many minutes pass in a state; what was told meanwhile."""
        before = len(self.told)
        for _ in range(round(count * 6)):
            self.now += 10.0
            for change in self.watch.observe(dataclasses.replace(QUIET, **changes), self.now):
                self.told.append((change.event, change.begins))
                self.texts.append(change.text)
        return self.told[before:]

    def ends(self, state: str, count: int = 1) -> None:
        for number in range(count):
            self.watch.item_finished(f"mic_{number}", state, None if state == "done" else "it is cut")


BACKLOG = {"mode": "running", "jobs": {"ready": 4, "claimed": 1}, "running": (("mic_7", 2000.0),)}


def test_a_stall_is_told_once_and_its_end_once() -> None:
    story = Story(stall_minutes=20)
    assert story.minutes(600) == [], "nothing to do is no stall"
    assert story.minutes(19, **BACKLOG) == []
    assert story.minutes(300, **BACKLOG) == [("stall", True)]
    assert "nothing was finished for 20 min, and 5 jobs are queued" in story.texts[0]
    assert "for 33 min, is mic_7" in story.texts[0]
    story.ends("done")
    assert story.minutes(19, **BACKLOG) == [("stall", False)]
    for _ in range(10):
        story.ends("done")
        assert story.minutes(19, **BACKLOG) == [], "slow is no stall"


def test_items_that_wait_more_and_more_are_a_stall_where_items_had_ended() -> None:
    story = Story(stall_minutes=20)
    waits = {"waiting": (("mic_9", "waits for coordinates", 3.0),)}
    assert story.minutes(100, waiting_count=200, **waits) == [], "they may all wait from the beginning"
    story.ends("done")
    assert story.minutes(100, waiting_count=200, **waits) == [], "they are no more"
    assert story.minutes(30, waiting_count=201, **waits) == [("stall", True)]
    assert "the first, mic_9, waits for coordinates" in story.texts[-1]


def test_time_in_a_pause_is_no_stall_and_a_pause_is_told() -> None:
    story = Story(stall_minutes=20)
    story.minutes(15, **BACKLOG)
    told = story.minutes(60, **{**BACKLOG, "mode": "paused", "message": "paused, the disk is full"})
    assert told == [("paused", True)]
    assert story.texts[-1] == "paused, the disk is full"
    assert story.minutes(15, **BACKLOG) == [("paused", False)]


def test_a_short_pause_is_not_told() -> None:
    story = Story()
    for _ in range(20):
        assert story.minutes(0.4, mode="paused") + story.minutes(1) == []


def test_a_stop_is_told_at_once_and_so_is_its_end() -> None:
    story = Story()
    assert story.minutes(1, mode="stopped", message="normalize failed on 10 items") == [("stopped", True)]
    assert story.texts == ["normalize failed on 10 items"]
    assert story.minutes(1) == [("stopped", False)]


def test_no_more_files_is_told_where_there_had_been_some() -> None:
    story = Story(quiet_minutes=30)
    assert story.minutes(100, arrived_seconds=None) == []
    assert story.minutes(10, arrived_seconds=1700.0) == []
    assert story.minutes(60, arrived_seconds=1900.0) == [("quiet", True)]
    assert "no file has arrived for 32 min" in story.texts[0]
    assert story.minutes(10, arrived_seconds=3.0) == [("quiet", False)]


def test_a_share_of_failures_is_told_with_hysteresis() -> None:
    story = Story(failures_percent=20)
    story.ends("done", 50)
    story.ends("failed", 10)
    assert story.minutes(5) == [], "10 of 50 are not more than 20 %"
    story.ends("failed", 1)
    assert story.minutes(5) == [("failures", True)]
    assert story.texts[0] == "11 of the last 50 items failed, the last: mic_0: it is cut"
    story.ends("done", 44)
    assert story.minutes(20) == [], "6 of 50 are more than half of that"
    story.ends("done", 1)
    assert story.minutes(5) == [("failures", False)]


def test_the_first_items_that_all_fail_are_told() -> None:
    story = Story()
    story.ends("failed", 2)
    story.ends("rejected", 1)
    assert story.minutes(5) == []
    story.ends("failed", 1)
    assert story.minutes(5) == [("failures", True)]


@pytest.mark.parametrize(
    "low", [{"disk_free_bytes": 2 * GIB - 1}, {"disk_full_seconds": 3.9 * 3600}], ids=["space", "pace"]
)
def test_a_disk_that_fills_is_told(low: dict[str, Any]) -> None:
    story = Story(disk_hours=4)
    assert story.minutes(60, disk_full_seconds=4.1 * 3600) == []
    assert story.minutes(60, **low) == [("disk", True)]
    assert story.minutes(60, disk_full_seconds=5.9 * 3600) == []
    assert story.minutes(60, disk_full_seconds=6.1 * 3600) == [("disk", False)]


@pytest.mark.parametrize("event", ["stall", "quiet", "failures"])
def test_zero_turns_a_condition_off(event: str) -> None:
    key = {"stall": "stall_minutes", "quiet": "quiet_minutes", "failures": "failures_percent"}[event]
    for value, told in ((0, []), (1, [(event, True)])):
        story = Story(**{"stall_minutes": 0, "quiet_minutes": 0, "failures_percent": 0, key: value})
        if event == "failures":
            story.ends("failed", 9)
        assert story.minutes(300, **{**BACKLOG, "arrived_seconds": 9999.0}) == told


def test_what_goes_on_and_off_is_told_at_most_once_in_ten_minutes() -> None:
    story = Story(messages_per_hour=1000)
    for _ in range(120):
        story.minutes(0.5, mode="stopped")
        story.minutes(0.5)
    assert 10 <= len(story.told) <= 2 * 120 * 60 / GAP_SECONDS + 2


STATES = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["running", "waiting", "paused", "stopped", "draining", "starting"]),
        "jobs": st.sampled_from([{}, {"ready": 3}, {"claimed": 1, "done": 9}]),
        "waiting_count": st.integers(0, 3),
        "arrived_seconds": st.sampled_from([None, 1.0, 1e5]),
        "disk_free_bytes": st.sampled_from([0, 5 * GIB // 2, 500 * GIB]),
        "disk_full_seconds": st.sampled_from([None, 60.0, 5 * 3600.0, 1e6]),
    }
)


@given(
    st.lists(st.tuples(STATES, st.floats(0.1, 4000), st.integers(0, 30), st.integers(0, 30)), max_size=60),
    st.integers(1, 6),
)
def test_begin_and_end_take_turns_and_are_bounded(
    steps: list[tuple[dict[str, Any], float, int, int]], per_hour: int
) -> None:
    story = Story(messages_per_hour=per_hour)
    begun: set[str] = set()
    times: list[float] = []
    for state, seconds, failed, done in steps:
        story.now += seconds
        story.ends("failed", failed)
        story.ends("done", done)
        for change in story.watch.observe(dataclasses.replace(QUIET, **state), story.now):
            assert change.text
            assert (change.event in begun) != change.begins
            (begun.add if change.begins else begun.discard)(change.event)
            times.append(story.now)
            assert sum(story.now - 3600 < when for when in times) <= per_hour


@settings(max_examples=40)
@given(st.lists(STATES, min_size=1, max_size=8))
def test_once_all_is_well_everything_told_is_over(states: list[dict[str, Any]]) -> None:
    story = Story()
    for state in states:
        story.minutes(7, **state)
    story.minutes(120, arrived_seconds=1.0)
    begun = [event for event, begins in story.told if begins]
    assert sorted(begun) == sorted(event for event, begins in story.told if not begins)


# --- words -----------------------------------------------------------------------------------------------------------


def configured(folder: Path, **settings: Any) -> Config:
    path = folder / "streamprep.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    path.write_text("\n".join(['[session]\nwatch = ["M"]', "[notify]", *lines]))
    return load(path)


def messenger(folder: Path, **settings: Any) -> tuple[Messenger, list[Message], list[float]]:
    sent: list[Message] = []
    clock = [0.0]
    made = Messenger(configured(folder, **settings), sent.append, clock=lambda: clock[0], now=lambda: 1.8e9 + clock[0])
    return made, sent, clock


def test_a_message_says_who_what_and_how_many(tmp_path: Path) -> None:
    words, sent, _ = messenger(tmp_path, name="apoferritin")
    words.snapshot_taken(dataclasses.replace(SNAPSHOT, mode="stopped", message="normalize failed"))
    (message,) = sent
    assert message.subject == "streamprep apoferritin: normalize failed"
    head, numbers = message.text.splitlines()
    assert head == "apoferritin: normalize failed"
    assert numbers.startswith("micrographs: 12 done, 5 queued, 1 waiting, 1 failed, 1 rejected; 3.0 GiB free, on ")
    posted = payload(message, "text")
    assert posted["text"] == message.text
    assert posted["event"] == "stopped"
    assert posted["state"] == "begins"
    assert posted["session"] == "apoferritin"
    assert posted["host"] == socket.gethostname()
    assert posted["items"] == {"done": 12, "queued": 5, "waiting": 1, "failed": 1, "rejected": 1}
    assert posted["rows"]["particles.star"] == 3360
    assert posted["time"] == "2027-01-15T08:00:00+00:00"


def test_the_end_is_told_with_a_summary(tmp_path: Path) -> None:
    words, sent, _ = messenger(tmp_path)
    words.run_stopped(dataclasses.replace(SNAPSHOT, mode="finished"))
    (message,) = sent
    assert message.event == "end"
    assert f"{tmp_path.name}: ended, after 1 min 15 s" in message.text
    assert "3,360 rows in particles.star" in message.text
    assert "failed: Micrographs/mic_9.mrc: truncated" in message.text
    words, sent, _ = messenger(tmp_path, summary=False)
    words.run_stopped(SNAPSHOT)
    assert sent == []


def test_an_end_by_an_error_is_told_as_one(tmp_path: Path) -> None:
    words, sent, _ = messenger(tmp_path)

    def engine() -> None:
        try:
            raise OutputError("the output was removed")
        finally:
            words.run_stopped(SNAPSHOT)

    with pytest.raises(OutputError):
        engine()
    assert "was ended by an error: the output was removed" in sent[0].subject


def test_warnings_are_told_once_where_wanted_within_the_bound(tmp_path: Path) -> None:
    words, sent, clock = messenger(tmp_path, warnings=True, messages_per_hour=5)
    for number in range(20):
        words.warning_raised(f"trouble {number % 8}")
    assert [message.event for message in sent] == ["warning"] * 5
    clock[0] = 3600.0
    for number in range(20):
        words.warning_raised(f"trouble {number % 8}")
    assert len({message.text for message in sent}) == len(sent) == 8
    words, sent, _ = messenger(tmp_path)
    words.warning_raised("trouble")
    assert sent == []


@settings(max_examples=50)
@given(st.text(max_size=400))
def test_names_from_outside_cannot_steer_a_message(name: str) -> None:
    sent: list[Message] = []
    config = Config.model_validate({"session": {"watch": ["M"]}, "notify": {"warnings": True}})
    words = Messenger(config, sent.append, clock=lambda: 0.0, now=lambda: 0.0)
    hostile = f"<!channel> @all [click](https://evil.example/)\r\nBcc: all\x1b[2J\udc80{name}"
    words.warning_raised(hostile)
    failures = tuple({"state": "failed", "file": hostile, "reason": hostile * 9} for _ in range(20))
    words.run_stopped(dataclasses.replace(SNAPSHOT, failures=failures))
    for message in sent:
        assert message.subject.isprintable()
        assert len(message.subject) <= 200
        assert len(message.text) <= LONGEST
        assert all(line.isprintable() for line in message.text.split("\n"))
        message.text.encode()
        for form in ("text", "teams"):
            posted = json.dumps(
                payload(message, form)["attachments" if form == "teams" else "text"], ensure_ascii=False
            )
            posted = posted.replace("http://adaptivecards.io", "")
            assert not {"<", ">", "@"} & set(posted)
            assert "](" not in posted
            assert "https://" not in posted


# --- delivery --------------------------------------------------------------------------------------------------------


class Chat:
    """A webhook of this machine, which answers as it is told."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.answers: list[int] = []
        """What to answer next; 200 where there is nothing."""
        self.location = ""
        self.hangs = threading.Event()
        self.hangs.set()
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                chat.posts.append(json.loads(body) | {"path": self.path, "type": self.headers["Content-Type"]})
                chat.hangs.wait(20)
                code = chat.answers.pop(0) if chat.answers else 200
                self.send_response(code)
                if code in (302, 307):
                    self.send_header("Location", chat.location)
                self.end_headers()
                self.wfile.write(f"said at {self.path}".encode())

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/T0/s3cret"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def chat() -> Iterator[Chat]:
    made = Chat()
    yield made
    made.hangs.set()
    made.server.shutdown()
    made.server.server_close()


def test_a_webhook_gets_json(chat: Chat) -> None:
    Webhook(chat.url).send(MESSAGE, 5)
    (post,) = chat.posts
    assert post["text"] == "s: it is so\nmore"
    assert post["path"] == "/services/T0/s3cret"
    assert post["type"].startswith("application/json")


def test_teams_gets_a_card() -> None:
    posted = payload(MESSAGE, "teams")
    assert posted["type"] == "message"
    (attachment,) = posted["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert [block["text"] for block in attachment["content"]["body"]] == ["s: it is so", "more"]


@pytest.mark.parametrize(("code", "again"), [(404, False), (400, False), (429, True), (500, True), (503, True)])
def test_a_refusal_says_why_and_shows_no_secret(chat: Chat, code: int, again: bool) -> None:
    chat.answers = [code]
    with pytest.raises(Undelivered, match=f"answered {code}") as caught:
        Webhook(chat.url).send(MESSAGE, 5)
    assert caught.value.again is again
    assert "said at" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("code", [302, 307])
def test_redirects_are_not_followed(chat: Chat, code: int) -> None:
    chat.answers, chat.location = [code], f"http://127.0.0.1:{chat.server.server_port}/elsewhere"
    with pytest.raises(Undelivered, match=r"a redirect to 127.0.0.1, which is not followed"):
        Webhook(chat.url).send(MESSAGE, 5)
    assert [post["path"] for post in chat.posts] == ["/services/T0/s3cret"]


def test_a_server_that_is_gone_or_hangs_is_no_answer(chat: Chat) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = free.getsockname()[1]
        with pytest.raises(Undelivered, match="refused"):
            Webhook(f"http://127.0.0.1:{gone}/s3cret").send(MESSAGE, 5)
    chat.hangs.clear()
    with pytest.raises(Undelivered, match="timed out"):
        Webhook(chat.url).send(MESSAGE, 0.1)


def test_a_certificate_is_verified(chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is needed to make a certificate")
    made, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key,
         "-out", made, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    chat.server.socket = context.wrap_socket(chat.server.socket, server_side=True)
    address = chat.url.replace("http:", "https:")
    with pytest.raises(Undelivered, match="CERTIFICATE_VERIFY_FAILED"):
        Webhook(address).send(MESSAGE, 5)
    assert chat.posts == []
    monkeypatch.setenv("SSL_CERT_FILE", str(made))  # how a facility's own authority is made known
    Webhook(address).send(MESSAGE, 5)
    assert len(chat.posts) == 1


@pytest.mark.parametrize(
    "address",
    ["", "hooks.example/x", "ftp://h/x", "https://", "http://hooks.example/s3cret", "https://h/s3cret x",
     "https://user:s3cret@h/x", "https://h:s3cret/x", "file:///s3cret", "https://[s3cret/x", "https://h/s3cret\n/x"],
)  # fmt: skip
def test_other_addresses_are_refused_without_being_shown(tmp_path: Path, address: str) -> None:
    config = configured(tmp_path, webhook=address)
    with pytest.raises(ConfigError, match=r"\[notify\] webhook: ") as caught:
        targets(config)
    assert str(config.file) in str(caught.value)
    assert "s3cret" not in str(caught.value) + repr(config)


def test_a_wrong_kind_of_address_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[notify\] webhook: ") as caught:
        configured(tmp_path, webhook=["https://h/s3cret"])
    assert "s3cret" not in str(caught.value)


def test_the_address_may_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    config = configured(tmp_path, webhook="https://${HOST_OF_IT}/${TOKEN}")
    (target,) = targets(config, {"HOST_OF_IT": "hooks.example", "TOKEN": "s3cret"})
    assert target.label == "the webhook at hooks.example"
    with pytest.raises(ConfigError, match="the environment variable TOKEN is not set"):
        targets(config, {"HOST_OF_IT": "hooks.example"})
    config = configured(tmp_path, webhook_file="address")
    with pytest.raises(ConfigError, match="webhook_file: address: No such file"):
        targets(config)
    (tmp_path / "address").write_text("https://chat.example/s3cret\n")
    (target,) = targets(config)
    assert target.label == "the webhook at chat.example"
    with pytest.raises(ConfigError, match="give one of the two"):
        targets(configured(tmp_path, webhook="https://h/", webhook_file="address"))


def script(folder: Path, text: str) -> list[str]:
    path = folder / "mail.py"
    path.write_text(f"import os, pathlib, sys, time\nfolder = pathlib.Path({str(folder)!r})\n{text}\n")
    return [sys.executable, str(path)]


def test_a_mail_command_gets_the_message_and_no_shell(tmp_path: Path) -> None:
    command = script(tmp_path, "(folder / 'got').write_text(sys.stdin.read() + '|'.join(sys.argv[1:]))")
    sent = dataclasses.replace(MESSAGE, subject="streamprep $(touch x); `y` {subject}")
    MailCommand([*command, "-s", "{subject}", "staff@example.org"]).send(sent, 20)
    body, _, arguments = (tmp_path / "got").read_text().rpartition("\n")
    assert body == "s: it is so\nmore\n\nthen"
    assert arguments == "-s|streamprep $(touch x); `y` {subject}|staff@example.org"


def test_a_mail_command_that_fails_or_hangs_is_told(tmp_path: Path) -> None:
    with pytest.raises(Undelivered, match="ended with 3: no such user"):
        MailCommand(script(tmp_path, "sys.stderr.write('no such user'); sys.exit(3)")).send(MESSAGE, 20)
    with pytest.raises(Undelivered, match="could not be run: .*No such file"):
        MailCommand(["/nonexistent/mail"]).send(MESSAGE, 20)
    with pytest.raises(Undelivered, match="took longer"):
        MailCommand(["sh", "-c", f"sleep 600 & echo $! > {tmp_path}/started; wait"]).send(MESSAGE, 1)
    status = Path("/proc", (tmp_path / "started").read_text().strip(), "stat")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while status.read_text().rpartition(")")[2].split()[0] != "Z":  # until the test's time is up
            time.sleep(0.01)


def test_a_mail_command_without_room_for_its_message_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message may be that the disk is full."""

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("streamprep.notify.delivery.tempfile.TemporaryFile", full)
    with pytest.raises(Undelivered, match="No space left on device") as caught:
        MailCommand(["/bin/true"]).send(MESSAGE, 20)
    assert caught.value.again


class Recorder:
    """A target that does as it is told."""

    label = "the recorder"

    def __init__(self, does: Callable[[int], None] = lambda number: None) -> None:
        self.does, self.got, self.seconds, self.tries = does, list[Message](), list[float](), 0

    def send(self, message: Message, seconds: float) -> None:
        self.tries += 1
        self.seconds.append(seconds)
        self.does(self.tries)
        self.got.append(message)


def test_messages_are_tried_again_and_failures_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def fails(number: int) -> None:
        if number <= 7:
            raise Undelivered("gone away")

    target = Recorder(fails)
    delivery = Delivery([target], pauses=(0.001, 0.001))
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            delivery.put(MESSAGE)
        while target.tries < 9:
            time.sleep(0.001)
        delivery.close(10)
    assert target.tries == 9, "3 for each of the first two, 2 for the third, 1 for the last"
    assert len(target.got) == 2
    assert [record.message for record in caplog.records] == [
        "the recorder does not take messages, the session goes on without: gone away",
        "the recorder takes messages again; 2 were lost",
    ]


def test_a_refusal_for_good_is_not_tried_again() -> None:
    def refuses(number: int) -> None:
        raise Undelivered("no such channel", again=False)

    target = Recorder(refuses)
    delivery = Delivery([target], pauses=(0.001, 0.001))
    delivery.put(MESSAGE)
    delivery.put(MESSAGE)
    while target.tries < 2:
        time.sleep(0.001)
    delivery.close(10)
    assert target.tries == 2


def test_a_fault_of_a_target_is_not_the_end_of_messages() -> None:
    def breaks(number: int) -> None:
        if number == 1:
            raise RuntimeError("a fault")

    broken, whole = Recorder(breaks), Recorder()
    delivery = Delivery([broken, whole])
    delivery.put(MESSAGE)
    delivery.put(MESSAGE)
    delivery.close(10)
    assert len(broken.got) == 1
    assert len(whole.got) == 2


def test_a_target_that_hangs_holds_nobody_and_the_queue_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    free, begun = threading.Event(), threading.Event()

    def hangs(number: int) -> None:
        begun.set()
        free.wait(60)

    target = Recorder(hangs)
    delivery = Delivery([target])
    numbered = [dataclasses.replace(MESSAGE, text=str(number)) for number in range(1000)]
    delivery.put(numbered[0])
    assert begun.wait(30)
    for message in numbered[1:]:
        delivery.put(message)  # none of these waits, else the test hangs
    assert not target.got
    with caplog.at_level(logging.WARNING):
        delivery.close(0.05)
        assert "the last messages were not taken within" in caplog.text
        free.set()
        delivery.close(10)
    assert [message.text for message in target.got] == ["0", *(str(n) for n in range(1000 - MOST_QUEUED, 1000))]
    assert f"{999 - MOST_QUEUED} messages were dropped" in caplog.text


def test_at_the_end_a_pause_is_cut_short_and_the_time_is_shared() -> None:
    def fails(number: int) -> None:
        if number == 1:
            raise Undelivered("busy")

    target = Recorder(fails)
    delivery = Delivery([target], pauses=(600, 600))
    delivery.put(MESSAGE)
    while not target.tries:
        time.sleep(0.001)
    delivery.put(MESSAGE)
    delivery.close(10)
    assert len(target.got) == 2
    assert target.seconds[0] == 10.0
    assert target.seconds[1] <= 10.0
    delivery._deadline = time.monotonic() + 8
    delivery._deliver(target, MESSAGE, 4)
    assert target.seconds[-1] <= 2.0, "four are left, and eight seconds"


# --- in a session ----------------------------------------------------------------------------------------------------


def run_once(session: Session, **values: Any) -> Snapshot:
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
    session.append(f"\n[notify]\n{text}\n")
    config = load(session.config)
    plugins = load_plugins()
    return Engine(config, plugins, resolve(config, plugins), once=True, executor=InlineExecutor).run()


def test_a_session_tells_of_failures_and_of_its_end(
    session: Session, chat: Chat, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "<!here>"):
        (session.folder / "Micrographs" / f"{name}.mrc").write_bytes(bytes(2000))
    session.edit("settle_seconds = 0.1\n", "settle_seconds = 0\nincomplete_seconds = 0\n")
    monkeypatch.setenv("CHAT_URL", chat.url)
    with caplog.at_level(logging.INFO):
        last = run_once(session, webhook="${CHAT_URL}", name="s1")
    assert last.jobs == {"done": 3}
    assert last.failed == 3
    assert [(post["event"], post["state"]) for post in chat.posts][-1] == ("end", "told")
    assert ("failures", "begins") in [(post["event"], post["state"]) for post in chat.posts]
    end = chat.posts[-1]
    assert end["session"] == "s1"
    assert end["items"]["done"] == 3
    assert end["items"]["failed"] == 3
    assert "‹!here›.mrc" in end["text"]
    assert "messages about this session go to the webhook at 127.0.0.1" in caplog.text
    kept = "".join(path.read_text(errors="replace") for path in (session.output / ".streamprep").rglob("*.json"))
    assert "s3cret" not in caplog.text + kept
    assert notify._session is None


def test_a_session_without_notify_starts_nothing(session: Session) -> None:
    before = {thread.name for thread in threading.enumerate()}
    run_once(session, name="s1")
    assert "notify" not in {thread.name for thread in threading.enumerate()} - before


def test_a_session_ends_well_where_nobody_takes_its_messages(
    session: Session, chat: Chat, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "LAST_SECONDS", 0.1)
    chat.hangs.clear()
    assert run_once(session, webhook=chat.url).jobs == {"done": 3}
    assert "not taken within" in caplog.text or "does not take messages" in caplog.text


def test_check_sends_a_test_message_where_asked(empty_session: Session, chat: Chat) -> None:
    def check(*more: str) -> Result:
        return CliRunner().invoke(app, ["check", str(empty_session.config), *more])

    told = check("--notify")
    assert "[notify] names nowhere to send to; give webhook, webhook_file or mail" in str(told.exception)
    empty_session.append(f"\n[notify]\nwebhook = {json.dumps(chat.url)}\n")
    assert "messages       the webhook at 127.0.0.1\n" in check().output
    assert chat.posts == []
    told = check("--notify")
    assert "messages       the webhook at 127.0.0.1 took a test message" in told.output
    assert told.exit_code == 0
    assert [post["event"] for post in chat.posts] == ["test"]
    chat.answers = [403]
    told = check("--notify")
    assert "warning: the webhook at 127.0.0.1 did not take a test message: answered 403" in told.output
    assert told.exit_code == 1
    assert "s3cret" not in told.output


def test_a_wrong_address_ends_the_start(empty_session: Session) -> None:
    empty_session.append('\n[notify]\nwebhook = "https://${NOT_SET_HERE}"\n')
    told = CliRunner().invoke(app, ["once", str(empty_session.config)])
    assert "[notify] webhook: the environment variable NOT_SET_HERE is not set" in str(told.exception)
    assert isinstance(told.exception, ConfigError)
    assert not empty_session.output.exists()
    assert CliRunner().invoke(app, ["plan", str(empty_session.config)]).exit_code == 0


def test_messages_change_no_plan(tmp_path: Path) -> None:
    plugins = load_plugins()
    (tmp_path / "M").mkdir()
    plans = {
        resolve(configured(tmp_path, **settings), plugins).hash
        for settings in ({}, {"webhook": "https://h/x", "stall_minutes": 1})
    }
    assert len(plans) == 1


@pytest.mark.parametrize("key", ["webhook_file", "webhook_format", "mail"])
def test_an_address_in_the_wrong_place_is_not_shown(tmp_path: Path, key: str) -> None:
    address = "https://hooks.example.org/SECRET"
    (tmp_path / "streamprep.toml").write_text(f'[session]\nwatch = ["."]\n[notify]\n{key} = "{address}"\n')
    with pytest.raises(ConfigError, match=rf"\[notify\] {key}") as error:
        targets(load(tmp_path / "streamprep.toml"))
    assert "SECRET" not in str(error.value)
