"""Every preset of conf/stage/objective composes, names an allowed target and is what its name says."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue

from framework.objective.advantages import GroupRelative, LeaveOneOut, MeanCentered
from framework.objective.aggregation import ConstantLength, SequenceMean, TokenMean
from framework.objective.kl import KLPenalty
from framework.objective.policy import PolicyObjective
from framework.objective.policy_loss import CISPO, GSPO, PPOClip, Reinforce
from framework.recipe.allow import verify
from tests.objective.presets import PRESETS, composed, preset

FILES = sorted(str(file.relative_to(PRESETS).with_suffix("")) for file in PRESETS.rglob("*.yaml"))
NO_OBJECTIVE = {"policy"}
"""What the objectives share."""
SUPERVISED = {"cross_entropy"}
OFF = {"kl/none", "correction/none"}
"""Presets of parts that are off."""
LENGTH = {
    "dr_grpo": ["stage.objective.aggregation.length=8"],
    "aggregation/constant_length": ["stage.objective.aggregation.length=8"],
}
"""What a recipe must say."""

WHOLE = {
    "grpo": (GroupRelative, PPOClip(0.2, 0.2), SequenceMean(), KLPenalty(0.04, "k3", "loss")),
    "dapo": (GroupRelative, PPOClip(0.2, 0.28, dual=10.0), TokenMean(), None),
    "dr_grpo": (MeanCentered, PPOClip(0.2, 0.2), ConstantLength(8), None),
    "gspo": (GroupRelative, GSPO(3e-4, 4e-4), SequenceMean(), None),
    "cispo": (GroupRelative, CISPO(high=4.0), TokenMean(), None),
    "rloo": (LeaveOneOut, Reinforce(), ConstantLength(1), None),
}
"""Advantages, loss, aggregation and divergence of each paper."""


def targets(values: Any) -> list[str]:
    if not isinstance(values, DictConfig):
        return []
    inner = [name for key in values for name in targets(values._get_node(key))]
    return [values["_target_"], *inner] if "_target_" in values else inner


@pytest.mark.parametrize("name", [name for name in FILES if name not in NO_OBJECTIVE | OFF])
def test_every_preset_is_made(name: str) -> None:
    overrides = LENGTH.get(name, [])
    values = composed(name, *overrides)
    assert type(preset(name, *overrides)) is verify(values["_target_"], [])
    assert all(verify(target, []) for target in targets(values))


@pytest.mark.parametrize("name", WHOLE)
def test_every_objective_is_its_papers(name: str) -> None:
    objective = preset(name, *LENGTH.get(name, []))
    assert isinstance(objective, PolicyObjective)
    advantages, loss, aggregation, kl = WHOLE[name]
    assert isinstance(objective.advantages, advantages)
    assert (objective.loss, objective.aggregation, objective.kl) == (loss, aggregation, kl)
    assert objective.needs_reference == (kl is not None)


def test_no_objective_is_forgotten_above() -> None:
    assert WHOLE.keys() == {name for name in FILES if "/" not in name} - NO_OBJECTIVE - SUPERVISED


def test_a_constant_length_must_be_given() -> None:
    with pytest.raises(MissingMandatoryValue, match=r"objective\.aggregation\.length"):
        preset("dr_grpo")
