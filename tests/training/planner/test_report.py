"""The plan counts what the model that trains really has, before there is one."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from framework.data.sources.recordings import RecordingShards
from framework.data.sources.world import WorldShards
from framework.data.stream.batcher import MicroBatcher
from framework.data.stream.mixture import Mixture, Part, Source
from framework.model.backbone import RandomBackbone
from framework.model.language_action import LanguageActionModel
from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.composition import Composition
from framework.recipe.instantiate import instantiate
from framework.recipe.problem import RecipeError
from framework.scene.types import SceneError
from framework.scene.world.generate import generate_scene
from framework.training.planner.batches import count_samples, sample_statistics
from framework.training.planner.report import plan
from tests.data.sources.datasets import EVERY
from tests.model.presets import preset

RECIPES = ("demo", "supervised")


def _composed(recipe: str, *overrides: str) -> Composition:
    return compose([f"recipe={recipe}", "scale=tiny", *overrides], Catalogue())


def _built(composition: Composition) -> LanguageActionModel:
    """The model itself, with real weights and the real tokenizer's words."""
    task = instantiate(composition)
    model: LanguageActionModel = task.model(special_tokens=task.data.special_tokens)
    return model


def _numbers(module: nn.Module) -> int:
    """Numbers in the memory that the parameters take, by any of their names: tied ones lie in the same place."""
    places = {p.data_ptr(): p.untyped_storage().nbytes() for _, p in module.named_parameters(remove_duplicate=False)}
    return sum(places.values()) // 4


def _figures(text: str) -> dict[str, list[float]]:
    """The first number of each line, by the words before it: one for each stage that says it."""
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        if match := re.match(r"\s*(.+?)\s{2,}([\d,.]+(?:e[+-]\d+)?)", line):
            found.setdefault(match[1], []).append(float(match[2].replace(",", "")))
    return found


def _held(text: str) -> dict[str, list[float]]:
    """The figures of what a rank holds between steps, in GiB, without those of the moment that needs most."""
    parts = re.findall(r"a rank's memory:\n(.*?)  at the peak", text, flags=re.DOTALL)
    return _figures("".join(parts))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_parameters_are_those_of_the_model_itself(recipe: str) -> None:
    composition = _composed(recipe)
    figures, model = _figures(plan(composition)), _built(composition)
    assert figures["parameters"] == [_numbers(model)]
    assert figures["vision tower"] == [_numbers(model.backbone.model.visual)]
    assert {name for name in figures if name.endswith(" encoder")} == {f"{name} encoder" for name in model.encoders}
    for name, encoder in model.encoders.items():
        assert figures[f"{name} encoder"] == [_numbers(encoder)]


@pytest.mark.slow
def test_the_language_model_is_what_its_architecture_comes_to() -> None:
    text: dict[str, Any] = preset("model/backbone/tiny.yaml")["architecture"]["text"]
    width, head = text["hidden_size"], text["head_dim"]
    heads, shared = text["num_attention_heads"], text["num_key_value_heads"]
    attention = width * head * (heads + 2 * shared) + heads * head * width + 2 * head
    block = attention + 3 * width * text["intermediate_size"] + 2 * width
    expected = text["vocab_size"] * width + text["num_hidden_layers"] * block + width
    assert _figures(plan(_composed("demo")))["language model"] == [expected]


@pytest.mark.slow
def test_what_a_stage_freezes_does_not_train_and_needs_no_memory_for_it() -> None:
    composition = _composed("supervised", "curriculum.stages.quality.trainable=['encoders.*','!encoders.lidar.*']")
    text, model = plan(composition), _built(composition)
    figures, held = _figures(text), _held(text)
    trained = sum(_numbers(encoder) for name, encoder in model.encoders.items() if name != "lidar")
    assert figures["trainable"] == [_numbers(model), trained]
    for name, bytes_each in (("gradients", 4), ("optimizer", 8)):
        wanted = [bytes_each * count / 2**30 for count in figures["trainable"]]
        assert held[name] == pytest.approx(wanted, abs=5e-4)
    assert held["weights"] == pytest.approx([4 * _numbers(model) / 2**30] * 2, abs=5e-4)


