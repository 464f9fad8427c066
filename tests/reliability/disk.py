"""A disk that can lose its power: an ext4 file system on a file, whose shutdown keeps all from the disk."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32)."""

NO_LOG_FLUSH = 2
"""EXT4_GOING_FLAGS_NOLOGFLUSH: what the journal has not written by now is lost."""

BUSY_SECONDS = 20.0
SIZE_MIB = 96


def why_no_disk() -> str | None:
    """Why no disk can be made here; None where one can."""
    if os.geteuid() != 0:
        return "only root may mount a disk"
    missing = [name for name in ("mkfs.ext4", "mount", "umount") if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not installed"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with Disk(Path(folder), "defaults"):
                return None
        except subprocess.CalledProcessError as error:
            return f"no loop device can be mounted here: {error.stderr.strip()}"


class Disk:
    """A mounted disk.

    Parameters
    ----------
    folder
        Where its image and its mount point are made.
    options
        Of the mount.
    """

    def __init__(self, folder: Path, options: str) -> None:
        self._image, self._options = folder / "image", options
        self.root = folder / "disk"
        """Where it is mounted."""
        self.root.mkdir()
        with self._image.open("wb") as file:
            file.truncate(SIZE_MIB << 20)
        _call("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", self._image)
        self._mount()

    def _mount(self) -> None:
        _call("mount", "-t", "ext4", "-o", f"loop,{self._options}", self._image, self.root)

    def lose_power(self) -> None:
        """From now on nothing reaches the disk; whoever writes or syncs gets an error."""
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def switch_on(self) -> None:
        """Mount it again: the journal is replayed, all else that was in memory is gone."""
        self._unmount()
        self._mount()

    def _unmount(self) -> None:
        """As soon as the last process that has a file open there is gone."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return _call("umount", self.root)
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def __enter__(self) -> Disk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unmount()
        self._image.unlink()


def _call(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
