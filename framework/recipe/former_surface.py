"""Says what the lines of a recipe of the former surface become.

Until recipes had a `stage`, they placed presets by package (`/objective@curriculum.stages.rl.objective: dapo`), named
components' classes, and set the sizes that `scale=tiny` overrode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from framework.recipe.layers import key_lines
from framework.recipe.problem import Key, Origin, Problem, dotted

GROUPS = {
    "training/stage": "stage",
    "training/engine": "stage/sampler",
    "training/engine/transfer": "stage/sampler/transfer",
    "training/optimizer": "stage/optimizer",
    "training/continuation": "stage/continuation",
    "training/task": "task",
    "simulation/rewards": "rewards",
    "simulation/reward_terms": "rewards/terms",
    "simulation/dynamics": "simulator/dynamics",
    "simulation/traffic": "simulator/traffic",
    "model/action_codec": "codecs/action",
    "model/box_codec": "codecs/boxes",
    "objective/filter": "stage/filter",
    "objective/prompt_weights": "stage/prompt_weights",
}
"""Former group -> group."""
EVALS = {"simulated": "simulated_hard", "simulated_closed_loop": "closed_loop"}
"""Former preset of an eval -> eval."""
SIZES = {
    "train_scenes": "sources.world_train.scenes",
    "hard_scenes": "sources.world_hard.scenes",
    "policy_scenes": "sources.world_hard.scenes",
    "eval_scenes": "sources.world_held_out.scenes, sources.world_zero_shot.scenes",
    "simulated_scenes": "sources.world_hard_held_out.scenes",
    "eval_batch_size": "eval_defaults.batch_size",
    "detection_tokens": "eval_defaults.detect_tokens",
    "lidar_cells": "lidar_cells",
    "policy_batch": "stage.global_batch",
    "policy_lr": "stage.lr",
    "policy_temperature": "stage.objective.temperature",
    "tiny_batch": "data.global_batch, or stage.global_batch",
    "tiny_steps": "curriculum.max_steps_per_stage",
}
"""Former size -> the key that sets it."""
_CHOICE = re.compile(r"(?:override +)?/?(?P<group>[\w/]+)(?:@(?P<package>[\w.]+))?")


def former_lines(root: yaml.Node | None, name: str) -> Iterator[Problem]:
    """One problem for each line of the recipe `name` that is of the former surface, and what it becomes."""
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    for entry in (entry for key, value in pairs if key.value == "defaults" for entry in value.value):
        for key, value in entry.value if isinstance(entry, yaml.MappingNode) else []:
            becomes = _choice(key.value, value.value)
            if becomes:
                origin = Origin(name, entry.start_mark.line + 1)
                yield Problem(origin, f"defaults.{key.value}", f"{value.value}: {becomes}")
    for key, line in key_lines(root):
        becomes = _key(key)
        if becomes and key[0] != "defaults":
            yield Problem(Origin(name, line), dotted(key), becomes)


def _choice(written: str, preset: object) -> str | None:
    match = _CHOICE.fullmatch(written)
    if match is None:
        return None
    group, package = match["group"], match["package"]
    if group == "data/source" and package is not None:
        target = package.removesuffix(".source")
        if target.startswith("evals."):
            return "becomes part of the eval: '- override /evals: [NAME]'; change sources.NAME where it differs"
        return f"becomes 'stage: {{data: {{{target.rpartition('.')[2]}: {{source: \"${{sources.{preset}}}\"}}}}}}'"
    if group == "training/evals":
        names = {"evals.held_out": "held_out", "evals.zero_shot": "zero_shot", "evals.recordings": "recordings"}
        chosen = EVALS.get(str(preset)) or names.get(str(package), "NAME")
        return f"becomes '- override /evals: [{chosen}]', with all evals of the recipe in one list"
    if group == "simulation":
        return "becomes nothing: every recipe has the simulator; leave it out"
    new = GROUPS.get(group)
    if new is None and group.split("/")[0] == "objective":
        new = f"stage/{group}"
    return f"becomes '- override /{new}: {preset}'" if new else None


def _key(key: Key) -> str | None:
    if key[0] == "sizes":
        return f"becomes {SIZES.get(key[1], 'a value where it is used')}" if key[1:] else None
    if key == ("task", "init_from"):
        return "becomes init_from, at the root"
    if key[-1] == "_target_" and (key[0] == "curriculum" and (len(key) == 2 or "mixture" in key)):
        return "is left out: the preset has it"
    if key[:2] == ("curriculum", "stages") and len(key) == 3:
        return f"becomes 'stage', with 'name: {key[2]}', in a recipe of one stage; where recipes are listed it stays"
    if key[:2] == ("curriculum", "stages") and key[3:] == ("mixture",):
        return "becomes 'data', with the streams right below it"
    return None


def is_former(root: yaml.Node | None) -> bool:
    """Whether a recipe is of the former surface: it places a preset by package, or has sizes."""
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    for key, value in pairs:
        if key.value == "sizes":
            return True
        entries = value.value if key.value == "defaults" and isinstance(value, yaml.SequenceNode) else []
        for entry in entries:
            names = [name.value for name, _ in entry.value] if isinstance(entry, yaml.MappingNode) else []
            if any(re.search(r"^(override +)?/?(training|simulation|objective|data/source)\b", name) for name in names):
                return True
        if key.value == "task" and ("task", "init_from") in dict(key_lines(value, ("task",))):
            return True
    return False
