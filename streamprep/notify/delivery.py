"""Brings messages to a webhook or a mail command, in a thread of its own: the session never waits for them."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from http.client import HTTPException, HTTPMessage
from typing import IO, Any, Protocol
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from streamprep.config import Config
from streamprep.model import ConfigError
from streamprep.notify.wording import Message
from streamprep.snapshot import clean

log = logging.getLogger(__name__)

MOST_QUEUED = 32
TIMEOUT_SECONDS = 10.0
PAUSES_SECONDS = (5.0, 30.0)
"""Before the second and the third try."""
_TRY_AGAIN = (408, 425, 429)
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_NO_MENTION = str.maketrans({"<": "‹", ">": "›", "@": "＠", "[": "［", "]": "］"})


class Undelivered(Exception):  # noqa: N818 - it says what happened, and ends nothing
    """A message was not taken; ``again``: a further try may help."""

    def __init__(self, reason: str, *, again: bool = True) -> None:
        super().__init__(clean(reason)[:300])
        self.again = again


class Target(Protocol):
    """Where messages go."""

    label: str
    """What to call it in logs; holds no secret."""

    def send(self, message: Message, seconds: float) -> None:
        """Deliver one message within some seconds, or raise `Undelivered`."""


class _NoRedirect(request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: request.Request,  # noqa: ARG002
        fp: IO[bytes],  # noqa: ARG002
        code: int,
        msg: str,  # noqa: ARG002
        headers: HTTPMessage,  # noqa: ARG002
        newurl: str,
    ) -> None:
        raise Undelivered(
            f"answered {code}, a redirect to {urlsplit(newurl).hostname}, which is not followed; give that address",
            again=False,
        )


class Webhook:
    """Posts JSON to an address whose path is a secret.

    Parameters
    ----------
    address
        https, or http to this machine itself.
    form
        ``text``: an object with ``text`` and further fields (Slack, Mattermost, Discord with ``/slack``); ``teams``: an
        adaptive card.

    Raises
    ------
    ConfigError
        It is no such address.
    """

    def __init__(self, address: str, form: str = "text") -> None:
        try:
            parts = urlsplit(address)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        plain = address.isascii() and address.isprintable() and not {" ", "@"} & set(address)
        if not host or not plain or parts.scheme not in ("https", "http"):
            raise ConfigError("[notify] webhook: this is no address; give it as https://HOST/…, without a user's name")
        here = _is_loopback(host)
        if parts.scheme == "http" and not here:
            raise ConfigError(
                f"[notify] webhook: http://{host}/… would send the address, which is a secret, in the clear; give it "
                "as https://… (http is for this machine itself)"
            )
        self.label, self._address, self._form = f"the webhook at {host}", address, form
        self._secret = [part for part in (parts.path, parts.query, *parts.path.split("/")) if len(part) > 3]
        handlers: list[request.BaseHandler] = [_NoRedirect()]
        if here:
            handlers.append(request.ProxyHandler({}))
        self._opener = request.build_opener(*handlers)

    def send(self, message: Message, seconds: float) -> None:
        """Post it."""
        body = json.dumps(payload(message, self._form)).encode()
        headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "streamprep"}
        try:
            made = request.Request(self._address, body, headers, method="POST")  # noqa: S310 - checked above
            with self._opener.open(made, timeout=seconds):
                return
        except HTTPError as error:
            with error, contextlib.suppress(OSError, HTTPException):
                said = error.read(200).decode("utf-8", "replace")
                raise self._failed(
                    f"answered {error.code} {error.reason}: {said}", error.code >= 500 or error.code in _TRY_AGAIN
                ) from None
            raise self._failed(f"answered {error.code}") from None
        except URLError as error:
            raise self._failed(str(error.reason)) from None
        except (OSError, HTTPException, ValueError) as error:
            raise self._failed(f"{type(error).__name__}: {error}") from None

    def _failed(self, reason: str, again: bool = True) -> Undelivered:
        for secret in self._secret:
            reason = reason.replace(secret, "…")
        return Undelivered(reason, again=again)


class MailCommand:
    """Runs a command without a shell, with the message as its input and the subject for ``{subject}``."""

    def __init__(self, command: Sequence[str]) -> None:
        self.label, self._command = f"the command {clean(command[0])}", command

    def send(self, message: Message, seconds: float) -> None:
        """Run it; it is stopped, with what it started, when it takes too long."""
        try:
            self._run(message, seconds)
        except OSError as error:  # as where there is no room for the message
            raise Undelivered(f"could not be run: {error}") from None

    def _run(self, message: Message, seconds: float) -> None:
        command = [part.replace("{subject}", message.subject) for part in self._command]
        body = f"{message.text}\n\n{message.fields['time']}\n".encode()
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
            given.write(body)
            given.seek(0)
            try:
                process = subprocess.Popen(command, stdin=given, stdout=said, stderr=said, start_new_session=True)  # noqa: S603
            except (OSError, ValueError) as error:
                raise Undelivered(f"could not be run: {error}", again=False) from None
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise Undelivered(f"took longer than {seconds:.0f} s") from None
            if code:
                said.seek(0)
                raise Undelivered(f"ended with {code}: {said.read(300).decode('utf-8', 'replace').strip()}")


class Delivery:
    """Delivers messages one after the other, in a daemon thread that begins with the first of them.

    Parameters
    ----------
    targets
        Each gets every message.
    pauses
        Seconds before each further try.
    """

    def __init__(self, targets: Sequence[Target], *, pauses: Sequence[float] = PAUSES_SECONDS) -> None:
        self._targets, self._pauses = targets, pauses
        self._queue: deque[Message] = deque()
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self._deadline = 0.0
        self._thread: threading.Thread | None = None
        self._lost: dict[str, int] = {}
        """Messages that were lost by each target that fails at present."""
        self._dropped = 0

    @property
    def where(self) -> str:
        """All the targets."""
        return " and ".join(target.label for target in self._targets)

    def put(self, message: Message) -> None:
        """Queue a message, and return at once. Where too many wait, the oldest is dropped."""
        with self._changed:
            if len(self._queue) >= MOST_QUEUED:
                self._queue.popleft()
                self._dropped += 1
            self._queue.append(message)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Wait for what is queued, for some seconds at most: each message gets one more try, and a share of them."""
        self._deadline = time.monotonic() + seconds
        with self._changed:
            self._ending.set()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                log.warning("the last messages were not taken within %.0f s: %s", seconds, self.where)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._ending.is_set():
                    self._changed.wait()
                if not self._queue:
                    return
                message, left = self._queue.popleft(), len(self._queue)
                dropped, self._dropped = self._dropped, 0
            if dropped:
                log.warning("%d messages were dropped, as too many waited for %s", dropped, self.where)
            for number, target in enumerate(self._targets):
                try:
                    self._deliver(target, message, left * len(self._targets) + len(self._targets) - number)
                except Exception:  # a fault here is no reason to be silent for the rest of the session
                    log.exception("a message to %s was lost", target.label)

    def _deliver(self, target: Target, message: Message, left: int) -> None:
        reason = ""
        for pause in (0.0, *self._pauses):
            last_try = self._ending.wait(pause) if pause else self._ending.is_set()
            seconds = TIMEOUT_SECONDS
            if last_try:
                seconds = min(seconds, max(0.1, (self._deadline - time.monotonic()) / left))
            try:
                target.send(message, seconds)
            except Undelivered as error:
                reason = str(error)
                if last_try or not error.again:
                    break
                continue
            lost = self._lost.pop(target.label, 0)
            if lost:
                log.warning("%s takes messages again; %d were lost", target.label, lost)
            return
        if target.label not in self._lost:
            log.warning("%s does not take messages, the session goes on without: %s", target.label, reason)
        self._lost[target.label] = self._lost.get(target.label, 0) + 1


