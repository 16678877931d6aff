"""Reads and renders the samples of a rank's steps."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import Dataset

from framework.data.render.chat import ChatRenderer
from framework.data.render.sample import Sample
from framework.data.shards.cache import ShardError
from framework.data.shards.quarantine import QuarantinedSample
from framework.data.stream.address import Address
from framework.data.stream.batcher import Batcher
from framework.data.stream.mixture import OpenMixture
from framework.scene.types import SceneError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedStep:
    """A rank's slice of a step, ready to be trained or answered."""

    batches: list[Any]
    """What the `Batcher` makes of the samples: micro-batches, or prompts."""
    quarantined: list[tuple[Address, QuarantinedSample]]
    """The samples that could not be used."""
    fetch_s: float
    """Seconds that reading waited for shards."""
    render_s: float
    """Seconds spent decoding, rendering and collating."""
    padding: int
    """Positions of the batches that hold nothing."""
    positions: int
    """All positions of the batches."""


class StepDataset(Dataset[LoadedStep]):
    """Maps the addresses of a rank's slice of a step to its batches. Runs in the DataLoader's workers.

    Args:
        mixture: Where samples are read from.
        renderer: Renders a scene and its conversation as tokens, pixels and sensor rows.
        batcher: Divides the rendered samples into batches.
    """

    def __init__(self, mixture: OpenMixture, renderer: ChatRenderer, batcher: Batcher) -> None:
        self.mixture = mixture
        self.renderer = renderer
        self.batcher = batcher

    def __getitem__(self, step: list[Address]) -> LoadedStep:
        """Returns the step whose samples are at the addresses `step`."""
        start, waited = time.perf_counter(), self._waited_s()
        samples: list[Sample] = []
        quarantined: list[tuple[Address, QuarantinedSample]] = []
        for address in step:
            sample = self.sample(address)
            if isinstance(sample, QuarantinedSample):
                quarantined.append((address, sample))
            else:
                samples.append(sample)
        batches = self.batcher.batches(samples, self.renderer.special_ids)
        fetch_s = self._waited_s() - waited
        tokens, positions = self.batcher.count(batches)
        render_s = time.perf_counter() - start - fetch_s
        return LoadedStep(batches, quarantined, fetch_s, render_s, positions - tokens, positions)

    def sample(self, address: Address) -> Sample | QuarantinedSample:
        """Returns the rendered sample at `address`, or why it cannot be used. Raises what `OpenMixture.read` does."""
        try:
            return self._sample(address)
        except ShardError:
            raise
        except SceneError as error:
            reason = str(error)
        except Exception as error:  # one sample must not end the run; the limit on their share does
            log.warning("sample %s", self.mixture.sample_id(address), exc_info=True)
            reason = f"{type(error).__name__}: {error}; verify the shard and write it again"
        return QuarantinedSample(self.mixture.sample_id(address), reason)

    def _sample(self, address: Address) -> Sample | QuarantinedSample:
        record = self.mixture.read(address)
        if isinstance(record, QuarantinedSample):
            return record
        scene, task, draw = record
        conversation = self.mixture.tasks[task].conversation(scene, draw)
        rendered = self.renderer.render(scene, conversation, self.batcher.for_generation)
        # `rendered` is what is trained; the raw sensors would only be copied from process to process.
        return Sample(rendered, replace(scene, cameras=(), lidar=None, radar=None, dialogue=None), task, address)

    def _waited_s(self) -> float:
        return sum(reader.waited_s for reader in self.mixture.readers)
