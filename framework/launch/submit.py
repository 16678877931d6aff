"""Submits a recipe as a job: specification, preflight, snapshot, rendering, and the scheduler's answer."""

from __future__ import annotations

import fcntl
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from framework.launch.launcher import Launcher, PyTorchJob, Slurm
from framework.launch.preflight import preflight
from framework.launch.resumption import resumption_problems
from framework.launch.schedulers.base import Scheduler
from framework.launch.schedulers.instances import EFA_VARIABLES, find_instance
from framework.launch.snapshot import Code, SnapshotError, choose, packages_hash
from framework.launch.spec import RunSpec, SpecError
from framework.launch.submissions import record_submission
from framework.recipe.composition import Composition
from framework.recipe.instantiate import instantiate
from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Problem, RecipeError
from framework.recipe.variables import variables_read
from framework.run.layout import JOB_LOG_FILE, TRIAL_FILE

_LAUNCH_OVERRIDE = re.compile(r"(?:~|\+{1,2})?launch(?:[.=@/]|$)")


@dataclass(frozen=True)
class RenderedJob:
    """One job, ready to be submitted."""

    name: str
    """The name under which the scheduler lists it."""
    text: str
    """What is submitted."""
    file: Path
    """Where `text` is kept."""
    specs: tuple[RunSpec, ...]
    """The runs that the job consists of; several are a sweep."""


def submit(compositions: Sequence[Composition], stem: str | None = None) -> int:
    """Submit runs, several as one sweep, and print their folders and the jobs. Returns the exit code as soon as the
    scheduler has accepted them. What is submitted is kept in a file that may be given another `stem`, for a sweep that
    is submitted in parts.

    Raises `RecipeError` with every problem, in which case nothing was submitted.
    """
    launcher: Launcher = instantiate(compositions[0], ("launch",))
    try:
        scheduler = launcher.scheduler
        code = choose(compositions[0].catalogue.root, launcher.ref, launcher.uncommitted)
        jobs = _render(compositions, launcher, scheduler, code, stem)
        problems = preflight(compositions[0], launcher, jobs[-1].specs, jobs[-1].text)
        problems += [problem for composition in compositions for problem in resumption_problems(composition)]
    except (SpecError, SnapshotError) as error:
        raise _refused(error) from error
    faults = [problem for problem in problems if not problem.warning]
    if faults and not launcher.dry_run:
        raise RecipeError(problems)
    for problem in problems:
        print(problem, file=sys.stderr)
    if launcher.dry_run:
        print("\n".join(job.text for job in jobs), end="")
        return 2 if faults else 0
    try:
        numbers = _submit(scheduler, code, jobs)
    except (OSError, SnapshotError) as error:
        raise _refused(error) from error
    for spec in jobs[-1].specs:
        print(spec.folder)
    print(f"job {' '.join(numbers)}")
    return 0


def _render(
    compositions: Sequence[Composition], launcher: Launcher, scheduler: Scheduler, code: Code, stem: str | None
) -> list[RenderedJob]:
    """One job; with `launch.by_stage` one for each stage of the curriculum, in order."""
    folder = _shared_folder(compositions)
    python = os.path.abspath(launcher.python or sys.executable)  # noqa: PTH100 - links into environments are kept
    environment = python, packages_hash(Path(python))
    specs = [_spec(composition, launcher, scheduler, code, environment, folder) for composition in compositions]
    file, log = folder / scheduler.file, str(folder / JOB_LOG_FILE)
    file = file if stem is None else file.with_stem(stem)
    if len(specs) > 1:
        name = specs[0].name.rpartition("/")[0]
        return [RenderedJob(name, scheduler.render(specs, name, log), file, tuple(specs))]
    stages = _stages(compositions[0]) if isinstance(launcher, Slurm) and launcher.by_stage else []
    jobs = []
    for number, stage in enumerate(stages[:-1]):
        # Without the stages behind it the run ends after this one; the next job continues in the same folder.
        overrides = (*specs[0].overrides, *(f"~curriculum.stages.{later}" for later in stages[number + 1 :]))
        part = replace(specs[0], name=f"{specs[0].name}.{stage}", overrides=overrides)
        text = scheduler.render([part], part.name, log)
        jobs.append(RenderedJob(part.name, text, file.with_stem(f"job.{stage}"), (part,)))
    name = specs[0].name
    return [*jobs, RenderedJob(name, scheduler.render(specs, name, log), file, tuple(specs))]


