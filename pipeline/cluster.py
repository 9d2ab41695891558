"""Joining or starting Ray, and what it has."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from pipeline.config import ClusterConfig

LOCAL_STARTS = 3
ANSWER_TIMEOUT_S = 10.0


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
    if config.address == "local":
        _start_local(config.num_cpus)
    else:
        _check_answers(config.address)
        ray.init(address=config.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def _start_local(num_cpus: int | None) -> None:
    """Start Ray in this process. Ray gives its own parts 30 s to come up; on a loaded machine that may need a
    second try."""
    for attempt in range(1, LOCAL_STARTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _node_ip_address="127.0.0.1",
            )
            return
        except Exception as error:
            # Ray has no class for this error.
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if attempt == LOCAL_STARTS:
                raise ConnectionError(
                    f"Ray did not start on this machine in {LOCAL_STARTS} tries of 30 s: it is too busy, or its "
                    "/tmp is full"
                ) from error


def _check_answers(address: str) -> None:
    """Ray itself tries an address where nobody answers for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:
        return  # `auto` and the like
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"cluster.address {address}: {error}; it has to be host:port of a Ray head that runs "
            "(`ray start --head` prints it), `auto`, or `local`"
        ) from error


def resources() -> tuple[int, int]:
    """CPUs and GPUs of the cluster at this moment."""
    total = ray.cluster_resources()
    return int(total.get("CPU", 1)), int(total.get("GPU", 0))
