"""The process that a run starts for its pictures: it is polite, and it ends with its daemon.

Its standard input is the line to the daemon: first one line of JSON with the configuration, later perhaps a line
``finish SECONDS``. Where the line breaks, the daemon is gone, and so is the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import platform
import select
import signal
import sys
from pathlib import Path

SET_DEATH_SIGNAL = 1
IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
IDLE_CLASS = 3 << 13

log = logging.getLogger("streamprep.report")


def be_polite() -> None:
    """Come after everything else in all that the kernel shares out, and die with the daemon."""
    for number in (signal.SIGINT, signal.SIGHUP):  # they reach the whole group; the daemon says when to end
        signal.signal(number, signal.SIG_IGN)
    os.nice(19)
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if platform.machine() in IOPRIO_SET:
            libc.syscall(IOPRIO_SET[platform.machine()], 1, 0, IDLE_CLASS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")


def main() -> int:
    """Make pictures until the daemon says, or ends."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    be_polite()
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1 << 16)
        if not part:
            return 0
        line += part
    said, _, heard = line.partition(b"\n")
    from streamprep.config import Config
    from streamprep.pipeline import resolve
    from streamprep.plugin_manager import load_plugins
    from streamprep.report.process import Maker

    config = Config.model_validate(json.loads(said))
    plugins = load_plugins(block=config.plugins.block)
    maker = Maker(config, plugins, resolve(config, plugins), config.resolve(config.session.output))
    maker.start()
    rest = 0.0
    while True:
        ready, _, _ = select.select([0], [], [], rest)
        if ready:
            part = os.read(0, 1 << 16)
            if not part:
                return 0
            heard += part
        if b"\n" in heard:
            verb, seconds = heard.split()[:2]
            assert verb == b"finish"
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # nobody has to wait for pictures
            maker.finish(float(seconds))
            return 0
        try:
            rest = maker.round()
        except Exception:
            log.exception("no pictures for a minute")
            rest = 60.0


if __name__ == "__main__":
    sys.exit(main())
