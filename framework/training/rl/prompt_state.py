"""Prompts and groups in a checkpoint: by names that outlive a change of the mixture, with a checksum of the prompt."""

from __future__ import annotations

import logging
import zlib
from typing import Any

from framework.data.shards.quarantine import QuarantinedSample
from framework.data.stream.address import Address
from framework.data.stream.loader import StepLoader
from framework.data.stream.mixture import OpenMixture
from framework.training.rl.rollout import Prompt, RolloutGroup

log = logging.getLogger(__name__)


def prompt_state(prompt: Prompt, mixture: OpenMixture) -> dict[str, Any]:
    """Returns the prompt as JSON: the stream's name and the fingerprint of its data, the place in the stream, and a
    checksum of the tokens, which changes with tasks, words and sensors.
    """
    assert prompt.sample.address is not None
    stream, turn, sample = prompt.sample.address
    tokens = zlib.crc32(prompt.sample.rendered.input_ids.numpy().tobytes())
    stream_state = {"stream": mixture.names[stream], "data": mixture.fingerprints[stream]}
    return stream_state | {"turn": turn, "sample": sample, "tokens": tokens}


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


def load_group(state: dict[str, Any], loader: StepLoader) -> RolloutGroup | None:
    """Returns the group of a `state` with its prompt read again; None where `loader` no longer has that prompt."""
    prompt = load_prompt(state.get("prompt", {}), loader)
    return None if prompt is None else RolloutGroup.from_state(state, prompt)
