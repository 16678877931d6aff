"""The specification of a job, independent of its scheduler: sbatch scripts and Kubernetes objects are rendered from it.

It is stored as `job.json` in the run's folder (contract 6). The supervisors read their settings there, and the job can
be submitted again as it was.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from framework.launch.supervisor.restart import RestartPolicy
from framework.launch.supervisor.watchdog import HangRules
from framework.recipe.renames import renames
from framework.run.files import write_text
from framework.run.layout import JOB_FILE

MAX_NAME_LENGTH = 200
MIN_SAVE_S = 10
SAVE_RESERVE_S = 90
"""Part of the notice (s) that saving may not use: the workers' end, the last look at evaluations, the requeueing."""
LOCAL_NOTICE_S = 690
"""Nobody takes this machine away, so a run on it has ten minutes to save."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+@-]*(?:/[A-Za-z0-9][A-Za-z0-9._=,+@-]*)*")
_PATH = re.compile(r"/[A-Za-z0-9._=,+@/-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SpecError(ValueError):
    """A specification that no scheduler would run. The text has one line for each fault."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One job: what it runs, what it asks for, and how its supervisors behave."""

    name: str
    """The run's name, under which the scheduler lists the job."""
    folder: str
    """The run's folder: absolute, on a file system that all nodes share."""
    directory: str
    """The working directory: where the job was submitted."""
    code: str
    """The snapshot of the code that the job runs."""
    sha: str
    """The commit of that code."""
    python: str
    """The interpreter of the virtual environment that the job runs in."""
    packages: str
    """A hash of the packages installed for `python`, compared by each node before it starts."""
    overrides: tuple[str, ...]
    """The arguments of `python -m framework` inside the job."""
    nodes: int
    """Nodes of the job."""
    devices: int
    """Workers on each node, one per GPU."""
    gpus: int
    """GPUs of each node; 0 for a job on CPUs."""
    minutes: int
    """Wall time of the job (minutes)."""
    notice_s: int = 300
    """The scheduler warns the job so long (s) before its wall time is up, or before it kills the job."""
    requeues: int = 20
    """How often the scheduler may start the job again."""
    instance: str | None = None
    """Instance type of the nodes, a key of `schedulers.instances.INSTANCES`; None: neither checked nor set up."""
    exclusive: bool = True
    """Whether the job has its nodes to itself. Companion jobs share theirs."""
    environment: tuple[tuple[str, str], ...] = ()
    """Environment variables that the job sets, with their values."""
    scheduler: str = "slurm"
    """The scheduler that has the run, a key of `schedulers.registry.SCHEDULERS`. Companion jobs go there too."""
    placement: tuple[tuple[str, str], ...] = ()
    """Arguments of that scheduler, such as its partition or namespace."""
    watched: str | None = None
    """The run whose checkpoints are evaluated: the job's own folder, or for an evaluation job that of the run it
    evaluates. None: no evaluations are submitted.
    """
    hang: HangRules = field(default_factory=HangRules)
    """When the supervisors take silence for a hang."""
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    """When the supervisors start another attempt."""
    passed: tuple[str, ...] = ()
    """Names of the variables that the job takes from the environment of whoever submits it."""
    secrets: tuple[str, ...] = ()
    """Names of the variables that hold secrets. Their values are never written anywhere."""

    def __post_init__(self) -> None:
        """Raises `SpecError` with every fault: whatever passes here is inert in every rendering."""
        if faults := list(self._faults()):
            raise SpecError("\n".join(faults))

    def _faults(self) -> Iterator[str]:
        if not _NAME.fullmatch(self.name) or len(self.name) > MAX_NAME_LENGTH:
            allowed = f"parts of letters, digits and ._=,+@- joined by /, at most {MAX_NAME_LENGTH} characters"
            yield f"run.name: {self.name!r} cannot be a job's name; allowed are {allowed}"
        # The paths of a job that stays on this machine are never rendered.
        for name in ("folder", "directory", "code", "python") if self.scheduler != "local" else ():
            path = getattr(self, name)
            if not _PATH.fullmatch(path):
                yield f"{name}: {path!r} must be absolute and of letters, digits and ._=,+@-/ only; move or rename it"
        for override in self.overrides:
            if not _is_text(override):
                yield f"overrides: {override!r} cannot be an argument of a program: it holds a NUL or half a character"
        yield from self._setting_faults()
        for name, value in self.environment:
            if not _VARIABLE.fullmatch(name) or not _is_text(value):
                yield f"launch.variables: {name!r} cannot be set: letters, digits and _ for a name, no NUL in a value"
        for name in (*self.passed, *self.secrets):
            if not _VARIABLE.fullmatch(name):
                yield f"launch.secrets: {name!r} is not the name of a variable; values are never given here"
        least = {"nodes": 1, "devices": 1, "gpus": 0, "minutes": 1, "notice_s": 0, "requeues": 0}
        for name, minimum in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < minimum:
                yield f"launch.{name}: {value!r} must be an integer of at least {minimum}"

    def _setting_faults(self) -> Iterator[str]:
        for group in ("hang", "restart"):
            for name, value in asdict(getattr(self, group)).items():
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    yield f"launch.{group}.{name}: {value!r} must be a finite number"

    @property
    def save_s(self) -> float:
        """How long workers may take to save (s) once the scheduler has given notice."""
        return float(max(MIN_SAVE_S, self.notice_s - SAVE_RESERVE_S))

    def command(self) -> tuple[str, ...]:
        """The command that runs once on each node: the supervisor of the node's workers."""
        return (self.python, *self.module())

    def module(self) -> tuple[str, ...]:
        """The arguments of Python in `command`. All settings of the supervisor are in `job.json`."""
        supervisor = ("-m", "framework.launch.supervisor.main", "--folder", self.folder)
        size = ("--workers", str(self.devices), "--nodes", str(self.nodes))
        return (*supervisor, *size, "--", *self.overrides)

    def variables(self) -> dict[str, str]:
        """The environment variables that the job sets. The snapshot precedes what the environment has installed, and
        the working directory, which may hold another version of the code, stays off Python's path.
        """
        return {"PYTHONPATH": self.code, "PYTHONSAFEPATH": "1", **dict(self.environment)}

    def save(self) -> None:
        """Write `job.json` into the run's folder, replacing it atomically."""
        write_text(Path(self.folder, JOB_FILE), json.dumps(asdict(self), indent=2) + "\n")