def targets(config: Config, environ: Mapping[str, str] = os.environ) -> list[Target]:
    """Where messages go, as the configuration says.

    Raises
    ------
    ConfigError
        An address is none, a variable is not set, or a file cannot be read.
    """
    notify, made = config.notify, list[Target]()
    if notify.webhook is not None and notify.webhook_file is not None:
        raise ConfigError(f"{config.file}: [notify] webhook and webhook_file: give one of the two")
    try:
        if notify.webhook is not None:
            made.append(Webhook(_expand(notify.webhook.get_secret_value(), environ), notify.webhook_format))
        if notify.webhook_file is not None:
            if "://" in notify.webhook_file:  # not shown: it is a secret
                raise ConfigError("[notify] webhook_file: this is an address, not a file; give it as webhook")
            path = config.resolve(notify.webhook_file)
            made.append(Webhook(path.read_text(encoding="utf-8").strip(), notify.webhook_format))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"{config.file}: [notify] webhook_file: {notify.webhook_file}: {reason}") from None
    except ConfigError as error:
        raise ConfigError(f"{config.file}: {error}") from None
    if notify.mail:
        made.append(MailCommand(notify.mail))
    return made


def payload(message: Message, form: str) -> dict[str, Any]:
    """The object that is posted. Text from outside cannot mention people, nor make links."""
    text = message.text.translate(_NO_MENTION).replace("://", ": //")
    if form == "teams":
        card = {
            "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
            "type": "AdaptiveCard",
            "version": "1.4",
            "body": [{"type": "TextBlock", "text": line, "wrap": True} for line in text.splitlines()],
        }
        return {
            "type": "message",
            "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive", "content": card}],
        }
    return {"text": text, "event": message.event, "state": message.state, **message.fields}


def _expand(text: str, environ: Mapping[str, str]) -> str:
    missing = [name for name in _VARIABLE.findall(text) if name not in environ]
    if missing:
        raise ConfigError(f"[notify] webhook: the environment variable {missing[0]} is not set")
    return _VARIABLE.sub(lambda found: environ[found[1]], text).strip()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
