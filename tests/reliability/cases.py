"""The thirty cases and the tests that cover them: ``python -m tests.reliability.cases`` prints the table of the docs.

A test says which cases it covers, and where it runs, by its marker: ``@pytest.mark.case(5, 6, where="root")``. ``CI``,
which it is unless said, is any Linux machine and part of ``make test``; so is ``root``, which skips where the tests do
not run as root; ``nightly`` is part of ``make faults`` and the like alone, as it is long or needs further packages.
The markers are read from the source, so nothing is imported or run for the table.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
PLACES = ("CI", "root", "nightly")
CASES = {
    1: "SIGKILL at every system call that changes something: as an uninterrupted run",
    2: "200 power losses at random moments",
    3: "crash in recovery, three deep",
    4: "SIGTERM, SIGINT, SIGHUP, and doubled",
    5: "disk full within a set: pause, resume, nothing lost, at most one try in 10 s",
    6: "disk, quota or inodes full under the ledger or the staging folder",
    7: "fdatasync gives EIO, once and for ever",
    8: "short and interrupted writes",
    9: "output read-only, removed, unmounted",
    10: "second daemon refused, stale lock not",
    11: "ledger missing or damaged with outputs present",
    12: "output changed behind our back",
    13: "slow writer with pauses",
    14: "preallocated file; old modification time",
    15: "temporary names, then renamed: one job",
    16: "truncated file under its final name, completed later",
    17: "MRC: truncated, longer, forged, absurd sizes, bad mode, swapped, NaN, empty, random",
    18: "TIFF: cut, looped, forged",
    19: "decompression bombs",
    20: "FIFO, socket, folder, link loops, no permission, hostile names",
    21: "touch, identical copy, hard link, a hundred events of one file",
    22: "rewritten after it was processed",
    23: "rewritten while it is read",
    24: "an inode number used again",
    25: "vanished, renamed, moved, unmounted in a scan",
    26: "coordinates before, after, never; in reversed order",
    27: "events lost, no watches left, dead observer, file system without events: found by a scan, and told",
    28: "plugin raises, hangs, exits, crashes, eats memory, gives NaN or a wrong shape; GPU out of memory",
    29: "hostile tables: refused with a reason, nothing written outside, no code run",
    30: "soak: 100,000 micrographs, 10 million rows, kills, clock jumps",
}


@dataclass(frozen=True, order=True)
class Covered:
    """One test, and what it covers."""

    file: str
    """Below ``tests``."""
    test: str
    cases: tuple[int, ...]
    where: str


def covered(tests: Path = TESTS) -> list[Covered]:
    """Every test with a marker, in order."""
    return sorted(found for path in tests.rglob("test_*.py") for found in _in_file(path, tests))


def _in_file(path: Path, tests: Path) -> Iterator[Covered]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    of_all = [
        mark
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(to, ast.Name) and to.id == "pytestmark" for to in node.targets)
        for mark in _marks(node.value)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = [*of_all, *(mark for decorator in node.decorator_list for mark in _marks(decorator))]
            for where in PLACES:
                numbers = {number for numbers, place in marks if place == where for number in numbers}
                if numbers:
                    yield Covered(path.relative_to(tests).as_posix(), node.name, tuple(sorted(numbers)), where)


def _marks(node: ast.expr) -> Iterator[tuple[list[int], str]]:
    """Numbers and place of each ``pytest.mark.case(…)`` in an expression."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "case":
            where = {word.arg: ast.literal_eval(word.value) for word in call.keywords}.get("where", "CI")
            if where not in PLACES:
                raise ValueError(f"line {call.lineno}: where={where!r}; known are {', '.join(PLACES)}")
            yield [ast.literal_eval(number) for number in call.args], where


def table(tests: Path = TESTS) -> str:
    """The table of the cases in Markdown."""
    lines = ["| | what | tests (below `tests/`) | where |", "|---|---|---|---|"]
    found = covered(tests)
    for number, what in CASES.items():
        here = [each for each in found if number in each.cases]
        files = {each.file: [other.test for other in here if other.file == each.file] for each in here}
        named = "<br>".join(f"`{file}`: {', '.join(_short(names))}" for file, names in files.items())
        where = ", ".join(place for place in PLACES if any(each.where == place for each in here))
        lines.append(f"| {number} | {what} | {named} | {where} |")
    return "\n".join(lines)


def _short(names: list[str]) -> list[str]:
    return [name.removeprefix("test_").replace("_", " ") for name in dict.fromkeys(names)]


if __name__ == "__main__":
    print(table())
