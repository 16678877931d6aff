"""Utilisation of the devices: the model's FLOPs against their peak, and peak memory."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path

import torch

from framework.tracking.devices import peak_flops

RECOMPUTED = "recomputed"
"""The part of a step's FLOPs that recomputes activations: counted by HFU, not by MFU."""


class Throughput:
    """Relates a step's FLOPs to the peak of its devices.

    `throughput/mfu` is the model's FLOPs as a share of the peak (model FLOPs utilisation, Chowdhery et al. 2022, arXiv
    2204.02311, appendix B). `throughput/hfu` includes recomputed activations. FLOPs are taken as counted.

    Args:
        precision: The precision of matrix products, in Lightning's spelling ("bf16-mixed").
        folder: Where a peak that is in no table is stored once measured; None to measure it every time.
    """

    def __init__(self, precision: str, folder: Path | None = None) -> None:
        self.precision = precision
        self.folder = folder
        self.device = torch.device("cpu")
        self.devices = 1
        self.peak = 0.0

    def start(self, device: torch.device, devices: int) -> None:
        """Look up the peak of `device`, one of `devices` of its kind."""
        self.device, self.devices = device, devices
        self.peak = peak_flops(device, self.precision, self.folder)

    def of_step(self, flops: Mapping[str, float], seconds: float) -> dict[str, float]:
        """The metrics of a step of `seconds` with `flops` by part over all devices: TFLOP by part, the model's TFLOP/s
        per device, MFU and HFU.
        """
        total = sum(flops.values())
        model = total - flops.get(RECOMPUTED, 0.0)
        available = seconds * self.devices * self.peak
        return {
            **{f"throughput/{part}_tflop": amount / 1e12 for part, amount in flops.items()},
            "throughput/tflop_per_s_per_device": model / seconds / self.devices / 1e12,
            "throughput/mfu": model / available,
            "throughput/hfu": total / available,
        }

    def begin_window(self) -> None:
        """Start a new window of peak memory. Does not synchronise with the device."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def memory(self) -> dict[str, float]:
        """Peak memory (GiB). On a GPU: of tensors, and reserved by the allocator, in this window. On a CPU: of the
        process since its start. Does not synchronise with the device.
        """
        if self.device.type != "cuda":
            kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return {"throughput/peak_memory_gib": kilobytes / 2**20}
        return {
            "throughput/peak_memory_gib": torch.cuda.max_memory_allocated(self.device) / 2**30,
            "throughput/reserved_memory_gib": torch.cuda.max_memory_reserved(self.device) / 2**30,
        }