def load(folder: Path) -> RunSpec:
    """Read the specification of the run in `folder`, of today's form or an older one. Raises `SpecError` that names
    the file where it is absent or cannot be read.
    """
    file = folder / JOB_FILE
    try:
        values = _todays(json.loads(file.read_text(encoding="utf-8")))
        for name in ("environment", "placement"):
            values[name] = tuple((str(key), str(value)) for key, value in values[name])
        for name in ("overrides", "passed", "secrets"):
            values[name] = tuple(map(str, values[name]))
        values["hang"] = HangRules(**values["hang"])
        values["restart"] = RestartPolicy(**values["restart"])
        return RunSpec(**values)
    except FileNotFoundError as error:
        raise SpecError(
            f"{file}: not there; the run was not submitted with launch=slurm, pytorchjob or hyperpod"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SpecError(f"{file}: {error}; submit the run again") from error


def local_spec(folder: Path) -> RunSpec:
    """The specification of a run in `folder` that was not submitted: one worker, and all its jobs on this machine."""
    return RunSpec(
        name="local",
        folder=str(folder),
        directory=str(Path.cwd()),
        code=str(Path.cwd()),
        sha="",
        python=sys.executable,
        packages="",
        overrides=(),
        nodes=1,
        devices=1,
        gpus=0,
        minutes=1,
        notice_s=LOCAL_NOTICE_S,
        scheduler="local",
        placement=(("folder", str(folder / "jobs")),),
    )


def _todays(values: dict[str, Any]) -> dict[str, Any]:
    """The content of a `job.json` under today's names. Older ones say `words`, keep the supervisor's settings as
    options of its command line, and name Kubernetes' operator within the placement.
    """
    if "words" in values:
        values["overrides"] = values.pop("words")
    if "supervision" in values:
        options = [option.removeprefix("--").split("=", 1) for option in values.pop("supervision")]
        numbers = {name.replace("-", "_"): float(number) for name, number in options}
        values["hang"] = _settings(HangRules(), numbers)
        values["restart"] = _settings(RestartPolicy(), numbers)
        placement = {str(name): value for name, value in values["placement"]}
        values["scheduler"] = placement.pop("operator", "slurm")
        values["placement"] = list(placement.items())
    return values


def _settings(defaults: HangRules | RestartPolicy, numbers: dict[str, float]) -> dict[str, Any]:
    """The settings that options gave, under their names of then or now; the defaults for the rest."""
    kind = type(defaults)
    old_names = renames().arguments.get(f"{kind.__module__}.{kind.__name__}", {})
    given = {old_names.get(name, name): number for name, number in numbers.items()}
    return {name: type(value)(given.get(name, value)) for name, value in asdict(defaults).items()}


def _is_text(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)
