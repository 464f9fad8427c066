"""Looking at a session from outside, and asking it to retry: `streamprep status` and `streamprep retry`.

While the daemon runs it alone has the ledger; it is seen through ``status.json`` and asked through request files.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import time
from pathlib import Path
from typing import Any

from streamprep.committer import STATE_FOLDER
from streamprep.config import Config
from streamprep.ledger import Ledger
from streamprep.model import ConfigError
from streamprep.pipeline import Plan
from streamprep.session import find_output, open_ledger, try_lock
from streamprep.snapshot import clean, rows_of_sets, unmatched_text
from streamprep.units import counted

LISTED = 50
OLD_SECONDS = 10


def look(config: Config, plan: Plan) -> dict[str, Any]:
    """The state of the session, from the running daemon or from the ledger.

    Raises
    ------
    ConfigError
        Nothing was processed with this plan so far.
    """
    output = existing_output(config, plan)
    lock = try_lock(output, shared=True)
    if lock is None:
        return {"daemon": "running", **last_written(output)}
    with lock:
        if not os.access(output / STATE_FOLDER, os.W_OK):  # another user's: opening a ledger writes
            return {"daemon": "not running", **last_written(output)}
        ledger = open_ledger(output, config, plan, looking=True)
        try:
            return {"daemon": "not running", "output": str(output), **_from_ledger(ledger)}
        finally:
            ledger.close()


def last_written(output: Path) -> dict[str, Any]:
    """What the daemon wrote last of its state, and how old that is; nothing is locked.

    Raises
    ------
    ConfigError
        It wrote nothing so far, or that cannot be read.
    """
    path = output / STATE_FOLDER / "status.json"
    try:
        written = path.stat().st_mtime
        report: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{output}: no state was written yet; ask again in a moment ({error})") from error
    return {"age_seconds": round(time.time() - written, 1), **report}


def _from_ledger(ledger: Ledger) -> dict[str, Any]:
    now = time.time()
    files = ledger.file_counts()
    return {
        "mode": "not running",
        "message": "",
        "jobs": ledger.job_counts(),
        "files": {f"{kind} {state}": count for (kind, state), count in files.items()},
        "waiting": [(item, reason, now - since) for item, reason, since in ledger.waiting(LISTED)],
        "waiting_count": ledger.waiting_count(),
        "unmatched": ledger.unmatched(LISTED),
        "rows": rows_of_sets({name: rows for name, (_, rows) in ledger.versions().items() if "{item}" not in name}),
        "failed": ledger.ended_count("failed"),
        "rejected": ledger.ended_count("rejected"),
        "unknown_files": files.get(("other", "rejected"), 0),
        "failures": ledger.failures(LISTED),
        "warnings": ledger.warnings(LISTED),
    }


def report_text(report: dict[str, Any], *, tracebacks: bool = False) -> str:
    """The state for people."""
    age = f", state {report['age_seconds']:g} s old" if "age_seconds" in report else ""
    if report["daemon"] == "running" and report.get("age_seconds", 0) > OLD_SECONDS:
        age += ": it cannot be written, as where the disk is full, or the daemon is stuck"
    lines = [f"{clean(report['output'])}: daemon {report['daemon']}{age}"]
    if report.get("message"):
        lines.append(clean(report["message"]))
    lines += [f"degraded: {clean(trouble)}" for trouble in report.get("degraded", ())]
    jobs = report["jobs"]
    busy = min(len(report.get("running", ())), report.get("workers", 0))
    lines.append(
        ", ".join(
            [
                f"{jobs.get('done', 0)} done",
                f"{busy} in work",
                f"{jobs.get('ready', 0) + max(0, jobs.get('claimed', 0) - busy)} queued",
                f"{report['waiting_count']} waiting",
                f"{report['failed']} failed",
                f"{report['rejected']} rejected",
            ]
        )
    )
    lines += [f"  {count:,} rows in {clean(name)}" for name, count in report["rows"].items()]
    lines += [f"waiting: {clean(item)}: {clean(reason)}" for item, reason, _ in report["waiting"]]
    lines += [unmatched_text(kind, clean(name)) for kind, name in report.get("unmatched", ())]
    if report["unknown_files"]:
        lines.append(f"{report['unknown_files']} files were left alone: of no known kind, or used by operations")
    for row in report["failures"]:
        lines.append(f"{row['state']}: {clean(row['file'])}: {clean(row['reason'])} ({row['attempts']} attempts)")
        if tracebacks and row["traceback"]:
            lines += [f"    {clean(line)}" for line in row["traceback"].splitlines()]
    warnings = report["warnings"]
    if isinstance(warnings, int):
        lines.append(f"{warnings} items with warnings")
    else:
        items: dict[str, list[str]] = {}
        for item, said in warnings:
            for text in said:
                items.setdefault(text, []).append(item)
        for text, named in items.items():
            more = f" and {len(named) - 1} more" if len(named) > 1 else ""
            lines.append(f"warning: {clean(named[0])}{more}: {clean(text)}")
    if any(row["state"] == "failed" for row in report["failures"]):
        lines.append("failed items are taken up again by: streamprep retry")
    return "\n".join(lines)


def retry(config: Config, plan: Plan, name: str | None) -> str:
    """Ask for failed items to be taken up again; returns what was done."""
    output = existing_output(config, plan)
    lock = try_lock(output, shared=True)
    if lock is None:
        request = output / STATE_FOLDER / f"request-{time.time_ns()}.json"
        begun = request.with_suffix(".part")
        try:
            begun.write_text(json.dumps({"name": name}))
            begun.rename(request)
        except OSError as error:
            with contextlib.suppress(OSError):
                begun.unlink()
            raise ConfigError(f"{output}: the daemon cannot be asked: {error.strerror}") from error
        return "the running daemon was asked to take failed items up again"
    with lock:
        ledger = open_ledger(output, config, plan, looking=True)
        try:
            count = ledger.retry(name)
        finally:
            ledger.close()
    if not count and name:
        return f"no item that failed has {name!r} in its name; streamprep status lists them"
    if not count:
        return "nothing has failed: there is nothing to take up again"
    return f"{counted(count, 'failed items')} will be taken up again at the next start"


def existing_output(config: Config, plan: Plan) -> Path:
    """The output folder of a session that was begun.

    Raises
    ------
    ConfigError
        Nothing was processed with this plan so far.
    """
    output, exists = find_output(config, plan)
    if exists:
        return output
    wanted = config.resolve(config.session.output)
    numbered = sorted(wanted.parent.glob(f"{glob.escape(wanted.name)}_[0-9]*"))
    others = [str(folder) for folder in (wanted, *numbered) if (folder / STATE_FOLDER).exists()]
    if others:
        raise ConfigError(
            f"nothing was processed with this plan so far; {', '.join(others)} "
            f"{'hold' if len(others) > 1 else 'holds'} results of another plan. To look at those, give the "
            "configuration and the --set values of their run"
        )
    raise ConfigError(f"{output}: nothing was processed with this configuration so far; streamprep run begins")
