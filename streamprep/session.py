"""Opening a session: what to watch, which output folder belongs to the plan, its lock and its ledger."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from streamprep.committer import STATE_FOLDER, make_output
from streamprep.config import Config
from streamprep.joins import JobInput, file_digest
from streamprep.ledger import Ledger, SourceRow
from streamprep.ledger_upgrade import upgrade
from streamprep.model import ConfigError, Identity, Kind
from streamprep.naming import safe_part, unique_label
from streamprep.pipeline import Plan, optional_kinds, required_kinds
from streamprep.watcher import Source, file_system_of, is_remote

log = logging.getLogger(__name__)

LEDGER = "ledger.sqlite"
"""Name of the ledger's file in the state folder."""

RESULTS = ("particles.star", "noise.star", "particles", "noise", "maps")
"""Names of which one at least is there where there are results."""

WITHOUT_LEDGER = "make it again with: streamprep repair; or restore it from a copy, or give another output folder"

STACKS: Kind = "particles"
"""What `SourceRow.kind` says of folders that are watched because tables name stacks there."""


def make_sources(config: Config, plan: Plan) -> list[Source]:
    """Everything to watch: masks and CTF tables first, as they may lie inside a watched folder.

    Raises
    ------
    ConfigError
        A folder does not exist, is not a folder, is watched twice, or holds the output or lies in it; an operation
        needs a file that nothing names.
    """
    required_kinds(config, plan)
    patterns: list[tuple[Kind, str]] = []
    if config.ctf is not None:
        patterns.append(("ctf", config.ctf.table))
    for kind, wanted in plan.companions.items():
        patterns += [(kind, pattern) for pattern in sorted(made for made in wanted if made is not None)]
    sources = []
    for kind, pattern in patterns:
        parts = Path(pattern.replace("{stem}", "*").replace("{name}", "*")).parts
        marked = (index for index, part in enumerate(parts) if any(mark in part for mark in "*?["))
        split = min(next(marked, len(parts)), len(parts) - 1)
        root = config.resolve(str(Path(*parts[:split])))
        _need_folder(config, root, f"the {kind} pattern {pattern!r}")
        sources.append(Source(root, kind, "/".join(parts[split:]), kind))
    folders = config.watch_folders
    for number, folder in enumerate(folders):
        _need_folder(config, folder, "[session] watch")
        for other in folders[:number]:
            _need_apart(config, folder, other)
        _need_output_apart(config, folder)
    flipped = {config.resolve(name) for name in config.matching.flip_y}
    for name in config.matching.flip_y:
        if config.resolve(name) not in folders:
            watched = ", ".join(config.session.watch)
            raise ConfigError(f"{config.file}: [matching] flip_y: {name} is not a watched folder; those are {watched}")
    sources += [Source(folder, safe_part(folder.name or "root"), flip_y=folder in flipped) for folder in folders]
    return _labelled(sources, {}, set())


def _labelled(sources: Sequence[Source], labels: Mapping[tuple[str, Path], str], taken: set[str]) -> list[Source]:
    """Sources with the labels that their folders have already, and with new ones, each of its own, for the others."""
    known, used = dict(labels), set(taken)
    made = []
    for source in sources:
        place = (source.kind or "", Path(os.path.realpath(source.root)))
        if place not in known:
            known[place] = unique_label(source.label, used)
        used.add(known[place])
        made.append(replace(source, label=known[place]))
    return made