def _stages(composition: Composition) -> list[str]:
    """The names of the curriculum's stages. Raises `SpecError` where the recipe has none."""
    stages = list(composition.raw.get("curriculum", {}).get("stages", {}))
    if not stages:
        raise SpecError("launch.by_stage: the recipe has no curriculum; leave it out")
    return [str(stage) for stage in stages]


def _submit(scheduler: Scheduler, code: Code, jobs: Sequence[RenderedJob]) -> list[str]:
    """Everything that leaves a trace, under a lock on each run. Raises `OSError` where a job of such a name is pending
    or running.
    """
    with ExitStack() as locks:
        for spec in jobs[-1].specs:
            locks.enter_context(locked(Path(spec.folder)))
        for job in jobs:
            if (active := scheduler.find(job.name)) is not None:
                stop = "`python -m framework stop RUN` ends it"
                raise OSError(f"{job.name} is submitted already, as job {active}; {stop}")
        code.place(Path(jobs[-1].specs[0].code))
        for spec in jobs[-1].specs:
            spec.save()
        numbers: list[str] = []
        for job in jobs:
            job.file.write_text(job.text, encoding="utf-8")
            numbers.append(scheduler.submit(job.text, after=numbers[-1:]))
            for element, spec in enumerate(job.specs):
                number = numbers[-1] if len(job.specs) == 1 else f"{numbers[-1]}_{element}"
                record_submission(Path(spec.folder), scheduler.name, number, job.file)
        return numbers


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock under which the run in `folder` is submitted. Raises `BlockingIOError` where another process holds
    it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "submit.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"{folder} is being submitted by another process; wait for it") from error
        yield


def _spec(
    composition: Composition,
    launcher: Launcher,
    scheduler: Scheduler,
    code: Code,
    environment: tuple[str, str],
    shared: Path,
) -> RunSpec:
    tree, folder = composition.tree, _folder(composition)
    trains = {"curriculum", "evals"} <= set(tree["task"])
    is_trial = (folder / TRIAL_FILE).is_file()  # a job for each of its checkpoints would keep the next trials waiting
    instance = find_instance(launcher.instance) if launcher.instance else None
    read = sorted(_variables(composition) - {*launcher.secrets, *launcher.variables})
    # A pod has nothing of this environment: its manifest carries the values.
    carried = {name: os.environ[name] for name in read} if isinstance(launcher, PyTorchJob) else {}
    given = {str(key): str(value) for key, value in launcher.variables.items()}
    efa = EFA_VARIABLES if instance is not None and instance.efa and launcher.gpus else {}
    return RunSpec(
        name=str(tree["run"]["name"]),
        folder=str(folder),
        directory=str(Path.cwd()),
        code=str(shared / "code"),
        sha=code.sha,
        python=environment[0],
        packages=environment[1],
        overrides=inner_overrides(composition.overrides, folder, launcher.devices),
        nodes=launcher.nodes,
        devices=launcher.devices,
        gpus=launcher.gpus,
        minutes=launcher.minutes,
        notice_s=launcher.notice_s,
        requeues=launcher.requeues,
        instance=launcher.instance,
        environment=tuple({**efa, **carried, **given}.items()),
        scheduler=scheduler.name,
        placement=tuple(scheduler.placement.items()),
        watched=str(folder) if isinstance(launcher, Slurm) and launcher.evaluate and trains and not is_trial else None,
        hang=launcher.hang,
        restart=launcher.restart,
        passed=tuple(name for name in read if name not in carried),
        secrets=tuple(launcher.secrets),
    )


def inner_overrides(overrides: Sequence[str], folder: Path, devices: int) -> tuple[str, ...]:
    """Return the overrides inside the job: those of the submission without `launch`, to run on the spot, in `folder`,
    with all workers of a node.
    """
    remaining = [override for override in overrides if not _LAUNCH_OVERRIDE.match(override)]
    return (*remaining, "launch=local", f"run.folder='{folder}'", f"parallel.devices={devices}")


def _variables(composition: Composition) -> set[str]:
    """The environment variables that are set here and that the recipe reads outside `launch`."""
    return {name for key, name in variables_read(composition.raw) if key[0] != "launch" and name in os.environ}


def _shared_folder(compositions: Sequence[Composition]) -> Path:
    """The folder of code and rendering: the run's, or for a sweep the one that holds its runs' folders."""
    folder = _folder(compositions[0])
    return folder if len(compositions) == 1 else folder.parent


def _folder(composition: Composition) -> Path:
    return Path(os.path.abspath(composition.tree["run"]["folder"]))  # noqa: PTH100 - nothing of it need exist


def _refused(error: Exception) -> RecipeError:
    return RecipeError([Problem(COMMAND_LINE, "launch", line) for line in str(error).splitlines()])
