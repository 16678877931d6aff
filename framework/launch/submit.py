"""Submits a recipe as a job: its specification, the preflight, the snapshot, the rendering, the scheduler's answer."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from framework.launch.launcher import SCHEDULERS, Launcher, Slurm
from framework.launch.preflight import preflight
from framework.launch.schedulers.instances import EFA_VARIABLES, named
from framework.launch.snapshot import Code, SnapshotError, choose, packages_hash
from framework.launch.spec import RunSpec, SpecError
from framework.recipe.composition import Composition
from framework.recipe.instantiate import instantiate
from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Problem, RecipeError
from framework.recipe.variables import variables_read
from framework.run.files import append_line
from framework.run.layout import JOB_LOG_FILE, SUBMISSIONS_FILE

_LAUNCH_WORD = re.compile(r"(?:~|\+{1,2})?launch(?:[.=@/]|$)")


@dataclass(frozen=True)
class Parcel:
    """What becomes one job: its `name`, the `text` that is submitted and kept as `file`, and the runs that it is."""

    name: str
    text: str
    file: Path
    specs: tuple[RunSpec, ...]


def submit(compositions: Sequence[Composition]) -> int:
    """Submit the runs, several as one sweep, and print their folders and the jobs' numbers; at once, whenever they
    start.

    Returns the exit code. Raises `RecipeError` with all that speaks against it: nothing has been submitted then.
    """
    launcher: Launcher = instantiate(compositions[0], ("launch",))
    try:
        code = choose(compositions[0].catalogue.root, launcher.ref, launcher.uncommitted)
        parcels = _parcels(compositions, launcher, code)
        problems = preflight(compositions[0], launcher, parcels[-1].specs, parcels[-1].text)
    except (SpecError, SnapshotError) as error:
        raise _refused(error) from error
    faults = [problem for problem in problems if not problem.warning]
    if faults and not launcher.dry_run:
        raise RecipeError(problems)
    for problem in problems:
        print(problem, file=sys.stderr)
    if launcher.dry_run:
        print("\n".join(parcel.text for parcel in parcels), end="")
        return 2 if faults else 0
    try:
        jobs = _hand_over(launcher, code, parcels)
    except (OSError, SnapshotError) as error:
        raise _refused(error) from error
    for spec in parcels[-1].specs:
        print(spec.folder)
    print(f"job {' '.join(jobs)}")
    return 0


def _parcels(compositions: Sequence[Composition], launcher: Launcher, code: Code) -> list[Parcel]:
    """One job; of a run by stages one for each, in order."""
    folder = _shared_folder(compositions)
    python = os.path.abspath(launcher.python or sys.executable)  # noqa: PTH100 - links into environments are kept
    environment = python, packages_hash(Path(python))
    specs = [_spec(composition, launcher, code, environment, folder) for composition in compositions]
    file, log = folder / launcher.file, str(folder / JOB_LOG_FILE)
    if len(specs) > 1:
        name = specs[0].name.rpartition("/")[0]
        return [Parcel(name, launcher.render(specs, name, log), file, tuple(specs))]
    stages = _stages(compositions[0]) if isinstance(launcher, Slurm) and launcher.by_stage else []
    parcels = []
    for number, stage in enumerate(stages[:-1]):
        # The run ends with this stage where those behind it are not there; the next job goes on in the same folder.
        words = (*specs[0].words, *(f"~curriculum.stages.{later}" for later in stages[number + 1 :]))
        part = replace(specs[0], name=f"{specs[0].name}.{stage}", words=words)
        parcels.append(
            Parcel(part.name, launcher.render([part], part.name, log), file.with_stem(f"job.{stage}"), (part,))
        )
    return [*parcels, Parcel(specs[0].name, launcher.render(specs, specs[0].name, log), file, tuple(specs))]


def _stages(composition: Composition) -> list[str]:
    """The names of the curriculum's stages. Raises `SpecError` where the recipe has none."""
    stages = list(composition.raw.get("curriculum", {}).get("stages", {}))
    if not stages:
        raise SpecError("launch.by_stage: the recipe has no curriculum; leave it out")
    return [str(stage) for stage in stages]


