"""Which ports a tree of processes listens on, and what somebody without the token gets there."""

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc

# One of every kind of server that Ray runs: they answer, if at all, to some of these.
RPCS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.ActorInfoGcsService/ListNamedActors",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.rpc.RayletDriver/Schedule",
)
PATHS = ("/metrics", "/", "/api/version", "/api/jobs/", "/nodes?view=summary", "/api/v0/actors", "/logs/")
# What a refusal looks like; that a server has no such method says nothing of the cluster.
REFUSED_RPC = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE}
REFUSED_HTTP = {401, 403}
NO_HTTP = 0


@dataclass(frozen=True, kw_only=True)
class Door:
    """A port that a process listens on."""

    port: int
    address: str
    process: str

    @property
    def is_loopback(self) -> bool:
        """As /proc/net writes 127.0.0.1: for IPv4, and as an IPv6 socket has it."""
        return self.address in ("0100007F", "0000000000000000FFFF00000100007F")


def doors(processes: Iterable[int]) -> list[Door]:
    """The TCP ports on which these processes listen."""
    owners: dict[str, str] = {}
    for process in processes:
        try:
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                target = str(descriptor.readlink())
                if target.startswith("socket:["):
                    command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ")
                    owners[target[len("socket:[") : -1]] = command.decode()[:200].strip()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in owners:
                address, port = words[1].split(":")
                found.append(Door(port=int(port, 16), address=address, process=owners[words[9]]))
    return found


def call(port: int, method: str, *, token: str | None = None) -> grpc.StatusCode:
    """The answer to a bare gRPC call with an empty message."""
    metadata = [("client_id", "x" * 32), *([("authorization", f"Bearer {token}")] if token else [])]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(method)(b"", timeout=5, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def get(port: int, path: str, *, token: str | None = None, body: bytes | None = None) -> int:
    """The status of an HTTP answer; `NO_HTTP` from a server of something else."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (http.client.HTTPException, OSError):
        return NO_HTTP


def what_opens(port: int) -> list[str]:
    """Everything that a stranger without the token gets at a port; empty where he gets nothing."""
    opened = [f"gRPC {method}: {code}" for method in RPCS if (code := call(port, method)) not in REFUSED_RPC]
    for path in PATHS:
        if (code := get(port, path)) not in {NO_HTTP, *REFUSED_HTTP}:
            opened.append(f"GET {path}: {code}")
    job = f'{{"entrypoint": "touch /tmp/mvqkd-door-{os.getpid()}"}}'.encode()
    for path in ("/api/jobs/", "/api/job_agent/jobs/"):
        if (code := get(port, path, body=job)) not in {NO_HTTP, *REFUSED_HTTP}:
            opened.append(f"POST {path}: {code}")
    return opened
