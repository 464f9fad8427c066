"""Output folders as a session would leave them, made of what the program itself writes; for tests and for pictures."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from streamprep import journal
from streamprep.history import LOG
from streamprep.joins import JobInput
from streamprep.ledger import Block, FileRow, JobRow, Shard, SourceRow
from streamprep.model import Identity
from streamprep.snapshot import Gpu, Snapshot, Stage

NOW = 1_780_000_000.0
HOSTILE = "<img src=x onerror=\"document.title='owned'\">'; $(touch owned) `id` \u05d0\u05d1"
"""A name that pages, scripts and shells might take for something else."""
WILD = HOSTILE + "\n\u202egpj.mrc"
"""The same, with what no terminal or page should be given."""

TRACEBACK = """Traceback (most recent call last):
  File "/opt/streamprep/pipeline.py", line 412, in run
    value = step(context, **data)
  File "/opt/facility_operations/denoise.py", line 57, in denoise
    raise ValueError("the model does not fit boxes of 96 px: it was trained on 128 px")
ValueError: the model does not fit boxes of 96 px: it was trained on 128 px"""

PLAN = {
    "hash": "f288442cf62a0fa0",
    "steps": [
        {"table": "coordinates", "operation": "pick_noise", "order": 10, "distribution": "streamprep",
         "version": "0.1.0", "parameters": {"number": -1, "crowded": "relax", "mask": None, "reject_outliers": False}},
        {"table": "extract", "operation": "extract", "order": 10, "distribution": "streamprep",
         "version": "0.1.0", "parameters": {"box_size_px": 256, "output_size_px": 128, "edge": "skip"}},
        {"table": "particles", "operation": "normalize", "order": 30, "distribution": "streamprep",
         "version": "0.1.0", "parameters": {"method": "ramp", "background_radius_px": -1}},
        {"table": "particles", "operation": "denoise", "order": 40, "distribution": "facility-operations",
         "version": "2.3", "parameters": {"model": "k3-2026", "strength": 0.4}},
        {"table": "particles", "operation": "invert", "order": 60, "distribution": "streamprep",
         "version": "0.1.0", "parameters": {}},
    ],
    "optics": {"pixel_size_angstrom": 0.85, "voltage_kv": 300.0, "spherical_aberration_mm": 2.7},
    "seed": 0, "ctf": True, "image_paths": "output", "flip_y": [], "further_tables": ["xmd"],
}  # fmt: skip


def commit(
    item: str, *, finished: float = NOW, rows: int = 280, warnings: tuple[str, ...] = (), label: str = "Micrographs"
) -> journal.Commit:
    """What the log says of one micrograph that is done."""
    name = item.rpartition("/")[2]
    file = FileRow(1, label, f"{name}.mrc", 1, "micrograph", item, Identity(1, 2, 3, 4), 0)
    picks = JobInput("coordinates", "Coordinates", f"{name}_autopick.star", name, "d", 1)
    tables = ("coordinates/particles.star", "coordinates/noise.star", "particles.star", "particles.xmd", "noise.star")
    return journal.Commit(
        SourceRow(label, "", Path("/data/session") / label, f"../{label}", "1:2"),
        JobRow(1, item, 1, file, (picks,), 0),
        (
            Shard(f"particles/{item}.mrcs", 4 * 128 * 128 * rows, 1),
            Shard(f"noise/{item}.mrcs", 4 * 128 * 128 * rows, 1),
        ),
        tuple(Block(table, 0, 10, rows, ("a",), 1) for table in tables),
        warnings=warnings,
        notes=("2 of 282 particle boxes cross the micrograph's edge and were skipped",),
        seconds=1.4,
        finished=finished,
    )


def log_commits(output: Path, commits: Iterable[journal.Commit]) -> None:
    """Write on in the log of commits."""
    (output / LOG).parent.mkdir(parents=True, exist_ok=True)
    with (output / LOG).open("ab") as file:
        file.write(b"".join(map(journal.line_of, commits)))


def snapshot(output: Path, **changed: Any) -> Snapshot:
    """A session that runs, with nothing wrong."""
    values: dict[str, Any] = {
        "output": str(output), "mode": "running", "message": "",
        "plan": tuple(f"{step['table']}.{step['operation']}" for step in PLAN["steps"]),  # type: ignore[attr-defined]
        "device": "GPU NVIDIA A40", "workers": 2, "elapsed_seconds": 18_812.0, "jobs": {"done": 3}, "waiting": (),
        "waiting_count": 0, "settling": 0, "running": (), "rows": {"particles.star": 840, "noise.star": 840},
        "items_per_hour": 312.4, "particles_per_second": 24.3, "oldest_seconds": 0.0,
        "operation_seconds": {"pick_noise": 0.27, "extract": 0.11, "denoise": 0.9, "invert": 0.0004},
        "failures": (), "failed": 0, "rejected": 0, "warnings": 0, "unknown_files": 0, "unmatched": (), "degraded": (),
        "disk_free_bytes": 1_300 << 30,
    }  # fmt: skip
    return Snapshot(**{**values, **changed})


def write_status(output: Path, made: Snapshot, *, modified: float | None = None) -> None:
    """As the daemon does."""
    path = output / ".streamprep" / "status.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.with_suffix(".tmp")
    begun.write_text(json.dumps(dataclasses.asdict(made), default=str))
    if modified is not None:
        os.utime(begun, (modified, modified))
    begun.replace(path)


def failure(item: str, **changed: Any) -> dict[str, Any]:
    """A micrograph that failed, as the ledger tells of it."""
    reason = "denoise: ValueError: the model does not fit boxes of 96 px: it was trained on 128 px"
    return {
        "item": item, "state": "failed", "reason": reason, "operation": "denoise", "traceback": TRACEBACK,
        "attempts": 3, "when": NOW - 95, "file": f"{item}.mrc", **changed,
    }  # fmt: skip


def hole(number: int) -> str:
    """A micrograph's name, as acquisition programs make them."""
    return f"Micrographs/GridSquare_{21 + number // 400}/FoilHole_{30131 + number // 4}_Data_{number:05d}_fractions"


