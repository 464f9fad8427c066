"""Mending a session of which something was lost: what `streamprep repair` does.

Where the ledger is sound, those items are made again of which rows or files are missing or damaged. Where it is not, it
is made again from the log of commits. What cannot be found again then is what waits, failed or was rejected: those
files are new to the next start, which looks at them again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from streamprep import journal
from streamprep.committer import STATE_FOLDER, Committer, size_of
from streamprep.config import Config
from streamprep.ledger import JOURNAL, Block, DamagedLedgerError, Ledger, Shard
from streamprep.ledger_upgrade import upgrade
from streamprep.model import ConfigError
from streamprep.pipeline import Plan
from streamprep.plugin_manager import Plugins
from streamprep.session import LEDGER, find_output, lock_output
from streamprep.sinks import _files
from streamprep.watcher import file_system_of, is_remote

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
    """Lines of the log of commits that a new ledger was made of; 0 where the ledger was sound."""
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
    """Make a session whole again where its ledger is missing or damaged, or where committed files are.

    Parameters
    ----------
    verify
        Read every committed file, and compare it with its checksum; otherwise only rows are read, and files compared
        by their size.
    progress
        Is told how much is done, and of how much.

    Raises
    ------
    ConfigError
        There are no results of this plan, a daemon is at work there, or the log of commits is missing, too.
    LedgerError
        The ledger is sound, as far as can be told, but cannot be used: another process has it, or it is of another
        version.
    """
    output, exists = find_output(config, plan)
    if not exists:
        raise ConfigError(f"{output}: nothing was processed with this plan so far, so there is nothing to repair")
    with lock_output(output):
        return _repair(output, config, plugins, plan, verify, progress)


def _repair(
    output: Path, config: Config, plugins: Plugins, plan: Plan, verify: bool, progress: Callable[[int, int], None]
) -> Repaired:
    path = output / STATE_FOLDER / LEDGER
    if not path.exists():
        return _rebuild(output, config, plugins, plan, verify, progress, f"{path.name} is missing")
    try:
        with _committer(output, path, config, plugins) as (ledger, committer):
            committer.finish_upgrade()
            later = committer.later_commits()
            if ledger.get("plan") is None:
                trouble = f"{path.name} is empty"
            elif len(set(later)) > 1:
                trouble = f"{path.name} is older than the rest: {len(later)} commits came after it"
            else:
                return _mend(output, ledger, committer, verify, progress)
    except DamagedLedgerError as error:
        trouble = f"{path.name} is damaged: {error.reason}"
    return _rebuild(output, config, plugins, plan, verify, progress, trouble)


@contextlib.contextmanager
def _committer(output: Path, path: Path, config: Config, plugins: Plugins) -> Iterator[tuple[Ledger, Committer]]:
    remote = is_remote(file_system_of(output))
    ledger = Ledger(path, remote=remote, suffixes=config.matching.suffixes, upgrade=upgrade)
    try:
        sinks = plugins.make_sinks(config)
        yield ledger, Committer(output, ledger, sinks)
    finally:
        ledger.close()


# --- with a sound ledger ---------------------------------------------------------------------------------------------


def _mend(
    output: Path, ledger: Ledger, committer: Committer, verify: bool, progress: Callable[[int, int], None]
) -> Repaired:
    """Have those items made again of which something is missing or damaged; make the log of commits whole again."""
    lost = committer.lost()
    damaged: list[str] = []
    jobs = ledger.done_jobs()
    for number, job in enumerate(jobs, start=1):
        made, shards, blocks, _ = ledger.committed(job)
        reason = _reason(committer, shards, blocks, verify)
        if reason is not None:
            ledger.undo(job, reason)
            damaged.append(f"{made.item}: {reason}")
        progress(number, len(jobs))
    ledger.forget_shards(shard.path for shard in ledger.shards() if not committer.is_there(shard))
    for table, length in ledger.lengths().items():
        log_of_rows = committer.rows_path(table)
        if table != JOURNAL and size_of(log_of_rows) < length:  # nothing that is live lies there any more
            _files.make_folder(log_of_rows.parent)
            with log_of_rows.open("ab") as file:
                file.truncate(length)
            _files.fsync_file(log_of_rows)
    trouble = None
    if lost or damaged:
        first, *others = lost or damaged
        trouble = f"{first}; and {len(others)} more" if others else first
    if not all(committer.are_rows_whole(block) for block in ledger.journal_blocks()):
        committer.rewrite_journal()
        said = f"{committer.rows_path(JOURNAL).name}, the log of commits, was missing or damaged, and was written anew"
        trouble = said if trouble is None else f"{trouble}; {said}"
    return Repaired(output, trouble, 0, len(jobs) - len(damaged), tuple(damaged))


# --- without one -----------------------------------------------------------------------------------------------------


def _rebuild(
    output: Path,
    config: Config,
    plugins: Plugins,
    plan: Plan,
    verify: bool,
    progress: Callable[[int, int], None],
    trouble: str,
) -> Repaired:
    state = output / STATE_FOLDER
    path, made = state / LEDGER, state / f"new-{LEDGER}"
    _remove(made)
    try:
        with _committer(output, made, config, plugins) as (ledger, committer):
            log_of_commits = committer.rows_path(JOURNAL)
            if not log_of_commits.exists():
                raise ConfigError(
                    f"{output}: {trouble}; {log_of_commits.name}, which it is made again from, is missing, too. "
                    "Restore one of them from a copy; or give another output folder, and everything is processed again"
                )
            commits, damaged = _restore(ledger, committer, log_of_commits, plan, verify, progress)
            ledger.put("plan", plan.hash)
            items = ledger.job_counts().get("done", 0)
    except BaseException:
        _remove(made)
        raise
    aside = None
    for ending in _FILES:
        old = path.with_name(path.name + ending)
        if old.exists():
            moved = _files.move_aside(old, state / DAMAGED)
            aside = aside or moved
    _files.place(made, path)
    return Repaired(output, trouble, commits, items, damaged, aside)


def _remove(ledger: Path) -> None:
    for ending in _FILES:
        ledger.with_name(ledger.name + ending).unlink(missing_ok=True)


def _restore(
    ledger: Ledger, committer: Committer, path: Path, plan: Plan, verify: bool, progress: Callable[[int, int], None]
) -> tuple[int, tuple[str, ...]]:
    total, commits = path.stat().st_size, 0
    damaged: dict[str, str] = {}
    for line in journal.read(path):
        commits += 1
        if line is None:
            damaged[f"line {commits} of {path.name}"] = "damaged"
            continue
        commit = line.commit
        if commit.plan != plan.hash:
            raise ConfigError(
                f"{path}: these results were made with another plan (operations, parameters, optics or versions "
                "differ); repair them with the configuration that they were made with"
            )
        item = commit.job.item
        reason = _reason(committer, commit.shards, commit.blocks, verify, rows=True)
        if reason is not None:
            damaged[item] = reason
            continue
        for table, groups in commit.optics.items():
            ledger.put_optics(table, groups)
        ledger.restore(
            commit.source,
            commit.job,
            commit.shards,
            [*commit.blocks, journal.block_of(line)],
            tables=commit.tables,
            warnings=commit.warnings,
            notes=commit.notes,
            seconds=commit.seconds,
            now=commit.finished,
        )
        damaged.pop(item, None)
        progress(line.start + line.length, total)
    ledger.fill_optics()
    return commits, tuple(f"{item}: {reason}" for item, reason in damaged.items())


def _reason(
    committer: Committer, shards: Iterable[Shard], blocks: Iterable[Block], verify: bool, *, rows: bool = False
) -> str | None:
    """Why what a commit made cannot be used any more; None where it can. Rows are read with ``verify`` or ``rows``."""
    for shard in shards:
        if not (committer.is_whole(shard) if verify else committer.is_there(shard)):
            return f"{shard.path} is missing, or not what was committed"
    for block in blocks:
        there = block.start + block.length <= size_of(committer.rows_path(block.table))
        if not there or ((verify or rows) and not committer.are_rows_whole(block)):
            return f"its rows in {block.table} are not what was committed"
    return None
