"""A stage of reinforcement learning refuses what would never take effect."""

from __future__ import annotations

import pytest

from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.recipe.problem import RecipeError

OVERLONG = ["recipe=rl_dapo", "scale=tiny", "rewards/terms=overlong"]


def test_the_punishment_of_length_ends_at_the_longest_answer() -> None:
    train = instantiate(compose([*OVERLONG, "curriculum.stages.rl.max_new_tokens=128"]))
    part = train.curriculum.stages["rl"].rewards.components["overlong"]
    assert (part.limit, part.buffer) == (128, 16)


@pytest.mark.parametrize("limit", [48, 116])
def test_a_punishment_that_ends_elsewhere_is_refused(limit: int) -> None:
    with pytest.raises(RecipeError, match=rf"rewards.components.overlong.limit: .*: {limit} tokens.*allows 64"):
        instantiate(compose([*OVERLONG, f"rewards.components.overlong.limit={limit}"]))


def test_episodes_are_not_driven_on_a_second_time() -> None:
    words = ["recipe=rl_dapo_closed_loop", "scale=tiny", "stage/continuation=closed_loop"]
    with pytest.raises(RecipeError, match=r"stage.continuation: the answers .* are driven on"):
        instantiate(compose(words))