def keep_labels(config: Config, sources: Sequence[Source], ledger: Ledger, output: Path) -> list[Source]:
    """Give each watched folder the label that it had before, so that its items keep their names.

    A folder is the same one where its path is the same, where it lies as before seen from the output folder (the whole
    session was moved), or where it was renamed. Files that are not watched any more are let go.

    Raises
    ------
    ConfigError
        A folder inside or around one that was watched before is to be watched instead: its files would come in again,
        under other names.
    """
    rows = ledger.sources()
    found_by_name = {row.label for row in rows if row.kind == STACKS}
    labels: dict[tuple[str, Path], str] = {}
    fresh: list[SourceRow] = []
    for source in sources:
        real = Path(os.path.realpath(source.root))
        kind, relative, place = source.kind or "", os.path.relpath(real, output), _place_of(real)
        old = (
            next((row for row in rows if (row.kind, row.root) == (kind, real)), None)
            or next((row for row in rows if (row.kind, row.relative) == (kind, relative)), None)
            or next((row for row in rows if (row.kind, row.place) == (kind, place) and not row.root.exists()), None)
        )
        if old is not None:
            labels[kind, real] = old.label
        elif source.pattern is None:
            for row in rows:
                if not row.kind and (real in row.root.parents or row.root in real.parents):
                    raise ConfigError(
                        f"{config.file}: [session] watch: {row.root} was watched so far, {real} is to be watched now, "
                        "and one lies inside the other: the same files would come in again under other names. Watch "
                        f"{row.root} as before, or give another output folder"
                    )
        fresh.append(SourceRow("", kind, real, relative, place))
    made = _labelled(sources, labels, {row.label for row in rows})
    watching = json.dumps(sorted((source.label, source.pattern or "") for source in made))
    with ledger.transaction():
        for source, row in zip(made, fresh, strict=True):
            ledger.put_source(replace(row, label=source.label))
        if ledger.get("watching") not in (None, watching):
            count = ledger.forget_unwatched(
                lambda label, path: (
                    label in found_by_name or any(source.label == label and source.wants(path) for source in made)
                )
            )
            log.warning("other folders are watched than before; %d files are not watched any more", count)
        ledger.put("watching", watching)
    return made


def stacks_sources(folders: Mapping[Path, set[str]], ledger: Ledger, output: Path) -> list[Source]:
    """Folders to watch because tables name stacks in them, under the labels that they had before, or new ones."""
    rows = {row.root: row for row in ledger.sources() if row.kind == STACKS}
    taken = {row.label for row in ledger.sources()}
    made = []
    with ledger.transaction():
        for folder, names in folders.items():
            try:
                place = _place_of(folder)
            except OSError:  # it went away since it was found
                continue
            old = rows.get(folder)
            label = unique_label(safe_part(folder.name or "root"), taken) if old is None else old.label
            taken.add(label)
            row = SourceRow(label, STACKS, folder, os.path.relpath(folder, output), place)
            if row != old:
                ledger.put_source(row)
            made.append(Source(folder, label, kind=STACKS, names=names))
    return made


def _place_of(folder: Path) -> str:
    found = folder.stat()
    return f"{found.st_dev}:{found.st_ino}"


def _need_apart(config: Config, one: Path, other: Path) -> None:
    inner, outer = sorted((Path(os.path.realpath(one)), Path(os.path.realpath(other))), reverse=True)
    if inner == outer:
        raise ConfigError(f"{config.file}: [session] watch: {outer} is watched twice; leave one of the two out")
    if outer in inner.parents:
        raise ConfigError(
            f"{config.file}: [session] watch: {inner} lies inside {outer}; leave it out, sub-folders are watched, too"
        )


def _need_folder(config: Config, folder: Path, what: str) -> None:
    if not folder.exists():
        raise ConfigError(f"{config.file}: {what}: folder {folder} does not exist; make it, or correct the path")
    if not folder.is_dir():
        raise ConfigError(f"{config.file}: {what}: {folder} is a file, not a folder")


def _need_output_apart(config: Config, folder: Path) -> None:
    output, watched = (Path(os.path.realpath(path)) for path in (config.resolve(config.session.output), folder))
    if output == watched or output in watched.parents or watched in output.parents:
        raise ConfigError(
            f"{config.file}: [session] output = {config.session.output!r} and the watched folder {folder} lie one "
            "inside the other; watched folders are never written to, choose an output beside them"
        )


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
    folder, _ = choose_output(config, plan, new_set=new_set)
    make_output(folder)
    return folder, lock_output(folder)


def choose_output(config: Config, plan: Plan, *, new_set: bool = False) -> tuple[Path, bool]:
    """The output folder of `open_output`, and whether it is there already; nothing is made or locked."""
    wanted = config.resolve(config.session.output)
    folder, exists = find_output(config, plan)
    if exists:
        return folder, True
    if folder != wanted and not new_set:
        raise ConfigError(
            f"{wanted} holds results of another plan (operations, parameters, optics or versions differ). Where "
            "versions alone differ, streamprep upgrade --yes continues it; else give the former configuration to "
            f"continue it, or --new-set to process everything again into {folder.name} beside it"
        )
    strangers = [name for name in RESULTS if (folder / name).exists()]
    if strangers:
        raise ConfigError(
            f"{folder} holds {strangers[0]} but no ledger ({STATE_FOLDER}/{LEDGER}): it was not made here, or the "
            "ledger is lost. Give another output folder, or move these files away"
        )
    return folder, False


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


