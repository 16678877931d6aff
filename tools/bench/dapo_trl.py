"""trl's side of the DAPO benchmark: `GRPOTrainer` with its `generate` engine, see `tools.bench.dapo_sides`."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from framework.data.render.sample import Sample
from framework.data.render.tasks import Drive
from framework.data.stream.batcher import PromptBatcher
from framework.data.stream.loader import StepLoader
from framework.model.codecs.grammar import BANNED_TOKENS
from framework.model.param_groups import parameter_groups
from framework.simulation.rewards.rollouts import roll_out
from framework.training.rl.stage import PolicyStage
from framework.training.stages import make_schedule
from tools.bench.dapo_sides import PhaseClock, PolicyJob, PolicyTurn, now, since


def judge(
    stage: PolicyStage, drive: Drive, prompts: Sequence[Sample], texts: Sequence[str], tokens: Sequence[int]
) -> Any:
    """Rewards and rollouts of answers, one prompt for each."""
    rollouts = roll_out(
        stage.simulator,
        [prompt.scene for prompt in prompts],
        texts,
        [drive.thought(text) for text in texts],
        tokens,
        [drive.decode(text, prompt.scene) for text, prompt in zip(texts, prompts, strict=True)],
    )
    return stage.rewards(rollouts), rollouts


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt of ours with the form that trl takes: chat messages and pictures."""

    sample: Sample
    messages: list[dict[str, str]]
    images: list[Any]


def questions(job: PolicyJob, processor: Any, count: int) -> list[ChatPrompt]:
    """The first `count` prompts of the stage, in its order."""
    with tempfile.TemporaryDirectory() as folder:
        order, batcher = job.order(Path(folder)), PromptBatcher()
        loader = job.task.data.loader(job.stage.mixture, processor, **order, is_writer=False, batcher=batcher)
        samples = list(itertools.islice(itertools.chain.from_iterable(loader), count))
        prompts = [_question(loader, sample) for sample in samples]
        loader.close()
    return prompts


def _question(loader: StepLoader, sample: Sample) -> ChatPrompt:
    renderer = loader.renderer
    scene, task, draw = loader.mixture.read(sample.address)
    exchange = loader.tasks[task].conversation(scene, draw)
    images = [view.images[0] for view in renderer.views(scene)]
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": exchange.prompt}]
    encoded = renderer.processor.apply_chat_template(
        [[{"role": "user", "content": content}]], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    if list(encoded["input_ids"][0]) != sample.rendered.input_ids.tolist():
        raise RuntimeError(f"scene {scene.id}: the processor's prompt is not ours")
    return ChatPrompt(sample, [{"role": "user", "content": exchange.prompt}], images)


class GRPOTrainer:
    """trl's `GRPOTrainer` with `loss_type="dapo"`."""

    packages: Sequence[str] = ("trl", "accelerate", "datasets")

    def train(self, job: PolicyJob, warm_up: int) -> PolicyTurn:
        """See `PolicySide`."""
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import GRPOConfig
        from trl import GRPOTrainer as Base

        clock, model, stage = PhaseClock(warm_up), job.build(), job.stage
        processor, prompts = model.processor, job.task.data.global_batch
        chat_prompts = questions(job, processor, job.steps * prompts)
        judged: list[tuple[float, float, float]] = []

        class Timed(Base):
            def _tokenize_prompts(self, *given: Any, **named: Any) -> Any:
                with clock.phase("prompts"):
                    return super()._tokenize_prompts(*given, **named)

            def _generate_single_turn(self, *given: Any, **named: Any) -> Any:
                with clock.phase("generation"):
                    return super()._generate_single_turn(*given, **named)

            def _calculate_rewards(self, *given: Any, **named: Any) -> Any:
                with clock.phase("reward"):
                    return super()._calculate_rewards(*given, **named)

            def _prepare_inputs(self, *given: Any, **named: Any) -> Any:
                before = now()
                inputs = super()._prepare_inputs(*given, **named)
                clock.add("update", tuple(-took for took in since(before)))  # it is within the training step
                return inputs

            def compute_loss(self, *given: Any, **named: Any) -> Any:
                before = now()
                loss = super().compute_loss(*given, **named)
                took = since(before)
                clock.add("log-probs", took)
                clock.add("update", (-took[0], -took[1]))
                return loss

            def training_step(self, *given: Any, **named: Any) -> Any:
                with clock.phase("update"):
                    return super().training_step(*given, **named)

        class PhaseMarks(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                if clock.started is None:
                    clock.mark()

            def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
                self.before = now()

            def on_optimizer_step(self, *_: Any, **__: Any) -> None:
                clock.add("update", since(self.before))

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.mark()

        def reward(item: list[int], completion_ids: list[list[int]], **_: Any) -> list[float]:
            end = processor.tokenizer.eos_token_id
            said = [ids[:-1] if ids and ids[-1] == end else ids for ids in completion_ids]
            texts = [processor.tokenizer.decode(ids, skip_special_tokens=False) for ids in said]
            samples = [chat_prompts[number].sample for number in item]
            drive = job.task.data.tasks["drive"]
            rewards, rollouts = judge(stage, drive, samples, texts, [len(ids) for ids in completion_ids])
            parsed = rollouts.parsed.double()
            lengths = torch.tensor([len(ids) for ids in completion_ids], dtype=torch.float64)
            judged.append((float(lengths.mean()), float(rewards.total.mean()), float(parsed.mean())))
            return rewards.total.tolist()

        objective = stage.objective
        rows = {
            "prompt": [question.messages for question in chat_prompts],
            "images": [question.images for question in chat_prompts],
            "item": list(range(len(chat_prompts))),
        }
        with tempfile.TemporaryDirectory() as folder:
            options = GRPOConfig(
                output_dir=folder,
                max_steps=job.steps,
                per_device_train_batch_size=prompts * stage.group_size,
                num_generations=stage.group_size,
                max_completion_length=stage.max_new_tokens,
                temperature=objective.temperature,
                generation_kwargs={"suppress_tokens": banned(processor.tokenizer, model.vocabulary)},
                loss_type="dapo",
                epsilon=objective.loss.low,
                epsilon_high=objective.loss.high,
                delta=objective.loss.dual,
                beta=0.0,
                max_grad_norm=stage.clip,
                shuffle_dataset=False,
                gradient_checkpointing=False,
                use_cpu=True,
                bf16=False,
                dataloader_pin_memory=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_steps=1,
            )
            optimizer = stage.optimizer(parameter_groups(model.backbone, stage.lr, stage.weight_decay, {}))
            trainer = Timed(
                model=model.backbone,
                reward_funcs=reward,
                args=options,
                train_dataset=Dataset.from_dict(rows),
                processing_class=processor,
                optimizers=(optimizer, make_schedule(job.stage_range, optimizer)),
                callbacks=[PhaseMarks()],
            )
            trainer.train()
        means = [sum(values) / len(values) for values in zip(*judged[warm_up:], strict=True)]
        return PolicyTurn(clock, *means)


def banned(tokenizer: Any, vocabulary: int) -> list[int]:
    """The ids that our sampler never says, spare rows included."""
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(BANNED_TOKENS))
    return [*ids, *range(len(tokenizer), vocabulary)]
