"""What streamprep has to say to its user where something cannot be done. Imports nothing that takes time."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path


class StreamprepError(Exception):
    """Anything that streamprep itself has to say to its user: one readable message, no traceback needed."""


class ConfigError(StreamprepError):
    """The configuration, or a parameter in it, is not valid. Found before any data is touched."""


class OutputError(StreamprepError):
    """The output folder is not as it was left: committed bytes are missing. The session ends and says so."""


class InputError(StreamprepError):
    """An input file cannot be used. Names the file, what is wrong and what would be right; never retried as it is."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str]]:
        return (type(self), (self.path, self.reason))


class IncompleteError(InputError):
    """A table is of no use without another file, which is not there yet. It waits, and is read again now and then."""


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint: the most similar known name, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"known are {', '.join(sorted(known))}" if known else "none is known here"
