"""Jobs beside a run go where the run went."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from framework.launch.eval_jobs.companion import KubernetesJobs, SlurmJobs, beside
from framework.launch.schedulers.local import LocalJobs
from framework.launch.spec import load
from tests.launch.conftest import Cluster
from tests.launch.schedulers.schemas import faults
from tests.launch.specimens import spec

PLACE = {
    "namespace": "hyperpod-ns-driving",
    "image": "registry/training:1",
    "claim": "fsx",
    "mount": "/shared",
    "secret": "comet",
}
WORDS = ["recipe=evaluate_checkpoint", "task.suite='held out'"]


def submitted(run: Path, **placement: str) -> None:
    spec(folder=str(run), placement=tuple(placement.items())).save()


def test_a_run_that_was_not_submitted_has_this_machine(tmp_path: Path) -> None:
    assert isinstance(beside(tmp_path), LocalJobs)


def test_slurms_runs_have_slurm(cluster: Cluster, tmp_path: Path) -> None:
    submitted(tmp_path, partition="p5", qos="night")
    jobs = beside(tmp_path)
    assert isinstance(jobs, SlurmJobs)
    assert jobs.submit("evaluate-1", WORDS, tmp_path / "one", after=["7"]) == "41"
    script = cluster.read("script")
    for line in ("--partition=p5", "--qos=night", "--nodes=1", "--job-name=evaluate-1"):
        assert f"#SBATCH {line}\n" in script
    assert "exclusive" not in script
    assert "--dependency=afterok:7" in cluster.read("sbatch")


@pytest.mark.parametrize(("operator", "kind"), [("kubeflow", "PyTorchJob"), ("hyperpod", "HyperPodPyTorchJob")])
def test_kubernetes_runs_have_their_operator(cluster: Cluster, tmp_path: Path, operator: str, kind: str) -> None:
    submitted(tmp_path, operator=operator, queue="team-localqueue", **PLACE)
    jobs = beside(tmp_path)
    assert isinstance(jobs, KubernetesJobs)
    number = jobs.submit("evaluate-1", WORDS, tmp_path / "one")
    assert number == f"hyperpod-ns-driving/{kind.lower()}/evaluate-1"
    (manifest,) = yaml.safe_load_all(cluster.read("manifest"))
    assert manifest["kind"] == kind
    assert not faults(manifest)
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-localqueue"
    alone = load(tmp_path / "one")
    assert (alone.nodes, alone.devices, alone.gpus, alone.words) == (1, 1, 1, tuple(WORDS))
    assert jobs.find("evaluate-1") is None
    (cluster.state / "job").write_text(
        f'{{"kind": "{kind}", "metadata": {{"namespace": "hyperpod-ns-driving", "name": "evaluate-1"}}}}'
    )
    assert jobs.find("evaluate-1") == number
    assert "--namespace=hyperpod-ns-driving" in cluster.read("kubectl")
