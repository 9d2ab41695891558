"""Joining a cluster."""

import socket

import pytest
import ray

from mvqkd.pipeline.cluster.connect import cluster
from mvqkd.pipeline.run_config import ClusterConfig


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "127.0.0.1:head"])
def test_an_address_where_nobody_answers_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray tries a dead address for minutes"))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = address.format(port=nobody.getsockname()[1])
        with pytest.raises(ConnectionError, match=f"cluster.address {address}.*ray start --head"):
            cluster(ClusterConfig(address=address)).__enter__()


@pytest.mark.parametrize("address", ["locl", "localhost", "127.0.0.1:99999", "127.0.0.1:-1"])
def test_what_is_no_address_is_named_with_its_key(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConnectionError, match=f"cluster.address {address}: .*`none` to do without Ray"):
        cluster(ClusterConfig(address=address)).__enter__()
