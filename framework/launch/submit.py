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
from pathlib import Path
from typing import Any

from framework.launch.instances import EFA_VARIABLES, named
from framework.launch.launcher import SCHEDULERS, Launcher
from framework.launch.preflight import preflight
from framework.launch.snapshot import Code, SnapshotError, choose, packages_hash
from framework.launch.spec import RunSpec, SpecError
from framework.recipe.compose import Composition
from framework.recipe.instantiate import instantiate
from framework.recipe.layers import leaves
from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Problem, RecipeError
from framework.recipe.resolve import resolve

SUBMISSIONS = "submissions.jsonl"
LOG = "job.log"

_READ_VARIABLE = re.compile(r"\$\{oc\.env:\s*([A-Za-z_]\w*)")
_LAUNCH_WORD = re.compile(r"(?:~|\+{1,2})?launch(?:[.=@/]|$)")


def submit(compositions: Sequence[Composition]) -> int:
    """Submit the runs, several as one sweep, and print their folders and the job's number; at once, whenever it starts.

    Returns the exit code. Raises `RecipeError` with all that speaks against it: nothing has been submitted then.
    """
    launcher: Launcher = instantiate(compositions[0], ("launch",))
    try:
        code = choose(compositions[0].catalogue.root, launcher.ref, launcher.uncommitted)
        shared = _shared_folder(compositions)
        python = os.path.abspath(launcher.python or sys.executable)  # noqa: PTH100 - links into environments are kept
        environment = python, packages_hash(Path(python))
        specs = [_spec(composition, launcher, code, environment, shared) for composition in compositions]
        name = specs[0].name if len(specs) == 1 else specs[0].name.rpartition("/")[0]
        text = launcher.render(specs, name, str(shared / LOG))
        problems = preflight(compositions[0], launcher, specs, text)
    except (SpecError, SnapshotError) as error:
        raise _refused(error) from error
    faults = [problem for problem in problems if not problem.warning]
    if faults and not launcher.dry_run:
        raise RecipeError(problems)
    for problem in problems:
        print(problem, file=sys.stderr)
    if launcher.dry_run:
        print(text, end="")
        return 2 if faults else 0
    try:
        job = _hand_over(launcher, code, specs, text, name)
    except (OSError, SnapshotError) as error:
        raise _refused(error) from error
    for spec in specs:
        print(spec.folder)
    print(f"job {job}")
    return 0


def record(folder: Path, scheduler: str, job: str, file: Path) -> None:
    """Note in the run's folder that it was submitted: to what, as which job, from which file."""
    entry = {"time": time.time(), "scheduler": scheduler, "job": job, "file": str(file)}
    with (folder / SUBMISSIONS).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(entry) + "\n")


def submissions(folder: Path) -> list[dict[str, Any]]:
    """What was noted of the run in `folder`, oldest first."""
    file = folder / SUBMISSIONS
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def _hand_over(launcher: Launcher, code: Code, specs: Sequence[RunSpec], text: str, name: str) -> str:
    """Everything that leaves a trace, one submitter at a time. Raises `OSError` where a job of that name lives
    already.
    """
    jobs = SCHEDULERS[launcher.scheduler]
    with ExitStack() as locks:
        for spec in specs:
            locks.enter_context(locked(Path(spec.folder)))
        if (living := jobs.find(name)) is not None:
            raise OSError(f"{name} is submitted already, as job {living}; `python -m framework stop {name}` ends it")
        code.place(Path(specs[0].code))
        file = Path(specs[0].code).with_name(launcher.file)
        file.write_text(text, encoding="utf-8")
        for spec in specs:
            spec.save()
        job = jobs.submit(text)
        for number, spec in enumerate(specs):
            record(Path(spec.folder), launcher.scheduler, job if len(specs) == 1 else f"{job}_{number}", file)
        return job


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
    tree, _ = resolve(composition)
    folder = _folder(composition)
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
        environment=tuple({**efa, **{str(key): str(value) for key, value in launcher.variables.items()}}.items()),
        passed=tuple(sorted(variables_read(composition) - set(launcher.secrets))),
        secrets=tuple(launcher.secrets),
    )


def job_words(overrides: Sequence[str], folder: Path, devices: int) -> tuple[str, ...]:
    """The words that do inside of the job what `overrides` ask for: here, in `folder`, with all workers of a node."""
    kept = [word for word in overrides if not _LAUNCH_WORD.match(word)]
    return (*kept, "launch=local", f"run.folder='{folder}'", f"parallel.devices={devices}")


def variables_read(composition: Composition) -> set[str]:
    """The environment variables that are set here and that the recipe reads, launching apart."""
    texts = (str(value) for key, value in leaves(composition.raw) if key[0] != "launch" and isinstance(value, str))
    return {name for text in texts for name in _READ_VARIABLE.findall(text) if name in os.environ}


def _shared_folder(compositions: Sequence[Composition]) -> Path:
    """Where code and rendering lie: in the run's folder, of a sweep in the one that holds its runs' folders."""
    folder = _folder(compositions[0])
    return folder if len(compositions) == 1 else folder.parent


def _folder(composition: Composition) -> Path:
    tree, _ = resolve(composition)
    return Path(os.path.abspath(tree["run"]["folder"]))  # noqa: PTH100 - nothing of it need exist


def _refused(error: Exception) -> RecipeError:
    return RecipeError([Problem(COMMAND_LINE, "launch", line) for line in str(error).splitlines()])