@pytest.mark.slow
def test_steps_and_samples_follow_the_recipe() -> None:
    small = ("curriculum.max_steps_per_stage=3", "data.global_batch=6", "data.micro_batch=2")
    text = plan(_composed("demo", *small, "~curriculum.stages.rl"))
    figures = _figures(text)
    assert figures["steps"] == [3, 3]
    assert figures["samples"] == [18, 18]
    assert figures["tokens"] == pytest.approx([18 * tokens for tokens in figures["tokens a sample"]], rel=0.01)
    assert figures["FLOPs"] == pytest.approx([3 * flops for flops in figures["FLOPs a step"]], rel=2e-3)
    assert [line for line in text.splitlines() if line.startswith("stage ")] == ["stage broad", "stage quality"]


@pytest.mark.slow
def test_a_stage_may_have_a_batch_of_its_own() -> None:
    own = ["curriculum.stages.quality.global_batch=12", "curriculum.stages.quality.micro_batch=3"]
    data = ["curriculum.max_steps_per_stage=3", "data.global_batch=6", "data.pack=null"]
    text = plan(_composed("supervised", *data, *own))
    assert _figures(text)["samples"] == [18, 36]
    assert re.findall(r"a rank's step: (\d+) micro-batch\w* of (\d+) x", text) == [("1", "6"), ("4", "3")]


@pytest.mark.slow
def test_the_curriculums_last_stage_has_the_batch_of_its_recipe() -> None:
    train, alone = (instantiate(compose([f"recipe={recipe}"], Catalogue())) for recipe in ("curriculum", "rl_dapo"))
    batches = {name: stage.pipeline(train.data).global_batch for name, stage in train.curriculum.stages.items()}
    assert batches == {"broad": 256, "quality": 256, "rl": 128}
    assert alone.curriculum.stages["rl"].pipeline(alone.data).global_batch == batches["rl"]


@pytest.mark.slow
def test_lengths_are_means_over_all_streams_weighted_by_share_and_task() -> None:
    """Against the scenes themselves, with their images, rendered as training renders them."""
    train = instantiate(_composed("demo"))
    processor = RandomBackbone({}).processor(train.data.special_tokens)
    renderer, tasks = train.data.renderer(processor), {"caption": 0.25, "drive": 0.75}
    parts = {
        "easy": Part(WorldShards("unused", 6, 3), tasks, 1.0),
        "hard": Part(WorldShards("unused", 4, 9), tasks, 3.0),
    }
    length = learned = 0.0
    for share, part in zip((0.25, 0.75), parts.values(), strict=True):
        assert isinstance(part.source, WorldShards)
        for index in range(part.source.scenes):
            scene = generate_scene(part.source.seed + index, part.source.kinds[index])
            for name, weight in tasks.items():
                rendered = renderer.render(scene, train.data.tasks[name].conversation(scene, "plan"))
                weight *= share / part.source.scenes
                length += weight * len(rendered.input_ids)
                learned += weight * int((rendered.labels >= 0).sum())
    size = sample_statistics(count_samples(train.data, Mixture(parts), processor, steps=4)[0])
    assert size.tokens == pytest.approx(length)
    assert size.supervised == pytest.approx(learned)


@pytest.mark.slow
def test_planned_tokens_a_step_are_those_that_are_trained_on_the_built_in_world(tmp_path: Path) -> None:
    planned, trained = _tokens_a_step(WorldShards(str(tmp_path / "cache"), 64, 3, workers=1), tmp_path)
    assert planned == pytest.approx(trained, rel=0.05)


@pytest.mark.slow
def test_planned_tokens_a_step_are_those_that_are_trained_on_recordings(recordings: Path, tmp_path: Path) -> None:
    source = RecordingShards(recordings, str(tmp_path / "cache"), EVERY, workers=1)
    planned, trained = _tokens_a_step(source, tmp_path)
    assert planned == pytest.approx(trained, rel=0.05)


