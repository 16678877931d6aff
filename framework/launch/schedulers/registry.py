"""The schedulers by name, as `RunSpec.scheduler` names them."""

from __future__ import annotations

from typing import Any

from framework.launch.schedulers.base import Scheduler
from framework.launch.schedulers.kubernetes import HyperPodScheduler, KubeflowScheduler
from framework.launch.schedulers.local import LocalScheduler
from framework.launch.schedulers.slurm import SlurmScheduler
from framework.launch.spec import RunSpec, SpecError

SCHEDULERS: dict[str, type[Scheduler]] = {
    scheduler.name: scheduler for scheduler in (SlurmScheduler, KubeflowScheduler, HyperPodScheduler, LocalScheduler)
}


def scheduler_of(spec: RunSpec) -> Scheduler:
    """Return the scheduler that has the run of `spec`, with the placement of companion jobs. Raises `SpecError` for
    one that does not exist, or that takes no such placement.
    """
    if not isinstance(spec.scheduler, str) or spec.scheduler not in SCHEDULERS:
        raise SpecError(f"scheduler: {spec.scheduler!r} is unknown; there are: {', '.join(SCHEDULERS)}")
    placement: dict[str, Any] = dict(spec.placement)
    try:
        return SCHEDULERS[spec.scheduler](**placement)
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise SpecError(f"placement: {error}; submit the run again") from error
