"""Shows the rollouts of the steps that are saved on a page each, beside the checkpoints that hold them."""

from __future__ import annotations

import logging

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from framework.data.render.sample import Sample
from framework.data.shards.quarantine import QuarantinedSample
from framework.data.stream.loader import StepLoader
from framework.evaluation.rollout_page import GroupView, RolloutView, write_rollouts
from framework.objective.policy import PolicyObjective
from framework.run.folder import RunFolder
from framework.run.layout import ROLLOUTS, step_name
from framework.scene.types import Scene, SceneError
from framework.training.datamodule import data_of
from framework.training.rl.collector import Group
from framework.training.rl.module import PolicyModule
from framework.training.rl.sampler import drive_task

log = logging.getLogger(__name__)


class RolloutPages(Callback):
    """Writes `rollouts/step-<n>.html` into the folder of `run` every `every` steps and at the stage's end.

    Of the groups that the first rank trained it has the `shown` whose answers differ most in reward.
    """

    def __init__(self, run: RunFolder, every: int, shown: int) -> None:
        self.run, self.every, self.shown = run, every, shown

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """See the class."""
        assert isinstance(pl_module, PolicyModule)
        step = trainer.global_step
        if not trainer.is_global_zero or not (step % self.every == 0 or step == pl_module.stage_range.end):
            return
        differing = sorted(pl_module.trained, key=lambda group: -float(group.rewards.std(correction=0)))
        loader, objective = data_of(trainer).loader, pl_module.stage.objective
        groups = [shown(group, loader, objective) for group in differing[: self.shown]]
        title = f"{self.run.name}: rollouts of step {step}"
        write_rollouts(self.run.path / ROLLOUTS / f"{step_name(step)}.html", title, self.run.identity(), groups)


def shown(group: Group, loader: StepLoader, objective: PolicyObjective) -> GroupView:
    """A group as its page shows it; advantages are without a divergence that is taken off the rewards."""
    task, scene = drive_task(loader, group.prompt), seen(group.prompt, loader)
    one = torch.zeros(len(group.answers), dtype=torch.int64)
    advantages = objective.advantages(group.rewards, one).tolist()
    rollouts = [
        RolloutView(
            text=answer.text,
            plan=task.decode(answer.text, scene),
            reward=float(group.rewards[number]),
            parts={name: float(values[number]) for name, values in group.parts.items()},
            advantage=advantages[number],
        )
        for number, answer in enumerate(group.answers)
    ]
    tokenizer = loader.tokenizer
    prompt = tokenizer.decode(group.prompt.rendered.input_ids, skip_special_tokens=True)
    return GroupView(scene, " ".join(prompt.split()), rollouts)


def seen(prompt: Sample, loader: StepLoader) -> Scene:
    """The scene of a prompt with its cameras, read again: samples go without their raw sensors. Where that fails it is
    the sample's own, with a warning: no page is worth the run.
    """
    assert prompt.address is not None
    try:
        found = loader.mixture.read(prompt.address)
    except SceneError as error:
        found = QuarantinedSample(prompt.scene.id, str(error))
    if isinstance(found, QuarantinedSample):
        log.warning("scene %s is shown without pictures: %s", prompt.scene.id, found.reason)
        return prompt.scene
    return found[0]
