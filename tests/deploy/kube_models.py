"""The fields of Kubernetes and KubeRay that the manifests use, and no others: a misspelt one is refused, as a server
with strict validation does. Written from KubeRay 1.6's and Kubernetes' API reference."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Quantity = Annotated[str | int, Field(pattern=r"^\d+(m|Mi|Gi)?$", union_mode="left_to_right")]
Labels = dict[str, str]


class Kube(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Kube):
    name: Name | None = None
    labels: Labels = {}
    annotations: Labels = {}


class Selector(Kube):
    matchLabels: Labels


class SeccompProfile(Kube):
    type: Literal["RuntimeDefault", "Localhost", "Unconfined"]


class PodSecurity(Kube):
    runAsNonRoot: bool
    runAsUser: int
    runAsGroup: int
    fsGroup: int
    seccompProfile: SeccompProfile


class Capabilities(Kube):
    drop: list[str] = []
    add: list[str] = []


class ContainerSecurity(Kube):
    allowPrivilegeEscalation: bool
    capabilities: Capabilities


class Quantities(Kube):
    cpu: Quantity
    memory: Quantity
    ephemeral_storage: Quantity | None = Field(None, alias="ephemeral-storage")
    gpu: int | None = Field(None, alias="nvidia.com/gpu")


class Resources(Kube):
    requests: Quantities
    limits: Quantities


class SecretKey(Kube):
    name: Name
    key: str


class ValueFrom(Kube):
    secretKeyRef: SecretKey


class Variable(Kube):
    """Of environment; only those out of a Secret have been needed."""

    name: str
    valueFrom: ValueFrom


class Exec(Kube):
    command: list[str]


class Handler(Kube):
    exec: Exec


class Lifecycle(Kube):
    preStop: Handler


class Port(Kube):
    containerPort: int
    name: Annotated[str, StringConstraints(max_length=15)]


class Mount(Kube):
    name: Name
    mountPath: str
    readOnly: bool


class Container(Kube):
    name: Name
    image: str
    securityContext: ContainerSecurity
    env: list[Variable] = []
    lifecycle: Lifecycle | None = None
    ports: list[Port] = []
    volumeMounts: list[Mount] = []
    resources: Resources


class ConfigMapVolume(Kube):
    name: Name


class Volume(Kube):
    name: Name
    configMap: ConfigMapVolume


class Toleration(Kube):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodSpec(Kube):
    securityContext: PodSecurity
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume] = []
    tolerations: list[Toleration] = []
    terminationGracePeriodSeconds: int = 30
    automountServiceAccountToken: bool = True

    @model_validator(mode="after")
    def _mounts_are_volumes(self) -> "PodSpec":
        mounted = {mount.name for container in self.containers for mount in container.volumeMounts}
        assert mounted == {volume.name for volume in self.volumes}
        return self


class PodTemplate(Kube):
    metadata: Metadata
    spec: PodSpec


class HeadGroup(Kube):
    rayStartParams: Labels
    template: PodTemplate


class WorkerGroup(Kube):
    groupName: Name
    replicas: int
    minReplicas: int
    maxReplicas: int
    rayStartParams: Labels
    template: PodTemplate

    @model_validator(mode="after")
    def _in_order(self) -> "WorkerGroup":
        assert 0 <= self.minReplicas <= self.replicas <= self.maxReplicas
        return self


class AuthOptions(Kube):
    mode: Literal["disabled", "token"]
    secretName: Name


class AutoscalerOptions(Kube):
    version: Literal["v1", "v2"]
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]
    idleTimeoutSeconds: int
    securityContext: ContainerSecurity
    resources: Resources


class ClusterSpec(Kube):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool
    autoscalerOptions: AutoscalerOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class JobSpec(Kube):
    entrypoint: str
    entrypointNumCpus: float
    entrypointNumGpus: float
    # SidecarMode takes neither a clusterSelector nor a submitterPodTemplate, and those are not here.
    submissionMode: Literal["SidecarMode"]
    backoffLimit: int = Field(ge=0)
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int = Field(ge=0)
    rayClusterSpec: ClusterSpec


class PolicyPort(Kube):
    port: int
    protocol: Literal["TCP", "UDP"]


class Peer(Kube):
    podSelector: Selector | None = None
    namespaceSelector: Selector | None = None


class Ingress(Kube):
    from_: list[Peer] = Field(alias="from", min_length=1)  # a rule without one lets everybody in
    ports: list[PolicyPort] = []


class Egress(Kube):
    to: list[Peer] = []
    ports: list[PolicyPort] = []


class NetworkPolicySpec(Kube):
    podSelector: Selector
    policyTypes: list[Literal["Ingress", "Egress"]]
    ingress: list[Ingress]
    egress: list[Egress]


class BudgetSpec(Kube):
    minAvailable: int
    selector: Selector


class Manifest(Kube):
    """Any of them; `spec` is read by its kind."""

    apiVersion: str
    kind: str
    metadata: Metadata
    spec: dict[str, Any]


SPECS: dict[tuple[str, str], type[Kube]] = {
    ("ray.io/v1", "RayCluster"): ClusterSpec,
    ("ray.io/v1", "RayJob"): JobSpec,
    ("networking.k8s.io/v1", "NetworkPolicy"): NetworkPolicySpec,
    ("policy/v1", "PodDisruptionBudget"): BudgetSpec,
}
