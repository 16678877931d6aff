"""Kubernetes as a scheduler of jobs: a run becomes a PyTorchJob (Kubeflow) or a HyperPodPyTorchJob (HyperPod's training
operator).

Both run the node's supervisor once per pod. Values enter the objects as plain strings, never as YAML; `$(NAME)`, which
Kubernetes itself would expand, is escaped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, ClassVar

import yaml

from framework.launch.schedulers import kubectl
from framework.launch.schedulers.instances import find_instance
from framework.launch.schedulers.log_rules import LogRules, monitoring
from framework.launch.spec import RunSpec, SpecError

MAX_NAME_LENGTH = 50
"""Pods append their role and number to a job's name, and a name has 63 characters at most."""
JOB_LABEL = "framework/job"
"""The label by which a job's pods are found, whichever operator made them."""
SHARED = "shared"
HEALTHY = {"sagemaker.amazonaws.com/node-health-status": "Schedulable"}
ENDED = ("Succeeded", "Failed", "Completed")
NO_SUCH_KIND = "the server doesn't have a resource type"
KINDS = ("pytorchjob", "hyperpodpytorchjob")

LABEL = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
"""A name, or the value of a label, that every kind of object takes."""
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")


@dataclass(frozen=True, kw_only=True)
class KubeflowScheduler:
    """PyTorchJobs of Kubeflow's training operator; see `base.Scheduler`. A job is `namespace/kind/name`.

    HyperPod's auto-resume works in the namespaces `kubeflow` and `hyperpod*`; elsewhere its annotations have no effect.
    """

    namespace: str
    """The namespace of the jobs; HyperPod's are called `hyperpod-ns-<team>`."""
    image: str
    """The image of the pods. The environment and the code come from the shared file system."""
    claim: str
    """The volume claim of the shared file system."""
    mount: str
    """Where pods mount it: the same absolute path as on the login node."""
    queue: str | None = None
    """Kueue's local queue; None: the jobs are not queued."""
    priority: str | None = None
    """Kueue's priority class; None: the default."""
    topology: str | None = None
    """A node label; the pods of a job should lie on nodes that share its value."""
    required: bool = False
    """Whether a job waits until `topology` can be satisfied."""
    secret: str | None = None
    """The Kubernetes secret that holds the variables named in `RunSpec.secrets`."""

    name: ClassVar[str] = "kubeflow"
    file: ClassVar[str] = "job.yaml"

    def __post_init__(self) -> None:
        """Raises `SpecError` with every value that Kubernetes would refuse."""
        faults = [
            f"launch.{name}: {value!r} is no name that Kubernetes takes (small letters, digits, - and .)"
            for name in ("namespace", "claim", "queue", "priority", "secret")
            if (value := getattr(self, name)) is not None and not LABEL.fullmatch(value)
        ]
        if not _IMAGE.fullmatch(self.image):
            faults.append(f"launch.image: {self.image!r} is no image's name")
        if not PurePosixPath(self.mount).is_absolute():
            faults.append(f"launch.mount: {self.mount!r} must be absolute")
        if faults:
            raise SpecError("\n".join(faults))

    @property
    def placement(self) -> Mapping[str, str]:
        """See `Scheduler`. Companion jobs have one pod, so topology does not matter to them."""
        names = ("namespace", "image", "claim", "mount", "queue", "priority", "secret")
        return {name: value for name in names if (value := getattr(self, name))}

    def render(self, specs: Sequence[RunSpec], name: str, output: str) -> str:
        """Render one manifest for each run, in the order of `specs`."""
        if self.secret is None and any(spec.secrets for spec in specs):
            raise SpecError("launch.secret: the Kubernetes secret that holds launch.secrets must be named")
        return to_yaml([self.manifest(spec) for spec in specs])

    def manifest(self, spec: RunSpec) -> dict[str, Any]:
        """Return the PyTorchJob of one run. Its master is a node like any other; without one the operator sets no
        address.
        """
        pod = self._pod(spec, spec.command(), self.namespace.startswith("hyperpod"))
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
            "metadata": self._metadata(spec, annotations=resume),
            "spec": {
                "runPolicy": {
                    # Otherwise quota is released while workers still run (kueue #1574).
                    "cleanPodPolicy": "Running",
                    "backoffLimit": spec.requeues,
                    "activeDeadlineSeconds": 60 * spec.minutes,
                },
                "pytorchReplicaSpecs": replicas,
            },
        }

    def submit(self, text: str, after: Sequence[str] = ()) -> str:
        """See `Scheduler`. The jobs of several manifests are separated by spaces. Raises `KubectlError` where one is
        refused or exists, and for any `after`: Kubernetes has no dependencies between jobs.
        """
        if after:
            raise kubectl.KubectlError(
                f"Kubernetes knows no job that waits for another ({', '.join(after)}); submit it when they end"
            )
        kubectl.run("create", "--filename=-", stdin=text)
        return " ".join(_job(each) for each in yaml.safe_load_all(text))

    def resubmit(self, text: str, job: str) -> str:
        """See `Scheduler`. Deletes the object of `job` and creates it again; other manifests of `text` are left."""
        (manifest,) = (each for each in yaml.safe_load_all(text) if _job(each) == job)
        namespace, kind, name = job.split("/")
        kubectl.run("delete", kind, name, f"--namespace={namespace}", "--wait=true", "--ignore-not-found")
        return self.submit(yaml.safe_dump(manifest))

    def find(self, name: str) -> str | None:
        """See `Scheduler`. `name` is the run's; jobs of both operators are looked for."""
        for kind in KINDS:
            place = (f"--namespace={self.namespace}", "--ignore-not-found", "--output=json")
            answer = kubectl.call("get", kind, job_name(name), *place)
            if answer.returncode and NO_SUCH_KIND not in answer.stderr:
                raise kubectl.KubectlError(f"kubectl get {kind}: {answer.stderr.strip()}")
            if answer.returncode == 0 and answer.stdout.strip():
                manifest = json.loads(answer.stdout)
                return None if _condition(manifest) in ENDED else _job(manifest)
        return None

    def state(self, job: str) -> str | None:
        """See `Scheduler`: the type of the job's newest condition."""
        namespace, kind, name = job.split("/")
        answer = kubectl.call("get", kind, name, f"--namespace={namespace}", "--ignore-not-found", "--output=json")
        return _condition(json.loads(answer.stdout)) if answer.returncode == 0 and answer.stdout.strip() else None

    def is_active(self, job: str) -> bool:
        """See `Scheduler`."""
        namespace, kind, name = job.split("/")
        answer = kubectl.run("get", kind, name, f"--namespace={namespace}", "--ignore-not-found", "--output=json")
        return bool(answer.strip()) and _condition(json.loads(answer)) not in ENDED

    def stop(self, job: str) -> None:
        """See `Scheduler`. SIGKILL follows SIGTERM after the pods' grace period."""
        namespace, kind, name = job.split("/")
        kubectl.run("delete", kind, name, f"--namespace={namespace}", "--wait=false", "--ignore-not-found")

    def log(self, job: str) -> str:
        """See `Scheduler`: the last lines of the job's pods."""
        namespace, _, name = job.split("/")
        selector = f"--selector={JOB_LABEL}={name}"
        return kubectl.run("logs", f"--namespace={namespace}", selector, "--prefix", "--tail=50")

    def _metadata(self, spec: RunSpec, annotations: dict[str, str] | None = None) -> dict[str, Any]:
        labels = {"kueue.x-k8s.io/queue-name": self.queue, "kueue.x-k8s.io/priority-class": self.priority}
        return {
            "name": job_name(spec.name),
            "namespace": self.namespace,
            "labels": {name: value for name, value in labels.items() if value is not None},
            "annotations": {**(annotations or {}), "framework/run": spec.name, "framework/sha": spec.sha},
        }

    def _pod(self, spec: RunSpec, command: Sequence[str], hyperpod: bool) -> dict[str, Any]:
        topology = f"kueue.x-k8s.io/podset-{'required' if self.required else 'preferred'}-topology"
        selector = dict(HEALTHY) if hyperpod else {}
        if spec.instance:
            name = spec.instance.removeprefix("ml.")
            selector["node.kubernetes.io/instance-type"] = f"ml.{name}" if hyperpod else name
        variables = [{"name": name, "value": escape(value)} for name, value in spec.variables().items()]
        secrets = [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": self.secret, "key": name}}} for name in spec.secrets
        ]
        shared: dict[str, Any] = {
            "image": self.image,
            "workingDir": spec.directory,
            "env": [*variables, *secrets],
            "resources": {"requests": _resources(spec), "limits": _resources(spec)},
            "volumeMounts": [{"name": SHARED, "mountPath": self.mount}, {"name": "memory", "mountPath": "/dev/shm"}],
        }
        preflight = (spec.python, "-m", "framework.launch.preflight", "--folder", spec.folder)
        return {
            "metadata": {
                "labels": {JOB_LABEL: job_name(spec.name)},
                "annotations": {topology: self.topology} if self.topology else {},
            },
            "spec": {
                "initContainers": [{"name": "preflight", "command": [*preflight], **shared}],
                "containers": [{"name": "pytorch", "command": [escape(word) for word in command], **shared}],
                "nodeSelector": selector,
                "terminationGracePeriodSeconds": spec.notice_s,
                "volumes": [
                    {"name": SHARED, "persistentVolumeClaim": {"claimName": self.claim}},
                    # Loader workers pass batches through shared memory, of which a container has 64 MB by default.
                    {"name": "memory", "emptyDir": {"medium": "Memory"}},
                ],
            },
        }