def busy(output: Path, now: float, items: int = 1604) -> Snapshot:
    """A session of five hours in which all that can be told of happens, up to ``now``."""
    rng = np.random.default_rng(3)
    gaps = rng.gamma(2.0, 5.0, items)
    gaps[items // 2] += 2400  # the grid was changed
    times = now - 3 - np.cumsum(gaps)[::-1] + gaps[-1]
    counts = rng.normal(280, 30, items).astype(int).clip(0)
    warned = ("14 of 282 boxes have outliers: hot pixels?",)
    log_commits(
        output,
        (
            commit(hole(n), finished=float(t), rows=int(rows), warnings=warned if n % 229 == 0 else ())
            for n, (t, rows) in enumerate(zip(times, counts, strict=True))
        ),
    )
    (output / ".streamprep" / "plan.json").write_text(json.dumps(PLAN))
    draw_pictures(output, [hole(items - 1 - n) for n in range(4)], now)
    (output / "report.html").write_text("<!doctype html><title>report</title><p>A report.</p>")
    rows = int(counts.sum())
    return snapshot(
        output,
        jobs={"done": items, "ready": 7, "claimed": 2},
        running=((hole(items), 1.8), (hole(items + 1), 0.6)),
        waiting=tuple((hole(items + 9 + n), "waits for coordinates", 900.0 - 100 * n) for n in range(8)),
        waiting_count=11,
        settling=2,
        rows={"coordinates/particles.star": rows, "coordinates/noise.star": rows,
              "particles.star": rows, "noise.star": rows - 567},
        failed=3,
        rejected=1,
        warnings=8,
        failures=(
            failure(hole(items - 7), when=now - 95),
            failure("Micrographs/_img_src_x_onerror-9a31c2d4", file=f"Micrographs/{WILD}", when=now - 300, attempts=0,
                    operation=None, traceback=None, reason=f"truncated: {HOSTILE}"),
            failure(hole(700), state="rejected", operation="pick_noise", traceback=None, attempts=1, when=now - 7800,
                    reason="there is no room for a single box of background"),
            failure(hole(411), when=now - 11000, traceback=None, operation=None, attempts=0,
                    reason="truncated: it has 2000000 bytes, 4096 × 4096 × 1 of mode 2 and 0 bytes of extended header "
                    "make 67109888"),
        ),
        unmatched=(("coordinates", "FoilHole_29998_Data_00001_fractions.mrc"),),
        unknown_files=14,
        recent_warnings=((hole(1603), warned), (hole(1374), ("the background of 3 boxes is not flat",))),
        stages=(
            Stage("settling", 320, 2, 0.8), Stage("waiting", 318, 11, 900), Stage("processing", 312.4, 9, 31),
            Stage("committing", 312.4, 0, 0), Stage("publishing", 87_400, 1_240, 41),
        ),
        gpus=(Gpu("NVIDIA A40", 71, 11 << 30, 45 << 30, 63),),
        disk_total_bytes=8 << 40,
        disk_reserve_bytes=512 << 20,
        disk_full_seconds=61 * 3600.0,
        arrived_seconds=4.0,
        finished_seconds=2.5,
        started=now - 18_812,
        taken=now,
        degraded=("/data/session/Micrographs is on nfs4: it gives no events, and is scanned every 5 s",),
    )  # fmt: skip


def draw_pictures(
    output: Path, items: Iterable[str], now: float, kinds: tuple[str, ...] = ("micrograph", "thumb", "particles")
) -> None:
    """A folder of pictures with its index; grey noise with discs."""
    folder = output / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    index = []
    for number, item in enumerate(items):
        rng = np.random.default_rng(number)
        files: list[dict[str, str]] = []
        for kind in kinds:
            side = 360
            y, x = np.mgrid[:side, :side]
            grey = rng.normal(120, 26, (side, side))
            for cx, cy in rng.uniform(20, side - 20, (24, 2)):
                grey[(x - cx) ** 2 + (y - cy) ** 2 < 90] -= 45
            name = f"{item}/{kind}.jpg"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            about = "picks" if kind == "micrograph" else "before and after"
            files.append({"file": f"gallery/{name}", "name": kind, "about": about})
            Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(folder / name, quality=70)
        index.append(
            {"item": item, "kind": "micrograph", "files": files, "generation": 1, "finished": now - 10 * number}
        )
    (folder / "index.json").write_text(json.dumps({"version": 1, "items": index}))
