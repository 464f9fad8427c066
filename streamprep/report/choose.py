"""Which items get pictures: a bounded number of them, the same for the same session."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def wanted(count: int, most: int, odd: Sequence[int] = ()) -> list[int]:
    """Which of ``count`` items, numbered in the order in which they were done, are to have pictures; the urgent first.

    Parameters
    ----------
    count
        Items that are done.
    most
        So many are chosen at most.
    odd
        Numbers of items that stand out; a sixth of the places is theirs.

    Returns
    -------
    list of int
        The newest, those that stand out, the first ones (a sixth), the other newest (a third), and with what is left a
        spread over all: the multiples of a power of two, so that it changes little while the session grows.

    Examples
    --------
    >>> sorted(wanted(100, 12))
    [0, 1, 16, 32, 48, 64, 80, 96, 97, 98, 99]
    """
    if count <= most:
        return list(range(count - 1, -1, -1))
    newest = list(range(count - 1, max(-1, count - 1 - max(1, most // 3)), -1))
    chosen = dict.fromkeys([newest[0], *[number for number in odd if number < count][: most // 6]])
    chosen |= dict.fromkeys([*range(most // 6), *newest[1:]])
    room, step = most - len(chosen), 1
    if room > 0:
        while len(spread := [number for number in range(0, count, step) if number not in chosen]) > room:
            step *= 2
        chosen |= dict.fromkeys(spread)
    return list(chosen)


def due(count: int, most: int, made: Collection[int], odd: Sequence[int] = ()) -> list[int]:
    """Of those, which have no pictures yet, the urgent first."""
    return [number for number in wanted(count, most, odd) if number not in made]


def surplus(count: int, most: int, made: Collection[int], odd: Sequence[int] = ()) -> list[int]:
    """Whose pictures are to go: of those that are not wanted any more the most crowded, until ``most`` are left.

    Items arrive faster than pictures are made: of the newest of one moment few have any, and these stay as part of the
    spread for as long as there is room.
    """
    kept, gone = sorted(made), []
    chosen = set(wanted(count, most, odd))
    while len(kept) > most:
        gaps = [
            (after - before, number)
            for before, number, after in zip([-count, *kept], kept, [*kept[1:], 2 * count], strict=False)
            if number not in chosen
        ]
        _, number = min(gaps)
        kept.remove(number)
        gone.append(number)
    return gone
