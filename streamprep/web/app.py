"""The pages and what else is served: thin routes over what is known of the session."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from streamprep import __version__
from streamprep.errors import StreamprepError
from streamprep.snapshot import unmatched_text
from streamprep.units import duration, size
from streamprep.web import charts, items, metrics, pictures, show
from streamprep.web.feed import MOST_CLIENTS, Feed
from streamprep.web.reads import Reads
from streamprep.web.security import Guard
from streamprep.web.state import REPORT, Watch

NEWEST_PICTURES = 6
PICTURES_ON_A_PAGE = 60
SHORT_LIST = 5
DEAD_SECONDS = 60.0
_HOUR = 3600.0

_STATIC = {"style.css": "text/css", "live.js": "text/javascript", "icon.svg": "image/svg+xml"}
_FILTERS = (
    "number",
    "moment",
    "iso",
    "item_address",
    "picture_address",
    "text",
    "breakable",
    "exactly",
)
_FOREIGN = (
    "default-src 'none'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
"""What pages that others made may do: show themselves."""


class Page(HTMLResponse):
    """A page; what is no text in names is shown as a question mark."""

    def render(self, content: Any) -> bytes:
        """The bytes."""
        return str(content).encode("utf-8", "replace")


class Dashboard:
    """The application.

    Parameters
    ----------
    watch
        What is shown.
    config
        The session's configuration file, for the commands that are shown.
    overrides
        Values of it that were overridden.
    """

    def __init__(self, watch: Watch, *, config: Path, overrides: Sequence[str] = ()) -> None:
        self.watch, self.feed, self._reads = watch, Feed(watch), Reads()
        self._config, self._overrides = config, tuple(overrides)
        self._registry = metrics.registry(watch)
        self.routes = Starlette(
            routes=[
                Route("/", self.overview),
                Route("/items", self.items),
                Route("/items/{name:path}", self.item),
                Route("/failures", self.failures),
                Route("/plan", self.plan),
                Route("/gallery", self.gallery),
                Route("/gallery/{file:path}", self.picture),
                Route(f"/{REPORT}", self.report),
                Route("/static/{file}", self.static),
                Route("/metrics", self.metrics),
                Route("/healthz", self.health),
                Route("/api/status.json", self.status),
                Route("/events", self.events),
            ],
            exception_handlers={404: self.missing},
            lifespan=self._lifespan,
        )

    def guarded(self, hosts: frozenset[str], token: str | None = None, *, any_address: bool = False) -> ASGIApp:
        """The application, behind a `Guard`."""
        return Guard(self.routes, hosts=hosts, token=token, any_address=any_address)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with self.feed.running():
            yield

    def end(self) -> None:
        """Let all go who wait for an answer or look on, as at the end of the server."""
        self.feed.end()
        self._reads.end()

    # --- pages: of what is in memory, drawn in threads ---

    def overview(self, request: Request) -> Response:
        """What goes on."""
        view = self.watch.view
        finished = np.fromiter((row.ended for row in view.done.values()), np.float64, len(view.done))
        until = self.watch.now() if view.daemon == "running" else float(finished.max(initial=0.0))
        longer = view.daemon != "running" or float(finished.min(initial=until)) < until - _HOUR
        return self._page(
            request,
            "overview.html",
            hour=charts.throughput(finished, until, _HOUR) if view.daemon == "running" else None,
            whole=charts.throughput(finished, until) if longer else None,
            newest=pictures.for_pages(view.pictures[: 2 * NEWEST_PICTURES])[:NEWEST_PICTURES],
            short=SHORT_LIST,
        )

    def items(self, request: Request) -> Response:
        """All items."""
        view = self.watch.view
        pending = view.pending
        sets = items.set_names(view.snapshot, list(view.done.values())[-PICTURES_ON_A_PAGE:])
        query = items.Query.of(request.query_params, sets)
        page = items.page(view.done, pending, query)
        return self._page(
            request, "items.html", query=query, page=page, sets=sets, unlisted=items.unlisted(view.snapshot)
        )

    async def item(self, request: Request) -> Response:
        """One item."""
        view, name = self.watch.view, show.item_of(request.scope["raw_path"])
        row = view.pending.get(name) or view.done.get(name)
        if row is None:
            return self.missing(request, None)
        commit = None
        if row.done is not None:
            with contextlib.suppress(OSError, StreamprepError):  # TimeoutError is one
                commit = await self._reads.run(functools.partial(self.watch.commit, row.done))
        made = [picture for picture in pictures.for_pages(view.pictures) if picture.item == name]
        return self._page(request, "item.html", row=row, commit=commit, pictures=made)

    def failures(self, request: Request) -> Response:
        """What failed or was rejected, with tracebacks."""
        return self._page(request, "failures.html")

    def plan(self, request: Request) -> Response:
        """What runs, in which order."""
        said = self.watch.view.plan
        others = {name: value for name, value in said.items() if name not in ("hash", "steps", "optics")}
        return self._page(request, "plan.html", others=others)

    def gallery(self, request: Request) -> Response:
        """The pictures."""
        made = pictures.for_pages(self.watch.view.pictures)
        kinds = sorted({picture.kind for picture in made})
        kind = request.query_params.get("kind", "")
        if kind in kinds:
            made = [picture for picture in made if picture.kind == kind]
        given = request.query_params.get("page", "")
        pages = max(1, -(-len(made) // PICTURES_ON_A_PAGE))
        number = min(pages, int(given)) if given.isascii() and given.isdigit() and 0 < len(given) < 9 else 1
        number = max(1, number)
        shown = made[(number - 1) * PICTURES_ON_A_PAGE : number * PICTURES_ON_A_PAGE]
        return self._page(
            request, "gallery.html", shown=shown, found=len(made), kinds=kinds, kind=kind, number=number, pages=pages
        )

    def missing(self, request: Request, _: Any) -> Response:
        """What is not there."""
        return self._page(request, "missing.html", code=404)

    def _page(self, request: Request, template: str, code: int = 200, **values: Any) -> Response:
        view = self.watch.view
        text = (
            _environment()
            .get_template(template)
            .render(
                view=view,
                snapshot=view.snapshot,
                counts=None if view.snapshot is None else show.counts(view.snapshot, running=view.daemon == "running"),
                age=self.watch.age_seconds,
                stuck=self.watch.stuck_seconds,
                now=self.watch.now(),
                path=request.scope["path"],
                retry=self._retry,
                version=__version__,
                **values,
            )
        )
        return Page(text, code)

    def _retry(self, item: str | None = None) -> str:
        return show.retry_command(self._config, self._overrides, item)

    # --- files: read beside all else, for their folder may not answer ---

    async def _read(self, read: Callable[[], bytes | None]) -> bytes:
        try:
            data = await self._reads.run(read)
        except TimeoutError:
            raise HTTPException(503, "the output folder does not answer", {"Retry-After": "10"}) from None
        if data is None:
            raise HTTPException(404)
        return data

    async def picture(self, request: Request) -> Response:
        """A picture that the index names."""
        view, name = self.watch.view, request.path_params["file"]
        if all(picture.file != name for picture in view.pictures):
            raise HTTPException(404)
        data = await self._read(lambda: pictures.read_picture(view.output, name))
        kind = pictures.TYPES[Path(name).suffix.lower()]
        return _file(request, data, kind, {"Content-Security-Policy": f"sandbox; {_FOREIGN}"})

    async def report(self, request: Request) -> Response:
        """The report that the session wrote; no script of it runs."""
        data = await self._read(lambda: pictures.read_below(self.watch.view.output, REPORT))
        return _file(request, data, "text/html; charset=utf-8", {"Content-Security-Policy": _FOREIGN})

    def static(self, request: Request) -> Response:
        """Style and script."""
        name = request.path_params["file"]
        if name not in _STATIC:
            raise HTTPException(404)
        kept = request.query_params.get("v") == _hash(name)
        caching = "public, max-age=31536000, immutable" if kept else "no-cache"
        return _file(request, _static()[name], _STATIC[name], {"Cache-Control": caching})

    # --- for machines: of what is in memory, waiting for nothing ---

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), media_type=kind)

    async def health(self, _: Request) -> Response:
        """Whether the dashboard lives and sees the output folder."""
        if self.watch.stuck_seconds > DEAD_SECONDS:
            return PlainTextResponse("the output folder does not answer\n", 503)
        return PlainTextResponse("ok\n")

    async def status(self, _: Request) -> Response:
        """What the daemon wrote last, and how old that is."""
        view = self.watch.view
        said: dict[str, Any] = {"daemon": view.daemon, "output": str(view.output)}
        if view.snapshot is not None:
            said = {"daemon": view.daemon, "age_seconds": round(self.watch.age_seconds, 1), **show.plain(view.snapshot)}
        return Response(json.dumps(said, default=str), media_type="application/json")

    async def events(self, _: Request) -> Response:
        """What changes, as it changes."""
        if self.feed.clients >= MOST_CLIENTS:
            return PlainTextResponse("too many look on already\n", 503, {"Retry-After": "60"})
        return StreamingResponse(
            self.feed.events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
        )


def _file(request: Request, data: bytes, kind: str, headers: dict[str, str]) -> Response:
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"Cache-Control": "private, no-cache", "ETag": tag, **headers}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, headers={**headers, "Content-Type": kind})


@functools.cache
def _static() -> dict[str, bytes]:
    folder = resources.files("streamprep.web") / "static"
    return {name: (folder / name).read_bytes() for name in _STATIC}


@functools.cache
def _hash(name: str) -> str:
    return hashlib.sha256(_static()[name]).hexdigest()[:12]


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("streamprep.web"),
        autoescape=True,
        finalize=show.shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in _FILTERS:
        made.filters[name] = getattr(show, name)
    made.filters["duration"], made.filters["size"] = duration, size
    made.filters["set_title"] = items.set_title
    made.globals["unmatched_text"] = unmatched_text
    made.globals["static"] = lambda name: f"/static/{name}?v={_hash(name)}"
    made.globals["states"] = items.FILTERS
    return made
