"""A job to try things on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from framework.launch.schedulers.kubernetes import Cluster
from framework.launch.schedulers.sbatch import Placement
from framework.launch.spec import RunSpec

SPEC = RunSpec(
    name="drive/seed-1",
    folder="/shared/runs/drive/seed-1",
    directory="/shared/checkout",
    code="/shared/runs/drive/seed-1/code",
    sha="0123456789abcdef0123456789abcdef01234567",
    python="/shared/envs/drive/bin/python",
    packages="0123456789abcdef",
    words=("recipe=sft_drive", "launch=local", "run.folder='/shared/runs/drive/seed-1'"),
    nodes=4,
    devices=8,
    gpus=8,
    minutes=600,
    notice_s=240,
    requeues=7,
    instance="p5.48xlarge",
    supervision=("--floor-s=90.0", "--restarts=7"),
    environment=(("FI_EFA_USE_HUGE_PAGE", "0"), ("GREETING", "good $(day) to $you")),
    passed=("RECORDINGS",),
    secrets=("COMET_API_KEY",),
)
PLACEMENT = Placement("p5")
CLUSTER = Cluster(
    namespace="hyperpod-ns-driving",
    image="registry/training:1",
    claim="fsx",
    mount="/shared",
    queue="hyperpod-ns-driving-localqueue",
    priority="training-priority",
    topology="topology.k8s.aws/network-node-layer-3",
    secret="comet",
    spares=1,
)


def spec(**changes: Any) -> RunSpec:
    """`SPEC` with `changes`."""
    return replace(SPEC, **changes)
