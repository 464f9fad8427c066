"""What Prometheus is told: the state of a session as gauges, under names with units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamprep import __version__
from streamprep.snapshot import Snapshot
from streamprep.web.items import set_title
from streamprep.web.show import counts
from streamprep.web.state import Watch


def registry(watch: Watch) -> CollectorRegistry:
    """A registry of its own that tells what a watch sees at each moment."""
    made = CollectorRegistry(auto_describe=False)
    made.register(_Session(watch))
    return made


class _Session(Collector):
    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is depends on the session."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All that is known; what is true of one moment only, as rates, is left out once the daemon says nothing."""
        view = self.watch.view
        yield _one("daemon_up", "1 while the daemon writes its state.", float(view.daemon == "running"))
        yield _many("info", "What runs.", ("version", "plan"), [((__version__, str(view.plan.get("hash", ""))), 1.0)])
        if view.snapshot is None:
            return
        yield _one("status_age_seconds", "Age of what the daemon wrote last.", self.watch.age_seconds)
        yield from _lasting(view.snapshot)
        if view.daemon == "running":
            yield from _of_the_moment(view.snapshot)


def _lasting(snapshot: Snapshot) -> Iterable[Metric]:
    ended = counts(snapshot, running=False)
    states = [((name,), float(ended[name])) for name in ("done", "failed", "rejected")]
    yield _many("items", "Items that ended, by how. Rewritten ones are done anew, so it may fall.", ("state",), states)
    yield _one("items_with_warnings", "Items done with warnings.", snapshot.warnings)
    yield _one("unknown_files", "Files of no known kind.", snapshot.unknown_files)
    rows = [((set_title(name).replace(" ", "_"),), float(count)) for name, count in snapshot.rows.items()]
    yield _many("rows", "Committed rows of each set.", ("set",), rows)
    times = [((name,), seconds) for name, seconds in snapshot.operation_seconds.items()]
    yield _many("operation_seconds", "Mean time of each operation on one item.", ("operation",), times)


def _of_the_moment(snapshot: Snapshot) -> Iterable[Metric]:
    now = counts(snapshot, running=True)
    states = [((name.replace(" ", "_"),), float(now[name])) for name in ("in work", "queued", "waiting", "settling")]
    yield _many("items_pending", "Items that have not ended, by what they wait for.", ("state",), states)
    yield _many("mode", "1 for the mode that the daemon is in.", ("mode",), [((snapshot.mode,), 1.0)])
    yield _one("items_per_hour", "Items done per hour, over the last minutes.", snapshot.items_per_hour)
    yield _one("particles_per_second", "Particles per second, over the last minutes.", snapshot.particles_per_second)
    yield _one("oldest_seconds", "Age of the oldest item that is not done.", snapshot.oldest_seconds)
    yield _one("workers", "Workers.", snapshot.workers)
    yield _one("troubles", "Troubles that the daemon tells of, as a watch that is lost.", len(snapshot.degraded))
    if snapshot.disk_total_bytes:
        yield _one("disk_free_bytes", "Free space where the output is.", snapshot.disk_free_bytes)
        yield _one("disk_total_bytes", "Size of the disk that the output is on.", snapshot.disk_total_bytes)
        yield _one("disk_reserve_bytes", "Below this much free space it pauses.", snapshot.disk_reserve_bytes)
    if snapshot.disk_full_seconds is not None:
        yield _one("disk_full_seconds", "When the reserve is reached, at this pace.", snapshot.disk_full_seconds)
    if snapshot.arrived_seconds is not None:
        yield _one("arrived_seconds", "How long ago the last file arrived.", snapshot.arrived_seconds)
    stages = snapshot.stages
    yield _many("stage_backlog", "Items (rows: publishing) that have not left a stage.", ("stage",),
                [((stage.name,), float(stage.backlog)) for stage in stages])  # fmt: skip
    yield _many("stage_per_hour", "Items (rows: publishing) that left a stage per hour.", ("stage",),
                [((stage.name,), stage.per_hour) for stage in stages])  # fmt: skip
    yield _many("stage_oldest_seconds", "Age of the oldest in a stage.", ("stage",),
                [((stage.name,), stage.oldest_seconds) for stage in stages])  # fmt: skip
    gpus = [((str(number), gpu.name), gpu) for number, gpu in enumerate(snapshot.gpus)]
    labels = ("gpu", "name")
    yield _many("gpu_load_ratio", "Load of a GPU, 0 to 1.", labels, [(of, g.load_percent / 100) for of, g in gpus])
    yield _many("gpu_memory_used_bytes", "Memory in use.", labels, [(of, float(g.memory_used_bytes)) for of, g in gpus])
    yield _many("gpu_memory_total_bytes", "Memory.", labels, [(of, float(g.memory_total_bytes)) for of, g in gpus])
    yield _many("gpu_temperature_celsius", "Temperature.", labels, [(of, g.temperature_celsius) for of, g in gpus])


def _one(name: str, said: str, value: float) -> Metric:
    return GaugeMetricFamily(f"streamprep_{name}", said, value=value)


def _many(name: str, said: str, labels: tuple[str, ...], values: Sequence[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(f"streamprep_{name}", said, labels=labels)
    for of, value in values:
        family.add_metric([_utf8(text) for text in of], value)
    return family


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