def try_lock(folder: Path, *, shared: bool = False) -> IO[str] | None:
    """Take the folder's lock, or None where another process has it; the kernel gives it back when this one ends.

    A daemon has it alone; those who only look share it among themselves, and need no right to write it.
    """
    path = folder / STATE_FOLDER / "lock"
    file = path.open("r" if shared and path.exists() else "a+")
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    if shared:
        return file
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def lock_output(folder: Path, sleep: Callable[[float], None] = time.sleep) -> IO[str]:
    """Take the lock of an output folder; it is given back when the file is closed.

    Raises
    ------
    ConfigError
        Another process has it.
    """
    for _ in range(20):
        file = try_lock(folder)
        if file is not None:
            return file
        looking = try_lock(folder, shared=True)
        if looking is None:
            owner = (folder / STATE_FOLDER / "lock").read_text().strip() or "unknown"
            raise ConfigError(f"{folder}: another streamprep is at work here (process {owner}); stop it first")
        looking.close()
        sleep(0.1)
    raise ConfigError(f"{folder}: a streamprep status or retry is still looking at it; start again when it has ended")


def named_files(config: Config, plan: Plan) -> dict[Path, str]:
    """Files that operations on maps name: where they are looked for, and what to call them."""
    return {
        config.resolve(name): f"{name} ([maps.{step.name}] {parameter})"
        for step in plan.lane("maps")
        for parameter, name in step.params.files().items()
    }


def require_named_files(ledger: Ledger, awaited: Mapping[Path, str], found: Mapping[Path, Identity | None]) -> None:
    """Have maps wait for files, or for none, and be made of all that were found.

    It is not the ledger that learns of the files: no table is called so.
    """
    given = [
        JobInput("other", "", str(path), path.name, file_digest(identity))
        for path, identity in found.items()
        if identity is not None
    ]
    ledger.require({"other": " and ".join(awaited.values())} if awaited else {}, of="map", given=given)


def open_ledger(output: Path, config: Config, plan: Plan, *, looking: bool = False) -> Ledger:
    """Open the ledger of an output folder, and make sure that it was made with this plan.

    One of an older version is upgraded, unless by those who are only ``looking``.

    Raises
    ------
    ConfigError
        There are results, but the ledger is missing, empty, or of another plan.
    LedgerError
        It is damaged.
    """
    path = output / STATE_FOLDER / LEDGER
    tables = any((output / name).is_file() for name in RESULTS)
    has_results = tables or any((output / STATE_FOLDER / "rows").glob("*")) or any((output / "maps").rglob("*.mrc"))
    if not path.exists() and has_results:
        raise ConfigError(f"{output}: there are results, but {path.name} is missing; {WITHOUT_LEDGER}")
    remote = file_system_of(output)
    if is_remote(remote):
        log.warning("%s is on %s: the ledger uses a rollback journal, which is slower", output, remote)
    ledger = Ledger(
        path,
        remote=is_remote(remote),
        suffixes=config.matching.suffixes,
        upgrade=None if looking else upgrade,
    )
    made_with = ledger.get("plan")
    if made_with is None and has_results:
        ledger.close()
        raise ConfigError(f"{output}: there are results, but {path.name} is empty; {WITHOUT_LEDGER}")
    if made_with is None:
        ledger.put("plan", plan.hash)
    elif made_with != plan.hash:
        ledger.close()
        raise ConfigError(
            f"{output}: the ledger belongs to another plan; give the configuration that it was made with, or --new-set"
        )
    for kind, needed in required_kinds(config, plan).items():
        ledger.require(needed, of=kind, optional=optional_kinds(config, plan, kind))
    if _plan_hash_of(output) != plan.hash:
        write_plan(output, plan)
    return ledger


def write_plan(output: Path, plan: Plan) -> None:
    """Say which plan an output folder belongs to, and what it is."""
    written = output / STATE_FOLDER / ".plan.json.tmp"
    written.write_text(json.dumps(plan.describe(), indent=1))
    written.replace(output / STATE_FOLDER / "plan.json")
