"""Messages about a session, to a chat or by e-mail, where ``[notify]`` says whereto. A plugin of the life cycle."""

from __future__ import annotations

import logging
import time
from typing import Any

from streamprep.hookspecs import hookimpl

log = logging.getLogger(__name__)

LAST_SECONDS = 10.0
"""The last messages of a session get this long; then it ends without them."""

_session: tuple[Any, Any] | None = None
"""What words the messages of this process's session, and what delivers them."""


def places(config: Any) -> list[str]:
    """Where messages go, without secrets.

    Raises
    ------
    ConfigError
        The address or the command cannot be used.
    """
    if not config.notify.wanted:
        return []
    from streamprep.notify.delivery import targets

    return [target.label for target in targets(config)]


def test(config: Any) -> list[tuple[str, str]]:
    """Send a test message to each place, and wait: the place, and why it was not taken, empty where it was."""
    from streamprep.notify.delivery import TIMEOUT_SECONDS, Undelivered, targets
    from streamprep.notify.wording import Messenger

    message = Messenger(config, lambda _: None, clock=time.monotonic, now=time.time).test()
    said = []
    for target in targets(config):
        try:
            target.send(message, TIMEOUT_SECONDS)
        except Undelivered as error:
            said.append((target.label, str(error)))
        else:
            said.append((target.label, ""))
    return said


@hookimpl
def run_started(config: Any) -> None:
    """Begin, where the configuration says whereto.

    Raises
    ------
    ConfigError
        The address or the command cannot be used; the engine logs it.
    """
    global _session
    _session = None
    if not config.notify.wanted:
        return
    from streamprep.notify.delivery import Delivery, targets
    from streamprep.notify.wording import Messenger

    delivery = Delivery(targets(config))
    _session = Messenger(config, delivery.put, clock=time.monotonic, now=time.time), delivery
    log.info("messages about this session go to %s", delivery.where)


@hookimpl
def item_finished(item: str, state: str, reason: str | None) -> None:
    """Count how items end."""
    if _session is not None:
        _session[0].item_finished(item, state, reason)


@hookimpl
def warning_raised(message: str) -> None:
    """Pass it on, where that is wanted."""
    if _session is not None:
        _session[0].warning_raised(message)


@hookimpl
def snapshot_taken(snapshot: Any) -> None:
    """See whether something began or ended."""
    if _session is not None:
        _session[0].snapshot_taken(snapshot)


@hookimpl
def run_stopped(snapshot: Any) -> None:
    """Tell how the session ended, and wait a bounded time for that."""
    global _session
    if _session is not None:
        (messenger, delivery), _session = _session, None
        messenger.run_stopped(snapshot)
        delivery.close(LAST_SECONDS)
