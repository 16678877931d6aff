"""Manifests for Kubernetes are valid by the published schemas and the webhooks' rules, and describe the same job as
sbatch's script.
"""

from __future__ import annotations

import json
import re
import tempfile
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framework.launch.schedulers.instances import INSTANCES
from framework.launch.schedulers.kubernetes import HyperPodScheduler, KubeflowScheduler
from framework.launch.spec import RunSpec, SpecError
from tests.launch.bash import run_script
from tests.launch.schedulers.schemas import faults, schema_file
from tests.launch.specimens import CLUSTER, HYPERPOD, KUBEFLOW, RULES, SPEC, sbatch_script, spec

PLAIN = {"namespace": "training", "image": "image", "claim": "efs", "mount": "/shared", "secret": "keys"}
JOBS = [SPEC, spec(nodes=1, devices=2, gpus=0, instance=None, secrets=(), passed=())]


def manifests(job: RunSpec) -> list[dict[str, Any]]:
    return [KUBEFLOW.manifest(job), HYPERPOD.manifest(job)]


@pytest.mark.guarantee(
    "sbatch, PyTorchJob and HyperPodPyTorchJob describe the same job and validate against the published schemas"
)
@pytest.mark.parametrize("job", JOBS, ids=["many nodes", "one node"])
@pytest.mark.parametrize("cluster", [CLUSTER, PLAIN], ids=["HyperPod", "plain"])
@pytest.mark.parametrize("operator", [KubeflowScheduler, HyperPodScheduler], ids=["PyTorchJob", "HyperPodPyTorchJob"])
def test_it_is_valid_and_has_no_key_that_the_schema_does_not_name(
    job: RunSpec, cluster: dict[str, Any], operator: type[KubeflowScheduler]
) -> None:
    own = {"spares": 1, "rules": RULES} if operator is HyperPodScheduler else {}
    assert faults(operator(**cluster, **own).manifest(job)) == []


@pytest.mark.parametrize("kind", [0, 1], ids=["PyTorchJob", "HyperPodPyTorchJob"])
@pytest.mark.parametrize("place", ["spec", "spec.runPolicy", "template.spec", "containers.0"])
def test_the_schemas_refuse_a_key_too_many(kind: int, place: str) -> None:
    manifest = deepcopy(manifests(SPEC)[kind])
    template = templates(manifest)[0]
    places = {
        "spec": manifest["spec"], "spec.runPolicy": manifest["spec"]["runPolicy"], "template.spec": template["spec"],
        "containers.0": template["spec"]["containers"][0],
    }  # fmt: skip
    places[place]["colour"] = "red"
    assert "'colour' was unexpected" in "".join(faults(manifest))


def test_the_webhook_of_pytorch_jobs() -> None:
    """Rules of kubeflow/training-operator, pkg/webhooks/pytorch: the schema does not know them."""
    for job in JOBS:
        manifest = KUBEFLOW.manifest(job)
        replicas = manifest["spec"]["pytorchReplicaSpecs"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])
        assert set(replicas) <= {"Master", "Worker"}
        assert replicas["Master"]["replicas"] == 1
        for replica in replicas.values():
            (container,) = (each for each in replica["template"]["spec"]["containers"] if each["name"] == "pytorch")
            assert container["image"]


def test_hyperpod_resumes_pytorch_jobs_by_annotations() -> None:
    manifest = KUBEFLOW.manifest(SPEC)
    annotations = manifest["metadata"]["annotations"]
    assert annotations["sagemaker.amazonaws.com/enable-job-auto-resume"] == "true"
    assert annotations["sagemaker.amazonaws.com/job-max-retry-count"] == "7"
    assert {each["restartPolicy"] for each in manifest["spec"]["pytorchReplicaSpecs"].values()} == {"OnFailure"}


def test_kueue_finds_queue_priority_and_topology() -> None:
    for manifest in manifests(SPEC):
        assert manifest["metadata"]["labels"] == {
            "kueue.x-k8s.io/queue-name": "hyperpod-ns-driving-localqueue",
            "kueue.x-k8s.io/priority-class": "training-priority",
        }
        for template in templates(manifest):
            preferred = "kueue.x-k8s.io/podset-preferred-topology"
            assert template["metadata"]["annotations"] == {preferred: "topology.k8s.aws/network-node-layer-3"}
    required = replace(KUBEFLOW, required=True).manifest(SPEC)
    assert "kueue.x-k8s.io/podset-required-topology" in templates(required)[0]["metadata"]["annotations"]


def test_pods_go_to_healthy_nodes_of_the_type() -> None:
    for manifest in manifests(SPEC):
        for template in templates(manifest):
            assert template["spec"]["nodeSelector"] == {
                "sagemaker.amazonaws.com/node-health-status": "Schedulable",
                "node.kubernetes.io/instance-type": "ml.p5.48xlarge",
            }
    assert templates(KubeflowScheduler(**PLAIN).manifest(SPEC))[0]["spec"]["nodeSelector"] == {
        "node.kubernetes.io/instance-type": "p5.48xlarge"
    }


