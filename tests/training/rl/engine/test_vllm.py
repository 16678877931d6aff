"""The engine of a vLLM server, against a stand-in for the server: log-probabilities, the gate, and a lost server."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.data.render.collate import collate
from framework.data.render.sample import Sample
from framework.data.render.tasks import Conversation
from framework.data.stream.batcher import PromptBatcher
from framework.generation.engine import EngineError, Requests
from framework.generation.vllm_client import LostServerError
from framework.model.generate import sample
from framework.model.language_action import LanguageActionModel
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.scene.world.generate import generate_scene
from framework.training.rl.engine.collective_transfer import Collective
from framework.training.rl.engine.vllm import VLLMEngine
from framework.training.rl.engine.vllm_process import VLLMProcess
from framework.training.rl.engine.weight_transfer import Disk, Transfer
from framework.training.rl.policy_batch import policy_batch
from framework.training.rl.rollout import Prompt, Rollout, RolloutGroup
from framework.training.rl.stage import PolicyStage
from tests.training.rl.engine.vllm_stand_in import StandIn, weights_of


@dataclasses.dataclass
class Setting:
    """A tiny model with encoders, a request of two prompts with a picture and sensors each, and the server."""

    model: LanguageActionModel
    server: StandIn
    requests: Requests
    prompts: list[Prompt]
    loader: object
    stage: PolicyStage


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("vllm")
    rl = "curriculum.stages.rl"
    words = [
        "recipe=rl_dapo",
        "scale=tiny",
        "sources.world_hard.scenes=8",
        "stage.global_batch=2",
        f"paths.cache={folder}",
    ]
    words += [f"paths.runs={folder}", f"{rl}.mixture.parts.hard.source.workers=1", "data.image_width=64"]
    task = instantiate(compose(words))
    torch.manual_seed(0)
    model = task.model(special_tokens=task.data.special_tokens).eval()
    server = StandIn(task.model(special_tokens=task.data.special_tokens).eval())
    stage = next(task.curriculum.stage_ranges()).stage
    where: dict[str, Any] = {"stage": "rl", "samples": 100, "seed": 0, "folder": folder}
    batcher = PromptBatcher()
    loader = stage.pipeline(task.data).loader(stage.mixture, model.processor, **where, is_writer=False, batcher=batcher)
    (samples,) = islice(loader, 1)
    prompts = [Prompt.of(one, loader) for one in samples]
    requests = Requests(
        prompts=collate(samples, loader.renderer.special_ids, side="left"),
        grammars=tuple(prompt.task.grammar for prompt in prompts),
        seeds=tuple((number, number + 100) for number in range(len(prompts))),
        max_new_tokens=3,
        temperature=0.9,
    )
    yield Setting(model, server, requests, prompts, loader, stage)
    server.close()
    loader.close()


@pytest.fixture
def engine(setting: Setting, tmp_path: Path) -> Iterator[VLLMEngine]:
    setting.server.forget()
    setting.server.refused.clear()
    yield _engine(setting, tmp_path, Disk())
    setting.server.fault, setting.server.lives = "", 10**9


@pytest.fixture
def streaming(setting: Setting, engine: VLLMEngine) -> VLLMEngine:
    """An engine whose weights go over a process group."""
    return _engine(setting, engine.folder, Collective("gloo", "127.0.0.1", timeout_s=20, bucket_bytes=100_000))


def _engine(setting: Setting, folder: Path, transfer: Transfer) -> VLLMEngine:
    return VLLMEngine(
        setting.model,
        setting.server.url,
        str(folder),
        "float32",
        transfer,
        timeout_s=20,
        patience_s=5,
        max_logprob_gap=1e-3,
    )


def _sync(engine: VLLMEngine, version: int) -> None:
    engine.sync(weights_of(engine.model), version)


@pytest.mark.slow
@pytest.mark.guarantee("A vLLM server sees what the trainer sees, and the gate names what disagrees")
def test_answers_are_scored_as_they_were_drawn(setting: Setting, engine: VLLMEngine) -> None:
    """Pictures and sensors reach the server as the model sees them: else the trainer would say otherwise."""
    _sync(engine, 7)
    answers = engine.generate(setting.requests)
    assert [answer.version for group in answers for answer in group] == [7] * 4
    groups = [
        RolloutGroup(prompt, tuple(Rollout.of(answer, plan=None) for answer in group))
        for prompt, group in zip(setting.prompts, answers, strict=True)
    ]
    micro = policy_batch(groups, setting.loader, setting.model.vocabulary)  # type: ignore[arg-type]
    objective = dataclasses.replace(setting.stage.objective, temperature=setting.requests.temperature)
    with torch.no_grad():
        scored = micro.actions.score(setting.model, micro.batch, objective)  # type: ignore[arg-type]
    torch.testing.assert_close(scored.logprobs, micro.engine_logprobs, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_an_answer_ends_where_its_grammar_does(setting: Setting, engine: VLLMEngine) -> None:
    """The server lets an end of turn follow, which our own sampler does not draw."""
    _sync(engine, 0)
    short = dataclasses.replace(setting.requests, grammars=('start: "a"', 'start: "a"'))
    for answer in [answer for group in engine.generate(short) for answer in group]:
        assert (answer.text, answer.complete, len(answer.tokens)) == ("a", True, len(answer.logprobs))
        assert len(answer.tokens) == 1
    own = sample(
        setting.model, short.prompts, setting.model.processor.tokenizer, short.grammars, 3, 1.0, [1, 2], copies=1
    )
    assert {answer.tokens for answer in own} == {answer.tokens for g in engine.generate(short) for answer in g}


@pytest.mark.guarantee("A vLLM server sees what the trainer sees, and the gate names what disagrees")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("stale", "the engine holds other bytes"),
        ("version", "the engine has weights of version default, it was given 3"),
        ("logprobs", "log-probabilities of engine and trainer differ"),
        ("tokens", "token ids, it was sent"),
    ],
)
@pytest.mark.fast_cases(1)
def test_the_gate_names_what_is_wrong(setting: Setting, engine: VLLMEngine, fault: str, message: str) -> None:
    setting.server.fault = fault
    with pytest.raises(EngineError, match=f"engine gate.*{message}"):
        _sync(engine, 3)


def test_only_the_last_versions_are_kept(engine: VLLMEngine) -> None:
    for version in range(4):
        _sync(engine, version)
    assert sorted(path.name for path in engine.folder.glob("version-*")) == ["version-2", "version-3"]


def test_weights_arrive_over_a_process_group(setting: Setting, streaming: VLLMEngine) -> None:
    """The same bytes as by the disk: the gate's checksums see to that."""
    for version in range(2):
        setting.server.told.clear()
        _sync(streaming, version)
        assert "reload_weights" not in setting.server.told, "they went by the disk"
    assert setting.server.told.count("join_weight_stream") == 0, "the group is made once"
    assert setting.server.version == "1"


