"""Plans of a model's action head, without gradients."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from framework.model.codecs.control_tokens import initial_state
from framework.model.flow_head import Prompts
from framework.scene.batch import MicroBatch
from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import Scene, Trajectory

if TYPE_CHECKING:
    from framework.model.language_action import LanguageActionModel


@torch.no_grad()
def plan(model: LanguageActionModel, prompts: MicroBatch, samples: int = 0) -> list[list[Trajectory]]:
    """Plans for each of `prompts`, a left-padded micro-batch: one from the middle of the noise, then `samples` from
    noise that is drawn by the scene's id, and with noise in between where the head has `sample_noise`.

    Raises `SceneError` for a scene without a history, `ValueError` where the model has no action head, and
    `FloatingPointError` where its plans are not finite.
    """
    head = model.action_head
    if head is None:
        raise ValueError("model.action_head: the model has none; train one (model/action_head=flow)")
    device, scenes = prompts["input_ids"].device, prompts["scenes"]
    mask = prompts["attention_mask"].cpu().bool()
    places = [row.nonzero()[:, 0] + number * len(row) for number, row in enumerate(mask)]
    of = Prompts.of(places, head.steps).to(device)
    memory = head.memory(model(prompts, of.places), of.segments)
    plans: list[list[Trajectory]] = [[] for _ in scenes]
    for number in range(1 + samples):
        noise = torch.stack([_noise(scene, number, 1 + head.flow_steps, head.steps) for scene in scenes], 1).to(device)
        added = noise[1:] if number and head.sample_noise else None
        controls = head.sample(memory, noise[0], added).double().cpu().numpy()
        if not np.isfinite(controls).all():
            raise FloatingPointError("the model's plans are not finite (NaN); take a checkpoint with sound weights")
        for scene, own, made in zip(scenes, controls, plans, strict=True):
            made.append(Trajectory(unicycle_rollout(initial_state(scene), own, 1.0 / head.rate_hz), head.rate_hz))
    return plans


def _noise(scene: Scene, number: int, count: int, steps: int) -> Tensor:
    """The noise `(count, steps, 2)` of the plan `number` of a scene; zeros for the first."""
    if number == 0:
        return torch.zeros(count, steps, 2)
    return torch.randn(count, steps, 2, generator=torch.Generator().manual_seed(seed_of(f"{scene.id}/{number}")))


def seed_of(text: str) -> int:
    """A seed that follows from `text`, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
