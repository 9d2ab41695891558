"""What nodes on AWS may do: what they need, on what is theirs."""

import json
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
AWS = REPOSITORY / "deploy" / "aws"
# All that storage asks of S3, by the name of the right.
STORAGE_NEEDS = {"s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:AbortMultipartUpload"}
# What has no resource of its own.
ON_EVERYTHING = {"ec2:DescribeInstances", "ec2:DescribeInstanceTypes"}


def statements(name: str) -> list[dict[str, Any]]:
    policy = json.loads((AWS / f"iam-{name}-policy.json").read_text())
    assert policy["Version"] == "2012-10-17"
    return [
        {**statement, **{key: _list(statement[key]) for key in ("Action", "Resource")}}
        for statement in policy["Statement"]
    ]


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@pytest.mark.parametrize("name", ["head", "worker"])
def test_nothing_is_allowed_wholesale(name: str) -> None:
    for statement in statements(name):
        assert statement["Effect"] == "Allow" and not set(statement) & {"NotAction", "NotResource"}
        assert not any("*" in action for action in statement["Action"]), statement["Sid"]
        if "*" in statement["Resource"]:
            assert set(statement["Action"]) <= ON_EVERYTHING, statement["Sid"]


@pytest.mark.parametrize("name", ["head", "worker"])
def test_every_action_is_one(name: str) -> None:
    session = botocore.session.get_session()
    # A right that is not called like an operation of its service.
    other = {"s3:ListBucket", "iam:PassRole"}
    for action in {action for statement in statements(name) for action in statement["Action"]} - other:
        service, _, operation = action.partition(":")
        assert operation in session.get_service_model(service).operation_names, action


def test_a_worker_reads_and_writes_one_prefix_and_reads_the_corpus() -> None:
    allowed = statements("worker")
    assert {action for statement in allowed for action in statement["Action"]} >= STORAGE_NEEDS
    for statement in allowed:
        if statement["Action"] == ["s3:ListBucket"]:
            assert statement["Condition"]["StringLike"]["s3:prefix"], statement["Sid"]
        else:
            assert all("PREFIX/" in resource for resource in statement["Resource"]), statement["Sid"]
        if "CORPUS" in str(statement["Resource"]):
            assert not set(statement["Action"]) & {"s3:PutObject", "s3:DeleteObject"}


def test_nothing_deletes_the_table() -> None:
    for statement in statements("worker"):
        if "s3:DeleteObject" in statement["Action"]:
            assert not any(
                resource.endswith("PREFIX/*") or "table" in resource for resource in statement["Resource"]
            )


def test_the_head_starts_and_ends_only_workers_of_this_cluster() -> None:
    cluster = yaml.safe_load((REPOSITORY / "ray_cluster.yaml").read_text())
    gpu = cluster["available_node_types"]["gpu"]["node_config"]
    by_id = {statement["Sid"]: statement for statement in statements("head")}
    start = by_id["StartWorkersOfThisClusterOnly"]["Condition"]["StringEquals"]
    assert start == {
        "aws:RequestTag/ray-cluster-name": cluster["cluster_name"],
        "ec2:InstanceType": gpu["InstanceType"],
        "ec2:MetadataHttpTokens": "required",
    }
    end = by_id["EndAndTagWhatIsOfThisCluster"]
    assert end["Condition"]["StringEquals"] == {"aws:ResourceTag/ray-cluster-name": cluster["cluster_name"]}
    assert "ec2:TerminateInstances" in end["Action"]
    (role,) = by_id["GiveThemTheWorkersRole"]["Resource"]
    assert role.endswith(f"role/{gpu['IamInstanceProfile']['Name']}")
