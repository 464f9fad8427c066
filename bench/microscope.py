"""Plays the microscope of bench/end_to_end.py: a process of its own, that needs nothing but the standard library.

It reads from standard input, as JSON, a time between two exposures [s] and a list of exposures, each a list of pairs:
the file to copy, and where to. It copies one exposure after the other, and writes a line for each: the monotonic clock
when the last file was closed, which on Linux is the same in all processes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Expose."""
    interval_s, exposures = json.load(sys.stdin)
    due = time.monotonic()
    for files in exposures:
        contents = [(Path(place), Path(source).read_bytes()) for source, place in files]
        time.sleep(max(0.0, due - time.monotonic()))
        for place, content in contents:
            place.write_bytes(content)
        print(time.monotonic(), flush=True)
        due += interval_s


if __name__ == "__main__":
    main()
