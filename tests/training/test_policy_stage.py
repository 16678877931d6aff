"""A stage of reinforcement learning refuses what would never take effect."""

from __future__ import annotations

import pytest

from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.recipe.problem import RecipeError

OVERLONG = ["recipe=rl_dapo", "scale=tiny", "+rollout/shaping=overlong"]


def test_a_punishment_beyond_the_longest_answer_is_refused() -> None:
    instantiate(compose(OVERLONG))
    with pytest.raises(RecipeError, match=r"rewards.components.overlong: punishes answers of more than 100 tokens"):
        instantiate(compose([*OVERLONG, "rewards.components.overlong.limit=116"]))