def test_a_task_that_no_scene_of_a_stream_supports_is_told(
    recordings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = instantiate(_composed("demo", "codecs/boxes=text"))
    source = RecordingShards(recordings, str(tmp_path), {"kitti": EVERY["kitti"]}, workers=1)
    parts = {"frames": Part(source, {"drive": 0.5, "detect": 0.5})}
    count_samples(train.data, Mixture(parts), RandomBackbone({}).processor(train.data.special_tokens), steps=4)
    assert caplog.messages == ["frames: no scene supports the task drive, whose share goes to its other tasks"]


def _tokens_a_step(source: Source, folder: Path) -> tuple[float, float]:
    """What is planned for a source whose shards aren't written, and the mean of what the loader then yields."""
    train = instantiate(_composed("demo"))
    pipeline = replace(train.data, global_batch=32, workers=0)
    processor = RandomBackbone({}).processor(train.data.special_tokens)
    mixture = Mixture({"one": Part(source, {"drive": 0.6, "detect": 0.3, "answer": 0.1})})
    planned = sample_statistics(count_samples(pipeline, mixture, processor, steps=6)[0]).tokens * 32
    loader = pipeline.loader(mixture, processor, stage="one", samples=6 * 32, seed=1, folder=folder)
    steps = iter(loader)
    trained = [MicroBatcher(8).count(next(steps))[0] for _ in range(6)]
    loader.close()
    return planned, sum(trained) / len(trained)


@pytest.mark.slow
def test_samples_that_are_too_long_are_told_and_not_planned() -> None:
    train = instantiate(_composed("demo"))
    processor = RandomBackbone({}).processor(train.data.special_tokens)
    mixture = Mixture({"one": Part(WorldShards("unused", 8, 3), {"caption": 0.5, "drive": 0.5})})
    samples, _ = count_samples(train.data, mixture, processor, steps=4)
    middle = sorted(sample.batch["input_ids"].numel() for sample in samples)[len(samples) // 2]
    kept, refused = count_samples(replace(train.data, pack=None, max_length=middle), mixture, processor, steps=4)
    assert 0.3 < sample_statistics(kept, refused).refused < 0.6
    assert sample_statistics(kept, refused).longest == middle
    with pytest.raises(SceneError, match=r"every scene of one is longer than data\.max_length: 20"):
        count_samples(replace(train.data, pack=None, max_length=20), mixture, processor, steps=4)


def test_a_task_that_does_not_train_has_no_plan() -> None:
    with pytest.raises(TypeError, match="does not train"):
        plan(_composed("export", "task.run=."))


@pytest.mark.slow
def test_a_job_of_several_nodes_shards_the_state_and_says_whether_it_fits() -> None:
    composition = _composed("demo", "parallel.mesh={replicate: auto, shard: auto, tensor: 1}")
    alone, spread = plan(composition), plan(composition, {"nodes": "2", "gpus": "8", "device": "H100"})
    assert "mesh: replicate 2, shard 8, tensor 1 on 2 x 8 H100" in spread
    assert _held(spread)["weights"][0] <= _held(alone)["weights"][0]
    assert _figures(spread)["FLOPs a step"] == _figures(alone)["FLOPs a step"]
    assert ": fits" in spread


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ({"gpus": "0"}, "gpus=0: give a number from 1 on"),
        ({"nodes": "many"}, "nodes=many: give a number"),
        ({"device": "abacus"}, "device=abacus: not in the table of devices; give one of"),
    ],
)
@pytest.mark.fast_cases(1)
def test_a_job_that_there_cannot_be_is_refused_by_name(job: dict[str, str], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        plan(_composed("demo"), job)


@pytest.mark.slow
def test_a_plan_imports_nothing_that_only_trains_or_evaluates() -> None:
    """Each of these takes seconds of the time in which a plan is to be there. A process of its own imports afresh."""
    code = (
        "import sys, framework.training.planner.report, framework.training.rl.stage\n"
        "assert not {'torchmetrics', 'lightning', 'streaming', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.slow
def test_parameters_active_for_a_token_are_told_where_there_are_experts() -> None:
    composition = _composed("supervised", "model/backbone=tiny_moe")
    figures, model = _figures(plan(composition)), _built(composition)
    assert figures["parameters"] == [_numbers(model)]
    experts = sum(_numbers(layer.mlp.experts) for layer in model.backbone.model.language_model.layers)
    assert figures["active for a token"][0] == _numbers(model) - experts * 6 // 8
    assert "active for a token" not in _figures(plan(_composed("demo")))