def test_hyperpods_agent_is_the_first_process_and_spares_are_kept() -> None:
    manifest = HYPERPOD.manifest(SPEC)
    (container,) = templates(manifest)[0]["spec"]["containers"]
    assert container["command"][0] == "/shared/envs/drive/bin/hyperpodrun"
    assert "--shutdown-signal SIGTERM" in " ".join(container["command"])
    assert container["ports"][0]["containerPort"] == 8080
    assert manifest["spec"]["replicaSpecs"][0]["spares"] == 1
    assert manifest["spec"]["nprocPerNode"] == "1"


@pytest.mark.guarantee(
    "sbatch, PyTorchJob and HyperPodPyTorchJob describe the same job and validate against the published schemas"
)
def test_all_three_say_the_same() -> None:
    for job in JOBS:
        jobs = [by_sbatch(job), *(by_manifest(manifest) for manifest in manifests(job))]
        assert jobs[0] == jobs[1] == jobs[2]
        assert jobs[0]["overrides"] == list(job.overrides)


@pytest.mark.attack("rendering", "reading a secret from a manifest", "a reference, no value")
def test_secrets_are_references() -> None:
    for manifest in manifests(SPEC):
        (secret,) = (each for each in container_of(manifest)["env"] if each["name"] == "COMET_API_KEY")
        assert secret["valueFrom"] == {"secretKeyRef": {"name": "comet", "key": "COMET_API_KEY"}}
        assert "value" not in secret


@pytest.mark.attack("rendering", "values that Kubernetes would not take", "refused")
@pytest.mark.parametrize("field", ["namespace", "image", "claim", "queue", "priority", "secret"])
@pytest.mark.parametrize("value", ["", "A b", "a\nb", "-a", "$(a)", "a'"])
def test_values_that_kubernetes_would_not_take_are_refused(field: str, value: str) -> None:
    with pytest.raises(SpecError, match=f"launch.{field}"):
        replace(KUBEFLOW, **{field: value})


def test_the_table_of_instances_agrees_with_hyperpods() -> None:
    published = json.loads(schema_file("instance_resources.json").read_text())
    for name, instance in INSTANCES.items():
        there = published[f"ml.{name}"]
        assert (instance.gpus, instance.efa) == (there["gpu"], there["efa"]), name
        assert (instance.processors, instance.memory_gib) == (there["cpu"], there["memory"]), name


def templates(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    spec = manifest["spec"]
    replicas = [*spec.get("pytorchReplicaSpecs", {}).values(), *spec.get("replicaSpecs", [])]
    return [replica["template"] for replica in replicas]


def container_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return templates(manifest)[0]["spec"]["containers"][0]


def by_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a manifest asks for, provided that all its pods agree."""
    container = container_of(manifest)
    for template in templates(manifest):
        assert template["spec"]["containers"][0] == container
    spec, limits = manifest["spec"], container["resources"]["limits"]
    replicas = [*spec.get("pytorchReplicaSpecs", {}).values(), *spec.get("replicaSpecs", [])]
    command = [word.replace("$$", "$") for word in container["command"]]
    retries = spec["runPolicy"].get("backoffLimit", spec["runPolicy"].get("jobMaxRetryCount"))
    return {
        "nodes": sum(replica["replicas"] for replica in replicas),
        "workers": command[command.index("--workers") + 1],
        "folder": command[command.index("--folder") + 1],
        "overrides": command[command.index("--") + 1 :],
        "gpus": int(limits.get("nvidia.com/gpu", 0)),
        "minutes": spec["runPolicy"]["activeDeadlineSeconds"] / 60,
        "requeues": retries,
        "warned": templates(manifest)[0]["spec"]["terminationGracePeriodSeconds"],
        "directory": container["workingDir"],
        "variables": {each["name"]: each["value"].replace("$$", "$") for each in container["env"] if "value" in each},
        "secrets": {each["name"] for each in container["env"] if "valueFrom" in each},
        "python": command[0].rpartition("/")[0],
        "preflight": list(templates(manifest)[0]["spec"]["initContainers"][0]["command"]),
    }


def by_sbatch(job: RunSpec) -> dict[str, Any]:
    """What a script asks for, read from its directives and by running it in bash."""
    script = sbatch_script(job)
    directives = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    asked = dict(each.partition("=")[::2] for each in directives)
    with tempfile.TemporaryDirectory() as folder:
        ran = run_script(script, Path(folder, "notes"))
    preflight, command = (call[call.index(job.python) :] for call in ran.calls)
    exported = re.findall(r"^export (\w+)=", script, re.MULTILINE)
    return {
        "nodes": int(asked["nodes"]),
        "workers": command[command.index("--workers") + 1],
        "folder": command[command.index("--folder") + 1],
        "overrides": command[command.index("--") + 1 :],
        "gpus": int(asked.get("gpus-per-node", 0)),
        "minutes": int(asked["time"]),
        "requeues": int(re.search(r"-lt (\d+)", script)[1]),
        "warned": int(asked["signal"].removeprefix("SIGUSR1@")),
        "directory": asked["chdir"],
        "variables": {name: ran.environment[name] for name in exported},
        "secrets": set(asked["export"].split(",")) & set(job.secrets),
        "python": command[0].rpartition("/")[0],
        "preflight": preflight,
    }
