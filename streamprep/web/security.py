"""Who may look: which Host names are answered, which methods, with which token; and the headers of every answer."""

from __future__ import annotations

import hashlib
import hmac
import html
import ipaddress
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamprep.model import ConfigError

LEAST_TOKEN = 16
"""Characters that a token has at least."""
OPEN_TO_ALL = ("/healthz", "/static/style.css", "/static/icon.svg")
"""What is answered without a token: whether the server lives, and how the page looks that asks for one."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path) -> str:
    """The token that a file holds; the file is made, for its owner alone, where it is not there.

    Raises
    ------
    ConfigError
        Others may read the file, or what it holds is no token.
    """
    try:
        with open(path, "x", opener=_private) as made:
            made.write(new_token() + "\n")
    except FileExistsError:
        pass
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: this is no file; give the path of one, which is made where it is not there")
    if found.st_mode & 0o077:
        raise ConfigError(f"{path}: others than its owner may read or write it; chmod 600 {path}")
    token = path.read_text(encoding="utf-8", errors="replace").strip()
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{path}: a token is one line of at least {LEAST_TOKEN} characters of ASCII, without spaces")
    return token


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(32)


def allowed_hosts(host: str, more: Iterable[str], own_names: Iterable[str] = ()) -> frozenset[str]:
    """The names that requests may call the server by, without ports.

    The port is not looked at: a tunnel may begin at another one, and no name that somebody else's DNS answers for is
    among these.
    """
    wanted = {"127.0.0.1", "localhost", "::1", *more}
    if not is_loopback(host):
        wanted |= {host, *own_names}
    return frozenset(name.strip("[]").rstrip(".").lower() for name in wanted if name)


def host_of(header: str) -> str:
    """The name in a Host header, without its port and brackets.

    Examples
    --------
    >>> host_of("localhost:8765"), host_of("[::1]:8765"), host_of("Example.org.")
    ('localhost', '::1', 'example.org')
    """
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].rstrip(".").lower()


class Guard:
    """Lets requests through to an application, or answers them itself.

    Parameters
    ----------
    app
        The application.
    hosts
        Of `allowed_hosts`.
    token
        What those who look must show, as ``Authorization: Bearer``, or once as ``?token=`` for a cookie; None for
        nothing.
    any_address
        Answer to the number of whatever address a request came to: a number is no name that DNS could lend.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: frozenset[str], token: str | None = None, any_address: bool = False
    ) -> None:
        self.app, self._hosts, self._token, self._any_address = app, hosts, token, any_address
        # Not the token itself: browsers send cookies to every port of a host.
        self._cookie = hmac.new((token or "").encode(), b"streamprep dashboard", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refusal(scope)
        await (answer or self.app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        """What to answer instead; None to let the request through."""
        if not self._is_called_right(scope):
            said = "this name is not known here; start with: streamprep dashboard --allow-host NAME"
            return PlainTextResponse(f"{said}\n", 421)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("this server only shows\n", 405, {"Allow": "GET, HEAD"})
        if self._token is None or scope["path"] in OPEN_TO_ALL:
            return None
        request = Request(scope)
        given = request.query_params.get("token")
        if given is not None and self._is_token(given):
            return self._with_cookie(scope)
        kind, _, shown = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(shown.strip()):
            return None
        if _same(request.cookies.get(self._cookie_name(scope), ""), self._cookie):
            return None
        return _asking_for_token(wrong=given is not None)

    def _is_called_right(self, scope: Scope) -> bool:
        given = Headers(scope=scope).getlist("host")
        if len(given) != 1:
            return False
        name = host_of(given[0])
        own = scope.get("server")
        return name in self._hosts or (self._any_address and own is not None and name == str(own[0]).lower())

    def _is_token(self, given: str) -> bool:
        return self._token is not None and _same(given, self._token)

    def _cookie_name(self, scope: Scope) -> str:
        """One for each port: dashboards of one machine share the browser's cookies."""
        server = scope.get("server")
        return f"streamprep_{server[1] if server else 0}"

    def _with_cookie(self, scope: Scope) -> Response:
        """Give the cookie, and go on without the token in the address.

        The page leads on itself: of a redirection the browser would say that the link's page sent it, as from a mail,
        and keep the cookie back.
        """
        query = [(name, value) for name, value in parse_qsl(scope["query_string"].decode()) if name != "token"]
        target = quote("/" + scope["path"].lstrip("/\\")) + ("?" + urlencode(query) if query else "")
        shown = html.escape(target, quote=True)
        answer = HTMLResponse(
            '<!doctype html><html lang="en"><head><title>streamprep</title>'
            f'<meta http-equiv="refresh" content="0; url={shown}"></head>'
            f'<p><a href="{shown}">On to the dashboard</a></p></html>'
        )
        answer.set_cookie(
            self._cookie_name(scope), self._cookie, max_age=30 * 86400, httponly=True, samesite="strict", path="/"
        )
        return answer


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())


def _asking_for_token(*, wrong: bool) -> Response:
    said = "That is not the token." if wrong else "This dashboard asks for a token."
    body = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>streamprep: token</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="/static/style.css"><link rel="icon" href="/static/icon.svg"></head>'
        f'<body><main class="ask card"><h1>streamprep</h1><p>{said} It was shown where the dashboard was started, '
        "or is in the file given there as <code>--token-file</code>.</p>"
        '<form action="/"><label for="token">Token</label>'
        '<input id="token" name="token" type="password" autocomplete="off" required> <button>Open</button></form>'
        "</main></body></html>"
    )
    return HTMLResponse(body, 401, {"WWW-Authenticate": "Bearer"})
