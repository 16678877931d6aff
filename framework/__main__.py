"""The command: runs a recipe, inspects one or its data, or manages submitted runs."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from framework.recipe.catalogue import Catalogue, purpose
from framework.recipe.credentials import mask_output
from framework.recipe.problem import Origin, Problem, RecipeError, nearest
from framework.run.allocation import leave_allocation
from framework.run.layout import TRIAL_FILE
from framework.run.worker import follow_supervisor
from framework.run.writer_lock import RunInUseError

if TYPE_CHECKING:
    from framework.recipe.composition import Composition

USAGE = """\
Run a recipe, inspect one, or manage submitted runs.

  python -m framework recipe=NAME [key=value ...]        run the recipe's task
  python -m framework recipe=NAME a=1,2 b=3,4 -m         run every combination, one after another
  python -m framework recipe=NAME a='interval(0,1)' hydra/sweeper=optuna -m    search hyperparameters, rank the trials;
                                                         launch=slurm hydra.sweeper.n_jobs=8: in job arrays
  python -m framework run=FOLDER [key=value ...]         resume a run with the recipe stored in its folder
  python -m framework VERB recipe=NAME [key=value ...]   inspect a recipe, or with run=FOLDER a stored one
  python -m framework VERB [RUN ...]                     manage submitted runs

Verbs that inspect a recipe:
  check    list every problem at once, each with file, line and key; exit code 2 if there is any; -m checks a sweep
  show     print the resolved tree, each value with the file and line, or the override, that set it
  diff     print what the recipe changes relative to its parent, or to against=OTHER (a recipe, or a run's folder)
  plan     print parameters, tokens, FLOPs, hours and memory per rank, computed on a CPU;
           nodes=4 gpus=8 device=H100 describe the cluster
  show-data
           write a page of samples of source=NAME as the model gets them, by the recipe's data (default: supervised's);
           scenes=24 page=FILE say how many and where; rrd=FILE writes a recording for Rerun, too

