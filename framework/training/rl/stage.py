"""A stage of reinforcement learning, as a component (contract 7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from framework.generation.engine import Engine
from framework.model.language_action import LanguageActionModel
from framework.objective.group_filter import GroupFilter
from framework.objective.policy import PolicyObjective
from framework.objective.scenario_weights import ScenarioWeights
from framework.objective.supervised import CrossEntropy
from framework.simulation.rewards.answers import Overlong
from framework.simulation.rewards.reward_sum import RewardSum
from framework.simulation.simulator import Simulator
from framework.training.rl.alarms import Alarm
from framework.training.rl.continuation import Continuation
from framework.training.stages import Stage

OF_TOKEN = 3 * 8 + 3 * 4
"""Bytes of what is known of an answer's token beside its bits: `taken`, `before` and `samples` (int64), and the
log-probabilities of engine, policy and reference (float32)."""


@dataclass(frozen=True, kw_only=True)
class PolicyStage(Stage):
    """A stage that answers prompts, judges the answers and learns from them, by `objective`; for what is not here see
    `Stage`.

    `global_batch` prompts, the data's or the stage's own, make a step, `micro_batch` of them, with all their answers, a
    micro-batch. Each is answered `group_size` times by the engine that `engine` makes of the live model, in at most
    `max_new_tokens`, drawn at the objective's temperature. `rewards` judge where the plans lead in `simulator`. Groups
    that `filter` refuses (None: none) are replaced by those of further prompts, until `max_resample_factor` times as
    many as a step has were answered; what is left over trains in the next step. `prompt_weights` (None: as the stream
    has them) weigh kinds of scenario by how often the policy neither is at fault in a collision nor leaves the road
    there; what they pass over is drawn, not answered. A step's answers are trained in `num_minibatches` optimizer
    steps, each on as many of its groups; in fewer where it has fewer groups. `parity` is the mean difference (nats)
    between the log-probabilities of engine and trainer at which the run stops. `generation_batch_size` answers are
    asked of the engine at a time. With `async_rollout` the first round of a step's answers is drawn while the step
    before trains, by weights that are one step old; it takes an engine that has weights, and keeps memory, of its own.
    `alarms` watch each step's metrics. So many groups are `rollout_page_groups` on the page of a saved step's rollouts
    (0: no page).

    Plans are carried out to their ends; with a `continuation`, for a while, after which the policy drives on.
    """

    objective: PolicyObjective
    rewards: RewardSum
    simulator: Simulator
    engine: Callable[[LanguageActionModel], Engine]
    group_size: int
    max_new_tokens: int
    continuation: Continuation | None = None
    filter: GroupFilter | None = None
    prompt_weights: ScenarioWeights | None = None
    max_resample_factor: int = 10
    num_minibatches: int = 1
    max_logprob_gap: float = 0.05
    generation_batch_size: int = 128
    async_rollout: bool = False
    rollout_page_groups: int = 8
    alarms: Mapping[str, Alarm] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (
            ("group_size", 2),
            ("max_new_tokens", 1),
            ("max_resample_factor", 1),
            ("num_minibatches", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"stage.{name}: {getattr(self, name)}; give at least {least}")
        for name, part in self.rewards.components.items():
            if isinstance(part, Overlong) and part.limit != self.max_new_tokens:
                raise ValueError(
                    f"rewards.components.{name}.limit: {part.limit} tokens, and stage.max_new_tokens allows "
                    f"{self.max_new_tokens}: give it that limit, at which the punishment is whole"
                )
        if self.generation_batch_size < self.group_size:
            raise ValueError(
                f"stage.generation_batch_size: {self.generation_batch_size} answers, a group has {self.group_size}; "
                "a group is sampled as a whole"
            )

    @property
    def answers_per_prompt(self) -> int:
        """A group's."""
        return self.group_size

    def traced_loss(self) -> CrossEntropy:
        """Next-token cross-entropy of the answers, which takes what scoring them takes."""
        return CrossEntropy(self.objective.chunk)

    def batch_bytes(self, step: float, micro_batch: float, scored: int, vocabulary: int) -> int:
        """A micro-batch's, with what is known of each answer's token: bits for what could not be drawn, of which those
        of a chunk are spelled out as bool.
        """
        known = OF_TOKEN + 4 * -(-vocabulary // 32)
        return round(micro_batch) + scored * known + min(scored, self.objective.chunk) * vocabulary
