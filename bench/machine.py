"""What all benchmarks tell about the machine: its facts, how fast it is just now, and how fast its disk is."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from scipy import fft

PACKAGES = ("numpy", "scipy", "ducc0", "streamprep")


def facts(folder: Path) -> dict[str, object]:
    """Hardware, kernel, versions, and the type of the file system that ``folder`` is on; no names and no paths."""
    return {
        "cpu": _value_of(Path("/proc/cpuinfo"), "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": file_system(folder),
        "python": platform.python_version(),
        **{name: _version_of(name) for name in PACKAGES},
    }


def file_system(folder: Path) -> str:
    """Type of the file system that a folder is on, as the kernel names it."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == wanted:
            return kind.split()[0]
    return "unknown"


def load_average() -> float:
    """How many processes wanted to run during the last minute, on average."""
    return round(os.getloadavg()[0], 2)


def peak_memory(process: int | str = "self") -> int:
    """Most memory that a process had resident so far [bytes]; 0 for one that has ended."""
    try:
        said = _value_of(Path(f"/proc/{process}/status"), "VmHWM")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * int(said.split()[0]) if said else 0


def least(work: Callable[[], object], repeats: int = 5, clock: Callable[[], float] = time.perf_counter) -> float:
    """Least time of several runs [s]."""
    times = []
    for _ in range(repeats):
        before = clock()
        work()
        times.append(clock() - before)
    return min(times)


def calibration(clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of the calibration kernel [s]: ``irfft2(rfft2(a))`` of float32 (64, 256, 256) in one thread."""
    images = np.random.default_rng(0).standard_normal((64, 256, 256), dtype=np.float32)
    return least(lambda: fft.irfft2(fft.rfft2(images, workers=1), workers=1), clock=clock)


def disk_speed(folder: Path, size_bytes: int, repeats: int = 5) -> list[float]:
    """Speed of writing a file from its beginning to its end, fsync included, several times [bytes/s]."""
    data = np.random.default_rng(0).bytes(1 << 20)
    path = folder / "disk_speed.tmp"
    speeds = []
    for _ in range(repeats):
        before = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            for start in range(0, size_bytes, len(data)):
                file.write(data[: size_bytes - start])
            os.fsync(file.fileno())
        speeds.append(size_bytes / (time.perf_counter() - before))
        path.unlink()
    return speeds


def _value_of(path: Path, name: str) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
