"""A stage of reinforcement learning, as a component (contract 7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Interval

from framework.generation.engine import Engine
from framework.model.language_action import LanguageActionModel
from framework.objective.advantages import GroupDecoupled
from framework.objective.group_filter import GroupFilter
from framework.objective.policy import PolicyObjective
from framework.objective.scenario_weights import ScenarioWeights
from framework.objective.scene_replay import SceneReplay
from framework.objective.supervised import CrossEntropy
from framework.recipe.component import component
from framework.recipe.ranges import Batch, Count, PositiveCount, PositiveWeight, Tokens
from framework.simulation.rewards.answers import Overlong
from framework.simulation.rewards.reward_sum import RewardSum
from framework.simulation.simulator import Simulator
from framework.training.rl.alarms import Alarm
from framework.training.rl.closed_loop import ClosedLoop
from framework.training.rl.continuation import Continuation
from framework.training.rl.credit import Credit
from framework.training.stages import Stage

BYTES_PER_TOKEN = 3 * 8 + 3 * 4
"""Bytes of a sampled token's tensors in a `PolicyBatch`, without its banned mask: `target_ids`, `source_positions` and
`samples` (int64), and the log-probabilities of engine, policy and reference (float32)."""


@component
@dataclass(frozen=True, kw_only=True)
class PolicyStage(Stage):
    """A stage that samples answers to prompts, simulates and rewards them, and learns from them.

    `global_batch` of `Stage` counts the prompts of a step, `micro_batch` the prompts of a micro-batch, each with all
    its answers.

    Raises `ValueError` for numbers that are too small, and where the length penalty ends at another length than the
    answers.
    """

    objective: PolicyObjective
    """The loss, its advantages and the sampling temperature."""
    rewards: RewardSum
    """Judge the episodes."""
    simulator: Simulator
    """Carries out the plans."""
    sampler: Callable[[LanguageActionModel], Engine]
    """Makes the engine that samples, over the live model."""
    group_size: Annotated[int, Interval(ge=2, le=4096)]
    """Answers to each prompt."""
    max_new_tokens: Tokens
    """Most tokens of an answer."""
    rollout: ClosedLoop | None = None
    """Lets the policy drive whole episodes, of which every answer trains; None trains single answers."""
    continuation: Continuation | None = None
    """Lets the policy drive on after an answer; None carries the plan out to its end."""
    filter: GroupFilter | None = None
    """Dynamic sampling: groups that it drops are replaced by those of further prompts, and surplus groups train in the
    next step. None keeps every group.
    """
    prompt_weights: ScenarioWeights | SceneReplay | None = None
    """Prompt curriculum: weights kinds of scenario by how often the policy succeeds there, that is, neither is at fault
    in a collision nor leaves the road, and may answer single scenes again. Skipped prompts are drawn and not answered.
    None answers every prompt.
    """
    max_resample_factor: Annotated[int, Interval(ge=1, le=1000)] = 10
    """Prompts answered at most for a step, as a multiple of `global_batch`."""
    num_minibatches: PositiveCount = 1
    """Optimizer steps per batch of answers; fewer where the batch has fewer groups."""
    max_logprob_gap: PositiveWeight = 0.05
    """Mean difference between the log-probabilities of engine and trainer, in nats a token, above which the run stops.
    """
    generation_batch_size: Batch = 128
    """Answers per call to the engine."""
    async_rollout: bool = False
    """Whether the first round of a step is sampled while the step before trains, by weights that are one step old. The
    engine must have weights and memory of its own.
    """
    rollout_page_groups: Count = 8
    """Groups on the page of a saved step's rollouts; 0 for no page."""
    alarms: Mapping[str, Alarm] = field(default_factory=dict)
    """Alarms on each step's metrics, by name."""

    def __post_init__(self) -> None:
        for name, least in (
            ("group_size", 2),
            ("max_new_tokens", 1),
            ("max_resample_factor", 1),
            ("num_minibatches", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"stage.{name}: {getattr(self, name)}; give at least {least}")
        if self.rollout is not None and self.continuation is not None:
            raise ValueError(
                "stage.continuation: the answers of stage/rollout=closed_loop are driven on already; leave out one of "
                "the two"
            )
        if self.rollout is not None and self.objective.kl is not None and self.objective.kl.place == "reward":
            raise ValueError(
                "stage.objective.kl.place: reward is taken off single answers, and stage/rollout=closed_loop rewards "
                "episodes; give loss"
            )
        _ = self.credit  # refuses what does not go together
        for name, part in self.rewards.components.items():
            if isinstance(part, Overlong) and part.limit != self.max_new_tokens:
                raise ValueError(
                    f"rewards.components.{name}.limit: {part.limit} tokens, and stage.max_new_tokens allows "
                    f"{self.max_new_tokens}: give it that limit, at which the penalty is full"
                )
        if self.generation_batch_size < self.group_size:
            raise ValueError(
                f"stage.generation_batch_size: {self.generation_batch_size} answers, a group has {self.group_size}; "
                "a group is sampled as a whole"
            )

    @property
    def kind_weights(self) -> ScenarioWeights | None:
        """The weights of kinds of scenario."""
        return self.prompt_weights.kinds if isinstance(self.prompt_weights, SceneReplay) else self.prompt_weights

    @property
    def scene_replay(self) -> SceneReplay | None:
        """What answers scenes again."""
        return self.prompt_weights if isinstance(self.prompt_weights, SceneReplay) else None

    @property
    def credit(self) -> Credit | None:
        """Gives the answers of a step their advantages; None where those of a group need that group alone."""
        if self.rollout is None and not isinstance(self.objective.advantages, GroupDecoupled):
            return None
        per_turn = "episode" if self.rollout is None else self.rollout.credit
        return Credit(self.objective.advantages, self.rewards, per_turn)

    @property
    def answers_per_prompt(self) -> int:
        """See `Stage`: the size of a group."""
        return self.group_size

    def traced_loss(self) -> CrossEntropy:
        """See `Stage`: next-token cross-entropy of the answers, which costs what scoring them costs."""
        return CrossEntropy(self.objective.chunk)

    def batch_bytes(self, step: float, micro_batch: float, scored: int, vocabulary: int) -> int:
        """See `Stage`: one micro-batch, with the tensors of each sampled token. The banned mask has a bit for each
        token of the vocabulary, and is unpacked to bool for one chunk at a time.
        """
        per_token = BYTES_PER_TOKEN + 4 * -(-vocabulary // 32)
        return round(micro_batch) + scored * per_token + min(scored, self.objective.chunk) * vocabulary


def check_sampler(stage: PolicyStage, where: str) -> None:
    """Raises `ValueError` where the stage, `where` in the recipe, samples while it trains, and its engine cannot."""
    sampler: Any = stage.sampler  # a recipe's is a partial, and so are the servers of a fleet
    sleeps = [each.keywords.get("sleeps") for each in [sampler, *sampler.keywords.get("engines", {}).values()]]
    if stage.async_rollout and (not sampler.func.own_weights or any(sleeps)):
        raise ValueError(
            f"{where}.async_rollout: the sampler has no weights and memory of its own to generate with while the model "
            "trains; set stage/sampler=vllm with sleeps: false, or async_rollout: false"
        )


def check_action_head(stage: PolicyStage, where: str, head: Mapping[str, Any]) -> None:
    """Raises `ValueError` where the stage, `where` in the recipe, does not go together with the model's action head,
    which is made with the arguments `head`: all its plans are the head's, drawn by a stochastic flow.
    """
    if not head.get("sample_noise", 0.0):
        raise ValueError(
            f"{where}: reinforcement learning needs the density of the action head's plans; set "
            "model.action_head.sample_noise above 0 (0.3 to 0.7), or model/action_head=none for answers in tokens"
        )
    for stream, part in stage.mixture.parts.items():
        in_tokens = sorted(set(part.tasks) - set(head.get("tasks", ())))
        if in_tokens:
            raise ValueError(
                f"{where}.mixture.parts.{stream}.tasks: {', '.join(in_tokens)} answers in tokens, and a stage of "
                "reinforcement learning trains one kind of answer; leave it out, add it to model.action_head.tasks, or "
                "set model/action_head=none"
            )
    sampler: Any = stage.sampler  # a recipe's is a partial
    if not sampler.func.draws_plans:
        raise ValueError(
            f"{where}.sampler: only the model in training has the action head; set stage/sampler=embedded, or "
            "model/action_head=none"
        )
    if stage.objective.entropy_weight:
        raise ValueError(
            f"{where}.objective.entropy_weight: {stage.objective.entropy_weight:g}; the entropy of an action head's "
            "steps is that of their noise, which nothing trains; set it to 0, and model.action_head.sample_noise"
        )
