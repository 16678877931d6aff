"""Prompts and groups in a checkpoint: by names that outlive a change of the mixture, with a checksum of the prompt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from framework.data.shards.quarantine import QuarantinedSample
from framework.data.stream.address import Address
from framework.data.stream.loader import StepLoader
from framework.data.stream.mixture import OpenMixture
from framework.generation.engine import Generation
from framework.training.plans import plan_of
from framework.training.rl.closed_loop import DrivenBatch, LaterAnswer
from framework.training.rl.rollout import Prompt, RolloutGroup

log = logging.getLogger(__name__)


def prompt_state(prompt: Prompt, mixture: OpenMixture) -> dict[str, Any]:
    """Returns the prompt as JSON: the stream's name and the fingerprint of its data, the place in the stream, and a
    checksum of the tokens, which changes with tasks, words and sensors.
    """
    assert prompt.sample.address is not None
    stream, turn, sample = prompt.sample.address
    stream_state = {"stream": mixture.names[stream], "data": mixture.fingerprints[stream]}
    return stream_state | {"turn": turn, "sample": sample, "tokens": prompt.checksum}


def load_prompt(state: dict[str, Any], loader: StepLoader) -> Prompt | None:
    """Reads the prompt of a `state` again. Returns None, with a warning, where the recipe now has another prompt there,
    or none: answers to the old one must not be trained.
    """
    mixture, name = loader.mixture, state.get("stream")
    sample = None
    if name in mixture.names:
        stream = mixture.names.index(name)
        if mixture.fingerprints[stream] == state["data"]:
            sample = loader.sample(Address(stream, state["turn"], state["sample"]))
    if sample is not None and not isinstance(sample, QuarantinedSample):
        prompt = Prompt.of(sample, loader)
        if prompt_state(prompt, mixture) == state:
            return prompt
    log.warning(
        "stream %s: the mixture has another prompt, or none, in place of sample %s; the answers to it are dropped",
        name,
        state.get("sample"),
    )
    return None


def group_state(group: RolloutGroup, mixture: OpenMixture) -> dict[str, Any]:
    """Returns the group as JSON, its prompt by its place in `mixture`."""
    return group.state(prompt_state(group.prompt, mixture))


Replay = Callable[[Prompt, Sequence[Generation], Sequence[Sequence[LaterAnswer]]], DrivenBatch | None]
"""Drives the episodes of a prompt by known answers, see `RolloutSimulator.replay`."""


def load_group(state: dict[str, Any], loader: StepLoader, replay: Replay | None = None) -> RolloutGroup | None:
    """Returns the group of a `state` with its prompts made again: the first is read, those of later turns follow from
    the answers by `replay`, in a stage in closed loop. Returns None, with a warning, where the recipe now gives others.
    """
    prompt = load_prompt(state.get("prompt", {}), loader)
    if prompt is None:
        return None
    generations = [Generation.from_state(answer) for answer in state["answers"]]
    later = [[(Generation.from_state(one), checksum) for one, checksum in own] for own in state.get("turns", [])]
    if replay is None and not any(later):
        plans = [plan_of(prompt.task, prompt.scene, one) for one in generations]
        return RolloutGroup.from_state(state, prompt, generations, plans)
    driven = None if replay is None else replay(prompt, generations, later)
    if driven is None:
        log.warning("scene %s: the recipe now drives other episodes; the answers to it are dropped", prompt.scene.id)
        return None
    ((_, opened),) = driven.answered
    return RolloutGroup.from_state(state, prompt, opened, driven.rollouts.plans)