@dataclass(frozen=True, kw_only=True)
class HyperPodScheduler(KubeflowScheduler):
    """HyperPodPyTorchJobs of HyperPod's training operator. Its agent, `hyperpodrun`, is the pod's first process and has
    one worker: the supervisor, which it ends by SIGTERM (by default it would kill it).
    """

    spares: int = 0
    """Nodes held in reserve."""
    rules: LogRules = field(default_factory=LogRules)
    """The rules by which the operator watches the job's log."""

    name: ClassVar[str] = "hyperpod"

    def manifest(self, spec: RunSpec) -> dict[str, Any]:
        """Return the HyperPodPyTorchJob of one run."""
        agent = (
            f"{PurePosixPath(spec.python).parent}/hyperpodrun", f"--nnodes={spec.nodes}", "--nproc-per-node=1",
            "--server-host=0.0.0.0", "--server-port=8080", "--shutdown-signal", "SIGTERM", *spec.module(),
        )  # fmt: skip
        pod = self._pod(spec, agent, hyperpod=True)
        pod["spec"]["containers"][0]["ports"] = [{"containerPort": 8080, "name": "agent"}]
        spares = {"spares": self.spares} if self.spares else {}
        return {
            "apiVersion": "sagemaker.amazonaws.com/v1",
            "kind": "HyperPodPyTorchJob",
            "metadata": self._metadata(spec),
            "spec": {
                "nprocPerNode": "1",
                "replicaSpecs": [{"name": "nodes", "replicas": spec.nodes, **spares, "template": pod}],
                "runPolicy": {
                    "jobMaxRetryCount": spec.requeues,
                    "restartPolicy": {"evalPeriodSeconds": 86400, "maxFullJobRestarts": spec.requeues},
                    "cleanPodPolicy": "OnlyComplete",
                    "activeDeadlineSeconds": 60 * spec.minutes,
                    "startupDeadlineSeconds": self.rules.start_s,
                    "logMonitoringConfiguration": monitoring(self.rules),
                },
            },
        }


