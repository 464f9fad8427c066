"""The dashboard in a browser: it loads, goes on by itself, runs nothing of others, and can be used by everybody."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamprep.config import load
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from tests.conftest import ROOT, SMALL, Session
from tests.web.acted import HOSTILE, PLAN, WILD, busy, commit, failure, hole, log_commits, snapshot, write_status

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if shutil.which("chromium") is None:
    pytest.skip("chromium is not installed", allow_module_level=True)

from tests.web.screenshots import chromium, served  # noqa: E402 - needs playwright

AXE = ROOT / ".venv" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1400, "height": 900}
SOON = 30_000
"""A browser on a busy machine may take so long [ms]."""


@dataclasses.dataclass
class Opened:
    """A browser's page on a dashboard, what went wrong in it, and whom it asked."""

    page: Any
    address: str
    session: Session
    errors: list[str]
    asked: list[str]

    @property
    def output(self) -> Path:
        return self.session.output

    def go(self, target: str) -> None:
        self.page.goto(self.address + target, wait_until="load")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    from streamprep.simulate import simulate

    folder = tmp_path_factory.mktemp("browser") / "session"
    simulate(folder, dataclasses.replace(SMALL, micrographs=2))
    session = Session(folder)
    session.edit("[session]\n", "[session]\nsettle_seconds = 0.1\nworkers = 1\n")
    with served(folder) as address, chromium() as browser:
        context = browser.new_context(viewport=DESK, permissions=["clipboard-read", "clipboard-write"])
        page = context.new_page()
        made = Opened(page, address, session, [], [])
        page.on("console", lambda said: made.errors.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: made.errors.append(str(error)))
        page.on("request", lambda request: made.asked.append(request.url))
        page.on("dialog", lambda dialog: made.errors.append(dialog.message))
        yield made
        context.close()


@pytest.fixture
def hostile(opened: Opened) -> Opened:
    """The same, of a session in which all happens, with hostile names."""
    if not (opened.output / "gallery").exists():
        made = busy(opened.output, time.time(), items=230)
        log_commits(opened.output, [commit(HOSTILE, finished=time.time(), warnings=(WILD,), label="M")])
        plan = resolve(load(opened.session.config, ()), load_plugins())
        steps = [{**PLAN["steps"][0], "operation": WILD}, *PLAN["steps"][1:]]  # type: ignore[index, misc]
        (opened.output / ".streamprep" / "plan.json").write_text(
            json.dumps({**PLAN, "steps": steps, "hash": plan.hash})
        )
        made = dataclasses.replace(
            made,
            failures=(failure(HOSTILE, file=WILD, reason=WILD, traceback=WILD), *made.failures),
            waiting=((WILD, WILD, 3.0), *made.waiting),
        )
        write_status(opened.output, made)
        opened.go("/")
        opened.page.get_by_text("11.0 GiB of 45.0 GiB in use").wait_for(timeout=SOON)
    return opened


def test_a_session_appears_by_itself(opened: Opened) -> None:
    (late,) = opened.session.folder.glob("Coordinates/*0002*")
    late.unlink()
    opened.go("/items")
    page = opened.page
    page.get_by_text("is not there yet").wait_for(timeout=SOON)
    page.evaluate("window.mark = document.getElementById('table')")
    assert opened.session.once().returncode == 0
    page.get_by_role("row", name="Micrographs/mic_0001").get_by_text("done").wait_for(timeout=SOON)
    page.get_by_role("row", name="waits for coordinates").get_by_text("waiting").wait_for(timeout=SOON)
    page.locator("#pulse").get_by_text("ended", exact=True).first.wait_for(timeout=SOON)
    log_commits(opened.output, [commit("Micrographs/mic_0003")])
    write_status(opened.output, dataclasses.replace(snapshot(opened.output), message="the state is new"))
    page.get_by_role("row", name="Micrographs/mic_0003").get_by_text("done").wait_for(timeout=SOON)
    page.get_by_text("the state is new").wait_for(timeout=SOON)
    assert page.evaluate("window.mark.isConnected"), "the page was neither loaded anew nor built anew"


def test_a_hostile_name_is_text_and_runs_nothing(hostile: Opened) -> None:
    page = hostile.page
    for target in ("/", "/items", "/failures", "/plan", "/gallery"):
        hostile.go(target)
        assert page.title().endswith("streamprep")
        assert page.locator("img[src='x'], main script, [onerror]").count() == 0
    hostile.go("/items?state=failed")
    page.get_by_role("link", name=HOSTILE).click()
    page.wait_for_url("**/items/%3Cimg*")
    assert page.locator("h1").inner_text() == HOSTILE
    command = page.locator(".copyable code").first.inner_text()
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_text("Copied").wait_for(timeout=SOON)
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == command
    assert shlex.split(copied) == ["streamprep", "retry", str(hostile.session.config), "--item", HOSTILE]


