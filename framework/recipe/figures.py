"""The figures that a search can optimise: EVAL/SECTION/METRIC, checked before any trial runs.

Evaluators import torch, which a check does not; so their sections and metrics are named here once more, and a test
holds these names against what the evaluators compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from framework.recipe.composition import Composition
from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Problem, nearest

KEY = "search_metric"
EVALUATORS = "framework.training.evaluators."
"""Where the evaluators are whose figures are known; another's may have any."""
SIMULATION, LOSS = "simulation", "loss"
_EVERY = ("parse_failure", "fault/*", "left_out", "repeated")
_DRIVING = (
    "ade", "fde", "min_ade", "miss", "collision", "off_road", "comfortable", "max_longitudinal_acceleration",
    "max_lateral_acceleration", "max_jerk", "max_longitudinal_jerk", "max_yaw_rate", "max_yaw_acceleration", "scenes",
)  # fmt: skip
FIGURES: dict[str, tuple[str, ...]] = {
    "drive": (*_DRIVING, *_EVERY),
    "reason": (*_DRIVING, *_EVERY),
    "detect": ("nds", "map", "map_present", "map_present/*", "*_error", "*_error/*", "ap/*", "scenes", *_EVERY),
    "answer": ("accuracy", "accuracy/*", "questions", *_EVERY),
    "caption": ("word_f1", "scenes", *_EVERY),
    SIMULATION: (
        "planning_score", "reward", "reward_failure", "collision", "at_fault_collision", "off_road", "red_light",
        "close_call", "progress", "comfortable", "speed_compliance", "scene_score", "scenes", *_EVERY,
    ),
    LOSS: ("loss", "token_accuracy", "scenes", "left_out"),
}  # fmt: skip
"""By section of an evaluation the names, or patterns of names, of its metrics."""


def metric_problems(composition: Composition) -> Iterator[Problem]:
    """What is wrong with the metric that a search would optimise. Its eval may be dropped later than it was set, by a
    derived recipe or the command line: that matters to a search alone, which asks again.
    """
    metric = composition.tree.get(KEY)
    task = composition.tree.get("task")
    evals = task.get("evals") if isinstance(task, Mapping) else None
    if not isinstance(metric, str) or not isinstance(evals, Mapping):
        return
    origin = composition.origin((KEY,))
    name, _, rest = metric.partition("/")
    section, _, figure = rest.partition("/")
    if not figure:
        yield Problem(origin, KEY, f"{metric} is no EVAL/SECTION/METRIC, such as held_out/drive/ade")
    elif name not in evals:
        own = {layer.name for layer in composition.layers if layer.config_path == f"recipe/{composition.recipe}"}
        dropped = origin != COMMAND_LINE and any(word.startswith("evals=") for word in composition.overrides)
        if origin.file in (COMMAND_LINE.file, *own) and not dropped:
            known = composition.catalogue.groups().get("evals", ())
            message, near = f"there is no eval {name}", nearest(name, [*evals, *known])
            if name in known:
                near, listed = None, ",".join([*evals, name])
                add = f"evals=[{listed}]" if origin == COMMAND_LINE else f"'- override /evals: [{listed}]'"
                message = f"the recipe does not choose the eval {name}; add {add}"
            yield Problem(origin, KEY, message, near)
    elif sections := _sections(evals[name]):
        if section not in sections:
            message = f"{name} has no section {section}; it has {', '.join(sections)}"
            yield Problem(origin, KEY, message, nearest(section, sections))
        elif not any(fnmatchcase(figure, known) for known in FIGURES[section]):
            message = f"section {section} has no metric {figure}; it has {', '.join(FIGURES[section])}"
            yield Problem(origin, KEY, message, nearest(figure, FIGURES[section]))


def _sections(evaluator: Any) -> list[str]:
    """The sections of an eval; none where they cannot be known."""
    target = evaluator.get("_target_") if isinstance(evaluator, Mapping) else None
    if not isinstance(target, str) or not target.startswith(EVALUATORS):
        return []
    if target.endswith(".LossEvaluator"):
        return [LOSS]
    tasks = evaluator.get("tasks", (SIMULATION,))
    return [str(task) for task in tasks] if all(task in FIGURES for task in tasks) else []
