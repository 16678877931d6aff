"""One step of reinforcement learning: sample, judge, update, synchronise."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from framework.checkpoint.store import CheckpointStore
from framework.generation.engine import EngineError
from framework.model.flops import PARTS
from framework.model.lora import merged_tensors
from framework.objective.diagnostics import Diagnostics
from framework.objective.normalisation import loss_scale, sum_over_ranks
from framework.objective.policy import PolicySum
from framework.objective.token_logprobs import TokenScores
from framework.parallel.collectives import all_gather_objects, max_over_ranks
from framework.parallel.sharding import synchronise, unsharded
from framework.training.datamodule import data_of
from framework.training.rl.alarms import Alarms
from framework.training.rl.collector import Collector, Group
from framework.training.rl.policy_batch import Scorable, scorable
from framework.training.rl.reference import Reference
from framework.training.rl.stage import PolicyStage
from framework.training.stage_module import StageModule


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimizer step of a batch gave: the mean loss, the gradient's norm, the learning rate, diagnostics of
    this rank, and the step's positions and answers over all ranks.
    """

    loss: float
    norm: float
    rate: float
    diagnostics: Diagnostics
    positions: int
    answers: int


class PolicyModule(StageModule):
    """Reinforcement learning from rollouts.

    A batch is nothing but the turn of a step: the module draws its prompts itself, so that none is answered before the
    update that comes first. The losses of all answers are summed and divided once by the tokens or answers of the
    optimizer step over all ranks, as the objective's aggregation says.
    """

    collector: Collector
    alarms: Alarms
    reference: Reference | None = None
    trained: Sequence[Group] = ()
    resumed_state: Mapping[str, Any] = MappingProxyType({})
    left_over: Sequence[dict[str, Any]] = ()
    drawn_ahead: Sequence[Sequence[Any]] = ()

    @property
    def stage(self) -> PolicyStage:
        """The stage, whose kind this module is for."""
        assert isinstance(self.stage_range.stage, PolicyStage)
        return self.stage_range.stage

    def start_stage(self, store_of: Callable[[str], CheckpointStore], resumed: bool) -> None:
        """See `StageModule`: the model that the stage begins with is the reference. Raises `CheckpointError` where the
        stage is resumed and there is none.
        """
        if self.stage.objective.needs_reference:
            store, optimizer = store_of(f"reference-{self.stage_range.name}"), self.trainer.optimizers[0]
            begun = self.resumed_state.get("reference", False) if resumed else None
            self.reference = Reference.kept_in(store, self.model, optimizer, self.dp_rank, begun)

    def state(self) -> dict[str, Any]:
        """See `StageModule`: how the policy did by kind of scenario, answers that could not be judged, and whether the
        stage has a reference.
        """
        return {
            "scenarios": self.collector.scenarios.counts,
            "errors": self.stage.rewards.errors,
            "reference": self.reference is not None,
        }

    def rank_state(self) -> dict[str, list[Any]]:
        """See `StageModule`: the step's rollouts, groups that wait for the next step, and what was drawn ahead."""
        collector = self.collector
        return {
            "trained": [group.state(collector.loader) for group in self.trained],
            "surplus": [group.state(collector.loader) for group in collector.surplus],
            "ahead": collector.ahead.state(),
        }

    def load_states(self, state: dict[str, Any], rank_state: dict[str, list[Any]]) -> None:
        """See `StageModule`."""
        self.resumed_state = state
        self.left_over = rank_state.get("surplus", [])
        self.drawn_ahead = rank_state.get("ahead", [])

    def on_rollback(self, step: int) -> None:
        """See `StageModule`: the engine answers with these weights from now on."""
        self.collector.engine.sync(self._weights(), step)

    def on_train_start(self) -> None:
        """The engine, over the model as it is placed now, with what was left over when the stage was saved."""
        data = data_of(self.trainer)
        self.model.enable_shared_prefix()
        engine = self.stage.engine(self.model)
        self.collector = Collector(self.stage, engine, data.loader, self.dp_rank, data.seed)
        self.alarms = Alarms(self.stage.alarms)
        again = (Group.of(state, data.loader) for state in self.left_over)
        self.collector.surplus = [group for group in again if group is not None]
        self.collector.scenarios.counts = dict(self.resumed_state.get("scenarios", {}))
        self.stage.rewards.errors = Counter(self.resumed_state.get("errors", {}))
        engine.sync(self._weights(), self.trainer.global_step)
        engine.health()
        if max_over_ranks(len(self.drawn_ahead), self.device, self.dp_rank.group):
            with unsharded(self.model):
                self.collector.resume(self.drawn_ahead, self.trainer.global_step)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Sample, judge and train one step; returns what the callbacks report."""
        step = self.trainer.global_step
        with self._profile("rollout"), unsharded(self.model):
            collected = self.collector.collect(step)
            if self.stage.async_rollout and step + 1 < self.stage_range.end:
                self.collector.begin(step + 1)
        if not self.stage.async_rollout:
            self.collector.engine.release()
        self.trained = collected.groups
        begun = time.perf_counter()
        parts = self._parts(collected.groups)
        work = sum_over_ranks(self._work(parts), self.dp_rank.group).tolist()
        self._ask_before(parts)
        done = [self._update(part, step, first=part is parts[0], last=part is parts[-1]) for part in parts]
        self.advance_schedule()
        trained = time.perf_counter()
        self.collector.ahead.settle()
        settled = time.perf_counter()
        self.collector.engine.sync(self._weights(), step + 1)
        seen = reduce(add, (one.diagnostics for one in done))
        if self.stage.async_rollout:
            seen += self._compare_engine(step + 1)
        seen = seen.all_reduce(self.dp_rank.group)
        metrics = {
            "loss": sum(one.loss for one in done) / len(done),
            "gradient_norm": float(torch.tensor([one.norm for one in done]).max()),  # NaN where one is
            "lr": done[0].rate,
            **{f"policy/{name}": value for name, value in seen.metrics().items()},
            **collected.metrics,
            "time/update_s": trained - begun,
            "time/wait_ahead_s": settled - trained,
            "time/sync_s": time.perf_counter() - settled,
        }
        self.alarms.look(step + 1, metrics)
        return {
            "loss": torch.tensor(metrics["loss"]),
            "tokens": sum(one.positions for one in done),
            "samples": sum(one.answers for one in done),
            "shares": collected.shares,
            "flops": dict(zip(PARTS, work, strict=True)),
            "metrics": metrics,
        }

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """The backbone's weights under their Hugging Face names, adapters merged into them, whole, one by one
        (collective).
        """
        return merged_tensors(self.model.backbone)

    def _parts(self, groups: list[Group]) -> list[list[Scorable]]:
        """The micro-batches of each optimizer step, on the CPU; as many on every rank, the last of them idle where need
        be. Groups are dealt to the steps by their number over all ranks, so that none of these is without any.
        """
        data, ready = data_of(self.trainer), all_gather_objects(len(groups), self.dp_rank.group)
        count, before = min(self.stage.num_minibatches, sum(ready)), sum(ready[: self.dp_rank.rank])
        rows, parts = data.pipeline.micro_batch, []
        for number in range(count):
            dealt = groups[(number - before) % count :: count]
            part = sorted(dealt, key=lambda group: len(group.prompt.rendered.input_ids))
            cut = [part[start : start + rows] for start in range(0, len(part), rows)]
            made = [scorable(data.loader, self.model.vocabulary, micro) for micro in cut]
            missing = max_over_ranks(len(made), self.device, self.dp_rank.group) - len(made)
            if missing:
                assert self.collector.spare is not None
                idle = scorable(data.loader, self.model.vocabulary, [self.collector.spare], idle=True)
                made += [idle] * missing
            parts.append(made)
        return parts

    def _work(self, parts: Sequence[Sequence[Scorable]]) -> Tensor:
        """FLOPs of training this rank's micro-batches, by part; those of sampling are not counted."""
        counted = self.flops.of_step(micro.batch for part in parts for micro in part)
        return torch.tensor([counted[name] for name in PARTS], dtype=torch.float64).to(self.device)

    @torch.no_grad()
    def _ask_before(self, parts: list[list[Scorable]]) -> None:
        """Fill in what must be known of the answers before the first update: the policy's log-probabilities where there
        are several, those of the reference, and the advantages.
        """
        objective, every = self.stage.objective, [(part, index) for part in parts for index in range(len(part))]
        if self.reference is not None:
            with self.reference.asked():
                for part, index in every:
                    part[index] = replace(part[index], reference=self._asked(part[index]))
        in_reward = objective.needs_reference and objective.kl is not None and objective.kl.place == "reward"
        for part, index in every:
            logprobs = self._asked(part[index]) if in_reward or len(parts) > 1 else None
            known = replace(part[index], old=logprobs)
            part[index] = known.judged(objective, logprobs)

    def _asked(self, micro: Scorable) -> Tensor:
        """The model's log-probabilities `(n,)` of a micro-batch's tokens, both on the CPU."""
        return self._score(micro.to(self.device)).logprobs.cpu()

    def _score(self, micro: Scorable) -> TokenScores:
        """What the model says of the answers' tokens now; it and they are on one device."""
        hidden = self.model(micro.batch).flatten(0, 1)[micro.before]
        return self.stage.objective.score(hidden, self.model.head, micro.taken, micro.refused)

    def _update(self, part: list[Scorable], step: int, first: bool, last: bool) -> Update:
        """One optimizer step, the `first` and the `last` of its batch or not."""
        objective = self.stage.objective
        working = [micro for micro in part if not micro.idle]
        counts = [[len(m.taken), len(m.rewards), m.positions] for m in working] or [[0, 0, 0]]
        totals = sum_over_ranks(torch.tensor(counts).sum(dim=0).to(self.device), self.dp_rank.group)
        tokens, answers, positions = totals.tolist()
        denominator = objective.aggregation.denominator(tokens, answers)
        scale, gap = loss_scale(denominator, self.dp_rank.world), torch.zeros(2, device=self.device)
        found, loss = [], 0.0
        for index, micro in enumerate(part):
            synchronise(self.model, last=index + 1 == len(part))
            summed, off = self._learn(micro.to(self.device), 0.0 if micro.idle else scale, step)
            if not micro.idle:
                found.append(summed.diagnostics)
                loss += float(summed.total)
                gap += off
        if first:
            self._check_parity(gap, step)
        with self._profile("optimizer"):
            norm, rate = self.apply_gradients(counts=last)
        mean = float(sum_over_ranks(torch.tensor(loss, device=self.device), self.dp_rank.group)) / denominator
        seen = reduce(add, found, Diagnostics.zeros(self.device))
        return Update(mean, norm, rate, seen, positions, answers)

    def _learn(self, micro: Scorable, scale: float, step: int) -> tuple[PolicySum, Tensor]:
        """Add `scale` times the gradient of a micro-batch, which leaves the device with this call; its loss, and its
        gap to the engine (see `Scorable.gap`).
        """
        with self._profile("forward"):
            scored = self._score(micro)
            summed = self.stage.objective(scored, micro.sampled(step))
        with self._profile("backward"):
            self.manual_backward(summed.total * scale)
        return summed._replace(total=summed.total.detach()), micro.gap(scored.logprobs.detach(), step)

    @torch.no_grad()
    def _compare_engine(self, version: int) -> Diagnostics:
        """The gate, and the mismatch, where answers are drawn ahead: the weights that drew these are gone when they are
        trained. So each rank has one more drawn by the weights `version`, which engine and trainer have now
        (collective). Raises `EngineError`.
        """
        with unsharded(self.model):
            group = self.collector.again(version)
        asked = scorable(data_of(self.trainer).loader, self.model.vocabulary, [group])
        micro = replace(asked, advantages=torch.zeros(1)).to(self.device)
        scored = self._score(micro)
        self._check_parity(micro.gap(scored.logprobs, version), version)
        return self.stage.objective.mismatch(scored, micro.sampled(version))

    def _check_parity(self, gap: Tensor, step: int) -> None:
        """Stop when engine and trainer differ about answers of the present weights. Raises `EngineError`."""
        total, count = sum_over_ranks(gap.double(), self.dp_rank.group).tolist()
        if count and not total / count <= self.stage.max_logprob_gap:
            raise EngineError(
                f"parity gate, step {step}: the log-probabilities of engine and trainer differ by {total / count:.3g} "
                f"nats a token, stage.max_logprob_gap allows {self.stage.max_logprob_gap:g}; the engine has other "
                "weights, another precision or other inputs: compare its version, its temperature and its token ids"
            )
