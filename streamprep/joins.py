"""Which tables belong to which micrograph or stack: the decision, from names alone. What follows is the ledger's.

The answer depends on what is there and never on the order in which it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


def mask_digest(identity: Identity) -> str:
    """Stands for a mask's pixels."""
    return f"{identity.size}-{identity.mtime_ns}-{identity.inode}"


@dataclass(frozen=True, slots=True)
class Places:
    """Where watched folders lie."""

    roots: Mapping[str, str] = field(default_factory=dict)
    """Each label's folder, links resolved."""
    folder: str = "/"
    """That of the session: programs name stacks from their project's folder."""

    def of(self, labelled: str) -> PurePosixPath:
        """The path of a file that is known by its folder's label."""
        label, _, path = labelled.partition("/")
        return PurePosixPath(self.roots.get(label, f"/{label}"), path)


Rank = tuple[int, int]
"""How surely a name means a stack; the lower, the surer. The second number tells apart stacks for one table only."""


def join(
    items: Sequence[str],
    entries: Sequence[JobInput],
    required: Mapping[Kind, str],
    suffixes: Sequence[str],
    failed: Sequence[str] = (),
    places: Places | None = None,
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
    places
        Where the folders lie, for rows, which name files and not just micrographs.

    Returns
    -------
    matches
        For each item, what it is processed with, or what it waits for.
    owners
        For each entry of a required kind the index of its item; None where several fit equally well.
    """
    owners: dict[JobInput, int | None] = {}
    clashes: dict[int, str] = {}
    ranks: dict[JobInput, Rank] = {}
    for entry in entries:
        if entry.kind not in required:
            continue
        if entry.kind == "rows":
            fits = _named_by(entry, items, places or Places())
            if not fits:
                continue
            ranks[entry] = min(fits.values())
            tied = [index for index, rank in fits.items() if rank == ranks[entry]]
            chosen = tied[0] if len(tied) == 1 else None
        else:
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
        surest = min((ranks[entry][0] for entry in mine if entry in ranks), default=0)
        mine = [entry for entry in mine if entry not in ranks or ranks[entry][0] == surest]
        matches.append(_choose(path, mine, required, clashes.get(index), failed))
    return matches, owners


def _named_by(entry: JobInput, stacks: Sequence[str], places: Places) -> dict[int, Rank]:
    """The stacks that an entry can mean by its name, each with how surely."""
    table = places.of(f"{entry.source}/{entry.path}")
    found = ((index, stack_rank(entry.name, table, places.of(stack), places)) for index, stack in enumerate(stacks))
    return {index: rank for index, rank in found if rank is not None}


def stack_rank(name: str, table: PurePosixPath, stack: PurePosixPath, places: Places) -> Rank | None:
    """How surely a table means a stack by a name; None where it cannot.

    From the surest on: the name, taken from the table's folder, from one above it, or from the session's, is the
    stack's path; the stack's path ends with the whole name, from somewhere else; table and stack lie together as the
    name says, in a folder that was moved as a whole.

    Examples
    --------
    >>> job = PurePosixPath("/project/Extract/job010")
    >>> stack_rank("Extract/job010/a.mrcs", job / "particles.star", job / "a.mrcs", Places())
    (0, 2)
    >>> stack_rank("Extract/job020/a.mrcs", PurePosixPath("/other/particles.star"), job / "a.mrcs", Places())
    """
    named = PurePosixPath(name.replace("\\", "/"))
    if named.name != stack.name:
        return None
    if named.is_absolute():
        if named == stack:
            return (0, 0)
    elif stack.parts[-len(named.parts) :] == named.parts:
        bases = [*table.parents, PurePosixPath(places.folder)]
        base = PurePosixPath(*stack.parts[: -len(named.parts)])
        return (0, bases.index(base)) if base in bases else (1, 0)
    if stack.is_relative_to(table.parent):
        below = stack.relative_to(table.parent).parts
        if named.parts[-len(below) :] == below:
            return (2, -len(below))
    return None


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


def _one_of_alike(choices: Sequence[JobInput]) -> list[JobInput]:
    """Tables that say the same of a stack are as good as one.

    So is RELION's table of a single micrograph (``x_extract.star``) beside that of the whole job, which has its rows.
    """
    whole = [choice for choice in choices if not PurePosixPath(choice.path).stem.endswith("_extract")] or choices
    return list(whole[:1] if len({choice.digest for choice in whole}) == 1 else whole)
