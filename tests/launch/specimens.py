"""A job, and the schedulers that it is rendered for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from framework.launch.schedulers.kubernetes import HyperPodScheduler, KubeflowScheduler
from framework.launch.schedulers.log_rules import LogRules
from framework.launch.schedulers.slurm import SlurmScheduler
from framework.launch.spec import RunSpec
from framework.launch.supervisor.restart import RestartPolicy
from framework.launch.supervisor.watchdog import HangRules

SPEC = RunSpec(
    name="drive/seed-1",
    folder="/shared/runs/drive/seed-1",
    directory="/shared/checkout",
    code="/shared/runs/drive/seed-1/code",
    sha="0123456789abcdef0123456789abcdef01234567",
    python="/shared/envs/drive/bin/python",
    packages="0123456789abcdef",
    overrides=("recipe=sft_drive", "launch=local", "run.folder='/shared/runs/drive/seed-1'"),
    nodes=4,
    devices=8,
    gpus=8,
    minutes=600,
    notice_s=240,
    requeues=7,
    instance="p5.48xlarge",
    placement=(("partition", "p5"),),
    hang=HangRules(floor_s=90.0),
    restart=RestartPolicy(restarts=7),
    environment=(("FI_EFA_USE_HUGE_PAGE", "0"), ("GREETING", "good $(day) to $you")),
    passed=("RECORDINGS",),
    secrets=("COMET_API_KEY",),
)
SLURM = SlurmScheduler(partition="p5")
CLUSTER = {
    "namespace": "hyperpod-ns-driving",
    "image": "registry/training:1",
    "claim": "fsx",
    "mount": "/shared",
    "queue": "hyperpod-ns-driving-localqueue",
    "priority": "training-priority",
    "topology": "topology.k8s.aws/network-node-layer-3",
    "secret": "comet",
}
RULES = LogRules(start_s=900, hang_s=600, slow_step_s=5)
KUBEFLOW = KubeflowScheduler(**CLUSTER)
HYPERPOD = HyperPodScheduler(**CLUSTER, spares=1, rules=RULES)


def spec(**changes: Any) -> RunSpec:
    """`SPEC` with `changes`."""
    return replace(SPEC, **changes)


def sbatch_script(*specs: RunSpec, scheduler: SlurmScheduler = SLURM) -> str:
    """The script of one job, or of a sweep called `drive`, as a submission renders it."""
    if len(specs) > 1:
        return scheduler.render(specs, "drive", "/shared/runs/drive/job.log")
    return scheduler.render(specs, specs[0].name, f"{specs[0].folder}/job.log")
