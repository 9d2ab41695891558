"""What a stranger gets at the ports of a Ray that we start: nothing, and from another machine not even an answer."""

import os
from pathlib import Path

import grpc
import pytest
import ray
from doors import Door, call, doors, get, what_opens
from ray_head import RayHead, descendants

from mvqkd.pipeline.cluster.connect import start_board

pytestmark = pytest.mark.integration


def ray_of_this_process() -> list[Door]:
    """Ports of the driver and of the session's processes, without other servers of the tests."""
    others: set[int] = set()
    for process in descendants(os.getpid()):
        command = Path(f"/proc/{process}/cmdline").read_bytes()
        if b"weed" in command or (b"ray\0start" in command and b"--block" in command):
            others |= set(descendants(process))
    return doors(process for process in descendants(os.getpid()) if process not in others)


def test_a_local_ray_opens_no_door(ray_session: None) -> None:
    """With RAY_AUTH_MODE=disabled in the environment from which it was started, as `ray_session` has it."""
    board = start_board()
    assert ray.get(board.get.remote()) == {}  # a worker that listens
    found = ray_of_this_process()
    assert len(found) >= 6, found
    assert [door for door in found if not door.is_loopback] == []
    assert {door.process: opened for door in found if (opened := what_opens(door.port))} == {}
    # With the token the same calls are answered, so it is the token that keeps them out.
    token = os.environ["RAY_AUTH_TOKEN"]
    answers = {call(door.port, "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", token=token) for door in found}
    assert grpc.StatusCode.OK in answers


def test_a_head_with_a_token_lets_nobody_in(head: RayHead) -> None:
    found = doors(descendants(head.process))
    assert {head.ports["dashboard-port"], head.ports["ray-client-server-port"]} <= {
        door.port for door in found
    }
    assert all(door.is_loopback for door in found)
    opened = {door.port: opened for door in found if (opened := what_opens(door.port))}
    # The page of the dashboard, which asks for the token before it shows anything.
    assert opened.pop(head.ports["dashboard-port"]) == ["GET /: 200"]
    assert opened == {}
    token = head.environment["RAY_AUTH_TOKEN"]
    assert get(head.ports["dashboard-port"], "/api/jobs/", token=token) == 200
    client_port, client_call = head.ports["ray-client-server-port"], "/ray.rpc.RayletDriver/ClusterInfo"
    assert call(client_port, client_call) == grpc.StatusCode.UNAUTHENTICATED
    assert call(client_port, client_call, token=token) == grpc.StatusCode.NOT_FOUND, "no client of this name"