def test_items_are_found_while_one_types_and_sorted_by_the_headings(hostile: Opened) -> None:
    page = hostile.page
    hostile.go("/items")
    page.get_by_role("searchbox").fill("data_00042")
    page.get_by_text("1 item found").wait_for(timeout=SOON)
    assert page.locator("tbody tr").count() == 1
    assert "q=data_00042" in page.url
    page.get_by_role("searchbox").fill("")
    page.get_by_text("page 1 of").wait_for(timeout=SOON)
    page.get_by_role("link", name="Item", exact=True).click()
    page.wait_for_url("**sort=item*")
    names = page.locator("tbody th a").all_inner_texts()
    assert len(names) == 100
    assert names == sorted(names)


def test_it_fits_a_phone_and_works_offline(hostile: Opened) -> None:
    page = hostile.page
    page.set_viewport_size(PHONE)
    try:
        for target in pages():
            hostile.go(target)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= PHONE["width"], f"{target} is {wide} px wide"
    finally:
        page.set_viewport_size(DESK)
    assert hostile.asked
    assert {url for url in hostile.asked if not url.startswith(hostile.address + "/")} == set()


def pages(items: str = "/items") -> list[str]:
    done, failed = f"/items/{hole(229)}", f"/items/{hole(223)}"
    return ["/", items, done, failed, "/failures", "/gallery", "/plan", "/items?q=no"]


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: make .venv/axe/.installed")
def test_it_can_be_used_by_everybody_in_light_and_dark(hostile: Opened) -> None:
    page, found = hostile.page, []
    colours = set()
    for target in pages("/items?q=1&state=failed"):  # few rows: all are alike
        hostile.go(target)
        for details in page.locator("details").all():
            details.evaluate("element => { element.open = true }")
        # The page's policy lets no script in but its own: axe comes by the debugger.
        page.evaluate(AXE.read_text() + ";0")
        for scheme, options in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            told = page.evaluate("options => axe.run(document, {resultTypes: ['violations'], ...options})", options)
            assert told["passes"]
            found += [
                f"{target} {scheme}: {broken['id']}: {node['html']}: {node['failureSummary']}"
                for broken in told["violations"]
                for node in broken["nodes"]
            ]
    page.emulate_media(color_scheme="light")
    assert len(colours) == 2, "dark is another page than light"
    assert not found, "\n".join(found)


def test_a_lost_connection_is_told_where_it_is_seen(hostile: Opened) -> None:
    page = hostile.page
    page.route("**/events", lambda route: route.fulfill(status=204))  # no stream: the browser does not ask again
    try:
        hostile.go("/")
        told = page.get_by_text("no connection to the dashboard, trying again")
        told.wait_for(timeout=SOON)
        sync_api.expect(told).to_be_in_viewport()
    finally:
        page.unroute("**/events")


def test_the_table_is_fetched_again_only_where_it_changed(hostile: Opened) -> None:
    page, state = hostile.page, snapshot(hostile.output)
    write_status(hostile.output, state)
    hostile.go("/items")
    page.get_by_text("Neither listed nor searched").wait_for(state="detached", timeout=SOON)
    page.evaluate(
        "new EventSource('/events').addEventListener('status', "
        "() => { document.body.dataset.heard = Number(document.body.dataset.heard ?? 0) + 1; })"
    )
    page.locator("body[data-heard='1']").wait_for(timeout=SOON)
    before = hostile.asked.count(hostile.address + "/items")
    for hour in (1, 2):
        write_status(hostile.output, dataclasses.replace(state, elapsed_seconds=3600.0 * hour))
        page.locator(f"body[data-heard='{hour + 1}']").wait_for(timeout=SOON)
    assert hostile.asked.count(hostile.address + "/items") == before


def test_a_page_that_cannot_be_had_leaves_the_one_that_is_shown(hostile: Opened) -> None:
    page = hostile.page
    hostile.go("/")
    title, rate = page.title(), page.locator(".figure .value").first.inner_text()
    page.route(hostile.address + "/", lambda route: route.fulfill(status=503, body="Service Unavailable"))
    try:
        write_status(hostile.output, snapshot(hostile.output, message="something is new"))
        page.get_by_text("what is shown is older").wait_for(timeout=SOON)
        assert page.title() == title
        assert page.locator(".figure .value").first.inner_text() == rate
    finally:
        page.unroute(hostile.address + "/")
    page.get_by_text("something is new").wait_for(timeout=SOON)
    page.get_by_text("what is shown is older").wait_for(state="detached", timeout=SOON)
    hostile.errors[:] = [said for said in hostile.errors if "503" not in said]


def test_nothing_was_complained_of(hostile: Opened) -> None:
    """After all of the above."""
    missing = [said for said in hostile.errors if "404" not in said]
    assert missing == []
