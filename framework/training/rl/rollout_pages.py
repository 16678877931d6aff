"""Writes a page of rollouts for every saved step, next to the checkpoint that holds them."""

from __future__ import annotations

import logging

from lightning.pytorch import Callback, LightningModule, Trainer

from framework.data.shards.quarantine import QuarantinedSample
from framework.data.stream.loader import StepLoader
from framework.evaluation.rollout_page import GroupView, RolloutView, write_rollouts
from framework.run.folder import RunFolder
from framework.scene.types import Scene, SceneError
from framework.training.datamodule import data_of
from framework.training.plans import plan_of, spelled
from framework.training.rl.credit import Credit
from framework.training.rl.module import PolicyModule
from framework.training.rl.rollout import Prompt, Rollout, RolloutGroup
from framework.training.rl.stage import PolicyStage

log = logging.getLogger(__name__)

FOLDER = "rollouts"


class RolloutPages(Callback):
    """Writes `rollouts/step-<n>.html` into the run's folder every `every` steps and at the stage's end.

    Args:
        run: The run.
        every: Steps between pages.
        max_groups: Groups on a page: of those that the first rank trained, the ones whose rewards differ most.
    """

    def __init__(self, run: RunFolder, every: int, max_groups: int) -> None:
        self.run, self.every, self.max_groups = run, every, max_groups

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Writes the page of a step that is saved."""
        assert isinstance(pl_module, PolicyModule)
        step = trainer.global_step
        if not trainer.is_global_zero or not (step % self.every == 0 or step == pl_module.stage_range.end):
            return
        by_spread = sorted(pl_module.trained, key=lambda group: -float(group.rewards.std(correction=0)))
        loader, stage = data_of(trainer).loader, pl_module.stage
        groups = [group_view(group, loader, stage) for group in by_spread[: self.max_groups]]
        title = f"{self.run.name}: rollouts of step {step}"
        write_rollouts(self.run.path / FOLDER / f"step-{step:08d}.html", title, self.run.identity(), groups)


def group_view(group: RolloutGroup, loader: StepLoader, stage: PolicyStage) -> GroupView:
    """Returns a group as its page shows it, with the advantages of first answers. They ignore a divergence that is
    taken off the rewards, and are whitened by the group alone.
    """
    credit = stage.credit or Credit(stage.objective.advantages, stage.rewards)
    (of_turns,) = credit([group], lambda sums: sums)
    advantages = of_turns[:, 0].tolist()
    rollouts = [
        RolloutView(
            _text(rollout, group.prompt),
            rollout.plan,
            rollout.reward,
            rollout.parts,
            advantage,
            _tokens(rollout, loader),
        )
        for rollout, advantage in zip(group.rollouts, advantages, strict=True)
    ]
    tokens = group.prompt.sample.rendered.input_ids
    prompt = loader.tokenizer.decode(tokens, skip_special_tokens=True)
    return GroupView(scene_with_cameras(group.prompt, loader), " ".join(prompt.split()), rollouts)


def _text(rollout: Rollout, prompt: Prompt) -> str:
    """The answer, or the nearest spelling of a plan that an action head drew."""
    plan = None if rollout.path is None else plan_of(prompt.task, prompt.scene, rollout)
    return rollout.text if plan is None else spelled(prompt.task, prompt.scene, plan)


def _tokens(rollout: Rollout, loader: StepLoader) -> list[tuple[str, float]]:
    """The answer's tokens as text, with their log-probabilities; none of a plan that an action head drew."""
    if rollout.path is not None:
        return []
    texts = [loader.tokenizer.decode([token]) for token in rollout.tokens]
    return list(zip(texts, rollout.logprobs, strict=True))


def scene_with_cameras(prompt: Prompt, loader: StepLoader) -> Scene:
    """Reads the scene of a prompt again: samples drop their raw sensors. Where that fails, returns the sample's own
    scene, with a warning, because a page must not end the run.
    """
    assert prompt.sample.address is not None
    try:
        item = loader.mixture.read(prompt.sample.address)
    except SceneError as error:
        item = QuarantinedSample(prompt.scene.id, str(error))
    if isinstance(item, QuarantinedSample):
        log.warning("scene %s is shown without pictures: %s", prompt.scene.id, item.reason)
        return prompt.scene
    return item[0]
