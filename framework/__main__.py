"""The command: run a recipe, or look at one (`check`, `show`, `diff`, `plan`)."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from framework.recipe.catalogue import Catalogue, purpose
from framework.recipe.problem import Origin, Problem, RecipeError
from framework.run.worker import follow_supervisor

if TYPE_CHECKING:
    from framework.recipe.composition import Composition

USAGE = """\
python -m framework recipe=NAME [key=value ...] [-m]     run the recipe's task; -m runs every combination of a=1,2 b=3,4
python -m framework VERB recipe=NAME [key=value ...]     only look:

  check   every problem of the recipe at once, each with file, line and key; exit code 2 if there is any
  show    the resolved tree, each value with the file or override that set it
  diff    what the recipe changes against its parent recipe or the base; against=OTHER compares with another recipe
  plan    parameters, tokens, FLOPs, hours and memory of each rank, on a CPU; nodes=4 gpus=8 device=H100 for a job there

python -m framework [VERB] run=FOLDER [key=value ...]   the same for the recipe that a run stored; no verb: resume it

python -m framework VERB [RUN ...]                       see to submitted runs: status, logs, stop, resume

scale=tiny makes any recipe a smoke run on a CPU. group=preset chooses a preset, key=value sets a value.
launch=slurm, pytorchjob or hyperpod submits the run and returns; launch.dry_run=true prints what would be submitted.
"""


def main(arguments: Sequence[str] | None = None, catalogue: Catalogue | None = None) -> int:
    """Do what the command line says, with the recipes of `catalogue`. Returns the exit code: 0, 1 when a run of a sweep
    failed, 2 when a recipe cannot run."""
    follow_supervisor()
    catalogue = catalogue or Catalogue()
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb = words.pop(0) if words and words[0] in (*VERBS, *RUN_VERBS) else None
    if (not words and verb is None) or {"-h", "--help"} & set(words):
        print(help_text(catalogue), end="")
        return 0 if words else 2
    many = [word for word in words if word in ("-m", "--multirun")]
    words = [word for word in words if word not in many]
    try:
        if verb in RUN_VERBS:
            return _see_to_runs(verb, words)
        if not any(word.startswith(("recipe=", "run=")) for word in words):
            known = ", ".join(catalogue.recipes())
            raise RecipeError([Problem(Origin("command line"), "recipe", f"recipe=NAME is needed; there are: {known}")])
        if verb is not None:
            return VERBS[verb](words, catalogue)
        return _sweep(words, catalogue) if many else _run(words, catalogue)
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 2


def help_text(catalogue: Catalogue) -> str:
    """How to call the command, and what there is to call it with."""
    recipes = catalogue.recipes()
    width = max(map(len, recipes), default=0)
    lines = [f"  {name:<{width}}  {purpose(file)}" for name, file in recipes.items()]
    groups = [f"  {group}: {', '.join(presets)}" for group, presets in catalogue.groups().items()]
    plugins = [f"  {plugin.name}" for plugin in catalogue.plugins()]
    parts = [
        ("Recipes", lines),
        ("Groups and their presets", groups),
        ("Plugins (plugins=[name] allows their targets)", plugins),
    ]
    return USAGE + "".join("\n".join([f"\n{title}:", *found, ""]) for title, found in parts if found)


def _sound(overrides: Sequence[str], catalogue: Catalogue) -> Composition:
    """The composed recipe. Its warnings are printed; its problems are raised, together."""
    from framework.recipe.check import check

    composition, problems = check(overrides, catalogue)
    faults = [problem for problem in problems if not problem.warning]
    for warning in problems if not faults else []:
        print(warning, file=sys.stderr)
    if faults or composition is None:
        raise RecipeError(problems)
    return composition


def _check(overrides: Sequence[str], catalogue: Catalogue) -> int:
    from framework.recipe.check import check

    composition, problems = check(overrides, catalogue)
    for problem in problems:
        print(problem)
    faults = sum(not problem.warning for problem in problems)
    if composition is not None:
        count = f"{faults} problem{'s' * (faults > 1)}" if faults else "no problems"
        print(f"{composition.recipe}: {count} in {len(composition.layers)} files")
    return 2 if faults else 0


def _show(overrides: Sequence[str], catalogue: Catalogue) -> int:
    from framework.recipe.show import show
    from framework.recipe.stored import from_command_line

    composition = from_command_line(overrides, catalogue)
    if composition.problems:
        raise RecipeError(composition.problems)
    print(show(composition), end="")
    return 0


def _diff(overrides: Sequence[str], catalogue: Catalogue) -> int:
    from framework.recipe.compose import compose
    from framework.recipe.show import diff, parent_of

    against = [word.partition("=")[2] for word in overrides if word.startswith("against=")]
    new = compose([word for word in overrides if not word.startswith("against=")], catalogue)
    base = against[-1] if against else parent_of(new)
    old = compose([f"recipe={base}" if base else "~recipe"], catalogue)
    print(f"# {new.recipe} against {base or 'the base (no recipe)'}")
    print(diff(old, new), end="")
    return 0


def _plan(overrides: Sequence[str], catalogue: Catalogue) -> int:
    job = dict(word.split("=", 1) for word in overrides if word.partition("=")[0] in JOB)
    composition = _sound([word for word in overrides if word.partition("=")[0] not in JOB], catalogue)

    from framework.training.planner.report import plan

    print(plan(composition, job))
    return 0


def _run(overrides: Sequence[str], catalogue: Catalogue) -> int:
    composition = _sound(overrides, catalogue)
    if _is_job(composition):
        from framework.launch.submit import submit

        return submit([composition])
    _run_task(composition)
    return 0


def _is_job(composition: Composition) -> bool:
    """Whether the recipe is to be submitted rather than run here."""
    return "_target_" in composition.config.get("launch", {})


def _run_task(composition: Composition) -> None:
    from framework.recipe.instantiate import instantiate
    from framework.run.folder import open_run

    with open_run(composition.tree, composition.provenance(), composition.overrides) as run:
        task = instantiate(composition)
        if not callable(getattr(task, "run", None)):
            message = f"{type(task).__name__} is not a task: it has no run(run)"
            raise RecipeError([Problem(composition.origin(("task", "_target_")), "task", message)])
        task.run(run)


def _sweep(overrides: Sequence[str], catalogue: Catalogue) -> int:
    """Check every run of the sweep, then run one after another; what failed is reported at the end."""
    from framework.recipe.compose import compose
    from framework.recipe.sweep import jobs

    runs = []
    for job in jobs(overrides):
        name = compose(job.overrides, catalogue).config.run.name
        runs.append(_sound((*job.overrides, f"run.name='{name}/{job.suffix}'"), catalogue))
    if runs and _is_job(runs[0]):
        from framework.launch.submit import submit

        return submit(runs)
    outcomes = {}
    for composition in runs:
        name = composition.config.run.name
        try:
            _run_task(composition)
            outcomes[name] = "finished"
        except Exception as error:  # its siblings run on; the outcome is printed below and in the exit code
            outcomes[name] = f"failed: {type(error).__name__}: {error}"
            traceback.print_exc()
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome}")
    return 0 if set(outcomes.values()) == {"finished"} else 1


def _see_to_runs(verb: str, runs: Sequence[str]) -> int:
    from framework.launch.runs import VERBS as DO

    try:
        return DO[verb](runs)
    except OSError as error:
        raise RecipeError([Problem(Origin("command line"), verb, str(error))]) from error


RUN_VERBS = ("status", "logs", "stop", "resume")
"""What `framework.launch.runs` does."""

JOB = ("nodes", "gpus", "device")
"""What `plan` takes beside overrides: where the job is to run."""

VERBS: dict[str, Callable[[Sequence[str], Catalogue], int]] = {
    "check": _check,
    "show": _show,
    "diff": _diff,
    "plan": _plan,
}


if __name__ == "__main__":
    sys.exit(main())
