"""A job as a PyTorchJob (Kubeflow) or a HyperPodPyTorchJob (HyperPod's training operator): pure functions of a
specification.

Both run the node's supervisor once per pod. Values reach the objects as plain strings, never as YAML; what Kubernetes
itself would expand in them, `$(NAME)`, is escaped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from framework.launch.schedulers.instances import named
from framework.launch.schedulers.log_rules import LogRules, monitoring
from framework.launch.spec import RunSpec, SpecError

LONGEST_NAME = 50
"""Pods add their role and number to a job's name, and a name holds 63 characters."""
JOB_LABEL = "framework/job"
"""The label by which a job's pods are found, whichever operator made them."""
SHARED = "shared"
HEALTHY = {"sagemaker.amazonaws.com/node-health-status": "Schedulable"}

_LABEL = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where Kubernetes puts a job. `claim` is the volume claim of the shared file system, which pods see at `mount`, as
    the login node does; `secret` is the Kubernetes secret that holds the variables of the specification's `secrets`;
    `topology` is the node label within one value of which the pods should lie.
    """

    namespace: str
    image: str
    claim: str
    mount: str
    queue: str | None = None
    priority: str | None = None
    topology: str | None = None
    required: bool = False
    secret: str | None = None
    spares: int = 0

    def __post_init__(self) -> None:
        """Raises `SpecError` with every value that Kubernetes would not take."""
        faults = [
            f"launch.{name}: {value!r} is no name that Kubernetes takes (small letters, digits, - and .)"
            for name in ("namespace", "claim", "queue", "priority", "secret")
            if (value := getattr(self, name)) is not None and not _LABEL.fullmatch(value)
        ]
        if not _IMAGE.fullmatch(self.image):
            faults.append(f"launch.image: {self.image!r} is no image's name")
        if not PurePosixPath(self.mount).is_absolute():
            faults.append(f"launch.mount: {self.mount!r} must be absolute")
        if faults:
            raise SpecError("\n".join(faults))


def pytorch_job(spec: RunSpec, cluster: Cluster) -> dict[str, Any]:
    """The job for Kubeflow's training operator. The master is a node like any other, but without one no address is
    given.

    HyperPod's auto-resume works in namespaces `kubeflow` and `hyperpod*`, and changes nothing elsewhere.
    """
    pod = _pod(spec, cluster, spec.command(), cluster.namespace.startswith("hyperpod"))
    replica = {"restartPolicy": "OnFailure", "template": pod}
    replicas = {"Master": {"replicas": 1, **replica}}
    if spec.nodes > 1:
        replicas["Worker"] = {"replicas": spec.nodes - 1, **replica}
    resume = {
        "sagemaker.amazonaws.com/enable-job-auto-resume": "true",
        "sagemaker.amazonaws.com/job-max-retry-count": str(spec.requeues),
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": _metadata(spec, cluster, annotations=resume),
        "spec": {
            "runPolicy": {
                # Else quota is released while workers still run (kueue #1574).
                "cleanPodPolicy": "Running",
                "backoffLimit": spec.requeues,
                "activeDeadlineSeconds": 60 * spec.minutes,
            },
            "pytorchReplicaSpecs": replicas,
        },
    }


def hyperpod_job(spec: RunSpec, cluster: Cluster, rules: LogRules) -> dict[str, Any]:
    """The job for HyperPod's training operator. Its agent, `hyperpodrun`, is the pod's first process and has one
    worker: the supervisor, which it tells to end by SIGTERM (it would kill it otherwise).
    """
    agent = (
        f"{PurePosixPath(spec.python).parent}/hyperpodrun", f"--nnodes={spec.nodes}", "--nproc-per-node=1",
        "--server-host=0.0.0.0", "--server-port=8080", "--shutdown-signal", "SIGTERM", *spec.module(),
    )  # fmt: skip
    pod = _pod(spec, cluster, agent, hyperpod=True)
    pod["spec"]["containers"][0]["ports"] = [{"containerPort": 8080, "name": "agent"}]
    spares = {"spares": cluster.spares} if cluster.spares else {}
    return {
        "apiVersion": "sagemaker.amazonaws.com/v1",
        "kind": "HyperPodPyTorchJob",
        "metadata": _metadata(spec, cluster),
        "spec": {
            "nprocPerNode": "1",
            "replicaSpecs": [{"name": "nodes", "replicas": spec.nodes, **spares, "template": pod}],
            "runPolicy": {
                "jobMaxRetryCount": spec.requeues,
                "restartPolicy": {"evalPeriodSeconds": 86400, "maxFullJobRestarts": spec.requeues},
                "cleanPodPolicy": "OnlyComplete",
                "activeDeadlineSeconds": 60 * spec.minutes,
                "startupDeadlineSeconds": rules.start_s,
                "logMonitoringConfiguration": monitoring(rules),
            },
        },
    }


def to_yaml(objects: Sequence[dict[str, Any]]) -> str:
    """The objects as one file of YAML, in the order in which they are to be made."""
    return yaml.safe_dump_all(objects, sort_keys=False, width=10**6)


def job_name(name: str) -> str:
    """A run's name as Kubernetes wants names (DNS-1035), told from similar ones by a hash of what was lost."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if plain == name and name[0].isalpha() and len(name) <= LONGEST_NAME:
        return name
    stem = plain[: LONGEST_NAME - 11].strip("-")
    return f"{stem if stem[:1].isalpha() else f'r{stem}'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def inert(text: str) -> str:
    """`text` such that the kubelet, which expands `$(NAME)` in arguments and values, gives it to the program as it
    is.
    """
    return text.replace("$", "$$")


