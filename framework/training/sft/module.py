"""Supervised fine-tuning: one optimizer step per batch of micro-batches."""

from __future__ import annotations

import torch

from framework.model.flops import PARTS
from framework.model.routers import RouterRecord
from framework.objective.normalisation import loss_scale, sum_over_ranks
from framework.parallel.collectives import max_over_ranks
from framework.parallel.sharding import synchronise
from framework.run.step_output import StepOutput
from framework.scene.batch import MicroBatch
from framework.training.sft.prepare import PreparedStep, prepare_step
from framework.training.sft.router_balance import RouterBalance
from framework.training.stage_module import StageModule
from framework.training.stages import SupervisedStage


class SupervisedModule(StageModule):
    """Supervised fine-tuning, one optimizer step per Lightning batch (contract 1).

    A batch is the list of this rank's micro-batches of a step, which the host prepares before it moves them. Their
    losses are summed and divided once, by the step's number of supervised tokens over all ranks. Gradients are reduced
    over ranks only on the last micro-batch.
    """

    def transfer_batch_to_device(
        self, batch: list[MicroBatch], device: torch.device, dataloader_idx: int
    ) -> PreparedStep:
        """Prepare the step on the host (see `prepare_step`), fill it up to the number of micro-batches of every rank,
        since FSDP's collectives need all ranks to run the same number of passes, and move it.
        """
        missing = max_over_ranks(len(batch), torch.device("cpu"), self.dp_rank.group) - len(batch)
        self.step_flops = self.flops.of_step(batch)
        return prepare_step(self.model, batch, missing).to(device)

    def training_step(self, batch: PreparedStep, batch_idx: int) -> StepOutput:
        """Take one optimizer step. The host reads from the device once, after the last backward pass."""
        assert isinstance(self.stage_range.stage, SupervisedStage)
        objective = self.stage_range.stage.objective
        supervised, tokens, samples = sum_over_ranks(batch.counts, self.dp_rank.group).tolist()
        scale = loss_scale(supervised, self.dp_rank.world)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss, correct tokens
        balance = RouterBalance(self.model, samples, self.dp_rank)
        for index, micro in enumerate(batch.micro_batches):
            synchronise(self.model, last=index + 1 == len(batch.micro_batches))
            with self._profile("forward"):
                routers = RouterRecord()
                hidden = self.model(micro.batch, micro.sources, routers)
                loss = objective(hidden, self.model.head, micro.targets)
                balanced = loss.total * scale + balance.add(routers, counts=index < batch.counted)
            with self._profile("backward"):
                self.manual_backward(balanced)
            sums += torch.stack([loss.total.detach().double(), loss.correct.double()])
        with self._profile("optimizer"):
            norm, lr, totals = self.apply_gradients(totals=sum_over_ranks(sums, self.dp_rank.group))
        self.advance_schedule()
        flops = torch.tensor([self.step_flops[part] for part in PARTS], dtype=torch.float64)
        total, correct = totals
        mean, accuracy = total / supervised, correct / supervised
        output: StepOutput = {
            "loss": torch.tensor(mean),
            "tokens": tokens,
            "samples": samples,
            "flops": dict(zip(PARTS, sum_over_ranks(flops, self.dp_rank.group).tolist(), strict=True)),
            "metrics": {"loss": mean, "token_accuracy": accuracy, "gradient_norm": norm, "lr": lr} | balance.metrics(),
        }
        return self.complete(output)
