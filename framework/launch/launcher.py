"""The launchers that a recipe chooses from (`launch=slurm`): what a job asks for, and the scheduler that takes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from annotated_types import Interval

from framework.launch.schedulers.base import Scheduler
from framework.launch.schedulers.kubernetes import HyperPodScheduler, KubeflowScheduler
from framework.launch.schedulers.log_rules import LogRules
from framework.launch.schedulers.slurm import SlurmScheduler
from framework.launch.spec import SpecError
from framework.launch.supervisor.restart import RestartPolicy
from framework.launch.supervisor.watchdog import HangRules
from framework.recipe.component import component
from framework.recipe.ranges import Count, Minutes, Nodes, PerNode, PositiveCount


@component
@dataclass(frozen=True)
class Limits:
    """Guard rails, checked before a job is submitted."""

    nodes: Nodes
    """Nodes that one user may hold at a time."""
    minutes: Minutes
    """Longest wall time of a job (minutes)."""
    free_gib: Annotated[float, Interval(ge=0, le=1e9)]
    """Least free space on the file system of the run's folder (GiB)."""


@dataclass(frozen=True, kw_only=True)
class Launcher(ABC):
    """What a job asks for, whichever scheduler takes it."""

    limits: Limits
    """Guard rails of the team."""
    hang: HangRules = field(default_factory=HangRules)
    """When the nodes' supervisors take silence for a hang."""
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    """When they start another attempt."""
    nodes: Nodes = 1
    """Nodes of the job."""
    devices: PerNode = 8
    """Workers on each node, each with a GPU of its own."""
    accelerator: str = "auto"
    """With "cpu" the job asks for no GPUs."""
    instance: str | None = None
    """Instance type of the nodes, such as `p5.48xlarge`; None: GPUs and EFA are not checked."""
    minutes: Minutes = 24 * 60
    """Wall time (minutes)."""
    notice_s: Annotated[int, Interval(ge=0, le=65_535)] = 300
    """The scheduler warns the job so long (s) before its wall time is up; the job saves and is requeued."""
    requeues: Count = 20
    """How often the scheduler may start the job again."""
    python: str | None = None
    """The virtual environment's interpreter that runs the job; None: the one that submits it."""
    ref: str | None = None
    """The branch, tag or SHA whose code runs; None: what is checked out."""
    uncommitted: bool = False
    """Whether uncommitted changes are included; by default they refuse the submission."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that the job sets."""
    secrets: Sequence[str] = ()
    """Names of variables whose values the job receives and nobody writes down."""
    dry_run: bool = False
    """Whether to print what would be submitted instead of submitting it."""

    @property
    @abstractmethod
    def scheduler(self) -> Scheduler:
        """The scheduler that takes the job. Raises `SpecError` where its settings are incomplete or invalid."""

    @property
    def gpus(self) -> int:
        """GPUs of each node."""
        return 0 if self.accelerator == "cpu" else self.devices

    def _settings_of(self, scheduler: type) -> dict[str, Any]:
        """The settings of this launcher that are fields of `scheduler`, too."""
        return {each.name: getattr(self, each.name) for each in fields(scheduler)}


@component
@dataclass(frozen=True, kw_only=True)
class Slurm(Launcher):
    """A job of Slurm."""

    partition: str | None = None
    """Must be named: on HyperPod the default partition holds the login nodes."""
    account: str | None = None
    """The account that pays; None: the user's default."""
    qos: str | None = None
    """The quality of service; None: the default."""
    reservation: str | None = None
    """The reservation whose nodes the job uses."""
    constraint: str | None = None
    """The features that the nodes must have."""
    at_once: PositiveCount = 4
    """Runs of a sweep that run concurrently."""
    by_stage: bool = False
    """Whether each stage of a curriculum is a job of its own, which waits for the one before it."""
    evaluate: bool = True
    """Whether each checkpoint is evaluated by jobs of their own, one for each of the recipe's evals. The trials of a
    search evaluate themselves."""

    @property
    def scheduler(self) -> SlurmScheduler:
        """See `Launcher`."""
        if self.partition is None:
            raise SpecError("launch.partition: must be named; export SBATCH_PARTITION, or give launch.partition=NAME")
        return SlurmScheduler(**self._settings_of(SlurmScheduler))


@component
@dataclass(frozen=True, kw_only=True)
class PyTorchJob(Launcher):
    """A job of Kubeflow's training operator."""

    namespace: str
    """The namespace of the job; HyperPod's are called `hyperpod-ns-<team>`."""
    image: str
    """The image of the pods. The environment and the code come from the shared file system."""
    claim: str
    """The volume claim of the shared file system."""
    mount: str
    """Where pods mount it: the same absolute path as on the login node."""
    queue: str | None = None
    """Kueue's local queue; None: the job is not queued."""
    priority: str | None = None
    """Kueue's priority class; None: the default."""
    topology: str | None = None
    """A node label; the job's pods should lie on nodes that share its value."""
    required: bool = False
    """Whether the job waits until `topology` can be satisfied."""
    secret: str | None = None
    """The Kubernetes secret that holds the variables named in `secrets`."""

    @property
    def scheduler(self) -> KubeflowScheduler:
        """See `Launcher`."""
        return KubeflowScheduler(**self._settings_of(KubeflowScheduler))


@component
@dataclass(frozen=True, kw_only=True)
class HyperPod(PyTorchJob):
    """A job of HyperPod's training operator."""

    spares: Annotated[int, Interval(ge=0, le=100_000)] = 0
    """Nodes held in reserve."""
    rules: LogRules = field(default_factory=LogRules)
    """The rules by which the operator monitors the job's log."""

    @property
    def scheduler(self) -> HyperPodScheduler:
        """See `Launcher`."""
        return HyperPodScheduler(**self._settings_of(HyperPodScheduler))
