"""How time spans and sizes are written for people, wherever they are shown."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A time span.

    Examples
    --------
    >>> duration(0.0123), duration(7.2), duration(75), duration(7500), duration(200000)
    ('12 ms', '7 s', '1 min 15 s', '2 h 05 min', '2 d 7 h')
    """
    if seconds < 1:
        return f"{max(0.0, 1000 * seconds):.{0 if seconds >= 0.0095 else 1}f} ms"
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f} s" if seconds < 5 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, left = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {rest:02d} s"
    days, some = divmod(hours, 24)
    return f"{days} d {some} h" if days else f"{hours} h {left:02d} min"


def size(count: float) -> str:
    """Bytes.

    Examples
    --------
    >>> size(512), size(3 * 2**30), size(2.5 * 2**40)
    ('512 B', '3.0 GiB', '2.5 TiB')
    """
    if abs(count) < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if count >= 100 else f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"


def counted(number: int, plural: str) -> str:
    """How many of what.

    Examples
    --------
    >>> counted(1, "stacks"), counted(2000, "stacks")
    ('1 stack', '2,000 stacks')
    """
    return f"{number:,} {plural.removesuffix('s') if number == 1 else plural}"


def free_space(free_bytes: int, total_bytes: int) -> str:
    """What is left of a disk; a total of 0 is of one that does not tell.

    Examples
    --------
    >>> free_space(3 * 2**30, 2**40), free_space(0, 0)
    ('3.0 GiB free', 'free space unknown')
    """
    return f"{size(free_bytes)} free" if total_bytes else "free space unknown"
