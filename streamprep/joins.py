"""Which tables belong to which micrograph or stack: the decision, from names and places. What follows is the
ledger's.

The answer depends on what is there and never on the order in which it came.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from streamprep.model import Identity, Kind
from streamprep.naming import best_match, match_key


@dataclass(frozen=True, slots=True)
class JobInput:
    """One file that a job reads beside its micrograph, or beside its stack of particles."""

    kind: Kind
    source: str
    path: str
    name: str
    """The micrograph's or stack's name as the file writes it, or the file's own."""
    digest: str
    table: int = 0
    """The file's number in the ledger, which stays when it is moved."""


@dataclass(frozen=True, slots=True)
class Match:
    """What is known about one micrograph, or one stack."""

    inputs: tuple[JobInput, ...]
    """One of each required kind, where ``reasons`` is empty."""
    reasons: tuple[str, ...]
    """Why it must wait."""
    contested: bool = False
    """Whether it is that there are too many choices, not too few."""


_NOWHERE: Mapping[JobInput, str] = {}


def file_digest(identity: Identity) -> str:
    """Stands for what a file holds that is used as it is, such as a mask's pixels."""
    return f"{identity.size}-{identity.mtime_ns}-{identity.inode}"


def join(
    items: Sequence[str],
    entries: Sequence[JobInput],
    required: Mapping[Kind, str],
    suffixes: Sequence[str],
    failed: Sequence[str] = (),
    optional: Collection[Kind] = (),
    real_paths: Sequence[str] = (),
    placed: Mapping[JobInput, str] = _NOWHERE,
) -> tuple[list[Match], dict[JobInput, int | None]]:
    """Give each entry of a table to the micrograph, or to the stack, that it means.

    Parameters
    ----------
    items
        Paths that share one match key, each below the label of its watched folder: of micrographs, or, where
        ``required`` has ``rows``, of stacks.
    entries
        What tables say, and masks, under the same key; the oldest first.
    required
        Kinds of which each needs exactly one, and how to name what is waited for.
    suffixes
        Endings that programs add to names.
    failed
        Tables under this key that could not be read, for the reasons.
    optional
        Kinds that are added where there is exactly one.
    real_paths
        Where each stack lies, links resolved.
    placed
        Where the stacks lie that rows name: they mean files, not just names. Of rows that are not in it, it is not
        known yet.

    Returns
    -------
    matches
        For each item, what it is processed with, or what it waits for.
    owners
        For each entry of a required kind the index of its item; None where several fit equally well.
    """
    owners: dict[JobInput, int | None] = {}
    clashes: dict[int, str] = {}
    for entry in entries:
        if entry.kind not in required and entry.kind not in optional:
            continue
        if entry.kind == "rows":
            # the same file may be watched in two ways; it is taken as it was seen first
            named = next((index for index, path in enumerate(real_paths) if path == placed.get(entry)), None)
            if named is not None:
                owners[entry] = named
            continue
        # a file that is called as its micrograph says by its folder, too, which one is meant
        own_name = entry.name == PurePosixPath(entry.path).name
        meant = f"{entry.source}/{entry.path}" if own_name else entry.name
        chosen, tied = best_match(meant, items, suffixes)
        owners[entry] = chosen
        if chosen is None:
            said = f"{entry.path} could belong to {' or '.join(items[index] for index in tied)}"
            clashes.update((index, said) for index in tied)
    matches = []
    for index, path in enumerate(items):
        mine = [entry for entry, owner in owners.items() if owner == index]
        match = _choose(path, mine, required, clashes.get(index), failed)
        further = [made for kind in optional if len(made := [entry for entry in mine if entry.kind == kind]) == 1]
        matches.append(replace(match, inputs=(*match.inputs, *(made[0] for made in further))))
    return matches, owners


def _choose(
    path: str, mine: Sequence[JobInput], required: Mapping[Kind, str], clash: str | None, failed: Sequence[str]
) -> Match:
    inputs: list[JobInput] = []
    reasons = [] if clash is None else [clash]
    contested = clash is not None
    for kind, named in required.items():
        choices = [entry for entry in mine if entry.kind == kind]
        if kind == "rows":
            choices = _one_of_alike(choices)
        if len(choices) > 1:
            exact = [choice for choice in choices if match_key(choice.name, ()) == match_key(path, ())]
            if len(exact) != 1:
                reasons.append(_several(kind, choices))
                contested = True
                continue
            choices = exact
        if choices:
            inputs.append(choices[0])
        elif clash is None:
            reasons.append(f"waits for {named}")
    if failed and not clash and len(inputs) < len(required):
        reasons.append(f"{', '.join(failed)} could not be read")
    return Match(tuple(inputs), tuple(reasons), contested)


def _several(kind: Kind, choices: Sequence[JobInput]) -> str:
    files = dict.fromkeys(f"{choice.source}/{choice.path}" for choice in choices)
    if len(files) == 1:
        names = ", ".join(choice.name for choice in choices)
        return f"{next(iter(files))} names it in several ways: {names}; one must do"
    return f"has several {kind} files: {', '.join(files)}; leave one of them"


def _one_of_alike(choices: Sequence[JobInput]) -> list[JobInput]:
    """Tables that say the same of a stack are as good as one.

    So is RELION's table of a single micrograph (``x_extract.star``) beside that of the whole job, which has its rows.
    """
    whole = [choice for choice in choices if not PurePosixPath(choice.path).stem.endswith("_extract")] or choices
    return list(whole[:1] if len({choice.digest for choice in whole}) == 1 else whole)
