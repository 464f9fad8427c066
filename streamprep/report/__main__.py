"""The process that a run starts for its pictures: it is polite while the run lasts, and it ends with its daemon.

Its standard input is the line to the daemon: first one line of JSON with the configuration, later perhaps a line
``finish SECONDS``. Where the line breaks, the daemon is gone, and so is the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import logging.handlers
import os
import platform
import signal
import sys
import threading
import time
from pathlib import Path

from streamprep.config import Config
from streamprep.pipeline import resolve
from streamprep.plugin_manager import load_plugins
from streamprep.report.process import Maker
from streamprep.snapshot import LogForm

SET_DEATH_SIGNAL = 1
IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
IDLE_CLASS = 3 << 13
MOST_LOG_BYTES = 1 << 20

log = logging.getLogger("streamprep.report")


def die_with_daemon() -> None:
    """Have the kernel end this process with the daemon, also where it was stopped."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # they reach the whole group; the daemon ends it
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")


def be_polite() -> None:
    """Come after everything else in all that the kernel shares out; of this thread alone, as Linux has it."""
    os.nice(19)
    if platform.machine() in IOPRIO_SET:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).syscall(IOPRIO_SET[platform.machine()], 1, 0, IDLE_CLASS)


def make_now_and_then(maker: Maker, over: threading.Event) -> None:
    """Make pictures beside the session, politely, until it is over."""
    be_polite()
    rest = 0.0
    while not over.wait(rest):
        try:
            rest = maker.round()
        except Exception:
            log.exception("no pictures for a minute")
            rest = 60.0


def main() -> int:
    """Make pictures until the daemon says, or ends."""
    die_with_daemon()
    said = sys.stdin.buffer.readline()
    if not said.endswith(b"\n"):
        return 0
    config = Config.model_validate(json.loads(said))
    output = config.resolve(config.session.output)
    logging.basicConfig(level=logging.INFO, handlers=[bounded_log(output)])
    try:
        return make(config, output)
    except Exception:
        log.exception("no more pictures")
        return 1


def bounded_log(output: Path) -> logging.Handler:
    """The log of this process, and an older one; what the interpreter has to say comes there, too."""
    path = output / ".streamprep" / "log" / "pictures.log"
    made = logging.handlers.RotatingFileHandler(
        path, maxBytes=MOST_LOG_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace"
    )
    made.setFormatter(LogForm("%(asctime)s %(levelname)s %(message)s"))
    return made


def make(config: Config, output: Path) -> int:
    """Make pictures until the daemon says."""
    plugins = load_plugins(block=config.plugins.block)
    maker = Maker(config, plugins, resolve(config, plugins), output)
    over = threading.Event()
    thread = threading.Thread(target=make_now_and_then, args=(maker, over), daemon=True)
    thread.start()
    verb, _, seconds = sys.stdin.buffer.readline().partition(b" ")
    if verb != b"finish":
        os._exit(0)  # the daemon is gone
    until = time.monotonic() + float(seconds)
    over.set()
    thread.join(float(seconds))
    if not thread.is_alive():
        maker.finish(until - time.monotonic())  # the session's own work is done: in this thread, which was not polite
    return 0


if __name__ == "__main__":
    sys.exit(main())
