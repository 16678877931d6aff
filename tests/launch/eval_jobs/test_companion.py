"""Companion jobs go where their run went."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from framework.launch.eval_jobs.companion import companion_jobs
from framework.launch.schedulers.kubernetes import HyperPodScheduler, KubeflowScheduler
from framework.launch.schedulers.local import LocalScheduler
from framework.launch.schedulers.slurm import SlurmScheduler
from framework.launch.spec import load
from tests.launch.conftest import Cluster
from tests.launch.schedulers.schemas import faults
from tests.launch.specimens import spec

PLACEMENT = {
    "namespace": "hyperpod-ns-driving",
    "image": "registry/training:1",
    "claim": "fsx",
    "mount": "/shared",
    "secret": "comet",
}
OVERRIDES = ["recipe=evaluate", "task.evals=['held out']"]


def submitted(run: Path, scheduler: str, **placement: str) -> None:
    spec(folder=str(run), scheduler=scheduler, placement=tuple(placement.items())).save()


def test_a_run_that_was_not_submitted_has_this_machine(tmp_path: Path) -> None:
    assert isinstance(companion_jobs(tmp_path).scheduler, LocalScheduler)


def test_slurms_runs_have_slurm(cluster: Cluster, tmp_path: Path) -> None:
    submitted(tmp_path, "slurm", partition="p5", qos="night")
    jobs = companion_jobs(tmp_path)
    assert isinstance(jobs.scheduler, SlurmScheduler)
    assert jobs.submit("evaluate-1", OVERRIDES, tmp_path / "one", after=["7"]) == "41"
    script = cluster.read("script")
    for line in ("--partition=p5", "--qos=night", "--nodes=1", "--job-name=evaluate-1"):
        assert f"#SBATCH {line}\n" in script
    assert "exclusive" not in script
    assert "--dependency=afterok:7" in cluster.read("sbatch")


@pytest.mark.parametrize(
    ("operator", "kind"), [(KubeflowScheduler, "PyTorchJob"), (HyperPodScheduler, "HyperPodPyTorchJob")]
)
def test_kubernetes_runs_have_their_operator(
    cluster: Cluster, tmp_path: Path, operator: type[KubeflowScheduler], kind: str
) -> None:
    submitted(tmp_path, operator.name, queue="team-localqueue", **PLACEMENT)
    jobs = companion_jobs(tmp_path)
    assert type(jobs.scheduler) is operator
    number = jobs.submit("evaluate-1", OVERRIDES, tmp_path / "one")
    assert number == f"hyperpod-ns-driving/{kind.lower()}/evaluate-1"
    (manifest,) = yaml.safe_load_all(cluster.read("manifest"))
    assert manifest["kind"] == kind
    assert not faults(manifest)
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-localqueue"
    companion = load(tmp_path / "one")
    assert (companion.nodes, companion.devices, companion.gpus, companion.overrides) == (1, 1, 1, tuple(OVERRIDES))
    assert jobs.find("evaluate-1") is None
    (cluster.state / "job").write_text(
        f'{{"kind": "{kind}", "metadata": {{"namespace": "hyperpod-ns-driving", "name": "evaluate-1"}}}}'
    )
    assert jobs.find("evaluate-1") == number
    assert "--namespace=hyperpod-ns-driving" in cluster.read("kubectl")
