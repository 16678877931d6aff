"""Jobs beside a run, such as its evaluations: they go where the run went, each with one worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from framework.launch.schedulers import kubectl, sbatch, slurm
from framework.launch.schedulers.kubernetes import Cluster, hyperpod_job, pytorch_job, to_yaml
from framework.launch.schedulers.local import LocalJobs
from framework.launch.schedulers.log_rules import LogRules
from framework.launch.schedulers.sbatch import Placement
from framework.launch.spec import RunSpec, load
from framework.run.layout import JOB_FILE


class Scheduler(Protocol):
    """What takes jobs."""

    def submit(self, name: str, words: Sequence[str], folder: Path, after: Sequence[str] = ()) -> str:
        """Submit `python -m framework *words` as the job called `name`, whose log and own files go to `folder`, to
        start when the jobs `after` have ended well. Returns at once, with what the scheduler calls it. Raises
        `OSError` when it is not accepted.
        """
        ...

    def find(self, name: str) -> str | None:
        """The job of that name that waits or runs; None when there is none. Raises `OSError`, and never says None, when
        the scheduler cannot tell.
        """
        ...


@dataclass(frozen=True)
class SlurmJobs:
    """See `Scheduler`. Jobs are as `spec`, the run's own, and share nodes."""

    spec: RunSpec
    placement: Placement

    def submit(self, name: str, words: Sequence[str], folder: Path, after: Sequence[str] = ()) -> str:
        """See `Scheduler`."""
        spec = alone(self.spec, name, words, folder)
        return slurm.submit(sbatch.render([spec], replace(self.placement, exclusive=False)), after)

    def find(self, name: str) -> str | None:
        """See `Scheduler`."""
        return slurm.find(name)


@dataclass(frozen=True)
class KubernetesJobs:
    """See `Scheduler`. Jobs are as `spec`, the run's own, for the operator that has the run."""

    spec: RunSpec
    cluster: Cluster
    operator: str

    def submit(self, name: str, words: Sequence[str], folder: Path, after: Sequence[str] = ()) -> str:
        """See `Scheduler`."""
        spec = alone(self.spec, name, words, folder)
        hyperpod = self.operator == "hyperpod"
        job = hyperpod_job(spec, self.cluster, LogRules()) if hyperpod else pytorch_job(spec, self.cluster)
        return kubectl.submit(to_yaml([job]), after)

    def find(self, name: str) -> str | None:
        """See `Scheduler`."""
        return kubectl.find(name, self.cluster.namespace)


def alone(spec: RunSpec, name: str, words: Sequence[str], folder: Path) -> RunSpec:
    """The specification of a job beside that of `spec`: one worker, with a name, words and a folder of its own, where
    the specification is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = replace(spec, name=name, words=tuple(words), folder=str(folder), nodes=1, devices=1, gpus=min(1, spec.gpus))
    made.save()
    return made


def beside(run: Path) -> Scheduler:
    """Who takes jobs beside the run in folder `run`: Slurm or Kubernetes where it was submitted there, else this
    machine. Raises `SpecError` for a specification that cannot be read.
    """
    if not (run / JOB_FILE).is_file():
        return LocalJobs(run / "jobs")
    spec = load(run)
    where: dict[str, Any] = dict(spec.placement)
    operator = where.pop("operator", None)
    return SlurmJobs(spec, Placement(**where)) if operator is None else KubernetesJobs(spec, Cluster(**where), operator)
