"""Dashboard and alerts speak of metrics that there are, under the names that Ray exports."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mvqkd.pipeline.cluster import metrics

REPOSITORY = Path(__file__).resolve().parents[2]
DASHBOARD = REPOSITORY / "deploy" / "grafana" / "mvqkd.json"
ALERTS = REPOSITORY / "deploy" / "prometheus" / "alerts.yaml"
DRIVER_COUNTERS = (metrics.SHARDS_DONE, metrics.SHARDS_FAILED, metrics.SHARDS_RETRIED)
COUNTERS = {f"ray_{name}_total" for name, _ in (*metrics.COUNTERS.values(), *DRIVER_COUNTERS)}
GAUGES = {f"ray_{name}" for name, _ in (*metrics.GAUGES.values(), metrics.SHARDS_LEFT)}
METRIC = re.compile(r"\bray_mvqkd_\w+")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]] + [
        rule["expr"] for rule in rules()
    ]


def test_every_metric_that_is_shown_or_watched_is_exported() -> None:
    used = {name for expression in expressions() for name in METRIC.findall(expression)}
    assert used == COUNTERS | GAUGES, "one that there is not, or one that nobody looks at"


def test_counters_are_asked_for_their_growth_and_gauges_are_not() -> None:
    for expression in expressions():
        # The first failure makes the counter, and Prometheus sees no growth in that.
        if re.fullmatch(r"sum by \(run, stage\) \(\w+\) > 0", expression):
            continue
        for name in METRIC.findall(expression):
            grown = re.search(rf"\b(?:rate|increase)\({name}\b", expression)
            assert bool(grown) == (name in COUNTERS), expression


def test_brackets_of_expressions_are_closed() -> None:
    for expression in expressions():
        open_ = []
        for sign in expression:
            if sign in "([{":
                open_.append(sign)
            elif sign in ")]}":
                assert open_ and {"(": ")", "[": "]", "{": "}"}[open_.pop()] == sign, expression
        assert not open_, expression


def test_panels_lie_side_by_side_and_say_what_they_are() -> None:
    taken: set[tuple[int, int]] = set()
    dashboard = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in panels():
        assert panel["title"] and panel["description"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


def test_every_alarm_is_explained_to_the_person_on_call() -> None:
    guide = (REPOSITORY / "docs" / "operate.md").read_text()
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"docs/operate.md#{rule['alert'].lower()}"
        assert f"\n### {rule['alert']}\n" in guide


@pytest.mark.integration
def test_ray_exports_these_names(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("exported_metrics.py"))],
        env={
            **environment,
            "PYTHONPATH": str(REPOSITORY),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "t" * 32,
        },
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    values = json.loads(done.stdout.splitlines()[-1])
    assert set(values) == COUNTERS | GAUGES
    assert values["ray_mvqkd_audio_seconds_total"] == 2.0, "two workers, one second each"
    assert values["ray_mvqkd_shards_left"] == 5.0
