"""The files for Ray's cluster launcher, as far as they can be tried without machines: Ray's own validation, botocore's
model of what EC2 takes, and the rules of this house: no open door, one place for versions."""

import copy
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
FILES = {"aws": REPOSITORY / "ray_cluster.yaml", "local": DEPLOY / "local_machines.yaml"}
TOKEN = "~/.ray/auth_token"
START = "ray start"


def load(kind: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(FILES[kind].read_text())
    return content


def prepared(kind: str) -> dict[str, Any]:
    """As `ray up` makes it before it asks anybody."""
    from ray.autoscaler._private.util import prepare_config

    config: dict[str, Any] = prepare_config(copy.deepcopy(load(kind)))
    return config


def node_types() -> dict[str, Any]:
    types: dict[str, Any] = load("aws")["available_node_types"]
    return types


def problems_of(service: str, operation: str, request: dict[str, Any]) -> str:
    """What botocore's model has against a request; empty if nothing. Enums are not part of its own check."""
    import botocore.session
    import botocore.validate

    model = botocore.session.get_session().get_service_model(service).operation_model(operation)
    report: str = botocore.validate.ParamValidator().validate(request, model.input_shape).generate_report()
    return report + "\n".join(_not_in_enum(model.input_shape, request, operation))


def _not_in_enum(shape: Any, value: Any, where: str) -> list[str]:
    if shape.type_name == "structure":
        pairs = [
            (shape.members[key], item, f"{where}.{key}")
            for key, item in value.items()
            if key in shape.members
        ]
    elif shape.type_name == "list":
        pairs = [(shape.member, item, where) for item in value]
    else:
        enum = getattr(shape, "enum", [])
        return [f"{where}: {value} is none of {enum}"] if enum and value not in enum else []
    return [problem for pair in pairs for problem in _not_in_enum(*pair)]


@pytest.mark.parametrize("kind", FILES)
def test_ray_takes_the_file(kind: str) -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared(kind))


@pytest.mark.parametrize("kind", FILES)
def test_ray_refuses_a_key_that_it_does_not_know(kind: str) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError, match="idle_timeout"):
        validate_config({**prepared(kind), "idle_timeout": 5})


@pytest.mark.parametrize("name", ["head", "gpu"])
def test_ec2_takes_the_nodes(name: str) -> None:
    request = {**node_types()[name]["node_config"], "MinCount": 1, "MaxCount": 1}
    assert problems_of("ec2", "RunInstances", request) == ""
    assert "HttpToken" in problems_of(
        "ec2", "RunInstances", {**request, "MetadataOptions": {"HttpToken": "required"}}
    )
    assert "InstanceType" in problems_of("ec2", "RunInstances", {**request, "InstanceType": "g6.huge"})


def test_the_head_has_no_work_and_workers_come_by_demand() -> None:
    config = prepared("aws")
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert config["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0, "GPU": 0} and head["max_workers"] == 0
    assert gpu["resources"]["GPU"] == 1 and gpu["min_workers"] == 0
    assert 0 < gpu["max_workers"] <= config["max_workers"]
    spot = gpu["node_config"]["InstanceMarketOptions"]
    assert spot["MarketType"] == "spot" and spot["SpotOptions"]["InstanceInterruptionBehavior"] == "terminate"
    assert "InstanceMarketOptions" not in head["node_config"], "a head that goes takes the run with it"


@pytest.mark.parametrize("name", ["head", "gpu"])
def test_nodes_are_closed(name: str) -> None:
    node = node_types()[name]["node_config"]
    assert (
        node["MetadataOptions"]["HttpTokens"] == "required"
        and node["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    )
    assert node["SecurityGroupIds"], "Ray would make a group with SSH open to 0.0.0.0/0"
    assert set(node["IamInstanceProfile"]) == {"Name"}, "Ray would give the head all of EC2 and S3"
    assert all(
        disk["Ebs"]["Encrypted"] and disk["Ebs"]["DeleteOnTermination"]
        for disk in node["BlockDeviceMappings"]
    )


def test_no_address_of_everybody_and_no_key() -> None:
    for path in [*FILES.values(), *(path for path in DEPLOY.rglob("*") if path.is_file())]:
        text = path.read_text()
        assert "0.0.0.0" not in text and "::/0" not in text, path
        assert not re.search(r"AKIA[0-9A-Z]{16}|aws_secret_access_key\s*[:=]|BEGIN \w* ?PRIVATE KEY", text), (
            path
        )


@pytest.mark.parametrize("kind", FILES)
def test_ray_starts_with_a_token_and_shows_itself_to_its_own_machine(kind: str) -> None:
    config = prepared(kind)
    environment = (DEPLOY / "node.env").read_text()
    assert "export RAY_AUTH_MODE=token\n" in environment
    assert config["file_mounts"][TOKEN] == TOKEN
    for start in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = config[start]
        assert all(command.startswith(". ~/mvqkd/deploy/node.env && ") for command in commands)
        assert sum(START in command for command in commands) == 1
    (head,) = (command for command in config["head_start_ray_commands"] if START in command)
    assert "--dashboard-host=127.0.0.1" in head and "--num-cpus=0" in head and "--num-gpus=0" in head


@pytest.mark.parametrize("kind", FILES)
def test_ray_has_the_options_that_it_is_started_with(kind: str) -> None:
    from ray.scripts.scripts import start

    known = {name for option in start.params for name in option.opts}
    config = load(kind)
    for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
        if START in command:
            words = shlex.split(command.partition(START)[2])
            assert {word.partition("=")[0] for word in words} <= known


@pytest.mark.parametrize("kind", FILES)
def test_what_is_copied_is_there_and_holds_the_whole_package(kind: str) -> None:
    mounts = load(kind)["file_mounts"]
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    for remote, local in mounts.items():
        if remote != TOKEN:
            assert (REPOSITORY / local).exists() and remote == f"~/mvqkd/{local}"
    folders = set(settings["tool"]["setuptools"]["package-dir"].values())
    assert folders | {"deploy", "pyproject.toml", settings["project"]["readme"]} == set(mounts.values()) - {
        TOKEN
    }


def test_the_security_group_lets_nobody_in_but_ssh_and_itself() -> None:
    group = json.loads((DEPLOY / "aws" / "security-group.json").read_text())
    assert problems_of("ec2", "AuthorizeSecurityGroupIngress", group) == ""
    ssh, inside = group["IpPermissions"]
    assert (ssh["FromPort"], ssh["ToPort"], ssh["IpProtocol"]) == (22, 22, "tcp")
    assert all(entry["CidrIp"].endswith("/32") for entry in ssh["IpRanges"])
    assert "IpRanges" not in inside and "Ipv6Ranges" not in inside
    assert {pair["GroupId"] for pair in inside["UserIdGroupPairs"]} == {group["GroupId"]}