def _metadata(spec: RunSpec, cluster: Cluster, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    labels = {"kueue.x-k8s.io/queue-name": cluster.queue, "kueue.x-k8s.io/priority-class": cluster.priority}
    return {
        "name": job_name(spec.name),
        "namespace": cluster.namespace,
        "labels": {name: value for name, value in labels.items() if value is not None},
        "annotations": {**(annotations or {}), "framework/run": spec.name, "framework/sha": spec.sha},
    }


def _pod(spec: RunSpec, cluster: Cluster, command: Sequence[str], hyperpod: bool) -> dict[str, Any]:
    topology = f"kueue.x-k8s.io/podset-{'required' if cluster.required else 'preferred'}-topology"
    selector = dict(HEALTHY) if hyperpod else {}
    if spec.instance:
        name = spec.instance.removeprefix("ml.")
        selector["node.kubernetes.io/instance-type"] = f"ml.{name}" if hyperpod else name
    variables = [{"name": name, "value": inert(value)} for name, value in spec.variables().items()]
    secrets = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": cluster.secret, "key": name}}} for name in spec.secrets
    ]
    shared: dict[str, Any] = {
        "image": cluster.image,
        "workingDir": spec.directory,
        "env": [*variables, *secrets],
        "resources": {"requests": _resources(spec), "limits": _resources(spec)},
        "volumeMounts": [{"name": SHARED, "mountPath": cluster.mount}, {"name": "memory", "mountPath": "/dev/shm"}],
    }
    look = (spec.python, "-m", "framework.launch.preflight", "--folder", spec.folder)
    return {
        "metadata": {
            "labels": {JOB_LABEL: job_name(spec.name)},
            "annotations": {topology: cluster.topology} if cluster.topology else {},
        },
        "spec": {
            "initContainers": [{"name": "preflight", "command": [*look], **shared}],
            "containers": [{"name": "pytorch", "command": [inert(word) for word in command], **shared}],
            "nodeSelector": selector,
            "terminationGracePeriodSeconds": spec.notice_s,
            "volumes": [
                {"name": SHARED, "persistentVolumeClaim": {"claimName": cluster.claim}},
                # Loader workers hand batches over in shared memory, of which a container has 64 MB.
                {"name": "memory", "emptyDir": {"medium": "Memory"}},
            ],
        },
    }


def _resources(spec: RunSpec) -> dict[str, str]:
    """Kubernetes gives each pod a whole node's GPUs and EFA devices, if the instance type is known."""
    instance = named(spec.instance) if spec.instance else None
    efa = instance.efa if instance and spec.nodes > 1 and spec.gpus else 0
    found = {"nvidia.com/gpu": spec.gpus, "vpc.amazonaws.com/efa": efa}
    return {name: str(count) for name, count in found.items() if count}
