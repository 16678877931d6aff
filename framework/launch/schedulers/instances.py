"""The instance types of a cluster, and the environment variables that help or harm their network.

Sources: the instances' specifications as HyperPod's own command line ships them, and the EFA and NCCL notes of
aws-ofi-nccl for libfabric >= 1.18 and aws-ofi-nccl >= 1.7.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Instance:
    """The hardware of one node."""

    gpus: int
    """GPUs."""
    efa: int
    """EFA devices."""
    processors: int
    """Virtual CPUs."""
    memory_gib: int
    """Host memory (GiB)."""


INSTANCES = {
    "p4d.24xlarge": Instance(8, 4, 96, 1152),
    "p4de.24xlarge": Instance(8, 4, 96, 1152),
    "p5.48xlarge": Instance(8, 32, 192, 2048),
    "p5e.48xlarge": Instance(8, 32, 192, 2048),
    "p5en.48xlarge": Instance(8, 16, 192, 2048),
    "p6-b200.48xlarge": Instance(8, 8, 192, 2048),
    "p6-b300.48xlarge": Instance(8, 16, 192, 4096),
    "g5.48xlarge": Instance(8, 1, 192, 768),
    "g6.48xlarge": Instance(8, 1, 192, 768),
    "g6e.48xlarge": Instance(8, 4, 192, 1536),
}

EFA_VARIABLES = {"FI_EFA_USE_HUGE_PAGE": "0"}
"""Loader workers are forked, and a fork crashes where EFA holds huge pages. Current stacks choose everything else
correctly by themselves.
"""

HARMFUL = {
    "RDMAV_FORK_SAFE": "never set it: it crashes EFA",
    "RDMAV_HUGEPAGES_SAFE": "never set it: it crashes EFA",
    "FI_EFA_FORK_SAFE": "not needed since libfabric 1.13; unset it",
    "FI_PROVIDER": "aws-ofi-nccl finds EFA; a wrong provider falls back to TCP in silence; unset it",
    "NCCL_PROTO": "the plugin's tuner chooses; a fixed protocol halves the speed of some sizes; unset it",
    "FI_EFA_USE_DEVICE_RDMA": "for older stacks; unset it",
    "NCCL_P2P_DISABLE": "turns NVLink off; unset it",
    "NCCL_IB_DISABLE": "turns the fast network off; unset it",
    "CUDA_LAUNCH_BLOCKING": "makes every kernel wait; unset it",
    "TORCH_DISTRIBUTED_DEBUG": "checks every collective, and is slow; unset it",
    "TORCH_NCCL_BLOCKING_WAIT": "blocks the step and hides hangs from the watchdog; unset it",
}
"""Variables that slow a job down or break it, and why."""
CRASHING = frozenset({"RDMAV_FORK_SAFE", "RDMAV_HUGEPAGES_SAFE"})
"""Those of `HARMFUL` with which no job may start."""


def find_instance(name: str) -> Instance | None:
    """Return the instance type called `name`, with or without HyperPod's `ml.`; None if the table lacks it."""
    return INSTANCES.get(name.removeprefix("ml."))
