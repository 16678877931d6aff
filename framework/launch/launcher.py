"""The ways to launch a job, as a recipe chooses them (`launch=slurm`): what a job asks for, and what takes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol

from framework.launch.schedulers import kubectl, kubernetes, sbatch, slurm
from framework.launch.schedulers.kubernetes import Cluster
from framework.launch.schedulers.log_rules import LogRules
from framework.launch.spec import RunSpec, SpecError
from framework.launch.supervisor.restart import RestartPolicy
from framework.launch.supervisor.watchdog import HangRules


class Jobs(Protocol):
    """What takes jobs: a module of functions that call its commands."""

    def submit(self, text: str, /, after: Sequence[str] = ()) -> str:
        """The job that `text` has become, which waits for the jobs `after`. Raises `OSError` where it is refused."""
        ...

    def find(self, name: str, /) -> str | None:
        """The job of that name that waits or runs; None when there is none. Raises `OSError` where that is not
        known.
        """
        ...

    def state(self, job: str, /) -> str | None:
        """What a job is at; None when it is not known any more."""
        ...

    def stop(self, job: str, /) -> None:
        """End a job, which is told so first. Raises `OSError`."""
        ...

    def again(self, text: str, job: str, /) -> str:
        """Submit what `job` was made of, which is `text` or a part of it, once more. Raises `OSError`."""
        ...

    def lives(self, job: str, /) -> bool:
        """Whether a job waits or runs. Raises `OSError` where that is not known."""
        ...

    def log(self, job: str, /) -> str:
        """The last lines of a job whose log does not lie in its folder."""
        ...


RESERVE_S = 90
"""Of the notice (s), for the workers' end, a last look at evaluations and the requeueing."""
LEAST_SAVE_S = 10
SCHEDULERS: dict[str, Jobs] = {"slurm": slurm, "kubectl": kubectl}


@dataclass(frozen=True)
class Limits:
    """Guard rails: the most nodes that a user may hold, the longest that a job may take, and the least free space (GiB)
    where its folder lies.
    """

    nodes: int
    minutes: int
    free_gib: float


@dataclass(frozen=True, kw_only=True)
class Launcher(ABC):
    """What is asked for whoever runs the job: `nodes` of the type `instance` with `devices` workers each, GPUs for
    them unless the `accelerator` is "cpu", for `minutes`, of whose end the job is warned `notice_s` seconds before.
    It may begin anew `requeues` times. The supervisors of its nodes go by `hang` and `restart`.

    It runs the code at `ref` (a branch or SHA; None: what is checked out, changes only when `uncommitted`) with the
    virtual environment's interpreter `python` (None: the one that submits). `variables` are set in the job, `secrets`
    are names of variables whose values are never written. With `dry_run` what would be submitted is printed instead.
    """

    limits: Limits
    hang: HangRules = field(default_factory=HangRules)
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    nodes: int = 1
    devices: int = 8
    accelerator: str = "auto"
    instance: str | None = None
    minutes: int = 24 * 60
    notice_s: int = 300
    requeues: int = 20
    python: str | None = None
    ref: str | None = None
    uncommitted: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    secrets: Sequence[str] = ()
    dry_run: bool = False

    file: ClassVar[str]
    """Under this name what was submitted is kept in the run's folder."""
    scheduler: ClassVar[str]
    """What takes it, of `SCHEDULERS`."""

    @abstractmethod
    def placement(self) -> dict[str, Any]:
        """Where jobs beside this one are put. Raises `SpecError`."""

    @abstractmethod
    def render(self, specs: Sequence[RunSpec], name: str, output: str) -> str:
        """What would be submitted for `specs`, of which several are a sweep called `name`; `output` takes what is said
        before a run of theirs has begun. Raises `SpecError` with what would not be taken.
        """

    @property
    def supervision(self) -> tuple[str, ...]:
        """What the supervisors are told, where it is not their default; a save must be over before the notice is."""
        told = [(settings, type(settings)()) for settings in (self.hang, self.restart)]
        notice = f"--save-s={max(LEAST_SAVE_S, self.notice_s - RESERVE_S)}"
        return notice, *(
            f"--{name.replace('_', '-')}={value}"
            for settings, usual in told
            for name, value in asdict(settings).items()
            if value != getattr(usual, name)
        )

    @property
    def gpus(self) -> int:
        """GPUs of each node."""
        return 0 if self.accelerator == "cpu" else self.devices


@dataclass(frozen=True, kw_only=True)
class Slurm(Launcher):
    """A job of Slurm in `partition`, which must be named: login nodes belong to the default one on HyperPod.

    Of a sweep `at_once` runs at a time. With `by_stage` each stage of a curriculum is a job of its own, which waits
    for the one before. With `evaluate` every checkpoint is put to the recipe's evals by jobs of their own.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    at_once: int = 4
    by_stage: bool = False
    evaluate: bool = True

    file: ClassVar[str] = "job.sbatch"
    scheduler: ClassVar[str] = "slurm"

    def render(self, specs: Sequence[RunSpec], name: str, output: str) -> str:
        """The sbatch script."""
        placement = sbatch.Placement(**self.placement(), at_once=self.at_once)
        return sbatch.render(specs, placement, name, output)

    def placement(self) -> dict[str, Any]:
        """Where Slurm puts the job. Raises `SpecError` without a partition."""
        if self.partition is None:
            raise SpecError("launch.partition: must be named; export SBATCH_PARTITION, or give launch.partition=NAME")
        names = ("partition", "account", "qos", "reservation", "constraint")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class PyTorchJob(Launcher):
    """A job of Kubeflow's training operator; what is not explained here is in `kubernetes.Cluster`."""

    namespace: str
    image: str
    claim: str
    mount: str
    queue: str | None = None
    priority: str | None = None
    topology: str | None = None
    required: bool = False
    secret: str | None = None

    file: ClassVar[str] = "job.yaml"
    scheduler: ClassVar[str] = "kubectl"
    operator: ClassVar[str] = "kubeflow"

    def render(self, specs: Sequence[RunSpec], name: str, output: str) -> str:
        """The manifests, one for each run."""
        if self.secrets and self.secret is None:
            raise SpecError("launch.secret: the Kubernetes secret that holds launch.secrets must be named")
        return kubernetes.to_yaml([self.manifest(spec) for spec in specs])

    def placement(self) -> dict[str, Any]:
        """Where Kubernetes puts the job; one beside it may lie anywhere."""
        names = ("namespace", "image", "claim", "mount", "queue", "priority", "secret")
        return {"operator": self.operator} | {name: value for name in names if (value := getattr(self, name))}

    def manifest(self, spec: RunSpec) -> dict[str, Any]:
        """The object of one run."""
        return kubernetes.pytorch_job(spec, self.cluster())

    def cluster(self) -> Cluster:
        """Where the job goes. Raises `SpecError`."""
        names = ("namespace", "image", "claim", "mount", "queue", "priority", "topology", "required", "secret")
        return Cluster(**{name: getattr(self, name) for name in names}, spares=getattr(self, "spares", 0))


@dataclass(frozen=True, kw_only=True)
class HyperPod(PyTorchJob):
    """A job of HyperPod's training operator with `spares` nodes in reserve, whose log is watched by `rules`."""

    spares: int = 0
    rules: LogRules = field(default_factory=LogRules)

    operator: ClassVar[str] = "hyperpod"

    def manifest(self, spec: RunSpec) -> dict[str, Any]:
        """The object of one run."""
        return kubernetes.hyperpod_job(spec, self.cluster(), self.rules)
