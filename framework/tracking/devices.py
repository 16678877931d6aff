"""Peaks of devices: memory, arithmetic and links, from their vendors' data sheets, or measured where there is none.

Rates are those of dense matrix products: half of what NVIDIA's data sheets give "with sparsity". Memory is what is
available to programs. Sources: the data sheets "NVIDIA H100 Tensor Core GPU", "H200", "A100", "L40S", "L4", "A10", the
HGX B200 and GB200 tables of "NVIDIA Blackwell Architecture Technical Brief", and AWS's page on G5 instances (A10G).
Networks are those of AWS's largest instances of a kind, divided by their devices (p4d 400 Gb/s, p5, p5en and p6-b200
3,200, g6e 400, g5 and g6 100), or a 400 Gb/s port each.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from framework.run.files import write_json
from framework.run.layout import PEAK_FLOPS_FILE


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of device and its peaks."""

    name: str
    """Words that are all part of the driver's name for it."""
    memory_gib: float
    """Memory (GiB)."""
    fp8: float | None
    """Matrix products in fp8 (TFLOP/s); None without such units."""
    bf16: float
    """Matrix products in bf16 (TFLOP/s)."""
    tf32: float
    """Matrix products in TF32 (TFLOP/s)."""
    fp32: float
    """Matrix products in fp32 (TFLOP/s)."""
    link: float
    """Bandwidth to other devices of its node by NVLink, else PCIe (GB/s, one way)."""
    network: float
    """Its share of the node's bandwidth to other nodes (GB/s, one way)."""


DEVICES = (
    Device("H100 PCIe", 79.1, 1513.0, 756.5, 378.0, 51.0, 64.0, 50),
    Device("H100 NVL", 93.0, 1670.5, 835.5, 417.5, 60.0, 300.0, 50),
    Device("H100", 79.1, 1979.0, 989.5, 494.5, 67.0, 450.0, 50),
    Device("H200 NVL", 139.7, 1670.5, 835.5, 417.5, 60.0, 450.0, 50),
    Device("GH200", 94.5, 1979.0, 989.5, 494.5, 67.0, 450.0, 50),
    Device("H200", 139.7, 1979.0, 989.5, 494.5, 67.0, 450.0, 50),
    Device("A100 40GB", 39.4, None, 312.0, 156.0, 19.5, 300.0, 6.25),
    Device("A100", 79.1, None, 312.0, 156.0, 19.5, 300.0, 6.25),
    Device("GB200", 184.0, 5000.0, 2500.0, 1250.0, 80.0, 900.0, 50),
    Device("B200", 178.3, 4500.0, 2250.0, 1125.0, 75.0, 900.0, 50),
    Device("L40S", 44.4, 733.0, 362.0, 183.0, 91.6, 32.0, 6.25),
    Device("L4", 22.0, 242.5, 121.0, 60.0, 30.3, 32.0, 1.56),
    Device("A10G", 22.0, None, 70.0, 35.0, 31.5, 32.0, 1.56),
    Device("A10", 22.0, None, 125.0, 62.5, 31.2, 32.0, 1.56),
)
"""The first entry whose words are all in a device's name matches it, hence the more specific come first."""


def find_device(name: str) -> Device | None:
    """The device of that name, as the driver or a person spells it ("NVIDIA H100 80GB HBM3", "h100")."""
    spelled = name.upper()
    return next((each for each in DEVICES if all(word.upper() in spelled for word in each.name.split())), None)


def arithmetic(precision: str) -> str:
    """The format of matrix products under Lightning's `precision` ("bf16-mixed", "32-true") or one with fp8."""
    if "8" in precision:
        return "fp8"
    if "16" in precision:
        return "bf16"
    return "fp32" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def peak_flops(device: torch.device, precision: str, folder: Path | None = None) -> float:
    """The peak FLOP/s of `device` under `precision`: from the table, else measured once and stored in `folder`."""
    kind = arithmetic(precision)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    entry = find_device(name) if device.type == "cuda" else None
    rate = getattr(entry, kind) if entry is not None else None
    if rate is not None:
        return float(rate) * 1e12
    file = folder / PEAK_FLOPS_FILE if folder is not None else None
    measured: dict[str, float] = json.loads(file.read_text()) if file is not None and file.is_file() else {}
    key = f"{name}, {kind}"
    if key not in measured:
        measured[key] = measured_flops(device, torch.float32 if kind.endswith("32") else torch.bfloat16)
        if file is not None and os.environ.get("RANK", "0") == "0":
            write_json(file, measured, durable=False)
    return measured[key]


def measured_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """FLOP/s of the fastest square matrix product that `device` computes within `seconds`."""
    side = 8192 if device.type == "cuda" else 512
    one = torch.full((side, side), 0.5, device=device, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    one @ one  # the first allocates memory and selects a kernel
    while best == float("inf") or time.perf_counter() < end:  # on a busy machine the first may use up the time
        _wait(device)
        start = time.perf_counter()
        one @ one
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
