"""Supervised fine-tuning: one optimizer step per batch of micro-batches."""

from __future__ import annotations

from dataclasses import replace

import torch

from framework.model.flops import PARTS
from framework.model.routers import RouterRecord
from framework.objective.normalisation import loss_scale, sum_over_ranks
from framework.parallel.collectives import max_over_ranks
from framework.parallel.sharding import synchronise
from framework.run.step_output import StepOutput
from framework.scene.batch import MicroBatch
from framework.training.sft.plan_loss import PlanLoss
from framework.training.sft.prepare import PreparedStep, prepare_step
from framework.training.sft.router_balance import RouterBalance
from framework.training.stage_module import StageModule
from framework.training.stages import SupervisedStage


class SupervisedModule(StageModule):
    """Supervised fine-tuning, one optimizer step per Lightning batch (contract 1).

    A batch is the list of this rank's micro-batches of a step, which the host prepares before it moves them. Their
    losses are summed and divided once, by the step's number of supervised tokens over all ranks; that of an action head
    by its number of plans. Gradients are reduced over ranks only on the last micro-batch.
    """

    def transfer_batch_to_device(
        self, batch: list[MicroBatch], device: torch.device, dataloader_idx: int
    ) -> PreparedStep:
        """Prepare the step on the host (see `prepare_step`), fill it up to the number of micro-batches of every rank,
        since FSDP's collectives need all ranks to run the same number of passes, count over all ranks, and move it.
        """
        missing = max_over_ranks(len(batch), torch.device("cpu"), self.dp_rank.group) - len(batch)
        step = prepare_step(self.model, batch, missing, self.trainer.global_step)
        flops = self.flops.of_step(batch)
        mine = torch.tensor([*step.counts, *(flops[part] for part in PARTS)], dtype=torch.float64)
        supervised, tokens, samples, plans, *parts = sum_over_ranks(mine, self.dp_rank.group).tolist()
        self.step_flops = dict(zip(PARTS, parts, strict=True))
        return replace(step, counts=(int(supervised), int(tokens), int(samples), int(plans))).to(device)

    def training_step(self, batch: PreparedStep, batch_idx: int) -> StepOutput:
        """Take one optimizer step, of which the host reads nothing (see `StageModule`)."""
        assert isinstance(self.stage_range.stage, SupervisedStage)
        objective = self.stage_range.stage.objective
        supervised, tokens, samples, plans = batch.counts
        scale = loss_scale(supervised, self.dp_rank.world)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss, correct tokens
        planning = PlanLoss(self.model.action_head, plans, self.dp_rank)
        balance = RouterBalance(self.model, samples, self.dp_rank)
        for index, micro in enumerate(batch.micro_batches):
            synchronise(self.model, last=index + 1 == len(batch.micro_batches))
            with self._profile("forward"):
                routers = RouterRecord()
                hidden = self.model(micro.batch, micro.positions, routers)
                loss = objective(hidden[: len(micro.sources)], self.model.head, micro.targets)
                balanced = loss.total * scale + balance.add(routers, counts=index < batch.counted)
                if micro.plans is not None:
                    balanced = balanced + planning.add(micro.plans, hidden[len(micro.sources) :])
            with self._profile("backward"):
                self.manual_backward(balanced)
            sums += torch.stack([loss.total.detach().double(), loss.correct.double()])
        with self._profile("optimizer"):
            norm, lr = self.apply_gradients()
        self.advance_schedule()
        means = sum_over_ranks(sums, self.dp_rank.group) / supervised
        numbers = {"loss": means[0], "token_accuracy": means[1], "gradient_norm": norm}
        numbers |= balance.metrics() | planning.metrics()
        output: StepOutput = {
            "loss": means[0],
            "tokens": tokens,
            "samples": samples,
            "flops": self.step_flops,
            "metrics": {"lr": lr},
        }
        names = list(numbers)
        stacked = torch.stack([number.to(self.device, torch.float64) for number in numbers.values()])
        return self.complete(output, stacked, lambda read: dict(zip(names, read.tolist(), strict=True)))