def record(folder: Path, scheduler: str, job: str, file: Path) -> None:
    """Note in the run's folder that it was submitted: to what, as which job, from which file."""
    entry = {"time": time.time(), "scheduler": scheduler, "job": job, "file": str(file)}
    append_line(folder / SUBMISSIONS_FILE, json.dumps(entry))


def submissions(folder: Path) -> list[dict[str, Any]]:
    """What was noted of the run in `folder`, oldest first."""
    file = folder / SUBMISSIONS_FILE
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def _hand_over(launcher: Launcher, code: Code, parcels: Sequence[Parcel]) -> list[str]:
    """Everything that leaves a trace, one submitter at a time. Raises `OSError` where a job of such a name lives
    already.
    """
    scheduler = SCHEDULERS[launcher.scheduler]
    with ExitStack() as locks:
        for spec in parcels[-1].specs:
            locks.enter_context(locked(Path(spec.folder)))
        for parcel in parcels:
            if (living := scheduler.find(parcel.name)) is not None:
                stop = "`python -m framework stop RUN` ends it"
                raise OSError(f"{parcel.name} is submitted already, as job {living}; {stop}")
        code.place(Path(parcels[-1].specs[0].code))
        for spec in parcels[-1].specs:
            spec.save()
        jobs: list[str] = []
        for parcel in parcels:
            parcel.file.write_text(parcel.text, encoding="utf-8")
            jobs.append(scheduler.submit(parcel.text, after=jobs[-1:]))
            for number, spec in enumerate(parcel.specs):
                one = jobs[-1] if len(parcel.specs) == 1 else f"{jobs[-1]}_{number}"
                record(Path(spec.folder), launcher.scheduler, one, parcel.file)
        return jobs


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One submitter at a time. Raises `BlockingIOError` where there is another."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "submit.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"{folder} is just being submitted by another process; wait for it") from error
        yield


def _spec(
    composition: Composition, launcher: Launcher, code: Code, environment: tuple[str, str], shared: Path
) -> RunSpec:
    tree, folder = composition.tree, _folder(composition)
    trains = {"curriculum", "evals"} <= set(tree)
    instance = named(launcher.instance) if launcher.instance else None
    efa = EFA_VARIABLES if instance is not None and instance.efa and launcher.gpus else {}
    return RunSpec(
        name=str(tree["run"]["name"]),
        folder=str(folder),
        directory=str(Path.cwd()),
        code=str(shared / "code"),
        sha=code.sha,
        python=environment[0],
        packages=environment[1],
        words=job_words(composition.overrides, folder, launcher.devices),
        nodes=launcher.nodes,
        devices=launcher.devices,
        gpus=launcher.gpus,
        minutes=launcher.minutes,
        notice_s=launcher.notice_s,
        requeues=launcher.requeues,
        instance=launcher.instance,
        watched=str(folder) if isinstance(launcher, Slurm) and launcher.evaluate and trains else None,
        supervision=launcher.supervision,
        placement=tuple(launcher.placement().items()),
        environment=tuple({**efa, **{str(key): str(value) for key, value in launcher.variables.items()}}.items()),
        passed=tuple(sorted(_variables(composition) - set(launcher.secrets))),
        secrets=tuple(launcher.secrets),
    )


def job_words(overrides: Sequence[str], folder: Path, devices: int) -> tuple[str, ...]:
    """The words that do inside of the job what `overrides` ask for: here, in `folder`, with all workers of a node."""
    kept = [word for word in overrides if not _LAUNCH_WORD.match(word)]
    return (*kept, "launch=local", f"run.folder='{folder}'", f"parallel.devices={devices}")


def _variables(composition: Composition) -> set[str]:
    """The environment variables that are set here and that the recipe reads, launching apart."""
    return {name for key, name in variables_read(composition.raw) if key[0] != "launch" and name in os.environ}


def _shared_folder(compositions: Sequence[Composition]) -> Path:
    """Where code and rendering lie: in the run's folder, of a sweep in the one that holds its runs' folders."""
    folder = _folder(compositions[0])
    return folder if len(compositions) == 1 else folder.parent


def _folder(composition: Composition) -> Path:
    return Path(os.path.abspath(composition.tree["run"]["folder"]))  # noqa: PTH100 - nothing of it need exist


def _refused(error: Exception) -> RecipeError:
    return RecipeError([Problem(COMMAND_LINE, "launch", line) for line in str(error).splitlines()])