Verbs for submitted runs (RUN: a run's folder, or its name below outputs/runs):
  status   one line per run: job, state, attempts, step and loss
  logs     the last lines of each run's log
  stop     end the runs' jobs, after each has saved a checkpoint
  resume   submit the runs again, unchanged

Verbs for runs that were evaluated:
  compare  print how recipes differ, next to the newest figures with 95 % intervals, relative to the first RUN
  scaling  fit laws to the losses of RUNs of several sizes and lengths, and write a page (docs/scaling.md)

Verb for trained runs:
  serve    answer over HTTP with the model of run=RUN, or of an exported folder: chats with images, scenes, a page;
           port=8000 host=127.0.0.1 api_key_env=NAME batch_size=16 max_waiting=64 timeout_s=60 (docs/serving.md)
  drive    plan for AlpaSim with that model: --alpasim --port 50551 cameras=ALPASIM_NAME:NAME,...

Overrides:
  key=value sets a value; group=preset chooses a preset; scale=tiny makes any recipe a smoke run on a CPU.
  launch=slurm, pytorchjob or hyperpod submits the run and returns; launch.dry_run=true prints what would be submitted.
"""


def main(arguments: Sequence[str] | None = None, catalogue: Catalogue | None = None) -> int:
    """Run the command line `arguments`, with the recipes of `catalogue`.

    Returns the exit code: 0, 1 when a run of a sweep or a trial of a search failed, 2 when a recipe cannot run.
    """
    if arguments is None:  # a process of its own
        mask_output()
    follow_supervisor()
    leave_allocation()
    catalogue = catalogue or Catalogue()
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb = (
        words.pop(0)
        if words and words[0] in (*RECIPE_VERBS, *RUN_VERBS, COMPARE, SCALING, SHOW_DATA, *SERVING_VERBS)
        else None
    )
    if (not words and verb is None) or {"-h", "--help"} & set(words):
        print(help_text(catalogue), end="")
        return 0 if words else 2
    sweeps = bool({"-m", "--multirun"} & set(words))
    words = [word for word in words if word not in ("-m", "--multirun")]
    try:
        if verb == COMPARE:
            from framework.evaluation.compare import compare

            return compare(words, catalogue)
        if verb == SCALING:
            from framework.training.scaling import scaling

            return scaling(words)
        if verb in SERVING_VERBS:
            return _serve(verb, words)
        if verb in RUN_VERBS:
            return _manage_runs(verb, words)
        if verb == SHOW_DATA:
            return _show_data(words, catalogue)
        _refuse_bare_words(words, verb, catalogue)
        if not any(word.startswith(("recipe=", "run=")) for word in words):
            known = ", ".join(catalogue.recipes())
            message = f"recipe=NAME is needed; there are: {known}. or give run=FOLDER, the folder of a run"
            raise RecipeError([Problem(COMMAND, "recipe", message)])
        if verb == CHECK and sweeps:
            return _check_sweep(words, catalogue)
        if verb is not None:
            if sweeps:
                raise RecipeError([Problem(COMMAND, "-m", f"{verb} takes one recipe, no sweep: leave it out")])
            with _garbage_kept():
                return RECIPE_VERBS[verb](words, catalogue)
        if sweeps:
            from framework.launch.sweep import sweep

            return sweep(words, catalogue, _run_task)
        return _run(words, catalogue)
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 2
    except RunInUseError as error:
        print(error, file=sys.stderr)
        return 1  # unlike a faulty recipe, another try may succeed


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Look for no garbage: what inspects a recipe imports, parses and traces much, and ends. It takes up to a tenth of
    the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _refuse_bare_words(words: Sequence[str], verb: str | None, catalogue: Catalogue) -> None:
    """Raise `RecipeError` for words that are no `key=value`: a recipe without `recipe=`, a verb that does not exist."""
    verbs, recipes = [*RECIPE_VERBS, *RUN_VERBS, COMPARE, SCALING, SHOW_DATA, *SERVING_VERBS], catalogue.recipes()
    problems = []
    for position, word in enumerate(words):
        if "=" in word or word.startswith(("-", "~")):
            continue
        near = nearest(word, recipes if verb is not None or position else [*verbs, *recipes])
        if near in verbs:
            message = f"no such verb; there are: {', '.join(verbs)}"
        else:
            message, near = "a recipe is named by recipe=NAME, and a value set by key=value", near and f"recipe={near}"
        problems.append(Problem(COMMAND, word, message, near))
    if problems:
        raise RecipeError(problems)


def help_text(catalogue: Catalogue) -> str:
    """How to call the command, and the recipes, presets and plugins to call it with."""
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
    return USAGE + "".join("\n".join([f"\n{title}:", *entries, ""]) for title, entries in parts if entries)


def _check(overrides: Sequence[str], catalogue: Catalogue) -> int:
    from framework.launch.resumption import resumption_problems, weights_problems
    from framework.recipe.check import check

    composition, findings = check(overrides, catalogue)
    if composition is not None and all(finding.warning for finding in findings):
        findings = [*findings, *resumption_problems(composition), *weights_problems(composition, warning=True)]
    for finding in findings:
        print(finding)
    count = sum(not finding.warning for finding in findings)
    if composition is not None:
        problems, files = (
            _plural(count, "problem") if count else "no problems",
            len({each.file for each in composition.layers}),
        )
        if composition.scale_note and not count:
            print(composition.scale_note)
        print(f"{composition.recipe}: {problems} ({_plural(files, 'file')} composed)")
    return 2 if count else 0


def _check_sweep(words: Sequence[str], catalogue: Catalogue) -> int:
    """Check every run of a sweep, or what a search's trials share and the ends of its space."""
    from framework.launch.sweep import check_sweep

    try:
        print(check_sweep(words, catalogue))
    except RecipeError as error:
        print(error)
        return 2
    return 0


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _show(overrides: Sequence[str], catalogue: Catalogue) -> int:
    from framework.recipe.show import show
    from framework.recipe.stored import from_command_line

    composition = from_command_line(overrides, catalogue)
    if composition.faults:
        raise RecipeError(composition.faults)
    if composition.scale_note:
        print(f"# {composition.scale_note}")
    print(show(composition), end="")
    return 0


def _diff(words: Sequence[str], catalogue: Catalogue) -> int:
    from framework.recipe.show import compared, diff

    title, old, new = compared(words, catalogue)
    print(f"# {new.recipe} against {title}")
    print(diff(old, new) or "no difference\n", end="")
    return 0


def _plan(words: Sequence[str], catalogue: Catalogue) -> int:
    job = dict(word.split("=", 1) for word in words if word.partition("=")[0] in PLAN_KEYS)
    overrides = [word for word in words if word.partition("=")[0] not in PLAN_KEYS]
    from framework.recipe.check import checked

    composition = checked(overrides, catalogue)

    from framework.training.planner.report import plan

    print(plan(composition, job))
    return 0


def _show_data(words: Sequence[str], catalogue: Catalogue) -> int:
    from framework.recipe.stored import from_command_line
    from framework.training.show_data import SCENES, show_data

    given = dict(word.split("=", 1) for word in words if word.partition("=")[0] in DATA_KEYS)
    overrides = [word for word in words if word.partition("=")[0] not in DATA_KEYS]
    if not any(word.startswith(("recipe=", "run=")) for word in overrides):
        overrides += ["recipe=supervised", "data/tasks=[all,converse]"]
    if "source" not in given:
        raise RecipeError([Problem(COMMAND, "source", "source=NAME is needed: one of the recipe's sources")])
    scenes = given.get("scenes", str(SCENES))
    if not scenes.isdecimal() or scenes == "0":
        raise RecipeError([Problem(COMMAND, "scenes", f"{scenes}: give a number of scenes, 1 or more")])
    page = Path(given.get("page", f"outputs/data/{given['source']}.html"))
    composition = from_command_line(overrides, catalogue)
    rrd = Path(given["rrd"]) if "rrd" in given else None
    print(show_data(composition, given["source"], int(scenes), page, rrd))
    return 0


def _run(overrides: Sequence[str], catalogue: Catalogue) -> int:
    from framework.recipe.check import checked

    composition = checked(overrides, catalogue)
    if composition.is_submitted:
        from framework.launch.submit import submit

        return submit([composition])
    _run_task(composition)
    return 0


def _run_task(composition: Composition) -> None:
    from framework.launch.local_ranks import local_ranks, wanted_ranks
    from framework.launch.resumption import refuse_start
    from framework.recipe.instantiate import instantiate
    from framework.run.console import show_rows, show_title
    from framework.run.folder import open_run
    from framework.run.logs import set_up_logging, take_over_lightning

    set_up_logging()
    file = composition.catalogue.recipes().get(composition.recipe or "")
    show_title(composition.tree["run"]["name"], purpose(file) if file else "")
    refuse_start(composition)
    folder = Path(composition.tree["run"]["folder"])
    with (
        local_ranks(composition.overrides, wanted_ranks(composition.tree), folder),
        open_run(composition.tree, composition.provenance(), composition.overrides) as run,
    ):
        shown = (f"recipe={composition.recipe}", "run.name=")
        words = " ".join(word for word in composition.overrides if not word.startswith(shown))
        show_rows({"recipe": f"{composition.recipe or 'stored in the folder'}{' with ' + words if words else ''}"})
        if composition.scale_note:
            show_rows({"scale": composition.scale_note.removeprefix("scale=")})
        show_rows({"folder": f"{run.path}, attempt {run.attempt}"})
        task = instantiate(composition)
        take_over_lightning()
        if not callable(getattr(task, "run", None)):
            message = f"{type(task).__name__} is not a task: it has no run(run)"
            raise RecipeError([Problem(composition.origin(("task", "_target_")), "task", message)])
        if (run.path / TRIAL_FILE).is_file():
            from framework.launch.trial_job import reporting_to_study

            with reporting_to_study(run.path, run.attempt):
                task.run(run)
        else:
            task.run(run)


def _manage_runs(verb: str, runs: Sequence[str]) -> int:
    from framework.launch.runs import VERBS

    try:
        return VERBS[verb](runs)
    except OSError as error:
        raise RecipeError([Problem(COMMAND, verb, str(error))]) from error


def _serve(verb: str, words: Sequence[str]) -> int:
    module, extra = SERVING_VERBS[verb]
    try:
        run: Callable[[Sequence[str]], int] = getattr(import_module(module), verb)
    except ModuleNotFoundError as error:
        message = f"needs the package {error.name}; install the extra: pip install 'framework[{extra}]'"
        raise RecipeError([Problem(COMMAND, verb, message)]) from error
    try:
        return run(words)
    except OSError as error:
        raise RecipeError([Problem(COMMAND, verb, str(error))]) from error


COMMAND = Origin("command line")

RUN_VERBS = ("status", "logs", "stop", "resume")
"""The verbs of `framework.launch.runs`."""

COMPARE = "compare"
SCALING = "scaling"
"""The verb of `framework.evaluation.compare`."""

PLAN_KEYS = ("nodes", "gpus", "device")
"""The arguments of `plan` in addition to overrides: the cluster."""

SHOW_DATA = "show-data"
"""The verb of `framework.training.show_data`."""

SERVING_VERBS = {"serve": ("framework.serving.serve", "serve"), "drive": ("framework.serving.drive", "alpasim")}
"""The verbs that serve a run's model: the module whose function of that name runs it, and its extra."""

DATA_KEYS = ("source", "scenes", "page", "rrd")
"""The arguments of `show-data` in addition to overrides."""

CHECK = "check"
RECIPE_VERBS: dict[str, Callable[[Sequence[str], Catalogue], int]] = {
    CHECK: _check,
    "show": _show,
    "diff": _diff,
    "plan": _plan,
}


if __name__ == "__main__":
    code = main()
    if RECIPE_VERBS.keys() & sys.argv[1:2]:  # tearing down what was parsed and imported takes another second or two
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
