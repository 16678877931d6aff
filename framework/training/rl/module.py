"""One step of reinforcement learning: sample, simulate, reward, advantage, update, sync."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from framework.checkpoint.store import CheckpointStore
from framework.model.flops import PARTS
from framework.model.lora import merged_tensors
from framework.objective.diagnostics import ALL_SUMS, PEAKS, Diagnostics
from framework.objective.normalisation import loss_scale, sum_over_ranks
from framework.objective.token_logprobs import TokenScores
from framework.parallel.collectives import max_over_ranks
from framework.parallel.sharding import synchronise, unsharded
from framework.run.layout import file_stem
from framework.run.step_output import StepOutput
from framework.training.datamodule import data_of
from framework.training.rl.alarms import Alarms
from framework.training.rl.collector import Collector
from framework.training.rl.device_clock import DeviceClock
from framework.training.rl.logprob_gate import LogprobGate
from framework.training.rl.metrics import UpdateStats
from framework.training.rl.minibatches import MinibatchBuilder
from framework.training.rl.policy_batch import PolicyBatch
from framework.training.rl.prompt_state import group_state, load_group
from framework.training.rl.reference import Reference
from framework.training.rl.rollout import RolloutGroup
from framework.training.rl.stage import PolicyStage
from framework.training.stage_module import StageModule

ENTROPY = "policy/entropy"
"""The metric of the policy's entropy."""


