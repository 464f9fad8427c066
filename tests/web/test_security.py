"""Who is let in: names, methods, tokens; and what every answer carries."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamprep.model import ConfigError
from streamprep.web import security
from tests.web.asking import Answer, Looked, ask

TOKEN = "tR7-q_0123456789abcdef"
EVERYWHERE = ("/", "/items", "/items/x", "/failures", "/gallery", "/plan", "/metrics", "/events", "/api/status.json",
              "/gallery/a.png", "/report.html", "/static/live.js", "/nope")  # fmt: skip


class Closed:
    """A dashboard that asks for a token."""

    def __init__(self, looked: Looked) -> None:
        self.app = looked.dashboard.guarded(frozenset({"example.org"}), TOKEN)

    def get(self, target: str, *, cookie: str = "", bearer: str = "", port: int = 8765) -> Answer:
        headers = [("Cookie", cookie)] if cookie else []
        headers += [("Authorization", f"Bearer {bearer}")] if bearer else []
        return ask(self.app, target, host="example.org", headers=headers, server=("10.0.0.5", port))

    def cookie(self) -> str:
        return self.get(f"/?token={TOKEN}").headers["set-cookie"].partition(";")[0]


@pytest.fixture
def closed(looked: Looked) -> Closed:
    looked.look()
    return Closed(looked)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost:8765", "LOCALHOST", "localhost.", "[::1]:8765", "127.0.0.1:1"]
)
def test_this_machines_own_names_are_answered_at_any_port(looked: Looked, host: str) -> None:
    app = looked.dashboard.guarded(security.allowed_hosts("127.0.0.1", ()))
    assert ask(app, "/healthz", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "evil.example:8765", "", None, "localhost@evil", "[::1", "10.0.0.5"],
)
def test_names_that_anybodys_dns_could_lend_are_refused(looked: Looked, host: str | None) -> None:
    app = looked.dashboard.guarded(security.allowed_hosts("127.0.0.1", ("microscope.example.org",)))
    refused = ask(app, "/", host=host)
    expected = 200 if host == "[::1" else 421  # a name that is cut off is this machine's
    assert refused.status == expected
    if expected == 421:
        assert "--allow-host" in refused.text
    assert ask(app, "/healthz", host="microscope.example.org").status == 200


def test_two_host_headers_are_refused(looked: Looked) -> None:
    assert looked.get("/", headers=[("Host", "evil.example")]).status == 421


def test_an_address_in_numbers_is_answered_where_all_are_listened_on(looked: Looked) -> None:
    hosts = security.allowed_hosts("0.0.0.0", (), ("scope1",))
    app = looked.dashboard.guarded(hosts, any_address=True)
    told = {host: ask(app, "/healthz", host=host, server=("10.0.0.5", 8765)).status
            for host in ("10.0.0.5:8765", "scope1:8765", "10.0.0.6", "evil.example")}  # fmt: skip
    assert told == {"10.0.0.5:8765": 200, "scope1:8765": 200, "10.0.0.6": 421, "evil.example": 421}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_can_be_sent(looked: Looked, method: str) -> None:
    for target in ("/", "/nope"):
        refused = looked.get(target, method=method)
        assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")


def test_every_answer_carries_the_headers(busily: Looked, closed: Closed) -> None:
    answers = [busily.get(target) for target in EVERYWHERE if target != "/events"]
    answers += [busily.get("/", host="evil"), busily.get("/", method="POST"), closed.get("/"), closed.get("/?token=x")]
    for answer in answers:
        headers = answer.headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"]
    policy = busily.get("/").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "*" not in policy
    assert busily.get("/").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("target", EVERYWHERE)
def test_without_the_token_nothing_is_shown(closed: Closed, target: str) -> None:
    wrong = [
        {},
        {"cookie": "streamprep_8765=x"},
        {"bearer": "x"},
        {"cookie": f"streamprep_8765={TOKEN}"},
        {"bearer": "ü"},
    ]
    for shown in wrong:
        refused = closed.get(target, **shown)
        assert refused.status == 401
        assert "streamprep_out" not in refused.text
    assert closed.get(f"{target}?token={TOKEN[:-1]}").status == 401
    assert closed.get(f"{target}?token=").status == 401


def test_the_token_is_exchanged_for_a_cookie_and_leaves_the_address(closed: Closed) -> None:
    told = closed.get(f"/items?q=a%20b&token={TOKEN}&page=2")
    assert told.status == 200
    assert 'content="0; url=/items?q=a+b&amp;page=2"' in told.text
    assert TOKEN not in told.text
    cookie, *attributes = told.headers["set-cookie"].split("; ")
    assert {"httponly", "samesite=strict", "path=/"} <= {attribute.lower() for attribute in attributes}
    assert TOKEN not in cookie, "browsers send cookies to other ports of the host, too"
    assert closed.get("/items", cookie=cookie).status == 200
    assert closed.get("/items", cookie=cookie, port=8766).status == 401, "each dashboard of a machine has its own"


def test_the_way_on_never_leads_to_another_server(closed: Closed) -> None:
    for target in ("//evil.example/x", "/\\evil.example", "//evil.example", "/%22%3E%3Cscript%3E"):
        told = closed.get(f"{target}?token={TOKEN}")
        (link,) = [attributes["href"] for attributes in told.page.all("a")]
        assert link is not None
        assert link.startswith("/")
        assert not link.startswith(("//", "/\\"))
        assert told.page.all("script") == []


def test_programs_show_the_token_in_a_header(closed: Closed) -> None:
    assert closed.get("/metrics", bearer=TOKEN).status == 200
    assert closed.get("/metrics", bearer=TOKEN[:-1]).status == 401


def test_whether_it_lives_is_told_without_a_token(closed: Closed) -> None:
    assert closed.get("/healthz").text == "ok\n"


def test_a_token_file_is_made_for_its_owner_alone_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = security.read_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(token) >= 32
    assert security.read_token(path) == token


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_a_token_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        security.read_token(path)


def test_a_folder_is_no_token_file_and_is_to_be_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file") as caught:
        security.read_token(tmp_path)
    assert "chmod" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "short", "two words of a token", "ümlaut-0123456789abc", "a\n0123456789abcdef"])
def test_what_is_no_token_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="at least 16 characters"):
        security.read_token(path)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("scope1", False), ("", False)],
)  # fmt: skip
def test_only_this_machine_is_let_in_without_a_token(host: str, loopback: bool) -> None:
    assert security.is_loopback(host) is loopback
