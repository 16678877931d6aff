"""The tiny recipe's task of reinforcement learning, and the groups of one step, once a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from framework.data.stream.batcher import PromptBatcher
from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.training.rl.rollout import RolloutGroup
from tests.training.rl.policy_setting import ANSWERS, GROUPS, Setting, collect


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder, rl = tmp_path_factory.mktemp("policy"), "curriculum.stages.rl"
    words = [
        "recipe=rl_dapo", "scale=tiny", f"stage.global_batch={GROUPS}", "sources.world_hard.scenes=24",
        f"paths.cache={folder}", f"paths.runs={folder}",
        f"{rl}.group_size={ANSWERS}", f"{rl}.max_new_tokens=48", "stage/prompt_weights=none",
        f"+{rl}.mixture.parts.hard.tasks.reason=1.0", f"{rl}.mixture.parts.hard.source.workers=1",
    ]  # fmt: skip
    train = instantiate(compose(words, Catalogue()))
    torch.manual_seed(0)
    model = train.model(special_tokens=train.data.special_tokens)
    stage = next(train.curriculum.stage_ranges()).stage
    loader = stage.pipeline(train.data).loader(
        stage.mixture,
        model.processor,
        stage="rl",
        samples=100,
        seed=0,
        folder=folder,
        is_writer=False,
        batcher=PromptBatcher(),
    )
    yield Setting(train, model, stage, loader, folder)
    loader.close()


@pytest.fixture(scope="module")
def groups(setting: Setting) -> list[RolloutGroup]:
    """Answers of very different lengths: some cut, some with reasons, some without."""
    groups = collect(setting.collector(filter=None), 0).groups
    lengths = {len(rollout.tokens) for group in groups for rollout in group.rollouts}
    assert len(groups) == GROUPS
    assert len(lengths) > 1
    return groups
