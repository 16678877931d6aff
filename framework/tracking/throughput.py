"""How much of what a device can do is used: FLOPs of the model against the peak, and the most memory that was taken."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path

import torch

from framework.tracking.devices import peak_flops

RECOMPUTED = "recomputed"
"""The part of a step's FLOPs that the model itself does not need."""


class Throughput:
    """Metrics of a run's speed in `precision` (as Lightning spells it); a peak that is not in the table is measured
    once and kept in `folder`.

    `throughput/mfu` is the share of the peak that the model's FLOPs come to (Chowdhery et al. 2022, arXiv 2204.02311,
    appendix B), `throughput/hfu` the share with what is recomputed. The FLOPs' convention is that of who counted them.
    """

    def __init__(self, precision: str, folder: Path | None = None) -> None:
        self.precision = precision
        self.folder = folder
        self.device = torch.device("cpu")
        self.devices = 1
        self.peak = 0.0

    def start(self, device: torch.device, devices: int) -> None:
        """Find the peak of `device`, one of `devices` alike."""
        self.device, self.devices = device, devices
        self.peak = peak_flops(device, self.precision, self.folder)

    def of_step(self, flops: Mapping[str, float], seconds: float) -> dict[str, float]:
        """Metrics of a step that took `flops` by part, over all devices: each part in TFLOP, what every device did of
        the model's a second, and both shares of the peak.
        """
        done = sum(flops.values())
        model = done - flops.get(RECOMPUTED, 0.0)
        available = seconds * self.devices * self.peak
        return {
            **{f"throughput/{part}_tflop": amount / 1e12 for part, amount in flops.items()},
            "throughput/tflop_per_s_per_device": model / seconds / self.devices / 1e12,
            "throughput/mfu": model / available,
            "throughput/hfu": done / available,
        }

    def begin_window(self) -> None:
        """Memory is watched from now on. Waits for nothing."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def memory(self) -> dict[str, float]:
        """The most memory (GiB): on a GPU of tensors in this window, and taken by the allocator; on a CPU what the
        process ever had. Waits for nothing.
        """
        if self.device.type != "cuda":
            kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return {"throughput/peak_memory_gib": kilobytes / 2**20}
        return {
            "throughput/peak_memory_gib": torch.cuda.max_memory_allocated(self.device) / 2**30,
            "throughput/reserved_memory_gib": torch.cuda.max_memory_reserved(self.device) / 2**30,
        }
