"""The manifests for KubeRay, as far as they can be tried without Kubernetes."""

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_models import SPECS, ClusterSpec, JobSpec, Kube, Manifest, NetworkPolicySpec
from pydantic import ValidationError

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "deploy" / "kuberay"
CLUSTERS = ("raycluster.yaml", "rayjob.yaml")
PART_OF = {"app.kubernetes.io/part-of": "mvqkd"}


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def spec_of(manifest: dict[str, Any]) -> Kube:
    read = Manifest.model_validate(manifest)
    return SPECS[read.apiVersion, read.kind].model_validate(read.spec)


def cluster_of(name: str) -> ClusterSpec:
    (manifest,) = manifests(name)
    spec = spec_of(manifest)
    assert isinstance(spec, ClusterSpec | JobSpec)
    return spec.rayClusterSpec if isinstance(spec, JobSpec) else spec


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_every_field_is_one_that_there_is(path: Path) -> None:
    for manifest in manifests(path.name):
        spec_of(manifest)


def test_a_misspelt_field_is_seen() -> None:
    (manifest,) = manifests("rayjob.yaml")
    manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["container"] = []
    with pytest.raises(ValidationError, match="container"):
        spec_of(manifest)


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_head_has_no_work_and_gpus_come_by_demand(name: str) -> None:
    cluster = cluster_of(name)
    head = cluster.headGroupSpec
    assert head.rayStartParams["num-cpus"] == head.rayStartParams["num-gpus"] == "0"
    assert head.template.spec.containers[0].resources.limits.gpu is None
    assert cluster.enableInTreeAutoscaling and cluster.autoscalerOptions.version == "v2"
    (gpu,) = cluster.workerGroupSpecs
    assert gpu.minReplicas == gpu.replicas == 0 < gpu.maxReplicas
    resources = gpu.template.spec.containers[0].resources
    assert resources.limits.gpu == resources.requests.gpu == 1
    assert resources.limits.memory == resources.requests.memory, (
        "else the kernel takes a worker's memory from another"
    )


@pytest.mark.parametrize("name", CLUSTERS)
def test_pods_are_closed(name: str) -> None:
    cluster = cluster_of(name)
    assert cluster.authOptions.mode == "token"
    closed = [cluster.autoscalerOptions.securityContext]
    for template in (cluster.headGroupSpec.template, *(group.template for group in cluster.workerGroupSpecs)):
        pod = template.spec
        assert pod.securityContext.runAsNonRoot and pod.securityContext.runAsUser > 0
        assert pod.securityContext.seccompProfile.type == "RuntimeDefault"
        closed += [container.securityContext for container in pod.containers]
        assert template.metadata.labels.items() >= PART_OF.items(), "network-policy.yaml picks by it"
    for context in closed:
        assert not context.allowPrivilegeEscalation
        assert context.capabilities.drop == ["ALL"] and not context.capabilities.add
    # Ray's autoscaler beside the head asks Kubernetes for pods, workers ask for nothing.
    assert not any(group.template.spec.automountServiceAccountToken for group in cluster.workerGroupSpecs)


def test_a_standing_cluster_shows_its_dashboard_to_port_forward_only() -> None:
    assert cluster_of("raycluster.yaml").headGroupSpec.rayStartParams["dashboard-host"] == "127.0.0.1"


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_worker_has_time_to_give_its_shard_back(name: str) -> None:
    for group in cluster_of(name).workerGroupSpecs:
        pod = group.template.spec
        lifecycle = pod.containers[0].lifecycle
        assert lifecycle is not None
        script, seconds = lifecycle.preStop.exec.command
        assert (REPOSITORY / "deploy" / script).exists()
        assert int(seconds) < pod.terminationGracePeriodSeconds


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_has_the_options_that_it_is_started_with(name: str) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    cluster = cluster_of(name)
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        assert {f"--{key}" for key in group.rayStartParams} <= known


def test_the_autoscaler_of_ray_reads_the_cluster() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    (manifest,) = manifests("raycluster.yaml")
    manifest["metadata"]["namespace"] = "speech"
    config = _derive_autoscaling_config_from_ray_cr(manifest)
    validate_config(config)
    gpu = config["available_node_types"]["gpu"]
    assert gpu["resources"]["GPU"] == 1 and gpu["resources"]["CPU"] == 8
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, 16)
    assert config["idle_timeout_minutes"] == 5.0


def test_the_job_resumes_and_goes_away() -> None:
    (manifest,) = manifests("rayjob.yaml")
    job = JobSpec.model_validate(manifest["spec"])
    assert job.backoffLimit > 0 and job.shutdownAfterJobFinishes and job.ttlSecondsAfterFinished > 0
    assert job.entrypointNumCpus == job.entrypointNumGpus == 0
    command, stage, run_file = shlex.split(job.entrypoint)
    head = job.rayClusterSpec.headGroupSpec.template.spec
    assert (command, stage) == ("mvqkd", "extract")
    assert Path(run_file).parent == Path(head.containers[0].volumeMounts[0].mountPath)


def test_both_manifests_make_the_same_cluster() -> None:
    standing, of_job = (cluster_of(name).model_dump() for name in CLUSTERS)
    # In a job the operator asks the dashboard, and the run file is mounted.
    del standing["headGroupSpec"]["rayStartParams"]["dashboard-host"]
    del of_job["headGroupSpec"]["template"]["spec"]["volumes"][:]
    del of_job["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"][:]
    assert standing == of_job


def test_nobody_else_reaches_the_pods() -> None:
    policies = [
        spec for spec in map(spec_of, manifests("network-policy.yaml")) if isinstance(spec, NetworkPolicySpec)
    ]
    assert {"Ingress", "Egress"} == {kind for policy in policies for kind in policy.policyTypes}
    for policy in policies:
        assert policy.podSelector.matchLabels.items() >= PART_OF.items()
        for rule in policy.ingress:
            for peer in rule.from_:
                inside = peer.namespaceSelector is None and peer.podSelector is not None
                assert inside or rule.ports, "from outside to named ports only"
        opened = {port.port for rule in policy.egress if not rule.to for port in rule.ports}
        assert opened and 80 not in opened, "the credentials of the machine are handed out there"


def test_the_real_schemas_take_the_manifests() -> None:
    """MVQKD_KUBERAY_CRDS: a folder with KubeRay's definitions, `ray.io_*.yaml`."""
    folder = os.environ.get("MVQKD_KUBERAY_CRDS")
    if not folder:
        pytest.skip("MVQKD_KUBERAY_CRDS names no folder with KubeRay's CRDs")
    from jsonschema import Draft202012Validator

    checked = 0
    for definition in (yaml.safe_load(path.read_text()) for path in sorted(Path(folder).glob("*.yaml"))):
        kind = definition["spec"]["names"]["kind"]
        (schema,) = (
            v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == "v1"
        )
        for manifest in (
            manifest for name in CLUSTERS for manifest in manifests(name) if manifest["kind"] == kind
        ):
            problems = list(Draft202012Validator(_strict(schema)).iter_errors(manifest))
            assert not problems, [(list(problem.path), problem.message) for problem in problems]
            checked += 1
    assert checked >= len(CLUSTERS)


def _strict(schema: Any) -> Any:
    """A server drops fields that a schema does not know; here they are an error."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        strict.setdefault("additionalProperties", False)
    return strict
