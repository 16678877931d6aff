"""The numeric sweep: each number of each component is set to values that cannot be meant, and is refused or works."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra.utils
import pytest
import yaml
from omegaconf import OmegaConf

from framework.recipe.annotation import misfit
from framework.recipe.constructor import refusal
from framework.recipe.reference import components, numbers
from framework.recipe.resolve import resolve
from framework.recipe.signature import Located, locate, signature

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
VALUES = (math.nan, math.inf, -math.inf, -1, 0, 1e30, 10**30, 1.5)
GIVEN = {"hidden": 64, "tokens": 16}
"""Arguments that encoders get from the model."""
OTHERS: dict[str, dict[str, Any]] = {
    "framework.training.tasks.evaluate.Evaluate": {"run": "outputs/runs/a"},
    "framework.objective.policy_loss.CISPO": {"high": 4.0},
    "framework.objective.policy_loss.GSPO": {"low": 3e-4, "high": 4e-4},
    "framework.scene.world.rig.CameraMount": {
        "name": "front", "width": 64, "height": 32, "field_of_view": 1.0, "yaw": 0.0},
}  # fmt: skip
"""Arguments that no golden recipe gives."""


def golden_components() -> dict[str, dict[str, Any]]:
    """A component of each target of the golden recipes, with its arguments."""
    nodes: dict[str, dict[str, Any]] = {}

    def collect(value: Any) -> None:
        if isinstance(value, dict) and "_target_" in value:
            nodes.setdefault(value["_target_"], value)
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            collect(each)

    for file in sorted(GOLDEN.glob("*.yaml")):
        collect(resolve(OmegaConf.create(yaml.load(file.read_text(), yaml.CSafeLoader)))[0])
    return nodes


def slots() -> Iterator[tuple[Located, str]]:
    for each in components():
        for argument in signature(each).parameters.values():
            if list(numbers(argument.annotation, argument.source)):
                yield each, argument.name


def construct(target: str, arguments: dict[str, Any], nodes: dict[str, dict[str, Any]]) -> Any:
    """The component with `arguments` set; None for one that needs objects that no recipe describes, or a plugin's extra
    packages.
    """
    if not target.startswith("framework."):
        return None
    node = copy.deepcopy(nodes.get(target, {"_target_": target})) | OTHERS.get(target, {}) | arguments
    takes = signature(locate(target)).parameters
    required = {name for name, each in takes.items() if each.required and name not in node}
    node.pop("_partial_", None)
    if required - GIVEN.keys():
        return None
    return hydra.utils.instantiate(node | {name: GIVEN[name] for name in required}, _convert_="all")


@pytest.mark.slow
def test_each_number_is_refused_or_works() -> None:
    nodes = golden_components()
    tried = refused = constructed = 0
    crashes: list[str] = []
    for located, name in slots():
        argument = signature(located).parameters[name]
        target = f"{located.module}.{located.qualname}"
        for value in VALUES:
            tried += 1
            given = {key: each for key, each in (nodes.get(target) or {}).items() if not key.startswith("_")}
            if misfit(value, argument.annotation, argument.source) or refusal(located, given | {name: value}):
                refused += 1
                continue
            try:
                constructed += construct(target, {name: value}, nodes) is not None
            except Exception as error:  # any: the sweep lists all of them
                crashes.append(f"{target}({name}={value}): {error.__cause__ or error}")
    counts = f"{refused} refused, {constructed} constructed, {len(crashes)} crashed"
    print(f"{tried} values in {tried // len(VALUES)} slots: {counts}")
    assert not crashes, "\n".join(crashes)
    assert tried > 1600
    assert constructed > 50
