"""A machine that is lost: its shards are done on another one."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from faults_rig import Faults

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cluster(ray_session: None) -> Iterator[Any]:
    """A head without CPUs; machines are added by the tests. The session's Ray is another one beside it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def test_a_node_that_is_lost(faults: Faults, cluster: Any) -> None:
    nodes = [cluster.add_node(num_cpus=1, wait=False) for _ in range(2)]
    cluster.wait_for_nodes()
    mischief = faults.mischief(slow_s=0.2)
    on_cluster = faults.with_keys("cluster", address=cluster.address).with_keys("extract", actors=2)
    command = on_cluster.start(mischief)
    while len(faults.committed()) < 2:
        assert command.poll() is None, command.communicate()
        time.sleep(0.02)
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    _, said = command.communicate()
    cluster.remove_node(nodes.pop(), allow_graceful=True)
    assert command.returncode == 0, said
    mischief.computed()
    faults.check()
