"""Making the ledger of a session again from its log of commits: what `streamprep repair` does.

What cannot be found again is what waits, failed or was rejected: those files are new to the next start, which looks at
them again. What is done stays done where its rows and files are whole; the rest is made again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from streamprep import journal
from streamprep.committer import STATE_FOLDER, Committer
from streamprep.config import Config
from streamprep.ledger import JOURNAL, Ledger, LedgerError
from streamprep.model import ConfigError
from streamprep.pipeline import Plan
from streamprep.plugin_manager import Plugins
from streamprep.session import LEDGER, find_output, lock_output
from streamprep.sinks import _files
from streamprep.watcher import file_system_of, is_remote

log = logging.getLogger(__name__)

DAMAGED = "damaged"
"""Folder of the state folder for ledgers that were put aside."""

_FILES = ("", "-wal", "-shm", "-journal")
"""Endings of the files that SQLite keeps a database in."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did."""

    output: Path
    trouble: str | None
    """What was wrong; None where nothing was, and nothing was changed."""
    commits: int = 0
    """Lines of the log of commits."""
    items: int = 0
    """That are done by them."""
    damaged: tuple[str, ...] = ()
    """Items that are made again at the next start, each with the reason; commits that were replaced by a newer one of
    the item are not among them."""
    aside: Path | None = None
    """Where the former ledger lies now."""


def repair(
    config: Config,
    plugins: Plugins,
    plan: Plan,
    *,
    verify: bool = False,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Repaired:
    """Make the ledger of a session again where it is missing or damaged, or where committed files are.

    Parameters
    ----------
    verify
        Read every committed file, and compare it with its checksum; otherwise only rows are read, and files compared
        by their size.
    progress
        Is told how many bytes of the log of commits are done, and of how many.

    Raises
    ------
    ConfigError
        There are no results of this plan, a daemon is at work there, or the log of commits is missing, too.
    """
    output, exists = find_output(config, plan)
    if not exists:
        raise ConfigError(f"{output}: nothing was processed with this plan so far, so there is nothing to repair")
    with lock_output(output):
        return _repair(output, config, plugins, plan, verify, progress)


def _repair(
    output: Path, config: Config, plugins: Plugins, plan: Plan, verify: bool, progress: Callable[[int, int], None]
) -> Repaired:
    state = output / STATE_FOLDER
    trouble = _trouble(output, config, plugins, verify)
    if trouble is None:
        return Repaired(output, None)
    path, made = state / LEDGER, state / f"new-{LEDGER}"
    for ending in _FILES:
        made.with_name(made.name + ending).unlink(missing_ok=True)
    with _committer(output, made, config, plugins) as (ledger, committer):
        log_of_commits = committer.rows_path(JOURNAL)
        if not log_of_commits.exists():
            raise ConfigError(
                f"{log_of_commits}: missing, and without it the ledger cannot be made again. Restore it from a copy, "
                "or give another output folder: everything is processed again then"
            )
        commits, items, damaged = _restore(ledger, committer, log_of_commits, verify, progress)
        ledger.put("plan", plan.hash)
    aside = None
    for ending in _FILES:
        old = path.with_name(path.name + ending)
        if old.exists():
            moved = _files.move_aside(old, state / DAMAGED)
            aside = aside or moved
    _files.place(made, path)
    return Repaired(output, trouble, commits, items, damaged, aside)


def _trouble(output: Path, config: Config, plugins: Plugins, verify: bool) -> str | None:
    """What is wrong with a ledger, or with what it knows of; None where nothing is."""
    path = output / STATE_FOLDER / LEDGER
    if not path.exists():
        return f"{path.name} is missing"
    try:
        with _committer(output, path, config, plugins) as (ledger, committer):
            if ledger.get("plan") is None:
                return f"{path.name} is empty"
            lost = committer.lost()
            if verify and not lost:
                lost = [
                    f"{shard.path} is not what was committed"
                    for shard in ledger.shards()
                    if not committer.is_whole(shard)
                ]
                lost += [
                    f"rows of {block.item} in {name} are not what was committed"
                    for name in ledger.lengths()
                    for block in ledger.live_blocks(name)
                    if not committer.are_rows_whole(block)
                ]
    except LedgerError as error:
        return str(error)
    return f"{lost[0]}{f'; and {len(lost) - 1} more' if lost[1:] else ''}" if lost else None


@contextlib.contextmanager
def _committer(output: Path, path: Path, config: Config, plugins: Plugins) -> Iterator[tuple[Ledger, Committer]]:
    ledger = Ledger(path, remote=is_remote(file_system_of(output)), suffixes=config.matching.suffixes)
    try:
        sinks = [sink for made in plugins.hook.make_sinks(config=config) for sink in made]
        yield ledger, Committer(output, ledger, sinks)
    finally:
        ledger.close()


def _restore(
    ledger: Ledger, committer: Committer, path: Path, verify: bool, progress: Callable[[int, int], None]
) -> tuple[int, int, tuple[str, ...]]:
    total, commits = path.stat().st_size, 0
    damaged: dict[str, str] = {}
    done: set[str] = set()
    groups: dict[str, int] = {}
    for line in journal.read(path):
        commits += 1
        if line is None:
            damaged[f"line {commits} of {path.name}"] = "damaged"
            continue
        commit = line.commit
        for table, made in commit.optics.items():
            if min(made, default=0) == groups.get(table, 0) + 1:
                groups[table] = max(made)
                ledger.put_optics(table, made)
        item = commit.job.item
        reason = _reason(committer, commit, groups, verify)
        if reason is not None:
            damaged[item] = reason
            continue
        ledger.restore(
            commit.source,
            commit.job,
            commit.shards,
            [*commit.blocks, journal.block_of(line)],
            warnings=commit.warnings,
            notes=commit.notes,
            seconds=commit.seconds,
            now=commit.finished,
        )
        done.add(item)
        damaged.pop(item, None)
        progress(line.start + line.length, total)
    return commits, ledger.job_counts().get("done", 0), tuple(f"{item}: {reason}" for item, reason in damaged.items())


def _reason(committer: Committer, commit: journal.Commit, groups: dict[str, int], verify: bool) -> str | None:
    """Why what a commit made cannot be used any more; None where it can."""
    for shard in commit.shards:
        if not (committer.is_whole(shard) if verify else committer.is_there(shard)):
            return f"{shard.path} is missing, or not what was committed"
    for block in commit.blocks:
        if not committer.are_rows_whole(block):
            return f"its rows in {block.table} are not what was committed"
    for table, number in commit.groups.items():
        if number > groups.get(table, 0):
            return f"its optics group in {table} is not known any more"
    return None
