"""What Prometheus and Grafana are given."""

from __future__ import annotations

import json
import re

from prometheus_client.parser import text_string_to_metric_families

from streamprep.snapshot import Gpu
from tests.conftest import ROOT
from tests.web.acted import NOW, WILD, snapshot, write_status
from tests.web.asking import Looked


def scraped(looked: Looked) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, by its name and labels, as Prometheus' own parser reads it."""
    told = looked.get("/metrics")
    assert told.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(told.text):
        assert family.documentation
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def value(found: dict[tuple[str, frozenset[tuple[str, str]]], float], metric: str, /, **labels: str) -> float:
    return found[f"streamprep_{metric}", frozenset(labels.items())]


def test_all_that_is_shown_is_measured(busily: Looked) -> None:
    busily.clock.pass_by(4)
    found = scraped(busily)
    assert value(found, "daemon_up") == 1
    assert value(found, "status_age_seconds") == 4
    assert value(found, "items", state="done") == 230
    assert value(found, "items", state="failed") == 3
    assert value(found, "items_pending", state="waiting") == 11
    assert value(found, "items_pending", state="in_work") == 2
    assert value(found, "rows", set="noise_picks") == value(found, "rows", set="picks")
    assert value(found, "stage_backlog", stage="publishing") == 1240
    assert value(found, "stage_oldest_seconds", stage="waiting") == 900
    assert value(found, "operation_seconds", operation="denoise") == 0.9
    assert value(found, "disk_total_bytes") == 8 << 40
    assert value(found, "gpu_load_ratio", gpu="0", name="NVIDIA A40") == 0.71
    assert value(found, "mode", mode="running") == 1


def test_a_silent_daemon_has_no_rates(busily: Looked) -> None:
    busily.clock.pass_by(60)
    busily.look()
    found = scraped(busily)
    assert value(found, "daemon_up") == 0
    assert value(found, "status_age_seconds") == 60
    assert value(found, "items", state="done") == 230
    left_out = {"streamprep_items_per_hour", "streamprep_stage_backlog", "streamprep_gpu_load_ratio", "streamprep_mode"}
    assert not left_out & {name for name, _ in found}


def test_before_the_session_there_is_little_to_measure(looked: Looked) -> None:
    looked.look()
    assert {name for name, _ in scraped(looked)} == {"streamprep_daemon_up", "streamprep_info"}


def test_hostile_names_are_labels_and_no_more(looked: Looked) -> None:
    made = snapshot(
        looked.output,
        rows={f"{WILD}.star": 4, 'a"} 7\nb.star': 5, "\\.star": 6},
        operation_seconds={"\udcff": 1.0},
        gpus=(Gpu(WILD, 1, 1, 2, 3), Gpu(WILD, 1, 1, 2, 3)),
    )
    write_status(looked.output, made, modified=NOW)
    looked.look()
    found = scraped(looked)
    assert value(found, "rows", set=WILD.replace(" ", "_")) == 4
    assert value(found, "rows", set='a"}_7\nb') == 5
    assert value(found, "gpu_load_ratio", gpu="1", name=WILD) == 0.01


def test_names_tell_their_units(busily: Looked) -> None:
    for name, _ in scraped(busily):
        assert re.fullmatch(r"streamprep_[a-z][a-z_]*[a-z]", name)
        assert not name.endswith(("_total", "_ms", "_gib", "_percent"))


def test_the_grafana_dashboard_asks_for_what_there_is(busily: Looked) -> None:
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    there = {name for name, _ in scraped(busily)}
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    asked += [made["query"] for made in dashboard["templating"]["list"] if made["type"] == "query"]
    assert len(asked) >= 10
    for expression in asked:
        names = set(re.findall(r"\bstreamprep_[a-z_]+", expression))
        assert names, expression
        assert names <= there, expression
