"""The peers of the fine-tuning benchmark: `transformers.Trainer` and trl's `SFTTrainer`.

A peer is used as its own documentation has it, with its own defaults for all else than the job says: its data collator
hands out the batches, and it trains `Qwen3VLForConditionalGeneration` itself. Its loss is the mean of the
micro-batches' means, ours that of all the step's tokens: transformers takes Qwen3-VL for a model that cannot be told
the step's count. `transformers.Trainer` needs accelerate; accelerate and trl are no dependencies of this project: they
are imported when asked for, and an absent one makes a side that is not installed.
"""

from __future__ import annotations

import inspect
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from typing import Any

import torch

from framework.model.backbone import RandomBackbone
from framework.model.media import MEDIA
from framework.model.param_groups import parameter_groups
from framework.objective.supervised import supervised_tokens
from framework.training.stages import make_schedule
from tools.bench.sft_sides import Clock, SupervisedJob

FIELDS = ("input_ids", "attention_mask", "labels", "mm_token_type_ids", *MEDIA)
"""What `Qwen3VLForConditionalGeneration` takes of a micro-batch."""


class TransformersTrainer:
    """`transformers.Trainer`."""

    packages: Sequence[str] = ("transformers", "accelerate")

    def train(self, job: SupervisedJob, clock: Clock) -> float:
        """See `SupervisedSide`."""
        from transformers import Trainer as Base
        from transformers import TrainingArguments

        return self._train(job, clock, Base, TrainingArguments, {}, {}, list(range(self._items(job))))

    def _items(self, job: SupervisedJob) -> int:
        return job.length * len(job.batches[0])

    def _train(
        self,
        job: SupervisedJob,
        clock: Clock,
        base: Any,
        configuration: Any,
        arguments: Mapping[str, Any],
        more: Mapping[str, Any],
        items: Any,
    ) -> float:
        """Train by the trainer `base`, whose configuration takes `arguments` and itself `more` in addition to the
        common ones.
        """
        from transformers import TrainerCallback

        losses: list[torch.Tensor] = []
        rounds = len(job.batches[0])

        class StepMarks(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.mark()

        class Recording(base):
            def training_step(self, *given: Any, **named: Any) -> torch.Tensor:
                loss = super().training_step(*given, **named)
                if len(losses) < rounds:
                    losses.append(loss)
                return loss

        model, stage_range = job.build(peer=True).backbone, job.stage_range
        if job.precision == "bf16-true":
            model = model.to(torch.bfloat16)
        takes = inspect.signature(model.forward).parameters
        given = itertools.cycle(
            {name: micro[name] for name in FIELDS if name in micro and name in takes}  # type: ignore[literal-required]
            for step in job.batches
            for micro in step
        )
        optimizer = stage_range.stage.optimizer(
            parameter_groups(model, stage_range.stage.lr, stage_range.stage.weight_decay, {})
        )
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
            options = configuration(
                output_dir=folder,
                max_steps=job.length,
                per_device_train_batch_size=1,  # an item is a micro-batch: the collator has it ready
                gradient_accumulation_steps=rounds,
                max_grad_norm=stage_range.stage.clip,
                bf16=job.precision == "bf16-mixed",
                gradient_checkpointing=job.checkpointing,
                gradient_checkpointing_kwargs={"use_reentrant": False} if job.checkpointing else None,
                torch_compile=job.compiled,
                use_cpu=job.device == "cpu",
                dataloader_pin_memory=job.device == "cuda",
                logging_steps=job.peer_logging,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                **arguments,
            )
            trainer = Recording(
                model=model,
                args=options,
                train_dataset=items,
                data_collator=lambda _: dict(next(given)),
                optimizers=(optimizer, make_schedule(stage_range, optimizer)),
                callbacks=[StepMarks()],
                **more,
            )
            trainer.train()
        if trainer.model_accepts_loss_kwargs:
            return float(torch.stack(losses).sum())
        tokens = [supervised_tokens(micro["labels"]) for micro in job.batches[0]]
        means = [float(loss) * rounds for loss in losses]
        return sum(mean * count for mean, count in zip(means, tokens, strict=True)) / sum(tokens)


class SFTTrainer(TransformersTrainer):
    """trl's `SFTTrainer`, which computes logits where there is something to learn, in chunks."""

    packages = ("trl", "accelerate", "datasets")

    def train(self, job: SupervisedJob, clock: Clock) -> float:
        """See `SupervisedSide`."""
        from datasets import Dataset
        from trl import SFTConfig
        from trl import SFTTrainer as Base

        arguments = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
        processor = RandomBackbone(job.architecture).processor(job.special_tokens)
        items = Dataset.from_dict({"item": list(range(self._items(job)))})
        return self._train(job, clock, Base, SFTConfig, arguments, {"processing_class": processor}, items)


PEERS: dict[str, TransformersTrainer] = {"transformers.Trainer": TransformersTrainer(), "trl.SFTTrainer": SFTTrainer()}


def versions(peer: TransformersTrainer) -> dict[str, str | None]:
    """The installed versions of what a peer needs; None: not installed."""
    installed: dict[str, str | None] = {}
    for package in peer.packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = None
    return installed
