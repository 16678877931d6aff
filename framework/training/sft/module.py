"""Supervised fine-tuning: one optimizer step per batch of micro-batches."""

from __future__ import annotations

import torch
from torch import Tensor

from framework.data.render.collate import without_labels
from framework.model.flops import PARTS
from framework.model.routers import RouterRecord
from framework.objective.normalisation import loss_scale, sum_over_ranks
from framework.objective.supervised import next_token_positions, supervised_tokens
from framework.parallel.collectives import max_over_ranks
from framework.parallel.sharding import synchronise
from framework.run.step_output import StepOutput
from framework.scene.batch import MicroBatch
from framework.training.sft.router_balance import RouterBalance
from framework.training.stage_module import StageModule
from framework.training.stages import SupervisedStage
from framework.training.to_device import to_device


class SupervisedModule(StageModule):
    """Supervised fine-tuning, one optimizer step per Lightning batch (contract 1).

    A batch is the list of this rank's micro-batches of a step. Their losses are summed and divided once, by the step's
    number of supervised tokens over all ranks. Gradients are reduced over ranks only on the last micro-batch.
    """

    def transfer_batch_to_device(
        self, batch: list[MicroBatch], device: torch.device, dataloader_idx: int
    ) -> list[MicroBatch]:
        """Move the tensors of each micro-batch; scenes stay on the CPU. FLOPs are counted before the move, so that
        counting does not synchronise with the device.
        """
        self.step_flops = self.flops.of_step(batch)
        return [to_device(micro, device) for micro in batch]

    def training_step(self, batch: list[MicroBatch], batch_idx: int) -> StepOutput:
        """Take one optimizer step."""
        assert isinstance(self.stage_range.stage, SupervisedStage)
        objective = self.stage_range.stage.objective
        counts = sum_over_ranks(self._counts(batch), self.dp_rank.group)
        supervised, tokens, samples = counts.tolist()
        scale = loss_scale(supervised, self.dp_rank.world)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss, correct tokens
        flops = torch.tensor([self.step_flops[part] for part in PARTS], dtype=torch.float64).to(self.device)
        balance = RouterBalance(self.model, samples, self.dp_rank)
        micro_batches = self._padded_to_all_ranks(batch)
        for index, micro in enumerate(micro_batches):
            synchronise(self.model, last=index + 1 == len(micro_batches))
            with self._profile("forward"):
                positions, targets = next_token_positions(micro["labels"])
                routers = RouterRecord()
                loss = objective(self.model(micro, positions, routers), self.model.head, targets)
                balanced = loss.total * scale + balance.add(routers, counts=index < len(batch))
            with self._profile("backward"):
                self.manual_backward(balanced)
            sums += torch.stack([loss.total.detach().double(), loss.correct.double()])
        with self._profile("optimizer"):
            norm, lr = self.apply_gradients()
        self.advance_schedule()
        total, correct, *all_flops = sum_over_ranks(torch.cat([sums, flops]), self.dp_rank.group).tolist()
        mean, accuracy = total / supervised, correct / supervised
        output: StepOutput = {
            "loss": torch.tensor(mean),
            "tokens": tokens,
            "samples": samples,
            "flops": dict(zip(PARTS, all_flops, strict=True)),
            "metrics": {"loss": mean, "token_accuracy": accuracy, "gradient_norm": norm, "lr": lr} | balance.metrics(),
        }
        return self.complete(output)

    def _padded_to_all_ranks(self, batch: list[MicroBatch]) -> list[MicroBatch]:
        """The micro-batches, padded with unlabelled ones until every rank has the same number: FSDP's collectives need
        all ranks to run the same number of passes.
        """
        missing = max_over_ranks(len(batch), self.device, self.dp_rank.group) - len(batch)
        smallest = min(batch, key=lambda micro: micro["input_ids"].numel())
        return batch + [without_labels(smallest)] * missing

    def _counts(self, batch: list[MicroBatch]) -> Tensor:
        """This rank's numbers of supervised tokens, tokens and samples, `(3,)` int64."""
        counts = [
            [supervised_tokens(m["labels"]), int(m["attention_mask"].sum()), len(m["scenes"])] for m in batch
        ] or [[0, 0, 0]]
        return torch.tensor(counts, dtype=torch.int64).sum(dim=0).to(self.device)