def to_yaml(objects: Sequence[dict[str, Any]]) -> str:
    """Return the objects as one YAML file, in the order in which they are to be created."""
    return yaml.safe_dump_all(objects, sort_keys=False, width=10**6)


def job_name(name: str) -> str:
    """Return a run's name in the form that Kubernetes takes (DNS-1035). Whatever is lost is replaced by a hash of the
    name, which tells it from similar ones.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if plain == name and name[0].isalpha() and len(name) <= MAX_NAME_LENGTH:
        return name
    stem = plain[: MAX_NAME_LENGTH - 11].strip("-")
    return f"{stem if stem[:1].isalpha() else f'r{stem}'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def escape(text: str) -> str:
    """Return `text` such that the program receives it as it is: the kubelet expands `$(NAME)` in arguments and values,
    and reads `$$` as a dollar.
    """
    return text.replace("$", "$$")


def _job(manifest: dict[str, Any]) -> str:
    metadata = manifest["metadata"]
    return f"{metadata['namespace']}/{manifest['kind'].lower()}/{metadata['name']}"


def _condition(manifest: dict[str, Any]) -> str:
    conditions = manifest.get("status", {}).get("conditions", [])
    types = [each["type"] for each in conditions if each["status"] == "True"]
    return str(types[-1]) if types else "Created"


def _resources(spec: RunSpec) -> dict[str, str]:
    """Each pod gets all GPUs of a node, and all EFA devices of a known instance type."""
    instance = find_instance(spec.instance) if spec.instance else None
    efa = instance.efa if instance and spec.nodes > 1 and spec.gpus else 0
    counts = {"nvidia.com/gpu": spec.gpus, "vpc.amazonaws.com/efa": efa}
    return {name: str(count) for name, count in counts.items() if count}
