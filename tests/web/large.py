"""What 100,000 micrographs cost the dashboard, in memory and processor time: ``python -m tests.web.large [ITEMS]``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.web.acted import NOW, busy, commit, hole, log_commits, write_status
from tests.web.asking import Looked

TARGETS = ("/", "/items", "/items?page=500", "/items?q=data_0421", "/items?sort=particles.star", "/items?sort=item",
           "/items?sort=seconds&order=asc", "/items?state=with+warnings", f"/items/{hole(77)}", "/metrics")  # fmt: skip


def _peak_kib() -> int:
    """Of this process alone; what getrusage says is also of the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def tell_memory(folder: str) -> None:
    """Of a process that does nothing but read and draw."""
    looked = Looked(Path(folder), NOW)
    before = _peak_kib()
    looked.look()
    for target in TARGETS:
        looked.get(target)
    after = _peak_kib()
    print(f"memory at most: {after / 1024:.0f} MiB, {before / 1024:.0f} MiB without items")


def main() -> None:
    """Time it."""
    items = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        looked = Looked(Path(folder), NOW)
        state = busy(looked.output, NOW, items=1000)
        log_commits(looked.output, (commit(hole(n), finished=NOW - 4 * (items - n)) for n in range(items)))
        write_status(looked.output, state, modified=NOW)
        subprocess.run([sys.executable, "-m", "tests.web.large", folder], check=True)
        before = time.process_time()
        looked.look()
        print(f"reading {len(looked.watch.view.done):,} items: {time.process_time() - before:.1f} s")
        for target in TARGETS:
            looked.get(target)
            before = time.process_time()
            told = looked.get(target)
            print(f"{1000 * (time.process_time() - before):6.0f} ms  {len(told.body):8,} bytes  {target}")
        log_commits(looked.output, [commit(hole(items + 1))])
        before = time.process_time()
        looked.watch.look()
        print(f"{1000 * (time.process_time() - before):6.0f} ms  a look that finds one more")


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].isdigit():
        tell_memory(sys.argv[1])
    else:
        main()
