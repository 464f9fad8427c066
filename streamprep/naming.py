"""Names: what an item is called, what its files are called, and which micrograph a table's name means."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

STATE_FOLDER = ".streamprep"
"""Folder in the output folder with all that is no result: ledger, row logs, staging, logs."""

DEFAULT_SUFFIXES = (
    "_autopick",
    "_manualpick",
    "_topaz",
    "_pick",
    "_picks",
    "_coords",
    "_extract",
    "_DW",
    "_noDW",
    "_PS",
    "_ctf",
    "_mask",
)
"""Endings that programs add to a micrograph's name when they write a file that belongs to it."""

PICTURE_ENDINGS = ("_PS", "_ctf", "_ctffind", "_ctffind4", "_ctffind5", "_diag", "_diagnostic", "_mask")
"""Endings of images that programs make of a micrograph and that are none: power spectra, fits of the CTF, masks."""

_IMAGE_ENDINGS = (".mrc", ".mrcs", ".map", ".tif", ".tiff", ".gz", ".bz2")
_FILE_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}\Z")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]")


def unique_label(wanted: str, taken: Collection[str]) -> str:
    """A name for a watched folder that no other has: as wanted, with a number where that is taken.

    Examples
    --------
    >>> unique_label("Micrographs", {"Micrographs"})
    'Micrographs_2'
    """
    label, number = wanted, 2
    while label in taken:
        label, number = f"{wanted}_{number}", number + 1
    return label


def safe_part(name: str) -> str:
    """One path component, safe in file names, tables, shells and pages.

    Letters, digits and ``. _ + -`` stay. Where anything else is replaced, a few digits of a hash keep different names
    different.

    Examples
    --------
    >>> safe_part("mic_0001")
    'mic_0001'
    >>> safe_part("a b") == safe_part("a<b")
    False
    """
    cleaned = _UNSAFE.sub("_", name).lstrip(".-") or "_"
    if cleaned == name and len(name) <= 120:
        return name
    return f"{cleaned[:100]}-{_digest(name)}"


def _folder_part(name: str) -> str:
    """A folder's name, other than that of any file of results: ``mic_1.mrcs`` may be the stack of ``mic_1.mrc``."""
    part = safe_part(name)
    return f"{part}-{_digest(name)}" if part == name and _FILE_ENDING.search(name) else part


def _digest(name: str) -> str:
    return hashlib.blake2b(os.fsencode(name), digest_size=4).hexdigest()


def stem_of(name: str) -> str:
    """A file name without its folders and without the endings of images and tables.

    Examples
    --------
    >>> stem_of("Micrographs/mic_0001.mrc.gz")
    'mic_0001'
    """
    return _stem(PurePosixPath(name.replace("\\", "/")).name)


def _stem(file_name: str) -> str:
    path = PurePosixPath(file_name)
    while path.suffix.lower() in _IMAGE_ENDINGS:
        path = path.with_suffix("")
    return path.name if path.name != file_name else path.stem


def item_name(label: str, relative: str) -> str:
    """The identity of a file: the watched folder's label, the sub-folders, the stem; safe in every part."""
    path = PurePosixPath(relative)
    folders = [_folder_part(part) for part in path.parent.parts if part not in (".", "/")]
    return "/".join([label, *folders, safe_part(_stem(path.name))])  # a backslash is part of the name here


def is_picture(name: str) -> bool:
    """Whether an image is, by its name, one that a program made of a micrograph to look at, or its mask.

    Examples
    --------
    >>> is_picture("mic_0001_PS.mrc"), is_picture("mic_0001_DW.mrc")
    (True, False)
    """
    return stem_of(name).endswith(PICTURE_ENDINGS)


def stems(name: str, suffixes: Iterable[str] = DEFAULT_SUFFIXES) -> list[str]:
    """The stem of a name, then what is left of it as the known suffixes come off, one by one.

    Examples
    --------
    >>> stems("mic_7_DW_autopick.star")
    ['mic_7_DW_autopick', 'mic_7_DW', 'mic_7']
    """
    chain, endings = [stem_of(name)], tuple(suffixes)
    while True:
        last = chain[-1]
        shorter = next((last[: -len(end)] for end in endings if last.endswith(end) and len(last) > len(end)), None)
        if shorter is None:
            return chain
        chain.append(shorter)


def match_key(name: str, suffixes: Iterable[str] = DEFAULT_SUFFIXES) -> str:
    """What two names must share to belong together: the stem, without the known suffixes.

    Examples
    --------
    >>> match_key("Ucsf_stack_1142_DW_autopick.star"), match_key("Ucsf_stack_1142_DW.mrc")
    ('Ucsf_stack_1142', 'Ucsf_stack_1142')
    """
    return stems(name, suffixes)[-1]


def best_match(
    name: str, candidates: Sequence[str], suffixes: Sequence[str] = DEFAULT_SUFFIXES
) -> tuple[int | None, list[int]]:
    """Choose, among names with one match key, the one that a name means.

    Parameters
    ----------
    name
        What is looked for: a path, or a bare name.
    candidates
        Paths that share its match key.
    suffixes
        Endings that programs add.

    Returns
    -------
    chosen
        Index of the only one that fits best, None when there is none or when several fit equally well.
    tied
        The indices that fit equally well, when there are several.

    Notes
    -----
    The order of preference: the fewer suffixes that must come off for the stems to agree (``x_DW_autopick`` means
    ``x_DW`` before ``x``), then the more folders that agree, from the file upwards.
    """
    wanted = PurePosixPath(name.replace("\\", "/"))
    chain = stems(wanted.name, suffixes)

    def misfit(candidate: str) -> tuple[int, int]:
        path = PurePosixPath(candidate)
        theirs = stems(path.name, suffixes)
        removed = min(
            (mine + theirs.index(stem) for mine, stem in enumerate(chain) if stem in theirs), default=len(name)
        )
        folders = 0
        for one, other in zip(reversed(wanted.parent.parts), reversed(path.parent.parts), strict=False):
            if one != other:
                break
            folders += 1
        return removed, -folders

    scores = [misfit(candidate) for candidate in candidates]
    tied = [index for index, score in enumerate(scores) if score == min(scores)]
    return (tied[0], []) if len(tied) == 1 else (None, tied)
