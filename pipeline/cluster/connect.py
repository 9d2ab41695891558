"""Joining or starting Ray, and what it has."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import ray
import ray._private.parameter
from ray.exceptions import AuthenticationError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mvqkd.pipeline.cluster.environment import local_environment, ray_temp_dir
from mvqkd.pipeline.cluster.pool import Resources, Share
from mvqkd.pipeline.cluster.progress_board import ProgressBoard
from mvqkd.pipeline.run_sections import ClusterConfig
from mvqkd.pipeline.show.progress import say

LOCAL_STARTS = 3
ANSWER_TIMEOUT_S = 10.0


@contextmanager
def cluster(config: ClusterConfig) -> Iterator[None]:
    """A connection to Ray for the time of the block; one that exists already is used and kept.

    `local` starts Ray below this process, without a dashboard, with all its ports on the loopback interface and behind
    a token, whatever the environment says; other addresses are joined, as the environment says.

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
    with local_environment() if config.address == "local" else nullcontext():
        if config.address == "local":
            _start_local(config.num_cpus)
        else:
            _join(config.address)
        try:
            yield
        finally:
            ray.shutdown()


def _start_local(num_cpus: int | None) -> None:
    """Start Ray below this process. Ray gives its own parts 30 s to come up; on a loaded machine that may need a
    second try."""
    temp_dir = ray_temp_dir()
    for attempt in range(1, LOCAL_STARTS + 1):
        try:
            with _any_agent_port():
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    _node_ip_address="127.0.0.1",
                    _temp_dir=temp_dir,
                )
            return
        except Exception as error:
            # Ray has no class for this error.
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if attempt == LOCAL_STARTS:
                raise ConnectionError(
                    f"Ray did not start on this machine in {LOCAL_STARTS} tries of 30 s: it is too busy, or "
                    f"{temp_dir or 'its /tmp'} is full; `--set cluster.address=none` does without Ray"
                ) from error


@contextmanager
def _any_agent_port() -> Iterator[None]:
    """Let the dashboard's agent take any free port. `ray start` has an option for it, `ray.init` has none, and beside
    another Ray the agent tries its usual port for a while before it does without."""
    usual = ray._private.parameter.RayParams
    ray._private.parameter.RayParams = partial(usual, dashboard_agent_listen_port=0)
    try:
        yield
    finally:
        ray._private.parameter.RayParams = usual


def _join(address: str) -> None:
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    try:
        if separator:
            # Ray itself tries an address where nobody answers for minutes.
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except AuthenticationError as error:
        raise ConnectionError(
            f"cluster.address {address}: the cluster asks for a token, or refuses this one; set RAY_AUTH_MODE=token "
            "and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, a file) to those of the cluster"
        ) from error
    # OverflowError: a port above 65,535. ValueError: what is no address at all, and versions that do not fit.
    except (OSError, ValueError, OverflowError, RuntimeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ConnectionError(
            f"cluster.address {address}: {lines[0]}; it has to be host:port of a Ray head that runs "
            "(`ray start --head` prints it), `auto`, `local`, or `none` to do without Ray"
        ) from error


def resources() -> Resources:
    """What the cluster has at this moment."""
    total = ray.cluster_resources()
    largest = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=1)
    return Resources(cpus=int(total.get("CPU", 1)), gpus=int(total.get("GPU", 0)), machine_cpus=largest)


def check_fits(config: ClusterConfig, share: Share) -> None:
    """Ray lets a worker that fits nowhere wait without a word.

    Raises:
        ValueError: no machine of a local Ray is large enough for one worker.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= share.cpus and node.get("GPU", 0) >= share.gpus for node in nodes):
        return
    have = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
    problem = (
        f"{share.keys}: a worker wants {share.cpus:g} CPUs and {share.gpus:g} GPUs, the nodes of the cluster "
        f"have {have}"
    )
    if config.address == "local":
        raise ValueError(f"{problem}; ask for less")
    # An autoscaler may bring one.
    say(f"{problem}; waiting for one that is large enough")


def start_board() -> Any:
    """A `ProgressBoard` on this node, so that it lives as long as the driver does."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(ProgressBoard).options(scheduling_strategy=here).remote()


def read_board(board: Any) -> dict[str, dict[str, Any]]:
    """The notes on a board; none when it is gone, since no work depends on it."""
    try:
        notes: dict[str, dict[str, Any]] = ray.get(board.get.remote())
    except RayActorError:
        return {}
    return notes
