"""Run by itself: starts a Ray, lets a worker and the driver say everything they can, and prints what Ray exports."""

import json
import re
import time
import urllib.request

import ray
import ray.util.metrics

from mvqkd.pipeline.cluster.metrics import COUNTERS, GAUGES, DriverMetrics, Labels, WorkerMetrics

LABELS = Labels(stage="extract", run="demo")
LINE = re.compile(r"^(ray_mvqkd_\w+)\{(.*)\} (\S+)$")
WAIT_S = 60.0


@ray.remote(num_cpus=1)
class Worker:
    def __init__(self) -> None:
        self._metrics = WorkerMetrics(LABELS)

    def note(self, meters: dict[str, float]) -> None:
        self._metrics.note({"meters": meters})


def exported() -> dict[str, float]:
    """Names and values of our metrics on this node's metrics port, all workers added."""
    port = ray.nodes()[0]["MetricsExportPort"]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:  # the agent is not up yet
        return {}
    values: dict[str, float] = {}
    for name, tags, value in (found.groups() for found in map(LINE.match, text.splitlines()) if found):
        assert 'run="demo"' in tags and 'stage="extract"' in tags, tags
        values[name] = values.get(name, 0.0) + float(value)
    return values


def main() -> None:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
        _system_config={"metrics_report_interval_ms": 1000},
    )
    workers = [Worker.remote() for _ in range(2)]
    meters = {key: float(n) for n, key in enumerate([*COUNTERS, *GAUGES], start=1)}
    ray.get([worker.note.remote(meters) for worker in workers])
    driver = DriverMetrics(LABELS, left=7)
    driver.ended(failed=False)
    driver.ended(failed=True)
    driver.retried()
    until = time.monotonic() + WAIT_S
    # A worker's metrics come all together, but the processes do not.
    while sum(exported().values()) < 2 * sum(meters.values()) + 3 + 5 and time.monotonic() < until:
        time.sleep(0.2)
    print(json.dumps(exported()))


if __name__ == "__main__":
    main()
