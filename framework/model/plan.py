"""Plans of a model's action head, without gradients."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from framework.model.codecs.control_tokens import initial_state
from framework.model.flow_head import FlowHead, Memory, Prompts
from framework.scene.batch import MicroBatch
from framework.scene.kinematics import unicycle_rollout
from framework.scene.types import FloatArray, Scene, Trajectory

if TYPE_CHECKING:
    from framework.model.language_action import LanguageActionModel


@torch.no_grad()
def plan(model: LanguageActionModel, prompts: MicroBatch, samples: int = 0) -> list[list[Trajectory]]:
    """Plans for each of `prompts`, a left-padded micro-batch: one from the middle of the noise, then `samples` from
    noise that is drawn by the scene's id, and with noise in between where the head has `sample_noise`.

    Raises `SceneError` for a scene without a history, `ValueError` where the model has no action head, and
    `FloatingPointError` where its plans are not finite.
    """
    head, memory = _read(model, prompts, 1)
    device, scenes = prompts["input_ids"].device, prompts["scenes"]
    plans: list[list[Trajectory]] = [[] for _ in scenes]
    for number in range(1 + samples):
        noise = torch.stack([_noise(scene, number, 1 + head.flow_steps, head.steps) for scene in scenes], 1).to(device)
        added = noise[1:] if number and head.sample_noise else None
        controls = _finite(head.sample(memory, noise[0], added))
        for scene, own, made in zip(scenes, controls, plans, strict=True):
            made.append(driven(scene, own, head.rate_hz))
    return plans


class DrawnPlan(NamedTuple):
    """A plan that the stochastic flow drew."""

    states: FloatArray
    """From noise to actions, `(flow_steps + 1, steps, 2)` float32."""
    logprobs: FloatArray
    """Log-density of each step, `(flow_steps,)` float32."""
    controls: FloatArray
    """What is driven, `(steps, 2)` float64: acceleration (m/s^2) and curvature (1/m)."""
    rate_hz: float
    """Steps per second."""


@torch.no_grad()
def draw_plans(model: LanguageActionModel, prompts: MicroBatch, seeds: Sequence[Sequence[int]]) -> list[DrawnPlan]:
    """Draws plans for each of `prompts`, a left-padded micro-batch: one for each of its `seeds`, prompt by prompt, all
    prompts equally many. A plan depends on its prompt, its seed and the weights alone.

    Raises `ValueError` where the model has no action head, and `FloatingPointError` where a plan is not finite.
    """
    head, memory = _read(model, prompts, len(seeds[0]))
    every = [torch.Generator().manual_seed(seed) for own in seeds for seed in own]
    noise = torch.stack([torch.randn(1 + head.flow_steps, head.steps, 2, generator=one) for one in every], 1)
    noise = noise.to(prompts["input_ids"].device)
    paths = head.draw(memory, noise[0], noise[1:])
    controls = _finite(head.driven(paths.states[:, -1]))
    states, logprobs = (each.float().cpu().numpy() for each in paths)
    rows = zip(states, logprobs, controls, strict=True)
    return [DrawnPlan(*row, head.rate_hz) for row in rows]


@torch.no_grad()
def middle_plans(model: LanguageActionModel, prompts: MicroBatch) -> list[DrawnPlan]:
    """A plan for each of `prompts` from the middle of the noise, without noise on the way: it has no states, and no
    density. Raises as `draw_plans` does.
    """
    head, memory = _read(model, prompts, 1)
    noise = torch.zeros(len(prompts["input_ids"]), head.steps, 2, device=prompts["input_ids"].device)
    nothing = np.zeros(0, dtype=np.float32)
    return [DrawnPlan(nothing, nothing, own, head.rate_hz) for own in _finite(head.sample(memory, noise))]


def driven(scene: Scene, controls: FloatArray, rate_hz: float) -> Trajectory:
    """What `controls` `(steps, 2)` lead to in `scene`. Raises `SceneError` for a scene without a history."""
    return Trajectory(unicycle_rollout(initial_state(scene), controls, 1.0 / rate_hz), rate_hz)


def _read(model: LanguageActionModel, prompts: MicroBatch, plans: int) -> tuple[FlowHead, Memory]:
    """The action head with what it sees of the prompts, for so many plans each."""
    head = model.action_head
    if head is None:
        raise ValueError("model.action_head: the model has none; train one (model/action_head=flow)")
    mask = prompts["attention_mask"].cpu().bool()
    places = [row.nonzero()[:, 0] + number * len(row) for number, row in enumerate(mask)]
    of = Prompts.of(places, head.steps, [plans] * len(places)).to(prompts["input_ids"].device)
    return head, head.memory(model(prompts, of.places), of.segments)


def _finite(controls: Tensor) -> FloatArray:
    found: FloatArray = controls.double().cpu().numpy()
    if not np.isfinite(found).all():
        raise FloatingPointError("the model's plans are not finite (NaN); take a checkpoint with sound weights")
    return found


def _noise(scene: Scene, number: int, count: int, steps: int) -> Tensor:
    """The noise `(count, steps, 2)` of the plan `number` of a scene; zeros for the first."""
    if number == 0:
        return torch.zeros(count, steps, 2)
    return torch.randn(count, steps, 2, generator=torch.Generator().manual_seed(seed_of(f"{scene.id}/{number}")))


def seed_of(text: str) -> int:
    """A seed that follows from `text`, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
