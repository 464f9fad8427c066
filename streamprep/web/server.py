"""Running the dashboard: its socket, its token, what is said at the start, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import getpass
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from streamprep.model import ConfigError
from streamprep.web import security
from streamprep.web.app import Dashboard
from streamprep.web.state import Watch

MOST_CONNECTIONS = 200
HEAD_SECONDS = 10.0
"""A connection on which no whole head of a request came for so long is closed: others may want its place."""


class _Connection(H11Protocol):
    """Closes itself where nothing whole is asked: uvicorn's own time-out is of what comes after an answer alone."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:  # it is being answered
            self._hurry_no_more()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._hurry_no_more()
        super().connection_lost(exc)

    def _hurry_no_more(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, end: Callable[[], None]) -> None:
        super().__init__(config)
        self._end = end

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Those who look on are let go first: their answers never end by themselves."""
        super().handle_exit(sig, frame)
        self._end()


def serve(
    find: Callable[[], tuple[Path, bool]],
    *,
    config: Path,
    overrides: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8765,
    token_file: Path | None = None,
    allow_hosts: Sequence[str] = (),
    out: Callable[[str], None] = print,
) -> None:
    """Show a session until a signal ends it.

    Parameters
    ----------
    find
        The output folder, and whether it is there.
    config, overrides
        The configuration file and what was overridden, for the commands that are shown.
    host, port
        Where to listen; 0 for any free port.
    token_file
        Holds the token. Without it there is none on addresses of this machine alone, and a new one on others.
    allow_hosts
        Further names that the server is called by.
    out
        Takes the lines that say where it is.

    Raises
    ------
    ConfigError
        The address cannot be had, or the token file cannot be used.
    """
    token = security.read_token(token_file) if token_file is not None else None
    private = security.is_loopback(host)
    made = token is None and not private
    if made:
        token = security.new_token()
    with contextlib.closing(_listen(host, port)) as listening:
        port = listening.getsockname()[1]
        everywhere = host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
        hosts = security.allowed_hosts(host, allow_hosts, (socket.gethostname(), socket.getfqdn()))
        dashboard = Dashboard(Watch(find), config=config, overrides=overrides)
        name = socket.gethostname() if everywhere else host
        address = f"http://{f'[{name}]' if ':' in name else name}:{port}/"
        output, exists = find()
        out(f"streamprep dashboard of {output}" + ("" if exists else ", which is not there yet: it is waited for"))
        out(f"  open            {address}{f'?token={token}' if made else ''}")
        if token_file is not None:
            out(f"  token           in {token_file}")
        if private:
            out(f"  from elsewhere  ssh -N -L {port}:{address[7:-1]} {_user()}@{socket.gethostname()}")
            out(f"                  and open http://localhost:{port}/ there")
        out("  end             Ctrl-C")
        server = _Server(
            uvicorn.Config(
                dashboard.guarded(hosts, token, any_address=everywhere),
                loop="asyncio",
                http=_Connection,
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_graceful_shutdown=3,
            ),
            dashboard.end,
        )
        with _signals_end_it(), contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """uvicorn sends itself again the signal that ended it; here that is the end that was asked for."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        made = socket.socket(family, kind)
    except OSError as error:
        raise ConfigError(f"--host {host}: it is no address of this machine: {error.strerror or error}") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            said = f"--port {port}: it is in use, perhaps by another dashboard; give another, as --port {port + 1}"
        elif error.errno == errno.EACCES:
            said = f"--port {port}: this user may not listen there; give one above 1023"
        else:
            said = f"--host {host} --port {port}: {error.strerror or error}"
        raise ConfigError(said) from error
    return made


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "USER"
