"""Opening a session: what to watch, which output folder belongs to the plan, its lock and its ledger."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from pathlib import Path
from typing import IO

from streamprep.committer import STATE_FOLDER
from streamprep.config import Config
from streamprep.ledger import Ledger
from streamprep.model import ConfigError, Kind
from streamprep.naming import root_labels
from streamprep.pipeline import Plan
from streamprep.watcher import Source, file_system_of, is_remote

log = logging.getLogger(__name__)


def make_sources(config: Config, plan: Plan) -> list[Source]:
    """Everything to watch: masks and CTF tables first, as they may lie inside a watched folder.

    Raises
    ------
    ConfigError
        A folder does not exist, or is not a folder.
    """
    patterns: list[tuple[Kind, str]] = []
    if config.ctf is not None:
        patterns.append(("ctf", config.ctf.table))
    for kind, wanted in plan.companions.items():
        patterns += [(kind, pattern) for pattern in wanted if pattern is not None]
    sources = []
    for kind, pattern in patterns:
        parts = Path(pattern.replace("{stem}", "*").replace("{name}", "*")).parts
        marked = (index for index, part in enumerate(parts) if any(mark in part for mark in "*?["))
        split = min(next(marked, len(parts)), len(parts) - 1)
        root = config.resolve(str(Path(*parts[:split])))
        _need_folder(config, root, f"the {kind} pattern {pattern!r}")
        sources.append(Source(root, kind, "/".join(parts[split:]), kind))
    folders = config.watch_folders
    for folder in folders:
        _need_folder(config, folder, "[session] watch")
    for folder, label in zip(folders, root_labels(folders), strict=True):
        sources.append(Source(folder, label))
    return sources


def _need_folder(config: Config, folder: Path, what: str) -> None:
    if not folder.exists():
        raise ConfigError(f"{config.file}: {what}: folder {folder} does not exist; make it, or correct the path")
    if not folder.is_dir():
        raise ConfigError(f"{config.file}: {what}: {folder} is a file, not a folder")


def open_output(config: Config, plan: Plan, *, new_set: bool = False) -> tuple[Path, IO[str]]:
    """Choose the output folder for a plan and lock it.

    The configured folder and its numbered neighbours (``streamprep_out_2``…) each hold the results of one plan. The one
    with this plan is continued. If there are others only, ``new_set`` makes the next.

    Raises
    ------
    ConfigError
        The outputs were made with another plan and ``new_set`` is off; a daemon is at work there; the folder holds
        results without a ledger.
    """
    wanted = config.resolve(config.session.output)
    for folder in config.watch_folders:
        if wanted == folder or wanted in folder.parents or folder in wanted.parents:
            raise ConfigError(
                f"{config.file}: [session] output = {config.session.output!r} and the watched folder {folder} lie one "
                "inside the other; watched folders are never written to, choose an output beside them"
            )
    folder, exists = find_output(config, plan)
    if exists:
        return folder, _lock(folder)
    if folder != wanted and not new_set:
        raise ConfigError(
            f"{wanted} holds results of another plan (operations, parameters, optics or versions differ). Give the "
            "former configuration to continue it, or --new-set to process everything again into "
            f"{folder.name} beside it"
        )
    strangers = [name for name in ("particles.star", "noise.star", "particles", "noise") if (folder / name).exists()]
    if strangers:
        raise ConfigError(
            f"{folder} holds {strangers[0]} but no ledger ({STATE_FOLDER}/ledger.sqlite): it was not made here, or the "
            "ledger is lost. Give another output folder, or move these files away"
        )
    (folder / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
    return folder, _lock(folder)


def find_output(config: Config, plan: Plan) -> tuple[Path, bool]:
    """The output folder that holds a plan's results, and True; or the first that is free, and False."""
    wanted = config.resolve(config.session.output)
    number = 1
    while True:
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
        if not (folder / STATE_FOLDER).exists():
            return folder, False
        if _plan_hash_of(folder) in (None, plan.hash):
            return folder, True
        number += 1


def _plan_hash_of(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / STATE_FOLDER / "plan.json").read_text())["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def try_lock(folder: Path) -> IO[str] | None:
    """Take the folder's lock, or None where another process has it; the kernel gives it back when this one ends."""
    file = (folder / STATE_FOLDER / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _lock(folder: Path) -> IO[str]:
    file = try_lock(folder)
    if file is None:
        owner = (folder / STATE_FOLDER / "lock").read_text().strip() or "unknown"
        raise ConfigError(f"{folder}: another streamprep is at work here (process {owner}); stop it first")
    return file


def open_ledger(output: Path, config: Config, plan: Plan) -> Ledger:
    """Open the ledger of an output folder, and make sure that it was made with this plan.

    Raises
    ------
    ConfigError
        There are results, but the ledger is missing or of another plan.
    LedgerError
        It is damaged.
    """
    path = output / STATE_FOLDER / "ledger.sqlite"
    if not path.exists() and (output / STATE_FOLDER / "rows").exists():
        raise ConfigError(
            f"{output}: there are results, but {path.name} is missing. Restore it from a copy, or give another output "
            "folder"
        )
    remote = file_system_of(output)
    if is_remote(remote):
        log.warning("%s is on %s: the ledger uses a rollback journal, which is slower", output, remote)
    ledger = Ledger(path, remote=is_remote(remote), suffixes=config.matching.suffixes)
    made_with = ledger.get("plan")
    if made_with is None:
        ledger.put("plan", plan.hash)
    elif made_with != plan.hash:
        ledger.close()
        raise ConfigError(f"{output}: the ledger belongs to another plan; use --new-set")
    described = {"hash": plan.hash, "steps": [step.describe() for step in plan.steps], **plan.settings}
    (output / STATE_FOLDER / "plan.json").write_text(json.dumps(described, indent=1))
    return ledger
