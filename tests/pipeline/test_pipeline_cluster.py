"""Joining a cluster, or doing without."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import ray
from doors import Door, doors
from ray.exceptions import AuthenticationError
from ray_head import descendants
from tiny import Done, copy_of, make_run

from mvqkd.pipeline.cluster.connect import cluster
from mvqkd.pipeline.run_sections import ClusterConfig
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.workers.extract import Extractor


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


def test_a_cluster_that_asks_for_a_token_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise AuthenticationError("no token")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConnectionError, match=r"cluster.address auto: .*set RAY_AUTH_MODE=token"):
        cluster(ClusterConfig(address="auto")).__enter__()


def test_without_a_cluster_nothing_is_opened(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Door]] = []
    work = Extractor.run

    def watched(self: Extractor, *args: Any, **options: Any) -> Any:
        seen.append(doors(descendants(os.getpid())))
        return work(self, *args, **options)

    monkeypatch.setattr(Extractor, "run", watched)
    run = make_run(copy_of(done, tmp_path, "plan", "quantizer"), tmp_path)
    assert run.config.cluster.address == "none"
    before = doors(descendants(os.getpid()))
    extract_stage(run)
    assert seen and all(now == before for now in seen)