@pytest.mark.guarantee("A killed vLLM server is restarted, receives its weights and generates the missing answers")
@pytest.mark.slow
def test_streamed_weights_outlive_the_server(setting: Setting, streaming: VLLMEngine) -> None:
    """What was streamed is on the disk for a server that starts again, and the next weights are streamed again."""
    _sync(streaming, 0)
    _sync(streaming, 1)
    undisturbed = streaming.generate(setting.requests)
    setting.server.lives, setting.server.told = 2, []
    assert streaming.generate(setting.requests) == undisturbed
    assert "reload_weights" in setting.server.told
    setting.server.told.clear()
    _sync(streaming, 2)
    assert [step for step in setting.server.told if "weight" in step][:3] == [
        "weight_stream_name", "join_weight_stream", "receive_weights",
    ]  # fmt: skip
    assert "reload_weights" not in setting.server.told


def test_a_server_that_is_lost_while_it_receives_gets_its_weights_by_the_disk(
    setting: Setting, streaming: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(weights_iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        next(weights_iterator)
        monkeypatch.undo()
        raise RuntimeError("out of memory")

    _sync(streaming, 0)
    monkeypatch.setattr(setting.server, "reload_weights", broken)
    _sync(streaming, 1)
    assert (setting.server.version, len(setting.server.refused)) == ("1", 1)
    assert setting.server.told.count("reload_weights") == 1


def test_a_server_without_the_extension_is_told_so(
    setting: Setting, streaming: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setting.server, "weight_stream_name", None)
    with pytest.raises(EngineError, match=r"PYTHONPATH=.*vllm_worker and --worker-extension-cls weight_stream"):
        _sync(streaming, 0)


@pytest.mark.guarantee("A server that shares the trainer's GPUs sleeps during the update")
def test_a_server_that_shares_the_gpus_sleeps_until_it_is_given_weights(setting: Setting, engine: VLLMEngine) -> None:
    """Weights are woken to be loaded, the cache after that; nothing is drawn in between."""
    engine.sleeps = True
    _sync(engine, 0)
    engine.release()
    assert setting.server.asleep == {"weights", "kv_cache"}
    setting.server.told.clear()
    _sync(engine, 1)
    assert setting.server.told == [
        "/wake_up weights", "/pause", "reload_weights", "/reset_prefix_cache", "/update_weight_version",
        "/wake_up kv_cache", "/resume", "/inference/v1/generate",
    ]  # fmt: skip
    assert setting.server.refused == []


def test_a_server_that_dies_in_its_sleep_is_given_the_next_weights(setting: Setting, engine: VLLMEngine) -> None:
    engine.sleeps = True
    _sync(engine, 0)
    setting.server.lives = 0
    engine.release()
    _sync(engine, 1)
    assert setting.server.version == "1"
    assert setting.server.asleep == set()


def test_nccl_and_sleep_exclude_each_other(setting: Setting, engine: VLLMEngine) -> None:
    engine.transfer, engine.sleeps = Collective("nccl", "127.0.0.1"), True
    weights = iter(weights_of(setting.model))
    with pytest.raises(EngineError, match=r"sampler\.transfer\.backend.*gloo, or transfer: disk"):
        engine.sync(weights, 0)
    assert next(weights, None) is None, "other ranks would wait for the first, which gathers no more"


@pytest.mark.guarantee("A killed vLLM server is restarted, receives its weights and generates the missing answers")
@pytest.mark.slow
def test_what_a_lost_server_had_not_answered_is_asked_again(setting: Setting, engine: VLLMEngine) -> None:
    _sync(engine, 5)
    undisturbed = engine.generate(setting.requests)
    asked = setting.server.answers
    setting.server.lives = 2
    assert engine.generate(setting.requests) == undisturbed
    assert setting.server.version == "5", "it was not given its weights again"
    assert setting.server.answers - asked <= 4, "what was answered was asked again"


@pytest.mark.slow
def test_a_server_that_is_lost_while_it_is_revived_is_revived_again(
    setting: Setting, engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is well for a moment, and gone when it is asked for its version."""
    _sync(engine, 6)
    undisturbed = engine.generate(setting.requests)
    version, asked = engine.client.version, []

    def once_gone() -> str:
        asked.append(1)
        if len(asked) == 1:
            raise LostServerError("engine: no answer")
        return version()

    monkeypatch.setattr(engine.client, "version", once_gone)
    setting.server.lives = 2
    assert engine.generate(setting.requests) == undisturbed
    assert len(asked) > 1


def test_a_server_that_stays_away_ends_the_run_by_name(setting: Setting, engine: VLLMEngine) -> None:
    _sync(engine, 0)
    setting.server.fault, setting.server.lives, engine.server.patience_s = "dead", 1, 0.5
    with pytest.raises(EngineError, match=f"engine {setting.server.url}.*no vLLM server became ready within 0.5 s"):
        engine.generate(setting.requests)


@pytest.mark.slow
def test_a_server_that_ends_while_it_is_waited_for_is_started_again(setting: Setting, engine: VLLMEngine) -> None:
    """A crash takes its time: connections are refused before the process has ended."""

    class Crashing(VLLMProcess):
        looks = 0

        def ended(self, folder: Path) -> bool:
            self.looks += 1
            return self.looks > 2 and setting.server.fault == "dead"

        def start(self, folder: Path, url: str) -> bool:
            if not self.ended(folder):
                return False
            setting.server.fault = ""
            return True

    _sync(engine, 4)
    undisturbed = engine.generate(setting.requests)
    engine.server.process = Crashing("python")
    setting.server.model_name = str(engine.folder)
    setting.server.fault, setting.server.lives = "dead", 1
    assert engine.generate(setting.requests) == undisturbed


def test_a_python_that_is_not_there_is_named(setting: Setting, tmp_path: Path) -> None:
    process = VLLMProcess("/nowhere/python")
    engine = VLLMEngine(setting.model, "http://127.0.0.1:9", str(tmp_path), "float32", Disk(), process)
    with pytest.raises(EngineError, match=r"/nowhere/python.*VLLM_PYTHON"):
        _sync(engine, 0)


def test_a_server_that_cannot_start_is_not_waited_for(setting: Setting, tmp_path: Path) -> None:
    process = VLLMProcess(sys.executable, {"no-such-option": True})
    engine = VLLMEngine(setting.model, "http://127.0.0.1:9", str(tmp_path), "float32", Disk(), process, patience_s=200)
    with pytest.raises(EngineError, match=r"no vLLM server became ready.*server\.log"):
        _sync(engine, 0)
    assert (tmp_path / "server.log").read_text()


def test_one_server_is_started_however_many_want_it(tmp_path: Path) -> None:
    """vLLM's servers can share a port: weights would go to one of them, questions to any."""
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "python").chmod(0o700)
    one, other = (VLLMProcess(str(tmp_path / "python")) for _ in range(2))
    assert one.start(tmp_path, "http://127.0.0.1:9")
    assert not other.start(tmp_path, "http://127.0.0.1:9")
    assert not other.ended(tmp_path)
    one.stop()
    assert other.ended(tmp_path)
    assert other.start(tmp_path, "http://127.0.0.1:9")
    other.stop()


@pytest.mark.slow
def test_frames_of_clips_are_shown_as_the_trainer_sees_them(setting: Setting, engine: VLLMEngine) -> None:
    """One item a frame, where the prompt has the frame's tokens: the server scores an answer as the trainer does."""
    data = instantiate(compose(["recipe=supervised", "scale=tiny", "data.image_width=64"]), inputs=False).data
    asked = data.tasks["drive"]
    prompts = []
    for seed, frames in ((3, 4), (4, 1)):
        scene = generate_scene(seed, "curve", camera_frames=frames)
        prompt = Conversation(asked.prompt(scene, "drive"), "")
        shown = data.renderer(setting.model.processor).render(scene, prompt, for_generation=True)
        prompts.append(Sample(shown, scene, "drive"))
    renderer = data.renderer(setting.model.processor)
    batch = collate(prompts, renderer.special_ids, side="left")
    assert {"pixel_values", "pixel_values_videos"} <= set(batch)
    _sync(engine, 0)
    requests = Requests(batch, (asked.grammar,) * 2, ((1,), (2,)), max_new_tokens=3, temperature=0.0)
    answers = engine.generate(requests)
    own = sample(setting.model, batch, setting.model.processor.tokenizer, [asked.grammar] * 2, 3)
    for (answer,), expected in zip(answers, own, strict=True):
        assert answer.tokens == expected.tokens
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
