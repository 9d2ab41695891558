"""Joining or starting Ray, and what it has."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from pipeline.config import ClusterConfig


@contextmanager
def cluster(config: ClusterConfig) -> Iterator[None]:
    """A connection to Ray for the time of the block; one that exists already is used and kept.

    `local` starts Ray in this process, without a dashboard and with the loopback address; other addresses are
    joined.

    Raises:
        ConnectionError: no cluster answers at `cluster.address`.
    """
    if ray.is_initialized():
        yield
        return
    # Read when Ray Train starts: no second copy of worker prints, no watcher that only clouds need.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if config.address == "local":
        ray.init(
            address="local",
            num_cpus=config.num_cpus,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
    else:
        ray.init(address=config.address, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def resources() -> tuple[int, int]:
    """CPUs and GPUs of the cluster at this moment."""
    total = ray.cluster_resources()
    return int(total.get("CPU", 1)), int(total.get("GPU", 0))
