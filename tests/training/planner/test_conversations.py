"""`plan` knows the tokens of conversations, before and after their shards are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.data.sources.conversations import ConversationShards
from framework.data.stream.mixture import read_scenes
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.training.planner.batches import count_samples, sample_statistics
from framework.training.tasks.train import Train
from tests.dialogues import written_conversations


@pytest.mark.slow
def test_a_plan_counts_the_tokens_of_a_mixture(tmp_path: Path) -> None:
    talks = written_conversations(tmp_path / "talks", rows=30)
    words = [
        "recipe=sft_mixed", "scale=tiny", f"paths.conversations={talks}", f"paths.cache={tmp_path}", "evals=[]",
        "stage.data.recordings.source=${sources.world_train}", "sources.world_train.scenes=8",
        "sources.conversations.workers=1",
    ]  # fmt: skip
    train = instantiate(compose(words))
    assert isinstance(train, Train)
    mixture = next(train.curriculum.stage_ranges()).stage.mixture
    processor = train.model(special_tokens=train.data.special_tokens).processor
    source = mixture.parts["conversations"].source
    assert isinstance(source, ConversationShards)
    del mixture.parts["recordings"]
    planned, refused = count_samples(train.data, mixture, processor, steps=10)
    assert not (source.folder / "index.json").exists()
    renderer, task = train.data.renderer(processor), train.data.tasks["converse"]
    lengths = [len(renderer.render(s, task.conversation(s, "")).input_ids) for s in read_scenes(source)]
    written, _ = count_samples(train.data, mixture, processor, steps=10)
    for counted in (planned, written):
        statistics = sample_statistics(counted, refused)
        assert statistics.tokens == pytest.approx(sum(lengths) / len(lengths), rel=0.1)
        assert statistics.longest == max(lengths)
        assert statistics.patches > 0
