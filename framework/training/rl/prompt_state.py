"""Prompts in a checkpoint: by names that outlive a change of the mixture, and with a proof of what was asked."""

from __future__ import annotations

import logging
import zlib
from typing import Any

from framework.data.render.sample import Sample
from framework.data.shards.quarantine import QuarantinedSample
from framework.data.stream.address import Address
from framework.data.stream.loader import StepLoader
from framework.data.stream.mixture import OpenMixture

log = logging.getLogger(__name__)


def prompt_state(prompt: Sample, mixture: OpenMixture) -> dict[str, Any]:
    """As JSON: the stream by its name and the fingerprint of its data, the place in it, and a checksum of the tokens,
    which tells when tasks, words or sensors have changed.
    """
    assert prompt.address is not None
    stream, turn, sample = prompt.address
    tokens = zlib.crc32(prompt.rendered.input_ids.numpy().tobytes())
    named = {"stream": mixture.names[stream], "data": mixture.fingerprints[stream]}
    return named | {"turn": turn, "sample": sample, "tokens": tokens}


def prompt_of(state: dict[str, Any], loader: StepLoader) -> Sample | None:
    """The prompt of a `state`, read again; None, with a warning, where the recipe gives another one or none now, to
    which answers of then must not be trained.
    """
    mixture, name = loader.mixture, state.get("stream")
    prompt: Sample | QuarantinedSample | None = None
    if name in mixture.names:
        stream = mixture.names.index(name)
        if mixture.fingerprints[stream] == state["data"]:
            prompt = loader.sample(Address(stream, state["turn"], state["sample"]))
    if isinstance(prompt, Sample) and prompt_state(prompt, mixture) == state:
        return prompt
    log.warning(
        "stream %s: the mixture has another prompt, or none, where sample %s was; answers to it are dropped",
        name,
        state.get("sample"),
    )
    return None
