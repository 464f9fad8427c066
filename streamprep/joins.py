"""Which tables belong to which micrograph or stack: the decision, from names alone. What follows is the ledger's.

The answer depends on what is there and never on the order in which it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from streamprep.model import Identity, Kind
from streamprep.naming import best_match, folders_in_common, match_key


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


def mask_digest(identity: Identity) -> str:
    """Stands for a mask's pixels."""
    return f"{identity.size}-{identity.mtime_ns}-{identity.inode}"


def join(
    micrographs: Sequence[str],
    entries: Sequence[JobInput],
    required: Mapping[Kind, str],
    suffixes: Sequence[str],
    failed: Sequence[str] = (),
) -> tuple[list[Match], dict[JobInput, int | None]]:
    """Give each entry of a table to the micrograph, or to the stack, that it means.

    Parameters
    ----------
    micrographs
        Paths that share one match key, each below the label of its watched folder. Of stacks, where ``required`` has
        ``rows``.
    entries
        What tables say, and masks, under the same key; the oldest first.
    required
        Kinds of which each needs exactly one, and how to name what is waited for.
    suffixes
        Endings that programs add to names.
    failed
        Tables under this key that could not be read, for the reasons.

    Returns
    -------
    matches
        For each micrograph, what it is processed with, or what it waits for.
    owners
        For each entry of a required kind the index of its micrograph; None where several fit equally well.
    """
    owners: dict[JobInput, int | None] = {}
    clashes: dict[int, str] = {}
    for entry in entries:
        if entry.kind not in required:
            continue
        # a file that is called as its micrograph says by its folder, too, which one is meant
        own_name = entry.name == PurePosixPath(entry.path).name
        meant = f"{entry.source}/{entry.path}" if own_name else entry.name
        fitting = [index for index, path in enumerate(micrographs) if entry.kind != "rows" or _same_file(meant, path)]
        if not fitting:
            continue
        chosen, tied = best_match(meant, [micrographs[index] for index in fitting], suffixes)
        chosen, tied = None if chosen is None else fitting[chosen], [fitting[index] for index in tied]
        owners[entry] = chosen
        if chosen is None:
            said = f"{entry.path} could belong to {' or '.join(micrographs[index] for index in tied)}"
            clashes.update((index, said) for index in tied)
    matches = [
        _choose(
            path, [entry for entry, owner in owners.items() if owner == index], required, clashes.get(index), failed
        )
        for index, path in enumerate(micrographs)
    ]
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
            choices = _nearest_rows(path, choices)
        if len(choices) > 1:
            exact = [choice for choice in choices if match_key(choice.name, ()) == match_key(path, ())]
            if len(exact) != 1:
                names = ", ".join(f"{choice.source}/{choice.path}" for choice in choices)
                reasons.append(f"has several {kind} files: {names}; leave one of them")
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


def _same_file(name: str, path: str) -> bool:
    """Whether a table that names a stack so can mean the stack of this path: file names are exact there."""
    return PurePosixPath(name.replace("\\", "/")).name == PurePosixPath(path).name


def _nearest_rows(path: str, choices: Sequence[JobInput]) -> list[JobInput]:
    """Of the tables that name a stack, those that it may be processed with.

    The name with the most folders that agree with the stack's own is the one that means it. Then RELION's tables of
    single micrographs (``x_extract.star``) go: their rows are in the table of the whole job, too. Tables that say the
    same are as good as one.
    """
    if len(choices) <= 1:
        return list(choices)
    agreeing = [folders_in_common(choice.name, path) for choice in choices]
    nearest = [choice for choice, count in zip(choices, agreeing, strict=True) if count == max(agreeing)]
    whole = [choice for choice in nearest if not PurePosixPath(choice.path).stem.endswith("_extract")] or nearest
    return whole[:1] if len({choice.digest for choice in whole}) == 1 else whole
