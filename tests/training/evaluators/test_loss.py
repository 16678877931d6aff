"""The loss on held-out conversations is that of all tokens, whatever the number of scenes per call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from framework.data.pipeline import DataPipeline
from framework.data.render.tasks import Caption, Converse
from framework.data.shards.writer import Work, write_shards
from framework.data.stream.mixture import Shards
from framework.evaluation.results import LOSS, MODEL
from framework.evaluation.table import results_table
from framework.parallel.mesh import DataRank
from framework.scene.batch import IGNORE_INDEX
from framework.scene.types import Scene, SceneError
from framework.scene.world.generate import generate_scene
from framework.training.evaluators.loss import LossEvaluator
from tests.dialogues import dialogue, picture, scene_of
from tests.parallel.tiny import build

TALKS = [
    scene_of(
        dialogue(("user", f"What is {n}?"), ("assistant", f"It is {n}. " * n), ("user", "?"), ("assistant", "!")),
        f"talk-{n}",
    )
    for n in range(1, 5)
]
TALKS.append(scene_of(dialogue(("user", [picture(1), "What is it?"]), ("assistant", "Noise.")), "seen"))


def _same(scene: Scene) -> Sequence[Scene]:
    return [scene]


@pytest.fixture
def source(tmp_path: Path) -> Shards:
    """Conversations, one of which holds a control token, and a scene that is none."""
    odd = scene_of(dialogue(("user", "Hi."), ("assistant", "<|im_start|>")), "odd")
    scenes = [*TALKS, odd, generate_scene(0, "straight", rig=None)]
    write_shards(Work(scenes, _same), tmp_path / "talks", quiet=True)
    return Shards(local=tmp_path / "talks")


def pipeline() -> DataPipeline:
    return DataPipeline({"converse": Converse(), "caption": Caption()}, {}, 8, 8, 1 << 12)


def test_every_token_weighs_the_same(source: Shards) -> None:
    model, data = build(), pipeline()
    renderer, total, right, tokens = data.renderer(model.processor), 0.0, 0, 0
    for scene in TALKS:
        rendered = renderer.render(scene, Converse().conversation(scene, ""))
        row: Any = {"input_ids": rendered.input_ids[None], "attention_mask": torch.ones_like(rendered.input_ids)[None],
                    "mm_token_type_ids": (rendered.input_ids == renderer.special_ids.image).long()[None],
                    **rendered.media}  # fmt: skip
        with torch.no_grad():
            logits = model.head(model(row))[0, :-1]
        targets = rendered.labels[1:]
        total += float(F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum"))
        right += int((logits.argmax(-1) == targets).sum())
        tokens += int((targets != IGNORE_INDEX).sum())
    for batch_size in (1, 3, 8):
        results, examples = LossEvaluator(source, batch_size=batch_size).evaluate(model, data, DataRank())
        found = {name: sliced["all"] for name, sliced in results[LOSS][MODEL].items()}
        assert examples == []
        assert found["loss"] == pytest.approx(total / tokens, rel=1e-5)
        assert found["token_accuracy"] == pytest.approx(right / tokens)
        assert (found["scenes"], found["left_out"]) == (len(TALKS), 1)
        assert found["loss"] < 2 * math.log(model.vocabulary)
    assert model.training
    assert "Expected answers, talks" in results_table({"sft": {"talks": results}})


def test_ranks_share_the_scenes(source: Shards) -> None:
    model, data, evaluator = build(), pipeline(), LossEvaluator(source)
    parts = [evaluator.evaluate(model, data, DataRank(rank, 2))[0][LOSS][MODEL] for rank in range(2)]
    assert sum(part["scenes"]["all"] for part in parts) == len(TALKS)


def test_a_dry_run_tells_what_cannot_be_rendered(source: Shards) -> None:
    model, data = build(), pipeline()
    LossEvaluator(source).dry_run(data, model.processor)
    with pytest.raises(ValueError, match=r"task talk: is none of data\.tasks; there are: converse, caption"):
        LossEvaluator(source, task="talk").dry_run(data, model.processor)


def test_a_dry_run_passes_when_any_of_the_first_scenes_can_be_rendered(tmp_path: Path) -> None:
    model, data = build(), pipeline()
    odd = [scene_of(dialogue(("user", "Hi."), ("assistant", "<|im_start|>")), f"odd-{n}") for n in range(3)]
    sets = {"some": [*odd, TALKS[0]], "none": odd, "others": [generate_scene(0, "straight", rig=None)]}
    for name, scenes in sets.items():
        write_shards(Work(scenes, _same), tmp_path / name, quiet=True)
    LossEvaluator(Shards(local=tmp_path / "some")).dry_run(data, model.processor)
    with pytest.raises(SceneError, match=r"<\|im_start\|>"):
        LossEvaluator(Shards(local=tmp_path / "none")).dry_run(data, model.processor)
    with pytest.raises(ValueError, match=rf"task converse: none of the first scenes of source {tmp_path}/others"):
        LossEvaluator(Shards(local=tmp_path / "others")).dry_run(data, model.processor)