class PolicyModule(StageModule):
    """Trains a policy on its own rollouts.

    Lightning's batch is empty, because the step draws its own prompts (see `StepTicks`). The losses of all answers of
    an optimizer step are summed and divided once, by the number of its tokens or answers over all ranks, as the
    objective's aggregation says.
    """

    collector: Collector
    minibatches: MinibatchBuilder
    gate: LogprobGate
    alarms: Alarms
    reference: Reference | None = None
    trained: Sequence[RolloutGroup] = ()
    """The groups of the last step."""
    _resumed_state: Mapping[str, Any] = MappingProxyType({})
    _resumed_rank_state: Mapping[str, Sequence[Any]] = MappingProxyType({})

    @property
    def stage(self) -> PolicyStage:
        """The stage in training."""
        assert isinstance(self.stage_range.stage, PolicyStage)
        return self.stage_range.stage

    def training_step(self, batch: Any, batch_idx: int) -> StepOutput:
        """Takes one step. Raises `SceneError` and `RewardError`, see `Collector`. From the advantages to the last
        update the host reads nothing from the device, unless a divergence is taken off the rewards.

        `LogprobGate` and `Alarms` judge a step when it is read (see `StageModule`), before anything of it is saved, and
        then raise `EngineError` and `AlarmError`.
        """
        step, stage, collector = self.trainer.global_step, self.stage, self.collector
        with self._profile("rollout"), unsharded(self.model):
            for prompts, sampled in collector.rounds(step):  # until enough groups pass the filter
                answered = sampled or collector.sampler.sample(prompts, step)  # 1. sample
                with collector.metrics.timed("judge"):
                    for judged, rollouts in collector.simulator.simulate(answered, step):  # 2. simulate
                        rewards = stage.rewards(rollouts)  # 3. reward
                        collector.add(judged, rollouts, rewards)
            self.trained, metrics = collector.take(step)
            if stage.async_rollout and step + 1 < self.stage_range.end:
                collector.start_async(step + 1)
        if not stage.async_rollout:
            collector.engine.release()
        clock = DeviceClock(self.device)
        minibatches = self.minibatches.build(
            self.trained, stage.num_minibatches, collector.spare, self._turn_advantages()
        )
        flops = self._count_flops(minibatches)
        laid_out = [[micro.laid_out(self.model) for micro in minibatch] for minibatch in minibatches]
        totals = [self._totals(minibatch) for minibatch in laid_out]
        minibatches = self._with_advantages(laid_out)  # 4. advantage
        updates = [
            self._update(minibatch, counts, step, last=index + 1 == len(minibatches))
            for index, (minibatch, counts) in enumerate(zip(minibatches, totals, strict=True))
        ]  # 5. update
        self.advance_schedule()
        clock.end("update")
        collector.async_rollout.wait()  # the engine must finish sampling before its weights change
        clock.end("wait_ahead")
        collector.engine.sync(self._weights(), step + 1)  # 6. sync
        compared = self._compare_engine(step + 1) if stage.async_rollout else None
        clock.end("sync")
        metrics |= {"lr": updates[0].lr, **collector.metrics.times()}
        numbers = self._numbers(updates, compared)

        def finish(read: Tensor) -> dict[str, float]:
            computed = self._read(read, step) | clock.times()
            self.alarms.check(step + 1, computed | metrics)
            return computed

        output: StepOutput = {
            "loss": numbers[0],
            "tokens": sum(update.tokens for update in updates),
            "samples": sum(update.answers for update in updates),
            "slices": collector.slices_drawn,
            "flops": flops,
            "metrics": dict(metrics),
        }
        return self.complete(output, numbers, finish)

    def on_train_start(self) -> None:
        """Builds the engine, now that the model is on its mesh, and restores the resumed checkpoint's rollout state."""
        data, stage, step = data_of(self.trainer), self.stage, self.trainer.global_step
        self.model.enable_shared_prefix()
        engine = stage.sampler(self.model)
        self.collector = collector = Collector(stage, engine, data.loader, self.dp_rank, data.seed)
        rows, vocabulary = data.pipeline.micro_batch, self.model.vocabulary
        self.minibatches = MinibatchBuilder(data.loader, vocabulary, rows, self.dp_rank, self.model.action_head)
        self.gate = LogprobGate(stage.max_logprob_gap, self.dp_rank)
        known = {name: alarm for name, alarm in stage.alarms.items() if self._has(alarm.metric)}
        self.alarms = Alarms(known)
        replay = None if stage.rollout is None else collector.simulator.replay
        surplus = self._resumed_rank_state.get("surplus", [])
        groups = [load_group(state, data.loader, replay) for state in surplus]
        collector.surplus = [group for group in groups if group is not None]
        collector.curriculum.counts = dict(self._resumed_state.get("scenarios", {}))
        collector.buffer.load(self._resumed_state.get("replay", {}))
        stage.rewards.errors = Counter(self._resumed_state.get("errors", {}))
        engine.sync(self._weights(), step)
        engine.health()
        sampled = self._resumed_rank_state.get("ahead", [])
        if max_over_ranks(len(sampled), self.device, self.dp_rank.group):
            with unsharded(self.model):
                collector.resume_async(sampled, step)

    def start_stage(self, store_of: Callable[[str], CheckpointStore], resumed: bool) -> None:
        """See `StageModule`. The stage's initial weights become the reference. Raises `CheckpointError` when the stage
        is resumed and its reference is missing.
        """
        if self.stage.objective.needs_reference:
            store, optimizer = store_of(f"reference-{file_stem(self.stage_range.name)}"), self.trainer.optimizers[0]
            had_reference = self._resumed_state.get("reference", False) if resumed else None
            self.reference = Reference.from_store(store, self.model, optimizer, self.dp_rank, had_reference)

    def state(self) -> dict[str, Any]:
        """See `StageModule`: the successes by kind of scenario, the scenes that are answered again, the number of
        answers that could not be judged, and whether the stage has a reference.
        """
        return {
            "scenarios": self.collector.curriculum.counts,
            "replay": self.collector.buffer.state(),
            "errors": self.stage.rewards.errors,
            "reference": self.reference is not None,
        }

    def rank_state(self) -> dict[str, list[Any]]:
        """See `StageModule`: the step's groups, the surplus groups for the next step, and asynchronous rollouts."""
        mixture = self.collector.loader.mixture
        return {
            "trained": [group_state(group, mixture) for group in self.trained],
            "surplus": [group_state(group, mixture) for group in self.collector.surplus],
            "ahead": self.collector.async_rollout.state(),
        }

    def load_states(self, state: dict[str, Any], rank_state: dict[str, list[Any]]) -> None:
        """See `StageModule`. They take effect in `start_stage` and `on_train_start`."""
        self._resumed_state, self._resumed_rank_state = state, rank_state

    def on_rollback(self, step: int) -> None:
        """See `StageModule`: passes the restored weights on to the engine."""
        self.collector.engine.sync(self._weights(), step)

    def _has(self, metric: str) -> bool:
        """Whether steps have a metric: the entropy of an action head's steps is their noise's, which never changes."""
        return self.model.action_head is None or metric != ENTROPY

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the unsharded weights of backbone and encoders, with adapters merged (collective)."""
        yield from merged_tensors(self.model.backbone)
        for name, tensor in merged_tensors(self.model.encoders):
            yield f"encoders.{name}", tensor

    def _numbers(self, updates: Sequence[UpdateStats], compared: tuple[Tensor, Diagnostics] | None) -> Tensor:
        """What `_read` reads of the step's updates and of the engine that was `compared` after them, `(n,)` float64 on
        the device (collective).
        """
        after, mismatch = compared or (torch.zeros(2, device=self.device), Diagnostics.zeros(self.device))
        diagnostics = reduce(add, [*(update.diagnostics for update in updates), mismatch])
        policy = diagnostics.all_reduce(self.dp_rank.group)
        loss = reduce(add, [update.loss for update in updates]) / len(updates)
        norm = torch.stack([update.gradient_norm for update in updates]).max()  # NaN if any is NaN
        numbers = [loss[None], norm[None], updates[0].gap, after, policy.sums, policy.peaks]
        return torch.cat([number.to(self.device, torch.float64) for number in numbers])

    def _read(self, numbers: Tensor, step: int) -> dict[str, float]:
        """The metrics of `_numbers` of `step`, on the host. Raises `EngineError` where the engine had other weights."""
        results, before, after, sums, peaks = numbers.split([2, 2, 2, len(ALL_SUMS), len(PEAKS)])
        self.gate.check(before, step)
        self.gate.check(after, step + 1)
        loss, norm = results.tolist()
        policy = {f"policy/{name}": value for name, value in Diagnostics(sums, peaks).metrics().items()}
        if not self._has(ENTROPY):
            del policy[ENTROPY]
        return {"loss": loss, "gradient_norm": norm, **policy}

    def _count_flops(self, minibatches: Sequence[Sequence[PolicyBatch]]) -> dict[str, float]:
        """FLOPs of training the minibatches over all ranks, by part of the model; sampling is not counted."""
        flops = self.flops.of_step(micro.batch for minibatch in minibatches for micro in minibatch)
        counts = torch.tensor([flops[part] for part in PARTS], dtype=torch.float64)
        return dict(zip(PARTS, sum_over_ranks(counts, self.dp_rank.group).tolist(), strict=True))

    def _turn_advantages(self) -> list[Tensor] | None:
        """The advantages of the turns of the step's groups, if they need more than their micro-batch (collective)."""
        credit = self.stage.credit
        if credit is None:
            return None
        return credit(self.trained, lambda sums: sum_over_ranks(sums, self.dp_rank.group))

    @torch.no_grad()
    def _with_advantages(self, minibatches: list[list[PolicyBatch]]) -> list[list[PolicyBatch]]:
        """Returns the minibatches with advantages and with the log-probabilities that must be computed before the first
        update: the reference's, and the policy's own if there are several updates.
        """
        objective = self.stage.objective
        if self.reference is not None:
            with self.reference.active():
                minibatches = [
                    [replace(micro, reference_logprobs=self._logprobs(micro)) for micro in minibatch]
                    for minibatch in minibatches
                ]
        kl_in_reward = objective.needs_reference and objective.kl is not None and objective.kl.place == "reward"
        needs_old = kl_in_reward or len(minibatches) > 1

        def with_advantages(micro: PolicyBatch) -> PolicyBatch:
            old = self._logprobs(micro) if needs_old else None
            return replace(micro, old_logprobs=old).with_advantages(objective, old)

        return [[with_advantages(micro) for micro in minibatch] for minibatch in minibatches]

    def _logprobs(self, micro: PolicyBatch) -> Tensor:
        """The model's log-probabilities, on its device, of the sampled tokens of a micro-batch on the CPU, `(n,)`."""
        return self._score(micro.to(self.device)).logprobs

    def _score(self, micro: PolicyBatch) -> TokenScores:
        """The current model's scores of the sampled tokens of a micro-batch, which is on the model's device."""
        return micro.actions.score(self.model, micro.batch, self.stage.objective)

    def _update(
        self, minibatch: Sequence[PolicyBatch], totals: tuple[float, int, int], step: int, last: bool
    ) -> UpdateStats:
        """Takes the optimizer step of a minibatch with its `_totals`; the `last` of `step` counts."""
        denominator, answers, positions = totals
        scale = loss_scale(denominator, self.dp_rank.world)
        total = torch.zeros(1, dtype=torch.float64, device=self.device)
        diagnostics, gap = Diagnostics.zeros(self.device), torch.zeros(2, device=self.device)
        for number, micro in enumerate(minibatch):
            synchronise(self.model, last=number + 1 == len(minibatch))
            micro_loss, micro_diagnostics, micro_gap = self._accumulate(micro.to(self.device), scale, step)
            if not micro.idle:
                total += micro_loss
                diagnostics += micro_diagnostics
                gap += micro_gap
        with self._profile("optimizer"):
            norm, lr = self.apply_gradients(counts=last)
        loss = sum_over_ranks(total, self.dp_rank.group)[0] / denominator
        return UpdateStats(loss, norm, lr, diagnostics, self.gate.over_ranks(gap), positions, answers)

    def _accumulate(self, micro: PolicyBatch, scale: float, step: int) -> tuple[Tensor, Diagnostics, Tensor]:
        """Accumulates the gradient of a micro-batch, times `scale`. Returns its summed loss, its diagnostics and its
        gap to the engine (see `PolicyBatch.logprob_gap`). The micro-batch's device copy is freed on return.
        """
        with self._profile("forward"):
            scores = self._score(micro)
            loss, diagnostics = self.stage.objective(scores, micro.sampled_tokens(step))
        with self._profile("backward"):
            self.manual_backward(loss * (0.0 if micro.idle else scale))
        return loss.detach(), diagnostics, micro.logprob_gap(scores.logprobs.detach(), step)

    def _totals(self, minibatch: Sequence[PolicyBatch]) -> tuple[float, int, int]:
        """The loss's denominator, and the numbers of answers and positions, of a minibatch over all ranks."""
        trained = [micro for micro in minibatch if not micro.idle]
        counts = [[len(m.samples), len(m.rewards), m.positions] for m in trained] or [[0, 0, 0]]
        totals = sum_over_ranks(torch.tensor(counts).sum(dim=0), self.dp_rank.group)
        tokens, answers, positions = totals.tolist()
        return self.stage.objective.aggregation.denominator(tokens, answers), answers, positions

    @torch.no_grad()
    def _compare_engine(self, version: int) -> tuple[Tensor, Diagnostics]:
        """Compares engine and trainer on one new answer per rank, sampled with the weights `version` that both have
        now, and returns the gap over all ranks and this rank's mismatch (collective).

        Asynchronous rollouts cannot be compared themselves: the trainer no longer has the weights that sampled them.
        """
        with unsharded(self.model):
            group = self.collector.sample_spare(version)
        micro = self.minibatches.micro_batch([group])
        micro = replace(micro, advantages=torch.zeros(1)).to(self.device)
        scores = self._score(micro)
        gap = self.gate.over_ranks(micro.logprob_gap(scores.logprobs, version))
        return gap, self.stage.objective.mismatch(scores, micro.sampled_tokens(version))
